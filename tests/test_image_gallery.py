"""The gallery of scored images on its own server, in a real browser: label, rate, rank again; nothing is lost."""
import csv
import os
import signal

import numpy as np
import pytest

from commands import errors, skyseek
from windows import Window, serve

h5py = pytest.importorskip('h5py')
EVIL = '<img src=x onerror="window.hacked=1"> "x", $y'


def write_results(path, n=60, seed=1):
    "Images with a bar (0 to 9) or a spot (10 to 19), as score-galaxies leaves them."
    from skyseek.anomaly.cutouts import Cutouts, cutout_table, write_hdf5
    rng = np.random.default_rng(seed)
    images = rng.integers(20, 40, (n, 32, 32, 3)).astype(np.uint8)
    images[:10, 14:17] = 200
    images[10:20, 5:12, 18:25] = 150
    drawn, names = np.full_like(images, 30), [EVIL, *(f'g{k}' for k in range(1, n))]
    return write_hdf5(path, Cutouts(images, cutout_table(names)), drawn=drawn, latent=rng.normal(size=(n, 4)).astype('f4'),
                      score_generator=np.abs(images.astype(float) - drawn).sum((1, 2, 3)), score_critic=np.zeros(n))


@pytest.fixture
def results(tmp_path): return write_results(tmp_path/'results.h5')


def test_label_by_keys_rank_kill_and_come_back(results, chromium, tmp_path):
    process, address = serve(results)
    try:
        w = Window(chromium, address)
        w.says('page 1 of 3, image 1 of 60')
        w.says('0 of 60 inspected')
        for k in range(14): w.press(f'{"a" if k < 10 else "o"} ArrowRight', f'{k + 1} of 60 inspected')
        w.press('n u', 'the last label was taken back', '14 of 60 inspected')
        w.press('ArrowLeft 4', 'odd, rating 4')
        w.page.locator('[data-card="20"]').first.click()
        w.says('image 21 of 60')
        w.press('0 n', 'ordinary, rating 0')
        w.press('v')
        w.page.locator('img[alt="generated"]').first.wait_for()
        w.press('f', 'page 2 of 3')
        w.button('rank again')
        w.says('ranked again by the labels so far')
        shown = w.page.locator('div[data-card]').all_inner_texts()[:10]
        assert sum(t.split('\n')[0] in {f'g{k}' for k in range(10, 20)} for t in shown) > 7
        w.type_into(w.field('name contains'), 'G1')
        w.says('image 1 of 11 (G1 in the name)')
        w.button('more like this')
        w.says('image 1 of 48 (like g1')
        w.page.locator('[data-card="0"]').first.click()
        w.type_into(w.field('comment'), 'a <b>spot</b>')
        w.page.locator('[data-card="0"]').get_by_text('comment').wait_for()  # in the words below the image
        w.button('list all')
        w.says('of 60')
        w.button('export labels')
        w.says('results-labels.csv')
        assert not w.errors and w.page.evaluate('window.hacked') is None
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    process, address = serve(results)
    try:
        w = Window(chromium, address)
        w.says('15 of 60 inspected')
        assert w.page.get_by_text('artefact', exact=True).count() == 10
    finally: process.kill()
    with open(tmp_path/'results-labels.csv', encoding='utf-8', newline='') as f: rows = list(csv.DictReader(f))
    assert len(rows) == 15 and {r['INSPECTOR'] for r in rows} == {'me'} and all(r['TIME'] for r in rows)
    assert [r['LABEL'] for r in rows].count('artefact') == 10 and EVIL in {r['OBJECT_ID'] for r in rows}
    assert sorted(r['MARK'] for r in rows if r['MARK']) == ['0', '4'] and 'a <b>spot</b>' in {r['COMMENT'] for r in rows}
    done = skyseek('rank', results, '--marks', tmp_path/'results-labels.csv', '-o', tmp_path/'ranked.fits')
    assert done.returncode == 0, done.stderr


def test_in_python(results):
    from skyseek.pipeline.explorer import explore
    explorer = explore(results, inspector='ada', port=0)
    try:
        explorer.store.put(3, kind='odd', interest=2)
        assert list(explorer.labels[0].values())[:4] == ['g3', 'odd', 2, 'ada']
        explorer._take([4, 5])
        assert explorer.selection['OBJECT_ID'].tolist() == ['g4', 'g5']
    finally: explorer.stop()


def test_two_inspectors_are_averaged_and_odd_values_of_a_journal_passed_over(results, tmp_path):
    from skyseek.anomaly.rank_images import read_image_labels
    from skyseek.pipeline.image_labels import ImageLabels, ImageResults, export_image_labels, image_marks
    found = ImageResults(results)
    ada, bob = (ImageLabels(found, name) for name in ('ada', 'bob'))
    ada.put(3, kind='odd')
    bob.put(3, interest=2)
    bob.put(4, kind='artefact')
    with open(ada.folder/'ada.jsonl', 'a') as f: f.write('{"id":"x-1","key":[5],"set":{"kind":"<b>"}}\n{"id":"x-2","key":[99],"set":{"kind":"odd"}}\n')
    again = ImageLabels(found, 'ada')
    marks = image_marks(again)
    assert marks[3] == 3.5 and marks[4] == 0 and np.isfinite(marks).sum() == 2
    assert read_image_labels(export_image_labels(again, tmp_path/'l.csv')) == {'g3': 3.5, 'g4': 0}


def test_only_shown_stamps_are_read(results, monkeypatch):
    from skyseek.pipeline.image_gallery import CARDS, GalleryPage
    from skyseek.pipeline.image_labels import ImageLabels, ImageResults
    found, read = ImageResults(results), []
    plain = h5py.Dataset.__getitem__
    def counted(self, what, *more):
        if self.ndim == 4: read.append(what)
        return plain(self, what, *more)
    monkeypatch.setattr(h5py.Dataset, '__getitem__', counted)
    page = GalleryPage(found, ImageLabels(found, 'me'))
    assert len(read) == 2*CARDS
    page.press('o')
    page.press('ArrowRight')
    assert len(read) == 2*CARDS


def test_what_cannot_be_shown_is_said_in_a_line(results, tmp_path):
    with h5py.File(tmp_path/'bare.h5', 'w') as f: f['images'] = np.zeros((3, 8, 8, 3), np.uint8)
    (tmp_path/'broken.h5').write_bytes(results.read_bytes()[:5000])
    with h5py.File(results) as f, h5py.File(tmp_path/'link.h5', 'w') as g:
        for name in f: g[name] = h5py.ExternalLink(str(results), name)
    from skyseek.pipeline.image_labels import ImageLabels, ImageResults
    ImageLabels(ImageResults(results), 'me').put(0, kind='odd')
    other = write_results(tmp_path/'other.h5', 30, 2)
    labels = ('--labels', f'{results}.labels', '--inspector', 'me')
    for path, words, more in (('bare.h5', 'lacks drawn', ()), ('broken.h5', 'not a whole HDF5 file', ()), ('none.h5', 'no such file', ()),
                              ('link.h5', 'not a dataset of this file', ()), (other.name, 'labels of another', labels)):
        done = skyseek('explore', tmp_path/path, '--no-browser', *more)
        assert done.returncode == 1 and words in done.stderr and len(errors(done)) == 1, done.stderr


def test_without_h5py_the_extra_is_named(results, monkeypatch):
    import sys
    from skyseek.pipeline.image_labels import ImageResults
    monkeypatch.setitem(sys.modules, 'h5py', None)
    with pytest.raises(ImportError, match=r"skyseek\[images\]"): ImageResults(results)
