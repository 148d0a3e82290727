"""The explanation stage on small and odd runs: what it writes, what it never draws, and a kill in the middle."""

import shutil

import numpy as np
import pandas as pd
import pytest
from finished_run import finished_run

import cxr_lib.stages.explanation as stage
from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.foundations.files import read_json, write_json
from cxr_lib.foundations.run import AlteredFile, RunError, RunFolder
from cxr_lib.model.classifier import PretrainedClassifier
from cxr_lib.prediction.load import load
from cxr_lib.simulation.causes import SIGNS

FEW = dict(n_explained=6, n_bootstrap=10)
PASSED = dict(
    accepted=True, reason='', n_patients=9, hit_rate=dict(value=0.9), location_prior=dict(value=0.2)
)
#: A verdict that accepts Grad-CAM everywhere.
GENEROUS = dict(methods={'grad_cam': {o: PASSED for o in SIGNS}}, default_method='grad_cam', settings={})


@pytest.fixture(scope='module')
def explained(tmp_path_factory):
    "A run whose stages have all finished; its model is untrained"
    home = tmp_path_factory.mktemp('home')
    with pytest.MonkeyPatch.context() as m:
        m.setenv('CXR_HOME', str(home))
        run = RunFolder(finished_run(home, 'small'))
        stage.explanation_stage(run, **FEW)
        yield run


@pytest.fixture
def run(explained, tmp_path, monkeypatch):
    "A copy that a test may spoil"
    monkeypatch.setenv('CXR_HOME', str(explained.path.parent.parent))
    return RunFolder(shutil.copytree(explained.path, tmp_path / 'copy'))


def test_the_verdict_is_written_beside_run_and_model_and_every_stage_stays_valid(explained):
    explained.check('explanation')
    assert explained.done('explanation')
    stored = PretrainedClassifier.from_pretrained(explained / 'model').beside['explanation.json']
    assert stored == read_json(explained / 'explanation.json')
    table = pd.read_csv(explained / 'explanation.csv')
    assert set(table.observation) == set(SIGNS) and set(table.method) == set(stored['methods'])
    assert 'repeatability' in stored and stored['outlines'] is None
    assert set(stored['sizes']) == set(stored['controls']) == set(stored['seconds_per_map'])
    for name in ('acceptance', 'gallery', 'looking', 'repeatability'):
        assert (explained / f'explanation_{name}.png').stat().st_size > 1000


def test_a_front_door_has_a_reason_where_it_has_no_map(explained):
    predictor = load(explained / 'model')
    heat, why = predictor.heat_map(predictor.encode(np.zeros((64, 64), np.uint8)), None, 'Pneumothorax')
    assert heat is None and why.startswith('no map: ')


