"""What is the best possible? An oracle that knows the noiseless template of every simulated spectrum, beside trees, the second opinion and DELTACHI2 on the same spectra.

    python tests/benchmarks/oracle.py --data ../shared/data --cache ladder

Spectra of the built-in simulator at main depth are answered by a scan with redrock's templates. The oracle fits each with the one spectrum it really has, dust and forest included, amplitude free, at all redshifts of
its class, with the true noise (ivar corrected for the scatter that the simulator adds), and the distribution of redshifts of its target class as a prior. Its P(Z_WRONG) is the posterior beyond the tolerance of the
pipeline's Z. Trees are cross-validated on the same spectra.

Two more questions of the same kind: how well would the trees do if they judged the same answers by evidence from deeper exposures of the same objects (is the limit S/N?), and if they had more labelled spectra (is it labels?).
With the inputs of ladder.py in the cache, also what AP would be on the benchmark if the small errors of a class were all found. Ten minutes on one core for 900 spectra.
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
import torch
from ladder import FOLDS, METADATA, cross_validate, folds, interval, load, sets_of, trees

import skyseek.simulate.targets as sample
from skyseek.detect.augment import redrock_like, simulate_labelled
from skyseek.redshift.bases import Basis
from skyseek.detect.metrics import average_precision, compare
from skyseek.redshift.second_look import second_look
from skyseek.redshift.second_opinion import Judge
from skyseek.learn.features import metadata_table
from skyseek.learn.training import shipped
from skyseek.detect.labelled_data import is_labelled
from skyseek.simulate.instrument import Faults
from skyseek.redshift.chi2 import ScanSettings
from skyseek.redshift.scan import scan_redshift
from skyseek.simulate.templates import template_rng
from skyseek.simulate.mock_survey import Survey, mock_targetid, simulate_spectra
from skyseek.simulate.targets import PROGRAMS
from skyseek.learn.training import load_model
from skyseek.data.truth import choose_threshold, redshift_error

TOLERANCES = .001, .0033
DEEPER = 4, 16  # exposure times of the deeper spectra
RANGES = {'GALAXY': (-.005, 1.7), 'QSO': (.05, 6.), 'STAR': (-.002, .002)}
SETTINGS = ScanSettings(pixel=5e-5, stride=1, dtype='float64')


def true_source(number, seed, survey):
    """TARGETID, rest-frame wavelength and flux (dust of the Milky Way included), and the row of the truth: the draws of `simulate_target` again, with an eye on the template."""
    code, caught, draw = list(PROGRAMS).index(survey.program), [], sample._rest_spectrum
    rng = template_rng(seed, 2 + code, survey.hpx, number)

    def spy(*args):
        caught.append(draw(*args))
        return caught[-1]

    sample._rest_spectrum = spy
    try: _, row = sample.draw_source(sample.pick(survey.shares or PROGRAMS[survey.program], rng), rng, survey.blend, survey.library)
    finally: sample._rest_spectrum = draw
    target = mock_targetid(seed, survey.hpx, number + (code << 20))
    if not caught: return target, None, None, row
    wave, flux = caught[0][:2]
    return target, wave, flux*10**(-.4*row['EBV']*3.1*np.clip(wave*(1 + row['TRUE_Z'])/5500, .3, 2)**-1.35), row


def log_prior(row, z, cache={}):
    """Log density in log(1 + z) of the redshifts of a target class; a floor keeps every redshift possible."""
    key = row['CLASS'], row['TRUE_SPECTYPE']
    if key not in cache:
        low, high = np.log1p(RANGES[key[1]])
        rng = np.random.default_rng(0)
        n, edges = np.histogram(np.log1p([sample.draw_redshift(*key, rng) for _ in range(20000)]), 40, (low, high))
        cache[key] = (edges[1:] + edges[:-1])/2, np.log(n/n.sum() + 1e-3)
    return np.interp(np.log1p(z), *cache[key])


def honest_noise(spectra):
    """Spectra whose ivar is what the simulator's noise really has, between the middles of the overlaps of the arms."""
    factor = np.select([spectra.wave < 5780, spectra.wave < 7570], Faults().scatter[:2], Faults().scatter[2])
    return spectra.replace(ivar=(spectra.ivar/factor).astype(np.float32))


def posterior(spectrum, wave, flux, row):
    """Redshifts (nz,) and their posterior, given the template."""
    kind = row['TRUE_SPECTYPE']
    if kind == 'QSO':
        dark = 400*(wave[1]/wave[0])**np.arange(int(np.log(wave[0]/400)/np.log(wave[1]/wave[0])))
        wave, flux = np.concatenate([dark[dark < wave[0]*.9999], wave]), np.concatenate([np.zeros((dark < wave[0]*.9999).sum()), flux])
    basis = Basis(wave, (flux/np.sqrt(np.mean(flux**2)))[None], kind, '', *RANGES[kind])
    z, chi2 = scan_redshift(spectrum, [basis], settings=SETTINGS, keep_chi2=True).curves[kind]
    log_p = -.5*(chi2[0].astype(float) - chi2[0].min()) + log_prior(row, z)
    p = np.exp(log_p - log_p.max())
    return z, p/p.sum()


