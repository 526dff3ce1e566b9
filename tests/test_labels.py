"""Labels of inspectors: nothing is lost, nothing is mixed up, and what comes out is read by DESI's tools and our commands."""
import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from astropy.table import Table

from skyseek.anomaly.rerank import read_marks
from skyseek.anomaly.scores import SCORES
from skyseek.data.files import write_table
from skyseek.data.hdus import ReadError
from skyseek.data.redshift_tables import read_truth
from skyseek.detect.guarantee import keep_sample
from skyseek.pipeline import journal
from skyseek.pipeline.cli import main
from skyseek.pipeline.explorer_table import open_catalogue
from skyseek.pipeline.journal import Journal, NotSaved, append_lines, journal_name
from skyseek.pipeline.label_tables import VI_FIELDS, LabelError, merge_labels, read_vi
from skyseek.pipeline.labels import LabelStore, rank_again, similar

NASTY = ('a;b', '"quoted", with comma', "it's", 'two\nlines\r\nand\ttabs', '<script>alert(1)</script>', '\x00\x07\x1b[31m', 'Zoë 🔭 \u2028', '=1+1', r'\n \\ \x07',
         '# no comment', '{"id":1}', '\ud800', ' ', 'x'*2000)


def catalogue(n=200, seed=0):
    "A table with the columns of a catalogue that labels need."
    rng = np.random.default_rng(seed)
    p = rng.beta(.1, 2, n)
    true_z = rng.uniform(.1, 1.5, n)
    table = Table(dict(TARGETID=39628000000000000 + rng.permutation(n), Z=np.where(rng.random(n) < p, true_z + .5, true_z), DELTACHI2=np.full(n, 50.), CHI2=np.full(n, 7900.), NPIXELS=np.full(n, 7900), ZERR=np.full(n, 1e-4), SNR=np.ones(n),
                       SPECTYPE=rng.choice(['GALAXY', 'QSO', 'STAR'], n), ZWARN=np.zeros(n, int), P_Z_WRONG=p, P_S_WRONG=p, UNFAMILIAR=np.zeros(n, bool), LABEL_USED=np.zeros(n, int),
                       FILE=['coadd.fits']*n, LATENT=rng.normal(size=(n, 36)).astype('f4')))
    for name in SCORES: table[f'ODD_{name}'] = rng.exponential(.43, n)
    table['ANOMALY'] = np.max([table[f'ODD_{name}'] for name in SCORES], axis=0)
    table['true_z'] = true_z
    return table


@pytest.fixture
def cat(tmp_path): return open_catalogue(write_table(catalogue(), tmp_path/'catalogue.fits'))


@pytest.fixture
def store(cat): return LabelStore(cat, 'ann')


LABELLER = """
import sys
from skyseek.pipeline.explorer_table import open_catalogue
from skyseek.pipeline.labels import LabelStore
store = LabelStore(open_catalogue(sys.argv[1]), 'ann')
for i in range(200):
    store.put(i, quality=i % 5, comment=f'row {i}\\n')
    print(i, flush=True)
"""


def test_a_killed_process_loses_no_label(cat):
    run = subprocess.Popen([sys.executable, '-c', LABELLER, str(cat.path)], stdout=subprocess.PIPE, text=True)
    for _ in range(30): run.stdout.readline()
    run.send_signal(signal.SIGKILL)
    said = 30 + len(run.stdout.read().split())
    run.wait()
    again = LabelStore(open_catalogue(cat.path), 'ann')
    assert [again.get(i)['quality'] for i in range(said)] == [i % 5 for i in range(said)]
    assert again.progress()[0] in (said, said + 1)  # one may be on the disk that was not said
    assert again.undo()['index'] >= said - 1
    again.put(7, quality=3)
    assert LabelStore(cat, 'ann').get(7)['quality'] == 3


def test_two_processes_of_one_inspector_and_another_inspector(cat, store):
    def label(name, first):
        other = LabelStore(cat, name)
        for i in range(first, 200): other.put(i, quality=i % 5)
    fork = multiprocessing.get_context('fork')
    runs = [fork.Process(target=label, args=args) for args in (('ann', 100), ('bob', 150))]
    for run in runs: run.start()
    for i in range(100): store.put(i, quality=4)
    for run in runs:
        run.join()
        assert run.exitcode == 0
    assert store.progress() == (200, 200) and LabelStore(cat, 'bob').progress() == (50, 200)
    assert [store.get(i)['quality'] for i in (0, 99, 100, 199)] == [4, 4, 0, 4]
    assert len(store.table()) == 250 and len(store.table(everyone=False)) == 200
    assert store.undo()['index'] == 99  # of this window first


