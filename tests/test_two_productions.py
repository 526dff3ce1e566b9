"""Two productions of the same targets: what differs, and which redshift is right."""
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table, vstack
from commands import errors, skyseek

from skyseek.data.constants import same_redshift
from skyseek.data.files import write_table
from skyseek.data.redshift_tables import read_truth
from skyseek.detect.two_productions import compare_productions
from skyseek.pipeline.explorer_table import open_catalogue
from skyseek.pipeline.parts import part_path, write_part
from skyseek.simulate.mock_survey import simulate_survey

MASKED = 16  # spectra whose red arms one production has masked in part


@pytest.fixture(scope='module')
def rerun(tmp_path_factory):
    "Folders old/ and new/ with coadd, redrock file and catalogue of the same targets; in old/ a mask hides the red ends of some."
    folder = tmp_path_factory.mktemp('rerun')
    coadd = simulate_survey(folder/'new', 48, seed=5, hpx=7)
    (folder/'old').mkdir()
    with fits.open(coadd) as hdus:
        for arm in 'RZ': hdus[f'{arm}_MASK'].data[:MASKED, 200:] |= 1
        hdus.writeto(folder/'old'/coadd.name)
    for name in ('old', 'new'):
        for words in (['redshift', folder/name/coadd.name], ['score', folder/name/coadd.name, '-o', folder/f'{name}.fits']):
            done = skyseek(*words, '--device', 'cpu')
            assert done.returncode == 0, done.stderr
    return folder, coadd.name


SLOW_FIXTURES = {'rerun'}


def test_a_mask_that_changed(rerun):
    """Only the masked spectra differ, the answers given are right, and the list opens in the explorer with its spectra."""
    folder, name = rerun
    done = skyseek('compare', folder/'old.fits', folder/'new.fits', '-o', folder/'differences.fits')
    assert done.returncode == 0 and 'UNDECIDED' in done.stdout and 'differences' in done.stdout, done.stderr
    found, old, new = (Table.read(folder/f'{n}.fits') for n in ('differences', 'old', 'new'))
    truth = read_truth([folder/'new'/name.replace('coadd', 'truth')])
    known = dict(zip(truth['TARGETID'].tolist(), truth['TRUE_Z'].tolist()))
    z = np.array([known[t] for t in found['TARGETID'].tolist()])
    masked = set(Table.read(folder/'new'/name, 'FIBERMAP')['TARGETID'][:MASKED].tolist())
    assert len(found) >= 4 and set(found['TARGETID'].tolist()) <= masked
    answer, right = np.asarray(found['RIGHT']).astype(str), {'A': same_redshift(found['Z'], z), 'B': same_redshift(found['Z_OTHER'], z)}
    given = np.isin(answer, ('A', 'B'))
    assert given.sum() >= 3 and (answer == 'B').sum() > (answer == 'A').sum()
    good = [right[a][i] for i, a in enumerate(answer) if given[i]]
    assert np.mean(good) >= .8
    assert np.allclose(found['P_THIS'] + found['P_OTHER'] + found['P_NEITHER'], 1, atol=1e-5) and np.asarray(found['P_OTHER']).max() <= .991
    place = {t: i for i, t in enumerate(old['TARGETID'].tolist())}
    rows = [place[t] for t in found['TARGETID'].tolist()]
    assert rows == sorted(rows) and np.array_equal(old['Z'][rows], found['Z']) and set(np.asarray(found['FILE']).astype(str)) == {name}
    assert set(old.colnames) <= set(found.colnames) and set(new['Z'].tolist()) >= set(found['Z_OTHER'].tolist())
    catalogue = open_catalogue(folder/'differences.fits', [folder/'old'])
    assert len(catalogue) == len(found) and len(catalogue.read(0)) == 1


def test_files_of_redrock_with_their_spectra(rerun):
    folder, name = rerun
    plain = skyseek('compare', folder/'old'/name.replace('coadd', 'redrock'), folder/'new'/name.replace('coadd', 'redrock'))
    assert plain.returncode == 0 and 'without any probability, undecided' in plain.stdout, plain.stderr
    done = skyseek('compare', folder/'old', folder/'new', '--spectra', folder/'new'/name, '-o', folder/'scored.parquet', '--device', 'cpu')
    assert done.returncode == 0, done.stderr
    found = Table.read(folder/'scored.parquet')
    assert (found['RIGHT'] == 'B').sum() > (found['RIGHT'] == 'A').sum() and len(open_catalogue(folder/'scored.parquet', [folder/'new']).read(0)) == 1
    done = skyseek('compare', folder/'old.fits', folder/'new.fits', '--spectra', folder/'new'/name)
    assert done.returncode == 1 and '--spectra is for redrock files' in done.stderr


