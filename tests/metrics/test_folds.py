"""Ranked within folds: a brute-force loop, a model that knows nothing, coverage under the null, one fold as before."""

import in_one_list
import numpy as np
import pytest
from hypothesis import given, strategies as st
from metric_samples import correlated, quick
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score

from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.metrics.comparison import auroc_covariance, compare_conditions, delong_interval, delong_test
from cxr_lib.metrics.predictions import synthetic_predictions
from cxr_lib.metrics.ranking import (
    auprc,
    auroc,
    comparable,
    count_cases,
    interval,
    known_labels,
    micro_average,
    rank_condition,
    ranking_metrics,
    resample_patients,
)


def by_pairs(labels, scores, times, folds):
    "AUROC by a loop over folds and pairs, and average precision by a loop over folds; each image counts `times`"
    right = pairs = precision = positives = 0.0
    for f in np.unique(folds):
        y, s, w = (np.asarray(x, float)[folds == f] for x in (labels, scores, times))
        high, low = np.flatnonzero((y == 1) & (w > 0)), np.flatnonzero((y == 0) & (w > 0))
        if not len(high) or not len(low):
            continue
        for i in high:
            for j in low:
                right += w[i] * w[j] * ((s[i] > s[j]) + 0.5 * (s[i] == s[j]))
                pairs += w[i] * w[j]
        precision += w[high].sum() * average_precision_score(y, s, sample_weight=w)
        positives += w[high].sum()
    return (right / pairs, precision / positives) if pairs else (np.nan, np.nan)


def _folded(n):
    "Labels, scores with ties, how often each patient was drawn, folds; image k is of patient k // 2"
    lists = [st.lists(st.integers(0, most), min_size=n, max_size=n) for most in (1, 4)]
    of_patients = [st.lists(st.integers(0, most), min_size=n, max_size=n) for most in (3, 2)]
    return st.tuples(*lists, *of_patients)


folded = st.integers(2, 24).flatmap(_folded)


@quick
@given(folded)
def test_equals_a_loop_over_folds_and_pairs_with_ties_in_sample_and_resamples(case):
    labels, scores, drawn, fold = (np.array(x) for x in case)
    patient = np.arange(len(labels)) // 2
    weights = np.stack([np.ones(len(labels)), drawn, drawn[::-1]], 1)
    folds = fold[patient]  # a patient lies in one fold
    found = ranking_metrics(labels, scores / 7, weights, patient, folds)
    for b in range(3):
        expected = by_pairs(labels, scores, weights[patient, b], folds)
        assert [f[b] for f in found] == pytest.approx(expected, abs=1e-9, nan_ok=True)
    sample = auroc(labels, scores, folds=folds), auprc(labels, scores, folds=folds)
    assert sample == pytest.approx(
        by_pairs(labels, scores, np.ones(len(labels)), folds), abs=1e-9, nan_ok=True
    )


@quick
@given(folded)
def test_what_happens_to_a_whole_fold_does_not_matter(case):
    labels, scores, _, fold = (np.array(x) for x in case)
    moved = np.where(fold == 1, 100 - 5.0 / (1 + scores), 3.0 * scores - 40)  # increasing in each fold
    for metric in (auroc, auprc):
        one, other = (
            metric(labels, scores, folds=fold),
            metric(labels, moved, folds=[f'fold {f}' for f in fold]),
        )
        assert one == pytest.approx(other, abs=1e-12, nan_ok=True)


# ---- one fold


@quick
@given(folded, st.sampled_from([None, -1, 3]))
def test_one_fold_is_what_it_was_to_the_bit(case, fold):
    labels, scores, drawn, _ = (np.array(x) for x in case)
    patient, folds = np.arange(len(labels)) // 2, None if fold is None else np.full(len(labels), fold)
    weights = np.stack([np.ones(len(labels)), drawn, drawn / 3], 1)
    before = in_one_list.ranking_metrics(labels, scores / 7, weights, patient)
    assert np.array_equal(
        before, ranking_metrics(labels, scores / 7, weights, patient, folds), equal_nan=True
    )
    models = np.stack([scores, (scores * 3) % 5, scores + drawn])
    for clusters in (None, patient):
        old = in_one_list.auroc_covariance(labels, models, clusters)
        new = auroc_covariance(labels, models, clusters, folds)
        assert (
            all(np.array_equal(a, b, equal_nan=True) for a, b in zip(old[:2], new[:2])) and old[2] == new[2]
        )


