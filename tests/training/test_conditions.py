"""Conditions: whose note everybody gets, and that each condition is what a full forward pass would give."""

import copy
import json
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cxr_lib.training.conditions import (
    derangement,
    note_donors,
    opposite_donors,
    predict_conditions,
    prediction_table,
    read_permutations,
    write_permutations,
)
from cxr_lib.foundations.core import OBSERVATIONS, seed_everything
from cxr_lib.training.dataset import StudyData, predict_logits
from cxr_lib.model.fusion import build_model
from cxr_lib.model.presets import make_config
from cxr_lib.model.text import learn_tokenizer

EDEMA = OBSERVATIONS.index('Edema')
seeds, someone = st.integers(0, 2**32 - 1), st.lists(st.integers(0, 8), min_size=2, max_size=30)


def studies(n=30, seed=0):
    "A study table with two films of some patients, missing notes and every state of a label, and its films"
    rng = np.random.default_rng(seed)
    words = np.array(['fever', 'cough', 'fall', 'orthopnea', 'swelling', 'follow up', 'pain', 'tube'])
    notes = [
        None if rng.random() < 0.15 else ' '.join(rng.choice(words, rng.integers(1, 9))) for _ in range(n)
    ]
    table = pd.DataFrame(
        {
            'image': [f'{i}.png' for i in range(n)],
            'patient_id': [f'p{i * 2 // 3}' for i in range(n)],
            'sex': 'Female',
            'age': 50.0,
            'projection': 'PA',
            'view': 'Frontal',
            'note': notes,
            'split': 'test',
            **{o: rng.choice([1, 0, -1, np.nan], n, p=[0.3, 0.4, 0.1, 0.2]) for o in OBSERVATIONS},
        }
    )
    return table, rng.integers(0, 256, (n, 64, 64), dtype=np.uint8)


TABLE, PIXELS = studies()
TOKENIZER = learn_tokenizer(TABLE.note, 100)


@lru_cache
def _built(overrides):
    seed_everything(0)
    model = build_model(make_config('tiny', overrides), TOKENIZER).eval()
    with torch.no_grad():
        model.head[-1].weight.normal_(std=0.3)
    return model


def make_model(overrides='image_size=64'):
    return copy.deepcopy(_built(overrides))


def fresh(model, table=TABLE, pixels=PIXELS):
    return StudyData(table, '', model.config, TOKENIZER, pixels=pixels)


def naive(model, data, rows, **more):
    return 1 / (1 + np.exp(-predict_logits(model, data, rows, **more)['fused'].astype(float)))


# Shuffling


@settings(max_examples=80, deadline=None)
@given(patients=someone, seed=seeds)
def test_no_patient_gets_a_note_of_his_own_and_each_gives_to_exactly_one(patients, seed):
    who = np.array(patients)
    if len(set(patients)) < 2:
        with pytest.raises(ValueError, match='cannot shuffle notes: fewer than two patients'):
            derangement(who, seed)
        return
    giver = who[derangement(who, seed)]
    pairs = {(a, b) for a, b in zip(patients, giver.tolist())}
    assert (giver != who).all()
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(set(patients))


@settings(max_examples=60, deadline=None)
@given(n=st.integers(2, 300), seed=seeds)
def test_with_one_film_each_it_is_a_permutation_without_fixed_points(n, seed):
    order = derangement(n, seed)
    assert sorted(order) == list(range(n)) and (order != np.arange(n)).all()
    assert np.array_equal(order, derangement([f'p{i:03d}' for i in range(n)], seed))
    assert np.array_equal(order, derangement(n, seed))


def test_a_patient_with_several_films_gets_the_notes_of_one_other_in_turn():
    who = np.array(['a', 'b', 'a', 'b', 'b', 'a', 'a'])
    donors = derangement(who, 3)
    assert donors[who == 'a'].tolist() == [1, 3, 4, 1] and donors[who == 'b'].tolist() == [0, 2, 5]


@pytest.mark.parametrize('patients', [0, 1, [], ['a'], ['a', 'a', 'a']])
def test_nobody_can_be_shuffled_alone(patients):
    with pytest.raises(ValueError, match='fewer than two patients'):
        derangement(patients)


def test_every_other_patient_gives_about_as_often():
    got = np.array([derangement(5, s)[0] for s in range(400)])
    assert set(got) == {1, 2, 3, 4} and all(abs((got == k).mean() - 0.25) < 0.08 for k in range(1, 5))


# Contradicting

