"""Simulated patients: the same everywhere, never against the hierarchy, and known to the doctor only through their findings."""
import hashlib
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_lib.core import IMPLIES, OBSERVATIONS
from cxr_lib.patients import COMORBIDITIES, FACTS, REPORTED, SIGNS, draw_facts, draw_patients, fact_probability, facts_from_labels, labels_from_findings


def digest(table): return hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()


def test_patients_and_facts_are_the_same_in_another_process():
    code = ("import hashlib; from cxr_lib.patients import draw_patients, facts_from_labels\np = draw_patients(150, 7)\n"
            "for t in (p, facts_from_labels(p, 3)): print(hashlib.sha256(t.to_csv(index=False).encode()).hexdigest())")
    there = subprocess.run([sys.executable, '-c', code], env={**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHONHASHSEED': '5'}, capture_output=True, text=True, check=True).stdout.split()
    patients = draw_patients(150, 7)
    assert there == [digest(patients), digest(facts_from_labels(patients, 3))]


def consistent(labels):
    "Does a table obey the hierarchy, and is No Finding the absence of findings?"
    for child, parents in IMPLIES.items():
        for parent in parents: assert (labels[parent] >= labels[child]).all(), (child, parent)
    findings = labels[[s for s in SIGNS if s != 'Support Devices']]
    assert ((labels['No Finding'] == 1) == (findings == 0).all(axis=1)).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 60))
def test_the_hierarchy_holds_for_every_seed(seed, n):
    patients = draw_patients(n, seed)
    consistent(patients)
    assert patients.patient_id.is_unique and patients.age.between(18, 90).all() and patients[list(OBSERVATIONS)].isin((0, 1)).all(axis=None)


@settings(max_examples=100, deadline=None)
@given(present=st.sets(st.sampled_from(SIGNS)))
def test_the_hierarchy_holds_for_every_set_of_findings(present):
    labels = labels_from_findings({s: np.array([int(s in present)]) for s in SIGNS})
    assert tuple(labels) == OBSERVATIONS
    consistent(pd.DataFrame(labels))
    for s in present: assert labels[s] == 1


def test_no_patients_at_all_is_refused():
    with pytest.raises(ValueError, match='at least 1 patient'): draw_patients(0)


# What the doctor knows depends on the findings and on nothing else

def state(patients): return {**{c.name: patients[c.name].to_numpy() for c in COMORBIDITIES}, **{s: patients[f'sign/{s}'].to_numpy() for s in SIGNS}}


def test_facts_are_drawn_from_findings_and_comorbidities_alone():
    patients = draw_patients(300, 1)
    upside_down = patients.assign(**{o: 1 - patients[o] for o in OBSERVATIONS}, **{f'strength/{s}': 0. for s in SIGNS}, sex='Male', age=50.)
    a, b = (draw_facts(state(p), np.random.default_rng(0)) for p in (patients, upside_down))
    assert all(np.array_equal(a[k], b[k], equal_nan=True) for k in a)


def test_given_the_findings_facts_say_nothing_more_about_the_strength_of_a_sign():
    "With a fact's causes held fixed, how strongly a sign shows on the film does not depend on the fact"
    patients = draw_patients(20_000, 4)
    found = []
    for fact in FACTS:
        for cause in fact.causes:
            if cause not in SIGNS: continue
            for present in (0, 1):
                part = patients[patients[f'sign/{cause}'] == present]
                there = part[f'fact/{fact.name}'] == 1
                a, b = part.loc[there, f'strength/{cause}'], part.loc[~there, f'strength/{cause}']
                if min(len(a), len(b)) > 30: found.append((a.mean() - b.mean())/np.sqrt(a.var()/len(a) + b.var()/len(b)))
    found = np.array(found)
    assert len(found) > 40 and np.abs(found).max() < 4.5 and abs(found.std() - 1) < .35          # as differences by chance are


def test_facts_occur_as_often_as_their_causes_say():
    patients = draw_patients(20_000, 2)
    for fact in FACTS:
        expected, seen = fact_probability(fact, state(patients)).mean(), patients[f'fact/{fact.name}'].mean()
        assert abs(expected - seen) < 4.5*np.sqrt(expected*(1 - expected)/len(patients)), fact.name


def test_what_is_reported_is_true_and_not_all_of_it_is():
    patients = draw_patients(4000, 3)
    for fact in FACTS:
        true, reported = patients[f'fact/{fact.name}'], patients[f'reported/{fact.name}']
        assert ((reported == true) | reported.isna()).all(), fact.name                            # forgotten, never invented
    present = patients[[f'fact/{f.name}' for f in FACTS]].to_numpy() == 1
    assert abs(patients[[f'reported/{f.name}' for f in FACTS]].notna().to_numpy()[present].mean() - REPORTED) < .01


# A patient for given labels

def test_an_implied_parent_adds_nothing_to_what_the_doctor_knows():
    labels = pd.DataFrame([{o: 0. for o in OBSERVATIONS} | dict(sex='Female', age=60., Edema=1.)]*200)
    assert facts_from_labels(labels, 1).equals(facts_from_labels(labels.assign(**{'Lung Opacity': 1.}), 1))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_mixture_of_labels_gives_facts(data):
    "Uncertain, missing and contradictory labels, unknown age and sex"
    rows = data.draw(st.lists(st.fixed_dictionaries({o: st.sampled_from([1., 0., -1., float('nan')]) for o in OBSERVATIONS}
                                                    | {'age': st.sampled_from([0., 55., 120., float('nan')]), 'sex': st.sampled_from(['Female', 'Male', None])}), min_size=1, max_size=12))
    table = pd.DataFrame(rows, index=[f'row {i}' for i in range(len(rows))])
    facts = facts_from_labels(table, 0)
    assert facts.index.equals(table.index) and facts[[f'fact/{f.name}' for f in FACTS]].isin((0, 1)).all(axis=None)


def test_a_missing_label_is_not_a_negative_one():
    n = 6000
    base = pd.DataFrame({o: np.nan for o in OBSERVATIONS}, index=range(n)).assign(age=60., sex='Male')
    fever = {name: facts_from_labels(base.assign(Pneumonia=value), 1)['fact/fever'].mean() for name, value in (('missing', np.nan), ('negative', 0.), ('positive', 1.))}
    assert fever['negative'] < fever['missing'] - .005 and fever['missing'] < fever['positive'] - .1