def test_killed_while_it_draws_the_stage_is_not_done_and_the_model_still_loads(run, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(stage, 'save_figure', killed)
        with pytest.raises(KeyboardInterrupt):
            stage.explanation_stage(run, **FEW)
    assert not run.stamped('explanation') and run.done('evaluation')
    PretrainedClassifier.from_pretrained(run / 'model')
    stage.explanation_stage(run, **FEW)
    assert run.done('explanation')


def test_an_altered_model_is_refused_before_anything_is_judged(run):
    with (run / 'model' / 'model.safetensors').open('ab') as file:
        file.write(b'0')
    with pytest.raises(AlteredFile, match='model.safetensors'):
        stage.explanation_stage(run, **FEW)


def test_predictions_without_a_model_have_nothing_to_explain(run):
    shutil.rmtree(run / 'model')
    with pytest.raises(RunError, match='no model'):
        stage.explanation_stage(run, **FEW)


def other_run(run, seed, **source):
    "Another finished run beside `run`, of the same kind of data unless told otherwise"
    home = run.path.parent / 'home'
    other = RunFolder(finished_run(home, f'other{seed}', model_seed=seed))
    write_json(other / 'source.json', read_json(other / 'source.json') | source)
    return str(other.path)


def test_a_second_training_is_compared(run):
    found = stage.explanation_stage(run, **FEW, second=other_run(run, 1))['repeatability']
    (by,) = found['methods'].values()
    assert 'second' in by and found['second']
    run.check('explanation')


def test_a_second_run_that_does_not_fit_is_refused_before_anything_is_written(run):
    with pytest.raises(RunError, match='no trained run'):
        stage.explanation_stage(run, **FEW, second='nobody')
    for second, why in (
        (other_run(run, 0), 'another seed'),
        (other_run(run, 2, world='realistic'), 'world of .* is realistic'),
        (other_run(run, 3, dataset='nih', simulated=False), 'data set of .* is nih'),
    ):
        with pytest.raises(ValueError, match=why):
            stage.explanation_stage(run, **FEW, second=second)
    assert run.done('explanation')


def boxed(run, tmp_path, name):
    box = {'Finding Label': 'Effusion', 'x': 200, 'y': 500, 'w': 200, 'h': 300}
    pd.DataFrame([{'Image Index': name} | box]).to_csv(tmp_path / 'boxes.csv', index=False)
    write_json(run / 'source.json', read_json(run / 'source.json') | dict(simulated=False, dataset='nih'))
    return dict(boxes=str(tmp_path))


def test_maps_of_real_images_are_held_against_real_boxes(run, tmp_path):
    films = pd.read_parquet(run / 'predictions.parquet').query("split == 'test'").image
    name = films.iloc[0].rsplit('/', 1)[-1]
    classifier = PretrainedClassifier.from_pretrained(run / 'model')
    outlined = stage._outlined_films(run, classifier, boxed(run, tmp_path, name)['boxes'])
    found = stage.judge_outlines(
        classifier, outlined, dict(seconds_per_map=dict(grad_cam=1), settings={}), 10
    )
    assert found['n'] == 1 and found['observations'] == {'Pleural Effusion': 1}
    assert set(found['methods']['grad_cam']) == {'all', 'called'}


def test_boxes_of_other_images_or_for_simulated_patients_are_refused(run, tmp_path):
    with pytest.raises(ValueError, match='are simulated'):
        stage.explanation_stage(run, **FEW, boxes=str(tmp_path))
    classifier = PretrainedClassifier.from_pretrained(run / 'model')
    with pytest.raises(ValueError, match='none is of a test image'):
        stage._outlined_films(run, classifier, boxed(run, tmp_path, 'elsewhere.png')['boxes'])


@pytest.mark.parametrize('wrong', [dict(n_explained=0), dict(n_bootstrap=1), dict(explain='all')])
def test_wrong_parameters_are_refused_before_anything_is_written(run, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        stage.explanation_stage(run, **FEW | wrong)
    assert run.done('explanation')


def drawn(run, simulated=True, **labels):
    "The two pictures of cases, with a verdict that accepts everything"
    table = pd.read_parquet(run / 'predictions.parquet').assign(**labels)
    table.to_parquet(run / 'predictions.parquet')
    classifier = PretrainedClassifier.from_pretrained(run / 'model')
    return stage._draw_cases(run, classifier, GENEROUS, simulated)


def words_of(figure):
    return '\n'.join(t.get_text() for ax in figure.axes for t in [*ax.texts, ax.title])


def test_every_overlay_has_its_colour_bar_and_says_what_it_is_not(run):
    gallery, panel = drawn(run).values()
    overlays = sum(len(ax.images) > 1 for ax in gallery.axes)
    bars = [ax for ax in gallery.axes if 'attribution, not localisation' in ax.get_ylabel()]
    assert overlays and 0 < len(bars) <= overlays
    assert 'SIMULATED' in gallery.get_supxlabel() and 'noise' in words_of(panel)
    assert 'image +' in words_of(gallery) or 'image -' in words_of(gallery)


def test_no_map_on_an_abstention_or_a_low_probability(run, monkeypatch):
    classifier = PretrainedClassifier.from_pretrained(run / 'model')
    names = pd.read_parquet(run / 'predictions.parquet').image.unique()[:6].tolist()
    films = stage.read_films(run, classifier, names)
    wanted = [(name, o) for name in names for o in SIGNS]
    maps = stage.case_maps(classifier, GENEROUS, films, wanted)
    high = {(n, o) for n, o in wanted if films.probability[films.place(n), OBSERVATIONS.index(o)] >= 0.25}
    assert set(maps) == high and len(high) > 0
    films.abstains[:] = True
    assert stage.case_maps(classifier, GENEROUS, films, wanted) == {}


def test_without_labels_or_positives_the_pictures_say_so(run):
    none = {f'label/{o}': 0.0 for o in OBSERVATIONS}
    gallery, panel = drawn(run, **none).values()
    assert 'no such test image' in words_of(gallery) and 'none to take away' in words_of(panel)
    unknown = {f'label/{o}': np.nan for o in OBSERVATIONS}
    gallery, panel = drawn(run, **unknown).values()
    assert 'No test image has a label' in words_of(gallery) and 'no case to show' in words_of(panel)


def test_real_patients_and_missing_notes(run):
    source = read_json(run / 'source.json')
    write_json(run / 'source.json', source | dict(simulated=False, dataset='nih'))
    table = pd.read_parquet(run / 'studies_with_notes.parquet').assign(note=None)
    table.to_parquet(run / 'studies_with_notes.parquet')
    gallery, panel = drawn(run, simulated=False).values()
    assert gallery.get_supxlabel() == '' and 'drawn away' not in words_of(panel)
