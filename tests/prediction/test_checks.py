"""The checks that stand before a prediction: what they say about right and wrong images, and what they bear."""

import json
import warnings

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from toys import toy_classifier, toy_model

from cxr_lib.data.pixels import read_radiograph, to_square
from cxr_lib.model.saved import load_model, read_beside, save_beside
from cxr_lib.prediction.checks import (
    CLASSES,
    check_familiarity,
    check_image,
    check_input,
    describe_images,
    fit_familiarity,
    input_rule,
    picture_features,
    study_familiarity,
    unfamiliar,
)
from cxr_lib.simulation.rendering import render_radiograph
from cxr_lib.training.dataset import StudyData

DATA = ROOT.parent / 'shared' / 'data'
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason='the real images (../shared/data) are not here')
SICK = ({}, {'Edema': 4.0}, {'Pleural Effusion': 3.5, 'Support Devices': 4.0}, {'Cardiomegaly': 4.0})


def simulated(n, size=128, seed=0):
    "Radiographs of the healthy and the sick"
    drawn = [render_radiograph(SICK[k % len(SICK)], size=size, seed=seed + k, masks=False) for k in range(n)]
    return [film.image for film in drawn]


def codes(images):
    return [[f.code for f in check_image(np.ascontiguousarray(x))] for x in images]


@pytest.fixture(scope='module')
def films():
    return simulated(24, seed=5000)


@pytest.fixture(scope='module')
def real():
    "Twenty real radiographs of each of three sources, none of them known to be turned"
    files = [sorted((DATA / s).rglob('*.[pj][np]g'))[:20] for s in ('nih', 'covid')]
    images = [read_radiograph(f, 128) for part in files for f in part]
    small = np.load(DATA / 'medmnist' / 'pneumoniamnist.npz')['test_images'][:20]
    return images + [to_square(x, 128) for x in small]


# ---- the first check ----


def test_the_table_is_small_and_belongs_to_the_code():
    table = ROOT / 'cxr_lib' / 'assets' / 'input_checks.json'
    assert table.stat().st_size < 50_000
    weights, intercepts, threshold = input_rule()
    assert weights.shape == (777, len(CLASSES)) and intercepts.shape == (len(CLASSES),)
    assert 0 < threshold < 1


def test_simulated_radiographs_pass(films):
    assert codes(films).count([]) >= 23


@pytest.mark.parametrize('turns, message', [(1, 'clockwise'), (2, 'upside down'), (3, 'counterclockwise')])
def test_turned_radiographs_are_told_how_to_turn_back(films, turns, message):
    said = [check_image(np.rot90(x, turns).copy()) for x in films]
    assert sum(len(f) == 1 and f[0].code == 'rotated' and message in f[0].message for f in said) >= 23


def test_inverted_radiographs_are_noticed(films):
    assert codes([255 - x for x in films]).count(['inverted']) >= 23


@needs_data
def test_real_radiographs_pass(real):
    assert codes(real).count([]) >= 58


@needs_data
@pytest.mark.parametrize('how', ['turned by 90', 'turned by 180', 'turned by 270', 'inverted'])
def test_wrong_copies_of_real_radiographs_are_noticed(real, how):
    turns = dict(zip(('turned by 90', 'turned by 180', 'turned by 270'), (1, 2, 3)))
    copies = [np.rot90(x, turns[how]) if how in turns else 255 - x for x in real]
    assert codes(copies).count([]) <= 2


def text_page(k):
    page = np.full((600, 450), 245, np.uint8)
    for line in range(20 - k):
        cv2.putText(page, 'Findings: no acute disease ' * 2, (20, 25 * line + 30), 0, 0.5, 20, 1, cv2.LINE_AA)
    return page


def crops(photograph):
    rng = np.random.default_rng(0)
    gray = cv2.cvtColor(photograph, cv2.COLOR_RGB2GRAY)
    corners = [(rng.integers(0, 200), rng.integers(0, 400)) for _ in range(6)]
    return [gray, *(gray[i : i + 220, j : j + 220] for i, j in corners)]


