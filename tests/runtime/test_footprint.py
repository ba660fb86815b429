"""What a pass reads and computes, against counts made by hand."""

from collections.abc import Callable

import pytest
import torch

import workbench as wb
from workbench.models import sharing
from workbench.runtime import footprint, offload
from workbench.runtime.footprint import count_pass, kv_bytes
from workbench.runtime.room import Room
from workbench.steps import finetune, quantize

# A tiny Llama: width 64, inner width 128, two blocks, four heads of 16, two of them for keys and values.
BLOCK = 64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 128 * 64
NORMS = 5 * 64


def head(variant: wb.Variant) -> int:
    return 64 * variant.model.config.vocab_size


def test_a_token_of_a_tiny_llama_by_hand(base: wb.Variant) -> None:
    found = count_pass(base.model, 1, 16)
    assert [(rows, layer.out_features) for layer, rows in found.products] == [
        *(2 * [(1, 64), (1, 32), (1, 32), (1, 64), (1, 128), (1, 128), (1, 64)]),
        (1, base.model.config.vocab_size),
    ]
    assert found.product_bytes == 4 * (2 * BLOCK + head(base))
    assert found.weight_bytes == found.product_bytes + 4 * (NORMS + 64)  # of the embedding only the token's row
    assert found.flops == 2 * (2 * BLOCK + head(base))


def test_reading_a_prompt_computes_the_head_once(base: wb.Variant) -> None:
    found = count_pass(base.model, 16)
    assert found.flops == 2 * (16 * 2 * BLOCK + head(base))
    assert found.product_bytes == 4 * (2 * BLOCK + head(base))


def test_rows_share_the_weights_and_multiply_the_rest(base: wb.Variant) -> None:
    one, four = count_pass(base.model, 1, 16), count_pass(base.model, 1, 16, rows=4)
    assert four.product_bytes == one.product_bytes
    assert four.flops == 4 * one.flops
    assert four.operations == one.operations
    assert 3 < four.other_bytes / one.other_bytes <= 4
    assert count_pass(base.model, 1, 64).other_bytes > one.other_bytes  # keys and values


def test_a_tied_head_is_read_whole_and_the_embedding_is_not(load_tiny: Callable[[str], wb.Variant]) -> None:
    variant = load_tiny("gpt2")
    found = count_pass(variant.model, 1, 16)
    blocks = sum(each.numel() for each in variant.model.transformer.h.parameters() if each.dim() > 1)
    biases = sum(each.numel() for each in variant.model.transformer.h.parameters() if each.dim() == 1)
    final = 2 * 64
    assert found.flops == 2 * (blocks + head(variant))
    assert found.weight_bytes == 4 * (blocks + biases + head(variant) + final + 64 + 64)  # a token's row, a place's


def test_packed_layers_read_their_codes_and_compute_as_many_products(base: wb.Variant) -> None:
    dense, packed = count_pass(base.model, 1, 16), count_pass(base.apply(quantize.Int8()).model, 1, 16)
    assert packed.flops == dense.flops
    outputs = 2 * (64 + 32 + 32 + 64 + 128 + 128 + 64) + base.model.config.vocab_size
    codes = 2 * BLOCK + head(base)
    assert codes <= packed.product_bytes <= codes + 8 * outputs  # a scale an output, perhaps in two types
    assert packed.operations > dense.operations


def test_adapters_are_two_more_products_inside_their_layer(base: wb.Variant, tiny_task: wb.Task) -> None:
    tuned = base.apply(finetune.LoRA(rank=2, epochs=0.1), tiny_task)
    dense, found = count_pass(base.model, 1, 16), count_pass(tuned.model, 1, 16)
    beside = sum(each.numel() for name, each in tuned.model.named_parameters() if "lora_" in name)
    assert found.flops == dense.flops + 2 * beside
    assert len(found.products) == len(dense.products)


def test_what_is_kept_elsewhere_is_read_all_the_same(base: wb.Variant) -> None:
    moved = sharing.share(base.model)
    for _, module, _ in offload.movable(moved):
        offload.hook(module, dict(offload._own(module)), torch.device("cpu"))
    found, wanted = count_pass(moved, 1, 16), count_pass(base.model, 1, 16)
    assert (found.product_bytes, found.weight_bytes) == (wanted.product_bytes, wanted.weight_bytes)
    assert found.flops == wanted.flops


@pytest.mark.parametrize(("bits", "size"), [(16, 64), (8, 20), (4, 12)])
def test_keys_and_values_by_hand(base: wb.Variant, bits: int, size: int) -> None:
    """Two blocks, keys and values, two heads of 16 numbers; packed ones have a scale and a least value of 16 bits."""
    assert kv_bytes(base.model, bits) == 2 * 2 * 2 * size


def test_a_batch_shrinks_to_what_is_free(base: wb.Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = footprint.rows_that_fit
    assert rows(base.model, 16, 100) == 16  # too little to look at what is free
    assert rows(base.model, 16, 1 << 14) == 16
    monkeypatch.setattr(footprint, "free_bytes", lambda device: Room(10**9, 4 * 512 * (1 << 14), 0))
    assert rows(base.model, 16, 1 << 14) == 2  # four would fill all that is free
    monkeypatch.setattr(footprint, "free_bytes", lambda device: Room(10**9, 0, 0))
    assert rows(base.model, 16, 1 << 14) == 1
    monkeypatch.setattr(footprint, "MANY", 0)  # answers are the same, one after another
    many = ["Rain", "What is a lobster?", "Tides"]
    prompts = [base.encode(each) for each in many]
    taken = [[] for _ in many]

    class Row:
        watches = ended = False

        def __init__(self, tokens: list[int]) -> None:
            self.tokens = tokens

        def restrict(self, logits: torch.Tensor) -> None:
            pass

        def take(self, token: int, chance: float | None = None) -> None:
            self.tokens.append(token)

    for _ in base.engine.decode(base.model, prompts, base.decoding.but(max_new_tokens=3), [*map(Row, taken)]):
        pass
    ends = base.end_tokens
    for text, found in zip(many, taken, strict=True):
        alone = base.generate(text, max_new_tokens=3).token_ids
        assert tuple(found[: len(alone)]) == tuple(alone)
        assert len(alone) == 3 or found[len(alone)] in ends


def test_counting_leaves_no_hook_and_no_number_changed(base: wb.Variant) -> None:
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        before = base.model(ids).logits
    count_pass(base.model, 1, 16)
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks
    with torch.no_grad():
        assert torch.equal(base.model(ids).logits, before)
