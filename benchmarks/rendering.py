"""Speed of drawing simulated radiographs, against decoding and resizing 1024 px JPEGs with Pillow (the baseline).

    python benchmarks/rendering.py [--sizes 128 224] [--films 200] [--repeats 3]

The baseline is what a data set of real images costs. One process, one thread, everything in the same run. The patients
are drawn as in `simulation.patients`: in each image, about five of the thirteen signs are strong enough to be visible.
Processor time is counted, so other processes matter little. Prints the best of the repeats for every size, with and
without masks.
"""

import argparse
import io
import time

import cv2
import numpy as np
from PIL import Image

from cxr_lib.simulation.patients import draw_patients
from cxr_lib.simulation.causes import SIGNS
from cxr_lib.simulation.rendering import render_radiograph


def per_second(draw, n, repeats):
    "The best rate of several rounds, in images per second of processor time"
    draw(0)
    rounds = []
    for _ in range(repeats):
        start = time.process_time()
        for i in range(n):
            draw(i)
        rounds.append(n / (time.process_time() - start))
    return max(rounds)


def baseline(size, n, repeats):
    "The rate of decoding and resizing a 1024 px JPEG"
    noise = np.random.default_rng(0).normal(0, 12, (1024, 1024))
    pixels = (np.linspace(40, 200, 1024)[None] + noise).clip(0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, 'JPEG', quality=92)
    data = out.getvalue()

    def decode(i):
        image = Image.open(io.BytesIO(data)).convert('L')
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))

    return per_second(decode, n, repeats)


def rendering_rate(jobs, size, masks, repeats):
    "The rate of drawing the patients at one size"

    def draw(i):
        strengths, patient = jobs[i]
        render_radiograph(strengths, size=size, masks=masks, **patient)

    return per_second(draw, len(jobs), repeats)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--sizes', type=int, nargs='+', default=[128, 224])
    parser.add_argument('--films', type=int, default=200)
    parser.add_argument('--repeats', type=int, default=3)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    patients = draw_patients(args.films, 0)
    jobs = [
        (
            {s: float(row[f'strength/{s}']) for s in SIGNS},
            dict(sex=row['sex'], age=float(row['age']), projection=row['projection'], seed=i),
        )
        for i, row in enumerate(patients.to_dict('records'))
    ]
    shown = np.mean([sum(v > 0.5 for v in strengths.values()) for strengths, _ in jobs])
    print(
        f'{args.films} SIMULATED patients, {shown:.1f} strengths above the visibility threshold per image, '
        f'best of {args.repeats} rounds, one core'
    )
    for size in args.sizes:
        plain, masked = (rendering_rate(jobs, size, masks, args.repeats) for masks in (False, True))
        pillow = baseline(size, max(20, args.films // 4), args.repeats)
        print(
            f'{size} px: {plain:,.0f} images/s drawn, {masked:,.0f} with masks '
            f'({plain / masked:.2f}x as long with them); '
            f'Pillow decode + resize of a 1024 px image {pillow:,.0f}/s, ratio {plain / pillow:.1f}x'
        )


if __name__ == '__main__':
    main()
