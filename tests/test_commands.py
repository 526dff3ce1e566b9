"""What every command keeps to: a line for each failure, plain text, nobody's files replaced unasked, common options."""

import gzip
import io
import logging
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from surveys import coadd_parts, redrock_table, write_coadd, write_pair, write_parts

import skyseek
from skyseek.pipeline.cli import main, make_parser
from skyseek.data.redshift_tables import read_redrock

ESC = '\x1b[2J\x07'
EXISTING = b'somebody needs this'


@pytest.fixture(autouse=True)
def quiet_log():
    """Commands set the log up; tests that follow find it as it was."""
    yield
    logging.captureWarnings(False)
    logging.basicConfig(force=True, level=logging.WARNING)


@pytest.fixture
def run(capsys):
    """Run a command: (exit code, standard output, standard error)."""

    def run(*argv):
        capsys.readouterr()
        try:
            code = main([str(a) for a in argv])
        except SystemExit as e:
            code = e.code
        return code, *capsys.readouterr()

    return run


def errors(text):
    return [line for line in text.splitlines() if line.startswith('ERROR')]


def refused(result, *words):
    """One line on standard error, exit code 1, no traceback."""
    code, _, err = result
    assert code == 1 and len(errors(err)) == 1 and 'Traceback' not in err, err
    for word in words:
        assert word in err, err
    return errors(err)[0]


@pytest.fixture(scope='module')
def survey(tmp_path_factory):
    """A simulated coadd of eight fibres with our redshifts."""
    folder = tmp_path_factory.mktemp('survey')
    assert main(['simulate', '-o', str(folder), '-n', '8', '--hpx', '31', '--seed', '5']) == 0
    assert main(['redshift', str(folder / 'coadd-main-dark-31.fits')]) == 0
    return folder


@pytest.fixture
def coadd(survey, tmp_path):
    """A copy of the coadd and its redrock-format file, to be spoilt."""
    for kind in ('coadd', 'redrock', 'truth'):
        shutil.copy(survey / f'{kind}-main-dark-31.fits', tmp_path)
    return tmp_path / 'coadd-main-dark-31.fits'


def redrock_of(coadd):
    return coadd.with_name(coadd.name.replace('coadd', 'redrock'))


def target(coadd):
    return int(fits.getdata(redrock_of(coadd), 'REDSHIFTS')['TARGETID'][2])


def set_answer(coadd, **values):
    """Change columns of the third row of a redrock-format file."""
    path = redrock_of(coadd)
    table, header = Table.read(path, 'REDSHIFTS'), fits.getheader(path)
    table.meta.clear()  # the checksums of what was there
    for name, value in values.items():
        column = table[name].tolist()
        column[2] = value
        table[name] = column
    fits.HDUList([fits.PrimaryHDU(header=header), fits.BinTableHDU(table, name='REDSHIFTS')]).writeto(
        path, overwrite=True
    )


# Failures in one line

FAULTS = {
    'KeyError': KeyError('NATURE'),
    'IndexError': IndexError('index -1 is out of bounds'),
    'AttributeError': AttributeError("'list' object has no attribute 'get'"),
    'RecursionError': RecursionError('maximum recursion depth exceeded'),
    'empty': AssertionError(),
    'ZeroDivisionError': ZeroDivisionError('division by zero'),
}


@pytest.mark.parametrize('name', FAULTS)
def test_unforeseen_exceptions_are_one_line_with_a_hint(run, tmp_path, monkeypatch, name):
    def broken(*_, **__):
        raise FAULTS[name]

    monkeypatch.setattr('skyseek.simulate.mock_survey.simulate_survey', broken)
    refused(run('simulate', '-o', tmp_path, '-n', 3), '--log debug', 'a fault of skyseek', type(FAULTS[name]).__name__)
    code, _, err = run('--log', 'debug', 'simulate', '-o', tmp_path, '-n', 3)
    assert code == 1 and 'Traceback' in err and 'in broken' in err and len(errors(err)) == 1


