"""Study tables: no patient is in two splits, values are checked on entry, and no path leads out of its root."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.data.studies import (
    StudyTableError,
    check_images,
    check_patient_splits,
    split_by_patient,
    validate_studies,
)


def plain_table(**columns):
    n = len(next(iter(columns.values()), range(4)))
    base = dict(
        image=[f'{i}.png' for i in range(n)],
        patient_id=[f'p{i}' for i in range(n)],
        study_id='s',
        view='Frontal',
        projection=None,
        sex=None,
        age=np.nan,
        **{o: np.nan for o in OBSERVATIONS},
    )
    return pd.DataFrame({**base, **columns})


def test_a_patient_in_two_splits_is_refused_even_when_some_rows_have_none():
    with pytest.raises(StudyTableError, match='patient p0 is in the splits test, train'):
        validate_studies(plain_table(patient_id=['p0', 'p0', 'p0'], split=['train', 'test', None]))


def test_a_table_may_say_nothing_of_sex_age_projection_and_labels():
    table = validate_studies(plain_table(sex=[None, np.nan, 'Male', pd.NA]))
    assert (
        table.sex.tolist() == [None, None, 'Male', None]
        and table[list(OBSERVATIONS)].isna().all(axis=None)
        and table.note.isna().all()
    )


def test_values_in_messages_read_as_they_were_written():
    with pytest.raises(StudyTableError, match=r'^mine row 2: age is 930.0; expected years'):
        validate_studies(plain_table(age=[30.0, 930.0]), 'mine')
    with pytest.raises(
        StudyTableError,
        match=r"^mine row 1: sex is 'F'; expected one of Female, Male, or empty \(2 such rows\)",
    ):
        validate_studies(plain_table(sex=['F', 'F']), 'mine')


def test_an_absolute_path_or_one_that_climbs_is_refused_and_a_link_inside_the_root_is_followed(tmp_path):
    (tmp_path / 'outside.png').write_bytes(b'')
    (tmp_path / 'root').mkdir()
    (tmp_path / 'root' / 'link.png').symlink_to(tmp_path / 'outside.png')
    (tmp_path / 'root' / 'folder').symlink_to(tmp_path, target_is_directory=True)
    for name in (
        str(tmp_path / 'outside.png'),
        '../outside.png',
        'sub/../../outside.png',
        'folder/../outside.png',
        'C:\\outside.png',
        '\\\\server\\outside.png',
    ):
        with pytest.raises(StudyTableError, match='a path inside'):
            check_images(plain_table(image=[name]), tmp_path / 'root')
    for name in ('link.png', 'folder/outside.png'):
        assert check_images(plain_table(image=[name]), tmp_path / 'root').image.tolist() == [name]
    (tmp_path / 'root' / 'dead.png').symlink_to(tmp_path / 'nothing.png')
    with pytest.raises(StudyTableError, match='none of the 1 listed images'):
        check_images(plain_table(image=['dead.png']), tmp_path / 'root')


# Splits


@settings(max_examples=60, deadline=None)
@given(
    patients=st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=40),
    tuning=st.floats(0.05, 0.45),
    test=st.floats(0, 0.45),
    seed=st.integers(0, 2**31),
    shuffle=st.randoms(),
)
def test_splits_never_part_a_patient_and_do_not_depend_on_the_order_or_on_others(
    patients, tuning, test, seed, shuffle
):
    table = pd.DataFrame({'patient_id': patients, 'split': None})
    split = split_by_patient(table, tuning, test, seed)
    assert set(split) <= {'train', 'tuning', 'test'}
    check_patient_splits(table.assign(split=split))
    order = list(range(len(table)))
    shuffle.shuffle(order)
    assert split_by_patient(table.iloc[order], tuning, test, seed).sort_index().equals(split)
    more = pd.concat(
        [table, pd.DataFrame({'patient_id': ['another', 'one more'], 'split': None})], ignore_index=True
    )
    assert split_by_patient(more, tuning, test, seed)[: len(table)].equals(split)


@settings(max_examples=30, deadline=None)
@given(
    given_splits=st.lists(st.sampled_from(['train', 'tuning', 'test', None]), min_size=1, max_size=30),
    seed=st.integers(0, 99),
)
def test_a_split_that_a_source_gives_is_kept(given_splits, seed):
    table = pd.DataFrame(
        {
            'patient_id': [f'p{i}' for i in range(len(given_splits))],
            'split': pd.Series(given_splits, dtype=object),
        }
    )
    split = split_by_patient(table, 0.2, 0.2, seed)
    assert all(s == g for s, g in zip(split, given_splits) if g) and split.notna().all()


@pytest.mark.parametrize('tuning, test', [(0, 0.2), (0.5, 0.5), (0.2, -0.1), (1, 0), (float('nan'), 0.2)])
def test_shares_that_leave_nobody_to_learn_from_are_refused(tuning, test):
    with pytest.raises(ValueError, match='leave something to train on'):
        split_by_patient(plain_table(split=[None] * 3), tuning, test)
