"""The step that bounds a batch."""

from pathlib import Path

import pytest
from architectures import tiny_folder

import workbench as wb
from workbench.core.errors import InvalidInput
from workbench.runtime.batching import Batched
from workbench.steps import quantize, runtime


def test_bounds_go_to_the_engine_and_along_with_it(base: wb.Variant) -> None:
    made = base.apply(runtime.Batch(rows=3, waiting=7, memory=5))
    assert made.engine == Batched(rows=3, waiting=7, memory=5)
    assert made.model is base.model
    assert made.notes == base.notes
    running = made.engine.running(made.model)
    assert running is not None
    again = made.apply(runtime.Batch(rows=4))
    assert again.engine == Batched(rows=4)
    packed = made.apply(quantize.KVCache(bits=8))
    assert packed.engine == Batched(rows=3, waiting=7, memory=5, cache_bits=8)
    assert packed.engine.running(packed.model) is None


def test_nothing_is_held_while_nobody_asks(base: wb.Variant) -> None:
    assert runtime.Batch(rows=1024).forecast(base).owned_bytes == 0
    made = base.apply(runtime.Batch(rows=1024))
    made.generate("one two", max_new_tokens=2)
    assert made.engine.held_bytes(made.model) == 0


def test_what_cannot_be_kept_row_by_row_says_so(tokenizer, tmp_path: Path) -> None:
    base = wb.load(tiny_folder(tmp_path / "mamba", "mamba", tokenizer), device="cpu", dtype="float32")
    assert runtime.Batch().forecast(base).owned_bytes == 0
    assert "take turns" in " ".join(base.apply(runtime.Batch()).notes)


def test_another_engine_is_not_replaced(base: wb.Variant) -> None:
    from dataclasses import replace

    from workbench.runtime.engine import ENGINES, Eager

    class Other(Eager):
        """Runs in a way of its own."""

    with pytest.raises(InvalidInput, match="apply Batch to its parent"):
        replace(base, engine=Other()).apply(runtime.Batch())
    ENGINES.pop(Other.full_name())
