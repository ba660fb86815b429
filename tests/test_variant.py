"""A variant answers, counts its memory, and gives it back."""

import dataclasses
import gc
from collections.abc import Callable

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import workbench as wb
from workbench.answering.request import Request
from workbench.core.errors import Closed, InvalidInput, WorkbenchError
from workbench.models import sharing
from workbench.runtime.engine import Eager
from workbench.steps import prompt, quantize
from workbench.variant import live

QUESTION = "What is a lobster?"


# ---- answering


def test_generate_is_what_stream_gives(base: wb.Variant) -> None:
    pieces = list(base.stream(QUESTION, max_new_tokens=20))
    answer = base.generate(QUESTION, max_new_tokens=20)
    assert tuple(piece.token_id for piece in pieces) == answer.token_ids
    assert "".join(piece.text for piece in pieces) == answer.text
    assert answer.prompt_tokens == len(base.encode(QUESTION))
    assert [piece.elapsed for piece in pieces] == sorted(piece.elapsed for piece in pieces)


def test_streamed_pieces_join_to_the_text_whatever_bytes_come(base: wb.Variant) -> None:
    """A random model draws characters cut in half, stray bytes and control tokens."""
    texts = []
    for seed in range(40):
        settings = {"max_new_tokens": 24, "temperature": 5.0, "seed": seed}
        texts.append(base.generate(QUESTION, **settings).text)
        assert "".join(piece.text for piece in base.stream(QUESTION, **settings)) == texts[-1]
    assert any("\ufffd" in text for text in texts)


def spelling(text: str, variant: wb.Variant) -> Callable[..., torch.Tensor]:
    """Makes the model's head say the text, token by token, then the end token."""
    ids = [*variant.tokenizer(text, add_special_tokens=False)["input_ids"], variant.tokenizer.eos_token_id]

    def say(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], logits: torch.Tensor) -> torch.Tensor:
        said = torch.zeros_like(logits)
        said[..., ids.pop(0)] = 1.0
        return said

    return say


@pytest.mark.parametrize(
    "text", ["A 猫 and a 🦞!", "naïve cafés", " leading and trailing ", "a\n\nb\t", "👩‍🚀 é", "🦞"]
)
def test_streaming_gives_whole_characters_only(base: wb.Variant, text: str) -> None:
    with_hook = base.model.lm_head.register_forward_hook(spelling(text, base))
    pieces = [piece.text for piece in base.stream(QUESTION)]
    with_hook.remove()
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    with_hook = base.model.lm_head.register_forward_hook(spelling(text, base))
    answer = base.generate(QUESTION)
    with_hook.remove()
    assert (answer.text, answer.finish_reason) == (text, "stop")
    assert answer.token_ids[-1] == base.tokenizer.eos_token_id


def test_an_end_token_at_the_limit_is_an_end(base: wb.Variant) -> None:
    length = len(base.tokenizer("Rain", add_special_tokens=False)["input_ids"]) + 1
    hook = base.model.lm_head.register_forward_hook(spelling("Rain", base))
    answer = base.generate(QUESTION, max_new_tokens=length)
    hook.remove()
    assert answer.text == "Rain"
    assert answer.finish_reason == "stop"


def test_the_limit_is_a_length(base: wb.Variant) -> None:
    hook = base.model.lm_head.register_forward_hook(spelling("Rain before noon", base))
    answer = base.generate(QUESTION, max_new_tokens=2)
    hook.remove()
    assert len(answer.token_ids) == 2
    assert answer.finish_reason == "length"
    assert answer.ttft == answer.times[0] > 0
    assert len(answer.inter_token) == 1
    assert answer.tokens_per_second == pytest.approx(1 / answer.inter_token[0])


def test_messages_dicts_and_requests_are_one(base: wb.Variant) -> None:
    as_text = base.encode(QUESTION)
    assert base.encode([{"role": "user", "content": QUESTION}]) == as_text
    assert base.encode(Request.of(QUESTION)) == as_text


@pytest.mark.parametrize("prompt", ["", "  \n", [], [{"role": "user", "content": " "}]])
def test_an_empty_prompt_is_refused(base: wb.Variant, prompt) -> None:
    with pytest.raises(InvalidInput, match="empty"):
        base.generate(prompt)


@pytest.mark.parametrize(
    "prompt",
    [
        [{"role": "wizard", "content": "x"}],
        [{"role": "user"}],
        [{"role": "user", "content": 7}],
        ["Hello"],
        7,
        None,
        {"role": "user", "content": "x"},
    ],
)
def test_what_is_no_message_is_refused_in_one_sentence(base: wb.Variant, prompt) -> None:
    with pytest.raises(InvalidInput) as caught:
        base.generate(prompt)
    assert "\n" not in str(caught.value)


