"""Where a library could replace code of skyseek: both on the same task, one table. By hand: python tests/benchmarks/bench_libraries.py [--rounds 7]

Tasks: repeating a call after a failure (tenacity), reading some HDUs of a remote coadd (astropy with fsspec), writing a FITS table in blocks (astropy's
StreamingHDU, fitsio), and the command line (Typer). The row in use is marked with a star. A library that is not installed is named; to see all rows:
pip install tenacity fitsio typer. Lines are those of the bodies of functions, here or in skyseek. Two minutes on one core.
"""
import argparse
import ast
import importlib.util
import inspect
import logging
import os
import random
import re
import subprocess
import sys
import tempfile
import textwrap
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT/'tests')]
os.environ.setdefault('OMP_NUM_THREADS', '1')
warnings.simplefilter('ignore')
logging.disable(logging.CRITICAL)

import numpy as np  # noqa: E402
from astropy.io import fits  # noqa: E402


def row(task, way, lines='', seconds=None, much='', words=''):
    "A line of the table."
    spent = '' if seconds is None else f'{1e3*seconds:.1f} ms' if seconds > 1e-3 else f'{1e6*seconds:.0f} µs'
    print(f'{task:13} {way:37} {lines!s:>5} {spent:>10} {much:>27}  {words}', flush=True)


def lacks(task, library):
    "Whether a library is not installed; says so in the table."
    if importlib.util.find_spec(library): return False
    row(task, library, words='skipped: not installed')
    return True


def code_lines(*functions):
    "Lines of the bodies of functions, without docstrings, comments and imports."
    total = 0
    for function in functions:
        text = textwrap.dedent(inspect.getsource(function))
        body = ast.parse(text).body[0].body
        left_out = [n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.Import, ast.ImportFrom)) or isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)]
        wanted = set(range(body[0].lineno, body[-1].end_lineno + 1)) - {k for n in left_out for k in range(n.lineno, n.end_lineno + 1)}
        total += sum(bool(line.split('#')[0].strip()) for k, line in enumerate(text.splitlines(), 1) if k in wanted)
    return total


def best(work, rounds):
    "Least seconds of several calls."
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def elsewhere(code, rounds=1):
    "Least seconds of a process that runs this code, and what it printed."
    run = lambda: subprocess.run([sys.executable, '-c', textwrap.dedent(code)], capture_output=True, text=True, env=os.environ | {'PYTHONPATH': os.pathsep.join([str(ROOT), str(Path(__file__).parent)])})
    seconds = best(run, rounds)
    return seconds, run()


# 1. A call that is repeated after a failure

def own_again(work, what, patience=1., tries=4):
    "The loop that skyseek had before it used tenacity."
    from skyseek.data.hdus import ReadError
    from skyseek.data.retry import Unreachable, _is_permanent, _of_network, _reason
    for k in range(tries):
        try:
            return work()
        except Exception as e:
            if not _of_network(e):
                raise
            why, permanent = e, _is_permanent(e)
        if permanent or k == tries - 1:
            break
        time.sleep(patience*3**k*random.uniform(.7, 1.3))
    if permanent:
        raise ReadError(f"{what}: {_reason(why)}; check the root and the name") from why
    raise Unreachable(f"{what}: {_reason(why)}, {tries} times; try again later") from why


FAILURES = {'reset': ConnectionResetError('cut'), 'no answer': TimeoutError(), '404': FileNotFoundError(), 'a fault of the program': KeyError('x')}


def calls_until_the_end(again):
    "How often a call that always fails is made, by failure."
    counts = {}
    for name, error in FAILURES.items():
        counts[name] = 0
        def work():
            counts[name] += 1
            raise error
        try: again(work, 'x', patience=0)
        except (ValueError, KeyError): pass
    return ', '.join(f'{name} {n}' for name, n in counts.items())


def retries(rounds):
    "Rows on repeated calls."
    from skyseek.data.retry import again, retrying
    many = lambda again: best(lambda: [again(int, 'x') for _ in range(1000)], rounds)/1000
    row('retries', 'a loop of its own', code_lines(own_again), many(own_again), 'no import', f'calls: {calls_until_the_end(own_again)}')
    base, loaded = (elsewhere(f'import random, time{more}', rounds)[0] for more in ('', ', tenacity'))
    row('retries', '* tenacity', code_lines(again, retrying), many(again), f'import {1e3*(loaded - base):.0f} ms', f'calls: {calls_until_the_end(again)}')


