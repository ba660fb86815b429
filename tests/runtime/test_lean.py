"""Lean blocks say what transformers' own say, alone, side by side, and several tokens at once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import tiny_folder
from conftest import reference
from transformers import DynamicCache, PreTrainedModel

import workbench as wb
from workbench.models import sharing
from workbench.runtime import lean
from workbench.runtime.decoding import Continuation, Decoding
from workbench.runtime.engine import Eager
from workbench.runtime.kernels import quickened
from workbench.runtime.kvcache import GrowingLayer, new_cache
from workbench.runtime.prefix import Prefix
from workbench.runtime.slots import Slots
from workbench.runtime.trial import way_of
from workbench.steps import finetune, prune, quantize

SCALED = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "wide heads": ("llama", {"head_dim": 32, "num_key_value_heads": 1}),
    "a key a query": ("llama", {"num_key_value_heads": 4, "hidden_act": "gelu"}),
    "scaled": ("llama", {"rope_parameters": SCALED}),
    "dynamic": ("llama", {"rope_parameters": SCALED | {"rope_type": "dynamic"}, "max_position_embeddings": 32}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {"use_sliding_window": False}),
    "qwen3": ("qwen3", {}),
}


def loaded(path: Path, kind: str, tokenizer: Any, dtype: str = "float32") -> wb.Variant:
    name, more = KINDS[kind]
    return wb.load(tiny_folder(path / "model", name, tokenizer, **more), device="cpu", dtype=dtype)


def as_lean(model: PreTrainedModel) -> PreTrainedModel:
    shared = sharing.share(model)
    lean.lean(shared)
    return shared


@torch.no_grad()
def said(model: PreTrainedModel, pieces: list[int], rows: int = 1, cache: Any = None) -> torch.Tensor:
    """Logits of the same tokens in pieces of such lengths."""
    cache = DynamicCache(config=model.config) if cache is None else cache
    ids, at, found = (torch.arange(sum(pieces) * rows) * 7 % 150 + 3).view(rows, -1), 0, []
    for piece in pieces:
        found.append(model(input_ids=ids[:, at : at + piece], past_key_values=cache, use_cache=True).logits)
        at += piece
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_logits_as_transformers(kind: str, rows: int, tokenizer, tmp_path: Path) -> None:
    model = loaded(tmp_path, kind, tokenizer).model
    assert way_of(model).lean
    pieces = [17, 1, 1, 5, 1, 30, 1]
    torch.testing.assert_close(said(as_lean(model), pieces, rows), said(model, pieces, rows), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_in_sixteen_bits_as_near_as_rounding(kind: str, tokenizer, tmp_path: Path) -> None:
    exact = said(loaded(tmp_path, kind, tokenizer).model, [20, 1, 4])
    rounded = wb.load(tmp_path / "model", device="cpu", dtype="bfloat16").model
    own, theirs = ((said(each, [20, 1, 4]).float() - exact).norm() for each in (as_lean(rounded), rounded))
    assert own < 1.5 * theirs


@pytest.mark.parametrize("kind", ["biases", "qwen3"])
@torch.no_grad()
def test_rows_in_place_and_several_tokens_a_row(kind: str, tokenizer, tmp_path: Path) -> None:
    model = loaded(tmp_path, kind, tokenizer).model
    found = []
    for each in (model, as_lean(model)):
        slots = Slots(each, 2, 40)
        for length in (9, 21):
            cache = DynamicCache(config=each.config)
            each(input_ids=torch.arange(5, 5 + length)[None], past_key_values=cache, use_cache=True)
            slots.put(cache, 0, length)
        tokens = torch.tensor([[30, 31, 32], [40, 41, 42]])
        found.append(torch.cat([slots.logits(tokens), slots.logits(tokens[:, :1])], dim=1))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "more"), [("gpt2", {}), ("gemma", {}), ("mistral", {"sliding_window": 8})])
def test_others_are_left_as_they_are(name: str, more: dict[str, Any], tokenizer, tmp_path: Path) -> None:
    model = wb.load(tiny_folder(tmp_path / "model", name, tokenizer, **more), device="cpu", dtype="float32").model
    assert not way_of(model).lean
    assert not lean.fits(model)
    assert quickened(model) is model


@pytest.mark.parametrize(
    ("step", "tolerance"),
    [(quantize.Int8(), 0.1), (quantize.RTN(group_size=32), 0.1), (finetune.LoRA(), 1e-4), (prune.Width(), 1e-4)],
    ids=repr,
)
def test_layers_of_any_kind(step: wb.Step, tolerance: float, base: wb.Variant, tiny_task: wb.Task) -> None:
    model = base.apply(step, tiny_task).model
    quick = quickened(model)
    assert isinstance(quick.model, lean.LeanDecoder)
    found, expected = (said(each, [12, 1, 1, 3]) for each in (quick, model))
    assert (found - expected).norm() <= tolerance * expected.norm()  # some round what they are fed


def test_weights_are_followed_wherever_they_are_written(base: wb.Variant) -> None:
    model = base.model
    before = said(quickened(model), [6, 1])
    with torch.no_grad():
        for each in model.parameters():
            each.data = each.data * 1.5  # which torch counts nowhere
    assert not torch.allclose(said(quickened(model), [6, 1]), before)
    torch.testing.assert_close(said(quickened(model), [6, 1]), said(model, [6, 1]), rtol=1e-4, atol=1e-4)
    model.model.norm = torch.nn.Identity()
    assert quickened(model) is model


def test_whoever_listens_hears_every_layer(base: wb.Variant) -> None:
    heard: list[int] = []
    layer = base.model.model.layers[0].mlp.down_proj
    hook = layer.register_forward_hook(lambda *_: heard.append(1))
    base.generate("Rain", max_new_tokens=3)
    hook.remove()
    assert len(heard) == 3
    base.generate("Rain", max_new_tokens=3)
    assert len(heard) == 3


def test_dropout_of_a_part_in_training_is_that_of_the_model(base: wb.Variant, tiny_task: wb.Task) -> None:
    tuned = base.apply(finetune.LoRA(dropout=0.5), tiny_task)
    still = said(quickened(tuned.model), [12])
    tuned.model.train()
    torch.manual_seed(0)
    assert not torch.equal(said(quickened(tuned.model), [12]), still)
    tuned.model.eval()
    assert torch.equal(said(quickened(tuned.model), [12]), still)


@torch.no_grad()
def test_growing_keys_and_values_are_those_of_transformers(base: wb.Variant) -> None:
    ours, pieces = new_cache(base.model.config), [9, *[1] * 60]
    theirs = DynamicCache(config=base.model.config)
    assert torch.equal(said(base.model, pieces, 2, ours), said(base.model, pieces, 2, theirs))
    for count in (4, 1):
        for cache in (ours, theirs):
            cache.crop(-count)
            said(base.model, [1, 2], 2, cache)
    for mine, other in zip(ours.layers, theirs.layers, strict=True):
        assert isinstance(mine, GrowingLayer)
        assert torch.equal(mine.keys, other.keys)
        assert torch.equal(mine.values, other.values)


@torch.no_grad()
def test_two_answers_behind_one_beginning_do_not_write_into_each_other(base: wb.Variant) -> None:
    model, ids = base.model, list(range(5, 30))
    prefix = Prefix(model, ids)
    cache = prefix.expand(1)
    said(model, [1, 1, 1], 1, cache)  # has room of its own now
    longer = Prefix.of([*ids, 3, 10, 17], cache)
    found = [longer.cut(26).expand(1), longer.expand(1)]
    logits = [said(model, [2, 1], 1, each) for each in found]
    assert torch.equal(said(model, [2, 1], 1, longer.cut(26).expand(1)), logits[0])
    assert torch.equal(said(model, [2, 1], 1, longer.expand(1)), logits[1])


def test_a_batch_says_what_each_says_alone(base: wb.Variant) -> None:
    prompts = [base.encode(text) for text in ("Rain", "What is a lobster?", "How many seats does the boat have?")]

    def answers(chosen: list[list[int]]) -> list[list[int]]:
        rows = [Continuation(()) for _ in chosen]
        for _ in Eager().decode(base.model, chosen, Decoding(max_new_tokens=12), rows):
            pass
        return [row.ids for row in rows]

    assert answers(prompts) == [reference(base, each, 12) for each in prompts]
