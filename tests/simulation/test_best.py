"""The best possible answer: equal to enumeration and to nature, calibrated, beyond the reach of any learner; and the dial of leakage."""

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
from scipy import special, stats

from cxr_lib.simulation.best import (
    BEST,
    auroc_by_condition,
    best_possible,
    dial_bounds,
    dial_posterior,
    elimination_order,
    enumerate_posterior,
    evidence_columns,
    label_inputs,
    marginals,
    posterior,
    prior,
    turn_dial,
)
from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.metrics.ranking import auroc
from cxr_lib.metrics.comparison import delong_test
from cxr_lib.simulation.patients import (
    NETWORK,
    SIGNS,
    Fact,
    Network,
    Node,
    draw_patients,
    labels_from_findings,
)

LABELS = list(OBSERVATIONS)
CONDITIONS = {
    'demographics': ('demographics',),
    'note': ('note',),
    'image': ('image',),
    'film': ('film',),
    'fused': ('note', 'image'),
}


def small_network(**more):
    "Four findings of every kind: a parent and a child of the hierarchy, one outside it, and a device"
    return Network(
        **(
            dict(
                settings={'ward': 0.4, 'clinic': 0.6},
                pa_share={'ward': 0.2, 'clinic': 0.9},
                comorbidities=(Node('heart failure', -1, {'ward': 0.8}),),
                findings=(
                    Node('Cardiomegaly', -1, {'heart failure': 1.5}),
                    Node('Lung Opacity', -1.5, {'heart failure': 0.4}),
                    Node('Pneumonia', -1.2, {'ward': 0.5, 'Cardiomegaly': 0.4}),
                    Node('Support Devices', -1.0, {'ward': 1.0}),
                ),
                facts=(
                    Fact('dyspnea', 0.2, {'Cardiomegaly': (3.0, 'assumed'), 'Pneumonia': (2.0, 'assumed')}),
                    Fact('fever', 0.1, {'Pneumonia': (5.0, 'assumed')}, denied=0.4),
                    Fact('hypertension', 0.3, {'heart failure': (2.0, 'assumed')}),
                ),
                separation={
                    'Cardiomegaly': 1.5,
                    'Lung Opacity': 1.0,
                    'Pneumonia': 1.2,
                    'Support Devices': 2.0,
                },
            )
            | more
        )
    )


@pytest.fixture(scope='module')
def crowd():
    return draw_patients(12_000, 21)


@pytest.fixture(scope='module')
def known(crowd):
    return {name: posterior(crowd, g) for name, g in CONDITIONS.items()}


def density(strength, sign, present, network):
    "Of a strength, given whether the patient has the finding; some of those who have it do not show it"
    shown, absent = stats.norm.pdf(strength - network.separation[sign]), stats.norm.pdf(strength)
    return np.where(np.asarray(present) == 1, (1 - network.occult) * shown + network.occult * absent, absent)


def surprise(labels, p):
    "Positives counted less positives expected, in standard errors"
    return ((labels - p).sum() / np.sqrt((p * (1 - p)).sum())).to_numpy()


def expected_auroc(p):
    "The AUROC that patients with these probabilities show on average"
    return auroc(np.repeat([1, 0], len(p)), np.tile(p, 2), np.concatenate([p, 1 - p]))


# Against enumeration


