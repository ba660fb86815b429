"""What a bench knows: jobs that queue, cancel and fail, names, memory given back, exports, nothing left behind."""

import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import ipywidgets as ipw
import pytest
from ipywidgets.widgets.widget import _instances as alive
from screen import TIMEOUT, Gate, everything, html

import widgets
import workbench as wb
from widgets import Bench
from workbench.core import units
from workbench.core.errors import InvalidInput
from workbench.core.jobs import QUEUE_LIMIT
from workbench.core.progress import Progress
from workbench.layers import calibration
from workbench.step import Step
from workbench.steps import prompt, prune, quantize

XSS = "<img src=x onerror=window.__xss=1><script>window.__xss=1</script>"


@pytest.fixture
def bench_task(tiny_text: wb.Text) -> wb.Text:
    return tiny_text


def test_the_same_click_again_is_refused_and_another_is_queued(bench: Bench) -> None:
    gate = Gate(bench)
    panel = bench.panel("quantize")
    panel.button.click()
    panel.button.click()
    assert "under way already" in panel.message.value
    panel.set(quantize.Int8())
    panel.button.click()
    assert "2 queued" in bench.status.value
    gate.opened.set()
    assert bench.wait(TIMEOUT)
    assert list(bench.variants) == [bench.base.name, "NF4", "Int8"]
    assert "Ready" in bench.status.value
    assert bench.stop.disabled


def test_a_full_queue_is_said(bench: Bench) -> None:
    gate = Gate(bench)
    for number in range(QUEUE_LIMIT - 1):
        bench.submit(f"Job {number}", lambda progress: None)
    panel = bench.panel("quantize")
    panel.button.click()
    assert "jobs are waiting" in panel.message.value
    gate.opened.set()
    assert bench.wait(TIMEOUT)


def test_twenty_clicks_and_the_api_at_once(bench: Bench) -> None:
    panel = bench.panel("prompt")
    troubles: list[Exception] = []

    def api(whose: str) -> None:
        try:
            for number in range(10):
                name = bench.add(bench.base.apply(prompt.System(text=f"Say {number}.")))
                bench.rename(name, f"{whose} {number}")
                list(bench.variants.values())
                bench.remove(f"{whose} {number}")
        except Exception as error:
            troubles.append(error)

    threads = [threading.Thread(target=api, args=(whose,)) for whose in ("Ann", "Ben")]
    for thread in threads:
        thread.start()
    for number in range(20):
        panel.form.controls["text"].value = f"Answer {number}."
        panel.button.click()
    for thread in threads:
        thread.join(TIMEOUT)
    assert bench.wait(TIMEOUT)
    assert troubles == []
    made = {step.text for variant in bench.variants.values() for step in variant.recipe}
    refused = "waiting" in panel.message.value
    assert refused or made == {f"Answer {number}." for number in range(20)}
    assert list(bench.listing.rows) == list(bench.variants)


def test_cancel_in_the_middle_of_a_step_leaves_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    reached = threading.Event()

    def slow(step: Step, variant: wb.Variant, task: Any, progress: Progress) -> None:
        progress.start("Slow", 1000)
        while True:
            reached.set()
            progress.advance()
            reached.wait(0.01)

    monkeypatch.setattr(quantize.NF4, "apply", slow)
    panel = bench.panel("quantize")
    panel.button.click()
    assert reached.wait(TIMEOUT)
    assert not bench.stop.disabled
    bench.stop.click()
    assert bench.wait(TIMEOUT)
    assert "cancelled, nothing was changed" in panel.message.value
    assert list(bench.variants) == [bench.base.name]


