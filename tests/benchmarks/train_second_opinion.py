"""Train the judge of the second opinion, and the classifier that sees its evidence, for the weights that ship with the package.

    python tests/benchmarks/train_second_opinion.py --data ../shared/data --weights skyseek/weights/default

Training spectra are those of the redrock benchmark's training files, sky fibres included. Everything is cross-fitted: bases are learned on one half
of the targets and scan the other, a judge is trained on one half and weighs the other, and the classifier only sees evidence made like this. The judge
that is kept is then trained on both halves; its acceptance is the lowest that breaks at most 0.5 % of redrock's right redshifts in the cross-fitted
opinions. The encoder stays as it is. The benchmark's validation files only serve to print the figures of the cards. Ten to twenty minutes on one core.
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
import torch
from astropy.table import Table, vstack
from learn_bases import RECIPES, learn, rate

from skyseek import __version__
from skyseek.autoencoder import Autoencoder, encode
from skyseek.candidates import candidates
from skyseek.classifier import CLASSIFIER_TRAINING, WrongClassifier, pick_columns, predict, train_classifier
from skyseek.desi import join_redrock, read_coadd, read_redrock, read_truth
from skyseek.evaluate import boosting_score, compare, compare_detectors, format_table
from skyseek.evidence import Judge, choose_acceptance, correction_rates, evidence_columns, second_look, second_opinion, train_judge
from skyseek.features import EVIDENCE, METADATA, ArrayStream, build_features
from skyseek.redshift import library_bases, scan_redshift
from skyseek.simulate import simulate_spectra
from skyseek.spectra import concatenate
from skyseek.train import TrainSettings, fingerprint, load_model, save_model
from skyseek.truth import choose_threshold, label_wrong, match_truth, split_of

JUDGE_CARD = """# Judge of the second opinion

Trained with skyseek {version} by `tests/benchmarks/train_second_opinion.py`.

- **Data.** {n} spectra of the training files of the redrock benchmark (simulated DESI spectra, sky fibres among them) with the answers of redrock 0.21, and {m} of the built-in simulator
  with a scan of ours as their pipeline, all with their truth; candidates from bases that were learned on the other half of the targets. No visual inspection, no DR1 spectrum.
- **Right** means the right type and |z - z_true|/(1 + z_true) < 0.0033. A proposal is accepted at P_ALT >= {acceptance}.
- **Figures** on the benchmark's validation files (68 % intervals):

{figures}

- **Limits.** Bases and judge know the benchmark's kinds of objects and noise; elsewhere the probabilities are not calibrated.
- **Licence.** BSD-3-Clause, as the package.
"""

CLASSIFIER_CARD = """# Classifier with a second opinion

Trained with skyseek {version} by `tests/benchmarks/train_second_opinion.py` on the latents of the autoencoder beside it, redrock's columns, and the evidence of the judge.

- **Data.** {n} labelled spectra of the training files of the redrock benchmark (simulated DESI spectra), answers of redrock 0.21. No visual inspection, no DR1 spectrum.
- **Columns.** {columns}
- **Wrong** means |z_true - Z|/(1 + Z) > 0.001, or another spectral type.
- **Figures** on the {n_test} targets of the benchmark's validation files, beside other detectors on the same targets (value and half its 68 % interval):

{figures}

- **Limits.** Error rates, mix and depth are those of a simulation. On the real sky take the probabilities as a ranking, and train on your own labels where there are some.
- **Licence.** BSD-3-Clause, as the package.
"""


def read_part(folder, part):
    """Spectra of one part of the benchmark with redrock's columns and TRUE_Z, TRUE_SPECTYPE (SKY too) and FLAGS in meta."""
    coadds = sorted((folder/'redrock_bench'/part).glob('coadd-*.fits'))
    spectra = concatenate([join_redrock(read_coadd(c), read_redrock(str(c).replace('coadd-', 'redrock-'))) for c in coadds])
    truth = vstack([Table.read(str(c).replace('coadd-', 'truth-')) for c in coadds], metadata_conflicts='silent')
    if not (np.asarray(truth['TARGETID']) == np.asarray(spectra.meta['TARGETID'])).all(): raise ValueError(f'{folder}: truth and coadd rows of {part} differ')
    for name in ('TRUE_SPECTYPE', 'FLAGS'): spectra.meta[name] = np.char.strip(np.asarray(truth[name]).astype(str))
    spectra.meta['TRUE_Z'] = np.asarray(truth['TRUE_Z'], float)
    return spectra