def test_latest_wins_for_each_field_and_undo_takes_back_one_entry(store):
    store.put(3, quality=4, comment='first')
    store.put(3, quality=2)
    assert (store.get(3)['quality'], store.get(3)['comment']) == (2, 'first')
    store.put(3, comment=None)
    assert store.get(3)['comment'] is None
    assert [store.undo()['comment'], store.undo()['quality'], store.undo()['quality'], store.undo()] == ['first', 4, None, None]
    assert store.get(3) == {} and store.progress() == (0, 200)


def test_undo_goes_on_after_a_restart(cat, store):
    store.put(1, quality=4)
    store.put(2, quality=4)
    again = LabelStore(cat, 'ann')
    assert again.undo()['index'] == 2 and again.undo()['index'] == 1 and again.undo() is None
    assert store.get(1) == {}


@pytest.mark.parametrize('torn', [b'{"id":"x-1","key":[1],"se', b'{"id":', b'\x00'*40, b'\xff\xfe', b'[1]', b'{"a":1}', b'{"id":"y","key":["a"],"set":{"quality":9}}'])
def test_a_torn_line_harms_no_other(cat, store, torn, caplog):
    store.put(1, quality=4)
    path = store.folder/'ann.jsonl'
    with open(path, 'ab') as f: f.write(torn)
    again = LabelStore(cat, 'ann')
    assert again.get(1)['quality'] == 4 and again.progress() == (1, 200)
    again.put(2, quality=3)
    last = LabelStore(cat, 'ann')
    assert (last.get(1)['quality'], last.get(2)['quality'], last.progress()) == (4, 3, (2, 200))
    assert store.get(2)['quality'] == 3


def test_a_torn_header_is_written_again(cat, store):
    store.folder.mkdir()
    (store.folder/'ann.jsonl').write_bytes(b'{"skyseek":"labels","vers')
    again = LabelStore(cat, 'ann')
    again.put(1, quality=4)
    assert LabelStore(cat, 'ann').get(1)['quality'] == 4
    assert '"fingerprint"' in (store.folder/'ann.jsonl').read_text()


@pytest.mark.parametrize('code, words', [(errno.ENOSPC, 'the disk is full: free some space'), (errno.EDQUOT, 'your quota is used up')])
def test_full_disk_is_said_and_the_label_kept(store, monkeypatch, code, words):
    store.put(1, quality=4)
    size, write = (store.folder/'ann.jsonl').stat().st_size, os.write
    def full(f, data):
        if len(data) > 9: return write(f, data[:9])
        raise OSError(code, os.strerror(code))
    monkeypatch.setattr(journal.os, 'write', full)
    with pytest.raises(NotSaved, match=words) as e: store.put(2, quality=3, comment='kept')
    assert 'Kept in memory' in str(e.value) and '1 label is not on the disk' in str(e.value)
    with pytest.raises(NotSaved, match='2 labels'): store.put(4, quality=1)
    assert (store.folder/'ann.jsonl').stat().st_size == size  # no half of a line
    assert store.get(2)['comment'] == 'kept' and store.progress()[0] == 3 and len(store.unsaved) == 2
    assert store.undo()['index'] == 4 and store.progress()[0] == 2
    monkeypatch.setattr(journal.os, 'write', write)
    store.put(3, quality=2)
    assert LabelStore(store.cat, 'ann').get(2)['comment'] == 'kept' and LabelStore(store.cat, 'ann').progress()[0] == 3 and not store.unsaved


@pytest.mark.parametrize('code', [errno.EACCES, errno.EROFS])
def test_read_only_folder_is_said(store, monkeypatch, code):
    def refuse(*args): raise OSError(code, os.strerror(code))
    monkeypatch.setattr(journal.os, 'open', refuse)
    with pytest.raises(NotSaved, match='give another folder for the labels'): store.put(2, quality=3)
    assert store.get(2)['quality'] == 3


def test_a_file_system_without_locks(store, monkeypatch):
    def refuse(*args): raise OSError(errno.ENOLCK, 'no locks')
    monkeypatch.setattr(journal.fcntl, 'flock', refuse)
    store.put(2, quality=3)
    assert LabelStore(store.cat, 'ann').get(2)['quality'] == 3


def test_journal_of_another_catalogue_is_refused(cat, store, tmp_path):
    store.put(1, quality=4)
    other = open_catalogue(write_table(catalogue(50), tmp_path/'other.fits'))
    with pytest.raises(ReadError, match=r'labels of another catalogue \(catalogue.fits, 200 rows\)'): LabelStore(other, 'ann', store.folder)
    bob = LabelStore(other, 'bob', store.folder)  # those of others are passed over
    bob.put(2, quality=4)
    assert len(bob.table()) == 1


