"""What is claimed of probabilities, labels and weights: no label on two sides, no two numbers that contradict each other, no set of weights that is half old."""
import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.table import Table, vstack
from sklearn.metrics import average_precision_score

from skyseek.pipeline import score as catalogue_module
from skyseek.pipeline.catalogue import make_catalogue, read_catalogue, write_catalogue
from skyseek.pipeline.score import load_weights, score_files
from skyseek.detect.classifier import WrongClassifier
from skyseek.pipeline.cli import main
from skyseek.detect.metrics import evaluate, evaluate_catalogue
from skyseek.redshift.second_look import with_solutions
from skyseek.redshift.second_opinion import Judge, differs_from, reconcile
from skyseek.data.desi import arm_quality
from skyseek.learn.features import metadata_table, normalise
from skyseek.learn.training import shipped
from skyseek.detect.labelled_data import find_coadds, read_labelled
from skyseek.redshift.bases import library_bases
from skyseek.redshift.scan import redshift_file, scan_redshift
from skyseek.simulate.mock_survey import simulate_survey
from skyseek.data.spectra import Spectra, wave_desi
from skyseek.learn.training import load_model, save_model
from skyseek.detect.train_weights import LabelledSettings, train_weights
from skyseek.detect.guarantee import guarantee_keep, keep_sample
from skyseek.data.truth import (
    fold_of, half_of, label_unseen, label_wrong, match_truth, redshift_error, split_of, truth_rows,
)

SLOW_FIXTURES = {'trained'}  # see conftest.py

IDS = 39628_000_000_000_000 + 7*np.arange(60_000)


# Targets and truth

@pytest.mark.parametrize('part', ['train', 'validation', 'test', 'first half', 'second half', 'fold 3'])
def test_split_halves_and_folds_are_independent(part):
    """Whatever part of the targets is taken for one purpose, the other purposes divide it evenly."""
    inside = {'first half': half_of(IDS), 'second half': ~half_of(IDS), 'fold 3': fold_of(IDS) == 3}
    ids = IDS[inside[part] if part in inside else split_of(IDS) == part]
    sides = np.array([(split_of(ids) == s).mean() for s in ('train', 'validation', 'test')])
    halves, folds = half_of(ids).mean(), np.bincount(fold_of(ids), minlength=5)/len(ids)
    if part not in ('train', 'validation', 'test'): np.testing.assert_allclose(sides, [.7, .15, .15], atol=.015)
    if 'half' not in part: assert abs(halves - .5) < .02
    if 'fold' not in part: np.testing.assert_allclose(folds, .2, atol=.02)


def test_a_redshift_error_is_relative_to_the_truth():
    np.testing.assert_allclose(redshift_error([3., .3], [.3, 3.]), [2.7/1.3, 2.7/4])
    label = label_wrong(Table({'Z': [3.], 'SPECTYPE': ['QSO']}), Table({'TRUE_Z': [.3], 'TRUE_SPECTYPE': ['GALAXY']}))
    np.testing.assert_allclose(label['DELTA_Z'], 2.7/1.3)


@pytest.fixture(scope='module')
def survey(tmp_path_factory):
    """A simulated coadd of 260 fibres with the redshifts of a simple pipeline, and its truth."""
    folder = tmp_path_factory.mktemp('survey')
    coadd = simulate_survey(folder, 260, seed=11, hpx=3)
    redshift_file(coadd, str(coadd).replace('coadd-', 'redrock-'), library_bases())
    return Path(coadd)


def truth_of(coadd): return coadd.with_name(coadd.name.replace('coadd-', 'truth-'))


@pytest.fixture(scope='module')
def scored(survey, weights):
    tables, failed = score_files([survey], weights, progress=False)
    assert not failed
    return tables


@pytest.fixture(scope='module')
def catalogue(scored, weights): return make_catalogue(scored, weights)