@st.composite
def networks(draw):
    "Any small network: up to four findings, two comorbidities, three facts with up to three causes"
    number = st.floats(-2, 2).map(lambda x: round(x, 2))
    signs, sick = (
        draw(st.lists(st.sampled_from(SIGNS), min_size=1, max_size=4, unique=True)),
        draw(st.lists(st.sampled_from(['COPD', 'malignancy']), max_size=2, unique=True)),
    )
    nodes, before = [], ['age', 'male', 'ward', 'clinic']
    for name in [*sick, *signs]:
        nodes.append(
            Node(
                name,
                draw(number),
                {p: draw(number) for p in draw(st.lists(st.sampled_from(before), max_size=3, unique=True))},
            )
        )
        before.append(name)
    facts = tuple(
        Fact(
            f'fact {i}',
            draw(st.floats(0.05, 0.3)),
            {
                c: (draw(st.floats(1, 3)), 'assumed')
                for c in draw(st.lists(st.sampled_from([*sick, *signs]), max_size=3, unique=True))
            },
            denied=draw(st.floats(0, 1)),
        )
        for i in range(draw(st.integers(0, 3)))
    )
    return Network(
        settings={'ward': 0.3, 'clinic': 0.7},
        pa_share={'ward': draw(st.floats(0, 1)), 'clinic': 0.5},
        comorbidities=tuple(nodes[: len(sick)]),
        findings=tuple(nodes[len(sick) :]),
        facts=facts,
        reported=draw(st.floats(0.1, 1)),
        occult=draw(st.sampled_from((0.0, 0.15, 0.6))),
        separation={s: draw(st.floats(0, 3)) for s in signs},
    )


@settings(max_examples=25, deadline=None)
@given(network=networks(), seed=st.integers(0, 1000))
def test_elimination_gives_what_enumeration_gives_on_any_network(network, seed):
    patients = draw_patients(2, seed, network)
    for g in (('demographics',), ('note',), ('image',), ('note', 'image')):
        slow = patients.apply(lambda row: enumerate_posterior(row, g, network), axis=1)
        assert np.abs(posterior(patients, g, network=network) - slow).max(axis=None) < 1e-10


def test_elimination_gives_what_enumeration_gives_on_the_whole_network(crowd, known):
    "All 1.6 million states of one patient"
    patient = crowd.iloc[crowd[LABELS].sum(axis=1).argmax()]
    slow = enumerate_posterior(patient, ('note', 'image'))
    assert np.abs(known['fused'].loc[patient.name] - slow).max() < 1e-12 and slow.between(0.001, 0.999).any()


@settings(max_examples=60, deadline=None)
@given(there=st.sets(st.sampled_from(SIGNS), min_size=1), present=st.sets(st.sampled_from(SIGNS)))
def test_the_hierarchy_as_ors_is_the_hierarchy(there, present):
    "Whatever findings a network has, and whichever of them are present"
    network = Network(comorbidities=(), facts=(), findings=tuple(Node(s, 0.0) for s in SIGNS if s in there))
    labels = labels_from_findings({s: np.array([int(s in present)]) for s in there})
    inputs, value = label_inputs(network), {s: s in present for s in there}
    for o in inputs:
        value[f'label/{o}'] = any(value[i] for i in inputs[o])  # children come before parents
    for o in OBSERVATIONS:
        found = (
            not value['label/No Finding']
            if o == 'No Finding'
            else value.get(f'label/{o}', value.get(o, False))
        )
        assert found == bool(labels[o][0]), o


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_marginals_of_any_product_of_tables_are_exact(data):
    "Random factors over up to five variables, some of them with impossible states"
    cards = {v: data.draw(st.integers(2, 3)) for v in 'abcde'[: data.draw(st.integers(1, 5))]}
    rng, factors = np.random.default_rng(data.draw(st.integers(0, 10**6))), []
    for _ in range(data.draw(st.integers(1, 6))):
        scope = tuple(
            data.draw(st.lists(st.sampled_from(sorted(cards)), min_size=1, max_size=3, unique=True))
        )
        table = rng.random([cards[v] for v in scope] + [2])
        factors.append((scope, np.where((rng.random(table.shape) < 0.1) & (table < table.max()), 0.0, table)))
    cards = {v: k for v, k in cards.items() if any(v in s for s, _ in factors)}
    joint = 1.0
    for scope, table in factors:
        at = sorted(range(len(scope)), key=lambda i: scope[i])
        size = dict(zip(scope, table.shape))
        joint = joint * table.transpose(*at, len(scope)).reshape(
            [size.get(v, 1) for v in sorted(cards)] + [2]
        )
    joint = np.broadcast_to(joint, [*(cards[v] for v in sorted(cards)), 2])
    total = joint.sum(axis=tuple(range(len(cards))))
    with np.errstate(divide='ignore'):
        logs = [(s, np.log(t)) for s, t in factors]
    found, log_evidence = marginals(logs, elimination_order([s for s, _ in factors], cards))
    with np.errstate(divide='ignore'):
        assert np.allclose(log_evidence, np.log(total))
    possible = total > 0
    for i, v in enumerate(sorted(cards)):
        p = joint.sum(axis=tuple(a for a in range(len(cards)) if a != i))
        assert np.allclose(found[v][:, possible], p[:, possible] / total[possible])


