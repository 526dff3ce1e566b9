"""Train GaSNet-II on spectra that are drawn anew in every epoch; resumable.

    python tests/benchmarks/train_gasnet2.py --data ../shared/data --out train/gasnet2 --network classifier --spectra 260000
    python tests/benchmarks/train_gasnet2.py --data ../shared/data --out train/gasnet2 --network GALAXY --spectra 260000
    python tests/benchmarks/train_gasnet2.py --data ../shared/data --out train/gasnet2 --weights skyseek/weights/gasnet2

The first lines train one network each (classifier, GALAXY, QSO, STAR) and can be stopped and given again at any time: after every epoch of 13,000 spectra a checkpoint is
written. A finished network is written to OUT/NETWORK; --round 2 goes on from there with another --spectra. The last line calibrates what is there and writes it for the
package. --form published trains the authors' networks, --device cuda runs on a GPU.
"""

import argparse
import json
import time
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from gasnet2_templates import mixed_templates, read_shapes

from skyseek.gasnet.gasnet2 import GaSNet2Classifier, GaSNet2Redshift, subclass_probabilities
from skyseek.gasnet.gasnet2_layers import as_published
from skyseek.gasnet.sdss_subclasses import GALAXIES, TEMPERATURES, SubclassStream, draw_spectra
from skyseek.learn.training import TrainSettings, fit, load_model, save_model

TYPES = 'GALAXY', 'QSO', 'STAR'
KINDS = {'GALAXY': tuple(GALAXIES), 'QSO': ('QSO',), 'STAR': tuple(TEMPERATURES)}
SHAPE = {'classifier': dict(features=12, blocks=(24, 32, 48, 48))}  # where they differ from the defaults
RATE = {'classifier': 4e-3, 'GALAXY': 4e-3, 'QSO': 4e-3, 'STAR': 4e-3}


class FreshStream:
    """Batches of fresh spectra from templates that are renewed every few epochs."""
    def __init__(self, shapes, network, size, batch_size=64, seed=0, n=250, keep=3):
        self.shapes, self.batch_size, self.seed, self.n, self.keep, self.at = shapes, batch_size, seed, n, keep, None
        self.types = TYPES if network == 'classifier' else (network,)
        self.n = n if network == 'classifier' else 3*n
        self.batches = size//batch_size

    def __len__(self):
        return self.batches

    def epoch(self, epoch=0, rank=0, world=1):
        if self.at != epoch//self.keep:
            self.at, kinds = epoch//self.keep, sum((KINDS[t] for t in self.types), ())
            self.library = mixed_templates(self.n, 1000*(self.seed + 1) + self.at, self.shapes, kinds)
        stream = SubclassStream(self.library, self.batches, self.batch_size, self.seed, self.types)
        yield from stream.epoch(epoch, rank, world)


def network(name, form):
    """A fresh network."""
    settings = asdict(as_published()) if form == 'published' else SHAPE.get(name, {})
    return GaSNet2Classifier(**settings) if name == 'classifier' else GaSNet2Redshift(name, **settings)


class Log:
    """The validation set, and a line about each epoch: the learning curve."""
    def __init__(self, spectra, batch, path):
        self.batches, self.batch_size, self.path, self.start = spectra, batch, path, None

    def __len__(self):
        return len(self.batches)

    def epoch(self, epoch=0, rank=0, world=1):
        yield from self.batches


def train(a, shapes):
    """Train one network, or go on with it."""
    name, folder = a.network, a.out/f'{a.network}{"-published" if a.form == "published" else ""}'
    torch.manual_seed(a.seed)
    model = network(name, a.form)
    if a.round > 1: model = load_model(folder, type(model))
    stream = FreshStream(shapes, name, min(a.epoch, a.spectra), seed=10*a.seed + a.round - 1)
    validation = list(FreshStream(shapes, name, 2560, 128, seed=777, n=60).epoch())
    epochs, checkpoint, curve = max(a.spectra//a.epoch, 1), a.out/f'{folder.name}-{a.round}.ckpt', a.out/f'{folder.name}-{a.round}.jsonl'
    settings = TrainSettings(epochs=epochs, lr=RATE[name]*(1 if a.round == 1 else .5), patience=0, seed=a.seed, device=a.device)
    error, seconds = model.error, []

    class Validation(Log):
        def epoch(self, epoch=0, rank=0, world=1):
            for b in self.batches:
                yield b
            now = dict(cpu=round(time.process_time() - start), wall=round(time.time() - clock))
            with torch.no_grad(): score = np.mean([float(error({k: v.to(a.device) for k, v in b.items()})) for b in self.batches])
            with curve.open('a') as f: f.write(json.dumps(dict(error=round(float(score), 6), **now)) + '\n')
            print(f'{name}: validation error {score:.5f}', now, flush=True)

    start, clock = time.process_time(), time.time()
    history = fit(model, stream, Validation(validation, 128, curve), settings, checkpoint, progress=False)
    lines = [json.loads(x) for x in curve.read_text().splitlines()]
    cpu, previous = 0, 0
    for x in lines: cpu, previous = cpu + (x['cpu'] - previous if x['cpu'] >= previous else x['cpu']), x['cpu']
    about = dict(spectra=epochs*len(stream)*stream.batch_size, hours=round(cpu/3600, 3), curve=[x['error'] for x in lines], round=a.round, seed=a.seed, device=a.device, torch=torch.__version__)
    save_model(model.to('cpu'), folder, training=about)
    print(name, about, flush=True)
    return history


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--out', type=Path, required=True, help='folder of checkpoints and networks')
    parser.add_argument('--network', choices=['classifier', *TYPES])
    parser.add_argument('--spectra', type=int, default=260_000)
    parser.add_argument('--epoch', type=int, default=13_000, help='spectra between two checkpoints')
    parser.add_argument('--round', type=int, default=1)
    parser.add_argument('--form', choices=['rest', 'published'], default='rest')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--device', default='cpu')
    a = parser.parse_args()
    warnings.simplefilter('ignore')
    a.out.mkdir(parents=True, exist_ok=True)
    train(a, read_shapes(a.data))


if __name__ == '__main__': main()
