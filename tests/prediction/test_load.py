"""`load` and the `Prediction` that it gives: exact parts, equal answers whichever way they are asked for."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from toys import NOTE, films, toy_model

from cxr_lib.data.elements import FileInMemory
from cxr_lib.explanation.facts import MAX_SENTENCES, split_sentences
from cxr_lib.foundations.core import OBSERVATIONS, RadiographError
from cxr_lib.foundations.run import RunError
from cxr_lib.model.weights import CheckpointError
from cxr_lib.prediction.load import load
from cxr_lib.prediction.schema import FORMAT, Prediction, prediction_row, prediction_schema, split_logits

SCHEMA = ROOT / 'nbs' / 'docs' / 'prediction.schema.json'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return toy_model(tmp_path_factory.mktemp('toy') / 'model')


@pytest.fixture(scope='module')
def model(folder):
    return load(folder)


def fused(prediction):
    return np.array([a.probability.fused for a in prediction.observations])


def test_importing_the_package_pulls_in_neither_torch_nor_pydantic():
    code = "import sys, cxr_lib; print([m for m in ('torch', 'pydantic', 'pandas', 'fastapi') if m in sys.modules])"
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'


def test_load_is_an_attribute_of_the_package():
    import cxr_lib

    assert cxr_lib.load is load
    with pytest.raises(AttributeError, match='no attribute'):
        cxr_lib.no_such_name  # noqa: B018


def test_no_study_has_no_answer(model):
    assert model.answers([], []) == [] == model.answer([], []) == model.logits([], [])
    assert list(model([], [])) == []


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-20, 20), min_size=3, max_size=3), st.floats(0.1, 10))
def test_the_parts_sum_to_the_calibrated_logit(logits, temperature):
    split = split_logits(*logits, temperature)
    assert split.total == split.image + split.note + split.interaction
    assert split.total == pytest.approx(logits[2] / temperature, abs=1e-9)


def test_the_parts_of_an_answer_are_the_log_odds_of_its_probability(model):
    for answer in model(films()[0], NOTE).observations:
        odds = np.log(answer.probability.fused / (1 - answer.probability.fused))
        assert answer.split.calibrated and answer.split.total == pytest.approx(odds, abs=1e-6)


def test_another_calibration_leaves_the_parts_as_they_are_and_says_so(tmp_path, model):
    other = load(toy_model(tmp_path / 'model', 'platt'))
    film = films()[0]
    encoded = other.encode(film)
    logits = other.logits([encoded], [NOTE])[0]
    for k, answer in enumerate(other(film, NOTE).observations):
        assert not answer.split.calibrated
        assert answer.split.total == pytest.approx(logits['fused'][k], abs=1e-6)


def test_without_a_calibration_the_parts_are_those_of_the_probability(tmp_path):
    answer = load(toy_model(tmp_path / 'model', None))(films()[0], NOTE)['Edema']
    odds = np.log(answer.probability.fused / (1 - answer.probability.fused))
    assert answer.split.calibrated and answer.split.total == pytest.approx(odds, abs=1e-6)


def test_a_list_gives_what_single_calls_give(model):
    notes = [NOTE, None, 'Fever.', '', NOTE * 3]
    together = model(films(), notes, batch_size=2)
    for film, note, one in zip(films(), notes, together):
        assert np.abs(fused(one) - fused(model(film, note))).max() < 1e-6
        assert one.has_note == bool(note)


def test_files_arrays_and_files_in_memory_give_the_same(model, tmp_path):
    film, path = films()[0], tmp_path / 'film.png'
    Image.fromarray(film).save(path)
    expected = fused(model(film, NOTE))
    for image in (path, str(path), FileInMemory('upload.png', path.read_bytes())):
        assert (fused(model(image, NOTE)) == expected).all()


def test_without_note_is_the_answer_to_no_note(model):
    film = films()[0]
    with_note, bare = model(film, NOTE), model(film)
    without = [a.probability.without_note for a in with_note.observations]
    assert np.abs(np.array(without) - fused(bare)).max() < 1e-6


def test_a_sentence_changes_what_its_absence_changes(model):
    film = films()[0]
    prediction = model(film, NOTE)
    for sentence, rest in zip(
        prediction.sentences, ('Known heart failure.', '65-year-old with fever and cough.')
    ):
        change = fused(prediction) - fused(model(film, rest))
        assert np.abs(change - [sentence.change[o] for o in OBSERVATIONS]).max() < 1e-6


def test_a_long_note_is_answered_but_not_taken_apart(model):
    note = ' '.join(f'Sentence {i}.' for i in range(MAX_SENTENCES + 1))
    prediction = model(films()[0], note)
    assert prediction.has_note and not prediction.sentences


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=300))
def test_splitting_into_sentences_loses_nothing_but_white_space(note):
    assert ''.join(''.join(split_sentences(note)).split()) == ''.join(note.split())


def test_unreadable_images_are_listed_and_the_rest_is_answered(model, tmp_path):
    (tmp_path / 'page.png').write_text('<html>')
    found = model([films()[0], tmp_path / 'page.png', films()[1]], [NOTE, NOTE, None])
    assert len(found) == 2 and [f.image for f in found.failures] == [str(tmp_path / 'page.png')]
    assert 'not an image file' in found.failures[0].reason
    with pytest.raises(RadiographError, match='not an image file'):
        model(tmp_path / 'page.png')


@pytest.mark.parametrize(
    'call, said',
    [
        (lambda m: m(), 'nothing to predict from'),
        (lambda m: m([films()[0]], [NOTE, NOTE]), '1 images and 2 notes'),
        (lambda m: m(films()[0], 'x' * 30_000), 'at most 20,000 are read'),
        (lambda m: m(np.zeros((4, 4, 3), np.uint8)[None]), 'expected (height, width) uint8'),
    ],
)
def test_an_impossible_question_is_an_error_that_says_why(model, call, said):
    with pytest.raises(ValueError) as e:
        call(model)
    assert said in str(e.value)


def test_the_note_alone_is_answered_by_its_own_head(model):
    prediction = model(None, NOTE)
    expected = model.classifier.predict(None, [NOTE])
    for answer in prediction.observations:
        p = answer.probability
        assert (p.fused, p.image_only, p.without_note, answer.split) == (None, None, None, None)
        assert p.note_only == pytest.approx(expected[f'note_only/{answer.observation}'][0], abs=1e-6)


def test_a_prediction_survives_json_and_fits_its_schema(model):
    import jsonschema

    prediction = model(films()[0], NOTE)
    content = prediction.model_dump_json()
    assert Prediction.model_validate_json(content) == prediction
    jsonschema.validate(json.loads(content), prediction_schema())


def test_the_schema_in_the_documents_is_the_one_in_force():
    again = 'python -m cxr_lib.prediction.schema > nbs/docs/prediction.schema.json'
    assert json.loads(SCHEMA.read_text()) == prediction_schema(), f'write it again: {again}'
    assert FORMAT in SCHEMA.read_text()


def test_a_row_begins_with_what_other_tools_expect(model):
    row = prediction_row(model(films()[0], NOTE))
    assert list(row)[:15] == ['image', *OBSERVATIONS]
    assert all(isinstance(v, (str, float, bool, type(None))) for v in row.values())


def test_simulated_models_and_models_without_evaluation_say_so(tmp_path, model):
    codes = lambda m: [w.code for w in m(films()[0]).warnings]
    assert 'not_evaluated' in codes(model) and 'simulated_model' not in codes(model)
    assert 'simulated_model' in codes(load(toy_model(tmp_path / 'model', simulated=True)))


def test_the_fingerprint_tells_models_apart(tmp_path, folder, model):
    other = load(toy_model(tmp_path / 'model', seed=1))
    assert other.facts.fingerprint != model.facts.fingerprint == load(folder).facts.fingerprint


def test_a_run_is_found_by_name_and_a_wrong_name_lists_the_runs(tmp_path, monkeypatch):
    monkeypatch.setenv('CXR_HOME', str(tmp_path))
    toy_model(tmp_path / 'reports' / 'mine' / 'model')
    (tmp_path / 'reports' / 'half').mkdir()
    assert load('mine').facts.name == load(tmp_path / 'reports' / 'mine').facts.name == 'mine'
    with pytest.raises(RunError, match='its training is not finished'):
        load('half')
    with pytest.raises(RunError, match='neither a run'):
        load('absent')
    with pytest.raises(CheckpointError, match='holds no model'):
        load(tmp_path / 'reports')


def test_a_folder_with_an_altered_file_beside_the_model_is_rejected(tmp_path):
    folder = toy_model(tmp_path / 'model')
    limits = folder / 'conformal.json'
    limits.write_text(limits.read_text().replace('0.4', '0.3', 1))
    with pytest.raises(CheckpointError, match='conformal.json is not the file'):
        load(folder)
