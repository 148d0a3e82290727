"""The runner: what it refuses, what it skips, what it leaves when it is stopped."""
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

import nbformat
import pytest
from conftest import ROOT, STAGES, WORK, Project

from cxr_lib import runner
from cxr_lib.runner import EXTERNAL, Progress, StageFailed, UsageError, only_run, plan_run, run_stages


def quiet(project, given=None, **kw):
    "A run inside this process, without its progress"
    return run_stages(plan_run(given, home=project.home), progress=Progress(len(STAGES), io.StringIO()), **kw)


def test_command_line_imports_nothing_heavy():
    code = "import sys, cxr_lib.runner as r; r._parser().format_help(); print([m for m in ('torch', 'pandas', 'numpy', 'papermill', 'nbformat', 'tqdm', 'filelock') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, check=True).stdout.strip() == '[]'


# What it refuses, before anything runs

@pytest.mark.parametrize('args, said', [
    (['-p', 'n_patient', '3'], ["unknown parameter 'n_patient'", "did you mean 'n_patients'?", 'note_dropout']),
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
])
def test_refuses_with_the_valid_choices(project, capsys, monkeypatch, args, said):
    monkeypatch.chdir(project.home)
    monkeypatch.delenv('CXR_HOME', raising=False)
    assert runner.main(['run', *args]) == 2
    error = capsys.readouterr().err
    assert all(s in error for s in said), error
    assert project.calls() == [] and not list((project.home/'reports').glob('*/index.html'))


def test_refuses_unknown_datasets_and_presets(project, monkeypatch):
    tables = {'DATASETS': {'simulated': {'needs_root': False}, 'nih': {'needs_root': True}}, 'PRESETS': {'tiny': {}, 'base': {}}}
    monkeypatch.setattr(runner, '_table', lambda module, name: tables[name])
    with pytest.raises(UsageError, match="unknown dataset 'nihh'; did you mean 'nih'.*Valid: simulated, nih"): plan_run({'dataset': 'nihh'}, home=project.home)
    with pytest.raises(UsageError, match="unknown preset 'huge'.*Valid: tiny, base"): plan_run({'preset': 'huge'}, home=project.home)
    with pytest.raises(UsageError, match="'nih' has to be given its folder"): plan_run({'dataset': 'nih'}, home=project.home)
    plan = plan_run({'dataset': 'nih', 'root': str(project.home)}, home=project.home)
    assert plan.run == 'nih' and not plan.simulated and 'n_patients' not in plan.passed['exploration'] and plan.passed['evaluation']['n_bootstrap'] == 1000


def test_parameters_are_read_from_the_notebooks(project, capsys, monkeypatch):
    monkeypatch.chdir(project.home)
    monkeypatch.delenv('CXR_HOME', raising=False)
    assert runner.main(['params']) == 0
    out = capsys.readouterr().out
    assert re.search(r'n_patients +24000 +how many \(stepping through: 24\)', out) and re.search(r"note_dropout +0.1 +share of notes dropped\n", out)


def test_values_get_the_type_of_the_default(project):
    plan = plan_run({'negative_example': 'no', 'note_dropout': '1', 'epochs': '3'}, home=project.home)
    assert plan.passed['training'] == {'run': 'simulated', 'negative_example': False, 'epochs': 3} and plan.passed['notes']['note_dropout'] == 1.0
    assert isinstance(plan.passed['notes']['note_dropout'], float)


# What it does, and does not do again

def test_second_run_skips_and_changes_run_again(project):
    quiet(project)
    assert project.calls() == list(STAGES)
    quiet(project)
    assert project.calls() == list(STAGES)                                     # the same again: nothing to do
    quiet(project, {'negative_example': False})
    assert project.calls()[5:] == ['training', 'evaluation']                   # a parameter: from the stage that has it
    nb = nbformat.read(project.notebook('evaluation'), 4)
    nb.cells[3].source += '\n# another line'
    nbformat.write(nb, project.notebook('evaluation'))
    quiet(project, {'negative_example': False})
    assert project.calls()[7:] == ['evaluation']                               # a notebook's source
    (project.reports/'05_evaluation.html').unlink()
    quiet(project, {'negative_example': False})
    assert project.calls()[8:] == ['evaluation']                   # a page that is gone
    quiet(project, {'negative_example': False}, start='evaluation')
    assert project.calls()[9:] == ['evaluation']                              # asked for
    page = quiet(project, {'negative_example': False}, force=True, until='notes').read_text()
    assert project.calls()[10:] == ['exploration', 'notes'] and 'is not finished' in page and not (project.reports/'03_model.html').exists()


