"""Time and peak memory of `skyseek export` on made-up catalogues: python tests/benchmarks/bench_export.py [--rows 200000 1000000] [--formats fits vot parquet hats]"""
import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from astropy.table import Table

PART = 20_000  # rows of a part


def make(dest, rows):
    "A catalogue of so many rows; each part is a strip of the sky."
    from skyseek.pipeline.parts import part_path, write_part
    rng = np.random.default_rng(0)
    for k in range(rows//PART):
        n = PART
        table = Table(dict(TARGETID=np.arange(n) + k*n, TARGET_RA=rng.uniform(k*3, k*3 + 3, n) % 360, TARGET_DEC=rng.uniform(-5, 5, n), Z=rng.random(n), ZWARN=np.zeros(n, int), SPECTYPE=np.full(n, 'GALAXY'),
                           ANOMALY=rng.random(n), TSNR2_LRG=rng.random(n), P_Z_WRONG=rng.random(n), LATENT=rng.normal(size=(n, 36)).astype('f4'), CAUSE_TEXT=np.full(n, 'a lone line at 5577 Angstrom')))
        write_part(table, part_path(dest, 'main', 'dark', k), {})


def export(dest, dst):
    "Export in this process; seconds, and memory in MB that it added."
    from skyseek.pipeline.hats import export_hats
    from skyseek.pipeline.survey_catalogue import export_catalogue
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.time()
    (export_catalogue if Path(dst).suffix else export_hats)(dest, dst)
    return time.time() - start, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)/1024


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--rows', type=int, nargs='+', default=[200_000, 1_000_000])
    parser.add_argument('--formats', nargs='+', default=['fits', 'vot', 'parquet', 'hats'])
    parser.add_argument('--one', nargs=2, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.one:
        print(*export(*a.one))
        return
    print('format        rows       s   MB added   MB of file')
    with tempfile.TemporaryDirectory() as folder:
        for rows in a.rows:
            make(f'{folder}/{rows}', rows)
            for name in a.formats:
                dst = Path(folder, 'hats' if name == 'hats' else f'all.{name}')
                out = subprocess.run([sys.executable, __file__, '--one', f'{folder}/{rows}', str(dst)], capture_output=True, text=True, check=True).stdout.split()[-2:]
                files = [dst] if dst.is_file() else [p for p in dst.rglob('*') if p.is_file()]
                print(f'{name:8} {rows:9} {float(out[0]):7.1f} {float(out[1]):10.0f} {sum(p.stat().st_size for p in files)/1e6:12.0f}', flush=True)
                subprocess.run(['rm', '-r', str(dst)], check=True)


if __name__ == '__main__': main()
