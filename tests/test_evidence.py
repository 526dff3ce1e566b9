"""The second opinion in catalogues, features and trainings, and on bad input."""
import shutil
from importlib.resources import files

import numpy as np
import pytest
from astropy.table import Table

from skyseek.pipeline.catalogue import make_catalogue, read_catalogue, write_catalogue
from skyseek.pipeline.score import load_weights, score_file
from skyseek.pipeline.cli import main
from skyseek.data.desi import extract
from skyseek.data.redshift_tables import read_redrock, read_truth
from skyseek.redshift.second_look import second_look
from skyseek.redshift.second_opinion import correction_rates
from skyseek.learn.features import EVIDENCE
from skyseek.learn.shards import read_features
from skyseek.redshift.bases import library_bases
from skyseek.redshift.scan import redshift_file
from skyseek.simulate.mock_survey import simulate_survey

ALT = ('Z_ALT', 'ZERR_ALT', 'SPECTYPE_ALT', 'P_ALT', 'Z_ALT2', 'ZERR_ALT2', 'SPECTYPE_ALT2', 'P_ALT2', 'P_Z_PIPE', 'P_NONE', 'R_ALT', 'ZWARN_ALT', 'FLAG_ALT', 'FLAG_OFFSET', 'CAUSE', 'CAUSE_SCORE', 'CAUSE_WAVE', 'CAUSE_TEXT')


@pytest.fixture(scope='module')
def coadd(tmp_path_factory):
    path = simulate_survey(tmp_path_factory.mktemp('survey'), n=90, seed=17)
    redshift_file(path, path.with_name(path.name.replace('coadd', 'redrock')), library_bases())
    return path


@pytest.mark.slow
@pytest.mark.parametrize('suffix', ['fits', 'parquet'])
def test_catalogue_carries_it_and_leaves_the_pipelines_columns(coadd, tmp_path, suffix):
    weights = load_weights()
    catalogue = make_catalogue([score_file(coadd, weights)], weights)
    back = read_catalogue(write_catalogue(catalogue, tmp_path/f'c.{suffix}'))
    assert set(ALT) <= set(back.colnames)
    redrock = read_redrock(coadd.with_name(coadd.name.replace('coadd', 'redrock')))
    mine = redrock[np.isin(redrock['TARGETID'], back['TARGETID'])]
    text = lambda column: np.asarray(column).astype(str) if np.asarray(column).dtype.kind in 'SU' else np.asarray(column)
    for name in ('TARGETID', 'Z', 'ZERR', 'ZWARN', 'CHI2', 'SPECTYPE', 'DELTACHI2'): assert (text(back[name]) == text(mine[name])).all(), name
    p = np.asarray(back['P_ALT'])
    assert (p >= 0).all() and (p <= 1).all() and (p + back['P_ALT2'] + back['P_NONE'] < 1 + 1e-6).all()
    flagged = np.asarray(back['FLAG_Z_WRONG'] | back['FLAG_S_WRONG'])
    cause = np.char.strip(np.asarray(back['CAUSE']).astype(str))
    assert (cause[flagged] != '').all() and (cause[~flagged] == '').all()
    assert str(catalogue['P_ALT'].description) and catalogue['CAUSE_WAVE'].unit == 'Angstrom'


def test_it_mends_more_than_it_breaks(coadd):
    weights, truth = load_weights(), read_truth(str(coadd).replace('coadd-', 'truth-'))
    table = score_file(coadd, weights)
    z = {t: v for t, v in zip(truth['TARGETID'], truth['TRUE_Z'])}
    z_true = np.array([z[t] for t in table['TARGETID']])
    fixed, broken, wrong, right = correction_rates(table, table['Z'], z_true)
    assert wrong >= 3 and fixed*wrong > broken*right


def test_evidence_knows_no_truth_and_is_finite(coadd):
    spectra = extract(coadd)
    looked, opinion, _ = second_look(spectra[:20], load_weights().judge)
    assert all(np.isfinite(looked.meta[name]).all() for name in EVIDENCE)
    assert not any('TRUE' in name for name in looked.meta.colnames)
    one, alone, _ = second_look(spectra[7:8], load_weights().judge)
    assert alone['P_ALT'][0] == pytest.approx(opinion['P_ALT'][7], abs=1e-3) and one.meta['EV_COST'][0] == pytest.approx(looked.meta['EV_COST'][7], abs=1e-2)


@pytest.mark.slow
def test_training_with_evidence_by_commands(coadd, tmp_path):
    weights = tmp_path/'weights'
    shutil.copytree(str(files('skyseek')/'weights/default/autoencoder'), weights/'autoencoder')
    assert main(['extract', str(coadd), '-o', str(tmp_path)]) == 0
    spectra = str(next(tmp_path.glob('spectra-*.fits')))
    assert main(['features', spectra, '-o', str(tmp_path), '--second-opinion']) == 0
    shard = next(tmp_path.glob('features-*.npz'))
    assert set(EVIDENCE) <= set(map(str, read_features(shard)['metadata_names']))
    assert main(['train-classifier', str(shard), '-o', str(weights), '--truth', str(coadd).replace('coadd-', 'truth-'), '--columns', 'second', '--epochs', '2', '--members', '1']) == 0
    assert main(['score', str(coadd), '-o', str(tmp_path/'c.fits'), '--weights', str(weights)]) == 0
    assert np.isfinite(Table.read(tmp_path/'c.fits')['P_Z_WRONG']).all()
    shutil.rmtree(weights/'judge')
    with pytest.raises(ValueError, match='there is no judge'): load_weights(weights)
