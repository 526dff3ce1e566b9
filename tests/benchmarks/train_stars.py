"""Train the stellar autoencoder that ships with the package, at the published size, and measure its promises.

    python tests/benchmarks/train_stars.py --data ../shared/data --weights skyseek/weights/stars
    python tests/benchmarks/train_stars.py --data ../shared/data --compare

61,627 simulated stars in the published mix (every second one from the Pickles library, where it has the type), split, cleaned and trained as published; rare
objects are planted, about ten of each kind among the 6,627 of the test side. A quarter of an hour on two cores. --compare trains networks with other channels
and other ceilings on 12,000 stars and prints how they do; --device cuda trains on a GPU and prints its rate.
"""

import argparse
import warnings
from pathlib import Path
from time import perf_counter

import numpy as np
from astropy.table import Table, vstack
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score

from skyseek import __version__
from skyseek.anomaly.stellar_autoencoder import STELLAR_TRAINING, StellarAutoencoder, error_statistics, r_squared
from skyseek.anomaly.stellar_autoencoder import reconstruct, reconstruction_errors, snr_bins, spoil_stretch
from skyseek.anomaly.stellar_autoencoder import train_stellar
from skyseek.anomaly.stellar_spectra import StellarFlux, prepare_stars, stellar_side
from skyseek.simulate.templates import read_library
from skyseek.data.read import read_any
from skyseek.anomaly.stellar_sample import PLANTED, simulate_stars
from skyseek.learn.training import TrainSettings, save_model

N, PIECE, EACH = 61_627, 4_000, 6  # stars, stars simulated at a time, rare ones of each kind a piece

CARD = """# Stellar autoencoder

Trained with skyseek {version} by `tests/benchmarks/train_stars.py`.

- **Data.** {about}
- **Training.** {training}
- **Figures**, all on the {n_test} stars of the test side:

```
{figures}
```

- **Limits.** Simulated stars, half of them with line strengths from a simple model: real spectra may be drawn worse (LAMOST's are), so compare real stars among themselves, or train on your own (`skyseek train-stars`).
- **Licence.** BSD-3-Clause, as the package; the Pickles library (1998, PASP 110, 863) is public.
"""


def sample(n, library, seed=0, each=EACH):
    """Prepared stars and their truth."""
    stars, tables = [], []
    for first in range(0, n, PIECE):
        spectra, truth = simulate_stars(min(PIECE, n - first), seed, planted=dict.fromkeys(PLANTED, each), first=first, library=library)
        stars.append(prepare_stars(spectra))
        tables.append(truth)
    return StellarFlux(*(np.concatenate([getattr(s, k) for s in stars]) for k in StellarFlux.__dataclass_fields__)), vstack(tables)


def recall(score, kinds, planted, share=.01):
    """Text: how many of each planted kind are in the top of a score, and its AUC."""
    top = np.argsort(-score)[:round(share*len(score))]
    rows = []
    for kind in PLANTED:
        mine = planted & (kinds == kind)
        rows.append(f'{kind} {np.isin(np.flatnonzero(mine), top).sum()}/{mine.sum()} (AUC {roc_auc_score(mine[mine | ~planted], score[mine | ~planted]):.3f})')
    return ', '.join(rows)


def baselines(stars, side):
    """Scores of all stars: distance from 20 principal components, and isolation forest on them."""
    flux = np.where(stars.weight > 0, stars.flux, 1)
    pca = PCA(20, random_state=0).fit(flux[side == 'train'])
    code = pca.transform(flux)
    forest = IsolationForest(n_estimators=300, random_state=0).fit(code[side == 'train'])
    return {'RMSE of 20 PCs': np.sqrt(((pca.inverse_transform(code) - flux)**2).mean(1)), 'isolation forest on PCs': -forest.score_samples(code)}


def mending(model, stars):
    """Text: rms error where a stretch was spoilt."""
    intact, lines = reconstruct(model, stars), []
    for marked in (True, False):
        spoilt, lost = spoil_stretch(stars, np.random.default_rng(0), marked=marked)
        seen = lost & (stars.weight > 0)
        rms = lambda a: np.sqrt(np.mean((a - stars.flux)[seen]**2))
        lines.append(f"200 A lost, {'marked' if marked else 'not marked'}: rms error {rms(reconstruct(model, spoilt)):.4f} (where nothing was lost {rms(intact):.4f}, of zeros {rms(spoilt.flux):.4f})")
    return '\n'.join(lines)


