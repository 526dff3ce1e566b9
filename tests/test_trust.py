"""Calibrated scores and guaranteed samples, by whole commands."""

import json
import shutil
from importlib.resources import files

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from commands import errors, skyseek

from skyseek.learn.autoencoder import Autoencoder, encode
from skyseek.pipeline.score import load_weights
from skyseek.pipeline.cli import main
from skyseek.data.desi import extract
from skyseek.learn.features import build_features
from skyseek.learn.training import ArrayStream
from skyseek.data.spectra import concatenate
from skyseek.learn.training import fingerprint, load_model, save_model
from skyseek.detect.familiarity import Familiarity, familiarity_inputs, fit_familiarity

pytestmark = pytest.mark.slow
RATES = [.18, .1]


@pytest.fixture(scope='module')
def survey(tmp_path_factory):
    """Two simulated coadds of 150 fibres with redshifts and truth."""
    folder = tmp_path_factory.mktemp('survey')
    for hpx in (1, 2): assert skyseek('simulate', '-o', folder, '-n', 150, '--hpx', hpx, '--seed', hpx).returncode == 0
    assert skyseek('redshift', *sorted(folder.glob('coadd-*.fits'))).returncode == 0
    return folder


@pytest.fixture(scope='module')
def weights(survey):
    """The package's weights, with error rates and a familiarity fitted to the survey itself."""
    folder = survey / 'weights'
    shutil.copytree(str(files('skyseek') / 'weights/default'), folder)
    path = folder / 'classifier/config.json'
    config = json.loads(path.read_text())
    config['extra']['rates'] = RATES
    path.write_text(json.dumps(config))
    autoencoder = load_model(folder / 'autoencoder', Autoencoder)
    spectra = concatenate([extract(c) for c in sorted(survey.glob('coadd-*.fits'))])
    features = build_features(spectra)
    code = encode(autoencoder, ArrayStream({k: features[k] for k in ('flux', 'weight', 'scale', 'exptime')}, 64, shuffle=False))
    save_model(fit_familiarity(familiarity_inputs(code, spectra), np.arange(len(spectra)) % 2 == 0), folder / 'familiarity', autoencoder=fingerprint(autoencoder))
    return folder


@pytest.fixture(scope='module')
def catalogue(survey, weights):
    """Scores as they are."""
    path = survey / 'catalogue.fits'
    done = skyseek('score', *sorted(survey.glob('coadd-*.fits')), '-o', path, '--weights', weights)
    assert done.returncode == 0 and 'unlike the training' in done.stdout, done.stderr
    return path


def truths(survey): return sorted(survey.glob('truth-*.fits'))


def score(survey, weights, dst, *options): return skyseek('score', *sorted(survey.glob('coadd-*.fits')), '-o', dst, '--weights', weights, *options)


def test_familiarity_is_in_the_catalogue(catalogue):
    table, header = Table.read(catalogue), fits.getheader(catalogue, 1)
    p = np.asarray(table['P_FAMILIAR'])
    assert ((p > 0) & (p <= 1)).all() and (np.asarray(table['UNFAMILIAR']) == (p < .01)).all() and table['UNFAMILIAR'].mean() < .05
    assert any('do not take P_Z_WRONG' in str(v) for k, v in header.items() if k.startswith('TCOMM'))
    assert 'RATE_Z' not in header


def test_a_stated_rate_moves_probabilities_and_not_flags(survey, weights, catalogue, tmp_path):
    done = score(survey, weights, tmp_path / 'c.fits', '--error-rate', '0.02', '--type-error-rate', '0.3')
    assert done.returncode == 0 and 'P_Z_WRONG is for 2 % wrong redshifts, not 18 %' in done.stdout, done.stderr
    old, new, header = Table.read(catalogue), Table.read(tmp_path / 'c.fits'), fits.getheader(tmp_path / 'c.fits', 1)
    for head, trained, rate in (('Z', .18, .02), ('S', .1, .3)):
        p, q = (np.asarray(t[f'P_{head}_WRONG'], float) for t in (old, new))
        np.testing.assert_allclose(q/(1 - q), p/(1 - p)*rate/(1 - rate)/trained*(1 - trained), rtol=2e-3)
        assert (old[f'FLAG_{head}_WRONG'] == new[f'FLAG_{head}_WRONG']).all()
        assert header[f'RATE_{head}'] == rate and header[f'RATE0_{head}'] == trained and f'RATELO_{head}' not in header
    assert header['TH_Z'] < fits.getheader(catalogue, 1)['TH_Z'] and header['TH_S'] > fits.getheader(catalogue, 1)['TH_S']


