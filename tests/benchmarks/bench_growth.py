"""How time grows with spectra, files and workers, what DR1 costs, and a simulated run on a cluster: python tests/benchmarks/bench_growth.py [--work FOLDER] [--most 10000]

Measured: the score of 100, 1000, … spectra (up to --most), of the same spectra in small and in large files, a survey with one and with two workers, and what a
worker does to a file system when it starts and with each file. From these figures the cost of DR1 by arithmetic, and a run of --workers workers by an event
model: a shared file system with a bandwidth and a rate of operations on its names, a scheduler, slow workers, slow files, and workers that die and are started
again. It prints which resource is used up first, and at how many workers. --model takes the figures from the command line and measures nothing.
"""
import argparse
import heapq
import os
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault('OMP_NUM_THREADS', '1')
import numpy as np  # noqa: E402

DR1 = dict(spectra=28_425_963, files=27_000)


@dataclass(frozen=True)
class Cluster:
    "What the model knows. Times in seconds, sizes in bytes."
    workers: int = 1000
    rate: float = 80.  # spectra that a worker scores in a second
    fetched: float = 71e3  # bytes of a spectrum that are read
    written: float = 684.  # bytes of a spectrum in the catalogue
    names: float = 60.  # operations on names for each file: opened, made, renamed, looked for
    start_names: float = 6000.  # of a worker that starts: the modules that Python looks for
    start_bytes: float = 700e6  # that it reads: libraries, modules, weights
    start_work: float = 6.  # s of its own until it can begin
    bandwidth: float = 20e9  # bytes/s of the file system
    each: float = .5e9  # bytes/s of one worker at most
    names_a_second: float = 20e3  # operations on names that the file system does in a second
    jobs_a_second: float = 400.  # that the scheduler hands out
    slow_workers: float = .02  # fraction that is `slower`
    slow_files: float = .02  # fraction that takes `slower` times as long
    slower: float = 3.
    lifetime: float = 200*3600.  # mean time in which a worker dies
    back: float = 300.  # until another takes its place
    local: bool = False  # the package lies on the disk of each node, not on the shared file system
    seed: int = 0


class Pipe:
    "Transfers that share a bandwidth equally, none faster than `each`: all that run get ahead by the same number of bytes in a second."
    def __init__(self, bandwidth, each): self.bandwidth, self.each, self.now, self.done, self.moved, self.goals, self.used = bandwidth, each, 0., 0., 0., [], 0.

    def speed(self): return min(self.each, self.bandwidth/len(self.goals)) if self.goals else 0.

    def go_to(self, now):
        ahead = self.speed()*(now - self.now)
        self.done += ahead
        self.moved += ahead*len(self.goals)
        self.now = now

    def add(self, now, size, what):
        self.go_to(now)
        heapq.heappush(self.goals, (self.done + size, what))

    def next(self):
        "When the first transfer ends."
        return self.now + max(self.goals[0][0] - self.done, 0)/self.speed() if self.goals else np.inf

    def pop(self, now):
        self.go_to(now)
        return heapq.heappop(self.goals)[1]


