"""The table of words: every slip of the pen is found at its row, in whatever dialect the spreadsheet writes."""

from importlib.resources import files

import pytest

from cxr_lib.data.studies import StudyTableError
from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.reasoning.labels import VOCABULARIES
from cxr_lib.reasoning.lexicon import COLUMNS, default_lexicon, read_lexicon
from cxr_lib.reasoning.statements import read_statements

ASSET = files('cxr_lib').joinpath('assets', 'lexicon.csv')
HEADER = ','.join(COLUMNS)
SMALL = f'{HEADER}\nchexpert,mass,Lung Lesion,,\nnih,mass,Mass,,\nfinding,mass*,mass,,\nbefore,no,absent,clause,\n'


@pytest.fixture
def written(tmp_path):
    def write(text, encoding='utf-8'):
        path = tmp_path / 'words.csv'
        path.write_bytes(text.encode(encoding))
        return path

    return write


def test_a_lexicon_of_four_rows_reads_a_sentence(written):
    lexicon = read_lexicon(written(SMALL))
    found = read_statements('No masses. Mass in the left base, no edema.', lexicon)
    assert [(s.finding, s.polarity) for s in found] == [('mass', 'absent'), ('mass', 'present')]


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16'])
@pytest.mark.parametrize('delimiter', [',', ';', '\t'])
def test_spreadsheets_may_write_it_their_way(written, encoding, delimiter):
    lexicon = read_lexicon(written(SMALL.replace(',', delimiter).replace('\n', '\r\n'), encoding))
    assert lexicon.findings == ['mass']


@pytest.mark.parametrize(
    'row, said',
    [
        ('find,mass,mass,,', "row 5: kind is 'find'; expected one of chexpert, nih, finding"),
        ('before,not,absnt,clause,', "row 5: meaning is 'absnt'; expected absent, possible"),
        ('before,not,absent,far,', "row 5: reach is 'far'; expected clause, phrase, word"),
        ('finding,mass,mass,word,', "row 5: reach is 'word'; expected nothing"),
        ('finding,(mass,mass,,', "row 5: phrase is '(mass': ')' is missing"),
        ('finding,mass),mass,,', 'closes nothing'),
        ('finding,[mass],mass,,', 'nothing in it is required'),
        ('finding,.. mass,mass,,', 'begins and ends with a word'),
        ('finding,Mass,mass,,', 'expected small letters'),
        ('finding,mass+,mass,,', "'+' is not understood"),
        ('finding,lump,,,', 'row 5: meaning is empty'),
        ('finding,mass*,mass,,', "row 5: the finding 'mass*' stands in"),
        ('normal,clear,opacity,,', "no phrase names the finding 'opacity'"),
        ('nih,masss,Mass,,', "no phrase names the finding 'masss'"),
        ('chexpert,mass,Lung lesion,,', "meaning is 'Lung lesion'; expected No Finding, Enlarged"),
        (',mass,mass,,', 'row 5: kind is '),
        ('severity,huge,huge,,', "meaning is 'huge'; expected minimal, borderline"),
    ],
)
def test_a_slip_of_the_pen_is_named_with_row_and_remedy(written, row, said):
    with pytest.raises(StudyTableError) as error:
        read_lexicon(written(f'{SMALL}{row}\n'))
    assert said in str(error.value) and 'words.csv' in str(error.value)


def test_a_table_that_is_no_lexicon_says_what_is_missing(written):
    with pytest.raises(StudyTableError, match='missing column.*phrase, meaning'):
        read_lexicon(written('kind,words\nfinding,mass\n'))
    with pytest.raises(StudyTableError, match='no row of kind nih'):
        read_lexicon(written('\n'.join(line for line in SMALL.split('\n') if not line.startswith('nih'))))


def test_every_label_can_be_given():
    names = default_lexicon().names
    assert set(sum(names['chexpert'].values(), ())) == set(OBSERVATIONS) - {'No Finding'}
    assert set(sum(names['nih'].values(), ())) == set(VOCABULARIES['nih'])


def test_every_phrase_matches_something_that_begins_with_one_of_its_words():
    from cxr_lib.reasoning.lexicon import compile_phrase

    for rule in default_lexicon().rules:
        if rule.pattern is not None:
            assert rule.first and compile_phrase(rule.phrase)[1] == rule.first


def test_the_table_is_plain_text_that_any_editor_shows():
    text = ASSET.read_text(encoding='utf-8')
    assert text.isascii() and '\t' not in text and text.startswith(HEADER)
