"""Groups, gaps, under-diagnosis and shortcuts

Numbers against direct computation, false alarms counted over seeds, planted effects, small groups, bad input.
"""

import json
from itertools import chain, combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from scipy import special, stats

from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.foundations.files import read_json, write_json
from cxr_lib.evaluation.fairness import (
    ATTRIBUTES,
    NOT_KNOWN,
    RATES,
    SHORTCUT_CONTEXTS,
    fairness,
    fairness_sentences,
    group_gaps,
    group_rows,
    has_finding,
    plot_shortcuts,
    plot_subgroups,
    plot_underdiagnosis,
    shortcut_probe,
    subgroup_areas,
    subgroup_performance,
    underdiagnosis,
    within_auroc,
)
from cxr_lib.metrics.ranking import auroc, count_cases, known_labels, resample_patients
from cxr_lib.metrics.decisions import choose_thresholds
from cxr_lib.metrics.comparison import holm
from cxr_lib.metrics.predictions import REQUIRED_CONDITIONS, synthetic_predictions
from cxr_lib.data.public import load_nih
from cxr_lib.data.observations import NIH_TO_CHEXPERT

DATA = Path(__file__).resolve().parent.parent.parent.parent / 'shared' / 'data'
quick = settings(max_examples=60, deadline=None)


def of(table, split):
    return table[table['split'] == split].reset_index(drop=True)


@pytest.fixture(scope='module')
def practice():
    return synthetic_predictions(600, seed=4)


@pytest.fixture(scope='module')
def test(practice):
    return of(practice, 'test')


@pytest.fixture(scope='module')
def drawn(test):
    return resample_patients(test['patient_id'], 60)


@pytest.fixture(scope='module')
def report(practice):
    return fairness(practice, n_bootstrap=60, simulated=True)


# ---- groups


@quick
@given(st.lists(st.sampled_from(['Male', 'Female', None, 'under 40', '80 and over']), max_size=30))
def test_every_row_is_in_one_group(values):
    rows = group_rows(pd.Series(values, dtype=object))
    assert sorted(np.concatenate(list(rows.values())).tolist() if rows else []) == list(range(len(values)))
    assert NOT_KNOWN not in rows or list(rows)[-1] == NOT_KNOWN and len(rows[NOT_KNOWN]) == values.count(None)


def of_group(table, row):
    "The rows of a group"
    if row['attribute'] == 'support devices':
        return table[table['label/Support Devices'] == (row['group'] == 'present')]
    return table[table[row['attribute']] == row['group']]


def area_of(table, o):
    rows, labels = known_labels(table, o)
    return auroc(labels, table[f'fused/{o}'].to_numpy()[rows])


def test_the_mean_of_a_group_is_that_of_its_rows(test, drawn):
    for row in subgroup_performance(test, *drawn, count_cases(test)):
        if row['group'] == NOT_KNOWN or row['attribute'] == 'age':
            continue
        part = of_group(test, row)
        areas = [area_of(part, o) for o in row['observations']]
        assert row['fused'] == pytest.approx(np.mean(areas))
        assert row['n_images'] == len(part)
        assert row['n_patients'] == part['patient_id'].nunique()
        assert row['reason'] == ''
        assert row['compared']
        assert row['n_averaged'] == len(areas)
        assert row['fused_low'] < row['fused'] < row['fused_high']


