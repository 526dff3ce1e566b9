"""Formats by their kinds: other names, other units, other layouts, damage and nonsense; each is read right, or refused in one line that says what it is and what to give."""
import bz2
import gzip
import json
import lzma
import re
import threading
import time
import warnings
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from zipfile import ZipFile

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from astropy.table import Table
from surveys import coadd_parts, redrock_table, sdss_parts, write_coadd, write_lamost, write_pair, write_parts, write_sdss

from skyseek.data.desi import (
    extract, extract_file, find_redrock, is_good_fibre, join_redrock, read_coadd, select_targets,
)
from skyseek.data.files import read_spectra, write_spectra
from skyseek.data.redshift_tables import read_redrock, read_truth
from skyseek.data.files import read_written_table
from skyseek.data.hdus import ReadError
from skyseek.data.lamost import read_lamost
from skyseek.data.read import file_kind, read_any, read_targets
from skyseek.data.sdss import read_sdss


def refused(call, *words, most=500):
    "The one line that is said, with all these words; `call` is a function, or (reader, path)."
    function = call if callable(call) else lambda: call[0](call[1])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with pytest.raises(ReadError) as error: function()
    text = str(error.value)
    assert '\n' not in text and ';' in text and len(text) < most + 3*len(str(Path(text.split(':')[0]).parent)), text
    for word in words: assert word in text, (word, text)
    return text


def told(function, *args):
    "What a function returns and the warnings it gives, as one text."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        result = function(*args)
    return result, ' | '.join(str(w.message) for w in said if not issubclass(w.category, ResourceWarning))


def changed(path, **hdus):
    "Change HDUs of a file in place: name → function of the HDU."
    with fits.open(path, mode='update') as file:
        for name, change in hdus.items(): change(file[name])
    return path


# Names of tables and files

def exposures(ids, status):
    "An EXP_FIBERMAP of two exposures each."
    return Table(dict(TARGETID=np.repeat(ids, 2), OBJTYPE=['TGT']*(2*len(ids)), FIBERSTATUS=np.array(status, 'i4'), EXPTIME=np.full(2*len(ids), 450., 'f4')))


@pytest.mark.parametrize('name', ['COADD_FIBERMAP', 'EXP_FIBERMAP', 'SCORES'])
def test_targets_are_found_in_whatever_table_has_them(tmp_path, name):
    coadd, parts = write_pair(tmp_path), coadd_parts()
    usual, fibermap = extract(coadd), parts['FIBERMAP']
    tables = dict(COADD_FIBERMAP=fibermap, EXP_FIBERMAP=exposures(np.asarray(fibermap['TARGETID']), [0]*8), SCORES=parts['SCORES'])
    write_parts(coadd, {name: tables[name]} | {k: v for k, v in parts.items() if k not in ('FIBERMAP', 'SCORES')})
    spectra = extract(coadd)
    assert list(spectra.meta['TARGETID']) == list(usual.meta['TARGETID']) and np.array_equal(spectra.flux, usual.flux) and list(spectra.meta['Z']) == list(usual.meta['Z'])
    if name == 'EXP_FIBERMAP': assert list(spectra.meta['COADD_EXPTIME']) == [900.]*4


def test_the_table_with_a_row_a_spectrum_is_taken(tmp_path):
    fibermap = coadd_parts()['FIBERMAP']
    path = write_parts(tmp_path/'coadd-main-dark-1.fits', {'FIBERMAP': exposures(np.asarray(fibermap['TARGETID']), [0]*8), 'COADD_FIBERMAP': fibermap} | {k: v for k, v in coadd_parts().items() if k != 'FIBERMAP'})
    assert list(read_coadd(path).meta['TARGETID']) == list(fibermap['TARGETID'])


BITS = {0: True, 3: True, 20: True, 1: False, 9: False, 16: False, 23: False}


@pytest.mark.parametrize('column', ['COADD_FIBERSTATUS', 'FIBERSTATUS', 'fiberstatus'])
def test_a_good_fibre_has_no_bit_but_restricted_and_variable(tmp_path, column):
    n = len(BITS) + 1
    fibermap = coadd_parts(n)['FIBERMAP']
    fibermap['COADD_FIBERSTATUS'] = [1 << bit if bit else 0 for bit in BITS] + [1 << 3 | 1 << 20]
    fibermap.rename_column('COADD_FIBERSTATUS', column)
    spectra = read_coadd(write_coadd(tmp_path/'coadd-main-dark-1.fits', n=n, FIBERMAP=fibermap))
    good = [*BITS.values(), True]
    assert list(is_good_fibre(spectra)) == good and len(select_targets(spectra)) == sum(good) and len(select_targets(spectra, keep_bad=True)) == n


def test_targets_of_early_files_are_called_by_their_class(tmp_path):
    fibermap = coadd_parts(6)['FIBERMAP']
    fibermap['OBJTYPE'] = 'ELG', 'STD', 'sky', 'TGT', 'BAD', ''
    spectra = read_coadd(write_coadd(tmp_path/'coadd.fits', n=6, FIBERMAP=fibermap))
    assert list(select_targets(spectra).meta['OBJTYPE']) == ['ELG', 'STD', 'TGT']


@pytest.mark.parametrize('status', [[0, 0, 0, 0], [0, 1 << 16, 8, 0], [1 << 9, 1 << 9, 0, 0]])
def test_status_of_exposures_is_summed_up_as_desi_does(tmp_path, status):
    ids = np.array([50, 20])
    parts = coadd_parts(2) | {'EXP_FIBERMAP': exposures(ids, status)}
    del parts['FIBERMAP'], parts['SCORES']
    spectra = read_coadd(write_parts(tmp_path/'coadd.fits', parts))
    assert list(spectra.meta['TARGETID']) == [50, 20]  # in the order of the coadd, not sorted
    assert list(is_good_fibre(spectra)) == [not all(s & ~8 for s in status[:2]), not all(s & ~8 for s in status[2:])]


NAMES = {'coadd-0-80605-20201217.fits': 'zbest-0-80605-20201217.fits', 'coadd-0-80605-deep.fits': 'redrock-0-80605-deep.fits', 'coadd-3-1000-exp00067890.fits.gz': 'redrock-3-1000-exp00067890.fits', 'spectra-sv1-dark-5678.fits': 'redrock-sv1-dark-5678.fits.gz',
         'spectra-64-16879.fits': 'zbest-64-16879.fits', 'someone__coadd-main-dark-9.fits': 'someone__redrock-main-dark-9.fits', 'my_coadd-7.fits': 'my_zbest-7.fits'}


@pytest.mark.parametrize('coadd, redrock', NAMES.items(), ids=NAMES)
def test_redrock_file_beside_a_coadd_of_any_production(tmp_path, coadd, redrock):
    write_coadd(tmp_path/'whole.fits')
    (tmp_path/coadd).write_bytes(gzip.compress((tmp_path/'whole.fits').read_bytes(), 1) if coadd.endswith('.gz') else (tmp_path/'whole.fits').read_bytes())
    assert find_redrock(tmp_path/coadd) is None
    table = redrock_table(coadd_parts()['FIBERMAP']['TARGETID'])
    write_parts(tmp_path/'answers.fits', {'ZBEST' if 'zbest' in redrock else 'REDSHIFTS': table})
    (tmp_path/redrock).write_bytes(gzip.compress((tmp_path/'answers.fits').read_bytes()) if redrock.endswith('.gz') else (tmp_path/'answers.fits').read_bytes())
    assert find_redrock(tmp_path/coadd) == tmp_path/redrock and np.allclose(extract(tmp_path/coadd).meta['Z'], np.arange(4)/10)


def test_answers_in_the_coadd_itself(tmp_path):
    parts = coadd_parts()
    path = write_parts(tmp_path/'coadd-main-dark-1.fits', parts | {'REDSHIFTS': redrock_table(parts['FIBERMAP']['TARGETID'])})
    assert file_kind(path) == 'coadd' and list(extract(path).meta['SPECTYPE']) == ['GALAXY']*4