@pytest.mark.parametrize(
    'error, words',
    [
        (ValueError('\n  $x^{$b\n   ^\nParseException: Expected end of text'), '$x^{$b'),
        (MemoryError('Unable to allocate 8 GiB'), 'not enough memory'),
        (ValueError(f'a{ESC}.fits: no spectra'), r'a\x1b[2J\x07.fits'),
    ],
)
def test_every_error_is_one_printable_line(run, tmp_path, monkeypatch, error, words):
    def broken(*_, **__):
        raise error

    monkeypatch.setattr('skyseek.simulate.mock_survey.simulate_survey', broken)
    line = refused(run('simulate', '-o', tmp_path, '-n', 3), words)
    assert 'fault of skyseek' not in line and len(line) > 10 and line.isprintable()


@pytest.mark.parametrize(
    'module, extra, argv',
    [
        ('fsspec', 'survey', ('survey', 'https://127.0.0.1:9/dr1', 'OUT')),
        ('h5py', 'images', ('train-galaxies', 'STAMPS', '-o', 'OUT')),
    ],
)
def test_a_missing_extra_is_named_with_its_command(run, tmp_path, monkeypatch, module, extra, argv):
    for name in [m for m in sys.modules if m.split('.')[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / 'stamps.h5').write_bytes(b'\x89HDF\r\n\x1a\n')
    refused(
        run(*[{'OUT': tmp_path / 'out', 'STAMPS': tmp_path / 'stamps.h5'}.get(a, a) for a in argv]),
        f"pip install 'skyseek[{extra}]'",
    )


@pytest.mark.parametrize(
    'error, extra',
    [
        (ImportError('Install s3fs to access S3'), 'survey'),
        (ModuleNotFoundError("No module named 'dask_jobqueue'", name='dask_jobqueue'), 'survey'),
        (ImportError('HTTPFileSystem requires "requests" and "aiohttp" to be installed'), 'survey'),
        (ModuleNotFoundError("No module named 'umap'", name='umap'), 'maps'),
    ],
)
def test_import_errors_of_others_are_explained(error, extra, tmp_path, run, monkeypatch):
    def broken(*_, **__):
        raise error

    monkeypatch.setattr('skyseek.simulate.mock_survey.simulate_survey', broken)
    line = refused(run('simulate', '-o', tmp_path, '-n', 3), f"pip install 'skyseek[{extra}]'")
    assert 'fault of skyseek' not in line


# Plain text


def test_nothing_of_a_file_reaches_the_terminal_or_a_figure_as_it_is(run, coadd):
    set_answer(coadd, SUBTYPE=f'$x^{{{ESC}')
    odd = coadd.with_name('coadd-a$x^{$b.fits')
    coadd.rename(odd)
    redrock_of(coadd).rename(redrock_of(odd))
    code, out, err = run('inspect', target(odd), odd, '-o', odd.with_name('page.png'))
    assert code == 0, err
    assert odd.with_name('page.png').stat().st_size > 20_000
    assert '\x1b' not in out + err and r'$x^{\x1b[2J\x07' in out


@pytest.mark.parametrize('stream', ['report', 'page'])
def test_pages_hold_no_control_characters(tmp_path, stream):
    from skyseek.data import plots

    path = plots.write_page(
        tmp_path / 'page.html', f'spec{ESC}.fits', f'<pre>K5{ESC} \udce9</pre>' if stream == 'page' else '<pre>K5</pre>'
    )
    assert not re.search('[\x00-\x08\x0b-\x1f]', path.read_text(encoding='utf-8'))


def test_warnings_and_arguments_are_escaped_too(run, survey, tmp_path):
    code, _, err = run('extract', survey / 'coadd-main-dark-31.fits', '-o', tmp_path, f'--no{ESC}')
    assert code == 2 and '\x1b' not in err
    path = tmp_path / f'coadd-{ESC}.fits'
    shutil.copy(survey / 'coadd-main-dark-31.fits', path)
    code, out, err = run('extract', path, '-o', tmp_path / 'spectra')
    assert '\x1b' not in out + err and 'no redrock file' in err


def test_ascii_output(coadd, monkeypatch, tmp_path):
    written = io.TextIOWrapper(io.BytesIO(), 'ascii', write_through=True)
    monkeypatch.setattr(sys, 'stdout', written)
    assert main(['inspect', str(target(coadd)), str(coadd), '-o', str(tmp_path / 'page.png')]) == 0
    assert b' +- ' in written.buffer.getvalue()


@pytest.mark.parametrize('where, code', [('closed pipe', 141), ('/dev/full', 1)])
def test_standard_output_that_cannot_be_written(where, code, tmp_path):
    if where == 'closed pipe':
        reading, out = os.pipe()
        os.close(reading)
    elif not Path(where).exists():
        pytest.skip(f'no {where}')
    else:
        out = os.open(where, os.O_WRONLY)
    argv = ['simulate', '-o', str(tmp_path), '-n', '2']
    done = subprocess.run(
        [sys.executable, '-c', f'import sys; from skyseek.pipeline.cli import main; sys.exit(main({argv}))'],
        stdout=out,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ, PYTHONUNBUFFERED=''),
    )
    os.close(out)
    assert done.returncode == code and 'Traceback' not in done.stderr and 'Exception ignored' not in done.stderr
    assert len(errors(done.stderr)) == (code == 1) and (code != 1 or 'standard output' in done.stderr)
    assert (tmp_path / 'coadd-main-dark-27245.fits').exists()


