__version__ = "0.1.0"

from .foundations import compat as _compat
_compat.install_hook()   # lets torchvision be imported beside a CPU build of torch
_compat.let_mps_fall_back()   # before torch is loaded


def __getattr__(name):
    "`from cxr_lib import load`, without making every `import cxr_lib` wait for torch"
    if name == 'load':
        from importlib import import_module   # no import statement: no stage becomes stale when `load` changes
        return import_module('cxr_lib.prediction.load').load
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
