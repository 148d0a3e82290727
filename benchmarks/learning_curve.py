"""How much of what is possible does the model learn, and from how many simulated patients?

    python benchmarks/learning_curve.py                     # both worlds, up to about two hours on two cores
    python benchmarks/learning_curve.py --worlds plain --thousands 3 6
    python benchmarks/learning_curve.py --worlds realistic --thousands 48 --drawn 48 --seeds 101 102 103
    python benchmarks/learning_curve.py --show              # the tables of what has been computed

Of N patients 64 % are learned from and 11 % select the epoch, as in a run of N patients; the test patients are the same
12,000 for every size of a world and seed. Small sizes get as many steps as 24,000 patients, or 20 passes if that is
fewer, so that sizes differ in what there was to learn; the best epoch is selected on tuning patients. At every size two
models are trained with the preset's settings: one on image and note, and one on images alone (`image_alone`),
beside whose figures stand those of the first model's own image head (`image_head`). Every figure is of the true labels.

Columns: AUROC of `fused`, `image_head`, `image_alone`, `note` and of the best possible answers `best_fused`,
`best_image`; `gap` (best_fused - fused) and `gain` (fused - image_alone) with the limits of their 95 % intervals from
1,000 resamples of patients; `possible_gain` (best_fused - best_image); `shuffled` (with another patient's note, minus
image_head) with its limits; `explained` (calibrated on tuning patients): the share of the deviance that the best
possible answers explain which the model explains. Rows `Mean` are the means over the observations, except `explained`,
which is the share of the summed deviance.

SIMULATED patients. Resumable: a training that was killed goes on from its last checkpoint, a finished row is not
computed again. Rows are added to the file named by --out.
"""

import argparse
import subprocess
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit

from cxr_lib.data.simulated import load_simulated, simulate, true_labels
from cxr_lib.foundations.core import OBSERVATIONS, choose_device, project_root, seed_everything
from cxr_lib.foundations.files import atomic_path, content_key
from cxr_lib.metrics.calibration import apply_calibration, fit_calibration, log_loss
from cxr_lib.metrics.ranking import interval, rank_condition, resample_patients
from cxr_lib.model.fusion import build_model
from cxr_lib.model.presets import make_config, parse_overrides, split_overrides
from cxr_lib.model.text import make_tokenizer
from cxr_lib.notes.wording import clinical_notes
from cxr_lib.simulation.best import best_possible
from cxr_lib.simulation.worlds import WORLDS, find_world
from cxr_lib.training.conditions import derangement, prediction_table
from cxr_lib.training.dataset import StudyData, predict_logits
from cxr_lib.training.loop import fit
from cxr_lib.training.sizes import POINT, means, read_sizes, sizes_table, targets_table, wrong_notes_table

THOUSANDS = {'plain': (3, 6, 12, 24, 48), 'realistic': (3, 6, 12, 24, 48, 96)}
TRAIN, TUNING, N_TEST = 0.6375, 0.1125, 12_000
OUT = Path(__file__).parent / 'results' / 'learning_curve.csv'
FULL, MOST_EPOCHS = 24_000, 20  # patients of whom the preset's epochs are enough; passes over fewer


def draw(world, seed, largest, n_test, size):
    "Study table with notes, its folder, and the latent table: patients to learn from, then test patients"
    n = round((TRAIN + TUNING) * largest) + n_test
    folder = simulate(n, size, seed, world=world)
    latent = pd.read_parquet(folder / 'latent.parquet')
    table = true_labels(load_simulated(folder), folder)
    table['note'] = clinical_notes(latent, table.age, table.sex, seed)
    return table, folder, latent


def split(table, patients, n_test):
    "The rows of a size: the first ones are learned from, the last ones are tested"
    where = np.full(len(table), 'unused', object)
    train = round(TRAIN * patients)
    where[:train] = 'train'
    where[train : train + round(TUNING * patients)] = 'tuning'
    where[-n_test:] = 'test'
    return where


def training_values(overrides, patients):
    "The preset's training values, with more epochs for fewer patients unless the overrides name the epochs"
    training = split_overrides('tiny', overrides)[1]
    if 'epochs' not in parse_overrides(overrides):
        training['epochs'] = min(MOST_EPOCHS, round(training['epochs'] * max(1, FULL / patients)))
    return training


