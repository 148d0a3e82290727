"""Every front door shows the same text about the same study: library, demo, API and `cxr predict --report`."""

import base64
import re
import shutil

import pytest
from toy import toy_run  # noqa: F401 (a fixture)

from cxr_lib.demo import demo_widget
from cxr_lib.explanation.measured import RULER, pack_ruler
from cxr_lib.explanation.measurements import draw_ruler
from cxr_lib.foundations.files import read_json
from cxr_lib.foundations.run import RunFolder, rewriting
from cxr_lib.model.saved import save_beside
from cxr_lib.prediction.load import load
from cxr_lib.prediction.schema import Prediction
from cxr_lib.running.command import main

requests = pytest.importorskip('requests')
pytest.importorskip('fastapi', reason='the extra `serve` is not installed')
NOTE = 'Fever and cough. Known heart failure.'
HEART = dict(slope=40.0, intercept=-20.0, base=-1.0, low=0.3, high=0.7, accepted=True, reason='')


@pytest.fixture(scope='module')
def run(toy_run, tmp_path_factory):  # noqa: F811
    "The toy with a ruler, in a project of its own"
    home = tmp_path_factory.mktemp('texts')
    shutil.copytree(toy_run.path, home / 'reports' / 'toy')
    model = home / 'reports' / 'toy' / 'model'
    verdict = dict(schema='cxr_lib.explanation/1', methods={}, default_method=None, settings={})
    verdict |= dict(bench=dict(world='', in_distribution=True))
    verdict |= dict(measurements=dict(evidence={'Cardiomegaly': HEART}))
    side = read_json(model / 'config.json')['model']['image_size']
    ruler = pack_ruler(draw_ruler(30, seed=1, side=side), side)
    with rewriting(RunFolder(model.parent), 'model'):
        save_beside(model, {'explanation.json': verdict, RULER: ruler})
    return home / 'reports' / 'toy'


def of_the_demo(run):
    "A file, and what the demo offers to keep as its report"
    widget = demo_widget(RunFolder(run), 3).page
    widget.note.value = NOTE
    widget.save.click()
    found = re.search(r'download="[^"]+_report.txt" href="data:[^;]+;base64,([^"]+)"', widget.links.value)
    return widget.case.source, base64.b64decode(found[1]).decode()


def of_the_api(predictor, film):
    from cxr_lib.service import running_service

    question = dict(image=base64.b64encode(film.read_bytes()).decode(), note=NOTE, name=film.name)
    with running_service(predictor, page=False) as address:
        answer = requests.post(f'{address}/v1/predictions', json=question, timeout=60)
    return str(Prediction.model_validate(answer.json()).report)


def test_one_study_has_one_text(run, tmp_path, monkeypatch):
    monkeypatch.setenv('CXR_HOME', str(run.parent.parent))
    film, demo = of_the_demo(run)
    predictor = load(run)
    text = str(predictor(film, NOTE).report)
    assert 'FINDINGS:' in text and 'IMPRESSION:' in text
    assert text in demo
    assert of_the_api(predictor, film) == text
    assert (
        main(['predict', str(film), '--run', 'toy', '--note', NOTE, '--report', str(tmp_path / 'a.txt')]) == 0
    )
    assert text in (tmp_path / 'a.txt').read_text(encoding='utf-8')