@pytest.mark.parametrize('hdu', ['REDSHIFTS', 'ZBEST', 'ZCATALOG'])
@pytest.mark.parametrize('small', [False, True])
def test_answers_by_any_name(tmp_path, hdu, small):
    table = redrock_table(np.array([5, 6]))
    if small: table.rename_columns(table.colnames, [c.lower() for c in table.colnames])
    read = read_redrock(write_parts(tmp_path/'answers.fits', {hdu: table}))
    assert list(read['TARGETID']) == [5, 6] and list(read['SPECTYPE']) == ['GALAXY']*2 and read['COEFF'].shape == (2, 10)


def test_catalogue_of_several_surveys(tmp_path):
    "A redshift catalogue has a target once for each survey and program: its rows of the coadd's own are taken."
    coadd = write_coadd(tmp_path/'coadd-main-dark-77.fits')
    ids = coadd_parts()['FIBERMAP']['TARGETID']
    table = redrock_table(np.concatenate([ids, ids]))
    table['SURVEY'], table['PROGRAM'] = ['sv1']*4 + ['main']*4, ['dark']*8
    spectra, said = told(extract, coadd, write_parts(tmp_path/'zall-pix-iron.fits', {'ZCATALOG': table}))
    assert np.allclose(spectra.meta['Z'], [.4, .5, .6, .7]) and 'more than once' not in said


def test_best_redshifts_only(tmp_path):
    table = redrock_table(np.array([5, 6]))['TARGETID', 'Z', 'ZERR', 'ZWARN', 'SPECTYPE', 'SUBTYPE', 'CHI2', 'DELTACHI2']
    table.rename_columns(table.colnames[1:], [f'{c}_BEST' for c in table.colnames[1:]])
    refused((read_redrock, write_parts(tmp_path/'zpix-main-dark.fits', {'ZCATALOG': table})), 'lacks the columns Z,', 'Z_BEST', 'redrock-*.fits')


def image(*shape): return np.ones(shape, 'f4')


WHATS = {'cframe': (dict(FLUX=image(5, 9), IVAR=image(5, 9), MASK=image(5, 9), WAVELENGTH=image(9), RESOLUTION=image(5, 3, 9)), 'one camera and one exposure'),
         'emline': (dict(EMLINEFIT=Table({'OII_FLUX': [1.]})), 'emline-*'), 'qso_mgii': (dict(MGII=Table({'Z': [1.]})), 'qso_mgii-*'), 'qso_qn': (dict(QN_RR=Table({'Z': [1.]})), 'qso_qn-*'), 'zmtl': (dict(ZMTL=Table({'Z': [1.]})), 'zmtl-*'),
         'redrock': (dict(REDSHIFTS=Table({'Z': [1.]})), 'a redrock file'), 'zbest': (dict(ZBEST=Table({'Z': [1.]})), 'a redrock file'), 'truth': (dict(T=Table({'TARGETID': [1], 'TRUE_Z': [1.]})), 'a truth table'),
         'catalogue': (dict(CATALOGUE=Table({'TARGETID': [1]})), 'a catalogue by skyseek'), 'spAll': (dict(S=Table({'CLASS': ['QSO'], 'ZWARNING': [0]})), 'a catalogue of SDSS'), 'mrs': (dict(COADD_B=Table({'FLUX': [1.], 'IVAR': [1.], 'LOGLAM': [3.7]})), 'medium-resolution (MRS): not supported, skyseek reads LRS')}


@pytest.mark.parametrize('kind', WHATS)
def test_a_file_without_usable_spectra_is_called_by_its_name(tmp_path, kind):
    parts, words = WHATS[kind]
    path = write_parts(tmp_path/f'{kind}.fits', parts)
    for reader in (lambda p: read_targets([p]), lambda p: read_any(p)):
        text = refused((reader, path), words)
        assert kind == 'mrs' or all(k in text for k in ('coadd-*.fits', 'compact', 'SDSS', 'LAMOST'))


FOREIGN = {'details.h5': (b'\x89HDF\r\n\x1a\n' + bytes(2000), 'HDF5'), 'shard.npz': (b'PK\x03\x04' + bytes(200), 'zip archive'), 'table.parquet': (b'PAR1' + bytes(200), 'Parquet'), 'login.fits': (b'\n<!DOCTYPE html><html>please log in', 'web page'), 'a.png': (b'\x89PNG\r\n\x1a\n' + bytes(99), 'picture'),
           'list.csv': ('TARGETID,Zähler\r\n1,2\r\n'.encode(), 'is text')}


@pytest.mark.parametrize('name', FOREIGN)
def test_another_format_is_named(tmp_path, name):
    path = tmp_path/name
    path.write_bytes(FOREIGN[name][0])
    assert 'redrock-*.fits' in refused((read_redrock, path), FOREIGN[name][1]) and 'coadd-*.fits' in refused((read_coadd, path), FOREIGN[name][1])
    assert 'complete' not in refused((read_any, path), FOREIGN[name][1])


# Files of exposures

def spectra_file(path, seed=3):
    "Five exposures of two targets, one of them broken, one without its blue camera; and the flux and ivar that their coadds should have in the red."
    parts, rng = coadd_parts(5, seed), np.random.default_rng(seed)
    parts['FIBERMAP'] = Table(dict(TARGETID=[90, 30, 90, 90, 30], OBJTYPE=['TGT']*5, FIBERSTATUS=np.array([0, 8, 1 << 16, 1 << 22, 0], 'i4'), EXPTIME=np.full(5, 900., 'f4'), EXPID=np.arange(5)))
    for arm in 'BRZ': parts[f'{arm}_IVAR'] = rng.uniform(1, 5, parts[f'{arm}_IVAR'].shape).astype('f4')
    parts['SCORES'] = Table(dict(TARGETID=parts['FIBERMAP']['TARGETID'], TSNR2_LRG=np.array([10., 20, 30, 40, 50])))
    return write_parts(path, parts), parts


def test_exposures_are_added_up(tmp_path):
    path, parts = spectra_file(tmp_path/'spectra-sv1-dark-12.fits')
    spectra, said = told(read_coadd, path)
    assert list(spectra.meta['TARGETID']) == [90, 30] and '5 exposures of 2 targets' in said and list(spectra.meta['COADD_NUMEXP']) == [2, 2]
    f, v = (parts[f'R_{p}'].astype(float) for p in ('FLUX', 'IVAR'))
    pixels = slice(2800, 4800)  # of the red camera alone
    for row, used in enumerate(([0, 3], [1, 4])):
        assert np.allclose(spectra.ivar[row, pixels], v[used].sum(0)[100:2100], rtol=1e-5)
        assert np.allclose(spectra.flux[row, pixels], (f*v)[used].sum(0)[100:2100]/v[used].sum(0)[100:2100], rtol=1e-4, atol=1e-5)
    blue = parts['B_IVAR']*(parts['B_MASK'] == 0)
    assert np.allclose(spectra.ivar[:, :2000], [blue[0, :2000], blue[[1, 4], :2000].sum(0)], rtol=1e-5)
    assert list(spectra.meta['COADD_EXPTIME']) == [1800, 1800] and list(spectra.meta['TSNR2_LRG']) == [50, 70] and is_good_fibre(spectra).all()


def test_answers_meet_exposures(tmp_path):
    path, _ = spectra_file(tmp_path/'spectra-sv1-dark-12.fits')
    write_parts(tmp_path/'zbest-sv1-dark-12.fits', {'ZBEST': redrock_table(np.array([90, 30]))})
    assert list(told(extract, path)[0].meta['Z']) == [0, .1]


def test_repeated_targets_of_a_coadd_are_not_added_up(tmp_path):
    fibermap = coadd_parts(3)['FIBERMAP']
    fibermap['TARGETID'] = 7, 7, 8
    spectra, said = told(read_coadd, write_coadd(tmp_path/'coadd.fits', n=3, FIBERMAP=fibermap))
    assert len(spectra) == 3 and 'more than once' in said


# SDSS-V, DR7, LAMOST

