"""The chi² scan on whole files, on bad input, and against template files in redrock's format."""
import os

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from skyseek.desi import read_coadd, read_redrock
from skyseek.redshift import Basis, default_bases, read_bases, redshift_file, scan_redshift
from skyseek.simulate import simulate_survey


@pytest.fixture(scope='module')
def coadd(tmp_path_factory): return simulate_survey(tmp_path_factory.mktemp('survey'), n=12, seed=4)


@pytest.fixture(scope='module')
def galaxy(): return default_bases()[:1]


def test_file_is_row_matched_and_redrock_like(coadd, galaxy):
    path = redshift_file(coadd, coadd.with_name('redrock.fits'), galaxy)
    table = read_redrock(path)
    assert (table['TARGETID'] == read_coadd(coadd).meta['TARGETID']).all()
    assert table['COEFF'].shape == (12, 10) and table['ZWARN'].dtype.kind == 'i'
    with fits.open(path) as hdus:
        assert hdus[0].header['TEMNAM00'] == 'GALAXY' and hdus[0].header['RRVER'].startswith('skyseek')
        assert (hdus['FIBERMAP'].data['TARGETID'] == hdus['REDSHIFTS'].data['TARGETID']).all()


def test_whole_file_is_kept_and_broken_or_stale_one_redone(coadd, galaxy):
    path = coadd.with_name('kept.fits')
    path.write_text('half a file')
    assert len(read_redrock(redshift_file(coadd, path, galaxy))) == 12
    made = path.stat().st_mtime_ns
    assert redshift_file(coadd, path, galaxy).stat().st_mtime_ns == made
    os.utime(coadd)
    assert redshift_file(coadd, path, galaxy).stat().st_mtime_ns > made
    made = path.stat().st_mtime_ns
    assert redshift_file(coadd, path, galaxy, overwrite=True).stat().st_mtime_ns > made


def test_bad_coadd_leaves_nothing_behind(tmp_path, galaxy):
    bad = tmp_path/'coadd-bad.fits'
    bad.write_text('no FITS file')
    with pytest.raises(ValueError, match='coadd-bad.fits'): redshift_file(bad, tmp_path/'redrock-bad.fits', galaxy)
    assert [p.name for p in tmp_path.iterdir()] == ['coadd-bad.fits']


def test_order_of_spectra_does_not_matter(coadd, galaxy):
    spectra, order = read_coadd(coadd), np.random.default_rng(0).permutation(12)
    straight, shuffled = scan_redshift(spectra, galaxy).table, scan_redshift(spectra[order], galaxy).table
    for name in ('Z', 'CHI2', 'DELTACHI2'): np.testing.assert_allclose(shuffled[name], straight[name][order], rtol=1e-6, atol=1e-6)


def test_all_masked_spectra_are_flagged(coadd, galaxy):
    spectra = read_coadd(coadd)[:3]
    table = scan_redshift(spectra.replace(ivar=np.zeros_like(spectra.ivar)), galaxy).table
    assert (table['ZWARN'] & (1 << 9) > 0).all() and (table['Z'] == 0).all() and np.isfinite(table['COEFF']).all()


def test_short_template_is_compared_on_its_own_pixels(coadd):
    spectra, wide = read_coadd(coadd)[:4], default_bases()[0]
    keep = (wide.wave > 3400) & (wide.wave < 7000)
    fit = scan_redshift(spectra, [Basis(wide.wave[keep], wide.flux[:3, keep], 'GALAXY', zmin=0., zmax=.3)])
    assert (fit.table['NPIXELS'] < 7000).all() and np.isfinite(fit.table['CHI2']).all()


@pytest.mark.parametrize('loglam', [0, 1])
def test_template_file_with_either_wavelength_scale(tmp_path, loglam):
    header = fits.Header(dict(CRVAL1=3.5 if loglam else 3000., CDELT1=1e-4 if loglam else .5, LOGLAM=loglam, RRTYPE='STAR', RRSUBTYP='A', VERSION='0.1'))
    fits.PrimaryHDU(np.ones((2, 100)), header).writeto(tmp_path/'rrtemplate-STAR-A-v0.1.fits')
    basis, = read_bases(tmp_path)
    assert basis.name == 'STAR:::A' and basis.zmax == .002 and basis.version == '0.1'
    assert basis.wave[0] == pytest.approx(10**3.5 if loglam else 3000) and basis.wave[1] == pytest.approx(10**3.5001 if loglam else 3000.5)


def test_not_a_template_file_is_named(tmp_path):
    Table({'a': [1]}).write(tmp_path/'rrtemplate-x.fits')
    with pytest.raises(ValueError, match='rrtemplate-x.fits'): read_bases(tmp_path)
