"""Prediction sets

The order statistic against a library and brute force, the guarantee on simulated patients, what is stored, bad input.
"""

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from scipy import special

from cxr_lib.evaluation.conformal import (
    SETS,
    conformal_limit,
    conformal_report,
    conformal_table,
    coverage_range,
    fit_conformal,
    minimum_patients,
    plot_conformal,
    plot_risk_coverage,
    predict_sets,
    repeated_splits,
    risk_coverage,
)
from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.foundations.files import read_json, write_json
from cxr_lib.metrics.ranking import resample_patients
from cxr_lib.metrics.predictions import synthetic_predictions

quick = settings(max_examples=100, deadline=None)
alphas = st.sampled_from([0.01, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5])


@pytest.fixture(scope='module')
def practice():
    return synthetic_predictions(400, seed=1)


@pytest.fixture(scope='module')
def tuning(practice):
    return practice[practice['split'] == 'tuning'].reset_index(drop=True)


@pytest.fixture(scope='module')
def test(practice):
    return practice[practice['split'] == 'test'].reset_index(drop=True)


def of_level(report):
    "The observations of the first level"
    return report['levels'][0]['observations']


# ---- the limit


@quick
@given(st.lists(st.integers(0, 30), min_size=0, max_size=80), alphas)
def test_the_limit_is_the_quantile_of_the_literature(values, alpha):
    "Angelopoulos & Bates, section 1.1: the ceil((n+1)(1-alpha))-th smallest of 1 - score, none if that is more than n"
    scores, n = np.array(values) / 30, len(values)
    rank = math.ceil((n + 1) * (1 - alpha) - 1e-9)
    expected = -math.inf if rank > n else 1 - np.sort(1 - scores)[rank - 1]
    assert conformal_limit(scores, alpha) == pytest.approx(expected)
    assert (conformal_limit(scores, alpha) == -math.inf) == (n < minimum_patients(alpha))


@quick
@given(st.integers(1, 60), alphas, st.integers(0, 10_000))
def test_a_new_patient_falls_below_the_limit_at_most_as_often_as_promised(n, alpha, seed):
    "Exact, not simulated: of n + 1 exchangeable scores each is the new one equally often"
    scores = np.random.default_rng(seed).random(n + 1)
    below = [scores[i] < conformal_limit(np.delete(scores, i), alpha) for i in range(n + 1)]
    assert np.mean(below) <= alpha + 1e-12
    assert np.mean(below) > alpha - 1 / (n + 1) - 1e-12  # and not needlessly seldom


@quick
@given(st.lists(st.integers(0, 5), min_size=5, max_size=60), alphas)
def test_ties_never_break_the_promise(values, alpha):
    scores = np.array(values, float)
    below = [scores[i] < conformal_limit(np.delete(scores, i), alpha) for i in range(len(scores))]
    assert np.mean(below) <= alpha + 1e-12


def test_the_limits_are_those_of_crepes():
    crepes = pytest.importorskip('crepes')
    r = np.random.default_rng(0)
    y, y_new = r.random(300) < 0.2, r.random(200) < 0.2
    p, p_new = (special.expit(r.normal(1.5 * (2 * t - 1), 1.2)) for t in (y, y_new))
    theirs = crepes.ConformalClassifier().fit(np.where(y, 1 - p, p), bins=y.astype(int))
    for alpha in (0.05, 0.1, 0.2):
        # the set has a class where its p-value, in the class's own bin, is above alpha
        scores = np.stack([p_new, 1 - p_new], 1)
        ours = p_new <= -conformal_limit(-p[~y], alpha), p_new >= conformal_limit(p[y], alpha)
        for c in (0, 1):
            values = theirs.predict_p(scores, bins=np.full(len(p_new), c), smoothing=False)[:, c]
            assert ((values > alpha + 1e-12) == ours[c]).all()


@pytest.mark.parametrize('alpha', [0, 1, -0.1, 90, 'ten', None, float('nan')])
def test_alpha_is_checked(tuning, alpha):
    for call in (
        lambda: minimum_patients(alpha),
        lambda: conformal_limit([0.1], alpha),
        lambda: fit_conformal(tuning, alpha=alpha),
        lambda: coverage_range(10, 10, alpha),
    ):
        with pytest.raises(ValueError, match='alpha is'):
            call()


