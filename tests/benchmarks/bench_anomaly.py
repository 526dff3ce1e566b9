"""What the anomaly scores find, beside other people's methods; and the reference that ships with the package.

    python tests/benchmarks/bench_anomaly.py --data ../shared/data [--spender 10]
    python tests/benchmarks/bench_anomaly.py --data ../shared/data --fit skyseek/weights/default/anomaly

Rare types in the validation files of the redrock benchmark, and in simulated surveys in which they are rarer. The reference of our scores is the training files
and 4,500 simulated spectra; labels are used by nobody but the table. --spender MINUTES also trains a network as spender's papers describe it (convolutions,
attention over wavelength, a rest-frame decoder shifted to the pipeline's redshift, a masked autoregressive flow on the latents; half as wide), from nothing;
it needs zuko (pip install zuko). --fit writes the reference and its card. Twelve minutes on two cores without --spender.
"""

import argparse
import warnings
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from astropy.stats import binom_conf_interval
from astropy.table import Table, hstack, vstack
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from scipy.stats import spearmanr
from torch import nn

from skyseek import __version__
from skyseek.anomaly.scores import COMBINED, SCORES, fit_reference, log_snr, raw_scores, surprises
from skyseek.learn.autoencoder import encode
from skyseek.pipeline.score import load_weights
from skyseek.redshift.second_look import second_look
from skyseek.learn.features import build_features
from skyseek.learn.training import ArrayStream
from skyseek.detect.labelled_data import read_labelled
from skyseek.redshift.bases import library_bases
from skyseek.redshift.scan import scan_redshift
from skyseek.simulate.mock_survey import simulate_spectra
from skyseek.data.spectra import concatenate
from skyseek.learn.training import fingerprint, load_model, save_model

TYPES = ('CARBON', 'LDWARF', 'CV', 'BAL', 'BLEND', 'DEAD')
PIPELINE = ('Z', 'ZERR', 'ZWARN', 'CHI2', 'NPIXELS', 'SPECTYPE', 'SUBTYPE', 'DELTACHI2')
SURVEYS = {'simulated, dark': ('dark', 3000, 6001), 'simulated, bright': ('bright', 2000, 6002)}  # to report on
REFERENCE = (('dark', 3000, 5001), ('bright', 1500, 5002))  # simulated part of the reference

CARD = """# Anomaly reference

Fitted with skyseek {version} by `tests/benchmarks/bench_anomaly.py`.

- **Data.** {n} spectra: the targets of the benchmark's training files, and those of two simulated surveys, dark and bright. No labels, no DR1 spectrum.
- **Figures**: area under the ROC curve against the ordinary targets of the same sample (68 % bootstrap half-widths), and the share of the rare ones in the top 1 % and 5 %.

```
{figures}
```

- **Limits.** What is ordinary here is ordinary in a simulation. With a survey of your own, learn it there: `skyseek reference COADDS -o WEIGHTS`.
- **Licence.** BSD-3-Clause, as the package.
"""


def text(column): return np.char.strip(np.ma.filled(np.ma.asarray(column), '').astype(str))


def kinds_of(subtype, flags):
    """Table of bool columns: the rare types."""
    subtype, flags = text(subtype), text(flags)
    out = Table({k: subtype == k for k in ('CARBON', 'LDWARF', 'CV', 'BAL')})
    out['BLEND'], out['DEAD'] = np.char.find(flags, 'BLEND') >= 0, np.char.find(flags, 'DEAD') >= 0
    return out


def simulated(program, n, seed):
    """Targets of a simulated survey with the answers of a simple pipeline, and their rare types."""
    spectra, truth = simulate_spectra(n, seed, 2, program=program)
    keep = np.flatnonzero(truth['CLASS'] != 'SKY')
    spectra, truth = spectra[keep], truth[keep]
    answers = scan_redshift(spectra, library_bases()).to_table()
    return spectra.replace(meta=hstack([spectra.meta, answers[PIPELINE]])), kinds_of(truth['SUBTYPE'], truth['FLAGS'])


