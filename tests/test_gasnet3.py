"""Our redshift metrics on GaSNet-III's published tables give the figures that its authors print."""
import numpy as np
import pytest
from astropy.table import Table

from skyseek.evaluate import format_redshifts, measure, redshift_metrics

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
