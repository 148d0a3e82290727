"""Sweeps: processes that share one, processes that die, points that repeat.

And journals, spaces and samplers that cannot be.
"""

import json
import math
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings, strategies as st

pytest.importorskip('optuna', reason='pip install "cxr_lib[train]"')

from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.foundations.files import read_json
from cxr_lib.training.dataset import mean_auroc
from cxr_lib.model.presets import PRESETS, make_config, split_overrides
from cxr_lib.running.plan import plan_run
from cxr_lib.training import sweep
from cxr_lib.training.sweep import (
    GRID,
    TrainTrial,
    check_search,
    check_space,
    expected_maximum,
    grid_for,
    importance_table,
    is_alive,
    open_sweep,
    plot_history,
    plot_importance,
    plot_parallel,
    resampled_scores,
    run_sweep,
    selection_optimism,
    sweep_figures,
    this_process,
    trial_overrides,
    trials_table,
    write_best,
)

SPACE = dict(lr=[0.001, 0.002, 0.004, 0.008], dropout=[0.1, 0.2, 0.3], frozen=['none', 'text'])  # 24 points


def smooth(s, report=None):
    "A score without training"
    score = (
        0.7
        - 0.02 * abs(math.log2(s['lr'] / 0.004))
        - 0.3 * abs(s['dropout'] - 0.2)
        - 0.01 * (s['frozen'] == 'text')
    )
    if report:
        for epoch in (1, 2, 3):
            report(epoch, score * epoch / 3)
    return dict(score=score, epochs=3)


def states(folder):
    return trials_table(open_sweep(folder)).state.value_counts().to_dict()


# ---- several processes

# On Linux the processes are forked: they need not import the library again, which takes longer than all their trials.
PROCESSES = multiprocessing.get_context('fork' if sys.platform == 'linux' else 'spawn')


def work(folder, seconds, n, log):
    def slow(s, report):
        with open(log, 'a') as f:
            f.write(json.dumps(s) + '\n')
        time.sleep(seconds)
        return smooth(s)

    sweep.PATIENCE = 0.05
    run_sweep(folder, slow, SPACE, n_trials=n, sampler='random')


def worker(*args):
    process = PROCESSES.Process(target=work, args=args, daemon=True)
    process.start()
    return process


def begun(log):
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def wait_for(what):
    deadline = time.monotonic() + 90
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_two_processes_share_a_sweep_and_finish_exactly_as_many_trials_as_asked(tmp_path):
    logs = [tmp_path / 'a', tmp_path / 'b']
    both = [worker(tmp_path / 'sweep', 0.1, 11, log) for log in logs]
    for p in both:
        p.join(90)
        assert p.exitcode == 0
    table = pd.read_csv(tmp_path / 'sweep' / 'trials.csv')
    assert len(table) == 11
    assert (table.state == 'finished').all()
    assert not table[list(SPACE)].duplicated().any()
    # both worked, and nothing was done twice
    assert len(begun(logs[0])) + len(begun(logs[1])) == 11
    assert begun(logs[0])
    assert begun(logs[1])
    assert set(table.pid) == {p.pid for p in both}


@pytest.mark.skipif(os.name == 'nt', reason='needs SIGKILL')
def test_a_killed_process_loses_nothing(tmp_path):
    folder, log = tmp_path / 'sweep', tmp_path / 'log'
    process = worker(folder, 0.3, 6, log)
    wait_for(lambda: len(begun(log)) == 3)  # the third trial is under way
    os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    assert states(folder) == {'finished': 2, 'running': 1}  # as it was left
    tried = []
    study = run_sweep(
        folder, lambda s, report: tried.append(s) or smooth(s), SPACE, n_trials=6, sampler='random'
    )
    assert tried[0] == begun(log)[2] and len(tried) == 4  # the lost one first, the finished ones not again
    assert states(folder) == {'finished': 6, 'killed': 1}
    done = trials_table(study).query('state == "finished"')
    assert not done[list(SPACE)].duplicated().any()
    assert (
        run_sweep(folder, None, SPACE, n_trials=6, sampler='random').best_value == study.best_value
    )  # nothing left to do: the objective is not called


