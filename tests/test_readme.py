"""README, pages in nbs/docs and notebooks lead somewhere: every link, every chapter, every name that has moved."""

import importlib
import json
import re

import pytest
from conftest import NOTEBOOKS, ROOT

PAGES = [ROOT / 'README.md', *sorted((ROOT / 'nbs' / 'docs').glob('*.md'))]
LINK = re.compile(r'\]\(([^)\s#]+)|(?:href|src)="([^"#]+)')


def prose(page):
    "The Markdown of a page or of a notebook's cells"
    text = page.read_text(encoding='utf-8')
    if page.suffix == '.md':
        return text
    cells = json.loads(text)['cells']
    return '\n\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')


def dead_links(page):
    "Relative links of a page to files that are not there"
    links = [markdown or html for markdown, html in LINK.findall(prose(page))]
    files = [link for link in links if not re.match(r'[a-z]+:', link)]
    return [link for link in files if not (page.parent / link).exists()]


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.name)
def test_every_link_to_a_file_leads_to_one(page):
    assert dead_links(page) == []


def test_every_link_in_a_notebook_leads_to_a_file():
    found = {p.relative_to(ROOT).as_posix(): dead_links(p) for p in NOTEBOOKS}
    assert {name: links for name, links in found.items() if links} == {}


def test_every_chapter_that_a_text_names_exists():
    chapters = {f'{p.parent.name[3:]}.{p.stem[3:]}' for p in NOTEBOOKS if 'chapters' in p.parts}
    parts = '|'.join({name.split('.')[0] for name in chapters})
    named = re.compile(rf'`((?:{parts})\.(?!json\b|csv\b)\w+)`')
    unknown = {
        p.relative_to(ROOT).as_posix(): set(named.findall(prose(p))) - chapters
        for p in [*PAGES, *NOTEBOOKS]
        if p.name != 'changelog.md'  # which names what has gone
    }
    assert {page: names for page, names in unknown.items() if names} == {}


def test_every_chapter_and_stage_is_linked_from_the_readme():
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    numbered = [p.relative_to(ROOT).as_posix() for p in NOTEBOOKS if p.name[0].isdigit()]
    assert [n for n in numbered if f']({n})' not in text] == []


def test_every_name_of_the_last_version_is_where_the_changelog_says():
    text = (ROOT / 'nbs' / 'docs' / 'changelog.md').read_text(encoding='utf-8')
    rows = re.findall(r'^\| `(cxr_lib\.\w+)` \| `(cxr_lib[\w.]+)` \| (.+) \|$', text, re.M)
    assert sum(len(names.split(', ')) for _, _, names in rows) > 850
    for before, now, names in rows:
        module = importlib.import_module(now)
        for name in names.split(', '):
            new = name.strip('`').split('` → `')[-1]  # `old` → `new` where a name has changed
            assert hasattr(module, new), f'{before}.{name} is not {now}.{new}'