def train(name, data, config, training, seed, branches, folder):
    "A trained model; resumes"
    seed_everything(seed)
    tokenizer = make_tokenizer(config, data.table.note[data.table.split == 'train'])
    model = build_model(config, tokenizer)
    words = StudyData(data.table, '', config, tokenizer, pixels=data.pixels)
    rows = words.rows('train'), words.rows('tuning')
    fit(
        model,
        words,
        *rows,
        training,
        seed=seed,
        branches=branches,
        name=name,
        checkpoint=folder / f'{name}.pt',
    )
    return model, words


def answers(model, data, seed):
    "Prediction table of the tuning and test rows"
    parts, model = [], model.to(choose_device())
    for name in ('tuning', 'test'):
        rows = data.rows(name)
        table = data.table.iloc[rows]
        logits = predict_logits(model, data, rows, choose_device())
        found = dict(fused=logits['fused'], image_only=logits['image'], note_only=logits['note'])
        if name == 'test':
            givers = rows[derangement(table.patient_id, seed)]
            shuffled = predict_logits(model, data, rows, choose_device(), note_of=givers)
            found['shuffled_note'] = shuffled['fused']
        found = {condition: expit(x.astype(np.float64)) for condition, x in found.items()}
        parts.append(prediction_table(table, found, name))
    return pd.concat(parts, ignore_index=True)


def predictions(table, root, config, training, seed, folder):
    "Both models' answers in one table; kept, once they are there"
    file, start = folder / 'predictions.parquet', time.perf_counter()
    if file.exists():
        return pd.read_parquet(file)
    some = table[table.split != 'unused'].reset_index(drop=True)
    pixels = StudyData(some, root, config, make_tokenizer(config, some.note[:50])).pixels
    data = argparse.Namespace(table=some, pixels=pixels)
    both = answers(*train('both', data, config, training, seed, ('fused', 'image', 'note'), folder), seed)
    alone = answers(*train('image', data, config, training, seed, ('image',), folder), seed)
    for o in OBSERVATIONS:
        both[f'image_alone/{o}'] = alone[f'image_only/{o}']
    both['seconds'] = round(time.perf_counter() - start)
    with atomic_path(file) as tmp:
        both.to_parquet(tmp)
    return both


def explained(found, test):
    "Observation -> deviance that the model explains, and that the best possible answers explain"
    tuning = found[found.split == 'tuning']
    columns = [f'fused/{o}' for o in OBSERVATIONS]
    own = fit_calibration(
        tuning[[f'label/{o}' for o in OBSERVATIONS]].to_numpy(float), tuning[columns].to_numpy(float)
    )
    fused = apply_calibration(test[columns].to_numpy(float), own)
    rows = {}
    for k, o in enumerate(OBSERVATIONS):
        y = test[f'label/{o}'].to_numpy(float)
        nothing = log_loss(y, np.full(len(y), y.mean()))
        best = log_loss(y, test[f'best_fused/{o}'].to_numpy(float))
        rows[o] = nothing - log_loss(y, fused[:, k]), nothing - best
    return rows


def rows_of(found, test, n_bootstrap):
    "One row of figures per observation, and the mean's"
    names = dict(fused='fused', image_head='image_only', image_alone='image_alone', note='note_only')
    names |= dict(best_fused='best_fused', best_image='best_image', shuffled='shuffled_note')
    clusters, weights = resample_patients(test.patient_id, n_bootstrap)
    areas = {k: rank_condition(test, c, clusters, weights)[0] for k, c in names.items()}
    areas = {k: np.vstack([a, a.mean(0)]) for k, a in areas.items()}
    share = explained(found, test)
    share['Mean'] = tuple(map(sum, zip(*share.values())))
    rows = []
    for k, o in enumerate([*OBSERVATIONS, 'Mean']):
        row = dict(observation=o) | {name: areas[name][k, 0] for name in names if name != 'shuffled'}
        pairs = dict(
            gap=('best_fused', 'fused'), gain=('fused', 'image_alone'), shuffled=('shuffled', 'image_head')
        )
        for name, (a, b) in pairs.items():
            i = interval(areas[a][k] - areas[b][k])
            row |= {name: i['value'], f'{name}_low': i['low'], f'{name}_high': i['high']}
        row['possible_gain'] = row['best_fused'] - row['best_image']
        row['explained'] = share[o][0] / share[o][1]
        rows.append(row)
    return pd.DataFrame(rows).round(4)


