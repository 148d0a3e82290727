"""Make the virtual environment and install the project into it: what `make` does before anything else.

    python3 .ci/environment.py [--venv .venv] [--extras notebooks,offline,train,fast,serve,fhir,sr,docs,dev]

Standard library only, as nothing is installed yet. If the Python that runs this has no torch, the tested versions in
constraints.txt are installed. If it has one already (a long CUDA build, a vendor's build), that torch is kept: the
environment sees it, and pip chooses a torchvision that fits it.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent  # the project's root
OLDEST_TORCH = (2, 4)  # settings.ini: torch>=2.4


def find_torch(python: str = sys.executable) -> 'dict[str, str] | None':
    """Versions of torch and torchvision in `python`, and the folder of torch; None if it cannot import torch."""
    code = (
        'import importlib.metadata as m, json, pathlib, torch\n'
        'v = {"torch": torch.__version__, "folder": str(pathlib.Path(torch.__file__).resolve().parent.parent)}\n'
        'for name in ("torch", "torchvision"):\n'
        '    try: v[name] = m.version(name)\n'  # what pip goes by
        '    except m.PackageNotFoundError: pass\n'
        'print("\\n" + json.dumps(v))'
    )
    done = subprocess.run([python, '-c', code], capture_output=True, text=True)
    if done.returncode:
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def release(version: str) -> 'tuple[int, ...]':
    """(2, 13, 0) of '2.13.0+cpu', '2.13.0a0+git1234' or '2.13.0.dev20260101'."""
    return tuple(int(n) for n in re.match(r'\d+(?:\.\d+)*', version).group().split('.')[:3])


def fitting_torchvision(torch: str) -> str:
    """The range of torchvision releases made for a torch.

    Releases 0.(n+15) belong to torch 2.n, and each of them requires its torch exactly.
    """
    major, minor = release(torch)[:2]
    return f'torchvision>=0.{minor + 15},<0.{minor + 16}' if major == 2 else 'torchvision'


def keep_torch(constraints: str, found: 'dict[str, str]') -> str:
    """`constraints` with the torch and torchvision lines replaced by the versions found."""
    a_torch = re.compile(r'torch(vision)?\s*([=<>!~;]|$)')
    lines = [line for line in constraints.splitlines() if not a_torch.match(line)]
    lines.append(f'torch=={found["torch"]}')
    if 'torchvision' in found:
        lines.append(f'torchvision=={found["torchvision"]}')
    else:
        lines.append(fitting_torchvision(found['torch']))
    return '\n'.join(lines) + '\n'


def check_python():
    """Stop, with the remedy, if this Python cannot make an environment."""
    if sys.version_info < (3, 10):  # noqa: UP036
        sys.exit(
            f'Python 3.10 or newer is needed; this is {sys.version.split()[0]}. '
            f'Name another: make PYTHON=python3.11 ...'
        )
    try:
        import ensurepip, venv  # noqa: F401
    except ImportError:
        sys.exit(
            f'{sys.executable} cannot make virtual environments (its ensurepip or venv is missing). '
            f'On Debian and Ubuntu: sudo apt install python3-venv. '
            f'Or name another Python: make PYTHON=/path/to/python3 ...'
        )


def venv_python(folder: Path) -> Path:
    return folder / ('Scripts/python.exe' if os.name == 'nt' else 'bin/python')


def base_python(folder: Path) -> 'str | None':
    """The Python that `folder` was made with, if this one runs in it; it would be gone when it is made anew."""
    if not folder.exists() or Path(sys.prefix).resolve() != folder.resolve():
        return None
    return sys._base_executable


def make_venv(folder: Path, found: 'dict[str, str] | None') -> Path:
    """Make an environment that sees `found`, the torch of this Python, if any. Returns its Python."""
    if folder.exists():
        shutil.rmtree(folder)
    command = [sys.executable, '-m', 'venv', *(['--system-site-packages'] if found else []), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        sys.exit(
            f'{" ".join(command)} failed:\n{done.stdout}{done.stderr}\n'
            f'On Debian and Ubuntu: sudo apt install python3-venv'
        )
    python = venv_python(folder)
    if found and find_torch(str(python)) is None:
        # this Python is itself in a virtual environment, so the new one sees only the packages of its base
        base = {'base': str(folder), 'platbase': str(folder)}
        scheme = 'venv' if 'venv' in sysconfig.get_scheme_names() else None
        packages = Path(sysconfig.get_path('purelib', vars=base, scheme=scheme))
        link = packages / 'torch-of-another-environment.pth'
        link.write_text(found['folder'] + '\n', encoding='utf-8')
    return python


STEP = re.compile(
    r'\s*(Collecting|Downloading|Building|Installing collected|Preparing|Requirement already)\b'
    r'\s*([^\s;(]*)'
)


def progress_text(line: str) -> 'str | None':
    """What a line of pip's output says about its progress; None if nothing."""
    step = STEP.match(line)
    if not step:
        return None
    if step[1].startswith('Installing'):
        return 'installing (a minute or two)'
    if step[1] in ('Collecting', 'Downloading'):
        return f'{step[1].lower()} {step[2]}'[:60]
    return 'resolving'


