"""Kept beginnings: the same answers with less to read, within their bytes, and gone with the model."""

import asyncio
import gc
from collections.abc import Callable

import pytest
import torch
from conftest import ARCHITECTURES
from transformers import AutoModelForCausalLM, MistralConfig

import workbench as wb
from workbench.core.errors import InvalidInput
from workbench.models.identity import identity
from workbench.runtime.kept import Kept, kept
from workbench.runtime.prefix import Prefix
from workbench.steps import prompt, quantize, runtime

SYSTEM = {"role": "system", "content": "The tide comes in twice a day. Answer in one short sentence."}
FIRST = [SYSTEM, {"role": "user", "content": "What is a lobster?"}]
OTHER = [SYSTEM, {"role": "user", "content": "How many seats does the boat have?"}]


def read_tokens(variant: wb.Variant, counts: list[int]) -> None:
    """Note how many tokens every pass of the model reads."""
    variant.model.register_forward_pre_hook(
        lambda module, args, named: counts.append(named["input_ids"].numel()), with_kwargs=True
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_chat_is_answered_as_without_and_read_once(load_tiny: Callable[[str], wb.Variant], architecture: str) -> None:
    base = load_tiny(architecture)
    cached = base.apply(runtime.PrefixCache())
    counts: list[int] = []
    read_tokens(cached, counts)
    chat = list(FIRST)
    for question in ("And a cat?", "Why?"):
        plain, kept_answer = base.generate(chat, max_new_tokens=6), cached.generate(chat, max_new_tokens=6)
        assert kept_answer.token_ids == plain.token_ids
        chat += [{"role": "assistant", "content": plain.text}, {"role": "user", "content": question}]
    assert cached.generate(chat, max_new_tokens=6).token_ids == base.generate(chat, max_new_tokens=6).token_ids
    prompts = [len(cached.encode(chat[:turns])) for turns in (2, 4, 6)]
    reads = [count for count in counts if count > 1]  # of the prompts; answers are read token by token
    assert reads[0] == prompts[0]
    assert reads[2] < prompts[2] / 2
    statistics = kept(cached.model)
    assert (statistics.asked, statistics.hits, statistics.saved) == (3, 2, sum(prompts) - sum(reads))


def test_the_answer_itself_is_not_read_again(base: wb.Variant) -> None:
    """The tokens of the answer are those of the next prompt here, so only what follows is left."""
    cached, counts = base.apply(runtime.PrefixCache()), list[int]()
    ids = cached.encode(FIRST)
    answer = cached.generate(FIRST, max_new_tokens=6)
    read_tokens(cached, counts)
    found = kept(cached.model).longest([*ids, *answer.token_ids])
    assert found is not None
    assert found.ids == (*ids, *answer.token_ids[:-1])  # the last token was said, not read


@pytest.mark.parametrize("bits", [8, 4])
def test_packed_keys_are_kept_packed(base: wb.Variant, bits: int) -> None:
    packed = base.apply(quantize.KVCache(bits=bits))
    both = packed.apply(runtime.PrefixCache())
    assert both.engine.cache_bits == bits
    for chat in (FIRST, OTHER, FIRST):
        assert both.generate(chat, max_new_tokens=8).token_ids == packed.generate(chat, max_new_tokens=8).token_ids
    full = base.apply(runtime.PrefixCache())
    full.generate(FIRST, max_new_tokens=8)
    full.generate(OTHER, max_new_tokens=8)
    assert 0 < both.engine.held_bytes(both.model) < full.engine.held_bytes(full.model) / 2
    later = full.apply(quantize.KVCache(bits=bits))  # the same model, other keys
    assert later.generate(FIRST, max_new_tokens=8).token_ids == packed.generate(FIRST, max_new_tokens=8).token_ids


def test_a_batch_reads_what_it_shares_once_and_never_again(base: wb.Variant, tiny_task: wb.Task) -> None:
    from workbench.measurement.scores import generate_answers

    plain = base.apply(prompt.System(text="The tide comes in twice a day, and goes out twice a day."))
    cached, counts = plain.apply(runtime.PrefixCache()), list[int]()
    wanted = [each.token_ids for each in generate_answers(plain, tiny_task, tiny_task.test)]
    read_tokens(cached, counts)
    assert [each.token_ids for each in generate_answers(cached, tiny_task, tiny_task.test)] == wanted
    first, counts[:] = list(counts), []
    assert [each.token_ids for each in generate_answers(cached, tiny_task, tiny_task.test[:4])] == wanted[:4]
    assert len(kept(cached.model)) == 1, "rows of a batch push nothing out"
    assert first[0] not in counts, "the beginning"


def test_requests_that_come_at_once_continue_from_what_was_read(base: wb.Variant) -> None:
    plain = base.apply(prompt.System(text="The tide comes in twice a day, and goes out twice a day. " * 8))
    cached, counts = plain.apply(runtime.PrefixCache()), list[int]()
    asked = ["one two", "three four five", "six"]

    async def all_of(variant: wb.Variant, questions: list[str]) -> list[tuple[int, ...]]:
        answers = await asyncio.gather(*(variant.agenerate(each, max_new_tokens=6) for each in questions))
        return [each.token_ids for each in answers]

    wanted = asyncio.run(all_of(plain, asked))
    read_tokens(cached, counts)
    assert asyncio.run(all_of(cached, asked[:1])) == wanted[:1]
    first, counts[:] = sum(counts), []
    assert asyncio.run(all_of(cached, asked)) == wanted
    assert sum(counts) < first, "all three read less than the first of them alone"
    assert cached.generate(asked[1], max_new_tokens=6).token_ids == wanted[1]
    assert asyncio.run(all_of(cached, asked[1:2])) == wanted[1:2]


def test_samples_of_one_request_continue_from_its_prompt(base: wb.Variant) -> None:
    voting = base.apply(prompt.SelfConsistency(answers=3))
    cached = voting.apply(runtime.PrefixCache())
    for _ in range(2):
        assert cached.generate(FIRST, max_new_tokens=8).text == voting.generate(FIRST, max_new_tokens=8).text
    assert kept(cached.model).hits == 1


def prefix(model: torch.nn.Module, ids: list[int]) -> Prefix:
    with torch.no_grad():
        return Prefix(model, ids)


def test_the_least_recently_used_goes_first(base: wb.Variant) -> None:
    model, rows = base.model, [list(range(start, start + 20)) for start in (10, 50, 90)]
    size = prefix(model, rows[0]).nbytes
    # Two layers, keys and values, two heads of 16 numbers in float32.
    assert size == 2 * 2 * 2 * 16 * 4 * 20
    store = Kept()
    store.keep(prefix(model, rows[0]), 2 * size)
    store.keep(prefix(model, rows[1]), 2 * size)
    assert store.longest([*rows[0], 7]).ids == tuple(rows[0])
    store.keep(prefix(model, rows[2]), 2 * size)
    assert (len(store), store.nbytes, store.evicted) == (2, 2 * size, 1)
    assert store.longest([*rows[1], 7]) is None
    assert store.longest([*rows[2][:12], 7, 8]).ids == tuple(rows[2][:12])
    assert (store.asked, store.hits, store.saved) == (3, 2, 32)


def test_what_goes_on_takes_the_place_of_its_beginning(base: wb.Variant) -> None:
    ids, store = list(range(10, 40)), Kept()
    store.keep(prefix(base.model, ids[:20]), 1 << 20)
    store.keep(prefix(base.model, ids), 1 << 20)
    store.keep(prefix(base.model, ids[:25]), 1 << 20)
    assert len(store) == 1
    assert store.longest(ids).length == 30


def test_what_is_too_long_is_kept_as_far_as_it_fits(base: wb.Variant) -> None:
    ids, store = list(range(10, 40)), Kept()
    whole = prefix(base.model, ids)
    store.keep(whole, whole.nbytes // 2)
    assert store.longest([*ids, 3]).ids == tuple(ids[:15])
    assert store.nbytes == whole.nbytes // 2
    assert store._entries[0].prefix.expand(1).layers[0].keys.untyped_storage().nbytes() < whole.nbytes / 4
    store.keep(prefix(base.model, ids[1:]), 100)
    assert len(store) == 1


def test_short_beginnings_are_not_worth_it(base: wb.Variant) -> None:
    store = Kept()
    store.keep(prefix(base.model, list(range(10, 40))), 1 << 20)
    assert store.longest([10, 11, 12, 13, 14, 15, 16, 3]) is None


def test_a_changed_weight_forgets(base: wb.Variant) -> None:
    cached = base.apply(runtime.PrefixCache())
    cached.generate(FIRST, max_new_tokens=4)
    name = identity(cached.model)
    assert name == identity(base.model)
    head = cached.model.lm_head
    old = head.weight
    head.weight = torch.nn.Parameter(old.detach() * 1.5, requires_grad=False)
    assert identity(cached.model) != name
    cached.generate(FIRST, max_new_tokens=4)
    assert kept(cached.model).hits == 0
    head.weight = old
    assert identity(cached.model) == name
    with torch.no_grad():
        layer = cached.model.model.layers[0]
        layer.mlp.up_proj.weight = torch.nn.Parameter(layer.mlp.up_proj.weight.clone(), requires_grad=False)
        layer.mlp.up_proj.weight[3, 5] += 1  # one number of thousands, written in place
    assert identity(cached.model) != name
    cached.generate(FIRST, max_new_tokens=4)
    assert kept(cached.model).hits == 0


def test_closing_gives_all_of_it_back(base: wb.Variant) -> None:
    from workbench.runtime import kept as module

    gc.collect()
    before = len(module._kept)
    cached = base.apply(runtime.PrefixCache())
    cached.generate(FIRST, max_new_tokens=4)
    assert cached.engine.held_bytes(cached.model) > 0
    assert base.engine.held_bytes(base.model) == 0
    assert len(module._kept) == before + 1
    cached.close()
    gc.collect()
    assert len(module._kept) == before


def test_sizes_out_of_range_are_refused(base: wb.Variant) -> None:
    with pytest.raises(InvalidInput, match="megabytes"):
        runtime.PrefixCache(megabytes=0)
    with pytest.raises(InvalidInput, match="prefix_bytes"):
        type(base.engine)(prefix_bytes=-1)


def test_a_model_that_forgets_is_refused(tokenizer, tmp_path) -> None:
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, sliding_window=8, max_position_embeddings=64,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    with pytest.raises(InvalidInput, match="cannot go on from a part"):
        wb.load(tmp_path / "m", device="cpu").apply(runtime.PrefixCache())
