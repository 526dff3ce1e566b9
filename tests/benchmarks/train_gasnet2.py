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
from bench_gasnet2 import tables
from gasnet2_templates import mixed_templates, read_shapes
from safetensors.torch import load_file

from skyseek import __version__
from skyseek.data.safe_writing import write_folder
from skyseek.gasnet.gasnet2 import GaSNet2, GaSNet2Classifier, GaSNet2Redshift, calibrate_redshift
from skyseek.gasnet.gasnet2_layers import as_published
from skyseek.gasnet.sdss_subclasses import GALAXIES, SPECTYPES, TEMPERATURES, SubclassStream, draw_spectra
from skyseek.learn.training import TrainSettings, fit, load_model, read_config, save_model

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


class Validation:
    """A validation set that writes a line about each epoch: the learning curve."""
    def __init__(self, batches, model, curve, device):
        self.batches, self.batch_size, self.model, self.curve, self.device = batches, 128, model, curve, device
        self.start, self.clock = time.process_time(), time.time()

    def __len__(self):
        return len(self.batches)

    def epoch(self, epoch=0, rank=0, world=1):
        yield from self.batches
        with torch.no_grad(): error = float(np.mean([float(self.model.error({k: v.to(self.device) for k, v in b.items()})) for b in self.batches]))
        line = dict(error=round(error, 6), cpu=round(time.process_time() - self.start), wall=round(time.time() - self.clock))
        with self.curve.open('a') as f: f.write(json.dumps(line) + '\n')
        print(line, flush=True)


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
    if not checkpoint.exists(): curve.unlink(missing_ok=True)
    history = fit(model, stream, Validation(validation, model, curve, a.device), settings, checkpoint, progress=False)
    lines = [json.loads(x) for x in curve.read_text().splitlines()]
    cpu, previous = 0, 0
    for x in lines: cpu, previous = cpu + (x['cpu'] - previous if x['cpu'] >= previous else x['cpu']), x['cpu']
    about = dict(spectra=epochs*len(stream)*stream.batch_size, hours=round(cpu/3600, 3), curve=[x['error'] for x in lines], round=a.round, seed=a.seed, device=a.device, torch=torch.__version__)
    if a.round > 1:
        before = read_config(folder)['extra']['training']
        about |= dict(spectra=about['spectra'] + before['spectra'], hours=round(about['hours'] + before['hours'], 3), curve=before['curve'] + about['curve'])
    save_model(model.to('cpu'), folder, training=about)
    print(name, about, flush=True)
    return history


CARD = """# GaSNet-II: {name}

Trained with skyseek {version} by `tests/benchmarks/train_gasnet2.py`.

- **Data.** Simulated spectra with the definitions of SDSS's subclasses, drawn anew in every epoch (redshift, S/N, noise, sky residuals, masks, calibration errors). Two thirds of the stars, half of the passive galaxies and half of the
  quasars have the shape of SDSS's own templates (spEigenStar, spEigenGal, spEigenQSO), varied by the simulator. No observed spectrum was trained on.
- **Training.** {training}
- **Errors.** The 68 and 95 % intervals are calibrated at each S/N on {calibrated} simulated spectra that were not trained on.
- **Weights** in half precision.
- **Figures** of classifier and regressors together (`tests/benchmarks/bench_gasnet2.py`):

```
{figures}
```

- **Limits.** Thirteen subclasses only: an M star or a white dwarf gets the nearest of them. Trained on simulated spectra; on a real survey the intervals of quasars are too narrow, so calibrate on spectra of that survey.
- **Licence.** BSD-3-Clause, as the package; SDSS's templates are public.
"""


def finished(folder, cls):
    """A trained network without its calibration, its weights rounded to half precision, and what is known of its training."""
    config = read_config(folder)
    model, state = cls(**config['config']), load_file(folder/'model.safetensors')
    state.pop('calibration', None)
    lost = model.load_state_dict({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, strict=False)
    if set(lost.missing_keys) - {'calibration'} or lost.unexpected_keys: raise ValueError(f'{folder}: {lost}')
    return model.eval(), config['extra']['training']


def pack(a, shapes):
    """Calibrate what is trained, measure it, and write it for the package."""
    classifier, about = finished(a.out/'classifier', GaSNet2Classifier)
    redshifts, training = {}, {'classifier': about}
    for t in TYPES:
        redshifts[t], training[f'redshift-{t}'] = finished(a.out/t, GaSNet2Redshift)
        spectra, truth = draw_spectra(mixed_templates(600, 999, shapes, KINDS[t]), a.calibrate//int((SPECTYPES == t).sum()), seed=999, spectypes=(t,), even=True)
        print(t, np.round(calibrate_redshift(redshifts[t], spectra, truth['TRUE_Z']), 2), flush=True)
    figures = tables(GaSNet2(classifier, redshifts), a.data, a.each)
    print(figures)
    with write_folder(a.weights) as folder:
        for name, model in {'classifier': classifier, **{f'redshift-{t}': m for t, m in redshifts.items()}}.items():
            x = training[name]
            words = f"{x['spectra']:,} spectra, {x['hours']} hours of one CPU core ({x['device']}), torch {x['torch']}, seed {x['seed']}; validation error ({'wrong subclasses' if name == 'classifier' else 'mean |z error|'}) after each epoch: {', '.join(f'{e:.4f}' for e in x['curve'])}"
            card = CARD.format(name=name, version=__version__, training=words, calibrated=f'{a.calibrate:,}', figures=figures if name == 'classifier' else '(on the card of the classifier)')
            save_model(model.half(), folder/name, card, training=x)


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
    parser.add_argument('--weights', type=Path, help='folder to write for the package, instead of a training')
    parser.add_argument('--calibrate', type=int, default=12_000, help='spectra of each type')
    parser.add_argument('--each', type=int, default=400, help='test spectra of each subclass')
    a = parser.parse_args()
    if not a.weights and not a.network: parser.error('give --network or --weights')
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    a.out.mkdir(parents=True, exist_ok=True)
    pack(a, read_shapes(a.data)) if a.weights else train(a, read_shapes(a.data))


if __name__ == '__main__': main()
