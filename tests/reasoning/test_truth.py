"""Texts against labels: what is counted, and which cases a reader sees."""

import numpy as np
import pytest

from cxr_lib.evaluation.conformal import fit_conformal
from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.metrics.calibration import calibrated, fit_calibrations, prediction_matrix
from cxr_lib.metrics.predictions import synthetic_predictions
from cxr_lib.reasoning.certainty import PHRASES, judge_phrases
from cxr_lib.reasoning.differential import ImageZone
from cxr_lib.reasoning.truth import (
    place_table,
    place_words,
    read_texts,
    reader_cases,
    statement_frequencies,
    statement_table,
    table_differentials,
    text_penalties,
)
from cxr_lib.simulation.patients import draw_patients


@pytest.fixture(scope='module')
def told():
    "Test rows, their differentials, and what their texts say"
    table = synthetic_predictions(300, seed=4, n_folds=2)
    tuning, test = (table[table.split == s] for s in ('tuning', 'test'))
    maps, limits = fit_calibrations(tuning), fit_conformal(tuning)
    certainty = judge_phrases({'test': statement_frequencies(test, maps, limits)}, 'test', simulated=True)
    some = test.head(60)
    found = table_differentials(some, maps, limits, certainty)
    return some, maps, found, read_texts(found)


def test_a_table_gives_the_numbers_of_its_own_fold(told):
    rows, maps, found, _ = told
    expected = calibrated(rows, 'fused', maps)
    for p, d in zip(expected, found):
        np.testing.assert_allclose([d[o].probability for o in OBSERVATIONS], p)
        for o in OBSERVATIONS:
            sizes = [e.logit for e in (*d[o].evidence_for, *d[o].evidence_against)]
            assert np.isfinite(sizes).all()


def test_what_is_read_back_is_what_the_structure_holds(told):
    _, _, found, said = told
    for d, row in zip(found, said):
        for o, s in zip(OBSERVATIONS[1:], row[1:]):
            polarity = PHRASES[d[o].phrase].polarity if d[o].phrase else 'uncertain'
            assert s == {'uncertain': 'open'}.get(polarity, polarity)


def test_shares_are_those_of_a_plain_count(told):
    rows, _, _, said = told
    labels, k = prediction_matrix(rows, 'label'), OBSERVATIONS.index('Pleural Effusion')
    row = statement_table(labels, said).loc['Pleural Effusion']
    there = labels[:, k] == 1
    assert row['there'] == there.sum()
    assert row['said open'].startswith(f'{(said[there, k] == "open").mean():.2f}')


def test_labels_that_are_missing_or_uncertain_do_not_count():
    labels = np.full((3, len(OBSERVATIONS)), np.nan)
    labels[0, 5] = -1
    said = np.full(labels.shape, 'present', object)
    table = statement_table(labels, said)
    assert (table['there'] == 0).all() and (table['stated present: true'] == '').all()
    assert (text_penalties(labels, said) == 0).all()


def test_the_worst_come_first_and_urgent_mistakes_weigh_more():
    labels, said = np.zeros((4, len(OBSERVATIONS))), np.full((4, len(OBSERVATIONS)), 'absent', object)
    labels[2, OBSERVATIONS.index('Pneumothorax')] = 1
    labels[1, OBSERVATIONS.index('Edema')] = 1
    penalties = text_penalties(labels, said)
    assert penalties.tolist() == [0, 2, 6, 0]
    assert reader_cases(penalties, 4)[:2] == [2, 1]
    assert sorted(reader_cases(penalties, 20)) == [0, 1, 2, 3]


def zone(name):
    return ImageZone(name=name, map='a map')


def test_a_place_of_a_finding_that_is_not_there_is_wrong():
    patient = draw_patients(1, seed=5).iloc[0].to_dict()
    there = patient | {'strength/Pneumothorax': 4.0, 'strength/Fracture': 0.0}
    named = [{'Pneumothorax': zone('both lungs'), 'Fracture': zone('right mid zone')}, {}]
    words = place_words(named, [there, patient], 'plain').set_index('observation')
    assert len(words) == 2 and words.precision['Pneumothorax'] > 0 == words.precision['Fracture']
    assert words.there['Fracture'] == set()
    table = place_table(words.reset_index()).set_index('of')
    assert (
        table.loc['Fracture', 'named: holds it'].startswith('0.00') and 'n=1' in table.loc['Fracture'].iloc[0]
    )


def test_without_a_named_place_the_table_is_empty_and_has_its_columns():
    table = place_table(place_words([{}], [draw_patients(1, seed=5).iloc[0].to_dict()]))
    assert table.empty and list(table) == ['of', 'named: holds it', 'holds it: named']
