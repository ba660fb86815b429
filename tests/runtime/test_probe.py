"""What a device can do: tried once, remembered, and never believed when damaged."""

from pathlib import Path

import pytest
import torch

import workbench as wb
from workbench.core.errors import InvalidInput
from workbench.runtime import probe
from workbench.runtime.footprint import count_pass
from workbench.runtime.probe import Device, Products, this_device, without_products

CPU = torch.device("cpu")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(probe, "_found", {})
    monkeypatch.setattr(probe, "LARGEST", 1 << 22)
    monkeypatch.setattr(probe, "SIZES", (64,))
    return tmp_path / "devices"


def test_it_is_tried_once_and_remembered_on_this_machine(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = this_device(CPU)
    assert found.bandwidth > 0
    assert found.flops["float32"] > 0
    assert found.call > 0
    assert found.source == probe.MEASURED
    assert not found.overlaps
    (place,) = cache.iterdir()
    monkeypatch.setattr(probe, "_found", {})  # as a new kernel knows nothing
    monkeypatch.setattr(probe, "_tried", lambda device: pytest.fail("it was tried again"))
    assert this_device(CPU) == found
    assert place.exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"name": "x"}', '{"name": "x", "bandwidth": 0}', '{"name": "x", "bandwidth": 1.0}']
)
def test_a_damaged_or_foreign_memory_is_tried_again(cache: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    this_device(CPU)
    (place,) = cache.iterdir()
    place.write_text(text)
    monkeypatch.setattr(probe, "_found", {})
    assert this_device(CPU).source == probe.MEASURED
    assert '"call"' in place.read_text()


def test_other_threads_are_another_device(cache: Path) -> None:
    this_device(CPU)
    torch.set_num_threads(2)
    this_device(CPU)
    assert len(list(cache.iterdir())) == 2


def test_a_device_is_checked() -> None:
    for wrong in ({"bandwidth": 0}, {"bandwidth": 1e9, "flops": {"int8": -1.0}}, {"bandwidth": 1e9, "call": -1}):
        with pytest.raises(InvalidInput):
            Device(name="mine", **wrong)
    mine = Device(name="mine", bandwidth=1e9, flops={"bfloat16": 2e9})
    assert mine.rate("float16") == mine.rate("float32") == 2e9
    assert Device(name="none", bandwidth=1e9).rate("float32") == float("inf")
    assert mine == Device(name="mine", bandwidth=1e9, flops={"bfloat16": 2e9})
    assert hash(mine) == hash(Device(name="mine", bandwidth=1e9, flops={"bfloat16": 2e9}))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "gemma"])
def test_products_run_by_themselves_and_the_rest_without_them(load_tiny, architecture: str) -> None:
    model = load_tiny(architecture).model
    work = count_pass(model, 1, 16)
    empty = without_products(model, work)
    count_pass(empty, 1, 16)  # the first time makes what it gives
    again = count_pass(empty, 1, 16)
    assert not again.products
    assert again.operations == work.operations - work.product_operations
    assert count_pass(model, 1, 16).product_bytes == work.product_bytes  # the model itself has all its products
    with torch.no_grad():
        Products(work, model.dtype, model.device, rows=3).run()


def test_the_rest_of_a_packed_model_runs(base: wb.Variant) -> None:
    from workbench.steps import quantize

    model = base.apply(quantize.RTN()).model
    work = count_pass(model, 1, 16)
    assert not count_pass(without_products(model, work), 1, 16).products
