"""One small run of a folder in which every text is hostile, through the command line.

What its pages show, and what the report, the saved model and the demo say of the same image.
"""

import html
import json
import re
import shutil

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, STAGES
from nbconvert.filters import markdown2html
from PIL import Image

from cxr_lib.data.catalogue import data_root
from cxr_lib.demo import demo_banner, demo_samples, demo_widget
from cxr_lib.foundations.core import OBSERVATIONS, as_list, as_table, as_text
from cxr_lib.foundations.files import read_json, write_json
from cxr_lib.foundations.run import RunFolder
from cxr_lib.metrics import calibration
from cxr_lib.metrics.calibration import apply_calibration, calibrated, fit_calibrations
from cxr_lib.metrics.predictions import synthetic_predictions
from cxr_lib.model.classifier import PretrainedClassifier
from cxr_lib.prediction.load import load
from cxr_lib.running import command as runner
from cxr_lib.stages.evaluation import stored_calibrations
from cxr_lib.stages.training import keep_calibration

pytestmark = pytest.mark.timeout(1500)  # the whole run is made once, by whichever test comes first
N = 40
HOSTILE = (
    '<script>alert(1)</script> <img src=x onerror=alert(2)> | `code` [a link](http://example.org) **bold** '
    '$x^2$ \\begin{equation}x\\end{equation} ]]> infiltrate on the film'
)
#: Observations that the folder has labels of; fewer are quicker to draw.
LABELLED = OBSERVATIONS[:5]
#: The same for names of files and runs, which hold no slash.
IN_A_NAME = 'a<img src=x onerror=alert(3)>$x^2$ `c` &]]>'


def hostile_folder(root):
    "A csv data set; notes, identifiers, words for sex, view and projection, and file names are markup"
    root.mkdir()
    rng = np.random.default_rng(0)
    films = [f'{IN_A_NAME}{i}.png' for i in range(N)]
    for name in films:
        Image.fromarray(rng.integers(0, 255, (48, 48), dtype=np.uint8)).save(root / name)
    (root / films[0]).write_bytes(b'no picture')
    table = pd.DataFrame(
        {
            'image': [*films, f'{IN_A_NAME}absent.png'],
            'patient_id': [f'p{i}{HOSTILE}' for i in range(N + 1)],
            'study_id': [f's{i}{HOSTILE}' for i in range(N + 1)],
            'sex': f'f{HOSTILE}',
            'view': f'v{HOSTILE}',
            'projection': f'j{HOSTILE}',
            'age': rng.integers(20, 90, N + 1),
            'note': [f'{HOSTILE} {i % 7}' for i in range(N + 1)],
        }
    )
    for o in LABELLED:
        table[o] = rng.integers(0, 2, N + 1)
    table.to_csv(root / 'studies.csv', index=False)
    words = {
        'sex': {f'f{HOSTILE}': 'Female'},
        'view': {f'v{HOSTILE}': 'Frontal'},
        'projection': {f'j{HOSTILE}': 'AP'},
    }
    (root / 'mapping.json').write_text(json.dumps({'values': words}))
    return root


def stages_alone(home):
    "The project's stage notebooks without their second part, which teaches"
    (home / 'nbs').mkdir(parents=True)
    (home / 'settings.ini').write_text('[DEFAULT]\nlib_name = cxr_lib\n')
    for stage in STAGES:
        path = next((ROOT / 'nbs').glob(f'[0-9][0-9]_{stage}.ipynb'))
        notebook = nbformat.read(path, as_version=4)
        end = next(i for i, cell in enumerate(notebook.cells) if cell.source.startswith('# The stage'))
        notebook.cells = notebook.cells[:end]
        nbformat.write(notebook, home / 'nbs' / path.name)
    return home


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    "The finished run's folder"
    home = tmp_path_factory.mktemp('small')
    root, patch = hostile_folder(home / 'films'), pytest.MonkeyPatch()
    patch.setenv('CXR_HOME', str(stages_alone(home / 'project')))
    given = dict(
        epochs=1,
        n_bootstrap=20,
        n_explained=10,
        missing='exclude',
        unreadable='exclude',
        scan=0,
        probe_encoder=False,
        negative_example=False,
        folds=0,
        overrides='image_size=32',
        tuning_fraction=0.35,
        test_fraction=0.3,
    )
    arguments = [text for name, value in given.items() for text in ('-p', name, str(value))]
    assert runner.main(['run', '--run', IN_A_NAME, '--dataset', 'csv', '--root', str(root), *arguments]) == 0
    yield home / 'project' / 'reports' / IN_A_NAME
    patch.undo()


# ---- nothing from the data is obeyed


def rendered(folder):
    "Name -> text of everything of the run that a reader's program would take for HTML or Markdown"
    for path in sorted(folder.rglob('*')):
        if path.suffix in ('.html', '.md'):
            yield path.name, path.read_text(encoding='utf-8')
        if path.suffix == '.ipynb':
            for cell in nbformat.read(path, as_version=4).cells:
                for data in [o.get('data', {}) for o in cell.get('outputs', ())]:
                    yield from (
                        (f'{path.name}, {kind}', data[kind])
                        for kind in ('text/html', 'text/markdown')
                        if kind in data
                    )


