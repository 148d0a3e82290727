"""`python -m cxr_lib` is the command line `cxr`."""
import sys

from cxr_lib.running.command import main

if __name__ == '__main__':
    sys.exit(main())
