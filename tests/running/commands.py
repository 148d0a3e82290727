"""Run the README's commands as a user types them, in a folder that is no checkout."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from cxr_lib.running.command import main
from cxr_lib.running.pages import EXTERNAL

MINUTES = [pytest.mark.skipif(os.name == 'nt', reason='signals'), pytest.mark.timeout(2400)]
SMALL = '-p epochs 1 -p folds 2 -p n_bootstrap 20 -p negative_example false -p probe_encoder false'.split()
SMALL += ['-p', 'n_explained', '8']


# The commands, in a folder that is no checkout


def started(home, *command, **more):
    "Start a command in the project folder"
    env = (
        {k: v for k, v in os.environ.items() if k not in ('CXR_HOME', 'COLUMNS')}
        | {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1'}
        | more.pop('env', {})
    )
    return subprocess.Popen(
        [sys.executable, '-m', *map(str, command)],
        cwd=home,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def cxr(home, *args, **more):
    "`cxr ARGS`: exit code, standard output, standard error"
    process = started(home, 'cxr_lib.running.command', *args, **more)
    out, err = process.communicate()
    return process.returncode, out, err


def in_process(home, folder, monkeypatch, capsys):
    "`call(ARGS)` in this process, which has loaded everything: exit code, standard output, standard error"
    monkeypatch.setenv('CXR_HOME', str(home))
    monkeypatch.setenv('COLUMNS', '200')
    monkeypatch.chdir(folder)

    def call(*args):
        try:
            code = main([str(a) for a in args])
        except SystemExit as e:
            code = e.code
        return (code, *capsys.readouterr())

    return call


def papermill(home, notebook, *args):
    "`papermill nbs/NOTEBOOK out.ipynb ARGS`: exit code, what the cells printed, standard error"
    out = home / f'out-{Path(notebook).name}'
    process = started(home, 'papermill', ROOT / 'nbs' / notebook, out, '--no-progress-bar', *args)
    _, err = process.communicate()
    cells = json.loads(out.read_text(encoding='utf-8'))['cells'] if out.exists() else []
    printed = ''.join(
        ''.join(o.get('text', []))
        for c in cells
        for o in c.get('outputs', [])
        if o['output_type'] == 'stream'
    )
    return process.returncode, printed, err


def page_of(home, run, out):
    "The front page, which needs no network and misses nothing"
    index = home / 'reports' / run / 'index.html'
    assert f'Report: {index}' in out
    text = index.read_text(encoding='utf-8')
    assert not EXTERNAL.search(text)
    assert 'What out' not in text
    assert 'could not be shown' not in text
    assert 'is not finished' not in text
    assert 'What came out' in text
    assert 'AUROC by observation' in text
    assert text.count('data:image/webp') > 8
    return text
