"""Training: a run that is killed ends as if it had not been; odd labels and missing notes do not stop it."""
import json
import os
import random
import shutil
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cxr_lib.core import OBSERVATIONS, RunFolder, seed_everything, write_json
from cxr_lib.data import DATASETS, check_patient_splits
from cxr_lib.checkpoints import load_model
from cxr_lib.conditions import note_donors, predict_conditions
from cxr_lib.dataset import StudyData, mean_auroc, predict_logits
from cxr_lib.encoders import learn_tokenizer
from cxr_lib.losses import masked_bce, training_targets
from cxr_lib.model import build_model, make_config, model_stage, split_overrides
from cxr_lib.training import ensure_training, fit, fold_splits, training_stage

# Killed and resumed

TRAINER = '''
import shutil, sys, time
from cxr_lib.core import run_folder
from cxr_lib.training import training_stage
import accelerate, sklearn.metrics, transformers.models.bert.modeling_bert, timm
from transformers import BertModel, PreTrainedTokenizerFast
if __name__ == '__main__':
    if sys.argv[1] == 'prepare':
        from cxr_lib.data import exploration_stage
        from cxr_lib.model import model_stage
        from cxr_lib.notes import notes_stage
        run = run_folder('prepared')
        exploration_stage(run, n_patients=48, image_size=64, seed=1); notes_stage(run); model_stage(run, overrides='image_size=64')
        shutil.copytree(run.path, run.path.with_name('whole'))
    for name in sys.argv[1:] if sys.argv[1] != 'prepare' else ['whole']:
        print('ready', flush=True); start = time.monotonic()
        training_stage(run_folder(name), epochs=3)
        print(time.monotonic() - start, flush=True)
'''


