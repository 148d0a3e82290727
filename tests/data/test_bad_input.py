"""One table of bad input, end to end: what is refused, what is left out and listed, and what is stated to be good.

A refusal names file, row and remedy.
"""

import gzip
import io
import struct
import tarfile
import zlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.foundations.run import RunFolder
from cxr_lib.data.pictures import describe_exclusions
from cxr_lib.stages.exploration import exploration_stage
from cxr_lib.data.catalogue import scanned

RAMP = np.tile(np.linspace(20, 230, 60).astype(np.uint8), (50, 1))
HEADER = ['image', 'patient_id', 'study_id', 'view', 'projection', 'sex', 'age', 'Cardiomegaly', 'Edema']


def rows(n=12):
    return [
        dict(
            zip(
                HEADER, (f'{i}.png', f'p{i}', f's{i}', 'Frontal', 'PA', 'Female', str(40 + i), str(i % 2), '')
            )
        )
        for i in range(n)
    ]


def folder(root, table=None, header=HEADER, end='\n', encoding='utf-8', before=''):
    "A folder of the generic source: studies.csv and twelve films; row 3 (2.png) is the one that the cases spoil"
    table = rows() if table is None else table
    for i in range(12):
        Image.fromarray(np.roll(RAMP, 3 * i, 1)).save(root / f'{i}.png')
    text = (
        before + end.join([','.join(header), *(','.join(r.get(h, '') for h in header) for r in table)]) + end
    )
    (root / 'studies.csv').write_bytes(text.encode(encoding))
    return 'csv'


def cell(**change):
    "Row 3 with a changed cell"

    def make(root):
        table = rows()
        table[2] |= {k: str(v) for k, v in change.items()}
        return folder(root, table)

    return make


def film(write):
    "Row 3 with another file: `write(path)` makes it"

    def make(root):
        name = folder(root)
        (root / '2.png').unlink()
        write(root / '2.png')
        return name

    return make


def bomb(path):
    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    path.write_bytes(
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', struct.pack('>IIBBBBB', 30_000, 30_000, 8, 0, 0, 0, 0))
        + chunk(b'IDAT', zlib.compress(b'\0' * 100_000))
        + chunk(b'IEND', b'')
    )


def saved(image, kind, **options):
    def write(path):
        (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, kind, **options)

    return write


def cut(image, kind, share):
    def write(path):
        saved(image, kind)(path)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    return write


def text_table(change):
    return lambda root: (
        folder(root),
        (root / 'studies.csv').write_bytes(change((root / 'studies.csv').read_bytes())),
    )[0]


def mimic(root):
    for name in ('metadata', 'split', 'chexpert', 'negbio'):
        (root / f'mimic-cxr-2.0.0-{name}.csv.gz').write_bytes(
            gzip.compress(b'dicom_id,subject_id,study_id\n' * 200)[:-20]
        )
    return 'mimic'


def openi(text, name='ecgen-radiology/1.xml'):
    def make(root):
        with tarfile.open(root / 'NLMCXR_reports.tgz', 'w:gz') as tar:
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
        return 'openi'

    return make


def chexpert(root):
    for split, ids in (('train', (1, 2)), ('valid', (2, 3))):
        lines = [','.join(['Path', 'Sex', 'Age', 'Frontal/Lateral', 'AP/PA', *OBSERVATIONS])]
        for i in ids:
            path = f'{split}/patient{i:05d}/study1/view1_frontal.jpg'
            (root / path).parent.mkdir(parents=True)
            Image.fromarray(RAMP).save(root / path)
            lines.append(f'CheXpert-v1.0-small/{path},Male,60,Frontal,AP' + ',' * 14)
        (root / f'{split}.csv').write_text('\n'.join(lines) + '\n')
    return 'chexpert'


def medmnist(**arrays):
    def make(root):
        np.savez(root / 'pneumoniamnist.npz', **arrays)
        return 'medmnist'

    return make


ENTITIES = (
    b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "ha">'
    + b''.join(b'<!ENTITY a%d "%s">' % (i, (b'&a%d;' % (i - 1) if i else b'&a;') * 9) for i in range(9))
    + b']><eCitation><uId id="CXR1"/>&a8;</eCitation>'
)
DEEP = np.tile(np.linspace(0, 65535, 60).astype('<u2'), (50, 1))