def commit():
    "The commit that computes, and whether the tree differs from it"
    said = ['git', 'describe', '--always', '--dirty', '--abbrev=7', '--exclude=*']
    try:
        return subprocess.run(
            said, capture_output=True, text=True, check=True, cwd=Path(__file__).parent
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'


def compute(world, seed, patients, drawn, args):
    "The rows of one size"
    table, root, latent = drawn
    overrides = f'{args.overrides} image_size={args.image_size}'
    config, training = make_config('tiny', overrides), training_values(overrides, patients)
    own = f'{world}-{seed}-{patients}-{content_key(asdict(config), training)}'
    folder = project_root() / 'data' / 'cache' / 'learning_curve' / own
    table = table.assign(split=split(table, patients, args.test))
    found = predictions(table, root, config, training, seed, folder)
    test = found[found.split == 'test'].reset_index(drop=True)
    people = latent.set_index('image').loc[test.image].reset_index()
    best = best_possible(people, test.note.notna().to_numpy(), find_world(world).network, drawn_only=True)
    test = pd.concat([test, best.set_index(test.index)], axis=1)
    about = dict(world=world, seed=seed, patients=patients, test=len(test), pixels=args.image_size)
    about |= dict(overrides=args.overrides, epochs=training['epochs'])
    about |= dict(seconds=found.seconds.iloc[0], commit=commit())
    return rows_of(found, test, args.bootstrap).assign(**about)


def read(path):
    "The rows that have been computed"
    return pd.read_csv(path, dtype=dict(overrides=str, commit=str)).fillna(dict(overrides=''))


def write(path, rows):
    "Add rows to the file, in order of their keys"
    known = read(path) if path.exists() else rows.iloc[:0]
    table = pd.concat([known, rows] if len(known) else [rows], ignore_index=True)
    front = [*POINT, 'observation']
    table = table[[*front, *[c for c in table if c not in front]]].sort_values(POINT, kind='stable')
    with atomic_path(path) as tmp:
        table.to_csv(tmp, index=False)


def is_there(path, *key):
    "Has this size been computed?"
    return path.exists() and (read(path)[POINT] == list(key)).all(axis=1).any()


def in_words(mean):
    "The row of the mean"
    with_limits = lambda k: f'{mean[k]:.3f} [{mean[k + "_low"]:.3f}, {mean[k + "_high"]:.3f}]'
    return (
        f'fused {mean.fused:.3f}, best possible {mean.best_fused:.3f}, gap {with_limits("gap")}, '
        f'explained {mean.explained:.0%}, gain of the note {with_limits("gain")} of {mean.possible_gain:.3f}, '
        f"another patient's note {with_limits('shuffled')}; {mean.seconds:.0f} s"
    )


def show(path):
    "Print the tables of a file"
    rows = read_sizes(path)
    curve = means(rows)
    with pd.option_context('display.width', 250):
        print(sizes_table(curve).to_string(index=False))
        print('\nTargets, of `realistic` at 48 thousand patients on fresh seeds')
        fresh = (curve.world == 'realistic') & (curve.patients == 48_000) & (curve.seed > 100)
        print(targets_table(curve[fresh]).to_string(index=False))
        print('\nTrained with wrong notes\n' + wrong_notes_table(rows).to_string(index=False))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--worlds', nargs='+', default=['plain', 'realistic'], choices=list(WORLDS))
    parser.add_argument(
        '--thousands', nargs='+', type=float, help='patients; by default 3 to 48, realistic to 96'
    )
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    parser.add_argument(
        '--drawn', type=float, help='thousands of which a size is the first part; the default as above'
    )
    parser.add_argument('--test', type=int, default=N_TEST, help='test patients')
    parser.add_argument('--image-size', type=int, default=64)
    parser.add_argument('--overrides', default='', help='of the preset tiny, such as epochs=3')
    parser.add_argument('--bootstrap', type=int, default=1000)
    parser.add_argument('--out', type=Path, default=OUT)
    parser.add_argument('--show', action='store_true', help='print what the file holds, and compute nothing')
    args = parser.parse_args()
    if args.show:
        return show(args.out)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for world in args.worlds:
        usual = THOUSANDS.get(world, THOUSANDS['plain'])
        sizes = [round(1000 * k) for k in args.thousands or usual]
        largest = max(round(1000 * (args.drawn or max(usual))), *sizes)
        for seed in args.seeds:
            asked = args.image_size, args.overrides
            todo = [n for n in sizes if not is_there(args.out, world, seed, n, *asked)]
            if not todo:
                continue
            drawn = draw(world, seed, largest, args.test, args.image_size)
            for n in todo:
                rows = compute(world, seed, n, drawn, args)
                write(args.out, rows)
                mean = rows.iloc[-1]
                print(f'{world}, seed {seed}, {n:,} patients: {in_words(mean)}', flush=True)


if __name__ == '__main__':
    main()
