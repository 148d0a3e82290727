"""Maps of every method: exact where they claim to be, clear where they cannot be made."""

import numpy as np
import pytest
import torch
from benches import untrained

from cxr_lib.explanation.attribution import (
    BASELINES,
    METHODS,
    ask,
    attention_blocks,
    attribute,
    beginning,
    cannot_draw,
    plot_maps,
    smooth,
    spread,
    token_evidence,
)
from cxr_lib.explanation.bill import answer_notes, image_tokens
from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.model.classifier import PretrainedClassifier
from cxr_lib.model.fusion import build_model
from cxr_lib.model.presets import make_config
from cxr_lib.model.text import make_tokenizer

NOTES = ['65F with fever.', None, '80 yo M with orthopnea.']
PAIRS = [(i, o) for i in range(3) for o in ('Pneumothorax', 'Pleural Effusion')]


@pytest.fixture(scope='module')
def pixels():
    return np.random.default_rng(0).integers(0, 255, (3, 64, 64), np.uint8)


@pytest.fixture(scope='module')
def classifier():
    return untrained([n for n in NOTES if n])


def of_encoder(name, **more):
    "An untrained classifier with another image encoder"
    config = make_config('tiny', dict(image_encoder=name, **more))
    tokenizer = make_tokenizer(config, ['fever'])
    torch.manual_seed(0)
    model = build_model(config, tokenizer)
    torch.nn.init.normal_(model.image_head[-1].weight, std=0.3)
    return PretrainedClassifier(model, tokenizer)


SOLVED = dict(pool='grid', image_penalty=30.0, freeze_image=True)


@pytest.mark.parametrize('head', [dict(pool='mean'), dict(pool='meanmax'), dict(pool='grid'), SOLVED])
@pytest.mark.parametrize('encoder', ['resnet8_compare', 'test_vit'])
def test_evidence_of_tokens_sums_to_the_image_logit_exactly(pixels, head, encoder):
    size = dict(image_size=64) if encoder == 'resnet8_compare' else dict(image_size=160)
    classifier = of_encoder(encoder, **head, **size)
    films = np.random.default_rng(1).integers(0, 255, (3, *[size['image_size']] * 2), np.uint8)
    questions = ask(films, NOTES, PAIRS)
    added, constant = token_evidence(classifier, questions)
    image = answer_notes(classifier, image_tokens(classifier, films), NOTES)['image']
    assert np.allclose(added.sum(1) + constant, image[questions.studies, questions.observations], atol=1e-4)
    for method in ('evidence_tokens', 'grad_cam', 'cross_attention'):
        assert attribute(classifier, questions, method).shape == (6, *films.shape[1:])


@pytest.mark.parametrize('method', METHODS)
def test_batches_do_not_matter_and_weights_are_left_alone(method, classifier, pixels):
    questions = ask(pixels, NOTES, PAIRS)
    if method == 'attention_relevance':
        classifier = of_encoder('test_vit', image_size=64)
    before = {k: v.clone() for k, v in classifier.model.state_dict().items()}
    more = dict(side=1 / 4) if method == 'occlusion' else {}
    whole, parts = (attribute(classifier, questions, method, batch_size=b, **more) for b in (6, 4))
    assert np.allclose(whole, parts, atol=1e-4)
    assert all((before[k] == v).all() for k, v in classifier.model.state_dict().items())
    assert all(p.grad is None for p in classifier.model.parameters())


@pytest.mark.parametrize('baseline', BASELINES)
def test_an_image_that_is_its_own_beginning_owes_nothing(baseline, classifier):
    flat = np.zeros((1, 64, 64), np.uint8)
    assert (beginning(flat, baseline) == 0).all()
    maps = attribute(classifier, ask(flat, [None], [(0, 'Edema')]), baseline=baseline, steps=2)
    assert np.allclose(maps, 0)


def test_an_encoder_without_a_map_of_places_is_told_so_and_has_other_methods(classifier, pixels, monkeypatch):
    monkeypatch.setattr(classifier.model.image_encoder, 'side', 0)
    questions = ask(pixels, NOTES, PAIRS[:2])
    for method in ('evidence_tokens', 'grad_cam', 'cross_attention'):
        with pytest.raises(ValueError, match='no square map.*integrated_gradients or occlusion'):
            attribute(classifier, questions, method)
    assert np.isfinite(attribute(classifier, questions, 'integrated_gradients', steps=2)).all()


def test_a_network_without_attention_is_told_so(classifier, pixels):
    questions = ask(pixels, NOTES, PAIRS[:2])
    with pytest.raises(ValueError, match='no attention that can be read; use integrated_gradients'):
        attribute(classifier, questions, 'attention_relevance')
    assert 'no attention' in cannot_draw(classifier, 'attention_relevance')


def test_relevance_speaks_in_favour_and_leaves_the_model_as_it_was(pixels):
    classifier = of_encoder('test_vit', image_size=64)
    encoder = classifier.model.image_encoder
    own = attribute(classifier, ask(pixels, NOTES, PAIRS), 'attention_relevance', branch='image')
    assert own.min() >= 0 and (own.sum((1, 2)) > 0).all()
    assert all(block.fused_attn for block in attention_blocks(encoder))
    assert not any(block.attn_drop._forward_hooks for block in attention_blocks(encoder))


def test_weights_that_are_not_finite_are_no_map(pixels):
    broken = untrained(['fever'])
    with torch.no_grad():
        broken.model.image_head[-1].weight.fill_(float('nan'))
    with pytest.raises(ValueError, match='not finite'):
        attribute(broken, ask(pixels, NOTES, PAIRS[:1]), steps=1)


@pytest.mark.parametrize('pairs', [[(3, 'Edema')], [(-1, 'Edema')]])
def test_a_study_that_is_not_there_is_named(pixels, pairs):
    with pytest.raises(ValueError, match='of 3'):
        ask(pixels, NOTES, pairs)


def test_smoothing_and_spreading_keep_sums():
    maps = np.random.default_rng(0).normal(size=(2, 64, 64)).astype(np.float32)
    assert np.allclose(smooth(maps, 1 / 32).sum((1, 2)), maps.sum((1, 2)), atol=0.5)
    assert (smooth(maps, 0) == maps).all()
    assert np.allclose(spread(np.full((1, 16), 2.0), 4, 64).sum(), 32)


def test_no_overlay_is_drawn_of_a_map_without_evidence(pixels):
    fig = plot_maps(pixels[0], {'nothing': -np.ones((64, 64)), 'something': np.eye(64)})
    drawn = [len(ax.images) for ax in fig.axes[:3]]
    assert drawn == [1, 1, 2] and OBSERVATIONS
