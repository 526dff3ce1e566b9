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
import io
import logging
import os
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from threading import get_ident
from urllib.parse import unquote, urldefrag, urlparse

import pypandoc
import yaml
from docs_api import link_with_care, show_in_order
from docs_site import listed, neighbours_html, page_of, sidebar, sidebar_html, short_numbers, split_tables, write_search
from execnb.nbio import read_nb, write_nb
from fastcore.basics import AttrDict
from nbdev import serve_drv
from nbdev.config import get_config
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / 'tests'
PROC, DOCS, NBS = ROOT / '_proc', ROOT / '_docs', ROOT / 'nbs'
READ = 'markdown-citations-definition_lists-example_lists-fancy_lists-implicit_figures'


# Processed notebooks -----------------------------------------------------------------------------------------------

def process():
    "Notebooks in nbs/ to processed notebooks in _proc/, as nbdev does before Quarto; returns what failed, as lines."
    get_config()['renderer'] = 'docs_api.TableRenderer'
    link_with_care()
    show_in_order()
    os.environ.setdefault('MPLBACKEND', 'agg')
    one, failed = serve_drv.main, []

    def one_and_go_on(item):
        try:
            one(item)
        except Exception as e:
            os.environ.pop('IN_TEST', None)
            failed.append(f'{item[0].relative_to(ROOT)}: {e}\n    because {e.__cause__!r}; for the documentation nbdev runs '
                          'the cells that import or export, and no others: keep imports in a cell of their own')

    serve_drv.main = one_and_go_on
    refresh_quarto_yml()
    proc_nbs(n_workers=0, force=True)
    serve_drv.main = one
    for path in PROC.rglob('*.ipynb'):
        tables_in_html(path)
    return failed


def output_of(kind, text):
    "A piece of a printed text as an output of a cell."
    if kind == 'text':
        return AttrDict(output_type='stream', name='stdout', text=[text])
    return AttrDict(output_type='display_data', metadata={}, data=AttrDict({'text/html': [text]}))


def joined(outputs):
    "Outputs of a cell; texts that were printed one after the other are one output."
    done = []
    for out in outputs:
        if done and out.output_type == 'stream' == done[-1].output_type and out.name == done[-1].name:
            done[-1]['text'] = [''.join(done[-1].text) + ''.join(out.text)]
        else:
            done.append(out)
    return done


def readable(out):
    "An output as a list of outputs: printed tables become tables, and their numbers are short."
    if out.output_type == 'stream' and out.name == 'stdout':
        parts = [part for part in split_tables(''.join(out.text)) if part[1].strip()]
        return [output_of(kind, text) for kind, text in parts] if any(k == 'html' for k, _ in parts) else [out]
    html = ''.join(out.get('data', {}).get('text/html', ''))
    if '<table' in html:
        out.data['text/html'] = [short_numbers(html)]
    return [out]


def tables_in_html(path):
    "Join and convert the outputs of a processed notebook for readers."
    nb = read_nb(path)
    for cell in nb.cells:
        if cell.get('outputs'):
            cell['outputs'] = [new for out in joined(cell.outputs) for new in readable(out)]
    write_nb(nb, path)


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


def image_markdown(data, mime, name, media, alt):
    "Write the picture in an output to `media` and return the markdown that shows it."
    suffix = '.svg' if 'svg' in mime else f".{mime.split('/')[1]}"
    text = ''.join(data)
    media.mkdir(parents=True, exist_ok=True)
    path = media / (name + suffix)
    path.write_bytes(text.encode() if suffix == '.svg' else base64.b64decode(text))
    words = re.sub(r'([\\`*_{}\[\]<>$|~^])', r'\\\1', alt)
    return f"![{words}]({media.name}/{path.name})"


def output_markdown(out, name, media, alt):
    "One output of a code cell as markdown."
    if out.output_type == 'stream':
        return fence(''.join(out.text), f'.output .{out.name}')
    if out.output_type == 'error':
        return fence(f'{out.ename}: {out.evalue}', '.output .stderr')
    data = out.data
    for mime in ('image/svg+xml', 'image/png', 'image/jpeg'):
        if mime in data:
            return image_markdown(data[mime], mime, name, media, alt)
    if 'text/markdown' in data:
        return ''.join(data['text/markdown'])
    if 'text/html' in data:
        return fence(''.join(data['text/html']), '=html')
    if 'text/latex' in data:
        return ''.join(data['text/latex'])
    return fence(''.join(data.get('text/plain', '')), '.output')


