"""The REST API: its answers, its problems, who may ask, and what becomes of an upload."""

import asyncio
import base64
import logging
import socket
import tempfile
import time

import httpx
import numpy as np
import pytest
import requests
from toy_service import as_dicom, as_file, film, form, largest_difference

from cxr_lib.data.elements import FileInMemory
from cxr_lib.prediction.schema import Prediction
from cxr_lib.prediction.serving import Limits
from cxr_lib.service import make_app, running_service

pytest_plugins = ('service_fixtures',)

URL = '/v1/predictions'
PNG = as_file(film(0))


def ask(address, path=URL, **more):
    return requests.post(address + path, timeout=60, **more)


def in_process(app, *calls, host='localhost'):
    "Responses of an application without a server: calls are (method, path, arguments)"

    async def all_of_them():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url=f'http://{host}') as client:
            return [await client.request(method, path, **more) for method, path, more in calls]

    return asyncio.run(all_of_them())


def assert_problem(response, status, kind, said=''):
    "A problem in the form of RFC 9457, with a remedy"
    assert response.status_code == status, response.text
    assert response.headers['content-type'] == 'application/problem+json'
    problem = response.json()
    assert problem['type'] == f'urn:cxr_lib:problem:{kind}'
    assert problem['status'] == status and problem['title'] and problem['remedy']
    assert said in problem['detail']


def test_a_form_is_answered_as_the_library_answers(address, predictor):
    note = 'Fever and cough. Known heart failure.'
    answer = ask(address, **form(PNG, note)).json()
    own = predictor(FileInMemory('film.png', PNG), note=note)
    assert largest_difference(answer, own) < 1e-6
    read = Prediction.model_validate(answer)
    assert [s.text for s in read.sentences] == [s.text for s in own.sentences]
    assert [w.code for w in read.warnings] == [w.code for w in own.warnings]
    assert (read.image, read.has_note) == ('film.png', True)


def test_json_is_answered_like_a_form(address):
    question = dict(image=base64.b64encode(PNG).decode(), note='Fever.', name='film.png')
    answers = [ask(address, json=question).json(), ask(address, **form(PNG, 'Fever.')).json()]
    assert answers[0]['observations'] == answers[1]['observations']


def test_a_note_alone_is_answered(address, predictor):
    answer = ask(address, json=dict(note='Fever.')).json()
    assert largest_difference(answer, predictor(note='Fever.')) < 1e-6
    assert answer['observations'][0]['probability']['fused'] is None


def test_sentences_may_be_left_out(address):
    assert ask(address, **form(PNG, 'Fever. Cough.'), params=dict(sentences=False)).json()['sentences'] == []


@pytest.mark.parametrize(
    'status, kind, said, request_of',
    [
        (422, 'unreadable-image', 'not an image file', form(b'<html>', name='page.html')),
        (422, 'unreadable-image', 'film.png', form(PNG[:-60])),
        (422, 'unreadable-image', 'film.png', form(b'')),
        (422, 'invalid', 'nothing to predict from', dict(json={})),
        (422, 'invalid', "a field 'imge'", dict(files=dict(imge=('a.png', PNG)))),
        (422, 'invalid', 'image has to be a file', dict(files=dict(image=(None, 'text')))),
        (422, 'invalid', 'expected base64', dict(json=dict(image='?'))),
        (422, 'invalid', 'note', dict(json=dict(note=5))),
        (422, 'invalid', 'characters; at most', dict(json=dict(note='x' * 200_000))),
        (422, 'invalid', 'nested', dict(data='[' * 9999, headers={'content-type': 'application/json'})),
        (422, 'invalid', 'format', form(PNG) | dict(params=dict(format='pdf'))),
        (400, 'bad-request', 'form', dict(data='x', headers={'content-type': 'multipart/form-data'})),
        (415, 'wrong-media-type', '', dict(data='x', headers={'content-type': 'text/plain'})),
        (406, 'no-such-format', '', form(PNG) | dict(headers={'Accept': 'text/html'})),
        (406, 'no-such-format', 'DICOM', form(PNG) | dict(params=dict(format='sr'))),
    ],
)
def test_a_bad_request_is_a_problem_with_a_remedy(address, status, kind, said, request_of):
    assert_problem(ask(address, **request_of), status, kind, said)