# ---- patients, folds, storage


def test_a_patient_counts_once(tuning):
    again = tuning[tuning['patient_id'].isin(tuning['patient_id'].unique()[:20])]
    many = pd.concat([tuning, again.assign(image=again['image'] + '.again')])
    one, more = fit_conformal(tuning)['folds']['-1'], fit_conformal(many)['folds']['-1']
    for o in OBSERVATIONS:
        for count in ('n_positive', 'n_negative'):
            assert one[o][count] == more[o][count]
    worst = [fit_conformal(t, images='worst')['folds'] for t in (tuning, many)]
    assert worst[0] == worst[1]  # a repeated image changes no patient's worst one


def test_covering_every_image_costs_wider_sets(tuning):
    one, worst = (fit_conformal(tuning, images=i)['folds']['-1'] for i in ('one', 'worst'))
    for o in OBSERVATIONS:
        if one[o]['reason']:
            continue
        drawn = [fit_conformal(tuning, seed=s)['folds']['-1'][o] for s in range(5)]
        assert worst[o]['from'] <= min(d['from'] for d in drawn)
        assert worst[o]['up_to'] >= max(d['up_to'] for d in drawn)


def test_uncertain_and_unmentioned_labels_are_not_used(tuning):
    changed = tuning.copy()
    unknown = ~changed['label/Edema'].isin([0, 1])
    changed.loc[unknown, 'fused/Edema'] = 0.999
    assert unknown.any()
    assert fit_conformal(changed)['folds'] == fit_conformal(tuning)['folds']


def test_the_order_of_the_rows_changes_nothing_in_the_worst_mode(tuning):
    shuffled = tuning.sample(frac=1, random_state=0)
    assert fit_conformal(shuffled, images='worst') == fit_conformal(tuning, images='worst')


def test_it_survives_json_and_is_the_same_for_the_same_seed(tuning, test, tmp_path):
    fitted = fit_conformal(tuning, alpha=0.2, seed=3)
    stored = read_json(write_json(tmp_path / 'conformal.json', fitted))
    assert stored == fitted == fit_conformal(tuning, alpha=0.2, seed=3)
    assert fitted != fit_conformal(tuning, alpha=0.2, seed=4)
    assert predict_sets(test, stored).equals(predict_sets(test, fitted))


def test_folds_have_their_own_limits():
    table = synthetic_predictions(500, seed=2, n_folds=3)
    table.loc[table['fold'] == 1, 'fused/Edema'] /= 2  # a model that is half as sure
    rows = {s: table[table['split'] == s].reset_index(drop=True) for s in ('tuning', 'test')}
    conformal = fit_conformal(rows['tuning'])
    limits = [conformal['folds'][f]['Edema']['from'] for f in '012']
    assert limits[1] < min(limits[0], limits[2])
    report = of_level(conformal_report(rows['test'], rows['tuning'], (0.1,), n_bootstrap=0))['Edema']
    assert report['coverage_positive'] > 0.8
    assert np.isnan(report['expected_positive_low'])
    assert predict_sets(rows['test'].drop(columns='patient_id'), conformal).shape == (len(rows['test']), 14)
    with pytest.raises(ValueError, match='fold 7 has no limits'):
        predict_sets(rows['test'].assign(fold=7), conformal)


@settings(max_examples=15, deadline=None)
@given(st.floats(0.2, 5), st.floats(-3, 3))
def test_an_increasing_map_of_the_scores_changes_no_set(slope, shift):
    table = synthetic_predictions(120, seed=4)
    mapped = table.copy()
    for o in OBSERVATIONS:
        mapped[f'fused/{o}'] = special.expit(slope * special.logit(table[f'fused/{o}']) + shift)
    one, other = (t.groupby('split') for t in (table, mapped))
    fits = (fit_conformal(t.get_group('tuning'), alpha=0.2) for t in (one, other))
    sets = [predict_sets(t.get_group('test'), fit) for t, fit in zip((one, other), fits)]
    assert sets[0].equals(sets[1])


