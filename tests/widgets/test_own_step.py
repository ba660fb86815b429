"""A step that a user defines outside of the workbench: in the bench, in code, saved, read back, refused."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from screen import TIMEOUT

import workbench as wb
from widgets import Bench
from workbench.recipe import REGISTRY

MODULE = '''
from typing import ClassVar

from pydantic import Field

import workbench as wb
from workbench.answering.request import Request
from workbench.answering.stage import STAGES
from workbench.step import RequestStep, Step


class Shout(RequestStep):
    """Asks louder.

    For people who think that it helps; it does not, and it costs nothing.
    """

    paper: ClassVar[str] = "https://example.org/shout"
    marks: int = Field(default=1, ge=0, le=9, description="Exclamation marks.")

    def rewrite(self, request: Request, variant: object) -> Request:
        return request.asking(request.question + "!" * self.marks)
'''
PROGRAM = """
import sys, workbench as wb
try:
    wb.load(sys.argv[1], device="cpu")
except wb.WorkbenchError as error:
    print(error)
import mine
print(repr(wb.load(sys.argv[1], device="cpu").recipe))
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path / "lab")
    before = dict(REGISTRY)
    yield tmp_path / "lab"
    sys.modules.pop("mine", None)
    for table in (REGISTRY, __import__("workbench.answering.stage", fromlist=["STAGES"]).STAGES):
        for name in [each for each in table if each.startswith("mine.")]:
            del table[name]
    assert before == REGISTRY


def test_it_has_a_panel_is_applied_saved_and_read_back(module: Path, base: wb.Variant, tmp_path: Path) -> None:
    import mine

    bench = Bench(base)
    panel = bench.panel("mine")
    assert "Mine" in bench.tabs.titles
    panel.set(mine.Shout(marks=3))
    assert panel.code.value == "shout = base.apply(mine.Shout(marks=3))"
    panel.button.click()
    assert bench.wait(TIMEOUT)
    made = bench.variants["Shout"]
    assert made.rewritten("Rain?").question == "Rain?!!!"
    folder = made.save(tmp_path / "export")
    again = wb.load(folder, device="cpu")
    assert again.recipe == made.recipe
    assert again.encode("Rain?") == made.encode("Rain?")
    bench.close()

    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(wb.__file__).parents[1]), str(module)])}
    run = subprocess.run([sys.executable, "-c", PROGRAM, folder], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [
        "There is no step 'mine.Shout' here: import the module that defines it, or update the workbench.",
        repr(made.recipe),
    ]
