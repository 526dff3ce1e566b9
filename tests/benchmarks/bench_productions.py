"""How often is `skyseek compare` right about which of two productions is right?

    python tests/benchmarks/bench_productions.py --data ../shared/data

The benchmark's validation files, simulated spectra with the redshifts of the real redrock and their truth. Two cases: redrock against skyseek's own scan of the same spectra; and redrock against the scan of spectra of which all above 5800, 7600 or 8500 Å
(by chance) is masked. One minute on one core.
"""

import argparse
import warnings
from pathlib import Path

import numpy as np

from skyseek.data.constants import same_redshift
from skyseek.data.desi import extract, join_redrock
from skyseek.data.redshift_tables import read_truth
from skyseek.detect.two_productions import VERDICTS, compare_productions, format_comparison
from skyseek.pipeline.catalogue import make_catalogue
from skyseek.pipeline.score import load_weights, score_spectra
from skyseek.redshift.scan import scan_redshift


def productions(paths, masked, weights):
    """Catalogues with redrock's redshifts, and with those of the scan."""
    rng, tables = np.random.default_rng(0), ([], [])
    for path in paths:
        spectra = changed = extract(path)
        if masked:
            first = rng.choice([5800, 7600, 8500], len(spectra))
            changed = spectra.replace(ivar=np.where(spectra.wave > first[:, None], 0, spectra.ivar))
        again = scan_redshift(changed).to_table()
        again['TARGETID'] = spectra.meta['TARGETID']
        tables[0].append(score_spectra(spectra, weights))
        tables[1].append(score_spectra(join_redrock(changed, again), weights))
    return [make_catalogue(t, weights) for t in tables]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--data', type=Path, required=True)
    folder, weights = parser.parse_args().data/'redrock_bench/validation', load_weights()
    truth = read_truth(sorted(folder.glob('truth-*.fits')))
    true_z = dict(zip(truth['TARGETID'].tolist(), truth['TRUE_Z'].tolist()))
    for masked in (False, True):
        a, b = productions(sorted(folder.glob('coadd-*.fits')), masked, weights)
        found = compare_productions(a, b)
        z = np.array([true_z[t] for t in a['TARGETID'][found.rows_a].tolist()])
        right = np.stack([same_redshift(t['Z'][rows], z) for t, rows in ((a, found.rows_a), (b, found.rows_b))])
        right = np.vstack([right, ~right.any(0)])
        print(f"\nredrock (A) and the scan of {'masked' if masked else 'the same'} spectra (B)\n{format_comparison(found)}")
        for k, name in enumerate(VERDICTS[:3]):
            given = found.verdict == name
            print(f'{name}: {right[k][given].sum()} of {given.sum()} answers are right')
        open_ = found.verdict == 'UNDECIDED'
        print(f"undecided: A is right in {right[0][open_].sum()}, B in {right[1][open_].sum()}, neither in {right[2][open_].sum()}")


if __name__ == '__main__':
    warnings.simplefilter('ignore')
    main()
