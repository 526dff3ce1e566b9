"""A stand-in for a GPU: tensors that say they are on the device `other` and live in the memory of the host.

Inside `with OtherDevice() as gpu:` a tensor that is made with device='other' is on the other device. An operation
that mixes it with a tensor of the host fails, as on a GPU, and so does `numpy()`. Copies, and operations that make
the host wait for the device (`item`, `bool`, boolean indexing), are counted by the line that asks for them."""
import traceback
from collections import Counter
from pathlib import Path
import torch
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from torch.utils._python_dispatch import TorchDispatchMode

_setup_privateuseone_for_python_backend('other')
PACKAGE = Path(__file__).parent.parent/'skyseek'
HOST = torch.device('cpu')
WAITS = {  # operations whose size or value the host has to know
    'aten::_local_scalar_dense', 'aten::nonzero', 'aten::masked_select', 'aten::equal', 'aten::_unique2',
    'aten::unique_dim', 'aten::unique_consecutive', 'aten::repeat_interleave.Tensor', 'aten::_linalg_check_errors'}
INDEXING = 'aten::index.Tensor', 'aten::index_put', 'aten::index_put_', 'aten::_index_put_impl_'


class OnDevice(torch.Tensor):
    "A tensor of the other device; `held` is the tensor of the host that holds its numbers."
    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device='other:0')

    def __init__(self, held):
        self.held = held

    def __repr__(self):
        return f'OnDevice({self.held})'

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f'{func}: a tensor of the other device is used outside OtherDevice')


def line_of_package():
    "The line of skyseek, or of the test, that asked for the operation that runs."
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if PACKAGE in path.parents:
            return f'{path.relative_to(PACKAGE).as_posix()}:{frame.name}'
    return 'test'


class OtherDevice(TorchDispatchMode):
    "Counts what goes over the bus; `up`, `down` and `waits` are {line: times}, `bytes_up` and `bytes_down` sums."
    def __init__(self):
        super().__init__()
        self.clear()

    @classmethod
    def _should_skip_dynamo(cls): return False  # nothing is compiled here, and to import the compiler takes seconds

    def clear(self):
        self.up, self.down, self.waits, self.ops = Counter(), Counter(), Counter(), 0
        self.bytes_up = self.bytes_down = 0

    def counts(self):
        "Copies up, copies down and waits that the package asked for."
        return tuple(sum(n for line, n in c.items() if line != 'test') for c in (self.up, self.down, self.waits))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), func.name()
        to = kwargs.get('device')
        flat = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        there = [x for x in flat if isinstance(x, OnDevice)]
        if to is not None:
            kwargs['device'] = HOST
        if name in ('aten::_to_copy', 'aten::copy_'):
            return self._copy(func, args, kwargs, to)
        on_device = torch.device(to).type == 'other' if to is not None else bool(there)
        if there or on_device:
            self._check(name, flat)
        self.ops += on_device
        if there and (name in WAITS or name in INDEXING and _by_mask(name, args)):
            self.waits[line_of_package()] += 1
        out = func(*pytree.tree_map(_held, args), **pytree.tree_map(_held, kwargs))
        if not on_device:
            return out
        known = {id(x.held): x for x in there}  # what changes in place stays the same tensor
        return pytree.tree_map(lambda x: _wrapped(x, known), out)

    def _check(self, name, flat):
        wrong = [x for x in flat if not isinstance(x, OnDevice)]
        if any(x.ndim or name in INDEXING for x in wrong) and len(wrong) < len(flat):
            shapes = [f"{'other' if isinstance(x, OnDevice) else 'cpu'} {tuple(x.shape)}" for x in flat]
            raise RuntimeError(f'{name}: tensors on different devices: {shapes}')

    def _copy(self, func, args, kwargs, to):
        if func.name() == 'aten::copy_':
            source, goal = args[1], 'other' if isinstance(args[0], OnDevice) else 'cpu'
        else:
            source, goal = args[0], torch.device(to).type if to is not None else args[0].device.type
        here, size = isinstance(source, OnDevice), source.numel()*source.element_size()
        out = func(*pytree.tree_map(_held, args), **kwargs)
        if here and goal == 'cpu':
            self.down[line_of_package()] += 1
            self.bytes_down += size
        elif not here and goal == 'other' and not (func.name() == 'aten::copy_' and not source.ndim):
            self.up[line_of_package()] += 1
            self.bytes_up += size
        if func.name() == 'aten::copy_':
            return args[0]
        if out is _held(source):
            out = out.clone()
        return OnDevice(out) if goal == 'other' else out


def _held(x):
    return x.held if isinstance(x, OnDevice) else x


def _by_mask(name, args):
    "Whether a boolean index is turned into numbers; one value put under one mask is not."
    masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)] if len(args) > 1 else []
    return bool(masks) and not (name.startswith('aten::index_put') and args[2].numel() == 1)

def _wrapped(x, known):
    if not isinstance(x, torch.Tensor) or isinstance(x, OnDevice):
        return x
    return known[id(x)] if id(x) in known else OnDevice(torch.conj_physical(x.conj()) if x.is_conj() else x)
