"""`cxr serve` as its users start it."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from toy_service import as_file, film, form, toy_predictor

ROOT = Path(__file__).parent.parent.parent


def start(*arguments, **more):
    "The command in a process of its own"
    own = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    command = [sys.executable, '-m', 'cxr_lib.running.command', 'serve', *map(str, arguments)]
    return subprocess.Popen(command, env=own, **pipes, **more)


@pytest.mark.skipif(os.name == 'nt', reason='signals of Windows differ')
def test_a_saved_model_is_served_until_it_is_interrupted(tmp_path):
    toy_predictor().classifier.save_pretrained(tmp_path / 'model')
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # a test in the background ignores it
    process = start('--model', tmp_path / 'model', '--port', 0, preexec_fn=heed, cwd=tmp_path)
    try:
        for line in process.stdout:
            if found := re.search(r'http://127\.0\.0\.1:\d+', line):
                break
        answer = requests.post(f'{found[0]}/v1/predictions', **form(as_file(film(0)), 'Fever.'), timeout=60)
        assert answer.status_code == 200
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, '')
    finally:
        process.kill()


def test_another_address_needs_a_token(tmp_path):
    process = start('--host', '0.0.0.0', cwd=tmp_path)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and 'add --token' in err
