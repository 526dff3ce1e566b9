"""Do nested halves and folds change the shipped weights? Both ways on the same spectra, a part of the shipped recipe.

    python tests/benchmarks/bench_folds.py --data ../shared/data --weights skyseek/weights/default

Version 0.1 took one hash of the TARGETID for the halves of the cross-fitting and for the folds of the classifier, so that a fold lay in one half; since
0.2 each purpose has a hash of its own. The judges, the classifier and the opinions are trained both ways with the same seeds, on the real answers of the
redrock benchmark and --copies changed copies of each. Printed: average precision out of fold and on the validation files, and the paired difference.
Nothing is written. A quarter of an hour on two cores.
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import train_default
from train_default import WRONG, learn_classifier, learn_judge, step, training_spectra

from skyseek.learn.autoencoder import Autoencoder
from skyseek.detect.metrics import average_precision, compare
from skyseek.redshift.second_look import second_look
from skyseek.detect.labelled_data import read_labelled
from skyseek.learn.training import load_model
from skyseek.data.truth import _uniform, fold_of, half_of


def nested_half(targetid): return _uniform(targetid) < .5


def nested_fold(targetid, folds=5): return np.minimum((_uniform(targetid)*folds).astype(int), folds - 1)


def train_once(real, held, half, fold, a, start):
    """Out-of-fold and validation probabilities (N, 2) of weights trained with these halves and folds, and the labels."""
    train_default.half_of, train_default.fold_of = half, fold
    spectra = training_spectra(real, a)[0]
    judge, opinion = learn_judge(spectra, real, a, start)
    looked, second, _ = second_look(held, judge, device=a.device)
    _, train, test, *_ = learn_classifier(spectra, len(real), looked, (opinion, second), load_model(a.weights/'autoencoder', Autoencoder), a)
    return train['p'], test['p'], train['wrong'], test['wrong']


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--weights', type=Path, required=True, help='folder with autoencoder/')
    parser.add_argument('--copies', type=int, default=1)
    parser.add_argument('--seed', type=int, default=0)
    given = parser.parse_args()
    a = argparse.Namespace(**vars(given), simulated=0, injected=.04, judge_epochs=25, epochs=20, members=10, device='cpu')
    start = time.time()
    warnings.simplefilter('ignore')
    real, held = (read_labelled(a.data/'redrock_bench'/part, keep_sky=True) for part in ('train', 'validation'))
    found = {}
    for name, half, fold in (('nested', nested_half, nested_fold), ('salted', half_of, fold_of)):
        found[name] = train_once(real, held, half, fold, a, start)
        step(start, name)
    print(f"{'label':8} {'targets':22} {'nested':>7} {'salted':>7}  salted minus nested (95 %)")
    for k, label in enumerate(WRONG):
        for i, where in enumerate(('cross-validated', 'validation files')):
            (old, y), (new, _) = ((found[name][i][:, k], found[name][2 + i][:, k]) for name in ('nested', 'salted'))
            delta = '{:+.3f} ({:+.3f} to {:+.3f})'.format(*compare(y, new, old))
            print(f"{label:8} {where + f', {len(y)}':22} {average_precision(y, old):7.3f} {average_precision(y, new):7.3f}  {delta}")


if __name__ == '__main__': main()
