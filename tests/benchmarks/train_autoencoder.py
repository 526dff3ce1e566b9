"""Train the autoencoder that ships with the package, from nothing.

    python tests/benchmarks/train_autoencoder.py --data ../shared/data --weights skyseek/weights/default [--card]

It learns, without labels, from simulated spectra and from the training files of the redrock benchmark. The benchmark's validation files are only used for
the figures of the card; --card writes the card again and trains nothing. Half an hour on two cores; --thousands, --epochs and --device cuda scale it up.
What is trained on its latents comes after it: learn_bases.py, then train_default.py.
"""

import argparse
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from skyseek import __version__
from skyseek.learn.autoencoder import Autoencoder, encode, train_autoencoder_file
from skyseek.data.desi import extract, select_targets
from skyseek.learn.features import build_features
from skyseek.learn.shards import FeatureStream, write_features
from skyseek.simulate.mock_survey import simulate_spectra
from skyseek.learn.training import TrainSettings, load_model

CARD = """# Autoencoder

Trained with skyseek {version} by `tests/benchmarks/train_autoencoder.py`.

- **Data.** {n_sim} spectra of the built-in simulator and those of the 14 training files of the redrock benchmark (DESI spectra simulated at main-survey depth), no labels. No DR1 spectrum.
- **Figures** on the {n} targets of the benchmark's validation files, which took no part in training: reconstruction chi2 per good pixel, quartiles {figures}.
- **Limits.** Sky fibres, and spectra of other instruments, were not in the training; see the column UNFAMILIAR of catalogues.
- **Licence.** BSD-3-Clause, as the package; the templates behind the benchmark's spectra are from public redrock files and Kinney-Calzetti atlases.
"""


def benchmark_shards(folder, part, into):
    """Feature shards of one part of the redrock benchmark."""
    coadds = sorted((folder/'redrock_bench'/part).glob('coadd-*.fits'))
    return [write_features(build_features(select_targets(extract(c))), into/f'{part}-{c.stem}.npz') for c in coadds]


def write_card(a, into):
    """The card, from the validation files."""
    autoencoder = load_model(a.weights/'autoencoder', Autoencoder)
    chi2 = encode(autoencoder, FeatureStream(benchmark_shards(a.data, 'validation', into), 64, shuffle=False, wave=autoencoder.wave.numpy()))['chi2']
    card = CARD.format(version=__version__, n_sim=1000*a.thousands, n=len(chi2), figures=', '.join(f'{q:.3f}' for q in np.percentile(chi2, [25, 50, 75])))
    (a.weights/'autoencoder/card.md').write_text(card)
    print(card)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--weights', type=Path, required=True, help='autoencoder/ is written into this folder')
    parser.add_argument('--thousands', type=int, default=13, help='thousands of simulated spectra')
    parser.add_argument('--epochs', type=int, default=12)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--card', action='store_true', help='only write the card again')
    a = parser.parse_args()
    warnings.simplefilter('ignore')
    with TemporaryDirectory() as temporary:
        into = Path(temporary)
        if not a.card:
            shards = benchmark_shards(a.data, 'train', into)
            for seed in range(a.thousands):
                spectra, _ = simulate_spectra(1000, seed=1000 + seed, program='dark' if seed % 3 < 2 else 'bright')
                shards.append(write_features(build_features(select_targets(spectra)), into/f'simulated-{seed}.npz'))
            history = train_autoencoder_file(shards, a.weights/'autoencoder', settings=TrainSettings(epochs=a.epochs, device=a.device), progress=False)
            print('validation loss:', [round(v, 4) for v in history['validation']], flush=True)
        write_card(a, into)


if __name__ == '__main__': main()
