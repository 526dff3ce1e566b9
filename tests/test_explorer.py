"""The explorer in a real browser: look, label, rank again; nothing is lost, and nobody else gets in."""
import asyncio
import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from commands import errors, skyseek

from skyseek.data.desi import extract_file
from skyseek.data.files import write_table
from skyseek.pipeline.catalogue import read_catalogue, score
from skyseek.pipeline.explorer import HOST, Explorer, explore
from skyseek.pipeline.explorer_table import open_catalogue
from skyseek.pipeline.labels import LabelStore
from skyseek.redshift.scan import redshift_file
from skyseek.simulate.mock_survey import simulate_survey
from windows import ROOT, Window, serve

EVIL = '<img src=x onerror="window.hacked=1"> $$\\alpha$$ \x07'
SAVED = re.compile(r'^saved \d\d:')


@pytest.fixture(scope='module')
def survey(tmp_path_factory, weights):
    "Folder with a compact file of forty simulated fibres and their catalogue."
    folder = tmp_path_factory.mktemp('explore')
    coadd = simulate_survey(folder / 'raw', 40, seed=3, program='dark', hpx=27245)
    redshift_file(coadd, coadd.with_name('redrock-main-dark-27245.fits'))
    extract_file(coadd, folder / 'spectra-main-dark-27245.fits')
    write_table(score(folder / 'spectra-main-dark-27245.fits', weights), folder / 'catalogue.fits', 'CATALOGUE')
    return folder


@pytest.fixture
def here(survey, tmp_path):
    "A copy of the catalogue beside the spectra, without labels."
    for path in survey.glob('*.fits'): shutil.copy(path, tmp_path)
    return tmp_path / 'catalogue.fits'


MAP, STRIP, SPECTRUM = 0, 1, 2


# The whole way

def test_walk_ten_objects_by_keys_kill_and_come_back(here, chromium, tmp_path):
    process, address = serve(here)
    typed = {}
    try:
        w = Window(chromium, address)
        w.type_into(w.page.get_by_placeholder('ZWARN == 0 & P_Z_WRONG > 0.5'), 'Z > 0.1 & SNR > 0')
        listed = w.page.get_by_text(re.compile(r'^Z > 0.1 & SNR > 0: \d+$'))
        n = int(listed.inner_text().split(': ')[1])
        assert 10 < n <= 40
        w.page.locator('body').click(position=dict(x=5, y=5))
        for k in range(10):
            w.says(f'{k + 1} of {n}')
            quality, kind = k % 5, 'gqs'[k % 3]
            w.press(f'{quality} {kind}', f'quality {quality} (')
            flags = ''
            if k == 4: w.press('r b', 'flags R S'); flags = 'RS'
            typed[w.target()] = dict(VI_quality=str(quality), VI_issue=flags, VI_comment='',
                                     VI_spectype={'g': 'GALAXY', 'q': 'QSO', 's': 'STAR'}[kind], VI_z='')
            if k < 9: w.press('n')
        w.says('10 of 40 inspected')
        target, z = set_z_by_click(w)
        typed[target] |= dict(VI_z=f'{z:.4f}', VI_spectype=w.field('type').input_value())
        w.type_into(w.field('comment'), 'café, "quoted" <b>')
        w.says(SAVED)
        typed[w.target()]['VI_comment'] = 'café, "quoted" <b>'
        rank_again(w)
        lasso(w)
        assert not w.errors, w.errors
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    process, address = serve(here)
    try:
        w = Window(chromium, address)
        w.says('of 40 inspected')
        assert w.page.get_by_text(re.compile(r'1[0-3] of 40 inspected')).count()
    finally: process.kill()
    store = LabelStore(open_catalogue(here), 'me')
    with open(store.export_vi(tmp_path / 'vi.csv'), encoding='utf-8', newline='') as f: rows = list(csv.DictReader(f))
    written = {int(r['TARGETID']): {name: r[name] for name in typed[target]} for r in rows}
    assert written == typed and {r['VI_scanner'] for r in rows} == {'me'}
    ratings = store.export_ratings(tmp_path / 'ratings.csv').read_text().split()
    assert len(ratings) == 4


def set_z_by_click(w):
    "Choose [O II], click into the spectrum, take the redshift into the label."
    w.field('a click sets this line').select_option('[O II]')
    x, y = w.figure(SPECTRUM)(.6, .5)
    w.page.mouse.click(x, y)
    w.page.wait_for_function("!document.body.innerText.includes('nothing')")
    time.sleep(.5)
    z = float(w.field('z').input_value())
    expected = 3600 + (9824 - 3600)*.57
    assert abs(z - (expected/3728.48 - 1)) < .15
    w.field('z').blur()
    w.press('z', f'z = {z:.4f}')
    label = w.page.get_by_text(re.compile(r'quality \d .*z = ')).first.inner_text()
    return w.target(), float(re.search(r'z = ([\d.]+)', label)[1])


def rank_again(w):
    "Rate three objects, and rank."
    for rating in (5, 0, 3):
        w.press(f'i {rating}', f'interest {rating}')
        w.press('p')
    w.page.get_by_role('button', name='rank again').click()
    w.says('ranked again by the ratings so far')


