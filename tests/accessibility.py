"""axe-core in a page of Playwright's; AXE_CORE names axe.min.js where axe-playwright-python is not installed."""

import importlib.util
import os
from pathlib import Path

import pytest


def axe_core():
    "The source of axe-core; the test skips if there is none"
    if path := os.environ.get('AXE_CORE'):
        return Path(path).read_text(encoding='utf-8')
    found = importlib.util.find_spec('axe_playwright_python')
    if found is None:
        pytest.skip('neither axe-playwright-python is installed nor AXE_CORE set to an axe.min.js')
    return (Path(found.origin).parent / 'axe.min.js').read_text(encoding='utf-8')


def serious_findings(page, part=None):
    "What axe-core calls serious or critical, in the page or in the part that a CSS selector names"
    page.evaluate(f'() => {{ {axe_core()} }}')
    found = page.evaluate('part => axe.run(part || document)', part)
    assert found['passes'], 'axe-core has looked at nothing'
    return [
        (v['id'], v['impact'], [node['html'][:200] for node in v['nodes']])
        for v in found['violations']
        if v['impact'] in ('serious', 'critical')
    ]
