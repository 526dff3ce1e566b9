"""Rest-frame templates for GaSNet-II: simulated ones, and simulated ones pressed into the shape of SDSS's own templates.

Stars: one of SDSS's templates of the subclass (spEigenStar), times the ratio of two simulated stars, so that temperature, gravity, metals, rotation and dust vary.
Passive galaxies: the mixture of SDSS's four galaxy eigenspectra that is closest to a simulated galaxy. Quasars: the same with ten quasar eigenspectra, behind a simulated forest.
"""

import numpy as np
from astropy.io import fits
from astropy.table import Table

from skyseek.data.spectra import bin_average, pixel_edges
from skyseek.gasnet import sdss_subclasses as sub
from skyseek.simulate.quasars import broad_absorption, forest_transmission, make_quasar
from skyseek.simulate.stars import broaden, stellar_spectrum, wave_rest
from skyseek.simulate.templates import TemplateLibrary, template_rng

MIX = {'GALAXY': .5, 'QSO': .5, 'STAR': .67}  # fraction of templates in the shape of SDSS's


def _rows(path):
    """Spectra of a spEigen file on wave_rest(), nan where they end."""
    with fits.open(path) as hdus:
        header, data = hdus[0].header, np.atleast_2d(np.array(hdus[0].data, float))
    native = 10**(header['COEFF0'] + header['COEFF1']*np.arange(data.shape[1]))
    wave = wave_rest()
    out = np.array([bin_average(native, row, pixel_edges(wave)) for row in data])
    for row in out:  # pixels without data are zero
        lost = row < .1*np.median(np.abs(row[row != 0])) if 'Star' in path.name else np.zeros(len(row), bool)
        lost = np.convolve(lost, np.ones(9), 'same') > 0
        row[lost] = np.interp(wave[lost], wave[~lost], row[~lost])
    out[:, (wave < native[9]) | (wave > native[-9])] = np.nan
    return out, [header.get(f'NAME{i}', '') for i in range(len(data))]


def read_shapes(data):
    """Stars of each subclass, eigenspectra of galaxies and of quasars, from the folder of public data."""
    folder = data/'templates/idlspec2d'
    stars = {k: [] for k in sub.TEMPERATURES}
    for name in ('spEigenStar-52374.fits', 'spEigenStar-55734.fits'):
        for row, label in zip(*_rows(folder/name)):
            kind = 'F5' if 'F3/F5V' in label else label[:2]
            if kind in stars and label[2:3] not in ('.', 'p', 'm'): stars[kind].append(row)
    galaxy, quasar = (_rows(folder/f)[0] for f in ('spEigenGal-55740.fits', 'spEigenQSO-EMPCA-cleaned.fits'))
    return dict(stars=stars, GALAXY=galaxy, QSO=quasar)


def _joined(shape, toy):
    """A template, continued by a simulated spectrum where it ends."""
    known = np.flatnonzero(np.isfinite(shape))
    a, b = known[0], known[-1]
    out, n = toy.copy(), 200
    out[a:b + 1] = shape[a:b + 1]
    out[:a] *= shape[a:a + n].mean()/toy[a:a + n].mean()
    out[b + 1:] *= shape[b - n:b].mean()/toy[b - n:b].mean()
    return out


def star(kind, rng, shapes):
    """One star in the shape of one of SDSS's."""
    rows = shapes['stars'][kind]
    shape = rows[0 if rng.random() < .6 else rng.integers(len(rows))]
    low, high = sub.TEMPERATURES[kind]
    centre, logg, feh = (low + high)/2, 4.4, -.4
    teff = np.clip(centre + rng.normal(0, (high - low)/4), low, high)
    own = stellar_spectrum(teff, logg + rng.normal(0, .25), feh + np.clip(rng.normal(0, .25), -1, .7))
    dust = 10**(-.4*3.1*rng.normal(.01, .03)*np.clip((wave_rest()/5500.)**-1.35, 0, 6))
    toy = own*dust
    ratio = np.clip(broaden(toy, 150)/broaden(stellar_spectrum(centre, logg, feh), 150), .5, 2)
    return broaden(_joined(shape*ratio, toy), rng.gamma(2, 10 if teff < 6500 else 30)), dict(TEFF=teff)


def _projected(vectors, flux, use, ridge=1e-3):
    """Mixture of eigenspectra closest to a spectrum, relative to its running mean."""
    weight = np.where(use & np.isfinite(vectors[0]), 1/np.maximum(broaden(flux, 5000), 1e-3*flux.max()), 0)
    x = np.nan_to_num(vectors)[:, ::4].T*weight[::4, None]
    scale = np.sqrt((x**2).sum(0))
    c = np.linalg.solve((x/scale).T @ (x/scale) + ridge*np.eye(len(scale)), (x/scale).T @ (flux*weight)[::4])/scale
    return c @ vectors


def galaxy(rng, shapes):
    """One passive galaxy in the shape of SDSS's."""
    toy, values = sub.draw_galaxy('PASSIVE', rng)
    wave = wave_rest()
    shape = _projected(shapes['GALAXY'], toy, (wave > 3000) & (wave < 9500))
    smooth = broaden(toy, 150)
    shape = np.where((wave < 1900) | (wave > 9400), np.nan, smooth*np.clip(shape/smooth, .8, 1.12))  # no emission lines
    return broaden(_joined(shape, toy), rng.uniform(1, 150)), values | dict(LINES=np.zeros(4))


def quasar(rng, shapes):
    """One quasar in the shape of SDSS's, behind a forest."""
    z = float(np.clip(rng.gamma(4., .42), .1, 4.8))
    wave = wave_rest()
    toy = make_quasar('QSO', rng, z, forest=False)[0]
    bare = toy/np.maximum(forest_transmission(wave, z, None), 1e-3)
    shape = _projected(shapes['QSO'], bare, (wave > 1225) & (wave > 3500/(1 + z)) & (wave < 9500/(1 + z)))
    near = (wave > 1100) & (wave < 7800)
    ratio = np.clip(broaden(np.where(near, shape, bare), 200)/bare, .3, 3)
    ratio = 1 + (ratio - 1)*np.clip((wave - 1100)/60, 0, 1)*np.clip((7800 - wave)/800, 0, 1)
    shape = bare*ratio/broaden(ratio, 8000)  # lines of the mixture, continuum of the simulation
    flux = shape*forest_transmission(wave, z, rng)
    if rng.random() < .05: flux = flux*broad_absorption(wave, rng)
    return flux, dict(Z=z)


def _row(kind, rng, shapes):
    spectype = 'GALAXY' if kind in sub.GALAXIES else 'QSO' if kind == 'QSO' else 'STAR'
    if rng.random() > MIX[spectype] or kind in sub.GALAXIES and kind != 'PASSIVE': return sub._rest_row(kind, rng)
    flux, values = {'GALAXY': lambda: galaxy(rng, shapes), 'QSO': lambda: quasar(rng, shapes)}.get(spectype, lambda: star(kind, rng, shapes))()
    return sub._finish_row(kind, flux, values)


def mixed_templates(n, seed, shapes, kinds=sub._KINDS):
    """As `rest_templates`, with part of the spectra in the shape of SDSS's templates."""
    picks = [(kind, i) for kind in kinds for i in range(2*n if kind == 'QSO' else n)]
    rows = [_row(kind, template_rng(seed, 23, sub._KINDS.index(kind), i), shapes) for kind, i in picks]
    return TemplateLibrary(10**sub._REST, np.array([r[0] for r in rows]), Table([r[1] for r in rows]))
