"""`cxr label` to its last line: tables and archives, both vocabularies, and everything that can be wrong."""

import csv
import json
import tarfile
from pathlib import Path

import pandas as pd
import pytest
from commands import cxr, in_process
from conftest import ROOT

from cxr_lib.data.openi import GOLD_LABELS
from cxr_lib.foundations.core import OBSERVATIONS

OPENI = ROOT.parent / 'shared' / 'data' / 'openi'
needs_openi = pytest.mark.skipif(
    not OPENI.is_dir(), reason='the reports of Open-i (../shared/data/openi) are not on this machine'
)
ROWS = [
    ['A1', 'Small left effusion, no pneumothorax.'],
    ['A2', 'The heart is enlarged. Left base atelectasis or infiltrate.'],
    ['A3', 'Lungs are clear. Right PICC line.'],
]


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    return in_process(tmp_path, tmp_path, monkeypatch, capsys)


def write(path, rows, header=('id', 'text')):
    with path.open('w', newline='') as file:
        csv.writer(file).writerows([header, *rows])


def test_a_table_as_a_user_types_it(tmp_path):
    write(tmp_path / 'reports.csv', ROWS)
    args = ['label', 'reports.csv', '--csv', 'out/labels.csv', '--spans', 'out/spans.json']
    code, out, err = cxr(tmp_path, *args)
    assert (code, err) == (0, '')
    assert out.splitlines()[-1] == '3 of 3 reports labeled.'
    table = pd.read_csv(tmp_path / 'out' / 'labels.csv').set_index('id')
    assert list(table) == list(OBSERVATIONS) and list(table.index) == ['A1', 'A2', 'A3']
    assert table.loc['A1', 'Pleural Effusion'] == 1 and table.loc['A1', 'Pneumothorax'] == 0
    assert table.loc['A2', 'Cardiomegaly'] == 1 and table.loc['A2', 'Atelectasis'] == -1
    assert table.loc['A3', 'No Finding'] == 1 and table.loc['A3', 'Support Devices'] == 1
    lines = (tmp_path / 'out' / 'labels.csv').read_text().splitlines()
    assert lines[1].startswith('A1,,,') and '.0' not in ''.join(lines)
    assert len(json.loads((tmp_path / 'out' / 'spans.json').read_text())['reports']) == 3


def test_nih_vocabulary(call, tmp_path):
    write(tmp_path / 'reports.csv', ROWS)
    code, out, _ = call('label', 'reports.csv', '--csv', 'l.csv', '--vocabulary', 'nih')
    assert code == 0 and 'stated' in out
    with (tmp_path / 'l.csv').open() as file:
        header, *rows = csv.reader(file)
    assert header == ['id', *GOLD_LABELS[:14]]
    assert rows[1] == ['A2', '1', '1', '0', '1', *['0'] * 10]


def test_rows_without_a_report_are_listed_and_the_exit_code_says_so(call, tmp_path):
    write(tmp_path / 'reports.csv', [*ROWS, ['A4', ''], ['A5', '--']])
    code, out, err = call('label', 'reports.csv', '--csv', 'l.csv')
    assert code == 3
    assert out.splitlines()[-1] == '3 of 5 reports labeled.'
    assert 'reports.csv row 4: text is empty; expected a report' in err
    failures = pd.read_csv(tmp_path / 'l.csv.failures.csv')
    assert failures['id'].tolist() == ['A4', 'A5']
    assert pd.read_csv(tmp_path / 'l.csv')['id'].tolist() == ['A1', 'A2', 'A3']
    write(tmp_path / 'reports.csv', ROWS)
    assert call('label', 'reports.csv', '--csv', 'l.csv')[0] == 0
    assert not (tmp_path / 'l.csv.failures.csv').exists()


def test_no_report_at_all_is_exit_2(call, tmp_path):
    write(tmp_path / 'reports.csv', [['A4', '']])
    code, out, err = call('label', 'reports.csv', '--csv', 'l.csv')
    assert code == 2 and err.splitlines()[-1] == 'cxr: reports.csv holds no report'
    assert not (tmp_path / 'l.csv').exists() and (tmp_path / 'l.csv.failures.csv').exists()


