"""Does training with notes weaken the image branch? A run's image-only head, against a model trained on images alone.

    cxr run                                        # the run in question
    python benchmarks/modality_collapse.py [--run simulated]

The second model has the run's data, split, preset, seed and number of epochs, but its loss uses only the image head.
Both are scored on the run's test patients; the interval of the difference comes from 1,000 resamples of the patients.
The bound: the run's head may be worse by at most 0.01.
"""

import argparse

import numpy as np
import pandas as pd

from cxr_lib.foundations.core import OBSERVATIONS, choose_device, seed_everything
from cxr_lib.data.catalogue import data_root
from cxr_lib.training.dataset import StudyData, predict_logits
from cxr_lib.model.text import make_tokenizer
from cxr_lib.metrics.ranking import count_cases, interval, mean_over, rank_condition, resample_patients
from cxr_lib.model.fusion import build_model
from cxr_lib.stages.model import ensure_architecture
from cxr_lib.model.presets import make_config, split_overrides
from cxr_lib.stages.notes import ensure_notes
from cxr_lib.foundations.run import RunError, open_run
from cxr_lib.training.loop import fit


def with_image_model(run):
    "The run's test predictions, with those of a model trained on images alone in columns `alone/...`"
    asked, table, chosen = run.params('training'), ensure_notes(run), ensure_architecture(run)
    config = make_config(chosen['preset'], chosen['overrides'])
    training = split_overrides(chosen['preset'], chosen['overrides'])[1]
    if asked['epochs']:
        training['epochs'] = asked['epochs']
    seed_everything(asked['seed'])
    tokenizer = make_tokenizer(config, table.note[table.split == 'train'])
    model = build_model(config, tokenizer)
    data = StudyData(table, data_root(run), config, tokenizer, asked['label_policy'])
    more = dict(seed=asked['seed'], branches=('image',), name='images alone')
    fit(model, data, data.rows('train'), data.rows('tuning'), training, **more)
    rows, device = data.rows('test'), choose_device()
    logits = predict_logits(model.to(device), data, rows, device)['image']
    alone = pd.DataFrame(logits, columns=[f'alone/{o}' for o in OBSERVATIONS])
    test = pd.read_parquet(run / 'predictions.parquet').query('split == "test"').set_index('image')
    return pd.concat([test.loc[table.image.iloc[rows]].reset_index(), alone], axis=1)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--run', default='simulated')
    parser.add_argument('--bootstrap', type=int, default=1000)
    args = parser.parse_args()
    try:
        run = open_run(args.run, 'training')
    except RunError as e:
        parser.error(str(e))
    if not run.done('training') or run.params('training')['folds'] > 0:
        parser.error(f'the run {args.run} has no finished training on a single split; run it first')
    test = with_image_model(run)
    clusters, weights = resample_patients(test.patient_id, args.bootstrap)
    counted = list(count_cases(test).query('evaluable').index)
    together, apart = (
        mean_over(rank_condition(test, c, clusters, weights)[0], counted) for c in ('image_only', 'alone')
    )
    found = interval(together - apart)
    print(
        f'{len(np.unique(test.patient_id)):,} test patients, {len(counted)} observations; '
        f'mean AUROC from the image alone: {together[0]:.4f} in the model that also reads notes, '
        f'{apart[0]:.4f} in the image-only model; '
        f'difference {found["value"]:+.4f} [{found["low"]:+.4f}, {found["high"]:+.4f}]'
        + ('' if found['value'] >= -0.01 else '  WORSE BY MORE THAN 0.01')
    )


if __name__ == '__main__':
    main()
