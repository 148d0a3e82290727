"""From statements to labels, and the sources that reports come from."""

import csv
import gzip
import io
import json
import tarfile

import pandas as pd
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_lib.data.observations import name_observations
from cxr_lib.data.openi import GOLD_LABELS
from cxr_lib.data.studies import StudyTableError
from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.reasoning.agreement import development_ids, is_set_aside, score_labeler
from cxr_lib.reasoning.labels import (
    VOCABULARIES,
    Report,
    label_report,
    label_table,
    reports_in,
    write_labels,
    write_statements,
)

OPENI = ROOT.parent / 'shared' / 'data' / 'openi'
needs_openi = pytest.mark.skipif(
    not (OPENI / 'labeler_development.txt').is_file(),
    reason='the reports of Open-i (../shared/data/openi) are not on this machine',
)


def labels_of(text, vocabulary='chexpert'):
    "The labels that are not empty"
    labels = label_report(Report('a', {'text': text}, 'row 1'), vocabulary).labels
    return {label: value for label, value in labels.items() if value is not None}


# Labels


@pytest.mark.parametrize(
    'text, expected',
    [
        ('No edema. Mild edema.', {'Edema': 1}),
        ('No edema. Possible edema.', {'Edema': -1}),
        ('Possible edema. Edema.', {'Edema': 1}),
        ('No edema.', {'No Finding': 1, 'Edema': 0}),
        ('Unremarkable.', {'No Finding': 1}),
        ('Right chest tube.', {'No Finding': 1, 'Support Devices': 1}),
        ('Mild scoliosis.', {}),
        ('Possible granuloma.', {}),
        ('Hydropneumothorax on the left.', {'Pneumothorax': 1, 'Pleural Effusion': 1}),
        ('Heart size is normal.', {'No Finding': 1, 'Cardiomegaly': 0}),
        ('Rib fractures. No pneumothorax.', {'Fracture': 1, 'Pneumothorax': 0}),
    ],
)
def test_chexpert_conventions(text, expected):
    assert labels_of(text) == expected


@pytest.mark.parametrize(
    'text, expected',
    [
        ('Left nodule. No mass.', {'Nodule'}),
        ('Possible pneumonia.', set()),
        ('Probable pneumonia.', {'Pneumonia'}),
        ('Atelectasis versus infiltrate.', {'Atelectasis', 'Infiltration'}),
        ('Emphysema and pulmonary fibrosis. Hiatal hernia.', {'Emphysema', 'Fibrosis', 'Hernia'}),
        ('Pericardial effusion.', set()),
        ('Subcutaneous emphysema.', set()),
        ('Biapical pleural thickening.', {'Pleural_Thickening'}),
    ],
)
def test_nih_conventions(text, expected):
    labels = labels_of(text, 'nih')
    assert list(labels) == list(GOLD_LABELS[:14]) and set(labels.values()) <= {0, 1}
    assert {label for label, value in labels.items() if value} == expected


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200))
def test_any_text_gets_labels_of_the_vocabulary(text):
    for vocabulary, values in (('chexpert', {1, 0, -1, None}), ('nih', {0, 1})):
        labels = label_report(Report('a', {'text': text}, 'row 1'), vocabulary).labels
        assert tuple(labels) == tuple(VOCABULARIES[vocabulary])
        assert set(labels.values()) <= values


# Sources


def table_of(rows):
    out = io.StringIO()
    csv.writer(out).writerows([['id', 'text'], *rows])
    return out.getvalue()


TEXT = 'FINDINGS: Small left\npleural effusion, "unchanged".\n\nIMPRESSION: No pneumothorax.'


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
@pytest.mark.parametrize('name', ['r.csv', 'r.csv.gz', 'r.tsv'])
def test_a_table_of_reports_in_any_dialect(tmp_path, name, encoding):
    text = table_of([['A', TEXT], ['007', 'None']])
    if name.endswith('.tsv'):
        text = text.replace('id,text', 'id\ttext').replace('A,', 'A\t').replace('007,', '007\t')
    data = text.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith('.gz') else data)
    reports = reports_in(tmp_path / name)
    assert [r.report_id for r in reports.items] == ['A', '007']
    assert reports.items[0].parts['text'].split() == TEXT.split()
    assert label_report(reports.items[0]).labels['Pleural Effusion'] == 1


@pytest.mark.parametrize(
    'text, said',
    [
        ('name,text\na,b\n', r'missing column\(s\) id'),
        ('id,text\n,Edema.\n', "row 1: id is .*expected a text"),
        ('id,text\nA,Edema.\nA,Clear.\n', "row 1: id is 'A'; expected each report once"),
        ('', 'empty'),
        ('{"id": 1}', 'JSON'),
    ],
)
def test_a_table_that_cannot_be_labeled_is_refused(tmp_path, text, said):
    (tmp_path / 'r.csv').write_text(text)
    with pytest.raises(StudyTableError, match=said):
        reports_in(tmp_path / 'r.csv')


