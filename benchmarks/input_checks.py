"""How often the input checks of a prediction speak up, kind by kind: what is wrong, and what is right.

    python benchmarks/input_checks.py [--data ../shared/data] [--folder PICTURES ...] [--run RUN] [--misses SHEET.png]

First check (is it an upright frontal chest radiograph?): simulated radiographs that it was not fitted to; the real ones
in --data, each also turned and inverted; photographs that scikit-learn, matplotlib and (where installed) scikit-image
ship; plots by matplotlib; pages in Chromium (where Playwright and Chromium are installed); noise; blank images; the
pictures in --folder, all of them wrong. Colour is not looked at: every picture is read in gray, as a model reads it.
The rule was fitted to drawings alone (benchmarks/fit_input_checks.py), so nothing here was learned from. Lateral
radiographs are measured on rough drawings only: there are no real ones in --data.

Second check (is it unlike the training images of a model?), with --run, a finished run: its own test images, real ones,
and noise. A run that was trained before the check existed gets it fitted first.

Some official NIH images in --data are themselves turned or inverted. They were found by this rule, then looked at
(`TURNED`, `INVERTED`), and are counted apart.
"""

import argparse
import importlib.util
import shutil
import time
from collections import Counter
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from cxr_lib.data.pixels import read_radiograph, to_square
from cxr_lib.prediction.checks import check_familiarity, check_image, unfamiliar

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = {'.png', '.jpg', '.jpeg'}
SIZE = 224


def pictures(folder, size=SIZE):
    "Every picture below a folder that can be read, by file name"
    found = {}
    for path in sorted(p for p in Path(folder).rglob('*') if p.suffix.lower() in SUFFIXES):
        try:
            found[path.name] = read_radiograph(path, size)
        except ValueError as e:
            print(f'left out: {e}')
    return found


def altered(images):
    "Copies that are wrong"
    turned = {f'turned by {90 * k}': [np.rot90(x, k).copy() for x in images] for k in (1, 2, 3)}
    return turned | {'inverted': [255 - x for x in images]}


# ---- what is wrong in another way ----


def photographs():
    "Photographs and other pictures that come with libraries"
    places = [('sklearn', 'datasets/images'), ('matplotlib', 'mpl-data/sample_data'), ('skimage', 'data')]
    found = {}
    for package, folder in places:
        spec = importlib.util.find_spec(package)
        if spec:
            found |= pictures(Path(spec.submodule_search_locations[0]) / folder)
        else:
            print(f'{package} is not installed: its pictures are left out')
    return list(found.values())


def draw_plot(axes, kind, rng):
    n = int(rng.integers(5, 60))
    values = rng.normal(size=n).cumsum()
    if kind == 'line':
        axes.plot(values)
    elif kind == 'scatter':
        axes.scatter(values, rng.normal(size=n))
    elif kind == 'bars':
        axes.bar(range(n), np.abs(values))
    elif kind == 'histogram':
        axes.hist(rng.normal(size=500), 30)
    elif kind == 'image':
        axes.imshow(cv2.GaussianBlur(rng.normal(size=(40, 40)), (0, 0), 4), cmap='gray')
    else:
        axes.pie(np.abs(values) + 0.1)


