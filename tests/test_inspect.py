"""The evidence on one object, and the causes of wrong redshifts, on files and on spoilt spectra."""
import subprocess
import sys

import numpy as np
import pytest

from skyseek.detect.injected_failures import inject_hot_pixel, scan_wrong
from skyseek.pipeline.score import load_weights, match_grid, score_spectra
from skyseek.explain.causes import CAUSES, name_causes
from skyseek.pipeline.cli import main
from skyseek.data.desi import find_redrock
from skyseek.data.files import write_spectra
from skyseek.data.redshift_tables import read_redrock
from skyseek.explain.inspect import Evidence, inspect_file, pick_target, plot_evidence
from skyseek.redshift.bases import pca_bases
from skyseek.redshift.scan import redshift_file, scan_redshift
from skyseek.simulate.templates import builtin_library
from skyseek.data.read import read_any
from skyseek.simulate.mock_survey import simulate_spectra, simulate_survey
from commands import errors, skyseek
from surveys import write_coadd, write_pair


@pytest.fixture(scope='module')
def bases(): return pca_bases(builtin_library(n_galaxy=60, n_qso=40, n_star=60, seed=3))


@pytest.fixture(scope='module')
def coadd(tmp_path_factory, bases):
    path = simulate_survey(tmp_path_factory.mktemp('survey'), n=4, seed=4)
    redshift_file(path, path.with_name(path.name.replace('coadd', 'redrock')), bases)
    return path


def target(coadd): return read_redrock(find_redrock(coadd))['TARGETID'][1]


@pytest.mark.parametrize('suffix, start', [('.png', b'\x89PNG'), ('.pdf', b'%PDF'), ('.svg', b'<?xml')])
def test_page_of_every_kind(coadd, bases, tmp_path, suffix, start):
    page, text = inspect_file(coadd, target(coadd), tmp_path/f'page{suffix}', bases=bases)
    assert page.read_bytes().startswith(start) and str(target(coadd)) in text
    assert [p.name for p in tmp_path.iterdir()] == [page.name]


