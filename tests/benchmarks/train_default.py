"""Train what ships in skyseek/weights/default beside the autoencoder, from nothing: judge, classifier, familiarity.

    python tests/benchmarks/train_default.py --data ../shared/data --weights skyseek/weights/default

Spectra are those of the redrock benchmark's training files with redrock's answers, changed copies of them (noise, redshift, calibration, sky, lost arms
and ends) that a scan with redrock-like templates answers anew, and spectra of the built-in simulator, a part of them bright, rare or with a fault of the instrument, spectra of public templates, and real spectra of SDSS, BOSS and LAMOST, answered likewise; a few
right answers are exchanged for wrong ones. Nothing judges what it was taught on: bases are learned on one half of the targets and scan the other, judges
are trained on one half and weigh the other, and each member of the classifier leaves out one fifth of the targets. What the members say about their
fifths calibrates, gives the thresholds, and is printed. The judge that is kept has seen all of them. The benchmark's validation files only serve to print the
figures of the cards. Half an hour on one core; --copies and --simulated scale it up, --device cuda runs scans and encoder on a GPU.
"""

import argparse
import time
import warnings
from dataclasses import replace
from pathlib import Path

import astropy
import fit_familiarity
import numpy as np
import scipy
import sklearn
import torch
from astropy.table import vstack
from learn_bases import rate
from survey_spectra import lean, survey_spectra

from skyseek import __version__
from skyseek.detect.augment import answer, augment, inject_errors, redrock_like, simulate_labelled
from skyseek.learn.autoencoder import Autoencoder, encode
from skyseek.data.files import text
from skyseek.redshift.candidates import candidates, join_candidates
from skyseek.detect.boosted_trees import BoostedTrees
from skyseek.detect.classifier import FOLDS, WrongClassifier, pick_columns, predict, train_folds
from skyseek.detect.metrics import average_precision, boosting_score, compare, measure, compare_detectors, format_table
from skyseek.redshift.second_look import evidence_columns, repair_suspicious, second_look
from skyseek.redshift.second_opinion import JUDGE_TRAINING, Judge, choose_acceptance, correction_rates, reconcile
from skyseek.redshift.second_opinion import differs_from, proposal_flags, second_opinion, train_judge
from skyseek.learn.features import EVIDENCE, METADATA, build_features
from skyseek.learn.training import ArrayStream
from skyseek.detect.labelled_data import is_labelled, read_labelled, wrong_answers
from skyseek.redshift.learn_bases import RECIPES, learn_bases
from skyseek.redshift.scan import ANSWER, scan_redshift
from skyseek.simulate.galaxies import calzetti
from skyseek.simulate.templates import read_library
from skyseek.data.constants import JUNCTIONS, SAME_QUASAR, same_redshift
from skyseek.data.spectra import concatenate
from skyseek.learn.training import TrainSettings, fingerprint, load_model, save_model
from skyseek.detect.guarantee import errors_left
from skyseek.data.truth import choose_threshold, fold_of, half_of

WRONG = ('Z_WRONG', 'S_WRONG')

