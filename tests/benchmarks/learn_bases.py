"""Learn the bases that ship with the package, and say how well they do.

    python tests/benchmarks/learn_bases.py --data ../shared/data --output skyseek/weights/bases

Templates for galaxies, quasars and stars by heteroscedastic matrix factorisation (skyseek.eigenspectra), from the training files of the redrock
benchmark at their true redshifts and from spectra of the built-in simulator. Numbers of templates and weights were chosen by cross-validation
(--cross: learn on one half of the training targets, scan the other); the benchmark's validation files are only used to write the card's figures.
About five minutes on one core.
"""

import argparse
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.stats import binomtest

from skyseek import __version__
from skyseek.atmospheres import bin_average, make_star, wave_rest
from skyseek.bases import default_bases, save_bases
from skyseek.desi import join_redrock, read_coadd, read_redrock, read_truth
from skyseek.eigenspectra import LYMAN_LIMIT, LearnSettings, learn_basis
from skyseek.populations import make_galaxy
from skyseek.quasars import make_quasar
from skyseek.redshift import scan_redshift
from skyseek.spectra import Spectra, concatenate, pixel_edges
from skyseek.truth import match_truth, split_of

CLASSES = ('GALAXY', 'QSO', 'STAR')
WAVE = 3550 + .8*np.arange(8626)  # to 10450 Å: SDSS and BOSS see more than DESI
KINDS = {
    'GALAXY': dict(OLD=.22, MIXED=.2, SF=.28, BURST=.15, POST=.07, AGN2=.08),
    'QSO': dict(QSO=.9, BAL=.1),
    'STAR': dict(O=.03, B=.06, A=.1, F=.15, G=.14, K=.15, M=.17, WD=.09, CV=.03, CARBON=.04, LDWARF=.04)}


@dataclass(frozen=True)
class Recipe:
    """How one basis is made."""
    n: int  # templates
    simulated: int = 500  # spectra of the simulator
    snr: float = 3.  # their S/N per pixel
    smooth: float = 3.
    cap: float = 50.
    niter: int = 50
    zmax: float = None


RECIPES = {'GALAXY': Recipe(8), 'QSO': Recipe(7, zmax=6.5), 'STAR': Recipe(9)}


def draw_redshift(spectype, rng):
    """Redshifts that fill the range, rather than a survey's."""
    if spectype == 'STAR': return rng.normal(0, 4e-4)
    if spectype == 'GALAXY': return 1.7*rng.random()**1.2
    return rng.uniform(.05, 6.5 if rng.random() < .5 else 3.5)


def simulated_spectra(spectype, n, snr, seed=7):
    """Spectra without noise at a resolution like DESI's, on a grid that is wider than DESI's; quasars with the mean forest."""
    rng, rest, edges, flux, z = np.random.default_rng(seed), wave_rest(), pixel_edges(WAVE), [], []
    names, shares = zip(*KINDS[spectype].items())
    for _ in range(n):
        kind = rng.choice(names, p=shares)
        z.append(draw_redshift(spectype, rng))
        if spectype == 'STAR': f = make_star(kind, rng)[0]
        else: f = make_galaxy(kind, rng, z[-1])[0] if spectype == 'GALAXY' else make_quasar(kind, rng, z[-1], forest=False)[0]
        f = gaussian_filter1d(bin_average(rest*(1 + z[-1]), f, edges), .9)
        flux.append(f/np.sqrt((f**2).mean()))
    one_plus_z = 1 + np.array(z)[:, None]
    seen = (WAVE > (LYMAN_LIMIT + 10 if spectype == 'QSO' else rest[0])*one_plus_z) & (WAVE < rest[-1]*one_plus_z)
    return Spectra(WAVE, np.array(flux), np.where(seen, snr**2, 0)), np.array(z)


def benchmark(folder, part):
    """Spectra of one part of the redrock benchmark, with redrock's answers and the truth in their table; sky fibres left out."""
    coadds = sorted((folder/'redrock_bench'/part).glob('coadd-*.fits'))
    spectra = concatenate([join_redrock(read_coadd(c), read_redrock(str(c).replace('coadd-', 'redrock-'))) for c in coadds])
    truth = read_truth([str(c).replace('coadd-', 'truth-') for c in coadds])
    for name, column in match_truth(spectra.meta['TARGETID'], truth).items(): spectra.meta[name] = column
    order = {t: i for i, t in enumerate(truth['TARGETID'])}
    spectra.meta['FLAGS'] = np.asarray(truth['FLAGS']).astype(str)[[order[t] for t in spectra.meta['TARGETID']]]
    return spectra[np.isin(spectra.meta['TRUE_SPECTYPE'], CLASSES)]