def test_library_sources_decide(project, monkeypatch):
    keys = runner.stage_keys(plan_run(home=project.home))
    monkeypatch.setattr(runner, 'library_sources', lambda notebook, real=runner.library_sources: {**real(notebook), **({'changed': '1'} if notebook.stem >= '04' else {})})
    assert [s for s in STAGES if runner.stage_keys(plan_run(home=project.home))[s] != keys[s]] == ['training', 'evaluation']


def test_a_damaged_stamp_vouches_for_nothing(project):
    quiet(project, until='notes')
    for name in ('notes.run.json', 'notes.json'):
        (project.reports/'.stages'/name).write_text('{"key": ')
        quiet(project, until='notes')
    assert project.calls() == ['exploration', 'notes', 'notes', 'notes']


def test_report_is_complete_and_needs_no_network(project):
    project.write('evaluation', WORK + '''
from cxr_lib.core import write_json
import base64
write_json(folder/'metrics.json', dict(verdict=['Fused 0.91 <b>', 'The note adds 0.03.']))
(folder/'metrics.csv').write_text('observation,auroc\\nEdema,0.91234\\n')
(folder/'controls.png').write_bytes(base64.b64decode('iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='))
from IPython.display import HTML, display
display(HTML('<b>a table</b>'))''')
    code, out, err = project.cxr('run', '-p', 'seed', '4')
    assert code == 0, err
    index = project.reports/'index.html'
    assert str(index) in out and 'The note adds 0.03.' in out and '0.912' in out
    assert '[5/5] 05_evaluation' in err and '\r' not in err and len(err.splitlines()) < 15                         # plain lines, as there is no terminal
    text = index.read_text()
    for wanted in ('SIMULATED', 'Research use only', 'Fused 0.91 &lt;b&gt;', '0.912', 'data:image/png', 'href="05_evaluation.html"', 'href="01_exploration.ipynb"', 'note_dropout', 'name="viewport"'):
        assert wanted in text, wanted
    for page in project.reports.glob('*.html'):
        assert not EXTERNAL.search(page.read_text()), page
        assert 'SIMULATED' in page.read_text() and page.read_text().rstrip().endswith('</html>')
    assert '<b>a table</b>' in (project.reports/'05_evaluation.html').read_text()
    code, out, err = project.cxr('where', 'simulated')
    assert (code, out.strip()) == (0, str(index))
    code, out, err = project.cxr('where', 'other')
    assert code == 2 and 'there is simulated' in err.replace('there are', 'there is')


def test_stops_at_the_first_failing_notebook(project):
    project.write('model', "layers = 3\n\nraise ValueError('valid.csv row 17:\\nexpected 1, 0, -1 or empty')")
    code, out, err = project.cxr('run')
    assert code == 1 and '03_model.ipynb failed in cell 4' in err and '| layers = 3' in err and 'ValueError: expected 1, 0, -1 or empty' in err and 'Traceback' not in err
    assert project.calls() == ['exploration', 'notes']
    failed = project.reports/'03_model.failed.ipynb'
    assert str(failed) in err and any(c.get('outputs') for c in nbformat.read(failed, 4).cells)
    assert not (project.reports/'03_model.ipynb').exists() and not (project.reports/'03_model.html').exists() and (project.reports/'02_notes.html').exists()
    text = (project.reports/'index.html').read_text()
    assert 'This run stopped' in text and 'expected 1, 0, -1 or empty' in text and 'href="03_model.html"' not in text
    project.write('model')
    quiet(project)
    assert project.calls() == list(STAGES) and not failed.exists() and 'This run stopped' not in (project.reports/'index.html').read_text()


def test_a_notebook_has_to_say_that_it_finished(project):
    project.write('exploration', finish=False)
    with pytest.raises(StageFailed, match='ended without saying that it finished'): quiet(project)


def test_timeout_and_dead_kernel_are_failures(project):
    project.write('exploration', 'time.sleep(60)')
    with pytest.raises(StageFailed, match='longer than 1 seconds'): quiet(project, timeout=1)
    project.write('exploration', 'import os; os.write(2, b"out of luck\\n"); os._exit(7)')
    with pytest.raises(StageFailed, match='died.*out of luck'): quiet(project)
    assert not list(project.reports.rglob('.*.tmp*'))


def test_one_run_at_a_time(project):
    with only_run(project.reports), pytest.raises(UsageError, match='another run is at work'): quiet(project)


def test_odd_folder_names(tmp_path):
    project = Project(tmp_path/'toys {run} & 100% [x]')
    quiet(project, until='notes')
    assert project.calls() == ['exploration', 'notes'] and (project.reports/'02_notes.html').exists()