@pytest.mark.parametrize(
    'n, word, words',
    [
        (0, 'redshift', '0 redshifts'),
        (1, 'redshift', '1 redshift'),
        (7, 'spectrum', '7 spectra'),
        (1, 'spectrum', '1 spectrum'),
        (2, 'galaxy', '2 galaxies'),
        (3, 'survey', '3 surveys'),
    ],
)
def test_numbers_have_their_noun(n, word, words):
    from skyseek.data.messages import plural

    assert plural(n, word) == words


def test_no_redshift_is_minus_zero(run, coadd, tmp_path):
    set_answer(coadd, Z=-2e-6, SPECTYPE='STAR')
    code, out, _ = run('inspect', target(coadd), coadd, '-o', tmp_path / 'page.png')
    assert code == 0 and re.search(r'pipeline  STAR .* z = 0\.00000 ', out)
    from skyseek.data.desi import join_redrock, read_coadd
    from skyseek.data.redshift_tables import read_redrock

    spectra = join_redrock(read_coadd(coadd), read_redrock(redrock_of(coadd)))
    assert spectra[2].plot()[0].get_title(loc='left').endswith('Z 0.0000')


def test_tolerances_of_the_options_are_those_of_the_constants():
    """The modules of the commands repeat them: data.constants needs numpy, which --help does without."""
    from inspect import signature
    from skyseek.data.constants import RIGHT, SAME
    from skyseek.pipeline import cli_train, cli_wrong

    given = [signature(f).parameters['tolerance'].default for f in (cli_wrong.evaluate_command, cli_wrong.keep_command, cli_train.train_classifier_command, cli_train.train_command)]
    assert given == [RIGHT]*4
    assert signature(cli_train.benchmark_command).parameters['tolerance'].default == [str(RIGHT), str(SAME), 'DESI']


def test_spectra_are_drawn_without_another_import(survey):
    script = f"""import sys
from skyseek.data.desi import read_coadd
s = read_coadd({str(survey / 'coadd-main-dark-31.fits')!r})
assert 'matplotlib' not in sys.modules
print(len(s.plot(2)))"""
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == '2', done.stderr


# Nobody's files are replaced unasked


def existing(path, folder=False):
    """Something that is there already."""
    if folder:
        path.mkdir(parents=True)
        path = path / 'model.safetensors'
    path.write_bytes(EXISTING)
    return path


