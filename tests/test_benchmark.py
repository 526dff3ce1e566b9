"""The benchmark and the training of weights as commands, end to end on small simulated surveys: good input, bad input, and nothing seen twice."""
import shutil
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table
from commands import errors, skyseek

from skyseek.redshift.candidates import candidates
from skyseek.pipeline.benchmark import BenchmarkSettings, format_benchmark, run_benchmark
from skyseek.pipeline.score import load_weights
from skyseek.data.redshift_tables import read_redrock
from skyseek.pipeline.detectors import prepare_sample, read_sides
from skyseek.detect.metrics import average_precision
from skyseek.detect.cross_fit import cross_fit
from skyseek.redshift.candidates import join_candidates
from skyseek.learn.training import shipped
from skyseek.detect.labelled_data import is_labelled, read_labelled, wrong_answers
from skyseek.redshift.bases import library_bases
from skyseek.redshift.scan import redshift_file, scan_redshift
from skyseek.simulate.mock_survey import simulate_survey
from skyseek.data.truth import half_of, split_of
from surveys import write_pair, write_parts

pytestmark = pytest.mark.slow


def simulate(folder, hpx, n=130):
    """A coadd with truth and the scan's answers beside it."""
    coadd = simulate_survey(folder, n, seed=60 + hpx, hpx=hpx, program='dark' if hpx % 2 else 'bright')
    redshift_file(coadd, str(coadd).replace('coadd-', 'redrock-'), library_bases())
    return Path(coadd)


@pytest.fixture(scope='module')
def survey(tmp_path_factory):
    """A folder with train/ and validation/."""
    folder = tmp_path_factory.mktemp('labelled')
    for hpx, part in ((1, 'train'), (2, 'train'), (3, 'train'), (4, 'validation')): simulate(folder / part, hpx)
    return folder


QUICK = '--published-minutes', 0.02, '--resamples', 30, '--tolerance', 0.001, 0.0033, '--learn', 'judge'


@pytest.fixture(scope='module')
def done(survey, tmp_path_factory, train_shortly):
    out = tmp_path_factory.mktemp('out')
    with pytest.MonkeyPatch.context() as monkeypatch:
        train_shortly(monkeypatch)
        return skyseek('benchmark', survey, '-o', out / 'a', *QUICK), out / 'a'


def test_command_prints_the_table_and_writes_the_files(done):
    process, out = done
    assert process.returncode == 0, process.stderr
    for name in ('ZWARN ≠ 0', 'DELTACHI2', "DESI's rules", 'R of the scan', 'trees, published columns', 'trees, columns + evidence', 'first Skyseek', 'skyseek, no second opinion', '− spectrum', 'shipped weights'):
        assert name in process.stdout, name
    assert 'tolerance 0.0033' in process.stdout and 'Accepted proposals' in process.stdout and 'ZWARN == 0 keeps' in process.stdout
    assert {p.name for p in out.iterdir()} >= {'benchmark.txt', 'benchmark.ecsv', 'benchmark-scores.fits', 'benchmark-z_wrong.png', 'benchmark-corrections.png'}
    assert (out / 'benchmark.txt').read_text(encoding='utf-8').strip() in process.stdout
    assert (out / 'benchmark-z_wrong.png').read_bytes()[:4] == b'\x89PNG' and not list(out.glob('*tmp*'))
    assert len([line for line in process.stderr.splitlines() if line[2:3] == ':']) > 8, 'a line per step is missing'


def test_numbers_can_be_made_again_from_the_scores(done):
    _, out = done
    scores, table = Table.read(out / 'benchmark-scores.fits'), Table.read(out / 'benchmark.ecsv')
    ours = table[(table['detector'] == 'skyseek') & (table['metric'] == 'AP') & (table['label'] == 'Z_WRONG') & (table['tolerance'] == '0.001') & (table['group'] == 'all')]
    assert len(ours) == 1 and abs(ours['value'][0] - average_precision(scores['Z_WRONG'], scores['Z: skyseek'])) < 1e-6
    rates = table[table['metric'] != 'ECE']  # resampling adds noise to every bin, so a resampled ECE is larger
    inside = (rates['low'] <= rates['value'] + 1e-9) & (rates['value'] <= rates['high'] + 1e-9)
    assert inside.mean() > .95


