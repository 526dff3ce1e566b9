"""How right are proposals away from the spectra of the training? Kinds of public bug reports, and real spectra of SDSS, BOSS and LAMOST.

    python tests/benchmarks/bench_real_sky.py --data ../shared/data [--n 50] [--seed 0]

Each kind is made `--n` times from public templates (Kinney & Calzetti galaxies) with noise that is not the simulator's, at random redshift, brightness and size of the fault, with a wrong solution of the pipeline; faults also with the
right one. Printed are the fractions that are right (type and redshift, or "quasar, redshift unknown" for what has no features), undecided (wrong, but no proposal), wrong replacements (FLAG_ALT on a wrong solution), and flagged though the
pipeline is right. The templates of galaxies are also in a part of the training, with the simulator's noise. Real spectra: their labels took part in the training of the weights, so these rates are a check of consistency, not a test; rates
out of fold are on the card of the ranker. Then the benchmark's validation files: errors found, put right and left, calibration, whether the truth is among the candidates, causes, and the time of each stage. All are in one table at the end,
beside the targets and what version 0.1 did. Ten minutes on one core for 50 of each kind.
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
from astropy.table import Table
from learn_bases import rate
from survey_spectra import survey_spectra

from skyseek.data.constants import ARM_PIXELS, C_KMS, LYA, same_redshift
from skyseek.data.files import text
from skyseek.data.spectra import Spectra
from skyseek.data.constants import TYPES
from skyseek.detect.guarantee import errors_left
from skyseek.detect.labelled_data import read_labelled, wrong_answers
from skyseek.detect.metrics import evaluate
from skyseek.pipeline.score import load_weights, match_grid, score_spectra
from skyseek.redshift.candidates import candidates
from skyseek.redshift.scan import scan_redshift
from skyseek.redshift.second_look import repair_suspicious
from skyseek.redshift.second_opinion import judge_candidates
from skyseek.simulate.templates import read_library

FINE = np.arange(3590, 9835, .2)  # Å
GALAXIES = 'elliptical', 's0', 'sa', 'sb', 'sc', 'starb1', 'starb3'


class Maker:
    """Spectra of public templates with noise of a 1000 s exposure and bands of OH in the red, merged from three arms."""
    def __init__(self, data, wave, seed):
        self.rng, self.wave, self.data = np.random.default_rng(seed), wave, data
        self.galaxies = {name: read_library(data/f'templates/speXtra/kc96/{name}.fits') for name in GALAXIES}
        self.oh = 1 + 1.5*np.random.default_rng(99).random(len(FINE)//20 + 1)**6

    def uniform(self, low, high): return float(self.rng.uniform(low, high))

    def galaxy(self, z, name=None):
        library = self.galaxies[name or str(self.rng.choice(GALAXIES))]
        return np.interp(FINE, library.wave*(1 + z), library.flux[0].astype(float))

    def bright(self, flux, r):
        return flux*10**(-.4*(r + 48.6))*2.998e18/6400**2/1e-17/flux[(FINE > 5600) & (FINE < 7200)].mean()

    def line(self, wave, flux, kms):
        s = wave*kms/C_KMS
        return flux*np.exp(-.5*((FINE - wave)/s)**2)/s/2.5066

    def observe(self, flux, fault=None):
        """Flux and ivar on the merged grid; `fault` changes each arm (name, wave, flux, ivar) before they are merged."""
        kernel = np.exp(-.5*(np.arange(-15, 16)*.2/.72)**2)
        smooth, total, weight = np.convolve(flux, kernel/kernel.sum(), 'same'), np.zeros(len(self.wave)), np.zeros(len(self.wave))
        for arm, (first, n) in ARM_PIXELS.items():
            w = first + .8*np.arange(n)
            f = np.interp(w, FINE, smooth)
            sigma = .33*(1 + (4350/w)**9)*np.where(w > 7200, self.oh[((w - 3590)/4).astype(int)], 1)*np.sqrt(1 + np.maximum(f, 0)/4)
            f, ivar = f + sigma*self.rng.standard_normal(n), 1/sigma**2
            if fault: f, ivar = fault(arm, w, f, ivar)
            at = np.round((w - self.wave[0])/.8).astype(int)
            total[at], weight[at] = total[at] + f*ivar, weight[at] + ivar
        return np.where(weight > 0, total/np.where(weight > 0, weight, 1), 0), weight

    def dip(self):
        centre, width, depth = self.uniform(7700, 9500), self.uniform(25, 80), self.uniform(.5, .9)
        return lambda arm, w, f, v: (f - (arm == 'Z')*depth*np.median(f[abs(w - w.mean()) < 800])*np.exp(-.5*((w - centre)/width)**4), v)

    def arm(self):
        which, k = str(self.rng.choice(list(ARM_PIXELS))), float(self.rng.choice([self.uniform(.5, .75), self.uniform(1.35, 1.9)]))
        return lambda arm, w, f, v: (f*k, v/k**2) if arm == which else (f, v)

    def step(self):
        which, k, at = str(self.rng.choice(['R', 'Z'])), float(self.rng.choice([self.uniform(.6, .78), self.uniform(1.3, 1.7)])), self.uniform(-50, 50)
        return lambda arm, w, f, v: (np.where(w > w.mean() + at, f*k, f), np.where(w > w.mean() + at, v/k**2, v)) if arm == which else (f, v)

    def plain(self, fault=None):
        z = self.uniform(.1, .5)
        return *self.observe(self.bright(self.galaxy(z), self.uniform(19.2, 20.6)), fault and fault()), z, 'GALAXY'

    def blazar(self):
        x = np.log(FINE/6400)
        return *self.observe(self.bright(np.exp(self.uniform(-2.2, -.2)*x + self.uniform(-.1, .1)*x**2), self.uniform(18.5, 20.5))), np.nan, 'QSO'

    def dusty(self):
        z, ebv = self.uniform(.05, .45), self.uniform(.6, 1.2)
        return *self.observe(self.bright(self.galaxy(z)*10**(-.4*3.1*ebv*(FINE/(1 + z)/5500)**-1.2), self.uniform(19.2, 20.3))), z, 'GALAXY'

    def emitter(self):
        z = self.uniform(2.1, 4.8)
        s = LYA*(1 + z)*self.uniform(100, 300)/C_KMS
        line = np.exp(-.5*((FINE - LYA*(1 + z))/np.where(FINE < LYA*(1 + z), .35*s, s))**2)
        return *self.observe(line*self.uniform(6, 20)/(line.sum()*.2) + .05*(FINE > LYA*(1 + z))), z, ''

    def nucleus(self):
        z, width = self.uniform(.15, .55), self.uniform(1200, 3000)
        host = self.galaxy(z, 'sb')
        base = self.bright(.7*(FINE/6400)**self.uniform(-1.8, -.6) + .3*host/np.median(host), self.uniform(18.2, 19.6))
        flux, ew, hump = base.copy(), self.uniform(120, 400), self.rng.random() < .4
        speeds = (self.uniform(-3000, 3000),)*2 if hump else (self.uniform(-7000, -2500), self.uniform(2500, 7000))
        level = np.interp(5100*(1 + z), FINE, base)*(1 + z)
        for wave, ratio in ((6564.6, 1), (4862.7, .3), (4341.7, .13)):
            for v in speeds: flux += self.line(wave*(1 + z)*(1 + v/C_KMS), ew*ratio*level*self.uniform(.3, .7), self.uniform(4000, 7000) if hump else width)
        narrow, o3 = self.uniform(60, 140), self.uniform(6, 16)
        for wave, strength in ((3728.5, 6), (4960.3, o3/2.98), (5008.24, o3), (6549.9, 2), (6564.6, 6), (6585.3, 6), (6718.3, 2), (6732.7, 2)):
            flux += self.line(wave*(1 + z), strength*np.interp(wave*(1 + z), FINE, base)*(1 + z), narrow)
        return *self.observe(flux), z, 'QSO'


def with_pipeline(rows, wave, z, spectype, delta):
    """Spectra of rows (flux, ivar, …) with a pipeline's solution."""
    flux, ivar = (np.array([r[k] for r in rows], np.float32) for k in (0, 1))
    n, good = len(rows), (ivar > 0).sum(1)
    meta = Table(dict(TARGETID=39600000000000001 + np.arange(n), Z=np.broadcast_to(np.asarray(z, float), n).copy(), ZERR=np.full(n, 5e-5), ZWARN=np.zeros(n, int), CHI2=1.15*good, NPIXELS=good,
                      DELTACHI2=np.full(n, float(delta)), SPECTYPE=np.full(n, spectype, 'U6'), SUBTYPE=np.full(n, '', 'U20'), OBJTYPE=np.full(n, 'TGT')))
    return Spectra(wave, flux, ivar, meta)


