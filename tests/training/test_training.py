"""Training: a run that is killed ends as if it had not been; odd labels and missing notes do not stop it."""

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import roc_auc_score

from cxr_lib.foundations.core import OBSERVATIONS, seed_everything
from cxr_lib.foundations.run import RunFolder, run_folder
from cxr_lib.foundations.files import read_json, write_json
from cxr_lib.data.catalogue import DATASETS
from cxr_lib.stages.exploration import exploration_stage
from cxr_lib.data.studies import check_patient_splits
from cxr_lib.model.saved import load_model
from cxr_lib.training.conditions import note_donors, predict_conditions
from cxr_lib.training.dataset import StudyData, mean_auroc, predict_logits
from cxr_lib.model.text import learn_tokenizer
from cxr_lib.training.losses import masked_bce
from cxr_lib.model.fusion import build_model
from cxr_lib.model.presets import make_config, split_overrides
from cxr_lib.stages.model import model_stage
from cxr_lib.stages.notes import notes_stage
from cxr_lib.training.resume import TrainingProgress, read_checkpoint, write_checkpoint
from cxr_lib.training.steps import Shell, batch_parts, branch_loss, step_seed
from cxr_lib.training.loop import check_finite, fit
from cxr_lib.stages.training import encode_stage, ensure_training, training_stage
from cxr_lib.training.folds import fold_splits

# Killed and resumed: a subprocess imports everything once and forks a child for each training

SETTINGS = dict(
    epochs=3,
    batch_size=8,
    lr=1e-3,
    note_lr=1e-3,
    weight_decay=0.01,
    warmup=0.2,
    note_dropout=0.3,
    word_dropout=0.3,
    augment=False,
    patience=0,
)
SMALL = dict(
    image_encoder='test_vit',
    image_size=64,
    text_config=dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32),
)
N_KILLS = 20


