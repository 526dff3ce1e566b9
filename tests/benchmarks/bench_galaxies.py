"""What the WGAN finds among galaxy images: real ones with EFIGI's attributes, and simulated ones with planted oddities.

    python tests/benchmarks/bench_galaxies.py efigi --data ../shared/data --model efigi-model
    python tests/benchmarks/bench_galaxies.py simulated --model simulated-model
    python tests/benchmarks/bench_galaxies.py published --device cuda --model published-model

efigi and simulated train a small pair (48 pixels, 16 channels, 4,000 generator iterations: half an hour on a core) unless --model holds one, and print the area
under the ROC curve of every kind against ordinary galaxies that were not in the training, by critic, generator and combined score, by the density of the residual
autoencoder's latents, and by plain methods on the same images; how well fewer optimiser steps rank, and images a second. published trains the published size
(96 pixels, 64 channels, batch 32, 10,000 iterations) on 50,000 simulated images and prints images a second and the share of the chip's peak.
"""

import argparse
import os
import warnings
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from skyseek.anomaly.cutouts import read_cutouts
from skyseek.anomaly.wgan import Critic, GanSettings, Generator
from skyseek.anomaly.simulated_images import ARTEFACTS, ODDITIES, simulate_cutouts
from skyseek.anomaly.wgan_scores import (
    encode_images, load_images_model, residuals, score_images, train_images_file, train_residuals,
)
from skyseek.data.truth import split_of

SIZE = 48
ATTRIBUTES = ('T', 'Perturbation', 'Contamination', 'Multiplicity')


def read_efigi(data):
    """Images, and a dict of attributes."""
    lines = (data/'images/EFIGI_attributes.txt').read_text().splitlines()
    names = next(line for line in lines if line.startswith('# PGCname')).split()[1:]
    table = {w[0]: [float(w[names.index(a)]) for a in ATTRIBUTES] for w in (line.split() for line in lines if line.startswith('PGC'))}
    cutouts = read_cutouts(data/'images/efigi', SIZE, 'shrink')
    rows = np.array([table.get(name, [np.nan]*4) for name in cutouts.table['OBJECT_ID']])
    return cutouts.images, dict(zip(ATTRIBUTES, rows.T))


def efigi(data):
    """Training images, test images, kind of each test image ('' for regular)."""
    images, a = read_efigi(data)
    regular = (a['Perturbation'] >= 0) & (a['Perturbation'] <= .25) & (a['Multiplicity'] <= .25) & (a['Contamination'] <= .25) & (a['T'] < 9)
    train = regular & (split_of(np.arange(len(images)), (.75, 0, .25)) == 'train')
    kind = np.full(len(images), '', 'U12')
    for name, which in (('contaminated', a['Contamination'] >= .75), ('irregular', a['T'] >= 9), ('multiple', a['Multiplicity'] >= .75), ('perturbed', a['Perturbation'] >= .75)): kind[which] = name
    test = ~train & (regular | (kind != ''))
    return images[train], images[test], kind[test]


def simulated(pixels=SIZE, n=5000):
    """The same, simulated."""
    train, _ = simulate_cutouts(n, seed=70, pixels=pixels)
    test, kind = simulate_cutouts(1500, seed=71, planted=dict.fromkeys(ODDITIES + ARTEFACTS, 50), pixels=pixels)
    return train.images, test.images, kind


def density(train, test, k=10):
    """ln distance to the k-th nearest training image, in standard deviations."""
    mean, std = train.mean(0), train.std(0) + 1e-6
    return np.log(NearestNeighbors(n_neighbors=k).fit((train - mean)/std).kneighbors((test - mean)/std)[0][:, -1] + 1e-9)


def plain(train, test):
    """Other people's scores, from the pixels alone."""
    flat = lambda x: x.reshape(len(x), -1)/255
    pca = PCA(40, random_state=0).fit(flat(train))
    left = np.abs(pca.inverse_transform(pca.transform(flat(test))) - flat(test)).sum(1)
    forest = IsolationForest(n_estimators=300, random_state=0).fit(pca.transform(flat(train)))
    return {'residual of 40 PCs': left, 'isolation forest on 40 PCs': -forest.score_samples(pca.transform(flat(test)))}


def area(kind, name, score):
    """AUC and half of its 68 % bootstrap interval, one kind (or all) against ordinary ones."""
    mine, rng = (kind != '') if name == 'all' else kind == name, np.random.default_rng(0)
    i, j, draws = np.flatnonzero(mine), np.flatnonzero(kind == ''), []
    for _ in range(200):
        a, b = rng.choice(i, len(i)), rng.choice(j, len(j))
        draws.append(roc_auc_score(np.repeat([1, 0], [len(a), len(b)]), np.concatenate([score[a], score[b]])))
    return f'{roc_auc_score(np.repeat([1, 0], [len(i), len(j)]), np.concatenate([score[i], score[j]])):.3f} ± {np.diff(np.percentile(draws, [16, 84]))[0]/2:.3f}'


