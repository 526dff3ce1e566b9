"""Ordinary spectra of DESI, SDSS, BOSS and LAMOST, and kinds of spectra that none of these surveys takes.

Used by `fit_familiarity.py` and `bench_familiarity.py`. A kind is made from ordinary spectra on their own pixels, before they are put on DESI's grid."""

from pathlib import Path

import numpy as np
from astropy.table import Table
from scipy.ndimage import gaussian_filter1d

from skyseek.data.constants import SKY_LINES
from skyseek.data.desi import extract
from skyseek.data.files import text
from skyseek.data.read import read_singles
from skyseek.data.spectra import concatenate, resample
from skyseek.data.truth import half_of
from skyseek.detect.familiarity import KINDS

MEETS = {'DESI': ((5780., 10.), (7570., 25.)), 'SDSS': ((6000., 80.),), 'BOSS': ((6100., 130.),), 'LAMOST': ((5800., 80.),)}  # Å: where arms meet, half the width of the blend
SHORT = {'DESI': 'DESI', 'SDSS': 'SDSS', 'BOSS': 'SDSS', 'LAMOST': 'LAMOST'}  # survey: instrument of skyseek


def in_air(wave):
    """Wavelengths in air of vacuum wavelengths, Å (Morton 2000, ApJS 130, 403, eq. 8)."""
    s2 = (1e4/np.asarray(wave, float))**2
    return wave/(1 + 8.34254e-5 + 2.406147e-2/(130 - s2) + 1.5998e-4/(38.9 - s2))


# Ordinary spectra

def positions(spectra):
    """A number for each position on the sky, to 18 arcsec; TARGETID where there is none."""
    if 'TARGET_RA' not in spectra.meta.colnames: return np.asarray(spectra.meta['TARGETID'], np.int64)
    ra, dec = (np.asarray(np.ma.filled(np.ma.asarray(spectra.meta[c], float), np.nan)) for c in ('TARGET_RA', 'TARGET_DEC'))
    key = np.nan_to_num(np.round(ra*200)).astype(np.int64)*100000 + np.nan_to_num(np.round((dec + 90)*200)).astype(np.int64)
    return np.where(np.isfinite(ra), key, np.asarray(spectra.meta['TARGETID'], np.int64))


def plain(spectra, survey, kind):
    """Few columns, the same for all: object, survey and type; spectra without good pixels are left out."""
    objects = positions(spectra)
    columns = dict(TARGETID=objects, SURVEY_NAME=np.full(len(spectra), survey, 'U6') if isinstance(survey, str) else survey, KIND=np.asarray(kind, 'U8'), HALF=half_of(objects))
    columns |= {c: spectra.meta[c] for c in ('TARGET_RA', 'TARGET_DEC', 'MJD') if c in spectra.meta.colnames}
    return spectra.replace(meta=Table(columns))[np.flatnonzero(spectra.good.any(1))]


def real_sdss(data):
    """Spectra of SDSS and BOSS, no sky fibres, no cut ones, at most six of one object."""
    first, second = Table.read(data/'sdss/catalogue.csv'), Table.read(data/'real2/catalogue.csv')
    tag = text(first['tag'].astype(str))
    keep = (tag != 'SKY_FIBRE') & ~np.array(['TRUNC' in t for t in tag])
    keep[np.flatnonzero(tag == 'RM017_repeat_epoch')[6:]] = False
    survey = text(second['survey'].astype(str))
    second = second[np.isin(survey, ('SDSS', 'BOSS'))]
    spectra, _ = read_singles([next((data/'sdss').rglob(str(f))) for f in first['file'][keep]] + [data/'real2'/f for f in second['file']])
    return plain(spectra, np.where(spectra.good[:, spectra.wave > 9300].any(1), 'BOSS', 'SDSS'), text(spectra.meta['SPECTYPE']))


def real_lamost(data):
    table = Table.read(data/'real2/catalogue.csv')
    files = [data/'real2'/f for f in table['file'] if str(f).startswith('lamost')]
    spectra, _ = read_singles([*sorted((data/'lamost').rglob('*.fits*')), *files])
    spectra = spectra[np.flatnonzero(np.asarray(spectra.meta['OBJTYPE']) != 'SKY')]
    return plain(spectra, 'LAMOST', text(spectra.meta['SPECTYPE']))


def real_desi(data):
    """The few real DESI spectra with ivar: two targets, 25 fibres of a deep tile, 15 with ivar from their own scatter."""
    files = [*sorted((data/'desi/coadd_redrock').glob('coadd-*')), data/'desi/coadd_unlabelled/coadd-tile80605-25fibres.fits', *sorted((data/'real2/desi').glob('coadd-*.fits*'))]
    parts = []
    for i, f in enumerate(files):
        s = extract(f, keep_all=True)
        meta = Table(dict(TARGETID=np.arange(len(s)) + 1000*i))
        parts.append(plain(s.replace(meta=meta), 'DESI', np.full(len(s), Path(f).stem[6:14])))
    return concatenate(parts)


def ordinary(data):
    """dict survey → spectra on their own pixels."""
    sdss = real_sdss(data)
    boss = np.asarray(sdss.meta['SURVEY_NAME']) == 'BOSS'
    return {'DESI': real_desi(data), 'SDSS': sdss[np.flatnonzero(~boss)], 'BOSS': sdss[np.flatnonzero(boss)], 'LAMOST': real_lamost(data)}


