"""What the edits reach, in under two minutes: `make test-fast`, or `python tests/run_fast.py [--against COMMIT]`.

Edits are those since branch main began to differ; on main itself, those since the last commit. The changed chapters
are run, then tests: files that were edited, files named after a changed chapter, then the other tests of the changed
parts. When the time is up, the test that is running is stopped, and what was not reached is counted. `make test` runs
everything.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 110  # for all of it
CHAPTER = re.compile(r'nbs/chapters/\d\d_(\w+)/\d\d_(\w+)\.ipynb$')
#: Take minutes by themselves.
LONG = (
    *('tests/running/test_main_job.py', 'tests/running/test_colab.py'),
    *('tests/test_newcomer.py', 'tests/test_packaging.py'),
)


def git(*command):
    "The lines that git prints; none where it cannot answer"
    done = subprocess.run(['git', *command], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.splitlines() if done.returncode == 0 else []


def base(against=''):
    "The commit that edits are counted from"
    if against:
        return against
    common = git('merge-base', 'HEAD', 'main')
    return common[0] if common else 'HEAD'


def edited(commit):
    "Files that differ from a commit, and new ones, by their path from the root"
    names = git('diff', '--name-only', '--diff-filter=d', commit)
    return sorted({*names, *git('ls-files', '--others', '--exclude-standard')})


def chapters_of(names):
    "The chapters among these files; stages and front doors need a run, and `make test` makes one"
    return [name for name in names if CHAPTER.match(name)]


def tests_of(names):
    "Test files for these edits, the closest first"
    found = [CHAPTER.match(name) for name in names]
    parts = {m[1] for m in found if m} | {p for n in names for p in re.findall(r'^tests/(\w+)/', n)}
    stems = {f'test_{m[2]}' for m in found if m}
    beside = [p for part in sorted(parts) for p in sorted((ROOT / 'tests' / part).glob('test_*.py'))]
    known = {p.relative_to(ROOT).as_posix(): p.stem for p in beside}
    own = [name for name in names if re.match(r'tests/(\w+/)?test_\w+\.py$', name)]
    order = [*own, *(n for n, stem in known.items() if stem in stems), *known]
    rules = ['tests/test_layers.py', 'tests/test_types.py', 'tests/test_readme.py'] if names else []
    return [n for n in dict.fromkeys([*order, *rules]) if n not in LONG and (ROOT / n).exists()]


class UntilTimeIsUp:
    "A plugin of pytest: keep the order of the files, stop when the time is up, count what was not reached"

    def __init__(self, files, seconds):
        self.files, self.seconds, self.total, self.done = files, seconds, 0, 0

    def pytest_collection_modifyitems(self, items):
        place = {name: i for i, name in enumerate(self.files)}
        items.sort(key=lambda item: place[item.path.relative_to(ROOT).as_posix()])
        self.total = len(items)

    def pytest_sessionstart(self, session):
        import pytest

        def stop(*_):
            pytest.exit('the time is up', returncode=int(bool(session.testsfailed)))

        signal.signal(signal.SIGALRM, stop)
        signal.alarm(max(1, int(self.seconds)))

    def pytest_runtest_logfinish(self):
        self.done += 1

    def pytest_unconfigure(self):
        signal.alarm(0)


def run_chapters(chapters, seconds):
    "Run notebooks one after another until the time is up -> (how many were run, did one fail?)"
    start = time.monotonic()
    for n, name in enumerate(chapters):
        left = seconds - (time.monotonic() - start)
        code = 'import sys, pathlib; from nbdev.test import test_nb\n'
        code += 'sys.exit(not test_nb(pathlib.Path(sys.argv[1]), do_print=True)[0])'
        try:
            done = subprocess.run([sys.executable, '-c', code, name], cwd=ROOT, timeout=max(left, 0.01))
        except subprocess.TimeoutExpired:
            return n, False
        if done.returncode:
            print(f'{name} failed')
            return n + 1, True
    return len(chapters), False


def run_tests(files, seconds):
    "Run test files until the time is up -> (tests run, tests there, did one fail?)"
    import pytest

    until = UntilTimeIsUp(files, seconds)
    code = pytest.main(['-q', '-x', '--no-header', *files], plugins=[until]) if files else 0
    return until.done, until.total, code not in (0, pytest.ExitCode.NO_TESTS_COLLECTED)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--against', default='', help='commit to compare with; default: where main was left')
    parser.add_argument('--seconds', type=float, default=SECONDS, help='for all of it')
    args = parser.parse_args()
    start, names = time.monotonic(), edited(base(args.against))
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    os.chdir(ROOT)
    chapters, files = chapters_of(names), tests_of(names)
    ran, failed = run_chapters(chapters, args.seconds / 2)
    done = total = 0
    if not failed:
        done, total, failed = run_tests(files, args.seconds - (time.monotonic() - start))
    said = f'{ran} of {len(chapters)} changed chapters and {done} of {total} tests were run'
    print(f'{said} in {time.monotonic() - start:.0f} s; make test runs everything')
    sys.exit(int(failed))


if __name__ == '__main__':
    main()
