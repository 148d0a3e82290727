"""The worked examples of nbs/docs are run as they are printed."""

import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from conftest import KERNEL, ROOT, STAGES, stage_notebook
from finished_run import finished_run

BLOCK = re.compile(r'^```python\n(.*?)^```$', re.M | re.S)


def blocks(page):
    "The code of every block of Python on a page"
    return BLOCK.findall((ROOT / 'nbs' / 'docs' / f'{page}.md').read_text(encoding='utf-8'))


def make_home(folder):
    "An empty project folder"
    (folder / 'settings.ini').write_text('[DEFAULT]\nlib_name = cxr_lib\n')
    return folder


def python(home, *command, **more):
    "Run Python in a project folder, with the library of this checkout or another one"
    own = dict(CXR_HOME=str(home), PYTHONPATH=str(more.get('library', ROOT)), OMP_NUM_THREADS='1')
    options = dict(cwd=home, env=os.environ | own, capture_output=True, text=True)
    return subprocess.run([sys.executable, *map(str, command)], **options)


@pytest.mark.parametrize('page', ['add_source', 'add_encoder'])
def test_the_code_of_a_page_runs_from_an_empty_folder(page, tmp_path):
    found = blocks(page)
    assert len(found) > 3
    program = tmp_path / 'page.py'
    program.write_text('\n'.join(found))
    done = python(make_home(tmp_path), program)
    assert done.returncode == 0, done.stderr[-3000:]


def page_notebook():
    "The notebook that the page about stages describes; its first cell holds the parameters"
    cells = [nbformat.v4.new_code_cell(code) for code in blocks('add_stage')]
    cells[0].metadata.tags = ['parameters']
    return nbformat.v4.new_notebook(cells=cells, metadata=dict(kernelspec=KERNEL))


@pytest.fixture(scope='module')
def sure(tmp_path_factory):
    "A project with a finished run and the notebook"
    home = make_home(tmp_path_factory.mktemp('home'))
    finished_run(home, 'mine')
    nbformat.write(page_notebook(), home / '11_sure.ipynb')
    return home


def papermill(home, *parameters):
    return python(home, '-m', 'papermill', '11_sure.ipynb', 'out.ipynb', '--log-output', *parameters)


def test_the_notebook_of_the_page_runs_and_writes_its_table(sure):
    done = papermill(sure, '-p', 'run', 'mine', '-p', 'limit', '0.8')
    assert done.returncode == 0, done.stderr[-3000:]
    rows = (sure / 'reports' / 'mine' / 'sure.csv').read_text().splitlines()
    assert rows[0] == 'observation,sure' and len(rows) == 15


def test_it_refuses_a_parameter_that_it_does_not_have(sure):
    done = papermill(sure, '-p', 'run', 'mine', '-p', 'limits', '0.8')
    assert done.returncode and "unknown parameter 'limits'; did you mean 'limit'?" in done.stderr


def test_papermill_shows_types_defaults_and_comments(sure):
    done = python(sure, '-m', 'papermill', '--help-notebook', '11_sure.ipynb')
    assert re.search(r'limit: float \(default 0\.9\)\s+a probability above it', done.stdout), done.stdout


def test_a_name_before_the_last_stage_makes_a_stage_of_cxr_run(tmp_path):
    library, home = tmp_path / 'library', make_home(tmp_path)
    shutil.copytree(ROOT / 'cxr_lib', library / 'cxr_lib', ignore=shutil.ignore_patterns('__pycache__'))
    run = library / 'cxr_lib' / 'foundations' / 'run.py'
    before = run.read_text(encoding='utf-8')
    after, n = re.subn(rf"(?m)^(STAGES = \(.*)'{STAGES[-1]}'", rf"\1'sure', '{STAGES[-1]}'", before)
    assert n == 1
    run.write_text(after, encoding='utf-8')
    (home / 'nbs').mkdir()
    for number, stage in enumerate([*STAGES[:-1], 'sure', STAGES[-1]], 1):
        notebook = stage_notebook('training' if stage == 'sure' else stage)
        if stage == 'sure':
            for cell in notebook.cells:
                cell.source = cell.source.replace("stage = 'training'", "stage = 'sure'")
                cell.source = re.sub(r'(?m)^(preset|epochs|negative_example) = .*\n?', '', cell.source)
        nbformat.write(notebook, home / 'nbs' / f'{number:02d}_{stage}.ipynb')
    command = ('-m', 'cxr_lib.running.command', 'run')
    first, again = python(home, *command, library=library), python(home, *command, library=library)
    assert first.returncode == again.returncode == 0, first.stderr[-3000:] + again.stderr[-3000:]
    calls = (home / 'reports' / 'simulated' / 'calls.txt').read_text().split()
    assert calls == [*STAGES[:-1], 'sure', STAGES[-1]]
