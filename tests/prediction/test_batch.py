"""Many images at once: what is read, what is listed, and that a kill changes no byte. Real images skip if absent."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from PIL import Image

from cxr_lib.evaluation.external import read_external
from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.prediction import batch
from cxr_lib.prediction.batch import RequestError, predict_files, requests_in, save_toy_model
from cxr_lib.prediction.load import load
from cxr_lib.prediction.schema import Prediction

SHARED = ROOT.parent / 'shared'
needs_data = pytest.mark.skipif(
    not (SHARED / 'data').is_dir(), reason='the shared real data (../shared/data) are not on this machine'
)
needs_cases = pytest.mark.skipif(
    not (SHARED / 'cases').is_dir(), reason='the shared cases (../shared/cases) are not on this machine'
)


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    return save_toy_model(tmp_path_factory.mktemp('model') / 'toy')


@pytest.fixture(scope='module')
def model(toy):
    return load(toy)


def write_films(folder, n):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 30), np.uint8)
        Image.fromarray(pixels).save(folder / f'{i:02d}.png')
    return folder


# What is asked for


def test_a_dicom_file_needs_no_ending_and_clutter_is_not_listed(tmp_path):
    write_films(tmp_path / 'a', 1)
    (tmp_path / 'a' / 'IM0001').write_bytes(bytes(128) + b'DICM' + bytes(40))
    (tmp_path / 'a' / '.DS_Store').write_bytes(b'x')
    (tmp_path / 'a' / 'report.pdf').write_bytes(b'%PDF')
    found = requests_in(tmp_path)
    assert [r.name for r in found.items] == ['a/00.png', 'a/IM0001']
    assert found.skipped == ('a/report.pdf',)


@pytest.mark.skipif(os.name == 'nt', reason='file names are text there')
def test_a_name_that_is_no_utf8_is_answered_and_written(tmp_path, model):
    film = write_films(tmp_path / 'in', 1) / '00.png'
    shutil.copy(film, os.fsdecode(os.fsencode(tmp_path / 'in') + b'/\xff.png'))
    outcome = predict_files(model, requests_in(tmp_path / 'in'), tmp_path / 'p.csv', tmp_path / 'p.json')
    assert outcome.answered == 2
    assert list(pd.read_csv(tmp_path / 'p.csv')['image']) == ['00.png', r'\udcff.png']


def test_notes_come_from_the_column_and_change_the_answer(tmp_path, model):
    write_films(tmp_path, 1)
    rows = 'image,note,other\n00.png,Fever and cough.,Known heart failure.\n00.png,,\n'
    (tmp_path / 'list.csv').write_text(rows)
    predict_files(model, requests_in(tmp_path / 'list.csv'), tmp_path / 'default.csv')
    predict_files(model, requests_in(tmp_path / 'list.csv', note_column='other'), tmp_path / 'other.csv')
    default, other = pd.read_csv(tmp_path / 'default.csv'), pd.read_csv(tmp_path / 'other.csv')
    assert list(default['has_note']) == [True, False]
    assert (default['Edema'] - other['Edema']).abs()[0] > 1e-4
    assert np.isclose(default['Edema'][1], other['Edema'][1])
    assert np.isclose(default['without_note/Edema'], other['without_note/Edema']).all()


@pytest.mark.parametrize(
    'given, said',
    [(dict(note='Fever.'), 'not both'), (dict(note_column='history'), r'missing column\(s\) history')],
)
def test_a_request_that_makes_no_sense_is_refused(tmp_path, given, said):
    (tmp_path / 'list.csv').write_text('image,note\n00.png,Fever.\n')
    with pytest.raises(ValueError, match=said):
        requests_in(tmp_path / 'list.csv', **given)


def test_an_empty_cell_for_the_image_names_its_row(tmp_path):
    (tmp_path / 'list.csv').write_text('image,note\n00.png,Fever.\n,Cough.\n')
    with pytest.raises(ValueError, match='list.csv row 2: image is'):
        requests_in(tmp_path / 'list.csv')


# What is answered


def test_failures_are_listed_with_reasons_and_the_rest_is_answered(tmp_path, model):
    films = write_films(tmp_path / 'films', 2)
    (films / 'cut.png').write_bytes((films / '00.png').read_bytes()[:300])
    (films / 'empty.jpg').write_bytes(b'')
    long = 'word ' * 5000
    table = f'image,note\n00.png,{long}\n01.png,\ncut.png,\nempty.jpg,\nabsent.png,\n'
    (films / 'list.csv').write_text(table)
    outcome = predict_files(model, requests_in(films / 'list.csv'), tmp_path / 'p.csv')
    assert outcome.answered == 1
    reasons = {f.image: f.reason for f in outcome.failures}
    for image, words in {
        '00.png': 'at most 20,000 are read',
        'cut.png': 'cannot be decoded',
        'empty.jpg': 'the file is empty',
        'absent.png': 'no such file',
    }.items():
        assert words in reasons[image]
    listed = pd.read_csv(tmp_path / 'p.csv.failures.csv')
    assert dict(zip(listed['image'], listed['reason'])) == reasons


def test_an_error_of_the_machine_stops_and_blames_no_image(tmp_path, model, monkeypatch):
    def lost(path, *_):
        raise OSError(5, 'Input/output error', str(path))

    monkeypatch.setattr('cxr_lib.prediction.load.read_radiograph', lost)
    with pytest.raises(OSError, match='Input/output error'):
        predict_files(model, requests_in(write_films(tmp_path / 'in', 3)), tmp_path / 'p.csv')
    assert not (tmp_path / 'p.csv').exists()


def test_json_is_an_object_for_one_image_and_a_list_for_more(tmp_path, model):
    films = write_films(tmp_path / 'in', 2)
    predict_files(model, requests_in(films / '00.png', note='Fever.'), json_file=tmp_path / 'one.json')
    predict_files(model, requests_in(films), json_file=tmp_path / 'two.json')
    one = Prediction.model_validate_json((tmp_path / 'one.json').read_text())
    two = [Prediction.model_validate(p) for p in json.loads((tmp_path / 'two.json').read_text())]
    assert [one.image, *(p.image for p in two)] == ['00.png', '00.png', '01.png']
    assert [s.text for s in one.sentences] == ['Fever.']


def test_the_table_is_read_as_any_models_predictions(tmp_path, model):
    films = write_films(tmp_path / 'in', 3)
    predict_files(model, requests_in(films), tmp_path / 'p.csv')
    table, found = pd.read_csv(tmp_path / 'p.csv'), read_external(tmp_path / 'p.csv')
    assert list(found) == list(OBSERVATIONS)
    assert np.allclose(found, table[list(OBSERVATIONS)])


@pytest.mark.parametrize('what', ['source', 'film', 'twice', 'folder'])
def test_no_output_takes_the_place_of_something(tmp_path, model, what):
    film = write_films(tmp_path / 'in', 1) / '00.png'
    (tmp_path / 'in' / 'list.csv').write_text('image\n00.png\n')
    before = film.read_bytes()
    requests = requests_in(tmp_path / 'in' / 'list.csv')
    out = {'source': requests.source, 'film': film, 'twice': tmp_path / 'a', 'folder': tmp_path}[what]
    with pytest.raises(RequestError):
        predict_files(model, requests, out, out if what == 'twice' else None)
    assert film.read_bytes() == before
    assert requests.source.read_text() == 'image\n00.png\n'


# A kill, and what follows it

SLOWLY = """
import sys, time
from cxr_lib.prediction import batch
from cxr_lib.prediction.load import load
answer = batch.answer_films
def slowly(*given):
    time.sleep(0.2)
    return answer(*given)