def test_other_pictures_are_no_radiographs():
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    images = [x for photograph in load_sample_images().images for x in crops(photograph)]
    images += [text_page(k) for k in range(6)]
    images += [rng.integers(0, 256, (s, s)).astype(np.uint8) for s in (32, 64, 200)]
    said = codes(images)
    assert said.count([]) <= 2  # some photographs pass: `benchmarks/input_checks.py` counts them
    assert said.count(['not_a_radiograph']) >= len(images) - 4


@pytest.mark.parametrize(
    'image',
    [
        np.zeros((64, 64), np.uint8),
        np.full((500, 20), 255, np.uint8),
        np.zeros((1, 1), np.uint8),
        np.tile(np.arange(200, dtype=np.uint8), (200, 1)),
        np.random.default_rng(0).integers(100, 105, (90, 90)).astype(np.uint8),
        np.pad(np.full((40, 90), 130, np.uint8), ((25, 25), (0, 0))),
    ],
    ids=['black', 'white strip', 'one pixel', 'gradient', 'faint noise', 'gray between black bars'],
)
def test_blank_images_are_said_to_be_blank(image):
    assert codes([image]) == [['blank']]


@pytest.mark.parametrize('size', [64, 100, 224, 512])
def test_size_does_not_matter(films, size):
    resized = [cv2.resize(x, (size, size), interpolation=cv2.INTER_LINEAR) for x in films]
    assert codes(resized).count([]) >= 23


@pytest.mark.parametrize('gain, offset', [(0.2, 30), (0.5, 120), (0.97, 0)])
def test_contrast_and_brightness_do_not_matter(films, gain, offset):
    assert codes([np.rint(x * gain + offset).astype(np.uint8) for x in films]).count([]) >= 23


def test_even_borders_do_not_matter(films):
    framed = [np.pad(x, ((0, 0), (30, 50)), constant_values=255 * (k % 2)) for k, x in enumerate(films)]
    assert codes(framed) == codes(films)


@settings(max_examples=60, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(1, 90), st.integers(1, 90))))
def test_any_image_is_answered(image):
    found = check_image(image)
    assert len(found) <= 1
    assert all(f.code in ('blank', 'rotated', 'inverted', 'not_a_radiograph') and f.message for f in found)


@pytest.mark.parametrize('image', [np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9))], ids=['colour', 'float'])
def test_what_is_no_gray_image_is_an_error(image):
    with pytest.raises(ValueError, match='expected \\(height, width\\) uint8'):
        picture_features(image)


# ---- the second check ----


def as_study_data(images, splits, classifier):
    config = classifier.model.config
    table = pd.DataFrame(dict(note='cough', split=splits))
    table[list(config.observations)] = 0.0
    small = np.stack([to_square(x, config.image_size) for x in images])
    return StudyData(table, '', config, classifier.tokenizer, pixels=small)


@pytest.fixture(scope='module')
def classifier():
    return toy_classifier()


@pytest.fixture(scope='module')
def stored(classifier):
    "Fitted to simulated radiographs, with a model that has learned nothing"
    images = simulated(160, size=64, seed=100)
    data = as_study_data(images, ['train'] * 100 + ['tuning'] * 60, classifier)
    return study_familiarity(classifier.model, data)


def ratios(images, classifier, stored):
    size = classifier.model.config.image_size
    pixels = np.stack([to_square(np.ascontiguousarray(x), size) for x in images])
    with torch.no_grad():
        tokens = classifier.model.encode_image(torch.from_numpy(pixels))
    return unfamiliar(check_familiarity(stored), describe_images(pixels, tokens))


def test_new_images_of_the_same_kind_are_familiar(classifier, stored):
    assert np.mean(ratios(simulated(80, size=64, seed=900), classifier, stored) > 1) <= 0.1


@needs_data
def test_real_radiographs_are_unlike_simulated_ones(real, classifier, stored):
    assert np.mean(ratios(real, classifier, stored) > 1) >= 0.95


def test_noise_and_blank_images_are_unlike_radiographs(classifier, stored):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (64, 64)).astype(np.uint8) for _ in range(5)]
    found = ratios([*images, np.zeros((64, 64), np.uint8)], classifier, stored)
    assert (found > 1).all() and np.isinf(found[-1])


