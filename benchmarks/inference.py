"""One image and one note on a CPU: the fast route that `model.fast` chooses, against eager fp32 of the same model.

    python benchmarks/inference.py [--threads 1 2] [--rounds 9] [--words 48]

Preset `base` (ViT-Base/16 + BERT-base), batch of one. The architecture is the preset's; the weights are random, as
speed does not depend on them. Differences between probabilities are measured over eight SIMULATED images and notes,
with the heads scaled so that the logits of each branch vary as a trained model's do (standard deviation about 2).

One process, everything in the same run, the two sides in alternation. Prints the ratio of the median wall-clock times
and its range over the rounds. Two threads are measured only on a quiet machine (load average below 1). Takes about
three minutes and 2 GB of memory in addition to the model.
"""

import argparse
import os
import time

import numpy as np
import torch

from cxr_lib.data.simulated import simulated_radiograph
from cxr_lib.model.text import learn_tokenizer, tokenize
from cxr_lib.model.fast import AGREEMENT, BRANCHES, choose_routes, fast_model, largest_difference
from cxr_lib.model.fusion import build_model, parameter_table
from cxr_lib.model.presets import make_config
from cxr_lib.simulation.patients import draw_patients

BERT_BASE = dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072)
BERT_BASE |= dict(vocab_size=28_996, max_position_embeddings=512)
WORDS = (
    'fever cough dyspnea orthopnea edema effusion pneumonia history of heart failure '
    'chest pain fall rule out pneumothorax evaluate line placement'
).split()


def base_model():
    "The preset's architecture with random weights (no download), and a tokenizer"
    torch.manual_seed(0)
    config = make_config('base', dict(image_weights='', text_encoder='', text_config=BERT_BASE))
    tokenizer = learn_tokenizer([' '.join(WORDS)], 300)
    return build_model(config, tokenizer).eval(), tokenizer


def spread(model, films, words, deviation=2.0):
    "Scale the heads so that fused, image-only and note-only logits have about this standard deviation"
    heads = dict(image=model.image_head[-1], note=model.note_head[-1], together=model.head[-1])
    with torch.no_grad():
        for layer in heads.values():
            torch.nn.init.normal_(layer.weight, std=0.05)
        out = model(films, **words)
        for name, layer in heads.items():
            logits = out[name] if name in out else out['fused'] - out['image'] - out['note']
            layer.weight.mul_(deviation / logits.std())
        return {k: v.std().item() for k, v in model(films, **words).items()}


def alternate(sides, rounds):
    "Wall-clock seconds of each side; every round times them one after the other"
    seconds = {name: [] for name in sides}
    for answer in sides.values():
        answer()
    for _ in range(rounds):
        for name, answer in sides.items():
            start = time.perf_counter()
            answer()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def make_inputs(model, tokenizer, n_words):
    "Eight images with their tokenized notes, and the one input that is timed"
    rng = np.random.default_rng(0)
    patients = draw_patients(8, 0).to_dict('records')
    films = np.stack([simulated_radiograph(row, 224, masks=False).image for row in patients])
    notes = [None if i == 3 else ' '.join(rng.choice(WORDS, 6 + 4 * i)) for i in range(8)]
    words = tokenize(tokenizer, notes, model.config.max_tokens)
    timed_note = tokenize(tokenizer, [' '.join(rng.choice(WORDS, n_words))], model.config.max_tokens)
    films = torch.from_numpy(films)
    return films, words, dict(pixels=films[:1], **timed_note)


def differences(model, fast, films, words):
    "Largest difference between the probabilities of the two sides, by branch"
    apart = dict.fromkeys(BRANCHES, 0.0)
    with torch.inference_mode():
        for i in range(len(films)):
            one = dict(pixels=films[i : i + 1], **{n: v[i : i + 1] for n, v in words.items()})
            ours, eager = fast(**one), model(**one)
            for k in BRANCHES:
                apart[k] = max(apart[k], largest_difference({k: ours[k]}, {k: eager[k]}))
    return apart


def too_busy(threads, load_limit):
    "Why this many threads cannot be measured, or an empty string"
    load = os.getloadavg()[0] if hasattr(os, 'getloadavg') else 0.0
    if threads == 1 or (load < load_limit and (os.cpu_count() or 1) >= threads):
        return ''
    return f'{threads} threads: left out, the load average is {load:.1f} on {os.cpu_count()} cores'


def compare(model, route, threads, rounds, films, words, one):
    "Time one route against eager fp32 and print the ratio and the differences"
    fast = fast_model(model, route)

    def eager():
        with torch.inference_mode():
            return model(**one)

    seconds = alternate(dict(eager=eager, fast=lambda: fast(**one)), rounds)
    apart = differences(model, fast, films, words)
    each = np.array(seconds['eager']) / np.array(seconds['fast'])
    slow, quick = np.median(seconds['eager']), np.median(seconds['fast'])
    print(
        f'{threads} thread{"s" if threads > 1 else ""}, {route}: '
        f'eager {slow * 1e3:.0f} ms, fast {quick * 1e3:.0f} ms, '
        f'ratio {slow / quick:.2f}x (rounds {each.min():.2f} to {each.max():.2f}); '
        'largest difference between probabilities: '
        + ', '.join(f'{k} {v:.4f}' for k, v in apart.items())
        + ('' if max(apart.values()) <= AGREEMENT else f'  MORE THAN {AGREEMENT}')
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--threads', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--words', type=int, default=48)
    args = parser.parse_args()
    model, tokenizer = base_model()
    films, words, one = make_inputs(model, tokenizer, args.words)
    deviation, chosen = spread(model, films, words), choose_routes()[0]
    print(
        f'base: {parameter_table(model).parameters["total"] / 1e6:.0f}M parameters, an image of 224 px and '
        f'{one["input_ids"].shape[1]} word pieces; default route here: {chosen}'
    )
    print('standard deviation of the logits: ' + ', '.join(f'{k} {deviation[k]:.1f}' for k in BRANCHES))
    for threads in args.threads:
        # after the first round, this process itself adds 1 to the load
        if reason := too_busy(threads, load_limit=1 + (threads != args.threads[0])):
            print(reason)
            continue
        torch.set_num_threads(threads)
        for route in dict.fromkeys([chosen, 'fp32']):
            compare(model, route, threads, args.rounds, films, words, one)


if __name__ == '__main__':
    main()
