"""Where the time of the main job goes, and how it compares with an earlier commit, the baseline.

    python benchmarks/main_job.py [--profile] [--against 68dc39d [--repeats 2] [--now "-p world plain"]] [-- --quick]

Runs all stages in a folder that is removed afterwards, and prints for each of the first five stages the seconds until
its first cell (starting Python), of its cells by the heading above them, of ending Python, and of the HTML page. What
follows `--` goes to `cxr run`. With `--profile` the stages run once more, each in one process under cProfile, and the
library's functions that take at least 3 % of a stage are listed with the time inside them (cProfile itself costs time:
the shares count; the radiographs are there by then, see `rendering.py`).
With `--against` both commits run in turn, each in a git worktree of its own with this environment's libraries, and the
ratios are printed, of the whole and of the first five stages, which both have; wall times need a quiet machine. What
`--now` says goes to the newer one alone, such as the world of the patients where the older one knows only `plain`.
"""

import argparse
import contextlib
import cProfile
import json
import os
import pstats
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DONE = re.compile(r'^ *(\d\d_\w+): done after ([\d.]+) s')
STAGES = ('01_exploration', '02_notes', '03_model', '04_training', '05_evaluation')


def run_job(tree, home, arguments):
    "Run the main job of a source tree -> (seconds in all, stage -> seconds)"
    module = 'cxr_lib.running.command' if (tree / 'cxr_lib' / 'running').is_dir() else 'cxr_lib.runner'
    environment = os.environ | {'PYTHONPATH': str(tree), 'CXR_HOME': str(home)}
    since = time.perf_counter()
    command = [sys.executable, '-m', module, 'run', *arguments]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - since
    said = done.stdout + done.stderr
    if done.returncode:
        raise SystemExit(f'{" ".join(command)} in {tree} failed:\n{said[-3000:]}')
    found = (DONE.match(line) for line in said.splitlines())
    return seconds, {m[1]: float(m[2]) for m in found if m}


def run_folder(home, tree):
    "The run that was just made; earlier commits write it into their own tree"
    folders = [path for base in (home, tree) for path in (base / 'reports').glob('*/04_training.ipynb')]
    return max(folders, key=lambda path: path.stat().st_mtime).parent


def cells_of(notebook):
    "(heading, start, end) of each cell that papermill executed, and when the notebook began and ended"
    when = datetime.fromisoformat
    content, heading, found = json.loads(notebook.read_text()), 'before the first heading', []
    for cell in content['cells']:
        if cell['cell_type'] == 'markdown' and (m := re.search(r'^#+ (.+)', ''.join(cell['source']), re.M)):
            heading = m[1]
        told = cell['metadata'].get('papermill') or {}
        if told.get('start_time') and told.get('end_time'):
            found.append((heading, when(told['start_time']), when(told['end_time'])))
    told = content['metadata']['papermill']
    return found, when(told['start_time']), when(told['end_time'])


def print_stages(folder, stages):
    "Where the time of each stage went"
    for stage, seconds in stages.items():
        cells, began, ended = cells_of(folder / f'{stage}.ipynb')
        start, end = (cells[0][1] - began).total_seconds(), (ended - cells[-1][2]).total_seconds()
        page = seconds - (ended - began).total_seconds()
        print(f'{stage}: {seconds:.1f} s; start {start:.1f}, end {end:.1f}, page and rest {page:.1f}')
        steps = {}
        for heading, a, b in cells:
            steps[heading] = steps.get(heading, 0.0) + (b - a).total_seconds()
        for heading, own in steps.items():
            if own >= 0.3:
                print(f'    {own:7.1f} s  {heading}')


def profile_stage(notebook, out):
    "Execute the cells of an executed notebook, its parameters among them, in this process under cProfile"
    import nbformat
    from IPython.core.interactiveshell import InteractiveShell

    shell, profile = InteractiveShell.instance(), cProfile.Profile()
    for cell in nbformat.read(notebook, 4).cells:
        if cell.cell_type != 'code' or cell.source.startswith(('#| export', '#| eval: false')):
            continue
        profile.enable()
        result = shell.run_cell(cell.source, silent=True)
        profile.disable()
        if not result.success:
            break  # an example of a function that is not defined here
    profile.dump_stats(out)


