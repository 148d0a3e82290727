"""Simulated patients: the same everywhere, true to the hierarchy, known to the doctor only through their findings."""

import hashlib
from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import printed_elsewhere
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_lib.foundations.core import IMPLIES, OBSERVATIONS
from cxr_lib.simulation.anatomy import patient_anatomy
from cxr_lib.simulation.causes import COMORBIDITIES, FACTS, FINDINGS, PA_SHARE, REPORTED, SETTINGS, SIGNS
from cxr_lib.simulation.causes import Fact, Node, fact_probability, labels_from_findings, network_order
from cxr_lib.simulation.patients import CHEXPERT_COUNTS, NETWORK, Network, draw_facts, draw_patients
from cxr_lib.simulation.patients import facts_from_labels, prevalence_table
from cxr_lib.simulation.rendering import render_radiograph
from cxr_lib.simulation.strengths import FILM_CM, MEASURES, SEPARATION, measure_table


def digest(table):
    return hashlib.sha256(table.to_csv(index=False, lineterminator='\n').encode()).hexdigest()


ELSEWHERE = r"""
import hashlib
from cxr_lib.simulation.patients import draw_patients, facts_from_labels

p = draw_patients(150, 7)
for t in (p, facts_from_labels(p, 3)):
    print(hashlib.sha256(t.to_csv(index=False, lineterminator='\n').encode()).hexdigest())
"""


def test_patients_and_facts_are_the_same_in_another_process():
    there = printed_elsewhere(ELSEWHERE, hashseed='5').split()
    patients = draw_patients(150, 7)
    assert there == [digest(patients), digest(facts_from_labels(patients, 3))]


def test_patients_are_the_same_on_every_platform():
    """A fingerprint to be reproduced everywhere

    It changes only with the numbers of the network, or with numpy's stream of random numbers (NEP 19),
    and then every result changes.
    """
    patients = draw_patients(400, 7)
    whole = patients.drop(columns=[c for c in patients if c.startswith('strength/')]).fillna(-1)
    strengths = (patients.filter(like='strength/') * 1e4).round().astype('int64')
    assert (digest(whole)[:16], digest(strengths)[:16]) == ('333c540f971eea91', '1684a54e45c9fa08')


def consistent(labels):
    "Does a table obey the hierarchy, and is No Finding the absence of findings?"
    for child, parents in IMPLIES.items():
        for parent in parents:
            assert (labels[parent] >= labels[child]).all(), (child, parent)
    findings = labels[[s for s in SIGNS if s != 'Support Devices']]
    assert ((labels['No Finding'] == 1) == (findings == 0).all(axis=1)).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 60))
def test_the_hierarchy_holds_for_every_seed(seed, n):
    patients = draw_patients(n, seed)
    consistent(patients)
    assert patients.patient_id.is_unique
    assert patients.age.between(18, 90).all()
    assert patients[list(OBSERVATIONS)].isin((0, 1)).all(axis=None)


@settings(max_examples=100, deadline=None)
@given(present=st.sets(st.sampled_from(SIGNS)))
def test_the_hierarchy_holds_for_every_set_of_findings(present):
    labels = labels_from_findings({s: np.array([int(s in present)]) for s in SIGNS})
    assert tuple(labels) == OBSERVATIONS
    consistent(pd.DataFrame(labels))
    for s in present:
        assert labels[s] == 1


def test_no_patients_at_all_is_refused():
    with pytest.raises(ValueError, match='at least 1 patient'):
        draw_patients(0)


# What the doctor knows depends on the findings and on nothing else


def state(patients):
    "Name -> 0/1 of every comorbidity and finding"
    columns = {c.name: c.name for c in COMORBIDITIES} | {s: f'sign/{s}' for s in SIGNS}
    return {name: patients[column].to_numpy() for name, column in columns.items()}


def test_facts_are_drawn_from_findings_and_comorbidities_alone():
    patients = draw_patients(300, 1)
    inverted = {o: 1 - patients[o] for o in OBSERVATIONS} | {f'strength/{s}': 0.0 for s in SIGNS}
    upside_down = patients.assign(**inverted, sex='Male', age=50.0)
    a, b = (draw_facts(state(p), np.random.default_rng(0)) for p in (patients, upside_down))
    assert all(np.array_equal(a[k], b[k], equal_nan=True) for k in a)


