"""MIMIC-CXR: no word of findings or impression reaches a note, and ordinary requests come back exactly.

What is wrong with a copy is said by file and row.
"""

import gzip
import random
import re
import tarfile
import xml.etree.ElementTree as ET
import zipfile
from functools import lru_cache

import pandas as pd
import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cxr_lib.data import requests
from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.data.requests import (
    ALLOWED_HEADERS,
    MAX_REPORT,
    MAX_WORDS,
    REASONS,
    RESULT_WORDS,
    clean_note,
    has_question,
    header_kind,
    indication,
    question_share,
    read_request,
    report_sections,
    scrub_questions,
)
from cxr_lib.data.mimic import MIMIC_FACTS, check_mimic, load_mimic, read_report_texts
from cxr_lib.data.studies import STUDY_COLUMNS, Exclusions, StudyTableError

SHARED = ROOT.parent / 'shared' / 'data'


# No word of findings or impression: reports out of grammar pieces

#: What a radiologist saw. None of these words is in a request.
SEEN = ('Zorbex', 'quandrel', 'vimtor', 'Plimquist', 'drolven', 'kestwin', 'fladdow', 'murnoch')
FILM = tuple(
    (
        'opacity; lungs; clear; effusion; in the; right; base.; The; heart; is; normal.; No; '
        'pneumothorax,; chest; view; of; ___; 5:21; history; indication; reason for exam; cough; //; ?; '
        'unchanged;'
    ).split('; ')
)
ASKED = tuple(
    (
        'cough; fever; chest pain; CHF; s/p CABG; ___; year old; woman; with; for; pneumonia,; SOB; '
        'COPD; evaluate; ? effusion; r/o; feeding tube; depression; line placement.; Dyspnea; //; '
        '5:21 PM; compression; fracture; in; h/o'
    ).split('; ')
)
PREAMBLE = tuple(
    (
        'EXAMINATION:  CHEST (PA AND LAT); TECHNIQUE:  Chest PA and lateral; COMPARISON:  ___; '
        'Exam: portable chest; DATE: ___; CHEST RADIOGRAPH PERFORMED ON ___; COMPARISON none; '
        'STUDY: AP chest'
    ).split('; ')
)
RESULT_HEADERS = tuple(
    (
        'FINDINGS; IMPRESSION; FINDING; IMPRESSIONS; FINDINGS AND IMPRESSION; FINDINGS/IMPRESSION; '
        'CONCLUSION; INTERPRETATION; WET READ; IMPRESSION #1; REPORT; PRELIMINARY READ'
    ).split('; ')
)
UNKNOWN_HEADERS = tuple(
    (
        'CHEST, TWO VIEWS; PORTABLE AP CHEST; Lungs; Cardiac silhouette; AP CHEST, 5:21 A.M., ___; '
        'Other; RECOMMENDATION(S)'
    ).split('; ')
)


def misspelt(rng, word, most=2):
    "Up to `most` typing errors, far enough apart to be that many"
    at = sorted(rng.sample(range(len(word) - 1), rng.randint(0, most)), reverse=True)
    if len(at) == 2 and at[0] - at[1] < 3:
        at = at[:1]
    for i in at:
        other = rng.choice('abcdefghijklmnopqrstuvwxyzXQ')
        word = word[:i] + rng.choice(
            (
                word[i + 1 :],
                word[i] * 2 + word[i + 1 :],
                word[i + 1] + word[i] + word[i + 2 :],
                other + word[i + 1 :],
                other + word[i:],
            )
        )
    return word


def words(rng, vocabulary, least, most, ends=None):
    "Words in lines of some width"
    text, line, width = '', 0, rng.choice((20, 40, 79, 79, 79, 10**4))
    for word in [rng.choice(vocabulary) for _ in range(rng.randint(least, most))] + ([ends] if ends else []):
        if line + len(word) > width:
            text, line = text.rstrip(' ') + '\n ', 1
        text, line = text + word + ' ', line + len(word) + 1
    return text.strip(' ')


def results(rng, after):
    "A section that was written by somebody who saw the film, with what stands between it and the text before it"
    text = rng.choice(SEEN) + ' ' + words(rng, SEEN + FILM, 1, 20)
    kind = rng.choice(('colon', 'colon', 'word', 'word', 'split', 'spaced', 'unknown', 'none', 'none'))
    apart = rng.choice(('\n \n ', '\n\n', '\n', '\n ', ' ', ' ', '  ', '. ', '\f', '\n____________\n'))
    close = rng.choice((':', ':  ', ' : ', ':\n', ': \n \n ', '：', '::'))
    if kind == 'colon':
        header = misspelt(rng, rng.choice(RESULT_HEADERS)) + close
    elif kind == 'word':  # a word on the list, misspelt as far as the list says, and no colon
        word = rng.choice(sorted(RESULT_WORDS))
        header = misspelt(rng, word, RESULT_WORDS[word])
        if header_kind(header) != 'results':
            header = word  # by chance a real word, such as 'pending'
        header += rng.choice((' ', '\n', '  ', ' - ', '. ', '\n\n'))
    elif kind == 'split':
        word = rng.choice(('FINDINGS', 'IMPRESSION'))
        i = rng.randint(2, len(word) - 2)
        header = word[:i] + rng.choice((' ', '\n', '-\n', '\n ')) + word[i:] + rng.choice((': ', ' '))
    elif kind == 'spaced':
        header = ' '.join(rng.choice(('FINDINGS', 'IMPRESSION'))) + rng.choice((': ', ' '))
    elif kind == 'unknown':
        header = rng.choice(UNKNOWN_HEADERS) + close
    else:  # the text just starts: after a blank line, or on a line that a short one did not have to wrap into
        header, short = '', len(re.split(r'\n', after)[-1]) < 40
        apart = rng.choice(
            ('\n \n ', '\n\n', '\f', '\n____________\n', '\n=====\n', *(('\n', '\n ') if short else ()))
        )
    return (
        apart
        + (header if kind in ('unknown', 'none') else rng.choice((str.upper, str.lower, str.title))(header))
        + text
    )


def request(rng):
    "A section that was written before"
    header = rng.choice(
        (
            *ALLOWED_HEADERS,
            *['INDICATION', 'HISTORY', 'REASON FOR EXAM'] * 8,
            'NDICATION',
            'INDICATON',
            'Clinical Hx',
            'INDICATION AND FINDINGS',
        )
    )
    if rng.random() < 0.2:
        header = header.lower()
    close = rng.choice((':  ', ':  ', ':  ', ': ', ': ', ':', ' : ', ':\n ', ': \n \n ', ' '))
    return (
        header
        + close
        + (
            words(
                rng,
                ASKED,
                0,
                rng.choice((2, 8, 25)),
                ends=rng.choice(('cough', 'CHF', '___', 'pneumonia.', 'fracture')),
            )
            if rng.random() < 0.9
            else ''
        )
    )


