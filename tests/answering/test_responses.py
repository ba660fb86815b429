"""Answers that are kept: the same again, marked, bounded, and never another's, an old one or a damaged one."""

import json
import sqlite3
import stat
import threading
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

import workbench as wb
from workbench.answering import store as storing
from workbench.answering.request import Generation, Request
from workbench.answering.responses import entry
from workbench.answering.store import Bounds, Entry, Store
from workbench.core.errors import InvalidInput
from workbench.measurement.latency import time_request
from workbench.measurement.scores import generate_answers
from workbench.steps import output, prompt, quantize, retrieve, runtime

WIDE = Bounds(seconds=3600.0, entries=100, nbytes=1 << 20)


def said(text: str, **others: Any) -> Generation:
    return Generation(text, (5, 6), 3, (0.1, 0.2), "stop", said=text, spent=2, **others)


@pytest.fixture
def passes(base: wb.Variant) -> list[int]:
    """Grows with every pass of the base's model."""
    found: list[int] = []
    base.model.register_forward_pre_hook(lambda *_: found.append(1))
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers" / "a.sqlite"


def test_the_same_is_answered_at_once_and_marked(base: wb.Variant, passes: list[int]) -> None:
    cached = base.apply(runtime.ResponseCache())
    assert cached.model is base.model
    first = cached.generate("What is a lobster?", max_new_tokens=8)
    assert first == base.generate("What is a lobster?", max_new_tokens=8).but(times=first.times)
    passes.clear()
    again = cached.generate("What is a lobster?", max_new_tokens=8)
    assert passes == []
    assert (again.text, again.token_ids, again.said) == (first.text, first.token_ids, first.said)
    assert (first.cached, again.cached, again.spent) == ("", "exact", 0)
    assert again.notes == ("From the cache of answers: the same was asked 0 seconds ago.",)
    assert again.tokens_per_second == 0.0
    assert again.ttft > 0
    pieces = list(cached.stream("What is a lobster?", max_new_tokens=8))
    assert "".join(each.text for each in pieces) == first.said
    assert pieces[-1].answer.cached == "exact"
    assert passes == []
    assert cached.generate("What is a lobster?", max_new_tokens=8, fresh=True).cached == ""
    assert len(passes) == len(first.token_ids)


def test_scores_and_streams_share_what_is_known(base: wb.Variant, tiny_task: wb.Task, passes: list[int]) -> None:
    cached = base.apply(runtime.ResponseCache())
    cached.generate(Request.example(tiny_task, tiny_task.test[1]), max_new_tokens=tiny_task.max_new_tokens)
    found = generate_answers(cached, tiny_task, tiny_task.test[:3])
    assert [each.cached for each in found] == ["", "exact", ""]
    plain = generate_answers(base, tiny_task, tiny_task.test[:3])
    assert [each.text for each in found] == [each.text for each in plain]
    passes.clear()
    assert [each.cached for each in generate_answers(cached, tiny_task, tiny_task.test[:3])] == ["exact"] * 3
    assert passes == []


def test_timing_times_the_model(base: wb.Variant, passes: list[int]) -> None:
    cached = base.apply(runtime.ResponseCache())
    cached.generate("What?", max_new_tokens=5)
    for _ in range(2):
        passes.clear()
        assert len(time_request(cached, "What?", 5).inter_token) == 4
        assert len(passes) == 5
    assert "model itself" in runtime.ResponseCache.caveat


def test_everything_that_shapes_an_answer_counts(
    base: wb.Variant, load_tiny: Callable[[str], wb.Variant], tiny_task: wb.Task
) -> None:
    cache = runtime.ResponseCache()
    cached = base.apply(cache)
    ask: dict[str, Any] = {"max_new_tokens": 6}
    cached.generate("What?", **ask)
    others: dict[str, tuple[wb.Variant, Any, dict[str, Any]]] = {
        "prompt": (cached, "What!", ask),
        "turns": (cached, [{"role": "system", "content": "Hm."}, {"role": "user", "content": "What?"}], ask),
        "length": (cached, "What?", {"max_new_tokens": 5}),
        "temperature": (cached, "What?", ask | {"temperature": 0.5}),
        "seed": (cached, "What?", ask | {"temperature": 0.5, "seed": 1}),
        "user": (cached, Request.of("What?").but(salt="other"), ask),
        "weights": (base.apply(quantize.Int8()).apply(cache), "What?", ask),
        "engine": (base.apply(quantize.KVCache()).apply(cache), "What?", ask),
        "stop": (cached.apply(output.Stop(sentences=1)), "What?", ask),
        "form": (cached.apply(prompt.Constrain(form="choices", rule="yes\nno")), "What?", ask),
        "samples": (cached.apply(prompt.SelfConsistency(answers=2)), "What?", ask),
        "model": (load_tiny("qwen3").apply(cache), "What?", ask),
    }
    for what, (variant, asked, settings) in others.items():
        assert variant.generate(asked, **settings).cached == "", what
        assert variant.generate(asked, **settings).cached == "exact", what
    loaded_again = load_tiny("llama").apply(cache)
    assert loaded_again.generate("What?", **ask).cached == "exact", "the same weights"


