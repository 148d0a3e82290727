"""Fast inference: the same answers for any batch, what is rejected, and where bfloat16 is missing or disagrees."""

import importlib.util
import os
import shutil
import subprocess
import sys
import threading

import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from test_model import PARTS, TEXTS, VOCABULARY, build
from torch import nn

if importlib.util.find_spec('openvino') is None:
    pytest.skip(
        'OpenVINO is not installed (pip install "cxr_lib[fast]")', allow_module_level=True
    )  # not imported here: its statistics
from cxr_lib.model import fast as inference
from cxr_lib.model.weights import CheckpointError
from cxr_lib.model.classifier import PretrainedClassifier
from cxr_lib.model.saved import load_model, save_model
from cxr_lib.foundations.files import file_facts, read_json, write_json
from cxr_lib.model.text import tokenize
from cxr_lib.model.fast import AGREEMENT, choose_routes, fast_model, largest_difference

BF16 = 'BF16' in inference._capabilities()


def answer(model, films, notes):
    with torch.no_grad():
        return model(films, **tokenize(TOKENIZER[0], notes))


TOKENIZER = []


@pytest.fixture(scope='module')
def trained():
    "A vision transformer and a BERT, trained for a few steps, so that logits spread as a trained model's do"
    model, tokenizer = build(PARTS)
    TOKENIZER[:] = [tokenizer]
    torch.manual_seed(0)
    films, truth = torch.randint(0, 256, (12, 64, 64), dtype=torch.uint8), torch.randint(2, (12, 14)).float()
    words, optimizer = (
        tokenize(tokenizer, (TEXTS + [None]) * 3),
        torch.optim.AdamW(model.parameters(), lr=3e-3),
    )
    for _ in range(15):
        optimizer.zero_grad()
        sum(
            nn.functional.binary_cross_entropy_with_logits(v, truth) for v in model(films, **words).values()
        ).backward()
        optimizer.step()
    return model.eval(), tokenizer, films


@pytest.fixture(scope='module')
def saved(trained, tmp_path_factory):
    "Its folder, with an export"
    folder = tmp_path_factory.mktemp('saved') / 'model'
    save_model(*trained[:2], folder)
    fast_model(folder, 'fp32')
    return folder


@pytest.fixture(scope='module')
def exact(trained):
    return fast_model(trained[0], 'fp32')


# Answers


@settings(max_examples=25, deadline=None)
@given(
    notes=st.lists(st.sampled_from([None, '', 'fever', *TEXTS, ' '.join(TEXTS * 6)]), min_size=1, max_size=7)
)
def test_any_number_of_films_and_any_length_of_note_is_answered_as_the_model_does(trained, exact, notes):
    films = trained[2][: len(notes)]
    own, fast = answer(trained[0], films, notes), answer(exact, films, notes)
    assert set(fast) == set(own)
    assert all(fast[k].shape == own[k].shape and fast[k].dtype == torch.float32 for k in own)
    assert largest_difference(fast, own) < 1e-4


@pytest.mark.skipif(not BF16, reason='this processor has no bfloat16 instructions')
def test_bfloat16_agrees_where_logits_spread(trained):
    model, _, films = trained
    fast = fast_model(model)
    own = answer(model, films, (TEXTS + [None]) * 3)
    assert fast.route == 'bf16'
    assert own['fused'].std() > 1.5
    # not fp32 by another name
    assert 1e-5 < largest_difference(answer(fast, films, (TEXTS + [None]) * 3), own) <= AGREEMENT
    assert fast.agreement <= AGREEMENT


@pytest.mark.parametrize(
    'changes',
    [
        dict(image_encoder='test_convnext', in_chans=3, image_size=64, fusion_layers=2),
        dict(
            image_size=64,
            pool='mean',
            text_config=dict(model_type='distilbert', dim=32, n_layers=1, n_heads=2, hidden_dim=48),
        ),
    ],
)
def test_other_architectures(changes):
    model, tokenizer = build(changes)
    fast, films = fast_model(model, 'fp32'), torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    for notes in ([*TEXTS[:2], None], ['one']):
        with torch.no_grad():
            own = model(films[: len(notes)], **tokenize(tokenizer, notes))
        assert largest_difference(fast(films[: len(notes)], **tokenize(tokenizer, notes)), own) < 1e-4