def test_an_estimated_rate_has_an_interval(survey, weights, tmp_path):
    done = score(survey, weights, tmp_path / 'c.parquet', '--error-rate', 'auto')
    assert done.returncode == 0 and 'estimated' in done.stdout, done.stderr
    meta = Table.read(tmp_path / 'c.parquet').meta
    assert 0 < meta['RATELO_Z'] <= meta['RATE_Z'] <= meta['RATEHI_Z'] < 1


@pytest.mark.parametrize('rate, said', [('0', 'between 0 and 1'), ('1', 'between 0 and 1'), ('-0.1', 'between 0 and 1'), ('nan', 'between 0 and 1')])
def test_senseless_rates_are_refused_before_the_work(survey, weights, tmp_path, rate, said):
    done = score(survey, weights, tmp_path / 'c.fits', f'--error-rate={rate}')
    assert done.returncode == 1 and len(errors(done)) == 1 and said in done.stderr and not list(tmp_path.iterdir())


def test_words_are_no_rate(survey, weights, tmp_path): assert score(survey, weights, tmp_path / 'c.fits', '--error-rate', 'few').returncode == 2


def test_weights_that_do_not_know_their_rates(survey, weights, tmp_path):
    shutil.copytree(weights, tmp_path / 'w')
    path = tmp_path / 'w/classifier/config.json'
    config = json.loads(path.read_text())
    del config['extra']['rates']
    path.write_text(json.dumps(config))
    done = score(survey, tmp_path / 'w', tmp_path / 'c.fits', '--error-rate', '0.02')
    assert done.returncode == 1 and len(errors(done)) == 1 and 'do not say on what shares' in done.stderr


def test_familiarity_of_another_autoencoder(weights, tmp_path):
    shutil.copytree(weights, tmp_path / 'w')
    save_model(load_model(weights / 'familiarity', Familiarity), tmp_path / 'w/familiarity', autoencoder='0'*16)
    with pytest.raises(ValueError, match='another autoencoder'): load_weights(tmp_path / 'w')
    shutil.rmtree(tmp_path / 'w/familiarity')
    assert load_weights(tmp_path / 'w').familiarity is None


@pytest.mark.parametrize('name', ['kept.fits', 'kept.parquet'])
def test_keep(survey, catalogue, tmp_path, name):
    done = skyseek('keep', catalogue, tmp_path / name, '--truth', *truths(survey), '--at-most', '0.2')
    assert done.returncode == 0, done.stderr
    assert 'at most 20 % of the kept are wrong, with 95 % confidence' in done.stdout
    table, whole = Table.read(tmp_path / name), Table.read(catalogue)
    meta = table.meta
    assert 0 < len(table) <= len(whole) and not table['UNFAMILIAR'].any() and table['P_Z_WRONG'].max() <= meta['KEEP_TH'] + 1e-6
    inside = ~np.asarray(whole['UNFAMILIAR']) & (np.asarray(whole['P_Z_WRONG'], float) <= meta['KEEP_TH'])
    assert set(table['TARGETID']) == set(whole['TARGETID'][inside])
    assert meta['KEEPMOST'] == .2 and meta['KEEPCONF'] == .95 and meta['KEEPBND'] <= .2 and meta['KEEPWHAT'] == 'Z' and meta['KEEPFROM'] == len(whole)
    assert meta['WEIGHTS'] == 'weights'


