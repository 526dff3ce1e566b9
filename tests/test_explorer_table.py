"""The catalogue behind the explorer: any table, any condition, any place of the spectra, and nothing beyond these places."""
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.table import MaskedColumn, Table

from skyseek.data.desi import extract_file
from skyseek.data.files import write_table
from skyseek.data.hdus import ReadError
from skyseek.data.one_target import read_target
from skyseek.data.read import read_any
from skyseek.pipeline.catalogue_spectra import SpectrumNotFound
from skyseek.pipeline.conditions import ConditionError
from skyseek.pipeline.explorer_table import PRESETS, open_catalogue
from skyseek.pipeline.parts import part_path, write_part
from surveys import coadd_parts, sdss_parts, write_coadd, write_pair, write_parts


def rows(n=60, seed=0):
    "A table with the columns that lists and conditions need."
    rng = np.random.default_rng(seed)
    p = np.where(rng.random(n) < .1, np.nan, rng.random(n))
    return Table(dict(
        TARGETID=39628000000000000 + rng.permutation(n), SURVEY=['main']*n, PROGRAM=['dark']*n, HEALPIX=np.full(n, 9999, 'i4'), Z=rng.random(n), Z_ALT=rng.random(n),
        ZWARN=rng.choice([0, 4, 5], n), SPECTYPE=rng.choice(['GALAXY', 'QSO', ''], n), P_Z_WRONG=p, FLAG_Z_WRONG=p > .5, FLAG_S_WRONG=p > .9, FLAG_ALT=rng.random(n) < .2,
        UNFAMILIAR=np.zeros(n, bool), NATURE=rng.choice(['', 'OBJECT', 'ARTEFACT'], n), ANOMALY_CLEAN=rng.random(n), LATENT=rng.random((n, 36)).astype('f4'), FILE=['coadd-main-dark-9999.fits']*n))


def write(table, folder, kind):
    "The table as a file, or as the parts of a survey."
    if kind != 'parts': return write_table(table, folder/f'catalogue{kind}')
    for k in range(3): write_part(table[20*k:20*k + 20], part_path(folder/'survey', 'main', 'dark', 9997 + k))
    return folder/'survey'


KINDS = '.fits', '.parquet', 'parts'


@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_of_catalogue(tmp_path, kind):
    table, cat = rows(), open_catalogue(write(rows(), tmp_path, kind))
    assert cat.n == 60 and cat.path.name in ('catalogue.fits', 'catalogue.parquet', 'survey')
    if kind == 'parts': table['P_Z_WRONG'], table['ANOMALY_CLEAN'] = table['P_Z_WRONG'].astype('f4'), table['ANOMALY_CLEAN'].astype('f4')  # as parts store them
    for name in table.colnames: np.testing.assert_array_equal(cat.column(name), np.asarray(table[name]))
    some = cat.rows([55, 3, 3, 21], ['Z', 'SPECTYPE', 'LATENT'])
    for name in some.colnames: np.testing.assert_array_equal(some[name], np.asarray(table[name])[[55, 3, 3, 21]])
    assert cat.where('ZWARN == 0 & FLAG_ALT').tolist() == ((table['ZWARN'] == 0) & table['FLAG_ALT']).tolist()
    assert cat.preset('artefacts').sum() == (table['NATURE'] == 'ARTEFACT').sum() and all(cat.preset(name).shape == (60,) for name in PRESETS)
    assert cat.find(int(table['TARGETID'][8])).tolist() == [8] and cat.rows([8])['Z'].description
    assert cat.order('Z').tolist() == np.argsort(-table['Z']).tolist() and np.isnan(cat.column('P_Z_WRONG')[cat.order('P_Z_WRONG')[-1]])
    back = open_catalogue(cat.write(cat.where('FLAG_ALT'), tmp_path/'some.parquet'))
    assert back.column('TARGETID').tolist() == table['TARGETID'][table['FLAG_ALT']].tolist()