def oracle(spectra, seed, survey, tolerances=TOLERANCES):
    """(N, T) posterior probability that the pipeline's redshift is off by more than each tolerance."""
    rows, out, noise = {int(t): i for i, t in enumerate(spectra.meta['TARGETID'])}, np.zeros((len(spectra), len(tolerances))), honest_noise(spectra)
    number, found = 0, 0
    while found < len(spectra):
        target, wave, flux, row = true_source(number, seed, survey)
        number += 1
        if target not in rows: continue
        i, found = rows[target], found + 1
        if abs(row['TRUE_Z'] - spectra.meta['TRUE_Z'][i]) > 1e-9: raise ValueError(f'{target}: the template drawn again is of another redshift')
        z, p = posterior(noise[i], wave, flux, row)
        off = redshift_error(np.full(len(z), spectra.meta['Z'][i]), z)
        out[i] = [p[off > t].sum() for t in tolerances]
    return out


def simulate(n, seed, data):
    """Labelled spectra, evidence included, and the survey they belong to."""
    templates = data/'templates/redrock-templates'
    spectra = simulate_labelled(n, seed, redrock_like(templates if templates.exists() else None), program='dark')
    spectra = spectra[np.flatnonzero(is_labelled(spectra))]
    return second_look(spectra, load_model(shipped('judge'), Judge))[0], Survey(program='dark')


def columns_of(spectra):
    """What the trees see, (N, M)."""
    table = metadata_table(spectra)
    return np.stack([np.asarray(table[c], np.float32) for c in METADATA['second']], 1)


def labels(spectra):
    """(N, 2): off by more than either tolerance; and the error itself."""
    off = np.asarray(redshift_error(spectra.meta['Z'], spectra.meta['TRUE_Z']))
    return np.stack([off > t for t in TOLERANCES], 1), off


def kept(path, make):
    """The arrays that `make` returns, from a file if they were made before."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **make())
    with np.load(path, allow_pickle=False) as f: return {k: f[k] for k in f.files}


def make_main(n, seed, data):
    """Columns, labels, the oracle's posterior, and columns with evidence from deeper spectra of the same objects."""
    spectra, survey = simulate(n, seed, data)
    wrong, off = labels(spectra)
    out, judge = dict(x=columns_of(spectra), wrong=wrong, off=off, oracle=oracle(spectra, seed, survey)), load_model(shipped('judge'), Judge)
    for factor in DEEPER:
        deep = simulate_spectra(n, seed=seed, program='dark', exptime=tuple(factor*t for t in survey.times()))[0]
        at = {int(t): i for i, t in enumerate(deep.meta['TARGETID'])}
        deep = deep[[at[int(t)] for t in spectra.meta['TARGETID']]]
        out[f'x{factor}'] = columns_of(second_look(deep.replace(meta=spectra.meta), judge)[0])
    return out | dict(kind=np.asarray(spectra.meta['TRUE_SPECTYPE']).astype(str), targetid=np.asarray(spectra.meta['TARGETID']), deltachi2=np.asarray(spectra.meta['DELTACHI2'], float))


def make_more(seed, data):
    """Columns and labels of 500 other spectra."""
    spectra = simulate(500, seed, data)[0]
    return dict(x=columns_of(spectra), wrong=labels(spectra)[0])


def as_set(x, wrong, rows):
    """Rows of columns and labels, for `trees`."""
    return dict(x=x[rows], latent=np.zeros((len(x[rows]), 0)), wrong=wrong[rows], own=np.ones(len(x[rows]), bool))


def boost(x, wrong, fold):
    """(N, 2) cross-validated probabilities by trees."""
    p = np.zeros(wrong.shape)
    for f in range(FOLDS): p[fold == f] = trees(as_set(x, wrong, fold != f), as_set(x, wrong, fold == f))
    return p


def by_class(wrong, p, kind): return '  '.join(f'{g} {average_precision(wrong[kind == g], p[kind == g]):.3f}' for g in RANGES if wrong[kind == g].sum() > 2)


def report(tolerance, wrong, scores, kind):
    """AP with its 68 % interval, the best F1, AP by class, and the difference to the oracle."""
    for name, p in scores.items():
        low, high = interval(wrong, p)
        flag = p >= choose_threshold(wrong, p)
        step = '' if name == 'oracle' else '  minus oracle {:+.3f} ({:+.3f} to {:+.3f})'.format(*compare(wrong, p, scores['oracle'], resamples=300))
        print(f'{tolerance:<8}{name:24s}AP {average_precision(wrong, p):.3f} ({low:.3f} to {high:.3f})  best F1 {2*(flag & wrong).sum()/(flag.sum() + wrong.sum()):.3f}  {by_class(wrong, p, kind)}{step}')


