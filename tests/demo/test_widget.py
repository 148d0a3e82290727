"""The demo's widget without a browser: what every part does."""

import asyncio
import base64
import html
import io
import json
import re
from datetime import datetime

import numpy as np
import pytest
from PIL import Image
from toy import toy_run  # noqa: F401 (a fixture)

from cxr_lib import demo
from cxr_lib.demo import MAX_UPLOAD, DemoPage, demo_widget, film_png
from cxr_lib.prediction.schema import Prediction
from cxr_lib.reasoning.words import describe


@pytest.fixture
def widget(toy_run) -> DemoPage:  # noqa: F811
    page = demo_widget(toy_run, 6).page
    page.image.value = next(i for i, case in enumerate(page.cases) if case.note)
    return page


def give(widget, name, content):
    "Upload a file"
    about = dict(type='', size=len(content), last_modified=datetime.now())
    widget.upload.value = [dict(name=name, content=memoryview(content), **about)]


def shown(widget):
    "Everything that belongs to one answer"
    return [
        part.value
        for part in (widget.bars, widget.parts, widget.film, widget.note, widget.moved, widget.notices)
    ]


def png(seed=3):
    picture = np.random.default_rng(seed).integers(0, 255, (90, 70), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, 'PNG')
    return buffer.getvalue()


def jpeg():
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png())).save(buffer, 'JPEG')
    return buffer.getvalue()


def dicom():
    "A small DICOM radiograph whose header names a patient"
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

    film = Dataset()
    film.SOPClassUID, film.SOPInstanceUID = DigitalXRayImageStorageForPresentation, generate_uid()
    film.PatientName, film.Modality, film.PhotometricInterpretation = 'Doe^Jane', 'DX', 'MONOCHROME2'
    film.Rows, film.Columns, film.SamplesPerPixel, film.PixelRepresentation = 64, 64, 1, 0
    film.BitsAllocated, film.BitsStored, film.HighBit = 16, 12, 11
    film.PixelData = np.random.default_rng(0).integers(0, 4095, (64, 64)).astype('<u2').tobytes()
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    film.file_meta.MediaStorageSOPClassUID = film.SOPClassUID
    film.file_meta.MediaStorageSOPInstanceUID = film.SOPInstanceUID
    buffer = io.BytesIO()
    film.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


# ---- heat maps


def test_a_map_that_was_not_accepted_is_refused_in_words(widget):
    before = widget.film.value
    widget.map.value = 'Edema'
    assert 'Edema: no map: the heat maps of this model have not been tested' in widget.film.value
    assert 'cxr-scale' not in widget.film.value
    widget.map.value = None
    assert widget.film.value == before


def test_an_accepted_map_lies_over_the_image_with_its_scale_and_what_it_is_not(widget, monkeypatch):
    asked, plain = [], widget.film.value

    def heat_map(image, note, observation):
        asked.append((image is widget.shown, note, observation))
        return np.eye(widget.predictor.size), 'integrated gradients, accepted'

    monkeypatch.setattr(widget.predictor, 'heat_map', heat_map)
    widget.map.value = 'Pneumothorax'
    assert asked == [(True, widget.note.value.strip(), 'Pneumothorax')]
    assert 'Pneumothorax: integrated gradients, accepted' in widget.film.value
    assert 'attribution, not localisation' in widget.film.value and 'cxr-scale' in widget.film.value
    source = re.compile(r'base64,([^"]+)')
    pictures = [
        Image.open(io.BytesIO(base64.b64decode(source.search(v)[1]))) for v in (plain, widget.film.value)
    ]
    assert [p.mode for p in pictures] == ['L', 'RGB']
    drawn = np.asarray(pictures[1]).astype(int)
    assert (
        drawn[20, -20] == drawn[20, -20][0]
    ).all()  # beside the map's diagonal the image is gray as before
    assert np.ptp(drawn[160, 160]) > 20  # on it there is colour


