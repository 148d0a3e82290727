"""Types of the library: complete on everything public, and checked by a program that finds what is planted."""

import ast
import sys

import check_types
import pytest
import stubs
from conftest import ROOT

PATCHED = '''from fastcore.basics import patch


class Box:
    "Something with an inside"

    width: float = 1.0


LARGE = 10.0


@patch
def area(self: Box, height: float) -> float:
    "Its area"
    return self.width * height


@patch(as_prop=True)
def is_large(self: Box) -> bool:
    return self.width > LARGE


@patch(cls_method=True)
def of(cls: Box, width: float) -> 'Box':
    return cls()


def use() -> float:
    return Box.of(2.0).area(3.0) + Box().is_large
'''


def test_every_public_function_names_its_types():
    found = [
        f'{p.relative_to(ROOT)}: {n}'
        for p in check_types.modules()
        for n in check_types.untyped(p.read_text())
    ]
    assert found == []


def test_what_leaves_a_type_open_is_named():
    source = 'def a(x) -> int: ...\ndef b(x: int): ...\ndef c(x: int) -> int: ...\ndef _d(x): ...\n'
    source += (
        'class E:\n    def __init__(self, x): ...\n    def __repr__(self): ...\n    def f(self) -> int: ...\n'
    )
    assert list(check_types.untyped(source)) == ['a', 'b', 'E.__init__']


def test_methods_move_into_their_class_and_lines_keep_their_numbers():
    text, origin = stubs.inside(PATCHED)
    box = next(node for node in ast.parse(text).body if isinstance(node, ast.ClassDef))
    assert [node.name for node in box.body if isinstance(node, ast.FunctionDef)] == ['area', 'is_large', 'of']
    before = PATCHED.splitlines()
    for line, number in zip(text.splitlines(), origin, strict=True):
        if line.strip() and not line.strip().startswith(('@', 'def of')):
            assert line.strip() == before[number - 1].strip()


def test_a_stub_has_methods_and_no_bodies():
    text = stubs.stub(PATCHED)
    assert 'def area(self: Box, height: float) -> float:' in text and '@property' in text
    assert 'def of(cls, width: float)' in text and 'self.width' not in text
    assert stubs.stub('def a() -> int:\n    return 1\n') == ''


@pytest.mark.parametrize(
    'planted, said',
    [
        ('', None),
        (
            "\n\ndef wrong() -> float:\n    return Box().area('3')\n",
            '"area" of "Box" has incompatible type "str"',
        ),
        ('\n\ndef wrong() -> float:\n    return Box().volume()\n', '"Box" has no attribute "volume"'),
        ('\n\ndef wrong() -> int:\n    return "1"\n', 'Incompatible return value type'),
        ('\n\ndef wrong(x: int = None) -> None: ...\n', 'Incompatible default'),
        ('\n\ndef wrong(**more: int) -> float:\n    return Box().area(**{"height": "3"})\n', None),
    ],
)
def test_the_checker_finds_what_is_planted(planted, said, tmp_path):
    pytest.importorskip('mypy', reason='the extra dev is not installed')
    text, origin = stubs.inside(PATCHED + planted)
    (tmp_path / 'cxr_lib').mkdir()
    (tmp_path / 'cxr_lib' / 'box.py').write_text(text)
    printed = check_types.run_mypy(
        tmp_path, ['--cache-dir', str(tmp_path / 'cache'), '--python-executable', sys.executable]
    )
    found = list(check_types.errors(printed, tmp_path, {'cxr_lib/box.py': origin}))
    assert [said in words for _, words in found] == ([True] if said else [])
