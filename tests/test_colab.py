"""Every chapter opens in Colab on its own: its first cell installs the library and keeps Colab's torch.

Elsewhere that cell does nothing.
"""

import io
import re
import subprocess
import sys
import urllib.request

import nbformat
import pytest
from conftest import ROOT

CHAPTERS = sorted(
    p for p in (ROOT / 'nbs').rglob('*.ipynb') if p.stem != 'index' and '.ipynb_checkpoints' not in p.parts
)


def first_cell(path):
    cell = nbformat.read(path, as_version=4).cells[0]
    assert cell.cell_type == 'code', f'{path.name} does not begin with code'
    return cell.source


def test_there_are_chapters():
    assert len(CHAPTERS) >= 10


@pytest.mark.parametrize('path', CHAPTERS, ids=lambda p: p.stem)
def test_a_chapter_begins_with_the_colab_cell(path):
    source = first_cell(path)
    assert source.startswith('#| eval: false\n# Colab only')
    assert "if 'COLAB_RELEASE_TAG' in os.environ:" in source
    assert source == first_cell(CHAPTERS[0])  # one cell, the same everywhere


@pytest.mark.parametrize('path', CHAPTERS, ids=lambda p: p.stem)
def test_elsewhere_the_cell_does_nothing(path, tmp_path, monkeypatch):
    def called(*args, **kwargs):
        raise AssertionError('something was started')

    monkeypatch.delenv('COLAB_RELEASE_TAG', raising=False)
    monkeypatch.setattr(subprocess, 'run', called)
    monkeypatch.chdir(tmp_path)
    exec(first_cell(path), {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('path', CHAPTERS, ids=lambda p: p.stem)
def test_in_colab_the_cell_installs_the_library_and_keeps_the_present_torch(path, tmp_path, monkeypatch):
    import cxr_lib  # noqa: F401  torchvision may need the remedy of cxr_lib.foundations.compat
    import torch
    import torchvision

    started = []
    script = re.search(r"https://raw\.githubusercontent\.com/[\w-]+/\w+/main/(\S+)'", first_cell(path))[1]
    monkeypatch.setattr(urllib.request, 'urlopen', lambda url: io.BytesIO((ROOT / script).read_bytes()))
    monkeypatch.setenv('COLAB_RELEASE_TAG', 'release-colab')
    monkeypatch.setattr(subprocess, 'run', lambda command, **options: started.append((command, options)))
    monkeypatch.chdir(tmp_path)
    exec(first_cell(path), {})
    ((command, options),) = started
    assert command[:4] == [sys.executable, '-m', 'pip', 'install'] and options.get('check') is True
    assert (
        any(part.startswith('cxr_lib[offline] @ git+https://') for part in command)
        and '--force-reinstall' not in command
        and '-U' not in command
    )
    constraints = (tmp_path / command[command.index('-c') + 1]).read_text().split()
    assert constraints == [f'torch=={torch.__version__}', f'torchvision=={torchvision.__version__}']