@pytest.mark.skipif(os.name == 'nt', reason='needs SIGKILL')
def test_the_survivor_takes_over_while_it_runs(tmp_path):
    "The last trial belongs to a process that dies: the other one waits for it, sees that, and does it"
    slow = worker(tmp_path / 'sweep', 300, 3, tmp_path / 'slow')
    wait_for(lambda: begun(tmp_path / 'slow'))
    fast = worker(tmp_path / 'sweep', 0.01, 3, tmp_path / 'fast')
    wait_for(lambda: len(begun(tmp_path / 'fast')) == 2)
    fast.join(0.5)
    assert fast.is_alive() and len(begun(tmp_path / 'fast')) == 2  # waits
    os.kill(slow.pid, signal.SIGKILL)  # and nobody asks for its exit code: it is gone all the same
    fast.join(60)
    assert fast.exitcode == 0
    assert states(tmp_path / 'sweep') == {'finished': 3, 'killed': 1}
    assert begun(tmp_path / 'fast')[-1] == begun(tmp_path / 'slow')[0]
    slow.join(30)


def test_an_interrupted_trial_is_tried_again(tmp_path):
    def interrupted(s, report):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(tmp_path, interrupted, SPACE, n_trials=2)
    assert states(tmp_path) == {'killed': 1}
    run_sweep(tmp_path, smooth, SPACE, n_trials=2)
    table = trials_table(open_sweep(tmp_path))
    assert list(table.state) == ['killed', 'finished', 'finished']
    assert (table.loc[0, list(SPACE)] == table.loc[1, list(SPACE)]).all()


def test_a_trial_without_an_owner_was_begun_by_a_process_that_died(tmp_path):
    study = run_sweep(tmp_path, smooth, SPACE, n_trials=1)
    study.ask()  # no settings, no owner
    run_sweep(tmp_path, smooth, SPACE, n_trials=3)
    assert states(tmp_path) == {'finished': 3, 'killed': 1}


def test_an_owner_is_known_by_its_birth():
    me = dict(this_process(), began=time.time())
    assert is_alive(me) and not is_alive(dict(me, born=me['born'] - 60)) and not is_alive({})
    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])
    try:
        import psutil

        owner = dict(me, pid=child.pid, born=psutil.Process(child.pid).create_time())
        assert is_alive(owner)
        child.kill()
        deadline = time.monotonic() + 10
        while is_alive(owner) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not is_alive(owner)  # dead, though nobody has waited for it yet
    finally:
        child.kill()
        child.wait()


# ---- what is tried


@pytest.mark.parametrize('sampler', ['tpe', 'random', 'grid', 'cmaes'])
def test_every_point_is_tried_once_and_then_the_sweep_ends(tmp_path, sampler):
    if sampler == 'cmaes':
        pytest.importorskip('cmaes')
    study = run_sweep(tmp_path, smooth, SPACE, n_trials=40, sampler=sampler, pruner='none')
    table = trials_table(study)
    assert len(table) == 24
    assert not table[list(SPACE)].duplicated().any()
    assert (table.state == 'finished').all()
    assert table.loc[table.score.idxmax(), list(SPACE)].to_dict() == dict(
        lr=0.004, dropout=0.2, frozen='none'
    )


@pytest.mark.parametrize('sampler', ['tpe', 'random', 'grid'])
def test_a_resumed_sweep_tries_what_an_uninterrupted_one_tries(tmp_path, sampler):
    whole = trials_table(
        run_sweep(tmp_path / 'whole', smooth, SPACE, n_trials=12, sampler=sampler, pruner='none', seed=3)
    )
    for n in (2, 9, 12):
        parts = run_sweep(
            tmp_path / 'parts', smooth, SPACE, n_trials=n, sampler=sampler, pruner='none', seed=3
        )
    columns = ['state', 'score', *SPACE]
    pd.testing.assert_frame_equal(trials_table(parts)[columns], whole[columns])
    other = trials_table(
        run_sweep(tmp_path / 'other', smooth, SPACE, n_trials=12, sampler=sampler, pruner='none', seed=4)
    )
    assert not other[list(SPACE)].equals(whole[list(SPACE)])


