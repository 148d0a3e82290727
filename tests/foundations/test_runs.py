"""Runs are opened by name and never made by a slip; numbers are checked before anything runs; paths survive a move."""

import ast
import importlib
import os
import re

import pytest
from conftest import NOTEBOOKS, ROOT, STAGES

from cxr_lib.foundations.files import MachineError, read_json, write_json
from cxr_lib.foundations.run import (
    RANGES,
    RESULT,
    RunError,
    RunFolder,
    check_ranges,
    list_runs,
    located_path,
    newest_finished,
    open_run,
    portable_path,
    run_folder,
)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv('CXR_HOME', str(tmp_path))
    return tmp_path


def made(name, stages=STAGES, auroc=None, finished=None):
    "A run with stamps and nothing else"
    run = run_folder(name)
    for stage in stages:
        run.finish(stage, {})
    if finished:
        stamp = run / '.stages' / 'evaluation.json'
        write_json(stamp, read_json(stamp) | dict(finished=finished))
    if auroc is not None:
        means = dict(evaluable=dict(auroc=auroc, low=auroc - 0.01, high=auroc + 0.01))
        write_json(run / 'metrics.json', dict(conditions=dict(fused=dict(means=means))))
    return run.path


def folders(home):
    return sorted(p.name for p in (home / 'reports').iterdir()) if (home / 'reports').exists() else []


# Opening


def test_the_newest_finished_run_is_opened_and_named_with_its_auroc(home, capsys):
    made('old', auroc=0.71, finished='2026-01-01T10:00:00')
    made('simulated', auroc=0.93, finished='2026-01-02T10:00:00')
    made('killed', STAGES[:4])
    assert open_run('').path.name == 'simulated' and open_run('', 'demo').path.name == 'simulated'
    assert 'Run: simulated (mean AUROC 0.93 [0.92, 0.94])' in capsys.readouterr().out
    assert newest_finished().name == 'simulated'


@pytest.mark.parametrize('stage', ['notes', 'model', 'training', 'evaluation', 'demo'])
def test_a_name_that_is_not_there_lists_the_runs_and_makes_nothing(home, stage):
    made('simulated', auroc=0.93)
    said = r"there is no run 'simulatd'. Runs that are there: simulated \(mean AUROC 0.93"
    with pytest.raises(RunError, match=said):
        open_run('simulatd', stage)
    assert folders(home) == ['simulated'] and not (home / 'data').exists()


def test_the_first_stage_and_make_missing_make_a_run(home):
    assert open_run('a', 'exploration').path == home / 'reports' / 'a'
    assert open_run('b', 'evaluation', make_missing=True).path == home / 'reports' / 'b'


def test_a_run_whose_exploration_was_killed_is_not_explored_again_by_a_later_stage(home):
    (home / 'reports' / 'mine').mkdir(parents=True)
    (home / 'reports' / 'mine' / '.run.lock').touch()
    with pytest.raises(RunError, match='no finished exploration'):
        open_run('mine', 'evaluation')
    (home / 'reports' / 'mine' / 'predictions.parquet').touch()  # predictions of another program come alone
    assert open_run('mine', 'evaluation').path.name == 'mine'


@pytest.mark.parametrize(
    'given, name',
    [(7, '007'), (202401, '2024_01'), (1.5, '1.50'), (1000.0, '1e3'), (True, 'True'), (None, 'None')],
)
def test_a_name_that_papermill_turned_into_a_number_is_found(home, capsys, given, name):
    made(name)
    assert open_run(given).path.name == name
    assert f'taken as the run named {name!r}' in capsys.readouterr().out
    assert open_run(given, 'exploration').path.name == name and folders(home) == [name]


def test_a_number_that_is_no_name_or_two_names_is_refused_in_every_stage(home):
    for stage in ('exploration', 'evaluation'):
        with pytest.raises(RunError, match='papermill -r run NAME'):
            open_run(7, stage)
    made('7')
    made('007')
    with pytest.raises(RunError, match=r'Runs that are there: 007, 7\.'):
        open_run(7)
    assert folders(home) == ['007', '7']


