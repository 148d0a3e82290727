"""Many clients at once: nothing is lost, nothing is wrong."""

import os
from concurrent.futures import ThreadPoolExecutor

import requests
from toy_service import NOTES, as_dicom, as_file, film, form, largest_difference

from cxr_lib.data.elements import FileInMemory

pytest_plugins = ('service_fixtures',)

REQUESTS = int(
    os.environ.get('CXR_LOAD_REQUESTS', 200)
)  # 2000 for the full number; benchmarks/service.py times it
CLIENTS = 32


def questions(n):
    "(status, name, data, note): of every eight, one upload is damaged and one is no image"
    for k in range(n):
        pixels, note = film(k % 24), NOTES[k % len(NOTES)]
        if k % 8 == 6:
            yield 422, 'cut.png', as_file(pixels)[:-200], note
        elif k % 8 == 7:
            yield 422, 'page.html', b'<html>', note
        elif k % 3 == 0:
            yield 200, 'film.dcm', as_dicom(pixels), note
        else:
            yield 200, 'film.png', as_file(pixels), note


def test_no_answer_is_lost_and_none_is_wrong(address, predictor):
    asked = list(questions(REQUESTS))
    session = requests.Session()

    def ask(question):
        _, name, data, note = question
        return session.post(f'{address}/v1/predictions', **form(data, note, name), timeout=120)

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(ask, asked))
    assert [a.status_code for a in answers] == [status for status, *_ in asked]
    own, worst = {}, 0.0
    for answer, (status, name, data, note) in zip(answers, asked, strict=True):
        if status == 200:
            key = (name, data, note)
            if key not in own:
                own[key] = predictor(FileInMemory(name, data), note=note)
            worst = max(worst, largest_difference(answer.json(), own[key]))
    print(f'{len(answers)} answers, largest difference {worst:.1e}')
    assert worst < 1e-6
