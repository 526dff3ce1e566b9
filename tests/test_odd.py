"""What nobody has seen: rare objects planted among ordinary ones are found, by the commands; and input that spoils it is refused or flagged."""
import warnings

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from PIL import Image
from sklearn.metrics import roc_auc_score
from surveys import write_pair, write_sdss

from skyseek.anomaly.scores import SCORES
from skyseek.pipeline.cli import main
from skyseek.anomaly.cutouts import read_cutouts, write_hdf5
from skyseek.data.files import read_written_table
from skyseek.anomaly.simulated_images import simulate_cutouts
from skyseek.anomaly.stellar_autoencoder import load_stellar, reconstruct, reconstruction_errors
from skyseek.anomaly.stellar_spectra import prepare_stars, read_stars
from skyseek.simulate.mock_survey import simulate_survey
from skyseek.data.spectra import Spectra
from skyseek.anomaly.stellar_sample import simulate_stars

SLOW_FIXTURES = {'galaxies'}  # see conftest.py


# Spectra: from a coadd to a ranked list

@pytest.fixture(scope='module')
def survey(tmp_path_factory):
    "A simulated coadd in which every fifth target is a star, some of them rare; scored by the commands."
    folder = tmp_path_factory.mktemp('odd')
    coadd = simulate_survey(folder, 260, seed=92, shares=dict(BGS=.4, LRG=.2, QSO=.1, MWS=.3), hpx=12345, blend=0.)
    assert main(['redshift', str(coadd)]) == 0
    assert main(['score', str(coadd), '-o', str(folder/'c.fits')]) == 0
    truth = Table.read(folder/'truth-main-dark-12345.fits')
    kind = dict(zip(truth['TARGETID'], np.ma.filled(np.ma.asarray(truth['SUBTYPE']).astype(str), '')))
    flags = dict(zip(truth['TARGETID'], np.ma.filled(np.ma.asarray(truth['FLAGS']).astype(str), '')))
    return folder, coadd, read_written_table(folder/'c.fits'), kind, flags


def test_planted_rare_stars_are_found(survey):
    _, _, catalogue, kind, _ = survey
    rare = np.array([kind[t] in ('CARBON', 'LDWARF', 'CV') for t in catalogue['TARGETID']])
    assert rare.sum() >= 3
    place = np.asarray(catalogue['ANOMALY_RANK'])/len(catalogue)
    assert np.median(place[rare]) < .12 and np.median(place[~rare]) > .4


def test_catalogue_says_how_odd_and_why(survey):
    catalogue = survey[2]
    assert {f'ODD_{name}' for name in SCORES} | {'ANOMALY', 'ANOMALY_WHY', 'ANOMALY_WAVE', 'ANOMALY_RANK', 'NATURE', 'ANOMALY_CLEAN', 'NATURE_TEXT'} <= set(catalogue.colnames)
    rank, odd = np.asarray(catalogue['ANOMALY_RANK']), np.asarray(catalogue['ANOMALY'])
    assert sorted(rank) == list(range(1, len(catalogue) + 1)) and (np.diff(odd[np.argsort(rank)]) <= 0).all()
    asked = np.char.strip(np.asarray(catalogue['NATURE']).astype(str)) != ''
    assert (asked == (odd >= np.float32(1.3))).all()
    assert all(catalogue[name].description for name in catalogue.colnames if name.startswith(('ODD_', 'ANOMALY', 'NATURE')))


def test_lost_arms_are_artefacts(survey):
    _, _, catalogue, _, flags = survey
    nature = np.char.strip(np.asarray(catalogue['NATURE']).astype(str))
    dead = np.array(['DEAD' in flags[t] for t in catalogue['TARGETID']])
    assert (nature[dead & (nature != '')] == 'ARTEFACT').all()


