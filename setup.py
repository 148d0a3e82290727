"""Packaging: name, version and requirements are all read from settings.ini, the one place that states them."""

import shutil
import sys
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
sys.path.insert(0, str(here / '.ci'))

from stubs import stub  # noqa: E402

parser = ConfigParser(delimiters=['='])
parser.read(here / 'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']
names = ('notebooks', 'offline', 'train', 'fast', 'serve', 'fhir', 'sr', 'chest', 'docs', 'dev')
extras = {name: cfg[f'{name}_requirements'].split() for name in names}
extras['all'] = sorted({r for group in extras.values() for r in group})


class BuildWithNotebooks(build_py):
    "The stage notebooks travel in the wheel as cxr_lib/nbs, so that `cxr run` works without a checkout"

    def run(self):
        super().run()
        if getattr(self, 'editable_mode', False):
            return  # the checkout's own nbs/ are used
        library = Path(self.build_lib) / cfg['lib_name']
        for module in library.rglob('*.py'):  # where methods are, for those who check types
            if text := stub(module.read_text(encoding='utf-8')):
                module.with_suffix('.pyi').write_text(text, encoding='utf-8')
        target = library / 'nbs'
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for notebook in sorted((here / cfg['nbs_path']).glob('[0-9]*.ipynb')):
            shutil.copy(notebook, target)
        shutil.copy(here / cfg['nbs_path'] / 'voila.json', target)  # how Voilà shows 08_demo


readme = here / 'README.md'
known = {} if cfg['user'] == 'OWNER' else dict(url=cfg['git_url'], author_email=cfg['author_email'])
setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else '',
    long_description_content_type='text/markdown',
    author=cfg['author'],
    **known,  # nothing that leads nowhere: see .ci/address.py
    license='MIT',
    keywords=cfg['keywords'],
    packages=find_packages(include=['cxr_lib', 'cxr_lib.*']),
    package_data={'cxr_lib': ['py.typed', 'assets/*']},
    python_requires=f'>={cfg["min_python"]}',
    install_requires=cfg['requirements'].split(),
    extras_require=extras,
    entry_points={
        'console_scripts': cfg['console_scripts'].split(),
        'nbdev': [f'{cfg["lib_path"]}={cfg["lib_path"]}._modidx:d'],
    },
    cmdclass={'build_py': BuildWithNotebooks},
    zip_safe=False,
)
