"""The same stored values give the same picture.

Over transfer syntaxes and decoders, and over the header fields that say what a stored value means. What is expected is
worked out here, from the stored values, by the definitions of the standard, without the code under test.
"""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from test_dicom import lut, write

from cxr_lib.foundations.core import RadiographError
from cxr_lib.data.dicom import dicom_facts, read_dicom
from cxr_lib.data.elements import is_dicom

KEY = b'the key of a test, 32 bytes long'
SIZE = (17, 23)  # odd, so that every padding byte is there

#: name -> (bits allocated, bits stored, signed, what stands above the stored bits: 'zeros', 'sign' or 'garbage')
FORMS = {
    'unsigned 8': (8, 8, False, 'zeros'),
    'signed 8': (8, 8, True, 'sign'),
    'unsigned 16': (16, 16, False, 'zeros'),
    'signed 16': (16, 16, True, 'sign'),
    'unsigned 12 of 16': (16, 12, False, 'zeros'),
    'unsigned 12 under an overlay': (16, 12, False, 'garbage'),
    'signed 12 with its sign extended': (16, 12, True, 'sign'),
    'signed 12 without': (16, 12, True, 'zeros'),
    'signed 12 under an overlay': (16, 12, True, 'garbage'),
    'unsigned 10 of 16': (16, 10, False, 'zeros'),
}


def rng():
    return np.random.default_rng(5)


def film_of(form):
    "Stored values, and the cells that hold them"
    allocated, bits, signed, above = FORMS[form]
    low = -(2 ** (bits - 1)) if signed else 0
    values = rng().integers(low, low + 2**bits, SIZE)
    values.flat[:2] = low, low + 2**bits - 1
    cells = values & (2**allocated - 1 if above == 'sign' else 2**bits - 1)
    if above == 'garbage':
        cells |= rng().integers(0, 2 ** (allocated - bits), SIZE) << bits
    return values, cells.astype(f'u{allocated // 8}')


def expected(values, center, width):
    "A window of the function LINEAR_EXACT (PS3.3, C.11.2.1.3.2)"
    return np.rint(255 * ((values.astype(float) - center) / width + 0.5).clip(0, 1))


def rle(planes):
    "PS3.5, annex G, in literal runs and one repeated run"
    segments = []
    for plane in planes:
        body = bytearray()
        data = bytes(plane)
        for i in range(0, len(data), 128):
            body += bytes([len(data[i : i + 128]) - 1]) + data[i : i + 128]
        segments.append(bytes(body) + b'\0' * (len(body) % 2))
    starts = np.cumsum([64, *map(len, segments)])[:-1].tolist()
    return struct.pack('<16L', len(segments), *starts, *[0] * (15 - len(segments))) + b''.join(segments)


def rle_of(cells):
    samples = cells.reshape(*cells.shape[:2], -1)
    return rle(
        [
            (samples[..., s] >> shift & 255).astype(np.uint8).tobytes()
            for s in range(samples.shape[2])
            for shift in range(8 * cells.itemsize - 8, -1, -8)
        ]
    )


def j2k(integers, precision, signed):
    """A JPEG 2000 codestream of these integers which declares this precision and sign.

    It is written with 16 bits, unsigned, so that its coefficients are the values less 2**15; then the declaration
    (Ssiz) is changed to the one whose offset fits.
    """
    coefficients = integers.astype(int) - (0 if signed else 2 ** (precision - 1))
    out = io.BytesIO()
    Image.fromarray((coefficients + 2**15).astype(np.uint16)).save(
        out, 'JPEG2000', irreversible=False, no_jp2=True
    )
    data = bytearray(out.getvalue())
    assert data[:4] == b'\xff\x4f\xff\x51' and data[42] == 15
    data[42] = precision - 1 | signed << 7
    return bytes(data)