# ---- choosing and typing


def test_the_model_its_training_and_its_auroc_stand_above(widget):
    assert 'Model toy' in widget.banner.value and 'data set toy' in widget.banner.value
    assert '0.500 [0.400, 0.600]' in widget.banner.value and 'NOT BETTER THAN CHANCE' in widget.banner.value


def test_the_warnings_of_the_prediction_stand_in_words(widget):
    assert 'trained on SIMULATED patients only' in widget.notices.value
    assert 'NOT BETTER THAN CHANCE' not in widget.notices.value  # the banner says it


def test_the_bars_are_a_ranked_table_with_its_values_in_words(widget):
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>.*?<td>(\d+)%</td>', widget.bars.value)
    assert len(rows) == 14
    values = [int(value) for _, value in rows]
    assert values == sorted(values, reverse=True)
    assert widget.bars.value.count('threshold 50%') == 28  # label and title of each bar
    widget.rule.value = 'sensitivity=0.9'
    assert widget.bars.value.count('threshold 20%') == 28


def test_the_parts_add_up(widget):
    rows = re.findall(r'<td>([+-]?[\d.]+)</td>' * 4, widget.parts.value.replace('−', '-'))
    assert len(rows) == 14
    for image, note, both, total in np.array(rows, float):
        assert image + note + both == pytest.approx(total, abs=0.2)  # one decimal each


def test_labels_are_shown_on_request_and_never_of_an_upload(widget):
    assert 'labelled' not in widget.bars.value
    widget.labels.value = True
    assert widget.bars.value.count('class="cxr-hidden">labelled') == 14
    give(widget, 'film.png', png())
    assert 'labelled' not in widget.bars.value


def test_an_image_is_encoded_once_however_often_the_note_changes(widget, monkeypatch):
    calls = []
    real = widget.predictor.model.encode_image
    monkeypatch.setattr(widget.predictor.model, 'encode_image', lambda *a: calls.append(1) or real(*a))
    here, widget.image.value = widget.image.value, 5
    for text in ('cough', 'cough and fever', ''):
        widget.note.value = text
    widget.image.value = here
    widget.image.value = 5
    assert len(calls) == 1


def test_typing_is_answered_once_after_a_pause_and_blocks_nothing(widget, monkeypatch):
    answers = []
    monkeypatch.setattr(widget.typed, 'function', lambda: answers.append(widget.note.value))

    async def type_note():
        for k in range(1, 13):
            widget.note.value = 'fever, cough'[:k]
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        before = list(answers)  # 0.2 s after the last key: still waiting
        await asyncio.sleep(0.4)
        return before

    assert asyncio.run(type_note()) == []
    assert answers == ['fever, cough']


def test_an_example_is_taken_at_once_and_given_up_by_typing(widget):
    bars = widget.bars.value
    widget.example.value = 'fever and cough'
    assert widget.note.value.startswith('65F with fever') and widget.bars.value != bars
    widget.note.value += '.'
    assert widget.example.value is None
    widget.example.value = 'own'
    assert widget.note.value == widget.case.note


def test_a_note_that_is_too_long_says_so_and_a_shorter_one_helps(widget):
    widget.note.value = 'x' * 30_000
    assert widget.bars.value == '' and 'at most 20,000' in widget.message.value
    widget.note.value = 'cough'
    assert widget.bars.value.count('<tr>') == 15 and widget.message.value == ''


# ---- uploads


@pytest.mark.parametrize('name, make', [('a.png', png), ('b.jpg', jpeg), ('c.dcm', dicom), ('c', dicom)])
def test_an_upload_is_answered_and_joins_the_list(widget, name, make):
    give(widget, name, make())
    assert widget.image.label == f'{name}, uploaded'
    assert widget.note.value == '' and widget.bars.value.count('<tr>') == 15
    assert widget.upload.value == ()  # its bytes are not kept
    assert 'Jane' not in ''.join(shown(widget)[:2] + shown(widget)[3:]) and '^Jane' not in widget.film.value
    widget.note.value = 'Fever.'
    assert re.search('[▲▼]', widget.bars.value.split('</table>')[0])


