"""The model of a cluster that tests/benchmarks/bench_growth.py runs: it keeps to arithmetic where that is known, and loses nothing."""
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent/'benchmarks'
sys.path.insert(0, str(BENCHMARKS))
from bench_growth import Cluster, Pipe, file_sizes, limits, simulate

FREE = Cluster(workers=10, rate=10., start_names=0, start_bytes=1., start_work=0., names=0, fetched=1e-6, written=0., bandwidth=1e15, each=1e15, jobs_a_second=1e12,
               slow_workers=0., slow_files=0., lifetime=1e15)  # nothing is in the way


def test_without_obstacles_the_time_is_that_of_the_work():
    r = simulate(np.full(100, 50.), FREE)
    assert r['hours'] == pytest.approx(10*5/3600, rel=1e-6) and r['busy'] == pytest.approx(1, rel=1e-6) and r['again'] == 0


def test_jobs_go_to_whoever_is_free():
    sizes = file_sizes(5000., 60)
    free = np.zeros(10)
    for size in sizes: free[free.argmin()] += size/10
    assert simulate(sizes, FREE)['hours'] == pytest.approx(free.max()/3600, rel=1e-6)


def test_transfers_share_the_bandwidth():
    pipe = Pipe(bandwidth=100., each=60.)
    pipe.add(0., 120., 'a')  # 60/s alone, 50/s beside another
    pipe.add(1., 100., 'b')
    assert pipe.next() == pytest.approx(2.2) and pipe.pop(2.2) == 'a'
    assert pipe.next() == pytest.approx(2.2 + 40/60) and pipe.pop(pipe.next()) == 'b'
    assert pipe.moved == pytest.approx(220) and pipe.next() == np.inf


def test_the_bandwidth_is_a_bound():
    sizes = np.full(200, 100.)
    c = replace(FREE, rate=1e4, fetched=1e6, bandwidth=1e8, each=1e8)
    r = simulate(sizes, c)
    assert r['hours']*3600 >= sizes.sum()*1e6/1e8 and r['bandwidth'] > .9
    assert r['hours'] < 1.2*sizes.sum()*1e6/1e8/3600


def test_names_and_the_scheduler_are_bounds():
    sizes = np.full(400, 1.)
    assert simulate(sizes, replace(FREE, names=50, names_a_second=1000.))['hours']*3600 >= 400*50/1000
    assert simulate(sizes, replace(FREE, jobs_a_second=10.))['hours']*3600 >= 399/10


def test_workers_that_die_cost_time_and_no_file():
    sizes = np.full(300, 50.)
    calm, r = simulate(sizes, FREE), simulate(sizes, replace(FREE, lifetime=60., back=10.))
    assert r['again'] > 5 and r['hours'] > calm['hours']  # it ends only when all files are done
    assert r == simulate(sizes, replace(FREE, lifetime=60., back=10.)) != simulate(sizes, replace(FREE, lifetime=60., back=10., seed=1))


def test_a_file_of_a_dead_worker_goes_to_one_that_waits():
    r = simulate(np.full(2, 1000.), replace(FREE, workers=6, lifetime=400., back=1e6, seed=1))
    assert r['again'] == 1 and 100 < r['hours']*3600 < 200  # not after `back`


def test_slow_workers_and_files_are_the_tail():
    sizes = np.full(500, 20.)
    calm, slow = simulate(sizes, FREE), simulate(sizes, replace(FREE, slow_files=.05, slower=20.))
    assert slow['hours'] > calm['hours'] and slow['most'] <= slow['hours']


def test_limits_are_where_a_resource_is_used_up():
    c = Cluster(rate=100., fetched=1e5, written=0, bandwidth=1e9)
    assert limits(c, 1000)['bandwidth of the file system'] == pytest.approx(100)


def test_the_script_runs_without_measuring():
    done = subprocess.run([sys.executable, BENCHMARKS/'bench_growth.py', '--model', '--share', '.02', '--workers', '20'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for words in ('core-hours', '| 200 |', 'used up, if all workers compute', '| package on the disk of each node |'): assert words in done.stdout