@pytest.mark.parametrize('pruner', ['median', 'halving'])
def test_a_hopeless_trial_stops_early(tmp_path, pruner):
    calls = []

    def objective(s, report):
        calls.append(0)
        for epoch in range(1, 11):
            calls[-1] = epoch
            report(epoch, s['x'] * epoch / 1000)
        return dict(score=s['x'] / 100)

    order = iter([90, 91, 92, 93, 1, 2, 94])
    study = open_sweep(tmp_path, dict(space=dict(x=list(range(1, 101))), seed=0))
    for x in order:
        study.enqueue_trial(dict(x=x - 1))
    run_sweep(tmp_path, objective, dict(x=list(range(1, 101))), n_trials=7, sampler='random', pruner=pruner)
    table = trials_table(open_sweep(tmp_path)).set_index('x')
    for x, epochs in zip((90, 91, 92, 93, 1, 2, 94), calls):
        assert table.epochs[x] == epochs
    assert list(table.state[[1, 2]]) == ['pruned', 'pruned'] and table.epochs[[1, 2]].max() <= 3, table
    assert table.state[94] == 'finished' and table.epochs[94] == 10
    assert table.score[1] == pytest.approx(table.epochs[1] / 1000)  # the last one seen


def test_a_setting_that_fails_is_noted_and_not_tried_again(tmp_path):
    def objective(s, report):
        if s['lr'] == 0.008:
            report(1, float('nan'))
        if s['lr'] == 0.004:
            raise RuntimeError('out of memory')
        return smooth(s)

    study = run_sweep(tmp_path, objective, SPACE, n_trials=24, sampler='grid', seed=1)
    table = trials_table(study)
    assert len(table) == 24 and (table.state == 'failed').equals(table.lr >= 0.004)
    assert table[table.lr == 0.004].reason.eq('RuntimeError: out of memory').all()
    assert table[table.lr == 0.008].reason.str.contains('epoch 1 is nan').all()
    assert table[table.state == 'failed'].score.isna().all()


def test_a_sweep_in_which_nothing_works_stops(tmp_path):
    def broken(s, report):
        raise RuntimeError('no disk')

    with pytest.raises(RuntimeError, match='first 3 trials all failed.*no disk'):
        run_sweep(tmp_path, broken, SPACE, n_trials=24)
    with pytest.raises(ValueError, match='no trial .* has finished'):
        write_best(open_sweep(tmp_path), tmp_path, 'tiny')


# ---- what cannot be


@pytest.mark.parametrize(
    'bad,why',
    [
        ({}, 'search space is empty'),
        ('{}', 'search space is empty'),
        ({'lr': []}, 'lr is \\[\\]; expected a list'),
        ({'lr': 0.1}, 'expected a list'),
        ({'lr': 'abc'}, 'expected a list'),
        (
            {'learning_rate': [0.1]},
            "learning_rate=0.1 cannot be built: unknown override 'learning_rate'; known are",
        ),
        ({'fusion_heads': [4, 12]}, 'fusion_heads=12 .*fusion_dim 64 is not a multiple of fusion_heads 12'),
        ({'fusion_dim': [64, 96], 'fusion_heads': [4, 12, 64]}, 'fusion_heads=12'),
        ({'frozen': ['all']}, 'frozen is .all.; expected both'),
        ({'freeze_image': [True]}, 'set by frozen'),
        ({'epochs': [1, 2]}, 'epochs cannot differ'),
        ({'image_size': [64, 128]}, 'image_size cannot differ'),
        ({'dropout': [0.1, 1.5]}, 'dropout is 1.5'),
        ({'lr': [0.1, 0.1]}, 'value twice'),
        ({'lr': ['fast']}, 'expected float'),
        ({'lr': [None]}, 'expected numbers'),
        ({'batch_size': [16, 32.5]}, 'expected int'),
        ('{"lr": [1,', 'not valid JSON'),
        ('[1]', 'expected names with lists'),
        ({'accumulate': [64], 'batch_size': [32, 64]}, 'accumulate is 64; expected 1 to 32'),
    ],
)
def test_a_search_space_that_cannot_be_built(bad, why):
    with pytest.raises(ValueError, match=why):
        check_space(bad)


