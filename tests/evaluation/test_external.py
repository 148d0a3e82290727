"""Any model's predictions: reports alone and beside ours, matching of images, malformed files, the notebook.

Real data lie in ../shared/data beside the repository; without that folder, the tests that need them skip."""

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from cxr_lib.foundations.core import COMPETITION, OBSERVATIONS
from cxr_lib.foundations.files import read_json
from cxr_lib.evaluation.external import (
    IMAGE_COLUMNS,
    NO_PROBABILITIES,
    ONE_TO_ONE,
    choose_columns,
    compare_external,
    compare_two_models,
    evaluate_external,
    external_metrics_table,
    external_table,
    external_verdict,
    join_images,
    malformed_examples,
    plot_external,
    plot_external_metrics,
    plot_two_models,
    read_external,
    read_labels,
    two_models_table,
    write_external,
)
from cxr_lib.metrics.calibration import calibration_error
from cxr_lib.metrics.comparison import delong_test, holm
from cxr_lib.metrics.ranking import resample_patients
from cxr_lib.metrics.predictions import synthetic_predictions
from cxr_lib.data.public import load_nih

DATA = Path(__file__).resolve().parent.parent.parent.parent / 'shared' / 'data'
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason=f'the shared real data ({DATA}) are not on this machine'
)


@pytest.fixture(scope='module')
def practice():
    return synthetic_predictions(120, seed=1).query('split == "test"').reset_index(drop=True)


@pytest.fixture(scope='module')
def other(practice):
    "Another model's probabilities for the same images"
    return (
        practice[[f'best_image/{o}' for o in COMPETITION]]
        .set_axis(list(COMPETITION), axis=1)
        .set_index(practice['image'])
    )


def written(folder, table, name='other.csv', **more):
    table.to_csv(folder / name, index=False, **more)
    return folder / name


# ---- malformed files

#: What is wrong -> what the message must hold: the place and the remedy.
MESSAGES = {
    'missing file': ('does not exist', 'give the path'),
    'empty file': ('0 bytes', 'copy or write it again'),
    'header only': ('no rows', 'at least one image'),
    'no image column': ('picture, Edema', 'image_column'),
    'no observation column': ('water, heart', 'mapping='),
    'text in a probability': ('row 3 (image 0003.png)', "Edema is 'high'", 'a number with a decimal point'),
    'probability above 1': ('row 3 (image 0003.png)', 'Edema is 1.2;', 'from 0 to 1'),
    'negative probability': ('row 3 (image 0003.png)', 'Edema is -0.1;', 'from 0 to 1'),
    'missing probability': ('row 3 (image 0003.png)', 'Edema is nan;', 'predict it again'),
    'an infinite score': ('row 3', 'Edema is inf', 'a finite number'),
    'two columns of one observation': ('row 1', 'Edema, edema, which all are Edema', 'keep one'),
    'an image twice': ('row 12', '0005.png', 'drop the repetition'),
    'a column twice': ('Edema 2 times', 'keep one'),
    'other images': ('none of its 12 images', 'other_0000.png', 'name images alike'),
    'two files of one name': ('a/0000.png and b/0000.png', 'with their folders'),
    'bars': ('image|Edema|Cardiomegaly', 'image_column'),
    'Latin-1': ('not UTF-8', 'export it as CSV'),
    'a folder': ('is a folder', 'give a file'),
    'gzip cut short': ('damaged or cut short', 'copy it again'),
    'JSON in disguise': ('is JSON', 'to_csv'),
    'a binary file': ('binary', 'export it as CSV'),
    'a line too long': ('line 2 has 4 cells, the header 3', 'as many cells'),
    'no image name in a row': ('row 3', 'the name of an image'),
    'labels in words': ('word_labels.csv row 0 (image 0000.png)', "Edema is 'no'", '1 (positive)'),
}


@pytest.fixture(scope='module')
def malformed(tmp_path_factory):
    return {
        what: (path, labels)
        for what, path, labels in malformed_examples(tmp_path_factory.mktemp('malformed'))
    }


def test_there_are_more_than_twenty_and_each_has_its_message(malformed):
    assert len(malformed) >= 20
    assert set(malformed) == set(MESSAGES)


@pytest.mark.parametrize('what', MESSAGES)
def test_malformed_files_are_refused_with_place_and_remedy(malformed, what):
    path, labels = malformed[what]
    with pytest.raises(FileNotFoundError if what == 'missing file' else ValueError) as refused:
        evaluate_external(path, labels, n_bootstrap=5)
    message = str(refused.value)
    assert str(labels if what == 'labels in words' else path) in message
    assert 'np.' not in message
    for part in MESSAGES[what]:
        assert part in message, message


def test_the_same_files_without_their_fault_are_read(malformed):
    path, labels = malformed['labels in words']  # its predictions are good
    metrics = evaluate_external(path, labels.with_name('labels.csv'), n_bootstrap=5, min_cases=2)
    assert metrics['n_images'] == 12
    assert metrics['n_patients'] == 6
    assert metrics['means']['evaluable']['n_observations'] == 2


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(['.csv', '.parquet', '.csv.gz', '']))
def test_no_bytes_whatever_give_another_kind_of_error(tmp_path_factory, data, suffix):
    path = tmp_path_factory.getbasetemp() / f'bytes{suffix}'
    path.write_bytes(data)
    with pytest.raises(ValueError, match='bytes'):
        read_external(path)


