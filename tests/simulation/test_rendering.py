"""Simulated radiographs: the same everywhere, each sign by its own strength alone, anatomy as radiologists know it."""

import hashlib
import itertools

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, printed_elsewhere
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_lib.simulation.anatomy import NORMAL_NUISANCES, nuisance, patient_anatomy
from cxr_lib.simulation.causes import SIGNS
from cxr_lib.simulation.devices import DEVICES
from cxr_lib.simulation.drawing import MARK, PROJECTIONS, SEXES, sign_rng
from cxr_lib.simulation.findings import DRAW
from cxr_lib.simulation.realism import film_statistics, gradient_magnitude, gray_histogram
from cxr_lib.simulation.realism import radial_spectrum, tell_apart
from cxr_lib.simulation.rendering import contact_sheet, draw_patient, lead_letters, markers
from cxr_lib.simulation.rendering import patient_frame, render_radiograph
from cxr_lib.simulation.shadows import draw_body, draw_breasts, draw_lungs, draw_shoulders

SHARED = ROOT.parent / 'shared' / 'data'
HEALTHY = dict.fromkeys(SIGNS, 0.0)
SEEDS, SIGN = st.integers(0, 2**32 - 1), st.sampled_from(SIGNS)
PERSON = st.fixed_dictionaries(
    dict(
        sex=st.sampled_from(SEXES), age=st.floats(18, 95), projection=st.sampled_from(PROJECTIONS), seed=SEEDS
    )
)
#: these move the anatomy that other findings lie in: the hila, the heart that leads run into, the diaphragm
MOVERS = ('Enlarged Cardiomediastinum', 'Cardiomegaly', 'Atelectasis')


def digest(radiograph):
    masks = b''.join(k.encode() + radiograph.masks[k].tobytes() for k in sorted(radiograph.masks))
    return hashlib.sha256(radiograph.image.tobytes() + masks).hexdigest()


def lung_mask(a, f):
    "How much of each pixel is lung"
    return draw_lungs(f, a, np.random.default_rng(0))[0]


# The same seed, the same radiograph

ELSEWHERE = """
import hashlib
from cxr_lib.simulation.causes import SIGNS
from cxr_lib.simulation.rendering import render_radiograph

for seed in (0, 7, 2**31):
    strengths = {s: (seed + k) % 5 - 0.5 for k, s in enumerate(SIGNS)}
    r = render_radiograph(strengths, sex='Male', age=71, projection='AP', size=160, seed=seed)
    masks = b''.join(k.encode() + r.masks[k].tobytes() for k in sorted(r.masks))
    print(hashlib.sha256(r.image.tobytes() + masks).hexdigest())
"""


def test_films_and_masks_are_the_same_bytes_in_another_process():
    there = printed_elsewhere(ELSEWHERE, hashseed='5').split()
    here = []
    for seed in (0, 7, 2**31):
        strengths = {s: (seed + k) % 5 - 0.5 for k, s in enumerate(SIGNS)}
        person = dict(sex='Male', age=71, projection='AP', size=160, seed=seed)
        here.append(digest(render_radiograph(strengths, **person)))
    assert there == here


@settings(max_examples=15, deadline=None)
@given(person=PERSON, other=SEEDS, size=st.integers(64, 200))
def test_a_film_does_not_depend_on_the_films_drawn_before_it_nor_on_masks(person, other, size):
    strengths = {'Edema': 2.0, 'Fracture': 3.0, 'Support Devices': 2.0}
    first = render_radiograph(strengths, size=size, **person)
    render_radiograph({'Pneumothorax': 4.0}, size=64, seed=other)
    assert digest(render_radiograph(strengths, size=size, **person)) == digest(first)
    assert (render_radiograph(strengths, size=size, masks=False, **person).image == first.image).all()


@settings(max_examples=10, deadline=None)
@given(person=PERSON)
def test_a_film_shows_the_same_at_every_size(person):
    small, large = (render_radiograph({'Lung Lesion': 3.0}, size=n, **person) for n in (112, 224))
    halved = cv2.resize(large.image, (112, 112), interpolation=cv2.INTER_AREA)
    assert np.corrcoef(halved.ravel(), small.image.ravel())[0, 1] > 0.98
    a, b = small.masks['Lung Lesion'].mean(), large.masks['Lung Lesion'].mean()
    assert abs(a - b) < 0.2 * b + 0.002


