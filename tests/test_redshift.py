"""The chi² scan on whole files, on bad input, and against template files in redrock's format."""
import os

import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.table import Table

from skyseek.data.desi import read_coadd
from skyseek.data.redshift_tables import read_redrock
from skyseek.data.constants import LYA
from skyseek.redshift.bases import load_bases, mean_forest
from skyseek.redshift.bases import Basis, default_bases, library_bases, read_bases
from skyseek.redshift.chi2 import ScanPlan, ScanSettings, log_sums, rebin_sum, typical_power
from skyseek.redshift.local_fit import LocalFit, fit_at, totals
from skyseek.redshift.minima import find_minima
from skyseek.redshift.pixel_fits import fit_pixels, native_fits
from skyseek.redshift.scan import redshift_file, scan_redshift
from skyseek.simulate.mock_survey import simulate_spectra, simulate_survey
from skyseek.data.spectra import Spectra, wave_desi


@pytest.fixture(scope='module')
def coadd(tmp_path_factory): return simulate_survey(tmp_path_factory.mktemp('survey'), n=12, seed=4)


@pytest.fixture(scope='module')
def galaxy(): return default_bases()[:1]


def test_file_is_row_matched_and_redrock_like(coadd, galaxy):
    path = redshift_file(coadd, coadd.with_name('redrock.fits'), galaxy)
    table = read_redrock(path)
    assert (table['TARGETID'] == read_coadd(coadd).meta['TARGETID']).all()
    assert table['COEFF'].shape == (12, 10) and table['ZWARN'].dtype.kind == 'i'
    with fits.open(path) as hdus:
        assert hdus[0].header['TEMNAM00'] == 'GALAXY' and hdus[0].header['RRVER'].startswith('skyseek')
        assert (hdus['FIBERMAP'].data['TARGETID'] == hdus['REDSHIFTS'].data['TARGETID']).all()


def test_whole_file_is_kept_and_broken_or_stale_one_redone(coadd, galaxy):
    path = coadd.with_name('kept.fits')
    path.write_text('a file of somebody')
    with pytest.raises(ValueError, match='holds no redshifts.*--overwrite'): redshift_file(coadd, path, galaxy)
    assert path.read_text() == 'a file of somebody'
    assert len(read_redrock(redshift_file(coadd, path, galaxy, overwrite=True))) == 12
    path.write_bytes(path.read_bytes()[:-2880])
    assert len(read_redrock(redshift_file(coadd, path, galaxy))) == 12
    made = path.stat().st_mtime_ns
    assert redshift_file(coadd, path, galaxy).stat().st_mtime_ns == made
    os.utime(coadd)
    assert redshift_file(coadd, path, galaxy).stat().st_mtime_ns > made
    made = path.stat().st_mtime_ns
    assert redshift_file(coadd, path, galaxy, overwrite=True).stat().st_mtime_ns > made


def test_bad_coadd_leaves_nothing_behind(tmp_path, galaxy):
    bad = tmp_path/'coadd-bad.fits'
    bad.write_text('no FITS file')
    with pytest.raises(ValueError, match='coadd-bad.fits'): redshift_file(bad, tmp_path/'redrock-bad.fits', galaxy)
    assert [p.name for p in tmp_path.iterdir()] == ['coadd-bad.fits']


def test_order_of_spectra_does_not_matter(coadd, galaxy):
    spectra, order = read_coadd(coadd), np.random.default_rng(0).permutation(12)
    straight, shuffled = scan_redshift(spectra, galaxy).table, scan_redshift(spectra[order], galaxy).table
    for name in ('Z', 'CHI2', 'DELTACHI2'): np.testing.assert_allclose(shuffled[name], straight[name][order], rtol=1e-6, atol=1e-6)


def test_all_masked_spectra_are_flagged(coadd, galaxy):
    spectra = read_coadd(coadd)[:3]
    table = scan_redshift(spectra.replace(ivar=np.zeros_like(spectra.ivar)), galaxy).table
    assert (table['ZWARN'] & (1 << 9) > 0).all() and (table['Z'] == 0).all() and np.isfinite(table['COEFF']).all()