CARD = """# {title}

Trained with skyseek {version} by `tests/benchmarks/train_default.py` ({versions}; seed {seed}).

- **Data.** {n} spectra of the training files of the redrock benchmark (simulated DESI spectra of main-survey depth with the answers of the real redrock 0.21, sky fibres among them); {copies} changed copies
  of each; {simulated} spectra of the package's simulator; {rare} rare objects (blazars, displaced Balmer lines, dusty galaxies, Lyman-alpha emitters, dwarfs); {library} bright spectra of public templates; {faulty} with a
  fault of the instrument; {real} real spectra of SDSS, BOSS and LAMOST with the best redshift that is known (sky fibres among them), and {surveys} changed copies of them. All but the first and the real ones are
  answered by a scan with redrock-like templates; of the right answers {injected:.0%} are exchanged for wrong ones. No DESI spectrum and no visual inspection of DESI. SDSS and LAMOST spectra are public; acknowledge the surveys.
{body}
- **Limits.** Rates, mix and depth are those of a simulation. On another survey re-base the probabilities (`skyseek score --error-rate`), mind the column UNFAMILIAR, and train on your own labels where there are some.
- **Licence.** BSD-3-Clause, as the package.
"""
JUDGE_BODY = """- **Right** means the right type and |z - z_true|/(1 + z_true) < 0.0033. A proposal is accepted at P_ALT >= {acceptance}.
- **Figures** on the benchmark's validation files (68 % intervals):

{figures}
"""
CLASSIFIER_BODY = """- **Columns.** {columns}
- **Wrong** means |Z - z_true|/(1 + z_true) > 0.001, or another spectral type.
- **Figures** on the {n_test} targets of the benchmark's validation files, beside trees on the same targets (value and half its 68 % interval), thresholds from the training files:

{figures}

- **Cross-validated** on the {n_train} labelled targets of the training files, each judged by members, bases and a judge that have not seen it:

{crossed}

- **Real spectra** of other surveys, out of fold likewise (thresholds and acceptance are those of the benchmark's training files; where a survey's own solution is also the label, it is always right):

{surveys}
{added}
"""


def step(start, words): print(f'{(time.time() - start)/60:5.1f} min  {words}', flush=True)


