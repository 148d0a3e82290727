"""Measurements: true geometry, errors on new patients, and silence on whatever is not a simulated radiograph."""

import json

import numpy as np
import pytest
from conftest import ROOT

from cxr_lib.data.pixels import read_radiograph
from cxr_lib.data.simulated import patient_seed
from cxr_lib.explanation.landmarks import (
    LANDMARKS,
    SIDE,
    draw_chests,
    fit_landmarks,
    part_points,
    true_landmarks,
)
from cxr_lib.explanation.measurements import (
    MEASUREMENTS,
    REAL,
    draw_ruler,
    errors_table,
    judge_measurements,
    measure_points,
    measurement_errors,
    measurement_sentences,
    plot_measurements,
)
from cxr_lib.prediction.checks import check_image
from cxr_lib.simulation.anatomy import patient_anatomy
from cxr_lib.simulation.causes import SIGNS

DATA = ROOT.parent / 'shared' / 'data'
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason='the real images (../shared/data) are not here')


@pytest.fixture(scope='module')
def ruler():
    return draw_ruler(200, seed=7)


@pytest.fixture(scope='module')
def chests():
    return draw_chests(120, seed=8)


def messages(images):
    return [[finding.message for finding in check_image(image)] for image in images]


def test_the_true_measurements_are_those_of_the_anatomy(chests):
    measured = measure_points(chests.points)
    for i in range(0, len(chests), 10):
        p = chests.patients.iloc[i]
        strengths = {s: float(np.clip(p[f'strength/{s}'], -4, 8)) for s in SIGNS}
        a = patient_anatomy(strengths, p.sex, p.age, p.projection, patient_seed(p.patient_id))
        ratio = np.ptp(a.organs['heart'][:, 0]) / (2 * a.width)
        assert measured.cardiothoracic_ratio[i] == pytest.approx(ratio, abs=0.002)


def test_one_sided_fluid_blunts_one_angle(chests):
    patient = chests.patients.iloc[0].to_dict()
    sides = set()
    for k in range(12):
        points = true_landmarks(patient | {'patient_id': f'SIM-{k}', 'strength/Pleural Effusion': 3.0})
        right, left = (part_points(points, 'thorax') - part_points(points, 'fluid'))[:, 1] > 0.01
        assert right or left
        sides.add((bool(right), bool(left)))
    assert {(True, False), (False, True)} <= sides


def test_no_other_sign_moves_the_points_of_the_chest_wall(chests):
    patient = chests.patients.iloc[0].to_dict() | {'strength/Pleural Effusion': 0.0}
    before = part_points(true_landmarks(patient), 'thorax')
    for sign in SIGNS:
        after = part_points(true_landmarks(patient | {f'strength/{sign}': 3.0}), 'thorax')
        assert np.array_equal(before, after), sign


def test_new_patients_are_measured_within_the_tolerance(ruler, chests):
    readings = ruler.read(chests.images)
    assert readings.made.mean() > 0.85
    errors = measurement_errors(readings, chests, 50)
    for e in errors:
        if e['group'] == 'all':
            assert e['median']['high'] < MEASUREMENTS[e['measurement']][2], e['measurement']
    table = errors_table(errors)
    assert set(table.measurement) == {title for title, _, _ in MEASUREMENTS.values()}


def test_a_shifted_image_is_measured_the_same(ruler, chests):
    images = chests.images[:40]
    shifted = np.roll(np.pad(images, ((0, 0), (0, 0), (4, 4)), mode='edge'), 3, axis=2)[:, :, 4:-4]
    before, after = (ruler.read(np.ascontiguousarray(x)) for x in (images, shifted))
    both = before.made & after.made
    change = (before.values - after.values)[both].abs().median()
    assert both.mean() > 0.6 and change.max() < 0.02
    moved = (after.points - before.points)[both][..., 0]
    assert np.median(moved) * SIDE == pytest.approx(3, abs=0.5)


@pytest.mark.parametrize(
    'spoil',
    [
        lambda x: 255 - x,
        lambda x: x[:, ::-1],
        lambda x: np.rot90(x, axes=(1, 2)),
        lambda x: np.random.default_rng(0).integers(0, 256, x.shape, dtype=np.uint8),
        lambda x: np.full_like(x, 90),
        lambda x: np.zeros_like(x),
    ],
    ids=['inverted', 'upside down', 'turned', 'noise', 'gray', 'black'],
)
def test_it_is_silent_on_what_is_no_upright_radiograph(ruler, chests, spoil):
    wrong = np.ascontiguousarray(spoil(chests.images[:30]))
    alone, checked = ruler.read(wrong), ruler.read(wrong, messages(wrong))
    assert alone.made.mean() <= 0.05 and not checked.made.any()
    assert checked.values.isna().all(axis=None) and all(checked.reasons)
    said = [m[0] for m in messages(wrong) if m]
    assert [r for r, m in zip(checked.reasons, messages(wrong)) if m] == said


def test_a_proper_simulated_radiograph_passes_both(ruler, chests):
    checked = ruler.read(chests.images[:30], messages(chests.images[:30]))
    assert checked.made.mean() > 0.7


@needs_data
def test_real_radiographs_are_never_measured_whatever_the_input_check_says(ruler):
    paths = sorted((DATA / 'nih' / 'images').glob('*.png'))[:20]
    films = np.stack([read_radiograph(path, SIDE) for path in paths])
    said = messages(films)
    assert not all(said)  # some pass
    readings = ruler.read(films, said, real=True)
    assert set(readings.reasons) == {REAL} and readings.values.isna().all(axis=None)


@needs_data
def test_a_real_film_that_fails_the_input_check_is_not_measured_even_as_a_simulated_one(ruler):
    paths = sorted((DATA / 'nih' / 'images').glob('*.png'))[:20]
    films = np.stack([255 - read_radiograph(path, SIDE) for path in paths])
    said = messages(films)
    assert sum(map(bool, said)) >= 18
    readings = ruler.read(films, said)
    assert not readings.made[[bool(m) for m in said]].any()


def test_the_same_seed_gives_the_same_head(chests):
    one, two = (fit_landmarks(chests)(chests.images[:5]) for _ in range(2))
    assert np.array_equal(one, two) and one.shape == (5, len(LANDMARKS), 2)


@pytest.mark.parametrize('n', [1, 6])
def test_a_tiny_record_is_still_one_that_json_holds(n):
    record, chests, readings = judge_measurements(n, n_bootstrap=5)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record['real'] == dict(measured=False, reason=REAL)
    assert 'not measured' in measurement_sentences(record)[-1]
    errors_table(record['errors'])
    assert 'SIMULATED' in plot_measurements(chests, readings).get_supxlabel()


def test_patients_who_are_not_measured_are_in_no_table(ruler, chests):
    blind = ruler.read(chests.images, [['no image']] * len(chests))
    assert measurement_errors(blind, chests, 5) == []