def test_names_are_kept_apart_and_the_base_stays(bench: Bench) -> None:
    step = prompt.System(text="Hello.")
    assert [bench.add(bench.base.apply(step)) for _ in range(3)] == ["System", "System 2", "System 3"]
    assert [each.name for each in bench.variants.values()][1:] == ["System", "System 2", "System 3"]
    kept = bench.variants["System"]
    assert bench.add(kept) == "System"
    with pytest.raises(InvalidInput, match="already a variant"):
        bench.rename("System", "System 2")
    bench.rename("System 2", "Brief")
    assert list(bench.variants)[1:] == ["System", "Brief", "System 3"]
    assert "Brief" in bench.chosen
    with pytest.raises(InvalidInput, match="baseline"):
        bench.remove(bench.base.name)
    with pytest.raises(InvalidInput, match="no variant"):
        bench.remove("nothing")
    assert bench.variants["Brief"].parent == bench.base
    bench.rename(bench.base.name, "Original")
    assert bench.variants["Brief"].parent is bench.base
    assert (bench.base.owned_bytes, bench.variants["Brief"].owned_bytes) == (bench.base.total_bytes, 0)
    assert bench.add(kept) == "System"
    assert bench.add(bench.base.renamed("Elsewhere")) == "Original", "the same variant, whatever it is called"
    assert next(iter(bench.variants)) == bench.base.name == "Original"
    assert bench.panel("quantize").target.options[-1] == "Original"


def test_what_was_chosen_to_go_on_from_keeps_its_place_when_it_is_renamed(bench: Bench) -> None:
    bench.add(bench.base.apply(quantize.Int8()))
    bench.go_on("Int8")
    bench.rename("Int8", " e\u0301ight ")  # one letter, written as two
    assert bench.start == bench.panel("prompt").target.value == bench.panel("prune").target.value == "\u00e9ight"


def test_several_are_chosen_or_none(bench: Bench) -> None:
    bench.add(bench.base.apply(quantize.Int8()))
    chosen = bench.chosen
    with pytest.raises(InvalidInput, match="no variant 'gone'"):
        bench.choose_all(["Int8", "gone"], False)
    assert bench.chosen == chosen


def test_removing_gives_the_memory_back(bench: Bench) -> None:
    panel = bench.panel("quantize")
    panel.set(quantize.Int8())
    panel.button.click()
    assert bench.wait(TIMEOUT)
    panel.target.value = "Int8"
    made = weakref.ref(bench.variants["Int8"])
    bench.listing.heard({"do": "remove", "name": "Int8"})
    assert bench.wait(TIMEOUT)
    gc.collect()
    assert made() is None
    assert panel.target.value == bench.base.name


def test_rows_rename_and_tick(bench: Bench) -> None:
    bench.add(bench.base.apply(prompt.System()))
    told = bench.listing.heard
    told({"do": "choose", "names": ["System"], "on": False})
    assert bench.chosen == (bench.base.name,)
    told({"do": "rename", "name": "System", "typed": "../x"})
    assert "cannot be used as a name" in bench.listing.message.value
    told({"do": "rename", "name": "System", "typed": "Brief"})
    assert "Brief" in bench.variants
    assert bench.listing.message.value == ""
    assert bench.listing.rows["Brief"]["chosen"] is False


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a\0b", "x" * 300, "", ".hidden", XSS])
def test_export_names_are_refused(bench: Bench, name: str) -> None:
    bench.listing.heard({"do": "save", "name": bench.base.name, "typed": name})
    assert bench.wait(TIMEOUT)
    assert "cannot be used as a name" in bench.listing.message.value
    assert "<img" not in bench.listing.message.value
    assert list(Path.cwd().iterdir()) == []


def test_export_does_not_follow_a_link(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "exports").symlink_to(tmp_path / "elsewhere")
    bench.listing.heard({"do": "save", "name": bench.base.name, "typed": "mine"})
    assert bench.wait(TIMEOUT)
    assert "symbolic link" in bench.listing.message.value
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_export_is_written_and_loads(bench: Bench) -> None:
    bench.listing.heard({"do": "save", "name": bench.base.name, "typed": "mine"})
    assert bench.wait(TIMEOUT)
    assert "Saved to exports/mine" in bench.listing.message.value
    again = wb.load("exports/mine")
    asked = {"prompt": "What is a lobster?", "max_new_tokens": 6}
    assert again.generate(**asked).token_ids == bench.base.generate(**asked).token_ids


