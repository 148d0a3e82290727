"""An image head that is solved for: the same whatever the epochs, kept by saving, refused where tokens move."""

import numpy as np
import pandas as pd
import pytest
import torch

from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.model.fusion import build_model
from cxr_lib.model.presets import make_config, split_overrides
from cxr_lib.model.saved import load_model, save_model
from cxr_lib.model.text import make_tokenizer
from cxr_lib.training.dataset import StudyData
from cxr_lib.training.loop import fit
from cxr_lib.training.solved import penalised_regression, solve_image_head

SOLVED = dict(
    **dict(image_encoder='test_efficientnet', image_size=64, in_chans=1, image_stages=3),
    **dict(pool='grid', image_penalty=10.0, freeze_image=True),
)


@pytest.fixture(scope='module')
def config():
    return make_config('tiny', SOLVED)


@pytest.fixture(scope='module')
def tokenizer(config):
    return make_tokenizer(config, ['cough and fever', 'fall from a ladder'] * 4)


@pytest.fixture(scope='module')
def studies():
    "Films whose brightness is the disease"
    rng, n = np.random.default_rng(0), 48
    sick = rng.random(n) < 0.5
    films = (rng.random((n, 64, 64)) * 100 + 60 * sick[:, None, None]).astype(np.uint8)
    table = pd.DataFrame(dict(image=[f'{i}.png' for i in range(n)], patient_id=[f'p{i}' for i in range(n)]))
    table = table.assign(note='cough and fever', split=np.where(np.arange(n) % 3, 'train', 'tuning'))
    return table.assign(**{o: sick.astype(float) for o in OBSERVATIONS}), films


def trained(config, tokenizer, studies, epochs):
    torch.manual_seed(0)
    model = build_model(config, tokenizer)
    data = StudyData(studies[0], '', config, tokenizer, pixels=studies[1])
    data.precompute(model)
    training = split_overrides('tiny', dict(epochs=epochs, batch_size=16))[1]
    fit(model, data, data.rows('train'), data.rows('tuning'), training)
    return model


def test_the_head_does_not_depend_on_the_epochs(config, tokenizer, studies):
    short, long = (trained(config, tokenizer, studies, epochs).image_head[-1] for epochs in (1, 3))
    assert short.weight.abs().max() > 0
    assert torch.equal(short.weight, long.weight) and torch.equal(short.bias, long.bias)


def test_a_saved_model_gives_the_same_from_the_image(config, tokenizer, studies, tmp_path):
    model = trained(config, tokenizer, studies, 1).eval()
    save_model(model, tokenizer, tmp_path / 'model', dict(simulated=True))
    again = load_model(tmp_path / 'model')[0].eval()
    films = torch.from_numpy(studies[1][:4])
    with torch.no_grad():
        ours, theirs = (m.image_logits(m.encode_image(films)) for m in (model, again))
    assert torch.allclose(ours, theirs, atol=1e-5)
    sick = torch.from_numpy(studies[0].Edema.to_numpy()[:4] == 1)
    assert (ours[:, 0] > 0).equal(sick)


def test_an_observation_that_nobody_labels_has_weights_of_zero(config, tokenizer, studies):
    table = studies[0].assign(Fracture=np.nan)
    model = build_model(config, tokenizer)
    data = StudyData(table, '', config, tokenizer, pixels=studies[1])
    data.precompute(model)
    solve_image_head(model, data, data.rows('train'))
    weights = model.image_head[-1].weight[OBSERVATIONS.index('Fracture')]
    assert not weights.any() and torch.isfinite(model.image_head[-1].bias).all()


def test_smoothed_labels_count_in_part():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 3))
    sure = (x[:, 0] > 0).astype(float)
    firm, soft = (penalised_regression(x, y, 1.0)[0][0] for y in (sure, 0.3 + 0.4 * sure))
    assert firm > 2 * soft > 0


@pytest.mark.parametrize('moving', ['unfreeze_image=1', 'freeze_image=false', 'lora_rank=4 lora_on=image'])
def test_tokens_that_move_are_refused(moving):
    with pytest.raises(ValueError, match='image_penalty'):
        make_config('offline', moving)


def test_a_backbone_without_a_square_map_has_no_grid(tokenizer):
    with pytest.raises(ValueError, match='stages'):
        build_model(make_config('tiny', SOLVED | dict(image_stages=40)), tokenizer)