def productions(n=3000, seed=0):
    "Two tables of the same targets in other orders; in every tenth target B has a worse redshift, whose P tells it."
    rng = np.random.default_rng(seed)
    z, changed = rng.uniform(0, 1.5, n), np.arange(n) % 10 == 0
    common = dict(TARGETID=np.arange(n) + 1, SURVEY=np.full(n, 'main'), PROGRAM=np.full(n, 'dark'), DESI_TARGET=rng.choice([1, 2, 4], n), SPECTYPE=np.full(n, 'GALAXY'), ZWARN=np.zeros(n, int))
    a = Table(common | dict(Z=z, P_Z_WRONG=np.full(n, .02), P_Z_PIPE=np.full(n, .99)))
    b = Table(common | dict(Z=np.where(changed, z + .3, z), P_Z_WRONG=np.where(changed, .9, .02), P_Z_PIPE=np.where(changed, .1, .99), Z_ALT=z, P_ALT=np.where(changed, .8, .99)))
    return a, b[rng.permutation(n)]


def test_other_order_duplicates_gaps_and_nan():
    a, b = productions()
    whole = compare_productions(a, b)
    assert len(whole.rows_a) == 300 and set(whole.verdict) == {'A'} and np.array_equal(a['TARGETID'][whole.rows_a], b['TARGETID'][whole.rows_b]) and not whole.notes
    b = vstack([b, b[:5]])[np.arange(len(b) + 5) >= 2]  # five repeat, two of them only there are lost in front
    a['Z'][1] = np.nan
    a = a[np.arange(len(a)) != 2]
    sky = a[:3].copy()
    sky['TARGETID'] = [-1, -1, -2]
    again = compare_productions(vstack([a, sky]), b)
    assert len(again.rows_a) == 300 and again.notes == ['3 rows of A without a TARGETID above 0 left out', '3 rows of B repeat a target, of which the first row counts', '1 target in B only', '1 target without a redshift in A, not compared']
    assert again.summary['COMPARED'][-1] == 2998 and sum(again.summary['DIFFERENT'][:-1]) == 300


def test_surveys_programs_and_tiles_are_apart():
    a, b = productions(100)
    both = vstack([a, a])
    both['PROGRAM'] = np.repeat(['dark', 'bright'], 100)
    assert len(compare_productions(both, b).rows_a) == 10 and '100 targets in A only' in compare_productions(both, b).notes
    for table in (both, b): table['TILEID'], table['HEALPIX'] = 80605, -1
    both['PROGRAM'], both['TILEID'] = 'dark', np.repeat([80605, 80606], 100)
    assert '100 targets in A only' in compare_productions(both, b).notes


def test_both_sure_is_undecided_and_quasars_have_a_wider_limit():
    a, b = productions(50)
    b['P_Z_PIPE'], b['Z_ALT'] = .99, np.nan
    assert set(compare_productions(a, b).verdict) == {'UNDECIDED'}
    b.sort('TARGETID')
    b['Z'] = np.asarray(a['Z']) + .006*(1 + np.asarray(a['Z']))
    assert len(compare_productions(a, b).rows_a) == 50
    a['SPECTYPE'] = b['SPECTYPE'] = 'QSO'
    assert not len(compare_productions(a, b).rows_a)


def test_bad_input_is_one_line(tmp_path):
    a, b = productions(20)
    for name, table in dict(a=a, b=b, bare=a['TARGETID', 'ZWARN']).items(): write_table(table, tmp_path/f'{name}.fits', 'CATALOGUE')
    b['TARGETID'] += 1000
    write_table(b, tmp_path/'far.fits', 'CATALOGUE')
    (tmp_path/'empty').mkdir()
    (tmp_path/'text.fits').write_text('no table\n')
    for second, words, more in (('far.fits', 'share no target', []), ('bare.fits', 'bare.fits: lacks Z', []), ('empty', 'no catalogue and no redrock file', []), ('text.fits', 'text.fits', []), ('a.fits', 'given twice', []),
                                ('b.fits', '--sure', ['--sure', 2]), ('b.fits', 'a.fits', ['-o', tmp_path/'a.fits', '--overwrite']), ('gone.fits', 'no such file', [])):
        done = skyseek('compare', tmp_path/'a.fits', tmp_path/second, *more)
        assert done.returncode == 1 and len(errors(done)) == 1 and words in done.stderr, (second, done.stderr)


def test_folders_of_a_survey_and_versions_that_are_mixed(rerun, tmp_path):
    folder, name = rerun
    for which in ('old', 'new'): write_part(Table.read(folder/f'{which}.fits'), part_path(tmp_path/which, 'main', 'dark', 7), {})
    done = skyseek('compare', tmp_path/'old', tmp_path/'new', '-o', tmp_path/'differences.fits')
    direct = skyseek('compare', folder/'old.fits', folder/'new.fits')
    assert done.returncode == 0 and done.stdout.splitlines()[1:-1] == direct.stdout.splitlines()[1:], done.stderr
    assert len(open_catalogue(tmp_path/'differences.fits', [folder/'old']).read(0)) == 1
    (tmp_path/'mixed').mkdir()
    for k, hpx in enumerate((7, 8)):
        with fits.open(folder/'new'/name.replace('coadd', 'redrock')) as hdus:
            hdus[0].header['RRVER'] = f'0.{k}'
            hdus.writeto(tmp_path/'mixed'/f'redrock-main-dark-{hpx}.fits')
    done = skyseek('compare', tmp_path/'mixed', folder/'old')
    assert done.returncode == 0 and '2 versions of redrock are mixed (0.0, 0.1)' in done.stderr and 'repeat a target' in done.stdout, done.stderr
