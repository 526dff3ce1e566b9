"What a command loads before it works: help loads nothing heavy, and scoring nothing that only training or drawing needs."

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in BLOCKED or name.split('.')[0] in BLOCKED: raise ImportError(f'{name} is blocked')
sys.meta_path.insert(0, Blocker())
"""


def run(code, cwd=ROOT):
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize('words', [['--help'], ['score', '--help'], ['--version']])
def test_help_loads_nothing_heavy(words):
    blocked = 'numpy', 'scipy', 'astropy', 'torch', 'matplotlib', 'pandas', 'pyarrow', 'IPython'
    code = f"BLOCKED = {blocked}{BLOCK}\nfrom skyseek.pipeline.cli import main\ntry: main({words})\nexcept SystemExit as e: assert e.code == 0"
    assert run(code).strip()


@pytest.mark.parametrize('words, said', [
    (['score', 'none.fits', '-o', 'cat.fits'], 'no such file'), (['score', '--nonsense'], 'usage'),
    (['survey', 'none', '-o', 'out', '--nonsense'], 'usage')])
def test_mistakes_are_told_before_torch_is_loaded(words, said, tmp_path):
    code = f"BLOCKED = {('torch',)}{BLOCK}\nsys.path.insert(0, {str(ROOT)!r})\nfrom skyseek.pipeline.cli import main\nsys.exit(main({words}))"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode in (1, 2) and said in done.stderr and 'blocked' not in done.stderr, done.stderr


def test_scoring_needs_neither_training_nor_drawing(tmp_path):
    blocked = 'lightning', 'pytorch_lightning', 'sklearn', 'torch._dynamo', 'torch._inductor', 'IPython'
    code = f"""BLOCKED = {blocked}{BLOCK}
import torch
from skyseek.pipeline.catalogue import make_catalogue, write_catalogue
from skyseek.pipeline.score import load_weights, score_file
from skyseek.redshift.scan import redshift_file
from skyseek.simulate.mock_survey import simulate_survey
torch.set_num_threads(1)
coadd = simulate_survey({str(tmp_path)!r}, n=6, seed=3)
redshift_file(coadd, coadd.with_name(coadd.name.replace('coadd', 'redrock')))
weights = load_weights()
table = score_file(coadd, weights)
write_catalogue(make_catalogue([table], weights), {str(tmp_path/'cat.fits')!r})
print(len(table), 'rows', [m for m in ('matplotlib', 'pandas', 'pyarrow') if m in sys.modules])
"""
    assert run(code).endswith('rows []\n')