class Fits:
    """Scans of several samples, one after the other, as `raw_scores` wants them."""
    def __init__(self, fits): self.fits, self.table = fits, vstack([f.table for f in fits])
    def models(self): return np.concatenate([f.models().astype(np.float32) for f in self.fits])
    def __len__(self): return len(self.table)


def prepare(spectra, weights):
    """Spectra, code, fit, opinion."""
    looked, opinion, fit = second_look(spectra, weights.judge)
    features = build_features(looked)
    code = encode(weights.autoencoder, ArrayStream({k: features[k] for k in ('flux', 'weight', 'scale', 'exptime')}, 64, shuffle=False))
    return spectra, code, fit, opinion


def join(parts):
    """Prepared samples as one."""
    spectra = concatenate([p[0].replace(meta=p[0].meta[['TARGETID', *PIPELINE]]) for p in parts])
    return spectra, {k: np.concatenate([p[1][k] for p in parts]) for k in parts[0][1]}, Fits([p[2] for p in parts]), vstack([p[3] for p in parts])


def image(spectra, width=8):
    """(N, L/8) normalised flux averaged over eight pixels, for principal components."""
    flux, n = np.where(spectra.good, spectra.flux, 0)/build_features(spectra)['scale'][:, None], len(spectra.wave)//width*width
    return flux[:, :n].reshape(len(spectra), -1, width).mean(2)


def baselines(reference, sample, weights):
    """Plain scores of a sample: mean squared error of the reconstruction, isolation forests."""
    (spectra, code, _, _), (ref, ref_code, _, _) = sample, reference
    features = build_features(spectra)
    with torch.no_grad(): drawn = weights.autoencoder.decoder(torch.as_tensor(code['latent'])).numpy()
    good = features['weight'] > 0
    mse = (np.where(good, features['flux'].astype(float) - drawn, 0)**2).sum(1)/np.maximum(good.sum(1), 1)
    pca = PCA(20, random_state=0).fit(image(ref))
    forest = lambda train, x: -IsolationForest(n_estimators=300, random_state=0).fit(train).score_samples(x)
    return {'plain reconstruction MSE': mse, 'RECON_CHI2 per pixel': code['chi2'], 'isolation forest on 20 PCs': forest(pca.transform(image(ref)), pca.transform(image(spectra))),
            'isolation forest on latents': forest(ref_code['latent'], code['latent'])}


def area(rare, score, resamples=200):
    """AUC and half of its 68 % bootstrap interval."""
    if not rare.any(): return np.nan, np.nan
    rng, draws = np.random.default_rng(0), []
    i, j = np.flatnonzero(rare), np.flatnonzero(~rare)
    for _ in range(resamples):
        a, b = rng.choice(i, len(i)), rng.choice(j, len(j))
        draws.append(roc_auc_score(np.repeat([1, 0], [len(a), len(b)]), np.concatenate([score[a], score[b]])))
    low, high = np.percentile(draws, [16, 84])
    return roc_auc_score(rare, score), (high - low)/2


def row(name, score, kinds, snr):
    """One line of the table."""
    flags = np.array([kinds[k] for k in TYPES])
    any_rare, stars = flags.any(0), flags[:3].any(0)
    ordinary = ~any_rare
    one = lambda rare: area(rare[rare | ordinary], score[rare | ordinary])
    cells = [one(f) for f in flags]
    macro = np.nanmean([c[0] for c in cells])
    order = np.argsort(-score)
    found = [group[order[:round(s*len(score))]].sum()/group.sum() for group in (stars, any_rare) for s in (.01, .05)]
    shown = ''.join(f'{a:.3f} ± {e:.3f}  ' if np.isfinite(a) else f'{"–":15}' for a, e in (*cells, one(stars), one(any_rare)))
    return f'{name:30}{shown}{macro:.3f}   {found[0]:.2f} {found[1]:.2f}   {found[2]:.2f} {found[3]:.2f}   {spearmanr(score[ordinary], snr[ordinary])[0]:+.2f}'