def test_only_the_columns_that_are_asked_for_are_read(tmp_path):
    cat = open_catalogue(write(rows(), tmp_path, '.parquet'))
    seen, read = [], cat.source.read
    cat.source.read = lambda name, rows=None: (seen.append(name), read(name, rows))[1]
    cat.where('ZWARN == 0 & FLAG_ALT')
    cat.where('ZWARN == 4')
    assert seen == ['ZWARN', 'FLAG_ALT']


def test_masked_and_foreign_columns_do_no_harm(tmp_path):
    table = rows(4)
    table['FLAG <b>'] = MaskedColumn([True, False, True, True], mask=[True, False, False, False])
    table['N'] = MaskedColumn([1, 2, 3, 4], mask=[True, False, False, False])
    for end in ('.fits', '.parquet'):
        cat = open_catalogue(write_table(table, tmp_path/f'foreign{end}'))
        assert cat.where('N > 1').tolist() == [False, True, True, True]
        assert cat.where('N > 1 & `FLAG <b>`')[2]
    pq.write_table(pa.table({'TARGETID': [1, 2], 'WHEN': pa.array([1, 2], pa.timestamp('s')), 'LIST': [[1], [2, 3]], 'T': [b'a ', None]}), tmp_path/'own.parquet')
    assert open_catalogue(tmp_path/'own.parquet').columns == ['TARGETID', 'T']


@pytest.mark.parametrize('name, words', [('gone.fits', 'no such file'), ('empty', 'no catalogue in this folder'), ('note.txt', 'is text, no catalogue'), ('cut.fits', 'no catalogue, this is|no FITS file that can be read'),
                                         ('cut.parquet', 'no Parquet file that can be read'), ('no.fits', 'no column TARGETID'), ('no.parquet', 'no column TARGETID'), ('coadd.fits', 'no catalogue, this is a coadd'),
                                         ('float.fits', 'which hold fewer digits')])
def test_what_is_no_catalogue(tmp_path, name, words):
    table = rows()
    (tmp_path/'empty').mkdir()
    (tmp_path/'note.txt').write_text('a note\n')
    for end in ('.fits', '.parquet'): (tmp_path/f'cut{end}').write_bytes(write(table, tmp_path, end).read_bytes()[:4000])
    for end in ('.fits', '.parquet'): write_table(table['Z', 'ZWARN'], tmp_path/f'no{end}')
    write_coadd(tmp_path/'coadd.fits')
    table['TARGETID'] = table['TARGETID'].astype(float)
    write_table(table, tmp_path/'float.fits')
    with pytest.raises(ReadError, match=words): open_catalogue(tmp_path/name)


# Conditions

ATTACKS = ['__import__("os").system("true")', 'Z.__class__', 'Z.__class__.__mro__', '(lambda: 1)()', 'exec("1")', 'eval("1")', 'open("x")', 'getattr(Z, "T")', '[i for i in Z]', '{1: 2}', 'Z if Z else Z',
           '9**9**9**9 > Z', '2**100000 > Z', 'Z**1e9 > 1', '10**-11 > Z', '"a"*10**9 == SPECTYPE', 'f"{Z}" == "a"', 'abs(Z, out=Z)', 'abs(*Z)', 'abs(**Z)', 'Z := 1', 'Z; Z', 'Z = Z = Z = ', '#', 'Z > 0 #', '\\',
           '('*1000, 'not '*480 + 'FLAG_ALT', '-'*1900 + '1 > Z', '1'*1900 + ' > Z', 'x'*3000, 'Z[0:3] > 0', 'Z[Z] > 0', 'LATENT[99] > 0', 'LATENT[-1] > 0', 'Z @ Z', 'Z >> 1', 'ZWARN & ' + '9'*30, 'Z > 1j', '...',
           'None', '_0 > 1', 'abs', 'abs > 1', 'Z in Z', 'Z in (Z, 1)', 'SPECTYPE in (1, 2)', '"QSO"', '3', 'Z', 'Z + "a" > 1', 'contains(SPECTYPE, SPECTYPE)', '\x00', 'Z > 1\nimport os', 'ZWARN & 4', 'ZWARN % 0 == 1']


