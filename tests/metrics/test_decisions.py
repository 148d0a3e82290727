"""Decisions: agreement with scikit-learn and torchmetrics, and thresholds that keep what their rule promises."""

import numpy as np
import pytest
from hypothesis import assume, given, strategies as st
from metric_samples import cases, quick, scored
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_score, recall_score

from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.metrics.decisions import (
    choose_threshold,
    choose_thresholds,
    decision_metrics,
    threshold_table,
    youden_threshold,
)
from cxr_lib.metrics.predictions import synthetic_predictions
from cxr_lib.metrics.ranking import known_labels, resample_patients


def test_decisions_equal_scikit_learn_in_every_resample():
    labels, p = scored()
    clusters, weights = resample_patients(np.arange(400) // 2, 20)
    found = decision_metrics(labels, p >= 0.4, weights, clusters)
    for b in range(21):
        rows = np.repeat(np.arange(400), weights[clusters, b].astype(int))
        y, d = labels[rows], p[rows] >= 0.4
        (tn, fp), (fn, tp) = confusion_matrix(y, d)
        expected = dict(
            sensitivity=recall_score(y, d),
            specificity=tn / (tn + fp),
            ppv=precision_score(y, d),
            npv=tn / (tn + fn),
            f1=f1_score(y, d),
            accuracy=accuracy_score(y, d),
        )
        assert {k: v[b] for k, v in found.items()} == pytest.approx(expected, abs=1e-12)


def test_decisions_equal_torchmetrics():
    import torch
    from torchmetrics import classification as tm

    labels, p = scored()
    y, q = torch.tensor(labels), torch.tensor(p)
    found = decision_metrics(labels, p >= 0.4, np.ones((400, 1)), np.arange(400))
    for name, metric in dict(
        f1=tm.BinaryF1Score,
        sensitivity=tm.BinaryRecall,
        specificity=tm.BinarySpecificity,
        ppv=tm.BinaryPrecision,
        accuracy=tm.BinaryAccuracy,
    ).items():
        assert found[name][0] == pytest.approx(float(metric(threshold=0.4)(q, y)), abs=1e-6), name


@quick
@given(cases)
def test_youden_is_the_best_of_all_thresholds(case):
    labels, scores = np.array(case[0]), np.array(case[1])
    assume(0 < labels.sum() < len(labels))

    def index(t):
        return (scores[labels == 1] >= t).mean() - (scores[labels == 0] >= t).mean()

    assert index(youden_threshold(labels, scores)) == pytest.approx(max(index(t) for t in scores), abs=1e-12)


def test_one_class_has_no_threshold():
    assert np.isnan(youden_threshold([0, 0], [0.1, 0.2]))


@quick
@given(cases, st.sampled_from([0.5, 0.8, 0.9, 0.95, 1 / 3]))
def test_a_rule_keeps_its_share_and_gives_away_as_little_as_it_can(case, share):
    labels, scores = np.array(case[0]), np.array(case[1])
    assume(0 < labels.sum() < len(labels))

    def reached(t):
        return (scores[labels == 1] >= t).mean(), (scores[labels == 0] < t).mean()

    for kind, name in enumerate(('sensitivity', 'specificity')):
        found = choose_threshold(labels, scores, f'{name}={share}')
        assert found['n_positive'] == labels.sum() and found['n_negative'] == len(labels) - labels.sum()
        able = [reached(t) for t in np.unique(scores) if reached(t)[kind] >= share - 1e-12]
        if not able:
            assert name == 'specificity' and np.isnan(found['threshold'])
            assert 'no score clears' in found['reason']
            continue
        both = found['sensitivity'], found['specificity']
        assert both == pytest.approx(reached(found['threshold'])) and both[kind] >= share - 1e-12
        assert both[1 - kind] == pytest.approx(max(r[1 - kind] for r in able))


WRONG_RULES = ['f1', 'sensitivity', 'sensitivity=', 'sensitivity=90', 'sensitivity=1', 'specificity=0']
WRONG_RULES += ['specificity=nan', 'youden=.9', 'recall=0.9', 0.9, None]


@pytest.mark.parametrize('rule', WRONG_RULES)
def test_unknown_rules_are_refused_with_a_remedy(rule):
    practice = synthetic_predictions(20, seed=1)
    with pytest.raises(ValueError, match="expected 'youden', or a share between 0 and 1"):
        choose_thresholds(practice[practice['split'] == 'tuning'], rule=rule)


def test_thresholds_of_each_fold_with_reasons():
    tuning = synthetic_predictions(120, seed=2, n_folds=3)
    tuning = tuning[tuning['split'] == 'tuning']
    tuning.loc[tuning['fold'] == 1, 'label/Edema'] = 0
    tuning.loc[tuning['fold'] == 2, 'label/Edema'] = -1
    table = threshold_table(tuning, rule='sensitivity=0.8')
    edema = table[table['observation'] == 'Edema'].set_index('fold')
    assert list(edema['reason']) == ['', 'no positive case', 'no known label']
    assert np.isnan(edema['threshold'][[1, 2]]).all()
    assert (table['reason'] == '').equals(table['threshold'].notna())
    assert (table['sensitivity'].dropna() >= 0.8).all()
    chosen = choose_thresholds(tuning, rule='sensitivity=0.8')
    assert list(chosen.index) == [0, 1, 2] and list(chosen.columns) == list(OBSERVATIONS)
    rows = tuning[tuning['fold'] == 0]
    at, labels = known_labels(rows, 'Edema')
    alone = choose_threshold(labels, rows['fused/Edema'].to_numpy()[at], 'sensitivity=0.8')
    assert chosen.loc[0, 'Edema'] == alone['threshold']
    assert choose_thresholds(tuning[:0]).shape == (0, 14)
