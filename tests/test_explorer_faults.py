"""The explorer under attack: others on the same catalogue, folders that cannot be written, foreign pages, a port that is taken."""
import http.server
import re
import shutil
import struct
import threading
import urllib.request
import zlib
from functools import partial

import numpy as np
import pytest
from astropy.table import Table
from commands import errors, skyseek
from test_explorer import EVIL, socket_status

from skyseek.data.files import write_table
from skyseek.data.hdus import ReadError
from skyseek.pipeline.explorer import HOST, explore
from windows import Window


def table(n=5):
    "A catalogue without spectra."
    return Table(dict(TARGETID=39627 + np.arange(n), Z=np.linspace(.1, 1, n), SPECTYPE=['GALAXY']*n, ZWARN=np.zeros(n, int), P_Z_WRONG=np.linspace(0, 1, n)[::-1]))


@pytest.fixture
def here(tmp_path): return write_table(table(), tmp_path/'catalogue.fits')


@pytest.fixture
def opening():
    "Opens explorers, and stops them in the end."
    made = []
    def opened(*args, **options):
        made.append(explore(*args, **dict(port=0, inspector='ann') | options))
        return made[-1]
    yield opened
    for explorer in made: explorer.stop()


def test_two_browsers_and_two_inspectors(here, opening, chromium, tmp_path):
    ann, bob = opening(here), opening(here, inspector='bob')
    one, two, other = Window(chromium, ann.address), Window(chromium, ann.address), Window(chromium, bob.address)
    one.press('4', 'quality 4')
    two.press('n 3', 'quality 3')
    other.press('1 q', 'quality 1')
    two.press('p', 'quality 4')  # what the first window said
    other.press('n', 'no label yet')  # ann's label is hers
    two.says('2 of 5 inspected')
    merged = bob.store.merged()
    assert merged['CONFLICT'].tolist() == ['type, quality', ''] and merged['N_VI'].tolist() == [2, 1]
    other.button('export labels')
    other.says('catalogue-conflicts.csv')
    listed = Table.read(tmp_path/'catalogue-conflicts.csv', format='ascii.csv')
    assert sorted(listed['INSPECTOR'].tolist()) == ['ann', 'bob'] and set(listed['TARGETID']) == {39627}
    assert not one.errors + two.errors + other.errors


def test_a_folder_that_cannot_be_written_is_said_and_another_one_taken(here, opening, chromium, tmp_path):
    (tmp_path/'catalogue.fits.labels').write_text('a file')
    explorer = opening(here)
    w = Window(chromium, explorer.address)
    w.press('4', 'NOT SAVED', 'quality 4', 'the folder for labels is a file', '1 label kept in memory')
    (tmp_path/'catalogue.fits.labels').unlink()
    w.button('save again')
    w.says(re.compile(r'^saved \d\d:'))
    assert explorer.labels['VI_QUALITY'].tolist() == [4]
    other = opening(here, labels=tmp_path/'mine')
    other.store.put(0, quality=2)
    assert (tmp_path/'mine'/'ann.jsonl').is_file() and opening(here).labels['VI_QUALITY'].tolist() == [4]


def test_labels_of_another_catalogue_are_refused_in_one_line(here, opening, tmp_path):
    opening(here).store.put(0, quality=4)
    other = write_table(table(4), tmp_path/'other.fits')
    shutil.copytree(tmp_path/'catalogue.fits.labels', tmp_path/'other.fits.labels')
    with pytest.raises(ReadError, match='labels of another catalogue'): opening(other)
    done = skyseek('explore', other, '--no-browser', '--inspector', 'ann')
    assert done.returncode == 1 and len(errors(done)) == 1 and '--labels' in errors(done)[0]
    assert len(opening(other, labels=tmp_path/'new').labels) == 0


def test_a_port_that_is_taken(here, opening, caplog):
    first = opening(here)
    second = opening(here, port=first.server.port)
    assert second.server.port != first.server.port and f'port {first.server.port} is taken' in caplog.text
    assert urllib.request.urlopen(second.address, timeout=10).status == 200


def test_rows_without_spectrum_and_names_that_lead_out_are_said(opening, chromium, tmp_path):
    t = table(4)
    t['FILE'] = ['', '../secret.fits', '/etc/passwd', EVIL]
    t['SUBTYPE'] = EVIL
    (tmp_path/'in').mkdir()
    shutil.copy(write_table(table(), tmp_path/'x.fits'), tmp_path/'secret.fits')
    w = Window(chromium, opening(write_table(t, tmp_path/'in'/'c.fits')).address)
    w.says('does not say in which file')
    w.press('n', 'leads out of')
    w.press('n', 'leads out of')
    w.press('n 4', 'quality 4', 'no spectrum')
    assert w.page.evaluate('window.hacked') is None and not w.page.locator('img').count() and not w.errors