# ---- too few cases: no answer and no promise


def test_too_few_patients_give_both_with_a_reason(tuning, test):
    few = tuning.copy()
    at = few.index[few['label/Edema'] == 1]
    keep = few.loc[at, 'patient_id'].drop_duplicates().index[:8]
    few.loc[at.difference(keep), 'label/Edema'] = np.nan
    few['label/Cardiomegaly'] = np.nan
    few.loc[few['label/Atelectasis'] == 0, 'label/Atelectasis'] = -1
    conformal = fit_conformal(few, alpha=0.1)
    limits, sets = conformal['folds']['-1'], predict_sets(test, conformal)
    expected = 'only 8 positive tuning patients; 90% coverage needs 9 of each class: always both'
    assert limits['Edema']['reason'] == expected
    assert 'only 0 positive' in limits['Cardiomegaly']['reason']
    assert 'only 0 negative' in limits['Atelectasis']['reason']
    for o in ('Edema', 'Cardiomegaly', 'Atelectasis'):
        assert (sets[o] == 'both').all()
        assert limits[o]['from'] is limits[o]['up_to'] is None
    assert fit_conformal(few, alpha=0.2)['folds']['-1']['Edema']['reason'] == ''  # eight are enough for 80%
    report = of_level(conformal_report(test, few, (0.1,), n_bootstrap=20))['Edema']
    assert report['abstention'] == 1
    assert np.isnan(report['right_when_decided'])
    assert np.isnan(report['expected_positive_mean'])
    level = dict(alpha=0.1, observations=dict.fromkeys(OBSERVATIONS, report))
    assert report['reason'] in conformal_table(dict(levels=[level]))['remark'].iloc[0]


def test_an_observation_without_test_cases_is_undefined(tuning, test):
    healthy = test.assign(**{'label/Edema': 0.0})
    report = of_level(conformal_report(healthy, tuning, (0.1,), n_bootstrap=20))['Edema']
    assert np.isnan(report['coverage_positive'])
    assert np.isnan(report['expected_positive_low'])
    assert not np.isnan(report['coverage_negative'])


# ---- the guarantee


def test_coverage_is_what_theory_says_for_each_class():
    splits = repeated_splits(synthetic_predictions(500, seed=11), 0.2, 60, seed=1)
    within = splits['coverage'].between(splits['low'] - 1e-9, splits['high'] + 1e-9)
    for _, rows in splits.groupby('kind'):
        variance = rows['expected'] * (1 - rows['expected']) * (1 / rows['n_test'] + 1 / rows['n_tuning'])
        standard_error = np.sqrt(variance.sum()) / len(rows)
        assert abs((rows['coverage'] - rows['expected']).mean()) < 4 * standard_error
        assert (rows['expected'] >= 0.8).all()
        assert within[rows.index].mean() > 0.93
    with pytest.raises(ValueError, match='tuning_share'):
        repeated_splits(synthetic_predictions(30), tuning_share=1)


def test_all_images_of_a_patient_are_covered_at_once_in_the_worst_mode():
    table, covered, expected = synthetic_predictions(600, seed=12), [], []
    patient = pd.factorize(table['patient_id'])[0]
    for seed in range(30):
        tuned = (np.random.default_rng(seed).permutation(patient.max() + 1) < 300)[patient]
        test, tuning = table[~tuned].assign(split='test'), table[tuned].assign(split='tuning')
        report = of_level(conformal_report(test, tuning, (0.2,), n_bootstrap=0, images='worst'))
        for o in ('Edema', 'Pleural Effusion', 'Support Devices'):
            covered.append(report[o]['coverage_positive'])
            expected.append(report[o]['expected_positive_mean'])
    assert np.mean(covered) == pytest.approx(np.mean(expected), abs=0.015)
    assert min(expected) >= 0.8


