"""Zones: every pixel has one, left and right are the patient's, and a name needs its verdict."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_lib.explanation.acceptance import count_names, named_observations, names_zones, why_no_zone, zone_for
from cxr_lib.explanation.landmarks import draw_chests, true_landmarks
from cxr_lib.explanation.zones import (
    HOLDS,
    REGIONS,
    ZONES,
    judge_name,
    judge_named,
    judge_zones,
    name_zone,
    occupied_zones,
    region_zones,
    usual_landmarks,
    zone_counts,
    zone_map,
)
from cxr_lib.reasoning.statements import read_statements


def swapped(name):
    "The same place on the other side"
    for one, other in (('right', 'left'), ('left', 'right')):
        if name.startswith(one):
            return other + name.removeprefix(one)
    return name


def mirrored(points):
    "The landmarks of a mirrored chest: right and left change places"
    flipped = points.reshape(-1, 2, 2)[:, ::-1].reshape(-1, 2).copy()
    flipped[:, 0] = 1 - flipped[:, 0]
    return flipped


@pytest.fixture(scope='module')
def points():
    return draw_chests(12, seed=9).points


def test_a_mirrored_chest_has_mirrored_zones(points):
    for own in points:
        zones, other = zone_map(own, 64), zone_map(mirrored(own), 64)[:, ::-1]
        expected = np.array([ZONES.index(swapped(name)) for name in ZONES])[zones]
        assert (expected == other).mean() > 0.999


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([8, 33, 64]))
def test_any_points_give_every_pixel_a_zone(seed, size):
    wild = np.random.default_rng(seed).uniform(-0.5, 1.5, (12, 2))
    zones = zone_map(wild, size)
    assert zones.shape == (size, size) and 0 <= zones.min() <= zones.max() < len(ZONES)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_named_region_holds_the_heat_that_is_said_of_it(seed):
    rng = np.random.default_rng(seed)
    zones = zone_map(usual_landmarks(), 32)
    heat = rng.random((32, 32)) ** rng.integers(1, 30)
    name, share = name_zone(heat, zones)
    assert (share >= HOLDS and region_zones(name)) or (name, share) == ('', 0.0)


def test_an_effusion_of_the_patients_right_is_named_right():
    patient = draw_chests(1, seed=3).patients.iloc[0].to_dict()
    zones = zone_map(true_landmarks(patient), 64)
    mask = np.zeros((64, 64), bool)
    mask[36:44, 8:14] = True  # at the wall, on the viewer's left
    name = name_zone(mask, zones)[0]
    assert name.startswith('right') and all(z.startswith('right') for z in occupied_zones(mask, zones))


def test_every_region_is_read_as_a_place_and_as_no_finding():
    for level in REGIONS:
        for name in level:
            assert read_statements(f'The image speaks for it (+1.2), in the {name}.') == [], name


def words(names, there):
    rows = [dict(name=n, there=set(t), prior_name='both lungs') for n, t in zip(names, there)]
    for row in rows:
        row['precision'], row['recall'] = judge_name(row['name'], row['there'])
        row['prior'] = judge_name(row['prior_name'], row['there'])[0]
    return pd.DataFrame(rows)


def test_a_vague_name_is_not_accepted_and_a_right_one_is():
    places = ['left lower zone', 'right apex', 'right mid zone', 'left apex'] * 3
    there = [{place} for place in places]
    assert judge_zones(words(places, there), 8, 100)['accepted']
    assert not judge_zones(words(['both lungs'] * 12, there), 8, 100)['accepted']
    assert not judge_zones(words(places, there[1:] + there[:1]), 8, 100)['accepted']
    few = judge_zones(words(places[:7] + [''] * 5, there), 8, 100)
    assert not few['accepted'] and 'only 7 patients' in few['reason'] and 'precision' not in few


def test_counts_by_zone_are_those_of_the_names():
    counts = {c['zone']: c for c in zone_counts(words(['both apices', ''], [{'left apex'}, {'neck'}]))}
    assert counts['left apex'] == dict(zone='left apex', stated=1, true=1, there=1)
    assert counts['right apex'] == dict(zone='right apex', stated=1, true=0, there=0)
    assert counts['neck'] == dict(zone='neck', stated=0, true=0, there=1)


PASSED = dict(accepted=True, hit_rate=dict(value=0.9), location_prior=dict(value=0.2), reason='')


def explanation(zone, in_distribution=True, **verdict):
    own = PASSED | verdict | ({} if zone is None else dict(zone=zone))
    bench = dict(world='plain', in_distribution=in_distribution)
    return dict(methods={'grad_cam': {'Edema': own}}, default_method='grad_cam', settings={}, bench=bench)


GOOD = dict(accepted=True, tuning=dict(accepted=True))


@pytest.mark.parametrize(
    'spoiled',
    [
        explanation(None),
        explanation(GOOD | dict(accepted=False)),
        explanation(GOOD, in_distribution=False),
        explanation(GOOD, accepted=False),
        explanation(dict(accepted=True)),
        explanation(GOOD | dict(tuning=dict(accepted=False))),
    ],
    ids=['no names', 'names refused', 'another patient', 'map refused', 'not counted', 'often wrong'],
)
def test_a_place_is_named_only_with_all_verdicts(spoiled):
    heat = np.zeros((64, 64))
    heat[30:34, 12:16] = 1
    good = explanation(GOOD)
    assert names_zones(good, 'grad_cam', 'Edema') and zone_for(good, 'grad_cam', 'Edema', heat)[0]
    assert not names_zones(spoiled, 'grad_cam', 'Edema')
    assert why_no_zone(good) == '' and why_no_zone(spoiled)
    assert zone_for(spoiled, 'grad_cam', 'Edema', heat) == ('', 0.0)


def test_an_explanation_of_an_earlier_version_has_no_places():
    old = explanation(None)
    assert named_observations(old).empty


def counted(right, wrong):
    "Verdicts after so many right and wrong names in tuning images"
    precision = [1.0] * right + [0.0] * wrong
    names = pd.DataFrame(dict(observation='Edema', precision=precision), columns=['observation', 'precision'])
    return count_names(explanation(dict(accepted=True, reason='')), names)


@pytest.mark.parametrize(
    'right, wrong, expected', [(30, 10, True), (22, 18, False), (7, 0, False), (0, 0, False)]
)
def test_names_are_used_where_they_are_clearly_more_often_right_than_wrong(right, wrong, expected):
    found = counted(right, wrong)
    assert names_zones(found, 'grad_cam', 'Edema') == expected
    reason = found['methods']['grad_cam']['Edema']['zone']['tuning']['reason']
    assert bool(reason) != expected


def test_the_count_leaves_the_verdict_of_the_bench_as_it_is():
    before = explanation(dict(accepted=True, reason=''))
    count_names(before, pd.DataFrame(columns=['observation', 'precision']))
    assert before == explanation(dict(accepted=True, reason=''))
    refused = explanation(dict(accepted=False, reason='often wrong'))
    assert count_names(refused, pd.DataFrame(columns=['observation', 'precision'])) == refused


def test_more_right_names_never_lose_the_verdict():
    verdicts = [judge_named([1.0] * k + [0.0] * (40 - k), 8)['accepted'] for k in range(41)]
    assert verdicts == sorted(verdicts)


def test_a_verdict_that_was_never_counted_says_so():
    assert 'was not counted' in why_no_zone(explanation(dict(accepted=True, reason='')))
    assert 'right often enough' in why_no_zone(counted(7, 0))
