"""Print the tables of GaSNet-II: subclasses and redshifts on simulated and on real spectra, ours beside the paper's.

    python tests/benchmarks/bench_gasnet2.py --data ../shared/data [--weights FOLDER] [--each 400]

Simulated spectra: as many of each of the 13 subclasses, from templates that were not trained on, S/N as in the training. Real ones: all of SDSS, BOSS and LAMOST in the
folder with a redshift of a person or of a pipeline without warning; of several observations of an object the one with the highest S/N. None was trained on.
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from astropy.table import Table
from gasnet2_templates import mixed_templates, read_shapes
from scipy.stats import spearmanr

from skyseek.data.files import numbers, text
from skyseek.data.read import read_any
from skyseek.gasnet.classify_spectra import load_gasnet2
from skyseek.gasnet.gasnet2 import measure_spectra, subclass_probabilities, to_compact
from skyseek.gasnet.sdss_subclasses import SPECTYPES, SUBCLASSES, draw_spectra
from skyseek.redshift.redshift_metrics import nmad

TYPES = 'GALAXY', 'QSO', 'STAR'
PAPER = {  # mean |dz|, median |dz|, NMAD, GF(3e-3), within 1 and 2 sigma, pull: arXiv 2311.04146, recomputed from its table of 18,000 test spectra
    'GALAXY': (.00231, .00036, .00052, .911, .87, .98, .60), 'GALAXY AGN': (.00145, .00043, .00063, .933, .92, .99, .55),
    'GALAXY STARBURST': (.00065, .00022, .00032, .977, .87, .99, .61), 'GALAXY STARFORMING': (.00095, .00023, .00034, .946, .90, .99, .54),
    'GALAXY (none)': (.00619, .00101, .00136, .786, .79, .96, .70), 'QSO': (.02064, .00324, .00477, .478, .78, .95, .76),
    'QSO BROADLINE': (.00733, .00199, .00295, .644, .82, .98, .68), 'QSO (none)': (.03394, .00588, .00872, .312, .73, .92, .86)}
SPEARMAN = {'GALAXY': .67, 'QSO': .69}


def shown(rows, names):
    """A table as text."""
    table = Table(rows=rows, names=names)
    return '\n'.join(table.pformat(max_lines=-1, max_width=-1, show_dtype=False))


def percent(hit):
    """Per cent with its standard error."""
    hit = np.asarray(hit)
    return f'{100*hit.mean():.1f} ± {100*hit.std()/max(len(hit), 1)**.5:.1f}' if len(hit) else '–'


def name_of(k):
    """A subclass, none written out."""
    return SUBCLASSES[k] if ' ' in SUBCLASSES[k] else f'{SUBCLASSES[k]} (none)'


def accuracy(label, p, border, snr):
    """Accuracy per subclass, with and without objects near a border of the definitions."""
    guess = p.argmax(1)
    right, star = guess == label, SPECTYPES[label] == 'STAR'
    near = right | star & (np.abs(guess - label) == 1)
    same, top2 = SPECTYPES[guess] == SPECTYPES[label], np.any(np.argsort(-p, 1)[:, :2] == label[:, None], 1)
    parts = {name_of(k): label == k for k in range(13)} | {'all 13, as many of each': np.full(len(label), True), '  of these S/N > 5': snr > 5}
    rows = [(n, m.sum(), percent(right[m]), percent(right[m & ~border]), f'{border[m].mean():.2f}', percent(right[m & border]), percent(near[m]), percent(same[m]), percent(top2[m])) for n, m in parts.items()]
    return shown(rows, ['subclass', 'N', 'right [%]', 'away from borders [%]', 'near a border', 'near it right [%]', 'or the next star type [%]', 'GALAXY, QSO or STAR [%]', 'among the first two [%]'])


def confusion(label, p):
    """Per cent of each true subclass (row) that is given each subclass (column)."""
    table = np.zeros((13, 13))
    np.add.at(table, (label, p.argmax(1)), 1)
    table = 100*table/np.maximum(table.sum(1, keepdims=True), 1)
    short = ['none', 'SF', 'BURST', 'AGN', 'none', 'BROAD', 'A0', 'F5', 'F9', 'G2', 'K1', 'K3', 'K5']
    return shown([(name_of(k), *(f'{x:.0f}' if x >= .5 else '·' for x in row)) for k, row in enumerate(table)], ['true \\ given', *(f'{"GALAXY" if k < 4 else "QSO" if k < 6 else ""} {s}'.strip() for k, s in enumerate(short))])


def redshift_row(name, z, z_true, core, tail):
    """Metrics of one sample."""
    dz, error = (z - z_true)/(1 + z_true), np.abs(z - z_true)
    a = np.abs(dz)
    rank = spearmanr(core, error).statistic if len(z) > 3 else np.nan
    middle = np.median(a)
    return (name, len(z), f'{a.mean():.5f}', f'{middle:.2e}', f'{np.median(np.abs(a - middle)):.2e}', f'{nmad(dz):.2e}', f'{np.mean(a < 3e-3):.3f}', f'{np.mean(a < 1e-3):.3f}',
            f'{100*np.mean(error < core):.1f}', f'{100*np.mean(error < tail):.1f}', f'{nmad((z - z_true)/core):.2f}', f'{np.median(core):.1e}', f'{rank:.2f}')


REDSHIFT = ['sample', 'N', 'mean |dz|', 'median |dz|', 'MAD', 'NMAD', 'GF(3e-3)', 'GF(1e-3)', 'in 68 %', 'in 95 %', 'pull', 'median σ', 'rank σ, |Δz|']


def against_snr(snr, z, z_true, core, tail, n=6):
    """Coverage and σ in bins of S/N."""
    rows, error = [], np.abs(z - z_true)
    bins = np.array_split(np.argsort(snr), n)
    worst = [max(abs(100*np.mean((error < width)[part]) - level) for part in bins) for width, level in ((core, 68.27), (tail, 95))]
    for part in bins:
        rows.append((f'{snr[part].min():.1f}–{snr[part].max():.1f}', len(part), percent((error < core)[part]), percent((error < tail)[part]), f'{np.median(core[part]):.1e}',
                     f'{np.quantile(error[part], .6827):.1e}', f'{np.mean((error/(1 + z_true))[part] < 3e-3):.3f}'))
    return shown(rows, ['S/N', 'N', 'in 68 %', 'in 95 %', 'median σ', '68 % of |Δz|', 'GF(3e-3)']) + f'\nrank correlation of σ and S/N: {spearmanr(core, snr).statistic:.2f}; largest deviation of the coverage: {worst[0]:.1f} and {worst[1]:.1f} points'


def simulated(system, shapes, each, seed=4242):
    """Tables on simulated spectra."""
    out, library = [], mixed_templates(300, seed, shapes)
    spectra, truth = draw_spectra(library, each, seed=seed, even=True)
    label, border, snr, z_true = (np.asarray(truth[k]) for k in ('LABEL', 'BORDER', 'SNR', 'TRUE_Z'))
    start = time.process_time()
    p = subclass_probabilities(system.classifier, spectra)
    cost = {'classifier': (time.process_time() - start)/len(label)}
    out += [f'Simulated spectra: accuracy (the paper: 92.4 % on SDSS), {each} of each subclass', accuracy(label, p, border, snr), 'Confusion matrix, per cent', confusion(label, p)]
    rows, curves = [], []
    for t in [t for t in TYPES if t in system.redshifts]:
        mine = np.flatnonzero(SPECTYPES[label] == t)
        start = time.process_time()
        z, core, tail, _ = measure_spectra(system.redshifts[t], spectra[mine]).T
        cost[t] = (time.process_time() - start)/len(mine)
        here = z, z_true[mine], core, tail
        rows.append(redshift_row(t, *here))
        for k in np.unique(label[mine]) if t != 'STAR' else ():
            rows.append(redshift_row(f'– {name_of(k)}', *(x[label[mine] == k] for x in here)))
        if t == 'QSO': rows.append(redshift_row('QSO, S/N > 2', *(x[snr[mine] > 2] for x in here)))
        more, known = draw_spectra(library, 15*each//int((SPECTYPES == t).sum()), seed=seed + 1, spectypes=(t,), even=True)
        z, core, tail, _ = measure_spectra(system.redshifts[t], more).T
        curves += [f'{t}: σ and coverage against S/N', against_snr(np.asarray(known['SNR']), z, np.asarray(known['TRUE_Z']), core, tail)]
    out += ['Redshifts on simulated spectra, of the regressor of the true type', shown(rows, REDSHIFT), "The paper's, on 18,000 SDSS spectra",
            shown([(k, *(f'{x:g}' for x in v), SPEARMAN.get(k, '–')) for k, v in PAPER.items()], ['sample', 'mean |dz|', 'median |dz|', 'NMAD', 'GF(3e-3)', 'within 1σ', 'within 2σ', 'pull', 'rank σ, |Δz|']), *curves]
    out.append('Time on one core: ' + ', '.join(f'{k} {1e3*v:.1f} ms a spectrum' for k, v in cost.items()))
    return out


def real_spectra(data):
    """Real spectra on the grid of the networks, and a table of what is known of them: SURVEY CLASS SUBCLASS Z."""
    parts, about = [], []
    for folder, catalogue in (('sdss', 'sdss/catalogue.csv'), ('real2', 'real2/catalogue.csv'), ('lamost/AstroSpectro', 'lamost/lamost_catalog.csv')):
        t = Table.read(data/catalogue)
        lower = {n.lower(): n for n in t.colnames}
        rows = {Path(str(r[lower['file']])).name: r for r in t}
        for kind in (['sdss', 'lamost'] if folder == 'real2' else ['']):
            try: spectra = read_any(data/folder/kind)
            except (ValueError, OSError) as e:
                print(f'{folder}/{kind} is left out: {e}')
                continue
            names, compact = text(spectra.meta['FILE']), to_compact(spectra)
            for i, name in enumerate(names):
                if name not in rows: continue
                r = rows[name]
                get = lambda k: '' if k not in lower or np.ma.is_masked(r[lower[k]]) else r[lower[k]]
                z = get('z_best') if get('z_best') != '' else get('z')
                good = get('z_source') == 'human' or int(get('zwarning') or 0) == 0
                if z == '' or not good or 'SKY' in str(get('tag')) or 'TRUNC' in str(get('tag')) or not compact.good[i].any(): continue
                about.append((str(get('survey') or ('LAMOST' if 'lamost' in folder else 'SDSS')).split()[0], str(get('class')), str(get('subclass')).split(' (')[0], float(z), name, float(get('ra') or get('plug_ra') or -1), float(compact.snr[i])))
                parts.append((compact.flux[i], compact.ivar[i]))
    table = Table(rows=about, names=['SURVEY', 'CLASS', 'SUBCLASS', 'Z', 'FILE', 'RA', 'SNR'])
    order = np.argsort(-np.asarray(table['SNR']))
    place = np.array([f'{round(1200*r["RA"])} {r["CLASS"]}' if r['RA'] >= 0 else r['FILE'] for r in table])
    keep = np.sort(order[np.unique(place[order], return_index=True)[1]])
    flux, ivar = (np.array([p[k] for p in parts])[keep] for k in (0, 1))
    return flux, ivar, table[keep]


def real(system, data):
    """Tables on real spectra."""
    from skyseek.data.spectra import Spectra
    from skyseek.gasnet.sdss_subclasses import wave_compact
    flux, ivar, known = real_spectra(data)
    spectra = Spectra(wave_compact(), flux, ivar)
    found = system.predict(spectra)
    named = np.array([f"{c} {s.split()[0]}".strip() if s and s != '--' else c for c, s in zip(known['CLASS'], known['SUBCLASS'])])
    whole = np.array([s in ('', '--') or len(s.split()) == 1 for s in known['SUBCLASS']])
    ours = np.array([f'{k} {s}'.strip() for k, s in zip(found['SPECTYPE'], found['SUBCLASS'])])
    kind, flagged = text(known['CLASS']), np.asarray(found['ZWARN'] != 0)
    index = {n: k for k, n in enumerate(SUBCLASSES)}
    rows, lines = [], []
    for survey in [*dict.fromkeys(known['SURVEY']), 'all']:
        here = (known['SURVEY'] == survey) | (survey == 'all')
        for t in TYPES:
            m = here & (kind == t)
            if not m.any(): continue
            same = np.asarray(found['SPECTYPE'] == t)
            thirteen = m & whole & np.isin(named, SUBCLASSES)
            near = np.array([n in index and o in index and abs(index[n] - index[o]) <= 1 for n, o in zip(named, ours)])
            rows.append((f'{survey} {t}', m.sum(), percent(same[m]), percent(same[m & ~flagged]), (m & flagged).sum(), thirteen.sum(), percent((ours == named)[thirteen]), percent(near[thirteen]) if t == 'STAR' else '–'))
            part = np.flatnonzero(m)
            z, core, tail, _ = measure_spectra(system.redshifts[t], spectra[part]).T
            lines.append(redshift_row(f'{survey} {t}', z, np.asarray(known['Z'])[part], core, tail))
            clear = np.flatnonzero(m & same & ~flagged)
            if len(clear) > 2: lines.append(redshift_row('  class right, no warning', *(np.asarray(a)[clear] for a in (found['Z'], known['Z'], found['ZERR'], found['ZERR95']))))
    counts = []
    for name in [n for n in SUBCLASSES if (whole & (named == n)).any()]:
        m = whole & (named == name)
        given = sorted(zip(*np.unique(ours[m], return_counts=True)), key=lambda x: -x[1])
        counts.append(f'{name:20} ' + ', '.join(f'{n or "no data"} {c}' for n, c in given))
    return ['Real spectra: classes', shown(rows, ['sample', 'N', 'type right [%]', 'without warning [%]', 'with a warning', 'of the 13 subclasses', 'subclass right [%]', 'or the next star type [%]']),
            'Real spectra: redshifts, against the best that is known (regressor of the known type; then of the whole system)', shown(lines, REDSHIFT),
            'Real spectra: what each subclass of the pipelines was given', '\n'.join(counts)]


def tables(system, data, each):
    """All tables as text."""
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    return '\n\n'.join([*simulated(system, read_shapes(data), each), *real(system, data)])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--weights', type=Path)
    parser.add_argument('--each', type=int, default=400, help='simulated spectra of each subclass')
    a = parser.parse_args()
    print(tables(load_gasnet2(a.weights), a.data, a.each))


if __name__ == '__main__': main()
