"""Packaging: one list of requirements, an environment that keeps an existing torch, a wheel with the notebooks."""

import base64
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from pathlib import Path

import check_repository
import environment
import nbformat
import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def settings():
    parser = ConfigParser(delimiters=['='])
    parser.read(ROOT / 'settings.ini', encoding='utf-8')
    return parser['DEFAULT']


EXTRAS = ('notebooks', 'offline', 'train', 'fast', 'serve', 'fhir', 'sr', 'chest', 'docs', 'dev')


def required(key):
    "The requirements of one line of settings.ini"
    return [Requirement(r) for r in settings()[key].split()]


def requirements():
    "All of them, those of the extras too"
    return [r for key in ('requirements', *(f'{e}_requirements' for e in EXTRAS)) for r in required(key)]


def constraints():
    return {
        canonicalize_name(r.name): r
        for r in map(
            Requirement,
            (line for line in (ROOT / 'constraints.txt').read_text().splitlines() if line and line[0] != '#'),
        )
    }


def test_constraints_pin_every_requirement_within_its_range():
    pinned = constraints()
    for r in requirements():
        version = re.fullmatch(r'==([\w.]+)', str(pinned[canonicalize_name(r.name)].specifier))
        assert version and r.specifier.contains(version[1]), (
            f'{r} is pinned to {pinned[canonicalize_name(r.name)]}'
        )
    text = (ROOT / 'constraints.txt').read_text()
    assert (
        'torch==2.13.0\n' in text
        and 'torchvision==0.28.0\n' in text
        and '@' not in text
        and '/' not in text.split('\n', 2)[2]
    )


def test_an_environment_is_not_made_anew_with_its_own_python(tmp_path):
    "As in a shell in which it is active: its Python would be gone before the new one is there"
    made, other = tmp_path / 'made', tmp_path / 'other'
    for folder in (made, other):
        subprocess.run([sys.executable, '-m', 'venv', '--without-pip', folder], check=True)
    code = f'import sys; sys.path.insert(0, {str(ROOT / ".ci")!r}); import environment, pathlib\n'
    code += f'print(environment.base_python(pathlib.Path({str(made)!r})))'
    said = [
        subprocess.run([environment.venv_python(f), '-c', code], capture_output=True, text=True, check=True)
        for f in (made, other)
    ]
    base = Path(said[0].stdout.strip())
    assert base.is_file() and made not in base.parents
    assert said[1].stdout.strip() == 'None'


def test_conda_environment_names_every_package_of_the_card():
    import yaml

    environment = yaml.safe_load((ROOT / 'environment.yml').read_text())
    pip = next(d['pip'] for d in environment['dependencies'] if isinstance(d, dict))
    names = {
        Requirement(d).name if '=' not in d or '>=' in d else d.split('=')[0]
        for d in [*(d for d in environment['dependencies'] if isinstance(d, str)), *pip]
        if not d.startswith('-e')
    }
    names = {'torch' if n == 'pytorch' else n for n in names}
    assert names >= {
        'python',
        'pip',
        'jupyterlab',
        'torch',
        'transformers',
        'timm',
        'pandas',
        'seaborn',
        'scikit-learn',
        'ipywidgets',
        'papermill',
        'nbdev',
    }
    assert '-e .[notebooks,offline,train,fast,serve,fhir,sr,docs,dev]' in pip
    ranges = {canonicalize_name(r.name): r.specifier for r in requirements()}
    for d in [d for d in [*environment['dependencies'], *pip] if isinstance(d, str) and '>=' in d]:
        r = Requirement(d)
        assert r.specifier == ranges[{'pytorch': 'torch'}.get(r.name, canonicalize_name(r.name))], (
            f'environment.yml and settings.ini differ in {r.name}'
        )


# A torch that is there is kept

TESTED = 'timm==1.0\ntorch==2.13.0\ntorchvision==0.28.0; python_version >= "3.10"\ntorchmetrics==1.0\n'


@pytest.mark.parametrize(
    'found, lines',
    [
        (
            {'torch': '2.9.1+cu128', 'torchvision': '0.24.1+cu128'},
            ['torch==2.9.1+cu128', 'torchvision==0.24.1+cu128'],
        ),
        ({'torch': '2.9.1+cu128'}, ['torch==2.9.1+cu128', 'torchvision>=0.24,<0.25']),
        ({'torch': '2.13.0'}, ['torch==2.13.0', 'torchvision>=0.28,<0.29']),
        (
            {'torch': '2.6.0a0+df5bbc09d1.nv24.12', 'torchvision': '0.20.0a0'},
            ['torch==2.6.0a0+df5bbc09d1.nv24.12', 'torchvision==0.20.0a0'],
        ),
    ],
)
def test_keep_torch(found, lines):
    assert environment.keep_torch(TESTED, found).splitlines() == ['timm==1.0', 'torchmetrics==1.0', *lines]


