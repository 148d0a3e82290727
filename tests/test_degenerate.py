"""Degenerate but real data: the report part of every stage notebook survives it and says so in words, or stage 1 says why going on makes no sense."""
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from PIL import Image

from cxr_lib.core import OBSERVATIONS

N = 36
STAGES = {'01_exploration': dict(dataset='csv', scan=0),
          '02_notes': dict(probe_encoder=False),
          '03_model': dict(overrides='image_size=64'),
          '04_training': dict(epochs=1, folds=0, negative_example=False),
          '05_evaluation': dict(n_bootstrap=10)}


def studies(n=N, **columns):
    "A plain table: both sexes, ages, notes, both labels; then what a case changes"
    random = np.random.default_rng(0)
    words = ('cough', 'fever, ? pneumonia', 'chest pain after a fall', 'SOB for 3 days')
    table = dict(image=[f'{i}.png' for i in range(n)], patient_id=[f'p{i}' for i in range(n)], study_id=[f's{i}' for i in range(n)],
                 view='Frontal', projection=['PA', 'AP'][:n]*-(-n//2), sex=['Female', 'Female', 'Male', 'Male']*n, age=random.integers(20, 90, n),
                 note=[words[i % 4] for i in range(n)], split=[('train', 'test', 'train', 'tuning')[i % 4] for i in range(n)],
                 **{o: random.integers(0, 2, n) for o in OBSERVATIONS}) | columns
    return pd.DataFrame({k: v[:n] if isinstance(v, list) else v for k, v in table.items()}, index=range(n))


def labels(value): return {o: value for o in OBSERVATIONS}


def write_folder(folder, table):
    "The table as studies.csv, with a film of noise for every row"
    folder.mkdir(parents=True)
    random = np.random.default_rng(1)
    for image in table.image: Image.fromarray(random.integers(0, 256, (64, 64), dtype=np.uint8)).save(folder/image)
    table.to_csv(folder/'studies.csv', index=False)
    return folder


def report_cells(notebook):
    "The code of a stage notebook up to its library part"
    for cell in json.loads((ROOT/'nbs'/f'{notebook}.ipynb').read_text(encoding='utf-8'))['cells']:
        source = ''.join(cell['source'])
        if source.startswith(('# How it is done', '# How these numbers are made')): return
        if cell['cell_type'] == 'code' and not source.startswith('#|'): yield cell['metadata'].get('tags', []), source


def words_of(thing):
    "What a reader sees of something that is displayed"
    if hasattr(thing, 'to_html'): return thing.to_html()
    if hasattr(thing, 'data') and isinstance(thing.data, str): return thing.data
    return ''


def words_in(figure): return '\n'.join(t.get_text() for t in figure.findobj(lambda a: hasattr(a, 'get_text')))


@pytest.fixture
def reports(tmp_path, monkeypatch):
    "Run the report part of the stage notebooks in this process -> all that they show, by notebook"
    import IPython.display

    import cxr_lib.core
    import cxr_lib.evaluation
    said = []
    def save(figure, path):
        if Path(path).suffix == '.pdf': return                       # the same picture again
        figure.set_layout_engine('none')                             # where things go is not the question here, and takes longest
        figure.draw_without_rendering()
        said.append(words_in(figure))
        Image.new('L', (8, 8)).save(path)
    monkeypatch.setattr(cxr_lib.core, 'save_figure', save)
    monkeypatch.setattr(cxr_lib.evaluation, 'save_figure', save)
    monkeypatch.setattr(IPython.display, 'display', lambda *things, **_: said.extend(map(words_of, things)))
    monkeypatch.setattr(plt, 'show', lambda: plt.close('all'))
    monkeypatch.setenv('CXR_HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    def run(table, until='05_evaluation', **parameters):
        root, found = write_folder(tmp_path/'data'/'odd', table), {}
        for notebook, given in STAGES.items():
            said.clear()
            scope = {}
            for tags, source in report_cells(notebook):
                exec(source, scope)
                if 'parameters' in tags:
                    wanted = dict(given, run='odd', root=str(root), **parameters)
                    scope.update({k: v for k, v in wanted.items() if k in scope})
            plt.close('all')
            found[notebook[3:]] = '\n'.join(said)
            if notebook == until: break
        return found
    return run
