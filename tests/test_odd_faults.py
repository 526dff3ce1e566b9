"""What nobody has seen, under bad input and faults: no file of the user dies, and every failure is one line."""
import os
import struct
import warnings
import zlib
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from PIL import Image

from skyseek.anomaly import rerank as active, stellar_autoencoder as outliers, wgan_scores as imagescores
from skyseek.learn import training as train
from skyseek.pipeline import reference
from skyseek.anomaly.rerank import catalogue_features, rerank
from skyseek.anomaly.scores import AnomalyReference, SCORES
from skyseek.pipeline.cli import main, make_parser
from skyseek.anomaly.cutouts import Cutouts, cutout_table, read_cutouts, read_hdf5, write_hdf5
from skyseek.data.files import read_written_table, write_spectra, write_table
from skyseek.data.hdus import ReadError
from skyseek.anomaly.wgan import GanSettings
from skyseek.data.spectra import Spectra
from skyseek.anomaly.stellar_sample import simulate_stars
from skyseek.learn.training import fingerprint

FIRST = 39628473202443880  # neighbours of it are one number in float64


@pytest.fixture
def run(capsys):
    "Run a command: (exit code, standard output, standard error); anything but a line on standard error is a fault."
    def go(*words):
        capsys.readouterr()
        code = main([str(w) for w in words])
        out, err = capsys.readouterr()
        assert 'Traceback' not in err and '\x1b' not in out + err
        return code, out, err
    return go


def snapshot(folder): return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


def catalogue(n=60, seed=1):
    "A catalogue whose rows have other places by ANOMALY than by ANOMALY_CLEAN."
    rng = np.random.default_rng(seed)
    table = Table({'TARGETID': FIRST + rng.permutation(n),
                   **{f'ODD_{name}': rng.exponential(.4, n) for name in SCORES}})
    table['ANOMALY'] = rng.exponential(1., n)
    table['ANOMALY_CLEAN'] = np.where(rng.random(n) < .5, table['ANOMALY'], rng.random(n)*table['ANOMALY'])
    table['NATURE'] = rng.choice(['ARTEFACT', 'OBJECT', ''], n)
    table['ANOMALY_WHY'], table['SPECTYPE'], table['Z'] = 'LATENT', 'STAR', -3e-6
    return table


def write_marks(path, table, n=8):
    "Marks of the first rows that are objects, and of the first that are artefacts."
    rows = np.r_[np.flatnonzero(table['NATURE'] != 'ARTEFACT')[:n], np.flatnonzero(table['NATURE'] == 'ARTEFACT')[:n]]
    path.write_text('TARGETID,MARK\n' + ''.join(f"{table['TARGETID'][r]},{5*(k % 2)}\n" for k, r in enumerate(rows)))
    return dict(zip(np.asarray(table['TARGETID'])[rows].tolist(), [5.*(k % 2) for k in range(len(rows))]))


# rank

@pytest.mark.parametrize('marked', [False, True])
@pytest.mark.parametrize(('what', 'score'),
                         [('all', 'ANOMALY'), ('objects', 'ANOMALY_CLEAN'), ('artefacts', 'ANOMALY')])
def test_rank_sorts_by_the_column_it_names(tmp_path, run, what, score, marked):
    table = catalogue()
    write_table(table, tmp_path/'c.fits')
    marks = write_marks(tmp_path/'m.csv', table)
    code, out, _ = run('rank', tmp_path/'c.fits', '-o', tmp_path/'list.fits', '--what', what,
                       *(['--marks', tmp_path/'m.csv'] if marked else []))
    listed, column = read_written_table(tmp_path/'list.fits'), 'INTEREST' if marked else score
    wanted = table[{'all': table['NATURE'] != '?', 'objects': table['NATURE'] != 'ARTEFACT',
                    'artefacts': table['NATURE'] == 'ARTEFACT'}[what]]
    if marked:
        given = np.array([marks.get(int(t), np.nan) for t in wanted['TARGETID']])
        wanted['INTEREST'] = rerank(catalogue_features(wanted), np.asarray(wanted[score]), given).astype('f4')
    assert list(listed['TARGETID']) == list(wanted['TARGETID'][np.argsort(-np.asarray(wanted[column]), kind='stable')])
    assert code == 0 and f'sorted by {column}' in out and list(listed['RANK']) == list(range(1, len(wanted) + 1))
    assert listed.meta['SORTED'] == column and column in out.splitlines()[1] and '-0.0000' not in out


