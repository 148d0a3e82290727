"""The learning curve that is committed: what the README states of it, and how targets are judged."""

import re

import pandas as pd
import pytest
from conftest import ROOT

from cxr_lib.training.sizes import means, read_sizes, sizes_table, targets_table

CURVE = ROOT / 'benchmarks' / 'results' / 'learning_curve.csv'


def stated_rows():
    "(world, patients) -> the other cells of the README's table of sizes"
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    rows = re.findall(r'^\| `(\w+)` \| ([\d,]+) \| (.+) \|$', text, re.M)
    return {(world, patients): cells.split(' | ') for world, patients, cells in rows}


def test_the_readme_states_the_curve_that_is_committed():
    stated = stated_rows()
    table = sizes_table(means(read_sizes(CURVE)).query('seed == 0')).set_index(['world', 'patients'])
    columns = ['fused', 'image alone', 'best fused', 'gap', 'explained', 'gain', 'possible gain']
    assert len(stated) >= 2 and {world for world, _ in stated} >= {'realistic', 'plain'}
    for point, cells in stated.items():
        assert cells == table.loc[point, columns].tolist(), point


@pytest.mark.parametrize(
    ('changed', 'missed'),
    [
        ({}, []),
        (dict(gap_high=0.051), ['upper limit of the gap at most 0.05']),
        (dict(explained=0.79), ['at least 80% of the deviance that can be explained']),
        (dict(gain=0.02), ['gain of the note at least 0.7 of the possible']),
        (dict(shuffled_high=-0.001), ["another patient's note does no harm beyond its interval"]),
    ],
)
def test_a_target_is_missed_by_its_own_figure_alone(changed, missed):
    row = dict(seed=101, explained=0.8, possible_gain=0.03, gap=0.04, gap_low=0.03, gap_high=0.05)
    row |= dict(
        gain=0.021, gain_low=0.02, gain_high=0.03, shuffled=0.0, shuffled_low=-0.01, shuffled_high=0.0
    )
    judged = targets_table(pd.DataFrame([row | changed]))
    assert judged.target[~judged.met].tolist() == missed