def test_a_nameless_column_with_empty_cells_is_left_out(tmp_path):
    path = tmp_path / 'damaged.csv'
    path.write_bytes(b'image,Edema,\rneumonia\na.png,0.125,0.0\nb.png,0.5,1.0\n')
    assert read_external(path)['Edema'].to_dict() == {'a.png': 0.125, 'b.png': 0.5}


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_good_file_that_is_damaged_is_refused_or_read_as_it_is(tmp_path_factory, data):
    "One byte changed: never a traceback of pandas, never a value outside 0 to 1"
    good = (
        pd.DataFrame(
            {'image': ['a.png', 'b.png', 'c.png'], 'Edema': [0.125, 0.5, 0.75], 'Pneumonia': [0.0, 1.0, 0.25]}
        )
        .to_csv(index=False)
        .encode()
    )
    at, byte = data.draw(st.integers(0, len(good) - 1)), data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / 'damaged.csv'
    path.write_bytes(good[:at] + bytes([byte]) + good[at + 1 :])
    try:
        found = read_external(path)
    except ValueError as e:
        assert 'damaged.csv' in str(e)
        return
    assert found.shape[0] >= 1
    assert found.index.is_unique
    assert found.to_numpy().min() >= 0
    assert found.to_numpy().max() <= 1


@pytest.mark.parametrize(
    'text, expected',
    [
        ('image,Edema\na.png,1.3\n', ['row 0', 'a.png', '1.3', 'from 0 to 1']),
        ('image,Edema\na.png,\n', ['row 0', 'every image']),
        ('image,Edema\na.png,inf\n', ['row 0', 'a finite number']),
        ('image,Edema\na.png,"0,5"\n', ['row 0', "'0,5'", 'decimal point']),
        ('image,Hernia\na.png,.1\n', ['no column maps', 'mapping']),
        ('\nimage,Edema\na.png,.5\n', ['first line is empty']),
        ('image,Edema\n"a.png,.5\n', ['line 2 has 1 cells']),
        ('PK\x03\x04', ['zip archive or an Excel file']),
        ('   ', ['no header']),
    ],
)
def test_more_malformed_texts(tmp_path, text, expected):
    (tmp_path / 'other.csv').write_text(text)
    with pytest.raises(ValueError) as refused:
        read_external(tmp_path / 'other.csv')
    for part in ['other.csv', *expected]:
        assert part in str(refused.value)


def test_a_folder_names_a_file_in_it(tmp_path):
    written(tmp_path, pd.DataFrame({'image': ['a'], 'Edema': [0.1]}))
    with pytest.raises(ValueError, match='is a folder; give a file in it, such as other.csv'):
        read_external(tmp_path)
    with pytest.raises(ValueError, match='no file was named'):
        read_external('')


# ---- reading


@pytest.mark.parametrize('column', IMAGE_COLUMNS)
def test_images_are_found_under_the_usual_names_and_keep_their_zeros(tmp_path, column):
    path = written(
        tmp_path,
        pd.DataFrame(
            {
                column: ['00012', '7'],
                'prob_Effusion': [0.1, 1],
                'pleural_thickening': [0, 0.5],
                'Mass': [0.2, 0.3],
                'Nodule': [0.4, 0.1],
                'Hernia': [0.9, 0.9],
            }
        ),
    )
    found = read_external(path)
    assert list(found.index) == ['00012', '7']
    assert list(found) == ['Lung Lesion', 'Pleural Effusion', 'Pleural Other']
    assert found['Lung Lesion'].tolist() == [0.4, 0.3]


@pytest.mark.parametrize(
    'data',
    [
        b'image;Edema\na.png;0,25\nb.png;1\n',
        b'image\tEdema\na.png\t0.25\nb.png\t1\n',
        b'image,Edema\na.png,0.25,\nb.png,1,\n',
        'image,Edema\na.png,0.25\nb.png,1\n'.encode('utf-16'),
        b'image,Edema,Edema\na.png,.25,0.25\nb.png,1,1\n',
        b'image,Edema\n1,a.png,.25\n2,b.png,1\n',
    ],
)
def test_semicolons_tabs_trailing_commas_and_utf16_give_the_same_numbers(tmp_path, data):
    (tmp_path / 'other.csv').write_bytes(data)
    found = read_external(tmp_path / 'other.csv')
    assert found.index.tolist() == ['a.png', 'b.png']
    assert found.columns.tolist() == ['Edema']
    assert found['Edema'].tolist() == [0.25, 1]


def test_parquet_gzip_and_a_byte_order_mark_are_read_whatever_the_name(tmp_path, other):
    table = other.reset_index()
    table.to_parquet(tmp_path / 'a.csv')
    written(tmp_path, table, 'b.csv.gz')
    (tmp_path / 'c.csv').write_bytes(gzip.compress(table.to_csv(index=False).encode()))
    written(tmp_path, table, 'd.csv', encoding='utf-8-sig')
    for name in ('a.csv', 'b.csv.gz', 'c.csv', 'd.csv'):
        pd.testing.assert_frame_equal(
            read_external(tmp_path / name), other[[o for o in OBSERVATIONS if o in other]], check_names=False
        )


