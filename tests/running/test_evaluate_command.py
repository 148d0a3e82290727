"""`cxr evaluate`: a run on other data, and files of predictions, as a person types it."""

import shutil

import numpy as np
import pandas as pd
import pytest
from commands import cxr
from conftest import ROOT

from cxr_lib.evaluation.card import check_metrics
from cxr_lib.foundations.core import OBSERVATIONS, SIMULATED
from cxr_lib.foundations.files import read_json
from cxr_lib.foundations.run import list_runs, run_folder
from cxr_lib.running import command as runner
from cxr_lib.running.pages import EXTERNAL

pytestmark = pytest.mark.timeout(600)
REAL = ROOT.parent / 'shared' / 'data'
SMALL = dict(n_patients=60, image_size=64)
FILES = ('predictions.parquet', 'metrics.json', 'metrics.csv', 'moving.json', 'moving.csv', 'exclusions.csv')


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A project folder with a run of sixty simulated patients"
    from cxr_lib.stages.exploration import exploration_stage
    from cxr_lib.stages.notes import notes_stage
    from cxr_lib.stages.training import training_stage

    folder = tmp_path_factory.mktemp('home')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('CXR_HOME', str(folder))
        run = run_folder('toy')
        exploration_stage(run, **SMALL)
        notes_stage(run, probe_encoder=False)
        training_stage(run, epochs=1, negative_example=False, n_permutations=2)
        yield folder


def evaluated(*args):
    "`cxr evaluate ARGS` in this process: the exit code"
    return runner.main(['evaluate', *map(str, args), '--n-bootstrap', '20'])


def test_a_run_on_its_own_data_gives_the_figures_of_its_test_split(home, capsys):
    options = '{"n_patients": 60, "image_size": 64, "seed": 0}'
    assert evaluated('--run', 'toy', '--dataset', 'simulated', '--options', options) == 0
    said, out = capsys.readouterr().out, home / 'reports' / 'toy-on-simulated'
    assert f'Report: {out / "index.html"}' in said and SIMULATED in said
    ours = pd.read_parquet(home / 'reports' / 'toy' / 'predictions.parquet').query('split == "test"')
    theirs = pd.read_parquet(out / 'predictions.parquet').set_index('image')
    assert set(theirs.index) == set(ours.image)  # whom the model has seen is left out
    for condition in ('fused', 'image_only', 'note_only'):
        columns = [f'{condition}/{o}' for o in OBSERVATIONS]
        np.testing.assert_allclose(theirs.loc[ours.image, columns], ours[columns], atol=1e-5)
    lost = pd.read_csv(out / 'moving.csv').query('condition == "fused" and observation != "Mean"')
    np.testing.assert_allclose(lost.home, lost.there, atol=1e-6)
    stored = read_json(home / 'reports' / 'toy' / 'model' / 'thresholds.json')['youden']
    used = read_json(out / 'metrics.json')['thresholds']['fused']
    for o in OBSERVATIONS:
        assert used[o]['-1'] == (stored[o] if stored[o] is None else pytest.approx(stored[o]))


def test_its_folder_is_a_report_and_no_run(home):
    "Of the evaluation that the test above made"
    folder = home / 'reports' / 'toy-on-simulated'
    assert all((folder / name).is_file() for name in FILES)
    check_metrics(read_json(folder / 'metrics.json'))
    page = (folder / 'index.html').read_text(encoding='utf-8')
    assert SIMULATED in page and not EXTERNAL.search(page) and len(page) < 2_000_000
    assert 'external validation' in page and page.count('data:image/png') > 10
    left_out = pd.read_csv(folder / 'exclusions.csv').reason
    assert set(left_out) == {f'the model of toy was {verb} on this patient' for verb in ('trained', 'tuned')}
    assert [run.name for run in list_runs(home)] == ['toy']


def real_films(folder, n=40):
    "Some real radiographs of NIH, as a data set of its own"
    table = pd.read_csv(REAL / 'nih' / 'Data_Entry_2017.csv', dtype=str).iloc[:n]
    (folder / 'images').mkdir(parents=True)
    for name in table['Image Index']:
        shutil.copy(REAL / 'nih' / 'images' / name, folder / 'images')
    table.to_csv(folder / 'Data_Entry_2017.csv', index=False)
    return folder


@pytest.mark.skipif(not REAL.is_dir(), reason='the shared real images (../shared/data) are not here')
def test_a_simulated_model_on_real_images_says_so_on_top(home, tmp_path, capsys):
    root = real_films(tmp_path / 'nih')
    out = tmp_path / 'result'
    assert evaluated('--run', 'toy', '--dataset', 'nih', '--root', root, '--out', out) == 0
    said = read_json(out / 'moving.json')['verdict']
    assert said[0].startswith('TRAINED ON SIMULATED PATIENTS')
    assert any('There are no notes there' in s for s in said)
    page = (out / 'index.html').read_text(encoding='utf-8')
    assert 'The model was trained on SIMULATED patients; the images here are real.' in page
    observations = read_json(out / 'moving.json')['observations']
    assert observations['Fracture']['annotated'] == 'only the run'
    assert 'only the run' in page