def test_fitting_torchvision_is_what_torchvision_was_released_for():
    for torch, vision in {
        '2.4.1': '0.19.1',
        '2.5.1': '0.20.1',
        '2.7.0': '0.22.0',
        '2.13.0': '0.28.0',
    }.items():
        assert Requirement(environment.fitting_torchvision(torch)).specifier.contains(vision)


def test_find_torch(tmp_path):
    import torch

    assert environment.find_torch()['torch'].split('+')[0] == torch.__version__.split('+')[0]
    bare = tmp_path / 'bare'
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', str(bare)], check=True)
    assert environment.find_torch(str(environment.venv_python(bare))) is None


@pytest.mark.skipif(
    sys.prefix == sys.base_prefix
    or bool(
        importlib.util.find_spec('torch')
        and not importlib.util.find_spec('torch').origin.startswith(sys.prefix)
    ),
    reason='needs a torch inside a virtual environment',
)
def test_an_environment_sees_the_torch_of_a_virtual_environment(tmp_path):
    found = environment.find_torch()
    python = environment.make_venv(tmp_path / 'new', found)
    assert environment.find_torch(str(python)) == found


def test_says_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, 'ensurepip', None)
    with pytest.raises(SystemExit, match='apt install python3-venv'):
        environment.check_python()
    monkeypatch.undo()
    monkeypatch.setattr(environment.sys, 'version_info', (3, 9, 1))
    with pytest.raises(SystemExit, match='Python 3.10 or newer'):
        environment.check_python()


# What make does


