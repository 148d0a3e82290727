"""Tables as hospitals write them, each read right, or rejected with its row.

Label columns under other names, separators and encodings, a comma at the end of a line, one patient for all.
The small files lie in ../shared/cases beside the repository; what they hold is written here too."""

import gzip
import io
import tarfile
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cxr_lib.data.chexpert import relabel
from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.data.archives import unpack
from cxr_lib.data.folders import load_csv
from cxr_lib.data.mimic import read_report_texts
from cxr_lib.data.openi import read_reports as read_archive
from cxr_lib.data.studies import Exclusions, StudyTableError
from cxr_lib.data.observations import find_observations, name_observations, observation_name
from cxr_lib.data.tables import read_csv


def films(root, table, name='studies.csv', n=4):
    "A folder with a table and `n` films img/0.png, img/1.png, …"
    (root / 'img').mkdir(parents=True)
    for i in range(n):
        Image.new('L', (8, 8), 40 * i).save(root / f'img/{i}.png')
    (root / name).write_bytes(table if isinstance(table, bytes) else table.encode())
    return root


def rows(header, *cells, n=4):
    "A CSV whose row i is img/i.png, p<i> and the cells, of which i picks one each"
    lines = [f'img/{i}.png,p{i},' + ','.join(c[i % len(c)] for c in cells) for i in range(n)]
    return f'image,patient_id,{header}\n' + '\n'.join(lines) + '\n'


# ---- names of observations


@pytest.mark.parametrize(
    'header, observation',
    [
        ('edema', 'Edema'),
        ('Edema ', 'Edema'),
        ('EDEMA', 'Edema'),
        ('Oedema', 'Edema'),
        ('Pleural_Effusion', 'Pleural Effusion'),
        ('pleural effusion', 'Pleural Effusion'),
        ('PleuralEffusion', 'Pleural Effusion'),
        ('Lung_Opacity', 'Lung Opacity'),
        ('lung-opacity', 'Lung Opacity'),
        ('Airspace Opacity', 'Lung Opacity'),
        ('Infiltration', 'Lung Opacity'),
        ('Mass', 'Lung Lesion'),
        ('Effusion', 'Pleural Effusion'),
        ('Pleural_Thickening', 'Pleural Other'),
        ('No Findings', 'No Finding'),
    ],
)
def test_a_label_column_is_read_whatever_its_spelling(tmp_path, header, observation):
    table = load_csv(films(tmp_path / 'r', rows(header, '10')), exclusions=Exclusions())
    assert table[observation].tolist() == [1, 0, 1, 0] and table.drop(columns=observation)[
        [o for o in OBSERVATIONS if o != observation]
    ].isna().all(axis=None)


def test_another_word_for_an_observation_is_remarked_and_a_spelling_is_not(tmp_path):
    said = Exclusions()
    load_csv(films(tmp_path / 'r', rows('edema,Infiltration', '10', '1')), exclusions=said)
    assert [r.split(': ', 1)[1] for r in said.remarks] == ['Infiltration is read as Lung Opacity']


@pytest.mark.parametrize(
    'header', ['Lung Opacity,Infiltration', 'Infiltration,Lung Opacity', 'Infiltration,lung_opacity']
)
def test_the_name_itself_goes_before_another_word_whatever_the_order(tmp_path, header):
    own, other = ('1000', '0111') if header.startswith('Lung') else ('0111', '1000')
    said = Exclusions()
    table = load_csv(films(tmp_path / 'r', rows(header, own, other)), exclusions=said)
    assert table['Lung Opacity'].tolist() == [1, 0, 0, 0] and 'Infiltration is not used' in said.remarks[0]


@pytest.mark.parametrize('header', ['Edema,Edema', 'Edema,edema', 'EDEMA ,Edema'])
def test_two_columns_of_one_name_must_agree(tmp_path, header):
    said = Exclusions()
    assert (
        load_csv(films(tmp_path / 'same', rows(header, '10', '10')), exclusions=said).Edema.tolist()
        == [1, 0, 1, 0]
        and 'read' in said.remarks[0]
    )
    for other in ('01', '00'):
        with pytest.raises(StudyTableError, match=r'studies.csv row 1 has .*Edema.*keep one'):
            load_csv(films(tmp_path / other, rows(header, '10', other)))


def test_mass_and_nodule_are_parts_of_one_observation(tmp_path):
    assert load_csv(films(tmp_path / 'r', rows('Mass,Nodule', '1000', '0100')), exclusions=Exclusions())[
        'Lung Lesion'
    ].tolist() == [1, 1, 0, 0]


