"""Worlds: `plain` is what it was, bounds are exact with grades, `realistic` is calibrated, labels err as told."""

import hashlib
import os
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cxr_lib.data.simulated import describe_world, load_simulated, simulate, simulated_radiograph, true_labels
from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.foundations.files import read_json
from cxr_lib.foundations.run import RunFolder
from cxr_lib.notes.leakage import probe_auroc, words_probe
from cxr_lib.notes.wording import clinical_notes
from cxr_lib.running.plan import UsageError, plan_run
from cxr_lib.simulation.best import enumerate_posterior, posterior, prior
from cxr_lib.simulation.causes import FACTS, SIGNS, Fact, Node, likelihood_ratio_table
from cxr_lib.simulation.patients import CHEXPERT_COUNTS, NETWORK, Network, draw_patients
from cxr_lib.simulation.rendering import Exposure, render_radiograph
from cxr_lib.simulation.strengths import strength_log_ratio
from cxr_lib.simulation.worlds import DEFAULT_WORLD, NOT_SET, OPENI_REPORTS, PUBLISHED, WORLDS
from cxr_lib.simulation.worlds import Labeler, best_readers, calibration_table, draw_labels, draw_world
from cxr_lib.simulation.worlds import find_world, fit_biases, lazy_reader, recorded_world, sensitivity_table
from cxr_lib.simulation.worlds import wanted_prevalence, with_power, worlds_table
from cxr_lib.stages.evaluation import with_best_possible
from cxr_lib.stages.exploration import exploration_stage
from cxr_lib.stages.notes import notes_stage

LABELS = list(OBSERVATIONS)
REALISTIC = find_world('realistic')

#: Two more seeds take minutes.
MINUTES = pytest.mark.skipif(not os.environ.get('CXR_TEST_FULL'), reason='takes minutes; set CXR_TEST_FULL=1')


#: Mean gray of the quarters of four films, drawn before there were worlds.
QUARTERS_BEFORE = [
    103.563,
    103.612,
    141.269,
    126.696,
    115.68,
    120.088,
    140.248,
    169.67,
    141.253,
    146.215,
    193.015,
    196.669,
    85.271,
    90.761,
    107.757,
    130.932,
]
#: Mean posterior of 200 patients given the note, the image and the film, computed before there were worlds.
BEST_BEFORE = (0.15355342221808463, 0.14954671032429148, 0.14954827792156022)


def digest(data):
    return hashlib.sha256(data).hexdigest()[:16]


# `plain` is what was drawn before there were worlds


def test_the_patients_of_plain_are_those_drawn_before_there_were_worlds():
    table = draw_world(find_world('plain'), 500, 4)
    assert digest(table.to_csv(index=False, lineterminator='\n').encode()) == 'e6b3e931acea9026'
    assert table.equals(draw_patients(500, 4))


def test_the_films_of_plain_are_those_drawn_before_there_were_worlds():
    rows = draw_world(find_world('plain'), 500, 4).iloc[:4].to_dict('records')
    films = [simulated_radiograph(row, 128, world='plain') for row in rows]
    quarters = np.stack([f.image for f in films]).reshape(4, 2, 64, 2, 64).mean((2, 4)).ravel()
    assert np.allclose(quarters, QUARTERS_BEFORE, rtol=0, atol=0.05)  # the last bit depends on the processor
    bare = simulated_radiograph(rows[0], 128, masks=False).image
    assert DEFAULT_WORLD != 'plain' or (bare == films[0].image).all()


def test_the_best_possible_of_plain_is_that_before_there_were_worlds():
    table = draw_patients(200, 4)
    found = [posterior(table, given).to_numpy().mean() for given in ('note', 'image', 'film')]
    assert np.allclose(found, BEST_BEFORE, rtol=0, atol=1e-9)


# Grades of severity


@st.composite
def grades(draw):
    "One to four grades of severity"
    weights = draw(st.lists(st.floats(0.05, 1), min_size=1, max_size=4))
    shares = np.array(weights) / sum(weights)
    return tuple((float(share), draw(st.floats(0, 2))) for share in shares)