def test_fitting_changes_no_weight_and_draws_nothing(classifier):
    model = classifier.model.train()
    data = as_study_data(simulated(12, size=64), ['train'] * 8 + ['tuning'] * 4, classifier)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    first = study_familiarity(model, data)
    assert model.training
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in weights.items())
    assert torch.equal(torch_state, torch.random.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()
    assert study_familiarity(model, data) == first
    model.eval()


def test_cached_tokens_give_the_same_as_pixels(classifier):
    data = as_study_data(simulated(40, size=64), ['train'] * 28 + ['tuning'] * 12, classifier)
    fresh = study_familiarity(classifier.model, data)
    with torch.no_grad():
        data.image_tokens = classifier.model.encode_image(torch.from_numpy(data.pixels))
    cached = study_familiarity(classifier.model, data)
    for name, shape in fresh['shapes'].items():
        assert cached['shapes'][name]['limit'] == pytest.approx(shape['limit'], rel=0.02)


def test_blank_training_images_leave_the_model_alone(classifier):
    images = [np.full((64, 64), 10 * k, np.uint8) for k in range(12)]
    found = study_familiarity(
        classifier.model, as_study_data(images, ['train'] * 8 + ['tuning'] * 4, classifier)
    )
    assert set(found['shapes']) == {'model'}
    assert np.isfinite(ratios(images, classifier, found)).all()


def test_at_most_the_given_number_of_images_is_looked_at(classifier):
    data = as_study_data(simulated(12, size=64), ['train'] * 8 + ['tuning'] * 4, classifier)
    assert study_familiarity(classifier.model, data, most=3)['images'] == dict(train=3, tuning=3)


def test_nothing_to_learn_from_is_an_error():
    nothing = dict(model=np.full((3, 4), np.nan))
    with pytest.raises(ValueError, match='no image to learn from'):
        fit_familiarity(nothing, nothing)


def test_it_is_stored_with_the_model_and_read_back(tmp_path, stored):
    folder = toy_model(tmp_path / 'model')
    save_beside(folder, {'familiarity.json': stored})
    load_model(folder)
    assert (folder / 'familiarity.json').stat().st_size < 1_000_000
    again = read_beside(folder)['familiarity.json']
    assert again == json.loads(json.dumps(stored))
    shapes, before = check_familiarity(again), check_familiarity(stored)
    for name, shape in before.items():
        assert all(np.array_equal(v, shapes[name][k]) for k, v in shape.items())


def without(key):
    def change(stored):
        del stored['shapes']['picture'][key]

    return change


def shorter(stored):
    stored['shapes']['picture']['mean'].pop()


def negative(stored):
    stored['shapes']['model']['limit'] = -1


def worded(stored):
    stored['shapes']['model']['rest'] = 'small'


def listed(stored):
    stored['shapes'] = []


@pytest.mark.parametrize(
    'damage', [without('limit'), without('directions'), shorter, negative, worded, listed]
)
def test_damage_is_named(stored, damage):
    damaged = json.loads(json.dumps(stored))
    damage(damaged)
    with pytest.raises(ValueError, match='familiarity.json is damaged'):
        check_familiarity(damaged)


def test_that_of_another_model_is_refused(stored):
    shapes = check_familiarity(stored)
    features = dict(model=np.zeros((1, 3)), picture=np.zeros((1, 777)))
    with pytest.raises(ValueError, match='belongs to another model'):
        unfamiliar(shapes, features)


# ---- both ----


def both(image, classifier, shapes):
    pixels = to_square(image, classifier.model.config.image_size)
    with torch.no_grad():
        tokens = classifier.model.encode_image(torch.from_numpy(pixels)[None])[0]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        return check_input(pixels, tokens, shapes)


def test_both_checks_speak(classifier, stored):
    shapes = check_familiarity(stored)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    assert [f.code for f in both(noise, classifier, shapes)] == ['not_a_radiograph', 'unlike_training']
    blank = both(np.full((50, 64), 99, np.uint8), classifier, shapes)
    assert [f.code for f in blank] == ['blank', 'unlike_training']
    assert 'far beyond' in blank[1].message
    assert both(simulated(1, size=64, seed=100)[0], classifier, shapes) == []


def test_a_model_without_familiarity_has_the_first_check(classifier):
    assert [f.code for f in both(np.zeros((64, 64), np.uint8), classifier, None)] == ['blank']
