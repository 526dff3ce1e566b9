"""DESI's rules for good redshifts, its afterburners, and the middle level of confidence."""
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table, vstack
from commands import skyseek as run

from skyseek.data.afterburners import find_afterburners
from skyseek.data.constants import AFTERBURNER_COLUMNS
from skyseek.data.desi import extract, extract_file
from skyseek.data.files import write_table
from skyseek.data.hdus import ReadError
from skyseek.data.read import read_targets
from skyseek.detect.confidence import compare_rules, confidence_levels, contradictions, find_level_two, rule_columns
from skyseek.detect.desi_rules import fails_rules, good_redshifts, target_classes
from skyseek.pipeline.score import load_weights, score_spectra
from skyseek.redshift.afterburner_tests import mgii_quasars, oii_fluxes, with_afterburners
from skyseek.redshift.second_look import second_look
from skyseek.simulate.mock_survey import simulate_spectra, simulate_survey


def write(path, hdu, **columns): fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU(Table(columns), name=hdu)]).writeto(path, overwrite=True)


@pytest.fixture(scope='module')
def survey(tmp_path_factory):
    """A simulated coadd with redshifts, truth, and the three tables of the afterburners in another order and with fewer rows."""
    folder = tmp_path_factory.mktemp('afterburners')
    simulate_survey(folder, 120, seed=3, hpx=7)
    coadd = folder/'coadd-main-dark-7.fits'
    done = run('redshift', coadd)
    assert done.returncode == 0, done.stderr
    ids = np.array(Table.read(folder/'redrock-main-dark-7.fits', 'REDSHIFTS')['TARGETID'])
    n, back = len(ids), ids[::-1]
    write(folder/'emline-main-dark-7.fits', 'EMLINEFIT', TARGETID=back, OII_FLUX=np.arange(n, dtype=float)[::-1], OII_FLUX_IVAR=np.ones(n))
    write(folder/'qso_mgii-main-dark-7.fits', 'MGII', TARGETID=back[:20], IS_QSO_MGII=np.ones(20, bool))
    write(folder/'qso_qn-main-dark-7.fits', 'QN_RR', TARGETID=back[:20], Z_NEW=np.full(20, 2.5), ZERR_NEW=np.full(20, 1e-3), IS_QSO_QN_NEW_RR=np.ones(20, bool),
          **{c: np.full(20, .999) for c in ('C_LYA', 'C_CIV', 'C_CIII', 'C_MgII', 'C_Hbeta', 'C_Halpha')})
    return coadd, ids


@pytest.mark.filterwarnings('ignore')
def test_afterburners_are_joined_by_target(survey):
    coadd, ids = survey
    assert set(find_afterburners(coadd.with_name('redrock-main-dark-7.fits'))) == {'emline', 'qso_mgii', 'qso_qn'}
    meta = extract(coadd).meta
    place = {t: i for i, t in enumerate(ids)}
    assert set(AFTERBURNER_COLUMNS) <= set(meta.colnames)
    assert [float(place[t]) for t in meta['TARGETID']] == list(meta['OII_FLUX'])
    late = np.array([place[t] >= len(ids) - 20 for t in meta['TARGETID']])
    assert np.array_equal(np.asarray(meta['IS_QSO_MGII']), late) and np.array_equal(np.isfinite(meta['Z_NEW']), late)
    rules = good_redshifts(meta)
    moved = np.asarray(rules['GOOD_Z_QSO']) & late
    assert moved.any() and (np.asarray(rules['Z_QSO'])[moved] == 2.5).all() and not rules.meta['LACKS']


