"""Build the documentation pages and README.md without Quarto, and check them.

    python tests/docs.py             build _docs/ and check every page
    python tests/docs.py --readme    the same, and write README.md from nbs/index.ipynb
    python tests/docs.py --check     the same, and fail if README.md is not what nbs/index.ipynb gives
    python tests/docs.py --process   only the processed notebooks in _proc/ (for Quarto, with tables of parameters)

nbdev processes the notebooks, pandoc (the parser inside Quarto) renders them.
"""
import argparse
import base64
import difflib
import inspect
import io
import logging
import os
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from html import escape
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from threading import get_ident
from urllib.parse import unquote, urldefrag, urlparse

import pypandoc
import yaml
from execnb.nbio import read_nb
from fastcore.docments import docments
from nbdev import serve_drv
from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs
from nbdev.showdoc import BasicMarkdownRenderer

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / 'tests'
PROC, DOCS, NBS = ROOT / '_proc', ROOT / '_docs', ROOT / 'nbs'
READ = 'markdown-citations-definition_lists-example_lists-fancy_lists'


# The API: signature, docstring, table of parameters ---------------------------------------------------------------

def _cell(text):
    "Text as the content of a cell of a pipe table."
    return ' '.join(str(text).split()).replace('|', r'\|')


def _default(value):
    "A default value as readers would type it; functions and classes by their name."
    return getattr(value, '__name__', None) or re.sub(r' at 0x[0-9a-f]+', '', repr(value))


def imported(sym, name):
    "The class `name` as its module has it: the source of one defined in a notebook cell cannot be read."
    found = inspect.isclass(sym) and NbdevLookup()[name]
    return getattr(import_module(found[1][:-3].replace('/', '.')), name, sym) if found else sym


def return_comment(sym, known):
    "The comment after the closing bracket of a signature, unless it is that of a parameter (`known`)."
    if not inspect.isfunction(sym): return None
    found = re.search(r'^(?:\s*def [^\n#]*|\s*)\)[^\n#]*:[ \t]*#[ \t]*(.+)$', inspect.getsource(sym), re.M)
    return found[1] if found and found[1] not in known else None


def parameter_table(sym, signature):
    "The comments on the parameters and on the return value of `sym` as a pipe table; empty if there are none."
    docs = docments(sym, full=True)
    meaning = {n: (docs.get(n) or {}).get('docment') or '' for n in signature.parameters if n != 'self'}
    default = {n: '' if p.default is p.empty else f'`{_cell(_default(p.default))}`' for n, p in signature.parameters.items()}
    rows = [[f'`{n}`', default[n], _cell(text)] for n, text in meaning.items()]
    back = return_comment(sym, meaning.values())
    if back: rows.append(['*returns*', '', _cell(back)])
    if not any(text for *_, text in rows): return ''
    rows = [['parameter', 'default', 'meaning'], [':---------', ':--------', ':' + 50*'-']] + rows
    if not any(default[n] for n in meaning): rows = [[a, c] for a, _, c in rows]
    return '\n'.join([*(f"| {' | '.join(row)} |" for row in rows), '', ': {.parameters}'])


class TableRenderer(BasicMarkdownRenderer):
    "`show_doc` with the parameters in a table instead of comments inside the signature."
    def __init__(self, sym, *args, **kwargs):
        self.is_property = isinstance(sym, property)
        super().__init__(sym, *args, **kwargs)

    def call(self):
        "The signature on one line, or on one line per parameter where it is long."
        if self.is_property or self.sig is None: return self.nm
        stars = {inspect.Parameter.VAR_POSITIONAL: '*', inspect.Parameter.VAR_KEYWORD: '**'}
        args = [stars.get(p.kind, '') + n + ('' if p.default is p.empty else f'={_default(p.default)}')
                for n, p in self.sig.parameters.items() if n != 'self']
        line = f"{self.nm}({', '.join(args)})"
        return line if len(line) < 90 else f'{self.nm}(\n    ' + ',\n    '.join(args) + ')'

    def _repr_markdown_(self):
        sym = imported(self.sym, self.nm)
        link = NbdevLookup().code(self.fn)
        source = f'[source]({link}){{.source-link}}' if link else ''
        docs = self.docs if getattr(sym, '__doc__', None) else ''
        table = parameter_table(sym, self.sig) if self.sig else ''
        return '\n\n'.join([source, f"{'#'*self.title_level} {self.nm}", f'```python\n{self.call()}\n```', docs, table])


