"""Images: every file ends as a picture or a named error; the cache is whole or not opened; copies are found."""

import errno
import os
import shutil
import signal
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import cxr_lib.data.images
from cxr_lib.data.images import CHUNK, images_that_fail, pixel_cache, scan_images
from cxr_lib.data.augmentation import augment
from cxr_lib.data.duplicates import near_duplicates
from cxr_lib.data.pixels import read_gray, read_radiograph, to_square
from cxr_lib.foundations.chunks import ChunkedFile
from cxr_lib.foundations.core import MAX_PIXELS, RadiographError

SHARED = ROOT.parent / 'shared' / 'data'
RAMP = np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1))  # brighter to the right


def png(width, height, pixels=b'\0' * 4000, bits=8, kind=0):
    "A PNG whose header may promise more than its data hold; kind 0 gray, 2 colour, 4 gray and transparency, 6 both"

    def chunk(name, data):
        return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))

    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, bits, kind, 0, 0, 0))
        + chunk(b'IDAT', zlib.compress(pixels))
        + chunk(b'IEND', b'')
    )


def deep_png(path, kind):
    "A 12-bit film in a PNG of 16 bits with colour, transparency or both, which Pillow reads as 8 bits"
    value, channels = RAMP.astype('>u2') * 16, {2: 3, 4: 2, 6: 4}[kind]
    planes = [value] * channels if kind == 2 else [value] * (channels - 1) + [np.full_like(value, 65535)]
    path.write_bytes(
        png(64, 48, b''.join(b'\0' + row.tobytes() for row in np.stack(planes, -1).astype('>u2')), 16, kind)
    )


def save(path, image=RAMP, **options):
    Image.fromarray(image).save(path, **options) if isinstance(image, np.ndarray) else image.save(
        path, **options
    )
    return path


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def cut(path, share):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def fill_tail(path, share):
    "A download that reserved its space and stopped: the right length, then zeros"
    data = path.read_bytes()
    keep = int(len(data) * share)
    path.write_bytes(data[:keep] + bytes(len(data) - keep))


MALFORMED = {
    'cut.jpg': (lambda p: cut(save(p), 0.6), 'damaged or cut short'),
    'cut.png': (lambda p: cut(save(p), 0.7), 'damaged or cut short'),
    'empty.png': (lambda p: p.write_bytes(b''), 'file is empty'),
    'text.jpg': (lambda p: p.write_text('patient was not filmed'), 'not an image file'),
    'page.png': (lambda p: p.write_text('<html>404 Not Found</html>'), 'not an image file'),
    'bomb.png': (lambda p: p.write_bytes(png(30_000, 30_000)), 'Resize it first'),
    'large.png': (lambda p: p.write_bytes(png(10_500, 10_500)), 'Resize it first'),
    'short.png': (lambda p: p.write_bytes(png(500, 500, b'\0' * 90)), 'damaged or cut short'),
    'moving.gif': (
        lambda p: save(p, save_all=True, append_images=[Image.fromarray(255 - RAMP)]),
        'holds 2 frames',
    ),
    'pages.tif': (
        lambda p: save(p, save_all=True, append_images=[Image.fromarray(255 - RAMP)]),
        'holds 2 frames',
    ),
    'holes.tif': (lambda p: save(p, np.where(RAMP > 100, np.nan, RAMP).astype(np.float32)), 'not finite'),
    'tail of zeros.jpg': (lambda p: fill_tail(save(p), 0.6), 'damaged or cut short'),
    'tail of zeros.png': (lambda p: fill_tail(save(p), 0.6), 'damaged or cut short'),
    'zeros.jpg': (lambda p: p.write_bytes(bytes(5000)), 'not an image file'),
    'head only.jpg': (lambda p: p.write_bytes(b'\xff\xd8\xff\xe0\x00\x10JFIF\x00'), ''),
    'archive.png': (lambda p: p.write_bytes(b'\x1f\x8b\x08\x00' + bytes(200)), 'not an image file'),
    'cut.tif': (lambda p: cut(save(p), 0.5), ''),
    'cut.gif': (lambda p: cut(save(p), 0.5), 'damaged or cut short'),
    'large scan.jpg': (
        lambda p: cut(save(p, np.tile(RAMP, (25, 25))), 0.6),
        'damaged or cut short',
    ),  # decoded at a reduced scale
    'no width.png': (lambda p: p.write_bytes(png(0, 10)), ''),
    'no such film.dcm': (lambda p: None, 'no such file'),
    'folder.png': (lambda p: p.mkdir(), 'no such file'),
    'absent.png': (lambda p: None, 'no such file'),
}


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
@pytest.mark.parametrize('name', MALFORMED)
def test_a_malformed_file_is_refused_by_name_with_a_remedy(tmp_path, name):
    make, remedy = MALFORMED[name]
    make(tmp_path / name)
    with pytest.raises(RadiographError) as error:
        read_radiograph(tmp_path / name, 32)
    assert name in str(error.value) and remedy in str(error.value)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    (tmp_path / 'bomb.png').write_bytes(png(30_000, 30_000, b'\0' * 1_000_000))
    (tmp_path / 'large.png').write_bytes(png(10_500, 10_500))
    assert (tmp_path / 'bomb.png').stat().st_size < 4_000 and 10_500**2 > MAX_PIXELS
    from PIL import ImageFile

    monkeypatch.setattr(ImageFile.ImageFile, 'load', lambda self: pytest.fail('decoded'))
    for name in ('bomb.png', 'large.png'):
        with warnings.catch_warnings(), pytest.raises(RadiographError, match='than the limit'):
            warnings.simplefilter('ignore')
            read_gray(tmp_path / name)


