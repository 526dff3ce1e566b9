"""Where a spectrum comes from, rates of fibres, petals, amplifiers and nights."""
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from surveys import coadd_parts, redrock_table, write_pair, write_parts

from skyseek.data.byte_ranges import NEEDED, needed_ranges, plan_pieces
from skyseek.data.desi import extract, extract_file, read_coadd
from skyseek.data.fibres import PLACE_COLUMNS
from skyseek.data.files import read_spectra
from skyseek.data.one_target import read_target
from skyseek.pipeline.catalogue import make_catalogue
from skyseek.pipeline.score import score_spectra


def exposures(ids):
    "EXP_FIBERMAP of three exposures each on two nights with another fibre each; the first one is bad."
    n = len(ids)
    return Table(dict(TARGETID=np.repeat(ids, 3), FIBER=np.tile([4001, 12, 13], n).astype('i4'), PETAL_LOC=np.tile([8, 0, 0], n).astype('i2'), TILEID=np.full(3*n, 80605, 'i4'), NIGHT=np.tile([20210512, 20210514, 20210513], n),
                      EXPID=np.tile([90, 95, 92], n), FIBERSTATUS=np.tile([1 << 16, 0, 0], n)))


def test_a_coadd_of_a_pixel_says_where_its_spectra_come_from(tmp_path, weights):
    parts = coadd_parts(4)
    ids = np.asarray(parts['FIBERMAP']['TARGETID'])
    coadd = write_parts(tmp_path/'coadd-main-dark-9999.fits', parts | {'EXP_FIBERMAP': exposures(ids[:3])})
    write_parts(tmp_path/'redrock-main-dark-9999.fits', {'REDSHIFTS': redrock_table(ids)})
    compact = read_spectra(extract_file(coadd, tmp_path))
    known = dict(FIBER=12, PETAL_LOC=0, TILEID=80605, LASTNIGHT=20210514, EXPID_MIN=90, EXPID_MAX=95)
    for name, value in known.items(): assert list(compact.meta[name]) == [value]*3 + [-1], name
    table = make_catalogue([score_spectra(compact, weights)])
    assert all(list(table[name]) == [value]*3 + [-1] for name, value in known.items())


def test_without_any_such_table_nothing_is_invented(tmp_path, weights):
    (tmp_path/'bare').mkdir()
    bare = extract(write_pair(tmp_path/'bare'))
    assert not set(PLACE_COLUMNS) & set(bare.meta.colnames)
    parts = coadd_parts(2)
    write_parts(tmp_path/'redrock-main-dark-1.fits', {'REDSHIFTS': redrock_table(parts['FIBERMAP']['TARGETID'])})
    full = extract(write_parts(tmp_path/'coadd-main-dark-1.fits', parts | {'EXP_FIBERMAP': exposures(parts['FIBERMAP']['TARGETID'])}))
    both = make_catalogue([score_spectra(s, weights) for s in (bare, full)])
    assert all(list(both[name][:4]) == [-1]*4 and (both[name][4:] >= 0).all() for name in PLACE_COLUMNS)


def test_a_coadd_of_a_tile_has_its_fibres_and_its_night(tmp_path):
    parts = coadd_parts(3)
    parts['FIBERMAP']['FIBER'], parts['FIBERMAP']['TILEID'] = np.array([1500, 1501, 1999], 'i4'), np.full(3, 80613, 'i4')
    path = write_parts(tmp_path/'coadd-3-80613-thru20210324.fits', parts)
    for key, value in dict(SPGRP='cumulative', SPGRPVAL=20210324).items(): fits.setval(path, key, value=value)
    meta = read_coadd(path).meta
    assert list(meta['FIBER']) == [1500, 1501, 1999] and set(meta['PETAL_LOC']) == {3} and set(meta['LASTNIGHT']) == {20210324} and 'EXPID_MIN' not in meta.colnames


def test_a_broken_table_of_exposures_costs_no_spectrum(tmp_path):
    parts = coadd_parts(3)
    broken = exposures(parts['FIBERMAP']['TARGETID'])
    broken['TARGETID'] = broken['TARGETID'].astype(float)
    path = write_parts(tmp_path/'coadd-main-dark-1.fits', parts | {'EXP_FIBERMAP': broken})
    with pytest.warns(UserWarning, match='fibres and nights are not known .TARGETID is a column of float64'): assert len(read_coadd(path)) == 3


def test_exposures_are_fetched_from_an_archive_too(tmp_path):
    parts = coadd_parts(4)
    path = write_parts(tmp_path/'coadd-main-dark-9999.fits', parts | {'EXP_FIBERMAP': exposures(parts['FIBERMAP']['TARGETID']), 'B_RESOLUTION': np.ones((4, 11, 100), 'f4')})
    whole = path.read_bytes()
    data = b''.join(whole[a:b] for a, b in needed_ranges(plan_pieces(lambda a, b: whole[a:b], len(whole)), NEEDED))
    path.write_bytes(data)
    assert len(data) < len(whole) and list(read_coadd(path).meta['LASTNIGHT']) == [20210514]*4
    assert len(read_target(path, int(parts['FIBERMAP']['TARGETID'][2]))) == 1


def test_real_coadds_have_their_fibres(data):
    for name, known in (('special-dark-27247', [931, 1, 83288, 20230414]), ('4-80613-thru20210324', [2233, 4, 80613, 20210324])):
        meta = read_coadd(data/f'desi/coadd_redrock/coadd-{name}.fits').meta
        assert [int(meta[c][0]) for c in PLACE_COLUMNS][:4] == known