def plots(n=60):
    "Plots by matplotlib"
    import matplotlib.pyplot as plt

    rng, found = np.random.default_rng(0), []
    kinds = ('line', 'scatter', 'bars', 'histogram', 'image', 'pie')
    for k in range(n):
        shape = (1, 1) if k % 2 else (2, 2)
        figure, axes = plt.subplots(*shape, figsize=rng.uniform(3, 8, 2), squeeze=False)
        for ax in axes.flat:
            draw_plot(ax, kinds[(k // 2) % len(kinds)], rng)
        figure.canvas.draw()
        gray = cv2.cvtColor(np.asarray(figure.canvas.buffer_rgba()), cv2.COLOR_RGBA2GRAY)
        found.append(to_square(gray, SIZE))
        plt.close(figure)
    return found


def page(k, rng):
    "A web page: text, a table, cards, or a form"
    words = lambda n: ' '.join(
        ''.join(chr(rng.integers(97, 123)) for _ in range(rng.integers(2, 10))) for _ in range(n)
    )
    text = ''.join(f'<h2>{words(4)}</h2><p>{words(60)}</p>' for _ in range(5))
    cells = ''.join(f'<tr>{"".join(f"<td>{words(1)}</td>" for _ in range(6))}</tr>' for _ in range(20))
    hue = lambda: f'hsl({rng.integers(360)} 60% {rng.integers(20, 90)}%)'
    cards = ''.join(
        f'<div style="float:left;margin:9px;padding:30px;width:22%;background:{hue()}">{words(12)}</div>'
        for _ in range(9)
    )
    form = ''.join(
        f'<p>{words(2)} <input value="{words(2)}"> <button>{words(1)}</button></p>' for _ in range(9)
    )
    ink, paper = ('#eee', '#222') if k % 3 == 0 else ('#222', '#fff')
    body = (text, f'<table border=1>{cells}</table>', cards, form)[k % 4]
    return f'<body style="color:{ink};background:{paper};font-family:sans-serif"><nav>{words(8)}</nav>{body}'


def screenshots(n=24):
    "Pages in Chromium"
    program = shutil.which('chromium') or shutil.which('google-chrome')
    if not program or not importlib.util.find_spec('playwright'):
        print('no Playwright or no Chromium: screenshots are left out')
        return []
    from playwright.sync_api import sync_playwright

    rng, found = np.random.default_rng(0), []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=['--no-sandbox'])
        for k in range(n):
            shape = dict(width=int(rng.integers(390, 1600)), height=int(rng.integers(600, 1000)))
            tab = browser.new_page(viewport=shape)
            tab.set_content(page(k, rng))
            image = cv2.imdecode(np.frombuffer(tab.screenshot(), np.uint8), cv2.IMREAD_GRAYSCALE)
            found.append(to_square(image, SIZE))
            tab.close()
        browser.close()
    return found


def noise(n=60):
    "White noise, and coarser noise"
    rng = np.random.default_rng(0)
    sides = [(SIZE, SIZE // 4, SIZE // 16)[k % 3] for k in range(n)]
    return [to_square(rng.integers(0, 256, (s, s)).astype(np.uint8), SIZE) for s in sides]


def blanks():
    return [np.full((SIZE, SIZE), v, np.uint8) for v in range(0, 256, 15)]


# ---- what is right ----


@cache
def drawn(n=200):
    "Simulated radiographs that the rule was not fitted to, and rough lateral views"
    from fit_input_checks import draw_films, lateral_views

    rng = np.random.default_rng(7)
    return [to_square(x, SIZE) for x in draw_films(n, 77)], [lateral_views(rng) for _ in range(n)]


#: Official NIH images that are not upright: found by the rule, then looked at.
TURNED = set(
    (
        '00000061_025 00001880_006 00002117_004 00002265_000 00002451_012 00002599_004 00003081_000 00003490_011 '
        '00004573_000 00006763_012 00007098_003 00008168_008 00008980_003 00009600_020 00010531_041 00010597_000 '
        '00010994_010 00011757_005 00012681_003 00012935_022 00013594_050 00014285_013 00014439_000 00015040_002 '
        '00015920_006 00016182_000 00016287_000 00016435_000 00016831_003 00017007_002 00017158_024 00017325_007 '
        '00017556_005 00017779_000 00017824_000 00017964_001 00018276_000 00018577_000 00019395_010 00019470_001 '
        '00019473_002 00020826_008 00021068_000 00021160_000 00021299_001 00021916_007 00022463_000 00023684_002 '
        '00026986_007 00027539_001 00029358_004'
    ).split()
)
INVERTED = {'00017625_000'}


def real(data):
    "Set -> real frontal radiographs, by file name"
    sets = {
        s: pictures(data / s)
        for s in ('nih', 'nih_test_extra', 'nih_trainval', 'covid')
        if (data / s).is_dir()
    }
    file = data / 'medmnist' / 'pneumoniamnist.npz'
    if file.is_file():
        images = np.load(file)['test_images']
        sets['medmnist (28 px)'] = {f'{k}': to_square(x, SIZE) for k, x in enumerate(images)}
    return sets


# ---- the table ----


class Table:
    "Counts what is said about each kind"

    def __init__(self):
        self.rows, self.missed = [], []

    def add(self, kind, images, wrong, names=None):
        codes = [(check_image(x) or [None])[0] for x in images]
        said = Counter(f.code for f in codes if f)
        self.rows.append(
            dict(
                kind=kind,
                images=len(images),
                wrong=wrong,
                flagged=np.mean([f is not None for f in codes]) if images else np.nan,
                said=', '.join(f'{k} {v}' for k, v in said.most_common()),
            )
        )
        bad = [i for i, f in enumerate(codes) if (f is not None) != wrong]
        self.missed += [images[i] for i in bad]
        if bad and names:
            print(
                f'{kind}: '
                + ', '.join(f'{names[i]} ({codes[i].code if codes[i] else "passes"})' for i in bad)
            )

    def print(self):
        table = pd.DataFrame(self.rows)
        print(table.assign(flagged=table.flagged.map('{:.1%}'.format)).to_string(index=False))
        for wrong, name in ((True, 'wrong'), (False, 'proper')):
            part = table[(table.wrong == wrong) & (table.images > 0)]
            rate = np.average(part.flagged, weights=part.images)
            print(f'{name}: {rate:.2%} of {part.images.sum():,} images flagged')


def first_check(data, folders):
    "Every kind"
    table = Table()
    films, laterals = drawn()
    table.add('simulated', films, False)
    for name, images in altered(films).items():
        table.add(f'simulated, {name}', images, True)
    table.add('rough lateral drawings', laterals, True)
    for name, images in real(data).items():
        apart = [f for f in images if Path(f).stem in TURNED | INVERTED]
        names = [f for f in images if f not in apart]
        table.add(name, [images[f] for f in names], False, names)
        if apart:
            table.add(f'{name}, wrong in the official files', [images[f] for f in apart], True, apart)
        for how, copies in altered([images[f] for f in names]).items():
            table.add(f'{name}, {how}', copies, True)
    others = dict(photographs=photographs(), plots=plots(), screenshots=screenshots(), noise=noise())
    others |= dict(blank=blanks()) | {str(folder): list(pictures(folder).values()) for folder in folders}
    for name, images in others.items():
        table.add(name, images, True)
    return table


def second_check(name, data):
    "How far test images, real images and noise are from the training images of a run"
    import torch
    from cxr_lib.data.catalogue import data_root
    from cxr_lib.foundations.files import read_json
    from cxr_lib.foundations.run import run_folder
    from cxr_lib.model.saved import load_model
    from cxr_lib.prediction.checks import describe_images, study_familiarity
    from cxr_lib.training.dataset import StudyData

    run = run_folder(name)
    model, tokenizer = load_model(run / 'model')
    size = model.config.image_size
    studies = pd.read_parquet(run / 'studies_with_notes.parquet')
    file = run / 'model' / 'familiarity.json'
    if file.is_file():
        stored = read_json(file)
    else:
        stored = study_familiarity(model, StudyData(studies, data_root(run), model.config, tokenizer))
    shapes = check_familiarity(stored)
    test = [read_radiograph(data_root(run) / f, size) for f in studies.image[studies.split == 'test']]
    rng = np.random.default_rng(0)
    sets = {'its own test images': test, 'its own, inverted': [255 - x for x in test]}
    sets |= {k: [to_square(x, size) for x in v.values()] for k, v in real(data).items()}
    sets['white noise'] = list(rng.integers(0, 256, (50, size, size)).astype(np.uint8))
    for kind, images in sets.items():
        parts = []
        with torch.no_grad():
            for at in range(0, len(images), 64):
                pixels = np.stack(images[at : at + 64])
                features = describe_images(pixels, model.encode_image(torch.from_numpy(pixels)))
                parts.append({n: unfamiliar({n: s}, features) for n, s in shapes.items()})
        ratios = {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}
        either = np.max(list(ratios.values()), 0)
        by = ', '.join(f'{n} alone {np.mean(v > 1):.1%}' for n, v in ratios.items())
        far = f'{np.mean(either > 1):7.2%} flagged ({by}); median {np.median(either):.2f}'
        print(f'{kind:<22} {len(images):>5} images, {far}')


def sheet(images, path):
    small = [cv2.resize(x, (112, 112), interpolation=cv2.INTER_AREA) for x in images]
    small += [np.zeros((112, 112), np.uint8)] * (-len(small) % 14)
    cv2.imwrite(str(path), np.vstack([np.hstack(small[i : i + 14]) for i in range(0, len(small), 14)]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--data', type=Path, default=ROOT.parent / 'shared' / 'data')
    parser.add_argument('--folder', type=Path, nargs='*', default=[], help='pictures that are no radiographs')
    parser.add_argument('--run', help='a finished run: its second check too')
    parser.add_argument('--misses', type=Path, help='write a sheet of what the first check got wrong')
    arguments = parser.parse_args()
    table = first_check(arguments.data, arguments.folder)
    table.print()
    if arguments.misses and table.missed:
        sheet(table.missed, arguments.misses)
    films = drawn()[0]
    start = time.process_time()
    for film in films:
        check_image(film)
    print(f'{1000 * (time.process_time() - start) / len(films):.1f} ms of processor time per image')
    if arguments.run:
        second_check(arguments.run, arguments.data)


if __name__ == '__main__':
    main()