def written(rng):
    "A report, well formed or not"
    between = lambda: rng.choice(('\n \n ', '\n \n ', '\n\n', '\n ', '\n'))
    text = rng.choice(
        (
            '',
            '                                 FINAL REPORT\n ',
            'FINAL REPORT\n',
            (
                ' WET READ: ___ ___ 5:21 PM\n Zorbex quandrel.\n ______________________________\n'
                '                 FINAL REPORT\n '
            ),
        )
    )
    order = (
        ['preamble', 'request', 'results', 'results']
        if rng.random() < 0.7
        else rng.choices(('preamble', 'request', 'results'), k=rng.randint(1, 5))
    )
    if rng.random() < 0.3:
        order.insert(rng.randrange(len(order)), 'preamble')
    if rng.random() < 0.3:
        order.insert(1, 'request')
    for i, kind in enumerate(order):
        if kind == 'request':
            text += between() + request(rng)
        elif kind == 'preamble':
            text += between() + rng.choice(PREAMBLE)
        else:
            text += (
                results(rng, text)
                if i and order[i - 1] == 'request'
                else '\n \n ' + results(rng, text).lstrip()
            )
    change = rng.choice(
        (
            None,
            None,
            None,
            None,
            str.lower,
            str.upper,
            lambda t: t.replace('\n', '\r\n'),
            lambda t: t.replace('\n', '\r'),
            lambda t: t.replace('\n ', '\n\t'),
            lambda t: re.sub('(?m)^ +', '', t),
            lambda t: t.replace(' ', '\xa0'),
            lambda t: t.replace('\n', '\u2028'),
            lambda t: re.sub('[Dd]', '\u200b\\g<0>', t),
            lambda t: t.replace('\n', '\\n'),
            lambda t: t.replace('\n', ' \n'),
        )
    )
    return change(text) if change else text


def seen_in(text):
    return [w for w in SEEN if text is not None and w.lower() in text.lower()]


def check_safe(report):
    note, reason = read_request(report)
    assert not seen_in(note), (note, report)
    assert reason in REASONS and (note is None) == (reason != 'note')
    sections = report_sections(report)
    assert set(sections) <= set(ALLOWED_HEADERS.values()) and not any(map(seen_in, sections.values()))
    return note


@pytest.fixture
def structure_alone(monkeypatch):
    "Without the guard against sentences about the film: headers, lines and colons must do"
    monkeypatch.setattr(requests, '_FILM', re.compile('(?!)'))


@settings(
    max_examples=500,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.randoms(use_true_random=False))
def test_no_word_that_was_written_after_the_film_was_read_reaches_the_note(structure_alone, rng):
    check_safe(written(rng))


def test_no_such_word_in_ten_thousand_reports_and_most_of_them_have_a_note(structure_alone):
    notes = [check_safe(written(random.Random(seed))) for seed in range(10_000)]
    assert sum(n is not None for n in notes) > 4_000


@pytest.mark.parametrize(
    'rule, without',
    [
        ('_closes', lambda word: None),
        ('_continues', lambda before, line: True),
        ('_COLON', re.compile('(?!)')),
        ('_REQUEST', re.compile('')),
        ('_SPLIT', re.compile('(?!)')),
        ('_SPACED', re.compile('(?!)')),
    ],
)
def test_these_reports_would_show_it_if_one_of_the_rules_were_missing(
    structure_alone, monkeypatch, rule, without
):
    monkeypatch.setattr(requests, rule, without)
    header_kind.cache_clear()
    try:
        assert any(seen_in(indication(written(random.Random(seed)))) for seed in range(10_000))
    finally:
        header_kind.cache_clear()


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=400))
def test_any_text_at_all_gives_a_note_or_a_reason(text):
    note, reason = read_request(text)
    assert reason in REASONS and (note is None) == (reason != 'note')
    if note is not None:
        assert note == ' '.join(note.split()) and re.search(r'[^\W_]', note)


@settings(max_examples=300, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(sorted(ALLOWED_HEADERS)))
def test_every_word_of_a_note_stands_in_the_request(rng, header):
    asked = words(rng, ASKED, 1, 12, ends='CHF')
    note = indication(f' EXAMINATION: chest\n \n {header}:  {asked}\n \n FINDINGS: Zorbex.')
    assert note is None or set(re.findall(r'\w+', note)) <= set(re.findall(r'\w+', asked))


# Nasty reports, one by one

