"""Metrics: agreement with scikit-learn, properties of the metrics, published figures, and the errors of malformed tables.

Real data lie in ../shared/data beside the repository (see DESIGN); tests that need them skip where the folder is absent."""
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings, strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from cxr_lib.calibration import scale_temperature
from cxr_lib.core import OBSERVATIONS
from cxr_lib.metrics import (auprc, auroc, auroc_covariance, brier_score, calibration, calibration_error, calibration_interval, check_predictions, choose_threshold, choose_thresholds,
                             compare_conditions, decision_metrics, delong_interval, delong_test, fit_temperature, holm, interval, known_labels, mean_over, micro_average,
                             rank_condition, ranking_metrics, read_predictions, resample_patients, resampled_calibration_error, settle_labels, synthetic_predictions, threshold_table,
                             youden_threshold)

DATA = Path(__file__).resolve().parent.parent.parent/'shared'/'data'
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f'the shared real data ({DATA}) are not on this machine')

# few distinct scores, so that ties are common
cases = st.integers(2, 40).flatmap(lambda n: st.tuples(st.lists(st.integers(0, 1), min_size=n, max_size=n), st.lists(st.integers(0, 6), min_size=n, max_size=n),
                                                        st.lists(st.integers(0, 3), min_size=n, max_size=n)))
quick = settings(max_examples=150, deadline=None)


@quick
@given(cases)
def test_equals_scikit_learn_with_ties(case):
    labels, scores = np.array(case[0]), np.array(case[1])/7
    assume(0 < labels.sum() < len(labels))
    assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    assert auprc(labels, scores) == pytest.approx(average_precision_score(labels, scores), abs=1e-9)


@quick
@given(cases)
def test_a_weight_is_a_repetition(case):
    labels, scores, weights = (np.array(x) for x in case)
    repeated = np.repeat(labels, weights)
    assume(0 < repeated.sum() < len(repeated))
    assert auroc(labels, scores, weights) == pytest.approx(roc_auc_score(repeated, np.repeat(scores, weights)), abs=1e-9)
    assert auprc(labels, scores, weights) == pytest.approx(average_precision_score(repeated, np.repeat(scores, weights)), abs=1e-9)


@quick
@given(cases)
def test_order_of_images_and_monotone_transforms_do_not_matter(case):
    labels, scores = np.array(case[0]), np.array(case[1])/7
    assume(0 < labels.sum() < len(labels))
    order = np.random.default_rng(0).permutation(len(labels))
    for changed in (auroc(labels[order], scores[order]), auroc(labels, np.exp(3*scores) - 5), 1 - auroc(labels, -scores), 1 - auroc(1-labels, scores)):
        assert changed == pytest.approx(auroc(labels, scores), abs=1e-12)
    assert auprc(labels, np.exp(3*scores)) == pytest.approx(auprc(labels, scores), abs=1e-12)


def test_shuffled_labels_rank_like_chance():
    r = np.random.default_rng(0)
    labels, scores = r.integers(0, 2, 300), r.random(300)
    shuffled = [auroc(r.permutation(labels), scores) for _ in range(400)]
    assert abs(np.mean(shuffled) - .5) < .01


def test_bootstrap_equals_scikit_learn_on_each_repeated_sample():
    r = np.random.default_rng(3)
    patient = np.sort(r.integers(0, 60, 150))
    labels, scores = r.integers(0, 2, 150), np.round(r.random(150), 1)
    clusters, weights = resample_patients(patient, 40, seed=5)
    areas, precisions = ranking_metrics(labels, scores, weights, clusters)
    assert (weights[:, 0] == 1).all() and (weights.sum(0) == len(np.unique(patient))).all()
    for b in range(41):
        times = weights[clusters, b].astype(int)
        assert areas[b] == pytest.approx(roc_auc_score(np.repeat(labels, times), np.repeat(scores, times)), abs=1e-9)
        assert precisions[b] == pytest.approx(average_precision_score(np.repeat(labels, times), np.repeat(scores, times)), abs=1e-9)


def test_memory_bound_steps_give_the_same_numbers():
    r = np.random.default_rng(1)
    n = 30_000                                     # so many levels that resamples are taken a few dozen at a time
    labels, scores = r.integers(0, 2, n), r.random(n)
    clusters, weights = resample_patients(np.arange(n), 200)
    areas, _ = ranking_metrics(labels, scores, weights, clusters)
    for b in (0, 133, 200): assert areas[b] == pytest.approx(roc_auc_score(labels, scores, sample_weight=weights[:, b]), abs=1e-9)