def report(train, test, kind, model, device, residual_steps):
    """Print the table."""
    nets = load_images_model(model, device)
    torch.set_num_threads(1)
    start = perf_counter()
    scores = score_images(test, *nets, device=device)
    rate = len(test)/(perf_counter() - start)
    fast = {k: score_images(test, *nets, steps=k, device=device) for k in (0, 1, 3)}
    torch.set_num_threads(os.cpu_count())
    sample = train[::max(1, len(train)//1500)]
    left, left_train = residuals(test, scores.drawn), residuals(sample, score_images(sample, *nets, device=device).drawn)
    of_residuals, twin = (train_residuals(x, residual_steps, device='auto', width=16) for x in (left_train, sample))
    table = {'critic': scores.critic, 'generator': scores.generator, 'combined': scores.combined, 'density, residual latents': density(encode_images(of_residuals, left_train), encode_images(of_residuals, left)),
             'density, image latents (twin)': density(encode_images(twin, sample), encode_images(twin, test)), **plain(train, test)}
    kinds, count = sorted(set(kind) - {''}) + ['all'], lambda k: int(((kind != '') if k == 'all' else kind == k).sum())
    print(f"{(kind == '').sum()} ordinary images; AUC of each kind against them")
    print(f'{"":32}' + ''.join(f'{f"{k} ({count(k)})":20}' for k in kinds))
    for name, score in table.items(): print(f'{name:32}' + ''.join(f'{area(kind, k, score):20}' for k in kinds))
    print(f'\nscoring with 10 steps: {rate:.1f} images a second on one core, {test.shape[1]} pixels')
    for k, s in fast.items(): print(f'{k} steps: rank correlation with 10 steps {spearmanr(s.combined, scores.combined)[0]:.3f}, AUC of all kinds: critic {area(kind, "all", s.critic)}, combined {area(kind, "all", s.combined)}')


def published(device, model, n=50_000):
    """Train the published size and print its rate."""
    images = np.concatenate([simulate_cutouts(2000, seed=80, first=first)[0].images for first in range(0, n, 2000)])
    g, c = Generator(), Critic()
    flop = lambda net, x: _flop(net, x)
    per_image = flop(g, torch.zeros(1, 128)), flop(c, torch.zeros(1, 3, 96, 96))
    settings, start = GanSettings(device=device), perf_counter()
    train_images_file(images, model, settings, 5_000)
    seconds = perf_counter() - start
    seen = settings.iterations*settings.critic_steps*settings.batch_size
    work = seen*(per_image[0] + 3*2*per_image[1] + 6*per_image[1]) + settings.iterations*settings.batch_size*3*(per_image[0] + per_image[1])
    print(f'{len(images)} images, {settings.iterations} iterations and the encoder in {seconds:.0f} s: {seen/seconds:.0f} real images a second, {work/seconds/1e12:.2f} Tflop/s')


def _flop(net, x):
    """Multiply-adds × 2 of the convolutions and dense layers of one pass."""
    total, hooks = [0], []
    def count(m, i, o): total[0] += 2*m.weight.numel()*(o.shape[-1]*o.shape[-2] if isinstance(m, torch.nn.Conv2d) else i[0].shape[-1]*i[0].shape[-2] if isinstance(m, torch.nn.ConvTranspose2d) else 1)
    for m in net.modules():
        if isinstance(m, (torch.nn.Conv2d, torch.nn.ConvTranspose2d, torch.nn.Linear)): hooks.append(m.register_forward_hook(count))
    with torch.no_grad(): net.eval()(x)
    for h in hooks: h.remove()
    return total[0]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('what', choices=['efigi', 'simulated', 'published'])
    parser.add_argument('--data', type=Path, default=Path('../shared/data'))
    parser.add_argument('--model', type=Path, required=True, help='model folder; trained if it is not there')
    parser.add_argument('--iterations', type=int, default=4000)
    parser.add_argument('--residual-steps', type=int, default=3000)
    parser.add_argument('--width', type=int, default=16)
    parser.add_argument('--device', default='cpu')
    a = parser.parse_args()
    warnings.simplefilter('ignore')
    if a.what == 'published': return published(a.device, a.model)
    train, test, kind = efigi(a.data) if a.what == 'efigi' else simulated()
    print(f'{len(train)} training images', flush=True)
    if not (a.model/'encoder').exists():
        start = perf_counter()
        train_images_file(train, a.model, GanSettings(iterations=a.iterations, device=a.device), 3000, progress=False, width=a.width, latent=64)
        print(f'trained in {perf_counter() - start:.0f} s', flush=True)
    report(train, test, kind, a.model, a.device, a.residual_steps)


if __name__ == '__main__': main()
