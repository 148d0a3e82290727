"""Reading radiographs: JPEG decoders compared, and the pixel cache against decoding with Pillow in every epoch.

    python benchmarks/reading_images.py [FOLDER OF IMAGES] [--size 224] [--epochs 10] [--films 48]

1. Decoders: Pillow, Pillow's draft mode, OpenCV, OpenCV reduced, and simplejpeg and PyTurboJPEG where installed, on
   JPEGs of 2544 x 3056 pixels (as in CheXpert) and 320 x 390 (as in CheXpert-small), and whether each notices a
   truncated file.
2. First pass: building the cache with one thread and with two, against two processes.
3. Cache: decode + resize + normalize with Pillow in every epoch (the baseline) against batches from the cache, each on
   one core.

Parts 1 and 3 count processor time, which other work on the machine changes little; part 2 counts wall-clock time.

The test images are made from those in the folder (scaled up, with noise) or, without a folder, from simulated ones.
"""

import argparse
import io
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from cxr_lib.data.images import pixel_cache
from cxr_lib.data.pixels import read_gray, read_radiograph
from cxr_lib.simulation.rendering import render_radiograph

SIZES = {'large': (2544, 3056), 'small': (320, 390)}


def originals(source, n):
    "Up to `n` images of a folder, or `n` simulated ones"
    if source:
        paths = sorted(p for p in Path(source).iterdir() if p.suffix.lower() in ('.png', '.jpg', '.jpeg'))
        yield from map(read_gray, paths[:n])
    else:
        for i in range(n):
            yield render_radiograph({}, age=30 + i % 60, size=320, seed=i, masks=False).image


def make_films(source, folder, n):
    "Write JPEGs in two sizes; return their paths by size"
    rng, made = np.random.default_rng(0), {name: [] for name in SIZES}
    for i, film in enumerate(originals(source, n)):
        for name, shape in SIZES.items():
            scaled = cv2.resize(film, shape, interpolation=cv2.INTER_CUBIC).astype(np.float32)
            if name == 'large':
                scaled += 8 * cv2.GaussianBlur(rng.normal(size=scaled.shape).astype(np.float32), (0, 0), 0.8)
            made[name].append(folder / f'{name} {i}.jpg')
            image = Image.fromarray(scaled.clip(0, 255).round().astype(np.uint8))
            image.save(made[name][-1], quality=(90, 95)[i % 2])
    return made


def simplejpeg_decoders(size):
    "Those of simplejpeg, if it is installed"
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        print('simplejpeg is not installed: left out')
        return {}
    scaled = dict(min_height=2 * size, min_width=2 * size, min_factor=1)
    return {
        'simplejpeg, whole': lambda data: decode_jpeg(data, 'GRAY'),
        f'simplejpeg, scaled for {size} px': lambda data: decode_jpeg(data, 'GRAY', **scaled),
    }


def turbojpeg_decoders():
    "Those of PyTurboJPEG, if it is installed"
    try:
        from turbojpeg import TJPF_GRAY, TurboJPEG

        turbo = TurboJPEG()
    except (ImportError, RuntimeError):
        print('PyTurboJPEG or its system library is not installed: left out')
        return {}
    gray = dict(pixel_format=TJPF_GRAY)
    return {
        'PyTurboJPEG, whole': lambda data: turbo.decode(data, **gray),
        'PyTurboJPEG, 1/4': lambda data: turbo.decode(data, **gray, scaling_factor=(1, 4)),
    }


def decoders(size):
    "Name -> function that turns the bytes of a JPEG into gray levels"

    def pillow(data):
        return np.asarray(Image.open(io.BytesIO(data)).convert('L'))

    def draft(data):
        with Image.open(io.BytesIO(data)) as im:
            im.draft('L', (2 * size, 2 * size))
            return np.asarray(im.convert('L'))

    def opencv(flag):
        return lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), flag)

    return {
        'Pillow, whole': pillow,
        f'Pillow, draft for {size} px': draft,
        'OpenCV, whole': opencv(cv2.IMREAD_GRAYSCALE),
        'OpenCV, 1/2': opencv(cv2.IMREAD_REDUCED_GRAYSCALE_2),
        'OpenCV, 1/4': opencv(cv2.IMREAD_REDUCED_GRAYSCALE_4),
        'OpenCV, 1/8': opencv(cv2.IMREAD_REDUCED_GRAYSCALE_8),
        **simplejpeg_decoders(size),
        **turbojpeg_decoders(),
    }