RESULTS = {
    'inspect': lambda p: (p / 'page.png', ('inspect', 7, p / 'input.fits', '-o', p / 'page.png')),
    'simulate': lambda p: (p / 'coadd-main-dark-7.fits', ('simulate', '-o', p, '-n', 2, '--hpx', 7)),
    'simulate truth': lambda p: (p / 'truth-main-dark-7.fits', ('simulate', '-o', p, '-n', 2, '--hpx', 7)),
    'sparcl': lambda p: (p / 's.fits', ('sparcl', 7, '-o', p / 's.fits')),
    'demo': lambda p: (p / 'catalogue.fits', ('demo', '-o', p, '-n', 20)),
    'export': lambda p: (p / 'all.fits', ('export', p, '-o', p / 'all.fits')),
    'truth-from-repeats': lambda p: (p / 't.parquet', ('truth-from-repeats', p, '-o', p / 't.parquet')),
    'train-autoencoder': lambda p: (p / 'w/autoencoder', ('train-autoencoder', p / 'x.npz', '-o', p / 'w')),
}


@pytest.mark.parametrize('name', RESULTS)
def test_an_existing_result_needs_overwrite(run, tmp_path, name):
    path, argv = RESULTS[name](tmp_path)
    (tmp_path / 'input.fits').write_bytes(EXISTING)
    kept = existing(path, folder=name == 'train-autoencoder')
    refused(run(*argv), '--overwrite')
    assert kept.read_bytes() == EXISTING


def test_overwrite_replaces_what_skyseek_made_and_no_real_coadd(run, tmp_path):
    argv = 'simulate', '-o', tmp_path, '-n', 2, '--hpx', 7
    assert run(*argv)[0] == 0
    coadd = tmp_path / 'coadd-main-dark-7.fits'
    first = coadd.read_bytes()
    refused(run(*argv, '--seed', 1), '--overwrite')
    assert coadd.read_bytes() == first
    assert run(*argv, '--seed', 1, '--overwrite')[0] == 0 and coadd.read_bytes() != first
    write_coadd(coadd)
    real = coadd.read_bytes()
    refused(run(*argv, '--overwrite'), 'no simulated coadd', 'another folder')
    assert coadd.read_bytes() == real


STRANGERS = {
    'extract': ('spectra-main-dark-9999.fits', lambda d: ('extract', d / 'coadd-main-dark-9999.fits', '-o', d / 'out')),
    'features': ('features-main-dark-9999.npz', lambda d: ('features', d / 'spectra-main-dark-9999.fits', '-o', d / 'out')),
    'redshift': ('redrock-main-dark-9999.fits', lambda d: ('redshift', d / 'coadd-main-dark-9999.fits', '-o', d / 'out')),
}


@pytest.mark.parametrize('what', ['text', 'coadd'])
@pytest.mark.parametrize('command', STRANGERS)
def test_a_file_of_another_kind_is_not_written_over(run, tmp_path, command, what):
    """In the output folder lies a file of the name that the result will have, which is no such result."""
    name, argv = STRANGERS[command]
    coadd = write_pair(tmp_path)
    assert run('extract', coadd, '-o', tmp_path)[0] == 0
    target = tmp_path / 'out' / name
    target.parent.mkdir()
    target.write_bytes(b'mine' if what == 'text' else coadd.read_bytes())
    before = target.read_bytes()
    code, _, err = run(*argv(tmp_path))
    assert code == 1 and name in err and 'another folder' in err
    assert target.read_bytes() == before


def test_redshifts_need_no_redshifts(run, tmp_path):
    """A broken redrock file beside the coadd is no hindrance to redshifts in another folder."""
    coadd = write_pair(tmp_path)
    (tmp_path / 'redrock-main-dark-9999.fits').write_bytes(b'junk')
    code, _, err = run('redshift', coadd)
    assert code == 1 and 'redrock-main-dark-9999.fits' in err and 'another folder' in err
    assert run('redshift', coadd, '-o', tmp_path / 'out')[0] == 0
    assert len(read_redrock(tmp_path / 'out/redrock-main-dark-9999.fits')) == 4