def test_rank_says_what_it_was_made_from(tmp_path, run):
    table = catalogue()
    table.meta |= {'SKYSEEK': '0.0.9', 'TH_Z': .4}
    write_table(table, tmp_path/'c.fits')
    write_marks(tmp_path/'m.csv', table)
    assert run('rank', tmp_path/'c.fits', '-o', tmp_path/'one.parquet', '--most', 1)[1].count('1 row,') == 1
    run('rank', tmp_path/'c.fits', '-o', tmp_path/'l.fits', '--marks', tmp_path/'m.csv')
    listed = read_written_table(tmp_path/'l.fits')
    assert {'INPUTS': 'c.fits, m.csv', 'CATVER': '0.0.9', 'TH_Z': .4, 'NMARKS': 16}.items() <= dict(listed.meta).items()
    assert all(listed[name].description for name in listed.colnames)


def spoilt(**changes):
    table = catalogue()
    for name, value in changes.items():
        table.remove_column(name)
        if value is not None: table[name] = value
    return table


@pytest.mark.parametrize(('table', 'options', 'words'), [
    (spoilt(), ['--most', 0], '--most 0'), (spoilt(), ['--most', -5], '--most -5'),
    (spoilt(ANOMALY=None), [], 'skyseek reference'),
    (spoilt(ANOMALY=None, ANOMALY_CLEAN=None, NATURE=None), ['--what', 'objects'], 'skyseek reference'),
    (spoilt(NATURE=None), ['--what', 'objects'], 'no column NATURE'),
    (spoilt(NATURE=None), ['--what', 'artefacts'], 'no column NATURE'),
    (spoilt(ANOMALY='high'), [], 'not one number a row'), (spoilt(ANOMALY=np.nan), [], 'no row has a number'),
    (spoilt(NATURE='OBJECT'), ['--what', 'artefacts'], 'none of the 60 rows')])
def test_rank_refuses_in_one_line(tmp_path, run, table, options, words):
    write_table(table, tmp_path/'c.fits')
    code, _, err = run('rank', tmp_path/'c.fits', '-o', tmp_path/'list.fits', *options)
    assert code == 1 and words in err and err.count('\n') == 1 and not (tmp_path/'list.fits').exists()


def test_rank_lists_all_without_nature(tmp_path, run):
    write_table(spoilt(NATURE=None, ANOMALY_CLEAN=None), tmp_path/'c.fits')
    assert run('rank', tmp_path/'c.fits', '-o', tmp_path/'list.fits')[0] == 0


IDS = FIRST, FIRST + 1, FIRST + 2


@pytest.mark.parametrize(('text', 'encoding'), [
    ('TARGETID,MARK\n{},5\n{},0\n{},0.5\n', 'utf-8-sig'), ('TARGETID;MARK\r\n{};5\r\n{};0\r\n{};0,5\r\n', 'utf-8'),
    ('TARGETID;MARK\n{};5\n{};0\n{};0.5\n', 'utf-8-sig'),
    ('name\ttargetid\tmark\na\t{}\t5\nb\t{}\t0\nc\t{}\t.5\n', 'utf-8'),
    ('TARGETID,MARK,NOTE\n"{}","5","a, b"\n {} , 0,\n{},0.5,\n,,\n7,,\n', 'utf-8')])
def test_marks_as_spreadsheets_write_them(tmp_path, text, encoding):
    (tmp_path/'m.csv').write_bytes(text.format(*IDS).encode(encoding))
    marks = active.read_marks(tmp_path/'m.csv')
    assert [(int(r['TARGETID']), float(r['MARK'])) for r in marks] == list(zip(IDS, (5., 0., .5)))


@pytest.mark.parametrize(('text', 'words'), [
    ('TARGETID,MARK\n{},5\n3.9628473202443880E+16,5\n', 'TARGETID in row 2'),
    ('TARGETID,MARK\n{}.0,5\n', 'TARGETID in row 1'), ('TARGETID,MARK\n{},5\n,5\n', 'row 2 has no TARGETID'),
    ('TARGETID,MARK\n{},5\n{},good\n', "row 2 is 'good'"), ('TARGETID,MARK\n{},5\n\n{},-1\n', "row 3 is '-1'"),
    ('TARGETID,MARK\n{},6\n', "row 1 is '6'"), ('TARGETID,MARK\n{},4,5\n', 'row 1 has 3 values')])
def test_marks_that_lost_something_name_their_row(tmp_path, run, text, words):
    write_table(catalogue(), tmp_path/'c.fits')
    (tmp_path/'m.csv').write_text(text.format(*IDS))
    code, _, err = run('rank', tmp_path/'c.fits', '-o', tmp_path/'list.fits', '--marks', tmp_path/'m.csv')
    assert code == 1 and words in err and 'm.csv' in err and err.count('\n') == 1
    assert not (tmp_path/'list.fits').exists()


