"""Ranking: agreement with scikit-learn and torchmetrics, properties, intervals, and published AUROCs."""

from pathlib import Path
from runpy import run_path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from hypothesis import assume, given, strategies as st
from metric_samples import DATA, TRUE_AREA, cases, correlated, needs_data, quick, scored
from sklearn.metrics import average_precision_score, roc_auc_score

from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.metrics.comparison import delong_interval
from cxr_lib.metrics.predictions import settle_labels, synthetic_predictions
from cxr_lib.metrics.ranking import (
    auprc,
    auroc,
    interval,
    mean_over,
    micro_average,
    rank_condition,
    ranking_metrics,
    resample_patients,
)


@quick
@given(cases)
def test_equals_scikit_learn_with_ties(case):
    labels, scores = np.array(case[0]), np.array(case[1]) / 7
    assume(0 < labels.sum() < len(labels))
    assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    assert auprc(labels, scores) == pytest.approx(average_precision_score(labels, scores), abs=1e-9)


@quick
@given(cases)
def test_a_weight_is_a_repetition(case):
    labels, scores, weights = (np.array(x) for x in case)
    repeated, scores_again = np.repeat(labels, weights), np.repeat(scores, weights)
    assume(0 < repeated.sum() < len(repeated))
    area, precision = roc_auc_score(repeated, scores_again), average_precision_score(repeated, scores_again)
    assert auroc(labels, scores, weights) == pytest.approx(area, abs=1e-9)
    assert auprc(labels, scores, weights) == pytest.approx(precision, abs=1e-9)


@quick
@given(cases)
def test_order_of_images_and_monotone_transforms_do_not_matter(case):
    labels, scores = np.array(case[0]), np.array(case[1]) / 7
    assume(0 < labels.sum() < len(labels))
    order = np.random.default_rng(0).permutation(len(labels))
    for changed in (
        auroc(labels[order], scores[order]),
        auroc(labels, np.exp(3 * scores) - 5),
        1 - auroc(labels, -scores),
        1 - auroc(1 - labels, scores),
    ):
        assert changed == pytest.approx(auroc(labels, scores), abs=1e-12)
    assert auprc(labels, np.exp(3 * scores)) == pytest.approx(auprc(labels, scores), abs=1e-12)


def test_shuffled_labels_rank_like_chance():
    r = np.random.default_rng(0)
    labels, scores = r.integers(0, 2, 300), r.random(300)
    shuffled = [auroc(r.permutation(labels), scores) for _ in range(400)]
    assert abs(np.mean(shuffled) - 0.5) < 0.01


def test_bootstrap_equals_scikit_learn_on_each_repeated_sample():
    r = np.random.default_rng(3)
    patient = np.sort(r.integers(0, 60, 150))
    labels, scores = r.integers(0, 2, 150), np.round(r.random(150), 1)
    clusters, weights = resample_patients(patient, 40, seed=5)
    areas, precisions = ranking_metrics(labels, scores, weights, clusters)
    assert (weights[:, 0] == 1).all() and (weights.sum(0) == len(np.unique(patient))).all()
    for b in range(41):
        times = weights[clusters, b].astype(int)
        sample = np.repeat(labels, times), np.repeat(scores, times)
        assert areas[b] == pytest.approx(roc_auc_score(*sample), abs=1e-9)
        assert precisions[b] == pytest.approx(average_precision_score(*sample), abs=1e-9)


def test_memory_bound_steps_give_the_same_numbers():
    r = np.random.default_rng(1)
    n = 30_000  # so many levels that resamples are taken a few dozen at a time
    labels, scores = r.integers(0, 2, n), r.random(n)
    clusters, weights = resample_patients(np.arange(n), 200)
    areas, _ = ranking_metrics(labels, scores, weights, clusters)
    for b in (0, 133, 200):
        expected = roc_auc_score(labels, scores, sample_weight=weights[:, b])
        assert areas[b] == pytest.approx(expected, abs=1e-9)


