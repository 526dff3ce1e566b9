"""Spectra of SDSS and LAMOST: sound, spoilt, mixed up, and the real ones."""
import gzip
import warnings

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from surveys import sdss_parts, write_coadd, write_lamost, write_pair, write_parts, write_sdss

from skyseek.data.desi import extract_file, find_redrock
from skyseek.data.files import read_spectra, write_spectra
from skyseek.data.hdus import ReadError
from skyseek.data.lamost import read_lamost
from skyseek.data.read import read_any
from skyseek.data.sdss import read_sdss, sdss_targetid

SLOW_FIXTURES = {'sdss'}  # see conftest.py

READERS = read_sdss, read_lamost, read_any


def refused(paths, reader=read_sdss, match=None):
    "The message fits a line and ends with what to do."
    with pytest.raises(ReadError, match=match) as error: reader(paths)
    text = str(error.value)
    assert '\n' not in text and ';' in text and len(text) < 700
    return text


def told(paths, reader=read_sdss, **options):
    "What the reader returns and the warnings it gives; there must be at most one."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        result = reader(paths, **options)
    said = [w for w in said if not issubclass(w.category, ResourceWarning)]  # of files left open by astropy when it gave up on them
    assert len(said) <= 1, [str(w.message) for w in said]
    return result, str(said[0].message) if said else ''


# Sound files

def test_one_several_and_a_folder_are_the_same(tmp_path):
    (tmp_path/'lite'/'0266').mkdir(parents=True)
    paths = [write_sdss(tmp_path/'lite'/'0266', fibre) for fibre in (1, 2, 3)]
    several, folder = read_sdss(paths), read_sdss(tmp_path)
    assert np.array_equal(several.flux, folder.flux) and list(several.meta['TARGETID']) == list(folder.meta['TARGETID'])
    for i, path in enumerate(paths): assert np.array_equal(read_sdss(str(path)).flux[0], several.flux[i])
    assert list(folder.meta['TARGETID']) == [266_51602_0001, 266_51602_0002, 266_51602_0003]


def test_answer_of_the_pipeline(tmp_path):
    row = read_sdss(write_sdss(tmp_path)).meta[0]
    assert [row[c] for c in ('SPECTYPE', 'SUBTYPE', 'ZWARN', 'PLATE', 'MJD', 'FIBERID', 'OBJTYPE')] == ['GALAXY', '', 4, 266, 51602, 1, 'TGT']
    assert np.allclose([row[c] for c in ('Z', 'ZERR', 'CHI2', 'DELTACHI2', 'TARGET_RA')], [.1, 1e-5, 1.1*3800, 38, 10], rtol=1e-6)


def test_gzipped(tmp_path):
    path = write_sdss(tmp_path)
    (tmp_path/'zipped').mkdir()
    zipped = tmp_path/'zipped'/f'{path.name}.gz'
    zipped.write_bytes(gzip.compress(path.read_bytes(), 1))
    assert np.array_equal(read_sdss(zipped).flux, read_sdss(path).flux)
    zipped.write_bytes(zipped.read_bytes()[:5000])
    refused(zipped, match='not a complete FITS file')


def test_unnamed_hdus_and_upper_case_columns(tmp_path):
    path = write_sdss(tmp_path)
    expected = read_sdss(path)
    with fits.open(path) as hdus:
        for hdu in hdus[1:]: del hdu.header['EXTNAME']
        for name in hdus[1].columns.names: hdus[1].columns[name].name = name.upper()
        hdus.writeto(tmp_path/'spec-0266-51602-0009.fits')
    got = read_sdss(tmp_path/'spec-0266-51602-0009.fits')
    assert np.array_equal(got.flux, expected.flux) and np.array_equal(got.ivar, expected.ivar)


def test_grid_is_common_and_ends_are_ignored(tmp_path):
    spectra = read_sdss([write_sdss(tmp_path, 1, first=35500, n=1000), write_sdss(tmp_path, 2, first=36600, n=700)])
    assert np.allclose(np.log10(spectra.wave), 1e-4*np.arange(35500, 37300), atol=1e-9)
    assert list(spectra.good.sum(1)) == [1000, 700] and not spectra.good[1, :1100].any() and spectra.good[1, 1100:].all()


