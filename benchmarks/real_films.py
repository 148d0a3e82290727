"""What does a model of real films reach with no network? Everything that was tried, in one table.

    pip install "cxr_lib[offline]"
    cxr pretrain                                   # only for the rows of encoders that have seen drawn films
    cxr run --until training                       # only for the rows of a network that has seen drawn films alone
    python benchmarks/real_films.py --data FOLDER [--drawn RUN] [--out benchmarks/results/real_films.csv]
    python benchmarks/real_films.py --data FOLDER --later [--out benchmarks/results/real_films.csv]

FOLDER holds `nih_trainval` (to learn from), `nih` and `nih_test_extra` (to test on), in the layout of NIH ChestX-ray14.
The image alone is read; nine observations that the public DenseNet-121 also predicts count, where a folder has ten
cases.

- `selection`: five folds of the training patients alone, ranked within the folds. Features, size, penalty and weights
  are chosen by the mean of these rows; the test images have no part in it. `mean_ill` ranks the images with any finding
  only: the training images come from a selection of healthy and ill patients, who are easier to tell apart than the
  diseases of the tested ones. `healthy` is the share of the weight that films without a finding get (empty: their own).
- `trained apart`: learned from all of `nih_trainval`, tested on `nih`.
- `five folds`: five folds of `nih` by patient, `nih_trainval` added to each fold's training patients, ranked within
  the folds.
- `second look`: as `trained apart`, tested on `nih_test_extra`.
- `curve`: as `trained apart`, the preset learned from fewer patients.

Only the setting that selection prefers, the preset and the former preset are tested, beside the public model on the
same images.

With `--later`: other heads, layers, sizes, inputs and ensembles, self-supervision and training (`film_trials.py`).
`mean_mixed` ranks the images of sources that were not chosen for two labels, each within its projection; the trial with
the highest mean of it and `mean_ill` is tested. `mean_elsewhere` ranks them within their source, by a model of the
other sources; it was added after the test had been looked at, and chose nothing. `mixed` is how much a film of such a
source counts (empty: 1).

Target: a mean of 0.66 in `trained apart` and in `five folds`.
"""

import argparse
import itertools
import subprocess
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from film_heads import NINE, guides, in_folds, mixed_films, row, scores
from film_trials import joined, later
from torch.nn.functional import adaptive_avg_pool2d

from cxr_lib.data.images import pixel_cache
from cxr_lib.data.public import load_nih
from cxr_lib.evaluation.external import read_external
from cxr_lib.foundations.core import project_root
from cxr_lib.model.images import ImageEncoder
from cxr_lib.model.presets import make_config
from cxr_lib.model.saved import load_model
from cxr_lib.training.folds import fold_splits

#: Name -> (overrides of `offline`, how its tokens are pooled).
FEATURES = {
    'ImageNet, whole network, 224 px, mean and maximum': (dict(image_stages=0, image_grid=0), ('meanmax',)),
    'ImageNet, four stages, 224 px, 3 x 3 zones': (dict(image_stages=4), ('grid',)),
    'ImageNet, four stages, 224 px, 3 x 3 zones, left and right together': (
        dict(image_stages=4),
        ('mirrored',),
    ),
    'ImageNet, four stages, 224 px, mean and maximum': (dict(image_stages=4), ('meanmax',)),
    'ImageNet, three stages, 224 px, 3 x 3 zones': (dict(image_stages=3), ('grid',)),
    'ImageNet, four stages, 128 px, 3 x 3 zones': (dict(image_stages=4, image_size=128), ('grid',)),
}
PENALTIES = (30, 300, 3000)
#: Films without a finding: as many as there are, or as large a share as in CheXpert (22,381 of 223,414; Irvin 2019).
HEALTHY = (None, 0.1)
BEST = 'ImageNet, four stages, 224 px, 3 x 3 zones'
#: With an encoder that `cxr pretrain` trained further.
DRAWN = 'ImageNet, then drawn films, four stages, {} px, 3 x 3 zones'
SIDE_BY_SIDE = 'both four-stage encoders side by side, 224 px'
#: What `offline` does. Selection preferred it before left and right were put together, and films reweighted.
PRESET = (BEST, 300, None)
#: Of the former preset, whose head was trained step by step.
FORMER = 'ImageNet, whole network, 224 px, mean and maximum'
PIXELS = '32 x 32 pixels, no network'
#: The tokens of a run's own network, which has seen simulated patients alone; and with those of the best encoder.
SIMULATED = 'drawn films alone (preset tiny), 64 px, 4 x 4 zones'
WITH_SIMULATED = 'ImageNet, four stages, 224 px, 3 x 3 zones, and drawn films alone'


def pixels_of(data, name, table, size):
    "The images of a folder as the library reads them"
    return pixel_cache(data / name, table.image, size, project_root() / 'data' / 'cache')