def beside_oracle(d, boosted):
    """Print the oracle beside the others."""
    kind, wrong, off = d['kind'], d['wrong'], d['off']
    print(f'{len(kind)} simulated spectra; wrong (0.001, 0.0033): ' + ', '.join(f'{g} {wrong[kind == g, 0].mean():.3f}, {wrong[kind == g, 1].mean():.3f} of {(kind == g).sum()}' for g in RANGES))
    for t, (tolerance, column) in enumerate(zip(TOLERANCES, ('EV_P_Z_FINE', 'EV_P_Z'))):
        report(tolerance, wrong[:, t], {'oracle': d['oracle'][:, t], 'trees + second opinion': boosted[:, t], 'the judge alone': -d['x'][:, METADATA['second'].index(column)], 'DELTACHI2': -d['deltachi2']}, kind)
    fine = (off > .001) & (off <= .0033)
    means = lambda q: ', '.join(f'{g} {q[fine & (kind == g)].mean():.2f} of {(fine & (kind == g)).sum()}' for g in RANGES if (fine & (kind == g)).any())
    print(f"mean P(Z_WRONG) of the errors between 0.001 and 0.0033: oracle {means(d['oracle'][:, 0])}; trees {means(boosted[:, 0])}")


def with_deeper(d, boosted):
    """Print AP of trees whose evidence comes from longer exposures of the same objects; the pipeline's answers stay those of the short ones."""
    wrong, kind, fold = d['wrong'][:, 0], d['kind'], folds(d['targetid'])
    print('\nsame answers, evidence from deeper spectra of the same objects (trees, 0.001)')
    print(f'exposure x 1    AP {average_precision(wrong, boosted[:, 0]):.3f}  {by_class(wrong, boosted[:, 0], kind)}')
    for factor in DEEPER:
        p = boost(d[f'x{factor}'], d['wrong'], fold)[:, 0]
        print(f"{f'exposure x {factor}':16s}AP {average_precision(wrong, p):.3f}  {by_class(wrong, p, kind)}" + '  minus x 1 {:+.3f} ({:+.3f} to {:+.3f})'.format(*compare(wrong, p, boosted[:, 0], resamples=300)))


def more_labels(d, parts, n):
    """Print AP of trees trained on more and more simulated labelled spectra, tested on the same ones."""
    x, wrong = (np.concatenate([p[k] for p in parts]) for k in ('x', 'wrong'))
    print('\nmore labels (trees, 0.001), tested on the spectra above')
    for size in (n//8, n//4, n//2, n):
        p = trees(as_set(x, wrong, slice(0, size)), as_set(d['x'], d['wrong'], slice(None)))[:, 0]
        low, high = interval(d['wrong'][:, 0], p)
        print(f"{min(size, len(x)):6d} spectra  AP {average_precision(d['wrong'][:, 0], p):.3f} ({low:.3f} to {high:.3f})  {by_class(d['wrong'][:, 0], p, d['kind'])}")


def decompose(cache):
    """Print the AP that trees would reach on the benchmark's training part, cross-validated, if some errors were known."""
    copies = len(list(cache.glob('copy*.npz')))
    copies = min(copies, 4)
    own, p = load(cache, 'original'), cross_validate(sets_of(cache, copies, ''), 'second', False, trees)[:, 0]
    wrong, off = own['wrong'][:, 0] > 0, np.asarray(redshift_error(own['z'], own['z_true']))
    blend, fine = np.array(['BLEND' in f for f in own['flags']]), wrong & (off <= .0033)
    print(f'\nbenchmark, training part, {copies} copies, cross-validated: AP {average_precision(wrong, p):.3f}; if these errors were all found:')
    for name, rows in {**{f'{g}, 0.001 to 0.0033': fine & (own['kind'] == g) for g in RANGES}, 'all, 0.001 to 0.0033': fine, 'blends': blend & wrong, 'all beyond 0.0033': wrong & ~fine}.items():
        print(f'  {name:28s}{rows.sum():4d} of {wrong.sum()}  AP {average_precision(wrong, np.where(rows, 1., p)):.3f}')
    for name, rows in {'without blends': ~blend, **{g: own['kind'] == g for g in RANGES}}.items(): print(f'  {name:18s}AP {average_precision(wrong[rows], p[rows]):.3f}  ({wrong[rows].sum()} wrong of {rows.sum()})')
    print(f'  tolerance 0.0033  AP {average_precision(off > .0033, p):.3f} by the same scores')


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data', type=Path, default=Path('../shared/data'), help='folder with templates')
    parser.add_argument('--cache', type=Path, required=True, help='folder for what is made; that of ladder.py, for the decomposition')
    parser.add_argument('--spectra', type=int, default=900)
    parser.add_argument('--labels', type=int, default=2400, help='labelled spectra to train on at most')
    parser.add_argument('--seed', type=int, default=40)
    a = parser.parse_args()
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    d = kept(a.cache/f'oracle-{a.spectra}-{a.seed}.npz', lambda: make_main(a.spectra, a.seed, a.data))
    boosted = boost(d['x'], d['wrong'], folds(d['targetid']))
    beside_oracle(d, boosted)
    with_deeper(d, boosted)
    seeds = range(a.seed + 1, a.seed + 1 + -(-a.labels//480))
    more_labels(d, [kept(a.cache/f'more-{seed}.npz', lambda: make_more(seed, a.data)) for seed in seeds], a.labels)
    if (a.cache/'original.npz').exists(): decompose(a.cache)


if __name__ == '__main__': main()