@pytest.mark.parametrize(
    'args,why',
    [
        (('bayes', 'median', 3), "unknown sampler 'bayes'; known are tpe"),
        (('tpe', 'hyperband', 3), "unknown pruner 'hyperband'"),
        (('tpe', 'median', 0), 'n_trials is 0'),
        (('tpe', 'median', 2.5), 'n_trials is 2.5'),
        (('tpe', 'median', True), 'n_trials is True'),
    ],
)
def test_a_search_that_cannot_be_done(tmp_path, args, why):
    with pytest.raises(ValueError, match=why):
        check_search(*args)
    with pytest.raises(ValueError, match=why):
        run_sweep(tmp_path / 'sweep', smooth, SPACE, sampler=args[0], pruner=args[1], n_trials=args[2])
    assert not (tmp_path / 'sweep').exists()


def test_cmaes_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, 'cmaes', None)
    with pytest.raises(ImportError, match='pip install cmaes, or use tpe'):
        check_search('cmaes', 'none', 3)


def test_a_library_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'optuna', None)
    with pytest.raises(ImportError, match=r'pip install "cxr_lib\[train\]"'):
        open_sweep(tmp_path, {})


def test_a_corrupt_journal_is_named_with_its_line(tmp_path):
    run_sweep(tmp_path, smooth, SPACE, n_trials=3)
    journal, whole = tmp_path / 'journal.log', (tmp_path / 'journal.log').read_bytes()
    lines = whole.splitlines(keepends=True)
    for damaged in (b'rubbish\n', b'{"a": 1}\n', b'\x00\xff\n', b'[]\n'):
        journal.write_bytes(b''.join(lines[:4]) + damaged + b''.join(lines[4:]))
        with pytest.raises(ValueError, match=r'journal.log, line 5, is not a journal .*move it away'):
            run_sweep(tmp_path, smooth, SPACE, n_trials=5)
    journal.write_bytes(whole)
    run_sweep(tmp_path, smooth, SPACE, n_trials=5)
    assert (
        sum(states(tmp_path).values())
        == 5
        == len(trials_table(open_sweep(tmp_path))[list(SPACE)].drop_duplicates())
    )


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6))
def test_a_journal_that_was_cut_anywhere_goes_on(tmp_path_factory, where):
    "As a kill in the middle of a line, or a full disk, leaves it"
    folder = tmp_path_factory.mktemp('cut')
    run_sweep(folder, smooth, SPACE, n_trials=3, sampler='random')
    whole = (folder / 'journal.log').read_bytes()
    (folder / 'journal.log').write_bytes(whole[: where % len(whole)])
    run_sweep(folder, smooth, SPACE, n_trials=4, sampler='random')
    done = trials_table(open_sweep(folder)).query('state == "finished"')
    assert len(done) == 4 and not done[list(SPACE)].duplicated().any()


def test_other_settings_are_refused_and_named(tmp_path):
    run_sweep(tmp_path, smooth, SPACE, n_trials=1, settings=dict(preset='tiny'))
    with pytest.raises(ValueError, match="other settings: preset was 'tiny', is 'base'"):
        run_sweep(tmp_path, smooth, SPACE, n_trials=2, settings=dict(preset='base'))
    with pytest.raises(ValueError, match='seed was 0, is 1'):
        run_sweep(tmp_path, smooth, SPACE, n_trials=2, settings=dict(preset='tiny'), seed=1)
    with pytest.raises(ValueError, match='space was'):
        run_sweep(tmp_path, smooth, dict(SPACE, dropout=[0.1]), n_trials=2, settings=dict(preset='tiny'))
    with pytest.raises(ValueError, match='holds no sweep'):
        open_sweep(tmp_path / 'elsewhere')
    assert not (tmp_path / 'elsewhere').exists()


# ---- the grid and the winner


@pytest.mark.parametrize('preset', list(PRESETS))
def test_the_grid_of_a_preset_can_be_built(preset):
    grid = check_space('', preset)
    assert set(grid) == set(GRID)
    assert grid['frozen'] == list(GRID['frozen'])
    assert grid['weight_decay'] == [0.01, 0.05, 0.1]
    assert grid['dropout'] == [0.1, 0.2, 0.3]
    own = PRESETS[preset]['training']['lr']
    assert np.allclose(np.divide(grid['lr'], own), np.divide(GRID['lr'], 5e-5), rtol=0.01)
    if preset == 'base':
        assert grid == {k: list(v) for k, v in GRID.items()}
    assert grid_for(preset, 'lr=1e-3')['lr'] == [2e-4, 6e-4, 1e-3, 2e-3]