def test_labels_belong_to_objects_not_to_rows(cat, store, tmp_path):
    store.put(17, quality=4)
    table = catalogue()
    table['Z'] += 1
    again = open_catalogue(write_table(table[::-1], tmp_path/'again.fits'))
    moved = LabelStore(again, 'ann', store.folder)
    assert moved.get(200 - 18)['quality'] == 4 and moved.get(17) == {}
    assert moved.table()['VI_Z'][0] == cat.column('Z')[17]  # what was seen


def test_a_target_in_several_files(tmp_path):
    table = Table(dict(TARGETID=[7, 8, 7, 7], FILE=['a.fits', 'a.fits', 'b.fits', 'a.fits'], Z=[.1, .2, .3, .4], SPECTYPE=['GALAXY']*4))
    store = LabelStore(open_catalogue(write_table(table, tmp_path/'c.parquet')), 'ann')
    for i, quality in enumerate((1, 2, 3, 4)): store.put(i, quality=quality)
    assert [LabelStore(store.cat, 'ann').get(i)['quality'] for i in range(4)] == [1, 2, 3, 4]
    assert store.merged()['VI_Z'].tolist() == [.1, .2, .3, .4]
    assert read_truth(store.export_truth(tmp_path/'t.csv'))['TRUE_Z'].tolist() == [.4]  # the best quality of 7; 8 is not certain


@pytest.mark.parametrize('text', NASTY, ids=range(len(NASTY)))
def test_any_comment_survives(cat, store, tmp_path, text):
    store.put(5, quality=3, comment=text)
    kept = text.replace('\0', '').replace('\ud800', '\ufffd')
    assert LabelStore(cat, 'ann').get(5)['comment'] == store.get(5)['comment'] == kept
    vi = store.export_vi(tmp_path/'vi.csv')
    assert read_vi(vi)[0][2].get('comment', '') == kept and len(vi.read_text().split('\n')) == 3
    assert len(read_truth(vi)) == 1 and len(Table.read(vi, format='ascii.csv', names=VI_FIELDS)) == 1


@pytest.mark.parametrize('name', [t for t in NASTY if 0 < len(t.strip('\0 ')) <= 100] + ['../../etc/x', 'Ann', 'ann ', 'con', '.hidden'])
def test_any_name_survives(cat, tmp_path, name):
    store = LabelStore(cat, name)
    store.put(5, quality=3)
    assert [p.name for p in store.folder.iterdir()] == [journal_name(store.inspector)] and '/' not in journal_name(store.inspector)
    assert LabelStore(cat, name).get(5)['inspector'] == store.inspector == store.table()['INSPECTOR'][0]
    assert read_vi(store.export_vi(tmp_path/'vi.csv'))[0][1] == store.inspector


def test_names_that_share_letters_share_no_journal():
    names = ['ann', 'Ann', 'ANN', 'ann!', 'ann?', 'a/nn', 'a-nn']
    assert len({journal_name(n) for n in names}) == len(names)


@pytest.mark.parametrize('fields', [dict(quality=5), dict(quality='4'), dict(quality=True), dict(z=float('nan')), dict(z=-2), dict(z='1'), dict(z=1e9), dict(spectype='AGN'), dict(flags='RX'),
                                    dict(interest=-1), dict(interest=5.1), dict(comment=b'x'), dict(comment='x'*2001), dict(colour='red'), {}])
def test_wrong_values_are_refused_and_nothing_is_written(store, fields):
    with pytest.raises(LabelError): store.put(1, **fields)
    assert store.get(1) == {} and not store.folder.exists()


@pytest.mark.parametrize('row', [-1, 200, 1.5, '3', True, None])
def test_wrong_rows_are_refused(store, row):
    with pytest.raises(LabelError, match='no row'): store.put(row, quality=1)


def test_a_label_is_on_the_disk_within_50_ms(store):
    start = time.perf_counter()
    for i in range(40): store.put(i, quality=4)
    assert (time.perf_counter() - start)/40 < .05