def lasso(w):
    "Draw a loop around everything."
    w.page.get_by_role('button', name='list all').click()
    w.page.locator('.bk-tool-icon-lasso-select').first.click()
    at = w.figure(MAP)
    points = [(.15, .2), (.75, .2), (.75, .78), (.15, .78), (.14, .25)]
    w.page.mouse.move(*at(*points[0]))
    w.page.mouse.down()
    for point in points[1:]: w.page.mouse.move(*at(*point), steps=8)
    w.page.mouse.up()
    w.page.get_by_text(re.compile(r'^\d+ objects selected$')).wait_for()
    w.page.get_by_text(re.compile(r'^selection: \d+$')).wait_for()


# What may go wrong

@pytest.fixture
def opened(here):
    explorer = explore(here, inspector='me', port=0)
    yield explorer
    explorer.stop()


def test_disk_full_is_said_and_the_label_is_kept(opened, chromium, monkeypatch):
    w = Window(chromium, opened.address)
    def full(*_): raise OSError(28, 'No space left on device')
    with monkeypatch.context() as m:
        m.setattr('skyseek.pipeline.labels.append_lines', full)
        w.press('4', 'NOT SAVED', 'quality 4')
    w.page.get_by_role('button', name='save again').click()
    w.says(SAVED)
    assert opened.labels['VI_QUALITY'].tolist() == [4]
    w.press('u', 'no label yet')
    assert len(opened.labels) == 0


def test_selection_and_labels_are_tables(opened, chromium):
    w = Window(chromium, opened.address)
    lasso(w)
    assert 0 < len(opened.selection) <= 40 and 'P_Z_WRONG' in opened.selection.colnames
    other = Window(chromium, opened.address)  # a second window sees the label after it moves
    w.page.locator('.slick-header-column', has_text='SPECTYPE').first.click()
    w.says('SPECTYPE ▼')
    w.field('type').focus()  # keys of the label work in a list of choices, too
    w.press('3 q', 'quality 3')
    assert opened.labels['VI_SPECTYPE'].tolist() == ['QSO']
    other.press('n p')
    assert opened.server.address in opened._repr_html_()


def test_arms_apart_where_the_coadd_is(here, survey, chromium):
    explorer = explore(here, [survey/'raw', here.parent], inspector='me', port=0)
    try:
        w = Window(chromium, explorer.address)
        w.press('a', 'arms apart: B R Z')
        w.button('arms apart')
        w.page.get_by_text('arms apart: B R Z').wait_for(state='hidden')
        assert not w.errors
    finally: explorer.stop()


def test_names_from_files_are_text(survey, tmp_path, chromium):
    table = read_catalogue(survey / 'catalogue.fits')
    table['SUBTYPE'], table[EVIL[:40]] = EVIL, np.arange(len(table))
    table['CAUSE_TEXT'] = EVIL
    table['CAUSE'] = EVIL
    from skyseek.pipeline.explorer_html import write_explorer
    cat = open_catalogue(table, survey, path=tmp_path / 'catalogue.fits')
    explorer = Explorer(cat, LabelStore(cat, EVIL), port=0)
    try:
        w = Window(chromium, explorer.address)
        w.press('n 2', 'quality 2')
        w.type_into(w.field('comment'), EVIL[:40])
        w.field('x').select_option(EVIL[:40])
        w.field('colour').select_option('SUBTYPE')
        w.type_into(w.field('TARGETID'), EVIL)
        time.sleep(1)
        assert w.page.evaluate('window.hacked') is None and not w.errors
        assert w.page.get_by_text('<img src=x').count() and not w.page.locator('img[src=x]').count()
    finally: explorer.stop()
    page, _ = write_explorer(tmp_path / 'page.html', cat, [0, 1], EVIL)
    w = Window(chromium, page.as_uri())
    time.sleep(.5)
    assert w.page.evaluate('window.hacked') is None and not w.errors


def test_catalogue_without_spectra_and_spectra_that_moved(survey, tmp_path, chromium):
    shutil.copy(survey / 'catalogue.fits', tmp_path)
    explorer = explore(tmp_path / 'catalogue.fits', inspector='me', port=0)
    try:
        w = Window(chromium, explorer.address)
        w.says('no spectrum')
        w.press('n 1', 'quality 1')
        assert explorer.labels['VI_QUALITY'].tolist() == [1] and not w.errors
    finally: explorer.stop()


def test_a_single_file_of_spectra_opens(survey, tmp_path):
    shutil.copy(survey / 'spectra-main-dark-27245.fits', tmp_path)
    explorer = explore(tmp_path / 'spectra-main-dark-27245.fits', inspector='me', port=0)
    try: assert explorer.catalogue.n == 40 and len(explorer.catalogue.read(3)) == 1
    finally: explorer.stop()


# Who gets in

def status(address, **options):
    try: return urllib.request.urlopen(urllib.request.Request(address, **options), timeout=10).status
    except urllib.error.HTTPError as e: return e.code


