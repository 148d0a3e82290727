"""Study tables: what is wrong with a source is said by file, row and remedy; no patient is in two splits."""
import csv

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cxr_lib.core import OBSERVATIONS, RunFolder
from cxr_lib.data import (NIH_TO_CHEXPERT, STUDY_COLUMNS, StudyTableError, check_images, check_patient_splits, exploration_stage, load_chexpert, load_covid,
                          load_nih, split_by_patient, validate_studies)

SHARED = ROOT.parent/'shared'/'data'
NIH_HEADER = ['Image Index', 'Finding Labels', 'Follow-up #', 'Patient ID', 'Patient Age', 'Patient Gender', 'View Position', 'OriginalImage[Width', 'Height]', 'OriginalImagePixelSpacing[x', 'y]']
COVID_HEADER = ['patientid', 'offset', 'sex', 'age', 'finding', 'view', 'modality', 'folder', 'filename', 'doi', 'url', 'license', 'clinical_notes']
CHEXPERT_HEADER = ['Path', 'Sex', 'Age', 'Frontal/Lateral', 'AP/PA', *OBSERVATIONS]


def film(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('L', (8, 6)).save(path)


def write(path, header, rows, end='\r\n', encoding='utf-8'):
    with path.open('w', newline='', encoding=encoding) as f:
        writer = csv.writer(f, lineterminator=end)
        writer.writerow(header)
        writer.writerows([[r.get(h, '') for h in header] for r in rows])


def nih(root, *changes, drop=None, films=True, **how):
    "A small NIH folder; each change is a dictionary that alters one row"
    rows = [dict(zip(NIH_HEADER, (f'{i:08d}_000.png', 'No Finding', '0', str(i), str(40 + i), 'FM'[i % 2], 'PA', '2500', '3000', '.14', '.14'))) for i in range(1, 5)]
    for i, change in enumerate(changes): rows[i] |= change
    (root/'images').mkdir()
    if films:
        for i in range(1, 5): film(root/'images'/f'{i:08d}_000.png')
    write(root/'Data_Entry_2017.csv', [h for h in NIH_HEADER if h != drop], rows if how.pop('filled', True) else [], **how)
    return root


def covid(root, *changes, drop=None, **how):
    "A small folder of the COVID-19 collection"
    rows = [dict(patientid=str(i), sex='F', age=str(50 + i), finding='COVID-19', view='AP Supine', modality='X-ray', folder='images', filename=f'{i}.jpg', clinical_notes='Fever and cough.') for i in range(4)]
    for i, change in enumerate(changes): rows[i] |= change
    for i in range(4): film(root/'images'/f'{i}.jpg')
    write(root/'metadata.csv', [h for h in COVID_HEADER if h != drop], rows if how.pop('filled', True) else [], **how)
    return root


def chexpert(root, *changes, drop=None, prefix='CheXpert-v1.0-small/', valid=None, **how):
    "A small CheXpert folder: four training rows and two of valid; the changes are to valid.csv"
    filled = how.pop('filled', True)
    for name, ids in (('train', range(1, 5)), ('valid', valid or (11, 12))):
        rows = [{'Path': f'{prefix}{name}/patient{i:05d}/study1/view1_frontal.jpg', 'Sex': 'Male', 'Age': '60', 'Frontal/Lateral': 'Frontal', 'AP/PA': 'AP', 'Edema': '1.0'} for i in ids]
        for r in rows: film(root/r['Path'].removeprefix(prefix))
        if name == 'valid':
            for i, change in enumerate(changes): rows[i] |= change
        write(root/f'{name}.csv', [h for h in CHEXPERT_HEADER if h != drop], rows if filled else [], **how)
    return root


def refused(load, root, *said):
    with pytest.raises(StudyTableError) as error: load(root)
    for s in said: assert s in str(error.value), error.value


# Malformed tables

@pytest.mark.parametrize('make, load, drop, file', [(nih, load_nih, 'Finding Labels', 'Data_Entry_2017.csv'), (nih, load_nih, 'Patient ID', 'Data_Entry_2017.csv'),
                                                    (covid, load_covid, 'finding', 'metadata.csv'), (chexpert, load_chexpert, 'Fracture', 'train.csv')])
def test_a_missing_column_is_named_with_its_file(tmp_path, make, load, drop, file):
    refused(load, make(tmp_path, drop=drop), file, f'missing column(s) {drop}', 'it has')


@pytest.mark.parametrize('make, load, file', [(nih, load_nih, 'Data_Entry_2017.csv'), (covid, load_covid, 'metadata.csv'), (chexpert, load_chexpert, 'train.csv')])
def test_absent_empty_and_unreadable_tables_are_refused_by_name(tmp_path, make, load, file):
    refused(load, tmp_path, file, 'no such file', 'root folder')
    make(tmp_path, filled=False)
    refused(load, tmp_path, file, 'no rows')
    (tmp_path/file).write_bytes(b'')
    refused(load, tmp_path, file, 'not a readable CSV')
    (tmp_path/file).write_bytes(b'\xff\xfe\x00\x81 not text\n' * 3)
    refused(load, tmp_path, file)


@pytest.mark.parametrize('make, load', [(nih, load_nih), (covid, load_covid), (chexpert, load_chexpert)])
def test_byte_order_mark_and_line_ends_change_nothing(tmp_path, make, load):
    tables = []
    for i, how in enumerate((dict(end='\n'), dict(end='\r\n'), dict(end='\r\n', encoding='utf-8-sig'))):
        (root := tmp_path/str(i)).mkdir()
        tables.append(load(make(root, **how)))
    pd.testing.assert_frame_equal(tables[0], tables[1])
    pd.testing.assert_frame_equal(tables[0], tables[2])
    assert list(tables[0].columns) == list(STUDY_COLUMNS) and len(tables[0]) >= 4


@pytest.mark.parametrize('change, said', [
    ({'Finding Labels': 'Cardiomegaly|Cardiomgaly'}, ['row 2', "unknown label 'Cardiomgaly'", 'expected some of Atelectasis']),
    ({'Finding Labels': ''}, ['row 2', 'Finding Labels']),
    ({'Image Index': '00000001_000.png'}, ['row 2', 'each image once']),
    ({'Image Index': ''}, ['row 2', 'Image Index']),
    ({'Image Index': '../../outside.png'}, ['row 2', 'a path inside']),
    ({'Patient ID': ''}, ['row 2', 'Patient ID']),
    ({'Patient Age': '-3'}, ['row 2', 'age is -3.0', 'years from 0 to 120']),
    ({'View Position': 'LL'}, ['row 2', "projection is 'LL'", 'PA, AP'])])
def test_nih_a_bad_cell_is_named_by_row(tmp_path, change, said):
    film(tmp_path/'outside.png')
    (tmp_path/'nih').mkdir()
    refused(load_nih, nih(tmp_path/'nih', {}, change), 'Data_Entry_2017.csv', *said)


def test_nih_rows_are_counted_in_the_file_even_where_images_are_absent(tmp_path):
    nih(tmp_path, {}, {}, {'View Position': 'LL'})
    (tmp_path/'images'/'00000001_000.png').unlink()
    refused(load_nih, tmp_path, 'row 3', "projection is 'LL'")


def test_nih_takes_what_is_unpacked_and_refuses_when_nothing_is(tmp_path):
    nih(tmp_path)
    (tmp_path/'images'/'00000001_000.png').unlink()
    assert load_nih(tmp_path).patient_id.tolist() == ['2', '3', '4']
    for path in (tmp_path/'images').iterdir(): path.unlink()
    refused(load_nih, tmp_path, 'none of the 4 listed images', 'Unpack')


def test_nih_ages_are_years_and_impossible_ones_are_missing(tmp_path):
    table = load_nih(nih(tmp_path, {'Patient Age': '414'}, {'Patient Age': ''}, {'Patient Age': '058Y'}, {'Patient Age': '006M'}))
    assert np.isnan(table.age[:2]).all() and table.age[2:].tolist() == [58, .5]


def test_nih_labels_map_to_observations_and_unannotated_ones_are_missing(tmp_path):
    table = load_nih(nih(tmp_path, {'Finding Labels': 'Mass|Nodule|Effusion'}, {'Finding Labels': 'Hernia'}, {'Finding Labels': 'Infiltration'}))
    assert table['Lung Lesion'].tolist() == [1, 0, 0, 0] and table['Lung Opacity'].tolist() == [0, 0, 1, 0] and table['Pleural Effusion'].tolist() == [1, 0, 0, 0]
    assert table['No Finding'].tolist() == [0, 0, 0, 1]
    assert table[['Enlarged Cardiomediastinum', 'Fracture', 'Support Devices']].isna().all(axis=None)


@pytest.mark.parametrize('change, said', [
    (dict(filename='0.jpg'), ['row 2', 'each image once']),
    (dict(filename='../../outside.jpg'), ['row 2', 'a path inside']),
    (dict(patientid=''), ['row 2', 'patient_id']),
    (dict(age='414'), ['row 2', 'age is 414', 'years from 0 to 120'])])
def test_covid_a_bad_cell_is_named_by_row(tmp_path, change, said):
    film(tmp_path/'outside.jpg')
    (tmp_path/'covid').mkdir()
    refused(load_covid, covid(tmp_path/'covid', dict(modality='X-ray'), change), 'metadata.csv', *said)


def test_covid_keeps_frontal_radiographs_that_are_there(tmp_path):
    table = load_covid(covid(tmp_path, dict(modality='CT', age='414'), dict(view='L'), dict(filename=''), dict(sex='', age='', clinical_notes='')))
    assert table.image.tolist() == ['images/3.jpg'] and table.projection.tolist() == ['AP']
    assert table.sex.isna().all() and table.age.isna().all() and table.note.isna().all()


def test_covid_rows_are_counted_in_the_file_even_where_some_are_left_out(tmp_path):
    refused(load_covid, covid(tmp_path, dict(modality='CT'), {}, dict(age='414')), 'row 3', 'age is 414')


def test_covid_a_finding_that_does_not_say_pneumonia_or_normal_is_missing(tmp_path):
    table = load_covid(covid(tmp_path, dict(finding='Pneumonia/Fungal/Pneumocystis'), dict(finding='No Finding'), dict(finding='ARDS'), dict(finding='Pulmonary fibrosis')))
    assert table.Pneumonia.fillna(9).tolist() == [1, 0, 9, 9] and table['No Finding'].tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize('change, said', [
    ({'Cardiomegaly': 'yes'}, ['valid.csv row 2', "Cardiomegaly is 'yes'", 'expected 1, 0, -1 or empty']),
    ({'Edema': '2'}, ['valid.csv row 2', 'Edema is 2.0']),
    ({'Path': 'CheXpert-v1.0-small/valid/patient00011/study1/view1_frontal.jpg'}, ['valid.csv row 2', 'each image once']),
    ({'Path': 'CheXpert-v1.0-small/../patient00011/study1/a.jpg'}, ['valid.csv row 2', 'a path inside']),
    ({'Path': 'CheXpert-v1.0-small/valid/patient00099/study1/view1_frontal.jpg'}, ['valid.csv row 2', 'a file under', 'check the root folder']),
    ({'Path': 'CheXpert-v1.0-small/valid/somebody.jpg'}, ['valid.csv row 2', 'no patient and study']),
    ({'Path': ''}, ['valid.csv row 2', 'Path']),
    ({'Age': '930'}, ['valid.csv row 2', 'years from 0 to 120']),
    ({'Age': 'old'}, ['valid.csv row 2', "age is 'old'"]),
    ({'Frontal/Lateral': 'Oblique'}, ['valid.csv row 2', 'Frontal, Lateral'])])
def test_chexpert_a_bad_cell_is_named_by_file_and_row(tmp_path, change, said):
    film(tmp_path/'patient00011'/'study1'/'a.jpg')
    (tmp_path/'chexpert').mkdir()
    refused(load_chexpert, chexpert(tmp_path/'chexpert', {}, change), *said)


@pytest.mark.parametrize('prefix', ['CheXpert-v1.0/', 'CheXpert-v1.0-small/', ''])
def test_chexpert_both_releases_load_and_unknowns_stay_visible(tmp_path, prefix):
    table = load_chexpert(chexpert(tmp_path, {'Age': '', 'Sex': 'Unknown', 'AP/PA': 'LL', 'Frontal/Lateral': 'Lateral', 'Edema': '-1.0'}, prefix=prefix))
    odd = table[table.split == 'test'].iloc[0]
    assert np.isnan(odd.age) and odd.sex is None and odd.projection is None and odd['view'] == 'Lateral' and odd.Edema == -1
    assert len(table) == 6 and (table.split == 'test').sum() == 2 and table.split.isna().sum() == 4


def test_a_patient_of_the_official_test_split_who_is_also_in_train_is_refused(tmp_path):
    (tmp_path/'chexpert').mkdir()
    chexpert(tmp_path/'chexpert', valid=(1, 12))
    with pytest.raises(StudyTableError, match='patient00001 is in the splits.*split by patient'):
        exploration_stage(RunFolder(tmp_path/'run'), dataset='chexpert', root=str(tmp_path/'chexpert'), tuning_fraction=.2)
    assert not RunFolder(tmp_path/'run').done('exploration')


def plain_table(**columns):
    n = len(next(iter(columns.values()), range(4)))
    base = dict(image=[f'{i}.png' for i in range(n)], patient_id=[f'p{i}' for i in range(n)], study_id='s', view='Frontal', projection=None, sex=None, age=np.nan, **{o: np.nan for o in OBSERVATIONS})
    return pd.DataFrame({**base, **columns})


def test_a_patient_in_two_splits_is_refused_even_when_some_rows_have_none():
    with pytest.raises(StudyTableError, match='patient p0 is in the splits test, train'): validate_studies(plain_table(patient_id=['p0', 'p0', 'p0'], split=['train', 'test', None]))


def test_a_table_may_say_nothing_of_sex_age_projection_and_labels():
    table = validate_studies(plain_table(sex=[None, np.nan, 'Male', pd.NA]))
    assert table.sex.tolist() == [None, None, 'Male', None] and table[list(OBSERVATIONS)].isna().all(axis=None) and table.note.isna().all()


def test_values_in_messages_read_as_they_were_written():
    with pytest.raises(StudyTableError, match=r'^mine row 2: age is 930.0; expected years'): validate_studies(plain_table(age=[30., 930.]), 'mine')
    with pytest.raises(StudyTableError, match=r"^mine row 1: sex is 'F'; expected one of Female, Male, or empty \(2 such rows\)"): validate_studies(plain_table(sex=['F', 'F']), 'mine')


def test_an_absolute_path_or_a_link_out_of_the_root_is_refused(tmp_path):
    film(tmp_path/'outside.png')
    (tmp_path/'root').mkdir()
    (tmp_path/'root'/'link.png').symlink_to(tmp_path/'outside.png')
    for name in (str(tmp_path/'outside.png'), 'link.png', 'sub/../../outside.png'):
        with pytest.raises(StudyTableError, match='a path inside'): check_images(plain_table(image=[name]), tmp_path/'root')


# Splits

@settings(max_examples=60, deadline=None)
@given(patients=st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=40), tuning=st.floats(.05, .45), test=st.floats(0, .45), seed=st.integers(0, 2**31), shuffle=st.randoms())
def test_splits_never_part_a_patient_and_do_not_depend_on_the_order_or_on_others(patients, tuning, test, seed, shuffle):
    table = pd.DataFrame({'patient_id': patients, 'split': None})
    split = split_by_patient(table, tuning, test, seed)
    assert set(split) <= {'train', 'tuning', 'test'}
    check_patient_splits(table.assign(split=split))
    order = list(range(len(table)))
    shuffle.shuffle(order)
    assert split_by_patient(table.iloc[order], tuning, test, seed).sort_index().equals(split)
    more = pd.concat([table, pd.DataFrame({'patient_id': ['another', 'one more'], 'split': None})], ignore_index=True)
    assert split_by_patient(more, tuning, test, seed)[:len(table)].equals(split)


