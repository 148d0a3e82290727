"""The pages of a run: what leads where, what every picture says, and how they look on a screen and on a phone."""

import base64
import io
import json
import re
from pathlib import Path
from urllib.parse import unquote

import matplotlib
import nbformat
import numpy as np
import pytest
from accessibility import serious_findings
from conftest import STAGES
from PIL import Image

from cxr_lib.evaluation.report import evaluate, metrics_table
from cxr_lib.foundations.files import write_json
from cxr_lib.metrics.predictions import synthetic_predictions
from cxr_lib.running.pages import (
    EXTERNAL,
    Around,
    described_pictures,
    neighbours,
    page_or_sentence,
    render_index,
)
from cxr_lib.running.plan import plan_run, toy_project

matplotlib.use('agg')

CHROMIUM = '/usr/bin/chromium'
HOSTILE = '<script>alert(1)</script> <img src=x onerror=alert(1)> ![p](http://example.org/x.png)'
CARD = f"""# Model card: toy

{HOSTILE}
[a link](javascript:alert(1)), 5 &#60; 7, <span>&#36;</span>4

| condition | mean AUROC | mean average precision | sensitivity | specificity | remark |
|---|---|---|---|---|---|
| image + note | 0.692 [0.660, 0.721] | 0.324 [0.305, 0.362] | 0.3 | 0.2 | {'a long remark ' * 9}|
"""
COLUMNS = ''.join(f'<th>condition {i}</th>' for i in range(7))
ROW = '<td>0.692 [0.660, 0.721]</td>' * 7
TABLE = f'<table class="dataframe"><thead><tr>{COLUMNS}</tr></thead><tbody><tr>{ROW}</tr></tbody></table>'


