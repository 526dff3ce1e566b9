"""Everything that runs on a GPU, on a device that is not the host: nothing is mixed up, and what goes over the bus is counted."""
import logging
import subprocess
import sys
import time
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.table import hstack

pytest.importorskip('torch.utils.backend_registration')
other_device = pytest.importorskip('other_device', reason='this PyTorch has no device written in Python', exc_type=ImportError)

from skyseek.anomaly import stellar_autoencoder, wgan_scores
from skyseek.anomaly.scores import raw_scores
from skyseek.anomaly.stellar_autoencoder import StellarAutoencoder, reconstruct
from skyseek.anomaly.stellar_spectra import StellarFlux
from skyseek.anomaly.wgan import Critic, Generator, ImageEncoder, as_tensor, gradient_penalty
from skyseek.anomaly.wgan_scores import ResidualAutoencoder, encode_images, score_images
from skyseek.detect.classifier import WrongClassifier, predict
from skyseek.explain.attribution import attribution
from skyseek.gasnet.gasnet2 import GaSNet2, GaSNet2Classifier, GaSNet2Redshift
from skyseek.gasnet.gasnet3 import gasnet_redshifts
from skyseek.gasnet.gasnet3_networks import Eigenspectra, UNetSpectra, as_published
from skyseek.learn import devices
from skyseek.learn.autoencoder import Autoencoder, as_published as published_autoencoder, encode_features
from skyseek.learn.features import METADATA, build_features, fill_masked, input_channels
from skyseek.learn.training import ahead
from skyseek.pipeline.score import look, load_weights, score_spectra
from skyseek.redshift.candidates import CANDIDATE_FEATURES, candidates
from skyseek.redshift.chi2 import ScanSettings, log_sums
from skyseek.redshift.line_combs import line_features, scan_lines
from skyseek.redshift.local_fit import fit_at
from skyseek.redshift.repairs import repair_spectra
from skyseek.redshift.scan import lowest_chi2, scan_redshift
from skyseek.redshift.second_opinion import Judge, judge_candidates
from skyseek.simulate.mock_survey import simulate_spectra

OtherDevice, OnDevice = other_device.OtherDevice, other_device.OnDevice


@pytest.fixture(scope='module')
def spectra():
    "Six simulated spectra with the answers of a pipeline, two of them wrong, and a spike in one."
    spectra, _ = simulate_spectra(6, seed=3)
    answers = scan_redshift(spectra).to_table()
    meta = hstack([spectra.meta, answers[[c for c in answers.colnames if c not in spectra.meta.colnames]]])
    meta['Z'][:2] += .2*(1 + meta['Z'][:2])
    flux = spectra.flux.copy()
    flux[4, 3000:3004] += 60/np.sqrt(np.median(spectra.ivar[4]))
    return spectra.replace(meta=meta, flux=flux)


@pytest.fixture(scope='module')
def fit(spectra): return scan_redshift(spectra)

@pytest.fixture(scope='module')
def seen(spectra, weights): return look(spectra, weights)

@pytest.fixture(scope='module')
def there(weights):
    "The weights of the package on the other device."
    with OtherDevice(): return load_weights(device='other')

@pytest.fixture(scope='module')
def images(): return np.random.default_rng(1).integers(0, 255, (3, 16, 16, 3), np.uint8)

@pytest.fixture(autouse=True)
def other_is_a_device(monkeypatch):
    for module in (wgan_scores, stellar_autoencoder): monkeypatch.setattr(module, 'pick_device', str)


def same(here, there, tolerance=1e-6):
    "Whether two results hold the same numbers."
    if hasattr(here, 'colnames'): here, there = ({c: t[c] for c in here.colnames} for t in (here, there))
    if isinstance(here, dict): return all(same(here[k], there[k], tolerance) for k in here)
    if isinstance(here, (tuple, list)): return all(same(a, b, tolerance) for a, b in zip(here, there, strict=True))
    here, there = np.asarray(here), np.asarray(there)
    if here.dtype.kind != 'f': return here.dtype == there.dtype and (here == there).all()
    return here.shape == there.shape and np.allclose(here, there, rtol=tolerance, atol=tolerance, equal_nan=True)


