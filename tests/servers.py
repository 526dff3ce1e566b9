"""A web server that gives byte ranges, and misbehaves when it is told to: python tests/servers.py ROOT PORT [--faults '{"500": 0.1, …}'] [--only PATTERN] [--log FILE]

Faults and their shares of the requests: 500 and 503; 404 and 416; cut (half of what was asked for, then the connection is closed); stall (no answer for a minute);
wrong (some bytes turned round); whole (ranges are ignored). Each answer's bytes are added to the log.
"""
import argparse
import asyncio
import json
import logging
import random
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import urlopen

from aiohttp import web


def free_port():
    "A port that nobody uses."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def make_app(root, faults, only, log, seed=0):
    rng, pattern = random.Random(seed), re.compile(only)

    def pick(path):
        "A fault for this request, or None."
        x = rng.random()
        for name, share in faults.items() if pattern.search(path) else ():
            if x < share: return name
            x -= share
        return None

    async def answer(request):
        path = Path(root, request.path.lstrip('/'))
        fault = pick(request.path)
        if fault == 'stall': await asyncio.sleep(60)
        if fault in ('500', '503', '404', '416'): return web.Response(status=int(fault))
        if not path.is_file(): return web.Response(status=404)
        data, status, headers = path.read_bytes(), 200, {'Accept-Ranges': 'bytes'}
        size = len(data)
        found = re.fullmatch(r'bytes=(\d+)-(\d*)', request.headers.get('Range', ''))
        if found and fault != 'whole':
            first, last = int(found[1]), min(int(found[2] or size - 1), size - 1)
            if first >= size: return web.Response(status=416, headers={'Content-Range': f'bytes */{size}'})
            data, status, headers['Content-Range'] = data[first:last + 1], 206, f'bytes {first}-{last}/{size}'
        if fault == 'wrong' and len(data) > 5000: data = data[:4000] + bytes(255 - b for b in data[4000:4004]) + data[4004:]
        if log and request.method == 'GET':
            with open(log, 'a') as f: f.write(f'{len(data)} {request.path}\n')
        if fault == 'cut':
            response = web.StreamResponse(status=status, headers=headers | {'Content-Length': str(len(data))})
            await response.prepare(request)
            await response.write(data[:len(data)//2])
            request.transport.close()
            return response
        return web.Response(status=status, headers=headers, body=data if request.method == 'GET' else None) if request.method == 'GET' else web.Response(status=200, headers=headers | {'Content-Length': str(size)})

    app = web.Application(client_max_size=1 << 30)
    app.router.add_route('*', '/{path:.*}', answer)
    return app


@contextmanager
def serving(root, faults=None, only='.', log=''):
    "A server in a process of its own; yields its address."
    port = free_port()
    process = subprocess.Popen([sys.executable, __file__, str(root), str(port), '--faults', json.dumps(faults or {}), '--only', only, '--log', str(log)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            try: urlopen(f'http://127.0.0.1:{port}/', timeout=1)
            except OSError as e:
                if getattr(e, 'code', 0): break
            else: break
            time.sleep(.1)
        yield f'http://127.0.0.1:{port}'
    finally:
        process.kill()
        process.wait()


class Ranges(BaseHTTPRequestHandler):
    "Files of a folder, whole or in byte ranges, with their version; `hook(self, path, start)` may give other content, headers, or an answer of its own (True)."
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True  # without it, each body waits 40 ms behind its head

    def __init__(self, root, hook, *args):
        self.root, self.hook = Path(root), hook
        super().__init__(*args)

    def log_message(self, *args): pass

    def do_HEAD(self): self.do_GET()

    def do_GET(self):
        path, found = self.root/self.path.lstrip('/'), re.fullmatch(r'bytes=(\d+)-(\d+)', self.headers.get('Range', ''))
        start, headers = int(found[1]) if found else 0, {}
        answer = self.hook(self, path, start)
        if answer is True: return
        if answer: path, headers = answer
        if not path.is_file(): return self.reply(404, b'')
        size, about = path.stat().st_size, path.stat()
        stop = min(int(found[2]) + 1, size) if found else size
        with open(path, 'rb') as f:
            f.seek(start)
            data = f.read(stop - start)
        headers = {'ETag': f'"{about.st_mtime_ns:x}-{size:x}"'} | ({'Content-Range': f'bytes {start}-{stop - 1}/{size}'} if found else {}) | headers
        self.reply(206 if found else 200, data, headers)

    def reply(self, status, data, headers=None):
        "A whole answer; headers that are None are left out."
        self.send_response(status)
        for key, value in ({'Content-Length': str(len(data))} | (headers or {})).items():
            if value is not None: self.send_header(key, value)
        self.end_headers()
        if self.command == 'GET': self.wfile.write(data)

    def trickle(self, piece, pause, head=b'HTTP/1.1 200 OK\r\n\r\n'):
        "An answer that never ends."
        self.close_connection = True
        with suppress(OSError):
            self.wfile.write(head)
            while True:
                self.wfile.write(piece)
                time.sleep(pause)


@contextmanager
def small_server(root, hook=lambda self, path, start: None):
    "A server in threads of this process; yields its address."
    with ThreadingHTTPServer(('127.0.0.1', 0), partial(Ranges, root, hook)) as server:
        server.daemon_threads, server.block_on_close = True, False
        threading.Thread(target=server.serve_forever, args=(.02,), daemon=True).start()
        try: yield f'http://127.0.0.1:{server.server_port}'
        finally: server.shutdown()


@contextmanager
def bucket(root, name='desidata', below='dr1/'):
    "An S3 server (moto) with a copy of a folder; yields (s3 address, endpoint)."
    import boto3
    from moto.server import ThreadedMotoServer
    logging.getLogger('werkzeug').setLevel(logging.ERROR)  # a line for each request
    server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
    server.start()
    endpoint = 'http://{}:{}'.format(*server.get_host_and_port())
    try:
        client = boto3.client('s3', endpoint_url=endpoint, region_name='us-west-2', aws_access_key_id='x', aws_secret_access_key='y')
        client.create_bucket(Bucket=name, ACL='public-read-write', CreateBucketConfiguration={'LocationConstraint': 'us-west-2'})
        for path in Path(root).rglob('*'):
            if path.is_file(): client.put_object(Bucket=name, Key=f'{below}{path.relative_to(root).as_posix()}', Body=path.read_bytes(), ACL='public-read')
        yield f's3://{name}/{below}'.rstrip('/'), endpoint
    finally: server.stop()


def part_bytes(path):
    "All values of a part of a catalogue, column by column: what two runs must have in common."
    import numpy as np
    import pyarrow.parquet as pq

    from skyseek.pipeline.parts import as_table
    table = as_table(pq.read_table(path))
    columns = (np.asarray(table[c]) for c in table.colnames)
    return b''.join(np.ascontiguousarray(x.astype('S') if x.dtype.kind == 'U' else x).tobytes() for x in columns)


if __name__ == '__main__':
    parser = argparse.ArgumentParser()
    parser.add_argument('root')
    parser.add_argument('port', type=int)
    parser.add_argument('--faults', type=json.loads, default={})
    parser.add_argument('--only', default='.')
    parser.add_argument('--log', default='')
    a = parser.parse_args()
    web.run_app(make_app(a.root, a.faults, a.only, a.log), host='127.0.0.1', port=a.port, print=None)
