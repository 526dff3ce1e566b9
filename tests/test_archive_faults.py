"""Archives that lie, change, drip or never end; folders with other people's files in them; parts that are cut; runs that are killed: each is one line, and nobody's file is touched."""
import gzip
import hashlib
import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from inspect import signature
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.table import Table
from fsspec.registry import _registry
from servers import small_server

import skyseek.data.archive
import skyseek.pipeline.survey_catalogue
import skyseek.pipeline.survey
from skyseek.data.archive import Archive, list_pixels, open_archive
from skyseek.redshift.scan import redshift_file
from skyseek.simulate.mock_archive import write_archive
from skyseek.pipeline.parts import is_whole, list_parts, part_path, read_dataset, write_part
from skyseek.pipeline.survey_catalogue import close_dataset, export_catalogue, read_repeats, summarise, truth_from_repeats
from skyseek.data.desi import read_coadd
from skyseek.simulate.mock_archive import simulate_edr
from skyseek.data.hdus import ReadError, open_fits
from skyseek.pipeline.workers import DestinationError, run_jobs
from skyseek.data.byte_ranges import fetch_pair
from skyseek.pipeline.runs import open_jobs
from skyseek.pipeline.survey import Job, SurveySettings, run_survey, survey_part
from skyseek.detect.visual_inspection import count_petals, fetch_file, fetch_tables, list_folder, read_checksums

HERE = 'healpix/main/dark/0/{0}/{1}-main-dark-{0}.fits'


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "Two pixels of two spectra in DESI's layout; not to be changed."
    write_archive(tmp_path_factory.mktemp('made')/'iron', {('main', 'dark'): [5, 42]}, redshift_file, n=2, resolution=True)
    return next(tmp_path_factory.getbasetemp().glob('made*/iron'))


@pytest.fixture
def iron(made, tmp_path):
    "A copy that a test may spoil."
    return shutil.copytree(made, tmp_path/'release/iron')


@pytest.fixture
def quickly(in_process, monkeypatch):
    "Nothing is computed, and no summary is drawn."
    monkeypatch.setattr('skyseek.pipeline.survey._score_together', lambda spectra, job: [s.meta['TARGETID',] for s in spectra])
    monkeypatch.setattr('skyseek.pipeline.survey.make_catalogue', lambda tables, *_: tables[0], raising=False)
    monkeypatch.setattr('skyseek.pipeline.survey.close_dataset', lambda dest: None)


@contextmanager
def within(seconds):
    "Fail what takes longer."
    def stop(*_): raise AssertionError(f'no end after {seconds} s')
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try: yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def do(source, dest, **settings): return run_survey(source, dest, SurveySettings(**dict(workers=1, timeout=2., patience=.01) | settings), progress=False)


def quick(address, timeout=2.): return Archive(address, skyseek.data.archive._options('http', None, timeout), patience=.01, timeout=timeout)


def flip(path, name, n=40):
    "Turn some bytes of an HDU round, and leave its header."
    with fits.open(path) as hdus: at = hdus[name].fileinfo()['datLoc']
    data = bytearray(path.read_bytes())
    data[at + 100:at + 100 + n] = bytes(255 - b for b in data[at + 100:at + 100 + n])
    path.write_bytes(data)


def without_sums(path):
    "Write a file again without CHECKSUM and DATASUM."
    with fits.open(path, disable_image_compression=True) as hdus:
        for hdu in hdus:
            for card in ('CHECKSUM', 'DATASUM'): hdu.header.remove(card, ignore_missing=True)
        hdus.writeto(path.with_name('bare.fits'))
    path.with_name('bare.fits').replace(path)


def sum_of(path):
    "Write the checksums of a folder anew."
    sums = next(path.parent.glob('*.sha256sum'))
    sums.write_text(''.join(f'{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n' for p in sorted(path.parent.glob('*.fits*'))))


# Whose files are they (X2, X15 of the parts, X31, names of runs)

FOREIGN = ['.tmpnotes', 'thesis/.tmp_results.fits', 'catalogue/main/dark/0/.tmp12345-old.parquet', 'catalogue/main/dark/0/.tmp-0123abcd-abcdefgh/.new.parquet', 'spectra/.tmp-x', 'failed/.tmp-abc-x/note', 'thesis/skyseek-results/coadd-x.fits']


def test_a_survey_removes_what_its_own_runs_left_and_nothing_else(iron, tmp_path, quickly):
    dest, scratch = tmp_path/'home', tmp_path/'scratch'
    for name in FOREIGN: (dest/name).parent.mkdir(parents=True, exist_ok=True); (dest/name).write_text('mine')
    (scratch/'skyseek-mine').mkdir(parents=True)
    do(iron, dest, pixels=(5,), scratch=str(scratch))
    do(iron, dest, pixels=(5,), scratch=str(scratch))
    assert [name for name in FOREIGN if (dest/name).read_text() != 'mine'] == [] and (scratch/'skyseek-mine').is_dir()