def test_a_second_upload_takes_the_place_of_the_first(widget):
    give(widget, 'a.png', png(1))
    first = shown(widget)
    give(widget, 'b.png', png(2))
    assert shown(widget) != first
    assert [name for name, _ in widget.image.options if name.endswith('uploaded')] == ['b.png, uploaded']


@pytest.mark.parametrize(
    'name, content, reason',
    [
        ('letter.txt', b'Dear colleague', 'letter.txt: not an image file'),
        ('half.png', png()[:200], 'half.png: cannot be decoded'),
        ('empty.png', b'', 'the file is empty'),
        ('half.dcm', dicom()[:400], 'half.dcm'),
        ('huge.png', bytes(MAX_UPLOAD + 1), 'at most 40,000,000'),
        ('<img src=x>.png', b'no', '&#60;img'),
    ],
)
def test_a_bad_upload_says_why_and_the_page_stays(widget, name, content, reason):
    before = shown(widget), widget.image.value
    give(widget, name, content)
    assert reason in widget.upload_message.value and '<img' not in widget.upload_message.value
    assert (shown(widget), widget.image.value) == before
    give(widget, 'good.png', png())
    assert widget.upload_message.value == '' and widget.image.label == 'good.png, uploaded'


def test_nothing_is_written_to_disk(widget, monkeypatch):
    def refuse(*arguments, **_):
        raise AssertionError(f'wrote a file: {arguments}')

    real = open
    monkeypatch.setattr(
        'builtins.open', lambda f, m='r', *a, **k: real(f, m, *a, **k) if 'r' in m else refuse(f)
    )
    monkeypatch.setattr('tempfile.NamedTemporaryFile', refuse)
    monkeypatch.setattr('tempfile.mkdtemp', refuse)
    give(widget, 'film.dcm', dicom())
    widget.save.click()
    assert widget.links.value.count('<a ') == 3


# ---- is it looking?


@pytest.mark.parametrize('kind', ['noise', 'image', 'note', 'no note'])
def test_a_swap_shows_what_moves_and_leads_back(widget, kind):
    before = shown(widget)
    assert widget.back.disabled and widget.case.note
    widget.swaps[kind].click()
    assert (widget.film.value != before[2]) == (kind in ('noise', 'image'))
    assert (widget.note.value != before[3]) == (kind in ('note', 'no note'))
    assert widget.bars.value != before[0]
    table = re.findall(r'<td>(\d+)%</td><td>(\d+)%</td>', widget.moved.value)
    assert len(table) == 14 and any(was != now for was, now in table)
    assert 'move by a percentage point' in widget.moved.value
    assert not widget.back.disabled
    widget.back.click()
    assert shown(widget) == before and widget.back.disabled


def test_before_and_after_are_the_predictions_of_both(widget):
    own, text = widget.own, widget.note.value
    widget.swaps['noise'].click()
    before = {
        a.observation: a.probability.fused for a in widget.predictor.answer([own], [text])[0].observations
    }
    noise = widget.predictor.answer([widget.shown], [text])[0]
    after = {a.observation: a.probability.fused for a in noise.observations}
    rows = re.findall(r'<th scope="row">(.*?)</th><td>(\d+)%</td><td>(\d+)%</td>', widget.moved.value)
    assert {name: (was, now) for name, was, now in rows} == {
        o: (f'{100 * before[o]:.0f}', f'{100 * after[o]:.0f}') for o in before
    }


def test_one_swap_at_a_time(widget):
    before = shown(widget)
    for kind in ('noise', 'no note', 'image', 'note', 'noise'):
        widget.swaps[kind].click()
    assert widget.note.value == before[3]  # the note of the swap before went back
    widget.back.click()
    assert shown(widget) == before


