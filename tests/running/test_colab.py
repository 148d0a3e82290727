"""Colab: the cell that installs, and `colab_train.ipynb` from an empty folder to a report, with a machine that dies."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time

import address
import environment
import pytest
from conftest import NOTEBOOKS, ROOT

psutil = pytest.importorskip('psutil')


def first_cell(path):
    cell = json.loads(path.read_text(encoding='utf-8'))['cells'][0]
    return ''.join(cell['source']) if cell['cell_type'] == 'code' else ''


CELL = first_cell(ROOT / 'nbs' / '01_exploration.ipynb')


# The first cell


def test_every_notebook_begins_with_the_same_cell():
    without = [p.name for p in NOTEBOOKS if first_cell(p) != CELL]
    assert without == ['index.ipynb']
    assert CELL == address.first_cell(address.settings())


def test_the_cell_runs_in_colab_only():
    assert CELL.startswith('#| eval: false\n# Colab only')
    assert "if 'COLAB_RELEASE_TAG' in os.environ" in CELL
    assert len(CELL.splitlines()) <= 10


def run_cell(monkeypatch, tmp_path, cell, installed, **variables):
    "The commands that the cell starts"
    started = []
    monkeypatch.delenv('COLAB_RELEASE_TAG', raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr('importlib.util.find_spec', lambda name: installed or None)
    monkeypatch.setattr(subprocess, 'run', lambda command, **options: started.append((command, options)))
    monkeypatch.chdir(tmp_path)
    exec(cell, {})
    assert list(tmp_path.iterdir()) == []
    return started


def test_elsewhere_the_cell_does_nothing(monkeypatch, tmp_path):
    assert run_cell(monkeypatch, tmp_path, CELL, installed=False) == []


def test_a_kernel_of_a_stage_in_colab_installs_nothing_again(monkeypatch, tmp_path):
    assert run_cell(monkeypatch, tmp_path, CELL, installed=True, COLAB_RELEASE_TAG='release') == []


def test_without_an_address_the_cell_says_so(monkeypatch, tmp_path):
    with pytest.raises(AssertionError, match='no public address yet'):
        run_cell(monkeypatch, tmp_path, CELL, installed=False, COLAB_RELEASE_TAG='release')


def test_with_an_address_the_cell_installs_and_keeps_the_present_torch(monkeypatch, tmp_path):
    from importlib.metadata import version

    named = address.settings() | dict(user='somebody', git_url='https://github.com/somebody/cxr_lib')
    cell = address.first_cell(named)
    ((command, options),) = run_cell(
        monkeypatch, tmp_path, cell, installed=False, COLAB_RELEASE_TAG='release'
    )
    assert command[:4] == [sys.executable, '-m', 'pip', 'install'] and options == dict(check=True)
    assert 'cxr_lib[offline] @ git+https://github.com/somebody/cxr_lib' in command
    assert command[-2:] == [f'torch=={version("torch")}', f'torchvision=={version("torchvision")}']
    assert '--force-reinstall' not in command and '-U' not in command


# One setting, from which badges and cells follow


def test_notebooks_say_what_settings_say():
    assert address.stale() == []


def test_an_owner_sets_one_line(tmp_path):
    shutil.copy(ROOT / 'settings.ini', tmp_path)
    (tmp_path / 'nbs').mkdir()
    for name in ('index.ipynb', 'colab_train.ipynb'):
        shutil.copy(ROOT / 'nbs' / name, tmp_path / 'nbs')
    ini = (tmp_path / 'settings.ini').read_text()
    (tmp_path / 'settings.ini').write_text(ini.replace('user = OWNER', 'user = somebody'))
    assert address.stale(tmp_path, write=True) == ['nbs/colab_train.ipynb', 'nbs/index.ipynb']
    assert address.stale(tmp_path) == []
    text = (tmp_path / 'nbs' / 'index.ipynb').read_text()
    badges = re.findall(
        r'colab\.research\.google\.com/github/somebody/cxr_lib/blob/main/nbs/(\w+)\.ipynb', text
    )
    assert badges[0] == 'colab_train' and len(badges) == 11
    assert 'git+https://github.com/somebody/cxr_lib' in (tmp_path / 'nbs' / 'colab_train.ipynb').read_text()


def test_until_then_nothing_leads_nowhere():
    pages = [ROOT / 'README.md', *(ROOT / 'nbs' / 'docs').glob('*.md'), *NOTEBOOKS]
    named = address.settings()['git_url']
    if address.repository(address.settings()):
        pytest.skip('the owner has set an address')
    assert [p.name for p in pages if named in p.read_text(encoding='utf-8')] == []
    assert (ROOT / 'README.md').read_text(encoding='utf-8').count(f'| {address.NO_BADGE} |') == 11


# The whole notebook

STUB = '''
"""A stand-in for Colab's package: Drive is a folder beside, and mounting fails the first time."""

