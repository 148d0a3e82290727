"""The page in a real browser: upload, note, answer; wide and narrow; nothing from elsewhere."""

import os
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from accessibility import serious_findings
from toy_service import as_dicom, as_file, film

from cxr_lib.data.elements import FileInMemory
from cxr_lib.service import running_service

pytest_plugins = ('service_fixtures',)

playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='there is no Chromium on this machine')
NOTE = 'Fever and cough. Known heart failure.'
PNG = as_file(film(0, 400, 360))


@pytest.fixture(scope='module')
def browser():
    with playwright.sync_playwright() as drivers:
        found = drivers.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        yield found
        found.close()


@pytest.fixture(scope='module')
def with_page(predictor):
    with running_service(predictor) as address:
        yield address


class Visit:
    "The page in a window, with what it asked for and complained about"

    def __init__(self, browser, address, width):
        self.address, self.asked, self.complaints = address, [], []
        self.page = browser.new_page(viewport=dict(width=width, height=900))
        self.page.on('request', lambda request: self.asked.append(request.url))
        self.page.on('console', self.note_complaint)
        self.page.on('pageerror', lambda error: self.complaints.append(str(error)))
        self.page.goto(f'{address}/ui/')
        self.page.wait_for_selector('#cxr-film', timeout=60_000)

    def note_complaint(self, message):
        if message.type == 'error':
            self.complaints.append(message.text)

    def predict(self, data, note, name='film.png'):
        "Choose a file, write a note, press the button; the text of the answer"
        file = dict(name=name, mimeType='application/octet-stream', buffer=data)
        self.page.set_input_files('#cxr-film', [file] if data else [])
        self.page.fill('#cxr-note textarea', note)
        before = self.page.locator('.cxr-result').all_inner_texts()
        self.page.click('#cxr-predict')
        changed = """before => {
            const now = [...document.querySelectorAll('.cxr-result')].map(e => e.innerText);
            return now.length > 0 && now[0] !== before[0];
        }"""
        self.page.wait_for_function(changed, arg=before, timeout=60_000)
        return self.page.inner_text('.cxr-result')

    def assert_clean(self):
        "Every request went to the service, and the console has no error"
        own = urlsplit(self.address).netloc
        elsewhere = [
            u for u in self.asked if urlsplit(u).scheme in ('http', 'https') and urlsplit(u).netloc != own
        ]
        assert self.asked and not elsewhere, elsewhere
        assert not self.complaints, self.complaints


def keep(visit, name):
    "Save a picture where CXR_SCREENSHOTS names a folder"
    if folder := os.environ.get('CXR_SCREENSHOTS'):
        visit.page.screenshot(path=Path(folder) / name, full_page=True)


@pytest.mark.parametrize('width', [1400, 390])
def test_an_upload_and_a_note_are_answered(browser, with_page, predictor, width):
    visit = Visit(browser, with_page, width)
    said = visit.predict(PNG, NOTE)
    own = predictor(FileInMemory('film.png', PNG), note=NOTE)
    rows = visit.page.locator('.cxr-table tr').all_inner_texts()
    assert len(rows) == 15
    for answer in own.observations:
        row = next(r for r in rows if r.startswith(answer.observation))
        assert f'{answer.probability.fused:.3f}' in row
    assert 'SIMULATED' in said
    assert visit.page.locator('#cxr-seen').is_visible()
    keep(visit, f'page_{width}.png')
    assert visit.page.evaluate('document.documentElement.scrollWidth') <= width
    edge = 'document.querySelector(".cxr-table").getBoundingClientRect().right'
    assert visit.page.evaluate(edge) <= width
    visit.assert_clean()
    visit.page.close()


def test_axe_finds_nothing_serious_before_and_after_an_answer(browser, with_page):
    visit = Visit(browser, with_page, 1400)
    assert serious_findings(visit.page) == []
    visit.predict(PNG, NOTE)
    assert serious_findings(visit.page) == []
    visit.page.close()


def test_another_note_moves_the_bars_and_a_dicom_file_is_read(browser, with_page):
    visit = Visit(browser, with_page, 1400)
    visit.predict(PNG, NOTE)
    bars = lambda: visit.page.eval_on_selector_all('.cxr-bar', 'bars => bars.map(bar => bar.style.width)')
    before = bars()
    visit.predict(PNG, 'Fall from a ladder.')
    assert bars() != before
    assert 'Edema' in visit.predict(as_dicom(film(1)), NOTE, 'film.dcm')
    visit.assert_clean()
    visit.page.close()


def test_what_cannot_be_answered_is_said_with_the_remedy(browser, with_page):
    visit = Visit(browser, with_page, 1400)
    said = visit.predict(b'<html><script>alert(1)</script>', NOTE, '<b>page.html')
    assert 'cannot be used' in said and 'PNG, JPEG, TIFF or DICOM' in said and '<b>page.html' in said
    assert 'nothing to predict from' in visit.predict(None, '')
    visit.assert_clean()
    visit.page.close()


def test_the_keyboard_suffices_and_every_control_has_a_label(browser, with_page):
    visit = Visit(browser, with_page, 1400)
    page = visit.page
    reached = []
    for _ in range(12):
        page.keyboard.press('Tab')
        reached.append(page.evaluate('document.activeElement.id || document.activeElement.tagName'))
    assert {'cxr-film', 'TEXTAREA', 'cxr-predict'} <= set(reached), reached
    page.fill('#cxr-note textarea', NOTE)
    page.focus('#cxr-predict')
    page.keyboard.press('Enter')
    page.wait_for_selector('.cxr-table')
    assert page.get_by_label('Clinical note').count() == 1
    assert page.get_by_label('Chest radiograph').count() == 1
    page.close()
