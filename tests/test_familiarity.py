"""UNFAMILIAR: ordinary spectra are in distribution for their instrument, foreign ones are not."""
import logging
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table

from skyseek.detect.familiarity import BROKEN, KINDS, UNFAMILIAR, Familiarity, familiarity_columns, familiarity_inputs
from skyseek.detect.familiarity import fit_familiarity, how_familiar, survey_familiarity
from skyseek.detect.spectrum_checks import CHECKS, spectrum_checks
from skyseek.learn.autoencoder import Autoencoder, encode
from skyseek.learn.features import build_features
from skyseek.learn.training import ArrayStream, fingerprint, load_model, read_config, save_model, shipped
from skyseek.pipeline.score import load_weights
from skyseek.redshift.scan import scan_redshift
from skyseek.redshift.second_look import repair_suspicious
from skyseek.simulate.mock_survey import simulate_spectra

BENCHMARKS = Path(__file__).parent/'benchmarks'
DATA = Path(os.environ.get('SKYSEEK_DATA', Path(__file__).parents[2]/'shared/data'))
sys.path.insert(0, str(BENCHMARKS))
from foreign import SHORT, foreign, on_grid, ordinary  # noqa: E402


def encoded(spectra):
    f = build_features(spectra.replace(meta=Table(dict(TARGETID=np.asarray(spectra.meta['TARGETID'])))))
    stream = ArrayStream({k: f[k] for k in ('flux', 'weight', 'scale', 'exptime')}, 64, shuffle=False)
    return encode(load_model(shipped('autoencoder'), Autoencoder), stream)


@pytest.fixture(scope='module')
def model(): return load_model(shipped('familiarity'), Familiarity)


@pytest.fixture(scope='module')
def stars():
    spectra, _ = simulate_spectra(240, seed=8123, program='bright', shares=dict(MWS=1.))
    return spectra[spectra.snr > 4]


def flagged(model, spectra): return how_familiar(model, encoded(spectra), spectra) < UNFAMILIAR


def test_ordinary_simulated_spectra_are_in_distribution(model):
    spectra, _ = simulate_spectra(200, seed=8124)
    assert flagged(model, spectra).mean() < .05


@pytest.mark.parametrize('kind, least', list(zip(KINDS, (.95, .7, .8, .95, .95))))
def test_foreign_simulated_spectra_are_not(model, stars, kind, least):
    made = foreign(stars, kind, np.random.default_rng(5), 'DESI', **(dict(snr=(40, 150)) if kind == 'sky lines' else {}))
    assert flagged(model, made).mean() > least


def test_air_gets_a_warning_and_vacuum_none(model, stars, caplog):
    with caplog.at_level(logging.WARNING, 'skyseek'):
        assert not caplog.records and flagged(model, stars).mean() < .1
        assert not [r for r in caplog.records if 'look like air' in r.getMessage()]
        assert flagged(model, foreign(stars, 'air', np.random.default_rng(0), 'DESI')).all()
    assert len([r for r in caplog.records if 'look like air' in r.getMessage()]) == 1


def test_checks_bear_anything(stars):
    s = stars[:3]
    for flux, ivar in ((s.flux, 0*s.ivar), (0*s.flux, s.ivar), (-s.flux, s.ivar), (1e20*s.flux, 1e-36*s.ivar), (s.flux, np.where(np.arange(s.flux.shape[1]) == 4000, s.ivar, 0))):
        x = spectrum_checks(s.replace(flux=flux, ivar=ivar))
        assert x.shape == (3, len(CHECKS)) and np.isfinite(x).all()
    np.testing.assert_allclose(spectrum_checks(s)[1], spectrum_checks(s[[1]])[0], atol=2e-3)


def test_a_table_of_quality_is_not_enough(model, stars):
    code = encoded(stars[:2])
    with pytest.raises(ValueError, match='give spectra'): familiarity_inputs(code, dict(SN_B=[1, 1], SN_R=[1, 1], SN_Z=[1, 1], GOOD_B=[1, 1], GOOD_R=[1, 1], GOOD_Z=[1, 1]), model)


