"""Archives count all that they unpack to: long headers, chains of them, what follows the end, unwanted members."""

import gzip
import io
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest
from test_openi import GOOD, archive

from cxr_lib.data.archives import DownloadError, unpack
from cxr_lib.data.openi import read_reports
from cxr_lib.data.public import load_medmnist
from cxr_lib.data.studies import StudyTableError

ZEROS = bytes(120_000_000)


def header(name, kind, size):
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.USTAR_FORMAT)


def plain_tar():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w') as tar:
        for name, xml in GOOD.items():
            info = tarfile.TarInfo(name)
            info.size = len(xml)
            tar.addfile(info, io.BytesIO(xml))
    return out.getvalue()


def pax_record(size):
    body = b' comment=' + b'a' * size + b'\n'
    length = len(body) + len(str(len(body) + 10))
    return str(length).encode() + body


def chain(count=3000):
    record = pax_record(400)
    padded = record + bytes(-len(record) % 512)
    return (header('g', tarfile.XGLTYPE, len(record)) + padded) * count


BOMBS = {
    'a pax header of a gigabyte': lambda: header('x', tarfile.XHDTYPE, 1_000_000_000) + ZEROS,
    'a long name of a gigabyte': lambda: header('L', tarfile.GNUTYPE_LONGNAME, 1_000_000_000) + ZEROS,
    'a chain of headers': lambda: chain() + plain_tar(),
    'a tail after the end': lambda: plain_tar() + ZEROS,
}


def packed(path, content, tail=False):
    with gzip.open(path, 'wb', compresslevel=1) as f:
        f.write(content)
    assert path.stat().st_size < 2_000_000
    return path


def memory_of(work):
    "The most that was held meanwhile, bytes"
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize('name', BOMBS)
def test_a_download_counts_its_headers_and_its_tail(tmp_path, name):
    path = packed(tmp_path / 'data.tgz', BOMBS[name]())

    def refused():
        with pytest.raises(DownloadError, match='data.tgz is damaged'):
            unpack(path, tmp_path / 'out', progress=False)

    assert memory_of(refused) < 20_000_000
    assert not [p for p in (tmp_path / 'out').rglob('*.xml')]


@pytest.mark.parametrize('name', BOMBS)
def test_the_archive_of_reports_counts_its_headers_and_its_tail(tmp_path, name):
    path = packed(tmp_path / 'NLMCXR_reports.tgz', BOMBS[name]())

    def refused():
        with pytest.raises(StudyTableError, match='not a whole .tgz'):
            read_reports(path)

    assert memory_of(refused) < 30_000_000


def test_a_second_gzip_member_behind_the_first_counts_too(tmp_path):
    path = tmp_path / 'NLMCXR_reports.tgz'
    path.write_bytes(gzip.compress(plain_tar()) + gzip.compress(ZEROS, 1))
    with pytest.raises(StudyTableError, match='unpacks to more than'):
        read_reports(path)
    with pytest.raises(DownloadError, match='what follows its end'):
        unpack(path, tmp_path / 'out', progress=False)


def test_a_member_that_is_no_report_counts_too(tmp_path):
    path = packed(
        tmp_path / 'NLMCXR_reports.tgz',
        header('picture.bin', tarfile.REGTYPE, len(ZEROS)) + ZEROS + plain_tar(),
    )
    with pytest.raises(StudyTableError, match='picture.bin: it unpacks to more than'):
        read_reports(path)


def test_archives_with_long_names_and_a_usual_tail_are_unpacked(tmp_path):
    path, long = tmp_path / 'data.tgz', 'images/' + 'a' * 180 + '.png'
    with tarfile.open(path, 'w:gz', format=tarfile.PAX_FORMAT) as tar:
        for i in range(200):
            info = tarfile.TarInfo(f'{i}/{long}')
            info.size, info.mtime = 3, 1.5
            tar.addfile(info, io.BytesIO(b'abc'))
    path.write_bytes(path.read_bytes() + gzip.compress(bytes(100_000)))
    assert len(unpack(path, tmp_path / 'out', progress=False)) == 200
    assert len(read_reports(archive(tmp_path / 'NLMCXR_reports.tgz', GOOD))) == 3


@pytest.mark.parametrize('method', [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_members_are_packed_as_zip_members_are(tmp_path, method):
    with zipfile.ZipFile(tmp_path / 'data.zip', 'w', method) as z:
        z.writestr('film.png', bytes(50_000_000))
    assert (
        memory_of(
            lambda: pytest.raises(
                DownloadError, unpack, tmp_path / 'data.zip', tmp_path / 'out', progress=False
            )
        )
        < 10_000_000
    )


def test_labels_that_go_on_after_the_last_image_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setenv('CXR_HOME', str(tmp_path / 'home'))
    arrays = {
        f'{part}_{what}': a
        for part in ('train', 'val', 'test')
        for what, a in (
            ('images', np.full((2, 28, 28), 7, np.uint8)),
            ('labels', np.array([[0], [1]], np.uint8)),
        )
    }
    path = tmp_path / 'pneumoniamnist.npz'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z:
        for name, a in arrays.items():
            out = io.BytesIO()
            np.save(out, a)
            z.writestr(f'{name}.npy', out.getvalue() + (ZEROS if name == 'train_labels' else b''))
    assert memory_of(lambda: load_medmnist(path)) < 30_000_000


def test_more_labels_than_any_set_has_are_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setenv('CXR_HOME', str(tmp_path / 'home'))
    path = tmp_path / 'pneumoniamnist.npz'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z:
        for part in ('train', 'val', 'test'):
            for what, shape in (('images', (120_000_000, 28, 28)), ('labels', (120_000_000, 1))):
                out = io.BytesIO()
                np.lib.format.write_array_header_1_0(out, dict(descr='|u1', fortran_order=False, shape=shape))
                z.writestr(
                    f'{part}_{what}.npy',
                    out.getvalue() + (ZEROS[:60_000_000] if (part, what) == ('train', 'labels') else b''),
                )

    def refused():
        with pytest.raises(StudyTableError, match='expected at most 1000000'):
            load_medmnist(path)

    assert memory_of(refused) < 30_000_000