L79 = '___ year old woman with a long history of congestive heart failure and also'  # nearly a full line
NASTY = {  # name: (report, note)
    'nothing': ('', None),
    'only white space': (' \n\t\n ', None),
    'only a header': ('INDICATION:', None),
    'only headers': ('INDICATION:\nFINDINGS:\nIMPRESSION:', None),
    'no header': ('The lungs are clear. Zorbex.', None),
    'only findings': ('FINDINGS: Zorbex.', None),
    'lower case': ('indication: cough\nfindings: Zorbex', 'cough'),
    'lower case, not indented, no blank line': (
        'examination: chest\nindication: cough\ncomparison: none\nfindings: Zorbex\nimpression: Zorbex',
        'cough',
    ),
    'title case': ('Indication: cough\n\nFindings: Zorbex', 'cough'),
    'the typo NDICATION': (' NDICATION: cough\n \n IMPRESSION: Zorbex', 'cough'),
    'findings in the line': ('INDICATION: cough FINDINGS: Zorbex', 'cough'),
    'findings in the line, lower case': ('INDICATION: cough findings: Zorbex', 'cough'),
    'findings in the line, no colon': ('INDICATION: cough FINDINGS Zorbex', 'cough'),
    'findings in the line, misspelt': ('INDICATION: cough FNIDNGS Zorbex', 'cough'),
    'impression in the line, misspelt, no colon': ('INDICATION: cough imperssoin Zorbex', 'cough'),
    'three headers in one line': ('INDICATION: cough COMPARISON: none FINDINGS: Zorbex', 'cough'),
    'no findings header': ('INDICATION: cough\n\nZorbex in the right base.', 'cough'),
    'no findings header, no blank line': ('INDICATION: cough\nZorbex in the right base.', 'cough'),
    'no findings header, lower case, no blank line': (
        'indication: cough\nzorbex in the right base.',
        'cough',
    ),
    'findings in the indication': ('INDICATION: findings of Zorbex', None),
    'impression of cough': ('INDICATION: Impression of cough', None),
    'abnormal findings elsewhere': ('INDICATION: CHF, abnormal findings on CT', 'CHF, abnormal'),
    'empty, then a paragraph': ('INDICATION:\n\nZorbex in the right base.', None),
    'empty, then a line': ('INDICATION:\nZorbex in the right base.', None),
    'empty, then a person': (
        'INDICATION:\n\n ___ year old man with CHF\n\nZorbex.',
        '___ year old man with CHF',
    ),
    'last section with paragraphs': (
        ' COMPARISON: none\n \n HISTORY:  Fever.\n \n Zorbex.\n \n More Zorbex.\n',
        'Fever.',
    ),
    'header over two lines': ('INDICATION: cough\nFIND\nINGS: Zorbex', 'cough'),
    'header over two lines, in the line': ('INDICATION: cough FIND\nINGS: Zorbex', 'cough FIND'),
    'header in two words': ('INDICATION: cough FIND INGS Zorbex', 'cough'),
    'letter-spaced header': ('INDICATION: cough F I N D I N G S Zorbex', 'cough'),
    'no colon after INDICATION': ('INDICATION cough\n\nFINDINGS: Zorbex', None),
    'indication below the findings': ('FINDINGS: Zorbex.\n\nINDICATION: cough', None),
    'prose that wraps into a header': ('FINDINGS: as seen in the\nhistory: Zorbex', None),
    'prose without header that wraps into one': ('Zorbex as seen in the\nhistory: Zorbex', None),
    'prose under an unknown header that wraps into one': (
        'Lungs: Zorbex as seen in the\nhistory: Zorbex',
        None,
    ),
    'wet read above the banner': (
        ' WET READ: Zorbex.\n ___________\n    FINAL REPORT\n INDICATION: cough\n \n FINDINGS: Zorbex',
        'cough',
    ),
    'wet read without banner': (' WET READ: Zorbex.\n\n INDICATION: cough', None),
    'addendum above the banner': (
        'ADDENDUM  Zorbex.\n________________\n FINAL REPORT\n HISTORY: fall\n \n IMPRESSION: Zorbex',
        'fall',
    ),
    'request form': (
        (
            'UNDERLYING MEDICAL CONDITION:\n ___ year old man with CHF\n'
            'REASON FOR THIS EXAMINATION:\n ? effusion\n______________\n FINAL REPORT\n'
            ' Zorbex.'
        ),
        '___ year old man with CHF. ? effusion',
    ),
    'request form in a line': (
        'REASON FOR EXAM: ___ year old man with CHF  REASON FOR THIS EXAMINATION: ? effusion\n\nZorbex',
        '___ year old man with CHF. ? effusion',
    ),
    'unknown header in the line': (
        'INDICATION: Cough and fever. CHEST, TWO VIEWS: Zorbex',
        'Cough and fever.',
    ),
    'a time in a header': ('INDICATION: Cough. AP CHEST, 5:21 A.M., ___: Zorbex', 'Cough.'),
    'a time in the request': ('INDICATION: fall at 5:21 PM\n\nFINDINGS: Zorbex', 'fall at 5:21 PM'),
    'unknown header without a seam': ('INDICATION: cough some thing: Zorbex', None),
    'compound header': ('INDICATION AND FINDINGS: Zorbex', None),
    'reason for addendum': ('REASON FOR ADDENDUM: Zorbex', None),
    'medication is not indication': ('MEDICATION: Zorbex', None),
    'film described in the same paragraph': (
        'INDICATION: Cough.  Portable AP radiograph of the chest was obtained.  Zorbex.',
        'Cough.',
    ),
    'film described at once': ('HISTORY: The lungs are clear, Zorbex.', None),
    'full line, then findings': (f' INDICATION: {L79}\n FINDINGS Zorbex', L79),
    'full line with a full stop': (f' INDICATION: {L79}.\n Zorbex in the right base.', L79 + '.'),
    'full line, then a title': (f' INDICATION: {L79}\n PORTABLE CHEST ZORBEX\n', L79),
    'CRLF': (' INDICATION:  cough\r\n \r\n FINDINGS:  Zorbex\r\n', 'cough'),
    'CR alone': ('INDICATION: cough\r\rZorbex', 'cough'),
    'tabs': ('INDICATION:\tcough\tFINDINGS:\tZorbex', 'cough'),
    'form feed': ('INDICATION: cough\fZorbex', 'cough'),
    'vertical tab and line separators': ('INDICATION: cough\x0b\x0bZorbex', 'cough'),
    'unicode line separators': ('INDICATION: cough\u2028\u2028Zorbex', 'cough'),
    'escaped line ends': ('INDICATION: cough\\n\\nZorbex', 'cough'),
    'html breaks': ('INDICATION: cough<br><br/>Zorbex', 'cough'),
    'full-width header': ('INDICATION: cough ＦＩＮＤＩＮＧＳ： Zorbex', 'cough'),
    'Cyrillic letters': ('INDICATION: cough FІNDІNGS Zorbex', 'cough'),
    'zero-width letters': ('INDICATION: cough FIND\u200bINGS Zorbex', 'cough'),
    'accents in the request': (
        'INDICATION: Sjögren, naïve to treatment\n\nFINDINGS: Zorbex',
        'Sjögren, naïve to treatment',
    ),
    'control characters in a header': (
        'INDICATION: ___ year old man with productive cough FIN\x01DINGS Zorbex',
        '___ year old man with productive cough',
    ),
    'binary': ('\x00\x01\x02INDICATION: cough', None),
    'not text': ('\x01\x02\x03\x04INDICATION: c', None),
    'only marks': ('INDICATION: ___\n\nFINDINGS: Zorbex', None),
    'no information': ('INDICATION: None.\n\nFINDINGS: Zorbex', None),
    'bulleted': ('INDICATION: cough\n- FINDINGS: Zorbex', 'cough'),
    'marked up': ('INDICATION: cough **FINDINGS** Zorbex', 'cough'),
    'feeding tube': (
        'INDICATION: feeding tube placement, compression fracture, depression\n\nFINDINGS: Zorbex',
        'feeding tube placement, compression fracture, depression',
    ),
    'twice the same': (
        'REASON FOR EXAM: cough\n\nINDICATION: cough\n\nREASON FOR EXAM: cough\n\nZorbex',
        'cough',
    ),
    'a second indication is an impression': (
        'INDICATION: cough\n\nCOMPARISON: ___\n\nINDICATION: Zorbex.',
        'cough',
    ),
    'ten thousand words': ('INDICATION: ' + 'cough ' * 10_000, ' '.join(['cough'] * MAX_WORDS)),
    'longer than a report': ('INDICATION: cough ' + 'x' * MAX_REPORT, None),
}


@pytest.mark.parametrize('name', NASTY)
def test_nasty_report(name):
    report, expected = NASTY[name]
    assert check_safe(report) == expected


@pytest.mark.parametrize(
    'report, reason',
    [
        (None, 'no report'),
        ('', 'empty report'),
        ('\x00', 'not text'),
        (b'\xff', 'not text'),
        ('x' * (MAX_REPORT + 1), 'too long for a report'),
        ('Clear.', 'no request section'),
        ('INDICATION:', 'request section is empty'),
        ('FINDINGS: x\nINDICATION: y', 'request follows the results'),
        ('INDICATION: findings', 'request runs into another section'),
        ('HISTORY: Lungs are clear.', 'request describes the image'),
        ('HISTORY: ___', 'only de-identification marks'),
        ('HISTORY: CHF', 'note'),
    ],
)
def test_each_reason_has_its_report(report, reason):
    assert read_request(report)[1] == reason


def test_sections_come_by_name_in_their_order_and_no_other_section_comes():
    report = (
        ' HISTORY:  CHF.\n \n REASON FOR EXAM:  ? effusion\n \n COMPARISON:  ___\n \n'
        ' INDICATION:  dyspnea\n \n FINDINGS:  Zorbex'
    )
    assert report_sections(report) == {'HISTORY': 'CHF.', 'REASON': '? effusion', 'INDICATION': 'dyspnea'}
    assert indication(report) == 'CHF. ? effusion. dyspnea'
    assert report_sections('Zorbex') == report_sections(None) == {}


