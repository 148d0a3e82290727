"""What `real_films.py` puts on frozen features, and how its answers are counted."""

import numpy as np
import pandas as pd

from cxr_lib.metrics.ranking import interval, ranking_metrics, resample_patients
from cxr_lib.training.solved import penalised_regression

NINE = ['Atelectasis', 'Cardiomegaly', 'Consolidation', 'Pneumonia', 'Pneumothorax']
NINE += ['Pleural Effusion', 'Lung Opacity', 'Lung Lesion', 'Pleural Other']
#: The one source of `nih_trainval` whose films were chosen for two labels, `Pneumonia` and `No Finding`.
TWO_CLASSES = 'muhammedtalo/COVID-19'


def sources_of(folder, table, fewest=20):
    "(n,) where each image came from; sources of fewer images are called 'rest'"
    origin = pd.read_csv(folder / 'provenance.csv').set_index('Image Index').repository
    found = pd.Series([origin[image.rpartition('/')[2]] for image in table.image])
    return found.where(found.map(found.value_counts()) >= fewest, 'rest').to_numpy()


def mixed_films(folder, table):
    "(n,) is an image of a source that was not chosen for two labels?"
    return sources_of(folder, table) != TWO_CLASSES


def film_weights(labels, healthy):
    "How much each film counts: those without a finding together as much as `healthy` says"
    if healthy is None:
        return None
    well = (labels['No Finding'] == 1).to_numpy()
    return np.where(well, healthy / (1 - healthy) * (~well).sum() / max(1, well.sum()), 1.0)


def standardised(learned, *others):
    "Each column with the mean 0 and the deviation 1 of the learned rows"
    mean, std = learned.mean(0), learned.std(0)
    std[std < 1e-6] = 1
    return [(x - mean) / std for x in (learned, *others)]


def scores(learned, labels, others, penalty, healthy=None, smoothing=0.0):
    "(n, 9) log odds of other images, by a regression per observation"
    learned, others = standardised(learned, others)
    weights, solved = film_weights(labels, healthy), []
    for o in NINE:
        target = labels[o].to_numpy(float) * (1 - smoothing) + smoothing / 2
        solved.append(penalised_regression(learned, target, penalty, weights))
    return np.stack([others @ w + b for w, b in solved], 1)


def whitened(learned, others, n=200):
    "The first principal components, each with the deviation 1"
    mean = learned.mean(0)
    _, _, axes = np.linalg.svd(learned - mean, full_matrices=False)
    return standardised(*((x - mean) @ axes[:n].T for x in (learned, others)))


def gaussian(x, y):
    "exp(-|x - y|^2 / width): a film is like those near it; two films at the mean distance have exp(-2)"
    squares = (x * x).sum(1)[:, None] + (y * y).sum(1) - 2 * x @ y.T
    return np.exp(-np.maximum(squares, 0) / x.shape[1])


def kernel_scores(learned, targets, others, penalty=1.0, counts=None):
    "(n, observations) of a Gaussian process (kernel ridge regression) with an intercept, all observations at once"
    learned, others = standardised(learned, others)
    counts = np.ones(len(learned)) if counts is None else counts
    ones = np.ones((len(learned), 1))
    system = np.block(
        [[gaussian(learned, learned) + penalty * np.diag(1 / counts), ones], [ones.T, np.zeros((1, 1))]]
    )
    solved = np.linalg.solve(system, np.vstack([targets, np.zeros((1, targets.shape[1]))]))
    return (gaussian(others, learned) @ solved[:-1] + solved[-1]) / np.maximum(targets.std(0), 1e-6)


def row(table, found, folds=None, seed=0, n_bootstrap=1000):
    "Mean and single AUROC of the observations with ten cases, with an interval from resampled patients"
    clusters, weights = resample_patients(table.patient_id, n_bootstrap, seed)
    areas = {}
    for k, o in enumerate(NINE):
        if table[o].sum() >= 10:
            areas[o] = ranking_metrics(table[o].to_numpy(float), found[:, k], weights, clusters, folds)[0]
    mean = interval(np.nanmean([*areas.values()], 0))
    about = dict(n_observations=len(areas), mean=mean['value'], low=mean['low'], high=mean['high'])
    return about | {o: float(a[0]) for o, a in areas.items()}


def mean_among(chosen, table, found, groups):
    "Mean AUROC of the nine among some films, each ranked within its group"
    areas = [
        ranking_metrics(table[o][chosen].to_numpy(float), found[chosen, k], None, None, groups[chosen])[0][0]
        for k, o in enumerate(NINE)
    ]
    return float(np.nanmean(areas))


def guides(table, found, fold, mixed):
    "What selection looks at: among the ill, within folds; and among the films of mixed sources, within projections"
    ill, lying = (table['No Finding'] != 1).to_numpy(), (table.projection == 'AP').to_numpy().astype(int)
    return dict(
        mean_ill=mean_among(ill, table, found, fold), mean_mixed=mean_among(mixed, table, found, lying)
    )


def elsewhere(answer, table, sources):
    "Mean AUROC within each mixed source, by a model of the patients of the other sources"
    found, group = np.full((len(table), len(NINE)), np.nan), np.full(len(table), -1)
    for k, source in enumerate(sorted({*sources} - {TWO_CLASSES})):
        test = sources == source
        learned = ~table.patient_id.isin(table.patient_id[test]).to_numpy()
        found[test], group[test] = answer(learned, test), k
    return mean_among(group >= 0, table, found, group)


def in_folds(answer, splits):
    "(n, 9) scores of each tested image by `answer(learned, tested)` of its fold, and the fold; NaN and -1: untested"
    n = len(splits[0])
    found, fold = np.full((n, len(NINE)), np.nan), np.full(n, -1)
    for k, split in enumerate(splits):
        test = split == 'test'
        found[test], fold[test] = answer(~test, test), k
    return found, fold
