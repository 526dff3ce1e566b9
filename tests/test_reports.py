"""Reports: one page each from score, rank and keep, which needs nothing else, and says what cannot be shown."""
import re

import numpy as np
import pytest
from astropy.table import Table

from commands import errors, skyseek
from skyseek.data.redshift_tables import read_redrock
from skyseek.detect.guarantee import guarantee_keep
from skyseek.pipeline.explorer_table import open_catalogue
from skyseek.pipeline.reports import keep_report
from skyseek.redshift.bases import pca_bases
from skyseek.redshift.scan import redshift_file
from skyseek.simulate.mock_survey import simulate_survey
from skyseek.simulate.templates import builtin_library

EVIL = '<script>alert(1)</script>'


@pytest.fixture(scope='module')
def coadd(tmp_path_factory):
    path = simulate_survey(tmp_path_factory.mktemp('survey'), n=4, seed=4)
    bases = pca_bases(builtin_library(n_galaxy=60, n_qso=40, n_star=60, seed=3))
    redshift_file(path, path.with_name(path.name.replace('coadd', 'redrock')), bases)
    return path


def check_page(page, pictures):
    "A page alone: no address, no script, the pictures in it."
    html = page.read_text(encoding='utf-8')
    assert not re.search(r'https?://|<script|<link|@import|url\(', html)
    assert html.count('<img alt=') == html.count('src="data:image/png;base64,') == pictures
    assert "default-src 'none'" in html and len(html) < 3e6
    return html


def test_score_and_rank(coadd, tmp_path, monkeypatch):
    done = skyseek('score', coadd, '-o', tmp_path/'c.fits', '--report', tmp_path/'score.html')
    assert done.returncode == 0 and done.stdout.endswith('score.html\n'), done.stderr
    html = check_page(tmp_path/'score.html', 5)
    ids = read_redrock(coadd.with_name(coadd.name.replace('coadd', 'redrock')))['TARGETID'].tolist()
    assert all(f'id="{i}"' in html and f'href="#{i}"' in html for i in ids) and 'skyseek explore c.fits' in html
    before = (tmp_path/'score.html').read_bytes()
    for page, words in (('score.html', 'exists already'), ('x.pdf', 'is an .html file'), ('c2.fits', 'is an .html file')):
        done = skyseek('score', coadd, '-o', tmp_path/'c2.fits', '--report', tmp_path/page)
        assert done.returncode == 1 and words in done.stderr and len(errors(done)) == 1
    assert not (tmp_path/'c2.fits').exists() and (tmp_path/'score.html').read_bytes() == before
    done = skyseek('rank', tmp_path/'c.fits', '-o', tmp_path/'odd.fits', '--report', tmp_path/'rank.html')  # no spectra beside it
    assert done.returncode == 0 and 'is not in' in check_page(tmp_path/'rank.html', 1)
    done = skyseek('rank', tmp_path/'c.fits', '-o', tmp_path/'odd.fits', '--most', 1, '--report', tmp_path/'rank.html', '--spectra', coadd.parent, '--overwrite')
    assert done.returncode == 0 and 'if the pipeline is wrong' in check_page(tmp_path/'rank.html', 2) or 'runner-up' in (tmp_path/'rank.html').read_text()


def test_kept_sample_names_the_wrong_ones(tmp_path):
    rng, n = np.random.default_rng(1), 4000
    p = rng.beta(.2, 3, n)
    wrong = rng.random(n) < p/2
    table = Table(dict(TARGETID=np.arange(1, n + 1), Z=np.full(n, .5), SPECTYPE=np.full(n, EVIL), P_Z_WRONG=p, FILE=np.full(n, 'gone.fits')))
    found = guarantee_keep(wrong, p, .01)
    page = keep_report(tmp_path/'keep.html', open_catalogue(table, path=tmp_path/'c.fits'), found.text, (np.ones(n, bool), wrong, p), found)
    html = check_page(page, 2)
    assert EVIL not in html and 'Guarantee: at most 1 %' in html and 'cannot be shown' in html
    assert f'id="{1 + np.flatnonzero(wrong & (p <= found.threshold))[np.argmin(p[wrong & (p <= found.threshold)])]}"' in html


def test_keep_writes_a_report(tmp_path):
    rng, n = np.random.default_rng(2), 3000
    p = rng.beta(.2, 3, n)
    z = np.where(rng.random(n) < p/2, .6, .5)
    table = Table(dict(TARGETID=np.arange(1, n + 1), Z=z, SPECTYPE=np.full(n, 'GALAXY'), DELTACHI2=np.ones(n), P_Z_WRONG=p, P_S_WRONG=p, SNR=np.ones(n)))
    table.write(tmp_path/'c.fits')
    Table(dict(TARGETID=table['TARGETID'], TRUE_Z=np.full(n, .5), TRUE_SPECTYPE=table['SPECTYPE'])).write(tmp_path/'truth.fits')
    line = ('keep', tmp_path/'c.fits', '-o', tmp_path/'k.fits', '--truth', tmp_path/'truth.fits', '--at-most', .01, '--report', tmp_path/'keep.html')
    done = skyseek(*line)
    assert done.returncode == 0 and done.stdout.endswith('keep.html\n'), done.stderr
    assert 'Guarantee: at most 1 %' in check_page(tmp_path/'keep.html', 2)