def test_the_other_device_finds_what_a_gpu_would_refuse():
    with OtherDevice() as gpu:
        a = torch.tensor(np.arange(5.), device='other')
        for wrong in (lambda: a + torch.ones(5), lambda: a[torch.tensor([1, 2])], lambda: a.numpy(), lambda: np.asarray(a),
                      lambda: torch.cat([a, torch.ones(2)]), lambda: torch.where(a > 2, a, torch.ones(5))):
            with pytest.raises((RuntimeError, TypeError)): wrong()
        assert type(a*2 + 1) is OnDevice and (a*2 + torch.tensor(1.)).device.type == 'other'
        assert [sum(c.values()) for c in (gpu.up, gpu.down, gpu.waits)] == [1, 0, 0] and gpu.bytes_up == 40
        assert a[a > 2].cpu().tolist() == [3, 4] and bool((a > 3).any())
        assert [sum(c.values()) for c in (gpu.down, gpu.waits)] == [1, 2]
        b = torch.zeros(3, 4, device='other')
        b[1:, ::2].add_(1)
        b[b > .5] = 7  # one value under a mask needs no answer
        assert sum(gpu.waits.values()) == 2 and b.sum().item() == 28
    with pytest.raises(RuntimeError, match='outside OtherDevice'): a + 1


# ---- each path: a function of the device, and at most how often it copies up, copies down and waits ----

def moved(model, device): return deepcopy(model).to(device)

def chi2_curves(spectra, device):
    settings = ScanSettings(stride=20, sigma_v=0)
    return scan_redshift(spectra[:2], device=device, settings=settings, keep_chi2=True).curves

def lines_at(spectra, device):
    lines = scan_lines(log_sums(spectra, device=device))
    return lines.z, line_features(lines, np.nan_to_num(lines.z))

def channels(spectra, device):
    f = build_features(spectra)
    flux, weight, scale, exptime = (torch.as_tensor(np.asarray(f[k], np.float32), device=device) for k in ('flux', 'weight', 'scale', 'exptime'))
    both = [input_channels(flux, weight, scale, exptime, kind) for kind in ('noise', 'published')]
    return torch.stack([*both, fill_masked(flux, weight > 0).expand(both[0].permute(1, 0, 2).shape).transpose(0, 1)]).cpu().numpy()

def stars(spectra):
    flux = np.random.default_rng(2).random((5, 640), np.float32)
    return StellarFlux(np.arange(5), flux, np.where(flux > .1, 4, 0).astype('f4'), np.ones(5), np.array(['', '', 'no data', '', '']))

def gasnet2(device):
    torch.manual_seed(1)
    return GaSNet2(GaSNet2Classifier().to(device), {name: GaSNet2Redshift(name).to(device) for name in ('GALAXY', 'STAR')})

def gasnet3(device, published=False):
    torch.manual_seed(1)
    if published: return [UNetSpectra(**asdict(as_published('STAR', loss='smooth_l1'))).to(device)]
    return [Eigenspectra(spectype=s, k=3).to(device) for s in ('STAR', 'GALAXY')]

def networks(device, *kinds):
    torch.manual_seed(1)
    return [kind(size=16).to(device) for kind in kinds]


