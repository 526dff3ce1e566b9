"""Catalogues and spectra in other tools: TOPCAT, Aladin, astropy, specutils, LSDB."""
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.io import fits, votable
from astropy.io.votable.ucd import check_ucd
from astropy.table import Table, vstack
from commands import errors, skyseek
from surveys import write_lamost, write_pair, write_sdss

from skyseek.data.files import read_written_table, write_table
from skyseek.data.samp import find_samp
from skyseek.pipeline.catalogue import COLUMNS, read_catalogue
from skyseek.pipeline.column_ucds import UCDS
from skyseek.pipeline.survey_catalogue import EXTRA


@pytest.fixture(scope='module')
def catalogues(tmp_path_factory):
    "Catalogues of DESI, SDSS and LAMOST spectra, each as FITS, VOTable or Parquet: survey → path."
    folder = tmp_path_factory.mktemp('elsewhere')
    write_pair(folder)
    found = dict(desi=next(folder.glob('coadd*.fits')), sdss=write_sdss(folder), lamost=write_lamost(folder))
    for (survey, source), suffix in zip(found.items(), ('vot', 'fits', 'parquet')):
        done = skyseek('score', source, '-o', folder/f'{survey}.{suffix}')
        assert done.returncode == 0, done.stderr
        found[survey] = folder/f'{survey}.{suffix}'
    return found


def test_every_column_has_a_ucd():
    "A new column of the catalogue gets its word in nbs/pipeline/01_column_ucds.ipynb."
    assert not [name for name in (COLUMNS | EXTRA) if name not in UCDS]
    assert all(check_ucd(ucd, check_controlled_vocabulary=True) for ucd in UCDS.values())


def test_the_columns_are_the_same_for_every_survey(catalogues):
    tables = {survey: read_written_table(path) for survey, path in catalogues.items()}
    assert all(t.colnames == list(COLUMNS) for t in tables.values())
    kinds = [{c: t[c].dtype.kind for c in COLUMNS if t[c].dtype.kind not in 'OUS'} for t in tables.values()]
    assert kinds[0] == kinds[1] == kinds[2]
    sdss = tables['sdss']
    assert sdss['DESI_TARGET'].mask.all() and sdss['HEALPIX'].mask.all() and np.isnan(sdss['TSNR2_LRG']).all()
    assert not np.ma.getmaskarray(sdss['Z']).any()
    joined = vstack(list(tables.values()), metadata_conflicts='silent')
    assert len(joined) == sum(map(len, tables.values())) and joined.colnames == list(COLUMNS)
    assert 'DESI_TARGET' not in read_catalogue(catalogues['sdss']).colnames  # as it was in memory


def test_astropy_alone_finds_units_descriptions_and_ucds(catalogues):
    for path in catalogues.values():
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            table = Table.read(path)
        assert table['Z'].description == 'redrock redshift' and table['Z'].meta['ucd'] == UCDS['Z'], path
        assert str(table['CAUSE_WAVE'].unit) == 'Angstrom' and table['P_ALT'].meta['ucd'] == UCDS['P_ALT']
    header = fits.getheader(catalogues['sdss'], 1)
    k = next(k for k in range(1, 200) if header[f'TTYPE{k}'] == 'Z')
    assert (header[f'TCOMM{k}'], header[f'TUCD{k}']) == ('redrock redshift', UCDS['Z'])
    with fits.open(catalogues['sdss']) as hdus: hdus.verify('exception')


def test_the_header_says_what_a_catalogue_was_made_of(catalogues):
    for path in catalogues.values():
        meta = read_written_table(path).meta
        assert {'DATE', 'SKYSEEK', 'WEIGHTS', 'WHASH', 'TH_Z', 'TH_S', 'INPUTS', 'INHASH', 'NINPUT'} <= set(meta)
        assert len(meta['INHASH'].split(', ')) == meta['NINPUT']
    assert read_written_table(catalogues['desi']).meta['NINPUT'] == 2  # coadd and redrock file


def test_the_votable_is_valid(catalogues):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        table = votable.parse(str(catalogues['desi']), verify='exception').get_first_table()
    assert len(table.array) == 4 and table.get_field_by_id_or_name('Z_CONF_SKYSEEK').datatype == 'unsignedByte'


def test_another_suffix_is_refused(tmp_path, catalogues):
    done = skyseek('keep', catalogues['desi'], '--truth', catalogues['desi'], '-o', tmp_path/'kept.xml')
    assert done.returncode == 1 and '*.vot' in errors(done)[0]


def test_a_catalogue_in_another_format_with_links(catalogues, tmp_path):
    done = skyseek('export', catalogues['desi'], '-o', tmp_path/'all.fits', '--links', 'edr')
    assert done.returncode == 0, done.stderr
    table = read_written_table(tmp_path/'all.fits')
    assert table['LINK_SPECTRUM'][0] == f"https://www.legacysurvey.org/viewer/desi-spectrum/edr/targetid{table['TARGETID'][0]}"
    assert len(table) == 4 and {'DESINAME', 'LINK_SKY'} < set(table.colnames) and table['LINK_SKY'].meta['ucd'] == 'meta.ref.url'
    done = skyseek('export', catalogues['desi'], '-o', tmp_path/'no.fits', '--links', 'DR 1')
    assert done.returncode == 1 and 'edr or dr1' in errors(done)[0] and not (tmp_path/'no.fits').exists()
    done = skyseek('export', catalogues['desi'], '-o', catalogues['desi'], '--overwrite')
    assert done.returncode == 1 and 'would overwrite the input' in errors(done)[0]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    "A SAMP hub of our own, on this machine only; a function that adds a receiver, which keeps what it loads."
    samp, lock, clients = find_samp(), tmp_path/'samp', []
    monkeypatch.setenv('SAMP_HUB', f'std-lockurl:{lock.as_uri()}')
    with samp.conf.set_temp('use_internet', False):
        server = samp.SAMPHubServer(web_profile=False, lockfile=str(lock), mode='single', timeout=0)
        def add(name, message, status='samp.ok'):
            client, got = samp.SAMPIntegratedClient(name=name), []
            def load(private_key, sender, msg_id, mtype, params, extra):
                got.append((params['name'], read_written_table(params['url'].removeprefix('file://'))))
                client.reply(msg_id, {'samp.status': status, 'samp.result': {}, 'samp.error': {'samp.errortxt': 'no'}})
            client.connect(); client.bind_receive_call(message, load); clients.append(client)
            return got
        add.server = server
        yield add
        for client in clients: client.disconnect()
        if server.is_running: server.stop()