def print_profile(file):
    "The library's functions that take at least 3 % of the time"
    stats = pstats.Stats(str(file))
    whole = stats.total_tt
    rows = [(v[3], k) for k, v in stats.stats.items() if 'cxr_lib' in k[0] and k[2] != '<module>']
    for inside, (path, _, name) in sorted(rows, reverse=True):
        if inside >= 0.03 * whole:
            print(
                f'    {inside:7.1f} s {inside / whole:6.0%}  {Path(path).parent.name}.{Path(path).stem}.{name}'
            )


def print_profiles(home, folder):
    "Every stage once more, in a process of its own"
    for stage in STAGES:
        out = home / f'{stage}.prof'
        command = [sys.executable, __file__, '--stage', str(folder / f'{stage}.ipynb'), str(out)]
        environment = os.environ | {'PYTHONPATH': str(ROOT), 'CXR_HOME': str(home), 'MPLBACKEND': 'agg'}
        subprocess.run(command, env=environment, check=True, capture_output=True)
        print(f'{stage}, by function (time inside):')
        print_profile(out)


@contextlib.contextmanager
def worktree(commit):
    "The source of a commit in a folder of its own"
    with tempfile.TemporaryDirectory(prefix='cxr-main-job-') as folder:
        tree = Path(folder) / 'tree'
        git = ['git', '-C', str(ROOT), 'worktree']
        subprocess.run([*git, 'add', '-q', '--detach', str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, 'remove', '--force', str(tree)], check=True)


@contextlib.contextmanager
def new_home():
    "An empty project folder"
    with tempfile.TemporaryDirectory(prefix='cxr-main-job-') as folder:
        yield Path(folder)


def first_five(stages):
    "Seconds of the stages that every commit has"
    return sum(seconds for name, seconds in stages.items() if name in STAGES)


def compare(commit, repeats, arguments, newer=()):
    "Both commits in turn; the median of the ratios"
    rounds = []
    with worktree(commit) as old, worktree('HEAD') as new:
        for _ in range(repeats):
            found = []
            for tree in (old, new):
                with new_home() as home:
                    found.append(run_job(tree, home, [*arguments, *(newer if tree == new else ())]))
                for name in ('data', 'reports'):
                    shutil.rmtree(tree / name, ignore_errors=True)
                subprocess.run(
                    ['git', '-C', str(tree), 'checkout', '-q', '--', 'data', 'reports'], check=True
                )
            rounds.append(found)
            (before, olds), (after, news) = found
            print(
                f'{commit}: {before:.0f} s; now: {after:.0f} s; {before / after:.2f} times as fast',
                flush=True,
            )
            for stage in olds.keys() & news.keys():
                print(f'    {stage}: {olds[stage]:.1f} s; now {news[stage]:.1f} s')
    ratios = sorted(first_five(olds) / first_five(news) for (_, olds), (_, news) in rounds)
    print(f'the first five stages, by round: {", ".join(f"{r:.2f}" for r in ratios)} times as fast')
    ratios = sorted(before / after for (before, _), (after, _) in rounds)
    print(f'median of {repeats}: {ratios[len(ratios) // 2]:.2f} times as fast as {commit}')


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--profile', action='store_true')
    parser.add_argument('--against', metavar='COMMIT')
    parser.add_argument('--repeats', type=int, default=1)
    parser.add_argument('--now', default='', help='arguments of cxr run for the newer commit alone')
    parser.add_argument('--stage', nargs=2, help=argparse.SUPPRESS)
    parser.add_argument('arguments', nargs='*', help='of cxr run, after --')
    args = parser.parse_args()
    if args.stage:
        return profile_stage(*args.stage)
    if args.against:
        return compare(args.against, args.repeats, args.arguments, shlex.split(args.now))
    with new_home() as home:
        seconds, stages = run_job(ROOT, home, args.arguments)
        folder = run_folder(home, ROOT)
        print(
            f'The main job took {seconds:.1f} s, {seconds - sum(stages.values()):.1f} of them outside its stages'
        )
        print_stages(folder, stages)
        if args.profile:
            print_profiles(home, folder)


if __name__ == '__main__':
    main()
