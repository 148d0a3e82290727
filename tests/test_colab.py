"""Every notebook opens in Colab by itself: its first cell installs the library and keeps Colab's torch."""

import io
import json
import re
import subprocess
import sys
import urllib.request

from conftest import NOTEBOOKS, ROOT


def first_cell(path):
    cell = json.loads(path.read_text(encoding='utf-8'))['cells'][0]
    return ''.join(cell['source']) if cell['cell_type'] == 'code' else ''


CELL = first_cell(ROOT / 'nbs' / '01_exploration.ipynb')


def test_every_notebook_begins_with_the_same_cell():
    without = [p.name for p in NOTEBOOKS if first_cell(p) != CELL]
    assert without == ['index.ipynb']


def test_the_cell_runs_in_colab_only():
    assert CELL.startswith('#| eval: false\n# Colab only')
    assert "if 'COLAB_RELEASE_TAG' in os.environ:" in CELL
    assert len(CELL.splitlines()) < 10


def test_elsewhere_the_cell_does_nothing(tmp_path, monkeypatch):
    def called(*args, **kwargs):
        raise AssertionError('something was started')

    monkeypatch.delenv('COLAB_RELEASE_TAG', raising=False)
    monkeypatch.setattr(subprocess, 'run', called)
    monkeypatch.setattr(urllib.request, 'urlopen', called)
    monkeypatch.chdir(tmp_path)
    exec(CELL, {})
    assert list(tmp_path.iterdir()) == []


def test_in_colab_the_cell_installs_the_library_and_keeps_the_present_torch(tmp_path, monkeypatch):
    import cxr_lib  # noqa: F401  torchvision may need the remedy of cxr_lib.foundations.compat
    import torch
    import torchvision

    started = []
    script = re.search(r"https://raw\.githubusercontent\.com/[\w-]+/\w+/main/(\S+)'", CELL)[1]
    monkeypatch.setattr(urllib.request, 'urlopen', lambda url: io.BytesIO((ROOT / script).read_bytes()))
    monkeypatch.setenv('COLAB_RELEASE_TAG', 'release-colab')
    monkeypatch.setattr(subprocess, 'run', lambda command, **options: started.append((command, options)))
    monkeypatch.chdir(tmp_path)
    exec(CELL, {})
    ((command, options),) = started
    assert command[:4] == [sys.executable, '-m', 'pip', 'install'] and options.get('check') is True
    assert any(part.startswith('cxr_lib[offline] @ git+https://') for part in command)
    assert '--force-reinstall' not in command and '-U' not in command
    constraints = (tmp_path / command[command.index('-c') + 1]).read_text().split()
    assert constraints == [f'torch=={torch.__version__}', f'torchvision=={torchvision.__version__}']
