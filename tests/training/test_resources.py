"""Memory and disk: what is worked out before a training is what the training takes."""

import errno
import os
import shutil

import pytest
import torch
import torch.nn as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_lib.model.text import learn_tokenizer
from cxr_lib.model.fusion import build_model
from cxr_lib.model.presets import make_config
from cxr_lib.training.memory import (
    activation_bytes,
    check_disk,
    checkpoint_bytes,
    describe_memory,
    memory_estimate,
    plan_memory,
)

SMALL = dict(
    image_encoder='test_vit',
    image_size=64,
    max_tokens=16,
    text_config=dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64),
)


class Named(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


def sight(n):
    return dict(
        pixels=torch.zeros((n, 64, 64), dtype=torch.uint8),
        input_ids=torch.zeros((n, 16), dtype=torch.long),
        attention_mask=torch.ones((n, 16), dtype=torch.long),
        has_note=torch.ones(n, dtype=torch.bool),
    )


@settings(max_examples=25, deadline=None)
@given(wide=st.integers(1, 60), middle=st.integers(1, 60), batch=st.integers(1, 500))
def test_a_linear_layer_keeps_its_input_a_relu_its_output_and_nothing_else(wide, middle, batch):
    net = Named(nn.Sequential(nn.Linear(wide, middle), nn.ReLU(), nn.Linear(middle, 3)))
    found = memory_estimate(net, dict(x=torch.randn(5, wide)), batch)
    weights = 4 * (wide * middle + middle + 3 * middle + 3)
    assert found['activations'] == 4 * batch * (wide + middle)
    assert found['weights'] == found['gradients'] == weights
    assert found['optimizer'] == 2 * weights
    assert found['total'] == sum(v for k, v in found.items() if k != 'total')
    assert (
        memory_estimate(net, dict(x=torch.randn(5, wide)), batch, ema=True)['total']
        == found['total'] + weights
    )


def test_frozen_weights_need_no_gradient_and_no_moments():
    net = Named(nn.Sequential(nn.Linear(50, 40), nn.ReLU(), nn.Linear(40, 3)))
    net.net[0].requires_grad_(False)
    found = memory_estimate(net, dict(x=torch.randn(5, 50)), 1)
    assert found['gradients'] == 4 * (3 * 40 + 3)
    assert found['weights'] > found['gradients']
    assert found['optimizer'] == 2 * found['gradients']


def test_measuring_leaves_the_network_and_the_random_numbers_as_they_were():
    net = Named(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))).eval()
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    assert activation_bytes(net, dict(x=torch.randn(6, 8, generator=torch.Generator().manual_seed(0)))) > 0
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not net.training


def test_two_patients_are_too_few_to_tell_what_one_costs():
    with pytest.raises(ValueError, match='the batch has 2 patients; at least 3 are needed'):
        memory_estimate(Named(nn.Linear(3, 3)), dict(x=torch.zeros(2, 3)), 8)


@pytest.mark.parametrize('precision', ['no', 'bf16', 'fp16'])
def test_a_plan_from_shapes_says_what_the_network_takes(precision):
    config, tokenizer = make_config('tiny', SMALL), learn_tokenizer(['cough and fever'], 100)
    plan = plan_memory(config, len(tokenizer), 32, precision)
    measured = memory_estimate(build_model(config, tokenizer), sight(4), 32, precision)
    for part in ('weights', 'gradients', 'optimizer'):
        assert plan[part] == measured[part]
    assert plan['activations'] == pytest.approx(measured['activations'], rel=0.02)
    assert plan['total'] == pytest.approx(measured['total'], rel=0.02)


def test_half_precision_and_checkpointed_blocks_keep_less():
    config, tokenizer = make_config('tiny', SMALL), learn_tokenizer(['cough and fever'], 100)
    model = build_model(config, tokenizer)

    def kept(precision):
        return memory_estimate(model, sight(4), 1, precision)['activations']

    full, half = kept('no'), kept('bf16')
    model.set_gradient_checkpointing(True)
    assert half < 0.9 * full and kept('no') < 0.8 * full


def test_the_size_of_a_checkpoint_is_nearly_what_is_written(tmp_path):
    model = Named(nn.Sequential(nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 300)))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 300)).sum().backward()
    optimizer.step()
    for ema in (False, True):
        best = {k: v.clone() for k, v in model.state_dict().items()}
        average = {k: v.clone() for k, v in model.state_dict().items()} if ema else None
        torch.save(
            dict(model=model.state_dict(), best=best, optimizer=optimizer.state_dict(), ema=average),
            tmp_path / 'x.pt',
        )
        assert (tmp_path / 'x.pt').stat().st_size == pytest.approx(checkpoint_bytes(model, ema), rel=0.05)


@settings(max_examples=30, deadline=None)
@given(free=st.integers(0, 10**12), need=st.integers(0, 10**12))
def test_a_disk_with_less_than_twice_the_need_is_refused(tmp_path_factory, free, need):
    folder = tmp_path_factory.getbasetemp() / 'disk'
    usage = shutil.disk_usage(folder.parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('shutil.disk_usage', lambda path: usage._replace(free=free))
        if free >= 2 * need:
            check_disk(folder, need)
        else:
            with pytest.raises(OSError, match='Free space, or set CXR_HOME') as error:
                check_disk(folder, need)
            assert error.value.errno == errno.ENOSPC and error.value.filename == str(folder)
    assert not list(folder.iterdir())


def test_checkpoints_that_will_be_replaced_count_as_free(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr('shutil.disk_usage', lambda path: usage._replace(free=500))
    check_disk(tmp_path, 1000, there=1500)
    with pytest.raises(OSError, match='Free space'):
        check_disk(tmp_path, 1000, there=1400)


def test_a_folder_below_a_file_and_a_folder_that_forbids_writing_are_refused(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match='Make the folder writable'):
        check_disk(tmp_path / 'file' / 'below')
    if os.name == 'nt' or os.geteuid() == 0:
        pytest.skip('this user may write everywhere')
    (tmp_path / 'closed').mkdir(mode=0o500)
    with pytest.raises(OSError, match='Make the folder writable'):
        check_disk(tmp_path / 'closed')


def test_a_line_says_the_total_and_leaves_out_what_is_next_to_nothing():
    said = describe_memory({'weights': 840e6, 'moving average': 0, 'activations': 5.4e9, 'total': 6.24e9}, 32)
    assert 'About 6.24 GB' in said
    assert 'weights 0.84' in said
    assert '32 patients at a time' in said
    assert 'moving average' not in said
    assert (
        describe_memory({'weights': 1e6, 'total': 1e6}, 8)
        == 'About 0.00 GB of memory at the peak of a step, libraries not counted (8 patients at a time)'
    )
