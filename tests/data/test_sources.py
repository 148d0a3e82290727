"""NIH ChestX-ray14, the COVID-19 collection and MedMNIST: odd files load as stated, malformed ones are refused.

Errors name file and row, and nothing disappears unlisted.
"""

import io
import signal
import subprocess
import sys
import time
import warnings
import zipfile

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_chexpert import film, refused, write

from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.data.public import (
    MEDMNIST_LABELS,
    covid_labels,
    load_covid,
    load_medmnist,
    load_nih,
    nih_age,
    nih_labels,
    unpack_medmnist,
)
from cxr_lib.data.observations import NIH_LABELS, NIH_TO_CHEXPERT
from cxr_lib.data.studies import STUDY_COLUMNS, Exclusions, StudyTableError, split_by_patient

SHARED = ROOT.parent / 'shared' / 'data'
NIH_HEADER = [
    'Image Index',
    'Finding Labels',
    'Follow-up #',
    'Patient ID',
    'Patient Age',
    'Patient Gender',
    'View Position',
    'OriginalImage[Width',
    'Height]',
    'OriginalImagePixelSpacing[x',
    'y]',
]
COVID_HEADER = [
    'patientid',
    'offset',
    'sex',
    'age',
    'finding',
    'view',
    'modality',
    'folder',
    'filename',
    'doi',
    'url',
    'license',
    'clinical_notes',
]


def nih(root, *changes, drop=None, films=True, header=NIH_HEADER, name='Data_Entry_2017.csv', **how):
    "A small NIH folder; each change is a dictionary that alters one row"
    rows = [
        dict(
            zip(
                NIH_HEADER,
                (
                    f'{i:08d}_000.png',
                    'No Finding',
                    '0',
                    str(i),
                    str(40 + i),
                    'FM'[i % 2],
                    'PA',
                    '2500',
                    '3000',
                    '.14',
                    '.14',
                ),
            )
        )
        for i in range(1, 5)
    ]
    for i, change in enumerate(changes):
        rows[i] |= change
    (root / 'images').mkdir()
    if films:
        for i in range(1, 5):
            film(root / 'images' / f'{i:08d}_000.png')
    write(root / name, [h for h in header if h != drop], rows if how.pop('filled', True) else [], **how)
    return root


def covid(root, *changes, drop=None, **how):
    "A small folder of the COVID-19 collection"
    rows = [
        dict(
            patientid=str(i),
            sex='F',
            age=str(50 + i),
            finding='COVID-19',
            view='AP Supine',
            modality='X-ray',
            folder='images',
            filename=f'{i}.jpg',
            clinical_notes='Fever and cough.',
        )
        for i in range(4)
    ]
    for i, change in enumerate(changes):
        rows[i] |= change
    for i in range(4):
        film(root / 'images' / f'{i}.jpg')
    write(
        root / 'metadata.csv',
        [h for h in COVID_HEADER if h != drop],
        rows if how.pop('filled', True) else [],
        **how,
    )
    return root


# Malformed tables


@pytest.mark.parametrize(
    'make, load, drop, file',
    [
        (nih, load_nih, 'Finding Labels', 'Data_Entry_2017.csv'),
        (nih, load_nih, 'Patient ID', 'Data_Entry_2017.csv'),
        (nih, load_nih, 'Patient Gender', 'Data_Entry_2017.csv'),
        (covid, load_covid, 'finding', 'metadata.csv'),
    ],
)
def test_a_missing_column_is_named_with_its_file(tmp_path, make, load, drop, file):
    refused(load, make(tmp_path, drop=drop), file, f'missing column(s) {drop}', 'it has')