def test_columns_can_be_mapped(tmp_path):
    path = written(tmp_path, pd.DataFrame({'file name': ['01.png'], 'water': [0.1]}))
    assert read_external(path, 'file name', {'water': 'Edema'}).loc['01.png', 'Edema'] == 0.1
    with pytest.raises(ValueError, match="'Oedema' is not an observation"):
        read_external(path, 'file name', {'water': 'Oedema'})
    with pytest.raises(ValueError, match='mapping names the column fire'):
        read_external(path, 'file name', {'fire': 'Edema'})


@pytest.mark.parametrize(
    'columns, known',
    [
        ({'image': ['a', 'b'], 'patient_id': [1, 2]}, True),
        ({'Path': ['valid/patient1/study1/view1_frontal.jpg', 'valid/patient1/study1/view2.jpg']}, True),
        ({'image': ['a', 'b']}, False),
        ({'image': ['a', 'b'], 'patient_id': ['x', None]}, False),
    ],
)
def test_labels_know_their_patients_or_say_so(tmp_path, columns, known):
    found = read_labels(
        written(tmp_path, pd.DataFrame(columns | {'Edema': [1, ''], 'label/Fracture': [-1, 0]}))
    )
    assert found.attrs['patients_known'] == known
    assert found['label/Edema'].isna().tolist() == [False, True]
    assert found['label/Fracture'].tolist() == [-1, 0]
    assert found['label/Pneumonia'].isna().all()
    assert set(found['patient_id']) == (
        {'1', '2'} if 'patient_id' in columns and known else {'patient1'} if known else {'a', 'b'}
    )


@pytest.mark.parametrize(
    'table, expected',
    [
        ({'image': ['a'], 'Water': [1]}, 'no column is an observation'),
        ({'image': ['a'], 'Edema': [0.5]}, 'Edema is 0.5'),
        ({'image': ['a', 'a'], 'Edema': [1, 0]}, 'each image once'),
        ({'Image Index': ['a'], 'Finding Labels': ['Gout']}, "Finding Labels is 'Gout'"),
        ({'picture': ['a'], 'Edema': [1]}, 'no column names the image'),
    ],
)
def test_bad_labels_are_refused(tmp_path, table, expected):
    path = written(tmp_path, pd.DataFrame(table))
    for labels in (path, pd.DataFrame(table)):
        with pytest.raises(ValueError, match=expected):
            read_labels(labels)


# ---- matching

NAMES = [f'patient{p}/study{s}/view{v}.jpg' for p in (1, 2) for s in (1, 2) for v in (1, 2)]


@pytest.mark.parametrize(
    'theirs, ours',
    [
        ('{}', '{}'),
        ('CheXpert-v1.0-small/valid/{}', 'valid/{}'),
        ('/data/{}', '{}'),
        ('{}', '../other/place/{}'),
        ('a/b/c/{}', 'd/e/f/{}'),
    ],
)
def test_images_are_matched_by_the_end_of_their_path(theirs, ours):
    r = np.random.default_rng(0)
    external = pd.DataFrame({'Edema': r.random(8)}, index=[theirs.format(n) for n in NAMES]).sample(
        frac=1, random_state=1
    )
    labels = pd.DataFrame(
        {'image': [ours.format(n) for n in NAMES], 'patient_id': range(8), 'Edema': [0, 1] * 4}
    )
    metrics = evaluate_external(external, labels, n_bootstrap=2)
    by_name = external['Edema'].set_axis([n.replace(theirs.format(''), '', 1) for n in external.index])
    assert metrics['n_images'] == 8
    assert metrics['observations']['Edema']['auroc'] == pytest.approx(
        roc_auc_score(labels['Edema'], by_name[NAMES])
    )


def test_names_that_do_not_tell_images_apart_are_refused():
    external = pd.DataFrame({'Edema': [0.1, 0.2]}, index=['view1.jpg', 'view2.jpg'])
    labels = pd.DataFrame({'image': NAMES, 'Edema': [0, 1] * 4})
    with pytest.raises(
        ValueError, match=r'patient1/study1/view1.jpg and patient1/study2/view1.jpg have the same file name'
    ):
        evaluate_external(external, labels)


def test_what_is_left_out_is_said(other, practice):
    metrics = evaluate_external(other.iloc[:60], practice.iloc[20:], n_bootstrap=5)
    assert metrics['n_images'] == 40
    assert metrics['n_labelled'] == len(practice) - 20
    assert len(metrics['remarks']) == 2
    assert any('20 predictions are of images without labels' in s for s in external_verdict(metrics))


# ---- the numbers


@pytest.fixture(scope='module')
def metrics(other, practice):
    return evaluate_external(other, practice, name='a reader', n_bootstrap=50, seed=3, simulated=True)