def kinds(maker, weights, n):
    """Print a line for each kind; rows of the table."""
    table = []
    print(f"{'kind':26s} {'right':>22s} {'undecided':>22s} {'wrong replacement':>22s} {'right, but flagged':>22s}")
    makers = {'dip': (maker.dip, (1.6, 'GALAXY', 40)), 'arm scaled': (maker.arm, (1.45, 'GALAXY', 40)), 'step inside an arm': (maker.step, (1.45, 'GALAXY', 40)), 'no fault': (None, (1.45, 'GALAXY', 40))}
    others = {'blazar': (maker.blazar, (1.61, 'GALAXY', 15)), 'dusty galaxy': (maker.dusty, (1.61, 'GALAXY', 20)), 'Lyman-alpha emitter': (maker.emitter, (.05, 'GALAXY', 100)), 'displaced Balmer lines': (maker.nucleus, (1.38, 'QSO', 60))}
    for name, (make, solution) in {**makers, **others}.items():
        rows = [maker.plain(make) if name in makers else make() for _ in range(n)]
        z, spectype = np.array([r[2] for r in rows]), np.array([r[3] for r in rows])
        found = score_spectra(with_pipeline(rows, maker.wave, *solution), weights)
        right = (same_redshift(found['Z_ALT'], z) | (np.isnan(z) & np.isnan(found['Z_ALT']))) & ((text(found['SPECTYPE_ALT']) == spectype) | (spectype == ''))
        flagged = ''
        if name in makers:
            kept = score_spectra(with_pipeline(rows, maker.wave, z, 'GALAXY', 300), weights)
            flagged = rate(kept['FLAG_Z_WRONG'] | kept['FLAG_S_WRONG'])
        taken = np.asarray(found['FLAG_ALT'])
        print(f'{name:26s} {rate(right):>22s} {rate(~right & ~taken):>22s} {rate(~right & taken):>22s} {flagged:>22s}', flush=True)
        table += [(f'{name}: right or undecided', rate(right | ~taken), '>= 90 %', '0 to 50 %'), (f'{name}: wrong replacement', rate(~right & taken), '<= 2 %', '')]
    return table