@settings(max_examples=50, deadline=None)
@given(grades(), st.floats(0, 1), st.floats(0, 5), st.floats(-4, 8))
def test_a_strength_is_as_much_likelier_as_the_densities_say(grades, occult, separation, x):
    mixture = sum(share * stats.norm.pdf(x, multiple * separation) for share, multiple in grades)
    expected = ((1 - occult) * mixture + occult * stats.norm.pdf(x)) / stats.norm.pdf(x)
    assert np.isclose(np.exp(strength_log_ratio(x, separation, occult, grades=grades)), expected, rtol=1e-9)


@settings(max_examples=30, deadline=None)
@given(grades(), st.floats(0, 1), st.floats(0, 5), st.floats(-2, 2))
def test_what_is_not_drawn_is_as_much_likelier_as_the_tails_say(grades, occult, separation, limit):
    tails = sum(share * stats.norm.cdf(limit, multiple * separation) for share, multiple in grades)
    expected = ((1 - occult) * tails + occult * stats.norm.cdf(limit)) / stats.norm.cdf(limit)
    found = np.exp(strength_log_ratio(np.array([limit - 3, limit]), separation, occult, limit, grades))
    assert np.allclose(found, expected, rtol=1e-9)


def graded_network(grades, occult=0.1):
    "Three findings of every kind, with grades"
    return Network(
        settings={'ward': 0.4, 'clinic': 0.6},
        pa_share={'ward': 0.2, 'clinic': 0.9},
        comorbidities=(Node('heart failure', -1, {'ward': 0.8}),),
        findings=(
            Node('Cardiomegaly', -1, {'heart failure': 1.5}),
            Node('Pneumonia', -1.2, {'ward': 0.5, 'Cardiomegaly': 0.4}),
            Node('Support Devices', -1.0, {'ward': 1.0}),
        ),
        facts=(
            Fact('dyspnea', 0.2, {'Cardiomegaly': (3.0, 'assumed'), 'Pneumonia': (2.0, 'assumed')}),
            Fact('fever', 0.1, {'Pneumonia': (5.0, 'assumed')}, denied=0.4, reported=0.3),
        ),
        separation={'Cardiomegaly': 2.5, 'Pneumonia': 2.0, 'Support Devices': 3.0},
        occult=occult,
        grades=grades,
    )


@settings(max_examples=20, deadline=None)
@given(grades(), st.floats(0, 1), st.integers(0, 1000))
def test_elimination_gives_what_enumeration_gives_with_grades(grades, occult, seed):
    by_sign = {'Cardiomegaly': occult, 'Pneumonia': 0.2, 'Support Devices': 0.0}
    network = graded_network(grades, by_sign)
    patients = draw_patients(2, seed, network)
    for g in (('note',), ('image',), ('note', 'image')):
        slow = patients.apply(lambda row: enumerate_posterior(row, g, network), axis=1)
        assert np.abs(posterior(patients, g, network=network) - slow).max(axis=None) < 1e-10


@pytest.mark.parametrize('given', ['note', 'image', 'film'])
def test_posteriors_of_graded_patients_are_calibrated(given):
    network = graded_network(((0.3, 0.4), (0.4, 0.7), (0.3, 1.0)))
    patients = draw_patients(20_000, 11, network)
    p = posterior(patients, given, network=network)
    surprise = (patients[LABELS] - p).sum() / np.sqrt((p * (1 - p)).sum().clip(1e-9))
    assert np.abs(surprise).max() < 4
    tenth = pd.qcut(p['Pneumonia'], 10, labels=False, duplicates='drop')
    for _, rows in pd.DataFrame({'y': patients['Pneumonia'], 'p': p['Pneumonia']}).groupby(tenth):
        assert abs(rows.y.mean() - rows.p.mean()) < 4.5 * np.sqrt(rows.p.mean() / len(rows))