def test_an_unknown_path_and_a_wrong_method_are_problems(address):
    assert_problem(requests.get(f'{address}/v2', timeout=10), 404, 'not-found')
    response = requests.get(address + URL, timeout=10)
    assert_problem(response, 405, 'wrong-method')
    assert response.headers['allow'] == 'POST'


def test_health_readiness_and_the_model(address, predictor):
    assert requests.get(f'{address}/health', timeout=10).json() == {'status': 'ok'}
    assert requests.get(f'{address}/ready', timeout=10).json() == {'status': 'ready'}
    model = requests.get(f'{address}/v1/model', timeout=10).json()
    assert model['model'] == predictor.facts.model_dump()
    assert model['limits']['upload_bytes'] == Limits().upload_bytes


def test_a_body_that_is_too_large_is_refused_before_it_has_all_arrived(predictor):
    with running_service(predictor, Limits(upload_bytes=10_000), page=False) as address:
        assert_problem(ask(address, **form(bytes(20_000))), 413, 'too-large', 'at most 10,000')
        assert requests.get(f'{address}/health', timeout=10).ok
        host, port = address.removeprefix('http://').split(':')
        with socket.create_connection((host, int(port)), 10) as stream:
            head = f'POST {URL} HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n'
            stream.sendall(head.encode() + 3 * (b'1000\r\n' + bytes(4096) + b'\r\n'))  # and no end
            assert stream.recv(99).startswith(b'HTTP/1.1 413')


def test_a_body_that_never_ends_is_given_up(predictor):
    with running_service(predictor, Limits(body_seconds=0.3), page=False) as address:
        host, port = address.removeprefix('http://').split(':')
        with socket.create_connection((host, int(port)), 10) as stream:
            stream.sendall(f'POST {URL} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 99\r\n\r\nabc'.encode())
            assert stream.recv(99).startswith(b'HTTP/1.1 408')


def test_pixels_are_counted_before_they_are_decoded(predictor, monkeypatch):
    app = make_app(predictor, Limits(pixels=1000), page=False)
    monkeypatch.setattr('cxr_lib.prediction.load.read_radiograph', lambda *_: pytest.fail('decoded'))
    for name, data in (('film.png', PNG), ('film.dcm', as_dicom(film(0)))):
        (response,) = in_process(app, ('POST', URL, form(data, name=name)))
        assert_problem(response, 422, 'unreadable-image', 'declares 1,920 pixels; at most 1,000')


def slow(predictor, seconds):
    "The same model, asleep for a while before each batch"
    from cxr_lib.prediction import serving

    def answer(own, questions, real=serving.answer_batch):
        time.sleep(seconds)
        return real(own, questions)

    return answer


def at_the_same_time(app, n):
    "Responses to n equal requests"

    async def crowd():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url='http://localhost') as client:
            return await asyncio.gather(*(client.post(URL, json=dict(note='Fever.')) for _ in range(n)))

    return asyncio.run(crowd())


def test_who_comes_when_too_many_wait_is_told_to_come_back(predictor, monkeypatch):
    monkeypatch.setattr('cxr_lib.prediction.serving.answer_batch', slow(predictor, 0.3))
    responses = at_the_same_time(make_app(predictor, Limits(waiting=3, batch=1), page=False), 12)
    refused = [r for r in responses if r.status_code == 429]
    assert len(refused) >= 8 and all(r.headers['retry-after'] == '1' for r in refused)
    assert_problem(refused[0], 429, 'busy')
    assert sum(r.status_code == 200 for r in responses) == 12 - len(refused) >= 3


def test_a_model_that_is_too_slow_is_given_up(predictor, monkeypatch):
    monkeypatch.setattr('cxr_lib.prediction.serving.answer_batch', slow(predictor, 0.5))
    (response,) = at_the_same_time(make_app(predictor, Limits(seconds=0.1), page=False), 1)
    assert_problem(response, 503, 'no-answer-in-time')