def test_marks_rank_again(survey, capsys):
    folder, _, catalogue, kind, _ = survey
    top = catalogue[np.argsort(catalogue['ANOMALY_RANK'])][:30]
    stars = [kind[t] in ('CARBON', 'LDWARF', 'CV') for t in top['TARGETID']]
    Table({'TARGETID': top['TARGETID'], 'MARK': np.where(stars, 5, 0)}).write(folder/'marks.csv')
    assert main(['rank', str(folder/'c.fits'), '-o', str(folder/'list.fits'), '--marks', str(folder/'marks.csv'), '--most', '20']) == 0
    ranked = read_written_table(folder/'list.fits')
    assert len(ranked) == 20 and (np.diff(ranked['INTEREST']) <= 0).all()
    liked = np.array([kind[t] in ('CARBON', 'LDWARF', 'CV') for t in ranked['TARGETID']])
    assert liked[:10].sum() >= sum(stars[:10])
    assert main(['rank', str(folder/'c.fits'), '-o', str(folder/'objects.parquet'), '--what', 'objects', '--most', '5']) == 0
    assert len(read_written_table(folder/'objects.parquet')) == 5


@pytest.mark.parametrize(('marks', 'words'), [('TARGETID,MARK\n1,5\n2,0\n', 'none of the 2 marked'), ('NAME,MARK\na,5\n', 'lacks TARGETID'), ('TARGETID,MARK\n', 'no mark is given'), ('TARGETID,MARK\n1,\n2,\n', 'no mark is given'), (None, 'no such file')])
def test_marks_that_cannot_be_used(survey, tmp_path, capsys, marks, words):
    path = tmp_path/'marks.csv'
    if marks is not None: path.write_text(marks)
    assert main(['rank', str(survey[0]/'c.fits'), '-o', str(tmp_path/'list.fits'), '--marks', str(path)]) == 1
    assert words in capsys.readouterr().err and not (tmp_path/'list.fits').exists()


def test_rank_wants_a_scored_catalogue(tmp_path, capsys):
    Table({'TARGETID': [1, 2], 'Z': [.1, .2]}).write(tmp_path/'plain.fits')
    assert main(['rank', str(tmp_path/'plain.fits'), '-o', str(tmp_path/'list.fits')]) == 1 and 'no column ANOMALY' in capsys.readouterr().err
    assert main(['rank', str(tmp_path/'none.fits'), '-o', str(tmp_path/'list.fits')]) == 1 and 'no such file' in capsys.readouterr().err


def test_reference_needs_enough_spectra(tmp_path, capsys):
    assert main(['reference', str(write_pair(tmp_path)), '-o', str(tmp_path/'mine')]) == 1
    assert 'at least 300' in capsys.readouterr().err and not (tmp_path/'mine').exists()


# Stars

@pytest.fixture(scope='module')
def model(): return load_stellar()


def test_planted_stars_are_on_top(model):
    spectra, truth = simulate_stars(800, seed=5, mix=dict(A=.2, F=.6, G=.15, K=.05), planted=dict(CARBON=2, SPIKE=2))
    stars = prepare_stars(spectra)
    errors = reconstruction_errors(stars, reconstruct(model, stars))
    top = np.argsort(-errors['EXCESS'])[:8]
    assert np.asarray(truth['PLANTED'])[top].sum() == 4


def test_stars_that_cannot_be_used_are_rows_with_a_reason(tmp_path, capsys):
    first, n = 35800, 3800
    wave = 10**(1e-4*(first + np.arange(n)))
    write_sdss(tmp_path, 1)
    write_sdss(tmp_path, 2, coadd=dict(ivar=np.where(np.abs(wave - 5550) < 20, 0, 25).astype('f4')))
    write_sdss(tmp_path, 3, coadd=dict(flux=np.where(np.abs(wave - 5550) < 20, 0, 1).astype('f4')))
    write_sdss(tmp_path, 4, coadd=dict(flux=np.where(np.abs(wave - 5550) < 20, -1, 1).astype('f4')))
    write_sdss(tmp_path, 5, coadd=dict(ivar=np.where(wave < 6000, 25, 0).astype('f4')))
    (tmp_path/'spec-0001-50000-0006.fits').write_text('not a FITS file')
    with warnings.catch_warnings(action='ignore'):
        assert main(['score-stars', str(tmp_path), '-o', str(tmp_path/'out/stars.fits'), '--report', str(tmp_path/'stars.html'), '--all-types']) == 1
    table = read_written_table(tmp_path/'out/stars.fits')
    reasons = [str(r).strip() for r in table['REASON']]
    assert len(table) == 5 and reasons[0] == ''
    assert reasons[1].startswith('no data at 5550')
    assert all('not above 3 sigma' in r for r in reasons[2:4]) and 'less than 80 %' in reasons[4]
    assert np.isfinite(table['RMSE'][0]) and np.isnan(np.asarray(table['RMSE'][1:], float)).all() and list(table['RANK']) == [1, 0, 0, 0, 0]
    assert 'spec-0001-50000-0006.fits' in capsys.readouterr().err and (tmp_path/'stars.html').read_text().count('<img') == 2