PATHS = {  # name: (function of spectra, scan, what was seen, weights, images and device; copies up, copies down, waits)
    'curves of χ²': (lambda s, f, n, w, i, d: chi2_curves(s, d), 240, 60, 60),
    'scan': (lambda s, f, n, w, i, d: scan_redshift(s, device=d).to_table(), 200, 40, 60),
    'coarse scan': (lambda s, f, n, w, i, d: lowest_chi2(s, f.bases, d), 80, 2, 0),
    'fits at given redshifts': (lambda s, f, n, w, i, d: vars(fit_at(s, np.full(6, .3), ['GALAXY', 'QSO', 'STAR']*2, device=d, models=False)), 30, 30, 30),
    'lines': (lambda s, f, n, w, i, d: lines_at(s, d), 8, 2, 0),
    'candidates': (lambda s, f, n, w, i, d: vars(candidates(s, f, d)), 400, 120, 200),
    'repairs': (lambda s, f, n, w, i, d: repair_spectra(s, f, np.arange(6), d).spectra.flux, 500, 80, 80),
    'candidate ranker': (lambda s, f, n, w, i, d: judge_candidates(w.judge, s, candidates(s, f)), 3, 1, 0),
    'features': (lambda s, f, n, w, i, d: channels(s, d), 4, 1, 0),
    'autoencoder': (lambda s, f, n, w, i, d: encode_features(w.autoencoder, n.features, d), 4, 1, 0),
    'classifier and trees': (lambda s, f, n, w, i, d: predict(w.classifier, n.code['latent'], np.ones((6, len(w.classifier.columns)), 'f4')), 2, 1, 0),
    'familiarity': (lambda s, f, n, w, i, d: w.familiarity.p_value(np.ones((6, w.familiarity.config['checks'] + w.familiarity.config['width']))), 2, 5, 0),
    'anomaly scores': (lambda s, f, n, w, i, d: raw_scores(w.anomaly, s, n.code, n.fit, n.opinion), 40, 8, 0),
    'attribution': (lambda s, f, n, w, i, d: attribution(n.spectra[:2], w.autoencoder, w.classifier, steps=1), 6, 1, 0),
    'stellar autoencoder': (lambda s, f, n, w, i, d: reconstruct(networks(d, lambda size: StellarAutoencoder())[0], stars(s), d), 16, 1, 0),
    'GaSNet-II': (lambda s, f, n, w, i, d: gasnet2(d).predict(s, device=d), 400, 4, 20),
    'GaSNet-III': (lambda s, f, n, w, i, d: gasnet_redshifts(s, gasnet3(d), d), 60, 40, 20),
    'GaSNet-III as published': (lambda s, f, n, w, i, d: gasnet_redshifts(s, gasnet3(d, True), d), 120, 20, 20),
    'scores of images': (lambda s, f, n, w, i, d: vars(score_images(i, *networks(d, Generator, Critic, ImageEncoder), steps=2, device=d)), 120, 6, 0),
    'residuals of images': (lambda s, f, n, w, i, d: encode_images(networks(d, ResidualAutoencoder)[0], i, device=d), 30, 1, 0)}


@pytest.mark.parametrize('name', PATHS)
def test_a_path_stays_on_its_device(name, spectra, fit, seen, weights, there, images):
    work, up, down, waits = PATHS[name]
    here = work(spectra, fit, seen, weights, images, 'cpu')
    with OtherDevice() as gpu:
        other = work(spectra, fit, seen, there, images, 'other')
    counted = gpu.counts()
    assert gpu.ops > 3, 'nothing was done on the device'
    assert all(n <= most for n, most in zip(counted, (up, down, waits))), (counted, gpu.up, gpu.down, gpu.waits)
    assert same(here, other)


# ---- a step of training: forwards and backwards ----

def random_batch(n=4, pixels=7781, **more):
    rng = np.random.default_rng(3)
    image = lambda low, high: rng.uniform(low, high, (n, pixels)).astype('f4')
    return dict(flux=image(-1, 3), weight=image(.5, 4)*(image(0, 1) > .1), scale=np.ones(n, 'f4'), exptime=np.full(n, 900, 'f4')) | {k: np.asarray(v) for k, v in more.items()}

def labelled(columns, fold=False):
    more = dict(latent=np.ones((4, 36), 'f4'), metadata=np.ones((4, columns), 'f4'), wrong=np.array([[0, 1], [1, 0], [0, 0], [1, 1]], 'f4'))
    return more | (dict(fold=np.arange(4), weight=np.ones(4, 'f4')) if fold else {})

