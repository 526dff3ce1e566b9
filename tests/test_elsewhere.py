"""Catalogues and spectra in other tools: TOPCAT, Aladin, astropy, specutils, LSDB."""
import warnings

import numpy as np
import pytest
from astropy.io import fits, votable
from astropy.io.votable.ucd import check_ucd
from astropy.table import Table, vstack
from commands import errors, skyseek
from surveys import write_lamost, write_pair, write_sdss

from skyseek.data.files import read_written_table
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