def process():
    "Notebooks in nbs/ to processed notebooks in _proc/, as nbdev does before Quarto; returns what failed, as lines."
    get_config()['renderer'] = 'docs.TableRenderer'
    os.environ.setdefault('MPLBACKEND', 'agg')
    one, failed = serve_drv.main, []

    def one_and_go_on(item):
        try: one(item)
        except Exception as e:
            os.environ.pop('IN_TEST', None)
            failed.append(f'{item[0].relative_to(ROOT)}: {e}\n    because {e.__cause__!r}; nbdev runs the cells that import or export, '
                          'and no others, for the documentation: keep imports in a cell of their own')

    serve_drv.main = one_and_go_on
    refresh_quarto_yml()
    proc_nbs(n_workers=0, force=True)
    serve_drv.main = one
    return failed


# One notebook to markdown ----------------------------------------------------------------------------------------

def fence(text, kind):
    "Text in a fenced code block whose fence is longer than any inside."
    ticks = '`' * max(3, 1 + max((len(t) for t in re.findall('`+', text)), default=0))
    return f'{ticks} {{{kind}}}\n{text.rstrip()}\n{ticks}'


def split_options(source):
    "The `#| key: value` lines at the top of a code cell, as a dict, and the code below them."
    lines = source.splitlines()
    n = next((i for i, line in enumerate(lines) if not re.match(r'\s*#\s*\|', line)), len(lines))
    found = [re.match(r'\s*#\s*\|\s*([\w-]+)\s*:\s*(.*?)\s*$', line) for line in lines[:n]]
    return {m[1]: m[2].strip('"\'') for m in found if m}, '\n'.join(lines[n:])


def image_markdown(data, mime, name, media, options):
    "Write the picture in an output to `media` and return the markdown that shows it."
    suffix = '.svg' if 'svg' in mime else f".{mime.split('/')[1]}"
    text = ''.join(data)
    media.mkdir(parents=True, exist_ok=True)
    path = media / (name + suffix)
    path.write_bytes(text.encode() if suffix == '.svg' else base64.b64decode(text))
    return f"![{options.get('fig-cap', '')}]({media.name}/{path.name})"


def output_markdown(out, name, media, options):
    "One output of a code cell as markdown."
    if out.output_type == 'stream': return fence(''.join(out.text), f'.output .{out.name}')
    if out.output_type == 'error': return fence(f'{out.ename}: {out.evalue}', '.output .stderr')
    data = out.data
    for mime in ('image/svg+xml', 'image/png', 'image/jpeg'):
        if mime in data: return image_markdown(data[mime], mime, name, media, options)
    if 'text/markdown' in data: return ''.join(data['text/markdown'])
    if 'text/html' in data: return fence(''.join(data['text/html']), '=html')
    if 'text/latex' in data: return ''.join(data['text/latex'])
    return fence(''.join(data.get('text/plain', '')), '.output')


def cell_markdown(cell, name, media):
    "One processed cell as markdown; Quarto's cell options are obeyed."
    source = ''.join(cell.source)
    if cell.cell_type == 'markdown': return source
    if cell.cell_type != 'code': return ''
    options, code = split_options(source)
    if options.get('include') == 'false': return ''
    parts = [fence(code, '.python')] if code.strip() and options.get('echo') != 'false' else []
    if parts and options.get('code-fold') == 'true':
        parts = [f"<details><summary>{options.get('code-summary', 'Code')}</summary>\n\n{parts[0]}\n\n</details>"]
    if options.get('output') != 'false':
        parts += [output_markdown(o, f'{name}-{i}', media, options) for i, o in enumerate(cell.get('outputs', []))]
    return '\n\n'.join(parts)