def test_a_set_that_a_killed_run_set_aside_comes_back_by_any_command(run, tmp_path):
    aside = tmp_path / '.tmp-1-x/old'
    shutil.copytree(Path(skyseek.__file__).parent / 'weights/default', aside)
    (aside.parent / 'replaces').write_text('mine')
    coadd = write_pair(tmp_path)
    assert run('score', coadd, '--weights', tmp_path / 'mine', '-o', tmp_path / 'c.fits')[0] == 0
    assert (tmp_path / 'mine/classifier').is_dir() and not aside.exists()


def test_what_has_no_type_is_not_judged(run, tmp_path):
    coadd = write_pair(tmp_path)
    answers = redrock_table(coadd_parts()['FIBERMAP']['TARGETID'])
    answers['SPECTYPE'] = ['GALAXY', 'GAL', '', 'STAR:::M']
    write_parts(tmp_path / 'redrock-main-dark-9999.fits', {'REDSHIFTS': answers})
    assert run('score', coadd, '-o', tmp_path / 'c.fits')[0] == 0
    table = Table.read(tmp_path / 'c.fits', 1)
    p = np.ma.filled(np.ma.asarray(table['P_Z_WRONG'], float), np.nan)
    assert np.isfinite(p).tolist() == [True, False, False, False]
    assert not table['FLAG_Z_WRONG'][1:].any() and not table['FLAG_S_WRONG'][1:].any() and not table['FLAG_ALT'][1:].any()


@pytest.mark.parametrize('argv', [('simulate', '-o', 'x', '--seed', '-1'), ('simulate', '-o', 'x', '--hpx', '-5'),
                                  ('train', 'x', '-o', 'y', '--seed', '-1'), ('train-stars', 'x', '-o', 'y', '--seed', '-3')])
def test_negative_numbers_name_their_option(capsys, argv):
    with pytest.raises(SystemExit): main(list(argv))
    assert f"argument {argv[-2]}: {argv[-1]} is negative" in capsys.readouterr().err


INPUTS = {
    'score': ('score', 'C', '-o', 'C'),
    'score, its redrock': ('score', 'C', '--redrock', 'R', '-o', 'R'),
    'score, a slip of the shell': ('score', '-o', 'C', 'C', 'T'),
    'rank, marks': ('rank', 'C', '--marks', 'R', '-o', 'R'),
    'evaluated truth': ('truth-from-repeats', 'C', '-o', 'LINK', '--overwrite'),
    'extract': ('extract', 'C', '--redrock', 'S', '-o', 'FOLDER'),
    'inspect': ('inspect', 7, 'PNG', '-o', 'PNG', '--overwrite'),
    'survey': ('survey', 'FOLDER', '-o', 'FOLDER'),
    'keep': ('keep', 'C', 'T', '--truth', 'T'),
}


@pytest.mark.parametrize('name', INPUTS)
def test_no_output_is_an_input(run, tmp_path, name):
    files = {
        k: tmp_path / v
        for k, v in dict(
            C='coadd-main-dark-5.fits',
            R='redrock-main-dark-5.fits',
            T='truth.fits',
            S='spectra-main-dark-5.fits',
            PNG='page.png',
        ).items()
    }
    for path in files.values():
        path.write_bytes(EXISTING)
    os.link(files['C'], tmp_path / 'other-name.fits')
    paths = files | dict(LINK=tmp_path / 'other-name.fits', FOLDER=tmp_path)
    refused(run(*[paths.get(a, a) for a in INPUTS[name]]), 'would overwrite')
    assert all(path.read_bytes() == EXISTING for path in files.values())


@pytest.mark.parametrize('what', ['page', 'html'])
def test_planted_temporary_names_are_not_followed(coadd, tmp_path, what):
    from skyseek.data import plots
    from skyseek.explain import inspect

    victim, page = tmp_path / 'victim', tmp_path / ('page.png' if what == 'page' else 'page.html')
    victim.write_bytes(EXISTING)
    (tmp_path / f'.tmp{os.getpid()}-{page.name}').symlink_to(victim)
    if what == 'page':
        inspect.inspect_file(coadd, target(coadd), page)
    else:
        plots.write_page(page, 'title', '<p>text')
    assert victim.read_bytes() == EXISTING and not page.is_symlink() and page.stat().st_size > 50


