"""The published table

Its arithmetic, the interval that a support leaves, what notes of two labels give away, and the page beside a run.
"""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from sklearn.metrics import roc_auc_score

from cxr_lib.foundations.core import IMPLIES, OBSERVATIONS, SIMULATED
from cxr_lib.foundations.files import read_json, write_json
from cxr_lib.evaluation.report import evaluate
from cxr_lib.metrics.predictions import synthetic_predictions
from cxr_lib.notes.leaking import LEAK, label_leak_notes
from cxr_lib.simulation.patients import draw_patients
from cxr_lib.evaluation.published import (
    KINDS,
    PUBLISHED_AUROC,
    PUBLISHED_MEAN,
    auroc_interval,
    believability,
    comparison_page,
    hanley_mcneil_error,
    leak_table,
    mean_readings,
    note_rule_scores,
    plot_published,
    published_comparison,
    seed_table,
)
from cxr_lib.notes.leaking import tilt_to_prevalence

quick = settings(max_examples=100, deadline=None)
values, supports = st.floats(0, 1), st.integers(1, 300)


@pytest.fixture(scope='module')
def table():
    return seed_table()


@pytest.fixture(scope='module')
def metrics():
    few = synthetic_predictions(150, seed=1)
    unused = [c for c in few if c.startswith(('best', 'label_leak', 'contradicting'))]
    return evaluate(few.drop(columns=unused), n_bootstrap=20, simulated=True)


# ---- the standard error and the interval


@pytest.mark.parametrize(
    'arguments, expected',
    [((0.75, 20, 200), 0.06498283), ((0.75, 110, 110), 0.03282048), ((0.75, 20, 20), 0.07789072)],
)
def test_the_standard_error_is_that_of_auctestr(arguments, expected):
    "As printed in the documentation of the R package auctestr 1.0.0, se_auc"
    assert hanley_mcneil_error(*arguments) == pytest.approx(expected, abs=5e-9)


@quick
@given(values, supports, supports)
def test_the_interval_holds_the_value_and_stays_in_range(value, n_positive, n_negative):
    low, high = auroc_interval(value, n_positive, n_negative)
    assert 0 <= low <= value <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            error = hanley_mcneil_error(end, n_positive, n_negative)
            assert abs(end - value) == pytest.approx(1.959964 * error, abs=1e-6)
    assert hanley_mcneil_error(value, n_positive, n_negative) >= 0


@quick
@given(st.floats(0.02, 0.98), st.integers(2, 100), st.integers(2, 100))
def test_symmetry_and_more_cases(value, n_positive, n_negative):
    "Swapping the classes and the direction changes nothing; four times the cases give a narrower interval"
    swapped = hanley_mcneil_error(1 - value, n_negative, n_positive)
    assert hanley_mcneil_error(value, n_positive, n_negative) == pytest.approx(swapped)
    low, high = auroc_interval(value, n_positive, n_negative)
    assert auroc_interval(1 - value, n_negative, n_positive) == pytest.approx((1 - high, 1 - low), abs=1e-6)
    narrow = auroc_interval(value, 4 * n_positive, 4 * n_negative)
    assert narrow[1] - narrow[0] < high - low


@pytest.mark.parametrize(
    'arguments, expected',
    [
        ((1.2, 5, 5), 'AUROC is 1.2'),
        ((-0.1, 5, 5), '0 to 1'),
        ((float('nan'), 5, 5), 'AUROC is nan'),
        ((0.5, -1, 5), 'n_positive is -1'),
        ((0.5, 5, 2.5), 'n_negative is 2.5'),
    ],
)
def test_bad_values_are_refused(arguments, expected):
    for function in (hanley_mcneil_error, auroc_interval):
        with pytest.raises(ValueError, match=expected):
            function(*arguments)


def test_without_a_class_there_is_no_interval():
    assert np.isnan(auroc_interval(0.9, 0, 234)).all()
    assert np.isnan(hanley_mcneil_error(0.9, 12, 0))


# ---- notes of two labels


one_row = st.lists(st.sampled_from([0.0, 1.0, -1.0, float('nan')]), min_size=14, max_size=14)


@settings(max_examples=40, deadline=None)
@given(st.lists(one_row, min_size=1, max_size=8), st.integers(1, 14))
def test_the_rule_is_never_wrong_and_only_the_tail_is_open(rows, max_named):
    people = pd.DataFrame(rows, columns=list(OBSERVATIONS))
    positive, scores = (people == 1).to_numpy(), note_rule_scores(people, max_named)
    assert set(np.unique(scores)) <= {0.0, 0.5, 1.0}
    assert positive[scores == 1].all()
    assert not positive[scores == 0].any()
    assert (scores == 1).sum() == np.minimum(positive.sum(axis=1), max_named).sum()
    for p, s in zip(positive, scores):
        named = np.flatnonzero(s == 1)
        tail = range(named[-1] + 1, 14) if len(named) == max_named else ()
        assert set(np.flatnonzero(s == 0.5)) == set(tail)