@settings(max_examples=30, deadline=None)
@given(given_splits=st.lists(st.sampled_from(['train', 'tuning', 'test', None]), min_size=1, max_size=30), seed=st.integers(0, 99))
def test_a_split_that_a_source_gives_is_kept(given_splits, seed):
    table = pd.DataFrame({'patient_id': [f'p{i}' for i in range(len(given_splits))], 'split': pd.Series(given_splits, dtype=object)})
    split = split_by_patient(table, .2, .2, seed)
    assert all(s == g for s, g in zip(split, given_splits) if g) and split.notna().all()


@pytest.mark.parametrize('tuning, test', [(0, .2), (.5, .5), (.2, -.1), (1, 0), (float('nan'), .2)])
def test_shares_that_leave_nobody_to_learn_from_are_refused(tuning, test):
    with pytest.raises(ValueError, match='leave something to train on'): split_by_patient(plain_table(split=[None]*3), tuning, test)


# The real sources

def test_nih_421_images_of_421_patients_with_the_counts_of_their_own_labels():
    if not (SHARED/'nih').is_dir(): pytest.skip('the NIH sample is not at ../shared/data/nih')
    table = load_nih(SHARED/'nih')
    raw = pd.read_csv(SHARED/'nih'/'Data_Entry_2017.csv')
    assert len(table) == table.patient_id.nunique() == table.image.nunique() == 421
    labels = raw['Finding Labels'].str.get_dummies('|')
    for o in OBSERVATIONS:
        sources = [s for s, target in NIH_TO_CHEXPERT.items() if target == o and s in labels]
        assert (table[o] == 1).sum() == (labels[sources].max(axis=1).sum() if sources else 0), o
        assert table[o].isna().all() == (o in ('Enlarged Cardiomediastinum', 'Fracture', 'Support Devices')), o
    assert set(table.patient_id) == set(raw['Patient ID'].astype(str)) and table.age.between(0, 100).all() and table.note.isna().all()


def test_covid_150_images_of_88_patients_with_notes():
    if not (SHARED/'covid').is_dir(): pytest.skip('the COVID-19 sample is not at ../shared/data/covid')
    table = load_covid(SHARED/'covid')
    assert len(table) == 150 and table.patient_id.nunique() == 88
    assert table.note.notna().mean() > .7 and table.note.dropna().str.len().median() > 50
    assert (table['No Finding'] == 1).sum() == 2 == (table.Pneumonia == 0).sum() and (table.Pneumonia == 1).sum() > 100
    assert table[[o for o in OBSERVATIONS if o not in ('Pneumonia', 'No Finding')]].isna().all(axis=None)