def show_progress(lines, log: Path, started: float):
    """Write pip's output to `log` and show one changing line of it, or, outside a terminal, a line now and then."""
    terminal, said = sys.stdout.isatty(), 0.0
    with open(log, 'w', encoding='utf-8') as out:
        for line in lines:
            out.write(line)
            step = progress_text(line)
            if step is None:
                continue
            text = f'  {time.time() - started:4.0f} s  {step}'
            if terminal:
                print(f'\r{text:<90}', end='', flush=True)
            elif time.time() - said > 15 or 'installing' in text:
                print(text, flush=True)
                said = time.time()
    if terminal:
        print(f'\r{"":<90}\r', end='')


def pip_install(python: Path, arguments: 'list[str]', log: Path):
    """Run pip and show its progress; all its output goes to `log`, and the end of it is shown if pip fails."""
    quiet = ['--disable-pip-version-check', '--no-input']
    command, started = [str(python), '-m', 'pip', 'install', *quiet, *arguments], time.time()
    both = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    with subprocess.Popen(command, **both, text=True, errors='replace', cwd=HERE) as pip:
        show_progress(pip.stdout, log, started)
    if pip.returncode:
        tail = log.read_text(encoding='utf-8').splitlines()[-40:]
        failed = f'pip failed (exit {pip.returncode}); its full output is in {log}'
        sys.exit('\n'.join([*tail, '', failed, f'The command was: {" ".join(command)}']))
    print(f'  installed in {time.time() - started:.0f} s', flush=True)


def with_data_elsewhere(python: Path) -> 'list[str]':
    """Installed packages whose Jupyter data lie outside the environment, as name==version.

    Jupyter in the environment would not find these data.
    """
    code = (
        'import importlib.metadata as m, os, sys\n'
        'here = os.path.realpath(sys.prefix) + os.sep\n'
        'parts = "share/jupyter/", "etc/jupyter/"\n'
        'for d in m.distributions():\n'
        '    data = next((f for f in d.files or () if any(p in f.as_posix() for p in parts)), None)\n'
        '    if data and not os.path.realpath(d.locate_file(data)).startswith(here):\n'
        '        print(d.metadata["Name"] + "==" + d.version)'
    )
    done = subprocess.run([str(python), '-c', code], capture_output=True, text=True, check=True)
    return sorted(set(done.stdout.split()))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--venv', default='.venv', help='folder of the environment')
    extras = 'notebooks,offline,train,fast,serve,fhir,sr,docs,dev'
    parser.add_argument('--extras', default=extras, help='extras of settings.ini to install')
    args = parser.parse_args()
    check_python()
    folder, constraints = Path(args.venv).absolute(), HERE / 'constraints.txt'
    if base := base_python(folder):  # `make` in a shell in which the environment is active
        sys.exit(subprocess.run([base, __file__, *sys.argv[1:]]).returncode)
    found = find_torch()
    if found and release(found['torch'])[:2] < OLDEST_TORCH:
        print(
            f'torch {found["torch"]} of this Python is older than 2.4: the environment gets its own.',
            flush=True,
        )
        found = None
    how = 'with the tested versions of constraints.txt'
    if found:
        how = f'keeping torch {found["torch"]} of {found["folder"]}'
    print(f'Making {folder} with Python {sys.version.split()[0]}, {how}', flush=True)
    python = make_venv(folder, found)
    if found:
        tested = constraints.read_text(encoding='utf-8')
        constraints = folder / 'constraints.txt'
        constraints.write_text(keep_torch(tested, found), encoding='utf-8')
    pip_install(python, ['-c', str(constraints), '-e', f'{HERE}[{args.extras}]'], folder / 'install.log')
    if found and (again := with_data_elsewhere(python)):
        print('  reinstalling packages with Jupyter data into the environment', flush=True)
        pip_install(python, ['--ignore-installed', '--no-deps', *again], folder / 'install-jupyter.log')
    now = find_torch(str(python))
    if not now:
        sys.exit(f'torch cannot be imported in {folder}; run {python} -c "import torch" to see why')
    if found and now['torch'] != found['torch']:
        sys.exit(f'torch {found["torch"]} should have been kept, but the environment has {now["torch"]}')
    # the Makefile's stamp: written last
    (folder / '.installed').write_text(f'torch {now["torch"]}\n', encoding='utf-8')


if __name__ == '__main__':
    main()
