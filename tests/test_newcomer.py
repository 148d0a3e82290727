"""A newcomer's path (nbs/docs/newcomer.md): written down in order, and its first steps walked in JupyterLab."""

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time

import pytest
from conftest import ROOT

STEPS = [
    '01_exploration',
    '02_notes',
    '03_model',
    '04_training',
    '05_evaluation',
    '06_explanation',
    '07_reasoning',
    '08_demo',
]
#: A run of seconds, in place of the small one of a few minutes.
TINY = {'n_patients': 60, 'image_size': 64}
IDLE = '.jp-Notebook-ExecutionIndicator[data-status="idle"]'


def test_the_path_names_the_notebooks_in_order_and_a_chapter_for_every_stage():
    text = (ROOT / 'nbs' / 'docs' / 'newcomer.md').read_text(encoding='utf-8')
    assert re.findall(r'^\d+\. \*\*\[(\w+)\]', text, re.M) == STEPS
    steps = re.split(r'^\d+\. ', text, flags=re.M)
    stages = [step for step in steps if re.match(r'\*\*\[0[1-7]_', step)]
    assert all('](../chapters/' in step for step in stages) and len(stages) == len(STEPS) - 1


@pytest.mark.parametrize('step', STEPS)
def test_every_parameter_of_a_notebook_says_what_it_means(step):
    from cxr_lib.running.plan import read_parameters

    found = read_parameters(ROOT / 'nbs' / f'{step}.ipynb', step)
    assert [p.name for p in found if not p.comment] == []


@pytest.fixture
def tab():
    "A page of a browser that is installed on this machine"
    playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    names = ('chromium', 'chromium-browser', 'google-chrome')
    browser = next(filter(None, map(shutil.which, names)), None)
    if not browser:
        pytest.skip('no Chromium on this machine')
    with playwright.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=browser, args=['--no-sandbox'])
        yield opened.new_page(viewport=dict(width=1400, height=1000))
        opened.close()


def make_project(home):
    "The notebooks in a project folder of their own, the first with the parameters of a tiny run"
    shutil.copytree(ROOT / 'nbs', home / 'nbs', ignore=shutil.ignore_patterns('.*'))
    notebook = home / 'nbs' / '01_exploration.ipynb'
    content = json.loads(notebook.read_text(encoding='utf-8'))
    for cell in content['cells']:
        if 'parameters' in cell['metadata'].get('tags', ()):
            source = ''.join(cell['source'])
            for name, value in TINY.items():
                source = re.sub(rf'(?m)^({name}: int) = \d+', rf'\1 = {value}', source)
            cell['source'] = source
    notebook.write_text(json.dumps(content), encoding='utf-8')
    return home


def wait_for_server(process, runtime, seconds=60):
    "The address that JupyterLab has written down"
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        for file in runtime.glob('jpserver-*.json'):
            return json.loads(file.read_text())['url']
        time.sleep(0.2)
    raise AssertionError('JupyterLab did not start:\n' + (runtime.parent / 'lab.log').read_text())


@pytest.fixture
def lab(tmp_path):
    "JupyterLab on a project of its own, as newcomer.md starts it: (address, token, home)"
    home, token, runtime = make_project(tmp_path / 'project'), secrets.token_hex(), tmp_path / 'runtime'
    own = {f'JUPYTER_{name.upper()}_DIR': str(tmp_path / name) for name in ('config', 'data', 'runtime')}
    own |= dict(CXR_HOME=str(home), PYTHONPATH=str(ROOT), JUPYTER_TOKEN=token, OMP_NUM_THREADS='1')
    command = [sys.executable, '-m', 'jupyterlab', 'nbs/index.ipynb', '--no-browser', '--allow-root']
    settings = ['--ServerApp.port=0', f'--LabApp.user_settings_dir={tmp_path / "settings"}']
    settings += [f'--LabApp.workspaces_dir={tmp_path / "workspaces"}']
    with open(tmp_path / 'lab.log', 'wb') as log:
        options = dict(cwd=home, env=os.environ | own, stdout=log, stderr=log)
        process = subprocess.Popen([*command, *settings], **options)
        try:
            yield wait_for_server(process, runtime), token, home
        finally:
            process.terminate()
            process.wait(30)


@pytest.mark.timeout(420)
def test_a_newcomer_opens_the_index_and_runs_the_exploration(tab, lab):
    address, token, home = lab
    tab.goto(f'{address}lab/tree/index.ipynb?token={token}', timeout=60_000)
    tab.locator('.jp-NotebookPanel a', has_text='01_exploration').first.click(timeout=60_000)
    notebook = tab.locator('.jp-NotebookPanel:not(.lm-mod-hidden)')
    notebook.get_by_role('heading', name='Exploration').wait_for(timeout=30_000)
    notebook.locator(IDLE).last.wait_for(state='attached', timeout=60_000)

    run_all(tab)
    saved, picture = home / 'nbs' / '01_exploration.ipynb', home / 'reports' / 'small' / 'source_leakage.png'
    if not waited_for(lambda: save(tab) or started(saved), seconds=60):
        run_all(tab)  # JupyterLab loses the order to run where the kernel was not ready for it
    assert waited_for(lambda: save(tab) or executed(saved), seconds=240), notebook.inner_text()[-4000:]
    assert picture.exists()
    outputs = [output for cell in code_cells(saved) for output in cell['outputs']]
    assert [output for output in outputs if output['output_type'] == 'error'] == []
    assert any('SIMULATED' in str(output) for output in outputs)


def run_all(tab):
    "The menu's order to run every cell of the notebook in front"
    tab.get_by_role('menuitem', name='Run', exact=True).click()
    tab.get_by_text('Run All Cells', exact=True).click()


def save(tab):
    tab.keyboard.press('Control+s')


def code_cells(notebook):
    "The code cells of a saved notebook; none while JupyterLab is writing it"
    text = notebook.read_text(encoding='utf-8')
    cells = json.loads(text)['cells'] if text.endswith('}\n') else []
    return [cell for cell in cells if cell['cell_type'] == 'code']


def started(notebook):
    "Has a code cell run?"
    return any(cell['execution_count'] for cell in code_cells(notebook))


def executed(notebook):
    "Has every code cell run, or one failed?"
    cells = code_cells(notebook)
    failed = any(output['output_type'] == 'error' for cell in cells for output in cell['outputs'])
    return failed or bool(cells) and all(cell['execution_count'] for cell in cells)


def waited_for(true, seconds):
    "Whether what another process does has happened in time"
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(1)
    return True