def test_small_groups_and_the_unknown_are_shown_and_not_compared(practice):
    t = practice.copy()
    t.loc[t['patient_id'].str[-2:].isin(['13', '40']), 'sex'] = 'Other'
    t.loc[t['patient_id'].str[-1:] == '7', 'sex'] = None
    found = fairness(t, n_bootstrap=30)
    rows = {r['group']: r for r in found['subgroups'] if r['attribute'] == 'sex'}
    assert list(rows) == ['Female', 'Male', 'Other', NOT_KNOWN]
    assert rows['Other']['small']
    assert 0 < rows['Other']['fused'] <= 1
    assert rows['Other']['n_averaged'] <= len(rows['Other']['observations'])
    assert not rows[NOT_KNOWN]['small']
    assert not rows[NOT_KNOWN]['compared']
    assert not rows['Other']['compared']
    gap = next(g for g in found['gaps'] if g['attribute'] == 'sex')
    assert {gap['best'], gap['worst']} == {'Female', 'Male'}
    assert gap['n_pairs'] == 1
    assert 'sex Other' in found['sentences'][-1]
    axis = plot_subgroups(found).axes[0]
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert any(n.startswith('sex: Other\n') and 'patients' in n for n in names)
    assert any(n.startswith('sex: not known') for n in names)
    dots = [line for line in axis.lines if line.get_marker() == 'o' and len(line.get_xdata())]
    hollow = [line for line in dots if line.get_markerfacecolor() == 'white']
    assert len(hollow) >= 4  # two groups, two conditions


def test_support_devices_do_not_judge_the_groups_that_they_make(test, drawn):
    rows = subgroup_performance(test, *drawn, count_cases(test))
    rows = [r for r in rows if r['attribute'] == 'support devices']
    assert {'absent', 'present'} <= {r['group'] for r in rows}
    assert all('Support Devices' not in r['observations'] for r in rows)


# ---- gaps


def test_the_gap_of_two_groups_is_their_difference():
    r = np.random.default_rng(0)
    a, b = np.r_[0.8, 0.8 + 0.01 * r.normal(size=400)], np.r_[0.7, 0.7 + 0.01 * r.normal(size=400)]
    (one,) = group_gaps({'sex': {'Female': a, 'Male': b}})
    assert (one['best'], one['worst']) == ('Female', 'Male')
    assert one['gap'] == pytest.approx(0.1)
    # one pair: nothing to correct
    assert one['low_all'] == pytest.approx(one['low'], abs=0.006)
    assert one['high_all'] == pytest.approx(one['high'], abs=0.006)
    assert one['p'] == pytest.approx(1 / 401)
    (worse,) = group_gaps({'sex': {'Female': a, 'Male': b}}, higher_is_better=False)
    assert (worse['best'], worse['worst'], worse['gap']) == ('Male', 'Female', one['gap'])


def test_more_groups_ask_for_more():
    r = np.random.default_rng(1)

    def group():
        return np.r_[0.8, 0.8 + 0.02 * r.normal(size=500)]

    few = {'sex': {'Female': group() + 0.05, 'Male': group()}}
    (alone,) = group_gaps(few)
    among = group_gaps(few | {'age': {str(k): group() for k in range(6)}})
    assert among[0]['p'] > alone['p']
    assert among[0]['low_all'] < alone['low_all']
    assert among[0]['low'] == alone['low']
    assert among[1]['by_chance'] > among[0]['by_chance']  # six groups are farther apart by chance than two
    mean_range = 2.534  # of six standard normal numbers (Tippett 1925)
    assert among[1]['by_chance'] == pytest.approx(0.02 * mean_range, rel=0.1)


def test_gaps_that_cannot_be_measured_say_why():
    same = np.full(50, 0.7)
    one, none, still, undefined = group_gaps(
        {
            'view': {'Frontal': same},
            'sex': {},
            'age': {'a': same, 'b': same - 0.1},
            'projection': {'AP': np.full(50, np.nan), 'PA': same},
        }
    )
    assert '1 group' in one['reason']
    assert 'no groups' in none['reason']
    assert 'do not vary' in still['reason']
    assert '1 group' in undefined['reason']
    assert np.isnan(one['gap'])
    assert np.isnan(still['p'])
    assert still['gap'] == pytest.approx(0.1)
    assert group_gaps({}) == []


def test_resamples_without_a_class_do_not_spoil_the_others():
    r = np.random.default_rng(2)
    a, b = np.r_[0.8, 0.8 + 0.01 * r.normal(size=200)], np.r_[0.7, 0.7 + 0.01 * r.normal(size=200)]
    a[5:9] = np.nan
    assert group_gaps({'sex': {'x': a, 'y': b}})[0]['p'] == pytest.approx(1 / 201)