def table(title, scores, kinds, snr):
    """The table of a sample as text."""
    counts = {k: int(np.sum(kinds[k])) for k in TYPES}
    heads = [f'{k} ({n})' for k, n in counts.items()] + ['C/L/CV', 'any rare']
    best = f'top 1 %, 5 %: shares of C/L/CV, and of the rare ones, found there; the best possible for the latter are {min(1, .01*len(snr)/max(1, sum(counts.values()))):.2f}, {min(1, .05*len(snr)/max(1, sum(counts.values()))):.2f}'
    lines = [f'{title}: {len(snr)} targets; AUC of each type against ordinary ones; mean of the types; {best}; rank correlation with S/N among ordinary ones',
             f'{"":30}' + ''.join(f'{h:15}' for h in heads) + 'mean    1 %  5 %    1 %  5 %    S/N', *(row(name, s, kinds, snr) for name, s in scores.items())]
    return '\n'.join(lines)


def our_scores(reference, sample):
    """Surprises of a sample, by name."""
    odd = surprises(reference, raw_scores(reference, *sample)[0], log_snr(sample[0]))
    return {f'{"*" if name in COMBINED else " "} {name}': odd[name] for name in SCORES} | {'ANOMALY (sum of *)': odd['TOTAL']}


class Spender(nn.Module):
    """spender's encoder and decoder from their description (AJ 166 74), half as wide, on 1,556 bins of 5 pixels."""
    def __init__(self, wave, latent=6, width=64, rest_step=2e-4):
        super().__init__()
        self.register_buffer('wave', torch.as_tensor(np.log10(wave), dtype=torch.float32))
        layers, self.first = [], float(np.log10(1200.))
        self.step, n = rest_step, int((np.log10(9850.) - np.log10(1200.))/rest_step)
        for a, b, k in ((1, width, 5), (width, 2*width, 11), (2*width, 4*width, 21)): layers.append(nn.Sequential(nn.Conv1d(a, b, k, padding=k//2), nn.InstanceNorm1d(b), nn.PReLU(b)))
        self.conv = nn.ModuleList(layers)
        self.mlp = nn.Sequential(nn.Linear(2*width, 128), nn.PReLU(), nn.Linear(128, 64), nn.PReLU(), nn.Linear(64, 32), nn.PReLU(), nn.Linear(32, latent))
        self.decode = nn.Sequential(nn.Linear(latent, 64), nn.SiLU(), nn.Linear(64, 256), nn.SiLU(), nn.Linear(256, 1024), nn.SiLU(), nn.Linear(1024, n))

    def encode(self, x):
        x = nn.functional.max_pool1d(self.conv[0](x[:, None]), 5)
        x = self.conv[2](nn.functional.max_pool1d(self.conv[1](x), 5))
        values, attention = x.chunk(2, dim=1)
        return self.mlp((values*attention.softmax(-1)).sum(-1))

    def forward(self, x, z):
        s, rest = self.encode(x), None
        rest = self.decode(s)
        at = ((self.wave - torch.log10(1 + z)[:, None] - self.first)/self.step).clamp(0, rest.shape[1] - 1.001)
        i = at.floor().long()
        return torch.lerp(rest.gather(1, i), rest.gather(1, i + 1), at - i), s


def coarse(spectra, width=5):
    """Flux, weight (normalised) in bins of 5 pixels, and wavelengths."""
    n = len(spectra.wave)//width*width
    fold = lambda a: a[:, :n].reshape(len(a), -1, width)
    w = fold(spectra.ivar).sum(2)
    f = np.where(w > 0, fold(spectra.ivar*spectra.flux).sum(2)/np.where(w > 0, w, 1), 0)
    scale = np.sqrt((w*f**2).sum(1)/np.maximum(w.sum(1), 1e-30)).clip(1e-9)[:, None]
    return torch.as_tensor(f/scale, dtype=torch.float32), torch.as_tensor(w*scale**2, dtype=torch.float32), spectra.wave[:n].reshape(-1, width).mean(1)


def spender_scores(reference, samples, minutes, seed=0):
    """-log p of the flow at the latents, for each sample; trained on the reference at the pipeline's redshifts."""
    import zuko
    torch.manual_seed(seed)
    (x, w, wave), z = coarse(reference[0]), torch.as_tensor(np.nan_to_num(np.asarray(reference[0].meta['Z'], np.float32))).clamp(-.01, 6)
    model, start, epoch, rng = Spender(wave), perf_counter(), 0, np.random.default_rng(seed)
    adam = torch.optim.Adam(model.parameters(), 1e-3)
    loss_of = lambda rows: (w[rows].clamp(max=1e3)*(model(x[rows], z[rows])[0] - x[rows])**2).mean()/2
    while perf_counter() - start < 60*minutes:
        done = (perf_counter() - start)/60/minutes
        for group in adam.param_groups: group['lr'] = 1e-3*.5*(1 + np.cos(np.pi*done)) + 1e-5
        total, order = 0., rng.permutation(len(x))
        for rows in np.array_split(order, len(x)//64):
            loss = loss_of(rows)
            adam.zero_grad(); loss.backward(); nn.utils.clip_grad_norm_(model.parameters(), 1.); adam.step()
            total += loss.item()*len(rows)
        epoch += 1
    print(f'spender\'s recipe: {sum(p.numel() for p in model.parameters())/1e6:.1f} M parameters, {epoch} epochs in {minutes:g} min, loss {total/len(x):.3f}', flush=True)
    with torch.no_grad(): latent = torch.cat([model.encode(p) for p in x.split(256)])
    mean, std = latent.mean(0), latent.std(0)
    flow = zuko.flows.MAF(latent.shape[1], transforms=5, hidden_features=(50, 50), activation=nn.Tanh)
    adam = torch.optim.Adam(flow.parameters(), 2e-3)
    for _ in range(1500):
        loss = -flow().log_prob(((latent - mean)/std)[rng.integers(0, len(latent), 512)]).mean()
        adam.zero_grad(); loss.backward(); adam.step()
    out = []
    with torch.no_grad():
        for sample in samples:
            s = torch.cat([model.encode(p) for p in coarse(sample[0])[0].split(256)])
            out.append(-flow().log_prob((s - mean)/std).numpy().astype(float))
    return out


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--fit', type=Path, help='write the reference into this model folder')
    parser.add_argument('--spender', type=float, default=0., help="minutes of training for spender's recipe; 0 leaves it out")
    a = parser.parse_args()
    warnings.simplefilter('ignore')
    weights, start = load_weights(), perf_counter()
    reference_sample = join([prepare(read_labelled(a.data/'redrock_bench/train'), weights), *(prepare(simulated(*s)[0], weights) for s in REFERENCE)])
    reference = fit_reference(*reference_sample, bank=2000)
    print(f'reference of {len(reference_sample[0])} spectra in {perf_counter() - start:.0f} s', flush=True)
    held = read_labelled(a.data/'redrock_bench/validation')
    samples = {'benchmark, validation files': (prepare(held, weights), kinds_of(held.meta['TRUE_SUBTYPE'], held.meta['FLAGS']))}
    for name, how in SURVEYS.items():
        spectra, kinds = simulated(*how)
        samples[name] = prepare(spectra, weights), kinds
    flows = spender_scores(reference_sample, [s for s, _ in samples.values()], a.spender) if a.spender else [None]*len(samples)
    parts = []
    for (name, (sample, kinds)), flow in zip(samples.items(), flows):
        scores = our_scores(reference, sample) | baselines(reference_sample, sample, weights) | ({"spender's recipe, -log p": flow} if flow is not None else {})
        parts.append(table(name, scores, kinds, np.asarray(sample[0].snr)))
        print(f'\n{parts[-1]}', flush=True)
    if a.fit: save_model(reference, a.fit, card=CARD.format(version=__version__, n=len(reference_sample[0]), figures='\n\n'.join(parts)), autoencoder=fingerprint(weights.autoencoder))


if __name__ == '__main__': main()