def test_send_a_catalogue_to_topcat(hub, catalogues):
    done = skyseek('send', catalogues['desi'])
    assert done.returncode == 1 and 'no SAMP hub' in errors(done)[0] and 'TOPCAT' in errors(done)[0]
    hub.server.start()
    topcat, aladin = hub('topcat', 'table.load.votable'), hub('aladin', 'table.load.fits')
    done = skyseek('send', catalogues['desi'])  # a VOTable
    assert done.returncode == 0 and 'loaded by topcat' in done.stdout, done.stderr
    assert topcat[0][0] == 'desi' and len(topcat[0][1]) == 4 and topcat[0][1].colnames == list(COLUMNS)
    done = skyseek('send', catalogues['lamost'])  # Parquet, which becomes FITS
    assert done.returncode == 0 and 'loaded by aladin' in done.stdout and len(aladin[0][1]) == 1
    done = skyseek('send', catalogues['desi'], '--to', 'ds9')
    assert done.returncode == 1 and 'only topcat' in errors(done)[0]
    hub('deaf', 'table.load.votable', status='samp.error')
    done = skyseek('send', catalogues['desi'])
    assert done.returncode == 1 and 'deaf could not load' in errors(done)[0]


def test_spectra_through_astropy_and_specutils(tmp_path):
    specutils = pytest.importorskip('specutils')
    folder = tmp_path/'in'
    folder.mkdir()
    write_pair(folder)
    from skyseek import Spectra
    from skyseek.data.unified_io import register_specutils
    spectra = Spectra.read(next(folder.glob('coadd*.fits')))
    assert len(spectra) == 4 and 'Z' in spectra.meta.colnames  # the redrock file beside it was read
    spectra.write(tmp_path/'spectra.fits')
    register_specutils()
    theirs = specutils.SpectrumList.read(tmp_path/'spectra.fits', format='skyseek')
    assert [int(s.meta['meta']['TARGETID'][0]) for s in theirs] == list(spectra.meta['TARGETID'])
    assert all((s.mask == ~spectra.good[i]).all() for i, s in enumerate(theirs))


def test_the_package_says_that_it_has_types():
    import skyseek as package
    assert Path(package.__file__).with_name('py.typed').is_file()


@pytest.fixture
def two_skies(tmp_path):
    "HATS folders of 3000 targets and of 50 of them, 0.036 arcsec away."
    rng, n = np.random.default_rng(0), 3000
    table = Table(dict(TARGETID=np.arange(n), TARGET_RA=rng.uniform(140, 160, n), TARGET_DEC=rng.uniform(-5, 5, n), Z=np.full(n, .5), ZWARN=np.zeros(n, int), SPECTYPE=['GALAXY']*n,
                       DELTACHI2=np.ones(n), P_Z_WRONG=rng.random(n), P_S_WRONG=np.zeros(n), SNR=np.ones(n)))
    for name, rows in (('all', table), ('some', table[:50])):
        if name == 'some': rows['TARGET_RA'] += 1e-5
        write_table(rows, tmp_path/f'{name}.fits')
        done = skyseek('export', tmp_path/f'{name}.fits', '-o', tmp_path/name, '--hats')
        assert done.returncode == 0, done.stderr
    return tmp_path/'all', tmp_path/'some'


def test_a_hats_folder_is_whole(two_skies):
    about = dict(line.split('=') for line in (two_skies[0]/'hats.properties').read_text().split('\n') if line)
    assert (about['hats_nrows'], about['hats_col_ra'], about['dataproduct_type']) == ('3000', 'TARGET_RA', 'object')
    assert pq.read_metadata(two_skies[0]/'dataset/_metadata').num_rows == 3000
    done = skyseek('export', two_skies[0].with_suffix('.fits'), '-o', two_skies[1], '--hats')
    assert done.returncode == 1 and 'exists already' in errors(done)[0]


def test_lsdb_opens_and_cross_matches(two_skies):
    lsdb = pytest.importorskip('lsdb', reason='lsdb is not installed; it is tried by hand, see the page on other tools')
    whole = lsdb.open_catalog(two_skies[0], columns=['TARGETID', 'TARGET_RA', 'TARGET_DEC', 'P_Z_WRONG'])
    few = lsdb.open_catalog(two_skies[1], columns=['TARGETID', 'TARGET_RA', 'TARGET_DEC'])
    pairs = few.crossmatch(whole, radius_arcsec=1, suffixes=('_a', '_b')).compute()
    assert len(whole.compute()) == 3000 and len(pairs) == 50 and (pairs['TARGETID_a'] == pairs['TARGETID_b']).all()
