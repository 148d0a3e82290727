"""The prediction table: label policies, and the errors of malformed tables."""

import numpy as np
import pandas as pd
import pytest

from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.metrics.predictions import (
    check_predictions,
    read_predictions,
    settle_labels,
    synthetic_predictions,
)

LABELS = [f'label/{o}' for o in OBSERVATIONS]


@pytest.fixture(scope='module')
def practice():
    return synthetic_predictions(150, seed=1)


def put(row, column, value):
    "A change of one cell"

    def change(t):
        t[column] = t[column].astype(object)
        t.loc[row, column] = value
        return t

    return change


# ---- what uncertain and missing labels count as


@pytest.mark.parametrize('policy, value', [('positive', 1), ('negative', 0)])
def test_uncertain_labels_are_settled_and_others_stay(practice, policy, value):
    labels = practice[LABELS].to_numpy(float)
    settled = settle_labels(practice, policy)[LABELS].to_numpy(float)
    assert (settled[labels == -1] == value).all()
    assert np.array_equal(settled[labels != -1], labels[labels != -1], equal_nan=True)


def test_without_a_policy_nothing_changes(practice):
    assert settle_labels(practice).equals(practice)
    assert not np.isin(settle_labels(practice, 'positive', 'negative')[LABELS], [-1, np.nan]).any()
    assert (practice[LABELS].to_numpy(float) == -1).any()  # the table that was given is as it was


def test_a_column_that_nobody_annotated_stays_empty(practice):
    whole = settle_labels(practice.assign(**{'label/Edema': np.nan}), missing='negative')
    assert whole['label/Edema'].isna().all() and not whole['label/Fracture'].isna().any()
    check_predictions(whole)


def test_unknown_policies_and_labels_in_words_are_refused(practice):
    for wrong in (dict(uncertain='ones'), dict(missing=0)):
        with pytest.raises(ValueError, match='expected one of exclude, positive, negative'):
            settle_labels(practice, **wrong)
    with pytest.raises(ValueError, match="label/Edema is 'yes'"):
        settle_labels(put(4, 'label/Edema', 'yes')(practice.copy()))


# ---- malformed tables


def first_test_as_tuning(t):
    again = t[t['split'] == 'test'].head(1).assign(split='tuning', image='another.png')
    return pd.concat([t, again], ignore_index=True)


def without_condition(t):
    return t.drop(columns=[c for c in t if c.startswith('shuffled_note/')])


def only_tuning(t):
    return t[t['split'] == 'tuning'].reset_index(drop=True)


def repeated(t):
    return pd.concat([t, t.iloc[[9]]], ignore_index=True)


def drop(column):
    return lambda t: t.drop(columns=column)


def rename(**names):
    return lambda t: t.rename(columns=names)


MALFORMED = {
    'no column of a condition': (drop('fused/Edema'), ['lacks', 'fused/Edema', 'training stage']),
    'a whole condition gone': (without_condition, ['shuffled_note/No Finding', 'and 10 more']),
    'half an optional condition': (drop('best_fused/Edema'), ['lacks', 'best_fused/Edema']),
    'no patients': (drop('patient_id'), ['lacks', 'patient_id']),
    'no label column': (drop('label/Fracture'), ['label/Fracture']),
    'misspelt observation': (rename(**{'fused/Edema': 'fused/edema'}), ['lacks', 'fused/Edema']),
    'probability above 1': (put(3, 'fused/Edema', 1.5), ['row 3', 'fused/Edema', '1.5', 'sigmoid']),
    'negative probability': (
        put(3, 'note_only/Pneumonia', -0.1),
        ['row 3', 'note_only/Pneumonia', 'from 0 to 1'],
    ),
    'infinite probability': (put(0, 'fused/Edema', np.inf), ['row 0', 'from 0 to 1']),
    'missing probability': (
        put(7, 'image_only/Fracture', np.nan),
        ['row 7', 'image_only/Fracture', 'every image'],
    ),
    'text for a probability': (put(2, 'fused/Edema', 'high'), ['row 2', "'high'", 'a number']),
    'label of 2': (put(4, 'label/Edema', 2.0), ['row 4', 'label/Edema', 'uncertain']),
    'label in words': (put(4, 'label/Edema', 'yes'), ['row 4', "'yes'", 'a number']),
    'training rows': (put(5, 'split', 'train'), ['row 5', 'split', "'train'", "'tuning' or 'test'"]),
    'no split': (put(5, 'split', None), ['row 5', 'split']),
    'half a fold': (put(6, 'fold', 0.5), ['row 6', 'fold', 'whole number']),
    'unknown patient': (put(6, 'patient_id', None), ['row 6', 'patient_id', 'by patient']),
    'an image twice': (repeated, ['each image once', 'count twice']),
    'patient tuned and tested on': (first_test_as_tuning, ['tuning and test of fold -1', 'split by patient']),
    'nothing to test': (only_tuning, ["no row with split 'test'"]),
}


@pytest.mark.parametrize('what', MALFORMED)
def test_malformed_tables_are_refused_with_a_remedy(practice, what):
    damage, expected = MALFORMED[what]
    with pytest.raises(ValueError) as refused:
        check_predictions(damage(practice.copy()), 'predictions.parquet')
    assert str(refused.value).startswith('predictions.parquet')
    for part in expected:
        assert part in str(refused.value)


def test_unreadable_files_are_refused_with_a_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match='training stage'):
        read_predictions(tmp_path / 'predictions.parquet')
    (tmp_path / 'broken.parquet').write_bytes(b'PAR1 half a file')
    with pytest.raises(ValueError, match='broken.parquet is not a readable parquet file.*delete it'):
        read_predictions(tmp_path / 'broken.parquet')


def test_a_table_is_read_as_it_was_written(practice, tmp_path):
    practice.to_parquet(tmp_path / 'whole.parquet')
    pd.testing.assert_frame_equal(read_predictions(tmp_path / 'whole.parquet'), practice, check_dtype=False)