def test_thousands_of_images_in_one_fold_are_what_they_were_to_the_bit():
    label, score, patient = correlated(np.random.default_rng(5), 300, 900)
    score[::3] = np.round(score[::3], 1)
    clusters, weights = resample_patients(patient, 300)
    for scores in (score, score.astype(np.float32)):
        before = in_one_list.ranking_metrics(label, scores, weights, clusters)
        assert np.array_equal(before, ranking_metrics(label, scores, weights, clusters, np.full(2400, -1)))
    old, new = (f(label, [score, -score], patient) for f in (in_one_list.auroc_covariance, auroc_covariance))
    assert np.array_equal(old[0], new[0]) and np.array_equal(old[1], new[1])


def test_one_fold_equals_scikit_learn():
    label, score, _ = correlated(np.random.default_rng(6), 40, 160)
    folds = np.full(400, 7)
    assert auroc(label, score, folds=folds) == pytest.approx(roc_auc_score(label, score), abs=1e-12)
    assert auprc(label, score, folds=folds) == pytest.approx(average_precision_score(label, score), abs=1e-12)


# ---- folds without a class


def test_a_fold_with_one_class_has_no_pairs_and_its_cases_count():
    label, score, patient = correlated(np.random.default_rng(7), 20, 60)
    fold = patient % 4
    label[fold == 3] = 1
    rest = fold != 3
    assert auroc(label, score, folds=fold) == auroc(label[rest], score[rest], folds=fold[rest])
    assert auprc(label, score, folds=fold) == auprc(label[rest], score[rest], folds=fold[rest])
    areas, covariance, reason = auroc_covariance(label, score, patient, fold)
    without = auroc_covariance(label[rest], score[rest], patient[rest], fold[rest])
    assert reason == '' and np.array_equal(areas, without[0]) and np.allclose(covariance, without[1])
    table = synthetic_predictions(200, n_folds=3).query('split == "test"')
    table.loc[table['fold'] == 1, 'label/Edema'] = 0.0
    assert count_cases(table).loc['Edema', 'n_negative'] == (table['label/Edema'] == 0).sum()
    assert count_cases(table).loc['Edema', 'reason'] == ''


def test_undefined_where_no_fold_has_both_classes():
    labels, fold = np.array([0, 0, 1, 1, 1]), np.array([0, 0, 1, 1, 1])
    assert comparable(labels, fold) == []
    assert np.isnan(auroc(labels, np.arange(5), folds=fold)) and np.isnan(
        auprc(labels, np.arange(5), folds=fold)
    )
    for found in (
        delong_interval(labels, np.arange(5), folds=fold),
        delong_test(labels, *np.eye(2, 5), folds=fold),
    ):
        assert found['reason'] == 'no fold has both a positive and a negative' and np.isnan(found['variance'])
    table = synthetic_predictions(200, n_folds=2).query('split == "test"')
    table['label/Edema'] = table['fold'].astype(float)
    assert count_cases(table).loc['Edema', 'reason'].startswith('undefined: no fold has both')
    assert np.isnan(compare_conditions(table).loc['Edema', 'p'])


def test_more_patients_than_folds_are_needed_for_a_variance():
    labels, fold = np.array([0, 0, 1, 0, 0, 1]), np.repeat([0, 1], 3)
    found = delong_interval(labels, [1, 2, 3, 4, 6, 5], folds=fold)
    assert found['value'] == 0.75 and 'more patients of each class than the 2 folds' in found['reason']
    # a fold with one positive does not undo the others
    more = np.append(labels, [0, 1, 1]), np.append(fold, [0, 0, 0])
    assert delong_interval(more[0], [1, 2, 3, 4, 6, 5, 3.5, 2.5, 0], folds=more[1])['reason'] == ''