def test_command_writes_page_and_words(coadd, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(['inspect', str(target(coadd)), str(coadd)]) == 0
    assert (tmp_path/f'evidence-{target(coadd)}.png').stat().st_size > 20_000
    words = capsys.readouterr().out
    assert 'P(redshift wrong)' in words and 'runner-up' in words
    assert 'likely cause' not in words  # neither redshift nor type is flagged


@pytest.fixture(scope='module')
def catalogue(coadd):
    "A catalogue beside the coadd, whose third row names a file that is gone."
    t = read_redrock(find_redrock(coadd))['TARGETID', 'Z', 'SPECTYPE', 'ZWARN', 'DELTACHI2'].copy()
    t['P_Z_WRONG'], t['P_S_WRONG'], t['ANOMALY_CLEAN'] = [.1, .6, .9, np.nan], .1, [3., 2., 1., np.nan]
    t['FLAG_Z_WRONG'], t['FLAG_S_WRONG'] = [False, False, True, False], False
    t['FILE'] = [coadd.name, coadd.name, 'coadd-gone.fits', coadd.name]
    t.write(path := coadd.with_name('catalogue.fits'))
    return path


def test_several_targets_of_a_file_become_one_document(coadd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ids = read_redrock(find_redrock(coadd))['TARGETID'].tolist()
    done = skyseek('inspect', ids[1], '-o', 'two.pdf', ids[0], 7, coadd)
    assert done.returncode == 1 and [p.name for p in tmp_path.iterdir()] == ['two.pdf']
    assert (tmp_path/'two.pdf').read_bytes().count(b'/Type /Page ') == 2
    assert done.stdout.index(str(ids[1])) < done.stdout.index(str(ids[0])) and done.stdout.endswith('two.pdf\n')
    assert 'no TARGETID 7 among its 4 targets' in done.stderr and '1 of 3 targets failed, 2 done' in done.stderr
    before = (tmp_path/'two.pdf').read_bytes()
    done = skyseek('inspect', *ids[:2], coadd, '-o', 'two.pdf')
    assert done.returncode == 1 and 'exists already' in done.stderr and (tmp_path/'two.pdf').read_bytes() == before


def test_most_suspicious_of_a_catalogue(coadd, catalogue, tmp_path):
    ids = read_redrock(find_redrock(coadd))['TARGETID'].tolist()
    done = skyseek('inspect', catalogue, '--most', 2, '-o', tmp_path/'pages')
    assert done.returncode == 1 and 'coadd-gone.fits is not in' in done.stderr and str(ids[2]) in done.stderr
    assert [p.name for p in (tmp_path/'pages').iterdir()] == [f'evidence-{ids[1]}.png']
    assert 'P(redshift wrong) 0.60' in done.stdout  # the catalogue's, not scored again
    done = skyseek('inspect', catalogue, '--most', 1, '--by', 'ANOMALY_CLEAN', '--where', 'P_Z_WRONG < .5', '-o', tmp_path/'a.svg')
    assert done.returncode == 0 and str(ids[0]) in done.stdout and (tmp_path/'a.svg').is_file()
    done = skyseek('inspect', ids[2], catalogue, '-o', tmp_path/'b.png')
    assert done.returncode == 1 and len(errors(done)) and not (tmp_path/'b.png').exists()


@pytest.mark.parametrize('line, words', [
    ('7 8 COADD -o x.png', 'give a .pdf file or a folder'), ('7 8 COADD -o x.docx', '.png, .pdf or .svg'),
    ('COADD --most 3', 'holds spectra'), ('CATALOGUE', 'give TARGETIDs, or --most N'), ('7 CATALOGUE --most 3', 'give TARGETIDs, or --most N'),
    ('CATALOGUE --most 0', 'at least 1'), ('CATALOGUE --most 2 --by NOTHING', 'NOTHING'), ('CATALOGUE --most 2 --where Z>9', 'no row is left'),
    ('CATALOGUE --most 2 --redrock CATALOGUE', 'leave --redrock out'), ('CATALOGUE --most 2 --spectra GONE', 'no such file or folder'),
    ('7 8 CATALOGUE -o CATALOGUE', 'would overwrite')])
def test_what_cannot_be_asked_is_said(coadd, catalogue, tmp_path, monkeypatch, line, words):
    monkeypatch.chdir(tmp_path)
    done = skyseek('inspect', *line.replace('COADD', str(coadd)).replace('CATALOGUE', str(catalogue)).split())
    assert done.returncode == 1 and words in done.stderr and len(errors(done)) == 1 and not any(tmp_path.iterdir()), done.stderr


@pytest.mark.slow
def test_compact_file_gives_the_same_words(coadd, bases, tmp_path):
    spectra = pick_target(coadd, target(coadd))
    compact = write_spectra(spectra, tmp_path/'spectra.fits')
    words = [inspect_file(p, target(coadd), tmp_path/'page.png', bases=bases)[1].splitlines()[1] for p in (coadd, compact)]
    assert words[0].split('ZWARN')[0] == words[1].split('ZWARN')[0]


def test_missing_target_is_told_with_examples(coadd, bases, tmp_path):
    with pytest.raises(ValueError, match='no TARGETID 12 among its 4 targets; there are for example'): inspect_file(coadd, 12, tmp_path/'page.png', bases=bases)
    assert not any(tmp_path.iterdir())


def test_coadd_without_redrock_shows_ours(tmp_path, bases):
    _, text = inspect_file(write_coadd(tmp_path/'coadd-a.fits'), 39628000000000000, tmp_path/'page.png', bases=bases)
    assert 'pipeline  no answer' in text and 'likely cause' not in text


@pytest.mark.slow
def test_bad_redrock_answers_do_not_stop_it(tmp_path, bases):
    path = write_pair(tmp_path)
    for row in range(3): inspect_file(path, 39628000000000000 + row, tmp_path/'page.png', bases=bases)


def spoilt():
    "Spectra that have broken other programs: all masked, one arm, negative, one huge spike, few pixels."
    spectra, _ = simulate_spectra(5, seed=2, blend=0.)
    flux, ivar = spectra.flux.copy(), spectra.ivar.copy()
    ivar[0], flux[2], flux[3, 4000] = 0, -flux[2] - 5, 1e7
    ivar[1, spectra.wave < 7600] = 0
    ivar[4, 20:] = 0
    meta = spectra.meta.copy()
    meta['Z'], meta['SPECTYPE'] = [.5, 1.65, 0., 5.9, .9], ['GALAXY', 'GALAXY', 'STAR', 'QSO', 'QSO']
    return spectra.replace(flux=flux, ivar=ivar, meta=meta)


@pytest.mark.slow
def test_spoilt_spectra_get_a_cause_and_a_page(bases):
    spectra = spoilt()
    causes = name_causes(spectra, scan_redshift(spectra, bases))
    assert set(causes['CAUSE']) <= set(CAUSES) and np.isfinite(causes['CAUSE_SCORE']).all() and (causes['CAUSE_SCORE'] <= 1).all()
    assert causes['CAUSE_TEXT'][0] == 'no valid pixel' and causes['CAUSE'][1] == 'ARM'
    for i in range(5): plot_evidence(Evidence(spectra[[i]], scan_redshift(spectra[[i]], bases, keep_chi2=True), causes[i])).canvas.draw()


def test_causes_do_not_depend_on_the_company(bases):
    spectra = spoilt()
    together = name_causes(spectra, scan_redshift(spectra, bases))
    for i in (1, 3): assert name_causes(spectra[[i]], scan_redshift(spectra[[i]], bases))['CAUSE_TEXT'][0] == together['CAUSE_TEXT'][i]


def test_hot_pixels_are_named(bases):
    spectra, truth = simulate_spectra(40, seed=9, shares=dict(ELG=.5, LRG=.5), blend=0.)
    broken, where = inject_hot_pixel(spectra, np.random.default_rng(0), snr=(30, 60))
    wrong = scan_wrong(broken, truth, bases, 'HOT_PIXEL', where, limit=8)
    causes = name_causes(wrong, scan_redshift(wrong, bases))
    named = np.isin(causes['CAUSE'], ('HOT_PIXEL', 'COSMIC'))  # one to three pixels
    assert named.mean() > .5
    assert np.nanmin(np.abs(causes['CAUSE_WAVE'][named] - np.asarray(wrong.meta['INJECTED_WAVE'])[named, None]), axis=1).max() < 5


def test_help_is_quick_and_imports_nothing_heavy():
    done = subprocess.run([sys.executable, '-c', "import sys; from skyseek.pipeline.cli import main\ntry: main(['inspect', '--help'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"], capture_output=True, text=True)
    assert done.returncode == 0 and 'TARGETID' in done.stdout


def test_sdss_spectrum(data, bases, tmp_path):
    path = next(p for p in sorted((data/'sdss').glob('*spec-*.fits.gz')))
    targetid = read_any(path).meta['TARGETID'][0]
    weights = load_weights()
    page, text = inspect_file(path, targetid, tmp_path/'page.png', bases=bases, score=lambda s: score_spectra(match_grid(s, weights), weights))
    assert page.stat().st_size > 20_000 and 'pipeline' in text and 'P(redshift wrong)' in text
