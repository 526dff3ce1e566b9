"""Whole runs of the command line: good input, bad input, interruptions, two processes."""
import os
import resource
import shlex
import signal
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from commands import errors, skyseek
from safetensors.numpy import load_file

from skyseek.learn.shards import read_features, write_features

ENV = dict(os.environ, OMP_NUM_THREADS='1')
SKYSEEK = [sys.executable, '-c', 'import sys; from skyseek.pipeline.cli import main; sys.exit(main())']


@pytest.fixture(scope='session')
def survey(tmp_path_factory):
    """Two simulated coadds with redshifts, compact spectra and feature shards."""
    folder = tmp_path_factory.mktemp('survey')
    for hpx in (1, 2):
        assert skyseek('simulate', '-o', folder, '-n', 60, '--hpx', hpx, '--seed', hpx).returncode == 0
    coadds = sorted(folder.glob('coadd-*.fits'))
    assert skyseek('redshift', *coadds).returncode == 0
    assert skyseek('extract', *coadds, '-o', folder / 'spectra').returncode == 0
    assert skyseek('features', *sorted((folder / 'spectra').glob('*.fits')), '-o', folder / 'features').returncode == 0
    return folder


def shards(survey): return sorted((survey / 'features').glob('*.npz'))


@pytest.mark.slow
def test_score_and_evaluate(survey):
    coadds = sorted(survey.glob('coadd-*.fits'))
    done = skyseek('score', *coadds, '-o', survey / 'catalogue.fits')
    assert done.returncode == 0, done.stderr
    assert 'weights default' in done.stderr, 'what the weights were trained on is not told'
    catalogue = Table.read(survey / 'catalogue.fits')
    assert {'TARGETID', 'Z', 'P_Z_WRONG', 'P_S_WRONG', 'FLAG_Z_WRONG', 'LATENT'} <= set(catalogue.colnames)
    p = np.asarray(catalogue['P_Z_WRONG'])
    assert ((p >= 0) & (p <= 1)).all() and p.std() > 0
    assert not (np.char.strip(catalogue['OBJTYPE'].astype(str)) == 'SKY').any()
    assert skyseek('score', *coadds, '-o', survey / 'catalogue.parquet').returncode == 0
    assert (np.asarray(Table.read(survey / 'catalogue.parquet')['TARGETID']) == np.asarray(catalogue['TARGETID'])).all()
    result = skyseek('evaluate', survey / 'catalogue.fits', '--truth', *survey.glob('truth-*.fits'), '--tolerance', '0.0033')
    assert result.returncode in (0, 1) and ('boosted trees' in result.stdout or len(errors(result)) == 1)


def test_real_coadds(data, tmp_path):
    coadds = sorted((data / 'desi/coadd_redrock').glob('coadd-*.fits'))
    done = skyseek('score', *coadds, '-o', tmp_path / 'c.fits')
    assert done.returncode == 0, done.stderr
    catalogue = Table.read(tmp_path / 'c.fits')
    assert len(catalogue) == 2 and np.isfinite(catalogue['P_Z_WRONG']).all()
    redrock = Table.read(str(coadds[0]).replace('coadd-', 'redrock-'), hdu='REDSHIFTS')
    assert catalogue['Z'][0] == redrock['Z'][0]


def test_coadd_without_targetids_and_redrock(data, tmp_path):
    done = skyseek('score', data / 'desi/coadd_unlabelled/coadd-tile80605-25fibres.fits', '-o', tmp_path / 'c.fits')
    assert done.returncode == 0, done.stderr
    assert 'no TARGETIDs' in done.stderr and 'no redrock file' in done.stderr
    catalogue = Table.read(tmp_path / 'c.fits')
    assert len(catalogue) == 25 and np.isnan(np.ma.filled(catalogue['P_Z_WRONG'], np.nan)).all() and not catalogue['FLAG_Z_WRONG'].any()
    assert np.isfinite(catalogue['LATENT']).all() and (catalogue['RECON_CHI2'] > 0).sum() >= 24


def test_a_bad_file_does_not_stop_the_others(survey, tmp_path):
    good = sorted(survey.glob('coadd-*.fits'))[0]
    text, cut = tmp_path / 'coadd-text.fits', tmp_path / 'coadd-cut.fits'
    text.write_text('hello')
    cut.write_bytes(good.read_bytes()[:200_000])
    done = skyseek('score', text, good, cut, '-o', tmp_path / 'c.fits')
    assert done.returncode == 1
    told = errors(done)
    assert len(told) == 3 and '2 of 3 files failed, 1 done' in told[-1]
    assert str(text) in done.stderr and str(cut) in done.stderr and 'Traceback' not in done.stderr
    assert len(Table.read(tmp_path / 'c.fits')) > 0
    assert skyseek('score', text, '-o', tmp_path / 'none.fits').returncode == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ['c.fits', 'coadd-cut.fits', 'coadd-text.fits']


@contextmanager
def small_files(limit):
    """The operating system refuses to write longer files, as a full disk would."""
    before, deaf = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try: yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, deaf)


@pytest.mark.parametrize('command', ['extract', 'redshift', 'score'])
def test_full_disk_leaves_nothing_half_written(survey, tmp_path, command):
    coadd = sorted(survey.glob('coadd-*.fits'))[0]
    target = tmp_path / 'out' if command != 'score' else tmp_path / 'out' / 'c.fits'
    with small_files(20_000): done = skyseek(command, coadd, '-o', target)
    assert done.returncode == 1 and len(errors(done)) >= 1 and 'Traceback' not in done.stderr
    assert not (tmp_path / 'out').exists() or not list((tmp_path / 'out').iterdir())