# 2. Some HDUs of a coadd behind http

def needed_by_astropy(url, rows=slice(None), **options):
    "The HDUs that skyseek needs, by `fits.open` with fsspec; `rows` of each image."
    from skyseek.data.byte_ranges import NEEDED
    with fits.open(url, use_fsspec=True, lazy_load_hdus=False, fsspec_kwargs=options or None) as hdus:
        return {h.name: np.array(h.section[rows] if h.is_image and len(h.shape) == 2 else h.data) for h in hdus if NEEDED.match(h.name)}


def needed_by_skyseek(url, folder):
    "The same by `fetch_needed`, which checks sums and version; then from the disk."
    from skyseek.data.archive import Archive
    from skyseek.data.byte_ranges import NEEDED, fetch_needed
    root, name = url.rsplit('/', 1)
    path = fetch_needed(Archive(root, patience=.01, timeout=5.), name, folder/'fetched.fits')
    with fits.open(path) as hdus: return {h.name: np.array(h.data) for h in hdus if NEEDED.match(h.name)}


def remote(rounds, n=100):
    "Rows on a remote coadd of n targets with resolution matrices."
    from bench_extract import make_coadd
    from servers import small_server
    for library in ('fsspec', 'aiohttp'):
        if lacks('remote HDUs', library): return
    import skyseek.data.byte_ranges as module
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        path = make_coadd(folder/'coadd-main-dark-9999.fits', n)
        with fits.open(path, mode='update') as hdus:
            for hdu in hdus: hdu.add_checksum()
        tail = dict(block_size=4*2880, cache_type='bytes')
        parts = [module._Reader.__call__, module._Reader._once, module._read_header, module._end_card, module._data_size, module._piece, module.plan_pieces, module.needed_ranges,
                 module._check_heads, module._check_sums, module._is_wrong, module.fetch_needed]
        ways = {'* fetch_needed, all rows': (lambda url: needed_by_skyseek(url, folder), code_lines(*parts)),
                'astropy use_fsspec, all rows': (needed_by_astropy, code_lines(needed_by_astropy)),
                'astropy, blocks of 11.5 kB, all rows': (lambda url: needed_by_astropy(url, **tail), code_lines(needed_by_astropy)),
                'astropy use_fsspec, one row': (lambda url: needed_by_astropy(url, slice(7, 8)), code_lines(needed_by_astropy)),
                'astropy, blocks of 11.5 kB, one row': (lambda url: needed_by_astropy(url, slice(7, 8), **tail), code_lines(needed_by_astropy)),
                'astropy, no cache, one row': (lambda url: needed_by_astropy(url, slice(7, 8), cache_type='none'), code_lines(needed_by_astropy))}
        size = path.stat().st_size
        for name, (read, lines) in ways.items():
            seen = []
            with small_server(folder, lambda self, path, start: seen.append(self.headers.get('Range', ''))) as address:
                url = f'{address}/{path.name}'
                seconds = best(lambda: (seen.clear(), read(url)), min(rounds, 3))
                fetched = sum(_length(r, size) for r in seen)
                words = f'{fetched/size:.0%} of the file' + ('' if 'one row' in name else '; ' + faults(read, path, folder))
            row('remote HDUs', name, lines, seconds, f'{fetched/1e6:.2f} MB, {len(seen)} requests', words)


def _length(text, size):
    "Bytes of a requested range; none for a HEAD or for a whole file."
    found = re.fullmatch(r'bytes=(\d+)-(\d*)', text)
    return min(int(found[2] or size - 1), size - 1) - int(found[1]) + 1 if found else 0


def faults(read, path, folder, times=12):
    "What comes of a server with faults in one of ten responses: right, an error, or wrong numbers without an error."
    from servers import serving
    with fits.open(path) as hdus: truth = {h.name: np.array(h.data) for h in hdus if h.name}
    found = []
    for fault in ('503', 'cut', 'wrong'):
        counts = dict(right=0, error=0, wrong=0)
        with serving(folder, {fault: .1}, only='coadd') as address:
            for _ in range(times):
                try: got = read(f'{address}/{path.name}')
                except Exception: counts['error'] += 1
                else: counts['right' if all(np.array_equal(a, truth[name]) for name, a in got.items()) else 'wrong'] += 1
        found.append(f"{fault} {counts['right']}/{counts['error']}/{counts['wrong']}")
    return 'right/error/wrong numbers: ' + ', '.join(found)