def write_sdss5(path, field=15143, mjd=59205, spall=None, coadd=None):
    "spec-FIELD-MJD-CATALOGID.fits with an exposure before the coadd."
    lam = 1e-4*(35523 + np.arange(4000))
    table = Table(dict(FLUX=np.full(4000, 2, 'f4'), LOGLAM=lam.astype('f4'), IVAR=np.full(4000, 9, 'f4'), AND_MASK=np.zeros(4000, 'i4'), OR_MASK=np.zeros(4000, 'i4')) | (coadd or {}))
    answer = Table({k: [v] for k, v in (dict(FIELD=field, MJD=mjd, CATALOGID=27021597914638682, SDSS_ID=54392544, OBJTYPE='science', FIBER_RA=11., FIBER_DEC=-3., Z=.31, Z_ERR=1e-5, ZWARNING=0, CLASS='GALAXY', SUBCLASS='', RCHI2=1.1, DOF=3900, RCHI2DIFF=.5) | (spall or {})).items() if v is not None})
    return write_parts(path, {'MJD_EXP_1': table[:50], 'COADD': table, 'SPALL': answer})


IDS = {'catalogid': ({}, 27021597914638682), 'as text': (dict(CATALOGID='63050394846'), 63050394846), 'unset': (dict(CATALOGID=-999), 54392544), 'by name only': (dict(CATALOGID=None, SDSS_ID=None), 27021597914638682), 'largest': (dict(CATALOGID=2**63 - 1), 2**63 - 1)}


@pytest.mark.parametrize('kind', IDS)
def test_sdss5_has_no_fibre_number(tmp_path, kind):
    spall, number = IDS[kind]
    spectra = read_sdss(write_sdss5(tmp_path/'spec-015143-59205-27021597914638682.fits', spall=spall))
    row = spectra.meta[0]
    assert row['TARGETID'] == number and [row[c] for c in ('PLATE', 'MJD', 'FIBERID', 'SPECTYPE', 'OBJTYPE')] == [15143, 59205, -1, 'GALAXY', 'TGT'] and len(spectra.wave) == 4000 and np.isclose(row['Z'], .31) and row['TARGET_RA'] == 11


@pytest.mark.parametrize('objtype, kind', [('SKY', 'SKY'), ('sky', 'SKY'), ('ops_sky_boss', 'SKY'), ('science', 'TGT'), ('SKYLARK', 'TGT')])
def test_sky_fibres_of_sdss5(tmp_path, objtype, kind): assert read_sdss(write_sdss5(tmp_path/'a.fits', spall=dict(OBJTYPE=objtype))).meta['OBJTYPE'][0] == kind


def write_spspec(path, rows=5, n=3850, **header):
    "spSpec of DR7."
    planes = np.stack([np.full(n, 3.), np.zeros(n), np.full(n, .5), np.where(np.isin(np.arange(n), [500, 501]), 1 << 23, 4), np.zeros(n), np.zeros(n)])[:rows]
    planes[2, 700:710] = 0
    cards = dict(TELESCOP='SDSS 2.5-M', PLATEID=1615, MJD=53166, FIBERID=513, COEFF0=3.5801, COEFF1=1e-4, Z=.47, Z_ERR=1e-4, Z_WARNIN=0, SPEC_CLN=2, RAOBJ=190., DECOBJ=30., BUNIT='1.0E-17 erg/cm/s/Ang') | header
    fits.HDUList([fits.PrimaryHDU(planes.astype('f4'), fits.Header({k: v for k, v in cards.items() if v is not None}))]).writeto(path, overwrite=True)
    return path


@pytest.mark.parametrize('number, spectype', [(2, 'GALAXY'), (3, 'QSO'), (4, 'QSO'), (1, 'STAR'), (6, 'STAR'), (0, ''), (5, '')])
def test_images_of_dr7(tmp_path, number, spectype):
    spectra, _ = told(read_any, write_spspec(tmp_path/'spSpec-53166-1615-513.fit', SPEC_CLN=number))
    row = spectra.meta[0]
    assert row['TARGETID'] == 1615_53166_0513 and row['SPECTYPE'] == spectype and row['OBJTYPE'] == ('SKY' if number == 5 else 'TGT') and np.isclose(row['Z'], .47, equal_nan=True) == bool(spectype)
    assert sorted(np.flatnonzero(~spectra.good[0])) == [*range(498, 504), *range(700, 710)] and np.isclose(np.log10(spectra.wave[0]), 3.5801) and spectra.ivar[0, 0] == 4 and spectra.flux[0, 0] == 3


@pytest.mark.parametrize('change, words', [(dict(rows=3), 'spSpec'), (dict(COEFF0=None), 'COEFF0'), (dict(VACUUM='F'), 'in air'), (dict(PLATEID='x'), 'PLATEID'), (dict(BUNIT='count'), 'count')])
def test_images_of_dr7_that_cannot_be_used(tmp_path, change, words): refused((read_sdss, write_spspec(tmp_path/'spSpec.fit', **change)), words)


UNSUPPORTED = {'mwmStar': (lambda p: changed(write_parts(p, {'BOSS/APO': Table(dict(flux=[[1.]*9], ivar=[[1.]*9], wavelength=[[5000.]*9]))}), PRIMARY=lambda h: h.header.update(V_ASTRA='0.6', SDSS_ID=1)), 'rest frame'),
               'spPlate': (lambda p: fits.PrimaryHDU(image(640, 99), fits.Header(dict(PLATEID=266, COEFF0=3.58))).writeto(p) or p, 'spPlate'), 'apStar': (lambda p: changed(write_parts(p, {'FLUX': image(9)}), PRIMARY=lambda h: h.header.update(APRED='1.3')), 'infrared'),
               'medium resolution, DR8 on': (lambda p: write_parts(p, {'COADD_B': Table(dict(FLUX=[[1.]*9], IVAR=[[1.]*9], WAVELENGTH=[[5000.]*9])), 'B-84420148': Table({'FLUX': [1.]})}), 'MRS')}


@pytest.mark.parametrize('kind', UNSUPPORTED)
def test_spectra_that_cannot_be_used_are_refused_by_name(tmp_path, kind):
    make, words = UNSUPPORTED[kind]
    path = make(tmp_path/'spec-0266-51602-0001.fits')
    for reader in (read_sdss, read_lamost, read_any, lambda p: read_targets([p])): refused((reader, path), words, 'not supported', 'give')


@pytest.mark.parametrize('table', [False, True])
def test_lamost_header_and_data_must_agree(tmp_path, table):
    refused((read_lamost, write_lamost(tmp_path, table=table, COEFF0=3.5692)), 'COEFF0', 'differ by up to 10 pixels')
    assert len(read_lamost(write_lamost(tmp_path, table=table, COEFF0=3.5682)))


# Values that are no values: the file, the value and its row are named, and nobody is sent to download it again

WORDS = {'a fibre beyond any': lambda d: write_sdss(d, answer=dict(FIBERID=[99999])), 'a redshift in words': lambda d: write_sdss(d, answer=dict(Z=['abc'])), 'a plate in words': lambda d: write_sdss(d, answer=dict(PLATE=['x1'])),
         'OBSID in words': lambda d: write_lamost(d, OBSID='abc'), 'a header redshift in words': lambda d: write_lamost(d, Z='high'), 'flux in words': lambda d: write_sdss(d, coadd=dict(flux=['x']*3800)),
         'a pixel in words': lambda d: changed(write_coadd(d/'coadd.fits'), PRIMARY=lambda h: h.header.update(HPXPIXEL='north'))}


@pytest.mark.parametrize('kind', WORDS)
def test_a_bad_value_is_no_broken_file(tmp_path, kind):
    path = WORDS[kind](tmp_path)
    text = refused((lambda p: read_targets([p]) if 'coadd' in p.name else read_any(p), path))
    assert 'complete' not in text and 'download' not in text and str(path) in text