def test_the_rule_reads_the_notes_that_the_generator_writes():
    people = draw_patients(300, seed=5)
    people = people[(people[list(OBSERVATIONS)] == 1).any(axis=1)].reset_index(drop=True)
    scores = note_rule_scores(people, 2)
    for note, row in zip(label_leak_notes(people, max_named=2), scores):
        named = note.split('Evaluate for ')[1].rstrip('.').split(', ')
        assert named == [LEAK[o][2] for o, s in zip(OBSERVATIONS, row) if s == 1]


def test_leak_table_agrees_with_scikit_learn_and_the_first_three_are_always_named():
    people = draw_patients(2000, seed=6)
    weights = np.random.default_rng(0).random(len(people))
    leak = leak_table(people, weights=weights)
    for k, o in enumerate(OBSERVATIONS):
        expected = roc_auc_score(people[o], note_rule_scores(people)[:, k], sample_weight=weights)
        assert leak.loc[o, 'auroc_rule'] == pytest.approx(expected)
    first = ['No Finding', 'Enlarged Cardiomediastinum', 'Cardiomegaly']
    assert leak.loc[first, 'named'].eq(1).all()
    assert leak.drop(first)['named'].lt(1).all()
    assert 'Enlarged Cardiomediastinum' in IMPLIES['Cardiomegaly']
    # what is left out tells more than what is named alone
    assert (leak['auroc_rule'] >= (1 + leak['named']) / 2 - 1e-9).all()
    with pytest.raises(ValueError, match='max_named is 0'):
        note_rule_scores(people, 0)


def test_weights_reach_the_prevalences():
    people, shares = draw_patients(3000, seed=7), {'Edema': 0.3, 'Pneumothorax': 0.1, 'Support Devices': 0.5}
    weights = tilt_to_prevalence(people, shares)
    assert weights.min() > 0
    assert weights.sum() == pytest.approx(1)
    assert np.allclose(weights @ people[list(shares)].to_numpy(), list(shares.values()), atol=1e-3)
    already = tilt_to_prevalence(people, {o: people[o].mean() for o in shares})
    assert np.allclose(already, 1 / len(people), rtol=1e-3)  # equal weights
    with pytest.raises(ValueError, match='no weights give these shares'):
        tilt_to_prevalence(people.assign(Edema=0), shares)


# ---- the table


def test_the_table_is_as_published(table):
    assert list(table.index) == list(OBSERVATIONS)
    assert table['auroc'].mean() == pytest.approx(PUBLISHED_MEAN, abs=0.001)
    assert table.loc[
        [
            'Cardiomegaly',
            'Enlarged Cardiomediastinum',
            'Pneumothorax',
            'Pneumonia',
            'Pleural Other',
            'Lung Lesion',
            'Fracture',
        ],
        'n_positive',
    ].tolist() == [68, 109, 8, 8, 1, 1, 0]
    assert (table['n_positive'] + table['n_negative'] == 234).all()
    assert set(table['kind']) <= set(KINDS)
    assert np.isnan(table.loc['Fracture', 'auroc'])


def test_what_follows_from_precision_and_recall_is_right(table):
    for o, r in table.iterrows():
        if np.isnan(r['recall']):
            assert np.isnan([r['precision'], r['accuracy'], r['f1']]).all()
            continue
        found = round(r['recall'] * r['n_positive'])  # no false alarm: only misses
        labels, decided = np.arange(234) < r['n_positive'], np.arange(234) < found
        assert r['accuracy'] == pytest.approx((labels == decided).mean(), abs=1e-4)
        assert r['f1'] == pytest.approx(2 * found / (found + r['n_positive']), abs=1e-4)


def test_chance_of_a_single_case_is_exact(table):
    ranks = np.arange(234) / 233  # 234 equally likely ranks of the one positive
    for o in ('Pleural Other', 'Lung Lesion'):
        assert table.loc[o, 'p_chance'] == pytest.approx((ranks >= PUBLISHED_AUROC[o] - 0.0005).mean())
    assert table.loc['Cardiomegaly', 'p_chance'] < 1e-20
    assert np.isnan(table.loc['Fracture', 'p_chance'])


