"""The best possible answer: equal to enumeration and to nature, calibrated, out of a learner's reach; and the dial."""

import hashlib

import numpy as np
import pandas as pd
import pytest
from conftest import printed_elsewhere
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from sklearn.ensemble import HistGradientBoostingClassifier

from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.metrics.comparison import delong_test
from cxr_lib.metrics.predictions import CONDITIONS as NAMES
from cxr_lib.metrics.ranking import auroc
from cxr_lib.simulation.best import (
    BEST,
    auroc_by_condition,
    best_possible,
    elimination_order,
    enumerate_posterior,
    evidence_columns,
    label_inputs,
    marginals,
    posterior,
    prior,
)
from cxr_lib.simulation.causes import SIGNS, Fact, Node, labels_from_findings
from cxr_lib.simulation.dial import dial_bounds, dial_posterior, turn_dial
from cxr_lib.simulation.patients import NETWORK, Network, draw_patients

LABELS = list(OBSERVATIONS)
CONDITIONS = {
    'demographics': ('demographics',),
    'note': ('note',),
    'image': ('image',),
    'film': ('film',),
    'fused': ('note', 'image'),
}


SMALL = dict(
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
    separation={'Cardiomegaly': 1.5, 'Lung Opacity': 1.0, 'Pneumonia': 1.2, 'Support Devices': 2.0},
)


def small_network(**more):
    "Four findings of every kind: a parent and a child of the hierarchy, one outside it, and a device"
    return Network(**(SMALL | more))


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


def likelihood_of_report(said, fact, absent, network):
    "Of what a note says of a fact, given the probability that the fact is absent"
    if said == 1:
        return network.reported * (1 - absent)
    if said == 0:
        return fact.denied * absent
    return (1 - network.reported) * (1 - absent) + (1 - fact.denied) * absent