def test_values_agree_with_scikit_learn(metrics, other, practice):
    for o in COMPETITION:
        known, m = practice[f'label/{o}'].isin([0, 1]).to_numpy(), metrics['observations'][o]
        y, p = practice.loc[known, f'label/{o}'], other.loc[known, o].to_numpy()
        assert m['auroc'] == pytest.approx(roc_auc_score(y, p))
        assert m['auprc'] == pytest.approx(average_precision_score(y, p))
        assert m['brier'] == pytest.approx(brier_score_loss(y, p))
        assert m['ece'] == pytest.approx(calibration_error(y, p))
        assert m['prevalence'] == pytest.approx(y.mean())
        assert m['n_positive'] + m['n_negative'] == known.sum()
        for k in ('auroc', 'auprc', 'brier', 'ece'):
            assert m[f'{k}_low'] < m[f'{k}_high']


def test_a_resample_is_the_metric_of_the_repeated_sample(other, practice):
    "The interval of two resamples, by hand"
    clusters, weights = resample_patients(practice['patient_id'], 2, 3)
    m, o = evaluate_external(other, practice, n_bootstrap=2, seed=3)['observations']['Edema'], 'Edema'
    known = np.flatnonzero(practice[f'label/{o}'].isin([0, 1]))
    again = [np.repeat(known, weights[clusters[known], b].astype(int)) for b in (1, 2)]
    y, p = practice[f'label/{o}'].to_numpy(), other[o].to_numpy()
    for name, function in (('brier', brier_score_loss), ('auroc', roc_auc_score)):
        found = [function(y[rows], p[rows]) for rows in again]
        assert [m[f'{name}_low'], m[f'{name}_high']] == pytest.approx(list(np.percentile(found, [2.5, 97.5])))


def test_undefined_is_nan_with_a_reason(other, practice):
    labels = practice.assign(**{'label/Edema': 0.0, 'label/Cardiomegaly': np.nan})
    labels.loc[1:, 'label/Atelectasis'] = 0
    labels.loc[0, 'label/Atelectasis'] = 1
    metrics = evaluate_external(other, labels, n_bootstrap=10, min_cases=5)
    found = metrics['observations']
    assert np.isnan(found['Edema']['auroc'])
    assert 'no positive' in found['Edema']['reason']
    assert not np.isnan(found['Edema']['brier'])
    assert np.isnan(found['Cardiomegaly']['ece'])
    assert found['Cardiomegaly']['reason'] == 'not labelled in these data'
    assert not np.isnan(found['Atelectasis']['auroc'])
    assert np.isnan(found['Atelectasis']['auroc_low'])
    assert 'only 1 positive' in found['Atelectasis']['reason']
    assert found['Fracture']['reason'] == 'external does not predict it'
    assert metrics['means']['competition']['observations'] == [
        o for o in ('Consolidation', 'Pleural Effusion') if found[o]['evaluable']
    ]
    assert metrics['means']['one_to_one']['few'] == ['Atelectasis']
    assert any('Atelectasis with 1 positive' in s for s in external_verdict(metrics))
    none = evaluate_external(other[['Edema']], labels, n_bootstrap=10)
    assert np.isnan(none['means']['evaluable']['auroc'])
    assert any('No mean' in s for s in external_verdict(none))


def test_a_table_is_checked_like_a_file(other, practice):
    with pytest.raises(ValueError, match='Edema is 1.5'):
        evaluate_external(other.assign(Edema=[1.5] + [0.5] * (len(other) - 1)), practice)
    with pytest.raises(ValueError, match='no column named as an observation'):
        evaluate_external(other.add_prefix('prob_'), practice)


def test_everything_is_written_and_can_be_drawn_from_its_json(metrics, tmp_path):
    files = write_external(metrics, tmp_path / 'new')
    assert [f.name for f in files] == [
        'external_metrics.json',
        'external_metrics.csv',
        'external_metrics.png',
    ]
    assert all(f.stat().st_size for f in files)
    stored = read_json(files[0])
    assert stored['schema'] == 'cxr_lib.external/1'
    assert external_verdict(stored) == external_verdict(metrics)
    assert external_verdict(metrics)[0].startswith('SIMULATED')
    assert external_metrics_table(stored).equals(external_metrics_table(metrics))
    assert pd.read_csv(files[1]).shape[0] == 14
    assert 'SIMULATED' in plot_external_metrics(stored).get_supxlabel()
    real = plot_external_metrics(json.loads(json.dumps(metrics)) | dict(simulated=False))
    assert 'SIMULATED' not in real.get_supxlabel()


# ---- beside ours


def test_the_comparison_agrees_with_the_report_alone(metrics, other, practice):
    comparison = compare_external(practice, other, 'a reader', n_bootstrap=50, seed=3).set_index(
        'observation'
    )
    for o in COMPETITION:
        for end in ('', '_low', '_high'):
            assert comparison.loc[o, f'external{end}'] == metrics['observations'][o][f'auroc{end}']
    assert comparison.loc['Mean', 'external'] == metrics['means']['evaluable']['auroc']
    assert comparison.loc['Mean', 'n_images'] == len(practice)
    itself = compare_external(
        practice,
        practice[[f'fused/{o}' for o in OBSERVATIONS]]
        .set_axis(list(OBSERVATIONS), axis=1)
        .set_index(practice['image']),
        n_bootstrap=10,
    )
    assert (itself[['fused_minus_external', 'fused_minus_external_low']].fillna(0) == 0).all(axis=None)
    text = external_table(comparison.reset_index())
    assert 'a reader' in text
    assert text.loc['Fracture', 'a reader'] == ''
    assert 'does not predict' in text.loc['Fracture', 'remark']
    assert 'SIMULATED' in plot_external(comparison.reset_index(), True).get_supxlabel()
    with pytest.raises(ValueError, match=r'none of its \d+ images is among'):
        compare_external(practice, other.set_axis([f'x{i}' for i in range(len(other))]))


