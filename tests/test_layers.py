"""Every part of the library imports only from itself and from the parts before it."""

import ast

import pytest
from conftest import ROOT

ORDER = (
    'foundations',
    'metrics',
    'simulation',
    'data',
    'notes',
    'model',
    'training',
    'evaluation',
    'explanation',
    'reasoning',
    'prediction',
    'stages',
    'demo',
    'service',
    'running',
)

#: Modules that import from a later part.
ALLOWED = set()


def package_of(module, is_package):
    return module if is_package else module.rpartition('.')[0]


def imported(node, package):
    "(module, names) of an import statement; the names are those of `from module import names`"
    if isinstance(node, ast.Import):
        return [(alias.name, []) for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    names = [alias.name for alias in node.names]
    if not node.level:
        return [(node.module, names)]
    base = '.'.join(package.split('.')[: len(package.split('.')) + 1 - node.level])
    return [(f'{base}.{node.module}' if node.module else base, names)]


def part_of(module):
    "The part of a module; None for the package itself and for other libraries"
    root, _, rest = module.partition('.')
    part = rest.partition('.')[0]
    return part if root == 'cxr_lib' and not part.startswith('_') and part else None


def problems(source, module, is_package=False):
    "What a module imports that it must not, wherever in it the import stands"
    package, part = package_of(module, is_package), part_of(module)
    statements = [node for node in ast.walk(ast.parse(source))]
    for target, names in (pair for node in statements for pair in imported(node, package)):
        if target.partition('.')[0] != 'cxr_lib':
            continue
        parts = [part_of(target)] if part_of(target) else [n for n in names if n in ORDER]
        for other in parts:
            if part and ORDER.index(other) > ORDER.index(part):
                yield f'{module} imports {target}, which comes later'
        for name in names:
            if name.startswith('_') and not name.startswith('__'):
                yield f'{module} imports {name} of {target}'


def modules():
    "(name, file) of each module; the order has no place for the package's own and for its index"
    for file in sorted((ROOT / 'cxr_lib').rglob('*.py')):
        name = '.'.join(file.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__')
        if part_of(name):
            yield name, file


def test_every_part_has_its_place():
    assert {part_of(name) for name, _ in modules()} == set(ORDER)


@pytest.mark.parametrize('name, file', [pytest.param(*pair, id=pair[0]) for pair in modules()])
def test_a_module_imports_only_from_its_own_and_earlier_parts(name, file):
    found = list(problems(file.read_text(encoding='utf-8'), name, file.stem == '__init__'))
    if name in ALLOWED:
        assert found, f'{name} needs its exception no more'
    else:
        assert found == []


@pytest.mark.parametrize(
    'source',
    [
        'from ..model.text import tokenize',
        'from cxr_lib.model.text import tokenize',
        'from cxr_lib import model',
        'from .. import model',
        'import cxr_lib.model.text as text',
        'def late():\n    from ..model.text import tokenize',
        'from .wording import _words',
        'from ..foundations.core import _private',
    ],
)
def test_a_wrong_import_is_found_wherever_it_stands(source):
    assert len(list(problems(source, 'cxr_lib.notes.leakage'))) == 1


@pytest.mark.parametrize(
    'source',
    [
        'from ..data.studies import StudyTableError',
        'from . import wording',
        'import cxr_lib',
        'from .. import __version__',
        'import torch._dynamo, numpy as np',
        'from os import _exit',
    ],
)
def test_a_right_import_is_not_an_error(source):
    assert list(problems(source, 'cxr_lib.notes.leakage')) == []