@pytest.mark.parametrize('attack', ATTACKS, ids=range(len(ATTACKS)))
def test_no_code_is_run(attack):
    start = time.perf_counter()
    with pytest.raises(ConditionError): open_catalogue(rows()).where(attack)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize('condition, python', [
    ('ZWARN == 0 & FLAG_ALT', '(t["ZWARN"] == 0) & t["FLAG_ALT"]'), ('FLAG_ALT & ZWARN == 0', '(t["ZWARN"] == 0) & t["FLAG_ALT"]'), ('~FLAG_ALT | zwarn = 4', '~t["FLAG_ALT"] | (t["ZWARN"] == 4)'),
    ('!FLAG_ALT && ZWARN <> 0', '~t["FLAG_ALT"] & (t["ZWARN"] != 0)'), ('P_Z_WRONG > .5 and SPECTYPE == "QSO"', '(t["P_Z_WRONG"] > .5) & (t["SPECTYPE"] == "QSO")'), ('NOT (FLAG_ALT OR ZWARN > 0)', '~(t["FLAG_ALT"] | (t["ZWARN"] > 0))'),
    ('abs(Z - Z_ALT) > .01', 'np.abs(t["Z"] - t["Z_ALT"]) > .01'), ('(ZWARN & 1) != 0', '(t["ZWARN"] & 1) != 0'), ("SPECTYPE in ('QSO', '')", '(t["SPECTYPE"] == "QSO") | (t["SPECTYPE"] == "")'),
    ('ZWARN not in (0, 4)', '~np.isin(t["ZWARN"], (0, 4))'), ('.2 < Z <= .5', '(.2 < t["Z"]) & (t["Z"] <= .5)'), ('-Z**2 < -0.25', 't["Z"]**2 > .25'), ('LATENT[35] > .5', 't["LATENT"][:, 35] > .5'), ('isnan(P_Z_WRONG)', 'np.isnan(t["P_Z_WRONG"])'),
    ('max(Z, Z_ALT)/(1 + min(Z, Z_ALT)) > .5', 'np.maximum(t["Z"], t["Z_ALT"])/(1 + np.minimum(t["Z"], t["Z_ALT"])) > .5'), ('contains(SPECTYPE, "AL") or startswith(NATURE, "ART")', '(t["SPECTYPE"] == "GALAXY") | (t["NATURE"] == "ARTEFACT")'),
    ('TARGETID == 39628000000000007', 't["TARGETID"] == 39628000000000007'), ('FLAG_ALT == 1', 't["FLAG_ALT"]'), ('FLAG_ALT == True', 't["FLAG_ALT"]'), ('FLAG_Z_WRONG + FLAG_S_WRONG == 2', 't["FLAG_Z_WRONG"] & t["FLAG_S_WRONG"]'), ('true', 'np.ones(60, bool)')])
def test_conditions_mean_what_an_astronomer_means(condition, python):
    t = {name: np.asarray(column) for name, column in rows().items()}
    with np.errstate(invalid='ignore'): np.testing.assert_array_equal(open_catalogue(rows()).where(condition), eval(python, dict(t=t, np=np)))


def test_errors_name_columns():
    cat = open_catalogue(rows())
    with pytest.raises(ConditionError, match='no column ZWRAN; similar: ZWARN'): cat.where('ZWRAN == 0')
    with pytest.raises(ConditionError, match='text needs quotes: "STAR"'): cat.where('SPECTYPE == STAR')
    with pytest.raises(ConditionError, match='ZWARN is a number, no condition'): cat.where('ZWARN & 4 != 0')
    with pytest.raises(ConditionError, match='LATENT has 36 numbers a row'): cat.where('LATENT > 0')
    with pytest.raises(ConditionError, match='has 36 numbers a row'): cat.order('LATENT')
    with pytest.raises(ConditionError, match="the list 'artefacts' cannot be made: there is no column NATURE"): open_catalogue(rows()['TARGETID', 'Z']).preset('artefacts')