def test_another_patient_is_another_each_time(widget):
    films = set()
    for _ in range(5):
        widget.swaps['image'].click()
        assert widget.shown is not widget.own
        films.add(widget.film.value)
    assert len(films) == 5


def test_the_note_may_be_edited_while_the_image_is_noise(widget):
    widget.swaps['noise'].click()
    moved = widget.moved.value
    widget.note.value = 'Known heart failure.'
    assert widget.moved.value != moved and widget.shown.name == 'noise'


def test_another_image_ends_a_swap(widget):
    widget.swaps['no note'].click()
    widget.image.value = (widget.image.value + 1) % 6
    assert widget.moved.value == '' and widget.back.disabled and widget.note.value == widget.case.note


def test_without_another_patient_the_reason_is_said(toy_run):  # noqa: F811
    widget = demo_widget(toy_run, 1).page
    widget.swaps['image'].click()
    assert 'no sample of another patient' in widget.message.value
    widget.back.click()
    assert widget.message.value == '' and widget.bars.value


# ---- to keep


def saved(widget):
    found = re.findall(r'download="([^"]+)" href="data:([^;]+);base64,([^"]+)"', widget.links.value)
    return {name: (kind, base64.b64decode(content)) for name, kind, content in found}


def test_saving_offers_the_picture_and_the_prediction(widget):
    widget.note.value = 'Fever and cough. Known heart failure.'
    widget.save.click()
    files = saved(widget)
    stem = widget.case.source.stem
    assert list(files) == [f'{stem}_prediction.png', f'{stem}_prediction.json', f'{stem}_report.txt']
    picture, answer = (next(v for n, v in files.items() if n.endswith(e)) for e in ('.png', '.json'))
    assert picture[0] == 'image/png' and Image.open(io.BytesIO(picture[1])).size[0] > 1000
    kept = Prediction.model_validate_json(answer[1])
    assert [s.text for s in kept.sentences] == ['Fever and cough.', 'Known heart failure.']
    assert str(kept.report) in files[f'{stem}_report.txt'][1].decode()
    assert str(describe(kept.differential, 'short')) in html.unescape(widget.words.value)
    assert str(widget.case.source.parent) not in json.dumps(kept.model_dump(mode='json'))
    shown_now = widget.predictions()[0]
    assert kept.observations == shown_now.observations
    widget.note.value = 'Another note'
    assert widget.links.value == ''


def test_what_is_saved_during_a_swap_names_what_was_swapped_in(widget):
    widget.swaps['noise'].click()
    widget.save.click()
    (_, content) = saved(widget)['noise_prediction.json']
    assert Prediction.model_validate_json(content).image == 'noise'


# ---- failures


@pytest.mark.parametrize('error', [OSError(5, 'Input/output error'), ValueError('<b>too large</b>')])
@pytest.mark.parametrize('step', ['encode', 'answer', 'film_png'])
def test_an_image_that_fails_leaves_nothing_of_the_former_one(widget, monkeypatch, step, error):
    before = shown(widget)

    def fails(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(*((demo, step) if step == 'film_png' else (widget.predictor, step)), fails)
        other = 5  # not chosen before, so that it is not encoded yet
        here, widget.image.value = widget.image.value, other
        for act in (
            lambda: None,
            widget.save.click,
            widget.back.click,
            lambda: setattr(widget.labels, 'value', True),
        ):
            act()
            assert widget.film.value == '' and widget.bars.value == '' and widget.links.value == ''
            assert (
                f'{other + 1}. AP Female' in widget.message.value
                and type(error).__name__ in widget.message.value
            )
            assert '<b>too' not in widget.message.value
    widget.labels.value = False
    widget.image.value = here
    assert shown(widget) == before and widget.message.value == ''


def test_the_picture_of_a_film_is_a_png():
    assert film_png(np.zeros((8, 8), np.uint8))[:4] == b'\x89PNG'
