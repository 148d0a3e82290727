"""torchvision beside a torch that its compiled operators do not fit: a remedy only where it is needed."""

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


IMPORT = 'import sys, cxr_lib\nfrom cxr_lib.foundations.compat import install_hook\n'


def test_importing_the_library_imports_no_torch_and_watches_once():
    code = f"""{IMPORT}
install_hook()
finders = [type(f).__name__ for f in sys.meta_path]
print('torch' in sys.modules, 'torchvision' in sys.modules, {WATCHING}, finders.count('_TorchvisionFinder'))"""
    assert python(code) == ['False', 'False', 'True', '1']


def test_torchvision_imports_after_the_library_and_the_hook_steps_aside():
    code = f"""{IMPORT}
import torchvision, torch
print(hasattr(torch.ops.torchvision, 'nms'), {WATCHING})
install_hook()
print({WATCHING})"""
    assert python(code) == ['True', 'False', 'False']


def test_the_hook_steps_aside_and_stays_quiet_where_there_is_no_torchvision():
    code = f"""
import importlib.machinery, sys, cxr_lib
find = importlib.machinery.PathFinder.find_spec
def find_others(cls, name, path=None, target=None):
    return None if name == 'torchvision' else find(name, path, target)
importlib.machinery.PathFinder.find_spec = classmethod(find_others)
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
    library = torch.library.Library('torchvision', 'DEF')
    library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    kept.append(library)
torch.ops.load_library = load
spec = importlib.machinery.ModuleSpec('torchvision', None, is_package=True)
spec.submodule_search_locations = [str(folder)]
print(len(declare_missing_operators(spec)), len(_libraries), hasattr(torch.ops.torchvision, 'nms'))
print(len(declare_missing_operators(spec)))"""


def test_nothing_is_declared_where_the_compiled_part_loads(tmp_path):
    assert python(FAKE, tmp_path, 'working') == ['0', '0', 'True', '0']


def test_operators_are_declared_once_where_the_compiled_part_does_not_load(tmp_path):
    assert python(FAKE, tmp_path, 'broken') == ['2', '1', 'True', '0']
