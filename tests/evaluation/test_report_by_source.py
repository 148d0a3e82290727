"""The figures of each source: ranked within it, and held out where its model has not seen it."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from cxr_lib.evaluation.card import check_metrics
from cxr_lib.evaluation.elsewhere import Elsewhere, TrainedRun, split_in_run
from cxr_lib.evaluation.external import comparison_sentence
from cxr_lib.evaluation.report import evaluate
from cxr_lib.evaluation.sources import (
    left_out_sources,
    plot_sources,
    source_report,
    source_sentences,
    source_table,
)
from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.metrics.predictions import synthetic_predictions


@pytest.fixture(scope='module')
def held_out():
    "Fold 0 tests the north by a model of the south, and the other way round"
    table = synthetic_predictions(200, n_folds=2)
    test = table.split == 'test'
    return table.assign(source=np.where((table.fold == 0) == test, 'north', 'south'))


def test_a_model_that_only_tells_the_sources_apart_is_at_chance_within_each():
    table = synthetic_predictions(400, seed=1, image_evidence=0, note_evidence=0, model_noise=0)
    sick = np.arange(len(table)) % 2 == 0
    for o in OBSERVATIONS:
        rng = np.random.default_rng(len(o))
        table[f'label/{o}'] = (rng.random(len(table)) < np.where(sick, 0.8, 0.2)).astype(float)
        for condition in ('fused', 'image_only', 'note_only'):
            table[f'{condition}/{o}'] = np.where(sick, 0.7, 0.3) + rng.normal(0, 0.01, len(table))
    table['source'] = np.where(sick, 'clinic', 'screening')
    whole = evaluate(table, n_bootstrap=20)['conditions']['image_only']['means']['evaluable']['auroc']
    found = source_report(table, 20)['sources']
    assert whole > 0.75
    assert all(abs(s['conditions']['image_only']['mean']['auroc'] - 0.5) < 0.05 for s in found.values())


def test_sources_are_left_out_only_where_their_model_has_tuned_on_none_of_them(held_out):
    assert left_out_sources(held_out) == ['north', 'south']
    mixed = held_out.copy()
    row = mixed.index[(mixed.split == 'tuning') & (mixed.fold == 0)][0]
    mixed.loc[row, 'source'] = 'north'
    assert left_out_sources(mixed) == ['south']


def test_the_verdict_says_what_each_source_has_and_that_it_was_left_out(held_out):
    metrics = check_metrics(evaluate(held_out, n_bootstrap=20))
    said = [s for s in metrics['verdict'] if s.startswith('LEAVE ONE SOURCE OUT')]
    assert len(said) == 1
    assert 'north 0.' in said[0] and 'south 0.' in said[0]
    assert source_table(metrics['sources']).shape == (15, 2)


def test_a_source_without_enough_cases_has_no_mean_and_says_why(held_out):
    table = held_out.copy()
    table.loc[table.source == 'north', [f'label/{o}' for o in OBSERVATIONS]] = np.nan
    report = source_report(table, 20)
    assert 'north no observation has enough cases' in source_sentences(report)[0]
    assert report['sources']['north']['observations']['Edema']['reason'] == 'not labelled in these data'


def test_an_observation_that_only_the_tested_source_labels_was_never_learned(held_out):
    table = held_out.copy()
    table.loc[(table.source == 'south') | (table.split == 'test'), 'label/Fracture'] = np.nan
    found = source_report(table, 20)['sources']
    assert 'never learned it' in found['north']['observations']['Fracture']['reason']
    assert found['south']['observations']['Fracture']['reason'] == 'not labelled in these data'
    assert 'never learned it' in source_table(source_report(table, 20)).loc['Fracture'].iloc[0]


def test_one_source_has_no_such_figures():
    metrics = evaluate(synthetic_predictions(100), n_bootstrap=20)
    assert 'sources' not in metrics
    assert not any('ranked within the source' in s for s in metrics['verdict'])


def seen_by(source, studies, elsewhere):
    "In which split of a run of several folders each patient of another folder is"
    run = TrainedRun('run', None, None, pd.DataFrame(studies), source, {})
    table = pd.DataFrame(elsewhere).assign(note=None)
    return split_in_run(run, Elsewhere('nih', Path('nih').absolute(), table)).tolist()


def test_patients_of_one_of_several_sources_are_recognised_in_its_own_folder():
    parts = [dict(name=n, dataset=n, root=n, below=n, simulated=False) for n in ('nih', 'covid')]
    studies = dict(
        image=['nih/1.png', 'nih/2.png', 'covid/3.png'],
        patient_id=['nih:1', 'nih:2', 'covid:3'],
        source=['nih', 'nih', 'covid'],
        split=['train', 'test', 'train'],
    )
    elsewhere = dict(image=['1.png', '2.png', '3.png'], patient_id=['1', '2', '3'])
    source = dict(dataset='nih,covid', root='.', sources=parts)
    assert seen_by(source, studies, elsewhere) == ['train', 'test', None]


def test_patients_of_both_folders_of_a_source_are_recognised():
    studies = dict(image=['a/1.png', 'b/2.png'], patient_id=['1', '2'], split=['tuning', 'test'])
    source = dict(dataset='nih', root='.', train_root='a', test_root='b')
    elsewhere = dict(image=['1.png', '2.png', '3.png'], patient_id=['1', '2', '3'])
    assert seen_by(source, studies, elsewhere) == ['tuning', 'test', None]


def compared(low, high, own_low, n=9):
    "The mean row of a comparison"
    row = dict(observation='Mean', model='DenseNet-121', n_images=421, n_observations=n, reason='')
    row |= dict(external=0.745, external_low=0.7, external_high=0.79)
    row |= dict(image_only=0.6, image_only_low=own_low, image_only_high=0.65)
    row |= dict(image_only_minus_external=(low + high) / 2)
    row |= dict(image_only_minus_external_low=low, image_only_minus_external_high=high)
    return comparison_sentence(pd.DataFrame([row]))


@pytest.mark.parametrize(
    'low, high, said',
    [
        (-0.2, -0.1, ': WORSE than DenseNet-121, by -0.150 [-0.200, -0.100].'),
        (0.1, 0.2, ': better than DenseNet-121, by 0.150 [0.100, 0.200].'),
        (-0.1, 0.1, ': no difference from DenseNet-121 is shown, 0.000 [-0.100, 0.100].'),
    ],
)
def test_the_sentence_follows_the_interval_of_the_difference(low, high, said):
    sentence = compared(low, high, own_low=0.55)
    assert said in sentence
    assert 'chance' not in sentence


def test_the_sentence_says_where_the_model_is_at_chance():
    assert compared(-0.3, -0.1, own_low=0.5).endswith('This model is not better than chance there.')


def test_observations_that_are_kept_out_for_one_reason_are_named_together(held_out):
    table = held_out.copy()
    table[['label/Fracture', 'label/Edema']] = np.nan
    said = [s for s in evaluate(table, n_bootstrap=20)['verdict'] if s.startswith('Kept out')]
    assert said == ['Kept out of the mean: Edema, Fracture (not labelled in these data).']


def test_the_picture_of_sources_is_not_shown_a_second_time(held_out):
    plot_sources(source_report(held_out, 20))
    assert not plt.get_fignums()
