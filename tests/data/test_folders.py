"""Folders of a user's own: what the mapping says is done, what it does not say is refused with row and remedy.

Of a DICOM export only chest radiographs stay, and the rest is listed.
"""

import io
import json
import multiprocessing
import os
import stat
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEGLosslessSV1, generate_uid

from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.data.dicom import read_dicom
from cxr_lib.data.folders import dicom_files, dicom_secret, load_csv, load_dicom
from cxr_lib.data.studies import STUDY_COLUMNS, Exclusions, StudyTableError

# A CSV and a folder


def folder(root, text, images=('a.png', 'b.png', 'c.png'), mapping=None, name='studies.csv'):
    root.mkdir(exist_ok=True)
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    for image in images:
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        (root / image).write_bytes(b'x')
    if mapping is not None:
        (root / 'mapping.json').write_text(mapping if isinstance(mapping, str) else json.dumps(mapping))
    return root


PLAIN = (
    'image,patient_id,sex,age,view,projection,note,split,Cardiomegaly,Edema\n'
    'a.png,p,F,70,Frontal,PA,cough,train,1,\n'
    'b.png,p,female,70,lateral,,,train,0.0,-1\nc.png,q,M,,PA,AP,,test,,0\n'
)
FOREIGN = (
    'file,who,gender,years,opacity,mass,nodule,list\n'
    'a,p,W,90+,yes,1,0,Mass|Fibrosis\nb,p,W,90+,No,0,-1,Clear\nc,q,X,4,maybe,,,\n'
)
MAPPING = dict(
    columns={
        'image': '{file}.png',
        'patient_id': 'who',
        'sex': 'gender',
        'age': 'years',
        'study_id': '{who}/{file}',
    },
    labels={'Lung Opacity': 'opacity', 'Lung Lesion': ['mass', 'nodule']},
    values={
        'labels': {'yes': 1, 'no': 0, 'maybe': -1},
        'sex': {'w': 'Female', 'X': None},
        'age': {'90+': 90},
    },
)


def test_columns_with_the_study_tables_names_need_no_mapping(tmp_path):
    table = load_csv(folder(tmp_path / 'r', PLAIN))
    assert list(table.columns) == list(STUDY_COLUMNS) and table.study_id.tolist() == ['p-1', 'p-2', 'q-1']
    assert table.sex.tolist() == ['Female', 'Female', 'Male']
    assert table.view.tolist() == ['Frontal', 'Lateral', 'Frontal']
    assert table.projection.tolist() == ['PA', None, 'AP']
    assert table.Cardiomegaly.tolist()[:2] == [1, 0]
    assert np.isnan(table.Cardiomegaly[2])
    assert np.isnan(table.Edema[0])
    assert table.Edema.tolist()[1:] == [-1, 0]
    assert table.Fracture.isna().all()
    assert table.note.tolist() == ['cough', None, None] and table.split.tolist() == ['train', 'train', 'test']


@pytest.mark.parametrize('kept', [True, False])
def test_a_mapping_is_an_argument_or_a_file(tmp_path, kept):
    root = folder(tmp_path / 'r', FOREIGN, mapping=MAPPING if kept else None)
    table = load_csv(root, **({} if kept else MAPPING))
    assert table.image.tolist() == ['a.png', 'b.png', 'c.png']
    assert table.patient_id.tolist() == ['p', 'p', 'q']
    assert table.study_id.tolist() == ['p/a', 'p/b', 'q/c']
    assert table.sex.tolist() == ['Female', 'Female', None] and table.age.tolist() == [90, 90, 4]
    assert table['Lung Opacity'].tolist() == [1, 0, -1]
    assert table['Lung Lesion'].tolist()[:2] == [1, -1]
    assert np.isnan(table['Lung Lesion'][2])


def test_an_argument_goes_before_its_part_of_the_file(tmp_path):
    root = folder(tmp_path / 'r', FOREIGN, mapping=MAPPING)
    table = load_csv(root, labels={'Fracture': 'mass'})
    assert table.Fracture.tolist()[:2] == [1, 0]
    assert table['Lung Opacity'].isna().all()
    assert table.age.tolist() == [90, 90, 4]


