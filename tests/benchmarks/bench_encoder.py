"""The default encoder beside the published one: spectra per second, and what each learns in the same processor time.

    python tests/benchmarks/bench_encoder.py --data ../shared/data [--minutes 8] [--files 5] [--device cuda]
    python tests/benchmarks/bench_encoder.py --data ../shared/data --files 5 --before 78d6a9d

Run by hand. With --before the shipped weights of an older commit and of this one are timed in turns in one process, each with its own code, and compared. Both autoencoders train on the same spectra with the same optimiser for the same number of minutes on one thread (or one GPU);
then χ² of the reconstruction, and the average precision of the same classifier on the latents of each, on spectra that neither saw.
"""

import argparse
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

import numpy as np
import torch
from before import load_before
from sklearn.metrics import average_precision_score

from skyseek.learn.autoencoder import Autoencoder, EncoderSettings, as_published, encode
from skyseek.detect.classifier import (
    CLASSIFIER_TRAINING, WrongClassifier, label_features, pick_columns, predict, train_classifier,
)
from skyseek.data.desi import extract
from skyseek.data.redshift_tables import read_truth
from skyseek.learn.features import METADATA, build_features
from skyseek.learn.training import ArrayStream, load_model, shipped
from skyseek.learn.training import TrainSettings, learning_rate
from skyseek.data.truth import split_of
from dataclasses import asdict

PARTS = ('flux', 'weight', 'scale', 'exptime', 'targetid', 'metadata')


def read(folder, limit=None):
    """Features and truth of the coadds in a folder of the benchmark."""
    coadds = sorted(folder.glob('coadd-*.fits'))[:limit]
    shards = [build_features(extract(c)) for c in coadds]
    truth = read_truth([str(c).replace('coadd-', 'truth-') for c in coadds])
    return {k: np.concatenate([s[k] for s in shards]) for k in PARTS} | {'metadata_names': shards[0]['metadata_names']}, truth


def rate(encoder, batch, n, device, repeat=4):
    """Spectra per second of an encoder on batches of n."""
    b = {k: v[:n].to(device) for k, v in batch.items()}
    times = []
    with torch.no_grad():
        for _ in range(repeat + 1):
            start = perf_counter()
            encoder(b)
            if device == 'cuda': torch.cuda.synchronize()
            times.append(perf_counter() - start)
    return n/min(times[1:])


def train_for(model, stream, seconds, clock, device):
    """AdamW with warm-up and cosine for a given time; returns the spectra seen."""
    settings, seen, epoch = TrainSettings(), 0, 0
    optimizer = torch.optim.AdamW(model.parameters(), settings.lr, weight_decay=settings.weight_decay)
    model.train().to(device)
    start = clock()
    while True:
        for batch in stream.epoch(epoch):
            progress = (clock() - start)/seconds
            if progress >= 1: return seen
            for group in optimizer.param_groups: group['lr'] = learning_rate(progress, settings)
            loss = model.loss({k: v.to(device) for k, v in batch.items()})
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            optimizer.step()
            seen += len(batch['flux'])
        epoch += 1


def precision(train, test, truths, latents):
    """Average precision of Z_WRONG and S_WRONG of the standard classifier, trained on latents[0], for each of the others."""
    (wrong, known), (wrong_test, known_test) = (label_features(p, t) for p, t in zip((train, test), truths))
    model = WrongClassifier(METADATA['full'])
    columns = [pick_columns(p['metadata'], p['metadata_names'], model.columns) for p in (train, test)]
    torch.manual_seed(0)
    split = split_of(train['targetid'], (.85, .15, 0))
    train_classifier(model, latents[0][known], columns[0][known], wrong[known], split[known], TrainSettings(**CLASSIFIER_TRAINING, device='cpu'), progress=False)
    found = [predict(model, code, columns[1]) for code in latents[1:]]
    return [[average_precision_score(wrong_test[known_test, k], p[known_test, k]) for k in range(2)] for p in found]


def in_turns(encoders, batch, rounds=8):
    """Shortest and median processor times (ms per spectrum) of encoders, one after the other, and their latents."""
    times, codes = [[] for _ in encoders], []
    with torch.no_grad():
        for k in range(rounds + 1):
            for encoder, seen in zip(encoders, times):
                start = process_time()
                code = encoder(batch)
                if k: seen.append(1e3*(process_time() - start)/len(code))
                else: codes.append(code.numpy())
    return [(min(t), np.median(t)) for t in times], codes