@pytest.mark.parametrize('ids', [np.array(IDS, float), np.ma.masked_array(IDS, [False, True, False]),
                                 np.array(['a', 'b', 'c'])])
def test_marks_of_a_table_are_read_like_those_of_a_file(ids):
    marks = Table({'TARGETID': ids, 'MARK': [5., 0., 5.]})
    with pytest.raises(ReadError, match='TARGETID'): active.rerank_catalogue(catalogue(), marks)


# Stars

@pytest.fixture(scope='module')
def stars(tmp_path_factory):
    "Compact files: simulated stars, stars out of distribution, and two whose types look like mathematics."
    folder = tmp_path_factory.mktemp('stars')
    spectra, _ = simulate_stars(150, seed=21)
    spectra.meta['SUBTYPE'] = ['a$x^{$b']*150
    write_spectra(spectra[:2], folder/'names.fits')
    write_spectra(spectra, folder/'spectra-ok.fits')
    waves = 1 + .2*np.sin(spectra.wave/40)
    write_spectra(Spectra(spectra.wave, spectra.flux*waves, spectra.ivar/waves**2, spectra.meta),
                  folder/'spectra-waves.fits')
    (folder/'broken.fits').write_text('no FITS file')
    return folder


def test_score_stars_tells_files_header_and_columns(stars, tmp_path, run):
    code, _, err = run('score-stars', stars/'spectra-ok.fits', stars/'broken.fits', '-o', tmp_path/'s.fits')
    assert code == 1 and '1 of 2 files failed, 1 done' in err
    table = read_written_table(tmp_path/'s.fits')
    wanted = {'WEIGHTS': 'stars', 'INPUTS': 'spectra-ok.fits', 'NINPUT': 1, 'TH_SIGMA': 3.}
    assert wanted.items() <= dict(table.meta).items() and len(table.meta['MODELID']) == 16
    assert all(table[name].description and name == name.upper() for name in table.colnames)
    assert str(table['WAVE_WORST'].unit) == 'Angstrom'


def test_score_stars_draws_names_as_they_are(stars, tmp_path, run):
    code, _, err = run('score-stars', stars/'names.fits', '-o', tmp_path/'s.fits', '--report', tmp_path/'r.html')
    assert code == 0 and not err and (tmp_path/'r.html').read_text().count('<img') == 2


def test_score_stars_counts_files_not_arguments(stars, tmp_path, run):
    code, _, err = run('score-stars', stars, '-o', tmp_path/'s.fits', '--device', 'cpu')
    assert code == 1 and '1 of 4 files failed, 3 done' in err


def test_score_stars_says_what_is_out_of_distribution(stars, tmp_path, run):
    told = {name: run('score-stars', stars/f'spectra-{name}.fits', '-o', tmp_path/f'{name}.fits')[1] for name in ('ok',
        'waves')}
    lines = {name: out.splitlines()[-1] for name, out in told.items()}
    share = {name: read_written_table(tmp_path/f'{name}.fits')['UNFAMILIAR'].mean() for name in lines}
    assert all("out of distribution for the model 'stars'" in line and '150 spectra' in line for line in lines.values())
    assert share['ok'] < .05 < .2 < share['waves']
    assert 'at least 9' in lines['waves'] and 'skyseek train-stars' in lines['waves']


def test_train_stars_leaves_a_folder_of_the_user_alone(stars, tmp_path, run):
    (tmp_path/'thesis').mkdir()
    (tmp_path/'thesis/notes.txt').write_text('mine')
    (tmp_path/'new-checkpoint.safetensors').write_text('mine')
    before = snapshot(tmp_path)
    for output, words in (('thesis', 'holds other files'), ('new', 'in the way')):
        code, _, err = run('train-stars', stars/'spectra-ok.fits', '-o', tmp_path/output, '--epochs', 1, '--device',
                           'cpu', '--min-snr', 0)
        assert code == 1 and words in err and snapshot(tmp_path) == before


def test_train_stars_keeps_what_a_table_is_compared_with(tmp_path, run):
    spectra, _ = simulate_stars(360, seed=22)
    write_spectra(spectra, tmp_path/'spectra-x.fits')
    (tmp_path/'broken.fits').write_text('no FITS file')
    code, _, err = run('train-stars', tmp_path, '-o', tmp_path/'m', '--epochs', 1, '--device', 'cpu')
    assert code == 1 and '1 of 2 files failed, 1 done' in err
    extra = train.read_config(tmp_path/'m')['extra']
    assert len(extra['excess']) == 3 and extra['files'] == 1 and extra['min_snr'] == 20
    code, _, err = run('train-stars', tmp_path/'spectra-x.fits', '-o', tmp_path/'m', '--epochs', 1, '--device', 'cpu')
    assert code == 1 and '--overwrite' in err and train.read_config(tmp_path/'m')['extra'] == extra