def test_grades_are_drawn_in_their_shares():
    network = graded_network(((0.25, 0.0), (0.75, 4.0)), occult=0.2)
    patients = draw_patients(40_000, 3, network)
    strengths = patients.loc[patients['sign/Cardiomegaly'] == 1, 'strength/Cardiomegaly']
    assert abs((strengths > 5).mean() - 0.8 * 0.75) < 0.02  # 4 times 2.5 is far above 5


@pytest.mark.parametrize(
    'bad, why',
    [
        (dict(grades=((0.5, 1.0),)), 'grades sums to 0.5'),
        (dict(grades=((1.0, -1.0),)), 'at -1.0 of the separation'),
        (dict(occult=1.5), 'occult'),
        (dict(occult={'Edema': 0.1}), 'occult lacks'),
        (dict(occult=dict.fromkeys(SIGNS, 0.1) | {'Edema': 2}), 'Edema'),
    ],
)
def test_impossible_grades_are_refused(bad, why):
    with pytest.raises(ValueError, match=why):
        Network(**bad)


# Worlds by name


def test_a_wrong_name_lists_the_worlds():
    with pytest.raises(ValueError, match='unknown world .plane.; known are plain, overlapping, realistic'):
        find_world('plane')
    with pytest.raises(ValueError, match='unknown world'):
        simulate(20, 64, progress=False, world='plane')


def test_an_old_run_lives_in_plain_and_nobody_in_two_worlds():
    assert recorded_world({'simulated': True}).name == 'plain'
    ids = [draw_world(world, 30, 1).patient_id for world in WORLDS.values()]
    assert pd.concat(ids).is_unique
    assert len({world.key for world in WORLDS.values()}) == len(WORLDS)


def test_a_world_is_drawn_anew_when_a_number_of_it_changes():
    changed = replace(REALISTIC, exposure=Exposure(grain=1.1))
    assert changed.key != REALISTIC.key == replace(REALISTIC, about='something else').key


def test_poor_exposure_changes_the_image_and_not_the_masks():
    one, other = (
        render_radiograph({'Pleural Effusion': 3.0}, seed=2, exposure=e)
        for e in (Exposure(), find_world('shifted').exposure)
    )
    assert (one.image != other.image).mean() > 0.5
    assert (one.masks['Pleural Effusion'] == other.masks['Pleural Effusion']).all()
    for bad in (dict(grain=-1), dict(contrast=float('nan')), dict(lightness=float('inf'))):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Exposure(**bad)


# `realistic` is calibrated; the seeds were not used to choose its numbers


def words(patients, network):
    "The probe of `notes.leakage` on what the notes say"
    noted = patients.assign(note=clinical_notes(patients, patients.age, patients.sex))
    return probe_auroc(noted, words_probe(noted)[0].scores)['value']


@pytest.mark.parametrize('seed', [201, *(pytest.param(s, marks=MINUTES) for s in (202, 203))])
def test_realistic_gives_the_published_figures_on_fresh_patients(seed):
    found = calibration_table(REALISTIC, 5000, seed, probe=words)
    wanted = found[~found.source.str.contains('not set')]
    assert wanted.within.all(), wanted[~wanted.within]
    assert len(wanted) == len(PUBLISHED) + len(OBSERVATIONS) - len(NOT_SET)


def test_the_biases_are_those_that_the_prevalences_ask_for():
    wanted = {s: wanted_prevalence(s)[2] for s in SIGNS if s not in NOT_SET}
    fitted = fit_biases(REALISTIC.network, wanted, rounds=4)
    own = {n.name: n.bias for n in REALISTIC.network.findings}
    assert max(abs(fitted[s] - own[s]) for s in wanted) < 0.03


def test_severity_is_graded_from_subtle_to_obvious():
    for sign in SIGNS:
        shares, means = np.array(REALISTIC.network.mixture(sign)).T
        assert np.isclose(shares.sum(), 1) and len(set(means)) == 4 and means[0] == 0


# The other worlds


@pytest.fixture(scope='module')
def table():
    return worlds_table(2000, 7, tuple(name for name in WORLDS if name != 'mined'))


