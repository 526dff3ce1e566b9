"""DESI's own files: reading, merging, the compact file."""
import numpy as np
import pytest
from astropy.io import fits

from skyseek.data.desi import extract, extract_file, find_redrock, is_target, read_coadd
from skyseek.data.files import read_spectra
from skyseek.data.redshift_tables import read_redrock, read_truth
from skyseek.data.spectra import Spectra, merge_arms


def real_coadds(data): return sorted((data/'desi').glob('coadd_*/coadd-*.fits')) + sorted((data/'redrock_bench/validation').glob('coadd-*.fits'))


@pytest.mark.filterwarnings('ignore')
def test_merge_is_that_of_plain_numpy(data):
    for path in real_coadds(data):
        with fits.open(path) as h:
            mask = lambda arm: h[f'{arm}_MASK'].data == 0 if f'{arm}_MASK' in h else 1
            arms = [Spectra(h[f'{arm}_WAVELENGTH'].data, h[f'{arm}_FLUX'].data, h[f'{arm}_IVAR'].data*mask(arm)) for arm in 'BRZ']
        ours, merged = read_coadd(path), merge_arms(arms)
        assert np.array_equal(ours.ivar, merged.ivar)
        assert (np.abs(ours.flux - merged.flux)*np.sqrt(ours.ivar)).max() < 1e-3
        assert all(ours.meta[name].dtype.isnative for name in ours.meta.colnames)


@pytest.mark.filterwarnings('ignore')
def test_merge_is_that_of_desispec(data, monkeypatch):
    monkeypatch.setenv('DESI_LOGLEVEL', 'error')
    coaddition, desi_io = pytest.importorskip('desispec.coaddition'), pytest.importorskip('desispec.io')
    for path in real_coadds(data):
        theirs = coaddition.coadd_cameras(desi_io.read_spectra(str(path), skip_hdus=['RESOLUTION'])) if 'unlabelled' not in str(path) else None
        if theirs is None: continue  # without FIBERMAP desispec cannot read it
        ours, flux, ivar = read_coadd(path), theirs.flux['brz'], theirs.ivar['brz']
        good = ivar > 0
        assert np.array_equal(ours.good, good) and np.allclose(ours.wave, theirs.wave['brz'], rtol=0, atol=1e-6)
        assert np.abs(ours.ivar[good]/ivar[good] - 1).max() < 1e-6
        assert (np.abs(ours.flux - flux)[good]*np.sqrt(ivar[good])).max() < 1e-3


def test_real_pairs(data):
    for name, z in (('special-dark-27247', 0.00727), ('4-80613-thru20210324', 0.36874)):
        spectra = extract(data/f'desi/coadd_redrock/coadd-{name}.fits')
        assert len(spectra) == 1 and spectra.meta['Z'][0] == pytest.approx(z, abs=1e-5) and spectra.meta['SPECTYPE'][0] == 'GALAXY'
        assert spectra.meta['COEFF'].shape == (1, 10) and spectra.good.mean() > .99
    assert len(read_redrock(data/'desi/coadd_redrock/redrock-test.fits')) == 3


def test_unlabelled_coadd(data, tmp_path):
    path = data/'desi/coadd_unlabelled/coadd-tile80605-25fibres.fits'
    with pytest.warns(UserWarning, match='no TARGETIDs.*1 of 25 spectra have no valid pixel'): spectra = read_coadd(path)
    assert len(spectra) == 25 and find_redrock(path) is None
    with pytest.warns(UserWarning, match='no redrock file'): compact = extract_file(path, tmp_path/'compact.fits')
    assert np.array_equal(read_spectra(compact).good, spectra.good)


@pytest.mark.parametrize('file', ['2002', '2010', '2018'])
def test_compact_file_on_the_benchmark(data, tmp_path, file):
    "At most 16 kB a spectrum; flux off by less than 1 % of σ (rms) in every spectrum and pixel class, ivar by 1.6 %."
    path = data/f'redrock_bench/validation/coadd-sim-dark-{file}.fits'
    spectra, compact = extract(path), extract_file(path, tmp_path)
    assert compact.stat().st_size <= 16_000*len(spectra)
    back, good = read_spectra(compact), spectra.good
    assert np.array_equal(back.good, good) and back.meta.colnames == spectra.meta.colnames
    assert all(np.array_equal(back.meta[c], spectra.meta[c], equal_nan=back.meta[c].dtype.kind == 'f') for c in back.meta.colnames)
    noise = np.where(good, (back.flux - spectra.flux)*np.sqrt(spectra.ivar), np.nan)
    lit = good.any(1)
    assert np.nanstd(noise[lit], axis=1).max() < .01 and np.nanmax(np.abs(noise)) < .01*np.sqrt(3)*1.01
    seen = good[lit].sum(0) > 100
    assert np.nanstd(noise[lit][:, seen], axis=0).max() < .0115  # a hundred or two spectra: 1 % and its scatter
    assert np.abs(back.ivar[good]/spectra.ivar[good] - 1).max() <= 2**-6


def test_compact_file_of_real_coadds(data, tmp_path):
    for path in sorted((data/'desi/coadd_redrock').glob('coadd-*.fits')):
        spectra, back = extract(path), read_spectra(extract_file(path, tmp_path))
        assert np.array_equal(back.good, spectra.good)
        assert (np.abs(back.flux - spectra.flux)*np.sqrt(spectra.ivar)).max() < .01*np.sqrt(3)*1.01


def test_fitsio_reads_the_compact_file(data, tmp_path):
    fitsio = pytest.importorskip('fitsio')
    compact = extract_file(data/'redrock_bench/validation/coadd-sim-dark-2002.fits', tmp_path)
    back = read_spectra(compact)
    for name, values in (('FLUX', back.flux), ('IVAR', back.ivar)): assert np.array_equal(fitsio.read(compact, name), values)


def test_simulated_truth(data):
    files = sorted((data/'redrock_bench/validation').glob('truth-*.fits'))
    truth = read_truth(files)
    assert len(truth) == 600 and set(truth['TRUE_SPECTYPE']) == {'GALAXY', 'QSO', 'STAR', 'SKY'}
    spectra = read_coadd(str(files[0]).replace('truth-', 'coadd-'))
    assert np.array_equal(is_target(spectra), truth['TRUE_SPECTYPE'][:200] != 'SKY')