# ---- which column is which


def scored(practice, **columns):
    return pd.DataFrame({'image': practice['image'], **columns})


def test_an_exact_name_goes_before_other_words_for_it(tmp_path, practice):
    "Infiltration is always higher and ranks backwards; Lung Opacity ranks perfectly"
    y = practice['label/Lung Opacity'].fillna(0).clip(0, 1)
    r = np.random.default_rng(0).random(len(y)) / 100
    for columns in (
        dict(Infiltration=0.99 - 0.5 * y - r, **{'Lung Opacity': 0.2 * y + r}),
        {'Lung_Opacity': 0.2 * y + r, 'prob_Infiltration': 0.99 - 0.5 * y - r},
    ):
        metrics = evaluate_external(written(tmp_path, scored(practice, **columns)), practice, n_bootstrap=5)
        assert metrics['observations']['Lung Opacity']['auroc'] == 1
        words = 'Lung Opacity is read from the column of that name', 'Infiltration', 'is not used'
        assert sum(all(w in m for w in words) for m in metrics['remarks']) == 1
        assert any('is not used' in said for said in external_verdict(metrics))


def test_two_other_words_for_one_observation_are_merged_with_a_remark(tmp_path):
    found = read_external(
        written(
            tmp_path,
            pd.DataFrame(
                {'image': ['a', 'b'], 'Mass': [0.2, 0.3], 'prob_nodule': [0.4, 0.1], 'Hernia': [0, 1]}
            ),
        )
    )
    assert found['Lung Lesion'].tolist() == [0.4, 0.3]
    assert found.attrs['remarks'] == [
        'Lung Lesion is the highest of Mass, prob_nodule in each image',
        'columns that are not used: Hernia',
    ]


@pytest.mark.parametrize('names', [['Edema', 'edema '], ['Edema', 'prob_Edema'], ['Oedema', 'EDEMA']])
def test_two_columns_of_one_name_must_not_contradict_each_other(tmp_path, names):
    same = pd.DataFrame([['a', 0.1, 0.1], ['b', 0.7, 0.7]], columns=['image', *names])
    assert read_external(written(tmp_path, same))['Edema'].tolist() == [0.1, 0.7]
    same.iloc[1, 2] = 0.6
    with pytest.raises(ValueError, match=r'other.csv row 2 has .*Edema.*0.7 and 0.6.*keep one'):
        read_external(written(tmp_path, same))


def test_every_spelling_of_the_fourteen_is_understood():
    for spell in (
        str,
        str.upper,
        lambda o: o.replace(' ', '_'),
        lambda o: f'prob_{o}',
        lambda o: f' {o.lower()} ',
    ):
        chosen, unused, remarks = choose_columns([spell(o) for o in OBSERVATIONS])
        assert list(chosen) == list(OBSERVATIONS)
        assert not unused
        assert not remarks


@pytest.mark.parametrize(
    'header',
    [
        'image,Edema,,Pneumonia,',
        'image,Edema,Unnamed: 2,Pneumonia,Unnamed: 4',
        ',image,Edema,Unnamed: 0.1,Pneumonia',
    ],
)
def test_columns_without_a_name_are_not_used_and_the_report_says_so(tmp_path, header):
    "torchxrayvision writes an empty name for a head that a model lacks; pandas calls such columns Unnamed"
    cells = [
        [
            '0.2' if c == 'Edema' else '0.4' if c == 'Pneumonia' else f'{k}.png' if c == 'image' else '0.99'
            for c in header.split(',')
        ]
        for k in range(3)
    ]
    (tmp_path / 'xrv.csv').write_text('\n'.join([header, *map(','.join, cells)]) + '\n')
    found = read_external(tmp_path / 'xrv.csv')
    assert list(found) == ['Edema', 'Pneumonia']
    assert (found == [0.2, 0.4]).all(axis=None)
    assert any('without a name are not used' in m for m in found.attrs['remarks'])


def test_labels_in_other_words_are_understood_and_an_exact_name_wins(tmp_path):
    table = pd.DataFrame(
        {
            'image': list('abc'),
            'Airspace Opacity': [1, 0, -1],
            'Mass': [1, 0, None],
            'Nodule': [0, 0, None],
            'pleural_effusion': [0, 1, 1],
            'Edema': [0, 0, 1],
            'label/Edema': [0, None, 1],
        }
    )
    found = read_labels(written(tmp_path, table))
    assert found['label/Lung Opacity'].tolist() == [1, 0, -1]
    assert found['label/Pleural Effusion'].tolist() == [0, 1, 1]
    assert found['label/Lung Lesion'].tolist()[:2] == [1, 0]
    assert found['label/Lung Lesion'].isna().tolist() == [False, False, True]
    assert found['label/Edema'].tolist() == [0, 0, 1]
    assert found.attrs['remarks'] == ['Lung Lesion is positive where one of these is: Mass, Nodule']
    both = read_labels(written(tmp_path, table.assign(**{'Lung Opacity': [0, 0, 0]})))
    assert both['label/Lung Opacity'].tolist() == [0, 0, 0]
    assert any('Airspace Opacity' in m for m in both.attrs['remarks'])