def test_documents_that_changed_are_another_question(base: wb.Variant, tiny_task: wb.Task) -> None:
    folder = Path(tiny_task.documents)
    cached = base.apply(retrieve.Retrieve(method="bm25"), tiny_task).apply(runtime.ResponseCache())
    cached.generate("Who takes a seat?", max_new_tokens=4)
    assert cached.generate("Who takes a seat?", max_new_tokens=4).cached == "exact"
    (folder / "more.txt").write_text("Rain before noon.")
    base.apply(retrieve.Retrieve(method="bm25"), tiny_task)  # indexed anew; the passage shown is the same
    assert cached.generate("Who takes a seat?", max_new_tokens=4).cached == ""


def test_weights_replaced_after_caching_miss(base: wb.Variant) -> None:
    cached = base.apply(runtime.ResponseCache())
    cached.generate("What?", max_new_tokens=4)
    head = base.model.lm_head
    head.weight = torch.nn.Parameter(head.weight.detach() * -1, requires_grad=False)
    assert cached.generate("What?", max_new_tokens=4).cached == ""


def test_one_cache_a_variant(base: wb.Variant) -> None:
    cached = base.apply(runtime.ResponseCache())
    for step in (runtime.ResponseCache(on_disk=False), runtime.SemanticCache()):
        with pytest.raises(InvalidInput, match="keeps its answers already"):
            cached.apply(step)


def test_what_is_too_old_is_asked_again(base: wb.Variant) -> None:
    brief = base.apply(runtime.ResponseCache(hours=1e-9))
    brief.generate("What?", max_new_tokens=4)
    assert brief.generate("What?", max_new_tokens=4).cached == ""
    assert brief.recipe.steps[-1].store.statistics["entries"] == 1


def test_in_memory_nothing_is_written(base: wb.Variant, tmp_path: Path) -> None:
    cached = base.apply(runtime.ResponseCache(on_disk=False))
    cached.generate("What, in memory?", max_new_tokens=4)
    assert cached.generate("What, in memory?", max_new_tokens=4).cached == "exact"
    assert not (tmp_path / "cache").exists()
    storing.store(on_disk=False).clear()


def test_entries_and_bytes_are_bounded_and_the_least_used_goes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing, "RENEWED", -1.0)
    store = Store(path)
    for name in "abc":
        store.learn(entry(name, said(name)), Bounds(3600.0, 3, 1 << 20))
    store.again(store.find("a", 3600.0), "exact", "")
    store.learn(entry("d", said("d")), Bounds(3600.0, 3, 1 << 20))
    assert [name for name in "abcd" if store.find(name, 3600.0)] == ["a", "c", "d"]
    size = entry("e", said("e")).size
    store.learn(entry("e", said("e")), Bounds(3600.0, 100, 2 * size))
    assert store.statistics == {"entries": 2, "bytes": 2 * size, "asked": 5, "hits": 1, "wrong": 0, "evicted": 3}
    store.learn(entry("f", said("f" * 1000)), Bounds(3600.0, 100, 2 * size))
    assert store.statistics["entries"] == 2, "what is larger than all the room pushes nothing out"


def test_only_the_user_can_read_it(path: Path) -> None:
    path.parent.mkdir(mode=0o755)
    path.touch(mode=0o644)
    Store(path).learn(entry("a", said("a")), WIDE)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_two_kernels_share_a_file(path: Path) -> None:
    stores, failed = [Store(path), Store(path)], []

    def work(store: Store, name: str) -> None:
        try:
            for number in range(20):
                store.learn(entry(f"{name}{number}", said(name)), WIDE)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(each, name)) for each, name in zip(stores, "ab", strict=True)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert failed == []
    assert stores[0].find("b3", 3600.0).generation().text == "b"
    assert stores[1].statistics["entries"] == 40
    path.unlink()  # somebody empties the cache
    assert stores[0].find("b3", 3600.0) is None
    stores[0].learn(entry("c", said("c")), WIDE)
    assert stores[1].find("c", 3600.0)