def test_no_star_passes_the_selection(stars, tmp_path, run):
    code, _, err = run('train-stars', stars/'spectra-ok.fits', '-o', tmp_path/'m', '--min-snr', 500)
    assert code == 1 and '--min-snr' in err


# Galaxies

TINY = '--size', 16, '--width', 2, '--batch-size', 4, '--iterations', 2, '--encoder-steps', 1, '--device', 'cpu'


@pytest.fixture(scope='module')
def galaxies(tmp_path_factory):
    "Stamps as files and as HDF5, and a model that was trained on them for a moment."
    folder = tmp_path_factory.mktemp('galaxies')
    (folder/'stamps').mkdir()
    images = np.random.default_rng(3).integers(1, 255, (8, 16, 16, 3), dtype=np.uint8)
    for k, image in enumerate(images): Image.fromarray(image).save(folder/f'stamps/g{k}.png')
    write_hdf5(folder/'stamps.h5', Cutouts(images, cutout_table([f'g{k}' for k in range(8)])))
    assert main([str(w) for w in ('train-galaxies', folder/'stamps', '-o', folder/'model', *TINY)]) == 0
    return folder


def test_score_galaxies_writes_a_table_that_explains_itself(galaxies, tmp_path, run):
    code, out, _ = run('score-galaxies', galaxies/'stamps', '--weights', galaxies/'model', '-o', tmp_path/'odd.fits',
                       '--steps', 1)
    table = read_written_table(tmp_path/'odd.fits')
    assert code == 0 and table.colnames == ['IDX', 'OBJECT_ID', 'RA', 'DEC', 'CRITIC', 'GENERATOR', 'COMBINED', 'HIGH',
                                            'REASON']
    assert all(table[name].description for name in table.colnames) and str(table['RA'].unit) == 'deg'
    wanted = {'WEIGHTS': 'model', 'NINPUT': 8, 'TH_HIGH': 3., 'STEPS': 1, 'HOW': 'crop', 'SIZE': 16}
    assert wanted.items() <= dict(table.meta).items() and table.meta['MODELID'].count('-') == 2


def test_parts_of_others_stay(galaxies, tmp_path, run):
    for name in ('res.mine.part1.h5', 'res.part0.h5', 'res.txt'): (tmp_path/name).write_text('mine')
    code, _, _ = run('score-galaxies', galaxies/'stamps.h5', '--model', galaxies/'model', '-o', tmp_path/'odd.fits',
                     '--results', tmp_path/'res.h5')
    names = ['odd.fits', 'res.h5', 'res.mine.part1.h5', 'res.part0.h5', 'res.txt']
    assert code == 0 and sorted(p.name for p in tmp_path.iterdir()) == names


def test_planted_links_are_not_followed(galaxies, tmp_path, monkeypatch):
    "Somebody else has put links where parts and checkpoints will lie."
    (tmp_path/'victim').write_text('mine')
    names, write = [], imagescores.write_hdf5
    note = lambda path, *a, **k: (names.append(Path(path).name), write(path, *a, **k))[1]
    monkeypatch.setattr(imagescores, 'write_hdf5', note)
    cutouts = read_cutouts(galaxies/'stamps', 16)
    score = lambda: imagescores.score_images_file(cutouts, galaxies/'model', tmp_path/'res.h5', steps=0)
    score()
    (tmp_path/names[0]).symlink_to(tmp_path/'victim')
    (tmp_path/'m-checkpoint.safetensors').symlink_to(tmp_path/'victim')
    with pytest.raises(ValueError, match='is a link'): score()
    with pytest.raises(ValueError, match='in the way'): train_images(tmp_path/'m', cutouts.images, 1)
    assert (tmp_path/'victim').read_text() == 'mine'


def train_images(folder, images, seed):
    settings = GanSettings(iterations=1, batch_size=4, device='cpu', seed=seed)
    imagescores.train_images_file(images, folder, settings, 1, progress=False, width=2)


