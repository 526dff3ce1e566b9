"""What the tests share."""
import os
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')  # tests run side by side; before torch is imported

import pytest  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='session')
def data():
    "Folder of the real survey files; tests that need it are skipped where there is none."
    path = Path(os.environ.get('SKYSEEK_DATA', ROOT.parent / 'shared' / 'data'))
    if not path.is_dir(): pytest.skip(f'no real data at {os.path.relpath(path)}: set SKYSEEK_DATA to the folder that holds it')
    return path
