"""Where the time of `skyseek score` goes, beside an older commit, and whether both write the same catalogue.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_score.py --data ../shared/data [--before 78d6a9d] [--train 2] [--repeat 2]
    OMP_NUM_THREADS=1 python tests/benchmarks/bench_score.py --data ../shared/data --memory

Run by hand in a clone of the repository; without --data the folder is that of the variable SKYSEEK_DATA. Each version runs in a process of its own, on the three validation files of the benchmark and on
`--train` files of its training part. Seconds are processor time of one thread; a stage inside another counts for the outer one.
The older commit is taken out of git into a temporary folder.
"""

import argparse
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
STAGES = {  # name: [(module, attribute)]
    'reading': [('pipeline.score', 'read_targets'), ('data.read', 'file_kind')],
    'scan': [('pipeline.score', 'scan_redshift')],
    'repairs': [('redshift.second_look', 'repair_suspicious')],
    'candidates': [('redshift.second_look', 'candidates')],
    'ranking': [('redshift.second_look', 'judge_candidates'), ('redshift.second_look', 'evidence_columns'),
                ('redshift.second_look', 'second_opinion'), ('redshift.candidates', 'Candidates.features')],
    'encoder': [('pipeline.score', 'build_features'), ('pipeline.score', 'encode'), ('pipeline.score', 'encode_features')],
    'classifier': [('pipeline.score', '_probabilities'), ('pipeline.score', 'familiarity_columns')],
    "DESI's rules": [('pipeline.score', 'pipeline_columns')],
    'causes': [('pipeline.score', 'cause_columns')],
    'anomaly': [('pipeline.score', 'odd_columns')],
    'catalogue': [('pipeline.catalogue', 'make_catalogue'), ('pipeline.catalogue', 'write_catalogue')]}


class Clock:
    "Processor time by stage."
    def __init__(self): self.seconds, self.inside = dict.fromkeys(STAGES, 0.), False

    def wrap(self, stage, function):
        def timed(*args, **options):
            if self.inside: return function(*args, **options)
            self.inside, start = True, time.process_time()
            try: return function(*args, **options)
            finally:
                self.seconds[stage] += time.process_time() - start
                self.inside = False
        return timed


def work(out, data, train):
    "Score in this process; writes seconds by stage, peak memory and the catalogue."
    start = time.process_time()
    from importlib import import_module
    from skyseek.pipeline import catalogue, score
    imports, clock = time.process_time() - start, Clock()
    weights = score.load_weights()
    loading = time.process_time() - start - imports
    for stage, places in STAGES.items():
        for module, name in places:
            owner = import_module(f'skyseek.{module}')
            *path, name = name.split('.')
            for p in path: owner = getattr(owner, p)
            if hasattr(owner, name): setattr(owner, name, clock.wrap(stage, getattr(owner, name)))
    bench = Path(data)/'redrock_bench'
    paths = sorted((bench/'validation').glob('coadd-*.fits')) + sorted((bench/'train').glob('coadd-*.fits'))[:train]
    begin = time.process_time()
    tables, failed = score.score_files(paths, weights, progress=False)
    table = catalogue.make_catalogue(tables, weights)
    with tempfile.TemporaryDirectory() as folder: catalogue.write_catalogue(table, Path(folder)/'catalogue.fits')
    total, memory = time.process_time() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e6
    assert not failed, failed
    Path(out).write_bytes(pickle.dumps(dict(imports=imports, loading=loading, total=total, stages=clock.seconds, memory=memory, table=table)))


def run(tree, data, train):
    "The same in another process, with the package of a folder."
    with tempfile.TemporaryDirectory() as folder:
        out, env = Path(folder)/'out.pkl', os.environ | dict(PYTHONPATH=str(tree), OMP_NUM_THREADS='1', MPLBACKEND='agg')
        subprocess.run([sys.executable, __file__, '--data', str(data), '--train', str(train), '--work', str(out)], env=env, cwd=tree, check=True)
        return pickle.loads(out.read_bytes())


