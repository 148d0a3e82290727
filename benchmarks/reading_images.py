"""Training images a second: from the pixel cache, against Pillow decode + resize + normalize in every epoch (the baseline).

    python benchmarks/reading_images.py [FOLDER OF IMAGES] [--size 224] [--epochs 3]

One process, one core's worth of work on either side, the same run. Without a folder, 200 noisy films of 1024 x 1024 pixels
are written and used. Prints images a second of both, and their ratio.
"""
import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cxr_lib.images import pixel_cache


def with_pillow(paths, size):
    "The usual data set: decode, resize, normalize, one image after the other"
    for path in paths:
        image = Image.open(path).convert('L').resize((size, size), Image.Resampling.BILINEAR)
        (torch.from_numpy(np.asarray(image, dtype=np.float32)/255) - .5)/.25


def from_cache(pixels, batch_size=64):
    "Batches of the memory-mapped array, normalized"
    for rows in np.random.default_rng(0).permutation(len(pixels)).reshape(-1)[:len(pixels)//batch_size*batch_size].reshape(-1, batch_size):
        (torch.from_numpy(pixels[rows]).float()/255 - .5)/.25


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', nargs='?'); parser.add_argument('--size', type=int, default=224); parser.add_argument('--epochs', type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as d:
        folder = Path(args.folder or d)
        if not args.folder:
            rng = np.random.default_rng(0)
            for i in range(200): Image.fromarray((np.linspace(40, 200, 1024)[None] + rng.normal(0, 12, (1024, 1024))).clip(0, 255).astype(np.uint8)).save(folder/f'{i}.jpg', quality=92)
        names = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in ('.png', '.jpg', '.jpeg'))
        start = time.perf_counter(); pixels = pixel_cache(folder, names, args.size, Path(d)/'cache', progress=False, workers=1); built = time.perf_counter() - start
        start = time.perf_counter(); with_pillow([folder/n for n in names], args.size); pillow = len(names)/(time.perf_counter() - start)
        start = time.perf_counter()
        for _ in range(args.epochs): from_cache(pixels)
        cached = args.epochs*(len(names)//64*64)/(time.perf_counter() - start)
    print(f'{len(names)} images at {args.size} px: Pillow each epoch {pillow:,.0f} images/s, cache {cached:,.0f} images/s, ratio {cached/pillow:.0f}x (building the cache took {built:.1f} s, once)')


if __name__ == '__main__': main()
