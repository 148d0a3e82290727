"""The README's commands on simulated patients, to the page of results or the error that says why."""

import json
import re
import signal
from pathlib import Path

import pytest
from commands import MINUTES, SMALL, cxr, page_of, papermill, started

pytestmark = MINUTES


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    return tmp_path_factory.mktemp('an empty folder')


# Whole runs


@pytest.fixture(scope='module')
def mine(home):
    "`cxr run --run mine` on simulated patients: killed in training, rerun to a log of a code page without dashes"
    command = (
        'run --run mine -p n_patients 60 -p seed 1 -p epochs 60 -p n_bootstrap 20 -p n_explained 20 '
        '-p negative_example false -p probe_encoder false'
    ).split()
    process = started(home, 'cxr_lib.running.command', *command)
    first = []
    for line in process.stderr:
        first.append(line)
        if re.search('epoch 3 of 60: loss|epoch 3 of 60, loss', line):
            break
    process.send_signal(signal.SIGTERM)
    first.append(process.stderr.read())
    process.communicate()
    assert process.returncode == 143, ''.join(first)
    code, out, err = cxr(home, *command, env={'PYTHONIOENCODING': 'cp932'})
    assert code == 0, err
    return ''.join(first), out, err


def test_a_simulated_run_ends_with_results_and_a_page(mine, home):
    _, out, _ = mine
    assert 'SIMULATED' in page_of(home, 'mine', out)
    assert 'AUROC by observation' in out
    assert json.loads((home / 'reports' / 'mine' / 'metrics.json').read_text())['n_bootstrap'] == 20


def test_a_quick_run_has_a_name_of_its_own_and_says_what_is_small_about_it(home):
    code, out, err = cxr(home, *'run --quick -p n_patients 60 -p epochs 1 -p n_bootstrap 20 -p n_explained 8'.split())
    assert code == 0, err
    said = 'A QUICK RUN: 60 images of 60 patients (at most 1,000 images), 1 epoch of training, 20 resamples.'
    assert said in out
    assert 'A QUICK RUN' in page_of(home, 'simulated-quick', out)


def test_the_log_shows_epochs_with_loss_auroc_and_time_left(mine):
    first, _, again = mine
    lines = first.splitlines()
    epochs = [
        line
        for line in lines
        if re.search(
            r'04_training: epoch \d+ of 60, loss \d\.\d{3}, tuning AUROC (\d\.\d{3}|undefined), '
            r'about \d+ (s|min) left$',
            line,
        )
    ]
    assert len(epochs) >= 3, first
    assert any('GB of memory at the peak of a step' in line and line.endswith(')') for line in lines), (
        first
    )  # whole, not cut off
    for line in [*lines, *again.splitlines()]:
        assert not re.search(r'\w+\(.*=|import |^\s*\|', line.split('GB of memory')[0]), (
            line
        )  # no source line
    assert '\r' not in first + again


def test_a_killed_training_says_after_which_epoch_it_resumes(mine):
    first, _, again = mine
    resumed = re.search(r'04_training: resuming after epoch (\d+) of 60 epochs', again)
    assert resumed and int(resumed[1]) >= 2, again
    seen = [int(n) for n in re.findall(r'04_training: epoch (\d+) of 60', again)]
    assert seen == list(range(int(resumed[1]) + 1, 61))  # goes on, and repeats no epoch
    assert '01_exploration: finished before, not run again' in again


def test_label_leak_all_the_way_through(home, mine):
    command = 'run --run leak -p note_mode label_leak -p n_patients 60'.split()
    code, out, err = cxr(home, *command, *SMALL[:2], '1', *SMALL[6:])
    assert code == 0, err
    page_of(home, 'leak', out)


# Notebooks by themselves


def test_evaluation_by_itself(home, mine):
    code, printed, err = papermill(
        home, '05_evaluation.ipynb', '-p', 'run', 'mine', '-p', 'n_bootstrap', '20'
    )
    assert code == 0 and re.search(r'Run: mine \(mean AUROC (undefined|\d\.\d\d \[)', printed), err


def test_a_run_that_is_not_there_is_not_made_by_a_notebook(home, mine, tmp_path):
    code, _, err = papermill(home, '05_evaluation.ipynb', '-p', 'run', 'minne')
    assert code == 1
    assert "there is no run 'minne'" in err
    assert 'mine (mean AUROC' in err
    assert not (home / 'reports' / 'minne').exists()
    code, _, err = papermill(tmp_path, '04_training.ipynb', '-p', 'run', 'mine')
    assert code == 1
    assert 'There are no runs yet' in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ['out-04_training.ipynb']  # no ./data, no ./reports


def test_a_search_for_settings_by_itself(home, mine):
    pytest.importorskip('optuna')
    given = '-p run mine -p n_trials 2 -p epochs 1'.split()
    code, _, err = papermill(home, '10_search.ipynb', '-p', 'what', 'settings', *given)
    assert code == 0, err
    assert (home / 'reports' / 'mine' / 'sweep' / 'best.json').exists()


# The short commands


def test_the_short_commands(home, mine):
    code, out, err = cxr(home, 'demo', '--print')
    assert code == 0
    assert 'jupyterlab' in out
    assert '08_demo.ipynb' in out
    code, out, err = cxr(home, 'download')
    assert code == 0
    assert 'openi' in out
    code, out, err = cxr(home, 'where', 'mine')
    assert code == 0
    assert Path(out.strip()) == home / 'reports' / 'mine' / 'index.html'
    code, out, err = cxr(home, 'params', env={'PYTHONIOENCODING': 'ascii'})
    assert code == 0 and 'n_bootstrap          1000' in out, err


def test_a_root_without_its_data_set_is_refused(home, tmp_path):
    for args in (
        ['--root', tmp_path],
        ['-p', 'root', tmp_path],
        ['--dataset', 'simulated', '--root', tmp_path],
    ):
        code, out, err = cxr(home, 'run', '--run', 'never', *args)
        assert code == 2
        assert 'name it with --dataset, one of nih, covid, chexpert' in err
        assert 'Traceback' not in err
    assert not (home / 'reports' / 'never').exists()