def test_networks_change_all_at_once(galaxies, tmp_path, monkeypatch):
    "Killed between two networks, the old set is there as it was; a mixture is refused."
    images = read_cutouts(galaxies/'stamps', 16).images
    for name in ('a', 'b'): train_images(tmp_path/name, images, 1)
    before, packed, calls = snapshot(tmp_path/'a'), train.pack_weights, []

    def dies(*args):
        calls.append(1)
        if len(calls) == 2: raise KeyboardInterrupt
        return packed(*args)
    with monkeypatch.context() as m:
        m.setattr(train, 'pack_weights', dies)
        with pytest.raises(KeyboardInterrupt): train_images(tmp_path/'a', images, 2)
    assert snapshot(tmp_path/'a') == before
    train_images(tmp_path/'c', images, 3)
    os.replace(tmp_path/'c/critic/model.safetensors', tmp_path/'b/critic/model.safetensors')
    with pytest.raises(ValueError, match='not trained together'): imagescores.load_images_model(tmp_path/'b')


@pytest.mark.parametrize(('options', 'words'), [
    (['--size', 40], '--size 40'), (['--size', 0], '--size 0'), (['--batch-size', 32], '--batch-size'),
    (['--batch-size', 0], '--batch-size 0'), (['--iterations', 0], '--iterations 0'), (['--width', 0], '--width 0'),
    (['--encoder-steps', 0], '--encoder-steps 0'), (['--lr', 'nan'], '--lr nan'), (['--lr', 0], '--lr 0'),
    (['--stretch', 0], '--stretch 0'), (['--Q', 'nan'], '--Q nan'), (['--size', 32], '--size')])
def test_train_galaxies_names_the_option_to_change(galaxies, tmp_path, run, options, words):
    code, _, err = run('train-galaxies', galaxies/'stamps', '-o', tmp_path/'m', *TINY, *options)
    assert code == 1 and words in err and err.count('\n') == 1 and list(tmp_path.iterdir()) == []


# Images that are not what they say

def claim(side):
    "A writer of a png of some bytes that says it has so many pixels a side."
    chunk = lambda kind, data: struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    head = struct.pack('>IIBBBBB', side, side, 1, 0, 0, 0, 0)
    parts = chunk(b'IHDR', head), chunk(b'IDAT', zlib.compress(bytes(1000))), chunk(b'IEND', b'')
    return lambda path: path.write_bytes(b'\x89PNG\r\n\x1a\n' + b''.join(parts))


def large(path): fits.PrimaryHDU(np.zeros((4100, 4100), np.uint8)).writeto(path)


@pytest.mark.parametrize(('name', 'write'),
                         [('x.png', claim(20000)), ('x.png', claim(10000)), ('x.png', claim(5000)), ('x.fits', large)])
def test_a_huge_image_is_left_out_and_no_other(galaxies, tmp_path, run, name, write):
    Image.open(galaxies/'stamps/g0.png').save(tmp_path/'good.png')
    write(tmp_path/name)
    words = 'score-galaxies', tmp_path, '--model', galaxies/'model', '-o', tmp_path/'odd.parquet'
    with warnings.catch_warnings(action='ignore'): code, _, _ = run(*words)
    reason = dict(zip(*(read_written_table(tmp_path/'odd.parquet')[c] for c in ('OBJECT_ID', 'REASON'))))
    assert code == 1 and reason['good'] == '' and '4096 × 4096' in reason['x']


def stamp(n=2): return np.random.default_rng(0).integers(0, 255, (n, 16, 16, 3), dtype=np.uint8)


H5 = {'images a group': lambda f: f.create_group('images'),
      'external link': lambda f: f.__setitem__('images', h5py.ExternalLink('stamps.h5', 'images')),
      'link to nothing': lambda f: f.__setitem__('images', h5py.ExternalLink('none.h5', 'images')),
      'soft link to nothing': lambda f: f.__setitem__('images', h5py.SoftLink('/none')),
      'object_id a group': lambda f: (f.create_dataset('images', data=stamp()), f.create_group('object_id')),
      'terabytes': lambda f: f.create_dataset('images', (10**5, 1000, 1000, 3), 'u1', chunks=(1, 100, 100, 3)),
      'one huge image': lambda f: f.create_dataset('images', (1, 90000, 90000, 3), 'u1', chunks=(1, 100, 100, 3)),
      'no image': lambda f: f.create_dataset('images', (0, 16, 16, 3), 'u1'),
      'two axes': lambda f: f.create_dataset('images', data=np.zeros((16, 16))),
      'words': lambda f: f.create_dataset('images', data=np.full((1, 16, 16, 3), b'a')),
      'a number': lambda f: f.create_dataset('images', data=3), 'nothing': lambda f: None,
      'too few names': lambda f: (f.create_dataset('images', data=stamp()), f.create_dataset('object_id', data=['a'])),
      'names that are not whole': lambda f: (f.create_dataset('images', data=stamp()),
                                             f.create_dataset('object_id', data=[3.9e16, 1.5])),
      'ra in words': lambda f: (f.create_dataset('images', data=stamp()),
                                                 f.create_dataset('ra', data=['a', 'b'])),
      'data elsewhere': lambda f: f.create_dataset('images', (1, 16, 16, 3), 'u1', external=[('raw.bin', 0, 768)])}


