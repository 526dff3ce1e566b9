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
        if isinstance(item, str):
            yield item
        elif 'section' in item:
            yield from listed(item['contents'])
        else:
            yield item['href']


def page_of(name):
    "The page of a notebook, relative to the site: `data/01_spectra.ipynb` → `data/spectra.html`."
    path = Path(name)
    return path.with_name(re.sub(r'^\d+[a-zA-Z0-9]*_', '', path.stem.lower()) + '.html').as_posix()


def sidebar_html(contents, titles, here, up):
    "The navigation as HTML: sections fold, those with the page `here` are open; `up` leads to the top."
    html = []
    for item in contents:
        if isinstance(item, str) or 'href' in item:
            name = item if isinstance(item, str) else item['href']
            current = ' class="here" aria-current="page"' if name == here else ''
            if name in titles:
                html.append(f'<a href="{up}{page_of(name)}"{current}>{escape(titles[name])}</a>')
            continue
        inside = [name for name in listed(item['contents']) if name in titles]
        if len(inside) == 1:
            html.append(sidebar_html(inside, titles, here, up))
        elif inside:
            state, inner = ' open' if here in inside else '', sidebar_html(item['contents'], titles, here, up)
            html.append(f"<details{state}><summary>{escape(item['section'])}</summary>\n{inner}\n</details>")
    return '\n'.join(html)


def neighbours_html(names, titles, here, up):
    "Links to the page before and the page after, in the order of the sidebar (`names`)."
    names = [name for name in names if name in titles]
    if here not in names:
        return ''
    at = names.index(here)
    link = lambda name: f'<a href="{up}{page_of(name)}">{escape(titles[name])}</a>'
    before, after = names[max(at - 1, 0):at], names[at + 1:at + 2]
    sides = f'← {link(before[0])}' if before else '', f'{link(after[0])} →' if after else ''
    return ''.join(f'<span>{side}</span>' for side in sides)


# Search ----------------------------------------------------------------------------------------------------------

class Sections(HTMLParser):
    "The text of a page, cut at its headings: `found` is a list of [anchor, heading, text]."
    def __init__(self, html):
        super().__init__()
        self.found, self.inside, self.skipped, self.heading = [['', '', '']], False, 0, False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag == 'main':
            self.inside = True
        if tag in ('script', 'style', 'footer', 'annotation'):
            self.skipped += 1
        if self.inside and tag in ('h2', 'h3', 'h4'):
            self.found.append([dict(attrs).get('id', ''), '', ''])
            self.heading = True

    def handle_endtag(self, tag):
        if tag == 'main':
            self.inside = False
        if tag in ('script', 'style', 'footer', 'annotation'):
            self.skipped -= 1
        if tag in ('h2', 'h3', 'h4'):
            self.heading = False

    def handle_data(self, data):
        if self.inside and not self.skipped:
            self.found[-1][1 if self.heading else 2] += data + ' '


def write_search(docs, titles):
    "Write the index of all pages as a script, which also works where pages are opened from a disk."
    entries = []
    for name, title in titles.items():
        page = page_of(name)
        for anchor, heading, text in Sections((docs / page).read_text(encoding='utf-8')).found:
            words = ' '.join(text.split())[:4000]
            address = f'{page}#{anchor}' if anchor else page
            if words or heading:
                entries.append([title, heading.strip(), address, words])
    (docs / 'search.js').write_text(f'const PAGES = {json.dumps(entries, ensure_ascii=False)};\n', encoding='utf-8')


# Tables that were printed ------------------------------------------------------------------------------------------

def _cells(line, spans):
    return [line[a:b].strip() for a, b in spans]


def shorter(text):
    "A number of many digits with six of them; any other text as it is."
    if not re.fullmatch(r'[-+]?\d+\.\d{7,}(e[-+]?\d+)?', text) or abs(float(text)) >= 1e6:
        return text
    return f'{float(text):.6g}'


def short_numbers(html):
    "The cells of an HTML table with numbers of at most six digits."
    return re.sub(r'(?<=<td>)[-+\d.e]+(?=</td>)', lambda m: shorter(m[0]), html)