# Ordinary reports: the exact note

REST = ' COMPARISON:  ___\n \n FINDINGS: \n \n Zorbex quandrel at the right base.\n \n IMPRESSION: \n \n Zorbex.\n'
BANNER = '                                 FINAL REPORT\n'
ORDINARY = [
    (
        BANNER
        + (
            ' EXAMINATION:  CHEST (PA AND LAT)\n \n'
            ' INDICATION:  ___F with cough // ? pneumonia\n \n'
            ' TECHNIQUE:  Chest PA and lateral\n \n'
        )
        + REST,
        '___F with cough // ? pneumonia',
    ),
    (
        BANNER
        + ' INDICATION:  ___-year-old male with fever and productive cough.  Evaluate for\n pneumonia.\n \n'
        + REST,
        '___-year-old male with fever and productive cough. Evaluate for pneumonia.',
    ),
    (BANNER + ' HISTORY:  Chest pain.\n \n' + REST, 'Chest pain.'),
    (
        BANNER
        + (
            ' CHEST RADIOGRAPH PERFORMED ON ___\n \n COMPARISON:  Prior exam from ___.\n \n'
            ' CLINICAL HISTORY:  Altered mental status, assess for pneumonia.\n \n'
            ' FINDINGS:  PA and lateral views. Zorbex.\n'
        ),
        'Altered mental status, assess for pneumonia.',
    ),
    (
        BANNER
        + (
            ' REASON FOR EXAMINATION:  Evaluation of the patient after CABG.\n \n'
            ' Portable AP radiograph of the chest was reviewed in comparison to ___.\n \n'
            ' Zorbex.\n'
        ),
        'Evaluation of the patient after CABG.',
    ),
    (
        BANNER
        + (
            ' AP CHEST, 5:21 A.M., ___\n \n HISTORY:  ___-year-old man with intubation, '
            'hypoxia.\n \n IMPRESSION:  AP chest compared to ___:\n \n Zorbex.\n'
        ),
        '___-year-old man with intubation, hypoxia.',
    ),
    (
        BANNER
        + (
            ' STUDY:  AP chest, ___.\n \n'
            ' CLINICAL HISTORY:  ___-year-old woman with subdural hematoma, evaluate\n'
            ' endotracheal tube position.\n \n'
        )
        + REST,
        '___-year-old woman with subdural hematoma, evaluate endotracheal tube position.',
    ),
    (
        BANNER
        + (
            ' EXAMINATION:  Portable chest\n \n'
            ' INDICATION:  ___ year old man with ESRD on HD, '
            's/p fall with right sided chest\n pain, on coumadin  // ? rib fracture, '
            '? pneumothorax\n \n'
        )
        + REST,
        (
            '___ year old man with ESRD on HD, s/p fall with right sided chest pain, '
            'on coumadin // ? rib fracture, ? pneumothorax'
        ),
    ),
    (
        BANNER
        + (
            ' INDICATION:  Shortness of breath.\n \n COMPARISONS:  None.\n \n'
            ' TWO VIEWS OF THE CHEST:  Zorbex.\n \n IMPRESSION:  Zorbex.\n'
        ),
        'Shortness of breath.',
    ),
    (BANNER + ' CLINICAL INFORMATION:  Pre-operative evaluation.\n \n' + REST, 'Pre-operative evaluation.'),
    (
        BANNER
        + ' REASON FOR EXAM:  ___-year-old female with lung cancer, status post VATS, chest\n tube removed.\n \n'
        + REST,
        '___-year-old female with lung cancer, status post VATS, chest tube removed.',
    ),
    (
        (
            ' WET READ: ___ ___ ___ 8:42 PM\n  Zorbex.\n'
            ' ______________________________________________________________________________\n'
        )
        + BANNER
        + ' INDICATION:  ___F with dyspnea on exertion  // acute process?\n \n'
        + REST,
        '___F with dyspnea on exertion // acute process?',
    ),
    (
        BANNER
        + ' INDICATION:  History of CHF with worsening lower extremity edema and orthopnea.\n \n'
        + REST,
        'History of CHF with worsening lower extremity edema and orthopnea.',
    ),
    (
        BANNER + ' HISTORY:  Line placement.\n \n FINDINGS:  In comparison with the study of ___, Zorbex.\n',
        'Line placement.',
    ),
    (
        BANNER
        + (
            ' INDICATION:  ___M s/p MVC, restrained driver, chest wall tenderness\n \n'
            ' TECHNIQUE:  Frontal and lateral views.\n \n'
        )
        + REST,
        '___M s/p MVC, restrained driver, chest wall tenderness',
    ),
    (
        BANNER
        + ' INDICATION:  Patient with HIV, CD4 of 45, fevers to 102.5 and night sweats for 3\n weeks.\n \n'
        + REST,
        'Patient with HIV, CD4 of 45, fevers to 102.5 and night sweats for 3 weeks.',
    ),
    (
        BANNER + ' PORTABLE CHEST, ___\n \n INDICATION:  NG tube placement.\n \n FINDINGS:  Zorbex.\n',
        'NG tube placement.',
    ),
    (BANNER + ' HISTORY:  Cirrhosis.\n \n REFERENCE EXAM:  ___.\n \n FINDINGS:  Zorbex.\n', 'Cirrhosis.'),
    (
        BANNER
        + (
            ' EXAMINATION:  CHEST (PORTABLE AP)\n \n'
            ' INDICATION:  ___ year old man with new onset atrial fibrillation and pulmonary edema\n'
            ' // interval change\n \n'
        )
        + REST,
        '___ year old man with new onset atrial fibrillation and pulmonary edema // interval change',
    ),
    (' INDICATION: Syncope.\n FINDINGS: Zorbex.\n IMPRESSION: Zorbex.\n', 'Syncope.'),
    (
        BANNER + ' INDICATION: \n \n ___F with chest pain radiating to the back\n \n' + REST,
        '___F with chest pain radiating to the back',
    ),
    (BANNER + ' REASON FOR EXAMINATION:\n  Hypoxia.\n \n Zorbex.\n', 'Hypoxia.'),
]


@pytest.mark.parametrize('i', range(len(ORDINARY)))
def test_ordinary_report_gives_its_exact_note(i):
    report, expected = ORDINARY[i]
    assert check_safe(report) == expected


# Open-i: real words


@lru_cache
def openi():
    archive = SHARED / 'openi' / 'NLMCXR_reports.tgz'
    if not archive.is_file():
        pytest.skip('the Open-i reports are not at ../shared/data/openi')
    with tarfile.open(archive) as files:
        found = [
            {
                a.get('Label'): ' '.join((a.text or '').split())
                for a in ET.parse(files.extractfile(m)).getroot().iter('AbstractText')
            }
            for m in files
            if m.name.endswith('.xml')
        ]
    return found


def vocabulary(text):
    return set(re.findall(r'\w+', text.lower()))


