"""What the stages of `score` cost on a GPU, on paper: operations, floating-point operations and bytes, and from them a rate by the roofline model.

No GPU is needed: the work is done on the stand-in of tests/other_device.py with the batches of a GPU, and every operation is counted. An operation takes
the longer of two times, its floating-point operations at the peak of the chip and its bytes at the bandwidth of the memory, and at least the time in
which the host starts it. Matrix products and convolutions are counted by torch.utils.flop_counter, a Fourier transform as 2.5 n log2 n (real) and all
else as one floating-point operation for each number that is written. Bytes are those of all arrays that an operation reads and writes."""
import math
import sys
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import flop_registry

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from other_device import OtherDevice

CHIPS = {  # name: (TFLOP/s in float32, in float64, in bf16 on tensor cores, TB/s of the memory), of the data sheets
    'A100': (19.5, 9.7, 312, 1.94), 'H100': (67., 34., 989, 3.35), 'H200': (67., 34., 989, 4.8)}
LAUNCH = 5e-6  # s in which the host starts an operation, about
WIDE = torch.float64, torch.complex128
STAGES = {  # label: module and function whose work it is
    'scan': ('pipeline.score', 'scan_redshift'), 'repairs': ('redshift.second_look', 'repair_suspicious'),
    'candidates': ('redshift.second_look', 'candidates'), 'ranker': ('redshift.second_look', 'judge_candidates'),
    'features': ('pipeline.score', 'build_features'), 'encoder': ('pipeline.score', 'encode_features'), 'classifier': ('pipeline.score', 'predict'),
    'causes': ('pipeline.score', 'cause_columns'), 'familiarity': ('pipeline.score', 'familiarity_columns'), 'anomaly scores': ('pipeline.score', 'odd_columns')}


@contextmanager
def watched(watch):
    "Inside, `watch(label)` is entered around each stage; a stage inside of another belongs to the outer one."
    from importlib import import_module
    changed, inside = [], []
    def wrap(label, work):
        def wrapped(*args, **options):
            if inside: return work(*args, **options)
            inside.append(label)
            try:
                with watch(label): return work(*args, **options)
            finally: inside.pop()
        return wrapped
    for label, (module, name) in STAGES.items():
        module = import_module(f'skyseek.{module}')
        changed.append((module, name, getattr(module, name)))
        setattr(module, name, wrap(label, getattr(module, name)))
    try: yield
    finally:
        for module, name, work in changed: setattr(module, name, work)


def flops_of(func, args, kwargs, out):
    "Floating-point operations of one operation."
    packet, name = func._overloadpacket, func.name()
    if packet in flop_registry: return flop_registry[packet](*args, **kwargs, out_val=out)
    written = sum(x.numel() for x in pytree.tree_leaves(out) if isinstance(x, torch.Tensor))
    if '_fft_' in name:
        n = args[3] if name.startswith('aten::_fft_c2r') else args[0].shape[args[1][-1]]
        rows = (out if isinstance(out, torch.Tensor) else out[0]).numel()//max(out.shape[args[1][-1]], 1)
        return int(2.5*rows*n*math.log2(max(n, 2)))
    return written*(4 if isinstance(out, torch.Tensor) and out.is_complex() else 1)


def _touched(x, name, out):
    "Bytes of an array that an operation reads or writes: of a view no more than there is, of what is gathered no more than is taken."
    size = min(x.numel()*x.element_size(), getattr(x, 'held', x).untyped_storage().nbytes())
    if x is not out and ('index' in name or 'gather' in name) and isinstance(out, torch.Tensor): size = min(size, out.numel()*x.element_size())
    return size


class Paper(OtherDevice):
    "Counts the cost of each operation under the label of the stage that runs."
    def __init__(self):
        super().__init__()
        self.label, self.rows = 'other', defaultdict(lambda: defaultdict(float))

    @contextmanager
    def stage(self, label):
        self.label, before = label, self.label
        try: yield
        finally: self.label = before

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before, up, down = self.ops, self.bytes_up, self.bytes_down
        out = super().__torch_dispatch__(func, types, args, kwargs)
        row = self.rows[self.label]
        row['bus'] += self.bytes_up - up + self.bytes_down - down
        alias = [r.alias_info for r in func._schema.returns]
        if self.ops == before or (alias and alias[0] is not None and not alias[0].is_write): return out  # the host's, or a view
        arrays = [x for x in pytree.tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
        arrays = list({id(x): x for x in arrays}.values())
        flops, size = flops_of(func, args, kwargs or {}, out), sum(_touched(x, func.name(), out) for x in arrays)
        wide = any(x.dtype in WIDE for x in arrays)
        row['ops'] += 1
        row['flops'] += flops
        row['bytes'] += size
        for chip, (single, double, _, memory) in CHIPS.items():
            row[chip] += max(flops/(1e12*(double if wide else single)), size/(1e12*memory))
        return out


def paper(spectra, score, batch):
    """Costs of each stage of `score(spectra)`, which works on the device 'other': {label: {what: for a spectrum of a batch}}.

    What is made once in a batch, templates for example, is told from what each spectrum costs by two runs, with the spectra once and four times."""
    runs, n = [], len(spectra)
    for times in (1, 4):
        with Paper() as counted, watched(counted.stage): score(spectra[[*range(n)]*times])
        runs.append(counted.rows)
    out = {}
    for label, few in runs[0].items():
        many = runs[1][label]
        each = {k: max(many[k] - few[k], 0)/(3*n) for k in few}
        out[label] = {k: each[k] + max(few[k] - n*each[k], 0)/batch for k in few if k != 'ops'}
        out[label] |= dict(launches=max(few['ops'], many['ops']), start=max(few['ops'], many['ops'])*LAUNCH/batch)
    return out


def print_paper(rows, batch):
    "The table, and the rates it means."
    chips = list(CHIPS)
    print(f'\nOn paper, a spectrum; operations are those of a batch of {batch} spectra. An estimate: no GPU was used for it.')
    print('| stage | MFLOP | MB of memory | kB over the bus | operations a batch | ' + ' | '.join(f'{c}: µs' for c in chips) + ' |')
    print('|---'*(5 + len(chips)) + '|')
    total = defaultdict(float)
    for label, r in rows.items():
        times = [1e6*max(r.get(c, 0), r['start']) for c in chips]
        for c, t in zip(chips, times): total[c] += t
        print(f"| {label} | {r.get('flops', 0)/1e6:.1f} | {r.get('bytes', 0)/1e6:.2f} | {r.get('bus', 0)/1e3:.0f} | {r['launches']:.0f} | "
              + ' | '.join(f'{t:.1f}' for t in times) + ' |')
    for what, labels in {'scan': ['scan'], 'encoder': ['encoder'], 'all that runs on the GPU': list(rows)}.items():
        rates = [1e6/sum(1e6*max(rows[k].get(c, 0), rows[k]['start']) for k in labels if k in rows) for c in chips]
        print(f"{what}: estimated " + ', '.join(f'{r:,.0f} spectra/s on one {c}' for r, c in zip(rates, chips)))