def on_a_cut_file(decode, data):
    "Whether a decoder notices that the last 40% of a file are missing"
    try:
        film = decode(data[: int(len(data) * 0.6)])
    except Exception:
        return 'refused'
    return 'refused' if film is None else 'NOT NOTICED'


def seconds_per_file(decode, files):
    "Processor seconds per file, the best of three rounds, and the shape of the last image"
    best = np.inf
    for _ in range(3):
        start = time.process_time()
        for file in files:
            shape = decode(file).shape
        best = min(best, (time.process_time() - start) / len(files))
    return best, shape


def compare_decoders(made, size):
    "Part 1: print the time of each decoder and what it makes of a truncated file"
    for name, paths in made.items():
        films = [p.read_bytes() for p in paths]
        kilobytes = np.mean([len(f) for f in films]) / 1e3
        print(
            f'{len(films)} {name} JPEGs, {SIZES[name][0]} x {SIZES[name][1]}, {kilobytes:,.0f} kB on average'
        )
        for label, decode in decoders(size).items():
            best, shape = seconds_per_file(decode, films)
            print(
                f'  {label:32} {best * 1e3:7.2f} ms of a core   gives {shape[1]:4} x {shape[0]:4}   '
                f'truncated file: {on_a_cut_file(decode, films[0])}'
            )


def read_all(paths, size):
    "Read images in another process and send none of them back"
    for path in paths:
        read_radiograph(path, size)


def two_processes(paths, size):
    "Wall-clock seconds to read all images in two processes that are already running"
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(read_all, [paths[:1]] * 2, [size] * 2))  # warm-up: processes start and import
        start = time.perf_counter()
        list(pool.map(read_all, [paths[i : i + 8] for i in range(0, len(paths), 8)], [size] * len(paths)))
        return time.perf_counter() - start


def make_cache(paths, size, folder, **options):
    "The pixel cache of these images"
    return pixel_cache(paths[0].parent, [p.name for p in paths], size, folder, progress=False, **options)


def compare_workers(made, size, folder):
    "Part 2: print the speed of the first pass with threads and with processes"
    for name, paths in made.items():
        times = {}
        for workers in (1, 2):
            start = time.perf_counter()
            make_cache(paths, size, folder / f'{name} {workers}', workers=workers)
            times[f'{workers} thread(s)'] = time.perf_counter() - start
        times['2 processes, without writing'] = two_processes(paths, size)
        print(
            f'first pass over the {name} images at {size} px on {os.cpu_count()} cores: '
            + ', '.join(f'{k} {len(paths) / v:,.0f} images/s' for k, v in times.items())
        )


def with_pillow(paths, size):
    "The usual data set: decode, resize and normalize one image after another"
    for path in paths:
        image = Image.open(path).convert('L').resize((size, size), Image.Resampling.BILINEAR)
        (torch.from_numpy(np.asarray(image, dtype=np.float32) / 255) - 0.5) / 0.25


def from_cache(pixels, batch_size=16):
    "Batches of the memory-mapped array in random order, normalized"
    order = np.random.default_rng(0).permutation(len(pixels))
    for rows in np.array_split(order, -(-len(pixels) // batch_size)):
        (torch.from_numpy(pixels[rows]).float() / 255 - 0.5) / 0.25


def compare_cache(made, size, epochs, folder):
    "Part 3: print the speed of Pillow in every epoch and of the cache"
    for name, paths in made.items():
        pixels = make_cache(paths, size, folder / f'{name} 1')
        start = time.process_time()
        with_pillow(paths, size)
        pillow = len(paths) / (time.process_time() - start)
        from_cache(pixels)  # warm-up
        start = time.process_time()
        for _ in range(epochs):
            from_cache(pixels)
        cached = epochs * len(paths) / (time.process_time() - start)
        print(
            f'{name} images at {size} px, one core: Pillow in every epoch {pillow:,.0f} images/s, '
            f'cache {cached:,.0f} images/s, ratio {cached / pillow:.0f}x'
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('folder', nargs='?')
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--epochs', type=int, default=10)
    parser.add_argument('--films', type=int, default=48)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as d:
        (Path(d) / 'films').mkdir()
        made = make_films(args.folder, Path(d) / 'films', args.films)
        compare_decoders(made, args.size)
        compare_workers(made, args.size, Path(d))
        compare_cache(made, args.size, args.epochs, Path(d))


if __name__ == '__main__':
    main()