def test_only_who_knows_the_address_gets_in(opened):
    base = f'http://{HOST}:{opened.server.port}/'
    assert status(opened.address) == 200
    for path in ('', 'ws', 'static/js/bokeh.min.js', f'{opened.server.token[:-1]}/', '../', f'{opened.server.token.lower()}x/'):
        assert status(base + path) == 404, path
    assert status(opened.address, data=b'key=4', method='POST') == 405
    assert len(opened.server.token) >= 22


def socket_status(address, origin, words=(), page=None):
    "HTTP status of a socket that is asked for by a page of this origin; in a thread, as playwright has the loop here."
    from tornado.httpclient import HTTPRequest
    from tornado.websocket import websocket_connect
    token = re.search(r'"token":"([^"]+)"', urllib.request.urlopen(page or address).read().decode())[1]
    words = ['bokeh', token] if words == () else words
    url = address.replace('http://', 'ws://') + 'ws'
    async def connect():
        request = HTTPRequest(url, headers={'Origin': origin})
        socket = await websocket_connect(request, subprotocols=words)
        return 101 if await socket.read_message() else 'closed'
    try: return ThreadPoolExecutor(1).submit(lambda: asyncio.run(connect())).result()
    except Exception as e: return getattr(e, 'code', str(e))


def test_a_foreign_page_cannot_connect(opened):
    assert socket_status(opened.address, f'http://{HOST}:{opened.server.port}') == 101
    for origin in ('http://evil.example', f'http://{HOST}:1', 'null'): assert socket_status(opened.address, origin) == 403


def test_another_machine_cannot_connect(opened):
    import socket
    with socket.socket() as s:
        s.bind(('', 0))  # the port is free on other addresses: the server has 127.0.0.1 only
    listening = [line.split()[1] for line in Path('/proc/net/tcp').read_text().splitlines()[1:]] if Path('/proc/net/tcp').exists() else []
    mine = [a for a in listening if int(a.split(':')[1], 16) == opened.server.port]
    assert all(a.startswith('0100007F') for a in mine)


def test_the_command_tells_the_browser_in_a_private_file(monkeypatch, tmp_path):
    from skyseek.pipeline.explorer import open_browser
    seen = []
    monkeypatch.setattr('webbrowser.open', seen.append)
    path = open_browser('http://127.0.0.1:1/secret/')
    assert 'secret' not in seen[0] and path.stat().st_mode & 0o077 == 0 and 'secret' in path.read_text()
    path.unlink()


def test_a_proxy_is_an_origin_too():
    from skyseek.pipeline.explorer import ExplorerServer
    server = ExplorerServer(lambda document: None, port=0, url='https://hub.example').start()
    try:
        assert server.address == f'https://hub.example/proxy/{server.port}/{server.token}/'
        local = f'http://{HOST}:{server.port}/{server.token}/'
        page = urllib.request.urlopen(local).read().decode()
        assert not re.search(r'src="/[^"]*static', page)  # nothing that the proxy's path would break
        assert socket_status(local, 'https://hub.example') == 101 and socket_status(local, 'https://other.example') == 403
    finally: server.stop()


# The page to send

def test_one_page_to_send(survey, tmp_path, chromium):
    page = tmp_path / 'page.html'
    done = skyseek('explore', survey / 'catalogue.fits', '--html', page, '--most', 4, '--inspector', 'you')
    assert done.returncode == 0 and '4 objects' in done.stdout, done.stderr
    assert errors(skyseek('explore', survey / 'catalogue.fits', '--html', page))  # is there already
    assert not re.search(r'<(script|link)[^>]+(src|href)="?http', page.read_text(encoding='utf-8'))
    w = Window(chromium, page.as_uri())
    w.press('4 q', 'quality 4')
    w.press('n 3 r Shift+Digit5', 'interest 5')
    text = w.page.evaluate('window.skyseek_page.csv()')
    (tmp_path / 'vi.csv').write_text(text, encoding='utf-8')
    w.page.reload()
    w.says('2 of 4 inspected')
    first, second = csv.DictReader(text.splitlines())
    assert (first['VI_quality'], first['VI_spectype'], second['VI_issue'], second['INTEREST']) == ('4', 'QSO', 'R', '5')
    shutil.copy(survey / 'catalogue.fits', tmp_path)
    store = LabelStore(open_catalogue(tmp_path / 'catalogue.fits'), 'you')
    assert store.import_vi(tmp_path / 'vi.csv') == 2 and not w.errors


# What is loaded

def test_no_command_loads_bokeh_before_it_is_needed():
    code = 'import sys; from skyseek.pipeline.cli import make_parser; make_parser(); import skyseek.pipeline.explorer; print("bokeh" in sys.modules)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == 'False', done.stderr


def test_without_bokeh_one_line_says_what_to_install(here, monkeypatch):
    monkeypatch.setitem(sys.modules, 'bokeh', None)
    done = skyseek('explore', here, '--no-browser')
    assert done.returncode == 1 and "pip install 'skyseek[explore]'" in errors(done)[0] and len(errors(done)) == 1