@pytest.mark.parametrize('better', [0, 1])
def test_all_columns_of_the_truth_come_from_its_better_row(survey, tmp_path, better):
    """Two rows of one target: redshift, type, class, flags and subtype are those of the better inspection, wherever it stands."""
    truth = Table.read(truth_of(survey), 1)
    truth['QUALITY'] = 4.
    other = truth.copy()
    for name, word in (('CLASS', 'XXX'), ('FLAGS', 'XXX'), ('SUBTYPE', 'XXX')): other[name] = np.full(len(other), word)
    other['TRUE_Z'], other['QUALITY'] = 9., 2.
    both = vstack([other, truth] if better else [truth, other], metadata_conflicts='silent')
    spectra = read_labelled(survey, both)
    np.testing.assert_array_equal(spectra.meta['TRUE_Z'], match_truth(spectra.meta['TARGETID'], truth)['TRUE_Z'])
    assert not any('XXX' in set(spectra.meta[name]) for name in ('CLASS', 'FLAGS', 'TRUE_SUBTYPE'))
    assert (truth_rows(truth['TARGETID'][:5], both) == np.arange(5) + better*len(other)).all()


# No measurement on labels that were used

@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Weights from 520 labelled spectra with columns alone, and the catalogue and truth of the same spectra."""
    folder = tmp_path_factory.mktemp('trained')
    for hpx in (1, 2):
        coadd = simulate_survey(folder, 260, seed=40 + hpx, hpx=hpx)
        redshift_file(coadd, str(coadd).replace('coadd-', 'redrock-'), library_bases())
    spectra = read_labelled(folder, keep_sky=True)
    truth = vstack([Table.read(p, 1) for p in sorted(folder.glob('truth-*.fits'))], metadata_conflicts='silent')
    result = train_weights(spectra, folder/'weights', LabelledSettings(columns='portable', epochs=0, tolerance=.0033), say=lambda text: None)
    tables, _ = score_files(sorted(folder.glob('coadd-*.fits')), load_weights(folder/'weights'), progress=False)
    return folder, spectra, truth, result, make_catalogue(tables, load_weights(folder/'weights'))


def test_training_leaves_the_test_side_out(trained):
    folder, spectra, _, result, catalogue = trained
    used, side = np.asarray(catalogue['LABEL_USED']) == 1, split_of(catalogue['TARGETID'])
    assert used.any() and not used[side == 'test'].any() and used[side != 'test'].mean() > .9
    assert catalogue.meta['LABELS'] == result['model'].config['labels'] == used.sum()
    assert 'test side were left out' in (folder/'weights/classifier/card.md').read_text()


def test_a_report_on_ones_own_labels_is_no_better_than_out_of_fold(trained):
    """Trained, scored and evaluated on one table: what is reported does not beat what members say of targets they have not seen."""
    _, spectra, truth, result, catalogue = trained
    reported = evaluate_catalogue(catalogue, truth, tolerance=.0033, resamples=20)['Z_WRONG']
    own = reported[reported['detector'] == 'skyseek'][0]
    label = label_wrong(catalogue, match_truth(catalogue['TARGETID'], truth), .0033)
    seen = np.asarray((catalogue['LABEL_USED'] == 1) & label['KNOWN'])
    on_training = average_precision_score(label['Z_WRONG'][seen], catalogue['P_Z_WRONG'][seen])
    wrong = label_wrong(spectra.meta, spectra.meta, .0033)
    order = {int(t): i for i, t in enumerate(spectra.meta['TARGETID'])}
    rows = [order[int(t)] for t in result['model'].labels]
    p = dict(zip(result['targetid'].tolist(), result['p'][:, 0]))
    honest = average_precision_score(wrong['Z_WRONG'][rows], [p[int(t)] for t in result['model'].labels])
    assert reported.meta['n'] == np.sum(label['KNOWN'] & (split_of(catalogue['TARGETID']) == 'test'))
    assert own['AP'] < honest + .12 and on_training > honest + .03, (own['AP'], honest, on_training)


def test_labels_that_were_all_used_are_refused(trained, tmp_path):
    _, _, truth, _, catalogue = trained
    spent = catalogue.copy()
    spent['LABEL_USED'] = 1
    with pytest.raises(ValueError, match='that the weights were not trained on'): evaluate_catalogue(spent, truth)
    with pytest.raises(ValueError, match='the weights were trained on'): keep_sample(spent, truth)
    old = catalogue.copy()
    old.remove_column('LABEL_USED')
    old.meta.clear()  # as after a tool that drops the header
    for call in (lambda: evaluate_catalogue(old, truth), lambda: keep_sample(old, truth), lambda: label_unseen(old)):
        with pytest.raises(ValueError, match='does not say which labels'): call()


def test_rows_of_unknown_training_are_left_out(trained):
    """A catalogue of this version and one of 0.1, put together; and a reference that has the reported targets too."""
    _, _, truth, _, catalogue = trained
    scores = catalogue.copy()
    scores.remove_column('ANOMALY_RANK')
    old = scores[::2]
    old.remove_column('LABEL_USED')
    both = make_catalogue([scores[1::2], old])
    assert set(both['LABEL_USED']) == {-1, 0, 1} and not label_unseen(both)[-len(old):].any()
    assert not label_unseen(vstack([catalogue[1::2], old], metadata_conflicts='silent'))[-len(old):].any()
    twice = evaluate_catalogue(catalogue, truth, .0033, (catalogue, truth), resamples=20)['Z_WRONG']
    assert twice[twice['detector'] == 'boosted trees']['AP'][0] < .95 and f"trees trained on {twice.meta['n']}" not in twice.meta['how']


def test_labels_of_the_shipped_judge_are_on_the_record(trained):
    """These weights kept the shipped judge, so its labels are no test of them either; a judge of their own has none of these."""
    weights, package = load_weights(trained[0]/'weights'), load_weights()
    theirs, own = package.classifier.labels.numpy(), weights.classifier.labels.numpy()
    assert (weights.has_seen(theirs) == 1).all() and (weights.has_seen(own) == 1).all() and (weights.has_seen(own + 10**15) == 0).all()
    assert (replace(weights, judge_labels=()).has_seen(theirs) == 0).all()


@pytest.mark.parametrize('suffix', ['.fits', '.parquet'])
def test_the_record_of_labels_survives_the_disk(trained, tmp_path, suffix):
    *_, catalogue = trained
    again = read_catalogue(write_catalogue(catalogue, tmp_path/f'c{suffix}'))
    np.testing.assert_array_equal(again['LABEL_USED'], catalogue['LABEL_USED'])
    assert again.meta['LABELS'] == catalogue.meta['LABELS'] and again.meta['WEIGHTS'] == 'weights'


@pytest.mark.slow
def test_a_guarantee_holds_though_the_weights_have_seen_labels(caplog):
    """200 surveys in which the classifier knows 70 % of the labels by heart: the guarantee breaks no more often than it says."""
    broken = kept = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        n, ids = 6000, rng.choice(10**9, 6000, replace=False)
        wrong, used = rng.random(n) < .1, rng.random(n) < .7
        p = 1/(1 + np.exp(-(3*rng.normal(size=n) - 4 + 3*wrong)))
        p = np.where(used, np.where(wrong, .9, p*.01), p)
        z = np.where(wrong, 2., 1.)
        scores = Table({'TARGETID': ids, 'Z': z, 'SPECTYPE': np.full(n, 'GALAXY'), 'P_Z_WRONG': p, 'LABEL_USED': used})
        truth = Table({'TARGETID': ids, 'TRUE_Z': np.ones(n), 'TRUE_SPECTYPE': np.full(n, 'GALAXY')})
        survey, hidden = scores[~used], wrong[~used]  # what comes after: targets that nobody has labelled
        try: _, found = keep_sample(scores, truth, .05, .9)
        except ValueError: continue
        left = survey['P_Z_WRONG'] <= found.threshold
        kept, broken = kept + 1, broken + (hidden[left].mean() > .05)
    assert kept > 100 and broken <= .1*200 + 2*np.sqrt(200*.1*.9), (kept, broken)


# Probabilities

def test_brier_scores_have_honest_intervals_and_ece_none():
    inside, n = 0, 300
    for seed in range(60):
        rng = np.random.default_rng(seed)
        p = rng.beta(.4, 1.6, n)
        found = evaluate(rng.random(n) < p, p, .5, probability=True, resamples=60, seed=seed)
        inside += found['BRIER'][1] <= np.mean(p*(1 - p)) <= found['BRIER'][2]
        assert np.isnan(found['ECE'][1:]).all() and found['BRIER'][1] <= found['BRIER'][0] <= found['BRIER'][2]
        assert .2 < found['ECE'][0]/found['ECE_PERFECT'][0] < 3
    assert 28 <= inside <= 56


def consistent(t):
    known = np.isfinite(np.asarray(t['P_Z_WRONG'], float)) & np.isfinite(np.asarray(t['P_Z_PIPE'], float))
    t = t[known]
    beyond = abs(t['Z_ALT'] - t['Z']) > .0033*(1 + t['Z'])
    assert (t['P_Z_WRONG'] >= 1 - t['P_Z_PIPE'] - 2e-6).all()
    types = [np.char.strip(np.asarray(t[c]).astype(str)) for c in ('SPECTYPE_ALT', 'SPECTYPE_ALT2')]
    parts = [kind != np.char.strip(np.asarray(t['SPECTYPE']).astype(str)) for kind in types]
    p = [np.nan_to_num(np.asarray(t[c], float)) for c in ('P_ALT', 'P_ALT2')]
    assert (sum(q*o for q, o in zip(p, parts)) <= t['P_S_WRONG'] + 3e-6).all()
    assert (sum(q*~o for q, o in zip(p, parts)) <= 1 - t['P_S_WRONG'] + 3e-6).all()
    assert (t['P_ALT'] <= np.where(beyond, t['P_Z_WRONG'], 1) + 2e-6).all()
    assert (np.asarray(t['P_ALT'] + t['P_ALT2'] + t['P_NONE']) < 1 + 1e-5).all()
    assert not np.any(t['FLAG_ALT'] & ~(t['FLAG_Z_WRONG'] | t['FLAG_S_WRONG']))


@pytest.mark.parametrize('rates', [(None, None), (.02, None), (.6, .3), (None, .01)])
def test_probabilities_of_a_row_do_not_contradict_each_other(scored, weights, rates):
    table = make_catalogue([t.copy() for t in scored], weights, rates)
    consistent(table)
    assert 'P_S_PIPE' not in table.colnames and 'CAUSE_P' not in table.colnames
    for name, words in (('P_Z_WRONG', '0.001'), ('P_Z_PIPE', '1000 km/s'), ('P_ALT', '1000 km/s'), ('CAUSE_SCORE', 'no probability')):
        assert words in table[name].description


def test_contradictions_are_resolved_and_the_wider_tolerance_too():
    opinion = Table({'Z_ALT': [1., .3], 'ZERR_ALT': [0., 0.], 'SPECTYPE_ALT': ['QSO', 'STAR'], 'P_ALT': [.9, .6], 'Z_ALT2': [.3, .3], 'ZERR_ALT2': [0., 0.],
                     'SPECTYPE_ALT2': ['GALAXY', 'GALAXY'], 'P_ALT2': [.05, .35], 'P_Z_PIPE': [.05, .97], 'P_NONE': [.05, .05]})
    given, pipeline = [[.2, .95], [.6, .1]], ([.3, .3], ['GALAXY', 'GALAXY'])
    p, new = reconcile(given, opinion, .001, *pipeline, informed=False)
    np.testing.assert_allclose(p, [[.95, .95], [.6, .1]], rtol=1e-6)
    np.testing.assert_allclose(new['P_ALT'], [.9, .35])
    assert list(new['SPECTYPE_ALT']) == ['QSO', 'GALAXY'] and list(differs_from(new, [.3, .3], ['GALAXY']*2)) == [True, False]
    np.testing.assert_allclose(reconcile(given, opinion, .01, informed=False)[0][:, 0], [.2, .03], rtol=1e-5)
    given = [[.2, .3], [.6, .1]]
    p, new = reconcile(given, opinion, .001, *pipeline)  # the opinion follows a classifier that has seen it
    np.testing.assert_allclose(p, given)
    np.testing.assert_allclose(new['P_Z_PIPE'], [.8, .97])
    np.testing.assert_allclose(new['P_ALT'], [.7, .35], rtol=1e-6)
    assert list(new['SPECTYPE_ALT']) == ['GALAXY', 'GALAXY'] and np.isclose(new['P_ALT2'][0], .9*.2/.95)
    assert (1 - new['P_Z_PIPE'] <= p[:, 0] + 1e-9).all() and (1 - reconcile(given, opinion, .01, *pipeline)[1]['P_Z_PIPE'] >= p[:, 0] - 1e-9).all()


def test_causes_are_named_for_what_is_flagged_alone(catalogue):
    flagged = np.asarray(catalogue['FLAG_Z_WRONG'] | catalogue['FLAG_S_WRONG'])
    assert flagged.any() and (np.asarray(catalogue['CAUSE'] != '') == flagged).all()


def test_ours_is_the_solution_of_the_catalogue(survey, catalogue):
    """Evidence and causes speak of Z_ALT, also where it is not the deepest minimum of the scan."""
    from skyseek.explain.cases import open_cases
    from skyseek.explain.inspect import Evidence, OURS
    spectra = read_labelled(survey)
    row = {int(t): i for i, t in enumerate(catalogue['TARGETID'])}
    rows = np.array([row[int(t)] for t in spectra.meta['TARGETID'][:12]])
    spectra, fit = spectra[:12], scan_redshift(spectra[:12])
    second = catalogue[rows]
    for name in ('Z_ALT', 'ZERR_ALT', 'SPECTYPE_ALT'): second[name] = second[f'{name}2']
    has = np.flatnonzero(np.isfinite(second['Z_ALT']))
    assert len(has) > 3
    ours = with_solutions(fit, spectra, second)
    np.testing.assert_allclose(ours.table['Z'][has], second['Z_ALT'][has])
    cases = open_cases(spectra[has], ours[has])
    np.testing.assert_allclose([c.ours['Z'] for c in cases], second['Z_ALT'][has])
    for i in has[:2]:
        evidence = Evidence(spectra[[i]], fit[[i]], scores=second[i])
        assert abs(evidence.answers[OURS][0] - second['Z_ALT'][i]) < 1e-9 and f"z = {second['Z_ALT'][i]:.5f}" in evidence.text()


def test_chi2_and_deltachi2_of_our_files_are_of_one_kind(survey):
    """CHI2 + DELTACHI2 of the best solution is the cost of the next one."""
    spectra = read_labelled(survey)[:30]
    fit = scan_redshift(spectra)
    table, checked = fit.to_table(), 0
    for i in range(len(spectra)):
        m = fit.minima[fit.minima['ROW'] == i]
        cost = np.sort(np.asarray(m['CHI2'] + m['PENALTY']))
        if len(cost) < 2: continue
        assert abs(table['CHI2'][i] - cost[0]) < 1e-6*cost[0]
        assert np.abs(table['CHI2'][i] + table['DELTACHI2'][i] - cost[1:]).min() < 1e-6*cost[0] + 1e-6
        checked += 1
    assert checked > 20


# Weights on disk

def spoil_rename(monkeypatch, fail_at):
    """Let the n-th rename of a folder fail."""
    real, count = Path.rename, [0]

    def rename(self, target):
        count[0] += 1
        if count[0] == fail_at: raise OSError(28, 'No space left on device')
        return real(self, target)
    monkeypatch.setattr(Path, 'rename', rename)


@pytest.mark.parametrize('fail_at', [1, 2])
def test_a_model_survives_a_failing_rename(tmp_path, monkeypatch, fail_at):
    old = WrongClassifier(members=1)
    save_model(old, tmp_path/'model')
    spoil_rename(monkeypatch, fail_at)
    with pytest.raises(OSError): save_model(WrongClassifier(members=2), tmp_path/'model')
    monkeypatch.undo()
    assert load_model(tmp_path/'model', WrongClassifier).config['members'] == 1
    assert [p.name for p in tmp_path.iterdir()] == ['model']


KILLED = """
import os, sys
from pathlib import Path
from skyseek.detect.classifier import WrongClassifier
from skyseek.learn.training import save_model
real, count = Path.rename, [0]
def rename(self, target):
    count[0] += 1
    if count[0] == 2: os.kill(os.getpid(), 9)
    return real(self, target)