def simulate(sizes, c):
    """A run over files of so many spectra: hours, share of the time that workers compute, of the bandwidth, of names and of the scheduler that is used, jobs
    that were done again, and hours when the first 99 % were done."""
    rng, pipe = np.random.default_rng(c.seed), Pipe(c.bandwidth, c.each)
    slow = np.where(rng.random(c.workers) < c.slow_workers, c.slower, 1.)
    work = np.asarray(sizes)/c.rate*np.where(rng.random(len(sizes)) < c.slow_files, c.slower, 1.)
    dies = rng.exponential(c.lifetime, c.workers)
    todo, events, serial = list(range(len(sizes)))[::-1], [], 0
    names_free = scheduler_free = now = busy = 0.
    names_used, again, finished, when = 0., 0, 0, []
    life, at_work, idle = np.zeros(c.workers, int), {}, []
    def later(t, what, worker):
        nonlocal serial
        serial += 1
        heapq.heappush(events, (t, serial, what, worker, life[worker]))
    def names(t, n):
        nonlocal names_free, names_used
        names_free = max(names_free, t) + n/c.names_a_second
        names_used += n/c.names_a_second
        return names_free
    def begin(t, worker):
        later(names(t, 0 if c.local else c.start_names), 'load', worker)
    def hand_out(t, worker):
        nonlocal scheduler_free
        if todo:
            at_work[worker] = todo.pop()
            scheduler_free = max(scheduler_free, t) + 1/c.jobs_a_second
            later(names(scheduler_free, c.names), 'read', worker)
        else: idle.append((worker, life[worker]))
    for worker in range(c.workers):
        begin(0., worker)
        later(dies[worker], 'dies', worker)
    while finished < len(sizes):
        t = min(events[0][0] if events else np.inf, pipe.next())
        if pipe.next() <= t:
            now = t
            what, worker, alive = pipe.pop(now)
            if alive != life[worker]: continue
            if what == 'load': later(now + c.start_work*slow[worker], 'ready', worker)
            else: later(now + work[at_work[worker]]*slow[worker], 'done', worker)
            continue
        now, _, what, worker, alive = heapq.heappop(events)
        if alive != life[worker]: continue
        if what == 'dies':
            life[worker] += 1
            if worker in at_work:
                again += 1
                todo.append(at_work.pop(worker))
            later(now + c.back, 'again', worker)
            later(now + c.back + rng.exponential(c.lifetime), 'dies', worker)
            while todo and idle:
                other, alive = idle.pop()
                if alive == life[other]: hand_out(now, other)
        elif what == 'again': begin(now, worker)
        elif what == 'load': pipe.add(now, 1. if c.local else c.start_bytes, ('load', worker, life[worker]))
        elif what == 'ready': hand_out(now, worker)
        elif what == 'read': pipe.add(now, sizes[at_work[worker]]*(c.fetched + c.written), ('read', worker, life[worker]))
        elif what == 'done':
            busy += work[at_work.pop(worker)]*slow[worker]
            finished += 1
            when.append(now)
            hand_out(now, worker)
    hours = now/3600
    return dict(hours=hours, busy=busy/c.workers/now, bandwidth=pipe.moved/c.bandwidth/now, names=names_used/now, scheduler=len(sizes)/c.jobs_a_second/now,
                again=again, most=when[int(.99*len(when)) - 1]/3600)


def file_sizes(spectra, files, seed=0):
    "Spectra of each file: a log-normal distribution, as the pixels of DESI have."
    sizes = np.random.default_rng(seed).lognormal(0, .6, files)
    return sizes*spectra/sizes.sum()


def limits(c, mean):
    "Workers at which each resource is used up, if all compute: {resource: workers}."
    seconds = mean/c.rate
    return {'bandwidth of the file system': c.bandwidth/(c.rate*(c.fetched + c.written)), 'operations on names, of files': c.names_a_second*seconds/c.names,
            'jobs handed out': c.jobs_a_second*seconds,
            'one file for each worker': DR1['files']}


