"""`cxr predict`, `runs`, `compare`, `pack` and `demo` to their last line, as a user types them or in this process."""

import json
import os
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from commands import cxr, in_process
from conftest import ROOT
from finished_run import finished_run
from PIL import Image

from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.prediction.schema import Prediction

SHARED = ROOT.parent / 'shared' / 'data'
needs_data = pytest.mark.skipif(
    not SHARED.is_dir(), reason='the shared real data (../shared/data) are not on this machine'
)


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A project folder with three finished runs: two of the same patients, one of others"
    home = tmp_path_factory.mktemp('project')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('CXR_HOME', str(home))
        finished_run(home, 'first')
        finished_run(home, 'noisy', model_seed=1, noise=2.0)
        finished_run(home, 'others', seed=1)
        newest = home / 'reports' / 'first' / '.stages' / 'evaluation.json'
        os.utime(newest)
    return home


@pytest.fixture
def films(tmp_path):
    folder = tmp_path / 'films'
    (folder / 'ward').mkdir(parents=True)
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 30), np.uint8)
        Image.fromarray(pixels).save(folder / 'ward' / f'{i}.png')
    return folder


@pytest.fixture
def call(home, tmp_path, monkeypatch, capsys):
    return in_process(home, tmp_path, monkeypatch, capsys)


# cxr predict


def test_a_folder_with_a_bad_file_as_a_user_types_it(home, films, tmp_path):
    (films / 'bad.png').write_bytes(b'no image')
    (films / 'read me.txt').write_text('no image')
    args = ['predict', films, '--run', 'first', '--csv', tmp_path / 'p.csv', '--json', tmp_path / 'p.json']
    code, out, err = cxr(home, *args, env={'CXR_HOME': str(home)})
    assert code == 3, err
    assert out.splitlines()[-1] == '4 of 5 images answered.'
    assert 'Mean AUROC with image and note' in out
    assert re.search(r'^ward/0.png +no  ', out, re.M)
    assert 'no answer: ' in err and 'bad.png: not an image file' in err
    assert '1 other files were skipped' in err
    table = pd.read_csv(tmp_path / 'p.csv')
    assert list(table)[:15] == ['image', *OBSERVATIONS]
    assert list(table['image']) == [f'ward/{i}.png' for i in range(4)]
    assert len(json.loads((tmp_path / 'p.json').read_text())) == 4


def test_one_image_with_a_note_names_the_newest_run(call, films, tmp_path):
    film, note = films / 'ward' / '0.png', 'Fever and cough.'
    code, out, _ = call('predict', film, '--note', note, '--json', 'one.json', '--figure', 'one.png')
    assert code == 0
    assert re.match(r'Model of the newest finished run: \w+ \(mean AUROC 0\.\d\d \[', out)
    assert 'SIMULATED patients' in out
    prediction = Prediction.model_validate_json((tmp_path / 'one.json').read_text())
    assert [s.text for s in prediction.sentences] == [note]
    rows = re.findall(r'^([A-Z][\w ]+?)  +(0\.\d{3})', out, re.M)
    assert sorted(name for name, _ in rows) == sorted(OBSERVATIONS)
    assert [float(p) for _, p in rows] == sorted((float(p) for _, p in rows), reverse=True)
    assert Image.open(tmp_path / 'one.png').width > 1000


def test_a_report_is_printed_or_written_and_an_unreadable_image_says_why(call, films, tmp_path):
    film = films / 'ward' / '0.png'
    code, out, _ = call('predict', '--report', film, '--note', 'Fever. PMH COPD.')
    assert code == 0 and 'FINDINGS:' in out and 'pneumothorax' in out.split('FINDINGS:')[1]
    (films / 'bad.png').write_bytes(b'no image')
    code, _, _ = call('predict', films, '--report', tmp_path / 'said.txt')
    text = (tmp_path / 'said.txt').read_text()
    assert code == 3 and text.count('IMPRESSION:') == 4 and 'IMAGE: bad.png\nNo report:' in text
    code, _, err = call('predict', film, '--report', films / 'ward' / '1.png')
    assert code == 2 and 'ends in .txt' in err