def candidates_of(features, c=5):
    rng = np.random.default_rng(4)
    return dict(x=rng.normal(size=(4, c, features)).astype('f4'), quality=np.ones((4, 6), 'f4'), known=np.ones((4, c), 'f4'), right=np.eye(4, c, dtype='f4'))

LOSSES = {  # name: (network, its batch)
    'autoencoder': (lambda: Autoencoder(), random_batch),
    'autoencoder as published': (lambda: Autoencoder(**asdict(published_autoencoder()) | dict(strides=(4, 8))), random_batch),
    'classifier': (lambda: WrongClassifier(), lambda: labelled(len(METADATA['portable']))),
    'classifier on folds': (lambda: WrongClassifier(), lambda: labelled(len(METADATA['portable']), True)),
    'classifier as published': (lambda: WrongClassifier(loss='focal', scaling='signlog'), lambda: labelled(len(METADATA['portable']))),
    'candidate ranker': (lambda: Judge(), lambda: candidates_of(len(CANDIDATE_FEATURES))),
    'stellar autoencoder': (lambda: StellarAutoencoder(), lambda: random_batch(pixels=640)),
    'residuals of images': (lambda: ResidualAutoencoder(size=16), lambda: dict(image=np.random.default_rng(1).integers(0, 255, (3, 16, 16, 3), np.uint8))),
    'GaSNet-II, subclasses': (lambda: GaSNet2Classifier(), lambda: random_batch(pixels=3600, ivar=np.ones((4, 3600), 'f4'), label=np.arange(4), z=np.full(4, .1, 'f4'))),
    'GaSNet-II, redshifts': (lambda: GaSNet2Redshift('GALAXY'), lambda: random_batch(pixels=3600, ivar=np.ones((4, 3600), 'f4'), z=np.full(4, .1, 'f4'))),
    'GaSNet-III': (lambda: Eigenspectra(spectype='STAR', k=3), lambda: random_batch(pixels=4076, shift=np.full(4, 20.3)))}

@pytest.mark.parametrize('name', LOSSES)
def test_a_step_of_training_stays_on_its_device(name):
    make, batch = LOSSES[name]
    torch.manual_seed(5)
    here, batch = make().eval(), batch()
    there = deepcopy(here)
    here.loss({k: torch.as_tensor(v) for k, v in batch.items()}).backward()
    with OtherDevice() as gpu:
        there = there.to('other')
        gpu.clear()
        there.loss({k: torch.as_tensor(v, device='other') for k, v in batch.items()}).backward()
        slopes = [(p.grad, q.grad.cpu()) for p, q in zip(here.parameters(), there.parameters()) if p.grad is not None]
    assert gpu.counts()[0] <= 12 and gpu.counts()[1:] <= (0, 2), (gpu.up, gpu.down, gpu.waits)
    assert slopes and all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in slopes)


def test_a_step_of_the_wgan_stays_on_its_device(images):
    slopes = []
    for device in ('cpu', 'other'):
        with OtherDevice() as gpu:
            generator, critic = networks(device, Generator, Critic)
            real = as_tensor(images, device)
            torch.manual_seed(2)
            z = torch.randn(3, generator.settings.latent).to(device)
            fake = generator(z)
            gpu.clear()
            (gradient_penalty(critic, real, fake) - critic(real).mean() + critic(fake).mean()).backward()
            assert gpu.counts() == (0, 0, 0)
            slopes.append([p.grad.cpu() for p in (*generator.parameters(), *critic.parameters())])
    assert len(slopes[0]) == len(slopes[1]) and all(torch.isfinite(b).all() for b in slopes[1])


# ---- the whole score ----

def test_score_on_another_device_gives_the_same_catalogue(spectra, weights, there):
    spectra = spectra[[0, 1, 4]]
    here = score_spectra(spectra, weights)
    with OtherDevice() as gpu: other = score_spectra(spectra, there, 'other')
    assert (here['CAUSE'] != '').any() and [c for c in here.colnames if not same(here[c], other[c], 1e-4)] == []
    assert gpu.bytes_down < 2*spectra.flux.nbytes, gpu.bytes_down  # what comes back are numbers, not spectra and models