def notebook_markdown(path, media):
    "Title and description, and the body in pandoc's markdown; pictures go into the folder `media`."
    nb = read_nb(path)
    meta = {}
    if nb.cells and nb.cells[0].cell_type == 'raw':
        meta = yaml.safe_load(''.join(nb.cells[0].source).strip().strip('-')) or {}
    body = [cell_markdown(c, c.get('id') or f'cell{i}', media) for i, c in enumerate(nb.cells)]
    return meta, '\n\n'.join(filter(None, body))


# Pages -----------------------------------------------------------------------------------------------------------

def page_of(path):
    "The page of a processed notebook, relative to the site: `00_spectra.ipynb` → `spectra.html`."
    return path.relative_to(PROC).with_name(re.sub(r'^\d+[a-zA-Z0-9]*_', '', path.stem.lower()) + '.html')


def sidebar_entries(contents=None, section=None):
    "(section, notebook) pairs of the sidebar in _quarto.yml, in order."
    if contents is None: contents = yaml.safe_load((ROOT / '_quarto.yml').read_text())['website']['sidebar']['contents']
    for item in contents:
        if isinstance(item, str): yield section, item
        elif 'section' in item: yield from sidebar_entries(item['contents'], item['section'])
        else: yield section, item['href']


def sidebar_html(titles, here, up):
    "The navigation as HTML; `titles` maps notebook to title, `up` leads from this page to the top of the site."
    html, last = [], None
    for section, name in sidebar_entries():
        if name not in titles: continue
        if section != last and section: html.append(f'<p class="section">{escape(section)}</p>')
        last = section
        current = ' class="here" aria-current="page"' if name == here else ''
        html.append(f'<a href="{up}{page_of(PROC / name).as_posix()}"{current}>{escape(titles[name])}</a>')
    return '\n'.join(html)


def neighbours_html(titles, here, up):
    "Links to the page before and the page after, in the order of the sidebar."
    names = [name for _, name in sidebar_entries() if name in titles]
    if here not in names: return ''
    at = names.index(here)
    around = (('← ', '', names[at - 1:at]), ('', ' →', names[at + 1:at + 2]))
    return ''.join(f'<span>{a}<a href="{up}{page_of(PROC / n).as_posix()}">{escape(titles[n])}</a>{b}</span>' if found else '<span></span>'
                   for a, b, found in around for n in found or [''])


def relative_links(text, up):
    "Links to the published site and to notebooks, made to lead to the pages built here."
    cfg = get_config()
    text = text.replace(f'{cfg.doc_host}{cfg.doc_baseurl}/', up)
    def to_page(m): return m[1] + page_of(PROC / m[2]).as_posix() + (m[3] or '') + m[4]
    return re.sub(r'(\]\(|href=")((?:\.\./)*(?!https?:)[\w./-]+\.ipynb)(#[^)"\s]*)?([)"])', to_page, text)


def pandoc(text, to, name, source=READ, args=()):
    "Pandoc's rendering of `text`, and its warnings (an unclosed div, a formula it cannot read) as lines that begin with `name`."
    log = io.StringIO()
    handler, thread = logging.StreamHandler(log), get_ident()
    handler.addFilter(lambda record: record.thread == thread)  # pages are rendered side by side
    logger = logging.getLogger('pypandoc')
    logger.addHandler(handler)
    logger.propagate = False
    try: made = pypandoc.convert_text(text, to, format=source, extra_args=['--wrap=preserve', *args])
    finally: logger.removeHandler(handler)
    return made, [f'{name}: {line}' for line in log.getvalue().splitlines() if line.strip()]