def test_no_star_at_all(tmp_path, capsys):
    (tmp_path/'spec-1.fits').write_text('no')
    assert main(['score-stars', str(tmp_path), '-o', str(tmp_path/'s.fits')]) == 1 and 'no spectrum can be read' in capsys.readouterr().err
    assert main(['score-stars', str(tmp_path), '-o', str(tmp_path/'s.csv')]) == 1 and '*.parquet' in capsys.readouterr().err


def test_one_bad_star_does_not_change_the_others(model):
    spectra, _ = simulate_stars(6, seed=9)
    stars = prepare_stars(spectra)
    worse = prepare_stars(Spectra(spectra.wave, np.r_[spectra.flux, 0*spectra.flux[:1]], np.r_[spectra.ivar, 0*spectra.ivar[:1]]))
    a, b = (reconstruction_errors(s, reconstruct(model, s)) for s in (stars, worse))
    assert np.allclose(a['RMSE'], b['RMSE'][:6], rtol=1e-4) and b['REASON'][6] == 'no valid pixel'


@pytest.mark.slow
def test_training_on_stars_resumes_and_scores(tmp_path, capsys):
    for i in range(120): write_sdss(tmp_path, i + 1, answer=dict(CLASS=['STAR'], ZWARNING=np.array([0], 'i4'), SN_MEDIAN_ALL=np.array([30], 'f4')), coadd=dict(ivar=np.full(3800, 400, 'f4')))
    assert main(['train-stars', str(tmp_path), '-o', str(tmp_path/'model'), '--epochs', '2', '--device', 'cpu']) == 0
    assert 'R2' in capsys.readouterr().out and not list(tmp_path.glob('*checkpoint*'))
    write_sdss(tmp_path, 3, answer=dict(CLASS=['GALAXY']))
    some = [str(tmp_path/f'spec-0266-51602-000{i}.fits') for i in (3, 4)]
    assert main(['score-stars', *some, '-o', str(tmp_path/'s.parquet'), '--model', str(tmp_path/'model')]) == 0 and len(read_written_table(tmp_path/'s.parquet')) == 1
    assert '1 of 2 spectra are of another type' in capsys.readouterr().out
    assert main(['score-stars', some[0], '-o', str(tmp_path/'s.parquet'), '--overwrite', '--weights', str(tmp_path/'model')]) == 1 and '--all-types' in capsys.readouterr().err
    write_sdss(tmp_path, 3, answer=dict(CLASS=['STAR'], ZWARNING=np.array([0], 'i4'), SN_MEDIAN_ALL=np.array([30], 'f4')))
    assert main(['train-stars', str(tmp_path/'spec-0266-51602-0003.fits'), '-o', str(tmp_path/'other'), '--device', 'cpu']) == 1 and 'give more stars' in capsys.readouterr().err


@pytest.mark.slow
def test_real_stars(data, model):
    with warnings.catch_warnings(action='ignore'): stars, about, failed = read_stars(sorted((data/'sdss').glob('*.fits*'))[::3])
    star = (np.asarray(about['SPECTYPE']) == 'STAR') & (np.asarray(about['SNR']) > 10)
    errors = reconstruction_errors(stars[star], reconstruct(model, stars[star]))
    assert star.sum() > 8 and np.nanmedian(errors['RMSE']) < .04


# Images

