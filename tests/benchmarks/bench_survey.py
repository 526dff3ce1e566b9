"""A whole archive to a catalogue: rates, bytes, memory, faults and what DR1 would cost. By hand: python tests/benchmarks/bench_survey.py WORK [--files 200] [--spectra 100]

Makes an archive of simulated pixels in WORK (kept for the next time), serves it by nginx (if it is installed; else by a server of aiohttp) and from an S3 server
(moto), on loopback, and takes it to catalogues with 1 and 2 workers from the disk, with 2 over http, with 2 from the bucket, and with Dask's LocalCluster; all
catalogues must be the same. Then extraction alone beside plain copying of the bytes it needs, in turns; and --kills runs that are killed at random moments.
The last table is arithmetic: DR1 from the rates measured here. Half an hour on two cores, most of it scoring.
"""

import argparse
import hashlib
import heapq
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT/'tests')]
os.environ.setdefault('OMP_NUM_THREADS', '1')
warnings.simplefilter('ignore')
logging.getLogger('distributed').setLevel(logging.CRITICAL)  # of the cluster that is closed

import json  # noqa: E402

import numpy as np  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
from servers import bucket, free_port, part_bytes, serving  # noqa: E402

from skyseek.data.archive import Archive  # noqa: E402
from skyseek.pipeline.parts import list_parts  # noqa: E402
from skyseek.data.desi import extract, read_coadd  # noqa: E402
from skyseek.data.byte_ranges import needed_ranges, plan_pieces  # noqa: E402
from skyseek.data.files import write_spectra  # noqa: E402
from skyseek.pipeline.workers import cluster_executor, run_jobs  # noqa: E402
from skyseek.pipeline.survey import Job, SurveySettings, run_survey  # noqa: E402

DR1 = dict(spectra=28_425_963, files=27_000)


def make(work, files, n):
    """The archive, made by two processes; three surveys of which one sees the same pixels as another."""
    release = work/'release'
    done = list(release.rglob('coadd-*.fits'))
    if len(done) == files: return release
    shutil.rmtree(release, ignore_errors=True)
    code = 'import sys, json; from skyseek.simulate.mock_archive import write_archive; from skyseek.redshift.scan import redshift_file; write_archive(sys.argv[1], {tuple(k): v for k, v in json.loads(sys.argv[2])}, redshift_file, n=int(sys.argv[3]), resolution=True)'
    dark, bright = files*6//10, files*3//10
    parts = [[(['main', 'dark'], list(range(27000, 27000 + dark)))], [(['main', 'bright'], list(range(27000, 27000 + bright))), (['sv1', 'dark'], list(range(27000, 27000 + files - dark - bright)))]]
    runs = [subprocess.Popen([sys.executable, '-c', code, str(work/f'half{k}'), json.dumps(p), str(n)]) for k, p in enumerate(parts)]
    for run in runs:
        if run.wait(): raise SystemExit('the archive could not be made')
    iron = release/'spectro/redux/iron'
    (iron/'healpix').mkdir(parents=True)
    from astropy.table import Table, vstack
    for k in range(2):
        for program in (work/f'half{k}/healpix').glob('*/*'):
            home = iron/'healpix'/program.parent.name
            home.mkdir(exist_ok=True)
            shutil.move(program, home/program.name)
    vstack([Table.read(work/f'half{k}/healpix/tilepix.fits') for k in range(2)]).write(iron/'healpix/tilepix.fits')
    for k in range(2): shutil.rmtree(work/f'half{k}')
    return release


@contextmanager
def web(release, work):
    """nginx, or a small server."""
    if not shutil.which('nginx'):
        with serving(release) as address: yield address, 'aiohttp'
        return
    port, conf = free_port(), work/'nginx.conf'
    conf.write_text(f'worker_processes 1; daemon off; pid {work}/nginx.pid; error_log {work}/nginx.log; events {{}} http {{ access_log off; server {{ listen 127.0.0.1:{port}; root {release}; autoindex on; }} }}')
    process = subprocess.Popen(['nginx', '-c', str(conf)], stderr=subprocess.DEVNULL)
    time.sleep(1)
    try: yield f'http://127.0.0.1:{port}', 'nginx'
    finally: process.terminate(); process.wait()


def contents(dest):
    """A hash of all rows."""
    digest = hashlib.sha256()
    for path in list_parts(dest): digest.update(part_bytes(path))
    return digest.hexdigest()[:16]


def facts(dest): return [json.loads(pq.read_schema(p).metadata[b'skyseek']) for p in list_parts(dest)]


def size(paths): return sum(p.stat().st_size for p in paths)