#: name -> (transfer syntax, encoded pixels of (values, cells, bits, signed); None: the cells as they are)
SYNTAXES = {
    'implicit little endian': (ImplicitVRLittleEndian, None),
    'explicit little endian': (ExplicitVRLittleEndian, None),
    'explicit big endian': (ExplicitVRBigEndian, None),
    'deflated': (DeflatedExplicitVRLittleEndian, None),
    'RLE': (RLELossless, lambda values, cells, bits, signed: rle_of(cells)),
    'JPEG 2000, cells': (
        JPEG2000Lossless,
        lambda values, cells, bits, signed: j2k(cells, 8 * cells.itemsize, False),
    ),
    'JPEG 2000, stored bits': (
        JPEG2000Lossless,
        lambda values, cells, bits, signed: j2k(values & 2**bits - 1, bits, False),
    ),
    'JPEG 2000, signed': (
        JPEG2000Lossless,
        lambda values, cells, bits, signed: j2k(
            values if signed else (values ^ 2 ** (bits - 1)) - 2 ** (bits - 1), bits, True
        ),
    ),
    'JPEG 2000, deeper than stored': (
        JPEG2000,
        lambda values, cells, bits, signed: j2k(values & 2**bits - 1, 8 * cells.itemsize, False),
    ),
}


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('syntax', SYNTAXES)
def test_the_same_stored_values_give_the_same_picture(tmp_path, syntax, form):
    uid, encode = SYNTAXES[syntax]
    (_, bits, signed, _), (values, cells) = FORMS[form], film_of(form)
    if syntax == 'JPEG 2000, signed' and not signed:
        values = values & 2 ** (bits - 1) - 1  # a signed codestream of as many bits has no more
    if syntax == 'JPEG 2000, signed' and not signed:
        cells = values.astype(cells.dtype)
    center, width = float(values.mean()), 0.8 * 2**bits
    data = encode(values, cells, bits, signed) if encode else None
    path = write(
        tmp_path / 'film.dcm',
        cells,
        syntax=uid,
        data=data,
        BitsStored=bits,
        PixelRepresentation=int(signed),
        WindowCenter=center,
        WindowWidth=width,
        VOILUTFunction='LINEAR_EXACT',
    )
    tags = pydicom.dcmread(path)
    want = expected(values, float(tags.WindowCenter), float(tags.WindowWidth))
    assert np.array_equal(read_dicom(path), want)


@pytest.mark.parametrize('vr', ['OB', 'OW'])
@pytest.mark.parametrize('order', ['<', '>'])
def test_bytes_in_words_are_read_in_either_order(tmp_path, vr, order):
    "Big endian files swap the two bytes of a word, and with it two pixels of 8 bits, where the element is OW"
    values = rng().integers(0, 256, SIZE).astype(np.uint8)
    path = write(
        tmp_path / 'film.dcm', values, syntax=ExplicitVRLittleEndian if order == '<' else ExplicitVRBigEndian
    )
    raw = values.tobytes() + b'\0'
    swapped = np.frombuffer(raw, '>u2').astype('<u2').tobytes() if order == '>' and vr == 'OW' else raw
    content = path.read_bytes()
    at = content.rindex(b'\x7f\xe0\0\x10' if order == '>' else b'\xe0\x7f\x10\0')
    path.write_bytes(content[: at + 4] + vr.encode() + b'\0\0' + struct.pack(f'{order}L', len(raw)) + swapped)
    assert np.array_equal(read_dicom(path), values)


@pytest.mark.parametrize(
    'syntax, words',
    [
        (JPEGLosslessSV1, 'pylibjpeg-libjpeg'),
        (JPEGLSLossless, 'pylibjpeg-libjpeg'),
        (HTJ2KLossless, 'pylibjpeg-openjpeg'),
        (JPEGExtended12Bit, 'pylibjpeg-libjpeg'),
    ],
)
def test_where_no_decoder_is_installed_the_message_names_one(tmp_path, syntax, words):
    from pydicom.pixels import get_decoder

    if set(get_decoder(syntax).available_plugins) - {'pillow'}:
        pytest.skip('a decoder is installed')
    with pytest.raises(RadiographError, match=f'no decoder: its transfer syntax is .*{words}'):
        read_dicom(write(tmp_path / 'film.dcm', syntax=syntax, data=b'\xff\xd8none'))