def test_a_hundred_thousand_rows_are_filtered_and_sorted_at_once():
    cat = open_catalogue(rows(100_000))
    cat.where('FLAG_ALT & P_Z_WRONG > 0 & SPECTYPE == "QSO" & ZWARN == 0 & abs(Z - Z_ALT) > 0')  # columns are in memory now
    for work in (lambda: cat.where('ZWARN == 0 & (abs(Z - Z_ALT)/(1 + Z) > .0033 | SPECTYPE == "QSO") & P_Z_WRONG > .5'), lambda: cat.order('P_Z_WRONG'), lambda: cat.order('SPECTYPE')):
        start = time.perf_counter()
        work()
        assert time.perf_counter() - start < .3


# Spectra

@pytest.fixture
def survey(tmp_path):
    "A folder with coadd, redrock file, compact file and catalogue of four targets."
    coadd = write_pair(tmp_path, 4)
    extract_file(coadd, tmp_path/'spectra-main-dark-9999.fits')
    table = rows(4)
    table['TARGETID'] = coadd_parts(4)['FIBERMAP']['TARGETID']
    return coadd, table


@pytest.mark.parametrize('kind', ['coadd', 'coadd.gz', 'compact', 'sdss', 'lamost'])
def test_spectra_of_every_kind(survey, tmp_path, data, kind):
    coadd, table = survey
    if kind == 'coadd.gz':
        import gzip
        (tmp_path/'coadd-main-dark-9999.fits.gz').write_bytes(gzip.compress(coadd.read_bytes(), 1))
    files = {'coadd': [coadd], 'coadd.gz': [tmp_path/'coadd-main-dark-9999.fits.gz'], 'compact': [tmp_path/'spectra-main-dark-9999.fits'], 'sdss': sorted((data/'sdss').glob('*spec-*.fits.gz'))[:2],
             'lamost': sorted((data/'lamost').rglob('*.fits.gz'))[:1] or sorted((data/'lamost').rglob('*.fits'))[:1]}[kind]
    for path in files:
        whole = read_any(path, answers=False)
        ids = np.asarray(whole.meta['TARGETID'])
        cat = open_catalogue(Table(dict(TARGETID=ids, FILE=[path.name]*len(ids), P_Z_WRONG=np.full(len(ids), .5))), spectra=path.parent)
        for i in range(len(ids)):
            one = cat.read(i)
            np.testing.assert_array_equal(one.flux[0], whole.flux[i])
            np.testing.assert_array_equal(one.ivar[0], whole.ivar[i])
            assert one.meta['TARGETID'][0] == ids[i] and one.meta['P_Z_WRONG'][0] == .5


def test_a_target_twice_in_a_file(tmp_path):
    parts = coadd_parts(4)
    parts['FIBERMAP']['TARGETID'][2] = parts['FIBERMAP']['TARGETID'][0]
    coadd = write_parts(tmp_path/'coadd-main-dark-1.fits', parts)
    whole = read_any(coadd, answers=False)
    cat = open_catalogue(write_table(Table(dict(TARGETID=whole.meta['TARGETID'], FILE=[coadd.name]*4)), tmp_path/'c.fits'))
    for i in range(4): np.testing.assert_array_equal(cat.read(i).flux[0], whole.flux[i])


def test_a_file_outside_is_not_read(survey, tmp_path):
    coadd, table = survey
    (tmp_path/'theirs').mkdir()
    secret = write_coadd(tmp_path/'secret.fits')
    (tmp_path/'theirs'/'link.fits').symlink_to(secret)
    (tmp_path/'theirs'/'up').symlink_to(tmp_path)
    evil = ['../secret.fits', str(secret), 'link.fits', 'up/secret.fits', './../secret.fits', 'x/../../secret.fits', f'file://{secret}', 'https://example.org/secret.fits', '', '..', '/', '/dev/zero', '/dev/stdin',
            'secret.fits\x00.png', 'a'*5000, '/proc/self/mem', '~/secret.fits', '$HOME/secret.fits']
    table = table[[0]*len(evil)]
    table['FILE'] = evil
    cat = open_catalogue(write_table(table, tmp_path/'theirs'/'catalogue.parquet'))
    for i in range(len(evil)):
        with pytest.raises(SpectrumNotFound): cat.read(i)
    named = open_catalogue(cat.path, spectra=[secret])  # the user names it: then it may be read
    assert len(named.read(0)) == len(named.read(1)) == 1


