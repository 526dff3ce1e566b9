"""Commands of skyseek in the process of the test, which has imported everything already."""
import io
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

from skyseek.pipeline.cli import main


def skyseek(*arguments):
    "Run a command: an object with returncode, stdout and stderr, as of a finished process."
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try: code = main([str(a) for a in arguments])
        except SystemExit as e: code = e.code
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


def errors(done):
    "The lines on standard error that tell of a failure."
    return [line for line in done.stderr.splitlines() if line.startswith('ERROR')]
