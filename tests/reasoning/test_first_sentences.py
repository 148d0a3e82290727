"What stands first on the page of reasoning."

import json

import numpy as np
import pandas as pd

from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.stages.reasoning import learned_by, texts_sentences


def test_findings_that_are_left_open_and_denied_are_counted():
    said = np.array([['present', 'open', 'absent', 'open'] + [''] * 10], object)
    labels = np.array([[0, 1, 1, 1] + [0] * 10])
    assert texts_sentences(labels, said)[1].endswith('they state 0%, leave 67% open and deny 33%.')


def test_healthy_images_have_nothing_to_be_stated():
    said, labels = np.full((2, 14), 'open', object), np.zeros((2, 14))
    labels[:, 0] = 1
    assert len(texts_sentences(labels, said)) == 1


def test_what_the_model_of_one_fold_never_learned_is_not_spoken_of(tmp_path):
    labels = pd.DataFrame({o: [0.0, 1.0, 1.0] for o in OBSERVATIONS}).assign(split=['train', 'train', 'test'])
    labels.to_parquet(tmp_path / 'studies_with_notes.parquet')
    assert learned_by(tmp_path, None) == tuple(OBSERVATIONS)
    (tmp_path / 'conditions.json').write_text(json.dumps(dict(untrained={'0': ['Edema', 'Fracture']})))
    assert set(OBSERVATIONS) - set(learned_by(tmp_path, None)) == {'Edema', 'Fracture'}