def catalogues(coadd, folder, split):
    "The redshift catalogue of a production: redrock's rows among those of other targets, another order, another programme; one file, or two."
    redrock = Table.read(coadd.with_name('redrock-main-dark-7.fits'), 'REDSHIFTS')
    ours, bright, others = redrock[::-1].copy(), redrock.copy(), redrock[:5].copy()
    ours['PROGRAM'], bright['PROGRAM'], others['PROGRAM'] = 'dark', 'bright', 'dark'
    bright['Z'] += .5
    others['TARGETID'] += 10**9
    table = vstack([others, bright, ours], metadata_conflicts='silent')
    table['SURVEY'], table['HEALPIX'], table['OII_FLUX'], table['SHAPE_R9'] = 'main', 7, np.arange(len(table), dtype=float), .1
    table['C_MgII'] = .5
    if not split: return write(folder/'zall-pix-test.fits', 'ZCATALOG', **dict(table.columns)) or folder/'zall-pix-test.fits'
    write(folder/'zall-pix-test.fits', 'ZCATALOG', TARGETID=table['TARGETID'], HEALPIX=table['HEALPIX'], Z_BEST=table['Z'] + .1, Z_CONF=table['ZWARN'])
    write(folder/'zall-pix-test-extra.fits', 'ZCATALOG_EXTRA', **{c: table[c] for c in table.colnames if c not in ('HEALPIX', 'NCOEFF')})
    return folder/'zall-pix-test.fits'


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('split', (False, True), ids=('v1', 'v2'))
def test_the_catalogue_of_a_production_takes_the_place_of_redrock(survey, tmp_path, split):
    coadd, ids = survey
    (tmp_path/coadd.name).write_bytes(coadd.read_bytes())
    catalogue, here = catalogues(coadd, tmp_path, split), tmp_path/coadd.name
    wanted, found = extract(coadd).meta, extract(here, catalogue).meta
    for name in ('TARGETID', 'Z', 'ZWARN', 'SPECTYPE', 'CHI2', 'DELTACHI2', 'COEFF'): assert np.array_equal(wanted[name], found[name], equal_nan=name != 'SPECTYPE'), name
    assert {'OII_FLUX', 'C_MGII'} <= set(found.colnames) and 'SHAPE_R9' not in found.colnames and (found['C_MGII'] == .5).all()
    compact = extract_file(here, tmp_path/'spectra-7.fits', catalogue)
    again, _ = read_targets([compact], catalogue)  # of a compact file too
    assert np.array_equal(again.meta['Z'], wanted['Z'], equal_nan=True)


def test_a_catalogue_of_tiles_is_not_joined_with_a_pixel(survey, tmp_path):
    coadd, ids = survey
    catalogue = catalogues(coadd, tmp_path, False)
    table = Table.read(catalogue)
    table['TILEID'] = 80605
    table.remove_column('HEALPIX')
    write(tmp_path/'ztile-main.fits', 'ZCATALOG', **dict(table.columns))
    with pytest.raises(ReadError, match='single tiles'): extract(coadd, tmp_path/'ztile-main.fits')
    table['TARGETID'] += 10**8
    write(tmp_path/'other.fits', 'ZCATALOG', **dict(table.columns))
    with pytest.raises(ReadError, match='none of the'): extract(coadd, tmp_path/'other.fits')
    (tmp_path/coadd.name).write_bytes(coadd.read_bytes())
    done = run('score', tmp_path/coadd.name, '-o', tmp_path/'out.fits', '--redrock', catalogue, '--redrock', tmp_path/'other.fits')
    assert done.returncode == 1 and 'none of the' in done.stderr and not (tmp_path/'out.fits').exists()


def test_broken_afterburners_cost_no_spectrum(survey, tmp_path):
    coadd, ids = survey
    for path in coadd.parent.glob('*-7.fits'): (tmp_path/path.name).write_bytes(path.read_bytes())
    (tmp_path/'emline-main-dark-7.fits').write_bytes(b'SIMPLE')
    write(tmp_path/'qso_mgii-main-dark-7.fits', 'MGII', TARGETID=[1, 2], IS_QSO_MGII=[True, True])
    write(tmp_path/'qso_qn-main-dark-7.fits', 'OTHER', TARGETID=ids, Z_NEW=np.zeros(len(ids)))
    with pytest.warns(UserWarning, match='afterburners') as said:
        spectra = extract(tmp_path/coadd.name)
    said = [str(w.message) for w in said if 'afterburners' in str(w.message)]
    assert len(said) == 1 and all(kind in said[0] for kind in ('emline', 'of other targets', 'QN_RR'))
    assert len(spectra) and not set(AFTERBURNER_COLUMNS) & set(spectra.meta.colnames)


def test_rules_are_those_of_desispec():
    """Against desispec's own function, where it is installed."""
    valid = pytest.importorskip('desispec.validredshifts')
    rng, n = np.random.default_rng(0), 5000
    meta = Table(dict(TARGETID=np.arange(n), Z=rng.uniform(-.01, 6, n), ZERR=np.ones(n), ZWARN=rng.choice([0, 4], n), DELTACHI2=rng.uniform(0, 80, n), SPECTYPE=rng.choice(['GALAXY', 'QSO', 'STAR'], n),
                      COADD_FIBERSTATUS=rng.choice([0, 8, 1 << 9, 1 << 20], n), OBJTYPE=rng.choice(['TGT', 'SKY'], n), OII_FLUX=rng.normal(5, 5, n), OII_FLUX_IVAR=rng.uniform(-1, 3, n),
                      IS_QSO_MGII=rng.random(n) < .1, Z_NEW=rng.uniform(0, 4, n), ZERR_NEW=np.ones(n), IS_QSO_QN_NEW_RR=rng.random(n) < .3, **{c: rng.random(n)**4 for c in ('C_LYA', 'C_CIV', 'C_CIII', 'C_MgII', 'C_Hbeta', 'C_Halpha')}))
    theirs = valid.actually_validate(meta)
    own = meta.copy()
    for name in ('C_MgII', 'C_Hbeta', 'C_Halpha'): own.rename_column(name, name.upper())
    own['DESI_TARGET'] = np.full(n, 1 << 60 | 15)
    ours = good_redshifts(own)
    for name in ('BGS', 'LRG', 'ELG', 'QSO'): assert np.array_equal(np.asarray(ours[f'GOOD_Z_{name}']), np.asarray(theirs[f'GOOD_Z_{name}'] & (meta['OBJTYPE'] == 'TGT'))), name


