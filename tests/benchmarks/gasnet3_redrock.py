"""GaSNet-III (improved) at DESI's depth, beside redrock on the same spectra.

    OMP_NUM_THREADS=1 python tests/benchmarks/gasnet3_redrock.py --data ../shared/data [--steps 1800 150 600]

Run by hand, some three minutes on one core. Trains one model a class on the training files of `redrock_bench` (real redrock answers, simulated spectra with truth; the
templates behind training and validation files are the same, redrock's are partly others), then prints the share of catastrophic redshifts (beyond 1000 km/s) on the validation files.
"""
import argparse
import warnings
from pathlib import Path

import numpy as np
import torch

from skyseek.data.desi import extract
from skyseek.data.redshift_tables import read_truth
from skyseek.gasnet.gasnet3 import gasnet_redshifts
from skyseek.gasnet.gasnet3_networks import Eigenspectra, train_gasnet
from skyseek.data.spectra import concatenate
from skyseek.learn.training import TrainSettings
from skyseek.data.truth import match_truth

RANGES = dict(GALAXY=(-.005, 1.7), QSO=(0., 5.5), STAR=(-.005, .005))
LIMIT = 1000/299792.458


def read(folder):
    """Spectra of a folder with redrock's columns, true redshifts and true types."""
    coadds = sorted(folder.glob('coadd-*.fits'))
    spectra = concatenate([extract(c) for c in coadds])
    truth = match_truth(spectra.meta['TARGETID'], read_truth([str(c).replace('coadd-', 'truth-') for c in coadds]))
    return spectra, np.asarray(truth['TRUE_Z'], float), np.asarray(truth['TRUE_SPECTYPE'])


def train(spectra, z, kind, spectype, steps):
    """One class on the merged grid's 3600 to 9824 Å."""
    low, high = RANGES[spectype]
    torch.manual_seed(0)
    model = Eigenspectra(spectype=spectype, zmin=low, zmax=high, n_wave=4360)
    rows = np.flatnonzero((kind == spectype) & (z > low) & (z < high))
    settings = TrainSettings(epochs=max(1, round(steps*64/len(rows))), lr=4e-3, patience=0, device='cpu')
    train_gasnet(model, (spectra[rows], z[rows]), settings=settings, progress=False)
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--steps', type=int, nargs=3, default=(1800, 150, 600), help='of 64 spectra, for GALAXY, QSO, STAR')
    a = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    known, (spectra, z, kind) = read(a.data/'redrock_bench/train'), read(a.data/'redrock_bench/validation')
    table = gasnet_redshifts(spectra, [train(*known, s, n) for s, n in zip(RANGES, a.steps)])
    snr = np.max([spectra.meta[f'MEDIAN_COADD_SNR_{x}'] for x in 'BRZ'], axis=0)
    wrong = lambda found: np.abs(np.asarray(found, float) - z)/(1 + z) > LIMIT
    ours, theirs = wrong(table['Z']), wrong(spectra.meta['Z'])
    types = np.char.strip(np.asarray(spectra.meta['SPECTYPE']).astype(str))
    print('| S/N | class | n | beyond 1000 km/s: ours | ours, class given | redrock | class right: ours | redrock | of redrock\'s errors mended | of its right ones broken |\n' + '|---'*10 + '|')
    for limit in (0, 2):
        for s in RANGES:
            r = (kind == s) & (snr > limit)
            right = [np.mean(x[r] == s) for x in (table['SPECTYPE'], types)]
            print(f"| > {limit} | {s} | {r.sum()} | {ours[r].mean():.3f} | {wrong(table[f'Z_{s}'])[r].mean():.3f} | {theirs[r].mean():.3f} | {right[0]:.3f} | {right[1]:.3f} | "
                  f"{np.sum(r & theirs & ~ours)} of {np.sum(r & theirs)} | {np.sum(r & ~theirs & ours)} of {np.sum(r & ~theirs)} |")


if __name__ == '__main__': main()
