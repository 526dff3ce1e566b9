"""GaSNet-II and `skyseek classify`: files of every survey, spectra that cannot be judged, weights of others, and errors that hold at every S/N."""
import numpy as np
import pytest
import torch
from astropy.table import Table
from commands import errors, skyseek
from surveys import write_coadd, write_lamost, write_sdss

from skyseek.data.files import read_written_table, write_spectra
from skyseek.data.spectra import Spectra
from skyseek.gasnet.classify_spectra import CLASSIFIED, classify_spectra, load_gasnet2, shipped_gasnet2
from skyseek.gasnet.gasnet2 import GaSNet2, GaSNet2Classifier, GaSNet2Redshift, KNOTS, calibrate_redshift, log_snr, measure_spectra, subclass_probabilities
from skyseek.gasnet.sdss_subclasses import N_PIXEL, SPECTYPES, SUBCLASSES, draw_spectra, near_border, rest_templates, wave_compact
from skyseek.learn.training import shipped

SMALL = dict(width=4, features=2, blocks=(4, 4), dense=4, members=2)


@pytest.fixture(scope='module')
def library():
    return rest_templates(12, seed=31)


@pytest.fixture(scope='module')
def sample(library):
    return draw_spectra(library, 10, seed=31, even=True)


@pytest.fixture(scope='module')
def networks(tmp_path_factory):
    "A folder of small networks that know nothing: no regressor for stars."
    torch.manual_seed(0)
    system = GaSNet2(GaSNet2Classifier(**SMALL), {t: GaSNet2Redshift(t, **SMALL) for t in ('GALAXY', 'QSO')})
    return system.save(tmp_path_factory.mktemp('networks')/'gasnet2')


@pytest.fixture(scope='module')
def survey(tmp_path_factory, sample):
    "A folder with files of each survey, and two that cannot be read."
    folder = tmp_path_factory.mktemp('survey')
    write_sdss(folder, 1)
    write_sdss(folder, 2)
    write_lamost(folder)
    write_coadd(folder/'coadd-main-dark-1.fits', 3)
    write_spectra(sample[0][:5], folder/'spectra-five.fits')
    (folder/'notes.fits').write_text('none')
    write_sdss(folder, 3, coadd={'loglam': np.linspace(3000, 9000, 3800, dtype='f4')})
    return folder


def classify(*words):
    return skyseek('classify', *words, '--device', 'cpu')


# The command

def test_every_survey_gets_its_rows(survey, networks, tmp_path):
    done = classify(survey, '-o', tmp_path/'t.fits', '--weights', networks)
    table = read_written_table(tmp_path/'t.fits')
    assert len(table) == 2 + 1 + 3 + 5 and '11 spectra' in done.stdout
    assert set(table.colnames) == set(CLASSIFIED) and table['TARGET_RA'].unit == 'deg'
    assert [c for c in CLASSIFIED if c in table.colnames] == table.colnames or set(table['FILE']) >= {'coadd-main-dark-1.fits'}
    p = np.array([table[f"P_{name.replace(' ', '_')}"] for name in SUBCLASSES])
    assert np.allclose(p.sum(0), 1, atol=1e-5) and np.allclose(p.max(0), table['P_SUBCLASS'], atol=1e-6)
    assert np.all((table['ZWARN'] == 0) == (table['REASON'] == ''))
    assert done.returncode == 1 and len(errors(done)) == 3  # two files, and how many they are
    assert 'not on the survey\'s grid' in done.stderr and 'notes.fits' in done.stderr and 'Traceback' not in done.stderr
    assert table.meta['NINPUT'] == 5 and table.meta['WEIGHTS'] == 'gasnet2'


def test_one_file_and_parquet(survey, networks, tmp_path):
    done = classify(survey/'spectra-five.fits', '-o', tmp_path/'t.parquet', '--weights', networks)
    assert done.returncode == 0 and done.stderr == '' and len(read_written_table(tmp_path/'t.parquet')) == 5


@pytest.mark.parametrize('weights, says', [('default', 'GaSNet2Classifier|no GaSNet-II'), ('stars', 'no GaSNet-II')])
def test_weights_of_another_system(survey, tmp_path, weights, says):
    done = classify(survey/'spectra-five.fits', '-o', tmp_path/'t.fits', '--weights', shipped().parent/weights)
    assert done.returncode == 1 and len(errors(done)) == 1 and any(word in done.stderr for word in says.split('|')) and not (tmp_path/'t.fits').exists()


