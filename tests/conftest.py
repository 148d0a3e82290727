"""Shared by the tests: toy projects whose stage notebooks take a second."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
#: All notebooks, without the copies that JupyterLab keeps.
NOTEBOOKS = sorted(p for p in (ROOT / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
STAGES = ('exploration', 'notes', 'model', 'training', 'evaluation', 'explanation', 'reasoning')


def pytest_collection_modifyitems(items):
    "Whole commands first: what takes minutes must not be left to one core at the end"
    items.sort(key=lambda item: ROOT / 'tests' / 'running' not in item.path.parents)


def printed_elsewhere(code: str, *arguments: str, hashseed: str = '0') -> str:
    "What a program prints in a process of its own, where strings hash differently"
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'PYTHONHASHSEED': hashseed}
    options = dict(cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return subprocess.run([sys.executable, '-c', code, *arguments], **options).stdout


PARAMETERS = {
    'exploration': (
        "dataset = 'simulated'   # source of the studies\n"
        "root = ''   # its folder\n"
        "n_patients = 24   # how many"
    ),
    'notes': "note_dropout = 0.1   # share of notes dropped",
    'model': "preset = 'tiny'   # size",
    'training': (
        "preset = 'tiny'   # size\n"
        "epochs = 0   # 0: the preset's\n"
        "negative_example = True   # train on leaking notes too"
    ),
    'evaluation': "n_bootstrap = 20   # resamples\nexternal = ''   # another model's file",
    'explanation': "explain = 'candidates'   # which heat maps are tested",
    'reasoning': "n_cases = 20   # that a reader sees",
}

#: Each stage adds to what the stages before it left: the result shows order and seed, but not how often it ran.
WORK = '''import json
before = sorted((Path(folder.path)/f'{s}.json').read_text() for s in STAGES[:STAGES.index(stage)])
time.sleep(pause)
with atomic_path(folder/f'{stage}.json') as tmp: tmp.write_text(json.dumps([stage, seed, before]))
with open(folder/'calls.txt', 'a') as f: print(stage, file=f)
print('worked on', stage)'''


#: The parameters that all stages share.
COMMON = "run = 'steps'   # name of the run\nseed = 0   # random seed\npause = 0.0   # seconds\n"
BEGIN = '''import time
from pathlib import Path
from cxr_lib.foundations.files import atomic_path
from cxr_lib.foundations.run import STAGES, run_folder
stage = {stage!r}
folder = run_folder(run)
folder.begin(stage)'''
KERNEL = dict(name='python3', display_name='python3', language='python')


def stage_notebook(stage: str, work: str = WORK, finish: bool = True) -> nbformat.NotebookNode:
    "A notebook with the contract of a stage"
    code = nbformat.v4.new_code_cell
    cells = [
        nbformat.v4.new_markdown_cell(f'# The {stage} stage\n\n> Does nothing much.'),
        code(COMMON + PARAMETERS[stage], metadata=dict(tags=['parameters'])),
        code(BEGIN.format(stage=stage)),
        code(work),
    ]
    if finish:
        cells.append(code('folder.finish(stage, dict(seed=seed))'))
    return nbformat.v4.new_notebook(cells=cells, metadata=dict(kernelspec=KERNEL))


class Project:
    "A project folder of toy notebooks, and the command line in it"

    def __init__(self, home: Path):
        self.home = home
        (home / 'nbs').mkdir(parents=True)
        (home / 'settings.ini').write_text('[DEFAULT]\nlib_name = cxr_lib\n')
        for stage in STAGES:
            self.write(stage)

    @property
    def reports(self):
        return self.home / 'reports' / 'simulated'

    def notebook(self, stage):
        return self.home / 'nbs' / f'{STAGES.index(stage) + 1:02d}_{stage}.ipynb'

    def write(self, stage, work=WORK, finish=True):
        nbformat.write(stage_notebook(stage, work, finish), self.notebook(stage))

    def calls(self):
        calls = self.reports / 'calls.txt'
        return calls.read_text().split() if calls.exists() else []

    def start(self, *args, **more):
        "Start the command line in the project"
        env = {k: v for k, v in os.environ.items() if k not in ('CXR_HOME', 'COLUMNS')}
        env['PYTHONPATH'] = str(ROOT)
        # a test run in the background ignores Ctrl-C, and its children would too
        heed = None if os.name == 'nt' else lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
        return subprocess.Popen(
            [sys.executable, '-m', 'cxr_lib.running.command', *map(str, args)],
            cwd=self.home,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=heed,
            **more,
        )

    def cxr(self, *args):
        "Run the command line in the project: exit code, standard output, standard error"
        process = self.start(*args)
        out, err = process.communicate(timeout=600)
        return process.returncode, out, err


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path / 'toy')
