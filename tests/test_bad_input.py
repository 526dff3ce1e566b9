"""Files that are cut, mixed up or spoilt: one clear line each, and nothing half-written."""
import errno
import gzip
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from surveys import coadd_parts, redrock_table, write_coadd, write_pair, write_parts

from skyseek.data.desi import (
    extract, extract_file, find_redrock, is_good_fibre, is_target, join_redrock, read_coadd, select_targets,
)
from skyseek.data.files import read_spectra, write_spectra
from skyseek.data.hdus import ReadError
from skyseek.data.redshift_tables import read_redrock, read_truth

READERS = read_coadd, read_redrock, read_spectra, read_truth


def one_line(error, path):
    "The message names the file, fits a line, and ends with what to do."
    text = str(error.value)
    assert str(path) in text and '\n' not in text and ';' in text and len(text) < 400
    return text


def refused(path, reader=read_coadd, match=None):
    with pytest.raises(ReadError, match=match) as error: reader(path)
    return one_line(error, path)


def told(path, reader=read_coadd):
    "What the reader returns and the warnings it gives; there must be at most one."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        result = reader(path)
    assert len(said) <= 1
    return result, str(said[0].message) if said else ''


# Not a FITS file, or not all of it

@pytest.mark.parametrize('reader', READERS)
@pytest.mark.parametrize('content', [b'', b'a note, not a spectrum\n'*500, bytes(28800), b'SIMPLE  =                    T'], ids=['empty', 'text', 'zeros', 'one card'])
def test_not_fits(tmp_path, reader, content):
    path = tmp_path/'coadd-main-dark-1.fits'
    path.write_bytes(content)
    refused(path, reader)


@pytest.mark.parametrize('reader', READERS)
def test_missing_file_or_folder(tmp_path, reader):
    refused(tmp_path/'coadd-none.fits', reader, 'no such file')
    refused(tmp_path, reader)


