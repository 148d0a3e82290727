"""The layout of metrics.json under faults at every place, and a model card that says just what the files say."""

import copy
import json
import random
import re

import numpy as np
import pandas as pd
import pytest

from cxr_lib.evaluation.card import (
    METRICS_SCHEMA,
    NOT_MEASURED,
    NOT_RECORDED,
    SCHEMAS,
    SECTIONS,
    TYPES,
    Entry,
    card_parts,
    check_metrics,
    describe_schema,
    look_up,
    model_card,
    number,
    write_model_card,
)
from cxr_lib.foundations.core import OBSERVATIONS, RESEARCH_USE, SIMULATED
from cxr_lib.foundations.run import RunFolder
from cxr_lib.foundations.files import read_json, write_json
from cxr_lib.evaluation.report import evaluate
from cxr_lib.evaluation.fairness import fairness
from cxr_lib.metrics.predictions import synthetic_predictions


def with_fairness(metrics, predictions):
    "As chapter 05 writes it once it holds the fairness block"
    if 'fairness' in metrics:
        return metrics
    found = fairness(predictions, n_bootstrap=10, simulated=metrics['simulated'])
    return metrics | dict(subgroups=found.pop('subgroups'), fairness=found, schema=SCHEMAS[1])


@pytest.fixture(scope='module')
def metrics():
    t = synthetic_predictions(250, seed=1)
    return with_fairness(evaluate(t, n_bootstrap=10, simulated=True), t)


@pytest.fixture(scope='module')
def stored(metrics, tmp_path_factory):
    return read_json(write_json(tmp_path_factory.mktemp('stored') / 'metrics.json', metrics))


# ---- the layout


def test_every_entry_is_described():
    for path, entry in METRICS_SCHEMA.items():
        assert isinstance(entry, Entry), path
        assert entry.type in TYPES, path
        assert entry.meaning, path
        assert re.fullmatch(r'[\w<>.\[\] ]+', path), path
    table = describe_schema()
    shown = {
        p
        for row in table['path']
        for base in [row.split(' (and')[0]]
        for p in ([base, f'{base}_low', f'{base}_high'] if '(and' in row else [base])
    }
    assert shown == set(METRICS_SCHEMA)
    assert set(table['required']) == {'yes', 'no'}
    assert (describe_schema('subgroups')['path'].str.startswith('subgroups')).all()
    assert len(describe_schema('subgroups'))


@pytest.mark.parametrize(
    'predictions',
    [
        synthetic_predictions(120, seed=2),
        synthetic_predictions(150, seed=3, n_folds=3),
        synthetic_predictions(25, seed=4),
    ],
    ids=['one split', 'folds', 'a few patients'],
)
def test_what_the_evaluation_writes_passes_in_memory_and_from_the_file(predictions, tmp_path):
    plain = evaluate(predictions, n_bootstrap=3)
    for m in (plain, with_fairness(plain, predictions)):
        assert check_metrics(m) is m
        write_json(tmp_path / 'metrics.json', m)
        assert check_metrics(tmp_path / 'metrics.json')['schema'] in SCHEMAS


def test_both_versions_and_the_optional_blocks(stored):
    for name in SCHEMAS:
        check_metrics(stored | dict(schema=name))
    blocks = {k for k, e in METRICS_SCHEMA.items() if e.type == 'block' and '.' not in k}
    optional = {'comparisons', 'decisions', 'conformal', 'pretest', 'published', 'permutations', 'sources'}
    assert blocks == optional
    assert not any(METRICS_SCHEMA[k].required for k in blocks)
    check_metrics(stored | {k: {'anything': [1]} for k in blocks})
    check_metrics({k: v for k, v in stored.items() if k != 'fairness'})
    with pytest.raises(ValueError, match='conformal is'):
        check_metrics(stored | dict(conformal=3))
    with pytest.raises(ValueError, match='schema is None'):
        check_metrics({})
    with pytest.raises(ValueError, match="schema is 'cxr_lib.evaluation/9'"):
        check_metrics(stored | dict(schema='cxr_lib.evaluation/9'))


BLOCKS = ('strata', 'maps')
LOOSE = ('comparisons', 'decisions', 'conformal', 'pretest', 'published', 'permutations')


def places(value, path=()):
    "Every place of a file, but for the single texts of a list and what is inside a block"
    if path:
        yield path
    if path and path[0] in LOOSE:
        return
    inside = {}
    if isinstance(value, dict):
        inside = value
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        inside = dict(enumerate(value))
    for key, below in inside.items():
        yield from places(below, (*path, key)) if key not in BLOCKS else ()


def named(path):
    "A place as errors name it"
    return ''.join(f'[{key}]' if isinstance(key, int) else f'.{key}' for key in path)[1:]