# Requests that are refused, with the remedy


@pytest.mark.parametrize(
    ('args', 'remedy'),
    [
        ('', 'there is nothing to evaluate; give a run'),
        ('p.csv l.csv --run toy --dataset nih', 'not both'),
        ('p.csv', 'two are needed'),
        ('p.csv l.csv --root x', '--root does not go with files'),
        ('--run toy', '--run needs --dataset'),
        ('--run toy --dataset nih', 'needs a root folder'),
        ('--run other --dataset nih --root .', "there is no run 'other'; there are toy"),
        ('--run toy --dataset simulated --split late', "split is 'late'; expected one of train"),
        ('absent.csv l.csv', 'absent.csv does not exist'),
    ],
)
def test_impossible_requests_end_with_2_and_the_remedy(home, args, remedy, capsys):
    assert evaluated(*args.split()) == 2
    assert remedy in capsys.readouterr().err


def test_what_the_model_was_trained_on_is_refused(home, capsys):
    options = '{"n_patients": 60, "image_size": 64, "seed": 0}'
    args = ['--run', 'toy', '--dataset', 'simulated', '--split', 'train', '--options', options]
    assert evaluated(*args) == 2
    assert 'nothing is left to evaluate' in capsys.readouterr().err
    assert not (home / 'reports' / 'toy-on-simulated-train').exists()


# Files of predictions


@pytest.fixture
def files(tmp_path):
    "Predictions as `cxr predict` writes them, another model's, and labels"
    rng, n = np.random.default_rng(0), 60
    images = [f'images/{k:03d}.png' for k in range(n)]
    labels = pd.DataFrame(rng.integers(0, 2, (n, 14)), columns=OBSERVATIONS)
    labels.insert(0, 'image', images)
    labels.insert(1, 'patient_id', [f'p{k // 2}' for k in range(n)])
    labels.to_csv(tmp_path / 'labels.csv', index=False)
    for name, skill in (('ours', 0.4), ('theirs', 0.1)):
        p = (0.3 + skill * labels[list(OBSERVATIONS)] + rng.uniform(0, 0.3, (n, 14))).clip(0, 1)
        more = {f'image_only/{o}': 0.5 for o in OBSERVATIONS} | dict(warnings='', has_note='no')
        table = pd.concat([labels[['image']], p, pd.DataFrame(more, index=p.index)], axis=1)
        table.loc[n - 1, [c for c in table if c != 'image']] = np.nan  # a file that could not be read
        table.to_csv(tmp_path / f'{name}.csv', index=False)
    return tmp_path


def test_files_as_predict_writes_them(home, files):
    args = 'ours.csv labels.csv --against theirs.csv --n-bootstrap 20'.split()
    code, said, error = cxr(files, 'evaluate', *args, env=dict(CXR_HOME=str(home)))
    assert code == 0, error
    out = home / 'reports' / 'ours-on-labels'
    metrics = read_json(out / 'external_metrics.json')
    assert metrics['n_images'] == 59 and metrics['means']['evaluable']['n_observations'] == 14
    assert any('1 rows hold no prediction' in r and '059.png' in r for r in metrics['remarks'])
    comparison = pd.read_csv(out / 'comparison.csv').set_index('observation')
    assert comparison.loc['Mean', 'a_minus_b_low'] > 0
    page = (out / 'index.html').read_text(encoding='utf-8')
    assert 'ours minus theirs' in page and not EXTERNAL.search(page)
    assert 'Mean AUROC over' in said and f'Report: {out / "index.html"}' in said


def test_simulated_files_say_so(files):
    out = files / 'out'
    assert evaluated(files / 'ours.csv', files / 'labels.csv', '--simulated', '--out', out) == 0
    assert SIMULATED in (out / 'index.html').read_text(encoding='utf-8')


def test_a_wrong_cell_is_named(home, files, capsys):
    table = pd.read_csv(files / 'ours.csv').astype({'Edema': object})
    table.loc[3, 'Edema'] = 'high'
    table.to_csv(files / 'wrong.csv', index=False)
    assert evaluated(files / 'wrong.csv', files / 'labels.csv') == 2
    error = capsys.readouterr().err
    assert 'wrong.csv row 3 (image images/003.png)' in error and "Edema is 'high'" in error


def test_a_folder_of_other_things_is_never_replaced(files, capsys):
    out = files / 'mine'
    out.mkdir()
    (out / 'thesis.txt').write_text('years of work')
    assert evaluated(files / 'ours.csv', files / 'labels.csv', '--out', out) == 2
    assert 'thesis.txt, which `cxr evaluate` did not write' in capsys.readouterr().err
    assert (out / 'thesis.txt').read_text() == 'years of work'