# ---- under-diagnosis


def test_who_has_a_finding():
    t = pd.DataFrame({f'label/{o}': [np.nan] * 6 for o in OBSERVATIONS})
    t.loc[[0, 1], 'label/No Finding'] = [1, 0]
    t.loc[[0, 2], 'label/Edema'] = 1
    t.loc[3, 'label/Support Devices'] = 1
    t.loc[4, 'label/Edema'] = -1
    t.loc[5, ['label/No Finding', 'label/Fracture']] = [-1, 1]
    assert has_finding(t).tolist()[:3] == [0, 1, 1]
    assert np.isnan(has_finding(t)[3:5]).all()
    assert has_finding(t)[5] == 1


def test_rates_are_those_of_direct_counting(test, practice, drawn):
    tuning = of(practice, 'tuning')
    cut = choose_thresholds(tuning)
    found = underdiagnosis(test, cut, *drawn)
    for g in ('Female', 'Male'):
        row, part = next(r for r in found['rows'] if r['group'] == g), test[test['sex'] == g]
        sick = part[has_finding(part) == 1]
        assert row['n_under'] == len(sick)
        assert row['under'] == pytest.approx((sick['fused/No Finding'] >= cut.loc[-1, 'No Finding']).mean())
        well = part[part['label/No Finding'] == 1]
        assert row['n_over'] == len(well)
        assert row['over'] == pytest.approx((well['fused/No Finding'] < cut.loc[-1, 'No Finding']).mean())
        missed = []
        for o in OBSERVATIONS:
            ill, healthy = (part[part[f'label/{o}'] == y] for y in (1, 0))
            one = row['observations'][o]
            assert (one['n_miss'], one['n_alarm']) == (len(ill), len(healthy))
            assert one['miss'] == pytest.approx((ill[f'fused/{o}'] < cut.loc[-1, o]).mean())
            assert one['alarm'] == pytest.approx((healthy[f'fused/{o}'] >= cut.loc[-1, o]).mean())
            if o in row['averaged']:
                missed.append(one['miss'])
        assert row['missed'] == pytest.approx(np.mean(missed))
        assert 'No Finding' not in row['averaged']
    assert set(found['gaps']) == set(RATES)


def test_folds_use_their_own_thresholds():
    t = synthetic_predictions(300, seed=2, n_folds=3)
    test, cut = of(t, 'test'), choose_thresholds(of(t, 'tuning'))
    rows = underdiagnosis(test, cut, *resample_patients(test['patient_id'], 5))['rows']
    row = next(r for r in rows if r['group'] == 'Female')
    ill = test[(test['sex'] == 'Female') & (test['label/Edema'] == 1)]
    missed = ill['fused/Edema'].to_numpy() < ill['fold'].map(cut['Edema']).to_numpy()
    assert row['observations']['Edema']['miss'] == pytest.approx(missed.mean())


def test_nobody_missed_is_not_nobody_can_be(practice):
    "A rate of 0 among few patients: resampling gives [0, 0], the exact interval does not"
    t = practice.copy()
    t['fused/No Finding'] = np.where(t['label/No Finding'] == 1, 0.9, 0.1)
    rows = [r for r in fairness(t, n_bootstrap=20)['underdiagnosis']['rows'] if r['group'] == 'Male']
    assert rows[0]['under'] == 0
    assert 0 < rows[0]['under_high'] < 0.05


def test_without_a_threshold_nothing_is_claimed(practice):
    t = practice.copy()
    t.loc[t['split'] == 'tuning', 'label/No Finding'] = np.nan
    found = fairness(t, n_bootstrap=10)
    assert found['underdiagnosis']['reason']
    assert all(np.isnan(r['under']) and r['reason'] for r in found['underdiagnosis']['rows'])
    assert any(s.startswith('Under-diagnosis: No Finding has no threshold') for s in found['sentences'])