def test_a_column_that_looks_like_labels_and_is_not_understood_is_listed(tmp_path):
    said = Exclusions()
    load_csv(films(tmp_path / 'r', rows('Edema,Emphysema,reader', '10', '01', ['AB', 'CD'])), exclusions=said)
    assert (
        'looks like labels' in said.remarks[0]
        and 'Emphysema' in said.remarks[0]
        and said.remarks[1].endswith('not used: reader')
    )
    with pytest.warns(UserWarning, match='Emphysema'):
        load_csv(tmp_path / 'r')


@pytest.mark.parametrize('header, cells', [('remark', ['abcd']), ('Ödem,Erguss', ['10', '10'])])
def test_a_table_in_which_no_label_is_understood_is_refused_unless_it_is_said_to_have_none(
    tmp_path, header, cells
):
    root = films(tmp_path / 'r', rows(header, *cells))
    columns = f'image, patient_id, {header.replace(",", ", ")}'
    said = rf'no column is understood as an observation; it has {columns}.*labels='
    with pytest.raises(StudyTableError, match=said):
        load_csv(root, exclusions=Exclusions())
    assert load_csv(root, labels={}, exclusions=Exclusions())[list(OBSERVATIONS)].isna().all(axis=None)


def test_an_explicit_mapping_goes_before_what_a_name_means(tmp_path):
    table = load_csv(
        films(tmp_path / 'r', rows('Edema,Mass', '10', '01')),
        labels={'Fracture': 'Mass', 'Edema': None},
        exclusions=Exclusions(),
    )
    assert (
        table.Fracture.tolist() == [0, 1, 0, 1]
        and table['Lung Lesion'].isna().all()
        and table.Edema.isna().all()
    )


def test_a_list_of_findings_understands_the_same_names(tmp_path):
    said = Exclusions()
    table = load_csv(
        films(tmp_path / 'r', rows('found', ['edema|Effusion', 'Mass', 'No Finding', ''])),
        labels='found',
        exclusions=said,
    )
    assert (
        table.Edema.tolist()[:3] == [1, 0, 0]
        and table['Pleural Effusion'].tolist()[:3] == [1, 0, 0]
        and table['Lung Lesion'].tolist()[:3] == [0, 1, 0]
        and np.isnan(table.Edema[3])
    )
    assert any('Mass is read as Lung Lesion' in r for r in said.remarks)


def test_columns_of_the_study_table_are_found_in_other_spellings_too(tmp_path):
    table = load_csv(
        films(
            tmp_path / 'r',
            'Image,Patient_ID,Sex,AGE,Edema\n'
            + ''.join(f'img/{i}.png,p{i},F,{a},1\n' for i, a in enumerate(('042Y', '6M', '50', ''))),
        ),
        exclusions=Exclusions(),
    )
    assert table.sex.eq('Female').all() and table.age.tolist()[:3] == [42, 0.5, 50] and np.isnan(table.age[3])


@pytest.mark.parametrize(
    'text', ['Edema.1', 'Emphysema', 'Fibrosis', 'Hernia', 'age', '', None, 3, float('nan'), 'no']
)
def test_what_is_no_observation_is_none(text):
    assert observation_name(text) is None


def test_every_reader_of_labels_uses_the_same_names(tmp_path):
    given = pd.DataFrame(
        {
            'Path': ['valid/patient1/study1/view1_frontal.jpg'],
            **{o.lower().replace(' ', '_'): [1] for o in OBSERVATIONS},
        }
    )
    given.to_csv(tmp_path / 'other.csv', index=False)
    table = pd.DataFrame(
        {'image': given.Path.tolist(), 'patient_id': 'p', **dict.fromkeys(OBSERVATIONS, 0.0)},
        index=['valid.csv row 1'],
    )
    assert relabel(table, tmp_path / 'other.csv')[list(OBSERVATIONS)].eq(1).all(axis=None)
    assert find_observations(['Effusion', 'edema'], 'x', Exclusions()) == {
        'Edema': ['edema'],
        'Pleural Effusion': ['Effusion'],
    }
    with pytest.raises(StudyTableError, match="x row 2: Nodule is 'yes'"):
        name_observations(pd.DataFrame({'Mass': ['1', '0'], 'Nodule': ['0', 'yes']}), 'x', Exclusions())


# ---- separators, encodings, commas at the end

