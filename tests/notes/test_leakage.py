"""What notes give away: intervals, chance, yardsticks, and the certificate of notes that know nothing or everything."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from cxr_lib.data.studies import StudyTableError, rows_of_some
from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.foundations.files import read_json, write_json
from cxr_lib.metrics.comparison import delong_test
from cxr_lib.model.sentences import sentence_vectors
from cxr_lib.model.text import learn_tokenizer
from cxr_lib.notes.dial import dial_notes
from cxr_lib.notes.leakage import (
    OPENI_YARDSTICK,
    OPENI_YARDSTICKS,
    Certificate,
    auroc_influence,
    bags_of_words,
    deal_patients,
    exchange_patients,
    film_description_report,
    leakage_certificate,
    leakage_probe,
    mention_probe,
    metadata_features,
    metadata_probe,
    openi_yardsticks,
    permutation_p,
    plot_certificate,
    probe_auroc,
    probe_interval,
    probe_table,
    probe_verdict,
    stored_yardsticks,
    words_probe,
)
from cxr_lib.notes.leaking import label_leak_notes
from cxr_lib.notes.wording import clinical_notes
from cxr_lib.simulation.best import posterior
from cxr_lib.simulation.patients import draw_patients

OPENI = ROOT.parent / 'shared' / 'data' / 'openi'


@pytest.fixture(scope='module')
def people():
    "2,000 simulated patients with their clinical notes"
    patients = draw_patients(2000, seed=1)
    return patients.assign(note=clinical_notes(patients, patients.age, patients.sex, seed=1))


def several_films(people, n, seed=0):
    "The first patients with one to four films each, all with the patient's note"
    times = np.random.default_rng(seed).integers(1, 5, n)
    return people.loc[np.repeat(np.arange(n), times)].reset_index(drop=True)


@pytest.fixture(scope='module')
def encoder(people, tmp_path_factory):
    "Folder of a small text encoder with random weights, as Hugging Face saves it"
    from transformers import BertConfig, BertModel

    folder, tokenizer = tmp_path_factory.mktemp('encoder'), learn_tokenizer(people.note.dropna(), 400)
    BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
        )
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# Intervals


def labels_scores_patients(seed):
    "42 images of at most 15 patients, scores with ties"
    rng = np.random.default_rng(seed)
    return np.r_[0, 1, rng.integers(0, 2, 40)], rng.normal(size=42).round(1), rng.integers(0, 15, 42)


cases = st.integers(0, 10_000).map(labels_scores_patients)


@given(cases)
@settings(max_examples=60, deadline=None)
def test_the_influence_gives_the_auroc_and_sums_to_nothing(case):
    y, score, patients = case
    auc, influence = auroc_influence(y, score)
    assert abs(auc - roc_auc_score(y, score)) < 1e-12
    assert abs(influence.sum()) < 1e-9
    low, high = probe_interval(y, score, patients)[1:]
    assert 0 <= low <= auc <= high <= 1
    flipped = probe_interval(y, -score, patients)
    assert np.allclose(flipped, (1 - auc, 1 - high, 1 - low))


def test_the_standard_error_is_delongs_where_each_patient_has_one_film():
    rng = np.random.default_rng(3)
    y = rng.integers(0, 2, 600)
    a, b = rng.normal(size=600) + y, rng.normal(size=600) + 0.5 * y
    table = pd.DataFrame({o: np.nan for o in OBSERVATIONS}, index=range(600)).assign(
        Edema=y, patient_id=range(600)
    )
    scores = lambda s: pd.DataFrame({o: s if o == 'Edema' else np.nan for o in OBSERVATIONS})
    gap, d = probe_auroc(table, scores(a), less=scores(b)), delong_test(y, a, b)
    assert np.isclose(gap['value'], d['auc_a'] - d['auc_b'])
    assert np.isclose(gap['standard_error'], d['variance'] ** 0.5, rtol=0.01)


def test_repeating_every_film_does_not_narrow_an_interval():
    rng = np.random.default_rng(4)
    y = rng.integers(0, 2, 300)
    score = rng.normal(size=300) + y
    once = probe_interval(y, score, np.arange(300))
    thrice = probe_interval(np.tile(y, 3), np.tile(score, 3), np.tile(np.arange(300), 3))
    blind = probe_interval(np.tile(y, 3), np.tile(score, 3), np.arange(900))
    assert np.allclose(once, thrice, atol=1e-3)
    assert blind[2] - blind[1] < 0.7 * (once[2] - once[1])


def test_intervals_hold_the_true_value_nineteen_times_of_twenty():
    rng = np.random.default_rng(5)
    held = []
    for _ in range(300):  # patients of three films that are much alike; the truth is Phi(1/sqrt 2)
        y = np.repeat(rng.integers(0, 2, 60), 3)
        score = y + np.repeat(rng.normal(size=60), 3) * 0.9 + rng.normal(size=180) * 0.19**0.5
        low, high = probe_interval(y, score, np.repeat(np.arange(60), 3))[1:]
        held.append(low <= 0.7602 <= high)
    assert 0.90 <= np.mean(held) <= 0.99


def test_the_mean_over_observations_knows_that_they_go_together(people):
    scores = pd.DataFrame({o: people['strength/Edema'] for o in OBSERVATIONS})
    table = people.assign(**{o: people.Edema for o in OBSERVATIONS})  # fourteen times the same question
    mean = probe_auroc(table, scores)
    one = probe_interval(people.Edema, people['strength/Edema'], people.patient_id)
    assert np.allclose([mean['value'], mean['low'], mean['high']], one)
    assert mean['observations'] == 14


def test_without_positives_or_negatives_there_is_no_auroc(people):
    assert all(np.isnan(probe_interval(np.ones(9), np.arange(9), np.arange(9))))
    nothing = probe_auroc(people, pd.DataFrame(np.nan, people.index, list(OBSERVATIONS)))
    assert np.isnan(nothing['value'])
    assert nothing['observations'] == 0


# Folds and permutations


@given(st.integers(0, 10_000), st.integers(2, 7))
@settings(max_examples=40, deadline=None)
def test_a_patient_is_in_one_fold_and_every_fold_gets_its_share_of_positives(seed, folds):
    rng = np.random.default_rng(seed)
    patients = rng.integers(0, 60, 200)
    y = (rng.random(200) < 0.3).astype(float)
    fold = deal_patients(y, patients, folds, rng)
    assert pd.Series(fold).groupby(patients).nunique().eq(1).all()
    assert set(fold) == set(range(folds))
    alone = deal_patients(y, np.arange(200), folds, rng)
    counts = np.bincount(alone, weights=y, minlength=folds)
    assert counts.max() - counts.min() <= 1


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_exchanging_patients_moves_whole_patients_of_the_same_size(seed):
    rng = np.random.default_rng(seed)
    patients = rng.integers(0, 20, 50)
    source = exchange_patients(patients, rng)
    assert sorted(source) == list(range(50))
    pairs = pd.DataFrame({'to': patients, 'from': patients[source]}).drop_duplicates()
    assert not pairs.to.duplicated().any()
    assert not pairs['from'].duplicated().any()
    sizes = pd.Series(patients).value_counts()
    assert (sizes[pairs.to].to_numpy() == sizes[pairs['from']].to_numpy()).all()


@pytest.mark.parametrize('films', ['one', 'several'])
def test_p_values_are_small_by_chance_as_often_as_they_say(people, films):
    small, means = [], []
    for i in range(24):
        table = people.iloc[i * 80 : i * 80 + 240].reset_index(drop=True)
        if films == 'several':
            table = several_films(table, 150, i)
        notes = table.drop_duplicates('patient_id').note.to_numpy()
        whose = dict(zip(table.patient_id.unique(), np.random.default_rng(i).permutation(notes)))
        table = table.assign(note=table.patient_id.map(whose))
        p = permutation_p(bags_of_words(table)[0], table, permutations=59, seed=i)
        small.append((p.p.drop('Mean').dropna() <= 0.1).mean())
        means.append(p.p['Mean'])
    assert np.mean(small) <= 0.1 + 3 * np.std(small) / len(small) ** 0.5
    # Tables overlap and labels go together: the spread between tables counts.
    assert 0.25 <= np.mean(means) <= 0.75


def test_permutations_find_what_is_there_and_count_the_family(people):
    p = permutation_p(bags_of_words(people)[0], people, permutations=99)
    assert p.p.eq(0.01).all()
    assert (p.p_family.drop('Mean') <= 0.05).all()
    assert (p.p_family >= p.p - 1e-9).drop('Mean').all()
    # Ties favour nobody, however the table is sorted.
    label_sorted = people.sort_values('Edema').assign(note='the same')
    assert permutation_p(bags_of_words(label_sorted)[0], label_sorted, permutations=99).p['Edema'] > 0.05


def test_some_rows_are_all_rows_of_some_patients(people):
    table = several_films(people, 300)
    rows = rows_of_some(table, 200, seed=2)
    assert 190 <= len(rows) <= 200
    assert (np.diff(rows) > 0).all()
    assert not set(table.patient_id[rows]) & set(table.patient_id.drop(rows))
    assert len(rows_of_some(table, 10**6)) == len(table)
    assert (rows == rows_of_some(table, 200, seed=2)).all()
    assert len(set(rows) ^ set(rows_of_some(table, 200, seed=3)))


# Probes


def test_metadata_tell_of_age_and_take_any_gap(people):
    table = people.assign(
        age=people.age.mask(people.index % 3 == 0),
        sex=people.sex.mask(people.index % 4 == 0),
        projection=None,
    )
    assert np.isfinite(metadata_features(table)).all()
    old = table.assign(Cardiomegaly=(people.age > 65).astype(float))
    assert 0.7 < probe_table(old, metadata_probe(old)).AUROC['Cardiomegaly'] < 0.95
    nobody = people.assign(age=np.nan, sex=None, projection=None)
    assert metadata_probe(nobody).scores.isna().all(axis=None)
    assert metadata_probe(nobody).reasons.str.contains('missing or the same').all()


def test_the_encoder_reads_any_text_and_batches_do_not_matter(encoder):
    texts = ['cough', '', '発熱 ☃', 'cough ' * 100_000, 'fever and cough for 3 days', 'cough']
    v = sentence_vectors(texts, encoder)
    assert v.shape == (6, 32)
    assert v.dtype == np.float32
    assert np.allclose(np.linalg.norm(v, axis=1), 1, atol=1e-5)
    assert (v[0] == v[5]).all()
    assert np.allclose(v, sentence_vectors(texts, encoder, batch_size=1), atol=1e-5)


# The yardstick


def test_open_i_the_yardsticks_are_what_the_reports_give(capsys):
    if not OPENI.is_dir():
        pytest.skip('the Open-i reports are not at ../shared/data/openi')
    found = openi_yardsticks(OPENI)
    table = openi_yardsticks(OPENI, 'table', ('indication',)).loc[('indication', 'Mean')]
    with capsys.disabled():
        said = '\nOpen-i, {}: mean AUROC of a bag of words {:.3f} ({:.3f} to {:.3f})'
        for s in OPENI_YARDSTICKS:
            print(said.format(s, *found.loc[(s, 'Mean')]), end='')
        print('; indications with the labels of the study table: {:.3f} ({:.3f} to {:.3f})'.format(*table))
    assert set(found.index) == set(stored_yardsticks().index)
    assert (found - stored_yardsticks()).abs().max(axis=None) < 0.02
    mean = found.xs('Mean', level=1)
    reported = {'indication': 0.61, 'comparison': 0.55, 'findings': 0.93, 'impression': 0.91}
    for section, expected in reported.items():
        assert abs(mean.AUROC[section] - expected) < 0.025, section
    assert abs(mean.AUROC['indication'] - OPENI_YARDSTICK) < 0.01
    assert table.low < OPENI_YARDSTICK < table.high
    with pytest.raises(ValueError, match="labels is 'gold'; expected 'published' or 'table'"):
        openi_yardsticks(OPENI, 'gold')


# The certificate


def test_clinical_notes_carry_no_more_than_the_model_says(people):
    "Words do not beat the exact posterior given the reported facts, for any observation"
    best = posterior(people, 'note', people.note.notna())
    certificate = leakage_certificate(people, best=best, mode='clinical', permutations=99)
    less = certificate.means.loc['words less best']
    assert less.high < 0
    assert (certificate.probes['best'].z < 3).all()
    assert certificate.probes['best'].AUROC.notna().all()
    assert 'No observation is above it' in certificate.verdict
    assert '⚠️' not in certificate.verdict
    assert certificate.means.value['words'] > 0.55  # and they do carry something


def test_notes_that_say_more_than_the_facts_are_found_out(people):
    people = people.head(1000)
    named = people.assign(note=dial_notes(people, 0.75))
    certificate = leakage_certificate(named, best=posterior(people, 'note'), mode='clinical', permutations=0)
    assert 0.8 < certificate.means.value['words'] < 0.9
    assert certificate.means.low['words less best'] > 0
    assert certificate.verdict.startswith('⚠️ **These notes tell more than the simulation lets them know')
    assert 'Above it by more than three standard errors' in certificate.verdict


def test_notes_made_from_labels_give_the_answers_away(people):
    people = people.head(600)
    leaking = people.assign(note=label_leak_notes(people))
    certificate = leakage_certificate(leaking, mode='label_leak', permutations=99)
    assert certificate.means.value['words'] > 0.95
    assert 'give the answers away' in certificate.verdict
    assert 'worthless' in probe_verdict(leakage_probe(leaking), 'label_leak')
    named = mention_probe(leaking)
    assert (named['named where positive'] > 0.95).all()
    assert named['AUROC of the mention'].mean() > 0.9
    assert (named['low'] <= named['AUROC of the mention']).all()
    assert (named['AUROC of the mention'] <= named['high']).all()


def test_notes_of_other_patients_tell_nothing(people):
    people = people.head(700)
    shuffled = people.assign(note=people.note.sample(frac=1, random_state=1).to_numpy())
    certificate = leakage_certificate(shuffled, permutations=99)
    assert abs(certificate.means.value['words'] - 0.5) < 0.04
    assert certificate.probes['words'].attrs['p_mean'] > 0.02
    assert 'no more than those of real requests' in certificate.verdict


def test_a_certificate_survives_json_and_is_the_same_for_the_same_seed(people, tmp_path):
    table = people.head(250)
    make = lambda: leakage_certificate(
        table, best=posterior(table, 'note', table.note.notna()), mode='clinical', permutations=19, seed=3
    )
    first = make()
    write_json(tmp_path / 'leakage.json', first.to_dict())
    again = Certificate.from_dict(read_json(tmp_path / 'leakage.json'))
    assert again.verdict == first.verdict == make().verdict
    assert again.table().equals(first.table())
    assert again.counts == first.counts
    assert json.loads((tmp_path / 'leakage.json').read_text())['verdict'] == first.verdict
    for c in (first, again):
        plot_certificate(c, simulated=True).savefig(tmp_path / 'c.png')


def never_asked(notes):
    raise AssertionError(f'an encoder was asked about {len(notes)} notes')


@pytest.mark.parametrize('note', [None, '', 'the same words'])
def test_where_nothing_can_be_tested_the_certificate_says_why(people, note):
    certificate = leakage_certificate(
        people.head(300).assign(note=note), permutations=19, encoder=never_asked
    )
    words = certificate.probes['words']
    assert words.AUROC.isna().all()
    assert words.reason.astype(bool).all()
    assert ('There are no notes here' if note is None else 'undefined') in certificate.verdict
    assert 'nothing to test' in ' '.join(certificate.remarks)
    assert certificate.table()['words'].eq(words.reason).all()
    plot_certificate(Certificate.from_dict(json.loads(json.dumps(certificate.to_dict()))))


def test_observations_that_cannot_be_tested_are_left_out_with_the_reason(people):
    table = people.head(200).assign(Edema=np.nan, Fracture=1.0, Pneumonia=-1.0)
    table['Cardiomegaly'] = (np.arange(200) < 20).astype(float)
    table.loc[table.index[:20], 'patient_id'] = 'one patient'  # all positives are one patient's films
    probe = leakage_probe(table)
    for o in ('Edema', 'Fracture', 'Pneumonia'):
        assert np.isnan(probe.AUROC[o]) and 'fewer than 10' in probe.reason[o], o
    assert np.isnan(probe.AUROC['Cardiomegaly'])
    assert 'patients' in probe.reason['Cardiomegaly']
    p = permutation_p(bags_of_words(table)[0], table, permutations=9)
    assert p.p[['Edema', 'Fracture', 'Pneumonia', 'Cardiomegaly']].isna().all()
    assert np.isfinite(p.p['Mean'])


def test_simulated_doctors_who_ask_everybody_are_told_from_real_requests(people):
    more = people.head(900)
    hinting = more.assign(
        note=[
            f'{n or ""} seen {"with" if rng.random() < 0.35 + 0.5 * y else "without"} delay'
            for n, y, rng in zip(more.note, more['No Finding'], map(np.random.default_rng, range(900)))
        ]
    )
    for o in OBSERVATIONS:
        hinting[o] = more['No Finding']
    assert leakage_certificate(hinting, permutations=0).verdict.startswith(
        '⚠️ **The words of these notes tell more than those of real requests.** Read them'
    )
    assert (
        'through symptoms and history'
        in leakage_certificate(hinting, mode='clinical', permutations=0).verdict
    )


def test_a_large_table_is_read_in_part_and_says_so(people):
    certificate = leakage_certificate(people, permutations=9, max_studies=500)
    assert certificate.counts['studies'] == 2000
    assert certificate.counts['studies_read'] == 500
    assert any('500 of the 2,000 studies' in r for r in certificate.remarks)
    assert any('as asked' in r for r in certificate.remarks)
    with pytest.raises(ValueError, match='best has 3 rows and the table 2000'):
        leakage_certificate(people, best=posterior(people.head(3), 'note'))


def test_the_best_possible_may_be_asked_for_the_rows_that_are_read(people):
    options = dict(mode='clinical', permutations=0, max_studies=500)
    asked = []

    def of_rows(rows):
        asked.append(len(rows))
        return posterior(people.iloc[rows], 'note', people.note.notna().iloc[rows])

    lazy = leakage_certificate(people, best=of_rows, **options)
    whole = leakage_certificate(people, best=posterior(people, 'note', people.note.notna()), **options)
    assert asked == [500]
    pd.testing.assert_frame_equal(lazy.table(), whole.table())


def test_a_table_that_is_no_study_table_is_refused_by_its_missing_columns(people):
    with pytest.raises(StudyTableError, match='lacks projection, Edema; pass it through validate_studies'):
        leakage_certificate(people.drop(columns=['projection', 'Edema']))


def test_an_encoder_is_asked_about_a_stated_number(people, encoder):
    asked = []

    def vectors(notes):
        asked.append(len(notes))
        return sentence_vectors(notes, encoder)

    certificate = leakage_certificate(people.head(400), permutations=0, encoder=vectors, encoder_studies=120)
    assert asked == [120]
    assert certificate.counts['encoder_studies'] == 120
    assert 'on 120 studies' in certificate.verdict
    assert certificate.probes['encoder'].AUROC.notna().any()


def test_without_an_encoder_the_certificate_says_so(people):
    certificate = leakage_certificate(people.head(300), permutations=0)
    assert certificate.remarks == ['The text encoder was left out, as asked.']
    assert 'encoder' not in certificate.probes
    assert certificate.table()['text encoder'].eq('–').all()


@pytest.mark.parametrize(
    'odd', [None, float('nan'), '', '   ', '\n\t', 'Fieber, Husten; 発熱 ☃', '(.*[', 'cough ' * 100_000]
)
def test_every_probe_takes_empty_foreign_and_very_long_notes(people, odd):
    table = people.head(120).copy()
    table['note'] = table.note.astype(object)
    table.loc[table.index[:5], 'note'] = odd
    certificate = leakage_certificate(table, permutations=9)
    assert len(leakage_probe(table)) == len(mention_probe(table)) == len(certificate.table()) == 14
    assert isinstance(film_description_report(table), str)
    assert film_description_report(table.assign(note=None)) == 'There are no notes.'


ALONE = """
import sys