FORMATS = {
    'gray.png': lambda p: save(p),
    'gray.jpg': lambda p: save(p, quality=95),
    'gray.bmp': lambda p: save(p),
    'still.gif': lambda p: save(p),
    'cmyk.jpg': lambda p: save(p, Image.fromarray(RAMP).convert('CMYK'), quality=95),
    'palette.png': lambda p: save(p, Image.fromarray(RAMP).convert('P')),
    'colour.png': lambda p: save(p, Image.fromarray(RAMP).convert('RGB')),
    'alpha.png': lambda p: save(p, Image.fromarray(RAMP).convert('RGBA')),
    'alpha gray.png': lambda p: save(p, Image.fromarray(RAMP).convert('LA')),
    'deep.png': lambda p: save(p, RAMP.astype(np.uint16) * 200),
    'deep little-endian.tif': lambda p: save(p, RAMP.astype('<u2') * 200),
    'deep big-endian.tif': lambda p: save(p, (RAMP.astype(np.uint16) * 200).astype('>u2')),
    'float.tif': lambda p: save(p, RAMP / np.float32(252)),
    'one bit.png': lambda p: save(p, Image.fromarray(RAMP > 120)),
    'white is zero.tif': lambda p: save(p, (255 - RAMP).astype(np.uint16) * 200, tiffinfo={262: 0}),
    'deep colour.png': lambda p: deep_png(p, 2),
    'deep with transparency.png': lambda p: deep_png(p, 4),
    'deep colour with transparency.png': lambda p: deep_png(p, 6),
    'progressive.jpg': lambda p: save(p, quality=95, progressive=True),
    'not subsampled.jpg': lambda p: save(p, Image.fromarray(RAMP).convert('RGB'), quality=95, subsampling=0),
    'RGB.jpg': lambda p: save(p, Image.fromarray(RAMP).convert('RGB'), quality=95, keep_rgb=True),
    'film.bmp': lambda p: save(p),
    'film.webp': lambda p: save(p, lossless=True),
    'film without suffix': lambda p: save(p, format='PNG'),
    'a path with spaces (1).png': lambda p: save(p),
    'Röntgen_胸部.png': lambda p: save(p),
    "quote's & %20.png": lambda p: save(p),
}


@pytest.mark.parametrize('name', FORMATS)
def test_every_still_format_gives_the_same_film(tmp_path, name):
    FORMATS[name](tmp_path / name)
    film = read_gray(tmp_path / name)
    assert film.dtype == np.uint8 and film.shape == RAMP.shape
    expected = 255 * (RAMP > 120) if name == 'one bit.png' else RAMP
    assert np.abs(film.astype(int) - expected).max() <= (16 if name == 'palette.png' else 4)


def test_a_reversed_palette_is_resolved_not_read_as_gray(tmp_path):
    indexed = Image.fromarray(RAMP).copy()
    indexed.putpalette([v for i in range(256) for v in (255 - i,) * 3])
    save(tmp_path / 'reversed.png', indexed)
    assert np.array_equal(read_gray(tmp_path / 'reversed.png'), 255 - RAMP)


@pytest.mark.parametrize(
    'name, image',
    [
        ('film.jpg', RAMP),
        ('film.png', RAMP),
        ('film.tif', RAMP),
        ('deep.png', RAMP.astype(np.uint16) * 200),
        ('deep.tif', (RAMP.astype(np.uint16) * 200).astype('>u2')),
    ],
)
@pytest.mark.parametrize(
    'orientation, upright',
    [(1, lambda a: a), (3, lambda a: a[::-1, ::-1]), (6, lambda a: np.rot90(a, -1)), (8, np.rot90)],
)
def test_exif_orientation_is_honoured(tmp_path, name, image, orientation, upright):
    save(tmp_path / name, image, exif=turned(orientation))
    film, expected = read_gray(tmp_path / name), upright(RAMP)
    assert film.shape == expected.shape and np.abs(film.astype(int) - expected).max() <= 4


