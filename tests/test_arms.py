"""The arms of DESI's spectrographs apart: read from a coadd row by row, and shown in the explorer."""
import gzip

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from surveys import coadd_parts, write_coadd, write_lamost, write_parts, write_sdss

from skyseek.data.desi import extract_file, read_coadd
from skyseek.data.hdus import ReadError
from skyseek.data.one_target import MergedOnly, read_arms, read_target
from skyseek.data.spectra import merge_arms
from skyseek.pipeline.catalogue_spectra import SpectrumNotFound
from skyseek.pipeline.explorer_table import open_catalogue

FIRST = 39628000000000000


def test_arms_are_those_of_the_file_and_add_up_to_the_merged_spectrum(tmp_path):
    parts, path = coadd_parts(), write_coadd(tmp_path/'coadd-main-dark-9999.fits')
    arms = read_arms(path, FIRST + 2)
    assert list(arms) == ['B', 'R', 'Z']
    for arm, one in arms.items():
        masked = parts[f'{arm}_MASK'][2] != 0
        assert np.allclose(one.wave, parts[f'{arm}_WAVELENGTH']) and not one.ivar[0][masked].any()
        assert np.array_equal(one.flux[0][~masked], parts[f'{arm}_FLUX'][2][~masked])
        assert np.array_equal(one.ivar[0][~masked], parts[f'{arm}_IVAR'][2][~masked])
    both, merged = merge_arms(arms), read_target(path, FIRST + 2)
    assert np.array_equal(both.flux, merged.flux) and np.array_equal(both.ivar, merged.ivar)


def test_only_the_row_is_read(tmp_path, monkeypatch):
    path, seen = write_coadd(tmp_path/'coadd-main-dark-9999.fits', 60), []
    plain = read_coadd
    monkeypatch.setattr('skyseek.data.one_target.read_coadd', lambda path, *more: (seen.append(path.stat().st_size), plain(path, *more))[1])
    read_arms(path, FIRST + 7)
    assert len(seen) == 3 and max(seen) < path.stat().st_size/10


def test_compressed_coadds_and_exposures(tmp_path):
    path = write_coadd(tmp_path/'coadd-main-dark-9999.fits')
    (tmp_path/'coadd-main-dark-9999.fits.gz').write_bytes(gzip.compress(path.read_bytes(), 1))
    assert np.array_equal(read_arms(tmp_path/'coadd-main-dark-9999.fits.gz', FIRST)['Z'].flux, read_arms(path, FIRST)['Z'].flux)
    parts = coadd_parts(6)
    parts['FIBERMAP'] = Table({'TARGETID': FIRST + np.repeat([0, 1], 3), 'FIBERSTATUS': np.zeros(6, 'i4'), 'OBJTYPE': ['TGT']*6})
    del parts['SCORES']
    arm = read_arms(write_parts(tmp_path/'spectra-main-dark-9999.fits', parts), FIRST + 1)['R']
    assert np.allclose(arm.ivar, 12) and np.allclose(arm.flux[0], parts['R_FLUX'][3:].mean(0), atol=1e-5)


def test_missing_arm_dark_arm_and_rows_that_are_not_there(tmp_path):
    two = write_coadd(tmp_path/'coadd-two.fits', without=[f'Z_{p}' for p in ('WAVELENGTH', 'FLUX', 'IVAR', 'MASK')])
    assert list(read_arms(two, FIRST)) == ['B', 'R']
    dark = write_coadd(tmp_path/'coadd-dark.fits', R_IVAR=np.zeros((4, 2326), 'f4'))
    assert not read_arms(dark, FIRST)['R'].ivar.any()
    bad = dict(without=('B_IVAR',)), dict(R_IVAR=np.ones((5, 99), 'f4')), dict(B_WAVELENGTH=3600*1.0001**np.arange(2751))
    for k, (case, words) in enumerate(zip(bad, ('without B_IVAR', 'do not fit together', 'not on DESI'))):
        with pytest.raises(ReadError, match=words): read_arms(write_coadd(tmp_path/f'coadd-{k}.fits', **case), FIRST)
    with pytest.raises(ReadError, match='no TARGETID 7 among its 4 targets'): read_arms(two, 7)
    with pytest.raises(ReadError, match='no such file'): read_arms(tmp_path/'none.fits', 7)
    (tmp_path/'cut.fits').write_bytes(two.read_bytes()[:30_000])
    with pytest.raises(ReadError): read_arms(tmp_path/'cut.fits', FIRST)


