"""Losses: what a label counts as, and that a missing one costs nothing."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.training.losses import (
    BEST_POLICY,
    LABEL_POLICIES,
    LOSSES,
    class_weights,
    make_loss,
    masked_bce,
    pairwise_loss,
    three_class_loss,
    training_targets,
)

SOME = pd.DataFrame({o: [1.0, 0.0, -1.0, np.nan] for o in OBSERVATIONS}).assign(image=list('abcd'))
label = st.sampled_from([0.0, 1.0, float('nan')])
rows = st.lists(st.lists(label, min_size=14, max_size=14), min_size=1, max_size=6)


def logits_for(n, seed):
    return torch.randn(n, 14, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def test_label_policies_change_uncertain_labels_and_no_others():
    for policy, uncertain in (('ignore', np.nan), ('ones', 1.0), ('zeros', 0.0), ('multiclass', -1.0)):
        assert np.array_equal(
            training_targets(SOME, policy)[:, 0].numpy(),
            np.array([1, 0, uncertain, np.nan], np.float32),
            equal_nan=True,
        )
    assert SOME.iloc[2, :14].eq(-1).all()  # the study table itself is left alone


def test_the_best_policies_are_those_of_the_paper():
    "Irvin et al. 2019, table 3; what only self-training wins is ignored"
    assert BEST_POLICY == {
        'Atelectasis': 'ones',
        'Edema': 'ones',
        'Cardiomegaly': 'multiclass',
        'Pleural Effusion': 'multiclass',
    }
    found = dict(zip(OBSERVATIONS, training_targets(SOME, 'best')[2].tolist()))
    assert found['Edema'] == 1
    assert found['Cardiomegaly'] == -1
    assert np.isnan(found['Consolidation'])
    assert np.isnan(found['Fracture'])


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999),
    order=st.permutations(range(12)),
    policy=st.sampled_from(['smooth_ones', 'smooth_zeros']),
)
def test_smoothed_labels_stay_in_their_range_and_do_not_depend_on_the_order_of_the_table(seed, order, policy):
    table = pd.DataFrame({o: -1.0 for o in OBSERVATIONS}, index=range(12)).assign(
        image=[f'{i}.png' for i in range(12)]
    )
    low, high = LABEL_POLICIES[policy]
    y = training_targets(table, policy, seed)
    assert (y >= low).all() and (y <= high).all() and len(y.unique()) > 100
    assert torch.equal(training_targets(table.iloc[order], policy, seed), y[list(order)])


def test_an_unknown_policy_or_loss_is_refused():
    with pytest.raises(ValueError, match="unknown label_policy 'maybe'; known are ignore"):
        training_targets(SOME, 'maybe')
    with pytest.raises(ValueError, match="unknown loss 'hinge'; known are bce"):
        make_loss('hinge')
    with pytest.raises(ValueError, match='needs the training targets'):
        make_loss('weighted_bce')


@settings(max_examples=40, deadline=None)
@given(rows, st.integers(0, 99))
def test_a_missing_label_never_enters_the_loss(rows, seed):
    targets, logits = torch.tensor(rows), logits_for(len(rows), seed)
    loss = masked_bce(logits, targets)
    loss.backward()
    there = ~targets.isnan()
    assert torch.isfinite(loss) and (logits.grad[~there] == 0).all() and ((logits.grad[there] != 0).all())
    if there.any():
        assert torch.isclose(
            loss,
            torch.nn.functional.binary_cross_entropy_with_logits(logits[there], targets[there]),
            atol=1e-6,
        )


@settings(max_examples=40, deadline=None)
@given(rows, st.integers(0, 99), st.sampled_from(LOSSES))
def test_no_loss_looks_at_the_logit_of_a_missing_label(rows, seed, name):
    targets, logits = torch.tensor(rows), logits_for(len(rows), seed).detach()
    loss, moved = make_loss(name, targets), torch.where(targets.isnan(), logits + 7, logits)
    assert torch.isfinite(loss(logits, targets)) and torch.equal(loss(logits, targets), loss(moved, targets))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from([0.0, 1.0, -1.0, float('nan')]), min_size=14, max_size=14),
        min_size=2,
        max_size=6,
    ),
    st.integers(0, 99),
)
def test_three_classes_are_cross_entropy_and_can_be_summed_over_parts(rows, seed):
    y, z, u = torch.tensor(rows), logits_for(len(rows), seed), logits_for(len(rows), seed + 100)
    there, loss = ~y.isnan(), three_class_loss(z, u, y)
    if there.any():
        three = torch.stack([torch.zeros_like(z), z, u], -1)
        assert torch.isclose(
            loss, torch.nn.functional.cross_entropy(three[there], y[there].long() % 3), atol=1e-5
        )
        n = there.sum()
        assert torch.isclose(
            three_class_loss(z[:1], u[:1], y[:1], n) + three_class_loss(z[1:], u[1:], y[1:], n),
            loss,
            atol=1e-5,
        )
    loss.backward()
    assert (z.grad[~there] == 0).all() and (u.grad[~there] == 0).all() and (u.grad[there] != 0).all()


@settings(max_examples=40, deadline=None)
@given(rows)
def test_weighted_classes_have_the_same_total(rows):
    y = torch.tensor(rows)
    up, down = class_weights(y)
    positive, negative = (y == 1).sum(0), (y == 0).sum(0)
    both = (positive > 0) & (negative > 0)
    assert torch.allclose((up * positive)[both], (down * negative)[both])
    assert torch.allclose((up * positive + down * negative)[both], (positive + negative)[both].float())
    assert (up[~both] == 1).all() and (down[~both] == 1).all()


@settings(max_examples=40, deadline=None)
@given(rows, st.integers(0, 99))
def test_the_pairwise_loss_is_the_mean_over_pairs_counted_one_by_one(rows, seed):
    y, z = torch.tensor(rows), logits_for(len(rows), seed).detach()
    by_hand = [
        [
            float(torch.nn.functional.softplus(z[j, k] - z[i, k]))
            for i in range(len(y))
            for j in range(len(y))
            if y[i, k] == 1 and y[j, k] == 0
        ]
        for k in range(14)
    ]
    means = [np.mean(pairs) for pairs in by_hand if pairs]
    assert float(pairwise_loss(z, y)) == pytest.approx(np.mean(means) if means else 0.0, abs=1e-5)
