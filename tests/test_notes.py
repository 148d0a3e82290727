"""Notes: what they give away, measured on real requests, on simulated ones and on notes made from labels."""
import re
import tarfile
from html import unescape

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

from cxr_lib.core import OBSERVATIONS, RunFolder, write_json
from cxr_lib.studies import NIH_TO_CHEXPERT
from cxr_lib.notes import (LEAK, NOTE_MODES, OPENI_YARDSTICK, clinical_notes, film_description_report, label_leak_notes, leakage_probe, mention_probe,
                           notes_info, notes_stage, probe_verdict, word_note)
from cxr_lib.patients import FACTS, draw_patients

OPENI = ROOT.parent/'shared'/'data'/'openi'


@pytest.fixture(scope='module')
def people():
    "2,000 simulated patients with their clinical notes"
    patients = draw_patients(2000, seed=1)
    return patients.assign(note=clinical_notes(patients, patients.age, patients.sex, seed=1))


# The yardstick

def openi_indications():
    "Open-i's indications (Demner-Fushman et al. 2016) beside the gold labels, as a study table"
    indications = {}
    with tarfile.open(OPENI/'NLMCXR_reports.tgz') as archive:
        for member in archive:
            if not member.name.endswith('.xml'): continue
            found = re.search(r'<AbstractText Label="INDICATION">(.*?)</AbstractText>', archive.extractfile(member).read().decode('utf-8', 'replace'), re.S)
            indications['CXR' + member.name.rsplit('/', 1)[-1].removesuffix('.xml')] = unescape(found[1]).strip() if found else ''
    gold = pd.read_csv(OPENI/'openi_gld_std14.csv').rename(columns={'normal': 'No Finding'})
    table = pd.DataFrame({'patient_id': gold.filename, 'note': gold.filename.map(indications).replace('', None)})
    for o in OBSERVATIONS:
        sources = [s for s, target in NIH_TO_CHEXPERT.items() if target == o and s in gold]
        table[o] = gold[sources].max(axis=1).astype(float) if sources else np.nan
    return len(indications), table


def test_open_i_the_leakage_probe_on_real_requests_gives_the_yardstick(capsys):
    if not OPENI.is_dir(): pytest.skip('the Open-i reports are not at ../shared/data/openi')
    n_reports, table = openi_indications()
    assert n_reports == 3955 and len(table) == 3851 and table.note.notna().mean() > .9
    probe = leakage_probe(table)
    mean = probe.AUROC.mean()
    with capsys.disabled(): print(f'\nOpen-i: mean AUROC of the leakage probe {mean:.3f} over {probe.AUROC.notna().sum()} observations (yardstick {OPENI_YARDSTICK})')
    assert .57 <= mean <= .67 and abs(mean - OPENI_YARDSTICK) <= .05
    assert probe.AUROC.notna().sum() >= 9 and 'no more than real requests' in probe_verdict(probe, 'real')


# What the simulated notes carry

def test_clinical_notes_carry_no_more_than_the_facts_that_were_reported(people):
    "A bag of words does no better than a logistic regression on the reported facts, age and sex themselves"
    reported = people[[f'reported/{f.name}' for f in FACTS]]
    facts = np.column_stack([reported == 1, reported == 0, (people.age - 60)/17, people.sex == 'Male']).astype(float)
    probe, gaps = leakage_probe(people), {}
    for o in OBSERVATIONS:
        if np.isnan(probe.AUROC[o]): continue
        score = cross_val_predict(LogisticRegression(C=1, solver='liblinear'), facts, people[o], groups=people.patient_id, cv=StratifiedGroupKFold(5, shuffle=True, random_state=0), method='predict_proba')[:, 1]
        gaps[o] = probe.AUROC[o] - roc_auc_score(people[o], score)
    assert len(gaps) == 14 and np.mean(list(gaps.values())) <= .03, gaps
    assert max(gaps.values()) <= .06, gaps                                   # of a single observation, with its sampling error
    assert probe.AUROC.mean() > .55                                          # and they do carry something


def test_notes_made_from_labels_are_found_out(people):
    people = people.head(700)
    probe = leakage_probe(people.assign(note=label_leak_notes(people)))
    assert probe.AUROC.mean() > .95 and 'worthless' in probe_verdict(probe, 'label_leak')
    mentions = mention_probe(people.assign(note=label_leak_notes(people)))
    assert (mentions['named where positive'] > .95).all() and mentions['AUROC of the mention'].mean() > .9


def test_clinical_notes_do_not_name_what_only_the_film_shows(people):
    mentions = mention_probe(people)
    assert (mentions['AUROC of the mention'] < .75).all(), mentions
    assert 'words that describe a film' in film_description_report(people)


