"""The page about grids, job arrays and several machines: its commands as they are printed, as two processes.

Stand-ins on the PATH make them small: `cxr` draws 60 patients, stops after the training and freezes the encoders of
`tiny` where the page says `offline`; `sbatch` starts the tasks of an array beside each other.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from commands import in_process
from conftest import ROOT, Project

from cxr_lib.foundations.run import RunFolder
from cxr_lib.running import sweep_command
from cxr_lib.running.plan import plan_run
from cxr_lib.stages.training import encode_stage
from cxr_lib.training.sweep import open_sweep, trials_table
from cxr_lib.training.tokens import token_caches

pytestmark = [pytest.mark.skipif(os.name == 'nt', reason='scripts of a shell'), pytest.mark.timeout(600)]

CXR = """#!{python}
import sys
from cxr_lib.running.command import main

FROZEN = ['--preset', 'tiny', '-p', 'overrides', 'freeze_image=true freeze_text=true']
words = sys.argv[1:]
if '--preset' in words and words[words.index('--preset') + 1] == 'offline':
    at = words.index('--preset')
    words[at : at + 2] = FROZEN
if '3000' in words:
    words[words.index('3000')] = '60'
elif words[0] == 'run':
    words += ['-p', 'n_patients', '60']
if words[0] in ('run', 'sweep'):
    words += ['-p', 'epochs', '1', '-p', 'negative_example', 'false', '-p', 'probe_encoder', 'false']
if words[0] == 'run' and '--until' not in words:
    words += ['--until', 'training']
if __name__ == '__main__':
    sys.exit(main(words))
"""
SBATCH = """#!{python}
import os, re, subprocess, sys

script = sys.argv[-1]
first, last = map(int, re.search(r'--array=(\\d+)-(\\d+)', open(script).read()).groups())
count = dict(SLURM_ARRAY_TASK_COUNT=str(last - first + 1))
tasks = [
    subprocess.Popen(
        ['bash', script], stdout=subprocess.PIPE, env=os.environ | count | dict(SLURM_ARRAY_TASK_ID=str(i))
    )
    for i in range(first, last + 1)
]
for task in tasks:
    print(task.communicate()[0].decode(), end='')
