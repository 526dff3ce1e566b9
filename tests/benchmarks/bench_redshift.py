"""Rate of the chi² scan beside redrock's: OMP_NUM_THREADS=1 python tests/benchmarks/bench_redshift.py [--n 200] [--device cpu]

Simulates a survey (or reads a coadd given with --coadd), scans it with the built-in bases (eleven, of three classes) and with those of redrock's
template files if --templates is given, and prints a Markdown table. redrock 0.21 with eleven templates was measured at 2.05 s per
spectrum on one core; the ratio refers to that. CPU times are those of one thread, wall-clock times of the device otherwise.
"""
import argparse
import time

import torch

from skyseek.desi import read_coadd
from skyseek.redshift import ScanSettings, default_bases, read_bases, scan_redshift
from skyseek.simulate import simulate_spectra

REDROCK = 2.05  # s per spectrum and core


def seconds(spectra, bases, device, settings, clock, rounds=3):
    "Best of a few rounds, s per spectrum."
    best = float('inf')
    for _ in range(rounds):
        start = clock()
        scan_redshift(spectra, bases, device, settings)
        best = min(best, clock() - start)
    return best/len(spectra)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--n', type=int, default=200, help='number of spectra')
    parser.add_argument('--coadd', help='scan this coadd instead of a simulated survey')
    parser.add_argument('--templates', help="folder of redrock's rrtemplate-*.fits")
    parser.add_argument('--device', default='cpu')
    args = parser.parse_args()
    torch.set_num_threads(1)
    clock = time.process_time if args.device == 'cpu' else time.perf_counter
    spectra = read_coadd(args.coadd)[:args.n] if args.coadd else simulate_spectra(args.n, seed=1)[0]
    bases = list(default_bases())
    chunk = 2**14 if args.device == 'cpu' else 2**20
    runs = [(f'{len(bases)} built-in bases', bases, ScanSettings(chunk=chunk)), ('the same, pixel 2e-4', bases, ScanSettings(pixel=2e-4, chunk=chunk)),
            ('the same, float32', bases, ScanSettings(dtype='float32', chunk=chunk)), ('the same, 2 polynomials', bases, ScanSettings(npoly=2, chunk=chunk))]
    runs += [(kind, [b for b in bases if b.spectype == kind], ScanSettings(chunk=chunk)) for kind in ('GALAXY', 'QSO', 'STAR')]
    if args.templates: runs.append(("redrock's files", read_bases(args.templates), ScanSettings(chunk=chunk)))
    print(f"{spectra!r}, {args.device}\n\n| scan | ms per spectrum | redrock's 2.05 s / this |\n|---|---|---|")
    for label, some, settings in runs:
        s = seconds(spectra, some, args.device, settings, clock)
        print(f'| {label} | {1e3*s:.1f} | {REDROCK/s:.0f} |', flush=True)


if __name__ == '__main__': main()
