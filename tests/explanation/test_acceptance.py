"""The verdict on heat maps can fail, and does where it should."""

import json

import numpy as np
import pytest
from benches import untrained
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_lib.explanation.acceptance import (
    CANDIDATES,
    acceptance_sentences,
    acceptance_table,
    best_method,
    check_explanation,
    judge_checkpoint,
    judge_controls,
    judge_maps,
    judge_observation,
    map_for,
    plot_acceptance,
)
from cxr_lib.explanation.bench import (
    FOCAL,
    draw_bench,
    location_prior,
    other_maps,
    randomised,
    rotated,
    score_maps,
)
from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.foundations.files import read_json
from cxr_lib.model.saved import read_beside, save_beside
from cxr_lib.simulation.causes import SIGNS


@pytest.fixture(scope='module')
def bench():
    return draw_bench(40, per=12, seed=5)


@pytest.fixture(scope='module')
def falls(bench):
    return np.random.default_rng(0).gamma(4, 0.5, len(bench))


@pytest.fixture(scope='module')
def oracle(bench, falls):
    "What is owed to the finding, on the finding"
    share = bench.changed / bench.changed.sum((1, 2), keepdims=True)
    return share * falls[:, None, None] * (1 + bench.masks)


@pytest.fixture(scope='module')
def noise(bench):
    return [np.random.default_rng(s).random(bench.masks.shape) for s in (1, 2)]


def accepted(verdict):
    return {o for o, v in verdict.items() if v['accepted']}


def test_an_oracle_passes_on_focal_findings(bench, oracle, noise, falls):
    assert len(accepted(judge_maps(oracle, noise, bench, falls, 200)) & set(FOCAL)) >= 6


@pytest.mark.parametrize('turn', [1, 2, 3])
def test_a_map_that_is_turned_fails_everywhere(turn, bench, oracle, noise, falls):
    maps = oracle
    for _ in range(turn):
        maps = rotated(maps)
    assert not accepted(judge_maps(maps, noise, bench, falls, 200)) & set(FOCAL)


def test_random_maps_the_prior_and_another_patients_map_fail_everywhere(bench, oracle, noise, falls):
    for maps in (noise[0], location_prior(bench), other_maps(oracle, bench)):
        assert not accepted(judge_maps(maps, noise[1:], bench, falls, 200))


def test_a_map_that_ignores_the_model_fails_against_random_weights(bench, oracle, falls):
    found = judge_maps(oracle, [oracle], bench, falls, 200)
    assert not accepted(found)
    assert any('random weights' in v['reason'] for v in found.values())


def test_a_map_in_the_right_place_that_does_not_go_with_the_answer_fails(bench, oracle, noise, falls):
    constant = bench.masks / bench.masks.sum((1, 2), keepdims=True)
    found = judge_maps(constant * falls.max() / (1 + falls[:, None, None]), noise, bench, falls, 200)
    assert not accepted(found)
    assert any('does not go with' in v['reason'] for v in found.values())


@settings(max_examples=30, deadline=None)
@given(st.integers(9, 40), st.integers(0, 10_000), st.floats(0, 1))
def test_the_paired_interval_is_of_differences_within_patients(n, seed, rate):
    rng = np.random.default_rng(seed)
    prior = (rng.random(n) < rate).astype(float)
    same = judge_observation(prior, prior, np.zeros(n), rng.random(n), rng.random(n), 50)
    assert same['over_location_prior'] == dict(value=0, low=0, high=0)
    assert not same['accepted']
    worse = judge_observation(np.minimum(prior, 0), prior, np.zeros(n), rng.random(n), rng.random(n), 50)
    gap = worse['over_location_prior']
    assert gap['value'] == pytest.approx(-prior.mean()) and gap['low'] <= gap['value'] <= gap['high']


def test_a_paired_difference_can_be_clear_where_the_intervals_overlap():
    hit = np.repeat([1.0, 0.0], [24, 16])
    prior = np.repeat([1.0, 0.0], [14, 26])
    mass = np.arange(40.0)
    found = judge_observation(hit, prior, np.zeros(40), mass, mass, 500)
    assert found['hit_rate']['low'] < found['location_prior']['high']
    assert found['over_location_prior']['low'] > 0 and found['accepted']


def test_too_few_patients_are_no_verdict():
    ones = np.ones(7)
    found = judge_observation(ones, 0 * ones, 0 * ones, np.arange(7.0), np.arange(7.0), 50)
    assert not found['accepted'] and 'only 7 patients' in found['reason']


def test_a_difference_too_small_to_matter_is_no_reason_to_believe():
    hit, prior = np.full(20, 1.0), np.full(20, 0.99)
    assert not judge_observation(hit, prior, 0 * hit, np.arange(20.0), np.arange(20.0), 50)['accepted']


@pytest.fixture(scope='module')
def untrained_verdict():
    return judge_checkpoint(untrained(['fever']), CANDIDATES, n=30, per=10, seeds=1, n_bootstrap=100)


