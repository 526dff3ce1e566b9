"""Speed and memory of the explorer: python tests/benchmarks/bench_explorer.py [ROWS …] (default: 100000 and 1000000).

Synthetic catalogues (FITS of 100,000 rows, Parquet of a million), spectra in one compact file; a page without a browser
measures Python's part, and Chromium (if there is one) the whole."""
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from astropy.table import Table

from skyseek.data.desi import extract_file
from skyseek.data.files import write_table
from skyseek.pipeline.catalogue import score
from skyseek.pipeline.explorer import explore
from skyseek.pipeline.explorer_actions import ExplorerPage
from skyseek.redshift.scan import redshift_file
from skyseek.simulate.mock_survey import simulate_survey

GOALS = dict(usable=3, filter=.3, sort=.3, next=.2, label=.05, memory=1.5)


def make_catalogue(folder, n, seed=0):
    "A catalogue of n rows: those of forty simulated fibres with noise, each with the spectrum of its fibre."
    coadd = simulate_survey(folder / 'raw', 40, seed=3, program='dark', hpx=27245)
    redshift_file(coadd, coadd.with_name('redrock-main-dark-27245.fits'))
    extract_file(coadd, folder / 'spectra-main-dark-27245.fits')
    small = score(folder / 'spectra-main-dark-27245.fits')
    rng, at = np.random.default_rng(seed), np.arange(n) % len(small)
    names = [name for name in small.colnames if n < 500_000 or not name.endswith('_TEXT')]  # words take 2 GB
    table = Table({name: np.asarray(small[name])[at] for name in names})
    table['TARGETID'] = np.where(np.arange(n) < 40, table['TARGETID'], 39627788403084321 + np.arange(n))
    for name in table.colnames:
        if table[name].dtype.kind == 'f' and table[name].ndim == 1: table[name] *= rng.normal(1, .05, n).astype(table[name].dtype)
    table['TARGET_RA'], table['TARGET_DEC'] = rng.uniform(0, 360, n), np.degrees(np.arcsin(rng.uniform(-.3, 1, n)))
    return write_table(table, folder / ('catalogue.fits' if n < 500_000 else 'catalogue.parquet'), 'CATALOGUE')


def timed(call, times=1):
    "Median seconds."
    out = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        out.append(time.perf_counter() - start)
    return float(np.median(out))


def python_part(explorer):
    "Seconds of Python for what a user does."
    page = None
    def make():
        nonlocal page
        page = ExplorerPage(explorer.catalogue, explorer.store)
    rows = {'first page': timed(make)}
    rows['filter'] = timed(lambda: page.change(expression='ZWARN == 0 & P_Z_WRONG > 0.05'))
    rows['filter again'] = timed(lambda: page.change(expression='ZWARN == 0 & P_Z_WRONG > 0.06'))
    page.list_all()
    rows['sort'] = timed(lambda: page.change(sort='DELTACHI2'))
    rows['sort again'] = timed(lambda: page.change(sort='ANOMALY'))
    page.change(sort='order of the file', expression='')
    page.open(0)
    rows['next object'] = timed(lambda: page.step(1), 20)
    rows['key to label on disk'] = timed(lambda: page.press('4', 'Digit4'), 20)
    rows['map of the sky'] = timed(lambda: setattr(page.map.kind, 'value', 'sky'))
    for rating, row in zip((5, 0, 4, 1), range(4)):
        page.open(row)
        page.press('i')
        page.press(str(rating))
    rows['rank again (in the background)'] = timed(page.rank_again)
    return rows


def browser_part(explorer):
    "Seconds in Chromium."
    from playwright.sync_api import sync_playwright
    path = next(filter(None, map(shutil.which, ('chromium', 'google-chrome'))), None)
    if path is None: return {}
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=['--no-sandbox'])
        page = browser.new_page(viewport=dict(width=1400, height=1000))
        def load():
            page.goto(explorer.address)
            page.get_by_text(' inspected').first.wait_for()
        rows = {'browser: page usable': timed(load), 'browser: page usable again': timed(load)}
        page.get_by_label('order by', exact=True).select_option('order of the file')
        time.sleep(2)
        number = iter(range(5))
        def label():
            key = next(number)
            page.keyboard.press(str(key))
            page.get_by_text(f'quality {key} (').first.wait_for()
        def next_object():
            before = page.locator('.object b').first.inner_text()
            page.keyboard.press('n')
            page.wait_for_function(SHOWN, arg=before, polling=5)
        rows['browser: next object'] = timed(next_object, 12)
        rows['browser: key to “saved”'] = timed(label, 5)
        browser.close()
        return rows


SHOWN = """(before) => {
  const find = (node) => { for (const e of node.querySelectorAll('*')) {
    if (e.tagName == 'B' && /^[0-9]{8,}$/.test(e.innerText)) return e.innerText;
    if (e.shadowRoot) { const t = find(e.shadowRoot); if (t) return t; } } };
  return find(document.querySelector('.object')) != before; }"""


def main(sizes):
    print(f'{"":34}' + ''.join(f'{n:>14,}' for n in sizes))
    tables = []
    for n in sizes:
        with tempfile.TemporaryDirectory() as name:
            words = [sys.executable, __file__, 'make', name, str(n)]  # in another process: its memory is not counted
            catalogue = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1]
            start = time.perf_counter()
            explorer = explore(catalogue, port=0, inspector='bench')
            rows = {'open the catalogue': time.perf_counter() - start} | python_part(explorer)
            try: rows |= browser_part(explorer)
            except ImportError: pass
            explorer.stop()
        rows['memory of all (GB)'] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e6
        tables.append(rows)
    for name in tables[0]:
        print(f'{name:34}' + ''.join(f'{t.get(name, np.nan):14.3f}' for t in tables))
    print(f'seconds, if not said otherwise; goals: {GOALS}')


if __name__ == '__main__':
    if sys.argv[1:2] == ['make']: print(make_catalogue(Path(sys.argv[2]), int(sys.argv[3])))
    else: main([int(a) for a in sys.argv[1:]] or [100_000, 1_000_000])
