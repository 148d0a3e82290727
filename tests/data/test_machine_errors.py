"""An error of the machine (a failing disk, a lost drive, permissions, open files) is no damaged or absent file."""

import builtins
import errno
import io
import os
import pathlib
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from PIL import Image
from test_dicom import write

import cxr_lib.foundations.core
from cxr_lib.data.dicom import dicom_facts
from cxr_lib.data.elements import is_dicom
from cxr_lib.data.images import pixel_cache, scan_images
from cxr_lib.data.pixels import read_gray
from cxr_lib.data.studies import StudyTableError, is_there
from cxr_lib.data.tables import read_csv
from cxr_lib.foundations.core import RadiographError
from cxr_lib.foundations.files import is_file, is_folder, is_present, stop_on_machine_error
from cxr_lib.foundations.run import RunFolder
from cxr_lib.stages.exploration import exploration_stage

KEY = b'the key of a test, 32 bytes long'
RAMP = np.tile(np.arange(60, dtype=np.uint8) * 4, (50, 1))
ERRORS = (
    'EIO',
    'ENOTCONN',
    'EMFILE',
    'ENFILE',
    'EACCES',
    'EPERM',
    'ESTALE',
    'ENOSPC',
    'ETIMEDOUT',
    'EHOSTDOWN',
    'EREMOTEIO',
    'ENODEV',
    'EDQUOT',
)
ERRORS = tuple(name for name in ERRORS if hasattr(errno, name))


class BrokenFile(io.RawIOBase):
    "Opens, and fails when it is read"

    def __init__(self, number):
        self.number = number

    def readable(self):
        return True

    def seekable(self):
        return True

    def fileno(self):
        return 0

    def readinto(self, buffer):
        raise OSError(self.number, os.strerror(self.number))


def breaks(monkeypatch, number, where, name):
    "From now on the file of this name fails where it is opened, read or looked for ('stat'), or its folder when listed"

    def is_it(path):
        return isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path).rstrip('/').endswith(name)

    def error(path):
        return OSError(number, os.strerror(number), os.fsdecode(path))

    real_open, real_stat, real_list = io.open, os.stat, os.scandir

    def broken_open(file, *args, **kwargs):
        if not is_it(file):
            return real_open(file, *args, **kwargs)
        if where == 'open':
            raise error(file)
        return io.BufferedReader(BrokenFile(number))

    def broken_stat(path, *args, **kwargs):
        if is_it(path):
            raise error(path)
        return real_stat(path, *args, **kwargs)

    def broken_list(path='.'):
        if is_it(path):
            raise error(path)
        return real_list(path)

    if where == 'list':
        monkeypatch.setattr(os, 'scandir', broken_list)
    elif where == 'stat':
        monkeypatch.setattr(os, 'stat', broken_stat)
    else:
        if hasattr(pathlib, '_NormalAccessor'):  # Python 3.10, which took `io.open` when it was imported
            monkeypatch.setattr(pathlib._NormalAccessor, 'open', staticmethod(broken_open))
        monkeypatch.setattr(io, 'open', broken_open)
        monkeypatch.setattr(builtins, 'open', broken_open)


def check_words(error, number, name):
    assert error.errno == number and not isinstance(error, ValueError)
    assert (
        'This is an error of the machine, not a damaged file.' in str(error)
        and os.strerror(number) in str(error)
        and name in str(error)
    )
    assert not re.search('download or copy it again', str(error), re.I)


@pytest.mark.parametrize('name', ERRORS)
@pytest.mark.parametrize('where', ['open', 'read', 'stat'])
@pytest.mark.parametrize('kind', ['png', 'dcm'])
def test_a_film_that_the_machine_cannot_read_is_not_called_damaged(tmp_path, monkeypatch, kind, where, name):
    path, number = tmp_path / f'film.{kind}', getattr(errno, name)
    if kind == 'png':
        Image.fromarray(RAMP).save(path)
    else:
        write(path, RAMP)
    breaks(monkeypatch, number, where, path.name)
    for look in (read_gray, *([lambda p: dicom_facts(p, KEY)] if kind == 'dcm' else [])):
        with pytest.raises(OSError) as error:
            look(path)
        check_words(error.value, number, path.name)


@pytest.mark.parametrize('number', [errno.EIO, errno.EACCES])
@pytest.mark.parametrize('where', ['open', 'read', 'stat'])
def test_what_kind_of_file_it_is_is_not_guessed_from_an_error(tmp_path, monkeypatch, where, number):
    write(tmp_path / 'IM0001', RAMP)
    breaks(monkeypatch, number, where, 'IM0001')
    with pytest.raises(OSError) as error:
        is_dicom(tmp_path / 'IM0001')
    check_words(error.value, number, 'IM0001')


