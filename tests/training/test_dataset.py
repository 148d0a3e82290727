"""Data of a run: kept tokens are the encoder's output, whatever happens to their file.

Everything that decides them is in their key.
"""

import copy
import errno
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cxr_lib.data.images import pixel_cache
from cxr_lib.foundations.core import OBSERVATIONS, seed_everything
from cxr_lib.foundations.files import read_json, write_json
from cxr_lib.model.fusion import build_model
from cxr_lib.model.presets import make_config
from cxr_lib.model.text import learn_tokenizer, tokenize
from cxr_lib.training.dataset import (
    StudyData,
    encode_images,
    encode_notes,
    hide_words,
    is_frozen,
    mean_auroc,
    predict_logits,
)
from cxr_lib.training.tokens import (
    Tokens,
    encoder_key,
    film_fingerprints,
    note_fingerprints,
    prune_token_caches,
    token_caches,
)

NOTES = [
    'cough and fever',
    'fall from ladder',
    None,
    'known heart failure, orthopnea, worse since yesterday',
    '  ',
    'cough and fever',
]
FROZEN = 'image_size=64 freeze_image=true freeze_text=true'


def studies(n=24, size=64, seed=0):
    "A study table and its films; films 0 and 12 are the same"
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (n, size, size), dtype=np.uint8)
    if n > 12:
        pixels[12] = pixels[0]
    notes = [
        NOTES[i % 6] if i < 6 or not isinstance(NOTES[i % 6], str) else f'{NOTES[i % 6]} {"x" * (i % 7)}'
        for i in range(n)
    ]
    table = pd.DataFrame(
        {
            'image': [f'{i}.png' for i in range(n)],
            'patient_id': [f'p{i}' for i in range(n)],
            'note': notes,
            'split': 'train',
            **{o: rng.integers(0, 2, n).astype(float) for o in OBSERVATIONS},
        }
    )
    return table, pixels


TABLE, PIXELS = studies()
TOKENIZER = learn_tokenizer(TABLE.note, 100)


@lru_cache
def _built(overrides, seed):
    seed_everything(seed)
    model = build_model(make_config('tiny', overrides), TOKENIZER).eval()
    with torch.no_grad():
        model.head[-1].weight.normal_(std=0.3)
    return model


def make_model(overrides=FROZEN, seed=0):
    return copy.deepcopy(_built(overrides, seed))


@pytest.fixture
def model():
    return make_model()


def fresh(model, table=TABLE, pixels=PIXELS):
    return StudyData(table, '', model.config, TOKENIZER, pixels=pixels)


class Counted:
    "Counts the films and notes that go through a model's encoders"

    def __init__(self, model):
        self.films = self.notes = 0
        image, note = model.encode_image, model.encode_note

        def count_image(pixels):
            self.films += len(pixels)
            return image(pixels)

        def count_note(ids, mask):
            self.notes += len(ids)
            return note(ids, mask)

        model.encode_image, model.encode_note = count_image, count_note


def quiet(function, *args, **more):
    "Call, and fail if there is a warning"
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        return function(*args, **more)


# Ragged tokens


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    rows=st.lists(st.integers(0, 99), min_size=1, max_size=12),
    same=st.booleans(),
    seed=st.integers(0, 99),
)
def test_ragged_tokens_give_each_row_its_own_tokens_and_zeros(lengths, rows, same, seed):
    rng = np.random.default_rng(seed)
    if same:
        lengths = [max(lengths)] * len(lengths)
    parts = [rng.normal(size=(n, 3)).astype(np.float32) for n in lengths]
    item = rng.integers(0, len(lengths), 7)
    tokens, rows = Tokens(np.concatenate(parts), np.r_[0, np.cumsum(lengths)], item), [r % 7 for r in rows]
    got = tokens[rows].numpy()
    assert len(tokens) == 7 and got.shape == (len(rows), max(1, *(lengths[item[r]] for r in rows), 0), 3)
    for one, r in zip(got, rows):
        n = lengths[item[r]]
        assert np.array_equal(one[:n], parts[item[r]]) and not one[n:].any()


