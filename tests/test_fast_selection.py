"""`make test-fast`: which chapters and tests an edit reaches, and what happens when the time is up."""

import subprocess
import sys

import run_fast
from conftest import ROOT


def test_an_edited_chapter_runs_itself_and_the_tests_of_its_part_the_closest_first():
    names = ['README.md', 'nbs/chapters/04_data/15_mimic.ipynb']
    assert run_fast.chapters_of(names) == names[1:]
    found = run_fast.tests_of(names)
    assert found[0] == 'tests/data/test_mimic.py' and 'tests/data/test_tables.py' in found
    assert found[-1] == 'tests/test_readme.py' and not [n for n in found if n.startswith('tests/model')]


def test_an_edited_test_comes_before_all_others_and_long_ones_are_left_out():
    names = [
        'nbs/chapters/12_running/01_plan.ipynb',
        'tests/metrics/test_ranking.py',
        'tests/test_newcomer.py',
    ]
    found = run_fast.tests_of(names)
    assert found[0] == 'tests/metrics/test_ranking.py'
    assert not set(run_fast.LONG) & set(found) and 'tests/running/test_runner.py' in found


def test_nothing_edited_runs_nothing():
    assert run_fast.chapters_of([]) == run_fast.tests_of([]) == []


SLOW = '''import time
def test_first():
    pass
def test_second():
    time.sleep(60)
'''
PROGRAM = '''import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import run_fast
run_fast.ROOT = Path.cwd().resolve()
print(*run_fast.run_tests(['test_slow.py'], 2))
'''


def test_the_test_that_runs_when_the_time_is_up_is_stopped_and_no_failure(tmp_path):
    (tmp_path / 'test_slow.py').write_text(SLOW)
    command = [sys.executable, '-c', PROGRAM, str(ROOT / 'tests')]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == '1 2 False', done.stdout + done.stderr


def test_a_failure_is_one(tmp_path):
    (tmp_path / 'test_slow.py').write_text('def test_wrong():\n    assert False\n')
    command = [sys.executable, '-c', PROGRAM, str(ROOT / 'tests')]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == '1 1 True', done.stdout + done.stderr


def test_a_changed_chapter_is_run_and_its_failure_counts():
    good, bad = 'nbs/chapters/01_foundations/06_progress.ipynb', 'nbs/chapters/01_foundations/none.ipynb'
    assert run_fast.run_chapters([good], 60) == (1, False)
    assert run_fast.run_chapters([bad, good], 60) == (1, True)