def test_no_markup_from_the_data_is_alive_in_any_page_card_or_notebook(small):
    found = list(rendered(small))
    assert sum(HOSTILE[-20:] in text for _, text in found) >= 3, (
        'the notes are shown nowhere, so nothing is tested'
    )
    assert {
        'index.html',
        'model_card.md',
        'published.md',
        'README.md',
        *(f'{p.stem}.html' for p in small.glob('0*.ipynb')),
    } <= {name for name, _ in found}
    for name, text in found:
        text = re.sub(
            r'(?s)<details class="cxr-code">.*?</details>', '', text
        )  # the notebook's own code, with the run's name as a string
        markdown = (
            ('[a link](http', '`c`', '`code`', '**bold**', '$x^2$')
            if name.endswith(('.md', 'text/markdown'))
            else ()
        )
        for alive in ('<script>alert', '<img src=x', *markdown):
            assert alive not in text, f'{name}: {alive}'


def test_dollars_in_notes_are_no_formulas(small):
    for path in small.glob('0*.html'):
        formulas = re.findall(r'<img[^>]*alt="([^"]*)"[^>]*data:image/svg', path.read_text(encoding='utf-8'))
        assert not any('x^2' in f or 'begin' in f for f in formulas), path.name
    notes = next(
        text for name, text in rendered(small) if name.endswith('text/html') and 'infiltrate' in text
    )
    assert 'tex2jax_ignore' in notes and 'mathjax_ignore' in notes  # Jupyter itself would set them


@pytest.mark.parametrize(
    'text',
    [
        HOSTILE,
        '<b>',
        'a|b',
        '`x`',
        '$x$',
        '\\begin{x}',
        '__b__',
        '**b**',
        '[a](b)',
        'http://a.b',
        '&lt;',
        '# h',
        '~~x~~',
        'two\nlines',
        3,
        None,
    ],
)
def test_text_is_shown_as_it_is(text):
    for markdown in (as_text(text), as_list([text]), f'| {as_text(text)} |\n|---|\n| {as_text(text)} |'):
        page = markdown2html(markdown)
        seen = re.sub(r'<[^>]*>', '', page)
        assert ' '.join(str(text).split()) in ' '.join(html.unescape(seen).split())
        assert not re.search(r'<(?!/?(p|ul|li|span|table|thead|tbody|tr|th|td)\b)', page), page


def test_tables_keep_what_they_hold():
    table = as_table(
        pd.DataFrame({'<b>': [HOSTILE, 'x'], 'n': [1.23456, 2]}, index=[HOSTILE, 'b']), precision=2
    ).to_html()
    assert '<script' not in table and '<b>' not in table and '1.23' in table and '&lt;b&gt;' in table
    assert HOSTILE[:8] not in as_table(pd.DataFrame({'a': [1]}, index=[HOSTILE]), index=False).to_html()


# ---- one calibration


def say(run, predictions, condition):
    "What the report says of the test films: image -> (14,)"
    test = predictions[predictions['split'] == 'test']
    return dict(zip(test['image'], calibrated(test, condition, stored_calibrations(run, predictions))))


@pytest.fixture
def with_own_maps(small, tmp_path, monkeypatch):
    "The run once more, with maps of every observation's own, which forty films are too few for"
    monkeypatch.setattr(calibration, 'MIN_CASES', dict.fromkeys(calibration.MIN_CASES, 3))
    run = RunFolder(shutil.copytree(small, tmp_path / 'copy'))
    predictions, parameters = pd.read_parquet(run / 'predictions.parquet'), run.params('training')
    run.begin('training')
    keep_calibration(run, predictions)
    run.finish('training', parameters)
    return run, predictions


def test_report_saved_model_and_demo_give_the_same_probabilities(with_own_maps):
    run, predictions = with_own_maps
    stored = read_json(run / 'model' / 'calibration.json')
    assert stored == stored_calibrations(run, predictions)['-1'] and set(stored) == {
        'fused',
        'image_only',
        'note_only',
    }
    temperatures = {m['temperature'] for maps in stored.values() for m in maps['observations'].values()}
    assert len(temperatures) > 10 and not np.allclose(list(temperatures), 1), (
        'the maps are too much alike to be told apart'
    )
    classifier, predictor = PretrainedClassifier.from_pretrained(run / 'model'), load(run.path)
    samples = demo_samples(run, 6)
    root, report = (
        data_root(run),
        {c: say(run, predictions, c) for c in ('fused', 'image_only', 'note_only', 'missing_note')},
    )
    films = [root / i for i in samples.image]
    loaded, without = classifier.predict(films, list(samples.note)), classifier.predict(films)
    for k, row in enumerate(samples.itertuples()):
        answers = predictor(root / row.image, row.note).observations
        shown = pd.DataFrame([answer.probability.model_dump() for answer in answers])
        for condition, column, table, of_model in (
            ('fused', 'fused', loaded, 'fused'),
            ('image_only', 'image_only', loaded, 'image_only'),
            ('note_only', 'note_only', loaded, 'note_only'),
            ('missing_note', 'without_note', without, 'fused'),
        ):
            saved = table[[f'{of_model}/{o}' for o in OBSERVATIONS]].iloc[k].to_numpy(float)
            assert np.abs(report[condition][row.image] - saved).max() < 1e-6, (
                f'{condition}: report and saved model'
            )
            assert np.abs(report[condition][row.image] - shown[column].to_numpy()).max() < 1e-6, (
                f'{condition}: report and demo'
            )