def picture(path, noisy=False, size=(1000, 600)):
    "A picture; a noisy one is made small by no format"
    values = np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), np.uint8)
    Image.fromarray(values if noisy else values // 255 + 200).save(path, compress_level=1)


def executed_notebook(source, target):
    "A toy notebook as if it had been run: a wide table, and a picture"
    nb, png = nbformat.read(source, as_version=4), io.BytesIO()
    Image.new('RGB', (1600, 500), 'gray').save(png, 'PNG')
    data = {'image/png': base64.b64encode(png.getvalue()).decode()}
    show = nbformat.v4.new_output
    nb.cells[-2].outputs = [show('display_data', {'text/html': TABLE}), show('display_data', data)]
    nb.cells.insert(-2, nbformat.v4.new_markdown_cell('**Calibration.** Of the images given 30%, ...'))
    nbformat.write(nb, target)


@pytest.fixture(scope='module')
def plan(tmp_path_factory):
    "A finished run with every picture and file that pages know, and one that they do not"
    with pytest.MonkeyPatch.context() as m:
        m.delenv('CXR_HOME', raising=False)
        plan = plan_run(home=toy_project(tmp_path_factory.mktemp('pages') / 'toy'))
    folder = plan.folder
    (folder / 'model').mkdir(parents=True)
    metrics = evaluate(synthetic_predictions(150, seed=1), n_bootstrap=5, seed=0, simulated=True)
    write_json(folder / 'metrics.json', metrics)
    metrics_table(metrics).to_csv(folder / 'metrics.csv', index=False)
    for name in ('model_card.md', 'published.md'):
        (folder / name).write_text(CARD)
    for name in ('predictions.parquet', 'training_log.csv', 'roc_curves.pdf'):
        (folder / name).write_bytes(b'0' * 2000)
    for i, name in enumerate((*described_pictures(), 'my_sketch')):
        picture(folder / f'{name}.png', noisy=i < 3)
    problems = []
    for stage in STAGES:
        files = plan.files(stage)
        executed_notebook(plan.notebooks[stage], files.executed)
        page_or_sentence(files.executed, files.page, plan.run, True, problems, neighbours(plan, stage))
    render_index(plan, problems=problems)
    assert not problems
    return plan


@pytest.fixture(scope='module')
def index(plan):
    return (plan.folder / 'index.html').read_text()


def pages(plan):
    return sorted(plan.folder.glob('*.html'))


def figures_of(text):
    return re.findall(r'<figure>.*?</figure>', text, re.S)


# What leads where


def test_the_front_page_stays_below_two_megabytes(plan):
    assert (plan.folder / 'index.html').stat().st_size < 2_000_000


def test_every_link_leads_somewhere(plan):
    names = {p.name for p in pages(plan)}
    assert {'index.html', 'model_card.html', 'published.html', '01_exploration.html'} <= names
    for page in pages(plan):
        text = page.read_text()
        for link in re.findall(r'<a [^>]*href="([^"]+)"', re.sub(r'<style.*?</style>', '', text, flags=re.S)):
            name, _, anchor = unquote(link).partition('#')
            if link == '#harmful-link':  # what is left of a script in a card
                continue
            assert (plan.folder / name).exists(), f'{page.name}: {link}'
            assert not anchor or f'id="{anchor}"' in text, f'{page.name}: {link}'


@pytest.mark.parametrize(
    'file',
    ['metrics.csv', 'metrics.json', 'predictions.parquet', 'model/', 'model_card.html', 'roc_curves.pdf'],
)
def test_the_front_page_links_to_the_files_of_the_run(index, file):
    assert f'href="{file}"' in index


def test_the_stages_are_a_chain_of_previous_and_next(plan):
    order = [plan.files(stage).page for stage in STAGES]
    for i, page in enumerate(order):
        text = page.read_text()
        for rel, at in (('prev', i - 1), ('next', i + 1)):
            links = [a for a in re.findall('<a [^>]*>', text) if f'rel="{rel}"' in a]
            found = {re.search('href="([^"]+)"', a)[1] for a in links}
            assert found == ({order[at].name} if 0 <= at < len(order) else set()), (page.name, rel)
        assert 'href="index.html"' in text


def test_the_contents_name_every_section(index):
    sections = re.findall(r'<section[^>]* id="([^"]+)"><h2>([^<]+)', index)
    entries = re.findall(r'<li><a href="#([^"]+)">([^<]+)', index)
    assert entries == sections
    assert len(entries) > 8


def test_no_page_asks_the_network_for_anything(plan):
    assert not [p.name for p in pages(plan) if EXTERNAL.search(p.read_text())]


# What is said


def test_every_picture_has_a_title_a_caption_of_one_sentence_and_opens_the_whole(plan, index):
    figures = figures_of(index)
    assert len(figures) == len(described_pictures()) + 1
    for figure in figures:
        title = re.search(r'<h3>([^<]+)</h3>', figure)[1]
        caption = re.sub('<[^>]+>', '', re.search(r'<figcaption>(.*?) <span class="files"', figure, re.S)[1])
        assert title and caption.endswith('.') and '. ' not in caption, caption
        assert not re.search(r'[{}]|nan|undefined', caption), caption
        full = re.search(r'<a href="([^"]+\.png)"><img alt="[^"]+"', figure)[1]
        assert (plan.folder / full).exists()


def test_numbers_in_captions_are_those_of_the_metrics(plan, index):
    fused = evaluated_mean(plan)
    caption = next(f for f in figures_of(index) if 'roc_curves.png' in f)
    assert f'{fused["auroc"]:.3f} [{fused["low"]:.3f}, {fused["high"]:.3f}]' in caption


def evaluated_mean(plan):
    metrics = json.loads((plan.folder / 'metrics.json').read_text())
    return metrics['conditions']['fused']['means']['evaluable']


def test_nothing_in_a_card_is_obeyed(plan):
    text = (plan.folder / 'model_card.html').read_text()
    assert '<script' not in text and '<img' not in text and 'javascript:' not in text
    assert '&lt;script&gt;alert(1)' in text and '5 &lt; 7, $4' in text


def test_pictures_of_a_stage_page_say_what_they_are_about(plan):
    assert 'alt="Calibration"' in plan.files('training').page.read_text()


def test_an_unfinished_run_shows_no_card_and_a_page_for_what_comes_next(tmp_path, monkeypatch):
    monkeypatch.delenv('CXR_HOME', raising=False)
    plan = plan_run(home=toy_project(tmp_path / 'toy'))
    plan.folder.mkdir(parents=True)
    (plan.folder / 'model_card.md').write_text(CARD)
    render_index(plan)
    assert (plan.folder / 'model_card.html').exists()
    render_index(plan, '02_notes is under way.', only=STAGES[:1])
    assert not (plan.folder / 'model_card.html').exists()
    text = plan.files('notes').page.read_text()
    assert '02_notes is under way.' in text and 'rel="prev" href="01_exploration.html"' in text


def test_a_page_that_fails_still_leads_on(tmp_path):
    (tmp_path / 'broken.ipynb').write_text('{')
    problems, around = [], Around(following=('next.html', 'Next'))
    page_or_sentence(tmp_path / 'broken.ipynb', tmp_path / 'broken.html', 'run', True, problems, around)
    assert len(problems) == 1 and 'rel="next" href="next.html"' in (tmp_path / 'broken.html').read_text()


# How it looks


@pytest.fixture(scope='module')
def chromium():
    api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    if not Path(CHROMIUM).exists():
        pytest.skip(f'there is no {CHROMIUM}')
    with api.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        yield chromium
        chromium.close()


def opened(chromium, path, width):
    "A page at a width, and what went wrong or was asked for while it loaded"
    page = chromium.new_page(viewport=dict(width=width, height=844))
    seen = []
    page.on('console', lambda m: seen.append(m.text))
    page.on('pageerror', lambda e: seen.append(str(e)))
    page.on('request', lambda r: None if r.url.startswith(('data:', path.as_uri())) else seen.append(r.url))
    page.goto(path.as_uri())
    return page, seen


#: Intervals that stand on more than one line.
BROKEN = """[...document.querySelectorAll('.cxr-number, td small, main .wide td')]
    .filter(e => !e.querySelector('small') && /\\d[ \u00a0][\\[(]\\d|\\d, \\d/.test(e.textContent))
    .filter(e => { const range = document.createRange(); range.selectNodeContents(e);
                   return e.textContent.length < 30 && range.getBoundingClientRect().height > 26 })
    .map(e => e.textContent)"""


@pytest.mark.parametrize('width', [390, 1400])
@pytest.mark.parametrize('name', ['index', '05_evaluation', 'model_card'])
def test_a_page_fits_its_screen_keeps_intervals_together_and_asks_for_nothing(plan, chromium, name, width):
    page, seen = opened(chromium, plan.folder / f'{name}.html', width)
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    assert page.evaluate(BROKEN) == []
    assert seen == []
    page.close()


@pytest.mark.parametrize('name', ['index', '05_evaluation', 'model_card'])
def test_axe_finds_nothing_serious(plan, chromium, name):
    page, _ = opened(chromium, plan.folder / f'{name}.html', 1400)
    assert serious_findings(page) == []
    page.close()


def test_a_phone_shows_the_auroc_on_its_first_screen(plan, chromium):
    page, _ = opened(chromium, plan.folder / 'index.html', 390)
    top = lambda what: page.locator(what).first.bounding_box()['y']
    assert top('.tiles dd') < 844 and top('.tiles dd') < top('nav.contents')
    assert 'image + note' in page.locator('table th').nth(1).inner_text()
    page.close()


def test_every_small_picture_is_shown(plan, chromium):
    page, _ = opened(chromium, plan.folder / 'index.html', 1400)
    assert page.evaluate('[...document.images].every(i => i.complete && i.naturalWidth > 100)')
    page.close()


def test_a_table_that_is_too_wide_scrolls_and_takes_the_keyboard(plan, chromium):
    page, _ = opened(chromium, plan.files('training').page, 390)
    wide = page.locator('.wide').first
    assert wide.evaluate('e => e.scrollWidth > e.clientWidth')
    wide.focus()
    assert wide.evaluate('e => e === document.activeElement')
    page.close()
