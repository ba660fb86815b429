"""Of the ways to run a variant the fastest is kept that says the same."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest

import workbench as wb
from workbench.core.errors import InvalidInput, NotAvailable
from workbench.core.listed import Listed
from workbench.measurement.agreement import agreement
from workbench.recipe import REGISTRY
from workbench.runtime.decoding import Continuation
from workbench.runtime.engine import ENGINES, Eager, Engine
from workbench.step import Forecast, Step
from workbench.steps import runtime

SAID: dict[tuple[tuple[int, ...], int], list[int]] = {}


class Recalled(Eager):
    """Computes an answer once, and is at once with it from then on."""

    shift: int = 0

    def decode(self, model: Any, prompts: Sequence[Sequence[int]], settings: Any, rows: Any, *_: Any, **__: Any) -> Any:
        key = tuple(prompts[0]), settings.max_new_tokens
        if key not in SAID:
            row = Continuation(())
            list(Eager().decode(model, prompts[:1], settings, [row]))
            SAID[key] = row.ids
        for token in SAID[key]:
            for row in rows:
                row.take((token + self.shift) % model.config.vocab_size)
            yield


class Absent(Engine):
    """Needs something that is not here."""

    def fitted(self, *_: Any) -> Engine:
        raise NotAvailable("It needs a library: install it.")


class _Way(Step):
    """A way to run it, made up."""

    contends: ClassVar[bool] = True
    engine: ClassVar[Engine] = Eager()
    seconds: ClassVar[float] = 0.0

    def forecast(self, variant: wb.Variant) -> Forecast:
        return replace(super().forecast(variant), seconds=self.seconds)

    def apply(self, variant: wb.Variant, task: Any, progress: Any) -> wb.Variant:
        return variant.derive(self, engine=self.engine)


class Quick(_Way):
    """Says the same, faster."""

    paper: ClassVar[str] = "https://example.org"
    engine: ClassVar[Engine] = Recalled()


class Wrong(_Way):
    """Fast, but says something else."""

    paper: ClassVar[str] = "https://example.org"
    engine: ClassVar[Engine] = Recalled(shift=1)


class Late(_Way):
    """Takes an hour to make ready."""

    paper: ClassVar[str] = "https://example.org"
    seconds: ClassVar[float] = 3600.0


class Refuses(_Way):
    """Does not run such a model."""

    paper: ClassVar[str] = "https://example.org"

    def apply(self, variant: wb.Variant, task: Any, progress: Any) -> wb.Variant:
        raise InvalidInput("No such model: use another.")


OWN = {kind.full_name(): kind for kind in (Quick, Wrong, Late, Refuses)}
for name in OWN:
    REGISTRY.pop(name)


@pytest.fixture(autouse=True)
def _only_these(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[None]:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    kept = dict(REGISTRY)
    for each in [name for name, kind in REGISTRY.items() if getattr(kind, "contends", False)]:
        REGISTRY.pop(each)
    yield
    REGISTRY.clear()
    REGISTRY.update(kept)
    SAID.clear()


def test_the_fastest_that_says_the_same_is_kept_and_remembered(base: wb.Variant) -> None:
    REGISTRY.update(OWN)
    made = base.apply(runtime.Auto(tokens=8))
    assert made.engine == Recalled()
    assert [each.label for each in made.recipe] == ["Auto"]
    (note,) = made.notes
    assert note.startswith("Kept Quick. Tried Quick: ")
    assert "as it is: " in note
    assert "Wrong: 3 of 3 answers differ, first by" in note
    assert "Late: not tried, making it ready takes about 3600 s (raise patience)" in note
    assert "Refuses: not possible (No such model: use another)" in note
    assert (note.heading, note.columns) == ("Kept Quick.", ("Way to run it", "Tokens/s", "What was found"))
    rows = {name: (rate, said) for name, rate, said in note.rows}
    assert next(iter(rows)) == "Quick"  # the fastest first
    assert rows["Late"] == ("–", "not tried, making it ready takes about 3600 s (raise patience)")
    assert float(rows["Quick"][0]) > float(rows["as it is"][0])
    assert (
        made.generate("What is the tide?", max_new_tokens=8).token_ids
        == base.generate("What is the tide?", max_new_tokens=8).token_ids
    )
    assert base.apply(runtime.Auto(tokens=8)).notes == made.notes  # nothing was timed again


def test_what_was_tried_is_shown_as_a_table(base: wb.Variant) -> None:
    REGISTRY.update(OWN)
    made = base.apply(runtime.Auto(tokens=8))
    page = replace(made, notes=(*made.notes, "<img src=x>")).renamed("quick")._repr_html_()
    assert "<b>quick</b>" in page
    assert "Kept Quick.<table>" in page
    assert page.count("<tr>") == 1 + len(made.notes[0].rows)
    assert '<td class="wb-words">not possible (No such model: use another)</td>' in page
    assert "<img" not in page
    assert "&lt;img" in page
    hostile = Listed("<i>", "<i>", ("<i>",), (("<script>",),))
    assert not re.search("<i>|<script>", replace(made, notes=(hostile,))._repr_html_())
    assert "note: Kept Quick. Tried Quick: " in repr(made)  # plain text says it in a sentence


def test_nothing_changes_where_nothing_else_is_there(base: wb.Variant) -> None:
    made = base.apply(runtime.Auto(tokens=8))
    assert made.engine == base.engine
    assert made.notes[0].startswith("Kept as it is. Tried as it is: ")


def test_a_first_difference_is_weighed(base: wb.Variant) -> None:
    assert agreement(base, base, ["What is rain?"], 6).gaps == (0.0,)
    other = agreement(base, replace(base, engine=Recalled(shift=1)), ["What is rain?", "Snow"], 6)
    assert not other.holds
    assert other.same == 0
    logits = base.model(base.model.dummy_inputs["input_ids"][:0].new_tensor([base.encode("Snow")])).logits[0, -1]
    best = int(logits.argmax())
    wanted = float(logits[best] - logits[(best + 1) % len(logits)])
    assert other.gaps[1] == pytest.approx(wanted, rel=1e-4)


def test_an_export_runs_plainly_where_its_engine_is_not_there(base: wb.Variant, tmp_path: Any) -> None:
    folder = replace(base, engine=Absent()).save(tmp_path / "export")
    loaded = wb.load(folder)
    assert loaded.engine == Eager()
    assert loaded.notes == ("It is run in the plain way here. It needs a library: install it.",)


def teardown_module() -> None:
    for kind in (Recalled, Absent):
        ENGINES.pop(kind.full_name(), None)