@pytest.fixture(scope='module')
def galaxies(tmp_path_factory):
    "A folder of small stamps, and a model trained on them by the command."
    folder = tmp_path_factory.mktemp('galaxies')
    cutouts, _ = simulate_cutouts(64, seed=3, pixels=32)
    (folder/'stamps').mkdir()
    for image, name in zip(cutouts.images, cutouts.table['OBJECT_ID']): Image.fromarray(image).save(folder/'stamps'/f'{name}.png')
    options = ['--size', '32', '--width', '8', '--batch-size', '16', '--device', 'cpu']
    assert main(['train-galaxies', str(folder/'stamps'), '-o', str(folder/'model'), '--iterations', '120', '--lr', '4e-4', '--encoder-steps', '100', *options]) == 0
    return folder, cutouts


def test_planted_images_are_on_top(galaxies):
    folder, _ = galaxies
    cutouts, kinds = simulate_cutouts(50, seed=4, planted=dict(STAR=3, TRAIL=3), pixels=32)
    write_hdf5(folder/'more.h5', cutouts)
    assert main(['score-galaxies', str(folder/'more.h5'), '--model', str(folder/'model'), '-o', str(folder/'odd.fits'), '--results', str(folder/'results.h5')]) == 0
    table = read_written_table(folder/'odd.fits')
    assert table.colnames[:7] == ['IDX', 'OBJECT_ID', 'RA', 'DEC', 'CRITIC', 'GENERATOR', 'COMBINED']
    assert roc_auc_score(kinds != '', table['COMBINED']) > .8
    assert (folder/'results.h5').exists() and not list(folder.glob('results.part*'))


def test_bad_images_are_rows_with_a_reason(galaxies, tmp_path, capsys):
    folder, cutouts = galaxies
    image = cutouts.images[0]
    Image.fromarray(image).save(tmp_path/'a.png')
    Image.fromarray(0*image).save(tmp_path/'black.png')
    Image.fromarray(image[..., 0]).save(tmp_path/'grey.png')
    Image.fromarray(image[:20]).save(tmp_path/'small.png')
    (tmp_path/'text.jpg').write_text('no image')
    fits.PrimaryHDU(np.full((3, 32, 32), np.nan)).writeto(tmp_path/'nan.fits')
    with warnings.catch_warnings(action='ignore'):
        assert main(['score-galaxies', str(tmp_path), '--model', str(folder/'model'), '-o', str(tmp_path/'odd.parquet')]) == 1
    table = read_written_table(tmp_path/'odd.parquet')
    reason = {str(r['OBJECT_ID']): str(r['REASON']) for r in table}
    assert reason['a'] == '' and reason['black'] == 'all black' and 'one band' in reason['grey'] and '20 × 32' in reason['small']
    assert 'not a readable image' in reason['text'] and reason['nan'] == 'no finite pixel'
    assert np.isnan(np.asarray(table['CRITIC'], float)).sum() == 5


def test_image_commands_refuse(galaxies, tmp_path, capsys):
    folder, _ = galaxies
    (tmp_path/'empty').mkdir()
    assert main(['score-galaxies', str(tmp_path/'empty'), '--model', str(folder/'model'), '-o', str(tmp_path/'o.fits')]) == 1 and 'no jpg' in capsys.readouterr().err
    assert main(['score-galaxies', str(folder/'stamps'), '--model', str(tmp_path/'none'), '-o', str(tmp_path/'o.fits')]) == 1 and 'no such file' in capsys.readouterr().err
    assert main(['train-galaxies', str(folder/'stamps'), '-o', str(tmp_path/'m'), '--size', '40', '--device', 'cpu']) == 1
    assert not (tmp_path/'m').exists() and not (tmp_path/'o.fits').exists()


def test_real_images(data):
    cutouts = read_cutouts(sorted((data/'images/efigi').glob('*.jpg'))[:20], 64, 'shrink')
    assert len(cutouts) == 20 and cutouts.usable.all()
    with warnings.catch_warnings(action='ignore'): sdss = read_cutouts(sorted((data/'images/sdss_cutouts').glob('*.jpg'))[:30], 96)
    assert np.isfinite(sdss.table['RA']).all() and (np.abs(sdss.table['DEC']) < 90).all()