def simulated(n, start):
    """Spectra of the built-in simulator, a quarter cut to the wavelengths of SDSS, with a scan by principal components of the template library as their pipeline."""
    parts = []
    for seed in range(start, start + n//500):
        spectra, truth = simulate_spectra(500, seed=seed, program='dark' if seed % 3 < 2 else 'bright')
        if seed % 4 == 3: spectra = spectra.replace(ivar=np.where((spectra.wave > 3800) & (spectra.wave < 9200), spectra.ivar, 0))  # as far as SDSS sees
        answer = scan_redshift(spectra, library_bases()).to_table()
        meta = answer['Z', 'ZERR', 'ZWARN', 'CHI2', 'NPIXELS', 'SPECTYPE', 'SUBTYPE', 'DELTACHI2']
        meta['TARGETID'], meta['TRUE_Z'], meta['TRUE_SPECTYPE'], meta['FLAGS'] = np.asarray(spectra.meta['TARGETID']) + seed*10**6, truth['TRUE_Z'], np.asarray(truth['TRUE_SPECTYPE']).astype(str), ''
        parts.append(spectra.replace(meta=meta))
    return concatenate(parts)


def cross_fit(spectra, real):
    """For each half of the targets: rows, spectra, scan and candidates with bases of the other half (its `real` ones); and the judge to weigh each half."""
    half = split_of(spectra.meta['TARGETID'], (.5, .5, 0)) == 'train'
    halves = []
    for mine in (half, ~half):
        rows, others = np.flatnonzero(mine), spectra[np.flatnonzero(~mine & real & (spectra.meta['TRUE_SPECTYPE'] != 'SKY'))]
        part = spectra[rows]
        fit = scan_redshift(part, learn(others, RECIPES))
        halves.append((rows, part, fit, candidates(part, fit)))
        print(fit, flush=True)
    judges = []
    for rows, part, _, cand in halves:
        torch.manual_seed(len(judges))
        judges.append(Judge())
        train_judge(judges[-1], part, cand, part.meta)
    return halves, judges[::-1]


def opinions(halves, judges):
    """Cross-fitted opinions and evidence, in the order of the spectra."""
    order = np.argsort(np.concatenate([h[0] for h in halves]))
    opinion = vstack([second_opinion(part, fit, judge, cand=cand) for (_, part, fit, cand), judge in zip(halves, judges)])[order]
    evidence = vstack([evidence_columns(part, cand, judge) for (_, part, _, cand), judge in zip(halves, judges)])[order]
    return opinion, evidence


def final_judge(halves, spectra, acceptance):
    """A judge of all training spectra."""
    torch.manual_seed(7)
    judge, cands = Judge(acceptance=acceptance), [h[3] for h in halves]
    whole = spectra[np.concatenate([h[0] for h in halves])]
    width = max(c.z.shape[1] for c in cands)
    pad = lambda a, name: np.pad(a, ((0, 0), (0, width - a.shape[1])), constant_values=np.inf if name in ('cost', 'chi2') else -1 if name == 'kind' else 0)
    cand = type(cands[0])(**{name: np.concatenate([pad(getattr(c, name), name) for c in cands]) for name in cands[0].__dataclass_fields__})
    train_judge(judge, whole, cand, whole.meta)
    return judge


def inputs(spectra, autoencoder):
    """Latents, metadata with names, labels (N, 2) for spectra with evidence in meta."""
    features = build_features(spectra)
    code = encode(autoencoder, ArrayStream({k: features[k] for k in ('flux', 'weight', 'scale', 'exptime')}, 64, shuffle=False))
    label = label_wrong(spectra.meta, Table({k: spectra.meta[k] for k in ('TRUE_Z', 'TRUE_SPECTYPE')}), .001)
    wrong = np.stack([label['Z_WRONG'], label['S_WRONG']], 1).astype(np.float32)
    return code['latent'], features['metadata'], features['metadata_names'], wrong


def judge_figures(spectra, opinion):
    """Lines of the judge's card."""
    meta, lines = spectra.meta, ['| S/N per pixel | class | spectra | Z_ALT off by > 1000 km/s | redrock | SPECTYPE_ALT wrong | redrock |', '|---'*7 + '|']
    z, kind = np.asarray(meta['TRUE_Z'], float), np.asarray(meta['TRUE_SPECTYPE']).astype(str)
    off, off_rr = (abs(np.nan_to_num(np.asarray(x, float), nan=99) - z)/(1 + z) > .0033 for x in (opinion['Z_ALT'], meta['Z']))
    types = [np.char.strip(np.asarray(t).astype(str)) != kind for t in (opinion['SPECTYPE_ALT'], meta['SPECTYPE'])]
    for cut in (0, 1, 2):
        for c in ('GALAXY', 'QSO', 'STAR'):
            m = (kind == c) & (spectra.snr > cut)
            lines.append(f'| > {cut} | {c} | {m.sum()} | ' + ' | '.join(rate(x[m]) for x in (off, off_rr, *types)) + ' |')
    target = kind != 'SKY'
    fixed, broken, n, m = correction_rates(opinion[target], meta['Z'][target], z[target])
    lines += ['', f"Accepted proposals: {100*fixed:.1f} % of redrock's {n} redshifts off by > 1000 km/s put right, {100*broken:.2f} % of its {m} right ones broken.",
              f"Sky fibres ({(~target).sum()}): highest P_ALT {opinion['P_ALT'][~target].max():.2f}, mean P_NONE {opinion['P_NONE'][~target].mean():.2f}."]
    return '\n'.join(lines)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--simulated', type=int, default=4000, help='spectra of the simulator beside those of the benchmark, for the judge')
    parser.add_argument('--weights', type=Path, required=True, help='folder with autoencoder/; judge/ and classifier/ are written into it')
    a = parser.parse_args()
    warnings.simplefilter('ignore')
    spectra, held = read_part(a.data, 'train'), read_part(a.data, 'validation')
    keep = ['TARGETID', 'Z', 'ZERR', 'ZWARN', 'CHI2', 'NPIXELS', 'SPECTYPE', 'SUBTYPE', 'DELTACHI2', 'TRUE_Z', 'TRUE_SPECTYPE', 'FLAGS']
    both, real = spectra.replace(meta=spectra.meta[keep]), np.ones(len(spectra), bool)
    if a.simulated: both, real = concatenate([both, simulated(a.simulated, 5000)]), np.arange(len(spectra) + a.simulated) < len(spectra)
    halves, judges = cross_fit(both, real)
    opinion, evidence = (t[real] for t in opinions(halves, judges))
    target = np.asarray(spectra.meta['TRUE_SPECTYPE']) != 'SKY'
    acceptance = choose_acceptance(opinion[target], spectra.meta['Z'][target], spectra.meta['TRUE_Z'][target])
    print(f'acceptance {acceptance}; cross-fitted: put right, broken', correction_rates(opinion[target], spectra.meta['Z'][target], spectra.meta['TRUE_Z'][target], acceptance), flush=True)
    judge = final_judge(halves, both, acceptance)
    for name in EVIDENCE: spectra.meta[name] = evidence[name]
    looked, second, _ = second_look(held, judge)
    text = judge_figures(held, second)
    save_model(judge, a.weights/'judge', card=JUDGE_CARD.format(version=__version__, n=len(spectra), m=a.simulated, acceptance=acceptance, figures=text))
    print(text, flush=True)
    train_final(a.weights, spectra[np.flatnonzero(target)], looked[np.flatnonzero(np.asarray(held.meta['TRUE_SPECTYPE']) != 'SKY')])


def train_final(folder, spectra, held):
    """Train and write the classifier, and print it beside others on the validation files."""
    autoencoder = load_model(folder/'autoencoder', Autoencoder)
    latent, metadata, names, wrong = inputs(spectra, autoencoder)
    latent_v, metadata_v, names_v, wrong_v = inputs(held, autoencoder)
    split, scores, inner = split_of(spectra.meta['TARGETID']), {}, None
    for label, columns, width in (('columns + spectrum + second opinion', 'second', 36), ('columns + second opinion', 'second', 0), ('columns + spectrum', 'portable', 36)):
        torch.manual_seed(0)
        model = WrongClassifier(METADATA[columns], latent=width)
        pick = lambda m, n: pick_columns(m, n, model.columns)
        train_classifier(model, latent, pick(metadata, names), wrong, split, TrainSettings(**CLASSIFIER_TRAINING, device='cpu'), progress=False)
        scores[label] = [predict(model, z, pick(m, n)) for z, m, n in ((latent, metadata, names), (latent_v, metadata_v, names_v))]
        if width and columns == 'second': best = model
    inner, side = split == 'validation', split == 'train'
    for label, columns in (('trees, all columns', 'full'), ('trees, all columns + second opinion', 'both')):
        wanted = METADATA['full'] + (EVIDENCE if columns == 'both' else [])
        x, xv = pick_columns(metadata, names, wanted), pick_columns(metadata_v, names_v, wanted)
        scores[label] = [np.stack([boosting_score(x[side], wrong[side, k], y) for k in range(2)], 1) for y in (x, xv)]
    thresholds, parts = [], []
    for k, name in enumerate(('Z_WRONG', 'S_WRONG')):
        detectors = {label: (p[inner, k], pv[:, k]) for label, (p, pv) in scores.items()}
        table = compare_detectors(detectors, wrong[inner, k], wrong_v[:, k], probabilities=list(detectors))
        ours = scores['columns + spectrum + second opinion'][1][:, k]
        deltas = [f"minus {label}: {{:+.3f}} ({{:+.3f}} to {{:+.3f}}, 95 %)".format(*compare(wrong_v[:, k], ours, scores[label][1][:, k])) for label in list(scores)[1:]]
        parts.append(f'{name}\n\n```\n{format_table(table)}\n```\n\nAP of the first, paired: ' + '; '.join(deltas))
        thresholds.append(choose_threshold(wrong[inner, k], scores['columns + spectrum + second opinion'][0][inner, k]))
    about = 'trained on simulated DESI spectra with the answers of the real redrock 0.21 (no visual inspections); |dz|/(1+z) > 0.001 is wrong'
    card = CLASSIFIER_CARD.format(version=__version__, n=int(side.sum()), n_test=len(wrong_v), columns=', '.join(best.columns), figures='\n\n'.join(parts))
    save_model(best, folder/'classifier', card=card, thresholds=thresholds, about=about, tolerance='0.001', autoencoder=fingerprint(autoencoder))
    print(card)


if __name__ == '__main__': main()