@pytest.mark.parametrize('share', np.linspace(.02, .99, 12).round(2))
def test_truncated_coadd(tmp_path, share):
    whole = write_coadd(tmp_path/'whole.fits').read_bytes()
    path = tmp_path/'coadd-cut.fits'
    path.write_bytes(whole[:int(share*len(whole))//2880*2880 + 100])
    refused(path, match='not a complete FITS file')


@pytest.mark.parametrize('share', [.1, .5, .9])
def test_truncated_others(tmp_path, share):
    coadd = write_pair(tmp_path)
    compact = extract_file(coadd, tmp_path/'compact.fits')
    for path, reader in ((find_redrock(coadd), read_redrock), (compact, read_spectra)):
        whole = path.read_bytes()
        path.write_bytes(whole[:int(share*len(whole))])
        refused(path, reader)


def test_gzipped_coadd_whole_and_truncated(tmp_path):
    coadd = write_pair(tmp_path)
    zipped = tmp_path/'coadd-main-dark-9999.fits.gz'
    zipped.write_bytes(gzip.compress(coadd.read_bytes(), 1))
    assert np.array_equal(read_coadd(zipped).flux, read_coadd(coadd).flux) and find_redrock(zipped) == find_redrock(coadd)
    content = zipped.read_bytes()
    zipped.write_bytes(content[:len(content)//2])
    refused(zipped)


def test_damaged_tiles(tmp_path):
    path = extract_file(write_pair(tmp_path), tmp_path/'compact.fits')
    with fits.open(path, disable_image_compression=True) as hdus: start = hdus['IVAR'].fileinfo()['datLoc'] + 8*4 + 200
    content = bytearray(path.read_bytes())
    content[start:start + 4000] = bytes(4000)
    path.write_bytes(content)
    refused(path, read_spectra)


# The wrong file, or parts that are missing or do not fit

def test_files_in_each_others_place(tmp_path):
    coadd = write_pair(tmp_path)
    redrock, compact = find_redrock(coadd), extract_file(coadd, tmp_path/'compact.fits')
    assert 'this is a redrock file' in refused(redrock)
    assert 'this is a coadd' in refused(coadd, read_redrock)
    assert 'read_spectra' in refused(compact)
    assert 'no HDU' in refused(coadd, read_spectra)
    assert 'this is a coadd' in refused(coadd, read_truth)
    with pytest.raises(ReadError, match='this is a coadd'): extract(coadd, redrock_path=coadd)


@pytest.mark.parametrize('without, match', [(['B_IVAR'], 'B_FLUX without B_IVAR'), (['Z_WAVELENGTH'], 'Z_FLUX without Z_WAVELENGTH'),
                                            ([f'{a}_FLUX' for a in 'BRZ'], 'no B_FLUX, R_FLUX or Z_FLUX')])
def test_missing_hdu(tmp_path, without, match): refused(write_coadd(tmp_path/'coadd.fits', without=without), match=match)


def test_missing_arm_is_a_warning(tmp_path):
    spectra, said = told(write_coadd(tmp_path/'coadd.fits', without=[f'R_{part}' for part in ('WAVELENGTH', 'FLUX', 'IVAR', 'MASK')]))
    assert 'no arm R' in said and not spectra.good[:, 2800:4800].any() and spectra.good[:, 5100:].all()


def test_missing_mask_of_one_arm_is_a_warning(tmp_path):
    assert 'no mask for arm Z' in told(write_coadd(tmp_path/'coadd.fits', without=['Z_MASK']))[1]
    assert not told(write_coadd(tmp_path/'coadd.fits', without=['B_MASK', 'R_MASK', 'Z_MASK']))[1]


@pytest.mark.parametrize('changes', [dict(B_FLUX=np.ones((4, 99))), dict(R_IVAR=np.ones((3, 2326))), dict(Z_MASK=np.zeros((4, 2880), 'i4')), dict(B_WAVELENGTH=3600 + .8*np.arange(2750)),
                                     dict(FIBERMAP=coadd_parts(5)['FIBERMAP']), dict(B_FLUX=np.ones(2751)),
                                     {f'B_{p}': np.ones((3, 2751), 'i4') for p in ('FLUX', 'IVAR', 'MASK')}])
def test_lengths_that_differ(tmp_path, changes): refused(write_coadd(tmp_path/'coadd.fits', **changes))


@pytest.mark.parametrize('wave', [3600*1.0001**np.arange(2751), 3600.3 + .8*np.arange(2751), 3000 + .8*np.arange(2751), 9000 + .8*np.arange(2751),
                                  (3600 + .8*np.arange(2751))[::-1], np.full(2751, np.nan), np.zeros(2751)],
                         ids=['log', 'shifted', 'too blue', 'too red', 'backwards', 'nan', 'zero'])
def test_wrong_wavelengths(tmp_path, wave): refused(write_coadd(tmp_path/'coadd.fits', B_WAVELENGTH=wave), match="DESI's grid")


def test_no_rows(tmp_path):
    refused(write_coadd(tmp_path/'coadd.fits', n=0), match='no spectra')
    refused(write_parts(tmp_path/'redrock.fits', {'REDSHIFTS': redrock_table(np.arange(0))}), read_redrock, 'no rows')
    refused(write_parts(tmp_path/'few.fits', {'REDSHIFTS': Table({'TARGETID': [1], 'Z': [.1]})}), read_redrock, 'lacks the columns')


# Numbers that are no measurements

@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('part', ['FLUX', 'IVAR'])
def test_non_finite_pixels(tmp_path, value, part):
    image = coadd_parts()[f'Z_{part}']
    image[1, 1000:1010] = value
    spectra, said = told(write_coadd(tmp_path/'coadd.fits', **{f'Z_{part}': image}))
    assert '10 pixels with non-finite values' in said and 'negative' not in said
    assert not spectra.good[1, 5900:5910].any() and spectra.good[0, 5900:5910].all() and np.isfinite(spectra.flux).all()


def test_non_finite_under_mask_is_no_news(tmp_path):
    parts = coadd_parts()
    parts['Z_FLUX'][1, 1000:1010] = np.nan
    parts['Z_MASK'][1, 1000:1010] = 4
    assert told(write_parts(tmp_path/'coadd.fits', parts))[1] == ''


def test_negative_ivar(tmp_path):
    ivar = coadd_parts()['R_IVAR']
    ivar[2, 500:520] = -1
    spectra, said = told(write_coadd(tmp_path/'coadd.fits', R_IVAR=ivar))
    assert '20 pixels with negative' in said and (spectra.ivar[2, 3200:3220] == 0).all()


def test_all_zero_ivar(tmp_path):
    zero = {f'{arm}_IVAR': coadd_parts()[f'{arm}_IVAR']*0 for arm in 'BRZ'}
    spectra, said = told(write_coadd(tmp_path/'coadd.fits', **zero))
    assert '4 of 4 spectra have no valid pixel' in said and not spectra.good.any() and (spectra.snr == 0).all()
    compact = read_spectra(write_spectra(spectra, tmp_path/'compact.fits'))
    assert not compact.good.any() and not compact.flux.any()


def test_masked_pixels_get_no_weight(tmp_path):
    parts = coadd_parts()
    good = read_coadd(write_parts(tmp_path/'coadd.fits', parts)).good
    assert np.array_equal(good[:, :2700], parts['B_MASK'][:, :2700] == 0)
    assert good[:, 2700:2751].all()  # the red arm sees these too


# Targets

def test_rows_in_another_order(tmp_path):
    coadd = write_pair(tmp_path, n=6)
    redrock = read_redrock(find_redrock(coadd))
    joined = join_redrock(read_coadd(coadd), redrock[[3, 1, 5, 0, 2, 4]])
    assert np.array_equal(joined.meta['Z'], redrock['Z']) and joined.meta['COEFF'].shape == (6, 10)


def test_missing_targets(tmp_path):
    coadd = write_pair(tmp_path, n=6)
    redrock = read_redrock(find_redrock(coadd))
    joined, said = told(coadd, lambda p: join_redrock(read_coadd(p), redrock[:4]))
    assert '2 of 6 targets are missing' in said and len(joined) == 6
    assert np.isnan(joined.meta['Z'][4:]).all() and (joined.meta['ZWARN'][4:] == 512).all() and (joined.meta['SPECTYPE'][4:] == '').all()
    redrock['TARGETID'] += 100
    with pytest.raises(ReadError, match='none of its 6 TARGETIDs'): join_redrock(read_coadd(coadd), redrock)


def test_duplicate_targets(tmp_path):
    fibermap = coadd_parts(6)['FIBERMAP']
    fibermap['TARGETID'][[1, 3, 4, 5]] = 7, 7, -1, -1
    spectra, said = told(write_coadd(tmp_path/'coadd.fits', n=6, FIBERMAP=fibermap))
    assert '1 TARGETIDs occur more than once' in said
    redrock = redrock_table(fibermap['TARGETID'])
    joined, said = told(None, lambda _: join_redrock(spectra, redrock))
    assert '1 TARGETIDs occur more than once' in said and np.array_equal(joined.meta['Z'], redrock['Z'])


def test_no_targetids(tmp_path):
    spectra, said = told(write_coadd(tmp_path/'coadd.fits', without=['FIBERMAP', 'SCORES']))
    assert 'no TARGETIDs' in said and list(spectra.meta['TARGETID']) == [-1, -2, -3, -4]
    assert is_target(spectra).all() and is_good_fibre(spectra).all()
    with pytest.raises(ReadError, match='none of its'): join_redrock(spectra, redrock_table(np.arange(4)))


def test_sky_and_broken_fibres(tmp_path):
    fibermap = coadd_parts(5)['FIBERMAP']
    fibermap['OBJTYPE'] = ['TGT', 'SKY', 'TGT', '', 'TGT']
    fibermap['COADD_FIBERSTATUS'] = [0, 0, 8, 0, 1 << 16]
    path = write_coadd(tmp_path/'coadd.fits', n=5, FIBERMAP=fibermap)
    spectra = read_coadd(path)
    assert list(is_target(spectra)) == [True, False, True, False, True] and list(is_good_fibre(spectra)) == [True]*4 + [False]
    assert len(select_targets(spectra)) == 2 and len(select_targets(spectra, keep_sky=True)) == 4 and len(select_targets(spectra, keep_bad=True)) == 3
    fibermap['OBJTYPE'] = 'SKY'
    refused(write_coadd(tmp_path/'coadd.fits', n=5, FIBERMAP=fibermap), extract, 'no science target')


def test_no_redrock_file(tmp_path):
    spectra, said = told(write_coadd(tmp_path/'coadd-main-dark-1.fits'), extract)
    assert 'no redrock file' in said and len(spectra) == 4 and 'Z' not in spectra.meta.colnames


def test_truth_tables(tmp_path):
    path = tmp_path/'EDR_VI_LRG_v1.csv'
    for text in ('', 'TARGETID,VI_Z\n1,0.5\n', 'just words\n\x00\n'):
        path.write_text(text)
        refused(path, read_truth)
    path.write_text('TARGETID,VI_Z,VI_QUALITY,VI_SPECTYPE\n1,0.5,3.0,galaxy\n2,,4,QSO\n3,0.1,2.4,STAR\n1,0.6,3.5,GALAXY\n')
    truth = read_truth(path)
    assert list(truth['TARGETID']) == [1] and list(truth['TRUE_Z']) == [.6] and list(truth['TRUE_SPECTYPE']) == ['GALAXY']


# Writing

@pytest.fixture
def pair(tmp_path): return write_pair(tmp_path)


def half_writer(trouble):
    "Stands in for astropy's writer to disk: writes a little, then something happens."
    real = fits.HDUList.writeto
    def writeto(hdus, path, *args, **kwargs):
        if hasattr(path, 'seek'): return real(hdus, path, *args, **kwargs)
        with open(path, 'wb') as f: f.write(b'SIMPLE')
        raise trouble
    return writeto


@pytest.mark.parametrize('trouble', [OSError(errno.ENOSPC, 'No space left on device'), KeyboardInterrupt()], ids=['full disk', 'Ctrl-C'])
@pytest.mark.parametrize('before', [False, True])
def test_interrupted_writing(pair, monkeypatch, trouble, before):
    dst = pair.with_name('compact.fits')
    if before: extract_file(pair, dst)
    old, content = sorted(pair.parent.iterdir()), dst.read_bytes() if before else b''
    monkeypatch.setattr(fits.HDUList, 'writeto', half_writer(trouble))
    with pytest.raises(type(trouble)) as error: extract_file(pair, dst, overwrite=True)
    if isinstance(trouble, OSError): assert 'compact.fits: cannot be written (No space left on device); free' in str(error.value)
    assert sorted(pair.parent.iterdir()) == old and (dst.read_bytes() if before else b'') == content


@pytest.mark.skipif(sys.platform == 'win32', reason='needs limits on the size of files')
def test_file_size_limit(pair):
    "The operating system refuses to write more than 20 kB: as a full disk would, in the middle."
    code = f"""
        import resource, signal
        from skyseek.data.desi import extract_file
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try: extract_file({str(pair)!r}, {str(pair.with_name('compact.fits'))!r})
        except OSError as e: raise SystemExit(str(e))
    """
    old = sorted(pair.parent.iterdir())
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 1 and 'compact.fits: cannot be written' in done.stderr and sorted(pair.parent.iterdir()) == old


def test_unwritable_place(pair):
    pair.with_name('file').write_text('')
    with pytest.raises(OSError): extract_file(pair, pair.with_name('file')/'compact.fits')


def test_extract_file_is_done_once(pair):
    dst = extract_file(pair, pair.parent)
    assert dst.name == 'spectra-main-dark-9999.fits'
    stamp = dst.stat().st_mtime_ns
    assert extract_file(pair, dst).stat().st_mtime_ns == stamp
    assert extract_file(pair, dst, overwrite=True).stat().st_mtime_ns > stamp
    dst.write_bytes(dst.read_bytes()[:-2880])  # half of a file from elsewhere: done again
    assert len(read_spectra(extract_file(pair, dst))) == 4
    other = write_coadd(pair.with_name('coadd-main-dark-1.fits'))
    with pytest.raises(ValueError, match='was made from'): extract_file(other, dst)


def test_header_has_no_folders(pair):
    header = fits.getheader(extract_file(pair, pair.parent))
    assert header['COADD'] == pair.name and header['REDROCK'] == find_redrock(pair).name
    assert str(pair.parent) not in repr(header)