def test_short_template_is_compared_on_its_own_pixels(coadd):
    spectra, wide = read_coadd(coadd)[:4], default_bases()[0]
    keep = (wide.wave > 3400) & (wide.wave < 7000)
    fit = scan_redshift(spectra, [Basis(wide.wave[keep], wide.flux[:3, keep], 'GALAXY', zmin=0., zmax=.3)])
    assert (fit.table['NPIXELS'] < 7000).all() and np.isfinite(fit.table['CHI2']).all()


@pytest.mark.parametrize('loglam', [0, 1])
def test_template_file_with_either_wavelength_scale(tmp_path, loglam):
    header = fits.Header(dict(CRVAL1=3.5 if loglam else 3000., CDELT1=1e-4 if loglam else .5, LOGLAM=loglam, RRTYPE='STAR', RRSUBTYP='A', VERSION='0.1'))
    fits.PrimaryHDU(np.ones((2, 100)), header).writeto(tmp_path/'rrtemplate-STAR-A-v0.1.fits')
    basis, = read_bases(tmp_path)
    assert basis.name == 'STAR:::A' and basis.zmax == .002 and basis.version == '0.1'
    assert basis.wave[0] == pytest.approx(10**3.5 if loglam else 3000) and basis.wave[1] == pytest.approx(10**3.5001 if loglam else 3000.5)


def test_not_a_template_file_is_named(tmp_path):
    Table({'a': [1]}).write(tmp_path/'rrtemplate-x.fits')
    with pytest.raises(ValueError, match='rrtemplate-x.fits'): read_bases(tmp_path)


def test_template_file_with_nan_or_without_wavelengths_is_named(tmp_path):
    header = fits.Header(dict(CRVAL1=3000., CDELT1=.5, LOGLAM=0, RRTYPE='STAR', RRSUBTYP='A'))
    fits.PrimaryHDU(np.full((2, 100), np.nan), header).writeto(tmp_path/'rrtemplate-STAR-A.fits')
    with pytest.raises(ValueError, match='rrtemplate-STAR-A.fits.*200 of|rrtemplate-STAR-A.fits.*100 of 100'): read_bases(tmp_path)
    del header['CDELT1']
    fits.PrimaryHDU(np.ones((2, 100)), header).writeto(tmp_path/'rrtemplate-STAR-A.fits', overwrite=True)
    with pytest.raises(ValueError, match='rrtemplate-STAR-A.fits.*CDELT1'): read_bases(tmp_path)
    (tmp_path/'bases.safetensors').write_bytes(b'half')
    with pytest.raises(ValueError, match='bases.safetensors'): load_bases(tmp_path/'bases.safetensors')


@pytest.fixture(scope='module')
def sky(): return simulate_spectra(24, seed=8)


SPOILT = {
    'masked': lambda f, w: (f, 0*w), 'one arm': lambda f, w: (f, np.where(np.arange(len(f)) < 2700, w, 0)), 'negative': lambda f, w: (-abs(f) - 5, w),
    'spike': lambda f, w: (np.where(np.arange(len(f)) == 4000, 1e8, f), w), 'three pixels': lambda f, w: (f, np.where(np.isin(np.arange(len(f)), (500, 3000, 6000)), w + 1e-3, 0)),
    'zero': lambda f, w: (0*f, w), 'huge': lambda f, w: (1e12*f, w*1e-24), 'tiny errors': lambda f, w: (f, w*1e12)}


@pytest.mark.parametrize('what', SPOILT)
def test_a_spoilt_spectrum_is_flagged_or_fitted_and_leaves_the_others_alone(sky, what):
    spectra, _ = sky
    spectra = spectra[:5]
    flux, ivar = spectra.flux.copy(), spectra.ivar.copy()
    flux[2], ivar[2] = SPOILT[what](flux[2], ivar[2])
    clean, spoilt = scan_redshift(spectra), scan_redshift(spectra.replace(flux=flux, ivar=ivar))
    others = [0, 1, 3, 4]
    np.testing.assert_allclose(spoilt.table['Z'][others], clean.table['Z'][others], atol=1e-6)
    np.testing.assert_allclose(spoilt.table['CHI2'][others], clean.table['CHI2'][others], rtol=1e-5)
    row = spoilt.table[2]
    for name in ('Z', 'ZERR', 'CHI2', 'DELTACHI2', 'R', 'P'): assert np.isfinite(row[name]), name
    assert np.isfinite(row['COEFF']).all() and 0 <= row['P'] <= 1 + 1e-9
    if what in ('masked', 'zero', 'three pixels'): assert row['ZWARN'] != 0
    if what == 'masked': assert row['ZWARN'] & (1 << 9)
    if what == 'three pixels': assert row['ZWARN'] & (1 << 1)