def differences_of_strength(patients):
    "Standardised difference of a cause's strength with and without the fact, for each fact, cause and state of it"
    for fact in FACTS:
        for cause in [c for c in fact.causes if c in SIGNS]:
            for present in (0, 1):
                part = patients[patients[f'sign/{cause}'] == present]
                there = part[f'fact/{fact.name}'] == 1
                a, b = part.loc[there, f'strength/{cause}'], part.loc[~there, f'strength/{cause}']
                if min(len(a), len(b)) > 30:
                    yield (a.mean() - b.mean()) / np.sqrt(a.var() / len(a) + b.var() / len(b))


def test_given_the_findings_facts_say_nothing_more_about_the_strength_of_a_sign():
    "With a fact's causes held fixed, how strongly a sign shows on the radiograph does not depend on the fact"
    found = np.array(list(differences_of_strength(draw_patients(20_000, 4))))
    assert len(found) > 40
    assert np.abs(found).max() < 4.5 and abs(found.std() - 1) < 0.35  # as differences by chance are


def test_facts_occur_as_often_as_their_causes_say():
    patients = draw_patients(20_000, 2)
    for fact in FACTS:
        expected = fact_probability(fact, state(patients)).mean()
        seen = patients[f'fact/{fact.name}'].mean()
        assert abs(expected - seen) < 4.5 * np.sqrt(expected * (1 - expected) / len(patients)), fact.name


def test_what_is_reported_is_true_and_not_all_of_it_is():
    patients = draw_patients(4000, 3)
    for fact in FACTS:
        true, reported = patients[f'fact/{fact.name}'], patients[f'reported/{fact.name}']
        assert ((reported == true) | reported.isna()).all(), fact.name  # forgotten, never invented
    present = patients[[f'fact/{f.name}' for f in FACTS]].to_numpy() == 1
    mentioned = patients[[f'reported/{f.name}' for f in FACTS]].notna().to_numpy()
    assert abs(mentioned[present].mean() - REPORTED) < 0.01


# A patient for given labels


def test_an_implied_parent_adds_nothing_to_what_the_doctor_knows():
    labels = pd.DataFrame([dict.fromkeys(OBSERVATIONS, 0.0) | dict(sex='Female', age=60.0, Edema=1.0)] * 200)
    assert facts_from_labels(labels, 1).equals(facts_from_labels(labels.assign(**{'Lung Opacity': 1.0}), 1))


LABELLED = st.fixed_dictionaries(
    {o: st.sampled_from([1.0, 0.0, -1.0, float('nan')]) for o in OBSERVATIONS}
    | {
        'age': st.sampled_from([0.0, 55.0, 120.0, float('nan')]),
        'sex': st.sampled_from(['Female', 'Male', None]),
    }
)


@settings(max_examples=25, deadline=None)
@given(st.lists(LABELLED, min_size=1, max_size=12))
def test_any_mixture_of_labels_gives_facts(rows):
    "Uncertain, missing and contradictory labels, unknown age and sex"
    table = pd.DataFrame(rows, index=[f'row {i}' for i in range(len(rows))])
    facts = facts_from_labels(table, 0)
    assert facts.index.equals(table.index)
    assert facts[[f'fact/{f.name}' for f in FACTS]].isin((0, 1)).all(axis=None)


def test_a_missing_label_is_not_a_negative_one():
    n = 6000
    base = pd.DataFrame({o: np.nan for o in OBSERVATIONS}, index=range(n)).assign(age=60.0, sex='Male')
    fever = {
        name: facts_from_labels(base.assign(Pneumonia=value), 1)['fact/fever'].mean()
        for name, value in (('missing', np.nan), ('negative', 0.0), ('positive', 1.0))
    }
    assert fever['negative'] < fever['missing'] - 0.005 and fever['missing'] < fever['positive'] - 0.1


# Impossible parameters


def other(finding, **changes):
    "`FINDINGS` with one node changed"
    return tuple(replace(n, **changes) if n.name == finding else n for n in FINDINGS)


