"""The API on the documentation pages: links from names, signatures, tables of parameters. Used by docs.py."""
import ast
import inspect
import re
from collections import Counter
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path

from fastcore.docments import docments
from nbdev import processors, showdoc
from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup
from nbdev.showdoc import BasicMarkdownRenderer

from skyseek.pipeline.catalogue import COLUMNS
from skyseek.pipeline.help import type_text

ROOT = Path(__file__).resolve().parent.parent


# Links -----------------------------------------------------------------------------------------------------------

def definitions(path):
    "Names of the functions, classes and methods that a module defines."
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for node in ast.parse(path.read_text(encoding='utf-8')).body:
        if isinstance(node, kinds):
            yield node.name
        if isinstance(node, ast.ClassDef):
            yield from (f'{node.name}.{n.name}' for n in node.body if isinstance(n, kinds))


def complete_index():
    "Add to nbdev's index the modules that it leaves out: those of notebooks with `auto` in their name."
    lookup, cfg = NbdevLookup(), get_config()
    for module, found in lookup.entries['skyseek']['syms'].items():
        path = ROOT / (module.replace('.', '/') + '.py')
        if found or not path.exists():
            continue
        page = path.relative_to(ROOT / 'skyseek').with_suffix('.html').as_posix()
        source = path.relative_to(ROOT).as_posix()
        site, sources = f'{cfg.doc_host}{cfg.doc_baseurl}', f'{cfg.git_url}/blob/{cfg.branch}'
        for name in definitions(path):
            entry = f'{site}/{page}#{name.lower()}', source, f'{sources}/{source}'
            lookup.syms.setdefault(name, entry)
            found[f'{module}.{name}'] = entry


def linkable(name, called, count, target):
    "Whether a name in backticks can only mean one public function or class of skyseek."
    if '/skyseek/' not in target or re.search(r'(^|\.)_', name) or name in COLUMNS or count > 1:
        return False
    return called or '_' in name or name != name.lower()


def link_with_care():
    "Make nbdev link only such names: `fit` is a word, `fit_reference` and `fit()` are functions."
    complete_index()
    lookup, link = NbdevLookup(), NbdevLookup._link_sym
    modules = lookup.entries['skyseek']['syms'].items()
    modules = {m: found for m, found in modules if '.cli' not in m}  # commands have names of functions
    counts = Counter(name.removeprefix(f'{m}.') for m, found in modules.items() for name in found)

    def careful(self, m):
        target, around = self.doc(m[1]), m.string[m.start() - 1:m.start()] + m.string[m.end():m.end() + 2]
        parameter = m.string[:m.start()] == '| ' and re.match(r' \|( `|  \|)', m.string[m.end():])
        if around == '[](' or parameter:
            return m[0]  # the text of a link, or the name of a parameter
        return link(self, m) if target and linkable(m[1], m[0].endswith('()`'), counts[m[1]], target) else m[0]

    NbdevLookup._link_sym = careful


def show_in_order():
    "Make nbdev document the names of a cell in the order of their definitions; it inserts each before the last one."
    names = processors._def_names
    processors._def_names = lambda cell, shown: list(reversed(names(cell, shown)))


# Signature, docstring, table of parameters -----------------------------------------------------------------------

STARS = {inspect.Parameter.VAR_POSITIONAL: '*', inspect.Parameter.VAR_KEYWORD: '**'}


def literal(text):
    "Prose of a docstring: `coadd-*.fits`, `--truth`, `2**14`, `<` are no markup; what is in backticks stays."
    signs = r'(?<=[-_/(])\*|\*(?=\.[a-z])|(?<=\d)\*\*(?=\d)|(?<![-\w])--(?=\w)|<'
    return re.sub(f'`[^`]*`|{signs}', lambda m: m[0] if m[0][0] == '`' else re.sub('(.)', r'\\\1', m[0]), text)


def _cell(text):
    "Text as the content of a cell of a pipe table."
    return literal(' '.join(str(text).split()).replace('|', r'\|'))


def _default(value):
    "A default value as readers would type it; functions and classes by their name, what is long by its beginning."
    text = getattr(value, '__name__', None) or re.sub(r' at 0x[0-9a-f]+', '', repr(value))
    text = {'<lambda>': 'lambda …', '<factory>': '…'}.get(text, text)
    if len(text) < 60:
        return text
    if isinstance(value, (tuple, list)):
        return f'{text[0]}{", ".join(map(repr, value[:2]))}, … {len(value)} in all{text[-1]}'
    return f'{type(value).__name__}(…)' if is_dataclass(value) else text[:55] + '…'


