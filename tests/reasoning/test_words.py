"""Texts say what the differential holds: an independent reader, numbers, origins, and what a note changes."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import SENTENCES, log_odds, sources, studies

from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.reasoning.certainty import AVOIDED
from cxr_lib.reasoning.differential import (
    Evidence,
    Measurement,
    StudyNumbers,
    make_differential,
    settling_examinations,
)
from cxr_lib.reasoning.statements import read_statements
from cxr_lib.reasoning.words import (
    AUDIENCES,
    LENGTHS,
    compare_written,
    compile_grammar,
    describe,
    disagreements,
    percent_text,
    unquoted,
    write_text,
)

forms = st.tuples(st.sampled_from(LENGTHS), st.sampled_from(AUDIENCES))


def chooser(rng):
    "Choose a sentence at random, and leave out some that need not be said"

    def choose(place):
        if not place.required and rng.random() < 0.3:
            return None
        return rng.randrange(len(place.options))

    return choose


@given(studies(), forms, st.randoms(use_true_random=False))
@settings(max_examples=400, deadline=None)
def test_the_labeler_reads_what_the_structure_holds(study, form, rng):
    differential = make_differential(study)
    written = write_text(compile_grammar(differential, *form), chooser(rng))
    assert disagreements(written, differential) == []


def numbers_in(differential):
    "Every number that a text may hold: probabilities, sizes, and those in the words of the structure"
    found = set(re.findall(r'\d+', json.dumps(differential.model_dump(mode='json'), ensure_ascii=False)))
    for d in (differential.normal, *differential.diagnoses):
        shares = [d.probability, d.stated, d.true, *(d.band or ())]
        shares += [d.note.without_note, d.note.with_note] if d.note else []
        for share in (s for s in shares if s is not None):
            found |= set(re.findall(r'\d+', f'{percent_text(share)} {share:.0%}'))
        for e in (*d.evidence_for, *d.evidence_against):
            found |= set(re.findall(r'\d+', f'{e.logit:+.1f}'))
            found |= set(re.findall(r'\d+', f'{e.measurement.value:.2f}')) if e.measurement else set()
    return found


@given(studies(), forms)
@settings(max_examples=150, deadline=None)
def test_every_number_in_the_text_stands_in_the_structure(study, form):
    differential = make_differential(study)
    text = str(describe(differential, *form))
    assert set(re.findall(r'\d+', text)) <= numbers_in(differential)


def test_a_measurement_is_named_with_its_value_whatever_else_speaks():
    own = Measurement(name='cardiothoracic ratio', value=0.56)
    ratio = Evidence(source='measurement', logit=0.2, measurement=own)
    notes = [(f'Finding {i}.', np.full(len(OBSERVATIONS), 2.0 + i)) for i in range(3)]
    said = ' '.join(text for text, _ in notes)
    numbers = dict(fused=np.full(len(OBSERVATIONS), 0.5), note=said, sentences=notes)
    written = describe(make_differential(StudyNumbers(**numbers, measured={'Cardiomegaly': ratio})))
    told = [s.text for s in written.sentences if s.id == 'Cardiomegaly/measurement']
    assert told == ['The measurement speaks for it (+0.2): cardiothoracic ratio 0.56.']
    assert len([s for s in written.sentences if re.fullmatch(r'Cardiomegaly/note/\d', s.id)]) == 2


@given(studies(), forms)
@settings(max_examples=100, deadline=None)
def test_every_sentence_says_where_it_comes_from(study, form):
    differential = make_differential(study)
    written = describe(differential, *form)
    assert len({s.id for s in written.sentences}) == len(written.sentences)
    for s in written.sentences:
        assert s.fingerprint == study.fingerprint
        for path in s.field.split(', '):
            value = differential
            for name, index in re.findall(r'(\w+)(?:\[(\d+)\])?', path):
                value = getattr(value, name)
                value = value[int(index)] if index else value
        for span in s.spans:
            assert study.note[span.start : span.end]


@given(studies(note=()), forms)
@settings(max_examples=100, deadline=None)
def test_without_a_note_no_sentence_mentions_one(study, form):
    written = describe(make_differential(study), *form)
    assert not [s for s in written.sentences if s.spans or '/note' in s.id or re.search(r'\bnote\b', s.text)]


@given(studies(note=SENTENCES[:1]), forms, sources)
@settings(max_examples=100, deadline=None)
def test_where_only_the_evidence_in_the_note_changes_only_its_sentences_change(study, form, rng):
    other = replace(study, note=SENTENCES[3], sentences=[(SENTENCES[3].strip(), log_odds(rng))])
    texts = [describe(make_differential(s), *form) for s in (study, other)]
    changed = compare_written(*texts)
    assert changed.loc[~changed.same, 'id'].str.contains('/note').all()


@given(studies(), forms)
@settings(max_examples=100, deadline=None)
def test_words_that_readers_disagree_about_are_avoided(study, form):
    text = unquoted(str(describe(make_differential(study), *form))).lower()
    assert not [words for words in AVOIDED if re.search(rf'\b{words}\b', text)]


@given(studies(), forms)
@settings(max_examples=100, deadline=None)
def test_a_text_about_an_unusable_image_says_why_and_what_to_do(study, form):
    study = replace(study, abstains=('The image is blank.',))
    written = describe(make_differential(study), *form)
    text = str(written)
    assert 'Nothing is stated about this study: The image is blank.' in text
    assert 'a person' in text and '%' not in text


def test_unknown_forms_are_refused():
    study = make_differential(StudyNumbers(None, note='Cough.'))
    with pytest.raises(ValueError, match='short or long'):
        compile_grammar(study, 'medium')
    with pytest.raises(ValueError, match='clinician or student'):
        compile_grammar(study, 'long', 'machine')


def test_examinations_are_named_without_naming_a_finding():
    for examinations in settling_examinations().values():
        for e in examinations:
            assert read_statements(f'Would settle it: {e.name} (finds {e.finds}; {e.source}).') == []
