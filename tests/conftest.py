"""What the tests share."""
import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
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


@pytest.fixture(scope='session')
def weights():
    "The weights of the package, loaded once; not to be changed."
    from skyseek.pipeline.score import load_weights
    return load_weights()


@pytest.fixture(scope='session')
def use_a_thread(weights):
    "A function of monkeypatch: surveys are done by a thread of this process, so that no worker has to start."
    def patch(monkeypatch):
        import skyseek.pipeline.survey as survey
        load = survey.load_weights
        kept = lambda folder=None, *rest: load(folder, *rest) if folder else weights
        monkeypatch.setattr(survey, 'local_executor', lambda workers: ThreadPoolExecutor(1))
        monkeypatch.setattr(survey, 'load_weights', kept)
    return patch


@pytest.fixture
def in_process(monkeypatch, use_a_thread):
    "Surveys are done by a thread of this process, for one test."
    use_a_thread(monkeypatch)


@pytest.fixture(scope='session')
def train_shortly():
    "A function of monkeypatch: three epochs for the models of labelled spectra, where nobody asks how good they are."
    from skyseek.detect.classifier import CLASSIFIER_TRAINING
    from skyseek.detect.cross_fit import fit_classifier
    from skyseek.learn.training import TrainSettings
    from skyseek.pipeline.benchmark import BenchmarkSettings
    from skyseek.redshift.second_opinion import JUDGE_TRAINING, train_judge
    def patch(monkeypatch):
        settings = lambda usual: TrainSettings(**usual | dict(epochs=3), device='cpu')
        fit, train = (partial(f, settings=settings(usual))
                      for f, usual in ((fit_classifier, CLASSIFIER_TRAINING), (train_judge, JUDGE_TRAINING)))
        monkeypatch.setattr('skyseek.detect.train_weights.fit_classifier', fit)
        monkeypatch.setattr('skyseek.detect.cross_fit.train_judge', train)
        monkeypatch.setattr('skyseek.pipeline.benchmark.BenchmarkSettings', partial(BenchmarkSettings, epochs=3))
    return patch


@pytest.fixture
def shortly(monkeypatch, train_shortly):
    "Models of labelled spectra are trained for three epochs, in one test."
    train_shortly(monkeypatch)


@pytest.fixture(scope='module')
def chromium():
    "The browser, without a screen."
    playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    path = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None)
    if path is None: pytest.skip('no Chromium on this machine')
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=['--no-sandbox'])
        yield browser
        browser.close()


@pytest.fixture(autouse=True)
def log_level():
    "A command sets the level of skyseek's messages for its process, and where warnings go; not for the tests after it."
    yield
    logging.captureWarnings(False)
    logging.getLogger('skyseek').setLevel(logging.NOTSET)


def pytest_configure(config):
    "Side by side (-n 3 --dist loadfile), files are begun in the order below, not those with many tests first."
    config.option.loadscopereorder = False
    config.addinivalue_line('markers', 'slow: takes more than two seconds; leave out with -m "not slow"')


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(items):
    "Long files come first, so that no worker has one of them at the end; what needs a slow fixture is slow."
    long = ['test_survey', 'test_benchmark', 'test_runs', 'test_statistics', 'test_vi', 'test_odd', 'test_trust',
            'test_archive_faults', 'test_score_surveys', 'test_inspect', 'test_commands', 'test_evidence']
    items.sort(key=lambda item: long.index(item.path.stem) if item.path.stem in long else len(long))
    for item in items:
        if getattr(item.module, 'SLOW_FIXTURES', set()) & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)
