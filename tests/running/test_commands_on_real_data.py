"""The README's commands on small real data, to the page of results or the error that says why.

At most 60 images, one epoch, 20 resamples. The data are in ../shared/data beside the checkout; without them, these
tests skip.
"""

import csv
import json
import os
import re
import tarfile
from pathlib import Path

import pandas as pd
import pytest
from commands import MINUTES, SMALL, cxr, page_of, papermill
from conftest import ROOT
from encoder_folders import cxr_bert_folder, vision_folder

pytestmark = MINUTES
SHARED = ROOT.parent / 'shared' / 'data'
needs_data = pytest.mark.skipif(
    not SHARED.is_dir(), reason='the shared real data (../shared/data) are not on this machine'
)


# Small copies of the data


def copied(source, target, table, names):
    "A data set's folder with some of its images, as links, and the rows of its table that name them"
    (target / 'images').mkdir(parents=True)
    for name in names:
        (target / 'images' / name).symlink_to(source / 'images' / name)
    with open(source / table, newline='', encoding='utf-8') as f:
        header, *rows = list(csv.reader(f))
    with open(target / table, 'w', newline='', encoding='utf-8') as f:
        csv.writer(f).writerows([header, *(r for r in rows if set(r) & set(names))])
    return target


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "nih, covid, openi and chexpert, at most 60 images each"
    home = tmp_path_factory.mktemp('data')
    films = pd.read_csv(SHARED / 'nih' / 'Data_Entry_2017.csv')
    nih = films['Image Index'][:: len(films) // 48][:48].tolist()
    copied(SHARED / 'nih', home / 'nih', 'Data_Entry_2017.csv', nih)
    (home / 'nih' / 'published_densenet121_predictions.csv').write_bytes(
        (SHARED / 'nih' / 'published_densenet121_predictions.csv').read_bytes()
    )
    copied(
        SHARED / 'covid',
        home / 'covid',
        'metadata.csv',
        pd.read_csv(SHARED / 'covid' / 'metadata.csv').filename[:60].tolist(),
    )
    (home / 'openi').mkdir()
    with (
        tarfile.open(SHARED / 'openi' / 'NLMCXR_reports.tgz') as reports,
        tarfile.open(home / 'openi' / 'NLMCXR_reports.tgz', 'w:gz') as some,
    ):
        members = [m for m in reports if m.isfile()][:80]
        for member in members:
            some.addfile(member, reports.extractfile(member))
    named = {f'CXR{Path(m.name).stem}' for m in members}
    header, *rows = (
        (SHARED / 'openi' / 'openi_gld_std14.csv').read_text(encoding='utf-8').splitlines(keepends=True)
    )
    kept = [header, *(row for row in rows if row.split(',')[0] in named)]
    (home / 'openi' / 'openi_gld_std14.csv').write_text(''.join(kept), encoding='utf-8')
    chexpert(home / 'chexpert', [SHARED / 'nih' / 'images' / name for name in nih[:30]])
    return home


def chexpert(root, films):
    "A folder in CheXpert's layout"
    from cxr_lib.foundations.core import OBSERVATIONS

    rows = {'train': [], 'valid': []}
    for i, film in enumerate(films):
        part = 'valid' if i % 3 == 2 else 'train'
        path = f'CheXpert-v1.0-small/{part}/patient{i:05d}/study1/view1_frontal.jpg'
        (root / path).parent.mkdir(parents=True)
        (root / path).symlink_to(film)
        labels = [float((i + k) % 2) for k in range(len(OBSERVATIONS))]
        rows[part].append(
            dict(
                zip(
                    ('Path', 'Sex', 'Age', 'Frontal/Lateral', 'AP/PA'),
                    (path, 'Female', 40 + i, 'Frontal', 'AP'),
                )
            )
            | dict(zip(OBSERVATIONS, labels))
        )
    for part, some in rows.items():
        pd.DataFrame(some).to_csv(root / 'CheXpert-v1.0-small' / f'{part}.csv', index=False)


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    return tmp_path_factory.mktemp('an empty folder')


@pytest.fixture(scope='module')
def nih(home, data):
    code, out, err = cxr(
        home, 'run', '--dataset', 'nih', '--root', data / 'nih', '--preset', 'offline', *SMALL
    )
    assert code == 0, err
    return out, err


@needs_data
def test_nih_with_pretrained_encoders_beside_the_published_model(home, nih):
    out, err = nih
    page = page_of(home, 'nih', out)
    assert 'Beside another model, on the same images' in page
    assert 'Beside another model, on the same images' in out
    assert 'SIMULATED patients: drawn' not in page
    assert re.search(r'04_training: fold 2 of 2, epoch 1 of 1, loss', err)


@needs_data
def test_an_external_file_that_is_given_is_compared(home, nih, data):
    other = data / 'other.csv'
    other.write_bytes((data / 'nih' / 'published_densenet121_predictions.csv').read_bytes())
    command = ['run', '--dataset', 'nih', '--root', data / 'nih', '--preset', 'offline', *SMALL]
    code, out, err = cxr(home, *command, '-p', 'external', other)
    assert code == 0, err
    assert '04_training: finished before' in err
    assert 'Beside another model, on the same images' in page_of(home, 'nih', out)


#: what Python runs first: a table's function is gone and a picture cannot be read
NO_PAGE = '''
import pathlib
import cxr_lib.evaluation.external
del cxr_lib.evaluation.external.external_table
read_bytes = pathlib.Path.read_bytes

def fails(path):
    if path.name == 'controls.png':
        raise OSError('no such picture')
    return read_bytes(path)

pathlib.Path.read_bytes = fails
'''


@needs_data
def test_a_page_that_cannot_be_made_loses_no_results(home, nih, data):
    (home / 'sitecustomize.py').write_text(NO_PAGE, encoding='utf-8')
    command = ['run', '--dataset', 'nih', '--root', data / 'nih', '--preset', 'offline', *SMALL]
    command += ['-p', 'external', data / 'other.csv']
    try:
        code, out, err = cxr(home, *command, env={'PYTHONPATH': os.pathsep.join([str(home), str(ROOT)])})
    finally:
        (home / 'sitecustomize.py').unlink()
    text = (home / 'reports' / 'nih' / 'index.html').read_text(encoding='utf-8')
    for said in (text, out):
        assert 'AUROC by observation' in said
        assert 'the comparison with another model could not be shown (ImportError' in said
    assert code == 1
    assert 'the results are there, but not every page' in err
    assert 'Traceback' not in err
    assert 'the picture controls.png could not be shown (OSError' in text
    assert 'the picture controls.png' in err
    assert cxr(home, *command)[0] == 0
    assert 'could not be shown' not in (home / 'reports' / 'nih' / 'index.html').read_text(encoding='utf-8')


@needs_data
def test_covid_with_its_own_notes(home, data):
    code, out, err = cxr(home, 'run', '--dataset', 'covid', '--root', data / 'covid', *SMALL)
    assert code == 0, err
    page_of(home, 'covid', out)


@needs_data
def test_a_preset_that_needs_a_hub_says_so(home, data):
    root = data / 'chexpert' / 'CheXpert-v1.0-small'
    command = ['run', '--dataset', 'chexpert', '--root', root, '--preset', 'base', *SMALL, '-p', 'folds', '2']
    code, out, err = cxr(home, *command)
    assert code == 2
    assert 'Traceback' not in err
    assert re.search('hub|download|network|internet|offline', err, re.I), err
    assert not (home / 'reports' / 'chexpert' / '01_exploration.html').exists()


def chest_run(name, data):
    return ['run', '--run', name, '--dataset', 'nih', '--root', data / 'nih', '--preset', 'chest', *SMALL]


@needs_data
def test_the_chest_preset_says_first_what_to_fetch_and_where_to_put_it(home, data):
    code, out, err = cxr(home, *chest_run('fetch', data))
    assert code == 2
    assert 'Traceback' not in err
    assert 'hf download microsoft/rad-dino --local-dir rad-dino' in err
    assert 'hf download microsoft/BiomedVLP-CXR-BERT-specialized' in err
    assert 'image_weights=FOLDER/rad-dino text_encoder=FOLDER/BiomedVLP-CXR-BERT-specialized' in err
    assert not (home / 'reports' / 'fetch' / '01_exploration.html').exists()  # before the data are looked at
    code, out, err = cxr(home, *chest_run('fetch', data), '--until', 'exploration')
    assert code == 0, err  # which needs no encoder


@needs_data
def test_the_chest_preset_with_encoders_in_folders_and_its_first_page(home, data):
    "Small random encoders of the same format; NIH is what RAD-DINO was trained on"
    image, text = data / 'encoders' / 'rad-dino', data / 'encoders' / 'BiomedVLP-CXR-BERT-specialized'
    vision_folder(image)
    cxr_bert_folder(text)
    small = (
        f'image_weights={image} text_encoder={text} image_size=64 image_grid=4 fusion_dim=32 fusion_heads=2'
    )
    code, out, err = cxr(home, *chest_run('seen', data), '-p', 'overrides', small)
    assert code == 0, err
    said = 'THE IMAGE ENCODER HAS SEEN THESE DATA: microsoft/rad-dino was trained on'
    assert said in (home / 'reports' / 'seen' / 'index.html').read_text(encoding='utf-8')
    verdict = json.loads((home / 'reports' / 'seen' / 'metrics.json').read_text(encoding='utf-8'))['verdict']
    assert [s for s in verdict[:3] if s.startswith(said)]
    assert not (text / 'executed').exists()
    code, out, err = cxr(home, 'evaluate', '--run', 'seen', '--dataset', 'covid', '--root', data / 'covid')
    assert code == 0, err
    assert 'HAS SEEN THESE DATA' not in out


@needs_data
def test_a_source_is_looked_at_without_training(home, data):
    command = ['run', '--dataset', 'openi', '--root', data / 'openi', '--until', 'notes']
    code, out, err = cxr(home, *command, '-p', 'probe_encoder', 'false')
    assert code == 0, err
    text = (home / 'reports' / 'openi' / 'index.html').read_text(encoding='utf-8')
    assert 'asked to stop after notes' in text
    assert (home / 'reports' / 'openi' / '02_notes.html').exists()


@needs_data
def test_a_choice_of_encoders_by_itself(home, nih, data):
    some = json.dumps(
        {
            'tiny': dict(preset='tiny', image_size=64),
            'probe': dict(preset='tiny', image_size=64, head='probe', freeze_image=True),
        }
    )
    given = ['-p', 'root', str(data / 'nih'), '-p', 'candidates', some]
    given += '-p run nih -p dataset nih -p epochs 1 -p n_bootstrap 20 -p min_cases 1'.split()
    code, _, err = papermill(home, '10_search.ipynb', *given)
    assert code == 0, err
    assert (home / 'reports' / 'nih' / 'selection.json').exists()
