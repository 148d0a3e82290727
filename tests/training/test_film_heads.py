"""What the benchmark of real films puts on features, and what its selection looks at."""

import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from sklearn.gaussian_process.kernels import RBF
from sklearn.kernel_ridge import KernelRidge

sys.path.insert(0, str(ROOT / 'benchmarks'))
import film_encoders  # noqa: E402
import film_heads  # noqa: E402
import film_trials  # noqa: E402

rng = np.random.default_rng(5)


def test_the_kernel_head_is_kernel_ridge_of_what_differs_from_the_mean():
    x, others = rng.normal(size=(60, 8)), rng.normal(size=(7, 8))
    y = (rng.random((60, 2)) < 0.3).astype(float)
    found = film_heads.kernel_scores(x, y, others, penalty=0.5)
    a, b = film_heads.standardised(x, others)
    kernel = RBF(np.sqrt(8 / 2))
    pull = np.linalg.inv(kernel(a) + 0.5 * np.eye(60))
    start = (pull @ y).sum(0) / pull.sum()  # the intercept of generalised least squares
    expected = start + KernelRidge(alpha=0.5, kernel='precomputed').fit(kernel(a), y - start).predict(
        kernel(b, a)
    )
    np.testing.assert_allclose(found, expected / y.std(0), atol=1e-8)


def test_a_film_that_counts_twice_is_two_films():
    x, y, others = (
        rng.normal(size=(20, 4)),
        rng.integers(0, 2, (20, 2)).astype(float),
        rng.normal(size=(3, 4)),
    )
    x -= x.mean(0)
    once = film_heads.gaussian(x, x)
    counts = np.where(np.arange(20) < 5, 2.0, 1.0)
    rows = np.r_[np.arange(20), np.arange(5)]
    ones = lambda n: np.ones((n, 1))  # noqa: E731
    solve = lambda k, p, t: np.linalg.solve(  # noqa: E731
        np.block([[k + np.diag(p), ones(len(k))], [ones(len(k)).T, np.zeros((1, 1))]]),
        np.vstack([t, np.zeros((1, 2))]),
    )
    weighted = solve(once, 1 / counts, y)
    doubled = solve(once[np.ix_(rows, rows)], np.ones(25), y[rows])
    new = film_heads.gaussian(others, x)
    np.testing.assert_allclose(
        new @ weighted[:-1] + weighted[-1], new[:, rows] @ doubled[:-1] + doubled[-1], atol=1e-8
    )


def test_the_guide_of_mixed_sources_does_not_reward_the_projection():
    n = 40
    table = pd.DataFrame({o: np.arange(n) % 2 for o in film_heads.NINE}, dtype=float)
    table['projection'] = np.where(table['Pneumonia'] == 1, 'AP', 'PA')
    table.loc[:9, 'projection'] = 'AP'
    table["No Finding"] = 0.0
    scores = np.repeat((table.projection == 'AP').to_numpy(float)[:, None], 9, 1)
    everywhere = np.ones(n, bool)
    fold = np.zeros(n, int)
    assert film_heads.mean_among(everywhere, table, scores, fold) > 0.8
    assert film_heads.guides(table, scores, fold, everywhere)['mean_mixed'] == pytest.approx(0.5)


def test_rows_of_the_same_trial_are_replaced_and_others_stay():
    old = pd.DataFrame(
        dict(
            protocol='selection',
            features=['zones', 'pixels'],
            penalty=[1.0, 30.0],
            healthy=np.nan,
            mean=[0.1, 0.2],
        )
    )
    old[['head', 'tried', 'learned_from']] = [['Gaussian kernel', 'first', 9], [None, None, 9]]
    new = old[:1].assign(mean=0.6, mixed=np.nan)
    found = film_trials.joined(old, new).set_index('features')
    assert found['mean'].to_dict() == {'pixels': 0.2, 'zones': 0.6}
    assert found.loc['pixels', 'head'] == 'regression'


def test_views_of_one_film_attract_each_other():
    import torch

    films = torch.eye(6)
    assert film_encoders.contrast(films, films) < film_encoders.contrast(films, films.roll(1, 0))