def test_a_long_note_does_not_make_the_others_long(model):
    table = TABLE.assign(note=['word ' * 10_000, *TABLE.note[1:]])
    data = fresh(model, table).precompute(model)
    real = int(data.notes['attention_mask'].sum())
    assert (
        len(data.note_tokens.values) < real < data.notes['attention_mask'].numel() / 4
    )  # equal notes are kept once
    assert data.note_tokens[[0]].shape[1] == model.config.max_tokens and data.note_tokens[[1]].shape[1] < 10


# The same answers


@pytest.mark.parametrize('where', ['memory', 'file'])
def test_kept_tokens_give_the_predictions_of_encoding_again(model, tmp_path, where):
    again = predict_logits(model, fresh(model), np.arange(24))
    for dtype, most in (('float32', 1e-5), ('float16', 5e-3)):
        data = fresh(model).precompute(
            model, cache=tmp_path if where == 'file' else None, token_dtype=dtype, batch_size=5
        )
        assert (
            isinstance(data.image_tokens.values, np.memmap)
            == isinstance(data.note_tokens.values, np.memmap)
            == (where == 'file')
        )
        kept = predict_logits(model, data, np.arange(24), batch_size=7)
        for branch in again:
            difference = np.abs(1 / (1 + np.exp(-kept[branch])) - 1 / (1 + np.exp(-again[branch]))).max()
            assert difference < most, (dtype, branch, difference)
            if dtype == 'float16' and branch == 'fused':
                assert difference > 0  # it is really kept in half precision


@settings(max_examples=10, deadline=None)
@given(
    rows=st.lists(st.integers(0, 23), min_size=1, max_size=12),
    batch_size=st.integers(1, 30),
    seed=st.integers(0, 3),
)
def test_any_rows_in_any_order_with_any_notes(rows, batch_size, seed):
    model = make_model()
    other = np.random.default_rng(seed).permutation(24)[: len(rows)]
    kept = fresh(model).precompute(model, batch_size=batch_size, token_dtype='float32')
    for more in ({}, {'note_of': other}, {'drop_notes': True}):
        a, b = predict_logits(model, fresh(model), rows, **more), predict_logits(model, kept, rows, **more)
        assert all(np.allclose(a[k], b[k], atol=1e-5) for k in a)


def test_equal_films_and_equal_notes_are_encoded_once(model):
    seen = Counted(model)
    data = fresh(model).precompute(model)
    # one film more for the number of tokens, one for their width
    assert seen.films == 23 + 2
    assert len(data.image_tokens.first) - 1 == 23
    distinct = {
        tuple(i[m.bool()].tolist()) for i, m in zip(data.notes['input_ids'], data.notes['attention_mask'])
    }
    assert len(data.note_tokens.first) - 1 == len(distinct) < 24
    assert torch.equal(data.image_tokens[[0]], data.image_tokens[[12]])


def test_without_any_note_nothing_is_kept_of_notes_and_predictions_are_the_same(model, tmp_path):
    table = TABLE.assign(note=None)
    kept = fresh(model, table).precompute(model, cache=tmp_path)
    assert len(kept.note_tokens.values) == 0 and token_caches(tmp_path).what.tolist() == ['image']
    assert np.allclose(
        predict_logits(model, kept, [0, 5])['note'],
        predict_logits(model, fresh(model, table), [0, 5])['note'],
        atol=1e-5,
    )


# What may be kept