def test_the_best_possible_orders_the_worlds(table):
    assert (table[['note', 'image', 'both']] > 0.5).all(axis=None)
    assert (table.gain > 0).all() and (table.explained_both > table.explained_image).all()
    assert table.image['plain'] > table.image['realistic'] and table.note['plain'] > table.note['realistic']
    assert table.gain['realistic'] > table.gain['plain']


def test_shortcut_is_as_common_as_realistic_and_can_be_cheated(table):
    found, real = prior(find_world('shortcut').network), prior(REALISTIC.network)
    assert np.abs(found - real).drop(list(NOT_SET)).max() < 0.01
    lazy = {
        name: lazy_reader(find_world(name), 6000, 7).mean() for name in ('plain', 'realistic', 'shortcut')
    }
    assert lazy['shortcut'] > 0.7 > max(lazy['plain'], lazy['realistic'])


def test_shifted_is_another_hospital(table):
    there, here = table.loc['shifted'], table.loc['realistic']
    assert there.age < here.age - 5 and there.AP < here.AP - 0.3
    p, q = prior(find_world('shifted').network), prior(REALISTIC.network)
    assert p['Lung Lesion'] > 1.5 * q['Lung Lesion'] and p['Edema'] < q['Edema'] / 2


def test_overlapping_hides_nothing_and_plain_is_the_default_network():
    assert find_world('overlapping').network.occult == 0
    assert find_world('overlapping').network.facts is NETWORK.facts
    assert find_world('plain').network is NETWORK


# The labeler


def test_labels_come_at_the_rates_of_chexpert_and_err_as_told():
    truth = draw_patients(60_000, 5, REALISTIC.network)[LABELS]
    labels = draw_labels(truth, Labeler(), prior(REALISTIC.network), 5)
    counts = pd.DataFrame(CHEXPERT_COUNTS).T.div(187_641)
    for o in SIGNS:
        positive, uncertain = labels[o] == 1, labels[o] == -1
        assert abs(positive.mean() - counts.loc[o, 0]) < 0.01
        assert abs(uncertain.mean() - counts.loc[o, 1]) < 0.01
        wrong = (truth[o][positive] == 0).mean()
        assert abs(wrong - 0.1) < 4 * np.sqrt(0.09 / positive.sum()) + 0.01
        assert abs(truth[o][uncertain].mean() - 0.5) < 4 * np.sqrt(0.25 / uncertain.sum()) + 0.01
        rest = ~positive & ~uncertain
        assert abs(labels[o][rest].isna().mean() - 0.9) < 0.01
    said = labels[[s for s in SIGNS if s != 'Support Devices']].isin((1, -1)).any(axis=1)
    assert (labels['No Finding'].eq(1) == ~said).all()


def test_a_perfect_labeler_says_the_truth_where_it_says_anything():
    truth = draw_patients(2000, 5, REALISTIC.network)[LABELS]
    perfect = Labeler(wrong=0.0, uncertain_there=0.4, unmentioned=0.0)
    labels = draw_labels(truth, perfect, prior(REALISTIC.network), 5)
    for o in SIGNS:
        assert (truth[o][labels[o] == 1] == 1).all()


def test_the_truth_is_kept_and_tested_on(tmp_path, monkeypatch):
    monkeypatch.setenv('CXR_HOME', str(tmp_path))
    folder = simulate(40, 64, seed=2, progress=False, world='mined')
    latent, table = pd.read_parquet(folder / 'latent.parquet'), load_simulated(folder)
    truth = draw_patients(40, 2, REALISTIC.network)[LABELS]
    assert latent[[f'truth/{o}' for o in LABELS]].to_numpy().tolist() == truth.to_numpy().tolist()
    assert table[LABELS].isna().any(axis=None)
    rows = np.arange(40) % 4 == 0
    mixed = true_labels(table, folder, pd.Series(rows, table.index))
    assert (mixed[LABELS][rows].to_numpy() == truth[rows].to_numpy()).all()
    assert mixed[LABELS][~rows].equals(table[LABELS][~rows])


# The stages know the world


