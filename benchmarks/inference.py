"""One film and one note on a CPU: the chosen fast route (chapter model.fast) against eager fp32 of the same model, preset `base` (ViT-Base/16 + BERT-base), batch of one.

    python benchmarks/inference.py [--threads 1 2] [--rounds 9] [--words 48]

The architecture is the preset's, the weights are random: speed does not depend on them, and differences of probabilities are measured with heads that are
scaled until the logits of each branch spread as a trained model's do (standard deviation about 2), over eight SIMULATED films and notes.

One process, everything in the same run, the two sides in turn; prints the ratio of the medians by the clock and the range over rounds. Two threads only where
the machine is quiet (load average below 1). Takes 2 GB of memory more than the model and about three minutes.
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

BERT_BASE = dict(
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    vocab_size=28_996,
    max_position_embeddings=512,
)
WORDS = 'fever cough dyspnea orthopnea edema effusion pneumonia history of heart failure chest pain fall rule out pneumothorax evaluate line placement'.split()


def base_model():
    "The preset's architecture with random weights, no network needed"
    torch.manual_seed(0)
    config = make_config('base', dict(image_weights='', text_encoder='', text_config=BERT_BASE))
    tokenizer = learn_tokenizer([' '.join(WORDS)], 300)
    return build_model(config, tokenizer).eval(), tokenizer


def spread(model, films, words, deviation=2.0):
    "Scale the heads, so that fused, image-only and note-only logits have about this standard deviation"
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
    "Seconds of each side, one after the other in every round"
    seconds = {name: [] for name in sides}
    for answer in sides.values():
        answer()
    for _ in range(rounds):
        for name, answer in sides.items():
            start = time.perf_counter()
            answer()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--threads', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--words', type=int, default=48)
    args = parser.parse_args()
    model, tokenizer = base_model()
    rng = np.random.default_rng(0)
    films = torch.from_numpy(
        np.stack(
            [
                simulated_radiograph(row, 224, masks=False).image
                for row in draw_patients(8, 0).to_dict('records')
            ]
        )
    )
    notes = [None if i == 3 else ' '.join(rng.choice(WORDS, 6 + 4 * i)) for i in range(8)]
    words = tokenize(tokenizer, notes, model.config.max_tokens)
    deviation = spread(model, films, words)
    one = dict(
        pixels=films[:1],
        **tokenize(tokenizer, [' '.join(rng.choice(WORDS, args.words))], model.config.max_tokens),
    )
    print(
        f'base: {parameter_table(model).parameters["total"] / 1e6:.0f}M parameters, a film of 224 px and {one["input_ids"].shape[1]} word pieces; route by default here: {choose_routes()[0]}'
    )
    print('standard deviation of the logits: ' + ', '.join(f'{k} {deviation[k]:.1f}' for k in BRANCHES))
    for threads in args.threads:
        load = os.getloadavg()[0] if hasattr(os, 'getloadavg') else 0.0
        if threads > 1 and (
            load >= 1 + (threads != args.threads[0]) or (os.cpu_count() or 1) < threads
        ):  # this process is itself 1 of the load after the first round
            print(f'{threads} threads: left out, the load average is {load:.1f} on {os.cpu_count()} cores')
            continue
        torch.set_num_threads(threads)
        for route in dict.fromkeys([choose_routes()[0], 'fp32']):
            fast = fast_model(model, route)

            def eager():
                with torch.inference_mode():
                    return model(**one)

            seconds = alternate(dict(eager=eager, fast=lambda f=fast: f(**one)), args.rounds)
            with torch.inference_mode():
                apart = {
                    k: max(
                        largest_difference(
                            {k: fast(films[i : i + 1], **{n: v[i : i + 1] for n, v in words.items()})[k]},
                            {k: model(films[i : i + 1], **{n: v[i : i + 1] for n, v in words.items()})[k]},
                        )
                        for i in range(len(films))
                    )
                    for k in BRANCHES
                }
            each = np.array(seconds['eager']) / np.array(seconds['fast'])
            print(
                f'{threads} thread{"s" if threads > 1 else ""}, {route}: eager {np.median(seconds["eager"]) * 1e3:.0f} ms, fast {np.median(seconds["fast"]) * 1e3:.0f} ms, '
                f'ratio {np.median(seconds["eager"]) / np.median(seconds["fast"]):.2f}x (rounds {each.min():.2f} to {each.max():.2f}); largest difference of a probability: '
                + ', '.join(f'{k} {v:.4f}' for k, v in apart.items())
                + ('' if max(apart.values()) <= AGREEMENT else f'  MORE THAN {AGREEMENT}')
            )


if __name__ == '__main__':
    main()