labels_of = st.lists(
    st.tuples(st.sampled_from([1.0, 0.0, -1.0, float('nan')]), st.integers(0, 5), st.booleans()),
    min_size=1,
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(rows=labels_of, seed=seeds)
def test_a_contradicting_note_is_of_another_patient_with_the_opposite_label(rows, seed):
    labels, who, has = (np.array(x) for x in zip(*rows))
    donors = opposite_donors(labels, who, has, seed)
    for i, j in enumerate(donors):
        possible = [
            k
            for k in range(len(labels))
            if labels[i] in (0, 1) and labels[k] == 1 - labels[i] and who[k] != who[i] and has[k]
        ]
        assert (j in possible) if possible else j == -1


def test_each_possible_donor_is_taken_about_as_often():
    labels, who = np.array([1, 0, 0, 0, 0, 1]), np.array([2, 0, 1, 2, 3, 4])
    got = np.array([opposite_donors(labels, who, np.ones(6, bool), s) for s in range(600)])
    assert set(got[:, 0]) == {1, 2, 4} and set(got[:, 5]) == {1, 2, 3, 4}
    assert all(abs((got[:, 0] == k).mean() - 1 / 3) < 0.08 for k in (1, 2, 4))
    assert all(abs((got[:, 5] == k).mean() - 1 / 4) < 0.08 for k in (1, 2, 3, 4))


def test_lists_of_different_length_are_refused():
    with pytest.raises(ValueError, match='3 labels, 2 patients and 3 values of has_note'):
        opposite_donors([1, 0, 1], ['a', 'b'], [True] * 3)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), order_seed=st.integers(0, 999))
def test_whose_note_it_is_does_not_depend_on_the_order_of_the_rows(seed, order_seed):
    has, order = TABLE.note.notna().to_numpy(), np.random.default_rng(order_seed).permutation(len(TABLE))
    shuffled, contradicting, reasons = note_donors(TABLE, has, seed, 3)
    again = note_donors(TABLE.iloc[order], has[order], seed, 3)
    image = TABLE.image.to_numpy()
    for a, b in ((shuffled, again[0]), (contradicting, again[1])):
        assert np.array_equal(image[a][:, order], image[order][b])
    assert reasons == again[2] == {}


def test_shuffles_differ_and_are_the_same_for_the_same_seed():
    has = TABLE.note.notna()
    shuffled, contradicting, _ = note_donors(TABLE, has, 5)
    assert len({tuple(s) for s in shuffled}) == 20
    assert np.array_equal(shuffled, note_donors(TABLE, has, 5)[0])
    assert not np.array_equal(shuffled, note_donors(TABLE, has, 6)[0])
    assert np.array_equal(
        shuffled[:3], note_donors(TABLE, has, 5, 3)[0]
    )  # more shuffles do not change the first ones
    assert not np.array_equal(contradicting[EDEMA], contradicting[EDEMA + 1])


def test_unknown_labels_get_a_shuffled_note_and_an_impossible_contradiction_is_said():
    table = TABLE.assign(
        Pneumonia=1.0,
        Fracture=np.nan,
        Edema=np.where(TABLE.patient_id == 'p0', 1.0, np.where(TABLE.patient_id == 'p1', np.nan, 0.0)),
    )
    shuffled, contradicting, reasons = note_donors(table, np.ones(len(table), bool))
    assert set(reasons) == {'contradicting_note/Pneumonia', 'contradicting_note/Fracture'}
    assert '30 of 30 labelled rows' in reasons['contradicting_note/Pneumonia']
    assert 'no label is known' in reasons['contradicting_note/Fracture']
    for o in ('Pneumonia', 'Fracture'):
        assert np.array_equal(contradicting[OBSERVATIONS.index(o)], shuffled[0])
    unknown = table.Edema.isna().to_numpy()
    assert np.array_equal(contradicting[EDEMA][unknown], shuffled[0][unknown])
    assert (table.patient_id.to_numpy()[contradicting[EDEMA][table.Edema == 0]] == 'p0').all()
    has = (table.patient_id != 'p0').to_numpy()  # the only positive has no note to give
    assert (
        f'{(table.Edema == 0).sum()} of {table.Edema.notna().sum()} labelled rows'
        in note_donors(table, has)[2]['contradicting_note/Edema']
    )


# Predictions


