"""The rules of the house: what every notebook and every module keeps to."""
import ast
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOP = {'README.md', 'settings.ini', 'setup.py', 'nbs', 'skyseek', 'tests', '_quarto.yml', 'LICENSE', 'CHANGELOG.md', 'CONTRIBUTING.md', 'CITATION.cff'}
NOTEBOOKS = sorted(p for p in (ROOT / 'nbs').rglob('*.ipynb') if not any(part[0] in '._' for part in p.relative_to(ROOT).parts))
MODULES = sorted(p for p in (ROOT / 'skyseek').rglob('*.py') if p.name not in ('_modidx.py', '__init__.py'))
WINGS = 'data', 'simulate', 'learn', 'redshift', 'gasnet', 'detect', 'explain', 'anomaly', 'pipeline'
MOCK = 'skyseek.simulate.mock_archive', 'skyseek.redshift.scan'
FOLDERS = 'home|root|work|tmp|Users|mnt|opt|scratch|srv|venv|site-packages'
MACHINE_PATH = re.compile(rf'(?<![\w.}})~$-])/({FOLDERS})/[\w.]+|/site-packages/|[A-Z]:\\\\?(Users|Program)')
PICKLE_CALLS = {'torch.load', 'torch.save', 'fabric.load', 'fabric.save', 'fabric.load_raw', 'pd.read_pickle', 'joblib.dump', 'joblib.load'}
PICKLERS = {'pickle', 'cPickle', 'dill', 'cloudpickle', 'joblib', 'shelve'}


def named(paths): return pytest.mark.parametrize('path', paths, ids=lambda p: p.relative_to(ROOT).as_posix())


@cache
def cells(path, kind):
    "(source, outputs) of the cells of one kind."
    nb = json.loads(path.read_text(encoding='utf-8'))
    return [(''.join(c['source']), c.get('outputs', [])) for c in nb['cells'] if c['cell_type'] == kind]


@cache
def parse(source):
    "Syntax tree of a cell, without its magics."
    return ast.parse(re.sub(r'(?m)^(\s*)[%!].*$', r'\1pass', source))


@cache
def trees(path):
    "Syntax trees of a module or of the code cells of a notebook."
    return [ast.parse(path.read_text(encoding='utf-8'))] if path.suffix == '.py' else [parse(s) for s, _ in cells(path, 'code')]


@cache
def walk(path): return [node for tree in trees(path) for node in ast.walk(tree)]


def imports(path):
    "Names of the modules imported anywhere in a module or notebook."
    for tree in trees(path): yield from imports_of(tree)


def imports_of(tree):
    "Names of the modules imported anywhere; `from skyseek import x` counts as `skyseek.x`."
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): yield from (a.name for a in node.names)
        if isinstance(node, ast.ImportFrom):
            base = 'skyseek' + (f'.{node.module}' if node.module else '') if node.level else node.module
            if base == 'skyseek': yield from (f'skyseek.{a.name}' for a in node.names)
            else: yield base


def exported_module(path):
    "The module a notebook exports to, or None."
    found = [re.search(r'#\|\s*default_exp\s+(\S+)', source) for source, _ in cells(path, 'code')]
    return next((m[1] for m in found if m), None)


def printed(outputs):
    "Everything textual in the outputs of a cell."
    for out in outputs:
        yield ''.join(out.get('text', ''))
        yield from (''.join(v) for k, v in out.get('data', {}).items() if k.startswith('text/'))


# The tree

def test_top_level():
    listed = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode: pytest.skip('not a git checkout')
    top = {name.split('/')[0] for name in listed.stdout.splitlines()}
    assert {name for name in top if name[0] != '.'} <= TOP


@named([p for p in sorted(ROOT.glob('*')) + sorted((ROOT / 'tests').glob('*')) + MODULES if p.is_file() and p.name != '.git'])
def test_files_name_no_machine_path(path):
    found = MACHINE_PATH.search(path.read_text(encoding='utf-8')) if path != Path(__file__).resolve() else None
    assert not found, found


# Notebooks

@named(NOTEBOOKS)
def test_notebook_names_no_machine_path(path):
    texts = [source for kind in ('markdown', 'code') for source, _ in cells(path, kind)]
    texts += [text for _, outputs in cells(path, 'code') for text in printed(outputs)]
    found = [m[0] for m in map(MACHINE_PATH.search, texts) if m]
    assert not found


