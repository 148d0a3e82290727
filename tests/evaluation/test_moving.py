"""External validation: what is compared, what is left out, and what a recalibration may be measured on."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from cxr_lib.data.studies import validate_studies
from cxr_lib.evaluation.elsewhere import (
    Elsewhere,
    Predicted,
    TrainedRun,
    choose_split,
    leave_out_seen,
    split_in_run,
)
from cxr_lib.evaluation.moving import (
    cross_fitted,
    evaluate_moving,
    lost_in_moving,
    lost_table,
    recalibration_table,
)
from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.metrics.calibration import fit_calibrations
from cxr_lib.metrics.predictions import synthetic_predictions

N_BOOTSTRAP = 20


def studies_of(predictions):
    "The study table behind a prediction table"
    labels = {o: predictions[f'label/{o}'] for o in OBSERVATIONS}
    columns = ['image', 'patient_id', 'sex', 'age', 'projection', 'view', 'note']
    table = predictions[columns].assign(study_id=predictions.image, split='train', **labels)
    return validate_studies(table.reset_index(drop=True), images=False)


def trained_on(predictions, dataset='nih', root='/home-of/nih', simulated=False):
    "A run whose stored model made these predictions"
    tuning = predictions[predictions.split == 'tuning']
    calibration = fit_calibrations(tuning)['-1']
    classifier = SimpleNamespace(facts=dict(fold=-1), calibration=calibration)
    source = dict(dataset=dataset, root=root, simulated=simulated)
    return TrainedRun('home', classifier, predictions, studies_of(predictions), source, dict(mode='real'))


def moved_to(trained, predictions, dataset='covid', **more):
    "The external validation of a run on the test rows of a prediction table"
    table = predictions[predictions.split == 'test'].reset_index(drop=True)
    elsewhere = Elsewhere(dataset, Path('/there') / dataset, studies_of(table))
    predicted = Predicted(table, np.repeat(table.filter(like='shuffled_note/').to_numpy()[None], 2, 0), {})
    return evaluate_moving(trained, elsewhere, predicted, n_bootstrap=N_BOOTSTRAP, **more)


def overconfident(predictions, factor=3):
    "The same ranking, with log odds that are too large"
    columns = [c for c in predictions if c.split('/')[0] in ('fused', 'image_only', 'note_only')]
    odds = predictions[columns].clip(1e-6, 1 - 1e-6)
    return predictions.assign(**(1 / (1 + ((1 - odds) / odds) ** factor)))


@pytest.fixture(scope='module')
def home():
    return trained_on(synthetic_predictions(300))


def test_the_difference_is_that_of_the_two_aurocs(home):
    there = synthetic_predictions(200, 3, image_evidence=0.7).query('split == "test"').reset_index(drop=True)
    lost = lost_in_moving(home.test, there, ['fused'], ('home', 'there'), N_BOOTSTRAP).set_index(
        'observation'
    )
    areas = []
    for table in (home.test, there):
        known = table['label/Edema'].isin((0, 1))
        areas.append(roc_auc_score(table['label/Edema'][known], table['fused/Edema'][known]))
    row = lost.loc['Edema']
    assert [row.home, row.there] == pytest.approx(areas)
    assert row.difference == pytest.approx(areas[1] - areas[0])
    assert row.difference_low < row.difference < row.difference_high


def test_the_mean_is_over_what_has_enough_cases_in_both_places(home):
    there = synthetic_predictions(200, 3).query('split == "test"').reset_index(drop=True)
    there['label/Edema'] = np.nan
    few = there.index[there['label/Cardiomegaly'] == 1][2:]
    there.loc[few, 'label/Cardiomegaly'] = np.nan
    lost = lost_in_moving(home.test, there, ['fused'], ('home', 'there'), N_BOOTSTRAP).set_index(
        'observation'
    )
    assert lost.loc['Edema', 'reason'] == 'there: not labelled'
    assert lost.loc['Cardiomegaly', 'reason'] == 'there: only 2 positive cases, fewer than 10'
    assert np.isnan(
        lost.loc['Cardiomegaly', ['difference', 'there_low', 'difference_low']].astype(float)
    ).all()
    own = lost.drop(index='Mean')
    compared = own[own.reason == '']
    assert lost.loc['Mean', 'n_observations'] == len(compared) < 14
    assert lost.loc['Mean', 'difference'] == pytest.approx(compared.difference.mean())


@pytest.fixture(scope='module')
def moved(home):
    "To overconfident answers on other patients, by a run that never learned Edema"
    run = trained_on(home.predictions)
    run.studies['Edema'] = np.nan
    return moved_to(run, overconfident(synthetic_predictions(250, 3)))


def test_what_the_run_never_learned_is_not_counted(moved):
    assert moved.moving['observations']['Edema']['annotated'] == 'only the other data'
    assert moved.metrics['observations']['Edema']['reason'] == 'the model was not trained on it'
    assert 'Edema' not in moved.metrics['conditions']['fused']['means']['evaluable']['observations']
    assert moved.lost.query('observation == "Edema"').reason.eq('the model was not trained on it').all()
    assert moved.predictions['label/Edema'].notna().any()  # the file keeps what the source says


def test_calibration_and_thresholds_are_those_of_the_run(home, moved):
    maps = moved.metrics['calibration']['maps']['-1']
    assert maps == home.classifier.calibration['fused']
    assert moved.metrics['n_tuning_images'] == len(home.tuning)
    youden = moved.thresholds.query('rule == "youden"').set_index('observation')
    stored = moved.metrics['thresholds']['fused']
    assert youden.loc['Cardiomegaly', 'trained_threshold'] == pytest.approx(stored['Cardiomegaly']['-1'])


def test_recalibration_mends_what_overconfidence_spoilt(moved):
    errors = moved.moving['recalibrated']['observations']['all']
    assert errors['as_trained']['ece'] > 2 * errors['temperature']['ece']
    assert errors['platt']['ece'] < errors['as_trained']['ece']
    assert not recalibration_table(moved.moving).empty


def test_nobody_is_measured_with_what_was_fitted_to_them(home):
    held, fitted = cross_fitted(home.test)
    for fold, rows in held.groupby('fold'):
        assert not set(rows.patient_id) & set(fitted.patient_id[fitted.fold == fold])
    assert len(held) == len(home.test)
    three = home.test[home.test.patient_id.isin(home.test.patient_id.unique()[:3])]
    assert cross_fitted(three) == (None, None)


def test_a_simulated_model_on_real_images_without_notes_says_both(home):
    run = trained_on(home.predictions, 'simulated', simulated=True)
    moved = moved_to(run, synthetic_predictions(150, 3).assign(note=None))
    assert moved.moving['verdict'][0].startswith('TRAINED ON SIMULATED PATIENTS')
    assert moved.moving['conditions'][0] == 'image_only'
    assert any('There are no notes there' in s for s in moved.moving['verdict'])
    assert 'Mean' in lost_table(moved.lost, 'image_only').index


@pytest.mark.parametrize('dataset, seen', [('chexpert', True), ('covid', False)])
def test_an_encoder_that_was_trained_on_the_data_there_is_named(home, dataset, seen):
    run = trained_on(home.predictions)
    run.architecture = dict(image_encoder='hf:microsoft/rad-dino', image_weights='', text_encoder='')
    verdict = moved_to(run, synthetic_predictions(150, 3), dataset).moving['verdict']
    assert any(s.startswith('THE IMAGE ENCODER HAS SEEN THESE DATA') for s in verdict[:2]) == seen


def table_of(patients, images=None):
    "A study table of these patients"
    table = pd.DataFrame(
        {'image': images or [f'{p}-{k}.png' for k, p in enumerate(patients)], 'patient_id': patients}
    )
    meta = dict(study_id=table.image, view='Frontal', projection=None, sex=None, age=np.nan)
    return validate_studies(table.assign(**meta, **dict.fromkeys(OBSERVATIONS, np.nan)), images=False)


def run_of(patients, splits, dataset='nih', root='/home-of/nih'):
    "A run that has these patients in these splits"
    studies = table_of(patients).assign(split=splits)
    source = dict(dataset=dataset, root=root, simulated=False)
    return TrainedRun('home', SimpleNamespace(facts={}), None, studies, source, {})


def test_patients_of_the_run_are_left_out_also_where_the_image_is_new():
    run = run_of(['a', 'b', 'c'], ['train', 'tuning', 'test'])
    there = Elsewhere('nih', Path('/other/nih'), table_of(['a', 'a', 'b', 'c', 'd']))
    assert split_in_run(run, there).tolist() == ['train', 'train', 'tuning', 'test', None]
    leave_out_seen(run, there)
    assert there.table.patient_id.tolist() == ['c', 'd']
    counts = there.exclusions.counts()
    assert counts['the model of home was trained on this patient'] == 2
    assert counts['the model of home was tuned on this patient'] == 1
    assert "1 images are of the run's own test patients" in there.exclusions.remarks[0]


def test_identifiers_of_another_source_say_nothing():
    run = run_of(['a', 'b', 'c'], ['train', 'tuning', 'test'])
    there = Elsewhere('covid', Path('/other/covid'), table_of(['a', 'b']))
    assert len(leave_out_seen(run, there).table) == 2


def test_identifiers_of_own_tables_count_with_the_name_of_the_image():
    run = run_of(['a', 'b'], ['train', 'tuning'], 'csv', '/home-of/csv')
    moved = Elsewhere('csv', Path('/other/csv'), table_of(['a', 'b'], ['a-0.png', 'new.png']))
    assert split_in_run(run, moved).tolist() == ['train', None]
    same = Elsewhere('csv', Path('/home-of/csv'), table_of(['a', 'b'], ['new.png', 'newer.png']))
    assert split_in_run(run, same).tolist() == ['train', 'tuning']


def test_nothing_left_is_an_error_with_the_remedy():
    run = run_of(['a', 'b'], ['train', 'tuning'])
    there = Elsewhere('nih', Path('/other/nih'), table_of(['a', 'b']))
    with pytest.raises(ValueError, match='trained or tuned on all 2 of these images.*Name another data set'):
        leave_out_seen(run, there)


def test_a_split_is_that_of_the_stored_model_or_of_the_source():
    run = run_of(['a', 'b', 'c'], ['train', 'tuning', 'test'])
    table = table_of(['a', 'c', 'd', 'e']).assign(split=[None, None, 'test', 'train'])
    chosen = {}
    for split in ('', 'train', 'all'):
        there = Elsewhere('nih', Path('/other/nih'), table.copy())
        chosen[split] = choose_split(there, split_in_run(run, there), split).table.patient_id.tolist()
    assert chosen == {'': ['c', 'd'], 'train': ['a', 'e'], 'all': ['a', 'c', 'd', 'e']}
    there = Elsewhere('nih', Path('/other/nih'), table.copy())
    with pytest.raises(ValueError, match="no image in the split 'tuning'; its splits: test, train"):
        choose_split(there, split_in_run(run, there), 'tuning')