def test_wavelengths_outside_the_templates_are_flagged_or_refused(sky):
    spectra, wide = sky[0][:3], default_bases()[2]
    keep = wide.wave > 9200
    table = scan_redshift(spectra, [Basis(wide.wave[keep], wide.flux[:, keep], 'STAR', zmin=-.002, zmax=.002, variance=wide.variance)]).table
    assert (table['ZWARN'] & (1 << 1) > 0).all() and np.isfinite(table['CHI2']).all()
    far = Basis(np.linspace(100, 200, 50), np.ones((1, 50)), 'STAR', zmin=-.002, zmax=.002)
    with pytest.raises(ValueError, match='never meet the spectra'): scan_redshift(spectra, [far])


def direct(spectrum, basis, z, sigma=30.):
    """chi² at redshift z by an independent float64 least squares on the original pixels; templates smoothed and interpolated."""
    from scipy.ndimage import gaussian_filter1d
    step = 2e-5
    grid = 10**np.arange(np.log10(basis.wave[0]), np.log10(basis.wave[-1]), step)
    t = gaussian_filter1d(np.stack([np.interp(grid, basis.wave, f) for f in basis.flux]), sigma/299792.458/np.log(10)/step, axis=1, mode='nearest')
    x = np.stack([np.interp(spectrum.wave/(1 + z), grid, f) for f in t])
    if basis.forest: x = x*np.where(spectrum.wave < LYA*(1 + z), mean_forest(spectrum.wave), 1)
    root = np.sqrt(spectrum.ivar[0].astype(float))
    a, b = (root*x).T, root*spectrum.flux[0]
    if basis.variance is not None:
        used = root > 0
        power = max((b**2).sum() - used.sum(), 0) + 2*np.sqrt(used.sum())
        a = np.vstack([a, np.diag(np.sqrt((root**2).sum()/(power*basis.variance)))])
        b = np.append(b, np.zeros(len(basis.flux)))
    return ((b - a @ np.linalg.lstsq(a, b, rcond=None)[0])**2).sum()


@pytest.mark.slow
@pytest.mark.parametrize('bases', [default_bases, lambda: library_bases()[:3]], ids=['learned', 'library'])
def test_minima_agree_with_independent_float64_fits(sky, bases):
    spectra, fit = sky[0], scan_redshift(sky[0], bases())
    cost = np.asarray(fit.minima['CHI2'] + fit.minima['PENALTY'])
    by_name = {b.name: b for b in bases()}
    for i in range(0, 24, 3):
        rows = np.flatnonzero((fit.minima['ROW'] == i) & (cost < cost[fit.minima['ROW'] == i].min() + 30))[:2]
        names = [m['SPECTYPE'] + (':::' + m['SUBTYPE'] if m['SUBTYPE'] else '') for m in fit.minima[rows]]
        exact = np.array([direct(spectra[i:i + 1], by_name[n], m['Z']) for n, m in zip(names, fit.minima[rows])])
        gain = (spectra.ivar[i]*spectra.flux[i].astype(float)**2).sum() - exact.min()  # what a narrow line has inside a pixel of 69 km/s counts as misfit
        assert (cost[rows] - exact > -5).all() and (cost[rows] - exact < 5 + .05*gain).all()
        assert abs((cost[rows] - cost[rows[0]]) - (exact - exact[0])).max() < 3 + .01*gain


def test_injected_redshifts_come_back_within_their_errors():
    """Mixtures of the templates themselves, with noise: z must come back, and the pulls must be those of a unit Gaussian."""
    rng, basis, wave, pulls = np.random.default_rng(5), default_bases()[0], wave_desi(), []
    z, spectra = rng.uniform(.05, 1.3, 60), []
    for zi in z:
        c = rng.normal(size=len(basis.flux))*np.sqrt(basis.variance)
        c[0] = abs(c[0])
        f = np.interp(wave/(1 + zi), basis.wave, c @ basis.flux)
        spectra.append(2*f/np.sqrt((f**2).mean()) + rng.normal(size=len(wave)))
    spectra = Spectra(wave, np.array(spectra, np.float32), np.ones((60, len(wave)), np.float32))
    table = scan_redshift(spectra, [basis], settings=ScanSettings(sigma_v=0)).table
    ok = abs(table['Z'] - z) < .0033*(1 + z)
    assert ok.mean() > .95
    pulls = ((table['Z'] - z)/table['ZERR'])[ok]
    assert .6 < 1.4826*np.median(abs(pulls)) < 1.5 and (abs(pulls) < 5).mean() > .9