def test_damaged_weights(survey, networks, tmp_path):
    GaSNet2(GaSNet2Classifier(**SMALL), {'QSO': GaSNet2Redshift('QSO', **SMALL)}).save(tmp_path/'w')
    whole = (tmp_path/'w/redshift-QSO/model.safetensors').read_bytes()
    (tmp_path/'w/redshift-QSO/model.safetensors').write_bytes(whole[:len(whole)//2])
    done = classify(survey/'spectra-five.fits', '-o', tmp_path/'t.fits', '--weights', tmp_path/'w')
    assert done.returncode == 1 and len(errors(done)) == 1 and 'cannot be loaded' in done.stderr


def test_nothing_is_overwritten_unasked(survey, networks, tmp_path):
    (tmp_path/'t.fits').write_text('mine')
    words = survey/'spectra-five.fits', '-o', tmp_path/'t.fits', '--weights', networks
    done = classify(*words)
    assert done.returncode == 1 and len(errors(done)) == 1 and (tmp_path/'t.fits').read_text() == 'mine'
    assert classify(*words, '--overwrite').returncode == 0
    done = classify(survey/'spectra-five.fits', '-o', survey/'spectra-five.fits', '--weights', networks, '--overwrite')
    assert done.returncode == 1 and len(errors(done)) == 1
    done = classify(survey/'spectra-five.fits', '-o', networks/'classifier/config.json', '--weights', networks, '--overwrite')
    assert done.returncode == 1 and (networks/'classifier/config.json').read_text()[0] == '{'


@pytest.mark.parametrize('words', ['missing.fits -o t.fits', 'notes.fits -o t.fits', 'spectra-five.fits -o t.png', 'empty -o t.fits'])
def test_bad_words(survey, networks, tmp_path, words, monkeypatch):
    (survey/'empty').mkdir(exist_ok=True)
    monkeypatch.chdir(survey)
    done = classify(*words.split(), '--weights', networks)
    assert done.returncode == 1 and len(errors(done)) == 1 and not {p.name for p in survey.iterdir()} & {'t.fits', 't.png'}


# Spectra that cannot be judged

def odd_spectra(flux, ivar, rng):
    "Name → (flux, ivar, words of REASON)."
    half, noise = np.where(np.arange(N_PIXEL) < 1700, ivar, 0), rng.normal(size=N_PIXEL).astype('f4')
    return {'no pixel': (flux, 0*ivar, 'no valid pixel'), 'half': (flux, half, 'less than 60 %'), 'inverted': (-flux, ivar, 'S/N below'),
            'noise': (noise, np.ones_like(ivar), 'S/N below'), 'beyond measurement': (np.full_like(flux, 1e20), ivar, 'no valid pixel'),
            'zero flux': (0*flux, ivar, 'S/N below')}


def test_odd_spectra_are_flagged(sample, networks):
    spectra, truth = sample
    i = int(np.flatnonzero(truth['SUBCLASS'] == 'STAR A0')[np.argmax(spectra.good[np.asarray(truth['SUBCLASS'] == 'STAR A0')].mean(1))])
    cases = odd_spectra(spectra.flux[i], spectra.ivar[i], np.random.default_rng(0))
    odd = Spectra(wave_compact(), *(np.array([c[k] for c in cases.values()]) for k in (0, 1)))
    for system in load_gasnet2(networks), load_gasnet2():
        table = classify_spectra(odd, system)
        for (name, (*_, words)), row in zip(cases.items(), table): assert row['ZWARN'] != 0 and words in row['REASON'], name
        assert np.isnan(table['Z'][0]) and np.isnan(table['P_SUBCLASS'][0]) and table['SPECTYPE'][0] == table['SUBCLASS'][0] == ''


def test_masked_pixels_do_not_count(sample):
    system, (spectra, truth) = load_gasnet2(), sample
    keep = np.flatnonzero((truth['SNR'] > 4) & (spectra.good.mean(1) > .95))[:20]
    flux, hit = spectra.flux[keep].copy(), np.random.default_rng(0).random((len(keep), N_PIXEL)) < .03
    ivar = np.where(hit, 0, spectra.ivar[keep])
    flux[hit] = 1e7
    spoilt, clean = (classify_spectra(Spectra(wave_compact(), f, ivar), system) for f in (flux, spectra.flux[keep]))
    assert np.allclose(spoilt['Z'], clean['Z'], atol=1e-5) and np.allclose(spoilt['P_SUBCLASS'], clean['P_SUBCLASS'], atol=1e-4)


def test_unit_of_flux_and_order_do_not_matter(sample):
    system, (spectra, _) = load_gasnet2(), sample
    some = spectra[:30]
    scaled = Spectra(wave_compact(), some.flux*1e-3, some.ivar*1e6)
    first, second, turned = (classify_spectra(s, system) for s in (some, scaled, some[np.arange(30)[::-1]]))
    for name in ('P_SUBCLASS', 'P_GALAXY'): assert np.allclose(first[name], second[name], atol=2e-3) and np.allclose(first[name], turned[name][::-1], atol=1e-4)


# The weights in the package

def test_shipped_networks_know_the_subclasses(sample):
    system, (spectra, truth) = load_gasnet2(), sample
    p, label = subclass_probabilities(system.classifier, spectra), np.asarray(truth['LABEL'])
    assert np.mean(p.argmax(1) == label) > .68 and np.mean(SPECTYPES[p.argmax(1)] == SPECTYPES[label]) > .92
    mine = SPECTYPES[label] == 'GALAXY'
    z = measure_spectra(system.redshifts['GALAXY'], spectra[mine])[:, 0]
    assert np.median(np.abs(z - truth['TRUE_Z'][mine])) < 2e-4
    assert sum(f.stat().st_size for f in shipped_gasnet2().rglob('*')) < 3e6
    assert 'Figures' in (shipped_gasnet2()/'classifier/card.md').read_text()


def test_real_spectra(data):
    "Stars of LAMOST and SDSS are stars."
    folder = data/'lamost/AstroSpectro'
    if not folder.exists(): pytest.skip('no LAMOST spectra among the real data')
    from skyseek.gasnet.classify_spectra import classify_files
    table, read, failed = classify_files(folder, load_gasnet2())
    known = {r['file']: r for r in Table.read(data/'lamost/lamost_catalog.csv')}
    star = np.array([str(known[f]['CLASS']) == 'STAR' for f in table['FILE']])
    clear = star & (table['ZWARN'] == 0)
    z = np.array([known[f]['Z'] for f in table['FILE']])
    assert not failed and clear.sum() > 8 and np.mean(table['SPECTYPE'][clear] == 'STAR') > .85
    assert np.median(np.abs(table['Z'] - z)[clear]) < 3e-4


# Calibration at each S/N, and borders

def test_coverage_holds_at_every_snr(library):
    torch.manual_seed(1)
    model = GaSNet2Redshift('STAR', **SMALL)
    held, fresh = (draw_spectra(library, 220, seed=s, spectypes=('STAR',), even=True) for s in (5, 6))
    factors = calibrate_redshift(model, held[0], held[1]['TRUE_Z'])
    assert factors.shape == (2, KNOTS) and np.all(np.diff(model.calibration[0].numpy()) >= 0)
    z, core, tail, _ = measure_spectra(model, fresh[0]).T
    error = np.abs(z - fresh[1]['TRUE_Z'])
    for part in np.array_split(np.argsort(fresh[1]['SNR']), 3):
        assert np.mean((error < core)[part]) == pytest.approx(.683, abs=.08) and np.mean((error < tail)[part]) == pytest.approx(.95, abs=.04)


def test_snr_of_the_calibration():
    flux, ivar = torch.full((3, N_PIXEL), 2.), torch.full((3, N_PIXEL), 4.)
    ivar[1, 10:], ivar[2] = 0, 0
    assert torch.allclose(log_snr(flux, ivar).exp(), torch.tensor([4., 4., .01])) and torch.allclose(log_snr(-flux, ivar).exp(), torch.tensor(.01))


def test_borders(library, sample):
    _, truth = sample
    assert .03 < np.mean(truth['BORDER']) < .4 and not truth['BORDER'][truth['SUBCLASS'] == 'STAR A0'].any()
    rows = np.flatnonzero(library.table['KIND'] == 'QSO')
    clean = np.ones((len(rows), N_PIXEL))
    assert not near_border(library, rows, np.full(len(rows), .5), clean, clean).any()  # no broad line in a flat spectrum