def test_masked_and_missing_columns_count_against_a_redshift():
    meta = Table(dict(DESI_TARGET=np.ma.masked_array([2, 2, 4], [False, True, False]), SPECTYPE=['GALAXY']*3, Z=np.ma.masked_array([1., 1, 1], [True, False, False]), ZWARN=[0]*3, DELTACHI2=[99.]*3))
    assert not np.asarray(good_redshifts(meta)['Z_CONF'] == 3).any() and list(target_classes(meta)['ELG']) == [True, False, False]
    assert list(fails_rules(meta)) == [True, False, True]


def test_measured_lines_are_those_of_the_recipe():
    spectra, truth = simulate_spectra(60, seed=12, shares=dict(ELG=1.))
    z = np.asarray(truth['TRUE_Z'], float)
    flux, ivar = oii_fluxes(spectra, z)
    moved, _ = oii_fluxes(spectra, z + .01)
    assert np.isfinite(flux).mean() > .7 and np.nanmedian(flux*np.sqrt(ivar)) > 3*np.nanmedian(moved*np.sqrt(ivar))
    dark = spectra.replace(ivar=0*spectra.ivar)
    assert np.isnan(oii_fluxes(dark, z)[0]).all() and not mgii_quasars(dark, z, np.full(60, 'GALAXY')).any()
    assert np.isnan(oii_fluxes(spectra, np.full(60, np.nan))[0]).all() and np.isnan(oii_fluxes(spectra, np.full(60, 5.))[0]).all()


def test_catalogue_has_the_rules_for_targets_of_desi_only(survey):
    coadd, _ = survey
    spectra, weights = extract(coadd)[:40], load_weights()
    bare = spectra.replace(meta=spectra.meta[[c for c in spectra.meta.colnames if c not in AFTERBURNER_COLUMNS]])
    table = score_spectra(bare, weights)
    assert {'OII_FLUX', 'OII_FLUX_IVAR', 'IS_QSO_MGII', 'Z_CONF'} <= set(table.colnames)
    elg = target_classes(bare.meta)['ELG']
    assert np.isfinite(table['OII_FLUX'][elg]).any() and np.isnan(table['OII_FLUX'][~elg & ~target_classes(bare.meta)['QSO']]).all()
    assert np.array_equal(table['Z_CONF'], good_redshifts(with_afterburners(bare, elg | target_classes(bare.meta)['QSO']).meta)['Z_CONF'])
    assert not rule_columns(bare.replace(meta=bare.meta[['TARGETID', 'Z', 'ZWARN', 'SPECTYPE', 'DELTACHI2']])).colnames


def test_a_second_redshift_is_a_candidate_and_a_bad_one_replaces_nothing():
    """Z_NEW of QuasarNET's afterburner: where the scan has the truth a wrong one changes no proposal; the truth as Z_NEW is among the candidates."""
    spectra, truth = simulate_spectra(80, seed=21, shares=dict(QSO=1.))
    z, judge, rng = np.asarray(truth['TRUE_Z'], float), load_weights().judge, np.random.default_rng(0)
    meta = Table(dict(TARGETID=spectra.meta['TARGETID']))
    opinions = {}
    for name, new in dict(none=None, bad=rng.uniform(.5, 3.5, 80), good=z).items():
        own = meta.copy()
        if new is not None: own['Z_NEW'] = new
        opinions[name] = second_look(spectra.replace(meta=own), judge)[1]
    right = {name: abs(np.asarray(o['Z_ALT'], float) - z)/(1 + z) < .0033 for name, o in opinions.items()}
    sure = np.asarray(opinions['none']['P_ALT']) > .9
    assert right['none'][sure].mean() > .9 and (right['none'] & sure & ~right['bad']).sum() == 0
    assert right['good'].sum() >= right['none'].sum() and right['bad'].sum() >= right['none'].sum() - 2


