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


def test_the_forecast_is_what_the_rows_may_hold(base: wb.Variant) -> None:
    config = base.model.config
    token = 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim  # keys, values; float32
    row = config.max_position_embeddings * token
    assert runtime.Batch(rows=3).forecast(base).owned_bytes == 3 * row
    many = runtime.Batch(rows=1024, memory=1)  # a megabyte, or one row where that is more
    assert many.forecast(base).owned_bytes == max(1_000_000, row) < 1024 * row
    assert many.forecast(base).seconds == 0
    packed = runtime.Batch(rows=3).forecast(base.apply(quantize.KVCache(bits=8)))
    assert packed.owned_bytes == 3 * row * (config.head_dim + 4) // (4 * config.head_dim)  # with scale and least


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
