"""GaSNet-III: its published tables and curves from our definitions, and our scan on spectra that are good, odd or hopeless."""
from dataclasses import asdict

import numpy as np
import pytest
import torch
from astropy.table import Table

from skyseek.gasnet.gasnet3_networks import Eigenspectra, GasnetSettings, UNetSpectra, as_published, log_grid, prepare
from skyseek.detect.metrics import measure
from skyseek.redshift.redshift_metrics import format_redshifts, redshift_metrics
from skyseek.gasnet.gasnet3 import gasnet_redshifts, profile_curves, published_curves
from skyseek.simulate.mock_survey import simulate_spectra
from skyseek.learn.training import load_model, save_model

RECORDED = [  # file, threshold of the good fraction, metric, value, accuracy
    ('Encoder_SDSS_QSO_results', 3e-3, 'GF', 0.9277, 5e-5), ('Encoder_SDSS_QSO_results', 3e-3, 'MEAN_DZ', 0.01199, 1e-5),
    ('Encoder_SDSS_QSO_results', 3e-3, 'MAE', 0.03080, 1e-5), ('Encoder_SDSS_QSO_results', 3e-3, 'MAD', 0.000224, 5e-7),
    ('UNetL1SmoFlip_SDSS_QSO_results', 3e-3, 'GF', 0.9327, 5e-5), ('UNetL1SmoFlip_SDSS_QSO_results', 3e-3, 'MEAN_DZ', 0.01604, 1e-5),
    ('UNetL1SmoFlip_SDSS_QSO_results', 3e-3, 'MAE', 0.04057, 1e-5), ('UNetL1SmoFlip_SDSS_QSO_results', 3e-3, 'MAD', 0.000219, 5e-7),
    ('IWG8V3_Encoder_SDSS_GALAXY', 3e-4, 'MEDIAN_DZ', 6.26e-5, 5e-8), ('IWG8V3_Encoder_SDSS_GALAXY', 3e-4, 'MAD', 3.34e-5, 5e-8),
    ('IWG8V3_Encoder_SDSS_GALAXY', 3e-4, 'GF', 0.984, 5e-4), ('IWG8V3_Encoder_SDSS_QSO', 2e-3, 'GF', 0.919, 1.5e-3)]


def published(data, name):
    path = data/'gasnet3'/f'{name}.fits.gz'
    if not path.exists(): pytest.skip(f'no {name} among the real data')
    return Table.read(path, hdu=1)


@pytest.mark.parametrize('name, good, metric, value, eps', RECORDED)
def test_recorded_figures(data, name, good, metric, value, eps):
    table = published(data, name)
    table = table[table['Z'] < 5]
    assert redshift_metrics(table['Best_fit_z'], table['Z'], good=good)[metric] == pytest.approx(value, abs=eps)


def test_robustness_ratio_as_a_flag(data):
    table = published(data, 'Encoder_SDSS_QSO_results')
    failed = np.abs(table['delta_z']) >= 3e-3
    assert measure(failed, -np.asarray(table['Degeneracy']), 0)['AUC'] == pytest.approx(0.80, abs=0.005)


def test_intervals_hold_the_rate_and_text_names_every_metric():
    rng = np.random.default_rng(0)
    z_true, zerr = rng.uniform(0, 2, 400), np.full(400, 1e-3)
    found = redshift_metrics(z_true + zerr*rng.normal(size=400), z_true, zerr)
    assert all(found[f'{k}_low'] <= found[k] <= found[f'{k}_high'] for k in ('GF', 'CATASTROPHIC', 'COVER68', 'COVER95'))
    assert found['PULL'] == pytest.approx(1, abs=.15) and 'COVER95' in format_redshifts({'a': found})


def test_published_scan_gives_published_curves(data):
    examples = published(data, 'test_Encoder_SDSS_QSO_reconstruction_examples')
    flux, ivar, rest, curves = (torch.tensor(np.asarray(examples[c], np.float32).reshape(10, -1)) for c in ('flux', 'ivar', 'reconstruction', 'chi_square_curve'))
    ours = published_curves(rest, prepare(flux, ivar, as_published('QSO')), as_published('QSO')).flip(-1)
    torch.testing.assert_close(ours, curves, rtol=1e-4, atol=.1)
    assert (ours.argmin(1) == curves.argmin(1)).all()


@pytest.fixture(scope='module')
def spectra(): return simulate_spectra(8, seed=6, shares=dict(BGS=1.), program='bright', exptime=(5000., 9000.))[0]