def test_the_winner_feeds_the_command_line(tmp_path):
    study = run_sweep(tmp_path, smooth, SPACE, n_trials=24, sampler='grid', pruner='none')
    best = write_best(study, tmp_path, 'tiny', 'image_size=64 head_hidden=32')
    assert best == read_json(tmp_path / 'best.json') | dict(
        optimism_measured=best['optimism_measured'], optimism_independent=best['optimism_independent']
    )
    assert (
        read_json(tmp_path / 'best.json')['optimism_measured'] is None
    )  # no resamples were kept: undefined, not 0
    config, (_, training) = make_config('tiny', best['overrides']), split_overrides('tiny', best['overrides'])
    assert (
        config.dropout,
        config.image_size,
        config.head_hidden,
        config.freeze_text,
        config.freeze_image,
    ) == (0.2, 64, 32, False, False)
    assert training['lr'] == 0.004 and training['note_lr'] == 0.002  # in the preset's proportion
    words = shlex.split(best['command'])
    given = {words[k + 1]: words[k + 2] for k, w in enumerate(words) if w == '-p'} | {
        'preset': words[words.index('--preset') + 1]
    }
    plan = plan_run(given, home=ROOT)
    assert make_config(plan.passed['model']['preset'], plan.passed['model']['overrides']) == config
    assert plan.passed['training']['folds'] == 0
    assert [trial_overrides(dict(frozen=f)) for f in GRID['frozen']] == [
        dict(freeze_image=i, freeze_text=t)
        for i, t in ((True, True), (True, False), (False, True), (False, False))
    ]


def test_equal_scores_choose_the_first_and_importance_is_undefined(tmp_path):
    study = run_sweep(tmp_path, lambda s, report: dict(score=0.5), SPACE, n_trials=4)
    assert write_best(study, tmp_path, 'tiny')['trial'] == 0
    table = importance_table(study)
    assert table.importance.isna().all() and (table.reason == 'all finished trials have the same score').all()


def test_importance_finds_what_matters_and_says_what_is_undefined(tmp_path):
    one = run_sweep(tmp_path / 'one', smooth, SPACE, n_trials=1)
    assert importance_table(one).reason.str.startswith('1 finished trial;').all()
    assert importance_table(one).importance.isna().all()
    space = dict(SPACE, batch_size=[32])
    study = run_sweep(
        tmp_path / 'all',
        lambda s, report: dict(score=s['lr'] + 1e-6 * s['dropout']),
        space,
        n_trials=24,
        sampler='grid',
    )
    table = importance_table(study)
    assert table.index[0] == 'lr'
    assert table.importance['lr'] > 0.9
    assert table.importance.sum() == pytest.approx(1)
    assert table.reason['batch_size'] == 'only one value was tried'
    assert math.isnan(table.importance['batch_size'])
    kind = run_sweep(
        tmp_path / 'kind',
        lambda s, report: dict(score=float(s['frozen'] == 'text')),
        space,
        n_trials=24,
        sampler='grid',
    )
    assert importance_table(kind).importance['frozen'] > 0.9  # a name, not a number
    for fig in sweep_figures(study, True).values():
        assert fig.get_supxlabel().startswith('SIMULATED')
    empty = trials_table(one).iloc[:0]
    for fig in (plot_history(empty), plot_parallel(empty, space), plot_importance(table, 24)):
        assert fig.get_supxlabel().startswith('Research use')


# ---- honesty


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 300))
def test_the_expected_maximum_grows_as_it_must(n):
    assert expected_maximum(n) <= math.sqrt(2 * math.log(n)) + 1e-9  # the bound for n normal values
    assert expected_maximum(n + 1) > expected_maximum(n)


def test_the_optimism_of_a_choice_is_what_repeated_tuning_splits_show():
    "Equal models with independent noise: the mean excess of the best over many tuning splits is the formula's"
    r, excess, said = np.random.default_rng(1), [], []
    for _ in range(25):
        y, s = (r.random((80, 1)) < 0.4).astype(float), r.random((8, 80, 1))
        scores = np.array([resampled_scores(y, x, np.arange(80), 25) for x in s])
        luck = selection_optimism(scores, n_orders=1)
        excess.append(luck.best[8] - 0.5)
        said.append(luck.independent[8])
    assert np.mean(said) == pytest.approx(np.mean(excess), abs=0.02) and np.mean(excess) > 0.06
    assert selection_optimism(scores[:1, :1]).measured.isna().all()  # no resamples, no estimate


