"""Do the type hints of the library hold? `python tests/check_types.py [OPTION OF MYPY ...]`, run by `make lint`.

Every public function and method names the types of all its parameters and of what it returns; then mypy reads the
library, with the rules of `[tool.mypy]` in pyproject.toml. It reads a copy in which methods that a chapter adds to a
class in a later cell stand inside the class (.ci/stubs.py). Places are printed as those of the modules.
"""

import ast
import re
import subprocess
import sys
import tempfile
from pathlib import Path

#: What mypy cannot know, and takes for an error.
UNKNOWABLE = (
    r'has incompatible type "\*\*',  # an unpacked dictionary of mixed values: is each of them right everywhere?
    r'Tensor \| Module|Module \| Tensor',  # any attribute of a torch module may be either, say torch's stubs
)
#: The same where arguments are unpacked from a sequence: how many are they?
UNPACKED = r'Too many arguments|gets multiple values|Missing named argument'
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / '.ci'))

from stubs import inside  # noqa: E402


def modules():
    "The modules of the library, without nbdev's index"
    return [path for path in sorted((ROOT / 'cxr_lib').rglob('*.py')) if path.name != '_modidx.py']


def public(body, prefix=''):
    "(name, node) of the public functions and methods of a module or a class"
    for node in body:
        if node.__class__ is ast.ClassDef and not node.name.startswith('_'):
            yield from public(node.body, f'{node.name}.')
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if not node.name.startswith('_') or prefix and node.name in ('__init__', '__call__'):
                yield prefix + node.name, node


def untyped(source):
    "Names of public functions that leave the type of a parameter or of what they return open"
    for name, node in public(ast.parse(source).body):
        every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        own = [a for a in every if a.arg not in ('self', 'cls')]
        if node.returns is None or any(a.annotation is None for a in own):
            yield name


def copy_inside(folder):
    "Copy the library, every method inside its class -> {path: old number of each line}"
    origins = {}
    for path in modules():
        name = path.relative_to(ROOT)
        text, origins[name.as_posix()] = inside(path.read_text(encoding='utf-8'))
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding='utf-8')
    return origins


def knowable(said, line):
    "Is it an error, rather than something that mypy cannot know?"
    unpacks = re.search(r'[(,]\s*\*', line)
    return not any(re.search(words, said) for words in UNKNOWABLE) and not (
        unpacks and re.search(UNPACKED, said)
    )


def errors(printed, folder, origins):
    "(place, what) of mypy's errors about a copy, at the places of the modules"
    for line in printed.splitlines():
        found = re.match(r'(cxr_lib/[^:]+):(\d+): error: (.*)', line)
        if not found:
            continue
        name, number, said = found[1], int(found[2]) - 1, found[3]
        if knowable(said, (folder / name).read_text(encoding='utf-8').splitlines()[number]):
            yield f'{name}:{origins[name][number]}', said


def run_mypy(folder, options=()):
    "What mypy prints about a copy"
    command = ['-m', 'mypy', '--config-file', ROOT / 'pyproject.toml', '--cache-dir', ROOT / '.mypy_cache']
    command += [*options, '--no-error-summary', 'cxr_lib']
    done = subprocess.run([sys.executable, *map(str, command)], cwd=folder, capture_output=True, text=True)
    if done.returncode not in (0, 1) or done.stderr:
        sys.exit(done.stdout[-2000:] + done.stderr)
    return done.stdout


def main():
    found = [
        (path.relative_to(ROOT), f'{name} leaves a type open')
        for path in modules()
        for name in untyped(path.read_text(encoding='utf-8'))
    ]
    with tempfile.TemporaryDirectory() as folder:
        origins = copy_inside(Path(folder))
        found += errors(run_mypy(Path(folder), sys.argv[1:]), Path(folder), origins)
    for place, said in found:
        print(f'{place}: {said}')
    print(f'{len(found)} faults in the types of {len(origins)} modules')
    sys.exit(bool(found))


if __name__ == '__main__':
    main()