@pytest.mark.parametrize(
    'args, said',
    [
        (['nowhere.csv', '--csv', 'l.csv'], 'nowhere.csv: no such file or folder'),
        (['reports.csv', '--csv', 'reports.csv'], 'would be overwritten'),
        (['reports.csv', '--csv', 'l', '--spans', 'l'], 'named twice'),
        (['reports.csv', '--csv', '.'], 'is a folder'),
        (['.', '--csv', 'l.csv'], 'expected a CSV with the columns id and text'),
        (['twice.csv', '--csv', 'l.csv'], "twice.csv row 1: id is 'A1'; expected each report once"),
        (['names.csv', '--csv', 'l.csv'], 'missing column(s) id, text'),
        (['reports.csv', '--csv', 'l.csv', '--lexicon', 'words.csv'], "words.csv row 1: kind is 'find'"),
        (['broken.tgz', '--csv', 'l.csv'], 'broken.tgz: not a whole .tgz'),
    ],
)
def test_an_impossible_request_is_one_sentence(call, tmp_path, args, said):
    write(tmp_path / 'reports.csv', ROWS)
    write(tmp_path / 'twice.csv', [ROWS[0], ROWS[0]])
    write(tmp_path / 'names.csv', ROWS, ('name', 'report'))
    (tmp_path / 'words.csv').write_text('kind,phrase,meaning,reach,remark\nfind,mass,mass,,\n')
    (tmp_path / 'broken.tgz').write_bytes(b'\x1f\x8bnothing')
    before = (tmp_path / 'reports.csv').read_bytes()
    code, _, err = call('label', *args)
    assert code == 2
    assert said in err and len(err.strip().splitlines()) == 1
    assert (tmp_path / 'reports.csv').read_bytes() == before
    assert not (tmp_path / 'l.csv').exists()


def test_an_option_is_missing_or_unknown(call, tmp_path):
    write(tmp_path / 'reports.csv', ROWS)
    assert call('label', 'reports.csv')[0] == 2
    assert call('label', 'reports.csv', '--csv', 'l.csv', '--vocabulary', 'mesh')[0] == 2


def test_a_lexicon_of_ones_own(call, tmp_path):
    write(tmp_path / 'reports.csv', [['A1', 'No lump.'], ['A2', 'A lump, and edema.']])
    rows = [
        'chexpert,mass,Lung Lesion,,',
        'nih,mass,Mass,,',
        'finding,lump,mass,,',
        'before,no,absent,clause,',
    ]
    (tmp_path / 'words.csv').write_text('\n'.join(['kind,phrase,meaning,reach,remark', *rows, '']))
    code, *_ = call('label', 'reports.csv', '--csv', 'l.csv', '--lexicon', 'words.csv')
    table = pd.read_csv(tmp_path / 'l.csv')
    assert code == 0
    assert table['Lung Lesion'].tolist() == [0, 1] and table['Edema'].isna().all()


@needs_openi
def test_open_i_as_it_is_distributed_reduced_to_the_development_reports(call, tmp_path):
    wanted = {f'{name[3:]}.xml' for name in (OPENI / 'labeler_development.txt').read_text().split()}
    with tarfile.open(OPENI / 'NLMCXR_reports.tgz') as whole, tarfile.open('some.tgz', 'w:gz') as some:
        for member in whole:
            if Path(member.name).name in wanted:
                some.addfile(member, whole.extractfile(member))
    code, out, _ = call('label', 'some.tgz', '--csv', 'l.csv', '--vocabulary', 'nih')
    assert code == 0
    assert 'reports have neither findings nor impression' in out
    assert out.splitlines()[-1] == '3,080 of 3,080 reports labeled.'
    table = pd.read_csv(tmp_path / 'l.csv')
    assert table['id'].is_unique and table['id'].str.fullmatch(r'CXR\d+').all()
    assert list(table)[1:] == list(GOLD_LABELS[:14])
    assert set(table.iloc[:, 1:].to_numpy().ravel()) == {0, 1}