@pytest.fixture(scope='module')
def killed(tmp_path_factory):
    "One run that was left alone and three that were killed at a random moment, then resumed: (reports folder, names of the killed)"
    home = tmp_path_factory.mktemp('home')
    reports, draw = home/'reports', random.Random()
    (home/'trainer.py').write_text(TRAINER)
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'CXR_HOME': str(home), 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'HF_HUB_OFFLINE': '1'}
    def start(*names): return subprocess.Popen([sys.executable, 'trainer.py', *names], cwd=home, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    def finish(process):
        said = process.communicate(timeout=120)[0]
        assert process.returncode == 0, said
        return said.split()
    seconds, names = float(finish(start('prepare'))[-1]), ['killed-0', 'killed-1', 'killed-2']
    for i, name in enumerate(names):
        for _ in range(4):                                                            # a kill that came too late is no kill
            shutil.rmtree(reports/name, ignore_errors=True)
            shutil.copytree(reports/'prepared', reports/name)
            process = start(name)
            assert process.stdout.readline() == 'ready\n'
            time.sleep(seconds*draw.uniform(i, i + 1)/3)
            process.kill()
            process.communicate()
            if not RunFolder(reports/name).done('training'): break
            seconds *= .7
        shutil.copytree(reports/name, reports/f'as-left-{name}')
    finish(start(*names))
    return reports, names


def test_a_killed_and_resumed_run_has_the_weights_and_predictions_of_one_that_was_left_alone(killed):
    reports, names = killed
    whole = pd.read_parquet(reports/'whole'/'predictions.parquet')
    log = pd.read_csv(reports/'whole'/'training_log.csv')
    assert log.groupby('model').epoch.apply(list).to_dict() == {'multimodal': [1, 2, 3], 'label leak': [1, 2, 3]}
    for name in names:
        pd.testing.assert_frame_equal(pd.read_parquet(reports/name/'predictions.parquet'), whole, check_exact=True)
        pd.testing.assert_frame_equal(pd.read_csv(reports/name/'training_log.csv'), log, check_exact=True)
        for file in ('model.safetensors', 'config.json', 'tokenizer.json'): assert (reports/name/'model'/file).read_bytes() == (reports/'whole'/'model'/file).read_bytes(), (name, file)


def test_what_a_kill_leaves_is_whole_or_absent_and_never_marked_as_done(killed):
    reports, names = killed
    for name in names:
        left = RunFolder(reports/f'as-left-{name}')
        assert not left.done('training') and left.done('model')
        for path in (left/'.checkpoints').rglob('[!.]*.pt'): assert torch.load(path, weights_only=True)['epoch'] in (1, 2, 3)
        if (left/'predictions.parquet').exists(): assert len(pd.read_parquet(left/'predictions.parquet'))
        if (left/'model').exists(): load_model(left/'model')


def test_a_finished_run_is_not_trained_again_and_keeps_no_checkpoints(killed, monkeypatch):
    reports, _ = killed
    run = RunFolder(reports/'whole')
    monkeypatch.setattr('cxr_lib.training.fit', None)                                     # would fail if it were called
    assert run.done('training') and len(ensure_training(run)) and not (run/'.checkpoints').exists()


# Labels

def test_label_policies_change_uncertain_labels_and_no_others():
    table = pd.DataFrame({o: [1., 0., -1., np.nan] for o in OBSERVATIONS}).assign(image=list('abcd'))
    for policy, uncertain in (('ignore', np.nan), ('ones', 1.), ('zeros', 0.)):
        assert np.array_equal(training_targets(table, policy)[:, 0].numpy(), np.array([1, 0, uncertain, np.nan], np.float32), equal_nan=True)
    assert table.iloc[2, :14].eq(-1).all()                                                     # the study table itself is left alone


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.sampled_from([0., 1., float('nan')]), min_size=14, max_size=14), min_size=1, max_size=6), st.integers(0, 99))
def test_a_missing_label_never_enters_the_loss(rows, seed):
    targets, logits = torch.tensor(rows), torch.randn(len(rows), 14, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    loss = masked_bce(logits, targets)
    loss.backward()
    there = ~targets.isnan()
    assert torch.isfinite(loss) and (logits.grad[~there] == 0).all() and ((logits.grad[there] != 0).all())
    if there.any(): assert torch.isclose(loss, torch.nn.functional.binary_cross_entropy_with_logits(logits[there], targets[there]), atol=1e-6)


# A run of odd data

def odd_run(tmp_path, monkeypatch, table=None, n=36, splits=('train', 'train', 'tuning', 'test'), **columns):
    "A run up to its model on random films; columns of the study table may be replaced"
    monkeypatch.setenv('CXR_HOME', str(tmp_path))
    rng, films = np.random.default_rng(0), tmp_path/'films'
    films.mkdir()
    for i in range(n): Image.fromarray(rng.integers(0, 256, (32, 32), dtype=np.uint8)).save(films/f'{i}.png')
    base = dict(image=[f'{i}.png' for i in range(n)], patient_id=[f'p{i}' for i in range(n)], study_id='s', view='Frontal', projection='PA', sex='Male', age=50., note='cough and fever, ? pneumonia',
                split=[splits[i % len(splits)] for i in range(n)], **{o: rng.integers(0, 2, n).astype(float) for o in OBSERVATIONS})
    table, run = pd.DataFrame({**base, **columns}), RunFolder(tmp_path/'reports'/'odd')
    table.drop(columns='note').to_parquet(run/'studies.parquet')
    write_json(run/'source.json', dict(dataset='nih', root=str(films), simulated=False))
    run.finish('exploration', {})
    table.to_parquet(run/'studies_with_notes.parquet')
    run.finish('notes', {})
    model_stage(run, overrides='image_size=64')
    return run


def whole(run, predictions, n_test):
    "Is everything there that the evaluation needs?"
    test = predictions[predictions.split == 'test']
    conditions = ('fused', 'image_only', 'note_only', 'shuffled_note', 'missing_note')
    values = test[[f'{c}/{o}' for c in conditions for o in OBSERVATIONS]].to_numpy()
    assert len(test) == n_test and np.isfinite(values).all() and ((values >= 0) & (values <= 1)).all()
    assert run.done('training') and sorted(p.name for p in run.path.iterdir() if p.name.startswith('.')) == ['.stages']
    load_model(run/'model')
    return test


def test_a_data_set_without_any_note_runs_and_its_answers_do_not_depend_on_notes(tmp_path, monkeypatch):
    run = odd_run(tmp_path, monkeypatch, note=None)
    test = whole(run, training_stage(run, epochs=1, folds=0), 9)
    for o in OBSERVATIONS: assert np.allclose(test[f'fused/{o}'], test[f'missing_note/{o}']) and np.ptp(test[f'note_only/{o}']) < 1e-6


def test_no_positives_at_all_runs_and_is_selected_by_loss(tmp_path, monkeypatch):
    run = odd_run(tmp_path, monkeypatch, **{o: 0. for o in OBSERVATIONS})
    whole(run, training_stage(run, epochs=2, folds=0), 9)
    log = pd.read_csv(run/'training_log.csv')
    assert log.tuning_auroc.isna().all() and log.groupby('model').best.any().all()


@pytest.mark.parametrize('label', [np.nan, -1.])
def test_no_certain_label_at_all_runs_and_stays_where_it_began(tmp_path, monkeypatch, label):
    run = odd_run(tmp_path, monkeypatch, **{o: label for o in OBSERVATIONS})
    whole(run, training_stage(run, epochs=1, folds=0, negative_example=False), 9)
    assert (pd.read_csv(run/'training_log.csv').train_loss == 0).all()


def test_a_single_tuning_and_test_patient_run(tmp_path, monkeypatch):
    run = odd_run(tmp_path, monkeypatch, n=20, split=['train']*18 + ['tuning', 'test'])
    whole(run, training_stage(run, epochs=1, folds=0), 1)


@pytest.mark.parametrize('empty', ['train', 'tuning', 'test'])
def test_an_empty_split_is_refused_before_anything_is_trained(tmp_path, monkeypatch, empty):
    run = odd_run(tmp_path, monkeypatch, n=12, splits=[s for s in ('train', 'tuning', 'test') if s != empty])
    with pytest.raises(ValueError, match=f'the {empty} split is empty: there are too few patients'): training_stage(run, epochs=1, folds=0)
    assert not run.done('training') and not (run/'model').exists()


def test_another_label_policy_is_refused(tmp_path, monkeypatch):
    run = odd_run(tmp_path, monkeypatch, n=8)
    with pytest.raises(ValueError, match="unknown label_policy 'maybe'; known are ignore, ones, zeros"): training_stage(run, epochs=1, folds=0, label_policy='maybe')


def test_a_run_with_other_parameters_does_not_resume_from_foreign_checkpoints(tmp_path, monkeypatch):
    run = odd_run(tmp_path, monkeypatch, n=16)
    whole(run, training_stage(run, epochs=1, folds=0, negative_example=False, seed=1), 4)
    first = (run/'model'/'model.safetensors').read_bytes()
    foreign = run/'.checkpoints'/run.key('training', dict(epochs=1, folds=0, label_policy='ignore', negative_example=False, seed=2))
    foreign.mkdir(parents=True)
    (foreign/'multimodal-0.pt').write_bytes(b'not a checkpoint')
    training_stage(run, epochs=1, folds=0, negative_example=False, seed=1)
    assert (run/'model'/'model.safetensors').read_bytes() == first                        # and the same seed gives the same weights


def test_cross_validation_tests_every_patient_once_by_a_model_that_has_not_seen_him(tmp_path, monkeypatch):
    run = odd_run(tmp_path, monkeypatch, n=40, patient_id=[f'p{i//2}' for i in range(40)])
    predictions = training_stage(run, epochs=1, folds=2, negative_example=False)
    test = whole(run, predictions, 40)
    assert test.image.is_unique and set(test.fold) == {0, 1} and json.loads((run/'model'/'config.json').read_text())['fold'] == 0
    for _, fold in predictions.groupby('fold'): check_patient_splits(fold)


@settings(max_examples=40, deadline=None)
@given(patients=st.lists(st.integers(0, 30), min_size=12, max_size=80), folds=st.integers(2, 5), seed=st.integers(0, 999))
def test_folds_never_part_a_patient_and_are_nearly_equal(patients, folds, seed):
    table = pd.DataFrame({'patient_id': [f'p{p}' for p in patients], 'split': None})
    n = table.patient_id.nunique()
    if n < 2*folds:
        with pytest.raises(ValueError, match=f'{folds} folds need at least {2*folds} patients; there are {n}'): fold_splits(table, folds, seed=seed)
        return
    parts = fold_splits(table, folds, seed=seed)
    for part in parts: check_patient_splits(table.assign(split=part))
    assert (np.sum([p == 'test' for p in parts], axis=0) == 1).all()
    sizes = [table.patient_id[p == 'test'].nunique() for p in parts]
    assert max(sizes) - min(sizes) <= 1
    backwards = fold_splits(table.iloc[::-1], folds, seed=seed)
    assert all((a == b[::-1]).all() for a, b in zip(parts, backwards))


def test_small_real_sources_are_cross_validated_by_default():
    assert {name for name, d in DATASETS.items() if d.folds == 5} == {'nih', 'covid'} and all(d.folds in (0, 5) for d in DATASETS.values())


# Predictions

def test_shuffled_notes_and_missing_notes_leave_the_image_as_it_is():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({'image': [f'{i}.png' for i in range(12)], 'patient_id': [f'p{i}' for i in range(12)], 'note': ['fever', 'fall from ladder', None]*4, 'split': 'test', **{o: 0. for o in OBSERVATIONS}})
    seed_everything(0)
    config, tokenizer = make_config('tiny', 'image_size=64'), learn_tokenizer(table.note, 100)
    model = build_model(config, tokenizer).eval()
    data = StudyData(table, '', config, tokenizer, pixels=rng.integers(0, 256, (12, 64, 64), dtype=np.uint8))
    out = predict_conditions(model, data, np.arange(12), seed=3, n_permutations=2).probabilities
    order = note_donors(table, data.notes['has_note'].numpy(), 3, 2)[0][0]
    with torch.no_grad(): by_hand = torch.sigmoid(model(torch.from_numpy(data.pixels), **{k: v[order] for k, v in data.notes.items()})['fused']).numpy()
    assert np.allclose(out['shuffled_note'], by_hand, atol=1e-5)
    assert np.allclose(out['fused'][2::3], out['missing_note'][2::3], atol=1e-6) and not np.allclose(out['fused'][0], out['missing_note'][0], atol=1e-6)


def test_training_stops_after_patience_and_ends_with_its_best_epoch(tmp_path):
    rng = np.random.default_rng(1)
    table = pd.DataFrame({'image': [f'{i}.png' for i in range(40)], 'patient_id': [f'p{i}' for i in range(40)], 'note': 'cough', 'split': ['train', 'tuning']*20, **{o: rng.integers(0, 2, 40).astype(float) for o in OBSERVATIONS}})
    seed_everything(2)
    config, tokenizer = make_config('tiny', 'image_size=64'), learn_tokenizer(['cough'], 50)
    model = build_model(config, tokenizer)
    data = StudyData(table, '', config, tokenizer, pixels=rng.integers(0, 256, (40, 64, 64), dtype=np.uint8))
    log = fit(model, data, data.rows('train'), data.rows('tuning'), split_overrides('tiny', 'epochs=12 patience=1')[1], seed=2)
    best = max(row['tuning_auroc'] for row in log)
    assert log[-1]['epoch'] - max(row['epoch'] for row in log if row['best']) <= 2
    assert mean_auroc(data.targets[data.rows('tuning')].numpy(), predict_logits(model, data, data.rows('tuning'))['fused']) == pytest.approx(best)


# Several processes, and what cannot be written

TOGETHER = '''
import json, sys
import cxr_lib
import numpy as np, pandas as pd, torch
from cxr_lib.core import OBSERVATIONS, seed_everything
from cxr_lib.dataset import StudyData
from cxr_lib.encoders import learn_tokenizer
from cxr_lib.model import build_model, make_config
from cxr_lib.training import fit
rng = np.random.default_rng(4)
n = 48
table = pd.DataFrame({'image': [f'{i}.png' for i in range(n)], 'patient_id': [f'p{i}' for i in range(n)], 'note': ['cough and fever', 'fall from ladder', None]*(n//3),
                      'split': ['train', 'train', 'tuning']*(n//3), **{o: rng.choice([0., 1., np.nan], n) for o in OBSERVATIONS}})
seed_everything(0)
config = make_config('tiny', dict(image_encoder='test_vit', image_size=64, dropout=0., text_config=dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                     hidden_dropout_prob=0., attention_probs_dropout_prob=0.)))
tokenizer = learn_tokenizer(table.note, 100)
data = StudyData(table, '', config, tokenizer, pixels=rng.integers(0, 256, (n, 64, 64), dtype=np.uint8))
log = fit(build_model(config, tokenizer), data, data.rows('train'), data.rows('tuning'), dict(epochs=3, batch_size=8, lr=1e-3, note_lr=1e-3, weight_decay=.01, warmup=.2, note_dropout=.3,
          word_dropout=.3, augment=False, patience=0, accumulate=int(sys.argv[2])), seed=5)
from accelerate import PartialState
if PartialState().is_main_process: json.dump(dict(log=log, processes=PartialState().num_processes), open(sys.argv[1], 'w'))
'''


def test_two_processes_and_two_parts_take_the_steps_of_one(tmp_path):
    (tmp_path/'together.py').write_text(TOGETHER)
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'HF_HUB_OFFLINE': '1', 'ACCELERATE_USE_CPU': 'true'}
    def losses(name, *command, accumulate=1):
        done = subprocess.run([sys.executable, *command, 'together.py', f'{name}.json', str(accumulate)], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        found = json.loads((tmp_path/f'{name}.json').read_text())
        return found['processes'], np.array([[row['train_loss'], row['tuning_loss'], row['tuning_auroc']] for row in found['log']])
    one, two, parts = losses('one'), losses('two', '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2'), losses('parts', accumulate=2)
    assert (one[0], two[0], parts[0]) == (1, 2, 1)
    assert np.abs(one[1] - two[1]).max() < 1e-4 and np.abs(one[1] - parts[1]).max() < 1e-4 and one[1][0, 0] != one[1][-1, 0]


def test_a_folder_that_cannot_be_written_is_reported_before_the_first_epoch(tmp_path, monkeypatch):
    table = pd.DataFrame({'image': [f'{i}.png' for i in range(12)], 'patient_id': [f'p{i}' for i in range(12)], 'note': 'cough', 'split': ['train', 'tuning']*6, **{o: [0., 1.]*6 for o in OBSERVATIONS}})
    config, tokenizer = make_config('tiny', 'image_size=64'), learn_tokenizer(['cough'], 50)
    data = StudyData(table, '', config, tokenizer, pixels=np.zeros((12, 64, 64), np.uint8))
    (tmp_path/'file').write_text('')
    monkeypatch.setattr('cxr_lib.training.batch_rows', lambda *a: [np.arange(4)])
    def training(checkpoint): return fit(build_model(config, tokenizer), data, data.rows('train'), data.rows('tuning'), split_overrides('tiny', 'epochs=1')[1], checkpoint=checkpoint)
    with pytest.raises(OSError, match='Make the folder writable'): training(tmp_path/'file'/'below'/'x.pt')
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr('shutil.disk_usage', lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match='Free space'): training(tmp_path/'x.pt')
    assert not (tmp_path/'x.pt').exists()
