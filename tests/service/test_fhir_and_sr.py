"""Answers as FHIR and as DICOM SR, read back by the libraries of these standards."""

import io

import pytest
import requests
from toy_service import as_dicom, as_file, film, form

from cxr_lib.data.elements import FileInMemory
from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.prediction.fhir import probabilities_in_report
from cxr_lib.prediction.sr import probabilities_in_sr

pytest_plugins = ('service_fixtures',)

pytest.importorskip('fhir.resources', reason='the extra `fhir` is not installed')
pytest.importorskip('highdicom', reason='the extra `sr` is not installed')
DICOM = as_dicom(film(1))


def ask(address, data, name, **more):
    return requests.post(f'{address}/v1/predictions', **form(data, 'Fever.', name), **more, timeout=60)


def expected(predictor, data, name):
    found = predictor(FileInMemory(name, data), note='Fever.')
    return {o: found[o].probability.fused for o in OBSERVATIONS}


@pytest.mark.parametrize(
    'how', [dict(params=dict(format='fhir')), dict(headers={'Accept': 'application/fhir+json'})]
)
def test_a_fhir_report_holds_every_probability(address, predictor, how):
    data = as_file(film(0))
    answer = ask(address, data, 'film.png', **how)
    assert answer.headers['content-type'] == 'application/fhir+json'
    read = probabilities_in_report(answer.content)
    assert read == pytest.approx(expected(predictor, data, 'film.png'), abs=1e-6)


def test_a_fhir_report_says_what_has_to_be_known(address):
    report = ask(address, as_file(film(0)), 'film.png', params=dict(format='fhir')).json()
    assert report['status'] == 'preliminary'
    assert 'Research use only' in report['conclusion'] and 'SIMULATED' in report['conclusion']
    assert 'subject' not in report


@pytest.mark.parametrize(
    'how', [dict(params=dict(format='sr')), dict(headers={'Accept': 'application/dicom'})]
)
def test_a_structured_report_holds_every_probability(address, predictor, how):
    answer = ask(address, DICOM, 'film.dcm', **how)
    assert answer.headers['content-type'] == 'application/dicom', answer.text
    assert probabilities_in_sr(answer.content) == pytest.approx(
        expected(predictor, DICOM, 'film.dcm'), abs=1e-6
    )


def test_a_structured_report_belongs_to_the_study_and_quotes_nothing_else(address):
    import pydicom

    answer = ask(address, DICOM, 'film.dcm', params=dict(format='sr'))
    report, image = pydicom.dcmread(io.BytesIO(answer.content)), pydicom.dcmread(io.BytesIO(DICOM))
    assert report.PatientID == image.PatientID and report.StudyInstanceUID == image.StudyInstanceUID
    assert report.SeriesInstanceUID != image.SeriesInstanceUID
    assert report.VerificationFlag == 'UNVERIFIED'
    assert b'Secret Street' not in answer.content


def test_a_header_without_the_uids_of_its_study_is_named(address):
    answer = ask(address, as_dicom(film(1), StudyInstanceUID=''), 'film.dcm', params=dict(format='sr'))
    assert answer.status_code == 422 and 'StudyInstanceUID' in answer.json()['detail']