def library_spectra(a, templates):
    """Bright simulated spectra of public templates (Kinney & Calzetti galaxies, Pickles stars), half of the galaxies behind dust."""
    library, out = read_library(a.data/'templates/speXtra'), []
    for k in range(a.library//500):
        rng = np.random.default_rng((a.seed, 4000 + k))
        flux = library.flux.copy()
        dusty = (text(library.table['SPECTYPE']) == 'GALAXY') & (k % 2 == 1)
        for i in np.flatnonzero(dusty): flux[i] *= calzetti(library.wave, rng.uniform(.3, 1.2), rng.uniform(-.4, .2))
        survey = dict(program='bright', shares=dict(BGS=.8, MWS=.2), exptime=(500., 4000.), library=replace(library, flux=flux), blend=0.)
        out.append(lean(inject_errors(simulate_labelled(500, 9800 + k, templates, a.device, **survey), rng, a.injected)))
    return out


def faulty_spectra(real, templates, a):
    """Spectra with a dip, a step between arms or inside one; half of them keep the answers that were given without the fault."""
    rng = np.random.default_rng((a.seed, 5000))
    pool = concatenate([simulate_labelled(a.faulty//2, 9900, templates, a.device, program='bright', shares=dict(BGS=.6, MWS=.2, QSO=.2), exptime=(300., 1500.)),
                        simulate_labelled(a.faulty//2, 9901, templates, a.device, program='dark', shares=dict(LRG=.4, ELG=.1, QSO=.4, MWS=.1))])
    flux, ivar, wave = pool.flux.copy(), pool.ivar.copy(), pool.wave
    for i in range(len(pool)):
        kind = rng.choice(['dip', 'arm', 'step', 'overlap'], p=[.35, .35, .2, .1])
        if kind in ('dip', 'overlap'):
            at, width = (rng.choice(JUNCTIONS), 35.) if kind == 'overlap' else (rng.choice([rng.uniform(8400, 8800), rng.uniform(4200, 9500)]), rng.uniform(15, 90))
            factor = 1 + (rng.uniform(.3, 1.5) if kind == 'overlap' and rng.random() < .6 else -rng.uniform(.3, .9))*np.exp(-.5*((wave - at)/width)**4)
            flux[i] *= factor
            continue
        at = rng.choice(JUNCTIONS) if kind == 'arm' else rng.choice([4720., 6660., 8680.]) + rng.uniform(-60, 60)
        ends = [wave[0], *JUNCTIONS, wave[-1] + 1]
        high = next(e for e in ends if e > at + 1)
        part = (wave > at) & (wave < high) if rng.random() < .7 or kind == 'step' else wave < at
        factor = rng.choice([rng.uniform(.45, .85), rng.uniform(1.18, 2.)])
        flux[i, part] *= factor
        ivar[i, part] /= factor**2
    broken = pool.replace(flux=flux, ivar=ivar)
    fresh, old = answer(broken, templates, a.device), rng.random(len(pool)) < .5
    meta = fresh.meta
    for c in ANSWER:
        if c in meta.colnames and c in pool.meta.colnames:
            column = np.array(meta[c])
            column[old] = np.asarray(pool.meta[c])[old]
            meta[c] = column
    return lean(fresh.replace(meta=meta))


def training_spectra(real, a):
    """Real answers, copies answered anew, simulated spectra answered likewise; number of spectra of each."""
    templates = redrock_like(a.data/'templates/redrock-templates')
    parts = [lean(real)]
    for k in range(a.copies):
        rng = np.random.default_rng((a.seed, k))
        parts.append(lean(inject_errors(answer(augment(real, rng), templates, a.device), rng, a.injected)))
    for k in range(a.simulated//500):
        survey = {} if k % 3 == 0 else dict(program='dark' if k % 3 == 1 else 'bright')
        rng = np.random.default_rng((a.seed, 1000 + k))
        parts.append(lean(inject_errors(simulate_labelled(500, 9000 + k, templates, a.device, **survey), rng, a.injected)))
    for k in range(a.rare//500):
        survey = dict(program='dark' if k % 2 else 'bright', shares=dict(RARE=1.), exptime=(400., 3000.))
        rng = np.random.default_rng((a.seed, 2000 + k))
        parts.append(lean(inject_errors(simulate_labelled(500, 9500 + k, templates, a.device, **survey), rng, a.injected)))
    if a.library:
        parts += library_spectra(a, templates)
    if a.faulty:
        parts.append(faulty_spectra(real, templates, a))
    if a.surveys:
        surveys = survey_spectra(a.data, real.wave)
        labelled = surveys[text(surveys.meta['TRUE_SPECTYPE']) != 'SKY']
        parts += [surveys, lean(answer(surveys, templates, a.device))]
        for k in range(a.surveys):
            rng = np.random.default_rng((a.seed, 3000 + k))
            parts.append(lean(inject_errors(answer(augment(labelled, rng), templates, a.device), rng, a.injected)))
    return concatenate(parts), [len(p) for p in parts]


def teachers_of(spectra, sizes, surveys):
    """Which spectra bases are learned from: the benchmark's, and the real quasars of other surveys; no copies."""
    place, teachers = np.arange(len(spectra)), np.arange(len(spectra)) < sizes[0]
    if surveys:
        first = sum(sizes[:-2 - surveys])
        teachers |= (place >= first) & (place < first + sizes[-2 - surveys]) & (text(spectra.meta['TRUE_SPECTYPE']) == 'QSO')
    return teachers


def scan_halves(spectra, teachers, a):
    """Repaired spectra, scans, candidates and repairs of each half, from bases learned on the `teachers` of the other."""
    half, halves = half_of(spectra.meta['TARGETID']), []
    for mine in (half, ~half):
        rows = np.flatnonzero(mine)
        part = spectra[rows]
        found = scan_redshift(part, learn_bases(spectra[np.flatnonzero(~mine & teachers)], RECIPES), a.device)
        mended, found, repaired = repair_suspicious(part, found, a.device)
        halves.append((rows, mended, found, candidates(mended, found, a.device), repaired.log_gain(len(part))))
    return halves


def cross_fit(halves, a):
    """Evidence and opinion for all, from judges of the other half."""
    judges = [train_one_judge(part, cand, a.seed + i, a) for i, (_, part, _, cand, _) in enumerate(halves)]
    order = np.argsort(np.concatenate([h[0] for h in halves]))
    opinion = vstack([second_opinion(part, found, j, a.device, cand) for (_, part, found, cand, _), j in zip(halves, judges[::-1])])[order]
    evidence = vstack([evidence_columns(part, cand, j, gain=gain) for (_, part, _, cand, gain), j in zip(halves, judges[::-1])])[order]
    return opinion, evidence


def train_one_judge(spectra, cand, seed, a, **options):
    torch.manual_seed(seed)
    judge = Judge(**options)
    train_judge(judge, spectra, cand, spectra.meta, TrainSettings(**JUDGE_TRAINING | dict(epochs=a.judge_epochs), seed=seed, device='cpu'))
    return judge


def least_acceptance(opinion, meta, wrong=.1):
    """The lowest acceptance at which no more than a tenth of the accepted proposals are wrong."""
    z, kind = np.asarray(meta['TRUE_Z'], float), text(meta['TRUE_SPECTYPE'])
    right = (same_redshift(opinion['Z_ALT'], z) | np.isnan(opinion['Z_ALT'])) & (text(opinion['SPECTYPE_ALT']) == kind)
    p = np.where(differs_from(opinion, meta['Z'], text(meta['SPECTYPE']), SAME_QUASAR), np.asarray(opinion['P_ALT'], float), 0)
    return next((float(round(x, 2)) for x in np.arange(.5, .99, .01) if (p >= x).any() and (~right)[p >= x].mean() <= wrong), .99)


def learn_judge(spectra, sizes, real, halves, a, start):
    """The judge, and the cross-fitted opinion on all spectra; their evidence goes into their meta. The first spectra are `real`."""
    n, use = len(real), is_labelled(real)
    opinion, evidence = cross_fit(halves, a)
    answers = opinion[:n][use], real.meta['Z'][use], real.meta['TRUE_Z'][use]
    part = part_names(sizes, a)
    acceptance = max(choose_acceptance(*answers, broken=.002), *(least_acceptance(opinion[m], spectra.meta[m]) for m in (np.flatnonzero(use), np.flatnonzero(part == 'faults')) if len(m)))
    step(start, 'cross-fitted; accepted proposals put right and break {:.3f} and {:.4f} of {} and {}'.format(*correction_rates(*answers, acceptance)))
    judge = train_one_judge(concatenate([h[1] for h in halves]), join_candidates([h[3] for h in halves]), a.seed + 7, a, acceptance=acceptance)
    for name in EVIDENCE: spectra.meta[name] = evidence[name]
    return judge, opinion


def learn_classifier(spectra, n, held, autoencoder, a):
    """The classifier; dicts of what it says of the real targets (out of fold) and of the held ones; latents of both; folds."""
    sky, known = text(spectra.meta['TRUE_SPECTYPE']) == 'SKY', is_labelled(held)
    use = is_labelled(spectra) | sky & np.isfinite(spectra.meta['Z'])  # any redshift of a sky fibre is wrong
    (code, metadata, names), (code_v, metadata_v, _) = inputs(spectra[use], autoencoder, a.device), inputs(held[known], autoencoder, a.device)
    real, fold = (np.flatnonzero(use) < n) & ~sky[use], fold_of(spectra.meta['TARGETID'][use])
    wrong = np.where(sky[use][:, None], 1, wrong_answers(spectra[use]))
    torch.manual_seed(a.seed)
    model = WrongClassifier(METADATA['second'], members=a.members, trees=a.trees)
    settings = TrainSettings(epochs=a.epochs, lr=2e-3, weight_decay=1e-2, warmup=.3, patience=0, seed=a.seed, device='cpu')
    columns, columns_v = (pick_columns(m, names, model.columns) for m in (metadata, metadata_v))
    p, _ = train_folds(model, code['latent'], columns, wrong, fold, np.where(real, 3., 1.), real, settings, progress=False)
    train = dict(p=p[real], wrong=wrong[real], metadata=metadata[real], fold=fold[real])
    test = dict(p=predict(model, code_v['latent'], columns_v), wrong=wrong_answers(held[known]), metadata=metadata_v, zwarn=np.asarray(held.meta['ZWARN'])[known])
    for d, given, on in ((train, (code['latent'][real], columns[real]), fold[real]), (test, (code_v['latent'], columns_v), None)): d |= members_alone(model, *given, on)
    everywhere = np.full((len(spectra), 2), np.nan)
    everywhere[use] = p
    return model, train, test, names, (code, code_v), fold, everywhere, use


def members_alone(model, latent, columns, fold):
    """Probabilities of the networks and of the trees by themselves, out of fold where there are folds."""
    latent, columns = (torch.as_tensor(np.asarray(x, np.float32)) for x in (latent, columns))
    with torch.no_grad(): parts = {'networks alone': model.logits(latent, columns), 'trees alone': model.tree_logits(latent, columns)}
    out = {}
    for name, logits in parts.items():
        seen = torch.ones(logits.shape[:2]) if fold is None else torch.arange(len(logits))[:, None] % FOLDS == torch.as_tensor(fold)
        out[name] = ((logits.sigmoid()*seen[..., None]).sum(0)/seen.sum(0)[:, None]).numpy()
    return out


def inputs(spectra, autoencoder, device):
    """Latents, reconstruction chi2, metadata and names."""
    features = build_features(spectra)
    code = encode(autoencoder, ArrayStream({k: features[k] for k in ('flux', 'weight', 'scale', 'exptime')}, 64, shuffle=False), device)
    return code, features['metadata'], features['metadata_names']


def judge_figures(spectra, opinion):
    """Lines of the judge's card."""
    meta, lines = spectra.meta, ['| S/N per pixel | class | spectra | Z_ALT off by > 1000 km/s | redrock | SPECTYPE_ALT wrong | redrock |', '|---'*7 + '|']
    z, kind = np.asarray(meta['TRUE_Z'], float), text(meta['TRUE_SPECTYPE'])
    off, off_rr = (abs(np.nan_to_num(np.asarray(x, float), nan=99) - z)/(1 + z) > .0033 for x in (opinion['Z_ALT'], meta['Z']))
    types = [text(t) != kind for t in (opinion['SPECTYPE_ALT'], meta['SPECTYPE'])]
    for cut in (0, 1, 2):
        for c in ('GALAXY', 'QSO', 'STAR'):
            m = (kind == c) & (spectra.snr > cut)
            lines.append(f'| > {cut} | {c} | {m.sum()} | ' + ' | '.join(rate(x[m]) for x in (off, off_rr, *types)) + ' |')
    target = kind != 'SKY'
    fixed, broken, n, m = correction_rates(opinion[target], meta['Z'][target], z[target])
    return '\n'.join([*lines, '', f"Accepted proposals: {100*fixed:.1f} % of redrock's {n} redshifts off by > 1000 km/s put right, {100*broken:.2f} % of its {m} right ones broken.",
                      f"Sky fibres ({(~target).sum()}): highest P_ALT {opinion['P_ALT'][~target].max():.2f}, mean P_NONE {opinion['P_NONE'][~target].mean():.2f}."])


def kept(p, wrong, zwarn):
    """What is left of the errors when 99 % of the right redshifts are kept, beside ZWARN == 0."""
    k, clear = errors_left(wrong, p), zwarn == 0
    return (f"Keeping 99 % of the right redshifts leaves {k['left']:.1%} of the errors ({k['wrong_share']:.1%} of the kept sample); "
            f"ZWARN == 0 keeps {clear[~wrong].mean():.1%} of the right ones and {clear[wrong].mean():.1%} of the errors ({wrong[clear].mean():.1%} of what it keeps).")


def classifier_figures(train, test, names):
    """Tables for both labels. `train`, `test`: dict with p (out of fold), wrong, metadata, zwarn."""
    columns, parts, crossed = {'trees, all columns': METADATA['full'], 'trees, all columns + second opinion': METADATA['full'] + EVIDENCE}, [], []
    for k, name in enumerate(WRONG):
        detectors, folds = {'skyseek': (train['p'][:, k], test['p'][:, k])}, {'skyseek': train['p'][:, k]}
        for label in ('networks alone', 'trees alone'): detectors[label], folds[label] = (train[label][:, k], test[label][:, k]), train[label][:, k]
        for label, wanted in columns.items():
            x, y = (pick_columns(d['metadata'], names, wanted) for d in (train, test))
            own = np.zeros(len(x))
            for f in range(5): own[train['fold'] == f] = boosting_score(x[train['fold'] != f], train['wrong'][train['fold'] != f, k], x[train['fold'] == f])
            detectors[label], folds[label] = (own, boosting_score(x, train['wrong'][:, k], y)), own
        deltas = '; '.join(f"minus {label}: {{:+.3f}} ({{:+.3f}} to {{:+.3f}}, 95 %)".format(*compare(test['wrong'][:, k], test['p'][:, k], s[1])) for label, s in list(detectors.items())[1:])
        show = lambda t: f'```\n{format_table(t)}\n```'
        parts.append(f"{name}\n\n{show(compare_detectors(detectors, train['wrong'][:, k], test['wrong'][:, k], list(detectors)))}\n\nAP of skyseek, paired: {deltas}")
        deltas = '; '.join(f"minus {label}: {{:+.3f}} ({{:+.3f}} to {{:+.3f}}, 95 %)".format(*compare(train['wrong'][:, k], train['p'][:, k], q)) for label, q in list(folds.items())[1:])
        crossed.append(f"{name}\n\n{show(compare_detectors({n: (p, p) for n, p in folds.items()}, train['wrong'][:, k], train['wrong'][:, k], list(folds)))}\n\nAP of skyseek, paired: {deltas}")
    last = kept(test['p'][:, 0], test['wrong'][:, 0] > 0, test['zwarn'])
    return '\n\n'.join([*parts, last]), '\n\n'.join(crossed)


def best_f1(wrong, p):
    """The highest F1 among all thresholds."""
    return measure(wrong > 0, p, choose_threshold(wrong, p))['F1']


def survey_figures(spectra, opinion, p, thresholds, acceptance, answers):
    """Lines on real spectra, out of fold: each is judged by members, bases and a judge that have not seen the object."""
    meta = spectra.meta
    z, kind, survey = np.asarray(meta['TRUE_Z'], float), text(meta['TRUE_SPECTYPE']), text(meta['FLAGS'])
    opinion = reconcile(p, opinion, z=meta['Z'], spectype=meta['SPECTYPE'])[1]
    near, typed = same_redshift(opinion['Z_ALT'], z), text(opinion['SPECTYPE_ALT']) == kind
    flagged = (p >= np.asarray(thresholds)).any(1)
    taken, offset = proposal_flags(opinion, meta['Z'], text(meta['SPECTYPE']), p[:, 0] >= thresholds[0], p[:, 1] >= thresholds[1], acceptance)
    right, close = (same_redshift(meta['Z'], z, limit) & (text(meta['SPECTYPE']) == kind) for limit in (.001, .0033))
    lines = []
    for s, k in [(s, k) for s in ('SDSS', 'REAL2') for k in ('GALAXY', 'QSO', 'STAR', 'SKY')]:
        m = (survey == s) & (kind == k)
        if m.any() and (k != 'SKY' or 'own' in answers):
            cells = [rate(near[m]), rate(typed[m]), rate(flagged[m & right]), rate((flagged & ~offset)[m & close]), rate((taken & ~(near & typed))[m])] if k != 'SKY' else [f'flagged {rate(flagged[m])}'] + ['–']*4
            lines.append(f"| {answers} | {dict(REAL2='BOSS, SDSS, LAMOST').get(s, s)} | {k} | {m.sum()} | " + ' | '.join(cells) + ' |')
    return lines


def parts_figures(inputs, wrong, fold, part, real):
    """What each part of the training adds: average precision out of fold of the trees without it, on the benchmark's targets and on the real spectra that were answered anew."""
    tests = {'benchmark': real, 'SDSS, BOSS, LAMOST': part == 'real, answered anew'}
    lines = ['| trees without | spectra left out | ' + ' | '.join(f'{name} {w}' for name in tests for w in WRONG) + ' |', '|---'*6 + '|']
    for name in ['–', *dict.fromkeys(part)]:
        weight = np.where(real, 3., 1.)*(part != name)
        logits = BoostedTrees(inputs.shape[1]).grow(inputs[weight > 0], wrong[weight > 0], fold[weight > 0], weight[weight > 0])(torch.as_tensor(inputs))
        p = logits[torch.as_tensor(fold), torch.arange(len(fold))].sigmoid().numpy()
        cells = [f'{average_precision(wrong[m, k] > 0, p[m, k]):.3f}' for m in tests.values() for k in range(2)]
        lines.append(f'| {name} | {(weight == 0).sum()} | ' + ' | '.join(cells) + ' |')
        print(lines[-1], flush=True)
    return '\n'.join(lines)


def part_names(sizes, a):
    """The part of the training that each spectrum belongs to."""
    counts = [1, a.copies, a.simulated//500, a.rare//500, a.library//500, int(a.faulty > 0), *([1, 1, a.surveys] if a.surveys else [])]
    names = 'benchmark', 'its copies', 'simulator', 'rare objects', 'public templates', 'faults', 'real spectra', 'real, answered anew', 'their copies'
    return np.repeat(np.repeat(names[:len(counts)], counts), sizes)


RULES = """- **Beside DESI's rules** (desispec, June 2026; without QuasarNET), on the validation files, at the rules' completeness for each tracer. Wrong is more than 1000 km/s, or 3000 km/s for quasars:

```
{}
```

"""


def add_rules(data, weights):
    """Put the comparison with DESI's rules on the classifier's card; the same as on the page For DESI users."""
    from skyseek.data.redshift_tables import read_truth
    from skyseek.detect.confidence import compare_rules, format_rules
    from skyseek.pipeline.catalogue import score
    folder, card = data/'redrock_bench/validation', weights/'classifier/card.md'
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        table = compare_rules(score(sorted(folder.glob('coadd-*.fits')), weights), read_truth(sorted(folder.glob('truth-*.fits'))))
    head, limits, tail = card.read_text(encoding='utf-8').partition('- **Limits.**')
    card.write_text(head.partition("- **Beside DESI's rules**")[0] + RULES.format(format_rules(table)) + limits + tail, encoding='utf-8')


HEAD = ['| solutions | survey | class | spectra | Z_ALT within 0.0033 | SPECTYPE_ALT right | flagged, right to 0.001 | flagged, no offset, right to 0.0033 | replaced wrongly |', '|---'*9 + '|']


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--weights', type=Path, required=True, help='folder with autoencoder/; judge/, classifier/ and familiarity/ are written into it')
    parser.add_argument('--copies', type=int, default=3, help='changed copies of each training spectrum')
    parser.add_argument('--simulated', type=int, default=3500, help='spectra of the simulator, in steps of 500')
    parser.add_argument('--rare', type=int, default=3000, help='rare objects of the simulator, in steps of 500')
    parser.add_argument('--surveys', type=int, default=3, help='changed copies of the real spectra of SDSS, BOSS and LAMOST in --data; 0 leaves them out')
    parser.add_argument('--library', type=int, default=1500, help='bright spectra of public templates, in steps of 500')
    parser.add_argument('--faulty', type=int, default=1500, help='spectra with a fault of the instrument')
    parser.add_argument('--injected', type=float, default=.04, help='share of right answers exchanged for wrong ones, in copies and simulated spectra')
    parser.add_argument('--judge-epochs', type=int, default=20)
    parser.add_argument('--epochs', type=int, default=20, help='of the classifier')
    parser.add_argument('--members', type=int, default=10, help='of the classifier, a multiple of five')
    parser.add_argument('--trees', type=int, default=200, help='of each fold and label, beside the networks')
    parser.add_argument('--parts', action='store_true', help='also say on the card what each part of the training adds; ten minutes more')
    parser.add_argument('--rules', action='store_true', help="only renew the comparison with DESI's rules on the classifier's card; a minute")
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--device', default='cpu')
    a, start = parser.parse_args(), time.time()
    if a.rules: return add_rules(a.data, a.weights)
    warnings.simplefilter('ignore')
    real, held = (read_labelled(a.data/'redrock_bench'/part, keep_sky=True) for part in ('train', 'validation'))
    spectra, sizes = training_spectra(real, a)
    n = len(real)
    step(start, f'{len(spectra)} spectra, {n} of them with answers of redrock')
    halves = scan_halves(spectra, teachers_of(spectra, sizes, a.surveys), a)
    step(start, 'scanned')
    judge, opinion = learn_judge(spectra, sizes, real, halves, a, start)
    facts = dict(version=__version__, seed=a.seed, n=n, copies=a.copies, simulated=a.simulated//500*500, rare=a.rare//500*500, library=a.library//500*500, faulty=a.faulty,
                 real=sizes[-2 - a.surveys] if a.surveys else 0, surveys=a.surveys, injected=a.injected,
                 versions=f'torch {torch.__version__}, numpy {np.__version__}, scipy {scipy.__version__}, scikit-learn {sklearn.__version__}, astropy {astropy.__version__}')
    looked, second, _ = second_look(held, judge, device=a.device)
    figures = judge_figures(held, second)
    body = JUDGE_BODY.format(acceptance=judge.config['acceptance'], figures=figures)
    save_model(judge, a.weights/'judge', card=CARD.format(title='Judge of the second opinion', body=body, **facts))
    step(start, 'judge\n' + figures)
    train_final(spectra, sizes, looked, (opinion, second), facts, a, start)


def train_final(spectra, sizes, held, opinions, facts, a, start):
    """Classifier and familiarity, and their cards."""
    autoencoder = load_model(a.weights/'autoencoder', Autoencoder)
    n = sizes[0]
    model, train, test, names, (code, code_v), fold, p, use = learn_classifier(spectra, n, held, autoencoder, a)
    step(start, 'classifier')
    figures, crossed = classifier_figures(train, test, names)
    thresholds = [best_f1(train['wrong'][:, k], train['p'][:, k])/2 for k in range(2)]  # the best for calibrated probabilities (Lipton et al. 2014, arXiv 1402.1892)
    real, acceptance = 'no real spectra', load_model(a.weights/'judge', Judge).config['acceptance']
    if a.surveys:
        first, size = sum(sizes[:-2 - a.surveys]), sizes[-2 - a.surveys]
        own, anew = (np.arange(first + k*size, first + (k + 1)*size) for k in (0, 1))
        real = '\n'.join([*HEAD, *(line for rows, words in ((own, "the survey's own"), (anew, 'redrock-like')) for line in survey_figures(spectra[rows], opinions[0][rows], p[rows], thresholds, acceptance, words))])
    about = 'trained on simulated DESI spectra with the answers of the real redrock 0.21, and on 629 real spectra of SDSS, BOSS and LAMOST; no DESI visual inspections; |Z - z_true|/(1 + z_true) > 0.001 is wrong'
    added = ''
    if a.parts:
        some = is_labelled(spectra)[use]
        columns = pick_columns(build_features(spectra[use][some])['metadata'], names, model.columns)
        added = '\n- **What each part of the training adds** to the trees, average precision out of fold:\n\n' + parts_figures(
            np.hstack([code['latent'][some], columns]).astype(np.float32), wrong_answers(spectra[use][some]), fold[some], part_names(sizes, a)[use][some], (np.flatnonzero(use) < n)[some])
    card = CARD.format(title='Classifier with a second opinion', body=CLASSIFIER_BODY.format(columns=', '.join(model.columns), n_test=len(test['wrong']), n_train=len(train['wrong']), figures=figures, crossed=crossed, surveys=real, added=added), **facts)
    model.record_labels(spectra.meta['TARGETID'][:n][use[:n]])
    save_model(model, a.weights/'classifier', card=card, thresholds=thresholds, rates=train['wrong'].mean(0).tolist(), about=about, tolerance='0.001', autoencoder=fingerprint(autoencoder),
               judge=fingerprint(load_model(a.weights/'judge', Judge)))
    print(card, flush=True)
    fit_familiarity.main(a.data, a.weights, a.seed)
    step(start, 'familiarity')
    add_rules(a.data, a.weights)


if __name__ == '__main__': main()
