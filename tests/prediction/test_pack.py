"""A model in one archive: the same bytes each time, and no archive that was damaged or tampered with is unpacked."""

import hashlib
import json
import shutil
import stat
import zipfile

import numpy as np
import pytest
from finished_run import finished_run
from hypothesis import HealthCheck, given, settings, strategies as st

from cxr_lib.foundations.run import AlteredFile, RunError
from cxr_lib.model.weights import CheckpointError
from cxr_lib.prediction.load import load
from cxr_lib.prediction.pack import pack_run, unpacked


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp('project'), 'mine')


@pytest.fixture(scope='module')
def pack(run, tmp_path_factory):
    return pack_run(run, tmp_path_factory.mktemp('packs') / 'mine.zip')


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {i.filename: archive.read(i) for i in archive.infolist()}


def rewritten(path, files, **more):
    "An archive with these files, name -> content"
    with zipfile.ZipFile(path, 'w', **more) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def refused(path):
    "What is said of an archive that is not unpacked"
    with pytest.raises(CheckpointError) as error, unpacked(path):
        pass
    return str(error.value)


def test_the_model_from_the_archive_answers_as_the_runs(run, pack):
    ours, packed = load(run), load(pack)
    film = np.random.default_rng(0).integers(0, 255, (40, 30), np.uint8)
    one, other = (m(film, note='Fever and cough.') for m in (ours, packed))
    assert one.observations == other.observations
    assert packed.facts.about == ours.facts.about
    assert 'Mean AUROC with image and note' in packed.facts.about[1]
    assert packed.facts.fingerprint == ours.facts.fingerprint


def test_packing_again_gives_the_same_bytes(run, pack, tmp_path):
    assert pack_run(run, tmp_path / 'again.zip').read_bytes() == pack.read_bytes()


def test_an_archive_that_was_unzipped_by_hand_is_a_model_too(pack, tmp_path):
    with zipfile.ZipFile(pack) as archive:
        archive.extractall(tmp_path)
    assert 'Mean AUROC' in load(tmp_path / 'model').facts.about[1]


def test_a_run_without_a_model_or_with_an_altered_one_is_not_packed(run, tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(RunError, match='no trained model'):
        pack_run(tmp_path / 'empty', tmp_path / 'a.zip')
    copy = shutil.copytree(run, tmp_path / 'copy')
    (copy / 'model' / 'thresholds.json').write_text('{}')
    with pytest.raises(AlteredFile, match='thresholds.json'):
        pack_run(copy, tmp_path / 'a.zip')
    assert not (tmp_path / 'a.zip').exists()


@pytest.mark.parametrize(
    'name', ['../evil', '/evil', 'model/../../evil', 'model\\..\\evil', 'C:evil', 'model/a.py']
)
def test_a_name_that_no_pack_has_is_refused(pack, tmp_path, name):
    bad = tmp_path / 'in' / 'bad.zip'
    bad.parent.mkdir()
    shutil.copy(pack, bad)
    with zipfile.ZipFile(bad, 'a') as archive:
        archive.writestr(name, 'evil')
    assert 'is nothing that a pack holds' in refused(bad)
    assert not list(tmp_path.rglob('*evil*'))


def test_a_link_is_refused(pack, tmp_path):
    files = members(pack)
    del files['model/README.md']
    bad = rewritten(tmp_path / 'bad.zip', files)
    link = zipfile.ZipInfo('model/README.md')
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(bad, 'a') as archive:
        archive.writestr(link, '/etc/passwd')
    assert 'is no plain file' in refused(bad)


def test_a_file_that_unpacks_to_more_is_refused(pack, tmp_path):
    files = members(pack) | {'model/about.json': b' ' * 30_000_000}
    assert 'is compressed' in refused(rewritten(tmp_path / 'a.zip', files, compression=zipfile.ZIP_DEFLATED))
    assert 'more than it may have' in refused(rewritten(tmp_path / 'b.zip', files))


def test_a_file_twice_is_refused(pack, tmp_path):
    bad = shutil.copy(pack, tmp_path / 'bad.zip')
    with pytest.warns(UserWarning, match='Duplicate'), zipfile.ZipFile(bad, 'a') as archive:
        archive.writestr('model/config.json', '{}')
    assert 'occurs twice' in refused(bad)


@pytest.mark.parametrize('name', ['model/about.json', 'model/thresholds.json'])
def test_a_file_that_was_exchanged_is_refused(pack, tmp_path, name):
    files = members(pack)
    files[name] = files[name].replace(b'0', b'1')
    assert f'{name} is not the file that was packed' in refused(rewritten(tmp_path / 'bad.zip', files))


def test_a_file_exchanged_together_with_its_checksum_does_not_load(pack, tmp_path):
    files = members(pack)
    files['model/thresholds.json'] = content = files['model/thresholds.json'].replace(b'0.5', b'0.1')
    listed = json.loads(files['pack.json'])
    listed['files']['model/thresholds.json'] = dict(
        bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
    )
    files['pack.json'] = json.dumps(listed).encode()
    with pytest.raises(CheckpointError, match='thresholds.json is not the file that was saved'):
        load(rewritten(tmp_path / 'bad.zip', files))


@pytest.mark.parametrize(
    'change, said',
    [
        (lambda files: files.pop('pack.json'), 'it holds no pack.json'),
        (lambda files: files.pop('model/about.json'), 'listed or there, but not both'),
        (lambda files: files.update({'pack.json': b'[]'}), 'is not readable'),
        (lambda files: files.update({'pack.json': b'{"format": "cxr_lib.pack/9"}'}), 'A newer cxr_lib'),
        (lambda files: files.update({'pack.json': b'{'}), 'is damaged'),
        (lambda files: files.update({'pack.json': b'[' * 9999}), 'is damaged'),
    ],
)
def test_a_wrong_list_is_refused(pack, tmp_path, change, said):
    files = members(pack)
    change(files)
    assert said in refused(rewritten(tmp_path / 'bad.zip', files))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True), cut=st.booleans())
def test_a_byte_changed_or_cut_anywhere_is_noticed_or_harmless(pack, tmp_path, share, cut):
    data = pack.read_bytes()
    at = int(share * len(data))
    bad = tmp_path / 'bad.zip'
    bad.write_bytes(data[:at] if cut else data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
    try:
        with unpacked(bad) as folder:
            found = {p.name: p.read_bytes() for p in folder.iterdir()}
    except CheckpointError:
        return
    assert not cut
    whole = {n.removeprefix('model/'): c for n, c in members(pack).items() if n != 'pack.json'}
    assert found == whole  # only what no file's content depends on, such as a time
