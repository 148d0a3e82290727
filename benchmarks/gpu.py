"""The presets `base` and `chest` on a CUDA device: are they correct, do they fit as estimated, how fast are they?

    python benchmarks/gpu.py [--images 1280] [--batch 32]
    python benchmarks/gpu.py --small     # on the processor, with small networks: does this program work?

The weights are random, in the architecture of the presets (`base`: ViT-Base/16 and a BERT as large as
Bio_ClinicalBERT; `chest`: ViT-Base/14 at 518 pixels, as RAD-DINO, and the same BERT, both frozen), and so are images
and notes: speed and memory do not depend on what is learned. Meant to take under 8 minutes on any CUDA device that
holds the model; the last line says how long it took.

1. Correct: logits and gradients of one step in fp32, bf16 and fp16 against the processor's fp32, as relative
   error of the whole vector; exits with 1 if one exceeds its tolerance.
2. Fits: the peak of allocated memory in training beside the estimate of `plan_memory`.
3. Fast: images per second in training (the library's own `fit`, second epoch; `chest` on tokens that were encoded
   before) and in encoding (image encoder alone).
"""

import argparse
import gc
import sys
import time

import numpy as np
import torch

from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.model.fusion import MultimodalClassifier
from cxr_lib.model.images import ImageEncoder
from cxr_lib.model.presets import make_config, split_overrides
from cxr_lib.model.text import learn_tokenizer
from cxr_lib.notes.wording import clinical_notes
from cxr_lib.simulation.patients import draw_patients
from cxr_lib.training.dataset import StudyData
from cxr_lib.training.loop import fit
from cxr_lib.training.losses import masked_bce
from cxr_lib.training.memory import plan_memory

CLINICAL_BERT = dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072)
VOCABULARY = 28_996  # word pieces of the cased BERT vocabulary
PRECISIONS = {'no': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
#: Largest relative error of logits and gradients: the rounding of each format over the layers of two encoders.
TOLERANCE = {'no': (1e-4, 1e-3), 'bf16': (5e-2, 1e-1), 'fp16': (1e-2, 3e-2)}


#: Networks of the same kind that a processor trains in seconds.
SMALL_BERT = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
SMALL = dict(image_encoder='vit_tiny_patch16_224', image_size=64, text_config=SMALL_BERT, max_tokens=32)
SMALL |= dict(fusion_dim=32, fusion_heads=2, head_hidden=16)


def preset_config(preset, small=False, **changes):
    "A preset's architecture with random weights, so that nothing is downloaded"
    random = dict(image_weights='', text_encoder='', text_config=CLINICAL_BERT)
    if preset == 'chest':
        random |= dict(image_encoder='vit_base_patch14_dinov2')
    if small:
        random |= SMALL | (dict(image_grid=2) if preset == 'chest' else {})
    return make_config(preset, random | changes)


def random_batch(config, n, device):
    "Images and full-length notes; one note is missing"
    generator = torch.Generator().manual_seed(1)
    size, length = config.image_size, config.max_tokens
    has_note = torch.ones(n, dtype=torch.bool)
    has_note[0] = False
    batch = dict(
        pixels=torch.randint(0, 256, (n, size, size), generator=generator, dtype=torch.uint8),
        input_ids=torch.randint(5, VOCABULARY, (n, length), generator=generator),
        attention_mask=torch.ones((n, length), dtype=torch.long),
        has_note=has_note,
    )
    targets = torch.randint(0, 2, (n, len(OBSERVATIONS)), generator=generator).float()
    return {name: value.to(device) for name, value in batch.items()}, targets.to(device)


def logits_and_gradients(model, batch, targets, precision):
    "-> (all logits, all gradients), each as one float64 vector on the processor"
    kind = batch['pixels'].device.type
    model.zero_grad()
    with torch.autocast(kind, dtype=PRECISIONS[precision], enabled=precision != 'no'):
        out = model(**batch)
        loss = sum(masked_bce(out[b].float(), targets, targets.numel()) for b in ('fused', 'image', 'note'))
    # small gradients underflow to zero in fp16, so the loss is scaled, as a gradient scaler does
    scale = 2.0**12 if precision == 'fp16' else 1.0
    (loss * scale).backward()
    gradients = [p.grad.flatten().cpu().double() / scale for p in model.parameters() if p.grad is not None]
    logits = [out[b].flatten().detach().cpu().double() for b in sorted(out)]
    return torch.cat(logits), torch.cat(gradients)


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm())


def check_right(preset, small, device, precisions):
    "Print the errors against the processor; False if one is too large"
    no_dropout = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    bert = (SMALL_BERT if small else CLINICAL_BERT) | no_dropout
    config = preset_config(preset, small, dropout=0.0, attention_dropout=0.0, text_config=bert)
    torch.manual_seed(0)
    model = MultimodalClassifier(config, VOCABULARY)
    # this layer starts at zero, which would hide an error in the fusion
    torch.nn.init.normal_(model.head[-1].weight, std=0.02)
    model.train()
    expected = logits_and_gradients(model, *random_batch(config, 4, 'cpu'), 'no')
    model.to(device)
    good = True
    for precision in precisions:
        most_logits, most_gradients = TOLERANCE[precision]
        found = logits_and_gradients(model, *random_batch(config, 4, device), precision)
        logits, gradients = map(relative_error, found, expected)
        right = logits <= most_logits and gradients <= most_gradients
        good &= right
        print(
            f'  {preset:<5} {precision:<5} logits {logits:.1e} (at most {most_logits:.0e}), gradients {gradients:.1e} '
            f'(at most {most_gradients:.0e}){"" if right else "   TOO LARGE"}',
            flush=True,
        )
    return good