def _table_html(head, body):
    "Rows of texts as an HTML table; columns of numbers are set flush right."
    number = re.compile(r'([-+]?(\d[\d.,]*(e[-+]?\d+)?|nan|inf|--)( ?%| ?± ?[\d.]+)?|-|–)?', re.I)
    right = [all(number.fullmatch(row[i]) for row in body) for i in range(len(head[0]))]
    def row(cells, tag):
        kinds = [' class="number"' if r else '' for r in right]
        return '<tr>' + ''.join(f'<{tag}{k}>{escape(c)}</{tag}>' for c, k in zip(cells, kinds)) + '</tr>'
    top, rest = '\n'.join(row(h, 'th') for h in head), '\n'.join(row(b, 'td') for b in body)
    return f'<table class="printed">\n<thead>\n{top}\n</thead>\n<tbody>\n{rest}\n</tbody>\n</table>'


def _ruled(lines, at):
    "A table as astropy prints it, whose line of dashes is line `at`: (first line, line behind, HTML), or None."
    rule = lines[at]
    if not re.fullmatch(r'-+( -+)+', rule):
        return None
    spans = [m.span() for m in re.finditer('-+', rule)]
    fits = lambda line: len(line) == len(rule) and line.strip() and all(line[b] == ' ' for _, b in spans[:-1])
    first, last = at, at + 1
    while first > 0 and at - first < 3 and fits(lines[first - 1]):
        first -= 1
    while last < len(lines) and fits(lines[last]):
        last += 1
    rows = [[shorter(c) for c in _cells(line, spans)] for line in lines[first:at] + lines[at + 1:last]]
    return (first, last, _table_html(rows[:at - first], rows[at - first:])) if first < at else None


def _same_form(lines, at, ends):
    "The line behind those after line `at` that are as long as it and end a word where its names end."
    head, last = lines[at].rstrip(), at + 1
    while last < len(lines) and len(line := lines[last].rstrip()) == len(head):
        if not (line[:1].strip() and all(line[e - 1:e] != ' ' and line[e:e + 1] in ('', ' ') for e in ends)):
            break
        last += 1
    return last


def _headed(lines, at):
    "A table whose head (line `at`) has names flush right over all columns, but perhaps not over the first; or None."
    head = lines[at].rstrip()
    names = list(re.finditer(r'\S+(?: \S+)*', head))
    ends = [m.end() for m in names if m.start()]
    if not re.match(r'(\S+( \S+)*)? {4,}\S', head) or len(ends) < 2:
        return None
    if head[0] != ' ' and any(re.match('[^A-Za-z]', m[0]) or re.search(r'±|\d\.\d', m[0]) for m in names):
        return None  # a row of numbers, not the names of columns
    last, edge = _same_form(lines, at, ends), max(ends[0] - (ends[1] - ends[0]), 1)
    if head[0] != ' ':  # the first column ends before the last gap of two blanks that all lines have
        gaps = (k for k in range(ends[0] - 1, 0, -1) if all(line[k - 1:k + 1] == '  ' for line in lines[at:last]))
        edge = next(gaps, edge)
    last = next((k for k in range(at + 1, last) if ' ' not in lines[k][edge - 1:edge + 1]), last)
    spans = list(zip([0, edge, *ends], [edge, *ends]))
    rows = [_cells(line, spans) for line in lines[at:last]]
    return (at, last, _table_html(rows[:1], rows[1:])) if last > at + 1 else None


def split_tables(text):
    "Pieces of a printed text: ('text', …), and ('html', …) for the tables in it."
    lines, done, at = text.split('\n'), 0, 0
    while at < len(lines):
        table = _ruled(lines, at) or _headed(lines, at)
        if table and table[0] >= done:
            yield 'text', '\n'.join(lines[done:table[0]]).strip('\n')
            yield 'html', table[2]
            done = table[1]
        at = max(at + 1, done)
    yield 'text', '\n'.join(lines[done:]).strip('\n')
