"""The exploration stage: what it looks at, what it finds, and what it says of a source."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.foundations.run import RunFolder
from cxr_lib.foundations.files import read_json
from cxr_lib.data.catalogue import (
    DATASETS,
    blank_films,
    check_source,
    data_root,
    images_to_scan,
    scanned,
    source_options,
    vocabulary_table,
)
from cxr_lib.data.pictures import (
    describe_blank,
    describe_exclusions,
    describe_notes,
    describe_overlap,
    group_of,
    near_duplicates_across_splits,
    official_facts,
    plot_observation_sheet,
    plot_patients,
    plot_pixels,
    plot_prevalence_by,
)
from cxr_lib.stages.exploration import exploration_stage
from cxr_lib.stages.notes import notes_stage

SHARED = ROOT.parent / 'shared' / 'data'


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv('CXR_HOME', str(tmp_path / 'home'))
    return tmp_path


def own(root, n=40, notes=True, twins=()):
    "A folder of the generic source; each pair of `twins` holds the same film at two exposures"
    root.mkdir()
    rng = np.random.default_rng(0)
    films = [np.kron(rng.integers(20, 230, (6, 6)), np.ones((10, 10))).astype(np.uint8) for _ in range(n)]
    for i, j in twins:
        films[j] = (films[i] * 0.8 + 20).astype(np.uint8)
    for i, film in enumerate(films):
        Image.fromarray(film).save(root / f'{i}.png')
    table = pd.DataFrame(
        {
            'image': [f'{i}.png' for i in range(n)],
            'patient_id': [f'p{i}' for i in range(n)],
            'view': 'Frontal',
            'projection': ['PA', 'AP'] * (n // 2),
            'sex': 'Female',
            'age': np.arange(n) + 30,
            'Cardiomegaly': np.arange(n) % 2,
            'Edema': np.nan,
            'Support Devices': np.arange(n) % 3 == 0,
        }
    )
    if notes:
        table['note'] = ['? pneumonia' if i % 4 == 0 else f'cough for {i} days' for i in range(n)]
    table.assign(**{'Support Devices': table['Support Devices'].astype(int)}).to_csv(
        root / 'studies.csv', index=False
    )
    return root


def explore(home, root, dataset='csv', **more):
    run = RunFolder(home / 'run')
    return run, exploration_stage(
        run, dataset=dataset, root=str(root), tuning_fraction=0.2, test_fraction=0.3, **more
    )


def test_the_same_film_in_two_splits_is_found_whatever_its_exposure(home):
    run, table = explore(home, own(home / 'own'))
    split = table.set_index('image').split
    i = int(split[split == 'train'].index[0][:-4])
    j = int(split[split == 'test'].index[0][:-4])
    k = int(split[split == 'train'].index[1][:-4])
    run, table = explore(home, own(home / 'doubled', twins=[(i, j), (i, k)]), scan=0)
    pairs = near_duplicates_across_splits(table, scanned(run))
    assert {frozenset((p.image_1, p.image_2)) for p in pairs.itertuples()} == {
        frozenset((f'{i}.png', f'{j}.png')),
        frozenset((f'{k}.png', f'{j}.png')),
    }  # i and k are in one split
    assert (pairs.similarity > 0.98).all() and all(
        {p.split_1, p.split_2} == {'train', 'test'} for p in pairs.itertuples()
    )


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 60), test=st.integers(0, 60), rest=st.integers(1, 60), seed=st.integers(0, 99))
def test_the_sample_that_is_looked_at_has_its_size_and_half_of_it_may_be_the_test_split(n, test, rest, seed):
    table = pd.DataFrame(
        {'image': [f'{i}.png' for i in range(test + rest)], 'split': ['test'] * test + ['train'] * rest}
    )
    some = images_to_scan(table, n, seed)
    assert len(some) == min(n, len(table)) if n >= len(table) else len(some) <= n
    assert not some.image.duplicated().any() and some.index.is_monotonic_increasing
    if len(table) > n:
        assert (some.split == 'test').sum() == min(test, n // 2) and (some.split == 'train').sum() == min(
            rest, n - min(test, n // 2)
        )
    assert len(images_to_scan(table, 0, seed)) == len(table)


def test_what_the_stage_leaves_is_enough_for_every_picture(home):
    run, table = explore(home, own(home / 'own'), scan=10)
    assert (
        len(scanned(run).table) == 10 == len(scanned(run).thumbnails)
        and (scanned(run).table.width == 60).all()
    )
    assert describe_exclusions(run).index.tolist() == ['nothing was left out'] and not len(
        official_facts(run)
    )
    assert '0% of them would have shown a patient' in describe_overlap(table)
    assert '40 of 40 studies have a note; 31 of these are different. 25% ask a question' in describe_notes(
        table
    )
    assert (
        group_of(table, 'devices').value_counts().to_dict() == {'without devices': 26, 'with devices': 14}
        and group_of(table, 'age').isna().sum() == 0
    )
    for fig in (
        plot_patients(table),
        plot_pixels(table, scanned(run)),
        plot_prevalence_by(table, ['projection', 'age', 'devices']),
        plot_observation_sheet(table, data_root(run), 3),
    ):
        fig.savefig(home / 'figure.png')


def test_one_patient_with_many_films_makes_a_split_by_image_a_leak(home):
    table = pd.DataFrame(
        {
            'patient_id': [f'p{i // 5}' for i in range(500)],
            'split': ['test' if i >= 400 else 'train' for i in range(500)],
        }
    )
    assert (
        '5.00 images per patient; had 20% of the images been held out at random, **100% of them'
        in describe_overlap(table)
    )


def test_a_source_that_may_have_notes_uses_them_where_there_are_any(home):
    for notes, mode in ((True, 'real'), (False, 'clinical')):
        run, _ = explore(home, own(home / mode, notes=notes))
        notes_stage(run)
        assert read_json(run / 'notes.json')['mode'] == mode


def test_options_reach_the_loader(home):
    root = own(home / 'own')
    (root / 'studies.csv').rename(root / 'other.csv')
    _, table = explore(home, root, options=json.dumps(dict(table='other.csv')))
    assert len(table) == 40
    with pytest.raises(
        ValueError, match=r"the source 'csv' has no option 'tabel'; it has table, columns, labels, values"
    ):
        source_options('csv', '{"tabel": "x"}')
    with pytest.raises(ValueError, match="missing is 'drop'; expected 'refuse' or 'exclude'"):
        explore(home, root, missing='drop')
    with pytest.raises(ValueError, match="unreadable is 'skip'"):
        explore(home, root, unreadable='skip')
    with pytest.raises(ValueError, match='scan is -1'):
        explore(home, root, scan=-1)


def test_official_counts_of_chexpert_stand_beside_those_of_the_copy(home):
    for split, ids in (('train', range(1, 9)), ('valid', (11, 12))):
        rows = []
        for i in ids:
            path = f'{split}/patient{i:05d}/study1/view1_frontal.jpg'
            (home / 'chexpert' / path).parent.mkdir(parents=True)
            Image.new('L', (40, 30), i).save(home / 'chexpert' / path)
            rows.append(
                {
                    'Path': f'CheXpert-v1.0-small/{path}',
                    'Sex': 'Male',
                    'Age': 60,
                    'Frontal/Lateral': 'Frontal',
                    'AP/PA': 'AP',
                    **{o: '' for o in OBSERVATIONS},
                }
            )
        pd.DataFrame(rows).to_csv(home / 'chexpert' / f'{split}.csv', index=False)
    run, _ = explore(home, home / 'chexpert', 'chexpert')
    facts = official_facts(run).set_index('fact')
    assert facts.loc['train: images'].tolist() == [223_414, 8, False] and facts.loc[
        'valid: patients'
    ].tolist() == [200, 2, False]


def test_open_i_without_its_images_can_be_explored_but_not_trained_on(home):
    if not (SHARED / 'openi').is_dir():
        pytest.skip('the Open-i reports are not at ../shared/data/openi')
    run, table = explore(home, SHARED / 'openi', 'openi', options='{"labels": "mesh"}')
    assert (
        len(table) == 3955 and scanned(run) is None and read_json(run / 'source.json')['has_images'] is False
    )
    assert table.note.notna().sum() == 3662 and table.image.isna().all()
    with pytest.raises(ValueError, match='has no images: its notes and labels can be explored'):
        data_root(run)


def test_a_damaged_film_is_left_out_by_name_and_no_other(home):
    root = own(home / 'own')
    (root / '7.png').write_bytes((root / '7.png').read_bytes()[:60])
    run, table = explore(home, root, unreadable='exclude')
    left = pd.read_csv(run / 'exclusions.csv')
    assert (
        left.image.tolist() == ['7.png']
        and len(table) == 39
        and read_json(run / 'source.json')['n_excluded'] == 1
    )
    assert scanned(run).table.image.tolist() == table.image.tolist()


def test_the_vocabulary_names_observations_only_and_every_source_of_labels():
    table = vocabulary_table()
    assert set(table.observation.dropna()) == set(OBSERVATIONS)
    assert (
        table[(table.source == 'nih') & (table.label == 'Effusion')].observation.tolist()
        == ['Pleural Effusion']
        and table[(table.source == 'nih') & (table.label == 'Hernia')].observation.isna().all()
    )
    assert table[
        (table.source == 'mimic (radiologist)') & (table.label == 'Airspace Opacity')
    ].observation.tolist() == ['Lung Opacity']


def test_every_source_is_described_and_takes_the_same_arguments():
    import inspect

    for name, source in DATASETS.items():
        parameters = inspect.signature(source.load).parameters
        assert {'missing', 'exclusions'} <= set(parameters) and parameters['missing'].default == 'refuse', (
            name
        )
        assert source.about and source.note_mode in ('real', 'clinical', 'auto'), name
        if source.needs_root:
            with pytest.raises(ValueError, match='needs a root folder'):
                check_source(name)


# Blank films


def with_blanks(root, blanks=(3, 7), gray=90):
    own(root)
    for i in blanks:
        Image.fromarray(np.full((60, 60), gray, np.uint8)).save(root / f'{i}.png')
    return root


def test_blank_films_stay_and_are_listed(home, capsys):
    run, table = explore(home, with_blanks(home / 'own'))
    assert len(table) == 40 and not len(pd.read_csv(run / 'exclusions.csv'))
    assert blank_films(scanned(run)).to_dict('list') == {'image': ['3.png', '7.png'], 'gray': [90, 90]}
    said = (
        '2 of the 40 scanned images are blank (one gray value) and stay in the table: 3.png, 7.png. '
        'Leave such images out with blank="exclude".'
    )
    assert describe_blank(run) == said and said in capsys.readouterr().out


def test_blank_films_are_left_out_counted_and_listed(home):
    for scan in (0, 4):  # all are looked at, however large the sample
        run, table = explore(home, with_blanks(home / f'own{scan}'), blank='exclude', scan=scan)
        left = pd.read_csv(run / 'exclusions.csv')
        assert (
            len(table) == 38
            and not table.image.isin(['3.png', '7.png']).any()
            and scanned(run).table.image.tolist() == table.image.tolist()
        )
        assert (
            left.image.tolist() == ['3.png', '7.png']
            and set(left.reason) == {'blank: one gray value'}
            and read_json(run / 'source.json')['n_excluded'] == 2
        )
        assert describe_blank(run) == '2 blank images (one gray value) were left out.' and not len(
            blank_films(scanned(run))
        )


def test_blank_films_are_refused_where_asked_and_a_wrong_word_is(home):
    root = with_blanks(home / 'own')
    with pytest.raises(
        ValueError,
        match=r'2 of the 40 images looked at are blank \(one gray value\); the first: 3.png, 7.png',
    ):
        explore(home, root, blank='refuse')
    with pytest.raises(ValueError, match="blank is 'drop'; expected 'keep', 'exclude' or 'refuse'"):
        explore(home, root, blank='drop')
    assert not RunFolder(home / 'run').done('exploration')
    with pytest.raises(ValueError, match='all 40 images are blank'):
        explore(home, with_blanks(home / 'all', range(40)), blank='exclude')


def test_one_gray_value_is_blank_in_every_format_and_two_are_a_film(home):
    root = own(home / 'own')
    for i, (kind, film) in enumerate(
        {
            'JPEG': np.full((1100, 1000), 200, np.uint8),
            'PNG': np.full((60, 60), 40_000, np.uint16),
            'TIFF': np.full((60, 60), 0.5, np.float32),
        }.items()
    ):
        Image.fromarray(film).save(root / f'{i}.png', kind)
    film = np.full((60, 60), 90, np.uint8)
    film[30, 30] = 91
    Image.fromarray(film).save(root / '5.png')
    run, _ = explore(home, root)
    assert blank_films(scanned(run)).image.tolist() == ['0.png', '1.png', '2.png']


def test_without_blank_films_the_report_says_so(home):
    run, _ = explore(home, own(home / 'own'))
    assert describe_blank(run) == 'None of the 40 scanned images is blank.'
