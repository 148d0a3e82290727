"""DICOM: the picture that a reader would see, or an error with a remedy; and nothing of a header gets out."""

import io
import logging
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_windowing, get_decoder
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    RLELossless,
    generate_uid,
)

from cxr_lib.foundations.core import RadiographError
from cxr_lib.data.header import NOTE_TAGS, age_in_years, keyed_hash, view_of
from cxr_lib.data.dicom import dicom_facts, read_dicom, upright
from cxr_lib.data.elements import is_dicom
from cxr_lib.data.gray import window

KEY = b'the key of a test, 32 bytes long'
RAMP = np.tile(np.arange(64, dtype=np.uint16) * 64, (48, 1))  # 12 bit, brighter to the right
#: What a header holds of a person: none of it may ever be seen again.
PRIVATE = dict(
    PatientName='ZYXWVUT^QPONML',
    PatientID='HOSP-770077',
    PatientBirthDate='19310417',
    StudyDate='20210305',
    AccessionNumber='ACC555123',
    ReferringPhysicianName='GRUMBLEBY^AXEL',
    InstitutionName='St. Nowhere',
    StudyInstanceUID='1.2.826.0.1.3680043.8.498.777',
    StudyDescription='seen by Grumbleby',
    PatientAddress='Elm Street 13',
    PatientComments='ZYXWVUT asks',
)
WORDS = (
    'ZYXWVUT',
    'QPONML',
    '770077',
    '19310417',
    '20210305',
    'ACC555123',
    'GRUMBLEBY',
    'NOWHERE',
    '498.777',
    'ELM STREET',
)


def write(path, stored=RAMP, photometric='MONOCHROME2', syntax=ExplicitVRLittleEndian, data=None, **tags):
    "A DX file; `data`: encoded pixels in place of the stored values; a tag of None is left out"
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = '1.2.840.10008.5.1.4.1.1.1.1'
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    bits = {1: 8, 2: 12}[stored.itemsize]
    form = dict(
        Modality='DX',
        Rows=stored.shape[0],
        Columns=stored.shape[1],
        SamplesPerPixel=3 if stored.ndim == 3 else 1,
        PhotometricInterpretation=photometric,
        BitsAllocated=8 * stored.itemsize,
        BitsStored=bits,
        PixelRepresentation=int(stored.dtype.kind == 'i'),
        **({'PlanarConfiguration': 0} if stored.ndim == 3 else {}),
    )
    form |= PRIVATE | tags
    form.setdefault('HighBit', (form['BitsStored'] or 1) - 1)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for k, v in form.items():
            if v is not None:
                setattr(ds, k, v)
        ds.PixelData = (
            encapsulate([data])
            if data is not None
            else stored.astype(stored.dtype.newbyteorder('>')).tobytes()
            if syntax == ExplicitVRBigEndian
            else stored.tobytes()
        )
        ds['PixelData'].VR = (
            'OB' if data is not None or stored.itemsize == 1 and syntax != ImplicitVRLittleEndian else 'OW'
        )
        ds['PixelData'].is_undefined_length = data is not None
        ds.save_as(path, enforce_file_format=True)
    return path


def without_preamble(path):
    "As some archives write them: the dataset alone, implicit VR"
    ds = pydicom.dcmread(path)
    out = io.BytesIO()
    pydicom.dcmwrite(out, Dataset(ds), implicit_vr=True, little_endian=True)
    path.write_bytes(out.getvalue())
    return path


def lut(entries, first=0, bits=16):
    item = Dataset()
    item.add_new('LUTDescriptor', 'US', [len(entries), first, bits])
    item.add_new('LUTData', 'US', [int(e) for e in entries])
    return [item]


def code(value):
    item = Dataset()
    item.CodeValue = value
    return [item]


# Pixels


def test_monochrome1_is_monochrome2_inverted(tmp_path):
    for tags in ({}, dict(WindowCenter=2000, WindowWidth=900)):
        two, one = (
            read_dicom(write(tmp_path / f'{p}.dcm', photometric=p, **tags))
            for p in ('MONOCHROME2', 'MONOCHROME1')
        )
        assert np.abs(255 - two.astype(int) - one).max() <= 1 and two[0, 0] == 0 and two[0, -1] == 255


