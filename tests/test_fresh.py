"""The check of outputs finds a notebook whose prose repeats a number that its code no longer gives."""
import nbformat
import pytest

import fresh


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.setattr(fresh, 'ROOT', tmp_path)

    def write(prose, code, printed):
        out = nbformat.v4.new_output('stream', text=printed)
        cells = [nbformat.v4.new_markdown_cell(prose), nbformat.v4.new_code_cell(code, outputs=[out])]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path/'a.ipynb')
        return tmp_path/'a.ipynb'
    return write


@pytest.mark.parametrize('prose, code, printed, words', [
    ('It finds 0.915 of them.', 'print(0.915)', '0.915\n', None),
    ('It finds 0.915 of them.', 'print(0.872)', '0.915\n', '0.915'),
    ('About 40 objects.', 'print(0.872)', '0.915\n', None),  # not from an output
    ('It finds 0.915 of them.', '#| slow\nprint(0.872)', '0.915\n', None),  # left out, keeps its output
    ('Of 27,000 files.', 'print(26000)', '27000\n', '27000'),
    ('It runs.', 'raise ValueError("broken")', '1\n', 'broken'),
])
def test_numbers_of_the_prose_are_those_of_the_code(write, prose, code, printed, words):
    found = fresh.check(write(prose, code, printed))
    assert not found if words is None else len(found) == 1 and words in found[0]