from pathlib import Path

class drive:
    @staticmethod
    def mount(point):
        tried = Path(point).with_name('mounting was tried')
        if not tried.exists():
            tried.touch()
            raise ValueError('mount failed')
        (Path(point) / 'MyDrive').mkdir(parents=True, exist_ok=True)

class output:
    @staticmethod
    def enable_custom_widget_manager():
        print('widgets enabled')
'''
MORE = dict(n_patients=120, epochs=20, n_bootstrap=20, negative_example=False, probe_encoder=False)
MORE['overrides'] = 'batch_size=16'


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "The wheel, built from what is committed and changed; a version that is installed nowhere"
    copy, out = tmp_path_factory.mktemp('copy'), tmp_path_factory.mktemp('dist')
    shutil.copytree(ROOT / 'nbs', copy / 'nbs', ignore=shutil.ignore_patterns('.*', 'chapters'))
    shutil.copytree(ROOT / 'cxr_lib', copy / 'cxr_lib', ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE', 'MANIFEST.in'):
        shutil.copy(ROOT / name, copy)
    (copy / '.ci').mkdir()
    shutil.copy(ROOT / '.ci' / 'stubs.py', copy / '.ci')
    ini = (ROOT / 'settings.ini').read_text(encoding='utf-8')
    (copy / 'settings.ini').write_text(
        re.sub(r'(?m)^version = (.+)$', r'version = \1.post1', ini), encoding='utf-8'
    )
    code = 'import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))'
    done = subprocess.run([sys.executable, '-c', code, str(out)], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return next(out.glob('*.whl'))


@pytest.fixture(scope='module')
def python(tmp_path_factory):
    "A Python that has what this one has, but for this library"
    folder = tmp_path_factory.mktemp('colab') / 'venv'
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', str(folder)], check=True)
    packages = next((folder / 'lib').glob('python*')) / 'site-packages'
    ours = [p for p in sys.path if p.endswith(('site-packages', 'dist-packages'))]
    (packages / 'beside.pth').write_text('\n'.join(ours) + '\n', encoding='utf-8')
    return environment.venv_python(folder)


class Session:
    "One machine of Colab: `colab_train.ipynb` executed top to bottom"

    def __init__(self, python, folder, wheel, **parameters):
        stubs = folder.parent / 'stubs'
        (stubs / 'google' / 'colab').mkdir(parents=True, exist_ok=True)
        (stubs / 'google' / 'colab' / '__init__.py').write_text(STUB)
        source = (ROOT / 'nbs' / 'colab_train.ipynb').read_text(encoding='utf-8')
        assert source.count("INSTALL = ''") == 1
        notebook, self.out = folder.parent / 'colab_train.ipynb', folder.parent / 'out.ipynb'
        notebook.write_text(source.replace("INSTALL = ''", f"INSTALL = '{wheel}'"), encoding='utf-8')
        dropped = ('CXR_HOME', 'PYTHONPATH', 'CXR_PROGRESS')
        env = {k: v for k, v in os.environ.items() if k not in dropped}
        env |= dict(COLAB_RELEASE_TAG='release', PIP_NO_INDEX='1', HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1')
        env |= dict(PYTHONPATH=str(stubs), CUDA_VISIBLE_DEVICES='')
        command = [
            python,
            '-m',
            'papermill',
            notebook,
            self.out,
            '--no-progress-bar',
            '-y',
            json.dumps(parameters),
        ]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.process = subprocess.Popen([*map(str, command)], cwd=folder, env=env, **pipes)

    def wait_for(self, there, seconds=300):
        "Wait until something is there; the session has to be at work all the while"
        until = time.monotonic() + seconds
        while not there():
            assert self.process.poll() is None, self.process.communicate()[0][-3000:]
            assert time.monotonic() < until
            time.sleep(0.05)

    def die(self):
        "The machine is gone, with everything that runs on it"
        everyone = [
            *psutil.Process(self.process.pid).children(recursive=True),
            psutil.Process(self.process.pid),
        ]
        for process in everyone:
            process.kill()
        psutil.wait_procs(everyone)
        self.process.communicate()

    def printed(self):
        "What the cells printed, when all is done"
        said = self.process.communicate(timeout=600)[0]
        assert self.process.returncode == 0, said[-3000:]
        cells = json.loads(self.out.read_text(encoding='utf-8'))['cells']
        outputs = [o for c in cells for o in c.get('outputs', [])]
        shown = [''.join(o.get('data', {}).get('text/html', '')) for o in outputs]
        return ''.join(''.join(o.get('text', '')) for o in outputs), ''.join(shown)


def drive_fails_for(seconds, drive, log):
    "Take Drive away and bring it back"
    away = drive.with_name('away')
    os.rename(drive, away)
    time.sleep(seconds)
    log.append(drive.exists())  # somebody wrote where Drive was not
    os.rename(away, drive)


@pytest.mark.skipif(os.name == 'nt', reason='signals')
@pytest.mark.timeout(900)
def test_from_an_empty_folder_to_a_report_with_a_death_in_between(tmp_path, python, wheel):
    folder, given = tmp_path / 'content', dict(drive='kept here', minutes=0.01, more=MORE)
    folder.mkdir()
    first = Session(python, folder, wheel, until='training', **given)
    kept = folder / 'drive' / 'MyDrive' / 'kept here' / 'reports' / 'colab'
    first.wait_for(lambda: any(kept.glob('.checkpoints/*/multimodal-0.pt')))
    first.die()
    assert not (folder / 'cxr/reports/colab/predictions.parquet').exists(), 'it died too late to be resumed'
    shutil.rmtree(folder / 'cxr')  # the disk of the machine
    done = (kept / '.stages' / 'notes.json').read_text()

    second = Session(python, folder, wheel, **given)
    second.wait_for((folder / 'cxr/reports/colab/.run.lock').exists)
    wrote = []
    failing = threading.Thread(target=drive_fails_for, args=(2, folder / 'drive' / 'MyDrive', wrote))
    failing.start()
    text, shown = second.printed()
    failing.join()

    assert 'of an earlier session were fetched' in text
    assert (kept / '.stages' / 'notes.json').read_text() == done  # not run again
    trained = (folder / 'cxr/reports/colab/04_training.ipynb').read_text(encoding='utf-8')
    assert re.search(r'resuming after epoch \d+', trained)
    assert wrote == [False] and 'The work goes on' in text and 'answers again' in text
    check_outcome(folder, kept, text, shown)


def check_outcome(folder, kept, text, shown):
    "What was announced, shown and kept"
    assert 'no GPU' in text and 'Preset tiny' in text
    assert f'CXR_HOME is {folder / "cxr"}' in text and 'A copy of the run goes to' in text
    assert 'Estimates, from assumed speeds' in text and 'GB of Drive' in text
    assert text.index('CXR_HOME is') < text.index('Estimates') < text.index('of an earlier session')
    assert 'srcdoc=' in shown and 'SIMULATED' in shown
    for name in ('index.html', 'metrics.json', 'model/config.json', 'predictions.parquet'):
        assert (kept / name).read_bytes() == (folder / 'cxr/reports/colab' / name).read_bytes()
    assert not list(kept.rglob('*.copying')) and not list(kept.glob('.checkpoints/*/*'))


# What Colab has stays

#: What google-colab 1.0.0 pins of ours.
PINNED = {
    'ipykernel': '6.17.1',
    'ipython': '7.34.0',
    'pandas': '2.2.2',
    'requests': '2.32.4',
    'tornado': '6.5.1',
}


def test_the_packages_that_colab_pins_stay(python, wheel, tmp_path):
    from importlib.metadata import version

    for name, number in PINNED.items():
        folder = tmp_path / f'{name}-{number}.dist-info'
        folder.mkdir()
        (folder / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n')
        (folder / 'INSTALLER').write_text('pip\n')
    kept = [f'{name}=={version(name)}' for name in ('torch', 'torchvision')]
    command = [
        python,
        '-m',
        'pip',
        'install',
        '--dry-run',
        '--no-index',
        '--quiet',
        '--report',
        '-',
        wheel,
        *kept,
    ]
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'} | {'PYTHONPATH': str(tmp_path)}
    done = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    installed = [item['metadata']['name'] for item in json.loads(done.stdout)['install']]
    assert [name.replace('-', '_') for name in installed] in (['cxr_lib'], [])


# The estimate


def test_an_encoder_that_lies_in_a_folder_is_counted_as_it_is(tmp_path, monkeypatch):
    from encoder_folders import cxr_bert_folder, vision_folder

    from cxr_lib.running import colab

    monkeypatch.delenv('CXR_HOME', raising=False)
    vision, words = tmp_path / 'rad-dino', tmp_path / 'cxr-bert'
    vision_folder(vision)
    cxr_bert_folder(words)
    t4 = colab.Machine('Tesla T4', 15_835_660_288, 'fp16')
    places = colab.Places(tmp_path, None, None)
    named = f'image_weights={vision} text_encoder={words} image_size=56'
    more = dict(n_patients=1000, overrides=named, max_images=0)
    plan = colab.colab_plan(places, dict(dataset='simulated'), 'chest', t4, more=more)
    found = colab.estimate_run(plan, t4)
    assert found['minutes']['encoding with frozen encoders'] > 0 and found['minutes']['training'] > 0
    tokens = found['disk'] - (1000 * 56**2) / 1e9
    assert tokens > 0 and found['Drive'] < 1
    assert 'Estimates' in colab.expect(plan, t4, places)
