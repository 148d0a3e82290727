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
- the share of the pairs that bear whose change goes in the right direction;
- the share of pairs of a piece of irrelevant history and an observation whose change stays within 0.02 of probability,
  where the piece is left out, and where a sentence of irrelevant history is added;
- the same correlations for a logistic regression of the stated facts themselves, age and sex, learned from the run's
  training patients: what could be learned from so many patients by someone who reads every note without an error;
- comprehensiveness and sufficiency of the two facts that moved each answer most, beside those of two facts named at
  random, and the effect of all facts (`whole`), all in log odds.

SIMULATED patients with clinical notes only: of others nobody knows the truth.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd

from cxr_lib.explanation.facts import Changes, agreement, measure_notes, planned_notes, studies_of_run
from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.foundations.run import RunError, open_run
from cxr_lib.model.classifier import PretrainedClassifier


def as_columns(stated, ages, sexes, names):
    "What notes state as numbers: for every fact whether it is stated and whether it is denied, age and sex"
    columns = np.zeros((len(stated), 2 * len(names) + 3))
    for row, facts in zip(columns, stated):
        for name, says in facts.items():
            row[2 * names.index(name) + int(says)] = 1
    age = np.asarray(ages, float) / 100
    columns[:, -3:] = np.stack([age, age**2, np.asarray(sexes) == 'Male'], 1)
    return columns


def read_without_error(planned, learned, studies, measured, n_bootstrap):
    "Agreement of a logistic regression that is given the stated facts, learned from these rows of the run"
    from sklearn.linear_model import LogisticRegression

    table, _, plans = planned
    known = table.iloc[learned]
    names = [fact.name for fact in studies.network.facts]
    parts = measured.changes.left_out
    of = [x.study for x in parts]
    whole = [plan.stated for plan in studies.plans]
    less = [{k: v for k, v in whole[x.study].items() if k != x.part} for x in parts]
    age, sex = studies.patients.age.to_numpy(), studies.patients.sex.to_numpy()
    given = as_columns([plans[i].stated for i in learned], known.age, known.sex, names)
    full, left = as_columns(whole, age, sex, names), as_columns(less, age[of], sex[of], names)
    odds = np.zeros((len(parts), len(OBSERVATIONS)))
    for k, observation in enumerate(OBSERVATIONS):
        found = LogisticRegression(C=0.1, max_iter=1000).fit(given, known[observation] == 1)
        odds[:, k] = found.decision_function(full)[of] - found.decision_function(left)
    return agreement(Changes(parts, odds, odds), measured.truth, n_bootstrap)


def said_by(found):
    "Rows of the table, of what is learned from the facts themselves"
    rows = {('Spearman, the facts themselves', of): values for of, values in found.items()}
    return pd.DataFrame(rows).T[['value', 'low', 'high']].rename_axis(['measure', 'of'])


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
        planned = planned_notes(run)
        studies = studies_of_run(run, args.patients, size, args.seed, planned)
    except (RunError, ValueError, FileNotFoundError) as e:
        parser.error(str(e))
    measured = measure_notes(classifier, studies, args.bootstrap, args.named)
    found, table = measured.table, planned[0]
    learned = np.flatnonzero((table.split == 'train') & table.note.notna())
    if len(learned):
        read = read_without_error(planned, learned, studies, measured, args.bootstrap)
        found = pd.concat([found, said_by(read)])
    else:
        print('The run has no training notes: what could be learned from the facts themselves is left out.')
    facts = sum(len(plan.stated) for plan in studies.plans)
    about = f'SIMULATED: {len(studies):,} test patients of the run {args.run}, {facts:,} stated facts'
    print(f'{about}, {args.bootstrap:,} resamples, {time.perf_counter() - started:.0f} s')
    with pd.option_context('display.max_columns', None, 'display.max_rows', None, 'display.width', 110):
        print(found.astype(float).round(3))
    if args.out:
        found.to_csv(args.out)


if __name__ == '__main__':
    main()
