"""Measurements stand in the text of every front door, where they were accepted and the image can be measured."""

import numpy as np
import pytest
from toys import NOTE, toy_model

from cxr_lib.explanation.measured import RULER, pack_ruler
from cxr_lib.explanation.measurements import draw_ruler
from cxr_lib.model.saved import save_beside
from cxr_lib.prediction.load import load
from cxr_lib.simulation.rendering import render_radiograph

HEART = dict(slope=40.0, intercept=-20.0, base=-1.0, low=0.3, high=0.7, accepted=True, reason='')
FILM = render_radiograph({}, seed=3, masks=False).image


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = toy_model(tmp_path_factory.mktemp('toy') / 'model', simulated=True)
    return save_beside(folder, {RULER: pack_ruler(draw_ruler(40, seed=1, side=32), 32)})


@pytest.fixture
def model(folder):
    predictor = load(folder)
    predictor.explanation = dict(
        methods={},
        default_method=None,
        settings={},
        bench=dict(world='', in_distribution=True),
        measurements=dict(evidence={'Cardiomegaly': dict(HEART)}),
    )
    return predictor


def measured(prediction):
    "Sentences of the report that hold a measurement"
    return [s for s in prediction.report.sentences if s.id.endswith('/measurement')]


def kept(prediction):
    "Evidence of Cardiomegaly that was measured"
    d = prediction.differential['Cardiomegaly']
    return [e for e in (*d.evidence_for, *d.evidence_against) if e.measurement]


def test_the_value_in_the_text_is_that_of_the_structure(model):
    prediction = model(FILM, NOTE)
    (evidence,) = kept(prediction)
    assert 0.3 < evidence.measurement.value < 0.7 and evidence.source == 'measurement'
    for s in measured(prediction):
        assert f'cardiothoracic ratio {evidence.measurement.value:.2f}.' in s.text


def test_alone_and_among_others_an_image_has_the_same_measurements(model):
    alone, several = model(FILM, NOTE), model([None, FILM], [NOTE, NOTE])
    assert kept(several[1]) == kept(alone) and kept(several[0]) == []


@pytest.mark.parametrize(
    'spoil',
    [
        lambda m: setattr(m, 'explanation', None),
        lambda m: setattr(m, 'ruler', None),
        lambda m: m.explanation['measurements'].update(evidence={}),
        lambda m: m.explanation['measurements']['evidence']['Cardiomegaly'].update(accepted=False),
        lambda m: m.explanation.pop('measurements'),
    ],
    ids=['no explanation', 'no ruler', 'no evidence', 'refused', 'an earlier version'],
)
def test_without_a_verdict_nothing_is_measured(model, spoil):
    spoil(model)
    prediction = model(FILM, NOTE)
    assert kept(prediction) == [] == measured(prediction)


def test_an_image_that_fails_the_input_check_is_not_measured(model):
    for image in (255 - FILM, np.ascontiguousarray(np.rot90(FILM)), np.zeros((64, 64), np.uint8)):
        assert kept(model(image, NOTE)) == []