@pytest.mark.parametrize(
    'bad, why',
    [
        (dict(reported=1.2), 'reported.*1.2.*probability from 0 to 1'),
        (dict(reported=-0.1), 'reported.*-0.1'),
        (dict(reported=float('nan')), 'reported.*nan'),
        (dict(male_share=1.2), 'male_share.*1.2'),
        (dict(settings=SETTINGS | {'inpatient': 1.2}), r"settings\['inpatient'\] is 1.2"),
        (dict(settings=SETTINGS | {'inpatient': 0.5}), 'sums to 1.15'),
        (dict(pa_share=PA_SHARE | {'emergency': 1.2}), r"pa_share\['emergency'\] is 1.2"),
        (dict(pa_share={'emergency': 0.2}), 'a share for each setting'),
        (dict(age=(60, 0, 18, 90)), 'age is'),
        (dict(age=(60, 10, 90, 18)), 'age is'),
        (dict(age=(float('nan'), 10, 18, 90)), 'age is'),
        (dict(findings=other('Cardiomegaly', weights={'Edema': 1.0})), 'cycle through.*Cardiomegaly'),
        (dict(findings=other('Edema', weights={'Edema': 1.0})), 'cycle through.*Edema'),
        (dict(findings=other('Edema', weights={'gout': 1.0})), "parent 'gout'"),
        (dict(findings=other('Edema', bias=float('inf'))), 'Edema: the weight of .bias. is inf'),
        (dict(findings=(*FINDINGS, Node('Edema', 0))), "two nodes named 'Edema'"),
        (dict(findings=(*FINDINGS, Node('Hernia', 0))), 'Hernia'),
        (dict(findings=()), 'findings'),
        (dict(comorbidities=(*COMORBIDITIES, Node('male', 0))), 'male is the name of'),
        (dict(comorbidities=COMORBIDITIES[1:]), "parent 'heart failure'"),
        (dict(facts=(*FACTS, FACTS[0])), "two facts are named 'dyspnea'"),
        (dict(facts=(Fact('itch', 0.1, {'gout': (2.0, 'assumed')}),)), "itch has the cause 'gout'"),
        (dict(separation=SEPARATION | {'Edema': float('inf')}), 'Edema.*inf'),
        (dict(separation=SEPARATION | {'Edema': -1.0}), 'Edema.*-1'),
        (dict(separation={'Edema': 2.0}), 'separation lacks'),
    ],
)
def test_a_network_that_cannot_be_is_refused(bad, why):
    with pytest.raises(ValueError, match=why):
        Network(**bad)


@pytest.mark.parametrize(
    'args, why',
    [
        (('x', 1.2, {}), '1.2.*between 0 and 1'),
        (('x', 0.0, {}), 'between 0 and 1'),
        (('x', float('nan'), {}), 'between 0 and 1'),
        (('x', 0.5, {'Edema': (3.0, 'assumed')}), '1.5; expected a probability of at most 1'),
        (('x', 0.5, {'Edema': (-1.0, 'assumed')}), 'LR'),
        (
            ('x', 0.1, {'Edema': (0.0, 'assumed'), 'Fracture': (0.2, 'assumed')}),
            'together make the probability -',
        ),
        (('x', 0.5, {'Edema': (float('nan'), 'assumed')}), 'LR'),
        (('x', 0.1, {'Edema': (2.0, 'hearsay')}), 'unknown source'),
        (('x', 0.1, {}, 'symptom', 1.2), 'denied is 1.2'),
        (('x', 0.1, {}, 'rumour'), 'unknown kind'),
    ],
)
def test_a_fact_that_cannot_be_is_refused(args, why):
    with pytest.raises(ValueError, match=why):
        Fact(*args)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_every_cycle_is_found(data):
    "Nodes in a ring of any length, with further arrows among them"
    k = data.draw(st.integers(1, 6))
    names = [f'n{i}' for i in range(k)]
    more = data.draw(st.lists(st.tuples(st.sampled_from(names), st.sampled_from(names)), max_size=6))
    ring = {n: {names[(i + 1) % k]: 1.0} for i, n in enumerate(names)}
    nodes = tuple(Node(n, 0.0, w | {b: 1.0 for a, b in more if a == n}) for n, w in ring.items())
    with pytest.raises(ValueError, match='cycle'):
        network_order(nodes)


@settings(max_examples=50, deadline=None)
@given(st.permutations(COMORBIDITIES + FINDINGS))
def test_parents_come_first_in_whatever_order_nodes_are_written(nodes):
    seen = {'age', 'male', *SETTINGS}
    for node in network_order(tuple(nodes)):
        assert set(node.weights) <= seen
        seen.add(node.name)
    assert len(seen) == len(nodes) + 5


def test_a_small_network_draws_consistent_patients():
    small = Network(
        comorbidities=(),
        findings=(Node('Pneumonia', -1.0), Node('Support Devices', 0.0)),
        facts=(Fact('itch', 0.25, {}), Fact('fever', 0.1, {'Pneumonia': (4.0, 'assumed')})),
    )
    patients = draw_patients(4000, 1, small)
    assert (patients['Lung Opacity'] == patients.Pneumonia).all()
    assert (patients.Consolidation == patients.Pneumonia).all()
    assert (patients['No Finding'] == 1 - patients.Pneumonia).all()
    assert (patients.Fracture == 0).all()
    assert abs(patients['fact/itch'].mean() - 0.25) < 0.03
    assert list(patients.filter(like='strength/')) == ['strength/Pneumonia', 'strength/Support Devices']


