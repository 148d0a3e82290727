"""Simulated studies, and an untrained model and run of them, for tests that need numbers and not good ones."""

import cv2
import torch

from cxr_lib.data.simulated import simulated_radiograph
from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.foundations.files import write_json
from cxr_lib.foundations.run import RunFolder
from cxr_lib.model.classifier import PretrainedClassifier
from cxr_lib.model.fusion import build_model
from cxr_lib.model.presets import make_config
from cxr_lib.model.text import make_tokenizer
from cxr_lib.notes.wording import clinical_notes
from cxr_lib.prediction.batch import save_toy_model
from cxr_lib.simulation.patients import draw_patients

MAPS = {
    'temperature': {o: dict(temperature=1.0 + k / 10) for k, o in enumerate(OBSERVATIONS)},
    'platt': {o: dict(slope=1.2, intercept=-0.3) for o in OBSERVATIONS},
    'isotonic': {o: dict(x=[0.2, 0.8], y=[0.1, 0.7]) for o in OBSERVATIONS},
}


def untrained(notes, method='temperature', size=64):
    "A classifier with random weights, whose heads and interaction all speak"
    config = make_config('tiny', dict(image_size=size))
    tokenizer = make_tokenizer(config, notes)
    torch.manual_seed(0)
    model = build_model(config, tokenizer)
    for head, std in ((model.head, 0.3), (model.image_head, 0.3), (model.note_head, 0.02)):
        torch.nn.init.normal_(head[-1].weight, std=std)  # the note's head adds up over words
    calibration = method and {'fused': dict(method=method, observations=MAPS[method])}
    return PretrainedClassifier(model, tokenizer, calibration)


def simulated_run(home, name='small', n=12, notes='clinical'):
    "Write a run on simulated patients whose notes are worded from their facts; its model is untrained"
    latent = draw_patients(n, seed=4)
    latent['image'] = 'images/' + latent.patient_id + '.png'
    root = home / 'data' / 'simulated' / 'few'
    (root / 'images').mkdir(parents=True)
    for patient in latent.to_dict('records'):
        cv2.imwrite(str(root / patient['image']), simulated_radiograph(patient, masks=False).image)
    latent.to_parquet(root / 'latent.parquet')
    columns = ['image', 'patient_id', 'sex', 'age', 'projection', *OBSERVATIONS]
    table = latent[columns].assign(note=clinical_notes(latent, latent.age, latent.sex, 7), split='test')
    run = RunFolder(home / 'reports' / name)
    source = dict(
        dataset='simulated', root='data/simulated/few', simulated=True, has_images=True, world='plain'
    )
    written = {
        'exploration': lambda: write_json(run / 'source.json', source),
        'notes': lambda: (
            table.to_parquet(run / 'studies_with_notes.parquet'),
            write_json(run / 'notes.json', dict(mode=notes)),
        ),
        'model': lambda: write_json(run / 'architecture.json', {}),
        'training': lambda: save_toy_model(run / 'model'),
    }
    for stage, write in written.items():
        run.begin(stage)
        write()
        run.finish(stage, dict(seed=7))
    return run