def surveys(data, weights, wave):
    """Print a line for each class of real spectra; rows of the table."""
    spectra = survey_spectra(data, wave)
    found, meta = score_spectra(spectra, weights), spectra.meta
    z, kind, survey = np.asarray(meta['TRUE_Z'], float), text(meta['TRUE_SPECTYPE']), text(meta['FLAGS'])
    near, typed = same_redshift(found['Z_ALT'], z), text(found['SPECTYPE_ALT']) == kind
    right = near & typed
    agrees = same_redshift(meta['Z'], z, .001) & (text(meta['SPECTYPE']) == kind)
    flagged, taken = np.asarray(found['FLAG_Z_WRONG'] | found['FLAG_S_WRONG']), np.asarray(found['FLAG_ALT'])
    print(f"\n{'real spectra':14s} {'n':>5s} {'Z_ALT and type right':>22s} {'flagged though right':>22s} {'replaced wrongly':>22s} {'UNFAMILIAR':>22s}")
    for s in np.unique(survey):
        for k in np.unique(kind[survey == s]):
            m = (survey == s) & (kind == k)
            known = rate(right[m]) if k != 'SKY' else f'flagged {rate(flagged[m])}'
            print(f"{s + ' ' + k:14s} {m.sum():5d} {known:>22s} {rate(flagged[m & agrees]):>22s} {rate((taken & ~right)[m]):>22s} {rate(np.asarray(found['UNFAMILIAR'])[m]):>22s}", flush=True)
    quasar, sky = (survey == 'REAL2') & (kind == 'QSO'), kind == 'SKY'
    star, sdss = (survey == 'REAL2') & (kind == 'STAR') & (spectra.snr > 10), survey == 'SDSS'
    pipeline = same_redshift(meta['Z'], z) & (text(meta['SPECTYPE']) == kind)
    far = flagged & ~np.asarray(found['FLAG_OFFSET'])
    return [('SDSS (seen): proposals that are right', rate(right[sdss & ~sky & taken]), '>= 95 %', ''), ('SDSS (seen): right, but flagged, not as an offset', rate(far[sdss & agrees & ~sky]), '<= 5 %', '20 %'),
            ('SDSS (seen): sky fibres flagged', rate(flagged[sky]), '>= 97 %', '97 %'), ('LAMOST, S/N > 10 (seen): type right', rate(typed[star]), '>= 99.5 %', '99 %'),
            ('LAMOST, S/N > 10 (seen): replaced wrongly', rate((taken & ~right)[star]), '<= 0.3 %', '1 to 2 %'), ('BOSS quasars (seen): Z_ALT within 0.0033', rate(near[quasar]), '>= 95 %', '83 %'),
            ('… flagged though right to 0.0033, not as an offset', rate(far[quasar & pipeline]), '<= 10 %', '50 %'), ('… replaced wrongly', rate((taken & ~right)[quasar]), '<= 1 %', '15 %')]