#: case -> (how it is made, parameters of the stage, what happens: words of the refusal | ('left out', reason) | 'good')
CASES = {
    # the table
    'missing column': (
        lambda root: folder(root, header=[h for h in HEADER if h != 'patient_id']),
        {},
        ['studies.csv', 'patient_id'],
    ),
    'unknown label value': (cell(Cardiomegaly='maybe'), {}, ['studies.csv row 3', 'Cardiomegaly', 'maybe']),
    'label of another range': (cell(Cardiomegaly=-2), {}, ['studies.csv row 3', 'Cardiomegaly', '-2']),
    'duplicate image': (cell(image='1.png'), {}, ['studies.csv row 3', 'image', 'each image once']),
    'path that climbs out of the root': (cell(image='../2.png'), {}, ['studies.csv row 3', 'a path inside']),
    'absolute path': (cell(image='/etc/passwd'), {}, ['studies.csv row 3', 'a path inside']),
    'path of another system': (cell(image='C:\\films\\2.png'), {}, ['studies.csv row 3', 'a path inside']),
    'empty image name': (cell(image=''), {}, ['studies.csv row 3', 'image']),
    'empty patient': (cell(patient_id=''), {}, ['studies.csv row 3', 'patient_id']),
    'unknown view': (cell(view='Oblique'), {}, ['studies.csv row 3', 'view', 'Oblique']),
    'unknown sex': (cell(sex='X'), {}, ['studies.csv row 3', 'sex', 'X']),
    'impossible age': (cell(age=930), {}, ['studies.csv row 3', 'age', '930', 'years from 0 to 120']),
    'mixed types in a column': (cell(age='sixty'), {}, ['studies.csv row 3', 'age', 'sixty']),
    'empty table': (lambda root: folder(root, []), {}, ['studies.csv', 'no rows']),
    'zero-byte table': (text_table(lambda b: b''), {}, ['studies.csv', 'not a readable CSV']),
    'absent table': (
        lambda root: (folder(root), (root / 'studies.csv').unlink())[0],
        {},
        ['studies.csv', 'no such file'],
    ),
    'bars for commas': (
        text_table(lambda b: b.replace(b',', b'|')),
        {},
        ['studies.csv', 'no column image', 'image|patient_id'],
    ),
    'more cells than columns': (
        text_table(lambda b: b.replace(b'2.png,', b'2.png,x,y,z,')),
        {},
        ['studies.csv', 'line 4'],
    ),
    'Latin-1 text': (
        lambda root: folder(root, [r | {'study_id': 'é'} for r in rows()], encoding='latin1'),
        {},
        ['studies.csv', 'not UTF-8', 'iconv'],
    ),
    'table that is a picture': (
        lambda root: (folder(root), Image.fromarray(RAMP).save(root / 'studies.csv', 'PNG'))[0],
        {},
        ['studies.csv'],
    ),
    'byte-order mark': (lambda root: folder(root, before='\ufeff'), {}, 'good'),
    'Windows line ends': (lambda root: folder(root, end='\r\n'), {}, 'good'),
    'no label anywhere': (lambda root: folder(root, [r | {'Cardiomegaly': ''} for r in rows()]), {}, 'good'),
    'broken gzip': (mimic, {}, ['mimic-cxr-2.0.0-', 'not a readable CSV', 'Download or copy it again']),
    'one patient in two splits': (chexpert, {}, ['patient00002 is in the splits', 'split by patient']),
    'XML with entity expansion': (openi(ENTITIES), {}, ['1.xml', 'entit']),
    'XML cut short': (openi(b'<?xml version="1.0"?><eCitation><uId id="CXR1"/>'), {}, ['1.xml']),
    'archive member that climbs out': (openi(b'<eCitation/>', '../1.xml'), {}, ['../1.xml']),
    'archive cut short': (
        lambda root: (
            openi(bytes(range(256)) * 400)(root),
            (root / 'NLMCXR_reports.tgz').write_bytes((root / 'NLMCXR_reports.tgz').read_bytes()[:300]),
        )[0],
        {},
        ['NLMCXR_reports.tgz'],
    ),
    'archive with a pickle inside': (
        medmnist(train_images=np.array([object()], dtype=object)),
        {},
        ['pneumoniamnist.npz'],
    ),
    'archive without its arrays': (medmnist(other=np.zeros(3)), {}, ['pneumoniamnist.npz', 'train_images']),
    'mapping that is not JSON': (
        lambda root: (folder(root), (root / 'mapping.json').write_text('{"columns": '))[0],
        {},
        ['mapping.json', 'not valid JSON'],
    ),
    'options that are not JSON': (folder, dict(options='labels=mesh'), ['options', 'not JSON']),
    'option that the source does not have': (
        folder,
        dict(options='{"beware": 1}'),
        ["no option 'beware'", 'it has'],
    ),
    # the images
    'image that is not there': (
        film(lambda p: None),
        {},
        ['studies.csv row 3', '2.png', "missing='exclude'"],
    ),
    'image that is not there, left out': (
        film(lambda p: None),
        dict(missing='exclude'),
        ('left out', 'not on disk'),
    ),
    'no image at all': (
        lambda root: (folder(root), [p.unlink() for p in root.glob('*.png')])[0],
        dict(missing='exclude'),
        ['none of the 12 listed images', 'Check the root folder'],
    ),
    'folder named like a film': (
        film(lambda p: p.mkdir()),
        dict(missing='exclude'),
        ('left out', 'not on disk'),
    ),
    'zero-byte film': (film(lambda p: p.write_bytes(b'')), {}, ['2.png', 'empty', 'unreadable="exclude"']),
    'zero-byte film, left out': (
        film(lambda p: p.write_bytes(b'')),
        dict(unreadable='exclude'),
        ('left out', 'empty'),
    ),
    'truncated JPEG': (film(cut(RAMP, 'JPEG', 0.6)), dict(unreadable='exclude'), ('left out', '2.png')),
    'truncated PNG': (film(cut(RAMP, 'PNG', 0.7)), dict(unreadable='exclude'), ('left out', '2.png')),
    'text named like a film': (
        film(lambda p: p.write_text('not a film')),
        dict(unreadable='exclude'),
        ('left out', 'not an image'),
    ),
    'web page named like a film': (
        film(lambda p: p.write_text('<html>404</html>')),
        {},
        ['2.png', 'not an image', 'unreadable="exclude"'],
    ),
    'decompression bomb': (film(bomb), dict(unreadable='exclude'), ('left out', 'limit')),
    'animated GIF': (
        film(saved(RAMP, 'GIF', save_all=True, append_images=[Image.fromarray(255 - RAMP)])),
        dict(unreadable='exclude'),
        ('left out', 'frames'),
    ),
    'CMYK JPEG': (film(saved(Image.fromarray(RAMP).convert('CMYK'), 'JPEG')), {}, 'good'),
    'image of 1 x 1': (film(saved(RAMP[:1, :1], 'PNG')), {}, 'good'),
    '16 bit, little-endian': (film(saved(DEEP, 'TIFF')), {}, 'good'),
    '16 bit, big-endian': (
        film(saved(Image.frombytes('I;16B', (60, 50), DEEP.astype('>u2').tobytes()), 'TIFF')),
        {},
        'good',
    ),
}