def study_data(config, images):
    "Random images with notes of SIMULATED patients; a fifth of them for tuning"
    table = draw_patients(images, 0)
    table['note'] = clinical_notes(table, table.age, table.sex)
    table['split'] = np.where(np.arange(images) % 5 == 0, 'tuning', 'train')
    size = config.image_size
    films = np.random.default_rng(0).integers(0, 256, (images, size, size), dtype=np.uint8)
    return StudyData(table, '', config, learn_tokenizer(table.note), pixels=films)


def wait_for(device):
    "What was given to the device is done"
    if device.type == 'cuda':
        torch.cuda.synchronize()


def train(preset, config, data, precision, batch, device):
    "-> (images per second in the second epoch, tuning pass included; peak of allocated bytes, 0 on a processor)"
    torch.manual_seed(0)
    model = MultimodalClassifier(config, VOCABULARY)
    training = split_overrides(preset)[1] | dict(epochs=2, batch_size=batch, precision=precision, patience=0)
    gc.collect()  # frees the memory of the previous training
    data.precompute(model, device.type, precision=precision)  # of frozen encoders
    if device.type == 'cuda':
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    ends = []

    def note_the_time(log):
        wait_for(device)
        ends.append(time.perf_counter())

    train, tuning = data.rows('train'), data.rows('tuning')
    fit(model, data, train, tuning, training, name=precision, on_epoch=note_the_time)
    peak = torch.cuda.max_memory_allocated() if device.type == 'cuda' else 0
    return len(data.table) / (ends[1] - ends[0]), peak


def encoding_rate(config, precision, device, batch=64, seconds=4.0):
    "Images per second of the image encoder, forward only, with the images already on the device"
    torch.manual_seed(0)
    encoder = ImageEncoder(config).to(device).eval()
    shape = (batch, config.image_size, config.image_size)
    films = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    autocast = torch.autocast(device.type, dtype=PRECISIONS[precision], enabled=precision != 'no')
    with torch.inference_mode(), autocast:
        for _ in range(3):
            encoder(films)
        wait_for(device)
        started, done = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            encoder(films)
            wait_for(device)
            done += batch
    return done / (time.perf_counter() - started)


def memory_words(estimate, peak):
    "Both, where there is a peak"
    if not peak:
        return f'estimate {estimate / 1e9:5.2f} GB, peak not measured on a processor'
    return (
        f'peak {peak / 1e9:5.2f} GB, estimate {estimate / 1e9:5.2f} GB (estimate/peak {estimate / peak:.2f})'
    )


def time_training(preset, config, images, batch, precisions, device):
    "Print speed and memory of training beside the estimate"
    data = study_data(config, images)
    for precision in precisions:
        estimate = plan_memory(config, VOCABULARY, batch, precision)['total']
        rate, peak = train(preset, config, data, precision, batch, device)
        print(
            f'  {preset:<5} {precision:<5} {rate:6.0f} images/s, {memory_words(estimate, peak)}', flush=True
        )


def time_encoding(preset, config, precisions, device, seconds):
    "Print the speed of a preset's image encoder"
    for precision in precisions:
        rate = encoding_rate(config, precision, device, seconds=seconds)
        print(f'  {preset:<5} {config.image_size} px, {precision:<5} {rate:7.0f} images/s', flush=True)


def choose(small):
    "-> (device, its name, the precisions that it computes)"
    if small:
        return torch.device('cpu'), 'the processor, small networks', ['no', 'bf16']
    if not torch.cuda.is_available():
        sys.exit('no CUDA device found; --small tries the program on the processor')
    properties = torch.cuda.get_device_properties(0)
    name = f'{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}'
    return torch.device('cuda'), name, [p for p in PRECISIONS if p != 'bf16' or properties.major >= 8]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--images', type=int, default=0, help='in training, a fifth for tuning (1280; small: 40)'
    )
    parser.add_argument('--batch', type=int, default=0, help='patients per step (32; small: 8)')
    parser.add_argument('--small', action='store_true', help='small networks on the processor')
    args = parser.parse_args()
    images, batch = args.images or (40 if args.small else 1280), args.batch or (8 if args.small else 32)
    (device, name, precisions), started = choose(args.small), time.perf_counter()
    print(f'{name}, torch {torch.__version__}; TF32 is off')
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    presets = ('base', 'chest')
    configs = {preset: preset_config(preset, args.small) for preset in presets}
    print('Relative error of a step against the processor in fp32, 4 patients:')
    good = [check_right(preset, args.small, device, precisions) for preset in presets]
    print(f'Training, {batch} patients per step:')
    for preset, share in zip(
        presets, (1, 1 if args.small else 4)
    ):  # images of 518 pixels take longer to encode
        time_training(preset, configs[preset], images // share, batch, precisions, device)
    print('Encoding, image encoder alone:')
    for preset in presets:
        time_encoding(preset, configs[preset], precisions, device, 0.2 if args.small else 4.0)
    print(f'total {time.perf_counter() - started:.0f} s')
    sys.exit(0 if all(good) else 1)


if __name__ == '__main__':
    main()