def test_only_what_is_frozen_is_kept_and_the_model_knows_best(model):
    for overrides, kept in (
        (FROZEN, (True, True)),
        ('image_size=64 freeze_text=true', (False, True)),
        ('image_size=64 freeze_image=true', (True, False)),
        ('image_size=64', (False, False)),
    ):
        data = fresh(net := make_model(overrides)).precompute(net)
        assert (
            (data.image_tokens is not None, data.note_tokens is not None)
            == kept
            == (is_frozen(net, 'image'), is_frozen(net, 'text'))
        )
    assert fresh(model).precompute(model, images=False).image_tokens is None

    class Unfrozen(type(model)):
        image_is_frozen = False  # as a model says whose last block is trained

    model.__class__ = Unfrozen
    data = fresh(model).precompute(model)
    assert data.image_tokens is None and data.note_tokens is not None
    with pytest.raises(ValueError, match="expected 'image' or 'text'"):
        is_frozen(model, 'note')


def test_an_encoder_with_a_weight_that_is_trained_is_not_kept(model):
    data = fresh(model).precompute(model)
    next(model.image_encoder.parameters()).requires_grad_(True)
    assert data.precompute(model).image_tokens is None  # and what was kept before is forgotten


def test_augmented_batches_bring_pixels_even_where_tokens_are_kept(model):
    data = fresh(model).precompute(model)
    i = torch.arange(4)
    first, second = data.batch(i, augmented=True), data.batch(i, augmented=True)
    assert 'image_tokens' not in first
    assert not torch.equal(first['pixels'], second['pixels'])
    assert 'image_tokens' in data.batch(i)


def test_precompute_leaves_the_mode_of_the_model(model):
    for training in (True, False):
        fresh(model.train(training)).precompute(model)
        assert model.training == training


# The key


def test_whatever_changes_the_tokens_changes_the_cache(tmp_path, model):
    def build(net=model, table=TABLE, pixels=PIXELS, **more):
        StudyData(table, '', net.config, TOKENIZER, pixels=pixels).precompute(net, cache=tmp_path, **more)
        found = token_caches(tmp_path)
        return set(found.path[found.what == 'image']), set(found.path[found.what == 'note'])

    images, notes = build()
    assert len(images) == len(notes) == 1 and build() == (images, notes)
    assert build(table=TABLE.iloc[::-1], pixels=PIXELS[::-1]) == (
        images,
        notes,
    )  # another order is the same set

    def more(found, image, note):
        nonlocal images, notes
        assert (len(found[0]) - len(images), len(found[1]) - len(notes)) == (image, note)
        images, notes = found

    more(build(token_dtype='float32'), 1, 1)
    changed = PIXELS.copy()
    changed[3, 0, 0] ^= 1
    more(build(pixels=changed), 1, 0)
    more(build(table=TABLE.assign(note=['another'] + TABLE.note.tolist()[1:])), 0, 1)
    more(build(net=make_model(seed=1)), 1, 1)
    with torch.no_grad():
        model.image_encoder.mean += 0.1
    more(build(), 1, 0)
    with torch.no_grad():
        next(model.text_encoder.parameters()).view(-1)[-1] += 1
    more(build(), 0, 1)
    cut = make_model(FROZEN + ' max_tokens=4')
    cut.load_state_dict(make_model().state_dict(), strict=False)
    more(build(net=cut), 0, 1)
    larger = make_model(FROZEN.replace('64', '96'))
    larger.load_state_dict(make_model().state_dict())
    more(build(net=larger, pixels=studies(size=96)[1]), 1, 0)


def test_the_key_does_not_depend_on_mode_memory_format_or_gradients(model):
    key = encoder_key(model.image_encoder)
    model.image_encoder.to(memory_format=torch.contiguous_format).requires_grad_(True).train()
    assert encoder_key(model.image_encoder) == key != encoder_key(model.image_encoder.half())


