"""Train the weights that ship with the package, from nothing.

    python tests/benchmarks/train_weights.py --data ../shared/data --output skyseek/weights/default

The autoencoder learns, without labels, from simulated spectra and from the training files of the redrock benchmark; the classifier from the
labels of these files (their training side; the validation side chooses calibration and thresholds). The benchmark's validation files are only
used to write the figures of the card. About half an hour on two cores.
"""

import argparse
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from skyseek import __version__
from skyseek.autoencoder import Autoencoder, train_autoencoder_file
from skyseek.classifier import CLASSIFIER_TRAINING, WrongClassifier, encode_file, label_features, pick_columns, predict, train_classifier_file
from skyseek.desi import extract, read_truth, select_targets
from skyseek.evaluate import evaluate
from skyseek.features import build_features, write_features
from skyseek.simulate import simulate_spectra
from skyseek.train import TrainSettings, load_model, read_config

CARD = """# First weights of skyseek

Trained with skyseek {version} by `tests/benchmarks/train_weights.py`.

- **Data.** Autoencoder: {n_sim} spectra of the built-in simulator and the spectra of the 14 training files of the redrock benchmark (DESI spectra
  simulated at main-survey depth), no labels. Classifier: the answers of redrock 0.21 for these files, and their truth. No visual inspection, no DR1 spectrum.
- **Columns.** {columns} (`portable`: no template coefficients).
- **Wrong** means |z_true - Z|/(1 + Z) > 0.001, or another spectral type.
- **Figures** on the {n_test} targets of the benchmark's validation files, which took no part in training (68 % bootstrap intervals):

{figures}

- **Limits.** Error rates, mix and depth are those of a simulation. On the real sky take the probabilities as a ranking, and train on your own labels
  where there are some. Sky fibres, and spectra of other instruments, were not in the training.
- **Licence.** BSD-3-Clause, as the package; the templates behind the training spectra are from public redrock files and Kinney-Calzetti atlases.
"""


def benchmark_shards(folder, part, into):
    """Feature shards of one part of the redrock benchmark, and its truth."""
    coadds = sorted((folder/'redrock_bench'/part).glob('coadd-*.fits'))
    shards = [write_features(build_features(select_targets(extract(c))), into/f'{part}-{c.stem}.npz') for c in coadds]
    return shards, read_truth([str(c).replace('coadd-', 'truth-') for c in coadds])


def figures(folder, shards, truth):
    """Lines of the card: metrics on the validation files."""
    autoencoder, classifier = load_model(folder/'autoencoder', Autoencoder), load_model(folder/'classifier', WrongClassifier)
    code = encode_file(shards, autoencoder)
    wrong, known = label_features(code, truth)
    p = predict(classifier, code['latent'], pick_columns(code['metadata'], code['metadata_names'], classifier.columns))
    lines = [f"  - reconstruction: median chi2 per pixel {np.median(code['chi2']):.3f}"]
    for k, name in enumerate(('Z_WRONG', 'S_WRONG')):
        threshold = read_config(folder/'classifier')['extra']['thresholds'][k]
        result = evaluate(wrong[known, k], p[known, k], threshold, probability=True)
        lines.append(f'  - {name}: ' + ', '.join(f'{m} {v:.3f} ({low:.3f} to {high:.3f})' for m, (v, low, high) in result.items()))
    return '\n'.join(lines), int(known.sum())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--output', type=Path, required=True)
    parser.add_argument('--thousands', type=int, default=13, help='thousands of simulated spectra')
    parser.add_argument('--epochs', type=int, default=12)
    parser.add_argument('--device', default='cpu')
    a = parser.parse_args()
    warnings.simplefilter('ignore')
    with TemporaryDirectory() as temporary:
        into = Path(temporary)
        labelled, truth = benchmark_shards(a.data, 'train', into)
        shards = list(labelled)
        for seed in range(a.thousands):
            spectra, _ = simulate_spectra(1000, seed=1000 + seed, program='dark' if seed % 3 < 2 else 'bright')
            shards.append(write_features(build_features(select_targets(spectra)), into/f'simulated-{seed}.npz'))
        print('features built', flush=True)
        history = train_autoencoder_file(shards, a.output/'autoencoder', settings=TrainSettings(epochs=a.epochs, device=a.device), progress=False)
        print('autoencoder:', [round(v, 4) for v in history['validation']], flush=True)
        model = WrongClassifier()
        about = 'trained on simulated DESI spectra with the answers of the real redrock 0.21 (no visual inspections); |dz|/(1+z) > 0.001 is wrong'
        train_classifier_file(labelled, truth, load_model(a.output/'autoencoder', Autoencoder), a.output/'classifier', model, about=about, progress=False,
                              settings=TrainSettings(**CLASSIFIER_TRAINING, device='cpu'))
        text, n = figures(a.output, *benchmark_shards(a.data, 'validation', into))
        card = CARD.format(version=__version__, n_sim=1000*a.thousands, columns=', '.join(model.columns), n_test=n, figures=text)
        for part in ('autoencoder', 'classifier'): (a.output/part/'card.md').write_text(card)
        print(card)


if __name__ == '__main__': main()