def test_a_variant_is_deployed_from_its_row_with_what_was_measured(bench: Bench, bench_task: wb.Task) -> None:
    deploy = {"do": "deploy", "name": bench.base.name, "typed": "mine", "target": "transformers"}
    bench.listing.heard(deploy | {"typed": "../mine"})
    assert bench.wait(TIMEOUT)
    assert "cannot be used as a name" in bench.listing.message.value
    bench.listing.heard(deploy)
    assert bench.wait(TIMEOUT)
    assert "Deployed to exports/mine-transformers" in bench.listing.message.value
    assert "20 prompts" in bench.listing.message.value
    assert "Nothing was measured" in Path("exports/mine-transformers/README.md").read_text()
    bench.comparison = wb.compare([bench.base], bench_task, rounds=6, examples=2, new_tokens=2, store=False)
    bench.listing.heard(deploy)
    assert bench.wait(TIMEOUT)
    assert "Nothing was measured" not in Path("exports/mine-transformers/README.md").read_text()


def test_text_from_outside_is_escaped_everywhere(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    example = {"prompt": XSS, "answer": XSS}
    task = wb.Task(name=XSS, scorer="f1", max_new_tokens=2, test=[{"id": str(i)} | example for i in range(2)])
    bench = Bench(wb.load(folders["llama"], device="cpu", dtype="float32", name=XSS), task)
    try:
        assert bench.add(bench.base.apply(prompt.System(text=XSS)).renamed("mine")) == "mine"
        monkeypatch.setattr(wb.Variant, "decode", lambda *_: XSS)
        bench.chat.prompt.value = XSS
        bench.chat.send.click()
        pane = bench.compare
        pane.rounds.value, pane.tokens.value = 1, 2
        pane.button.click()
        pane.diff.click()
        bench.listing.heard({"do": "rename", "name": "mine", "typed": XSS})
        assert bench.wait(TIMEOUT)
        assert bench.comparison
        shown = html(bench)
        assert "&lt;img" in shown
        for bad in ("<img", "<script"):
            assert bad not in shown
            assert bad not in pane.plot.value.encode().decode("unicode_escape")
        for each in everything(bench.widget):
            assert not getattr(each, "description_allow_html", False)
    finally:
        bench.close()


def test_rebuilding_leaks_nothing(base: wb.Variant, tiny_text: wb.Text, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)

    def build() -> tuple[int, int]:
        bench = Bench(base, tiny_text)
        bench._repr_mimebundle_()
        widgets.QuantizePanel(bench)._repr_mimebundle_()
        bench.add(base.apply(quantize.Int8()))
        bench.compare.diff.click()
        assert bench.wait(TIMEOUT)
        workers = [each for each in threading.enumerate() if each.name == "workbench-worker" and each.is_alive()]
        waiting = [each for each in threading.enumerate() if isinstance(each, threading.Timer)]  # of throttles
        for each in (*workers[:-1], *waiting):
            each.join(TIMEOUT)
        return len(alive), threading.active_count()

    counts = [build() for _ in range(5)]
    assert len(set(counts[1:])) == 1, counts
    last = Bench(base)
    before = len(alive)
    last.close()
    last.close()
    assert len(alive) < before
    assert not [each for each in alive.values() if isinstance(each, ipw.Button)]


def test_a_closed_bench_says_so(base: wb.Variant) -> None:
    bench = Bench(base)
    assert bench.wait(TIMEOUT)
    Bench(base).close()
    assert bench.closed
    with pytest.raises(InvalidInput, match="was closed"):
        bench.submit("Job", lambda progress: None)
    with pytest.raises(InvalidInput, match="was closed"):
        bench.add(base.apply(prompt.System()))


@pytest.mark.parametrize("wrong", [None, 1, "model"])
def test_only_variants_are_taken(bench: Bench, wrong: Any) -> None:
    with pytest.raises(InvalidInput):
        Bench(wrong)
    with pytest.raises(InvalidInput):
        bench.add(wrong)


def test_the_list_says_what_is_in_memory(bench: Bench) -> None:
    assert "of weights" in bench.listing.memory.value
    before = bench.listing.memory.value
    bench.add(bench.base.apply(quantize.Int8()))
    assert bench.listing.memory.value != before
    bench.base.apply(prune.Wanda(), bench.task)
    bench.submit("nothing", lambda progress: None)
    assert bench.wait(TIMEOUT)
    kept = units.size(calibration.kept_bytes())
    assert f"{kept} kept from calibration" in bench.listing.memory.value
