"""What benchmarks/main_job.py reads from an executed run."""

import json
from runpy import run_path

import pytest
from conftest import ROOT

MAIN_JOB = run_path(str(ROOT / 'benchmarks' / 'main_job.py'))


def moment(second):
    return f'2026-01-01T00:00:{second:06.3f}+00:00'


def executed(source, start, end):
    told = dict(start_time=moment(start), end_time=moment(end))
    return dict(cell_type='code', source=[source], metadata=dict(papermill=told))


@pytest.fixture
def notebook(tmp_path):
    heading = dict(cell_type='markdown', source=['Words.\n', '## The data\n'], metadata={})
    cells = [executed("run = ''", 1, 1.5), heading, executed('a', 2, 5), executed('b', 5, 9)]
    told = dict(start_time=moment(0), end_time=moment(11))
    path = tmp_path / '01_exploration.ipynb'
    path.write_text(json.dumps(dict(cells=cells, metadata=dict(papermill=told))))
    return path


def test_each_stage_is_split_into_start_steps_end_and_page(notebook, capsys):
    MAIN_JOB['print_stages'](notebook.parent, {'01_exploration': 12.25})
    first, *steps = capsys.readouterr().out.splitlines()
    assert first == '01_exploration: 12.2 s; start 1.0, end 2.0, page and rest 1.2'
    assert [step.split(maxsplit=2) for step in steps] == [
        ['0.5', 's', 'before the first heading'],
        ['7.0', 's', 'The data'],
    ]


def test_the_seconds_of_the_stages_are_read_from_what_the_job_says():
    said = '[1/5] 01_exploration ...\n  01_exploration: done after 52.5 s\n  03_model: stopped after 1.0 s'
    found = [MAIN_JOB['DONE'].match(line) for line in said.splitlines()]
    assert [m.groups() for m in found if m] == [('01_exploration', '52.5')]
