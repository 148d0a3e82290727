"""CheXpert: every official count at full size, in seconds; a fault of a copy is named by file, row and remedy."""

import csv
import os
import shutil
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cxr_lib.data.chexpert import CHEXPERT_FACTS, check_chexpert_facts, load_chexpert, relabel
from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.foundations.run import RunFolder
from cxr_lib.data.studies import (
    STUDY_COLUMNS,
    Exclusions,
    StudyTableError,
    is_there,
    shared_by_image_split,
    split_by_patient,
)

#: Positives in CheXpert's validation table, in column order.
VALID_POSITIVES = [38, 109, 68, 126, 1, 45, 33, 8, 80, 8, 67, 1, 0, 107]

HEADER = ['Path', 'Sex', 'Age', 'Frontal/Lateral', 'AP/PA', *OBSERVATIONS]
#: Shares of training images that are positive, negative and uncertain: assumed, since the release gives no such counts.
ASSUMED = dict(
    zip(
        OBSERVATIONS[1:],
        (
            (0.05, 0.10, 0.06),
            (0.12, 0.05, 0.04),
            (0.47, 0.03, 0.03),
            (0.04, 0.01, 0.01),
            (0.23, 0.09, 0.06),
            (0.07, 0.13, 0.12),
            (0.03, 0.01, 0.08),
            (0.15, 0.01, 0.15),
            (0.09, 0.25, 0.01),
            (0.39, 0.16, 0.05),
            (0.02, 0.00, 0.01),
            (0.04, 0.01, 0.00),
            (0.52, 0.03, 0.00),
        ),
    )
)


# A table with the official counts