def test_a_prompt_longer_than_the_context_is_refused_with_the_numbers(base: wb.Variant) -> None:
    long = "lobster " * 600
    with pytest.raises(InvalidInput, match=f"{len(base.encode(long))} tokens.*{base.context_length}"):
        base.stream(long, max_new_tokens=1)


def test_the_context_may_be_filled_to_the_last_token(base: wb.Variant) -> None:
    room = base.context_length - len(base.encode(QUESTION))
    assert base.generate(QUESTION, max_new_tokens=room).token_ids
    with pytest.raises(InvalidInput, match="max_new_tokens"):
        base.generate(QUESTION, max_new_tokens=room + 1)


def test_two_streams_at_once_do_not_disturb_each_other(base: wb.Variant) -> None:
    alone = [base.generate(text, max_new_tokens=8).token_ids for text in (QUESTION, "Rain")]
    first, second = (base.stream(text, max_new_tokens=8) for text in (QUESTION, "Rain"))
    taken: tuple[list[int], list[int]] = ([], [])
    for _ in range(8):
        for stream, tokens in zip((first, second), taken, strict=True):
            piece = next(stream, None)
            tokens.extend([piece.token_id] if piece else [])
    assert [tuple(tokens) for tokens in taken] == alone


# ---- deriving


def test_names_recipes_and_parents(base: wb.Variant) -> None:
    made = base.apply(prompt.System(text="Hm.")).apply(quantize.Int8())
    assert (base.name, made.name) == ("llama", "System+Int8")
    assert repr(made.recipe) == "Recipe([prompt.System(text='Hm.'), quantize.Int8()])"
    assert base.parent is None
    child = base.apply(quantize.Int8())
    assert child.parent is base
    assert (child.source, child.device, child.dtype) == (base.source, base.device, torch.float32)
    assert child.renamed("small one").name == "small one"
    with pytest.raises(InvalidInput):
        child.renamed("../small")


def test_apply_takes_steps_only(base: wb.Variant) -> None:
    with pytest.raises(InvalidInput, match="str"):
        base.apply("NF4")
    with pytest.raises(InvalidInput, match="not "):
        base.apply(quantize.NF4)


def test_a_variant_is_frozen(base: wb.Variant) -> None:
    with pytest.raises(AttributeError):
        base.name = "other"


def test_an_unknown_attribute_is_an_attribute_error(base: wb.Variant) -> None:
    with pytest.raises(AttributeError, match="wings"):
        base.wings  # noqa: B018
    assert not hasattr(base, "wings")


# ---- closing and memory


def test_a_closed_variant_says_so(base: wb.Variant) -> None:
    child = base.apply(quantize.Int8())
    child.close()
    child.close()
    assert child.closed
    assert (child.total_bytes, child.owned_bytes) == (0, 0)
    assert "closed" in repr(child)
    for use in (
        lambda: child.generate(QUESTION),
        lambda: child.stream(QUESTION),
        lambda: child.apply(quantize.NF4()),
        lambda: child.apply(prompt.System()),
        lambda: child.renamed("x"),
        lambda: child.save("never"),
        lambda: child.model,
        lambda: child.device,
    ):
        with pytest.raises(Closed, match="Int8"):
            use()
    assert base.generate(QUESTION, max_new_tokens=1).token_ids


def test_closing_the_parent_leaves_the_child_working(base: wb.Variant) -> None:
    child = base.apply(prompt.System(text="Hm."))
    wanted = child.generate(QUESTION, max_new_tokens=4).token_ids
    base.close()
    assert child.generate(QUESTION, max_new_tokens=4).token_ids == wanted


def test_owned_bytes_are_those_that_no_older_variant_holds(base: wb.Variant) -> None:
    total = base.total_bytes
    assert (
        base.owned_bytes
        == total
        == sum(p.numel() * 4 for p in base.model.parameters())
        + sum(b.untyped_storage().nbytes() for b in base.model.buffers())
    )
    request = base.apply(prompt.System(text="Hm."))
    assert (request.total_bytes, request.owned_bytes, base.owned_bytes) == (total, 0, total)
    request.close()
    assert base.owned_bytes == total
    packed = base.apply(quantize.Int8(head=False))
    linear = [m for m in packed.model.modules() if hasattr(m, "scale")]
    assert packed.owned_bytes == sum(m.weight.nbytes + m.scale.nbytes for m in linear)
    union = sharing.total_bytes([base.model, packed.model])
    assert union == packed.owned_bytes + base.total_bytes
    base.close()
    assert packed.owned_bytes == packed.total_bytes