def test_no_answer_at_all_is_exit_2(call, tmp_path):
    (tmp_path / 'in').mkdir()
    (tmp_path / 'in' / 'bad.png').write_bytes(b'no image')
    code, out, err = call('predict', 'in', '--csv', 'p.csv')
    assert code == 2
    assert out.splitlines()[-1] == '0 of 1 images answered.'
    assert err.splitlines()[-1] == 'cxr: no image could be answered'
    assert not (tmp_path / 'p.csv').exists()
    assert (tmp_path / 'p.csv.failures.csv').exists()
    assert not (tmp_path / 'p.csv.journal').exists()


def test_notes_of_a_csv(call, films, tmp_path):
    (films / 'list.csv').write_text('image,reason\nward/0.png,Fever and cough.\nward/0.png,\n')
    code, out, _ = call('predict', films / 'list.csv', '--note-column', 'reason', '--csv', 'p.csv')
    assert code == 0
    table = pd.read_csv(tmp_path / 'p.csv')
    assert list(table['has_note']) == [True, False]
    assert table['Edema'][0] != table['Edema'][1]
    assert np.isclose(table['Edema'][1], table['without_note/Edema'][0])


@pytest.mark.parametrize(
    'args, said',
    [
        (['absent.png'], 'absent.png: no such file or folder'),
        (['films', '--run', 'nowhere'], "there is no run 'nowhere'. Runs that are there: first (mean AUROC"),
        (['films', '--model', 'nowhere'], "'nowhere' is neither a run"),
        (['films', '--note-column', 'note'], 'is no CSV'),
        (['films', '--figure', 'a.png'], '--figure shows one image'),
        (['films/ward/0.png', '--figure', 'a.txt'], 'ends in .png'),
        (['films/ward/0.png', '--figure', 'films/ward/0.png'], 'would be overwritten'),
        (['films', '--csv', 'films/ward/0.png'], 'would be overwritten'),
        (['films', '--csv', 'a', '--json', 'a'], 'named twice'),
        (['empty'], 'empty holds no image: nothing'),
    ],
)
def test_an_impossible_request_is_one_sentence(call, films, tmp_path, args, said):
    (tmp_path / 'empty').mkdir()
    before = (films / 'ward' / '0.png').read_bytes()
    code, _, err = call('predict', *args)
    assert code == 2
    assert said in err and len(err.strip().splitlines()) == 1
    assert (films / 'ward' / '0.png').read_bytes() == before


def test_without_any_run_the_remedy_is_named(call, films, tmp_path, monkeypatch):
    monkeypatch.setenv('CXR_HOME', str(tmp_path / 'elsewhere'))
    code, _, err = call('predict', films)
    assert code == 2 and 'name a model with --model, or make one with `cxr run`' in err


@needs_data
def test_real_images_are_answered_and_the_model_of_simulated_patients_says_so(call, tmp_path):
    names = sorted(p.name for p in (SHARED / 'nih' / 'images').iterdir())[:15]
    (tmp_path / 'real').mkdir()
    for name in names:
        shutil.copy(SHARED / 'nih' / 'images' / name, tmp_path / 'real' / name)
    code, out, _ = call('predict', 'real', '--run', 'first', '--csv', 'p.csv')
    assert code == 0
    assert 'Whatever it says about a real radiograph means nothing.' in out
    table = pd.read_csv(tmp_path / 'p.csv')
    assert list(table['image']) == names
    assert table['warnings'].str.contains('simulated_model').all()


# cxr runs, cxr compare


