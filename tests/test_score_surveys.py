"""Scores of spectra that are not DESI's: SDSS and LAMOST, one spectrum a file, good ones among bad ones."""
import warnings

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from commands import skyseek
from surveys import redrock_table, write_lamost, write_pair, write_parts, write_sdss

from skyseek.pipeline.catalogue import make_catalogue
from skyseek.pipeline.score import match_grid, score_file, score_files, score_spectra
from skyseek.detect.classifier import pick_columns
from skyseek.pipeline.cli import main
from skyseek.data.constants import ZWARN_NODATA
from skyseek.learn.features import EVIDENCE, METADATA, build_features
from skyseek.data.read import group_files, read_targets
from skyseek.data.sdss import read_sdss
from skyseek.data.spectra import resample, wave_desi

SLOW_FIXTURES = {'real'}  # see conftest.py

SKY = dict(answer=dict(SOURCETYPE=['SKY'], ZWARNING=np.array([1], 'i4')))


def read(path): return Table.read(path, hdu='CATALOGUE')


def words(column): return [str(x).strip() for x in column]


@pytest.fixture(scope='module')
def real(data, tmp_path_factory):
    "Every fifth of the real SDSS spectra scored by the command, sky fibres included."
    paths, out = sorted((data/'sdss').glob('*.fits*'))[::5], tmp_path_factory.mktemp('real')/'c.fits'
    assert main(['score', *map(str, paths), '-o', str(out), '--keep-sky']) == 0
    return paths, read(out)


def test_real_spectra_keep_their_order_and_their_answers(real):
    paths, catalogue = real
    assert words(catalogue['FILE']) == [p.name for p in paths]
    spectra = read_sdss(paths)
    assert list(catalogue['TARGETID']) == list(spectra.meta['TARGETID'])
    for name in ('Z', 'ZERR', 'ZWARN', 'CHI2', 'DELTACHI2'): assert np.allclose(catalogue[name], spectra.meta[name], equal_nan=True), name
    p, answered = np.ma.filled(catalogue['P_Z_WRONG'], np.nan), np.isfinite(spectra.meta['Z']) & spectra.good.any(1)
    assert (np.isfinite(p) == answered).all() and ((p[answered] >= 0) & (p[answered] <= 1)).all()


def test_real_sky_is_flagged_more_than_real_targets(real):
    catalogue = real[1]
    sky = np.array(words(catalogue['OBJTYPE'])) == 'SKY'
    flagged = np.asarray(catalogue['FLAG_Z_WRONG'] | catalogue['FLAG_S_WRONG'])
    bright = ~sky & (np.asarray(catalogue['SNR']) > 3)
    assert sky.sum() > 8 and bright.sum() > 10
    assert flagged[sky].mean() > .7 and flagged[bright].mean() < .5


def test_real_sky_is_left_out_unless_asked_for(data, tmp_path, real):
    paths, catalogue = real
    sky = np.array(words(catalogue['OBJTYPE'])) == 'SKY'
    assert main(['score', *map(str, paths), '-o', str(tmp_path/'c.fits')]) == 0
    assert words(read(tmp_path/'c.fits')['FILE']) == [p.name for p, s in zip(paths, sky) if not s]


def test_real_lamost(data, tmp_path):
    paths = sorted((data/'lamost').rglob('*.fits*'))
    assert main(['score', *map(str, paths), '-o', str(tmp_path/'c.parquet')]) == 0
    catalogue = Table.read(tmp_path/'c.parquet')
    answered = np.isfinite(catalogue['Z'])
    assert len(catalogue) == len(paths) and np.isnan(catalogue['DELTACHI2']).all()
    assert np.isfinite(catalogue['P_Z_WRONG'][answered]).all() and (catalogue['ZWARN'][~answered] & ZWARN_NODATA > 0).all()
    assert catalogue['FLAG_Z_WRONG'][answered].mean() < .4, 'a missing chi2 was taken for a bad one'


# What a file may lack

def test_without_errors_of_redshift(tmp_path, weights):
    paths = [write_sdss(tmp_path, k, answer=dict(Z_ERR=np.array([e], 'f4'))) for k, e in enumerate((0, -1, 1e-5, np.nan), 1)]
    (table,), failed = score_files(paths, weights, progress=False)
    assert not failed and np.isfinite(table['P_Z_WRONG']).all() and np.isfinite(table['P_S_WRONG']).all()
    assert (np.nan_to_num(table['ZERR']) >= 0).all()


def test_without_coefficients(tmp_path, weights):
    features = build_features(match_grid(read_sdss(write_sdss(tmp_path)), weights))
    assert list(features['metadata_names']) == METADATA['portable'] and np.isfinite(features['metadata']).all()
    with pytest.raises(ValueError, match='COEFF comes from redrock alone'): pick_columns(features['metadata'], features['metadata_names'], METADATA['full'])
    with pytest.raises(ValueError, match='second_look'): pick_columns(features['metadata'], features['metadata_names'], METADATA['portable'] + EVIDENCE)


def test_without_answer_or_without_pixels(tmp_path, weights):
    paths = [write_sdss(tmp_path, 1, without=['SPECOBJ']), write_sdss(tmp_path, 2), write_sdss(tmp_path, 3, coadd=dict(ivar=np.zeros(3800, 'f4')))]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        (table,), failed = score_files(paths, weights, progress=False)
    assert not failed and list(np.isnan(table['P_Z_WRONG'])) == [True, False, True] and not table['FLAG_Z_WRONG'][[0, 2]].any()
    assert table['ZWARN'][0] & ZWARN_NODATA and table['SPECTYPE_ALT'][0] == 'QSO' and np.isnan(table['Z_ALT'][0])  # the spectrum is smooth