def test_a_column_of_names_is_split(tmp_path):
    names = {'Mass': 'Lung Lesion', 'Fibrosis': None, 'clear': 'No Finding'}
    root = folder(
        tmp_path / 'r',
        FOREIGN,
        mapping={**MAPPING, 'labels': {'column': 'list', 'delimiter': '|', 'names': names}},
    )
    table = load_csv(root)
    assert table['Lung Lesion'].tolist()[:2] == [1, 0]
    assert table['No Finding'].tolist()[:2] == [0, 1]
    assert table.iloc[2][list(OBSERVATIONS)].isna().all()
    assert table.Edema.isna().all()


def test_an_observation_that_a_list_never_names_is_missing(tmp_path):
    table = load_csv(
        folder(
            tmp_path / 'r', 'image,patient_id,found\na.png,1,edema; Fracture\nb.png,2,No Finding\nc.png,3,;\n'
        ),
        labels={'column': 'found', 'delimiter': ';'},
    )
    assert table.Edema.tolist() == [1, 0, 0]
    assert table.Fracture.tolist() == [1, 0, 0]
    assert table['No Finding'].tolist() == [0, 1, 0]
    assert table.Pneumonia.isna().all()
    one = load_csv(
        folder(tmp_path / 's', 'image,patient_id,found\na.png,1,Edema|Fracture\nb.png,2,Edema\nc.png,3,\n'),
        labels='found',
    )
    assert one.Fracture.tolist()[:2] == [1, 0]


def test_each_image_its_own_patient_only_if_said(tmp_path):
    root = folder(tmp_path / 'r', 'file,Edema\na.png,1\nb.png,0\n')
    with pytest.raises(StudyTableError, match="columns={'patient_id': 'image'}"):
        load_csv(root, columns={'image': 'file'})
    table = load_csv(root, columns={'image': 'file', 'patient_id': 'image'})
    assert table.patient_id.tolist() == ['a.png', 'b.png']
    assert table.study_id.tolist() == ['a.png-1', 'b.png-1']


def test_windows_tables_are_read(tmp_path):
    root = folder(
        tmp_path / 'r',
        b'\xef\xbb\xbf' + 'image,patient_id,note\r\n.\\x\\a.png,1,Fièvre\r\nx/b.png,1,\r\n'.encode(),
        ('x/a.png', 'x/b.png'),
    )
    table = load_csv(root, labels={})
    assert table.image.tolist() == ['x/a.png', 'x/b.png'] and table.note.tolist() == ['Fièvre', None]


def test_a_table_may_lie_elsewhere_and_be_compressed(tmp_path):
    import gzip

    root = folder(tmp_path / 'r', gzip.compress(PLAIN.encode()), name='../all.csv.gz')
    assert len(load_csv(root, table='../all.csv.gz')) == 3


def test_a_column_is_switched_off(tmp_path):
    root = folder(tmp_path / 'r', PLAIN)
    table = load_csv(root, columns={'split': None, 'sex': None}, labels={'Edema': None})
    assert table.split.isna().all()
    assert table.sex.isna().all()
    assert table.Edema.isna().all()
    assert table.Cardiomegaly.notna().any()


def test_images_that_are_absent_are_refused_or_listed(tmp_path):
    root, left = folder(tmp_path / 'r', PLAIN, ('a.png', 'b.png')), Exclusions()
    with pytest.raises(StudyTableError, match='studies.csv row 3: image'):
        load_csv(root)
    assert len(load_csv(root, missing='exclude', exclusions=left)) == 2
    assert left.rows[0][0].endswith('studies.csv row 3')


