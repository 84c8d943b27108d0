import subprocess
import sys

import pytest

CODE = """
from server.log import log, show_progress
show_progress(to_stderr={to_stderr})
show_progress(to_stderr=not {to_stderr})
log.info("round 1")
"""


@pytest.mark.parametrize(("to_stderr", "stream"), [(False, "stdout"), (True, "stderr")])
def test_progress_is_printed_once_to_the_stream_first_asked_for(to_stderr, stream):
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(to_stderr=to_stderr)], capture_output=True, text=True, check=True
    )
    other = {"stdout": done.stderr, "stderr": done.stdout}[stream]
    assert getattr(done, stream).count("round 1") == 1
    assert other == ""


def test_nothing_is_printed_before_somebody_asks_for_it():
    code = 'from server.log import log; log.info("round 1")'
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""