@pytest.mark.parametrize('error, words', [(PermissionError(13, 'Permission denied'), 'Permission denied'), (OSError(5, 'Input/output error'), 'Input/output error')])
@pytest.mark.parametrize('reader', [read_coadd, read_redrock, read_any, read_truth])
def test_no_access_is_no_broken_file(tmp_path, monkeypatch, error, words, reader):
    path = write_pair(tmp_path)
    def no(*args, **kwargs): raise error
    monkeypatch.setattr('skyseek.data.hdus.open', no, raising=False)
    assert 'download' not in refused((reader, path), words, 'cannot be read')


@pytest.mark.parametrize('error', [KeyError('x'), IndexError('x'), ZeroDivisionError('x')])
def test_our_own_faults_are_not_the_files(tmp_path, monkeypatch, error):
    def fault(*args, **kwargs): raise error
    monkeypatch.setattr('skyseek.data.desi._merge_blocks', fault)
    with pytest.raises(type(error)): read_coadd(write_coadd(tmp_path/'coadd.fits'))


# Identifiers

def redrock_with(path, column):
    table = redrock_table(np.arange(1, 5))
    table['TARGETID'] = column
    return write_parts(path, {'REDSHIFTS': table})


IDENTIFIERS = {'float': (np.array([1., 2, 3, 4]), 'float64'), 'beyond': (np.array([1, 2, 3, 2**63], np.uint64), 'row 4'), 'words': (['1', '2', 'x', '4'], 'row 3'), 'rounded': (['1', '2', '3.96E+16', '4'], 'row 3')}


@pytest.mark.parametrize('kind', IDENTIFIERS)
def test_identifiers_are_whole_numbers_everywhere(tmp_path, kind):
    column, words = IDENTIFIERS[kind]
    refused((read_redrock, redrock_with(tmp_path/'redrock.fits', column)), 'TARGETID', words)
    fibermap = coadd_parts()['FIBERMAP']
    fibermap['TARGETID'] = column
    refused((read_coadd, write_coadd(tmp_path/'coadd.fits', FIBERMAP=fibermap)), 'TARGETID', words)
    truth = Table(dict(TARGETID=column, TRUE_Z=[.1]*4, TRUE_SPECTYPE=['STAR']*4))
    refused((read_truth, write_parts(tmp_path/'truth.fits', {'TRUTH': truth})), 'TARGETID', words)
    truth.write(tmp_path/'truth.parquet')
    refused((read_truth, tmp_path/'truth.parquet'), 'TARGETID', words)
    refused((read_written_table, tmp_path/'truth.parquet'), 'TARGETID', words)


def test_identifiers_as_unsigned_or_text_are_exact(tmp_path):
    ids = 39628473202443880 + np.arange(4)
    for column in (ids.astype(np.uint64), [str(i) for i in ids]): assert list(read_redrock(redrock_with(tmp_path/'redrock.fits', column))['TARGETID']) == list(ids)


def test_one_missing_identifier_rounds_no_other(tmp_path):
    pd.DataFrame({'TARGETID': [39628473202443880, 39628473202443881, None], 'TRUE_Z': [.1, .2, .3], 'TRUE_SPECTYPE': ['STAR']*3}).to_parquet(tmp_path/'truth.parquet')
    refused((read_truth, tmp_path/'truth.parquet'), 'TARGETID')
    path = write_parts(tmp_path/'truth.fits', {'TRUTH': Table(dict(TARGETID=[39628473202443880, -99], TRUE_Z=[.1, .2], TRUE_SPECTYPE=['STAR']*2))})
    with fits.open(path, mode='update') as h: h[1].columns['TARGETID'].null = -99
    refused((read_truth, path), 'row 2 has no TARGETID')


def test_invented_numbers_meet_nobody(tmp_path):
    "A coadd without TARGETIDs, and a redrock file of stuck fibres that happen to be called -1, -2, …"
    coadd = write_coadd(tmp_path/'coadd-main-dark-1.fits', without=['FIBERMAP', 'SCORES'])
    write_parts(tmp_path/'redrock-main-dark-1.fits', {'REDSHIFTS': redrock_table(-1 - np.arange(4))})
    refused((extract, coadd), 'none of its 4 TARGETIDs')
    spectra = told(read_coadd, coadd)[0]
    again = read_spectra(write_spectra(spectra[1:], tmp_path/'spectra.fits'))
    with pytest.raises(ReadError): join_redrock(again, redrock_table(np.asarray(again.meta['TARGETID'])))


def test_negative_numbers_are_paired_in_equal_tables_only(tmp_path):
    fibermap = coadd_parts()['FIBERMAP']
    fibermap['TARGETID'] = -3, 11, -3, 12
    spectra = read_coadd(write_coadd(tmp_path/'coadd.fits', FIBERMAP=fibermap))
    assert list(join_redrock(spectra, redrock_table(np.array([-3, 11, -3, 12]))).meta['Z']) == [0, .1, .2, .3]
    shuffled = told(join_redrock, spectra, redrock_table(np.array([12, -3, 11, -3])))[0].meta
    assert np.allclose(shuffled['Z'], [np.nan, .2, np.nan, 0], equal_nan=True)


# Truth

TRUTHS = {'as the simulator names it': ('truth.csv', 'TARGETID,TRUE_Z,TRUE_SPECTYPE\n39628473202443881,0.5,GALAXY\n39628473202443883,1.5,QSO\n'), 'by Excel': ('truth.csv', '\ufeffTARGETID,TRUE_Z,TRUE_SPECTYPE\r\n39628473202443881,0.5,galaxy\r\n"39628473202443883",1.5, qso\r\n'),
          'in capitals': ('TRUTH.CSV', 'targetid,true_z,true_spectype,NOTE\n39628473202443881,0.5,Galaxy,a\n39628473202443883,1.5,QSO,b\n'), 'inspected': ('Own.Csv', '\ufeff# by hand\nTARGETID,VI_Z,VI_QUALITY,VI_SPECTYPE\n39628473202443881,0.5,4,galaxy\n39628473202443883,1.5,3,QSO\n'),
          'with holes': ('truth.csv', 'TARGETID,TRUE_Z,TRUE_SPECTYPE\n39628473202443881,0.5,GALAXY\n,0.2,STAR\n39628473202443882,,STAR\n39628473202443883,1.5,QSO\n')}


@pytest.mark.parametrize('kind', TRUTHS)
def test_truth_as_csv(tmp_path, kind):
    name, text = TRUTHS[kind]
    (tmp_path/name).write_text(text, encoding='utf-8')
    truth = read_truth(tmp_path/name)
    assert list(truth['TARGETID']) == [39628473202443881, 39628473202443883] and list(truth['TRUE_Z']) == [.5, 1.5] and list(truth['TRUE_SPECTYPE']) == ['GALAXY', 'QSO']


def test_truth_as_packed_csv(tmp_path):
    (tmp_path/'truth.csv.gz').write_bytes(gzip.compress(TRUTHS['by Excel'][1].encode()))
    assert len(read_truth(tmp_path/'truth.csv.gz')) == 2


@pytest.mark.parametrize('line, words', [('99999999999999999999,0.5,STAR', 'row 1'), ('3.96285E+16,0.5,STAR', 'lost digits'), ('39628473202443881.0,0.5,STAR', 'lost digits'), ('7,about 1,STAR', 'TRUE_Z in row 1'), ('seven,1,STAR', 'TARGETID in row 1')])
def test_truth_as_csv_with_nonsense(tmp_path, line, words):
    (tmp_path/'truth.csv').write_text(f'TARGETID,TRUE_Z,TRUE_SPECTYPE\n{line}\n')
    refused((read_truth, tmp_path/'truth.csv'), words)


@pytest.mark.parametrize('end', ['fits', 'parquet'])
@pytest.mark.parametrize('without', ['', 'TARGETID', 'TRUE_Z', 'TRUE_SPECTYPE'])
def test_truth_as_table(tmp_path, end, without):
    table, path = Table(dict(TARGETID=[3, 4], TRUE_Z=[.1, .2], TRUE_SPECTYPE=['galaxy', 'Star '])), tmp_path/f'truth.{end}'
    if without: del table[without]
    table.write(path)
    if without: refused((read_truth, path), without)
    else: assert list(read_truth(path)['TRUE_SPECTYPE']) == ['GALAXY', 'STAR']