def test_one_positive():
    clusters, weights = resample_patients(np.arange(20), 200)
    labels = np.eye(1, 20, 4)[0]
    areas, precisions = ranking_metrics(labels, np.arange(20)[::-1], weights, clusters)
    assert areas[0] == pytest.approx(15 / 19) and precisions[0] == pytest.approx(1 / 5)
    absent = weights[4, 1:] == 0  # resamples that missed the one positive
    assert absent.any() and (np.isnan(areas[1:]) == absent).all()
    assert interval(areas)['undefined_resamples'] == absent.sum()


def test_one_class_or_none():
    clusters, weights = resample_patients(np.arange(20), 200)
    for empty in (np.zeros(20), np.ones(20)):
        assert np.isnan(ranking_metrics(empty, np.arange(20), weights, clusters)).all()
    assert np.isnan(auroc([], []))


def test_bootstrap_is_fifty_times_faster_than_a_loop(monkeypatch):
    "benchmarks/bootstrap.py at the size of CheXpert's validation set, where it measures several hundred"
    for name in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'):
        monkeypatch.setenv(name, '1')  # the script sets them too; here they are put back
    measure = run_path(str(Path(ROOT) / 'benchmarks' / 'bootstrap.py'))['measure']
    assert measure(234, 200, 1000, loop=10, repeats=3) > 50


def test_interval_covers_the_truth():
    """Of 800 studies of 300 patients with two correlated images each, 93% to 97% of the 95% intervals hold the truth

    The binomial error is 0.8%.
    """
    covered = by_image = 0
    for trial in range(800):
        label, score, patient = correlated(np.random.default_rng(trial), 150, 150)
        for of in (patient, np.arange(600)) if trial < 200 else (patient,):
            clusters, weights = resample_patients(of, 250, seed=trial)
            i = interval(ranking_metrics(label, score, weights, clusters)[0])
            if of is patient:
                covered += i['low'] <= TRUE_AREA <= i['high']
            else:
                by_image += i['low'] <= TRUE_AREA <= i['high']
    assert 0.93 <= covered / 800 <= 0.97
    assert by_image / 200 < 0.92  # images as if they were independent promise too much


@quick
@given(cases, st.randoms(use_true_random=False))
def test_kinds_of_weights_and_names_of_patients_do_not_matter(case, random):
    labels, scores, times = (np.array(x) for x in case)
    weights = np.stack([np.ones(len(labels)), times, times[::-1]], 1)
    expected = pytest.approx(np.array(ranking_metrics(labels, scores, weights)), abs=1e-12, nan_ok=True)
    # 1000 is too large for a byte
    for other in (
        weights.astype(np.uint8),
        weights.astype(np.float32, order='F'),
        1000 * weights,
        weights / 7,
    ):
        assert np.array(ranking_metrics(labels, scores, other)) == expected
    renamed = np.array(random.sample(range(len(labels)), len(labels)))  # the patient of each image
    moved = np.empty_like(weights)
    moved[renamed] = weights
    assert np.array(ranking_metrics(labels, scores, moved, renamed)) == expected


@quick
@given(cases, st.data())
def test_any_weights_equal_scikit_learn(case, data):
    labels, scores = np.array(case[0]), np.array(case[1]) / 7
    n = len(labels)
    weights = np.array(data.draw(st.lists(st.floats(0.01, 10), min_size=n, max_size=n)))
    assume(0 < labels.sum() < n)
    area = roc_auc_score(labels, scores, sample_weight=weights)
    precision = average_precision_score(labels, scores, sample_weight=weights)
    assert auroc(labels, scores, weights) == pytest.approx(area, abs=1e-9)
    assert auprc(labels, scores, weights) == pytest.approx(precision, abs=1e-9)