def test_one_positive_and_none():
    clusters, weights = resample_patients(np.arange(20), 200)
    labels = np.eye(1, 20, 4)[0]
    areas, precisions = ranking_metrics(labels, np.arange(20)[::-1], weights, clusters)
    assert areas[0] == pytest.approx(15/19) and precisions[0] == pytest.approx(1/5)
    absent = weights[4, 1:] == 0                   # resamples that missed the one positive
    assert absent.any() and (np.isnan(areas[1:]) == absent).all() and interval(areas)['undefined_resamples'] == absent.sum()
    for empty in (np.zeros(20), np.ones(20)):
        assert np.isnan(ranking_metrics(empty, np.arange(20), weights, clusters)).all()
    assert np.isnan(auroc([], [])) and np.isnan(youden_threshold([0, 0], [.1, .2])) and np.isnan(fit_temperature([1, 1], [.1, .2]))


def test_interval_covers_the_truth():
    "Half of 300 patients positive, two images each: about 95 of 100 intervals hold the true AUROC"
    from scipy.stats import norm
    truth, covered = norm.cdf(1/np.sqrt(2*(1+.5))), 0      # scores: label + patient effect (sd .7) + image noise (sd 1), difference over sd
    for trial in range(200):
        r = np.random.default_rng(trial)
        label = np.repeat(np.arange(300) % 2, 2)
        score = label + np.repeat(r.normal(0, np.sqrt(.5), 300), 2) + r.normal(0, 1, 600)
        clusters, weights = resample_patients(np.repeat(np.arange(300), 2), 300, seed=trial)
        i = interval(ranking_metrics(label, score, weights, clusters)[0])
        covered += i['low'] <= truth <= i['high']
    assert .91 <= covered/200 <= .985              # binomial noise of 200 trials around 0.95


@quick
@given(cases)
def test_youden_is_the_best_of_all_thresholds(case):
    labels, scores = np.array(case[0]), np.array(case[1])
    assume(0 < labels.sum() < len(labels))
    def index(t): return (scores[labels == 1] >= t).mean() - (scores[labels == 0] >= t).mean()
    assert index(youden_threshold(labels, scores)) == pytest.approx(max(index(t) for t in scores), abs=1e-12)


def test_calibration_error_worked_example():
    assert calibration_error([1, 0, 0, 1], [.7, .3, .1, .9], n_bins=5) == pytest.approx(.2)


@pytest.mark.parametrize('temperature', [.5, 1, 3])
def test_temperature_is_found_again(temperature):
    r = np.random.default_rng(0)
    p = r.uniform(.02, .98, 20_000)
    assert fit_temperature(r.random(20_000) < p, scale_temperature(p, 1/temperature)) == pytest.approx(temperature, rel=.07)


def test_delong_agrees_with_the_bootstrap_and_knows_when_it_is_undefined():
    r = np.random.default_rng(2)
    labels = np.repeat([0, 1], 100)
    a, b = labels + r.normal(0, 1, 200), labels + r.normal(0, 2, 200)
    clusters, weights = resample_patients(np.arange(200), 2000)
    difference = np.subtract(*(ranking_metrics(labels, s, weights, clusters)[0] for s in (a, b)))
    found = delong_test(labels, a, b)
    assert found['auc_a'] - found['auc_b'] == pytest.approx(difference[0]) and np.sqrt(found['variance']) == pytest.approx(difference[1:].std(), rel=.08)
    assert 'no variance' in delong_test(labels, a, 2*a)['reason'] and np.isnan(delong_test([0, 0, 1], [1, 2, 3], [2, 1, 3])['p'])


# ---- published figures

@needs_data
def test_delong_on_the_asah_patients():
    "Turck et al. 2010, as distributed with the R package pROC: roc.test(wfns, s100b)"
    table = pd.read_csv(DATA/'asah.csv')
    found = delong_test(table['outcome'] == 'Poor', table['wfns'], table['s100b'])
    assert found['z'] == pytest.approx(2.20898359144091, abs=1e-11) and found['p'] == pytest.approx(0.0271757822291882, abs=1e-12)