def imported(sym, name):
    "The class `name` as its module has it: the source of one defined in a notebook cell cannot be read."
    found = inspect.isclass(sym) and NbdevLookup()[name]
    return getattr(import_module(found[1][:-3].replace('/', '.')), name, sym) if found else sym


def return_comment(sym, known):
    "The comment after the closing bracket of a signature, unless it is that of a parameter (`known`)."
    if not inspect.isfunction(sym):
        return None
    found = re.search(r'^(?:\s*def [^\n#]*|\s*)\)[^\n#]*:[ \t]*#[ \t]*(.+)$', inspect.getsource(sym), re.M)
    return found[1] if found and found[1] not in known else None


def shown_type(annotation):
    "A type as code, empty if there is none; pandoc wants no backslash before | in code."
    text = type_text(annotation)
    return f'`{text}`' if text else ''


def signature_of(sym, eval_str=True):
    "Signature of `sym`; the name of a type that is not imported stays a text."
    try:
        return inspect.signature(sym, eval_str=eval_str)
    except NameError:
        return inspect.signature(sym)


def rest_comment(sym, name):
    "The comment after `**name` in the source, which docments leaves out; '' if there is none."
    try:
        found = re.search(rf'^\s*\*\*{name},?[ \t]*#[ \t]*(.+)$', inspect.getsource(sym), re.M)
    except (OSError, TypeError):
        return ''
    return found[1] if found else ''


def parameter_rows(sym, signature):
    "Name, type, default and comment of each parameter, and of what is returned."
    docs = docments(sym, full=True)
    parameters = {n: p for n, p in signature.parameters.items() if n != 'self'}
    meaning = {n: (docs.get(n) or {}).get('docment') or rest_comment(sym, n) for n in parameters}
    for n, p in parameters.items():
        default = '' if p.default is p.empty else f"`{' '.join(_default(p.default).split())}`"
        yield [f'`{STARS.get(p.kind, "")}{n}`', shown_type(p.annotation), default, _cell(meaning[n])]
    back, kind = return_comment(sym, meaning.values()), shown_type(signature.return_annotation)
    if back or kind not in ('', '`None`'):
        yield ['*returns*', kind, '', _cell(back or '')]


def parameter_table(sym, signature):
    "The parameters and the return value of `sym` as a pipe table without empty columns; '' if it would say nothing."
    head = ['parameter', 'type', 'default', 'meaning']
    rules = [':---------', ':----------', ':--------', ':' + 50*'-']
    rows = list(parameter_rows(sym, signature))
    if not any(kind or text for _, kind, _, text in rows):
        return ''
    used = [i for i in range(len(head)) if any(row[i] for row in rows)]
    lines = [f"| {' | '.join(row[i] for i in used)} |" for row in [head, rules, *rows]]
    return '\n'.join([*lines, '', ': {.parameters}'])


class TableRenderer(BasicMarkdownRenderer):
    "`show_doc` with the parameters in a table instead of comments inside the signature."
    def __init__(self, sym, *args, **kwargs):
        self.is_property, showdoc.signature = isinstance(sym, property), signature_of
        super().__init__(sym, *args, **kwargs)
        owner = self.sig.parameters.get('self') if self.sig else None
        if owner is not None and '.' not in self.nm and owner.annotation is not owner.empty:
            self.nm = self.fn = f'{getattr(owner.annotation, "__name__", owner.annotation)}.{self.nm}'

    def call(self):
        "The signature on one line, or on one line per parameter where it is long."
        if self.is_property or self.sig is None:
            return self.nm
        args = [STARS.get(p.kind, '') + n + ('' if p.default is p.empty else f'={_default(p.default)}')
                for n, p in self.sig.parameters.items() if n != 'self']
        line = f"{self.nm}({', '.join(args)})"
        return line if len(line) < 90 else f'{self.nm}(\n    ' + ',\n    '.join(args) + ')'

    def _repr_markdown_(self):
        sym = imported(self.sym, self.nm)
        link = NbdevLookup().code(self.fn)
        source = f'[source]({link}){{.source-link}}' if link else ''
        docs = self.docs.split('\n\nParameters\n---')[0] if getattr(sym, '__doc__', None) else ''  # the table has them
        table = parameter_table(sym, self.sig) if self.sig else ''
        head = f"{'#'*self.title_level} {self.nm}"
        return '\n\n'.join([source, head, f'```python\n{self.call()}\n```', literal(docs), table])
