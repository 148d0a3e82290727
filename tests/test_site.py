"""The documentation site: every notebook and page is in it, its links lead somewhere, nothing comes from elsewhere."""

import ast
import functools
import http.server
import re
import shutil
import threading
from html.parser import HTMLParser
from urllib.parse import unquote, urljoin, urlsplit

import make_docs
import pytest
from conftest import NOTEBOOKS, ROOT

LINK = re.compile(r'\]\(([^)\s]+)\)')
CODE = re.compile(r'^ *```.*?^ *```|`[^`\n]+`', re.M | re.S)
DOCS = sorted((ROOT / 'nbs' / 'docs').glob('*.md'))


@pytest.fixture(scope='module')
def pages(tmp_path_factory):
    pytest.importorskip('latex2mathml', reason='the extra docs is not installed')
    return make_docs.make_pages(tmp_path_factory.mktemp('work') / 'pages')


@pytest.fixture(scope='module')
def site(pages):
    pytest.importorskip('zensical', reason='Zensical is not installed (it needs Python 3.11)')
    target = pages.folder.parent / 'made'
    make_docs.make_site(pages, pages.folder.parent, target)
    return target


# Pages


def test_every_notebook_and_every_page_without_code_has_its_page(pages):
    wanted = {p.relative_to(ROOT / 'nbs').with_suffix('.md').as_posix() for p in [*NOTEBOOKS, *DOCS]}
    assert set(pages.titles) == wanted | {'names.md'}
    assert all((pages.folder / name).stat().st_size > 200 for name in pages.titles)


def in_navigation(entries):
    for entry in entries:
        for value in entry.values():
            yield from [value] if isinstance(value, str) else in_navigation(value)


def test_the_navigation_leads_to_every_page_once(pages):
    found = list(in_navigation(make_docs.navigation(pages)))
    assert sorted(found) == sorted(pages.titles)


def test_links_between_pages_lead_to_a_page(pages):
    dead = []
    for name in pages.titles:
        page = pages.folder / name
        for target in LINK.findall(CODE.sub('', page.read_text(encoding='utf-8'))):
            file = target.partition('#')[0]
            if file and not re.match(r'[a-z]+:', file) and not (page.parent / file).exists():
                dead.append(f'{name}: {target}')
    assert dead == []


def test_a_name_of_the_library_is_listed_with_its_module_and_first_line(pages):
    text = (pages.folder / 'names.md').read_text(encoding='utf-8')
    assert '| [`auroc`](chapters/02_metrics/02_ranking.md#auroc) | `metrics.ranking` | ' in text
    assert '[`_' not in text


def test_a_page_shows_signatures_and_parameters_and_folds_code(pages):
    chapter = (pages.folder / 'chapters/04_data/22_catalogue.md').read_text(encoding='utf-8')
    assert '### `check_source` {#check_source}' in chapter and '??? example "The code"' in chapter
    assert '# Colab only' not in chapter and '#| export' not in chapter
    stage = (pages.folder / '01_exploration.md').read_text(encoding='utf-8')
    assert re.search(r'^\| `n_patients[^`]*` \| `2500` \| simulated patients to draw', stage, re.M)


# What the pages are made of


SOURCE = '''#| export
@decorated
def mean(
    x: dict[str, int],  # values: any
    *,
    weights={'a': 1},  # of them
) -> float:  # their mean
    "The mean"
    return sum(x.values())


class Box:
    "Something with an inside"

    width: float = 1.0  # of it, cm
    _hidden: int = 0

    def area(self) -> float:  # cm²
        "Its area"
        return self.width**2

    def _secret(self):
        pass


def _private():
    pass
'''


def test_a_signature_is_the_header_as_it_is_written():
    mean, box, _ = ast.parse(SOURCE).body
    assert make_docs.signature(mean, SOURCE) == '\n'.join(SOURCE.splitlines()[2:7])
    shown = make_docs.signature(box, SOURCE)
    assert 'width: float = 1.0  # of it, cm' in shown and 'def area(self) -> float:  # cm²' in shown
    assert '_hidden' not in shown and '_secret' not in shown and 'return' not in shown
    assert '_private' not in make_docs.exported(SOURCE).partition('???')[0]


def test_parameters_become_rows_with_type_default_and_meaning():
    rows = make_docs.parameter_rows("run: str = ''  # a | b\nseed = 0  # of it\n")
    assert rows == [('run: str', "''", 'a &#124; b'), ('seed', '0', 'of it')]


def test_values_in_quotes_are_code_and_an_apostrophe_is_not():
    said = make_docs.parameter_table(
        "run: str = ''  # a run's name; '': the newest, or 'all' of the source's\n"
    )
    assert said.endswith("| `run: str` | `''` | a run's name; `''`: the newest, or `'all'` of the source's |")


