"""The bill adds up to the answer, whatever the calibration and the order of adding."""

import numpy as np
import pytest
import torch
from benches import untrained
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from cxr_lib.explanation.bill import (
    answer_notes,
    base_rates,
    bill_table,
    calibrated_log_odds,
    fused_temperatures,
    image_tokens,
    plot_bill,
    probability_steps,
)
from cxr_lib.foundations.core import OBSERVATIONS

NOTES = ['65F with fever.', None, 'Known heart failure, ? CHF. 80 yo M with orthopnea.', 'cough']


@pytest.fixture(scope='module')
def classifier():
    return untrained([n for n in NOTES if n])


@pytest.fixture(scope='module')
def logits(classifier):
    pixels = np.random.default_rng(0).integers(0, 255, (4, 64, 64), np.uint8)
    return answer_notes(classifier, image_tokens(classifier, pixels), NOTES)


def of(logits, i):
    return {k: v[i] for k, v in logits.items()}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(-12, 12), min_size=3, max_size=3),
    st.floats(0.2, 5),
    st.one_of(st.none(), st.floats(0.001, 0.999)),
    st.permutations(['image', 'note', 'interaction']),
)
def test_a_bill_adds_up_in_log_odds_and_in_probability(values, temperature, base, order):
    image, note, fused = (np.full(14, v) for v in values)
    logits = dict(image=image, note=note, fused=fused)
    base = None if base is None else [base] * 14
    bill = bill_table(logits, [temperature] * 14, base)
    parts = bill[['base', 'image', 'note', 'interaction']].sum(axis=1)
    assert np.allclose(parts, fused / temperature, atol=1e-9) and np.allclose(bill.total, parts)
    steps = probability_steps(bill, order)
    assert np.allclose(steps.end, expit(fused / temperature), atol=1e-9)
    assert np.allclose(steps.drop(columns='end').sum(axis=1), steps.end, atol=1e-9)


@pytest.mark.parametrize('method', ['temperature', None])
def test_the_total_is_the_log_odds_of_the_calibrated_answer(method, logits):
    classifier = untrained(['fever'], method)
    p = classifier.probabilities({'fused': torch.from_numpy(logits['fused'])})['fused']
    bill = bill_table(of(logits, 2), fused_temperatures(classifier.calibration))
    assert bill.calibrated.all() and np.allclose(expit(bill.total), p[2], atol=1e-6)


@pytest.mark.parametrize('method', ['platt', 'isotonic'])
def test_a_calibration_that_bends_log_odds_is_said_to_be_left_out(method, logits):
    classifier = untrained(['fever'], method)
    bill = bill_table(of(logits, 2), fused_temperatures(classifier.calibration))
    assert not bill.calibrated.any() and np.allclose(bill.total, logits['fused'][2])
    assert 'before calibration' in plot_bill(bill).axes[0].get_xlabel()
    p = classifier.probabilities({'fused': torch.from_numpy(logits['fused'])})['fused']
    assert np.allclose(expit(calibrated_log_odds(classifier, logits['fused'])), p, atol=1e-6)


def test_batches_and_order_of_notes_do_not_matter(classifier, logits):
    pixels = np.random.default_rng(0).integers(0, 255, (4, 64, 64), np.uint8)
    tokens = image_tokens(classifier, pixels, batch_size=3)
    again = answer_notes(classifier, tokens, NOTES[::-1], [3, 2, 1, 0], batch_size=2)
    for branch in logits:
        assert np.allclose(again[branch][::-1], logits[branch], atol=1e-5)


def test_a_missing_note_is_answered_as_missing(classifier, logits):
    pixels = np.random.default_rng(0).integers(0, 255, (4, 64, 64), np.uint8)
    tokens = image_tokens(classifier, pixels)
    bare = answer_notes(classifier, tokens[1:2], [None])
    assert np.allclose(bare['fused'][0], logits['fused'][1], atol=1e-5)


def test_no_number_of_the_picture_stands_on_another(logits, classifier):
    bill = bill_table(of(logits, 0), fused_temperatures(classifier.calibration))
    fig = plot_bill(bill, 'A model with random weights', simulated=True)
    fig.draw_without_rendering()
    for ax in fig.axes:
        boxes = [t.get_window_extent() for t in [*ax.texts, *ax.get_yticklabels()] if t.get_text()]
        apart = [not a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i]]
        assert boxes and all(apart)


def test_base_rates_need_both_classes():
    counts = {o: dict(temperature=1, n_positive=1, n_negative=3) for o in OBSERVATIONS}
    assert base_rates(dict(method='temperature', observations=counts)) == pytest.approx(0.25)
    counts['Edema'] = dict(temperature=1, n_positive=0, n_negative=3)
    found = base_rates({'fused': dict(method='temperature', observations=counts)})
    assert [o for o, rate in zip(OBSERVATIONS, found) if np.isnan(rate)] == [
        'Edema'
    ]  # the others keep theirs
    nowhere = {o: dict(temperature=1, n_positive=0, n_negative=0) for o in OBSERVATIONS}
    assert base_rates(dict(method='temperature', observations=nowhere)) is None


def test_a_bill_begins_at_0_where_it_is_not_known_how_common_an_observation_is(logits):
    base = np.where(np.array(OBSERVATIONS) == 'Edema', np.nan, 0.1)
    with_base, without = bill_table(of(logits, 0), None, base), bill_table(of(logits, 0))
    assert with_base.base['Edema'] == 0 and with_base.loc['Edema'].equals(without.loc['Edema'])
    assert with_base.base['Fracture'] == pytest.approx(np.log(1 / 9))
    assert np.allclose(with_base.total, without.total)
    with pytest.raises(ValueError, match='base rate is 0 or 1'):
        bill_table(of(logits, 0), None, np.ones(len(OBSERVATIONS)))
