"""Rate of the chi² scan beside redrock's: OMP_NUM_THREADS=1 python tests/benchmarks/bench_redshift.py [--n 256] [--device cpu] [--before 78d6a9d --data ../shared/data] [--redrock PYTHON]

Simulates a survey (or reads a coadd given with --coadd), scans it, everything included, and prints Markdown tables: ms per spectrum for the learned
bases and for others, where the time goes, peak memory for two sizes of survey, and what 28.4 million DR1 rows would cost. redrock 0.21 with eleven
templates was measured at 2.05 s per spectrum on one core; with --redrock its own scan of a real coadd with the templates of --data is timed again, by the
interpreter of an environment with redrock, desispec and desiutil. CPU times are those of one thread, wall-clock times of the device otherwise. --before times
an older commit and this one in turns, on the same spectra, and compares their answers, with the benchmark files of --data too.
bench_gasnet3.py does the same for GaSNet-III, beside its published scan.
"""
import argparse
import os
import resource
import shutil
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from astropy.io import fits
from before import load_before, of_version

from skyseek.data.desi import read_coadd
from skyseek.redshift.bases import default_bases, library_bases, read_bases
from skyseek.redshift.chi2 import ScanSettings
from skyseek.redshift.scan import scan_redshift
from skyseek.simulate.mock_survey import simulate_spectra
from skyseek.data.spectra import concatenate

REDROCK, DR1 = 2.05, 28_425_963  # s per spectrum and core; rows of zall-pix-iron
WORK = {'Fourier transforms': ('aten::_fft_r2c', 'aten::_fft_c2r'), 'matrix products': ('aten::bmm', 'aten::mm', 'aten::addmm'),
        'products in Fourier space, elimination': ('aten::addcmul_', 'aten::mul', 'aten::where'), 'gathering templates and rows': ('aten::index', 'aten::copy_')}


def seconds(spectra, bases, device, settings, clock, rounds=3):
    "Best of a few rounds, s per spectrum."
    best = float('inf')
    for _ in range(rounds):
        start = clock()
        scan_redshift(spectra, bases, device, settings)
        if device != 'cpu': torch.cuda.synchronize()
        best = min(best, clock() - start)
    return best/len(spectra)


def in_turns(before, spectra, rounds=5):
    "Shortest times (ms per spectrum) of the scan of an older version and of this one, taken in turns, and their answers."
    with of_version(before):
        from skyseek.data.spectra import Spectra
        from skyseek.redshift.scan import scan_redshift as old_scan
        old_spectra = Spectra(spectra.wave, spectra.flux, spectra.ivar, meta=spectra.meta)
    runs, times = [lambda: old_scan(old_spectra), lambda: scan_redshift(spectra)], [[], []]
    for _ in range(rounds):
        for run, seen in zip(runs, times):
            start = time.process_time()
            run()
            seen.append(1e3*(time.process_time() - start)/len(spectra))
    return [min(t) for t in times], [run() for run in runs]


def compare(before, sets):
    "Print times before and now, and how far the answers differ."
    print('\n| spectra | before, ms | now, ms | before / now | other class | dz > 1e-5 | largest dz | in ZERR |\n|---|---|---|---|---|---|---|---|')
    for name, spectra in sets.items():
        (t0, t1), (old, new) = in_turns(before, spectra)
        dz = abs(old.table['Z'] - new.table['Z'])
        kind = (old.table['SPECTYPE'] != new.table['SPECTYPE']) & (old.table['DELTACHI2'] > .1)
        sigma = (dz/np.maximum(old.table['ZERR'], 1e-9))[old.table['ZERR'] > 0]
        print(f'| {len(spectra)} {name} | {t0:.2f} | {t1:.2f} | {t0/t1:.2f} | {kind.sum()} | {(dz > 1e-5).sum()} | {dz.max():.1e} | {sigma.max():.2f} |', flush=True)


def repeated(coadd, n, path):
    "A coadd of one target, n times in one file."
    with fits.open(coadd) as hdus:
        for hdu in hdus[1:]:
            if hdu.data is None or hdu.data.shape[0] != 1: continue
            if isinstance(hdu, fits.BinTableHDU) and not isinstance(hdu, fits.CompImageHDU):
                table = np.repeat(np.asarray(hdu.data), n)
                if 'TARGETID' in table.dtype.names: table['TARGETID'] += np.arange(n)
                hdu.data = table
            else: hdu.data = np.repeat(hdu.data, n, axis=0)
        hdus.writeto(path)
    return path