def test_stepping_through_never_touches_a_finished_run(home):
    made('simulated', auroc=0.93)
    for stage in STAGES[: STAGES.index(RESULT)]:
        assert open_run('', stage).path.name == 'small'
    made('small')
    write_json(home / 'reports' / 'small' / '.stages' / 'exploration.run.json', {})  # `cxr run --run small`
    with pytest.raises(RunError, match="'small' was made by `cxr run`"):
        open_run('', 'training')


def test_without_a_finished_run_a_small_one_is_opened(home, capsys):
    assert open_run('').path.name == 'small'
    assert 'A small run of simulated patients is made' in capsys.readouterr().out


def test_every_notebook_with_a_run_opens_it_by_name():
    from cxr_lib.running.plan import stage_notebooks

    opened = []
    for path in [p for p in NOTEBOOKS if p.name[0].isdigit()]:
        cells = [''.join(c['source']) for c in read_json(path)['cells'] if c['cell_type'] == 'code']
        if not any(c.startswith("run: str = ''") for c in cells):
            continue
        opened.append(path.relative_to(ROOT / 'nbs').with_suffix('').as_posix())
        assert any(re.search(r'\bopen_run\(\s*run\b', c) for c in cells), path.name
        assert not any(re.search(r'\brun_folder\(\s*run\s*\)', c) for c in cells), path.name
    stages = [path.stem for path in stage_notebooks(ROOT / 'nbs').values()]
    assert opened == [*stages, '08_demo', '09_service', '10_search']


def test_a_damaged_stamp_is_not_finished(home):
    (made('broken') / '.stages' / 'notes.json').write_text('{"key": ')
    assert [(r.name, r.finished) for r in list_runs()] == [('broken', '')] and newest_finished() is None


# Numbers


OUTSIDE = {
    'n_patients': [0, -1, 10**9, 240.0, True],
    'seed': [-1, 2**32, '0'],
    'image_size': [0],
    'tuning_fraction': [-0.1, 1],
    'test_fraction': [1.5, float('nan')],
    'epochs': [-1],
    'folds': [-2],
    'n_bootstrap': [0],
    'batch_size': [0],
    'scan': [-1],
    'n_samples': [0],
    'n_explained': [0],
    'n_texts': [0],
    'n_cases': [0],
    'n_trials': [0],
}


@pytest.mark.parametrize(
    'name, value', [(name, value) for name, values in OUTSIDE.items() for value in values]
)
def test_a_number_outside_its_range_is_refused(name, value):
    with pytest.raises(ValueError, match=f'^{name} is .*; expected a (whole number|share) from'):
        check_ranges(**{name: value})


def test_numbers_at_the_ends_of_their_ranges_are_taken():
    for name, (low, high, whole) in RANGES.items():
        check_ranges(**{name: low})
        if whole:
            check_ranges(**{name: high})
    with pytest.raises(ValueError, match='leave no patients to train on'):
        check_ranges(tuning_fraction=0.5, test_fraction=0.5)


def test_every_number_of_a_stage_notebook_has_a_range():
    from cxr_lib.running.plan import read_parameters, stage_notebooks

    for stage, notebook in stage_notebooks(ROOT / 'nbs').items():
        numbers = [p.name for p in read_parameters(notebook, stage) if type(p.default) in (int, float)]
        assert set(numbers) <= set(RANGES), notebook.name


def test_stages_refuse_before_they_write(home):
    from cxr_lib.stages.evaluation import evaluate_stage
    from cxr_lib.stages.exploration import exploration_stage
    from cxr_lib.stages.model import model_stage
    from cxr_lib.stages.notes import notes_stage
    from cxr_lib.stages.training import training_stage

    run = run_folder('mine')
    for call, value in (
        (exploration_stage, dict(n_patients=10**9)),
        (exploration_stage, dict(seed=-1)),
        (exploration_stage, dict(test_fraction=2.0)),
        (notes_stage, dict(seed=-1)),
        (model_stage, dict(seed=2**32)),
        (training_stage, dict(epochs=-1)),
        (training_stage, dict(seed=-1)),
        (evaluate_stage, dict(n_bootstrap=0)),
    ):
        with pytest.raises(ValueError, match='expected a'):
            call(run, **value)
    assert list(run.path.iterdir()) == [] and not (home / 'data').exists()


