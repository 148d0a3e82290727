"""Downloads over a loopback server that misbehaves, archives that nobody should trust, and `cxr download`.

No other machine is asked for anything.
"""

import errno
import gzip
import hashlib
import http.server
import io
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_lib.running import command as runner
from cxr_lib.data.archives import DownloadError, only_one, unpack
from cxr_lib.data.download import DOWNLOADS, PartialFile, Patience, RemoteFile, Source
from cxr_lib.data.download import check_address, download, fetch, parse_checksum

SHARED = ROOT.parent / 'shared' / 'data'
DATA = random.Random(0).randbytes(400_000)
SHA = hashlib.sha256(DATA).hexdigest()
OTHER = random.Random(1).randbytes(len(DATA))

#: What a server answers unless it is told otherwise.
ANSWER = dict(
    data=DATA, kind='application/octet-stream', etag='"v1"', modified=None, encoding=None, length=True
)
ANSWER |= dict(ranges=True, heed_if_range=True, cut=None, chunked=False, hold=None)
ANSWER |= dict(status=None, location=None, headers=())


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as `server.answers[path]` says, a list of keyword arguments for `serve`:
    one for each request, the last for all that follow"""

    protocol_version = 'HTTP/1.1'

    def do_GET(self):
        answers = self.server.answers.get(self.path.lstrip('/'))
        self.log = dict(
            path=self.path,
            range=self.headers.get('Range'),
            if_range=self.headers.get('If-Range'),
            accept=self.headers.get('Accept-Encoding'),
            sent=0,
        )
        self.server.asked.append(self.log)
        self.close_connection = True
        if answers is None:
            self.send_error(404)
            return
        self.serve(**(answers.pop(0) if len(answers) > 1 else answers[0]))

    def serve(self, **answer):
        assert answer.keys() <= ANSWER.keys()
        a = SimpleNamespace(**ANSWER | answer)
        if a.location or a.status:
            headers = [('Location', a.location)] if a.location else []
            self.empty(a.status or 302, headers + list(a.headers))
            return
        asked, tag = self.headers.get('Range'), self.headers.get('If-Range')
        part = a.ranges and asked and (tag in (None, a.etag, a.modified) or not a.heed_if_range)
        start = int(asked.removeprefix('bytes=').rstrip('-')) if part else 0
        if start > len(a.data) or part and start == len(a.data):
            self.empty(416)
            return
        body = a.data[start:]
        self.send_response(206 if part else 200)
        if part:
            self.send_header('Content-Range', f'bytes {start}-{len(a.data) - 1}/{len(a.data)}')
        self.describe(a, len(body))
        self.send(a, body)

    def empty(self, status, headers=()):
        "An answer without a body"
        self.send_response(status)
        for name, value in (*headers, ('Content-Length', '0'), ('Connection', 'close')):
            self.send_header(name, value)
        self.end_headers()

    def describe(self, a, length):
        "The headers of a file"
        stated = {'ETag': a.etag, 'Last-Modified': a.modified, 'Content-Encoding': a.encoding}
        for name, value in stated.items():
            if value:
                self.send_header(name, value)
        if a.chunked:
            self.send_header('Transfer-Encoding', 'chunked')
        elif a.length:
            self.send_header('Content-Length', str(length))
        self.send_header('Content-Type', a.kind)
        self.send_header('Connection', 'close')
        self.end_headers()

    def send(self, a, body):
        "The bytes of a file, or as many as are not cut off"
        end = len(body) if a.cut is None else a.cut
        for i in range(0, end, 10_000):
            piece = body[i : min(i + 10_000, end)]
            try:
                self.wfile.write(b'%x\r\n%s\r\n' % (len(piece), piece) if a.chunked else piece)
            except OSError:
                return
            self.log['sent'] += len(piece)
            if a.hold and self.log['sent'] >= a.hold[0]:
                self.wfile.flush()
                a.hold[1].wait(60)
        if a.chunked and a.cut is None:
            self.wfile.write(b'0\r\n\r\n')

    def log_message(self, *args):
        pass


class Loopback(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.answers, self.asked = {}, []
        self.url = f'http://127.0.0.1:{self.server_port}'
        threading.Thread(target=self.serve_forever, kwargs=dict(poll_interval=0.02), daemon=True).start()

    def has(self, name, *answers):
        self.answers[name] = list(answers)
        return f'{self.url}/{name}'

    def sent(self):
        return sum(a['sent'] for a in self.asked)

    def handle_error(self, *args):
        pass


@pytest.fixture
def server():
    s = Loopback()
    yield s
    s.shutdown()
    s.server_close()


def get(url, path, sha256=None, **kw):
    patience = {k: kw.pop(k) for k in ('retries', 'wait', 'timeout') if k in kw}
    if sha256:
        kw['checksum'] = f'sha256:{sha256}'
    return download(
        url, path, patience=Patience(**dict(wait=0.001, timeout=20) | patience), **dict(progress=False) | kw
    )


def refused(f, *args, **kw):
    with pytest.raises(DownloadError) as e:
        f(*args, **kw)
    return str(e.value)


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob('*'))


# A transfer, and what may cut it


def test_a_whole_file_arrives_under_its_name_and_is_not_fetched_twice(server, tmp_path):
    url = server.has('a.bin', {})
    for _ in range(2):
        assert get(url, tmp_path / 'new' / 'a.bin', sha256=SHA, size=len(DATA)).read_bytes() == DATA
    assert names(tmp_path / 'new') == ['a.bin'] and len(server.asked) == 1
    assert server.asked[0]['accept'] == 'identity'


@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.integers(10_000, 150_000), max_size=5),
    chunked=st.booleans(),
    tag=st.sampled_from([('"v1"', None), (None, 'Wed, 01 Jan 2020 00:00:00 GMT'), ('W/"v1"', None)]),
)
def test_wherever_it_is_cut_every_byte_is_sent_once(cuts, chunked, tag):
    server = Loopback()
    try:
        with tempfile.TemporaryDirectory() as d:
            common = dict(etag=tag[0], modified=tag[1], chunked=chunked)
            url = server.has('a.bin', *(dict(common, cut=min(c, 70_000)) for c in cuts), common)
            assert get(url, Path(d) / 'a.bin', sha256=SHA, retries=1).read_bytes() == DATA
            assert names(d) == ['a.bin'] and server.sent() == len(DATA) and len(server.asked) == len(cuts) + 1
    finally:
        server.shutdown()
        server.server_close()


def test_a_server_that_ignores_range_starts_over_cleanly(server, tmp_path):
    url = server.has('a.bin', dict(cut=250_000), dict(ranges=False))
    assert get(url, tmp_path / 'a.bin', sha256=SHA).read_bytes() == DATA
    assert server.sent() == 250_000 + len(DATA) and server.asked[1]['range'] == 'bytes=250000-'


def test_a_server_that_cannot_resume_and_always_cuts_is_given_up(server, tmp_path):
    url = server.has('a.bin', dict(ranges=False, cut=250_000))
    said = refused(get, url, tmp_path / 'a.bin', retries=3)
    assert 'cut' in said and url in said and '4 tries' in said and len(server.asked) == 4


def test_the_count_of_failures_starts_again_when_a_try_gets_further(server, tmp_path):
    url = server.has('a.bin', *[dict(cut=40_000)] * 9, {})
    assert get(url, tmp_path / 'a.bin', retries=1).read_bytes() == DATA


@pytest.mark.parametrize('heed', [True, False])
def test_a_file_that_changes_on_the_server_is_never_glued_together(server, tmp_path, heed):
    url = server.has('a.bin', dict(cut=200_000), dict(data=OTHER, etag='"v2"', heed_if_range=heed))
    assert get(url, tmp_path / 'a.bin').read_bytes() == OTHER
    assert server.asked[1]['if_range'] == '"v1"' and server.asked[1]['range'] == 'bytes=200000-'
    assert len(server.asked) == (
        2 if heed else 3
    )  # a server that does not heed If-Range is asked again, from the start


def test_a_file_of_another_length_is_another_file(server, tmp_path):
    url = server.has(
        'a.bin', dict(cut=200_000, etag=None, modified=None), dict(data=OTHER[:300_000], etag=None)
    )
    assert (
        get(url, tmp_path / 'a.bin', checksum='md5:' + hashlib.md5(OTHER[:300_000]).hexdigest()).read_bytes()
        == OTHER[:300_000]
    )


def test_a_weak_tag_is_not_sent_but_compared(server, tmp_path):
    url = server.has('a.bin', dict(cut=200_000, etag='W/"v1"'), dict(data=OTHER, etag='W/"v2"'))
    assert get(url, tmp_path / 'a.bin').read_bytes() == OTHER
    assert server.asked[1]['range']
    assert server.asked[1]['if_range'] is None
    assert server.asked[2]['range'] is None


def test_without_tag_date_or_checksum_nothing_is_resumed(server, tmp_path):
    url = server.has('a.bin', dict(cut=200_000, etag=None), dict(etag=None))
    assert get(url, tmp_path / 'a.bin').read_bytes() == DATA and server.asked[1]['range'] is None


def test_a_checksum_alone_allows_resuming_and_finds_a_glued_file(server, tmp_path):
    url = server.has('a.bin', dict(cut=200_000, etag=None), dict(etag=None))
    assert get(url, tmp_path / 'a.bin', sha256=SHA).read_bytes() == DATA and server.sent() == len(DATA)
    url = server.has('b.bin', dict(cut=200_000, etag=None), dict(data=OTHER, etag=None))
    assert 'sha256 of b.bin' in refused(get, url, tmp_path / 'b.bin', sha256=SHA)
    assert names(tmp_path) == ['a.bin']


def test_a_wrong_checksum_says_expected_and_got_and_leaves_nothing(server, tmp_path):
    url = server.has('a.bin', dict(data=OTHER))
    said = refused(get, url, tmp_path / 'a.bin', sha256=SHA)
    assert SHA in said and hashlib.sha256(OTHER).hexdigest() in said and url in said and names(tmp_path) == []


def test_a_wrong_length_is_refused_before_the_transfer(server, tmp_path):
    url = server.has('a.bin', {})
    assert f'{len(DATA)} bytes; expected 5' in refused(get, url, tmp_path / 'a.bin', size=5)
    assert 'at most 1.0 kB' in refused(get, url, tmp_path / 'a.bin', max_bytes=1000) and names(tmp_path) == []


@pytest.mark.parametrize('stated', [dict(length=False), dict(chunked=True)])
def test_a_stream_without_length_ends_at_the_limit(server, tmp_path, stated):
    url = server.has('a.bin', stated)
    assert 'more than 100000 bytes' in refused(get, url, tmp_path / 'a.bin', max_bytes=100_000)
    assert names(tmp_path) == []
    assert get(url, tmp_path / 'a.bin').read_bytes() == DATA


def test_a_cut_that_no_header_shows_is_found_by_the_size(server, tmp_path):
    url = server.has('a.bin', dict(length=False, cut=200_000), {})
    assert get(url, tmp_path / 'a.bin', size=len(DATA)).read_bytes() == DATA and server.sent() == len(DATA)


def test_a_server_that_falls_silent_is_asked_again(server, tmp_path):
    over = threading.Event()
    url = server.has('a.bin', dict(hold=(200_000, over)), {})
    try:
        assert get(url, tmp_path / 'a.bin', timeout=0.3).read_bytes() == DATA
    finally:
        over.set()


CHILD = '''import sys
from cxr_lib.data.download import download
download(sys.argv[1], sys.argv[2], checksum='sha256:' + sys.argv[3], progress=False)'''


def until(true, what):
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def test_after_kill_9_the_next_call_fetches_only_the_rest(server, tmp_path):
    over, part = threading.Event(), tmp_path / 'a.bin.part'
    url = server.has('a.bin', dict(hold=(300_000, over)), {})
    child = subprocess.Popen(
        [sys.executable, '-c', CHILD, url, str(tmp_path / 'a.bin'), SHA],
        env=os.environ | {'PYTHONPATH': str(ROOT)},
    )
    try:
        until(lambda: part.exists() and part.stat().st_size >= 200_000, 'the child has written nothing')
        child.kill()
        child.wait(60)
    finally:
        over.set()
    have = part.stat().st_size
    assert not (tmp_path / 'a.bin').exists() and part.read_bytes() == DATA[:have]
    assert set(names(tmp_path)) <= {'a.bin.part', 'a.bin.part.json', '.a.bin.lock'}
    server.asked.clear()
    assert get(url, tmp_path / 'a.bin', sha256=SHA).read_bytes() == DATA
    assert server.sent() == len(DATA) - have
    assert server.asked[0]['range'] == f'bytes={have}-'
    assert names(tmp_path) == ['a.bin']


def under_way(tmp_path, url, data):
    partial = PartialFile(tmp_path / 'a.bin', url)
    partial.begin({'ETag': '"v1"'}, len(DATA))
    partial.part.write_bytes(data)
    return partial


def test_killed_between_the_last_byte_and_the_rename_nothing_is_fetched_again(server, tmp_path):
    under_way(tmp_path, url := server.has('a.bin', {}), DATA)
    assert get(url, tmp_path / 'a.bin', sha256=SHA).read_bytes() == DATA
    assert server.asked == []
    assert names(tmp_path) == ['a.bin']


@pytest.mark.parametrize(
    'spoil',
    [
        lambda p: p.note.write_text('{"half'),
        lambda p: p.note.unlink(),
        lambda p: p.note.write_text('[]'),
        lambda p: p.part.write_bytes(OTHER + DATA),
        lambda p: p.part.unlink(),
    ],
)
def test_bytes_that_cannot_be_placed_are_thrown_away(server, tmp_path, spoil):
    spoil(under_way(tmp_path, url := server.has('a.bin', {}), OTHER[:1000]))
    assert get(url, tmp_path / 'a.bin', sha256=SHA).read_bytes() == DATA


def test_bytes_from_another_address_are_not_gone_on_with(server, tmp_path):
    under_way(tmp_path, 'https://elsewhere.org/a.bin', OTHER[:1000])
    assert get(server.has('a.bin', {}), tmp_path / 'a.bin').read_bytes() == DATA
    assert server.asked[0]['range'] is None


def test_a_file_that_is_there_and_wrong_is_not_overwritten(server, tmp_path):
    (tmp_path / 'a.bin').write_bytes(b'mine')
    said = refused(get, server.has('a.bin', {}), tmp_path / 'a.bin', sha256=SHA)
    assert 'Move it away' in said and (tmp_path / 'a.bin').read_bytes() == b'mine' and server.asked == []


def test_two_processes_do_not_write_one_file(server, tmp_path):
    with only_one(tmp_path / 'a.bin'):
        assert 'another process' in refused(get, server.has('a.bin', {}), tmp_path / 'a.bin')


# What servers answer


@pytest.mark.parametrize(
    'status, said',
    [
        (404, 'has moved'),
        (410, 'taken away'),
        (403, 'accepted agreement'),
        (401, 'sign-in'),
        (418, 'in a browser'),
    ],
)
def test_a_refusal_is_said_in_words_and_not_repeated(server, tmp_path, status, said):
    url = server.has('a.bin', dict(status=status))
    error = refused(get, url, tmp_path / 'a.bin')
    assert url in error
    assert str(status) in error
    assert said in error
    assert len(server.asked) == 1
    assert names(tmp_path) == []


@pytest.mark.parametrize('status', [500, 502, 503, 429, 408])
def test_a_busy_server_is_asked_again(server, tmp_path, status, monkeypatch):
    paused = []
    monkeypatch.setattr(time, 'sleep', paused.append)
    url = server.has(
        'a.bin',
        dict(status=status),
        dict(status=status, headers=[('Retry-After', '7')]),
        dict(status=status, headers=[('Retry-After', '99999')]),
        {},
    )
    assert get(url, tmp_path / 'a.bin', wait=1).read_bytes() == DATA and paused == [1, 7, 120]


def test_pauses_grow_and_end(server, tmp_path, monkeypatch):
    paused = []
    monkeypatch.setattr(time, 'sleep', paused.append)
    assert '500' in refused(get, server.has('a.bin', dict(status=500)), tmp_path / 'a.bin', wait=1, retries=9)
    assert paused == [1, 2, 4, 8, 16, 32, 64, 120, 120]


def test_redirects_are_followed_with_the_range(server, tmp_path):
    server.has('b.bin', dict(cut=200_000), {})
    url = server.has('a.bin', dict(location='/b.bin'))
    assert get(url, tmp_path / 'a.bin').read_bytes() == DATA
    assert [a['range'] for a in server.asked] == [None, None, 'bytes=200000-', 'bytes=200000-']


def test_a_redirect_loop_ends(server, tmp_path):
    assert 'without end' in refused(get, server.has('a.bin', dict(location='/a.bin')), tmp_path / 'a.bin')
    assert len(server.asked) == 10


@pytest.mark.parametrize(
    'target', ['http://openi.nlm.nih.gov/x', 'ftp://127.0.0.1/x', 'file:///etc/passwd', 'http://[bad']
)
def test_redirects_lead_only_to_encrypted_addresses(server, tmp_path, target):
    said = refused(get, server.has('a.bin', dict(location=target)), tmp_path / 'a.bin')
    assert f'redirects to {target}, which is not an https address' in said or 'Invalid IPv6' in said
    assert names(tmp_path) == []


def test_only_https_is_asked_for(tmp_path):
    for url in ('http://openi.nlm.nih.gov/x', 'ftp://host/x', 'file:///etc/passwd', 'x', ''):
        assert 'https' in refused(get, url, tmp_path / 'x')


def test_a_server_that_compresses_when_allowed_sends_the_file_as_it_is(server, tmp_path):
    packed = gzip.compress(DATA)
    assert (
        get(
            server.has(
                'a.tgz',
                dict(data=packed, encoding='x-gzip', cut=100_000),
                dict(data=packed, encoding='x-gzip'),
            ),
            tmp_path / 'a.tgz',
        ).read_bytes()
        == packed
    )
    assert 'compresses' in refused(
        get, server.has('a.npz', dict(data=packed, encoding='gzip')), tmp_path / 'a.npz'
    )
    assert names(tmp_path) == ['a.tgz']


def test_a_web_page_is_not_taken_for_the_file(server, tmp_path):
    assert 'web page' in refused(
        get,
        server.has('a.tgz', dict(data=b'<html>Sign in', kind='text/html; charset=utf-8')),
        tmp_path / 'a.tgz',
    )
    assert names(tmp_path) == []


def test_proxies_are_not_asked_for_this_machine(server, tmp_path, monkeypatch):
    for name in ('http_proxy', 'HTTP_PROXY', 'https_proxy', 'HTTPS_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.setenv(name, 'http://127.0.0.1:9')
    for name in ('no_proxy', 'NO_PROXY'):
        monkeypatch.delenv(name, raising=False)
    assert get(server.has('a.bin', {}), tmp_path / 'a.bin').read_bytes() == DATA
    said = refused(get, 'https://cxr-lib.invalid/a.bin', tmp_path / 'b.bin', retries=0)  # for others they are
    assert 'proxy' in said


def test_no_network_is_said_in_words(tmp_path, monkeypatch):
    for name in ('http_proxy', 'HTTP_PROXY', 'https_proxy', 'HTTPS_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.delenv(name, raising=False)

    def unknown(*args, **kw):
        raise socket.gaierror(-3, 'Temporary failure in name resolution')

    monkeypatch.setattr(socket, 'getaddrinfo', unknown)
    said = refused(get, 'https://cxr-lib.invalid/a.bin', tmp_path / 'a.bin', retries=1)
    assert 'cannot be resolved' in said
    assert 'https://cxr-lib.invalid/a.bin' in said
    assert 'Check the network' in said
    assert str(tmp_path / 'a.bin') in said
    assert names(tmp_path) == []


def test_a_port_where_nothing_listens_is_said_in_words(tmp_path):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    assert 'refuses connections' in refused(
        get, f'http://127.0.0.1:{port}/a.bin', tmp_path / 'a.bin', retries=0
    )


# The disk


def test_a_file_that_will_not_fit_is_not_begun(server, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda p: SimpleNamespace(free=399_999))
    url = server.has('a.bin', {})
    assert '400.0 kB free' in refused(get, url, tmp_path / 'a.bin')
    under_way(tmp_path, url, DATA[:1])  # the byte that is there needs no room
    assert get(url, tmp_path / 'a.bin').read_bytes() == DATA


def test_a_disk_that_fills_up_keeps_what_came(server, tmp_path, monkeypatch):
    def full(fd):
        raise OSError(errno.ENOSPC, 'No space left on device')

    url = server.has('a.bin', dict(cut=200_000, length=False), {})
    with monkeypatch.context() as m:
        m.setattr(os, 'fsync', full)
        said = refused(get, url, tmp_path / 'a.bin')
    assert 'Make room' in said and '200.0 kB are kept' in said
    assert get(url, tmp_path / 'a.bin').read_bytes() == DATA and server.sent() == len(DATA)


def test_a_folder_that_cannot_be_is_said_in_words(server, tmp_path):
    (tmp_path / 'file').write_text('')
    assert 'another folder' in refused(get, server.has('a.bin', {}), tmp_path / 'file' / 'a.bin')


def test_the_bar_and_the_retries_go_to_standard_error(server, tmp_path, capfd):
    get(server.has('a.bin', dict(cut=200_000), {}), tmp_path / 'a.bin', sha256=SHA, progress=True)
    out, err = capfd.readouterr()
    assert out == ''
    assert 'a.bin' in err
    assert '400k/400k' in err
    assert 'cut; trying again' in err
    assert 'checking a.bin' in err
    get(server.has('b.bin', dict(cut=200_000), {}), tmp_path / 'b.bin', sha256=SHA)
    assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize(
    'checksum', ['sha256:12', 'sha1:' + '0' * 40, '0' * 64, 'md5:' + 'g' * 32, 'sha256:', '']
)
def test_a_checksum_that_is_none_is_refused(tmp_path, checksum):
    with pytest.raises(ValueError, match='expected'):
        parse_checksum(checksum)


# Archives

PLAIN = {'images/a.png': b'A' * 1000, 'images/deep/b.png': b'B' * 2000, 'read me.txt': b''}


def tgz(path, members, add=None):
    with tarfile.open(path, 'w:gz') as tar:
        for name, data in members.items():
            m = tarfile.TarInfo(name)
            m.size, m.mtime, m.mode = len(data), 1_500_000_000, 0o4755
            tar.addfile(m, io.BytesIO(data))
        for m in add or ():
            tar.addfile(m)
    return path


def zipped(path, members, mode=None, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, 'w', compression) as z:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = compression
            info.filename = name
            if mode:
                info.create_system, info.external_attr = 3, mode << 16
            z.writestr(info, data)
    return path


def special(kind, name='odd', link=''):
    m = tarfile.TarInfo(name)
    m.type, m.linkname = kind, link
    return m


@pytest.mark.parametrize('make', [tgz, zipped])
def test_an_archive_is_unpacked_as_it_is(tmp_path, make):
    archive = make(tmp_path / 'a', PLAIN)
    done = unpack(archive, tmp_path / 'out', progress=False)
    assert {p.relative_to(tmp_path / 'out').as_posix(): p.read_bytes() for p in done} == PLAIN
    assert names(tmp_path / 'out') == [
        'images',
        'images/a.png',
        'images/deep',
        'images/deep/b.png',
        'read me.txt',
    ]
    assert not any(p.stat().st_mode & (stat.S_ISUID | stat.S_IXUSR) for p in done)


@pytest.mark.parametrize('make', [tgz, zipped])
def test_what_is_unpacked_already_is_not_written_again(tmp_path, make):
    archive = make(tmp_path / 'a', PLAIN)
    first = [p.stat().st_ino for p in unpack(archive, tmp_path / 'out', progress=False)]
    (tmp_path / 'out/images/a.png').unlink()
    (tmp_path / 'out/images/a.png').write_bytes(b'A' * 999)
    again = unpack(archive, tmp_path / 'out', progress=False)
    assert [p.read_bytes() for p in again] == list(PLAIN.values())
    assert [p.stat().st_ino for p in again][1:] == first[1:]


EVIL = [
    '../evil',
    '/evil',
    'images/../../evil',
    '..',
    'C:evil',
    'C:/evil',
    'a\\..\\..\\evil',
    '\\\\host\\evil',
]


@pytest.mark.parametrize('name', EVIL)
@pytest.mark.parametrize('make', [tgz, zipped])
def test_no_member_leaves_the_folder(tmp_path, make, name):
    archive = make(tmp_path / 'a', {**PLAIN, name: b'evil'})
    assert 'outside' in refused(unpack, archive, tmp_path / 'in' / 'out', progress=False)
    assert names(tmp_path) == ['a', 'in', 'in/out']  # nothing of the good members either


@pytest.mark.parametrize(
    'member',
    [
        special(tarfile.SYMTYPE, link='/etc'),
        special(tarfile.SYMTYPE, link='images/a.png'),
        special(tarfile.LNKTYPE, link='/etc/passwd'),
        special(tarfile.LNKTYPE, link='images/a.png'),
        special(tarfile.CHRTYPE),
        special(tarfile.BLKTYPE),
        special(tarfile.FIFOTYPE),
    ],
    ids=lambda m: f'{m.type}{m.linkname}',
)
def test_links_and_devices_are_refused(tmp_path, member):
    assert (
        'is a link'
        in (said := refused(unpack, tgz(tmp_path / 'a', PLAIN, [member]), tmp_path / 'out', progress=False))
        or 'is a device' in said
    )
    assert names(tmp_path / 'out') == []


@pytest.mark.parametrize(
    'mode, said',
    [
        (stat.S_IFLNK | 0o777, 'is a link'),
        (stat.S_IFIFO | 0o644, 'is a device'),
        (stat.S_IFCHR | 0o644, 'is a device'),
    ],
)
def test_links_and_devices_in_zip_are_refused(tmp_path, mode, said):
    assert said in refused(
        unpack, zipped(tmp_path / 'a', {'odd': b'/etc/passwd'}, mode), tmp_path / 'out', progress=False
    )
    assert names(tmp_path / 'out') == []


def test_a_link_that_is_there_already_is_not_followed_out(tmp_path):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'else').mkdir()
    (tmp_path / 'out/images').symlink_to(tmp_path / 'else')
    assert 'outside' in refused(unpack, tgz(tmp_path / 'a', PLAIN), tmp_path / 'out', progress=False)
    assert names(tmp_path / 'else') == []
    (tmp_path / 'out/images').unlink()
    (tmp_path / 'out/images').mkdir()
    (tmp_path / 'else/a.png').write_bytes(b'mine')
    (tmp_path / 'out/images/a.png').symlink_to(tmp_path / 'else/a.png')
    for make in (tgz, zipped):
        assert 'outside' in refused(unpack, make(tmp_path / 'a', PLAIN), tmp_path / 'out', progress=False)
    assert (tmp_path / 'else/a.png').read_bytes() == b'mine'


@pytest.mark.parametrize('make', [tgz, zipped])
def test_bombs_are_refused_before_anything_is_written(tmp_path, make):
    bomb = make(tmp_path / 'a', {'a': b'', 'b': bytes(30_000_000)})
    assert bomb.stat().st_size < 100_000
    assert '20.0 MB' in refused(unpack, bomb, tmp_path / 'out', progress=False, max_bytes=20_000_000)
    many = make(tmp_path / 'b', {f'{i}': b'' for i in range(200)})
    assert 'more than 199 files' in refused(unpack, many, tmp_path / 'out', progress=False, max_files=199)
    assert names(tmp_path / 'out') == []
    assert len(unpack(many, tmp_path / 'out', progress=False, max_files=200)) == 200


def test_an_archive_that_will_not_fit_is_not_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda p: SimpleNamespace(free=2999))
    assert 'Make room' in refused(unpack, tgz(tmp_path / 'a', PLAIN), tmp_path / 'out', progress=False)
    assert names(tmp_path / 'out') == []


def test_a_disk_that_fills_up_while_unpacking_leaves_whole_files_only(tmp_path, monkeypatch):
    copy, calls = shutil.copyfileobj, []

    def full(source, target, *more):
        calls.append(1)
        if len(calls) == 2:
            target.write(b'B')
            raise OSError(errno.ENOSPC, 'No space left on device')
        copy(source, target, *more)

    with monkeypatch.context() as m:
        m.setattr(shutil, 'copyfileobj', full)
        assert 'Make room' in refused(unpack, tgz(tmp_path / 'a', PLAIN), tmp_path / 'out', progress=False)
    assert names(tmp_path / 'out') == ['images', 'images/a.png', 'images/deep']
    assert [p.read_bytes() for p in unpack(tmp_path / 'a', tmp_path / 'out', progress=False)] == list(
        PLAIN.values()
    )


@pytest.mark.parametrize('make', [tgz, zipped])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_archive_is_said_to_be_damaged_and_writes_nothing(make, data):
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        (d / 'in').mkdir()
        archive = make(d / 'in/a', {'images/a.png': DATA[:3000], 'b.txt': b'words ' * 500})
        whole = bytearray(archive.read_bytes())
        if data.draw(st.booleans()):
            whole = whole[: data.draw(st.integers(0, len(whole) - 1))]
        else:
            whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
        archive.write_bytes(whole)
        try:
            done = unpack(archive, d / 'in/out', progress=False)
        except DownloadError as e:
            assert str(archive) in str(e) and names(d / 'in/out') == []
        else:
            assert all(p.is_relative_to(d / 'in/out') for p in done)
        assert names(d)[0] == 'in' and all(n.startswith('in') for n in names(d))


@pytest.mark.parametrize('lost', [1, 4, 8])
def test_a_tar_whose_end_is_missing_is_damaged_even_if_all_members_are_there(tmp_path, lost):
    archive = tgz(tmp_path / 'a', PLAIN)
    archive.write_bytes(archive.read_bytes()[:-lost])
    assert 'is damaged' in refused(unpack, archive, tmp_path / 'out', progress=False)
    assert names(tmp_path / 'out') == []


def test_other_things_that_are_no_archive_are_refused(tmp_path):
    for data in (b'', b'<html>', gzip.compress(b'no tar'), b'PK\x03\x04'):
        (tmp_path / 'a').write_bytes(data)
        assert 'download it again' in refused(unpack, tmp_path / 'a', tmp_path / 'out', progress=False)
    assert 'no archive' in refused(unpack, tmp_path / 'none', tmp_path / 'out', progress=False)


SLOW = '''import sys, time, shutil
from cxr_lib.data.archives import unpack
copy = shutil.copyfileobj
def slow(source, target, n): copy(source, target, n); target.flush(); time.sleep(.2)
shutil.copyfileobj = slow
unpack(sys.argv[1], sys.argv[2], progress=False)'''


def test_after_kill_9_unpacking_goes_on(tmp_path):
    members = {f'images/{i}.png': bytes([i]) * 1000 for i in range(200)}
    archive, out = tgz(tmp_path / 'a', members), tmp_path / 'out'
    child = subprocess.Popen(
        [sys.executable, '-c', SLOW, str(archive), str(out)], env=os.environ | {'PYTHONPATH': str(ROOT)}
    )
    until(lambda: len(list(out.glob('images/*.png'))) >= 3, 'the child has written nothing')
    child.kill()
    child.wait(60)
    there = {p.name: p.stat().st_ino for p in out.glob('images/*.png')}
    assert 3 <= len(there) < 200
    assert all((out / 'images' / n).read_bytes() == members[f'images/{n}'] for n in there)
    done = unpack(archive, out, progress=False)
    assert [p.read_bytes() for p in done] == list(members.values())
    assert all((out / 'images' / n).stat().st_ino == i for n, i in there.items())
    assert [n for n in names(out) if '/' not in n] == ['images']


# What there is to fetch


def test_every_address_is_encrypted_and_every_checksum_well_formed():
    files = [f for s in DOWNLOADS.values() for f in s.files + s.images]
    for f in files:
        assert check_address(f.url) and f.size > 0 and (f.checksum is None or parse_checksum(f.checksum))
    assert len({f.url for f in files}) == len(files) == 20
    assert {f.name for f in files if not f.checksum} == {
        'NLMCXR_png.tgz',
        'covid-chestxray-dataset.zip',
    } and all(
        f.unpack is not None for f in files if not f.checksum
    )  # what has no checksum has an archive's CRC
    for s in DOWNLOADS.values():
        assert s.title and s.terms and bool(s.files) != bool(s.by_hand)
    assert all(DOWNLOADS[n].restricted for n in ('openi', 'covid', 'chexpert', 'mimic'))


def test_the_command_to_run_next_names_a_data_set_that_cxr_run_knows():
    from cxr_lib.data.catalogue import DATASETS

    assert {s.dataset for s in DOWNLOADS.values()} <= set(DATASETS)


@pytest.mark.skipif(not (SHARED / 'openi').is_dir(), reason='needs ../shared/data/openi')
def test_the_open_i_reports_arrive_unmodified_from_a_line_that_breaks(server, tmp_path):
    source = DOWNLOADS['openi']
    files = []
    for f in source.files:
        data = (SHARED / 'openi' / f.name).read_bytes()
        url = server.has(f.name, dict(data=data, cut=100_000), dict(data=data))
        files.append(RemoteFile(f.name, url, f.size, f.checksum))
        assert f.size == len(data)
    local = {
        'openi': Source(
            source.title, source.dataset, source.licence, source.terms, source.restricted, tuple(files)
        )
    }
    root = fetch(
        'openi', tmp_path / 'openi', accept_licence=True, progress=False, downloads=local, say=lambda s: None
    )
    assert names(root) == ['NLMCXR_reports.tgz', 'openi_gld_std14.csv']
    assert server.sent() == sum(f.size for f in source.files)
    with tarfile.open(root / 'NLMCXR_reports.tgz') as tar:
        assert sum(m.name.endswith('.xml') for m in tar) == 3955


# The command line


@pytest.fixture
def toy(server, tmp_path, monkeypatch):
    "A project folder, and a collection on the loopback server in place of Open-i's"
    films = tgz(tmp_path / 'films.tgz', PLAIN).read_bytes()
    reports = RemoteFile('reports.bin', server.has('reports.bin', {}), len(DATA), f'sha256:{SHA}')
    monkeypatch.setitem(
        DOWNLOADS,
        'openi',
        Source(
            'Toy reports',
            'openi',
            'CC BY-NC-ND 4.0',
            'No commercial use.',
            True,
            (reports,),
            (RemoteFile('films.tgz', server.has('films.tgz', dict(data=films)), 500, unpack='films'),),
        ),
    )
    home = tmp_path / 'home'
    home.mkdir()
    (home / 'settings.ini').write_text('[DEFAULT]\nlib_name = cxr_lib\n')
    monkeypatch.chdir(home)
    monkeypatch.delenv('CXR_HOME', raising=False)
    return home


def test_the_list_names_sizes_and_licences_and_imports_nothing_heavy():
    code = "import sys; from cxr_lib.running import command as r; assert r.main(['download']) == 0; "
    code += "heavy = 'torch pandas numpy requests tqdm filelock'.split(); print([m for m in heavy if m in sys.modules])"
    out = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout
    assert out.endswith('[]\n')
    for name, source in DOWNLOADS.items():
        line = next(s for s in out.split('\n') if s.split()[:1] == [name])
        assert source.title in line and source.licence in line and ('by hand' in line) == bool(source.by_hand)


def test_the_command_fetches_into_data_and_says_what_to_run_next(toy, capsys):
    assert runner.main(['download', 'openi', '--accept-licence']) == 0
    out = capsys.readouterr().out
    assert 'No commercial use.' in out
    assert '400.0 kB' in out
    assert 'sha256 is right' in out
    assert out.endswith('Next: cxr run --dataset openi --root data/openi\n')
    assert names(toy / 'data') == ['openi', 'openi/reports.bin']


def test_images_are_fetched_when_asked_for_and_not_again_when_their_archive_is_deleted(toy, server, capsys):
    args = ['download', 'openi', '--accept-licence', '--images', '--to', 'else where']
    assert runner.main(args) == 0
    assert capsys.readouterr().out.endswith("--root 'else where'\n")
    (toy / 'else where/films.tgz').unlink()
    server.asked.clear()
    assert runner.main(args) == 0 and server.asked == [] and 'unpacked already' in capsys.readouterr().out
    assert (toy / 'else where/films/images/a.png').read_bytes() == PLAIN['images/a.png']


def test_terms_have_to_be_accepted(toy, server, capsys):
    assert runner.main(['download', 'openi']) == 2
    out, err = capsys.readouterr()
    assert 'No commercial use.' in out
    assert '--accept-licence' in err
    assert server.asked == []
    assert names(toy) == ['settings.ini']


@pytest.mark.parametrize(
    'args, said',
    [
        (['opni'], ["unknown data set 'opni'", "did you mean 'openi'?", 'chexpert']),
        (
            ['chexpert'],
            ['not fetched by a program', 'Register at https://', 'cxr run --dataset chexpert --root FOLDER'],
        ),
        (['mimic', '--accept-licence'], ['not fetched by a program', 'credentialed', 'physionet.org']),
        (['nih', '--images'], ['no images apart']),
    ],
)
def test_what_cannot_be_fetched_is_said_in_words(toy, capsys, args, said):
    assert runner.main(['download', *args]) == 2
    err = capsys.readouterr().err
    assert all(s in err for s in said) and names(toy) == ['settings.ini']


def test_errors_end_with_2_and_without_a_traceback(toy, server, capsys):
    server.answers['reports.bin'] = [dict(status=404)]
    assert runner.main(['download', 'openi', '--accept-licence']) == 2
    err = capsys.readouterr().err
    assert 'cxr: ' in err and '404' in err and 'Traceback' not in err and names(toy / 'data/openi') == []


def test_a_collection_that_will_not_fit_is_not_begun(toy, server, capsys, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda p: SimpleNamespace(free=10))
    assert runner.main(['download', 'openi', '--accept-licence']) == 2
    assert 'Make room' in capsys.readouterr().err and server.asked == [] and not (toy / 'data').exists()


COMMAND = '''import sys
from cxr_lib.running import command as runner
from cxr_lib.data.download import DOWNLOADS, RemoteFile, Source
file = RemoteFile('reports.bin', sys.argv[1], 400_000, 'sha256:' + sys.argv[2])
DOWNLOADS['openi'] = Source('Toy', 'openi', 'free', 'Any use.', files=(file,))
sys.exit(runner.main(['download', 'openi', '--to', 'here']))'''


@pytest.mark.skipif(os.name == 'nt', reason='Ctrl-C is sent as a signal')
def test_ctrl_c_keeps_what_came_and_says_so(server, tmp_path):
    over, part = threading.Event(), tmp_path / 'here/reports.bin.part'
    url = server.has('reports.bin', dict(hold=(300_000, over)), {})
    run = dict(
        args=[sys.executable, '-c', COMMAND, url, SHA],
        cwd=tmp_path,
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        text=True,
    )
    # a test run in the background ignores Ctrl-C, and its children would too
    heed = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    child = subprocess.Popen(**run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heed)
    try:
        until(lambda: part.exists() and part.stat().st_size >= 200_000, 'the child has written nothing')
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=60)
    finally:
        over.set()
        child.kill()
    assert child.returncode == 130 and 'the same command goes on from there' in err and 'Traceback' not in err
    have = part.stat().st_size
    server.asked.clear()
    done = subprocess.run(**run, capture_output=True, timeout=120)
    assert done.returncode == 0 and 'Next: cxr run --dataset openi --root here' in done.stdout
    assert (tmp_path / 'here/reports.bin').read_bytes() == DATA and server.sent() == len(DATA) - have