# Against nature


def test_the_posterior_of_each_note_is_the_share_counted_among_patients_with_that_note():
    network = small_network()
    patients = draw_patients(200_000, 5, network)
    key = patients.filter(like='reported/').fillna(2).to_numpy().astype(int) @ [9, 3, 1]
    counted, size = patients[LABELS].groupby(key).mean(), patients.groupby(key).size()
    exact = (
        posterior(patients.loc[~pd.Series(key).duplicated().to_numpy()], 'note', network=network)
        .set_index(pd.unique(key))
        .loc[counted.index]
    )  # no node depends on age or sex here
    z = (counted - exact) / np.sqrt((exact * (1 - exact)).clip(1e-12).div(size, axis=0))
    varied = [o for o in LABELS if 0 < exact[o].mean() < 1 - 1e-9]
    assert (
        len(counted) == 27
        and len(varied) == 7
        and np.abs(z[varied]).max(axis=None) < 4.5
        and abs(z[varied].std(axis=None) - 1) < 0.25
    )


def test_the_posterior_of_a_film_is_that_of_simulated_patients_weighted_by_likelihood():
    "Likelihood weighting: states drawn forwards, weighted by how well they explain a film and a note"
    network = small_network()
    many, few = draw_patients(100_000, 6, network), draw_patients(12, 7, network)
    exact = posterior(few, ('note', 'image'), network=network)
    for row in few.index:
        w = np.ones(len(many))
        for s in network.signs:
            w *= density(few.loc[row, f'strength/{s}'], s, many[f'sign/{s}'], network)
        w *= np.abs((few.loc[row, 'projection'] == 'AP') - many.setting.map(network.pa_share))
        for f in network.facts:
            said, causes = few.loc[row, f'reported/{f.name}'], [(c, lr) for c, (lr, _) in f.causes.items()]
            absent = (1 - f.false_positive_rate) * np.prod(
                [
                    np.where(
                        many[f'sign/{c}' if f'sign/{c}' in many else c] == 1,
                        (1 - lr * f.false_positive_rate) / (1 - f.false_positive_rate),
                        1,
                    )
                    for c, lr in causes
                ],
                axis=0,
            )
            w *= (
                network.reported * (1 - absent)
                if said == 1
                else f.denied * absent
                if said == 0
                else (1 - network.reported) * (1 - absent) + (1 - f.denied) * absent
            )
        share, effective = (w @ many[LABELS].to_numpy()) / w.sum(), w.sum() ** 2 / (w**2).sum()
        assert (
            effective > 500
            and (
                np.abs(share - exact.loc[row])
                < 5 * np.sqrt(exact.loc[row] * (1 - exact.loc[row]) / effective) + 1e-9
            ).all()
        )


@pytest.mark.parametrize('condition', CONDITIONS)
def test_posteriors_are_calibrated(crowd, known, condition):
    "In the mean, and in each tenth of the patients"
    p, labels = known[condition], crowd[LABELS]
    assert np.abs(surprise(labels, p)).max() < 4
    found = []
    for o in LABELS:
        tenth = pd.qcut(p[o], 10, labels=False, duplicates='drop')
        found += [
            (g.iloc[:, 0] - g.iloc[:, 1]).sum() / np.sqrt((g.iloc[:, 1] * (1 - g.iloc[:, 1])).sum())
            for _, g in pd.concat([labels[o], p[o]], axis=1).groupby(tenth)
            if g.iloc[:, 1].sum() > 10
        ]
    assert len(found) > 50 and np.abs(found).max() < 4.5 and abs(np.std(found) - 1) < 0.25


