"""A model of chance that is made in a second, for tests that need answers and not good ones."""

from pathlib import Path

import numpy as np
import torch

from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.model.classifier import PretrainedClassifier
from cxr_lib.model.fusion import build_model
from cxr_lib.model.presets import make_config
from cxr_lib.model.text import make_tokenizer

NOTE = '65-year-old with fever and cough. Known heart failure.'
CONDITIONS = ('fused', 'image_only', 'note_only')


def temperatures():
    "A temperature for every observation, each its own"
    return {o: dict(temperature=1.0 + k / 10) for k, o in enumerate(OBSERVATIONS)}


def platt():
    return {o: dict(slope=1.2, intercept=-0.3) for o in OBSERVATIONS}


def calibration(method='temperature'):
    maps = dict(temperature=temperatures, platt=platt)[method]()
    return {c: dict(method=method, observations=maps) for c in CONDITIONS}


def conformal():
    limits = {o: dict({'from': 0.4, 'up_to': 0.6}, reason='') for o in OBSERVATIONS}
    return dict(schema='cxr_lib.conformal/1', condition='fused', alpha=0.1, folds={'-1': limits})


def toy_classifier(method='temperature', seed=0, **facts):
    "A tiny model with random weights, whose head has an interaction"
    config = make_config('tiny', dict(image_size=32))
    tokenizer = make_tokenizer(config, [NOTE])
    torch.manual_seed(seed)
    model = build_model(config, tokenizer)
    torch.nn.init.normal_(model.head[-1].weight)
    rules = {'youden': {o: 0.5 for o in OBSERVATIONS}}
    facts = dict(preset='tiny', dataset='toy', simulated=False) | facts
    own = None if method is None else calibration(method)
    return PretrainedClassifier(model, tokenizer, own, rules, facts, beside={'conformal.json': conformal()})


def toy_model(folder: Path, method='temperature', seed=0, **facts) -> Path:
    "Save the toy into a folder"
    toy_classifier(method, seed, **facts).save_pretrained(folder)
    return folder


def films(n=5, seed=0):
    "Noise of different sizes"
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 255, (40 + i, 50 - i), np.uint8) for i in range(n)]