def test_threads_may_label_at_the_same_time(cat, store):
    def work(first): [store.put(i, quality=i % 5) for i in range(first, first + 20)]
    threads = [threading.Thread(target=work, args=(first,)) for first in range(0, 80, 20)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert store.progress() == (80, 200) and LabelStore(cat, 'ann').progress() == (80, 200)


def test_merging_by_desis_rule(cat, store):
    bob, z = LabelStore(cat, 'bob'), cat.column('Z')
    for i, (ours, theirs) in enumerate([({}, {}), ({}, dict(z=float(z[1])*1.0001)), ({}, dict(z=float(z[2]) + .1)), (dict(spectype='QSO'), dict(spectype='STAR')),
                                        (dict(quality=4), dict(quality=2)), (dict(quality=4), dict(quality=3))]):
        store.put(i, **dict(quality=3) | ours)
        bob.put(i, **dict(quality=3) | theirs)
    assert store.merged()['CONFLICT'].tolist() == ['', '', 'redshift', 'type', 'quality', '']
    assert np.isnan(store.merged()['VI_Z'][2]) and store.merged()['VI_QUALITY'][5] == 3.5
    zed = LabelStore(cat, 'zed')
    zed.put(2, quality=4, z=1.)
    assert store.merged(merger='zed')['VI_Z'][2] == 1 and store.merged(merger='zed')['CONFLICT'][2] == ''
    assert len(merge_labels(store.table()[:0])) == 0


def test_exports_are_read_by_keep_evaluate_and_rank(tmp_path, capsys):
    table = catalogue(600)
    cat = open_catalogue(write_table(table, tmp_path/'catalogue.fits'))
    store = LabelStore(cat, 'ann')
    kind = ['STAR' if i % 10 == 0 else str(k) for i, k in enumerate(table['SPECTYPE'])]
    for i in range(600): store.put(i, quality=4, z=float(table['true_z'][i]), spectype=kind[i], interest=i % 6 if i < 60 else None)
    truth, marks = store.export_truth(tmp_path/'truth.fits'), store.export_ratings(tmp_path/'marks.csv')
    assert main(['evaluate', str(cat.path), '--truth', str(truth)]) == 0
    assert main(['keep', str(cat.path), '--truth', str(store.export_vi(tmp_path/'vi.csv')), '--at-most', '.1', '-o', str(tmp_path/'kept.fits')]) == 0
    assert main(['keep', str(cat.path), '--truth', str(store.export_truth(tmp_path/'t.csv')), '--at-most', '.1', '-o', str(tmp_path/'kept2.fits')]) == 0
    assert main(['rank', str(cat.path), '--marks', str(marks), '-o', str(tmp_path/'ranked.fits')]) == 0
    ranked = Table.read(tmp_path/'ranked.fits')
    again = rank_again(cat, store)  # the page's order is the command's
    assert ranked['TARGETID'].tolist() == cat.column('TARGETID')[np.argsort(-again, kind='stable')].tolist()
    np.testing.assert_array_equal(ranked['INTEREST'], np.sort(again)[::-1])
    assert read_marks(marks)['MARK'].tolist() == [i % 6 for i in range(60)]
    assert np.allclose(read_truth(truth)['TRUE_Z'], table['true_z'][[cat.find(t)[0] for t in read_truth(truth)['TARGETID']]])


def test_exports_replace_nothing(cat, store, tmp_path):
    with pytest.raises(LabelError, match='label some first'): store.export_vi(tmp_path/'vi.csv')
    store.put(1, quality=4, interest=3)
    for export in (store.export_vi, store.export_truth, store.export_ratings):
        with pytest.raises(ValueError, match='would overwrite the input'): export(store.folder/'ann.jsonl', overwrite=True)
        with pytest.raises(ValueError, match='exists already'): export(export(tmp_path/f'{export.__name__}.csv'))


def test_draw_and_guarantee(cat, store, tmp_path):
    table, rows = catalogue(), store.draw(150, seed=4)
    assert LabelStore(cat, 'bob').draw(20).tolist() == rows[:20].tolist() and len(set(rows.tolist())) == 150
    none = store.guarantee(at_most=.05)
    assert not none['holds'] and none['labels'] == 0 and none['missing'] == 59
    for i in rows.tolist(): store.put(i, quality=4, z=float(table['true_z'][i]))
    store.put(int(np.setdiff1d(np.arange(200), rows)[0]), quality=4, z=9.)  # not of the draw: no part of the guarantee
    found = store.guarantee(at_most=.05)
    kept, same = keep_sample(table, read_truth(store.export_truth(tmp_path/'t.fits', drawn=True)), at_most=.05)
    assert found['holds'] and found['complete'] and found['missing'] == 0
    assert (found['labels'], found['threshold'], found['bound'], found['retained']) == (150, same.threshold, same.bound, len(kept))


def test_a_redshift_that_is_wrong_without_another_one_counts_as_wrong(cat, store, tmp_path, caplog):
    table, rows = catalogue(), store.draw(150, seed=4)
    for i in rows.tolist(): store.put(i, quality=4, z=float(table['true_z'][i]))
    before = store.guarantee(at_most=.05)
    for i in rows[np.argsort(cat.column('P_Z_WRONG')[rows])][:3].tolist(): store.put(i, quality=1, z=None, flags='R')
    after = store.guarantee(at_most=.05)
    assert after['labels'] == before['labels'] and after['unsure'] == 0 and after['bound'] > before['bound']
    store.export_truth(tmp_path/'t.csv')
    assert '3 objects whose redshift is flagged as wrong have no other redshift' in caplog.text
    bob = LabelStore(cat, 'bob')
    bob.put(int(rows[5]), quality=4, flags='R', z=None)
    store.put(int(rows[5]), quality=4, z=None)
    assert store.merged()['CONFLICT'][store.merged()['TARGETID'] == cat.column('TARGETID')[rows[5]]].tolist() == ['redshift']


def test_files_of_prospect_are_read(cat, tmp_path):
    ids, head = cat.column('TARGETID'), ','.join(VI_FIELDS)
    old = head.replace('Redrock_deltachi2,', '')
    lines = [f'{ids[0]},-1,-1,-1,-1,-1,-1,GALAXY,0.5000,ann,4,,,,a","b', f'{ids[1]},-1,-1,-1,-1,-1,-1,GALAXY,0.5000,ann,-1,RS,0.6,QSO,', f'{ids[2]},-1,-1,-1,-1,-1,-1,GALAXY,0.5000,bob,4,,,,', '5,-1,-1,-1,-1,-1,-1,GALAXY,0.5,ann,4,,,,']
    for names, rows in ((old, lines), (head, [line.replace('0.5000,', '0.5000,99.5,') for line in lines[:3]])):
        (tmp_path/'vi.csv').write_text('\r\n'.join([names, *rows]) + '\r\n')
        store = LabelStore(cat, 'ann', tmp_path/f'labels{len(rows)}')
        assert store.import_vi(tmp_path/'vi.csv') == 2 and store.progress()[0] == 1  # quality -1 is none
        assert store.get(0)['comment'] == 'a,b' and (store.get(1)['z'], store.get(1)['flags'], store.get(1)['spectype'], store.get(1)['quality']) == (.6, 'RS', 'QSO', None)
    for text in ('', 'a,b\n1,2\n', head + '\n', head + '\n1e16' + ','*15 + '\n', head + f'\n{ids[0]}' + ','*11 + 'nine,,,,\n'):
        (tmp_path/'bad.csv').write_text(text)
        with pytest.raises(ReadError): store.import_vi(tmp_path/'bad.csv')


def test_similar_objects(cat):
    x = cat.column('LATENT')
    near = similar(cat, 5, 20)
    assert len(near) == 20 and 5 not in near and similar(cat, 5, 500).size == 199
    assert np.linalg.norm(x[near] - x[5], axis=1).mean() < np.linalg.norm(x - x[5], axis=1).mean()


def test_journal_lines_are_plain_json(store):
    store.put(1, quality=4, comment='Zoë')
    lines = (store.folder/'ann.jsonl').read_bytes()
    assert lines.isascii() and [json.loads(line).get('rows') for line in lines.splitlines()] == [200, None]
    append_lines(Journal(store.folder/'ann.jsonl', store.header), [dict(id='z', future='entry of a later version')])
    assert LabelStore(store.cat, 'ann').progress() == (1, 200)


def test_a_redshift_without_quality_is_exported_and_is_no_truth(cat, store, tmp_path):
    store.put(3, z=1.25, spectype='QSO')
    store.put(4, comment='later')
    row = next(r for r in store.table() if r['TARGETID'] == cat.column('TARGETID')[3])
    assert (row['VI_Z'], row['VI_SPECTYPE'], np.isnan(row['VI_QUALITY'])) == (1.25, 'QSO', True)
    other = LabelStore(open_catalogue(cat.path), 'bea')
    found = {t: fields for t, _, fields in read_vi(store.export_vi(tmp_path/'vi.csv'))}
    assert found[int(row['TARGETID'])]['z'] == 1.25 and found[int(row['TARGETID'])].get('quality') is None
    other.put(3, quality=4)
    merged = other.merged()
    mine = merged[merged['TARGETID'] == row['TARGETID']][0]
    assert mine['N_VI'] == 1 and mine['VI_Z'] == row['Z'] and mine['CONFLICT'] == ''