def test_a_planted_underdiagnosis_is_found(practice):
    t = practice.copy()
    women = t['sex'] == 'Female'
    t.loc[women, 'fused/No Finding'] = special.expit(special.logit(t.loc[women, 'fused/No Finding']) + 1.5)
    found = fairness(t, n_bootstrap=100)
    gap = next(g for g in found['underdiagnosis']['gaps']['under'] if g['attribute'] == 'sex')
    assert gap['worst'] == 'Female'
    assert gap['p'] < 0.05
    assert gap['low_all'] > 0
    parts = 'under-diagnosis', 'Female against', 'not due to chance alone'
    assert any(all(part in s for part in parts) for s in found['sentences'])


# ---- shortcuts


@quick
@given(st.lists(st.one_of(st.floats(0, 1), st.just(float('nan'))), max_size=7))
def test_holm_is_the_closed_bonferroni_test(p):
    "Marcus, Peritz & Gabriel 1976: a hypothesis is rejected if every set that holds it is; over all sets"
    tested = [i for i, x in enumerate(p) if x == x]
    sets = list(chain.from_iterable(combinations(tested, k) for k in range(1, len(tested) + 1)))
    expected = [
        max(min(1, len(s) * min(p[j] for j in s)) for s in sets if i in s) if i in tested else np.nan
        for i in range(len(p))
    ]
    assert np.allclose(holm(p), expected, equal_nan=True)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 4))
def test_within_is_the_weighted_mean_over_strata(seed, n_strata):
    r = np.random.default_rng(seed)
    labels, scores, strata = r.integers(0, 2, 80), np.round(r.random(80), 1), r.integers(0, n_strata, 80)
    if any(len(set(labels[strata == k])) < 2 for k in range(n_strata)):
        return
    within, areas = within_auroc(labels, scores, strata, np.arange(80), np.ones((80, 1)))
    expected = [auroc(labels[strata == k], scores[strata == k]) for k in range(n_strata)]
    weights = [np.mean([(strata[labels == y] == k).mean() for y in (0, 1)]) for k in range(n_strata)]
    assert within[0] == pytest.approx(np.dot(weights, expected))
    assert np.allclose(areas[:, 0], expected)
    assert np.sum(weights) == pytest.approx(1)


def in_context(t, seed, strength=1.2):
    "Projection and devices that go with the number of findings; the scores know nothing of them"
    r, n = np.random.default_rng(seed), (t[[f'label/{o}' for o in OBSERVATIONS[1:13]]] == 1).sum(axis=1)
    p = special.expit(strength * (n - 1.5))
    projection = np.where(r.random(len(t)) < p, 'AP', 'PA')
    devices = (r.random(len(t)) < p).astype(float)
    return t.assign(**{'projection': projection, 'label/Support Devices': devices})


def harder(t, seed):
    "The same, and AP images are harder to read"
    t, r = in_context(t, seed), np.random.default_rng(seed + 1)
    noise = 2 * (t['projection'] == 'AP')
    for o in OBSERVATIONS:
        t[f'fused/{o}'] = special.expit(special.logit(t[f'fused/{o}']) + noise * r.normal(size=len(t)))
    return t


@pytest.mark.parametrize(
    'world',
    [lambda t, seed: t, in_context, harder],
    ids=['no context', 'context goes with the findings', 'and its images are harder'],
)
def test_false_alarms_are_rare(world):
    "Of 20 data sets without a shortcut and without a gap; with a rate of 5%, three or more alarms have a chance of 8%"
    alarms, deviations = 0, []
    for seed in range(20):
        t = world(of(synthetic_predictions(250, seed=1000 + seed), 'test'), seed)
        probe = shortcut_probe(t, *resample_patients(t['patient_id'], 60, seed))
        assert probe['n_tested'] > 8
        alarms += any(r['found'] for r in probe['rows'])
        deviations += [r['drop'] / r['standard_error'] for r in probe['rows'] if np.isfinite(r['p'])]
    assert alarms <= 2
    # each test by itself, before Holm
    assert np.mean(deviations) < 0.25
    assert np.mean(np.array(deviations) > stats.norm.isf(0.05)) < 0.08


