"Batches of odd sizes and with bad rows are scored row by row as they should be, and a long catalogue is written as a short one."

import numpy as np
import pytest
from astropy.table import MaskedColumn, Table

from skyseek.data import files
from skyseek.data.files import read_written_table, trim_text, write_table
from skyseek.data.read import read_targets
from skyseek.pipeline import score
from skyseek.redshift.scan import redshift_file
from skyseek.simulate.mock_survey import simulate_survey

NUMBERS = 'P_Z_WRONG', 'P_S_WRONG', 'Z_ALT', 'P_ALT', 'ANOMALY', 'RECON_CHI2', 'P_FAMILIAR'


@pytest.fixture(scope='module')
def weights(): return score.load_weights()


@pytest.fixture(scope='module')
def spectra(tmp_path_factory):
    coadd = simulate_survey(tmp_path_factory.mktemp('survey'), n=14, seed=4)
    redshift_file(coadd, coadd.with_name(coadd.name.replace('coadd', 'redrock')))
    return read_targets([coadd])[0][:9]


@pytest.fixture(scope='module')
def table(spectra, weights): return score.score_spectra(spectra, weights)


def same(a, b, names=NUMBERS, rtol=2e-3):
    for name in names: np.testing.assert_allclose(np.asarray(a[name], float), np.asarray(b[name], float), rtol=rtol, atol=2e-3, err_msg=name)
    for name in ('SPECTYPE_ALT', 'FLAG_Z_WRONG', 'FLAG_ALT', 'CAUSE', 'NATURE'): assert list(a[name]) == list(b[name]), name


def without_data(spectra, rows):
    ivar = spectra.ivar.copy()
    ivar[rows] = 0
    return spectra.replace(ivar=ivar)


def test_one_bad_row_changes_no_other(spectra, table, weights):
    found = score.score_spectra(without_data(spectra, [3]), weights)
    others = np.arange(len(spectra)) != 3
    same(found[others], table[others])
    assert np.isnan(found['P_Z_WRONG'][3]) and np.isnan(found['ANOMALY'][3]) and not found['FLAG_Z_WRONG'][3] and found['CAUSE'][3] == ''


def test_all_rows_bad(spectra, weights):
    found = score.score_spectra(without_data(spectra, slice(None)), weights)
    assert len(found) == len(spectra) and np.isnan(found['P_Z_WRONG']).all() and not found['FLAG_Z_WRONG'].any()


def test_one_row_alone_is_scored_as_among_others(spectra, table, weights):
    same(score.score_spectra(spectra[[5]], weights), table[[5]])


def test_a_long_file_is_scored_in_pieces(spectra, table, weights, monkeypatch):
    monkeypatch.setattr(score, 'read_targets', lambda *a, **k: (spectra, {}))
    monkeypatch.setattr(score, 'batch_size', lambda *a: 4)
    sizes, whole = [], score.score_spectra
    monkeypatch.setattr(score, 'score_spectra', lambda s, *a: sizes.append(len(s)) or whole(s, *a))
    found = score.score_file('any', weights)
    assert sizes == [4, 4, 1] and list(found['TARGETID']) == list(spectra.meta['TARGETID'])
    same(found, table)


def test_text_is_trimmed(table):
    wide = Table(dict(a=np.array(['', 'longer'], 'U240'), b=np.array(['', ''], 'U160'), c=[1, 2]))
    assert [trim_text(wide)[c].dtype.str[1:] for c in 'ab'] == ['U6', 'U1'] and list(wide['a']) == ['', 'longer']
    assert len(trim_text(Table(dict(a=np.zeros(0, 'U240'))))) == 0


def test_a_long_fits_table_is_written_as_a_short_one(tmp_path, monkeypatch):
    rng, n = np.random.default_rng(0), 230
    made = Table(dict(TARGETID=np.arange(n) + 2**60, X=rng.normal(size=n), V=rng.normal(size=(n, 3)).astype('f4'), NAME=[f'n{k}' for k in range(n)], OK=rng.random(n) > .5))
    made['X'].unit, made['X'].description = 'Angstrom', 'a length'
    made['K'] = MaskedColumn(np.arange(n, dtype='i4'), mask=np.arange(n) % 50 == 49, fill_value=-1)
    made['ABSENT'] = MaskedColumn(np.zeros(n, 'i2'), mask=True, fill_value=-1)
    made.meta['WEIGHTS'] = 'default'
    short = read_written_table(write_table(made, tmp_path/'short.fits'))
    monkeypatch.setattr(files, '_WHOLE', 100)
    monkeypatch.setattr(files, '_BLOCK', 64)
    long = read_written_table(write_table(made, tmp_path/'long.fits'))
    assert short.colnames == long.colnames and short.meta == long.meta
    for name in short.colnames:
        a, b = short[name], long[name]
        assert (a.unit, a.description, a.dtype.kind) == (b.unit, b.description, b.dtype.kind), name
        np.testing.assert_array_equal(np.ma.getmaskarray(np.ma.asarray(a)), np.ma.getmaskarray(np.ma.asarray(b)), name)
        np.testing.assert_array_equal(np.ma.filled(np.ma.asarray(a)), np.ma.filled(np.ma.asarray(b)), name)
