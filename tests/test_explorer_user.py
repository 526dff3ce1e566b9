"""What a new user of the explorer met: stale words, labels that are not shown again, headers that do not sort."""
import numpy as np
import pytest
from astropy.table import Table

from skyseek.pipeline.explorer_table import open_catalogue
from skyseek.pipeline.labels import LabelStore

pytest.importorskip('bokeh')
from skyseek.pipeline.explorer_actions import ExplorerPage  # noqa: E402
from skyseek.pipeline.explorer_page import EVERYTHING  # noqa: E402
from skyseek.simulate.mock_survey import simulate_survey  # noqa: E402

N = 6


@pytest.fixture(scope='module')
def coadd(tmp_path_factory): return simulate_survey(tmp_path_factory.mktemp('user'), N, seed=5, program='dark', hpx=27245)


@pytest.fixture
def page(coadd, tmp_path):
    from skyseek.data.desi import read_coadd
    ids = np.asarray(read_coadd(coadd).meta['TARGETID'])
    table = Table(dict(TARGETID=ids, Z=np.linspace(.2, .7, N), SPECTYPE=['GALAXY', 'QSO']*(N//2), ZWARN=np.zeros(N, int), P_Z_WRONG=np.linspace(.9, .1, N), FILE=[coadd.name]*N))
    cat = open_catalogue(table, coadd.parent, path=tmp_path/'catalogue.fits')
    return ExplorerPage(cat, LabelStore(cat, 'ada <b>'))


def test_the_place_in_the_list_follows_the_list(page):
    page.step(3)
    assert '4 of 6' in page.panel.title.text
    page.change(expression='P_Z_WRONG < .5')
    assert '1 of 3' in page.panel.title.text and 'DESI spectrum' in page.panel.title.text
    page.list_all()
    assert '4 of 6' in page.panel.title.text and page.preset.value == EVERYTHING


def test_a_rating_or_a_comment_is_no_inspection(page):
    page.press('i'); page.press('4')
    page.put(comment='look again')
    assert 'ada &lt;b&gt;: 0 of 6 inspected' in page.progress.text
    page.press('3')
    assert '1 of 6 inspected' in page.progress.text


def test_an_object_is_shown_as_it_was_labelled(page):
    page.panel.set_z(1.234, 'QSO')
    page.press('z'); page.press('4')
    assert 'saved' in page.saved.text
    page.step(1)
    assert page.saved.text == '' and page.panel.solution() == page.panel.pipeline
    page.press('g')  # another type, the redshift of the pipeline
    page.step(-1)
    assert page.panel.solution() == (1.234, 'QSO') and page.panel.z.value == '1.23400' and 'your label' in page.panel.shown.text
    assert 'quality 4' in page.label.text
    page.step(1)
    assert page.panel.solution() == (page.panel.pipeline[0], 'GALAXY')
    page.press('i')
    assert 'press a digit' in page.saved.text
    page.press('k')
    assert page.saved.text == ''


def test_headers_sort(page):
    ids, places = page.catalogue.column('TARGETID'), ['VI', 'interest', *page.table.names]
    page.key_event(dict(key=['header'], code=[str(places.index('Z'))], shift=[False], n=[1]))
    assert page.listing.rows.tolist() == [5, 4, 3, 2, 1, 0] and page.table.table.columns[places.index('Z')].title == 'Z ▼'
    page.sort_by_header(places.index('Z'))
    assert page.listing.rows.tolist() == [0, 1, 2, 3, 4, 5] and page.table.table.columns[places.index('Z')].title == 'Z ▲'
    page.sort_by_header(places.index('SPECTYPE'))
    assert page.listing.rows.tolist() == [1, 3, 5, 0, 2, 4] and page.sort.value == 'SPECTYPE'
    page.open(2); page.press('2')
    page.open(4); page.press('4')
    page.sort_by_header(0)
    assert page.listing.rows[:2].tolist() == [4, 2] and page.table.source.data['c0'][:3] == ['4', '2', '']
    page.sort_by_header(99)
    assert len(page.listing) == len(ids)


def test_a_list_that_is_too_small_for_the_bound_says_what_it_reaches(page):
    page.at_most.value = '20 %'
    page.draw_at_random()
    assert 'this catalogue is too small' in page.promise.text and 'at most 39 %' in page.promise.text and 'more label' not in page.promise.text


def test_exports_name_their_folder(page, tmp_path):
    page.press('4')
    page.export_labels()
    assert str(tmp_path) in page.news.text and 'catalogue-vi.csv' in page.news.text
    page.change(sort='Z')
    assert page.news.text == ''


def test_labels_have_no_empty_columns(page):
    from skyseek.pipeline.explorer import Explorer
    explorer = Explorer(page.catalogue, page.store, port=0)
    try:
        page.press('4')
        assert 'FILE' not in explorer.labels.colnames and explorer.labels['VI_QUALITY'].tolist() == [4]
    finally: explorer.stop()


def test_names_of_lines_stay_in_the_figure_and_large_numbers_are_figures(page):
    lines = page.panel.figures.sources['lines'].data
    assert set(lines['side']) <= {'left', 'center', 'right'} and len(lines['side']) == len(lines['x'])
    assert page.panel.figures.spectrum.toolbar.active_scroll is None and page.map.figure.toolbar.active_scroll is None
    assert 'toExponential' in page.panel.figures.chi2.yaxis.formatter.code


def test_codes_are_put_in_words():
    from skyseek.pipeline.explorer_words import WHY, evidence_words
    from skyseek.anomaly.scores import SCORES
    assert set(WHY) == set(SCORES)
    words = dict(evidence_words(dict(ANOMALY=2., ANOMALY_RANK=3, ANOMALY_WHY='ROBUST', NATURE='ARTEFACT', NATURE_TEXT='step by -200 % of the mean flux at 5780 Angstrom')))
    assert words['anomaly'].startswith('as odd as one in 100') and 'hardly beats' in words['anomaly'] and 'jumps by -200 %' in words['anomaly']