# Units and air

def in_unit(kind, folder, unit, ivar_too):
    "A file of each kind with flux and ivar in another unit."
    factor = {'erg/(s cm2 Angstrom)': 1e17, 'W/(m2 um)': 1e16}[unit]
    down = lambda flux: (np.asarray(flux, float)/factor).astype('f4')
    up = lambda ivar: (np.asarray(ivar, float)*factor**2).astype('f8')
    if kind == 'coadd':
        parts = coadd_parts()
        path = write_parts(folder/'coadd.fits', {k: down(v) if k.endswith('_FLUX') else up(v) if k.endswith('_IVAR') else v for k, v in parts.items()})
        def set_unit(h): h.header['BUNIT'] = unit
        def set_inverse(h): h.header['BUNIT'] = dict(zip((1e17, 1e16), ('(s2 cm4 Angstrom2)/erg2', '(m4 um2)/W2')))[factor]
        return changed(path, **{f'{a}_FLUX': set_unit for a in 'BRZ'}, **({f'{a}_IVAR': set_inverse for a in 'BRZ'} if ivar_too else {}))
    if kind == 'sdss':
        table = sdss_parts(fibre=1, seed=1)['COADD']
        return write_sdss(folder, coadd=dict(flux=down(table['flux']), ivar=up(table['ivar'])), header=dict(BUNIT=unit))
    if kind == 'lamost':
        path = write_lamost(folder, BUNIT=unit)
        with fits.open(path) as h: data, header = h[0].data.astype(float), h[0].header
        data[0], data[1] = down(data[0]), up(data[1])
        fits.PrimaryHDU(data, header).writeto(path, overwrite=True)
        return path
    path = write_spectra(read_coadd(write_coadd(folder/'c.fits', n=1)), folder/'compact.fits')
    with fits.open(path) as h: flux, ivar, wave, targets = h['FLUX'].data, h['IVAR'].data, h['WAVELENGTH'].data, Table(h['TARGETS'].data)
    return changed(write_parts(folder/'compact.fits', dict(WAVELENGTH=wave, FLUX=down(flux), IVAR=up(ivar), TARGETS=targets)), FLUX=lambda h: h.header.update(BUNIT=unit))


SOUND = {'coadd': lambda d: write_coadd(d/'sound.fits'), 'sdss': write_sdss, 'lamost': write_lamost, 'compact': lambda d: write_spectra(read_coadd(write_coadd(d/'c.fits', n=1)), d/'sound.fits')}


@pytest.mark.parametrize('unit, ivar_too', [('erg/(s cm2 Angstrom)', False), ('erg/(s cm2 Angstrom)', True), ('W/(m2 um)', False)])
@pytest.mark.parametrize('kind', SOUND)
def test_another_unit_of_flux_is_converted(tmp_path, kind, unit, ivar_too):
    sound = told(read_any, SOUND[kind](tmp_path))[0]
    other = told(read_any, in_unit(kind, tmp_path, unit, ivar_too))[0]
    assert np.allclose(other.flux, sound.flux, rtol=1e-5) and np.allclose(other.ivar, sound.ivar, rtol=1e-5) and sound.good.any()


@pytest.mark.parametrize('unit', ['electron/Angstrom', 'ergons'])
@pytest.mark.parametrize('kind', SOUND)
def test_what_is_no_flux_is_refused(tmp_path, kind, unit):
    path = SOUND[kind](tmp_path)
    changed(path, **{dict(coadd='R_FLUX', compact='FLUX').get(kind, 'PRIMARY'): lambda h: h.header.update(BUNIT=unit)})
    refused((read_any, path), unit)


def test_flux_and_ivar_in_units_that_contradict_each_other(tmp_path):
    path = changed(write_coadd(tmp_path/'coadd.fits'), B_FLUX=lambda h: h.header.update(BUNIT='erg/(s cm2 Angstrom)'), B_IVAR=lambda h: h.header.update(BUNIT='10**+34 (s2 cm4 Angstrom2) / erg2'))
    refused((read_coadd, path), 'do not fit')


def test_the_unit_of_a_column_counts(tmp_path):
    path = write_sdss(tmp_path)
    plain = read_sdss(path)
    changed(path, COADD=lambda h: h.header.update({'TUNIT1': 'uJy'}))
    in_ujy = read_sdss(path)
    expected = plain.flux*2.99792458e6/plain.wave**2  # 1 µJy is 1e-29 erg/s/cm²/Hz, times c/λ²
    assert np.allclose(in_ujy.flux, expected, rtol=1e-4) and np.allclose(in_ujy.snr, plain.snr, rtol=1e-3)


@pytest.mark.parametrize('unit', ['10**-17 erg/(s cm2 Angstrom)', '1E-17 erg/cm^2/s/Ang', '1e-17 ergs/s/cm^2/A', ''])
def test_the_usual_unit_by_any_spelling_changes_nothing(tmp_path, unit):
    plain = read_coadd(write_coadd(tmp_path/'coadd.fits'))
    path = changed(write_coadd(tmp_path/'coadd.fits'), **{f'{a}_FLUX': lambda h: h.header.update(BUNIT=unit) for a in 'BRZ'})
    assert np.array_equal(read_coadd(path).flux, plain.flux)


AIR = {'VACUUM': [False, 'F', 'air'], 'AIRORVAC': ['AIR'], 'CTYPE1': ['AWAV-LOG']}


@pytest.mark.parametrize('key, value', [(k, v) for k, values in AIR.items() for v in values])
@pytest.mark.parametrize('kind', SOUND)
def test_air_is_refused_however_it_is_said(tmp_path, kind, key, value):
    refused((read_any, changed(SOUND[kind](tmp_path), PRIMARY=lambda h: h.header.update({key: value}))), 'in air')


@pytest.mark.parametrize('key, value', [('VACUUM', 'T'), ('AIRORVAC', 'vac'), ('CTYPE1', 'WAVE-LOG')])
def test_vacuum_is_read_however_it_is_said(tmp_path, key, value):
    for kind in ('coadd', 'sdss', 'lamost'): assert len(told(read_any, changed(SOUND[kind](tmp_path), PRIMARY=lambda h: h.header.update({key: value})))[0])


def test_air_in_the_table_or_the_arm(tmp_path):
    refused((read_coadd, changed(write_coadd(tmp_path/'coadd.fits'), Z_WAVELENGTH=lambda h: h.header.update(AIRORVAC='air'))), 'in air')
    refused((read_sdss, changed(write_sdss(tmp_path), COADD=lambda h: h.header.update(VACUUM='F'))), 'in air')


# Answers that are none

STRANGE = ['galaxy', ' Qso', 'GAL', '', 'STAR', 'unknown']


def test_types_are_known_or_none(tmp_path):
    parts = coadd_parts(6)
    table = redrock_table(parts['FIBERMAP']['TARGETID'])
    table['SPECTYPE'] = STRANGE
    read, said = told(read_redrock, write_parts(tmp_path/'redrock.fits', {'REDSHIFTS': table}))
    assert list(read['SPECTYPE']) == ['GALAXY', 'QSO', '', '', 'STAR', ''] and np.allclose(read['Z'], np.arange(6)/10) and '3 of 6 rows' in said and said.count('redrock.fits') == 1


@pytest.mark.parametrize('text, spectype, has_z', [('galaxy', 'GALAXY', True), (' qso ', 'QSO', True), ('GAL', '', True), ('', '', False), ('Unknown', '', False)])
def test_types_of_other_surveys(tmp_path, text, spectype, has_z):
    for spectra, said in (told(read_sdss, write_sdss(tmp_path, answer=dict(CLASS=[text]))), told(read_lamost, write_lamost(tmp_path, CLASS=text))):
        row = spectra.meta[0]
        assert row['SPECTYPE'] == spectype and np.isfinite(row['Z']) == has_z and (row['ZWARN'] & 512 > 0) != has_z and bool(said) == (spectype == '')