# Fields of the header

VALUES = np.arange(4096, dtype=np.uint16).reshape(64, 64)
SIGNED = VALUES.astype(np.int16) - 2048
ROOT = (np.sqrt(np.arange(4096) / 4095) * 4095).round()
EXACT = dict(WindowCenter=2000, WindowWidth=1000, VOILUTFunction='LINEAR_EXACT')

#: name -> (stored values, tags, photometric interpretation, expected picture from the stored values)
FIELDS = {
    'LINEAR': (
        VALUES,
        dict(WindowCenter=2000, WindowWidth=1000),
        'MONOCHROME2',
        lambda v: 255 * ((v - 1999.5) / 999 + 0.5).clip(0, 1),
    ),
    'LINEAR_EXACT': (VALUES, EXACT, 'MONOCHROME2', lambda v: 255 * ((v - 2000) / 1000 + 0.5).clip(0, 1)),
    'SIGMOID': (
        VALUES,
        EXACT | dict(VOILUTFunction='SIGMOID'),
        'MONOCHROME2',
        lambda v: 255 / (1 + np.exp(-4 * (v - 2000) / 1000)),
    ),
    'several windows': (
        VALUES,
        dict(WindowCenter=[2000, 9], WindowWidth=[1000, 9], VOILUTFunction='LINEAR_EXACT'),
        'MONOCHROME2',
        lambda v: 255 * ((v - 2000) / 1000 + 0.5).clip(0, 1),
    ),
    'slope and intercept': (
        VALUES,
        dict(
            RescaleSlope=0.5,
            RescaleIntercept=-100,
            WindowCenter=900,
            WindowWidth=500,
            VOILUTFunction='LINEAR_EXACT',
        ),
        'MONOCHROME2',
        lambda v: 255 * ((v / 2 - 100 - 900) / 500 + 0.5).clip(0, 1),
    ),
    'negative slope': (
        VALUES,
        dict(RescaleSlope=-1, RescaleIntercept=4095) | EXACT,
        'MONOCHROME2',
        lambda v: 255 * ((4095 - v - 2000) / 1000 + 0.5).clip(0, 1),
    ),
    'negative slope, no window': (
        VALUES,
        dict(RescaleSlope=-1, RescaleIntercept=4095),
        'MONOCHROME2',
        lambda v: 255 * ((4095 - v - 20) / (4075 - 20)).clip(0, 1),
    ),
    'signed, window below 0': (
        SIGNED,
        dict(WindowCenter=-500, WindowWidth=1000, VOILUTFunction='LINEAR_EXACT'),
        'MONOCHROME2',
        lambda v: 255 * ((v + 500) / 1000 + 0.5).clip(0, 1),
    ),
    'modality table': (
        VALUES,
        dict(ModalityLUTSequence=lut(4095 - np.arange(4096))) | EXACT,
        'MONOCHROME2',
        lambda v: 255 * ((4095 - v - 2000) / 1000 + 0.5).clip(0, 1),
    ),
    'modality table over slope': (
        VALUES,
        dict(ModalityLUTSequence=lut(4095 - np.arange(4096)), RescaleSlope=3, RescaleIntercept=7) | EXACT,
        'MONOCHROME2',
        lambda v: 255 * ((4095 - v - 2000) / 1000 + 0.5).clip(0, 1),
    ),
    'VOI table': (
        VALUES,
        dict(VOILUTSequence=lut(ROOT, bits=12)),
        'MONOCHROME2',
        lambda v: ROOT[v] * 255 / 4095,
    ),
    'VOI table over window': (
        VALUES,
        dict(VOILUTSequence=lut(ROOT, bits=12)) | EXACT,
        'MONOCHROME2',
        lambda v: ROOT[v] * 255 / 4095,
    ),
    'VOI table after slope': (
        VALUES,
        dict(VOILUTSequence=lut(ROOT, bits=12), RescaleSlope=2, RescaleIntercept=-1000),
        'MONOCHROME2',
        lambda v: ROOT[(v * 2 - 1000).clip(0, 4095)] * 255 / 4095,
    ),
    'MONOCHROME1': (VALUES, EXACT, 'MONOCHROME1', lambda v: 255 - 255 * ((v - 2000) / 1000 + 0.5).clip(0, 1)),
    'MONOCHROME1 and INVERSE': (
        VALUES,
        EXACT | dict(PresentationLUTShape='INVERSE'),
        'MONOCHROME1',
        lambda v: 255 - 255 * ((v - 2000) / 1000 + 0.5).clip(0, 1),
    ),
    'MONOCHROME2 and IDENTITY': (
        VALUES,
        EXACT | dict(PresentationLUTShape='IDENTITY'),
        'MONOCHROME2',
        lambda v: 255 * ((v - 2000) / 1000 + 0.5).clip(0, 1),
    ),
    'lower case': (VALUES, EXACT, 'monochrome1', lambda v: 255 - 255 * ((v - 2000) / 1000 + 0.5).clip(0, 1)),
    'mixed case and spaces': (
        VALUES,
        EXACT,
        'Monochrome2  ',
        lambda v: 255 * ((v - 2000) / 1000 + 0.5).clip(0, 1),
    ),
    'one frame by number': (
        VALUES,
        EXACT | dict(NumberOfFrames=1),
        'MONOCHROME2',
        lambda v: 255 * ((v - 2000) / 1000 + 0.5).clip(0, 1),
    ),
    'padding': (
        VALUES,
        EXACT | dict(PixelPaddingValue=4095),
        'MONOCHROME1',
        lambda v: np.where(v == 4095, 0, 255 - 255 * ((v - 2000) / 1000 + 0.5).clip(0, 1)),
    ),
    'padding range': (
        VALUES,
        EXACT | dict(PixelPaddingValue=0, PixelPaddingRangeLimit=99),
        'MONOCHROME1',
        lambda v: np.where(v < 100, 0, 255 - 255 * ((v - 2000) / 1000 + 0.5).clip(0, 1)),
    ),
    'padding, signed': (
        SIGNED,
        dict(PixelPaddingValue=-2048, WindowCenter=0, WindowWidth=1000, VOILUTFunction='LINEAR_EXACT'),
        'MONOCHROME1',
        lambda v: np.where(v == -2048, 0, 255 - 255 * (v / 1000 + 0.5).clip(0, 1)),
    ),
    'padding without its sign': (
        SIGNED,
        dict(PixelPaddingValue=2048, WindowCenter=0, WindowWidth=1000, VOILUTFunction='LINEAR_EXACT'),
        'MONOCHROME1',
        lambda v: np.where(v == -2048, 0, 255 - 255 * (v / 1000 + 0.5).clip(0, 1)),
    ),
    'padding of 16 bits over 12': (
        VALUES,
        EXACT | dict(PixelPaddingValue=0xFFFF),
        'MONOCHROME1',
        lambda v: np.where(v == 4095, 0, 255 - 255 * ((v - 2000) / 1000 + 0.5).clip(0, 1)),
    ),
}


