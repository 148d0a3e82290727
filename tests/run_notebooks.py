"""Run every notebook as a test, in a project folder of its own: `python tests/run_notebooks.py [PART]`, PART being stages or others.

The five stages go first, one after another, and make the small run that the other notebooks then open; these share the cores.
Nothing is written into the checkout's data/ or reports/.
"""
import json
import os
import sys
import tempfile
from pathlib import Path

#: part of the notebooks -> (workers, what `nbdev_test` is told)
PARTS = {'stages': (1, dict(file_re=r'^0[1-5]_(exploration|notes|model|training|evaluation)\.ipynb$')),
         'others': (2, dict(skip_file_re=r'^([_.]|0[1-5]_(exploration|notes|model|training|evaluation)\.ipynb$)'))}


def run(part: str):
    "Run one part; a notebook that fails ends the program"
    from nbdev.test import nbdev_test
    workers, chosen = PARTS[part]
    os.environ['OMP_NUM_THREADS'] = str(max(1, (os.cpu_count() or 1)//workers))
    nbdev_test(n_workers=workers, do_print=True, **chosen)


def check_small_run(home: Path):
    "The small run, which teaches with its numbers, has to be better than chance"
    fused = json.loads((home/'reports'/'small'/'metrics.json').read_text(encoding='utf-8'))['conditions']['fused']['means']['evaluable']
    print(f'small run: mean AUROC {fused["auroc"]:.3f} [{fused["low"]:.3f}, {fused["high"]:.3f}]', flush=True)
    if fused['auroc'] < .65 or fused['low'] <= .5: sys.exit('the small run is not better than chance: its defaults (n_patients of 01_exploration) have to change')


def main(parts: 'list[str]'):
    with tempfile.TemporaryDirectory(prefix='cxr-notebooks-', ignore_cleanup_errors=True) as home:
        os.environ.setdefault('CXR_HOME', home)
        for part in parts:
            run(part)
            if part == 'stages': check_small_run(Path(os.environ['CXR_HOME']))


if __name__ == '__main__': main(sys.argv[1:] or list(PARTS))