def run(name, source, dest, release, **settings):
    """One run, its line of the table, and its hash."""
    shutil.rmtree(dest, ignore_errors=True)
    result = run_survey(source, dest, SurveySettings(**settings), progress=False)
    peak = max(f['peak_mb'] for f in facts(dest))
    wanted = {p.stem for p in list_parts(dest)}
    archive_bytes = size(p for p in release.rglob('*.fits') if p.stem.split('-', 1)[0] in ('coadd', 'redrock') and p.stem.split('-', 1)[1] in wanted)
    fetched = f'{result.bytes/result.spectra/1e3:6.1f} kB ({result.bytes/archive_bytes:.0%} of the files)' if result.bytes else 'read in place'
    print(f'{name:34}{result.spectra:8} {result.seconds:7.0f} s {result.spectra/result.seconds:8.1f} /s   {fetched:32} {peak:6} MB   {contents(dest)}', flush=True)
    return result


def memory(dest, files):
    """Peak memory of workers after more and more files: a table."""
    peaks = [json.loads(pq.read_schema(p).metadata[b'skyseek'])['peak_mb'] for p in sorted(list_parts(dest), key=lambda p: p.stat().st_mtime)]
    marks = [k for k in (2, 10, 25, 50, 100, 150, files) if k <= len(peaks)]
    print('peak memory of a worker after so many files:', ', '.join(f'{k}: {max(peaks[:k])} MB' for k in marks))


def extraction(coadds):
    """Reading and merging beside reading the bytes that are needed and writing them elsewhere."""
    def drop():
        try: subprocess.run('sync; echo 3 > /proc/sys/vm/drop_caches', shell=True, check=True, stderr=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError): return False
        return True
    def copy(path, sink):
        with open(path, 'rb') as f:
            read = lambda a, b: (f.seek(a), f.read(b - a))[1]
            for a, b in needed_ranges(plan_pieces(read, path.stat().st_size)): sink.write(read(a, b))
    cold, times, n = drop(), {'copy': [], 'read and merge': [], 'copy, cached': [], 'read and merge, cached': [], 'extract to compact files, cached': []}, 0
    sink_path = coadds[0].with_name('sink')
    for path in coadds:
        for warm in (False, True):
            end = ', cached' if warm else ''
            for name, work in (('copy', lambda: copy(path, open(sink_path, 'wb'))), ('read and merge', lambda: read_coadd(path))):
                if not warm: drop()
                start = time.perf_counter(); got = work(); times[name + end].append(time.perf_counter() - start)
        n += len(got)
        start = time.perf_counter(); write_spectra(extract(path), sink_path.with_suffix('.fits')); times['extract to compact files, cached'].append(time.perf_counter() - start)
    kept = sink_path.with_suffix('.fits').stat().st_size/len(got)
    for p in (sink_path, sink_path.with_suffix('.fits')): p.unlink()
    print(f"extraction, one core{'' if cold else ' (caches cannot be dropped here)'}:")
    for name, t in times.items(): print(f'  {name:34} {n/sum(t):8.0f} spectra/s')
    for end in ('', ', cached'): print(f"  reading and merging at {sum(times['copy' + end])/sum(times['read and merge' + end]):.0%} of the speed of copying the needed bytes{end or ', from the disk'}")
    print(f'  compact file {kept/1e3:.1f} kB a spectrum')
    return n/sum(times['read and merge'])


def kills(release, work, n, few, expected):
    """Runs that are killed at random moments, then one that is not."""
    rng, dest, command = random.Random(1), work/'killed', str(Path(sys.executable).with_name('skyseek'))
    shutil.rmtree(dest, ignore_errors=True)
    some = [str(h) for h in few]
    arguments = [command, 'survey', str(release), str(dest), '--survey', 'main', '--program', 'dark', '--workers', '2', '--pixels', *some]
    counts = []
    for _ in range(n):
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try: process.wait(rng.uniform(6, 14))
        except subprocess.TimeoutExpired: pass
        process.send_signal(signal.SIGKILL); process.wait()
        counts.append(len(list_parts(dest)))
        if counts[-1] == len(some): shutil.rmtree(dest/'catalogue')
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print(f'{n} runs killed by kill -9, with {counts} of {len(some)} parts done at that moment; then one undisturbed: {"the same catalogue" if contents(dest) == expected(some) else "ANOTHER CATALOGUE"}')


def nothing(job): return [dict(survey=job.survey, program=job.program, hpx=0, n=0, bytes=0, seconds=0., error='', passing=False, notes='')]


def scheduling(cluster, jobs=5000):
    """Jobs a second that pass through our loop and Dask's scheduler, if they do nothing."""
    archive = Archive('/nowhere')
    some = [Job(archive, 'main', 'dark', (k,), '/nowhere') for k in range(jobs)]
    start = time.time()
    n = sum(len(r) for r in run_jobs(some, lambda: cluster_executor(cluster), 5000, nothing))
    rate = n/(time.time() - start)
    print(f'{n} jobs that do nothing, through the run and Dask: {rate:.0f} a second')
    return rate


def makespan(durations, workers, rate):
    """Hours until all jobs are done, handed out one by one at a rate to whoever is free, and the share of the time that workers work: an event model."""
    free = [0.]*workers
    for k, d in enumerate(durations): heapq.heapreplace(free, max(free[0], k/rate) + d)
    return max(free)/3600, sum(durations)/workers/max(free)