def test_pixels_in_every_form_the_model_takes(trained, exact):
    films, notes = trained[2][:3], TEXTS
    own = answer(trained[0], films, notes)
    for form in (films, films.float(), films[:, None], films.double()[:, None]):
        assert largest_difference(answer(exact, form, notes), own) < 1e-4


def test_a_note_alone(trained, exact):
    own, fast = answer(trained[0], None, TEXTS), answer(exact, None, TEXTS)
    assert list(fast) == list(own) == ['note']
    assert largest_difference(fast, own) < 1e-4


def test_it_takes_the_models_place_in_a_classifier(trained, saved):
    classifier = PretrainedClassifier.from_pretrained(saved)
    before = classifier.predict(trained[2][:4].numpy(), [*TEXTS, None])
    classifier.model = fast_model(saved, 'fp32')
    after = classifier.predict(trained[2][:4].numpy(), [*TEXTS, None])
    numbers = [c for c in before if '/' in c]
    assert list(after) == list(before)
    assert (before[numbers] - after[numbers]).abs().to_numpy().max() < 1e-4
    assert (before.has_note == after.has_note).all()


def test_many_threads_get_their_own_answers(trained, exact):
    films, found = trained[2], {}

    def ask(i):
        found[i] = answer(exact, films[i : i + 1], [TEXTS[i % 3]])

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(12)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(
        largest_difference(found[i], answer(trained[0], films[i : i + 1], [TEXTS[i % 3]])) < 1e-4
        for i in range(12)
    )


def test_an_earlier_answer_is_not_overwritten_by_a_later_one(trained, exact):
    first = answer(exact, trained[2][:1], TEXTS[:1])
    kept = {k: v.clone() for k, v in first.items()}
    answer(exact, trained[2][1:2], TEXTS[1:2])
    assert all(torch.equal(first[k], kept[k]) for k in kept)


def test_the_model_is_left_as_it_was():
    model, _ = build(PARTS)
    state, grads = (
        {k: v.clone() for k, v in model.state_dict().items()},
        [p.requires_grad for p in model.parameters()],
    )
    fast_model(model.train(), 'fp32')
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == grads
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


# Routes


@pytest.mark.parametrize(
    'route, found, expected',
    [
        ('auto', {'FP32', 'BF16'}, ('bf16', 'fp32')),
        ('auto', {'FP32'}, ('fp32',)),
        ('fp32', {'FP32', 'BF16'}, ('fp32',)),
        ('bf16', {'FP32', 'BF16'}, ('bf16',)),
    ],
)
def test_the_route_follows_the_processor(monkeypatch, route, found, expected):
    monkeypatch.setattr(inference, '_capabilities', lambda: found)
    assert choose_routes(route) == expected


def test_without_bfloat16_instructions_the_answers_are_exact(monkeypatch, trained, saved):
    monkeypatch.setattr(inference, '_capabilities', lambda: {'FP32', 'INT8'})
    fast = fast_model(saved)
    assert fast.route == 'fp32'
    assert fast.agreement < 1e-4
    with pytest.raises(ValueError, match='no bfloat16 instructions'):
        fast_model(saved, 'bf16')


@pytest.mark.skipif(not BF16, reason='this processor has no bfloat16 instructions')
def test_where_bfloat16_does_not_agree_fp32_is_used_and_said(trained):
    model, _ = build(PARTS)
    model.load_state_dict(trained[0].state_dict())
    films = inference._examples(model)['pixels']
    with torch.no_grad():
        model.image_head[-1].weight.mul_(60)  # the smallest change of a token now changes the answer,
        middle = model.image_logits(model.encode_image(films)).mean(0)
        model.image_head[-1].bias.sub_(middle)  # which is far from certain
    with pytest.warns(UserWarning, match='bf16 route differs .* fp32 is used instead'):
        assert fast_model(model).route == 'fp32'
    with pytest.raises(CheckpointError, match='bf16 route differs .* Otherwise use route=fp32'):
        fast_model(model, 'bf16')


