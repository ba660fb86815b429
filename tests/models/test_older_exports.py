"""Exports, runs and comparisons of older versions are read; newer ones are refused in words.

`data/before_wings` was written by the workbench before its modules moved into wings: stages named by their module, the
bits of the cache among the decoding settings, caveats among the notes.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import workbench as wb
from workbench.core.errors import InvalidInput, WorkbenchError
from workbench.measurement.runs import RunStore
from workbench.models import export
from workbench.runtime.engine import Eager
from workbench.steps import context, output, prompt, retrieve
from workbench.steps.prompt.examples import Shots

BEFORE = Path(__file__).parents[1] / "data" / "before_wings"
EXPECTED = json.loads((BEFORE / "expected.json").read_text())
QUESTION = "How many seats does the ferry have?"


def test_an_export_of_before_is_what_it_was(tmp_path: Path) -> None:
    old = wb.load(BEFORE / "export", device="cpu")
    kinds = [prompt.System, prompt.Template, Shots, retrieve.Lookup, context.Truncate, output.Stop, prompt.Constrain]
    assert [type(each) for each in old.stages] == kinds
    assert [step.to_json() for step in old.recipe] == EXPECTED["recipe"]
    assert old.engine == Eager(cache_bits=8)
    again = wb.load(old.save(tmp_path / "again"), device="cpu")
    names = [each["stage"] for each in export.read_manifest(tmp_path / "again")["stages"]]
    assert names[:4] == ["prompt.System", "prompt.Template", "prompt.Shots", "retrieve.Lookup"]
    for variant in (old, again):
        with torch.no_grad():
            found = variant.model(torch.arange(3, 11)[None]).logits[0, -1, :8]
        assert torch.allclose(found, torch.tensor(EXPECTED["logits"]), atol=0.02, rtol=0.02)  # kernels differ
        here = tuple(each for each in variant.stages if not isinstance(each, retrieve.Lookup))  # its folder is gone
        asked = dataclasses.replace(variant, stages=here)
        assert asked.encode(QUESTION) == EXPECTED["prompt_ids"]
        assert list(asked.generate(QUESTION, max_new_tokens=12).token_ids) == EXPECTED["answer_ids"]


def test_runs_and_comparisons_of_before_are_read(tmp_path: Path) -> None:
    runs = list(RunStore(BEFORE / "runs.jsonl"))
    assert [run.variant for run in runs] == ["tiny", "System"]
    assert runs[1].steps.steps == (prompt.System(text="Be brief."),)
    old = wb.Comparison.load(BEFORE / "comparison.json")
    assert old.verdicts()["System"].words
    assert "Note" not in str(old.verdicts()["System"])
    assert [(run.layers, run.caveats, run.notes) for run in old.runs] == [
        ("dense", [], []), ("dense", [prompt.System.caveat], []),
    ]  # fmt: skip
    assert "System" in old._repr_html_()
    assert old.figure().data
    again = wb.Comparison.load(old.save(tmp_path / "again.json"))
    assert again.runs == old.runs


def changed(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """An export whose manifest says something else, its digest made anew."""
    shutil.copytree(BEFORE / "export", folder)
    manifest = json.loads((folder / export.MANIFEST).read_text())
    del manifest["digest"]
    change(manifest)
    (folder / export.MANIFEST).write_text(json.dumps(manifest | {"digest": export._digest(manifest)}))
    return folder


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "newer": (lambda it: it.update(format=export.FORMAT + 1), "newer workbench"),
    "no number": (lambda it: it.update(format="new"), "newer workbench"),
    "a stage that is gone": (lambda it: it["stages"].append({"stage": "steps.prompt.gone.Gone"}), "There is no stage"),
    "a step that is gone": (lambda it: it["recipe"].append({"step": "prune.Gone"}), "There is no step"),
    "somebody's step": (lambda it: it["recipe"].append({"step": "mine.Shout"}), "import the module that defines it"),
    "an engine that is gone": (lambda it: it.update(engine={"engine": "runtime.Gone"}), "There is no engine"),
    "a knob that is gone": (lambda it: it["recipe"].append({"step": "prompt.System", "tone": "loud"}), "has no 'tone'"),
    "a setting that is gone": (lambda it: it["decoding"].update(beams=4), "has no 'beams'"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_not_known_is_refused_before_anything_is_loaded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, why = CHANGES[name]
    folder = changed(tmp_path / "export", change)
    monkeypatch.setattr(export, "read_tensors", None)  # no weight is looked at
    with pytest.raises(InvalidInput, match=why) as caught:
        wb.load(folder)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_a_step_that_could_not_be_read_back_is_not_saved(base: wb.Variant, tmp_path: Path) -> None:
    class Draft(wb.Step):
        """Has no source, so nothing knows it by name."""

        def apply(self, variant: wb.Variant, task: object, progress: wb.Progress) -> wb.Variant:
            return variant.derive(self)

    with pytest.raises(WorkbenchError, match="paper"):
        base.apply(Draft()).save(tmp_path / "export")
    assert not (tmp_path / "export").exists()
