"""What an edit makes stale is read from the imports: the stages whose notebooks import the module, directly or not."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, STAGES

import cxr_lib
from cxr_lib.data.simulated import rendering_version
from cxr_lib.foundations.sources import imported_names, module_sources
from cxr_lib.running.execute import library_sources
from cxr_lib.running.plan import stage_notebooks
from cxr_lib.training.loop import training_sources


@pytest.fixture
def copied(tmp_path, monkeypatch):
    "The library's modules in another folder, from which the sources are read; a function that edits one of them"
    copy = shutil.copytree(
        Path(cxr_lib.__file__).parent, tmp_path / 'cxr_lib', ignore=shutil.ignore_patterns('__pycache__')
    )
    monkeypatch.setattr(cxr_lib, '__file__', str(copy / '__init__.py'))

    def edit(module, text='\nEDITED = True\n'):
        file = tmp_path.joinpath(*module.split('.')).with_suffix('.py')
        file.write_text(file.read_text(encoding='utf-8') + text, encoding='utf-8')

    return edit


def notebooks():
    return stage_notebooks(ROOT / 'nbs')


def stale_after(edit, module):
    "The stages whose own sources an edit of the module changes"
    before = {stage: library_sources(path) for stage, path in notebooks().items()}
    edit(module)
    return [stage for stage, path in notebooks().items() if library_sources(path) != before[stage]]


@pytest.mark.parametrize(
    'module, stages',
    {
        'cxr_lib.foundations.core': list(STAGES),
        'cxr_lib.data.studies': list(STAGES),
        'cxr_lib.training.losses': ['training', 'evaluation', 'explanation', 'reasoning'],
        'cxr_lib.training.conditions': ['training', 'evaluation', 'explanation', 'reasoning'],
        'cxr_lib.evaluation.conformal': [
            'training',
            'evaluation',
            'explanation',
            'reasoning',
        ],  # its limits are saved with the model
        'cxr_lib.evaluation.external': ['evaluation', 'explanation', 'reasoning'],
        'cxr_lib.explanation.bench': ['explanation', 'reasoning'],
        'cxr_lib.running.command': [],
        'cxr_lib.running.execute': [],
        'cxr_lib.running.pages': [],
        'cxr_lib.training.sweep': [],
        'cxr_lib.simulation.realism': [],
        'cxr_lib.demo': [],
    }.items(),
    ids=str,
)
def test_an_edit_makes_exactly_the_stages_stale_that_import_the_module(copied, module, stages):
    assert stale_after(copied, module) == stages


def test_what_python_loads_for_a_notebook_is_among_its_sources():
    code = (
        "import sys, cxr_lib\n"
        "from cxr_lib.evaluation.report import *\n"
        "print(*[n for n, m in sys.modules.items() if n.partition('.')[0] == 'cxr_lib' and m.__file__])"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert set(done.stdout.split()) <= set(library_sources(notebooks()['evaluation']))


def test_a_module_that_waits_inside_a_function_counts():
    lazy = module_sources('cxr_lib.data.simulated')
    assert 'cxr_lib.simulation.rendering' in lazy  # imported inside a function
    assert 'cxr_lib.simulation.anatomy' in lazy  # and what that imports


def test_checkpoints_depend_on_what_training_imports(copied):
    before = training_sources()
    copied('cxr_lib.evaluation.report')
    copied('cxr_lib.running.execute')
    assert training_sources() == before
    copied('cxr_lib.model.text')
    assert training_sources() != before


def test_films_are_drawn_again_only_after_an_edit_of_what_draws(copied):
    before = rendering_version()
    copied('cxr_lib.training.loop')
    copied('cxr_lib.data.catalogue')
    assert rendering_version() == before
    copied('cxr_lib.simulation.anatomy')
    assert rendering_version() != before


# Packages of every shape

FILES = {
    '__init__.py': 'from .boot import start',
    'boot.py': '',
    'low.py': 'LEVEL = 1',
    'flat.py': 'from .low import LEVEL\nimport json, os.path',
    'part/__init__.py': 'from .. import opening',
    'opening.py': '',
    'part/first.py': 'from ..low import LEVEL',
    'part/second.py': 'from . import first',
    'part/third.py': 'def lazy():\n    import toy.part.second as s, toy.flat\n    return s',
    'ring_a.py': 'from .ring_b import b',
    'ring_b.py': 'def b():\n    from toy import ring_a',
}


@pytest.fixture
def toy(tmp_path):
    for name, text in FILES.items():
        (tmp_path / 'toy' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'toy' / name).write_text(text)
    return tmp_path / 'toy'


@pytest.mark.parametrize(
    'modules, wanted',
    [
        (['toy.flat'], ['toy.flat', 'toy.low']),
        (['toy'], ['toy', 'toy.boot']),
        (['toy.part.first'], ['toy.low', 'toy.opening', 'toy.part', 'toy.part.first']),
        (['toy.part.second'], ['toy.low', 'toy.opening', 'toy.part', 'toy.part.first', 'toy.part.second']),
        (
            ['toy.part.third'],
            [
                'toy.flat',
                'toy.low',
                'toy.opening',
                'toy.part',
                'toy.part.first',
                'toy.part.second',
                'toy.part.third',
            ],
        ),
        (['toy.ring_a'], ['toy.ring_a', 'toy.ring_b']),
    ],
    ids=str,
)
def test_flat_modules_subpackages_and_circles(toy, modules, wanted):
    assert list(module_sources(*modules, folder=toy)) == wanted


@pytest.mark.parametrize(
    'source, wanted',
    [
        ('from toy.low import *', ['toy.low']),
        ('from toy import low, ring_b', ['toy.low', 'toy.ring_a', 'toy.ring_b']),
        ('import toy.part.first', ['toy.low', 'toy.opening', 'toy.part', 'toy.part.first']),
        ('import toylow, toy2.low', []),
    ],
)
def test_imports_of_a_source_that_is_no_module(toy, source, wanted):
    assert list(module_sources(source=source, folder=toy)) == wanted


def test_an_unknown_module_is_an_error(toy):
    with pytest.raises(ValueError, match='no module toy.lov'):
        module_sources('toy.lov', folder=toy)


def test_relative_imports_are_resolved():
    assert imported_names('from . import a', 'top.part') == ('top.part', 'top.part.a')
    assert imported_names('from ..x import a as b', 'top.part') == ('top.x', 'top.x.a')


def test_a_cell_with_a_line_of_ipython_still_counts(project):
    project.write('notes', work='%time 1\nfrom cxr_lib.training.losses import *')
    assert 'cxr_lib.training.losses' in library_sources(project.notebook('notes'))
    assert 'cxr_lib.training.losses' not in library_sources(project.notebook('model'))
