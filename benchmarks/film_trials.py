"""What was tried for real films after the preset was chosen: other heads, layers, sizes, inputs, ensembles, learning.

`python benchmarks/real_films.py --data FOLDER --later --out FILE` runs these and puts their rows into FILE. All are
judged on the training images alone, by the mean of two guides (`film_heads.guides`). The best by it is tested once,
and beside it the one change that the preset could take over.
"""

from dataclasses import dataclass

import film_encoders
import numpy as np
import pandas as pd
from film_heads import (
    NINE,
    TWO_CLASSES,
    elsewhere,
    guides,
    in_folds,
    kernel_scores,
    mixed_films,
    row,
    scores,
    sources_of,
    standardised,
    whitened,
)

from cxr_lib.data.images import pixel_cache
from cxr_lib.data.public import load_covid
from cxr_lib.foundations.core import project_root
from cxr_lib.training.folds import fold_splits

#: Means that say how good a selection is; the last was added after the test had been looked at.
GUIDES = ('mean', 'mean_ill', 'mean_mixed', 'mean_elsewhere')
#: How much a film of a mixed source counts, where it counts more (assumed; 8 and 16 are about the same).
MORE = 4.0
#: The features of the preset: encoder, pixels, input, layers.
PRESET = ('lite0', 224, '', ('last',))
SPREAD = ('lite0', 224, '', ('last', 'spread'))


@dataclass(frozen=True)
class Trial:
    "Features of one or more members, whose answers are averaged, and what is put on them"

    members: tuple  # each a tuple of (encoder, pixels, input, layers), side by side
    head: str = 'kernel'
    penalty: float = 1.0
    more: float = 1.0  # how much a film of a mixed source counts


def _alone(*source, **how):
    return Trial(((source,),), **how)


_ENSEMBLE = (
    (SPREAD, ('lite2', 224, '', ('last', 'spread'))),
    (('lite0', 224, 'both sides', ('last', 'spread')),),
    (('lite0', 224, '', ('middle',)), ('lite2', 224, '', ('middle',))),
)
_SIZES = tuple((('lite0', size, '', ('last', 'spread')),) for size in (224, 320, 384))
_SIMCLR = ('simclr', 224, '', ('last', 'spread'))
#: The preset's features under the other head: all that the preset itself could take over. Always tested.
KERNEL_ALONE = ('zones', _alone(*PRESET))
TRIALS = [
    ('zones', _alone(*PRESET, head='linear', penalty=300)),
    ('zones, labels smoothed by 0.1', _alone(*PRESET, head='smoothed', penalty=300)),
    ('zones, 200 whitened components', _alone(*PRESET, head='whitened', penalty=300)),
    ('means and spreads of zones', _alone(*SPREAD, head='linear', penalty=300)),
    KERNEL_ALONE,
    ('means and spreads of zones', _alone(*SPREAD)),
    ('zones', _alone(*PRESET, more=MORE)),
    ('means and spreads of zones', _alone(*SPREAD, more=MORE)),
    ('zones of the block before', _alone('lite0', 224, '', ('middle',), more=MORE)),
    ('zones of three layers', _alone('lite0', 224, '', ('middle', 'last', 'fifth'), more=MORE)),
    ('means and spreads, 320 px', _alone('lite0', 320, '', ('last', 'spread'), more=MORE)),
    ('means and spreads, 384 px', _alone('lite0', 384, '', ('last', 'spread'), more=MORE)),
    ('means and spreads, EfficientNet-Lite2', _alone('lite2', 224, '', ('last', 'spread'), more=MORE)),
    (
        'means and spreads, equalised histogram',
        _alone('lite0', 224, 'equalised', ('last', 'spread'), more=MORE),
    ),
    ('means and spreads, middle of the film', _alone('lite0', 224, 'centred', ('last', 'spread'), more=MORE)),
    (
        'means and spreads, mirrored film added',
        _alone('lite0', 224, 'both sides', ('last', 'spread'), more=MORE),
    ),
    (
        'means and spreads, whole and middle averaged',
        Trial(((SPREAD,), (('lite0', 224, 'centred', ('last', 'spread')),)), more=MORE),
    ),
    ('ensemble of 224, 320 and 384 px', Trial(_SIZES, more=MORE)),
    ('ensemble of encoders, layers and the mirrored film', Trial(_ENSEMBLE, more=MORE)),
    ('ensemble of encoders, layers and the mirrored film', Trial(_ENSEMBLE)),
    ('zones, self-supervised (SimCLR)', _alone('simclr', 224, '', ('last',), head='linear', penalty=300)),
    ('means and spreads, self-supervised (SimCLR)', Trial(((_SIMCLR,),), more=MORE)),
    ('last block trained, 128 px, augmented, smoothed', Trial((), head='unfreeze')),
    ('LoRA, 128 px, augmented, smoothed', Trial((), head='lora')),
]


