"""Re-execute notebooks with the weights of the package, and check that the numbers in their prose still hold.

    python tests/fresh.py                 those that take seconds
    python tests/fresh.py --all           all that need no GPU (hours: tutorials train networks)
    python tests/fresh.py nbs/x.ipynb …   these

A number that stands in the prose and in an output of the same notebook must stand in its new outputs too, and a
notebook must run. Nothing is written; outputs are renewed in Jupyter. Cells marked cuda, slow, network or eval: false
keep the outputs that they have.
"""
import argparse
import json
import os
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / 'nbs'
QUICK = ('index', 'data/*_constants', 'data/*_truth', 'redshift/*_redshift_metrics', 'detect/*_familiarity', 'pipeline/*_score')
NUMBER = re.compile(r'(?<![\w.])\d+(?:[.,]\d+)*(?:e[+-]?\d+)?')
LEFT = re.compile(r'(?m)^\s*#\s*\|\s*(cuda|slow|network|eval:\s*false)\b')


def numbers(text):
    "Numbers of more than one digit in a text, without commas for thousands."
    found = {m[0].replace(',', '') for m in NUMBER.finditer(text)}
    return {n for n in found if len(n) > 1}


def prose(nb):
    "What a reader reads, without code, links and formulas."
    text = '\n'.join(''.join(c['source']) for c in nb['cells'] if c['cell_type'] == 'markdown')
    return re.sub(r'```.*?```|`[^`]*`|\$[^$]*\$|\]\([^)]*\)|arXiv[: ]*[\d.]+', ' ', text, flags=re.S)


def shown(cells):
    "Everything textual in the outputs of code cells."
    parts = []
    for c in cells:
        for out in c.get('outputs', []):
            parts.append(''.join(out.get('text', '')))
            parts += [''.join(v) for k, v in out.get('data', {}).items() if k.startswith('text/')]
    return '\n'.join(parts)


def repeated(nb):
    "Numbers that prose repeats from outputs."
    return numbers(prose(nb)) & numbers(shown(nb['cells']))


def execute(path, timeout):
    "The notebook with new outputs; cells that are left out keep theirs."
    nb = nbformat.read(path, as_version=4)
    kept = {}
    for i, c in enumerate(nb.cells):
        if c.cell_type == 'code' and LEFT.search(c.source):
            kept[i] = (c.source, c.outputs)
            c.source = ''
    os.environ.pop('MPLBACKEND', None)  # figures belong to the outputs
    NotebookClient(nb, timeout=timeout, kernel_name='python3', resources={'metadata': {'path': str(path.parent)}}).execute()
    for i, (source, outputs) in kept.items():
        nb.cells[i].source, nb.cells[i].outputs = source, outputs
    return nb


def check(path, timeout=3600):
    "What is wrong with a notebook, as lines."
    name, old = path.relative_to(ROOT), json.loads(path.read_text(encoding='utf-8'))
    try:
        new = execute(path, timeout)
    except CellExecutionError as e:
        return [f'{name}: does not run: {str(e).strip().splitlines()[-1]}']
    lost = sorted(repeated(old) - numbers(shown(new.cells)), key=float)
    return [f"{name}: the prose says {', '.join(lost)}, the outputs no longer do: run it anew and renew the prose"] if lost else []


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('notebooks', nargs='*', type=Path)
    parser.add_argument('--all', action='store_true')
    args = parser.parse_args()
    paths = [p.resolve() for p in args.notebooks] or [next(NBS.glob(f'{name}.ipynb')) for name in QUICK]
    if args.all: paths = sorted(p for p in NBS.rglob('*.ipynb') if not any(part[0] in '._' for part in p.relative_to(NBS).parts))
    wrong = []
    for path in paths:
        found = check(path)
        print(f"{path.relative_to(ROOT)}: {'stale' if found else 'fresh'}", flush=True)
        wrong += found
    print('\n'.join(wrong) or f'{len(paths)} notebooks, the numbers in their prose hold')
    return 1 if wrong else 0


if __name__ == '__main__': sys.exit(main())