def test_bright_sky_is_ignored_with_two_neighbours(tmp_path):
    assert list(np.flatnonzero(~read_sdss(write_sdss(tmp_path)).good[0])) == list(range(2998, 3012))


@pytest.mark.parametrize('name', ['SOURCETYPE', 'OBJTYPE', 'TARGETTYPE'])
def test_sky_fibres_by_any_name(tmp_path, name):
    assert read_sdss(write_sdss(tmp_path, answer={name: ['SKY']})).meta['OBJTYPE'][0] == 'SKY'


def test_targetid_can_be_undone():
    rng = np.random.default_rng(0)
    plate, mjd, fibre = rng.integers(1, 20000, 1000), rng.integers(51000, 60000, 1000), rng.integers(1, 1001, 1000)
    ids = sdss_targetid(plate, mjd, fibre)
    assert ids.dtype == np.int64 and np.array_equal(ids//10**9, plate) and np.array_equal(ids//10**4 % 10**5, mjd) and np.array_equal(ids % 10**4, fibre)


@pytest.mark.parametrize('table', [False, True])
def test_lamost_padding_is_ignored(tmp_path, table):
    spectra = read_lamost(write_lamost(tmp_path, table=table))
    assert list(np.flatnonzero(~spectra.good[0])) == [*range(15), *range(3885, 3900)]
    assert list(spectra.meta['TARGETID', 'SPECTYPE', 'SUBTYPE'][0]) == [701001, 'STAR', 'G7'] and np.isclose(np.log10(spectra.wave[0]), 3.5682)


def test_lamost_pilot_has_no_wavelengths_in_its_third_row(tmp_path):
    path = write_lamost(tmp_path)
    expected = read_lamost(path)
    with fits.open(path, mode='update') as hdus: hdus[0].data[2] = hdus[0].data[0]/100 - 1
    assert np.array_equal(read_lamost(path).wave, expected.wave)


def test_lamost_without_answer(tmp_path):
    spectra, said = told(write_lamost(tmp_path, CLASS='Unknown', SUBCLASS='Non', Z=-9999., Z_ERR=-9999.), read_lamost)
    row = spectra.meta[0]
    assert np.isnan(row['Z']) and row['ZWARN'] == 512 and row['SPECTYPE'] == row['SUBTYPE'] == '' and row['ZERR'] == 0 and 'no answer' in said


# Spoilt files

@pytest.mark.parametrize('reader', READERS)
@pytest.mark.parametrize('content', [b'', b'a note, not a spectrum\n'*500, bytes(28800), b'SIMPLE  =                    T'], ids=['empty', 'text', 'zeros', 'one card'])
def test_not_fits(tmp_path, reader, content):
    path = tmp_path/'spec-0266-51602-0001.fits'
    path.write_bytes(content)
    refused(path, reader)


@pytest.mark.parametrize('reader', READERS)
def test_nothing_there(tmp_path, reader):
    refused(tmp_path/'spec-0001-50000-0001.fits', reader, 'no such file')
    refused(tmp_path, reader, 'no .fits file in this folder')
    refused([], reader, 'the list is empty')


@pytest.mark.parametrize('share', [.05, .3, .6, .95])
def test_truncated_file_does_not_cost_the_others(tmp_path, share):
    paths = [write_sdss(tmp_path, fibre) for fibre in (1, 2, 3)]
    whole = paths[1].read_bytes()
    paths[1].write_bytes(whole[:int(share*len(whole))//2880*2880 + 100])
    refused(paths[1], match='not a complete FITS file')
    spectra, said = told(tmp_path)
    assert list(spectra.meta['FIBERID']) == [1, 3] and '1 of 3 files' in said and paths[1].name in said
    with pytest.raises(ReadError, match=paths[1].name): read_sdss(tmp_path, strict=True)
    for path in paths: path.write_bytes(b'')
    assert 'none of the 3 files' in refused(tmp_path)


def test_many_broken_files_make_one_short_warning(tmp_path):
    write_sdss(tmp_path)
    for i in range(100): (tmp_path/f'spec-0266-51602-{i + 100:04d}.fits').write_bytes(b'')
    spectra, said = told(tmp_path)
    assert len(spectra) == 1 and '100 of 101 files' in said and said.endswith('…') and len(said) < 20*len(str(tmp_path)) + 3000


def test_missing_spectrum(tmp_path): refused(write_sdss(tmp_path, without=['COADD']), match='no table with flux, loglam and ivar')


def test_missing_answer(tmp_path):
    spectra, said = told(write_sdss(tmp_path, 7, without=['SPECOBJ']))
    row = spectra.meta[0]
    assert np.isnan(row['Z']) and row['ZWARN'] == 512 and row['SPECTYPE'] == '' and 'no answer' in said
    assert row['TARGETID'] == 266_51602_0007  # from the name of the file


def test_nameless_files_get_negative_numbers(tmp_path):
    for i in (1, 2): write_sdss(tmp_path, i, without=['SPECOBJ']).rename(tmp_path/f'object{i}.fits')
    assert list(told(tmp_path)[0].meta['TARGETID']) == [-1, -2]


def test_all_masked(tmp_path):
    spectra, said = told([write_sdss(tmp_path, 1, coadd={'ivar': np.zeros(3800)}), write_sdss(tmp_path, 2)])
    assert not spectra.good[0].any() and spectra.good[1].any() and '1 of 2 spectra have no valid pixel' in said


@pytest.mark.parametrize('name', ['flux', 'ivar'])
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_not_finite(tmp_path, name, value):
    values = np.where(np.arange(3800) % 100 == 7, value, 25)
    spectra = read_sdss(write_sdss(tmp_path, coadd={name: values}))
    assert not spectra.good[0, 7::100].any() and np.isfinite(spectra.flux).all() and spectra.good[0, :7].all()


def test_negative_ivar(tmp_path): assert not told(write_sdss(tmp_path, coadd={'ivar': np.full(3800, -1.)}))[0].good.any()


def test_wavelengths_in_any_order(tmp_path):
    expected, order = read_sdss(write_sdss(tmp_path)), np.random.default_rng(1).permutation(3800)
    parts = sdss_parts(seed=1)
    parts['COADD'] = parts['COADD'][order]
    spectra = read_sdss(write_parts(tmp_path/'spec-0266-51602-0001.fits', parts))
    assert all(np.array_equal(getattr(spectra, name), getattr(expected, name)) for name in ('wave', 'flux', 'ivar'))


@pytest.mark.parametrize('loglam, match', [(np.full(3800, 3.6), 'the wavelength of another'), (3.58 + 1.3e-4*np.arange(3800), 'not on the survey'),
                                           (np.full(3800, np.nan), 'not on the survey'), (3.58e5 + np.arange(3800.), 'not on the survey'), (np.zeros(3800), 'not on the survey')],
                         ids=['repeated', 'other step', 'nan', 'wavelength itself', 'zero'])
def test_wrong_wavelengths(tmp_path, loglam, match): refused(write_sdss(tmp_path, coadd={'loglam': loglam}), match=match)


def test_air_is_refused(tmp_path):
    refused(write_sdss(tmp_path, header={'VACUUM': False}), match='in air')
    refused(write_lamost(tmp_path, VACUUM=False), read_lamost, 'in air')


def test_same_file_twice(tmp_path):
    path = write_sdss(tmp_path)
    spectra, said = told([path, path])
    assert len(spectra) == 2 and '1 spectra have the TARGETID of another' in said


@pytest.mark.parametrize('column', ['PLUG_RA', 'Z_ERR', 'RCHI2', 'SUBCLASS', 'SOURCETYPE', 'SN_MEDIAN_ALL', 'PLATE'])
def test_missing_columns_are_left_empty(tmp_path, column):
    parts = sdss_parts()
    del parts['SPECOBJ'][column]
    assert read_sdss(write_parts(tmp_path/'spec-0266-51602-0001.fits', parts)).meta['TARGETID'][0] == 266_51602_0001


# What is it?

def test_files_in_each_others_place(tmp_path):
    coadd, sdss, lamost = write_pair(tmp_path), write_sdss(tmp_path), write_lamost(tmp_path)
    compact = extract_file(coadd, tmp_path/'compact.fits')
    assert 'this is a LAMOST spectrum' in refused(lamost)
    assert 'this is an SDSS spectrum' in refused(sdss, read_lamost)
    assert 'this is a coadd' in refused(coadd) and 'this is a redrock file' in refused(find_redrock(coadd), read_lamost)
    assert 'this is a redrock file' in refused(find_redrock(coadd), read_any)
    for path, length in ((coadd, 7781), (compact, 7781), (sdss, 3800), (lamost, 3900)): assert read_any(path).flux.shape[1] == length


def test_any_mixes_what_fits_together(tmp_path):
    coadd, sdss, lamost = write_pair(tmp_path), write_sdss(tmp_path), write_lamost(tmp_path)
    compact = extract_file(coadd, tmp_path/'compact.fits')
    mixed = read_any([sdss, lamost])
    assert list(mixed.meta['TARGETID']) == [266_51602_0001, 701001] and list(mixed.good.sum(1)) == [3786, 3870]
    together = told([coadd, compact], read_any)[0]
    assert len(together) == 8 and np.allclose(together.meta['Z'][:4], np.arange(4)/10)
    refused([coadd, sdss], read_any, 'different wavelength grids')


def test_any_passes_over_what_holds_no_spectra(tmp_path):
    write_pair(tmp_path)
    spectra, said = told(tmp_path, read_any)
    assert len(spectra) == 4 and '1 of 2 files' in said and 'redrock' in said
    with pytest.raises(ReadError): read_any(tmp_path, strict=True)


def test_coadd_without_redrock_is_read(tmp_path): assert len(read_any(write_coadd(tmp_path/'coadd-main-dark-1.fits'))) == 4


def test_compact_file_keeps_spectra_of_sdss(tmp_path):
    spectra = read_sdss([write_sdss(tmp_path, i) for i in (1, 2)])
    kept = read_spectra(write_spectra(spectra, tmp_path/'spectra.fits'))
    assert np.allclose(kept.flux[spectra.good], spectra.flux[spectra.good], atol=.01) and list(kept.meta['SPECTYPE']) == ['GALAXY', 'GALAXY']


# The real ones

@pytest.fixture(scope='module')
def sdss(data): return told(data/'sdss')


def test_real_sdss(data, sdss):
    spectra, said = sdss
    catalogue = Table.read(data/'sdss'/'catalogue.csv')
    assert len(spectra) == len(catalogue) == 304 and said == '1 of 304 spectra have no valid pixel'
    for ours, theirs in (('FILE', 'file'), ('SPECTYPE', 'CLASS'), ('ZWARN', 'ZWARNING'), ('PLATE', 'PLATE'), ('FIBERID', 'FIBERID')):
        assert list(spectra.meta[ours]) == list(catalogue[theirs])
    assert np.allclose(spectra.meta['Z'], catalogue['Z'], atol=1e-5) and len(np.unique(spectra.meta['TARGETID'])) == 304
    assert (spectra.meta['OBJTYPE'] == 'SKY').sum() == 76


def test_real_sdss_cut(data, tmp_path):
    names = sorted((data/'sdss').glob('gsiemon__*'))[:3]
    for p in names: (tmp_path/p.name).write_bytes(p.read_bytes())
    (tmp_path/names[1].name).write_bytes(names[1].read_bytes()[:50000])
    spectra, said = told(tmp_path)
    assert list(spectra.meta['FILE']) == [names[0].name, names[2].name] and '1 of 3 files' in said


def test_real_lamost(data):
    spectra, said = told(data/'lamost', read_lamost)
    catalogue = Table.read(data/'lamost'/'lamost_catalog.csv')
    assert list(spectra.meta['TARGETID']) == list(catalogue['OBSID']) and '3 of 30 have no answer' in said
    known = catalogue['Z'] > -1
    assert np.allclose(spectra.meta['Z'][known], catalogue['Z'][known], atol=1e-7) and np.isnan(spectra.meta['Z'][~known]).all()
    assert not (spectra.flux[spectra.good] == 0).any()


def test_real_files_of_all_kinds(data):
    found = [read_any(p) for p in (sorted((data/'sdss').glob('igmhub*'))[0], sorted((data/'lamost'/'AstroSpectro').glob('*.gz'))[0], sorted((data/'desi'/'coadd_redrock').glob('coadd-*.fits'))[0])]
    assert [len(s) for s in found] == [1, 1, 1] and 'Z' in found[2].meta.colnames