sys.exit(max(task.returncode for task in tasks))
"""
PAPERMILL = '#!/bin/sh\nexec {python} -m papermill --no-progress-bar "$@" -p negative_example False\n'


def blocks(page):
    "Heading -> the blocks of commands below it"
    text = (ROOT / 'nbs' / 'docs' / f'{page}.md').read_text(encoding='utf-8')
    parts = re.split(r'^## (.+)$', text, flags=re.M)
    return {
        h: re.findall(r'^```\w+\n(.*?)^```$', body, re.M | re.S) for h, body in zip(parts[1::2], parts[2::2])
    }


class Shell:
    "A project folder, and a shell in it"

    def __init__(self, home):
        self.home, bin = home, home / 'bin'
        bin.mkdir()
        (home / 'nbs').symlink_to(ROOT / 'nbs')
        for name, text in dict(cxr=CXR, sbatch=SBATCH, papermill=PAPERMILL).items():
            (bin / name).write_text(text.format(python=sys.executable))
            (bin / name).chmod(0o755)
        self.env = {k: v for k, v in os.environ.items() if k != 'WORLD_SIZE'}
        self.env |= dict(PATH=f'{bin}:{os.environ["PATH"]}', PYTHONPATH=str(ROOT), CXR_HOME=str(home))
        self.env |= dict(OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='', HF_HUB_OFFLINE='1')

    def __call__(self, script):
        done = subprocess.run(
            ['bash', '-ec', script], cwd=self.home, env=self.env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def tokens(self):
        return token_caches(self.home / 'data' / 'cache' / 'tokens')


@pytest.fixture(scope='module')
def shell(tmp_path_factory):
    return Shell(tmp_path_factory.mktemp('cluster'))


# Encoding as a job array


@pytest.fixture(scope='module')
def encoded(shell):
    "The blocks about encoding: (what was printed, token caches before the training, run)"
    script, commands = blocks('clusters')['Encoding as a job array']
    (shell.home / 'encode.slurm').write_text(script)
    *first, last = commands.splitlines()
    said = shell('\n'.join(first))
    parts = shell.tokens()
    for name in ('base', 'rates-data'):  # the same stages, which are found finished
        shutil.copytree(shell.home / 'reports' / 'mine', shell.home / 'reports' / name)
    shell(last)
    return said, parts, RunFolder(shell.home / 'reports' / 'mine')


def test_two_tasks_encode_a_part_each(encoded):
    said, parts, run = encoded
    assert 'All images are decoded.' in said
    assert {*re.findall(r'Part (\d) of 2: (\d+) images and \d+ notes encoded', said)} == {
        ('1', '30'),
        ('2', '30'),
    }
    images = parts[parts.what == 'image']
    assert images.finished.tolist() == [True, True] and images['items'].sum() == 60


def test_the_training_puts_the_parts_together_and_removes_them(encoded, shell):
    assert encoded[2].done('training')
    caches = shell.tokens()
    assert sorted(caches.what) == ['image', 'note'] and caches.finished.all()


def test_the_cache_of_two_processes_is_that_of_one(encoded, shell, tmp_path, monkeypatch):
    monkeypatch.setenv('CXR_HOME', str(shell.home))
    monkeypatch.setattr('cxr_lib.stages.training.token_folder', lambda: tmp_path)
    encode_stage(encoded[2])
    for one in tmp_path.glob('*/tokens.npy'):
        two = shell.home / 'data' / 'cache' / 'tokens' / one.parent.name / 'tokens.npy'
        a, b = (np.load(path).astype(np.float32) for path in (one, two))
        assert a.shape == b.shape and np.abs(a).max() > 0.1
        assert np.allclose(a, b, rtol=2e-3, atol=2e-3)
    assert len(list(tmp_path.glob('*/tokens.npy'))) == 2


# A loop


def test_the_loop_makes_a_run_of_each_value(encoded, shell):
    (loop,) = blocks('clusters')['A loop of the shell']
    first, *rest = loop.replace('5 10', '2').splitlines()
    assert first == 'cxr run --run base --until model' and 'in 2;' in rest[0]  # done by the fixture
    shell('\n'.join(rest))
    run = RunFolder(shell.home / 'reports' / 'epochs2')
    assert run.done('training') and len(pd.read_csv(run / 'training_log.csv')) == 2


# A sweep


@pytest.fixture(scope='module')
def swept(encoded, shell):
    "The blocks about sweeps, whose command is always the same: what each of two tasks printed"
    pytest.importorskip('optuna')
    once, twice = blocks('clusters')['A sweep']
    (array,) = blocks('clusters')['A sweep as a job array']
    assert array.endswith(once)
    assert [line[23:-2] for line in twice.splitlines()[:2]] == [once.strip()] * 2
    (shell.home / 'sweep.slurm').write_text(array)
    said = shell('sbatch sweep.slurm')
    return said[: len(said) // 2], said[len(said) // 2 :]


def test_two_tasks_share_the_trials(swept, shell):
    trials = pd.read_csv(shell.home / 'reports' / 'rates' / 'sweep' / 'trials.csv')
    assert trials.state.tolist() == ['finished'] * 2 and sorted(trials.lr) == [0.001, 0.004]
    assert trials.pid.nunique() == 2
    runs = [RunFolder(shell.home / 'reports' / f'rates-lr={lr}') for lr in (0.001, 0.004)]
    assert all(run.done('training') and not run.done('evaluation') for run in runs)


def test_every_worker_shows_all_results_and_the_choice(swept, shell):
    assert swept[0] == swept[1] and '2 runs, by their tuning split' in swept[0]
    assert 'The test split was not looked at' in swept[0]
    best = json.loads((shell.home / 'reports' / 'rates' / 'sweep' / 'best.json').read_text())
    assert best['command'] in swept[0] and best['selected_on'] == 'tuning'


def test_a_later_worker_finds_nothing_to_do_and_says_the_same(swept, shell, monkeypatch, capsys):
    monkeypatch.setattr(sweep_command, 'run_stages', None)  # would fail if it were called
    call = in_process(shell.home, shell.home, monkeypatch, capsys)
    small = '-p n_patients 60 -p epochs 1 -p negative_example false -p probe_encoder false'
    code, out, _ = call(*f'sweep --run rates --grid lr=1e-3,4e-3 --preset tiny {small}'.split())
    assert code == 0 and out == swept[0]


def test_scores_are_those_of_the_tuning_split(swept, shell):
    from cxr_lib.foundations.core import OBSERVATIONS
    from cxr_lib.training.dataset import mean_auroc

    for _, trial in pd.read_csv(shell.home / 'reports' / 'rates' / 'sweep' / 'trials.csv').iterrows():
        table = pd.read_parquet(shell.home / 'reports' / f'rates-lr={trial.lr}' / 'predictions.parquet')
        table = table[table['split'] == 'tuning']
        labels, answers = (
            table[[f'{k}/{o}' for o in OBSERVATIONS]].to_numpy(float) for k in ('label', 'fused')
        )
        assert trial.score == pytest.approx(mean_auroc(labels, answers), abs=1e-4)


def test_another_sweep_of_the_same_name_is_refused(swept, shell, monkeypatch, capsys):
    call = in_process(shell.home, shell.home, monkeypatch, capsys)
    code, _, err = call(*'sweep --run rates --grid lr=1e-3,2e-3 --preset tiny -p n_patients 60'.split())
    assert code == 2 and 'was begun with other settings: ' in err


# A sweep of toy notebooks: what fails, what is done again


WORK = """from pathlib import Path
folder.path.joinpath('training_log.csv').write_text(f'model,tuning_auroc\\nmultimodal,{0.5 + seed / 10}\\n')
if seed == 1 and not Path('mended').exists():
    raise OSError('the disk is full')"""


def test_a_failed_trial_is_named_and_done_again(tmp_path, monkeypatch, capsys):
    pytest.importorskip('optuna')
    project = Project(tmp_path / 'toy')
    project.write('training', WORK)
    call = in_process(project.home, project.home, monkeypatch, capsys)
    command = 'sweep --run toy --grid seed=0,1'.split()
    code, out, err = call(*command)
    assert code == 3 and 'toy-seed=1 failed' in err and 'the disk is full' in err
    assert '1 runs, by their tuning split' in out
    assert call(*command)[0] == 3  # a failed trial counts
    for place in (project.home, project.home / 'nbs'):
        (place / 'mended').touch()
    code, out, err = call(*command, '--again')
    assert code == 0 and '2 runs, by their tuning split' in out and '0.5500' in out, err
    calls = (project.home / 'reports' / 'toy-data' / 'calls.txt').read_text().split()
    assert calls == ['exploration', 'notes']  # once, for both trials


WAIT = """import time
from pathlib import Path
while not Path('mended').exists():
    time.sleep(0.05)
