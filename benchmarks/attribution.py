"""Which heat maps of a model deserve belief, and what do they cost?

    cxr run                                        # the run in question
    python benchmarks/attribution.py [--run simulated] [--methods NAME ...] [--patients 150] [--seeds 5]
                                    [--second RUN]

Every method draws maps for simulated patients who show a finding and whose finding the model calls; each patient is
drawn again without it. One row per method and observation:
- hit: share of maps whose maximum lies in the finding; IoU after Otsu's cut; AUPRC of pixels against the mask and
  against the pixels that changed; Spearman of the mass on the changed pixels with the true fall of the logit;
  deletion: fall of the logit when the tenth of the image that the map ranks highest is blurred;
- hit rates of what has not looked at the patient: image centre, location prior, another patient's map, the map turned
  by 90 degrees, random weights (mean and range over seeds; and cascading, from the heads down);
- whether the method is accepted, with the paired interval of hit rate less location prior.

Below each table: hit rate, IoU and AUPRC for small, middling and large findings; what the test says of the same maps
turned by 90 degrees and of random weights, which must fail; and how much of a map stays in place when the image is
shifted (or with --second RUN: in another training). Methods that a network cannot draw are named and left out.

Then the time of each method per map, on one thread. SIMULATED patients: a model of real images is out of distribution.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr

from cxr_lib.explanation.acceptance import Trial, judge_controls, judge_maps
from cxr_lib.explanation.attribution import METHODS, attribute_each, cannot_draw
from cxr_lib.explanation.bench import (
    CASCADE,
    FOCAL,
    centre_prior,
    choose_settings,
    deletion,
    draw_bench,
    hits,
    location_prior,
    other_maps,
    randomised,
    rotated,
    score_maps,
    true_falls,
)
from cxr_lib.explanation.repeatability import check_second, judge_repeatability, repeatability_sentences
from cxr_lib.explanation.sizes import judge_sizes, sizes_table
from cxr_lib.foundations.core import OBSERVATIONS, short_name
from cxr_lib.foundations.files import read_json
from cxr_lib.foundations.run import RunError, open_run
from cxr_lib.model.classifier import PretrainedClassifier
from cxr_lib.simulation.worlds import recorded_world


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--run', default='simulated')
    parser.add_argument('--methods', nargs='+', default=list(METHODS), choices=list(METHODS))
    parser.add_argument('--patients', type=int, default=150, help='at most')
    parser.add_argument('--per', type=int, default=30, help='wanted patients with each finding')
    parser.add_argument('--seeds', type=int, default=5, help='sets of random weights')
    parser.add_argument('--bootstrap', type=int, default=1000)
    parser.add_argument('--seed', type=int, default=0, help='which patients')
    parser.add_argument('--second', help='another run, trained with another seed')
    parser.add_argument('--out', type=Path, help='also write the table to this CSV file')
    return parser, parser.parse_args()


def correlation(mass, fall):
    "Spearman; NaN where it is undefined"
    return spearmanr(mass, fall)[0] if len(mass) > 2 and np.ptp(mass) > 0 and np.ptp(fall) > 0 else np.nan


def measured(classifier, method, bench, falls, settings, seeds, n_bootstrap):
    "One method: a table by observation, the maps, what is accepted that must fail, and seconds per map"
    draw = lambda c: attribute_each(c, bench.questions, method, settings)
    began = time.perf_counter()
    maps = draw(classifier)
    seconds = (time.perf_counter() - began) / len(bench)
    random = [draw(randomised(classifier, s)) for s in range(seeds)]
    scores = score_maps(maps, bench)
    scores['deletion'] = deletion(classifier, bench, maps)
    beside = dict(centre=centre_prior(bench), prior=location_prior(bench), another=other_maps(maps, bench))
    beside |= dict(rotated=rotated(maps))
    beside |= {f'random to {level}': draw(randomised(classifier, 0, level)) for level in CASCADE[:-1]}
    for name, other in beside.items():
        scores[name] = hits(other, bench.masks)
    by_seed = np.array([hits(m, bench.masks) for m in random])
    scores['random'] = by_seed.mean(0)
    table = scores.drop(columns=['patient', 'mass']).groupby('observation').mean()
    rows = {o: np.flatnonzero(scores.observation == o) for o in table.index}
    table['random, most'] = [by_seed[:, r].mean(1).max() for r in rows.values()]
    table['counterfactual'] = [correlation(scores.mass.to_numpy()[r], falls[r]) for r in rows.values()]
    verdict = judge_maps(maps, random, bench, falls, n_bootstrap)
    for name, end in (('over prior, low', 'low'), ('over prior, high', 'high')):
        table[name] = [verdict[o]['over_location_prior'][end] for o in table.index]
    table['patients'] = [len(r) for r in rows.values()]
    table['accepted'] = [verdict[o]['accepted'] for o in table.index]
    nothing = true_falls(randomised(classifier), bench)
    controls = judge_controls(maps, random, bench, falls, nothing, n_bootstrap)
    return table.loc[[o for o in OBSERVATIONS if o in table.index]], maps, controls, seconds


def print_more(classifier, method, maps, bench, settings, controls, second, n_bootstrap):
    "By size, what must fail, and repeatability"
    print(
        sizes_table(judge_sizes({method: maps}, bench, n_bootstrap))
        .drop(columns='method')
        .to_string(index=False)
    )
    print('accepted, of what must fail:', {k: len(v) for k, v in controls.items()})
    trial = Trial(classifier, bench, {method: settings} if settings else {}, {method: maps}, {})
    record = judge_repeatability(trial, [method], second, n_bootstrap=n_bootstrap)
    print(' '.join(repeatability_sentences(record)))


def opened(name, like=None):
    "The model of a run, and the run; `like`: a model that it must be comparable with"
    run = open_run(name, 'training')
    classifier = PretrainedClassifier.from_pretrained(run / 'model')
    if like is not None:
        check_second(like, classifier, name)
    return classifier, run


def main():
    parser, args = arguments()
    torch.set_num_threads(1)
    try:
        classifier, run = opened(args.run)
        second = opened(args.second, classifier)[0] if args.second else None
        source = read_json(run / 'source.json')
    except (RunError, ValueError, FileNotFoundError) as e:
        parser.error(str(e))
    world = recorded_world(source).name if source.get('simulated') and 'sources' not in source else ''
    config = classifier.model.config
    about = dict(size=config.image_size, world=world, fit=config.fit, classifier=classifier)
    bench = draw_bench(args.patients, seed=args.seed, per=args.per, **about)
    if not len(bench):
        parser.exit(1, 'The model calls no finding of any simulated patient: there is no map to judge.\n')
    others = draw_bench(args.patients, seed=100_000 + args.seed, per=max(3, args.per // 2), **about)
    chosen, tried = choose_settings(classifier, others)
    falls, parts, times = true_falls(classifier, bench), {}, {}
    print(
        f'SIMULATED: {len(bench.patients)} patients of the world {bench.world}, {len(bench)} findings called'
    )
    print('hit rates of integrated gradients on the patients that settings are chosen on')
    print(tried.round(2).T.to_string())
    print('\n'.join(f'{o}: {s}' for o, s in chosen.items()))
    for m in args.methods:
        if why := cannot_draw(classifier, m):
            print(f'\n{METHODS[m][1]}: {why}')
            continue
        settings = chosen if m == 'integrated_gradients' else None
        found = measured(classifier, m, bench, falls, settings, args.seeds, args.bootstrap)
        parts[m], maps, controls, times[m] = found
        focal = parts[m].reindex(FOCAL).hit.mean()
        n = int(parts[m].accepted.sum())
        print(f'\n{METHODS[m][1]}: accepted on {n} of {len(parts[m])}, mean focal hit rate {focal:.2f}')
        print(parts[m].rename(index=short_name).round(2).T.to_string())
        print_more(classifier, m, maps, bench, settings, controls, second, args.bootstrap)
    print('\nmilliseconds per map:', {m: round(1000 * t, 1) for m, t in times.items()})
    if args.out:
        pd.concat(parts, names=['method']).to_csv(args.out)


if __name__ == '__main__':
    main()
