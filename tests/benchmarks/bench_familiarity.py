"""How often are ordinary spectra of DESI, SDSS, BOSS and LAMOST called UNFAMILIAR, and how often foreign ones?

    python tests/benchmarks/bench_familiarity.py --data ../shared/data                      # cross-fitted: references of one half of the objects, rates of the other half
    python tests/benchmarks/bench_familiarity.py --data ../shared/data --weights FOLDER     # a model as it is; real spectra may be in its references

Each foreign kind is made from the same spectra, with three seeds (foreign.py): power laws of steep and of usual slopes (S/N 5 to 50 per pixel), one arm of a star times 0.4 to 0.75 or 1.33 to 2.2, lines of the sky with a matched S/N of 15 to 150,
smooth curves with the ivar of a spectrum, and wavelengths in air; spectra one by one, without the rule for many spectra of one file. DESI's are made from simulated spectra: the benchmark's validation files and bright stars. 68 % binomial intervals.
UNFAMILIAR is that of the catalogue: by the p-value, or by a repair that scaled an arm. The last lines say how much each of the two sees. Ten minutes on one core.
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
from fit_familiarity import lean, learn, place, simulated
from foreign import foreign, on_grid, ordinary
from learn_bases import rate

from skyseek.data.desi import extract
from skyseek.data.spectra import concatenate, instruments_of
from skyseek.detect.familiarity import BROKEN, UNFAMILIAR, Familiarity
from skyseek.detect.spectrum_checks import spectrum_checks
from skyseek.learn.autoencoder import Autoencoder
from skyseek.learn.training import load_model, shipped
from skyseek.redshift.scan import scan_redshift
from skyseek.redshift.second_look import repair_suspicious
from skyseek.simulate.mock_survey import simulate_spectra

CASES = {'power law, steep': ('power law', {}), 'power law, usual slope': ('power law', dict(slopes=((-2.2, 0.),))), 'broken arm of a star': ('broken arm', {}), 'the same, no blend': ('broken arm', dict(sharp=1.)), 'sky lines': ('sky lines', {}),
         'noise-free': ('noise-free', {}), 'noise-free, sharp': ('noise-free', dict(width=2.)), 'air': ('air', {}), 'air, interpolated': ('air', dict(nearest=False))}
SEEDS = 1, 2, 3


def halves(spectra, side):
    """Spectra of one half of the objects, by survey."""
    return {k: s[np.flatnonzero(np.asarray(s.meta['HALF']) == side)] for k, s in spectra.items()}


def p_values(model, autoencoder, spectra):
    x = place(autoencoder, spectra)
    if model.config.get('checks'): x = np.hstack([spectrum_checks(spectra), x])
    p = model.p_value(x, instruments_of(spectra)) if model.config.get('checks') else model.p_value(x)
    return np.column_stack([p, repaired(spectra)])


def repaired(spectra):
    """|ln| of the factor by which the repairs of `score` scaled an arm, (N,)."""
    *_, made = repair_suspicious(spectra, scan_redshift(spectra))
    return made.columns(len(spectra))['REPAIR_ARM']


def bases(real, data):
    """dict name → (spectra foreign ones are made from, those for broken arms, survey)."""
    validation = lean(concatenate([extract(p) for p in sorted((data/'redrock_bench/validation').glob('coadd-*.fits'))]))
    stars = lean(simulate_spectra(300, seed=977, program='bright', shares=dict(MWS=1.))[0])
    out = {'DESI (simulated)': (validation, stars[np.flatnonzero(stars.snr > 4)], 'DESI')}
    for survey, s in real.items():
        if survey != 'DESI': out[survey] = (s, s[np.flatnonzero((s.snr > 4) & (np.asarray(s.meta['KIND']) == 'STAR'))], survey)
    return out


def count(model, autoencoder, real, data, wave, table, n=50):
    """Add p-values of ordinary and foreign spectra to table."""
    made = bases(real, data)
    for survey, s in real.items(): table.setdefault((survey, 'ordinary'), []).append(p_values(model, autoencoder, on_grid(s, survey, wave)))
    table.setdefault(('DESI (simulated)', 'ordinary'), []).append(p_values(model, autoencoder, made['DESI (simulated)'][0]))
    for name, (base, stars, survey) in made.items():
        for case, (kind, options) in CASES.items():
            pool = stars if kind == 'broken arm' else base
            for seed in SEEDS:
                rng = np.random.default_rng((seed, len(case)))
                changed = foreign(pool[rng.permutation(len(pool))[:n]], kind, rng, survey, **options)
                table.setdefault((name, case), []).append(p_values(model, autoencoder, on_grid(changed, survey, wave)))


def unfamiliar(x):
    """UNFAMILIAR of the catalogue: by the p-value, or by an arm that had to be scaled."""
    return (x[:, 0] < UNFAMILIAR) | (x[:, 1] > BROKEN)


def show(table):
    names = list(dict.fromkeys(k for k, _ in table))
    print(f"{'% UNFAMILIAR':24s}" + ''.join(f'{n:>32s}' for n in names))
    for case in dict.fromkeys(k for _, k in table):
        cells = (unfamiliar(np.concatenate(table[n, case])) if (n, case) in table else None for n in names)
        print(f'{case:24s}' + ''.join(f"{'' if c is None else f'{rate(c)} of {len(c)}':>32s}" for c in cells), flush=True)
    for name in names:
        for case in ('ordinary', 'broken arm of a star'):
            if (name, case) in table:
                p, scaled = np.concatenate(table[name, case]).T
                print(f'{name}, {case}: {100*np.mean(p < UNFAMILIAR):.1f} % by the p-value, {100*np.mean(scaled > BROKEN):.1f} % by a repair')


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--weights', type=Path, help='count with this model instead of cross-fitted ones')
    parser.add_argument('--seed', type=int, default=0)
    a, start, table = parser.parse_args(), time.time(), {}
    warnings.simplefilter('ignore')
    autoencoder, real = load_model(shipped('autoencoder'), Autoencoder), ordinary(a.data)
    wave = autoencoder.wave.cpu().numpy().astype(float)
    if a.weights:
        count(load_model(a.weights/'familiarity', Familiarity), autoencoder, real, a.data, wave, table)
    else:
        desi = simulated(a.data, a.seed)
        for side in (False, True):
            model, _ = learn(halves(real, side), desi, autoencoder, a.seed)
            count(model, autoencoder, halves(real, not side), a.data, wave, table)
    show(table)
    print(f'{(time.time() - start)/60:.1f} min')


if __name__ == '__main__': main()
