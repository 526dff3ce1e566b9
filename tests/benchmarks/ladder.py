"""What each step of training buys: AP and F1 from redrock's columns alone to augmented spectra, cross-validated on the benchmark's training part.

    python tests/benchmarks/ladder.py --data ../shared/data --cache ladder

First the inputs are prepared: evidence of bases and judges that saw the other half of the targets, `--copies` sets of augmented spectra answered by a scan with redrock's templates, copies of two of
these sets with injected errors, bright simulated spectra, and the benchmark's validation part. Then every rung is trained five times, on four fifths of the targets and all that belongs to them, and
tested on the original spectra of the fifth that is left, with the answers of the real redrock. Last, models trained on everything are tested once on the validation part. All that was made is kept in
`--cache`; a run that was stopped goes on where it was. Half an hour to an hour on one core for eight copies. `--stage` does one part; `--stage tables` prints again what is in the cache.
"""

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier

from skyseek.detect.augment import answer, augment, inject_errors, redrock_like, simulate_labelled
from skyseek.learn.autoencoder import Autoencoder
from skyseek.redshift.bases import load_bases, save_bases
from skyseek.redshift.candidates import candidates
from skyseek.detect.classifier import CLASSIFIER_TRAINING, WrongClassifier, pick_columns, predict
from skyseek.detect.metrics import average_precision, compare
from skyseek.redshift.second_look import second_look
from skyseek.redshift.second_opinion import Judge, train_judge
from skyseek.learn.features import EVIDENCE, METADATA
from skyseek.learn.training import ArrayStream
from skyseek.detect.cross_fit import classifier_inputs
from skyseek.learn.training import shipped
from skyseek.detect.labelled_data import is_labelled, read_labelled, wrong_answers
from skyseek.redshift.learn_bases import learn_bases
from skyseek.redshift.scan import scan_redshift
from skyseek.learn.training import TrainSettings, fit, load_model, save_model
from skyseek.data.truth import choose_threshold, split_of

BRIGHT = 1500  # simulated bright spectra
FOLDS, MEMBERS = 5, 2
RUNGS = {  # name: (columns, are the latents seen, augmented sets, further sets)
    'redrock columns': ('full', False, 0, ''),
    '+ latents': ('full', True, 0, ''),
    '+ second opinion': ('second', True, 0, ''),
    '+ 1 augmented copy': ('second', True, 1, ''),
    '+ 2 copies': ('second', True, 2, ''),
    '+ 4 copies': ('second', True, 4, ''),
    '+ 8 copies': ('second', True, 8, ''),
    'second opinion, no latents': ('second', False, 0, ''),
    '4 copies, no latents': ('second', False, 4, ''),
    '4 copies, 5 % injected': ('second', True, 4, 'injected'),
    '4 copies + bright': ('second', True, 4, 'bright'),
}
BEFORE = {'+ latents': 'redrock columns', '+ second opinion': '+ latents', '+ 1 augmented copy': '+ second opinion', '+ 2 copies': '+ second opinion', '+ 4 copies': '+ second opinion', '+ 8 copies': '+ 4 copies',
          'second opinion, no latents': '+ second opinion', '4 copies, no latents': '+ 4 copies', '4 copies, 5 % injected': '+ 4 copies', '4 copies + bright': '+ 4 copies', '4 copies, 1 member': '+ 4 copies', '4 copies, 5 members': '+ 4 copies'}
HEADS = ('Z_WRONG', 'S_WRONG')


def say(*words): print(time.strftime('%H:%M:%S'), *words, flush=True)


def sides(ids): return split_of(ids, (.5, .5, 0)) == 'train'