@pytest.mark.parametrize('z', [-2, -1, np.nan, np.inf, -np.inf, 99.])
def test_an_impossible_redshift_costs_its_row_only(tmp_path, z):
    coadd = write_pair(tmp_path)
    table = read_redrock(find_redrock(coadd))
    table['Z'][2] = z
    spectra, said = told(extract, coadd, write_parts(tmp_path/'other.fits', {'REDSHIFTS': table}))
    row = spectra.meta[2]
    assert np.isnan(row['Z']) and row['ZWARN'] == 512 and row['SPECTYPE'] == '' and np.isfinite(spectra.meta['Z']).sum() == 3 and '1 of 4 rows' in said
    one, said = told(read_sdss, write_sdss(tmp_path, answer=dict(Z=[z])))
    assert np.isnan(one.meta['Z'][0]) and one.meta['ZWARN'][0] & 512 and 'no answer' in said


ODD_COLUMNS = {'variable': fits.Column('EXTRA', 'PD()', array=np.array([np.ones(k) for k in (1, 3, 2, 0)], dtype=object)), 'complex': fits.Column('EXTRA', 'M', array=np.ones(4)*1j)}


@pytest.mark.parametrize('kind', ODD_COLUMNS)
def test_odd_columns_of_the_answers_cost_nothing(tmp_path, kind):
    coadd = write_pair(tmp_path)
    plain = fits.BinTableHDU(redrock_table(coadd_parts()['FIBERMAP']['TARGETID']))
    hdu = fits.BinTableHDU.from_columns([*plain.columns, ODD_COLUMNS[kind]], name='REDSHIFTS')
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(find_redrock(coadd), overwrite=True)
    assert np.allclose(extract(coadd).meta['Z'], np.arange(4)/10) and 'EXTRA' not in extract(coadd).meta.colnames


