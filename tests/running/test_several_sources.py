"""`cxr run` with a folder of test patients, with several sources, and from another run's weights, to the last line.

At most 60 real images, one epoch, 20 resamples. The data are in ../shared/data beside the checkout; without them, these
tests skip.
"""

import re

import pandas as pd
import pytest
from commands import MINUTES, cxr, page_of
from conftest import ROOT
from test_commands_on_real_data import copied

from cxr_lib.foundations.files import read_json

SHARED = ROOT.parent / 'shared' / 'data'
pytestmark = [
    *MINUTES,
    pytest.mark.skipif(
        not SHARED.is_dir(), reason='the shared real data (../shared/data) are not on this machine'
    ),
]
QUICK = '-p epochs 1 -p n_bootstrap 20 -p negative_example false -p probe_encoder false'.split()
QUICK += ['-p', 'n_explained', '8']
PUBLISHED = 'published_densenet121_predictions.csv'


def some(folder, table, column, n):
    "Every so manyth image that a table names"
    names = pd.read_csv(folder / table)[column]
    return names[:: len(names) // n][:n].tolist()


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "24 images to test on, 30 others to train on, 30 of another source"
    home = tmp_path_factory.mktemp('data')
    for name, n in (('nih', 24), ('nih_trainval', 30)):
        chosen = some(SHARED / name, 'Data_Entry_2017.csv', 'Image Index', n)
        copied(SHARED / name, home / name, 'Data_Entry_2017.csv', chosen)
    (home / 'nih' / PUBLISHED).write_bytes((SHARED / 'nih' / PUBLISHED).read_bytes())
    chosen = pd.read_csv(SHARED / 'covid' / 'metadata.csv').filename[:30].tolist()
    copied(SHARED / 'covid', home / 'covid', 'metadata.csv', chosen)
    return home


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A project folder that is no checkout"
    return tmp_path_factory.mktemp('project')


@pytest.fixture(scope='module')
def apart(home, data):
    "Trained on one folder, tested on another, with a list of patients that must not be trained on"
    listed = SHARED / 'nih_annotations' / 'do_not_train_patients.txt'
    roots = '--root', data / 'nih_trainval', '--test-root', data / 'nih'
    command = 'run', '--run', 'apart', '--dataset', 'nih', *roots, '-p', 'exclude_patients', listed
    code, out, err = cxr(home, *command, *QUICK)
    assert code == 0, err
    return out


def test_all_patients_of_the_test_folder_are_tested_by_one_model_that_has_seen_none(home, data, apart):
    page = page_of(home, 'apart', apart)
    table = pd.read_parquet(home / 'reports' / 'apart' / 'predictions.parquet')
    tested = table[table.split == 'test']
    official = pd.read_csv(data / 'nih' / 'Data_Entry_2017.csv')
    assert set(tested.patient_id) == set(official['Patient ID'].astype(str))
    assert set(tested.fold) == {-1}
    assert 'Beside another model, on the same images' in page


def test_the_verdict_compares_with_the_published_model_in_a_sentence(home, data, apart):
    verdict = read_json(home / 'reports' / 'apart' / 'metrics.json')['verdict']
    assert sum('DenseNet-121' in sentence and 'the same' in sentence for sentence in verdict) == 1
    assert 'DenseNet-121' in apart


def test_folds_cut_the_test_folder_and_train_on_everybody_else(home, data, apart):
    roots = '--root', data / 'nih_trainval', '--test-root', data / 'nih'
    command = 'run', '--run', 'folds', '--dataset', 'nih', *roots, '-p', 'folds', 2, '--until', 'training'
    code, _, err = cxr(home, *command, *QUICK)
    assert code == 0, err
    table = pd.read_parquet(home / 'reports' / 'folds' / 'predictions.parquet')
    tested = table[table.split == 'test']
    assert set(tested.fold) == {0, 1}
    assert len(tested) == tested.image.nunique() == 24


def test_a_patient_in_both_folders_stops_the_command_and_is_named(home, data):
    roots = '--root', data / 'nih', '--test-root', data / 'nih'
    code, _, err = cxr(home, 'run', '--run', 'both', '--dataset', 'nih', *roots, *QUICK)
    assert code == 1
    assert 'The model would be tested on people it has seen' in err
    assert '24 patients are both in' in err


def test_a_listed_patient_stops_the_command_before_anything_is_trained(home, data):
    listed = SHARED / 'nih_annotations' / 'do_not_train_patients.txt'
    command = (
        'run',
        '--run',
        'listed',
        '--dataset',
        'nih',
        '--root',
        data / 'nih',
        '-p',
        'exclude_patients',
        listed,
    )
    code, _, err = cxr(home, *command, *QUICK)
    assert code == 1
    assert 'of the list exclude_patients (do_not_train_patients.txt) would be among the training' in err
    assert not (home / 'reports' / 'listed' / 'model').exists()


def test_each_of_two_sources_is_tested_by_a_model_of_the_other(home, data):
    roots = f'{data / "nih"},{data / "covid"}'
    command = 'run', '--dataset', 'nih,covid', '--root', roots, '-p', 'folds_by', 'source'
    code, out, err = cxr(home, *command, *QUICK)
    assert code == 0, err
    page = page_of(home, 'nih+covid', out)
    assert 'LEAVE ONE SOURCE OUT' in page
    assert 'Source by source' in page
    run = home / 'reports' / 'nih+covid'
    table = pd.read_parquet(run / 'predictions.parquet')
    tested = table[table.split == 'test']
    assert tested.groupby('fold').source.nunique().tolist() == [1, 1]
    tuned = table[table.split == 'tuning']
    assert all(set(tuned.source[tuned.fold == f]).isdisjoint(tested.source[tested.fold == f]) for f in (0, 1))
    # covid annotates two observations: nothing else of the NIH images is tested by the model of covid
    assert tested['label/Cardiomegaly'].isna().all()
    assert 'Cardiomegaly' in read_json(run / 'conditions.json')['untrained']['0']
    metrics = read_json(run / 'metrics.json')
    assert metrics['observations']['Cardiomegaly']['reason'] == 'the model was not trained on it'
    kept_out = next(said for said in metrics['verdict'] if said.startswith('Kept out'))
    assert re.search(r'Cardiomegaly[^()]*\(the model was not trained on it\)', kept_out)
    exploration = (run / '01_exploration.html').read_text(encoding='utf-8')
    assert 'Only some of the sources annotate' in exploration


def test_a_training_goes_on_from_another_run_and_says_so(home, data, apart):
    roots = '--root', data / 'nih_trainval', '--test-root', data / 'nih'
    command = 'run', '--run', 'on', '--dataset', 'nih', *roots, '-p', 'start_from', 'apart'
    code, out, err = cxr(home, *command, *QUICK)
    assert code == 0, err
    run = home / 'reports' / 'on'
    facts = read_json(run / 'model' / 'config.json')
    assert facts['start_from'].startswith('apart (fingerprint ')
    assert 'began with the weights of the run apart' in (run / 'model_card.md').read_text(encoding='utf-8')
    vocabulary = [
        (home / 'reports' / name / 'model' / 'tokenizer.json').read_bytes() for name in ('apart', 'on')
    ]
    assert vocabulary[0] == vocabulary[1]


def test_a_run_that_would_test_people_whom_the_other_has_seen_is_refused(home, data, apart):
    command = (
        'run',
        '--run',
        'seen',
        '--dataset',
        'nih',
        '--root',
        data / 'nih_trainval',
        '-p',
        'start_from',
        'apart',
    )
    code, _, err = cxr(home, *command, *QUICK)
    assert code == 1
    assert "test patients of this run were trained or tuned on by 'apart'" in err


@pytest.mark.parametrize('parameter', ['start_from', 'second'])
def test_another_run_that_is_not_there_is_an_impossible_request(home, data, parameter):
    command = 'run', '--run', 'x', '--dataset', 'nih', '--root', data / 'nih', '-p', parameter, 'nothing'
    code, _, err = cxr(home, *command, *QUICK)
    assert code == 2
    assert f"{parameter} is 'nothing', and there is no trained model in" in err
