"""The demo in a browser: in JupyterLab and as a page of Voilà.

Skips without Chromium, Playwright or Voilà. CXR_SCREENSHOTS names a folder that keeps pictures of both pages.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from accessibility import serious_findings
from conftest import ROOT
from PIL import Image
from toy import environment, toy_run  # noqa: F401 (fixtures)

playwright = pytest.importorskip('playwright.sync_api', reason='Playwright is not installed')
NAMES = ('chromium', 'chromium-browser', 'google-chrome')
CHROMIUM = next((path for path in map(shutil.which, NAMES) if path), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason=f'none of {", ".join(NAMES)} is installed'),
    pytest.mark.timeout(600),
]

NIH = ROOT.parent / 'shared' / 'data' / 'nih'
SWAPS = ('Noise for the image', "Another patient's image", "Another patient's note", 'No note')
#: Written by JupyterLab and Voilà themselves, whatever notebook they show.
NOT_OURS = (
    'favicon',
    'Unsatisfied version',
    'jupyterlab/api/news',
    'api/translations',
    '/lsp/',
    'mathjax',
    'fortawesome',
)


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def answers(url):
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:
        return False


#: JupyterLab takes cells that are out of view from the page, and asks about news, unless it is told not to.
SETTINGS = {
    'notebook-extension/tracker': {'windowingMode': 'none'},
    'apputils-extension/notification': {'fetchNews': 'false', 'checkForUpdates': False},
}


def settle(folder):
    "Write settings of JupyterLab"
    for name, values in SETTINGS.items():
        path = folder / '@jupyterlab' / f'{name}.jupyterlab-settings'
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values))


def up_to_the_widget(folder):
    "The notebook up to the widget"
    notebook = json.loads((ROOT / 'nbs' / '08_demo.ipynb').read_text(encoding='utf-8'))
    widget = next(i for i, c in enumerate(notebook['cells']) if 'demo_widget(' in ''.join(c['source']))
    cells = notebook['cells'][: widget + 1]
    (folder / '08_demo.ipynb').write_text(json.dumps(notebook | dict(cells=cells)))


def voila(folder, port):
    "What shows the notebook as a page, and its address"
    pytest.importorskip('voila', reason='Voilà is not installed')
    for name in ('08_demo.ipynb', 'voila.json'):
        shutil.copy(ROOT / 'nbs' / name, folder)
    return ['-m', 'voila', '08_demo.ipynb', '--no-browser', f'--port={port}'], f'http://127.0.0.1:{port}/'


def jupyterlab(folder, port):
    "What opens the notebook in JupyterLab, and its address"
    pytest.importorskip('jupyterlab', reason='JupyterLab is not installed')
    up_to_the_widget(folder)
    settle(folder / 'settings')
    options = ['--no-browser', f'--port={port}', '--expose-app-in-browser', '--IdentityProvider.token=']
    options += ['--allow-root', f'--ServerApp.root_dir={folder}', '--LabApp.collaborative=False']
    return ['-m', 'jupyterlab', *options], f'http://127.0.0.1:{port}/lab/tree/08_demo.ipynb'


@pytest.fixture(scope='module', params=[voila, jupyterlab], ids=['voila', 'jupyterlab'])
def served(request, tmp_path_factory, environment):  # noqa: F811
    "Name and address of a server that runs"
    folder, port = tmp_path_factory.mktemp('server'), free_port()
    command, url = request.param(folder, port)
    own = {name: str(folder / name) for name in ('JUPYTER_CONFIG_DIR', 'JUPYTER_RUNTIME_DIR', 'IPYTHONDIR')}
    own['JUPYTERLAB_SETTINGS_DIR'] = str(folder / 'settings')
    with open(folder / 'log.txt', 'w') as log:
        options = dict(cwd=folder, env=environment | own, stdout=log, stderr=subprocess.STDOUT)
        process = subprocess.Popen([sys.executable, *command], **options)
    try:
        ready = url if request.param is jupyterlab else f'{url}voila/static/voila.js'
        for _ in range(240):
            if process.poll() is not None or answers(ready):
                break
            time.sleep(0.25)
        assert process.poll() is None, (folder / 'log.txt').read_text()
        yield request.param.__name__, url
    finally:
        process.terminate()
        process.wait(20)


READY = """() => {
  const session = jupyterapp.shell.currentWidget?.sessionContext;
  session?.ready.then(() => session.session.kernel.info).then(() => { window.kernelIsReady = true; });
  return Boolean(session);
}"""


def run_all(page):
    "Run the notebook in JupyterLab once its kernel is ready"
    page.wait_for_function(READY)
    page.wait_for_function('() => window.kernelIsReady')
    if page.locator('.jp-Dialog .jp-mod-accept').count():
        page.locator('.jp-Dialog .jp-mod-accept').click()
    page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells') }")


@pytest.fixture(scope='module')
def opened(served):
    "(name of the server, the page with the widget, what its console said)"
    name, url = served
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        page = browser.new_page(viewport=dict(width=1400, height=1000))
        page.set_default_timeout(60_000)
        said = []
        page.on('console', lambda m: said.append(f'{m.text} {m.location}') if m.type == 'error' else None)
        page.on('pageerror', lambda e: said.append(str(e)))
        page.goto(url)
        if name == 'jupyterlab':
            page.wait_for_selector('.jp-Notebook .jp-Cell')
            run_all(page)
        try:
            page.wait_for_selector(
                '.cxr-demo .cxr-table tbody tr', timeout=150_000
            )  # torch is imported first
        except playwright.TimeoutError:
            picture(page, name, 'nothing')
            raise
        yield name, page, said
        browser.close()


def picture(page, name, what):
    "Keep a picture of the page, if a folder is named"
    if folder := os.environ.get('CXR_SCREENSHOTS'):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f'{name}_{what}.png')


def bars(page):
    return page.locator('.cxr-table').first.inner_text()


def changed(page, before):
    "Wait until the probabilities are others; return them"
    page.wait_for_function('t => document.querySelector(".cxr-table")?.innerText !== t', arg=before)
    return bars(page)


def button(page, words):
    return page.get_by_role('button', name=words)


def press(page, words):
    "Press a button by keyboard"
    button(page, words).focus()
    page.keyboard.press('Enter')


def upload(page, path):
    with page.expect_file_chooser() as chooser:
        press(page, 'Upload a radiograph')
    chooser.value.set_files(path)


@pytest.fixture(scope='module')
def film(tmp_path_factory):
    "A real radiograph where there is one, else noise"
    if NIH.is_dir():
        return sorted(NIH.rglob('*.png'))[0]
    path = tmp_path_factory.mktemp('films') / 'film.png'
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 320), np.uint8)).save(path)
    return path


def test_an_uploaded_image_is_answered(opened, film):
    name, page, _ = opened
    picture(page, name, 'first')
    before = bars(page)
    upload(page, film)
    page.wait_for_selector(f'.cxr-film img[alt*="{film.name}, uploaded"]')
    assert bars(page) != before
    assert page.locator('.cxr-table').first.locator('tbody tr').count() == 14


def test_a_bad_upload_says_why(opened, tmp_path):
    name, page, _ = opened
    before = bars(page)
    (tmp_path / 'letter.txt').write_text('Dear colleague')
    upload(page, tmp_path / 'letter.txt')
    page.wait_for_selector('.cxr-alert:has-text("letter.txt: not an image file")')
    assert bars(page) == before


def test_bars_follow_the_typing(opened):
    name, page, _ = opened
    before = bars(page)
    page.get_by_label('Note', exact=True).press_sequentially('Fever and cough', delay=30)
    after = changed(page, before)
    assert '▲' in after or '▼' in after
    picture(page, name, 'typed')


def test_each_swap_shows_what_moves_and_leads_back(opened):
    name, page, _ = opened
    own = bars(page)
    for words in SWAPS:
        press(page, words)
        page.wait_for_selector('caption:has-text("What moved")')
        assert changed(page, own) != own
        assert 'move by a percentage point' in page.locator('.cxr-demo').inner_text()
        picture(page, name, words.replace(' ', '_').replace("'", ''))
        press(page, 'Back to the patient')
        page.wait_for_selector('caption:has-text("What moved")', state='detached')
        assert bars(page) == own


def test_picture_and_json_are_saved(opened, tmp_path):
    name, page, _ = opened
    press(page, 'Save picture, JSON, text')
    for kind in ('png', 'json'):
        link = page.locator(f'.cxr-files a[download$=".{kind}"]')
        link.focus()
        with page.expect_download() as download:
            page.keyboard.press('Enter')
        download.value.save_as(tmp_path / f'saved.{kind}')
    assert Image.open(tmp_path / 'saved.png').size[0] > 1000
    kept = json.loads((tmp_path / 'saved.json').read_text())
    assert kept['format'] == 'cxr_lib.prediction/1' and kept['has_note'] and kept['sentences']
    if folder := os.environ.get('CXR_SCREENSHOTS'):
        shutil.copy(tmp_path / 'saved.png', Path(folder) / f'{name}_saved.png')


FOCUSED = """() => {
  const e = document.activeElement, style = getComputedStyle(e);
  if (!e.closest('.cxr-demo')) return null;
  const label = e.labels && e.labels.length ? e.labels[0].innerText : e.getAttribute('aria-label') || e.innerText;
  return [label.trim().split('\\n')[0], style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2];
}"""


def test_tab_reaches_every_control_and_shows_where_it_is(opened):
    name, page, _ = opened
    press(page, 'No note')  # enables the way back
    page.wait_for_selector('caption:has-text("What moved")')
    page.get_by_label('Image', exact=True).focus()
    page.keyboard.press('Shift+Tab')
    reached = []
    for _ in range(30):
        page.keyboard.press('Tab')
        if found := page.evaluate(FOCUSED):
            reached.append(found)
        elif reached:
            break
    labels = [label for label, _ in reached]
    controls = ('Image', 'Upload a radiograph', 'Note', 'Example notes', 'Threshold rule', 'show the labels')
    for control in (*controls, *SWAPS, 'Back to the patient', 'Save picture, JSON, text'):
        assert any(label.startswith(control) for label in labels), (control, labels)
    assert all(visible for _, visible in reached), reached
    press(page, 'Back to the patient')
    page.wait_for_selector('caption:has-text("What moved")', state='detached')


def test_axe_finds_nothing_serious_in_the_widget(opened):
    _, page, _ = opened
    press(page, SWAPS[0])
    page.wait_for_selector('caption:has-text("What moved")')
    assert serious_findings(page, '.cxr-demo') == []
    press(page, 'Back to the patient')


def test_a_phone_shows_it_without_scrolling_sideways(opened):
    name, page, _ = opened
    page.set_viewport_size(dict(width=390, height=844))
    page.wait_for_timeout(500)
    picture(page, name, 'phone')
    demo = page.locator('.cxr-demo')
    for k, part in enumerate(('.cxr-table', 'textarea', '.cxr-film')):
        demo.locator(part).first.scroll_into_view_if_needed()
        picture(page, name, f'phone_{k}')
    if name == 'voila':  # JupyterLab's own columns leave less than a phone has
        parts = "[...document.querySelectorAll('.cxr-demo, .cxr-demo .cxr-scroll')]"
        wide = page.evaluate(f'{parts}.map(e => [e.scrollWidth, e.clientWidth])')
        assert all(scroll <= client + 1 for scroll, client in wide), wide
        assert page.evaluate('document.documentElement.scrollWidth') <= 390
    page.set_viewport_size(dict(width=1400, height=1000))


def test_the_console_is_clean(opened):
    _, _, said = opened
    assert [text for text in said if not any(words in text for words in NOT_OURS)] == []
