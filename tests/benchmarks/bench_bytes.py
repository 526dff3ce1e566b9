"""Bytes and requests of a survey that is fetched, and what fetching costs in time: python tests/benchmarks/bench_bytes.py [-n 100] [--link 1]

Makes an archive of a few simulated pixels, serves it on this machine, and prints what each file costs: requests, and kB a spectrum by part. Then a worker on a
slow link (--link, MB/s) with the next file fetched while one is scored, beside one after the other; and reading beside copying the same bytes from the cache.
"""
import argparse
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault('OMP_NUM_THREADS', '1')
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from astropy.io import fits  # noqa: E402
from bench_extract import make_coadd  # noqa: E402
from servers import serving  # noqa: E402

import skyseek.pipeline.survey as survey  # noqa: E402
from skyseek.data.archive import open_archive  # noqa: E402
from skyseek.data.byte_ranges import fetch_pair, needed_ranges, plan_pieces  # noqa: E402
from skyseek.data.desi import read_coadd  # noqa: E402
from skyseek.redshift.scan import redshift_file  # noqa: E402
from skyseek.simulate.mock_archive import write_archive  # noqa: E402

PIXELS = 7, 8, 9, 10
REAL = 28_425_963/27_000  # spectra of a file of DR1


def bytes_of_files(address, folder, n):
    "What each file costs; the kB of a spectrum in DR1."
    archive = open_archive(f'{address}/iron')
    print('| file | requests | kB a spectrum | flux and ivar | masks | tables | redrock file | headers, to find them |\n' + '|---'*8 + '|')
    for k, h in enumerate(PIXELS[:3]):
        coadd, redrock, counter = fetch_pair(archive, 'main', 'dark', h, folder)
        with fits.open(coadd) as hdus: sizes = {x.name: x.filebytes() for x in hdus}
        images, masks = (sum(s for name, s in sizes.items() if name.endswith(ends)) for ends in (('_FLUX', '_IVAR', '_WAVELENGTH'), '_MASK'))
        rest = [sum(sizes.values()) - images - masks, redrock.stat().st_size]
        parts = [images, masks, *rest, counter.bytes - images - masks - sum(rest)]
        print(f"| {('first', 'second', 'third')[k]} | {counter.requests} | {counter.bytes/n/1e3:.1f} | " + ' | '.join(f'{p/n/1e3:.1f}' for p in parts) + ' |')
    real = (sum(parts[:4])/n + parts[4]/REAL)/1e3
    print(f'with the {REAL:.0f} spectra that a file of DR1 has: {real:.1f} kB a spectrum, {28_425_963*real/1e9:.2f} TB in all')


def overlap(address, folder, link):
    "A worker on a slow link, with jobs of one pixel and with a job of all."
    fetch = survey.fetch_pair
    def slowly(*args):
        start, (*pair, counter) = time.perf_counter(), fetch(*args)
        time.sleep(max(counter.bytes/link/1e6 - (time.perf_counter() - start), 0))
        return *pair, counter
    survey.fetch_pair = slowly
    job = lambda pixels, name: survey.Job(open_archive(f'{address}/iron'), 'main', 'dark', pixels, str(folder/name))
    survey.survey_part(job(PIXELS[:1], 'warm'))
    print(f'\n| a worker on a link of {link:g} MB/s, {len(PIXELS)} files | s |\n|---|---|')
    for what, jobs in {'one file after the other': [job((h,), 'a') for h in PIXELS], 'the next is fetched while one is scored': [job(PIXELS, 'b')]}.items():
        start = time.perf_counter()
        for j in jobs: survey.survey_part(j)
        print(f'| {what} | {time.perf_counter() - start:.1f} |')
    survey.fetch_pair = fetch


def reading(folder, sizes):
    "Reading and merging beside copying the bytes that it reads, both from the cache."
    def copy(path):
        with open(path, 'rb') as f, open(folder/'sink', 'wb') as sink:
            read = lambda a, b: (f.seek(a), f.read(b - a))[1]
            for a, b in needed_ranges(plan_pieces(read, path.stat().st_size)): sink.write(read(a, b))
    print('\n| spectra in the file | copied, spectra/s | read and merged, spectra/s | read / copied |\n|---|---|---|---|')
    for n in sizes:
        path, rates = make_coadd(folder/f'coadd-main-dark-{n}.fits', n), []
        for work in (copy, read_coadd):
            times = []
            for _ in range(5):
                start = time.process_time()
                work(path)
                times.append(time.process_time() - start)
            rates.append(n/min(times))
        print(f'| {n} | {rates[0]:.0f} | {rates[1]:.0f} | {rates[1]/rates[0]:.0%} |')


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('-n', type=int, default=100, help='spectra of a file')
    parser.add_argument('--link', type=float, default=1., help='MB/s of the slow link')
    a = parser.parse_args()
    with TemporaryDirectory() as folder:
        folder = Path(folder)
        write_archive(folder/'iron', {('main', 'dark'): list(PIXELS)}, redshift_file, n=a.n, resolution=True)
        with serving(folder) as address:
            (folder/'fetched').mkdir()
            bytes_of_files(address, folder/'fetched', a.n)
            overlap(address, folder, a.link)
        reading(folder, (100, 500, 1000))


if __name__ == '__main__': main()
