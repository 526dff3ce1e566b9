"""Time and memory of reading and merging a coadd, beside desispec in the same run. By hand: python tests/benchmarks/bench_extract.py [coadd ...]

Without arguments a coadd of 500 targets is made up in a temporary folder, laid out as DESI does it (plain images, MASK with an offset, RESOLUTION, 446 kB
a target). Install desispec (pip install desispec) to see its rows. Best of several rounds, the readers taking turns, files in the page cache.
"""
import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT/'tests')]
os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('DESI_LOGLEVEL', 'error')
warnings.simplefilter('ignore')

import numpy as np  # noqa: E402


def skyseek(path):
    "read_coadd: flux, ivar and mask of three arms, merged; FIBERMAP and SCORES."
    from skyseek.data.desi import read_coadd
    spectra = read_coadd(path)
    return spectra.flux, spectra.ivar


def desispec(path, skip=('RESOLUTION',)):
    "read_spectra + coadd_cameras, without the resolution matrices."
    from desispec.coaddition import coadd_cameras
    from desispec.io import read_spectra
    merged = coadd_cameras(read_spectra(str(path), skip_hdus=list(skip)))
    return merged.flux['brz'], merged.ivar['brz']


def desispec_everything(path):
    "read_spectra + coadd_cameras as they are called by default, with the resolution matrices."
    return desispec(path, ())


def desispec_without_mask(path):
    "The same without MASK: less work, and masked pixels count."
    return desispec(path, ('RESOLUTION', 'MASK'))


def make_coadd(path, n):
    "A plain coadd of n targets in DESI's layout."
    from surveys import ARMS, coadd_parts, write_parts
    parts = {}
    for name, image in coadd_parts(n).items():
        parts[name] = image
        if name.endswith('_MASK'): parts[f'{name[0]}_IVAR'][image != 0] = 0  # as in DESI's files; desispec does not fold the mask in
        if name.endswith('_MASK'): parts[f'{name[0]}_RESOLUTION'] = np.full((n, 11, ARMS[name[0]][1]), 1/11, 'f4')
    return write_parts(path, parts)


def peak_memory(reader, path):
    "Most memory beyond what the imports take, in units of the float32 arrays kept; measured in a process of its own."
    code = f"""if True:
        import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]
        import bench_extract as b
        used = lambda key: next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith(key))*1024
        b.{reader.__name__}({str(path)!r})  # imports, caches
        import ctypes, gc; gc.collect(); ctypes.CDLL(None).malloc_trim(0)
        open('/proc/self/clear_refs', 'w').write('5')  # reset the high-water mark
        before = used('VmRSS')
        flux, ivar = b.{reader.__name__}({str(path)!r})
        print((used('VmHWM') - before)/(flux.size*8))
    """
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    return float(done.stdout.split()[-1]) if done.returncode == 0 else np.nan


def bench(path, rounds):
    "Print the table of one coadd."
    readers = [skyseek] + [desispec_everything, desispec, desispec_without_mask]*bool(importlib.util.find_spec('desispec'))
    times, results = {r: [] for r in readers}, {}
    for i in range(rounds):
        for reader in readers:
            if reader is desispec_everything and i > 1: continue  # seconds
            start = time.perf_counter()
            results[reader] = reader(path)
            times[reader].append(time.perf_counter() - start)
            results = {skyseek: results[skyseek]} | ({desispec: results[desispec]} if desispec in results else {})
    n, best = len(results[skyseek][0]), {r: min(t) for r, t in times.items()}
    print(f'\n{Path(path).name}: {n} spectra, {Path(path).stat().st_size/n/1e3:.0f} kB each, best of {rounds}')
    print(f'{"":24}{"ms":>8}{"ms/spectrum":>13}{"× skyseek":>11}{"peak memory / arrays kept":>28}')
    for r in readers:
        print(f'{r.__name__:24}{1e3*best[r]:8.1f}{1e3*best[r]/n:13.3f}{best[r]/best[skyseek]:11.1f}{peak_memory(r, path):28.2f}')
    if desispec in results:
        (flux, ivar), (their_flux, their_ivar) = results[skyseek], results[desispec]
        good = their_ivar > 0
        off = np.abs(flux - their_flux)[good]
        print(f'largest difference to desispec: flux {(off*np.sqrt(their_ivar[good])).max():.1e} σ, {(off/np.abs(their_flux[good]).clip(1e-2)).max():.1e} relative; '
              f'ivar {np.abs(ivar[good]/their_ivar[good] - 1).max():.1e}; same good pixels: {np.array_equal(ivar > 0, good)}')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('coadds', nargs='*', help='coadd files; none: one is made up')
    parser.add_argument('-n', type=int, default=500, help='targets of the made-up coadd')
    parser.add_argument('--rounds', type=int, default=12)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for path in args.coadds or [make_coadd(Path(folder)/'coadd-main-dark-9999.fits', args.n)]: bench(path, args.rounds)
