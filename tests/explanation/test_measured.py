"""Measurements as evidence: what they are weighed by, when they are silent, and the ruler as text."""

import copy
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_lib.explanation.landmarks import draw_chests
from cxr_lib.explanation.measured import (
    ACCURATE,
    MEASURE_WORDS,
    MEASURES,
    evidence_table,
    measured_evidence,
    pack_ruler,
    unpack_ruler,
    weigh_measurements,
)
from cxr_lib.explanation.measurements import MEASUREMENTS, at_side, draw_ruler
from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.reasoning.statements import read_statements


def errors(within):
    return [dict(measurement=name, group='all', within=within) for name in MEASUREMENTS]


def drawn(n=400, seed=0):
    "Values that go with the labels, and the labels"
    rng = np.random.default_rng(seed)
    labels = pd.DataFrame((rng.random((n, len(OBSERVATIONS))) < 0.3) * 1.0, columns=list(OBSERVATIONS))
    values = {
        name: 0.4 + 0.1 * labels[sign] + rng.normal(0, 0.05, n) for name, (_, sign, _) in MEASUREMENTS.items()
    }
    return pd.DataFrame(values), labels


@pytest.fixture(scope='module')
def weights():
    return weigh_measurements(*drawn(), errors(1.0), n_bootstrap=50)


def test_what_goes_with_the_finding_is_accepted_and_what_does_not_is_not(weights):
    assert all(of['accepted'] for of in weights.values())
    values, labels = drawn()
    other = weigh_measurements(values, labels.sample(frac=1, random_state=0), errors(1.0), n_bootstrap=50)
    assert not any(of['accepted'] for of in other.values())
    turned = weigh_measurements(-values, labels, errors(1.0), n_bootstrap=50)
    assert not any(of['accepted'] for of in turned.values())


def test_an_inaccurate_measurement_is_no_evidence():
    inaccurate = weigh_measurements(*drawn(), errors(ACCURATE - 0.01), n_bootstrap=50)
    assert not any(of['accepted'] for of in inaccurate.values())
    assert measured_evidence(inaccurate, drawn()[0].iloc[0]) == {}


def test_without_positives_nothing_is_learned():
    values, labels = drawn()
    found = weigh_measurements(values, labels * 0, errors(1.0))
    assert [of['accepted'] for of in found.values()] == [False] * len(MEASURES)
    assert evidence_table(found, values, labels).used.str.startswith('no: ').all()


def test_labels_that_are_unknown_and_images_that_were_not_measured_do_not_count(weights):
    values, labels = drawn()
    more = pd.concat([values, values * 0, values * np.nan], ignore_index=True)
    unknown = pd.DataFrame(np.nan, labels.index, labels.columns)
    known = pd.concat([labels, unknown, labels], ignore_index=True)
    assert weigh_measurements(more, known, errors(1.0), n_bootstrap=50) == weights


@given(st.floats(0, 2), st.floats(0, 2))
@settings(max_examples=60, deadline=None)
def test_more_never_speaks_less_for_it_and_the_size_is_bounded(weights, one, two):
    said = [measured_evidence(weights, dict.fromkeys(MEASUREMENTS, v)) for v in sorted((one, two))]
    ends = [measured_evidence(weights, dict.fromkeys(MEASUREMENTS, v)) for v in (-9.0, 9.0)]
    for o in MEASURES:
        sizes = [of[o].logit for of in (ends[0], *said, ends[1])]
        assert sizes == sorted(sizes) and np.isfinite(sizes).all()


def test_of_two_sides_the_larger_is_named(weights):
    values = dict.fromkeys(MEASUREMENTS, 0.1) | dict(left_blunting=0.3)
    assert measured_evidence(weights, values)['Pleural Effusion'][:2] == ('left_blunting', 0.3)


def test_an_image_that_is_not_measured_has_no_evidence(weights):
    assert measured_evidence(weights, dict.fromkeys(MEASUREMENTS, np.nan)) == {}


def test_words_for_measurements_are_read_as_no_finding():
    for words in MEASURE_WORDS.values():
        for text in (
            f'The measurement speaks for it (+1.2): {words} 0.25.',
            f'Speaks against it: {words} 0.00.',
        ):
            assert read_statements(text) == []


@pytest.fixture(scope='module')
def ruler():
    return draw_ruler(30, seed=3, side=64)


def test_a_ruler_survives_its_text(ruler):
    again, side = unpack_ruler(json.loads(json.dumps(pack_ruler(ruler, 64))))
    chests = at_side(draw_chests(20, seed=4), 64)
    ours, theirs = (r.read(chests.images) for r in (ruler, again))
    assert side == 64 == chests.images.shape[-1]
    np.testing.assert_allclose(ours.points, theirs.points, atol=1e-4)


@pytest.mark.parametrize(
    'spoil',
    [
        lambda c: c.pop('limit'),
        lambda c: c.update(schema='cxr_lib.ruler/9'),
        lambda c: c['heads'].pop(),
        lambda c: c['heads'][0][0]['mean'].update(float32='!'),
        lambda c: c['heads'][0][0]['mean'].update(float32=c['heads'][0][0]['mean']['float32'][:-4]),
        lambda c: c['heads'][0][0]['offset'].update(shape=[5]),
    ],
    ids=['no limit', 'another schema', 'one head', 'no text', 'cut', 'another shape'],
)
def test_a_damaged_ruler_is_refused(ruler, spoil):
    content = copy.deepcopy(pack_ruler(ruler, 64))
    spoil(content)
    with pytest.raises(ValueError, match='ruler.json is damaged'):
        unpack_ruler(content)
