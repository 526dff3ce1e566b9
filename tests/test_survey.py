"""A whole archive: from a disk, a web server and a bucket; with workers that die, servers that fail, disks that fill; and the catalogue is the same."""
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import fsspec.config
import numpy as np
import pytest
from astropy.table import Table
from servers import bucket, free_port, part_bytes, serving

from skyseek.data.archive import Archive, list_pixels, open_archive
from skyseek.redshift.scan import redshift_file
from skyseek.simulate.mock_archive import write_archive
from skyseek.pipeline.cli import main
from skyseek.pipeline.parts import list_parts, read_dataset
from skyseek.data.redshift_tables import read_truth
from skyseek.pipeline.workers import DestinationError, run_jobs
from skyseek.pipeline.runs import begin_run
from skyseek.pipeline.survey import Job, SurveySettings, run_survey, survey_part
from skyseek.data.truth import label_wrong, match_truth

PIXELS = {('main', 'dark'): [5, 42, 27245, 27246], ('main', 'bright'): [27245], ('sv1', 'dark'): [27245]}
KILLS = 20 if os.environ.get('SKYSEEK_SLOW') else 3
QUICK = dict(workers=2, timeout=4., patience=.1)


@pytest.fixture(scope='module')
def release(tmp_path_factory):
    "A small release in DESI's layout."
    root = tmp_path_factory.mktemp('release')
    write_archive(root/'spectro/redux/iron', PIXELS, redshift_file, n=6, exptimes={('sv1', 'dark'): (5000., 6000.)})
    return root


@pytest.fixture(scope='module')
def expected(release, tmp_path_factory, use_a_thread):
    "The catalogue of an undisturbed run."
    dest = tmp_path_factory.mktemp('expected')
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_a_thread(monkeypatch)
        result = run_survey(release, dest, SurveySettings(), progress=False)
    assert result.done == 6 and not result.failed
    return contents(dest)


def contents(dest):
    "All rows of a catalogue, as a hash for each part."
    return {path.name: hashlib.sha256(part_bytes(path)).hexdigest() for path in list_parts(dest)}


def no_leftovers(dest): return not [p for p in Path(dest).rglob('.tmp*')] and not list(Path(dest).rglob('skyseek-*'))