def write_page(path, meta, body, titles):
    "Render one page into _docs/; returns pandoc's warnings."
    page, up = page_of(path), '../' * len(path.relative_to(PROC).parts[:-1])
    here = path.relative_to(PROC).as_posix()
    args = ['--standalone', f"--template={HERE / 'docs.html'}", '--toc', '--toc-depth=3', '--mathml',
            '--syntax-highlighting=pygments', f"--metadata=title={meta.get('title', page.stem)}",
            f"--variable=description={escape(meta.get('description', ''))}", f'--variable=up={up}',
            f'--variable=site={get_config().title}', f'--variable=repository={get_config().git_url}',
            f'--variable=sidebar={sidebar_html(titles, here, up)}', f'--variable=neighbours={neighbours_html(titles, here, up)}']
    html, warnings = pandoc(relative_links(body, up), 'html5', here, args=args)
    (DOCS / page).parent.mkdir(parents=True, exist_ok=True)
    (DOCS / page).write_text(html, encoding='utf-8')
    return warnings


def build():
    "All processed notebooks to pages, with other files copied beside them; returns pandoc's warnings."
    shutil.rmtree(DOCS, ignore_errors=True)
    notebooks = sorted(PROC.rglob('*.ipynb'))
    parts = {p: notebook_markdown(p, (DOCS / page_of(p)).with_name(page_of(p).stem + '_files')) for p in notebooks}
    titles = {p.relative_to(PROC).as_posix(): parts[p][0].get('title', p.stem) for p in notebooks}
    with ThreadPoolExecutor(2) as pool:  # pandoc runs in a process of its own
        warnings = [line for lines in pool.map(lambda path: write_page(path, *parts[path], titles), notebooks) for line in lines]
    for path in PROC.rglob('*'):
        if path.is_file() and path.suffix not in ('.ipynb', '.yml'):
            (DOCS / path.relative_to(PROC)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, DOCS / path.relative_to(PROC))
    shutil.copy2(HERE / 'docs.css', DOCS / 'docs.css')
    return warnings


# Checks ----------------------------------------------------------------------------------------------------------

class Page(HTMLParser):
    "The anchors, the links, the prose and the code blocks of a page."
    def __init__(self, path):
        super().__init__()
        self.path, self.ids, self.links, self.prose, self.code, self.stack = path, set(), [], [], [], []
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if 'id' in attrs: self.ids.add(attrs['id'])
        self.links += [attrs[k] for k in ('href', 'src') if attrs.get(k)]
        if tag in ('pre', 'code', 'math', 'script', 'style', 'svg'): self.stack.append(tag)
        if tag in ('p', 'li', 'td', 'h1', 'h2', 'h3', 'h4', 'pre', 'div'): self.prose.append('\0'); self.code.append('\0')

    def handle_endtag(self, tag):
        if self.stack and tag == self.stack[-1]: self.stack.pop()

    def handle_data(self, data):
        if not self.stack: self.prose.append(data)
        elif self.stack[0] == 'pre': self.code.append(data)


RAW_ANYWHERE = {r'#\s?\| ?\w': 'a cell directive', r'(?m)^\s*:{3,}': 'a fenced div', r'\{python\}': 'a Quarto code cell',
                r'show_doc\(': 'a show_doc call', r'\{fig-|\{\.[a-z]': 'attributes', r'\{\{<': 'a shortcode'}
RAW_IN_PROSE = {r'\]\(': 'a link', r'```': 'a code fence', r'\*\*\w': 'bold text', r'\n\s*[-*] \S': 'a list without an empty line before it',
                r'(?m)^\s*#{1,6} \S': 'a heading', r'@(fig|tbl|eq|sec)-': 'a cross-reference', r'(?<!\\)\$[^\s$][^$\n]*\\[a-z]+': 'a formula'}


def leaks(page):
    "What was written for a renderer and reached the reader."
    for where, rules in (('prose', RAW_ANYWHERE | RAW_IN_PROSE), ('code', RAW_ANYWHERE)):
        text = ''.join(getattr(page, where))
        for pattern, what in rules.items():
            for m in re.finditer(pattern, text):
                around = ' '.join(text[max(0, m.start() - 30):m.end() + 40].replace('\0', ' ').split())
                yield f'{page.path.relative_to(DOCS)}: {what} is not rendered: …{around}…'


