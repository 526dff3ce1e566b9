"""What surrounds the documentation pages: sidebar, order of the pages, search index. Used by docs.py."""
import json
import re
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent


# Sidebar ---------------------------------------------------------------------------------------------------------

def sidebar():
    "The contents of the sidebar in _quarto.yml: notebooks, and sections that hold notebooks or sections."
    return yaml.safe_load((ROOT / '_quarto.yml').read_text(encoding='utf-8'))['website']['sidebar']['contents']


def listed(contents):
    "The notebooks in the sidebar, in order."
    for item in contents:
        if isinstance(item, str): yield item
        elif 'section' in item: yield from listed(item['contents'])
        else: yield item['href']


def page_of(name):
    "The page of a notebook, relative to the site: `data/01_spectra.ipynb` → `data/spectra.html`."
    path = Path(name)
    return path.with_name(re.sub(r'^\d+[a-zA-Z0-9]*_', '', path.stem.lower()) + '.html').as_posix()


def sidebar_html(contents, titles, here, up):
    "The navigation as HTML: sections fold, those that hold the page `here` are open; `up` leads to the top of the site."
    html = []
    for item in contents:
        if isinstance(item, str) or 'href' in item:
            name = item if isinstance(item, str) else item['href']
            current = ' class="here" aria-current="page"' if name == here else ''
            if name in titles: html.append(f'<a href="{up}{page_of(name)}"{current}>{escape(titles[name])}</a>')
            continue
        inside = [name for name in listed(item['contents']) if name in titles]
        if len(inside) == 1: html.append(sidebar_html(inside, titles, here, up))
        elif inside:
            state, inner = ' open' if here in inside else '', sidebar_html(item['contents'], titles, here, up)
            html.append(f"<details{state}><summary>{escape(item['section'])}</summary>\n{inner}\n</details>")
    return '\n'.join(html)


def neighbours_html(names, titles, here, up):
    "Links to the page before and the page after, in the order of the sidebar (`names`)."
    names = [name for name in names if name in titles]
    if here not in names: return ''
    at = names.index(here)
    link = lambda name: f'<a href="{up}{page_of(name)}">{escape(titles[name])}</a>'
    before, after = names[max(at - 1, 0):at], names[at + 1:at + 2]
    return f"<span>{'← ' + link(before[0]) if before else ''}</span><span>{link(after[0]) + ' →' if after else ''}</span>"


# Search ----------------------------------------------------------------------------------------------------------

class Sections(HTMLParser):
    "The text of a page, cut at its headings: `found` is a list of [anchor, heading, text]."
    def __init__(self, html):
        super().__init__()
        self.found, self.inside, self.skipped, self.heading = [['', '', '']], False, 0, False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag == 'main': self.inside = True
        if tag in ('script', 'style', 'footer', 'annotation'): self.skipped += 1
        if self.inside and tag in ('h2', 'h3', 'h4'):
            self.found.append([dict(attrs).get('id', ''), '', ''])
            self.heading = True

    def handle_endtag(self, tag):
        if tag == 'main': self.inside = False
        if tag in ('script', 'style', 'footer', 'annotation'): self.skipped -= 1
        if tag in ('h2', 'h3', 'h4'): self.heading = False

    def handle_data(self, data):
        if self.inside and not self.skipped: self.found[-1][1 if self.heading else 2] += data + ' '


def write_search(docs, titles):
    "Write the index of all pages as a script, which also works where pages are opened from a disk."
    entries = []
    for name, title in titles.items():
        page = page_of(name)
        for anchor, heading, text in Sections((docs / page).read_text(encoding='utf-8')).found:
            words = ' '.join(text.split())[:4000]
            if words or heading: entries.append([title, heading.strip(), page + (f'#{anchor}' if anchor else ''), words])
    (docs / 'search.js').write_text(f'const PAGES = {json.dumps(entries, ensure_ascii=False)};\n', encoding='utf-8')


# Tables that were printed ------------------------------------------------------------------------------------------

def _cells(line, spans): return [line[a:b].strip() for a, b in spans]


def _table_html(head, body):
    "Rows of texts as an HTML table; columns of numbers are set flush right."
    number = re.compile(r'[-+]?(\d[\d.,]*(e[-+]?\d+)?|nan|inf|--)( ?%)?|', re.I)
    right = [all(number.fullmatch(row[i]) for row in body) for i in range(len(head[0]))]
    def row(cells, tag):
        kinds = [' class="number"' if r else '' for r in right]
        return '<tr>' + ''.join(f'<{tag}{k}>{escape(c)}</{tag}>' for c, k in zip(cells, kinds)) + '</tr>'
    top, rest = '\n'.join(row(h, 'th') for h in head), '\n'.join(row(b, 'td') for b in body)
    return f'<table class="printed">\n<thead>\n{top}\n</thead>\n<tbody>\n{rest}\n</tbody>\n</table>'


def split_tables(text):
    "Pieces of a printed text: ('text', …) and ('html', …) for tables as astropy prints them."
    lines, plain = text.split('\n'), []
    at = 0
    while at < len(lines):
        rule = lines[at]
        if not re.fullmatch(r'-+( -+)+', rule) or not plain or len(plain[-1]) != len(rule):
            plain.append(rule)
            at += 1
            continue
        spans = [m.span() for m in re.finditer('-+', rule)]
        gaps = [b for _, b in spans[:-1]]
        fits = lambda line: len(line) == len(rule) and line.strip() and all(line[g] == ' ' for g in gaps)
        head, body = [], []
        while plain and fits(plain[-1]) and len(head) < 3: head.insert(0, _cells(plain.pop(), spans))
        at += 1
        while at < len(lines) and fits(lines[at]):
            body.append(_cells(lines[at], spans))
            at += 1
        if ''.join(plain).strip(): yield 'text', '\n'.join(plain).strip('\n')
        plain = []
        yield 'html', _table_html(head, body)
    if ''.join(plain).strip(): yield 'text', '\n'.join(plain).strip('\n')