def test_same_seed_same_numbers(survey):
    settings = BenchmarkSettings(others=(), learn='none', published_minutes=.01, parts=False, epochs=3, resamples=20)
    spectra, side = read_sides(survey)
    text = [format_benchmark(run_benchmark(spectra[::2], side[::2], settings)) for _ in range(2)]
    assert text[0] == text[1]


def test_no_target_is_on_two_sides(survey, tmp_path):
    spectra, side = read_sides(survey)
    ids = [set(np.asarray(spectra.meta['TARGETID'])[side == s].tolist()) for s in ('learn', 'test')]
    assert all(len(i) for i in ids) and not ids[0] & ids[1]
    shutil.copytree(survey, tmp_path / 'twice')
    for p in (survey / 'validation').iterdir(): shutil.copy(p, tmp_path / 'twice' / 'train')
    again, side_again = read_sides(tmp_path / 'twice')
    learned = lambda s, side: sorted(np.asarray(s.meta['TARGETID'])[is_labelled(s) & (side != 'test')])
    assert learned(again, side_again) == learned(spectra, side)


def test_several_files_are_split_by_target(survey):
    coadds = sorted(survey.glob('*/coadd-*.fits'))
    spectra, side = read_sides(coadds)
    again, side_again = read_sides(coadds[::-1])
    where = dict(zip(np.asarray(spectra.meta['TARGETID']).tolist(), side))
    assert len(spectra) == len(again) and all(where[t] == s for t, s in zip(np.asarray(again.meta['TARGETID']).tolist(), side_again))


def test_evidence_of_a_spectrum_does_not_know_its_label(survey, shortly):
    """Turn the label of one half of the targets upside down: the evidence of that half stays, that of the other half changes."""
    spectra = read_labelled(survey / 'train')
    before = cross_fit(spectra, 'judge').spectra.meta
    half = half_of(spectra.meta['TARGETID'])
    meta = spectra.meta.copy()
    meta['TRUE_Z'] = np.where(half, meta['TRUE_Z'] + .3, meta['TRUE_Z'])
    after = cross_fit(spectra.replace(meta=meta), 'judge').spectra.meta
    same = np.abs(np.asarray(before['EV_P_Z']) - np.asarray(after['EV_P_Z'])) < 1e-5
    assert same[half].all() and not same[~half].all()


def test_reported_targets_teach_nothing(survey, shortly):
    """Another truth for the reported targets changes their labels and nothing else."""
    spectra, side = read_sides(survey)
    meta = spectra.meta.copy()
    meta['TRUE_Z'] = np.where(side == 'test', meta['TRUE_Z'] + .3, meta['TRUE_Z'])
    a, b = prepare_sample(spectra, side, 'judge'), prepare_sample(spectra.replace(meta=meta), side, 'judge')
    assert np.array_equal(a.inputs['metadata'], b.inputs['metadata']) and np.array_equal(a.inputs['latent'], b.inputs['latent'])
    assert wrong_answers(b.spectra)[b.side == 'test', 0].all()


def test_join_candidates_keeps_rows(survey):
    spectra = read_labelled(survey / 'validation')[:40]
    parts = [candidates(s, scan_redshift(s)) for s in (spectra[:15], spectra[15:])]
    whole = join_candidates(parts)
    assert len(whole) == 40 and np.array_equal(whole.known.sum(1), np.concatenate([p.known.sum(1) for p in parts]))
    assert (whole.kind[whole.known] >= 0).all() and np.isinf(whole.cost[~whole.known]).all()


# Training