# Redshifts beside those of the pipeline


def pipeline_redrock(path, version, compress=False):
    """What redrock left for the coadd; without a version in old files."""
    table = redrock_table(coadd_parts()['FIBERMAP']['TARGETID'])
    header = fits.Header({'RRVER': version} if version else {})
    fits.HDUList([fits.PrimaryHDU(header=header), fits.BinTableHDU(table, name='REDSHIFTS')]).writeto(path)
    if compress:
        zipped = path.with_name(path.name + '.gz')
        zipped.write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
        return zipped
    return path


@pytest.mark.parametrize(
    'version, compress, options',
    [
        ('0.15.4', True, ()),
        (None, False, ()),
        (None, False, ('--overwrite',)),
        ('0.20', True, ('--overwrite',)),
        (None, True, ('--overwrite',)),
    ],
)
def test_redshifts_of_the_pipeline_stay_and_stay_alone(run, tmp_path, version, compress, options):
    coadd = write_coadd(tmp_path / 'coadd-main-dark-9.fits')
    theirs = pipeline_redrock(tmp_path / 'redrock-main-dark-9.fits', version, compress)
    before = theirs.read_bytes()
    os.utime(theirs, (1, 1))  # older than the coadd
    code, _, err = run('redshift', coadd, *options)
    assert code == 1 and str(theirs) in err and 'another folder' in err and theirs.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([coadd.name, theirs.name])


def test_score_says_whose_redshifts_it_takes(run, survey, tmp_path):
    assert run('extract', survey / 'coadd-main-dark-31.fits', '-o', tmp_path)[0] == 0
    for path in (survey / 'coadd-main-dark-31.fits', tmp_path / 'spectra-main-dark-31.fits'):
        code, _, err = run('score', path, '-o', tmp_path / 'c.fits', '--overwrite')
        assert code == 0 and '1 file of 1: Z is the redshift of `skyseek redshift`, not of the survey' in err
    coadd = write_coadd(tmp_path / 'coadd-main-dark-9.fits')
    pipeline_redrock(tmp_path / 'redrock-main-dark-9.fits', '0.20')
    code, _, err = run('score', coadd, '-o', tmp_path / 'c.fits', '--overwrite')
    assert code == 0 and 'skyseek redshift' not in err


def test_redshift_says_what_it_did(run, survey):
    code, out, _ = run('redshift', survey / 'coadd-main-dark-31.fits')
    warned = (fits.getdata(survey / 'redrock-main-dark-31.fits', 'REDSHIFTS')['ZWARN'] != 0).sum()
    assert code == 0 and out.strip() == f'beside the coadds: 1 file with 8 redshifts, ZWARN is set for {warned} of them'


@pytest.mark.parametrize('name', ['coadd-é.fits', 'coadd-a\nb.fits', "coadd-it's.fits"])
def test_redshift_takes_any_name(run, survey, tmp_path, name):
    shutil.copy(survey / 'coadd-main-dark-31.fits', tmp_path / name)
    code, _, err = run('redshift', tmp_path / name, '-o', tmp_path / 'out')
    assert code == 0 and len(list((tmp_path / 'out').iterdir())) == 1, err


# Many files


def test_files_given_twice_are_named(run, survey, tmp_path):
    coadd = survey / 'coadd-main-dark-31.fits'
    (tmp_path / 'coadd-alias.fits').symlink_to(coadd)
    for again in (coadd, survey / '..' / survey.name / coadd.name, tmp_path / 'coadd-alias.fits'):
        refused(run('extract', coadd, again, '-o', tmp_path / 'spectra'), 'is given 2 times')
        assert not (tmp_path / 'spectra').exists()