def print_cluster(c, sizes, counts):
    print(f'\nA simulated run over {len(sizes)} files and {sum(sizes):,.0f} spectra. A worker scores {c.rate:.0f} spectra/s; {c.fetched/1e3:.0f} kB a spectrum; the file system gives '
          f'{c.bandwidth/1e9:.0f} GB/s, {c.each/1e9:.1f} to one worker, and {c.names_a_second/1e3:.0f} thousand operations on names a second;\n{c.slow_workers:.0%} of the workers and {c.slow_files:.0%} '
          f'of the files are {c.slower:.0f} times as slow; a worker dies every {c.lifetime/3600:.0f} h and is back after {c.back/60:.0f} min.')
    ideal = sum(sizes)/c.rate/3600
    print('| workers | hours | 99 % after | hours if nothing were in the way | workers compute | bandwidth used | names used | scheduler used | files done again |\n' + '|---'*9 + '|')
    for n in counts:
        r = simulate(sizes, replace(c, workers=n))
        print(f"| {n} | {r['hours']:.2f} | {r['most']:.2f} | {ideal/n:.2f} | {r['busy']:.0%} | {r['bandwidth']:.0%} | {r['names']:.0%} | {r['scheduler']:.0%} | {r['again']} |", flush=True)
    found = limits(c, np.mean(sizes))
    print('used up, if all workers compute: ' + '; '.join(f'{k} at {v:,.0f} workers' for k, v in sorted(found.items(), key=lambda x: x[1])))
    start = c.start_names*c.workers/c.names_a_second, c.start_bytes*c.workers/c.bandwidth
    print(f'{c.workers} workers that start at once wait {start[0]:.0f} s for names and {start[1]:.0f} s for bytes, if the package lies on the shared file system')
    print('| one thing better, with all else as it is | hours |\n|---|---|')
    first = simulate(sizes, c)['hours']
    for what, changes in {'as it is': {}, 'package on the disk of each node': dict(local=True), 'no slow worker': dict(slow_workers=0.), 'no slow file': dict(slow_files=0.), 'no worker dies': dict(lifetime=1e12),
                          'twice the bandwidth': dict(bandwidth=2*c.bandwidth), 'twice the names': dict(names_a_second=2*c.names_a_second), 'twice the rate of a worker': dict(rate=2*c.rate)}.items():
        hours = simulate(sizes, replace(c, **changes))['hours']
        print(f'| {what} | {hours:.2f} ({hours/first - 1:+.0%}) |', flush=True)


def print_cost(c):
    n, f = DR1['spectra'], DR1['files']
    print(f'\nDR1, {n:,} spectra in {f:,} files, by arithmetic')
    print('| what | how | how much |\n|---|---|---|')
    print(f'| processor | {n:,} / {c.rate:.0f} a second and core | {n/c.rate/3600:.0f} core-hours (redrock: 16,000) |')
    print(f'| fetched | {n:,} × {c.fetched/1e3:.1f} kB | {n*c.fetched/1e12:.2f} TB of 12.7; {n*c.fetched/1e8/3600:.1f} h at 100 MB/s |')
    print(f'| catalogue | {n:,} × {c.written:.0f} B | {n*c.written/1e9:.0f} GB |')


# ---- measured ----

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e3