def real_stars(model, data):
    """Text: RMSE of real stars."""
    lines = []
    for name, folder in (('SDSS', data/'sdss'), ('LAMOST', data/'lamost')):
        spectra = read_any(folder)
        meta = spectra.meta
        keep = (meta['SPECTYPE'] == 'STAR') & (np.asarray(spectra.snr) > 5) & (meta['OBJTYPE'] == 'TGT')
        stars = prepare_stars(spectra[np.flatnonzero(keep)])
        rmse = np.asarray(reconstruction_errors(stars, reconstruct(model, stars))['RMSE'])
        lines.append(f'{name}: {stars.usable.sum()} of {len(stars)} stars usable, RMSE quartiles {", ".join(f"{q:.3f}" for q in np.nanpercentile(rmse, [25, 50, 75]))}')
    return '\n'.join(lines)


def text(table):
    """A table as text, four digits."""
    for name in table.colnames:
        if table[name].dtype.kind == 'f': table[name].format = '.4f'
    return '\n'.join(table.pformat(max_lines=-1, max_width=-1))


def figures(model, stars, truth, side, data):
    """All figures as text."""
    test = side == 'test'
    shown, kinds, planted = stars[test], np.asarray(truth['KIND']).astype(str)[test], np.asarray(truth['PLANTED'])[test]
    drawn = reconstruct(model, shown)
    errors = reconstruction_errors(shown, drawn)
    scores = {'RMSE': np.asarray(errors['RMSE']), 'EXCESS': np.asarray(errors['EXCESS'])} | {k: v[test] for k, v in baselines(stars, side).items()}
    parts = [text(error_statistics(errors)), text(snr_bins(errors, np.asarray(truth['SNR'])[test])), f'R2 = {r_squared(shown, drawn):.4f}', 'planted objects in the top 1 %:']
    parts += [f'  {name:24} {recall(score, kinds, planted)}' for name, score in scores.items()]
    return '\n'.join([*parts, mending(model, shown[~planted]), real_stars(model, data)])


def compare(library):
    """Print how networks of other shapes do."""
    stars, truth = sample(12_000, library)
    side = stellar_side(stars)
    test, planted, kinds = side == 'test', np.asarray(truth['PLANTED']), np.asarray(truth['KIND']).astype(str)
    for settings in (dict(channels=(8, 16, 16, 4)), dict(channels=(8, 16, 16, 8)), dict(channels=(8, 16, 16, 2)), dict(channels=(4, 8, 8, 4)), dict(channels=(16, 16, 16, 4)), dict(channels=(8, 16, 16, 4), ceiling=1.)):
        start = perf_counter()
        model, history = train_stellar(stars, StellarAutoencoder(**settings), TrainSettings(**STELLAR_TRAINING | dict(epochs=60), device='cpu'))
        rmse = np.asarray(reconstruction_errors(stars[test], reconstruct(model, stars[test]))['RMSE'])
        numbers = 40*model.settings.channels[-1]
        print(f"{settings}: {numbers} numbers, {len(history['train'])} epochs, {perf_counter() - start:.0f} s, median RMSE {np.median(rmse[~planted[test]]):.4f}; {recall(rmse, kinds[test], planted[test])}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--weights', type=Path, help='model folder to write')
    parser.add_argument('--compare', action='store_true', help='other shapes on a smaller set')
    parser.add_argument('--epochs', type=int, default=150, help='at most')
    parser.add_argument('--device', default='cpu')
    a = parser.parse_args()
    warnings.simplefilter('ignore')
    library = read_library(a.data/'templates/speXtra')
    if a.compare: return compare(library)
    start = perf_counter()
    stars, truth = sample(N, library)
    side = stellar_side(stars)
    counts = ', '.join(f'{n} {s}' for s, n in zip(*np.unique(side, return_counts=True)))
    print(f'{len(stars)} stars in {perf_counter() - start:.0f} s: {counts}', flush=True)
    start = perf_counter()
    model, history = train_stellar(stars, settings=TrainSettings(**STELLAR_TRAINING | dict(epochs=a.epochs), device=a.device))
    seconds, epochs = perf_counter() - start, len(history['train'])
    training = f"{epochs} epochs, {seconds:.0f} s on {a.device} ({(side == 'train').sum()*epochs/seconds:.0f} spectra a second); validation error {history['validation'][history['best']]:.6f} in epoch {history['best']}."
    print(training, flush=True)
    printed = figures(model, stars, truth, side, a.data)
    print(printed)
    about = f'{len(stars)} simulated stars in the published mix, every second one from the Pickles library where it has the type; {counts}.'
    if a.weights: save_model(model, a.weights, card=CARD.format(version=__version__, about=about, training=training, n_test=(side == 'test').sum(), figures=printed))


if __name__ == '__main__': main()