@pytest.mark.parametrize('layout', [False, True])
def test_lamost_without_chi2(tmp_path, weights, layout):
    paths = [write_lamost(tmp_path, 701001 + k, table=layout, **cards) for k, cards in enumerate((dict(), dict(CLASS='Unknown', Z=-9999.)))]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        (table,), failed = score_files(paths, weights, progress=False)
    assert not failed and list(np.isfinite(table['P_Z_WRONG'])) == [True, False] and np.isnan(table['CHI2']).all()
    spectra = match_grid(read_targets(paths[:1])[0], weights)
    spectra.meta['CHI2'], spectra.meta['DELTACHI2'] = 1e4, 0.
    assert score_spectra(spectra, weights)['DELTACHI2'][0] == 0, 'a chi2 that is given is not replaced'


# Many files

def test_bad_files_among_good_ones(tmp_path, capsys):
    good = [write_sdss(tmp_path, k) for k in range(1, 6)]
    text, cut, image, gone = tmp_path/'spec-1-2-3.fits', tmp_path/'spec-cut.fits', tmp_path/'image.fits', tmp_path/'gone.fits'
    text.write_text('hello'); cut.write_bytes(good[0].read_bytes()[:9000]); fits.writeto(image, np.ones((3, 3)))
    comb = write_sdss(tmp_path, 9, coadd=dict(loglam=np.linspace(3.58, 3.9, 3800)))
    assert main(['score', *map(str, [good[0], text, *good[1:3], comb, cut, good[3], image, gone, good[4]]), '-o', str(tmp_path/'c.fits')]) == 1
    said = capsys.readouterr()
    assert words(read(tmp_path/'c.fits')['FILE']) == [p.name for p in good]
    assert '5 of 10 files failed, 5 done' in said.err and 'Traceback' not in said.err
    for path in (text, cut, image, gone, comb): assert sum(line.count(f'{path}:') for line in said.err.splitlines()) == 1, path.name


def test_one_by_one_is_the_same(tmp_path, weights):
    paths = [write_sdss(tmp_path, k) for k in range(1, 5)]
    (together,), _ = score_files(paths, weights, progress=False)
    for row, path in zip(together, paths):
        alone = score_file(path, weights)
        assert len(alone) == 1 and abs(alone['P_Z_WRONG'][0] - row['P_Z_WRONG']) < 1e-3 and alone['FILE'][0] == row['FILE']


def test_one_that_spoils_a_batch_fails_alone(tmp_path, weights, monkeypatch):
    import skyseek.pipeline.score
    paths, score = [write_sdss(tmp_path, k) for k in range(1, 4)], score_spectra
    def touchy(spectra, *args, **options):
        if 'spec-0266-51602-0002.fits' in list(spectra.meta['FILE']): raise RuntimeError('no way')
        return score(spectra, *args, **options)
    monkeypatch.setattr(skyseek.pipeline.score, 'score_spectra', touchy)
    tables, failed = score_files(paths, weights, progress=False)
    assert [m.split(';')[0] for m in failed.values()] == [f'{paths[1]}: RuntimeError: no way'] and 'a fault of skyseek' in failed[str(paths[1])]
    assert [t['FILE'][0] for t in tables] == [paths[0].name, paths[2].name]


def test_surveys_in_one_command_stay_in_order(tmp_path, weights):
    coadd, lamost, sdss = write_pair(tmp_path, 3), write_lamost(tmp_path), [write_sdss(tmp_path, k) for k in (1, 2)]
    paths = [sdss[0], lamost, coadd, sdss[1]]
    assert [[p.name for p in some] for some in group_files(paths)] == [[p.name] for p in paths]
    tables, failed = score_files(paths, weights, progress=False)
    catalogue = make_catalogue(tables, weights)
    assert not failed and list(catalogue['FILE']) == [sdss[0].name, lamost.name, *[coadd.name]*3, sdss[1].name]
    assert np.isfinite(catalogue['P_Z_WRONG']).all()


def test_nothing_but_sky(tmp_path):
    paths = [write_sdss(tmp_path, k, **SKY) for k in (1, 2)]
    done = skyseek('score', *paths, '-o', tmp_path/'c.fits')
    assert done.returncode == 1 and not (tmp_path/'c.fits').exists()
    assert '2 of 2 spectra are of sky fibres' in done.stderr and '--keep-sky' in done.stderr and 'no target to score' in done.stderr
    assert skyseek('score', *paths, '-o', tmp_path/'c.fits', '--keep-sky').returncode == 0
    assert words(read(tmp_path/'c.fits')['OBJTYPE']) == ['SKY', 'SKY']


def test_answers_of_a_redrock_file(tmp_path, weights):
    path = write_sdss(tmp_path)
    answers = redrock_table(read_sdss(path).meta['TARGETID']); answers['Z'] = .77
    redrock = write_parts(tmp_path/'redrock-spec.fits', {'REDSHIFTS': answers})
    assert abs(score_file(path, weights)['Z'][0] - .1) < 1e-6 and score_file(path, weights, redrock=redrock)['Z'][0] == .77


def test_information_is_counted_once(tmp_path, weights):
    spectra = read_sdss([write_sdss(tmp_path, k) for k in (1, 2)])
    matched, covered = match_grid(spectra, weights), (spectra.wave > 3602) & (spectra.wave < 9822)
    assert np.allclose(matched.ivar.sum(1), spectra.ivar[:, covered].sum(1), rtol=.005)
    assert (resample(spectra, wave_desi()).ivar.sum(1) > 1.8*matched.ivar.sum(1)).all()
    with pytest.raises(ValueError, match='match_grid'): score_spectra(spectra, weights)