@pytest.mark.parametrize(
    'syntax', ['explicit little endian', 'explicit big endian', 'RLE', 'JPEG 2000, stored bits']
)
@pytest.mark.parametrize('field', FIELDS)
def test_each_field_of_the_header_means_what_the_standard_says(tmp_path, field, syntax):
    values, tags, photometric, picture = FIELDS[field]
    uid, encode = SYNTAXES[syntax]
    data = (
        encode(values.astype(int), (values.view(np.uint16) & 4095), 12, values.dtype.kind == 'i')
        if encode
        else None
    )
    if data is not None and encode is SYNTAXES['RLE'][1]:
        data = rle_of(values.view(np.uint16) & 4095)  # without an extended sign
    path = write(tmp_path / 'film.dcm', values, photometric, uid, data, **tags)
    assert np.abs(read_dicom(path) - picture(values.astype(int))).max() <= 0.51


@pytest.mark.parametrize(
    'tags, shape',
    [
        (dict(PixelAspectRatio=[1, 2]), (32, 64)),
        (dict(PixelAspectRatio=[2, 1]), (64, 32)),
        (dict(PixelSpacing=[0.1, 0.2]), (32, 64)),
        (dict(ImagerPixelSpacing=[0.2, 0.2]), (64, 64)),
    ],
)
def test_pixels_that_are_not_square_become_so_in_every_syntax(tmp_path, tags, shape):
    plain = read_dicom(write(tmp_path / 'plain.dcm', VALUES, **tags))
    packed = read_dicom(
        write(tmp_path / 'packed.dcm', VALUES, syntax=RLELossless, data=rle_of(VALUES), **tags)
    )
    assert plain.shape == shape and np.array_equal(plain, packed)


