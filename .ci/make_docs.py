"""Make the documentation site from the notebooks: what `make docs` runs.

    python .ci/make_docs.py [--pages _proc] [--site _docs] [--only-pages]

Every notebook and every page of nbs/docs becomes a Markdown page below PAGES; Zensical makes SITE of them. A page
shows a notebook's words and examples; of exported code it shows the signatures with what each argument means, and
the code itself folded. Nothing is executed and the library is not imported, so a page has no outputs.
"""

import argparse
import ast
import io
import json
import re
import shutil
import subprocess
import sys
import time
import tokenize
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / 'nbs'
#: Pages without code, in reading order: heading in the navigation -> names below nbs/docs.
DOCS = {
    'Start here': ('start', 'newcomer', 'papermill', 'clusters', 'several_processes'),
    'Data': ('data', 'formats', 'simulated_patients'),
    'Results': ('faq', 'limitations', 'model_card', 'glossary'),
    'Extend it': ('add_source', 'add_encoder', 'add_stage'),
    'Changes': ('changelog',),
}
BADGE = re.compile(
    r'\[!\[([^\]]*)\]\(https?://[^)\s]+\)\]'
)  # a link whose words are a picture from elsewhere
LINK = re.compile(r'(!?\[[^\]\n]*\]\()([^)\s]+)(\))')
FENCE = re.compile(r'(^```.*?^```|`[^`\n]+`)', re.M | re.S)
FORMULA = re.compile(r'\$\$(.+?)\$\$|(?<![\\\w$])\$(?!\s)([^$\n]+?)(?<!\s)\$(?![\w$])', re.S)


# Notebooks


def read_cells(notebook: Path) -> 'list[dict]':
    """The cells of a notebook, each source as one text."""
    cells = json.loads(notebook.read_text(encoding='utf-8'))['cells']
    return [{**cell, 'source': ''.join(cell['source'])} for cell in cells]


def notebook_paths() -> 'list[Path]':
    """Every notebook, in reading order, without the copies that JupyterLab keeps."""
    found = sorted(NBS.rglob('*.ipynb'))
    return [p for p in found if not any(part.startswith(('.', '_')) for part in p.relative_to(NBS).parts)]


def directives(source: str) -> 'list[str]':
    """What nbdev is told about a cell: 'export', 'hide', 'default_exp data.studies', ..."""
    return re.findall(r'^#\|\s*(.+?)\s*$', source, re.M)


def module_of(cells: 'list[dict]') -> str:
    """The module that a notebook exports; '' if none."""
    told = [d for cell in cells for d in directives(cell['source']) if d.startswith('default_exp ')]
    return 'cxr_lib.' + told[0].split()[1] if told else ''


def is_hidden(cell: dict) -> bool:
    """Is a code cell of no interest to a reader of the page?"""
    code = re.sub(r'^#\|.*\n?', '', cell['source'], flags=re.M).strip()
    return not code or code.startswith('# Colab only') or 'hide' in directives(cell['source'])


# Signatures


def header_end(node: ast.AST, tokens: 'list') -> int:
    """The line of the colon that ends a definition's header, annotations and comments included."""
    depth = 0
    for token in tokens:
        if token.start[0] < node.lineno or token.type != tokenize.OP:
            continue
        depth += (token.string in '([{') - (token.string in ')]}')
        if token.string == ':' and depth == 0:
            return token.start[0]
    raise ValueError(f'line {node.lineno} begins a definition without a colon')


def is_public(node: ast.AST) -> bool:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return isinstance(node, kinds) and not node.name.startswith('_')


def is_field(node: ast.AST) -> bool:
    return isinstance(node, ast.AnnAssign) and not node.target.id.startswith('_')


def signature(node: ast.AST, source: str) -> str:
    """A definition's header as it is written, with the comment beside each argument; of a class, its fields too."""
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    lines = source.splitlines()
    shown = lines[node.lineno - 1 : header_end(node, tokens)]
    for inner in node.body if isinstance(node, ast.ClassDef) else ():
        if is_field(inner):
            shown += lines[inner.lineno - 1 : inner.end_lineno]
        elif isinstance(inner, ast.FunctionDef) and (is_public(inner) or inner.name == '__init__'):
            shown += lines[inner.lineno - 1 : header_end(inner, tokens)]
    return '\n'.join(shown)


