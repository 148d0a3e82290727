"""Open-i: the real collection's numbers to the last one.

Also: what never reaches a note, and archives and files that are wrong.
"""

import gzip
import io
import re
import tarfile
from xml.sax.saxutils import escape

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cxr_lib.foundations.core import IMPLIES, OBSERVATIONS
from cxr_lib.data.openi import (
    GOLD_LABELS,
    MAX_REPORT_BYTES,
    NOT_CODED,
    OPENI_GOLD,
    OPENI_MESH,
    SECTIONS,
    code_observations,
    code_parts,
    indication_note,
    label_agreement,
    load_openi,
    mesh_labels,
    read_gold,
    read_reports,
)
from cxr_lib.data.studies import STUDY_COLUMNS, Exclusions, StudyTableError

OPENI = ROOT.parent / 'shared' / 'data' / 'openi'
LABELS = list(OBSERVATIONS)
SHARED_FOLDER = dict(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


# Making archives


def report(
    uid, indication='Chest pain', codes=('normal',), images=('1001',), extra='', encoding='utf-8', **sections
):
    "XML of an invented report"
    texts = (
        dict(comparison='None.', indication=indication, findings='Clear.', impression='Normal.') | sections
    )
    body = ''.join(
        f'<AbstractText Label="{k.upper()}">{escape(v or "")}</AbstractText>' for k, v in texts.items()
    )
    films = ''.join(
        f'<parentImage id="CXR{uid}_IM-0007-{i}"><caption>PA and lateral</caption></parentImage>'
        for i in images
    )
    majors = ''.join(f'<major>{escape(c)}</major>' for c in codes)
    text = (
        f'<?xml version="1.0" encoding="{encoding}"?><eCitation><uId id="CXR{uid}"/>'
        f'<MedlineCitation><Article><Abstract>{body}{extra}</Abstract></Article></MedlineCitation>'
        f'<MeSH>{majors}<automatic>lung</automatic></MeSH>{films}</eCitation>'
    )
    return text.encode(encoding)


def archive(path, reports, members=()):
    "A .tgz of name -> XML, and further members as they are"
    with tarfile.open(path, 'w:gz') as tar:
        for name, xml in reports.items():
            info = tarfile.TarInfo(name)
            info.size = len(xml)
            tar.addfile(info, io.BytesIO(xml))
        for info in members:
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    return path


def member(name, kind=tarfile.REGTYPE, size=0, link=''):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info


GOOD = {f'ecgen-radiology/{i}.xml': report(i) for i in (10, 2, 1)}


@pytest.fixture
def root(tmp_path):
    "A folder with an archive of three reports and its labels"
    archive(tmp_path / 'NLMCXR_reports.tgz', GOOD)
    write_gold(tmp_path, {f'CXR{i}': ['normal'] for i in (1, 2, 10)})
    return tmp_path


def write_gold(folder, positives, **changes):
    table = pd.DataFrame(
        [{'filename': r, **{c: int(c in p) for c in GOLD_LABELS}} for r, p in positives.items()]
    )
    table.assign(**changes).to_csv(folder / 'openi_gld_std14.csv', index=False)


# The real collection


@pytest.fixture(scope='module')
def reports():
    if not OPENI.is_dir():
        pytest.skip('the Open-i reports are not at ../shared/data/openi')
    return read_reports(OPENI / 'NLMCXR_reports.tgz')


def test_the_real_archive_holds_3955_reports_and_3865_indications(reports):
    assert len(reports) == reports.report_id.nunique() == 3955 and reports.indication.notna().sum() == 3865
    assert reports.image_ids.str.len().sum() == reports.image_ids.explode().nunique() == 7470
    assert (reports.image_ids.str.len() == 0).sum() == 104
    assert (reports.captions.str.len() == reports.image_ids.str.len()).all()
    assert reports.report_id.iloc[[0, 1, -1]].tolist() == ['CXR1', 'CXR2', 'CXR3999']
    first = reports.iloc[0]
    assert first.indication == 'Positive TB test'
    assert first.impression == 'Normal chest x-XXXX.'
    assert first.mesh_major == ['normal']
    assert first.image_ids[0] == 'CXR1_1_IM-0001-3001'
    assert first.file == 'ecgen-radiology/1.xml'
    assert reports.index[0].endswith('NLMCXR_reports.tgz member ecgen-radiology/1.xml')


def test_the_published_labels_have_their_published_counts(reports):
    gold = read_gold(OPENI / 'openi_gld_std14.csv', reports)
    assert gold.notna().all(axis=1).sum() == 3851
    assert gold[['Cardiomegaly', 'Atelectasis', 'Effusion', 'Infiltration', 'normal']].sum().tolist() == [
        345,
        315,
        153,
        60,
        1379,
    ]


def test_the_published_labels_are_the_heads_of_the_codes(reports):
    gold = read_gold(OPENI / 'openi_gld_std14.csv', reports).dropna()
    heads = reports.mesh_major[gold.index].map(lambda codes: {code_parts(c)[0] for c in codes})
    for label, names in {
        'Effusion': {'pleural effusion', 'pericardial effusion'},
        'Infiltration': {'infiltrate'},
        'Edema': {'pulmonary edema'},
        'Cardiomegaly': {'cardiomegaly'},
        'Pleural_Thickening': {'thickening'},
        'Hernia': {'hernia'},
        'normal': {'normal'},
    }.items():
        assert (gold[label] == heads.map(lambda h, names=names: float(bool(h & names)))).all(), label


def test_every_code_of_the_collection_is_decided_and_reports_without_codes_are_missing(reports):
    labels = mesh_labels(reports)  # an undecided code would be an error
    uncoded = reports.mesh_major.map(lambda codes: codes == [NOT_CODED])
    assert uncoded.sum() == 95
    assert (labels.isna().all(axis=1) == uncoded).all()
    assert labels[~uncoded].drop(columns='No Finding').isin((0, 1)).any(axis=1).all()
    assert (labels['No Finding'] == 1).sum() == 1391 + 46  # normal, and nothing but a device
    for child, parents in IMPLIES.items():
        for parent in parents:
            assert not ((labels[child] == 1) & (labels[parent] == 0)).any()


def test_the_study_table_takes_gold_where_it_can_and_codes_elsewhere(reports):
    table, mesh = load_openi(OPENI), load_openi(OPENI, labels='mesh')
    assert list(table.columns) == list(STUDY_COLUMNS)
    assert len(table) == 3955
    assert table.image.isna().all()
    assert table.note.notna().sum() == 3662
    assert table[
        ['Cardiomegaly', 'Atelectasis', 'Pleural Effusion', 'No Finding', 'Lung Lesion', 'Edema']
    ].sum().tolist() == [345, 315, 153, 1379, 119, 42]
    for o in ('Lung Opacity', 'Enlarged Cardiomediastinum', 'Fracture', 'Support Devices'):
        assert table[o].equals(mesh[o]) and table[o].sum() > 20, o
    assert (
        table.Cardiomegaly.notna().sum() == 3851 - 92 and mesh.Cardiomegaly.notna().sum() == 3955 - 95
    )  # not indexed: zeros in the file, missing here
    assert (table.patient_id == table.study_id).all()
    assert table.patient_id.is_unique
    assert table[['view', 'projection', 'sex', 'age', 'split']].isna().all(axis=None)
    agreement = label_agreement(table, mesh)
    assert agreement.kappa[['Atelectasis', 'Pneumonia', 'Consolidation']].eq(1).all()
    assert 0.9 < agreement.kappa['Pneumothorax'] < 1
    assert 0.5 < agreement.kappa['Edema'] < 0.7


def sentences(text):
    return [s.strip().lower() for s in re.split(r'[.;]', text or '') if len(s.split()) > 2]


@pytest.mark.parametrize('marks', ['keep', 'drop'])
def test_no_sentence_of_the_answer_is_in_a_real_note_unless_the_indication_holds_it(reports, marks):
    table = load_openi(OPENI, marks=marks).set_index('study_id')
    n = 0
    for r in reports.itertuples():
        note = table.note[r.report_id]
        if note is None or note != note:
            continue
        n += 1
        if marks == 'keep':
            assert note == ' '.join(r.indication.split())
        own = ' '.join(r.indication.split()).lower()
        for sentence in sentences(r.findings) + sentences(r.impression) + sentences(r.comparison):
            assert sentence not in note.lower() or sentence in own, (r.report_id, sentence)
    assert n == 3662


# What a note may hold

WORDS = st.lists(
    st.sampled_from(
        ['pain', 'XXXX', 'XXXX-year-old', 'x-XXXX', 'XXXXXXXX', '.', ',', '--', 'r/o', 'TB', '  ', '786.2']
    ),
    max_size=12,
).map(' '.join)


@given(WORDS)
def test_a_note_is_missing_exactly_when_nothing_but_marks_is_there(text):
    kept, dropped = indication_note(text), indication_note(text, 'drop')
    bare = re.sub('X{4,}', '', text)
    assert (kept is None) == (dropped is None) == (not any(c.isalnum() for c in bare))
    if kept is None:
        return
    assert kept == ' '.join(text.split()) and 'XXXX' not in dropped
    assert [c for c in dropped if c.isalnum()] == [c for c in bare if c.isalnum()]


def test_no_word_of_other_sections_reaches_any_cell_of_the_table(tmp_path):
    secret = dict(
        findings='zebrafindings opacity', impression='zebraimpression', comparison='zebracomparison'
    )
    for label, codes in (('a', ('Opacity/lung',)), ('b', ('normal',))):
        folder = tmp_path / label
        folder.mkdir()
        archive(
            folder / 'NLMCXR_reports.tgz',
            {
                'ecgen-radiology/1.xml': report(1, 'Cough', codes, **secret),
                'ecgen-radiology/2.xml': report(2, None, codes, **secret),
                'ecgen-radiology/3.xml': report(3, 'XXXX', codes, **secret),
            },
        )
        table = load_openi(folder, labels='mesh')
        assert 'zebra' not in table.to_csv()
        assert table.note.tolist()[0] == 'Cough'
        assert table.note.isna().tolist() == [False, True, True]


@settings(max_examples=40, **SHARED_FOLDER)
@given(
    st.lists(
        st.text(st.characters(blacklist_categories=('Cs', 'Cc', 'Cn')), max_size=40), min_size=4, max_size=4
    )
)
def test_texts_come_out_as_they_are(tmp_path, texts):
    xml = report(1, **dict(zip(SECTIONS, texts)))
    row = read_reports(archive(tmp_path / 'a.tgz', {'ecgen-radiology/1.xml': xml})).iloc[0]
    assert [row[s] for s in SECTIONS] == [t if t.strip() else None for t in texts]


# Codes


@given(
    st.sampled_from(sorted(OPENI_MESH)),
    st.lists(st.sampled_from(['left', 'base', 'mild', 'multiple', 'chronic']), max_size=3),
    st.randoms(),
)
def test_spelling_place_and_order_of_qualifiers_do_not_change_what_a_code_means(key, more, random):
    head, *own = key.split('/')
    qualifiers = own + more
    random.shuffle(qualifiers)
    code = '/'.join([head.upper(), *(q + ' ' for q in qualifiers)])
    meant = OPENI_MESH[key]
    assert set(code_observations(code)) == set(
        () if meant is None else (meant,) if isinstance(meant, str) else meant
    )


def test_the_vocabulary_names_only_observations_and_each_of_them():
    assert {o for f in OPENI_MESH.values() if f for o in ((f,) if isinstance(f, str) else f)} == set(
        OBSERVATIONS
    )
    assert set(OPENI_GOLD) < set(GOLD_LABELS)
    assert set(OPENI_GOLD.values()) < set(OBSERVATIONS)
    assert 'Lung Opacity' not in OPENI_GOLD.values()


@pytest.mark.parametrize(
    'codes, positive, missing',
    [
        (['normal'], {'No Finding'}, set()),
        (['Catheters, Indwelling/right'], {'No Finding', 'Support Devices'}, set()),
        (['Catheters, Indwelling', 'Scoliosis'], {'Support Devices'}, set()),
        (['Scoliosis'], set(), set()),
        (['normal', 'Mass/lung'], {'Lung Lesion'}, {'Lung Opacity'}),
        (['Cardiomegaly/mild'], {'Cardiomegaly'}, {'Enlarged Cardiomediastinum'}),
        (['Cardiomegaly', 'Mediastinum/prominent'], {'Cardiomegaly', 'Enlarged Cardiomediastinum'}, set()),
        (['Pneumonia/lower lobe/right'], {'Pneumonia'}, {'Consolidation', 'Lung Opacity'}),
        (['Hydropneumothorax/left'], {'Pneumothorax', 'Pleural Effusion'}, set()),
        (['Pericardial Effusion/large'], set(), set()),
        (['Thickening/pleura/apex'], {'Pleural Other'}, set()),
        (['Thickening/heart ventricles'], set(), set()),
        (['Technical Quality of Image Unsatisfactory '], set(), {'No Finding'}),
        (['No Indexing'], set(), set(OBSERVATIONS)),
        ([], set(), set(OBSERVATIONS)),
    ],
)
def test_codes_mean_what_the_chapter_says(codes, positive, missing):
    labels = mesh_labels(pd.DataFrame({'mesh_major': [codes]}, index=['a.tgz member 1.xml'])).iloc[0]
    assert set(labels.index[labels == 1]) == positive
    assert set(labels.index[labels.isna()]) == missing
    assert (labels.drop(positive | missing) == 0).all()


def test_agreement_is_cohens_kappa():
    from sklearn.metrics import cohen_kappa_score

    rng = np.random.default_rng(0)
    a, b = (
        pd.DataFrame(rng.choice([0, 1, np.nan, -1], (200, 14), p=[0.5, 0.3, 0.1, 0.1]), columns=LABELS)
        for _ in range(2)
    )
    a['Fracture'] = np.nan
    table = label_agreement(a, b)
    assert 'Fracture' not in table.index and len(table) == 13
    both = a.Edema.isin((0, 1)) & b.Edema.isin((0, 1))
    assert table.n['Edema'] == both.sum()
    assert abs(table.kappa['Edema'] - cohen_kappa_score(a.Edema[both], b.Edema[both])) < 1e-12


# Archives that are wrong

XML = 'ecgen-radiology/3.xml'
HEAD = b'<?xml version="1.0"?>'
LAUGHS = (
    HEAD
    + b'<!DOCTYPE l [<!ENTITY a "ha">'
    + b''.join(b'<!ENTITY %c "%s">' % (98 + i, b'&%c;' % (97 + i) * 10) for i in range(9))
    + b']><eCitation><uId id="CXR3"/><AbstractText Label="INDICATION">&j;</AbstractText></eCitation>'
)
WRONG_MEMBERS = {
    'entities that expand without end': (dict(xml=LAUGHS), 'document type or entities'),
    'a document type from a file': (
        dict(xml=HEAD + b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><eCitation><uId id="CXR3"/></eCitation>'),
        'document type or entities',
    ),
    'a document type in UTF-16': (
        dict(
            xml='<?xml version="1.0" encoding="utf-16"?><!DOCTYPE x><eCitation><uId id="CXR3"/></eCitation>'.encode(
                'utf-16'
            )
        ),
        'document type or entities',
    ),
    'XML that stops': (dict(xml=report(3)[:300]), 'not readable XML'),
    'no bytes': (dict(xml=b''), 'not readable XML'),
    'undeclared Latin-1': (
        dict(xml=report(3, 'Señora', encoding='latin-1').replace(b'latin-1', b'utf-8')),
        'not readable XML',
    ),
    'an encoding nobody knows': (
        dict(xml=report(3).replace(b'encoding="utf-8"', b'encoding="klingon"')),
        'not readable XML',
    ),
    'an entity of HTML': (dict(xml=report(3).replace(b'Chest pain', b'&nbsp;')), 'not readable XML'),
    'another document': (dict(xml=b'<html><body/></html>'), 'expected an element eCitation'),
    'no identifier': (dict(xml=report(3).replace(b'<uId id="CXR3"/>', b'')), 'expected an element eCitation'),
    'two indications': (
        dict(xml=report(3, extra='<AbstractText Label="INDICATION">again</AbstractText>')),
        'INDICATION appears twice',
    ),
    'findings inside the indication': (
        dict(
            xml=report(3).replace(b'Chest pain', b'Pain <AbstractText Label="FINDINGS">mass</AbstractText>')
        ),
        'INDICATION holds other elements',
    ),
    'an image without a name': (
        dict(xml=report(3, extra='').replace(b'<parentImage id="CXR3_IM-0007-1001">', b'<parentImage>')),
        'parentImage has no id',
    ),
    'a report twice': (dict(xml=report(2)), "report_id is 'CXR2'; expected each report once"),
    'a name that climbs out': (dict(name='../3.xml'), 'the name leads out of the archive'),
    'a name that climbs out, Windows': (dict(name='a\\..\\..\\3.xml'), 'the name leads out of the archive'),
    'an absolute name': (dict(name='/etc/3.xml'), 'the name leads out of the archive'),
    'a drive letter': (dict(name='C:/3.xml'), 'the name leads out of the archive'),
    'a symbolic link': (dict(member=member(XML, tarfile.SYMTYPE, link='/etc/passwd')), 'a link or a device'),
    'a hard link': (
        dict(member=member(XML, tarfile.LNKTYPE, link='ecgen-radiology/1.xml')),
        'a link or a device',
    ),
    'a device': (dict(member=member(XML, tarfile.CHRTYPE)), 'a link or a device'),
    'a pipe': (dict(member=member(XML, tarfile.FIFOTYPE)), 'a link or a device'),
    'a huge member': (
        dict(member=member(XML, size=MAX_REPORT_BYTES + 1)),
        f'expected at most {MAX_REPORT_BYTES}',
    ),
    'a huge header': (
        dict(member=member(XML, tarfile.XHDTYPE, size=3 * MAX_REPORT_BYTES)),
        'a header asks for',
    ),
}


@pytest.mark.parametrize('case', WRONG_MEMBERS)
def test_a_wrong_member_is_an_error_that_names_archive_and_member(tmp_path, case):
    (change, message), path, before = WRONG_MEMBERS[case], tmp_path / 'in' / 'a.tgz', None
    path.parent.mkdir()
    name = change.get('name', XML)
    archive(
        path,
        GOOD | ({} if 'member' in change else {name: change.get('xml', report(3))}),
        [change['member']] if 'member' in change else [],
    )
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(StudyTableError, match=re.escape(message)) as e:
        read_reports(path)
    assert str(path) in str(e.value)
    assert name in str(e.value) or case == 'a huge header'
    assert sorted(tmp_path.rglob('*')) == before


def test_an_archive_cut_at_any_byte_is_an_error_and_never_a_shorter_collection(tmp_path):
    whole = archive(tmp_path / 'a.tgz', GOOD).read_bytes()
    tar = gzip.decompress(whole)
    end = max(i for i in range(0, len(tar), 512) if tar[i : i + 512].strip(b'\0')) + 512
    for cut in range(0, len(whole), max(1, len(whole) // 60)):
        (tmp_path / 'cut.tgz').write_bytes(whole[:cut])
        with pytest.raises(StudyTableError, match=r'cut\.tgz'):
            read_reports(tmp_path / 'cut.tgz')
    for cut in [*range(0, end + 1, 256), end - 1, end]:
        (tmp_path / 'cut.tgz').write_bytes(gzip.compress(tar[:cut]))
        with pytest.raises(StudyTableError, match=r'cut\.tgz'):
            read_reports(tmp_path / 'cut.tgz')


@settings(max_examples=120, **SHARED_FOLDER)
@given(where=st.floats(0, 0.999999), bit=st.integers(0, 7))
def test_a_flipped_bit_is_an_error_or_changes_nothing(tmp_path, where, bit):
    whole = archive(tmp_path / 'a.tgz', GOOD).read_bytes()
    right = read_reports(tmp_path / 'a.tgz')
    broken = bytearray(whole)
    broken[int(where * len(whole))] ^= 1 << bit
    (tmp_path / 'a.tgz').write_bytes(broken)
    try:
        read = read_reports(tmp_path / 'a.tgz')
    except StudyTableError as e:
        assert 'a.tgz' in str(e)
    else:
        pd.testing.assert_frame_equal(read, right)


@pytest.mark.parametrize(
    'content, message',
    [
        (b'', 'not a whole .tgz'),
        (b'not an archive', 'not a whole .tgz'),
        (gzip.compress(b'not a tar' * 200, mtime=0), 'not a whole .tgz'),
        (gzip.compress(bytes(10240), mtime=0), 'no XML reports'),
    ],
)
def test_a_file_that_is_no_archive_is_an_error(tmp_path, content, message):
    (tmp_path / 'a.tgz').write_bytes(content)
    with pytest.raises(StudyTableError, match=message) as e:
        read_reports(tmp_path / 'a.tgz')
    assert 'a.tgz' in str(e.value)


def test_nothing_there_is_an_error_with_the_remedy(tmp_path):
    for call in (read_reports, lambda p: load_openi(p)):
        with pytest.raises(StudyTableError, match='Download NLMCXR_reports.tgz'):
            call(tmp_path / 'nowhere')
    with pytest.raises(StudyTableError, match='no XML reports'):
        read_reports(tmp_path)


def test_encodings_that_are_declared_are_read(tmp_path):
    text = 'Señora, 50 % — dyspnée'
    files = {
        '1.xml': report(1, 'Señora', encoding='latin-1'),
        '2.xml': b'\xef\xbb\xbf' + report(2, text),
        '3.xml': report(3, text, encoding='utf-16'),
    }
    assert read_reports(archive(tmp_path / 'a.tgz', files)).indication.tolist() == ['Señora', text, text]


def test_a_folder_of_files_gives_the_same_table_as_the_archive(root):
    (root / 'ecgen-radiology').mkdir()
    for name, xml in GOOD.items():
        (root / name).write_bytes(xml)
    (root / 'ecgen-radiology' / 'README.txt').write_text('not a report')
    a, b = read_reports(root / 'NLMCXR_reports.tgz'), read_reports(root / 'ecgen-radiology')
    pd.testing.assert_frame_equal(a.reset_index(drop=True), b.reset_index(drop=True))
    assert a.report_id.tolist() == ['CXR1', 'CXR2', 'CXR10']
    by_archive = load_openi(root)
    (root / 'NLMCXR_reports.tgz').unlink()
    pd.testing.assert_frame_equal(load_openi(root), by_archive)
    (root / 'ecgen-radiology' / '2.xml').write_bytes(b'<eCitation>')
    with pytest.raises(StudyTableError, match='2.xml: not readable XML'):
        load_openi(root)
    (root / 'ecgen-radiology' / '2.xml').write_bytes(bytes(MAX_REPORT_BYTES + 1))
    with pytest.raises(StudyTableError, match='2.xml: .* expected at most'):
        load_openi(root)


# Tables that are wrong


def test_a_code_nobody_decided_on_is_an_error_that_names_report_and_code(tmp_path):
    archive(tmp_path / 'NLMCXR_reports.tgz', {'ecgen-radiology/1.xml': report(1, codes=['Dragon/left'])})
    with pytest.raises(
        StudyTableError, match=r"NLMCXR_reports.tgz member ecgen-radiology/1.xml: unknown code 'Dragon/left'"
    ):
        load_openi(tmp_path, labels='mesh')


@pytest.mark.parametrize(
    'change, message',
    [
        (
            dict(filename=['CXR1', 'CXR2', 'CXR999']),
            "row 3: filename is 'CXR999'; expected a report of the archive",
        ),
        (dict(filename=['CXR1', 'CXR2', 'CXR2']), "row 3: filename is 'CXR2'; expected each report once"),
        (dict(filename=['CXR1', '', 'CXR10']), 'row 2: filename is nan; expected a text'),
        (dict(Edema=['0', 'yes', '0']), "row 2: Edema is 'yes'; expected 1 or 0"),
        (dict(Edema=['0', '0', '-1']), "row 3: Edema is '-1'; expected 1 or 0"),
        (dict(Edema=['', '0', '0']), 'row 1: Edema is nan; expected 1 or 0'),
    ],
)
def test_a_wrong_label_file_is_an_error_that_names_the_row(root, change, message):
    write_gold(root, {f'CXR{i}': ['normal'] for i in (1, 2, 10)}, **change)
    with pytest.raises(StudyTableError, match=re.escape(message)) as e:
        load_openi(root)
    assert 'openi_gld_std14.csv' in str(e.value)


def test_a_label_file_without_a_column_or_absent_is_an_error_with_the_remedy(root):
    gold = root / 'openi_gld_std14.csv'
    gold.write_text(gold.read_text().replace('Edema', 'Oedema'))
    with pytest.raises(StudyTableError, match=r'missing column\(s\) Edema'):
        load_openi(root)
    gold.unlink()
    with pytest.raises(StudyTableError, match="labels='mesh'"):
        load_openi(root)
    assert len(load_openi(root, labels='mesh')) == 3


def test_a_label_file_with_a_mark_and_windows_line_ends_is_read(root):
    gold = root / 'openi_gld_std14.csv'
    gold.write_bytes(b'\xef\xbb\xbf' + gold.read_bytes().replace(b'\n', b'\r\n'))
    assert load_openi(root)['No Finding'].tolist() == [1, 1, 1]


def test_options_nobody_knows_are_refused(root):
    for options in (dict(labels='silver'), dict(marks='maybe')):
        with pytest.raises(ValueError, match='expected'):
            load_openi(root, **options)
    (root / 'NLMCXR_png').mkdir()
    with pytest.raises(ValueError, match='expected'):
        load_openi(root, missing='ignore')


# Images


@pytest.fixture
def with_images(tmp_path):
    "Four reports: two images, one, none; the first with the doubled number of the real CXR1"
    first = report(1, images=('3001', '4001')).replace(b'CXR1_IM', b'CXR1_1_IM')
    archive(
        tmp_path / 'NLMCXR_reports.tgz',
        {
            'ecgen-radiology/1.xml': first,
            'ecgen-radiology/2.xml': report(2),
            'ecgen-radiology/3.xml': report(3, images=()),
            'ecgen-radiology/4.xml': report(4, codes=[NOT_CODED]),
        },
    )
    write_gold(tmp_path, {'CXR1': ['normal'], 'CXR2': ['Mass', 'Infiltration'], 'CXR4': []})
    (tmp_path / 'NLMCXR_png').mkdir()
    for name in ('CXR1_1_IM-0007-3001', 'CXR1_1_IM-0007-4001', 'CXR2_IM-0007-1001', 'CXR4_IM-0007-1001'):
        Image.new('L', (40, 30)).save(tmp_path / 'NLMCXR_png' / f'{name}.png')
    return tmp_path


def test_with_images_there_is_one_row_an_image_and_reports_without_one_are_listed(with_images):
    left = Exclusions()
    table = load_openi(with_images, exclusions=left)
    assert table.image.tolist() == [
        'NLMCXR_png/CXR1_1_IM-0007-3001.png',
        'NLMCXR_png/CXR1_1_IM-0007-4001.png',
        'NLMCXR_png/CXR2_IM-0007-1001.png',
        'NLMCXR_png/CXR4_IM-0007-1001.png',
    ]
    assert table.study_id.tolist() == ['CXR1', 'CXR1', 'CXR2', 'CXR4']
    assert table.view.isna().all()
    assert table.projection.isna().all()
    assert left.table().reason.tolist() == ['the report has no image']
    assert left.rows[0][0].endswith('ecgen-radiology/3.xml')
    assert table['Lung Lesion'].tolist()[:3] == [0, 0, 1]
    assert table['Lung Opacity'].tolist()[:3] == [0, 0, 0]
    assert table.loc[3, LABELS].isna().all()
    with pytest.warns(UserWarning, match='1 of 4 rows are left out: the report has no image'):
        load_openi(with_images)


def test_images_that_are_not_on_disk_are_refused_or_listed(with_images):
    left = Exclusions()
    (with_images / 'NLMCXR_png' / 'CXR2_IM-0007-1001.png').unlink()
    with pytest.raises(
        StudyTableError, match=r"ecgen-radiology/2.xml: image is 'NLMCXR_png/CXR2_IM-0007-1001.png'"
    ):
        load_openi(with_images, exclusions=left)
    left = Exclusions()
    assert len(load_openi(with_images, missing='exclude', exclusions=left)) == 3
    assert left.counts().to_dict() == {'the report has no image': 1, 'the image is not on disk': 1}
    for file in (with_images / 'NLMCXR_png').iterdir():
        file.unlink()
    with pytest.raises(StudyTableError, match='none of the 4 listed images'):
        load_openi(with_images, missing='exclude', exclusions=left)


def test_an_image_name_that_climbs_out_or_stands_twice_is_refused(with_images):
    for name, message in (
        ('../../etc/x', 'expected a path inside'),
        ('CXR2_IM-0007-1001', 'expected each image once'),
    ):
        archive(
            with_images / 'NLMCXR_reports.tgz',
            {
                'ecgen-radiology/1.xml': report(1).replace(b'CXR1_IM-0007-1001', name.encode()),
                'ecgen-radiology/2.xml': report(2),
                'ecgen-radiology/4.xml': report(4),
            },
        )
        with pytest.raises(StudyTableError, match=message):
            load_openi(with_images)


def test_views_come_from_the_projections_file_where_there_is_one(with_images):
    file = with_images / 'indiana_projections.csv'
    file.write_text(
        'uid,filename,projection\n1,1_IM-0007-4001.dcm.png,Lateral\n'
        '1,1_IM-0007-3001.dcm.png,Frontal\n2,2_IM-0007-1001.dcm.png,Frontal\n'
        '77,77_IM-0001-1001.dcm.png,Frontal\n'
    )
    table = load_openi(with_images, exclusions=Exclusions())
    assert table.view.tolist() == ['Frontal', 'Lateral', 'Frontal', None] and table.projection.isna().all()


@pytest.mark.parametrize(
    'rows, message',
    [
        ('2_IM-0007-1001.dcm.png,AP', "row 1: projection is 'AP'; expected Frontal or Lateral"),
        ('9_IM-0007-1001.dcm.png,Frontal', 'names no image of the archive'),
        ('2_IM-0007-1001.dcm.png,Frontal\n2_IM-0007-1001.dcm.png,Lateral', 'row 2: filename is'),
        (',Frontal', 'row 1: filename is nan'),
    ],
)
def test_a_wrong_projections_file_is_an_error(with_images, rows, message):
    (with_images / 'indiana_projections.csv').write_text('filename,projection\n' + rows + '\n')
    with pytest.raises(StudyTableError, match=re.escape(message)) as e:
        load_openi(with_images, exclusions=Exclusions())
    assert 'indiana_projections.csv' in str(e.value)