@pytest.mark.parametrize(
    'header, between',
    [('{}: ', '\n \n '), ('{}: ', '\n '), ('{}:', '\n\n'), ('{} : ', '\r\n'), (None, '\n\n')],
)
def test_open_i_no_word_of_findings_or_impression_and_nearly_every_request(header, between):
    right = asked = 0
    for r in openi():
        name = lambda n: (header or ('{}: ' if n == 'INDICATION' else '')).format(n)
        note = indication(
            ' FINAL REPORT\n '
            + between.join(name(n) + r.get(n, '') for n in ('INDICATION', 'FINDINGS', 'IMPRESSION'))
        )
        if note is not None:
            assert not (
                vocabulary(note) & vocabulary(r.get('FINDINGS', '') + ' ' + r.get('IMPRESSION', ''))
            ) - vocabulary(r.get('INDICATION', '')), (note, r)
        if clean_note(r.get('INDICATION')):
            asked += 1
            right += note is not None and re.sub(r'\W', '', note) == re.sub(
                r'\W', '', r['INDICATION'].replace('INDICATION:', '')
            )
    assert asked > 3600 and right / asked > 0.99


# Marks and questions


@pytest.mark.parametrize(
    'note, kept, dropped',
    [
        ('___F with cough', '___F with cough', 'F with cough'),
        ('___-year-old man', '___-year-old man', 'year-old man'),
        ('XXXX-year-old, XXXX, CHF', 'XXXX-year-old, XXXX, CHF', 'year-old, CHF'),
        ('___', None, None),
        ('XXXX XXXX.', None, None),
        ('seen on [**2101-3-4**]', 'seen on [**2101-3-4**]', 'seen on'),
        ('  cough \n fever ', 'cough fever', 'cough fever'),
        ('', None, None),
        (None, None, None),
        (float('nan'), None, None),
        ('at ___ (___), cough', 'at ___ (___), cough', 'at, cough'),
    ],
)
def test_marks_are_kept_or_dropped_and_a_note_of_marks_is_none(note, kept, dropped):
    assert clean_note(note) == kept and clean_note(note, 'drop') == dropped


QUESTIONS = [
    ('? pleural effusion', None),
    ('cough', 'cough'),
    ('___M with CHF // eval for effusion', '___M with CHF'),
    ('Fever, r/o pneumonia', 'Fever'),
    ('Fever; rule out pneumonia, effusion or edema', 'Fever'),
    ('54F with fever. ? PNA vs. edema. On steroids.', '54F with fever. On steroids.'),
    ('CHF, worsening edema?', 'CHF'),
    ('s/p fall (r/o fracture), on warfarin', 's/p fall, on warfarin'),
    ('Please assess for interval change', None),
    ('COPD with concern for pneumonia', 'COPD'),
    ('known effusion', 'known effusion'),
    ('f/u pneumothorax', 'f/u pneumothorax'),
    ('?CHF', None),
    ('Pneumonia? CHF?', None),
    ('eval', None),
    ('Evaluate for edema. History of CHF.', 'History of CHF.'),
    ('temp 38.6, possible pneumonia', 'temp 38.6'),
    ('___ // ? acute process', None),
    (None, None),
    ('evaluated', None),
    ('medieval history', 'medieval history'),
]


@pytest.mark.parametrize('note, left', QUESTIONS)
def test_questions_are_scrubbed_to_the_end_of_their_sentence(note, left):
    assert scrub_questions(note) == left


@settings(max_examples=500, deadline=None)
@given(
    st.one_of(
        st.text(max_size=80),
        st.lists(
            st.sampled_from(
                ASKED
                + ('? pneumonia', 'r/o PTX', 'eval for', '(', ')', ', ', '. ', '; ', 'effusion?', '//', '54F')
            ),
            max_size=12,
        ).map(' '.join),
    )
)
def test_nothing_that_asks_is_left_and_scrubbing_again_changes_nothing(note):
    left = scrub_questions(note)
    assert (
        left is None
        or not has_question(left)
        and scrub_questions(left) == left
        and set(re.findall(r'\w', left)) <= set(re.findall(r'\w', note))
    )


def test_question_share_counts_notes_that_ask_and_what_is_left():
    share = question_share(['cough', '? pneumonia', 'CHF, r/o effusion', None, float('nan'), ' '])
    assert share == {
        'notes': 3,
        'with a question': 2,
        'share with a question': 2 / 3,
        'nothing left': 1,
        'share of words left': 2 / 6,
    }
    assert question_share([])['notes'] == 0


def test_simulated_requests_ask_and_keep_their_history():
    from cxr_lib.notes.wording import clinical_notes
    from cxr_lib.simulation.patients import draw_patients

    patients = draw_patients(300, seed=2)
    share = question_share(clinical_notes(patients, patients.age, patients.sex, seed=2))
    assert 0.2 < share['share with a question'] < 0.9 and 0.5 < share['share of words left'] < 1


# The adapter: a small copy of the official layout

META = tuple(
    (
        'dicom_id; subject_id; study_id; PerformedProcedureStepDescription; ViewPosition; Rows; '
        'Columns; StudyDate; StudyTime; ProcedureCodeSequence_CodeMeaning; '
        'ViewCodeSequence_CodeMeaning; PatientOrientationCodeSequence_CodeMeaning'
    ).split('; ')
)
NAMES = tuple(sorted(OBSERVATIONS))  # the files order labels otherwise than CheXpert does
IMAGES = [
    ('a-1', '10000032', '50000001', 'PA', '', 'train'),
    ('a-2', '10000032', '50000001', 'LATERAL', 'lateral', 'train'),
    ('b-1', '10000032', '50000002', 'AP', '', 'train'),
    ('c-1', '10000764', '50000003', '', 'left lateral', 'validate'),
    ('c-2', '10000764', '50000003', '', 'postero-anterior', 'validate'),
    ('d-1', '11000011', '50000004', 'AP AXIAL', '', 'test'),
    ('e-1', '11000011', '50000005', 'LAO', '', 'test'),
    ('e-2', '11000011', '50000005', 'LL', '', 'test'),
]
REPORTS = {
    ('10000032', '50000001'): BANNER
    + ' INDICATION:  ___F with cough // ? pneumonia\n \n FINDINGS:  Zorbex.\n',
    ('10000032', '50000002'): ' Zorbex.\n',
    ('10000764', '50000003'): ' HISTORY:  ? effusion\n \n Zorbex.\n',
    ('11000011', '50000004'): ' INDICATION:  ___\n',
}


def official_tables():
    "The four tables, by name"
    meta = [
        (
            d,
            p,
            s,
            'CHEST (PA AND LAT)',
            v,
            '3056',
            '2544',
            '21800506',
            '213014.531',
            'CHEST (PA AND LAT)',
            c,
            'Erect',
        )
        for d, p, s, v, c, _ in IMAGES
    ]
    parts = [dict(dicom_id=d, study_id=s, subject_id=p, split=t) for d, p, s, _, _, t in IMAGES]
    studies = [
        ('10000032', '50000001'),
        ('10000032', '50000002'),
        ('10000764', '50000003'),
        ('11000011', '50000004'),
    ]
    label = pd.DataFrame([{'subject_id': p, 'study_id': s, **dict.fromkeys(NAMES, '')} for p, s in studies])
    label.loc[0, ['Pneumonia', 'Edema', 'Lung Opacity']] = ('1.0', '-1.0', '0.0')
    label.loc[3, ['Lung Lesion', 'Edema']] = ('1.0', '1.0')
    return {
        'metadata': pd.DataFrame([dict(zip(META, row)) for row in meta]),
        'split': pd.DataFrame(parts),
        'chexpert': label,
        'negbio': label.assign(Pneumonia=''),
    }