# Numbers taken from elsewhere, or meant for elsewhere


def test_published_counts_account_for_every_study():
    assert set(CHEXPERT_COUNTS) == set(OBSERVATIONS)
    assert {sum(c) for c in CHEXPERT_COUNTS.values()} == {187_641}


def test_prevalences_stay_within_a_factor_of_five_of_those_of_chexpert():
    found = prevalence_table(draw_patients(10_000, 5))
    ratio = found.simulated / found['CheXpert positive']
    assert ratio.between(1 / 5, 5).all() and found.simulated.min() > 0.04, ratio


def drawn(sign, strength, seed, **more):
    "A drawn patient with one sign"
    return render_radiograph(
        {sign: strength}, sex='Male', age=50.0, projection='PA', size=192, seed=seed, **more
    )


def laid_out(sign, strength, seed):
    "The anatomy of such a patient"
    return patient_anatomy({s: strength if s == sign else 0.0 for s in SIGNS}, 'Male', 50.0, 'PA', seed)


@pytest.mark.parametrize('strength', [0.0, 1.0, 3.0])
def test_the_heart_and_mediastinum_are_drawn_as_wide_as_the_table_says(strength):
    heart, pedicle = [], []
    for seed in range(12):
        a = laid_out('Cardiomegaly', strength, seed)
        heart.append(np.ptp(a.organs['heart'][:, 0]) / (2 * a.width))
        a = laid_out('Enlarged Cardiomediastinum', strength, seed)
        m = a.organs['mediastinum']
        pedicle.append(np.ptp(m[np.abs(m[:, 1] - a.y(0.3)) < 0.03, 0]) * FILM_CM)
    assert abs(np.mean(heart) - MEASURES['Cardiomegaly'].at(strength)) < 0.015
    assert abs(np.mean(pedicle) - MEASURES['Enlarged Cardiomediastinum'].at(strength)) < 0.6


def rise_of_the_diaphragm(strength, seed):
    "Centimetres"
    a, b = laid_out('Atelectasis', strength, seed), laid_out('Atelectasis', 0.0, seed)
    return max(b.domes[s] - a.domes[s] for s in (-1, 1)) * FILM_CM


def displacement(strength, seed):
    "Centimetres, mean over the broken bones"
    return np.mean([abs(gap) for *_, gap in laid_out('Fracture', strength, seed).fractures]) * FILM_CM


def diameter_of_the_largest_nodule(strength, seed):
    "Centimetres, as measured on the mask"
    mask = drawn('Lung Lesion', strength, seed).masks['Lung Lesion']
    area = cv2.connectedComponentsWithStats(mask.astype(np.uint8))[2][1:, cv2.CC_STAT_AREA].max()
    return 2 * np.sqrt(area / np.pi) / 192 * FILM_CM / 1.05  # the image shows the body a little magnified


MEASURED = {
    'Atelectasis': rise_of_the_diaphragm,
    'Fracture': displacement,
    'Lung Lesion': diameter_of_the_largest_nodule,
}


@pytest.mark.parametrize('sign', MEASURED)
@pytest.mark.parametrize('strength', [1.5, 3.0])
def test_what_can_be_absent_is_drawn_as_large_as_the_table_says(strength, sign):
    seen = np.mean([MEASURED[sign](strength, seed) for seed in range(12)])
    expected = MEASURES[sign].at(strength)
    assert abs(seen / expected - 1) < 0.25, (seen, expected)


@pytest.mark.parametrize('sign', [s for s in SIGNS if not MEASURES[s].always])
def test_nothing_is_drawn_up_to_the_threshold_and_more_beyond_it(sign):
    m = MEASURES[sign]
    assert m.at(-2) == m.at(0.5) == 0 < m.at(1.5) < m.at(2.5) <= m.at(9) <= m.most
    masks = {
        s: [drawn(sign, s, seed).masks.get(sign, np.zeros(1)) for seed in range(4)] for s in (0.5, 1.5, 3.5)
    }
    area = [sum(mask.sum() for mask in found) for found in masks.values()]
    assert area[0] == 0 < area[1] < area[2]


def test_the_table_of_measures_covers_every_sign():
    table = measure_table()
    assert sorted(table.index) == sorted(SIGNS)
    assert (table.mean_with > table.mean_without).all()


def test_the_default_network_has_every_sign():
    assert NETWORK.signs == SIGNS