@pytest.mark.parametrize('how', ['killed', 'on a cluster', 'ended'])
def test_what_a_run_left_is_removed_when_the_run_has_ended(iron, tmp_path, quickly, how):
    from skyseek.pipeline.runs import begin_run, end_run
    dest = tmp_path/'c'
    do(iron, dest, pixels=(5,))
    run = begin_run(dest, cluster=how != 'killed')
    if how == 'ended': end_run(dest, run)
    half = list_parts(dest)[0].parent/f'.tmp-{run}-a1b2c3d4'
    half.mkdir()
    (half/'.new.parquet').write_bytes(b'PAR1')
    do(iron, dest, pixels=(5,))
    assert half.exists() == (how == 'on a cluster')  # a worker may still be writing; after a day nobody is
    if how != 'on a cluster': return
    os.utime(half, (0, 0))
    do(iron, dest, pixels=(5,))
    assert not half.exists()


def test_temporary_names_carry_the_run_that_is_on_the_list(iron, tmp_path, quickly, monkeypatch):
    from skyseek.pipeline.runs import ended_runs
    dest, names, real = tmp_path/'c', [], pq.write_table
    def write(table, where, **options):
        names.append(Path(where).parent.name)
        return real(table, where, **options)
    monkeypatch.setattr('skyseek.pipeline.parts.pq.write_table', write)
    do(iron, dest)
    (run,) = ended_runs(dest)[0]
    assert len(names) == 2 and all(name.startswith(f'.tmp-{run}-') for name in names) and 'SKYSEEK_RUN' not in os.environ


def test_what_a_killed_run_had_fetched_is_removed_by_the_next(iron, tmp_path, quickly, monkeypatch):
    scratch = tmp_path/'scratch'
    scratch.mkdir()
    if (child := os.fork()) == 0:
        def fetch(archive, survey, program, hpx, folder):
            Path(folder, f'coadd-{survey}-{program}-{hpx}.fits').write_bytes(b'half')
            os.kill(os.getpid(), signal.SIGKILL)
        skyseek.pipeline.survey.fetch_pair = fetch
        do(iron, tmp_path/'c', scratch=str(scratch))
        os._exit(0)
    os.waitpid(child, 0)
    assert list(scratch.rglob('coadd-*'))
    do(iron, tmp_path/'c', scratch=str(scratch))
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize('name', ['summary.txt', 'sky.png', 'anomalies.fits'])
def test_files_of_another_in_the_place_of_ours(made, tmp_path, quickly, name):
    (tmp_path/'home').mkdir()
    (tmp_path/'home'/name).write_text('mine')
    with pytest.raises(ValueError, match='give a new folder'): do(made, tmp_path/'home')
    assert (tmp_path/'home'/name).read_text() == 'mine' and not list(tmp_path.rglob('*.parquet'))


def test_a_lock_is_not_written_through_a_link(tmp_path):
    (tmp_path/'c').mkdir()
    (tmp_path/'victim').write_text('mine')
    (tmp_path/'c/.lock').symlink_to(tmp_path/'victim')
    with pytest.raises(OSError), skyseek.pipeline.runs.locked(tmp_path/'c'): pass
    (tmp_path/'c/.lock').unlink()
    (tmp_path/'c/.lock').write_text('notes')
    with skyseek.pipeline.runs.locked(tmp_path/'c'): pass
    assert (tmp_path/'victim').read_text() == 'mine' and (tmp_path/'c/.lock').read_text() == 'notes'


@pytest.mark.parametrize('make', [lambda p: write_archive(p, {('main', 'dark'): [5]}, redshift_file, n=2), lambda p: simulate_edr(p, n=2, tiles=(80605,), petals=(0,), subsets=1)], ids=['write_archive', 'simulate_edr'])
def test_a_rehearsal_is_not_written_over_an_archive(tmp_path, make):
    for name in ('healpix', 'vac'): (tmp_path/name).mkdir()
    with pytest.raises(ValueError, match='give a new folder'): make(tmp_path)
    assert not list(tmp_path.rglob('*.fits'))


def test_a_part_is_not_overwritten_by_its_export(iron, tmp_path, quickly):
    do(iron, tmp_path/'c', pixels=(5,))
    part = list_parts(tmp_path/'c')[0]
    with pytest.raises(ValueError, match='would overwrite the input'): export_catalogue(tmp_path/'c', part)
    assert len(pq.read_table(part)) == 2


# Names that come from an archive (X12)

