"""Fifty objects inspected by keys in a real browser; the labels train, rank, and guarantee."""
import re
import time

import numpy as np
import pytest
from astropy.table import Table
from commands import errors, skyseek

from skyseek.data.desi import extract_file
from skyseek.data.files import write_table
from skyseek.data.redshift_tables import read_truth
from skyseek.data.truth import label_wrong
from skyseek.pipeline.catalogue import score
from skyseek.pipeline.explorer import explore
from skyseek.pipeline.explorer_table import open_catalogue
from skyseek.pipeline.label_uses import draw_order
from skyseek.pipeline.labels import rank_again
from skyseek.pipeline.score import load_weights
from skyseek.redshift.scan import redshift_file
from skyseek.simulate.mock_survey import simulate_survey
from windows import Window

N, HPX = 80, 27245
TYPE_KEYS = {'GALAXY': 'g', 'QSO': 'q', 'STAR': 's'}


@pytest.fixture(scope='module')
def survey(tmp_path_factory, weights):
    "Folder with eighty simulated fibres and their catalogue; the truth of each row; whether its redshift is wrong."
    folder = tmp_path_factory.mktemp('fifty')
    coadd = simulate_survey(folder / 'raw', N, seed=3, program='dark', hpx=HPX)
    redshift_file(coadd, coadd.with_name(f'redrock-main-dark-{HPX}.fits'))
    extract_file(coadd, folder / f'spectra-main-dark-{HPX}.fits')
    catalogue = score(folder / f'spectra-main-dark-{HPX}.fits', weights)
    write_table(catalogue, folder / 'catalogue.fits', 'CATALOGUE')
    truth = read_truth([coadd.with_name(f'truth-main-dark-{HPX}.fits')])
    at = {t: k for k, t in enumerate(truth['TARGETID'].tolist())}
    truth = truth[[at[t] for t in catalogue['TARGETID'].tolist()]]
    return folder, truth, label_wrong(catalogue, truth, .001)['Z_WRONG']


def inspect(w, k, z, kind, is_wrong):
    "What an inspector who knows the truth does with one object."
    w.page.locator('.object').get_by_text(re.compile(rf'(?<!\d){k + 1} of 50(?!\d)')).first.wait_for()
    target = w.target()
    if is_wrong(target):
        w.field('type').select_option(kind[target])
        w.type_into(w.field('z'), f'{z[target]:.6f}')
        w.press('z')
    w.press(f'4 {TYPE_KEYS[kind[target]]}')  # as fast as one types; what arrived is counted at the end
    if k < 12: w.press(f'i {k % 6}')
    w.press('n')
    return target


def test_fifty_objects_by_keys(survey, chromium, tmp_path, monkeypatch, shortly):
    folder, truth, wrong = survey
    cat = open_catalogue(folder / 'catalogue.fits')
    seed = next(s for s in range(1000) if wrong[draw_order(cat, s)[:50]].sum() >= 11)
    monkeypatch.setattr('skyseek.pipeline.labels.secrets.randbelow', lambda n: seed)
    ids = truth['TARGETID'].tolist()
    z, kind = (dict(zip(ids, truth[name].tolist())) for name in ('TRUE_Z', 'TRUE_SPECTYPE'))
    explorer = explore(folder / 'catalogue.fits', inspector='me', port=0)
    try:
        w = Window(chromium, explorer.address, scale=.5)  # a quarter of the pixels to draw
        w.button('draw at random for the guarantee')
        w.says('50 objects at random: label them all')
        w.field('at most wrong').select_option('20 %')
        w.says('0 labels of 50 drawn: no guarantee of at most 20 % wrong redshifts yet, about 14 more labels needed')
        start, wrong_ids = time.perf_counter(), set(np.array(ids)[wrong].tolist())
        done = [inspect(w, k, z, kind, wrong_ids.__contains__) for k in range(50)]
        w.says(f'50 of {N - 1} inspected')
        seconds = time.perf_counter() - start
        assert len(set(done)) == 50 and not w.errors
        w.says('50 labels of 50 drawn: at most 20 % of the redshifts')
        w.button('rank again')
        w.says('ranked again by the ratings so far')
        first, again = w.target(), rank_again(explorer.catalogue, explorer.store)
        w.button('export labels')
        w.says('catalogue-keep.csv')
        promise = explorer.store.guarantee(.2)
    finally: explorer.stop()
    print(f'fifty objects in {seconds:.0f} s')
    labels = read_truth([folder / 'catalogue-truth.csv'])
    assert sorted(labels['TARGETID'].tolist()) == sorted(done)
    assert np.allclose(labels['TRUE_Z'], [z[t] for t in labels['TARGETID'].tolist()], atol=.002)
    kept = skyseek('keep', folder / 'catalogue.fits', '--truth', folder / 'catalogue-keep.csv', '--at-most', .2, '-o', tmp_path / 'kept.fits')
    assert kept.returncode == 0 and len(Table.read(tmp_path / 'kept.fits')) == promise['retained'], kept.stderr
    ranked = skyseek('rank', folder / 'catalogue.fits', '--marks', folder / 'catalogue-ratings.csv', '-o', tmp_path / 'ranked.fits')
    assert ranked.returncode == 0, ranked.stderr
    order = Table.read(tmp_path / 'ranked.fits')['TARGETID'].tolist()
    assert order == cat.column('TARGETID')[np.argsort(-again, kind='stable')].tolist()  # the page's order is the command's
    assert first == next(t for t in order if t in done)
    trained = skyseek('train', folder / 'raw', '--truth', folder / 'catalogue-truth.csv', '--all', '--learn', 'none', '-o', tmp_path / 'weights', '--device', 'cpu')
    assert trained.returncode == 0 and (tmp_path / 'weights' / 'classifier').is_dir(), errors(trained)
    again = score(folder / f'spectra-main-dark-{HPX}.fits', load_weights(tmp_path / 'weights'))
    assert np.isfinite(again['P_Z_WRONG']).all()
