"What stands first on the page of reasoning."

import numpy as np

from cxr_lib.stages.reasoning import texts_sentences


def test_findings_that_are_left_open_and_denied_are_counted():
    said = np.array([['present', 'open', 'absent', 'open'] + [''] * 10], object)
    labels = np.array([[0, 1, 1, 1] + [0] * 10])
    assert texts_sentences(labels, said)[1].endswith('they state 0%, leave 67% open and deny 33%.')


def test_healthy_images_have_nothing_to_be_stated():
    said, labels = np.full((2, 14), 'open', object), np.zeros((2, 14))
    labels[:, 0] = 1
    assert len(texts_sentences(labels, said)) == 1