def test_the_resampled_score_is_the_score_of_selection():
    r = np.random.default_rng(0)
    y, s = (r.random((60, 14)) < 0.3).astype(float), r.random((60, 14))
    y[r.random(y.shape) < 0.2] = np.nan
    y[:, 3] = 0
    found = resampled_scores(y, s, [f'p{i // 2}' for i in range(60)], 50)
    assert len(found) == 51
    assert found[0] == pytest.approx(mean_auroc(y, s), abs=1e-9)
    assert 0.02 < found[1:].std() < 0.1
    assert np.isnan(resampled_scores(np.zeros((9, 14)), r.random((9, 14)), range(9), 5)).all()


# ---- with a model


@pytest.fixture(scope='module')
def studies():
    r = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            'image': [f'{i}.png' for i in range(48)],
            'patient_id': [f'p{i}' for i in range(48)],
            'study_id': [f's{i}' for i in range(48)],
            'note': ['cough and fever' if i % 2 else 'fall, chest pain' for i in range(48)],
            'split': ['train'] * 24 + ['tuning'] * 12 + ['test'] * 12,
        }
    )
    return table.assign(**{o: (r.random(48) < 0.5).astype(float) for o in OBSERVATIONS})


@pytest.fixture
def films(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 64), np.uint8)
    monkeypatch.setattr(
        'cxr_lib.training.dataset.pixel_cache', lambda root, images, *a, **options: pixels[: len(images)]
    )


SMALL = 'image_size=64 fusion_dim=16 head_hidden=16'


def test_a_real_trial_never_sees_the_test_split(studies, films, tmp_path):
    other = studies.copy()
    test = other.split == 'test'
    other.loc[test, list(OBSERVATIONS)] = 1 - other.loc[test, list(OBSERVATIONS)]
    other.loc[test, 'note'] = list(
        studies.note[test][::-1]
    )  # as long as before: word dropout draws for the longest note of the table
    space = dict(lr=[0.001, 0.004], frozen=['none', 'both'], fusion_heads=[4, 8], batch_size=[8])
    tables = []
    for name, table in (('a', studies), ('b', other)):
        objective = TrainTrial(table, '', 'tiny', SMALL, epochs=1)
        study = run_sweep(
            tmp_path / name,
            objective,
            check_space(space, 'tiny', SMALL),
            n_trials=3,
            sampler='grid',
            pruner='median',
        )
        tables.append(trials_table(study))
    assert (tables[0].state == 'finished').all(), tables[0].reason.tolist()
    pd.testing.assert_frame_equal(
        *(t[['score', *space]] for t in tables)
    )  # other answers in the test split change nothing
    for t in study.get_trials():
        assert t.value == pytest.approx(t.user_attrs['resampled'][0], abs=1e-5)
        assert len(t.user_attrs['resampled']) == 201
    with pytest.raises(AssertionError, match='may not look at the test split'):
        objective.data.batch(torch.as_tensor([0, 40]))
    assert 'optimism' in sweep_figures(study)


def test_a_real_trial_is_pruned_by_ending_its_training(studies, films, tmp_path):
    from optuna import TrialPruned

    objective, seen = TrainTrial(studies, '', 'tiny', SMALL, epochs=50), []

    def report(epoch, score):
        seen.append(epoch)
        if epoch == 2:
            raise TrialPruned()

    with pytest.raises(TrialPruned):
        objective(dict(lr=0.004), report)
    assert seen == [1, 2]


def test_data_on_which_nothing_can_be_selected(studies, films, monkeypatch):
    with pytest.raises(ValueError, match='the tuning split is empty'):
        TrainTrial(studies[studies.split != 'tuning'], '', 'tiny', SMALL)
    rare = studies.assign(**{o: 0.0 for o in OBSERVATIONS})
    with pytest.raises(ValueError, match='12 tuning images: there is nothing to select on'):
        TrainTrial(rare, '', 'tiny', SMALL)
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(ValueError, match='several ordinary processes'):
        TrainTrial(studies, '', 'tiny', SMALL)
