"""How far can leave-one-out explanations of notes be believed? Each fact of a note against what it should have done.

    cxr run                                        # the run in question
    python benchmarks/note_facts.py [--run simulated] [--patients 400] [--bootstrap 1000]

Every fact is left out of the notes of a run's test patients by wording each note anew without it; the change of the
calibrated fused log odds is compared with the exact log likelihood ratio of the fact, once given the image and the
rest of the note, as the model has them, and once given the rest of the note alone.

Columns: value with a 95 % interval from resampled patients. Rows:
- Spearman's correlation over all pairs of a fact and an observation (target: 0.8), over the pairs that bear on each
  other (absolute true log likelihood ratio above 0.1), among them apart for facts that the note states and facts that
  it denies, and within each observation;
- the share of pairs of a piece of irrelevant history and an observation whose change stays within 0.02 of probability,
  where the piece is left out, and where a sentence of irrelevant history is added;
- comprehensiveness and sufficiency of the two facts that moved each answer most, beside those of two facts named at
  random, and the effect of all facts (`whole`), all in log odds.

SIMULATED patients with clinical notes only: of others nobody knows the truth.
"""

import argparse
import time
from pathlib import Path

import pandas as pd

from cxr_lib.explanation.facts import measure_notes, studies_of_run
from cxr_lib.foundations.run import RunError, open_run
from cxr_lib.model.classifier import PretrainedClassifier


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--run', default='simulated')
    parser.add_argument('--patients', type=int, default=400)
    parser.add_argument('--bootstrap', type=int, default=1000)
    parser.add_argument('--seed', type=int, default=0, help='which patients')
    parser.add_argument('--named', type=int, default=2, help='facts that a rationale names')
    parser.add_argument('--out', type=Path, help='also write the table to this CSV file')
    args = parser.parse_args()
    started = time.perf_counter()
    try:
        run = open_run(args.run, 'training')
        classifier = PretrainedClassifier.from_pretrained(run / 'model')
        size = classifier.model.config.image_size
        studies = studies_of_run(run, args.patients, size, args.seed)
    except (RunError, ValueError, FileNotFoundError) as e:
        parser.error(str(e))
    found = measure_notes(classifier, studies, args.bootstrap, args.named)
    facts = sum(len(plan.stated) for plan in studies.plans)
    about = f'SIMULATED: {len(studies):,} test patients of the run {args.run}, {facts:,} stated facts'
    print(f'{about}, {args.bootstrap:,} resamples, {time.perf_counter() - started:.0f} s')
    with pd.option_context('display.max_columns', None, 'display.max_rows', None, 'display.width', 110):
        print(found.astype(float).round(3))
    if args.out:
        found.to_csv(args.out)


if __name__ == '__main__':
    main()