def catalogue(n=8000, seed=1):
    """A catalogue with right probabilities, and its truth."""
    rng = np.random.default_rng(seed)
    p = rng.beta(.05, .8, n)
    wrong, delta = rng.random(n) < p, np.exp(rng.normal(4.5 - 3*p, 1))
    table = Table(dict(TARGETID=np.arange(n) + 1, DESI_TARGET=rng.choice([1, 1 << 60], n), OBJTYPE=np.full(n, 'TGT'), COADD_FIBERSTATUS=np.zeros(n, int), Z=np.full(n, .5), ZWARN=4*(delta < 9), DELTACHI2=delta,
                       SPECTYPE=np.full(n, 'GALAXY'), SNR=np.ones(n), P_Z_WRONG=p, P_S_WRONG=p, FLAG_Z_WRONG=p > .5, FLAG_OFFSET=np.zeros(n, bool), LABEL_USED=np.zeros(n, int)))
    return table, Table(dict(TARGETID=table['TARGETID'], TRUE_Z=np.where(wrong, .9, .5), TRUE_SPECTYPE=np.full(n, 'GALAXY'))), wrong


def test_level_two_keeps_its_promise():
    """In 95 % of surveys the sample is as pure as guaranteed."""
    broken = []
    for seed in range(40):
        table, truth, wrong = catalogue(4000, seed)
        found = find_level_two(table, truth[np.random.default_rng(seed).permutation(4000)[:3000]])
        two = confidence_levels(table, found.threshold) == 2
        if found.holds: broken.append(wrong[two].mean() > .01)
    assert len(broken) > 20 and np.mean(broken) < .15


def test_labels_of_the_training_do_not_count():
    table, truth, wrong = catalogue()
    table['LABEL_USED'] = 1
    for function in (find_level_two, compare_rules):
        with pytest.raises(ValueError, match='took no part in the training'): function(table, truth)


def test_unfamiliar_and_broken_are_no_level_two():
    table, truth, wrong = catalogue()
    found = find_level_two(table, truth)
    two = confidence_levels(table, found.threshold) == 2
    table['UNFAMILIAR'] = two
    assert not (confidence_levels(table, found.threshold) == 2).any()
    table['UNFAMILIAR'], table['COADD_FIBERSTATUS'] = False, np.where(two, 1 << 9, 0)
    assert not (confidence_levels(table, found.threshold) == 2).any()
    table['FLAG_OFFSET'] = True
    assert not contradictions(table).any()


def test_command_with_tables_of_inspections_and_of_repeats(tmp_path):
    table, truth, wrong = catalogue()
    write_table(table, tmp_path/'catalogue.fits', 'CATALOGUE')
    vi = Table(dict(TARGETID=truth['TARGETID'], TILEID=np.full(len(truth), 80605), FIBER=np.arange(len(truth)) % 5000, TARGET_RA=np.zeros(len(truth)), TARGET_DEC=np.zeros(len(truth)),
                    VI_Z=truth['TRUE_Z'], VI_QUALITY=np.full(len(truth), 4.), VI_SPECTYPE=truth['TRUE_SPECTYPE']))
    vi.write(tmp_path/'EDR_VI_LRG_v1.csv', format='ascii.csv')
    write_table(truth, tmp_path/'repeats.parquet', 'TRUTH')
    for name in ('EDR_VI_LRG_v1.csv', 'repeats.parquet'):
        done = run('confidence', tmp_path/'catalogue.fits', '--truth', tmp_path/name, '-o', tmp_path/f'{name}.fits', '--suspects', tmp_path/f'{name}-suspects.fits')
        assert done.returncode == 0 and 'errors by P' in done.stdout and 'Guarantee: at most 1 %' in done.stdout, done.stderr
        level = Table.read(tmp_path/f'{name}.fits')['Z_CONF_SKYSEEK']
        assert set(np.unique(level)) == {0, 1, 2, 3} and wrong[level == 2].mean() < .01
    done = run('confidence', tmp_path/'catalogue.fits', '--truth', tmp_path/'repeats.parquet', '-o', tmp_path/'repeats.parquet.fits')
    assert done.returncode == 1 and 'repeats.parquet.fits' in done.stderr and '--overwrite' in done.stderr
    write_table(truth[:100], tmp_path/'few.fits', 'TRUTH')
    done = run('confidence', tmp_path/'catalogue.fits', '--truth', tmp_path/'few.fits', '-o', tmp_path/'few-levels.fits')
    assert done.returncode == 0 and 'no level 2' in done.stderr and 'level 2: 0 targets' in done.stdout


@pytest.mark.filterwarnings('ignore')
def test_fewer_errors_at_the_completeness_of_the_rules(data):
    """The benchmark's validation files have real redrock solutions: at most half of the errors of DESI's rules."""
    from skyseek.pipeline.catalogue import make_catalogue
    from skyseek.detect.labelled_data import read_labelled
    spectra, weights = read_labelled(data/'redrock_bench/validation'), load_weights()
    truth = spectra.meta[['TARGETID', 'TRUE_Z', 'TRUE_SPECTYPE']]
    table = compare_rules(make_catalogue([score_spectra(spectra, weights)], weights), truth)
    total = table[-1]
    assert total['errors'] >= 8 and total['ours_errors'] <= total['errors']/2
