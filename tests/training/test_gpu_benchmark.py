"""benchmarks/gpu.py, on the processor with small networks: the program works, whoever has a card."""

import os
import re
import subprocess
import sys

from conftest import ROOT


def test_it_checks_a_step_and_times_training_and_encoding_of_both_presets():
    env = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
    command = [sys.executable, ROOT / 'benchmarks' / 'gpu.py', '--small', '--images', '20', '--batch', '8']
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    said = done.stdout
    assert said.startswith('the processor, small networks') and 'TOO LARGE' not in said
    for preset in ('base', 'chest'):
        for precision in ('no', 'bf16'):
            assert re.search(rf'^  {preset} +{precision} +logits \S+ \(at most', said, re.M)
            assert re.search(rf'^  {preset} +{precision} +\d+ images/s, estimate', said, re.M)
            assert re.search(rf'^  {preset} +64 px, {precision} +\d+ images/s$', said, re.M)
    assert re.search(r'^total \d+ s$', said, re.M)
