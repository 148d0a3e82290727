"""Training on several sources and on two folders: who is tested by which model, and whom the list keeps out."""

import numpy as np
import pandas as pd
import pytest
from test_start import hospital, prepared, trained

from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.foundations.files import read_json
from cxr_lib.foundations.run import RunFolder
from cxr_lib.stages.evaluation import evaluate_stage
from cxr_lib.stages.exploration import exploration_stage
from cxr_lib.stages.model import model_stage
from cxr_lib.stages.notes import notes_stage
from cxr_lib.stages.training import training_stage
from cxr_lib.training.folds import source_splits


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv('CXR_HOME', str(tmp_path))
    (tmp_path / 'settings.ini').write_text('[DEFAULT]\nlib_name = cxr_lib\n')
    return tmp_path


def relabelled(root, observation):
    "The same hospital, which annotates another observation beside Edema"
    table = pd.read_csv(root / 'studies.csv')
    table.assign(**{observation: [0, 1] * (len(table) // 2)}).to_csv(root / 'studies.csv', index=False)
    return root


def run_of(home, name, **exploration):
    run = RunFolder(home / 'reports' / name)
    exploration_stage(run, tuning_fraction=0.3, **exploration)
    notes_stage(run, probe_encoder=False)
    model_stage(run, preset='tiny')
    return run


TRAINING = dict(epochs=1, negative_example=False, n_permutations=1)


def test_each_source_is_tested_by_a_model_of_the_others_and_only_on_what_they_annotate(home):
    east, west = hospital(home / 'east', 0), relabelled(hospital(home / 'west', 1), 'Fracture')
    run = run_of(home, 'both', dataset='csv,csv', root=f'{east},{west}')
    table = training_stage(run, folds_by='source', **TRAINING)
    test = table[table.split == 'test']
    assert test.groupby('fold').source.unique().map(list).tolist() == [['csv'], ['csv-2']]
    tuned = table[table.split == 'tuning']
    assert tuned.groupby('fold').source.unique().map(list).tolist() == [['csv-2'], ['csv']]
    # Fracture is annotated in the west alone, so the model that tests the west has never learned it
    assert test['label/Fracture'].isna().all()
    assert read_json(run / 'conditions.json')['untrained'] == {'1': ['Fracture']}
    metrics = evaluate_stage(run, n_bootstrap=20)
    assert metrics['sources']['left_out'] == ['csv', 'csv-2']
    assert any(s.startswith('LEAVE ONE SOURCE OUT') for s in metrics['verdict'])
    assert (run / 'sources.png').exists()
    assert '2 sources: each was tested by a model' in (run / 'model_card.md').read_text(encoding='utf-8')


def test_folds_by_source_need_several(home):
    run = prepared(home, 'one', hospital(home / 'east', 0))
    with pytest.raises(ValueError, match="folds_by is 'source', and these data come from one source"):
        trained(run, folds_by='source')


def test_a_list_that_the_exploration_could_keep_stops_folds_that_would_train_on_it(home):
    (home / 'list.txt').write_text('0\n')
    run = RunFolder(home / 'reports' / 'listed')
    east = hospital(home / 'east', 0)
    table = pd.read_csv(east / 'studies.csv')
    table['split'] = np.where(
        table.patient_id < 6, 'test', np.where(table.patient_id < 12, 'tuning', 'train')
    )
    table.to_csv(east / 'studies.csv', index=False)
    exploration_stage(run, dataset='csv', root=str(east), exclude_patients=str(home / 'list.txt'))
    notes_stage(run, probe_encoder=False)
    model_stage(run, preset='tiny')
    with pytest.raises(
        ValueError, match=r'1 patient of the list exclude_patients \(list.txt\).* patients: 0\.'
    ):
        training_stage(run, folds=2, **TRAINING)
    assert not (run / 'model').exists()


def test_the_splits_of_sources_do_not_depend_on_the_order_of_rows():
    table = pd.DataFrame(
        {'patient_id': [f'{s}:{i}' for s in 'ab' for i in range(20)], 'source': list('a' * 20 + 'b' * 20)}
    )
    table = table.assign(**dict.fromkeys(OBSERVATIONS, 0.0))
    forwards = source_splits(table)
    shuffled = table.sample(frac=1, random_state=0).sort_values('source', kind='stable')
    backwards = [pd.Series(s, shuffled.index).sort_index().tolist() for s in source_splits(shuffled)]
    assert [s.tolist() for s in forwards] == backwards
