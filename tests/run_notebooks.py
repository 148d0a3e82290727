"""Run every notebook as a test, in a project folder of its own: `python tests/run_notebooks.py [PART]`, PART being stages or others.

The five stages go first, one after another, and make the small run that the other notebooks then open; these share the cores.
Nothing is written into the checkout's data/ or reports/.
"""
import os
import sys
import tempfile

#: part of the notebooks -> (workers, what `nbdev_test` is told)
PARTS = {'stages': (1, dict(file_re=r'^0[1-5]_')),
         'others': (2, dict(skip_file_re=r'^([_.]|0[1-5]_)'))}


def run(part: str):
    "Run one part; a notebook that fails ends the program"
    from nbdev.test import nbdev_test
    workers, chosen = PARTS[part]
    os.environ['OMP_NUM_THREADS'] = str(max(1, (os.cpu_count() or 1)//workers))
    nbdev_test(n_workers=workers, do_print=True, **chosen)


def main(parts: 'list[str]'):
    with tempfile.TemporaryDirectory(prefix='cxr-notebooks-', ignore_cleanup_errors=True) as home:
        os.environ.setdefault('CXR_HOME', home)
        for part in parts: run(part)


if __name__ == '__main__': main(sys.argv[1:] or list(PARTS))
