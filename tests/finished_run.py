"""A run whose five stages are stamped, made in a second: an untrained model, and predictions that it never made."""

import numpy as np
import pandas as pd
from PIL import Image

from cxr_lib.foundations.core import COMPETITION, OBSERVATIONS
from cxr_lib.foundations.files import write_json
from cxr_lib.foundations.run import RunFolder
from cxr_lib.metrics.comparison import delong_interval
from cxr_lib.metrics.predictions import synthetic_predictions
from cxr_lib.prediction.batch import save_toy_model


def area_of(test, condition, observation):
    known = test[test[f'label/{observation}'].isin([0, 1])]
    area = delong_interval(known[f'label/{observation}'], known[f'{condition}/{observation}'])
    return dict(auroc=area['value'], low=area['low'], high=area['high'])


def mean_of(areas, names):
    return {k: float(np.nanmean([areas[o][k] for o in names])) for k in ('auroc', 'low', 'high')} | dict(
        reason=''
    )


def small_metrics(predictions):
    "The part of metrics.json that the commands read"
    test, conditions = predictions[predictions['split'] == 'test'], {}
    for condition in ('fused', 'image_only', 'note_only'):
        areas = {o: area_of(test, condition, o) for o in OBSERVATIONS}
        means = dict(evaluable=mean_of(areas, OBSERVATIONS), competition=mean_of(areas, COMPETITION))
        conditions[condition] = dict(observations=areas, means=means)
    return dict(simulated=True, n_images=len(test), conditions=conditions)


def studies_of(predictions):
    "A study table with the images and labels of a prediction table"
    columns = ['image', 'patient_id', 'split', 'sex', 'age', 'projection', 'view', 'note']
    labels = predictions[[f'label/{o}' for o in OBSERVATIONS]].set_axis(list(OBSERVATIONS), axis=1)
    return pd.concat([predictions[columns], labels], axis=1)


def write_films(root, images):
    for i, image in enumerate(images):
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 255, (40, 30), np.uint8)
        Image.fromarray(pixels).save(root / image)


def finished_run(home, name, seed=0, model_seed=0, noise=0.4):
    "Write reports/NAME below a project folder; `seed` decides patients, `noise` the quality of the predictions"
    predictions = synthetic_predictions(80, seed, model_noise=noise)
    root = home / 'data' / f'films{seed}'
    write_films(root, predictions['image'])
    run = RunFolder(home / 'reports' / name)
    source = dict(dataset='simulated', root=f'data/films{seed}', simulated=True, has_images=True)
    written = {
        'exploration': lambda: write_json(run / 'source.json', source),
        'notes': lambda: studies_of(predictions).to_parquet(run / 'studies_with_notes.parquet'),
        'model': lambda: write_json(run / 'architecture.json', {}),
        'training': lambda: (
            save_toy_model(run / 'model', model_seed),
            predictions.to_parquet(run / 'predictions.parquet'),
        ),
        'evaluation': lambda: write_json(run / 'metrics.json', small_metrics(predictions)),
    }
    for stage, write in written.items():
        run.begin(stage)
        write()
        run.finish(stage, {})
    return run.path