def test_coefficients_of_different_number(tmp_path):
    table = redrock_table(np.arange(1, 5))
    plain = fits.BinTableHDU(table)
    coeff = fits.Column('COEFF', 'PD()', array=np.array([np.arange(1., k + 1) for k in (4, 10, 5, 4)], dtype=object))
    hdu = fits.BinTableHDU.from_columns([*(c for c in plain.columns if c.name != 'COEFF'), coeff], name='REDSHIFTS')
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(tmp_path/'redrock.fits')
    read = read_redrock(tmp_path/'redrock.fits')['COEFF']
    assert read.shape == (4, 10) and list(read[0]) == [1, 2, 3, 4, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize('column, values', [('OBJTYPE', ['SKY']*4), ('COADD_FIBERSTATUS', np.full(4, 1 << 16, 'i4')), ('objtype', ['SKY']*4), ('COADD_EXPTIME', np.zeros(4))])
def test_the_fibre_table_has_the_say_about_fibres(tmp_path, column, values):
    coadd = write_pair(tmp_path)
    table = read_redrock(find_redrock(coadd))
    table[column] = values
    spectra = extract(coadd, write_parts(tmp_path/'other.fits', {'REDSHIFTS': table}))
    assert len(spectra) == 4 and list(spectra.meta['OBJTYPE']) == ['TGT']*4 and list(spectra.meta['COADD_EXPTIME']) == [1000]*4


# Pixels

@pytest.mark.parametrize('part, value', [('FLUX', 3e38), ('FLUX', -1e25), ('IVAR', 3e38), ('IVAR', 1e20)])
def test_impossible_numbers_cost_their_pixels_only(tmp_path, part, value):
    pixels = coadd_parts()[f'R_{part}']
    pixels[1, 500:520] = value
    spectra, said = told(read_coadd, write_coadd(tmp_path/'coadd.fits', **{f'R_{part}': pixels}))
    assert not spectra.good[1, 3200:3220].any() and spectra.good[[0, 2, 3], 3200:3220].all() and spectra.good[1, 3300:4000].all() and '20 pixels with impossibly large values get ivar 0' in said
    assert np.isfinite(spectra.flux*spectra.ivar).all()
    one = np.full(3800, 1. if part == 'FLUX' else 25.)
    one[100:120] = value
    sdss, said = told(read_sdss, [write_sdss(tmp_path, 1, coadd={part.lower(): one.astype('f4')}), write_sdss(tmp_path, 2)])
    assert not sdss.good[0, 100:120].any() and sdss.good[0, 200:1000].all() and sdss.good[1, 100:120].all() and '1 of 2 spectra have pixels with values beyond' in said


def test_impossible_numbers_in_other_files(tmp_path):
    path = write_lamost(tmp_path)
    changed(path, PRIMARY=lambda h: h.data[0].__setitem__(slice(50, 60), 3e38))
    assert not told(read_lamost, path)[0].good[0, 50:60].any()
    compact = extract_file(write_pair(tmp_path), tmp_path/'compact.fits')
    with fits.open(compact) as h: parts = dict(WAVELENGTH=h['WAVELENGTH'].data, FLUX=h['FLUX'].data.copy(), IVAR=h['IVAR'].data.copy(), TARGETS=Table(h['TARGETS'].data))
    parts['IVAR'][2] = 3e38
    spectra, said = told(read_spectra, write_parts(tmp_path/'wild.fits', parts))
    assert list(spectra.good.any(1)) == [True, True, False, True] and 'beyond any measurement' in said


@pytest.mark.parametrize('scaled', [True, False])
def test_blank_integers_are_no_flux(tmp_path, scaled):
    flux, stored = coadd_parts()['B_FLUX'], np.rint(coadd_parts()['B_FLUX']*(100 if scaled else 1)).astype('i2')
    stored[2, 100:140] = -32768
    path = write_coadd(tmp_path/'coadd.fits')
    with fits.open(path) as h:
        hdus = fits.HDUList([x.copy() for x in h])
        hdu = fits.ImageHDU(stored, name='B_FLUX')
        hdu.header['BLANK'] = -32768
        if scaled: hdu.header['BSCALE'], hdu.header['BZERO'] = .01, 0.
        hdus['B_FLUX'] = hdu
        hdus.writeto(path, overwrite=True)
    if scaled: fits.setval(path, 'BSCALE', value=.01, ext=('B_FLUX', 1))
    spectra = told(read_coadd, path)[0]
    assert not spectra.good[2, 100:140].any() and np.allclose(spectra.flux[0, :2700][spectra.good[0, :2700]], flux[0, :2700][spectra.good[0, :2700]], atol=.006 if scaled else .51)


# Damage

DAMAGED = {'coadd': ('R_FLUX', read_coadd), 'redrock': ('REDSHIFTS', read_redrock), 'compact': ('IVAR', read_spectra), 'targets': ('FIBERMAP', read_coadd),
           'sdss': ('COADD', read_any), 'sdss by name': ('COADD', read_sdss), 'lamost': (0, read_any), 'lamost table': ('COADD', read_lamost),
           'truth': ('TRUTH', read_truth), 'catalogue': ('CATALOGUE', read_written_table)}


def whole_file(folder, kind):
    "A sound file of this kind."
    coadd = write_pair(folder)
    if kind == 'compact': return extract_file(coadd, folder/'compact.fits')
    if kind == 'redrock': return find_redrock(coadd)
    if kind.startswith('sdss'): return write_sdss(folder)
    if kind.startswith('lamost'): return write_lamost(folder, table='table' in kind)
    table = Table({'TARGETID': np.arange(4), 'TRUE_Z': np.full(4, .5), 'TRUE_SPECTYPE': ['GALAXY']*4})
    return write_parts(folder/f'{kind}.fits', {kind.upper(): table}) if kind in ('truth', 'catalogue') else coadd


@pytest.mark.parametrize('kind, packed', [(kind, kind == 'redrock') for kind in DAMAGED], ids=DAMAGED)
def test_a_flipped_byte_is_found_by_its_sum(tmp_path, kind, packed):
    (name, reader), path = DAMAGED[kind], whole_file(tmp_path, kind)
    if kind != 'compact':
        with fits.open(path) as h: h.writeto(tmp_path/'summed.fits', checksum=True)
        path = tmp_path/'summed.fits'
    assert len(reader(path)) == (1 if kind.startswith(('sdss', 'lamost')) else 4)
    with fits.open(path, disable_image_compression=True) as h: start = h[name].fileinfo()['datLoc']
    content = bytearray(path.read_bytes())
    content[start + 20] ^= 4
    path.write_bytes(gzip.compress(bytes(content), 1) if packed else content)
    refused((reader, path), name or 'PRIMARY', 'damaged')


def test_text_of_a_table_that_is_none(tmp_path):
    path = write_parts(tmp_path/'catalogue.fits', {'CATALOGUE': Table({'TARGETID': np.arange(4), 'SPECTYPE': ['GALAXY']*4})})
    content = path.read_bytes()
    path.write_bytes(content.replace(b'GALAXY', b'GA\xb8AXY', 1))
    with pytest.raises(ValueError, match=re.escape(str(path))) as error: read_written_table(path)
    assert 'not a readable table' in str(error.value)


@pytest.mark.parametrize('card, value', [('NAXIS1', -5), ('NAXIS1', 10**12), ('BITPIX', 7)])
def test_a_header_without_sense_is_the_files(tmp_path, card, value):
    path = write_coadd(tmp_path/'coadd-main-dark-1.fits')
    content, old = path.read_bytes(), f"{card:8}= {2751 if card == 'NAXIS1' else -32:20}".encode()
    start = content.index(b"XTENSION= 'IMAGE", content.index(b'B_WAVELENGTH'))
    at = content.index(old, start)
    path.write_bytes(content[:at] + f'{card:8}= {value:20}'.encode() + content[at + len(old):])
    refused((read_coadd, path), 'download')


def test_names_of_the_greatest_length(tmp_path):
    coadd = write_pair(tmp_path)
    long = coadd.rename(tmp_path/f"coadd-{'b'*244}.fits")
    assert len(long.name) == 255 and find_redrock(long) is None and len(read_any(long)) == 4


def test_a_blank_survey_is_any(tmp_path):
    coadd = write_pair(tmp_path)
    answers = redrock_table(coadd_parts()['FIBERMAP']['TARGETID'])
    spectra = read_coadd(coadd)
    spectra.meta['SURVEY'], spectra.meta['PROGRAM'] = 'main', 'dark'
    answers['SURVEY'], answers['PROGRAM'] = '', ''
    assert np.isfinite(join_redrock(spectra, answers).meta['Z']).all()


def test_an_hdu_that_was_renamed_is_not_damaged(tmp_path):
    "Astropy keeps the old CHECKSUM then; DATASUM is still right."
    with fits.open(write_pair(tmp_path)) as h: h.writeto(tmp_path/'coadd-1.fits', checksum=True)
    with fits.open(tmp_path/'coadd-1.fits') as h:
        h['FIBERMAP'].name = 'COADD_FIBERMAP'
        h.writeto(tmp_path/'coadd-2.fits')
    assert list(read_coadd(tmp_path/'coadd-2.fits').meta['TARGETID']) == list(coadd_parts()['FIBERMAP']['TARGETID'])


PACKERS = {'gzip': gzip.compress, 'bzip2': bz2.compress, 'xz': lzma.compress}


@pytest.mark.parametrize('name', ['coadd-main-dark-1.fits', 'coadd-main-dark-1.fits.gz'])
@pytest.mark.parametrize('packer', PACKERS)
def test_packed_files_by_their_content(tmp_path, name, packer):
    whole = write_coadd(tmp_path/'whole.fits')
    packed = PACKERS[packer](whole.read_bytes())
    (tmp_path/name).write_bytes(packed)
    assert np.array_equal(read_coadd(tmp_path/name).ivar, read_coadd(whole).ivar)
    for share in (.5, .999):
        (tmp_path/name).write_bytes(packed[:int(share*len(packed))])
        refused((read_coadd, tmp_path/name), 'not a complete FITS file')
    sdss = write_sdss(tmp_path)
    sdss.write_bytes(PACKERS[packer](sdss.read_bytes())[:-40])
    refused((read_sdss, sdss), 'not a complete FITS file')


def test_memory_is_counted_before_it_is_taken(tmp_path, monkeypatch):
    coadd = write_pair(tmp_path)
    compact = extract_file(coadd, tmp_path/'compact.fits')
    (tmp_path/'packed.fits').write_bytes(gzip.compress(coadd.read_bytes(), 1))
    monkeypatch.setattr('skyseek.data.hdus.memory_left', lambda: 300_000)
    for reader, path in ((read_coadd, coadd), (read_spectra, compact), (read_coadd, tmp_path/'packed.fits')): refused((reader, path), 'memory')


def test_a_coadd_without_any_light_is_refused(tmp_path):
    coadd = write_pair(tmp_path)
    changed(coadd, **{f'{arm}_IVAR': lambda h: h.data.fill(0) for arm in 'BRZ'})
    start = time.time()
    refused((lambda p: read_targets([p]), coadd), 'dark')
    assert time.time() - start < 5


# Where on the sky

@pytest.mark.parametrize('header, pixel', [({}, 1234), (dict(HPXNSIDE=128), 308), (dict(HPXNSIDE=256), 77), (dict(HPXNSIDE=32), -1), (dict(HPXNEST=False), -1), (dict(HPXNEST='F'), -1), (dict(HPXNSIDE=100), -1)])
def test_healpix_is_of_nside_64_nested_or_unknown(tmp_path, header, pixel):
    path = changed(write_coadd(tmp_path/'coadd.fits'), PRIMARY=lambda h: h.header.update(dict(HPXPIXEL=1234, HPXNSIDE=64, HPXNEST=True, SURVEY='main', PROGRAM='dark') | header))
    spectra, said = told(read_coadd, path)
    assert list(spectra.meta['HEALPIX']) == [pixel]*4 and ('becomes -1' in said) == (pixel == -1)


def test_adaptive_pixels_of_the_name_are_not_taken_for_others(tmp_path):
    assert list(read_coadd(write_coadd(tmp_path/'coadd-main-dark-61000.fits')).meta['HEALPIX']) == [-1]*4


# Names of files

@pytest.mark.parametrize('name', ['coadd-mäin-dark-1.fits', 'coadd-a\nb\x1b[31m.fits'])
def test_any_name_of_a_coadd_is_extracted(tmp_path, name):
    write_coadd(tmp_path/name)
    write_parts(tmp_path/name.replace('coadd', 'redrock'), {'REDSHIFTS': redrock_table(coadd_parts()['FIBERMAP']['TARGETID'])})
    compact = extract_file(tmp_path/name, tmp_path/'compact.fits')
    stamp = compact.stat().st_mtime_ns
    assert len(read_spectra(compact)) == 4 and fits.getheader(compact)['COADD'].isascii() and extract_file(tmp_path/name, compact).stat().st_mtime_ns == stamp
    (tmp_path/name).write_bytes(b'note')
    refused((read_coadd, tmp_path/name))
    sdss = write_sdss(tmp_path)
    sdss.rename(tmp_path/'spéc.fits')
    assert len(read_spectra(write_spectra(read_sdss(tmp_path/'spéc.fits'), tmp_path/'s.fits'))) == 1


# Shards

def shard(path, **changes):
    from skyseek.learn.features import build_features
    from skyseek.learn.shards import write_features
    features = build_features(read_any(write_coadd(path.with_name('coadd.fits'))))
    return write_features({k: v for k, v in (features | changes).items() if v is not None}, path)


@pytest.mark.parametrize('bytes_there', [100, 100_000])
def test_shard_that_claims_more_than_it_has(tmp_path, bytes_there):
    from skyseek.learn.shards import read_features
    path = shard(tmp_path/'features.npz')
    with ZipFile(path) as z: members = {n: z.read(n) for n in z.namelist()}
    head = members['flux.npy'][:128]
    members['flux.npy'] = re.sub(rb"\(4, 7781\), \} *\n", lambda m: b'(1000000000, 7781), }'.ljust(len(m[0]) - 1)[:len(m[0]) - 1] + b'\n', head) + bytes(bytes_there)
    with ZipFile(path, 'w') as z:
        for name, data in members.items(): z.writestr(name, data)
    with pytest.raises(ValueError, match='not a whole feature shard') as e: read_features(path)
    assert '\n' not in str(e.value)


def test_shard_larger_than_memory(tmp_path, monkeypatch):
    from skyseek.learn.shards import read_features
    path = shard(tmp_path/'features.npz')
    monkeypatch.setattr('skyseek.data.hdus.memory_left', lambda: 50_000)
    with pytest.raises(ValueError, match='memory'): read_features(path)


@pytest.mark.parametrize('change, words', [(dict(targetid=np.array([1., 2, 3, 4])), 'TARGETID'), (dict(targetid=np.array([1, 2, 3, 2**63], np.uint64)), 'TARGETID'), (dict(scale=np.ones((4, 2), 'f4')), 'dimensions'), (dict(flux=np.ones(4, 'f2')), 'dimensions')])
def test_shard_with_nonsense(tmp_path, change, words):
    from skyseek.learn.shards import read_features
    with pytest.raises(ValueError, match=words): read_features(shard(tmp_path/'features.npz', **change))


# SPARCL

def record(number, **other):
    return dict(sparcl_id=f'id-{number}', specid=number, specprimary=True, ra=10., dec=2., redshift=.4, redshift_err=1e-4, redshift_warning=0, spectype='galaxy', wavelength=(3600 + .8*np.arange(7781)).tolist(), flux=[2.]*7781, ivar=[1.]*7781, mask=[0]*7781) | other


def sdss_record(number, first=35600, n=400, wave=lambda loglam: 10**loglam, **other):
    return record(number) | dict(wavelength=wave(1e-4*(first + np.arange(n))).tolist(), flux=[3.]*n, ivar=[2.]*n, mask=[4]*n, spectype='QSO') | other


class Recorded:
    "Stands in for the service."
    def __init__(self, *records): self.records = records
    def get_all_fields(self, dataset_list): return set(self.records[0])
    def find(self, fields, constraints, limit): return SimpleNamespace(ids=[r['sparcl_id'] for r in self.records if r['specid'] in constraints['specid']])
    def retrieve(self, ids, include, dataset_list, limit, units): return SimpleNamespace(records=[{k: r.get(k) for k in include} for r in self.records if r['sparcl_id'] in ids])


@pytest.mark.parametrize('wave', [lambda x: 10**x, lambda x: x, lambda x: 10**x/10, lambda x: np.round(10**x, 3)], ids=['Å', 'log10', 'nm', 'rounded'])
def test_sdss_through_sparcl(wave):
    from skyseek.data.sparcl import fetch_sparcl
    client = Recorded(sdss_record(-6444532452352045056, 35600, wave=wave), sdss_record(1506454396622366720, 35700, 500, wave=wave, mask=[1 << 23] + [4]*499))
    spectra, missing = fetch_sparcl([1506454396622366720, 12002211621357506560], 'SDSS-DR16', client)
    assert list(spectra.meta['TARGETID']) == [1506454396622366720, -6444532452352045056] and not missing and list(spectra.meta['SPECTYPE']) == ['QSO']*2
    assert np.allclose(np.log10(spectra.wave), 1e-4*np.arange(35600, 36200), atol=1e-9) and list(spectra.good.sum(1)) == [497, 400]


@pytest.mark.parametrize('make', [record, sdss_record])
def test_records_that_lack_something(make):
    from skyseek.data.sparcl import fetch_sparcl
    client = Recorded(make(1), make(2, mask=None), make(3, ivar=None), make(4, redshift=None, spectype=None, redshift_warning=None))
    (spectra, missing), said = told(fetch_sparcl, [1, 2, 3, 4, 5], 'BOSS-DR16', client)
    assert list(spectra.meta['TARGETID']) == [1, 2, 4] and missing == [3, 5] and 'no ivar' in said and spectra.good[1].any()
    assert np.isnan(spectra.meta['Z'][2]) and spectra.meta['ZWARN'][2] == 512 and spectra.meta['SPECTYPE'][2] == ''
    refused(lambda: fetch_sparcl([3], 'BOSS-DR16', client), 'no ivar')


@pytest.fixture
def service():
    "A server on this machine that speaks as SPARCL does; `answers` says what, `asked` what it was asked."
    answers, asked = {}, []
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.rfile.read(int(self.headers.get('Content-Length') or 0))))
            status, headers, parts = answers[self.path.split('/')[2]]
            self.send_response(status)
            for key, value in headers.items(): self.send_header(key, value)
            self.end_headers()
            try:
                for part in parts: self.wfile.write(part)
            except OSError: pass
        do_POST = do_GET
        def log_message(self, *args): pass
    server = HTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    inside = {k: f'a.{k}' for k in (*record(1), 'data_release')}
    dumped = lambda x: (200, {}, [json.dumps(x).encode()])
    answers.update(datafields=dumped([dict(data_release='DESI-DR1', newdp=k, origdp=v) for k, v in inside.items()]), find=dumped([{}, {inside['sparcl_id']: 'id-77', inside['specid']: 77}]), spectras=dumped([{}, {inside[k]: v for k, v in record(77).items()}]))
    yield SimpleNamespace(url=f'http://127.0.0.1:{server.server_port}', answers=answers, asked=asked)
    server.shutdown()
    server.server_close()