class Layers:
    "The features of the folders' films, each encoded once and when they are needed"

    def __init__(self, films):
        self.films, self.kept, self.tensors = films, {}, None

    def self_supervised(self):
        "Tensors of an encoder that learned on the films of `nih_trainval` and `covid` without their labels"
        if self.tensors is None:
            folder, cache = self.films.data / 'covid', project_root() / 'data' / 'cache'
            more = pixel_cache(folder, load_covid(folder).image, 128, cache)
            pixels = np.concatenate([self.films.pixels('nih_trainval', 128), more])
            self.tensors = film_encoders.self_supervised(pixels)[0]
        return self.tensors

    def source(self, encoder, size, prepared, layers, name):
        "(n, width) of one encoder"
        if prepared == 'both sides':
            return sum(self.source(encoder, size, side, layers, name) for side in ('', 'mirrored')) / 2
        key = encoder, size, prepared, name
        if key not in self.kept:
            own = encoder == 'simclr'
            tensors = self.self_supervised() if own else None
            pixels = self.films.pixels(name, size)
            which = 'lite0' if own else encoder
            self.kept[key] = film_encoders.layer_features(pixels, which, prepared, tensors)
        return np.concatenate([self.kept[key][layer] for layer in layers], 1)

    def members(self, trial, names):
        "The features of each member of a trial, of the films of one or more folders"
        return [
            np.concatenate([np.concatenate([self.source(*s, name) for s in sources], 1) for name in names])
            for sources in trial.members
        ]


def answers(trial, layers, names, mixed):
    "-> `answer(learned, tested)` of a trial, for rows of these folders' tables, one after the other"
    tables = layers.films.tables
    table = pd.concat([tables[name] for name in names], ignore_index=True)
    targets, counts = table[NINE].to_numpy(float), np.where(mixed, trial.more, 1.0)
    if trial.head in ('unfreeze', 'lora'):
        pixels = np.concatenate([layers.films.pixels(name, 128) for name in names])
        return lambda a, b: film_encoders.tuned_scores(pixels[a], targets[a], pixels[b], trial.head)
    xs = layers.members(trial, names)

    def one(x, learned, tested):
        if trial.head == 'kernel':
            return kernel_scores(x[learned], targets[learned], x[tested], trial.penalty, counts[learned])
        a, b = (whitened if trial.head == 'whitened' else standardised)(x[learned], x[tested])
        return scores(a, table[learned], b, trial.penalty, smoothing=0.1 * (trial.head == 'smoothed'))

    return lambda learned, tested: np.mean([one(x, learned, tested) for x in xs], 0)


def about(name, trial):
    "The columns that say what was tried"
    head = dict(linear='regression', smoothed='regression', whitened='regression', kernel='Gaussian kernel')
    mixed = trial.more if trial.more != 1 else None
    return dict(
        features=name.strip(), penalty=trial.penalty, head=head.get(trial.head, 'trained'), mixed=mixed
    )


def trial_selection(layers, seed):
    "The rows of all trials, learned and ranked in folds of the training patients alone"
    name = 'nih_trainval'
    table = layers.films.tables[name]
    splits, sources = fold_splits(table, 5, 0.0, seed), sources_of(layers.films.data / name, table)
    mixed = sources != TWO_CLASSES
    for said, trial in TRIALS:
        answer = answers(trial, layers, [name], mixed)
        found, fold = in_folds(answer, splits)
        found_row = dict(protocol='selection', learned_from=len(table)) | about(said, trial)
        found_row |= row(table, found, fold, seed, 200) | guides(table, found, fold, mixed)
        if trial.members:  # training takes minutes
            found_row['mean_elsewhere'] = elsewhere(answer, table, sources)
        shown = ' '.join(f'{k} {found_row[k]:.3f}' for k in GUIDES if k in found_row)
        print(f'{said}, {found_row["head"]}: {shown}', flush=True)
        yield said, trial, found_row


def trial_tests(said, trial, layers, seed):
    "The three tests of a trial"
    tables = layers.films.tables
    learned_mixed = mixed_films(layers.films.data / 'nih_trainval', tables['nih_trainval'])
    for protocol, where in (
        ('trained apart', 'nih'),
        ('second look', 'nih_test_extra'),
        ('five folds', 'nih'),
    ):
        n, m = len(tables[where]), len(tables['nih_trainval'])
        mixed, own = np.r_[np.ones(n, bool), learned_mixed], np.arange(n + m) < n
        answer = answers(trial, layers, [where, 'nih_trainval'], mixed)
        if protocol == 'five folds':
            both = pd.concat([tables[where], tables['nih_trainval']], ignore_index=True)
            splits = fold_splits(both, 5, 0.0, seed, tested=own)
            found, fold = in_folds(answer, splits)
            found, fold = found[own], fold[own]
            m = int(np.mean([(s != 'test').sum() for s in splits]))
        else:
            found, fold = answer(~own, own), None
        yield (
            dict(protocol=protocol, learned_from=m)
            | about(said, trial)
            | row(tables[where], found, fold, seed)
        )


def chosen_trial(found):
    "The trial that the two guides prefer, of (name, trial, row)"
    return max(found, key=lambda one: one[2]['mean_ill'] + one[2]['mean_mixed'])


#: What makes two rows the same row.
KEY = ['tried', 'protocol', 'features', 'penalty', 'healthy', 'head', 'mixed', 'learned_from']


def later(films, seed):
    "The rows of all trials, and the tests of the one that the guides prefer"
    layers = Layers(films)
    found = [*trial_selection(layers, seed)]
    said, trial, _ = chosen_trial(found)
    print('chosen:', said, flush=True)
    rows = [r for _, _, r in found]
    for name, of in dict.fromkeys([(said, trial), KERNEL_ALONE]):
        rows += trial_tests(name, of, layers, seed)
    return rows


def joined(old, new):
    "Rows that were there, and new ones in the place of those of the same trial"
    old = old.reindex(
        columns=[*old.columns, *(c for c in ('head', 'mixed', 'tried') if c not in old.columns)]
    )
    old = old.assign(
        tried=old['tried'].fillna('first'),
        head=old['head'].mask(old['head'].isna() & old.penalty.notna(), 'regression'),
    )
    return pd.concat([old, new], ignore_index=True).drop_duplicates(KEY, keep='last', ignore_index=True)