def probability_of_absence(fact, present):
    "Noisy-or written out; `present` says of each cause whether it is there (a number or an array)"
    f, p = fact.false_positive_rate, 1 - fact.false_positive_rate
    for cause, (lr, _) in fact.causes.items():
        p = p * np.where(np.asarray(present(cause)) == 1, (1 - lr * f) / (1 - f), 1)
    return p


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
    some = lambda names: draw(st.lists(st.sampled_from(names), max_size=3, unique=True))
    signs = draw(st.lists(st.sampled_from(SIGNS), min_size=1, max_size=4, unique=True))
    sick = draw(st.lists(st.sampled_from(['COPD', 'malignancy']), max_size=2, unique=True))
    nodes, before = [], ['age', 'male', 'ward', 'clinic']
    for name in [*sick, *signs]:
        nodes.append(Node(name, draw(number), {p: draw(number) for p in some(before)}))
        before.append(name)
    facts = []
    for i in range(draw(st.integers(0, 3))):
        rate = draw(st.floats(0.05, 0.3))
        causes = {c: (draw(st.floats(1, 3)), 'assumed') for c in some([*sick, *signs])}
        facts.append(Fact(f'fact {i}', rate, causes, denied=draw(st.floats(0, 1))))
    return Network(
        settings={'ward': 0.3, 'clinic': 0.7},
        pa_share={'ward': draw(st.floats(0, 1)), 'clinic': 0.5},
        comorbidities=tuple(nodes[: len(sick)]),
        findings=tuple(nodes[len(sick) :]),
        facts=tuple(facts),
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
    assert np.abs(known['fused'].loc[patient.name] - slow).max() < 1e-12
    assert slow.between(0.001, 0.999).any()


@settings(max_examples=60, deadline=None)
@given(there=st.sets(st.sampled_from(SIGNS), min_size=1), present=st.sets(st.sampled_from(SIGNS)))
def test_the_hierarchy_as_ors_is_the_hierarchy(there, present):
    "Whatever findings a network has, and whichever of them are present"
    network = Network(comorbidities=(), facts=(), findings=tuple(Node(s, 0.0) for s in SIGNS if s in there))
    labels = labels_from_findings({s: np.array([int(s in present)]) for s in there})
    inputs, value = label_inputs(network), {s: s in present for s in there}
    for o in inputs:
        value[f'label/{o}'] = any(value[i] for i in inputs[o])  # children come before parents
    value['label/No Finding'] = not value['label/No Finding']
    for o in OBSERVATIONS:
        assert value.get(f'label/{o}', value.get(o, False)) == bool(labels[o][0]), o


@st.composite
def products_of_tables(draw):
    "Random factors over up to five variables, some of them with impossible states: scopes and tables, and cards"
    cards = {v: draw(st.integers(2, 3)) for v in 'abcde'[: draw(st.integers(1, 5))]}
    rng, factors = np.random.default_rng(draw(st.integers(0, 10**6))), []
    for _ in range(draw(st.integers(1, 6))):
        scope = tuple(draw(st.lists(st.sampled_from(sorted(cards)), min_size=1, max_size=3, unique=True)))
        table = rng.random([cards[v] for v in scope] + [2])
        impossible = (rng.random(table.shape) < 0.1) & (table < table.max())
        factors.append((scope, np.where(impossible, 0.0, table)))
    return factors, {v: k for v, k in cards.items() if any(v in s for s, _ in factors)}


def product(factors, cards):
    "The joint table, all variables in alphabetical order"
    joint = np.ones([*(cards[v] for v in sorted(cards)), 2])
    for scope, table in factors:
        at = sorted(range(len(scope)), key=lambda i: scope[i])
        size = dict(zip(scope, table.shape))
        shape = [size.get(v, 1) for v in sorted(cards)] + [2]
        joint = joint * table.transpose(*at, len(scope)).reshape(shape)
    return joint


@settings(max_examples=40, deadline=None)
@given(drawn=products_of_tables())
def test_marginals_of_any_product_of_tables_are_exact(drawn):
    factors, cards = drawn
    joint = product(factors, cards)
    total = joint.sum(axis=tuple(range(len(cards))))
    with np.errstate(divide='ignore'):
        logs, log_total = [(s, np.log(t)) for s, t in factors], np.log(total)
    found, log_evidence = marginals(logs, elimination_order([s for s, _ in factors], cards))
    assert np.allclose(log_evidence, log_total)
    possible = total > 0
    for i, v in enumerate(sorted(cards)):
        p = joint.sum(axis=tuple(a for a in range(len(cards)) if a != i))
        assert np.allclose(found[v][:, possible], p[:, possible] / total[possible])


# Against nature


def test_the_posterior_of_each_note_is_the_share_counted_among_patients_with_that_note():
    network = small_network()
    patients = draw_patients(200_000, 5, network)
    key = pd.Series(patients.filter(like='reported/').fillna(2).to_numpy().astype(int) @ [9, 3, 1])
    counted, size = patients[LABELS].groupby(key).mean(), patients.groupby(key).size()
    one_each = patients.loc[~key.duplicated()]  # no node depends on age or sex here
    exact = posterior(one_each, 'note', network=network).set_index(key.unique()).loc[counted.index]
    z = (counted - exact) / np.sqrt((exact * (1 - exact)).clip(1e-12).div(size, axis=0))
    varied = [o for o in LABELS if 0 < exact[o].mean() < 1 - 1e-9]
    assert len(counted) == 27 and len(varied) == 7
    assert np.abs(z[varied]).max(axis=None) < 4.5
    assert abs(z[varied].to_numpy().std(ddof=1) - 1) < 0.25


def weights_of(many, row, network):
    "How well each of many states explains a film and a note"
    w = np.ones(len(many))
    for s in network.signs:
        w *= density(row[f'strength/{s}'], s, many[f'sign/{s}'], network)
    w *= np.abs((row['projection'] == 'AP') - many.setting.map(network.pa_share))
    present = lambda c: many[f'sign/{c}' if f'sign/{c}' in many else c]
    for f in network.facts:
        w *= likelihood_of_report(row[f'reported/{f.name}'], f, probability_of_absence(f, present), network)
    return w


def test_the_posterior_of_a_film_is_that_of_simulated_patients_weighted_by_likelihood():
    "Likelihood weighting: states drawn forwards, weighted by how well they explain a film and a note"
    network = small_network()
    many, few = draw_patients(100_000, 6, network), draw_patients(12, 7, network)
    exact = posterior(few, ('note', 'image'), network=network)
    for i, row in few.iterrows():
        w, p = weights_of(many, row, network), exact.loc[i]
        share, effective = (w @ many[LABELS].to_numpy()) / w.sum(), w.sum() ** 2 / (w**2).sum()
        assert effective > 500
        assert (np.abs(share - p) < 5 * np.sqrt(p * (1 - p) / effective) + 1e-9).all()


@pytest.mark.parametrize('condition', CONDITIONS)
def test_posteriors_are_calibrated(crowd, known, condition):
    "In the mean, and in each tenth of the patients"
    p, labels = known[condition], crowd[LABELS]
    assert np.abs(surprise(labels, p)).max() < 4
    found = []
    for o in LABELS:
        tenth = pd.qcut(p[o], 10, labels=False, duplicates='drop')
        groups = pd.DataFrame({'label': labels[o], 'p': p[o]}).groupby(tenth)
        large = [g for _, g in groups if g.p.sum() > 10]
        found += [(g.label - g.p).sum() / np.sqrt((g.p * (1 - g.p)).sum()) for g in large]
    assert len(found) > 50
    assert np.abs(found).max() < 4.5 and abs(np.std(found) - 1) < 0.25


def test_the_prior_is_the_prevalence(crowd, known):
    p = prior()
    assert (np.abs(p - crowd[LABELS].mean()) / np.sqrt(p * (1 - p) / len(crowd))).max() < 4
    assert np.allclose(posterior(crowd.head(3), ()), p)
    assert np.abs(known['demographics'].mean() - p).max() < 0.005


# More evidence, less evidence


@pytest.mark.parametrize(
    'less, more',
    [
        ('demographics', 'note'),
        ('demographics', 'film'),
        ('film', 'image'),
        ('image', 'fused'),
        ('note', 'fused'),
    ],
)
def test_more_evidence_never_tells_less(known, less, more):
    area = {c: np.array([expected_auroc(known[c][o].to_numpy()) for o in LABELS]) for c in (less, more)}
    assert (area[less] < area[more] + 0.0005).all()
    assert area[less].mean() < area[more].mean()


@pytest.mark.parametrize('condition', ['note', 'image', 'fused'])
def test_boosted_trees_come_close_to_the_bound_and_never_above_it(crowd, known, condition):
    "Trained on 60,000 patients; an observation with causes of its own, and the hardest: the absence of twelve findings"
    train, g = draw_patients(60_000, 101), CONDITIONS[condition]
    seen, unseen = evidence_columns(train, g), evidence_columns(crowd, g)
    rate, rounds = {'note': (0.05, 250), 'image': (0.05, 250), 'fused': (0.1, 500)}[condition]
    shape = dict(max_leaf_nodes=6, l2_regularization=5.0, min_samples_leaf=60, random_state=0)
    for o in ('Edema', 'No Finding'):
        trees = HistGradientBoostingClassifier(learning_rate=rate, max_iter=rounds, **shape).fit(
            seen, train[o]
        )
        d = delong_test(crowd[o], known[condition][o], trees.predict_proba(unseen)[:, 1])
        assert d['auc_a'] - d['auc_b'] < 0.01 and d['z'] > -3, (o, d)


def test_a_request_without_a_note_leaves_what_the_film_shows(crowd, known):
    few = crowd.head(200)
    has_note = np.arange(200) % 3 > 0
    alone, fused = posterior(few, 'note', has_note), posterior(few, ('note', 'image'), has_note)
    assert np.allclose(alone[~has_note], prior())
    assert np.allclose(alone[has_note], known['note'].head(200)[has_note])
    assert np.allclose(fused[~has_note], known['image'].head(200)[~has_note])
    assert np.allclose(fused[has_note], known['fused'].head(200)[has_note])


def test_a_note_that_mentions_nothing_is_not_a_missing_note(crowd):
    silent = crowd.head(50).assign(**{f'reported/{f.name}': np.nan for f in NETWORK.facts})
    heard, ignored = (posterior(silent, g)['No Finding'] for g in ('note', 'demographics'))
    assert (heard > ignored + 0.01).all()  # silence is reassuring


def test_the_answer_is_computed_from_the_evidence_alone(crowd, known):
    "Labels, latent findings and the order of the rows do not matter"
    few = crowd.head(300).iloc[::-1]
    latent = [c for c in few if c.startswith(('sign/', 'fact/'))]
    blind = few.drop(columns=[*latent, *LABELS, 'setting', 'patient_id'])
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


INFINITE = {'strength/Edema': [0.0, np.inf, 0.0]}


@pytest.mark.parametrize(
    'change, g, why',
    [
        (lambda t: t, ('notes',), "unknown evidence 'notes'"),
        (lambda t: t.drop(columns='reported/fever'), ('note',), 'lacks reported/fever'),
        (lambda t: t.drop(columns='strength/Edema'), ('image',), 'lacks strength/Edema'),
        (lambda t: t.assign(age=[50.0, np.nan, 60.0]), ('note',), 'row b: age is nan'),
        (lambda t: t.assign(sex=['Male', 'Female', None]), ('image',), 'row c: sex'),
        (lambda t: t.assign(projection=['PA', 'LL', 'AP']), ('image',), "row b: projection is 'LL'"),
        (lambda t: t.assign(**INFINITE), ('film',), 'row b: strength/Edema is inf'),
    ],
)
def test_evidence_that_is_missing_or_impossible_is_named(change, g, why):
    table = draw_patients(3, 1).set_index(pd.Index(list('abc')))
    with pytest.raises(ValueError, match=why):
        posterior(change(table), g)


def test_predictions_have_the_names_that_the_evaluation_knows(crowd):
    few = crowd.head(400)
    found = best_possible(few, np.arange(400) % 20 > 0)
    assert set(BEST) <= set(NAMES)
    assert list(found) == [f'{c}/{o}' for c in BEST for o in OBSERVATIONS]
    assert found.index.equals(few.index)


def test_the_table_of_aurocs_has_intervals_and_a_mean(crowd):
    few = crowd.head(400)
    table = auroc_by_condition(few, best_possible(few), n_bootstrap=30)
    assert list(table.index) == [*LABELS, 'Mean']
    low, value = (table.xs(name, axis=1, level=1) for name in ('low', 'auroc'))
    assert (low <= value + 1e-9).all(axis=None)
    fused = table['best_fused', 'auroc']
    assert abs(fused['Mean'] - fused[LABELS].mean()) < 1e-12


def test_what_is_drawn_only_changes_what_depends_on_the_image(crowd):
    few = crowd.head(400)
    exact, drawn = best_possible(few), best_possible(few, drawn_only=True)
    assert np.allclose(drawn.filter(like='best_note'), exact.filter(like='best_note'))
    assert not np.allclose(drawn.filter(like='best_image'), exact.filter(like='best_image'))


# The dial


DIALS = (0.0, 0.2, 0.4, 0.5, 0.7, 0.9, 1.0)


def turned(table, dial, seed=0, network=NETWORK):
    told = turn_dial(table, dial, seed, network)
    return table.drop(columns=[c for c in table if c.startswith('reported/')]).join(told)


@pytest.fixture(scope='module')
def part(crowd):
    return crowd.head(2500)


@pytest.fixture(scope='module')
def tables(part):
    "The patients at each position"
    return {d: turned(part, d) for d in DIALS}


@pytest.fixture(scope='module')
def dials(tables):
    "Position -> condition -> posterior"
    conditions = ('note', 'fused')
    return {d: {c: dial_posterior(t, d, CONDITIONS[c]) for c in conditions} for d, t in tables.items()}


def test_the_dial_at_zero_reads_nothing(part, known, dials):
    assert np.allclose(dials[0.0]['note'], known['demographics'].loc[part.index])
    assert np.allclose(dials[0.0]['fused'], known['image'].loc[part.index])


def test_the_dial_in_the_middle_reads_the_clinical_note(part, tables, known, dials):
    reported = list(part.filter(like='reported/'))
    assert tables[0.5][reported].equals(part[reported])
    assert tables[0.5].filter(like='named/').isna().all(axis=None)
    for c in ('note', 'fused'):
        assert np.allclose(dials[0.5][c], known[c].loc[part.index])


def test_the_dial_at_one_reads_the_label(part, tables, dials):
    named = tables[1.0].filter(like='named/').notna()
    assert (named.to_numpy() == (part[LABELS] == 1).to_numpy()).all()
    for c in ('note', 'fused'):
        assert np.allclose(dials[1.0][c], part[LABELS])


def test_at_zero_the_facts_are_independent_of_the_labels(crowd):
    stranger = turn_dial(crowd, 0.0, 3).filter(like='reported/').eq(1)
    by_age = {n.name for n in NETWORK.findings if 'age' in n.weights}  # age explains what little is left
    for f in NETWORK.facts:
        for o in [c for c in f.causes if c in OBSERVATIONS and c not in by_age]:
            said, there = stranger[f'reported/{f.name}'], crowd[f'sign/{o}'] == 1
            p, gap = said.mean(), said[there].mean() - said[~there].mean()
            error = np.sqrt(p * (1 - p) * (1 / there.sum() + 1 / (~there).sum()))
            assert abs(gap / error) < 4.5, (f.name, o)


@pytest.mark.parametrize('dial', DIALS)
def test_posteriors_are_calibrated_wherever_the_dial_stands(part, dials, dial):
    labels = part[LABELS]
    for c, p in dials[dial].items():
        p = p.clip(1e-12, 1 - 1e-12)
        assert np.abs(surprise(labels, p)).max() < 4.5, c
        sure = (p - 0.5).abs() > 0.3  # and among those who seem sure
        sure = sure.loc[:, sure.sum() > 100]
        z = surprise(labels[sure.columns].where(sure), p[sure.columns].where(sure))
        assert np.abs(z).max() < 4.5, c


def test_turning_the_dial_up_adds_bits(part, known, dials):
    "Mutual information, for every observation"
    base = known['demographics'].loc[part.index]
    notes = [dials[d]['note'] for d in DIALS]
    divergence = [(special.rel_entr(q, base) + special.rel_entr(1 - q, 1 - base)).mean() for q in notes]
    bits = np.array(divergence) / np.log(2)
    assert np.allclose(bits[0], 0) and (np.diff(bits, axis=0) > 0).all()
    entropy = (special.entr(base) + special.entr(1 - base)).mean().to_numpy() / np.log(2)
    assert np.abs(bits[-1] / entropy - 1).max() < 0.15  # all there is to tell
    assert abs(bits[-1].mean() / entropy.mean() - 1) < 0.03


@pytest.mark.parametrize('condition', ['note', 'fused'])
def test_turning_the_dial_up_raises_the_best_possible_auroc(dials, condition):
    "For every observation; the patients are the same, so only rounding of the sample is left"
    area = np.array([[expected_auroc(dials[d][condition][o].to_numpy()) for o in LABELS] for d in DIALS])
    assert (np.diff(area, axis=0) > -0.002).all()
    assert (area[-1] > area[0]).all()


def test_a_higher_position_gives_away_all_that_a_lower_one_does(crowd):
    few = crowd.head(500)
    at = {d: turn_dial(few, d, 4) for d in (0.1, 0.3, 0.6, 0.8, 1.0)}
    reported = list(few.filter(like='reported/'))
    own = {d: np.isclose(t[reported], few[reported], equal_nan=True).all(axis=1) for d, t in at.items()}
    assert (own[0.1] <= own[0.3]).all() and own[0.6].all()
    assert 0.15 < own[0.1].mean() < 0.3 and 0.5 < own[0.3].mean() < 0.7
    named = {d: t.filter(like='named/').notna().to_numpy() for d, t in at.items()}
    assert not named[0.3].any()
    assert (named[0.6] <= named[0.8]).all() and (named[0.8] <= named[1.0]).all()
    assert abs(named[0.8].sum() / named[1.0].sum() - 0.6) < 0.05


def all_states(network):
    "Every state of a patient of whom age and sex do not matter, with its probability"
    nodes = network.order()
    for setting, share in network.settings.items():
        for bits in np.ndindex(*[2] * len(nodes)):
            v = {'setting': setting} | {s: float(s == setting) for s in network.settings}
            v |= dict(zip((n.name for n in nodes), bits))
            p = share
            for n in nodes:
                q = special.expit(n.bias + sum(w * v[k] for k, w in n.weights.items()))
                p *= q if v[n.name] else 1 - q
            yield v, p


def probability_of_note(row, v, network):
    p = 1.0
    for f in network.facts:
        absent = probability_of_absence(f, v.get)
        p *= likelihood_of_report(row[f'reported/{f.name}'], f, absent, network)
    return p


def likelihood_of_image(row, v, network):
    pa = network.pa_share[v['setting']]
    strengths = [density(row[f'strength/{s}'], s, v[s], network) for s in network.signs]
    return np.prod(strengths) * (pa if row.projection == 'PA' else 1 - pa)


def test_the_mixture_below_the_middle_is_bayes_rule_written_out():
    "Small network, note and film: own facts with probability 0.6, else a stranger's, summed over all states"
    network, own = small_network(), 0.6
    patients = turned(draw_patients(25, 9, network), 0.3, 1, network)
    exact = dial_posterior(patients, 0.3, ('note', 'image'), network=network)
    states = list(all_states(network))
    labels = [labels_from_findings({s: np.array([v[s]]) for s in network.signs}) for v, _ in states]
    positive = np.array([[x[o][0] for o in OBSERVATIONS] for x in labels])
    for i, row in patients.iterrows():
        says = np.array([probability_of_note(row, v, network) for v, _ in states])
        chance = np.array([p for _, p in states])
        shows = np.array([likelihood_of_image(row, v, network) for v, _ in states])
        w = chance * shows * (own * says + (1 - own) * (chance @ says))
        assert np.allclose(exact.loc[i], w @ positive / w.sum(), atol=1e-10)


def test_the_report_of_the_dial_holds_every_position_and_observation(crowd):
    found = dial_bounds(crowd.head(300), dials=(0.0, 0.5, 1.0), n_bootstrap=10)
    assert len(found) == 3 * 15 and (found.groupby('observation').bits.diff().dropna() > 0).all()
    at = found.set_index(['dial', 'observation'])
    assert np.allclose(at.loc[1.0, 'best_note'].dropna(), 1)
    assert np.allclose(at.loc[0.0, 'best_fused'], at.loc[0.0, 'best_image'])
    assert at.loc[(0.0, 'Mean'), 'bits'] == 0


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
    assert facts[['named/Edema', 'named/Fracture']].isna().all(axis=None)
    assert facts.filter(like='reported/').isin((0, 1)).any(axis=None)


ELSEWHERE = r"""
import hashlib
from cxr_lib.simulation.best import posterior
from cxr_lib.simulation.dial import turn_dial
from cxr_lib.simulation.patients import draw_patients

p = draw_patients(60, 7)
for t in (turn_dial(p, 0.3, 1), turn_dial(p, 0.8, 1), posterior(p).round(9)):
    print(hashlib.sha256(t.to_csv(index=False, lineterminator='\n').encode()).hexdigest())
"""


def test_dial_and_posterior_are_the_same_in_another_process():
    there = printed_elsewhere(ELSEWHERE, hashseed='9').split()
    p = draw_patients(60, 7)
    here = (turn_dial(p, 0.3, 1), turn_dial(p, 0.8, 1), posterior(p).round(9))
    csv = [t.to_csv(index=False, lineterminator='\n') for t in here]
    assert there == [hashlib.sha256(text.encode()).hexdigest() for text in csv]


def test_evidence_that_the_network_cannot_give_is_refused():
    network = small_network(pa_share={'ward': 0.0, 'clinic': 0.0})
    table = draw_patients(3, 1, network)
    with pytest.raises(ValueError, match='row 1: no state of the network'):
        posterior(table.assign(projection=['AP', 'PA', 'AP']), 'image', network=network)
