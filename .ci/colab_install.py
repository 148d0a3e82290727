"""What the first cell of every notebook runs in Colab: install the library beside Colab's own torch.

Colab's torch fits its driver, so pip is told to keep it. The whole requirement is one variable: a released wheel
or another branch goes there.
"""

import subprocess
import sys
from pathlib import Path

REQUIREMENT = 'cxr_lib[offline] @ git+https://github.com/cxr-lib/cxr_lib'


def install(requirement: str = REQUIREMENT):
    "Install the library; torch and torchvision stay as they are"
    import torch
    import torchvision

    kept = Path('keep-torch.txt')
    kept.write_text(f'torch=={torch.__version__}\ntorchvision=={torchvision.__version__}\n', encoding='utf-8')
    command = [sys.executable, '-m', 'pip', 'install', '-q', '-c', str(kept), requirement]
    subprocess.run(command, check=True)


install()