def test_conversation_with_sparcl(service):
    from skyseek.data.sparcl import Sparcl, fetch_sparcl
    spectra, missing = fetch_sparcl([77, 78], client=Sparcl(service.url))
    assert list(spectra.meta['TARGETID']) == [77] and missing == [78] and list(spectra.meta['SPECTYPE']) == ['GALAXY'] and spectra.good.all()
    assert 'format=json' in service.asked[-1][0] and json.loads(service.asked[-1][1]) == ['id-77'] and json.loads(service.asked[1][1])['search'][0] == ['a.specid', 77, 78]


def endless():
    while True: yield bytes(1 << 16)


def dripping():
    for _ in range(100):
        time.sleep(.1)
        yield b' '


TROUBLE = {'a pickle': (lambda: (200, {}, [b'\x80\x04\x95' + bytes(99)]), 'pickle'), 'no end': (lambda: (200, {}, endless()), 'MB'), 'a byte now and then': (lambda: (200, {}, dripping()), 'does not answer'), 'a web page': (lambda: (200, {}, [b'<html>']), 'no JSON'),
           'brackets': (lambda: (200, {}, [b'['*200_000]), 'no JSON'), 'a refusal': (lambda: (400, {}, [b'{"errorMessage": "no\\u001b[31m such field"}']), '400'), 'a way out': (lambda: (302, {'Location': 'http://example.org/'}, []), 'https'), 'a file': (lambda: (302, {'Location': 'file:///etc/hostname'}, []), '302'), 'other things': (lambda: (200, {}, [b'{"a": 1}']), 'does not give')}


@pytest.mark.parametrize('kind', TROUBLE)
def test_trouble_with_sparcl_is_one_line(service, kind):
    from skyseek.data.sparcl import Sparcl, fetch_sparcl
    answer, words = TROUBLE[kind]
    service.answers['spectras'] = answer()
    start = time.time()
    text = refused(lambda: fetch_sparcl([77], client=Sparcl(service.url, timeout=.3)), words)
    assert time.time() - start < 8 and '\x1b' not in text


@pytest.mark.parametrize('url', ['http://astrosparcl.datalab.noirlab.edu', 'ftp://127.0.0.1', 'file:///tmp'])
def test_only_https_is_spoken(url):
    from skyseek.data.sparcl import Sparcl
    with pytest.raises(ValueError, match='https'): Sparcl(url)


def test_sparcl_needs_no_package_of_its_own():
    settings = (Path(__file__).resolve().parent.parent/'settings.ini').read_text()
    assert 'sparclclient' not in settings and 'sparclclient' not in (Path(__file__).resolve().parent.parent/'skyseek/data/sparcl.py').read_text()