def small_training(n=36, dropout=0.1, seed=0, label_policy='ignore', labels=(0.0, 1.0, np.nan)):
    "A model of a few thousand weights and random films -> (model, data)"
    rng = np.random.default_rng(4)
    table = pd.DataFrame(
        {
            'image': [f'{i}.png' for i in range(n)],
            'patient_id': [f'p{i}' for i in range(n)],
            'note': ['cough and fever', 'fall from ladder', None] * (n // 3),
            'split': ['train', 'train', 'tuning'] * (n // 3),
            **{o: rng.choice(labels, n) for o in OBSERVATIONS},
        }
    )
    words = SMALL['text_config'] | dict(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    seed_everything(seed)
    config = make_config('tiny', SMALL | dict(dropout=dropout, text_config=words))
    tokenizer = learn_tokenizer(table.note, 100)
    return build_model(config, tokenizer), StudyData(
        table, '', config, tokenizer, label_policy, pixels=rng.integers(0, 256, (n, 64, 64), dtype=np.uint8)
    )


def train_small(model, data, checkpoint=None, **settings):
    more = {k: settings.pop(k) for k in ('on_epoch', 'tensorboard', 'seed', 'branches') if k in settings}
    return fit(
        model,
        data,
        data.rows('train'),
        data.rows('tuning'),
        SETTINGS | settings,
        checkpoint=checkpoint,
        **(dict(seed=5) | more),
    )


def fingerprint(model):
    return hashlib.sha256(b''.join(v.numpy().tobytes() for v in model.state_dict().values())).hexdigest()


def test_the_branch_of_the_note_learns_nothing_from_wrong_notes():
    model, data = small_training(dropout=0.0)
    before = fingerprint(model)
    train_small(model, data, branches=('note',), wrong_note=1.0, weight_decay=0.0)
    assert fingerprint(model) == before
    train_small(model, data, branches=('note',), wrong_note=0.5, weight_decay=0.0)
    assert fingerprint(model) != before


def in_child(work, *args):
    "Do something in a forked child -> its process number"
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        work(*args)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def kill_after(process, seconds):
    "Kill a child -> was it still at work?"
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])


def timed(work, *args):
    start = time.monotonic()
    process = in_child(work, *args)
    assert os.waitpid(process, 0)[1] == 0
    return time.monotonic() - start


def train_in_folder(folder):
    model, data = small_training()
    log = train_small(
        model, data, folder / 'last.pt', accumulate=2, ema=0.9, augment=True, checkpoint_minutes=0.0
    )
    write_json(folder / 'end.json', dict(weights=fingerprint(model), log=log))


def kill_small_trainings(home, draw):
    "Kill as many trainings, each at another moment, and let them go on"
    (home / 'small-whole').mkdir()
    seconds, found = timed(train_in_folder, home / 'small-whole'), []
    for k in range(N_KILLS):
        folder = home / f'small-{k}'
        for attempt in range(6):  # a kill that came too late is no kill
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            if (
                kill_after(
                    in_child(train_in_folder, folder),
                    seconds * 0.9**attempt * draw.uniform(k, k + 1) / N_KILLS,
                )
                and not (folder / 'end.json').exists()
            ):
                break
        left = read_checkpoint(folder / 'last.pt')
        found.append(
            dict(
                left=None if left is None else [left['progress']['epoch'], left['progress']['step']],
                ended=(folder / 'end.json').exists(),
            )
        )
        (folder / '.last.4711.tmp.pt').write_bytes(b'half')  # as of a process that was killed while it wrote
        timed(train_in_folder, folder)
        found[-1] |= dict(end=read_json(folder / 'end.json'), files=sorted(p.name for p in folder.iterdir()))
    write_json(home / 'small.json', dict(whole=read_json(home / 'small-whole' / 'end.json'), killed=found))


def prepare_stage():
    run = run_folder('prepared')
    exploration_stage(run, n_patients=48, image_size=64, seed=1)
    notes_stage(run)
    model_stage(run, overrides=dict(SMALL, checkpoint_minutes=0.0))


def train_stage(name):
    training_stage(run_folder(name), epochs=3, n_permutations=2)


def kill_stages(home, draw):
    "Kill a whole stage at three moments, and let it go on"
    reports, names = home / 'reports', ['killed-0', 'killed-1', 'killed-2']
    timed(prepare_stage)
    shutil.copytree(reports / 'prepared', reports / 'whole')
    seconds = timed(train_stage, 'whole')
    for k, name in enumerate(names):
        for attempt in range(6):
            shutil.rmtree(reports / name, ignore_errors=True)
            shutil.copytree(reports / 'prepared', reports / name)
            if kill_after(
                in_child(train_stage, name), seconds * 0.8**attempt * draw.uniform(k, k + 1) / 3
            ) and not RunFolder(reports / name).done('training'):
                break
        shutil.copytree(reports / name, reports / f'as-left-{name}')
        timed(train_stage, name)


def kill_all(home):
    # imported once, for all children
    import accelerate, matplotlib.pyplot, scipy.special  # noqa: F401
    import sklearn.metrics, timm.utils, transformers.models.bert.modeling_bert  # noqa: F401

    torch.set_num_threads(1)
    draw = random.Random()
    kill_stages(Path(home), draw)
    kill_small_trainings(Path(home), draw)


def environment(home):
    return {
        **os.environ,
        'PYTHONPATH': os.pathsep.join([str(ROOT), str(ROOT / 'tests')]),
        'CXR_HOME': str(home),
        'OMP_NUM_THREADS': '1',
        'CUDA_VISIBLE_DEVICES': '',
        'HF_HUB_OFFLINE': '1',
        'TOKENIZERS_PARALLELISM': 'false',
        'ACCELERATE_USE_CPU': 'true',
        'MPLBACKEND': 'agg',
    }


@pytest.fixture(scope='module')
def killed(tmp_path_factory):
    "Runs left alone, and others killed at random moments, then resumed: (home, names of the killed stages)"
    if not hasattr(os, 'fork'):
        pytest.skip('this system has no fork')
    home = tmp_path_factory.mktemp('home')
    done = subprocess.run(
        [sys.executable, '-c', f'from training import test_training; test_training.kill_all({str(home)!r})'],
        cwd=home,
        env=environment(home),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return home, ['killed-0', 'killed-1', 'killed-2']


def test_a_training_that_is_killed_at_any_moment_ends_with_the_same_weights_and_log_to_the_last_bit(killed):
    found = json.loads((killed[0] / 'small.json').read_text())
    # all were killed before their end
    assert len(found['killed']) == N_KILLS
    assert not any(k['ended'] for k in found['killed'])
    for k in found['killed']:
        assert k['end'] == found['whole'], k['left']
    assert all(
        k['files'] == ['end.json', 'last.previous.pt', 'last.pt'] for k in found['killed']
    )  # nothing half-written stays
    inside = {tuple(k['left']) for k in found['killed'] if k['left'] and k['left'][1]}
    assert len(inside) >= 2, inside  # epoch and step: some went on from within an epoch


def test_a_killed_and_resumed_run_has_the_weights_and_predictions_of_one_that_was_left_alone(killed):
    reports, names = killed[0] / 'reports', killed[1]
    whole = pd.read_parquet(reports / 'whole' / 'predictions.parquet')
    log = pd.read_csv(reports / 'whole' / 'training_log.csv')
    assert log.groupby('model').epoch.apply(list).to_dict() == {
        'multimodal': [1, 2, 3],
        'label leak': [1, 2, 3],
    }
    for name in names:
        pd.testing.assert_frame_equal(
            pd.read_parquet(reports / name / 'predictions.parquet'), whole, check_exact=True
        )
        pd.testing.assert_frame_equal(pd.read_csv(reports / name / 'training_log.csv'), log, check_exact=True)
        for file in ('model.safetensors', 'config.json', 'tokenizer.json'):
            assert (reports / name / 'model' / file).read_bytes() == (
                reports / 'whole' / 'model' / file
            ).read_bytes(), (name, file)


def test_what_a_kill_leaves_is_whole_or_absent_and_never_marked_as_done(killed):
    reports, names = killed[0] / 'reports', killed[1]
    for name in names:
        left = RunFolder(reports / f'as-left-{name}')
        assert not left.done('training') and left.done('model')
        for path in (left / '.checkpoints').rglob('[!.]*.pt'):
            assert torch.load(path, weights_only=True)['epoch'] in (0, 1, 2, 3)
        if (left / 'predictions.parquet').exists():
            assert len(pd.read_parquet(left / 'predictions.parquet'))
        if (left / 'model').exists():
            load_model(left / 'model')


def test_a_finished_run_is_not_trained_again_and_keeps_no_checkpoints(killed, monkeypatch):
    run = RunFolder(killed[0] / 'reports' / 'whole')
    monkeypatch.setattr('cxr_lib.stages.training.fit', None)  # would fail if it were called
    assert run.done('training') and len(ensure_training(run)) and not (run / '.checkpoints').exists()


# A run of odd data


def odd_run(tmp_path, monkeypatch, table=None, n=36, splits=('train', 'train', 'tuning', 'test'), **columns):
    "A run up to its model on random films; columns of the study table may be replaced"
    monkeypatch.setenv('CXR_HOME', str(tmp_path))
    rng, films = np.random.default_rng(0), tmp_path / 'films'
    films.mkdir()
    for i in range(n):
        Image.fromarray(rng.integers(0, 256, (32, 32), dtype=np.uint8)).save(films / f'{i}.png')
    base = dict(
        image=[f'{i}.png' for i in range(n)],
        patient_id=[f'p{i}' for i in range(n)],
        study_id='s',
        view='Frontal',
        projection='PA',
        sex='Male',
        age=50.0,
        note='cough and fever, ? pneumonia',
        split=[splits[i % len(splits)] for i in range(n)],
        **{o: rng.integers(0, 2, n).astype(float) for o in OBSERVATIONS},
    )
    table, run = pd.DataFrame({**base, **columns}), RunFolder(tmp_path / 'reports' / 'odd')
    table.drop(columns='note').to_parquet(run / 'studies.parquet')
    write_json(run / 'source.json', dict(dataset='nih', root=str(films), simulated=False))
    run.finish('exploration', {})
    table.to_parquet(run / 'studies_with_notes.parquet')
    run.finish('notes', {})
    model_stage(run, overrides='image_size=64')
    return run


def whole(run, predictions, n_test):
    "Is everything there that the evaluation needs?"
    test = predictions[predictions.split == 'test']
    conditions = ('fused', 'image_only', 'note_only', 'shuffled_note', 'missing_note')
    values = test[[f'{c}/{o}' for c in conditions for o in OBSERVATIONS]].to_numpy()
    assert len(test) == n_test and np.isfinite(values).all() and ((values >= 0) & (values <= 1)).all()
    assert run.done('training')
    assert sorted(p.name for p in run.path.iterdir() if p.name.startswith('.')) == ['.stages']
    load_model(run / 'model')
    return test


def test_a_data_set_without_any_note_runs_and_its_answers_do_not_depend_on_notes(tmp_path, monkeypatch):
    run = odd_run(tmp_path, monkeypatch, note=None)
    test = whole(run, training_stage(run, epochs=1, folds=0), 9)
    for o in OBSERVATIONS:
        assert np.allclose(test[f'fused/{o}'], test[f'missing_note/{o}'])
        assert np.ptp(test[f'note_only/{o}']) < 1e-6


def test_no_positives_at_all_runs_and_is_selected_by_loss(tmp_path, monkeypatch):
    run = odd_run(tmp_path, monkeypatch, **{o: 0.0 for o in OBSERVATIONS})
    whole(run, training_stage(run, epochs=2, folds=0, loss='weighted_bce', precision='bf16'), 9)
    assert {k: run.params('training')[k] for k in ('loss', 'precision')} == dict(
        loss='weighted_bce', precision='bf16'
    )
    log = pd.read_csv(run / 'training_log.csv')
    assert log.tuning_auroc.isna().all() and log.groupby('model').best.any().all()


@pytest.mark.parametrize('label', [np.nan, -1.0])
def test_no_certain_label_at_all_runs_and_stays_where_it_began(tmp_path, monkeypatch, label):
    run = odd_run(tmp_path, monkeypatch, **{o: label for o in OBSERVATIONS})
    whole(run, training_stage(run, epochs=1, folds=0, negative_example=False), 9)
    assert (pd.read_csv(run / 'training_log.csv').train_loss == 0).all()


def test_a_run_with_three_classes_gives_probabilities_like_any_other(tmp_path, monkeypatch):
    rng = np.random.default_rng(3)
    run = odd_run(
        tmp_path, monkeypatch, **{o: rng.choice([0.0, 1.0, -1.0, np.nan], 36) for o in OBSERVATIONS}
    )
    whole(run, training_stage(run, epochs=1, folds=0, label_policy='multiclass'), 9)
    assert (pd.read_csv(run / 'training_log.csv').train_loss > 0).all()


def test_a_single_tuning_and_test_patient_run(tmp_path, monkeypatch):
    run = odd_run(tmp_path, monkeypatch, n=20, split=['train'] * 18 + ['tuning', 'test'])
    whole(run, training_stage(run, epochs=1, folds=0, seed=2**32 - 1), 1)  # and the largest seed


@pytest.mark.parametrize('empty', ['train', 'tuning', 'test'])
def test_an_empty_split_is_refused_before_anything_is_trained(tmp_path, monkeypatch, empty):
    run = odd_run(tmp_path, monkeypatch, n=12, splits=[s for s in ('train', 'tuning', 'test') if s != empty])
    with pytest.raises(ValueError, match=f'the {empty} split is empty: there are too few patients'):
        training_stage(run, epochs=1, folds=0)
    assert not run.done('training') and not (run / 'model').exists()


def test_another_label_policy_is_refused(tmp_path, monkeypatch):
    run = odd_run(tmp_path, monkeypatch, n=8)
    with pytest.raises(ValueError, match="unknown label_policy 'maybe'; known are ignore, ones, zeros"):
        training_stage(run, epochs=1, folds=0, label_policy='maybe')


@pytest.mark.parametrize(
    'wrong, why',
    [
        (dict(loss='hinge'), "loss is 'hinge'; known are bce"),
        (dict(precision='fp8'), "precision is 'fp8'; expected auto, no, bf32, bf16 or fp16"),
    ],
)
def test_another_loss_or_precision_is_refused_before_anything_is_touched(tmp_path, monkeypatch, wrong, why):
    run = odd_run(tmp_path, monkeypatch, n=8)
    before = sorted(p.name for p in run.path.rglob('*'))
    with pytest.raises(ValueError, match=why):
        training_stage(run, epochs=1, folds=0, **wrong)
    assert sorted(p.name for p in run.path.rglob('*')) == before


def test_a_run_with_other_parameters_does_not_resume_from_foreign_checkpoints(tmp_path, monkeypatch):
    run = odd_run(tmp_path, monkeypatch, n=16)
    whole(run, training_stage(run, epochs=1, folds=0, negative_example=False, seed=1), 4)
    first = (run / 'model' / 'model.safetensors').read_bytes()
    foreign = (
        run
        / '.checkpoints'
        / run.key('training', dict(epochs=1, folds=0, label_policy='ignore', negative_example=False, seed=2))
    )
    foreign.mkdir(parents=True)
    (foreign / 'multimodal-0.pt').write_bytes(b'not a checkpoint')
    training_stage(run, epochs=1, folds=0, negative_example=False, seed=1)
    assert (
        run / 'model' / 'model.safetensors'
    ).read_bytes() == first  # and the same seed gives the same weights


def test_cross_validation_tests_every_patient_once_by_a_model_that_has_not_seen_him(tmp_path, monkeypatch):
    run = odd_run(tmp_path, monkeypatch, n=40, patient_id=[f'p{i // 2}' for i in range(40)])
    predictions = training_stage(run, epochs=1, folds=2, negative_example=False)
    test = whole(run, predictions, 40)
    assert test.image.is_unique
    assert set(test.fold) == {0, 1}
    assert json.loads((run / 'model' / 'config.json').read_text())['fold'] == 0
    for _, fold in predictions.groupby('fold'):
        check_patient_splits(fold)


@settings(max_examples=40, deadline=None)
@given(
    patients=st.lists(st.integers(0, 30), min_size=12, max_size=80),
    folds=st.integers(2, 5),
    seed=st.integers(0, 999),
)
def test_folds_never_part_a_patient_and_are_nearly_equal(patients, folds, seed):
    table = pd.DataFrame({'patient_id': [f'p{p}' for p in patients], 'split': None})
    n = table.patient_id.nunique()
    if n < 2 * folds:
        with pytest.raises(
            ValueError, match=f'{folds} folds need at least {2 * folds} patients; there are {n}'
        ):
            fold_splits(table, folds, seed=seed)
        return
    parts = fold_splits(table, folds, seed=seed)
    for part in parts:
        check_patient_splits(table.assign(split=part))
    assert (np.sum([p == 'test' for p in parts], axis=0) == 1).all()
    sizes = [table.patient_id[p == 'test'].nunique() for p in parts]
    assert max(sizes) - min(sizes) <= 1
    backwards = fold_splits(table.iloc[::-1], folds, seed=seed)
    assert all((a == b[::-1]).all() for a, b in zip(parts, backwards))


def test_small_real_sources_are_cross_validated_by_default():
    assert {name for name, d in DATASETS.items() if d.folds == 5} == {'nih', 'covid'}
    assert all(d.folds in (0, 5) for d in DATASETS.values())


# Predictions


def test_shuffled_notes_and_missing_notes_leave_the_image_as_it_is():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            'image': [f'{i}.png' for i in range(12)],
            'patient_id': [f'p{i}' for i in range(12)],
            'note': ['fever', 'fall from ladder', None] * 4,
            'split': 'test',
            **{o: 0.0 for o in OBSERVATIONS},
        }
    )
    seed_everything(0)
    config, tokenizer = make_config('tiny', 'image_size=64'), learn_tokenizer(table.note, 100)
    model = build_model(config, tokenizer).eval()
    data = StudyData(table, '', config, tokenizer, pixels=rng.integers(0, 256, (12, 64, 64), dtype=np.uint8))
    out = predict_conditions(model, data, np.arange(12), seed=3, n_permutations=2).probabilities
    order = note_donors(table, data.notes['has_note'].numpy(), 3, 2)[0][0]
    with torch.no_grad():
        by_hand = torch.sigmoid(
            model(torch.from_numpy(data.pixels), **{k: v[order] for k, v in data.notes.items()})['fused']
        ).numpy()
    assert np.allclose(out['shuffled_note'], by_hand, atol=1e-5)
    assert np.allclose(out['fused'][2::3], out['missing_note'][2::3], atol=1e-6)
    assert not np.allclose(out['fused'][0], out['missing_note'][0], atol=1e-6)