def benchmark(data, weights):
    """Rows of the table on the benchmark's validation files."""
    spectra = read_labelled(data/'redrock_bench'/'validation')
    found, meta, wrong = score_spectra(match_grid(spectra, weights), weights), spectra.meta, wrong_answers(spectra) > 0
    rows, head = [], lambda name: np.asarray(found[f'P_{name}_WRONG'], float)
    for k, (name, target, before) in enumerate((('Z', (.93, .87), (.915, .839)), ('S', (.975, .92), (.972, .899)))):
        found_in = evaluate(wrong[:, k], head(name), weights.thresholds[k], probability=True)
        rows += [(f'{name}_WRONG {m}', '{:.3f} ({:.3f} to {:.3f})'.format(*found_in[m]), f'>= {t}', b) for m, t, b in zip(('AP', 'F1'), target, before)]
        rows.append((f'{name}_WRONG ECE (of perfect probabilities)', '{:.3f} ({:.3f})'.format(found_in['ECE'][0], found_in['ECE_PERFECT'][0]), '<= 0.015', ''))
    z, true_z, taken = np.asarray(meta['Z'], float), np.asarray(meta['TRUE_Z'], float), np.asarray(found['FLAG_ALT'])
    off, right = ~same_redshift(z, true_z), same_redshift(found['Z_ALT'], true_z)
    rows += [('redrock errors > 0.0033 put right', rate((taken & right)[off]), '>= 70 %', '58 %'), ('… with the right redshift as the best one', rate(right[off]), '', ''),
             ('right redshifts broken', rate((taken & ~right)[~off]), '<= 0.2 %', '0 of 495')]
    left = errors_left(wrong[:, 0], head('Z'))
    rows.append(('errors left at 99 % completeness', f"{left['wrong_share']:.1%} ({left['low']:.1%} to {left['high']:.1%})", '<= 4 %', '6.2 %'))
    kept = head('Z') <= left['threshold']
    clean = np.asarray(meta['ZWARN']) == 0
    rows += [('… of these off by more than 0.0033', rate((wrong[:, 0] & off)[kept]), '', ''), ('ZWARN == 0: wrong', rate(wrong[clean, 0]), '', '11.2 %'), ('… of these off by more than 0.0033', rate((wrong[:, 0] & off)[clean]), '', '')]
    cause = text(found['CAUSE'])
    rows.append(('flagged, cause UNKNOWN', rate(cause[cause != ''] == 'UNKNOWN'), '<= 15 %', '29 of 79'))
    fit, blind = scan_redshift(spectra), spectra.replace(meta=meta['TARGETID',])
    seen = np.isin(text(meta['TRUE_SPECTYPE']), TYPES) & (spectra.snr > 1)
    for words, part in (('truth among candidates, S/N > 1', spectra), ('… without redrock', blind)):
        c = candidates(part, fit)
        has = (c.known & same_redshift(c.z, true_z[:, None])).any(1)
        rows.append((words, rate(has[seen]), '>= 99 %', ''))
    print('\ntruth not among the candidates, S/N > 1, without redrock:')
    for i in np.flatnonzero(seen & ~has): print(f"  {meta['TRUE_SPECTYPE'][i]} z = {true_z[i]:.4f}, S/N {spectra.snr[i]:.1f}, {meta['FLAGS'][i] or 'no flag'}; nearest candidate off by {np.nanmin(abs(c.z[i] - true_z[i]))/(1 + true_z[i]):.4f}")
    return rows + clock(spectra, weights)


def clock(spectra, weights):
    """Processor time of each stage."""
    times, t = {}, time.process_time()
    fit, times['scan'], t = scan_redshift(spectra), time.process_time() - t, time.process_time()
    mended, fit, _ = repair_suspicious(spectra, fit)
    times['repairs'], t = time.process_time() - t, time.process_time()
    c = candidates(mended, fit)
    times['candidates'], t = time.process_time() - t, time.process_time()
    judge_candidates(weights.judge, mended, c)
    times['ranking'] = time.process_time() - t
    ms = {name: 1e3*v/len(spectra) for name, v in times.items()}
    more = sum(v for name, v in ms.items() if name != 'scan')
    return [('repairs, candidates and ranking, in scans', f"{more/ms['scan']:.2f} ({', '.join(f'{n} {v:.1f} ms' for n, v in ms.items())})", '<= 1', '')]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--n', type=int, default=50)
    parser.add_argument('--seed', type=int, default=0)
    a = parser.parse_args()
    warnings.simplefilter('ignore')
    weights = load_weights()
    wave = weights.autoencoder.wave.cpu().numpy().astype(float)
    rows = kinds(Maker(a.data, wave, a.seed), weights, a.n) + surveys(a.data, weights, wave) + benchmark(a.data, weights)
    print(f"\n{'what':60s} {'now':>44s} {'target':>9s} {'0.1':>10s}")
    for what, now, target, before in rows: print(f'{what:60s} {now:>44s} {target:>9s} {before!s:>10s}')


if __name__ == '__main__': main()