def test_gaps_raise_few_false_alarms():
    "Smallest p over all attributes, of groups that are drawn alike"
    alarms = 0
    for seed in range(15):
        t = of(synthetic_predictions(250, seed=2000 + seed), 'test')
        clusters, weights = resample_patients(t['patient_id'], 60, seed)
        gaps = group_gaps(subgroup_areas(t, clusters, weights, count_cases(t), 5, 30)[1])
        alarms += min(g['p'] for g in gaps if np.isfinite(g['p'])) < 0.05
    assert alarms <= 2


@pytest.mark.parametrize('context', list(SHORTCUT_CONTEXTS))
def test_a_planted_shortcut_is_found_and_named(context):
    t = synthetic_predictions(900, seed=5)
    r = np.random.default_rng(0)
    there = r.random(len(t)) < np.where(t['label/Edema'] == 1, 0.8, 0.2)
    if context == 'projection':
        t['projection'] = np.where(there, 'AP', 'PA')
    else:
        t['label/Support Devices'] = there.astype(float)
    honest = fairness(t, n_bootstrap=60)
    t['fused/Edema'] = special.expit(special.logit(t['fused/Edema']) + 1.2 * there)
    cheating = fairness(t, n_bootstrap=60)
    assert not any(row['found'] for row in honest['shortcuts']['rows'])
    found = [row for row in cheating['shortcuts']['rows'] if row['found']]
    assert [(row['context'], row['observation']) for row in found] == [(context, 'Edema')]
    said = f'Part of the discrimination of Edema comes from the context ({context})'
    assert any(said in s for s in cheating['sentences'])
    assert any('No observation is shown to lose discrimination' in s for s in honest['sentences'])


def test_what_cannot_be_tested_has_a_reason(practice):
    t = practice.copy()
    t['projection'] = 'PA'
    t['label/Support Devices'] = np.nan
    t['label/Edema'] = np.nan
    found = fairness(t, n_bootstrap=10)
    reasons = {(r['context'], r['observation']): r['reason'] for r in found['shortcuts']['rows']}
    assert found['shortcuts']['n_tested'] == 0
    assert all(reasons.values())
    assert reasons['projection', 'Atelectasis'] == 'projection: PA wherever it is known'
    assert reasons['support devices', 'Atelectasis'] == 'support devices: not known'
    assert (
        reasons['projection', 'Edema'] == reasons['support devices', 'Edema'] == 'not labelled in these data'
    )
    assert any('could not be tested' in s for s in found['sentences'])


def test_a_context_without_cases_is_not_called_clean(practice):
    found = fairness(practice.assign(**{'label/Support Devices': np.nan}), n_bootstrap=10)['sentences']
    assert 'No observation is shown to lose discrimination among images of the same projection.' in found
    assert 'Nothing could be tested among images with the same support-device status: too few cases.' in found


# ---- real images