def start(source, dest, *options, cwd=None):
    "The command in a process of its own."
    return subprocess.Popen([str(Path(sys.executable).with_name('skyseek')), 'survey', str(source), str(dest), '--workers', '2', *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd)


# Where it lies

@pytest.mark.slow
def test_web_server(release, expected, tmp_path, in_process):
    with serving(release, log=tmp_path/'log') as address:
        result = run_survey(address, tmp_path/'c', SurveySettings(**QUICK), progress=False)
    assert contents(tmp_path/'c') == expected and not result.failed
    sent = sum(int(line.split()[0]) for line in (tmp_path/'log').read_text().splitlines() if 'coadd-' in line or 'redrock-' in line or 'sha256' in line)
    assert result.bytes == sent


@pytest.mark.slow
def test_training_streams_from_a_bucket(tmp_path, capsys, monkeypatch):
    "The same network from shards on the disk and in a bucket."
    from skyseek.learn.features import build_features
    from skyseek.learn.shards import write_features
    from skyseek.simulate.mock_survey import simulate_spectra
    spectra, _ = simulate_spectra(60, seed=3)
    for k in range(3): write_features(build_features(spectra[20*k:20*k + 20]), tmp_path/f'shards/features-{k}.npz')
    train = ['train-autoencoder', '--epochs', '1', '--device', 'cpu', '-o']
    with bucket(tmp_path/'shards', 'mine', 'features/') as (address, endpoint):
        monkeypatch.setitem(fsspec.config.conf, 's3', {'anon': True, 'endpoint_url': endpoint})  # as FSSPEC_S3 does
        for name, shards in (('near', sorted(map(str, (tmp_path/'shards').glob('*.npz')))), ('far', [f'{address}/*.npz'])):
            assert main([*train, str(tmp_path/name), *shards]) == 0
        assert main([*train, str(tmp_path/'lost'), f'{address}/none-*.npz']) == 1
    assert 'names no shard' in capsys.readouterr().err
    near, far = ((tmp_path/name/'autoencoder/model.safetensors').read_bytes() for name in ('near', 'far'))
    assert near == far


def test_resolution_is_never_fetched(tmp_path, in_process):
    write_archive(tmp_path/'a/iron', {('main', 'dark'): [7]}, redshift_file, n=30, resolution=True)
    coadd = next((tmp_path/'a').rglob('coadd-*'))
    with serving(tmp_path/'a') as address: result = run_survey(f'{address}/iron', tmp_path/'c', SurveySettings(**QUICK), progress=False)
    assert result.bytes < .3*coadd.stat().st_size
    assert result.bytes/30 < 115_000  # headers and tables of a file are shared by 30 spectra here, by 500 in DESI's


@pytest.mark.slow
def test_bucket(release, expected, tmp_path, in_process):
    with bucket(release) as (address, endpoint):
        assert len(list_pixels(open_archive(address, endpoint))) == 6
        result = run_survey(address, tmp_path/'c', SurveySettings(endpoint=endpoint, **QUICK), progress=False)
    assert contents(tmp_path/'c') == expected and result.bytes > 0


def test_selection_and_spectra_are_kept(release, tmp_path, in_process):
    assert main(['survey', str(release), str(tmp_path/'c'), '--survey', 'main', '--program', 'dark', '--pixels', '5', '42', '--keep-spectra', '--workers', '1']) == 0
    assert [p.name for p in list_parts(tmp_path/'c')] == ['main-dark-5.parquet', 'main-dark-42.parquet']
    spectra = sorted((tmp_path/'c/spectra/main/dark').glob('spectra-*.fits'))
    assert len(spectra) == 2 and {'summary.txt', 'summary.fits', 'sky.png', 'anomalies.fits'} <= {p.name for p in (tmp_path/'c').iterdir()}


# Servers that fail

@pytest.mark.slow
@pytest.mark.parametrize('faults', [{'500': .15, '503': .05, 'cut': .15}, {'wrong': .1, 'stall': .03}], ids=['errors', 'lies'])
def test_a_bad_server_changes_nothing(release, expected, tmp_path, faults, in_process):
    with serving(release, faults, only='coadd|redrock') as address:
        for _ in range(4):
            result = run_survey(address, tmp_path/'c', SurveySettings(workers=2, timeout=1., patience=.01), progress=False)
            if not result.failed: break
    assert contents(tmp_path/'c') == expected and no_leftovers(tmp_path/'c')


@pytest.mark.parametrize(('fault', 'words'), [('404', 'redrock'), ('416', 'redrock'), ('whole', 'byte ranges')])
def test_what_will_not_pass_is_a_note(release, tmp_path, capsys, fault, words, in_process):
    only = 'coadd-main-dark-42' if fault == 'whole' else 'redrock-main-dark-42'
    with serving(release, {fault: 1.}, only=only) as address:
        assert main(['survey', address, str(tmp_path/'c'), '--survey', 'main', '--program', 'dark', '--workers', '2', '--timeout', '3']) == 1
    said = capsys.readouterr()
    assert words in said.err and '1 of 4 files failed, 3 done' in said.err
    note = json.loads((tmp_path/'c/failed/main-dark-42.json').read_text())
    assert note['hpx'] == 42 and words in note['error']
    assert main(['survey', str(release), str(tmp_path/'c'), '--survey', 'main', '--program', 'dark', '--workers', '1', '--list']) == 0
    assert '0 pixels to do, 3 done, 1 failed before' in capsys.readouterr().out
    assert main(['survey', str(release), str(tmp_path/'c'), '--survey', 'main', '--program', 'dark', '--workers', '1', '--retry-failed']) == 0
    assert len(list_parts(tmp_path/'c')) == 4 and not list((tmp_path/'c/failed').iterdir())


def test_a_server_that_is_gone(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('time.sleep', lambda seconds: None)
    assert main(['survey', f'http://127.0.0.1:{free_port()}/dr1', str(tmp_path/'c'), '--timeout', '2']) == 1
    assert 'try again later' in capsys.readouterr().err


# Runs and workers that are killed

@pytest.mark.slow
def test_kill_minus_nine_at_any_moment(release, expected, tmp_path, in_process):
    rng, seen = random.Random(3), set()
    for k in range(KILLS):
        run, enough = start(release, tmp_path/'c'), len(contents(tmp_path/'c')) + rng.randrange(3)
        while run.poll() is None and len(list_parts(tmp_path/'c')) < enough: time.sleep(.02)
        try: run.wait(rng.uniform(0, 1.5 if enough else 7))
        except subprocess.TimeoutExpired: pass
        run.send_signal(signal.SIGKILL)
        run.wait()
        done = contents(tmp_path/'c')
        assert done.items() <= expected.items(), f'after {k + 1} kills'
        seen |= set(done)
        if KILLS > 10 and len(done) == len(expected): shutil.rmtree(tmp_path/'c/catalogue')  # begin again, to be killed more often
    assert seen, 'no run got as far as a part; let them live longer'
    result = run_survey(release, tmp_path/'c', SurveySettings(workers=2), progress=False)
    assert contents(tmp_path/'c') == expected and no_leftovers(tmp_path/'c') and result.before + result.done == 6


def workers_of(pid):
    "Processes that a run has started."
    children = [int(p.name) for p in Path('/proc').iterdir() if p.name.isdigit() and f'\nPPid:\t{pid}\n' in _status(p)]
    return [c for c in children if 'spawn_main' in Path(f'/proc/{c}/cmdline').read_bytes().decode(errors='replace')]


def _status(p):
    try: return (p/'status').read_text()
    except OSError: return ''


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced(release, expected, tmp_path):
    run, killed = start(release, tmp_path/'c'), 0
    while run.poll() is None and killed < 2:
        time.sleep(3)
        for pid in workers_of(run.pid)[:1]:
            os.kill(pid, signal.SIGKILL)
            killed += 1
    out, err = run.communicate(timeout=120)
    assert run.returncode == 0 and killed, err
    assert contents(tmp_path/'c') == expected


def dies_once(job):
    "Work for the test below: kill the worker once, if the job is number 5."
    flag = Path(job.dest)/'died'
    if job.pixels == (5,) and not flag.exists(): flag.touch(); os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(.05)
    return [dict(survey=job.survey, program=job.program, hpx=job.pixels[0], passing=False, error='')]


def always_dies(job): os.kill(os.getpid(), signal.SIGKILL)


def forked(workers):
    "Workers that need not import anything before they begin."
    return ProcessPoolExecutor(workers, mp_context=get_context('fork'))


@pytest.mark.parametrize('workers', [2, 4])
def test_one_death_does_not_stop_a_run_of_many_workers(tmp_path, workers):
    "All that a pool is doing is lost when one of its workers dies; it is done again, and is one death, not many."
    jobs = [Job(Archive('/nowhere'), 'main', 'dark', (k,), str(tmp_path)) for k in range(40)]
    done = [r['hpx'] for records in run_jobs(jobs, lambda: forked(workers), 4*workers, dies_once) for r in records]
    assert (tmp_path/'died').exists() and sorted(done) == list(range(40))


def test_workers_that_always_die(tmp_path, monkeypatch):
    monkeypatch.setattr('skyseek.pipeline.workers.HOPELESS', 3)
    jobs = [Job(Archive('/nowhere'), 'main', 'dark', (k,), str(tmp_path)) for k in range(40)]
    with pytest.raises(ValueError, match='die as soon as they begin'): list(run_jobs(jobs, lambda: forked(2), 8, always_dies))


def test_a_part_that_is_being_written_is_none(release, tmp_path, in_process):
    "A worker that was stopped leaves a folder with a dot; neither readers nor the end of the run take what is in it for a part, and the next run removes it."
    run_survey(release, tmp_path/'c', SurveySettings(workers=1, surveys=('sv1',)), progress=False)
    part = list_parts(tmp_path/'c')[0]
    half = part.parent/f'.tmp-{begin_run(tmp_path/"c")}-0a1b2c3d'  # of a run that has not noted its end
    half.mkdir()
    (half/'.new.parquet').write_bytes(b'PAR1')
    assert list_parts(tmp_path/'c') == [part] and len(read_dataset(tmp_path/'c'))
    assert main(['survey', str(release), str(tmp_path/'c'), '--workers', '1', '--survey', 'sv1']) == 0 and no_leftovers(tmp_path/'c')


def test_weights_that_change_under_a_worker(release, tmp_path):
    job = Job(open_archive(release), 'sv1', 'dark', (27245,), str(tmp_path), identity='other')
    with pytest.raises(DestinationError, match='other weights'): survey_part(job)
    with pytest.raises(DestinationError, match='no such folder'): survey_part(replace(job, identity='', scratch=str(tmp_path/'gone')))


@pytest.mark.slow
def test_workers_go_when_their_run_is_gone(release, tmp_path):
    run = start(release, tmp_path/'c')
    for _ in range(60):
        time.sleep(.25)
        if workers := workers_of(run.pid): break
    run.kill(); run.wait()
    for _ in range(60):
        if not any(Path(f'/proc/{w}').exists() and 'Z' not in _status(Path(f'/proc/{w}')).split('State:')[1][:4] for w in workers): break
        time.sleep(.25)
    else: pytest.fail('a worker lives on')


# Disks and folders

@pytest.mark.slow
def test_a_full_disk(release, expected, tmp_path, capsys, in_process):
    full = tmp_path/'full'
    full.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=150k', 'tmpfs', str(full)], capture_output=True).returncode: pytest.skip('a small disk cannot be mounted here')
    try:
        assert main(['survey', str(release), str(full/'c'), '--workers', '1']) == 1
        assert 'No space left on device' in capsys.readouterr().err
        assert contents(full/'c').items() <= expected.items() and no_leftovers(full/'c')
        subprocess.run(['mount', '-o', 'remount,size=50m', str(full)], check=True)
        assert main(['survey', str(release), str(full/'c'), '--workers', '1']) == 0
        assert contents(full/'c') == expected
    finally: subprocess.run(['umount', '-l', str(full)])


@pytest.mark.slow
def test_two_runs_at_once(release, expected, tmp_path, capsys):
    first = start(release, tmp_path/'c')
    while first.poll() is None and not (tmp_path/'c/survey.json').exists(): time.sleep(.05)
    assert main(['survey', str(release), str(tmp_path/'c')]) == 1
    assert 'another run is writing here' in capsys.readouterr().err
    assert first.wait(timeout=120) == 0 and contents(tmp_path/'c') == expected


@pytest.mark.parametrize(('options', 'words'), [(['--survey', 'boss'], 'no survey boss'), (['--program', 'noon'], 'no program noon'), (['--survey', 'sv3'], 'it holds'), (['--workers', '0'], 'at least one'), (['--cluster', 'tcp://127.0.0.1:9'], 'no Dask scheduler')])
def test_options_that_make_no_sense(release, tmp_path, capsys, options, words):
    assert main(['survey', str(release), str(tmp_path/'c'), '--timeout', '2', *options]) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(('make', 'words'), [(lambda p: None, 'no healpix/'), (lambda p: (p/'healpix').mkdir(), 'no coadd in healpix/'), (lambda p: [(p/n/'healpix').mkdir(parents=True) for n in ('iron', 'fuji')], 'several productions')])
def test_folders_that_are_no_archive(tmp_path, capsys, make, words):
    make(tmp_path)
    assert main(['survey', str(tmp_path), str(tmp_path/'c')]) == 1 and words in capsys.readouterr().err


def test_a_catalogue_of_one_production(release, tmp_path, capsys, in_process):
    assert main(['survey', str(release), str(tmp_path/'c'), '--pixels', '5', '--workers', '1']) == 0
    shutil.copytree(release/'spectro/redux/iron', tmp_path/'fuji')
    assert main(['survey', str(tmp_path/'fuji'), str(tmp_path/'c')]) == 1 and 'production iron, this is fuji' in capsys.readouterr().err


def test_a_coadd_without_redrock(tmp_path, capsys, in_process):
    write_archive(tmp_path/'iron', {('main', 'dark'): [5, 6]}, redshift_file, n=4)
    next((tmp_path/'iron').rglob('redrock-main-dark-5.fits')).unlink()
    assert main(['survey', str(tmp_path/'iron'), str(tmp_path/'c'), '--workers', '1']) == 1
    assert 'no redrock file of this pixel' in capsys.readouterr().err and len(list_parts(tmp_path/'c')) == 1


# Dask

@pytest.fixture
def dask():
    "A scheduler and two workers, each a process of its own: (address, list of workers, function that starts one more, the scheduler)."
    port, quiet = free_port(), dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    command = [sys.executable, '-m', 'dask']
    scheduler = subprocess.Popen([*command, 'scheduler', '--host', '127.0.0.1', '--port', str(port), '--no-dashboard'], **quiet)
    worker = lambda: subprocess.Popen([*command, 'worker', f'tcp://127.0.0.1:{port}', '--nthreads', '1', '--no-dashboard', '--no-nanny'], **quiet)
    workers = [worker(), worker()]
    yield f'tcp://127.0.0.1:{port}', workers, worker, scheduler
    for process in (*workers, scheduler): process.kill(); process.wait()


def wait_for_part(run, dest):
    "Wait until a run has written a part, or has ended."
    while run.poll() is None and not list(dest.rglob('*.parquet')): time.sleep(.1)


@pytest.mark.slow
def test_workers_of_dask_that_die(release, expected, tmp_path, dask):
    "Workers are killed at random moments, once here and twenty times with SKYSEEK_SLOW=1; the catalogue is the same."
    (address, workers, another, _), rng, killed = dask, random.Random(0), 0
    kills = KILLS if KILLS > 3 else 1
    while killed < kills:
        shutil.rmtree(tmp_path/'c', ignore_errors=True)
        run = start(release, 'c', '--cluster', address, cwd=tmp_path)  # the workers were started in another folder
        while run.poll() is None and killed < kills:
            if kills > 1: time.sleep(rng.uniform(4, 12))
            else: wait_for_part(run, tmp_path/'c')  # in the middle of the work
            if run.poll() is None: workers.pop(rng.randrange(2)).kill(); workers.append(another()); killed += 1
        out, err = run.communicate(timeout=180)
        assert run.returncode == 0, err
        assert contents(tmp_path/'c') == expected


@pytest.mark.slow
def test_a_scheduler_that_dies(release, expected, tmp_path, dask, in_process):
    address, _, _, scheduler = dask
    run = start(release, tmp_path/'c', '--cluster', address)
    wait_for_part(run, tmp_path/'c')
    scheduler.kill()
    out, err = run.communicate(timeout=60)
    assert run.returncode == 1 and 'the Dask scheduler went away' in err and no_leftovers(tmp_path/'c')
    run_survey(release, tmp_path/'c', SurveySettings(workers=2), progress=False)
    assert contents(tmp_path/'c') == expected


# What is made of it

@pytest.mark.slow
def test_export_and_truth_from_repeats(release, tmp_path, capsys, in_process):
    assert main(['survey', str(release), str(tmp_path/'c'), '--workers', '2']) == 0
    assert main(['export', str(tmp_path/'c'), '-o', str(tmp_path/'all.fits')]) == 0
    table, rows = Table.read(tmp_path/'all.fits'), read_dataset(tmp_path/'c')
    assert len(table) == len(rows) and table['PRIMARY'].sum() == len(np.unique(rows['TARGETID'])) < len(rows)
    assert main(['truth-from-repeats', str(tmp_path/'c'), '-o', str(tmp_path/'truth.fits'), '--secure', '20']) == 0
    truth = Table.read(tmp_path/'truth.fits')
    assert set(np.char.strip(np.asarray(truth['DEEP_SURVEY']).astype(str))) == {'sv1'} and (truth['DEPTH_RATIO'] > 2).all()
    real = {}
    for path in release.rglob('truth-sv1-dark-*.fits'): real |= {t: z for t, z in Table.read(path).iterrows('TARGETID', 'TRUE_Z')}
    off = [abs(real[t] - z)/(1 + z) for t, z in truth.iterrows('TARGETID', 'TRUE_Z')]
    known = label_wrong(rows, match_truth(rows['TARGETID'], read_truth(tmp_path/'truth.fits'), rows))['KNOWN']
    assert known.sum() == len(truth) and set(rows['SURVEY'][known]) == {'main'}  # the deep observation is not its own judge
    assert main(['truth-from-repeats', str(tmp_path/'c'), '-o', str(tmp_path/'truth.parquet'), '--secure', '20']) == 0 and len(read_truth(tmp_path/'truth.parquet')) == len(truth)
    assert np.mean(np.array(off) < .0033) > .6
    assert main(['export', str(tmp_path/'c'), '-o', str(tmp_path/'all.csv')]) == 1 and '*.fits' in capsys.readouterr().err
