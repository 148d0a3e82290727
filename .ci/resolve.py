"""Can the requirements be met on every Python that the library supports? Nothing is installed.

    python .ci/resolve.py [--python 3.10 3.11 ...] [--extras notebooks,offline] [--lowest]

For each Python and extra, uv (on the path, or `pip install uv`) looks for versions that fit together, from the package
index that uv is set to. `--lowest` asks whether the lower bounds are true to each other as well: the oldest versions of
what settings.ini names. Run by hand: it needs an index and a minute.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ('3.10', '3.11', '3.12', '3.13', '3.14')
EXTRAS = ('notebooks', 'offline', 'train', 'fast', 'serve', 'fhir', 'sr', 'chest', 'docs', 'dev')
SHOWN = ('torch', 'transformers', 'numpy', 'pandas', 'ipykernel')


def uv_command() -> 'list[str]':
    "How uv is called here"
    if shutil.which('uv'):
        return ['uv']
    done = subprocess.run([sys.executable, '-m', 'uv', '--version'], capture_output=True)
    if done.returncode:
        sys.exit('uv is not installed; run: pip install uv')
    return [sys.executable, '-m', 'uv']


def requirements(extras: 'tuple[str, ...]') -> str:
    "The base and these extras, as a requirements file"
    parser = ConfigParser(delimiters=['='])
    parser.read(ROOT / 'settings.ini', encoding='utf-8')
    keys = ('requirements', *(f'{extra}_requirements' for extra in extras))
    return '\n'.join(r for key in keys for r in parser['DEFAULT'][key].split()) + '\n'


def resolve(uv, python, extras, lowest) -> 'tuple[bool, str]':
    "(does it resolve?, versions of some packages or why not)"
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / 'requirements.in'
        wanted.write_text(requirements(extras), encoding='utf-8')
        command = [
            *uv,
            'pip',
            'compile',
            wanted,
            '--python-version',
            python,
            '--no-header',
            '--no-annotate',
            '-q',
        ]
        command += ['--python-platform', 'x86_64-manylinux_2_28']
        command += [] if 'dev' in extras else ['--no-build']  # confidenceinterval comes as source only
        command += ['--resolution', 'lowest-direct'] if lowest else []
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        return False, done.stderr.strip()
    versions = dict(line.split('==') for line in done.stdout.splitlines() if '==' in line and ';' not in line)
    return True, ', '.join(f'{name} {versions[name]}' for name in SHOWN if name in versions)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--python', nargs='+', default=PYTHONS)
    parser.add_argument(
        '--extras', help='together, with commas (default: none, each by itself, all but docs)'
    )
    parser.add_argument('--lowest', action='store_true')
    args = parser.parse_args()
    groups = [(), *((extra,) for extra in EXTRAS), EXTRAS]
    if args.extras is not None:
        groups = [tuple(filter(None, args.extras.split(',')))]
    uv, failed = uv_command(), 0
    for python in args.python:
        for extras in groups:
            start = time.monotonic()
            good, said = resolve(uv, python, extras, args.lowest)
            failed += not good
            name = '+'.join(extras) if extras != EXTRAS else 'all extras'
            print(
                f'{python}  {name or "base":<12} {"yes" if good else "NO "} {time.monotonic() - start:4.0f} s  {said}',
                flush=True,
            )
    sys.exit(failed > 0)


if __name__ == '__main__':
    main()
