"""Damaged, hostile and odd uploads, from a seed."""

import io
import random
import struct
import zlib

from PIL import Image
from toy_service import as_dicom, as_file, film


def _bomb():
    "A PNG of a few bytes that declares four billion pixels"
    chunk = lambda kind, data: (
        struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    )
    header = struct.pack('>IIBBBBB', 65_535, 65_535, 8, 0, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(bytes(99)))


def _animation():
    "A GIF of two frames"
    frames, file = [Image.fromarray(film(s)) for s in (1, 2)], io.BytesIO()
    frames[0].save(file, 'gif', save_all=True, append_images=frames[1:])
    return file.getvalue()


def _whole():
    "Files that can be read"
    kinds = ('png', 'jpeg', 'tiff', 'bmp', 'gif', 'webp', 'jpeg2000')
    return [as_file(film(k), kind) for k, kind in enumerate(kinds)] + [as_dicom(film(9))]


_FIXED = (b'', b'\0' * 500, b'DICM' * 40, b'<svg/>', b'%PDF-1.7', b'PK\x03\x04' + bytes(60), b'\xff\xd8\xff')
_NAMES = (
    *('film.png', 'film.dcm', '../../escape.png', '/etc/passwd', 'C:\\film.png', 'a\x00b.png', ''),
    *('x' * 300 + '.png', 'film.png;rm -rf', 'röntgen.png', '.hidden', '..'),
)


def damaged(data, chance):
    "A file with a cut, some flipped bytes, or a piece of noise in it"
    data = bytearray(data)
    how = chance.randrange(4)
    if how == 0:
        return bytes(data[: chance.randrange(len(data))])
    if how == 1:
        for _ in range(chance.randrange(1, 40)):
            data[chance.randrange(len(data))] = chance.randrange(256)
    elif how == 2:
        at = chance.randrange(len(data))
        data[at : at + 40] = chance.randbytes(chance.randrange(80))
    else:  # the header, where sizes and offsets are
        for _ in range(chance.randrange(1, 10)):
            data[chance.randrange(min(len(data), 400))] = chance.choice((0, 1, 127, 128, 255))
    return bytes(data)


def fuzzed_uploads(n, seed=0):
    "n pairs of (file name, bytes)"
    chance, whole = random.Random(seed), _whole()
    odd = [*_FIXED, _bomb(), _animation()]
    for k in range(n):
        name = chance.choice(_NAMES)
        if k < len(odd):
            yield name, odd[k]
        elif k % 10 == 0:
            yield name, chance.randbytes(chance.randrange(5000))
        else:
            yield name, damaged(chance.choice(whole), chance)
