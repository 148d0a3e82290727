"""Notes without one fact, the exact truth of what it should have changed, and a measure that can fail."""

import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from benches import simulated_run, untrained
from conftest import ROOT

from cxr_lib.explanation.bill import image_tokens
from cxr_lib.explanation.facts import Changes, LeftOut, agreement, draw_studies, note_changes, rationales
from cxr_lib.explanation.facts import studies_of_run, true_changes, with_distractor, without_each_fact
from cxr_lib.explanation.facts import without_each_sentence
from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.notes.wording import WORDING, clinical_notes, plan_notes
from cxr_lib.simulation.best import enumerate_posterior
from cxr_lib.simulation.causes import COMORBIDITIES, FACTS, FINDINGS
from cxr_lib.simulation.patients import Network, draw_patients


@pytest.fixture(scope='module')
def studies():
    return draw_studies(8, seed=3)


@pytest.fixture(scope='module')
def people():
    return draw_patients(500, seed=11)


def words_of(plan):
    return {i.name: i.words for of in plan.said.values() for i in of}


def test_plans_give_the_notes_that_are_worded_from_the_same_facts(people):
    plans = plan_notes(people, people.age, people.sex, 11)
    notes = clinical_notes(people, people.age, people.sex, 11)
    assert [None if p is None else p.text() for p in plans] == notes


def test_a_note_without_a_fact_loses_its_words_and_gains_none(people):
    plans = [p for p in plan_notes(people, people.age, people.sex, 11) if p]
    plans = [replace(p, typo=None, question='eval', asked_by=frozenset()) for p in plans]
    checked = 0
    for plan in plans:
        for fact, says in plan.stated.items():
            less = plan.text({fact})
            whole = plan.text()
            own = words_of(plan)[fact] if says else WORDING[fact][0]
            assert less.count(own) == whole.count(own) - 1
            gained = set(re.findall(r'\w+', less)) - set(re.findall(r'\w+', whole))
            allowed = {'not', 'stated', *re.findall(r'\w+', plan.reason)}
            assert gained <= allowed
            checked += 1
    assert checked > 1000


def test_what_a_plan_states_is_what_was_reported(people):
    for plan, (_, row) in zip(plan_notes(people, people.age, people.sex, 11), people.iterrows()):
        if plan is None:
            continue
        reported = {f.name: row[f'reported/{f.name}'] for f in FACTS}
        assert all(reported[fact] == says for fact, says in plan.stated.items())
        present = {fact for fact, v in reported.items() if v == 1}
        assert present == {fact for fact, says in plan.stated.items() if says}


def test_a_question_goes_with_the_last_fact_that_raised_it(people):
    plans = [p for p in plan_notes(people, people.age, people.sex, 11) if p and p.asked_by]
    assert len(plans) > 50
    for plan in plans:
        plan = replace(plan, typo=None)
        raised = [f for f, says in plan.stated.items() if says and f in plan.asked_by]
        assert plan.question in plan.text(set(raised[1:])) and plan.question not in plan.text(set(raised))


def test_the_truth_is_that_of_every_state_of_a_small_network():
    network = Network(
        comorbidities=COMORBIDITIES[:1], findings=FINDINGS[:1] + FINDINGS[2:3], facts=FACTS[1:4:2]
    )
    patients = draw_patients(150, 5, network)
    stated = patients[patients['reported/orthopnea'] == 1].reset_index(drop=True)
    plans = plan_notes(stated, stated.age, stated.sex, 5, missing_rate=0)
    studies = replace(draw_studies(1), patients=stated, plans=plans, network=network)
    left = [x for x in without_each_fact(plans) if x.part == 'orthopnea']
    found = true_changes(studies, left, ('note',))
    edema = OBSERVATIONS.index('Edema')
    for i, x in enumerate(left):
        row = stated.iloc[x.study]
        odds = []
        for says in (1.0, np.nan):
            patient = pd.Series({**row, 'reported/orthopnea': says})
            p = enumerate_posterior(patient, ('note',), network)['Edema']
            odds.append(np.log(p / (1 - p)))
        assert found[i, edema] == pytest.approx(odds[0] - odds[1], abs=1e-6)
    assert len(left) > 3