def test_an_unknown_route_and_a_missing_library_say_the_remedy(monkeypatch, saved):
    with pytest.raises(ValueError, match='expected auto, bf16 or fp32'):
        fast_model(saved, 'int8')
    monkeypatch.setitem(sys.modules, 'openvino', None)
    with pytest.raises(ImportError, match=r'pip install "cxr_lib\[fast\]"'):
        fast_model(saved)


# What is refused


@pytest.mark.parametrize(
    'changes, said',
    [
        (dict(image_tokens=torch.zeros(1, 4, 8)), 'does not know image_tokens'),
        (dict(return_attention=True), 'does not know return_attention'),
        (dict(input_ids=None), 'are needed, as tokenize gives them'),
        (dict(pixels=torch.zeros(2, 64, 64)), '2 images and 1 notes'),
        (dict(pixels=torch.zeros(1, 32, 32)), '32 x 32 pixels'),
        (dict(pixels=torch.rand(1, 64, 64)), 'already scaled'),
        (dict(pixels=torch.full((1, 64, 64), -3.0)), 'expected 0 to 255'),
        (dict(pixels=torch.full((1, 64, 64), float('nan'))), 'expected 0 to 255'),
    ],
)
def test_wrong_inputs(trained, exact, changes, said):
    inputs = dict(pixels=trained[2][:1], **tokenize(trained[1], TEXTS[:1])) | changes
    with pytest.raises(ValueError, match=said):
        exact(**inputs)


def spoil(name, change):
    def of(folder):
        (folder / 'fast' / name).write_bytes(change((folder / 'fast' / name).read_bytes()))

    return of


def edit(**values):
    def of(folder):
        write_json(folder / 'fast' / 'about.json', read_json(folder / 'fast' / 'about.json') | values)

    return of


def other_weights(folder):
    model, tokenizer = load_model(folder)
    with torch.no_grad():
        model.head[-1].bias.add_(1.0)
    fast = folder.parent / 'kept'
    (folder / 'fast').rename(fast)
    save_model(model, tokenizer, folder)
    fast.rename(folder / 'fast')


@pytest.mark.parametrize(
    'damage, said',
    [
        (spoil('graph.bin', lambda b: b[:-5]), 'graph.bin is missing, damaged'),
        (
            spoil('graph.bin', lambda b: b[:99] + bytes([b[99] ^ 1]) + b[100:]),
            'graph.bin is missing, damaged',
        ),
        (spoil('graph.xml', lambda b: b''), 'graph.xml is missing, damaged'),
        (spoil('examples.safetensors', lambda b: b + b'x'), 'examples.safetensors is missing, damaged'),
        (spoil('about.json', lambda b: b[:40]), 'cannot be read'),
        (lambda f: (f / 'fast' / 'about.json').unlink(), 'cannot be read'),
        (lambda f: (f / 'fast' / 'graph.bin').unlink(), 'graph.bin is missing'),
        (edit(format='cxr_lib.fast/0'), 'not of the format'),
        (edit(files=None), 'not of the format'),
        (edit(made_from='0' * 16), 'made from other weights'),
        (other_weights, 'made from other weights'),
        (spoil('about.json', lambda b: b'[]'), 'not of the format'),
    ],
)
def test_a_stale_or_damaged_export_is_refused_and_deleting_it_helps(saved, tmp_path, damage, said):
    folder = shutil.copytree(saved, tmp_path / 'model')
    damage(folder)
    with pytest.raises(CheckpointError, match=said) as refused:
        fast_model(folder, 'fp32')
    assert f'Delete {folder / "fast"}' in str(refused.value)
    if damage is other_weights:
        shutil.rmtree(folder / 'fast')
        assert fast_model(folder, 'fp32').agreement < 1e-4
        assert (folder / 'fast').is_dir()


