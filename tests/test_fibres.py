"""Where a spectrum comes from, rates of fibres, petals, amplifiers and nights."""
import warnings

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table, vstack
from commands import errors, skyseek
from surveys import coadd_parts, redrock_table, write_pair, write_parts

from skyseek.data.byte_ranges import NEEDED, needed_ranges, plan_pieces
from skyseek.data.desi import extract, extract_file, read_coadd
from skyseek.data.fibres import PLACE_COLUMNS
from skyseek.data.files import read_spectra, write_table
from skyseek.data.one_target import read_target
from skyseek.detect.fibre_rates import evidence_waves, find_bad_units, recurring_waves
from skyseek.pipeline.catalogue import make_catalogue
from skyseek.pipeline.parts import complete, part_path, write_part
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


def catalogue(seed=0, n_fibres=5000, each=20, bad=True):
    """Targets with failures that depend on tracer and S/N. Fibre 77 has wrong redshifts, 1234 warnings, 4100 one redshift."""
    rng, n = np.random.default_rng(seed), n_fibres*each
    fibre, snr, target = np.repeat(np.arange(n_fibres), each), np.exp(rng.normal(0, 1, n)), rng.choice([1, 2, 4, 1 << 60], n)
    snr[fibre % 10 == 0] *= .2  # a tenth of the fibres observes faint targets only
    faint, z = np.exp(-snr), rng.uniform(0, 1.6, n)
    wrong, warned = rng.random(n) < np.where(target == 2, .2, .05)*faint, rng.random(n) < .2*faint
    if bad:
        wrong[fibre == 77] |= rng.random(each) < .7
        warned[fibre == 1234] |= rng.random(each) < .8
        z[np.flatnonzero(fibre == 4100)[:8]] = 1.4 + rng.uniform(-.001, .001, 8)
    return Table(dict(TARGETID=rng.permutation(n) + 1, FIBER=fibre, LASTNIGHT=20210500 + rng.integers(1, 30, n), DESI_TARGET=target, SNR=snr, Z=z, ZWARN=4*warned, SPECTYPE=np.full(n, 'GALAXY'), P_Z_WRONG=.9*wrong, FLAG_Z_WRONG=wrong))


@pytest.mark.parametrize('seed', range(4))
def test_three_bad_fibres_among_5000(seed):
    found = find_bad_units(catalogue(seed))
    bad = found[found['BAD']]
    kinds = {(u, int(v), k) for u, v, k in zip(bad['UNIT'], bad['VALUE'], bad['KIND'])}
    planted = {('FIBER', 77, 'WRONG'), ('FIBER', 1234, 'ZWARN'), ('FIBER', 4100, 'SAME_Z')}
    assert planted <= kinds and len(kinds - planted) <= 1
    assert abs(bad['PLACE'][bad['KIND'] == 'SAME_Z'][0] - 1.4) < .01 and len(set(found['VALUE'][found['UNIT'] == 'FIBER'])) == 5000
    row = found[(found['UNIT'] == 'FIBER') & (found['VALUE'] == 77) & (found['KIND'] == 'WRONG')][0]
    assert row['N'] == 20 and row['RATE_LO'] < row['RATE'] == row['COUNT']/20 < row['RATE_HI'] and row['RATIO'] > 5


def test_with_nothing_wrong_hardly_any_catalogue_has_a_bad_fibre():
    """At most 5 % of catalogues; 40 seeds, with the ratio asked for and without it."""
    found = [find_bad_units(catalogue(seed, 1000, 15, bad=False), ratio=0) for seed in range(40)]
    assert sum(t['BAD'].any() for t in found) <= 5