def at(metrics, path):
    return at(metrics[path[0]], path[1:]) if path else metrics


def changed(metrics, path, change):
    "A copy with one place changed; only what is on the way to it is copied"
    parent = copy.copy(metrics)
    if len(path) == 1:
        change(parent, path[0])
    else:
        parent[path[0]] = changed(metrics[path[0]], path[1:], change)
    return parent


def may_be_absent(path):
    "Items of a list, folds, most conditions and differences, and what is optional"
    optional = {'n_averaged', 'n_folds', 'fairness', 'ece_low', 'ece_high', *LOOSE}
    if path[0] == 'calibration':
        optional |= {'brier_low', 'brier_high', 'method', 'maps'}
    if isinstance(path[-1], int) or path[-1] in optional or path[::2] == ('subgroups', 'compared'):
        return True
    if path[0] == 'thresholds':
        return len(path) in (2, 4)
    if path[0] == 'conditions' and path[1:] in (('fused',), ('image_only',), ('note_only',)):
        return False
    return path[0] in ('conditions', 'differences') and len(path) == 2


@pytest.fixture(scope='module')
def some_places(stored):
    "A few hundred of the thousands, of every depth"
    every = [p for p in places(stored) if p != ('schema',)]
    assert len(every) > 5000
    return [p for p in every if len(p) < 3] + random.Random(0).sample(every, 150)


def test_whatever_is_missing_is_named(stored, some_places):
    for path in some_places:
        wrong = changed(stored, path, lambda parent, key: parent.pop(key))
        if may_be_absent(path):
            check_metrics(wrong)
        else:
            with pytest.raises(ValueError, match=re.escape(f'{named(path)} is missing')):
                check_metrics(wrong)


def test_whatever_is_of_the_wrong_type_is_named(stored, some_places):
    for path in some_places:
        wrong = 7 if isinstance(at(stored, path), str) else 'words'
        with pytest.raises(ValueError, match=re.escape(f'metrics.json: {named(path)} is')):
            check_metrics(
                changed(stored, path, lambda parent, key, wrong=wrong: parent.__setitem__(key, wrong))
            )


def test_whatever_is_unknown_is_named(stored, some_places):
    objects = [p for p in some_places if isinstance(at(stored, p), dict) and p[0] not in LOOSE]
    assert len(objects) > 40
    for path in objects:
        with pytest.raises(ValueError, match=re.escape(f'{named(path)}.invented is not in the schema')):
            check_metrics(
                changed(
                    stored, path, lambda parent, key: parent.__setitem__(key, parent[key] | dict(invented=1))
                )
            )


@pytest.mark.parametrize(
    'path, value',
    [
        (('n_images',), -1),
        (('n_images',), 2.0),
        (('n_images',), True),
        (('simulated',), 1),
        (('confidence',), 95),
        (('verdict',), 'one sentence'),
        (('verdict',), [1]),
        (('conditions', 'fused', 'means', 'evaluable', 'auroc'), 1.2),
        (('conditions', 'fused', 'means', 'evaluable', 'auroc'), float('inf')),
        (('differences', 'fused_minus_image_only', 'means', 'evaluable', 'value'), -1.5),
        (('subgroups',), {}),
        (('observations',), []),
    ],
)
def test_values_out_of_their_range_are_refused(stored, path, value):
    with pytest.raises(ValueError, match=re.escape('.'.join(path))):
        check_metrics(changed(stored, path, lambda parent, key: parent.__setitem__(key, value)))


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / 'metrics.json').write_text('{"schema": ')
    with pytest.raises(ValueError, match='metrics.json is not valid JSON'):
        check_metrics(tmp_path / 'metrics.json')
    write_json(tmp_path / 'metrics.json', [1])
    with pytest.raises(ValueError, match='expected an object'):
        check_metrics(tmp_path / 'metrics.json')


# ---- the card


