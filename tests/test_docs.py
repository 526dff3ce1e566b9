"""What the builder of the documentation pages does with names, types, tables and the sidebar."""
import inspect
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
from astropy.table import Table

pytest.importorskip('nbdev')
import docs_api
import docs_site


def test_words_and_columns_are_no_links():
    ours, fastcore = 'https://skyseek.github.io/skyseek/x.html', 'https://fastcore.fast.ai/test.html'
    link = lambda name, called=False, count=1, target=ours: docs_api.linkable(name, called, count, target)
    assert link('fit_reference') and link('Spectra') and link('fit', called=True)
    assert not any(link(name) for name in ('fit', 'train', 'reference', 'P_Z_WRONG', 'SNR', '_row', 'Spectra._check'))
    assert not link('plot_confusion', count=2) and not link('test_eq', target=fastcore)


def test_types_are_shown_as_in_the_source():
    types = np.ndarray, Path | str, list[Path], 'RedshiftFit', inspect.Parameter.empty
    shown = [docs_api.shown_type(t) for t in types]
    assert shown == ['`np.ndarray`', '`Path | str`', '`list[Path]`', '`RedshiftFit`', '']


def test_names_of_other_packages_are_whole():
    types = np.random.Generator, np.random.Generator | None, Annotated[str | None, {'flags': '--x'}]
    shown = [docs_api.shown_type(t) for t in types]
    assert shown == ['`np.random.Generator`', '`np.random.Generator | None`', '`str | None`']


def test_patterns_of_files_are_no_markup():
    text = docs_api.literal('redrock-*.fits or zbest-*.fits, 2**14 (default: --truth); *test* and `coadd-*.fits`')
    assert text == r'redrock-\*.fits or zbest-\*.fits, 2\*\*14 (default: \-\-truth); *test* and `coadd-*.fits`'


def test_a_type_that_is_not_imported_stays_text():
    def score(
        flux, # what goes in
        n: int = 3, # how many
    ): # what comes out
        "Score."
    score.__annotations__ |= {'flux': 'Spectra', 'return': 'Elsewhere'}
    table = docs_api.parameter_table(score, docs_api.signature_of(score))
    assert '| `flux` | `Spectra` |  | what goes in |' in table and '| *returns* | `Elsewhere` |  | what comes out |' in table


def test_further_parameters_have_their_stars_and_comment():
    from skyseek.learn.model_sets import save_set
    table = docs_api.parameter_table(save_set, inspect.signature(save_set))
    assert '| `**extra` |  | JSON-able facts to keep with each of them |' in table


def test_long_defaults_are_cut():
    text = docs_api._default(tuple(f'COLUMN_{i}' for i in range(40)))
    assert text == "('COLUMN_0', 'COLUMN_1', … 40 in all)"


def test_printed_tables_become_tables():
    table = Table(dict(NAME=['a', 'bb'], Z=[1.5, .25]))
    text = '\n'.join(['before', *table.pformat(show_unit=False), 'after'])
    (_, before), (kind, html), (_, after) = docs_site.split_tables(text)
    assert (before, kind, after) == ('before', 'html', 'after')
    assert html.count('<tr>') == 3 and '<td>bb</td><td class="number">0.25</td>' in html


def test_numbers_of_many_digits_are_short():
    html = '<td>0.36874355163716493</td><td>39633345008634465</td><td>1.1796156157e-06</td>'
    assert docs_site.short_numbers(html) == '<td>0.368744</td><td>39633345008634465</td><td>1.17962e-06</td>'


def test_tables_of_metrics_become_tables():
    rows = [' '*24 + f'{"AP":>16}{"AUC":>16}', f'{"trees, all":24}{"0.843 ± 0.026":>16}{"0.935 ± 0.011":>16}']
    html = ''.join(text for kind, text in docs_site.split_tables('\n'.join(rows)) if kind == 'html')
    assert '<td>trees, all</td><td class="number">0.843 ± 0.026</td><td class="number">0.935 ± 0.011</td>' in html


def test_a_first_column_may_have_a_name():
    head = f'{"AP":24}{"DELTACHI2":>16}{"trees, all columns":>24}'
    row = f'{"S/N 0 to 0.5 (7/24)":24}{"0.937 ± 0.054":>16}{"1.000 ± 0.000":>24}'
    (_, before), (kind, html), _ = docs_site.split_tables(f'{head}\n{row}')
    assert (before, kind) == ('', 'html') and '<td>S/N 0 to 0.5 (7/24)</td><td class="number">0.937 ± 0.054</td>' in html


def test_plain_text_stays_plain():
    text = 'one  two\n-----\n    indented   words\nnot a table'
    assert [kind for kind, part in docs_site.split_tables(text) if part] == ['text']


def test_sidebar_has_its_sections():
    contents = docs_site.sidebar()
    sections = ['Start', 'Tutorials', 'Commands', 'Catalogue', 'How it works', 'API']
    assert [item['section'] for item in contents] == sections
    names = list(docs_site.listed(contents))
    html = docs_site.sidebar_html(contents, {n: n for n in names}, 'data/01_spectra.ipynb', '../')
    assert html.count('aria-current') == 1 and html.count('<details open>') == 2
    wings = list(dict.fromkeys(Path(n).parent.name for n in docs_site.listed(contents[4]['contents'])))
    assert wings == ['data', 'simulate', 'learn', 'redshift', 'gasnet', 'detect', 'explain', 'anomaly', 'pipeline']