def changed(table, changes, drop):
    "A table with cells changed, (row, column, value), rows added, {column: value}, and columns dropped"
    for change in changes:
        if isinstance(change, tuple):
            table.loc[change[0], change[1]] = change[2]
        else:
            table = pd.concat([table, pd.DataFrame([change])], ignore_index=True)
    return table.drop(columns=[c for c in drop if c in table])


def write_films(root):
    for d, p, s, *_ in IMAGES:
        f = root / f'files/p{p[:2]}/p{p}/s{s}/{d}.jpg'
        f.parent.mkdir(parents=True, exist_ok=True)
        Image.new('L', (4, 4)).save(f)


def write_reports(root, reports):
    "The reports as a zip, in a folder of their own, or beside the images"
    files = {f'files/p{p[:2]}/p{p}/s{s}.txt': t for (p, s), t in REPORTS.items()}
    if reports == 'zip':
        with zipfile.ZipFile(root / 'mimic-cxr-reports.zip', 'w') as z:
            for name, t in files.items():
                z.writestr(name, t)
    elif reports:
        for name, t in files.items():
            f = root / ('mimic-cxr-reports' if reports == 'folder' else '') / name
            f.parent.mkdir(parents=True, exist_ok=True)
            f.write_text(t)


def copy(root, *, test=None, patients=None, reports='files', films=True, raw=(), **tables):
    "A small copy; `tables` are changes of a table by its name, and `drop`, `end` and `version` of all"
    root.mkdir(exist_ok=True)
    end, version = tables.get('end', '.csv.gz'), tables.get('version', '2.0.0')
    for name, table in official_tables().items():
        changes = tables.get('labels' if name == 'chexpert' else name, ())
        data = changed(table, changes, tables.get('drop', ())).to_csv(index=False).encode()
        path = root / f'mimic-cxr-{version}-{name}{end}'
        path.write_bytes(gzip.compress(data) if end.endswith('.gz') else data)
    if test is not None:
        (root / 'mimic-cxr-2.1.0-test-set-labeled.csv').write_text(test)
    if patients is not None:
        (root / 'patients.csv.gz').write_bytes(gzip.compress(patients.encode()))
    if films:
        write_films(root)
    write_reports(root, reports)
    for name, data in raw:
        (root / name).write_bytes(data)
    return root


def labelled(*rows, lung='Airspace Opacity'):
    return f'study_id,{",".join(lung if n == "Lung Opacity" else n for n in NAMES)}\n' + ''.join(
        f'{study},' + ','.join(str(values.get(n, '')) for n in NAMES) + '\n' for study, values in rows
    )


def test_a_copy_is_one_row_an_image_with_the_labels_and_the_note_of_its_study(tmp_path):
    t = load_mimic(copy(tmp_path))
    assert list(t.columns) == list(STUDY_COLUMNS) and len(t) == 8
    assert t.image[0] == 'files/p10/p10000032/s50000001/a-1.jpg'
    assert t.patient_id.nunique() == 3
    assert t.study_id.nunique() == 5
    assert t.view.where(t.view.notna(), None).tolist() == [
        'Frontal',
        'Lateral',
        'Frontal',
        'Lateral',
        'Frontal',
        'Frontal',
        None,
        'Lateral',
    ]
    assert t.projection.where(t.projection.notna(), None).tolist() == [
        'PA',
        None,
        'AP',
        None,
        'PA',
        'AP',
        None,
        None,
    ]
    assert t.split.tolist() == ['train'] * 3 + ['tuning'] * 2 + ['test'] * 3
    assert t.sex.isna().all()
    assert t.age.isna().all()
    assert t.loc[0, ['Pneumonia', 'Edema', 'Lung Opacity']].tolist() == [1, -1, 0]
    assert t.loc[1, 'Edema'] == -1
    assert t.loc[0, 'Lung Lesion'] != t.loc[0, 'Lung Lesion']
    assert t.loc[6, list(OBSERVATIONS)].isna().all()
    assert (
        t.note.where(t.note.notna(), None).tolist()
        == ['___F with cough // ? pneumonia'] * 2 + [None] + ['? effusion'] * 2 + [None] * 3
    )
    assert t.attrs['note_reasons'] == {
        'note': 2,
        'no request section': 1,
        'only de-identification marks': 1,
        'no report': 1,
    }
    assert t.attrs['label_sources']['test'] == {'chexpert': 1, 'none': 1}
    assert check_mimic(t).loc['train', 'images found'] == 3
    assert check_mimic(t).loc['all', 'patients known'] == 65_379
    assert sum(n for n, _, _ in MIMIC_FACTS.values()) == 377_110


def test_a_label_file_without_rows_labels_nothing(tmp_path):
    t = load_mimic(
        copy(
            tmp_path,
            raw=[
                (
                    'mimic-cxr-2.0.0-chexpert.csv.gz',
                    gzip.compress(f'subject_id,study_id,{",".join(NAMES)}\n'.encode()),
                )
            ],
        )
    )
    assert t[list(OBSERVATIONS)].isna().all(axis=None) and t.attrs['label_sources']['train'] == {'none': 2}


def test_labels_go_by_name_and_the_labeler_is_a_choice(tmp_path):
    root = copy(tmp_path)
    chexpert, negbio = load_mimic(root), load_mimic(root, labeler='negbio')
    assert chexpert['Lung Lesion'][5] == 1
    assert chexpert.Pneumonia[0] == 1
    assert negbio.Pneumonia.isna().all()
    assert negbio.Edema[0] == -1


@pytest.mark.parametrize(
    'how',
    [
        dict(end='.csv'),
        dict(version='2.1.0'),
        dict(version='2.1.0', end='.csv'),
        dict(reports='folder'),
        dict(reports='zip'),
    ],
)
def test_other_names_and_places_of_the_same_files(tmp_path, how):
    t = load_mimic(copy(tmp_path, **how))
    assert len(t) == 8 and t.note[0] == '___F with cough // ? pneumonia'


def test_reports_may_be_elsewhere_or_nowhere(tmp_path):
    root = copy(tmp_path / 'jpg', reports=None)
    assert load_mimic(root).note.isna().all() and load_mimic(root).attrs['note_reasons'] == {'no report': 5}
    copy(tmp_path / 'text', films=False)
    copy(tmp_path / 'zip', films=False, reports='zip')
    for place in ('text', 'text/files', 'zip/mimic-cxr-reports.zip'):
        assert load_mimic(root, reports=tmp_path / place).note.notna().sum() == 4
    with pytest.raises(StudyTableError, match='no such folder or zip'):
        load_mimic(root, reports=tmp_path / 'absent')


