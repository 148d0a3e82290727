"""Boxes and masks that were drawn on real images: both formats, what is refused, and the real ones where they lie."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cxr_lib.explanation.outlines import (
    Outlines,
    outlines_sentences,
    outlines_table,
    read_outlines,
    score_outlines,
    usual_outlines,
)

SHARED = Path(__file__).parents[2].parent / 'shared' / 'data'
BOX = {'Image Index': '00000001_000.png', 'Finding Label': 'Effusion', 'x': 0, 'y': 512, 'w': 256, 'h': 512}


def boxes(folder, name='boxes.csv', **changes):
    pd.DataFrame([BOX | changes]).to_csv(folder / name, index=False)
    return folder


def test_the_official_list_is_read_by_its_odd_header(tmp_path):
    table = pd.DataFrame([BOX]).rename(columns=dict(x='Bbox [x', h='h]'))
    table.assign(**{'Unnamed: 6': np.nan}).to_csv(tmp_path / 'BBox_List_2017.csv', index=False)
    found = read_outlines(tmp_path, 32)
    assert found.table.observation.tolist() == ['Pleural Effusion']
    assert found.masks[0, 16:, :8].all() and found.masks[0].sum() == 16 * 8


@pytest.mark.parametrize(
    'changes, why',
    [
        (dict(w=0), 'row 2: .* w 0'),
        (dict(x=-5), 'row 2: x -5'),
        (dict(h=5000), 'h 5000'),
        (dict(x=np.nan), 'x nan'),
        ({'Finding Label': 'Scoliosis'}, "row 2: unknown finding 'Scoliosis'"),
    ],
)
def test_a_wrong_box_is_named_with_its_row(tmp_path, changes, why):
    with pytest.raises(ValueError, match=why):
        read_outlines(boxes(tmp_path, **changes), 32)


def test_a_missing_column_and_an_empty_folder_are_named(tmp_path):
    with pytest.raises(ValueError, match='has none of boxes.csv'):
        read_outlines(tmp_path)
    pd.DataFrame([BOX]).drop(columns='w').to_csv(tmp_path / 'boxes.csv', index=False)
    with pytest.raises(ValueError, match="no column 'w'"):
        read_outlines(tmp_path)


def test_masks_are_padded_as_their_images_are(tmp_path):
    (tmp_path / 'masks').mkdir()
    Image.fromarray(np.full((20, 40), 255, np.uint8)).save(tmp_path / 'masks' / 'm.png')
    row = dict(filename='1.jpg', structure='pleural_effusion', mask='m.png')
    pd.DataFrame([row, row | dict(structure='airways')]).to_csv(tmp_path / 'masks.csv', index=False)
    found = read_outlines(tmp_path, 32)
    assert found.table.observation.tolist() == ['Pleural Effusion']
    assert found.masks[0, 8:24].all() and not found.masks[0, :8].any()


def test_the_prior_is_of_other_patients_only():
    masks = np.zeros((3, 8, 8), bool)
    masks[0, 0], masks[1, 1], masks[2, 2] = True, True, True
    table = pd.DataFrame(dict(image=['a', 'b', 'c'], patient=['p', 'p', 'q'], observation='Edema'))
    known = Outlines(table, masks)
    prior = usual_outlines(known, known)
    assert (prior[0] == masks[2]).all() and (prior[2] == masks[:2].mean(0)).all()
    alone = usual_outlines(known.take([2]), known.take([2]))
    assert (alone == 0).all()
    scores = score_outlines(masks * 1.0, known, known)
    assert (scores.hit == 1).all() and (scores.prior == 0).all() and (scores.over_prior == 1).all()


def test_nothing_drawn_is_said():
    record = dict(n=0, observations={}, methods=dict(grad_cam=dict(all=dict(n=0), called=dict(n=0))))
    assert outlines_sentences(record) == ['Drawn on test images of this run: 0 findings (none).']
    assert outlines_table(record)['hit rate'].tolist() == ['', '']


@pytest.mark.skipif(not SHARED.is_dir(), reason='needs ../shared/data (boxes and masks on real images)')
def test_the_real_boxes_and_masks_are_read():
    found = read_outlines(SHARED / 'nih_annotations', 64)
    assert found.table.observation.value_counts()['Pneumonia'] >= 40
    lying = found.table.observation == 'Cardiomegaly'
    assert found.masks[lying].mean(0)[28:48, 20:40].mean() > 0.5  # where hearts are
    drawn = read_outlines(SHARED / 'covid_masks', 64)
    assert {'Lung Opacity', 'Consolidation', 'Support Devices'} <= set(drawn.table.observation)
    assert drawn.table.image.nunique() <= 23
