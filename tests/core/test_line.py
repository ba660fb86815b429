"""A long call shows one line by itself where somebody looks, and takes it away again."""

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from lab import ROOT
from nbclient import NotebookClient

from workbench import Progress
from workbench.core import line
from workbench.core.errors import InvalidInput

# What waits in the middle of the call: until the line's patience, set to none here, is surely over.
PROGRAM = """
import threading
import workbench as wb
from workbench.core import line
line.PATIENCE = 0
def wait(_):
    for each in threading.enumerate():
        if isinstance(each, threading.Timer):
            each.join()
def work():
    tiny = wb.load({folder!r}, device="cpu")
    text = wb.Text(name="tiny", text="one two three four " * 80, window=16, calibration=2, test=4)
    wb.compare([tiny], text, examples=2, rounds=1, new_tokens=2, on_update=wait, store=False)
"""


@pytest.fixture
def program(folders: dict[str, Path]) -> str:
    return PROGRAM.format(folder=str(next(iter(folders.values()))))


def on_terminal(program: str, **environment: str) -> str:
    """What a program says to a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", program], stdout=theirs, env={**os.environ, **environment}) as run:
        os.close(theirs)
        said = b""
        while True:
            try:
                more = os.read(ours, 4096)
            except OSError:  # the other end was closed
                break
            if not more:
                break
            said += more
    os.close(ours)
    assert run.returncode == 0
    return said.decode()


def test_a_terminal_shows_the_line_and_is_left_clean(program: str) -> None:
    said = on_terminal(program + "work()\nprint('done')")
    assert "Timing requests [" in said
    assert said.endswith("\r\x1b[Kdone\r\n")
    assert "\n" not in said.removesuffix("\n"), "one line only"


def test_the_line_goes_on_an_error_too(program: str) -> None:
    failing = "waited = wait\ndef wait(seen):\n    waited(seen)\n    assert 'perplexity' not in seen.metrics\n"
    said = on_terminal(program + failing + "try:\n    work()\nexcept AssertionError:\n    print('failed')")
    assert "Scoring text [" in said
    assert said.endswith("\r\x1b[Kfailed\r\n")


@pytest.mark.parametrize(
    ("call", "environment"),
    [("work()", {"WORKBENCH_PROGRESS": "off"}), ("t = threading.Thread(target=work); t.start(); t.join()", {})],
    ids=["off", "other thread"],
)
def test_silent_on_a_terminal(program: str, call: str, environment: dict[str, str]) -> None:
    assert on_terminal(f"{program}{call}\nprint('done')", **environment) == "done\r\n"


def test_silent_in_a_pipe(program: str) -> None:
    run = subprocess.run([sys.executable, "-c", program + "work()"], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "")


def test_a_notebook_shows_the_line_and_is_left_clean(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    seen: list[str] = []

    class Client(NotebookClient):
        def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
            seen.append(msg["content"].get("data", {}).get("text/plain", ""))
            return super().process_message(msg, cell, cell_index)

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(program + "work()")])
    Client(notebook, timeout=200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    nbformat.validate(notebook)
    assert any("Timing requests [" in each for each in seen)
    displays = [each for each in notebook.cells[0].outputs if each.output_type == "display_data"]
    assert displays
    assert [each.data for each in displays if each.data] == []


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What lines say, as if somebody looked, after no time."""
    said: list[str] = []
    monkeypatch.setattr(line, "_place", lambda: said.append)
    return said


def test_only_the_outermost_call_is_given_a_line(shown: list[str]) -> None:
    @line.watched
    def inner(progress: Progress | None = None) -> Progress | None:
        return progress

    @line.watched
    def outer(fail: bool = False, progress: Progress | None = None) -> tuple[Progress | None, Progress | None]:
        if fail:
            raise InvalidInput("no")
        return progress, inner()

    own, nested = outer()
    assert isinstance(own, Progress)
    assert nested is None
    given = Progress()
    assert outer(False, given) == (given, None)
    with pytest.raises(InvalidInput):
        outer(fail=True)
    assert isinstance(inner(), Progress), "an error ends the outer call"
    assert shown == [], "nothing before its time"


def test_a_label_moves_no_cursor() -> None:
    made = Progress()
    made.start("\x1b[2Jname\r\n: answering", 4)
    made.advance()
    assert line.text(made) == "?[2Jname??: answering [#####...............] 1 of 4"