def on_grid(spectra, survey, wave):
    """On DESI's pixels, as `score` puts them there."""
    out = spectra if survey == 'DESI' else resample(spectra, wave, share_ivar=True)
    meta = out.meta.copy()
    meta['INSTRUMENT'] = np.full(len(out), SHORT[survey])
    return out.replace(meta=meta)


# Foreign ones

def smooth(spectra, width=4.):
    """Flux (N, L) smoothed with the noise as weight."""
    w = np.asarray(spectra.ivar, float)
    top, bottom = gaussian_filter1d(w*spectra.flux, width, axis=1), gaussian_filter1d(w, width, axis=1)
    return np.where(bottom > 0, top/np.where(bottom > 0, bottom, 1), 0)


def sigma_of(spectra): return np.where(spectra.good, 1/np.sqrt(np.where(spectra.good, spectra.ivar, 1)), 0)


def power_law(spectra, rng, survey, slopes=((-4.5, -2.5), (.3, 4.)), snr=(5, 50)):
    """Featureless, of steep slope or rising to the red, with the noise of each spectrum."""
    wave, out = spectra.wave, []
    for i in range(len(spectra)):
        low, high = slopes[rng.integers(len(slopes))]
        shape = (wave/6400)**rng.uniform(low, high)
        if rng.random() < .3: shape *= np.exp(rng.uniform(-.5, .5)*np.log(wave/6400)**2)
        ok = spectra.good[i]
        level = np.exp(rng.uniform(*np.log(snr)))/max(np.median(shape[ok]*np.sqrt(spectra.ivar[i][ok])), 1e-9)
        out.append(level*shape)
    sigma = sigma_of(spectra)
    return spectra.replace(flux=(np.array(out)*spectra.good + sigma*rng.standard_normal(sigma.shape)).astype('f4'))


def broken_arm(spectra, rng, survey, factors=((.4, .75), (1.33, 2.2)), elsewhere=0., sharp=0.):
    """The flux of one arm multiplied, its noise with it; a fraction at joints of another survey, a fraction without a blend."""
    wave, flux, ivar = spectra.wave, np.array(spectra.flux), np.array(spectra.ivar)
    for i in range(len(spectra)):
        ends = MEETS[rng.choice(list(MEETS)) if rng.random() < elsewhere else survey]
        if rng.random() < sharp: ends = tuple((x, 10.) for x, _ in ends)
        k, factor = rng.integers(len(ends) + 1), rng.uniform(*factors[rng.integers(len(factors))])
        edge = lambda j: np.clip((wave - ends[j][0] + ends[j][1])/(2*ends[j][1]), 0, 1)
        part = (edge(k - 1) if k else 1.)*(1 - edge(k) if k < len(ends) else 1.)
        factor = 1 + (factor - 1)*part*np.ones(len(wave))
        flux[i], ivar[i] = flux[i]*factor, ivar[i]/factor**2
    return spectra.replace(flux=flux, ivar=ivar)


def sky_lines(spectra, rng, survey, snr=(15, 150)):
    """Lines of the sky, of either sign, on a faint spectrum: what a failed subtraction leaves."""
    wave, sigma, flux = spectra.wave, sigma_of(spectra), np.array(spectra.flux, float)
    for i in range(len(spectra)):
        width, strength = rng.uniform(.7, 1.6), SKY_LINES[1]*np.exp(.3*rng.standard_normal(len(SKY_LINES[1])))
        image = sum(s*np.exp(-.5*((wave - x)/width)**2) for x, s in zip(SKY_LINES[0], strength))
        if rng.random() < .5: flux[i] = sigma[i]*rng.standard_normal(len(wave))
        size = np.exp(rng.uniform(*np.log(snr)))/np.sqrt((image**2*spectra.ivar[i]).sum())
        flux[i] += (1 if rng.random() < .7 else -1)*size*image
    return spectra.replace(flux=(flux*spectra.good).astype('f4'))


def noise_free(spectra, rng, survey, width=4.):
    """A smooth curve in place of the flux; the ivar says that there is noise."""
    return spectra.replace(flux=(smooth(spectra, width)*spectra.good).astype('f4'))


def air(spectra, rng, survey, nearest=True):
    """Wavelengths in air that are taken for those in vacuum."""
    moved = in_air(spectra.wave)
    if not nearest: return resample(spectra.replace(wave=moved), spectra.wave)
    i = np.clip(np.searchsorted((moved[1:] + moved[:-1])/2, spectra.wave), 0, len(moved) - 1)
    return spectra.replace(flux=spectra.flux[:, i].copy(), ivar=spectra.ivar[:, i].copy())


MAKERS = dict(zip(KINDS, (power_law, broken_arm, sky_lines, noise_free, air)))


def bright_enough(spectra, kind):
    """Rows a kind is made from: a broken arm or wavelengths cannot be seen where there is nothing but noise."""
    least = {'broken arm': 4, 'noise-free': 0, 'air': 0, 'sky lines': 0, 'power law': 0}[kind]
    return np.flatnonzero(spectra.snr >= least)


def foreign(spectra, kind, rng, survey, **options):
    """Copies of ordinary spectra on their own pixels, changed to be of a foreign kind."""
    return MAKERS[kind](spectra, rng, survey, **options)