def tokens_of(overrides, pixels):
    "Name of a pooling -> (n, width) features of images, from a frozen encoder"
    encoder = ImageEncoder(make_config('offline', overrides | dict(pool='mean', image_penalty=0))).eval()
    parts = {'grid': [], 'mirrored': [], 'meanmax': []}
    for at in range(0, len(pixels), 16):
        with torch.inference_mode():
            tokens = encoder(torch.from_numpy(np.array(pixels[at : at + 16])))
        square = tokens.transpose(1, 2).unflatten(2, (encoder.side, encoder.side))
        zones = adaptive_avg_pool2d(square, 3)
        parts['grid'].append(zones.flatten(1))
        parts['mirrored'].append(((zones + zones.flip(-1)) / 2)[..., :2].flatten(1))
        parts['meanmax'].append(torch.cat([square.mean((2, 3)), square.amax((2, 3))], 1))
    return {pool: torch.cat(of).double().numpy() for pool, of in parts.items()}


def tokens_of_run(folder, pixels):
    "(n, width) tokens of the network of a finished training"
    model, _ = load_model(folder / 'model')
    with torch.inference_mode():
        parts = [
            model.encode_image(torch.from_numpy(np.array(pixels[at : at + 64]))).flatten(1)
            for at in range(0, len(pixels), 64)
        ]
    return torch.cat(parts).double().numpy()


def shrunken(pixels):
    "32 x 32 pixels, each film with a mean of 0 and a deviation of 1: what needs no network"
    small = np.stack([cv2.resize(p, (32, 32), interpolation=cv2.INTER_AREA) for p in pixels]).reshape(
        len(pixels), -1
    )
    return (small - small.mean(1, keepdims=True)) / (small.std(1, keepdims=True) + 1)


class Films:
    "The tables of the three folders, and the features of their images, each encoded once and when it is needed"

    def __init__(self, data, drawn=None):
        self.data, self.drawn, self.kept, self.candidates = data, drawn, {}, dict(FEATURES)
        self.tables = {n: load_nih(data / n) for n in ('nih_trainval', 'nih', 'nih_test_extra')}

    def pixels(self, name, size):
        cache = project_root() / 'data' / 'cache'
        return pixel_cache(self.data / name, self.tables[name].image, size, cache)

    def features(self, what, name):
        "(n, width) of the images of a folder"
        if what == PIXELS:
            return shrunken(self.pixels(name, 128))
        if what == SIMULATED:
            return tokens_of_run(self.drawn, self.pixels(name, 64))
        if what in (SIDE_BY_SIDE, WITH_SIMULATED):
            both = (BEST, DRAWN.format(224) if what == SIDE_BY_SIDE else SIMULATED)
            return np.concatenate([self.features(one, name) for one in both], 1)
        overrides, (pool,) = self.candidates[what]
        key = str(overrides), name
        if key not in self.kept:
            self.kept[key] = tokens_of(
                overrides, self.pixels(name, make_config('offline', overrides).image_size)
            )
        return self.kept[key][pool]


def linear(x, table, penalty, healthy):
    "What learns from some rows and answers others"
    return lambda learned, tested: scores(x[learned], table[learned], x[tested], penalty, healthy)


def add_pretrained(films):
    "An encoder of `cxr pretrain`, where there is one -> names of its features"
    from cxr_lib.training.pretraining import PretrainSettings, pretrained_folder

    settings = PretrainSettings()
    folder = pretrained_folder(settings)
    if folder is None:
        return []
    weights = dict(image_stages=4, image_weights=str(folder))
    names = [DRAWN.format(size) for size in (settings.size, 224)]
    for name, size in zip(names, (settings.size, 224)):
        films.candidates[name] = (weights | dict(image_size=size), ('grid',))
    return [*names, SIDE_BY_SIDE]


def selection(films, seed):
    "The rows of all settings, learned and ranked in folds of the training patients alone"
    table = films.tables['nih_trainval']
    splits, mixed = fold_splits(table, 5, 0.0, seed), mixed_films(films.data / 'nih_trainval', table)
    simulated = [SIMULATED, WITH_SIMULATED] if films.drawn else []
    for name in [PIXELS, *FEATURES, *add_pretrained(films), *simulated]:
        x = films.features(name, 'nih_trainval')
        for penalty, healthy in itertools.product(PENALTIES, HEALTHY):
            answer = linear(x, table, penalty, healthy)
            found, fold = in_folds(answer, splits)
            about = dict(protocol='selection', features=name, penalty=penalty, healthy=healthy)
            about |= dict(learned_from=len(table)) | row(table, found, fold, seed, 200)
            about |= guides(table, found, fold, mixed)
            said = f'{name}, penalty {penalty}, healthy {healthy}'
            print(f'{said}: {about["mean"]:.3f}, among the ill {about["mean_ill"]:.3f}', flush=True)
            yield about