def test_words_for_what_is_missing(survey, tmp_path):
    coadd, table = survey
    (tmp_path/'alone').mkdir()
    def words(**changes):
        t = table.copy()
        for name, value in changes.items(): t[name] = value
        with pytest.raises(SpectrumNotFound) as e: open_catalogue(write_table(t, tmp_path/'alone'/'c.fits')).read(0)
        return str(e.value)
    assert 'if the spectra were moved, give the folder or the files' in words()
    assert 'does not say in which file' in words(FILE=['']*4)
    table.remove_column('FILE')
    assert 'no column FILE' in words()
    with pytest.raises(SpectrumNotFound, match='no TARGETID 5 among its 4 targets'):
        open_catalogue(Table(dict(TARGETID=[5], FILE=[coadd.name])), spectra=tmp_path).read(0)
    with pytest.raises(SpectrumNotFound, match='no row 99'): open_catalogue(table).read(99)
    (tmp_path/'alone'/coadd.name).write_bytes(coadd.read_bytes()[:20000])
    with pytest.raises(SpectrumNotFound, match='not a complete FITS file'): open_catalogue(Table(dict(TARGETID=[5], FILE=[coadd.name])), spectra=tmp_path/'alone').read(0)


def test_a_broken_name_in_one_row_leaves_the_others(survey, tmp_path):
    coadd, table = survey
    table['FILE'][1] = '../x'
    cat = open_catalogue(write_table(table, tmp_path/'c.fits'))
    assert len(cat.read(0)) == len(cat.read(2)) == 1
    with pytest.raises(SpectrumNotFound): cat.read(1)


def test_sdss_spectra_in_a_folder(tmp_path):
    for fibre in (1, 2): write_parts(tmp_path/f'spec-0266-51602-000{fibre}.fits', sdss_parts(fibre=fibre, seed=fibre))
    whole = read_any(tmp_path)
    cat = open_catalogue(write_table(Table(dict(TARGETID=whole.meta['TARGETID'], FILE=whole.meta['FILE'])), tmp_path/'c.parquet'))
    np.testing.assert_array_equal(cat.read(1).flux[0], whole.flux[1])


def test_a_compact_file_that_was_replaced_is_looked_at_again(survey, tmp_path):
    path = tmp_path/'spectra-main-dark-9999.fits'
    whole = read_any(path, answers=False)
    last = int(whole.meta['TARGETID'][3])
    np.testing.assert_array_equal(read_target(path, last).flux[0], whole.flux[3])
    parts = coadd_parts(5, seed=1)
    parts['FIBERMAP']['TARGETID'] = parts['FIBERMAP']['TARGETID'][::-1].copy()
    other = write_parts(tmp_path/'coadd-main-dark-8888.fits', parts)
    path.unlink()
    other.rename(path)
    np.testing.assert_array_equal(read_target(path, last).flux[0], read_any(path, answers=False).flux[1])


def test_the_next_object_sends_only_what_changes(survey, tmp_path):
    pytest.importorskip('bokeh')
    from bokeh.document import Document

    from skyseek.pipeline.explorer_actions import ExplorerPage
    from skyseek.pipeline.labels import LabelStore
    cat = open_catalogue(write_table(survey[1], tmp_path/'c.fits'), spectra=[survey[0]])
    page = ExplorerPage(cat, LabelStore(cat, 'me'))
    page.add_to(Document())
    page.change(sort='order of the file')
    page.open(0)
    first, table = page.panel.view, page.table.source.data
    page.step(1)
    assert page.table.source.data is table and page.table.source.selected.indices == [1] and page.panel.view is not first
    page.step(-1)
    assert page.panel.view is first  # the last objects are kept
    page.put(quality=4)
    page.step(1)
    assert page.table.source.data['c0'][0] == '4'  # a label comes into the table
    assert not page.ahead or set(page.ahead) == {2}
    page.pool.shutdown()
