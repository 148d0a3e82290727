"""Folders of DICOM files.

Images go by keyed names in everything that is written, and are found again; only known other parts of the body are
left out; one identifier for all is reported at the start.
"""

import json

import numpy as np
import pytest
from test_folders import film

from cxr_lib.foundations.core import RadiographError
from cxr_lib.foundations.run import RunFolder
from cxr_lib.foundations.files import read_json
from cxr_lib.data.catalogue import data_root
from cxr_lib.data.pictures import describe_remarks
from cxr_lib.stages.exploration import exploration_stage
from cxr_lib.data.header import age_in_years, chest_part, is_film_name
from cxr_lib.data.dicom import dicom_facts
from cxr_lib.data.folders import dicom_files, film_path, load_dicom
from cxr_lib.data.images import pixel_cache
from cxr_lib.data.pixels import read_radiograph
from cxr_lib.stages.notes import notes_stage
from cxr_lib.evaluation.selection import films_key
from cxr_lib.data.studies import Exclusions, StudyTableError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv('CXR_HOME', str(tmp_path / 'home'))
    return tmp_path / 'home'


def load(root, **options):
    return load_dicom(root, **dict(progress=False, exclusions=Exclusions()) | options)


# ---- names


def named_export(root, n=12):
    "Films in folders that are named after their patients, a film that is no chest, and a damaged one"
    for i in range(n):
        film(
            root / f'DOE^JANE_19{70 + i}/IM0001.dcm',
            patient=f'DOE^JANE{i}',
            number=f'H-{i}',
            StudyInstanceUID=f'1.2.{i}',
            PixelData=np.random.default_rng(i).bytes(64),
        )
    film(root / 'DOE^JANE_hand/JANE.dcm', BodyPartExamined='HAND')
    (root / 'DOE^JANE_1970/JANE-damaged.dcm').write_bytes(b'no film')
    listed = ''.join(f'DOE^JANE_19{70 + i}/IM0001.dcm,{i % 2}\n' for i in range(n))
    (root / 'labels.csv').write_text(f'image,Edema\n{listed}DOE^JANE_gone/IM0001.dcm,1\n')
    return root


def written_below(folder):
    return [p for p in folder.rglob('*') if p.is_file()]


def names_in(folder):
    "Files below a folder that hold DOE or JANE, in their names or in their bytes"
    return [
        p
        for p in written_below(folder)
        if any(word in bytes(p.relative_to(folder)) or word in p.read_bytes() for word in (b'DOE', b'JANE'))
    ]


def test_nothing_that_is_written_holds_the_names_of_folders_and_files(tmp_path, home):
    root, run = named_export(tmp_path / 'export'), RunFolder(home / 'reports' / 'r')
    table = exploration_stage(
        run, dataset='dicom', root=str(root), missing='exclude', tuning_fraction=0.3, test_fraction=0.3
    )
    notes_stage(run, probe_encoder=False)
    pixels = pixel_cache(data_root(run), table.image, 16, home / 'data' / 'cache', progress=False)
    assert len(table) == 12 and table.image.map(is_film_name).all() and table.Edema.sum() == 6
    assert len(written_below(home)) > 8 and names_in(home) == []
    assert len(read_json(run / 'source.json')['remarks']) == 0 and pixels.shape == (12, 16, 16)


def test_the_films_are_found_again_by_every_stage_that_opens_them(tmp_path):
    root = named_export(tmp_path / 'export')
    kept, table = load(root, missing='exclude', keep_names=True), load(root, missing='exclude')
    assert kept.image.tolist() == sorted(n for n in dicom_files(root) if n.endswith('IM0001.dcm'))
    for name, path in zip(table.image, kept.image):
        assert (
            film_path(root / name) == root / path
            and (read_radiograph(root / name, 8) == read_radiograph(root / path, 8)).all()
        )
    assert (
        pixel_cache(root, table.image, 8, tmp_path / 'a', progress=False)
        == pixel_cache(root, kept.image, 8, tmp_path / 'b', progress=False)
    ).all()
    assert films_key(root, table.image) == films_key(root, kept.image)
    assert table.drop(columns='image').equals(kept.drop(columns='image'))