batch.answer_films = slowly
batch.predict_files(load(sys.argv[1]), batch.requests_in(sys.argv[2]), sys.argv[3], batch_size=2)
"""


def count_answers(model, requests, out, monkeypatch):
    "Answer, and count how many images went through the model"
    counted, answer = [], batch.answer_films
    monkeypatch.setattr(
        batch, 'answer_films', lambda p, r, *more: (counted.extend(x.name for x in r), answer(p, r, *more))[1]
    )
    outcome = predict_files(model, requests, out, batch_size=2)
    monkeypatch.setattr(batch, 'answer_films', answer)
    return outcome, counted


@pytest.mark.skipif(os.name == 'nt', reason='signals')
def test_a_killed_run_resumes_to_the_same_bytes(tmp_path, toy, model, monkeypatch):
    films = write_films(tmp_path / 'in', 21)
    (films / '05.png').write_bytes(b'no image')
    out, journal = tmp_path / 'p.csv', tmp_path / 'p.csv.journal'
    env = os.environ | {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, '-c', SLOWLY, *map(str, (toy, films, out))]
    process = subprocess.Popen(command, env=env, cwd=tmp_path)
    while not (journal.exists() and journal.read_bytes().count(b'\n') >= 5):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    with journal.open('ab') as file:
        file.write(b'00000000 {"batch": 9, "cut sho')  # what a kill in the middle of a line leaves
    done = journal.read_bytes().count(b'\n') - 1
    outcome, counted = count_answers(model, requests_in(films), out, monkeypatch)
    assert outcome.answered == 20
    assert len(counted) == 21 - 2 * done
    again = tmp_path / 'again.csv'
    predict_files(model, requests_in(films), again, batch_size=2)
    assert out.read_bytes() == again.read_bytes()


def test_a_mended_file_costs_one_batch(tmp_path, model, monkeypatch):
    films = write_films(tmp_path / 'in', 8)
    good = (films / '04.png').read_bytes()
    (films / '04.png').write_bytes(good[:200])
    outcome, _ = count_answers(model, requests_in(films), tmp_path / 'p.csv', monkeypatch)
    assert [f.image for f in outcome.failures] == ['04.png']
    (films / '04.png').write_bytes(good)
    outcome, counted = count_answers(model, requests_in(films), tmp_path / 'p.csv', monkeypatch)
    assert (outcome.answered, counted) == (8, ['04.png', '05.png'])
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        'in',
        'p.csv',
    ]  # neither journal nor failures are left


def test_another_model_starts_afresh_and_says_so(tmp_path, model, monkeypatch):
    films = write_films(tmp_path / 'in', 4)
    (films / 'bad.png').write_bytes(b'x')  # a journal stays where something failed
    predict_files(model, requests_in(films), tmp_path / 'p.csv', batch_size=2)
    another = load(save_toy_model(tmp_path / 'another', seed=1))
    outcome, counted = count_answers(another, requests_in(films), tmp_path / 'p.csv', monkeypatch)
    assert len(counted) == 5
    assert 'was begun with something else (model)' in outcome.remarks[0]
    assert set(pd.read_csv(tmp_path / 'p.csv')['fingerprint']) == {another.facts.fingerprint}


def test_an_altered_line_is_not_believed(tmp_path, model, monkeypatch):
    films = write_films(tmp_path / 'in', 4)
    (films / 'bad.png').write_bytes(b'x')
    predict_files(model, requests_in(films), tmp_path / 'p.csv', batch_size=2)
    journal = tmp_path / 'p.csv.journal'
    journal.write_bytes(journal.read_bytes().replace(b'"fused": 0.', b'"fused": 0.9', 1))
    _, counted = count_answers(model, requests_in(films), tmp_path / 'p.csv', monkeypatch)
    assert len(counted) == 5


def test_a_second_process_on_the_same_output_is_refused(tmp_path, model):
    from filelock import FileLock

    films = write_films(tmp_path / 'in', 1)
    with FileLock(tmp_path / 'p.csv.journal.lock'), pytest.raises(RequestError, match='another process'):
        predict_files(model, requests_in(films), tmp_path / 'p.csv')


# Real images, and files that once failed


@needs_data
def test_real_images_in_batches_are_answered_as_one_by_one(tmp_path, model):
    names = sorted(p.name for p in (SHARED / 'data' / 'nih' / 'images').iterdir())[:12]
    rows = '\n'.join(f'{SHARED}/data/nih/images/{name},"Fever and cough, ? pneumonia"' for name in names)
    (tmp_path / 'list.csv').write_text(f'image,note\n{rows}\n')
    predict_files(model, requests_in(tmp_path / 'list.csv'), tmp_path / 'p.csv', batch_size=5)
    table = pd.read_csv(tmp_path / 'p.csv')
    assert len(table) == 12
    for i in (0, 7, 11):
        alone = model(table['image'][i], note='Fever and cough, ? pneumonia', sentences=False)
        for answer in alone.observations:
            assert abs(table[answer.observation][i] - answer.probability.fused) < 1e-6


@needs_cases
def test_files_that_once_failed_are_answered_or_listed(tmp_path, model):
    requests = requests_in(SHARED / 'cases' / '04_bad_exif')
    outcome = predict_files(model, requests, tmp_path / 'p.csv')
    assert {f.image for f in outcome.failures} <= {r.name for r in requests.items if 'cut' in r.name}
    assert outcome.answered + len(outcome.failures) == len(requests.items) > 5
    table = SHARED / 'cases' / '16_trailing_comma' / 'studies.csv'
    assert len(requests_in(table).items) == len(pd.read_csv(table, index_col=False))