@pytest.mark.parametrize('row', [('/ABS/x', 'dark', 5), ('../../out', 'dark', 5), ('main', '../dark', 5), ('ma/in', 'dark', 5), ('main', 'd\x1b[31mk', 5), ('main', 'dark', -5), ('main', 'dark', 49152)], ids=str)
def test_names_of_an_archive_lead_nowhere(tmp_path, quickly, row):
    (tmp_path/'iron/healpix').mkdir(parents=True)
    row = (row[0].replace('/ABS', str(tmp_path/'abs')), *row[1:])
    Table(rows=[row], names=['SURVEY', 'PROGRAM', 'HEALPIX']).write(tmp_path/'iron/healpix/tilepix.fits')
    with pytest.raises(ReadError) as e: do(tmp_path/'iron', tmp_path/'c/dest')
    assert 'tilepix.fits' in str(e.value) and '\x1b' not in str(e.value) and '\n' not in str(e.value)
    assert sorted(p.name for p in tmp_path.iterdir()) in (['c', 'iron'], ['iron']) and not list((tmp_path).rglob('*.json'))


@pytest.mark.parametrize('column', [np.array([5.5]), np.array([5.]), np.array(['five'])], ids=['fraction', 'float', 'word'])
def test_pixels_are_whole_numbers(tmp_path, column):
    (tmp_path/'iron/healpix').mkdir(parents=True)
    Table(dict(SURVEY=['main'], PROGRAM=['dark'], HEALPIX=column)).write(tmp_path/'iron/healpix/tilepix.fits')
    with pytest.raises(ReadError, match='HEALPIX'): list_pixels(open_archive(tmp_path/'iron'))


def test_tilepix_without_pixels(tmp_path):
    (tmp_path/'iron/healpix').mkdir(parents=True)
    Table(dict(SURVEY=['main'], PROGRAM=['dark'])).write(tmp_path/'iron/healpix/tilepix.fits')
    with pytest.raises(ReadError, match='lacks the column HEALPIX'): list_pixels(open_archive(tmp_path/'iron'))


@pytest.mark.parametrize('name', ['../out.csv', 'a/../../out.csv', '/ABS/out.csv', 'a//out.csv', '.ssh/x'])
def test_a_name_to_fetch_stays_below_its_folder(tmp_path, name):
    (tmp_path/'root/a').mkdir(parents=True)
    (tmp_path/'out.csv').write_text('x'); (tmp_path/'root/.ssh').mkdir(); (tmp_path/'root/.ssh/x').write_text('x'); (tmp_path/'root/a/out.csv').write_text('x')
    with pytest.raises(ReadError, match='not a path below'): fetch_file(tmp_path/'root', name.replace('/ABS', str(tmp_path)), tmp_path/'d/e')
    assert not (tmp_path/'d').exists()


def test_links_and_checksums_of_other_folders(tmp_path):
    page = '<a href="%2e%2e/">up</a><a href="1/">1</a><a href="%2e%2e%2Fetc">etc</a><a href="a%0Ab">two lines</a>'
    (tmp_path/'x').mkdir()
    (tmp_path/'x/y.sha256sum').write_text('a'*64 + '  ../other/coadd-1.fits\n' + 'b'*64 + '  ./redrock-1.fits\n')
    def hook(self, path, start): return self.reply(200, page.encode()) or True
    with small_server(tmp_path, hook) as address: assert list_folder(address, 'x') == ['1']
    assert read_checksums(tmp_path, 'x', ['y.sha256sum']) == {'redrock-1.fits': 'b'*64}


# Servers (X9, X21, X22, X24)

CHANGES = {'unsaid': dict(ETag=None), 'etag': dict(ETag='"other"'), 'date': {'ETag': None, 'Last-Modified': 'Thu, 01 Jan 2026 00:00:00 GMT'}, 'length': {'ETag': None, 'Content-Range': 'bytes 0-9/99'}}


@pytest.mark.parametrize('what', CHANGES)
@pytest.mark.parametrize('once', [True, False], ids=['once', 'for ever'])
def test_a_file_that_changes_while_it_is_fetched(made, tmp_path, what, once):
    count = []
    def hook(self, path, start):
        if 'coadd' not in path.name: return None
        first = {'ETag': None, 'Last-Modified': 'Wed, 31 Dec 2025 00:00:00 GMT'} if what == 'date' else {'ETag': None} if what in ('length', 'unsaid') else {}
        last = int((self.headers['Range'] or '-0').rsplit('-', 1)[1])
        if start < 100_000 or last - start < 20_000: return path, first  # headers; the data are another's
        count.append(1)
        if once and len(count) > 2: return path, first
        path, changed = made/HERE.format(42, 'coadd'), dict(CHANGES[what])
        if what == 'length': changed['Content-Range'] = f"bytes {start}-{last}/{path.stat().st_size + 2880}"
        return path, changed
    with small_server(made, hook) as address:
        if not once:
            with pytest.raises(ReadError, match='changed in the archive'): fetch_pair(quick(address), 'main', 'dark', 5, tmp_path)
            assert not list(tmp_path.glob('coadd-*'))
            return
        coadd, redrock, _ = fetch_pair(quick(address), 'main', 'dark', 5, tmp_path)
    assert np.array_equal(read_coadd(coadd).flux, read_coadd(made/HERE.format(5, 'coadd')).flux) and len(count) > 2


