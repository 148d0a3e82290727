"""Two folders of one source, several sources, and lists of patients: nobody is tested on who was trained on."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cxr_lib.data.catalogue import data_root
from cxr_lib.data.joined import read_parts, source_counts
from cxr_lib.data.simulated import simulate
from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.foundations.files import read_json
from cxr_lib.foundations.run import RunFolder, located_path
from cxr_lib.stages.exploration import exploration_stage
from cxr_lib.stages.notes import notes_stage


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv('CXR_HOME', str(tmp_path / 'home'))
    return tmp_path


def own(root, ids, seed=0, label='Edema', films=None, **columns):
    "A folder of the generic source: films drawn from a seed, one observation annotated"
    root.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    drawn = [np.kron(rng.integers(20, 230, (6, 6)), np.ones((10, 10))).astype(np.uint8) for _ in ids]
    for n, film in (films or {}).items():
        drawn[n] = film
    for n, film in enumerate(drawn):
        Image.fromarray(film).save(root / f'{n}.png')
    rows = {
        'image': [f'{n}.png' for n in range(len(ids))],
        'patient_id': list(ids),
        'view': 'Frontal',
        'projection': 'PA',
        'sex': ['Female', 'Male'] * (len(ids) // 2),
        'age': 50,
        label: np.arange(len(ids)) % 2,
    }
    pd.DataFrame(rows | columns).to_csv(root / 'studies.csv', index=False)
    return root


def numbered(first, n=20):
    return [f'p{i}' for i in range(first, first + n)]


def explore(home, **params):
    run = RunFolder(home / 'run')
    return run, exploration_stage(run, tuning_fraction=0.3, **params)


def film_of(folder, name):
    return np.array(Image.open(folder / name))


# Two folders of one source


@pytest.fixture
def two(home):
    return own(home / 'a' / 'train', numbered(0)), own(home / 'b' / 'test', numbered(100), seed=1)


def test_patients_of_the_first_folder_train_and_tune_and_those_of_the_second_are_tested(home, two):
    run, table = explore(home, dataset='csv', root=str(two[0]), test_root=str(two[1]))
    first = table.patient_id.isin(numbered(0))
    assert set(table.split[first]) == {'train', 'tuning'}
    assert set(table.split[~first]) == {'test'}
    assert len(table) == 40


def test_images_of_both_folders_are_found_below_one(home, two):
    run, table = explore(home, dataset='csv', root=str(two[0]), test_root=str(two[1]))
    assert data_root(run) == home
    assert all((data_root(run) / image).is_file() for image in table.image)
    assert {image.split('/')[0] for image in table.image} == {'a', 'b'}


def test_both_folders_are_recorded(home, two):
    run, _ = explore(home, dataset='csv', root=str(two[0]), test_root=str(two[1]))
    source = read_json(run / 'source.json')
    assert [located_path(source[k]) for k in ('train_root', 'test_root')] == list(two)
    assert run.params('exploration')['test_root'] == str(two[1])


def test_a_folder_inside_the_other_works_too(home):
    outer = own(home / 'all', numbered(0))
    inner = own(home / 'all' / 'held_out', numbered(100), seed=1)
    run, table = explore(home, dataset='csv', root=str(outer), test_root=str(inner))
    assert all((data_root(run) / image).is_file() for image in table.image)


def test_a_patient_in_both_folders_is_refused_and_named(home):
    a, b = own(home / 'a', numbered(0)), own(home / 'b', numbered(18), seed=1)
    with pytest.raises(ValueError, match=r'2 patients are both in .*a.* and in .*b.*: p18, p19\.'):
        explore(home, dataset='csv', root=str(a), test_root=str(b))
    assert not (home / 'run' / 'source.json').exists()


def test_a_film_in_both_folders_is_refused_and_named_at_another_exposure(home):
    a = own(home / 'a', numbered(0))
    same = (film_of(a, '3.png') * 0.8 + 20).astype(np.uint8)
    b = own(home / 'b', numbered(100), seed=1, films={7: same})
    with pytest.raises(ValueError, match=r'1 pair of films .*a/3\.png and b/7\.png'):
        explore(home, dataset='csv', root=str(a), test_root=str(b), scan=2)


def test_splits_that_the_folders_bring_along_keep_their_meaning_and_are_listed(home):
    a = own(home / 'a', numbered(0), split=['train'] * 10 + ['tuning'] * 5 + ['test'] * 5)
    b = own(home / 'b', numbered(100), seed=1, split=['train'] * 12 + ['test'] * 8)
    run, table = explore(home, dataset='csv', root=str(a), test_root=str(b))
    assert table.split.value_counts().to_dict() == {'train': 10, 'test': 8, 'tuning': 5}
    listed = pd.read_csv(run / 'exclusions.csv').reason.value_counts()
    assert listed['a training image of the folder that is tested on'] == 12
    assert listed['a test image of the folder that is trained on'] == 5


def test_simulated_patients_have_no_test_folder(home, two):
    with pytest.raises(ValueError, match="'simulated' has no folder"):
        explore(home, dataset='simulated', test_root=str(two[1]))


# Patients that must not be trained on


def listing(home, *names):
    path = home / 'patients.txt'
    path.write_text('# test patients\n' + '\n'.join(names) + '\n')
    return str(path)


def test_a_listed_patient_among_the_training_patients_stops_the_run(home, two):
    path = listing(home, 'p3', 'p100', 'p5')
    with pytest.raises(
        ValueError, match=r'2 patients of the list exclude_patients \(patients.txt\).*: p3, p5\.'
    ):
        explore(home, dataset='csv', root=str(two[0]), test_root=str(two[1]), exclude_patients=path)
    assert not (home / 'run' / 'source.json').exists()


def test_test_patients_may_be_listed_and_are_remembered_for_the_training(home, two):
    roots = dict(dataset='csv', root=str(two[0]), test_root=str(two[1]))
    run, table = explore(home, **roots, exclude_patients=listing(home, 'p100', 'p101', 'nobody'))
    assert (run / 'exclude_patients.txt').read_text().split() == ['p100', 'p101']
    explore(home, **roots)
    assert not (run / 'exclude_patients.txt').exists()


def test_a_list_that_is_a_table_is_refused_by_line(home, two):
    path = listing(home, 'p1', 'p2,F,34')
    with pytest.raises(
        ValueError, match=r"patients.txt line 3 is 'p2,F,34'; expected one patient identifier"
    ):
        explore(home, dataset='csv', root=str(two[0]), exclude_patients=path)


# Several sources


@pytest.fixture
def wards(home):
    return (
        own(home / 'north', numbered(0), label='Edema'),
        own(home / 'south', numbered(0), seed=1, label='Fracture', note='cough'),
    )


def both(wards):
    return dict(dataset='csv,csv', root=','.join(map(str, wards)))


def test_patients_of_different_sources_with_the_same_number_are_different_people(home, wards):
    _, table = explore(home, **both(wards))
    assert table.patient_id.nunique() == 40
    assert set(table.patient_id.str.split(':').str[0]) == {'csv', 'csv-2'} == set(table.source)


def test_an_observation_that_a_source_does_not_annotate_is_missing_and_never_negative(home, wards):
    _, table = explore(home, **both(wards))
    assert table.Fracture[table.source == 'csv'].isna().all()
    assert table.Edema[table.source == 'csv-2'].isna().all()
    counts = source_counts(table)
    assert counts.loc['Edema'].tolist() == ['10 of 20', '']
    assert counts.loc['Fracture'].tolist() == ['', '10 of 20']


def test_every_source_has_all_three_splits_and_its_images_are_found(home, wards):
    run, table = explore(home, **both(wards))
    assert (table.groupby('source').split.nunique() == 3).all()
    assert all((data_root(run) / image).is_file() for image in table.image)
    assert [part['below'] for part in read_json(run / 'source.json')['sources']] == ['north', 'south']


def test_a_film_in_two_sources_is_refused(home, wards):
    east = own(home / 'east', numbered(0), seed=2, films={4: film_of(wards[0], '6.png')})
    with pytest.raises(ValueError, match=r'north/6\.png and east/4\.png|east/4\.png and north/6\.png'):
        explore(home, dataset='csv,csv', root=f'{wards[0]},{east}')


def test_tables_of_ones_own_keep_the_notes_that_some_of_them_have(home, wards):
    run, _ = explore(home, **both(wards))
    table = notes_stage(run, probe_encoder=False)
    assert (
        read_json(run / 'notes.json')['mode'] == 'real'
    )  # of a table of one's own: real where there are any
    assert table.note[table.source == 'csv'].isna().all()


def test_a_file_of_sources_names_them_with_folders_beside_it(home, wards):
    path = home / 'sources.yaml'
    path.write_text(
        'sources:\n- {name: north, dataset: csv, root: north}\n- {name: south, dataset: csv, root: south}\n'
    )
    run, table = explore(home, dataset=str(path))
    assert set(table.source) == {'north', 'south'}
    assert read_json(run / 'source.json')['dataset'] == 'csv,csv'


@pytest.mark.parametrize(
    'text, said',
    [
        ('- {dataset: csv, folder: north}', "source 1: unknown entry 'folder'"),
        ('- {root: north}', 'source 1: no dataset'),
        ('north: south', 'expected a list of sources'),
        ('- {dataset: csv, root: north}', 'names one source'),
        ('[', 'not readable YAML'),
        ('- {dataset: csv, root: west}\n- {dataset: csv, root: north}', 'west'),
    ],
)
def test_what_is_wrong_with_a_file_of_sources_is_said(home, wards, text, said):
    path = home / 'sources.yaml'
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        read_parts(str(path))


def test_folders_are_counted(home, wards):
    with pytest.raises(ValueError, match='2 of the sources csv, csv need a folder, and root names 1'):
        read_parts('csv,csv', str(wards[0]))


def test_two_simulated_worlds_keep_their_own_facts(home):
    path = home / 'worlds.yaml'
    worlds = [
        dict(name=world, dataset='simulated', options=dict(world=world, n_patients=24, image_size=64))
        for world in ('plain', 'shifted')
    ]
    path.write_text(json.dumps(worlds))
    run, table = explore(home, dataset=str(path))
    noted = notes_stage(run, probe_encoder=False)
    assert read_json(run / 'source.json')['simulated'] is True
    assert table.source.value_counts().to_dict() == {'plain': 24, 'shifted': 24}
    alone = pd.read_parquet(simulate(24, 64, 0, world='plain') / 'latent.parquet')
    mine = noted[noted.source == 'plain']
    assert mine.age.tolist() == alone.age.tolist()
    assert mine[list(OBSERVATIONS)].notna().any(axis=None)
    assert noted.note.notna().any()