def test_names_stay_where_the_folder_moves_and_change_with_the_key(tmp_path, home):
    root = named_export(tmp_path / 'export')
    before = load(root, missing='exclude').image.tolist()
    root = root.rename(tmp_path / 'moved')
    assert load(root, missing='exclude').image.tolist() == before
    (home / 'data/.dicom-secret').unlink()
    with pytest.raises(RadiographError, match='the key .* is not here'):
        read_radiograph(root / before[0])
    assert not set(load(root, missing='exclude').image) & set(before)
    with pytest.raises(RadiographError, match='no image of this name'):
        read_radiograph(root / before[0])


def test_the_list_of_exclusions_and_the_message_for_a_damaged_film_name_no_path(tmp_path):
    root = named_export(tmp_path / 'export')
    left = Exclusions()
    table = load(root, missing='exclude', exclusions=left)
    assert left.counts().to_dict() == {
        'another part of the body': 1,
        'not a DICOM file': 1,
        'no such DICOM file': 1,
    } and 'JANE' not in str(left.rows) + str(left.remarks)
    film_path(root / table.image[0]).write_bytes(b'\0' * 128 + b'DICM' + b'\x08\0')
    with pytest.raises(RadiographError) as e:
        read_radiograph(root / table.image[0])
    assert table.image[0] in str(e.value) and 'JANE' not in str(e.value) and 'film_path' in str(e.value)


def test_labels_may_name_a_film_either_way(tmp_path):
    root = tmp_path / 'export'
    film(root / 'ROE/a.dcm'), film(root / 'ROE/b.dcm', number='H-2', StudyInstanceUID='1.2')
    first = load(root).image[0]
    (root / 'labels.csv').write_text(f'image,pleural_effusion\n{first},1\n{root}/ROE/b.dcm,0\n')
    assert load(root)['Pleural Effusion'].tolist() == [1, 0]


# ---- one identifier for all


@pytest.mark.parametrize('number', ['ANONYMOUS', '0', 'Anonymized'])
def test_films_that_share_a_placeholder_are_refused_at_once_with_two_remedies(tmp_path, number):
    root = tmp_path / 'export'
    for i in range(4):
        film(root / f'{i}.dcm', number=number, StudyInstanceUID=f'1.2.{i // 2}')
    with pytest.raises(
        StudyTableError,
        match="4 of 4 images share one patient_id, which names nobody.*labels.csv.*patients='study'",
    ):
        load(root)
    said = Exclusions()
    table = load(root, patients='study', exclusions=said)
    assert (
        table.patient_id.nunique() == 2
        and table.patient_id[0] == table.patient_id[1]
        and 'each study counts as one' in said.remarks[0]
    )
    (root / 'labels.csv').write_text('image,patient_id\n' + ''.join(f'{i}.dcm,p{i}\n' for i in range(4)))
    assert sorted(load(root).patient_id) == ['p0', 'p1', 'p2', 'p3']


def test_one_real_patient_of_most_images_is_said_in_the_report(tmp_path, home, capsys):
    root = tmp_path / 'export'
    for i in range(12):
        film(root / f'{i}.dcm', number=f'P{max(0, i - 9)}', PixelData=np.random.default_rng(i).bytes(64))
    run = RunFolder(home / 'reports' / 'r')
    exploration_stage(run, dataset='dicom', root=str(root))
    said = '10 of 12 images share one patient_id: it counts as one patient'
    assert said in describe_remarks(run).remark[0] and '10 of 12 images' in capsys.readouterr().out


def test_one_patient_alone_is_refused_at_the_first_stage(tmp_path, home):
    for i in range(3):
        film(tmp_path / f'export/{i}.dcm', PixelData=np.random.default_rng(i).bytes(64))
    with pytest.raises(ValueError, match='3 images of 1 patient: splits are by patient.*patients="study"'):
        exploration_stage(RunFolder(home / 'reports' / 'r'), dataset='dicom', root=str(tmp_path / 'export'))


