"""Optional libraries: one import at a time, and a sentence where one is missing."""

import sys
import threading
from pathlib import Path

import pytest

from workbench.core.errors import NotAvailable
from workbench.core.optional import imported, library

SLOW = """
import threading
started.set()
assert go.wait(10)
value = 3
"""


def test_a_second_thread_waits_for_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is never given a library that is half imported."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "slow_library.py").write_text(f"from slow_events import go, started\n{SLOW}")
    (tmp_path / "slow_events.py").write_text("import threading\nstarted, go = threading.Event(), threading.Event()\n")
    import slow_events

    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(library("slow_library", "Testing").value)) for _ in "ab"]
    threads[0].start()
    assert slow_events.started.wait(10)
    assert "slow_library" in sys.modules
    assert imported("slow_library") is None
    threads[1].start()
    slow_events.go.set()
    for thread in threads:
        thread.join(10)
    assert found == [3, 3]
    assert imported("slow_library").value == 3
    for name in ("slow_library", "slow_events"):
        monkeypatch.delitem(sys.modules, name)


def test_what_is_missing_or_broken_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_library.py").write_text("raise ImportError('no such symbol\\nat all')")
    with pytest.raises(NotAvailable, match="Flying is done by nowhere_to_be_found, which is not installed"):
        library("nowhere_to_be_found.part", "Flying")
    with pytest.raises(NotAvailable, match=r"cannot be imported \(no such symbol\): run `pip install broken`"):
        library("broken_library", "Flying", package="broken")