def test_films_of_a_pixel_cache_are_known_by_file_and_others_by_pixels(tmp_path):
    for i in range(4):
        Image.fromarray(PIXELS[i]).save(tmp_path / f'{i}.png')
    names = ['0.png', '1.png', '0.png', '2.png']
    pixels = pixel_cache(tmp_path, names, 32, tmp_path / 'cache', progress=False)
    prints = film_fingerprints(pixels)
    assert prints[0] == prints[2]
    assert len(set(prints.tolist())) == 3
    assert not np.array_equal(prints, film_fingerprints(np.array(pixels)))
    for part in (pixels[1:], pixels[::-1], pixels[[1, 0]], pixels[:, ::2, ::2]):  # a part is not the whole
        assert np.array_equal(film_fingerprints(part), film_fingerprints(np.array(part)))
    Image.fromarray(PIXELS[3]).save(tmp_path / '1.png')  # another film under the same name
    os.utime(tmp_path / '1.png', ns=(1, 1))
    assert (
        film_fingerprints(pixel_cache(tmp_path, names, 32, tmp_path / 'cache', progress=False)) != prints
    ).tolist() == [False, True, False, False]


def test_notes_are_known_by_what_the_encoder_sees():
    def prints(notes, n=32):
        return note_fingerprints(tokenize(TOKENIZER, notes, n)).tolist()

    assert prints(['fever', None, ' ', 'FEVER']) == [*prints(['fever', '', None]), prints(['fever'])[0]]
    assert prints(['fever', 'x' * 9])[0] == prints(['fever'])[0]
    assert prints(['cough and fever'], 4) != prints(['cough and fever'])
    assert prints(['cough and fever']) != prints(['fever and cough'])


# The file


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "A folder with the two caches of a model, of several chunks each, and the predictions without them"
    folder, model = tmp_path_factory.mktemp('built'), make_model()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('cxr_lib.training.tokens.CHUNK_BYTES', 5000)
        fresh(model).precompute(model, cache=folder, token_dtype='float32')
    return folder, predict_logits(model, fresh(model), np.arange(24))


@pytest.fixture
def cached(built, model, tmp_path, monkeypatch):
    "A model, its counter, a folder with its two caches, and the predictions without them"
    monkeypatch.setattr('cxr_lib.training.tokens.CHUNK_BYTES', 5000)
    return (
        model,
        Counted(model),
        shutil.copytree(built[0], tmp_path / 'cache'),
        built[1],
    )  # with its times, so that it is as it was left


def same(model, data, right):
    return all(np.allclose(predict_logits(model, data, np.arange(24))[k], right[k], atol=1e-5) for k in right)


def cache_of(folder, what):
    return token_caches(folder).set_index('what').path[what]


def test_a_cache_that_is_there_is_opened_and_not_built(cached):
    model, seen, folder, right = cached
    data = quiet(fresh(model).precompute, model, cache=folder, token_dtype='float32')
    assert seen.films <= 4 and seen.notes <= 4 and same(model, data, right)  # only what is compared


