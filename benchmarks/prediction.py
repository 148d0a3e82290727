"""Many images in batches against one by one, and an edited note against a whole prediction, as ratios.

    python benchmarks/prediction.py [--preset tiny base] [--images 32] [--rounds 5] [--threads 1]

Batches: `predict_files` (files read side by side, encoded 16 at a time, journal and CSV written) against the named
baseline, one call `model(file, note)` per file. Both start from PNG files of 512 pixels and give the same
probabilities, which is checked. Edited note: `model.answer` with the tokens of an image that was encoded before, as
the widget keeps them, against two baselines: a call `model(file, note)` that reads, checks and encodes the image
again, from a PNG of 512 and of 2,048 pixels (a detector's image is about that large), and the forward pass alone,
which sets what keeping the tokens can gain at most.

The architecture is the preset's; the weights are random, as speed does not depend on them. SIMULATED images and notes.
One process, both sides in the same run and in alternation; prints the ratio of medians and its range over the rounds.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cxr_lib.data.simulated import simulated_radiograph
from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.model.classifier import PretrainedClassifier
from cxr_lib.model.fusion import build_model
from cxr_lib.model.presets import make_config
from cxr_lib.model.text import learn_tokenizer, tokenize
from cxr_lib.prediction.batch import Request, Requests, predict_files
from cxr_lib.prediction.load import Predictor
from cxr_lib.prediction.schema import ModelFacts
from cxr_lib.simulation.patients import draw_patients

BERT_BASE = dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072)
BERT_BASE |= dict(vocab_size=28_996, max_position_embeddings=512)
BASE = dict(image_weights='', text_encoder='', text_config=BERT_BASE)
NOTE = '65-year-old woman with fever, cough and shortness of breath for three days. Known heart failure. ? pneumonia'


def predictor_of(preset):
    "The preset's architecture with random weights"
    torch.manual_seed(0)
    config = make_config(preset, BASE if preset == 'base' else {})
    tokenizer = learn_tokenizer([NOTE], 300)
    classifier = PretrainedClassifier(build_model(config, tokenizer), tokenizer)
    return Predictor(classifier, ModelFacts(name=preset, fingerprint='0' * 16, simulated=True))


def write_films(folder, n, size=512):
    "PNG files; eight simulated radiographs, turned and mirrored"
    folder.mkdir(exist_ok=True)
    patients = draw_patients(min(n, 8), 0).to_dict('records')
    films = [simulated_radiograph(row, size, masks=False).image for row in patients]
    for i in range(n):
        film = films[i % 8][:, :: -1 if i // 8 % 2 else 1]
        Image.fromarray(np.roll(film, i // 16, axis=0)).save(folder / f'{i:03d}.png')
    return sorted(folder.glob('*.png'))


def alternate(sides, rounds):
    "Wall-clock seconds of each side; every round times them one after the other"
    seconds = {name: [] for name in sides}
    for run in sides.values():
        run()
    for _ in range(rounds):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: np.array(s) for name, s in seconds.items()}


def ratio_text(slow, quick, per):
    each = slow / quick
    return (
        f'{np.median(slow) / per * 1e3:.1f} ms against {np.median(quick) / per * 1e3:.1f} ms, '
        f'ratio {np.median(slow) / np.median(quick):.1f}x (rounds {each.min():.1f} to {each.max():.1f})'
    )


def time_batches(predictor, files, folder, rounds):
    requests = Requests(folder, tuple(Request(f.name, f, NOTE) for f in files))
    table = folder / 'p.csv'
    one_by_one = lambda: [predictor(f, note=NOTE, sentences=False) for f in files]
    together = lambda: predict_files(predictor, requests, table, sentences=False)
    alone, batched = one_by_one(), together().first
    apart = max(
        abs(a[o].probability.fused - b[o].probability.fused)
        for a, b in zip(alone, batched)
        for o in OBSERVATIONS
    )
    assert apart < 1e-4, f'the two sides differ by {apart}'
    seconds = alternate(dict(alone=one_by_one, batched=together), rounds)
    return ratio_text(seconds['alone'], seconds['batched'], len(files)) + f'; largest difference {apart:.1e}'


def time_edits(predictor, file, large, rounds):
    encoded = predictor.encode(file)
    model, words = predictor.model, tokenize(predictor.tokenizer, [NOTE], predictor.model.config.max_tokens)
    pixels, tokens = torch.from_numpy(encoded.pixels[None]), encoded.tokens[None]

    @torch.inference_mode()
    def forward(**image):
        return model(**words, **image)

    sides = dict(
        whole=lambda: predictor(file, note=NOTE, sentences=False),
        large=lambda: predictor(large, note=NOTE, sentences=False),
        edited=lambda: predictor.answer([encoded], [NOTE], sentences=False),
        forward=lambda: forward(pixels=pixels),
        kept=lambda: forward(image_tokens=tokens),
    )
    s = alternate(sides, 4 * rounds)
    return {
        'a whole prediction (512 px) against an edited note': ratio_text(s['whole'], s['edited'], 1),
        'a whole prediction (2,048 px) against an edited note': ratio_text(s['large'], s['edited'], 1),
        'a forward pass against one with kept image tokens': ratio_text(s['forward'], s['kept'], 1),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--preset', nargs='+', default=['tiny', 'base'], choices=['tiny', 'base'])
    parser.add_argument('--images', type=int, default=32)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--threads', type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        files = write_films(Path(scratch), args.images)
        large = write_films(Path(scratch) / 'large', 1, 2048)[0]
        for preset in args.preset:
            predictor = predictor_of(preset)
            batches = time_batches(predictor, files, Path(scratch), args.rounds)
            print(
                f'{preset}, {len(files)} images, one by one against in batches, per image: {batches}',
                flush=True,
            )
            for what, ratio in time_edits(predictor, files[0], large, args.rounds).items():
                print(f'{preset}, {what}: {ratio}', flush=True)


if __name__ == '__main__':
    main()