def test_lists_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match='folds .3,. must be lists of equal length'):
        auroc([0, 1], [0.1, 0.9], folds=[0, 0, 1])


# ---- tables


def test_conditions_of_a_table_are_ranked_within_its_folds():
    test = synthetic_predictions(150, n_folds=3, seed=2).query('split == "test"').reset_index(drop=True)
    clusters, weights = resample_patients(test['patient_id'], 3)
    ranks, compared = rank_condition(test, 'fused', clusters, weights), compare_conditions(test)
    for k, o in enumerate(OBSERVATIONS):
        rows, labels = known_labels(test, o)
        scores, fold = test[f'fused/{o}'].to_numpy()[rows], test['fold'].to_numpy()[rows]
        for b in range(4):
            expected = by_pairs(labels, scores, weights[clusters[rows], b], fold)
            assert ranks[:, k, b] == pytest.approx(expected, abs=1e-9, nan_ok=True)
        assert compared.loc[o, 'auroc_a'] == pytest.approx(ranks[0, k, 0], abs=1e-12, nan_ok=True)
    micro = micro_average(test, 'fused', clusters, weights, ['Edema', 'Cardiomegaly'])
    each = [known_labels(test, o) for o in ('Edema', 'Cardiomegaly')]
    scores = [test[f'fused/{o}'].to_numpy()[rows] for o, (rows, _) in zip(('Edema', 'Cardiomegaly'), each)]
    fold = np.concatenate([test['fold'].to_numpy()[rows] for rows, _ in each])
    labels, scores = np.concatenate([y for _, y in each]), np.concatenate(scores)
    assert micro[:, 0] == pytest.approx(by_pairs(labels, scores, np.ones(len(labels)), fold), abs=1e-9)


# ---- DeLong's variance


def test_the_variance_is_the_sum_of_the_folds_where_they_are_of_one_size():
    "Four folds of 20 positive and 30 negative patients: the sum of w^2 times the variance of each fold, w = 1/4"
    r = np.random.default_rng(8)
    label, fold = np.tile(np.repeat([1, 0], [20, 30]), 4), np.repeat(np.arange(4), 50)
    models = label + r.normal(0, 1, (2, 200)) + 3 * fold
    areas, covariance, _ = auroc_covariance(label, models, folds=fold)
    each = [in_one_list.auroc_covariance(label[fold == f], models[:, fold == f]) for f in range(4)]
    assert areas == pytest.approx(np.mean([a for a, _, _ in each], axis=0))
    assert covariance == pytest.approx(sum(c for _, c, _ in each) / 16, rel=1e-12)


def test_delong_agrees_with_the_bootstrap_within_folds():
    "Patients with two images, of a fold each, and scores on another scale in each fold"
    label, score, patient = correlated(np.random.default_rng(9), 120, 240)
    fold = patient % 5
    models = [score + 4 * fold, score + np.random.default_rng(1).normal(0, 2, len(score)) - 3 * fold]
    found = delong_test(label, *models, clusters=patient, folds=fold)
    clusters, weights = resample_patients(patient, 2000)
    drawn = [ranking_metrics(label, s, weights, clusters, fold)[0] for s in models]
    assert found['auc_a'] == pytest.approx(drawn[0][0]) and found['auc_b'] == pytest.approx(drawn[1][0])
    assert np.sqrt(found['variance']) == pytest.approx(np.subtract(*drawn)[1:].std(), rel=0.06)


# ---- models that know nothing


def null_data(seed, n_folds=5, share=0.25, images=200):
    "Labels, the share of positives in the other folds, patients (one or two images each) and folds of one data set"
    r = np.random.default_rng(seed)
    patient = np.repeat(np.arange(images), r.integers(1, 3, images))[:images]
    fold = r.permutation(np.arange(images) % n_folds)[patient]
    label = (r.random(images) < share).astype(int)
    rate = np.array([label[fold != f].mean() for f in range(n_folds)])[fold]
    return r, label, rate, patient, fold


