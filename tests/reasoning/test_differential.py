"""The differential: urgency, hierarchy, abstention, and evidence that comes from where it says."""

import json

from hypothesis import given, settings
from jsonschema import Draft202012Validator
from made_up import studies

from cxr_lib.foundations.core import IMPLIES, OBSERVATIONS
from cxr_lib.reasoning.certainty import phrase_of
from cxr_lib.reasoning.differential import NAMED_FROM, URGENT, Differential, make_differential


@given(studies())
@settings(max_examples=150, deadline=None)
def test_urgent_ones_come_first_whatever_their_probability(study):
    found = make_differential(study)
    assert tuple(d.observation for d in found.diagnoses[: len(URGENT)]) == URGENT
    assert [d.rank for d in found.diagnoses] == list(range(1, len(OBSERVATIONS)))
    others = [d.stated for d in found.diagnoses[len(URGENT) :]]
    assert others == sorted(others, reverse=True)


@given(studies())
@settings(max_examples=150, deadline=None)
def test_no_phrase_says_more_than_the_probability(study):
    for d in make_differential(study).diagnoses:
        assert bool(d.phrase) != bool(d.no_phrase)
        if d.phrase:
            assert d.phrase == phrase_of(d.stated).name
            assert abs(d.stated - 0.5) <= abs(d.probability - 0.5) + 1e-12
            assert d.conformal != 'abstain'


@given(studies())
@settings(max_examples=150, deadline=None)
def test_nothing_is_stated_below_what_implies_it(study):
    found = make_differential(study)
    learned = OBSERVATIONS if study.certainty is None else study.certainty['learned']
    for child, parents in IMPLIES.items():
        for parent in set(parents) & set(learned):
            if child in learned:
                assert found[child].stated <= found[parent].stated + 1e-12


@given(studies())
@settings(max_examples=150, deadline=None)
def test_evidence_has_its_sign_its_size_and_its_place_in_the_note(study):
    found = make_differential(study)
    for d in (found.normal, *found.diagnoses):
        for e in (*d.evidence_for, *d.evidence_against):
            assert (e.logit > 0) == (e in d.evidence_for) and abs(e.logit) >= NAMED_FROM
            if e.source in ('image', 'measurement'):
                assert e.start is None and not e.text
                assert (e.source == 'measurement') == (e.measurement is not None)
            else:
                assert study.note[e.start : e.end] == e.text
        if study.note is None:
            assert d.note is None and {e.source for e in d.evidence_for} <= {'image', 'measurement'}


@given(studies())
@settings(max_examples=60, deadline=None)
def test_it_survives_json_and_obeys_its_schema(study):
    found = make_differential(study)
    text = found.model_dump_json()
    assert Differential.model_validate_json(text) == found
    Draft202012Validator(Differential.model_json_schema()).validate(json.loads(text))


@given(studies())
@settings(max_examples=60, deadline=None)
def test_a_failed_check_of_the_input_leaves_no_phrase(study):
    found = make_differential(study)
    if study.abstains:
        assert all(d.phrase is None for d in (found.normal, *found.diagnoses))
        assert found.abstains == list(study.abstains)