def test_an_export_whose_answers_are_others_is_refused(saved, tmp_path):
    "All checksums right, and still not the model: what another processor or another release might do"
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(saved, tmp_path / 'model')
    path = folder / 'fast' / 'examples.safetensors'
    tensors = load_file(path)
    save_file({k: v + 0.5 if k == 'logits.note' else v for k, v in tensors.items()}, path)
    about = read_json(folder / 'fast' / 'about.json')
    about['files'][path.name] = file_facts(path)
    write_json(folder / 'fast' / 'about.json', about)
    with pytest.raises(CheckpointError, match='fp32 route differs from the trained model'):
        fast_model(folder, 'fp32')


def test_an_undefined_answer_is_never_agreement():
    one, nan = {'fused': torch.zeros(1, 14)}, {'fused': torch.full((1, 14), float('nan'))}
    assert largest_difference(nan, one) == 1 == largest_difference(one, nan)
    assert largest_difference(one, one) == 0


@pytest.fixture
def traced(saved, monkeypatch):
    "The graph that was exported, in place of tracing it again"
    monkeypatch.setattr(
        inference,
        '_as_graph',
        lambda model: inference._openvino()[1].read_model(str(saved / 'fast' / 'graph.xml')),
    )


def test_nothing_is_sent_over_the_network(tmp_path):
    "OpenVINO's statistics need the package openvino_telemetry, and write into ~/intel"
    code = (
        'import sys, torch; from cxr_lib.model.fast import _openvino; ov, _ = _openvino()\n'
        'ov.convert_model(torch.nn.Linear(2, 2), example_input=torch.zeros(1, 2))\n'
        'assert not sys.modules.get("openvino_telemetry")\n'
        'assert ov.tools.ovc.telemetry_utils.tm.__name__.endswith("telemetry_stub")'
    )
    done = subprocess.run(
        [sys.executable, '-c', code],
        env=os.environ | {'HOME': str(tmp_path), 'USERPROFILE': str(tmp_path), 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-1000:]
    assert not (tmp_path / 'intel').exists()


def test_a_killed_export_leaves_nothing(saved, tmp_path, monkeypatch, traced):
    folder = shutil.copytree(saved, tmp_path / 'model', ignore=shutil.ignore_patterns('fast'))

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(inference, 'write_json', killed)
        with pytest.raises(KeyboardInterrupt):
            fast_model(folder, 'fp32')
    assert not [p for p in folder.iterdir() if 'fast' in p.name]


def test_a_folder_that_cannot_be_written_still_gives_a_fast_model(saved, tmp_path, monkeypatch, traced):
    folder = shutil.copytree(saved, tmp_path / 'model', ignore=shutil.ignore_patterns('fast'))

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(inference, '_write', full)
    with pytest.warns(UserWarning, match='cannot be written .No space left'):
        assert fast_model(folder, 'fp32').agreement < 1e-4


def test_opening_an_export_builds_no_model(saved, monkeypatch):
    def no(*_, **__):
        raise AssertionError('the trained model was loaded')

    monkeypatch.setattr(inference, 'load_model', no)
    assert fast_model(saved, 'fp32').route == 'fp32'


def test_an_export_does_not_disturb_the_saved_model(saved):
    model, _ = load_model(saved)
    assert not model.training
    assert (saved / 'fast').is_dir()
    with pytest.raises(CheckpointError, match='observations'):
        fast_model(saved, 'fp32', observations=('Edema',))


def test_base_in_full_size(monkeypatch):
    "Slow: set CXR_TEST_FULL=1"
    if not os.environ.get('CXR_TEST_FULL'):
        pytest.skip('needs 3 GB of memory and a minute; set CXR_TEST_FULL=1')
    if not VOCABULARY.exists():
        pytest.skip('the vocabulary is not at ../shared/data/vocab')
    from cxr_lib.model.text import make_tokenizer
    from cxr_lib.model.fusion import build_model
    from cxr_lib.model.presets import make_config

    config = make_config(
        'base',
        {
            'image_weights': '',
            'text_weights': False,
            'text_encoder': '',
            'vocab_file': str(VOCABULARY),
            'text_config': dict(
                hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072
            ),
        },
    )
    model = build_model(config, make_tokenizer(config)).eval()
    nn.init.normal_(model.head[-1].weight, std=0.5)
    assert fast_model(model).agreement <= AGREEMENT
