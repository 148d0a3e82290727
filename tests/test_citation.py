"""CITATION.cff follows version 1.2.0 of its schema and agrees with settings.ini; CONTRIBUTING.md is one page."""

import re
from configparser import ConfigParser

import yaml
from conftest import ROOT

#: The keys of Citation File Format 1.2.0 (schema.json, properties), those that are required first.
REQUIRED = {'authors', 'cff-version', 'message', 'title'}
KEYS = REQUIRED | {
    *(
        'abstract',
        'commit',
        'contact',
        'date-released',
        'doi',
        'identifiers',
        'keywords',
        'license',
        'license-url',
    ),
    *(
        'preferred-citation',
        'references',
        'repository',
        'repository-artifact',
        'repository-code',
        'type',
        'url',
    ),
    'version',
}
PERSON = {'address', 'affiliation', 'alias', 'city', 'country', 'email', 'family-names', 'fax', 'given-names'}
PERSON |= {'name-particle', 'name-suffix', 'orcid', 'post-code', 'region', 'tel', 'website'}
ENTITY = {'address', 'alias', 'city', 'country', 'date-end', 'date-start', 'email', 'fax', 'location', 'name'}
ENTITY |= {'orcid', 'post-code', 'region', 'tel', 'website'}


def citation():
    return yaml.safe_load((ROOT / 'CITATION.cff').read_text(encoding='utf-8'))


def settings():
    parser = ConfigParser(delimiters=['='])
    parser.read(ROOT / 'settings.ini', encoding='utf-8')
    return parser['DEFAULT']


def test_the_citation_has_the_fields_of_the_schema():
    found = citation()
    assert REQUIRED <= set(found) <= KEYS and found['cff-version'] == '1.2.0'
    assert found['type'] in ('software', 'dataset') and found['license'] == 'MIT'
    texts = [found[k] for k in ('message', 'title', 'version', 'abstract')] + found['keywords']
    assert all(isinstance(text, str) and text for text in texts)
    assert len(set(found['keywords'])) == len(found['keywords'])
    for author in found['authors']:
        assert set(author) <= (ENTITY if 'name' in author else PERSON) and author


def test_the_citation_agrees_with_the_settings():
    found, told = citation(), settings()
    assert found['version'] == told['version'] and found['title'] == told['title']
    assert [author['name'] for author in found['authors']] == [told['author']]


def test_contributing_is_one_page_and_its_commands_and_links_exist():
    text = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')
    assert len(text.splitlines()) <= 60
    makefile = (ROOT / 'Makefile').read_text(encoding='utf-8')
    targets = set(re.findall(r'\bmake ([a-z][\w-]+)', text))
    assert {'install', 'export', 'readme', 'test', 'test-fast', 'docs'} <= targets | {'test'}
    assert all(re.search(rf'^{target}:', makefile, re.M) for target in targets)
    links = [link for link in re.findall(r'\]\(([^)\s#]+)', text) if not re.match('[a-z]+:', link)]
    assert links and all((ROOT / link).exists() for link in links)


def test_hooks_before_a_commit_fetch_nothing_and_call_tools_of_the_environment():
    hooks = yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text(encoding='utf-8'))
    assert [repo['repo'] for repo in hooks['repos']] == ['local']
    found = {hook['id']: hook for repo in hooks['repos'] for hook in repo['hooks']}
    assert set(found) >= {'nbdev-clean', 'nbdev-export', 'ruff'}
    assert {hook['language'] for hook in found.values()} == {'system'}