def test_a_blank_identifier_is_a_listed_exclusion(tmp_path):
    film(tmp_path / 'export/a.dcm'), film(tmp_path / 'export/b.dcm', number='')
    left = Exclusions()
    assert len(load(tmp_path / 'export', exclusions=left)) == 1 and left.counts().index[0].startswith(
        'no PatientID'
    )


# ---- ages and parts of the body


@pytest.mark.parametrize(
    'age, years',
    [
        ('42', 42),
        ('042', 42),
        ('042Y', 42),
        ('42Y', 42),
        ('42.5', 42.5),
        ('6M', 0.5),
        ('006M', 0.5),
        ('10D', 10 / 365.25),
        ('3W', 21 / 365.25),
        ('95', 90),
        ('', None),
        ('abc', None),
        ('999', None),
    ],
)
def test_an_age_without_its_unit_is_in_years(tmp_path, age, years):
    assert age_in_years(age) == years
    if len(age) <= 4:
        assert dicom_facts(film(tmp_path / 'f.dcm', PatientAge=age), bytes(16))['age'] == years


CHEST = [
    'CHEST',
    'TÓRAX',
    'TORAX',
    'PULMON',
    'BRUSTKORB',
    'RIB',
    'RIBS',
    'HEART',
    'THORAX',
    'LUNG',
    'CHEST PA',
    'tórax',
    'Poumons',
    'KLATKA PIERSIOWA',
    'CHESTABDOMEN',
    'CXR',
]
OTHER = [
    'HAND',
    'KNEE',
    'SKULL',
    'ABDOMEN',
    'PELVIS',
    'SPINE',
    'CSPINE',
    'TSPINE',
    'T-SPINE',
    'THORACIC SPINE',
    'BRUSTWIRBELSÄULE',
    'LEFT FOOT',
    'SHOULDER',
    'HIP',
    'CLAVICLE',
]


@pytest.mark.parametrize(
    'part, chest',
    [
        *((p, True) for p in CHEST),
        *((p, False) for p in OTHER),
        *((p, None) for p in ('', 'RX1', 'MANO', 'UNKNOWN', 'KNIE')),
    ],
)
def test_a_part_of_the_body_is_the_chest_another_or_not_understood(part, chest):
    assert chest_part(part) is chest


def test_only_known_other_parts_are_left_out_and_unknown_words_are_counted(tmp_path):
    root = tmp_path / 'export'
    for i, part in enumerate(
        ['TÓRAX', 'PULMON', 'BRUSTKORB', 'RIB', 'HEART', 'HAND', 'KNEE', 'RX1', 'RX1', 'ROE', '']
    ):
        film(root / f'{i:02d}.dcm', number=f'H-{i}', BodyPartExamined=part, SpecificCharacterSet='ISO_IR 192')
    left = Exclusions()
    table = load(root, exclusions=left, keep_names=True)
    assert table.image.tolist() == [
        f'{i:02d}.dcm' for i in (0, 1, 2, 3, 4, 7, 8, 9, 10)
    ] and left.counts().to_dict() == {'another part of the body': 2}
    assert left.remarks == [
        f'{root}: 3 images are kept although the part of the body that their headers name is not understood: '
        'RX1 (2), (not shown) (1). Look at them, and leave other parts out'
    ]
    assert 'ROE' not in json.dumps(left.remarks)


def test_companion_files_of_a_mac_are_passed_over(tmp_path):
    (
        film(tmp_path / 'export/a.dcm'),
        film(tmp_path / 'export/__MACOSX/a.dcm', number='H-2'),
        film(tmp_path / 'export/._a.dcm', number='H-3'),
    )
    left = Exclusions()
    assert load(tmp_path / 'export', exclusions=left, keep_names=True).image.tolist() == [
        'a.dcm'
    ] and not len(left)