@pytest.mark.parametrize(
    'make, load, file', [(nih, load_nih, 'Data_Entry_2017.csv'), (covid, load_covid, 'metadata.csv')]
)
def test_absent_empty_and_unreadable_tables_are_refused_by_name(tmp_path, make, load, file):
    refused(load, tmp_path, file, 'no such file', 'root folder')
    make(tmp_path, filled=False)
    refused(load, tmp_path, file, 'no rows')
    (tmp_path / file).write_bytes(b'')
    refused(load, tmp_path, file, 'not a readable CSV')
    (tmp_path / file).write_bytes(b'\xff\xfe\x00\x81 not text\n' * 3)
    refused(load, tmp_path, file)


@pytest.mark.parametrize('make, load', [(nih, load_nih), (covid, load_covid)])
def test_byte_order_mark_and_line_ends_change_nothing(tmp_path, make, load):
    tables = []
    for i, how in enumerate((dict(end='\n'), dict(end='\r\n'), dict(end='\r\n', encoding='utf-8-sig'))):
        (root := tmp_path / str(i)).mkdir()
        tables.append(load(make(root, **how)))
    pd.testing.assert_frame_equal(tables[0], tables[1])
    pd.testing.assert_frame_equal(tables[0], tables[2])
    assert list(tables[0].columns) == list(STUDY_COLUMNS) and len(tables[0]) == 4


@pytest.mark.parametrize(
    'make, load, file, image',
    [
        (nih, load_nih, 'Data_Entry_2017.csv', 'images/00000002_000.png'),
        (covid, load_covid, 'metadata.csv', 'images/1.jpg'),
    ],
)
def test_images_that_are_not_there_are_refused_or_listed(tmp_path, make, load, file, image):
    make(tmp_path)
    (tmp_path / image).unlink()
    refused(load, tmp_path, f'{file} row 2', "missing='exclude'")
    left = Exclusions()
    assert len(load(tmp_path, missing='exclude', exclusions=left)) == 3
    assert left.rows == [(f'{tmp_path / file} row 2', image, 'the image is not on disk')]
    with pytest.warns(UserWarning, match='1 of 4 rows are left out: the image is not on disk'):
        load(tmp_path, missing='exclude')
    for path in (tmp_path / 'images').iterdir():
        path.unlink()
    refused(load, tmp_path, 'none of the 4 listed images', 'unpack', missing='exclude')


# NIH ChestX-ray14


@pytest.mark.parametrize(
    'change, said',
    [
        (
            {'Finding Labels': 'Cardiomegaly|Cardiomgaly'},
            ['row 2', "'Cardiomegaly|Cardiomgaly'", 'some of Atelectasis'],
        ),
        (
            {'Finding Labels': 'No Finding|Mass'},
            ['row 2', "'No Finding|Mass'", 'expected No Finding, or some of'],
        ),
        ({'Finding Labels': ''}, ['row 2', 'Finding Labels']),
        ({'Image Index': '00000001_000.png'}, ['row 2', 'each image once']),
        ({'Image Index': ''}, ['row 2', 'Image Index']),
        ({'Image Index': '../../outside.png'}, ['row 2', 'a path inside']),
        ({'Patient ID': ''}, ['row 2', 'Patient ID']),
        ({'Follow-up #': ''}, ['row 2', 'Follow-up #']),
        ({'Patient Age': '-3'}, ['row 2', "Patient Age is '-3'", 'years such as 61 or 058Y']),
        ({'Patient Age': 'unknown'}, ['row 2', "Patient Age is 'unknown'"]),
        ({'Patient Gender': 'X'}, ['row 2', "Patient Gender is 'X'", 'F, M']),
        ({'View Position': 'LL'}, ['row 2', "projection is 'LL'", 'PA, AP']),
    ],
)
def test_nih_a_bad_cell_is_named_by_row(tmp_path, change, said):
    film(tmp_path / 'outside.png')
    (tmp_path / 'nih').mkdir()
    refused(load_nih, nih(tmp_path / 'nih', {}, change), 'Data_Entry_2017.csv', *said)