folder.path.joinpath('training_log.csv').write_text('model,tuning_auroc\\nmultimodal,0.7\\n')"""


def test_a_worker_that_is_told_to_stop_gives_its_trial_back(tmp_path, monkeypatch, capsys):
    pytest.importorskip('optuna')
    project = Project(tmp_path / 'toy')
    project.write('training', WAIT)
    command = 'sweep --run toy --grid seed=0'.split()
    worker = project.start(*command)
    for line in worker.stderr:
        if '04_training ...' in line:
            break
    worker.send_signal(signal.SIGTERM)
    worker.communicate()
    folder = project.home / 'reports' / 'toy' / 'sweep'
    assert worker.returncode == 143 and trials_table(open_sweep(folder)).state.tolist() == ['killed']
    for place in (project.home, project.home / 'nbs'):
        (place / 'mended').touch()
    code, out, err = in_process(project.home, project.home, monkeypatch, capsys)(*command)
    assert code == 0 and '0.7000' in out, err


@pytest.fixture
def quick(tmp_path, monkeypatch, capsys):
    "`cxr` in an empty folder, with trials that train nothing: the nearer lr is to 0.004, the better"
    pytest.importorskip('optuna')

    def trial(self, settings, report):
        return dict(score=0.9 - abs(settings['lr'] - 0.004) - 0.1 * settings.get('dropout', 0), epochs=1)

    monkeypatch.setattr(sweep_command.RunTrial, '__call__', trial)
    monkeypatch.setattr(sweep_command, 'shared_stages', lambda sweep, folder: folder)
    return in_process(tmp_path, tmp_path, monkeypatch, capsys)


def test_a_search_tries_as_many_points_as_it_is_given(quick, tmp_path):
    grid = '--grid lr=0.001,0.002,0.004,0.008 --grid dropout=0.1,0.2,0.3 --trials 5'.split()
    code, out, err = quick('sweep', '--run', 'few', *grid)
    assert code == 0 and '5 runs, by their tuning split' in out, err
    trials = pd.read_csv(tmp_path / 'reports' / 'few' / 'sweep' / 'trials.csv')
    assert len(trials) == 5 and not trials[['lr', 'dropout']].duplicated().any()
    best = json.loads((tmp_path / 'reports' / 'few' / 'sweep' / 'best.json').read_text())
    assert best['score'] == trials.score.max() and best['n_settings'] == 5


def test_the_command_of_the_winner_can_be_given(quick, tmp_path):
    code, out, _ = quick(*'sweep --run all --grid lr=0.001,0.004 -p n_patients 60'.split())
    assert code == 0 and 'Best: lr=0.004' in out
    command = next(line for line in out.splitlines() if line.strip().startswith('cxr run'))
    words = shlex.split(command)[2:]
    given = {words[i + 1]: words[i + 2] for i, word in enumerate(words) if word == '-p'}
    plan = plan_run(given, words[words.index('--run') + 1], tmp_path)
    assert plan.folder.name == 'all-best' and plan.passed['training']['folds'] == 0
    assert json.loads(plan.passed['model']['overrides']) == dict(lr=0.004, note_lr=0.002)


@pytest.mark.parametrize(
    'words, why',
    [
        ('', 'there is nothing to vary'),
        ('--grid lr', 'expected a name and its values'),
        ('--grid lr=0.1 --grid lr=0.2', 'names lr twice'),
        ('--grid world=plain,realistic', 'world cannot differ between trials'),
        ('--grid label_policy=ones,zeros', 'label_policy cannot differ between trials'),
        ('--grid learning_rate=0.1', "unknown setting of --grid 'learning_rate'"),
        ('--grid lr=0.001,fast', 'lr is'),
        ('--grid lr=0.001 --trials 0', '--trials is 0'),
        ('--grid seed=0,1 --trials 2', 'luckiest seed'),
        ('--grid lr=0.001 -p folds 5', 'one tuning split'),
        ('--grid lr=0.001 -p overrides lr=0.1', 'leave one out'),
        ('--grid lr=0.001 --run a/b', 'is no path'),
        ('--grid lr=0.001 -p n_patient 60', "did you mean 'n_patients'"),
        ('--grid lr=0.001 --again --dataset nih', 'has to be given its folder'),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_before_anything_is_made(quick, tmp_path, words, why):
    code, out, err = quick('sweep', *words.split())
    assert code == 2 and why in err and not out
    assert not (tmp_path / 'reports').exists()


def test_a_sweep_is_no_distributed_program(quick, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    code, _, err = quick('sweep', '--grid', 'lr=0.001')
    assert code == 2 and 'plain processes' in err