def test_runs_are_listed_with_their_auroc(call, home):
    (home / 'reports' / 'begun' / '.stages').mkdir(parents=True, exist_ok=True)
    shutil.copy(home / 'reports' / 'first' / '.stages' / 'notes.json', home / 'reports' / 'begun' / '.stages')
    code, out, _ = call('runs')
    shutil.rmtree(home / 'reports' / 'begun')
    assert code == 0
    for name in ('first', 'noisy', 'others'):
        assert re.search(
            rf'^{name} +simulated +tiny +0\.\d\d \[0\.\d\d, 0\.\d\d\] +\d{{4}}-\d\d-\d\d ', out, re.M
        )
    assert 'Not finished: begun' in out


def test_runs_of_the_same_images_are_paired(call, home):
    code, out, _ = call('compare', 'first', 'noisy', 'others')
    assert code == 0
    assert 'first against noisy: paired DeLong' in out
    assert 'first and others: no paired test, ' in out
    metrics = [
        json.loads((home / 'reports' / r / 'metrics.json').read_text()) for r in ('first', 'noisy', 'others')
    ]
    areas = [f'{m["conditions"]["fused"]["means"]["evaluable"]["auroc"]:.3f}' for m in metrics]
    assert re.search('AUROC, image \\+ note +' + ' +'.join(map(re.escape, areas)), out)


@pytest.mark.parametrize('runs', [['first'], ['first', 'first'], ['first', 'nowhere']])
def test_what_cannot_be_compared_is_refused(call, runs):
    code, _, err = call('compare', *runs)
    assert code == 2 and ('two runs or more' in err or 'there is no run' in err)


# cxr pack, cxr demo


def test_a_pack_is_taken_by_predict(call, films, tmp_path):
    code, out, _ = call('pack', 'first')
    assert code == 0 and out.startswith('first.zip (')
    code, out, _ = call('predict', films, '--model', 'first.zip', '--csv', 'packed.csv')
    assert code == 0
    call('predict', films, '--run', 'first', '--csv', 'run.csv')
    assert (tmp_path / 'packed.csv').read_bytes() == (tmp_path / 'run.csv').read_bytes()
    (tmp_path / 'cut.zip').write_bytes((tmp_path / 'first.zip').read_bytes()[:5000])
    code, _, err = call('predict', films, '--model', 'cut.zip')
    assert code == 2 and 'cut.zip is damaged' in err
    code, _, err = call('pack', 'first', '--to', 'a.tar')
    assert code == 2 and 'ends in .zip' in err


def test_the_demo_draws_samples_that_the_model_has_not_seen(call, home):
    code, out, _ = call('demo', '--mode', 'batch', '-n', '2', '--run', 'first')
    assert code == 0
    pictures = [home / 'reports' / 'first' / 'demo' / f'sample_{i}_prediction.png' for i in (1, 2)]
    assert out.splitlines()[-2:] == [str(p) for p in pictures]
    assert all(Image.open(p).width > 1000 for p in pictures)


def test_the_demo_opens_the_notebook_with_the_run(call, home):
    code, out, _ = call('demo', '--print', '--run', 'noisy', '--port', '8899')
    assert code == 0
    assert out.startswith(f'CXR_DEMO_RUN={home / "reports" / "noisy"} ')
    assert '-m jupyterlab' in out and '08_demo.ipynb --ServerApp.port=8899' in out
    code, out, _ = call('demo', '--print')
    assert code == 0 and 'CXR_DEMO_RUN' not in out
    code, _, err = call('demo', '--mode', 'batch', '-n', '0')
    assert code == 2 and '-n is 0' in err


def test_help_loads_neither_torch_nor_pandas(home):
    code, out, err = cxr(home, '--help', env={'PYTHONPROFILEIMPORTTIME': '1'})
    assert code == 0 and 'predict' in out
    loaded = set(re.findall(r'\| +([\w.]+)$', err, re.M))
    assert 'cxr_lib.running.predict_command' in loaded
    assert not loaded & {'torch', 'pandas', 'numpy', 'pydantic', 'matplotlib', 'PIL'}