def test_nih_rows_are_counted_in_the_file_even_where_images_are_absent(tmp_path):
    nih(tmp_path, {}, {}, {'View Position': 'LL'})
    (tmp_path / 'images' / '00000001_000.png').unlink()
    refused(load_nih, tmp_path, 'row 3', "projection is 'LL'", missing='exclude')


def test_nih_ages_are_years_and_impossible_ones_are_missing(tmp_path):
    table = load_nih(
        nih(
            tmp_path,
            {'Patient Age': '414'},
            {'Patient Age': ''},
            {'Patient Age': '058Y'},
            {'Patient Age': '006M'},
        )
    )
    assert np.isnan(table.age[:2]).all() and table.age[2:].tolist() == [58, 0.5]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.sampled_from(['', 'Y', 'M', 'D']), st.integers(1, 4))
def test_nih_an_age_is_between_0_and_120_years_or_missing(number, unit, width):
    years = number / {'': 1, 'Y': 1, 'M': 12, 'D': 365.25}[unit]
    age = nih_age(pd.Series([f'{number:0{width}d}{unit}'])).iloc[0]
    assert age == years if years <= 120 else np.isnan(age)


def test_nih_labels_map_to_observations_and_unannotated_ones_are_missing(tmp_path):
    table = load_nih(
        nih(
            tmp_path,
            {'Finding Labels': 'Mass|Nodule|Effusion'},
            {'Finding Labels': 'Hernia'},
            {'Finding Labels': 'Infiltration'},
        )
    )
    assert table['Lung Lesion'].tolist() == [1, 0, 0, 0]
    assert table['Lung Opacity'].tolist() == [0, 0, 1, 0]
    assert table['Pleural Effusion'].tolist() == [1, 0, 0, 0]
    assert table['No Finding'].tolist() == [0, 0, 0, 1]
    assert table[['Enlarged Cardiomediastinum', 'Fracture', 'Support Devices']].isna().all(axis=None)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sets(st.sampled_from([x for x in NIH_LABELS if x != 'No Finding']), max_size=5),
        min_size=1,
        max_size=8,
    ),
    st.randoms(),
)
def test_nih_an_observation_is_positive_exactly_where_one_of_its_labels_is_listed(sets, shuffle):
    findings = pd.Series(
        ['|'.join(shuffle.sample(sorted(s), len(s))) or 'No Finding' for s in sets],
        index=[f'row {i}' for i in range(len(sets))],
    )
    labels, bad = nih_labels(findings)
    assert not bad.any() and labels.index.equals(findings.index)
    for o in OBSERVATIONS:
        mine = {s for s, t in NIH_TO_CHEXPERT.items() if t == o}
        wanted = (
            [float(not s) if o == 'No Finding' else float(bool(s & mine)) for s in sets]
            if mine
            else [np.nan] * len(sets)
        )
        assert np.array_equal(labels[o], wanted, equal_nan=True), o


@pytest.mark.parametrize('folder', ['images', 'images_001', 'images_012/images'])
def test_nih_images_are_found_in_every_layout(tmp_path, folder):
    nih(tmp_path, films=False)
    for i in range(1, 5):
        film(tmp_path / folder / f'{i:08d}_000.png')
    assert load_nih(tmp_path).image.tolist() == [f'{folder}/{i:08d}_000.png' for i in range(1, 5)]


def test_nih_archives_in_several_folders_make_one_table(tmp_path):
    nih(tmp_path, films=False)
    for i in range(1, 5):
        film(tmp_path / f'images_{i:03d}' / 'images' / f'{i:08d}_000.png')
    assert load_nih(tmp_path).image.tolist() == [
        f'images_{i:03d}/images/{i:08d}_000.png' for i in range(1, 5)
    ]