# 3. A FITS table that is written in blocks

def blocks(n=40, size=5000):
    "Header and blocks of a catalogue: rows in the types of FITS."
    from skyseek.pipeline.parts import PART_COLUMNS
    from skyseek.pipeline.survey_catalogue import EXTRA, _fits_type, _table_header
    names = [*PART_COLUMNS, *EXTRA]
    types = {name: _fits_type(name)[0] for name in names}
    dtype = np.dtype([(name, *t) if isinstance(t, tuple) else (name, t) for name, t in types.items()])
    block = np.zeros(size, dtype)
    for name in names:
        if block[name].dtype.kind in 'if': block[name] = np.arange(block[name].size).reshape(block[name].shape) % 1000
        elif _fits_type(name)[1] == 'L': block[name] = b'T'
    return _table_header(names, dtype, n*size, {}), (block for _ in range(n))


def by_hand(path, header, blocks):
    "Bytes of headers, rows and padding."
    with open(path, 'wb') as f:
        f.write(fits.PrimaryHDU().header.tostring().encode())
        f.write(header.tostring().encode())
        written = 0
        for block in blocks:
            written += f.write(block.tobytes())
        f.write(b'\0'*(-written % 2880))


def by_streaming(path, header, blocks):
    "astropy's StreamingHDU; it takes no empty block."
    out = fits.StreamingHDU(path, header)
    for block in blocks:
        if len(block):
            out.write(block.view('u1'))
    out.close()


def by_fitsio(path, header, blocks):
    "fitsio's append; comments of columns are written afterwards."
    import fitsio
    with fitsio.FITS(str(path), 'rw', clobber=True) as out:
        for k, block in enumerate(blocks):
            if k == 0:
                units = [header.get(f'TUNIT{i}', '') for i in range(1, header['TFIELDS'] + 1)]
                out.write(block, extname=header['EXTNAME'], units=units)
            else:
                out[-1].append(block)
        for card in header.cards:
            if card.keyword.startswith('TCOMM'):
                out[-1].write_key(card.keyword, card.value)


def peak_memory(way):
    "MB beyond what the imports and one block take, in a process of its own."
    done = elsewhere(f"""
        import ctypes, gc, tempfile
        import bench_libraries as b
        used = lambda key: next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith(key))/1e3
        with tempfile.TemporaryDirectory() as folder:
            b.{way.__name__}(b.Path(folder)/'a.fits', *b.blocks(1, 10))
            header, blocks = b.blocks()
            gc.collect(); ctypes.CDLL(None).malloc_trim(0)
            open('/proc/self/clear_refs', 'w').write('5')  # reset the high-water mark
            before = used('VmRSS')
            b.{way.__name__}(b.Path(folder)/'b.fits', header, blocks)
            print(used('VmHWM') - before)
        """)[1]
    return float(done.stdout.split()[-1]) if done.returncode == 0 else np.nan


def written(rounds):
    "Rows on writing a table in blocks."
    with tempfile.TemporaryDirectory() as folder:
        by_hand(reference := Path(folder)/'hand.fits', *blocks())
        size = reference.stat().st_size/1e6
        for name, way in {'bytes by hand': by_hand, '* astropy StreamingHDU': by_streaming, 'fitsio': by_fitsio}.items():
            if name == 'fitsio' and lacks('FITS blocks', name): continue
            times = []
            for _ in range(min(rounds, 5)):
                (path := Path(folder)/'b.fits').unlink(missing_ok=True)
                times.append(best(lambda: way(path, *blocks()), 1))
            same = 'the same bytes' if path.read_bytes() == reference.read_bytes() else 'the same table' if _same_table(path, reference) else 'other values or column keywords'
            row('FITS blocks', name, code_lines(way), min(times), f'{size:.0f} MB, +{peak_memory(way):.0f} MB memory', same)