EARLIER = ('foundations', 'metrics', 'simulation', 'data')


class NothingLater:
    "Finds no module of a part after its own, none of its own part, and no torch"

    def find_spec(self, name, path=None, target=None):
        root, _, rest = name.partition('.')
        later = root == 'cxr_lib' and rest and rest.split('.')[0] not in EARLIER
        if root == 'torch' or later and rest not in ('notes', 'notes.leakage'):
            raise ImportError(f'notes.leakage asks for {name}')


sys.meta_path.insert(0, NothingLater())
from cxr_lib.notes.leakage import leakage_certificate, plot_certificate
assert 'sklearn' not in sys.modules
import numpy as np
from cxr_lib.simulation.best import posterior
from cxr_lib.simulation.patients import draw_patients

table = draw_patients(150, seed=1)
table['note'] = [('cough ' if a > 60 else 'fall ') + s for a, s in zip(table.age, table.sex)]
letters = lambda notes: np.array([[n.count(c) for c in 'aceghl'] for n in notes], float)
options = dict(encoder=letters, best=posterior(table, 'note'), permutations=9)
certificate = leakage_certificate(table, mode='clinical', **options)
plot_certificate(certificate)
print(*sorted(certificate.probes))
"""


def test_leakage_needs_no_chapter_after_its_own():
    command = [sys.executable, '-c', ALONE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ['best', 'encoder', 'mention', 'metadata', 'words']


def test_words_are_learned_on_other_patients_only(people):
    "Were a patient's films on both sides, a note's own words would give its labels away"
    twins = pd.concat([people.head(300)] * 2, ignore_index=True)
    rng = np.random.default_rng(0)
    twins['note'] = [f'zq{p} xv{p}' for p in twins.patient_id]  # a name, the same on both films
    twins[list(OBSERVATIONS)] = (rng.random((300, 14)) < 0.4).astype(float)[np.r_[0:300, 0:300]]
    assert abs(probe_auroc(twins, words_probe(twins)[0].scores)['value'] - 0.5) < 0.05
