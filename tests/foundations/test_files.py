"""Files are whole or absent; what the machine refuses is said in one sentence with the remedy; JSON has bounds."""

import errno
import os

import pytest

from cxr_lib.foundations.files import (
    MAX_NESTING,
    MachineError,
    atomic_path,
    file_facts,
    machine_error,
    parse_json,
    sha256_of,
    stop_on_machine_error,
    text_facts,
)


def test_a_full_disk_is_one_sentence(tmp_path):
    with pytest.raises(MachineError) as caught, atomic_path(tmp_path / 'table.csv'):
        raise OSError(errno.ENOSPC, 'No space left on device')
    said = str(caught.value)
    assert said.startswith('the disk is full:') and 'table.csv' in said and 'Traceback' not in said
    assert list(tmp_path.iterdir()) == [] and caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize(
    'name, said',
    {
        'ENOSPC': 'the disk is full',
        'EACCES': 'no permission',
        'EROFS': 'no permission',
        'EMFILE': 'too many files are open',
        'ENAMETOOLONG': 'too long',
        'ENOTDIR': 'lies below one',
        'ENOENT': 'is not there',
    }.items(),
)
def test_what_the_machine_says_names_the_file_and_the_remedy(name, said):
    number = getattr(errno, name)
    text = machine_error(OSError(number, os.strerror(number), '/data/reports/x'))
    assert said in text and '/data/reports/x' in text and text.endswith('.')


@pytest.mark.parametrize('name', ['ENOSPC', 'EACCES', 'EMFILE', 'ENOMEM'])
def test_both_ways_to_say_an_error_give_the_same_remedy(name):
    number = getattr(errno, name)
    error = OSError(number, os.strerror(number), 'x')
    remedy = machine_error(error).partition('. ')[2]
    with pytest.raises(OSError) as raised:
        stop_on_machine_error(error, 'x')
    assert remedy and raised.value.strerror.endswith(remedy)


def test_an_error_that_says_more_keeps_its_words(tmp_path):
    said = 'the checkpoint cannot be written. The one before it is whole'
    with pytest.raises(OSError, match=said), atomic_path(tmp_path / 'a.pt'):
        raise OSError(errno.ENOSPC, said, str(tmp_path / 'a.pt'))
    assert machine_error(OSError(errno.ENOSPC, said)) == said


def test_json_may_be_nested_so_deep_and_no_deeper():
    assert parse_json('[' * (MAX_NESTING + 1) + ']' * (MAX_NESTING + 1))
    for depth in (MAX_NESTING + 2, 100_000):
        with pytest.raises(ValueError, match='deep'):
            parse_json('[' * depth + ']' * depth)


def test_the_facts_of_a_file_are_those_of_its_text(tmp_path):
    text = 'radiograph \u2013 \u80ba\n' * 200_000  # more than one block
    (tmp_path / 'a.txt').write_text(text, encoding='utf-8', newline='\n')
    assert file_facts(tmp_path / 'a.txt') == text_facts(text)
    assert sha256_of(tmp_path / 'a.txt') == text_facts(text)['sha256']