def train(survey, folder, *extra):
    """A training long enough to be interrupted after its first epoch."""
    return ['train-autoencoder', *shards(survey), '-o', folder, '--epochs', 4, '--device', 'cpu', *extra]


@pytest.fixture(scope='session')
def undisturbed(survey, tmp_path_factory):
    """Weights of a training that nobody interrupted."""
    folder = tmp_path_factory.mktemp('undisturbed')
    assert skyseek(*train(survey, folder)).returncode == 0
    return load_file(folder / 'autoencoder/model.safetensors')


@pytest.mark.slow
@pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGKILL])
def test_stopped_training_resumes_to_the_same_weights(survey, undisturbed, tmp_path, how):
    listen = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs inherit a deaf ear
    process = subprocess.Popen([*SKYSEEK, *map(str, train(survey, tmp_path))], env=ENV, stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    checkpoint = tmp_path / 'autoencoder-checkpoint.safetensors'
    while not checkpoint.exists() and process.poll() is None: time.sleep(0.01)
    process.send_signal(how)
    error = process.communicate(timeout=60)[1]
    assert not (tmp_path / 'autoencoder').exists()
    if how == signal.SIGINT:
        assert process.returncode == 130 and 'interrupted' in error and 'Traceback' not in error
        assert [p.name for p in tmp_path.iterdir()] == [checkpoint.name]
    assert skyseek(*train(survey, tmp_path)).returncode == 0
    resumed = load_file(tmp_path / 'autoencoder/model.safetensors')
    assert all((undisturbed[k] == resumed[k]).all() for k in undisturbed) and not checkpoint.exists()


@pytest.mark.slow
def test_two_processes_train_one_model(survey, tmp_path):
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', '--no-python', *SKYSEEK]
    done = subprocess.run([*torchrun, *map(str, train(survey, tmp_path / 'ddp')[:-4]), '--epochs', '2', '--device', 'cpu'], env=ENV, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / 'ddp/autoencoder/model.safetensors').exists()


def test_classifier_and_foreign_features(survey, tmp_path):
    truth = sorted(survey.glob('truth-*.fits'))
    done = skyseek('train-classifier', *shards(survey), '--truth', *truth, '-o', tmp_path, '--epochs', 2, '--autoencoder', weights() / 'autoencoder')
    assert done.returncode == 0, done.stderr
    features = read_features(shards(survey)[0])
    short = {k: v[:, :100] if k in ('flux', 'weight') else v[:100] if k == 'wave' else v for k, v in features.items()}
    foreign = write_features(short, tmp_path / 'foreign.npz')
    plain = write_features({k: v for k, v in features.items() if not k.startswith('metadata')}, tmp_path / 'plain.npz')
    for shard, word in ((foreign, "build the features on the model's grid"), (plain, 'no redrock columns')):
        done = skyseek('train-classifier', shard, '--truth', *truth, '-o', tmp_path / 'x', '--autoencoder', weights() / 'autoencoder')
        assert done.returncode == 1 and len(errors(done)) == 1 and word in done.stderr and not (tmp_path / 'x').exists()


def weights():
    import skyseek
    return Path(skyseek.__file__).parent / 'weights/default'


@pytest.mark.parametrize('damage, word', [('{"format": 99, "skyseek": "9"}', 'format 99'), ('{', 'not a skyseek model folder')])
def test_weights_of_another_version(survey, tmp_path, damage, word):
    shutil.copytree(weights(), tmp_path / 'weights')
    (tmp_path / 'weights/classifier/config.json').write_text(damage)
    done = skyseek('score', *survey.glob('coadd-*.fits'), '-o', tmp_path / 'c.fits', '--weights', tmp_path / 'weights')
    assert done.returncode == 1 and len(errors(done)) == 1 and word in done.stderr


def test_outputs_open_with_plain_astropy(survey):
    with fits.open(sorted((survey / 'spectra').glob('*.fits'))[0]) as hdus:
        names = [h.name for h in hdus]
        assert {'WAVELENGTH', 'FLUX', 'IVAR', 'TARGETS'} <= set(names)
        assert hdus['FLUX'].data.shape[1] == 7781 and np.isfinite(hdus['FLUX'].data).all()


@pytest.mark.slow
def test_demo_ends_with_commands_that_work(tmp_path):
    done = skyseek('demo', '-o', tmp_path / 'demo', '-n', 440, '--epochs', 1)
    assert done.returncode == 0, done.stderr
    catalogue = Table.read(tmp_path / 'demo/catalogue.fits')
    assert {'ANOMALY', 'ANOMALY_RANK', 'NATURE', 'UNFAMILIAR', 'P_Z_WRONG', 'Z_ALT'} <= set(catalogue.colnames)
    after = done.stdout.split('What to do next:')[1]
    commands = [shlex.split(line) for line in after.splitlines() if line.startswith('skyseek ')]
    assert [command[1] for command in commands] == ['inspect', 'rank', 'score']
    listed = skyseek(*commands[1][1:])
    assert listed.returncode == 0, listed.stderr
    assert len(Table.read(tmp_path / 'demo/odd.fits')) == 20
    again = skyseek('demo', '-o', tmp_path / 'demo', '-n', 440)
    assert again.returncode == 1 and len(errors(again)) == 1 and '--overwrite' in again.stderr