def cost(rate, fetched, kept, part, seconds, jobs_a_second):
    """DR1 from the rates: a table with its arithmetic."""
    n, f = DR1['spectra'], DR1['files']
    print(f'\nDR1: {n} spectra in {f} files: arithmetic from the figures above, not measured')
    print(f'  fetched        {n} x {fetched/1e3:.0f} kB = {n*fetched/1e12:.2f} TB (of 12.7 TB); at 100 MB/s {n*fetched/1e8/3600:.0f} h')
    print(f'  processor      {n} / {rate:.1f} per core and second = {n/rate/3600:.0f} core-hours; redrock 16,000')
    print(f'  catalogue      {n} x {part:.0f} B = {n*part/1e9:.1f} GB; compact spectra, if they are kept, {n} x {kept/1e3:.1f} kB = {n*kept/1e9:.0f} GB')
    rng = np.random.default_rng(0)
    sizes = rng.lognormal(0, .6, f)
    durations = sizes*n/sizes.sum()*rng.choice(seconds, f)*(1/rate/np.mean(seconds))
    print(f'  files of {int(np.median(sizes*n/sizes.sum()))} spectra in the median, the longest takes {durations.max()/60:.0f} min; jobs handed out at {jobs_a_second:.0f} a second at most')
    for workers in (2, 16, 128, 1000):
        hours, busy = makespan(durations, workers, jobs_a_second)
        print(f'  {workers:5} workers   {hours:7.1f} h, busy {busy:.0%} of the time; they fetch {n*fetched/hours/3600/1e6:.0f} MB/s in all')


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('work', type=Path)
    parser.add_argument('--files', type=int, default=200)
    parser.add_argument('--spectra', type=int, default=102)
    parser.add_argument('--kills', type=int, default=20)
    a = parser.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    start = time.time()
    release = make(a.work, a.files, a.spectra)
    coadds = sorted(release.rglob('coadd-*.fits'))
    archive_bytes = size(coadds) + size(release.rglob('redrock-*.fits'))
    print(f'{len(coadds)} healpix files, {archive_bytes/1e9:.1f} GB, made in {time.time() - start:.0f} s\n')
    print(f'{"":34}{"spectra":>8} {"time":>9} {"rate":>11}   {"fetched a spectrum":32} {"memory":>9}   catalogue')
    one = run('disk, 1 worker', release, a.work/'one', release, workers=1)
    two = run('disk, 2 workers', release, a.work/'two', release, workers=2)
    with web(release, a.work) as (address, server): far = run(f'http ({server}), 2 workers', address, a.work/'web', release, workers=2)
    few = sorted({int(p.stem.rsplit('-', 1)[1]) for p in coadds})[:12]
    sub = a.work/'sub'
    if not sub.exists():
        for p in release.rglob('*'):
            if p.is_file() and (p.name == 'tilepix.fits' or any(f'-{h}.' in p.name or f'_{h}.' in p.name for h in few)): (sub/p.relative_to(release)).parent.mkdir(parents=True, exist_ok=True); os.link(p, sub/p.relative_to(release))
    with bucket(sub) as (address, endpoint): run('S3 (moto), 2 workers, 12 pixels', address, a.work/'s3', release, workers=2, endpoint=endpoint, pixels=tuple(few))
    run('disk, 2 workers, 12 pixels', release, a.work/'few', release, workers=2, pixels=tuple(few))
    from distributed import LocalCluster
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        run('Dask LocalCluster, 12 pixels', release, a.work/'dask', release, cluster=cluster.scheduler_address, pixels=tuple(few))
        jobs_a_second = scheduling(cluster.scheduler_address)
    print(f'two workers over one: {one.seconds/two.seconds:.2f}')
    memory(a.work/'two', a.files)
    flagged = np.mean(np.concatenate([pq.read_table(p, columns=['FLAG_Z_WRONG', 'FLAG_S_WRONG']).to_pandas().any(axis=1) for p in list_parts(a.work/'two')]))
    print(f'{flagged:.1%} of the rows are flagged; each costs a search for its cause\n')
    extraction(coadds[:20])
    parts = list_parts(a.work/'two')
    first = extract(coadds[0])
    kept = write_spectra(first, a.work/'spectra-x.fits').stat().st_size/len(first)
    def expected(pixels):
        some = a.work/'some'
        shutil.rmtree(some, ignore_errors=True)
        for h in pixels: (some/'catalogue/main/dark/270').mkdir(parents=True, exist_ok=True); shutil.copy(a.work/f'two/catalogue/main/dark/270/main-dark-{h}.parquet', some/'catalogue/main/dark/270')
        return contents(some)
    if a.kills: kills(release, a.work, a.kills, sorted(int(p.stem.rsplit('-', 1)[1]) for p in coadds if '/main/dark/' in str(p))[:12], expected)
    each = [(f['seconds'], pq.read_metadata(p).num_rows) for f, p in zip(facts(a.work/'one'), list_parts(a.work/'one'))]
    cost(one.spectra/one.seconds, far.bytes/far.spectra, kept, size(parts)/two.spectra, [s/n for s, n in each if n], jobs_a_second)


if __name__ == '__main__': main()