def test_what_a_dropped_variant_held_is_owned_by_the_next(base: wb.Variant) -> None:
    child = base.apply(prompt.System(text="Hm."))
    other = base.apply(prompt.System(text="Ha."))
    total = base.total_bytes
    assert (base.owned_bytes, child.owned_bytes, other.owned_bytes) == (total, 0, 0)
    base.close()
    assert (child.owned_bytes, other.owned_bytes) == (total, 0)
    del child
    gc.collect()
    assert other.owned_bytes == total


def test_identity_and_lineage_survive_a_new_name(base: wb.Variant) -> None:
    child = base.apply(quantize.Int8())
    owned = base.owned_bytes, child.owned_bytes
    elder = base.renamed("elder")
    assert elder == base
    assert elder is not base
    assert elder != child
    assert len({elder, base}) == 1
    assert child.parent is elder
    assert child.ancestors == (base,)
    assert (elder.owned_bytes, child.owned_bytes) == (base.owned_bytes, child.owned_bytes) == owned
    assert [each.name for each in live() if each in (base, child)] == ["elder", child.name]
    del base
    gc.collect()
    assert child.parent is elder
    grown = child.renamed("grown").apply(prompt.System(text="Hm."))
    assert [each.name for each in grown.ancestors] == [child.name, "elder"]
    assert grown.root == child.root == elder.root


def test_other_settings_make_another_variant(base: wb.Variant) -> None:
    child = base.apply(quantize.Int8())
    packed = dataclasses.replace(child, engine=Eager(cache_bits=8))
    assert packed != child
    assert packed.parent is child.parent is base
    assert {child, packed} <= set(live())
    packed.close()
    assert not child.closed


def test_the_parent_is_known_while_any_name_of_it_is(base: wb.Variant) -> None:
    child = base.apply(prompt.System(text="Hm."))
    renamed = base.renamed("other")
    del renamed
    gc.collect()
    assert child.parent is base


def test_closing_closes_every_name(base: wb.Variant) -> None:
    elder = base.renamed("elder")
    base.close()
    assert elder.closed
    with pytest.raises(Closed, match="elder"):
        elder.generate("Hello")


def test_a_misspelt_attribute_is_an_error(base: wb.Variant) -> None:
    with pytest.raises(AttributeError, match="tokenzier"):
        base.tokenzier  # noqa: B018


def allocated(record: profile) -> int:
    """Bytes allocated on the CPU, less those freed, while the profile ran."""
    return sum(event.self_cpu_memory_usage for event in record.key_averages())


@pytest.mark.model
def test_bytes_are_what_the_allocator_says() -> None:
    """Loading, packing and closing the embedded model move the allocator by the bytes that the variants report."""
    gc.collect()
    made: list[wb.Variant] = []
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        made.append(wb.load(device="cpu", dtype="float32"))
        base = made[0]
        made += [base.apply(quantize.Int8()), base.apply(prompt.System(text="Be brief."))]
        made.append(base.apply(quantize.NF4()))
        gc.collect()
    assert sum(variant.owned_bytes for variant in made) == pytest.approx(allocated(record), rel=0.05)
    assert made[2].owned_bytes < 1_000_000
    assert made[2].total_bytes == base.total_bytes
    for number in (1, 3):
        owned = made[number].owned_bytes
        assert owned > 50_000_000
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            made[number].close()
            gc.collect()
        assert -allocated(record) == pytest.approx(owned, rel=0.05)
    made[2].close()
    owned = base.owned_bytes
    assert owned == base.total_bytes
    del base
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        made[0].close()
        gc.collect()
    assert -allocated(record) == pytest.approx(owned, rel=0.05)


@pytest.mark.model
def test_the_embedded_model_answers(smollm: wb.Variant) -> None:
    answer = smollm.generate(QUESTION, max_new_tokens=16)
    assert "lobster" in answer.text.lower()
    assert "".join(piece.text for piece in smollm.stream(QUESTION, max_new_tokens=16)) == answer.text


def test_loading_names_an_unknown_device_or_dtype(folders) -> None:
    with pytest.raises(InvalidInput, match="'abacus'"):
        wb.load(folders["llama"], device="abacus")
    with pytest.raises(InvalidInput, match="float7"):
        wb.load(folders["llama"], dtype="float7")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes_answer(folders, dtype: str) -> None:
    variant = wb.load(folders["llama"], device="cpu", dtype=dtype)
    assert variant.dtype == getattr(torch, dtype)
    for child in (variant, variant.apply(quantize.Int8()), variant.apply(quantize.NF4())):
        assert child.generate(QUESTION, max_new_tokens=3).token_ids


def test_every_error_is_one_of_ours() -> None:
    assert issubclass(Closed, WorkbenchError)
    assert issubclass(InvalidInput, ValueError)
