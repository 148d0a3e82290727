"""Encoders from elsewhere: Hugging Face, torchxrayvision, CXR-BERT, open_clip; and what they have seen."""

import importlib.util
import json
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from encoder_folders import KINDS, PROCESSOR, SMALL, TEXTS, VIT, cxr_bert_folder, vision_folder, write_tensors
from PIL import Image

from cxr_lib.data.pixels import read_radiograph
from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.foundations.files import write_json
from cxr_lib.foundations.run import RunFolder
from cxr_lib.model.adapt import add_lora, checkpoint_activations, layer_groups, merge_lora, unfreeze
from cxr_lib.model.classifier import PretrainedClassifier
from cxr_lib.model.encoders import encoder_facts, require_encoders, seen_sentences
from cxr_lib.model.fusion import build_model
from cxr_lib.model.images import ImageEncoder, backbone_defaults
from cxr_lib.model.presets import ModelConfig, make_config, split_overrides
from cxr_lib.model.saved import load_model, save_model
from cxr_lib.model.text import learn_tokenizer, load_text_encoder, load_tokenizer, make_tokenizer, tokenize
from cxr_lib.model.xrv import XRAY_NETS
from cxr_lib.stages.evaluation import about_encoders
from cxr_lib.training.dataset import StudyData
from cxr_lib.training.loop import fit
from cxr_lib.training.memory import plan_memory

#: Tokens of an image of 64 pixels, the class token among them.
TOKENS = dict.fromkeys(KINDS, 65) | dict(siglip_vision_model=64, convnext=4, convnextv2=4, swin=64)
XRV = 'densenet121-res224-all'


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)


def films(n=2, size=64, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, size, size), dtype=torch.uint8, generator=draw)


def encoder(folder, size=64, **more):
    values = dict(image_encoder=f'hf:{folder}', image_size=size, in_chans=3) | more
    return ImageEncoder(ModelConfig(**values)).eval()


def answers(model, tokenizer, size):
    words = tokenize(tokenizer, ['fever ? pneumonia', None])
    with torch.no_grad():
        return model(films(2, size), **words)['fused']


def awake(model):
    "As if it had been trained a little"
    with torch.no_grad():
        torch.nn.init.normal_(model.head[-1].weight, std=0.1)
        torch.nn.init.normal_(model.image_head[-1].weight, std=0.1)
    return model.eval()


# Vision models of Hugging Face


@pytest.mark.parametrize('kind', KINDS)
def test_tokens_are_those_of_transformers_and_registers_are_dropped(kind, tmp_path):
    model = vision_folder(tmp_path, kind)
    ours = encoder(tmp_path)
    x = films()
    scaled = (x[:, None].expand(-1, 3, -1, -1) / 255 - 0.53) / 0.26
    with torch.no_grad():
        found, theirs = ours(x), model(pixel_values=scaled).last_hidden_state
        if theirs.ndim == 4:
            theirs = model.layernorm(theirs.flatten(2).transpose(1, 2))
    dropped = theirs.shape[1] - TOKENS[kind]
    assert dropped == dict(dinov2_with_registers=4, deit=1).get(kind, 0)
    if dropped:
        theirs = torch.cat([theirs[:, :1], theirs[:, 1 + dropped :]], 1)
    assert found.shape == (2, TOKENS[kind], ours.width) == (2, ours.n_tokens, ours.width)
    assert torch.allclose(found, theirs, atol=1e-5)
    assert ours.side**2 + ours.n_prefix == ours.n_tokens
    assert found.std() > 0.01


@pytest.mark.parametrize('kind', KINDS)
def test_another_size_is_read_with_interpolated_positions(kind, tmp_path):
    vision_folder(tmp_path, kind)
    larger = encoder(tmp_path, 96)
    with torch.no_grad():
        assert larger(films(1, 96)).isfinite().all()
    assert larger.side == 1.5 * encoder(tmp_path).side


