"""Would GaSNet-II's redshift help the second opinion as one more candidate?  python tests/benchmarks/gasnet2_candidate.py --data ../shared/data [--files 1]

On simulated DESI spectra with the answers of redrock (redrock_bench/validation): how often one of the candidates is right (within 1000 km/s), without and with GaSNet-II's redshift among them,
and how often the redshift of GaSNet-II itself, of the scan and of redrock is right.
"""
import argparse
import warnings
from pathlib import Path

import numpy as np
from astropy.table import Table

from skyseek.data.desi import extract
from skyseek.gasnet.classify_spectra import classify_spectra, load_gasnet2
from skyseek.redshift.bases import default_bases
from skyseek.redshift.candidates import candidates
from skyseek.redshift.scan import scan_redshift


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--files', type=int, default=1)
    a = parser.parse_args()
    warnings.simplefilter('ignore')
    rows = []
    for coadd in sorted((a.data/'redrock_bench/validation').glob('coadd-*.fits'))[:a.files]:
        spectra = extract(coadd)
        truth = Table.read(str(coadd).replace('coadd-', 'truth-'))
        place = {t: i for i, t in enumerate(truth['TARGETID'])}
        truth = truth[[place[t] for t in spectra.meta['TARGETID']]]
        scan = scan_redshift(spectra, default_bases())
        c, found = candidates(spectra, scan), classify_spectra(spectra, load_gasnet2())
        z = np.asarray(truth['TRUE_Z'], float)
        right = lambda x: np.abs(np.asarray(x, float) - z) < .0033*(1 + z)
        listed = np.any(c.known & (np.abs(c.z - z[:, None]) < .0033*(1 + z[:, None])), axis=1)
        own, best = right(found['Z']), right(scan.to_table()['Z'])
        rows.append((np.asarray(truth['TRUE_SPECTYPE']).astype(str), np.asarray(found['SNR']), listed, own, best, right(spectra.meta['Z']), np.asarray(found['ZWARN'] == 0)))
    kind, snr, listed, own, best, redrock, clear = (np.concatenate(x) for x in zip(*rows))
    lines = []
    for name, m in ({t: kind == t for t in ('GALAXY', 'QSO', 'STAR')} | {'all': kind != '', 'S/N > 1': snr > 1}).items():
        lines.append((name, m.sum(), *(f'{100*x[m].mean():.1f}' for x in (redrock, best, own)), f'{100*own[m & clear].mean():.1f} of {(m & clear).sum()}', f'{100*listed[m].mean():.1f}', f'{100*(listed | own)[m].mean():.1f}', (own & ~listed & m).sum(), (own & ~best & m).sum()))
    names = ['spectra', 'N', 'redrock right [%]', 'scan right', 'GaSNet-II right', 'without warning', 'a candidate right', 'with GaSNet-II', 'new right ones', 'right where the scan is not']
    print('\n'.join(Table(rows=lines, names=names).pformat(max_lines=-1, max_width=-1, show_dtype=False)))


if __name__ == '__main__': main()