# The strengths are all there is to know


@settings(max_examples=25, deadline=None)
@given(person=PERSON, sign=st.sampled_from(tuple(DRAW)), low=st.floats(-4, 0.5))
def test_below_the_threshold_of_visibility_a_strength_changes_nothing(person, sign, low):
    a, b = (render_radiograph({'Edema': 1.5} | {sign: s}, size=96, **person) for s in (low, 0.0))
    assert digest(a) == digest(b) and sign not in a.masks


@settings(max_examples=40, deadline=None)
@given(person=PERSON, sign=SIGN)
def test_a_stronger_sign_has_a_larger_mask_and_changes_the_film_more(person, sign):
    none, weak, strong = (render_radiograph({sign: s}, size=128, **person) for s in (0.0, 1.8, 3.8))
    change = lambda r: np.abs(r.image.astype(float) - none.image).sum()
    assert sign not in none.masks and strong.masks[sign].any()
    assert change(strong) > 1.15 * change(weak) > 0
    assert strong.masks[sign].sum() >= 0.98 * weak.masks.get(sign, np.zeros(1)).sum()


@pytest.mark.parametrize('sign', SIGNS)
def test_a_mask_lies_where_the_sign_changes_the_film(sign):
    inside, outside, share = [], [], []
    for seed in range(6):
        person = dict(size=128, seed=seed, sex=SEXES[seed % 2], projection=PROJECTIONS[seed % 3 == 0])
        with_sign = render_radiograph({sign: 3.5}, **person)
        mask = with_sign.masks[sign]
        change = np.abs(with_sign.image.astype(float) - render_radiograph({sign: 0.0}, **person).image)
        near = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
        inside.append(change[mask].mean())
        outside.append(change[~near].mean())
        share.append(change[near].sum() / change.sum())
    assert np.mean(inside) > 3 * np.mean(outside), (inside, outside)
    assert np.mean(share) > 0.5, share


def test_no_sign_alters_the_mask_of_another():
    "Exactly; but a raised dome or a larger heart moves what lies on it, by a little"
    for seed in (0, 3):
        person = dict(size=96, seed=seed, sex=SEXES[seed % 2])
        alone = {s: render_radiograph({s: 3.0}, **person).masks[s] for s in SIGNS}
        for a, b in itertools.permutations(SIGNS, 2):
            mask = render_radiograph({a: 3.0, b: 3.5}, **person).masks[a]
            if b in MOVERS:
                assert (mask & alone[a]).sum() > 0.7 * (mask | alone[a]).sum(), (a, b, seed)
            else:
                assert (mask == alone[a]).all(), (a, b, seed)


@settings(max_examples=20, deadline=None)
@given(person=PERSON, strengths=st.dictionaries(SIGN, st.floats(-4, 8)))
def test_masks_belong_to_signs_that_are_there(person, strengths):
    r = render_radiograph(strengths, size=96, **person)
    assert set(r.masks) <= {s for s, v in strengths.items() if v > 0.5}
    assert all(m.dtype == bool and m.shape == (96, 96) and m.sum() >= 4 for m in r.masks.values())


def test_one_sign_keeps_its_random_numbers_whatever_the_others_do():
    streams = [sign_rng(5, s).random(4) for s in SIGNS]
    assert len({tuple(x) for x in streams}) == len(SIGNS)
    edema = streams[SIGNS.index('Edema')]
    assert (sign_rng(5, 'Edema').random(4) == edema).all()
    assert (sign_rng(6, 'Edema').random(4) != edema).all()


# Anatomy


