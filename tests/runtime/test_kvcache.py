"""The packed key-value cache: rounding, sizes, and the same bytes however the tokens come."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from conftest import ARCHITECTURES
from transformers import DynamicCache, MistralConfig
from transformers.cache_utils import DynamicSlidingWindowLayer

import workbench as wb
from workbench.core.errors import InvalidInput
from workbench.measurement import memory
from workbench.measurement.likelihood import likelihoods
from workbench.runtime.decoding import Continuation, Decoding
from workbench.runtime.engine import Eager
from workbench.runtime.kvcache import GROUP, GrowingLayer, PackedLayer, new_cache, pack, unpack
from workbench.runtime.reader import Span
from workbench.steps import prompt, quantize

every_model = pytest.mark.parametrize("architecture", ARCHITECTURES)
every_width = pytest.mark.parametrize("bits", [8, 4])


def read(variant: wb.Variant, pieces: list[list[int]], bits: int) -> DynamicCache:
    """The cache after reading the pieces one after another."""
    cache = new_cache(variant.model.config, bits)
    with torch.no_grad():
        for piece in pieces:
            variant.model(input_ids=torch.tensor([piece]), past_key_values=cache, use_cache=True)
    return cache


@every_width
@pytest.mark.parametrize("head", [64, 32, 16, 17, 80])
def test_rounding_is_off_by_half_a_step(bits: int, head: int) -> None:
    states = torch.randn(2, 3, 5, head) * torch.logspace(-3, 3, 5)[:, None] + 1
    packed = pack(states, bits)
    group = GROUP if head % GROUP == 0 else head
    assert packed.dtype == torch.uint8
    assert packed.shape == (2, 3, 5, 4 * head // group + bits * -(-head // 8))
    back = unpack(packed, bits, head)
    grouped = states.unflatten(-1, (-1, group))
    extent = grouped.amax(-1, keepdim=True) - grouped.amin(-1, keepdim=True)
    off = (back - states).abs().unflatten(-1, (-1, group))
    # The least value and the step are rounded to 11 bits.
    assert (off <= extent / (2**bits - 1) * 0.51 + grouped.abs().amax(-1, keepdim=True) / 1000).all()


@every_width
def test_a_constant_group_and_a_huge_one_stay_finite(bits: int) -> None:
    for value in (0.0, 1.5, -3e-9, 70000.0):
        back = unpack(pack(torch.full((1, 1, 2, 32), value), bits), bits, 32)
        assert back.isfinite().all()
        assert (back - value).abs().max() <= abs(value) * 0.2 + 1e-7  # float16 ends there


@every_width
def test_tokens_do_not_depend_on_each_other(bits: int) -> None:
    keys, values = torch.randn(2, 3, 9, 32), torch.randn(2, 3, 9, 32)
    whole, stepwise = PackedLayer(bits), PackedLayer(bits)
    at_once = whole.update(keys, values)
    for token in range(9):
        grown = stepwise.update(keys[:, :, token : token + 1], values[:, :, token : token + 1])
        assert torch.equal(grown[0], at_once[0][:, :, : token + 1])
    assert torch.equal(whole.keys, stepwise.keys)
    assert torch.equal(whole.values, stepwise.values)
    assert whole.get_seq_length() == stepwise.get_seq_length() == 9
    stepwise.crop(-4)
    assert torch.equal(stepwise.keys, whole.keys[:, :, :5])


@every_width
@every_model
def test_reading_at_once_and_in_pieces_keeps_the_same_cache(
    load_tiny: Callable[[str], wb.Variant], architecture: str, bits: int
) -> None:
    variant = load_tiny(architecture)
    ids = variant.encode("What is a lobster?")
    whole, pieces = read(variant, [ids], bits), read(variant, [ids[:5], *([token] for token in ids[5:])], bits)
    for ours, theirs in zip(whole.layers, pieces.layers, strict=True):
        assert isinstance(ours, PackedLayer)
        # A product of one row may differ from that of many in the last bit, which now and then is another code.
        head = variant.model.config.head_dim if hasattr(variant.model.config, "head_dim") else 16
        steps = (unpack(ours.keys, bits, head) - unpack(theirs.keys, bits, head)).abs()
        assert (steps > 1e-3).float().mean() < 0.02


@every_width
@every_model
def test_a_padded_batch_and_a_prefix_answer_as_each_prompt_alone(
    load_tiny: Callable[[str], wb.Variant], architecture: str, bits: int
) -> None:
    variant, settings = load_tiny(architecture), Decoding(max_new_tokens=8)
    start = variant.encode("What is a lobster? " * 3)
    rows = [variant.encode(text) for text in ("Rain", "How many seats does the boat have?")]

    def answers(prompts: list[list[int]]) -> list[list[int]]:
        found = [Continuation(()) for _ in prompts]
        for _ in Eager(cache_bits=bits).decode(variant.model, prompts, settings, found):
            pass
        return [each.ids for each in found]

    for prompts in (rows, [start + row for row in rows]):  # padded; behind a prefix, too
        assert answers(prompts) == [answers([each])[0] for each in prompts]


def test_sixteen_bits_change_nothing(base: wb.Variant) -> None:
    assert all(type(each) is GrowingLayer for each in new_cache(base.model.config).layers)
    assert base.engine == Eager(cache_bits=16)


def test_sliding_windows_stay_as_they_are() -> None:
    config = MistralConfig(num_hidden_layers=2, sliding_window=8)
    assert all(type(layer) is DynamicSlidingWindowLayer for layer in new_cache(config, 4).layers)


@every_width
def test_the_step_shares_every_weight_and_is_saved(base: wb.Variant, tmp_path, bits: int) -> None:
    child = base.apply(quantize.KVCache(bits=bits))
    assert child.model is base.model
    assert (child.owned_bytes, child.total_bytes) == (0, base.total_bytes)
    assert child.engine == Eager(cache_bits=bits)
    assert child.decoding == base.decoding
    assert base.engine.cache_bits == 16
    again = wb.load(child.save(tmp_path / "export"))
    assert again.engine.cache_bits == bits
    assert again.generate("Rain", max_new_tokens=12).token_ids == child.generate("Rain", max_new_tokens=12).token_ids
    both = base.apply(quantize.Int8()).apply(quantize.KVCache(bits=bits)).apply(prompt.System(text="Hm."))
    assert both.engine.cache_bits == bits


def test_other_widths_are_refused(base: wb.Variant) -> None:
    with pytest.raises(InvalidInput, match="bits"):
        quantize.KVCache(bits=3)
    with pytest.raises(InvalidInput, match="cache_bits"):
        Eager(cache_bits=2)


def test_likelihoods_are_read_through_the_packed_cache(base: wb.Variant) -> None:
    ids = base.encode("The tide comes in twice a day and goes out twice a day. " * 3)
    alone = [Span(tuple(ids[:1]), tuple(ids[1:]))]  # no prefix
    shared = [Span(tuple(ids[:20]), tuple(ids[20:])), Span(tuple(ids[:20]), tuple(ids[21:]))]
    variants = [base, *(base.apply(quantize.KVCache(bits=bits)) for bits in (8, 4))]
    for spans in (alone, shared):
        _, eight, four = likelihoods(variants, [spans] * 3)
        assert 0 < sum(eight.kl) < sum(four.kl)
        assert sum(eight.kl) / sum(eight.tokens) < 0.01
    # The reader sees what token by token decoding sees.
    for bits in (8, 4):
        cache, expected = new_cache(base.model.config, bits), 0.0
        with torch.no_grad():
            for token, following in pairwise(ids):
                out = base.model(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True)
                expected -= float(out.logits[0, -1].log_softmax(-1)[following])
        found = likelihoods([variants[1 if bits == 8 else 2]], [alone])[0].nll[0]
        assert found == pytest.approx(expected, rel=0.003)


def test_a_long_context_takes_less_memory(base: wb.Variant) -> None:
    text = "The tide comes in twice a day. " * 30

    def beside_weights(bits: int) -> int:
        child = base if bits == 16 else base.apply(quantize.KVCache(bits=bits))
        return memory.peak_memory(child, text, 8) - child.total_bytes

    full, eight, four = map(beside_weights, (16, 8, 4))
    assert four < eight < full
