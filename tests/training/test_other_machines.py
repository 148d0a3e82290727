"""Apple silicon, by a stand-in: `mps` is chosen, what it lacks falls back, and a training asks for no float64."""

import os
import re
import subprocess
import sys

import environment
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from torch.utils._python_dispatch import TorchDispatchMode

from cxr_lib.foundations.core import OBSERVATIONS, choose_device, choose_precision, seed_everything
from cxr_lib.model.fusion import build_model
from cxr_lib.model.presets import make_config, split_overrides
from cxr_lib.model.text import learn_tokenizer
from cxr_lib.training.dataset import StudyData, predict_logits
from cxr_lib.training.loop import fit


def test_mps_is_chosen_and_computes_in_fp32(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    assert (choose_device(), choose_precision()) == ('mps', 'no')


def test_cuda_comes_before_mps(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    assert choose_device() == 'cuda'


@pytest.mark.parametrize('platform, expected', [('darwin', '1'), ('linux', 'None')])
def test_operators_that_mps_lacks_fall_back_to_the_processor(platform, expected):
    code = f"import os, sys; sys.platform = {platform!r}; import cxr_lib; "
    code += "print(os.environ.get('PYTORCH_ENABLE_MPS_FALLBACK'), 'torch' in sys.modules)"
    env = {k: v for k, v in os.environ.items() if k != 'PYTORCH_ENABLE_MPS_FALLBACK'} | {
        'PYTHONPATH': str(ROOT)
    }
    done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [expected, 'False']  # torch reads the variable when it is loaded


class NoDouble(TorchDispatchMode):
    "What mps would do: refuse float64"

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            assert not (isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64), (
                f'{function} in float64'
            )
        return out


def small_data(preset):
    "A model of the preset's kind and random films -> (model, data, its training values)"
    n, rng = 24, np.random.default_rng(0)
    notes = ['cough and fever', 'fall from ladder', None] * (n // 3)
    table = dict(image=[f'{i}.png' for i in range(n)], patient_id=[f'p{i}' for i in range(n)], note=notes)
    table |= dict(split=['train', 'train', 'tuning'] * (n // 3))
    table = pd.DataFrame(table | {o: rng.choice([0.0, 1.0, np.nan], n) for o in OBSERVATIONS})
    config = make_config(preset, {})
    tokenizer = learn_tokenizer(table.note.dropna())
    pixels = rng.integers(0, 256, (n, config.image_size, config.image_size), dtype=np.uint8)
    seed_everything(0)
    return build_model(config, tokenizer), StudyData(table, '', config, tokenizer, pixels=pixels)


def test_a_training_and_its_predictions_ask_for_no_float64():
    model, data = small_data('tiny')
    settings = split_overrides('tiny', 'epochs=1 batch_size=8')[1]
    with NoDouble():
        log = fit(model, data, data.rows('train'), data.rows('tuning'), settings)
        logits = predict_logits(model, data, data.rows('tuning'))
    assert np.isfinite(log[0]['train_loss']) and logits['fused'].shape == (8, len(OBSERVATIONS))


def test_numbers_leave_the_device_before_they_become_float64():
    files = {
        p.relative_to(ROOT).as_posix(): p.read_text(encoding='utf-8')
        for p in (ROOT / 'cxr_lib').rglob('*.py')
    }
    found = {
        name: re.findall(r'.*(?<!\.cpu\(\))\.double\(\).*|.*torch\.float64\).*', text)
        for name, text in files.items()
    }
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_the_stand_in_for_mps_would_notice():
    with pytest.raises(AssertionError, match='float64'), NoDouble():
        torch.ones(2).double()


# Windows, where there is no make


def test_windows_is_told_two_commands(monkeypatch):
    text = (ROOT / 'nbs' / 'docs' / 'start.md').read_text(encoding='utf-8')
    first, second = [line for line in text.splitlines() if line.startswith(('py .ci', '.venv\\Scripts'))]
    assert first == 'py .ci\\environment.py' and (ROOT / '.ci' / 'environment.py').is_file()
    assert second == '.venv\\Scripts\\python -m cxr_lib run'
    makefile = (ROOT / 'Makefile').read_text(encoding='utf-8')
    assert '.ci/environment.py --venv $(VENV)' in makefile and 'VENV ?= .venv' in makefile  # what make does
    monkeypatch.setattr(environment, 'os', type('Windows', (), {'name': 'nt'}))
    assert environment.venv_python(ROOT / '.venv').relative_to(ROOT).as_posix() == '.venv/Scripts/python.exe'


def test_the_commands_are_there():
    options = dict(cwd=ROOT, capture_output=True, text=True, check=True)
    assert '--venv' in subprocess.run([sys.executable, '.ci/environment.py', '--help'], **options).stdout
    assert '--preset' in subprocess.run([sys.executable, '-m', 'cxr_lib', 'run', '--help'], **options).stdout