def test_the_coverage_range_is_that_of_simulated_splits():
    r, n, m, alpha = np.random.default_rng(0), 30, 40, 0.1
    seen = [np.mean(r.random(m) >= conformal_limit(r.random(n), alpha)) for _ in range(4000)]
    expected = coverage_range(n, m, alpha)
    assert np.mean(seen) == pytest.approx(expected['mean'], abs=0.005)
    assert expected['mean'] == pytest.approx(1 - 3 / 31)
    for side, q in (('low', 0.025), ('high', 0.975)):
        assert np.quantile(seen, q, method='inverted_cdf') == pytest.approx(expected[side], abs=1 / m + 1e-9)
    assert coverage_range(8, 10, 0.1) == dict(mean=1.0, low=1.0, high=1.0)
    assert np.isnan(coverage_range(50, 0, 0.1)['mean'])


# ---- the report


@pytest.fixture(scope='module')
def report(test, tuning):
    return conformal_report(test, tuning, n_bootstrap=50)


def test_the_report_adds_up_and_can_be_drawn_from_its_json(report, test, tmp_path):
    stored = read_json(write_json(tmp_path / 'report.json', report))
    assert [level['alpha'] for level in stored['levels']] == [0.05, 0.1, 0.2]
    assert stored['n_patients'] == test['patient_id'].nunique()
    for level in report['levels']:
        for r in level['observations'].values():
            assert sum(r[f'share_{s}'] for s in SETS) == pytest.approx(1)
            assert r['abstention'] == pytest.approx(r['share_both'] + r['share_none'])
            assert r['mean_size'] == pytest.approx(1 + r['share_both'] - r['share_none'])
            if r['coverage_positive_low'] == r['coverage_positive_low']:
                assert r['coverage_positive_low'] <= r['coverage_positive'] <= r['coverage_positive_high']
    figure = plot_conformal(stored, 0.2, simulated=True)
    assert any('SIMULATED' in t.get_text() for t in figure.texts)
    assert not plot_conformal(report).texts
    assert list(conformal_table(stored, 0.05).index) == list(OBSERVATIONS)
    with pytest.raises(ValueError, match=r'no alpha 0.3; it has 0.05, 0.1, 0.2'):
        conformal_table(report, 0.3)


def test_a_patient_has_one_vote(tuning, test):
    "Coverage does not change when one patient's images are entered many times"
    first = test[test['patient_id'] == test['patient_id'].iloc[0]]
    copies = [first.assign(image=first['image'] + f'.{i}') for i in range(30)]
    again = pd.concat([test, *copies], ignore_index=True)
    one, more = (of_level(conformal_report(t, tuning, (0.1,), n_bootstrap=0)) for t in (test, again))
    for o in OBSERVATIONS:
        assert one[o]['coverage_negative'] == pytest.approx(more[o]['coverage_negative'])
        assert one[o]['abstention'] == pytest.approx(more[o]['abstention'])


def test_given_resamples_are_used(test, tuning):
    clusters, weights = resample_patients(test['patient_id'], 30, 5)
    given_ = conformal_report(test, tuning, (0.1,), clusters, weights, seed=5)
    drawn = conformal_report(test, tuning, (0.1,), n_bootstrap=30, seed=5)
    assert given_['n_bootstrap'] == 30
    for o in OBSERVATIONS:
        assert of_level(given_)[o]['abstention_low'] == of_level(drawn)[o]['abstention_low']
    with pytest.raises(ValueError, match='clusters has'):
        conformal_report(test, tuning, (0.1,), clusters[:-1], weights)


@pytest.mark.parametrize(
    'change, expected',
    [
        (lambda t: t.drop(columns='fused/Edema'), ['tuning', 'lacks the columns fused/Edema']),
        (lambda t: t.drop(columns='patient_id'), ['lacks the columns patient_id']),
        (lambda t: t.assign(**{'fused/Edema': 1.2}), ['row 0', 'fused/Edema is 1.2', 'from 0 to 1']),
        (lambda t: t.assign(**{'fused/Edema': np.nan}), ['row 0', 'every image']),
        (lambda t: t.assign(**{'fused/Edema': 'high'}), ["'high'", 'a number']),
        (lambda t: t.assign(**{'label/Edema': 'yes'}), ["label/Edema is 'yes'", '1 (positive)']),
        (lambda t: t.assign(**{'label/Edema': 2.0}), ['label/Edema is', '1 (positive)']),
        (lambda t: t.assign(split='test'), ["split is 'test'", "expected 'tuning'"]),
        (lambda t: t.assign(patient_id=None), ['patient_id is None', 'units of the guarantee']),
        (lambda t: t[:0], ['no rows']),
        (lambda t: t.to_dict(), ['dict', 'prediction table']),
    ],
)
def test_bad_tables_are_refused(tuning, change, expected):
    with pytest.raises(ValueError) as refused:
        fit_conformal(change(tuning))
    for part in expected:
        assert part in str(refused.value)
    assert 'np.float64(1.2)' not in str(refused.value)


