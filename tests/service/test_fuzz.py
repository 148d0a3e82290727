"""Damaged and hostile uploads: the service lives, says what is wrong, and writes nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from toy_service import as_file, film, form
from uploads import fuzzed_uploads

UPLOADS = int(os.environ.get('CXR_FUZZED_UPLOADS', 50))  # 500 for the full number
HERE = Path(__file__).parent
ROOT = HERE.parent.parent

#: A service in a process of its own. It prints its address, and dies of nothing but its standard input's end.
PROGRAM = '''import sys
from toy_service import toy_predictor
from cxr_lib.service import running_service

pytest_plugins = ('service_fixtures',)
with running_service(toy_predictor()) as address:
    print(address, flush=True)
    sys.stdin.read()
'''


@pytest.fixture
def elsewhere(tmp_path):
    "A service with the page, whose home, working and temporary folders are empty"
    folders = {name: tmp_path / name for name in ('home', 'work', 'tmp')}
    for folder in folders.values():
        folder.mkdir()
    own = dict(PYTHONPATH=f'{ROOT}{os.pathsep}{HERE}', HOME=str(folders['home']), TMPDIR=str(folders['tmp']))
    own |= dict(PYTHONDONTWRITEBYTECODE='1', OMP_NUM_THREADS='1')
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    command = [sys.executable, '-c', PROGRAM]
    process = subprocess.Popen(command, cwd=folders['work'], env=os.environ | own, **pipes)
    yield process, process.stdout.readline().strip(), tmp_path
    process.stdin.close()
    process.wait(30)


def files_below(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file())


def test_fuzzed_uploads_neither_stop_the_service_nor_reach_the_disk(elsewhere):
    process, address, folder = elsewhere
    before, statuses = files_below(folder), []
    for name, data in fuzzed_uploads(UPLOADS):
        response = requests.post(f'{address}/v1/predictions', **form(data, 'Fever.', name or 'x'), timeout=60)
        statuses.append(response.status_code)
        problem = response.headers['content-type'] == 'application/problem+json'
        assert response.status_code == 200 or problem and response.json()['remedy']
    assert set(statuses) <= {200, 400, 422}, statuses
    assert statuses.count(200) >= 3 and statuses.count(422) >= UPLOADS // 3
    good = requests.post(f'{address}/v1/predictions', **form(as_file(film(0)), 'Fever.'), timeout=60)
    assert good.status_code == 200 and process.poll() is None
    assert files_below(folder) == before == []


def test_the_routes_that_write_or_read_files_are_closed(elsewhere):
    _, address, folder = elsewhere
    upload = requests.post(f'{address}/ui/gradio_api/upload', files=dict(files=('a.png', b'x')), timeout=10)
    assert upload.status_code == 404
    for path in ('file=/etc/passwd', 'proxy=http://example.org', 'upload', 'stream/1', 'vibe-code'):
        assert requests.get(f'{address}/ui/gradio_api/{path}', timeout=10).status_code == 404, path
    assert files_below(folder) == []
