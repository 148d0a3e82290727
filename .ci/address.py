"""Where the project lives is one line of settings.ini, `user`. This writes what follows from it.

    python .ci/address.py [--check]

The first cell of every notebook names what Colab installs, and the README has a badge for each notebook that people
run. While `user` is OWNER nobody can be led anywhere: the cells and the table of the README say so. Standard library
only.
"""

import json
import re
import sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UNSET = 'OWNER'
CELL = '''#| eval: false
# Colab only: install the library beside Colab's own torch. Elsewhere this cell does nothing.
import importlib.util, os, subprocess, sys
from importlib.metadata import version

INSTALL = '{install}'  # what pip installs: a wheel, a release, or a repository
if 'COLAB_RELEASE_TAG' in os.environ and not importlib.util.find_spec('cxr_lib'):
    assert INSTALL, 'This copy has no public address yet: upload a wheel of cxr_lib, and name it in INSTALL'
    kept = [f'{name}=={version(name)}' for name in ('torch', 'torchvision')]
    subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', INSTALL, *kept], check=True)'''
COLAB = 'https://colab.research.google.com'
NO_BADGE = 'no address yet'
ROW = re.compile(r'^(\| \[\w+\]\((?:nbs/)?(?P<name>\w+\.ipynb)\) \| .* \| )(?P<badge>[^|]*)( \|)$', re.M)


def settings(root: Path = ROOT) -> dict:
    "settings.ini"
    parser = ConfigParser(delimiters=['='])
    parser.read(root / 'settings.ini', encoding='utf-8')
    return dict(parser['DEFAULT'])


def repository(found: dict) -> str:
    "The repository's address; '' until the owner has named it"
    return '' if found['user'] in ('', UNSET) else found['git_url']


def first_cell(found: dict) -> str:
    "What every notebook begins with"
    where = repository(found)
    return CELL.replace('{install}', f'{found["lib_name"]}[offline] @ git+{where}' if where else '')


def badge(found: dict, notebook: str) -> str:
    "A link that opens a notebook in Colab, or why there is none"
    where = repository(found).removeprefix('https://github.com/')
    if not where:
        return NO_BADGE
    path = f'{where}/blob/{found["branch"]}/{found["nbs_path"]}/{notebook}'
    return f'[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({COLAB}/github/{path})'


def is_install_cell(cell: dict) -> bool:
    "Is this the cell that installs the library in Colab?"
    return cell['cell_type'] == 'code' and '# Colab only: install' in ''.join(cell['source'])


def written(text: str, found: dict, index: bool) -> str:
    "A notebook's file as it should be"
    notebook = json.loads(text)
    for cell in notebook['cells']:
        if is_install_cell(cell):
            cell['source'] = first_cell(found).splitlines(keepends=True)
        elif index and cell['cell_type'] == 'markdown':
            source = ROW.sub(lambda m: f'{m[1]}{badge(found, m["name"])}{m[4]}', ''.join(cell['source']))
            cell['source'] = source.splitlines(keepends=True)
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + '\n'


def stale(root: Path = ROOT, write: bool = False) -> 'list[str]':
    "Notebooks that say something else than settings.ini; with `write` they are put right"
    found, names = settings(root), []
    for path in sorted((root / 'nbs').rglob('*.ipynb')):
        if '.ipynb_checkpoints' in path.parts:
            continue
        text = path.read_text(encoding='utf-8')
        right = written(text, found, path.name == 'index.ipynb')
        if right != text:
            names.append(path.relative_to(root).as_posix())
            if write:
                path.write_text(right, encoding='utf-8', newline='\n')
    return names


if __name__ == '__main__':
    changed = stale(write='--check' not in sys.argv)
    where = repository(settings()) or f'nowhere yet (set `user` in settings.ini, which is {UNSET})'
    print(
        f'The project lives {where}; {len(changed)} notebooks {"differ" if "--check" in sys.argv else "changed"}'
    )
    if changed and '--check' in sys.argv:
        sys.exit('\n'.join([*changed, 'Run `make address` and commit what it writes.']))