@pytest.mark.parametrize('kind', KINDS)
def test_a_saved_model_is_loaded_without_the_encoders_folder(kind, tmp_path):
    vision_folder(tmp_path / 'rad-dino', kind)
    config = make_config('tiny', dict(image_encoder=f'hf:{tmp_path / "rad-dino"}', image_size=64, in_chans=3))
    tokenizer = make_tokenizer(config, TEXTS)
    model = awake(build_model(config, tokenizer))
    save_model(model, tokenizer, tmp_path / 'model')
    written = json.loads((tmp_path / 'model' / 'config.json').read_text())
    assert str(tmp_path) not in json.dumps(written)
    assert written['model']['image_encoder'] == 'hf:rad-dino'
    (tmp_path / 'rad-dino').rename(tmp_path / 'elsewhere')
    again, words = load_model(tmp_path / 'model')
    assert torch.allclose(answers(again, words, 64), answers(model, tokenizer, 64), atol=1e-5)
    assert np.allclose(again.image_encoder.mean.flatten(), 0.53)
    save_model(again, words, tmp_path / 'second')  # a loaded model is saved again
    assert load_model(tmp_path / 'second')[0].config.image_encoder == 'hf:rad-dino'


@pytest.mark.parametrize('kind', ['clip', 'siglip'])
def test_of_a_model_of_images_and_texts_the_image_side_is_read(kind, tmp_path):
    from transformers import AutoModel, CLIPConfig, SiglipConfig

    words = SMALL | dict(intermediate_size=48, vocab_size=50, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    config = dict(clip=CLIPConfig, siglip=SiglipConfig)[kind](vision_config=VIT, text_config=words)
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / 'preprocessor_config.json').write_text(json.dumps(PROCESSOR))
    ours = encoder(tmp_path)
    x = (films()[:, None].expand(-1, 3, -1, -1) / 255 - 0.53) / 0.26
    with torch.no_grad():
        assert torch.allclose(ours(films()), model.vision_model(x).last_hidden_state, atol=1e-5)
    assert not any('text' in k for k in ours.state_dict())
    assert ('backbone.model.post_layernorm.weight' in ours.unused) == (kind == 'clip') or kind == 'siglip'


@pytest.mark.parametrize('kind', ['dinov2', 'siglip_vision_model', 'convnext', 'swin'])
def test_weights_that_do_not_fit_are_refused(kind, tmp_path):
    from safetensors.torch import load_file

    vision_folder(tmp_path, kind)
    state = load_file(tmp_path / 'model.safetensors')
    key = next(k for k in state if re.search(r'(layers?|stages)\.1\..*weight', k) and state[k].ndim > 1)
    for wrong, said in (
        ({k: v for k, v in state.items() if k != key}, 'are missing'),
        (state | {key: torch.zeros(2, 2)}, 'have another shape'),
        (state | {'of_another.weight': torch.zeros(3)}, 'are of another model'),
    ):
        write_tensors(wrong, tmp_path / 'model.safetensors')
        with pytest.raises(ValueError, match=said):
            encoder(tmp_path)


def test_what_says_nothing_about_pixels_is_refused(tmp_path):
    vision_folder(tmp_path, processor=None)
    with pytest.raises(ValueError, match='has no preprocessor_config.json'):
        encoder(tmp_path)
    (tmp_path / 'preprocessor_config.json').write_text(
        json.dumps(dict(image_mean=[124] * 3, image_std=[58] * 3))
    )
    with pytest.raises(ValueError, match='mean is'):
        encoder(tmp_path)
    (tmp_path / 'preprocessor_config.json').write_text('{')
    with pytest.raises(ValueError, match='preprocessor_config.json'):
        encoder(tmp_path)


def test_pixels_that_a_processor_leaves_as_they_are_come_out_the_same(tmp_path):
    whole = dict(do_rescale=False, image_mean=[0.53 * 255] * 3, image_std=[0.26 * 255] * 3, size=64)
    vision_folder(tmp_path / 'a')
    vision_folder(tmp_path / 'b', processor=whole)
    a, b = encoder(tmp_path / 'a'), encoder(tmp_path / 'b')
    with torch.no_grad():
        assert torch.allclose(a(films()), b(films()), atol=1e-4)


def test_size_channels_and_own_defaults(tmp_path):
    vision_folder(tmp_path)
    with pytest.raises(ValueError, match='expected a multiple of 8 .its patches., such as 72'):
        encoder(tmp_path, 70)
    with pytest.raises(ValueError, match='override in_chans=3'):
        encoder(tmp_path, in_chans=1)
    assert backbone_defaults(f'hf:{tmp_path}')['image_size'] == 64
    assert (
        make_config('tiny', dict(image_encoder=f'hf:{tmp_path}', image_size=0, in_chans=3)).image_size == 64
    )