def test_questions_and_marks_are_choices(tmp_path):
    root = copy(tmp_path)
    t = load_mimic(root, questions='scrub')
    assert t.note[0] == '___F with cough'
    assert pd.isna(t.note[3])
    assert t.attrs['note_reasons']['only a question'] == 1
    assert load_mimic(root, marks='drop').note[0] == 'F with cough // ? pneumonia'


def test_the_radiologists_labels_replace_the_programs_or_are_the_whole_test_split(tmp_path):
    root, left = (
        copy(tmp_path, test=labelled(('50000004', {'Lung Opacity': 1.0, 'Edema': -1.0, 'Pneumonia': 0.0}))),
        Exclusions(),
    )
    t = load_mimic(root)
    assert t.loc[5, ['Lung Opacity', 'Edema', 'Pneumonia']].tolist() == [1, -1, 0]
    assert pd.isna(t['Lung Lesion'][5])
    assert t.attrs['label_sources']['test'] == {'radiologist': 1, 'none': 1}
    assert len(t) == 8
    assert load_mimic(root, test_labels='labeler')['Lung Lesion'][5] == 1
    only = load_mimic(root, test_labels='radiologist', exclusions=left)
    assert only[only.split == 'test'].study_id.tolist() == ['50000004']
    assert left.counts().to_dict() == {'test study that no radiologist labelled': 2}
    assert left.rows[0][1].endswith('e-1.jpg')
    assert (
        load_mimic(
            copy(tmp_path / 'same', test=labelled(('50000004', {'Lung Opacity': 1}), lung='Lung Opacity'))
        )['Lung Opacity'][5]
        == 1
    )


def test_sex_and_age_come_from_mimic_iv(tmp_path):
    people = (
        'subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod\n'
        '10000032,F,52,2178,2014 - 2016,\n10000764,M,88,2178,2014 - 2016,\n'
        '11000011,M,91,2181,2014 - 2016,\n'
    )
    t = load_mimic(copy(tmp_path, patients=people))
    assert t.sex.tolist() == ['Female'] * 3 + ['Male'] * 5
    assert t.age.tolist()[:5] == [54] * 3 + [91] * 2
    assert t.age[5:].isna().all()
    t = load_mimic(
        copy(
            tmp_path / 'b',
            patients='subject_id,gender,anchor_age,anchor_year\n11000011,,91,2180\n10000032,F,52,2178\n',
        )
    )
    assert t.age.tolist()[5:] == [91] * 3 and t.sex[5:].isna().all() and t.age[3:5].isna().all()
    t = load_mimic(
        copy(
            tmp_path / 'c',
            patients='subject_id,gender,anchor_age,anchor_year\n10000032,F,52,2178\n',
            metadata=[(0, 'StudyDate', ''), (1, 'StudyDate', 'soon')],
        )
    )
    assert t.age[:2].isna().all() and t.age[2] == 54


BROKEN = {  # what is wrong: (the copy, what the error says)
    'no metadata': (
        dict(raw=[('mimic-cxr-2.0.0-metadata.csv.gz', None)]),
        r'metadata\.csv\.gz: no such file',
    ),
    'gzip cut short': (
        dict(
            raw=[
                (
                    'mimic-cxr-2.0.0-split.csv.gz',
                    gzip.compress(b'dicom_id,study_id\n' + bytes(range(256)) * 9)[:40],
                )
            ]
        ),
        r'split\.csv\.gz: not a readable CSV',
    ),
    'not gzip': (
        dict(raw=[('mimic-cxr-2.0.0-chexpert.csv.gz', b'subject_id,study_id\n')]),
        r'chexpert\.csv\.gz: missing column',
    ),
    'empty file': (dict(raw=[('mimic-cxr-2.0.0-metadata.csv.gz', gzip.compress(b''))]), 'not a readable CSV'),
    'only a header': (
        dict(raw=[('mimic-cxr-2.0.0-metadata.csv.gz', gzip.compress(','.join(META).encode() + b'\n'))]),
        'no rows',
    ),
    'no split at all': (
        dict(raw=[('mimic-cxr-2.0.0-split.csv.gz', gzip.compress(b'dicom_id,study_id,subject_id,split\n'))]),
        "row 1: dicom_id is 'a-1'; expected an image that",
    ),
    'Latin-1': (
        dict(raw=[('mimic-cxr-2.0.0-metadata.csv.gz', gzip.compress(','.join(META).encode() + b'\n\xe9'))]),
        'not UTF-8',
    ),
    'metadata column': (dict(drop=['ViewPosition']), r'metadata\.csv\.gz: missing column\(s\) ViewPosition'),
    'label column': (dict(drop=['Pleural Other']), r'chexpert\.csv\.gz: missing column\(s\) Pleural Other'),
    'split column': (dict(drop=['split']), r'split\.csv\.gz: missing column\(s\) split'),
    'split value': (
        dict(split=[(3, 'split', 'valid')]),
        r"split\.csv\.gz row 4: split is 'valid'; expected train, validate, test",
    ),
    'split empty': (dict(split=[(3, 'split', '')]), r'split\.csv\.gz row 4: split is nan'),
    'label value': (
        dict(labels=[(1, 'Edema', '2.0')]),
        r'chexpert\.csv\.gz row 2: Edema is 2.0; expected 1, 0, -1 or empty',
    ),
    'label text': (dict(labels=[(1, 'Edema', 'yes')]), r"row 2: Edema is 'yes'"),
    'labels twice': (
        dict(labels=[{'subject_id': '10000032', 'study_id': '50000001'}]),
        r'row 5: study_id is .50000001.; expected each study once',
    ),
    'labels of another patient': (
        dict(labels=[(0, 'subject_id', '10000764')]),
        r"row 1: subject_id is '10000764'; expected the patient whom the metadata",
    ),
    'image twice': (
        dict(metadata=[dict(zip(META, ('a-1', '10000032', '50000001')))]),
        r"metadata\.csv\.gz row 9: dicom_id is 'a-1'; expected each image once",
    ),
    'image twice in the split file': (
        dict(split=[dict(dicom_id='a-1', study_id='50000001', subject_id='10000032', split='train')]),
        r'split\.csv\.gz row 9: dicom_id is .a-1.; expected each image once',
    ),
    'image without a split': (
        dict(metadata=[dict(zip(META, ('z-1', '10000032', '50000001')))]),
        r"row 9: dicom_id is 'z-1'; expected an image that mimic-cxr-2.0.0-split.csv.gz lists",
    ),
    'another study in the split file': (
        dict(split=[(0, 'study_id', '50000002')]),
        r"metadata\.csv\.gz row 1: study_id is '50000001'; expected the same",
    ),
    'another patient in the split file': (
        dict(split=[(0, 'subject_id', '11000011')]),
        r"metadata\.csv\.gz row 1: subject_id is '10000032'; expected the same",
    ),
    'study of two patients': (
        dict(metadata=[(1, 'subject_id', '11000011')]),
        r"row 2: subject_id is '11000011'; expected the patient of the study's other images",
    ),
    'study in two splits': (
        dict(split=[(1, 'split', 'test')]),
        'patient 10000032 is in the splits test, train',
    ),
    'path in an identifier': (
        dict(metadata=[(0, 'dicom_id', '../../../etc/passwd')]),
        r'row 1: dicom_id is .*expected an identifier',
    ),
    'number as a float': (
        dict(metadata=[(0, 'subject_id', '10000032.0')]),
        'row 1: subject_id is .10000032.0.; expected eight digits',
    ),
    'identifier empty': (dict(metadata=[(4, 'study_id', '')]), r'row 5: study_id'),
    'image not unpacked': (dict(films=False), 'none of the 8 listed images'),
    'test labels: value': (
        dict(test=labelled(('50000004', {'Edema': 3}))),
        r'test-set-labeled\.csv row 1: Edema is 3',
    ),
    'test labels: column': (
        dict(test=labelled(('50000004', {})).replace('Airspace Opacity', 'Opacity')),
        r'test-set-labeled\.csv: missing column\(s\) Lung Opacity',
    ),
    'test labels: not a test study': (
        dict(test=labelled(('50000001', {}))),
        r'row 1: study_id is .50000001.; expected a study that .* puts into the test split',
    ),
    'test labels: twice': (
        dict(test=labelled(('50000004', {}), ('50000004', {}))),
        'row 2: study_id is .50000004.; expected each study once',
    ),
    'patients: twice': (
        dict(patients='subject_id,gender,anchor_age,anchor_year\n10000032,F,52,2178\n10000032,F,52,2178\n'),
        r'patients\.csv\.gz row 2: subject_id',
    ),
    'patients: gender': (
        dict(patients='subject_id,gender,anchor_age,anchor_year\n10000032,female,52,2178\n'),
        "gender is 'female'; expected F, M or empty",
    ),
    'patients: age': (
        dict(patients='subject_id,gender,anchor_age,anchor_year\n10000032,F,old,2178\n'),
        "anchor_age is 'old'; expected a number",
    ),
    'zip of reports': (
        dict(reports=None, raw=[('mimic-cxr-reports.zip', b'PK\x03\x04 broken')]),
        r'mimic-cxr-reports\.zip: not a readable zip',
    ),
}


