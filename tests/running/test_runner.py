"""The runner: what it refuses, what it skips, what it leaves when it is stopped."""

import errno
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from conftest import ROOT, STAGES, WORK, Project

from cxr_lib.running import command, execute, pages
from cxr_lib.running.execute import Kernels, Progress, StageFailed, only_run, run_stages
from cxr_lib.running.pages import EXTERNAL
from cxr_lib.running.plan import UsageError, plan_run

#: Work that leaves a verdict.
VERDICT = (
    WORK.replace('{', '{{').replace('}', '}}')
    + '''
from cxr_lib.foundations.files import write_json
write_json(folder/'metrics.json', dict(verdict=['{}']))'''
)


def quiet(project, given=None, **kw):
    "A run inside this process, without its progress"
    return run_stages(plan_run(given, home=project.home), progress=Progress(len(STAGES), io.StringIO()), **kw)


def test_command_line_imports_nothing_heavy():
    heavy = ['torch', 'pandas', 'numpy', 'papermill', 'nbformat', 'nbconvert', 'jinja2', 'tqdm', 'filelock']
    code = (
        'import sys, cxr_lib.running.command as r; r.command_parser().format_help(); '
        f'print([m for m in {heavy} if m in sys.modules])'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == '[]'


# What it refuses, before anything runs


@pytest.mark.parametrize(
    'args, said',
    [
        (
            ['-p', 'n_patient', '3'],
            ["unknown parameter 'n_patient'", "did you mean 'n_patients'?", 'note_dropout'],
        ),
        (['-p', 'seed', 'zero'], ["seed is 'zero'", 'expected a whole number']),
        (['-p', 'seed', '0.5'], ['expected a whole number']),
        (['-p', 'note_dropout', 'little'], ['expected a number']),
        (['-p', 'negative_example', 'maybe'], ['expected true or false']),
        (['-p', 'seed', '1', '-p', 'seed', '2'], ['seed is given twice']),
        (['--root', 'no/such/folder'], ['root: there is no no/such/folder']),
        (['--from', 'trainin'], ["unknown stage 'trainin'", "did you mean 'training'?"]),
        (['--until', 'end'], ["unknown stage 'end'", 'exploration, notes, model']),
        (['--from', 'evaluation', '--until', 'notes'], ['comes after']),
        (['--from', 'training'], ['exploration has not finished']),
        (['--run', '..'], ['not a name']),
        (['-p', 'n_patients', '0'], ['n_patients is 0; expected a whole number from 20 to 1,000,000']),
        (['-p', 'n_patients', '-1'], ['n_patients is -1; expected']),
        (['-p', 'n_patients', '1000000000'], ['n_patients is 1000000000; expected']),
        (['-p', 'n_patients', '1e9'], ["n_patients is '1e9'", 'expected a whole number']),
        (['-p', 'seed', '-1'], ['seed is -1; expected a whole number from 0 to 4,294,967,295']),
        (['-p', 'seed', '4294967296'], ['seed is 4294967296; expected']),
        (['-p', 'epochs', '-1'], ['epochs is -1; expected']),
        (['-p', 'n_bootstrap', '0'], ['n_bootstrap is 0; expected']),
        (['--timeout', '0'], ['--timeout is 0; expected at least 1 second']),
        (
            ['--root', '.'],
            [
                'root',
                'it is not said which data set lies there',
                'name it with --dataset, one of nih, covid, chexpert',
            ],
        ),
        (['-p', 'root', '.'], ['name it with --dataset']),
        (
            ['--dataset', 'simulated', '--root', '.'],
            ["data set 'simulated' has no folder", 'name it with --dataset'],
        ),
    ],
)
def test_refuses_with_the_valid_choices(project, capsys, monkeypatch, args, said):
    monkeypatch.chdir(project.home)
    monkeypatch.delenv('CXR_HOME', raising=False)
    assert command.main(['run', *args]) == 2
    error = capsys.readouterr().err
    assert all(s in error for s in said), error
    assert project.calls() == []
    assert not list((project.home / 'reports').glob('*/index.html'))


def test_refuses_unknown_datasets_and_presets(project, monkeypatch):
    datasets = {name: SimpleNamespace(needs_root=name == 'nih') for name in ('simulated', 'nih')}
    monkeypatch.setattr('cxr_lib.data.catalogue.DATASETS', datasets)
    monkeypatch.setattr('cxr_lib.model.presets.PRESETS', {'tiny': {}, 'base': {}})
    with pytest.raises(UsageError, match="unknown dataset 'nihh'; did you mean 'nih'.*Valid: simulated, nih"):
        plan_run({'dataset': 'nihh'}, home=project.home)
    with pytest.raises(UsageError, match="unknown preset 'huge'.*Valid: tiny, base"):
        plan_run({'preset': 'huge'}, home=project.home)
    with pytest.raises(UsageError, match="'nih' has to be given its folder"):
        plan_run({'dataset': 'nih'}, home=project.home)
    plan = plan_run({'dataset': 'nih', 'root': str(project.home)}, home=project.home)
    assert plan.run == 'nih'
    assert not plan.simulated
    assert 'n_patients' not in plan.passed['exploration']
    assert plan.passed['evaluation']['n_bootstrap'] == 1000


def test_parameters_are_read_from_the_notebooks(project, capsys, monkeypatch):
    monkeypatch.chdir(project.home)
    monkeypatch.delenv('CXR_HOME', raising=False)
    assert command.main(['params']) == 0
    out = capsys.readouterr().out
    assert re.search(r'n_patients +24000 +how many \(stepping through: 24\)', out)
    assert re.search(r"note_dropout +0.1 +share of notes dropped\n", out)


def test_values_get_the_type_of_the_default(project):
    plan = plan_run({'negative_example': 'no', 'note_dropout': '1', 'epochs': '3'}, home=project.home)
    assert plan.passed['training'] == {'run': 'simulated', 'negative_example': False, 'epochs': 3}
    assert plan.passed['notes']['note_dropout'] == 1.0
    assert isinstance(plan.passed['notes']['note_dropout'], float)


# What it does, and does not do again


def test_second_run_skips_and_changes_run_again(project):
    quiet(project)
    assert project.calls() == list(STAGES)
    quiet(project)
    assert project.calls() == list(STAGES)  # the same again: nothing to do
    n, last = len(STAGES), list(STAGES[STAGES.index('evaluation') :])

    def new_calls():
        nonlocal n
        calls = project.calls()[n:]
        n += len(calls)
        return calls

    quiet(project, {'negative_example': False})
    assert new_calls() == ['training', *last]  # a parameter: from the stage that has it
    nb = nbformat.read(project.notebook('evaluation'), 4)
    nb.cells[3].source += '\n# another line'
    nbformat.write(nb, project.notebook('evaluation'))
    quiet(project, {'negative_example': False})
    assert new_calls() == last  # a notebook's source
    (project.reports / '05_evaluation.html').unlink()
    quiet(project, {'negative_example': False})
    assert new_calls() == last  # a page that is gone
    quiet(project, {'negative_example': False}, start='evaluation')
    assert new_calls() == last  # asked for
    page = quiet(project, {'negative_example': False}, force=True, until='notes').read_text()
    assert new_calls() == ['exploration', 'notes']
    assert 'is not finished' in page
    assert 'has not finished in this run' in (project.reports / '03_model.html').read_text()


def test_library_sources_decide(project, monkeypatch):
    keys = execute.stage_keys(plan_run(home=project.home))
    real = execute.library_sources
    changed = lambda notebook: real(notebook) | ({'changed': '1'} if notebook.stem >= '04' else {})
    monkeypatch.setattr(execute, 'library_sources', changed)
    after = execute.stage_keys(plan_run(home=project.home))
    assert [s for s in STAGES if after[s] != keys[s]] == list(STAGES[STAGES.index('training') :])


def test_a_damaged_stamp_vouches_for_nothing(project):
    quiet(project, until='notes')
    for name in ('notes.run.json', 'notes.json'):
        (project.reports / '.stages' / name).write_text('{"key": ')
        quiet(project, until='notes')
    assert project.calls() == ['exploration', 'notes', 'notes', 'notes']


def test_report_is_complete_and_needs_no_network(project):
    project.write(
        'evaluation',
        WORK
        + '''
from cxr_lib.foundations.files import write_json
import base64
write_json(folder/'metrics.json', dict(verdict=['Fused 0.91 <b>', 'The note adds 0.03.']))
(folder/'metrics.csv').write_text('observation,auroc\\nEdema,0.91234\\n')
pixel = ('iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9'
         'awAAAABJRU5ErkJggg==')
(folder/'controls.png').write_bytes(base64.b64decode(pixel))
from IPython.display import HTML, display
display(HTML('<b>a table</b>'))''',
    )
    code, out, err = project.cxr('run', '-p', 'seed', '4')
    assert code == 0, err
    index = project.reports / 'index.html'
    assert str(index) in out
    assert 'The note adds 0.03.' in out
    assert '0.912' in out
    assert f'[5/{len(STAGES)}] 05_evaluation' in err
    assert '\r' not in err
    assert len(err.splitlines()) < 15  # plain lines, as there is no terminal
    text = index.read_text()
    for wanted in (
        'SIMULATED',
        'Research use only',
        'Fused 0.91 &lt;b&gt;',
        '0.912',
        'data:image/webp',
        'href="05_evaluation.html"',
        'href="01_exploration.ipynb"',
        'note_dropout',
        'name="viewport"',
    ):
        assert wanted in text, wanted
    for page in project.reports.glob('*.html'):
        assert not EXTERNAL.search(page.read_text()), page
        assert 'SIMULATED' in page.read_text()
        assert page.read_text().rstrip().endswith('</html>')
    assert '<b>a table</b>' in (project.reports / '05_evaluation.html').read_text()
    code, out, err = project.cxr('where', 'simulated')
    assert (code, out.strip()) == (0, str(index))
    code, out, err = project.cxr('where', 'other')
    assert code == 2
    assert 'there is simulated' in err.replace('there are', 'there is')


def test_stops_at_the_first_failing_notebook(project):
    project.write('model', "layers = 3\n\nraise ValueError('valid.csv row 17:\\nexpected 1, 0, -1 or empty')")
    code, out, err = project.cxr('run')
    assert code == 1
    assert '03_model.ipynb failed in cell 4' in err
    assert '| layers = 3' in err
    assert 'ValueError: expected 1, 0, -1 or empty' in err
    assert 'Traceback' not in err
    assert project.calls() == ['exploration', 'notes']
    failed = project.reports / '03_model.failed.ipynb'
    assert str(failed) in err
    assert any(c.get('outputs') for c in nbformat.read(failed, 4).cells)
    assert not (project.reports / '03_model.ipynb').exists()
    assert 'has not finished in this run' in (project.reports / '03_model.html').read_text()
    assert (project.reports / '02_notes.html').exists()
    text = (project.reports / 'index.html').read_text()
    assert 'This run stopped' in text
    assert 'expected 1, 0, -1 or empty' in text
    assert 'href="03_model.html"' not in text
    project.write('model')
    quiet(project)
    assert project.calls() == list(STAGES)
    assert not failed.exists()
    assert 'This run stopped' not in (project.reports / 'index.html').read_text()


def test_a_notebook_has_to_say_that_it_finished(project):
    project.write('exploration', finish=False)
    with pytest.raises(StageFailed, match='ended without saying that it finished'):
        quiet(project)


def test_timeout_and_dead_kernel_are_failures(project):
    project.write('exploration', 'time.sleep(60)')
    with pytest.raises(StageFailed, match='longer than 1 seconds'):
        quiet(project, timeout=1)
    project.write('exploration', 'import os; os.write(2, b"out of luck\\n"); os._exit(7)')
    with pytest.raises(StageFailed, match='died.*out of luck'):
        quiet(project)
    assert not list(project.reports.rglob('.*.tmp*'))


def test_one_run_at_a_time(project):
    with only_run(project.reports), pytest.raises(UsageError, match='another run is at work'):
        quiet(project)


def test_odd_folder_names(tmp_path):
    project = Project(tmp_path / 'toys {run} & 100% [x]')
    quiet(project, until='notes')
    assert project.calls() == ['exploration', 'notes']
    assert (project.reports / '02_notes.html').exists()


def test_kernel_is_this_python_whatever_is_registered(project, monkeypatch, tmp_path):
    spec = tmp_path / 'jupyter' / 'kernels' / 'python3'
    spec.mkdir(parents=True)
    (spec / 'kernel.json').write_text(
        json.dumps(dict(argv=['/bin/false', '{connection_file}'], display_name='wrong', language='python'))
    )
    monkeypatch.setenv('JUPYTER_PATH', str(tmp_path / 'jupyter'))
    project.write('exploration', "import sys\n(folder/'python.txt').write_text(sys.executable)")
    quiet(project, until='exploration')
    assert (project.reports / 'python.txt').read_text() == sys.executable


def test_the_next_kernel_starts_meanwhile_and_none_is_left(project):
    kernels = Kernels(
        [project.home / 'nbs' / name for name in ('01_exploration.ipynb', '02_notes.ipynb')], project.home
    )
    first = kernels.next()
    (second,) = kernels.started
    assert first.manager.has_kernel and second.manager.has_kernel
    first.close()
    kernels.close()
    assert not first.manager.has_kernel and not second.manager.has_kernel
    assert not Path(first.sockets).exists() and not Path(second.sockets).exists()


def test_papermill_alone(project):
    alone = project.home / 'reports' / 'alone'
    alone.mkdir(parents=True)
    (alone / 'exploration.json').write_text('"what the stage before left"')
    words = 'papermill 02_notes.ipynb ../out.ipynb -p seed 5 -p run alone -k python3 --no-progress-bar'
    done = subprocess.run(
        [sys.executable, '-m', *words.split()],
        cwd=project.home / 'nbs',
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'CXR_HOME': str(project.home)},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((alone / 'notes.json').read_text())[:2] == ['notes', 5]


def test_progress_on_a_terminal_is_one_line_a_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    progress = Progress(2, screen)
    progress.skip('01_exploration')
    progress.begin('02_notes')
    progress.cell(2, 4)
    progress.told(['epoch 1 of 6', 'loss 0.5'], keep=True)
    progress.end()
    progress.close()
    assert 'stages: 2/2' in screen.getvalue()
    assert 'not run again' in screen.getvalue()
    assert '02_notes: done after' in screen.getvalue()
    assert '02_notes: epoch 1 of 6, loss 0.5' in screen.getvalue()


def test_a_plain_log_shows_what_is_reported_whole_and_never_source():
    log = io.StringIO()
    progress = Progress(1, log, every=0)
    progress.begin('04_training')
    progress.cell(3, 5, 'secret_function(table)')
    progress.told(['fold 2 of 5, epoch 3 of 12', 'step 4 of 9', 'loss 0.412', 'about 3 min left'])
    progress.told(
        ['fold 2 of 5, epoch 3 of 12', 'loss 0.400', 'tuning AUROC 0.712', 'about 3 min left'], keep=True
    )
    progress.cell(4, 5, 'secret_function(table)')
    progress.end()
    lines = log.getvalue().splitlines()
    assert (
        '      04_training: fold 2 of 5, epoch 3 of 12, loss 0.400, tuning AUROC 0.712, about 3 min left'
        in lines
    )
    assert any(
        line.endswith('s: fold 2 of 5, epoch 3 of 12, step 4 of 9, loss 0.412, about 3 min left')
        for line in lines
    )
    assert 'secret_function' not in log.getvalue()
    assert any('cell 4 of 5' in line for line in lines)


@pytest.mark.parametrize('columns', [200, 80, 60])
def test_beside_a_bar_stands_what_fits_and_never_half_of_it(columns, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv('COLUMNS', str(columns))
    screen, parts = Terminal(), ['epoch 3 of 12', 'loss 0.412', 'tuning AUROC 0.712', 'about 3 min left']
    progress = Progress(1, screen)
    progress.begin('04_training')
    progress.cell(3, 5)
    progress.told(parts)
    shown = progress.bars.cells.postfix or ''
    progress.end()
    progress.close()
    assert shown == ', '.join(parts[: (shown.count(',') + 1) * bool(shown)])
    assert columns < 200 or shown == ', '.join(parts)


def test_what_a_notebook_reports_reaches_the_log(project):
    project.write(
        'exploration',
        'from cxr_lib.foundations.progress import report_progress\n'
        "report_progress('epoch 1 of 2', 'loss 0.5', seconds_left=30, keep=True)",
    )
    code, out, err = project.cxr('run', '--until', 'exploration')
    assert (
        code == 0 and '      01_exploration: epoch 1 of 2, loss 0.5, about 30 s left' in err.splitlines()
    ), err


def test_what_is_reported_after_a_stage_has_finished_is_an_example(project):
    project.write(
        'exploration',
        '\n'.join(
            [
                'from cxr_lib.foundations.progress import report_progress',
                'folder.finish(stage, dict(seed=seed))',
                "report_progress('epoch 9 of 9', 'loss 0.5', seconds_left=30, keep=True)",
            ]
        ),
        finish=False,
    )
    code, out, err = project.cxr('run', '--until', 'exploration')
    assert code == 0 and 'epoch 9 of 9' not in err, err


# What must not cost the results, or a traceback


class CodePage(io.TextIOWrapper):
    "Standard output as a terminal of some code page has it"

    def __init__(self, encoding):
        super().__init__(io.BytesIO(), encoding=encoding, errors='strict', write_through=True)

    def text(self):
        return self.buffer.getvalue().decode(self.encoding)


@pytest.mark.parametrize('encoding', ['ascii', 'cp932', 'cp1252', 'utf-8'])
def test_no_code_page_ends_a_command(project, monkeypatch, encoding):
    (project.home / 'nbs' / '08_demo.ipynb').touch()
    (project.reports / '.stages').mkdir(parents=True)
    (project.reports / '.stages' / 'evaluation.json').write_text('{}')
    (project.reports / 'index.html').touch()
    write = lambda name, text: (project.reports / name).write_text(text, encoding='utf-8')
    verdict = dict(verdict=['Fused – 0.91 ≥ 0.9 … “médiastin” 肺'])
    write('metrics.json', json.dumps(verdict, ensure_ascii=False))
    write('metrics.csv', 'observation,auroc\nEdema,\n')
    monkeypatch.chdir(project.home)
    monkeypatch.delenv('CXR_HOME', raising=False)
    for args in (
        ['params'],
        ['download'],
        ['where', 'simulated'],
        ['demo', '--print'],
        ['run', '-p', 'dataset', '–肺'],
    ):
        out, err = CodePage(encoding), CodePage(encoding)
        monkeypatch.setattr(sys, 'stdout', out)
        monkeypatch.setattr(sys, 'stderr', err)
        assert command.main(args) == (2 if args[0] == 'run' else 0), args
        assert (err if args[0] == 'run' else out).text()
    monkeypatch.setattr(sys, 'stdout', CodePage(encoding))
    command.speak_plainly()
    command.print_results(project.reports)
    shown = sys.stdout.text()
    assert '0.91' in shown
    assert 'Fused – 0.91' in shown or 'Fused - 0.91' in shown


def test_a_run_into_a_log_of_another_code_page(project):
    project.write('evaluation', VERDICT.format('0.91 – 0.93') + "\nprint('– 肺')")
    env = {k: v for k, v in os.environ.items() if k != 'CXR_HOME'} | {
        'PYTHONPATH': str(ROOT),
        'PYTHONIOENCODING': 'cp932',
        'PYTHONUTF8': '0',
    }
    done = subprocess.run(
        [sys.executable, '-m', 'cxr_lib.running.command', 'run'],
        cwd=project.home,
        env=env,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert b'0.91 - 0.93' in done.stdout
    assert b'Report:' in done.stdout


def test_a_page_that_fails_is_replaced_and_made_later(project, monkeypatch, capsys):
    monkeypatch.chdir(project.home)
    monkeypatch.delenv('CXR_HOME', raising=False)
    project.write('evaluation', VERDICT.format('The note adds 0.03.'))

    def broken(*args, **kw):
        raise RuntimeError('no template')

    with monkeypatch.context() as m:
        m.setattr(pages, 'render_page', broken)
        assert command.main(['run']) == 1
    out, err = capsys.readouterr()
    assert 'The note adds 0.03.' in out
    assert '05_evaluation.html could not be made (RuntimeError: no template)' in err
    assert 'Traceback' not in err
    assert project.calls() == list(STAGES)
    assert 'could not be made' in (project.reports / '05_evaluation.html').read_text()
    assert command.main(['run']) == 0
    assert project.calls() == list(STAGES)  # pages only: no stage runs again
    assert 'worked on evaluation' in (project.reports / '05_evaluation.html').read_text()


def test_a_front_page_that_cannot_be_written_loses_no_results(project, monkeypatch, capsys):
    monkeypatch.chdir(project.home)
    monkeypatch.delenv('CXR_HOME', raising=False)
    project.write('evaluation', VERDICT.format('The note adds 0.03.'))

    def full(plan, state='', *args, real=execute.render_index, **kw):
        if not state:
            raise OSError(errno.ENOSPC, 'No space left on device', str(plan.folder / 'index.html'))
        return real(plan, state, *args, **kw)

    monkeypatch.setattr(execute, 'render_index', full)
    assert command.main(['run']) == 1
    out, err = capsys.readouterr()
    assert 'The note adds 0.03.' in out
    assert 'the disk is full' in err
    assert 'index.html' in err
    assert 'Traceback' not in err


def test_every_part_of_the_front_page_may_fail_alone(project):
    plan = plan_run(home=project.home)
    plan.folder.mkdir(parents=True)
    (plan.folder / 'metrics.json').write_text('{"verdict": ')  # half of one
    (plan.folder / 'metrics.csv').write_text('observation,auroc\nEdema,0.91234\n')
    (plan.folder / 'external_comparison.csv').write_text('no,such,columns\n')
    (plan.folder / 'roc_curves.png').mkdir()
    (plan.folder / '.stages').mkdir()
    (plan.folder / '.stages' / 'notes.run.json').write_text('{"sec')
    problems = []
    text = pages.render_index(plan, problems=problems).read_text()
    for what in (
        'metrics.json',
        'the comparison with another model',
        'the picture roc_curves.png',
        'the list of notebooks',
    ):
        assert f'{what} could not be shown' in text, what
    assert len(problems) == 4
    assert '0.912' in text
    assert 'Parameters' in text


@pytest.mark.parametrize(
    'run, said', [('x' * 300, 'the name is too long'), ('file/run', 'is a file, or lies below one')]
)
def test_an_impossible_folder_is_one_sentence(project, run, said):
    (project.home / 'file').touch()
    code, out, err = project.cxr('run', '--run', run)
    assert code != 0
    assert said in err
    assert 'Traceback' not in err
    assert len(err.strip().splitlines()) == 1
    code, out, err = project.cxr('run', '--dataset', 'nih', '--root', run)
    assert code != 0
    assert 'Traceback' not in err
    assert len(err.strip().splitlines()) == 1


def test_an_unwritable_folder_is_one_sentence(project, monkeypatch, capsys):
    monkeypatch.chdir(project.home)
    monkeypatch.delenv('CXR_HOME', raising=False)

    def refuse(self, *args, **kw):
        raise PermissionError(errno.EACCES, 'Permission denied', str(self))

    monkeypatch.setattr(Path, 'mkdir', refuse)  # as root, no permission binds
    assert command.main(['run']) == 1
    err = capsys.readouterr().err
    assert 'no permission' in err
    assert 'reports' in err
    assert 'Traceback' not in err


def test_a_disk_that_fills_up_in_a_stage_is_one_sentence(project):
    project.write(
        'notes',
        "import errno\n"
        "with atomic_path(folder/'big.npy') as tmp: raise OSError(errno.ENOSPC, 'No space left on device')",
    )
    code, out, err = project.cxr('run')
    assert code == 1
    assert 'the disk is full' in err
    assert 'big.npy' in err
    assert 'Traceback' not in err
    assert not list(project.reports.rglob('.*.tmp*'))
    assert project.calls() == ['exploration']


def test_a_moved_or_renamed_run_is_still_finished(project):
    (project.home / 'films').mkdir()
    (project.home / 'films' / 'studies.csv').write_text('image\n')
    given = {'dataset': 'nih', 'root': str(project.home / 'films')}
    quiet(project, given)
    moved = Project.__new__(Project)
    moved.home = project.home.rename(project.home.parent / 'elsewhere')
    (moved.home / 'reports' / 'nih').rename(moved.home / 'reports' / 'renamed')
    run_stages(
        plan_run({'dataset': 'nih', 'root': str(moved.home / 'films')}, 'renamed', home=moved.home),
        progress=Progress(len(STAGES), io.StringIO()),
    )
    assert (moved.home / 'reports' / 'renamed' / 'calls.txt').read_text().split() == list(
        STAGES
    )  # nothing ran again


# Killed at any moment


def _nothing_half_written(project):
    "What a stamp vouches for is whole"
    for stamp in (project.reports / '.stages').glob('*.run.json'):
        json.loads(stamp.read_text())
        name = project.notebook(stamp.name.split('.')[0]).stem
        nbformat.read(project.reports / f'{name}.ipynb', 4)
        assert (project.reports / f'{name}.html').read_text().rstrip().endswith('</html>')


def _result(project):
    "What a run leaves, but for times"
    stamps = {
        s: json.loads((project.reports / '.stages' / f'{s}.run.json').read_text())['key'] for s in STAGES
    }
    return (
        stamps,
        {s: (project.reports / f'{s}.json').read_text() for s in STAGES},
        sorted(p.name for p in project.reports.iterdir()),
    )


def test_killed_at_random_moments_it_resumes_to_the_same(tmp_path):
    whole, killed = Project(tmp_path / 'whole' / 'toy'), Project(tmp_path / 'killed' / 'toy')
    since = time.monotonic()
    assert whole.cxr('run', '-p', 'pause', '0.1')[0] == 0
    takes, moments = time.monotonic() - since, random.Random(20)
    for _ in range(3):
        process = killed.start('run', '-p', 'pause', '0.1', start_new_session=True)
        time.sleep(moments.uniform(0.15, 0.7) * takes)
        process.send_signal(signal.SIGKILL)  # the runner only: its kernel has to notice by itself
        process.communicate()
        _nothing_half_written(killed)
        if killed.reports.exists():
            (killed.reports / '.06_left.123.tmp.ipynb').write_text('half of')
    assert killed.cxr('run', '-p', 'pause', '0.1')[0] == 0
    assert _result(killed) == _result(whole)
    assert set(killed.calls()) == set(STAGES)
    assert not list(killed.reports.rglob('.*.tmp*'))


@pytest.mark.skipif(os.name == 'nt', reason='signals')
@pytest.mark.parametrize('sent, code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_it_leaves_nothing_behind(project, sent, code):
    project.write('notes', "(folder/'pid.txt').write_text(str(__import__('os').getpid()))\ntime.sleep(60)")
    process = project.start('run')
    until = time.monotonic() + 60
    while not (project.reports / 'pid.txt').exists() and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(sent)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert not list(project.reports.rglob('.*.tmp*'))
    assert (project.reports / '01_exploration.html').exists()
    assert 'has not finished in this run' in (project.reports / '02_notes.html').read_text()
    kernel = int((project.reports / 'pid.txt').read_text())
    for _ in range(50):
        if not Path(f'/proc/{kernel}').exists():
            break
        time.sleep(0.1)
    else:
        pytest.fail('the kernel is still there')