def studies_of_patients(rng, patients, studies):
    "How many studies each patient has: a log-series (most have one, a few dozens) with the official totals; assumed"
    p = np.linspace(0.5, 0.99, 5000)
    n = rng.logseries(p[np.argmin(abs(-p / ((1 - p) * np.log(1 - p)) - studies / patients))], patients)
    while off := int(n.sum()) - studies:
        some = rng.choice(np.flatnonzero(n > (off > 0)), min(abs(off), patients // 8), replace=False)
        n[some] -= np.sign(off)
    return n


def made_chexpert(seed=0):
    "train.csv and valid.csv as official at full size: same counts, made values"
    rng = np.random.default_rng(seed)
    fact = {k.removeprefix('train: '): v for k, v in CHEXPERT_FACTS.items() if k.startswith('train')}

    def rows(part, first, studies_of, laterals, seconds):
        "One frontal image a study, and a lateral or a second frontal one in some, drawn at random (assumed)"
        patient = np.repeat(np.arange(first, first + len(studies_of)), studies_of)
        study = np.arange(len(patient)) - np.repeat(np.cumsum(studies_of) - studies_of, studies_of) + 1
        more = np.zeros(len(patient), int)
        more[rng.permutation(len(patient))[: laterals + seconds]] = np.repeat([1, 2], [laterals, seconds])
        of = np.repeat(np.arange(len(patient)), 1 + (more > 0))
        second = np.r_[False, of[1:] == of[:-1]]
        lateral = second & (more[of] == 1)
        path = [
            f'CheXpert-v1.0-small/{part}/patient{p:05d}/study{s}/view{v}_{w}.jpg'
            for p, s, v, w in zip(patient[of], study[of], 1 + second, np.where(lateral, 'lateral', 'frontal'))
        ]
        return pd.DataFrame(
            {
                'Path': path,
                'Sex': rng.choice(['Female', 'Male'], len(of), p=[0.41, 0.59]),
                'Age': rng.normal(60, 18, len(of)).clip(18, 90).astype(int),
                'Frontal/Lateral': np.where(lateral, 'Lateral', 'Frontal'),
                'AP/PA': None,
            }
        )

    extra = fact['images'] - fact['studies']
    laterals = fact['images'] - fact['frontal']
    train = rows(
        'train', 1, studies_of_patients(rng, fact['patients'], fact['studies']), laterals, extra - laterals
    )
    frontal = np.flatnonzero(train['Frontal/Lateral'] == 'Frontal')
    marks = np.repeat(
        ['AP', 'PA', 'LL', 'RL'], [fact[f'frontal, {k}'] for k in ('AP', 'PA', 'marked LL', 'marked RL')]
    )
    train['AP/PA'] = train['AP/PA'].astype(object)
    train.iloc[rng.permutation(frontal), 4] = marks
    train.iloc[rng.permutation(len(train))[: fact['of age 0']], 2] = 0
    train.iloc[rng.integers(len(train)), 1] = 'Unknown'
    for o, (positive, negative, uncertain) in ASSUMED.items():
        train[o] = rng.choice(
            [1, 0, -1, np.nan],
            len(train),
            p=[positive, negative, uncertain, 1 - positive - negative - uncertain],
        )
    device = rng.permutation(np.flatnonzero(train['Support Devices'] == 1))[
        : fact['No Finding with Support Devices']
    ]
    alone = rng.permutation(np.flatnonzero(train['Support Devices'] != 1))[
        :13_500
    ]  # how many these are is assumed
    train['No Finding'] = np.nan
    train.iloc[np.r_[device, alone], train.columns.get_loc('No Finding')] = 1.0
    valid = rows('valid', fact['patients'] + 1, np.ones(200, int), 32, 2)
    valid['AP/PA'] = np.where(
        valid['Frontal/Lateral'] == 'Frontal', rng.choice(['AP', 'PA'], len(valid)), None
    )
    for o in OBSERVATIONS:
        valid[o] = (rng.permutation(len(valid)) < CHEXPERT_FACTS[f'valid: {o} positive']).astype(float)
    return train[HEADER], valid[HEADER]


def write_made(root, train, valid, links):
    """The tables as CSV in `root`, and a path for every image.

    Each patient's folder is a link, in the folder `links`, to one folder that holds every study number and every view.
    """
    train.to_csv(root / 'train.csv', index=False)
    valid.to_csv(root / 'valid.csv', index=False)
    most = int(train.Path.str.extract(r'/study(\d+)/', expand=False).astype(int).max())
    for i in range(1, most + 1):
        folder = links / 'any' / f'study{i}'
        folder.mkdir(parents=True)
        for view in ('view1_frontal', 'view2_frontal', 'view2_lateral'):
            (folder / f'{view}.jpg').touch()
    for part, table in (('train', train), ('valid', valid)):
        (links / part).mkdir()
        (root / part).symlink_to(links / part)
        for patient in table.Path.str.split('/', n=3).str[2].unique():
            os.symlink('../any', f'{links}/{part}/{patient}')


def full_folders():
    "Two new folders for `write_made`; the 64,740 links are made in memory where possible, as a busy disk is slow"
    memory = '/dev/shm' if os.access('/dev/shm', os.W_OK) else None
    return Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp(dir=memory))


@pytest.fixture(scope='module')
def full():
    "The simulated data set at full size: root, two CSVs, study table, CPU seconds of the load and of a bare read"
    root, links = full_folders()
    try:
        train, valid = made_chexpert()
        write_made(root, train, valid, links)
        start = time.process_time()
        for name in ('train', 'valid'):
            pd.read_csv(root / f'{name}.csv')
        bare = time.process_time() - start
        start = time.process_time()
        table = load_chexpert(root)
        seconds = time.process_time() - start, bare
        yield root, pd.concat([train, valid], ignore_index=True), table, seconds
    finally:
        for folder in (root, links):
            shutil.rmtree(folder)


def test_223_414_rows_are_read_and_validated_with_their_image_files(full):
    folder, raw, table, (seconds, bare) = full
    assert len(raw) == 223_414 + 234 == len(table) and is_there(table.image, folder).all()
    assert seconds < 100 * bare, (
        'nothing walks through the rows one by one'
    )  # 29 times in benchmarks/reading_tables.py


def test_the_official_counts_are_what_the_issue_says():
    assert list(CHEXPERT_FACTS.values()) == [
        223_414,
        64_540,
        187_641,
        191_027,
        161_590,
        29_420,
        17,
        16,
        1,
        3,
        90,
        0,
        8_808,
        234,
        200,
        202,
        *VALID_POSITIVES,
    ]
    assert [k for k in CHEXPERT_FACTS if 'positive' in k] == [f'valid: {o} positive' for o in OBSERVATIONS]


def test_every_official_count_is_found_in_a_table_that_has_it(full):
    facts = check_chexpert_facts(full[1])
    assert facts.agrees.all() and list(facts.fact) == list(CHEXPERT_FACTS)
    studied = check_chexpert_facts(full[2])
    assert studied.agrees.all() and set(facts.fact) - set(studied.fact) == {
        'train: frontal, marked LL',
        'train: frontal, marked RL',
    }


def test_the_full_table_counted_without_the_library_agrees(full):
    table = full[2]
    train, valid = table[table.image.str.startswith('train/')], table[table.image.str.startswith('valid/')]
    assert (
        len(train),
        train.patient_id.nunique(),
        train.study_id.nunique(),
        (train['view'] == 'Frontal').sum(),
    ) == (223_414, 64_540, 187_641, 191_027)
    assert (
        (train.projection == 'AP').sum(),
        (train.projection == 'PA').sum(),
        (train.projection.isna() & (train['view'] == 'Frontal')).sum(),
    ) == (161_590, 29_420, 17)
    assert (train.age.max(), (train.age == 0).sum(), train.sex.isna().sum()) == (90, 3, 1) and not train[
        'No Finding'
    ].isin((0, -1)).any()
    assert ((train['No Finding'] == 1) & (train['Support Devices'] == 1)).sum() == 8_808
    assert (valid.split == 'test').all() and train.split.isna().all()
    assert (len(valid), valid.patient_id.nunique(), (valid['view'] == 'Frontal').sum()) == (234, 200, 202)
    assert [(valid[o] == 1).sum() for o in OBSERVATIONS] == VALID_POSITIVES
    assert list(table.columns) == list(STUDY_COLUMNS)


def test_no_row_and_no_label_state_is_filtered_at_full_size(full):
    raw, table = full[1], full[2]
    for o in OBSERVATIONS:
        for value in (1, 0, -1):
            assert (table[o] == value).sum() == (raw[o] == value).sum(), (o, value)
        assert table[o].isna().sum() == raw[o].isna().sum(), o


def test_a_count_that_differs_is_shown_as_not_agreeing(full):
    changed = full[2].copy()
    changed.loc[changed.index[changed['No Finding'] == 1][:1], 'No Finding'] = 0
    facts = check_chexpert_facts(changed.iloc[:-1]).set_index('fact')
    assert (
        not facts.agrees['train: No Finding negative or uncertain']
        and facts.here['valid: images'] == 233
        and facts.agrees['train: images']
    )


def test_a_split_by_image_would_share_patients_as_the_official_totals_imply(full):
    train = full[2][full[2].split.isna()]
    assert abs(shared_by_image_split(train.patient_id, 0.1) - 0.88) < 0.02
    held_out = np.random.default_rng(1).random(len(train)) < 0.1
    seen = train.patient_id[held_out].isin(train.patient_id[~held_out].unique()).mean()
    assert abs(seen - shared_by_image_split(train.patient_id, 0.1)) < 0.01
    split = split_by_patient(full[2], 0.1, 0.0, 0)
    assert (
        not full[2].patient_id[split == 'tuning'].isin(full[2].patient_id[split == 'train'].unique()).any()
        and (split == 'test').sum() == 234
    )
    assert abs((split == 'tuning').sum() / len(train) - 0.1) < 0.01


def test_a_radiologists_labels_of_valid_by_study_leave_the_training_labels_alone(full):
    folder, raw, table, _ = full
    order = list(OBSERVATIONS)
    order[3:5] = order[4], order[3]  # Lung Lesion before Lung Opacity
    valid = table[table.split == 'test']
    studies = pd.DataFrame(
        {
            'Study': 'CheXpert-v1.0/' + valid.image.str.rpartition('/')[0].unique(),
            **{o: float(o == 'Lung Lesion') for o in order},
        }
    )
    studies.sample(frac=1, random_state=0).to_csv(folder / 'radiologist.csv', index=False)
    again = relabel(table, folder / 'radiologist.csv')
    assert (
        len(studies) == 200
        and (again['Lung Lesion'][valid.index] == 1).all()
        and (again[list(OBSERVATIONS)].loc[valid.index].sum(axis=1) == 1).all()
    )
    for o in OBSERVATIONS:
        assert again[o].drop(valid.index).equals(table[o].drop(valid.index)), o


# Small copies


def film(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('L', (8, 6)).save(path)


def write(path, header, rows, end='\r\n', encoding='utf-8'):
    with path.open('w', newline='', encoding=encoding) as f:
        writer = csv.writer(f, lineterminator=end)
        writer.writerow(header)
        writer.writerows([[r.get(h, '') for h in header] for r in rows])


def refused(load, root, *said, **how):
    with pytest.raises(StudyTableError) as error:
        load(root, **how)
    for s in said:
        assert s in str(error.value), error.value


def chexpert(root, *changes, drop=None, prefix='CheXpert-v1.0-small/', valid=None, **how):
    "A small CheXpert folder: four training rows and two of valid; the changes are to valid.csv"
    filled = how.pop('filled', True)
    for name, ids in (('train', range(1, 5)), ('valid', valid or (11, 12))):
        rows = [
            {
                'Path': f'{prefix}{name}/patient{i:05d}/study1/view1_frontal.jpg',
                'Sex': 'Male',
                'Age': '60',
                'Frontal/Lateral': 'Frontal',
                'AP/PA': 'AP',
                'Edema': '1.0',
            }
            for i in ids
        ]
        for r in rows:
            film(root / r['Path'].removeprefix(prefix))
        if name == 'valid':
            for i, change in enumerate(changes):
                rows[i] |= change
        write(root / f'{name}.csv', [h for h in HEADER if h != drop], rows if filled else [], **how)
    return root


@pytest.mark.parametrize('drop', ['Fracture', 'Path', 'AP/PA', 'Frontal/Lateral', 'Sex'])
def test_a_missing_column_is_named_with_its_file(tmp_path, drop):
    refused(load_chexpert, chexpert(tmp_path, drop=drop), 'train.csv', f'missing column(s) {drop}', 'it has')


def test_absent_empty_and_unreadable_tables_are_refused_by_name(tmp_path):
    refused(load_chexpert, tmp_path, 'train.csv', 'no such file', 'root folder')
    chexpert(tmp_path, filled=False)
    refused(load_chexpert, tmp_path, 'train.csv', 'no rows')
    (tmp_path / 'train.csv').write_bytes(b'')
    refused(load_chexpert, tmp_path, 'train.csv', 'not a readable CSV')
    (tmp_path / 'train.csv').write_bytes(b'\xff\xfe\x00\x81 not text\n' * 3)
    refused(load_chexpert, tmp_path, 'train.csv')


def test_the_folder_above_the_data_is_refused_with_the_folder_to_name(tmp_path):
    for name in ('CheXpert-v1.0-small', 'CheXpert-v1.0 batch 1 (validate & csv)'):
        (tmp_path / name / name).mkdir(parents=True)
        chexpert(tmp_path / name / name)
    refused(
        load_chexpert,
        tmp_path / 'CheXpert-v1.0-small',
        'no train.csv here',
        f'Name {tmp_path / "CheXpert-v1.0-small" / "CheXpert-v1.0-small"} as the root folder',
    )
    refused(
        load_chexpert,
        tmp_path / 'CheXpert-v1.0 batch 1 (validate & csv)',
        'no train.csv here',
        'Join the parts of the download',
    )


def test_byte_order_mark_and_line_ends_change_nothing(tmp_path):
    tables = []
    for i, how in enumerate((dict(end='\n'), dict(end='\r\n'), dict(end='\r\n', encoding='utf-8-sig'))):
        (root := tmp_path / str(i)).mkdir()
        tables.append(load_chexpert(chexpert(root, **how)))
    pd.testing.assert_frame_equal(tables[0], tables[1])
    pd.testing.assert_frame_equal(tables[0], tables[2])
    assert list(tables[0].columns) == list(STUDY_COLUMNS) and len(tables[0]) == 6


@pytest.mark.parametrize(
    'change, said',
    [
        ({'Cardiomegaly': 'yes'}, ['valid.csv row 2', "Cardiomegaly is 'yes'", 'expected 1, 0, -1 or empty']),
        ({'Edema': '2'}, ['valid.csv row 2', 'Edema is 2.0']),
        (
            {'Path': 'CheXpert-v1.0-small/valid/patient00011/study1/view1_frontal.jpg'},
            ['valid.csv row 2', 'each image once'],
        ),
        ({'Path': 'CheXpert-v1.0-small/../patient00011/study1/a.jpg'}, ['valid.csv row 2', 'a path inside']),
        ({'Path': '/patient00011/study1/a.jpg'}, ['valid.csv row 2', 'a path inside']),
        (
            {'Path': 'CheXpert-v1.0-small/valid/patient00099/study1/view1_frontal.jpg'},
            ['valid.csv row 2', 'a file under', "missing='exclude'"],
        ),
        (
            {'Path': 'CheXpert-v1.0-small/valid/somebody.jpg'},
            ['valid.csv row 2', 'expected a patient and a study'],
        ),
        ({'Path': ''}, ['valid.csv row 2', 'Path']),
        ({'Age': '930'}, ['valid.csv row 2', 'years from 0 to 120']),
        ({'Age': 'old'}, ['valid.csv row 2', "age is 'old'"]),
        ({'Sex': 'Masculine'}, ['valid.csv row 2', "Sex is 'Masculine'", 'Female, Male, Unknown']),
        ({'AP/PA': 'Frontal'}, ['valid.csv row 2', "AP/PA is 'Frontal'", 'AP, PA, LL, RL']),
        ({'Frontal/Lateral': 'Oblique'}, ['valid.csv row 2', 'Frontal, Lateral']),
    ],
)
def test_a_bad_cell_is_named_by_file_and_row(tmp_path, change, said):
    film(tmp_path / 'patient00011' / 'study1' / 'a.jpg')
    (tmp_path / 'chexpert').mkdir()
    refused(load_chexpert, chexpert(tmp_path / 'chexpert', {}, change), *said)


@pytest.mark.parametrize('prefix', ['CheXpert-v1.0/', 'CheXpert-v1.0-small/', ''])
def test_both_releases_load_and_unknowns_stay_visible(tmp_path, prefix):
    table = load_chexpert(
        chexpert(
            tmp_path,
            {'Age': '', 'Sex': 'Unknown', 'AP/PA': 'LL', 'Edema': '-1.0'},
            {'AP/PA': '', 'Frontal/Lateral': 'Lateral', 'Age': '0', 'Edema': ''},
            prefix=prefix,
        )
    )
    odd, side = table[table.split == 'test'].iloc[0], table[table.split == 'test'].iloc[1]
    assert (
        np.isnan(odd.age)
        and odd.sex is None
        and odd.projection is None
        and odd['view'] == 'Frontal'
        and odd.Edema == -1
    )
    assert side['view'] == 'Lateral' and side.projection is None and side.age == 0 and np.isnan(side.Edema)
    assert len(table) == 6 and (table.split == 'test').sum() == 2 and table.split.isna().sum() == 4


def test_images_that_are_not_there_are_refused_or_listed(tmp_path):
    chexpert(tmp_path)
    (tmp_path / 'train/patient00002/study1/view1_frontal.jpg').unlink()
    refused(load_chexpert, tmp_path, 'train.csv row 2', '(1 such rows)')
    left = Exclusions()
    table = load_chexpert(tmp_path, missing='exclude', exclusions=left)
    assert len(table) == 5 and left.rows == [
        (
            f'{tmp_path / "train.csv"} row 2',
            'train/patient00002/study1/view1_frontal.jpg',
            'the image is not on disk',
        )
    ]
    with pytest.warns(UserWarning, match='train.csv row 2'):
        load_chexpert(tmp_path, missing='exclude')
    for path in tmp_path.rglob('*.jpg'):
        path.unlink()
    refused(load_chexpert, tmp_path, 'none of the 6 listed images', missing='exclude')


def test_a_patient_of_the_test_split_who_is_also_in_train_is_refused(tmp_path):
    from cxr_lib.stages.exploration import exploration_stage

    (tmp_path / 'chexpert').mkdir()
    chexpert(tmp_path / 'chexpert', valid=(1, 12))
    refused(
        load_chexpert, tmp_path / 'chexpert', 'patient00001 is in the splits test, train', 'split by patient'
    )
    with pytest.raises(StudyTableError, match='patient00001 is in the splits.*split by patient'):
        exploration_stage(
            RunFolder(tmp_path / 'run'),
            dataset='chexpert',
            root=str(tmp_path / 'chexpert'),
            tuning_fraction=0.2,
        )
    assert not RunFolder(tmp_path / 'run').done('exploration')


# The test set of 500 studies


@pytest.mark.parametrize('name', ['test.csv', 'test_labels.csv'])
def test_one_of_valid_and_the_500_studies_is_the_test_split_and_the_other_is_listed(tmp_path, name):
    chexpert(tmp_path)
    for view in ('view1_frontal', 'view2_lateral'):
        film(tmp_path / f'test/patient64741/study1/{view}.jpg')
    write(
        tmp_path / name,
        ['Path', *OBSERVATIONS],
        [
            {'Path': f'CheXpert-v1.0/test/patient64741/study1/{v}.jpg', 'Edema': '1'}
            for v in ('view1_frontal', 'view2_lateral')
        ],
    )
    left = Exclusions()
    assert set(load_chexpert(tmp_path, exclusions=left).patient_id[lambda p: p > 'patient00010']) == {
        'patient00011',
        'patient00012',
    }
    assert list(left.counts()) == [2] and 'test set' in left.counts().index[0] and name in left.rows[0][0]
    left = Exclusions()
    table = load_chexpert(tmp_path, exclusions=left, test_split='test')
    test = table[table.split == 'test']
    assert (
        test['view'].tolist() == ['Frontal', 'Lateral']
        and (test.Edema == 1).all()
        and test[['sex', 'age', 'projection']].isna().all(axis=None)
    )
    assert (
        set(table.patient_id[table.split.isna()]) == {f'patient0000{i}' for i in range(1, 5)}
        and list(left.counts()) == [2]
        and 'valid.csv' in left.rows[0][0]
    )
    with pytest.warns(UserWarning, match='2 of 2 rows are left out.*test set'):
        load_chexpert(tmp_path)


def test_the_500_studies_that_are_asked_for_but_absent_are_an_error(tmp_path):
    chexpert(tmp_path)
    refused(load_chexpert, tmp_path, 'test_labels.csv', 'no such file', test_split='test')
    with pytest.raises(ValueError, match="expected 'valid' or 'test'"):
        load_chexpert(tmp_path, test_split='both')


# Labels from another file


def columns_of(n):
    "What `relabel` needs of a table: images of two views a study, all labels missing"
    image = [f'train/patient{i:05d}/study{i % 3 + 1}/view{v}_frontal.jpg' for i in range(n) for v in (1, 2)]
    return pd.DataFrame(
        {'image': image, **{o: np.nan for o in OBSERVATIONS}},
        index=[f'train.csv row {i + 1}' for i in range(2 * n)],
    )


@settings(max_examples=40, deadline=None)
@given(
    order=st.permutations(OBSERVATIONS),
    values=st.lists(
        st.lists(st.sampled_from(['1', '0', '-1.0', '']), min_size=14, max_size=14), min_size=1, max_size=6
    ),
    key=st.sampled_from(['Path', 'Study']),
    shuffle=st.randoms(),
)
def test_labels_are_joined_by_name_whatever_the_order_of_columns_and_rows(order, values, key, shuffle):
    table = columns_of(len(values))
    rows = [
        {
            key: f'CheXpert-v1.0/{image if key == "Path" else image.rpartition("/")[0]}',
            **dict(zip(OBSERVATIONS, values[i // 2])),
        }
        for i, image in enumerate(table.image)
    ]
    rows = rows if key == 'Path' else rows[::2]
    shuffle.shuffle(rows)
    with tempfile.TemporaryDirectory() as d:
        write(Path(d) / 'labels.csv', [key, *order], rows)
        again = relabel(table, Path(d) / 'labels.csv')
    wanted = pd.DataFrame(
        [[float(x) if x else np.nan for x in v] for v in values for _ in (1, 2)], columns=OBSERVATIONS
    )
    pd.testing.assert_frame_equal(again[list(OBSERVATIONS)].reset_index(drop=True), wanted)
    assert again.image.equals(table.image)


def test_the_radiologists_file_of_the_500_studies_replaces_the_labels_of_their_images_only(tmp_path):
    chexpert(tmp_path)
    film(tmp_path / 'test/patient64741/study1/view1_frontal.jpg')
    write(
        tmp_path / 'test_labels.csv',
        ['Path', *OBSERVATIONS],
        [{'Path': 'test/patient64741/study1/view1_frontal.jpg', 'Lung Opacity': '1', 'Lung Lesion': '0'}],
    )
    order = list(OBSERVATIONS)
    order[3:5] = 'Lung Lesion', 'Airspace Opacity'  # the order and an early name of the radiologists' file
    write(
        tmp_path / 'bc4.csv',
        ['Study', *order],
        [{'Study': 'CheXpert-v1.0/test/patient64741/study1', 'Lung Lesion': '1', 'Airspace Opacity': '0'}],
    )
    table = load_chexpert(tmp_path, exclusions=Exclusions(), test_split='test', labels=tmp_path / 'bc4.csv')
    assert (
        table.iloc[-1]['Lung Lesion'] == 1
        and table.iloc[-1]['Lung Opacity'] == 0
        and (table.Edema == 1).sum() == 4
    )


@pytest.mark.parametrize(
    'change, said',
    [
        (dict(Edema='maybe'), ['labels.csv row 2', "Edema is 'maybe'", '1, 0, -1 or empty']),
        (dict(Edema='.7'), ['labels.csv row 2', 'Edema is 0.7']),
        (dict(Path='train/patient00000/study1/view1_frontal.jpg'), ['labels.csv row 2', 'each image once']),
        (dict(Path=''), ['labels.csv row 2', 'Path']),
        (dict(Path='train/patient00099/study1/view1_frontal.jpg'), ['train.csv row 2', 'a row for it in']),
    ],
)
def test_a_bad_row_of_a_label_file_is_named(tmp_path, change, said):
    table = columns_of(2)
    rows = [{'Path': image, 'Edema': '1'} for image in table.image]
    rows[1] |= change
    write(tmp_path / 'labels.csv', ['Path', *OBSERVATIONS], rows)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)
        refused(lambda path: relabel(table, path), tmp_path / 'labels.csv', *said)


def test_label_rows_that_match_nothing_are_listed_and_a_file_of_only_such_rows_is_refused(tmp_path):
    table, left = columns_of(2), Exclusions()
    write(
        tmp_path / 'labels.csv',
        ['Path', *OBSERVATIONS],
        [
            {'Path': image, 'Edema': '1'}
            for image in (*table.image, 'valid/patient64541/study1/view1_frontal.jpg')
        ],
    )
    assert (relabel(table, tmp_path / 'labels.csv', left).Edema == 1).all() and left.rows[0][:2] == (
        f'{tmp_path / "labels.csv"} row 5',
        'valid/patient64541/study1/view1_frontal.jpg',
    )
    refused(
        lambda path: relabel(table.assign(image='valid/' + table.image), path),
        tmp_path / 'labels.csv',
        'none of its 5 rows names an image of the table',
    )
    for drop in ('Path', 'Fracture'):
        write(
            tmp_path / 'labels.csv',
            [c for c in ('Path', *OBSERVATIONS) if c != drop],
            [{'Path': image} for image in table.image],
        )
        refused(
            lambda path: relabel(table, path),
            tmp_path / 'labels.csv',
            'missing column(s)',
            'Study' if drop == 'Path' else drop,
        )


# Which files are there


@settings(max_examples=30, deadline=None)
@given(folders=st.lists(st.integers(1, 12), min_size=1, max_size=4), gone=st.sets(st.integers(0, 40)))
def test_files_are_found_whether_their_folder_is_listed_or_each_is_asked_for(folders, gone):
    names = [f'f{i}/{j}.jpg' for i, n in enumerate(folders) for j in range(n)] + [
        'top.jpg',
        'f0',
        'none/a.jpg',
    ]
    there = [i not in gone for i in range(len(names) - 2)] + [False, False]  # a folder is no file
    with tempfile.TemporaryDirectory() as d:
        (Path(d) / 'f0').mkdir()
        for name, yes in zip(names, there):
            if yes:
                (Path(d) / name).parent.mkdir(exist_ok=True)
                (Path(d) / name).touch()
        assert is_there(names, d).tolist() == there