def learn_halves(spectra, cache):
    """Bases and a judge from each half of the labelled targets; kept in the cache."""
    half, use = sides(spectra.meta['TARGETID']), is_labelled(spectra)
    for k, mine in enumerate((half, ~half)):
        if not (cache/f'bases{k}.safetensors').exists(): save_bases(cache/f'bases{k}.safetensors', learn_bases(spectra[np.flatnonzero(mine & use)]))
        say('bases of half', k)
    for k, mine in enumerate((half, ~half)):
        if (cache/f'judge{k}').exists(): continue
        part = spectra[np.flatnonzero(mine & (use | (np.asarray(spectra.meta['TRUE_SPECTYPE']).astype(str) == 'SKY')))]
        torch.manual_seed(k)
        judge = Judge()
        train_judge(judge, part, candidates(part, scan_redshift(part, load_bases(cache/f'bases{1 - k}.safetensors'))), part.meta)
        save_model(judge, cache/f'judge{k}')
        say('judge of half', k)
    return [(load_bases(cache/f'bases{k}.safetensors'), load_model(cache/f'judge{k}', Judge)) for k in (0, 1)]


def look(spectra, halves):
    """Spectra with evidence from bases and judge that have not seen their targets."""
    first, meta = sides(spectra.meta['TARGETID']), spectra.meta.copy()
    for name in EVIDENCE: meta[name] = np.zeros(len(meta), np.float32)
    for k, rows in enumerate((np.flatnonzero(first), np.flatnonzero(~first))):
        if not len(rows): continue
        bases, judge = halves[1 - k]
        seen = second_look(spectra[rows], judge, bases)[0]
        for name in EVIDENCE: meta[name][rows] = seen.meta[name]
    return spectra.replace(meta=meta)


def store(path, spectra):
    """What classifiers see of labelled spectra, their labels and identities, in one file."""
    inputs, text = classifier_inputs(spectra, load_model(shipped('autoencoder'), Autoencoder)), lambda c: np.char.strip(np.asarray(spectra.meta[c]).astype(str))
    np.savez(path, **inputs, wrong=wrong_answers(spectra), targetid=np.asarray(spectra.meta['TARGETID']), kind=text('TRUE_SPECTYPE'), flags=text('FLAGS'),
             z=np.asarray(spectra.meta['Z'], float), z_true=np.asarray(spectra.meta['TRUE_Z'], float))
    say(path.name, len(spectra))


def prepare(data, cache, copies):
    """All inputs as .npz files in the cache."""
    cache.mkdir(parents=True, exist_ok=True)
    missing = lambda name: not (cache/f'{name}.npz').exists()
    bench, templates = data/'redrock_bench', data/'templates/redrock-templates'
    if missing('validation'):
        held = read_labelled(bench/'validation')
        store(cache/'validation.npz', second_look(held[np.flatnonzero(is_labelled(held))])[0])
    spectra = read_labelled(bench/'train', keep_sky=True)
    halves, spectra = learn_halves(spectra, cache), spectra[np.flatnonzero(is_labelled(spectra))]
    if missing('original'): store(cache/'original.npz', look(spectra, halves))
    like = redrock_like(templates if templates.exists() else None)
    for r in range(copies):
        if not missing(f'copy{r}') and not (r < 2 and missing(f'injected{r}')): continue
        rng = np.random.default_rng(r)
        changed = answer(augment(spectra, rng), like)
        changed = changed[np.flatnonzero(is_labelled(changed))]
        if missing(f'copy{r}'): store(cache/f'copy{r}.npz', look(changed, halves))
        if r < 2: store(cache/f'injected{r}.npz', look(inject_errors(changed, rng, .05), halves))
    if missing('bright'):
        bright = simulate_labelled(BRIGHT, 7, like)
        store(cache/'bright.npz', look(bright[np.flatnonzero(is_labelled(bright))], halves))


def load(cache, name):
    """One set of inputs."""
    with np.load(cache/f'{name}.npz', allow_pickle=False) as f: return {k: f[k] for k in f.files}


def folds(ids): return (np.asarray(ids).astype(np.uint64)*np.uint64(2654435761) >> np.uint64(7)) % np.uint64(FOLDS)


def gather(sets, columns, latents):
    """Several sets as arrays: columns, latents, labels, folds, and whether a row is an original."""
    x = np.concatenate([pick_columns(s['metadata'], s['metadata_names'], METADATA[columns]) for s in sets])
    latent = np.concatenate([s['latent'] for s in sets]) if latents else np.zeros((len(x), 0), np.float32)
    own = np.concatenate([np.full(len(s['wrong']), i == 0) for i, s in enumerate(sets)])
    return dict(x=x, latent=latent, wrong=np.concatenate([s['wrong'] for s in sets]), fold=np.concatenate([folds(s['targetid']) for s in sets]), own=own)


