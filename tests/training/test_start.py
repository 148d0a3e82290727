"""Training that continues from another run's weights: the same architecture, and nobody tested whom it has seen."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from cxr_lib.data.catalogue import DATASETS
from cxr_lib.evaluation.elsewhere import load_elsewhere, read_trained, split_in_run
from cxr_lib.foundations.files import read_json
from cxr_lib.foundations.run import RunError, RunFolder
from cxr_lib.model.fusion import build_model
from cxr_lib.model.presets import make_config
from cxr_lib.model.saved import load_model
from cxr_lib.model.text import learn_tokenizer
from cxr_lib.stages.exploration import exploration_stage
from cxr_lib.stages.model import model_stage
from cxr_lib.stages.notes import notes_stage
from cxr_lib.stages.training import training_stage
from cxr_lib.training.start import Start, started_model

WORDS = learn_tokenizer(['cough and fever', 'chest pain'], 60)


def hospital(root, seed, n=24):
    "A folder of the generic source, patients numbered from 0 as everywhere"
    root.mkdir()
    rng = np.random.default_rng(seed)
    for i in range(n):
        film = np.kron(rng.integers(20, 230, (6, 6)), np.ones((10, 10))).astype(np.uint8)
        Image.fromarray(film).save(root / f'{root.name}{i}.png')
    rows = {
        'image': [f'{root.name}{i}.png' for i in range(n)],
        'patient_id': [str(i) for i in range(n)],
        'view': 'Frontal',
        'projection': 'PA',
        'sex': 'Male',
        'age': 60,
        'note': 'cough',
        'Edema': np.arange(n) % 2,
    }
    pd.DataFrame(rows).to_csv(root / 'studies.csv', index=False)
    return root


def prepared(home, name, root, overrides='', **more):
    "A run up to its model"
    run = RunFolder(home / 'reports' / name)
    exploration_stage(run, dataset='csv', root=str(root), tuning_fraction=0.3, test_fraction=0.3, **more)
    notes_stage(run, probe_encoder=False)
    model_stage(run, preset='tiny', overrides=overrides)
    return run


def trained(run, **more):
    training_stage(run, epochs=1, negative_example=False, n_permutations=1, folds=0, **more)
    return run


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv('CXR_HOME', str(tmp_path))
    (tmp_path / 'settings.ini').write_text('[DEFAULT]\nlib_name = cxr_lib\n')
    return tmp_path


@pytest.fixture
def first(home):
    return trained(prepared(home, 'first', hospital(home / 'east', 0)))


def test_weights_tokenizer_and_people_are_taken_over_and_recorded(home, first):
    run = trained(prepared(home, 'second', hospital(home / 'west', 1)), start_from='first')
    facts = read_json(run / 'model' / 'config.json')
    assert facts['start_from'].startswith('first (fingerprint ')
    assert run.params('training')['start_from'] == 'first'
    assert len(run.params('training')['start_fingerprint']) == 16
    same = [(folder / 'model' / 'tokenizer.json').read_bytes() for folder in (first, run)]
    assert same[0] == same[1]
    learned = pd.read_parquet(run / 'started_from.parquet')
    studies = pd.read_parquet(first / 'studies.parquet')
    assert len(learned) == (studies.split != 'test').sum()


def test_whoever_the_first_weights_have_seen_is_left_out_of_an_external_evaluation(home, first):
    run = trained(prepared(home, 'second', hospital(home / 'west', 1)), start_from='first')
    elsewhere = load_elsewhere('csv', home / 'east')
    known = split_in_run(read_trained(run), elsewhere)
    studies = pd.read_parquet(first / 'studies.parquet').set_index('image').split
    expected = studies.reindex(elsewhere.table.image).ne('test').to_numpy()
    assert ((known == 'train').to_numpy() == expected).all()


def test_another_split_of_the_same_patients_is_refused_and_they_are_named(home, first):
    run = prepared(home, 'second', home / 'east', seed=5)
    with pytest.raises(
        ValueError, match=r"test patients of this run were trained or tuned on by 'first', from which"
    ):
        trained(run, start_from='first')
    assert not (run / 'model').exists()


def test_the_same_split_of_the_same_patients_is_no_reason_to_refuse(home, first):
    assert (trained(prepared(home, 'second', home / 'east'), start_from='first') / 'model').exists()


def test_people_are_followed_over_three_runs(home, first):
    trained(prepared(home, 'second', hospital(home / 'west', 1)), start_from='first')
    third = prepared(home, 'third', home / 'east', seed=5)
    with pytest.raises(ValueError, match="trained or tuned on by 'second'"):
        trained(third, start_from='second')


def test_another_architecture_is_refused_with_what_differs(home, first):
    run = prepared(home, 'second', hospital(home / 'west', 1), overrides='image_size=96 fusion_dim=32')
    with pytest.raises(
        ValueError, match='image_size is 96 here and 64 there; fusion_dim is 32 here and 64 there'
    ):
        trained(run, start_from='first')


def test_a_run_without_a_model_is_refused(home, first):
    run = prepared(home, 'second', hospital(home / 'west', 1))
    with pytest.raises(RunError, match='holds no trained model'):
        trained(run, start_from='second')


def test_a_training_of_no_epochs_of_learning_keeps_what_it_began_with(home, first):
    run = prepared(home, 'second', hospital(home / 'west', 1), overrides='lr=1e-12 note_lr=1e-12 ema=0.0')
    trained(run, start_from='first')
    before, after = (load_model(folder / 'model')[0].state_dict() for folder in (first, run))
    moved = [k for k in before if before[k].is_floating_point() and 'running' not in k]
    assert all(torch.allclose(before[k], after[k], atol=1e-5) for k in moved)


def test_lora_begins_at_the_answers_of_the_other_model():
    overrides = 'freeze_text=true lora_rank=2 lora_on=text'
    pytest.importorskip('peft')
    first = build_model(make_config('tiny'), WORDS).eval()
    with torch.no_grad():
        first.head[-1].weight.normal_()
    config = replace(first.config, text_config=first.text_encoder.config.to_dict())
    start = Start('first', '0', config, first.state_dict(), WORDS)
    model = started_model(make_config('tiny', overrides), start).eval()
    ids = torch.randint(5, 30, (2, 6))
    batch = dict(pixels=torch.randint(0, 255, (2, 64, 64), dtype=torch.uint8), input_ids=ids)
    batch |= dict(attention_mask=torch.ones_like(ids), has_note=torch.ones(2, dtype=torch.bool))
    with torch.no_grad():
        assert torch.allclose(first(**batch)['fused'], model(**batch)['fused'], atol=1e-6)
    assert any('lora_' in k for k in model.state_dict())


def test_five_folds_are_still_the_default_of_nih():
    assert DATASETS['nih'].folds == 5
