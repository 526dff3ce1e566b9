"""Everything about one GPU in one run of under nine minutes: python tests/benchmarks/gpu.py [--device cuda] [--cores 16]

Needs nothing but skyseek and its weights: the spectra are simulated. Prints what the stages cost on paper and the rates that this means for an A100 and an
H100 (an estimate), and then, measured: rate of the scan and of the encoder and their shares of the chip's peak, the whole score in one process with the time
of each stage, the whole score with several processes on the one GPU, the largest differences to the CPU in every column of the catalogue, and the rate at
which the autoencoder is trained in bf16, extrapolated to a million spectra and ten epochs.
--device cpu --quick runs all of it on few spectra, to see that the script works."""
import argparse
import os
import time
from collections import Counter
from contextlib import contextmanager
from multiprocessing import get_context

os.environ.setdefault('OMP_NUM_THREADS', '1')

import numpy as np
import torch
from astropy.table import hstack, vstack
from torch.utils._python_dispatch import TorchDispatchMode

from gpu_paper import CHIPS, LAUNCH, paper, print_paper, watched

from skyseek.learn.autoencoder import Autoencoder, encode_features
from skyseek.learn.features import build_features
from skyseek.learn.training import ArrayStream, TrainSettings, fit
from skyseek.pipeline.score import load_weights, score_spectra
from skyseek.redshift.scan import scan_redshift
from skyseek.simulate.mock_survey import simulate_spectra

BATCH = 1024  # spectra of a batch on a GPU
START = time.perf_counter()


def wait(device):
    if torch.device(device).type == 'cuda': torch.cuda.synchronize()

def say(text): print(f'[{time.perf_counter() - START:5.0f} s] {text}', flush=True)

