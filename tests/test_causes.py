"""Each named cause: injected with seeds of its own, and found again more often than not; physics that must hold whatever the weights."""

import numpy as np
import pytest
from astropy.table import Table

from skyseek.data.files import text
from skyseek.detect.injected_failures import inject_cosmic, inject_dip, inject_hot_pixel, inject_line, inject_sky_residual, simulate_failures
from skyseek.explain.artefacts import suspect_pixels
from skyseek.explain.cases import open_cases
from skyseek.explain.causes import CAUSES, PIXELS, CauseSettings, find_clues, name_causes, name_repairs, weigh_clues
from skyseek.explain.line_clues import clue_line_ratio, clue_lone_line
from skyseek.pipeline.score import cause_columns, load_weights
from skyseek.redshift.bases import default_bases, pca_bases
from skyseek.redshift.scan import scan_redshift
from skyseek.redshift.second_look import second_look
from skyseek.simulate.mock_survey import simulate_spectra
from skyseek.simulate.templates import builtin_library

LEAST = dict(HOT_PIXEL=.5, COSMIC=.5, SKY_LINE=.6, DIP=.25, FEATURELESS=.5, DUST=.5, LINE_RATIO=.5, LONE_LINE=.35, OFFSET=.5, LOW_SNR=.6, TEMPLATE_LIMIT=.5)


@pytest.fixture(scope='module')
def failures():
    pipeline = pca_bases(builtin_library(n_galaxy=200, n_qso=100, n_star=200, seed=4077), n_galaxy=7)
    return simulate_failures(350, pipeline, seed=4101, limit=16)


@pytest.fixture(scope='module')
def named(failures):
    _, opinion, fit = second_look(failures, load_weights().judge)
    return cause_columns(failures, fit, opinion, np.ones(len(failures), bool))


@pytest.mark.slow
@pytest.mark.parametrize('cause', list(LEAST))
def test_injected_causes_are_named(failures, named, cause):
    of = text(failures.meta['INJECTED']) == cause
    assert of.sum() >= 4
    assert (text(named['CAUSE'])[of] == cause).mean() >= LEAST[cause]


@pytest.mark.slow
def test_few_causes_stay_unknown(failures, named):
    cause = text(named['CAUSE'])
    assert set(cause) <= set(CAUSES) and (cause == 'UNKNOWN').mean() < .1
    assert (np.char.str_len(text(named['CAUSE_TEXT'])) > 0).all() and np.isfinite(named['CAUSE_SCORE']).all()


@pytest.fixture(scope='module')
def galaxies():
    spectra, truth = simulate_spectra(60, seed=4203, shares=dict(LRG=.5, ELG=.5), blend=0.)
    good = np.char.find(text(truth['FLAGS']), 'DEAD') < 0
    return spectra[good], truth[good]


@pytest.mark.parametrize('inject, kind, least', [(inject_hot_pixel, 'hot pixel', .7), (inject_cosmic, 'cosmic ray', .6), (inject_sky_residual, 'sky line', .8)])
def test_features_are_told_apart(galaxies, inject, kind, least):
    options = dict(widest=2) if inject is inject_hot_pixel else {}
    broken, where = inject(galaxies[0], np.random.default_rng(41), snr=(30, 60), **options)
    _, found = suspect_pixels(broken, fine=True)
    kinds = [[what for x, _, what in some if abs(x - w) < 6] for some, w in zip(found, where)]
    assert np.mean([kind in k for k in kinds]) >= least


def test_lines_are_no_cosmic_rays(galaxies):
    "A line as narrow as the optics make it, or wider, is not suspect."
    broken, where = inject_line(galaxies[0], np.random.default_rng(42), snr=(30, 60))
    _, found = suspect_pixels(broken, fine=True)
    assert np.mean([any(abs(x - w) < 4 for x, *_ in some) for some, w in zip(found, where)]) < .1


def one_line(spectra, ratio=None, z=.31, seed=43):
    "Faint smooth spectra with [O III] 5008 at z, and 4960 with 1/ratio of its flux; the pipeline's redshift is z."
    wave, rng = spectra.wave, np.random.default_rng(seed)
    noise, n = .3, 6
    flux = noise*rng.standard_normal((n, len(wave))) + .1
    line = lambda rest: np.exp(-.5*((wave - rest*(1 + z))/1.5)**2)
    flux += 5*line(5008.24) + (5/ratio*line(4960.30) if ratio else 0)
    meta = Table(dict(TARGETID=np.arange(n), Z=np.full(n, z), SPECTYPE=np.full(n, 'GALAXY', 'U6')))
    return spectra[np.arange(n)].replace(flux=flux.astype('f4'), ivar=np.full(flux.shape, noise**-2, 'f4'), meta=meta)


def test_ratio_of_oxygen_lines(galaxies):
    broken, kept = one_line(galaxies[0]), one_line(galaxies[0], 2.98)
    for spectra, is_broken in ((broken, True), (kept, False)):
        gains = [clue_line_ratio(case).gain for case in open_cases(spectra, scan_redshift(spectra))]
        assert all((g > CauseSettings().line_ratio) == is_broken for g in gains)
    assert set(name_causes(broken, scan_redshift(broken))['CAUSE']) == {'LINE_RATIO'}
    assert not any(clue_lone_line(case).gain for case in open_cases(kept, scan_redshift(kept)))  # two lines are seen


def test_repairs_have_names():
    table = Table(dict(REPAIR=['dip of -70 % from 8514 to 8670 Å, left out', 'step of +38 % between arms at 7570 Å, mended',
                               'bump or dip where arms meet of +30 % from 5758 to 5802 Å, left out'], REPAIR_WAVE=np.full((3, 3), 6000.), REPAIR_GAIN=[500., 90., 60.]))
    assert list(name_repairs(table)['CAUSE']) == ['DIP', 'ARM', 'ARM']


def test_a_dip_is_named_with_its_place():
    spectra, truth = simulate_spectra(120, seed=4207, program='bright', shares=dict(BGS=1.), blend=0., exptime=(800., 1200.))
    rows = np.flatnonzero((spectra.snr > 3) & (truth['FLAGS'] == 'PHYSICS'))[:12]
    broken, where = inject_dip(spectra[rows], np.random.default_rng(44), depth=(.7, .9))
    n, meta = len(rows), Table()
    meta['TARGETID'], meta['Z'], meta['SPECTYPE'] = np.arange(n), np.full(n, 1.61), np.full(n, 'GALAXY', 'U6')
    broken = broken.replace(meta=meta)
    _, opinion, fit = second_look(broken, load_weights().judge)
    found = cause_columns(broken, fit, opinion, np.ones(n, bool))
    dips = text(found['CAUSE']) == 'DIP'
    assert dips.mean() >= .4
    assert np.nanmin(abs(np.asarray(found['CAUSE_WAVE'])[dips] - where[dips, None]), axis=1).max() < 150


def test_quick_and_whole_reading_name_the_same(galaxies):
    spectra, truth = galaxies
    meta = Table(dict(TARGETID=truth['TARGETID'][:10], Z=np.linspace(.1, 1.6, 10), SPECTYPE=np.full(10, 'GALAXY')))
    some = spectra[np.arange(10)].replace(meta=meta)
    for case in open_cases(some, scan_redshift(some, default_bases())):
        assert weigh_clues(find_clues(case))[0] == weigh_clues(find_clues(case, quick=True))[0]


def test_single_features_share_one_place_in_the_order():
    assert CAUSES[1:5] == PIXELS and CAUSES[-1] == 'UNKNOWN' and max(map(len, CAUSES)) <= 16
