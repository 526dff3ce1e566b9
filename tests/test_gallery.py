"""The gallery of scored images, in a browser: labels by keys, kept when it is closed, saved, and used to rank again."""
import shutil

import numpy as np
import pytest
from astropy.table import Table

from commands import errors, skyseek

pytest.importorskip('h5py')
EVIL = '<b>"x", $y'


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    from skyseek.anomaly.cutouts import Cutouts, cutout_table, write_hdf5
    rng = np.random.default_rng(1)
    images = rng.integers(20, 40, (60, 32, 32, 3)).astype(np.uint8)
    images[:10, 14:17] = 200
    for k in range(10, 20): images[k, 5:12, 18:25] = 150
    drawn, names = np.full_like(images, 30), [EVIL, *(f'g{k}' for k in range(1, 60))]
    path = tmp_path_factory.mktemp('images')/'results.h5'
    return write_hdf5(path, Cutouts(images, cutout_table(names)), drawn=drawn, latent=rng.normal(size=(60, 4)).astype('f4'),
                      score_generator=np.abs(images.astype(float) - drawn).sum((1, 2, 3)), score_critic=np.zeros(60))


def test_labels_are_kept_saved_and_rank_again(results, tmp_path):
    browser = shutil.which('chromium') or shutil.which('chromium-browser')
    playwright = pytest.importorskip('playwright.sync_api')
    if browser is None: pytest.skip('no chromium')
    page = tmp_path/'gallery.html'
    done = skyseek('explore', results, '--html', page, '--most', 25)
    assert done.returncode == 0 and '25 images' in done.stdout, done.stderr
    with playwright.sync_playwright() as p:
        start = lambda: p.chromium.launch_persistent_context(tmp_path/'profile', executable_path=browser, args=['--no-sandbox'])
        context = start()
        tab, asked = context.new_page(), []
        tab.on('request', lambda r: asked.append(r.url))
        tab.goto(page.as_uri())
        for key in ['a', '0', *['ArrowRight', 'n']*9, 'ArrowRight', 'o', 'ArrowRight', '5', 'ArrowRight', 'o', 'u']: tab.keyboard.press(key)
        assert '12 of 25 labelled' in tab.inner_text('#state') and not [u for u in asked if u.startswith('http')]
        tab.wait_for_timeout(300)
        context.close()
        context = start()  # the labels are there again
        tab = context.new_page()
        tab.goto(page.as_uri())
        assert '12 of 25 labelled' in tab.inner_text('#state')
        with tab.expect_download() as got: tab.click('#save')
        got.value.save_as(tmp_path/'labels.csv')
        context.close()
    labels = Table.read(tmp_path/'labels.csv', format='ascii.csv')
    assert len(labels) == 12 and (labels['LABEL'] == 'ordinary').sum() == 9 and EVIL in labels['OBJECT_ID'].tolist()
    done = skyseek('rank', results, '--marks', tmp_path/'labels.csv', '-o', tmp_path/'ranked.fits')
    assert done.returncode == 0, done.stderr
    first = [str(x) for x in Table.read(tmp_path/'ranked.fits')['OBJECT_ID'][:10]]
    assert sum(x != EVIL and 10 <= int(x[1:]) < 20 for x in first) > 7


def test_what_cannot_be_shown_is_said(results, tmp_path):
    for line, words in ((('explore', results, '--cutouts', tmp_path), 'leave them out'), (('explore', results, '--html', tmp_path/'x.txt'), '.html'),
                        (('rank', results, '-o', tmp_path/'r.fits', '--marks', results), 'csv')):
        done = skyseek(*line)
        assert done.returncode == 1 and words in done.stderr and len(errors(done)) == 1
    assert skyseek('rank', results, '-o', tmp_path/'r.fits', '--most', 5).returncode == 0 and len(Table.read(tmp_path/'r.fits')) == 5


def test_options_for_spectra_are_refused_for_images(results, tmp_path):
    for extra in (('--what', 'objects'), ('--report', tmp_path/'r.html')):
        done = skyseek('rank', results, '-o', tmp_path/'r.fits', *extra)
        assert done.returncode == 1 and 'holds images' in errors(done)[0] and not list(tmp_path.iterdir())