def test_train_command_writes_weights_that_score(survey, tmp_path):
    done = skyseek('train', survey / 'train', '-o', tmp_path / 'w', '--learn', 'judge', '--about', 'a small survey')
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / 'w').iterdir()} == {'autoencoder', 'classifier', 'judge'}
    weights = load_weights(tmp_path / 'w')
    assert weights.about == 'a small survey' and 'a small survey' in (tmp_path / 'w/classifier/card.md').read_text(encoding='utf-8')
    coadd = next((survey / 'validation').glob('coadd-*.fits'))
    scored = skyseek('score', coadd, '-o', tmp_path / 'c.fits', '--weights', tmp_path / 'w')
    assert scored.returncode == 0, scored.stderr
    p, truth = Table.read(tmp_path / 'c.fits'), read_labelled(coadd)
    assert np.array_equal(p['TARGETID'], truth.meta['TARGETID'])
    assert average_precision(wrong_answers(truth)[:, 0], p['P_Z_WRONG']) > 2*wrong_answers(truth)[:, 0].mean()


def test_few_labels_keep_what_is_shipped(survey, tmp_path, shortly):
    done = skyseek('train', *sorted((survey / 'train').glob('coadd-*.fits')), '-o', tmp_path / 'w')
    assert done.returncode == 0, done.stderr
    for part in ('autoencoder', 'judge'):
        assert (tmp_path / 'w' / part / 'model.safetensors').read_bytes() == (shipped(part) / 'model.safetensors').read_bytes()


def test_train_with_an_inspection_table(survey, tmp_path, shortly):
    """A truth table laid out as EDR's visual inspections, for some of the targets."""
    spectra = read_labelled(survey / 'train')
    rows = np.flatnonzero(is_labelled(spectra))[::2]
    meta, n = spectra.meta[rows], len(rows)
    vi = Table({'TARGETID': meta['TARGETID'], 'TILEID': np.full(n, 80605), 'FIBER': np.arange(n), 'TARGET_RA': meta['TARGET_RA'], 'TARGET_DEC': meta['TARGET_DEC'],
                'VI_Z': meta['TRUE_Z'], 'VI_QUALITY': np.where(np.arange(n) % 10, 4., 1.), 'VI_SPECTYPE': meta['TRUE_SPECTYPE']})
    vi.write(tmp_path / 'EDR_VI_ELG_v1.csv', format='ascii.csv')
    read = read_labelled(survey / 'train', tmp_path / 'EDR_VI_ELG_v1.csv')
    assert is_labelled(read).sum() == n - len(range(0, n, 10))
    assert (np.asarray(read.meta['TRUE_SPECTYPE'])[~is_labelled(read)] == '').all()
    done = skyseek('train', survey / 'train', '-o', tmp_path / 'w', '--truth', tmp_path / 'EDR_VI_ELG_v1.csv')
    left = (split_of(read.meta['TARGETID'][is_labelled(read)]) == 'test').sum()
    assert done.returncode == 0 and f'{is_labelled(read).sum() - left} labelled targets ({left} labelled' in done.stderr, done.stderr


# Bad input

def test_folder_without_coadds(tmp_path):
    for command in (('benchmark', tmp_path), ('train', tmp_path, '-o', tmp_path / 'w'), ('benchmark', tmp_path / 'nowhere')):
        done = skyseek(*command)
        assert done.returncode == 1 and len(errors(done)) == 1, done.stderr
        assert 'no coadd-*.fits' in errors(done)[0] or 'no such file' in errors(done)[0]


def test_truth_without_overlap(survey, tmp_path):
    Table({'TARGETID': [1, 2], 'TRUE_Z': [.1, .2], 'TRUE_SPECTYPE': ['GALAXY', 'QSO']}).write(tmp_path / 'truth-other.fits')
    for command in (('benchmark', survey), ('train', survey / 'train', '-o', tmp_path / 'w')):
        done = skyseek(*command, '--truth', tmp_path / 'truth-other.fits')
        assert done.returncode == 1 and len(errors(done)) == 1 and 'truth' in errors(done)[0], done.stderr


