"""How the cost of a training epoch grows with the data: it must be linear in the number of patients.

    python benchmarks/epoch_cost.py [--patients 160 320 640] [--epochs 3]

A patient must cost the same in a small data set (the baseline) and in a large one. The tiny preset is trained on
SIMULATED data in memory (random 64 px images and random notes): one process, one thread, batches of 16, and one tuning
patient for every four training patients. Processor time between the ends of consecutive epochs is counted, so other
processes matter little. The best epoch of each size counts; the first one is a warm-up and does not.

Prints the seconds per epoch, a fitted line with its largest deviation, and the ratio of the cost per patient between
the largest and the smallest data set.
"""

import argparse
import time

import numpy as np
import pandas as pd
import torch

from cxr_lib.foundations.core import OBSERVATIONS, seed_everything
from cxr_lib.training.dataset import StudyData
from cxr_lib.model.text import learn_tokenizer
from cxr_lib.model.fusion import build_model
from cxr_lib.model.presets import make_config
from cxr_lib.training.loop import fit

WORDS = (
    'cough fever dyspnoea chest pain for three days history of heart failure '
    'smoker fall from ladder orthopnoea weight loss line placement'
).split()
SETTINGS = dict(batch_size=16, lr=1e-3, note_lr=1e-3, weight_decay=0.01, warmup=0.1)
SETTINGS |= dict(note_dropout=0.15, word_dropout=0.2, augment=True, patience=0)


def random_data(n, seed=0):
    "A model, and random images and notes in memory; a fifth of the patients are for tuning"
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            'image': [f'{i}.png' for i in range(n)],
            'patient_id': [f'p{i}' for i in range(n)],
            'note': [' '.join(rng.choice(WORDS, 12)) for _ in range(n)],
            'split': ['tuning' if i % 5 == 0 else 'train' for i in range(n)],
            **{o: rng.choice([0.0, 1.0, np.nan], n) for o in OBSERVATIONS},
        }
    )
    seed_everything(seed)
    config, tokenizer = make_config('tiny', 'image_size=64'), learn_tokenizer(WORDS, 200)
    model = build_model(config, tokenizer)
    pixels = rng.integers(0, 256, (n, 64, 64), dtype=np.uint8)
    return model, StudyData(table, '', config, tokenizer, pixels=pixels)


def seconds_an_epoch(n, epochs):
    "Processor seconds of the best epoch after the first"
    model, data = random_data(n)
    training, ends = dict(SETTINGS, epochs=epochs + 1), []
    train, tuning = data.rows('train'), data.rows('tuning')
    fit(model, data, train, tuning, training, on_epoch=lambda log: ends.append(time.process_time()))
    return min(np.diff(ends))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--patients', type=int, nargs='+', default=[160, 320, 640])
    parser.add_argument('--epochs', type=int, default=3)
    args = parser.parse_args()
    sizes = np.array(sorted(args.patients))
    if len(sizes) < 3 or sizes[0] < 160:
        parser.error('give at least three sizes, none below 160: smaller data sets get smaller batches')
    torch.set_num_threads(1)
    seconds_an_epoch(sizes[0], 1)  # warm-up: loads what is loaded on first use
    cost = np.array([seconds_an_epoch(n, args.epochs) for n in sizes])
    slope, fixed = np.polyfit(sizes, cost, 1)
    away = np.abs(cost / (fixed + slope * sizes) - 1).max()
    print(
        f'SIMULATED patients, tiny preset, 64 px, batches of {SETTINGS["batch_size"]}, '
        f'best of {args.epochs} epochs, processor seconds, one thread'
    )
    for n, seconds in zip(sizes, cost):
        print(f'{n:6,} patients: {seconds:.2f} s per epoch, {1e3 * seconds / n:.2f} ms per patient')
    print(f'line: {fixed:.3f} s + {1e3 * slope:.2f} ms per patient; largest deviation from it {away:.1%}')
    per_patient = cost / sizes
    print(
        f'data {sizes[-1] / sizes[0]:.1f}x as large: an epoch costs {cost[-1] / cost[0]:.2f}x, '
        f'a patient {per_patient[-1] / per_patient[0]:.2f}x (baseline: the smallest size; linear is 1.00x)'
    )


if __name__ == '__main__':
    main()