def test_the_prior_is_the_prevalence(crowd, known):
    p = prior()
    assert (np.abs(p - crowd[LABELS].mean()) / np.sqrt(p * (1 - p) / len(crowd))).max() < 4
    assert (
        np.allclose(posterior(crowd.head(3), ()), p)
        and np.abs(known['demographics'].mean() - p).max() < 0.005
    )


# More evidence, less evidence


def test_more_evidence_never_tells_less(known):
    area = pd.DataFrame({c: {o: expected_auroc(p[o].to_numpy()) for o in LABELS} for c, p in known.items()})
    for less, more in (
        ('demographics', 'note'),
        ('demographics', 'film'),
        ('film', 'image'),
        ('image', 'fused'),
        ('note', 'fused'),
    ):
        assert (area[less] < area[more] + 0.0005).all() and area[less].mean() < area[more].mean(), (
            less,
            more,
        )


@pytest.mark.parametrize('condition', ['note', 'image', 'fused'])
def test_boosted_trees_come_close_to_the_bound_and_never_above_it(crowd, known, condition):
    "Trained on 60,000 patients; an observation with causes of its own, and the hardest: the absence of twelve findings"
    from sklearn.ensemble import HistGradientBoostingClassifier

    train, g = draw_patients(60_000, 101), CONDITIONS[condition]
    seen, unseen = evidence_columns(train, g), evidence_columns(crowd, g)
    rounds = {'note': (0.05, 250), 'image': (0.05, 250), 'fused': (0.1, 500)}[condition]
    for o in ('Edema', 'No Finding'):
        trees = HistGradientBoostingClassifier(
            learning_rate=rounds[0],
            max_iter=rounds[1],
            max_leaf_nodes=6,
            l2_regularization=5.0,
            min_samples_leaf=60,
            random_state=0,
        ).fit(seen, train[o])
        d = delong_test(crowd[o], known[condition][o], trees.predict_proba(unseen)[:, 1])
        assert d['auc_a'] - d['auc_b'] < 0.01 and d['z'] > -3, (o, d)


def test_a_request_without_a_note_leaves_what_the_film_shows(crowd, known):
    few = crowd.head(200)
    has_note = np.arange(200) % 3 > 0
    alone, fused = posterior(few, 'note', has_note), posterior(few, ('note', 'image'), has_note)
    assert np.allclose(alone[~has_note], prior()) and np.allclose(
        alone[has_note], known['note'].head(200)[has_note]
    )
    assert np.allclose(fused[~has_note], known['image'].head(200)[~has_note]) and np.allclose(
        fused[has_note], known['fused'].head(200)[has_note]
    )


def test_a_note_that_mentions_nothing_is_not_a_missing_note(crowd):
    silent = crowd.head(50).assign(**{f'reported/{f.name}': np.nan for f in NETWORK.facts})
    assert (
        posterior(silent, 'note')['No Finding'] > posterior(silent, 'demographics')['No Finding'] + 0.01
    ).all()  # silence is reassuring


def test_the_answer_is_computed_from_the_evidence_alone(crowd, known):
    "Labels, latent findings and the order of the rows do not matter"
    few = crowd.head(300).iloc[::-1]
    blind = few.drop(
        columns=[
            c
            for c in few
            if c.startswith(('sign/', 'fact/')) or c in LABELS or c in ('setting', 'patient_id')
        ]
    )
    for name, g in CONDITIONS.items():
        assert np.allclose(posterior(blind, g), known[name].loc[blind.index], atol=1e-12)


@settings(max_examples=10, deadline=None)
@given(size=st.floats(0, 1e6), seed=st.integers(0, 1000))
def test_absurd_strengths_give_probabilities(size, seed):
    few = draw_patients(5, 3)
    few[[f'strength/{s}' for s in SIGNS]] = np.random.default_rng(seed).uniform(-size, size, (5, len(SIGNS)))
    for g in ('film', ('note', 'image')):
        p = posterior(few, g).to_numpy()
        assert p.min() >= 0 and p.max() <= 1 + 1e-12


