"""A toy model in seconds, uploads of every kind, and a client: what the tests of the service share."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

from cxr_lib.model.classifier import PretrainedClassifier
from cxr_lib.model.fusion import build_model
from cxr_lib.model.presets import make_config
from cxr_lib.model.text import make_tokenizer
from cxr_lib.prediction.load import Predictor
from cxr_lib.prediction.schema import ModelFacts

for module in ('fastapi', 'uvicorn', 'gradio'):
    pytest.importorskip(module, reason='the extra `serve` is not installed')

NOTES = (
    '65-year-old with fever and cough. Known heart failure.',
    'Fall from a ladder; chest pain on the left.',
    'Evaluate line placement.',
    None,
)


def toy_predictor(image_size=32):
    "A model with random weights: it knows nothing, and answers as a trained one does"
    config = make_config('tiny', dict(image_size=image_size))
    tokenizer = make_tokenizer(config, [note for note in NOTES if note])
    torch.manual_seed(0)
    model = build_model(config, tokenizer)
    torch.nn.init.normal_(model.head[-1].weight)  # an untrained head has no interaction
    facts = ModelFacts(
        name='toy', fingerprint='0123456789abcdef', simulated=True, about=['NOT EVALUATED: a toy.']
    )
    rules = {'youden': dict.fromkeys(('Edema', 'Pneumonia'), 0.5)}
    return Predictor(PretrainedClassifier(model, tokenizer, None, rules, dict(preset='tiny')), facts)


def film(seed, height=48, width=40):
    "Pixels of noise, (height, width) uint8"
    return np.random.default_rng(seed).integers(0, 255, (height, width), np.uint8)


def as_file(pixels, kind='png'):
    "The bytes of an image file"
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def as_dicom(pixels, **more):
    "The bytes of a DICOM file whose header names a patient"
    found = FileDataset(None, {}, file_meta=FileMetaDataset(), preamble=b'\0' * 128)
    found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found.file_meta.MediaStorageSOPClassUID = found.SOPClassUID = ComputedRadiographyImageStorage
    found.file_meta.MediaStorageSOPInstanceUID = found.SOPInstanceUID = generate_uid()
    found.StudyInstanceUID, found.SeriesInstanceUID = generate_uid(), generate_uid()
    found.PatientID, found.PatientName, found.Modality = 'MRN4711', 'Mustermann^Erika', 'CR'
    found.PatientComments = 'lives at Secret Street 5'
    found.Rows, found.Columns = pixels.shape
    found.SamplesPerPixel, found.PixelRepresentation, found.PhotometricInterpretation = 1, 0, 'MONOCHROME2'
    found.BitsAllocated, found.BitsStored, found.HighBit = 8, 8, 7
    found.PixelData = pixels.tobytes()
    for keyword, value in more.items():
        setattr(found, keyword, value)
    file = io.BytesIO()
    found.save_as(file, enforce_file_format=True)
    return file.getvalue()


def form(data, note=None, name='film.png'):
    "What requests and httpx send as a form"
    found = dict(files=dict(image=(name, data)))
    return found if note is None else found | dict(data=dict(note=note))


def largest_difference(answer, prediction):
    "Between an answer in JSON and a prediction of the library, over all observations and conditions"
    differences = []
    for got, own in zip(answer['observations'], prediction.observations, strict=True):
        assert got['observation'] == own.observation
        for condition, value in own.probability.model_dump().items():
            if value is not None or got['probability'][condition] is not None:
                differences.append(abs(got['probability'][condition] - value))
    return max(differences)
