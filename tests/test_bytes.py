"""How many bytes a survey fetches, and when: masks that say nothing are left out, and the next file comes while one is scored."""
import re
import shutil
import threading
import time

import numpy as np
import pytest
from astropy.io import fits
from servers import serving

from skyseek.data import byte_ranges
from skyseek.data.archive import Archive, open_archive
from skyseek.data.byte_ranges import fetch_pair, masks_matter
from skyseek.data.desi import extract
from skyseek.pipeline.survey import Job, SurveySettings, run_survey, survey_part
from skyseek.redshift.scan import redshift_file
from skyseek.simulate.mock_archive import write_archive

PIXELS = 7, 8, 9


@pytest.fixture(scope='module')
def iron(tmp_path_factory):
    root = tmp_path_factory.mktemp('bytes')/'iron'
    write_archive(root, {('main', 'dark'): PIXELS}, redshift_file, n=30, resolution=True)
    return root


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch): monkeypatch.setattr(byte_ranges, '_MASKS', {})


def names(path):
    with fits.open(path) as hdus: return [h.name for h in hdus]


def weigh_a_masked_pixel(path):
    "Give one masked pixel a weight, as another pipeline might."
    with fits.open(path, mode='update', do_not_scale_image_data=True) as hdus:
        mask = hdus['R_MASK']
        row, pixel = np.argwhere(mask.data != -mask.header.get('BZERO', 0))[0]
        hdus['R_IVAR'].data[row, pixel] = 1
        for hdu in hdus: hdu.add_checksum()


def test_masks_are_left_out_once_a_file_shows_that_they_say_nothing(iron, tmp_path):
    counted = {}
    with serving(iron.parent) as address:
        far = open_archive(f'{address}/iron')
        for h in PIXELS:
            *pair, counted[h] = fetch_pair(far, 'main', 'dark', h, tmp_path)
            near = fetch_pair(Archive(str(iron)), 'main', 'dark', h, tmp_path)[:2]
            here, there = extract(*near), extract(*pair)
            assert np.array_equal(here.ivar, there.ivar) and np.array_equal(here.flux, there.flux)
            assert any(n.endswith('_MASK') for n in names(pair[0])) == (h == PIXELS[0])
    first, *rest = (counted[h] for h in PIXELS)
    for c in rest:
        assert first.bytes - c.bytes > 30*31_000 and c.bytes/30 < 85_000, (first.bytes/30, c.bytes/30)
        assert c.requests <= first.requests < 40


def test_masks_that_say_something_are_always_fetched(iron, tmp_path):
    shutil.copytree(iron, tmp_path/'other')
    for path in (tmp_path/'other').rglob('*.sha256sum'): path.unlink()
    weigh_a_masked_pixel(coadd := next((tmp_path/'other').rglob('coadd-main-dark-7.fits')))
    assert masks_matter(coadd) is True and masks_matter(next(iron.rglob('coadd-main-dark-7.fits'))) is False
    with serving(tmp_path) as address:
        far = open_archive(f'{address}/other')
        for h in PIXELS[:2]: assert 'R_MASK' in names(fetch_pair(far, 'main', 'dark', h, tmp_path)[0])


def test_a_file_with_few_masked_pixels_does_not_tell(iron, tmp_path, monkeypatch):
    monkeypatch.setattr(byte_ranges, 'TELLING', 10**7)
    with serving(iron.parent) as address:
        far = open_archive(f'{address}/iron')
        for h in PIXELS[:2]: assert 'R_MASK' in names(fetch_pair(far, 'main', 'dark', h, tmp_path)[0])
    assert byte_ranges._MASKS == {}


def test_a_broken_file_teaches_nothing_about_masks(tmp_path):
    (tmp_path/'coadd.fits').write_bytes(b'SIMPLE  = nonsense')
    byte_ranges._learn_masks(Archive('http://nowhere/iron'), tmp_path/'coadd.fits')
    assert byte_ranges._MASKS == {}


def test_the_next_file_comes_while_one_is_scored(iron, tmp_path, monkeypatch, weights):
    import skyseek.pipeline.survey as survey
    events, lock = [], threading.Lock()
    def note(what):
        with lock: events.append(what)
    fetch = survey.fetch_pair
    def fetched(archive, *pixel):
        note(f'fetch {pixel[2]}')
        try: return fetch(archive, *pixel)
        finally: note(f'there {pixel[2]}')
    def scored(pixels, job):
        hpx = pixels[0][1]['hpx']
        note(f'score {hpx}')
        for _ in range(200):  # the next one comes meanwhile
            if hpx == PIXELS[-1] or f'there {hpx + 1}' in events: break
            time.sleep(.02)
        note(f'scored {hpx}')
        return {}
    monkeypatch.setattr(survey, 'fetch_pair', fetched)
    monkeypatch.setattr(survey, '_score', scored)
    monkeypatch.setattr(survey, 'load_weights', lambda *a: weights)
    monkeypatch.setattr(survey, '_write', lambda *a: None)
    with serving(iron.parent) as address:
        records = survey_part(Job(open_archive(f'{address}/iron'), 'main', 'dark', PIXELS, str(tmp_path/'c')))
    assert [r['hpx'] for r in records] == [*PIXELS] and not any(r['error'] for r in records) and all(r['n'] for r in records)
    at = {e: k for k, e in enumerate(events)}
    for h in PIXELS[:-1]: assert at[f'there {h + 1}'] < at[f'scored {h}']
    assert at[f'scored {PIXELS[0]}'] < at[f'fetch {PIXELS[2]}']  # one ahead, and no more: the files need room


def test_a_file_that_is_not_there_does_not_stop_those_behind_it(iron, tmp_path, monkeypatch, weights):
    import skyseek.pipeline.survey as survey
    monkeypatch.setattr(survey, '_score', lambda pixels, job: {})
    monkeypatch.setattr(survey, '_write', lambda *a: None)
    with serving(iron.parent) as address:
        archive = open_archive(f'{address}/iron', patience=0)
        records = survey_part(Job(archive, 'main', 'dark', (7, 99, 9), str(tmp_path/'c')))
    assert [bool(r['error']) for r in records] == [False, True, False]
