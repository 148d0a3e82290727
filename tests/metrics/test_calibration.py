"""Calibration: maps that are found again, keep the ranking, survive JSON, fall back where cases are few, and the errors of damaged ones."""

import copy
import json

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import special
from sklearn.metrics import roc_auc_score

from cxr_lib.metrics.calibration import (
    METHODS,
    MIN_CASES,
    apply_calibration,
    bin_edges,
    bin_of,
    calibration_error,
    calibration_table,
    check_calibration,
    fit_calibration,
    fit_isotonic,
    fit_platt,
    fit_temperature,
    reliability_bins,
    scale_temperature,
)
from cxr_lib.foundations.core import OBSERVATIONS

quick = settings(max_examples=60, deadline=None)


def split(n, seed, prevalence=0.3):
    "Labels and overconfident probabilities of fourteen observations"
    r = np.random.default_rng(seed)
    labels = (r.random((n, 14)) < prevalence).astype(float)
    logits = special.logit(prevalence) + np.where(labels, 1, -1) * 0.8 + 1.3 * r.normal(size=labels.shape)
    return labels, special.expit(1.8 * logits + 0.3)


@pytest.fixture(scope='module')
def fitted():
    return {m: fit_calibration(*split(600, 0), m) for m in METHODS}


@pytest.mark.parametrize('method', METHODS)
def test_maps_keep_the_ranking_and_survive_json(fitted, method):
    labels, p = split(500, 1)
    again = check_calibration(json.loads(json.dumps(fitted[method], allow_nan=False)))
    mapped = apply_calibration(p, again)
    assert (
        np.array_equal(mapped, apply_calibration(p, fitted[method]))
        and mapped.shape == p.shape
        and ((mapped >= 0) & (mapped <= 1)).all()
    )
    for k in range(14):
        order = np.argsort(p[:, k])
        assert (np.diff(mapped[order, k]) >= 0).all()
        if method != 'isotonic':
            assert roc_auc_score(labels[:, k], mapped[:, k]) == pytest.approx(
                roc_auc_score(labels[:, k], p[:, k]), abs=1e-12
            )


@pytest.mark.parametrize('method', ['temperature', 'platt', 'isotonic'])
def test_maps_mend_overconfidence_on_new_patients(fitted, method):
    labels, p = split(2000, 2)
    table = calibration_table(labels, p, apply_calibration(p, fitted[method]))
    assert (
        table.loc['all', 'log_loss after'] < table.loc['all', 'log_loss before']
        and table.loc['all', 'ece after'] < table.loc['all', 'ece before']
    )
    assert list(table.index) == ['all', *OBSERVATIONS] and table.loc['all', 'n'] == labels.size


def test_few_cases_share_the_map_of_all_and_say_so():
    labels, p = split(300, 3)
    labels[:, 4] = np.where(np.arange(300) < 5, 1, np.nan)
    for method in ('temperature', 'platt', 'isotonic'):
        found = fit_calibration(labels, p, method, min_cases=20)['observations']
        rare = found['Lung Lesion']
        assert (
            '0 negative cases' in rare['reason']
            and 'all observations together' in rare['reason']
            and found['Edema']['reason'] == ''
        )
    assert fit_calibration(labels, p, 'temperature', min_cases=0)['observations']['Edema'][
        'n_positive'
    ] == int((labels[:, 5] == 1).sum())
    assert MIN_CASES['isotonic'] > MIN_CASES['platt']


def test_uncertain_and_missing_labels_are_left_out():
    labels, p = split(400, 4)
    hidden = labels.copy()
    hidden[:100], hidden[100:150] = -1, np.nan
    a, b = fit_calibration(hidden, p, 'platt'), fit_calibration(labels[150:], p[150:], 'platt')
    assert a == b


@pytest.mark.parametrize('labels', [np.zeros((50, 14)), np.full((50, 14), np.nan), np.zeros((0, 14))])
def test_nothing_to_fit_is_said(labels):
    found = fit_calibration(labels, np.full(labels.shape, 0.3))
    assert (
        found['method'] == 'none'
        and found['reason']
        and (apply_calibration(np.full((2, 14), 0.3), found) == 0.3).all()
    )


def test_a_backward_model_gets_no_map():
    labels, p = split(400, 5)
    found = fit_calibration(labels, 1 - p, 'platt')
    assert found['method'] == 'none' and 'backwards' in found['reason']
    one = p.copy()
    one[:, 2] = 1 - p[:, 2]
    assert 'backwards' in fit_calibration(labels, one, 'platt')['observations'][OBSERVATIONS[2]]['reason']


def test_separable_cases_give_finite_maps():
    slope, intercept = fit_platt([0, 0, 0, 1, 1, 1], [0.1, 0.1, 0.2, 0.8, 0.9, 0.9])
    assert (
        slope > 0
        and np.isfinite([slope, intercept]).all()
        and 1 / 20 <= fit_temperature([0, 1], [1e-9, 1]) <= 20
    )
    x, y = fit_isotonic([0, 0, 1, 1], [0, 0, 1, 1])
    assert 0 < min(y) and max(y) < 1