def test_links_become_those_of_the_site(tmp_path):
    pages = make_docs.Pages(tmp_path)
    page = ROOT / 'nbs' / 'docs' / 'formats.md'
    words = 'See [`studies`](../chapters/04_data/01_studies.ipynb#why), [licence](../../LICENSE), '
    words += '[tests](../../tests), '
    words += '[web](https://example.org), `x[0]`. [![Colab](https://example.org/b.svg)](https://example.org)'
    said = pages.words(page, words)
    assert '(../chapters/04_data/01_studies.md#why)' in said and '[licence](../files/LICENSE)' in said
    assert ', tests, ' in said and '(https://example.org)' in said and 'b.svg' not in said
    assert (tmp_path / 'files' / 'LICENSE').read_bytes() == (ROOT / 'LICENSE').read_bytes()


def test_formulas_become_mathml_and_code_stays(tmp_path):
    pytest.importorskip('latex2mathml', reason='the extra docs is not installed')
    said = make_docs.Pages(tmp_path).words(
        ROOT / 'nbs' / 'index.md', r'$x_1$ costs $5, `$y$` too. $$\frac{a}{b}$$'
    )
    assert said.startswith('<math') and '<msub>' in said and 'costs $5, `$y$` too.' in said
    assert '<div class="formula"><math' in said and '<mfrac>' in said


# The site


class Links(HTMLParser):
    "What a page links, what it loads, and its anchors"

    def __init__(self, text):
        super().__init__()
        self.links, self.loaded, self.anchors = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found.get('id'), found.get('name')}
        if tag == 'a' and found.get('href'):
            self.links.append(found['href'])
        loads = tag == 'link' and found.get('rel') in ('stylesheet', 'icon', 'preload', 'modulepreload')
        self.loaded += [found.get('src')] if found.get('src') else []
        self.loaded += [found['href']] if loads else []


@pytest.fixture(scope='module')
def linked(site):
    "Page -> its links"
    return {p: Links(p.read_text(encoding='utf-8')) for p in site.rglob('*.html')}


def dead(site, page, target, linked):
    "Does a link of a page lead to no file, or to an anchor that its page does not have?"
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        return False
    base = '/' + page.relative_to(site).as_posix()
    file = site / unquote(urlsplit(urljoin(base, target)).path).lstrip('/')
    file = file / 'index.html' if file.is_dir() else file
    anchors = linked[file].anchors if file in linked else {parts.fragment}
    return not file.exists() or bool(parts.fragment) and unquote(parts.fragment) not in anchors


def test_every_link_of_the_site_leads_to_a_file_and_to_an_anchor(site, linked):
    found = [
        f'{page.relative_to(site)}: {target}'
        for page, what in linked.items()
        if page.name != '404.html'
        for target in [*what.links, *what.loaded]
        if dead(site, page, target, linked)
    ]
    assert len(linked) > 100 and found == []


def test_no_page_loads_anything_from_elsewhere(site, linked):
    found = {t for what in linked.values() for t in what.loaded if urlsplit(t).netloc}
    assert found == set()
    styles = [p.read_text(encoding='utf-8') for p in site.rglob('*.css')]
    assert not [s for s in styles if re.search(r'(?:@import|url\()\s*["\']?(?:https?:)?//', s)]


@pytest.fixture
def address(site):
    "The address of the site on this machine"

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()


@pytest.fixture
def browser():
    playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    path = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if not path:
        pytest.skip('no Chromium on this machine')
    with playwright.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=path, args=['--no-sandbox'])
        yield opened
        opened.close()


SHOWN = (
    'index.html',
    'docs/faq.html',
    '01_exploration.html',
    'chapters/03_simulation/05_dial.html',
    'names.html',
)


@pytest.mark.parametrize('width', [1400, 390])
def test_pages_fit_the_screen_and_ask_nobody_else(browser, address, width):
    page, asked = browser.new_page(viewport=dict(width=width, height=1000)), []
    page.on('request', lambda request: asked.append(request.url))
    for name in SHOWN:
        page.goto(address + name)
        page.wait_for_load_state('networkidle')
        assert page.evaluate('document.documentElement.scrollWidth - window.innerWidth') <= 0, name
    assert [url for url in asked if not url.startswith((address, 'data:', 'blob:'))] == []


def test_a_search_finds_a_chapter(browser, address):
    page = browser.new_page(viewport=dict(width=1400, height=1000))
    page.goto(address)
    page.keyboard.press('Control+k')
    page.keyboard.type('leakage certificate', delay=20)
    found = page.locator('a[href*="05_notes/04_leakage"]').filter(visible=True)
    found.last.wait_for(state='visible', timeout=20_000)