@pytest.mark.parametrize(
    'row, expected, not_expected',
    [
        (dict(auroc=1.0, n_positive=50, named=1.0), ['read aloud'], ['Only']),
        (dict(auroc=0.9, n_positive=50, named=1.0), ['names the label'], ['read aloud']),
        (dict(auroc=0.9, n_positive=9, named=0.2, auroc_rule=0.9), ['Only 9 positives'], ['read aloud']),
        (
            dict(auroc=0.9, n_positive=1, named=0.2, auroc_rule=0.9, p_chance=0.1),
            ['One positive case', '10.0%'],
            ['Only'],
        ),
        (
            dict(auroc=0.99, n_positive=90, named=0.2, auroc_rule=0.6, low=0.97),
            ['added something'],
            ['explains'],
        ),
        (
            dict(auroc=0.7, n_positive=90, named=0.2, auroc_rule=0.9, high=0.75),
            ['more than was published'],
            ['explains'],
        ),
        (dict(auroc=0.9, n_positive=90, named=0.6, auroc_rule=0.9), ['explains the number'], ['read aloud']),
        (dict(auroc=np.nan, n_positive=0, named=np.nan), ['No positive case'], ['Notes']),
        (dict(auroc=0.9, n_positive=90, named=np.nan), ['90 positives'], ['Notes']),
    ],
)
def test_readings_follow_the_rules(row, expected, not_expected):
    line = dict(n_negative=144, low=0.8, high=0.95, auroc_rule=np.nan, p_chance=np.nan) | row
    said = believability(pd.Series(line))
    for part in expected:
        assert part in said
    for part in not_expected:
        assert part not in said


def test_the_mean_without_what_cannot_carry_it(table):
    means = mean_readings(table)
    enough = table[table['n_positive'] >= 10]
    assert means.loc['with at least 10 positives', 'mean'] == pytest.approx(enough['auroc'].mean())
    assert means.loc['with at least 10 positives', 'n'] == len(enough) == 9
    assert (
        means.loc['of these, not always named', 'mean']
        < 0.82
        < PUBLISHED_MEAN
        < means.loc['of these, always named by the note', 'mean']
    )
    assert (means['low'] < means['mean']).all()
    assert (means['mean'] <= means['high']).all()


# ---- beside a run


def test_ours_are_in_the_same_columns_and_marked(metrics, tmp_path):
    comparison = published_comparison(metrics)
    edema = metrics['conditions']['fused']['observations']['Edema']
    ours = comparison.loc['Edema', ['ours_auroc', 'ours_recall', 'ours_precision']].tolist()
    assert ours == [edema['auroc'], edema['sensitivity'], edema['ppv']]
    assert comparison['simulated'].all()
    for name in ('auroc', 'low', 'high', 'n_positive', 'n_negative', 'precision', 'recall', 'accuracy', 'f1'):
        assert {f'published_{name}', f'ours_{name}'} < set(comparison)
    stored = read_json(write_json(tmp_path / 'metrics.json', metrics))  # null where undefined
    pd.testing.assert_frame_equal(published_comparison(stored), comparison)
    other = published_comparison(metrics, 'image_only')
    assert other['ours_auroc'].tolist() != comparison['ours_auroc'].tolist()


def test_the_page_says_what_is_simulated_and_what_was_not_given(metrics):
    page, alone = comparison_page(metrics), comparison_page()
    real = comparison_page(json.loads(json.dumps(metrics)) | dict(simulated=False))
    assert SIMULATED in page
    assert 'ours (SIMULATED): AUROC' in page
    assert 'SIMULATED' not in real
    assert 'ours: AUROC' in real
    assert 'ours' not in alone.split('##')[0].replace('Intervals are ours', '')
    assert page.count('not given here') == 8 * 4
    assert 'nan' not in page
    assert all(f'| {o} |' in alone for o in OBSERVATIONS)
    for block in page.split('\n\n'):
        rows = [line for line in block.split('\n') if line.startswith('|')]
        assert (
            len({row.count('|') for row in rows}) <= 1
        )  # every row of a table has as many cells as its head


def test_the_figure_is_marked(metrics):
    assert any('ours' in t.get_text() and 'SIMULATED' in t.get_text() for t in plot_published(metrics).texts)
    labels = [t.get_text() for t in plot_published().axes[0].get_legend().get_texts()]
    assert any('in every note' in t for t in labels)
    assert not any('ours' in t for t in labels)


@pytest.mark.parametrize(
    'metrics_, condition, expected',
    [
        ({}, 'fused', 'no conditions'),
        ([], 'fused', 'no conditions'),
        ({'conditions': {'image_only': {}}}, 'fused', 'it has image_only'),
    ],
)
def test_other_dictionaries_are_refused(metrics_, condition, expected):
    with pytest.raises(ValueError, match=expected):
        published_comparison(metrics_, condition)
