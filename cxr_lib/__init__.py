__version__ = "0.1.0"

from .compat import install_hook as _install_hook
_install_hook()   # see nbs/00a_compat.ipynb: lets torchvision be imported beside a CPU build of torch
