"""Each extra alone: python .ci/extras.py WHEEL FOLDER

For skyseek and for each of its extras a new environment in FOLDER, which sees of this one only what it requires,
directly or not; what is missing is installed from the index. There `pip check` must find nothing, and what the extra
brings must be importable; without extras, all of skyseek but the widgets of the explorer.
"""

import subprocess
import sys
import sysconfig
import venv
from concurrent.futures import ThreadPoolExecutor
from email import message_from_bytes
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

from packaging.requirements import Requirement

IMPORTS = {
    'specutils': 'specutils skyseek.data.spectra',
    'images': 'h5py galsim skyseek.anomaly.simulated_images',
    'maps': 'umap skyseek.data.plots',
    'survey': 'fsspec aiohttp s3fs dask distributed dask_jobqueue skyseek.data.archive',
    'hats': 'astropy_healpix skyseek.pipeline.hats',
    'explore': 'bokeh skyseek.pipeline.explorer_page skyseek.pipeline.explorer_html skyseek.pipeline.image_gallery',
}  # what it brings, and what uses that
ALL = """import pkgutil, skyseek
from importlib import import_module
for m in pkgutil.walk_packages(skyseek.__path__, "skyseek."):
    try: import_module(m.name)
    except ImportError as e:
        widgets = "skyseek.pipeline.explorer_", "skyseek.pipeline.image_gallery"
        if e.name != "bokeh" or not m.name.startswith(widgets): raise
"""  # without extras all can be imported but the widgets of the explorer, which are all of Bokeh
SITE = Path(sysconfig.get_path('purelib'))


def wanted(lines, extra=''):
    "The requirements among `Requires-Dist` lines that hold here with an extra."
    found = map(Requirement, lines or ())
    return [r for r in found if r.marker is None or r.marker.evaluate({'extra': extra})]


def closure(requirements):
    "Names of the installed distributions that these requirements need, directly or not."
    todo, seen = [(r.name, extra) for r in requirements for extra in ('', *r.extras)], set()
    while todo:
        name, extra = todo.pop()
        key = name.lower().replace('_', '-'), extra
        if key in seen:
            continue
        try:
            dist = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        seen.add(key)
        todo += [(r.name, e) for r in wanted(dist.requires, extra) for e in ('', *r.extras)]
    return {name for name, _ in seen}


def environment(folder, names):
    "A new environment without pip that sees these distributions of ours; returns its Python."
    venv.create(folder, with_pip=False, symlinks=True)
    (folder / 'required').mkdir()
    for name in names:
        for top in {
            f.parts[0] for f in metadata.distribution(name).files or () if f.parts[0] not in ('..', '__pycache__')
        }:
            if not (folder / 'required' / top).exists():
                (folder / 'required' / top).symlink_to(SITE / top)
    next(folder.glob('lib/python*/site-packages')).joinpath('required.pth').write_text(f'{folder}/required\n')
    return folder / 'bin/python'


def check(wheel, extra, requires, folder):
    "Install the wheel with one extra, and try it."
    pip = [sys.executable, '-m', 'pip', '--python', environment(folder, closure(wanted(requires, extra)))]
    subprocess.run([*pip, 'install', '--quiet', f'{wheel}[{extra}]' if extra else wheel], check=True)
    subprocess.run([*pip, 'check'], check=True)
    tried = f'import {", ".join(IMPORTS[extra].split())}' if extra else ALL
    subprocess.run([pip[-1], '-c', tried], check=True, cwd=folder)
    print(f'skyseek{f"[{extra}]" if extra else ""}: installed and imported alone', flush=True)


def main(wheel, folder):
    "Check skyseek without extras, and with each of them but [dev], which the tests use; two at a time."
    with ZipFile(wheel) as z:
        about = message_from_bytes(z.read(next(n for n in z.namelist() if n.endswith('.dist-info/METADATA'))))
    extras, requires = ['', *sorted(set(about.get_all('Provides-Extra')) - {'dev'})], about.get_all('Requires-Dist')
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda extra: check(wheel, extra, requires, Path(folder, extra or 'none')), extras))


if __name__ == '__main__':
    main(*sys.argv[1:])