@quick
@given(
    st.lists(st.integers(0, 6), min_size=2, max_size=30),
    st.integers(0, 29),
    st.lists(st.integers(0, 3), min_size=30, max_size=30),
)
def test_one_positive_is_a_rank(scores, at, times):
    scores, at, times = np.array(scores), at % len(scores), np.array(times)[: len(scores)]
    labels, others = np.arange(len(scores)) == at, np.delete(scores, at)
    expected = (others < scores[at]).mean() + (others == scores[at]).mean() / 2
    assert auroc(labels, scores) == pytest.approx(expected)
    assert auprc(labels, scores) == pytest.approx(1 / (1 + (others >= scores[at]).sum()))
    assert np.isnan(auroc(labels, scores, times)) == (times[at] == 0 or np.delete(times, at).sum() == 0)
    assert auroc(~labels, -scores) == pytest.approx(auroc(labels, scores))


def test_bad_input_is_refused_with_a_remedy():
    clusters, weights = resample_patients(['a', 'a', 'b'], 5)
    with pytest.raises(ValueError, match='equal length'):
        ranking_metrics([0, 1], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match='1 scores are NaN.*leave these images out'):
        auroc([0, 1, 1], [0.1, np.nan, 0.3])
    with pytest.raises(ValueError, match='resample_patients'):
        ranking_metrics([0, 1, 1], [0.1, 0.2, 0.3], weights, clusters + 1)
    assert resample_patients(['a', 'a', 'b'], 5, dtype=np.uint8)[1].tolist() == weights.tolist()


# ---- other people's implementations


def test_equals_torchmetrics():
    import torch
    from torchmetrics import classification as tm

    labels, p = scored()
    y, q = torch.tensor(labels), torch.tensor(p)
    # torchmetrics computes in single precision
    assert auroc(labels, p) == pytest.approx(float(tm.BinaryAUROC()(q, y)), abs=1e-6)
    assert auprc(labels, p) == pytest.approx(float(tm.BinaryAveragePrecision()(q, y)), abs=1e-6)


def test_micro_average_equals_scikit_learn():
    practice = synthetic_predictions(150, seed=1)
    test = practice[practice['split'] == 'test']
    clusters, weights = resample_patients(test['patient_id'], 3)
    settled = settle_labels(test, 'negative', 'negative')
    labels, p = (settled[[f'{c}/{o}' for o in OBSERVATIONS]].to_numpy() for c in ('label', 'fused'))
    found = micro_average(settled, 'fused', clusters, weights)
    assert found[0, 0] == pytest.approx(roc_auc_score(labels, p, average='micro'), abs=1e-9)
    assert found[1, 0] == pytest.approx(average_precision_score(labels, p, average='micro'), abs=1e-9)
    times = weights[clusters, 2].astype(int)
    resampled = roc_auc_score(np.repeat(labels, times, 0), np.repeat(p, times, 0), average='micro')
    assert found[0, 2] == pytest.approx(resampled, abs=1e-9)
    macro = mean_over(rank_condition(settled, 'fused', clusters, weights)[0], list(OBSERVATIONS))
    if (labels.sum(0) > 0).all():
        assert macro[0] == pytest.approx(roc_auc_score(labels, p, average='macro'), abs=1e-9)
    assert np.isnan(micro_average(test, 'fused', clusters, weights, [])).all()


# ---- published figures


@needs_data
def test_published_aucs_of_22433_nih_predictions():
    "Predictions and AUROCs published by J. Zech for a reproduction of CheXNet"
    folder = DATA / 'nih_predictions'
    predictions = pd.read_csv(folder / 'densenet121_predictions.csv.gz').set_index('Image Index')
    labels = pd.read_csv(folder / 'labels.csv.gz').set_index('Image Index')
    labels = labels.loc[predictions.index, 'Finding Labels']
    published = pd.read_csv(folder / 'published_aucs.csv').set_index('label')['auc']
    assert len(predictions) == 22_433 and len(published) == 14
    for name, area in published.items():
        positive = labels.str.split('|').map(lambda found: name in found).to_numpy()
        assert auroc(positive, predictions[f'prob_{name}']) == pytest.approx(area, abs=1e-9), name
        i = delong_interval(positive, predictions[f'prob_{name}'])
        assert i['low'] < area < i['high'] and i['value'] == pytest.approx(area, abs=1e-9), name