def compare(commit, train, test, truths):
    """Print cost, latents, reconstruction and average precision of the shipped autoencoder before and now."""
    with TemporaryDirectory() as folder:
        before = load_before(commit, folder, 'skyseek.learn.autoencoder', 'skyseek.learn.training')
        old = before['skyseek.learn.training'].load_model(Path(folder)/'skyseek/weights/default/autoencoder', before['skyseek.learn.autoencoder'].Autoencoder)
        sizes = [(Path(f)/'model.safetensors').stat().st_size/1e6 for f in (Path(folder)/'skyseek/weights/default/autoencoder', shipped('autoencoder'))]
    new = load_model(shipped('autoencoder'), Autoencoder)
    times, latents = in_turns([old.encoder, new.encoder], next(iter(ArrayStream({k: test[k] for k in PARTS[:4]}, 64, shuffle=False).epoch(0))))
    stream = lambda part: ArrayStream({k: part[k] for k in PARTS[:4]}, 64, shuffle=False)
    codes = [code(model, stream(test)) for model, code in ((old, before['skyseek.learn.autoencoder'].encode), (new, encode))]
    taught = encode(new, stream(train))['latent']
    precisions = precision(train, test, truths, [taught, *(c['latent'] for c in codes)])
    rows = [(name, *time, size, np.median(c['chi2']), np.mean(np.log1p(c['chi2'])), *ap) for name, time, size, c, ap in zip(('before', 'now'), times, sizes, codes, precisions)]
    print(f'\nthe shipped autoencoder, one thread, in turns; {len(test["flux"])} spectra; largest difference of a latent {abs(latents[0] - latents[1]).max():.1e}')
    print(f'{"encoder":10}{"ms, best":>10}{"median":>8}{"MB":>6}{"median χ²/n":>13}{"mean ln(1+χ²/n)":>17}{"AP Z_WRONG":>12}{"AP S_WRONG":>12}')
    for name, best, typical, size, median, mean, z, s in rows: print(f'{name:10}{best:10.2f}{typical:8.2f}{size:6.1f}{median:13.4f}{mean:17.4f}{z:12.3f}{s:12.3f}')


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--minutes', type=float, default=8)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--before', help='commit to compare with; nothing is trained but a classifier')
    parser.add_argument('--files', type=int, help='training files to use (default: all)')
    a = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    train, truth = read(a.data/'redrock_bench/train', a.files)
    test, truth_test = read(a.data/'redrock_bench/validation')
    if a.before: return compare(a.before, train, test, (truth, truth_test))
    clock = process_time if a.device == 'cpu' else perf_counter
    stream = lambda part, size, shuffle=True: ArrayStream({k: part[k] for k in PARTS[:4]}, size, shuffle=shuffle)
    rates, rows = {}, []
    for name, settings, size in (('published', as_published(), 8), ('default', EncoderSettings(), 32)):
        torch.manual_seed(0)
        model = Autoencoder(**asdict(settings)).to(a.device)
        batch = next(iter(stream(test, 64).epoch(0)))
        rates[name] = rate(model.encoder.eval(), batch, 8 if a.device == 'cpu' and name == 'published' else 64, a.device)
        seen = train_for(model, stream(train, size), 60*a.minutes, clock, a.device)
        codes = [encode(model, stream(p, 8 if name == 'published' else 64, False), a.device) for p in (train, test)]
        (z, s), = precision(train, test, (truth, truth_test), [c['latent'] for c in codes])
        rows.append((name, 1e3/rates[name], rates[name]/rates['published'], seen, np.median(codes[1]['chi2']), np.mean(np.log1p(codes[1]['chi2'])), z, s))
        print(f'{name} done', flush=True)
    print(f'\n{a.minutes:g} minutes of training each on one {"thread" if a.device == "cpu" else "GPU"}, {len(train["flux"])} spectra; {len(test["flux"])} unseen ones')
    print(f'{"encoder":10}{"ms/spectrum":>12}{"speed":>8}{"seen":>9}{"median χ²/n":>13}{"mean ln(1+χ²/n)":>17}{"AP Z_WRONG":>12}{"AP S_WRONG":>12}')
    for name, ms, speed, seen, median, mean, z, s in rows: print(f'{name:10}{ms:12.2f}{speed:7.0f}×{seen:9}{median:13.3f}{mean:17.3f}{z:12.3f}{s:12.3f}')


if __name__ == '__main__': main()