def test_what_must_fail_is_judged_on_every_checkpoint_and_told(untrained_verdict):
    controls = untrained_verdict['controls']
    assert set(controls) == set(CANDIDATES)
    assert all(of == dict(rotated=[], random_weights=[]) for of in controls.values())
    said = ' '.join(acceptance_sentences(untrained_verdict))
    assert 'turned by 90 degrees 0 of 39 are accepted' in said and 'of random weights 0 of 39' in said
    assert 'Milliseconds per map: integrated gradients' in said


def test_controls_that_pass_are_told_too(bench, oracle, noise, falls):
    found = judge_controls(rotated(rotated(rotated(oracle))), [oracle, *noise], bench, falls, falls, 100)
    assert all(len(set(found[kind]) & set(FOCAL)) >= 6 for kind in ('rotated', 'random_weights'))


def test_an_untrained_model_passes_nothing(untrained_verdict):
    assert not any(accepted(of) for of in untrained_verdict['methods'].values())
    assert untrained_verdict['default_method'] is None
    assert all(map_for(untrained_verdict, o)[0] is None for o in OBSERVATIONS)
    assert 'No map is shown.' in acceptance_sentences(untrained_verdict)
    assert plot_acceptance(untrained_verdict).get_supxlabel().startswith('SIMULATED')


def test_a_model_of_real_images_is_told_that_the_bench_is_not_its_own(untrained_verdict):
    assert 'unlike the images' in untrained_verdict['bench']['about']
    own = untrained(['fever'])
    own.facts['simulated'] = True
    found = judge_checkpoint(own, ['grad_cam'], n=8, per=3, seeds=1, n_bootstrap=10)
    assert 'unlike' not in found['bench']['about']


def test_an_encoder_without_places_is_judged_by_the_methods_that_it_has(monkeypatch):
    classifier = untrained(['fever'])
    monkeypatch.setattr(classifier.model.image_encoder, 'side', 0)
    found = judge_checkpoint(classifier, CANDIDATES, n=8, per=3, seeds=1, n_bootstrap=10)
    assert 'no square map' in found['methods']['grad_cam']['Edema']['reason']
    assert any(s.startswith('Grad-CAM: no map, because the tokens') for s in acceptance_sentences(found))
    assert len(acceptance_table(found)) == 3 * len(SIGNS)


def test_shuffled_weights_are_the_same_weights_in_another_place():
    classifier = untrained(['fever'])
    shuffled = dict(randomised(classifier, 3).model.named_parameters())
    for name, p in classifier.model.named_parameters():
        values = [np.sort(x.detach().numpy().ravel()) for x in (p, shuffled[name])]
        assert (values[0] == values[1]).all()
    again = dict(randomised(classifier, 3).model.named_parameters())
    assert all((again[name] == p).all() for name, p in shuffled.items())


def test_the_bench_never_draws_a_patient_twice_and_knows_what_changed(bench):
    assert bench.patients.patient_id.is_unique
    assert (bench.changed.sum((1, 2)) > 0).all() and bench.masks.any((1, 2)).all()
    both = [(bench.changed[i] & bench.masks[i]).any() for i in range(len(bench))]
    assert np.mean(both) > 0.95


def test_a_perfect_map_has_perfect_scores_and_a_wrong_shape_is_named(bench):
    found = score_maps(bench.masks.astype(float), bench)
    assert found.hit.min() == 1 and found.auprc.min() == pytest.approx(1)
    with pytest.raises(ValueError, match='the bench has'):
        score_maps(np.zeros((2, 64, 64)), bench)


def test_what_is_written_is_read_back_and_damage_is_named(tmp_path, untrained_verdict):
    folder = tmp_path / 'model'
    untrained(['fever']).save_pretrained(folder)
    save_beside(folder, {'explanation.json': untrained_verdict})
    stored = read_beside(folder)['explanation.json']
    assert check_explanation(stored)['methods'].keys() == untrained_verdict['methods'].keys()
    assert json.loads(json.dumps(stored)) == read_json(folder / 'explanation.json')
    for broken in (
        dict(schema='cxr_lib.explanation/9'),
        dict(methods={'lime': {}}),
        dict(default_method='lime'),
    ):
        with pytest.raises(ValueError, match='explanation.json'):
            check_explanation(stored | broken)
    damaged = json.loads(json.dumps(stored))
    damaged['methods']['grad_cam']['Edema'] = {}
    with pytest.raises(ValueError, match='damaged'):
        check_explanation(damaged)


def test_the_default_is_the_method_with_most_accepted_observations(bench, oracle, noise, falls):
    good, bad = (judge_maps(m, noise, bench, falls, 100) for m in (oracle, rotated(oracle)))
    assert best_method({'grad_cam': bad, 'occlusion': good}) == 'occlusion'
    assert best_method({'grad_cam': bad}) is None and best_method({}) is None
