"""What a sentence says: polarity, side, zone and degree; and what holds for any text at all."""

import re

import pytest
from conftest import printed_elsewhere
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_lib.reasoning.lexicon import SEVERITIES, default_lexicon
from cxr_lib.reasoning.statements import lower_case, read_statements, sentence_spans


def said(text):
    "{finding: polarity or certainty}"
    return {s.finding: s.certainty or s.polarity for s in read_statements(text)}


@pytest.mark.parametrize(
    'text, expected',
    [
        ('No pneumothorax, pleural effusion, or focal consolidation.', 'absent absent absent'),
        ('NO EVIDENCE OF\nPNEUMOTHORAX OR EFFUSION.', 'absent absent'),
        ('No effusion, stable cardiomegaly.', 'absent present'),
        ('No effusion but mild edema.', 'absent present'),
        ('Cardiomegaly without edema or effusion.', 'present absent absent'),
        ('Lungs are clear of consolidation.', 'absent absent'),
        ('The effusion is no longer seen.', 'absent'),
        ('Pneumothorax and effusion are not seen.', 'absent absent'),
        ('Resolution of the right effusion.', 'absent'),
        ('No change in the right effusion.', 'present'),
        ('Without change in cardiomegaly.', 'present'),
        ('9 mm nodule, not seen on the prior radiograph.', 'present'),
        ('Pneumonia is unlikely.', 'absent'),
        ('No effusion, heart enlarged.', 'absent present'),
        ('No effusion, small nodule, or edema.', 'absent absent absent'),
        ('Pneumothorax: None.', 'absent'),
        ('Near complete resolution of the effusion.', 'present'),
    ],
)
def test_denials(text, expected):
    assert ' '.join(s.certainty or s.polarity for s in read_statements(text)) == expected


@pytest.mark.parametrize(
    'text, expected',
    [
        ('Possible pneumonia.', 'possible'),
        ('Pneumonia cannot be entirely excluded.', 'possible'),
        ('We cannot exclude pneumonia.', 'possible'),
        ('This may represent pneumonia.', 'possible'),
        ('Suggestive of pneumonia.', 'possible'),
        ('Concerning for pneumonia.', 'possible'),
        ('Question of pneumonia.', 'possible'),
        ('Pneumonia is suspected.', 'possible'),
        ('Differential diagnosis includes pneumonia.', 'possible'),
        ('Probable pneumonia.', 'probable'),
        ('Most likely pneumonia.', 'probable'),
        ('Consistent with pneumonia.', 'present'),
        ('Compatible with pneumonia.', 'present'),
        ('Right pneumonia.', 'present'),
    ],
)
def test_degrees_of_certainty(text, expected):
    assert said(text) == {'pneumonia': expected}


@pytest.mark.parametrize(
    'text, expected',
    [
        ('Atelectasis or infiltrate.', ['probable', 'probable']),
        ('Atelectasis/infiltrate in the left base.', ['probable', 'probable']),
        ('Atelectasis vs. infiltrate.', ['probable', 'probable']),
        ('Atelectasis and/or effusion.', ['probable', 'probable']),
        ('Atelectasis and effusion.', ['present', 'present']),
        ('Possible atelectasis or infiltrate.', ['possible', 'possible']),
        ('No atelectasis or infiltrate.', ['absent', 'absent']),
        ('Atelectasis, consolidation, or edema.', ['probable', 'probable', 'probable']),
        ('Pacemaker/defibrillator.', ['present']),
    ],
)
def test_alternatives(text, expected):
    assert list(said(text).values()) == expected


@pytest.mark.parametrize(
    'text',
    [
        'Rule out pneumonia.',
        'Evaluate for pneumothorax.',
        'Recommend CT to exclude a mass.',
        'History of pneumonia.',
        'INDICATION: pneumonia\n\nFINDINGS: Midline trachea.',
        'Indication: cough, pneumonia. FINDINGS: Midline trachea.',
        'Bony overlap could obscure a small nodule.',
        'Right heart border is sharp.',
        'Please note that fractures may not be seen.',
        'Follow up to ensure resolution of the infiltrate.',
        'Left joint effusion.',
        '',
        'XXXX',
    ],
)
def test_what_the_report_does_not_state(text):
    assert said(text) == {}


@pytest.mark.parametrize(
    'text, expected',
    [
        ('Small right pleural effusion.', ('right', (), 'mild')),
        ('Effusion on the left.', ('left', (), '')),
        ('Right greater than left effusions.', ('bilateral', (), '')),
        ('Moderate to large left effusion.', ('left', (), 'severe')),
        ('Effusion, right and left.', ('bilateral', (), '')),
        ('Patchy opacity in the left lower lobe.', ('left', ('lower lobe',), '')),
        ('RLL opacity.', ('right', ('lower lobe',), '')),
        ('In the right apex, there is an opacity.', ('right', ('apex',), '')),
        ('Heart is markedly enlarged.', ('', (), 'severe')),
        ('Borderline cardiomegaly.', ('', (), 'borderline')),
    ],
)
def test_side_zone_and_severity(text, expected):
    (statement,) = read_statements(text)
    assert (statement.side, statement.zones, statement.severity) == expected