def test_only_loopback_names_and_the_own_origin_are_answered(predictor):
    app = make_app(predictor, page=False)
    (foreign,) = in_process(app, ('GET', '/v1/model', {}), host='rebound.example')
    assert_problem(foreign, 421, 'foreign-host')
    origin = dict(headers={'Origin': 'https://rebound.example'})
    (other,) = in_process(app, ('POST', URL, form(PNG) | origin))
    assert_problem(other, 403, 'foreign-origin')
    own = dict(headers={'Origin': 'http://localhost'})
    assert in_process(app, ('POST', URL, form(PNG) | own))[0].status_code == 200


def test_a_token_is_needed_where_there_is_one(predictor):
    app = make_app(predictor, token='open sesame', page=False)
    right, wrong = ({'Authorization': f'Bearer {t}'} for t in ('open sesame', 'open barley'))
    calls = [('GET', '/v1/model', dict(headers=h)) for h in (right, wrong, {})]
    ok, bad, none = in_process(app, *calls, host='film.example')
    assert ok.status_code == 200
    assert_problem(bad, 401, 'token-needed')
    assert_problem(none, 401, 'token-needed')
    assert none.headers['www-authenticate'] == 'Bearer'


def test_uploads_stay_in_memory_and_nothing_of_them_is_logged(predictor, monkeypatch, caplog, capfd):
    def on_disk(*_, **__):
        raise AssertionError('something was written to disk')

    for name in ('TemporaryFile', 'NamedTemporaryFile', 'mkstemp', '_TemporaryFileWrapper'):
        monkeypatch.setattr(tempfile, name, on_disk)
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, 'rollover', on_disk)
    large = as_file(film(3, 2000, 1500))
    assert len(large) > 2_000_000  # twice what starlette keeps in memory
    with caplog.at_level(logging.DEBUG), running_service(predictor, page=False) as address:
        dicom = as_dicom(film(1))
        for data, name in (
            (large, 'Mustermann.png'),
            (dicom, 'Mustermann.dcm'),
            (dicom[:900], 'Mustermann.dcm'),
        ):
            ask(address, **form(data, 'Erika Mustermann has a cough.', name))
        assert ask(address, **form(large, 'Fever.')).status_code == 200
    out, err = capfd.readouterr()
    own = [r.getMessage() for r in caplog.records if r.name.split('.')[0] not in ('urllib3', 'asyncio')]
    assert not [text for text in (out, err, *own) if 'Mustermann' in text or 'MRN4711' in text]


def test_a_dicom_header_stays_out_of_the_answer(address):
    answer = ask(address, **form(as_dicom(film(1)), name='film.dcm'))
    assert answer.status_code == 200
    for secret in ('Mustermann', 'Erika', 'MRN4711', 'Secret Street'):
        assert secret not in answer.text


def test_an_error_that_nobody_foresaw_shows_nothing_of_the_request(predictor, monkeypatch, caplog):
    def broken(*_):
        raise KeyError('Erika Mustermann')

    monkeypatch.setattr('cxr_lib.prediction.serving.answer_batch', broken)
    (response,) = at_the_same_time(make_app(predictor, page=False), 1)
    assert_problem(response, 500, 'failed')
    assert 'Mustermann' not in response.text + caplog.text
    assert 'KeyError in test_api.py' in caplog.text


def test_arrays_of_answers_are_finite(address):
    answer = ask(address, **form(PNG, 'Fever.')).json()
    values = [v for o in answer['observations'] for v in o['probability'].values()]
    assert np.isfinite(values).all()


def test_the_description_has_examples_and_no_page_from_elsewhere(address):
    described = requests.get(f'{address}/openapi.json', timeout=10).json()
    body = described['paths'][URL]['post']['requestBody']['content']
    assert all('example' in content for content in body.values())
    assert requests.get(f'{address}/docs', timeout=10).status_code == 404