def test_float32_and_float64_scans_give_the_same_answers(sky):
    a, b = (scan_redshift(sky[0], settings=ScanSettings(dtype=d)).table for d in ('float32', 'float64'))
    np.testing.assert_allclose(a['Z'], b['Z'], atol=1e-5)
    np.testing.assert_allclose(a['CHI2'], b['CHI2'], rtol=1e-6)


def test_any_answer_can_be_tested(sky):
    spectra, fit = sky[0], scan_redshift(sky[0])
    at = fit_at(spectra, fit.table['Z'], fit.table['SPECTYPE'])
    np.testing.assert_allclose(at.chi2, fit.table['CHI2'], rtol=1e-3)
    np.testing.assert_allclose(at.model[3], fit.model(3), rtol=.05, atol=.05*abs(fit.model(3)).max())
    wrong = fit_at(spectra, np.full(24, .3333), np.full(24, 'GALAXY'))
    assert (wrong.cost + 1 > np.asarray(fit.table['CHI2'])).mean() > .9


def test_templates_that_cover_no_data_fit_nothing():
    spectra, _ = simulate_spectra(1, seed=8)
    fits_ = native_fits(default_bases(), spectra.wave)
    for z, spectype in ((3., 'STAR'), (7.5, 'STAR'), (80., 'GALAXY')):
        cost, model = fit_pixels(fits_, spectra.flux[0], spectra.ivar[0], z, spectype)
        assert np.isinf(cost) and not model.any()
    assert np.isfinite(fit_pixels(fits_, spectra.flux[0], spectra.ivar[0], .3, 'GALAXY')[0])
    assert np.isinf(fit_pixels(fits_, spectra.flux[0], 0*spectra.ivar[0], .3, 'GALAXY')[0])


def on_the_log_grid(sums, fit, u):
    """Cost at log10(1+z) = u by numpy's least squares on the log-λ sums: float64, one redshift after the other."""
    out = []
    for x in fit.columns(torch.as_tensor(u))[0].numpy():
        w, wf, wff, _ = sums[:, 0].numpy()
        prior = 1/(fit.basis.variance*typical_power(sums).numpy())
        design = np.vstack([(np.sqrt(w)*x).T, np.diag(np.sqrt(prior))])
        target = np.concatenate([np.divide(wf, np.sqrt(w), where=w > 0, out=np.zeros_like(w)), np.zeros(len(prior))])
        c = np.linalg.lstsq(design, target, rcond=None)[0]
        out.append(((design @ c - target)**2).sum() + wff.sum() - (target**2).sum())
    return np.array(out)


@pytest.mark.parametrize('kind', range(3), ids=['GALAXY', 'QSO', 'STAR'])
def test_curves_and_fits_are_those_of_direct_least_squares(sky, kind):
    """Transforms, channels, forest and elimination; whitened fits, one or several redshifts a row, rows in any order."""
    basis, rows = default_bases()[kind], torch.tensor([2, 0, 2])
    sums = log_sums(sky[0][:3])
    plan, fit = ScanPlan(basis, sums, ScanSettings()), LocalFit(basis, sums)
    at = np.unique(np.linspace(0, plan.nz - 1, 9).astype(int))
    u = torch.as_tensor((plan.low + at*plan.stride)*plan.pixel)
    for row in range(3):
        direct_cost = on_the_log_grid(sums.sums[:, row:row + 1], fit, u)
        np.testing.assert_allclose(plan.chi2(sums.sums)[row, at], direct_cost, rtol=2e-7)  # the ends of templates are smoothed apart
        one = fit.solve(sums.sums[:, [row]*len(u)], u)
        np.testing.assert_allclose(one.cost, direct_cost, atol=5e-3)
    many = fit.solve(sums.sums, u[:, None].expand(-1, 3), totals(sums.sums), rows)
    np.testing.assert_allclose(many.cost[:, 0], one.cost, rtol=1e-9)
    np.testing.assert_allclose(many.coeff[:, 2], one.coeff, rtol=1e-9)
    single = ScanPlan(basis, log_sums(sky[0][:3], dtype=torch.float32), ScanSettings())
    np.testing.assert_allclose(single.chi2(sums.sums), plan.chi2(sums.sums), atol=.05)