@pytest.mark.parametrize('wrong', BROKEN)
def test_what_is_wrong_with_a_copy_is_said_by_file_and_row(tmp_path, wrong):
    how, said = BROKEN[wrong]
    absent = [n for n, data in how.get('raw', ()) if data is None]
    root = copy(tmp_path, **how | {'raw': [r for r in how.get('raw', ()) if r[1] is not None]})
    for name in absent:
        (root / name).unlink()
    with pytest.raises(StudyTableError, match=said):
        load_mimic(root, exclusions=Exclusions())


@pytest.mark.parametrize(
    'option',
    [
        dict(labeler='chexbert'),
        dict(test_labels='yes'),
        dict(questions='drop'),
        dict(marks='remove'),
        dict(missing='ignore'),
    ],
)
def test_an_unknown_option_is_refused(tmp_path, option):
    with pytest.raises(ValueError, match=f"{next(iter(option))} is '{next(iter(option.values()))}'"):
        load_mimic(copy(tmp_path), **option)


def test_what_belongs_to_no_image_is_listed(tmp_path):
    left = Exclusions()
    root = copy(
        tmp_path,
        split=[dict(dicom_id='z-1', study_id='59999999', subject_id='10000032', split='train')],
        labels=[{'subject_id': '10000032', 'study_id': '59999999', 'Edema': '1.0'}],
        test=labelled(('59999999', {}), ('50000004', {})),
    )
    t = load_mimic(root, exclusions=left)
    assert len(t) == 8
    assert left.counts().to_dict() == {
        'in the split file, but not in the metadata': 1,
        'labels (chexpert) of a study without an image in the metadata': 1,
        "the radiologist's labels of a study without an image in the metadata": 1,
    }
    assert left.rows[0][:2] == (f'{root / "mimic-cxr-2.0.0-split.csv.gz"} row 9', 'z-1')
    with pytest.warns(UserWarning) as told:
        load_mimic(root)
    assert len(told) == 3 and all('are left out' in str(w.message) for w in told)


def test_images_that_are_not_there_are_refused_or_listed(tmp_path):
    root, left = copy(tmp_path), Exclusions()
    (root / 'files/p10/p10000032/s50000001/a-2.jpg').unlink()
    with pytest.raises(StudyTableError, match=r'metadata\.csv\.gz row 2: image is'):
        load_mimic(root)
    t = load_mimic(root, missing='exclude', exclusions=left)
    assert len(t) == 7
    assert left.counts().to_dict() == {'the image is not on disk': 1}
    assert t.attrs['note_reasons']['note'] == 2


def test_a_report_that_is_no_text_gives_no_note_and_stops_nothing(tmp_path):
    root = copy(tmp_path)
    (root / 'files/p10/p10000032/s50000001.txt').write_bytes(b'INDICATION: caf\xe9')
    (root / 'files/p10/p10000764/s50000003.txt').write_bytes(b'\xef\xbb\xbfINDICATION: cough\r\n\r\nZorbex')
    (root / 'files/p11/p11000011/s50000004.txt').write_text('INDICATION: cough ' + 'x ' * MAX_REPORT)
    t = load_mimic(root)
    assert t.note.where(t.note.notna(), None).tolist() == [None] * 3 + ['cough'] * 2 + [None] * 3
    assert t.attrs['note_reasons'] == {
        'not text': 1,
        'no request section': 1,
        'note': 1,
        'too long for a report': 1,
        'no report': 1,
    }


def test_studies_that_are_known_to_be_mistitled_give_no_note(tmp_path):
    root = copy(tmp_path)
    for path in root.glob('mimic-cxr-2.0.0-*.csv.gz'):
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(b'50000001', b'57936451')))
    (root / 'files/p10/p10000032/s50000001').rename(root / 'files/p10/p10000032/s57936451')
    (root / 'files/p10/p10000032/s50000001.txt').rename(root / 'files/p10/p10000032/s57936451.txt')
    t = load_mimic(root)
    assert t.note[:2].isna().all() and t.attrs['note_reasons']['report is known to be mistitled'] == 1


def test_reports_come_in_the_order_that_was_asked_for(tmp_path):
    root = copy(tmp_path)
    texts = read_report_texts(
        ['10000764', '10000032', '10000032'], ['50000003', '59999999', '50000001'], root
    )
    assert texts == [REPORTS['10000764', '50000003'], None, REPORTS['10000032', '50000001']]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(8)), names=st.permutations(NAMES))
def test_the_order_of_rows_and_of_columns_changes_nothing(tmp_path_factory, order, names):
    root = copy(tmp_path_factory.mktemp('mimic'))
    before = load_mimic(root)
    for name in ('metadata', 'chexpert'):
        path = root / f'mimic-cxr-2.0.0-{name}.csv.gz'
        table = pd.read_csv(path, dtype=str)
        table = table.iloc[[i for i in order if i < len(table)]][
            [c for c in table if c not in names] + [n for n in names if n in table]
        ]
        path.write_bytes(gzip.compress(table.to_csv(index=False).encode()))
    after = load_mimic(root)
    pd.testing.assert_frame_equal(
        after.sort_values('image', ignore_index=True), before.sort_values('image', ignore_index=True)
    )