# ---- scores


def test_logits_rank_like_their_probabilities_and_calibration_is_undefined(tmp_path, other, practice):
    logits = np.log(other / (1 - other))
    path = written(tmp_path, logits.reset_index())
    plain, scores = (
        evaluate_external(other, practice, n_bootstrap=20),
        evaluate_external(path, practice, n_bootstrap=20),
    )
    assert plain['scale'] == 'probabilities'
    assert scores['scale'] == 'scores'
    for o in COMPETITION:
        for m in ('auroc', 'auprc', 'auroc_low', 'auprc_high'):
            assert scores['observations'][o][m] == pytest.approx(plain['observations'][o][m])
        assert all(
            np.isnan(scores['observations'][o][m]) for m in ('brier', 'ece', 'ece_low', 'mean_probability')
        )
        assert scores['observations'][o]['prevalence'] == plain['observations'][o]['prevalence']
    said = external_verdict(scores)
    assert f'Brier score and calibration error are {NO_PROBABILITIES}.' in said
    assert any('are read as scores' in m for m in said)
    table = external_metrics_table(scores)
    assert (table.loc[list(COMPETITION), ['Brier', 'ECE']] == NO_PROBABILITIES).all(axis=None)
    assert table.loc['Fracture', 'ECE'] == '–'
    write_external(scores, tmp_path / 'out')
    drawn = [
        t.get_text()
        for t in plot_external_metrics(read_json(tmp_path / 'out' / 'external_metrics.json')).axes[2].texts
    ]
    assert NO_PROBABILITIES.replace(': ', ':\n') in drawn
    assert evaluate_external(read_external(path), practice, n_bootstrap=5)['scale'] == 'scores'


def test_what_looks_like_percentages_is_not_rescaled_in_silence(tmp_path, other, practice):
    path = written(tmp_path, (100 * other).reset_index())
    found = read_external(path)
    assert found.attrs['scale'] == 'scores'
    assert np.allclose(found[list(COMPETITION)], 100 * other)
    assert any(
        "may be percentages, but were not divided by 100 (scale='percent' does that)" in m
        for m in found.attrs['remarks']
    )
    percent = evaluate_external(path, practice, n_bootstrap=5, scale='percent')
    assert percent['scale'] == 'probabilities'
    assert any('divided by 100' in m for m in percent['remarks'])
    whole = evaluate_external(other, practice, n_bootstrap=5)
    assert percent['observations']['Edema']['ece'] == pytest.approx(whole['observations']['Edema']['ece'])
    with pytest.raises(ValueError, match='a percentage from 0 to 100'):
        read_external(written(tmp_path, (200 * other).reset_index()), scale='percent')


def test_the_scale_can_be_said(tmp_path, other, practice):
    path = written(tmp_path, other.reset_index())
    said = evaluate_external(path, practice, n_bootstrap=5, scale='scores')
    assert said['scale'] == 'scores'
    assert np.isnan(said['observations']['Edema']['ece'])
    assert said['observations']['Edema']['auroc'] > 0.5
    with pytest.raises(
        ValueError, match=r"Cardiomegaly is .*a probability from 0 to 1; .*pass scale='scores'"
    ):
        read_external(written(tmp_path, (5 * other).reset_index()), scale='probabilities')
    with pytest.raises(
        ValueError, match="scale is 'odds'; expected one of auto, probabilities, percent, scores"
    ):
        read_external(path, scale='odds')


def test_scores_stand_beside_ours(other, practice):
    logits = np.log(other / (1 - other))
    one, two = (compare_external(practice, t, 'a reader', n_bootstrap=10) for t in (other, logits))
    assert np.allclose(one['external'].dropna(), two['external'].dropna())


# ---- studies

VIEWS_OF = [
    (
        f'CheXpert-v1.0/patient{p}/study{s}',
        f'CheXpert-v1.0/test/patient{p}/study{s}/view{v}_{"frontal" if v == 1 else "lateral"}.jpg',
    )
    for p in range(64741, 64761)
    for s in (1, 2)
    for v in ((1, 2) if p % 2 else (1,))
]


@pytest.fixture(scope='module')
def studies():
    "CheXpert's own test table: labels by study; predictions by image"
    r = np.random.default_rng(5)
    names = list(dict.fromkeys(s for s, _ in VIEWS_OF))
    labels = pd.DataFrame(
        {
            'Study': names,
            'Edema': r.integers(0, 2, len(names)),
            'Airspace Opacity': r.integers(0, 2, len(names)),
        }
    )
    return labels, pd.DataFrame(
        {'Edema': r.random(len(VIEWS_OF)), 'Lung Opacity': r.random(len(VIEWS_OF))},
        index=[i for _, i in VIEWS_OF],
    )