@pytest.mark.parametrize('kind', H5)
def test_hdf5_that_lies_is_refused_in_one_line(galaxies, tmp_path, run, kind):
    with h5py.File(tmp_path/'x.h5', 'w') as f: H5[kind](f)
    (tmp_path/'stamps.h5').write_bytes((galaxies/'stamps.h5').read_bytes())
    code, _, err = run('score-galaxies', tmp_path/'x.h5', '--model', galaxies/'model', '-o', tmp_path/'odd.fits')
    assert code == 1 and 'x.h5' in err and err.count('\n') == 1 and not (tmp_path/'odd.fits').exists()


def test_names_of_a_file_are_kept_and_never_sent_to_a_terminal(galaxies, tmp_path, run, recwarn):
    with h5py.File(tmp_path/'x.h5', 'w') as f:
        f['images'], f['object_id'] = np.concatenate([stamp(), 0*stamp(1)]), ['ü', 'b', 'c\x1b[2J']
    assert list(read_hdf5(tmp_path/'x.h5').table['OBJECT_ID']) == ['ü', 'b', r'c\x1b[2J']
    first = run('score-galaxies', tmp_path/'x.h5', '--model', galaxies/'model', '-o', tmp_path/'odd.fits')
    (tmp_path/'d').mkdir()
    (tmp_path/'d/e\x1b[2J\n.png').write_text('no')
    Image.fromarray(stamp()[0]).save(tmp_path/'d/good.png')
    second = run('score-galaxies', tmp_path/'d', '--model', galaxies/'model', '-o', tmp_path/'two.parquet')
    lines = [str(w.message) for w in recwarn] + (first[2] + second[2]).splitlines()
    said = [line for line in lines if 'cannot be used' in line]
    assert first[0] == second[0] == 1
    assert len(said) == 3 and all('\x1b' not in text and r'\x1b[2J' in text and '\n' not in text for text in said)
    write_table(spoilt(ANOMALY_WHY='LATENT\x1b[2J', SPECTYPE='\x07'), tmp_path/'c.parquet')
    assert r'LATENT\x1b[2J' in run('rank', tmp_path/'c.parquet', '-o', tmp_path/'list.parquet')[1]


def odd_stamps(folder):
    "Stamps of all kinds that are none."
    image = stamp(1)[0]
    for name, data in (('4-d', np.zeros((2, 3, 16, 16))), ('one band', np.ones((16, 16))),
                       ('nan', np.full((3, 16, 16), np.nan)),
                       ('seven', np.ones((7, 16, 16)))): fits.PrimaryHDU(data).writeto(folder/f'{name}.fits')
    whole = (folder/'seven.fits').read_bytes()
    (folder/'cut.fits').write_bytes(whole[:3000])
    (folder/'empty.jpg').write_bytes(b'')
    (folder/'folder.png').mkdir()
    (folder/'text.h5.png').write_text('text')
    Image.fromarray(image).save(folder/'good.png')
    png = (folder/'good.png').read_bytes()
    rng = np.random.default_rng(5)
    for k in range(200):
        spoilt = np.frombuffer(png, np.uint8).copy()
        spoilt[rng.integers(0, len(png), 6)] = rng.integers(0, 256, 6)
        (folder/f'fuzz{k}.png').write_bytes(spoilt.tobytes()[:int(rng.integers(20, len(png) + 1))])


def test_odd_stamps_have_a_reason_and_spoil_no_other(tmp_path):
    odd_stamps(tmp_path)
    with warnings.catch_warnings(action='ignore'): cutouts = read_cutouts(tmp_path, 16)
    reason = dict(zip(cutouts.table['OBJECT_ID'], cutouts.table['REASON']))
    bad = '4-d', 'one band', 'nan', 'seven', 'cut', 'empty', 'folder', 'text.h5'
    assert reason['good'] == '' and all(reason[name] for name in bad) and len(cutouts) == 209


def test_text_is_no_hdf5(galaxies, tmp_path, run):
    (tmp_path/'x.h5').write_text('text')
    code, _, err = run('score-galaxies', tmp_path/'x.h5', '--model', galaxies/'model', '-o', tmp_path/'o.fits')
    assert code == 1 and 'not a whole HDF5 file' in err and err.count('\n') == 1


# Outputs

