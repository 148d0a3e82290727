"""A stamp vouches for files: a change of one of them is noticed, and named, before anything is built on it."""

import hashlib
import io
import os
import shutil

import nbformat
import pandas as pd
import pytest
from conftest import STAGES, Project

from cxr_lib.foundations import run as runs
from cxr_lib.foundations.files import read_json, write_json
from cxr_lib.foundations.run import RunFolder
from cxr_lib.running import execute as runner
from cxr_lib.running.plan import plan_run


def same_size_and_time(path, change):
    "Rewrite a file so that neither its size nor its time tells"
    before, data = os.stat(path), bytearray(path.read_bytes())
    change(data)
    path.write_bytes(bytes(data))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert os.stat(path).st_size == before.st_size
    assert os.stat(path).st_mtime_ns == before.st_mtime_ns


def flip(path):
    def change(data):
        data[len(data) // 2] ^= 1

    same_size_and_time(path, change)


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def delete(path):
    path.unlink()


def folder(path):
    path.unlink()
    path.mkdir()


def link(path):
    aside = path.parent.parent / f'aside-{path.name}'
    shutil.move(path, aside)
    path.symlink_to(aside)


DAMAGE = {
    flip: 'something else',
    cut: 'were written',
    delete: 'is gone',
    folder: 'is a folder',
    link: 'is a link',
}


def work(run, stage, text=None):
    "A stage that leaves three files, one of them in a folder"
    run.begin(stage)
    (run / stage).mkdir(exist_ok=True)
    for name in (f'{stage}.csv', f'{stage}.json', f'{stage}/weights.bin'):
        (run / name).write_text(text or f'{name} of a stage\n')
    run.finish(stage, dict(seed=0))


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / 'run')
    for stage in STAGES[:3]:
        work(run, stage)
    return run


def test_a_stage_need_not_say_what_it_wrote(run):
    assert [list(read_json(run / '.stages' / f'{s}.json')['files']) for s in STAGES[:2]] == [
        [f'{s}.csv', f'{s}.json', f'{s}/weights.bin'] for s in STAGES[:2]
    ]
    assert run.done('model')
    text = b'notes.csv of a stage\n'
    assert read_json(run / '.stages' / 'notes.json')['files']['notes.csv'] == dict(
        bytes=len(text), sha256=hashlib.sha256(text).hexdigest()
    )


@pytest.mark.parametrize('damage', DAMAGE, ids=lambda d: d.__name__)
@pytest.mark.parametrize('file', ['notes.csv', 'notes.json', 'notes/weights.bin'])
def test_a_file_that_was_altered_is_noticed_and_named(run, file, damage):
    damage(run / file)
    assert run.done('exploration')
    assert not run.done('notes')
    assert not run.done('model')
    assert list(run.altered('notes')) == [file]
    assert DAMAGE[damage] in run.altered('notes')[file]
    with pytest.raises(
        runs.AlteredFile, match=f'{file} {run.altered("notes")[file][:8]}.*the notes stage.*cxr run'
    ):
        run.ready('model')
    work(run, 'notes')  # redone, whatever stands in its way
    work(run, 'model')
    assert run.done('model')
    assert (run / file).read_text() == f'{file} of a stage\n'
    assert not (run / file).is_symlink()


def test_a_folder_that_was_replaced_by_a_link_is_noticed(run, tmp_path):
    shutil.move(run / 'notes', tmp_path / 'elsewhere')
    (run / 'notes').symlink_to(tmp_path / 'elsewhere')
    assert run.altered('notes') == {'notes/weights.bin': 'lies behind a link now (notes)'}
    work(run, 'notes')
    assert run.done('notes')
    assert not (run / 'notes').is_symlink()


def test_a_folder_with_something_in_it_is_never_removed(run):
    folder(run / 'notes.csv')
    (run / 'notes.csv' / 'of the user.txt').write_text('mine')
    with pytest.raises(ValueError, match='notes.csv is a folder.*move it away'):
        run.begin('notes')
    assert (run / 'notes.csv' / 'of the user.txt').read_text() == 'mine'


@pytest.mark.parametrize(
    'change, said',
    [
        (lambda s: s.pop('files') and s.pop('seal'), 'holds no checksums'),  # as earlier versions wrote it
        (lambda s: s['files'].pop('notes.csv'), 'was edited'),
        (lambda s: s['params'].update(seed=1), 'was edited'),
    ],
)
def test_a_stamp_that_cannot_vouch_is_said_to(run, change, said):
    stamp = read_json(run / '.stages' / 'notes.json')
    change(stamp)
    write_json(run / '.stages' / 'notes.json', stamp)
    assert not run.done('notes')
    assert said in run.altered('notes')['.stages/notes.json']
    with pytest.raises(runs.AlteredFile, match=said):
        run.ready('notes')