def test_a_root_for_simulated_patients_is_refused(home):
    from cxr_lib.stages.exploration import exploration_stage

    said = "dataset 'simulated' has no folder; name the data set that lies there, one of nih, covid"
    with pytest.raises(ValueError, match=said):
        exploration_stage(run_folder('mine'), root=str(home))


# The machine


def test_a_folder_that_cannot_be_made_is_one_sentence(home):
    (home / 'file').touch()
    with pytest.raises(MachineError, match='is a file, or lies below one'):
        RunFolder(home / 'file' / 'run')
    with pytest.raises(MachineError, match='the name is too long'):
        run_folder('x' * 300)
    with pytest.raises(RunError, match='there is no run'):
        open_run('x' * 300)
    with pytest.raises(RunError, match='there is no run'):
        open_run(str(home / 'file' / 'run'))


@pytest.mark.skipif(
    os.name == 'nt' or not hasattr(os, 'geteuid') or os.geteuid() == 0,
    reason='permissions bind nobody here: the tests run as root',
)
def test_an_unwritable_folder_is_one_sentence(home):
    (home / 'reports').mkdir(mode=0o500)
    with pytest.raises(MachineError, match='no permission'):
        run_folder('mine')


# Paths


def test_a_moved_project_finds_its_data(tmp_path, monkeypatch):
    from cxr_lib.data.catalogue import data_root
    from cxr_lib.stages.exploration import exploration_stage

    monkeypatch.setenv('CXR_HOME', str(tmp_path / 'before'))
    exploration_stage(run_folder('mine'), n_patients=20, image_size=64)
    (tmp_path / 'before').rename(tmp_path / 'after')
    monkeypatch.setenv('CXR_HOME', str(tmp_path / 'after'))
    run = run_folder('mine')
    assert data_root(run).is_dir() and data_root(run).is_relative_to(tmp_path / 'after')
    assert run.done('exploration')
    written = [*run.path.glob('*.json'), *run.path.glob('.stages/*')]
    assert not [p.name for p in written if str(tmp_path) in p.read_text()]
    data_root(run).rename(tmp_path / 'elsewhere')
    with pytest.raises(FileNotFoundError, match='no longer in .*run the exploration again'):
        data_root(run)


def test_a_moved_data_set_asks_for_its_root_again(tmp_path, monkeypatch):
    from cxr_lib.data.catalogue import data_root

    monkeypatch.setenv('CXR_HOME', str(tmp_path))
    run = run_folder('mine')
    source = dict(dataset='nih', root=str(tmp_path.parent / 'gone'), simulated=False, has_images=True)
    write_json(run / 'source.json', source)
    with pytest.raises(FileNotFoundError, match='cxr run --run mine --dataset nih --root FOLDER'):
        data_root(run)


def test_paths_below_the_project_are_written_relative_to_it(home):
    assert portable_path(home / 'data' / 'nih') == 'data/nih'
    assert located_path('data/nih') == home / 'data' / 'nih'
    assert located_path(portable_path(home.parent)) == home.parent


# Names of other chapters


def _imported(tree, package):
    "(module, name) of everything that is imported from the library, also inside functions"
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        above = package[: len(package) - node.level + 1] if node.level else ()
        module = '.'.join([*above, node.module])
        if module.split('.')[0] == 'cxr_lib':
            yield from ((module, a.name) for a in node.names if a.name != '*')


@pytest.mark.parametrize('path', sorted((ROOT / 'cxr_lib').rglob('[a-z]*.py')), ids=lambda p: p.stem)
def test_every_name_that_is_imported_from_another_chapter_is_there(path):
    imported = _imported(ast.parse(path.read_text(encoding='utf-8')), path.relative_to(ROOT).parent.parts)
    missing = [f'{m}.{name}' for m, name in imported if not hasattr(importlib.import_module(m), name)]
    assert not missing, f'{path.name} imports what is not there: {missing}'


def test_every_name_that_the_runner_looks_up_is_there():
    path = ROOT / 'cxr_lib' / 'running' / 'plan.py'
    asked = set(_imported(ast.parse(path.read_text(encoding='utf-8')), ('cxr_lib', 'running')))
    assert {('cxr_lib.data.catalogue', 'DATASETS'), ('cxr_lib.model.presets', 'PRESETS')} <= asked