def damaged(method, observation, change):
    def make(fitted):
        c = copy.deepcopy(fitted[method])
        c['observations'][observation] |= change
        return c

    return make


DAMAGED = {
    'no dictionary': (lambda f: [1], 'is no calibration'),
    'unknown method': (lambda f: f['platt'] | dict(method='beta'), 'is no calibration'),
    'no observations': (lambda f: dict(method='platt'), 'is no calibration'),
    'misspelt observation': (
        lambda f: dict(method='platt', observations=f['platt']['observations'] | {'edema': {}}),
        "unknown observation 'edema'",
    ),
    'missing observation': (
        lambda f: dict(method='platt', observations={'Edema': f['platt']['observations']['Edema']}),
        'No Finding has no map',
    ),
    'no parameters': (
        lambda f: dict(method='platt', observations=f['temperature']['observations']),
        'lacks slope',
    ),
    'negative slope': (damaged('platt', 'Edema', dict(slope=-1.0)), 'Edema: slope is -1.0'),
    'slope is NaN': (damaged('platt', 'Edema', dict(slope=float('nan'))), 'Edema: slope is nan'),
    'intercept is text': (damaged('platt', 'Edema', dict(intercept='0')), "intercept is '0'"),
    'temperature of zero': (
        damaged('temperature', 'Fracture', dict(temperature=0)),
        'Fracture: temperature is 0',
    ),
    'temperature is null': (
        damaged('temperature', 'Fracture', dict(temperature=None)),
        'temperature is None',
    ),
    'isotonic falls': (damaged('isotonic', 'Edema', dict(x=[0.1, 0.5], y=[0.6, 0.4])), 'y must never fall'),
    'isotonic turns back': (
        damaged('isotonic', 'Edema', dict(x=[0.5, 0.1], y=[0.4, 0.6])),
        'x must increase',
    ),
    'isotonic of unequal length': (damaged('isotonic', 'Edema', dict(x=[0.1], y=[0.4, 0.6])), 'equal length'),
    'isotonic above 1': (damaged('isotonic', 'Edema', dict(x=[0.1, 0.2], y=[0.4, 1.6])), 'from 0 to 1'),
}


@pytest.mark.parametrize('what', DAMAGED)
def test_damaged_calibrations_are_refused_with_a_remedy(fitted, what):
    make, expected = DAMAGED[what]
    with pytest.raises(ValueError) as refused:
        check_calibration(make(fitted), 'model/calibration.json')
    assert (
        str(refused.value).startswith('model/calibration.json')
        and expected in str(refused.value)
        and 'tuning split' in str(refused.value)
    )


def test_bad_input_is_refused(fitted):
    labels, p = split(10, 0)
    with pytest.raises(ValueError, match='expected one of'):
        fit_calibration(labels, p, 'beta')
    with pytest.raises(ValueError, match='images, 14'):
        fit_calibration(labels[:, :5], p[:, :5])
    with pytest.raises(ValueError, match='images, 14'):
        apply_calibration(p[:, :5], fitted['platt'])
    with pytest.raises(ValueError, match='sigmoid'):
        apply_calibration(p + 1, fitted['platt'])
    with pytest.raises(ValueError, match='labels must be 0 or 1'):
        calibration_error([-1, 1], [0.2, 0.3])
    with pytest.raises(ValueError, match='equal length'):
        calibration_error([1], [0.2, 0.3])
    with pytest.raises(ValueError, match='norm'):
        calibration_error([1], [0.2], norm='l2')
    with pytest.raises(ValueError, match='equal is'):
        bin_edges([0.2], 5, 'count')
    missing = p.copy()
    missing[0, 0] = np.nan  # an observation that a model does not predict
    assert np.isnan(apply_calibration(missing, fitted['platt'])[0, 0])


@quick
@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=60),
    st.integers(1, 15),
    st.sampled_from(['width', 'mass']),
)
def test_every_probability_has_one_bin(values, n_bins, equal):
    p = np.array(values) / 20
    edges = bin_edges(p, n_bins, equal)
    at = bin_of(p, edges)
    assert edges[0] == 0 and edges[-1] == 1 and (np.diff(edges) > 0).all() and len(edges) <= n_bins + 1
    assert (
        (edges[at] <= p).all()
        and (p <= edges[at + 1]).all()
        and reliability_bins(np.zeros(len(p)), p, n_bins, equal)['n'].sum() == len(p)
    )


@quick
@given(
    st.lists(st.floats(0.05, 0.95), min_size=1, max_size=30), st.floats(0.25, 4)
)  # none is cut at 1e-7 on the way
def test_a_temperature_is_undone_by_its_inverse(values, temperature):
    assert scale_temperature(scale_temperature(values, temperature), 1 / temperature) == pytest.approx(
        np.array(values), abs=1e-3
    )