@pytest.mark.parametrize('views', ['max', 'mean'])
def test_predictions_by_image_are_joined_with_labels_by_study(tmp_path, studies, views):
    labels, images = studies
    metrics = evaluate_external(
        written(tmp_path, images.rename_axis('Path').reset_index()),
        written(tmp_path, labels, 'groundtruth.csv'),
        n_bootstrap=5,
        views=views,
    )
    by_study = images.groupby([s for s, _ in VIEWS_OF], sort=False).agg(views)
    for o, column in (('Edema', 'Edema'), ('Lung Opacity', 'Airspace Opacity')):
        assert metrics['observations'][o]['auroc'] == pytest.approx(
            roc_auc_score(labels[column], by_study.loc[labels['Study'], o])
        )
    assert (metrics['n_images'], metrics['n_patients'], metrics['by']) == (40, 20, 'study')
    rule = {'max': 'highest', 'mean': 'mean'}[views]
    assert metrics['remarks'] == [
        f'labels are by study: the {rule} value of its views stands for a study (60 images, 40 studies)'
    ]
    assert '40 studies of 20 patients' in external_verdict(metrics)[0]


def test_predictions_by_study_are_read_too(tmp_path, studies):
    labels, images = studies
    by_study = images.groupby([s.replace('v1.0', 'v1.0-small/test') for s, _ in VIEWS_OF], sort=False).max()
    path = written(tmp_path, by_study.rename_axis('Study').reset_index())
    metrics = evaluate_external(path, labels, n_bootstrap=5)
    assert metrics['n_images'] == 40
    assert not metrics['remarks']
    assert metrics['observations']['Edema']['auroc'] == pytest.approx(
        roc_auc_score(labels['Edema'], by_study['Edema'])
    )
    of_images = pd.DataFrame(
        {
            'image': [i for _, i in VIEWS_OF],
            'Edema': labels.set_index('Study').loc[[s for s, _ in VIEWS_OF], 'Edema'].to_numpy(),
        }
    )
    metrics = evaluate_external(path, of_images, n_bootstrap=5)
    each = by_study['Edema'].to_numpy()[pd.factorize(np.array([s for s, _ in VIEWS_OF]))[0]]
    assert metrics['n_images'] == 60
    assert metrics['observations']['Edema']['auroc'] == pytest.approx(roc_auc_score(of_images['Edema'], each))
    assert any('each image has the prediction of its study' in m for m in metrics['remarks'])


def test_views_must_be_joined_by_a_known_rule(studies):
    with pytest.raises(ValueError, match="views is 'median'; expected one of max, mean"):
        join_images(studies[0]['Study'], studies[1], views='median')


# ---- two models of others


@pytest.fixture(scope='module')
def two(practice):
    r = np.random.default_rng(7)
    truth = {o: (practice[f'label/{o}'] == 1).to_numpy(float) for o in OBSERVATIONS}
    good = pd.DataFrame(
        {o: truth[o] + r.normal(0, 0.6, len(practice)) for o in COMPETITION},
        index=practice['image'].to_numpy(),
    )
    bad = pd.DataFrame(
        {o: truth[o] + r.normal(0, 3, len(practice)) for o in (*COMPETITION[1:], 'Fracture')},
        index=practice['image'].to_numpy(),
    )
    return good, bad.iloc[5:]


def test_two_files_are_compared_by_delong_with_holm_on_the_images_that_both_predict(tmp_path, two, practice):
    good, bad = two
    paths = [
        written(tmp_path, t.rename_axis('image').reset_index(), n)
        for t, n in ((good, 'good.csv'), (bad, 'bad.csv'))
    ]
    found = compare_two_models(*paths, practice, n_bootstrap=30, min_cases=5)
    rows = found.set_index('observation')
    assert set(found['model_a']) == {'good'}
    assert set(found['model_b']) == {'bad'}
    assert set(found['n_images']) == {len(practice) - 5}
    test, p = practice.iloc[5:], []
    for o in COMPETITION[1:]:
        known = test[f'label/{o}'].isin([0, 1]).to_numpy()
        by_hand = delong_test(
            test[f'label/{o}'][known],
            good[o].iloc[5:][known],
            bad[o][known],
            clusters=test['patient_id'][known],
        )
        assert rows.loc[o, 'p'] == pytest.approx(by_hand['p'])
        assert rows.loc[o, 'a'] == pytest.approx(
            roc_auc_score(test[f'label/{o}'][known], good[o].iloc[5:][known])
        )
        assert rows.loc[o, 'a_minus_b'] == pytest.approx(by_hand['auc_a'] - by_hand['auc_b'])
        assert rows.loc[o, 'a_minus_b_low'] < rows.loc[o, 'a_minus_b']
        p.append(by_hand['p'])
    assert rows.loc[list(COMPETITION[1:]), 'p_holm'].tolist() == pytest.approx(list(holm(p)))
    assert rows.loc['Cardiomegaly', 'significant']
    assert rows.loc[COMPETITION[0], 'reason'] == 'bad does not predict it'
    assert rows.loc['Fracture', 'reason'] == 'good does not predict it'
    assert pd.isna(rows.loc[COMPETITION[0], 'p'])
    assert not rows.loc['Fracture', 'significant']
    assert rows.loc['Mean', 'n_observations'] == 4
    assert rows.loc['Mean', 'a_minus_b_low'] > 0
    assert 'read as scores' in rows.loc['Mean', 'remarks']
    text = two_models_table(found)
    assert list(text) == ['positive', 'good', 'bad', 'good minus bad', 'p (Holm)', 'remark']
    assert text.loc['Fracture', 'p (Holm)'] == ''
    assert 'SIMULATED' in plot_two_models(found, True).get_supxlabel()