def test_nih_the_trailing_comma_of_the_original_and_the_later_release_change_nothing(tmp_path):
    for name in ('a', 'b', 'c'):
        (tmp_path / name).mkdir()
    table = load_nih(nih(tmp_path / 'a'))
    pd.testing.assert_frame_equal(load_nih(nih(tmp_path / 'b', header=[*NIH_HEADER, ''])), table)
    later = nih(tmp_path / 'c', name='Data_Entry_2017_v2020.csv')
    text = (later / 'Data_Entry_2017_v2020.csv').read_text()
    (later / 'Data_Entry_2017_v2020.csv').write_text(text.replace('Patient Gender', 'Patient Sex'))
    (later / 'Data_Entry_2017.csv').write_text('the older one is not read')
    pd.testing.assert_frame_equal(load_nih(later), table)


def lists(root, train, test):
    (root / 'train_val_list.txt').write_text(''.join(f'{i:08d}_000.png\n' for i in train))
    (root / 'test_list.txt').write_text(''.join(f'{i:08d}_000.png\n' for i in test))


def test_nih_the_official_test_list_is_the_test_split_and_tuning_is_cut_by_patient_from_the_rest(tmp_path):
    nih(tmp_path)
    assert load_nih(tmp_path).split.isna().all()
    lists(tmp_path, (1, 2, 99), (3, 4, 98))  # the lists name images that this copy does not have
    table = load_nih(tmp_path)
    assert table.split.tolist() == [None, None, 'test', 'test']
    split = split_by_patient(table, 0.5, 0.0)
    assert split[2:].tolist() == ['test', 'test'] and set(split[:2]) <= {'train', 'tuning'}


@pytest.mark.parametrize(
    'train, test, said',
    [
        ((1, 2, 3), (3, 4), ['row 3', 'it is in both']),
        ((1, 2), (4,), ['row 3', 'take the lists of the same release']),
    ],
)
def test_nih_an_image_in_both_lists_or_in_none_is_refused(tmp_path, train, test, said):
    lists(nih(tmp_path), train, test)
    refused(load_nih, tmp_path, 'Data_Entry_2017.csv', *said)


def test_nih_one_list_without_the_other_and_a_patient_in_both_lists_are_refused(tmp_path):
    lists(nih(tmp_path, {}, {'Patient ID': '1'}), (1, 3), (2, 4))
    refused(load_nih, tmp_path, 'patient 1 is in the splits test, train')
    (tmp_path / 'train_val_list.txt').unlink()
    refused(load_nih, tmp_path, 'train_val_list.txt', 'no such file')


# The COVID-19 image collection


@pytest.mark.parametrize(
    'change, said',
    [
        (dict(filename='0.jpg'), ['row 2', 'each image once']),
        (dict(filename='../../outside.jpg'), ['row 2', 'a path inside']),
        (dict(patientid=''), ['row 2', 'patient_id']),
        (dict(sex='female'), ['row 2', "sex is 'female'", 'F, M']),
        (dict(age='old'), ['row 2', "age is 'old'"]),
        (dict(age='414'), ['row 2', "age is '414'", 'years from 0 to 120']),
    ],
)
def test_covid_a_bad_cell_is_named_by_row(tmp_path, change, said):
    film(tmp_path / 'outside.jpg')
    (tmp_path / 'covid').mkdir()
    refused(load_covid, covid(tmp_path / 'covid', dict(modality='X-ray'), change), 'metadata.csv', *said)