def learn(spectra, recipes):
    """One basis for each class, from spectra with truth and from the simulator."""
    flags = np.asarray(spectra.meta['FLAGS'])
    clean, bases = ~np.array(['BLEND' in f or 'DEAD' in f for f in flags]), []
    for spectype, r in recipes.items():
        rows = np.flatnonzero(clean & (spectra.meta['TRUE_SPECTYPE'] == spectype))
        parts, zs = [spectra[rows]], [np.asarray(spectra.meta['TRUE_Z'][rows], float)]
        if r.simulated: parts, zs = zip(*[(parts[0], zs[0]), simulated_spectra(spectype, r.simulated, r.snr)])
        settings = LearnSettings(zmax=r.zmax, smooth=r.smooth, cap=r.cap, niter=r.niter)
        bases.append(learn_basis(parts, zs, spectype, r.n, settings, version=f'learned {__version__}'))
    return bases


def rate(bad):
    """Share in per cent with its 68 % Wilson interval."""
    if not len(bad): return '–'
    interval = binomtest(int(bad.sum()), len(bad)).proportion_ci(.68, 'wilson')
    return f'{100*bad.mean():.1f} % ({100*interval.low:.1f} to {100*interval.high:.1f})'


def figures(spectra, bases):
    """Markdown table: ours beside redrock's, on the same spectra."""
    fit, meta = scan_redshift(spectra, bases).table, spectra.meta
    z, ztrue, kind = np.asarray(fit['Z']), np.asarray(meta['TRUE_Z'], float), np.asarray(meta['TRUE_SPECTYPE']).astype(str)
    off, off_rr = (abs(x - ztrue)/(1 + ztrue) for x in (z, np.asarray(meta['Z'], float)))
    types = [np.char.strip(np.asarray(t['SPECTYPE']).astype(str)) != kind for t in (fit, meta)]
    lines = ['| S/N per pixel | class | spectra | > 1000 km/s | redrock | beyond 0.01 | redrock | type wrong | redrock |', '|---'*9 + '|']
    for cut in (0, 1, 2):
        for c in CLASSES:
            m = (kind == c) & (spectra.snr > cut)
            cells = [f(m) for limit in (.0033, .01) for f in (lambda m: rate(off[m] > limit), lambda m: rate(off_rr[m] > limit))]
            lines.append(' | '.join([f'| > {cut}', c, str(m.sum())] + cells + [rate(t[m]) for t in types]) + ' |')
    bad = off_rr > .0033
    lines += ['', f"Of redrock's {bad.sum()} errors beyond 0.0033 the right redshift is found for {rate(off[bad] <= .0033)}; of its {(~bad).sum()} right ones {rate(off[~bad] > .0033)} are lost."]
    return '\n'.join(lines)


def cross_validate(spectra, recipes):
    """Learn on one half of the training targets, scan the other, and the other way round: one table."""
    half = split_of(spectra.meta['TARGETID'], (.5, .5, 0)) == 'train'
    for a, b in ((half, ~half), (~half, half)): print(figures(spectra[np.flatnonzero(b)], learn(spectra[np.flatnonzero(a)], recipes)), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--output', type=Path, help='folder to write; without it the bases of the package are measured')
    parser.add_argument('--cross', action='store_true', help='cross-validate on the training files instead')
    a = parser.parse_args()
    warnings.simplefilter('ignore')
    if a.cross: return cross_validate(benchmark(a.data, 'train'), RECIPES)
    bases = learn(benchmark(a.data, 'train'), RECIPES) if a.output else default_bases()
    text = figures(benchmark(a.data, 'validation'), bases)
    if a.output:
        save_bases(a.output/'bases.safetensors', bases)
        numbers = ', '.join(f'{b.spectype} {len(b.flux)} (z {b.zmin:g} to {b.zmax:g})' for b in bases)
        (a.output/'card.md').write_text(CARD.format(version=__version__, numbers=numbers, figures=text))
    print(text)


CARD = """# Learned bases

Templates of galaxies, quasars and stars, learned with skyseek {version} by `tests/benchmarks/learn_bases.py`: {numbers}.

{figures}
"""

if __name__ == '__main__': main()