def test_training_stops_after_patience_and_ends_with_its_best_epoch(tmp_path):
    rng = np.random.default_rng(1)
    table = pd.DataFrame(
        {
            'image': [f'{i}.png' for i in range(40)],
            'patient_id': [f'p{i}' for i in range(40)],
            'note': 'cough',
            'split': ['train', 'tuning'] * 20,
            **{o: rng.integers(0, 2, 40).astype(float) for o in OBSERVATIONS},
        }
    )
    seed_everything(2)
    config, tokenizer = make_config('tiny', 'image_size=64'), learn_tokenizer(['cough'], 50)
    model = build_model(config, tokenizer)
    data = StudyData(table, '', config, tokenizer, pixels=rng.integers(0, 256, (40, 64, 64), dtype=np.uint8))
    log = fit(
        model,
        data,
        data.rows('train'),
        data.rows('tuning'),
        split_overrides('tiny', 'epochs=12 patience=1')[1],
        seed=2,
    )
    best = max(row['tuning_auroc'] for row in log)
    assert log[-1]['epoch'] - max(row['epoch'] for row in log if row['best']) <= 2
    assert mean_auroc(
        data.targets[data.rows('tuning')].numpy(), predict_logits(model, data, data.rows('tuning'))['fused']
    ) == pytest.approx(best)


