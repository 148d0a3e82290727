"""Is the code laid out readably? `python tests/measure_house.py [--all] [NOTEBOOK ...]`, run by `make test`.

Prints the measured table and every place beyond a limit; `--all` lists places beyond the softer aims as well.
Line lengths, complexity and numbers of arguments are ruff's (E501, E701 to E703, C901, PLR0913: see pyproject.toml).
"""

import ast
import io
import json
import re
import statistics
import sys
import tokenize
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = 120  # of a line
CELL_LINES, CELL_DEFINITIONS = 60, 5  # of an export cell
AIM_LINES, AIM_DEFINITIONS, CLASS_LINES = 40, 3, 60
#: What may stand at the root of nbs/.
NOTEBOOKS = {
    'index',
    *('01_exploration', '02_notes', '03_model', '04_training', '05_evaluation'),
    *('06_explanation', '07_reasoning', '08_demo', '09_service', '10_search', 'colab_train'),
}
BY_NUMBER = re.compile(r'\b[Cc]hapters? 0\d')


def notebooks(names=()):
    "Notebooks below nbs/ -> their cells"
    paths = [Path(n).resolve() for n in names] or sorted((ROOT / 'nbs').rglob('*.ipynb'))
    paths = [p for p in paths if not any(part.startswith('.') for part in p.relative_to(ROOT).parts)]
    return {p.relative_to(ROOT).as_posix(): json.loads(p.read_text(encoding='utf-8'))['cells'] for p in paths}


def export_cells(cells):
    "(number of the cell, its source) of every cell that is exported"
    for number, cell in enumerate(cells):
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'code' and re.search(r'^#\|\s*export', source, re.M):
            yield number, source


def definitions(source):
    "Functions and classes at the top of a cell"
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node for node in ast.parse(source).body if isinstance(node, kinds)]


def tokens_per_line(source):
    "Mean number of tokens of a line that holds any"
    skipped = (
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.COMMENT,
        tokenize.ENDMARKER,
    )
    found = [
        t.start[0] for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type not in skipped
    ]
    return len(found), len(set(found))


def faults_of(name, cells, strict):
    "What is beyond a limit in a notebook"
    most, names = (AIM_LINES, AIM_DEFINITIONS) if strict else (CELL_LINES, CELL_DEFINITIONS)
    for number, cell in enumerate(cells):
        source = ''.join(cell['source'])
        if found := BY_NUMBER.search(source):
            yield f'{name} cell {number} cites a chapter by its number: {found[0]!r}'
        if cell['cell_type'] == 'code':
            for line in source.splitlines():
                if len(line) > COLUMNS:
                    yield f'{name} cell {number} has a line of {len(line)} columns: {line.strip()[:60]}'
    for number, source in export_cells(cells):
        if (lines := len(source.splitlines())) > most:
            yield f'{name} cell {number} exports {lines} lines'
        if (defined := len(definitions(source))) > names:
            yield f'{name} cell {number} exports {defined} definitions'
        for node in definitions(source):
            length = node.end_lineno - node.lineno + 1
            if strict and isinstance(node, ast.ClassDef) and length > CLASS_LINES:
                yield f'{name} cell {number}: the class {node.name} has {length} lines'


def same_names():
    "pytest imports test modules by their file names, so no two may share one"
    files = defaultdict(list)
    for path in sorted((ROOT / 'tests').rglob('test_*.py')):
        files[path.name].append(str(path.relative_to(ROOT)))
    return [f'{" and ".join(paths)} share a name; rename one' for paths in files.values() if len(paths) > 1]


def table(found):
    "The measured table: name -> value"
    exported = [source for cells in found.values() for _, source in export_cells(cells)]
    lines = [line for source in exported for line in source.splitlines()]
    tokens = [tokens_per_line(source) for source in exported]
    sizes = [len(source.splitlines()) for source in exported]
    over = {n: sum(len(line) > n for line in lines) / len(lines) for n in (100, 120)}
    return {
        'notebooks': len(found),
        'exported lines': len(lines),
        'lines over 100 columns': f'{over[100]:.1%}',
        'lines over 120 columns': f'{over[120]:.1%}',
        'tokens a line': f'{sum(t for t, _ in tokens) / sum(n for _, n in tokens):.1f}',
        'export cells': len(sizes),
        'lines of an export cell, median and most': f'{statistics.median(sizes):.0f}, {max(sizes)}',
        'definitions of an export cell, most': max(len(definitions(source)) for source in exported),
    }


def main(arguments):
    strict = '--all' in arguments
    names = [a for a in arguments if not a.startswith('--')]
    found = notebooks(names)
    for what, value in table(found).items():
        print(f'{what:<42} {value}')
    faults = [fault for name, cells in found.items() for fault in faults_of(name, cells, strict)]
    if not names:
        roots = {p.stem for p in (ROOT / 'nbs').glob('*.ipynb')}
        faults += [
            f'nbs/{stem}.ipynb does not belong at the root of nbs/' for stem in sorted(roots - NOTEBOOKS)
        ]
        faults += same_names()
    if faults:
        sys.exit('\n'.join(faults))
    print('ok')


if __name__ == '__main__':
    main(sys.argv[1:])