def test_a_bad_amplifier_a_bad_petal_and_a_bad_night():
    rng, table = np.random.default_rng(3), catalogue(9, 5000, 8, bad=False)
    fibre, wrong = np.asarray(table['FIBER']), np.asarray(table['FLAG_Z_WRONG'])
    for unit, here in dict(AMPLIFIER=fibre//250 == 9, PETAL=fibre//500 == 7, NIGHT=np.asarray(table['LASTNIGHT']) == 20210511).items():
        spoilt = table.copy()
        spoilt['FLAG_Z_WRONG'] = wrong | here & (rng.random(len(table)) < .1)
        found = find_bad_units(spoilt)
        bad = found[found['BAD'] & (found['UNIT'] == unit)]
        assert list(bad['VALUE']) == [dict(AMPLIFIER=2250, PETAL=7, NIGHT=20210511)[unit]]
        assert set(found['UNIT'][found['BAD']]) <= ({'NIGHT'} if unit == 'NIGHT' else {'FIBER', 'AMPLIFIER', 'PETAL'})


def test_repeated_rows_count_once_and_sky_never():
    table = catalogue(4, 1000, 15, bad=False)
    row = table[np.flatnonzero(table['FLAG_Z_WRONG'])[:1]]
    assert not find_bad_units(vstack([table, *[row]*50]))['BAD'].any()
    sky = vstack([row]*50)
    sky['TARGETID'], table['OBJTYPE'], sky['OBJTYPE'] = -np.arange(1, 51), 'TGT', 'SKY'
    assert not find_bad_units(vstack([table, sky]))['BAD'].any()


def test_wavelengths_that_recur():
    rng, table = np.random.default_rng(5), catalogue(6, 500, 40, bad=False)
    wrong = np.asarray(table['FLAG_Z_WRONG'])
    table['CAUSE_WAVE'] = np.where(wrong[:, None], rng.uniform(3600, 9800, (len(table), 3)), np.nan)
    assert not len(recurring_waves(evidence_waves(table))) and not find_bad_units(table)['BAD'].any()
    flagged = np.flatnonzero(wrong)
    table['CAUSE_WAVE'][flagged[:17], 1] = 9402.
    shared = recurring_waves(evidence_waves(table))
    assert list(shared['WAVE']) == [9402.5] and shared['COUNT'][0] >= 17
    mine = flagged[np.asarray(table['FIBER'])[flagged] == np.bincount(np.asarray(table['FIBER'])[flagged]).argmax()]
    table['CAUSE_WAVE'][mine, 0] = 5000.
    found = find_bad_units(table)
    assert ('SAME_WAVE', int(table['FIBER'][mine[0]])) in set(zip(found['KIND'][found['BAD']], found['VALUE'][found['BAD']].tolist()))


def test_command(tmp_path):
    write_table(catalogue(1), tmp_path/'catalogue.fits', 'CATALOGUE')
    done = skyseek('fibres', tmp_path/'catalogue.fits', '-o', tmp_path/'fibres.ecsv', '--map', tmp_path/'map.png')
    assert done.returncode == 0 and 'fibre 77: ' in done.stdout and 'fibre 4100: 8 of 20 redshifts near z = 1.4' in done.stdout, done.stderr
    assert set(Table.read(tmp_path/'fibres.ecsv')['UNIT']) == {'FIBER', 'AMPLIFIER', 'PETAL', 'NIGHT'} and (tmp_path/'map.png').stat().st_size > 10_000
    write_table(catalogue(1)['TARGETID', 'Z', 'ZWARN'], tmp_path/'bare.fits', 'CATALOGUE')
    for arguments, words in (([tmp_path/'bare.fits'], 'lacks FIBER'), ([tmp_path/'gone.fits'], 'no such file'), ([tmp_path/'catalogue.fits', '-o', tmp_path/'fibres.ecsv'], '--overwrite'),
                             ([tmp_path/'catalogue.fits', '-o', tmp_path/'fibres.doc'], 'fibres.doc'), ([tmp_path/'catalogue.fits', '--map', tmp_path/'map.doc'], 'map.doc'), ([tmp_path/'catalogue.fits', '--fdr', 2], '--fdr')):
        done = skyseek('fibres', *arguments)
        assert done.returncode == 1 and len(errors(done)) == 1 and words in done.stderr


def test_folder_of_a_survey_and_a_catalogue_without_fibres(tmp_path):
    made = catalogue(1, 5000, 12)
    for k in range(2): write_part(made[np.arange(len(made)) % 2 == k], part_path(tmp_path, 'main', 'dark', 10 + k), {})
    done = skyseek('fibres', tmp_path)
    assert done.returncode == 0 and 'fibre 77: ' in done.stdout, done.stderr
    write_table(complete(made), tmp_path/'all.vot', 'CATALOGUE')
    with warnings.catch_warnings():
        warnings.simplefilter('error', RuntimeWarning)
        assert 'fibre 77: ' in skyseek('fibres', tmp_path/'all.vot').stdout
    write_table(complete(made[[c for c in made.colnames if c != 'FIBER']]), tmp_path/'none.fits', 'CATALOGUE')
    done = skyseek('fibres', tmp_path/'none.fits')
    assert done.returncode == 1 and 'no target of the catalogue has a FIBER' in done.stderr