def seconds(work, device, rounds=3):
    "Best of a few rounds, after one that does not count."
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        work()
        wait(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def simulated(n, cores, wrong=.05):
    "Spectra with the answers of a pipeline, of which a fraction is wrong."
    spectra, _ = simulate_spectra(n, seed=11, processes=cores)
    answers, rng = scan_redshift(spectra).to_table() if n <= 256 else None, np.random.default_rng(1)
    if answers is None:  # on all cores: the GPU is not to be measured on what it has made itself
        with get_context('spawn').Pool(cores) as pool:
            parts = pool.map(_answers, [spectra[i:i + 64] for i in range(0, n, 64)])
        answers = vstack(parts, metadata_conflicts='silent')
    meta = hstack([spectra.meta, answers[[c for c in answers.colnames if c not in spectra.meta.colnames]]], metadata_conflicts='silent')
    bad = rng.random(n) < wrong
    meta['Z'][bad] = rng.uniform(0, 2, bad.sum())
    return spectra.replace(meta=meta)

def _answers(spectra):
    torch.set_num_threads(1)
    return scan_redshift(spectra).to_table()


class Stages:
    "Seconds of each stage."
    def __init__(self, device): self.device, self.seconds = device, Counter()

    @contextmanager
    def watch(self, label):
        wait(self.device)
        start = time.perf_counter()
        try: yield
        finally:
            wait(self.device)
            self.seconds[label] += time.perf_counter() - start


def one_process(spectra, weights, device):
    "The whole score in one process; rate and the time of each stage."
    score_spectra(spectra[:64], weights, device)
    stages, start = Stages(device), time.perf_counter()
    with watched(stages.watch): table = score_spectra(spectra, weights, device)
    wait(device)
    total = time.perf_counter() - start
    say(f'whole score, one process: {len(spectra)/total:,.0f} spectra/s ({len(spectra)} spectra, {int((table["CAUSE"] != "").sum())} with a cause)')
    print('| stage | ms per spectrum | share |\n|---|---|---|')
    stages.seconds['all else, on the host'] = total - sum(stages.seconds.values())
    for label, t in stages.seconds.most_common(): print(f'| {label} | {1e3*t/len(spectra):.3f} | {t/total:.2f} |')
    return table


class Clock(TorchDispatchMode):
    "Processor time of PyTorch's operations."
    seconds = 0.

    @classmethod
    def _should_skip_dynamo(cls): return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        start = time.thread_time()
        try: return func(*args, **(kwargs or {}))
        finally: self.seconds += time.thread_time() - start

def on_the_host(spectra, weights, cores):
    "The work that stays on the host, wherever the tensors are: processor time of each stage without that of PyTorch's operations."
    score_spectra(spectra, weights)
    whole, clock, tensors = Counter(), Clock(), Counter()
    @contextmanager
    def watch(label):
        start, before = time.thread_time(), clock.seconds
        yield
        whole[label] += time.thread_time() - start
        tensors[label] += clock.seconds - before
    with watched(watch), watch('everything'): table = score_spectra(spectra, weights)
    total, n = dict(whole), len(spectra)
    with watched(watch), clock, watch('everything'): score_spectra(spectra, weights)
    host = {k: 1e3*max(total[k] - tensors[k], 0)/n for k in total}
    say(f"on the host: {host['everything']:.2f} ms of one core a spectrum, of {1e3*total['everything']/n:.2f} with the tensors on the CPU too "
        f"({int((table['CAUSE'] != '').sum())} of {n} with a cause); {cores} cores can prepare and finish {1e3*cores/max(host['everything'], 1e-6):,.0f} spectra/s")
    print('of it, in ms: ' + ', '.join(f'{k} {v:.2f}' for k, v in sorted(host.items(), key=lambda x: -x[1]) if k != 'everything'))


def _worker(spectra, device, rounds, ready, done):
    torch.set_num_threads(1)
    weights = load_weights(device=device)
    score_spectra(spectra[:64], weights, device)
    ready.wait()
    for _ in range(rounds): score_spectra(spectra, weights, device)
    wait(device)
    done.put(1)

def many_processes(spectra, device, cores, rounds):
    "The whole score in several processes that share one GPU."
    context = get_context('spawn')
    ready, done = context.Barrier(cores + 1), context.Queue()
    workers = [context.Process(target=_worker, args=(spectra, device, rounds, ready, done)) for _ in range(cores)]
    for w in workers: w.start()
    ready.wait(240)
    start = time.perf_counter()
    for _ in workers: done.get(timeout=240)
    total = time.perf_counter() - start
    for w in workers: w.join()
    say(f'whole score, {cores} processes: {cores*rounds*len(spectra)/total:,.0f} spectra/s')


def compare(here, there):
    "The largest difference of each column, where there is one."
    print('| column | largest difference | rows that differ |\n|---|---|---|')
    for name in here.colnames:
        a, b = np.asarray(here[name]), np.asarray(there[name])
        if a.dtype.kind == 'f':
            gap = np.nan_to_num(np.abs(a - b)) + (np.isnan(a) != np.isnan(b))
            differ, most = (gap > 1e-6*np.maximum(np.nan_to_num(np.abs(a)), 1)), f'{gap.max():.2g}'
        else: differ, most = a != b, ''
        rows = differ.reshape(len(a), -1).any(1).sum()
        if rows: print(f'| {name} | {most} | {rows} of {len(a)} |')
    same = np.abs(np.asarray(here['Z_ALT']) - np.asarray(there['Z_ALT'])) < 1e-4
    say(f"columns that are not named above are equal; best redshifts within 1e-4: {np.mean(same | np.isnan(here['Z_ALT'])):.4f}")


def training(spectra, device, batch, steps):
    "Spectra a second of the training of the autoencoder, from two runs of different length."
    features = build_features(spectra)
    arrays = {k: np.repeat(features[k], -(-batch*steps//len(spectra)), axis=0)[:batch*steps] for k in ('flux', 'weight', 'scale', 'exptime')}
    precision = 'bf16-mixed' if torch.device(device).type == 'cuda' else '32-true'
    def run(n):
        settings = TrainSettings(epochs=1, patience=0, precision=precision, device='cpu' if device == 'cpu' else 'cuda')
        start = time.perf_counter()
        fit(Autoencoder(), ArrayStream({k: v[:n*batch] for k, v in arrays.items()}, batch), None, settings, progress=False)
        wait(device)
        return time.perf_counter() - start
    short = max(1, steps//4)
    run(short)
    rate = (steps - short)*batch/max(run(steps) - run(short), 1e-9)
    say(f'training of the autoencoder, {precision}, batches of {batch}: {rate:,.0f} spectra/s; 1 M spectra × 10 epochs: {1e7/rate/60:.1f} min')


def training_on_paper(costs, spectra, batch=256):
    "What training needs at the least: forwards and backwards three times the work of encoding, and the host, which makes the batches."
    features = build_features(spectra)
    arrays = {k: np.repeat(features[k], -(-4*batch//len(spectra)), axis=0) for k in ('flux', 'weight', 'scale', 'exptime')}
    stream = ArrayStream(arrays, batch)
    times = []
    for k in range(3):
        start = time.thread_time()
        for _ in stream.epoch(k): pass
        times.append((time.thread_time() - start)/len(arrays['scale']))
    r = costs['encoder']
    gpu = {c: 1e7*max(3*r[c], 3*r['launches']*LAUNCH/batch)/60 for c in CHIPS}
    say('training of the autoencoder, 1 M spectra × 10 epochs in batches of 256: estimated ' + ', '.join(f'{m:.1f} min on one {c}' for c, m in gpu.items())
        + f' in float32; the host makes the batches in {1e7*min(times)/60:.1f} min (measured)')


def peak(device):
    name = torch.cuda.get_device_name(device) if torch.device(device).type == 'cuda' else ''
    return next((chip for chip in CHIPS if chip in name), None), name or 'the CPU'


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--cores', type=int, default=min(16, len(os.sched_getaffinity(0))), help='processes of the whole score')
    parser.add_argument('--quick', action='store_true', help='few spectra: only to see that it runs')
    parser.add_argument('--paper', action='store_true', help='the arithmetic alone')
    a = parser.parse_args()
    torch.set_num_threads(1)
    chip, name = peak(a.device)
    say(f'torch {torch.__version__}, {name}, {len(os.sched_getaffinity(0))} cores')
    some = simulated(4 if a.quick else 24, 1)
    from other_device import OtherDevice
    with OtherDevice(): other = load_weights(device='other')
    costs = paper(some, lambda s: score_spectra(s, other, 'other'), BATCH)
    print_paper(costs, BATCH)
    weights = load_weights()
    on_the_host(simulated(8 if a.quick else 96, 1), weights, 16)
    training_on_paper(costs, some)
    if a.paper: return
    n = 8 if a.quick else 4096 if a.device != 'cpu' else 256
    spectra = simulated(n, 1 if a.quick else a.cores)
    say(f'{spectra!r} simulated')
    weights = load_weights(device=a.device)
    t = seconds(lambda: scan_redshift(spectra, device=a.device), a.device, 1 if a.quick else 3)/n
    share = lambda label, t: f"; {costs[label]['flops']/t/1e12/CHIPS[chip][0]:.3f} of the peak in float32, {costs[label]['bytes']/t/1e12/CHIPS[chip][3]:.2f} of the bandwidth" if chip else ''
    say(f"scan: {1/t:,.0f} spectra/s, {1e6*t:.1f} µs a spectrum, {costs['scan']['flops']/t/1e12:.3f} TFLOP/s{share('scan', t)}")
    features = build_features(spectra)
    t = seconds(lambda: encode_features(weights.autoencoder, features, a.device), a.device, 1 if a.quick else 3)/n
    say(f"encoder: {1/t:,.0f} spectra/s, {1e6*t:.1f} µs a spectrum, {costs['encoder']['flops']/t/1e12:.3f} TFLOP/s{share('encoder', t)}")
    table = one_process(spectra, weights, a.device)
    m = min(n, 256)
    if a.device != 'cpu': compare(score_spectra(spectra[:m], load_weights(), 'cpu'), score_spectra(spectra[:m], weights, a.device))
    else: compare(score_spectra(spectra[:m], weights), table[:m])
    training(spectra[:512], a.device, 8 if a.quick else 256, 4 if a.quick else 120 if a.device != 'cpu' else 8)
    many_processes(spectra[:2048], a.device, 1 if a.quick else a.cores, 1 if a.quick or a.device == 'cpu' else 3)
    say('done')


if __name__ == '__main__': main()