@pytest.mark.parametrize('command', ['extract', 'redshift'])
def test_one_file_of_many_fails_in_words(run, survey, tmp_path, monkeypatch, command):
    first, second = (tmp_path / f'coadd-{k}.fits' for k in 'ab')
    for path in (first, second):
        shutil.copy(survey / 'coadd-main-dark-31.fits', path)
    function = {'extract': 'skyseek.data.desi.extract_file', 'redshift': 'skyseek.redshift.scan.redshift_file'}[command]
    module, name = function.rsplit('.', 1)
    whole = getattr(__import__(module, fromlist=[name]), name)

    def fragile(path, *rest):
        warnings.warn('divide by zero encountered in log')
        if path == first:
            raise KeyError('O')
        return whole(path, *rest)

    monkeypatch.setattr(function, fragile)
    code, _, err = run(command, first, second, '-o', tmp_path / 'out')
    assert (
        code == 1
        and len(errors(err)) == 2
        and f'{first}: KeyError' in err
        and 'a fault of skyseek' in err
        and '1 of 2 files failed, 1 done' in err
    )
    for path in (first, second):
        assert f'WARNING {path}: divide by zero encountered in log' in err
    assert len(list((tmp_path / 'out').iterdir())) == 1


def test_a_name_that_would_be_too_long_is_told_before_the_work(run, survey, tmp_path, monkeypatch):
    long = tmp_path / f'coadd-{"x" * 244}.fits'
    shutil.copy(survey / 'coadd-main-dark-31.fits', long)
    monkeypatch.setattr('skyseek.redshift.scan.scan_redshift', lambda *_, **__: pytest.fail('the scan was run'))
    code, _, err = run('redshift', long)
    assert code == 1 and 'over 255 bytes' in err
    refused(run('inspect', 7, long, '-o', tmp_path / f'{"p" * 252}.png'), 'over 255 bytes')


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_bars_are_shown_on_a_terminal_only(survey, tmp_path, monkeypatch):
    for stream, name in ((Terminal(), 'a.fits'), (io.StringIO(), 'b.fits')):
        monkeypatch.setattr(sys, 'stderr', stream)
        assert main(['score', str(survey / 'coadd-main-dark-31.fits'), '-o', str(tmp_path / name)]) == 0
        assert ('score:' in stream.getvalue() and 'file' in stream.getvalue()) == stream.isatty()


BARS = {
    'learn.training': 'fit',
    'learn.autoencoder': 'train_autoencoder_file',
    'detect.classifier': 'train_classifier_file',
    'gasnet.gasnet3_networks': 'train_gasnet',
    'pipeline.score': 'score_files',
    'pipeline.demo': 'run_demo',
}


@pytest.mark.parametrize('module', BARS)
def test_bars_follow_one_rule_in_python_too(module):
    from importlib import import_module
    from inspect import signature

    assert signature(getattr(import_module(f'skyseek.{module}'), BARS[module])).parameters['progress'].default is None


# Options


def commands():
    """(name, parser) of every command."""
    return next(a for a in make_parser()._actions if hasattr(a, 'choices') and isinstance(a.choices, dict)).choices.items()


def test_options_are_the_same_everywhere():
    for name, parser in commands():
        options = {flag: action for action in parser._actions for flag in action.option_strings}
        assert {'-o', '--output'} <= set(options) or name in ('evaluate', 'explore', 'send'), name
        assert '--device' not in options or options['--device'].default == 'auto', name
        if '--overwrite' in options:
            assert (
                'what is there already' in options['--overwrite'].help
                and 'write permission' in options['--overwrite'].help
            ), name
    for name in RESULTS:
        assert any('--overwrite' in action.option_strings for action in dict(commands())[name.split()[0]]._actions), (
            name
        )


@pytest.mark.parametrize(
    'line',
    [
        'survey SOURCE -o DEST --list',
        'survey SOURCE DEST --list',
        'survey SOURCE --workers 2 DEST --list',
        'survey --timeout 3 SOURCE --list -o DEST',
    ],
)
def test_destinations_follow_o_or_come_last(run, tmp_path, monkeypatch, line):
    seen = []
    monkeypatch.setattr('skyseek.pipeline.cli_survey._list_todo', lambda source, output, _: seen.append((source, output)) or 0)
    code, _, err = run(*line.replace('SOURCE', str(tmp_path)).replace('DEST', str(tmp_path / 'c')).split())
    assert code == 0 and seen == [(str(tmp_path), tmp_path / 'c')], err


