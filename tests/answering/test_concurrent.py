"""Callers that come when they like: each gets its own answer, in fair turns, and a full queue says so."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

import workbench as wb
from workbench.answering import concurrent
from workbench.core.errors import Busy, Closed, InvalidInput
from workbench.runtime.batching import Batched
from workbench.steps import output, prompt, quantize

QUESTIONS = ("What is a lobster?", "Rain?", "How many seats does the boat have?", "You are naïve, 猫.", "The tide")


def asked(each: wb.Variant, question: str, **settings):
    return each.agenerate(question, **{"max_new_tokens": 8} | settings)


def batched(base: wb.Variant, **bounds: int) -> wb.Variant:
    return replace(base, engine=Batched(**bounds))


def idle() -> None:
    """Wait until nobody decodes, and see that nothing is left."""
    while thread := concurrent.SCHEDULER._thread:
        thread.join()
    assert not concurrent.SCHEDULER._open


def test_many_at_once_answer_as_each_alone(base: wb.Variant) -> None:
    async def all_of_them() -> list[wb.Generation]:
        return await asyncio.gather(
            *(asked(base, each, max_new_tokens=3 + at) for at, each in enumerate(QUESTIONS)),
            *(asked(base, each, temperature=1.2, seed=at) for at, each in enumerate(QUESTIONS)),
        )

    found = asyncio.run(all_of_them())
    wanted = [base.generate(each, max_new_tokens=3 + at) for at, each in enumerate(QUESTIONS)]
    wanted += [base.generate(each, max_new_tokens=8, temperature=1.2, seed=at) for at, each in enumerate(QUESTIONS)]
    assert [each.token_ids for each in found] == [each.token_ids for each in wanted]
    assert [each.text for each in found] == [each.text for each in wanted]
    assert [each.finish_reason for each in found] == [each.finish_reason for each in wanted]
    idle()


def test_a_call_that_never_began_harms_no_other_model(base: wb.Variant, load_tiny: Callable[[str], wb.Variant]) -> None:
    other = load_tiny("gpt2")
    told: list[object] = []
    call = concurrent.SCHEDULER.enter(base, told.append)
    concurrent.SCHEDULER.start(call)  # without `begin`: a mistake of ours
    answer = asyncio.run(asked(other, QUESTIONS[0]))
    assert answer.token_ids == other.generate(QUESTIONS[0], max_new_tokens=8).token_ids
    concurrent.SCHEDULER.leave(call)
    idle()
    assert isinstance(told[0], AssertionError)


STAGES: dict[str, Callable[[wb.Variant], wb.Variant]] = {
    "template": lambda base: base.apply(prompt.Template(text="Say: {question}")),
    "stop": lambda base: base.apply(output.Stop(strings="e")),
    "samples": lambda base: base.apply(prompt.SelfConsistency(answers=3)),
    "constrained": lambda base: base.apply(prompt.Constrain(form="choices", rule="yes\nno")),
    "packed cache, in turn": lambda base: base.apply(quantize.KVCache(bits=8)),
}


@pytest.mark.parametrize("name", STAGES)
def test_stages_work_as_in_generate(name: str, base: wb.Variant) -> None:
    variant = STAGES[name](base)

    async def together() -> list[wb.Generation]:
        return await asyncio.gather(*(asked(variant, each) for each in QUESTIONS), asked(base, "Rain?"))

    *found, plain = asyncio.run(together())
    for each, question in zip(found, QUESTIONS, strict=True):
        wanted = variant.generate(question, max_new_tokens=8)
        assert (each.text, each.finish_reason, each.spent) == (wanted.text, wanted.finish_reason, wanted.spent)
    assert plain.text == base.generate("Rain?", max_new_tokens=8).text


def test_a_stream_is_the_answer_in_pieces(base: wb.Variant) -> None:
    async def pieces() -> list[wb.Piece]:
        return [piece async for piece in base.astream("What is a lobster?", max_new_tokens=12)]

    found, wanted = asyncio.run(pieces()), list(base.stream("What is a lobster?", max_new_tokens=12))
    assert [(each.text, each.token_id) for each in found] == [(each.text, each.token_id) for each in wanted]
    assert found[-1].answer
    assert found[-1].answer.text == "".join(each.text for each in found)


def test_a_full_queue_refuses_in_words(base: wb.Variant) -> None:
    variant = batched(base, rows=4, waiting=100)

    async def thousand() -> list[object]:
        return await asyncio.gather(
            *(asked(variant, "Rain?", max_new_tokens=2) for _ in range(1000)), return_exceptions=True
        )

    found = asyncio.run(thousand())
    answers = [each for each in found if isinstance(each, wb.Generation)]
    refused = [each for each in found if isinstance(each, Busy)]
    assert (len(answers), len(refused)) == (104, 896)
    assert str(refused[0]).startswith(f"100 requests wait for '{variant.name}' already: ")
    assert {each.text for each in answers} == {base.generate("Rain?", max_new_tokens=2).text}
    idle()
    assert asyncio.run(asked(variant, "Rain?"))  # there is room again


def test_a_cancelled_task_frees_its_row_within_a_step(base: wb.Variant) -> None:
    variant = batched(base, rows=1)

    async def cancel() -> list[str]:
        order = []

        async def follow(name: str, tokens: int) -> None:
            async for _ in variant.astream("Rain?", max_new_tokens=tokens, temperature=5.0):
                order.append(name)

        first = asyncio.create_task(follow("first", 400))
        while not order:
            await asyncio.sleep(0)
        second = asyncio.create_task(follow("second", 2))
        first.cancel()
        await second
        with pytest.raises(asyncio.CancelledError):
            await first
        return order

    order = asyncio.run(cancel())
    assert "second" in order
    assert len(order) < 400
    idle()


def test_first_come_first_served_and_variants_take_turns(base: wb.Variant) -> None:
    others = [batched(base, rows=1), base.apply(quantize.Int8())]

    async def race() -> list[str]:
        order: list[str] = []

        async def follow(name: str, variant: wb.Variant) -> None:
            async for piece in variant.astream("Rain?", max_new_tokens=30, temperature=5.0):
                order.append(f"{name} ends" if piece.answer else name)

        await asyncio.gather(follow("a", others[0]), follow("b", others[1]))
        return order

    order = asyncio.run(race())
    for name in "ab":
        assert order.count(name) >= 20 or f"{name} ends" in order
    first_end = min(order.index(f"{name} ends") for name in "ab")
    assert {"a", "b"} <= set(order[:first_end]), "neither waits for the other's end"


def test_errors_reach_who_asked(base: wb.Variant) -> None:
    async def mixed() -> list[object]:
        return await asyncio.gather(
            asked(base, "Rain?"),
            asked(base, ""),
            asked(base, "lobster " * 600),
            asked(base, "Rain?", temperature=9.0),
            asked(base, "The tide"),
            return_exceptions=True,
        )

    good, empty, long, hot, other = asyncio.run(mixed())
    assert (good.text, other.text) == tuple(
        base.generate(each, max_new_tokens=8).text for each in ("Rain?", "The tide")
    )
    assert all(isinstance(each, InvalidInput) for each in (empty, long, hot))
    assert "shorten the prompt" in str(long)
    idle()


def test_closing_fails_those_who_wait(base: wb.Variant) -> None:
    variant = batched(base.apply(quantize.Int8()), rows=1)

    async def close() -> list[object]:
        tasks = [asyncio.create_task(asked(variant, "Rain?", max_new_tokens=400, temperature=5.0)) for _ in range(3)]
        async for _ in base.astream("Rain?", max_new_tokens=3):
            pass
        await asyncio.to_thread(variant.close)
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert all(isinstance(each, Closed) for each in asyncio.run(close()))
    idle()
    with pytest.raises(Closed):
        asyncio.run(asked(variant, "Rain?"))
    assert asyncio.run(asked(base, "Rain?")).text == base.generate("Rain?", max_new_tokens=8).text


def test_several_event_loops_and_threads(base: wb.Variant) -> None:
    found: dict[str, str] = {}

    def ask(question: str) -> None:
        found[question] = asyncio.run(asked(base, question)).text

    threads = [threading.Thread(target=ask, args=[each]) for each in QUESTIONS]
    for each in threads:
        each.start()
    plain = base.generate("Rain?", max_new_tokens=8).text
    for each in threads:
        each.join()
    assert found == {each: base.generate(each, max_new_tokens=8).text for each in QUESTIONS}
    assert plain == found["Rain?"]


def test_a_loop_that_ended_is_forgotten(base: wb.Variant) -> None:
    async def begin_only() -> None:
        async for _ in base.astream("Rain?", max_new_tokens=400, temperature=5.0):
            break

    asyncio.run(begin_only())
    idle()
