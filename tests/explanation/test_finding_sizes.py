"""Scores by size: thirds hold the same mixture of findings, and a cut is never tuned on the patient that it judges."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_lib.explanation.bench import draw_bench, mean_intervals
from cxr_lib.explanation.sizes import (
    THIRDS,
    judge_sizes,
    mean_scores,
    pair_scores,
    size_thirds,
    sizes_sentences,
    sizes_table,
    tuned_overlap,
)


@pytest.fixture(scope='module')
def bench():
    return draw_bench(20, per=6, seed=5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 3)), min_size=1, max_size=40))
def test_each_third_holds_the_same_mixture_and_larger_findings_than_the_one_before(pairs):
    areas, kinds = np.array(pairs).T
    thirds = size_thirds(areas, kinds)
    for kind in np.unique(kinds):
        own = thirds[kinds == kind]
        if len(own) < 3:
            assert (own == -1).all()
            continue
        counts = np.bincount(own, minlength=3)
        assert counts.max() - counts.min() <= 1
        sizes = [areas[(kinds == kind) & (thirds == k)] for k in range(3)]
        assert sizes[0].max() <= sizes[1].min() and sizes[1].max() <= sizes[2].min()


def test_a_cut_is_tuned_on_the_others_only():
    mask = np.zeros((2, 10, 10), bool)
    mask[:, :2] = True
    maps = np.where(mask, 1.0, 0.45)
    maps[1] = np.where(mask[1], 0.3, 0.0)  # the first wants a cut above 0.45, the second one below 0.3
    maps[1, 9, 9] = 1.0
    found = tuned_overlap(maps, mask, np.zeros(2))
    assert found.tolist() == [0.2, 0.0]
    assert tuned_overlap(maps[::-1], mask, np.zeros(2)).tolist() == found[::-1].tolist()


def test_the_truth_scores_one_whatever_its_size(bench):
    record = judge_sizes(dict(grad_cam=bench.masks * 1.0), bench, 20)
    of = record['grad_cam']['thirds']
    assert [of[t]['auprc']['value'] for t in THIRDS] == pytest.approx([1, 1, 1])
    assert of['small']['area'] < of['large']['area']
    assert of['large']['prior']['value'] > of['small']['prior']['value']
    assert len(sizes_table(record)) == 3 and 'small 1.00' in sizes_sentences(record)[0]


def test_without_findings_the_tables_are_empty(bench):
    pairs = ('studies', 'observations', 'without', 'masks')
    nothing = replace(bench, **{name: getattr(bench, name)[:0] for name in pairs})
    assert mean_scores(pair_scores(nothing.masks * 1.0, nothing)) == dict(n=0)
    record = judge_sizes(dict(grad_cam=nothing.masks * 1.0), nothing, 5)
    assert sizes_table(record)['findings'].tolist() == [0, 0, 0] and sizes_sentences(record) == []
    assert sizes_table({}).empty and sizes_sentences({}) == []


def test_patients_are_resampled_and_not_their_findings():
    once = pd.DataFrame(dict(patient=[1, 2, 3, 4], hit=[0.0, 1, 0, 1]))
    often = pd.concat([once] * 9)
    assert mean_intervals(once, ['hit'], 400) == mean_intervals(often, ['hit'], 400)
