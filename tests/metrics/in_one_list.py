"""Ranking and DeLong's covariance as they were before images were ranked within folds: what one fold must still give.

Copied, not imported: `ranking_metrics` and `auroc_covariance` of one fold have to equal these to the bit.
"""

import numpy as np
import pandas as pd
from scipy import stats


def _by_score(labels, scores, clusters):
    order = np.argsort(scores, kind='stable')
    positive = (labels == 1)[order]
    high, low = order[positive], order[~positive]
    levels, begin = np.unique(scores[high], return_index=True)
    below, upto = (np.searchsorted(scores[low], levels, side) for side in ('left', 'right'))
    shared = np.flatnonzero(upto > below)
    return clusters[high], clusters[low], np.append(begin, len(high)), below, shared, upto[shared]


def _running(counts, clusters):
    whole = np.int32 if len(clusters) < 2**23 else np.int64
    kind = float if counts.dtype == float else whole
    totals = np.empty((len(counts), len(clusters) + 1), kind)
    totals[:, 0], totals[:, 1:] = 0, counts.take(clusters, 1, mode='clip')
    return np.cumsum(totals, 1, out=totals)


def _areas(counts, order):
    of_positives, of_negatives, begin, lower, shared, upto = order
    negatives, positives = _running(counts, of_negatives), _running(counts, of_positives)
    if len(begin) <= len(of_positives):
        positives = positives.take(begin, 1)
    n_positive, n_negative = positives[:, -1].astype(float), negatives[:, -1].astype(float)
    drawn, below = np.diff(positives, axis=1).astype(float), negatives.take(lower, 1)
    pairs = 2 * np.einsum('ij,ij->i', drawn, below.astype(float))
    if len(shared):
        level = (negatives.take(upto, 1) - below[:, shared]).astype(float)
        pairs += np.einsum('ij,ij->i', drawn[:, shared], level)
    hits = n_positive[:, None] - positives[:, :-1]
    called = np.maximum(hits + (n_negative[:, None] - below), 1e-300)
    with np.errstate(divide='ignore', invalid='ignore'):
        areas = pairs / (2 * n_positive * n_negative)
        precision = np.einsum('ij,ij->i', drawn, np.divide(hits, called, out=hits)) / n_positive
    return areas, np.where(n_negative > 0, precision, np.nan)


def _counts(weights):
    weights = np.ascontiguousarray(weights.T)
    if weights.dtype == np.uint8:
        return weights
    with np.errstate(invalid='ignore'):
        small = weights.astype(np.uint8)
    return small if (small == weights).all() else weights.astype(float)


def ranking_metrics(labels, scores, weights=None, clusters=None):
    "AUROC and average precision of every resample, all images in one list"
    labels, scores = np.asarray(labels), np.asarray(scores)
    clusters = np.arange(len(labels)) if clusters is None else np.asarray(clusters)
    weights = np.ones((len(labels), 1), np.uint8) if weights is None else np.asarray(weights)
    areas = np.full((2, weights.shape[1]), np.nan)
    if not (labels == 1).any():
        return tuple(areas)
    order = _by_score(labels, scores, clusters)
    step = max(1, 250_000 // max(len(labels), len(weights)))
    for at in range(0, weights.shape[1], step):
        areas[:, at : at + step] = _areas(_counts(weights[:, at : at + step]), order)
    return tuple(areas)


def _placements(positive, scores):
    n_positive, n_negative = positive.sum(), (~positive).sum()
    among_all, found = stats.rankdata(scores, axis=1), np.empty(scores.shape)
    within = stats.rankdata(scores[:, positive], axis=1)
    found[:, positive] = (among_all[:, positive] - within) / n_negative
    within = stats.rankdata(scores[:, ~positive], axis=1)
    found[:, ~positive] = 1 - (among_all[:, ~positive] - within) / n_positive
    return found


def auroc_covariance(labels, scores, clusters=None):
    "AUROCs, their covariance, and why it is undefined, or '', all images in one list"
    positive, scores = np.asarray(labels) == 1, np.atleast_2d(np.asarray(scores, float))
    areas = np.array([ranking_metrics(positive, s)[0][0] for s in scores])
    numbered = clusters is None or pd.factorize(pd.Series(np.asarray(clusters)).astype(str))[0]
    of, classes = np.arange(len(positive)) if clusters is None else numbered, (positive, ~positive)
    counted = [len(np.unique(of[rows])) for rows in classes]
    if min(counted) < 2:
        several = 'patients with a positive image and two with a negative one'
        what = 'positives and two negatives' if clusters is None else several
        undefined = np.full((len(scores), len(scores)), np.nan)
        return areas, undefined, f'needs two {what}; there are {counted[0]} and {counted[1]}'
    off, patients = _placements(positive, scores) - areas[:, None], of.max() + 1
    sums = []
    for rows in classes:
        sums.append(np.stack([np.bincount(of[rows], o[rows], patients) for o in off]) / rows.sum())
    own = sum(k / (k - 1) * (s @ s.T) for k, s in zip(counted, sums))
    both = patients / (patients - 1) * (sums[0] @ sums[1].T)
    return areas, own + both + both.T, ''