def test_a_socket_without_the_token_of_a_page_is_refused(here, opening):
    explorer = opening(here)
    origin = f'http://{HOST}:{explorer.server.port}'
    assert socket_status(explorer.address, origin) == 101
    for words in (None, [], ['bokeh'], ['bokeh', 'x'], ['bokeh', 'e30.e30']): assert socket_status(explorer.address, origin, words) != 101
    assert socket_status(explorer.address, 'http://localhost.evil.example') == socket_status(explorer.address, f'{origin}.evil.example') == 403
    assert socket_status(explorer.address.replace(explorer.server.token, 'x'*22), origin, page=explorer.address) == 404


FOREIGN = """<script>
const at = "ws://HOST/ws";
const socket = new WebSocket(at, ["bokeh", "x"]);
socket.onopen = () => { document.title = "open"; };
socket.onerror = () => { document.title = "refused"; };
fetch("http://HOST/", {method: "POST", body: "4", mode: "no-cors"}).catch(() => {});
fetch("http://HOST/").then((r) => r.text()).then((t) => { window.read = t; }).catch(() => { window.read = "no"; });
</script>"""


def test_a_foreign_page_in_the_same_browser_gets_nothing(here, opening, chromium, tmp_path):
    explorer = opening(here)
    (tmp_path/'web').mkdir()
    (tmp_path/'web'/'index.html').write_text(FOREIGN.replace('HOST', explorer.address.removeprefix('http://').rstrip('/')))  # also one that knows the address
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(tmp_path/'web'))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = chromium.new_page()
        page.goto(f'http://127.0.0.1:{server.server_port}/')
        page.wait_for_function('document.title && window.read')
        assert page.title() == 'refused' and page.evaluate('window.read') == 'no'
        server.shutdown()
    assert len(explorer.labels) == 0


def png(n=1):
    "A red picture."
    part = lambda kind, data: struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    return b'\x89PNG\r\n\x1a\n' + part(b'IHDR', struct.pack('>IIBBBBB', n, n, 8, 2, 0, 0, 0)) + part(b'IDAT', zlib.compress((b'\0' + b'\xff\0\0'*n)*n)) + part(b'IEND', b'')


def test_cutouts_stand_beside_their_objects(here, opening, chromium, tmp_path):
    (tmp_path/'pictures').mkdir()
    (tmp_path/'pictures'/'39627.png').write_bytes(png(8))
    (tmp_path/'pictures'/'39628.png').write_text(EVIL)
    w = Window(chromium, opening(here, cutouts=tmp_path/'pictures').address)
    assert w.page.get_by_alt_text('cutout').evaluate('e => e.naturalWidth') == 8
    w.press('n', 'no cutout')
    assert w.page.evaluate('window.hacked') is None and not w.errors
    done = skyseek('explore', here, '--cutouts', tmp_path/'none', '--no-browser')
    assert done.returncode == 1 and 'no such file or folder' in errors(done)[0]
    with pytest.raises(ReadError, match='no such folder'): opening(here, cutouts=tmp_path/'none')


def test_columns_are_chosen_and_latents_mapped(opening, chromium, tmp_path, monkeypatch):
    t = table(6)
    t['LATENT'], t[EVIL[:40]] = np.random.default_rng(0).normal(size=(6, 4)), np.arange(6) + 1000
    w = Window(chromium, opening(write_table(t, tmp_path/'c.parquet')).address, width=1000, height=1500)
    w.button('columns')
    w.page.wait_for_timeout(1500)  # Bokeh draws the field twice, and the first one loses the focus
    w.page.locator('.choices__input--cloned').click()
    w.page.locator('.choices__input--cloned').press_sequentially('onerr')
    w.page.keyboard.press('Enter')
    w.page.get_by_text('1005', exact=True).wait_for()  # a cell of the new column
    w.page.keyboard.press('Escape')
    w.button('columns')
    place = np.random.default_rng(1).normal(size=(6, 2))
    monkeypatch.setattr('skyseek.pipeline.explorer_actions.umap_positions', lambda cat: place)
    w.field('map of').select_option('UMAP')
    w.says('UMAP of 6 objects')
    def missing(cat): raise ImportError("a map needs umap; pip install 'skyseek[maps]'")
    monkeypatch.setattr('skyseek.pipeline.explorer_actions.umap_positions', missing)
    other = Window(chromium, opening(tmp_path/'c.parquet').address)
    other.field('map of').select_option('UMAP')
    other.says("pip install 'skyseek[maps]'")
    assert other.field('map of').input_value() == 'latents'
    assert w.page.evaluate('window.hacked') is None and not w.page.locator('img').count() and not w.errors + other.errors