def api_entry(node: ast.AST, source: str) -> str:
    """Heading, first paragraph of the docstring and signature of one definition, as Markdown."""
    said = (ast.get_docstring(node) or '').strip()
    words = [f'### `{node.name}` {{#{node.name}}}', said, f'```python\n{signature(node, source)}\n```']
    return '\n\n'.join(filter(None, words))


def folded(title: str, source: str) -> str:
    """Code that a reader opens when it is wanted."""
    code = re.sub(r'^#\|.*\n', '', source, flags=re.M)
    return f'??? example "{title}"\n\n' + ''.join(
        f'    {line}'.rstrip() + '\n' for line in ['```python', *code.strip().split('\n'), '```']
    )


def exported(source: str) -> str:
    """An exported cell: an entry for each public definition, then the code, folded."""
    entries = [api_entry(node, source) for node in ast.parse(source).body if is_public(node)]
    return '\n\n'.join([*entries, folded('The code' if entries else 'Code', source)])


# Parameters


def parameter_rows(source: str) -> 'list[tuple[str, str, str]]':
    """(name with its type, default, meaning) of every assignment in a cell of parameters."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string.lstrip('# ') for t in tokens if t.type == tokenize.COMMENT}
    rows = []
    for node in ast.parse(source).body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            named = ast.unparse(node).rpartition(f' = {ast.unparse(node.value)}')[0]
            row = (named, ast.unparse(node.value), comments.get(node.end_lineno, ''))
            rows.append(tuple(cell.replace('|', '&#124;') for cell in row))
    return rows


def quoted_as_code(text: str) -> str:
    """Values in quotes as code: two single quotes would look like one double quote."""
    return re.sub(r"(?<!\w)'[^'\s]*'(?!\w)", r'`\g<0>`', text)


def parameter_table(source: str) -> str:
    """The parameters of a notebook as a table."""
    found = parameter_rows(source)
    rows = [f'| `{name}` | `{value}` | {quoted_as_code(said)} |' for name, value, said in found]
    return '\n'.join(['| parameter | default | meaning |', '|---|---|---|', *rows])


# Links, formulas, pages


def outside_code(change, text: str) -> str:
    """Change the parts of a Markdown text that are not code."""
    parts = FENCE.split(text)
    return ''.join(part if n % 2 else change(part) for n, part in enumerate(parts))


def formula(match: 're.Match') -> str:
    """MathML of a formula in LaTeX: browsers draw it without a script from elsewhere."""
    from latex2mathml.converter import convert

    block, inline = match.groups()
    drawn = convert(block or inline, display='block' if block else 'inline')
    return f'<div class="formula">{drawn}</div>' if block else drawn


class Pages:
    """The Markdown pages below a folder, and the files that they link."""

    def __init__(self, folder: Path):
        self.folder, self.titles = folder, {}

    def place(self, path: Path) -> Path:
        """Where a notebook, page or other file of the project goes, from the folder of the pages."""
        if path.is_relative_to(NBS):
            own = path.relative_to(NBS)
            return own.with_suffix('.md') if own.suffix == '.ipynb' else own
        return Path('files') / path.relative_to(ROOT)

    def link(self, page: Path, target: str) -> 'str | None':
        """A link of a page (its path in the project) as it is in the site; None if the site has no such page."""
        address, hash_, part = target.partition('#')
        if re.match(r'[a-z]+:', target) or not address:
            return target
        path = (page.parent / address).resolve()
        if not path.is_relative_to(ROOT) or path.is_dir() or not path.exists():
            return None
        place = self.place(path)
        if path.suffix not in ('.ipynb', '.md') or not path.is_relative_to(NBS):
            (self.folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, self.folder / place)
        up = '../' * len(self.place(page).parent.parts)
        return up + place.as_posix() + hash_ + part

    def words(self, page: Path, text: str) -> str:
        """The text of a page with its links as they are in the site, and its formulas as MathML."""

        def moved(match):
            before, target, after = match.groups()
            found = self.link(page, target)
            words = before.lstrip('!')[1:-2]
            return words if found is None else before + found + after

        # a link may have code as its words, so links come first
        text = LINK.sub(moved, BADGE.sub(r'[\1]', text))
        return outside_code(lambda part: FORMULA.sub(formula, part), text)

    def write(self, page: Path, text: str):
        """Write a page, and remember its title."""
        place = self.place(page)
        title = re.search(r'^# (.+)$', text, re.M)
        self.titles[place.as_posix()] = title[1].strip() if title else place.stem
        (self.folder / place).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / place).write_text(text, encoding='utf-8')

    def cell(self, page: Path, cell: dict) -> dict:
        """A cell of a notebook as the page shows it: what is not an example becomes Markdown."""
        source, tags = cell['source'], cell['metadata'].get('tags', ())
        if cell['cell_type'] == 'markdown':
            return {**cell, 'source': self.words(page, source)}
        if 'parameters' in tags:
            return dict(cell_type='markdown', metadata={}, source=parameter_table(source))
        if any(d.split()[0] in ('export', 'exports', 'exporti') for d in directives(source)):
            return dict(cell_type='markdown', metadata={}, source=exported(source))
        return {**cell, 'source': re.sub(r'^#\|.*\n', '', source, flags=re.M)}

    def notebook(self, path: Path, convert):
        """Make the page of a notebook."""
        cells = read_cells(path)
        shown = [self.cell(path, c) for c in cells if c['cell_type'] == 'markdown' or not is_hidden(c)]
        text = convert(shown)
        name = path.relative_to(ROOT).as_posix()
        about = f'Notebook `{name}`' + (f', module `{module_of(cells)}`' if module_of(cells) else '')
        if path.stem != 'index':
            text = re.sub(r'^(# .+)$', rf'\1\n\n<small>{about}</small>', text, count=1, flags=re.M)
        self.write(path, text)


def markdown_converter():
    """cells -> Markdown, by nbconvert."""
    from nbconvert import MarkdownExporter
    from nbformat import from_dict

    exporter = MarkdownExporter()

    def convert(cells):
        kernel = dict(name='python3', display_name='python3', language='python')
        keys = {'markdown': ('cell_type', 'metadata', 'source')}
        kept = [{k: c[k] for k in keys.get(c['cell_type'], c)} for c in cells]
        metadata = dict(kernelspec=kernel, language_info=dict(name='python'))
        notebook = dict(cells=kept, metadata=metadata, nbformat=4, nbformat_minor=4)
        return exporter.from_notebook_node(from_dict(notebook))[0]

    return convert


# Index of names


def names_page(notebooks: 'list[Path]') -> str:
    """A page that lists every public name of the library beside its module and what it does."""
    rows = []
    for path in notebooks:
        cells, place = read_cells(path), path.relative_to(NBS).with_suffix('.md').as_posix()
        for cell in cells:
            if 'export' not in directives(cell['source']):
                continue
            for node in filter(is_public, ast.parse(cell['source']).body):
                said = (ast.get_docstring(node) or '').partition('\n')[0].replace('|', '&#124;')
                module = module_of(cells).removeprefix('cxr_lib.')
                rows.append(
                    (node.name.lower(), f'| [`{node.name}`]({place}#{node.name}) | `{module}` | {said} |')
                )
    head = '# Names of the library\n\nEvery public function and class, by name.\n\n'
    return (
        head
        + '\n'.join(['| name | module | what |', '|---|---|---|', *(row for _, row in sorted(rows))])
        + '\n'
    )


# Navigation


def navigation(pages: Pages) -> 'list':
    """The navigation: {title: page} and {heading: [...]}, in reading order."""
    entry = lambda place: {pages.titles[place]: place}  # noqa: E731
    stages = [p for p in pages.titles if re.match(r'(\d\d_|colab_)\w+\.md$', p)]
    parts = sorted({Path(p).parent.as_posix() for p in pages.titles if p.startswith('chapters/')})
    found = [{'cxr_lib': 'index.md'}]
    docs = {head: [f'docs/{name}.md' for name in names] for head, names in DOCS.items()}
    docs = {
        head: [entry(place) for place in places if place in pages.titles] for head, places in docs.items()
    }
    changes = docs.pop('Changes')
    found += [{head: entries} for head, entries in docs.items() if entries]
    found.append({'Notebooks that you run': [entry(p) for p in stages]})
    chapters = []
    for part in parts:
        inner = [entry(p) for p in pages.titles if Path(p).parent.as_posix() == part]
        chapters.append({re.sub(r'^\d+_', '', Path(part).name).capitalize(): inner})
    found.append({'Chapters': chapters})
    return [*found, {'Names of the library': 'names.md'}, *changes]


def toml(value) -> str:
    """A navigation as TOML."""
    if isinstance(value, list):
        return '[' + ', '.join(map(toml, value)) + ']'
    if isinstance(value, dict):
        return '{ ' + ', '.join(f'{json.dumps(k)} = {toml(v)}' for k, v in value.items()) + ' }'
    return json.dumps(value, ensure_ascii=False)


def configuration(pages: Pages, site: Path) -> str:
    """Zensical's configuration: .ci/zensical.toml with name, folders and navigation."""
    parser = ConfigParser(delimiters=['='])
    parser.read(ROOT / 'settings.ini', encoding='utf-8')
    settings = parser['DEFAULT']
    own = dict(
        site_name=settings['title'],
        site_url=settings['doc_host'] + settings['doc_baseurl'] + '/',
        site_description=settings['description'],
        site_author=settings['author'],
        docs_dir=pages.folder.name,
        site_dir=site.name,
        nav=navigation(pages),
    )
    fixed = (ROOT / '.ci' / 'zensical.toml').read_text(encoding='utf-8')
    lines = ''.join(f'{key} = {toml(value)}\n' for key, value in own.items())
    return fixed.replace('[project]\n', '[project]\n' + lines, 1)


