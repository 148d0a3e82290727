"""Odd files as phones, scanners, exports and attackers write them: the right picture, or an error within bounds."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from test_dicom import write
from test_images import deep_png, png

from cxr_lib.foundations.core import RadiographError
from cxr_lib.data.pixels import IMAGE_FORMATS, read_gray, read_radiograph

CASES = ROOT.parent / 'shared' / 'cases'
RAMP = np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1))


def anatomy():
    "Values of 12 bits such as a detector gives"
    y, x = np.mgrid[:120, :100]
    return (1500 + 900 * np.sin(x / 17) + 500 * np.cos(y / 23)).astype(np.uint16)


def hot():
    return place(anatomy(), [(5, 5)], 65535)


def dead():
    return place(anatomy() + 20_000, [(5, 5)], 0)


def marker():
    return place(anatomy(), [(y, x) for y in range(6) for x in range(9)], 60_000)


def place(film, where, value):
    for at in where:
        film[at] = value
    return film


FILMS = {'anatomy alone': anatomy, 'hot pixel': hot, 'dead pixel': dead, 'burnt-in marker': marker}
WRITERS = {
    'dcm': lambda path, film: write(path, film, BitsStored=16),
    'png': lambda path, film: Image.fromarray(film).save(path),
    'tif': lambda path, film: Image.fromarray(film).save(path),
    'big-endian.tif': lambda path, film: Image.fromarray(film.astype('>u2')).save(path),
    '32 bits.tif': lambda path, film: Image.fromarray(film.astype(np.int32)).save(path),
    'decimals.tif': lambda path, film: Image.fromarray(film.astype(np.float32)).save(path),
    'pgm': lambda path, film: Image.fromarray(film).save(path),
}


@pytest.mark.parametrize('film', FILMS)
@pytest.mark.parametrize('kind', WRITERS)
def test_the_same_pixels_give_the_same_picture_in_every_deep_format(tmp_path, kind, film):
    values = FILMS[film]()
    low, high = np.sort(values, axis=None)[
        [values.size * 5 // 1000, -(-values.size * 995 // 1000) - 1]
    ].astype(float)
    want = np.rint(255 * ((values - low) / (high - low)).clip(0, 1))
    WRITERS[kind](tmp_path / f'film.{kind}', values)
    got = read_gray(tmp_path / f'film.{kind}')
    assert np.array_equal(got, want)
    assert 100 < got.mean() < 160  # and no hot pixel has made it black, nor a dead one white


def test_the_film_with_a_marker_is_as_bright_as_its_dicom_file(tmp_path):
    path = CASES / '06_png16_hot_pixel' / 'marker.png'
    if not path.is_file():
        pytest.skip('the case is not at ../shared/cases')
    values = np.asarray(Image.open(path)).astype(np.uint16)
    assert np.array_equal(read_gray(path), read_gray(write(tmp_path / 'film.dcm', values, BitsStored=16)))
    assert read_gray(path).mean() > 180


def test_a_film_of_one_value_is_black_and_of_two_values_both_ends(tmp_path):
    for values, want in ((np.full((9, 9), 700), {0}), (np.arange(81).reshape(9, 9) % 2 + 700, {0, 255})):
        for kind, dtype in (('png', np.uint16), ('tif', np.float32)):
            Image.fromarray(values.astype(dtype)).save(tmp_path / f'film.{kind}')
            assert set(np.unique(read_gray(tmp_path / f'film.{kind}')).tolist()) == want


# Phones, cameras, editors


def test_of_the_two_pictures_of_a_phone_the_first_is_the_film(tmp_path):
    first = Image.fromarray(RAMP)
    first.save(
        tmp_path / 'phone.jpg', 'MPO', save_all=True, append_images=[Image.fromarray(255 - RAMP)], quality=95
    )
    assert Image.open(tmp_path / 'phone.jpg').n_frames == 2
    assert np.abs(read_gray(tmp_path / 'phone.jpg').astype(int) - RAMP).max() <= 4


def test_a_large_phone_picture_is_decoded_at_a_reduced_scale_too(tmp_path):
    film = np.tile(np.linspace(0, 255, 1200).astype(np.uint8), (1000, 1))
    Image.fromarray(film).save(
        tmp_path / 'phone.jpg', 'MPO', save_all=True, append_images=[Image.fromarray(255 - film)], quality=95
    )
    assert (
        np.abs(read_radiograph(tmp_path / 'phone.jpg', 64)[32].astype(int) - np.linspace(2, 253, 64)).max()
        <= 4
    )


JUNK = {
    'empty': b'',
    'text': b'not EXIF at all',
    'order alone': b'Exif\0\0II*\0',
    'offset beyond the end': b'Exif\0\0II*\0\xff\xff\xff\x7f',
    'entries that are not there': b'Exif\0\0MM\0*\0\0\0\x08\xff\xff' + bytes(20),
    'orientation 99': b'Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\x63\0\0\0\0\0\0',
    'orientation that is a text': b'Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\2\0\0\0\4abc\0\0\0\0\0',
}


@pytest.mark.filterwarnings('ignore::UserWarning')
@pytest.mark.parametrize('junk', JUNK)
@pytest.mark.parametrize('kind', ['png', 'jpg'])
def test_exif_data_that_cannot_be_read_turn_nothing(tmp_path, kind, junk):
    path, film = (
        tmp_path / f'film.{kind}',
        RAMP // 2 + np.random.default_rng(0).integers(0, 4, RAMP.shape).astype(np.uint8),
    )
    Image.fromarray(film).save(path, exif=JUNK[junk], **(dict(quality=97) if kind == 'jpg' else {}))
    assert np.abs(read_gray(path).astype(int) - film).max() <= (5 if kind == 'jpg' else 0)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(RadiographError, match='damaged or cut short'):
        read_gray(path)  # what is cut remains an error


@pytest.mark.filterwarnings('ignore::UserWarning')
def test_the_films_with_broken_exif_are_all_the_same_film():
    folder = CASES / '04_bad_exif'
    if not folder.is_dir():
        pytest.skip('the cases are not at ../shared/cases')
    whole = read_gray(folder / 'none.png').astype(int)
    paths = sorted(folder.iterdir())
    assert len(paths) == 12
    for path in paths:
        assert np.abs(read_gray(path) - whole).mean() < 2, path.name


@pytest.mark.parametrize('orientation', range(1, 9))
def test_every_orientation_of_exif_is_turned_as_pillow_turns_it(tmp_path, orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    film = np.random.default_rng(1).integers(0, 256, (5, 7)).astype(np.uint8)
    for name, values in (('8 bits.png', film), ('16 bits.png', film.astype(np.uint16) * 100)):
        Image.fromarray(values).save(tmp_path / name, exif=exif)
    assert np.array_equal(
        read_gray(tmp_path / '8 bits.png'),
        np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / '8 bits.png'))),
    )
    turned = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / '16 bits.png'))).astype(int)
    assert (
        np.argsort(turned.ravel()) == np.argsort(read_gray(tmp_path / '16 bits.png').ravel(), kind='stable')
    ).mean() > 0.8


# Transparency


def clear_border(mode):
    "The film with a transparent border under which white is stored, and half transparent in its middle row"
    seen = np.zeros(RAMP.shape, np.uint8)
    seen[8:-8, 8:-8] = 255
    seen[24, 8:-8] = 128
    under = np.where(seen == 0, 255, RAMP)
    want = np.rint(RAMP * (seen / 255))
    if mode == 'gray':
        return Image.merge('LA', [Image.fromarray(under), Image.fromarray(seen)]), want
    if mode == 'colour':
        return Image.merge('RGBA', [Image.fromarray(under)] * 3 + [Image.fromarray(seen)]), want
    key = np.where(seen == 0, 255, RAMP)  # a palette or a colour that counts as transparent
    image = Image.fromarray(key)
    if mode == 'palette':
        image.putpalette([v for i in range(256) for v in (i,) * 3])
    image.info['transparency'] = 255
    return image, np.where(seen == 0, 0, RAMP)


@pytest.mark.parametrize('mode', ['gray', 'colour', 'palette', 'one gray level'])
def test_what_is_transparent_is_black(tmp_path, mode):
    image, want = clear_border(mode)
    image.save(
        tmp_path / 'film.png', **({'transparency': 255} if mode in ('palette', 'one gray level') else {})
    )
    assert np.abs(read_gray(tmp_path / 'film.png') - want).max() <= 1


@pytest.mark.parametrize('channels, kind', [(2, 4), (4, 6)])
def test_what_is_transparent_is_black_and_does_not_count_for_the_range_of_a_deep_film(
    tmp_path, channels, kind
):
    seen = np.zeros(RAMP.shape, bool)
    seen[8:-8, 8:-8] = True
    value = np.where(seen, 1000 + RAMP.astype(np.uint16) * 10, 65535)
    planes = np.stack([value] * (channels - 1) + [np.where(seen, 65535, 0)], -1).astype('>u2')
    (tmp_path / 'film.png').write_bytes(
        png(64, 48, b''.join(b'\0' + row.tobytes() for row in planes), 16, kind)
    )
    low, high = (1000 + RAMP.astype(float) * 10)[seen].min(), (1000 + RAMP.astype(float) * 10)[seen].max()
    want = np.where(seen, 255 * (1000 + RAMP * 10.0 - low) / (high - low), 0)
    assert np.abs(read_gray(tmp_path / 'film.png') - want).max() <= 1


def test_the_clear_border_of_the_case_is_black():
    path = CASES / '18_transparent_png' / 'clear_border_white_below.png'
    if not path.is_file():
        pytest.skip('the case is not at ../shared/cases')
    seen = np.asarray(Image.open(path).convert('RGBA'))[..., 3]
    assert (
        (seen == 0).any()
        and not read_gray(path)[seen == 0].any()
        and read_gray(path)[seen == 255].mean() > 50
    )


def test_a_deep_film_in_colour_without_transparency_is_seen_whole(tmp_path):
    deep_png(tmp_path / 'film.png', 2)
    assert np.abs(read_gray(tmp_path / 'film.png').astype(int) - RAMP).max() <= 4


# What is not tried, and what is bounded


def eps():
    return b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n'


OTHERS = {
    'PostScript': eps,
    'icon': lambda: encoded('ICO'),
    'Sun raster': lambda: b'\x59\xa6\x6a\x95' + struct.pack('>7I', 9, 9, 8, 81, 1, 0, 0) + bytes(81),
    'SGI': lambda: encoded('SGI'),
    'Targa': lambda: encoded('TGA'),
    'PCX': lambda: encoded('PCX'),
    'DDS': lambda: encoded('DDS', 'RGBA'),
}


def encoded(kind, mode='L'):
    out = io.BytesIO()
    Image.new(mode, (16, 16)).save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize('name', OTHERS)
def test_formats_that_no_film_has_are_not_tried_whatever_the_file_is_called(tmp_path, monkeypatch, name):
    import subprocess
    from PIL import EpsImagePlugin

    monkeypatch.setattr(subprocess, 'Popen', lambda *a, **k: pytest.fail('another program was called'))
    monkeypatch.setattr(EpsImagePlugin, 'has_ghostscript', lambda: pytest.fail('Ghostscript was looked for'))
    (tmp_path / 'film.png').write_bytes(OTHERS[name]())
    with pytest.raises(RadiographError, match='film.png: not an image file of a kind that is read'):
        read_gray(tmp_path / 'film.png')


def test_the_formats_are_named_wherever_pillow_opens_a_file():
    import re

    for path in sorted((ROOT / 'cxr_lib').rglob('*.py')):
        for call in re.findall(r'Image\.open\(.*', path.read_text(encoding='utf-8')):
            assert 'formats=' in call, (path.name, call)
    assert set(IMAGE_FORMATS) == {'PNG', 'JPEG', 'TIFF', 'BMP', 'GIF', 'WEBP', 'PPM', 'JPEG2000'}


def chunk(name, data):
    return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))


def with_chunk(name, data):
    whole = encoded('PNG')
    return whole[:33] + chunk(name, data) + whole[33:]


def tiff_bomb():
    "A strip that unpacks to more than the film has"
    packed = zlib.compress(bytes(200_000_000), 9)
    tags = [
        (256, 4, 1, 100),
        (257, 4, 1, 100),
        (258, 3, 1, 8),
        (259, 3, 1, 8),
        (262, 3, 1, 1),
        (273, 4, 1, 8),
        (277, 3, 1, 1),
        (278, 4, 1, 100),
        (279, 4, 1, len(packed)),
    ]
    body = (
        b'II*\0' + struct.pack('<I', 8 + len(packed) + len(packed) % 2) + packed + b'\0' * (len(packed) % 2)
    )
    return body + struct.pack('<H', len(tags)) + b''.join(struct.pack('<HHII', *t) for t in tags) + bytes(4)


BOMBS = {
    'PNG with more rows than it has': lambda: png(100, 100, bytes(200_000_000)),
    'PNG with a compressed text': lambda: with_chunk(
        b'zTXt', b'Comment\0\0' + zlib.compress(bytes(200_000_000), 9)
    ),
    'PNG with a compressed profile': lambda: with_chunk(
        b'iCCP', b'profile\0\0' + zlib.compress(bytes(200_000_000), 9)
    ),
    'TIFF with more than its rows': tiff_bomb,
}


@pytest.mark.parametrize('name', BOMBS)
def test_what_is_packed_into_a_picture_beside_its_pixels_is_not_unpacked(tmp_path, name):
    (tmp_path / 'film.png').write_bytes(BOMBS[name]())
    assert (tmp_path / 'film.png').stat().st_size < 400_000
    tracemalloc.start()
    try:
        try:
            assert read_gray(tmp_path / 'film.png').shape in ((100, 100), (16, 16))
        except RadiographError as e:
            assert 'film.png' in str(e)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_a_file_larger_than_any_film_is_refused_before_it_is_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr('cxr_lib.data.pixels.LARGEST_FILE', 5_000)
    (tmp_path / 'film.png').write_bytes(bytes(10_000))
    with pytest.raises(RadiographError, match='film.png: more than 5,000 bytes'):
        read_gray(tmp_path / 'film.png')
