"""Cost of GaSNet-III per spectrum and core, three classes, beside its published scan: OMP_NUM_THREADS=1 python tests/benchmarks/bench_gasnet3.py [--n 64]

The published scan convolves, spectrum by spectrum, with kernels of 4,076 pixels (`torch.nn.functional.conv1d`, zero padding); the same χ² by Fourier transform
and our profile χ² follow, each for STAR, GALAXY and QSO on the same spectra in the same run. Untrained networks: weights do not change the cost. Then the
whole of `gasnet_redshifts`, and the share of its time in Fourier transforms and matrix products by torch's profiler.
"""
import argparse
import time
from dataclasses import asdict

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from skyseek.gasnet.gasnet3_networks import Eigenspectra, RANGES, as_published, log_grid, prepare
from skyseek.gasnet.gasnet3 import gasnet_redshifts, profile_curves, published_curves
from skyseek.simulate.mock_survey import simulate_spectra


def direct_curves(rest, batch, settings):
    """The published scan as released: two convolutions a spectrum whose kernel is the spectrum."""
    half, out = settings.n_wave//2, []
    for r, f, w in zip(rest, batch['flux'], batch['weight']):
        pad = lambda x: F.pad(x, (half - 1, settings.n_wave - half))[None, None]
        out.append(F.conv1d(pad(r**2), w[None, None]) - 2*F.conv1d(pad(r), (w*f)[None, None]) + (w*f*f).sum())
    slope = torch.arange(half)/half
    ramp = torch.cat([2 - slope, torch.ones(settings.n_rest - 2*half), 1 + slope])
    return (torch.cat(out)[:, 0, :settings.n_rest]*ramp**2).flip(-1)


def cost(call, n, rounds=3):
    """Best of a few rounds, ms of processor time per spectrum."""
    best = float('inf')
    for _ in range(rounds):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return 1e3*best/n


def rows(spectra):
    """Label and cost per class of each part."""
    few = spectra[:8]
    flux, ivar, _ = log_grid(spectra)
    table = {k: [] for k in ('continuum, published', 'continuum, ours', 'network, published', 'network, ours', 'scan, published (direct)', 'scan, published by FFT', 'scan, ours')}
    for spectype in RANGES:
        old, new = (Eigenspectra(**s).eval() for s in (asdict(as_published(spectype)), dict(spectype=spectype)))
        a, b = (prepare(flux, ivar, m.settings) for m in (old, new))
        rest = old(a)
        small, first = {k: v[:len(few)] for k, v in a.items()}, rest[:len(few)]
        error = (direct_curves(first, small, old.settings)/published_curves(first, small, old.settings) - 1).abs().max()
        if error > 1e-3: raise ValueError(f"direct and Fourier scan differ by {error:.1e}")
        calls = [(lambda: prepare(flux, ivar, old.settings), len(spectra)), (lambda: prepare(flux, ivar, new.settings), len(spectra)), (lambda: old(a), len(spectra)),
                 (lambda: new(b), len(spectra)), (lambda: direct_curves(first, small, old.settings), len(few)),
                 (lambda: published_curves(rest, a, old.settings), len(spectra)), (lambda: profile_curves(rest, b, new.settings), len(spectra))]
        for name, (call, n) in zip(table, calls): table[name].append(cost(call, n, 1 if 'direct' in name else 3))
    return table


def shares(call):
    """Shares of a call's processor time in Fourier transforms, and in convolutions and matrix products."""
    with profile(activities=[ProfilerActivity.CPU]) as prof: call()
    events = prof.key_averages()
    part = lambda names: sum(e.self_cpu_time_total for e in events if any(n in e.key for n in names))/sum(e.self_cpu_time_total for e in events)
    return part(('fft',)), part(('conv', 'mm', 'gemm', 'bmm', 'linear'))


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--n', type=int, default=64, help='number of spectra')
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    spectra = simulate_spectra(args.n, seed=1)[0]
    table = rows(spectra)
    direct = sum(table['scan, published (direct)'])
    print(f"{spectra!r}, one thread, ms per spectrum\n\n| part | {' | '.join(RANGES)} | sum | direct scan / this |\n|---|---|---|---|---|---|")
    for name, parts in table.items(): print(f"| {name} | {' | '.join(f'{x:.2f}' for x in parts)} | {sum(parts):.2f} | {direct/sum(parts):.0f} |")
    whole = {'published': [Eigenspectra(**asdict(as_published(s))) for s in RANGES], 'ours': [Eigenspectra(spectype=s) for s in RANGES]}
    for name, models in whole.items():
        ms = cost(lambda: gasnet_redshifts(spectra, models), args.n)
        fft, products = shares(lambda: gasnet_redshifts(spectra, models))
        print(f"| everything, {name} with FFT | | | | {ms:.2f} | {direct/ms:.0f} |\n\n{name}: {100*fft:.0f} % of the time in Fourier transforms, {100*products:.0f} % in convolutions and matrix products\n" if name == 'ours'
              else f"| everything, {name} with FFT | | | | {ms:.2f} | {direct/ms:.0f} |")


if __name__ == '__main__': main()
