"""The certainty scale: bands, agreement with the hierarchy, and which phrases may be used."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import probabilities, probability, sources

from cxr_lib.foundations.core import IMPLIES, OBSERVATIONS
from cxr_lib.reasoning.certainty import (
    FEWEST,
    PHRASES,
    SCALE,
    certainty_table,
    check_certainty,
    judge_phrases,
    phrase_frequencies,
    phrase_of,
    stated_probabilities,
    why_no_phrase,
)


@given(probability)
def test_a_probability_lies_in_the_band_of_its_phrase(p):
    phrase = phrase_of(p)
    assert phrase.low <= p <= phrase.high


@given(sources)
def test_stated_probabilities_obey_the_hierarchy_and_are_never_surer_than_the_model(rng):
    p = probabilities(rng)
    stated = dict(zip(OBSERVATIONS, stated_probabilities(p)))
    for child, parents in IMPLIES.items():
        for parent in parents:
            assert stated[child] <= stated[parent] + 1e-12
    for o, own in zip(OBSERVATIONS, p):
        assert abs(stated[o] - 0.5) <= abs(own - 0.5) + 1e-12
        assert (stated[o] - 0.5) * (own - 0.5) >= -1e-12  # nothing changes sides
        if o not in ('No Finding', 'Support Devices'):
            assert stated[o] <= 1 - stated['No Finding'] + 1e-12


@given(sources, st.sets(st.sampled_from(OBSERVATIONS)))
def test_an_observation_that_was_not_learned_moves_nothing(rng, unlearned):
    p = probabilities(rng)
    known = tuple(o for o in OBSERVATIONS if o not in unlearned)
    other = [0.5 if o in unlearned else x for o, x in zip(OBSERVATIONS, p)]
    at = [OBSERVATIONS.index(o) for o in known]
    ours, theirs = stated_probabilities(p, known)[at], stated_probabilities(other, known)[at]
    np.testing.assert_array_equal(ours, theirs)


def statements(n=3000, seed=0):
    rng = np.random.default_rng(seed)
    p = rng.random((n, len(OBSERVATIONS))) ** 2
    return (rng.random(p.shape) < p).astype(float), p, np.arange(n)


def test_every_phrase_in_use_lies_in_its_band():
    truth, p, patients = statements()
    p[:, 5] = p[:, 5] ** 0.3  # one observation is overrated
    found = judge_phrases({'test': phrase_frequencies(truth, p, patients)}, 'test')
    unused = set()
    for o in OBSERVATIONS:
        for phrase in SCALE:
            entry = found['observations'][o][phrase.name]
            if entry['not_used']:
                unused.add(o)
            else:
                assert phrase.low <= entry['test']['frequency'] <= phrase.high
                assert entry['test']['n'] >= FEWEST
    assert OBSERVATIONS[5] in unused


def test_frequencies_are_plain_shares():
    truth, p, patients = statements(400)
    truth[:50, 3] = np.nan
    made = np.random.default_rng(1).random(p.shape) < 0.7
    table = phrase_frequencies(truth, p, patients, made)
    phrase = PHRASES['unlikely']
    at = made[:, 3] & ~np.isnan(truth[:, 3]) & (p[:, 3] >= phrase.low) & (p[:, 3] < phrase.high)
    row = table.loc[OBSERVATIONS[3], 'unlikely']
    assert row['n'] == at.sum()
    assert row['frequency'] == pytest.approx(truth[at, 3].mean())
    assert row['low'] <= row['frequency'] <= row['high']


def test_several_images_of_a_patient_widen_the_interval():
    truth, p, patients = statements(600)
    one = phrase_frequencies(truth, p, patients).loc['all']
    twice = [np.concatenate([x, x]) for x in (truth, p, patients)]
    two = phrase_frequencies(*twice).loc['all']
    np.testing.assert_allclose(two['high'] - two['low'], one['high'] - one['low'], rtol=0.02)


def test_labels_that_are_missing_everywhere_leave_the_phrases_unused():
    truth, p, patients = statements(200)
    truth[:, OBSERVATIONS.index('Fracture')] = np.nan
    table = phrase_frequencies(truth, p, patients)
    found = judge_phrases({'tuning': table}, 'tuning', tuple(o for o in OBSERVATIONS if o != 'Fracture'))
    assert why_no_phrase(found, 'Fracture', 0.02) == 'the model was not trained on it'
    assert not (certainty_table(found)['observation'] == 'Fracture').any()


@pytest.mark.parametrize('broken', [None, 3, {}, {'schema': 'cxr_lib.certainty/1'}, {'schema': 'other'}])
def test_a_damaged_file_is_refused(broken):
    with pytest.raises(ValueError, match='certainty.json'):
        check_certainty(broken)
