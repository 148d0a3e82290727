"""torchvision beside a torch that its compiled operators do not fit: a remedy where it is needed, nothing where it is not."""

import os
import subprocess
import sys

from conftest import ROOT

WATCHING = "any(type(f).__name__ == '_TorchvisionFinder' for f in sys.meta_path)"


def python(code, *args):
    "Run code in a new process, with the library on its path"
    done = subprocess.run(
        [sys.executable, '-c', code, *map(str, args)],
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


def test_importing_the_library_imports_no_torch_and_watches_once():
    assert python(
        f"import sys, cxr_lib\nfrom cxr_lib.foundations.compat import install_hook\ninstall_hook()\nprint('torch' in sys.modules, 'torchvision' in sys.modules, {WATCHING}, "
        "sum(type(f).__name__ == '_TorchvisionFinder' for f in sys.meta_path))"
    ) == ['False', 'False', 'True', '1']


def test_torchvision_imports_after_the_library_and_the_hook_steps_aside():
    assert python(
        f"import sys, cxr_lib\nimport torchvision, torch\nfrom cxr_lib.foundations.compat import install_hook\nprint(hasattr(torch.ops.torchvision, 'nms'), {WATCHING})\ninstall_hook()\nprint({WATCHING})"
    ) == ['True', 'False', 'False']


def test_the_hook_steps_aside_and_stays_quiet_where_there_is_no_torchvision():
    code = f"""
import importlib.machinery, sys, cxr_lib
find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = classmethod(lambda cls, name, path=None, target=None: None if name == 'torchvision' else find(name, path, target))
try: import torchvision
except ModuleNotFoundError as e: print(e.name)
print({WATCHING}, 'torch' in sys.modules)"""
    assert python(code) == ['torchvision', 'False', 'False']


FAKE = """
import importlib.machinery, sys, torch
from pathlib import Path
from cxr_lib.foundations.compat import _libraries, declare_missing_operators
folder, kind, kept = Path(sys.argv[1]), sys.argv[2], []
(folder/'_C.so').write_bytes(b'')
def load(path):
    if kind == 'broken': raise OSError('undefined symbol')
    if kept: return
    library = torch.library.Library('torchvision', 'DEF'); library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor'); kept.append(library)
torch.ops.load_library = load
spec = importlib.machinery.ModuleSpec('torchvision', None, is_package=True); spec.submodule_search_locations = [str(folder)]
print(len(declare_missing_operators(spec)), len(_libraries), hasattr(torch.ops.torchvision, 'nms'), len(declare_missing_operators(spec)))"""


def test_nothing_is_declared_where_the_compiled_part_loads(tmp_path):
    assert python(FAKE, tmp_path, 'working') == ['0', '0', 'True', '0']


def test_operators_are_declared_once_where_the_compiled_part_does_not_load(tmp_path):
    assert python(FAKE, tmp_path, 'broken') == ['2', '1', 'True', '0']