def test_a_path_is_there_or_absent_and_an_error_is_neither(tmp_path, monkeypatch):
    (tmp_path / 'film.png').write_bytes(b'x')
    assert (
        is_file(tmp_path / 'film.png')
        and is_folder(tmp_path)
        and is_present(tmp_path)
        and not is_file(tmp_path)
        and not is_folder(tmp_path / 'film.png')
    )
    for absent in ('none.png', 'film.png/below', 'x' * 300, 'nul\0byte'):
        assert not (
            is_file(tmp_path / absent) or is_folder(tmp_path / absent) or is_present(tmp_path / absent)
        ), absent
    (tmp_path / 'round').symlink_to(tmp_path / 'round')
    assert not is_file(tmp_path / 'round')
    breaks(monkeypatch, errno.EIO, 'stat', 'film.png')
    for look in (is_file, is_folder, is_present):
        with pytest.raises(OSError) as error:
            look(tmp_path / 'film.png')
        check_words(error.value, errno.EIO, 'film.png')


def test_an_error_is_put_into_words_once_and_one_without_a_number_is_left_to_the_caller():
    first = pytest.raises(
        OSError, stop_on_machine_error, OSError(errno.ENOSPC, 'No space left on device'), 'film.png'
    ).value
    assert pytest.raises(OSError, stop_on_machine_error, first, 'other.png').value is first
    assert 'Free space on the disk' in str(first)
    assert isinstance(
        pytest.raises(
            OSError, stop_on_machine_error, PermissionError(errno.EACCES, 'Permission denied'), 'film.png'
        ).value,
        PermissionError,
    )
    for harmless in (
        OSError('image file is truncated'),
        ValueError('x'),
        FileNotFoundError(errno.ENOENT, 'none'),
        OSError(errno.EINVAL, 'seek'),
        OSError(errno.ENAMETOOLONG, 'long'),
    ):
        assert stop_on_machine_error(harmless, 'film.png') is None


def test_a_film_that_vanishes_between_two_looks_is_absent_and_a_cut_one_damaged(tmp_path, monkeypatch):
    Image.fromarray(RAMP).save(tmp_path / 'film.png')
    (tmp_path / 'cut.jpg').write_bytes(b'')
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 60)).astype(np.uint8)).save(
        tmp_path / 'cut.jpg'
    )
    (tmp_path / 'cut.jpg').write_bytes((tmp_path / 'cut.jpg').read_bytes()[:-900])
    with pytest.raises(RadiographError, match='damaged or cut short'):
        read_gray(tmp_path / 'cut.jpg')
    breaks(monkeypatch, errno.ENOENT, 'open', 'film.png')
    with pytest.raises(RadiographError, match='no such file'):
        read_gray(tmp_path / 'film.png')


# Stages


def source(root, n=12):
    root.mkdir()
    for i in range(n):
        Image.fromarray(np.roll(RAMP, 3 * i, 1)).save(root / f'{i}.png')
    pd.DataFrame(
        {
            'image': [f'{i}.png' for i in range(n)],
            'patient_id': [f'p{i}' for i in range(n)],
            'Edema': np.arange(n) % 2,
        }
    ).to_csv(root / 'studies.csv', index=False)
    return root


@pytest.mark.parametrize('name', ERRORS)
@pytest.mark.parametrize(
    'where, what', [('open', '/2.png'), ('read', '/2.png'), ('stat', '/2.png'), ('list', '/own')]
)
def test_a_stage_that_may_leave_films_out_stops_and_leaves_no_stamp(tmp_path, monkeypatch, where, what, name):
    monkeypatch.setenv('CXR_HOME', str(tmp_path / 'home'))
    root, run, number = source(tmp_path / 'own'), RunFolder(tmp_path / 'run'), getattr(errno, name)
    breaks(monkeypatch, number, where, what)
    with pytest.raises(OSError) as error:
        exploration_stage(
            run,
            dataset='csv',
            root=str(root),
            missing='exclude',
            unreadable='exclude',
            tuning_fraction=0.3,
            test_fraction=0.3,
        )
    check_words(error.value, number, what)
    monkeypatch.undo()
    assert (
        not run.done('exploration')
        and not (run / 'studies.parquet').exists()
        and not (run / 'exclusions.csv').exists()
    )


@pytest.mark.parametrize('where', ['open', 'read', 'stat'])
def test_a_folder_of_dicom_files_is_read_whole_or_not_at_all(tmp_path, monkeypatch, where):
    from cxr_lib.data.folders import load_dicom

    monkeypatch.setenv('CXR_HOME', str(tmp_path / 'home'))
    (tmp_path / 'own').mkdir()
    for i in range(3):
        write(tmp_path / 'own' / f'{i}.dcm', RAMP, PatientID=f'p{i}', ViewPosition='PA')
    breaks(monkeypatch, errno.EIO, where, '1.dcm')
    with pytest.raises(OSError) as error:
        load_dicom(tmp_path / 'own', progress=False)
    check_words(error.value, errno.EIO, '1.dcm')


