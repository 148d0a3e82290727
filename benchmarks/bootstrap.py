"""Time for AUROC and average precision of patient-clustered resamples, against a scikit-learn loop (the baseline).

    python benchmarks/bootstrap.py [--resamples 1000] [--loop 3] [--repeats 1]

Fourteen observations, labelled in every image, with the prevalences of CheXpert's validation set (at least 5%), at the
size of that set (234 images, 200 patients) and of its training set (223,414 images, 64,540 patients). Labels and scores
are random; two of the fourteen scores are rounded to create ties. Our time includes drawing the patients and sorting;
the baseline's includes neither.

One thread; CPU seconds. The baseline is timed in two forms, selected rows and `sample_weight`, and the faster one
counts. For the large table it runs only a few resamples (--loop) of every observation, and the time is extrapolated:
1,000 resamples would take most of an hour. Every resample of the loop must agree to 1e-9.
"""

import argparse
import os

os.environ |= dict.fromkeys(('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'), '1')

import sys
import time
from pathlib import Path

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.metrics.ranking import ranking_metrics, resample_patients
from cxr_lib.notes.leaking import CHEXPERT_VALID_POSITIVES

#: Prevalences in CheXpert's 234 validation images, raised to 5% where lower so that every resample has a positive.
SHARES = np.array([max(0.05, CHEXPERT_VALID_POSITIVES[o] / 234) for o in OBSERVATIONS])


def seconds(function, *args):
    "CPU seconds of a call, and its result"
    start = time.process_time()
    result = function(*args)
    return time.process_time() - start, result


def drawn(n_images, n_patients, seed=0):
    "Patients (n,), and labels and scores (14, n)"
    r = np.random.default_rng(seed)
    patient = np.concatenate([np.arange(n_patients), r.integers(0, n_patients, n_images - n_patients)])
    labels = r.random((14, n_images)) < SHARES[:, None]
    logits = 1.5 * labels - 2 + r.normal(0, 1, labels.shape) + r.normal(0, 0.5, n_patients)[patient]
    scores = 1 / (1 + np.exp(-logits))
    scores[:2] = np.round(scores[:2], 3)
    return patient, labels, scores


def ours(patient, labels, scores, resamples):
    "The library's way: clusters, weights, and both metrics of every resample"
    clusters, weights = resample_patients(patient, resamples)
    found = np.array([ranking_metrics(y, s, weights, clusters) for y, s in zip(labels, scores)])
    return clusters, weights, found


def by_rows(metric, labels, scores, times):
    "The baseline on rows repeated as often as they were drawn"
    return [
        [metric(y[rows], s[rows]) for t in times for rows in [np.repeat(np.arange(len(y)), t)]]
        for y, s in zip(labels, scores)
    ]


def by_weight(metric, labels, scores, times):
    "The baseline with `sample_weight`"
    return [[metric(y, s, sample_weight=t) for t in times] for y, s in zip(labels, scores)]


def measure(n_images, n_patients, resamples, loop, repeats):
    "Print seconds, ratios and the largest difference; return the ratio"
    patient, labels, scores = drawn(n_images, n_patients)
    runs = (seconds(ours, patient, labels, scores, resamples) for _ in range(repeats))
    took, (clusters, weights, found) = min(runs, key=lambda x: x[0])
    times = weights[clusters, 1 : 1 + loop].T.astype(int)
    fastest, apart = [], 0.0
    for k, metric in enumerate((roc_auc_score, average_precision_score)):
        both = {f.__name__: seconds(f, metric, labels, scores, times) for f in (by_rows, by_weight)}
        fastest.append(min(s for s, _ in both.values()) * resamples / loop)
        for _, values in both.values():
            apart = max(apart, np.abs(found[:, k, 1 : 1 + loop] - values).max())
    how = 'measured' if loop == resamples else f'extrapolated from {loop} resamples of each observation'
    print(
        f'{n_images:,} images of {n_patients:,} patients, {resamples:,} resamples of 14 observations: '
        f'AUROC and average precision in {took:.2f} s (weights {weights.nbytes / 1e6:,.0f} MB); '
        f'scikit-learn {fastest[0]:,.0f} s + {fastest[1]:,.0f} s ({how})'
    )
    print(
        f'    ratio {sum(fastest) / took:.0f}x; both metrics against roc_auc_score alone '
        f'{fastest[0] / took:.0f}x; largest difference {apart:.1e}'
    )
    if not apart < 1e-9:
        sys.exit('the two differ by more than 1e-9')
    return sum(fastest) / took


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--resamples', type=int, default=1000)
    parser.add_argument('--loop', type=int, default=3)
    parser.add_argument('--repeats', type=int, default=1)
    args = parser.parse_args()
    measure(234, 200, args.resamples, min(200, args.resamples), args.repeats)
    measure(223_414, 64_540, args.resamples, args.loop, args.repeats)


if __name__ == '__main__':
    main()
