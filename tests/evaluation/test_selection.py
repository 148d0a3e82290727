"""Nested selection: what a candidate may see, where patients are, what is kept, and what is said of the winner.

A mock trainer stands in for networks; what a candidate sees is recorded and examined."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from sklearn.linear_model import LogisticRegression

from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.foundations.run import RunFolder
from cxr_lib.foundations.files import read_json
from cxr_lib.foundations.run import located_path
from cxr_lib.training.dataset import mean_auroc
from cxr_lib.evaluation.external import ONE_TO_ONE
from cxr_lib.evaluation.selection import (
    ANSWERING,
    CANDIDATES,
    Trainer,
    blind,
    choose,
    films_key,
    inner_splits,
    nested_selection,
    percentile,
    plot_selection,
    probe,
    read_candidates,
    selection_summary,
    selection_table,
    selection_verdict,
    training_code,
    write_selection,
)
from cxr_lib.stages.search import selection_studies

LABELS = [f'label/{o}' for o in OBSERVATIONS]


def studies(n=80, seed=0, images_a_patient=2):
    "A study table whose films are one number each: the first column of the name"
    r = np.random.default_rng(seed)
    labels = (r.random((n, 14)) < 0.4).astype(float)
    table = pd.DataFrame(
        {
            'image': [f'{k}.png' for k in range(n)],
            'patient_id': [f'p{k // images_a_patient}' for k in range(n)],
            'note': None,
            'view': 'Frontal',
        }
    )
    return pd.concat([table, pd.DataFrame(labels, columns=list(OBSERVATIONS))], axis=1)


class Pretender:
    "Knows the truth of every film, and answers with it under a candidate's amount of noise"

    def __init__(self, table):
        self.truth, self.calls = table[list(OBSERVATIONS)].to_numpy(), []

    def __call__(self, table, noise, train, stop, predict, seed, name):
        self.calls.append((name, table, train, stop, predict))
        return np.nan_to_num(self.truth[predict]) + np.random.default_rng(
            [int(noise * 10), len(train), *predict]
        ).normal(0, noise, (len(predict), 14))


def select(table, candidates, folder, trainer=None, **more):
    trainer = trainer or Pretender(table)
    return nested_selection(
        table,
        candidates,
        trainer,
        folder,
        **dict(dict(folds=3, inner=2, min_cases=3, progress=False), **more),
    ), trainer


NOISE = {'noisy': 6.0, 'clear': 0.5, 'deaf': 60.0}


@pytest.fixture(scope='module')
def found(tmp_path_factory):
    table = studies()
    folder = tmp_path_factory.mktemp('run')
    return table, folder, *select(table, NOISE, folder)


# ---- what is chosen, and on what


def test_the_clear_candidate_wins_and_answers_for_every_image_once(found):
    table, _, selection, _ = found
    assert selection.winners == ['clear'] * 3
    assert selection.computed == 9
    assert sorted(selection.predictions.image) == sorted(table.image)
    for o in OBSERVATIONS:
        clear = selection.predictions[f'clear/{o}'].rename(f'nested/{o}')
        assert selection.predictions[f'nested/{o}'].equals(clear)
    labels = selection.predictions[LABELS].to_numpy()
    answers = selection.predictions[[f'nested/{o}' for o in OBSERVATIONS]].to_numpy()
    assert mean_auroc(labels, answers, 3) > 0.85


def test_no_patient_is_on_two_sides(found):
    table, _, selection, trainer = found
    assert selection.predictions.groupby('patient_id').fold.nunique().max() == 1
    for _, _, train, stop, predict in trainer.calls:
        sides = [set(table.patient_id.iloc[i]) for i in (train, stop, predict)]
        assert all(sides)
        assert not sides[0] & sides[1]
        assert not sides[0] & sides[2]
        assert not sides[1] & sides[2]
        assert sorted(np.concatenate([train, stop, predict])) == list(range(len(table)))


def test_a_candidate_sees_no_label_of_what_it_is_asked(found):
    table, _, _, trainer = found
    for _, seen, train, stop, predict in trainer.calls:
        assert seen[list(OBSERVATIONS)].iloc[predict].isna().all().all()
        assert seen.iloc[np.concatenate([train, stop])].equals(table.iloc[np.concatenate([train, stop])])


def test_labels_of_the_test_patients_change_neither_winners_nor_answers(tmp_path):
    table = studies(seed=3)
    truthful = Pretender(table)
    near = {f'n{k}': 5 + k / 10 for k in range(4)}  # so alike that anything could tip the choice
    first, _ = select(table, near, tmp_path / 'a', truthful, folds=2)
    for k in range(2):
        test = np.sort(
            [table.index[table.image == i][0] for i in first.predictions.image[first.predictions.fold == k]]
        )
        changed = table.copy()
        changed.loc[test, list(OBSERVATIONS)] = table.loc[test[::-1], list(OBSERVATIONS)].to_numpy()
        assert not changed.equals(table)
        fresh, _ = select(changed, near, tmp_path / f'b{k}', truthful, folds=2)
        assert fresh.winners[k] == first.winners[k]
        ours, theirs = (
            s.predictions[s.predictions.fold == k][[f'nested/{o}' for o in OBSERVATIONS]]
            for s in (first, fresh)
        )
        assert ours.equals(theirs)
        asked = len(truthful.calls)
        # in the folder of the first: this fold is not even computed again
        again, _ = select(changed, near, tmp_path / 'a', truthful, folds=2)
        assert again.computed == 4
        assert len(truthful.calls) == asked + 2 * 4


def test_labels_of_the_training_patients_do_change_results(tmp_path):
    table = studies(seed=4)
    select(table, NOISE, tmp_path)
    changed = table.copy()
    changed.loc[0, 'Edema'] = 1 - changed.loc[0, 'Edema']
    again, _ = select(changed, NOISE, tmp_path)
    assert again.computed == 3 * 2  # every fold but the one whose test patient it is


def test_ties_go_to_the_first_and_undefined_scores_cannot_win(tmp_path):
    table = studies()
    same = select(table, {'b': 1.0, 'a': 1.0}, tmp_path)[0]
    assert same.winners == ['b'] * 3
    assert select(table, {'a': 1.0, 'b': 1.0}, tmp_path)[0].winners == ['a'] * 3
    assert choose({'a': 0.5, 'b': 0.7, 'c': 0.7}) == 'b'
    assert choose({'a': float('nan'), 'b': 0.1}) == 'b'
    with pytest.raises(ValueError, match='fewer folds or a smaller min_cases'):
        choose({'a': float('nan')})
    with pytest.raises(ValueError, match='no candidate has a tuning score'):
        select(table, NOISE, tmp_path, min_cases=1000)


def test_one_candidate_is_plain_cross_validation(tmp_path):
    selection, _ = select(studies(), {'only': 1.0}, tmp_path)
    assert selection.winners == ['only'] * 3
    summary = selection_summary(selection, n_bootstrap=20, min_cases=3)
    assert summary['models']['nested']['auroc'] == summary['models']['only']['auroc']
    assert summary['models']['only']['chosen'] == 3


def test_no_candidate_and_too_few_patients_are_refused(tmp_path):
    with pytest.raises(ValueError, match='no candidates'):
        select(studies(), {}, tmp_path)
    with pytest.raises(ValueError, match='patients'):
        select(studies(12), NOISE, tmp_path)


def test_a_candidate_that_fails_is_named_with_its_fold_and_what_was_done_is_kept(tmp_path):
    table = studies()
    good = Pretender(table)

    def breaks(table, candidate, train, stop, predict, seed, name):
        if name == 'deaf':
            raise MemoryError('out of memory')
        return good(table, candidate, train, stop, predict, seed, name)

    with pytest.raises(RuntimeError, match="'deaf' failed in fold 1: out of memory"):
        select(table, NOISE, tmp_path, breaks)
    assert len(list((tmp_path / 'selection').glob('*.npz'))) == 2
    assert select(table, NOISE, tmp_path)[0].computed == 7


# ---- what is kept


def test_only_what_is_missing_or_damaged_is_computed_again(found, tmp_path):
    table = found[0]
    first, _ = select(table, NOISE, tmp_path)
    files = sorted((tmp_path / 'selection').iterdir())
    assert len(files) == 9
    assert all(f.suffix == '.npz' for f in files)
    files[3].unlink()
    files[7].write_bytes(files[7].read_bytes()[:100])  # cut short by a full disk
    files[8].write_bytes(b'')
    again, trainer = select(table, NOISE, tmp_path)
    assert again.computed == 3
    assert len(trainer.calls) == 3 * 2
    assert again.predictions.equals(first.predictions)
    assert again.scores.equals(first.scores)
    assert select(table, NOISE, tmp_path)[0].computed == 0


@pytest.mark.parametrize(
    'more', [dict(seed=1, folds=2), dict(inner=3, folds=2), dict(key='other films', folds=2)]
)
def test_other_settings_are_other_results(found, tmp_path, more):
    table = found[0]
    select(table, {'a': 1.0}, tmp_path, folds=2)
    assert select(table, {'a': 1.0}, tmp_path, **more)[0].computed == 2


def test_another_candidate_or_number_of_folds_is_another_result_and_another_name_is_not(tmp_path):
    table = studies()
    select(table, {'a': 1.0}, tmp_path, folds=2)
    assert [
        select(table, *args)[0].computed for args in (({'a': 2.0}, tmp_path), ({'renamed': 2.0}, tmp_path))
    ] == [3, 0]


def test_the_keys_of_films_and_code(tmp_path):
    for k in range(2):
        (tmp_path / f'{k}.png').write_bytes(bytes([k]))
    first = films_key(tmp_path, ['0.png', '1.png'])
    assert first == films_key(tmp_path, ['0.png', '1.png']) != films_key(tmp_path, ['1.png', '0.png'])
    (tmp_path / '1.png').write_bytes(b'x')
    assert films_key(tmp_path, ['0.png', '1.png']) != first
    assert len(training_code()) == 16
    assert set(ANSWERING) >= {'Trainer', 'probe', 'blind'}


# ---- candidates


@pytest.mark.parametrize(
    'values, message',
    [
        (dict(image_encoder='resnet9999'), 'resnet9999'),
        (dict(preset='huge'), "unknown preset 'huge'"),
        (dict(epoch=3), "unknown override 'epoch'"),
        (dict(head='forest'), 'expected network or probe'),
        (dict(condition='note_only'), 'expected image_only or fused'),
        (dict(stages=[-1]), 'head=probe'),
        (dict(unfreeze_image=1), 'freeze_image=true'),
        (dict(image_size='big'), "expected int"),
        (dict(stages=3, head='probe'), 'iterable'),
        (dict(head='probe', grid=4), 'stages that it is laid over'),
        (dict(head='probe', grid='4', stages=[-1]), 'cells a side'),
    ],
)
def test_a_bad_candidate_is_named_before_anything_is_trained(values, message):
    with pytest.raises(ValueError, match="candidate 'odd'") as e:
        read_candidates({'good': {}, 'odd': values})
    assert message in str(e.value)


def test_candidates_come_as_json_as_a_file_or_as_a_mapping(tmp_path):
    (tmp_path / 'c.json').write_text(json.dumps({'a': dict(epochs=3)}))
    for given_ in ('{"a": {"epochs": 3}}', str(tmp_path / 'c.json'), {'a': dict(epochs=3)}):
        assert read_candidates(given_)['a'].training['epochs'] == 3
    for bad, words in (
        ('nowhere.json', 'neither JSON nor a file'),
        ('{"a": ', 'candidates'),
        ('[1]', 'neither'),
        ({'a': 3}, 'mapping'),
        ({'nested': {}}, 'cannot be called'),
        ({'a/b': {}}, 'slash'),
    ):
        with pytest.raises(ValueError, match=words):
            read_candidates(bad)


def test_a_probe_does_not_depend_on_training_values_and_the_defaults_differ():
    a, b = (read_candidates({'p': dict(head='probe', epochs=e)})['p'] for e in (3, 9))
    assert a.key() == b.key()
    keys = [json.dumps(c.key(), default=str, sort_keys=True) for c in read_candidates().values()]
    assert len(set(keys)) == len(keys) == len(CANDIDATES) >= 3


# ---- the parts


@settings(max_examples=8, deadline=None)
@given(st.integers(30, 90), st.integers(2, 4), st.integers(0, 5))
def test_inner_parts_cover_each_row_once_and_share_no_patient(n, inner, seed):
    table, rows = studies(n, images_a_patient=1), np.arange(0, n, 2 if n > 60 else 1)
    splits = inner_splits(table, rows, inner, seed)
    assert len(splits) == inner
    assert sorted(np.concatenate([h for _, _, h in splits])) == list(rows)
    for train, stop, held in splits:
        assert len(train) > len(stop) > 0
        assert sorted(np.concatenate([train, stop, held])) == list(rows)


def test_blind_takes_labels_and_nothing_else():
    table = studies(20)
    seen = blind(table, np.array([1, 5]))
    assert seen.loc[[1, 5], list(OBSERVATIONS)].isna().all().all()
    assert table[list(OBSERVATIONS)].notna().all().all()
    assert seen.drop(index=[1, 5]).equals(table.drop(index=[1, 5]))
    assert seen.drop(columns=list(OBSERVATIONS)).equals(table.drop(columns=list(OBSERVATIONS)))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(0, 10**6))
def test_percentiles_keep_the_order_and_lie_between_0_and_1(n, seed):
    a = np.random.default_rng(seed).integers(0, 9, (n, 2)).astype(float)
    q = percentile(a, a)
    assert ((q > 0) & (q < 1)).all()
    assert np.allclose(q.mean(0), 0.5)
    assert all(np.array_equal(np.sign(x[:, None] - x), np.sign(y[:, None] - y)) for x, y in zip(a.T, q.T))


def test_the_score_is_the_mean_of_scikit_learn_s_and_undefined_where_an_answer_is():
    from sklearn.metrics import roc_auc_score

    r = np.random.default_rng(0)
    y, p = (r.random((50, 14)) < 0.3).astype(float), r.random((50, 14))
    y[:, 3], y[:9, 4] = np.nan, np.nan
    p[:, 5] = p[:, 5].round(1)  # ties
    expected = np.mean(
        [roc_auc_score(a[~np.isnan(a)], b[~np.isnan(a)]) for k, (a, b) in enumerate(zip(y.T, p.T)) if k != 3]
    )
    assert np.isclose(mean_auroc(y, p, 3), expected, atol=1e-12)
    p[:9, 4] = np.nan  # not asked there
    assert np.isclose(mean_auroc(y, p, 3), expected, atol=1e-12)
    p[20, 0] = np.nan
    assert np.isnan(mean_auroc(y, p, 3))
    assert np.isnan(mean_auroc(y, p, 100))


def test_the_probe_is_the_regularised_regression_and_keeps_patients_together():
    r = np.random.default_rng(0)
    y = (r.random((60, 3)) < 0.4).astype(float)
    x = r.normal(size=(60, 90)) + np.repeat(y[:, :1], 90, 1)
    y[:, 1], y[:40, 2] = np.nan, 0
    rows, others = np.arange(40), np.arange(40, 60)
    p, strength = probe(x, y, np.arange(60) // 2, rows, others)
    z = (x - x[rows].mean(0)) / x[rows].std(0) / np.sqrt(90)
    assert np.allclose(
        p[:, 0],
        LogisticRegression(C=strength, tol=1e-6, max_iter=1000)
        .fit(z[rows], y[rows, 0])
        .predict_proba(z[others])[:, 1],
        atol=1e-6,
    )
    # nobody annotated; nobody positive
    assert np.isnan(p[:, 1]).all()
    assert np.allclose(p[:, 2], 1 / 42)
    constant = probe(np.ones((60, 5)), y, np.arange(60), rows, others)[0][:, 0]
    assert np.allclose(constant, constant[0])


# ---- what is reported


def test_the_summary_says_who_won_and_what_it_is_worth(found, tmp_path):
    _, _, selection, _ = found
    summary = selection_summary(selection, n_bootstrap=50, min_cases=3)
    won = selection.scores[selection.scores.chosen]
    assert [summary['models'][n]['chosen'] for n in NOISE] == [0, 3, 0]
    assert np.isclose(summary['optimism']['optimism'], (won.tuning - won.test).mean())
    assert [n for n, m in summary['models'].items() if m['selected']] == ['nested']
    text = ' '.join(selection_verdict(summary))
    assert 'clear in 3 of 3' in text
    assert 'not to be quoted' in text
    assert 'SIMULATED' not in text
    assert 'SIMULATED' in selection_verdict(summary, True)[0]
    table = selection_table(summary)
    assert list(table.remark) == ['the figure to quote'] + ['not selected for'] * 3
    files = write_selection(summary, selection, tmp_path, True)
    assert all(f.stat().st_size > 100 for f in files)
    assert read_json(files[0])['simulated']
    assert not list(tmp_path.glob('.*tmp*'))


def test_another_model_is_compared_on_the_same_images_and_observations(found):
    _, _, selection, _ = found
    theirs = (
        selection.predictions[[f'noisy/{o}' for o in ONE_TO_ONE]]
        .set_axis(list(ONE_TO_ONE), axis=1)
        .set_index('films/' + selection.predictions['image'])
    )
    summary = selection_summary(selection, theirs, 'the other', n_bootstrap=50, min_cases=3)
    m = summary['models']
    assert m['noisy']['shared_difference'] == m['noisy']['one_to_one_difference'] == 0
    assert m['the other']['one_to_one'] == m['noisy']['one_to_one'] == m['clear']['one_to_one_external']
    assert np.isclose(
        m['nested']['one_to_one'] - m['the other']['one_to_one'], m['nested']['one_to_one_difference']
    )
    assert m['nested']['one_to_one_difference_low'] > 0
    assert m['nested']['n_one_to_one'] == 7
    assert 'the other on the same images' in ' '.join(selection_verdict(summary))
    assert 'shared, minus the other' in selection_table(summary)
    with pytest.raises(ValueError, match='rename one'):
        selection_summary(selection, theirs, 'clear', n_bootstrap=5)
    labels = [t.get_text() for t in plot_selection(summary, selection.scores).axes[0].get_yticklabels()]
    assert labels[:3] == ['nested selection', 'the other', 'clear (won 3)']


def test_an_answer_that_is_undefined_is_kept_out_of_the_mean_with_its_reason(found):
    import copy

    selection = copy.deepcopy(found[2])
    selection.predictions.loc[3, 'noisy/Edema'] = np.nan
    summary = selection_summary(selection, n_bootstrap=10, min_cases=3)
    assert 'Edema' not in summary['evaluable']
    assert summary['reasons']['Edema'] == 'noisy does not predict it'


# ---- studies and real training


@pytest.fixture(scope='module')
def explored(tmp_path_factory):
    home = tmp_path_factory.mktemp('home')
    with pytest.MonkeyPatch.context() as m:
        m.setenv('CXR_HOME', str(home))
        run = RunFolder(home / 'run')
        yield run, selection_studies(run, 'simulated', n_patients=40)


def test_studies_are_explored_once_and_another_source_is_refused(explored):
    run, table = explored
    before = (run / 'studies.parquet').stat().st_mtime_ns
    assert selection_studies(run).equals(table)
    assert selection_studies(run, 'simulated', n_patients=40).equals(table)
    assert (run / 'studies.parquet').stat().st_mtime_ns == before
    assert table.note.isna().all()
    with pytest.raises(ValueError, match='take another name for the run'):
        selection_studies(run, 'simulated', n_patients=50)
    with pytest.raises(ValueError, match='name a dataset'):
        selection_studies(RunFolder(run.path.parent / 'empty'))


def test_networks_and_probes_answer_with_probabilities_and_the_same_ones_again(explored):
    run, table = explored
    root = located_path(read_json(run / 'source.json')['root'])
    named = read_candidates(
        {
            'network': dict(preset='tiny', image_size=64, epochs=1),
            'fused': dict(preset='tiny', image_size=64, epochs=1, condition='fused'),
            'grid': dict(preset='tiny', image_size=64, head='probe', stages=[-1], grid=2, freeze_image=True),
            'probe': dict(preset='tiny', image_size=64, head='probe', stages=[-2, -1], freeze_image=True),
        }
    )
    train, stop, predict = np.arange(20), np.arange(20, 28), np.arange(28, 40)
    seen = blind(table, predict)
    for name, candidate in named.items():
        p = Trainer(root)(seen, candidate, train, stop, predict, 0, name)
        annotated = table[list(OBSERVATIONS)].notna().all().to_numpy()
        assert p.shape == (12, 14)
        assert ((p[:, annotated] > 0) & (p[:, annotated] < 1)).all()
        if name != 'fused':
            assert np.array_equal(
                p, Trainer(root)(seen, candidate, train, stop, predict, 0, name), equal_nan=True
            )
    together = Trainer(
        root,
        {n: named[n] for n in ('grid', 'probe')}
        | {
            'twin': read_candidates(
                {'p': dict(preset='tiny', image_size=64, head='probe', freeze_image=True)}
            )['p']
        },
    )
    for n in ('probe', 'grid'):
        assert np.array_equal(
            together.features(table, named[n], 0), Trainer(root).features(table, named[n], 0)
        )
        assert len(together._features) == 3
    assert [Trainer(root).features(table, named[n], 0).shape for n in ('grid', 'probe')] == [
        (40, 160 * 4),
        (40, 2 * (64 + 160)),
    ]
    with pytest.raises(ValueError, match='has 4'):
        Trainer(root)(
            seen,
            read_candidates({'p': dict(preset='tiny', image_size=64, head='probe', stages=[7])})['p'],
            train,
            stop,
            predict,
            0,
            'p',
        )
