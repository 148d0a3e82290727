"""One grammar for every writer: our reader and llguidance accept the same texts, and none with another number."""

import re
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import sources, studies

from cxr_lib.reasoning.constrained import Guide, guide_tokens, learn_decoder_tokenizer
from cxr_lib.reasoning.differential import make_differential
from cxr_lib.reasoning.grammar import accepts, arranged, draw_text, lark_text, read_text
from cxr_lib.reasoning.words import AUDIENCES, LENGTHS, compile_grammar, disagreements, write_text

forms = st.tuples(st.sampled_from(LENGTHS), st.sampled_from(AUDIENCES))


@pytest.fixture(scope='module')
def guided():
    "(grammar, text) -> does llguidance accept the text?"
    package = pytest.importorskip('llguidance', reason='the extra `train` is not installed')
    letters = package.LLTokenizer('byte')

    def is_accepted(grammar, text):
        lark = package.LLMatcher.grammar_from_lark(lark_text(grammar))
        matcher = package.LLMatcher(letters, lark, log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        ids = letters.tokenize_bytes(text.encode())
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

    return is_accepted


def changed(text):
    "The same with another digit, or None"
    digit = re.search(r'\d', text)
    if digit is None:
        return None
    return text[: digit.start()] + ('3' if digit[0] != '3' else '4') + text[digit.end() :]


@given(studies(), forms)
@settings(max_examples=40, deadline=None)
def test_the_text_of_the_template_belongs_to_the_grammar(guided, study, form):
    grammar = compile_grammar(make_differential(study), *form)
    text = str(write_text(grammar))
    assert accepts(grammar, text)
    assert guided(grammar, text)


@given(studies(), forms, sources)
@settings(max_examples=40, deadline=None)
def test_other_orders_and_wordings_belong_to_it_and_other_numbers_do_not(guided, study, form, rng):
    grammar = compile_grammar(make_differential(study), *form)
    text = str(draw_text(grammar, rng))
    assert accepts(grammar, text)
    assert guided(grammar, text)
    if wrong := changed(text):
        assert not accepts(grammar, wrong)
        assert not guided(grammar, wrong)


@given(studies(), forms, sources)
@settings(max_examples=60, deadline=None)
def test_a_text_that_is_read_back_has_the_origin_of_every_sentence(study, form, rng):
    grammar = compile_grammar(make_differential(study), *form)
    written = draw_text(grammar, rng)
    again = read_text(grammar, str(written))
    assert str(again) == str(written)
    assert {s.fingerprint for s in again.sentences} == {grammar.fingerprint}
    ids = [s.id for s in again.sentences]
    assert len(ids) == len(set(ids))
    assert set(ids) == {s.id for s in written.sentences} or twins(grammar)


def twins(grammar):
    "Are there two places with the same words? Which of them is meant, nobody can tell"
    said = [option for place in grammar.places for option in place.options]
    return len(said) > len(set(said))


@given(studies(), forms, sources)
@settings(max_examples=60, deadline=None)
def test_the_labeler_reads_the_same_in_any_order(study, form, rng):
    differential = make_differential(study)
    written = draw_text(compile_grammar(differential, *form), rng)
    assert disagreements(written, differential) == []


@given(studies(), forms, sources)
@settings(max_examples=40, deadline=None)
def test_urgent_findings_stay_in_front_and_only_equals_change_places(study, form, rng):
    differential = make_differential(study)
    grammar = compile_grammar(differential, *form)
    for run in arranged(grammar):
        heads = [paragraph[0][0] for paragraph in run]
        assert len({(place.section, place.group) for place in heads}) == 1
    if not differential.abstains:
        told = [s.id for s in draw_text(grammar, rng).sentences if s.section == 'FINDINGS' and s.begins]
        told = [i for i in told if not i.startswith('model/')]
        assert told[0] == 'Pneumothorax/phrase'


def test_a_text_that_leaves_the_grammar_is_refused_with_the_words_where_it_does():
    grammar = compile_grammar(make_differential(one_study()))
    text = str(write_text(grammar))
    with pytest.raises(ValueError, match=r"the grammar does not hold what follows character \d+: ' and more"):
        read_text(grammar, f'{text} and more')


def one_study():
    from cxr_lib.reasoning.differential import StudyNumbers

    rng = np.random.default_rng(0)
    bill = {k: rng.normal(0, 1, 14) for k in ('base', 'image', 'note', 'interaction')}
    return StudyNumbers(rng.random(14), 'a.png', '50 yo M, cough', rng.random(14), bill)


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, 'llguidance', None)
    with pytest.raises(
        ValueError, match=r'needs the package llguidance; run: pip install "cxr_lib\[train\]"'
    ):
        guide_tokens(learn_decoder_tokenizer(['some text'], 300))


def test_a_token_outside_the_grammar_is_an_error_and_not_a_text():
    pytest.importorskip('llguidance', reason='the extra `train` is not installed')
    tokenizer = learn_decoder_tokenizer(['FINDINGS: nothing'], 300)
    guide = Guide(guide_tokens(tokenizer), [compile_grammar(make_differential(one_study()))])
    with pytest.raises(ValueError, match='the grammar was left'):
        guide.take([tokenizer.eos_token_id], [True])
