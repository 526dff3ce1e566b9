"""Kinds of public bug reports: faults of the instrument, blazars, displaced Balmer lines, lone lines. Right, or undecided; never replaced by a wrong solution."""

import numpy as np
import pytest
from astropy.table import Table

from skyseek.data.constants import LYA, same_redshift
from skyseek.data.spectra import Spectra
from skyseek.pipeline.score import load_weights, score_spectra
from skyseek.simulate.mock_survey import simulate_spectra


@pytest.fixture(scope='module')
def weights():
    return load_weights()


@pytest.fixture(scope='module')
def galaxies():
    "Bright simulated galaxies without faults, their redshifts and their types."
    spectra, truth = simulate_spectra(200, seed=77, program='bright', shares=dict(BGS=1.), blend=0., exptime=(700., 1100.))
    rows = np.flatnonzero((spectra.snr > 2.5) & (truth['FLAGS'] == 'PHYSICS') & np.isin(truth['SUBTYPE'], ('OLD', 'MIXED', 'SF')))[:24]
    return spectra[rows], np.asarray(truth['TRUE_Z'][rows], float)


def with_pipeline(spectra, z, spectype, delta):
    "The spectra with a pipeline's solution."
    n, meta = len(spectra), Table()
    meta['TARGETID'] = 39600000000000001 + np.arange(n)
    meta['Z'], meta['ZERR'], meta['ZWARN'] = np.broadcast_to(np.asarray(z, float), n).copy(), np.full(n, 5e-5), np.zeros(n, int)
    meta['CHI2'], meta['NPIXELS'], meta['DELTACHI2'] = 1.15*spectra.good.sum(1), spectra.good.sum(1), np.full(n, float(delta))
    meta['SPECTYPE'], meta['SUBTYPE'], meta['OBJTYPE'] = np.full(n, spectype, 'U6'), np.full(n, '', 'U20'), np.full(n, 'TGT')
    return spectra.replace(meta=meta)


def faulty(spectra, kind, rng):
    "A dip, a scaled arm, or a step inside an arm in each spectrum."
    flux, ivar, wave = spectra.flux.copy(), spectra.ivar.copy(), spectra.wave
    for i in range(len(spectra)):
        if kind == 'dip':
            flux[i] *= 1 - rng.uniform(.5, .9)*np.exp(-.5*((wave - rng.uniform(8000, 9200))/rng.uniform(30, 70))**4)
            continue
        part = wave > 7570 if kind == 'arm' else (wave > 6660) & (wave < 7570)
        factor = rng.choice([rng.uniform(.5, .7), rng.uniform(1.4, 1.9)])
        flux[i, part] *= factor
        ivar[i, part] /= factor**2
    return spectra.replace(flux=flux, ivar=ivar)


@pytest.mark.parametrize('kind', ['dip', 'arm', 'step'])
def test_faults_are_repaired_before_anything_is_proposed(weights, galaxies, kind):
    spectra, z = galaxies
    broken = faulty(spectra, kind, np.random.default_rng(3))
    found = score_spectra(with_pipeline(broken, 1.61, 'GALAXY', 40), weights)
    right = same_redshift(found['Z_ALT'], z)
    assert (found['P_Z_WRONG'] > .5).mean() > .9
    assert (found['FLAG_ALT'] & ~right).sum() <= 1 and right.mean() >= .85
    named = found[found['CAUSE'] == ('DIP' if kind == 'dip' else 'ARM')]['CAUSE_TEXT']
    assert len(named) >= len(z)//3 and any(('dip' if kind == 'dip' else 'step') in text for text in named)
    kept = score_spectra(with_pipeline(broken, z, 'GALAXY', 300), weights)
    assert kept['FLAG_Z_WRONG'].mean() <= .1 and not kept['FLAG_ALT'].any()


def test_spectra_without_a_fault_are_left_alone(weights, galaxies):
    spectra, z = galaxies
    found = score_spectra(with_pipeline(spectra, z, 'GALAXY', 300), weights)
    assert found['FLAG_Z_WRONG'].mean() <= .1 and not found['FLAG_ALT'].any()


def test_a_smooth_spectrum_is_a_quasar_of_unknown_redshift(weights):
    wave, rng = weights.autoencoder.wave.cpu().numpy().astype(float), np.random.default_rng(4)
    flux = 4*(wave/6400)**np.linspace(-2, -.4, 8)[:, None]
    noise = .4*np.where(wave < 4300, 2, 1)*np.ones_like(flux)
    spectra = Spectra(wave, (flux + noise*rng.standard_normal(flux.shape)).astype('f4'), (1/noise**2).astype('f4'))
    found = score_spectra(with_pipeline(spectra, 1.61, 'GALAXY', 15), weights)
    assert (found['P_Z_WRONG'] > .5).all() and (found['SPECTYPE_ALT'] == 'QSO').all()
    assert np.isnan(found['Z_ALT']).all() and not found['FLAG_ALT'].any()


@pytest.mark.parametrize('kind, least', [('DOUBLE', .7), ('DUSTY', .7), ('DWARF', .9)])
def test_rare_objects_are_right_or_undecided(weights, kind, least):
    spectra, truth = simulate_spectra(150, seed=91, shares=dict(RARE=1.), blend=0.)
    rows = np.flatnonzero((truth['SUBTYPE'] == kind) & (spectra.snr > (.5 if kind == 'DWARF' else 4)))[:16]
    z, types = np.asarray(truth['TRUE_Z'][rows], float), np.asarray(truth['TRUE_SPECTYPE'][rows]).astype(str)
    found = score_spectra(with_pipeline(spectra[rows], 1.38, 'QSO', 60), weights)
    right = same_redshift(found['Z_ALT'], z) & (np.asarray(found['SPECTYPE_ALT']).astype(str) == types)
    assert right.mean() >= least and (found['FLAG_ALT'] & ~right).sum() <= 1


def test_a_lone_line_is_asked_to_be_lyman_alpha(weights):
    wave, rng = weights.autoencoder.wave.cpu().numpy().astype(float), np.random.default_rng(5)
    line = np.where(wave < 5042, np.exp(-.5*((wave - 5042)/1.2)**2), np.exp(-.5*((wave - 5042)/3.2)**2))
    flux = np.repeat(2.5*line[None], 6, 0) + .03*(wave > 5042)
    noise = .25*np.where(wave < 4300, 2, 1)*np.ones_like(flux)
    spectra = Spectra(wave, (flux + noise*rng.standard_normal(flux.shape)).astype('f4'), (1/noise**2).astype('f4'))
    found = score_spectra(with_pipeline(spectra, 5042/5008.24 - 1, 'GALAXY', 700), weights)
    z = 5042/LYA - 1
    assert (found['P_Z_WRONG'] > .5).mean() > .8
    assert (same_redshift(found['Z_ALT'], z, .004) | same_redshift(found['Z_ALT2'], z, .004)).mean() > .6
    assert not (found['FLAG_ALT'] & ~same_redshift(found['Z_ALT'], z, .004)).any()