def test_templates_that_end_inside_the_spectrum_in_curves_and_fits(sky):
    sums, wide = log_sums(sky[0][:2]), default_bases()[0]
    keep = (wide.wave > 3400) & (wide.wave < 7000)
    basis = Basis(wide.wave[keep], wide.flux[:, keep], 'GALAXY', zmin=0., zmax=.3, variance=wide.variance)
    for npoly in (0, 2):
        settings = ScanSettings(npoly=npoly)
        plan, fit = ScanPlan(basis, sums, settings), LocalFit(basis, sums, settings)
        u = torch.as_tensor((plan.low + np.arange(0, plan.nz, 40)*plan.stride)*plan.pixel)
        exact = torch.stack([fit.solve(sums.sums, v.expand(2)).cost for v in u], 1)
        whole = torch.stack([fit.solve(sums.sums, v.expand(2)).npixels for v in u], 1)
        assert not plan.whole and (whole < sums.sums[3].sum(-1, keepdim=True) - 1).all()
        np.testing.assert_allclose(fit.solve(sums.sums, u[:, None].expand(-1, 2)).cost.T, exact, rtol=1e-9)
        scaled = whole/sums.sums[3].sum(-1, keepdim=True)  # the curve scales the prior penalty as well, the fits only χ²
        assert abs(plan.chi2(sums.sums)[:, ::40]*scaled - exact*scaled).max() < .02*exact.max()


def test_minima_are_those_of_a_plain_search():
    """The deepest free local minimum, again and again, pixel after pixel."""
    rng, reach = np.random.default_rng(3), 4.3
    curves = np.cumsum(rng.normal(size=(6, 300)), 1) + 50
    curves[4, :40], curves[5] = np.inf, 7.
    found = find_minima(torch.as_tensor(curves), 4, reach).numpy()
    for y, (place, depth, _) in zip(curves[:5], found.transpose(1, 0, 2)):
        padded, taken = np.concatenate([[np.inf], y, [np.inf]]), []
        local = [i for i in range(300) if padded[i + 1] <= min(padded[i], padded[i + 2]) and np.isfinite(y[i])]
        for i in sorted(local, key=lambda i: y[i]):
            if len(taken) < 4 and all(abs(i - p) > reach for p, _ in taken):
                a = (padded[i] - 2*y[i] + padded[i + 2])/2
                shift = (padded[i] - padded[i + 2])/4/a if np.isfinite(a) else 0
                taken.append((i + shift, y[i] - (a*shift**2 if np.isfinite(a) else 0)))
        np.testing.assert_allclose(place[:len(taken)], [p for p, _ in taken], atol=1e-9)
        np.testing.assert_allclose(depth[:len(taken)], [d for _, d in taken], atol=1e-9)
    assert found[1, 5, 0] == 7


def test_rebinned_sums_are_those_of_cumulative_sums():
    rng = np.random.default_rng(2)
    old, new = np.sort(rng.uniform(0, 10, 90)), np.linspace(-1, 12, 41)
    values = rng.normal(size=(2, 3, 89))
    total = np.concatenate([np.zeros((2, 3, 1)), values.cumsum(-1)], -1)
    expected = np.diff([[np.interp(new, old, t) for t in some] for some in total], axis=-1)
    np.testing.assert_allclose(rebin_sum(torch.as_tensor(values), old, new), expected, atol=1e-12)


def test_answers_do_not_depend_on_the_neighbours_of_a_spectrum(sky):
    """Spectra of any brightness side by side: each is fitted in the precision that it needs."""
    spectra = sky[0][:6]
    bright = spectra.replace(flux=spectra.flux*np.float32(30)**np.arange(6)[:, None], ivar=spectra.ivar)
    together = scan_redshift(bright).table
    for i in range(6):
        alone = scan_redshift(bright[i:i + 1]).table
        np.testing.assert_allclose(together['Z'][i], alone['Z'][0], atol=1e-6)
        np.testing.assert_allclose(together['CHI2'][i], alone['CHI2'][0], rtol=1e-6)