def memory(data, most=5000, rows=100_000):
    "Peak memory of this process as it scores file after file, and as it writes a long catalogue."
    from skyseek.pipeline import catalogue, parts, score
    weights, n, tables, peak = score.load_weights(), 0, [], lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e6
    paths = sorted((Path(data)/'redrock_bench').glob('*/coadd-*.fits'))
    for k in range(10**6):
        if n > most: break
        tables.append(score.score_file(paths[k % len(paths)], weights))
        n += len(tables[-1])
        if (n - len(tables[-1]))//1000 < n//1000: print(f'{n:7d} spectra scored: {peak():.2f} GB at most', flush=True)
    many = [tables[k % len(tables)].copy() for k in range(rows*len(tables)//n + 1)]
    table = parts.complete(catalogue.make_catalogue(many, weights))
    with tempfile.TemporaryDirectory() as folder: catalogue.write_catalogue(table, Path(folder)/'catalogue.fits')
    print(f'{len(table):7d} rows joined and written: {peak():.2f} GB at most')


def at_commit(commit, folder):
    "The package of a commit in a folder."
    archive = subprocess.run(['git', 'archive', commit, 'skyseek'], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(['tar', '-x', '-C', str(folder)], input=archive, check=True)
    return folder


def compare(a, b):
    "Differences of two catalogues, column by column: lines of text."
    out = [f'columns only in one: {sorted(set(a.colnames) ^ set(b.colnames))}'] if a.colnames != b.colnames else []
    for name in [c for c in a.colnames if c in b.colnames]:
        x, y = (np.ma.filled(np.ma.asarray(t[name]), 0) if t[name].dtype.kind in 'fiub' else np.asarray(t[name]).astype(str) for t in (a, b))
        same = (x == y) | ((x != x) & (y != y))
        if same.all(): continue
        line = f'{name}: {(~same).sum()} of {x.size} values differ'
        if x.dtype.kind == 'f':
            off = np.abs(x - y)[~same]
            line += f', by {np.nanmax(off):.2g} at most, {np.nanmax(off/np.maximum(np.abs(x[~same]), 1e-30)):.2g} relative; nan in one: {np.isnan(off).sum()}'
        elif x.dtype.kind == 'U':
            i = np.flatnonzero(~same)[0]
            line += f', e.g. {str(x[i])!r} and {str(y[i])!r}'
        out.append(line)
    return out


def show(old, new):
    "Print the table of both, and what differs."
    n, table = len(new['table']), new['table']
    flagged = np.asarray(table['FLAG_Z_WRONG'] | table['FLAG_S_WRONG'])
    runs = [r for r in (old, new) if r]
    print(f"{n} spectra, {flagged.mean():.1%} flagged, one thread, ms of processor time a spectrum\n")
    print('| stage |' + ''.join(f' {name} |' for name in ('before', 'now')[-len(runs):]) + '\n|---' + '|---:'*len(runs) + '|')
    per = lambda seconds: f'{1e3*seconds/n:.2f}'
    for stage in STAGES: print(f'| {stage} |' + ''.join(f" {per(r['stages'][stage])} |" for r in runs))
    print('| all else |' + ''.join(f" {per(r['total'] - sum(r['stages'].values()))} |" for r in runs))
    print('| **sum** |' + ''.join(f" **{per(r['total'])}** |" for r in runs))
    print('| spectra a second |' + ''.join(f" {n/r['total']:.0f} |" for r in runs))
    rare = lambda r: n/(r['total'] - (1 - .05/flagged.mean())*r['stages']['causes'])
    print('| the same with 5 % flagged (causes scaled) |' + ''.join(f' {rare(r):.0f} |' for r in runs))
    second = lambda r: sum(r['stages'][k] for k in ('repairs', 'candidates', 'ranking'))
    print('| repairs, candidates, ranking over the scan before |' + ''.join(f" {second(r)/runs[0]['stages']['scan']:.2f} |" for r in runs))
    print('| s to import, to load weights |' + ''.join(f" {r['imports']:.2f}, {r['loading']:.2f} |" for r in runs))
    print('| GB of memory at most |' + ''.join(f" {r['memory']:.2f} |" for r in runs))
    if old:
        lines = compare(old['table'], table)
        print(f"\ncatalogues: {len(table.colnames)} columns, {len(lines)} with differences")
        for line in lines: print(line)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--data', default=os.environ.get('SKYSEEK_DATA', '../shared/data'))
    parser.add_argument('--memory', action='store_true', help='instead, peak memory of 5,000 spectra and of a catalogue of 100,000')
    parser.add_argument('--train', type=int, default=2, help='files of the training part beside the three of validation')
    parser.add_argument('--before', default='78d6a9d', help='commit to compare with; none: no other')
    parser.add_argument('--repeat', type=int, default=1, help='runs of each version, in turns; the fastest counts')
    parser.add_argument('--work', help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.work:
        work(a.work, a.data, a.train)
        sys.exit()
    a.data = Path(a.data).resolve()
    if a.memory:
        memory(a.data)
        sys.exit()
    with tempfile.TemporaryDirectory() as folder:
        trees = [ROOT] if a.before == 'none' else [at_commit(a.before, Path(folder)), ROOT]
        runs = [[run(tree, a.data, a.train) for tree in trees] for _ in range(a.repeat)]  # in turns
    best = [min(same, key=lambda r: r['total']) for same in zip(*runs)]
    show(best[0] if len(best) == 2 else None, best[-1])