def make_pages(folder: Path) -> Pages:
    """Write the Markdown pages of all notebooks and of nbs/docs below a folder, which is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pages, convert = Pages(folder), markdown_converter()
    for path in notebook_paths():
        pages.notebook(path, convert)
    for path in sorted((NBS / 'docs').glob('*.md')):
        pages.write(path, pages.words(path, path.read_text(encoding='utf-8')))
    pages.write(NBS / 'names.md', names_page(notebook_paths()))
    shutil.copy(ROOT / '.ci' / 'site.css', folder)
    return pages


def make_site(pages: Pages, work: Path, site: Path):
    """Let Zensical make the site of the pages in `work`, and put it at `site`."""
    built = work / 'site'
    shutil.rmtree(built, ignore_errors=True)
    config = work / 'zensical.toml'
    config.write_text(configuration(pages, built), encoding='utf-8')
    done = subprocess.run([sys.executable, '-m', 'zensical', 'build', '--clean', '-f', str(config)], cwd=work)
    if done.returncode or not (built / 'index.html').exists():
        sys.exit('Zensical made no site; what it printed is above')
    shutil.rmtree(site, ignore_errors=True)
    shutil.move(built, site)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--pages', default='_proc', help='working folder: Markdown pages, configuration')
    parser.add_argument('--site', default='_docs', help='folder of the site')
    parser.add_argument('--only-pages', action='store_true', help='do not make the site')
    args = parser.parse_args()
    started, work, site = time.time(), Path(args.pages).absolute(), Path(args.site).absolute()
    pages = make_pages(work / 'pages')
    print(f'{len(pages.titles)} pages in {work / "pages"}: {time.time() - started:.0f} s', flush=True)
    if args.only_pages:
        return
    try:
        import zensical  # noqa: F401
    except ImportError:
        sys.exit('Zensical is not installed. It needs Python 3.11 or newer: pip install -e ".[docs]"')
    make_site(pages, work, site)
    print(f'{site / "index.html"}: {time.time() - started:.0f} s')


if __name__ == '__main__':
    main()