def tested(films, name, penalty, healthy, seed):
    "The three tests of a setting"
    tables, of = films.tables, {where: films.features(name, where) for where in films.tables}
    learned, x = tables['nih_trainval'], of['nih_trainval']
    about = dict(features=name, penalty=penalty, healthy=healthy)
    for protocol, where in (('trained apart', 'nih'), ('second look', 'nih_test_extra')):
        found = scores(x, learned, of[where], penalty, healthy)
        yield (
            dict(protocol=protocol, learned_from=len(learned)) | about | row(tables[where], found, None, seed)
        )
    both = pd.concat([tables['nih'], learned], ignore_index=True)
    own = np.arange(len(both)) < len(tables['nih'])
    splits = fold_splits(both, 5, 0.0, seed, tested=own)
    answer = linear(np.concatenate([of['nih'], x]), both, penalty, healthy)
    found, fold = in_folds(answer, splits)
    n = int(np.mean([(s != 'test').sum() for s in splits]))
    yield dict(protocol='five folds', learned_from=n) | about | row(both[own], found[own], fold[own], seed)


def curve(films, name, penalty, healthy, seed, shares=(0.125, 0.25, 0.5)):
    "The chosen setting learned from a part of the patients; the mean of three draws"
    table, x = films.tables['nih_trainval'], films.features(name, 'nih_trainval')
    patients = table.patient_id.unique()
    for share in shares:
        parts, sizes = [], []
        for draw in range(3):
            kept = np.random.default_rng([seed, draw]).permutation(patients)[: round(share * len(patients))]
            at = table.patient_id.isin(kept).to_numpy()
            found = scores(x[at], table[at], films.features(name, 'nih'), penalty, healthy)
            parts.append(row(films.tables['nih'], found, None, seed))
            sizes.append(at.sum())
        mean = pd.DataFrame(parts).mean().to_dict()
        about = dict(protocol='curve', features=name, penalty=penalty, healthy=healthy)
        yield about | dict(learned_from=int(np.mean(sizes))) | mean


def public(films, seed):
    "The public DenseNet-121 on the same test images"
    for where, protocol in (('nih', 'trained apart'), ('nih_test_extra', 'second look')):
        file, table = films.data / where / 'published_densenet121_predictions.csv', films.tables[where]
        if not file.exists():
            continue
        theirs = read_external(file)
        theirs.index = [Path(i).name for i in theirs.index]
        found = theirs.loc[[Path(i).name for i in table.image], NINE].to_numpy(float)
        about = dict(protocol=protocol, features='public DenseNet-121')
        yield about | row(table, found, None, seed)


def first_trials(films, seed):
    "The rows of features and penalties, and the tests of those that are tested"
    rows = [*selection(films, seed)]
    best = lambda among: max(among, key=lambda r: r['mean'])
    chosen, former = best(rows), best([r for r in rows if r['features'] == FORMER])
    how = ('features', 'penalty', 'healthy')
    print('chosen:', *(chosen[k] for k in how), flush=True)
    tried = [PRESET, *(tuple(r[k] for k in how) for r in (chosen, former))]
    for setting in dict.fromkeys(tried):
        rows += tested(films, *setting, seed)
    return [*rows, *curve(films, *PRESET, seed), *public(films, seed)]


def arguments():
    "What the command line says"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--data', type=Path, required=True, help='holds nih_trainval, nih and nih_test_extra')
    parser.add_argument('--seed', type=int, default=0, help='of folds, draws and resamples')
    parser.add_argument('--out', type=Path, help='also write the table to this CSV file')
    parser.add_argument('--drawn', type=Path, help='folder of a run on simulated patients, trained')
    parser.add_argument(
        '--later', action='store_true', help='what was tried later; --out keeps its other rows'
    )
    return parser.parse_args()


def main():
    args, started = arguments(), time.perf_counter()
    films = Films(args.data, args.drawn)
    rows = (later if args.later else first_trials)(films, args.seed)
    commit = subprocess.run(
        ['git', 'rev-parse', '--short', 'HEAD'], capture_output=True, text=True
    ).stdout.strip()
    table = pd.DataFrame(rows).round(4).assign(seed=args.seed, commit=commit)
    table['tried'] = 'later' if args.later else 'first'
    shown = ['protocol', 'features', 'penalty', 'healthy', 'head', 'mixed', 'learned_from']
    shown += ['mean', 'low', 'high', 'mean_ill', 'mean_mixed', 'mean_elsewhere']
    with pd.option_context('display.max_columns', None, 'display.max_rows', None, 'display.width', 180):
        print(table[[c for c in shown if c in table]])
    print(f'{time.perf_counter() - started:.0f} s')
    if args.out:
        if args.later and args.out.exists():
            table = joined(pd.read_csv(args.out), table)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(args.out, index=False)


if __name__ == '__main__':
    main()