ROW = 'image,patient_id,sex,age,Edema\na.png,p,F,3,1\n'
MALFORMED = {
    'no table': (None, {}, 'no such file'),
    'empty table': ('image,patient_id\n', {}, 'no rows'),
    'no bytes': ('', {}, 'not a readable CSV'),
    'Latin-1': ('image,patient_id,note\na.png,1,Fièvre\n'.encode('latin1'), {}, 'iconv'),
    'no image': ('picture,patient_id\na.png,1\n', {}, "columns={'image'"),
    'no patient': ('image\na.png\n', {}, "columns={'patient_id'"),
    'no patient named': (ROW, dict(columns={'patient_id': None}), "columns={'patient_id'"),
    'empty patient': ('image,patient_id\na.png,1\nb.png, \n', {}, 'row 2: patient_id'),
    'empty image': ('image,patient_id\n,1\n', {}, 'row 1: image'),
    'half a pattern': ('n,patient_id,dir\n1,p,\n', dict(columns={'image': '{dir}/{n}.png'}), 'row 1: image'),
    'twice the image': ('image,patient_id\na.png,1\na.png,2\n', {}, 'row 2: image'),
    'the same image with a dot': ('image,patient_id\na.png,1\n./a.png,2\n', {}, 'row 2: image'),
    'outside': ('image,patient_id\n../a.png,1\n', {}, 'row 1: image'),
    'another drive': ('image,patient_id\nC:\\a.png,1\n', {}, 'row 1: image'),
    'unknown column': (
        ROW,
        dict(columns={'age': 'years'}),
        "age is mapped to the column 'years', which is not there; it has image, patient_id, sex, age, Edema",
    ),
    'unknown column in a pattern': (ROW, dict(columns={'image': '{dir}/{image}'}), "the column 'dir'"),
    'unknown study column': (ROW, dict(columns={'gender': 'sex'}), "columns maps 'gender'"),
    'observation among the columns': (ROW, dict(columns={'Edema': 'Edema'}), 'and observations in labels'),
    'column as number': (ROW, dict(columns={'age': 3}), 'expected the name of a column'),
    'unknown observation': (ROW, dict(labels={'Oedema': 'Edema'}), "the observation 'Oedema'"),
    'unknown label column': (ROW, dict(labels={'Fracture': 'fx'}), "Fracture is mapped to the column 'fx'"),
    'labels as number': (ROW, dict(labels={'Fracture': 3}), 'expected the name of a column, or a list'),
    'unknown observation in a list': (
        ROW,
        dict(labels={'column': 'sex', 'names': {'F': 'Femur'}}),
        "'Femur'",
    ),
    'unknown key of a list': (ROW, dict(labels={'column': 'sex', 'separator': ';'}), "'delimiter'"),
    'empty delimiter': (ROW, dict(labels={'column': 'sex', 'delimiter': ''}), "'delimiter'"),
    'unknown name in a list': (
        ROW,
        dict(labels={'column': 'sex', 'names': {'M': 'Edema'}}),
        "row 1: sex is 'F'; expected names out of M",
    ),
    'word for a label': (
        'image,patient_id,Edema\na.png,1,1\nb.png,1,yes\n',
        {},
        "row 2: Edema is 'yes'; expected 1, 0, -1 or empty. Say what such words mean: values={'labels': {'yes': …}}",
    ),
    'NA for a label': ('image,patient_id,Edema\na.png,1,NA\n', {}, "'NA'"),
    'two for a label': ('image,patient_id,Edema\na.png,1,2\n', {}, "'2'"),
    'word for a sex': ('image,patient_id,sex\na.png,1,D\n', {}, "values={'sex': {'D': …}}"),
    'word for a view': ('image,patient_id,view\na.png,1,OBL\n', {}, "values={'view'"),
    'word for a split': ('image,patient_id,split\na.png,1,valid\n', {}, "values={'split'"),
    'word for an age': ('image,patient_id,age\na.png,1,old\n', {}, "row 1: age is 'old'"),
    'age of 300': ('image,patient_id,age\na.png,1,300\n', {}, 'row 1: age'),
    'meaning of a label': (ROW, dict(values={'labels': {'yes': 2}}), "'yes' means 2"),
    'true for a label': (ROW, dict(values={'labels': {'yes': True}}), "'yes' means True"),
    'meaning of a sex': (ROW, dict(values={'sex': {'F': 'female'}}), "'F' means 'female'"),
    'values of an image': (ROW, dict(values={'image': {'a': 'b'}}), "values explains 'image'"),
    'values as text': (ROW, dict(values={'sex': 'F'}), 'expected a dictionary'),
    'columns as list': (ROW, dict(columns=['image']), 'columns is a list'),
    'a patient in two splits': (
        'image,patient_id,split\na.png,1,train\nb.png,1,test\n',
        {},
        'split by patient',
    ),
}