def test_one_bad_file_does_not_stop_the_others(survey, tmp_path, shortly):
    shutil.copytree(survey / 'train', tmp_path / 'train')
    (tmp_path / 'train/coadd-main-dark-99.fits').write_bytes(b'SIMPLE')
    write_pair(tmp_path / 'train')  # a sound coadd without truth
    (tmp_path / 'train/redrock-main-bright-2.fits').unlink()
    done = skyseek('train', tmp_path / 'train', '-o', tmp_path / 'w')
    assert done.returncode == 0, done.stderr
    line = [x for x in done.stderr.splitlines() if '3 of 5 files are left out' in x]
    assert len(line) == 1 and all(name in line[0] for name in ('dark-99', 'dark-9999', 'bright-2')), done.stderr


def test_too_few_wrong_objects(tmp_path):
    coadd = simulate(tmp_path, 7, 30)
    for command in (('benchmark', coadd), ('train', coadd, '-o', tmp_path / 'w')):
        done = skyseek(*command)
        assert done.returncode == 1 and len(errors(done)) == 1 and 'give more labelled targets' in errors(done)[0], done.stderr
    assert not (tmp_path / 'w').exists()


def test_one_class_only(survey, tmp_path, shortly):
    """Stars alone, and all of them called stars: no type is wrong, so that table is left out; redshifts are compared all the same."""
    shutil.copytree(survey / 'train', tmp_path / 'stars')
    for coadd in sorted((tmp_path / 'stars').glob('coadd-*.fits')):
        truth, answers = (Table.read(str(coadd).replace('coadd-', f'{kind}-'), hdu=1) for kind in ('truth', 'redrock'))
        truth['TRUE_SPECTYPE'] = np.where(truth['TRUE_SPECTYPE'] == 'SKY', 'SKY', np.char.strip(np.asarray(answers['SPECTYPE']).astype(str)))
        truth.write(str(coadd).replace('coadd-', 'truth-'), overwrite=True)
    done = skyseek('benchmark', tmp_path / 'stars', '--published-minutes', 0, '--no-parts', '--resamples', 20, '--tolerance', 0.0005, '--learn', 'none')
    assert done.returncode == 0, done.stderr
    assert 'S_WRONG: too few wrong ones' in done.stdout and 'Z_WRONG, tolerance 0.0005' in done.stdout and 'first Skyseek' not in done.stdout


def test_arguments_that_make_no_sense(survey, tmp_path):
    for command in (('benchmark', survey, '--tolerance', 0), ('benchmark', survey, '--tolerance', 'DESI'), ('benchmark', survey, '--published-minutes', -1), ('train', survey, '-o', tmp_path / 'w', '--tolerance', -1),
                    ('benchmark', survey, '--weights', tmp_path / 'nowhere', *QUICK)):
        done = skyseek(*command)
        assert done.returncode == 1 and len(errors(done)) == 1, (command, done.stderr)
        assert 'Traceback' not in done.stderr


def test_templates_of_different_widths_go_together(survey, tmp_path):
    """redrock with seven coefficients beside redrock with ten."""
    coadds = sorted((survey / 'train').glob('coadd-*.fits'))[:2]
    for coadd in coadds:
        for kind in ('coadd', 'truth', 'redrock'): shutil.copy(str(coadd).replace('coadd-', f'{kind}-'), tmp_path)
    path = tmp_path / coadds[0].name.replace('coadd-', 'redrock-')
    answers = read_redrock(path)
    answers['COEFF'] = np.asarray(answers['COEFF'])[:, :7]
    write_parts(path, {'REDSHIFTS': answers['TARGETID', 'Z', 'ZERR', 'ZWARN', 'CHI2', 'COEFF', 'NPIXELS', 'SPECTYPE', 'SUBTYPE', 'NCOEFF', 'DELTACHI2']})
    spectra = read_labelled(tmp_path)
    assert np.asarray(spectra.meta['COEFF']).shape == (len(spectra), 10) and np.isfinite(np.asarray(spectra.meta['COEFF'])).all()
