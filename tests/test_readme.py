"""The README and the pages in nbs/docs lead somewhere: every link, every chapter, every name that has moved."""

import importlib
import re

import pytest
from conftest import ROOT

PAGES = [ROOT / 'README.md', *sorted((ROOT / 'nbs' / 'docs').glob('*.md'))]


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.name)
def test_every_link_to_a_file_leads_to_one(page):
    links = re.findall(r'\]\(([^)\s#]+)', page.read_text(encoding='utf-8'))
    files = [link for link in links if not re.match(r'[a-z]+:', link)]
    assert [link for link in files if not (page.parent / link).exists()] == []


def test_every_chapter_and_stage_is_linked_from_the_readme():
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    notebooks = [p.relative_to(ROOT).as_posix() for p in (ROOT / 'nbs').rglob('[0-9]*.ipynb')]
    assert [n for n in sorted(notebooks) if f']({n})' not in text and 'checkpoints' not in n] == []


def test_every_name_of_the_last_version_is_where_the_changelog_says():
    text = (ROOT / 'nbs' / 'docs' / 'changelog.md').read_text(encoding='utf-8')
    rows = re.findall(r'^\| `(cxr_lib\.\w+)` \| `(cxr_lib[\w.]+)` \| (.+) \|$', text, re.M)
    assert sum(len(names.split(', ')) for _, _, names in rows) > 850
    for before, now, names in rows:
        module = importlib.import_module(now)
        for name in names.split(', '):
            new = name.strip('`').split('` → `')[-1]  # `old` → `new` where a name has changed
            assert hasattr(module, new), f'{before}.{name} is not {now}.{new}'