def dead_links(page, pages):
    "Links from one page to files, anchors and sources that do not exist."
    blob = f'{get_config().git_url}/blob/{get_config().branch}/'
    for link in page.links:
        if link.startswith(blob) and not (ROOT / urldefrag(link[len(blob):])[0]).exists(): yield f'{page.path.name}: no such source file: {link}'
        if urlparse(link).scheme: continue
        target, anchor = urldefrag(link)
        path = (page.path.parent / unquote(target)).resolve() if target else page.path
        if not path.exists(): yield f'{page.path.relative_to(DOCS)}: dead link: {link}'
        elif anchor and path in pages and unquote(anchor) not in pages[path].ids: yield f'{page.path.relative_to(DOCS)}: no such anchor: {link}'


def check_pages():
    "Everything wrong with the pages, as a list of lines."
    notebooks = {p.relative_to(NBS).as_posix() for p in NBS.rglob('*.ipynb') if not re.search(r'(^|/)[_.]', p.relative_to(NBS).as_posix())}
    listed = [name for _, name in sidebar_entries()]
    wrong = [f'_quarto.yml: {name} is in the sidebar but not in nbs/' for name in listed if name not in notebooks]
    wrong += [f'_quarto.yml: {name} is in nbs/ but not in the sidebar' for name in sorted(notebooks - set(listed))]
    wrong += [f'{name}: got no page' for name in sorted(notebooks) if not (DOCS / page_of(PROC / name)).exists()]
    pages = {p: Page(p) for p in sorted(DOCS.rglob('*.html'))}
    for page in pages.values(): wrong += dict.fromkeys([*leaks(page), *dead_links(page, pages)])
    return wrong


# README ----------------------------------------------------------------------------------------------------------

def make_readme(media):
    "README.md, as text; the pictures that its code made are written to `media`, which is published as nbs/images/."
    meta, body = notebook_markdown(PROC / 'index.ipynb', media)
    body = re.sub(r'(?<=\]\()(?=[\w/]+\.html)', f'{get_config().doc_host}{get_config().doc_baseurl}/', body)
    body = re.sub(r'(\]\(|src="|href=")(?!https?:|#|/)', r'\1nbs/', body.replace(f']({media.name}/', '](images/'))
    head = f"# {meta['title']}\n\n> {meta['description']}\n\n"
    text, _ = pandoc(head + body, 'gfm', 'README.md', f'{READ}-smart')
    return re.sub(r'<style.*?</style>\n?', '', text, flags=re.S).rstrip() + '\n'


def readme(write):
    "Write README.md, or (write=False) say how it differs from what nbs/index.ipynb gives."
    made = DOCS / 'readme_images'
    text, path, images = make_readme(made), ROOT / 'README.md', NBS / 'images'
    pictures = sorted(made.glob('*')) if made.exists() else []
    if write:
        path.write_text(text, encoding='utf-8')
        for p in pictures: images.mkdir(exist_ok=True); shutil.copy2(p, images / p.name)
    old = path.read_text(encoding='utf-8') if path.exists() else ''
    diff = list(difflib.unified_diff(old.splitlines(), text.splitlines(), 'README.md', 'nbs/index.ipynb', lineterm=''))
    stale = [f'nbs/images/{p.name} is not the picture in nbs/index.ipynb' for p in pictures
             if not (images / p.name).exists() or (images / p.name).read_bytes() != p.read_bytes()]
    shutil.rmtree(made, ignore_errors=True)
    return diff + stale


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ('--readme', '--check', '--process'): parser.add_argument(flag, action='store_true')
    args = parser.parse_args()
    os.chdir(ROOT)
    wrong = process()
    if not args.process:
        wrong += build()
        wrong += check_pages()
    if args.readme or args.check: wrong += readme(write=args.readme)
    made = PROC if args.process else DOCS
    print('\n'.join(wrong) or f"{made.name}/: {len(list(made.rglob('*.ipynb' if args.process else '*.html')))} pages, nothing wrong with them")
    return 1 if wrong else 0


if __name__ == '__main__': sys.exit(main())