def linked(path, kind):
    "Another name of a file."
    new = path.with_name(f'{kind}-{path.name}')
    (os.symlink if kind == 'soft' else os.link)(path, new)
    return new


OUTPUTS = {'rank to the catalogue': lambda d: ('rank', d/'c.fits', '-o', d/'c.fits'),
           'rank to its marks': lambda d: ('rank', d/'c.fits', '--marks', d/'m.fits', '-o', d/'m.fits'),
           'rank to a link': lambda d: ('rank', d/'c.fits', '-o', linked(d/'c.fits', 'soft')),
           'rank to a hard link': lambda d: ('rank', d/'c.fits', '-o', linked(d/'c.fits', 'hard')),
           'stars to a spectrum': lambda d: ('score-stars', d/'a.fits', d/'b.fits', '-o', d/'b.fits'),
           'stars in the folder': lambda d: ('score-stars', d, '-o', d/'b.fits'),
           'report to a spectrum': lambda d: ('score-stars', d/'a.fits', '-o', d/'new.fits', '--report', d/'a.fits'),
           'report to the table': lambda d: ('score-stars', d/'a.fits', '-o', d/'new.fits', '--report', d/'new.fits'),
           'report to the model': lambda d: ('score-stars', d/'a.fits', '-o', d/'new.fits', '--model', d/'model',
                                             '--report', d/'model/critic/config.json'),
           'galaxies to a stamp': lambda d: ('score-galaxies', d/'stamps', '--model', d/'model',
                                             '-o', d/'stamps/s.fits'),
           'results to the images': lambda d: ('score-galaxies', d/'s.h5', '--model', d/'model', '-o', d/'new.fits',
                                               '--results', d/'s.h5'),
           'results to the model': lambda d: ('score-galaxies', d/'s.h5', '--model', d/'model', '-o', d/'new.fits',
                                              '--results', d/'model/critic/config.json'),
           'weights to the weights': lambda d: ('reference', d/'a.fits', '--weights', d/'model', '-o', d/'model'),
           'weights to a coadd': lambda d: ('reference', d/'a.fits', '-o', d/'a.fits'),
           'stars to their folder': lambda d: ('train-stars', d/'a.fits', '-o', d),
           'galaxies to their folder': lambda d: ('train-galaxies', d/'stamps', '-o', d/'stamps')}