@settings(max_examples=20, deadline=None)
@given(
    depth=st.tuples(st.sampled_from((8, 10, 12, 14, 16)), st.booleans()),
    slope=st.sampled_from((1, 0.5, -2, 3)),
    intercept=st.sampled_from((0, -1024, 7.5)),
    center=st.floats(0.2, 0.8),
    width=st.floats(0.05, 0.9),
    function=st.sampled_from(('LINEAR', 'LINEAR_EXACT', 'SIGMOID')),
    seed=st.integers(0, 99),
)
def test_bit_depth_sign_rescale_and_window_give_what_the_standard_says(
    tmp_path_factory, depth, slope, intercept, center, width, function, seed
):
    path = tmp_path_factory.mktemp('dicom') / 'film.dcm'
    bits, signed = depth
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    cells = f'{"i" if signed else "u"}{1 if bits == 8 else 2}'
    stored = np.random.default_rng(seed).integers(low, high, (20, 30), endpoint=True).astype(cells)
    first, last = sorted((low * slope + intercept, high * slope + intercept))
    tags = dict(RescaleSlope=slope, RescaleIntercept=intercept)
    tags['WindowCenter'] = round(first + center * (last - first), 2)
    tags['WindowWidth'] = round(max(4, width * (last - first)), 2)
    got = read_dicom(write(path, stored, BitsStored=bits, VOILUTFunction=function, **tags))
    ds = pydicom.dcmread(path)
    if slope > 0:  # pydicom's own window inverts a film whose slope is negative
        want = apply_windowing(apply_modality_lut(ds.pixel_array, ds), ds)
        want = (want - (low * slope + intercept)) / ((high - low) * slope)
    else:
        want = window(stored * float(slope) + intercept, tags['WindowCenter'], tags['WindowWidth'], function)
    assert np.abs(got - 255 * want).max() <= 0.51