def test_copies_do_not_grow_with_the_batch(spectra, there):
    counts, sizes = [], []
    for rows in ([0, 1, 4], [0, 1, 4]*4):
        with OtherDevice() as gpu: look(spectra[rows], there, 'other')
        counts.append((*gpu.counts(), gpu.ops))
        sizes.append(gpu.bytes_up)
    assert np.allclose(*counts, rtol=.1), counts
    assert (sizes[1] - sizes[0])/9 < 20*spectra.flux[0].nbytes, sizes  # flux and ivar to scan, to list candidates, to encode; repaired copies


# ---- a GPU whose memory is full ----

@pytest.fixture
def full(monkeypatch):
    "Sums of more than `limit` spectra do not fit into the memory of the other device."
    import skyseek.redshift.scan as scan
    monkeypatch.setattr(devices, '_DIVISOR', [1])
    def patch(limit):
        def sums(spectra, *args):
            if len(spectra) > limit: raise torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB\nmore')
            return log_sums(spectra, *args)
        monkeypatch.setattr(scan, 'log_sums', sums)
    return patch


def test_a_full_gpu_makes_batches_smaller_and_says_so_once(spectra, full, caplog):
    some = spectra[np.repeat(np.arange(6), 2)]
    here = scan_redshift(some).to_table()
    full(10)
    with OtherDevice(), caplog.at_level(logging.WARNING, 'skyseek'):
        for _ in range(2): assert same(here, scan_redshift(some, device='other').to_table(), 2e-5)  # sums in float32 depend on the batch
    assert [r.getMessage() for r in caplog.records] == ['the memory of the GPU is full: the batches are made smaller, which takes longer']


def test_a_gpu_that_is_always_full_is_an_error_of_one_line(spectra, full):
    from skyseek.data.files import failure_text
    full(2)
    with OtherDevice(), pytest.raises(MemoryError) as e: scan_redshift(spectra, device='other')
    assert failure_text(e.value) == 'not enough memory (of the GPU, even for small batches; end other programs on it, or use --device cpu)'


def test_other_errors_are_not_taken_for_a_full_gpu(spectra, monkeypatch):
    import skyseek.redshift.scan as scan
    def broken(*args): raise RuntimeError('a fault')
    monkeypatch.setattr(scan, 'log_sums', broken)
    with pytest.raises(RuntimeError, match='a fault'): scan_redshift(spectra)
    assert devices._DIVISOR == [1]


# ---- the benchmark of a GPU ----

@pytest.mark.slow
def test_the_benchmark_of_a_gpu_runs_on_a_cpu():
    script = Path(__file__).parent/'benchmarks'/'gpu.py'
    done = subprocess.run([sys.executable, script, '--device', 'cpu', '--quick'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for words in ('| scan |', 'on one A100', 'on the host: ', '] scan: ', '] encoder: ', 'one process: ', 'within 1e-4: 1.0000', '1 M spectra × 10 epochs', '1 processes: ', '] done'):
        assert words in done.stdout, words


def test_batches_for_a_gpu_are_made_while_it_works():
    made = []
    def batches():
        for k in range(4):
            made.append(k)
            yield k
    for k in ahead(batches(), 'cuda:0'):
        deadline = time.monotonic() + 5
        while len(made) < min(k + 2, 4) and time.monotonic() < deadline: time.sleep(.001)
        assert len(made) == min(k + 2, 4)
    made.clear()
    for k in ahead(batches(), 'cpu'): assert len(made) == k + 1


def test_what_fits_into_no_gpu_is_no_fault_of_skyseek():
    from skyseek.data.files import failure_text
    said = failure_text(torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB\nGPU 0 has …'))
    assert said == 'not enough memory (CUDA out of memory. Tried to allocate 20.00 GiB)'