@pytest.mark.parametrize('name', MALFORMED)
def test_what_is_wrong_is_refused_with_file_and_remedy(tmp_path, name):
    text, mapping, words = MALFORMED[name]
    root = folder(tmp_path / 'r', text or '')
    if text is None:
        (root / 'studies.csv').unlink()
    with pytest.raises(StudyTableError) as e:
        load_csv(root, **mapping)
    assert str(root / 'studies.csv') in str(e.value) and words in str(e.value)


@pytest.mark.parametrize(
    'mapping, words',
    [
        ('{"columns": {', 'not valid JSON'),
        ('[]', 'expected an object'),
        ('{"colums": {}}', "not 'colums'"),
        ('{"columns": null}', 'columns is a NoneType'),
        ('{"labels": []}', 'labels is a list'),
    ],
)
def test_a_mapping_file_that_is_wrong_is_refused(tmp_path, mapping, words):
    with pytest.raises(StudyTableError, match=words):
        load_csv(folder(tmp_path / 'r', PLAIN, mapping=mapping))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(('yes', 'No', ' YES ', '', '1', '0', '-1', '1.0')),
            st.sampled_from(('no', 'Yes', '')),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_any_column_makes_an_observation_positive_and_order_does_not_matter(tmp_path_factory, cells):
    rows = [f'{i}.png,{i},{a},{b}' for i, (a, b) in enumerate(cells)]
    root = folder(
        tmp_path_factory.mktemp('csv') / 'r',
        'image,patient_id,x,y\n' + '\n'.join(rows) + '\n',
        [f'{i}.png' for i in range(len(rows))],
    )
    options = dict(values={'labels': {'yes': 1, 'no': 0}})
    got = load_csv(root, labels={'Edema': ['x', 'y']}, **options).Edema
    meaning = {'yes': 1, 'no': 0, '': None, '1': 1, '0': 0, '-1': -1, '1.0': 1}
    for value, pair in zip(got, cells):
        known = {meaning[c.strip().lower()] for c in pair}
        want = 1 if 1 in known else -1 if -1 in known else 0 if 0 in known else None
        assert np.isnan(value) if want is None else value == want
    pd.testing.assert_series_equal(got, load_csv(root, labels={'Edema': ['y', 'x']}, **options).Edema)


# A folder of DICOM files


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv('CXR_HOME', str(tmp_path / 'home'))
    return tmp_path / 'home'


def film(path, patient='ROE^JANE', number='H-4711', **tags):
    "A chest film of a named patient"
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    form = (
        dict(
            SOPClassUID='1.2.840.10008.5.1.4.1.1.1.1',
            SOPInstanceUID=generate_uid(),
            StudyInstanceUID='1.2.3.4',
            PatientName=patient,
            PatientID=number,
            PatientSex='F',
            PatientAge='045Y',
            Modality='CR',
            ViewPosition='PA',
            Rows=8,
            Columns=8,
            SamplesPerPixel=1,
            PhotometricInterpretation='MONOCHROME2',
            BitsAllocated=8,
            BitsStored=8,
            HighBit=7,
            PixelRepresentation=0,
            PixelData=bytes(range(64)),
        )
        | tags
    )
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for k, v in form.items():
            if v is not None:
                setattr(ds, k, v)
        path.parent.mkdir(parents=True, exist_ok=True)
        ds.save_as(path, enforce_file_format=True)
    return path


def load(root, **options):
    return load_dicom(root, **dict(progress=False, keep_names=True) | options)


