"""Tables of visual inspection, and the coadds they belong to, from an archive with DESI's layout on a server of this machine."""
import threading
import warnings
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from surveys import redrock_table

from skyseek.pipeline.cli import main
from skyseek.data.desi import extract
from skyseek.data.hdus import ReadError
from skyseek.data.redshift_tables import read_truth
from skyseek.simulate.mock_archive import VI_HEAD, simulate_edr
from skyseek.data.truth import match_truth, split_of
from skyseek.detect.visual_inspection import (
    count_petals, fetch_coadds, fetch_file, fetch_tables, list_coadds, list_folder,
)

SLOW_FIXTURES = {'fetched'}  # see conftest.py

TILES = 'spectro/redux/fuji/tiles'
HEAD = ','.join(VI_HEAD) + '\n'


def pretend(coadd, redrock):
    "A pipeline that finds everything at z = row number / 10."
    ids = fits.getdata(coadd, 'FIBERMAP')['TARGETID'].astype('i8')
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU(redrock_table(ids), name='REDSHIFTS')]).writeto(redrock)


@pytest.fixture(scope='session')
def archive(tmp_path_factory):
    "An archive of two tiles, two petals each, at two depths."
    return simulate_edr(tmp_path_factory.mktemp('archive'), n=8, subsets=2, pipeline=pretend)


