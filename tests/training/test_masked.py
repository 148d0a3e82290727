"""The note encoder reads notes before it is trained: only the training notes, once, and only where that is meant."""

import numpy as np
import pandas as pd
import pytest
import torch

from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.model.fusion import build_model
from cxr_lib.model.presets import make_config, split_overrides
from cxr_lib.model.saved import load_model, save_model
from cxr_lib.model.text import make_tokenizer
from cxr_lib.notes.wording import clinical_notes
from cxr_lib.simulation.patients import draw_patients
from cxr_lib.training import loop
from cxr_lib.training.dataset import StudyData
from cxr_lib.training.loop import fit
from cxr_lib.training.masked import mask_words, pretrain_notes

N = 60


@pytest.fixture(scope='module')
def table():
    patients = draw_patients(N, seed=7)
    notes = clinical_notes(patients, patients.age, patients.sex, seed=7, missing_rate=0.1)
    table = pd.DataFrame(dict(image=[f'{i}.png' for i in range(N)], patient_id=range(N), note=notes))
    sick = np.arange(N) % 2
    table = table.assign(**{o: sick.astype(float) for o in OBSERVATIONS})
    return table.assign(split=np.where(np.arange(N) % 3, 'train', 'tuning'))


@pytest.fixture(scope='module')
def films():
    return np.random.default_rng(0).integers(0, 256, (N, 32, 32), np.uint8)


def made(table, films, **changes):
    "(model, data) of the same first weights each time"
    config = make_config('tiny', dict(image_size=32) | changes)
    tokenizer = make_tokenizer(config, table.note.dropna())
    torch.manual_seed(0)
    return build_model(config, tokenizer), StudyData(table, '', config, tokenizer, pixels=films)


def settings(**changes):
    return split_overrides('tiny', dict(epochs=2, batch_size=16, note_pretraining=2) | changes)[1]


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return all(torch.equal(v, b[k]) for k, v in a.items())


def test_what_is_hidden_is_words_and_nothing_else(table, films):
    _, data = made(table, films)
    ids, mask = data.notes['input_ids'], data.notes['attention_mask']
    torch.manual_seed(3)
    shown, hidden = mask_words(ids, mask, data.mask_token, data.frame, 0.5)
    assert torch.equal(shown[~hidden], ids[~hidden]) and (shown[hidden] == data.mask_token).all()
    assert not hidden[mask == 0].any() and not torch.isin(ids[hidden], data.frame).any()
    words = mask.bool() & ~torch.isin(ids, data.frame)
    assert 0.45 < hidden.sum() / words.sum() < 0.55
    torch.manual_seed(3)
    assert torch.equal(mask_words(ids, mask, data.mask_token, data.frame, 0.5)[1], hidden)


def test_notes_of_tuning_patients_are_not_read(table, films):
    changed = table.assign(note=table.note.where(table.split == 'train', 'pneumothorax pneumothorax fever'))
    found = []
    for notes in (table, changed):
        config = make_config('tiny', dict(image_size=32))
        tokenizer = make_tokenizer(config, table.note[table.split == 'train'].dropna())
        torch.manual_seed(0)
        model = build_model(config, tokenizer)
        data = StudyData(notes, '', config, tokenizer, pixels=films)
        pretrain_notes(model, data, data.rows('train'), 2)
        found.append(weights(model))
    assert same(*found)


def test_labels_and_images_are_not_read(table, films):
    found = []
    for labels, pixels in ((0.0, films), (1.0, films[::-1].copy())):
        model, data = made(table.assign(**dict.fromkeys(OBSERVATIONS, labels)), pixels)
        pretrain_notes(model, data, data.rows('train'), 2)
        found.append(weights(model))
    assert same(*found)


def called(monkeypatch):
    "How often notes are read before a training"
    seen = []
    monkeypatch.setattr(loop, 'pretrain_notes', lambda *a, **k: seen.append(a[3]) or [])
    return seen


@pytest.mark.parametrize(
    'changes, branches, times',
    [
        ({}, ('fused', 'image', 'note'), 1),
        ({}, ('note',), 1),
        ({}, ('image',), 0),
        ({}, ['image'], 0),
        (dict(freeze_text=True), ('fused', 'image', 'note'), 0),
    ],
)
def test_it_is_read_where_that_is_meant(table, films, monkeypatch, changes, branches, times):
    seen = called(monkeypatch)
    model, data = made(table, films, **changes)
    fit(model, data, data.rows('train'), data.rows('tuning'), settings(epochs=1), branches=branches)
    assert len(seen) == times


def test_a_borrowed_encoder_has_read_enough(table, films, monkeypatch, tmp_path):
    from transformers import BertConfig, BertModel

    seen = called(monkeypatch)
    tokenizer = make_tokenizer(make_config('tiny'), table.note.dropna())
    sizes = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for weights_too, times in ((True, 0), (False, 1)):
        model, data = made(table, films, text_encoder=str(tmp_path), text_weights=weights_too, text_config={})
        fit(model, data, data.rows('train'), data.rows('tuning'), settings(epochs=1))
        assert len(seen) == times


def test_a_training_that_was_killed_reads_once_and_ends_with_the_same_weights(
    table, films, tmp_path, monkeypatch
):
    def trained(checkpoint, **more):
        model, data = made(table, films)
        fit(model, data, data.rows('train'), data.rows('tuning'), settings(), checkpoint=checkpoint, **more)
        return weights(model)

    def kill(log):
        raise KeyboardInterrupt

    whole = trained(tmp_path / 'whole.pt')
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / 'killed.pt', on_epoch=kill)
    seen = called(monkeypatch)
    assert same(whole, trained(tmp_path / 'killed.pt')) and not seen


def test_reading_changes_what_is_learned(table, films):
    found = []
    for epochs in (0, 2):
        model, data = made(table, films)
        fit(model, data, data.rows('train'), data.rows('tuning'), settings(note_pretraining=epochs))
        found.append(weights(model))
    assert not same(*found)


def test_every_word_adds_what_it_says(table, films, tmp_path):
    model, data = made(table, films)
    model.eval()
    torch.nn.init.normal_(model.note_head[-1].weight, std=0.3)
    batch = {k: v[:6] for k, v in data.notes.items()}
    with torch.no_grad():
        note, mask = model.note_tokens(
            model.encode_note(batch['input_ids'], batch['attention_mask']), *list(batch.values())[1:]
        )
        whole = model.note_logits(note, mask)
        head = model.note_head[-1]
        words = model.word_norm(note) @ head.weight.T  # (notes, tokens, observations)
        added = (words * mask[..., None]).sum(1) + head.bias
    assert torch.allclose(whole, added, atol=1e-4)
    save_model(
        model, make_tokenizer(model.config, table.note.dropna()), tmp_path / 'model', dict(simulated=True)
    )
    again = load_model(tmp_path / 'model')[0].eval()
    with torch.no_grad():
        assert torch.allclose(again(**batch)['note'], whole, atol=1e-5)


def test_settings_that_cannot_be_are_named(table, films):
    with pytest.raises(ValueError, match='note_pool is'):
        make_config('tiny', dict(note_pool='max'))
    model, data = made(table, films)
    with pytest.raises(ValueError, match='note_pretraining is -1'):
        fit(model, data, data.rows('train'), data.rows('tuning'), settings(note_pretraining=-1))