def test_an_export_becomes_a_study_table(tmp_path):
    root = tmp_path / 'export'
    film(root / 'b/IM2', ViewPosition='LL')
    film(root / 'b/IM1')
    film(
        root / 'a.dcm',
        number='H-2',
        PatientSex='M',
        PatientAge='099Y',
        ViewPosition='AP',
        StudyInstanceUID=None,
    )
    for name in ('DICOMDIR', 'notes.txt', '.hidden.dcm', 'photo.jpg'):
        (root / name).write_text('nothing')
    table = load(root)
    assert list(table.columns) == list(STUDY_COLUMNS) and table.image.tolist() == ['a.dcm', 'b/IM1', 'b/IM2']
    assert table.view.tolist() == ['Frontal', 'Frontal', 'Lateral']
    assert table.projection.tolist() == ['AP', 'PA', None]
    assert table.sex.tolist() == ['Male', 'Female', 'Female']
    assert table.age.tolist() == [90, 45, 45]
    assert table.patient_id[1] == table.patient_id[2] != table.patient_id[0]
    assert table.study_id[0] == table.patient_id[0] + '-1'
    assert table.study_id[1] == table.study_id[2]
    assert table.split.isna().all()
    assert table[list(OBSERVATIONS)].isna().all(axis=None)
    assert table.note.isna().all()
    assert not any(w in table.to_csv() for w in ('ROE', 'JANE', '4711', 'H-2', '099Y', '1.2.3.4'))
    assert read_dicom(root / table.image[0]).shape == (8, 8)


def broken(path):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b'\0' * 128 + b'DICM' + b'\x08\0')


LEFT_OUT = {
    'a CT': (lambda p: film(p, Modality='CT'), 'not a radiograph: its modality is CT'),
    'no modality': (lambda p: film(p, Modality=None), 'not a radiograph: its modality is not given'),
    'a name as modality': (lambda p: film(p, Modality='ROE^JANE'), 'not a radiograph: its modality is other'),
    'a report': (
        lambda p: film(p, Modality='SR', Rows=None, PixelData=None),
        'not a radiograph: its modality is SR',
    ),
    'frames': (lambda p: film(p, NumberOfFrames=3), 'more than one frame'),
    'no pixels': (lambda p: film(p, PixelData=None), 'no pixel data'),
    'cut short': (lambda p: film(p, Rows=9), 'cut short'),
    'too large': (lambda p: film(p, Rows=60_000, Columns=60_000), 'too large'),
    'raw': (lambda p: film(p, PresentationIntentType='FOR PROCESSING'), 'a raw detector image'),
    'a hand': (lambda p: film(p, BodyPartExamined='HAND'), 'another part of the body'),
    'burned in': (lambda p: film(p, BurnedInAnnotation='YES'), 'text is burned into the picture'),
    'nobody': (
        lambda p: film(p, PatientID=''),
        'no PatientID: name the patient in a column patient_id of labels.csv',
    ),
    'damaged number': (lambda p: film(p, WindowCenter=float('inf'), WindowWidth=3), 'a damaged header'),
    'cut header': (broken, 'not a radiograph: its modality is not given'),
    'text': (lambda p: p.write_text('ROE^JANE'), 'not a DICOM file'),
    'empty': (lambda p: p.write_bytes(b''), 'the file is empty'),
    'broken link': (lambda p: p.symlink_to('nowhere.dcm'), 'no such file'),
}


@pytest.mark.parametrize('name', LEFT_OUT)
def test_what_is_no_chest_film_is_left_out_and_listed(tmp_path, name):
    make, reason = LEFT_OUT[name]
    film(tmp_path / 'export/a.dcm')
    make(tmp_path / 'export/b.dcm')
    left = Exclusions()
    assert load(tmp_path / 'export', exclusions=left).image.tolist() == ['a.dcm']
    assert left.rows == [(str(tmp_path / 'export/b.dcm'), 'b.dcm', reason)]
    with pytest.warns(UserWarning, match='b.dcm') as warned:
        load(tmp_path / 'export')
    assert 'ROE' not in str([str(w.message) for w in warned])


def test_a_missing_decoder_is_listed_with_the_package(tmp_path, monkeypatch):
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder

    monkeypatch.setattr(type(get_decoder(JPEGLosslessSV1)), 'available_plugins', property(lambda self: ()))
    film(tmp_path / 'export/a.dcm')
    path = film(tmp_path / 'export/b.dcm')
    import pydicom

    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID, ds.PixelData = JPEGLosslessSV1, encapsulate([b'\xff\xd8'])
    ds['PixelData'].VR, ds['PixelData'].is_undefined_length = 'OB', True
    ds.save_as(path)
    left = Exclusions()
    assert len(load(tmp_path / 'export', exclusions=left)) == 1
    assert 'pip install pylibjpeg pylibjpeg-libjpeg' in left.rows[0][2]