@named(NOTEBOOKS)
def test_notebook_is_small(path): assert path.stat().st_size < 600_000


@named(NOTEBOOKS)
def test_notebook_begins_with_title_and_quote(path):
    "The first cell is the title and a one-line description; nbdev drops whatever else stands in it."
    first = ''.join(json.loads(path.read_text(encoding='utf-8'))['cells'][0]['source'])
    assert re.fullmatch(r'# \S.*\n+> \S.*\s*', first)


@named(NOTEBOOKS)
def test_code_cells_are_short(path):
    "Forty-five lines, of which a function has forty at most; cells of imports may be longer."
    imports_only = lambda source: all(isinstance(n, (ast.Import, ast.ImportFrom)) or ast.unparse(n).startswith('log = ') for n in parse(source).body)
    long = [source.splitlines()[:3] for source, _ in cells(path, 'code') if len(source.splitlines()) > 45 and not imports_only(source)]
    assert not long


@named(NOTEBOOKS)
def test_outputs_hold_no_warning_or_error(path):
    bad = [''.join(o.get('text', o.get('evalue', '')))[:200] for _, outputs in cells(path, 'code') for o in outputs
           if o['output_type'] == 'error' or o.get('name') == 'stderr']
    assert not bad


# The pages of reference: their outputs are made from the code, and name all of it

@cache
def shown(name):
    "What the outputs of a notebook in nbs/start show."
    return '\n'.join(text for _, outputs in cells(ROOT / 'nbs' / 'start' / f'{name}.ipynb', 'code') for text in printed(outputs))


def test_every_column_is_explained():
    from skyseek.pipeline.catalogue import COLUMNS
    page = shown('columns')
    assert not [name for name, (*_, words) in COLUMNS.items() if f'| `{name}` |' not in page or words.replace('|', r'\|') not in page]


def test_every_command_and_option_is_explained():
    from skyseek.pipeline.cli import make_parser
    sub = next(a for a in make_parser()._actions if hasattr(a, 'choices') and isinstance(a.choices, dict))
    page, guide = shown('commands'), shown('which_command')
    assert not [name for name in sub.choices if f'(#{name})' not in page or f'(commands.html#{name})' not in guide]
    options = {o for p in sub.choices.values() for a in p._actions for o in a.option_strings} - {'-h', '--help'}
    assert not [o for o in options if f'`{o}`' not in page]


@named(MODULES)
def test_api_index_names_every_public_function_and_class(path):
    tree = trees(path)[0]
    kinds, page = (ast.FunctionDef, ast.ClassDef), shown('api')
    public = [n.name for n in tree.body if isinstance(n, kinds) and n.name[0] != '_'
              and not any(ast.unparse(d).startswith('patch') for d in n.decorator_list)]
    module = path.relative_to(ROOT / 'skyseek').with_suffix('').as_posix()
    assert not [name for name in public if f'[`{name}`](../{module}.html#{name.lower()})' not in page]


# The order: wings, and inside a wing the numbers

def place(path):
    "(wing, number) of a notebook, as it is compared."
    return WINGS.index(path.parent.name), path.name


PLACES = {f'skyseek.{exported_module(p)}': place(p) for p in NOTEBOOKS if exported_module(p)}


@named([p for p in NOTEBOOKS if p.parent != ROOT / 'nbs' and p.parent.name not in ('tutorials', 'start')])
def test_notebook_exports_to_the_module_of_its_name(path):
    wing, name = path.parent.name, re.fullmatch(r'\d\d_(\w+)', path.stem)[1]
    assert exported_module(path) == f'{wing}.{name}' and wing in WINGS


@named([p for p in NOTEBOOKS if exported_module(p)])
def test_notebook_imports_from_an_earlier_wing_or_a_lower_number(path):
    "Examples may use a mock archive before its turn: it must exist before it can be read."
    code = [source for source, _ in cells(path, 'code')]
    exports = [s for s in code if re.match(r'\s*#\|\s*export', s)]
    late = lambda sources: {name for s in sources for name in imports_of(parse(s)) if name in PLACES and PLACES[name] >= place(path)}
    assert not late(exports)
    assert late(code) <= {f'skyseek.{exported_module(path)}', *(MOCK if path.parent.name == 'data' else ())}


@named(MODULES)
def test_no_private_name_is_imported(path):
    private = [f'{n.module}.{a.name}' for n in walk(path) if isinstance(n, ast.ImportFrom) and (n.level or (n.module or '').startswith('skyseek'))
               for a in n.names if a.name[0] == '_' and a.name != '__version__']
    assert not private


