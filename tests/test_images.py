"""Images: every file ends as a film or as an error that names it; the cache is whole or absent."""
import os
import signal
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cxr_lib.images import MAX_PIXELS, RadiographError, pixel_cache, read_gray, read_radiograph, to_square

RAMP = np.tile(np.arange(64, dtype=np.uint8)*4, (48, 1))       # brighter to the right


def png(width, height, pixels=b'\0'*4000):
    "A PNG whose header may promise more than its data hold"
    def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(pixels)) + chunk(b'IEND', b''))


def save(path, image=RAMP, **options):
    Image.fromarray(image).save(path, **options) if isinstance(image, np.ndarray) else image.save(path, **options)
    return path


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def cut(path, share): path.write_bytes(path.read_bytes()[:int(path.stat().st_size*share)])


MALFORMED = {
    'cut.jpg': (lambda p: cut(save(p), .6), 'damaged or cut short'),
    'cut.png': (lambda p: cut(save(p), .7), 'damaged or cut short'),
    'empty.png': (lambda p: p.write_bytes(b''), 'file is empty'),
    'text.jpg': (lambda p: p.write_text('patient was not filmed'), 'not an image file'),
    'page.png': (lambda p: p.write_text('<html>404 Not Found</html>'), 'not an image file'),
    'bomb.png': (lambda p: p.write_bytes(png(30_000, 30_000)), 'Resize it first'),
    'large.png': (lambda p: p.write_bytes(png(10_500, 10_500)), 'Resize it first'),
    'short.png': (lambda p: p.write_bytes(png(500, 500, b'\0'*90)), 'damaged or cut short'),
    'moving.gif': (lambda p: save(p, save_all=True, append_images=[Image.fromarray(255 - RAMP)]), 'holds 2 frames'),
    'pages.tif': (lambda p: save(p, save_all=True, append_images=[Image.fromarray(255 - RAMP)]), 'holds 2 frames'),
    'holes.tif': (lambda p: save(p, np.where(RAMP > 100, np.nan, RAMP).astype(np.float32)), 'not finite'),
    'folder.png': (lambda p: p.mkdir(), 'no such file'),
    'absent.png': (lambda p: None, 'no such file'),
}


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
@pytest.mark.parametrize('name', MALFORMED)
def test_a_malformed_file_is_refused_by_name_with_a_remedy(tmp_path, name):
    make, remedy = MALFORMED[name]
    make(tmp_path/name)
    with pytest.raises(RadiographError) as error: read_radiograph(tmp_path/name, 32)
    assert name in str(error.value) and remedy in str(error.value)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path):
    (tmp_path/'bomb.png').write_bytes(png(30_000, 30_000, b'\0'*1_000_000))
    assert (tmp_path/'bomb.png').stat().st_size < 4_000 and 30_000**2 > MAX_PIXELS
    start = time.monotonic()
    with pytest.raises(RadiographError, match='more pixels than the limit'): read_gray(tmp_path/'bomb.png')
    assert time.monotonic() - start < 1


FORMATS = {
    'gray.png': lambda p: save(p), 'gray.jpg': lambda p: save(p, quality=95), 'gray.bmp': lambda p: save(p), 'still.gif': lambda p: save(p),
    'cmyk.jpg': lambda p: save(p, Image.fromarray(RAMP).convert('CMYK'), quality=95),
    'palette.png': lambda p: save(p, Image.fromarray(RAMP).convert('P')), 'colour.png': lambda p: save(p, Image.fromarray(RAMP).convert('RGB')),
    'alpha.png': lambda p: save(p, Image.fromarray(RAMP).convert('RGBA')), 'alpha gray.png': lambda p: save(p, Image.fromarray(RAMP).convert('LA')),
    'deep.png': lambda p: save(p, RAMP.astype(np.uint16)*200), 'deep little-endian.tif': lambda p: save(p, RAMP.astype('<u2')*200),
    'deep big-endian.tif': lambda p: save(p, (RAMP.astype(np.uint16)*200).astype('>u2')), 'float.tif': lambda p: save(p, RAMP/np.float32(252)),
    'a path with spaces (1).png': lambda p: save(p), 'Röntgen_胸部.png': lambda p: save(p), "quote's & %20.png": lambda p: save(p),
}


@pytest.mark.parametrize('name', FORMATS)
def test_every_still_format_gives_the_same_film(tmp_path, name):
    FORMATS[name](tmp_path/name)
    film = read_gray(tmp_path/name)
    assert film.dtype == np.uint8 and film.shape == RAMP.shape
    assert np.abs(film.astype(int) - RAMP).max() <= (16 if name == 'palette.png' else 4)


def test_a_reversed_palette_is_resolved_not_read_as_gray(tmp_path):
    indexed = Image.fromarray(RAMP).copy()
    indexed.putpalette([v for i in range(256) for v in (255 - i,)*3])
    save(tmp_path/'reversed.png', indexed)
    assert np.array_equal(read_gray(tmp_path/'reversed.png'), 255 - RAMP)


@pytest.mark.parametrize('name, image', [('film.jpg', RAMP), ('film.png', RAMP), ('film.tif', RAMP), ('deep.png', RAMP.astype(np.uint16)*200), ('deep.tif', (RAMP.astype(np.uint16)*200).astype('>u2'))])
@pytest.mark.parametrize('orientation, upright', [(1, lambda a: a), (3, lambda a: a[::-1, ::-1]), (6, lambda a: np.rot90(a, -1)), (8, np.rot90)])
def test_exif_orientation_is_honoured(tmp_path, name, image, orientation, upright):
    save(tmp_path/name, image, exif=turned(orientation))
    film, expected = read_gray(tmp_path/name), upright(RAMP)
    assert film.shape == expected.shape and np.abs(film.astype(int) - expected).max() <= 4