def test_the_reports_calibration_is_the_stored_one(small):
    metrics = read_json(small / 'metrics.json')
    assert (
        metrics['calibration']['maps']['-1']
        == read_json(small / 'model' / 'calibration.json')['fused']
        == read_json(small / 'calibration.json')['-1']['fused']
    )


def test_the_stored_thresholds_decide_as_the_report_does(small):
    metrics, stored = read_json(small / 'metrics.json'), read_json(small / 'model' / 'thresholds.json')
    predictions = pd.read_parquet(small / 'predictions.parquet')
    test = predictions[predictions['split'] == 'test']
    said = PretrainedClassifier.from_pretrained(small / 'model').predict(
        [data_root(RunFolder(small)) / i for i in test['image']], list(test['note'])
    )
    for o in LABELLED:
        cut, found = stored['youden'][o], metrics['conditions']['fused']['observations'][o]
        assert cut == metrics['thresholds']['fused'][o]['-1']
        assert stored['sensitivity=0.9'][o] == metrics['decisions']['sensitivity=0.9'][o]['threshold']
        decided, labels = said[f'fused/{o}'].to_numpy() >= cut - 1e-7, test[f'label/{o}'].to_numpy()
        assert (decided == (labels == 1)).mean() == pytest.approx(found['accuracy'])


def test_each_fold_is_calibrated_by_its_own_map():
    table = synthetic_predictions(150, n_folds=2, seed=3, model_noise=1.5)
    test, tuning = (table[table['split'] == s] for s in ('test', 'tuning'))
    maps = fit_calibrations(tuning)
    assert set(maps) == {'0', '1'} and json.loads(json.dumps(maps)) == maps
    for fold in (0, 1):
        own = (test['fold'] == fold).to_numpy()
        for condition, branch in (('fused', 'fused'), ('missing_note', 'fused'), ('note_only', 'note_only')):
            raw = test.loc[own, [f'{condition}/{o}' for o in OBSERVATIONS]].to_numpy(float)
            assert np.array_equal(
                calibrated(test, condition, maps)[own], apply_calibration(raw, maps[str(fold)][branch])
            )
    with pytest.raises(ValueError, match="'best_fused' is not answered by the calibrated model"):
        calibrated(test, 'best_fused', maps)


# ---- chance


def test_a_run_that_is_not_better_than_chance_says_so_first(small):
    said = 'NOT SHOWN TO BE BETTER THAN CHANCE: until it is, the probabilities of this model mean nothing'
    assert f'<h2>What came out</h2><p>{said}' in (small / 'index.html').read_text(encoding='utf-8')
    for page in ('05_evaluation.html', 'model_card.md'):
        assert said in (small / page).read_text(encoding='utf-8')


# ---- the demo


@pytest.fixture
def widget(small):
    pytest.importorskip('ipywidgets')
    return demo_widget(RunFolder(small), 4)


def test_the_demo_names_its_run_and_says_when_it_is_at_chance(small, tmp_path):
    banner = demo_banner(load(small).facts)
    metrics = read_json(small / 'metrics.json')
    area = metrics['conditions']['fused']['means']['evaluable']
    assert (
        as_text(small.name) in banner
        and 'data set csv' in banner
        and 'images of' in banner
        and 'onerror=alert' in banner
        and '<img' not in banner
    )
    copy = RunFolder(shutil.copytree(small, tmp_path / 'copy'))
    for low, at_chance in ((0.45, True), (0.5, True), (0.62, False)):
        area |= dict(auroc=0.65, low=low, high=0.8)
        write_json(copy / 'metrics.json', metrics)
        banner = demo_banner(load(copy.path).facts)
        assert 'Run copy:' in banner and f'0.650 [{low:.3f}, 0.800]' in banner
        assert ('NOT BETTER THAN CHANCE' in banner and 'mean nothing' in banner) == at_chance
    area |= dict(auroc=None, low=None, high=None, reason='no observation has enough cases')
    write_json(copy / 'metrics.json', metrics)
    banner = demo_banner(load(copy.path).facts)
    assert 'NOT SHOWN TO BE BETTER THAN CHANCE' in banner and 'no observation has enough cases' in banner
    (copy / 'metrics.json').unlink()
    assert 'NOT EVALUATED' in demo_banner(load(copy.path).facts)


def test_the_demo_shows_hostile_texts_as_they_are(widget):
    page = widget.page
    for part in (page.banner, page.film, page.bars, page.parts, page.notices, page.state):
        assert '<script' not in part.value and '<img src=x' not in part.value
    page.swaps['image'].click()
    page.save.click()
    assert page.links.value.count('<a ') == 3 and 'onerror=' not in page.links.value
