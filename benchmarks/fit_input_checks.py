"""Fit the rule that says whether an image is an upright frontal chest radiograph; writes its table of coefficients.

    python benchmarks/fit_input_checks.py [--films 2000] [--seed 0] [--show FIGURE.png]

Everything it learns from is drawn by programs:

- radiographs of simulated patients, varied far beyond what the simulation varies (exposure, cropping, frames, one
  opaque lung, blur, a small chest in a large frame);
- the same turned by 90, 180 and 270 degrees, and inverted;
- the same cut into pieces and put together wrongly;
- other pictures: shapes, clouds, text, plots, windows on a screen, patterns, objects, scenes, rough lateral views.

No real image is looked at, so every real image is a test: see benchmarks/input_checks.py. Mirrored radiographs are not
among the wrong ones: the heart of some people lies on the right.

The table is cxr_lib/assets/input_checks.json, part of the package. About three minutes on one core.
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from cxr_lib.prediction.checks import CLASSES, picture_features
from cxr_lib.simulation.causes import SIGNS
from cxr_lib.simulation.patients import draw_patients
from cxr_lib.simulation.rendering import render_radiograph

TABLE = Path(__file__).resolve().parent.parent / 'cxr_lib' / 'assets' / 'input_checks.json'
SIZE = 96  # pixels a side of everything that is drawn here
UNIT = 1e-4  # of the coefficients, which are stored as whole numbers
ROWS, COLUMNS = np.mgrid[:SIZE, :SIZE] / SIZE


def to_bytes(image):
    "Gray values of 0 to 1 as bytes"
    return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)


def stretched(image):
    "Any values as gray values of 0 to 1"
    image = image - image.min()
    return image / (image.max() + 1e-9)


def scaled(image):
    return cv2.resize(np.ascontiguousarray(image), (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def smooth_field(rng, knots):
    "Random values that change slowly, with about unit variance"
    coarse = rng.normal(size=(int(knots), int(knots))).astype(np.float32)
    return cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)


# ---- radiographs ----


def draw_films(n, seed):
    "Radiographs of simulated patients, (n, 128, 128)"
    for k, patient in enumerate(draw_patients(n, seed).to_dict('records')):
        strengths = {sign: float(patient[f'strength/{sign}']) for sign in SIGNS}
        about = {name: patient[name] for name in ('sex', 'projection')}
        drawn = render_radiograph(
            strengths, age=float(patient['age']), size=128, seed=seed * n + k, masks=False, **about
        )
        yield drawn.image


def placed(film, rng):
    "Nearer or farther, off centre, a little askew; what lies outside is continued, black or white"
    n = film.shape[0]
    far = rng.random() < 0.2
    zoom = rng.uniform(1.08, 1.7) if far else rng.uniform(0.6, 1.08)
    stretch = zoom * np.exp(rng.normal(0, 0.08))
    turn = np.deg2rad(rng.normal(0, 3.5))
    cos, sin = np.cos(turn), np.sin(turn)
    matrix = np.array([[cos * zoom, -sin * stretch], [sin * zoom, cos * stretch]]) * n / SIZE
    spread = 0.10 if far else 0.04
    centre = n * np.array([0.5 + rng.normal(0, spread), 0.47 + rng.normal(0, spread + 0.01)])
    shift = centre - matrix @ [SIZE / 2, SIZE / 2]
    border = cv2.BORDER_REPLICATE if rng.random() < 0.4 else cv2.BORDER_CONSTANT
    value = float(rng.choice([0, 0, 255, rng.integers(0, 256)]))
    flags = cv2.INTER_AREA | cv2.WARP_INVERSE_MAP
    whole = np.column_stack([matrix, shift]).astype(np.float32)
    return cv2.warpAffine(film, whole, (SIZE, SIZE), flags=flags, borderMode=border, borderValue=value)


def opacified(image, rng):
    "A region, or one whole side of the chest, that lets no rays through"
    if rng.random() < 0.3:
        side = 1 if rng.random() < 0.5 else -1
        edge = 0.5 + rng.normal(0, 0.05)
        veil = 1 / (1 + np.exp(-side * (COLUMNS - edge) * rng.uniform(15, 60)))
    else:
        x, y = rng.uniform(0.15, 0.85), rng.uniform(0.2, 0.9)
        width, height = rng.uniform(0.1, 0.35, 2)
        veil = np.exp(-((((COLUMNS - x) / width) ** 2 + ((ROWS - y) / height) ** 2) ** 2))
    veil = veil * rng.uniform(0.3, 1)
    return image * (1 - veil) + veil * rng.uniform(0.55, 0.95)


def exposed(image, rng):
    "Another machine: gradation, uneven exposure, cut-off highlights and shadows"
    image = np.clip(image, 0, 1)
    if rng.random() < 0.8:
        image = image ** np.exp(rng.normal(0, 0.45))
    if rng.random() < 0.6:
        image = image + rng.uniform(0.02, 0.25) * smooth_field(rng, rng.integers(2, 5))
    if rng.random() < 0.3:
        image = image + rng.normal(0, 0.2) * 2 * ((ROWS if rng.random() < 0.5 else COLUMNS) - 0.5)
    low, high = np.percentile(image, [rng.uniform(0, 4), rng.uniform(93, 100)])
    return np.clip((image - low) / (high - low + 1e-6), 0, 1)


def framed(image, rng):
    "A bar along one side, or a cut corner, black, white or gray"
    image = np.ascontiguousarray(image, dtype=np.float32)
    value = float(rng.choice([0, 0, 1, rng.random()]))
    if rng.random() < 0.3:
        width = int(rng.integers(1, 14))
        turns = int(rng.integers(4))
        image = np.rot90(image, turns).copy()
        image[:width] = value
        image = np.ascontiguousarray(np.rot90(image, -turns))
    if rng.random() < 0.15:
        corner = np.array([[0, 0], [rng.integers(5, 40), 0], [0, rng.integers(5, 40)]])
        flip = rng.random(2) < 0.5
        corner = np.where(flip, SIZE - 1 - corner, corner)
        image = cv2.fillPoly(image, [corner.astype(np.int32)], value)
    return image


def on_a_sheet(image, rng):
    "Smaller, on an even ground"
    side = int(SIZE * rng.uniform(0.55, 0.95))
    height = int(np.clip(side * np.exp(rng.normal(0, 0.1)), 30, SIZE))
    sheet = np.full((SIZE, SIZE), rng.choice([0, 1, rng.random()]), np.float32)
    sheet += rng.normal(0, 0.012, sheet.shape).astype(np.float32)
    y = int(np.clip((SIZE - height) / 2 + rng.normal(0, 4), 0, SIZE - height))
    x = int(np.clip((SIZE - side) / 2 + rng.normal(0, 4), 0, SIZE - side))
    small = cv2.resize(image.astype(np.float32), (side, height), interpolation=cv2.INTER_AREA)
    sheet[y : y + height, x : x + side] = small
    return sheet


def varied(film, rng):
    "A simulated radiograph, varied as real ones are"
    mirrored = rng.random() < 0.15
    image = placed(film[:, ::-1].copy() if mirrored else film, rng) / np.float32(255)
    if rng.random() < 0.4:
        image = opacified(image, rng)
    if rng.random() < 0.25:
        outside = cv2.GaussianBlur((image < 0.12).astype(np.float32), (0, 0), 1) > 0.5
        image = np.where(outside, image + rng.uniform(0, 0.6), image)
    image = exposed(image, rng)
    if rng.random() < 0.4:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 2.2))
    if rng.random() < 0.5:
        image = image + rng.normal(0, rng.uniform(0.003, 0.04), image.shape)
    if rng.random() < 0.5:
        image = image * rng.uniform(0.5, 1) + rng.uniform(0, 0.3)
    image = framed(np.clip(image, 0, 1), rng)
    if rng.random() < 0.12:
        image = on_a_sheet(image, rng)
    return to_bytes(image)


def put_together_wrongly(film, rng):
    "Parts of a radiograph: shifted, shuffled, one corner alone, several side by side"
    image = varied(film, rng)
    how = rng.integers(5)
    if how <= 1:
        return np.roll(image, SIZE // 2 + int(rng.integers(-12, 13)), int(how))
    if how == 2:
        parts = int(rng.integers(2, 5))
        side = SIZE // parts
        tiles = [
            image[i : i + side, j : j + side] for i in range(0, SIZE, side) for j in range(0, SIZE, side)
        ]
        tiles = [tiles[k] for k in rng.permutation(len(tiles))]
        return np.block([tiles[i * parts : (i + 1) * parts] for i in range(parts)])
    if how == 3:
        side = int(rng.uniform(0.22, 0.4) * SIZE)
        i, j = rng.integers(0, SIZE - side, 2)
        return scaled(image[i : i + side, j : j + side])
    across, down = int(rng.integers(2, 5)), int(rng.integers(1, 4))
    return scaled(np.tile(scaled(image)[::down, ::across], (down, across)))


# ---- everything else ----


def shapes(rng, n=0):
    "Overlapping shapes: the leaves that natural images are often likened to"
    image = np.full((SIZE, SIZE), rng.integers(0, 256), np.uint8)
    for _ in range(n or rng.integers(3, 120)):
        gray = int(rng.integers(0, 256))
        x, y = (int(v) for v in rng.integers(-10, SIZE + 10, 2))
        size = float(np.exp(rng.uniform(1, 3.7)))
        kind = rng.integers(4)
        if kind == 0:
            cv2.circle(image, (x, y), int(size), gray, -1, cv2.LINE_AA)
        elif kind == 1:
            axes = int(size), int(size * rng.uniform(0.2, 1) + 1)
            cv2.ellipse(image, (x, y), axes, float(rng.uniform(0, 180)), 0, 360, gray, -1, cv2.LINE_AA)
        elif kind == 2:
            corners = (x, y) + rng.normal(0, size, (int(rng.integers(3, 7)), 2))
            cv2.fillPoly(image, [corners.astype(np.int32)], gray, cv2.LINE_AA)
        else:
            w, h = (int(v) for v in size * rng.uniform(0.3, 2, 2))
            cv2.rectangle(image, (x, y), (x + w, y + h), gray, -1 if rng.random() < 0.8 else 1)
    return image


def clouds(rng):
    "Noise whose power falls with frequency, from white to very smooth"
    across, down = np.meshgrid(np.fft.rfftfreq(SIZE), np.fft.fftfreq(SIZE))
    frequency = np.hypot(across, down)
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(rng.normal(size=(SIZE, SIZE))) / frequency ** rng.uniform(0, 3)
    return to_bytes(stretched(np.fft.irfft2(spectrum, s=(SIZE, SIZE))))


def page_of_text(rng):
    paper, ink = int(rng.integers(200, 256)), int(rng.integers(0, 90))
    if rng.random() < 0.25:
        paper, ink = 255 - paper, 255 - ink
    side = 3 * SIZE
    image = np.full((side, side), paper, np.uint8)
    top, left, step = (int(rng.integers(*between)) for between in ((5, 30), (4, 40), (8, 22)))
    for y in range(top, side - 6, step):
        if rng.random() < 0.12:
            continue
        letters = int(rng.uniform(0.3, 1) * (side - 2 * left) / (step * 0.55))
        line = ''.join(chr(rng.integers(97, 123)) if rng.random() < 0.84 else ' ' for _ in range(letters))
        cv2.putText(image, line, (left, y), cv2.FONT_HERSHEY_SIMPLEX, step / 34, ink, 1, cv2.LINE_AA)
    return scaled(image)


def curve(image, box, gray, rng):
    "Points, a line or bars between the axes"
    left, top, right, bottom = box
    n = int(rng.integers(5, 60))
    x = np.linspace(left, right, n)
    kind = rng.integers(4)
    heights = [rng.random(n), 0.5 + 0.3 * np.cumsum(rng.normal(size=n)) / n**0.5]
    heights.append(np.linspace(rng.random(), rng.random(), n) ** rng.uniform(0.3, 3))
    y = np.clip(top + (bottom - top) * heights[min(kind, 2)], top, bottom)
    points = np.column_stack([x, y]).astype(np.int32)
    if kind == 0:
        for point in points.tolist():
            cv2.circle(image, point, 2, gray, -1)
    elif kind == 3:
        for px, py in points[::3].tolist():
            cv2.rectangle(image, (px, py), (int(px + 2 * (right - left) / n), bottom), gray, -1)
    else:
        cv2.polylines(image, [points], False, gray, int(rng.integers(1, 4)), cv2.LINE_AA)


def plots(rng):
    side, dark = 3 * SIZE, rng.random() < 0.2
    image = np.full((side, side), rng.integers(0, 60) if dark else 255, np.uint8)
    rows, columns = (1, 1) if rng.random() < 0.5 else (int(v) for v in rng.integers(1, 4, 2))
    for i in range(rows):
        for j in range(columns):
            box = [j * side // columns + 14, i * side // rows + 10]
            box += [(j + 1) * side // columns - 6, (i + 1) * side // rows - 14]
            cv2.rectangle(image, box[:2], box[2:], 230 if dark else 0, 1)
            for _ in range(rng.integers(1, 5)):
                curve(image, box, int(rng.integers(80, 255) if dark else rng.integers(0, 200)), rng)
    return scaled(image)


def windows(rng):
    "Windows on a screen"
    ground = rng.integers(180, 256) if rng.random() < 0.6 else rng.integers(10, 70)
    image = np.full((SIZE, SIZE), ground, np.uint8)
    for _ in range(rng.integers(2, 9)):
        width, height = (int(v) for v in rng.integers(15, 90, 2))
        x, y = rng.integers(0, SIZE - 10, 2)
        draw = [page_of_text, plots, shapes, clouds, None][rng.integers(5)]
        tile = np.full((SIZE, SIZE), rng.integers(0, 256), np.uint8) if draw is None else draw(rng)
        place = image[y : y + height, x : x + width]
        place[:] = cv2.resize(tile, (width, height), interpolation=cv2.INTER_AREA)[
            : len(place), : place.shape[1]
        ]
    if rng.random() < 0.6:
        image[: int(rng.integers(3, 12))] = rng.integers(0, 256)
    return image


def patterns(rng):
    "Gradients, rings, stripes, squares, spots"
    turn = rng.uniform(0, np.pi)
    along = np.cos(turn) * COLUMNS + np.sin(turn) * ROWS
    x, y = rng.uniform(0.2, 0.8, 2)
    distance = np.hypot(COLUMNS - x, ROWS - y)
    squares = int(rng.integers(2, 14))
    waves = [np.sin(2 * np.pi * v * rng.uniform(0.5, 8) + rng.uniform(0, 6)) for v in (COLUMNS, ROWS)]
    choices = (
        along,
        distance,
        np.sin(2 * np.pi * along * rng.uniform(1, 20)),
        ((COLUMNS * squares).astype(int) + (ROWS * squares).astype(int)) % 2,
        waves[0] * waves[1],
        np.exp(-(distance**2) / rng.uniform(0.005, 0.2)),
    )
    image = to_bytes(stretched(choices[rng.integers(len(choices))]))
    return 255 - image if rng.random() < 0.5 else image


def objects(rng):
    "One thing on an even ground, often symmetric: a face, a cup, a silhouette"
    image = np.full((SIZE, SIZE), rng.integers(0, 256), np.uint8)
    width, height = rng.uniform(0.15, 0.5, 2)
    x, y = (COLUMNS - 0.5) / width, (ROWS - 0.5 + rng.normal(0, 0.05)) / height
    power = rng.uniform(1.5, 6)
    inside = np.abs(x) ** power + np.abs(y) ** power < 1
    image[inside] = (shapes(rng) if rng.random() < 0.6 else clouds(rng))[inside]
    for _ in range(rng.integers(0, 6)):
        gray, x, y = int(rng.integers(0, 256)), int(rng.integers(20, 48)), int(rng.integers(15, 80))
        axes = [int(v) for v in rng.integers(2, 16, 2)]
        for column in (x, SIZE - x):
            cv2.ellipse(image, (column, y), axes, float(rng.uniform(0, 180)), 0, 360, gray, -1, cv2.LINE_AA)
    return image


def scenes(rng):
    "Ground and sky, with things"
    horizon = int(rng.uniform(0.2, 0.8) * SIZE)
    image = np.full((SIZE, SIZE), rng.uniform(0, 255))
    image[horizon:] = rng.uniform(0, 255)
    image += clouds(rng) * rng.uniform(0.1, 0.8) - 40
    image = np.clip(image, 0, 255).astype(np.uint8)
    things = shapes(rng, int(rng.integers(3, 20))) > 128
    image[things] = shapes(rng, int(rng.integers(2, 30)))[things]
    return image


def ellipse(x, y, width, height, power=2):
    "1 within, 0 outside, with a soft border"
    distance = np.abs((COLUMNS - x) / width) ** power + np.abs((ROWS - y) / height) ** power
    return 1 / (1 + np.exp(np.clip(12 * (distance - 1), -50, 50)))


def lateral_views(rng):
    "Roughly a chest from the side: spine behind, heart in front, one lung field"
    image = 0.62 * ellipse(0.5, 0.6, 0.42, 0.62, 3)
    image -= 0.5 * ellipse(0.5 + rng.normal(0, 0.03), 0.42, 0.3, 0.36, 2.3)
    image += 0.35 * ellipse(0.36 + rng.normal(0, 0.03), 0.58, 0.15, 0.17)
    image += 0.35 * ellipse(0.5, 1.0, 0.45, 0.22) + 0.3 * ellipse(0.55, 0.05, 0.35, 0.15)
    spine = 0.72 + rng.normal(0, 0.03) - 0.2 * (ROWS - 0.4) ** 2
    bodies = 1 + 0.3 * np.sin(2 * np.pi * ROWS * rng.uniform(9, 13))
    image += 0.25 * np.exp(-(((COLUMNS - spine) / 0.05) ** 2)) * bodies
    image += 0.2 * np.exp(-(((COLUMNS - 0.2 - 0.1 * (ROWS - 0.4) ** 2) / 0.02) ** 2))
    chest = ellipse(0.5, 0.45, 0.35, 0.4)
    for k in range(9):
        rib = ROWS - (0.15 + 0.08 * k + 0.25 * (COLUMNS - 0.5))
        image += 0.05 * np.exp(-((rib / 0.012) ** 2)) * chest
    image += 0.03 * smooth_field(rng, 8)
    image = exposed(stretched(image), rng) + rng.normal(0, 0.01, image.shape)
    return to_bytes(image[:, ::-1] if rng.random() < 0.5 else image)


OTHERS = (shapes, clouds, page_of_text, plots, windows, patterns, objects, scenes, lateral_views)


def other_picture(draw, rng):
    "A picture of one kind, varied"
    image = draw(rng)
    if draw is not lateral_views and rng.random() < 0.35:
        half = image[:, : SIZE // 2]
        image = np.concatenate([half, half[:, ::-1]], 1)
    if draw not in (page_of_text, plots) and rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.5, 5)))
    if rng.random() < 0.3:
        image = to_bytes(image / 255 + rng.normal(0, rng.uniform(0.01, 0.12), image.shape))
    if rng.random() < 0.3:
        image = to_bytes(exposed(image / 255, rng))
    if rng.random() < 0.3:
        image, width = image.copy(), int(rng.integers(4, 34))
        bars = image if rng.random() < 0.5 else image.T
        bars[:width] = bars[-width:] = 0
    return image


# ---- the rule ----


def examples(n, seed):
    "(image, number of its class) of everything that the rule learns from"
    rng = np.random.default_rng([seed, 1])
    for film in draw_films(n, seed):
        image = varied(film, rng)
        yield image, 0
        turns = int(rng.integers(1, 4))
        yield np.rot90(image, turns).copy(), turns
        yield np.rot90(255 - image, int(rng.integers(4)) if rng.random() < 0.5 else 0).copy(), 4
        if rng.random() < 0.5:
            yield np.rot90(put_together_wrongly(film, rng), int(rng.integers(4))).copy(), 5
        for draw in OTHERS:
            if rng.random() < 0.25:
                yield other_picture(draw, rng), 5


def described(pairs):
    "Features and classes; a blank picture has none"
    found = [(picture_features(image), kind) for image, kind in pairs]
    found = [(x, kind) for x, kind in found if x is not None]
    return np.stack([x for x, _ in found]), np.array([kind for _, kind in found])


def fit_rule(features, classes, strength=0.003):
    "Weights of the raw features, (777, 6), and intercepts, (6,)"
    scaler = StandardScaler().fit(features)
    model = LogisticRegression(C=strength, max_iter=300, tol=1e-3).fit(scaler.transform(features), classes)
    weights = model.coef_.T / scaler.scale_[:, None]
    return weights, model.intercept_ - scaler.mean_ @ weights


def probabilities(features, weights, intercepts):
    from scipy.special import softmax

    return softmax(features @ weights + intercepts, axis=1)


def show(path, seed):
    "A sheet of what the rule learns from"
    pairs = list(examples(40, seed))[:240]
    images = [image for image, _ in sorted(pairs, key=lambda pair: pair[1])]
    rows = [np.hstack(images[i : i + 20]) for i in range(0, len(images) - len(images) % 20, 20)]
    cv2.imwrite(str(path), np.vstack(rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--films', type=int, default=2000)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--show', type=Path, help='also write a sheet of what it learns from')
    arguments = parser.parse_args()
    if arguments.show:
        show(arguments.show, arguments.seed)
    weights, intercepts = fit_rule(*described(examples(arguments.films, arguments.seed)))
    whole = np.rint(weights / UNIT).astype(int)
    features, classes = described(examples(max(50, arguments.films // 4), arguments.seed + 1))
    found = probabilities(features, whole * UNIT, intercepts)
    proper, wrong = found[classes == 0, 0], found[classes > 0, 0]
    threshold = round(float(np.quantile(proper, 0.05)), 4)
    print(f'threshold {threshold}: {np.mean(wrong >= threshold):.2%} of {len(wrong):,} wrong pictures pass')
    for k, name in enumerate(CLASSES):
        print(f'{name:<12}', np.bincount(found[classes == k].argmax(1), minlength=len(CLASSES)))
    table = dict(
        about='Is an image an upright frontal chest radiograph? Written by benchmarks/fit_input_checks.py.',
        films=arguments.films,
        seed=arguments.seed,
        classes=list(CLASSES),
        threshold=threshold,
        unit=UNIT,
        intercepts=[round(float(v), 4) for v in intercepts],
        weights=whole.T.tolist(),
    )
    TABLE.write_text(json.dumps(table, separators=(',', ':')).replace('],', '],\n') + '\n', encoding='utf-8')
    print(f'{TABLE}: {TABLE.stat().st_size:,} bytes')


if __name__ == '__main__':
    main()
