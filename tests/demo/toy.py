"""A run of toy images with an untrained model, made in seconds."""

import json
import os

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from PIL import Image

SAMPLES = 6
NOTES = ('65F with fever and cough, ? pneumonia.', 'Chest pain after a fall.', None, 'Known heart failure.')


def write_films(root):
    "Soft random pictures, each unlike the others"
    rng = np.random.default_rng(0)
    root.mkdir(parents=True)
    for i in range(SAMPLES):
        coarse = Image.fromarray(rng.integers(0, 255, (5, 5), dtype=np.uint8))
        coarse.resize((64, 64), Image.Resampling.BICUBIC).save(root / f'{i}.png')


def toy_studies(observations):
    "A study table of test images, one per patient"
    rng = np.random.default_rng(1)
    table = pd.DataFrame({'image': [f'{i}.png' for i in range(SAMPLES)]})
    table['patient_id'] = [f'p{i}' for i in range(SAMPLES)]
    table['split'], table['projection'], table['sex'], table['age'] = 'test', 'AP', 'Female', 60.0
    table['note'] = [NOTES[i % len(NOTES)] for i in range(SAMPLES)]
    for observation in observations:
        table[observation] = rng.integers(0, 2, SAMPLES).astype(float)
    return table


def save_model(folder):
    "An untrained model whose every part answers differently for different input"
    import torch
    from cxr_lib.foundations.core import OBSERVATIONS
    from cxr_lib.model.classifier import PretrainedClassifier
    from cxr_lib.model.fusion import build_model
    from cxr_lib.model.presets import make_config
    from cxr_lib.model.text import make_tokenizer

    config = make_config('tiny', dict(image_size=64))
    tokenizer = make_tokenizer(config, [note for note in NOTES if note])
    torch.manual_seed(0)
    model = build_model(config, tokenizer)
    torch.nn.init.normal_(model.head[-1].weight)
    maps = {o: dict(temperature=2.0) for o in OBSERVATIONS}
    conditions = ('fused', 'image_only', 'note_only')
    calibration = {c: dict(method='temperature', observations=maps) for c in conditions}
    rules = {'youden': {o: 0.5 for o in OBSERVATIONS}, 'sensitivity=0.9': {o: 0.2 for o in OBSERVATIONS}}
    facts = dict(preset='tiny', dataset='toy', simulated=True, fold=-1)
    PretrainedClassifier(model, tokenizer, calibration, rules, facts).save_pretrained(folder)


@pytest.fixture(scope='session')
def toy_run(tmp_path_factory):
    "A finished run `toy` below reports/ of a project folder of its own"
    from cxr_lib.foundations.core import OBSERVATIONS
    from cxr_lib.foundations.run import STAGES, RunFolder

    home = tmp_path_factory.mktemp('home')
    films = home / 'data' / 'toy'
    write_films(films)
    table = toy_studies(OBSERVATIONS)
    run = RunFolder(home / 'reports' / 'toy')
    mean = dict(auroc=0.5, low=0.4, high=0.6, reason='')
    metrics = {'n_images': SAMPLES, 'conditions': {'fused': {'means': {'evaluable': mean}}}}
    source = dict(dataset='toy', root=str(films), simulated=True, has_images=True)
    for stage in STAGES:
        run.begin(stage)
        if stage == 'exploration':
            (run / 'source.json').write_text(json.dumps(source))
            table.to_parquet(run / 'studies.parquet')
        elif stage == 'notes':
            table.to_parquet(run / 'studies_with_notes.parquet')
            (run / 'notes.json').write_text('{"mode": "real"}')
        elif stage == 'training':
            save_model(run / 'model')
            table[['image', 'split']].assign(fold=-1).to_parquet(run / 'predictions.parquet')
        elif stage == 'evaluation':
            (run / 'metrics.json').write_text(json.dumps(metrics))
        run.finish(stage, {})
    return run


@pytest.fixture(scope='session')
def environment(toy_run):
    "The environment of a server that shows the toy run"
    home = toy_run.path.parent.parent
    return os.environ | {'CXR_HOME': str(home), 'CXR_DEMO_RUN': 'toy', 'PYTHONPATH': str(ROOT)}
