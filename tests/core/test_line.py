"""The line of progress of a script: on a terminal and wiped away, silent in a pipe."""

import os
import pty
import subprocess
import sys

SCRIPT = """
from workbench.core import line
line.PATIENCE = 0
@line.watched
def inner(progress=None):
    assert progress._throttle is None  # only the outermost call shows
@line.watched
def work(progress=None):
    for _ in progress.track("packing \\x1b[31m", range(4), 4):
        inner()
work()
"""


def said_on_a_terminal(**environment: str) -> str:
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=theirs, env=os.environ | environment, check=False
    )
    os.close(theirs)
    said = b""
    try:
        while part := os.read(ours, 4096):
            said += part
    except OSError:  # a terminal that nobody writes to any more
        pass
    os.close(ours)
    assert (done.returncode, done.stdout) == (0, b""), said
    return said.decode()


def test_a_terminal_shows_a_line_and_has_none_at_the_end() -> None:
    said = said_on_a_terminal(WORKBENCH_QUIET="")
    assert "100 % packing  [31m" in said  # no control characters of a name
    assert said.endswith("\r\x1b[2K")
    assert said_on_a_terminal(WORKBENCH_QUIET="1") == ""


def test_a_pipe_stays_silent() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