def test_make_test_runs_every_check_and_make_has_nothing_to_warn_of():
    done = subprocess.run(['make', '-n', 'test'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and 'warning' not in done.stderr, done.stderr
    wanted = [f'check_repository.py {what}' for what in ('export', 'clean', 'readme')]
    wanted += ['ruff check', 'check_types.py', 'measure_house.py', 'run_notebooks.py', 'pytest']
    assert [command for command in wanted if command not in done.stdout] == []


# What is built


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "What git would give, in another folder"
    target = tmp_path_factory.mktemp('copy with spaces') / 'project'
    everywhere = shutil.ignore_patterns('.[!c]*', '*.egg-info', '__pycache__')  # .ci comes along
    at_the_root = shutil.ignore_patterns('build', 'dist', 'reports', 'data', '_proc', '_docs')
    shutil.copytree(
        ROOT,
        target,
        ignore=lambda folder, names: (
            everywhere(folder, names) | (at_the_root(folder, names) if folder == str(ROOT) else set())
        ),
    )
    return target


def test_wheel_carries_modules_assets_and_notebooks(copy, tmp_path):
    pytest.importorskip('setuptools')
    code = 'import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))'
    done = subprocess.run(
        [sys.executable, '-c', code, str(tmp_path)], cwd=copy, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    wheel = zipfile.ZipFile(next(tmp_path.glob('*.whl')))
    names = wheel.namelist()
    assert {f'cxr_lib/nbs/{p.name}' for p in (ROOT / 'nbs').glob('[0-9]*.ipynb')} <= set(names)
    assert {f'cxr_lib/assets/{p.name}' for p in (ROOT / 'cxr_lib/assets').iterdir()} <= set(names)
    assert {p.relative_to(ROOT).as_posix() for p in (ROOT / 'cxr_lib').rglob('*.py')} <= set(names) and not [
        n for n in names if n.startswith(('tests', 'nbs', 'environment'))
    ]
    data = {n.split('/')[-1]: wheel.read(n).decode() for n in names if '.dist-info/' in n}
    assert 'cxr = cxr_lib.running.command:main' in data['entry_points.txt']
    declared = [
        Requirement(line.split(': ', 1)[1])
        for line in data['METADATA'].splitlines()
        if line.startswith('Requires-Dist')
    ]
    assert {canonicalize_name(r.name) for r in declared} == {
        canonicalize_name(r.name) for r in requirements()
    }
    assert {m.split(': ')[1] for m in data['METADATA'].splitlines() if m.startswith('Provides-Extra')} == {
        *EXTRAS,
        'all',
    }
    assert 'cxr_lib/py.typed' in names
    strange = [
        n for n in names if not re.match(r'cxr_lib/([\w/]+\.pyi?|assets/[\w.]+|py\.typed|nbs/[\w.]+)$', n)
    ]
    assert [n for n in strange if '.dist-info/' not in n] == [], 'the wheel carries something else'
    assert 'def answer(' in wheel.read('cxr_lib/prediction/load.pyi').decode()  # a method of a later cell
    with_stub = [n[:-1] for n in names if n.endswith('.pyi')]
    assert with_stub and all('@patch' in wheel.read(n).decode() for n in with_stub)
    assert ('Home-page' in data['METADATA']) == (settings()['user'] != 'OWNER')
    # Installed elsewhere, the command line finds the notebooks that came along.
    site = tmp_path / 'site'
    wheel.extractall(site)
    empty = tmp_path / 'empty'
    empty.mkdir()
    done = subprocess.run(
        [
            sys.executable,
            '-P' if sys.version_info >= (3, 11) else '-B',
            '-m',
            'cxr_lib.running.command',
            'params',
        ],
        cwd=empty,
        capture_output=True,
        text=True,
        env={**{k: v for k, v in os.environ.items() if k != 'CXR_HOME'}, 'PYTHONPATH': str(site)},
    )
    assert done.returncode == 0 and '01_exploration.ipynb' in done.stdout, done.stderr


def test_the_base_has_what_the_runner_needs_and_no_more():
    base = {r.name for r in required('requirements')}
    assert base >= {'papermill', 'nbconvert', 'nbformat', 'ipykernel'}
    notebooks = {r.name for r in required('notebooks_requirements')}
    assert notebooks >= {'jupyterlab', 'ipywidgets', 'nbdev'} and base.isdisjoint(notebooks)
    (kernel,) = [r for r in required('requirements') if r.name == 'ipykernel']
    assert kernel.specifier.contains('6.17.1'), "Colab pins an old ipykernel, which stays"
    words = (ROOT / '.ci' / 'environment.py').read_text(), (ROOT / 'environment.yml').read_text()
    assert all('notebooks,offline,' in text for text in words)


WITHOUT_NOTEBOOKS = """
import importlib, pkgutil, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('jupyterlab', 'ipywidgets', 'nbdev', 'execnb', 'ghapi'):
            raise ImportError(f'{name} is blocked')

sys.meta_path.insert(0, Blocked())
import cxr_lib
names = [m.name for m in pkgutil.walk_packages(cxr_lib.__path__, 'cxr_lib.')]
failed = {}
for name in names:
    if not name.endswith(('_modidx', '__main__')):
        try:
            importlib.import_module(name)
        except Exception as e:
            failed[name] = f'{type(e).__name__}: {e}'
print(len(names), failed)
"""


def test_every_module_is_imported_without_the_extra_notebooks(project):
    done = subprocess.run([sys.executable, '-c', WITHOUT_NOTEBOOKS], cwd=ROOT, capture_output=True, text=True)
    count, _, failed = done.stdout.strip().splitlines()[-1].partition(' ')
    assert int(count) > 100
    # each of them names the extra that it needs
    assert all('pip install' in why for why in eval(failed).values()), failed


def test_stages_run_without_the_extra_notebooks(project, tmp_path, monkeypatch):
    for name in ('jupyterlab', 'ipywidgets', 'nbdev', 'execnb', 'ghapi'):
        (tmp_path / 'blocked' / name).mkdir(parents=True)
        (tmp_path / 'blocked' / name / '__init__.py').write_text(
            'raise ImportError(f"{__name__} is blocked")'
        )
    monkeypatch.setenv('PYTHONPATH', f'{tmp_path / "blocked"}{os.pathsep}{ROOT}')
    work = 'from cxr_lib.foundations.progress import progress_bar\nfor _ in progress_bar(range(3)): pass'
    project.write('exploration', work)
    command = [sys.executable, '-m', 'cxr_lib', 'run', '--until', 'exploration']
    done = subprocess.run(command, cwd=project.home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    page = (project.reports / '01_exploration.html').read_text(encoding='utf-8')
    assert 'IProgress' not in page and 'it/s]' not in page


def test_the_demo_says_which_extra_it_needs(project, monkeypatch, capsys):
    from cxr_lib.running.command import main

    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    assert main(['demo']) == 2
    assert 'pip install "cxr_lib[notebooks]"' in capsys.readouterr().err


def test_source_distribution_carries_assets_and_notebooks(copy, tmp_path):
    pytest.importorskip('setuptools')
    code = 'import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))'
    command = [sys.executable, '-c', code, str(tmp_path)]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    with tarfile.open(next(tmp_path.glob('*.tar.gz'))) as sdist:
        names = {name.partition('/')[2] for name in sdist.getnames()}
    assert {f'cxr_lib/assets/{p.name}' for p in (ROOT / 'cxr_lib/assets').iterdir()} <= names
    assert {f'nbs/{p.name}' for p in (ROOT / 'nbs').glob('[0-9]*.ipynb')} <= names


# The checks of the repository notice what they are for


def test_modules_and_notebooks_in_folders_are_compared(tmp_path):
    ours, theirs = tmp_path / 'ours', tmp_path / 'theirs'
    for folder, text in ((ours, 'a = 1'), (theirs, 'a = 2')):
        (folder / 'part').mkdir(parents=True)
        (folder / 'part' / 'module.py').write_text(text)
    (ours / 'part' / 'old.py').touch()
    found = check_repository.differences(ours, theirs, '*.py')
    assert '-a = 1' in found and '+a = 2' in found and 'part/old.py is made by no notebook' in found
    for name in (
        'index.ipynb',
        'chapters/01_part/01_room.ipynb',
        'chapters/.ipynb_checkpoints/01_room.ipynb',
    ):
        (tmp_path / 'nbs' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'nbs' / name).touch()
    assert list(check_repository.notebooks(tmp_path)) == ['chapters/01_part/01_room.ipynb', 'index.ipynb']


def test_check_export_notices(copy):
    assert not [p for p in check_repository.check_export(copy) if 'rewrites' in p]
    module = copy / 'cxr_lib' / 'foundations/core.py'
    before = module.read_text()
    module.write_text(before.replace('def project_root', 'def project_rood'))
    assert any('project_rood' in p for p in check_repository.check_export(copy))
    module.write_text(before)


def test_check_clean_notices(copy):
    path = copy / 'nbs' / 'chapters/01_foundations/01_core.ipynb'
    before = path.read_text()
    assert not [p for p in check_repository.check_clean(copy) if 'chapters/01_foundations/01_core' in p]
    nb = json.loads(before)
    code = next(c for c in nb['cells'] if c['cell_type'] == 'code')
    code['execution_count'] = 7
    path.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + '\n')
    assert 'chapters/01_foundations/01_core.ipynb is not clean' in check_repository.check_clean(copy)
    code['outputs'] = [dict(output_type='stream', name='stdout', text=['x'])]
    path.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + '\n')
    assert 'chapters/01_foundations/01_core.ipynb holds outputs' in check_repository.check_clean(copy)
    path.write_text(before)


def test_readme_is_made_from_the_notebook(tmp_path):
    nbs = tmp_path / 'nbs'
    nbs.mkdir()
    (nbs / '01_exploration.ipynb').touch()
    new, output = nbformat.v4, nbformat.v4.new_output
    cells = [
        new.new_code_cell("#| eval: false\n# Colab only: install"),
        new.new_markdown_cell(
            '# Title\n\n[first](01_exploration.ipynb), [licence](../LICENSE), [site](https://example.org)'
        ),
        new.new_code_cell(
            "#| echo: false\nshow()",
            outputs=[output('display_data', {'text/markdown': '|a|\n|-|', 'text/plain': 'x'})],
        ),
        new.new_code_cell("#| hide\nhidden()"),
        new.new_code_cell(
            '1 + 1',
            outputs=[
                output('execute_result', {'text/plain': '2'}),
                output('display_data', {'image/png': base64.b64encode(b'png').decode()}),
            ],
        ),
    ]
    nbformat.write(new.new_notebook(cells=cells), nbs / 'index.ipynb')
    assert (
        check_repository.check_readme(tmp_path)
        and check_repository.check_readme(tmp_path, write=True) == []
        and check_repository.check_readme(tmp_path) == []
    )
    text = (tmp_path / 'README.md').read_text()
    assert (
        text.endswith('''# Title

[first](nbs/01_exploration.ipynb), [licence](LICENSE), [site](https://example.org)

|a|
|-|

```python
1 + 1
```

    2

![](nbs/images/readme-1.png)
''')
        and 'hidden' not in text
        and 'Colab' not in text
        and (tmp_path / 'nbs/images/readme-1.png').read_bytes() == b'png'
    )