def test_a_kept_catalogue_is_still_a_catalogue(survey, catalogue, tmp_path):
    assert skyseek('keep', catalogue, tmp_path / 'k.fits', '--truth', *truths(survey), '--at-most', '0.2', '--what', 'type').returncode == 0
    header = fits.getheader(tmp_path / 'k.fits', 1)
    named = {header[k]: header.get(f'TCOMM{k[5:]}') for k in header if k.startswith('TTYPE')}
    assert named['Z'] == 'redrock redshift' and header['KEEPWHAT'] == 'S'
    assert skyseek('keep', tmp_path / 'k.fits', tmp_path / 'again.fits', '--truth', *truths(survey), '--at-most', '0.3').returncode == 0


@pytest.fixture
def refused(tmp_path, capsys):
    """A function that gives the one line with which `skyseek keep` refuses; nothing may be written."""
    def run(*arguments):
        before = sorted(tmp_path.iterdir())
        assert main(['keep', *map(str, arguments)]) == 1
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith('ERROR')]
        assert len(lines) == 1 and sorted(tmp_path.iterdir()) == before
        return lines[0]
    return run


def test_too_few_labels(survey, catalogue, tmp_path, refused):
    said = refused(catalogue, tmp_path / 'k.fits', '--truth', *truths(survey))
    assert '598 kept labels without an error, or 947 with one' in said


@pytest.mark.parametrize('option', ['--at-most=0', '--at-most=1', '--at-most=-0.1', '--at-most=nan', '--confidence=1', '--confidence=0', '--confidence=95'])
def test_senseless_guarantees(survey, catalogue, tmp_path, option, refused):
    said = refused(catalogue, tmp_path / 'k.fits', '--truth', *truths(survey), option)
    assert 'must lie between 0 and 1' in said and option[2:4] in said


def test_truth_of_other_targets(survey, catalogue, tmp_path, refused):
    truth = Table.read(truths(survey)[0])
    truth['TARGETID'] += 10**6
    truth.write(tmp_path / 'truth-other.fits')
    assert 'has a label' in refused(catalogue, tmp_path / 'k.fits', '--truth', tmp_path / 'truth-other.fits')


@pytest.mark.parametrize('wrong, holds', [(False, True), (True, False)])
def test_labels_of_one_kind(survey, catalogue, tmp_path, wrong, holds):
    table = Table.read(catalogue)
    Table({'TARGETID': table['TARGETID'], 'CLASS': table['SPECTYPE'], 'TRUE_SPECTYPE': table['SPECTYPE'], 'TRUE_Z': np.asarray(table['Z']) + .5*wrong}).write(tmp_path / 'truth-one.fits')
    done = skyseek('keep', catalogue, tmp_path / 'k.fits', '--truth', tmp_path / 'truth-one.fits', '--at-most', '0.05')
    assert (done.returncode == 0) == holds and (holds or 'no guarantee' in done.stderr), done.stderr


def spoilt(catalogue, path, **columns):
    """The catalogue with columns replaced, or dropped if None."""
    table = Table.read(catalogue)
    for name, value in columns.items():
        if value is None: table.remove_column(name)
        else: table[name] = np.broadcast_to(np.asarray(value, table[name].dtype), len(table)).copy()
    table.write(path)
    return path


@pytest.mark.parametrize('columns, said', [({'P_Z_WRONG': None}, 'P_Z_WRONG'), ({'P_Z_WRONG': np.nan}, 'nothing can be kept'), ({'P_Z_WRONG': 1.5}, 'outside 0 to 1'), ({'P_Z_WRONG': -.1}, 'outside 0 to 1'),
                                           ({'UNFAMILIAR': True}, 'nothing can be kept')])
def test_catalogues_without_probabilities(survey, catalogue, tmp_path, columns, said, refused):
    path = spoilt(catalogue, tmp_path / 'spoilt.fits', **columns)
    assert said in refused(path, tmp_path / 'k.fits', '--truth', *truths(survey), '--at-most', '0.2')


def test_the_catalogue_is_not_overwritten(survey, catalogue, tmp_path, refused):
    before = catalogue.read_bytes()
    assert 'would overwrite the input' in refused(catalogue, catalogue, '--truth', *truths(survey), '--at-most', '0.2')
    assert catalogue.read_bytes() == before
    assert '*.parquet' in refused(catalogue, tmp_path / 'k.txt', '--truth', *truths(survey))
