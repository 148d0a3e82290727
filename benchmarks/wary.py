"""What does another patient's note do to a perfect reader?

    python benchmarks/wary.py [--worlds realistic plain] [--n 12000]

SIMULATED patients, exact answers (chapter `simulation.wary`): the gain of the right note, and the harm of another
patient's, in mean AUROC against the image alone, for readers who hold more or fewer of all notes for wrong.
"""

import argparse

from cxr_lib.simulation.wary import wary_table

from cxr_lib.simulation.patients import draw_patients
from cxr_lib.simulation.worlds import WORLDS, find_world


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--worlds', nargs='+', default=['realistic', 'plain'], choices=list(WORLDS))
    parser.add_argument('--n', type=int, default=12_000, help='patients')
    parser.add_argument('--seed', type=int, default=0, help='of the patients')
    args = parser.parse_args()
    for name in args.worlds:
        network = find_world(name).network
        table = wary_table(draw_patients(args.n, args.seed, network), network)
        print(
            f'world {name}, {args.n:,} simulated patients, seed {args.seed}\n{table.round(4).to_string()}\n'
        )


if __name__ == '__main__':
    main()