def test_code_beside_a_vision_model_is_not_run(tmp_path):
    vision_folder(tmp_path)
    marker = tmp_path / 'executed'
    for file in ('modeling_own.py', 'configuration_own.py', 'image_processing_own.py'):
        (tmp_path / file).write_text(f'open({str(marker)!r}, "w").close()\n')
    values = json.loads((tmp_path / 'config.json').read_text())
    own = dict(AutoConfig='configuration_own.Own', AutoModel='modeling_own.Own')
    (tmp_path / 'config.json').write_text(json.dumps(values | dict(auto_map=own)))
    processor = PROCESSOR | dict(auto_map=dict(AutoImageProcessor='image_processing_own.Own'))
    (tmp_path / 'preprocessor_config.json').write_text(json.dumps(processor))
    encoder(tmp_path)  # of a known kind: its own code is passed over
    (tmp_path / 'config.json').write_text(json.dumps(values | dict(auto_map=own, model_type='own')))
    with pytest.raises(ValueError, match='Python code'):
        encoder(tmp_path)
    assert not marker.exists()


def test_a_configuration_of_terabytes_is_refused_before_anything_is_made(tmp_path):
    vision_folder(tmp_path)
    values = json.loads((tmp_path / 'config.json').read_text())
    (tmp_path / 'config.json').write_text(json.dumps(values | dict(hidden_size=1 << 20)))
    with pytest.raises(ValueError, match='the image encoder in .* config.json asks for'):
        encoder(tmp_path)
    with pytest.raises(ValueError, match='asks for an image encoder of'):
        encoder(tmp_path, image_weights='random')


def test_a_text_encoder_is_no_image_encoder(tmp_path):
    cxr_bert_folder(tmp_path)
    values = json.loads((tmp_path / 'config.json').read_text()) | dict(model_type='bert')
    (tmp_path / 'config.json').write_text(json.dumps(values))
    (tmp_path / 'preprocessor_config.json').write_text(json.dumps(PROCESSOR))
    with pytest.raises(ValueError, match='does not read images'):
        encoder(tmp_path)


def test_weights_may_lie_in_a_folder_while_the_name_stays(tmp_path):
    vision_folder(tmp_path)
    named = encoder(tmp_path, image_encoder='hf:microsoft/rad-dino', image_weights=str(tmp_path))
    assert named.name == 'hf:microsoft/rad-dino'
    with torch.no_grad():
        assert torch.equal(named(films()), encoder(tmp_path)(films()))


def test_tokens_averaged_on_a_grid_keep_the_class_token(tmp_path):
    vision_folder(tmp_path)
    fine, coarse = encoder(tmp_path), encoder(tmp_path, image_grid=4)
    assert (fine.n_tokens, coarse.n_tokens, coarse.side) == (65, 17, 4)
    with torch.no_grad():
        a, b = fine(films()), coarse(films())
    assert torch.equal(a[:, 0], b[:, 0])
    assert torch.allclose(a[:, 1:].view(2, 4, 2, 4, 2, -1).mean((2, 4)).flatten(1, 2), b[:, 1:], atol=1e-6)
    assert encoder(tmp_path, image_grid=20).n_tokens == 65