@pytest.mark.parametrize(
    'change, g, why',
    [
        (lambda t: t, ('notes',), "unknown evidence 'notes'"),
        (lambda t: t.drop(columns='reported/fever'), ('note',), 'lacks reported/fever'),
        (lambda t: t.drop(columns='strength/Edema'), ('image',), 'lacks strength/Edema'),
        (lambda t: t.assign(age=[50.0, np.nan, 60.0]), ('note',), 'row b: age is nan'),
        (lambda t: t.assign(sex=['Male', 'Female', None]), ('image',), 'row c: sex'),
        (lambda t: t.assign(projection=['PA', 'LL', 'AP']), ('image',), "row b: projection is 'LL'"),
        (
            lambda t: t.assign(**{'strength/Edema': [0.0, np.inf, 0.0]}),
            ('film',),
            'row b: strength/Edema is inf',
        ),
    ],
)
def test_evidence_that_is_missing_or_impossible_is_named(change, g, why):
    table = draw_patients(3, 1).set_index(pd.Index(list('abc')))
    with pytest.raises(ValueError, match=why):
        posterior(change(table), g)


def test_predictions_have_the_names_that_the_evaluation_knows(crowd):
    from cxr_lib.metrics.predictions import CONDITIONS as NAMES

    few = crowd.head(400)
    found = best_possible(few, np.arange(400) % 20 > 0)
    assert (
        set(BEST) <= set(NAMES)
        and list(found) == [f'{c}/{o}' for c in BEST for o in OBSERVATIONS]
        and found.index.equals(few.index)
    )
    table = auroc_by_condition(few, found, n_bootstrap=30)
    assert (table.xs('low', axis=1, level=1) <= table.xs('auroc', axis=1, level=1) + 1e-9).all(
        axis=None
    ) and list(table.index) == [*LABELS, 'Mean']
    assert (
        abs(table.loc['Mean', ('best_fused', 'auroc')] - table.loc[LABELS, ('best_fused', 'auroc')].mean())
        < 1e-12
    )
    drawn = best_possible(few, drawn_only=True)
    assert np.allclose(
        drawn.filter(like='best_note'), best_possible(few).filter(like='best_note')
    ) and not np.allclose(drawn.filter(like='best_image'), found.filter(like='best_image'))


# The dial


def turned(table, dial, seed=0, network=NETWORK):
    return table.drop(columns=[c for c in table if c.startswith('reported/')]).join(
        turn_dial(table, dial, seed, network)
    )


DIALS = (0.0, 0.2, 0.4, 0.5, 0.7, 0.9, 1.0)


@pytest.fixture(scope='module')
def dials(crowd):
    part = crowd.head(2500)
    return {
        d: (
            turned(part, d),
            {c: dial_posterior(turned(part, d), d, CONDITIONS[c]) for c in ('note', 'fused')},
        )
        for d in DIALS
    }


def test_the_dial_reads_nothing_the_clinical_note_or_the_label(crowd, known, dials):
    part = crowd.head(2500)
    assert np.allclose(dials[0.0][1]['note'], known['demographics'].head(2500)) and np.allclose(
        dials[0.0][1]['fused'], known['image'].head(2500)
    )
    assert all(
        np.array_equal(dials[0.5][0][c], part[c], equal_nan=True) for c in part.filter(like='reported/')
    ) and dials[0.5][0].filter(like='named/').isna().all(axis=None)
    for c in ('note', 'fused'):
        assert np.allclose(dials[0.5][1][c], known[c].head(2500)) and np.allclose(
            dials[1.0][1][c], part[LABELS]
        )
    assert (dials[1.0][0].filter(like='named/').notna().to_numpy() == (part[LABELS] == 1).to_numpy()).all()


def test_at_zero_the_facts_are_independent_of_the_labels(crowd):
    stranger = turn_dial(crowd, 0.0, 3).filter(like='reported/').eq(1)
    for f in NETWORK.facts:  # age explains what little is left
        for cause in f.causes:
            o = cause if cause in OBSERVATIONS else None
            if o is None or 'age' in next(n for n in NETWORK.findings if n.name == o).weights:
                continue
            said, there = stranger[f'reported/{f.name}'], crowd[f'sign/{o}'] == 1
            p = said.mean()
            z = (said[there].mean() - said[~there].mean()) / np.sqrt(
                p * (1 - p) * (1 / there.sum() + 1 / (~there).sum())
            )
            assert abs(z) < 4.5, (f.name, o)