@pytest.fixture(scope='module')
def mined_run(tmp_path_factory):
    "A run of 60 patients of `mined` whose notes are made"
    home = tmp_path_factory.mktemp('home')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('CXR_HOME', str(home))
        run = RunFolder(home / 'reports' / 'mined')
        exploration_stage(run, n_patients=60, image_size=64, seed=2, world='mined')
        notes_stage(run, probe_encoder=False)
        yield run


def test_training_sees_the_labeler_and_the_test_split_the_truth(mined_run):
    table, source = pd.read_parquet(mined_run / 'studies.parquet'), read_json(mined_run / 'source.json')
    assert source['world'] == 'mined' and mined_run.params('exploration')['world'] == 'mined'
    truth = draw_world(find_world('mined'), 60, 2).set_index('patient_id').filter(like='truth/')
    true = truth.loc[table.patient_id].to_numpy()
    test = (table.split == 'test').to_numpy()
    assert (table.loc[test, LABELS].to_numpy() == true[test]).all()
    assert table.loc[~test, LABELS].isna().any(axis=None)
    assert 'labels of an automatic labeler' in describe_world(mined_run)


def test_the_best_possible_answers_are_those_of_the_world(mined_run, monkeypatch):
    notes = pd.read_parquet(mined_run / 'studies_with_notes.parquet')
    best = with_best_possible(mined_run, pd.DataFrame({'image': notes.image}))
    people = draw_world(find_world('mined'), 60, 2).set_index('patient_id').loc[notes.patient_id]
    exact = posterior(people.reset_index(), ('note', 'film'), notes.note.notna(), REALISTIC.network)
    assert np.allclose(best.filter(like='best_fused/').to_numpy(), exact.to_numpy())
    assert not np.allclose(
        posterior(people.reset_index(), 'film').to_numpy(), best.filter(like='best_image/')
    )


def test_a_default_run_names_its_world_and_real_patients_have_none(tmp_path, monkeypatch):
    monkeypatch.setenv('CXR_HOME', str(tmp_path))
    run = RunFolder(tmp_path / 'reports' / 'small')
    exploration_stage(run, n_patients=24, image_size=64)
    assert read_json(run / 'source.json')['world'] == DEFAULT_WORLD
    with pytest.raises(
        ValueError, match="world 'shifted' is given, but the patients of 'nih' are not simulated"
    ):
        exploration_stage(run, dataset='nih', root=str(tmp_path), world='shifted')
    with pytest.raises(ValueError, match='unknown world .shiftet.; known are plain, overlapping'):
        exploration_stage(run, world='shiftet')


def test_the_command_line_lists_the_worlds():
    with pytest.raises(UsageError, match="unknown world 'realistik'; did you mean 'realistic'. Valid: plain"):
        plan_run(dict(world='realistik'))
    assert plan_run(dict(world='realistic')).passed['exploration']['world'] == 'realistic'


# Likelihood ratios


def test_every_ratio_of_every_world_has_a_source():
    for world in WORLDS.values():
        assert likelihood_ratio_table(world.network.facts).source.notna().all()


def test_only_assumed_ratios_are_scaled():
    before, after = (likelihood_ratio_table(facts) for facts in (FACTS, with_power(FACTS, 0.5)))
    assumed = before.source == 'assumed'
    assert np.allclose(after.LR_positive[assumed], np.sqrt(before.LR_positive[assumed]))
    assert after.LR_positive[~assumed].equals(before.LR_positive[~assumed])
    assert (likelihood_ratio_table(with_power(FACTS, 3.0)).sensitivity <= 0.9501).all()


def test_stronger_ratios_help_the_note_alone():
    found = sensitivity_table(REALISTIC, 1500, 3)
    assert found.note.is_monotonic_increasing and found.gain.is_monotonic_increasing
    assert np.ptp(found.image) < 0.02


def test_readers_are_ordered_and_bounded():
    patients = draw_patients(OPENI_REPORTS, 9, REALISTIC.network)
    found = best_readers(patients, REALISTIC.network)
    assert list(found.index) == [*OBSERVATIONS, 'Mean']
    assert found.explained_both.between(0, 1).all()
    assert np.isclose(found.gain['Mean'], found.both['Mean'] - found.image['Mean'])
