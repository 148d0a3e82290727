"""How well the labeler agrees with Open-i's gold labels, and how fast it reads, against plain word matching.

    python benchmarks/labeler.py --root ../shared/data/openi              the reports that the lexicon was made on
    python benchmarks/labeler.py --root ../shared/data/openi --set-aside  the fifth that was set aside
    python benchmarks/labeler.py --root ../shared/data/openi --speed      reports per second
    python benchmarks/labeler.py --root ../shared/data/openi --errors     every difference: report, label, kind

Only the reports named in labeler_development.txt are labeled. The fifth is set aside by hash of the report's name
(chapter reasoning.agreement); it is scored, and its errors are never listed. One process, one core. The baseline of the
speed is the same lexicon's finding phrases as one regular expression over the same texts, without negation, place or
degree: what any labeler has to do at least. Both sides read in alternation; CPU seconds, the best repeat.
"""

import argparse
import os
import re
import time

os.environ.setdefault('OMP_NUM_THREADS', '1')

import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cxr_lib.reasoning.agreement import PUBLISHED_MICRO_F1, errors_by_kind, gold_reports, score_labeler
from cxr_lib.reasoning.labels import label_report
from cxr_lib.reasoning.lexicon import Lexicon, default_lexicon


def seconds(function, *args):
    "CPU seconds of a call"
    start = time.process_time()
    function(*args)
    return time.process_time() - start


def plain_matcher():
    "The finding phrases as one regular expression"
    phrases = [r.pattern.pattern for r in default_lexicon().rules if r.kind == 'finding']
    return re.compile(r'(?<![a-z0-9])(?:' + '|'.join(sorted(phrases, key=len, reverse=True)) + ')')


def label_all(reports):
    "Every report, with words that no earlier call has seen"
    lexicon = Lexicon(default_lexicon().rules)
    return [label_report(report, 'nih', lexicon) for report in reports]


def measure_speed(root, repeats):
    "Reports per second and the ratio to the baseline"
    reports, *_ = gold_reports(root)
    texts = ['\n'.join(report.parts.values()).lower() for report in reports]
    matcher = plain_matcher()
    ours, base = [], []
    for _ in range(repeats):
        base.append(seconds(lambda: [matcher.findall(text) for text in texts]))
        ours.append(seconds(label_all, reports))
    n, characters = len(reports), sum(map(len, texts))
    print(
        f'{n:,} reports ({characters / n:.0f} characters each): {n / min(ours):,.0f} reports per second on one core; '
        f'plain matching of the same phrases {n / min(base):,.0f}; ratio {min(base) / min(ours):.2f}x'
    )


def print_score(root, set_aside, list_errors):
    "Agreement with the gold"
    micro, by_label, errors = score_labeler(root, set_aside)
    which = 'set aside, scored once' if set_aside else 'that the lexicon was made on'
    published = ', '.join(f'{name} {value}' for name, value in PUBLISHED_MICRO_F1.items())
    print(
        f'{micro["reports"]:,} development reports {which}: micro F1 on 14 labels '
        f'{micro["value"]:.3f} [{micro["low"]:.3f}, {micro["high"]:.3f}] (published: {published})'
    )
    with pd.option_context('display.width', 200, 'display.max_columns', 30, 'display.max_rows', None):
        print(by_label.round(3).to_string(na_rep=''))
        compared = by_label.dropna(subset=['NegBio, published'])
        better = (compared.F1 > compared['NegBio, published']).sum()
        print(f'Better than the published NegBio on {better} of {len(compared)} labels.')
        if not set_aside:
            print(errors_by_kind(errors).to_string())
        if list_errors and not set_aside:
            print(errors.to_string(index=False))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--root', type=Path, default=Path('../shared/data/openi'))
    parser.add_argument('--set-aside', action='store_true', help='score the fifth that was set aside')
    parser.add_argument('--errors', action='store_true', help='list every difference')
    parser.add_argument('--speed', action='store_true', help='measure reports per second')
    parser.add_argument('--repeats', type=int, default=5)
    args = parser.parse_args()
    if args.speed:
        return measure_speed(args.root, args.repeats)
    print_score(args.root, args.set_aside, args.errors)


if __name__ == '__main__':
    main()