def _same_table(a, b):
    "Whether two files hold the same rows, units and comments of columns."
    with fits.open(a) as x, fits.open(b) as y:
        cards = [[(c.keyword, c.value) for c in h[1].header.cards if re.match('T(TYPE|UNIT|COMM)', c.keyword)] for h in (x, y)]
        return sorted(cards[0]) == sorted(cards[1]) and np.array_equal(np.asarray(x[1].data).view('u1'), np.asarray(y[1].data).view('u1'))


# 4. The command line

def typer_app():
    "All commands as a Typer application: plain help, comments as help, short names, types."
    import typer
    from fastcore.docments import docments
    from skyseek.pipeline.cli import COMMANDS
    from skyseek.pipeline.cli_tools import _COMMON, _SHORT
    app = typer.Typer(name='skyseek', rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
    for function in COMMANDS:
        app.command(function.__name__.strip('_').replace('_', '-'))(as_typer(function, docments(function), _COMMON, _SHORT))
    return app


def as_typer(function, comments, common, short):
    "A function whose signature Typer understands."
    import typer
    from functools import wraps
    from typing import Annotated, Literal, get_args, get_origin, get_type_hints
    kinds, parameters = get_type_hints(function, include_extras=True), []
    for p in inspect.signature(function).parameters.values():
        kind, extra = kinds[p.name], {}
        if get_origin(kind) is Annotated:
            kind, extra = get_args(kind)
        words = comments.get(p.name) or common[p.name]
        flags = (extra.get('flags') or short.get(p.name) or '--' + p.name.strip('_').replace('_', '-')).split()
        if p.kind is not p.KEYWORD_ONLY:
            mark = typer.Argument(help=words)
        elif callable(extra.get('type')):
            mark = typer.Option(*flags, help=words, parser=extra['type'])
        else:
            mark = typer.Option(*flags, help=words)
        kind = int if getattr(kind, '__name__', '') == 'Natural' else kind
        kind = list[str] if get_origin(kind) is list and get_origin(get_args(kind)[0]) is Literal else kind  # it has no lists of choices
        parameters.append(p.replace(annotation=Annotated[kind, mark]))
    run = wraps(function)(lambda **given: None)  # only the parser is compared
    del run.__wrapped__
    run.__signature__ = inspect.Signature(parameters)
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


LINES = {'short names': ('simulate -o x -n 3', True), 'choice': ('fetch-vi -o x --depth none', False), 'required option': ('simulate', False),
         'words after one option': ('fetch-vi -o x --tiles 80605 80606', True), 'list of choices': ('fetch-vi -o x --samples FOO', False),
         'output as the last word': ('survey https://x out', True)}


def command_line(rounds):
    "Rows on the command line: what is accepted or refused as it should be."
    from skyseek.pipeline import cli_tools as tools
    ours = 'import sys; import skyseek.pipeline.cli as cli; cli.call = cli.check_paths = lambda a: 0; sys.exit(cli.main(ARGS))'
    theirs = '\n'.join(['import inspect', *map(inspect.getsource, (as_typer, typer_app)), 'typer_app()(ARGS)'])
    lines = code_lines(tools._options, tools._add, tools.add_command, tools.call, tools.settle_output), code_lines(typer_app, as_typer)
    for name, code, count in (('* argparse by add_command', ours, lines[0]), ('typer', theirs, lines[1])):
        if name == 'typer' and lacks('command line', name): continue
        given = lambda words: code.replace('ARGS', repr(words))
        seconds = elsewhere(given(['--help']), rounds)[0]
        fine = {what: elsewhere(given(line.split()))[1].returncode == (0 if accept else 2) for what, (line, accept) in LINES.items()}
        wrong = ', '.join(what for what, good in fine.items() if not good)
        row('command line', name, count, seconds, 'skyseek --help', f'{sum(fine.values())} of {len(fine)} kinds of arguments' + f', not: {wrong}'*bool(wrong))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=7, help='the best of so many counts')
    parser.add_argument('--only', choices=('retries', 'remote', 'written', 'command_line'), help='one task')
    args = parser.parse_args()
    print(f'{"task":13} {"way (* in use)":37} {"lines":>5} {"time":>10} {"bytes, memory, imports":>27}  behaviour')
    for task in (retries, remote, written, command_line):
        if args.only in (None, task.__name__): task(args.rounds)
