"""The `base` preset on a CUDA device: is it correct, does it fit as estimated, and how fast is it?

    python benchmarks/gpu.py [--images 1280] [--batch 32]

The weights are random, in the preset's architecture (ViT-Base/16 and a BERT as large as Bio_ClinicalBERT), and so are
images and notes: speed and memory do not depend on what is learned. Takes under 8 minutes on any CUDA device that holds
the model.

1. Correct: logits and gradients of one batch in fp32, bf16 and fp16 against the processor's fp32, as relative
   error of the whole vector; exits with 1 if one exceeds its tolerance.
2. Fits: the peak of allocated memory in training beside the estimate of `plan_memory`.
3. Fast: images per second in training (the library's own `fit`, second epoch) and in encoding (image encoder alone,
   for frozen presets; also a ViT-B/14 at 518 pixels, the shape of RAD-DINO).
"""

import argparse
import gc
import sys
import time

import numpy as np
import torch

from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.training.dataset import StudyData
from cxr_lib.model.images import ImageEncoder
from cxr_lib.model.text import learn_tokenizer
from cxr_lib.training.losses import masked_bce
from cxr_lib.model.fusion import MultimodalClassifier
from cxr_lib.model.presets import make_config, split_overrides
from cxr_lib.notes.wording import clinical_notes
from cxr_lib.simulation.patients import draw_patients
from cxr_lib.training.memory import plan_memory
from cxr_lib.training.loop import fit

CLINICAL_BERT = dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072)
VOCABULARY = 28_996  # word pieces of the cased BERT vocabulary
PRECISIONS = {'no': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
#: Largest relative error of logits and gradients: the rounding of each format over the layers of two encoders.
TOLERANCE = {'no': (1e-4, 1e-3), 'bf16': (5e-2, 1e-1), 'fp16': (1e-2, 3e-2)}


def base_config(**changes):
    "The preset's architecture with random weights, so that nothing is downloaded"
    return make_config('base', dict(image_weights='', text_encoder='', text_config=CLINICAL_BERT) | changes)


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


def check_right(device):
    "Print the errors against the processor; False if one is too large"
    no_dropout = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    config = base_config(dropout=0.0, text_config=CLINICAL_BERT | no_dropout)
    torch.manual_seed(0)
    model = MultimodalClassifier(config, VOCABULARY)
    # this layer starts at zero, which would hide an error in the fusion
    torch.nn.init.normal_(model.head[-1].weight, std=0.02)
    model.train()
    expected = logits_and_gradients(model, *random_batch(config, 4, 'cpu'), 'no')
    model.to(device)
    good = True
    for precision, (most_logits, most_gradients) in TOLERANCE.items():
        found = logits_and_gradients(model, *random_batch(config, 4, device), precision)
        logits, gradients = map(relative_error, found, expected)
        right = logits <= most_logits and gradients <= most_gradients
        good &= right
        print(
            f'  {precision:<5} logits {logits:.1e} (at most {most_logits:.0e}), gradients {gradients:.1e} '
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


def train(config, data, precision, batch):
    "-> (images per second in the second epoch, tuning pass included; peak of allocated bytes)"
    torch.manual_seed(0)
    model = MultimodalClassifier(config, VOCABULARY)
    training = split_overrides('base')[1] | dict(epochs=2, batch_size=batch, precision=precision, patience=0)
    gc.collect()  # frees the memory of the previous training
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    ends = []

    def note_the_time(log):
        torch.cuda.synchronize()
        ends.append(time.perf_counter())

    train, tuning = data.rows('train'), data.rows('tuning')
    fit(model, data, train, tuning, training, name=precision, on_epoch=note_the_time)
    return len(data.table) / (ends[1] - ends[0]), torch.cuda.max_memory_allocated()


def encoding_rate(config, precision, device, batch=64, seconds=4.0):
    "Images per second of the image encoder, forward only, with the images already on the device"
    torch.manual_seed(0)
    encoder = ImageEncoder(config).to(device).eval()
    shape = (batch, config.image_size, config.image_size)
    films = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    autocast = torch.autocast('cuda', dtype=PRECISIONS[precision], enabled=precision != 'no')
    with torch.inference_mode(), autocast:
        for _ in range(3):
            encoder(films)
        torch.cuda.synchronize()
        started, done = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            encoder(films)
            torch.cuda.synchronize()
            done += batch
    return done / (time.perf_counter() - started)


def time_training(config, images, batch, precisions):
    "Print speed and memory of training beside the estimate"
    data = study_data(config, images)
    print(f'Training, {batch} patients per step:')
    for precision in precisions:
        estimate = plan_memory(config, VOCABULARY, batch, precision)['total']
        rate, peak = train(config, data, precision, batch)
        print(
            f'  {precision:<5} {rate:6.0f} images/s, peak {peak / 1e9:5.2f} GB, estimate {estimate / 1e9:5.2f} GB '
            f'(estimate/peak {estimate / peak:.2f})',
            flush=True,
        )


def time_encoding(config, precisions, device):
    "Print the speed of the preset's image encoder and of one as large as RAD-DINO"
    print('Encoding, image encoder alone:')
    larger = base_config(image_encoder='vit_base_patch14_dinov2', image_size=518)
    for name, shape in {'ViT-B/16, 224 px': config, 'ViT-B/14, 518 px (as RAD-DINO)': larger}.items():
        for precision in precisions:
            rate = encoding_rate(shape, precision, device)
            print(f'  {name}, {precision:<5} {rate:7.0f} images/s', flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--images', type=int, default=1280, help='images in training, a fifth for tuning')
    parser.add_argument('--batch', type=int, default=32)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit('no CUDA device found')
    device, started = torch.device('cuda'), time.perf_counter()
    properties = torch.cuda.get_device_properties(0)
    print(
        f'{properties.name}, {properties.total_memory / 2**30:.0f} GiB, '
        f'torch {torch.__version__}, CUDA {torch.version.cuda}; TF32 is off'
    )
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    precisions = [p for p in PRECISIONS if p != 'bf16' or properties.major >= 8]
    print('Relative error against the processor in fp32, 4 patients:')
    good = check_right(device)
    config = base_config()
    time_training(config, args.images, args.batch, precisions)
    time_encoding(config, precisions, device)
    print(f'total {time.perf_counter() - started:.0f} s')
    sys.exit(0 if good else 1)


if __name__ == '__main__':
    main()