def test_rows_without_a_report_are_listed(tmp_path):
    rows = [['A', 'Edema.'], ['B', ''], ['C', ' ... '], ['D', 'x' * 100_001]]
    (tmp_path / 'r.csv').write_text(table_of(rows))
    reports = reports_in(tmp_path / 'r.csv')
    assert [r.report_id for r in reports.items] == ['A']
    assert [f.id for f in reports.failures] == ['B', 'C', 'D']
    assert 'row 2: text is empty; expected a report' in reports.failures[0].reason
    assert 'row 4: text has 100,001 characters' in reports.failures[2].reason


def test_folders_and_files_that_hold_no_reports(tmp_path):
    with pytest.raises(StudyTableError, match='holds no NLMCXR_reports.tgz'):
        reports_in(tmp_path)
    with pytest.raises(StudyTableError, match='no such file or folder'):
        reports_in(tmp_path / 'nowhere.csv')


def openi_xml(number, findings, impression):
    sections = {
        'INDICATION': 'Pneumonia?',
        'COMPARISON': 'Mass.',
        'FINDINGS': findings,
        'IMPRESSION': impression,
    }
    texts = ''.join(f'<AbstractText Label="{k}">{v}</AbstractText>' for k, v in sections.items())
    return f'<eCitation><uId id="CXR{number}"/>{texts}</eCitation>'.encode()


def test_open_i_as_folder_and_as_archive_gives_the_same(tmp_path):
    reports = {1: ('No', 'pleural effusion.'), 2: ('', ''), 10: ('Hernia.', '')}
    (tmp_path / 'ecgen-radiology').mkdir()
    with tarfile.open(tmp_path / 'x.tgz', 'w:gz') as archive:
        for number, texts in reports.items():
            data = openi_xml(number, *texts)
            (tmp_path / 'ecgen-radiology' / f'{number}.xml').write_bytes(data)
            member = tarfile.TarInfo(f'ecgen-radiology/{number}.xml')
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    tables = []
    for source in (tmp_path, tmp_path / 'ecgen-radiology', tmp_path / 'x.tgz'):
        found = reports_in(source)
        assert '1 of 3 reports have neither findings nor impression' in found.remarks[0]
        tables.append(label_table([label_report(r, 'nih') for r in found.items], 'nih'))
    assert tables[0].equals(tables[1]) and tables[0].equals(tables[2])
    table = tables[0].set_index('id')
    assert list(table.index) == ['CXR1', 'CXR2', 'CXR10']
    # 'No' ends the findings: it denies nothing in the impression
    assert table.loc['CXR1', 'Effusion'] == 1 and table.loc['CXR10', 'Hernia'] == 1
    assert table[['Pneumonia', 'Mass']].sum().sum() == 0


# Files


def test_the_table_is_read_as_labels_by_the_reader_of_tables(tmp_path):
    texts = {'a.png': 'Possible edema, no effusion.', 'b.png': 'Clear lungs.'}
    labeled = [label_report(Report(name, {'text': text}, name)) for name, text in texts.items()]
    write_labels(tmp_path / 'labels.csv', labeled, 'chexpert')
    table = pd.read_csv(tmp_path / 'labels.csv')
    assert list(table) == ['id', *OBSERVATIONS]
    named = name_observations(table, 'labels.csv')
    assert named[list(OBSERVATIONS)].equals(table[list(OBSERVATIONS)])
    assert table.Edema.tolist()[0] == -1 and table['Pleural Effusion'].tolist()[0] == 0
    assert table['No Finding'].tolist()[1] == 1


def test_what_was_read_where_points_at_the_words(tmp_path):
    parts = {'findings': 'Small left effusion.', 'impression': 'No edema.'}
    labeled = [label_report(Report('A', parts, 'row 1'))]
    record = json.loads(write_statements(tmp_path / 's.json', labeled).read_text(encoding='utf-8'))
    assert record['format'] == 'cxr_lib.statements/1'
    for part, statements in record['reports'][0]['statements'].items():
        for s in statements:
            assert parts[part][s['start'] : s['end']] == s['words']
            assert all(parts[part][c['start'] : c['end']] == c['words'] for c in s['cues'])
    first = record['reports'][0]['statements']['findings'][0]
    assert first['labels'] == {'chexpert': ['Pleural Effusion'], 'nih': ['Effusion']}
    assert (first['side'], first['severity'], first['polarity']) == ('left', 'mild', 'present')


# The development reports of Open-i


@needs_openi
def test_the_fifth_is_set_aside_by_a_rule_that_looks_at_the_name_alone():
    names = development_ids(OPENI)
    assert len(names) == 3080
    assert sum(map(is_set_aside, names)) == 687


@needs_openi
def test_agreement_on_the_reports_that_the_lexicon_was_made_on():
    micro, by_label, errors = score_labeler(OPENI)
    assert micro['value'] >= 0.9
    better = by_label.F1 > by_label['NegBio, published']
    assert better.sum() >= 10
    assert set(errors.report) <= {name for name in development_ids(OPENI) if not is_set_aside(name)}