@pytest.fixture
def run(tmp_path, metrics):
    "What the stages leave behind, as far as the card reads it"
    folder = RunFolder(tmp_path / 'a run')
    write_json(
        folder / 'source.json',
        dict(
            dataset='simulated',
            root='/home/somebody/secret',
            simulated=True,
            has_images=True,
            n_images=3,
            n_excluded=1,
            n_patients=3,
            fingerprint='0011223344556677',
        ),
    )
    write_json(
        folder / 'notes.json',
        dict(
            mode='clinical',
            dataset='simulated',
            simulated_notes=True,
            n_missing=1,
            n_distinct=2,
            film_words=0.25,
            median_words=20.0,
        ),
    )
    write_json(
        folder / 'leakage.json',
        dict(means=dict(words=dict(value=0.61, low=0.55, high=0.67, observations=14.0))),
    )
    write_json(
        folder / 'architecture.json',
        dict(
            preset='tiny',
            overrides=dict(dropout=0.2),
            model=dict(image_encoder='test_byobnet', image_size=128, text_encoder='', max_tokens=96),
            parameters=dict(total=444906),
        ),
    )
    write_json(
        folder / 'model/config.json',
        dict(
            format='cxr_lib.model/2',
            model=dict(image_encoder='test_byobnet', image_size=128, text_encoder='', max_tokens=96),
            fold=-1,
            simulated=True,
            files={'model.safetensors': dict(sha256='ab12' * 16)},
            versions=dict(torch='9.9.9', timm=None),
        ),
    )
    write_json(
        folder / 'config.json',
        dict(
            stages=dict(training=dict(label_policy='ignore', folds=0, seed=5)), versions=dict(torch='9.9.9')
        ),
    )
    pd.DataFrame(
        dict(
            model='multimodal',
            fold=-1,
            epoch=[1, 2, 3],
            tuning_auroc=[0.6, 0.7112, 0.65],
            best=[True, True, False],
        )
    ).to_csv(folder / 'training_log.csv', index=False)
    pd.DataFrame(
        dict(
            patient_id=['secret-1', 'secret-2', 'secret-3'],
            sex=['Male', 'Male', 'Female'],
            age=[40.0, 50.0, 60.0],
            split=['train', 'tuning', 'test'],
        )
    ).to_parquet(folder / 'studies.parquet')
    pd.DataFrame(dict(row=[1], image=['secret.png'], reason=['damaged'])).to_csv(
        folder / 'exclusions.csv', index=False
    )
    write_json(folder / 'metrics.json', metrics)
    return folder


def section(card, title):
    return card.split(f'## {title}\n')[1].split('\n## ')[0]


def test_the_sections_are_there_and_research_use_comes_first(run):
    card = model_card(run)
    assert re.findall(r'(?m)^## (.+)$', card) == list(SECTIONS) and len(SECTIONS) == 9
    assert card.index(RESEARCH_USE) < 120
    assert card.index(SIMULATED) < 300
    assert 'secret' not in card
    assert 'None' not in card
    assert not re.search(r'\bnan\b', card)


def test_the_card_says_what_the_files_say(run, metrics):
    card = model_card(run)
    for text in (
        'Preset: tiny',
        "{'dropout': 0.2}",
        'Parameters: 444,906',
        'ab12' * 16,
        'torch 9.9.9',
        'Label policy: ignore',
        'Seed of the training: 5',
    ):
        assert text in section(card, 'Model details')
    assert 'timm' not in section(card, 'Model details')  # not installed: no version
    assert '0011223344556677' in section(card, 'Evaluation data')
    assert '0.610 [0.550, 0.670]' in card
    assert 'describe an image: 0.250' in card
    assert 'train: 1 images' in section(card, 'Training data')
    assert '3 epochs, 1 training run; mean AUROC on the tuning split at the chosen epoch 0.711' in card
    assert 'Excluded images: 1' in card
    means = metrics['conditions']['fused']['means']['evaluable']
    assert f'| image + note | {means["auroc"]:.3f} [{means["low"]:.3f}, {means["high"]:.3f}] |' in card
    for o in OBSERVATIONS:
        one, row = (
            metrics['conditions']['fused']['observations'][o],
            re.search(rf'(?m)^\| {o} \|.*$', card)[0],
        )
        auroc = number(one['auroc'], one['low'], one['high'])
        assert f'| {one["n_positive"]} | {one["n_negative"]} | {auroc} |' in row
    for sentence in metrics['fairness']['sentences']:
        assert sentence in section(card, 'Ethical considerations')
    for row in metrics['subgroups']:
        assert f'| {row["attribute"]} | {row["group"]} | {row["n_images"]} |' in card
    assert 'Absent' not in card


def test_tables_are_whole(run, metrics):
    m = copy.deepcopy(metrics)
    m['subgroups'][0]['group'] = 'a|b'
    write_json(run / 'metrics.json', m)
    for table in re.findall(r'(?:^\|.*\n)+', model_card(run), re.M):
        assert len({line.count('|') for line in table.strip().split('\n')}) == 1