@needs_data
def test_published_aucs_of_22433_nih_predictions():
    "Predictions and AUROCs published by J. Zech for a reproduction of CheXNet"
    predictions = pd.read_csv(DATA/'nih_predictions/densenet121_predictions.csv.gz').set_index('Image Index')
    labels = pd.read_csv(DATA/'nih_predictions/labels.csv.gz').set_index('Image Index').loc[predictions.index, 'Finding Labels']
    published = pd.read_csv(DATA/'nih_predictions/published_aucs.csv').set_index('label')['auc']
    assert len(predictions) == 22_433 and len(published) == 14
    for name, area in published.items():
        assert auroc(labels.str.split('|').map(lambda found: name in found), predictions[f'prob_{name}']) == pytest.approx(area, abs=1e-9), name


# ---- the prediction table

@pytest.fixture(scope='module')
def practice(): return synthetic_predictions(150, seed=1)


def put(row, column, value):
    def change(t):
        t[column] = t[column].astype(object)
        t.loc[row, column] = value
        return t
    return change


def first_test_as_tuning(t):
    return pd.concat([t, t[t['split'] == 'test'].head(1).assign(split='tuning', image='another.png')], ignore_index=True)


MALFORMED = {
    'no column of a condition': (lambda t: t.drop(columns='fused/Edema'), ['lacks', 'fused/Edema', 'training stage']),
    'a whole condition gone': (lambda t: t.drop(columns=[c for c in t if c.startswith('shuffled_note/')]), ['shuffled_note/No Finding', 'and 10 more']),
    'half an optional condition': (lambda t: t.drop(columns='best_fused/Edema'), ['lacks', 'best_fused/Edema']),
    'no patients': (lambda t: t.drop(columns='patient_id'), ['lacks', 'patient_id']),
    'no label column': (lambda t: t.drop(columns='label/Fracture'), ['label/Fracture']),
    'misspelt observation': (lambda t: t.rename(columns={'fused/Edema': 'fused/edema'}), ['lacks', 'fused/Edema']),
    'probability above 1': (put(3, 'fused/Edema', 1.5), ['row 3', 'fused/Edema', '1.5', 'sigmoid']),
    'negative probability': (put(3, 'note_only/Pneumonia', -.1), ['row 3', 'note_only/Pneumonia', 'from 0 to 1']),
    'infinite probability': (put(0, 'fused/Edema', np.inf), ['row 0', 'from 0 to 1']),
    'missing probability': (put(7, 'image_only/Fracture', np.nan), ['row 7', 'image_only/Fracture', 'every image']),
    'text for a probability': (put(2, 'fused/Edema', 'high'), ['row 2', "'high'", 'a number']),
    'label of 2': (put(4, 'label/Edema', 2.), ['row 4', 'label/Edema', 'uncertain']),
    'label in words': (put(4, 'label/Edema', 'yes'), ['row 4', "'yes'", 'a number']),
    'training rows': (put(5, 'split', 'train'), ['row 5', 'split', "'train'", "'tuning' or 'test'"]),
    'no split': (put(5, 'split', None), ['row 5', 'split']),
    'half a fold': (put(6, 'fold', .5), ['row 6', 'fold', 'whole number']),
    'unknown patient': (put(6, 'patient_id', None), ['row 6', 'patient_id', 'by patient']),
    'an image twice': (lambda t: pd.concat([t, t.iloc[[9]]], ignore_index=True), ['each image once', 'count twice']),
    'patient tuned and tested on': (first_test_as_tuning, ['tuning and test of fold -1', 'split by patient']),
    'nothing to test': (lambda t: t[t['split'] == 'tuning'].reset_index(drop=True), ["no row with split 'test'"]),
}


@pytest.mark.parametrize('what', MALFORMED)
def test_malformed_tables_are_refused_with_a_remedy(practice, tmp_path, what):
    damage, expected = MALFORMED[what]
    with pytest.raises(ValueError) as refused: check_predictions(damage(practice.copy()), 'predictions.parquet')
    assert str(refused.value).startswith('predictions.parquet')
    for part in expected: assert part in str(refused.value)


def test_unreadable_files_are_refused_with_a_remedy(practice, tmp_path):
    with pytest.raises(FileNotFoundError, match='training stage'): read_predictions(tmp_path/'predictions.parquet')
    (tmp_path/'broken.parquet').write_bytes(b'PAR1 half a file')
    with pytest.raises(ValueError, match='broken.parquet is not a readable parquet file.*delete it'): read_predictions(tmp_path/'broken.parquet')
    practice.to_parquet(tmp_path/'whole.parquet')
    pd.testing.assert_frame_equal(read_predictions(tmp_path/'whole.parquet'), practice, check_dtype=False)
