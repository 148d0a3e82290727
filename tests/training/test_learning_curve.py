"""The command that shows what the model learns from how many patients, on a few of them."""

import importlib
import os
import subprocess
import sys

import pandas as pd
import pytest
from conftest import ROOT

from cxr_lib.foundations.core import OBSERVATIONS


def learning_curve(home, *more):
    "Run the command on 160 patients -> what it prints"
    command = [sys.executable, ROOT / 'benchmarks' / 'learning_curve.py', '--out', home / 'curve.csv']
    small = '--worlds plain --thousands 0.16 --drawn 0.16 --test 120 --bootstrap 20 --overrides epochs=1'
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'CXR_HOME': str(home), 'OMP_NUM_THREADS': '1'}
    options = dict(env=environment, cwd=home, capture_output=True, text=True)
    done = subprocess.run([*command, *small.split(), *more], **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(900)
def test_every_size_gets_its_rows_once(tmp_path):
    assert 'plain, seed 0, 160 patients: fused' in learning_curve(tmp_path)
    table = pd.read_csv(tmp_path / 'curve.csv')
    assert list(table.observation) == [*OBSERVATIONS, 'Mean']
    assert (table.patients == 160).all() and (table.test == 120).all()
    assert (table.epochs == 1).all() and (table.overrides == 'epochs=1').all()
    assert (table.gap - (table.best_fused - table.fused)).abs().max() < 2e-4
    assert (table.gain - (table.fused - table.image_alone)).abs().max() < 2e-4
    assert (table.gap_low <= table.gap_high).all()
    assert learning_curve(tmp_path) == ''
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / 'curve.csv'), table)


@pytest.mark.parametrize(('patients', 'epochs'), [(3_000, 20), (12_000, 10), (24_000, 5), (96_000, 5)])
def test_small_sizes_get_the_steps_of_large_ones(monkeypatch, patients, epochs):
    monkeypatch.syspath_prepend(ROOT / 'benchmarks')
    training_values = importlib.import_module('learning_curve').training_values
    assert training_values('image_size=64', patients)['epochs'] == epochs
    assert training_values('epochs=2', patients)['epochs'] == 2