@pytest.mark.parametrize('dial', DIALS)
def test_posteriors_are_calibrated_wherever_the_dial_stands(crowd, dials, dial):
    labels = crowd.head(2500)[LABELS]
    for c, p in dials[dial][1].items():
        p = p.clip(1e-12, 1 - 1e-12)
        assert np.abs(surprise(labels, p)).max() < 4.5, c
        sure = (p - 0.5).abs() > 0.3  # and among those who seem sure
        sure = sure.loc[:, sure.sum() > 100]
        z = surprise(labels[sure.columns].where(sure), p[sure.columns].where(sure))
        assert np.abs(z).max() < 4.5, c


def test_turning_the_dial_up_tells_more(crowd, known, dials):
    "Mutual information and best possible AUROC, for every observation"
    base = known['demographics'].head(2500)
    q = {d: dials[d][1]['note'] for d in DIALS}
    bits = np.array(
        [(special.rel_entr(q[d], base) + special.rel_entr(1 - q[d], 1 - base)).mean() for d in DIALS]
    ) / np.log(2)
    assert np.allclose(bits[0], 0) and (np.diff(bits, axis=0) > 0).all()
    entropy = (special.entr(base) + special.entr(1 - base)).mean().to_numpy() / np.log(2)
    assert (
        np.abs(bits[-1] / entropy - 1).max() < 0.15 and abs(bits[-1].mean() / entropy.mean() - 1) < 0.03
    )  # all there is to tell
    for c in ('note', 'fused'):
        area = np.array([[expected_auroc(dials[d][1][c][o].to_numpy()) for o in LABELS] for d in DIALS])
        assert (np.diff(area, axis=0) > -0.002).all() and (
            area[-1] > area[0]
        ).all()  # common patients, so only rounding of the sample is left


def test_a_higher_position_gives_away_all_that_a_lower_one_does(crowd):
    few = crowd.head(500)
    at = {d: turn_dial(few, d, 4) for d in (0.1, 0.3, 0.6, 0.8, 1.0)}
    own = {
        d: np.all([np.isclose(t[c], few[c], equal_nan=True) for c in few.filter(like='reported/')], axis=0)
        for d, t in at.items()
    }
    assert (
        (own[0.1] <= own[0.3]).all()
        and own[0.6].all()
        and 0.15 < own[0.1].mean() < 0.3
        and 0.5 < own[0.3].mean() < 0.7
    )
    named = {d: t.filter(like='named/').notna().to_numpy() for d, t in at.items()}
    assert (
        not named[0.3].any()
        and (named[0.6] <= named[0.8]).all()
        and (named[0.8] <= named[1.0]).all()
        and abs(named[0.8].sum() / named[1.0].sum() - 0.6) < 0.05
    )