def test_there_are_cases_enough():
    assert len(CASES) >= 30


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
@pytest.mark.parametrize('case', CASES)
def test_each_case_ends_as_stated(tmp_path, monkeypatch, case):
    make, parameters, outcome = CASES[case]
    monkeypatch.setenv('CXR_HOME', str(tmp_path / 'home'))
    (root := tmp_path / 'source').mkdir()
    run, dataset = RunFolder(tmp_path / 'run'), make(root)
    call = lambda: exploration_stage(
        run, dataset=dataset, root=str(root), tuning_fraction=0.3, test_fraction=0.3, **parameters
    )
    if isinstance(
        outcome, list
    ):  # refused: a ValueError of ours, and nothing that looks like a finished stage
        with pytest.raises(ValueError) as refusal:
            call()
        assert refusal.type.__module__.startswith('cxr_lib') or refusal.type is ValueError, refusal.type
        for words in outcome:
            assert words in str(refusal.value), refusal.value
        assert not run.done('exploration')
    elif outcome == 'good':
        table = call()
        assert len(table) == 12
        assert '2.png' in set(table.image)
        assert not len(pd.read_csv(run / 'exclusions.csv'))
        assert scanned(run).thumbnails.shape == (12, 32, 32)
    else:  # left out: counted, listed, and gone from the table
        table, left = call(), pd.read_csv(run / 'exclusions.csv')
        assert len(table) == 11 and '2.png' not in set(table.image)
        assert len(left) == 1 and left.image[0] == '2.png' and outcome[1] in left.reason[0], left
        assert describe_exclusions(run).rows.sum() == 1


def test_either_endian_gives_the_same_film(tmp_path):
    from cxr_lib.data.pixels import read_gray

    saved(DEEP, 'TIFF')(tmp_path / 'little.tif')
    saved(Image.frombytes('I;16B', (60, 50), DEEP.astype('>u2').tobytes()), 'TIFF')(tmp_path / 'big.tif')
    assert np.array_equal(read_gray(tmp_path / 'little.tif'), read_gray(tmp_path / 'big.tif'))
    assert read_gray(tmp_path / 'big.tif')[0].tolist() == sorted(read_gray(tmp_path / 'big.tif')[0])
