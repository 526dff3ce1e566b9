"""Rate of the chi² scan beside redrock's: OMP_NUM_THREADS=1 python tests/benchmarks/bench_redshift.py [--n 256] [--device cpu]

Simulates a survey (or reads a coadd given with --coadd), scans it, everything included, and prints Markdown tables: ms per spectrum for the learned
bases and for others, where the time goes, peak memory for two sizes of survey, and what 28.4 million DR1 rows would cost. redrock 0.21 with eleven
templates was measured at 2.05 s per spectrum on one core. CPU times are those of one thread, wall-clock times of the device otherwise.
bench_gasnet3.py does the same for GaSNet-III, beside its published scan.
"""
import argparse
import resource
import time

import torch

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
    if args.device == 'cpu':
        print('\n| work | share of the time |\n|---|---|')
        for label, share in shares(spectra, bases).items(): print(f'| {label} | {share:.2f} |')
        before, many = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, concatenate([spectra]*4)
        scan_redshift(many)
        print(f'\npeak memory after {len(spectra)} spectra {before/1e6:.2f} GB, after {len(many)} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e6:.2f} GB (their flux and ivar: {len(many)*62.2e-6:.2f} GB)')


if __name__ == '__main__': main()