@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_can_be_unfrozen_checkpointed_and_adapted(kind, tmp_path):
    vision_folder(tmp_path, kind)
    blocks = len(KINDS[kind].get('depths', [0] * 2))
    ours = encoder(tmp_path).requires_grad_(False)
    groups = layer_groups(ours)
    used = {k for k, _ in ours.named_parameters()} - ours.unused
    assert len(groups) == blocks + 1
    assert sorted(k for g in groups for k in g) == sorted(used)
    unfreeze(ours, 1)
    ours(films()).pow(2).mean().backward()
    for k, p in ours.named_parameters():
        assert p.requires_grad == (k in groups[-1])
        assert (p.grad is not None) == p.requires_grad, k
    if kind.startswith('convnext'):
        with pytest.raises(ValueError, match='gradient checkpointing'):
            checkpoint_activations(ours)
        with pytest.raises(ValueError, match='no attention projections'):
            add_lora(ours.requires_grad_(False), 2)
        return
    whole = encoder(tmp_path).train()
    whole(films()).pow(2).mean().backward()
    gradients = {k: p.grad.clone() for k, p in whole.named_parameters() if p.grad is not None}
    checkpoint_activations(whole)
    whole.zero_grad()
    whole(films()).pow(2).mean().backward()
    assert all(torch.allclose(whole.get_parameter(k).grad, g, atol=1e-6) for k, g in gradients.items())
    adapted = encoder(tmp_path).requires_grad_(False)
    before = adapted(films())
    add_lora(adapted, 2)
    assert torch.allclose(adapted(films()), before, atol=1e-6)
    with torch.no_grad():
        for k, p in adapted.named_parameters():
            if 'lora_B' in k:
                p.normal_(std=0.2)
    learned = adapted(films())
    assert not torch.allclose(learned, before, atol=1e-3)
    assert torch.allclose(merge_lora(adapted)(films()), learned, atol=1e-5)


def test_the_memory_of_a_training_is_planned_without_weights(tmp_path):
    vision_folder(tmp_path)
    named = dict(image_encoder=f'hf:{tmp_path}', image_size=64, in_chans=3, image_weights='random')
    for more in ({}, dict(freeze_image=True), dict(image_grid=4)):
        plan = plan_memory(make_config('tiny', named | more), 300, 8)
        assert plan['weights'] > 0 and plan['activations'] > 0
    net = dict(image_encoder=f'xrv:{XRV}', image_size=64, image_weights='random')
    assert plan_memory(make_config('tiny', net), 300, 8)['weights'] > 25e6


# BiomedCLIP: a timm trunk in the format of open_clip


def open_clip_folder(folder, suffix='safetensors'):
    import timm

    folder.mkdir(exist_ok=True)
    torch.manual_seed(3)
    trunk = timm.create_model('test_vit', num_classes=0, global_pool='').eval()
    state = {f'visual.trunk.{k}': v for k, v in trunk.state_dict().items()}
    state |= {
        'visual.head.proj.weight': torch.zeros(8, 64),
        'text.transformer.x': torch.zeros(2),
        'logit_scale': torch.ones(()),
    }
    if suffix == 'safetensors':
        write_tensors(state, folder / 'open_clip_model.safetensors')
    else:
        torch.save(state, folder / 'open_clip_pytorch_model.bin')
    vision = dict(timm_model_name='test_vit', timm_model_pretrained=False, timm_pool='', image_size=160)
    pixels = dict(mean=[0.48, 0.46, 0.41], std=[0.27, 0.26, 0.28])
    config = dict(model_cfg=dict(embed_dim=8, vision_cfg=vision), preprocess_cfg=pixels)
    (folder / 'open_clip_config.json').write_text(json.dumps(config))
    return trunk


@pytest.mark.parametrize('suffix', ['safetensors', 'bin'])
def test_the_trunk_of_an_open_clip_model_is_read(suffix, tmp_path):
    trunk = open_clip_folder(tmp_path / 'biomedclip', suffix)
    ours = encoder(tmp_path / 'biomedclip', 160)
    x = films(2, 160)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.48, 0.46, 0.41], [0.27, 0.26, 0.28]))
    with torch.no_grad():
        theirs = trunk.forward_features((x[:, None].expand(-1, 3, -1, -1) / 255 - mean) / std)
        assert torch.allclose(ours(x), theirs, atol=1e-5)
        assert encoder(tmp_path / 'biomedclip', 96)(films(1, 96)).isfinite().all()
    named = dict(image_encoder=f'hf:{tmp_path / "biomedclip"}', image_size=160, in_chans=3)
    config = make_config('tiny', named)
    tokenizer = make_tokenizer(config, TEXTS)
    model = awake(build_model(config, tokenizer))
    save_model(model, tokenizer, tmp_path / 'model')
    for path in (tmp_path / 'biomedclip').iterdir():
        path.unlink()
    again, words = load_model(tmp_path / 'model')
    assert torch.allclose(answers(again, words, 160), answers(model, tokenizer, 160), atol=1e-5)