def cell_markdown(cell, name, media, where):
    "One processed cell as markdown; Quarto's cell options are obeyed, `where` is the heading above."
    source = ''.join(cell.source)
    if cell.cell_type == 'markdown':
        return source
    if cell.cell_type != 'code':
        return ''
    options, code = split_options(source)
    if options.get('include') == 'false':
        return ''
    parts = [fence(code, '.python')] if code.strip() and options.get('echo') != 'false' else []
    if parts and options.get('code-fold') == 'true':
        parts = [f"<details><summary>{options.get('code-summary', 'Code')}</summary>\n\n{parts[0]}\n\n</details>"]
    if options.get('output') != 'false':
        alt = options.get('fig-alt') or options.get('fig-cap') or f'Figure: {where}'
        parts += [output_markdown(o, f'{name}-{i}', media, alt) for i, o in enumerate(cell.get('outputs', []))]
    return '\n\n'.join(parts)


def notebook_markdown(path, media):
    "Title and description, and the body in pandoc's markdown; pictures go into the folder `media`."
    nb = read_nb(path)
    meta = {}
    if nb.cells and nb.cells[0].cell_type == 'raw':
        meta = yaml.safe_load(''.join(nb.cells[0].source).strip().strip('-')) or {}
    body, where = [], meta.get('title', path.stem)
    for i, cell in enumerate(nb.cells):
        body.append(cell_markdown(cell, cell.get('id') or f'cell{i}', media, where))
        headings = re.findall(r'(?m)^#+ (.+)$', body[-1]) if cell.cell_type == 'markdown' else []
        where = re.sub(r'\{.*\}|`', '', headings[-1]).strip() if headings else where
    return meta, '\n\n'.join(filter(None, body))


# Pages -----------------------------------------------------------------------------------------------------------

def relative_links(text, up):
    "Links to the published site and to notebooks, made to lead to the pages built here."
    cfg = get_config()
    text = text.replace(f'{cfg.doc_host}{cfg.doc_baseurl}/', up)
    def to_page(m):
        return m[1] + page_of(m[2]) + (m[3] or '') + m[4]
    return re.sub(r'(\]\(|href=")((?:\.\./)*(?!https?:)[\w./-]+\.ipynb)(#[^)"\s]*)?([)"])', to_page, text)


def pandoc(text, to, name, source=READ, args=()):
    "Pandoc's rendering of `text`, and its warnings (an unclosed div, …) as lines that begin with `name`."
    log = io.StringIO()
    handler, thread = logging.StreamHandler(log), get_ident()
    handler.addFilter(lambda record: record.thread == thread)  # pages are rendered side by side
    logger = logging.getLogger('pypandoc')
    logger.addHandler(handler)
    logger.propagate = False
    try:
        made = pypandoc.convert_text(text, to, format=source, extra_args=['--wrap=preserve', *args])
    finally:
        logger.removeHandler(handler)
    return made, [f'{name}: {line}' for line in log.getvalue().splitlines() if line.strip()]


def write_page(path, meta, body, titles):
    "Render one page into _docs/; returns pandoc's warnings."
    here, up = path.relative_to(PROC).as_posix(), '../' * len(path.relative_to(PROC).parts[:-1])
    page, cfg, contents = DOCS / page_of(here), get_config(), sidebar()
    around = neighbours_html(list(listed(contents)), titles, here, up)
    words = escape(meta.get('description', ''))
    description = re.sub('`([^`]+)`', r'<code>\1</code>', words)
    variables = dict(description=description, summary=words.replace('`', ''), up=up,
                     site=cfg.title, repository=cfg.git_url,
                     sidebar=sidebar_html(contents, titles, here, up), neighbours=around)
    args = ['--standalone', f"--template={HERE / 'docs.html'}", '--toc', '--toc-depth=3', '--mathml',
            '--syntax-highlighting=pygments', f"--metadata=title={meta.get('title', page.stem)}",
            *(f'--variable={k}={v}' for k, v in variables.items())]
    html, warnings = pandoc(relative_links(body, up), 'html5', here, args=args)
    page.parent.mkdir(parents=True, exist_ok=True)
    html = re.sub(r'<colgroup>.*?</colgroup>\n?', '', html, flags=re.S)  # columns as wide as they need
    page.write_text(html, encoding='utf-8')
    return warnings