def test_merged_files_say_so(tmp_path):
    coadd = write_coadd(tmp_path/'coadd-main-dark-9999.fits')
    with pytest.warns(UserWarning, match='no redrock file'): compact = extract_file(coadd, tmp_path/'spectra.fits')
    with pytest.raises(MergedOnly, match='a compact file.*give coadd-main-dark-9999.fits') as e: read_arms(compact, FIRST)
    assert e.value.coadd == coadd.name
    for path, words in ((write_sdss(tmp_path), 'of SDSS'), (write_lamost(tmp_path), 'of LAMOST')):
        with pytest.raises(MergedOnly, match=f'merged spectra \\({words}\\)'): read_arms(path, 1)
    with fits.open(coadd) as hdus: merged = dict(BRZ_WAVELENGTH=read_coadd(coadd).wave, BRZ_FLUX=np.ones((4, 7781), 'f4'), BRZ_IVAR=np.ones((4, 7781), 'f4'))
    brz = write_parts(tmp_path/'coadd-brz.fits', dict(FIBERMAP=coadd_parts()['FIBERMAP']) | merged)
    with pytest.raises(ReadError, match='added up by coadd_cameras'): read_arms(brz, FIRST)


def test_the_page_shows_the_arms_of_the_coadd_or_why_not(tmp_path):
    pytest.importorskip('bokeh')
    from skyseek.pipeline.explorer_actions import ExplorerPage
    from skyseek.pipeline.labels import LabelStore
    (tmp_path/'raw').mkdir()
    coadd = write_coadd(tmp_path/'raw'/'coadd-main-dark-9999.fits', 3)
    with pytest.warns(UserWarning, match='no redrock file'): compact = extract_file(coadd, tmp_path/'spectra-main-dark-9999.fits')
    Table(dict(TARGETID=FIRST + np.arange(3), Z=[.1, .2, .3], SPECTYPE=['GALAXY']*3, FILE=[compact.name]*2 + ['none.fits'])).write(tmp_path/'catalogue.fits')
    cat = open_catalogue(tmp_path/'catalogue.fits', [tmp_path/'raw', tmp_path])
    page = ExplorerPage(cat, LabelStore(cat, 'me'))
    merged = page.panel.figures.spectrum.select(name='merged')
    page.press('a')
    assert page.panel.apart.active and 'arms apart' in page.panel.arm_words.text and not any(d.visible for d in merged)
    assert len(page.panel.lines.sources['raw', 'R'].data['wave']) == 2326
    page.step(1)
    assert not any(d.visible for d in merged)
    page.step(1)  # a row without spectrum
    assert not page.panel.arm_words.visible and not page.panel.lines.arms
    page.step(-1)
    page.press('a')
    assert not page.panel.apart.active and all(d.visible for d in merged) and not page.panel.arm_words.visible
    alone = open_catalogue(tmp_path/'catalogue.fits', compact)
    page = ExplorerPage(alone, LabelStore(alone, 'me'))
    coadd.unlink()
    page.press('a')
    assert page.panel.arm_words.text.startswith('merged: ') and 'compact file' in page.panel.arm_words.text
    assert all(d.visible for d in page.panel.figures.spectrum.select(name='merged'))
    with pytest.raises(SpectrumNotFound, match='compact file'): alone.read_arms(0)


def test_real_coadd(data):
    path = data/'desi'/'coadd_redrock'/'coadd-special-dark-27247.fits'
    target = int(read_coadd(path).meta['TARGETID'][0])
    arms, merged = read_arms(path, target), read_target(path, target)
    assert list(arms) == ['B', 'R', 'Z'] and np.array_equal(merge_arms(arms).ivar, merged.ivar)
    b, r = arms['B'], arms['R']
    shared = np.isin(np.round(b.wave, 2), np.round(r.wave, 2))
    assert shared.sum() == 51 and b.ivar[0][shared].any() and r.ivar[0][:51].any()