def test_the_measure_is_one_for_the_truth_and_minus_one_for_its_opposite(studies):
    left = without_each_fact(studies.plans)
    truth = true_changes(studies, left)
    for sign in (1, -1):
        found = agreement(Changes(left, sign * truth, sign * truth), truth, 3)
        assert all(found[name]['value'] == pytest.approx(sign) for name in found)


def test_facts_that_are_denied_are_measured_apart(studies):
    left = without_each_fact(studies.plans)
    truth = true_changes(studies, left)
    says = np.array([x.says for x in left])
    deaf = truth * np.where(says == 1, 1, -1)[:, None]  # a model that does not read the "no"
    found = agreement(Changes(left, deaf, deaf), truth, 3)
    assert found['stated facts that bear']['value'] == pytest.approx(1)
    assert found['denied facts that bear']['value'] == pytest.approx(-1)


def test_facts_that_moved_the_answer_explain_more_of_it_than_facts_at_random(studies):
    classifier = untrained(studies.notes)
    tokens = image_tokens(classifier, studies.pixels)
    changes = note_changes(classifier, tokens, studies.notes, without_each_fact(studies.plans))
    explained = rationales(classifier, tokens, studies, changes, k=2)
    assert set(explained.study) == {i for i, plan in enumerate(studies.plans) if len(plan.stated) > 2}
    assert (explained.whole >= 0).all() and len(explained) % 14 == 0
    assert explained.comprehensiveness.mean() > explained.random_comprehensiveness.mean()


def test_the_change_of_a_sentence_is_that_of_asking_twice(studies):
    classifier = untrained(studies.notes)
    tokens = image_tokens(classifier, studies.pixels)
    left = without_each_sentence(studies.notes)
    changes = note_changes(classifier, tokens, studies.notes, left)
    one = note_changes(classifier, tokens[:1], studies.notes[:1], left[:1])
    assert np.allclose(one.log_odds, changes.log_odds[:1], atol=1e-4)
    nothing = note_changes(classifier, tokens, studies.notes, [LeftOut(2, 'nothing', studies.notes[2])])
    assert np.allclose(nothing.log_odds, 0, atol=1e-5)


def test_an_added_sentence_bears_on_nothing_and_is_new(studies):
    for x, plan in zip(with_distractor(studies.plans, 1), studies.plans):
        assert x.note.endswith(x.part) and x.part[:-1].lower() not in [w.lower() for w in plan.irrelevant]


def test_a_run_gives_its_own_test_patients_and_notes(tmp_path, monkeypatch):
    monkeypatch.setenv('CXR_HOME', str(tmp_path))
    run = simulated_run(tmp_path)
    table = pd.read_parquet(run / 'studies_with_notes.parquet')
    found = studies_of_run(run, 5, 64)
    notes = table.set_index('patient_id').note
    assert len(found) == 5 and found.notes == notes[found.patients.patient_id].tolist()
    table.assign(note='Fever.').to_parquet(run / 'studies_with_notes.parquet')
    with pytest.raises(ValueError, match='run the notes again'):
        studies_of_run(run, 5, 64)


def test_notes_without_known_facts_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv('CXR_HOME', str(tmp_path))
    with pytest.raises(ValueError, match='label_leak notes of simulated'):
        studies_of_run(simulated_run(tmp_path, notes='label_leak'), 5, 64)


def test_the_command_prints_its_table_to_the_last_line(tmp_path):
    simulated_run(tmp_path)
    command = [sys.executable, 'benchmarks/note_facts.py', '--run', 'small', '--bootstrap', '3']
    options = dict(cwd=ROOT, env=os.environ | dict(CXR_HOME=str(tmp_path), PYTHONPATH=str(ROOT)))
    out = tmp_path / 'facts.csv'
    done = subprocess.run([*command, '--out', str(out)], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    assert 'SIMULATED: ' in done.stdout and 'random_sufficiency' in done.stdout
    found = pd.read_csv(out)
    assert list(found.columns) == ['measure', 'of', 'value', 'low', 'high'] and found.value.notna().any()
    wrong = subprocess.run([*command[:2], '--run', 'nowhere'], capture_output=True, text=True, **options)
    assert wrong.returncode == 2 and 'nowhere' in wrong.stderr
