"""Fit what ships in skyseek/weights/default/familiarity, from nothing: networks for foreign kinds, and a reference for each instrument.

    python tests/benchmarks/fit_familiarity.py --data ../shared/data --weights skyseek/weights/default

Needs autoencoder/ in the weights, and no other model. DESI's ordinary spectra are the training files of the redrock benchmark, changed copies of them (noise, calibration, residuals of sky lines, lost arms), spectra of the simulator, and the
41 real ones with ivar in --data, which count 8 % of the reference. The others are the real spectra of SDSS, BOSS and LAMOST. Foreign ones are made from all of them (`foreign.py`). Three networks leave out one third of the objects each; what they say
of their thirds is the reference. Two minutes on one core.
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from astropy.table import Table
from foreign import SHORT, foreign, on_grid, ordinary
from learn_bases import rate
from torch import nn

from skyseek import __version__
from skyseek.detect.augment import Augmentation, augment
from skyseek.detect.familiarity import KINDS, UNFAMILIAR, Familiarity, familiarity_inputs, fit_familiarity
from skyseek.detect.familiarity import join_references, usual_checks, usual_units
from skyseek.detect.labelled_data import is_labelled, read_labelled
from skyseek.detect.spectrum_checks import CHECKS, spectrum_checks
from skyseek.learn.autoencoder import Autoencoder, encode
from skyseek.learn.features import build_features
from skyseek.learn.training import ArrayStream, fingerprint, load_model, save_model
from skyseek.data.spectra import concatenate, instruments_of
from skyseek.simulate.mock_survey import simulate_spectra

SURVEYS = dict(program='bright'), dict(program='dark'), dict(program='bright', shares=dict(BGS=.4, MWS=.4, QSO=.2), exptime=(500., 4000.)), dict(program='bright', shares=dict(MWS=1.)), dict(program='bright', shares=dict(MWS=1.), exptime=(300., 3000.))
COPIES = Augmentation(stretch=0, sdss=0, rebin=0)  # a stretched copy would not keep the lines of the sky in their places
TRIM = {'DESI': .005, 'SDSS': .025, 'LAMOST': .04}  # of the references; some of LAMOST's arms are not joined well
DISTANCE = 4.  # small references are of few plates; another plate is farther away than its own spectra are
REAL_PART = .08  # of DESI's reference

CARD = """# Familiarity

Fitted with skyseek {version} by `tests/benchmarks/fit_familiarity.py` (seed {seed}).