def test_other_bad_input_is_refused(tuning, test):
    with pytest.raises(ValueError, match="images is 'two'"):
        fit_conformal(tuning, images='two')
    with pytest.raises(ValueError, match='fit it again'):
        predict_sets(test, {'alpha': 0.1})
    with pytest.raises(ValueError, match='lacks the columns nothing/'):
        fit_conformal(tuning, 'nothing')
    with pytest.raises(ValueError, match='is in tuning and test'):
        conformal_report(tuning.assign(split='test'), tuning, (0.1,))
    with pytest.raises(ValueError, match="expected 'test'"):
        conformal_report(tuning, tuning, (0.1,))


# ---- risk and coverage


@quick
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9), st.integers(0, 3)), min_size=2, max_size=40))
def test_the_curve_is_the_one_counted_by_hand(cases):
    labels, p, times = (np.array(x) for x in zip(*cases))
    if not times.sum():
        times[0] = 1
    table = synthetic_predictions(40).iloc[: len(labels)].reset_index(drop=True)
    table['label/Edema'], table['fused/Edema'], p = labels.astype(float), p / 10, p / 10
    weights = np.stack([np.ones(len(labels)), times], 1)
    found = risk_coverage(table, 'fused', 'Edema', clusters=np.arange(len(labels)), weights=weights)

    def by_hand(labels, p):
        "Each case at the coverage where it is answered"
        sure, wrong = np.round(np.abs(p - 0.5), 9), (p >= 0.5) != labels
        return np.mean([wrong[sure >= s].mean() for s in sure])

    assert found['aurc'] == pytest.approx(by_hand(labels, p))
    assert found['aurc_best'] - 1e-12 <= found['aurc']
    assert found['risk'][-1] == pytest.approx(found['risk_of_all'])
    twice = np.stack([np.ones(len(labels)), times, times], 1)
    pair = risk_coverage(table, 'fused', 'Edema', clusters=np.arange(len(labels)), weights=twice)
    repeated = by_hand(np.repeat(labels, times), np.repeat(p, times))
    assert pair['aurc_low'] == pytest.approx(repeated)  # a weight is a repetition


def test_undefined_and_bad_thresholds(test):
    empty = risk_coverage(test.assign(**{'label/Edema': np.nan}), 'fused', 'Edema')
    assert np.isnan(empty['aurc'])
    assert empty['reason'] == 'not labelled in these data'
    assert json.dumps(empty)
    with pytest.raises(ValueError, match='threshold is 0'):
        risk_coverage(test, threshold=0)
    with pytest.raises(ValueError, match="unknown observation 'Oedema'"):
        risk_coverage(test, observation='Oedema')


def test_the_threshold_decides_the_risk(test):
    found = risk_coverage(test, 'fused', 'Edema', threshold=0.2)
    known = test[test['label/Edema'].isin([0, 1])]
    wrong = (known['fused/Edema'] >= 0.2) != (known['label/Edema'] == 1)
    assert found['risk_of_all'] == pytest.approx(wrong.mean())


def test_fourteen_curves_are_drawn(test):
    unlabelled = test.assign(**{'label/Fracture': np.nan})
    thresholds = {'Edema': 0.2, 'Cardiomegaly': float('nan')}
    figure = plot_risk_coverage(unlabelled, thresholds=thresholds, simulated=True)
    assert sum(bool(ax.lines) for ax in figure.axes) == 14
    assert any('not labelled' in t.get_text() for ax in figure.axes for t in ax.texts)