def test_a_second_copy_of_a_film_is_left_out(tmp_path):
    first = film(tmp_path / 'export/a.dcm')
    (tmp_path / 'export/copy.dcm').write_bytes(first.read_bytes())
    left = Exclusions()
    assert load(tmp_path / 'export', exclusions=left).image.tolist() == ['a.dcm']
    assert left.counts().to_dict() == {'a second copy of an image': 1}


def test_a_film_of_an_unknown_part_of_the_body_stays(tmp_path):
    film(tmp_path / 'export/a.dcm', BodyPartExamined='')
    assert len(load(tmp_path / 'export')) == 1


@pytest.mark.parametrize(
    'make, words',
    [
        (lambda r: r.mkdir(), 'no DICOM files among its 0 files'),
        (lambda r: None, 'cannot be listed'),
        (
            lambda r: film(r / 'a.dcm', Modality='CT'),
            r'is a chest radiograph: not a radiograph: its modality is CT \(1\)',
        ),
        (lambda r: film(r / 'a.dcm', PatientID=None), 'has a PatientID'),
    ],
)
def test_a_folder_without_chest_films_is_refused_with_reasons(tmp_path, make, words):
    make(tmp_path / 'export')
    with pytest.raises(StudyTableError, match=words):
        load(tmp_path / 'export', exclusions=Exclusions())


def test_linked_folders_are_followed_and_circles_end(tmp_path):
    film(tmp_path / 'disk/x.dcm')
    (tmp_path / 'export').mkdir()
    (tmp_path / 'export/linked').symlink_to(tmp_path / 'disk')
    (tmp_path / 'disk/round').symlink_to(tmp_path / 'export')
    assert dicom_files(tmp_path / 'export') == ['linked/x.dcm']


def test_labels_are_joined_by_path(tmp_path):
    root, left = tmp_path / 'export', Exclusions()
    (
        film(root / 'x/a.dcm'),
        film(root / 'b.dcm', number=''),
        film(root / 'c.dcm'),
        film(root / 'ct.dcm', Modality='CT'),
    )
    (root / 'labels.csv').write_text(
        'image,Edema,patient_id,split,note\nb.dcm,1,mine,test,cough\nx\\a.dcm,-1,,train,\nct.dcm,1,,,\n'
    )
    table = load(root, exclusions=left).set_index('image')
    assert table.Edema['b.dcm'] == 1
    assert table.Edema['x/a.dcm'] == -1
    assert np.isnan(table.Edema['c.dcm'])
    assert table.Fracture.isna().all()
    assert table.patient_id['b.dcm'] == 'mine'
    assert len(table.patient_id['x/a.dcm']) == 16
    assert table.split['b.dcm'] == 'test'
    assert table.note['b.dcm'] == 'cough'
    assert left.counts().to_dict() == {'not a radiograph: its modality is CT': 1}
    (tmp_path / 'other.csv').write_text('image,Edema\nc.dcm,0\n')
    assert load(root, labels='../other.csv', exclusions=Exclusions()).set_index('image').Edema['c.dcm'] == 0


@pytest.mark.parametrize(
    'text, words',
    [
        ('image,Edema\nz.dcm,1\n', "row 1: image is 'z.dcm'; expected a DICOM file"),
        ('image,Edema\n../a.dcm,1\n', 'a path inside'),
        ('image,Edema\na.dcm,1\na.dcm,0\n', 'each image once'),
        ('image,Edema\na.dcm,yes\n', "row 1: Edema is 'yes'"),
        ('image,Water\na.dcm,1\n', "the column 'Water' is neither"),
        ('film,Edema\na.dcm,1\n', 'missing column'),
        ('image,sex\na.dcm,D\n', 'row 1: sex'),
    ],
)
def test_labels_that_are_wrong_are_refused(tmp_path, text, words):
    film(tmp_path / 'export/a.dcm')
    (tmp_path / 'export/labels.csv').write_text(text)
    with pytest.raises(StudyTableError) as e:
        load(tmp_path / 'export')
    assert str(tmp_path / 'export') in str(e.value) and words in str(e.value)


