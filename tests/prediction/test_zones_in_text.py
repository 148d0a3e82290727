"""Where the image speaks for a finding is said only where the map and its names were accepted."""

import numpy as np
import pytest
from toys import NOTE, toy_model

import cxr_lib.prediction.load as loading
from cxr_lib.explanation.acceptance import why_no_zone
from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.prediction.load import load
from cxr_lib.reasoning.words import disagreements
from cxr_lib.simulation.rendering import render_radiograph

PASSED = dict(accepted=True, hit_rate=dict(value=0.9), location_prior=dict(value=0.2), reason='')


def explained(**zone):
    passed = dict(accepted=True, tuning=dict(accepted=True))
    of = {o: PASSED | dict(zone=passed | zone) for o in OBSERVATIONS[1:]}
    bench = dict(world='plain', in_distribution=True)
    return dict(methods={'grad_cam': of}, default_method='grad_cam', settings={}, bench=bench)


@pytest.fixture
def model(tmp_path, monkeypatch):
    "A toy whose maps all point to the viewer's left, at the height of the hila"
    predictor = load(toy_model(tmp_path / 'model', simulated=True))
    predictor.conformal, predictor.explanation = None, explained()

    def one_spot(classifier, questions, *_):
        maps = np.zeros((len(questions.studies), 32, 32))
        maps[:, 14:17, 6:8] = 1
        return maps

    monkeypatch.setattr(loading, 'attribute_each', one_spot)
    return predictor


FILM = render_radiograph({}, seed=3, masks=False).image


def placed(prediction):
    "(observation, zone) of all evidence with a zone"
    found = []
    for d in prediction.differential.diagnoses:
        assert all(e.zone is None for e in d.evidence_against)
        found += [(d.observation, e.zone.name) for e in d.evidence_for if e.zone]
        assert all(e.source == 'image' for e in d.evidence_for if e.zone)
    return found


def test_the_text_names_the_zone_and_the_labeler_reads_no_finding_in_it(model):
    prediction = model(FILM, NOTE)
    assert placed(prediction) and {zone for _, zone in placed(prediction)} == {'right mid zone'}
    called = {a.observation for a in prediction.observations if a.probability.fused >= 0.25}
    assert {o for o, _ in placed(prediction)} <= called
    told = [s for s in prediction.report.sentences if s.zone]
    assert told and all('in the right mid zone' in s.text for s in told)
    with_zones = disagreements(prediction.report, prediction.differential)
    model.explanation = None
    without = model(FILM, NOTE)
    assert with_zones == disagreements(without.report, without.differential)


def test_two_studies_keep_their_own_zones(model):
    alone, several = model(FILM, NOTE), model([FILM, None], [NOTE, NOTE])
    assert placed(several[0]) == placed(alone) and placed(several[1]) == []


@pytest.mark.parametrize(
    'spoil',
    [
        lambda m: setattr(m, 'explanation', None),
        lambda m: setattr(m, 'explanation', explained(accepted=False)),
        lambda m: setattr(m, 'explanation', explained(tuning=dict(accepted=False))),
        lambda m: m.explanation['bench'].update(in_distribution=False),
        lambda m: [v.update(accepted=False) for v in m.explanation['methods']['grad_cam'].values()],
    ],
    ids=['no maps', 'names refused', 'often wrong', 'another kind of patient', 'maps refused'],
)
def test_without_a_verdict_no_zone_is_named_and_the_text_says_why(model, spoil):
    assert model(FILM, NOTE).differential.no_zone == ''
    spoil(model)
    prediction = model(FILM, NOTE)
    assert placed(prediction) == [] and not [s for s in prediction.report.sentences if s.zone]
    reason = why_no_zone(model.explanation)
    assert reason and f'No zone is named: {reason}.' in str(prediction.report)
    assert 'No zone is named' not in str(model(None, NOTE).report)


def test_no_zone_in_an_image_that_fails_the_input_check(model):
    for image in (255 - FILM, np.ascontiguousarray(np.rot90(FILM)), np.zeros((64, 64), np.uint8)):
        prediction = model(image, NOTE)
        assert placed(prediction) == [] and 'zone' not in str(prediction.report)


def test_no_map_is_computed_where_none_is_shown(model, monkeypatch):
    def never(*_):
        raise AssertionError('a map was computed')

    monkeypatch.setattr(loading, 'attribute_each', never)
    encoded = model.encode(FILM)
    model.answer([encoded], [NOTE], sentences=False)
    model.explanation = explained(accepted=False)
    model.answer([encoded], [NOTE])
