"""Methods where a type checker looks for them: inside their classes.

A chapter may add a method to a class in a later cell (`@patch`); checkers do not know such methods. `inside` moves them
for `tests/check_types.py`, `stub` makes the stub file that a wheel carries beside a module that has any.
"""

import ast
import re


def class_of(node: ast.stmt) -> str:
    """The class that a function marked `@patch` belongs to; '' for any other statement."""
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or not node.args.args:
        return ''
    marks = [ast.unparse(mark).partition('(')[0] for mark in node.decorator_list]
    kind = node.args.args[0].annotation
    return ast.unparse(kind) if 'patch' in marks and kind is not None else ''


def span(node: ast.FunctionDef) -> range:
    """The numbers of a function's lines, decorators included."""
    return range(min(part.lineno for part in [node, *node.decorator_list]), node.end_lineno + 1)


def in_class(line: str) -> str:
    """A line of a patched function as it would stand in its class."""
    line = re.sub(r'^@patch\(as_prop=True\)$', '@property', line)
    line = re.sub(r'^@patch\(cls_method=True\)$', '@classmethod', line)
    line = re.sub(r'(\bcls): \w+', r'\1', line)
    return '' if line in ('', '@patch') else '    ' + line


def inside(source: str) -> 'tuple[str, list[int]]':
    """A module whose patched functions stand inside their classes -> (its text, the old number of each line)."""
    lines, body = source.splitlines(), ast.parse(source).body
    ends = {node.name: node.end_lineno for node in body if isinstance(node, ast.ClassDef)}
    added = {end: [] for end in ends.values()}
    gone = set()
    for node in [node for node in body if class_of(node) in ends]:
        gone.update(span(node))
        added[ends[class_of(node)]] += [(number, in_class(lines[number - 1])) for number in span(node)]
    found = []
    for number, line in enumerate(lines, 1):
        if number not in gone:
            found.append((number, line))
        found += added.get(number, ())
    return '\n'.join(line for _, line in found) + '\n', [number for number, _ in found]


def stub(source: str) -> str:
    """The stub of a module, without the bodies of functions; '' if it marks no function `@patch`."""
    if not any(class_of(node) for node in ast.parse(source).body):
        return ''
    tree = ast.parse(inside(source)[0])
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = [ast.Expr(ast.Constant(...))]
    return ast.unparse(tree) + '\n'
