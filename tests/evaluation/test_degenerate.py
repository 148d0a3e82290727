"""Degenerate but real data: the report part of every stage notebook handles it and says so in words.

Where going on makes no sense, stage 1 says why.
"""

import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from PIL import Image

from cxr_lib.data import pictures as data
from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.foundations.files import read_json
from cxr_lib.foundations.run import STAGES as ALL
from cxr_lib.foundations.run import RunFolder
from cxr_lib.notes import leakage
from cxr_lib.training import curves as training

N = 36
STAGES = {
    '01_exploration': dict(dataset='csv', scan=0),
    '02_notes': dict(probe_encoder=False),
    '03_model': dict(overrides='image_size=64'),
    '04_training': dict(epochs=1, folds=0, negative_example=False),
    '05_evaluation': dict(n_bootstrap=10),
    '06_explanation': dict(n_explained=8, n_bootstrap=10),
    '07_reasoning': dict(n_texts=20, n_cases=4),
}


def studies(n=N, **columns):
    "A plain table: both sexes, ages, notes, both labels; then what a case changes"
    random = np.random.default_rng(0)
    words = ('cough', 'fever, ? pneumonia', 'chest pain after a fall', 'SOB for 3 days')
    table = (
        dict(
            image=[f'{i}.png' for i in range(n)],
            patient_id=[f'p{i}' for i in range(n)],
            study_id=[f's{i}' for i in range(n)],
            view='Frontal',
            projection=['PA', 'AP'][:n] * -(-n // 2),
            sex=['Female', 'Female', 'Male', 'Male'] * n,
            age=random.integers(20, 90, n),
            note=[words[i % 4] for i in range(n)],
            split=[('train', 'test', 'train', 'tuning')[i % 4] for i in range(n)],
            **{o: random.integers(0, 2, n) for o in OBSERVATIONS},
        )
        | columns
    )
    return pd.DataFrame({k: v[:n] if isinstance(v, list) else v for k, v in table.items()}, index=range(n))


def labels(value):
    return {o: value for o in OBSERVATIONS}


def write_folder(folder, table):
    "The table as studies.csv, with a film of noise for every row"
    folder.mkdir(parents=True)
    random = np.random.default_rng(1)
    for image in table.image:
        Image.fromarray(random.integers(0, 256, (64, 64), dtype=np.uint8)).save(folder / image)
    table.to_csv(folder / 'studies.csv', index=False)
    return folder


def report_cells(notebook):
    "The code of a stage notebook up to its library part"
    for cell in json.loads((ROOT / 'nbs' / f'{notebook}.ipynb').read_text(encoding='utf-8'))['cells']:
        source = ''.join(cell['source'])
        if source.startswith('# The stage'):
            return
        if cell['cell_type'] == 'code' and not source.startswith('#|'):
            yield cell['metadata'].get('tags', []), source


def words_of(thing):
    "What a reader sees of something that is displayed"
    if hasattr(thing, 'to_html'):
        return thing.to_html()
    if hasattr(thing, 'data') and isinstance(thing.data, str):
        return thing.data
    return ''


def words_in(figure):
    return '\n'.join(t.get_text() for t in figure.findobj(lambda a: hasattr(a, 'get_text')))


@pytest.fixture
def reports(tmp_path, monkeypatch):
    "Run the report part of the stage notebooks in this process -> all that they show, by notebook"
    import IPython.display

    import cxr_lib.foundations.figures
    import cxr_lib.stages.evaluation
    import cxr_lib.stages.explanation
    import cxr_lib.stages.reasoning

    said = []

    def save(figure, path, *more):
        figure.set_layout_engine('none')  # where things go is not the question here, and takes longest
        figure.draw_without_rendering()
        said.append(words_in(figure))
        Image.new('L', (8, 8)).save(path)
        return path

    monkeypatch.setattr(cxr_lib.foundations.figures, 'save_figure', save)
    monkeypatch.setattr(cxr_lib.stages.evaluation, 'save_figure', save)
    monkeypatch.setattr(cxr_lib.stages.explanation, 'save_figure', save)
    monkeypatch.setattr(cxr_lib.stages.reasoning, 'save_figure', save)
    monkeypatch.setattr(IPython.display, 'display', lambda *things, **_: said.extend(map(words_of, things)))
    monkeypatch.setattr(plt, 'show', lambda: plt.close('all'))
    monkeypatch.setenv('CXR_HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def run(table, until='05_evaluation', **parameters):
        root, found = write_folder(tmp_path / 'data' / 'odd', table), {}
        for notebook, given in STAGES.items():
            said.clear()
            scope = {}
            for tags, source in report_cells(notebook):
                exec(source, scope)
                if 'parameters' in tags:
                    wanted = dict(given, run='odd', root=str(root), **parameters)
                    scope.update({k: v for k, v in wanted.items() if k in scope})
            plt.close('all')
            found[notebook[3:]] = '\n'.join(said)
            if notebook == until:
                break
        return found

    return run


def one_kind_in(split, n=N):
    "Labels of both kinds, but for one split, in which all are positive"
    splits = studies(n).split
    return labels([1 if s == split else i // 4 % 2 for i, s in enumerate(splits)])


#: case -> (table, notebook that is run last, notebook -> what it has to say)
SURVIVE = {
    'no label at all': (
        studies(**labels(np.nan)),
        '07_reasoning',
        {
            'exploration': [
                'No image has a label: these data can be examined and given notes',
                'no image has a positive label: nothing goes with anything',
                'no image has a positive label',
            ],
            'notes': ['The probe is undefined here'],
            'training': ['Nothing was learned', 'undefined: no observation has both'],
            'evaluation': ['No mean is headlined', 'not labelled in these data'],
            'explanation': ['No test image has a label', 'unlike the images that this model was trained on'],
            'reasoning': ['No statement about tuning images could be compared', 'no label'],
        },
    ),
    'negatives only, lateral films, nobody known, blank notes': (
        studies(**labels(0), view='Lateral', projection=None, sex=None, age=None, note='  '),
        '07_reasoning',
        {
            'exploration': [
                'Every label is negative, none is positive: no AUROC is defined',
                'Every image is lateral',
                'No patient has a known sex',
                'No patient has a known age',
                'ages are not known',
                'This source has no notes of its own',
                'no image has a positive label',
            ],
            'notes': ['**Simulated notes**'],
            'training': ['The mean AUROC on the tuning split is undefined'],
            'evaluation': ['undefined: no positive case', 'No mean is headlined'],
            'reasoning': ['No statement about tuning images could be compared', 'nothing labelled'],
        },
    ),
    'positives only, one age, one sex, the same note for all': (
        studies(**labels(1), age=50, sex='Female', note='cough'),
        '07_reasoning',
        {
            'exploration': [
                'Every label is positive, none is negative',
                'has the same (50 years)',
                'has the same (Female)',
                '36 of 36 studies have a note; 1 of these are different',
            ],
            'notes': ['1 distinct texts'],
            'training': ['The mean AUROC on the tuning split is undefined'],
            'evaluation': ['undefined: no negative case', 'No mean is headlined'],
            'reasoning': ['No statement about tuning images could be compared'],
        },
    ),
    'uncertain only': (
        studies(**labels(-1)),
        '04_training',
        {'exploration': ['Every label is uncertain (-1)'], 'training': ['Nothing was learned']},
    ),
    'one kind in the test split': (
        studies(**one_kind_in('test')),
        '02_notes',
        {
            'exploration': [
                'No observation has both a positive and a negative in the test split: every AUROC will be undefined'
            ]
        },
    ),
    'a single note': (
        studies(note=['cough', *[None] * (N - 1)]),
        '03_model',
        {
            'exploration': ['1 of 36 studies have a note'],
            'notes': ['35 of them without a note', '1 distinct texts'],
        },
    ),
    'everybody in the test split': (
        studies(split='test'),
        '02_notes',
        {
            'exploration': [
                'No image is in the train split: the training stage will stop',
                'No image is in the tuning split',
            ],
            'notes': [
                'No study outside the test split has a note to show',
                'No study outside the test split has a positive label',
            ],
        },
    ),
}

#: case -> (table, the notebook that refuses, what it says)
REFUSED = {
    'one image': (
        studies(1, split=None),
        'exploration',
        '1 image of 1 patient: splits are by patient, and training, tuning and test need at least one each. '
        'Add patients',
    ),
    'one patient': (
        studies(patient_id='p', split=None),
        'exploration',
        '36 images of 1 patient: splits are by patient.*name a column that does',
    ),
    'two patients': (
        studies(patient_id=['a', 'b'] * N, split=None),
        'exploration',
        '36 images of 2 patients',
    ),
    'nobody to tune on': (
        studies(split=['train', 'test'] * N),
        'training',
        'the tuning split is empty.*Change one of these in the exploration, or train with folds',
    ),
}


@pytest.mark.parametrize('case', SURVIVE)
def test_every_page_survives_and_says_so_in_words(reports, tmp_path, case):
    table, until, words = SURVIVE[case]
    found = reports(table, until)
    for notebook, sentences in words.items():
        for sentence in sentences:
            assert sentence in found[notebook], (notebook, sentence)
    run = RunFolder(tmp_path / 'reports' / 'odd')
    last = max((s for s in ALL if run.stamped(s)), key=ALL.index)
    assert last == until[3:] and run.done(last)
    if last != 'evaluation':
        return
    assert 'nan' not in str(read_json(run / 'metrics.json')['verdict']).lower()
    assert (
        run.altered('training') == {}
    )  # although the evaluation has put its calibration into the model's folder
    (run / 'model' / 'config.json').write_text(
        (run / 'model' / 'config.json').read_text().replace('"tiny"', '"tinY"')
    )
    assert list(run.altered('training')) == ['model/config.json'] and not run.done('training')


@pytest.mark.parametrize('case', REFUSED)
def test_what_makes_no_sense_is_refused_with_the_remedy(reports, tmp_path, case):
    table, stage, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        reports(table)
    run = RunFolder(tmp_path / 'reports' / 'odd')
    assert [s for s in ALL if run.stamped(s)] == list(ALL[: ALL.index(stage)])


EMPTY = studies().astype({o: float for o in OBSERVATIONS}).iloc[:0]
NOTHING = data.Scan(
    pd.DataFrame(columns=['image', 'width', 'height', 'mean', 'sd', 'error']), np.zeros((0, 32, 32), np.uint8)
)
PAIRS = pd.DataFrame(columns=['image_1', 'split_1', 'image_2', 'split_2', 'similarity'])
PICTURES = {
    'contact sheet': (lambda: data.plot_contact_sheet(EMPTY, '.'), 'no image to show'),
    'patients': (lambda: data.plot_patients(EMPTY), 'no image, and so no patient'),
    'label states': (lambda: data.plot_label_states(EMPTY), 'no image, and so no label'),
    'co-occurrence': (lambda: data.plot_cooccurrence(EMPTY), 'nothing goes with anything'),
    'prevalence': (lambda: data.plot_prevalence_by(EMPTY, ['sex', 'age']), 'no prevalence to compare'),
    'observations': (lambda: data.plot_observation_sheet(EMPTY, '.'), 'no image has a positive label'),
    'pixels': (lambda: data.plot_pixels(EMPTY, NOTHING), 'no image was scanned'),
    'pairs': (lambda: data.plot_pairs(PAIRS, '.'), 'no pair of near-identical images'),
    'note lengths': (lambda: data.plot_notes(EMPTY), 'no study has a note'),
    'certificate': (
        lambda: leakage.plot_certificate(leakage.leakage_certificate(EMPTY)),
        'undefined: sex, age and projection are missing or the same for all',
    ),
    'learning curves': (
        lambda: training.plot_training(
            pd.DataFrame(columns=['model', 'fold', 'epoch', 'train_loss', 'tuning_auroc'])
        ),
        'no epoch was trained',
    ),
}
TABLES = {
    'overlap': (lambda: data.describe_overlap(EMPTY), 'There is no image'),
    'notes': (lambda: data.describe_notes(EMPTY), 'No study has a note'),
    'gaps': (lambda: data.describe_gaps(EMPTY), 'No image is in the train split'),
    'films': (lambda: leakage.film_description_report(EMPTY), 'There are no notes'),
}


@pytest.mark.parametrize('name', PICTURES)
def test_a_picture_of_zero_rows_says_why_it_shows_nothing(name):
    draw, words = PICTURES[name]
    figure = draw()
    figure.draw_without_rendering()
    assert words in words_in(figure)
    plt.close('all')


@pytest.mark.parametrize('name', TABLES)
def test_a_sentence_about_zero_rows_is_one(name):
    say, words = TABLES[name]
    assert words in say() and 'nan' not in say()