def build():
    "All processed notebooks to pages, with other files copied beside them; returns pandoc's warnings."
    shutil.rmtree(DOCS, ignore_errors=True)
    notebooks = {p.relative_to(PROC).as_posix(): p for p in sorted(PROC.rglob('*.ipynb'))}
    media = {name: (DOCS / page_of(name)).with_name(Path(page_of(name)).stem + '_files') for name in notebooks}
    parts = {name: notebook_markdown(p, media[name]) for name, p in notebooks.items()}
    titles = {name: meta.get('title', Path(name).stem) for name, (meta, _) in parts.items()}
    with ThreadPoolExecutor(2) as pool:  # pandoc runs in a process of its own
        warnings = sum(pool.map(lambda name: write_page(notebooks[name], *parts[name], titles), notebooks), [])
    for path in PROC.rglob('*'):
        if path.is_file() and path.suffix not in ('.ipynb', '.yml'):
            (DOCS / path.relative_to(PROC)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, DOCS / path.relative_to(PROC))
    for name in ('docs.css', 'docs.js'):
        shutil.copy2(HERE / name, DOCS / name)
    write_search(DOCS, titles)
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
        if 'id' in attrs:
            self.ids.add(attrs['id'])
        self.links += [attrs[k] for k in ('href', 'src') if attrs.get(k)]
        if tag in ('pre', 'code', 'math', 'script', 'style', 'svg'):
            self.stack.append(tag)
        if tag in ('p', 'li', 'td', 'h1', 'h2', 'h3', 'h4', 'pre', 'div'):
            self.prose.append('\0')
            self.code.append('\0')

    def handle_endtag(self, tag):
        if self.stack and tag == self.stack[-1]:
            self.stack.pop()

    def handle_data(self, data):
        if not self.stack:
            self.prose.append(data)
        elif self.stack[0] == 'pre':
            self.code.append(data)


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
        if link.startswith(blob) and not (ROOT / urldefrag(link[len(blob):])[0]).exists():
            yield f'{page.path.name}: no such source file: {link}'
        if urlparse(link).scheme:
            continue
        target, anchor = urldefrag(link)
        path = (page.path.parent / unquote(target)).resolve() if target else page.path
        if not path.exists():
            yield f'{page.path.relative_to(DOCS)}: dead link: {link}'
        elif anchor and path in pages and unquote(anchor) not in pages[path].ids:
            yield f'{page.path.relative_to(DOCS)}: no such anchor: {link}'


def check_pages():
    "Everything wrong with the pages, as a list of lines."
    notebooks = {p.relative_to(NBS).as_posix() for p in NBS.rglob('*.ipynb')}
    notebooks = {name for name in notebooks if not re.search(r'(^|/)[_.]', name)}
    names = list(listed(sidebar()))
    wrong = [f'_quarto.yml: {name} is in the sidebar but not in nbs/' for name in names if name not in notebooks]
    wrong += [f'_quarto.yml: {name} is in nbs/ but not in the sidebar' for name in sorted(notebooks - set(names))]
    wrong += [f'{name}: got no page' for name in sorted(notebooks) if not (DOCS / page_of(name)).exists()]
    pages = {p: Page(p) for p in sorted(DOCS.rglob('*.html'))}
    for page in pages.values():
        wrong += dict.fromkeys([*leaks(page), *dead_links(page, pages)])
    return wrong


# README ----------------------------------------------------------------------------------------------------------

def make_readme(media):
    "README.md, as text; the pictures that its code made are written to `media`, which is published as nbs/images/."
    meta, body = notebook_markdown(PROC / 'index.ipynb', media)
    body = re.sub(r'(?<=\]\()(?=[\w/]+\.html)', f'{get_config().doc_host}{get_config().doc_baseurl}/', body)
    body = re.sub(r'(\]\(|src="|href=")(?!https?:|#|/)', r'\1nbs/', body.replace(f']({media.name}/', '](images/'))
    raw = f"{get_config().git_url.replace('github.com', 'raw.githubusercontent.com')}/{get_config().branch}/"
    body = body.replace('](nbs/images/', f']({raw}nbs/images/')  # PyPI shows no pictures of the repository
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
        for p in pictures:
            images.mkdir(exist_ok=True)
            shutil.copy2(p, images / p.name)
    old = path.read_text(encoding='utf-8') if path.exists() else ''
    diff = list(difflib.unified_diff(old.splitlines(), text.splitlines(), 'README.md', 'nbs/index.ipynb', lineterm=''))
    stale = [f'nbs/images/{p.name} is not the picture in nbs/index.ipynb' for p in pictures
             if not (images / p.name).exists() or (images / p.name).read_bytes() != p.read_bytes()]
    shutil.rmtree(made, ignore_errors=True)
    return diff + stale


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ('--readme', '--check', '--process'):
        parser.add_argument(flag, action='store_true')
    args = parser.parse_args()
    os.chdir(ROOT)
    wrong = process()
    if not args.process:
        wrong += build()
        wrong += check_pages()
    if args.readme or args.check:
        wrong += readme(write=args.readme)
    made = PROC if args.process else DOCS
    pages = list(made.rglob('*.ipynb' if args.process else '*.html'))
    print('\n'.join(wrong) or f'{made.name}/: {len(pages)} pages, nothing wrong with them')
    return 1 if wrong else 0


if __name__ == '__main__':
    sys.exit(main())