def test_what_a_later_stage_rewrites_stays_with_the_stage_that_made_it(run):
    run.begin('training')
    (run / 'notes.csv').write_text('with a calibration')
    (run / 'log.csv').write_text('new')
    run.finish('training', {})
    assert run.done('training')
    assert list(read_json(run / '.stages' / 'training.json')['files']) == ['log.csv']
    flip(run / 'notes.csv')
    assert list(run.altered('notes')) == ['notes.csv']
    assert run.done('exploration')
    assert not run.done('notes')


def test_killed_while_it_rewrites_it_costs_the_later_stage_only(run):
    class Killed(BaseException):
        pass

    def rewrite(dies=False):
        run.begin('training')
        with runs.rewriting(run, 'notes'):
            (run / 'notes/weights.bin').write_text('rewritten ' + 'once' * dies)
            if dies:
                raise Killed
        run.finish('training', {})

    with pytest.raises(Killed):
        rewrite(dies=True)
    assert run.done('model')
    assert not run.done('training')
    rewrite()
    assert run.done('training')
    flip(run / 'notes/weights.bin')
    assert list(run.altered('notes')) == ['notes/weights.bin']


def test_the_configuration_is_written_again_from_the_stamps(run):
    good = (run / 'config.json').read_text()
    for damage in DAMAGE:
        damage(run / 'config.json')
        with pytest.warns(UserWarning, match='config.json was not what the stamps'):
            assert run.ready('model')
        assert (run / 'config.json').read_text() == good
        assert not (run / 'config.json').is_symlink()
    run.begin('model')  # what is under way has no parameters yet
    assert list(read_json(run / 'config.json')['stages']) == ['exploration', 'notes']


def test_an_error_of_the_machine_is_no_damaged_file(run, monkeypatch):
    def fails(path):
        raise OSError(5, 'Input/output error', str(path))

    monkeypatch.setattr('cxr_lib.foundations.files.file_facts', fails)
    with pytest.raises(OSError, match='Input/output error'):
        run.done('notes')


# The runner: pages and executed notebooks too


def in_this_process(notebook, output, parameters, home, *_, **__):
    "What `runner.execute` does, without a kernel: enough for toy notebooks, and fast"
    nb, scope = nbformat.read(notebook, 4), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('CXR_HOME', str(home))
        for cell in nb.cells:
            if cell.cell_type != 'code':
                continue
            exec(cell.source, scope)
            if 'parameters' in cell.metadata.get('tags', ()):
                scope.update(parameters)
    nbformat.write(nb, output)


class NoKernels:
    "In place of the kernels: the project folder, for each notebook"

    def __init__(self, notebooks, home):
        self.home = home

    def next(self):
        return self.home

    def close(self):
        pass


def run_all(plan):
    "A whole run -> what it said"
    screen = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, 'execute', in_this_process)
        patch.setattr(runner, 'Kernels', NoKernels)
        runner.run_stages(plan, progress=runner.Progress(len(STAGES), screen))
    return screen.getvalue()


@pytest.fixture(scope='module', autouse=True)
def no_other_home():
    "A project folder that is set outside would win over that of the toys"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv('CXR_HOME', raising=False)
        yield


@pytest.fixture(scope='module')
def finished_run(tmp_path_factory):
    "One toy run for all: its folder is copied, never touched"
    project = Project(tmp_path_factory.mktemp('stamps') / 'toy')
    for stage in STAGES:
        project.write(
            stage,
            "with atomic_path(folder/f'{stage}.json') as tmp: tmp.write_text(stage)\n"
            "(folder/'model').mkdir(exist_ok=True)\n"
            "(folder/'model'/f'{stage}.bin').write_text('weights of ' + stage)",
        )
    notebook = project.notebook('exploration')
    nb = nbformat.read(notebook, 4)
    nb.cells.append(
        nbformat.v4.new_code_cell(
            "(folder/'contact_sheet.png').write_text('a picture that is drawn after finish')"
        )
    )
    nbformat.write(nb, notebook)
    run_all(plan_run(home=project.home))
    return project