PLAIN = {
    'image': [f'img/{i}.png' for i in range(4)],
    'patient_id': ['p0', 'p1', 'p2', 'p3'],
    'Edema': [0, 1, 0, 1],
}
TEXT = 'image,patient_id,Edema\n' + ''.join(f'img/{i}.png,p{i},{i % 2}\n' for i in range(4))
READ = {
    'plain': TEXT,
    'semicolons': TEXT.replace(',', ';'),
    'tabs': TEXT.replace(',', '\t'),
    'UTF-16': TEXT.encode('utf-16'),
    'UTF-16 without a mark': TEXT.encode('utf-16-le'),
    'big-endian UTF-16': TEXT.encode('utf-16-be'),
    'a byte-order mark': TEXT.encode('utf-8-sig'),
    'a first line of Excel': 'sep=;\n' + TEXT.replace(',', ';'),
    'line ends of Windows': TEXT.replace('\n', '\r\n'),
    'of an old Mac': TEXT.replace('\n', '\r'),
    'a comma at the end of each row': TEXT.replace('\n', ',\n').replace('Edema,\n', 'Edema\n'),
    'of each line': TEXT.replace('\n', ',\n'),
    'of the last row': TEXT[:-1] + ',\n',
    'several commas': TEXT.replace('0\n', '0,,\n'),
    'semicolons at the end': TEXT.replace(',', ';').replace('\n', ';\n').replace('Edema;\n', 'Edema\n'),
    'row numbers without a name': TEXT.replace('img/0', '1,img/0')
    .replace('img/1', '2,img/1')
    .replace('img/2', '3,img/2')
    .replace('img/3', '4,img/3'),
    'row numbers with an empty name': ','
    + TEXT.replace('img/0', '0,img/0')
    .replace('img/1', '1,img/1')
    .replace('img/2', '2,img/2')
    .replace('img/3', '3,img/3'),
    'empty rows': TEXT + ',,\n\n,,\n',
    'quotes': TEXT.replace('p0', '"p0"'),
    'spaces in the header': TEXT.replace('patient_id', ' patient_id '),
    'no line end': TEXT[:-1],
    'gzip': gzip.compress(TEXT.encode()),
    'decimal commas': TEXT.replace(',', ';').replace('0\n', '0,0\n').replace('1\n', '1,0\n'),
}


@pytest.mark.parametrize('name', READ)
def test_each_form_of_a_table_gives_the_same_rows(tmp_path, name):
    table = load_csv(films(tmp_path / 'r', READ[name]), exclusions=Exclusions())
    assert table[list(PLAIN)].to_dict('list') == PLAIN


def test_a_gz_that_a_browser_has_unpacked_is_read_by_what_it_is(tmp_path):
    root = films(tmp_path / 'r', TEXT, 'studies.csv.gz')
    assert load_csv(root, table='studies.csv.gz')[list(PLAIN)].to_dict('list') == PLAIN