class Handler(SimpleHTTPRequestHandler):
    "Gives out a folder; `trouble` maps a path to what goes wrong on the next requests."
    trouble, asked = {}, []

    def log_message(self, *args): pass

    def do_GET(self):
        path = self.path.lstrip('/')
        self.asked.append(path)
        trouble = self.trouble.get(path, [])
        what = trouble.pop(0) if trouble else None
        if what == 'cut': return self.cut(path)
        if what == 'slam': return self.connection.close()
        if what: return self.send_error(what)
        super().do_GET()

    def cut(self, path):
        "Announce the whole file and send half."
        content = open(self.translate_path(self.path), 'rb').read()
        self.send_response(200)
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        self.wfile.write(content[:len(content)//2])


@pytest.fixture
def server(archive):
    "(root URL, handler class) of a server of the archive."
    handler = type('Fresh', (Handler,), dict(trouble={}, asked=[]))
    with ThreadingHTTPServer(('127.0.0.1', 0), partial(handler, directory=archive)) as http:
        threading.Thread(target=http.serve_forever, args=(.02,), daemon=True).start()
        yield f'http://127.0.0.1:{http.server_port}', handler
        http.shutdown()


def files_in(folder): return sorted(p.name for p in folder.rglob('*') if p.is_file())


# The tables

def written(path, *lines, head=HEAD):
    path.write_text(head + ''.join(line + '\n' for line in lines))
    return path


def test_layout_of_the_rehearsal(archive):
    assert sorted(p.name for p in (archive/'vac/edr/vi/v1.0').iterdir()) == [f'EDR_VI_{s}_v1.csv' for s in ('BGS', 'ELG', 'LRG', 'QSO', 'missed_QSO')]
    for path in (archive/'vac').rglob('*.csv'): assert path.read_text().splitlines()[0].split(',') == list(VI_HEAD)
    coadds = sorted(archive.rglob('coadd-*.fits'))
    assert len(coadds) == 2*2*3 and all(p.with_name(p.name.replace('coadd', 'redrock')).is_file() for p in coadds)
    spectra = extract(archive/TILES/'1x_depth/80605/2/coadd-4-80605-1xsubset2.fits', keep_all=True)
    assert set(spectra.meta['FIBER']//500) == {4} and set(spectra.meta['TILEID']) == {80605} and (spectra.meta['SV1_DESI_TARGET'] != 0).all()


def test_one_target_in_all_depths_is_on_one_side_of_the_split(archive):
    depths = [extract(p, keep_all=True) for p in sorted(archive.rglob('coadd-0-80605-*.fits'))]
    ids = [np.asarray(s.meta['TARGETID']) for s in depths]
    assert all(np.array_equal(ids[0], other) for other in ids) and len(depths) == 3
    assert all(np.array_equal(split_of(ids[0]), split_of(other)) for other in ids)
    assert not np.array_equal(depths[0].flux, depths[1].flux)
    assert np.median(depths[2].snr) > np.median(depths[0].snr)
    truth = read_truth(sorted((archive/'vac').rglob('EDR_VI_???_v1.csv')))
    assert np.isfinite(match_truth(ids[0], truth)['TRUE_Z']).sum() > 0


BAD = {'a word for a redshift': ('1,80605,3,150,2,about 0.3,4,GALAXY', 'VI_Z in row 1'), 'a word for a mark': ('1,80605,3,150,2,0.3,good,GALAXY', 'VI_QUALITY in row 1'),
       'a word for a target': ('x17,80605,3,150,2,0.3,4,GALAXY', 'TARGETID in row 1'), 'a rounded target': ('3.96277E+16,80605,3,150,2,0.3,4,GALAXY', 'lost digits'),
       'a mark of 40': ('1,80605,3,150,2,0.3,40,GALAXY', 'marks are 0 to 4')}


@pytest.mark.parametrize('line, words', BAD.values(), ids=BAD)
def test_bad_tables_say_what_is_wrong(tmp_path, line, words):
    path = written(tmp_path/'EDR_VI_LRG_v1.csv', line)
    with pytest.raises(ReadError, match=words) as e: read_truth(path)
    assert str(path) in str(e.value)


def test_a_page_instead_of_a_table(tmp_path):
    path = written(tmp_path/'EDR_VI_LRG_v1.csv', '<html><body>Please log in</body></html>', head='<!doctype html>\n')
    with pytest.raises(ReadError, match='lacks the columns'): read_truth(path)


def test_rows_without_truth_are_left_out(tmp_path):
    path = written(tmp_path/'EDR_VI_ELG_v1.csv', '1,80605,3,150,2,0.31,4,galaxy', '2,80605,4,150,2,,4,QSO', '3,80605,5,150,2,nan,4,QSO', '4,80605,6,150,2,1.1,,QSO', '5,80605,7,150,2,1.2,2.4,QSO')
    truth = read_truth(path)
    assert list(truth['TARGETID']) == [1] and list(truth['TRUE_SPECTYPE']) == ['GALAXY'] and truth['TARGETID'].dtype == np.int64


def test_an_empty_table_is_no_error_but_not_a_truth(tmp_path):
    full, empty = written(tmp_path/'EDR_VI_LRG_v1.csv', '1,80605,3,150,2,0.31,4,GALAXY'), written(tmp_path/'EDR_VI_QSO_v1.csv')
    assert list(read_truth([full, empty])['TARGETID']) == [1]
    with pytest.raises(ValueError, match='truth table is empty'): match_truth([1], read_truth(empty))


@pytest.mark.parametrize('other, kept', [('0.3205,3,GALAXY', [1]), ('0.55,3,GALAXY', []), ('0.32,3,STAR', []), ('0.55,2.5,GALAXY', [1])], ids=['agrees', 'z', 'type', 'worse mark'])
def test_inspections_that_disagree(tmp_path, other, kept):
    files = written(tmp_path/'EDR_VI_LRG_v1.csv', '1,80605,3,150,2,0.32,3,GALAXY'), written(tmp_path/'EDR_VI_ELG_v1.csv', f'1,80606,9,150,2,{other}')
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        truth = read_truth(files)
    assert list(truth['TARGETID']) == kept and bool(said) == (not kept)
    if kept: assert truth['TRUE_Z'][0] == .32


def test_quasars_picked_because_redrock_missed_them_are_no_sample(tmp_path):
    files = written(tmp_path/'EDR_VI_QSO_v1.csv', '1,80605,3,150,2,1.5,3,QSO'), written(tmp_path/'EDR_VI_missed_QSO_v1.csv', '2,80605,4,150,2,1.6,4,QSO', '1,80605,3,150,2,1.5,4,QSO')
    with pytest.warns(UserWarning, match='left out of rates'): assert list(read_truth(files)['TARGETID']) == [1]
    truth = read_truth(files, selected=True)
    assert dict(zip(truth['TARGETID'], truth['SELECTED'])) == {1: False, 2: True}


# The list

def test_petals_need_fibres(tmp_path):
    truth = read_truth(written(tmp_path/'EDR_VI_LRG_v1.csv', '1,80605,3,150,2,0.32,3,GALAXY', '2,80605,499,150,2,0.3,3,GALAXY', '3,80605,500,150,2,0.3,3,GALAXY', '4,80606,4999,150,2,0.3,3,GALAXY'))
    assert [tuple(r) for r in count_petals(truth)] == [(80605, 0, 2), (80605, 1, 1), (80606, 9, 1)]
    truth.remove_column('FIBER')
    with pytest.raises(ValueError, match='lacks the columns FIBER'): count_petals(truth)


def test_list_by_url_and_by_folder(server, archive):
    truth = read_truth(sorted((archive/'vac').rglob('EDR_VI_???_v1.csv')))
    here, there = list_coadds(truth, archive), list_coadds(truth, server[0] + '/')
    assert len(here) == 8 and all(list(here[c]) == list(there[c]) for c in here.colnames)
    assert all(len(s) == 64 for s in [*here['COADD_SHA256'], *here['REDROCK_SHA256']])
    assert len(list_coadds(truth, archive, 'cumulative', tiles=[80613])) == 2


def test_listing_takes_only_links_one_step_down(archive, monkeypatch):
    page = ('<a href="../">up</a><a href="?C=M;O=A">sort</a><A HREF="/r/x/1/">1</A><a href="coadd-0-1-thru2.fits">c</a><a href="https://elsewhere.org/3/">3</a>'
            "<a href='/r/'>r</a><a href='a/b.fits'>deep</a><a href='./4/'>4</a>")
    class Page:
        def __enter__(self): return self
        def __exit__(self, *a): return False
        headers, left = {}, [page.encode()]
        def read1(self, n): return self.left.pop() if self.left else b''
    monkeypatch.setattr('skyseek.detect.visual_inspection._open_url', lambda url, **k: Page())
    assert list_folder('https://archive.org/r', 'x') == ['1', '4', 'coadd-0-1-thru2.fits']


def test_tiles_without_this_depth_are_named(server, archive, caplog):
    truth = read_truth(sorted((archive/'vac').rglob('EDR_VI_???_v1.csv')))
    truth['TILEID'][truth['TILEID'] == 80613] = 80670
    assert set(list_coadds(truth, server[0])['TILEID']) == {80605} and '80670 has no 1x_depth' in caplog.text
    with pytest.raises(ReadError, match='no 4x_depth coadds of tiles 80605, 80670'): list_coadds(truth, server[0], '4x_depth')


def test_real_coadd_by_tile_is_found_from_its_fibre(data, tmp_path):
    folder = tmp_path/'release'/TILES/'cumulative/80613/20210324'
    folder.mkdir(parents=True)
    for path in (data/'desi/coadd_redrock').glob('*-4-80613-thru20210324.fits'): (folder/path.name).symlink_to(path.resolve())
    real = extract(folder/'coadd-4-80613-thru20210324.fits')
    row = real.meta['TARGETID', 'TILEID', 'FIBER', 'TARGET_RA', 'TARGET_DEC'][0]
    truth = read_truth(written(tmp_path/'EDR_VI_BGS_v1.csv', ','.join(map(str, [*row, round(float(real.meta['Z'][0]), 4), 4.0, 'GALAXY']))))
    found = list_coadds(truth, tmp_path/'release', 'cumulative')
    assert [Path(p).name for p in (*found['COADD'], *found['REDROCK'])] == ['coadd-4-80613-thru20210324.fits', 'redrock-4-80613-thru20210324.fits']
    assert match_truth(real.meta['TARGETID'], truth)['TRUE_SPECTYPE'][0] == 'GALAXY'


# Fetching

@pytest.fixture
def wanted(archive):
    "A file of the archive: its path below the root and its checksum."
    row = list_coadds(read_truth(sorted((archive/'vac').rglob('EDR_VI_???_v1.csv'))), archive)[0]
    return row['REDROCK'], row['REDROCK_SHA256']


@pytest.mark.parametrize('trouble', [[], ['cut'], ['cut', 'cut'], ['slam'], [503], [503, 'cut']], ids=str)
def test_passing_trouble_is_sat_out(server, archive, wanted, tmp_path, trouble):
    root, handler = server
    handler.trouble[wanted[0]] = list(trouble)
    path = fetch_file(root, *wanted[:1], tmp_path, wanted[1], patience=0)
    assert path.read_bytes() == (archive/wanted[0]).read_bytes() and files_in(tmp_path) == [path.name]


@pytest.mark.parametrize('trouble, words, asked', [(['cut']*9, 'was cut after', 3), ([404]*9, '404', 1), ([403]*9, '403', 1), ([500]*9, '500', 3), (['slam']*9, 'try', 3)],
                         ids=['cut', 'no such file', 'forbidden', 'broken server', 'slammed'])
def test_lasting_trouble_leaves_nothing(server, wanted, tmp_path, trouble, words, asked):
    root, handler = server
    handler.trouble[wanted[0]] = list(trouble)
    with pytest.raises(ReadError, match=words): fetch_file(root, wanted[0], tmp_path, wanted[1], patience=0)
    assert files_in(tmp_path) == [] and handler.asked.count(wanted[0]) == asked


def test_wrong_checksum_leaves_nothing(server, wanted, tmp_path):
    with pytest.raises(ReadError, match='checksum'): fetch_file(server[0], wanted[0], tmp_path, '0'*64, patience=0)
    assert files_in(tmp_path) == []


def test_nobody_there(wanted, tmp_path):
    with pytest.raises(ReadError, match='check the root'): fetch_file('http://127.0.0.1:9', wanted[0], tmp_path, patience=0)
    assert files_in(tmp_path) == []


def test_interrupt_leaves_nothing(server, wanted, tmp_path, monkeypatch):
    def stop(source, *rest): yield b'half'; raise KeyboardInterrupt
    monkeypatch.setattr('skyseek.detect.visual_inspection._chunks', stop)
    with pytest.raises(KeyboardInterrupt): fetch_file(server[0], wanted[0], tmp_path, wanted[1])
    assert files_in(tmp_path) == []


def test_second_call_fetches_what_is_missing(server, archive, tmp_path):
    root, handler = server
    files = list_coadds(read_truth(fetch_tables(tmp_path, root)), root)
    handler.trouble[files[3]['COADD']] = [404]
    coadds, failed = fetch_coadds(files, tmp_path, root, progress=False, patience=0)
    assert len(coadds) == 7 and list(failed) == [files[3]['COADD']]
    handler.asked.clear()
    coadds, failed = fetch_coadds(files, tmp_path, root, progress=False)
    assert len(coadds) == 8 and not failed and handler.asked == [files[3]['COADD']]


def test_release_on_disk_is_linked(archive, tmp_path):
    files = list_coadds(read_truth(fetch_tables(tmp_path, archive)), archive)
    coadds, failed = fetch_coadds(files, tmp_path, archive, progress=False)
    assert not failed and all(c.is_symlink() for c in coadds) and 'Z' in extract(coadds[0]).meta.colnames


# The command

def test_fetch_vi(server, tmp_path, capsys):
    root, handler = server
    assert main(['fetch-vi', '-o', str(tmp_path), '--root', root, '--list']) == 0
    said = capsys.readouterr().out
    assert '8 coadds (1x_depth)' in said and len(files_in(tmp_path)) == 4
    assert main(['fetch-vi', '-o', str(tmp_path), '--root', root, '--tiles', '80605', '--samples', 'LRG', 'ELG']) == 0
    assert len(list(tmp_path.rglob('coadd-*.fits'))) == len(list(tmp_path.rglob('redrock-*.fits'))) == 4
    coadd = next(tmp_path.rglob('coadd-*.fits')).relative_to(tmp_path).as_posix()
    (tmp_path/coadd).unlink()
    handler.trouble[coadd] = [404]
    assert main(['fetch-vi', '-o', str(tmp_path), '--root', root, '--tiles', '80605']) == 1 and not (tmp_path/coadd).exists()


def test_fetch_vi_from_nowhere(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('time.sleep', lambda s: None)
    assert main(['fetch-vi', '-o', str(tmp_path), '--root', 'http://127.0.0.1:9']) == 1
    assert 'check the root' in capsys.readouterr().err and files_in(tmp_path) == []


# From the archive to a catalogue, as the tutorial goes

@pytest.fixture(scope='module')
def fetched(tmp_path_factory):
    "Main-depth coadds of inspected targets, with answers of the scan, fetched from a release on disk."
    from skyseek.redshift.scan import redshift_file
    folder = tmp_path_factory.mktemp('rehearsal')
    pipeline = lambda coadd, redrock: (redshift_file if '1x_depth' in str(coadd) else pretend)(coadd, redrock)
    root = simulate_edr(folder/'archive', n=60, subsets=2, pipeline=pipeline, seed=3)
    assert main(['fetch-vi', '-o', str(folder/'edr'), '--root', str(root)]) == 0
    return folder


def arguments(folder):
    tables = sorted(map(str, (folder/'edr/vac').rglob('EDR_VI_*.csv')))
    return [str(folder/'edr'/TILES/'1x_depth'), '--truth', *tables, '--learn', 'none']


@pytest.fixture(scope='module')
def trained(fetched, train_shortly):
    with pytest.MonkeyPatch.context() as monkeypatch:
        train_shortly(monkeypatch)
        assert main(['train', *arguments(fetched), '-o', str(fetched/'weights'), '--about', 'rehearsal']) == 0
    return fetched/'weights'


def test_train_on_inspected_targets(fetched, trained, capsys):
    from skyseek.pipeline.score import load_weights
    assert 'rehearsal' in load_weights(trained).about
    coadds = sorted(map(str, (fetched/'edr').rglob('coadd-*.fits')))
    assert main(['score', *coadds[:2], '-o', str(fetched/'own.fits'), '--weights', str(trained)]) == 0
    catalogue = Table.read(fetched/'own.fits')
    assert len(coadds) == 8 and 100 < len(catalogue) <= 120 and np.isfinite(catalogue['P_Z_WRONG']).all()


def test_benchmark_on_inspected_targets(fetched, trained, capsys, shortly):
    quick = ['--published-minutes', '0', '--no-parts', '--tolerance', '0.001', '--resamples', '20', '--weights', str(trained)]
    assert main(['benchmark', *arguments(fetched), *quick, '-o', str(fetched/'table')]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ('Z_WRONG', 'DELTACHI2', 'ZWARN', 'BGS', 'ELG')) and (fetched/'table/benchmark.txt').is_file()


def test_labels_of_other_targets_are_an_error(fetched, tmp_path, capsys):
    other = written(tmp_path/'EDR_VI_LRG_v1.csv', '1,80605,3,150,2,0.32,3,GALAXY')
    assert main(['train', str(fetched/'edr'/TILES/'1x_depth'), '--truth', str(other), '-o', str(tmp_path/'weights')]) == 1
    assert 'has a row in the truth table' in capsys.readouterr().err and not (tmp_path/'weights').exists()