@pytest.fixture(scope='module')
def models():
    torch.manual_seed(0)
    return [Eigenspectra(spectype=s, k=3).eval() for s in ('STAR', 'GALAXY', 'QSO')]


def test_profile_scan_agrees_with_float64_least_squares(spectra, models):
    model, (flux, ivar, _) = models[1], log_grid(spectra)
    s, batch = model.settings, prepare(flux, ivar, models[1].settings)
    with torch.no_grad(): rest = model(batch)
    curves = profile_curves(rest, batch, s)
    v = np.polynomial.legendre.legvander(np.linspace(-1, 1, s.n_wave), s.degree)
    for i in range(len(spectra)):
        f, w = (batch[k][i].double().numpy() for k in ('flux', 'weight'))
        for o in (0, 777, s.nz - 1):
            x = np.column_stack([rest[i, o:o + s.n_wave].double().numpy(), v])*np.sqrt(w)[:, None]
            c, chi2, *_ = np.linalg.lstsq(x, f*np.sqrt(w), rcond=None)
            if c[0] > 0: assert float(curves[i, -1 - o]) == pytest.approx(chi2[0], rel=1e-4)
            else: assert float(curves[i, -1 - o]) == pytest.approx((w*f*f).sum(), rel=1e-4)


def test_scaling_and_order_and_batches_do_not_matter(spectra, models):
    table, order = gasnet_redshifts(spectra, models), np.random.default_rng(0).permutation(8)
    scaled = gasnet_redshifts(spectra.replace(flux=spectra.flux*7, ivar=spectra.ivar/49), models)
    shuffled = gasnet_redshifts(spectra[order], models, batch_size=3)
    for name in ('Z', 'CHI2', 'ZERR'):
        np.testing.assert_allclose(scaled[name], table[name], rtol=2e-3, atol=1e-6)
        np.testing.assert_allclose(shuffled[name], table[name][order], rtol=2e-3, atol=1e-6)


SPOIL = {'all masked': lambda f, w: (f, w*0), 'one arm': lambda f, w: (f, w*(np.arange(7781) < 2700)), 'negative': lambda f, w: (-f, w), 'zero flux': lambda f, w: (f*0, w),
         'spike': lambda f, w: (f + 1e8*(np.arange(7781) == 3000), w), 'three pixels': lambda f, w: (f, w*(np.abs(np.arange(7781) - 4000) < 2)),
         'huge': lambda f, w: (f*1e15, w*1e-30), 'tiny': lambda f, w: (f*1e-12, w*1e24), 'infinite S/N': lambda f, w: (f, w*1e10)}


@pytest.mark.parametrize('name', SPOIL)
@pytest.mark.parametrize('scan', ['ours', 'published'])
def test_hopeless_spectra_are_flagged_rows(spectra, models, name, scan):
    flux, ivar = SPOIL[name](spectra.flux[:2].copy(), spectra.ivar[:2].copy())
    used = models if scan == 'ours' else [Eigenspectra(**asdict(as_published(s))) for s in ('STAR', 'GALAXY', 'QSO')]
    table = gasnet_redshifts(spectra[:2].replace(flux=flux.astype(np.float32), ivar=ivar.astype(np.float32)), used)
    for column in table.colnames:
        if table[column].dtype.kind == 'f': assert np.isfinite(table[column]).all(), column
    if name in ('all masked', 'three pixels', 'negative'): assert (table['ZWARN'] > 0).all()
    if name == 'all masked': assert (table['Z'] == 0).all() and (table['ZWARN'] & (1 << 9) > 0).all()


def test_models_survive_saving(tmp_path, spectra, models):
    unet = UNetSpectra(**asdict(as_published('STAR', loss='smooth_l1')))
    for model, cls in ((models[0], Eigenspectra), (unet, UNetSpectra)):
        model.error.copy_(torch.tensor([2., 1e-5]))
        again = load_model(save_model(model, tmp_path/cls.__name__), cls)
        assert again.settings == model.settings and (again.error == model.error).all()
        np.testing.assert_array_equal(gasnet_redshifts(spectra, [again])['Z'], gasnet_redshifts(spectra, [model])['Z'])


def test_settings_name_what_is_wrong():
    with pytest.raises(ValueError, match='PLANET'): GasnetSettings('PLANET')
    with pytest.raises(ValueError, match='different pixels'): gasnet_redshifts(None, [Eigenspectra(spectype='STAR', n_wave=4000), Eigenspectra(spectype='STAR')])
