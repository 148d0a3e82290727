"""Evaluation: the report's numbers, verdict, pictures and files, and the comparison with another model's predictions.

Malformed files are rejected with the reason. Real data lie in ../shared/data beside the repository (see DESIGN); tests
that need them are skipped where the folder is absent.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from cxr_lib.foundations.core import COMPETITION, OBSERVATIONS, number_text
from cxr_lib.foundations.run import RunFolder
from cxr_lib.foundations.files import write_json
from cxr_lib.evaluation.external import compare_external, external_table, read_external
from cxr_lib.evaluation.report import auroc_table, chance_words, evaluate, metrics_table, verdict
from cxr_lib.stages.evaluation import evaluate_stage, published_predictions
from cxr_lib.evaluation.pictures import plot_controls, plot_reliability
from cxr_lib.evaluation.fairness import plot_subgroups
from cxr_lib.metrics.predictions import CONDITIONS, synthetic_predictions
from cxr_lib.metrics.decisions import choose_thresholds
from cxr_lib.metrics.comparison import delong_test

DATA = Path(__file__).resolve().parent.parent.parent.parent / 'shared' / 'data'
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason=f'the shared real data ({DATA}) are not on this machine'
)


@pytest.fixture(scope='module')
def practice():
    return synthetic_predictions(150, seed=1)


# ---- another model


@needs_data
def test_published_densenet_file_is_read_and_compared():
    external = read_external(DATA / 'nih/published_densenet121_predictions.csv')
    raw = pd.read_csv(DATA / 'nih/published_densenet121_predictions.csv').set_index('Image Index')
    assert external.shape == (421, 10) and set(COMPETITION) < set(external) and 'No Finding' not in external
    assert (external['Lung Lesion'] == raw[['prob_Mass', 'prob_Nodule']].max(axis=1)).all() and (
        external['Pleural Effusion'] == raw['prob_Effusion']
    ).all()
    ours = (
        synthetic_predictions(300)
        .query('split == "test"')
        .iloc[:200]
        .assign(image=['images/' + i for i in external.index[:200]])
    )
    table = compare_external(ours, external, n_bootstrap=20).set_index('observation')
    assert table.loc['Mean', 'n_images'] == 200 and 'does not predict' in table.loc['No Finding', 'reason']


@pytest.mark.parametrize(
    'text, expected',
    [
        ('image,Edema\na.png,1.3\n', ['row 0', 'a.png', '1.3', 'from 0 to 1']),
        ('image,Edema\na.png,\n', ['row 0', 'every image']),
        ('image,Edema\na.png,high\n', ['row 0', 'a number']),
        ('image,Edema\na.png,.1\na.png,.2\n', ['row 1', 'each image once']),
        ('picture,Edema\na.png,.1\n', ['image_column']),
        ('image,Hernia\na.png,.1\n', ['no column maps', 'mapping']),
    ],
)
def test_malformed_external_files_are_refused_with_a_remedy(tmp_path, text, expected):
    (tmp_path / 'other.csv').write_text(text)
    with pytest.raises(ValueError) as refused:
        read_external(tmp_path / 'other.csv')
    for part in ['other.csv', *expected]:
        assert part in str(refused.value)


def test_external_columns_can_be_mapped(tmp_path):
    (tmp_path / 'other.csv').write_text('file name,water\na.png,.1\n')
    assert read_external(tmp_path / 'other.csv', 'file name', {'water': 'Edema'}).loc['a.png', 'Edema'] == 0.1
    with pytest.raises(ValueError, match='none of its 1 images'):
        compare_external(
            synthetic_predictions(30), read_external(tmp_path / 'other.csv', 'file name', {'water': 'Edema'})
        )


# ---- the whole evaluation


@pytest.fixture(scope='module')
def metrics(practice):
    return evaluate(practice, n_bootstrap=100, simulated=True)


def test_uncertain_and_missing_labels_are_left_out(practice, metrics):
    test = practice[practice['split'] == 'test']
    for o in OBSERVATIONS:
        known, counts = test[test[f'label/{o}'].isin([0, 1])], metrics['observations'][o]
        assert counts['n_positive'] + counts['n_negative'] == len(known) and counts['n_uncertain'] + counts[
            'n_missing'
        ] == len(test) - len(known)
        if 0 < known[f'label/{o}'].sum() < len(known):
            assert metrics['conditions']['fused']['observations'][o]['auroc'] == pytest.approx(
                roc_auc_score(known[f'label/{o}'], known[f'fused/{o}'])
            )


def test_means_and_differences_use_only_evaluable_observations(metrics):
    chosen = [o for o in OBSERVATIONS if metrics['observations'][o]['evaluable']]
    assert 0 < len(chosen) < 14 and all(
        metrics['observations'][o]['reason'] for o in OBSERVATIONS if o not in chosen
    )
    for c, m in metrics['conditions'].items():
        assert (
            m['means']['evaluable']['auroc']
            == pytest.approx(np.mean([m['observations'][o]['auroc'] for o in chosen]))
            and m['means']['evaluable']['observations'] == chosen
        )
        assert set(m['means']['competition']['observations']) <= set(COMPETITION)
    gain = metrics['differences']['fused_minus_image_only']['means']['evaluable']
    one, other = (metrics['conditions'][c]['means']['evaluable'] for c in ('fused', 'image_only'))
    assert (
        gain['value'] == pytest.approx(one['auroc'] - other['auroc'])
        and gain['high'] - gain['low'] < one['high'] - one['low']
    )  # paired


def test_the_same_seed_gives_the_same_intervals(practice, metrics):
    again = evaluate(practice, n_bootstrap=100, simulated=True)
    assert json.dumps(again) == json.dumps(metrics)
    assert (
        evaluate(practice, n_bootstrap=100, seed=1)['conditions']['fused']['means']
        != metrics['conditions']['fused']['means']
    )


def test_thresholds_come_from_tuning_alone(practice):
    changed = practice.copy()
    rows = changed['split'] == 'test'
    changed.loc[rows, 'label/Edema'] = 1 - changed.loc[rows, 'label/Edema'].clip(0)
    one, other = (evaluate(t, n_bootstrap=0) for t in (practice, changed))
    assert (
        one['thresholds'] == other['thresholds']
        and one['calibration']['maps'] == other['calibration']['maps']
    )


def test_each_fold_has_its_own_threshold_and_temperature():
    folds = synthetic_predictions(200, n_folds=3)
    assert list(choose_thresholds(folds[folds['split'] == 'tuning']).index) == [0, 1, 2]
    metrics = evaluate(folds, n_bootstrap=20)
    assert set(metrics['calibration']['maps']) == {'0', '1', '2'} and metrics['n_patients'] == 200


def ranked_numbers(metrics):
    "Everything in the metrics that ranks images"
    found = {k: metrics[k] for k in ('differences', 'comparisons', 'permutations', 'subgroups')}
    found |= dict(shortcuts=metrics['fairness']['shortcuts'], gaps=metrics['fairness']['gaps'])
    names = 'auroc', 'low', 'high', 'auprc', 'auprc_low', 'auprc_high'
    for c, m in metrics['conditions'].items():
        found[c] = [[o[k] for k in names] for part in m.values() for o in part.values()]
    before = metrics['pretest']
    found['pretest'] = {o: [m['all'], m['strata'], m['balanced']] for o, m in before['observations'].items()}
    found['pretest means'] = before['means']
    return found


def test_what_one_fold_calls_probable_changes_no_number_that_ranks():
    "The probabilities of one fold are cubed, all but the note's, by which cases are grouped"
    table = synthetic_predictions(200, n_folds=3, seed=4)
    test = table[table['split'] == 'test']
    shuffled = np.random.default_rng(0).random((3, len(test), 14))
    cubed, cubed_shuffled = table.copy(), shuffled.copy()
    columns = [c for c in table if '/' in c and not c.startswith(('label/', 'note_only/'))]
    cubed.loc[(table['fold'] == 1) & (table['split'] == 'test'), columns] **= 3
    cubed_shuffled[:, (test['fold'] == 1).to_numpy()] **= 3
    given = dict(n_bootstrap=20, min_cases=3)
    one, other = (
        evaluate(table, permutations=shuffled, **given),
        evaluate(cubed, permutations=cubed_shuffled, **given),
    )
    assert json.dumps(ranked_numbers(one)) == json.dumps(ranked_numbers(other))
    assert one['conditions'] != other['conditions']  # decisions and Brier scores do change
    assert one['n_folds'] == 3 and 'ranked within the 3 folds' in one['verdict'][0]


def test_undefined_is_nan_with_a_reason(practice):
    t = practice.copy()
    t['label/Edema'], t['label/Fracture'] = np.nan, 0.0
    metrics = evaluate(t, n_bootstrap=20)
    for o, reason in (('Edema', 'not labelled'), ('Fracture', 'no positive')):
        found = metrics['conditions']['fused']['observations'][o]
        assert (
            np.isnan(found['auroc'])
            and np.isnan(found['auprc'])
            and reason in found['reason']
            and any(o in s and reason in s for s in metrics['verdict'])
        )
    only_test = evaluate(practice[practice['split'] == 'test'], n_bootstrap=20)
    assert (
        np.isnan(only_test['conditions']['fused']['observations']['Edema']['sensitivity'])
        and only_test['conditions']['fused']['observations']['Edema']['n_decided'] == 0
    )
    assert 'no temperature' in only_test['calibration']['reason'] and not np.isnan(
        only_test['conditions']['fused']['observations']['Edema']['auroc']
    )
    assert any(
        'No mean is headlined' in s for s in evaluate(practice, n_bootstrap=20, min_cases=10_000)['verdict']
    )


@pytest.mark.parametrize(
    'note, fused, expected',
    [(0.8, None, 'the note adds'), (0, None, 'not shown to add'), (0.8, 'contradicting_note', 'does harm')],
)
def test_the_verdict_follows_the_numbers(note, fused, expected):
    t = synthetic_predictions(400, note_evidence=note)
    for o in OBSERVATIONS if fused else ():
        t[f'fused/{o}'] = t[f'{fused}/{o}']
    assert any(expected in s for s in evaluate(t, n_bootstrap=100)['verdict'])


def test_without_notes_nothing_is_said_about_notes(practice):
    said = ' '.join(evaluate(practice.assign(note=''), n_bootstrap=20)['verdict'])
    assert 'No test image has a note' in said and 'the note adds' not in said and 'shuffled' not in said


def test_a_shuffled_note_that_helps_is_called_out():
    t = synthetic_predictions(400)
    for o in OBSERVATIONS:
        t[f'shuffled_note/{o}'] = t[f'fused/{o}']  # a model that cheats: the same gain with anybody's note
    said = ' '.join(evaluate(t, n_bootstrap=100)['verdict'])
    assert 'does not come from what the note says' in said and 'no better than the image alone' not in said


def test_small_groups_are_marked_and_groups_share_observations(practice):
    t = practice.copy()
    t.loc[t.groupby('patient_id').ngroup() % 20 == 0, 'sex'] = 'Other'
    groups = pd.DataFrame(evaluate(t, n_bootstrap=20)['subgroups'])
    assert (
        groups.set_index('group').loc['Other', 'small']
        and not groups.set_index('group').loc['Female', 'small']
    )
    assert (
        groups.groupby('attribute')['observations'].agg(lambda lists: len({tuple(x) for x in lists})) == 1
    ).all()


def test_the_stage_writes_everything_and_can_be_drawn_from_its_json(practice, tmp_path):
    run = RunFolder(tmp_path / 'run')
    practice.to_parquet(run / 'predictions.parquet')
    other = practice[['image', *(f'best_image/{o}' for o in COMPETITION)]].rename(
        columns=lambda c: c.replace('best_image/', 'prob_')
    )
    other.to_csv(tmp_path / 'other.csv', index=False)
    metrics = evaluate_stage(
        run, n_bootstrap=30, seed=0, external=str(tmp_path / 'other.csv'), simulated=True
    )
    names = {
        'metrics.json',
        'metrics.csv',
        'controls.png',
        'roc_curves.png',
        'pr_curves.png',
        'reliability.png',
        'subgroups.png',
        'external_comparison.csv',
        'external_comparison.png',
    }
    assert names <= {p.name for p in run.path.iterdir()} and not [
        p for p in run.path.iterdir() if '.tmp' in p.name
    ]
    assert run.params('evaluation') == dict(n_bootstrap=30, seed=0, external=str(tmp_path / 'other.csv'))
    written = json.loads((run / 'metrics.json').read_text())  # undefined numbers are null there
    said = written['verdict']
    beside = [sentence for sentence in said if 'other has a mean AUROC of' in sentence]
    assert said == metrics['verdict'] and 'SIMULATED' in said[0] and len(beside) == 1
    assert verdict(written) == [sentence for sentence in said if sentence not in beside]
    for picture in (plot_controls(written), plot_reliability(written), plot_subgroups(written)):
        assert 'SIMULATED' in picture.get_supxlabel()
    table = pd.read_csv(run / 'metrics.csv')
    assert len(table) == len(metrics_table(metrics)) == 16 * len(metrics['conditions'])
    assert set(external_table(pd.read_csv(run / 'external_comparison.csv')).index) == {'Mean', *OBSERVATIONS}
    evaluate_stage(run, n_bootstrap=10, simulated=False)  # an earlier comparison does not stay behind
    assert (
        not (run / 'external_comparison.csv').exists()
        and 'SIMULATED' not in json.loads((run / 'metrics.json').read_text())['verdict'][0]
    )


def test_simulated_is_read_from_the_exploration_stage(practice, tmp_path, monkeypatch):
    monkeypatch.setattr(
        'cxr_lib.stages.evaluation.save_figure', lambda figure, *paths: [path.touch() for path in paths]
    )
    run = RunFolder(tmp_path / 'run')
    practice.to_parquet(run / 'predictions.parquet')
    run.finish('exploration', dict(dataset='simulated'))
    assert evaluate_stage(run, n_bootstrap=5)['simulated']


def test_predictions_that_came_with_the_data_are_compared_unasked(tmp_path):
    run = RunFolder(tmp_path / 'run')
    assert published_predictions(run) == ''
    write_json(run / 'source.json', dict(dataset='nih', root=str(tmp_path), simulated=False))
    assert published_predictions(run) == ''
    (tmp_path / 'published_reader_predictions.csv').write_text('image,Edema\n')
    assert published_predictions(run) == str(tmp_path / 'published_reader_predictions.csv')


# ---- one value for one thing


@pytest.fixture(scope='module')
def shuffled(practice):
    "The practice table with four shuffles, of which the first is the table's; metrics; the test rows"
    test = practice[practice['split'] == 'test']
    first = test[[f'shuffled_note/{o}' for o in OBSERVATIONS]].to_numpy(float)
    r = np.random.default_rng(0)
    permutations = np.stack(
        [first, *(np.clip(first + r.normal(0, 0.1, first.shape), 0, 1) for _ in range(3))]
    ).astype(np.float32)
    return permutations, evaluate(practice, n_bootstrap=60, simulated=True, permutations=permutations), test


def test_another_patients_note_has_one_value_everywhere(shuffled):
    permutations, metrics, test = shuffled
    found, many = metrics['conditions']['shuffled_note'], metrics['permutations']
    for o in OBSERVATIONS:
        known = test[f'label/{o}'].isin([0, 1]).to_numpy()
        labels = test.loc[known, f'label/{o}']
        if labels.nunique() < 2:
            continue
        mean = np.mean([roc_auc_score(labels, p[known, OBSERVATIONS.index(o)]) for p in permutations])
        assert found['observations'][o]['auroc'] == pytest.approx(mean, abs=1e-9)
        assert metrics['comparisons']['fused_minus_shuffled_note'][o]['auroc_b'] == pytest.approx(
            mean, abs=1e-9
        )
        for name, end in (('auroc', 'value'), ('low', 'low'), ('high', 'high')):
            assert found['observations'][o][name] == pytest.approx(many['observations'][o][end], nan_ok=True)
    one, mean = found['means']['evaluable'], many['means']['evaluable']
    assert (one['auroc'], one['low'], one['high']) == (mean['value'], mean['low'], mean['high'])
    assert metrics['differences']['shuffled_note_minus_image_only']['means']['evaluable'][
        'value'
    ] == pytest.approx(mean['minus_image_only']['value'])
    shown = number_text(one['auroc'], one['low'], one['high'])
    assert any(f'(shuffled 4 times) the mean is {shown}' in s for s in metrics['verdict'])
    assert shown == auroc_table(metrics).loc['Mean of evaluable', CONDITIONS['shuffled_note']]
    row = metrics_table(metrics).query("condition == 'shuffled_note' and observation == 'Mean (evaluable)'")
    assert row['auroc'].item() == one['auroc']
    texts = [text.get_text() for ax in plot_controls(metrics).axes for text in ax.texts]
    assert number_text(one['auroc']) in texts


def test_no_quantity_of_metrics_json_has_two_values(shuffled):
    metrics = shuffled[1]
    found = {c: m['observations'] for c, m in metrics['conditions'].items()}
    for o in OBSERVATIONS:
        before = metrics['calibration']['observations'][o]['before']
        for name in ('ece', 'brier'):
            assert found['fused'][o][name] == pytest.approx(before[name], nan_ok=True)
        for a, b in (('fused', 'image_only'), ('fused', 'shuffled_note')):
            test = metrics['comparisons'][f'{a}_minus_{b}'][o]
            for name, c in (('auroc_a', a), ('auroc_b', b)):
                assert test[name] == pytest.approx(found[c][o]['auroc'], nan_ok=True)
        paired = metrics['differences']['fused_minus_image_only']['observations'][o]['value']
        assert metrics['comparisons']['fused_minus_image_only'][o]['difference'] == pytest.approx(
            paired, nan_ok=True
        )
    for o, row in metrics['published'].items():
        assert row['ours_auroc'] == pytest.approx(found['fused'][o]['auroc'], nan_ok=True)


def test_delong_of_several_shuffles_is_of_their_mean(shuffled):
    permutations, _, test = shuffled
    labels, ours = (test[f'{kind}/Edema'].to_numpy(float) for kind in ('label', 'fused'))
    known = np.isin(labels, [0, 1])
    several = permutations[:, known, OBSERVATIONS.index('Edema')].astype(float)
    found = delong_test(labels[known], ours[known], several)
    assert found['auc_b'] == pytest.approx(np.mean([roc_auc_score(labels[known], s) for s in several]))
    assert delong_test(labels[known], ours[known], several[[0, 0]])['z'] == pytest.approx(
        delong_test(labels[known], ours[known], several[0])['z']
    )


# ---- chance, in words


@pytest.mark.parametrize('evidence, at_chance', [(0, True), (1.3, False)])
def test_a_model_at_chance_is_called_that_first(evidence, at_chance):
    table = synthetic_predictions(250, image_evidence=evidence, note_evidence=0, seed=2)
    if at_chance:  # not even the share of each observation differs between patients
        r = np.random.default_rng(0)
        for o in OBSERVATIONS:
            table[f'fused/{o}'] = r.random(len(table))
    for simulated in (False, True):
        said = evaluate(table, n_bootstrap=60, simulated=simulated)['verdict']
        assert (
            'NOT BETTER THAN CHANCE: the probabilities of this model mean nothing' in said[simulated]
        ) == at_chance
        assert any('CHANCE' in s for s in said) == at_chance


def test_an_undefined_mean_is_not_taken_for_better_than_chance(practice):
    few, none = evaluate(practice, n_bootstrap=20, min_cases=10_000), evaluate(practice, n_bootstrap=0)
    assert chance_words(few).startswith(
        'NOT SHOWN TO BE BETTER THAN CHANCE'
    ) and 'no observation has enough cases' in chance_words(few)
    assert 'too few resamples' in chance_words(none) and few['verdict'][0] == chance_words(few)