def test_no_simulator_on_the_way_to_a_catalogue():
    code = 'import sys, skyseek.pipeline.survey, skyseek.pipeline.catalogue; print([m for m in sys.modules if m.startswith("skyseek.simulate")])'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.strip() == '[]', done.stderr + done.stdout


# Modules

@named(MODULES)
def test_module_comes_from_a_notebook(path):
    assert path.read_text(encoding='utf-8').count('AUTOGENERATED! DO NOT EDIT! File to edit: ') == 1


@named(MODULES)
def test_module_is_short(path): assert len(path.read_text(encoding='utf-8').splitlines()) <= 400


@named(MODULES)
def test_functions_are_short(path):
    long = {n.name: n.end_lineno - n.lineno + 1 for n in walk(path) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))}
    assert not {name: lines for name, lines in long.items() if lines > 40}


def own_lines(path):
    "Lines of a module, without the list of names that nbdev makes."
    text = path.read_text(encoding='utf-8')
    made = next((n for n in ast.parse(text).body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == '__all__'), None)
    skip = range(made.lineno, made.end_lineno + 1) if made else ()
    return {i: line for i, line in enumerate(text.splitlines(), 1) if i not in skip}


@named(MODULES)
def test_lines_are_short(path):
    assert not {i: len(line) for i, line in own_lines(path).items() if len(line) > 120}


@named(MODULES)
def test_one_statement_a_line(path):
    lines, shared = path.read_text(encoding='utf-8').splitlines(), []
    for node in walk(path):
        if isinstance(node, ast.stmt):
            before = lines[node.lineno - 1].encode()[:node.col_offset].decode().strip()
            if before and not before.startswith('@'): shared.append(node.lineno)
    assert not shared


def public_functions(path):
    "(name, node) of the public functions and methods of a module."
    for node in trees(path)[0].body:
        if isinstance(node, ast.FunctionDef) and node.name[0] != '_': yield node.name, node
        if isinstance(node, ast.ClassDef) and node.name[0] != '_':
            for sub in node.body:
                if isinstance(sub, ast.FunctionDef) and (sub.name[0] != '_' or sub.name == '__init__'): yield f'{node.name}.{sub.name}', sub


@named(MODULES)
def test_public_functions_have_types(path):
    bare = []
    for name, node in public_functions(path):
        args = [a for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs) if a.arg not in ('self', 'cls')]
        if any(a.annotation is None for a in args) or node.returns is None and node.name != '__init__': bare.append(name)
    assert not bare


def test_import_skyseek_loads_nothing_heavy():
    code = 'import sys, skyseek; print([m for m in ("numpy", "astropy", "torch", "fastcore") if m in sys.modules])'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.strip() == '[]', done.stderr + done.stdout


def test_the_front_door_hands_out_what_it_lists():
    import skyseek
    for name in skyseek.__all__: assert (getattr(skyseek, name).__doc__ or '').strip(), name
    assert 'Parameters' in skyseek.score.__doc__ and '(N,' in skyseek.match_truth.__doc__


@named(MODULES)
def test_public_names_have_docstrings(path):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    tree = trees(path)[0]
    assert not [n.name for n in tree.body if isinstance(n, kinds) and n.name[0] != '_' and not ast.get_docstring(n)]


@named(MODULES + NOTEBOOKS)
def test_nothing_is_pickled(path):
    calls = {ast.unparse(n.func) for n in walk(path) if isinstance(n, ast.Call)}
    assert not calls & PICKLE_CALLS and not {c for c in calls if c.endswith('_pickle')}
    assert not {name.split('.')[0] for name in imports(path)} & PICKLERS
    assert not [n for n in walk(path) if isinstance(n, ast.keyword) and n.arg == 'allow_pickle' and getattr(n.value, 'value', None) is not False]


@named(MODULES)
def test_no_assert_print_or_bare_except(path):
    found = [n.lineno for n in walk(path) if isinstance(n, ast.Assert) or isinstance(n, ast.ExceptHandler) and n.type is None
             or isinstance(n, ast.Call) and ast.unparse(n.func) == 'print' and not path.stem.startswith('cli')]
    assert not found and not re.search(r'\b(TODO|FIXME|XXX)\b', path.read_text(encoding='utf-8'))
