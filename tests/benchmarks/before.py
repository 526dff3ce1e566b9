"""Two versions of skyseek in one process, so that a benchmark can time them in turns."""
import importlib
import subprocess
import sys
import tarfile
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path


@contextmanager
def of_version(modules, folder=None):
    """Within the block `import skyseek` means the version of `modules`; what is imported newly is added to them."""
    now = {k: v for k, v in sys.modules.items() if k.split('.')[0] == 'skyseek'}
    for name in now: del sys.modules[name]
    sys.modules.update(modules)
    if folder: sys.path.insert(0, str(folder))
    try: yield
    finally:
        if folder: sys.path.remove(str(folder))
        found = {k: v for k, v in sys.modules.items() if k.split('.')[0] == 'skyseek'}
        modules.update(found)
        for name in found: del sys.modules[name]
        sys.modules.update(now)


def load_before(commit, folder, *names):
    """Modules of an older commit, unpacked from git into a folder: {name: module}."""
    root = Path(__file__).parents[2]
    packed = subprocess.run(['git', '-C', root, 'archive', commit, 'skyseek'], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=BytesIO(packed)) as f: f.extractall(folder, filter='data')
    modules = {}
    with of_version(modules, folder):
        for name in names: importlib.import_module(name)
    assert all(Path(modules[n].__file__).is_relative_to(folder) for n in names)
    return modules