def test_the_mixture_below_the_middle_is_bayes_rule_written_out():
    "Small network, note and film: own facts with probability 0.6, else a stranger's, summed over all states"
    network = small_network()
    patients = turned(draw_patients(25, 9, network), 0.3, 1, network)
    exact, own = dial_posterior(patients, 0.3, ('note', 'image'), network=network), 0.6
    settings_, names = (
        list(network.settings),
        ['heart failure', 'Cardiomegaly', 'Lung Opacity', 'Pneumonia', 'Support Devices'],
    )
    states = [(s, *bits) for s in settings_ for bits in np.ndindex(*[2] * 5)]

    def chance(state):
        v = dict(zip(['setting', *names], state)) | {s: float(state[0] == s) for s in settings_}
        p = network.settings[state[0]]
        for n in network.order():
            q = special.expit(n.bias + sum(w * v[k] for k, w in n.weights.items()))
            p *= q if v[n.name] else 1 - q
        return p, v

    def says(row, v):
        p = 1.0
        for f in network.facts:
            absent = 1 - f.false_positive_rate
            for c, (lr, _) in f.causes.items():
                absent *= (1 - lr * f.false_positive_rate) / (1 - f.false_positive_rate) if v[c] else 1
            said = row[f'reported/{f.name}']
            p *= (
                network.reported * (1 - absent)
                if said == 1
                else f.denied * absent
                if said == 0
                else (1 - network.reported) * (1 - absent) + (1 - f.denied) * absent
            )
        return p

    for i, row in patients.iterrows():
        all_states = [chance(s) for s in states]
        anybody = sum(p * says(row, v) for p, v in all_states)
        total, edema = 0.0, {o: 0.0 for o in OBSERVATIONS}
        for p, v in all_states:
            shows = np.prod([density(row[f'strength/{s}'], s, v[s], network) for s in network.signs]) * (
                network.pa_share[v['setting']]
                if row.projection == 'PA'
                else 1 - network.pa_share[v['setting']]
            )
            w = p * shows * (own * says(row, v) + (1 - own) * anybody)
            total += w
            labels = labels_from_findings({s: np.array([v[s]]) for s in network.signs})
            for o in OBSERVATIONS:
                edema[o] += w * labels[o][0]
        assert np.allclose(exact.loc[i], [edema[o] / total for o in OBSERVATIONS], atol=1e-10)


def test_the_report_of_the_dial_holds_every_position_and_observation(crowd):
    found = dial_bounds(crowd.head(300), dials=(0.0, 0.5, 1.0), n_bootstrap=10)
    assert len(found) == 3 * 15 and (found.groupby('observation').bits.diff().dropna() > 0).all()
    at = found.set_index(['dial', 'observation'])
    assert (
        np.allclose(at.loc[1.0, 'best_note'].dropna(), 1)
        and np.allclose(at.loc[0.0, 'best_fused'], at.loc[0.0, 'best_image'])
        and at.loc[(0.0, 'Mean'), 'bits'] == 0
    )


@pytest.mark.parametrize('dial', [-0.1, 1.2, float('nan')])
def test_a_dial_beyond_its_ends_is_refused(dial):
    with pytest.raises(ValueError, match='dial is'):
        turn_dial(draw_patients(2, 0), dial)
    with pytest.raises(ValueError, match='dial is'):
        dial_posterior(draw_patients(2, 0), dial)


def test_the_dial_works_on_labels_with_gaps():
    "As in CheXpert: uncertain and missing labels, unknown age and sex"
    table = draw_patients(20, 2).assign(age=np.nan, sex=None, Edema=-1.0, Fracture=np.nan)
    facts = turn_dial(table, 0.9, 0)
    assert facts[['named/Edema', 'named/Fracture']].isna().all(axis=None) and facts.filter(
        like='reported/'
    ).isin((0, 1)).any(axis=None)


def test_dial_and_posterior_are_the_same_in_another_process():
    code = (
        "import hashlib; from cxr_lib.simulation.best import posterior, turn_dial; from cxr_lib.simulation.patients import draw_patients\np = draw_patients(60, 7)\n"
        "for t in (turn_dial(p, .3, 1), turn_dial(p, .8, 1), posterior(p).round(9)): print(hashlib.sha256(t.to_csv(index=False, lineterminator='\\n').encode()).hexdigest())"
    )
    there = subprocess.run(
        [sys.executable, '-c', code],
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHONHASHSEED': '9'},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    p = draw_patients(60, 7)
    assert there == [
        hashlib.sha256(t.to_csv(index=False, lineterminator='\n').encode()).hexdigest()
        for t in (turn_dial(p, 0.3, 1), turn_dial(p, 0.8, 1), posterior(p).round(9))
    ]


def test_evidence_that_the_network_cannot_give_is_refused():
    network = small_network(pa_share={'ward': 0.0, 'clinic': 0.0})
    table = draw_patients(3, 1, network)
    with pytest.raises(ValueError, match='row 1: no state of the network'):
        posterior(table.assign(projection=['AP', 'PA', 'AP']), 'image', network=network)