def test_one_pixel_and_one_gray_level_are_films(tmp_path):
    save(tmp_path/'one.png', RAMP[:1, 40:41])
    assert read_radiograph(tmp_path/'one.png', 16).shape == (16, 16)
    save(tmp_path/'flat.png', np.full((20, 30), 40_000, np.uint16))
    assert read_radiograph(tmp_path/'flat.png', 16).max() == 0        # no range to scale


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(['png', 'jpg', 'tif', 'gif']), edits=st.lists(st.tuples(st.integers(0, 399), st.integers(0, 255)), min_size=1, max_size=6), share=st.sampled_from([1., .9, .4]))
@pytest.mark.filterwarnings('ignore')
def test_a_damaged_file_is_a_film_or_a_radiograph_error_and_nothing_else(tmp_path_factory, kind, edits, share):
    path = save(tmp_path_factory.getbasetemp()/f'damaged.{kind}')
    data = bytearray(path.read_bytes())
    for at, value in edits: data[at % len(data)] = value
    path.write_bytes(bytes(data[:int(len(data)*share)]))
    try: assert read_gray(path).ndim == 2
    except RadiographError as error: assert path.name in str(error)


@settings(max_examples=60, deadline=None)
@given(h=st.integers(1, 300), w=st.integers(1, 300), size=st.integers(8, 128))
def test_to_square_keeps_the_aspect_ratio_and_centres(h, w, size):
    square = to_square(np.full((h, w), 200, np.uint8), size)
    rows, columns = np.flatnonzero(square.any(1)), np.flatnonzero(square.any(0))
    assert square.shape == (size, size) and max(len(rows), len(columns)) == size
    assert abs(len(rows) - max(1, h*size/max(h, w))) <= .5 and abs(len(columns) - max(1, w*size/max(h, w))) <= .5
    for seen in (rows, columns): assert abs(seen[0] - (size - 1 - seen[-1])) <= 1
    assert (square[rows][:, columns] == 200).all()


# The cache

def test_a_changed_file_gets_a_new_cache(tmp_path):
    save(tmp_path/'film.png')
    before = np.array(pixel_cache(tmp_path, ['film.png'], 32, tmp_path/'cache', progress=False))
    save(tmp_path/'film.png', 255 - RAMP)
    os.utime(tmp_path/'film.png', ns=(1, 1))
    after = pixel_cache(tmp_path, ['film.png'], 32, tmp_path/'cache', progress=False)
    assert len(list((tmp_path/'cache').iterdir())) == 2 and not np.array_equal(before, after)
    assert np.array_equal(after[0], read_radiograph(tmp_path/'film.png', 32))


def test_size_and_order_of_the_images_decide_the_cache(tmp_path):
    for name, film in (('a.png', RAMP), ('b.png', 255 - RAMP)): save(tmp_path/name, film)
    one, other, larger = (pixel_cache(tmp_path, names, size, tmp_path/'cache', progress=False) for names, size in ((['a.png', 'b.png'], 32), (['b.png', 'a.png'], 32), (['a.png', 'b.png'], 48)))
    assert np.array_equal(one[0], other[1]) and larger.shape == (2, 48, 48) and len(list((tmp_path/'cache').iterdir())) == 3
    with pytest.raises(ValueError): one[0, 0, 0] = 1                  # read-only: a caller can't spoil it for the next


def test_one_bad_image_names_itself_and_leaves_no_cache(tmp_path):
    save(tmp_path/'good.png')
    (tmp_path/'bad.png').write_text('no')
    with pytest.raises(RadiographError, match='bad.png'): pixel_cache(tmp_path, ['good.png', 'bad.png'], 32, tmp_path/'cache', progress=False)
    assert list((tmp_path/'cache').iterdir()) == []


def test_a_cache_that_is_killed_in_the_middle_is_not_taken_for_a_whole_one(tmp_path):
    for i in range(4): save(tmp_path/f'{i}.png', RAMP + np.uint8(i))
    code = ("import sys, time, cxr_lib.images as im\nread = im.read_radiograph\n"
            "def slow(path, size):\n    if path.name == '2.png': print('half', flush=True); time.sleep(60)\n    return read(path, size)\n"
            "im.read_radiograph = slow\nim.pixel_cache(sys.argv[1], [f'{i}.png' for i in range(4)], 32, sys.argv[1] + '/cache', progress=False, workers=1)")
    job = subprocess.Popen([sys.executable, '-c', code, str(tmp_path)], env={**os.environ, 'PYTHONPATH': str(ROOT)}, stdout=subprocess.PIPE, text=True)
    try: assert job.stdout.readline().strip() == 'half'
    finally: job.send_signal(signal.SIGKILL); job.communicate()
    assert not [p for p in (tmp_path/'cache').iterdir() if not p.name.startswith('.')]
    pixels = pixel_cache(tmp_path, [f'{i}.png' for i in range(4)], 32, tmp_path/'cache', progress=False)
    for i in range(4): assert np.array_equal(pixels[i], read_radiograph(tmp_path/f'{i}.png', 32))
