"""Time to read and validate a study table of CheXpert's size, against a bare pandas.read_csv of the same files.

    python benchmarks/reading_tables.py [FOLDER OF CHEXPERT] [--repeats 3]

One process; CPU seconds, the best repeat of each side, both sides in alternation in the same run. With a folder, that
copy of CheXpert is read. Without one, tests/data/test_chexpert.py makes a table of 223,414 + 234 rows with the official
counts and a path for every image file. The image folders are then in the operating system's cache: a first read from a
cold or network disk takes longer, by the time the disk needs for 223,648 look-ups.
"""

import argparse
import os

os.environ.setdefault('OMP_NUM_THREADS', '1')

import shutil
import sys
import time
from pathlib import Path

import pandas as pd

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / 'tests')]

from cxr_lib.data.chexpert import check_chexpert_facts, load_chexpert
from cxr_lib.data.studies import Exclusions, is_there, validate_studies


def seconds(function, *args):
    "CPU seconds of a call, and its result"
    start = time.process_time()
    result = function(*args)
    return time.process_time() - start, result


def bare(root):
    "The baseline: the two tables as pandas reads them"
    return [pd.read_csv(root / f'{name}.csv') for name in ('train', 'valid')]


def measure(root, repeats):
    "Print the seconds and the ratio"
    base, whole, check, disk = [], [], [], []
    for _ in range(repeats):
        base.append(seconds(bare, root)[0])
        took, table = seconds(lambda: load_chexpert(root, exclusions=Exclusions()))
        whole.append(took)
        check.append(seconds(validate_studies, table)[0])
        disk.append(seconds(is_there, table.image, root)[0])
    print(
        f'{len(table):,} rows: read, validated and compared with the disk in {min(whole):.2f} s of one core '
        f'(validation {min(check):.2f} s, image files {min(disk):.2f} s); '
        f'bare pandas.read_csv {min(base):.2f} s; ratio {min(whole) / min(base):.0f}x'
    )
    facts = check_chexpert_facts(table)
    print(f'{facts.agrees.sum()} of {len(facts)} official counts agree')


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('folder', nargs='?')
    parser.add_argument('--repeats', type=int, default=3)
    args = parser.parse_args()
    if args.folder:
        return measure(Path(args.folder), args.repeats)
    from data.test_chexpert import full_folders, made_chexpert, write_made

    root, links = full_folders()
    try:
        write_made(root, *made_chexpert(), links)
        measure(root, args.repeats)
    finally:
        for folder in (root, links):
            shutil.rmtree(folder)


if __name__ == '__main__':
    main()