def trees(train, test):
    """(N, 2) probabilities by boosting; copies count half."""
    join, out = lambda d: np.concatenate([d['x'], d['latent']], 1), []
    weight = np.where(train['own'], 1, .5)
    options = dict(max_iter=150, learning_rate=.07, max_leaf_nodes=12, min_samples_leaf=20, l2_regularization=3., max_features=.4)
    for k in range(2):
        out.append(HistGradientBoostingClassifier(random_state=k, **options).fit(join(train), train['wrong'][:, k], weight).predict_proba(join(test))[:, 1])
    return np.stack(out, 1)


def network(train, test, columns, members):
    """(N, 2) probabilities by the classifier of the package; nine times the spectra get fewer epochs, but 1.7 times the steps."""
    torch.manual_seed(0)
    model = WrongClassifier(METADATA[columns], latent=train['latent'].shape[1], members=members)
    model.learn_scale(train['latent'], train['x'])
    batches = max(1, len(train['x'])//128)
    settings = TrainSettings(**CLASSIFIER_TRAINING | dict(epochs=int(np.clip(1000*(len(train['x'])/2200)**.25/batches, 5, 60)), device='cpu'))
    fit(model, ArrayStream(dict(latent=train['latent'], metadata=train['x'], wrong=train['wrong']), 128, 0), None, settings, progress=False)
    return predict(model, test['latent'], test['x'])


def sets_of(cache, copies, extra):
    """The original spectra and what is trained on beside them."""
    names = [f'copy{r}' for r in range(copies)]
    if extra == 'injected': names[:2] = ['injected0', 'injected1']
    return [load(cache, n) for n in ['original', *names, *['bright']*(extra == 'bright')]]


def cross_validate(sets, columns, latents, model):
    """(N, 2) probabilities of the original spectra, each from a model that saw no spectrum of its target's fold."""
    d = gather(sets, columns, latents)
    p = np.zeros((d['own'].sum(), 2))
    for f in range(FOLDS):
        test = d['own'] & (d['fold'] == f)
        p[test[d['own']]] = model(*({k: v[rows] for k, v in d.items()} for rows in (d['fold'] != f, test)))
    return p


def jobs_of(copies):
    """(name, kind, columns, latents, copies, extra, members) of all rungs. Trees see latents on one rung only, where they are new: they make them slow and no better."""
    rungs = {name: r for name, r in RUNGS.items() if r[2] <= copies}
    jobs = [(name, kind, columns, latents and (kind == 'network' or name == '+ latents'), n, extra, MEMBERS) for name, (columns, latents, n, extra) in rungs.items() for kind in ('trees', 'network')
            if kind == 'network' or 'no latents' not in name]
    return jobs + [(f'4 copies, {m} member{"s"*(m > 1)}', 'network', 'second', True, 4, '', m) for m in (1, 5) if copies >= 4]


def climb(cache, copies, most=None):
    """Probabilities of every rung in the cache, by trees and by networks; stops after `most` new ones."""
    for name, kind, columns, latents, n, extra, members in jobs_of(copies):
        path = cache/f"p-{kind}-{name.replace(' ', '_').replace('%', 'pc').replace(',', '').replace('+', 'with')}.npz"
        if path.exists() or most == 0: continue
        model = trees if kind == 'trees' else lambda a, b: network(a, b, columns, members)
        start, sets = time.time(), sets_of(cache, n, extra)
        p = cross_validate(sets, columns, latents, model)
        d, held = gather(sets, columns, latents), gather([load(cache, 'validation')], columns, latents)
        np.savez(path, name=name, kind=kind, p=p, held=model(d, held), seconds=time.time() - start)
        most = None if most is None else most - 1
        say(kind, name, np.round([average_precision(d['wrong'][d['own']][:, k], p[:, k]) for k in range(2)], 3), f'{time.time() - start:.0f} s')


def f1(wrong, score, threshold):
    """F1 at a threshold."""
    flag = score >= threshold
    return 2*(flag & wrong).sum()/max(flag.sum() + wrong.sum(), 1)


def honest_f1(wrong, p, fold):
    """F1 with the threshold of each fold chosen on the other folds."""
    flag = np.concatenate([np.zeros(0, int)] + [np.flatnonzero(fold == f)[p[fold == f] >= choose_threshold(wrong[fold != f], p[fold != f])] for f in range(FOLDS)])
    return f1(wrong, np.isin(np.arange(len(p)), flag), .5)


def interval(wrong, p, n=300, seed=0):
    """68 % interval of AP over targets."""
    rng = np.random.default_rng(seed)
    draws = [rng.integers(0, len(p), len(p)) for _ in range(n)]
    return np.percentile([average_precision(wrong[i], p[i]) for i in draws], [16, 84])


def table(cache, head, kind):
    """Rows of the ladder for one label and one kind of model."""
    original, held, rows = load(cache, 'original'), load(cache, 'validation'), []
    wrong, wrong_held, fold = original['wrong'][:, head] > 0, held['wrong'][:, head] > 0, folds(original['targetid'])
    found = {}
    for path in sorted(cache.glob(f'p-{kind}-*.npz')):
        with np.load(path, allow_pickle=False) as f: found[str(f['name'])] = f['p'][:, head], f['held'][:, head]
    for name in [*RUNGS, '4 copies, 1 member', '4 copies, 5 members']:
        if name not in found: continue
        p, q = found[name]
        cut, before = choose_threshold(wrong, p), found.get(BEFORE.get(name))
        rows.append(dict(label=HEADS[head], model=kind, rung=name, ap=average_precision(wrong, p), ap_range=list(interval(wrong, p)), f1=honest_f1(wrong, p, fold), step=None if before is None else list(compare(wrong, p, before[0], resamples=300)),
                         than=BEFORE.get(name), ap_validation=average_precision(wrong_held, q), ap_validation_range=list(interval(wrong_held, q)), f1_validation=f1(wrong_held, q, cut)))
    return rows


def tables(cache):
    """Print the ladder, and write it as JSON."""
    rows = [r for head in range(2) for kind in ('network', 'trees') for r in table(cache, head, kind)]
    (cache/'ladder.json').write_text(json.dumps(rows, indent=1, default=float))
    for group in sorted({(r['label'], r['model']) for r in rows}, reverse=True):
        print(f"\n{group[0]}, {group[1]}\n{'':28s}{'AP (cross-validated, 68 %)':28s}{'F1':8s}{'AP minus that of (95 %)':54s}{'validation: AP':20s}F1")
        for r in rows:
            if (r['label'], r['model']) != group: continue
            step = '' if r['step'] is None else '{:+.3f} ({:+.3f} to {:+.3f})  '.format(*r['step']) + r['than']
            print(f"{r['rung']:28s}{r['ap']:.3f} ({r['ap_range'][0]:.3f} to {r['ap_range'][1]:.3f})     {r['f1']:.3f}   {step:54s}{r['ap_validation']:.3f} ± {np.ptp(r['ap_validation_range'])/2:.3f}       {r['f1_validation']:.3f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data', type=Path, default=Path('../shared/data'), help='folder with redrock_bench and templates')
    parser.add_argument('--cache', type=Path, required=True, help='folder for all that is made')
    parser.add_argument('--copies', type=int, default=8, help='augmented copies of each target')
    parser.add_argument('--stage', choices=('all', 'prepare', 'climb', 'tables'), default='all')
    parser.add_argument('--most', type=int, help='train at most so many rungs')
    a = parser.parse_args()
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    if a.stage in ('all', 'prepare'): prepare(a.data, a.cache, a.copies)
    if a.stage in ('all', 'climb'): climb(a.cache, a.copies, a.most)
    if a.stage in ('all', 'tables'): tables(a.cache)


if __name__ == '__main__': main()
