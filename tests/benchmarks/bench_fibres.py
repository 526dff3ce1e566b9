"""How long do `skyseek fibres` and `skyseek compare` take on large catalogues, and how much memory?

    python tests/benchmarks/bench_fibres.py                 # a million rows, FITS
    python tests/benchmarks/bench_fibres.py --rows 3000000 --kind parquet

Each command runs in a process of its own; its peak memory is VmHWM of Linux.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from astropy.table import Table

from skyseek.data.files import write_table


def catalogue(n, seed=0, same=None):
    """A catalogue with the columns of `skyseek score`, and others that nobody asks for; with `same`, a second production of its targets."""
    rng = np.random.default_rng(seed)
    fibre, snr, wrong = rng.integers(0, 5000, n), np.exp(rng.normal(0, 1, n)).astype('f4'), rng.random(n) < .02
    ids, z, waves = np.arange(n) + 39628000000000000, rng.uniform(0, 1.6, n), np.full((n, 3), np.nan)
    if same is not None:
        keep = rng.permutation(n)
        ids, z = np.asarray(same['TARGETID'])[keep], np.where(wrong, z, np.asarray(same['Z'])[keep])
    waves[wrong] = rng.uniform(3600, 9800, (wrong.sum(), 3))
    words = dict(SURVEY='main', PROGRAM='dark', OBJTYPE='TGT', SPECTYPE='GALAXY', SPECTYPE_ALT='GALAXY', FILE='spectra-main-dark-9999.fits')
    return Table(dict(TARGETID=ids, FIBER=fibre.astype('i4'), LASTNIGHT=(20210500 + rng.integers(1, 30, n)).astype('i4'), DESI_TARGET=rng.choice([1, 2, 4, 1 << 60], n), SNR=snr, Z=z, ZERR=np.full(n, 1e-4),
                      ZWARN=4*(rng.random(n) < .05), DELTACHI2=np.exp(rng.normal(4, 1, n)), P_Z_WRONG=np.where(wrong, .9, .01).astype('f4'), FLAG_Z_WRONG=wrong, P_S_WRONG=np.full(n, .01, 'f4'), Z_ALT=z, P_ALT=np.full(n, .9, 'f4'),
                      P_Z_PIPE=np.where(wrong, .1, .99).astype('f4'), CAUSE=np.where(wrong, 'SKY_LINE', ''), NATURE=np.full(n, ''), CAUSE_WAVE=waves, ANOMALY_WAVE=waves, LATENT=np.zeros((n, 36), 'f4'), **{k: np.full(n, v) for k, v in words.items()}))


def run(*words):
    """Seconds, and MB at the peak, of a command."""
    code = f"import re, sys; from pathlib import Path; from skyseek.pipeline.cli import main; code = main({[str(w) for w in words]!r}); print('PEAK', int(re.search('VmHWM:[^0-9]*([0-9]+)', Path('/proc/self/status').read_text())[1])//1024); sys.exit(code)"
    start = time.time()
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    if done.returncode: raise SystemExit(done.stderr)
    return time.time() - start, int(done.stdout.split('PEAK')[1]), done.stdout.splitlines()[0]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--rows', type=int, default=1_000_000)
    parser.add_argument('--kind', default='fits', choices=['fits', 'parquet'])
    a = parser.parse_args()
    with TemporaryDirectory() as d:
        paths = [Path(d, f'{name}.{a.kind}') for name in 'ab']
        first = catalogue(a.rows)
        write_table(first, paths[0], 'CATALOGUE')
        write_table(catalogue(a.rows, 1, first), paths[1], 'CATALOGUE')
        del first
        for words in (['fibres', paths[0], '-o', Path(d, 'fibres.ecsv'), '--map', Path(d, 'map.png')], ['compare', *paths, '-o', Path(d, 'differences.fits')]):
            seconds, peak, line = run(*words)
            print(f"{words[0]}: {a.rows:,} rows ({paths[0].stat().st_size/1e6:.0f} MB of {a.kind}) in {seconds:.1f} s, {peak} MB at the peak")


if __name__ == '__main__':
    main()
