"""No label of a picture lies on another, whatever the numbers are."""

from itertools import combinations

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from cxr_lib.data.pictures import plot_contact_sheet, plot_label_states, plot_patients, plot_prevalence_by
from cxr_lib.evaluation.conformal import plot_conformal, plot_risk_coverage
from cxr_lib.evaluation.fairness import plot_shortcuts, plot_subgroups, plot_underdiagnosis
from cxr_lib.evaluation.pictures import plot_controls, plot_pr_curves, plot_reliability, plot_roc_curves
from cxr_lib.evaluation.pretest import plot_balanced, plot_pretest
from cxr_lib.evaluation.published import plot_published
from cxr_lib.evaluation.report import evaluate
from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.foundations.figures import set_theme
from cxr_lib.metrics.predictions import synthetic_predictions
from cxr_lib.training.curves import plot_training

matplotlib.use('agg')


@pytest.fixture(scope='module')
def predictions():
    return synthetic_predictions(150, seed=1)


@pytest.fixture(scope='module')
def metrics(predictions):
    return evaluate(predictions, n_bootstrap=5, seed=0, simulated=True)


@pytest.fixture(scope='module')
def studies(tmp_path_factory):
    "A study table with images, drawn at random"
    folder, rng, n = tmp_path_factory.mktemp('films'), np.random.default_rng(0), 40
    for i in range(n):
        Image.fromarray(rng.integers(0, 255, (32, 32), np.uint8)).save(folder / f'{i}.png')
    table = pd.DataFrame(rng.integers(0, 2, (n, 14)).astype(float), columns=OBSERVATIONS)
    table['image'] = [f'{i}.png' for i in range(n)]
    table['sex'], table['projection'] = rng.choice(['Female', 'Male'], n), rng.choice(['AP', 'PA'], n)
    table['view'], table['split'] = 'Frontal', rng.choice(['train', 'tuning', 'test'], n)
    table['age'] = rng.integers(20, 95, n).astype(float)
    return folder, table


LOG = pd.DataFrame(
    dict(model='multimodal', fold=-1, epoch=[1, 2], train_loss=[0.5, 0.4], tuning_loss=[0.4, 0.38])
    | dict(tuning_auroc=[0.5, 0.6], tuning_auroc_image=[0.5, 0.61], tuning_auroc_note=[0.52, 0.53])
)
GROUPS = ['projection', 'sex', 'age', 'devices']

#: name -> how it is drawn from predictions, metrics, and (folder, study table)
PICTURES = {
    'controls': lambda p, m, s: plot_controls(m),
    'roc_curves': lambda p, m, s: plot_roc_curves(p, m),
    'pr_curves': lambda p, m, s: plot_pr_curves(p, m),
    'reliability': lambda p, m, s: plot_reliability(m),
    'pretest': lambda p, m, s: plot_pretest(p, m['pretest']),
    'balanced': lambda p, m, s: plot_balanced(m['pretest']),
    'context': lambda p, m, s: plot_shortcuts(m),
    'subgroups': lambda p, m, s: plot_subgroups(m),
    'underdiagnosis': lambda p, m, s: plot_underdiagnosis(m),
    'conformal': lambda p, m, s: plot_conformal(m['conformal'], simulated=True),
    'risk_coverage': lambda p, m, s: plot_risk_coverage(p[p.split == 'test'], simulated=True),
    'published': lambda p, m, s: plot_published(m),
    'training_curves': lambda p, m, s: plot_training(LOG, True),
    'patients': lambda p, m, s: plot_patients(s[1], True),
    'prevalence': lambda p, m, s: plot_label_states(s[1], True),
    'shortcuts': lambda p, m, s: plot_prevalence_by(s[1], GROUPS, True),
    'contact_sheet': lambda p, m, s: plot_contact_sheet(s[1], s[0], simulated=True),
}


def drawn_labels(figure, monkeypatch):
    "Every text that is drawn, with its box in pixels"
    drawn, draw = {}, Text.draw

    def record(self, *args, **more):
        if self.get_visible() and self.get_text().strip():
            drawn[id(self)] = self
        return draw(self, *args, **more)

    with monkeypatch.context() as m:
        m.setattr(Text, 'draw', record)
        FigureCanvasAgg(figure).draw()  # a figure that pyplot has closed is not drawn by its own canvas
    return [(t.get_text(), Text.get_window_extent(t)) for t in drawn.values()]


def collisions(labels):
    "Pairs of texts whose boxes share more than a pixel's margin"
    found = []
    for (a, box), (b, other) in combinations(labels, 2):
        width = min(box.x1, other.x1) - max(box.x0, other.x0)
        height = min(box.y1, other.y1) - max(box.y0, other.y0)
        if width > 1 and height > 2:
            found.append((a, b))
    return found


#: Small panels, whose numbers stand above the curves.
PANELS = ['roc_curves', 'pr_curves', 'reliability', 'pretest', 'risk_coverage']


@pytest.mark.parametrize('name', PICTURES)
def test_no_label_lies_on_another_or_on_what_is_shown(name, predictions, metrics, studies, monkeypatch):
    set_theme()
    figure = PICTURES[name](predictions, metrics, studies)
    labels = drawn_labels(figure, monkeypatch)
    plt.close(figure)
    assert len(labels) > 5
    assert not collisions(labels)
    numbers = [(ax, t) for ax in figure.axes for t in ax.texts if any(c.isdigit() for c in t.get_text())]
    if name in PANELS:
        assert len(numbers) >= 14
        assert all(t.get_window_extent().y0 >= ax.bbox.y1 for ax, t in numbers)
    marks = [t.get_window_extent() for t in figure.texts if 'SIMULATED' in t.get_text()]
    assert marks and not any(ax.bbox.overlaps(mark) for ax in figure.axes for mark in marks)


def test_two_labels_on_one_place_are_seen(monkeypatch):
    figure = plt.figure()
    for text in ('99%', '99.9%'):
        figure.text(0.5, 0.5, text)
    assert collisions(drawn_labels(figure, monkeypatch)) == [('99%', '99.9%')]
    plt.close(figure)