@pytest.fixture
def copied(finished_run, tmp_path):
    "A copy of the finished run, with its times"
    shutil.copytree(finished_run.home, tmp_path / 'toy', symlinks=True)
    plan = plan_run(home=tmp_path / 'toy')
    return plan, runner.stage_keys(plan)


WRITTEN = {
    'exploration': [
        '01_exploration.html',
        '01_exploration.ipynb',
        'contact_sheet.png',
        'exploration.json',
        'model/exploration.bin',
    ],
    'training': [
        '04_training.html',
        '04_training.ipynb',
        'model/training.bin',
        'training.json',
        '.stages/training.json',
        '.stages/training.run.json',
    ],
    'evaluation': ['05_evaluation.html', '05_evaluation.ipynb', 'evaluation.json', 'model/evaluation.bin'],
}


def test_a_rerun_begins_at_the_stage_whose_file_was_altered_and_names_it(copied):
    plan, keys = copied
    assert runner.first_unfinished(plan, keys) == len(STAGES)
    for stage, files in WRITTEN.items():
        for file in files:
            for damage in DAMAGE:
                if damage is link and file.startswith('.stages/'):
                    continue  # a stamp's own content vouches for itself
                path = plan.folder / file
                shutil.copytree(plan.folder, plan.folder.parent / 'kept', symlinks=True)
                damage(path)
                why = runner.why_unfinished(plan, stage, keys[stage])
                assert runner.first_unfinished(plan, keys) == STAGES.index(stage), (file, damage.__name__)
                assert file in why or file.startswith('.stages/'), (file, damage.__name__, why)
                runner.retract(
                    plan, STAGES[STAGES.index(stage) :]
                )  # whatever it is now, it is out of the way
                shutil.rmtree(plan.folder)
                os.replace(plan.folder.parent / 'kept', plan.folder)
    assert runner.first_unfinished(plan, keys) == len(STAGES)


def test_a_rerun_says_why_and_makes_the_file_again(copied):
    plan, keys = copied
    good = (plan.folder / 'evaluation.json').read_bytes()
    flip(plan.folder / 'evaluation.json')
    flip(plan.folder / 'config.json')
    said = run_all(plan)
    assert '05_evaluation is run again, and what follows it: evaluation.json holds something else' in said
    assert 'config.json was not what the stamps' in said
    assert '04_training: finished before' in said
    assert (plan.folder / 'evaluation.json').read_bytes() == good
    assert runner.first_unfinished(plan, keys) == len(STAGES)


# What reads a run's files: the stages after it, the evaluation, the demo

READS = {
    'notes': ['studies.parquet'],
    'model': ['studies_with_notes.parquet'],
    'selection': ['studies.parquet'],
    'training': ['studies.parquet', 'studies_with_notes.parquet', 'architecture.json'],
    'evaluation': ['studies.parquet', 'notes.json', 'predictions.parquet', 'model/model.safetensors'],
    'demo': [
        'studies_with_notes.parquet',
        'predictions.parquet',
        'model/model.safetensors',
        'metrics.json',
        'model/calibration.json',
    ],
}
LEFT = {
    'exploration': ['studies.parquet', 'source.json'],
    'notes': ['studies_with_notes.parquet', 'notes.json'],
    'model': ['architecture.json'],
    'training': ['predictions.parquet', 'model/model.safetensors'],
    'evaluation': ['metrics.json', 'model/calibration.json'],
}


def reader(name):
    "The function of the library that begins with these files"
    from cxr_lib import demo
    from cxr_lib.stages import evaluation, model, notes, search, training

    return {
        'notes': notes.notes_stage,
        'model': model.ensure_architecture,
        'selection': search.selection_studies,
        'training': training.training_stage,
        'evaluation': evaluation.evaluate_stage,
        'demo': demo.demo_widget,
    }[name]


@pytest.mark.parametrize('name, file', [(n, f) for n, files in READS.items() for f in files])
def test_who_reads_an_altered_file_refuses_and_names_it(tmp_path, name, file):
    run = RunFolder(tmp_path / 'run')
    (run / 'model').mkdir()
    for stage, files in LEFT.items():
        run.begin(stage)
        for f in files:
            if f.endswith('.parquet'):
                pd.DataFrame({'image': ['1.png']}).to_parquet(run / f)
            else:
                (run / f).write_text('{"what the stage left": 1}')
        run.finish(stage, {})
    flip(run / file)
    stage = next(s for s, files in LEFT.items() if file in files)
    with pytest.raises(
        runs.AlteredFile, match=f'{file} holds something else.*the {stage} stage left.*run that stage'
    ):
        reader(name)(run)
