"""A decoder as the stage makes it, with few patients and one epoch: what it may not do, and what is left in the run."""

import finished_run as runs
import numpy as np
import pandas as pd
import pytest

from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.foundations.files import read_json, write_json
from cxr_lib.foundations.run import RunFolder
from cxr_lib.metrics.predictions import synthetic_predictions
from cxr_lib.reasoning.decoder import load_decoder
from cxr_lib.simulation.patients import draw_patients
from cxr_lib.stages.reasoning import Wanted, reasoning_stage, stored_reasoning

pytest.importorskip('llguidance', reason='the extra `train` is not installed')
FEW = dict(n_texts=10, n_cases=4)


def true_predictions(*args, **kwargs):
    "A prediction table whose labels are those of simulated patients"
    table = synthetic_predictions(*args, **kwargs)
    table = table.drop(columns=[name for name in table if name.startswith('best_')])
    people = draw_patients(len(table), seed=3)
    return table.assign(**{f'label/{o}': people[o].to_numpy(float) for o in OBSERVATIONS})


def trained_studies(predictions, studies_of=runs.studies_of):
    "A study table with training patients, which a prediction table lacks"
    studies = studies_of(predictions)
    return studies.assign(split=studies['split'].replace('tuning', 'train'))


@pytest.fixture(scope='module')
def reasoned(tmp_path_factory):
    "(run, what the stage found) with a decoder; the model is untrained"
    home = tmp_path_factory.mktemp('home')
    with pytest.MonkeyPatch.context() as m:
        m.setenv('CXR_HOME', str(home))
        m.setattr(runs, 'synthetic_predictions', true_predictions)
        m.setattr(runs, 'studies_of', trained_studies)
        run = RunFolder(runs.finished_run(home, 'small'))
        studies = pd.read_parquet(run / 'studies_with_notes.parquet')
        people = draw_patients(len(studies), seed=3)
        people.assign(image=studies['image']).to_parquet(home / 'data' / 'films0' / 'latent.parquet')
        write_json(run / 'notes.json', dict(mode='clinical'))
        yield run, reasoning_stage(run, decoder=Wanted(epochs=1, n_references=24), **FEW)


def test_under_the_grammar_nothing_is_stated_that_the_structure_does_not_hold(reasoned):
    measures = read_json(reasoned[0] / 'writers.json')
    for writer in ('template', 'template, strongest evidence', 'decoder, grammar', '4-gram, grammar'):
        of = measures[writer]
        assert of['statements'] > 130
        assert of['unsupported, or another number']['value'] == 0
        assert of['texts outside the grammar']['value'] == 0
        assert of['score against the structure']['value'] == 1
    assert measures['4-gram, free']['texts outside the grammar']['value'] > 0


def test_ceilings_and_floor_stand_beside_the_writers(reasoned):
    measures = read_json(reasoned[0] / 'writers.json')
    score = {name: of['score against the truth']['value'] for name, of in measures.items()}
    assert score['template'] == score['decoder, grammar'] == score['4-gram, grammar']
    assert score['ceiling: exact posterior'] > score['floor: nothing said']
    said = ' '.join(reasoned[1].sentences)
    gains = measures['decoder, grammar']['gain in right evidence']
    wins = all((gain['low'] or 0) > 0 for gain in gains.values())
    assert ('The template wins' in said) == (not wins)


def test_the_run_keeps_the_decoder_and_the_table(reasoned):
    run, found = reasoned
    run.check('reasoning')
    stored = stored_reasoning(run)
    assert stored.writers.equals(found.writers)
    by_observation = pd.read_csv(run / 'writers_by_observation.csv', index_col=0, dtype=str).fillna('')
    held = by_observation.filter(like='decoder, grammar; ').to_numpy()
    assert (held == by_observation.filter(like='template; ').to_numpy()).all()
    assert 'by decoder, grammar' in ' '.join(stored.texts)
    fingerprint = read_json(run / 'certainty.json')['fingerprint']
    assert load_decoder(run / 'decoder', fingerprint).projection.in_features == 64
    with pytest.raises(ValueError, match='reads the tokens of the model'):
        load_decoder(run / 'decoder', 'f' * 16)


def test_without_the_truth_there_is_no_decoder(tmp_path, monkeypatch):
    monkeypatch.setenv('CXR_HOME', str(tmp_path))
    run = RunFolder(runs.finished_run(tmp_path, 'small'))
    with pytest.raises(ValueError, match='references are written from the truth of simulated patients'):
        reasoning_stage(run, decoder=Wanted(epochs=1), **FEW)


def test_the_main_job_trains_no_decoder(tmp_path, monkeypatch):
    monkeypatch.setenv('CXR_HOME', str(tmp_path))
    run = RunFolder(runs.finished_run(tmp_path, 'small'))
    found = reasoning_stage(run, **FEW)
    assert found.writers is None and not (run / 'decoder').exists()
    assert np.all(['decoder' not in sentence for sentence in found.sentences])
