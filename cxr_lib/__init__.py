__version__ = "0.1.0"

from .foundations.compat import install_hook as _install_hook
_install_hook()   # see foundations.compat: lets torchvision be imported beside a CPU build of torch