def test_an_open_clip_model_that_does_not_fit_is_refused(tmp_path):
    from safetensors.torch import load_file

    open_clip_folder(tmp_path)
    file = tmp_path / 'open_clip_model.safetensors'
    state = load_file(file)
    write_tensors({k: v for k, v in state.items() if 'blocks.3.attn.qkv.weight' not in k}, file)
    with pytest.raises(ValueError, match='1 keys differ, first .blocks.3.attn.qkv.weight'):
        encoder(tmp_path, 160)
    config = json.loads((tmp_path / 'open_clip_config.json').read_text())
    config['model_cfg']['vision_cfg'] = dict(layers=12, width=768)
    (tmp_path / 'open_clip_config.json').write_text(json.dumps(config))
    with pytest.raises(ValueError, match='its image side is no timm model'):
        encoder(tmp_path, 160)


# CXR-BERT, BioViL-T's text side


@pytest.mark.parametrize('kind', ['cxr-bert', None])  # BioViL-T names no kind
def test_a_cxr_bert_is_read_as_a_bert_and_its_code_is_not_run(kind, tmp_path, monkeypatch):
    monkeypatch.setattr('builtins.input', lambda *_: pytest.fail('somebody was asked whether to run code'))
    bert = cxr_bert_folder(tmp_path / 'CXR-BERT', kind)
    config = make_config('tiny', dict(text_encoder=str(tmp_path / 'CXR-BERT')))
    tokenizer, text = make_tokenizer(config, []), load_text_encoder(tmp_path / 'CXR-BERT').eval()
    assert tokenizer.tokenize('Fever') == learn_tokenizer(TEXTS, 300).tokenize('fever')
    words = tokenize(tokenizer, TEXTS)
    inputs = {k: words[k] for k in ('input_ids', 'attention_mask')}
    with torch.no_grad():
        theirs = bert.bert(**inputs).last_hidden_state
        assert torch.allclose(text(**inputs).last_hidden_state, theirs, atol=1e-6)
    model = awake(build_model(config, tokenizer))
    save_model(model, tokenizer, tmp_path / 'model')
    assert not (tmp_path / 'CXR-BERT' / 'executed').exists()
    (tmp_path / 'CXR-BERT').rename(tmp_path / 'elsewhere')
    again, words = load_model(tmp_path / 'model')
    assert again.text_encoder.config.model_type == 'bert'
    assert torch.allclose(answers(again, words, 64), answers(model, tokenizer, 64), atol=1e-5)


def test_a_cxr_bert_that_does_not_fit_is_refused(tmp_path):
    from safetensors.torch import load_file

    cxr_bert_folder(tmp_path)
    state = load_file(tmp_path / 'model.safetensors')
    write_tensors(
        {k: v for k, v in state.items() if 'layer.1.attention.self.query' not in k},
        tmp_path / 'model.safetensors',
    )
    with pytest.raises(ValueError, match='are missing, first .encoder.layer.1.attention.self.query'):
        load_text_encoder(tmp_path)
    (tmp_path / 'vocab.txt').unlink()
    with pytest.raises(ValueError, match='Python code that comes with it'):
        load_tokenizer(tmp_path)
    assert not (tmp_path / 'executed').exists()


# torchxrayvision

needs_xrv = pytest.mark.skipif(
    importlib.util.find_spec('torchxrayvision') is None,
    reason='torchxrayvision, whose answers are compared, is not installed',
)
#: What torchxrayvision itself makes of a film: a process of its own, since importing it silences all warnings.
THEIRS = '''
import sys
from cxr_lib.foundations import compat
import numpy as np, skimage.io, torch, torchxrayvision as xrv

kind, folder, film = sys.argv[1:]
torch.manual_seed(0)
def shake(model):
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.normal_(std=0.1)
            m.running_var.uniform_(0.5, 1.5)
            m.weight.data.uniform_(0.8, 1.2)
            m.bias.data.normal_(std=0.1)
    return model.eval()
if kind == 'densenet':
    model = shake(xrv.models.DenseNet())
    torch.save(model, f'{folder}/whole.pt')
    torch.save(model, f'{folder}/old.pt', _use_new_zipfile_serialization=False)
    features, classifier = model.features2, model.classifier
else:
    import torchvision
    own = torchvision.models.resnet50(num_classes=18)
    own.conv1 = torch.nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    torch.save(shake(own).state_dict(), f'{folder}/pc-nih-rsna-siim-vin-resnet50-test512-e400-state.pt')
    model = xrv.models.get_model('resnet50-res512-all', cache_dir=folder)
    model.op_threshs = None
    features, classifier = model.features, model.model.fc
image = xrv.datasets.normalize(skimage.io.imread(film), 255)[None]
image = torch.from_numpy(xrv.datasets.XRayCenterCrop()(image))[None]
with torch.no_grad():
    np.savez(f'{folder}/theirs.npz', pixels=image.numpy(), features=features(image).numpy(),
             out=model(image).numpy(), weight=classifier.weight.numpy(), bias=classifier.bias.numpy())
'''