def spoil(path, how):
    data = bytearray(path.read_bytes())
    if how == 'cut short':
        data = data[:-100]
    elif how == 'longer':
        data += b'0' * 100
    elif how == 'another header':
        data[40] ^= 1
    elif how == 'a flipped bit':
        data[len(data) // 2] ^= 16
    elif how == 'not ours':
        data = bytearray(b'something else')
    elif how == 'empty':
        data = bytearray()
    path.write_bytes(data)


@pytest.mark.parametrize(
    'what,how',
    [
        ('image', how)
        for how in ('cut short', 'longer', 'another header', 'a flipped bit', 'not ours', 'empty')
    ]
    + [('note', 'a flipped bit')],
)
def test_a_damaged_file_is_noticed_and_built_again(cached, what, how):
    model, _, folder, right = cached
    spoil(cache_of(folder, what) / 'tokens.npy', how)
    with pytest.warns(UserWarning, match='It is built again'):
        data = fresh(model).precompute(model, cache=folder, token_dtype='float32')
    assert same(model, data, right)
    quiet(fresh(model).precompute, model, cache=folder, token_dtype='float32')


@pytest.mark.parametrize(
    'text',
    [
        '',
        '{}',
        '[]',
        json.dumps(dict(format=2)),
        json.dumps(dict(format=1, changed=0)),
        json.dumps(dict(format=99, changed=0)),
    ],
)
def test_a_damaged_description_is_noticed(cached, text):
    model, _, folder, right = cached
    (cache_of(folder, 'image') / 'meta.json').write_text(text)
    with pytest.warns(UserWarning, match='It is built again'):
        data = fresh(model).precompute(model, cache=folder, token_dtype='float32')
    assert same(model, data, right)


def test_a_missing_part_is_built_again(cached):
    model, _, folder, right = cached
    for name in ('tokens.npy', 'meta.json'):
        (cache_of(folder, 'image') / name).unlink()
        assert same(model, quiet(fresh(model).precompute, model, cache=folder, token_dtype='float32'), right)


def test_a_copied_cache_is_checked_in_full_once(cached, tmp_path):
    model, seen, folder, right = cached
    copy = shutil.copytree(folder, tmp_path / 'copy', copy_function=shutil.copyfile)
    data = quiet(fresh(model).precompute, model, cache=copy, token_dtype='float32')
    assert seen.films <= 4 and same(model, data, right)


def test_an_encoder_whose_code_has_changed_is_found_out(cached):
    model, _, folder, _ = cached
    original = model.encode_image
    model.encode_image = lambda pixels: original(pixels) * 1.02  # no weight, no layer, no buffer shows it
    with pytest.warns(UserWarning, match='the encoder no longer gives the stored tokens'):
        data = fresh(model).precompute(model, cache=folder, token_dtype='float32')
    assert same(model, data, predict_logits(model, fresh(model), np.arange(24)))


def tear(folder, part):
    "Spoil what was written last: its line in the record, or its bytes in the array"
    record, array = folder / 'progress.jsonl', folder / 'building.npy'
    if part == 'record':
        record.write_bytes(record.read_bytes()[:-5])
    else:
        done, data = len(record.read_text().splitlines()), bytearray(array.read_bytes())
        end = 128 + done * ((len(data) - 128) // 23)
        data[end - 5 : end] = bytes(5)
        array.write_bytes(data)


@pytest.mark.parametrize('torn', ['', 'record', 'array'])
def test_a_build_that_was_stopped_goes_on_where_it_stopped(model, tmp_path, monkeypatch, torn):
    monkeypatch.setattr('cxr_lib.training.tokens.CHUNK_BYTES', 600)  # one film a chunk
    original, calls = model.encode_image, []

    def stopping(pixels):
        calls.append(len(pixels))
        if len(calls) > 12:
            raise KeyboardInterrupt
        return original(pixels)

    model.encode_image = stopping
    with pytest.raises(KeyboardInterrupt):
        encode_images(model, fresh(model), cache=tmp_path)
    left = token_caches(tmp_path)
    assert left.finished.tolist() == [False]
    assert not os.path.exists(left.path[0] / 'tokens.npy')
    if torn:
        tear(left.path[0], torn)
    before = len(calls) - 1
    model.encode_image = original
    seen = Counted(model)
    data = fresh(model)
    data.image_tokens = quiet(encode_images, model, data, cache=tmp_path)
    assert seen.films <= 23 - (before - 4) + 4 + bool(torn)
    assert seen.films < 23
    assert token_caches(tmp_path).finished.all()
    assert np.allclose(
        predict_logits(model, data, np.arange(24))['fused'],
        predict_logits(model, fresh(model), np.arange(24))['fused'],
        atol=5e-3,
    )


BUILDER = """
import sys, time
sys.path[:0] = [{root!r}, {tests!r}]
import cxr_lib.training.dataset, cxr_lib.training.tokens
cxr_lib.training.tokens.CHUNK_BYTES = 600
from training.test_dataset import fresh, make_model
model = make_model(); quick = model.encode_image
def encode(pixels): time.sleep(.1); return quick(pixels)
model.encode_image = encode
cxr_lib.training.dataset.encode_images(model, fresh(model), cache={cache!r})
"""


def test_one_that_was_killed_leaves_nothing_wrong_and_two_build_it_once(tmp_path, monkeypatch):
    folder, env = tmp_path / 'cache', {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    code = BUILDER.format(root=str(ROOT), tests=str(ROOT / 'tests'), cache=str(folder))
    killed = subprocess.Popen(
        [sys.executable, '-c', code],
        cwd=tmp_path,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not any(len(p.read_bytes().splitlines()) > 4 for p in folder.glob('image-*/progress.jsonl')):
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    assert token_caches(folder).finished.tolist() == [False]
    monkeypatch.setattr('cxr_lib.training.tokens.CHUNK_BYTES', 600)
    models = [make_model(), make_model()]
    seen = [Counted(m) for m in models]

    def build(model):
        return encode_images(model, fresh(model), cache=folder)[np.arange(24)]

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(build, models)
    few, many = sorted(s.films for s in seen)
    assert few <= 4 and many <= 4 + 23 - 5  # one went on where the killed one stopped, the other waited
    assert torch.equal(first, second)
    assert np.allclose(first, encode_images(models[0], fresh(models[0]))[np.arange(24)], atol=1e-3)


# Parts of several processes


#: Films that go through the encoder whenever a cache is opened: one to see the tokens' number, three to compare.
COMPARED = 1 + 3


def encode_parts(model, cache, parts=3, skip=()):
    for part in range(1, parts + 1):
        if part not in skip:
            fresh(model).encode_part(model, part, parts, cache=cache)


def encoded_films(model, cache):
    "The image tokens of all rows, and how many films went through the encoder for them"
    seen = Counted(model)
    return encode_images(model, fresh(model), cache=cache)[np.arange(24)], seen.films


def test_parts_become_the_whole_and_are_removed(model, tmp_path):
    alone = encode_images(model, fresh(model))[np.arange(24)]
    encode_parts(model, tmp_path)
    assert (token_caches(tmp_path).what == 'image').sum() == 3
    together, films = encoded_films(model, tmp_path)
    assert films <= COMPARED + 3 * 3  # nothing is encoded
    assert np.allclose(alone, together, atol=1e-3)
    assert (token_caches(tmp_path).what == 'image').sum() == 1


@pytest.mark.parametrize('fault', ['missing', 'damaged', 'without its list', 'of other code'])
def test_a_part_that_cannot_be_used_is_encoded_again(model, tmp_path, fault):
    encode_parts(model, tmp_path, skip=(2,) if fault == 'missing' else ())
    alone = encode_images(model, fresh(model))[np.arange(24)]
    first = sorted(tmp_path.glob('image-*'))[0]
    if fault == 'damaged':
        with (first / 'tokens.npy').open('r+b') as f:
            f.seek(-5, 2)
            f.write(b'xxxxx')
    if fault == 'without its list':
        (first / 'fingerprints.npy').unlink()
    if fault == 'of other code':  # what no key knows
        file = first / 'tokens.npy'
        tokens = np.load(file)
        np.save(file, tokens * np.float16(1.1))
        record, meta = first / 'progress.jsonl', first / 'meta.json'
        data = (tokens * np.float16(1.1)).tobytes()
        record.write_text(json.dumps([0, zlib.crc32(data), []]) + '\n')
        write_json(meta, read_json(meta) | dict(changed=file.stat().st_mtime_ns))
    together, films = encoded_films(model, tmp_path)
    assert np.allclose(alone, together, atol=1e-3)
    assert 7 <= films <= 8 + COMPARED + 3 * 3


def test_a_table_that_has_grown_costs_what_is_new(model, tmp_path):
    encode_images(model, fresh(model, TABLE.head(20), PIXELS[:20]), cache=tmp_path)
    _, films = encoded_films(model, tmp_path)
    assert films <= 4 + COMPARED + 3
    assert len(token_caches(tmp_path)) == 2  # it is no part, so it stays


def test_a_part_of_nothing_is_refused(model, tmp_path):
    for part, parts in ((0, 2), (3, 2), (1, 25)):
        with pytest.raises(ValueError, match=f'part is {part} of {parts}; expected 1 to'):
            fresh(model).encode_part(model, part, parts, cache=tmp_path)


def test_a_full_disk_is_said_before_anything_is_built(model, tmp_path, monkeypatch):
    monkeypatch.setattr(
        'cxr_lib.foundations.chunks.shutil.disk_usage',
        lambda folder: shutil._ntuple_diskusage(10**6, 10**6 - 100, 100),
    )
    seen = Counted(model)
    with pytest.raises(
        OSError,
        match='the image token cache .* needs 0.00 GB more, 0.00 GB are free. Free space, or .*prune_token_caches',
    ) as e:
        encode_images(model, fresh(model), cache=tmp_path)
    assert e.value.errno == errno.ENOSPC and seen.films <= 4 and not list(tmp_path.rglob('*.npy'))


def test_a_disk_that_fills_up_keeps_what_was_encoded(model, tmp_path, monkeypatch):
    monkeypatch.setattr('cxr_lib.training.tokens.CHUNK_BYTES', 600)

    def full(*args):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr('cxr_lib.foundations.chunks.os.fsync', full)
    with pytest.raises(OSError, match='No space left on device. What has been written is kept') as e:
        encode_images(model, fresh(model), cache=tmp_path)
    assert e.value.errno == errno.ENOSPC
    monkeypatch.undo()
    monkeypatch.setattr('cxr_lib.training.tokens.CHUNK_BYTES', 600)
    seen = Counted(model)
    encode_images(model, fresh(model), cache=tmp_path)
    assert seen.films <= 4


def test_what_does_not_fit_into_half_precision_is_an_error(model, tmp_path):
    original = model.encode_image
    model.encode_image = lambda pixels: original(pixels) * 1e6
    for cache in (None, tmp_path):
        with pytest.raises(
            ValueError,
            match="image encoder resnet8_compare gives values that do not fit into float16; use token_dtype='float32'",
        ):
            encode_images(model, fresh(model), cache=cache)
        encode_images(model, fresh(model), cache=cache, token_dtype='float32')
    model.encode_image = lambda pixels: original(pixels) * float('nan')
    with pytest.raises(ValueError, match='are not finite'):
        encode_images(model, fresh(model), token_dtype='float32')


# Half precision


def tokens_of(model, **more):
    "Image and note tokens of all rows"
    data = fresh(model).precompute(model, **more)
    return data.image_tokens[np.arange(24)], data.note_tokens[np.arange(24)]


def test_tokens_are_encoded_in_the_precision_of_the_training(model):
    exact, auto, rounded = (tokens_of(model, precision=p) for p in ('no', 'auto', 'bf16'))
    for a, b, c in zip(exact, auto, rounded):
        assert torch.equal(a, b)  # on a processor, auto is fp32
        assert 0 < (c - a).norm() / a.norm() < 0.05


def test_a_device_with_half_precision_encodes_in_it(model, monkeypatch):
    monkeypatch.setattr('cxr_lib.training.dataset.choose_precision', lambda device: 'bf16')  # as an A100 says
    seen, original = [], model.encode_image
    model.encode_image = lambda pixels: seen.append(torch.is_autocast_enabled('cpu')) or original(pixels)
    encode_images(model, fresh(model), precision='auto')
    assert seen and all(seen)
    seen.clear()
    encode_images(model, fresh(model))
    assert seen and not any(seen)


def test_a_cache_is_of_one_precision(model, tmp_path):
    seen, names = Counted(model), []
    for precision in ('no', 'bf16', 'bf32', 'bf16'):
        encode_images(model, fresh(model), cache=tmp_path, precision=precision)
        names.append(len(list(tmp_path.glob('image-*'))))
    assert names == [1, 2, 2, 2]  # bf32 is another way to train, and encodes as fp32 does
    assert seen.films < 3 * 24  # found again, not encoded again


def test_wrong_options_and_tables_are_refused(model):
    with pytest.raises(ValueError, match="token_dtype is 'int8'; expected float16 or float32"):
        fresh(model).precompute(model, token_dtype='int8')
    with pytest.raises(ValueError, match='batch_size is 0'):
        encode_notes(model, fresh(model), batch_size=0)
    with pytest.raises(ValueError, match='24 images for 20 rows'):
        fresh(model, TABLE.head(20))
    with pytest.raises(ValueError, match='the split is empty'):
        predict_logits(model, fresh(model), [])
    with pytest.raises(ValueError, match='note_of has 2 rows for 1'):
        predict_logits(model, fresh(model), [0], note_of=[1, 2])
    with pytest.raises(ValueError, match='keep_bytes is -1'):
        prune_token_caches('.', -1)


# Old caches


def test_the_least_recently_used_caches_go_first(tmp_path):
    nets = [make_model(seed=s) for s in range(3)]

    def use(k):
        return encode_images(nets[k], fresh(nets[k]), cache=tmp_path)

    paths = []
    for k in range(3):
        use(k)
        paths += [p for p in token_caches(tmp_path).path if p not in paths]
        os.utime(paths[k] / 'meta.json', (1000 + k, 1000 + k))
    size = token_caches(tmp_path).bytes.iloc[0]
    assert token_caches(tmp_path).path.tolist() == paths
    in_use = use(0)  # the oldest is used again
    before = in_use[[0, 5]].clone()
    assert token_caches(tmp_path).path.tolist() == [paths[1], paths[2], paths[0]]
    assert prune_token_caches(tmp_path, 1.5 * size).path.tolist() == [paths[1], paths[2]]
    assert token_caches(tmp_path).path.tolist() == [paths[0]]
    assert prune_token_caches(tmp_path, 1.5 * size).empty
    if os.name != 'nt':
        assert len(prune_token_caches(tmp_path, 0)) == 1 and torch.equal(in_use[[0, 5]], before)
    use(0)
    assert len(token_caches(tmp_path)) == 1


def test_pruning_leaves_alone_what_is_being_built_and_what_is_not_a_token_cache(model, tmp_path):
    from filelock import FileLock

    encode_images(model, fresh(model), cache=tmp_path)
    path = token_caches(tmp_path).path[0]
    (tmp_path / 'image-notes').mkdir()
    (tmp_path / 'image-notes' / 'mine.txt').write_text('keep')
    with FileLock(tmp_path / f'.{path.name}.lock'):
        assert prune_token_caches(tmp_path, 0).empty and path.is_dir()
    assert len(prune_token_caches(tmp_path, 0)) == 1 and (tmp_path / 'image-notes' / 'mine.txt').exists()
    assert token_caches(tmp_path / 'nowhere').empty


# The training loop's share


def test_mean_auroc_leaves_out_observations_with_too_few_cases():
    y = np.full((8, 14), np.nan)
    y[:, 0] = [1, 1, 0, 0, 0, 0, 0, 0]  # two positives
    assert np.isnan(mean_auroc(y, np.zeros((8, 14))))
    y[:, 1] = [1, 1, 1, 0, 0, 0, np.nan, np.nan]
    assert mean_auroc(y, np.tile(np.arange(8.0)[::-1, None], 14)) == 1


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 20), t=st.integers(1, 20), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_word_dropout_hides_only_what_was_there_and_never_the_first(n, t, share, seed):
    torch.manual_seed(seed)
    mask = (torch.arange(t) < torch.randint(1, t + 1, (n, 1))).long()
    hidden = hide_words(mask, share)
    assert (hidden <= mask).all() and hidden[:, 0].all() and hidden.dtype == mask.dtype
    if share == 1:
        assert hidden.sum() == n