@pytest.mark.parametrize('kept', [False, True])
def test_each_condition_is_what_a_full_forward_pass_gives(kept):
    model = make_model('image_size=64 freeze_image=true freeze_text=true' if kept else 'image_size=64')
    data, plain, rows = fresh(model), fresh(model), np.arange(4, 28)
    if kept:
        data.precompute(model, token_dtype='float32')
    out = predict_conditions(model, data, rows, seed=3, n_permutations=4, batch_size=10)
    shuffled, contradicting, _ = note_donors(TABLE.iloc[rows], data.notes['has_note'][rows].numpy(), 3, 4)
    own = predict_logits(model, plain, rows)
    for condition, branch in (('fused', 'fused'), ('image_only', 'image'), ('note_only', 'note')):
        assert np.allclose(
            out.probabilities[condition], 1 / (1 + np.exp(-own[branch].astype(float))), atol=1e-5
        )
    assert np.allclose(
        out.probabilities['missing_note'], naive(model, plain, rows, drop_notes=True), atol=1e-5
    )
    for p, donors in zip(out.permutations, shuffled):
        assert np.allclose(p, naive(model, plain, rows, note_of=rows[donors]), atol=1e-5)
    for k, donors in enumerate(contradicting):
        assert np.allclose(
            out.probabilities['contradicting_note'][:, k],
            naive(model, plain, rows, note_of=rows[donors])[:, k],
            atol=1e-5,
        )
    assert out.permutations.dtype == np.float32
    assert np.array_equal(out.probabilities['shuffled_note'], out.permutations[0])
    assert out.reasons == {}
    without = ~plain.notes['has_note'][rows].numpy()
    assert without.any()
    assert np.allclose(
        out.probabilities['fused'][without], out.probabilities['missing_note'][without], atol=1e-6
    )


@settings(max_examples=3, deadline=None)
@given(batch_size=st.integers(3, 40), order_seed=st.integers(0, 99), seed=st.integers(0, 3))
def test_neither_batch_size_nor_order_matters(batch_size, order_seed, seed):
    model = make_model()
    order = np.random.default_rng(order_seed).permutation(len(TABLE))
    assume((order != np.arange(len(TABLE))).any())
    first = predict_conditions(model, fresh(model), np.arange(len(TABLE)), seed=seed, n_permutations=2)
    by_rows = predict_conditions(
        model, fresh(model), order, seed=seed, n_permutations=2, batch_size=batch_size
    )
    by_table = predict_conditions(
        model,
        fresh(model, TABLE.iloc[order], PIXELS[order]),
        np.arange(len(TABLE)),
        seed=seed,
        n_permutations=2,
        batch_size=batch_size,
    )
    for again in (by_rows, by_table):
        assert all(
            np.allclose(p[order], again.probabilities[c], atol=1e-5) for c, p in first.probabilities.items()
        )
        assert np.allclose(first.permutations[:, order], again.permutations, atol=1e-5)


def test_each_film_and_each_note_is_encoded_once():
    model, films, notes = make_model(), [], []
    image, note = model.encode_image, model.encode_note
    model.encode_image = lambda pixels: films.append(len(pixels)) or image(pixels)
    model.encode_note = lambda ids, mask: notes.append(len(ids)) or note(ids, mask)
    predict_conditions(model, fresh(model), np.arange(30), batch_size=8)
    assert sum(films) == 30 and sum(notes) <= 30 + 1  # and one note for the width of its tokens


def test_many_notes_go_into_a_temporary_file_with_the_same_answers(monkeypatch, tmp_path):
    model = make_model()
    small = predict_conditions(model, fresh(model), np.arange(30), n_permutations=2)
    monkeypatch.setattr('cxr_lib.training.conditions.NOTE_BYTES', 1000)
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    seen = []

    def watching(*args):
        seen.extend(tmp_path.rglob('tokens.npy'))
        return type(model).encode_image(model, *args)

    model.encode_image = watching
    large = predict_conditions(model, fresh(model), np.arange(30), n_permutations=2)
    assert seen
    assert not list(tmp_path.iterdir())
    assert all(
        np.allclose(small.probabilities[c], large.probabilities[c], atol=1e-5) for c in small.probabilities
    )


def test_a_single_patient_keeps_the_note_and_the_reason_is_given():
    model = make_model()
    out = predict_conditions(model, fresh(model), [0, 1], n_permutations=2)  # p0 twice
    assert TABLE.patient_id[:2].nunique() == 1
    assert np.allclose(out.probabilities['shuffled_note'], out.probabilities['fused'], atol=1e-6)
    assert all('only one patient' in out.reasons[f'shuffled_note/{o}'] for o in OBSERVATIONS)
    for p in out.probabilities.values():
        assert np.isfinite(p).all() and ((p >= 0) & (p <= 1)).all()
    assert json.loads(json.dumps(out.reasons)) == out.reasons


@pytest.mark.parametrize('training', [True, False])
def test_the_mode_of_the_model_is_left_as_it_was(training):
    model = make_model().train(training)
    predict_conditions(model, fresh(model), np.arange(4), n_permutations=1)
    assert model.training == training