def test_a_pair_that_is_replaced_between_its_two_files(made, tmp_path):
    other, state = made/HERE.format(42, 'redrock'), dict(new=False)
    def hook(self, path, start):
        if 'sha256' in path.name: return made/'none', {}
        if 'coadd' in path.name and start > 100_000: state['new'] = True
        return (other, {'ETag': '"new"'}) if 'redrock' in path.name and state['new'] else None
    with small_server(made, hook) as address: _, redrock, _ = fetch_pair(quick(address), 'main', 'dark', 5, tmp_path)
    assert redrock.read_bytes() == other.read_bytes()  # the second time both were of one state


def dripping(what, how):
    "A hook that drips the head or the body of some answers."
    def hook(self, path, start):
        if not re.search(what, self.path): return None
        self.trickle(b'x' if how == 'body' else b'X-Long: y\r\n', .05, b'HTTP/1.1 206 OK\r\nContent-Range: bytes 0-10000000/10000000\r\n' + b'\r\n'*(how == 'body'))
        return True
    return hook


@pytest.mark.parametrize('how', ['body', 'head'])
@pytest.mark.parametrize('what', ['redrock', 'coadd'])
def test_a_survey_does_not_wait_for_drops(made, tmp_path, what, how):
    with small_server(made, dripping(what, how)) as address, within(15), pytest.raises(ReadError, match='bytes in|no answer in time'): fetch_pair(quick(address, .3), 'main', 'dark', 5, tmp_path)


@pytest.mark.parametrize('how', ['body', 'head'])
def test_fetching_does_not_wait_for_drops(tmp_path, monkeypatch, how):
    monkeypatch.setattr('skyseek.detect.visual_inspection.TIMEOUT', .3, raising=False)
    (tmp_path/'root').mkdir()
    with small_server(tmp_path/'root', dripping('.', how)) as address, within(10), pytest.raises(ReadError): fetch_file(address, 'x.csv', tmp_path/'d', patience=0, tries=2)
    assert not list((tmp_path/'d').rglob('*.csv'))


@pytest.fixture
def small(monkeypatch):
    "Limits that are reached soon; 0.1.0 has none."
    try: from skyseek.data.download import MOST
    except ImportError: return
    for kind in MOST: monkeypatch.setitem(MOST, kind, 3_000_000)


def endless(what):
    def hook(self, path, start):
        if not re.search(what, self.path): return None
        self.trickle(b'0'*100_000, .002)
        return True
    return hook


@pytest.mark.parametrize('what', ['tilepix', 'sha256sum', 'redrock-'])
def test_a_survey_does_not_swallow_endless_files(made, tmp_path, small, what):
    with small_server(made.parent, endless(what)) as address, within(3), pytest.raises(ReadError, match='bytes, more than'):
        if what == 'tilepix': list_pixels(quick(f'{address}/iron'))
        else: fetch_pair(quick(f'{address}/iron'), 'main', 'dark', 5, tmp_path)


@pytest.mark.parametrize(('what', 'work'), [('csv', lambda root, d: fetch_tables(d, root, ['LRG'])), ('/x/', lambda root, d: list_folder(root, 'x')), ('sha256sum', lambda root, d: read_checksums(root, 'x', ['y.sha256sum']))], ids=['table', 'page', 'checksums'])
def test_fetching_does_not_swallow_endless_files(tmp_path, small, what, work):
    with small_server(tmp_path, endless(what)) as address, within(3), pytest.raises(ReadError, match='bytes, more than'): work(address, tmp_path/'d')
    assert not list(tmp_path.rglob('*.csv'))


@pytest.mark.parametrize(('what', 'length'), [('file', None), ('page', '500')])  # a page that a server makes may have no length
def test_what_may_be_cut_is_not_taken_for_whole(tmp_path, what, length):
    def hook(self, path, start):
        self.close_connection = True
        return self.reply(200, b'<a href="1/">1</a>', {'Content-Length': length}) or True
    with small_server(tmp_path, hook) as address, pytest.raises(ReadError, match='cut'): fetch_file(address, 'x.csv', tmp_path/'d', patience=0) if what == 'file' else list_folder(address, 'x')
    assert not list(tmp_path.rglob('*.csv'))


def test_a_checksum_file_on_disk_that_is_too_long(tmp_path, small):
    (tmp_path/'x').mkdir()
    with open(tmp_path/'x/y.sha256sum', 'wb') as f: f.truncate(50_000_000)  # a hole, as long as it says
    with within(3), pytest.raises(ReadError, match='more than'): read_checksums(tmp_path, 'x', ['y.sha256sum'])