@pytest.mark.parametrize(
    'file, words',
    [
        ('metrics.json', NOT_MEASURED),
        ('source.json', NOT_RECORDED),
        ('notes.json', f'Notes: {NOT_RECORDED}'),
        ('leakage.json', NOT_MEASURED),
        ('architecture.json', f'Parameters: {NOT_RECORDED}'),
        ('training_log.csv', f'Course of the training: {NOT_RECORDED}'),
        ('studies.parquet', f'split: {NOT_RECORDED}'),
        ('exclusions.csv', f'Excluded images: {NOT_RECORDED}'),
        ('model/config.json', f'Format: {NOT_RECORDED}'),
        ('config.json', f'Label policy: {NOT_RECORDED}'),
    ],
)
def test_a_missing_file_is_said_to_be_missing(run, file, words):
    before = model_card(run)
    (run / file).unlink()
    card = model_card(run)
    assert card.count(words) > before.count(words)
    assert file in card.split('Absent when this card was written:')[1]
    assert re.findall(r'(?m)^## (.+)$', card) == list(SECTIONS)


def test_an_empty_run_has_no_numbers(tmp_path):
    (tmp_path / 'empty').mkdir()
    card = model_card(tmp_path / 'empty')
    assert not re.search(r'0\.\d{3}', card)
    assert card.count(NOT_MEASURED) >= 8
    assert card.count(NOT_RECORDED) >= 10
    assert RESEARCH_USE in card
    assert SIMULATED not in card


def test_an_undefined_number_is_not_measured(run, metrics):
    m = copy.deepcopy(metrics)
    m['conditions']['fused']['means']['evaluable'] |= dict(
        auroc=float('nan'), low=float('nan'), high=float('nan')
    )
    write_json(run / 'metrics.json', m)
    assert f'| image + note | {NOT_MEASURED} |' in model_card(run)
    assert number(None) == number(np.nan) == NOT_MEASURED
    assert number(0) == '0'
    assert number(0.25, None, np.nan) == '0.250'


@pytest.mark.parametrize(
    'patients, notes, marked',
    [(True, True, SIMULATED), (False, True, 'The notes are SIMULATED.'), (False, False, None)],
)
def test_what_is_simulated_is_marked(run, metrics, patients, notes, marked):
    write_json(
        run / 'source.json',
        dict(dataset='simulated' if patients else 'openi', root='', simulated=patients, fingerprint='f'),
    )
    write_json(
        run / 'notes.json',
        dict(
            mode='clinical' if notes else 'real',
            simulated_notes=notes,
            n_missing=0,
            n_distinct=1,
            film_words=0.0,
        ),
    )
    write_json(run / 'model/config.json', dict(simulated=patients))
    write_json(
        run / 'metrics.json',
        json.loads(json.dumps(metrics | dict(simulated=patients, verdict=[])).replace('NaN', 'null')),
    )
    card = model_card(run)
    assert (marked in card) if marked else 'SIMULATED' not in card.split('## Ethical')[0]


def test_one_file_that_says_simulated_is_enough(run):
    write_json(run / 'source.json', dict(dataset='csv', root='', simulated=False))
    assert SIMULATED in model_card(run)  # metrics and model say so


def test_folds_are_described_as_folds(run):
    write_json(run / 'config.json', dict(stages=dict(training=dict(folds=4))))
    assert '3 images of 3 patients in 4 folds by patient' in model_card(run)


def test_what_cannot_be_read_is_named(run):
    (run / 'notes.json').write_text('{')
    with pytest.raises(ValueError, match='notes.json'):
        model_card(run)
    write_json(run / 'notes.json', [1])
    with pytest.raises(ValueError, match='notes.json holds a list'):
        model_card(run)
    write_json(run / 'notes.json', {})
    write_json(run / 'metrics.json', dict(schema=SCHEMAS[0]))
    with pytest.raises(ValueError, match='metrics.json: simulated is missing'):
        model_card(run)


def test_the_card_is_written_whole_and_only_into_a_run(run, tmp_path, monkeypatch):
    path = write_model_card(run)
    assert path == run / 'model_card.md'
    assert path.read_text(encoding='utf-8') == model_card(run.path) == model_card(card_parts(run))
    assert not [p for p in run.path.iterdir() if '.tmp' in p.name]
    with pytest.raises(FileNotFoundError, match='no such run'):
        write_model_card(tmp_path / 'nowhere')
    assert not (tmp_path / 'nowhere').exists()
    monkeypatch.setenv('CXR_HOME', str(tmp_path))
    (tmp_path / 'reports').mkdir()
    run.path.rename(tmp_path / 'reports' / 'named')
    assert write_model_card('named') == tmp_path / 'reports' / 'named' / 'model_card.md'
    with pytest.raises(FileNotFoundError, match='no such run'):
        model_card('unnamed')
    assert not (tmp_path / 'reports' / 'unnamed').exists()


def test_looking_up_never_fails():
    assert look_up({'a': {'b': 1}}, 'a', 'b') == 1
    assert look_up({'a': [1]}, 'a', 'b') is None
    assert look_up({'a': 3}, 'a', 'b') is None
    assert look_up({}, 'a') is None