Path.rename = rename
save_model(WrongClassifier(members=2), sys.argv[1])
"""


def test_a_kill_between_two_renames_loses_nothing(tmp_path):
    save_model(WrongClassifier(members=1), tmp_path/'model')
    done = subprocess.run([sys.executable, '-c', KILLED, str(tmp_path/'model')], capture_output=True)
    assert done.returncode == -9 and not (tmp_path/'model').exists()
    assert load_model(tmp_path/'model', WrongClassifier).config['members'] == 1


@pytest.mark.parametrize('part', ['autoencoder', 'judge', 'classifier', 'familiarity'])
def test_parts_of_two_sets_are_refused(trained, tmp_path, part):
    """Weights of one training with a part of another one: whoever mixes them is told."""
    folder = tmp_path/'weights'
    shutil.copytree(trained[0]/'weights', folder) if (trained[0]/'weights/familiarity').exists() or part != 'familiarity' else shutil.copytree(str(shipped('classifier').parent), folder)
    cls = dict(autoencoder='Autoencoder', judge='Judge', classifier='WrongClassifier', familiarity='Familiarity')[part]
    from skyseek.learn.autoencoder import Autoencoder
    from skyseek.detect.familiarity import Familiarity
    kinds = dict(Autoencoder=Autoencoder, Judge=Judge, WrongClassifier=WrongClassifier, Familiarity=Familiarity)
    config = json.loads((folder/part/'config.json').read_text())
    model = load_model(folder/part, kinds[cls])
    if part in ('classifier', 'familiarity'): save_model(model, folder/part, **config['extra'] | dict(autoencoder='0'*16))
    else:
        with torch.no_grad(): next(model.parameters()).add_(.1)
        save_model(model, folder/part, **config['extra'])
    with pytest.raises(ValueError, match='another'): load_weights(folder)


def test_a_set_of_weights_is_written_whole_or_not_at_all(trained, tmp_path, monkeypatch):
    """Training that dies while it writes leaves the old set as it was."""
    folder, spectra, *_ = trained
    shutil.copytree(folder/'weights', tmp_path/'weights')
    before = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
    from skyseek.detect import train_weights as module
    real, count = module.write_model, [0]

    def dying(*args, **kwargs):
        count[0] += 1
        if count[0] == 3: raise KeyboardInterrupt
        return real(*args, **kwargs)
    monkeypatch.setattr(module, 'write_model', dying)
    monkeypatch.setattr(module, 'fit_classifier', lambda inputs, wrong, *a, **k: (WrongClassifier(['Z'], members=5), np.full(wrong.shape, .3)))
    with pytest.raises(KeyboardInterrupt): train_weights(spectra, tmp_path/'weights', LabelledSettings(columns='portable', seed=1))
    assert {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()} == before


def test_weights_without_a_judge_say_whose_they_take(trained, tmp_path, caplog):
    shutil.copytree(trained[0]/'weights', tmp_path/'weights')
    shutil.rmtree(tmp_path/'weights/judge')
    with caplog.at_level(logging.WARNING): weights = load_weights(tmp_path/'weights')
    assert "has no judge/" in caplog.text and not weights.own_judge
    assert make_catalogue([Table({'TARGETID': [1], 'P_Z_WRONG': [.1], 'P_S_WRONG': [.1]})], weights).meta['JUDGE'] == 'shipped'


@pytest.mark.parametrize('change', [dict(extra=None), dict(extra=[]), dict(config=[]), dict(inputs=99), dict(extra=dict(thresholds='high')), dict(extra=dict(thresholds=[.5])),
                                    dict(extra=dict(rates=[.1, 7])), 'brackets', 'null', '5'], ids=str)
def test_odd_configurations_of_weights_are_one_line(tmp_path, change, capsys):
    folder = tmp_path/'weights'
    shutil.copytree(str(shipped('classifier').parent), folder)
    path = folder/'classifier/config.json'
    config = json.loads(path.read_text())
    if isinstance(change, dict):
        config |= change
        if change.get('extra', 0) is None: del config['extra']
        path.write_text(json.dumps(config))
    else: path.write_text(dict(brackets='['*100_000).get(change, change))
    with pytest.raises(ValueError) as error: load_weights(folder)
    assert str(folder/'classifier') in str(error.value) and len(str(error.value).splitlines()) == 1


# What models see is what they were trained on: raise the `inputs` of the class if one of these numbers has to change

def test_inputs_of_models_are_those_of_their_version():
    wave, x = wave_desi(), np.linspace(0, 6*np.pi, 7781)
    flux = np.stack([2 + np.sin(x), 1 + .3*np.cos(2*x)])
    ivar = np.stack([np.full(7781, 4.), np.where(wave > 9000, 0, 9.)])
    meta = Table({'TARGETID': [1, 2], 'Z': [.7, 2.1], 'ZERR': [1e-4, 3e-3], 'ZWARN': [0, 4], 'CHI2': [8000., 9100.], 'NPIXELS': [7700, 7000], 'SPECTYPE': ['GALAXY', 'QSO'], 'DELTACHI2': [30., 8.]})
    spectra = Spectra(wave, flux, ivar, meta)
    f, w, s = normalise(spectra)
    columns, quality = metadata_table(spectra), arm_quality(spectra)
    found = [*s, *f[:, 1000], *w[:, 1000], *columns['CHI2_PIXEL'], *columns['DELTACHI2'], *quality['SN_B'], *quality['GOOD_Z']]
    np.testing.assert_allclose(found, INPUTS, rtol=2e-5)


INPUTS = [2.121305, 1.031046, 1.253219, 1.008547, 17.999744, 9.567494, 1.038961, 1.3, 30, 8, 4.01047, 3.35979, 1, .636727]


@pytest.mark.parametrize('cls', ['Autoencoder', 'WrongClassifier', 'Judge', 'Familiarity'])
def test_shipped_weights_have_the_versions_of_this_code(cls):
    from skyseek.detect import classifier, familiarity
    from skyseek.learn import autoencoder
    from skyseek.redshift import second_opinion
    assert dict(Autoencoder=autoencoder, WrongClassifier=classifier, Judge=second_opinion, Familiarity=familiarity)[cls].__dict__[cls].inputs == dict(Judge=2).get(cls, 1)


# Scoring

def test_a_fault_of_the_program_is_called_one(survey, weights, monkeypatch, caplog):
    def broken(*args, **kwargs): raise TypeError('unsupported operand')
    monkeypatch.setattr(catalogue_module, 'score_spectra', broken)
    with caplog.at_level(logging.DEBUG): tables, failed = score_files([survey], weights, progress=False)
    assert not tables and 'a fault of skyseek' in failed[str(survey)] and '--log debug' in failed[str(survey)]
    assert 'Traceback' in caplog.text or any(r.exc_info for r in caplog.records)


def test_a_coadd_without_redshifts_is_not_called_clean(survey, tmp_path, capsys):
    coadd = tmp_path/survey.name
    shutil.copy(survey, coadd)
    assert main(['score', str(coadd), '-o', str(tmp_path/'c.fits')]) == 0
    said = capsys.readouterr().out
    assert 'nothing was judged' in said and 'skyseek redshift' in said and '0 redshifts' not in said


@pytest.mark.slow
def test_a_file_given_twice_is_scored_once(survey, weights, caplog):
    with caplog.at_level(logging.WARNING): tables, _ = score_files([survey, survey.parent/'.'/survey.name], weights, progress=False)
    assert len(tables) == 1 and 'more than once' in caplog.text
    assert len(find_coadds([survey, survey.parent, survey.parent/'..'/survey.parent.name/survey.name])) == len(find_coadds(survey.parent))


def test_unknown_pixels_and_fibres_are_no_good_ones(scored, weights):
    """A survey without healpix and fibre status beside one with them."""
    other = scored[0][:3].copy()
    other.remove_columns([c for c in ('HEALPIX', 'COADD_FIBERSTATUS') if c in other.colnames])
    both = make_catalogue([scored[0][:3].copy(), other], weights)
    assert (both['HEALPIX'][3:] == -1).all() and (both['COADD_FIBERSTATUS'][3:] == -1).all() and (both['COADD_FIBERSTATUS'][:3] == 0).all()


# Commands

@pytest.mark.parametrize('command', ['score', 'keep', 'train'])
def test_nothing_is_overwritten_unasked(survey, tmp_path, command, capsys, caplog, catalogue):
    write_catalogue(catalogue, tmp_path/'cat.fits')
    mine = tmp_path/('mine' if command == 'train' else 'mine.fits')
    if command == 'train': mine.mkdir(); (mine/'thesis.tex').write_text('precious')
    else: mine.write_text('precious')
    arguments = dict(score=[survey, '-o', mine], keep=[tmp_path/'cat.fits', '-o', mine, '--truth', truth_of(survey)], train=[survey, '-o', mine])[command]
    assert main([command, *map(str, arguments)]) == 1
    kept = mine/'thesis.tex' if command == 'train' else mine
    assert kept.read_text() == 'precious'


@pytest.mark.parametrize('victim', ['coadd', 'redrock', 'truth', 'catalogue'])
def test_no_output_is_an_input(survey, tmp_path, victim, catalogue):
    folder = tmp_path/'s'
    shutil.copytree(survey.parent, folder)
    write_catalogue(catalogue, folder/'catalogue.fits')
    coadd = folder/survey.name
    files = dict(coadd=coadd, redrock=coadd.with_name(coadd.name.replace('coadd', 'redrock')), truth=truth_of(coadd), catalogue=folder/'catalogue.fits')
    before = files[victim].read_bytes()
    command = ['score', coadd] if victim in ('coadd', 'redrock') else ['keep', files['catalogue'], '--truth', files['truth'], '--at-most', .9, '--confidence', .5]
    os.link(files[victim], tmp_path/'link.fits')
    for output in (files[victim], tmp_path/'link.fits'):
        assert main([*map(str, command), '-o', str(output), '--overwrite']) == 1
        assert files[victim].read_bytes() == before


def test_evaluate_says_which_targets_it_reports(trained, tmp_path, capsys):
    folder, _, truth, _, catalogue = trained
    write_catalogue(catalogue, tmp_path/'cat.fits')
    assert main(['evaluate', str(tmp_path/'cat.fits'), '--truth', *map(str, sorted(folder.glob('truth-*.fits')))]) == 0
    said = capsys.readouterr().out
    assert 'the test side of' in said and 'trees trained on' in said and 'ECE (perfect)' in said and 'BRIER' in said
    assert fits.getheader(tmp_path/'cat.fits', 1)['LABELS'] == catalogue['LABEL_USED'].sum()


def test_guarantee_keep_is_unchanged():
    rng = np.random.default_rng(0)
    wrong = rng.random(3000) < .02
    p = np.clip(.02 + .5*wrong*rng.random(3000), 0, 1)
    assert guarantee_keep(wrong, p, .01).holds