@pytest.fixture(scope='module')
def inputs(tmp_path_factory, galaxies):
    "One of everything that is read, small and by and large sound."
    folder = tmp_path_factory.mktemp('inputs')
    write_table(catalogue(), folder/'c.fits')
    write_marks(folder/'m.fits', catalogue())
    spectra, _ = simulate_stars(2, seed=5)
    for name in ('a.fits', 'b.fits'): write_spectra(spectra, folder/name)
    (folder/'stamps').mkdir()
    fits.PrimaryHDU(np.random.default_rng(0).random((3, 16, 16))).writeto(folder/'stamps/s.fits')
    write_hdf5(folder/'s.h5', Cutouts(stamp(), cutout_table(['a', 'b'])))
    for path in (galaxies/'model').rglob('*.*'):
        (folder/'model'/path.parent.name).mkdir(parents=True, exist_ok=True)
        (folder/'model'/path.parent.name/path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize('kind', OUTPUTS)
def test_no_output_is_an_input(inputs, run, kind):
    words = OUTPUTS[kind](inputs)
    before = snapshot(inputs)
    for asked in ([], ['--overwrite']):
        code, _, err = run(*words, *asked)
        assert code == 1 and err.count('\n') == 1 and any(w in err for w in ('would overwrite the input',
            'written twice', 'holds other files'))
        assert snapshot(inputs) == before
    for path in [*inputs.glob('soft-*'), *inputs.glob('hard-*')]: path.unlink()


@pytest.mark.parametrize('words', [lambda d, t: ('rank', d/'c.fits', '-o', t/'x.fits'), lambda d,
                                   t: ('score-stars', d/'a.fits', '-o', t/'x.fits'), lambda d,
                                   t: ('score-stars', d/'a.fits', '-o', t/'y.fits', '--report', t/'x.fits'),
                                   lambda d, t: ('score-galaxies', d/'s.h5', '--model', d/'model', '-o', t/'x.fits'),
                                   lambda d,
                                   t: ('score-galaxies', d/'s.h5', '--model', d/'model', '-o', t/'y.fits', '--results',
                                       t/'x.fits')])
def test_a_result_is_replaced_only_if_asked(inputs, tmp_path, run, words):
    (tmp_path/'x.fits').write_text('mine')
    code, _, err = run(*words(inputs, tmp_path))
    assert code == 1 and '--overwrite' in err
    assert (tmp_path/'x.fits').read_text() == 'mine' and not (tmp_path/'y.fits').exists()
    with warnings.catch_warnings(action='ignore'): assert run(*words(inputs, tmp_path), '--overwrite')[0] == 0
    assert (tmp_path/'x.fits').stat().st_size > 1000


@pytest.mark.parametrize('words', [lambda d: ('reference', d/'a.fits'),
                                   lambda d: ('train-galaxies', d/'stamps', '--iterations', 1, '--device', 'cpu'),
                                   lambda d: ('train-stars', d/'a.fits')])
def test_a_model_is_replaced_only_if_asked(inputs, run, words):
    before = snapshot(inputs)
    code, _, err = run(*words(inputs), '-o', inputs/'model')
    assert code == 1 and '--overwrite' in err and snapshot(inputs) == before


# A reference sample

@pytest.fixture
def learned(monkeypatch, tmp_path):
    "`reference_files` without its hours of work: 400 spectra, 60 of which are out of distribution for the weights."
    opinion = Table({'P_NONE': np.zeros(400)})
    weights = SimpleNamespace(autoencoder=train_stub(), judge=train_stub(),
                              familiarity=SimpleNamespace(config={'checks': 1}, p_value=lambda *a: np.where(np.arange(400) < 60, 0., .5)))
    for name, value in dict(load_weights=lambda *a: weights, _sample_targets=lambda *a: (range(400), {}),
                            look=lambda *a: (range(400), opinion, None, None, {}),
                            fit_reference=lambda *a, **k: AnomalyReference(n=400),
                            familiarity_inputs=lambda *a: None, instruments_of=lambda *a: None,
                            survey_familiarity=lambda *a, **k: (AnomalyReference(n=400), {'': 400})).items():
        monkeypatch.setattr(reference, name, value, raising=False)
    (tmp_path/'a.fits').touch()
    return tmp_path


def train_stub(): return outliers.StellarAutoencoder()


def test_reference_says_what_is_out_of_distribution(learned, run):
    code, out, _ = run('reference', learned/'a.fits', '-o', learned/'mine', '--weights', shipped())
    assert code == 0 and '60 of 400 spectra (15.0%' in out and 'skyseek train' in out
    assert 'reference sample of 400 spectra' in out
    extra = train.read_config(learned/'mine/anomaly')['extra']
    assert extra['unfamiliar'] == 60 and extra['weights'] == 'default' and {'autoencoder', 'judge', 'seed',
        'files'} <= set(extra)
    assert sorted(p.name for p in (learned/'mine').iterdir()) == sorted(p.name for p in shipped().iterdir())


def shipped(): return Path(reference.__file__).parent.parent/'weights/default'


def test_reference_is_written_whole_or_not_at_all(learned, monkeypatch):
    (learned/'thesis').mkdir()
    (learned/'thesis/notes.txt').write_text('mine')
    with pytest.raises(ValueError, match='holds other files'): reference.reference_files([learned/'a.fits'], learned/'thesis')
    assert [p.name for p in (learned/'thesis').iterdir()] == ['notes.txt']
    reference.reference_files([learned/'a.fits'], learned/'mine')
    before = snapshot(learned/'mine')
    monkeypatch.setattr(train, 'pack_weights', lambda *a: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt): reference.reference_files([learned/'a.fits'], learned/'mine', seed=2)
    assert snapshot(learned/'mine') == before and not list(learned.glob('.tmp*'))


# Options

@pytest.mark.parametrize('words', ['rank c -o l', 'reference c -o w', 'train-stars s -o w', 'score-stars s -o t',
                                   'train-galaxies i -o w', 'score-galaxies i -o t --weights w'])
def test_options_are_the_same_everywhere(words):
    a = make_parser().parse_args([*words.split(), '--overwrite'])
    assert a.overwrite and getattr(a, 'device', 'auto') == 'auto'
    if hasattr(a, 'weights'): assert make_parser().parse_args([*words.split(), '--model', 'm']).weights == Path('m')


def test_auto_is_resolved(monkeypatch):
    from skyseek.learn.devices import pick_device
    monkeypatch.setattr('skyseek.learn.devices._no_driver', lambda: False)
    for found, device in ((1, 'cuda'), (0, 'cpu')):
        monkeypatch.setattr('torch.cuda.is_available', lambda found=found: found > 0)
        monkeypatch.setattr('torch.cuda.device_count', lambda found=found: found)
        assert pick_device('auto') == device
    with pytest.raises(ValueError, match='--device cuda'): pick_device('cuda')
    assert fingerprint(outliers.load_stellar(device='auto'))