@settings(max_examples=40, deadline=None)
@given(person=PERSON)
def test_left_and_right_are_where_a_radiologist_expects_them(person):
    a = patient_anatomy(HEALTHY, **person)
    assert a.domes[-1] < a.domes[1]  # the right dome is the higher one, on the viewer's left
    assert a.hila[1][1] < a.hila[-1][1]  # the left hilum is
    heart = a.organs['heart'][:, 0]
    assert heart.max() - 0.5 * a.turn > -(heart.min() - 0.5 * a.turn)  # the apex points to the patient's left
    assert a.organs['knob'][0] > 0  # and so does the aortic knob
    for s in (-1, 1):
        assert a.angles[s] - a.domes[s] > 0.05  # a costophrenic angle well below the dome
        assert a.outline[s][:, 1].min() < a.clavicles[s][0, 1]  # the apex above the clavicle's inner end
        # lateral border and diaphragm meet in the angle
        assert np.allclose(a.outline[s][-1], a.base[s][0], atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, strength=st.floats(-3, 6), sex=st.sampled_from(SEXES), age=st.floats(18, 95))
def test_the_heart_is_larger_on_an_ap_film_and_grows_with_its_strength(seed, strength, sex, age):
    def ratio(s, projection):
        a = patient_anatomy(HEALTHY | {'Cardiomegaly': s}, sex, age, projection, seed)
        return np.ptp(a.organs['heart'][:, 0]) / (2 * a.width)

    assert 1.05 < ratio(strength, 'AP') / ratio(strength, 'PA') < 1.09
    assert abs(ratio(strength + 1, 'PA') - ratio(strength, 'PA') - 0.035) < 0.003


def test_the_heart_is_larger_on_an_ap_film_when_measured_on_its_pixels():
    def measured(projection, seed):
        a = patient_anatomy(HEALTHY | {'Cardiomegaly': 1.0}, 'Male', 60, projection, seed, dict(tilt=0.0))
        heart = draw_patient(a, HEALTHY | {'Cardiomegaly': 1.0}, 256, seed).masks['Cardiomegaly']
        lungs = lung_mask(a, patient_frame(a, 256)) > 0.5
        return np.ptp(np.flatnonzero(heart.any(0))) / np.ptp(np.flatnonzero(lungs.any(0)))

    for seed in range(5):
        assert 1.03 < measured('AP', seed) / measured('PA', seed) < 1.11


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, sex=st.sampled_from(SEXES), projection=st.sampled_from(PROJECTIONS))
def test_the_aortic_knob_grows_with_age_and_the_bones_fade(seed, sex, projection):
    reach = [patient_anatomy(HEALTHY, sex, age, projection, seed).organs['knob'] for age in (20, 55, 90)]
    edge = [x + r for x, _, r, _ in reach]
    assert edge == sorted(edge) and edge[2] - edge[0] > 0.01


def extremes(name):
    "The same man with a nuisance number far below and far above its mean"
    return [patient_anatomy(HEALTHY, 'Male', 50, 'PA', 4, {name: v}) for v in (-2.0, 2.0)]


@pytest.mark.parametrize('name', ['turn', 'dome', 'habitus'])
def test_a_nuisance_leaves_the_hearts_width(name):
    low, high = (np.ptp(a.organs['heart'][:, 0]) for a in extremes(name))
    assert abs(low - high) < 0.006


def test_a_turn_moves_the_front_of_the_chest_against_the_back():
    low, high = extremes('turn')
    inner = lambda a: sum(a.clavicles[s][0, 0] for s in (-1, 1))
    assert inner(high) - inner(low) > 0.05
    assert np.allclose(low.ribs[1][0], high.ribs[1][0])


def test_a_breath_moves_the_diaphragm_and_leaves_the_ribs():
    low, high = extremes('dome')
    above = lambda a: sum(p[8, 1] < a.domes[-1] for p in a.ribs[-1][0])
    assert above(high) > above(low)
    assert np.isclose(low.ribs[1][0][3, 0, 1], high.ribs[1][0][3, 0, 1])


def test_a_stout_patient_has_a_thicker_trunk():
    slender, stout = (draw_body(patient_frame(a, 128), a)[0][70:].sum() for a in extremes('habitus'))
    assert stout > slender


def test_scapulae_lie_over_the_lungs_at_the_bedside_only():
    def over_lung(projection, seed):
        a = patient_anatomy(HEALTHY, 'Male', 50, projection, seed)
        f = patient_frame(a, 160)
        y = f.enlarge(f.Y)
        upper_lung = (lung_mask(a, f) > 0.5) & (y > a.y(0.25)) & (y < a.y(0.5))
        return draw_shoulders(f, a)[upper_lung].mean()

    for seed in range(6):
        assert over_lung('AP', seed) > 3 * over_lung('PA', seed)