# Several processes


def curves(log):
    return [[row['train_loss'], row['tuning_loss'], row['tuning_auroc']] for row in log]


def curves_of_all_sizes():
    "Loss curves of batches that are easy and hard to share: halves, parts, few patients, more processes"
    found = {}
    for name, more in dict(
        plain={},
        parts=dict(accumulate=2),
        ragged=dict(batch_size=5, accumulate=4, epochs=1),
        single=dict(batch_size=1, epochs=1),
    ).items():
        model, data = small_training(n=12 if name == 'single' else 36, dropout=0.0)
        model.text_encoder.pooler = torch.nn.Linear(
            32, 32
        )  # as in many published BERTs: computed, and used by nothing
        found[name] = curves(train_small(model, data, **more))
    return found


def pruned(log):
    if log[-1]['epoch'] == 2:
        raise LookupError('not worth going on')


def work_together(home):
    "What each of two processes does; it tells what it saw"
    from accelerate import PartialState
    from accelerate.utils import gather_object

    rank, wrote = int(os.environ['RANK']), []

    def watch(event, args):
        writes = (
            event == 'open' and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
        made = event == 'os.mkdir' and not os.path.exists(
            args[0]
        )  # "make it if it isn't there" of what is there changes nothing
        if (writes or made or event in ('os.rename', 'os.remove', 'os.rmdir')) and str(args[0]).startswith(
            str(home)
        ):
            wrote.append(f'{event} {args[0]}')

    sys.addaudithook(watch)
    torch.set_num_threads(1)
    found = dict(curves=curves_of_all_sizes())
    # stopped within the second epoch, then resumed
    original, calls = StudyData.batch, [0]

    def stopped(self, *args, **kwargs):
        calls[0] += kwargs.get('has_note') is not None
        if calls[0] > 5:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    StudyData.batch = stopped
    with contextlib.suppress(KeyboardInterrupt):
        train_small(*small_training(dropout=0.0), Path(home) / 'together.pt', checkpoint_minutes=0.0)
    StudyData.batch = original
    model, data = small_training(dropout=0.0, seed=9)  # other weights: those of the checkpoint count
    found['resumed'] = dict(
        calls=calls[0],
        log=train_small(model, data, Path(home) / 'together.pt', checkpoint_minutes=0.0),
        weights=fingerprint(model),
    )
    model, data = small_training(dropout=0.0)
    found['whole'] = dict(log=train_small(model, data), weights=fingerprint(model))
    for name, more in dict(
        pruned=dict(on_epoch=pruned), diverged=dict(lr=1e30, note_lr=1e30, clip=0.0)
    ).items():
        try:
            train_small(*small_training(dropout=0.0), **more)
            found[name] = ''
        except Exception as e:
            found[name] = f'{type(e).__name__}: {e}'
    predictions = training_stage(
        RunFolder(Path(home) / 'reports' / 'odd'), epochs=1, folds=0, n_permutations=2
    )
    found |= dict(
        table=hashlib.sha256(predictions.to_csv().encode()).hexdigest(),
        wrote=len(wrote) if rank == 0 else wrote,
    )
    everyone = gather_object([found])
    if rank == 0:
        write_json(Path(home) / 'together.json', everyone)
    PartialState().destroy_process_group()


@pytest.fixture(scope='module')
def together(tmp_path_factory):
    "What two processes saw, started by torchrun: [main, other]"
    home = tmp_path_factory.mktemp('together')
    with pytest.MonkeyPatch.context() as patch:
        odd_run(home, patch, n=24)
    (home / 'together.py').write_text(
        f'from training import test_training\ntest_training.work_together({str(home)!r})\n'
    )
    done = subprocess.run(
        [
            sys.executable,
            '-m',
            'torch.distributed.run',
            '--standalone',
            '--nproc_per_node',
            '2',
            'together.py',
        ],
        cwd=home,
        env=environment(home),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((home / 'together.json').read_text()), home


def test_two_processes_and_two_parts_take_the_steps_of_one(together, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    one, (main, other) = curves_of_all_sizes(), together[0]
    assert main['curves'] == other['curves'] and one['plain'][0][0] != one['plain'][-1][0]
    for name, curve in one.items():
        assert np.allclose(curve, np.array(main['curves'][name], float), atol=1e-4, rtol=0, equal_nan=True), (
            name,
            curve,
            main['curves'][name],
        )
    assert np.abs(np.array(one['plain']) - np.array(one['parts'])).max() < 1e-4


def test_two_processes_that_were_stopped_within_an_epoch_log_what_they_would_have_logged(together):
    main, other = together[0]
    assert main['resumed']['calls'] == 6
    assert main['resumed']['log'] == main['whole']['log'] == other['resumed']['log']
    assert main['resumed']['weights'] == main['whole']['weights'] == other['resumed']['weights']


def test_what_ends_a_training_ends_it_in_all_processes(together):
    main, other = together[0]
    assert main['pruned'] == 'LookupError: not worth going on'
    assert 'LookupError: not worth going on' in other['pruned']
    assert main['diverged'] == other['diverged'] and main['diverged'].startswith('FloatingPointError: ')


def test_only_the_main_process_writes_and_all_return_the_same_table(together):
    (main, other), home = together
    assert other['wrote'] == [] and main['wrote'] > 10 and main['table'] == other['table']
    run = RunFolder(home / 'reports' / 'odd')
    whole(run, pd.read_parquet(run / 'predictions.parquet'), 6)
    assert hashlib.sha256(ensure_training(run).to_csv().encode()).hexdigest() == main['table']


def test_nothing_is_encoded_beforehand_where_both_encoders_are_trained(tmp_path, monkeypatch):
    odd_run(tmp_path, monkeypatch)
    with pytest.raises(ValueError, match="'tiny', as it is set, trains both encoders: there is nothing to encode"):
        encode_stage(RunFolder(tmp_path / 'reports' / 'odd'), 1, 2)


# What stops a training, what does not, and what it leaves


def test_a_training_ended_from_outside_closes_its_bar_and_its_writer(tmp_path, monkeypatch):
    closed = []

    class Bar:
        def __init__(self, *args, **kwargs):
            pass

        def update(self):
            pass

        def set_postfix(self, **kwargs):
            pass

        def close(self):
            closed.append('bar')

    class Writer:
        def close(self):
            closed.append('writer')

    monkeypatch.setattr('tqdm.auto.tqdm', Bar)
    monkeypatch.setattr('cxr_lib.training.loop._tensorboard', lambda *args: Writer())
    monkeypatch.setattr('cxr_lib.training.loop._write_scalars', lambda *args: None)
    model, data = small_training()
    before = model.forward
    with pytest.raises(LookupError, match='not worth'):
        train_small(
            model, data, on_epoch=pruned, tensorboard=tmp_path, gradient_checkpointing=True, precision='bf16'
        )
    assert sorted(closed) == ['bar', 'writer'] and model.forward == before and not model.training
    assert not any(
        getattr(m, 'gradient_checkpointing', False) or getattr(m, 'grad_checkpointing', False)
        for m in model.modules()
    )
    assert all(p.grad is None for p in model.parameters())


def test_the_log_that_is_passed_on_is_the_whole_log():
    seen = []
    log = train_small(
        *small_training(),
        on_epoch=lambda log: seen.append([(row['epoch'], row['tuning_auroc']) for row in log]),
    )
    assert [len(s) for s in seen] == [1, 2, 3]
    assert seen[-1] == [(row['epoch'], row['tuning_auroc']) for row in log]


def test_products_are_rounded_only_while_a_training_asks_for_it():
    model, data = small_training()
    seen = []
    model.head.register_forward_hook(lambda *_: seen.append(torch.get_float32_matmul_precision()))
    train_small(model, data, precision='bf32', epochs=1)
    assert seen[-1] == 'medium' and torch.get_float32_matmul_precision() == 'highest'
    train_small(model, data, precision='no', epochs=1)
    assert seen[-1] == 'highest'


def test_a_model_trained_in_bf16_computes_in_fp32_afterwards():
    model, data = small_training()
    dtypes, names = [], set(vars(model))
    hook = model.head.register_forward_hook(
        lambda module, given, out: dtypes.append((module.training, out.dtype))
    )
    train_small(model, data, precision='bf16', epochs=1)
    hook.remove()
    assert (True, torch.bfloat16) in dtypes and set(vars(model)) == names
    inside = []
    model.head[2].register_forward_hook(lambda module, given, out: inside.append(out.dtype))
    out = predict_logits(model, data, data.rows('tuning'))
    assert inside == [torch.float32] and out['fused'].dtype == np.float32
    assert train_small(
        model, data, precision='no', epochs=1
    )  # and the next training is in the precision that it asks for
    assert inside[-1] == torch.float32 and set(inside) == {torch.float32}


@pytest.mark.parametrize('seed', [0, 2**32 - 1])
def test_the_smallest_and_the_largest_seed_train(seed):
    model, data = small_training(seed=seed)
    assert np.isfinite([row['train_loss'] for row in train_small(model, data, seed=seed, epochs=1)]).all()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 10_000),
    step=st.integers(0, 10**7),
    part=st.integers(-1, 500),
)
def test_the_seed_of_a_step_is_one_that_torch_takes_and_no_other_has_it(seed, epoch, step, part):
    value = step_seed(seed, epoch, step, part)
    torch.Generator().manual_seed(value)
    assert 0 <= value < 2**63 and value == step_seed(seed, epoch, step, part)
    assert value not in (
        step_seed(seed, epoch, step + 1, part),
        step_seed(seed, epoch + 1, step, part),
        step_seed(seed, epoch, step, part + 1),
        step_seed((seed + 1) % 2**32, epoch, step, part),
    )


@settings(max_examples=80, deadline=None)
@given(n=st.integers(1, 70), accumulate=st.integers(1, 20), processes=st.integers(1, 9))
def test_every_patient_of_a_batch_is_computed_once_and_all_processes_go_back_equally_often(
    n, accumulate, processes
):
    own = [batch_parts(n, accumulate, processes, k) for k in range(processes)]
    assert sorted(i for parts in own for part in parts for i in part) == list(range(n))
    assert len({len(parts) for parts in own}) == 1
    assert len(own[0]) <= accumulate
    assert n < processes or all(len(part) for parts in own for part in parts)
    assert len(own[0][0])


@pytest.fixture(scope='module')
def ended_early(tmp_path_factory):
    "A training that was left alone, and the folder of one that was ended after its second epoch: (weights, folder)"
    folder = tmp_path_factory.mktemp('ended')
    model, data = small_training()
    train_small(model, data)
    with pytest.raises(LookupError):
        train_small(*small_training(), folder / 'last.pt', on_epoch=pruned)
    return fingerprint(model), folder


@pytest.mark.parametrize('damage', ['bit', 'short', 'empty', 'other', 'list', 'both'])
def test_a_damaged_checkpoint_is_reported_and_set_aside_and_the_training_goes_on_from_the_one_before(
    ended_early, tmp_path, damage
):
    weights, folder = ended_early
    shutil.copytree(folder, tmp_path / 'x')
    file = tmp_path / 'x' / 'last.pt'
    content = bytearray(file.read_bytes())
    if damage == 'bit':
        content[len(content) // 2] ^= 1
    elif damage == 'short':
        content = content[: len(content) * 2 // 3]
    elif damage == 'other':
        content = b'not a checkpoint'
    else:
        content = b''
    if damage == 'list':
        torch.save([1, 2], file)
    else:
        file.write_bytes(content)
    if damage == 'both':
        (tmp_path / 'x' / 'last.previous.pt').write_bytes(b'')  # nothing is left: from the beginning
    names = ['last.pt', 'last.previous.pt'] if damage == 'both' else ['last.pt']
    resumed, data = small_training(
        seed=0 if damage == 'both' else 3
    )  # other weights: those of the checkpoint count
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always', UserWarning)
        log = train_small(resumed, data, file)
    assert [str(w.message).split(' (')[0] for w in said if 'damaged' in str(w.message)] == [
        f'{tmp_path / "x" / name} is damaged' for name in names
    ]
    assert {p.name for p in file.parent.glob('*.damaged')} == {f'{name}.damaged' for name in names}
    assert [row['epoch'] for row in log] == [1, 2, 3] and fingerprint(resumed) == weights


def test_the_checkpoint_of_another_model_is_an_error_and_stays(tmp_path):
    model, data = small_training()
    write_checkpoint(
        tmp_path / 'x.pt',
        dict(model={'w': torch.zeros(2)}, optimizer={}, progress=TrainingProgress().state()),
    )
    with pytest.raises(ValueError, match='checkpoint of another model'):
        train_small(model, data, tmp_path / 'x.pt')
    assert [p.name for p in tmp_path.iterdir()] == ['x.pt']


def test_a_disk_that_is_full_later_is_reported_and_the_checkpoint_before_stays(tmp_path, monkeypatch):
    write_checkpoint(
        tmp_path / 'x.pt', dict(model={}, optimizer={}, progress=TrainingProgress().state(), epoch=1)
    )

    def full(content, path):
        Path(path).write_bytes(b'half')
        raise RuntimeError('PytorchStreamWriter failed writing file data/0: file write failed')

    monkeypatch.setattr('torch.save', full)
    with pytest.raises(OSError, match='free space or check the disk'):
        write_checkpoint(tmp_path / 'x.pt', {})
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ['x.pt']
    assert read_checkpoint(tmp_path / 'x.pt')['epoch'] == 1


def test_what_killed_processes_left_half_written_is_removed_and_nothing_else(tmp_path, monkeypatch):
    run = odd_run(tmp_path, monkeypatch, n=12)
    (run / '.model.77.tmp').mkdir()
    (run / '.model.77.tmp' / 'model.safetensors').write_bytes(b'half')
    for name in ('.training_log.77.tmp.csv', '.predictions.77.tmp.parquet', '.mine.csv', '.notes.77.tmp.csv'):
        (run / name).write_bytes(b'half')
    training_stage(run, epochs=1, folds=0, negative_example=False, n_permutations=1)
    assert sorted(p.name for p in run.path.glob('.*')) == ['.mine.csv', '.notes.77.tmp.csv', '.stages']


@pytest.mark.parametrize(
    'how, why',
    [
        (dict(lr=1e30, note_lr=1e30, clip=0.0), 'the loss is'),
        (dict(lr=1e30, note_lr=1e30, batch_size=24), 'on the tuning split|the loss is|the norm'),
    ],
)
def test_a_loss_that_is_no_number_ends_the_training_with_epoch_step_rate_and_remedy(tmp_path, how, why):
    model, data = small_training()
    with pytest.raises(FloatingPointError, match=why) as error:
        train_small(model, data, tmp_path / 'x.pt', checkpoint_minutes=0.0, **how)
    said = str(error.value)
    assert re.search(
        r'in epoch \d, (step \d of \d|on the tuning split), at a learning rate of \de\+(29|30)', said
    )
    assert 'Lower lr and note_lr' in said
    if left := read_checkpoint(tmp_path / 'x.pt'):
        assert len(json.loads(left['progress']['log'])) == left['progress']['epoch']


def test_a_gradient_that_is_no_number_is_an_error_unless_the_scaler_leaves_the_step_out():
    check_finite(0.7, np.inf, True, 'epoch 1', 1e-3)
    check_finite(0.7, 2.0, False, 'epoch 1', 1e-3)
    for loss, norm, scaled in (
        (np.nan, 1.0, True),
        (np.inf, 1.0, False),
        (0.7, np.inf, False),
        (0.7, np.nan, False),
    ):
        with pytest.raises(FloatingPointError, match='in epoch 1, at a learning rate of 0.001'):
            check_finite(loss, norm, scaled, 'epoch 1', 1e-3)


@pytest.mark.parametrize('rows', ['train', 'tuning'])
def test_no_rows_at_all_are_refused(rows):
    model, data = small_training()
    use = {name: data.rows(name) for name in ('train', 'tuning')} | {rows: np.array([], int)}
    with pytest.raises(ValueError, match='both need one at least'):
        fit(model, data, use['train'], use['tuning'], SETTINGS)


# Labels that are uncertain


@pytest.mark.parametrize(
    'policy', ['ignore', 'ones', 'zeros', 'smooth_ones', 'smooth_zeros', 'multiclass', 'best']
)
def test_selection_looks_at_certain_labels_only_whatever_the_policy(policy):
    model, data = small_training(label_policy=policy, labels=(0.0, 1.0, -1.0, np.nan))
    seen = []
    log = train_small(
        model,
        data,
        on_epoch=lambda log: seen.append(predict_logits(model, data, data.rows('tuning'))),
        epochs=2,
    )
    labels = data.table[list(OBSERVATIONS)].to_numpy()[data.rows('tuning')]
    for row, logits in zip(log, seen):
        for column, branch in (
            ('tuning_auroc', 'fused'),
            ('tuning_auroc_image', 'image'),
            ('tuning_auroc_note', 'note'),
        ):
            by_hand = [
                roc_auc_score(y[np.isin(y, (0, 1))], z[np.isin(y, (0, 1))])
                for y, z in zip(labels.T, logits[branch].T)
                if min((y == 0).sum(), (y == 1).sum()) >= 3
            ]
            assert row[column] == pytest.approx(np.mean(by_hand), abs=1e-12)
        assert 0 < row['train_loss'] < 2 and np.isfinite(row['tuning_loss'])


def test_three_classes_learn_from_uncertain_labels_and_leave_the_model_as_it_was(tmp_path):
    model, data = small_training(label_policy='multiclass', labels=(0.0, 1.0, -1.0))
    names, start = set(model.state_dict()), fingerprint(model)
    log = train_small(model, data, tmp_path / 'x.pt')
    assert set(model.state_dict()) == names
    assert fingerprint(model) != start
    assert not model.head._forward_pre_hooks
    left = torch.load(tmp_path / 'x.pt', weights_only=True)['model']
    heads = {k: v for k, v in left.items() if k.startswith('uncertain')}
    # one for each branch, and it has learned
    assert len(heads) == 6
    assert all((v != 0).any() for v in heads.values())
    resumed, data = small_training(label_policy='multiclass', labels=(0.0, 1.0, -1.0), seed=7)
    with pytest.raises(LookupError):
        train_small(
            *small_training(label_policy='multiclass', labels=(0.0, 1.0, -1.0)),
            tmp_path / 'y.pt',
            on_epoch=pruned,
        )
    assert train_small(resumed, data, tmp_path / 'y.pt') == log and fingerprint(resumed) == fingerprint(model)
    with pytest.raises(ValueError, match='multiclass and best are for loss bce'):
        train_small(*small_training(label_policy='multiclass', labels=(0.0, 1.0, -1.0)), loss='asymmetric')


def test_one_logit_more_is_the_softmax_of_three_in_a_training_step():
    model, data = small_training(label_policy='multiclass', labels=(0.0, 1.0, -1.0, np.nan), dropout=0.0)
    shell, y = Shell(model, ('fused', 'image', 'note'), True).eval(), data.targets[:12]
    for p in shell.uncertain.parameters():
        torch.nn.init.normal_(p)
    out, three = shell(**data.batch(torch.arange(12))), torch.ones(14, dtype=torch.bool)
    for b in ('fused', 'image', 'note'):
        logits = torch.stack([torch.zeros_like(out[b]), out[b], out[f'{b}_uncertain']], -1)
        expected = torch.nn.functional.cross_entropy(logits[~y.isnan()], y[~y.isnan()].long() % 3)
        assert torch.isclose(
            branch_loss(out, b, y, (~y.isnan()).sum(), masked_bce, three), expected, atol=1e-5
        )


# What cannot be written, and what is said beforehand


def test_the_memory_that_a_step_needs_is_said_before_the_first(capsys):
    said = []
    train_small(*small_training(), on_epoch=lambda log: said.append(capsys.readouterr().out), accumulate=2)
    assert said[0].startswith('About ')
    assert 'GB of memory at the peak of a step' in said[0]
    assert '4 patients at a time' in said[0]
    assert said[1:] == ['', '']


def test_a_folder_that_cannot_be_written_is_reported_before_the_first_epoch(tmp_path, monkeypatch):
    table = pd.DataFrame(
        {
            'image': [f'{i}.png' for i in range(12)],
            'patient_id': [f'p{i}' for i in range(12)],
            'note': 'cough',
            'split': ['train', 'tuning'] * 6,
            **{o: [0.0, 1.0] * 6 for o in OBSERVATIONS},
        }
    )
    config, tokenizer = make_config('tiny', 'image_size=64'), learn_tokenizer(['cough'], 50)
    data = StudyData(table, '', config, tokenizer, pixels=np.zeros((12, 64, 64), np.uint8))
    (tmp_path / 'file').write_text('')
    monkeypatch.setattr('cxr_lib.training.loop.batch_rows', lambda *a: [np.arange(4)])

    def training(checkpoint):
        return fit(
            build_model(config, tokenizer),
            data,
            data.rows('train'),
            data.rows('tuning'),
            split_overrides('tiny', 'epochs=1')[1],
            checkpoint=checkpoint,
        )

    with pytest.raises(OSError, match='Make the folder writable'):
        training(tmp_path / 'file' / 'below' / 'x.pt')
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr('shutil.disk_usage', lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match='Free space'):
        training(tmp_path / 'x.pt')
    assert not (tmp_path / 'x.pt').exists()