def test_a_model_without_checks_works_as_before(stars, tmp_path):
    """Weights that were trained before have no networks and one reference."""
    spectra, _ = simulate_spectra(300, seed=3)
    x = familiarity_inputs(encoded(spectra), spectra)
    old = fit_familiarity(x, np.arange(300) % 2 == 0)
    assert x.shape == (300, 43) and set(old.config) == {'width', 'bank', 'reference', 'neighbours'}
    again = load_model(save_model(old, tmp_path/'familiarity'), Familiarity)
    np.testing.assert_array_equal(again.p_value(x), old.p_value(x))
    assert (how_familiar(again, encoded(spectra), spectra) == old.p_value(x)).all() and not again.in_air(x).any()


def test_each_instrument_has_its_own_reference(model, stars, tmp_path):
    x = familiarity_inputs(encoded(stars), stars, model)
    names = np.where(np.arange(len(stars)) % 2 == 0, 'MINE', '')
    with pytest.raises(ValueError, match='at least 100 of each'): fit_familiarity(x[:50], like=model)
    own, counts = survey_familiarity(np.concatenate([x]*2), np.concatenate([np.full(len(x), 'MINE')]*2), model)
    assert counts == {'MINE': 2*len(x)} and set(own.others) == {'SDSS', 'LAMOST', 'MINE'}
    back = load_model(save_model(own, tmp_path/'familiarity', autoencoder='x'), Familiarity)
    p, first = back.p_value(x, names), model.p_value(x)
    np.testing.assert_array_equal(p[1::2], first[1::2])
    np.testing.assert_array_equal(back.p_value(x, np.full(len(x), 'SDSS')), model.p_value(x, np.full(len(x), 'SDSS')))
    assert (p[::2] != first[::2]).any() and len(back.p_value(x[:0])) == 0


def test_the_package_has_three_references(model):
    assert set(model.others) == {'SDSS', 'LAMOST'} and model.config['checks'] == len(CHECKS)
    assert read_config(shipped('familiarity'))['extra']['autoencoder'] == fingerprint(load_weights().autoencoder)
    assert sum(p.stat().st_size for p in shipped('familiarity').iterdir()) < 1.5e6


@pytest.mark.skipif(not (DATA/'real2').exists(), reason='real spectra are not part of the repository; set SKYSEEK_DATA')
def test_real_spectra(model):
    """Ordinary real spectra (the references hold them; held-out rates: bench_familiarity.py) and foreign ones made from them."""
    real, wave = ordinary(DATA), load_weights().autoencoder.wave.cpu().numpy().astype(float)
    for survey, spectra in real.items():
        on = on_grid(spectra, survey, wave)
        assert SHORT[survey] in ('DESI', *model.others) and flagged(model, on).mean() < .08, survey
        alone = on.replace(meta=on.meta['TARGETID', 'INSTRUMENT'])  # no position, no date: the velocity of the Earth is not known
        assert flagged(model, alone).mean() < .08, survey
    for survey in ('SDSS', 'BOSS', 'LAMOST'):
        some = real[survey][np.random.default_rng(1).permutation(len(real[survey]))[:60]]
        for kind in ('power law', 'noise-free', 'air'):
            assert flagged(model, on_grid(foreign(some, kind, np.random.default_rng(2), survey), survey, wave)).mean() > .9, (survey, kind)


@pytest.mark.parametrize('instrument, at, half', [('', 7570., 10.), ('SDSS', 6100., 130.), ('LAMOST', 5800., 80.)])
def test_broken_arms_are_out_of_distribution_by_their_repair(model, stars, instrument, at, half):
    stars, part = stars[:14], 1 - .35*np.clip((stars.wave - at + half)/(2*half), 0, 1)
    meta = stars.meta.copy()
    if instrument: meta['INSTRUMENT'] = instrument
    sound, broken = stars.replace(meta=meta), stars.replace(meta=meta, flux=stars.flux*part, ivar=stars.ivar/part**2)
    rates = []
    for s in (sound, broken):
        *_, made = repair_suspicious(s, scan_redshift(s))
        columns = Table(made.columns(len(s)))
        scaled = columns['REPAIR_ARM']
        rates.append((scaled > BROKEN).mean())
        by_all = familiarity_columns(s, encoded(s), model, columns)
        assert by_all['UNFAMILIAR'][scaled > BROKEN].all() and (by_all['P_FAMILIAR'][scaled > BROKEN] < UNFAMILIAR).all()
    assert rates[0] == 0 and rates[1] > .5