def test_impossible_requests_are_refused():
    model = make_model()
    with pytest.raises(ValueError, match='the split is empty'):
        predict_conditions(model, fresh(model), [])
    with pytest.raises(ValueError, match='n_permutations is 0'):
        predict_conditions(model, fresh(model), [0, 2], n_permutations=0)


def test_the_prediction_table_holds_labels_and_probabilities_in_order():
    p = np.random.default_rng(0).random((30, 14))
    table = prediction_table(TABLE, {'fused': p, 'contradicting_note': p / 2}, 'test', 2)
    assert table.columns.tolist() == [
        'image',
        'patient_id',
        'sex',
        'age',
        'projection',
        'view',
        'note',
        'split',
        'fold',
        *(f'{c}/{o}' for c in ('label', 'fused', 'contradicting_note') for o in OBSERVATIONS),
    ]
    assert np.array_equal(table[[f'fused/{o}' for o in OBSERVATIONS]], p)
    assert (table.split == 'test').all()
    assert (table.fold == 2).all()
    assert table['label/Edema'].equals(TABLE.Edema.rename('label/Edema'))
    with pytest.raises(ValueError, match=r'fused has the shape \(29, 14\); expected \(30, 14\)'):
        prediction_table(TABLE, {'fused': p[1:]}, 'test')


# The file of the shuffles

IMAGES = [f'patient {i}/ä.png' for i in range(6)]


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 4), seed=st.integers(0, 99))
def test_permutations_come_back_as_they_were_written(tmp_path_factory, n, seed):
    array = np.random.default_rng(seed).random((n, 6, 14), np.float32)
    again, images = read_permutations(
        write_permutations(tmp_path_factory.mktemp('p') / 'permutations.npz', array, IMAGES)
    )
    assert np.array_equal(again, array) and again.dtype == np.float32 and images.tolist() == IMAGES


@pytest.mark.parametrize(
    'change,why',
    [
        (lambda a: a[0], 'the shape is'),
        (lambda a: a[:, :5], 'the shape is'),
        (lambda a: a[..., :13], 'the shape is'),
        (lambda a: a[:0], 'the shape is'),
        (lambda a: a + 1, 'not probabilities'),
        (lambda a: a - 2, 'not probabilities'),
        (lambda a: a * np.nan, 'not probabilities'),
        (lambda a: a.astype(int), 'of type int'),
    ],
)
def test_wrong_permutations_are_not_written(tmp_path, change, why):
    with pytest.raises(ValueError, match=why):
        write_permutations(tmp_path / 'p.npz', change(np.full((2, 6, 14), 0.5)), IMAGES)
    assert not list(tmp_path.iterdir())


def test_damaged_and_foreign_files_are_refused(tmp_path):
    array, good = np.full((2, 6, 14), 0.5, np.float32), tmp_path / 'good.npz'
    whole = write_permutations(good, array, IMAGES).read_bytes()
    with np.load(good) as f:
        parts = dict(f)

    def refuse(why):
        with pytest.raises(ValueError, match=why) as e:
            read_permutations(tmp_path / 'p.npz')
        assert 'p.npz' in str(e.value)

    refuse('no such file; the training stage writes it')
    flipped = bytearray(whole)
    flipped[len(whole) * 3 // 4] ^= 255
    for data in (b'', b'no zip at all', whole[:-300], whole[:40], bytes(flipped)):
        (tmp_path / 'p.npz').write_bytes(data)
        refuse('not a file of permutations, or damaged')
    np.savez(tmp_path / 'p.npz', something=array)
    refuse('not a file of permutations')
    np.save(tmp_path / 'q.npy', array)
    (tmp_path / 'q.npy').rename(tmp_path / 'p.npz')
    refuse('not a file of permutations')
    np.savez(tmp_path / 'p.npz', **parts | {'images': np.array([{}] * 6, object)})
    refuse('not a file of permutations')  # a pickle is not opened
    for change, why in (
        ({'format': 'cxr_lib.permutations/9'}, 'the format is'),
        ({'observations': np.array(OBSERVATIONS[::-1])}, 'the observations are not'),
        ({'images': np.array(IMAGES[1:])}, 'the shape is'),
        ({'images': np.array([IMAGES])}, 'not a list'),
        ({'permutations': array + 1}, 'not probabilities'),
        ({'permutations': array.astype(int)}, 'of type int'),
    ):
        np.savez(tmp_path / 'p.npz', **parts | change)
        refuse(why)
    with pytest.raises(ValueError, match='must end in .npz'):
        write_permutations(tmp_path / 'p.parquet', array, IMAGES)