def breast_shadow(a, height):
    "Mean of the shadow in the middle of both lungs at a height of the chest"
    f = patient_frame(a, 128)
    x, y = f.enlarge(f.X), f.enlarge(f.Y)
    return draw_breasts(f, a)[(np.abs(y - a.y(height)) < 0.04) & (np.abs(np.abs(x) - 0.22) < 0.06)].mean()


@pytest.mark.parametrize('seed', range(4))
def test_women_have_breast_shadows_over_the_bases(seed):
    changes = dict(breast=0.5, habitus=0.0)
    woman, man = (patient_anatomy(HEALTHY, sex, 60, 'PA', seed, changes) for sex in ('Female', 'Male'))
    assert breast_shadow(woman, 0.88) > 0.03
    assert breast_shadow(woman, 0.88) > 5 * breast_shadow(man, 0.88)
    assert max(breast_shadow(woman, 0.15), breast_shadow(man, 0.15)) < 0.01


# Exposure and markers


@settings(max_examples=30, deadline=None)
@given(person=PERSON, strengths=st.dictionaries(SIGN, st.floats(-4, 8)))
def test_every_film_is_exposed_within_bounds(person, strengths):
    image = render_radiograph(strengths, size=96, masks=False, **person).image
    assert image.dtype == np.uint8 and image.shape == (96, 96)
    assert (image >= 253).mean() < 0.05
    assert (image[24:80, 24:72] == 0).mean() < 0.15
    assert image.std() > 15


@pytest.mark.parametrize('name', NORMAL_NUISANCES)
@pytest.mark.parametrize('value', [-2.3, 2.3])
def test_the_extreme_of_one_nuisance_number_is_still_a_chest(name, value):
    for projection, sex in zip(PROJECTIONS, SEXES):
        a = patient_anatomy(HEALTHY, sex, 60, projection, 2, {name: value})
        image = draw_patient(a, HEALTHY, 128, 2, masks=False).image.astype(float)
        f = patient_frame(a, 128)
        lung, body = lung_mask(a, f) > 0.95, draw_body(f, a)[0] > 0.95
        assert 0.12 < lung.mean() < 0.45 and 0.45 < body.mean() <= 1, projection
        assert (image[lung] == 0).mean() < 0.03, projection
        assert image[lung].mean() + 35 < image[body & ~lung].mean(), projection


def test_nuisance_numbers_are_bounded():
    drawn = [nuisance(seed) for seed in range(200)]
    assert all(0 <= v < 1 if k.startswith('u_') else abs(v) <= 2.3 for z in drawn for k, v in z.items())


def test_an_l_stands_on_the_viewers_right_and_an_r_on_the_left():
    sides = set()
    for seed in range(40):
        a = patient_anatomy(HEALTHY, 'Female', 50, PROJECTIONS[seed % 2], seed)
        layer = markers(patient_frame(a, 160), a)
        center = (layer.sum(0) * np.arange(160)).sum() / layer.sum()
        left = a.z['u_marker'] < 0.75
        sides.add(left)
        assert layer.max() > 0.5 and (center > 110 if left else center < 60)
    assert sides == {True, False}


def test_markers_do_not_depend_on_the_findings():
    for seed in range(6):
        sick, well = (patient_anatomy(dict.fromkeys(SIGNS, s), 'Male', 70, 'AP', seed) for s in (4.0, 0.0))
        assert (markers(patient_frame(sick, 128), sick) == markers(patient_frame(well, 128), well)).all()


def test_a_word_has_the_strokes_of_its_letters():
    assert len(lead_letters('L', 0.9, 0.1, 0.04)) == 1
    assert len(lead_letters('PORTABLE', 0.1, 0.1, 0.03, 0.2)) > 8


def test_every_device_comes_first_now_and_then():
    share = list(DEVICES.values())
    assert abs(sum(share) - 1) < 1e-9
    streams = [sign_rng(seed, 'Support Devices') for seed in range(400)]
    first = {rng.choice(len(DEVICES), len(DEVICES), replace=False, p=share)[0] for rng in streams}
    assert first == set(range(len(DEVICES)))