- **References.** DESI: {desi} simulated spectra of the redrock benchmark and of the simulator, and {real} real ones. SDSS and BOSS: {SDSS} real spectra. LAMOST: {LAMOST} real spectra, nearly all of stars. No sky fibres. SDSS and LAMOST spectra are public; acknowledge the surveys.
- **Networks.** Three, for {kinds}; trained on {trained} ordinary and changed spectra, with {checks} checks each.
- **UNFAMILIAR** (p < 0.01) on the benchmark's validation files: {figure}. `tests/benchmarks/bench_familiarity.py` counts the rates on real spectra that the reference does not hold, and on foreign ones.
- **Trimmed.** {trim} of the references of DESI, SDSS and LAMOST, the most distant spectra, were left out, so that their own faults do not hide others.
- **Limits.** A broken arm or a wrong frame cannot be seen where there is nothing but noise. A power law is foreign at any slope. Spectra of an instrument without a reference are compared with DESI's: make one with `skyseek reference`.
- **Licence.** BSD-3-Clause, as the package.
"""


def lean(spectra):
    """TARGETID, and where the lines of the sky lie in this set, which was observed with one velocity of the Earth (as SKY_VELOCITY)."""
    velocity, match = spectrum_checks(spectra)[:, [CHECKS.index('SKY_VELOCITY'), CHECKS.index('SKY_MATCH')]].T
    return spectra.replace(meta=Table(dict(TARGETID=np.asarray(spectra.meta['TARGETID']), FRAME=np.full(len(spectra), np.median(velocity[match > .2])))))


def simulated(data, seed):
    """Ordinary simulated DESI spectra."""
    real = read_labelled(data/'redrock_bench/train')
    parts = [lean(real), lean(augment(real, np.random.default_rng((seed, 1)), COPIES))]
    return concatenate(parts + [lean(simulate_spectra(500, seed=500 + 20*seed + k, **s)[0]) for k, s in enumerate(SURVEYS)])


def changed(spectra, kind, rng, survey):
    """Foreign spectra for the training: wider ranges than in the benchmark."""
    rows = np.flatnonzero(spectra.snr >= 2.5) if kind == 'broken arm' else np.arange(len(spectra))
    if survey == 'DESI': rows = rng.permutation(rows)[:4000 if kind == 'broken arm' else 1500]
    options = {'noise-free': dict(width=float(rng.choice([1.7, 2.5, 4., 8.]))), 'power law': dict(slopes=((-4.5, 4.),), snr=(4, 80)), 'sky lines': dict(snr=(12, 200)),
               'broken arm': dict(factors=((.4, .8), (1.25, 2.5)), elsewhere=.6 if survey == 'DESI' else 0., sharp=.3), 'air': {}}[kind]
    return foreign(spectra[rows], kind, rng, survey, **options), rows


def samples(real, desi, wave, seed, copies=8):
    """dict instrument → (checks of ordinary spectra, their objects); list of (instrument, kind, checks, objects) of foreign ones."""
    own, out = {}, []
    for survey, spectra in real.items():
        rng, name = np.random.default_rng((seed, len(survey), ord(survey[0]))), SHORT[survey]
        base, objects = (desi, np.arange(len(desi))) if survey == 'DESI' else (spectra, np.asarray(spectra.meta['TARGETID']))
        for kind in KINDS:
            for _ in range({'broken arm': 3}.get(kind, 1) if survey == 'DESI' else copies):
                made, rows = changed(base, kind, rng, survey)
                out.append((name, kind, orbit(spectrum_checks(on_grid(made, survey, wave)), made, rng), objects[rows]))
        own.setdefault(name, []).append((spectrum_checks(on_grid(spectra, survey, wave)), np.asarray(spectra.meta['TARGETID'])))
        if survey == 'DESI': own[name].insert(0, (orbit(spectrum_checks(desi), desi, rng), objects))
    return {k: tuple(np.concatenate(p) for p in zip(*v)) for k, v in own.items()}, out


def orbit(checks, spectra, rng):
    """The benchmark has its noise from one real tile, a simulated survey from one night: each spectrum gets a velocity of the Earth of its own, up to 32 km/s, in place of theirs."""
    if 'FRAME' in spectra.meta.colnames:
        seen = checks[:, CHECKS.index('SKY_MATCH')] > .2
        checks[seen, CHECKS.index('SKY_VELOCITY')] += rng.uniform(-32, 32, seen.sum())/50 - np.asarray(spectra.meta['FRAME'])[seen]
    return checks


def fold_of(objects): return (np.asarray(objects).astype(np.uint64)*np.uint64(2654435761) >> np.uint64(7)) % np.uint64(3)


def train_net(net, x, y, weight, epochs):
    x, y, weight = (torch.as_tensor(np.asarray(a, np.float32)) for a in (x, y, weight))
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=epochs*(len(x)//256 + 1))
    for _ in range(epochs):
        for some in torch.randperm(len(x)).split(256):
            loss = nn.functional.binary_cross_entropy_with_logits(net(x[some] + .1*torch.randn(x[some].shape)), y[some], reduction='none')
            optimizer.zero_grad()
            (loss*weight[some, None]).mean().backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def learn_networks(own, made, seed=0, epochs=50, n_real=0):
    """A model with three networks and nothing else; logits of the ordinary spectra, from the network that has not seen them; number of spectra."""
    torch.manual_seed(seed)
    model, usual = Familiarity(width=43, bank=1, reference=1, checks=len(CHECKS), nets=3), {}
    for name, (x, _) in own.items():
        usual[name] = Familiarity(width=43, bank=1, reference=1, checks=len(CHECKS))
        for buffer, value in zip((usual[name].centre, usual[name].spread), usual_checks(x)): buffer.copy_(torch.as_tensor(value))
    units = lambda name, x: usual_units(torch.as_tensor(x), usual[name]).numpy()
    rows = [(name, '', x, objects) for name, (x, objects) in own.items()] + made
    x = np.concatenate([units(name, x) for name, _, x, _ in rows])
    y = np.concatenate([np.tile([kind == k for k in KINDS], (len(x), 1)) for _, kind, x, _ in rows])
    folds = np.concatenate([fold_of(objects) for *_, objects in rows])
    weight = np.concatenate([np.full(len(x), 1. if kind else 2. if name == 'DESI' else 3.) for name, kind, x, _ in rows])
    if n_real: weight[len(own['DESI'][0]) - n_real:len(own['DESI'][0])] = 20.
    for k, net in enumerate(model.nets): train_net(net, x[folds != k], y[folds != k], weight[folds != k], epochs)
    logits = {}
    with torch.no_grad():
        for name, (x, objects) in own.items():
            each = np.stack([net(torch.as_tensor(units(name, x))).numpy() for net in model.nets])
            logits[name] = each[fold_of(objects).astype(int), np.arange(len(x))]
    return model, logits, len(y)


def place(autoencoder, spectra):
    """The 43 numbers beside the checks."""
    f = build_features(spectra.replace(meta=spectra.meta[['TARGETID']]))
    return familiarity_inputs(encode(autoencoder, ArrayStream({k: f[k] for k in ('flux', 'weight', 'scale', 'exptime')}, 64, shuffle=False)), spectra)


def learn(real, desi, autoencoder, seed=0):
    """The model; number of spectra in the training of its networks."""
    wave, n = desi.wave, len(real['DESI'])
    own, made = samples(real, desi, wave, seed)
    like, logits, trained = learn_networks(own, made, seed, n_real=n)
    parts = {}
    for name in own:
        spectra = [desi] if name == 'DESI' else []
        spectra += [on_grid(s, survey, wave) for survey, s in real.items() if SHORT[survey] == name]
        x = np.hstack([own[name][0], np.concatenate([place(autoencoder, s) for s in spectra])])
        held, weights = None, None
        if name == 'DESI':
            held, is_real = np.random.default_rng(seed).random(len(x)) < .48, np.arange(len(x)) >= len(desi)
            held |= is_real
            weights = np.where(is_real, max(round(REAL_PART*min(held.sum(), 4000)/n), 1), 1)
        parts[name] = fit_familiarity(x, held, bank=4000, reference=4000, seed=seed, like=like, trim=TRIM[name], logits=logits[name], weights=weights, distance=1. if name == 'DESI' else DISTANCE)
    return join_references(parts.pop('DESI'), parts), trained


def main(data, weights, seed=0):
    start = time.time()
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    autoencoder, real, desi = load_model(weights/'autoencoder', Autoencoder), ordinary(data), simulated(data, seed)
    model, trained = learn(real, desi, autoencoder, seed)
    held = read_labelled(data/'redrock_bench/validation')
    held = held[np.flatnonzero(is_labelled(held))]
    p = model.p_value(np.hstack([spectrum_checks(held), place(autoencoder, held)]), instruments_of(held))
    counts = {name: sum(len(s) for survey, s in real.items() if SHORT[survey] == name) for name in ('SDSS', 'LAMOST')}
    card = CARD.format(version=__version__, seed=seed, desi=len(desi), real=len(real['DESI']), kinds=', '.join(KINDS), trained=trained, checks=len(CHECKS), figure=rate(p < UNFAMILIAR), trim=', '.join(f'{100*x:g} %' for x in TRIM.values()), **counts)
    save_model(model, weights/'familiarity', card=card, autoencoder=fingerprint(autoencoder))
    print(card, f'{time.time() - start:.0f} s', flush=True)


if __name__ == '__main__':
    parser = argparse.ArgumentParser()
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--weights', type=Path, required=True, help='folder with autoencoder/; familiarity/ is written into it')
    parser.add_argument('--seed', type=int, default=0)
    a = parser.parse_args()
    main(a.data, a.weights, a.seed)