def test_the_pixel_cache_stops_keeps_what_is_done_and_goes_on_afterwards(tmp_path, monkeypatch):
    root = source(tmp_path / 'own', 70)
    images = [f'{i}.png' for i in range(70)]
    for where in ('stat', 'open', 'read'):
        with monkeypatch.context() as patch:
            breaks(patch, errno.ENOTCONN, where, '/40.png')
            with pytest.raises(OSError) as error:
                pixel_cache(root, images, 32, tmp_path / 'cache', progress=False, workers=1)
            check_words(error.value, errno.ENOTCONN, '40.png')
    pixels = pixel_cache(root, images, 32, tmp_path / 'cache', progress=False)
    assert all(pixels[i].any() for i in range(70))
    with pytest.raises(OSError, match='error of the machine'):
        breaks(monkeypatch, errno.EIO, 'open', 'pixels.npy')
        pixel_cache(root, images, 32, tmp_path / 'cache', progress=False)
    assert list((tmp_path / 'cache').glob('*/meta.json'))  # and it is not built anew


def test_a_scan_stops_and_a_listing_does_not_take_an_error_for_absence(tmp_path, monkeypatch):
    root = source(tmp_path / 'own')
    with monkeypatch.context() as patch:
        breaks(patch, errno.ETIMEDOUT, 'open', '/5.png')
        with pytest.raises(OSError, match='error of the machine'):
            scan_images(root, [f'{i}.png' for i in range(12)], progress=False)
    for names, where, what in (
        ([f'{i}.png' for i in range(12)], 'list', 'own'),
        (['5.png'], 'stat', '5.png'),
    ):
        with monkeypatch.context() as patch:
            breaks(patch, errno.EACCES, where, what)
            with pytest.raises(PermissionError, match='error of the machine'):
                is_there(names, root)
    assert (
        is_there(['5.png', 'none.png', 'none/5.png', *[f'other/{i}.png' for i in range(9)]], root).tolist()
        == [True] + [False] * 11
    )


# Other files


def of_csv(tmp_path):
    (tmp_path / 'table.csv').write_text('image,patient_id\n1.png,p1\n')
    return 'table.csv', lambda: read_csv(tmp_path / 'table.csv'), StudyTableError


def of_predictions(tmp_path):
    from cxr_lib.metrics.predictions import read_predictions

    pd.DataFrame({'image': ['1.png']}).to_parquet(tmp_path / 'predictions.parquet')
    return 'predictions.parquet', lambda: read_predictions(tmp_path / 'predictions.parquet'), ValueError


def of_permutations(tmp_path):
    from cxr_lib.training.conditions import read_permutations

    np.savez(tmp_path / 'permutations.npz', x=np.zeros(3))
    return 'permutations.npz', lambda: read_permutations(tmp_path / 'permutations.npz'), ValueError


def of_secret(tmp_path):
    from cxr_lib.data.folders import dicom_secret

    dicom_secret(tmp_path / 'secret')
    return 'secret', lambda: dicom_secret(tmp_path / 'secret'), ValueError


def of_download(tmp_path):
    from cxr_lib.data.download import PartialFile

    partial = PartialFile(tmp_path / 'data.zip', 'https://example.org/data.zip')
    partial.begin({}, 9)
    return 'data.zip.part.json', partial.memory, AssertionError


def of_candidates(tmp_path):
    from cxr_lib.evaluation.selection import read_candidates

    (tmp_path / 'candidates.json').write_text('{"a": {"preset": "tiny"}}')
    return 'candidates.json', lambda: read_candidates(str(tmp_path / 'candidates.json')), ValueError


@pytest.mark.parametrize(
    'make', [of_csv, of_predictions, of_permutations, of_secret, of_download, of_candidates]
)
def test_other_files_are_not_called_damaged_either(tmp_path, monkeypatch, make):
    name, read, _ = make(tmp_path)
    breaks(monkeypatch, errno.EIO, 'open', name)
    if make is of_predictions:
        monkeypatch.setattr(
            pd, 'read_parquet', lambda path, **more: open(path)
        )  # pyarrow opens files by itself
    with pytest.raises(OSError) as error:
        read()
    check_words(error.value, errno.EIO, name)


def test_a_checkpoint_that_cannot_be_read_now_is_not_set_aside(tmp_path, monkeypatch):
    from cxr_lib.training.resume import read_checkpoint, write_checkpoint

    write_checkpoint(tmp_path / 'last.ckpt', {'x': 1})
    with monkeypatch.context() as patch:
        breaks(patch, errno.EIO, 'open', 'last.ckpt')
        with pytest.raises(OSError) as error:
            read_checkpoint(tmp_path / 'last.ckpt')
    check_words(error.value, errno.EIO, 'last.ckpt')
    assert [p.name for p in tmp_path.iterdir()] == ['last.ckpt']


def test_no_module_asks_with_functions_that_take_an_error_for_absence():
    for path in sorted((ROOT / 'cxr_lib').rglob('*.py')):
        found = re.findall(r'os\.path\.(?:exists|isfile|isdir|lexists)\(', path.read_text(encoding='utf-8'))
        assert not found, (path.name, found)
    assert Path(cxr_lib.__file__).parent == ROOT / 'cxr_lib'