def test_the_rate_of_the_training_patients_has_an_auroc_of_one_half():
    "In the sample and in every resample, exactly; in one list 0.4 on average"
    pooled = []
    for seed in range(200):
        _, label, rate, patient, fold = null_data(seed)
        clusters, weights = resample_patients(patient, 20, seed)
        assert set(ranking_metrics(label, rate, weights, clusters, fold)[0]) == {0.5}
        pooled.append(auroc(label, rate))
    print(
        f'mean AUROC of the rate of the training patients: {np.mean(pooled):.3f} in one list, 0.5 within folds'
    )
    assert np.mean(pooled) < 0.45


@pytest.fixture(scope='module')
def null_studies():
    """400 data sets of 200 images in five folds, and two models that know nothing but the rate of their training part

    A row per data set: AUROC and difference in one list, and within folds with the intervals of bootstrap and DeLong.
    """
    found = []
    for seed in range(400):
        r, label, rate, patient, fold = null_data(seed)
        common = r.normal(0, 0.03, (2, 200)) + r.normal(0, 0.03, 200) + r.normal(0, 0.02, 200)[patient]
        a, b = rate + common
        clusters, weights = resample_patients(patient, 200, seed)
        areas = [ranking_metrics(label, s, weights, clusters, fold)[0] for s in (a, b)]
        drawn, drawn_gain = interval(areas[0]), interval(areas[0] - areas[1])
        delong, test = (
            delong_interval(label, a, clusters=patient, folds=fold),
            delong_test(label, a, b, patient, fold),
        )
        half = 1.96 * np.sqrt(test['variance'])
        gain = test['auc_a'] - test['auc_b']
        old = delong_interval(label, a, clusters=patient)
        found.append(
            dict(
                pooled=old['value'],
                within=drawn['value'],
                pooled_held=old['low'] <= 0.5 <= old['high'],
                bootstrap=drawn['low'] <= 0.5 <= drawn['high'],
                delong=delong['low'] <= 0.5 <= delong['high'],
                bootstrap_gain=drawn_gain['low'] <= 0 <= drawn_gain['high'],
                delong_gain=abs(gain) <= half,
            )
        )
    return found


@pytest.mark.parametrize('kind', ['bootstrap', 'delong', 'bootstrap_gain', 'delong_gain'])
def test_intervals_hold_the_truth_where_there_is_nothing_to_find(null_studies, kind):
    means = {k: np.mean([study[k] for study in null_studies]) for k in null_studies[0]}
    print(
        f'mean AUROC {means["within"]:.3f} within folds, {means["pooled"]:.3f} in one list; {kind}: '
        f'{means[kind]:.1%} of the intervals hold the truth; DeLong in one list {means["pooled_held"]:.1%}'
    )
    assert abs(means['within'] - 0.5) < 0.006 and means['pooled'] < 0.48
    assert 0.92 <= means[kind] <= 0.98


def test_what_the_interval_does_not_hold():
    """Models that learned from noise: the truth is in fewer than 95% of the intervals, but in more than in one list

    The models of the folds learn from each other's test patients, so their AUROCs go up and down together; an interval
    holds the models fixed. Chapter `metrics.ranking` says so. 400 data sets gave 82% within folds, 66% in one list.
    """
    held, areas = [], []
    for seed in range(120):
        r, label, _, _, fold = null_data(seed)
        x, score = r.normal(0, 1, (200, 2)), np.empty(200)
        for f in range(5):
            model = LogisticRegression(C=0.1).fit(x[fold != f], label[fold != f])
            score[fold == f] = model.decision_function(x[fold == f])
        found = delong_interval(label, score, folds=fold), delong_interval(label, score)
        held.append([i['low'] <= 0.5 <= i['high'] for i in found])
        areas.append([i['value'] for i in found])
    (within, pooled), (area, area_pooled) = np.mean(held, axis=0), np.mean(areas, axis=0)
    print(f'trained on noise: {within:.0%} of the intervals hold 0.5, {pooled:.0%} in one list')
    print(f'mean AUROC {area:.3f} within folds, {area_pooled:.3f} in one list')
    assert 0.7 < within < 0.92 and pooled < within - 0.05
    assert abs(area - 0.5) < 0.025 and area_pooled < 0.475
