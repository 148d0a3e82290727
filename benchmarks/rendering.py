"""Simulated radiographs a second on one core, beside what a data set of real ones costs: Pillow decode + resize of a 1024 px film (the baseline).

    python benchmarks/rendering.py [--sizes 128 224] [--films 200] [--repeats 3]

One process, one thread, everything in the same run. The patients are as chapter simulation.patients draws them: about five of the thirteen strengths are large enough to be drawn on each film.
Counts processor time, so that other processes matter little; prints the best of the repeats for every size, with and without masks.
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
    "The best rate of several rounds, per second of processor time"
    draw(0)
    rounds = []
    for _ in range(repeats):
        start = time.process_time()
        for i in range(n):
            draw(i)
        rounds.append(n / (time.process_time() - start))
    return max(rounds)


def baseline(size, n, repeats):
    "Decode and resize one 1024 px JPEG"
    rng = np.random.default_rng(0)
    out = io.BytesIO()
    Image.fromarray(
        (np.linspace(40, 200, 1024)[None] + rng.normal(0, 12, (1024, 1024))).clip(0, 255).astype(np.uint8)
    ).save(out, 'JPEG', quality=92)
    data = out.getvalue()
    return per_second(
        lambda i: np.asarray(
            Image.open(io.BytesIO(data)).convert('L').resize((size, size), Image.Resampling.BILINEAR)
        ),
        n,
        repeats,
    )


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
        f'{args.films} SIMULATED patients, {shown:.1f} strengths above the threshold of visibility a film, best of {args.repeats} rounds, one core'
    )
    for size in args.sizes:
        plain, masked = (
            per_second(
                lambda i, m=masks: render_radiograph(jobs[i][0], size=size, masks=m, **jobs[i][1]),
                args.films,
                args.repeats,
            )
            for masks in (False, True)
        )
        pillow = baseline(size, max(20, args.films // 4), args.repeats)
        print(
            f'{size} px: {plain:,.0f} films/s drawn, {masked:,.0f} with masks ({plain / masked:.2f}x as long with them); Pillow decode + resize of a 1024 px film {pillow:,.0f}/s, ratio {plain / pillow:.1f}x'
        )


if __name__ == '__main__':
    main()