@pytest.mark.parametrize('device', DEVICES)
def test_a_device_is_polygons_with_their_brightness(device):
    a = patient_anatomy(HEALTHY, 'Male', 50, 'PA', 0)
    polygons, values = device(a, np.random.default_rng(0))
    assert len(polygons) == len(values)
    assert all(p.ndim == 2 and np.isfinite(p).all() for p in polygons)
    assert all(0 < v <= 1 for v in values)


# Input


@pytest.mark.parametrize(
    'kwargs, words',
    [
        (dict(strengths={'Cough': 1.0}), 'unknown sign'),
        (dict(strengths={'Edema': float('inf')}), 'Edema is inf'),
        (dict(strengths={'Edema': None}), 'Edema is None'),
        (dict(sex='female'), 'Female, Male'),
        (dict(projection='Lateral'), 'PA, AP'),
        (dict(age=float('nan')), '18 to 95'),
        (dict(size=63), '64 or more'),
        (dict(seed=1.5), 'seed is 1.5'),
    ],
)
def test_wrong_input_is_refused_with_what_is_allowed(kwargs, words):
    with pytest.raises(ValueError, match=words):
        render_radiograph(**({'strengths': {}} | kwargs))


# Sheets and statistics


def test_every_picture_of_a_sheet_says_simulated():
    drawn = [render_radiograph({}, seed=i, size=64) for i in range(5)]
    fig = contact_sheet(drawn, titles=list('abcde'), ncols=3)
    assert sum(t.get_text() == MARK for t in fig.axes[0].texts) == 5


@pytest.fixture(scope='module')
def pictures():
    "Black, white, noise, a chest"
    black = np.zeros((224, 224), np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (224, 224), dtype=np.uint8)
    return np.stack([black, black + 255, noise, render_radiograph({}, size=224).image])


def test_statistics_hold_for_any_picture(pictures):
    assert np.isfinite(film_statistics(pictures)).all(axis=None)
    assert np.allclose(gray_histogram(pictures)[1].sum(1) * 4, 1)
    assert gradient_magnitude(pictures)[:2].max() == 0


def test_the_spectrum_of_noise_is_flat_and_that_of_a_chest_is_not(pictures):
    waves, power = radial_spectrum(pictures)
    assert power.shape == (4, 112)
    assert abs(np.diff(power[2, 5:100])).max() < 0.3
    assert power[3, 0] - power[3, -1] > 4


def test_the_sceptic_finds_a_difference_that_is_there_and_none_that_is_not():
    rng = np.random.default_rng(0)
    names = [f'x{i}' for i in range(8)]
    a, b = (pd.DataFrame(rng.normal(0, 1, (120, 8)), columns=names) for _ in range(2))
    assert abs(tell_apart(a, b)['auroc'] - 0.5) < 0.12
    found = tell_apart(a.assign(x3=a.x3 + 3), b)
    assert found['auroc'] > 0.95
    assert found['coefficients'].abs().idxmax() == 'x3' and found['coefficients'].x3 > 0
    assert found['reasons'][0].startswith('x3:')


def square(path):
    "The middle of an image file, 224 pixels a side"
    x = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    h, w = x.shape
    n = min(h, w)
    middle = x[(h - n) // 2 : (h + n) // 2, (w - n) // 2 : (w + n) // 2]
    return cv2.resize(middle, (224, 224), interpolation=cv2.INTER_AREA)


@pytest.mark.skipif(not (SHARED / 'nih').is_dir(), reason='../shared/data is not here')
def test_drawn_films_lie_within_the_spread_of_real_ones():
    paths = sorted((SHARED / 'nih' / 'images').glob('*.png'))[::7]
    real = film_statistics(np.stack([square(p) for p in paths]))
    drawn = []
    for i in range(60):
        person = dict(sex=SEXES[i % 2], age=20 + i, projection=PROJECTIONS[i % 5 == 0], seed=i)
        drawn.append(render_radiograph({}, size=224, masks=False, **person).image)
    apart = (real.mean() - film_statistics(np.stack(drawn)).mean()).abs() / real.std()
    assert apart.max() < 1.5 and apart.mean() < 0.75, apart