def test_probe_says_nothing_where_there_is_nothing_to_say(people):
    people = people.head(700)
    shuffled = leakage_probe(people.assign(note=people.note.sample(frac=1, random_state=1).to_numpy()))
    assert abs(shuffled.AUROC.mean() - .5) < .05
    for note in (None, '', 'the same words'):
        probe = leakage_probe(people.assign(note=note))
        assert probe.AUROC.isna().all() and probe.reason.astype(bool).all() and 'undefined' in probe_verdict(probe, 'real')


def test_probe_leaves_out_observations_that_cannot_be_tested_and_says_why(people):
    table = people.head(200).assign(Edema=np.nan, Fracture=1., Pneumonia=-1.)
    table['Cardiomegaly'] = (np.arange(200) < 20).astype(float)
    table.loc[table.index[:20], 'patient_id'] = 'one patient'                # all positives are one patient's films
    probe = leakage_probe(table)
    for o in ('Edema', 'Fracture', 'Pneumonia'): assert np.isnan(probe.AUROC[o]) and 'fewer than 10' in probe.reason[o], o
    assert np.isnan(probe.AUROC['Cardiomegaly']) and 'patients' in probe.reason['Cardiomegaly']


# Odd notes

@pytest.mark.parametrize('odd', [None, float('nan'), '', '   ', '\n\t', 'Fieber, Husten; 発熱 ☃', '(.*[', 'cough ' * 100_000])
def test_every_probe_takes_empty_foreign_and_very_long_notes(people, odd):
    table = people.head(120).copy()
    table['note'] = table.note.astype(object)
    table.loc[table.index[:5], 'note'] = odd
    assert len(leakage_probe(table)) == len(mention_probe(table)) == 14
    assert isinstance(film_description_report(table), str) and film_description_report(table.assign(note=None)) == 'There are no notes.'


def test_a_patient_of_whom_nothing_is_known_gets_a_note_or_none():
    nothing = {f.name: float('nan') for f in FACTS}
    notes = [word_note(nothing, float('nan'), None, np.random.default_rng(i)) for i in range(200)]
    assert all(n is None or (n.strip() and 'nan' not in n.lower().split()) for n in notes) and None in notes
    everything = word_note({f.name: 1. for f in FACTS}, 40., 'Female', np.random.default_rng(0))
    assert len(everything.split()) > 30


def test_leaking_notes_name_each_positive_label_up_to_the_limit(people):
    two = label_leak_notes(people.head(50), max_named=2)
    for note, (_, row) in zip(two, people.head(50).iterrows()):
        positive = [LEAK[o][2] for o in OBSERVATIONS if row[o] == 1]
        assert note.endswith(f'Evaluate for {", ".join(positive[:2])}.')


# The stage

def small_run(tmp_path, monkeypatch, notes=None, dataset='nih'):
    "A run whose exploration is done: 30 patients with labels"
    monkeypatch.setenv('CXR_HOME', str(tmp_path))
    people = draw_patients(30, 2)
    table = people[['patient_id', 'sex', 'age', 'projection', *OBSERVATIONS]].assign(image=[f'{i}.png' for i in range(30)], study_id='s', view='Frontal', note=notes, split=['train', 'tuning', 'test']*10)
    run = RunFolder(tmp_path/'reports'/'small')
    table.to_parquet(run/'studies.parquet')
    write_json(run/'source.json', dict(dataset=dataset, root=str(tmp_path), simulated=False))
    run.finish('exploration', {})
    return run


@pytest.mark.parametrize('mode', ['leak', 'Real', ''])
def test_unknown_note_mode_is_refused_with_the_known_ones(tmp_path, monkeypatch, mode):
    run = small_run(tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=f'unknown note_mode {mode!r}; known are auto, {", ".join(NOTE_MODES)}'): notes_stage(run, note_mode=mode)
    assert not run.done('notes') and not (run/'studies_with_notes.parquet').exists()


def test_real_notes_of_a_source_that_has_none_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="'nih' has no notes of its own; use note_mode clinical"): notes_stage(small_run(tmp_path, monkeypatch), note_mode='real')


def test_real_notes_are_kept_as_they_are_and_blank_ones_become_missing(tmp_path, monkeypatch):
    run = small_run(tmp_path, monkeypatch, ['  Cough, 3 days\n', '   ', None]*10, 'covid')
    table = notes_stage(run, note_mode='auto')
    assert table.note[0] == 'Cough, 3 days' and table.note[1:3].isna().all()
    assert notes_info(run)['n_missing'] == 20 and notes_info(run)['simulated_notes'] is False
    written = [pd.read_csv(tmp_path/'data'/'processed'/f'{name}_with_notes.csv') for name in ('train', 'valid')]
    assert [len(w) for w in written] == [20, 10] and not set(written[0].patient_id) & set(written[1].patient_id)


def test_notes_drawn_from_labels_are_the_same_for_the_same_seed(tmp_path, monkeypatch):
    run = small_run(tmp_path, monkeypatch)
    first, again, other = (notes_stage(run, note_mode='clinical', seed=s).note.fillna('').tolist() for s in (1, 1, 2))
    assert first == again != other