def test_one_pixel_and_one_gray_level_are_films(tmp_path):
    save(tmp_path / 'one.png', RAMP[:1, 40:41])
    assert read_radiograph(tmp_path / 'one.png', 16).shape == (16, 16)
    save(tmp_path / 'flat.png', np.full((20, 30), 40_000, np.uint16))
    assert read_radiograph(tmp_path / 'flat.png', 16).max() == 0  # no range to scale


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(['png', 'jpg', 'tif', 'gif']),
    edits=st.lists(st.tuples(st.integers(0, 399), st.integers(0, 255)), min_size=1, max_size=6),
    share=st.sampled_from([1.0, 0.9, 0.4]),
)
@pytest.mark.filterwarnings('ignore')
def test_a_damaged_file_is_a_film_or_a_radiograph_error_and_nothing_else(
    tmp_path_factory, kind, edits, share
):
    path = save(tmp_path_factory.getbasetemp() / f'damaged.{kind}')
    data = bytearray(path.read_bytes())
    for at, value in edits:
        data[at % len(data)] = value
    path.write_bytes(bytes(data[: int(len(data) * share)]))
    try:
        assert read_gray(path).ndim == 2
    except RadiographError as error:
        assert path.name in str(error)


@pytest.mark.parametrize('fit', ['pad', 'crop'])
@pytest.mark.parametrize('kind', ['gray', 'colour', 'CMYK', 'turned'])
@settings(max_examples=4, deadline=None)
@given(h=st.integers(1010, 1200), w=st.integers(1010, 1200), size=st.sampled_from([32, 64, 128, 224, 300]))
def test_a_large_jpeg_decoded_at_a_reduced_scale_agrees_with_the_whole_one(
    tmp_path_factory, kind, fit, h, w, size
):
    y, x = np.mgrid[:h, :w]
    film = (128 + 60 * np.sin(x / 120) + 50 * np.cos(y / 150) + 10 * ((x // 190 + y // 170) % 2)).astype(
        np.uint8
    )  # soft, with some edges, as films are
    image = Image.fromarray(film)
    path = save(
        tmp_path_factory.getbasetemp() / 'large.jpg',
        image if kind in ('gray', 'turned') else image.convert({'colour': 'RGB', 'CMYK': 'CMYK'}[kind]),
        quality=92,
        **(dict(exif=turned(6)) if kind == 'turned' else {}),
    )
    part, whole = read_gray(path, size, fit), read_gray(path)
    assert (whole.shape if kind != 'turned' else whole.shape[::-1]) == (h, w)
    assert (max if fit == 'pad' else min)(part.shape) >= 2 * size or part.shape == whole.shape
    assert size > 128 or part.size * 4 <= whole.size * 1.02  # and it is reduced where that helps
    assert np.abs(read_radiograph(path, size, fit).astype(int) - to_square(whole, size, fit)).mean() < 1


@pytest.mark.parametrize(
    'name, head',
    [
        ('film.dcm', b'anything'),
        ('FILM.DICOM', b'anything'),
        ('film.dic', b'anything'),
        ('without suffix', bytes(128) + b'DICM'),
        ('named.png', bytes(128) + b'DICM'),
    ],
)
def test_dicom_files_go_to_the_dicom_reader_by_suffix_or_by_mark(tmp_path, monkeypatch, name, head):
    monkeypatch.setattr('cxr_lib.data.pixels.read_dicom', lambda path: RAMP)
    (tmp_path / name).write_bytes(head)
    assert np.array_equal(read_gray(tmp_path / name), RAMP)
    assert scan_images(tmp_path, [name], progress=False)[0].loc[0, ['width', 'height', 'mode']].tolist() == [
        64,
        48,
        'DICOM',
    ]


def test_a_refusal_by_the_dicom_reader_passes_through(tmp_path, monkeypatch):
    def refuse(path):
        raise RadiographError(f'{path}: 2 frames')

    monkeypatch.setattr('cxr_lib.data.pixels.read_dicom', refuse)
    (tmp_path / 'film.dcm').write_bytes(b'x')
    with pytest.raises(RadiographError, match='film.dcm: 2 frames'):
        read_radiograph(tmp_path / 'film.dcm')


@settings(max_examples=60, deadline=None)
@given(h=st.integers(1, 300), w=st.integers(1, 300), size=st.integers(8, 128))
def test_to_square_keeps_the_aspect_ratio_and_centres(h, w, size):
    square = to_square(np.full((h, w), 200, np.uint8), size)
    rows, columns = np.flatnonzero(square.any(1)), np.flatnonzero(square.any(0))
    assert square.shape == (size, size) and max(len(rows), len(columns)) == size
    assert (
        abs(len(rows) - max(1, h * size / max(h, w))) <= 0.5
        and abs(len(columns) - max(1, w * size / max(h, w))) <= 0.5
    )
    for seen in (rows, columns):
        assert abs(seen[0] - (size - 1 - seen[-1])) <= 1
    assert (square[rows][:, columns] == 200).all()


@settings(max_examples=60, deadline=None)
@given(h=st.integers(1, 300), w=st.integers(1, 300), size=st.integers(8, 128))
def test_a_crop_has_no_bars_and_is_the_middle_of_the_film(h, w, size):
    assert (to_square(np.full((h, w), 200, np.uint8), size, 'crop') == 200).all()
    long = max(h, w)
    ramp = np.linspace(0, 255, long)  # along the longer side: the middle is as bright as the whole
    film = np.round(
        np.broadcast_to(ramp, (h, w)) if w >= h else np.broadcast_to(ramp[:, None], (h, w))
    ).astype(np.uint8)
    assert abs(to_square(film, size, 'crop').mean() - 127.5) <= 1 + 255 * (1 / long + min(h, w) / long / size)


def test_a_square_film_is_the_same_padded_and_cropped():
    film = np.random.default_rng(0).integers(0, 256, (90, 90), np.uint8)
    for size in (32, 90, 120):
        assert np.array_equal(to_square(film, size), to_square(film, size, 'crop'))


def test_a_strip_of_one_by_ten_thousand_is_a_film_either_way():
    for fit in ('pad', 'crop'):
        assert to_square(np.full((1, 10_000), 9, np.uint8), 64, fit).max() == 9


def test_an_unknown_fit_names_the_choices(tmp_path):
    with pytest.raises(ValueError, match="'pad'.*'crop'"):
        read_radiograph(save(tmp_path / 'film.png'), 32, 'stretch')
    with pytest.raises(ValueError, match="'pad'.*'crop'"):
        pixel_cache(tmp_path, ['film.png'], 32, tmp_path / 'cache', fit='stretch')
    with pytest.raises(ValueError, match="'quick'.*'full'"):
        pixel_cache(tmp_path, ['film.png'], 32, tmp_path / 'cache', verify='no')


# Looking at every file


def test_a_scan_tells_size_intensities_and_thumbnail_of_each_image_and_why_others_fail(tmp_path):
    film = np.random.default_rng(0).integers(0, 256, (60, 90), np.uint8)
    film[:30] = 0
    film[50:, :9] = 255
    save(tmp_path / 'b.png', film)
    save(tmp_path / 'a.png', RAMP.astype(np.uint16) * 200)
    (tmp_path / 'bad.png').write_text('no')
    table, thumbnails = scan_images(
        tmp_path, ['b.png', 'bad.png', 'a.png', 'absent.png'], progress=False, workers=2
    )
    assert (
        table.image.tolist() == ['b.png', 'bad.png', 'a.png', 'absent.png']
        and thumbnails.shape == (4, 32, 32)
        and thumbnails.dtype == np.uint8
    )
    b, bad, a, absent = (row for _, row in table.iterrows())
    assert (
        (b.width, b.height, b['mode'], a['mode']) == (90, 60, 'L', 'I;16')
        and b.error is None
        and a.error is None
    )
    assert np.allclose(
        [b['mean'], b.sd, b.black, b.white],
        [film.mean(), film.std(), (film == 0).mean(), (film == 255).mean()],
    )
    assert (b.p1, b.p50, b.p99) == tuple(
        np.sort(film, axis=None)[[int(np.ceil(q * film.size)) - 1 for q in (0.01, 0.5, 0.99)]]
    )
    assert np.array_equal(thumbnails[0], read_radiograph(tmp_path / 'b.png', 32)) and not thumbnails[1].any()
    assert (
        'bad.png' in bad.error
        and 'not an image' in bad.error
        and 'no such file' in absent.error
        and np.isnan(bad['mean'])
    )


def test_the_images_that_fail_are_listed_in_order_with_their_reasons(tmp_path):
    for i in range(20):
        save(tmp_path / f'{i}.png')
    for i in (3, 11, 17):
        cut(tmp_path / f'{i}.png', 0.5)
    failed = images_that_fail(tmp_path, [f'{i}.png' for i in range(20)], progress=False)
    assert [i for i, _ in failed] == ['3.png', '11.png', '17.png'] and all(
        i in why and 'cut short' in why for i, why in failed
    )
    assert images_that_fail(tmp_path, ['1.png'], progress=False) == [] and scan_images(
        tmp_path, [], progress=False
    )[1].shape == (0, 32, 32)


# The cache

N = 3 * CHUNK + 4  # three chunks and a bit


@pytest.fixture
def films(tmp_path):
    for i in range(N):
        save(tmp_path / f'{i}.png', RAMP[:8, :12] + np.uint8(i))
    return tmp_path


@pytest.fixture
def decoded(monkeypatch):
    "Names of the images that this process decodes"
    calls, read = [], cxr_lib.data.images.read_radiograph

    def counting(path, *args):
        calls.append(os.path.basename(path))
        return read(path, *args)

    monkeypatch.setattr(cxr_lib.data.images, 'read_radiograph', counting)
    return calls


def names(*numbers):
    return [f'{i}.png' for i in (numbers or range(N))]


def build(root, images=None, size=16, **options):
    return pixel_cache(root, images or names(), size, root / 'cache', progress=False, **options)


def caches(root):
    return sorted(p for p in (root / 'cache').iterdir() if not p.name.startswith('.'))


def is_right(pixels, root, images=None):
    return all(
        np.array_equal(p, read_radiograph(root / i, pixels.shape[1]))
        for p, i in zip(pixels, images or names(), strict=True)
    )


BUILDER = """
import os, sys, time, cxr_lib.data.images as im
root, stop, progress = sys.argv[1], sys.argv[2], len(sys.argv) > 3
read, log = im.read_radiograph, open(root + '/decoded.txt', 'a')
def logged(path, *args):
    if os.path.basename(path) == stop: print('half', flush=True); time.sleep(60)
    print(os.path.basename(path), file=log, flush=True); time.sleep(.003)
    return read(path, *args)
im.read_radiograph = logged
names = [f'{i}.png' for i in range(int(os.environ['N']))]
pixels = im.pixel_cache(root, names, 16, root + '/cache', progress=progress, workers=1)
print('sum', int(pixels.sum()), flush=True)
"""


def builder(root, stop='', *more):
    return subprocess.Popen(
        [sys.executable, '-c', BUILDER, str(root), stop, *more],
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'N': str(N)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def test_the_cache_equals_direct_reading_is_opened_the_next_time_and_read_only(films, decoded):
    pixels = build(films)
    assert (
        pixels.shape == (N, 16, 16)
        and pixels.dtype == np.uint8
        and isinstance(pixels, np.memmap)
        and sorted(decoded) == sorted(names())
    )
    decoded.clear()
    assert is_right(build(films, verify='full'), films) and decoded == []
    with pytest.raises(ValueError):
        pixels[0, 0, 0] = 1  # a caller can't spoil it for the next
    assert is_right(
        np.load(caches(films)[0] / 'pixels.npy'), films
    )  # a plain array file for any other program


def test_no_images_are_an_empty_array_and_one_listed_twice_is_there_twice(films):
    assert pixel_cache(films, [], 16, films / 'cache').shape == (0, 16, 16)
    assert is_right(build(films, names(5, 2, 5)), films, names(5, 2, 5))


def test_a_changed_file_gets_a_new_cache_in_which_only_it_is_decoded(films, decoded):
    before = np.array(build(films))
    decoded.clear()
    save(films / '7.png', 255 - RAMP)
    os.utime(films / '7.png', ns=(1, 1))
    after = build(films)
    assert (
        decoded == ['7.png']
        and len(caches(films)) == 2
        and is_right(after, films)
        and not np.array_equal(before, after)
    )


def test_a_file_of_the_same_size_and_another_time_of_change_is_another_file(films, decoded):
    build(films)
    decoded.clear()
    os.utime(films / '7.png', ns=(1, 1_000_000_007))
    build(films)
    assert decoded == ['7.png']


def test_size_fit_order_and_version_decide_the_cache(films, monkeypatch, decoded):
    one, other, larger, cropped = (
        build(films),
        build(films, names()[::-1]),
        build(films, size=24),
        build(films, fit='crop'),
    )
    assert (
        np.array_equal(one, other[::-1])
        and larger.shape == (N, 24, 24)
        and not np.array_equal(one, cropped)
        and len(caches(films)) == 4
    )
    assert np.array_equal(cropped[3], read_radiograph(films / '3.png', 16, 'crop'))
    decoded.clear()
    monkeypatch.setattr(cxr_lib.data.images, 'PREPROCESSING', -1)
    build(films)
    assert len(decoded) == N and len(caches(films)) == 5


def test_a_moved_data_set_finds_its_cache(films, decoded, tmp_path_factory):
    build(films)
    decoded.clear()
    moved = tmp_path_factory.mktemp('elsewhere') / 'data'
    shutil.move(films, moved)
    assert is_right(build(moved), moved) and decoded == []


def test_a_copied_cache_is_checked_whole_once_and_opened(films, decoded):
    build(films)
    decoded.clear()
    folder = caches(films)[0]
    shutil.copytree(folder, films / 'copy', copy_function=shutil.copyfile)
    shutil.rmtree(folder)
    shutil.move(films / 'copy', folder)
    assert is_right(build(films), films) and decoded == []
    stat = (folder / 'pixels.npy').stat()
    assert f'{stat.st_mtime_ns}' in (folder / 'meta.json').read_text()  # and the next opening is quick


def test_a_build_that_is_killed_goes_on_with_what_is_not_done(films, decoded):
    job = builder(films, f'{2 * CHUNK + 6}.png')
    try:
        assert job.stdout.readline().strip() == 'half'
    finally:
        job.send_signal(signal.SIGKILL)
        job.communicate()
    folder = caches(films)[0]
    assert (
        not (folder / 'meta.json').exists()
        and len((films / 'decoded.txt').read_text().split()) == 2 * CHUNK + 6
    )
    with (folder / 'pixels.npy').open('r+b') as f:
        f.seek(128 + (2 * CHUNK + 1) * 256)
        f.write(b'half a chunk')  # the kill may have come within a write
    with (folder / 'progress.jsonl').open('a') as f:
        f.write('[2, 12')
    assert is_right(build(films), films) and sorted(decoded) == sorted(names()[2 * CHUNK :])
    decoded.clear()
    assert is_right(build(films, verify='full'), films) and decoded == []


def test_two_builders_at_once_decode_every_image_once(films):
    jobs = [builder(films), builder(films)]
    said = [job.communicate(timeout=60)[0] for job in jobs]
    assert said[0] == said[1] and said[0].startswith('sum') and all(job.returncode == 0 for job in jobs)
    assert sorted((films / 'decoded.txt').read_text().split()) == sorted(names()) and is_right(
        build(films), films
    )


def test_a_builder_that_waits_takes_over_from_one_that_is_killed(films):
    first = builder(films, f'{CHUNK + 1}.png')
    try:
        assert first.stdout.readline().strip() == 'half'
        second = builder(films, '', 'progress')
        assert 'waiting' in second.stdout.readline()
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    assert second.communicate(timeout=60)[0].startswith('sum') and second.returncode == 0
    log = (films / 'decoded.txt').read_text().split()
    assert sorted(log[CHUNK + 1 :]) == sorted(names()[CHUNK:]) and is_right(build(films), films)


def flip(folder, at, keep_time=False):
    stat = (folder / 'pixels.npy').stat()
    with (folder / 'pixels.npy').open('r+b') as f:
        f.seek(at)
        byte = f.read(1)[0]
        f.seek(at)
        f.write(bytes([byte ^ 1]))
    if keep_time:
        os.utime(folder / 'pixels.npy', ns=(stat.st_atime_ns, stat.st_mtime_ns))


DAMAGE = {
    'a flipped bit': lambda f: flip(f, 128 + 40 * 256),
    'a flipped bit in the last image': lambda f: flip(f, 128 + N * 256 - 1),
    'a flipped bit in the header': lambda f: flip(f, 60),
    'a flipped bit that the file system did not see': lambda f: flip(f, 128 + 40 * 256, keep_time=True),
    'a cut file': lambda f: os.truncate(f / 'pixels.npy', 128 + 50 * 256),
    'an empty file': lambda f: os.truncate(f / 'pixels.npy', 0),
    'a longer file': lambda f: os.truncate(f / 'pixels.npy', 10**6),
    'no file': lambda f: (f / 'pixels.npy').unlink(),
    'zeros': lambda f: (f / 'pixels.npy').write_bytes(bytes(128 + N * 256)),
    'a damaged note of completion': lambda f: (f / 'meta.json').write_text('{"changed'),
    'another note of completion': lambda f: (f / 'meta.json').write_text('[]'),
    'no record': lambda f: (f / 'progress.jsonl').unlink(),
    'a damaged record': lambda f: (f / 'progress.jsonl').write_bytes(b'\xff[0, 1, []]\n[1]\nnull\n'),
}


@pytest.mark.parametrize('kind', DAMAGE)
def test_damage_to_a_cache_is_found_on_opening_said_and_repaired(films, decoded, kind):
    build(films)
    decoded.clear()
    DAMAGE[kind](caches(films)[0])
    with pytest.warns(UserWarning, match='decoded again'):
        pixels = build(films)
    assert is_right(pixels, films) and len(caches(films)) == 1
    if 'bit' in kind:
        assert len(decoded) == (
            0 if 'header' in kind else 4 if 'last' in kind else CHUNK
        )  # only the damaged chunk
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        build(films, verify='full')


def test_a_bit_that_flips_unseen_by_the_file_system_in_a_chunk_that_is_not_sampled_is_found_by_full_verification(
    tmp_path,
):
    many = [f'{i}.png' for i in range(20 * CHUNK)]
    save(tmp_path / '0.png', RAMP[:4, :4])
    for name in many[1:]:
        os.link(tmp_path / '0.png', tmp_path / name)
    build(tmp_path, many, size=4)
    flip(caches(tmp_path)[0], 128 + CHUNK * 16, keep_time=True)  # the second chunk
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        build(tmp_path, many, size=4)
    with pytest.warns(UserWarning, match='1 of 20 checked chunks'):
        pixels = build(tmp_path, many, size=4, verify='full')
    assert (np.array(pixels) == pixels[0]).all()


def test_all_damaged_images_are_reported_together_and_the_good_ones_are_kept(films, decoded):
    bad = [1, 40, 41, 42, 70, 80, N - 1]
    for i in bad:
        cut(films / f'{i}.png', 0.5)
    with pytest.raises(RadiographError) as error:
        build(films)
    text = str(error.value)
    assert (
        f'7 of {N} images' in text
        and "unreadable='exclude'" in text
        and all(f'{i}.png' in text for i in bad[:5])
        and '80.png' not in text
        and '2 more' in text
    )
    decoded.clear()
    with pytest.raises(RadiographError):
        build(films)  # asked again, only those are tried again
    assert sorted(decoded) == sorted(names(*bad))
    decoded.clear()
    rest = [n for n in names() if n not in names(*bad)]
    assert is_right(build(films, rest), films, rest) and decoded == []
    assert [(p / 'meta.json').exists() for p in caches(films)] == [
        True
    ]  # the one that can never be whole is gone


def test_a_replaced_image_completes_a_cache(films, decoded):
    cut(films / '40.png', 0.5)
    with pytest.raises(RadiographError, match='40.png'):
        build(films)
    decoded.clear()
    save(films / '40.png', RAMP)
    assert is_right(build(films), films) and decoded == ['40.png']


def test_a_damaged_older_cache_is_not_copied_from(films, decoded):
    build(films)
    decoded.clear()
    flip(caches(films)[0], 128 + 40 * 256)
    some = names(*range(20, 60))
    assert is_right(build(films, some), films, some) and sorted(decoded) == sorted(
        names(*range(32, 60))
    )  # the second chunk of the old one
    (caches(films)[0] / 'fingerprints.npy').write_bytes(b'\x93NUMPY')
    (caches(films)[1] / 'fingerprints.npy').write_bytes(b'')
    decoded.clear()
    assert is_right(build(films, names(1, 2)), films, names(1, 2)) and len(decoded) == 2


def test_missing_files_are_reported_together_before_anything_is_decoded(films, decoded):
    for i in (3, 50):
        (films / f'{i}.png').unlink()
    with pytest.raises(RadiographError, match=f'2 of {N} images') as error:
        build(films)
    assert (
        '3.png' in str(error.value)
        and '50.png' in str(error.value)
        and 'no such file' in str(error.value)
        and decoded == []
        and not (films / 'cache').exists()
    )


def test_a_full_disk_is_reported_with_the_size_before_anything_is_decoded(films, decoded, monkeypatch):
    usage = shutil.disk_usage(films)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match=r'needs 0\.03 GB more.*cache_dir') as error:
        build(films, size=512)
    assert error.value.errno == errno.ENOSPC and decoded == []
    monkeypatch.undo()
    assert build(films, size=512).shape == (N, 512, 512)


def test_a_disk_that_fills_up_meanwhile_keeps_what_is_decoded(films, decoded, monkeypatch):
    write = ChunkedFile.write

    def full(self, chunk, pixels, failed):
        if chunk == 2:
            self.building = self.folder / 'gone' / 'pixels.npy'  # any error of the system
        write(self, chunk, pixels, failed)

    with monkeypatch.context() as m:
        m.setattr(ChunkedFile, 'write', full)
        with pytest.raises(OSError, match='What has been written is kept'):
            build(films, workers=1)
    decoded.clear()
    assert is_right(build(films), films) and set(decoded) <= set(names()[2 * CHUNK :]) and decoded


MEMORY = """
import resource, sys, cv2, numpy, PIL.Image, filelock, cxr_lib.data.images as im
from tqdm.auto import tqdm

def megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

root, many = sys.argv[1], int(sys.argv[2])
options = dict(size=320, cache_dir=root + '/cache', progress=False, workers=2)
im.pixel_cache(root, ['0.png'], **options)
before = megabytes()
pixels = im.pixel_cache(root, [f'{i}.png' for i in range(many)], **options)
print(pixels.nbytes / 2**20, megabytes() - before)
"""


def test_building_does_not_hold_the_pixels_in_memory(tmp_path):
    many = 1600
    save(tmp_path / '0.png', RAMP[:4, :4])
    for i in range(1, many):
        os.link(tmp_path / '0.png', tmp_path / f'{i}.png')
    done = subprocess.run(
        [sys.executable, '-c', MEMORY, str(tmp_path), str(many)],
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    size, grown = map(float, done.stdout.split())
    assert size > 150 and grown < 60


# Near-duplicates


def brute_force(thumbnails, groups, threshold):
    x = thumbnails.reshape(len(thumbnails), thumbnails[0].size if len(thumbnails) else 1).astype(np.float64)
    x -= x.mean(1, keepdims=True)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    x /= np.maximum(length, 1)
    return {
        (i, j)
        for i in range(len(x))
        for j in range(i + 1, len(x))
        if groups[i] != groups[j] and x[i] @ x[j] >= threshold
    }


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(0, 40),
    block=st.sampled_from([1, 7, 16, 4096]),
    side=st.sampled_from([16, 32]),
    threshold=st.sampled_from([0.6, 0.9, 0.98]),
    noise=st.sampled_from([1, 10, 40]),
)
def test_near_duplicates_are_those_of_the_plain_comparison_of_all_pairs(
    seed, n, block, side, threshold, noise
):
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, (4, 4, 4)).repeat(side // 4, 1).repeat(side // 4, 2)
    thumbnails = (
        (
            base[rng.integers(0, 4, n)] * rng.uniform(0.4, 0.8, (n, 1, 1))
            + rng.normal(20, noise, (n, side, side))
        )
        .clip(0, 255)
        .astype(np.uint8)
        .reshape(n, side, side)
    )
    groups = rng.integers(0, 6, n).astype(str)
    found = near_duplicates(thumbnails, groups, threshold, block=block)
    sure, possible = (
        brute_force(thumbnails, groups, threshold + 1e-4),
        brute_force(thumbnails, groups, threshold - 1e-4),
    )
    pairs = set(zip(found.i.tolist(), found.j.tolist(), strict=True))
    assert sure <= pairs <= possible and len(pairs) == len(found) and found.similarity.is_monotonic_decreasing


def test_a_copy_that_is_brighter_or_recompressed_is_found_and_one_of_the_same_patient_is_not(tmp_path):
    rng = np.random.default_rng(1)
    films = [
        np.asarray(
            Image.fromarray(rng.integers(40, 200, (5, 6), np.uint8)).resize(
                (300, 260), Image.Resampling.BICUBIC
            )
        )
        for _ in range(12)
    ]
    for i, film in enumerate(films):
        save(tmp_path / f'{i}.png', film)
    save(tmp_path / 'copy.jpg', films[3], quality=40)
    save(tmp_path / 'brighter.png', films[8] + np.uint8(30))
    save(tmp_path / 'own.png', films[5])
    save(tmp_path / 'half.png', Image.fromarray(films[1]).resize((150, 130)))
    images = [*(f'{i}.png' for i in range(12)), 'copy.jpg', 'brighter.png', 'own.png', 'half.png']
    found = near_duplicates(scan_images(tmp_path, images, progress=False)[1], [*range(12), 100, 101, 5, 102])
    assert set(zip(found.i, found.j, strict=True)) == {(3, 12), (8, 13), (1, 15)}


def test_blank_films_are_like_no_other_and_a_flood_of_pairs_is_refused():
    assert near_duplicates(np.zeros((30, 32, 32), np.uint8), range(30)).empty
    with pytest.raises(ValueError, match='raise the threshold'):
        near_duplicates(np.tile(np.arange(32, dtype=np.uint8), (30, 32, 1)), range(30), limit=100)
    with pytest.raises(ValueError, match='3 groups for 2'):
        near_duplicates(np.zeros((2, 32, 32), np.uint8), range(3))
    with pytest.raises(ValueError, match='0.5 to 1'):
        near_duplicates(np.zeros((2, 32, 32), np.uint8), range(2), 98)


@pytest.mark.skipif(not SHARED.is_dir(), reason='the shared test data are not here')
def test_no_two_of_the_nih_patients_share_a_film_and_recompressed_copies_do(tmp_path):
    images = sorted(p.name for p in (SHARED / 'nih' / 'images').iterdir())
    assert len(images) == 421
    table, thumbnails = scan_images(SHARED / 'nih' / 'images', images, progress=False)
    assert table.error.isna().all() and near_duplicates(thumbnails, images).empty
    for i in images[:10]:
        Image.open(SHARED / 'nih' / 'images' / i).convert('L').resize((500, 500)).save(
            tmp_path / (i + '.jpg'), quality=50
        )
    copies = scan_images(tmp_path, [i + '.jpg' for i in images[:10]], progress=False)[1]
    found = near_duplicates(np.concatenate([thumbnails, copies]), [*images, *range(10)])
    assert set(zip(found.i, found.j, strict=True)) == {(i, 421 + i) for i in range(10)}


# Augmentation

MARKED = torch.zeros(1, 1, 64, 64)
MARKED[..., 6:16, 46:58] = 1.0  # a side marker at the upper right


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_augmentation_never_flips_unless_asked(seed):
    films = augment(MARKED.repeat(8, 1, 1, 1), torch.Generator().manual_seed(seed), brightness=0.0)
    halves = (
        films[:, 0, :, 32:].sum((1, 2)),
        films[:, 0, :, :32].sum((1, 2)),
        films[:, 0, :32].sum((1, 2)),
        films[:, 0, 32:].sum((1, 2)),
    )
    assert (halves[0] > 1.5 * halves[1]).all() and (halves[2] > 1.2 * halves[3]).all()


def test_flips_that_are_asked_for_are_mirror_images_of_about_half_of_the_films():
    none = dict(degrees=0.0, shift=0.0, scale=0.0, contrast=0.0, brightness=0.0)
    films = augment(MARKED.repeat(200, 1, 1, 1), torch.Generator().manual_seed(0), **none, flip=True)
    mirrored = torch.tensor([torch.allclose(f, MARKED[0].flip(2), atol=1e-4) for f in films])
    assert 70 < mirrored.sum() < 130 and all(
        torch.allclose(f, MARKED[0], atol=1e-4) for f in films[~mirrored]
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 5))
def test_augmented_films_are_films_and_the_same_for_the_same_seed(seed, n):
    batch = torch.rand(n, 1, 24, 24, generator=torch.Generator().manual_seed(seed))
    one, two = (augment(batch, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert torch.equal(one, two) and one.shape == batch.shape and 0 <= one.min() and one.max() <= 1
    assert not torch.equal(one, augment(batch, torch.Generator().manual_seed(seed + 1)))
