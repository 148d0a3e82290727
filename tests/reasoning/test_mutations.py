"""Is a changed word noticed? Sentences of our own, each beside a copy in which one thing has been altered."""

import itertools
from typing import NamedTuple

import pytest

from cxr_lib.reasoning.statements import read_statements

#: words -> (finding, what may be said of it: a side, a zone, a degree)
FINDINGS = {
    'pleural effusion': ('pleural effusion', True, False),
    'pneumothorax': ('pneumothorax', True, False),
    'consolidation': ('consolidation', True, True),
    'atelectasis': ('atelectasis', True, True),
    'airspace opacity': ('lung opacity', True, True),
    'infiltrate': ('infiltrate', True, True),
    'pneumonia': ('pneumonia', True, True),
    'pleural thickening': ('pleural thickening', True, False),
    'pulmonary edema': ('edema', False, False),
    'cardiomegaly': ('cardiomegaly', False, False),
    'hiatal hernia': ('hernia', False, False),
    'emphysema': ('emphysema', False, False),
}
SIDES = ('right', 'left', 'bilateral')
ZONES = ('upper lobe', 'lower lobe')
DEGREES = ('mild', 'moderate', 'severe')
BEFORE = ('', 'The trachea is midline. ', 'No fracture. ', 'A catheter ends in the superior vena cava. ')
AFTER = ('', ' Otherwise no acute abnormality.', ' No fracture is seen.')

#: ways to say that it is there, that it is not, and that it may be
PRESENT = (
    'There is {what}.',
    '{what} is present.',
    'Again seen is {what}, unchanged.',
    'Findings of {what}.',
)
ABSENT = (
    'There is no {what}.',
    'No evidence of {what}.',
    'No fracture or {what}.',
    'The lungs are free of {what}.',
    'Previously described {what} has resolved.',
    '{what} is not seen.',
    'Negative for fracture, {what}, or foreign body.',
    'Clear chest without {what}.',
)
UNCERTAIN = (
    'Possible {what}.',
    '{what} cannot be excluded.',
    'Findings may represent {what}.',
    'Suspicious for {what}.',
    'Probable {what}.',
    '{what} is suspected.',
)


class Case(NamedTuple):
    "A sentence and its altered copy"

    kind: str  # what was altered
    finding: str  # that the sentence is about
    original: str
    altered: str
    expected: tuple  # (polarity, side, severity) of the original
    changed: tuple  # (finding, polarity, side, severity) of the copy


def phrase(degree, side, zone, words):
    return ' '.join(part for part in (degree, side, zone, words) if part)


def sentence(frame, what, number):
    "A sentence between others, which differ from case to case"
    text = frame.format(what=what)
    text = text[0].upper() + text[1:]
    return BEFORE[number % len(BEFORE)] + text + AFTER[number % len(AFTER)]


def subjects():
    "(words, finding, degree, side, zone) in turn"
    for number, (words, (finding, has_side, has_zone)) in enumerate(FINDINGS.items()):
        for turn, degree in enumerate(DEGREES):
            side = SIDES[(number + turn) % 3] if has_side else ''
            zone = ZONES[(number + turn) % 2] if has_zone else ''
            yield words, finding, degree, side, zone


def polarity_cases():
    "Present becomes absent or uncertain, absent becomes present"
    numbers = itertools.count()
    frames = {'absent': ABSENT, 'uncertain': UNCERTAIN}
    for words, finding, degree, side, zone in subjects():
        what = phrase(degree, side, zone, words)
        for polarity in frames:
            for frame in frames[polarity]:
                number = next(numbers)
                here = sentence(PRESENT[number % len(PRESENT)], what, number)
                there = sentence(frame, what, number)
                one, other = ('present', side, degree), (finding, polarity, side, degree)
                yield Case('polarity', finding, here, there, one, other)
                if number % 2:
                    back = (polarity, side, degree)
                    yield Case('polarity', finding, there, here, back, (finding, *one))


def wording_cases():
    "Another side, degree or finding in the same sentence"
    numbers = itertools.count()
    others = list(FINDINGS)
    for words, finding, degree, side, zone in subjects():
        number = next(numbers)
        expected = ('present', side, degree)
        here = sentence(PRESENT[number % len(PRESENT)], phrase(degree, side, zone, words), number)
        for new in (d for d in DEGREES if d != degree):
            there = sentence(PRESENT[number % len(PRESENT)], phrase(new, side, zone, words), number)
            yield Case('severity', finding, here, there, expected, (finding, 'present', side, new))
        for new in (s for s in SIDES if side and s != side):
            there = sentence(PRESENT[number % len(PRESENT)], phrase(degree, new, zone, words), number)
            yield Case('side', finding, here, there, expected, (finding, 'present', new, degree))
        for step in (1, 5):
            new = others[(others.index(words) + step) % len(others)]
            there = sentence(PRESENT[number % len(PRESENT)], phrase(degree, side, zone, new), number)
            yield Case('finding', finding, here, there, expected, (FINDINGS[new][0], 'present', side, degree))


CASES = [*polarity_cases(), *wording_cases()]


def reading(text, finding):
    "(polarity, side, severity) of a finding; None where the text does not name it"
    found = [(s.polarity, s.side, s.severity) for s in read_statements(text) if s.finding == finding]
    return found[0] if len(found) == 1 else None


def is_caught(case):
    "Are the sentence and its copy both read as they were made, so that the difference shows?"
    finding, *changed = case.changed
    if reading(case.original, case.finding) != case.expected:
        return False
    if reading(case.altered, finding) != tuple(changed):
        return False
    return finding == case.finding or reading(case.altered, case.finding) is None


def test_there_are_500_different_altered_sentences():
    assert len({case.altered for case in CASES}) >= 500
    assert {case.kind for case in CASES} == {'polarity', 'severity', 'side', 'finding'}


@pytest.mark.parametrize('kind', ['polarity', 'severity', 'side', 'finding'])
def test_99_of_100_alterations_are_caught(kind):
    cases = [case for case in CASES if case.kind == kind]
    missed = [f'{case.original} | {case.altered}' for case in cases if not is_caught(case)]
    assert len(cases) >= 40
    assert len(missed) <= 0.01 * len(cases), '\n'.join(missed[:20])


def test_an_unchanged_sentence_is_no_alteration():
    for case in CASES:
        assert not is_caught(case._replace(altered=case.original))