def growth(spectra, weights, folder, most):
    "Time against the number of spectra, in files of 500, and against the size of the files."
    from skyseek.data.files import write_spectra
    from skyseek.pipeline.score import score_files, score_spectra
    score_spectra(spectra[:64], weights)
    files = lambda n, size: [write_spectra(spectra[np.arange(k*size, k*size + min(size, n)) % len(spectra)], folder/f'{size}-{n}-{k}.fits') for k in range(-(-n//size))]
    def timed(paths):
        start = time.process_time()
        for path in paths: score_files([path], weights, progress=False)
        return time.process_time() - start
    print('\n| spectra | processor time, s | spectra/s | peak memory, MB |\n|---|---|---|---|')
    n, rate = 100, 0.
    while n <= most:
        t, paths = 0., files(min(n, 500), 500)
        for _ in range(max(1, n//500)): t += timed(paths)
        rate = n/t
        print(f'| {n} | {t:.1f} | {rate:.1f} | {peak():.0f} |', flush=True)
        n *= 10
    print('\n| spectra a file | files | spectra/s |\n|---|---|---|')
    for size in (10, 50, 250, 500):
        paths = files(500, size)
        print(f'| {size} | {len(paths)} | {500/timed(paths):.1f} |', flush=True)
    return rate


def starting():
    "What a worker does when it starts: operations on names, bytes it reads, seconds of processor time."
    code = '''if 1:
        import os, sys, time
        start, seen = time.process_time(), [0]
        def hook(event, args): seen[0] += event in ('open', 'os.listdir', 'os.scandir', 'os.stat')
        sys.addaudithook(hook)
        import skyseek.pipeline.survey as survey
        survey.load_weights()
        files = {m.__file__ for m in list(sys.modules.values()) if getattr(m, '__file__', None)}
        libraries = {l.split()[-1] for l in open('/proc/self/maps') if '/' in l and '.so' in l}
        size = sum(os.path.getsize(p) for p in files | libraries if os.path.exists(p))
        print(seen[0] + len(sys.path)*len(files), size, time.process_time() - start)'''
    return [float(x) for x in subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()]


def survey_runs(work, files, n):
    "A survey with one and with two workers: seconds, and operations on names for each file."
    from skyseek.pipeline.survey import Job, SurveySettings, run_survey, survey_part
    from skyseek.data.archive import open_archive
    from skyseek.redshift.scan import redshift_file
    from skyseek.simulate.mock_archive import write_archive
    release = work/'iron'
    if not release.exists(): write_archive(release, {('main', 'dark'): list(range(27000, 27000 + files))}, redshift_file, n=n)
    print('\n| workers | files | s | spectra/s |\n|---|---|---|---|')
    for workers in (1, 2):
        shutil.rmtree(work/'catalogue', ignore_errors=True)
        result = run_survey(release, work/'catalogue', SurveySettings(workers=workers), progress=False)
        print(f'| {workers} | {result.done} | {result.seconds:.0f} | {result.spectra/result.seconds:.1f} |', flush=True)
    seen = Counter()
    shutil.rmtree(work/'catalogue', ignore_errors=True)
    job = Job(open_archive(str(release)), 'main', 'dark', (27000,), str(work/'catalogue'))
    survey_part(job)
    on = True
    sys.addaudithook(lambda event, args: seen.update([event]) if on and event in ('open', 'os.rename', 'os.remove', 'os.mkdir', 'os.listdir', 'os.scandir', 'os.rmdir') else None)
    survey_part(replace(job, pixels=(27001,)))
    on = False
    return 2*sum(seen.values())  # each comes with a look at the name


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--work', type=Path, help='folder to keep the archive in; none: a temporary one')
    parser.add_argument('--most', type=int, default=10_000, help='spectra of the largest run; 100000 takes half an hour')
    parser.add_argument('--files', type=int, default=8, help='files of the small archive')
    parser.add_argument('--workers', type=int, default=1000, help='of the simulated cluster')
    parser.add_argument('--model', action='store_true', help='measure nothing')
    parser.add_argument('--rate', type=float, help='spectra/s of a worker, in place of what is measured')
    parser.add_argument('--fetched', type=float, default=71., help='kB of a spectrum')
    parser.add_argument('--share', type=float, default=1., help='fraction of DR1 in the simulated run')
    a = parser.parse_args()
    c = Cluster(workers=a.workers, fetched=1e3*a.fetched)
    if not a.model:
        from gpu import simulated
        from skyseek.pipeline.score import load_weights
        with TemporaryDirectory() as folder:
            work = a.work or Path(folder)
            work.mkdir(parents=True, exist_ok=True)
            names, size, seconds = starting()
            print(f'a worker that starts: about {names:.0f} operations on names, {size/1e6:.0f} MB of libraries, modules and weights, {seconds:.1f} s')
            rate = growth(simulated(min(500, a.most), 1), load_weights(), Path(folder), a.most)
            c = replace(c, start_names=names, start_bytes=size, start_work=seconds, rate=rate, names=survey_runs(work, a.files, 100 if a.most >= 1000 else 4))
            print(f'for each file about {c.names:.0f} operations on names')
    if a.rate: c = replace(c, rate=a.rate)
    print_cost(c)
    files = max(2, round(DR1['files']*a.share))
    print_cluster(c, file_sizes(DR1['spectra']*a.share, files), sorted({max(1, a.workers//10), max(1, a.workers//3), a.workers, 3*a.workers, 10*a.workers}))


if __name__ == '__main__': main()