@pytest.mark.skipif(not DATA.is_dir(), reason=f'the shared real data ({DATA}) are not on this machine')
def test_a_published_model_on_real_images():
    """NIH ChestX-ray14 (Wang et al. 2017), predictions of J. Zech's DenseNet-121

    At one threshold for both, it misses three times as much on PA images as on AP images.
    """
    studies = load_nih(DATA / 'nih')
    published = (
        pd.read_csv(DATA / 'nih' / 'published_densenet121_predictions.csv')
        .set_index('Image Index')
        .reindex(studies['image'].map(lambda i: Path(i).name))
    )
    said = {}
    for o in OBSERVATIONS:
        names = [f'prob_{n}' for n, to in NIH_TO_CHEXPERT.items() if to == o]
        said[o] = published[[n for n in names if n in published]].max(axis=1).to_numpy()
    said['No Finding'] = 1 - published.max(axis=1).to_numpy()
    columns = [studies[list(OBSERVATIONS)].add_prefix('label/').reset_index(drop=True)]
    columns += [
        pd.DataFrame({f'{c}/{o}': np.nan_to_num(said[o], nan=0.5) for o in OBSERVATIONS})
        for c in REQUIRED_CONDITIONS
    ]
    tuned = np.random.default_rng(0).random(len(studies)) < 0.3
    about = studies[['image', 'patient_id', 'sex', 'age', 'projection', 'view', 'note']].reset_index(
        drop=True
    )
    about = about.assign(split=np.where(tuned, 'tuning', 'test'), fold=-1)
    table = pd.concat([about, *columns], axis=1)
    found = fairness(table, n_bootstrap=200)
    gap = next(g for g in found['underdiagnosis']['gaps']['missed'] if g['attribute'] == 'projection')
    assert gap['worst'] == 'PA'
    assert gap['p'] < 0.05
    assert gap['low_all'] > 0
    assert gap['worst_value'] > 2 * gap['best_value']
    rows = {r['group']: r for r in found['underdiagnosis']['rows'] if r['attribute'] == 'projection'}
    test, cut = of(table, 'test'), choose_thresholds(of(table, 'tuning')).loc[-1]
    for g, row in rows.items():
        ill = [test[(test['projection'] == g) & (test[f'label/{o}'] == 1)] for o in row['averaged']]
        missed = [(part[f'fused/{o}'] < cut[o]).mean() for o, part in zip(row['averaged'], ill)]
        assert row['missed'] == pytest.approx(np.mean(missed))
    assert not any(r['found'] for r in found['shortcuts']['rows'])
    untested = 'Nothing could be tested among images with the same support-device status'
    assert any(s.startswith(untested) for s in found['sentences'])


# ---- the whole


def test_the_report_survives_json_and_is_drawn_from_it(report, tmp_path):
    stored = read_json(write_json(tmp_path / 'fairness.json', report))
    json.dumps(stored, allow_nan=False)
    assert fairness_sentences(stored) == report['sentences'] == stored['sentences']
    assert [r['attribute'] for r in stored['gaps']] == list(ATTRIBUTES)
    for draw in (plot_subgroups, plot_underdiagnosis, plot_shortcuts):
        assert 'SIMULATED' in draw(stored).get_supxlabel()
        assert 'SIMULATED' not in draw(stored | dict(simulated=False)).get_supxlabel()


def test_given_resamples_are_used(practice, test, report):
    clusters, weights = resample_patients(test['patient_id'], 60)
    again = fairness(practice, clusters, weights, simulated=True)
    assert json.dumps(again) == json.dumps(report)
    with pytest.raises(ValueError, match='clusters for'):
        fairness(practice, clusters[:-1], weights)


def test_bad_tables_are_refused(practice):
    with pytest.raises(ValueError, match='lacks the columns'):
        fairness(practice.drop(columns='fused/Edema'))
    with pytest.raises(ValueError, match="split 'test'"):
        fairness(practice[practice['split'] == 'tuning'])


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('n', [0, 1, 2])
def test_next_to_no_resamples_give_no_intervals(practice, n):
    found = fairness(practice, n_bootstrap=n)
    assert all(np.isfinite(g['gap']) for g in found['gaps'] if g['n_pairs'])
    assert n > 1 or all(np.isnan(g['p']) for g in found['gaps'])
    assert json.dumps(found)
    for draw in (plot_subgroups, plot_underdiagnosis, plot_shortcuts):
        draw(found)


def test_a_few_patients_give_a_report_without_numbers(practice):
    few = practice[practice['patient_id'].isin(of(practice, 'test')['patient_id'].unique()[:12])]
    found = fairness(few, n_bootstrap=5)
    assert all(r['small'] for r in found['subgroups'])
    assert any('No gap in mean AUROC can be measured' in s for s in found['sentences'])
    for draw in (plot_subgroups, plot_underdiagnosis, plot_shortcuts):
        draw(found)