def test_kernel_is_this_python_whatever_is_registered(project, monkeypatch, tmp_path):
    spec = tmp_path/'jupyter'/'kernels'/'python3'
    spec.mkdir(parents=True)
    (spec/'kernel.json').write_text(json.dumps(dict(argv=['/bin/false', '{connection_file}'], display_name='wrong', language='python')))
    monkeypatch.setenv('JUPYTER_PATH', str(tmp_path/'jupyter'))
    project.write('exploration', "import sys\n(folder/'python.txt').write_text(sys.executable)")
    quiet(project, until='exploration')
    assert (project.reports/'python.txt').read_text() == sys.executable


def test_papermill_alone(project):
    alone = project.home/'reports'/'alone'
    alone.mkdir(parents=True)
    (alone/'exploration.json').write_text('"what the stage before left"')
    done = subprocess.run([sys.executable, '-m', 'papermill', '02_notes.ipynb', '../out.ipynb', '-p', 'seed', '5', '-p', 'run', 'alone', '-k', 'python3', '--no-progress-bar'],
                          cwd=project.home/'nbs', capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(ROOT), 'CXR_HOME': str(project.home)})
    assert done.returncode == 0, done.stderr
    assert json.loads((alone/'notes.json').read_text())[:2] == ['notes', 5]


def test_progress_on_a_terminal_is_one_line_a_bar():
    class Terminal(io.StringIO):
        def isatty(self): return True
    screen = Terminal()
    progress = Progress(2, screen)
    progress.skip('01_exploration')
    progress.begin('02_notes')
    progress.cell(2, 4, 'write(table)')
    progress.output('epoch 1\nepoch 2\n')
    progress.end()
    progress.close()
    assert 'stages: 2/2' in screen.getvalue() and 'not run again' in screen.getvalue() and '02_notes: done after' in screen.getvalue()


# Killed at any moment

def _nothing_half_written(project):
    "What a stamp vouches for is whole"
    for stamp in (project.reports/'.stages').glob('*.run.json'):
        json.loads(stamp.read_text())
        name = project.notebook(stamp.name.split('.')[0]).stem
        nbformat.read(project.reports/f'{name}.ipynb', 4)
        assert (project.reports/f'{name}.html').read_text().rstrip().endswith('</html>')


def _result(project):
    "What a run leaves, but for times"
    stamps = {s: json.loads((project.reports/'.stages'/f'{s}.run.json').read_text())['key'] for s in STAGES}
    return stamps, {s: (project.reports/f'{s}.json').read_text() for s in STAGES}, sorted(p.name for p in project.reports.iterdir())


def test_killed_at_random_moments_it_resumes_to_the_same(tmp_path):
    whole, killed = Project(tmp_path/'whole'/'toy'), Project(tmp_path/'killed'/'toy')
    since = time.monotonic()
    assert whole.cxr('run', '-p', 'pause', '0.1')[0] == 0
    takes, moments = time.monotonic() - since, random.Random(20)
    for _ in range(3):
        process = killed.start('run', '-p', 'pause', '0.1', start_new_session=True)
        time.sleep(moments.uniform(0.15, 0.7)*takes)
        process.send_signal(signal.SIGKILL)                                   # the runner only: its kernel has to notice by itself
        process.communicate()
        _nothing_half_written(killed)
        if killed.reports.exists(): (killed.reports/'.06_left.123.tmp.ipynb').write_text('half of')
    assert killed.cxr('run', '-p', 'pause', '0.1')[0] == 0
    assert _result(killed) == _result(whole)
    assert set(killed.calls()) == set(STAGES) and not list(killed.reports.rglob('.*.tmp*'))


@pytest.mark.skipif(os.name == 'nt', reason='signals')
@pytest.mark.parametrize('sent, code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_it_leaves_nothing_behind(project, sent, code):
    project.write('notes', "(folder/'pid.txt').write_text(str(__import__('os').getpid()))\ntime.sleep(60)")
    process = project.start('run')
    until = time.monotonic() + 60
    while not (project.reports/'pid.txt').exists() and time.monotonic() < until: time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(sent)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert not list(project.reports.rglob('.*.tmp*')) and (project.reports/'01_exploration.html').exists() and not (project.reports/'02_notes.html').exists()
    kernel = int((project.reports/'pid.txt').read_text())
    for _ in range(50):
        if not Path(f'/proc/{kernel}').exists(): break
        time.sleep(0.1)
    else: pytest.fail('the kernel is still there')