@pytest.mark.parametrize(
    'line, words',
    [
        ('survey SOURCE', 'required: -o/--output'),
        ('survey SOURCE a -o b', 'given twice'),
        ('survey SOURCE -o b --timeout 3 c', 'given twice'),
    ],
)
def test_one_destination_must_be_given(run, tmp_path, line, words):
    code, _, err = run(*line.replace('SOURCE', str(tmp_path)).split())
    assert code == 2 and words in err


@pytest.mark.parametrize('word', ['foo', '=x', 'a-b=1', 'account=', 'workers=3'])
def test_cluster_options_name_the_option(run, tmp_path, word):
    refused(
        run('survey', tmp_path, '-o', tmp_path / 'c', '--cluster', 'slurm', '--cluster-option', word),
        f'--cluster-option {word}',
    )


@pytest.mark.parametrize('device', ['cuda', 'cuda:7', 'tpu', 'mps'])
def test_a_device_that_is_not_there(run, survey, tmp_path, device):
    import torch

    if device == 'cuda' and torch.cuda.is_available():
        pytest.skip('there is one')
    refused(
        run('redshift', survey / 'coadd-main-dark-31.fits', '-o', tmp_path, '--device', device),
        f'--device {device}',
        'choose auto',
    )


def test_missing_targets_of_sparcl_name_the_option(run, tmp_path, monkeypatch, survey):
    from skyseek.data.desi import read_coadd

    monkeypatch.setattr(
        'skyseek.data.sparcl.fetch_sparcl',
        lambda ids, release, **_: (read_coadd(survey / 'coadd-main-dark-31.fits'), [ids[-1]]),
    )
    code, out, err = run('sparcl', 7, 8, '-o', tmp_path / 's.fits', '--release', 'DESI-EDR')
    assert code == 1 and '8: SPARCL has no spectrum' in err and '--release DESI-EDR' in err and 'skyseek score' in out
    for argv, words in (
        (('sparcl', -3, '-o', tmp_path / 't.fits'), '-3'),
        (('sparcl', 10**20, '-o', tmp_path / 't.fits'), '19 digits'),
        (('sparcl', 3, '-o', tmp_path / 't.csv'), '*.fits'),
    ):
        refused(run(*argv), words)


WRONG = [
    ['redshift', 'GONE.fits'],
    ['extract', 'GONE.fits', 'GONE2.fits', '-o', 'out'],
    ['score', 'GONE.fits', '-o', 'c.fits'],
    ['inspect', '7', 'GONE.fits'],
    ['inspect', '7', 'HERE.fits', '-o', 'page.docx'],
    ['inspect', '7', 'HERE.fits', '--weights', 'GONE'],
    ['survey', 'GONE', '-o', 'c'],
    ['survey', '.', '-o', 'HERE.fits'],
    ['export', 'GONE', '-o', 'c.fits'],
    ['export', '.', '-o', 'c.csv'],
    ['truth-from-repeats', 'GONE', '-o', 't.fits'],
    ['sparcl', '7', '-o', 'HERE.fits'],
    ['simulate', '-o', 'there'],
    ['rank', 'GONE', '-o', 'l.fits'],
    ['train-autoencoder', 'x.npz', '-o', 'w'],
]


def test_what_is_wrong_with_a_command_line_is_said_before_anything_heavy_is_loaded(tmp_path):
    (tmp_path / 'HERE.fits').write_bytes(EXISTING)
    for path in ('there/coadd-main-dark-27245.fits', 'w/autoencoder/model.safetensors'):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_bytes(EXISTING)
    script = f"""import sys
from skyseek.pipeline.cli import main
for argv in {WRONG!r}: print(argv, main(argv), 'torch' in sys.modules)"""
    done = subprocess.run([sys.executable, '-c', script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for argv, line in zip(WRONG, done.stdout.splitlines(), strict=True):
        assert line == f'{argv} 1 False'
    assert len(errors(done.stderr)) == len(WRONG)
