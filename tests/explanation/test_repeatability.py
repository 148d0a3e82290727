"""How far maps move: exact for shifts that are known, and a second run that does not fit is refused."""

import numpy as np
import pytest
from benches import untrained
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_lib.explanation.acceptance import hold_trial
from cxr_lib.explanation.bench import randomised
from cxr_lib.explanation.repeatability import (
    check_second,
    judge_repeatability,
    map_agreement,
    plot_repeatability,
    realigned,
    repeatability_sentences,
    repeatability_table,
    shifted,
)

shifts = st.tuples(st.integers(-5, 5), st.integers(-5, 5))


@settings(max_examples=40, deadline=None)
@given(shifts, st.integers(0, 1000))
def test_what_is_shifted_and_moved_back_is_the_same_where_both_have_seen_it(by, seed):
    images = np.random.default_rng(seed).integers(0, 256, (2, 12, 12), np.uint8)
    before, after = realigned(images, shifted(images, *by), *by)
    assert before.shape == (2, 12 - abs(by[0]), 12 - abs(by[1]))
    assert (before == after).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 9))
def test_agreement_is_symmetric_and_does_not_depend_on_scale(seed, scale):
    one, two = np.random.default_rng(seed).normal(size=(2, 3, 8, 8))
    there, back = map_agreement(one, two), map_agreement(scale * two, one)
    assert np.allclose(there, back)
    assert there.overlap.between(0, 1).all() and there.spearman.between(-1, 1).all()
    assert np.allclose(map_agreement(one, scale * one), [1, 1, 0])


@pytest.fixture(scope='module')
def trial():
    return hold_trial(untrained(['fever']), ['grad_cam'], n=10, per=4, seeds=1, n_bootstrap=10)


def test_other_weights_are_another_map_and_a_small_shift_is_not(trial):
    record = judge_repeatability(trial, ['grad_cam'], randomised(trial.classifier, 3), n_bootstrap=20)
    of = record['methods']['grad_cam']
    assert of['shifted']['all']['spearman']['low'] > of['second']['all']['spearman']['high']
    assert of['second']['all']['answer']['value'] > of['shifted']['all']['answer']['value']
    assert 'second training' in repeatability_sentences(record)[0]
    assert set(repeatability_table(record).observation) == set(of['shifted'])
    assert plot_repeatability(record).get_supxlabel().startswith('SIMULATED')


def test_a_method_that_drew_nothing_is_left_out(trial):
    record = judge_repeatability(trial, ['occlusion', ''], n_bootstrap=5)
    assert record['methods'] == {} and repeatability_sentences(record) == []
    assert repeatability_table(record).empty and plot_repeatability(record) is None


def test_the_same_weights_and_other_images_are_refused(trial):
    with pytest.raises(ValueError, match='another seed'):
        check_second(trial.classifier, untrained(['fever']), 'twin')
    with pytest.raises(ValueError, match='image_size of large is 96'):
        check_second(trial.classifier, untrained(['fever'], size=96), 'large')


def test_where_no_map_was_drawn_the_table_is_empty_and_has_its_columns():
    table = repeatability_table(dict(shift=2, methods={'integrated_gradients': {}}))
    assert not len(table) and not len(table[table.observation == 'all'])
    assert 'method' in table