def time_redrock(python, data, n=5):
    "Templates, and processor time (s per spectrum) of redrock on a real coadd: that for n + 1 spectra less that for one."
    with TemporaryDirectory() as work:
        for path in (data/'templates/redrock-templates').glob('rrtemplate-*.fits'):
            with fits.open(shutil.copy(path, work), mode='update') as f: f[0].header.setdefault('RRIGM', 'None')  # older files lack it
        coadd, times = next((data/'desi/coadd_redrock').glob('coadd-special*.fits')), []
        for k in (1, 1, n + 1):  # the first run compiles
            command = [Path(python).with_name('rrdesi'), '-i', repeated(coadd, k, f'{work}/coadd-{len(times)}.fits'), '-o', f'{work}/rr-{len(times)}.fits', '--mp', '1']
            start = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True, env=os.environ | dict(RR_TEMPLATE_DIR=work, OMP_NUM_THREADS='1'))
            end = resource.getrusage(resource.RUSAGE_CHILDREN)
            times.append(end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime)
        return len(list(Path(work).glob('rrtemplate-*'))), (times[2] - times[1])/n


def shares(spectra, bases):
    "Where the time of one scan goes, by kind of work."
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        start = time.perf_counter()
        scan_redshift(spectra, bases)
        total = 1e6*(time.perf_counter() - start)
    by_name = {e.key: e.self_cpu_time_total for e in profile.key_averages()}
    out = {label: sum(by_name.get(n, 0) for n in names)/total for label, names in WORK.items()}
    return out | {'all else': 1 - sum(out.values())}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--n', type=int, default=256, help='number of spectra')
    parser.add_argument('--coadd', help='scan this coadd instead of a simulated survey')
    parser.add_argument('--templates', help="folder of redrock's rrtemplate-*.fits")
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--before', help='commit to compare with')
    parser.add_argument('--data', type=Path, help='folder with redrock_bench/, templates/ and desi/')
    parser.add_argument('--redrock', help='python of an environment with redrock')
    args = parser.parse_args()
    torch.set_num_threads(1)
    clock = time.process_time if args.device == 'cpu' else time.perf_counter
    spectra = read_coadd(args.coadd)[:args.n] if args.coadd else simulate_spectra(args.n, seed=1)[0]
    bases, library = list(default_bases()), list(library_bases())
    runs = [('learned bases, three classes', bases, ScanSettings()), ('the same in float64', bases, ScanSettings(dtype='float64')), ('the same, every pixel a redshift', bases, ScanSettings(stride=1)),
            ('the same, 2 polynomials', bases, ScanSettings(npoly=2)), (f'{len(library)} bases of the library', library, ScanSettings())]
    runs += [(b.name, [b], ScanSettings()) for b in bases]
    if args.templates: runs.append(("redrock's files", read_bases(args.templates), ScanSettings()))
    print(f"{spectra!r}, {args.device}; " + ', '.join(f'{b.name} {len(b.flux)}' for b in bases))
    print("\n| scan | ms per spectrum | redrock's 2.05 s / this |\n|---|---|---|")
    first = None
    for label, some, settings in runs:
        s = seconds(spectra, some, args.device, settings, clock)
        first = first or s
        print(f'| {label} | {1e3*s:.1f} | {REDROCK/s:.0f} |', flush=True)
    print(f'\nAll {DR1:,} rows of DR1 with the first: {DR1*first/3600:.0f} hours of one {"core" if args.device == "cpu" else args.device} (redrock: {DR1*REDROCK/3600:.0f} core-hours)')
    if args.before:
        sets = {'simulated': spectra}
        if args.data: sets['of the benchmark'] = concatenate([read_coadd(p) for p in sorted((args.data/'redrock_bench/validation').glob('coadd-*.fits'))])
        with TemporaryDirectory() as folder: compare(load_before(args.before, folder, 'skyseek.redshift.scan'), sets)
    if args.redrock:
        n, own = time_redrock(args.redrock, args.data)
        print(f'\nredrock in the same run, a real coadd, {n} templates: {own:.2f} s per spectrum')
    if args.device == 'cpu':
        print('\n| work | share of the time |\n|---|---|')
        for label, share in shares(spectra, bases).items(): print(f'| {label} | {share:.2f} |')
        before, many = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, concatenate([spectra]*4)
        scan_redshift(many)
        print(f'\npeak memory after {len(spectra)} spectra {before/1e6:.2f} GB, after {len(many)} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e6:.2f} GB (their flux and ivar: {len(many)*62.2e-6:.2f} GB)')


if __name__ == '__main__': main()
