"The bench of heat maps asks a model only about what it has learned."

import numpy as np
import pytest

from cxr_lib.explanation import bench
from cxr_lib.explanation.acceptance import judge_observation
from cxr_lib.foundations.core import OBSERVATIONS


class CallsAll:
    "A model that calls everything, whose tuning images had no label of fractures"

    def __init__(self, by_condition):
        counted = {o: dict(n_positive=3, n_negative=4) for o in OBSERVATIONS}
        counted['Fracture'] = dict(n_positive=0, n_negative=0)
        own = dict(method='temperature', observations=counted)
        self.calibration = dict(fused=own, image_only=own) if by_condition else own

    def probabilities(self, logits):
        return dict(fused=np.full(logits['fused'].shape, 0.9))


@pytest.mark.parametrize('by_condition', [True, False])
def test_what_was_never_labelled_is_not_judged(monkeypatch, by_condition):
    monkeypatch.setattr(bench, 'image_tokens', lambda *_: None)
    monkeypatch.setattr(
        bench, 'answer_notes', lambda _, __, notes: dict(fused=np.zeros((len(notes), len(OBSERVATIONS))))
    )
    drawn = bench.draw_bench(6, per=2, seed=3, classifier=CallsAll(by_condition))
    asked = {OBSERVATIONS[k] for k in drawn.observations}
    assert 'Fracture' not in asked
    assert {'Pleural Effusion', 'Support Devices'} & asked
    everything = bench.draw_bench(6, per=2, seed=3)
    assert 'Fracture' in {OBSERVATIONS[k] for k in everything.observations}


@pytest.mark.parametrize('n, words', [(1, 'in only 1 patient of'), (5, 'in only 5 patients of')])
def test_too_few_patients_are_counted_in_words(n, words):
    found = judge_observation(*np.zeros((5, n)), n_bootstrap=2)
    assert words in found['reason'] and not found['accepted']