# Colours


def colours():
    "A picture in saturated colours, its luma, and its YCbCr (ITU-R BT.601, full range)"
    y, x = np.mgrid[:32, :48]
    rgb = np.stack([x * 5, y * 8, 255 - x * 5], -1).astype(np.uint8)
    red, green, blue = np.moveaxis(rgb.astype(float), -1, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    ybr = np.stack([luma, 128 + (blue - luma) / 1.772, 128 + (red - luma) / 1.402], -1)
    return rgb, luma, np.rint(ybr).clip(0, 255).astype(np.uint8)


def jpeg(rgb, mark):
    "A JPEG of YCbCr (or, for 'Adobe RGB', of RGB), with the marks that tell"
    out = io.BytesIO()
    options = dict(keep_rgb=True) if mark == 'Adobe RGB' else {}
    Image.fromarray(rgb).save(out, 'JPEG', quality=97, subsampling=0, **options)
    data = out.getvalue()
    if mark in ('JFIF', 'Adobe RGB'):
        return data
    assert data[2:4] == b'\xff\xe0'
    rest = data[4 + struct.unpack('>H', data[4:6])[0] :]
    adobe = b'\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\1' if 'Adobe' in mark else b''
    return data[:2] + (data[2 : len(data) - len(rest)] if 'JFIF' in mark else b'') + adobe + rest


def planes(rgb):
    return np.ascontiguousarray(np.moveaxis(rgb, -1, 0))


def subsampled(ybr):  # PS3.3, C.7.6.3.1.2: two lumas share the colour of the first
    pairs = ybr.reshape(len(ybr), -1, 2, 3)
    return np.concatenate([pairs[:, :, 0, :1], pairs[:, :, 1, :1], pairs[:, :, 0, 1:]], -1)


RGB, LUMA, YBR = colours()
PAIRED = np.repeat(YBR.reshape(32, 24, 2, 3)[:, :, :1], 2, 2).reshape(32, 48, 3)
COLOURS = {
    'RGB': (RGB, 'RGB', ExplicitVRLittleEndian, None, {}),
    'RGB in planes': (planes(RGB), 'RGB', ExplicitVRLittleEndian, None, dict(PlanarConfiguration=1)),
    'RGB, big endian': (RGB, 'RGB', ExplicitVRBigEndian, None, {}),
    'RGB, lower case': (RGB, 'rgb ', ExplicitVRLittleEndian, None, {}),
    'RGB, RLE': (RGB, 'RGB', RLELossless, lambda: rle_of(RGB), dict(PlanarConfiguration=1)),
    'RGB, RLE that says interleaved': (
        RGB,
        'RGB',
        RLELossless,
        lambda: rle_of(RGB),
        dict(PlanarConfiguration=0),
    ),
    'YBR_FULL': (YBR, 'YBR_FULL', ExplicitVRLittleEndian, None, {}),
    'YBR_FULL in planes': (
        planes(YBR),
        'YBR_FULL',
        ExplicitVRLittleEndian,
        None,
        dict(PlanarConfiguration=1),
    ),
    'YBR_FULL, RLE': (YBR, 'YBR_FULL', RLELossless, lambda: rle_of(YBR), dict(PlanarConfiguration=1)),
    'YBR_FULL_422': (subsampled(YBR), 'YBR_FULL_422', ExplicitVRLittleEndian, None, {}),
    'JPEG with JFIF, called YBR': (RGB, 'YBR_FULL_422', JPEGBaseline8Bit, lambda: jpeg(RGB, 'JFIF'), {}),
    'JPEG with JFIF, called RGB': (RGB, 'RGB', JPEGBaseline8Bit, lambda: jpeg(RGB, 'JFIF'), {}),
    'JPEG with JFIF, in planes': (
        RGB,
        'YBR_FULL_422',
        JPEGBaseline8Bit,
        lambda: jpeg(RGB, 'JFIF'),
        dict(PlanarConfiguration=1),
    ),
    'JPEG with Adobe, called YBR': (RGB, 'YBR_FULL_422', JPEGBaseline8Bit, lambda: jpeg(RGB, 'Adobe'), {}),
    'JPEG with Adobe, called RGB': (RGB, 'RGB', JPEGBaseline8Bit, lambda: jpeg(RGB, 'Adobe'), {}),
    'JPEG with both': (RGB, 'YBR_FULL_422', JPEGBaseline8Bit, lambda: jpeg(RGB, 'JFIF and Adobe'), {}),
    'JPEG without marks, called YBR': (RGB, 'YBR_FULL_422', JPEGBaseline8Bit, lambda: jpeg(RGB, 'none'), {}),
    'JPEG without marks, called RGB': (
        RGB,
        'RGB',
        JPEGBaseline8Bit,
        lambda: jpeg(
            np.ascontiguousarray(
                np.asarray(Image.frombytes('YCbCr', (48, 32), RGB.tobytes()).convert('RGB'))
            ),
            'none',
        ),
        {},
    ),
    'JPEG of RGB': (RGB, 'RGB', JPEGBaseline8Bit, lambda: jpeg(RGB, 'Adobe RGB'), {}),
    'JPEG of RGB, called YBR': (RGB, 'YBR_FULL', JPEGBaseline8Bit, lambda: jpeg(RGB, 'Adobe RGB'), {}),
}


@pytest.mark.parametrize('name', COLOURS)
def test_the_gray_of_colours_is_their_luma_whoever_decodes_them(tmp_path, name):
    pixels, photometric, syntax, encode, tags = COLOURS[name]
    path = write(
        tmp_path / 'film.dcm',
        pixels,
        photometric,
        syntax,
        encode() if encode else None,
        Rows=32,
        Columns=48,
        SamplesPerPixel=3,
        **{'PlanarConfiguration': 0} | tags,
    )
    difference = np.abs(read_dicom(path) - LUMA)
    if name == 'JPEG without marks, called RGB':
        assert np.median(difference) <= 4  # colours that YCbCr cannot hold were clipped on the way in
    else:
        assert difference.max() <= (6 if encode and syntax == JPEGBaseline8Bit else 1.01)


def test_jpeg_2000_in_colour_gives_its_luma(tmp_path):
    out = io.BytesIO()
    Image.fromarray(RGB).save(out, 'JPEG2000', irreversible=False, no_jp2=True, mct=1)
    for photometric in ('YBR_RCT', 'RGB'):
        got = read_dicom(write(tmp_path / 'film.dcm', RGB, photometric, JPEG2000Lossless, out.getvalue()))
        assert np.abs(got - LUMA).max() <= 1.01


@pytest.mark.parametrize('syntax', [ExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
@pytest.mark.parametrize('bits', [8, 16])
def test_a_palette_is_resolved(tmp_path, syntax, bits):
    index = rng().integers(0, 256, SIZE).astype(np.uint8)
    palette = rng().integers(0, 256, (3, 256))
    tags = {}
    order = '>' if syntax == ExplicitVRBigEndian else '<'
    for color, entries in zip(('Red', 'Green', 'Blue'), palette):
        tags[f'{color}PaletteColorLookupTableDescriptor'] = [256, 0, bits]
        tags[f'{color}PaletteColorLookupTableData'] = (
            (entries * 257).astype(f'{order}u2').tobytes()
            if bits == 16
            else entries.astype(np.uint8).tobytes()
        )
    path = write(
        tmp_path / 'film.dcm',
        index,
        'PALETTE COLOR',
        syntax,
        rle_of(index) if syntax == RLELossless else None,
        **tags,
    )
    luma = 0.299 * palette[0] + 0.587 * palette[1] + 0.114 * palette[2]
    assert np.abs(read_dicom(path) - luma[index]).max() <= 1.01


# Files without a preamble


@pytest.mark.parametrize('kind', ['implicit', 'explicit', 'group 2'])
def test_a_file_without_preamble_and_without_ending_is_dicom(tmp_path, kind):
    from cxr_lib.data.pixels import read_gray

    values = rng().integers(0, 4096, SIZE).astype(np.uint16)
    path = write(
        tmp_path / 'IM0001',
        values,
        syntax=ImplicitVRLittleEndian if kind == 'implicit' else ExplicitVRLittleEndian,
        **EXACT,
    )
    content = path.read_bytes()[128:]
    if kind == 'group 2':
        path.write_bytes(content[4:])
    else:
        path.write_bytes(content[4 + 12 + struct.unpack('<L', content[12:16])[0] :])
    assert is_dicom(path)
    assert np.array_equal(read_dicom(path), expected(values, 2000, 1000))
    assert np.array_equal(read_gray(path), expected(values, 2000, 1000))
    assert dicom_facts(path, KEY)['refused'] is None


def test_pictures_and_texts_are_not_taken_for_dicom(tmp_path):
    for kind in ('PNG', 'JPEG', 'TIFF', 'BMP', 'GIF', 'WEBP'):
        Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / kind, kind)
        assert not is_dicom(tmp_path / kind), kind
    for n, content in enumerate(
        (
            b'',
            b'\x08',
            b'\x08\0',
            b'image,patient_id\n',
            bytes(500),
            b'\x08\0\0\0\xff\xff\xff\xff' + bytes(200),
        )
    ):
        (tmp_path / str(n)).write_bytes(content)
        assert not is_dicom(tmp_path / str(n)), content


# Compressed pictures that hold more than they say


def memory_of(work):
    "The most that Python and numpy held meanwhile, bytes"
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def large_jpeg():
    out = io.BytesIO()
    Image.new('L', (9000, 9000)).save(out, 'JPEG')
    data = bytearray(out.getvalue())
    at = data.index(b'\xff\xc0')
    data[at + 5 : at + 9] = struct.pack('>HH', 30_000, 30_000)
    return bytes(data)


def large_j2k():
    data = bytearray(j2k(np.zeros((64, 64)), 8, False))
    data[8:16] = data[24:32] = struct.pack('>LL', 30_000, 30_000)
    return bytes(data)


def rle_bomb():
    return struct.pack('<16L', 1, 64, *[0] * 14) + b'\x81\0' * 4_000_000  # unpacks to 512 MB


BOMBS = {'JPEG': (JPEGBaseline8Bit, large_jpeg), 'JPEG 2000': (JPEG2000Lossless, large_j2k)}


@pytest.mark.parametrize('name', BOMBS)
def test_a_codestream_larger_than_its_header_is_refused_undecoded(tmp_path, monkeypatch, name):
    from PIL import ImageFile

    syntax, make = BOMBS[name]
    path = write(tmp_path / 'film.dcm', np.zeros((100, 100), np.uint8), syntax=syntax, data=make())
    monkeypatch.setattr(ImageFile.ImageFile, 'load', lambda self: pytest.fail('decoded'))
    with pytest.raises(
        RadiographError, match='another size in its compressed pixels: 30000 x 30000 .* promises 100 x 100'
    ):
        read_dicom(path)


def test_a_run_length_segment_is_followed_to_the_last_pixel_and_no_further(tmp_path):
    path = write(tmp_path / 'film.dcm', np.zeros((100, 100), np.uint8), syntax=RLELossless, data=rle_bomb())
    assert memory_of(lambda: read_dicom(path)) < 60_000_000
    assert not read_dicom(path).any()


def test_a_deflated_file_is_unpacked_no_further_than_its_film(tmp_path):
    values = rng().integers(0, 4096, SIZE).astype(np.uint16)
    path = write(tmp_path / 'film.dcm', values, **EXACT)
    content = path.read_bytes()
    meta = 132 + 12 + struct.unpack('<L', content[140:144])[0]
    head = content[:meta].replace(b'1.2.840.10008.1.2.1\0', b'1.2.840.10008.1.2.1.99')
    head = head[:140] + struct.pack('<L', struct.unpack('<L', head[140:144])[0] + 2) + head[144:]
    head = head.replace(b'UI\x14\x001.2.840.10008.1.2.1.99', b'UI\x16\x001.2.840.10008.1.2.1.99')
    pack = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)

    def bomb(before, after):
        packed = pack.copy()
        return (
            head
            + packed.compress(content[meta:] if not before else content[meta : meta + 8])
            + packed.compress(bytes(before + after))
            + packed.flush()
        )

    path.write_bytes(bomb(0, 400_000_000))
    assert path.stat().st_size < 500_000
    assert memory_of(lambda: read_dicom(path)) < 20_000_000
    assert np.array_equal(read_dicom(path), expected(values, 2000, 1000))
    element = struct.pack('<HH2sHL', 9, 0x10, b'OB', 0, 400_000_000)
    packed = pack.copy()
    path.write_bytes(head + packed.compress(element) + packed.compress(bytes(400_000_000)) + packed.flush())
    most = []

    def refused():
        with pytest.raises(RadiographError, match='header cannot be read'):
            read_dicom(path)

    most.append(memory_of(refused))
    assert most[0] < 160_000_000
    path.write_bytes(bomb(0, 0)[:-200])
    with pytest.raises(RadiographError, match='damaged or cut short'):
        read_dicom(path)


@pytest.mark.parametrize('frames', [2, 40_000])
def test_more_frames_than_one_are_refused_undecoded(tmp_path, frames):
    path = write(
        tmp_path / 'film.dcm',
        np.zeros((100, 100), np.uint8),
        syntax=RLELossless,
        data=rle_bomb(),
        NumberOfFrames=frames,
    )
    assert memory_of(lambda: pytest.raises(RadiographError, read_dicom, path)) < 20_000_000


def test_a_film_with_frames_behind_it_gives_the_first_alone(tmp_path):
    "NumberOfFrames says 1, and the encapsulated pixels hold three"
    values = rng().integers(0, 256, SIZE).astype(np.uint8)
    path = write(tmp_path / 'film.dcm', values, syntax=RLELossless, data=rle_of(values))
    ds = pydicom.dcmread(path)
    ds.PixelData = encapsulate([rle_of(values), rle_bomb(), rle_bomb()])
    ds.save_as(path)
    assert memory_of(lambda: read_dicom(path)) < 120_000_000
    assert np.array_equal(read_dicom(path), values)