REFUSED = {
    'a full cell beyond the header': (
        TEXT.replace('img/2.png,p2,0', 'img/2.png,p2,0,x'),
        'line 4 has 4 cells, the header 3',
    ),
    'beyond the header of each row': (
        TEXT.replace('0\n', '0,x\n').replace('1\n', '1,y\n'),
        'line 2 has 4 cells, the header 3',
    ),
    'a file that is cut short': (TEXT[:-4], 'cut short'),
    'a quote that is never closed': (TEXT.replace('p2', '"p2'), 'line 4 has'),
    'Latin-1': (TEXT.replace('p2', 'é').encode('latin1'), 'not UTF-8'),
    'half a character of UTF-16': (TEXT.encode('utf-16')[:-1], 'UTF-16'),
    'an Excel file': (b'PK\x03\x04' + bytes(99), 'Excel'),
    'JSON': ('[{"image": 1}]', 'is JSON'),
    'bars': (TEXT.replace(',', '|'), 'no column image; it has image|patient_id|Edema'),
    'an empty patient': (TEXT.replace('p2', ''), 'row 3: patient_id is '),
    'all patients empty': (
        TEXT.replace('p0', '').replace('p1', '').replace('p2', '').replace('p3', ''),
        'row 1: patient_id is ',
    ),
    'an empty image': (TEXT.replace('img/1.png', ''), 'row 2: image is '),
    'part of the studies empty': (
        TEXT.replace('patient_id,Edema', 'patient_id,study_id')
        .replace('p2,0', 'p2,')
        .replace('image', 'Edema,image')
        .replace('img', '1,img'),
        'row 3: study_id is',
    ),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_is_wrong_with_a_table_is_said_with_its_place(tmp_path, name):
    text, words = REFUSED[name]
    with pytest.raises(StudyTableError) as refused:
        load_csv(films(tmp_path / 'r', text), exclusions=Exclusions())
    assert words in str(refused.value) and 'studies.csv' in str(refused.value)


def test_the_whole_of_a_large_table_keeps_its_columns_where_one_late_row_ends_in_a_comma(tmp_path):
    text = 'name,value\n' + ''.join(f'n{i},{i}\n' for i in range(5000)) + 'last,5000,\n'
    (tmp_path / 't.csv').write_text(text)
    table = read_csv(tmp_path / 't.csv')
    assert (
        table.value.tolist() == list(range(5001))
        and table.name.iloc[-1] == 'last'
        and table.index[-1].endswith('t.csv row 5001')
    )


def test_decimal_commas_become_numbers_and_texts_stay(tmp_path):
    (tmp_path / 't.csv').write_text('image;age;note\na;58,5;0,5\nb;7;ca. 0,5\n')
    table = read_csv(tmp_path / 't.csv')
    assert table.age.tolist() == [58.5, 7] and table.note.tolist() == ['0,5', 'ca. 0,5']


#: The files of ../shared/cases/16_trailing_comma -> what comes of them: labels, or the message.
CASES = {
    'studies': (
        'image,patient_id,Edema,Pneumonia\nimg/0.png,p0,0,0,\nimg/1.png,p1,1,0,\n'
        'img/2.png,p2,0,1,\nimg/3.png,p3,1,1,\n',
        {'patient_id': ['p0', 'p1', 'p2', 'p3'], 'Edema': [0, 1, 0, 1], 'Pneumonia': [0, 0, 1, 1]},
    ),
    'shift': (
        'patient_id,Edema,Pneumonia,Fracture,image\n'
        + ''.join(f'p{i},1,0,,img/{i}.png,\n' for i in range(4)),
        {'patient_id': ['p0', 'p1', 'p2', 'p3'], 'Edema': [1] * 4, 'Pneumonia': [0] * 4},
    ),
    'r': (
        'image,patient_id,Edema,Pneumonia\n'
        + ''.join(f'{i + 1},img/{i}.png,p{i},{i % 2},{i // 2}\n' for i in range(4)),
        {'patient_id': ['p0', 'p1', 'p2', 'p3'], 'Edema': [0, 1, 0, 1], 'Pneumonia': [0, 0, 1, 1]},
    ),
    's': (
        'image,patient_id,study_id,Edema\n' + ''.join(f'img/{i}.png,p{i},,{i % 2}\n' for i in range(4)),
        {'study_id': ['p0-1', 'p1-1', 'p2-1', 'p3-1'], 'Edema': [0, 1, 0, 1]},
    ),
    'l': (
        'image,patient_id,Edema,Pneumonia,age,sex,note\n'
        + ''.join(f'img/{i}.png,p{i},,,,,\n' for i in range(4)),
        {'patient_id': ['p0', 'p1', 'p2', 'p3'], 'note': [None] * 4},
    ),
    'two': (
        'id,image,Edema,Pneumonia,patient_id\n'
        + ''.join(f'img/{i}.png,img/{i}.png,1,0,0,\n' for i in range(4)),
        '4 of 4 images share one patient_id (0), which names nobody',
    ),
    'e': (
        'image,patient_id,Edema\n' + ''.join(f'img/{i}.png,,{i % 2}\n' for i in range(4)),
        'row 1: patient_id',
    ),
    'h': ('id,patient_id,Edema\n' + ''.join(f',p{i},{i % 2}\n' for i in range(4)), 'no column image'),
}


@pytest.mark.parametrize('name', CASES)
def test_each_table_with_a_trailing_comma_or_an_empty_column_is_read_right_or_refused(tmp_path, name):
    text, outcome = CASES[name]
    root = films(tmp_path / 'r', text)
    if isinstance(outcome, str):
        with pytest.raises(StudyTableError) as refused:
            load_csv(root, exclusions=Exclusions())
        assert outcome in str(refused.value)
    else:
        table = load_csv(root, exclusions=Exclusions())
        assert table.image.tolist() == PLAIN['image'] and table[list(outcome)].to_dict('list') == outcome


def test_a_blank_image_under_another_name_is_refused_with_its_row(tmp_path):
    with pytest.raises(StudyTableError, match='row 1: image'):
        load_csv(films(tmp_path / 'r', CASES['h'][0]), columns={'image': 'id'})


# ---- one patient for all


@pytest.mark.parametrize('patient', ['ANONYMOUS', 'anonymized', '0', '000000', 'Unknown', 'XXXX'])
def test_a_placeholder_for_most_patients_is_refused_with_the_remedy(tmp_path, patient):
    text = TEXT.replace('p0', patient).replace('p1', patient).replace('p2', patient)
    with pytest.raises(
        StudyTableError,
        match=r"3 of 4 images share one patient_id \(.*\), which names nobody.*columns={'patient_id': 'image'}",
    ):
        load_csv(films(tmp_path / 'r', text), exclusions=Exclusions())
    assert (
        load_csv(
            tmp_path / 'r', columns={'patient_id': 'image'}, exclusions=Exclusions()
        ).patient_id.nunique()
        == 4
    )


def test_one_real_patient_for_all_is_said(tmp_path):
    said = Exclusions()
    text = TEXT.replace('p1', 'p0').replace('p2', 'p0').replace('p3', 'p0')
    assert (
        len(load_csv(films(tmp_path / 'r', text), exclusions=said)) == 4
        and '4 of 4 images share one patient_id (p0): it counts as one patient' in said.remarks[0]
    )


def test_a_patient_called_0_among_others_is_a_patient(tmp_path):
    said = Exclusions()
    text = 'image,patient_id,Edema\n' + ''.join(f'img/{i}.png,{i},1\n' for i in range(4))
    assert (
        load_csv(films(tmp_path / 'q', text), exclusions=said).patient_id.tolist() == ['0', '1', '2', '3']
        and not said.remarks
    )


# ---- paths and companion files


def test_an_absolute_path_below_the_root_is_relative_to_it_and_another_is_refused(tmp_path):
    root = tmp_path / 'r'
    films(root, TEXT.replace('img/0', f'{root}/img/0'))
    assert load_csv(root).image.tolist() == PLAIN['image']
    (root / 'studies.csv').write_text(TEXT.replace('img/0', f'{tmp_path}/img/0'))
    with pytest.raises(StudyTableError, match='row 1: image is .*a path inside'):
        load_csv(root)


def test_companion_files_of_a_mac_are_listed_and_no_films(tmp_path):
    said = Exclusions()
    root = films(tmp_path / 'r', TEXT + 'img/._0.png,p0,1\n__MACOSX/img/._1.png,p1,0\n')
    assert load_csv(root, exclusions=said).image.tolist() == PLAIN['image'] and said.counts().to_dict() == {
        'a companion file of macOS or Windows, not an image': 2
    }


XML = (
    '<eCitation><uId id="CXR1"/><MedlineCitation><Article><Abstract>'
    '<AbstractText Label="INDICATION">Cough</AbstractText>'
    '</Abstract></Article></MedlineCitation><MeSH/></eCitation>'
)


def packed(path, mode):
    "An archive of one report with what a Mac adds"
    with tarfile.open(path, mode) as archive:
        for name, data in (
            ('ecgen-radiology/._1.xml', b'\0\5\x16\7'),
            ('__MACOSX/ecgen-radiology/1.xml', b'\0'),
            ('ecgen-radiology/1.xml', XML.encode()),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    'name, mode', [('NLMCXR_reports.tgz', 'w:gz'), ('NLMCXR_reports.tgz', 'w'), ('NLMCXR_reports.tar', 'w')]
)
def test_an_archive_with_companion_files_is_read_also_where_a_browser_has_unpacked_its_gzip(
    tmp_path, name, mode
):
    assert read_archive(packed(tmp_path / name, mode)).indication.tolist() == ['Cough']
    unpack(packed(tmp_path / 'again.tgz', mode), tmp_path / 'out')
    assert sorted(
        p.relative_to(tmp_path / 'out').as_posix()
        for p in (tmp_path / 'out').rglob('*')
        if p.is_file() and p.suffix == '.xml'
    ) == ['ecgen-radiology/1.xml']


def test_companion_files_in_a_folder_and_in_a_zip_are_no_reports(tmp_path):
    (tmp_path / 'ecgen-radiology').mkdir()
    (tmp_path / 'ecgen-radiology/1.xml').write_text(XML)
    (tmp_path / 'ecgen-radiology/._1.xml').write_bytes(b'\0\5\x16\7')
    assert len(read_archive(tmp_path / 'ecgen-radiology')) == 1
    with zipfile.ZipFile(tmp_path / 'r.zip', 'w') as archive:
        archive.writestr('files/p10/p10000001/s50000001.txt', 'INDICATION: cough')
        archive.writestr('__MACOSX/files/p10/p10000001/s50000001.txt', b'\0')
    assert read_report_texts(['10000001'], ['50000001'], tmp_path / 'r.zip') == ['INDICATION: cough']