def test_a_model_does_not_differ_from_itself(two, practice):
    found = compare_two_models(two[0], two[0], practice, n_bootstrap=10)
    assert set(found['model_a']) == {'external (1)'}
    assert set(found['model_b']) == {'external (2)'}
    assert (found['a_minus_b'].dropna() == 0).all()
    assert not found['significant'].any()
    assert found['p'].isna().all()


def test_two_files_without_a_common_image_are_refused(two, practice):
    with pytest.raises(ValueError, match='no labelled image in common'):
        compare_two_models(two[0].iloc[:10], two[0].iloc[10:], practice)


# ---- real data


@needs_data
def test_the_published_densenet_file_gives_the_seven():
    path, raw = (
        DATA / 'nih/published_densenet121_predictions.csv',
        pd.read_csv(DATA / 'nih/published_densenet121_predictions.csv').set_index('Image Index'),
    )
    external = read_external(path)
    assert external.shape == (421, 10)
    assert set(ONE_TO_ONE) < set(external)
    assert 'No Finding' not in external
    assert len(ONE_TO_ONE) == 7
    assert (external['Lung Lesion'] == raw[['prob_Mass', 'prob_Nodule']].max(axis=1)).all()
    assert (external['Pleural Effusion'] == raw['prob_Effusion']).all()
    by_adapter, by_file = (
        evaluate_external(path, labels, n_bootstrap=20)
        for labels in (load_nih(DATA / 'nih'), DATA / 'nih/Data_Entry_2017.csv')
    )
    assert json.dumps(by_adapter) == json.dumps(by_file)
    assert by_adapter['model'] == 'DenseNet-121'
    assert by_adapter['n_patients'] == 421
    assert [r for r in by_adapter['remarks'] if 'highest of' in r] == [
        'Lung Lesion is the highest of prob_Mass, prob_Nodule in each image'
    ]
    assert [r for r in by_adapter['remarks'] if 'not used' in r] == [
        'columns that are not used: prob_Emphysema, prob_Fibrosis, prob_Hernia'
    ]
    findings = (
        pd.read_csv(DATA / 'nih/Data_Entry_2017.csv')
        .set_index('Image Index')['Finding Labels']
        .str.split('|')[raw.index]
    )
    names = ('Atelectasis', 'Cardiomegaly', 'Consolidation', 'Edema', 'Effusion', 'Pneumonia', 'Pneumothorax')
    areas = [roc_auc_score(findings.map(lambda f, n=n: n in f), raw[f'prob_{n}']) for n in names]
    seven = by_adapter['means']['one_to_one']
    assert seven['n_observations'] == 7
    assert seven['auroc'] == pytest.approx(np.mean(areas))
    assert seven['auroc_low'] < np.mean(areas) < seven['auroc_high']
    assert seven['few'] == ['Edema']
    assert 'Edema' not in by_adapter['means']['evaluable']['observations']


def test_the_notebook_runs_on_the_files_of_a_user(tmp_path, monkeypatch, other, practice):
    papermill = pytest.importorskip('papermill')
    root = Path(__file__).resolve().parent.parent.parent
    monkeypatch.setenv('PYTHONPATH', str(root))
    labels = practice[['image', 'patient_id', *(f'label/{o}' for o in OBSERVATIONS)]]
    parameters = dict(
        external=str(written(tmp_path, other.reset_index())),
        labels=str(written(tmp_path, labels, 'labels.csv')),
        name='my model',
        n_bootstrap=10,
        folder=str(tmp_path / 'out'),
    )
    second = written(
        tmp_path, (other + np.random.default_rng(0).normal(0, 3, other.shape)).reset_index(), 'second.csv'
    )
    papermill.execute_notebook(
        root / 'nbs' / 'chapters/08_evaluation/06_external.ipynb',
        tmp_path / 'done.ipynb',
        parameters | dict(against=str(second)),
        cwd=str(root / 'nbs'),
        progress_bar=False,
    )
    pair = pd.read_csv(tmp_path / 'out' / 'two_models.csv').set_index('observation')
    assert pair.loc['Mean', 'model_a'] == 'my model'
    assert pair.loc['Mean', 'model_b'] == 'second'
    assert pair.loc['Mean', 'a_minus_b'] > 0
    metrics = read_json(tmp_path / 'out' / 'external_metrics.json')
    assert metrics['model'] == 'my model'
    assert metrics['n_images'] == len(practice)
    assert metrics['n_bootstrap'] == 10
    assert not metrics['simulated']


def test_a_name_with_dollars_is_no_formula():
    import matplotlib.pyplot as plt

    from cxr_lib.foundations.figures import set_theme

    set_theme()
    figure, axes = plt.subplots()
    title = axes.set_title(r'model $\frac$ of $x$')
    figure.canvas.draw()  # as a formula, this raises
    plt.close(figure)
    assert title.get_text() == r'model $\frac$ of $x$'
    assert not title.get_parse_math()