@pytest.mark.parametrize("damage", ["cut off", "text", "other tables", "header"])
def test_a_damaged_file_is_survived(path: Path, damage: str) -> None:
    store = Store(path)
    for number in range(50):
        store.learn(entry(f"key {number}", said("x" * 500)), WIDE)
    data = path.read_bytes()
    if damage == "other tables":
        path.unlink()
        with closing(sqlite3.connect(path)) as base:
            base.execute("CREATE TABLE answers (key TEXT)")
    else:
        path.write_bytes(
            {"cut off": data[: len(data) // 2], "text": b"no database " * 900, "header": b"\xff" * 100 + data[100:]}[
                damage
            ]
        )
    again = Store(path)
    with pytest.warns(UserWarning, match="damaged and were set aside"):
        assert not all(again.find(f"key {number}", 3600.0) for number in range(50))
    again.learn(entry("new", said("new")), WIDE)
    assert again.find("new", 3600.0).generation() == said("new").but(times=(0.0,), spent=0)


POISONS: dict[str, tuple[str, Any]] = {
    "another answer": ("answer", entry("", said("Send me your password.")).answer),
    "no JSON": ("answer", "{"),
    "bytes": ("answer", b"\xff\xfe"),
    "no text": ("answer", 5),
    "another time": ("made", 2e12),
    "another question": ("question", "What is the password?"),
    "another vector": ("vector", b"\0" * 8),
    "nothing": ("answer", None),
}


@pytest.mark.parametrize("poison", POISONS)
def test_a_changed_entry_is_a_miss(path: Path, poison: str) -> None:
    store = Store(path)
    store.learn(entry("a", said("a"), "scope", "What?", b"\1" * 8), WIDE)
    store.learn(entry("b", said("b"), "scope", "Who?", b"\1" * 8), WIDE)
    column, value = POISONS[poison]
    with closing(sqlite3.connect(path, isolation_level=None)) as base:
        base.execute(f"UPDATE answers SET {column} = ? WHERE key = 'a'", (value,))
    assert [each.key for each in store.near("scope", 3600.0)] == ["b"]
    assert store.find("a", 3600.0) is None
    assert store.statistics["entries"] == 1 + (value is None)  # what has no length is never read
    store.learn(entry("a", said("a")), WIDE)
    assert store.find("a", 3600.0).generation().text == "a"


@pytest.mark.parametrize("held", [[], "x", {}, {"text": 5}, {"token_ids": []}])
def test_what_is_no_answer_is_a_miss(held: Any) -> None:
    assert Entry("a", json.dumps(held), 0.0).generation() is None


def test_a_disk_that_refuses_is_said_once_and_answers_still_come(
    base: wb.Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_file = storing._prepared

    def small(place: Path | str) -> sqlite3.Connection:
        base = open_file(place)
        if isinstance(place, Path):
            base.execute("PRAGMA max_page_count = 4")  # SQLite's own full disk
        return base

    monkeypatch.setattr(storing, "_prepared", small)
    cached = base.apply(runtime.ResponseCache())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        texts = [cached.generate(f"What is {number}?" * 9, max_new_tokens=64).text for number in range(20)]
    assert len(told) == 1
    assert "database or disk is full" in str(told[0].message)
    assert "forgotten with the kernel" in str(told[0].message)
    assert texts == [base.generate(f"What is {number}?" * 9, max_new_tokens=64).text for number in range(20)]
    assert cached.generate("What is 19?" * 9, max_new_tokens=64).cached == "exact", "kept in memory"


def test_a_folder_that_cannot_be_made_is_borne(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "a.sqlite")
    with pytest.warns(UserWarning, match="no longer kept"):
        store.learn(entry("a", said("a")), WIDE)
    store.learn(entry("a", said("a")), WIDE)
    assert store.find("a", 3600.0)


def test_a_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("precious")
    path.parent.mkdir()
    path.symlink_to(other)
    with pytest.warns(UserWarning, match="no longer kept"):
        Store(path).learn(entry("a", said("a")), WIDE)
    assert other.read_text() == "precious"


def test_a_busy_file_is_a_miss(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing, "PATIENCE", 0.01)
    store = Store(path)
    store.learn(entry("a", said("a")), WIDE)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert store.find("a", 3600.0) is None
        store.learn(entry("b", said("b")), WIDE)
    assert store.find("a", 3600.0)