def test_a_film_without_window_shows_its_own_range(tmp_path):
    film = (1500 + RAMP // 8).astype(np.uint16)
    film[0, :2] = 0, 4095  # two dead pixels decide nothing
    image = read_dicom(write(tmp_path / 'film.dcm', film))
    assert image[5, 0] == 0 and image[5, -1] == 255 and (np.diff(image[5].astype(int)) >= 0).all()
    assert len(np.unique(read_dicom(write(tmp_path / 'same.dcm', np.full((9, 9), 700, np.uint16))))) == 1


def test_an_eight_bit_film_without_window_is_taken_as_it_is(tmp_path):
    film = (RAMP // 32 + 40).astype(np.uint8)
    assert np.array_equal(read_dicom(write(tmp_path / 'film.dcm', film)), film)
    assert np.array_equal(
        read_dicom(
            write(
                tmp_path / 'wide.dcm',
                film.astype(np.uint16),
                BitsStored=8,
                RescaleSlope=1,
                RescaleIntercept=0,
            )
        ),
        film,
    )


@pytest.mark.parametrize(
    'tags',
    [
        dict(WindowCenter=2000, WindowWidth=0),
        dict(WindowCenter=90_000, WindowWidth=50),
        dict(WindowCenter=2000),
        dict(WindowWidth=200),
    ],
)
def test_a_window_that_cannot_be_meant_counts_as_none(tmp_path, tags):
    assert np.array_equal(
        read_dicom(write(tmp_path / 'film.dcm', **tags)), read_dicom(write(tmp_path / 'none.dcm'))
    )


def test_of_several_windows_the_first_is_used(tmp_path):
    two = read_dicom(write(tmp_path / 'two.dcm', WindowCenter=[1000, 3000], WindowWidth=[500, 90]))
    assert np.array_equal(two, read_dicom(write(tmp_path / 'one.dcm', WindowCenter=1000, WindowWidth=500)))


def test_lookup_tables_are_applied(tmp_path):
    curve = (np.sqrt(np.arange(4096) / 4095) * 4095).round()
    want = np.rint(curve[RAMP] * 255 / 4095)
    assert np.array_equal(
        read_dicom(
            write(tmp_path / 'voi.dcm', VOILUTSequence=lut(curve, bits=12), WindowCenter=9, WindowWidth=9)
        ),
        want,
    )
    assert np.array_equal(
        read_dicom(write(tmp_path / 'deep.dcm', VOILUTSequence=lut(curve, bits=16))), want
    )  # declares 16 bits, holds 12
    eight = read_dicom(
        write(tmp_path / 'eight.dcm', VOILUTSequence=lut(np.arange(4096) // 16, bits=8))
    )  # 8-bit entries for 12-bit values
    assert np.array_equal(eight, RAMP // 16)
    measured = read_dicom(
        write(
            tmp_path / 'modality.dcm',
            ModalityLUTSequence=lut(4095 - np.arange(4096)),
            WindowCenter=2047.5,
            WindowWidth=4095,
            VOILUTFunction='LINEAR_EXACT',
        )
    )
    assert np.abs(measured - (255 - 255 * (RAMP / 4095))).max() <= 0.51
    first = read_dicom(
        write(tmp_path / 'first.dcm', VOILUTSequence=lut(np.arange(1000, 3000), first=1000, bits=12))
    )  # values outside take the table's ends
    assert np.array_equal(first, np.rint(RAMP.clip(1000, 2999) * (255 / 4095)))


def test_padding_is_black_and_does_not_count_for_the_range(tmp_path):
    for photometric, padding in (('MONOCHROME2', 4095), ('MONOCHROME1', 0)):
        film = (1000 + RAMP // 4).astype(np.uint16)
        film[:10] = padding
        image = read_dicom(write(tmp_path / 'film.dcm', film, photometric, PixelPaddingValue=padding))
        assert (image[:10] == 0).all() and np.ptp(image[10:].astype(int)) == 255
    band = (1000 + RAMP // 4).astype(np.uint16)
    band[:10], band[10:20] = 3000, 3100
    assert (
        read_dicom(write(tmp_path / 'band.dcm', band, PixelPaddingValue=3000, PixelPaddingRangeLimit=3100))[
            :20
        ]
        == 0
    ).all()
    signed = (RAMP // 4).astype(np.int16) - 500
    signed[:10] = -2000
    assert (
        np.ptp(
            read_dicom(write(tmp_path / 'signed.dcm', signed, BitsStored=16, PixelPaddingValue=-2000))[
                10:
            ].astype(int)
        )
        == 255
    )
    assert (
        np.ptp(
            read_dicom(
                write(tmp_path / 'all.dcm', np.full((9, 9), 7, np.uint16), PixelPaddingValue=7)
            ).astype(int)
        )
        == 0
    )


@pytest.mark.parametrize('syntax', [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_uncompressed_transfer_syntaxes_agree(tmp_path, syntax):
    tags = dict(WindowCenter=2000, WindowWidth=1500)
    assert np.array_equal(
        read_dicom(write(tmp_path / 'film.dcm', syntax=syntax, **tags)),
        read_dicom(write(tmp_path / 'plain.dcm', **tags)),
    )


def test_implicit_vr_without_preamble_is_read(tmp_path):
    path = write(tmp_path / 'film.dcm', WindowCenter=2000, WindowWidth=1500)
    want, facts = read_dicom(path), dicom_facts(path, KEY)
    assert np.array_equal(read_dicom(without_preamble(path)), want) and dicom_facts(path, KEY) == facts


def test_rle_equals_raw(tmp_path):
    path = write(tmp_path / 'film.dcm', RAMP)
    want = read_dicom(path)
    ds = pydicom.dcmread(path)
    ds.compress(RLELossless)
    ds.save_as(path)
    assert np.array_equal(read_dicom(path), want)


def test_jpeg_and_jpeg_2000_are_decoded(tmp_path):
    film, out, deep = (RAMP // 16).astype(np.uint8), io.BytesIO(), io.BytesIO()
    Image.fromarray(film).save(out, 'JPEG', quality=98)
    assert (
        np.abs(
            read_dicom(
                write(tmp_path / 'film.dcm', film, syntax=JPEGBaseline8Bit, data=out.getvalue())
            ).astype(int)
            - film
        ).max()
        <= 4
    )
    Image.fromarray(RAMP).save(deep, 'JPEG2000', irreversible=False, no_jp2=True)
    tags = dict(BitsStored=16, WindowCenter=2000, WindowWidth=1500)
    assert np.array_equal(
        read_dicom(write(tmp_path / 'deep.dcm', syntax=JPEG2000Lossless, data=deep.getvalue(), **tags)),
        read_dicom(write(tmp_path / 'plain.dcm', **tags)),
    )


def test_colours_become_gray(tmp_path):
    gray = (RAMP // 16).astype(np.uint8)
    color = np.stack([gray, gray, gray], axis=-1)
    assert np.array_equal(read_dicom(write(tmp_path / 'rgb.dcm', color, 'RGB')), gray)
    ybr = np.stack([gray, np.full_like(gray, 128), np.full_like(gray, 128)], axis=-1)
    assert np.abs(read_dicom(write(tmp_path / 'ybr.dcm', ybr, 'YBR_FULL')).astype(int) - gray).max() <= 1
    planes = np.moveaxis(color, -1, 0).copy()
    path = write(tmp_path / 'planes.dcm', planes, 'RGB', Rows=48, Columns=64, PlanarConfiguration=1)
    assert np.array_equal(read_dicom(path), gray)
    out = io.BytesIO()
    Image.fromarray(color).save(out, 'JPEG', quality=98)
    assert (
        np.abs(
            read_dicom(
                write(
                    tmp_path / 'jpeg.dcm', color, 'YBR_FULL_422', syntax=JPEGBaseline8Bit, data=out.getvalue()
                )
            ).astype(int)
            - gray
        ).max()
        <= 4
    )


def test_pixels_that_are_not_square_become_so(tmp_path):
    for tags in (
        dict(PixelSpacing=[0.3, 0.1]),
        dict(ImagerPixelSpacing=[0.3, 0.1]),
        dict(PixelAspectRatio=[3, 1]),
    ):
        assert read_dicom(write(tmp_path / 'film.dcm', **tags)).shape == (48, 21)
    assert read_dicom(write(tmp_path / 'tall.dcm', PixelSpacing=[0.1, 0.2])).shape == (24, 64)
    for tags in (
        dict(PixelSpacing=[0.143, 0.143]),
        dict(PixelSpacing=[0, 0]),
        dict(PixelSpacing=[0.2, 0.2], PixelAspectRatio=[3, 1]),
    ):
        assert read_dicom(write(tmp_path / 'square.dcm', **tags)).shape == (48, 64)


@pytest.mark.parametrize(
    'letters, turn',
    [
        (('L', 'F'), lambda a: a),
        (('R', 'F'), lambda a: a[:, ::-1]),
        (('L', 'H'), lambda a: a[::-1]),
        (('R', 'H'), lambda a: a[::-1, ::-1]),
        (('F', 'L'), lambda a: a.T),
        (('A', 'F'), lambda a: a),
        (('P', 'F'), lambda a: a),
        (('P', 'H'), lambda a: a[::-1]),
        (('L', 'R'), lambda a: a),
        (('', 'F'), lambda a: a),
        (('X', 'Y'), lambda a: a),
        (('LA', 'F'), lambda a: a),
    ],
)
def test_a_film_is_brought_to_radiological_orientation(tmp_path, letters, turn):
    film = np.random.default_rng(0).integers(0, 255, (5, 7)).astype(np.uint8)
    stored = np.ascontiguousarray(turn(film))  # each of these turns undoes itself
    path = write(tmp_path / 'film.dcm', stored, PatientOrientation=list(letters))
    assert np.array_equal(read_dicom(path), film) and read_dicom(path).flags.c_contiguous
    assert dicom_facts(path, KEY)['turned'] == (not np.array_equal(stored, film))


@given(
    st.sampled_from([a + b for a in 'LR' for b in 'HF'] + [b + a for a in 'LR' for b in 'HF']),
    st.integers(1, 6),
    st.integers(1, 6),
)
def test_turning_keeps_every_pixel(letters, h, w):
    image = np.arange(h * w).reshape(h, w)
    assert sorted(upright(image, *letters).ravel()) == list(range(h * w))


def test_threads_read_the_same(tmp_path):
    path = write(tmp_path / 'film.dcm', WindowCenter=2000, WindowWidth=900)
    want = read_dicom(path)
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        assert all(np.array_equal(image, want) for image in pool.map(read_dicom, [path] * 64))
    assert warnings.filters == before and not logging.getLogger('pydicom').disabled


# What is refused


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def half_jpeg():
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64)).astype(np.uint8)).save(out, 'JPEG')
    return out.getvalue()[:900]


EIGHT = (RAMP // 16).astype(np.uint8)
REFUSED = {
    'absent': (lambda p: None, 'no such file'),
    'folder': (lambda p: p.mkdir(), 'no such file'),
    'empty': (lambda p: p.write_bytes(b''), 'file is empty'),
    'text': (lambda p: p.write_text('ZYXWVUT was not filmed ' * 20), 'not a DICOM file'),
    'short text': (lambda p: p.write_text('ZYXWVUT'), 'not a DICOM file'),
    'jpeg': (lambda p: Image.fromarray(EIGHT).save(p, 'JPEG'), 'not a DICOM file'),
    'preamble alone': (lambda p: p.write_bytes(b'\0' * 128 + b'DICM'), 'no pixel data'),
    'noise after the preamble': (
        lambda p: p.write_bytes(b'\0' * 128 + b'DICM' + np.random.default_rng(0).bytes(5000)),
        '',
    ),
    'cut in the header': (lambda p: cut(write(p), 700), 'no pixel data'),
    'cut in the pixels': (lambda p: cut(write(p), -900), 'cut short'),
    'cut jpeg': (
        lambda p: write(p, EIGHT, syntax=JPEGBaseline8Bit, data=half_jpeg()),
        'damaged or cut short',
    ),
    'cut rle': (
        lambda p: write(p, syntax=RLELossless, data=b'\2\0\0\0' + b'\xff' * 80),
        'damaged or cut short',
    ),
    'another size in the jpeg': (
        lambda p: write(p, EIGHT, syntax=JPEGBaseline8Bit, data=half_jpeg() + b'\xff\xd9', Rows=500),
        'damaged or cut short',
    ),
    'frames': (lambda p: write(p, NumberOfFrames=12), 'holds 12, and a radiograph has one'),
    'report': (lambda p: write(p, Rows=None, Columns=None, Modality='SR'), 'Rows, Columns is missing'),
    'bomb': (lambda p: write(p, Rows=60_000, Columns=60_000), 'Resize it first'),
    'large': (lambda p: write(p, Rows=10_001, Columns=10_000), 'Resize it first'),
    'compressed bomb': (
        lambda p: write(p, EIGHT, syntax=JPEG2000Lossless, data=b'tiny', Rows=60_000, Columns=60_000),
        'Resize it first',
    ),
    'no rows': (lambda p: write(p, Rows=0), 'not read'),
    'palette': (lambda p: write(p, photometric='PALETTE COLOR'), 'colours that are not read'),
    'two samples': (lambda p: write(p, SamplesPerPixel=3), 'colours that are not read'),
    'one bit': (lambda p: write(p, BitsAllocated=1, BitsStored=1), 'pixels that are not read'),
    '32 bits': (lambda p: write(p, BitsAllocated=32, BitsStored=32), 'pixels that are not read'),
    'high bits': (lambda p: write(p, HighBit=15), 'pixels that are not read'),
    'for processing': (lambda p: write(p, PresentationIntentType='FOR PROCESSING'), 'raw detector image'),
    'slope 0': (lambda p: write(p, RescaleSlope=0, RescaleIntercept=5), 'RescaleSlope is 0'),
    'window function': (
        lambda p: write(p, WindowCenter=5, WindowWidth=9, VOILUTFunction='ZYXWVUT'),
        'VOILUTFunction should be',
    ),
    'lookup table': (lambda p: write(p, VOILUTSequence=[Dataset()]), 'lookup table'),
    'damaged padding': (
        lambda p: write(
            p, PixelPaddingValue=None, PixelPaddingRangeLimit=5, WindowWidth=5, WindowCenter=float('inf')
        ),
        'WindowCenter does not hold',
    ),
    'flat pixels': (lambda p: write(p, PixelAspectRatio=[1000, 1]), 'times as high as wide'),
    'jpeg lossless': (lambda p: write(p, syntax=JPEGLosslessSV1, data=b'\xff\xd8nothing'), None),
    'jpeg 12 bit': (lambda p: write(p, syntax=JPEGExtended12Bit, data=b'\xff\xd8nothing'), None),
    'video': (
        lambda p: write(p, EIGHT, syntax='1.2.840.10008.1.2.4.100', data=b'nothing'),
        'is not one that pydicom reads',
    ),
    'private syntax': (
        lambda p: p.write_bytes(
            write(p).read_bytes().replace(b'1.2.840.10008.1.2.1\0', b'9.9.770077.10008.99\0')
        ),
        'unknown to the standard',
    ),
}


def seen_of(error):
    return str(error) + repr(error) + ''.join(traceback.format_exception(error))


@pytest.mark.parametrize('name', REFUSED)
@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
def test_a_file_that_is_no_film_is_refused_with_file_and_remedy(name, tmp_path, caplog, capfd):
    make, words = REFUSED[name]
    path = tmp_path / 'film.dcm'
    make(path)
    with warnings.catch_warnings(record=True) as warned, caplog.at_level(logging.DEBUG):
        warnings.simplefilter('always')
        with pytest.raises(RadiographError) as e:
            read_dicom(path)
    assert str(e.value).startswith(f'{path}: ') and len(str(e.value).replace(str(path), '')) > 40
    if words is not None:
        assert words in str(e.value)
    seen = (
        seen_of(e.value)
        + caplog.text
        + ''.join(map(str, capfd.readouterr()))
        + ' '.join(str(w.message) for w in warned)
    )
    assert not [w for w in WORDS if w in seen.replace(str(tmp_path), '').upper()]


@pytest.mark.parametrize(
    'syntax, package',
    [
        (JPEGLosslessSV1, 'pylibjpeg-libjpeg'),
        (JPEGExtended12Bit, 'pylibjpeg-libjpeg'),
        (HTJ2KLossless, 'pylibjpeg-openjpeg'),
    ],
)
def test_a_missing_decoder_is_named_with_the_package_to_install(tmp_path, monkeypatch, syntax, package):
    decoder = get_decoder(syntax)
    monkeypatch.setattr(
        type(decoder),
        'available_plugins',
        property(lambda self: ('pillow',) if self.UID == JPEGExtended12Bit else ()),
    )
    path = write(tmp_path / 'film.dcm', syntax=syntax, data=b'\xff\xd8nothing')
    with pytest.raises(RadiographError) as e:
        read_dicom(path)
    assert f'{syntax.name}. Run: pip install pylibjpeg {package}' in str(e.value)
    assert dicom_facts(path, KEY)['refused'].startswith('no decoder')


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_any_damage_ends_in_a_picture_or_in_an_error_without_the_name(tmp_path_factory, seed, truncate):
    folder, rng = tmp_path_factory.mktemp('damage'), np.random.default_rng(seed)
    content = bytearray(
        write(
            folder / 'film.dcm',
            RAMP[:8, :8].copy(),
            WindowCenter=2000,
            WindowWidth=900,
            ViewCodeSequence=code('R-10206'),
        ).read_bytes()
    )
    for at in rng.integers(132, len(content), 4):
        content[at] = rng.integers(256)
    if truncate:
        content = content[: rng.integers(len(content))]
    (folder / 'film.dcm').write_bytes(content)
    for read in (read_dicom, lambda p: dicom_facts(p, KEY)):
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter('always')
            try:
                seen = read(folder / 'film.dcm')
            except RadiographError as e:
                seen = seen_of(e)
        if isinstance(seen, np.ndarray):
            assert seen.dtype == np.uint8 and seen.ndim == 2
        else:
            assert not [
                w for w in WORDS if w in (str(seen) + ' '.join(str(w.message) for w in warned)).upper()
            ]


@pytest.mark.parametrize(
    'keyword', ['WindowCenter', 'WindowWidth', 'RescaleSlope', 'PixelSpacing', 'NumberOfFrames']
)
def test_a_number_that_is_a_name_is_refused_without_repeating_it(tmp_path, keyword):
    path = tmp_path / 'film.dcm'
    tags = {
        'WindowCenter': 2000,
        'WindowWidth': 900,
        'RescaleSlope': 1,
        'PixelSpacing': [0.1, 0.1],
        'NumberOfFrames': 1,
    }
    ds = pydicom.dcmread(write(path, **tags))
    ds[keyword] = pydicom.DataElement(keyword, 'LO', 'ZYXWVUT')
    ds.save_as(path)
    with pytest.raises(RadiographError, match=f'{keyword} does not hold') as e:
        read_dicom(path)
    assert 'ZYXWVUT' not in seen_of(e.value) and keyword in dicom_facts(path, KEY)['refused']


# Facts


def test_facts_hold_nothing_of_the_header_but_what_is_asked(tmp_path):
    path = write(
        tmp_path / 'film.dcm',
        ViewPosition='AP',
        PatientSex='M',
        BodyPartExamined='PORT CHEST',
        PatientAge='093Y',
        IssuerOfPatientID='NOWHERE',
        Laterality='ZYXWVUT',
    )
    facts = dicom_facts(path, KEY)
    assert set(facts) == {
        'modality',
        'view',
        'projection',
        'sex',
        'age',
        'patient_id',
        'placeholder',
        'study_id',
        'film_id',
        'chest',
        'turned',
        'burned_in',
        'refused',
    }
    assert (
        facts['modality'],
        facts['view'],
        facts['projection'],
        facts['sex'],
        facts['age'],
        facts['chest'],
        facts['refused'],
    ) == ('DX', 'Frontal', 'AP', 'Male', 90, True, None)
    assert not [w for w in WORDS if w in repr(facts).upper()]
    assert all(len(facts[k]) == 16 and int(facts[k], 16) >= 0 for k in ('patient_id', 'study_id', 'film_id'))


@pytest.mark.parametrize(
    'keyword',
    [
        'Modality',
        'ViewPosition',
        'PatientSex',
        'PatientAge',
        'PatientOrientation',
        'ImageLaterality',
        'BodyPartExamined',
        'PhotometricInterpretation',
        'PresentationIntentType',
        'SpecificCharacterSet',
        'BurnedInAnnotation',
        'StudyDate',
    ],
)
def test_a_name_in_the_wrong_place_does_not_get_out_either(tmp_path, keyword, caplog):
    with warnings.catch_warnings(record=True) as warned, caplog.at_level(logging.DEBUG):
        warnings.simplefilter('always')
        path = write(tmp_path / 'film.dcm', **{keyword: 'ZYXWVUT'})
        caplog.clear()
        seen = repr(dicom_facts(path, KEY))
        try:
            read_dicom(path)
        except RadiographError as e:
            seen += seen_of(e)
    assert 'ZYXWVUT' not in seen + caplog.text + ' '.join(str(w.message) for w in warned)


def test_identifiers_are_keyed_and_belong_to_the_patient(tmp_path):
    a, b, c, d = (
        write(tmp_path / f'{i}.dcm', **tags)
        for i, tags in enumerate(
            (
                {},
                dict(StudyInstanceUID='1.2.3'),
                dict(PatientID='other'),
                dict(IssuerOfPatientID='another clinic'),
            )
        )
    )
    facts = [dicom_facts(p, KEY) for p in (a, b, c, d)]
    assert (
        facts[0]['patient_id'] == facts[1]['patient_id']
        and facts[0]['study_id'] != facts[1]['study_id']
        and len({f['patient_id'] for f in facts}) == 3
    )
    assert (
        dicom_facts(a, KEY) == facts[0] and dicom_facts(a, KEY[::-1])['patient_id'] != facts[0]['patient_id']
    )
    none = dicom_facts(write(tmp_path / 'none.dcm', PatientID=None, StudyInstanceUID=None), KEY)
    assert none['patient_id'] is None and none['study_id'] is None
    for short in (b'', b'short', 'a text of more than sixteen letters'):
        with pytest.raises(ValueError, match='16 bytes'):
            dicom_facts(a, short)


def test_one_byte_moved_between_parts_gives_another_hash():
    assert keyed_hash(KEY, 'ab', 'c') != keyed_hash(KEY, 'a', 'bc')


@pytest.mark.parametrize(
    'tags, view',
    [
        (dict(ViewPosition='PA'), ('Frontal', 'PA')),
        (dict(ViewPosition='AP ERECT'), ('Frontal', 'AP')),
        (dict(ViewPosition='LL'), ('Lateral', None)),
        (dict(ViewPosition='LATERAL'), ('Lateral', None)),
        (dict(ViewCodeSequence=code('R-10206')), ('Frontal', 'AP')),
        (dict(ViewCodeSequence=code('399173006')), ('Lateral', None)),
        (dict(ViewPosition='PA', ViewCodeSequence=code('R-10206')), ('Frontal', 'PA')),
        (dict(PatientOrientation=['A', 'F']), ('Lateral', None)),
        (dict(PatientOrientation=['R', 'F']), ('Frontal', None)),
        (dict(ViewPosition='RAO', PatientOrientation=['L', 'F']), (None, None)),
        (dict(ViewCodeSequence=code('399135007'), PatientOrientation=['L', 'F']), (None, None)),
        (dict(ViewPosition=''), (None, None)),
        (dict(ViewPosition='AP PA'), ('Frontal', None)),
    ],
)
def test_view_and_projection_come_from_the_tags(tmp_path, tags, view):
    facts = dicom_facts(write(tmp_path / 'film.dcm', **tags), KEY)
    assert (facts['view'], facts['projection']) == view


@given(st.text(), st.lists(st.text(), max_size=3))
def test_view_is_of_the_study_tables_vocabulary(position, codes):
    view, projection = view_of(position, codes)
    assert (
        view in ('Frontal', 'Lateral', None)
        and projection in ('AP', 'PA', None)
        and (projection is None or view == 'Frontal')
    )


@pytest.mark.parametrize(
    'tags, chest',
    [
        (dict(BodyPartExamined='CHEST'), True),
        (dict(BodyPartExamined='THORAX'), True),
        (dict(BodyPartExamined='HAND'), False),
        (dict(BodyPartExamined='THORACIC SPINE'), False),
        ({}, None),
        (dict(AnatomicRegionSequence=code('T-D3000')), True),
        (dict(AnatomicRegionSequence=code('T-D8700')), False),
        (dict(ImageLaterality='L'), False),
        (dict(ImageLaterality='U'), None),
        (dict(ImageLaterality='L', ViewPosition='LL'), None),
        (dict(ImageLaterality='L', BodyPartExamined='CHEST'), True),
    ],
)
def test_other_parts_of_the_body_are_told_from_a_chest(tmp_path, tags, chest):
    assert dicom_facts(write(tmp_path / 'film.dcm', **tags), KEY)['chest'] is chest


def test_age_prefers_its_own_tag_and_falls_back_to_dates(tmp_path):
    def age(**tags):
        return dicom_facts(write(tmp_path / 'film.dcm', **tags), KEY)['age']

    assert (
        age(PatientAge='045Y') == 45
        and age(PatientAge='012W') == 12 * 7 / 365.25
        and age(PatientAge='089Y') == 89
        and age(PatientAge='090Y') == age(PatientAge='104Y') == 90
    )
    assert (
        age(PatientBirthDate='19600401', StudyDate='20200331') == 59
        and age(PatientBirthDate='20191231', StudyDate='20200331') == 0.25
    )
    assert age(PatientAge='999Y', PatientBirthDate='19600401', StudyDate='20200401') == 60
    for tags in (
        dict(PatientBirthDate=None),
        dict(StudyDate=None),
        dict(PatientBirthDate='20300101'),
        dict(PatientBirthDate='18000101'),
        dict(PatientBirthDate='19000230'),
        dict(PatientBirthDate='1960401'),
    ):
        assert age(**tags) is None
    assert age(PatientBirthDate='19600401', StudyDate=None, ContentDate='20200401') == 60


@given(st.dates(), st.dates())
def test_an_age_from_dates_is_coarse_and_capped(born, filmed):
    age = age_in_years('', *(d.isoformat().replace('-', '') for d in (born, filmed)))
    days = (filmed - born).days
    if age is None:
        assert days < 31 or days > 120 * 365
    else:
        assert (age == int(age) if age >= 2 else age * 12 == pytest.approx(round(age * 12))) and (
            age == 90 or abs(age - days / 365.2425) < 1.01
        )


def test_a_note_is_read_only_where_asked(tmp_path):
    path = write(tmp_path / 'film.dcm', ReasonForStudy='cough for two weeks')
    assert (
        'note' not in dicom_facts(path, KEY)
        and dicom_facts(path, KEY, note_tag='ReasonForStudy')['note'] == 'cough for two weeks'
    )
    assert (
        dicom_facts(path, KEY, note_tag='AdditionalPatientHistory')['note'] is None
        and 'PatientName' not in NOTE_TAGS
    )
    with pytest.raises(ValueError, match='note_tag'):
        dicom_facts(path, KEY, note_tag='PatientName')


def test_facts_do_not_read_the_pixels_but_see_that_they_are_cut_short(tmp_path):
    path = write(tmp_path / 'film.dcm', np.zeros((400, 400), np.uint16))
    assert dicom_facts(path, KEY)['refused'] is None
    cut(path, -100)
    assert dicom_facts(path, KEY)['refused'].startswith('cut short')
    with pytest.raises(RadiographError, match='not a DICOM file'):
        dicom_facts(tmp_path.joinpath('text.dcm').write_text('x') and tmp_path / 'text.dcm', KEY)


def test_dicom_is_known_by_its_ending_or_its_magic(tmp_path):
    write(tmp_path / 'IM000001')
    write(tmp_path / 'film.DCM')
    (tmp_path / 'text.txt').write_text('x' * 500)
    assert [is_dicom(tmp_path / n) for n in ('IM000001', 'film.DCM', 'text.txt', 'absent.dcm', '.')] == [
        True,
        True,
        False,
        False,
        False,
    ]