def absurd(path, rows=30_000):
    "A coadd of zeros, as long as it says, that takes no room on the disk."
    size = rows*2751*4
    image = fits.Header([('XTENSION', 'IMAGE'), ('BITPIX', -32), ('NAXIS', 2), ('NAXIS1', 2751), ('NAXIS2', rows), ('PCOUNT', 0), ('GCOUNT', 1), ('EXTNAME', 'B_FLUX')])
    wave = fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(3600 + .8*np.arange(2751), name='B_WAVELENGTH')])
    wave.writeto(path, overwrite=True)
    with open(path, 'ab') as f:
        for name in ('B_FLUX', 'B_IVAR'):
            image['EXTNAME'] = name
            f.write(image.tostring().encode())
            f.truncate(f.tell() + -(-size//2880)*2880)
            f.seek(0, 2)


@pytest.mark.parametrize('how', ['folder', 'server', 'packed'])
def test_an_absurd_coadd_is_refused_at_once(iron, tmp_path, how):
    path = iron/HERE.format(5, 'coadd')
    absurd(path, 30_000 if how != 'packed' else 21_000)
    if how == 'packed':
        with gzip.open(f'{path}.gz', 'wb', 1) as f: f.write(open(path, 'rb').read(40_000))  # cut, which is noticed later
        path.unlink()
    (tmp_path/'s').mkdir()
    with small_server(iron) as address, within(5), pytest.raises(ReadError, match='spectra in B_FLUX, more than'):
        fetch_pair(quick(address) if how == 'server' else open_archive(iron), 'main', 'dark', 5, tmp_path/'s')


# Archives in a folder (X7, X32, X57)

DAMAGE = {'coadd': ('coadd', 'B_FLUX', False), 'redrock': ('redrock', 'REDSHIFTS', False), 'coadd without sums': ('coadd', 'B_FLUX', True), 'mask without sums': ('coadd', 'Z_MASK', True)}


@pytest.mark.parametrize('what', DAMAGE)
def test_damaged_files_of_a_folder_fail(iron, tmp_path, quickly, what):
    kind, hdu, bare = DAMAGE[what]
    if what == 'coadd' and 'sums' not in signature(open_fits).parameters: pytest.skip('sums are not compared on reading')
    path = iron/HERE.format(5, kind)
    if bare: without_sums(path); sum_of(path)
    assert fetch_pair(open_archive(iron), 'main', 'dark', 5, tmp_path)  # sound
    flip(path, hdu)
    result = do(iron, tmp_path/'c')
    assert result.done == 1 and list(result.failed) == ['main-dark-5'] and 'is damaged' in result.failed['main-dark-5'] and path.name in result.failed['main-dark-5']


def test_a_damaged_file_is_not_linked(iron, tmp_path):
    name = HERE.format(5, 'coadd')
    right = hashlib.sha256((iron/name).read_bytes()).hexdigest()
    flip(iron/name, 'B_FLUX')
    with pytest.raises(ReadError, match='is damaged'): fetch_file(iron, name, tmp_path/'d', right)
    assert not (tmp_path/'d'/name).exists()


def test_compressed_coadds_of_a_folder(iron, tmp_path, quickly):
    (iron/'healpix/tilepix.fits').unlink()
    for kind in ('coadd', 'redrock'):
        path = iron/HERE.format(5, kind)
        with gzip.open(f'{path}.gz', 'wb') as f: f.write(path.read_bytes())
        path.unlink()
    result = do(iron, tmp_path/'c')
    assert result.done == 2 and not result.failed and result.spectra == 4


PACKAGES = ('fsspec', 'aiohttp', 's3fs', 'distributed', 'dask_jobqueue', 'fsspec.asyn', 'fsspec.implementations.http')


def test_a_folder_needs_no_extra(made, tmp_path, monkeypatch):
    for name in PACKAGES: monkeypatch.setitem(sys.modules, name, None)
    archive = open_archive(made)
    assert len(list_pixels(archive)) == 2 and fetch_pair(archive, 'main', 'dark', 5, tmp_path)[0].is_file()


@pytest.mark.parametrize(('lacks', 'work'), [('aiohttp', lambda: open_archive('http://127.0.0.1:9/x', timeout=.2, patience=0)), ('s3fs', lambda: open_archive('s3://nowhere/x', timeout=.2, patience=0)),
                                             ('dask_jobqueue', lambda: skyseek.pipeline.workers.cluster_executor('slurm'))])
def test_a_missing_extra_is_one_line(monkeypatch, lacks, work):
    monkeypatch.setitem(sys.modules, lacks, None)
    for kept in ('s3', 's3a'): monkeypatch.delitem(_registry, kept, raising=False)
    with pytest.raises(ImportError, match=r'pip install .skyseek\[survey\]') as e: work()
    assert '\n' not in str(e.value)


# Faults of ours are no faults of a file

def spoil(monkeypatch, where, error):
    "Have a step of one pixel raise."
    real = getattr(skyseek.pipeline.survey, where)
    def bad_step(*args, **options):
        if '-5.fits' in str(args[0]) or 'main-dark-5' in str(getattr(getattr(args[0], 'meta', None), 'meta', '')): raise error
        return real(*args, **options)
    monkeypatch.setattr(skyseek.pipeline.survey, where, bad_step)


@pytest.mark.parametrize('error', [KeyError('Z'), IndexError('list index out of range'), RuntimeError('mat1 and mat2'), AttributeError("no attribute 'x'"), ZeroDivisionError('division'), AssertionError()], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize('where', ['extract', 'score_spectra'])
def test_a_fault_of_ours_is_called_one(made, tmp_path, in_process, monkeypatch, caplog, where, error):
    spoil(monkeypatch, where, error)
    monkeypatch.setattr(skyseek.pipeline.survey, 'make_catalogue', lambda tables, *_: Table(), raising=False)
    if where == 'extract': monkeypatch.setattr('skyseek.pipeline.survey._score_together', lambda spectra, job: [s.meta['TARGETID',] for s in spectra])
    caplog.set_level(logging.DEBUG, 'skyseek')
    records = {}
    for hpx in (5, 42)[:1 + (where == 'extract')]:
        record, = survey_part(Job(open_archive(made), 'main', 'dark', (hpx,), str(tmp_path)))
        records[hpx] = record
        skyseek.pipeline.runs.note_failure(tmp_path, record)
    said, note = records[5]['error'], json.loads((tmp_path/'failed/main-dark-5.json').read_text())
    assert 'a fault of skyseek' in said and type(error).__name__ in said and '\n' not in said
    assert 'bad_step' in note['traceback'] and 'bad_step' in caplog.text and not any(r['error'] for h, r in records.items() if h != 5)


def break_down(job): raise KeyError('Z')


def test_a_fault_in_the_work_itself_is_called_one():
    (record,), = run_jobs([Job(Archive('/nowhere'), 'main', 'dark', (5,), '/nowhere')], lambda: ThreadPoolExecutor(1), 4, break_down)
    assert 'a fault of skyseek' in record['error'] and 'break_down' in record['traceback']


@pytest.mark.parametrize('error', [ReadError('coadd-main-dark-5.fits: no arm'), ValueError('flux is not finite'), PermissionError(13, 'Permission denied')], ids=lambda e: type(e).__name__)
def test_an_error_of_the_data_is_called_none(made, tmp_path, monkeypatch, error):
    spoil(monkeypatch, 'extract', error)
    record, = survey_part(Job(open_archive(made), 'main', 'dark', (5,), str(tmp_path)))
    assert record['error'] and 'fault of skyseek' not in record['error'] and bool(record['traceback']) == (not isinstance(error, ReadError))


def test_a_worker_without_weights_stops_the_run(made, tmp_path):
    with pytest.raises(DestinationError, match='cannot load the weights'): survey_part(Job(open_archive(made), 'main', 'dark', (5,), str(tmp_path), weights=str(tmp_path/'gone')))


# Parts (X18, X20), and what is exported

def toy(n, hpx, seed=0, **columns):
    "A made-up score table."
    rng = np.random.default_rng(hpx + seed)
    return Table(dict(TARGETID=39_000_000_000_000_000 + 1000*hpx + np.arange(n), SURVEY=['main']*n, PROGRAM=['dark']*n, HEALPIX=[hpx]*n, TARGET_RA=rng.uniform(150, 152, n), TARGET_DEC=rng.uniform(2, 3, n), Z=rng.uniform(0, 1, n),
                      ZWARN=np.zeros(n, int), SPECTYPE=['GALAXY']*n, DELTACHI2=np.full(n, 900.), TSNR2_LRG=rng.uniform(80, 100, n), ANOMALY=rng.exponential(.4, n), SNR=np.ones(n)) | columns)


def write_parts(dest, pixels=(5, 6, 7), n=300):
    for hpx in pixels: write_part(toy(n, hpx), part_path(dest, 'main', 'dark', hpx), dict(header=dict(WEIGHTS='default', TH_Z=.25)))
    return dest


SPOIL = {'empty': lambda b: b'', 'cut': lambda b: b[:len(b)//2], 'last bytes lost': lambda b: b[:-4], 'zeros at the end': lambda b: b[:-2000] + bytes(2000), 'a page': lambda b: b'<html>'*50}


@pytest.mark.parametrize('how', SPOIL)
def test_a_part_that_is_cut_is_done_again(tmp_path, caplog, how):
    dest = write_parts(tmp_path/'c')
    part = list_parts(dest)[1]
    part.write_bytes(SPOIL[how](part.read_bytes()))
    pixels = Table(dict(SURVEY=['main']*3, PROGRAM=['dark']*3, HEALPIX=[5, 6, 7]))
    todo, done, _ = open_jobs(dest, pixels)
    assert list(todo['HEALPIX']) == [6] and done == 2 and part.name in caplog.text
    for work in (lambda: read_dataset(dest), lambda: export_catalogue(dest, tmp_path/'x.fits')):
        with pytest.raises(ValueError, match=part.name): work()
    assert len(summarise(dest)) == 2 and not (tmp_path/'x.fits').exists()


def test_a_survey_does_again_what_is_cut(iron, tmp_path, quickly, monkeypatch):
    monkeypatch.setattr('skyseek.pipeline.survey.close_dataset', summarise)
    dest = tmp_path/'c'
    do(iron, dest)
    whole, part = read_dataset(dest), list_parts(dest)[0]
    part.write_bytes(b'')
    assert do(iron, dest, pixels=(42,)).done == 0  # of another pixel: it goes on, and leaves the part out
    result = do(iron, dest)
    assert (result.done, result.before) == (1, 1) and list(read_dataset(dest)['TARGETID']) == list(whole['TARGETID'])


def test_a_part_that_is_damaged_inside_is_named(tmp_path, caplog):
    dest = write_parts(tmp_path/'c')
    part = list_parts(dest)[0]
    about = pq.read_metadata(part)
    column = next(c for k in range(about.num_columns) if (c := about.row_group(0).column(k)).path_in_schema == 'TARGET_RA')
    at, data = column.data_page_offset + 500, bytearray(part.read_bytes())
    data[at:at + 60] = bytes(255 - b for b in data[at:at + 60])
    part.write_bytes(data)
    with pytest.raises(ValueError, match=f'{part.name}: is damaged'): read_dataset(dest)
    assert len(summarise(dest)) == 2 and part.name in caplog.text


def test_a_part_with_a_spoilt_footer_is_done_again(tmp_path):
    dest = write_parts(tmp_path/'c')
    part = list_parts(dest)[0]
    data = part.read_bytes()
    part.write_bytes(data[:500] + bytes(len(data) - 508) + data[-8:])
    assert [is_whole(p) for p in list_parts(dest)] == [False] + [True]*(len(list_parts(dest)) - 1)


def test_a_part_of_another_version_is_named(tmp_path):
    dest = write_parts(tmp_path/'c')
    part = list_parts(dest)[0]
    pq.write_table(pq.read_table(part).drop_columns(['LABEL_USED']), part)
    with pytest.raises(ValueError, match=f'{part.name}: has other columns'): close_dataset(dest)


def test_files_of_another_among_the_parts(tmp_path):
    dest = write_parts(tmp_path/'c')
    (dest/'catalogue/main/dark/0/my-own-notes.parquet').write_bytes(b'mine')
    assert len(list_parts(dest)) == 3 and len(summarise(dest)) == 3


CHANGED = {'gone': lambda dest: list_parts(dest)[2].unlink(), 'new': lambda dest: write_parts(dest, (8,)), 'other rows': lambda dest: write_parts(dest, (7,), 500), 'other values': lambda dest: write_part(toy(300, 7, 1), part_path(dest, 'main', 'dark', 7)),
           'written and gone': lambda dest: list_parts(dest)[0].unlink()}


@pytest.mark.parametrize('how', CHANGED)
def test_parts_that_come_and_go_while_they_are_exported(tmp_path, monkeypatch, how):
    dest, real, done = write_parts(tmp_path/'c'), skyseek.pipeline.survey_catalogue._with_extra, []
    def rows(*args):
        if len(args[0]) and not done: done.append(1); CHANGED[how](dest)
        return real(*args)
    monkeypatch.setattr(skyseek.pipeline.survey_catalogue, '_with_extra', rows)
    (tmp_path/'x.fits').write_text('what was there')
    with pytest.raises(ValueError, match='again'): export_catalogue(dest, tmp_path/'x.fits')
    assert (tmp_path/'x.fits').read_text() == 'what was there' and len(list(tmp_path.iterdir())) == 2


def test_an_export_says_what_the_catalogue_was_made_with(made, tmp_path, in_process, weights, monkeypatch):
    monkeypatch.setattr('skyseek.pipeline.survey.close_dataset', lambda dest: None)
    do(made, tmp_path/'c', pixels=(5,))
    for meta in (Table.read(export_catalogue(tmp_path/'c', tmp_path/'x.fits')).meta, read_dataset(tmp_path/'c').meta):
        assert (meta['WEIGHTS'], meta['ARCHIVE']) == (weights.name, 'iron') and meta['SKYSEEK'] and meta['TRAINED'].startswith(weights.about[:20])
        assert (meta['TH_Z'], meta['TH_S']) == pytest.approx(weights.thresholds)
    with fits.open(tmp_path/'x.fits') as hdus:
        hdus.verify('exception')
        assert hdus[1].columns['TARGET_RA'].unit == 'deg' and all(hdus[1].header.get(f'TCOMM{k + 1}') for k in range(len(hdus[1].columns)))


def test_truth_from_repeats_says_where_it_is_from(tmp_path):
    from skyseek.data.files import read_written_table, write_table
    shallow = toy(20, 5)
    deep = shallow.copy()
    deep['SURVEY'], deep['TSNR2_LRG'] = 'sv1', 400.
    write_part(shallow, part_path(tmp_path/'c', 'main', 'dark', 5)); write_part(deep, part_path(tmp_path/'c', 'sv1', 'dark', 5))
    truth = read_written_table(write_table(truth_from_repeats(read_repeats(tmp_path/'c'), 3., 50.), tmp_path/'t.fits'))
    assert len(truth) == 20 and all(truth[c].description for c in truth.colnames)
    assert truth.meta['SOURCE'] == 'c' and truth.meta['SKYSEEK'] and (truth.meta['DEEPER'], truth.meta['SECURE']) == (3., 50.)


# Identifiers

def zall(path, column):
    Table({'TARGETID': column} | {c: toy(3, 5)[c] for c in ('SURVEY', 'PROGRAM', 'Z', 'ZWARN', 'SPECTYPE', 'DELTACHI2', 'TSNR2_LRG')}).write(path)
    return path


BAD_IDS = {'float': np.array([3.9e16, 3.9e16 + 8, 3.9e16 + 16]), 'too large': np.array([1, 2, 2**63 + 5], np.uint64), 'words': np.array(['a', 'b', 'c'])}


@pytest.mark.parametrize('kind', BAD_IDS)
@pytest.mark.parametrize('reader', ['zall', 'table', 'part'])
def test_identifiers_are_whole_numbers(tmp_path, kind, reader):
    ids = BAD_IDS[kind]
    with pytest.raises(ReadError, match='TARGETID'):
        if reader == 'zall': read_repeats(zall(tmp_path/'zall-pix-iron.fits', ids))
        elif reader == 'table': truth_from_repeats(toy(3, 5, TARGETID=ids))
        else: write_part(toy(3, 5, TARGETID=ids), part_path(tmp_path, 'main', 'dark', 5))


def test_a_part_without_an_identifier(tmp_path):
    part = write_part(toy(3, 5), part_path(tmp_path, 'main', 'dark', 5))
    table = pq.read_table(part)
    pq.write_table(table.set_column(0, table.schema.field(0), pa.array([1, None, 3], pa.int64())), part)
    with pytest.raises(ReadError, match='row 2 has no TARGETID'): read_dataset(tmp_path)


@pytest.mark.parametrize('column', ['TILEID', 'FIBER'])
def test_tiles_and_fibres_are_whole_numbers(column):
    truth = Table(dict(TILEID=[80605, 80606], FIBER=[3, 4]))
    truth[column] = truth[column] + .5
    with pytest.raises(ReadError, match=column): count_petals(truth)


# Settings, notes, workers (X39, X52, X61), bars

@pytest.mark.parametrize('text', ['[]', 'null', '5', '"iron"', '['*100_000], ids=lambda t: t[:12])
def test_a_note_of_what_the_catalogue_is_that_is_none(made, tmp_path, quickly, text):
    (tmp_path/'c').mkdir()
    (tmp_path/'c/survey.json').write_text(text)
    with pytest.raises(ValueError, match='survey.json.*remove it') as e: do(made, tmp_path/'c')
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('bad', [dict(together=-5), dict(together=0), dict(timeout=0.), dict(timeout=float('nan')), dict(patience=-1.), dict(cluster_options=dict(account='desi'))], ids=str)
def test_settings_that_make_no_sense(bad):
    with pytest.raises(ValueError): SurveySettings(**bad)


@pytest.mark.parametrize('word', ['foo', '=x', 'a b=c', 'queue=', 'workers=5'])
def test_options_of_a_cluster(word):
    with pytest.raises(ValueError, match='--cluster-option'): skyseek.pipeline.survey.parse_options([word])


def test_options_that_slurm_does_not_have(monkeypatch):
    class SLURMCluster:
        def __init__(self, cores=1, processes=1, memory=''): pass
    monkeypatch.setitem(sys.modules, 'dask_jobqueue', SimpleNamespace(SLURMCluster=SLURMCluster))
    with pytest.raises(ValueError, match='--cluster-option'): skyseek.pipeline.workers.cluster_executor('slurm', foo='5')


def refuse_or_sleep(job):
    "Work for the test below."
    if job.pixels == (0,): raise DestinationError('no room')
    time.sleep(20)


def test_no_worker_outlives_its_run():
    jobs = [Job(Archive('/nowhere'), 'main', 'dark', (k,), '/nowhere') for k in (1, 0)]
    with pytest.raises(DestinationError): list(run_jobs(jobs, lambda: ProcessPoolExecutor(2, mp_context=get_context('fork')), 2, refuse_or_sleep))
    assert not multiprocessing.active_children()


def test_bars_are_shown_when_they_are_asked_for(made, tmp_path, in_process, monkeypatch, capsys):
    monkeypatch.setattr('skyseek.pipeline.survey.survey_part', lambda job: [dict(survey='main', program='dark', hpx=job.pixels[0], n=0, bytes=0, error='x', passing=True)])
    for progress, shown in ((True, True), (None, False), (False, False)):
        run_survey(made, tmp_path/'c', SurveySettings(workers=1), progress=progress)
        assert ('pixel' in capsys.readouterr().err) == shown
