"""Every candidate gives what its format says, whichever is the fastest here; trials are remembered and shared."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from workbench.models import packed
from workbench.models.packed import products

ROWS = (1, 3, 4, 17, 70, 300)
SHAPES = [(96, 128), (128, 1536), (33, 77), (2048, 64)]
FORMATS = ("int8", "int8 dynamic", "fp8", "3 bits", "4 bits", "4 bits, whole rows")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def packed_as(kind: str, out: int, columns: int) -> packed.PackedLinear:
    weight = draw(out, columns)
    if "bits" not in kind:
        made = {"int8": packed.Int8Linear, "int8 dynamic": packed.Int8DynamicLinear, "fp8": packed.FP8Linear}[kind]
        return made.pack(weight, None)
    bits, size = int(kind[0]), 0 if "whole" in kind else 32
    groups = -(-columns // (size or columns))
    codes = torch.randint(2**bits, (out, columns), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return packed.GroupLinear.from_codes(codes, draw(out, groups, seed=2).abs() + 0.1, None, None, bits, size)


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder and a memory of its own."""
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(products, "_found", {})
    return


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", FORMATS)
def test_every_candidate_gives_what_the_weight_says(kind: str, shape: tuple[int, int]) -> None:
    layer = packed_as(kind, *shape)
    weight = layer.dequantize().double()
    for count in ROWS:
        x = draw(count, shape[1], seed=count)
        meant = x.double()
        if kind == "int8 dynamic":  # activations rounded to 8 bits, token by token, are what the format says
            scale = x.abs().amax(dim=1, keepdim=True) / 127
            meant = (x / scale).round().double() * scale.double()
        wanted = meant @ weight.T
        size = (meant.square() @ weight.square().T).sqrt()
        for name in layer.products(products.rows_tried(count)):
            with products.forced(name):
                off = (layer(x).double() - wanted).abs() / size
            # Activations, weights and result are rounded to 8 bits at most, each by 2^-9 of itself.
            assert off.square().mean().sqrt() < 0.006, (name, count)
            if "integer product" in name or (kind != "3 bits" and "float32" in name and "4 bits" not in kind):
                assert off.max() < 1e-3, (name, count)


def test_integers_that_would_saturate_are_exact() -> None:
    for kind in ("int8", "int8 dynamic"):
        layer = packed_as(kind, 96, 128)
        layer.weight.fill_(127)
        layer.scale.fill_(1.0)
        for count in ROWS:
            for name in layer.products(products.rows_tried(count)):
                with products.forced(name):
                    got = layer(torch.full((count, 128), -127.0))
                assert torch.allclose(got, torch.full((count, 96), -127.0 * 127 * 128), rtol=2**-8), (kind, name)


def test_the_fastest_is_chosen_and_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, asked = packed_as("int8", 96, 128), []
    times = {"int8 kernel": 3.0, "widened to float32": 1.0, "two integer products": 2.0, "widened to bfloat16": 2.0}

    def seconds(product: products.Product, like: object, rows: Tensor) -> float:
        name = next(name for name, each in layer.products(len(rows)).items() if each is product)
        asked.append(name)
        return times[name]

    monkeypatch.setattr(products, "_seconds", seconds)
    found = products.trial(layer, 1, torch.float32)
    assert found.chosen == "widened to float32"
    assert found.seconds == {name: times[name] for name in layer.products(1)}
    count = len(asked)
    layer(draw(1, 128))
    assert layer.uses[1, torch.float32] is layer.products(1)["widened to float32"]
    packed_as("int8", 96, 128)(draw(1, 128))
    assert len(asked) == count, "another layer of the shape is not tried again"


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"int8 kernel": 1.0}', '{"other": "x"}', "\0"])
def test_a_damaged_memory_is_made_anew(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "WORTH_KEEPING", 0.0)
    layer = packed_as("4 bits", 128, 256)
    first = products.trial(layer, 4, torch.float32)
    file, *others = (tmp_path / "products").iterdir()
    assert not others
    products.forget()
    assert products.trial(layer, 4, torch.float32) == first, "read, not tried again"
    file.write_text(damage)
    products.forget()
    again = products.trial(layer, 4, torch.float32)
    assert again.seconds.keys() == first.seconds.keys()
    products.forget()
    assert products.trial(layer, 4, torch.float32) == again


def test_a_folder_that_cannot_be_written_costs_a_trial_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "products").write_text("in the way")
    monkeypatch.setattr(products, "WORTH_KEEPING", 0.0)
    layer = packed_as("int8", 96, 128)
    assert layer(draw(2, 128)).isfinite().all()


def test_a_wide_weight_is_tried_by_its_first_outputs() -> None:
    for kind in ("int8", "3 bits", "4 bits"):
        layer = packed_as(kind, 256, 128)
        like, x = layer.samples(128)[0], draw(2, 128)
        assert like is not layer
        assert layer.samples(256)[0].get_buffer("weight") is layer.get_buffer("weight")
        for name, product in like.products(4).items():
            with products.forced(name):
                assert torch.allclose(product(like, x).float(), layer(x)[:, :128], rtol=1e-3, atol=1e-3)
        assert layer.out_features == 256
        assert layer(x).shape == (2, 256)
