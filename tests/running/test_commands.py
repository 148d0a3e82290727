"""The README's commands, as a user types them, on small real data: to the page of results, or to the error that says what is missing.

At most 60 images, one epoch, 20 resamples. The data lie in ../shared/data beside the checkout; where they are not, these tests skip.
"""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT

from cxr_lib.running.command import EXTERNAL

SHARED = ROOT.parent / 'shared' / 'data'
needs_data = pytest.mark.skipif(
    not SHARED.is_dir(), reason='the shared real data (../shared/data) are not on this machine'
)
pytestmark = [pytest.mark.skipif(os.name == 'nt', reason='signals'), pytest.mark.timeout(2400)]
full = pytest.mark.skipif(not os.environ.get('CXR_TEST_FULL'), reason='minutes long; set CXR_TEST_FULL=1')
SMALL = '-p epochs 1 -p folds 2 -p n_bootstrap 20 -p negative_example false -p probe_encoder false'.split()


# The commands, in a folder that is no checkout


def started(home, *command, **more):
    "Start a command in the project folder"
    env = (
        {k: v for k, v in os.environ.items() if k not in ('CXR_HOME', 'COLUMNS')}
        | {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1'}
        | more.pop('env', {})
    )
    return subprocess.Popen(
        [sys.executable, '-m', *map(str, command)],
        cwd=home,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def cxr(home, *args, **more):
    "`cxr ARGS`: exit code, standard output, standard error"
    process = started(home, 'cxr_lib.running.command', *args, **more)
    out, err = process.communicate()
    return process.returncode, out, err


def papermill(home, notebook, *args):
    "`papermill nbs/NOTEBOOK out.ipynb ARGS`: exit code, what the cells printed, standard error"
    out = home / f'out-{Path(notebook).name}'
    process = started(home, 'papermill', ROOT / 'nbs' / notebook, out, '--no-progress-bar', *args)
    _, err = process.communicate()
    cells = json.loads(out.read_text(encoding='utf-8'))['cells'] if out.exists() else []
    printed = ''.join(
        ''.join(o.get('text', []))
        for c in cells
        for o in c.get('outputs', [])
        if o['output_type'] == 'stream'
    )
    return process.returncode, printed, err


def page_of(home, run, out):
    "The front page, which needs no network and misses nothing"
    index = home / 'reports' / run / 'index.html'
    assert f'Report: {index}' in out
    text = index.read_text(encoding='utf-8')
    assert (
        not EXTERNAL.search(text)
        and 'What out' not in text
        and 'could not be shown' not in text
        and 'is not finished' not in text
    )
    assert 'What came out' in text and 'AUROC by observation' in text and text.count('data:image/png') > 8
    return text


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


# Whole runs


@pytest.fixture(scope='module')
def mine(home):
    "`cxr run --run mine` on simulated patients, killed in its training and given again, to a log of a code page without dashes"
    command = [
        'run',
        '--run',
        'mine',
        *'-p n_patients 60 -p seed 1 -p epochs 60 -p n_bootstrap 20 -p negative_example false -p probe_encoder false'.split(),
    ]
    process = started(home, 'cxr_lib.running.command', *command)
    first = []
    for line in process.stderr:
        first.append(line)
        if re.search('epoch 3 of 60: loss|epoch 3 of 60, loss', line):
            break
    process.send_signal(signal.SIGTERM)
    first.append(process.stderr.read())
    process.communicate()
    assert process.returncode == 143, ''.join(first)
    code, out, err = cxr(home, *command, env={'PYTHONIOENCODING': 'cp932'})
    assert code == 0, err
    return ''.join(first), out, err


def test_a_simulated_run_ends_with_results_and_a_page(mine, home):
    _, out, _ = mine
    assert 'SIMULATED' in page_of(home, 'mine', out) and 'AUROC by observation' in out
    assert json.loads((home / 'reports' / 'mine' / 'metrics.json').read_text())['n_bootstrap'] == 20


def test_the_log_shows_epochs_with_loss_auroc_and_time_left(mine):
    first, _, again = mine
    lines = first.splitlines()
    epochs = [
        line
        for line in lines
        if re.search(
            r'04_training: epoch \d+ of 60, loss \d\.\d{3}, tuning AUROC (\d\.\d{3}|undefined), about \d+ (s|min) left$',
            line,
        )
    ]
    assert len(epochs) >= 3, first
    assert any('GB of memory at the peak of a step' in line and line.endswith(')') for line in lines), (
        first
    )  # whole, not cut off
    for line in [*lines, *again.splitlines()]:
        assert not re.search(r'\w+\(.*=|import |^\s*\|', line.split('GB of memory')[0]), (
            line
        )  # no source line
    assert '\r' not in first + again


def test_a_killed_training_says_after_which_epoch_it_resumes(mine):
    first, _, again = mine
    resumed = re.search(r'04_training: resuming after epoch (\d+) of 60 epochs', again)
    assert resumed and int(resumed[1]) >= 2, again
    seen = [int(n) for n in re.findall(r'04_training: epoch (\d+) of 60', again)]
    assert seen == list(range(int(resumed[1]) + 1, 61))  # goes on, and repeats no epoch
    assert '01_exploration: finished before, not run again' in again


def test_label_leak_all_the_way_through(home, mine):
    code, out, err = cxr(
        home,
        'run',
        '--run',
        'leak',
        '-p',
        'note_mode',
        'label_leak',
        '-p',
        'n_patients',
        '60',
        *SMALL[:2],
        '1',
        *SMALL[6:],
    )
    assert code == 0, err
    page_of(home, 'leak', out)


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
    assert (
        'Beside another model, on the same images' in page
        and 'Beside another model, on the same images' in out
        and 'SIMULATED patients: drawn' not in page
    )
    assert re.search(r'04_training: fold 2 of 2, epoch 1 of 1, loss', err)


@needs_data
def test_an_external_file_that_is_given_is_compared(home, nih, data):
    other = data / 'other.csv'
    other.write_bytes((data / 'nih' / 'published_densenet121_predictions.csv').read_bytes())
    code, out, err = cxr(
        home,
        'run',
        '--dataset',
        'nih',
        '--root',
        data / 'nih',
        '--preset',
        'offline',
        *SMALL,
        '-p',
        'external',
        other,
    )
    assert code == 0, err
    assert '04_training: finished before' in err and 'Beside another model, on the same images' in page_of(
        home, 'nih', out
    )


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
    command = [
        'run',
        '--dataset',
        'nih',
        '--root',
        data / 'nih',
        '--preset',
        'offline',
        *SMALL,
        '-p',
        'external',
        data / 'other.csv',
    ]
    try:
        code, out, err = cxr(home, *command, env={'PYTHONPATH': os.pathsep.join([str(home), str(ROOT)])})
    finally:
        (home / 'sitecustomize.py').unlink()
    text = (home / 'reports' / 'nih' / 'index.html').read_text(encoding='utf-8')
    for said in (text, out):
        assert (
            'AUROC by observation' in said
            and 'the comparison with another model could not be shown (ImportError' in said
        )
    assert code == 1 and 'the results are there, but not every page' in err and 'Traceback' not in err
    assert (
        'the picture controls.png could not be shown (OSError' in text and 'the picture controls.png' in err
    )
    assert cxr(home, *command)[0] == 0 and 'could not be shown' not in (
        home / 'reports' / 'nih' / 'index.html'
    ).read_text(encoding='utf-8')


@needs_data
def test_covid_with_its_own_notes(home, data):
    code, out, err = cxr(home, 'run', '--dataset', 'covid', '--root', data / 'covid', *SMALL)
    assert code == 0, err
    page_of(home, 'covid', out)


@needs_data
def test_a_preset_that_needs_a_hub_says_so(home, data):
    code, out, err = cxr(
        home,
        'run',
        '--dataset',
        'chexpert',
        '--root',
        data / 'chexpert' / 'CheXpert-v1.0-small',
        '--preset',
        'base',
        *SMALL,
        '-p',
        'folds',
        '2',
    )
    assert code == 1 and '03_model.ipynb failed' in err and 'Traceback' not in err
    assert re.search('hub|download|network|internet|offline', err, re.I), err
    assert 'This run stopped' in (home / 'reports' / 'chexpert' / 'index.html').read_text(encoding='utf-8')


@needs_data
def test_a_source_is_looked_at_without_training(home, data):
    code, out, err = cxr(
        home,
        'run',
        '--dataset',
        'openi',
        '--root',
        data / 'openi',
        '--until',
        'notes',
        '-p',
        'probe_encoder',
        'false',
    )
    assert code == 0, err
    text = (home / 'reports' / 'openi' / 'index.html').read_text(encoding='utf-8')
    assert 'asked to stop after notes' in text and (home / 'reports' / 'openi' / '02_notes.html').exists()


# Notebooks by themselves


@full
def test_evaluation_by_itself(home, mine):
    code, printed, err = papermill(
        home, '05_evaluation.ipynb', '-p', 'run', 'mine', '-p', 'n_bootstrap', '20'
    )
    assert code == 0 and re.search(r'Run: mine \(mean AUROC (undefined|\d\.\d\d \[)', printed), err


@full
def test_a_run_that_is_not_there_is_not_made_by_a_notebook(home, mine, tmp_path):
    code, _, err = papermill(home, '05_evaluation.ipynb', '-p', 'run', 'minne')
    assert (
        code == 1
        and "there is no run 'minne'" in err
        and 'mine (mean AUROC' in err
        and not (home / 'reports' / 'minne').exists()
    )
    code, _, err = papermill(tmp_path, '04_training.ipynb', '-p', 'run', 'mine')
    assert code == 1 and 'There are no runs yet' in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ['out-04_training.ipynb']  # no ./data, no ./reports


@full
def test_a_search_for_settings_by_itself(home, mine):
    pytest.importorskip('optuna')
    code, _, err = papermill(
        home, '10_search.ipynb', *'-p what settings -p run mine -p n_trials 2 -p epochs 1'.split()
    )
    assert code == 0, err
    assert (home / 'reports' / 'mine' / 'sweep' / 'best.json').exists()


@full
@needs_data
def test_a_choice_of_encoders_by_itself(home, nih, data):
    some = json.dumps(
        {
            'tiny': dict(preset='tiny', image_size=64),
            'probe': dict(preset='tiny', image_size=64, head='probe', freeze_image=True),
        }
    )
    code, _, err = papermill(
        home,
        '10_search.ipynb',
        '-p',
        'run',
        'nih',
        '-p',
        'dataset',
        'nih',
        '-p',
        'root',
        str(data / 'nih'),
        '-p',
        'candidates',
        some,
        '-p',
        'epochs',
        '1',
        '-p',
        'n_bootstrap',
        '20',
        '-p',
        'min_cases',
        '1',
    )
    assert code == 0, err
    assert (home / 'reports' / 'nih' / 'selection.json').exists()


# The short commands


@full
def test_the_short_commands(home, mine):
    code, out, err = cxr(home, 'demo', '--print')
    assert code == 0 and 'jupyterlab' in out and '08_demo.ipynb' in out
    code, out, err = cxr(home, 'download')
    assert code == 0 and 'openi' in out
    code, out, err = cxr(home, 'where', 'mine')
    assert code == 0 and Path(out.strip()) == home / 'reports' / 'mine' / 'index.html'
    code, out, err = cxr(home, 'params', env={'PYTHONIOENCODING': 'ascii'})
    assert code == 0 and 'n_bootstrap          1000' in out, err


def test_a_root_without_its_data_set_is_refused(home, tmp_path):
    for args in (
        ['--root', tmp_path],
        ['-p', 'root', tmp_path],
        ['--dataset', 'simulated', '--root', tmp_path],
    ):
        code, out, err = cxr(home, 'run', '--run', 'never', *args)
        assert (
            code == 2
            and 'name it with --dataset, one of nih, covid, chexpert' in err
            and 'Traceback' not in err
        )
    assert not (home / 'reports' / 'never').exists()