@needs_xrv
@pytest.mark.parametrize('kind, name, size', [('densenet', XRV, 224), ('resnet', 'resnet50-res512-all', 512)])
def test_outputs_are_those_of_torchxrayvision(kind, name, size, tmp_path):
    "On the same film: read, cropped to its middle, scaled, encoded; then their own last layer"
    film = tmp_path / 'film.png'
    rows, columns = np.mgrid[0:size, 0 : size + 77]
    noise = np.random.default_rng(0).integers(0, 60, rows.shape)
    Image.fromarray(((rows + 2 * columns) % 190 + noise).astype(np.uint8)).save(film)
    done = subprocess.run(
        [sys.executable, '-c', THEIRS, kind, str(tmp_path), str(film)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = {k: torch.from_numpy(v) for k, v in np.load(tmp_path / 'theirs.npz').items()}
    files = ('whole.pt', 'old.pt') if kind == 'densenet' else (XRAY_NETS[name].file,)
    for file in files:
        config = ModelConfig(image_encoder=f'xrv:{name}', image_weights=str(tmp_path / file), image_size=size)
        ours = ImageEncoder(config).eval()
        pixels = torch.from_numpy(read_radiograph(film, size, config.fit))[None]
        with torch.no_grad():
            assert torch.allclose(ours.normalise(pixels), theirs['pixels'], atol=1e-3)  # of 1,024
            pooled = ours(pixels).mean(1)
        assert torch.allclose(pooled, theirs['features'], atol=1e-5)
        out = pooled @ theirs['weight'].T + theirs['bias']
        assert torch.allclose(out, theirs['out'], atol=1e-5)
        assert theirs['out'].std() > 0.05


def xray_state(seed=0):
    import timm

    torch.manual_seed(seed)
    return timm.create_model('densenet121', in_chans=1, num_classes=18).state_dict()


def test_a_network_of_torchxrayvision_in_a_model(tmp_path):
    write_tensors(xray_state(), tmp_path / 'model.safetensors')
    named = dict(image_encoder=f'xrv:{XRV}', image_weights=str(tmp_path), image_size=64)
    config = make_config('tiny', named)
    assert config.fit == 'crop'
    tokenizer = make_tokenizer(config, TEXTS)
    model = awake(build_model(config, tokenizer))
    save_model(model, tokenizer, tmp_path / 'saved')
    (tmp_path / 'model.safetensors').unlink()
    again, words = load_model(tmp_path / 'saved')
    assert torch.allclose(answers(again, words, 64), answers(model, tokenizer, 64), atol=1e-5)
    facts = json.loads((tmp_path / 'saved' / 'config.json').read_text())['preprocessing']
    assert facts['fit'] == 'crop' and 'middle' in facts['film']
    frozen = ImageEncoder(config).requires_grad_(False) if (tmp_path / 'model.safetensors').exists() else None
    assert frozen is None
    ours = again.image_encoder.requires_grad_(False)
    unfreeze(ours, 1)
    assert any(p.requires_grad for p in ours.parameters())
    checkpoint_activations(ours)


def test_a_film_is_cropped_wherever_a_model_reads_it(tmp_path):
    from cxr_lib.prediction.load import load

    write_tensors(xray_state(), tmp_path / 'model.safetensors')
    named = dict(image_encoder=f'xrv:{XRV}', image_weights=str(tmp_path), image_size=64)
    config = make_config('tiny', named)
    tokenizer = make_tokenizer(config, TEXTS)
    save_model(awake(build_model(config, tokenizer)), tokenizer, tmp_path / 'saved')
    film = tmp_path / 'wide.png'
    Image.fromarray(np.random.default_rng(0).integers(1, 255, (80, 160), dtype=np.uint8)).save(film)
    cropped = read_radiograph(film, 64, 'crop')
    predictor = load(tmp_path / 'saved')
    assert np.array_equal(predictor.encode(film).pixels, cropped)
    assert np.array_equal(predictor.encode(np.array(Image.open(film))).pixels, cropped)
    classifier = PretrainedClassifier.from_pretrained(tmp_path / 'saved')
    a, b = (classifier.predict(x, ['fever']) for x in ([str(film)], cropped[None]))
    columns = [c for c in a if '/' in c]
    assert np.allclose(a[columns], b[columns])
    table = pd.DataFrame(dict(image=['wide.png'], patient_id=['a'], note=['fever'], split=['train']))
    table = table.assign(**dict.fromkeys(OBSERVATIONS, 1.0))
    assert np.array_equal(StudyData(table, tmp_path, config, tokenizer).pixels[0], cropped)


@pytest.mark.parametrize('kind', ['other', 'missing', 'shape'])
def test_weights_that_are_no_network_of_torchxrayvision_are_refused(kind, tmp_path):
    state = xray_state()
    key = 'features.denseblock2.denselayer3.conv1.weight'
    if kind == 'other':
        state['surprise.weight'] = torch.zeros(3)
    elif kind == 'missing':
        state.pop(key)
    else:
        state[key] = torch.zeros(3, 3)
    write_tensors(state, tmp_path / 'model.safetensors')
    with pytest.raises(ValueError, match='does not fit xrv:densenet121-res224-all: 1 keys differ'):
        ImageEncoder(ModelConfig(image_encoder=f'xrv:{XRV}', image_weights=str(tmp_path), image_size=64))


def test_what_must_be_fetched_of_torchxrayvision_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setattr('cxr_lib.model.xrv.download', lambda *_: (_ for _ in ()).throw(OSError('no network')))
    named = dict(image_encoder=f'xrv:{XRV}', image_size=64)
    with pytest.raises(ValueError) as e:
        ImageEncoder(ModelConfig(**named))
    for said in (
        'no network',
        XRAY_NETS[XRV].file,
        '.torchxrayvision',
        'https://github.com/mlmed',
        'image_weights=FILE',
    ):
        assert said in str(e.value)
    with pytest.raises(ValueError, match='override in_chans=1'):
        ImageEncoder(ModelConfig(**named, in_chans=3))
    kept = tmp_path / '.torchxrayvision' / 'models_data' / XRAY_NETS[XRV].file
    kept.parent.mkdir(parents=True, exist_ok=True)
    torch.save(xray_state(), kept)
    assert ImageEncoder(ModelConfig(**named)).n_tokens == 4


# Preset `chest`


@pytest.fixture
def chest(tmp_path):
    "The two encoders of the preset, small and random, in folders of their names"
    vision_folder(tmp_path / 'rad-dino')
    cxr_bert_folder(tmp_path / 'BiomedVLP-CXR-BERT-specialized')
    return dict(
        image_weights=str(tmp_path / 'rad-dino'),
        text_encoder=str(tmp_path / 'BiomedVLP-CXR-BERT-specialized'),
        **dict(image_size=64, image_grid=4, fusion_dim=32, fusion_heads=2, head_hidden=16),
    )


def test_without_a_network_all_that_must_be_fetched_is_said_at_once():
    with pytest.raises(ValueError) as e:
        require_encoders(make_config('chest'))
    said = str(e.value)
    for words in (
        '2 encoders are neither on this machine nor reachable',
        'hf download microsoft/rad-dino --local-dir rad-dino',
        'hf download microsoft/BiomedVLP-CXR-BERT-specialized --local-dir BiomedVLP-CXR-BERT-specialized',
        'image_weights=FOLDER/rad-dino text_encoder=FOLDER/BiomedVLP-CXR-BERT-specialized',
        '346 MB',
    ):
        assert words in said
    assert '\n' not in said


def test_the_preset_trains_on_tokens_that_are_computed_once(chest, tmp_path, monkeypatch):
    config = make_config('chest', chest)
    require_encoders(config)
    n = 24
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            'image': [f'{i}.png' for i in range(n)],
            'patient_id': [f'p{i}' for i in range(n)],
            'note': ['cough and fever', 'fall from ladder', None] * (n // 3),
            'split': ['train', 'train', 'tuning'] * (n // 3),
            **{o: rng.choice([0.0, 1.0], n) for o in OBSERVATIONS},
        }
    )
    tokenizer = make_tokenizer(config, table.note)
    model = build_model(config, tokenizer)
    assert model.image_is_frozen and model.text_is_frozen
    before = {k: v.clone() for k, v in model.state_dict().items()}
    pixels = rng.integers(0, 256, (n, 64, 64), dtype=np.uint8)
    data = StudyData(table, '', config, tokenizer, pixels=pixels)
    data.precompute(model, 'cpu', cache=tmp_path / 'tokens')
    assert data.image_tokens.even == 17 and data.image_tokens.width == 32
    monkeypatch.setattr(ImageEncoder, 'forward', lambda *_: pytest.fail('an image was encoded again'))
    training = split_overrides('chest', chest)[1] | dict(epochs=2, batch_size=8, patience=0)
    log = fit(model, data, data.rows('train'), data.rows('tuning'), training, seed=0)
    assert len(log) >= 2
    monkeypatch.undo()
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and not any(k.startswith(('image_encoder', 'text_encoder')) for k in changed)
    save_model(model, tokenizer, tmp_path / 'model')
    for folder in ('rad-dino', 'BiomedVLP-CXR-BERT-specialized'):
        (tmp_path / folder).rename(tmp_path / f'{folder}-moved')
    again, words = load_model(tmp_path / 'model')
    assert torch.allclose(answers(again, words, 64), answers(model.eval(), tokenizer, 64), atol=1e-5)
    assert again.config.image_encoder == 'hf:microsoft/rad-dino'


# What they have seen


def run_on(folder, dataset, root='data', **model):
    run = RunFolder(folder)
    write_json(run / 'source.json', dict(dataset=dataset, root=root))
    write_json(run / 'architecture.json', dict(model=dict(model)))
    return run


def test_a_run_on_data_that_its_encoder_was_trained_on_says_so(tmp_path):
    chest = make_config('chest')
    encoders = dict(image_encoder=chest.image_encoder, text_encoder=chest.text_encoder)
    [said] = about_encoders(run_on(tmp_path / 'a', 'nih', **encoders))
    assert said.startswith('THE IMAGE ENCODER HAS SEEN THESE DATA: microsoft/rad-dino was trained on')
    assert len(about_encoders(run_on(tmp_path / 'b', 'mimic', **encoders))) == 2
    assert about_encoders(run_on(tmp_path / 'c', 'simulated', **encoders)) == []
    assert about_encoders(run_on(tmp_path / 'd', 'covid', **encoders)) == []
    assert 'If these data are among them' in about_encoders(run_on(tmp_path / 'e', 'csv', **encoders))[0]
    local = dict(encoders, image_weights='/some/where/rad-dino')
    assert about_encoders(run_on(tmp_path / 'f', 'nih', **local)) == [said]
    assert about_encoders(RunFolder(tmp_path / 'g')) == []


@pytest.mark.parametrize('name', [n for n in XRAY_NETS if re.search('-(all|nih|rsna)$', n)])
def test_networks_of_torchxrayvision_that_saw_nih_are_not_tested_on_it(name):
    assert len(seen_sentences(dict(image_encoder=f'xrv:{name}'), 'nih')) == 1
    assert encoder_facts(f'xrv:{name}')['licence'] == 'Apache-2.0'


def test_every_encoder_that_the_library_names_is_in_the_table():
    assert all(encoder_facts(f'xrv:{name}') for name in XRAY_NETS)
    for preset in ('offline', 'base', 'chest'):
        config = make_config(preset)
        assert encoder_facts(config.image_encoder, config.image_weights)
        assert encoder_facts(config.text_encoder)