def test_covid_what_is_not_a_radiograph_is_listed_by_reason_and_lateral_films_stay(tmp_path):
    left = Exclusions()
    table = load_covid(
        covid(
            tmp_path, dict(modality='CT', age='414'), dict(view='L'), dict(filename=''), dict(view='Coronal')
        ),
        exclusions=left,
    )
    assert table.image.tolist() == ['images/1.jpg']
    assert table['view'].tolist() == ['Lateral']
    assert table.projection.tolist() == [None]
    assert left.rows == [
        (f'{tmp_path / "metadata.csv"} row 1', '0.jpg', 'not a radiograph: modality CT'),
        (f'{tmp_path / "metadata.csv"} row 4', '3.jpg', 'neither a frontal nor a lateral view: Coronal'),
        (f'{tmp_path / "metadata.csv"} row 3', '', 'names no image file'),
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        load_covid(tmp_path)
    assert len([w for w in caught if 'left out' in str(w.message)]) == 3


def test_covid_every_row_is_in_the_table_or_in_the_list(tmp_path):
    rng, left = np.random.default_rng(0), Exclusions()
    rows = [
        dict(
            patientid=str(i // 3),
            finding='todo',
            view=rng.choice(['PA', 'AP', 'AP Supine', 'AP Erect', 'L', 'Axial', 'Coronal', '']),
            modality=rng.choice(['X-ray', 'CT', '']),
            filename=rng.choice([f'{i}.png', ''], p=[0.9, 0.1]),
        )
        for i in range(200)
    ]
    write(tmp_path / 'metadata.csv', COVID_HEADER, rows)
    for r in rows[::2]:
        if r['filename']:
            film(tmp_path / 'images' / r['filename'])
    table = load_covid(tmp_path, missing='exclude', exclusions=left)
    assert len(table) + len(left) == 200
    assert len({row for row, _, _ in left.rows}) == len(left)
    assert len(table) > 10
    assert (table.projection.notna() == (table['view'] == 'Frontal')).all()


def test_covid_unknowns_stay_missing(tmp_path):
    table = load_covid(covid(tmp_path, dict(sex='', age='', clinical_notes='', finding='')))
    assert table.iloc[0][['sex', 'age', 'note', 'Pneumonia', 'No Finding']].isna().all()
    assert table.projection.tolist() == ['AP'] * 4


def test_covid_rows_are_counted_in_the_file_even_where_some_are_left_out(tmp_path):
    refused(
        load_covid,
        covid(tmp_path, dict(modality='CT'), {}, dict(age='414')),
        'row 3',
        "age is '414'",
        exclusions=Exclusions(),
    )


def test_covid_a_finding_that_does_not_say_pneumonia_or_normal_is_missing():
    labels = covid_labels(
        pd.Series(
            [
                'Pneumonia/Fungal/Pneumocystis',
                'No Finding',
                'ARDS',
                'Pulmonary fibrosis',
                'Klebsiella',
                'COVID-19, ARDS',
                'todo',
                'Unknown',
                None,
            ]
        )
    )
    assert labels.Pneumonia.fillna(9).tolist() == [1, 0, 9, 9, 1, 1, 9, 9, 9]
    assert labels['No Finding'].fillna(9).tolist() == [0, 1, 0, 0, 0, 0, 9, 9, 9]
    assert labels.drop(columns=['Pneumonia', 'No Finding']).isna().all(axis=None)


# MedMNIST


@pytest.fixture
def home(tmp_path, monkeypatch):
    "A project folder of its own, so that images are written there"
    monkeypatch.setenv('CXR_HOME', str(tmp_path / 'home'))
    return tmp_path / 'home'


def medmnist(path, side=28, n=(5, 3, 4), classes=None, seed=0, compress=True, **changes):
    "An .npz of MedMNIST's layout"
    rng = np.random.default_rng(seed)
    classes = classes or (14 if path.stem.startswith('chest') else 1)
    arrays = {}
    for part, k in zip(('train', 'val', 'test'), n):
        arrays |= {
            f'{part}_images': rng.integers(0, 256, (k, side, side), dtype=np.uint8),
            f'{part}_labels': rng.integers(0, 2, (k, classes), dtype=np.uint8),
        }
    arrays = {k: v for k, v in (arrays | changes).items() if v is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    (np.savez_compressed if compress else np.savez)(path, **arrays)
    return arrays


@pytest.mark.parametrize(
    'name, side',
    [
        ('pneumoniamnist', 28),
        ('pneumoniamnist_64', 64),
        ('chestmnist', 28),
        ('chestmnist_128', 128),
        ('chestmnist_224', 224),
    ],
)
def test_medmnist_pixels_labels_and_splits_are_those_of_the_archive(tmp_path, home, name, side):
    arrays = medmnist(tmp_path / f'{name}.npz', side, compress=side != 64)
    folder = unpack_medmnist(tmp_path / f'{name}.npz', progress=False)
    table = load_medmnist(folder)
    assert folder.parent == home / 'data' / 'medmnist' and folder.name.startswith(f'{name}-')
    assert table.split.tolist() == ['train'] * 5 + ['tuning'] * 3 + ['test'] * 4
    assert table.patient_id.is_unique
    assert (table['view'] == 'Frontal').all()
    for i, image in enumerate(table.image):
        part, k = image.split('/')[0], int(image.split('/')[1][:6])
        assert np.array_equal(np.asarray(Image.open(folder / image)), arrays[f'{part}_images'][k])
        truth = dict(zip(MEDMNIST_LABELS[name.split('_')[0]], arrays[f'{part}_labels'][k]))
        for o in OBSERVATIONS:
            mine = [truth[s] for s, t in NIH_TO_CHEXPERT.items() if t == o and s in truth]
            if o == 'No Finding':
                assert table[o][i] == float(not any(truth.values()))
            elif mine:
                assert table[o][i] == max(mine)
            else:
                assert np.isnan(table[o][i])
    assert table[['sex', 'age', 'projection', 'note']].isna().all(axis=None)


def test_medmnist_archive_folder_and_unpacked_folder_give_the_same_table_and_are_unpacked_once(
    tmp_path, home
):
    medmnist(tmp_path / 'mnist' / 'pneumoniamnist.npz')
    first = load_medmnist(tmp_path / 'mnist')
    folder = unpack_medmnist(tmp_path / 'mnist' / 'pneumoniamnist.npz')
    stamps = {p: p.stat().st_mtime_ns for p in folder.rglob('*.png')}
    for root in (tmp_path / 'mnist', tmp_path / 'mnist' / 'pneumoniamnist.npz', folder):
        assert unpack_medmnist(root) == folder
        pd.testing.assert_frame_equal(load_medmnist(root), first)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob('*.png')} == stamps and len(stamps) == 12
    medmnist(
        tmp_path / 'mnist' / 'pneumoniamnist.npz', seed=1
    )  # another content: another folder, and the old one stays
    assert unpack_medmnist(tmp_path / 'mnist') != folder and (folder / 'labels.csv').is_file()


def test_medmnist_of_several_archives_one_has_to_be_named(tmp_path, home):
    for name in ('pneumoniamnist', 'chestmnist'):
        medmnist(tmp_path / f'{name}.npz')
    refused(
        unpack_medmnist,
        tmp_path,
        'several chest sets of MedMNIST: chestmnist, pneumoniamnist',
        "flag='chestmnist'",
    )
    assert unpack_medmnist(tmp_path, flag='chestmnist').name.startswith('chestmnist-')
    assert load_medmnist(tmp_path, flag='pneumoniamnist').Pneumonia.notna().all()
    refused(load_medmnist, tmp_path, 'no chestmnist_64 here', flag='chestmnist_64')
    refused(
        load_medmnist,
        tmp_path / 'chestmnist.npz',
        'this is chestmnist, not pneumoniamnist',
        flag='pneumoniamnist',
    )
    refused(load_medmnist, tmp_path / 'nowhere', 'no chest set of MedMNIST here')
    medmnist(tmp_path / 'pathmnist.npz', classes=1)
    refused(unpack_medmnist, tmp_path / 'pathmnist.npz', 'not the name of a chest set', 'chestmnist')


U8 = np.uint8


@pytest.mark.parametrize(
    'changes, said',
    [
        (dict(val_labels=None), ['missing array(s) val_labels', 'it has train_images']),
        (dict(train_images=np.zeros((5, 28, 28))), ['train_images is float64', 'expected uint8']),
        (dict(train_images=np.zeros((5, 28, 28, 3), U8)), ['train_images is uint8 of shape (5, 28, 28, 3)']),
        (dict(train_images=np.zeros((5, 64, 64), U8)), ['shape (5, 64, 64)', '(n, 28, 28)']),
        (dict(train_images=np.zeros((28, 28, 5), U8).T), ['Fortran order']),
        (dict(train_labels=np.zeros((4, 14), U8)), ['train_labels is uint8 of shape (4, 14)', '(5, 14)']),
        (dict(train_labels=np.zeros((5, 1), U8)), ['train_labels', '(5, 14)']),
        (dict(train_labels=np.full((5, 14), 0.5)), ['train_labels is float64', 'integers']),
        (dict(val_labels=np.full((3, 14), 2, U8)), ['val_labels row 1 is 2', 'expected 1 or 0']),
        (dict(test_images=np.array([object()] * 4, dtype=object)), ['test_images is object']),
    ],
)
def test_medmnist_an_array_that_is_not_as_documented_is_refused_by_name_and_nothing_is_written(
    tmp_path, home, changes, said
):
    medmnist(tmp_path / 'chestmnist.npz', **changes)
    refused(unpack_medmnist, tmp_path, 'chestmnist.npz', *said)
    assert not home.exists()


def test_medmnist_a_pickle_is_never_loaded(tmp_path, home):
    class Bomb:
        def __reduce__(self):
            return (exit, (3,))

    medmnist(tmp_path / 'chestmnist.npz', train_labels=np.array([Bomb()], dtype=object))
    refused(unpack_medmnist, tmp_path, 'train_labels is object')


def test_medmnist_damaged_archives_are_refused_and_labels_are_not_written(tmp_path, home):
    path = tmp_path / 'chestmnist.npz'
    medmnist(path)
    whole = path.read_bytes()
    for damaged in (b'', b'not an archive', whole[:200], whole[:-50], whole[:300] + bytes(64) + whole[364:]):
        path.write_bytes(damaged)
        refused(unpack_medmnist, tmp_path, 'chestmnist.npz', 'Download it again', progress=False)
    with (
        zipfile.ZipFile(io.BytesIO(whole)) as old,
        zipfile.ZipFile(path, 'w') as new,
    ):  # an array that ends too early
        for name in old.namelist():
            new.writestr(name, old.read(name)[: -28 if name == 'test_images.npy' else None])
    refused(unpack_medmnist, tmp_path, 'test_images is cut short at image 4', progress=False)
    assert not list(home.rglob('labels.csv'))
    path.write_bytes(whole)
    assert len(load_medmnist(tmp_path)) == 12


def test_medmnist_a_killed_job_goes_on_where_it_was_and_leaves_no_half_file(tmp_path, home):
    arrays = medmnist(tmp_path / 'pneumoniamnist_64.npz', 64, n=(3000, 10, 10))
    job = subprocess.Popen(
        [
            sys.executable,
            '-c',
            f'from cxr_lib.data.public import unpack_medmnist; unpack_medmnist({str(tmp_path)!r}, progress=False)',
        ],
        cwd=ROOT,
    )
    done = lambda: list((home / 'data' / 'medmnist').rglob('[0-9]*.png'))  # noqa: E731
    started = time.monotonic()
    while len(done()) < 50 and job.poll() is None and time.monotonic() - started < 60:
        time.sleep(0.01)
    job.send_signal(signal.SIGKILL)
    job.wait()
    written = {p: p.stat().st_mtime_ns for p in done()}
    assert 50 <= len(written) < 3020 and not list(home.rglob('labels.csv'))
    for p in written:
        assert np.array_equal(np.asarray(Image.open(p)), arrays[f'{p.parent.name}_images'][int(p.stem)])
    folder = unpack_medmnist(tmp_path, progress=False)
    assert len(done()) == 3020
    assert all(p.stat().st_mtime_ns == t for p, t in written.items())
    assert len(load_medmnist(folder)) == 3020


def test_medmnist_missing_images_and_a_spoilt_label_file_are_said(tmp_path, home):
    medmnist(tmp_path / 'pneumoniamnist.npz')
    folder = unpack_medmnist(tmp_path)
    (folder / 'train' / '000001.png').unlink()
    refused(load_medmnist, folder, 'labels.csv row 2', "missing='exclude'")
    left = Exclusions()
    assert len(load_medmnist(folder, missing='exclude', exclusions=left)) == 11 and len(left) == 1
    pd.read_csv(folder / 'labels.csv').drop(columns='Pneumonia').to_csv(folder / 'labels.csv', index=False)
    refused(load_medmnist, folder, 'no label columns', 'Delete the folder')


# The real sources


def test_nih_421_images_of_421_patients_with_the_counts_of_their_own_labels():
    if not (SHARED / 'nih').is_dir():
        pytest.skip('the NIH sample is not at ../shared/data/nih')
    left = Exclusions()
    table = load_nih(SHARED / 'nih', exclusions=left)
    raw = pd.read_csv(SHARED / 'nih' / 'Data_Entry_2017.csv')
    assert len(table) == table.patient_id.nunique() == table.image.nunique() == 421 and len(left) == 0
    labels = raw['Finding Labels'].str.get_dummies('|')
    for o in OBSERVATIONS:
        sources = [s for s, target in NIH_TO_CHEXPERT.items() if target == o and s in labels]
        assert (table[o] == 1).sum() == (labels[sources].max(axis=1).sum() if sources else 0), o
        assert table[o].isna().all() == (
            o in ('Enlarged Cardiomediastinum', 'Fracture', 'Support Devices')
        ), o
    assert set(table.patient_id) == set(raw['Patient ID'].astype(str))
    assert table.age.between(0, 100).all()
    assert table.note.isna().all()


def test_covid_150_images_of_88_patients_with_notes():
    if not (SHARED / 'covid').is_dir():
        pytest.skip('the COVID-19 sample is not at ../shared/data/covid')
    left = Exclusions()
    table = load_covid(SHARED / 'covid', exclusions=left)
    assert len(table) == 150 and table.patient_id.nunique() == 88 and len(left) == 0
    assert table.note.notna().mean() > 0.7 and table.note.dropna().str.len().median() > 50
    assert (table['No Finding'] == 1).sum() == 2 == (table.Pneumonia == 0).sum()
    assert (table.Pneumonia == 1).sum() > 100
    assert table[[o for o in OBSERVATIONS if o not in ('Pneumonia', 'No Finding')]].isna().all(axis=None)


def test_pneumoniamnist_3166_images_half_of_them_pneumonia(home):
    if not (SHARED / 'medmnist').is_dir():
        pytest.skip('the MedMNIST sample is not at ../shared/data/medmnist')
    folder = unpack_medmnist(SHARED / 'medmnist', progress=False)
    table = load_medmnist(folder)
    assert table.split.value_counts().to_dict() == {'train': 2428, 'test': 468, 'tuning': 270}
    assert (table.Pneumonia == 1).sum() == (table['No Finding'] == 1).sum() == 1583
    assert (table.Pneumonia + table['No Finding'] == 1).all()
    assert table[[o for o in OBSERVATIONS if o not in ('Pneumonia', 'No Finding')]].isna().all(axis=None)
    pixels = np.load(SHARED / 'medmnist' / 'pneumoniamnist.npz', allow_pickle=False)['val_images']
    assert np.array_equal(
        np.stack([np.asarray(Image.open(folder / i)) for i in table.image[table.split == 'tuning']]), pixels
    )


def test_a_source_refuses_in_its_own_words_only(tmp_path, home):
    for load in (load_nih, load_covid, load_medmnist):
        with pytest.raises(StudyTableError, match=str(tmp_path)):
            load(tmp_path)
        with pytest.raises(StudyTableError):
            load(tmp_path / 'nowhere')