def test_labels_without_a_film_are_listed_if_asked(tmp_path):
    film(tmp_path / 'export/a.dcm')
    (tmp_path / 'export/labels.csv').write_text('image,Edema\nz.dcm,1\na.dcm,0\n')
    left = Exclusions()
    assert load(tmp_path / 'export', missing='exclude', exclusions=left).Edema.tolist() == [0]
    assert left.rows == [(f'{tmp_path}/export/labels.csv row 1', 'z.dcm', 'no such DICOM file')]
    with pytest.raises(StudyTableError, match='no such file'):
        load(tmp_path / 'export', labels='absent.csv')
    with pytest.raises(ValueError, match='missing is'):
        load(tmp_path / 'export', missing='ignore')


def test_notes_of_the_header_are_read_only_with_a_warning(tmp_path):
    film(tmp_path / 'export/a.dcm', ReasonForStudy='cough since Monday')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert load(tmp_path / 'export').note.isna().all()
    with pytest.warns(UserWarning, match='may name people'):
        assert load(tmp_path / 'export', note_tag='ReasonForStudy').note.tolist() == ['cough since Monday']
    with pytest.raises(ValueError, match='note_tag'):
        load(tmp_path / 'export', note_tag='PatientName')


def test_a_progress_bar_is_shown(tmp_path, capsys):
    film(tmp_path / 'export/a.dcm')
    load_dicom(tmp_path / 'export')
    assert 'reading headers' in capsys.readouterr().err


# The secret


def test_the_secret_is_made_once_and_for_its_owner_only(home):
    one = dicom_secret()
    path = home / 'data/.dicom-secret'
    assert len(one) == 32
    assert dicom_secret() == one
    assert [p.name for p in path.parent.iterdir()] == ['.dicom-secret']
    if os.name != 'nt':
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.unlink()
    assert dicom_secret() != one


def _make(path, out):
    out.put(dicom_secret(path).hex())


def test_processes_that_start_together_get_one_secret(tmp_path):
    context = multiprocessing.get_context(
        'fork' if 'fork' in multiprocessing.get_all_start_methods() else 'spawn'
    )
    out = context.Queue()
    several = [context.Process(target=_make, args=(tmp_path / 'new/.dicom-secret', out)) for _ in range(6)]
    for p in several:
        p.start()
    keys = {out.get(timeout=60) for _ in several}
    for p in several:
        p.join()
    assert len(keys) == 1 and [p.name for p in (tmp_path / 'new').iterdir()] == ['.dicom-secret']


def test_a_file_system_without_links_gets_a_secret_too(tmp_path, monkeypatch):
    def no_links(*args):
        raise OSError('not supported')

    monkeypatch.setattr(os, 'link', no_links)
    assert dicom_secret(tmp_path / 'key') == dicom_secret(tmp_path / 'key')
    assert [p.name for p in tmp_path.iterdir()] == ['key']


@pytest.mark.parametrize('content', [b'', b'short', b'\xff' * 64, b'z' * 64])
def test_a_secret_that_is_none_is_refused_and_kept(home, content):
    (home / 'data').mkdir(parents=True)
    (home / 'data/.dicom-secret').write_bytes(content)
    with pytest.raises(ValueError, match='identifiers and splits change'):
        dicom_secret()
    assert (home / 'data/.dicom-secret').read_bytes() == content


def test_identifiers_stay_with_the_secret_and_change_without_it(tmp_path, home):
    film(tmp_path / 'one/a.dcm')
    film(tmp_path / 'two/deep/b.dcm')
    one = load(tmp_path / 'one').patient_id[0]
    assert load(tmp_path / 'two').patient_id[0] == one
    (home / 'data/.dicom-secret').unlink()
    assert load(tmp_path / 'one').patient_id[0] != one


def test_nothing_of_a_header_is_printed(tmp_path, capfd):
    film(tmp_path / 'export/a.dcm', SpecificCharacterSet='ROE', PatientBirthDate='ROE')
    film(tmp_path / 'export/b.dcm', PatientAge='ROE', Rows=9)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter('always')
        out = io.StringIO()
        load_dicom(tmp_path / 'export').to_csv(out)
    assert 'ROE' not in ''.join(capfd.readouterr()) + str([str(w.message) for w in warned]) + out.getvalue()
