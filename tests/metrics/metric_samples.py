"""Samples that the tests of the metrics share."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings, strategies as st
from scipy.stats import norm

# Real data lie in ../shared/data beside the repository (see DESIGN); tests that need them skip where it is absent.
DATA = Path(__file__).resolve().parent.parent.parent.parent / 'shared' / 'data'
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason=f'the shared real data ({DATA}) are not on this machine'
)

quick = settings(max_examples=100, deadline=None)


def _lists(n):
    "Labels, scores and weights of n images; few distinct scores, so that ties are common"
    lists = [st.lists(st.integers(0, most), min_size=n, max_size=n) for most in (1, 6, 3)]
    return st.tuples(*lists)


cases = st.integers(2, 40).flatmap(_lists)


def scored(n=400, seed=4):
    "Labels, and probabilities that are a little too high"
    r = np.random.default_rng(seed)
    p = r.uniform(0.01, 0.99, n)
    return (r.random(n) < p**1.5).astype(int), p


#: The true AUROC of `correlated`
TRUE_AREA = norm.cdf(1 / np.sqrt(2 * 1.5))


def correlated(r, n_positive, n_negative, images=2):
    "Labels, scores and patients: label + patient effect (sd .7) + image noise (sd 1)"
    n = n_positive + n_negative
    label = np.repeat(np.repeat([1, 0], [n_positive, n_negative]), images)
    score = label + np.repeat(r.normal(0, np.sqrt(0.5), n), images) + r.normal(0, 1, n * images)
    return label, score, np.repeat(np.arange(n), images)