def test_each_finding_keeps_its_own_side():
    text = 'Small right effusion, severe left lower lobe consolidation, and pneumothorax.'
    found = [(s.finding, s.side, s.severity) for s in read_statements(text)]
    assert found == [
        ('pleural effusion', 'right', 'mild'),
        ('consolidation', 'left', 'severe'),
        ('pneumothorax', '', ''),
    ]


SECTIONS = '''                FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ year old with cough // ? pneumonia

 COMPARISON:  ___, when there was a right pneumothorax

 FINDINGS:

 Large left pleural effusion is new.  Small
 right effusion.  No consolidation.

 IMPRESSION:
 Moderate edema, heart remains enlarged.'''


def test_of_a_report_with_headings_only_what_the_film_shows_is_read():
    assert [(s.finding, s.polarity, s.side, s.severity) for s in read_statements(SECTIONS)] == [
        ('pleural effusion', 'present', 'left', 'severe'),
        ('pleural effusion', 'present', 'right', 'mild'),
        ('consolidation', 'absent', '', ''),
        ('edema', 'present', '', 'moderate'),
        ('cardiomegaly', 'present', '', ''),
    ]


def test_a_report_on_one_line_is_not_lost_to_a_heading():
    assert said('Comparison: None. Small effusion.') == {'pleural effusion': 'present'}


def test_a_cue_is_named_with_its_place():
    text = 'There is no evidence of pneumothorax.'
    (statement,) = read_statements(text)
    assert [text[start:end] for start, end in statement.cues] == ['no evidence of']
    assert text[statement.start : statement.end] == 'pneumothorax'


# Any text

WORDS = sorted({word.strip('*') for rule in default_lexicon().rules for word in rule.first})
REPORTS = st.lists(st.sampled_from([*WORDS, ',', '.', 'is', 'the', '\n', '/', ';', 'XXXX']), max_size=60).map(
    ' '.join
)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=300), REPORTS, REPORTS.map(str.upper)))
def test_statements_of_any_text_lie_in_it_and_are_well_formed(text):
    findings = set(default_lexicon().findings)
    statements = read_statements(text)
    for s in statements:
        assert 0 <= s.start < s.end <= len(text)
        assert re.search(r'\w', text[s.start : s.end])
        assert s.finding in findings
        assert s.polarity in ('present', 'absent', 'uncertain')
        assert (s.certainty in ('probable', 'possible')) == (s.polarity == 'uncertain')
        assert s.side in ('', 'right', 'left', 'bilateral')
        assert s.severity in ('', *SEVERITIES)
        assert all(0 <= start < end <= len(text) for start, end in s.cues)
    assert read_statements(text) == statements


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=300))
def test_sentences_cover_any_text(text):
    spans = sentence_spans(text)
    assert ''.join(text[start:end] for start, end in spans) == text
    assert len(lower_case(text)) == len(text)


@settings(max_examples=100, deadline=None)
@given(REPORTS, REPORTS)
def test_a_blank_line_separates_what_is_read(one, other):
    if ':' in one + other:
        return
    together = read_statements(f'{one}.\n\n{other}')
    offset = len(one) + 3
    moved = [
        s._replace(
            start=s.start + offset,
            end=s.end + offset,
            cues=tuple((a + offset, b + offset) for a, b in s.cues),
        )
        for s in read_statements(other)
    ]
    assert together == [*read_statements(f'{one}.'), *moved]


def test_the_reading_does_not_depend_on_the_process():
    code = (
        'from cxr_lib.reasoning.statements import read_statements\n'
        'print(read_statements("Small left effusion or atelectasis in the right base, no edema. Heart large."))'
    )
    assert printed_elsewhere(code, hashseed='0') == printed_elsewhere(code, hashseed='1') != '[]\n'


def test_a_long_text_takes_time_in_proportion_to_its_length():
    import time

    def seconds(n):
        text = 'No pneumothorax. Small left effusion or atelectasis. Heart is mildly enlarged. ' * n
        start = time.process_time()
        read_statements(text)
        return time.process_time() - start

    seconds(10)
    short = min(seconds(100) for _ in range(3))
    assert seconds(1000) < 40 * short


@pytest.mark.parametrize(
    'piece', ['no effusion or ', 'a', 'heart enlarged ', ', small effusion', '\n', '-/', 'or ']
)
def test_a_text_without_an_end_takes_no_time_without_end(piece):
    import time

    start = time.process_time()
    read_statements((piece * 100_000)[:100_000])
    assert time.process_time() - start < 10
