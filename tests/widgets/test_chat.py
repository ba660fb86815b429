"""Chat without a browser: several variants answer in turn."""

import threading

import pytest
from screen import TIMEOUT

import workbench as wb
from widgets import Bench
from workbench.steps import prompt, quantize, runtime


@pytest.fixture
def bench_task(tiny_text: wb.Text) -> wb.Text:
    return tiny_text


def test_chat_answers_in_turn_as_generate_does(bench: Bench) -> None:
    bench.add(bench.base.apply(quantize.Int8()))
    bench.chat.prompt.value = "What is a lobster?"
    bench.chat.length.value = 6
    bench.chat.send.click()
    assert bench.wait(TIMEOUT)
    answers = bench.chat.turns[-1].answers
    assert list(answers) == [bench.base.name, "Int8"]
    for name, answer in answers.items():
        wanted = bench.variants[name].generate("What is a lobster?", max_new_tokens=6)
        assert answer.text == wanted.text
        assert answer.tokens == len(wanted.token_ids)
        assert answer.state == "done"
    assert bench.chat.live.value.count("tokens/s") == 2
    assert bench.chat.stop.disabled


def test_chat_says_what_is_missing(bench: Bench) -> None:
    bench.chat.send.click()
    assert "The prompt is empty" in bench.chat.message.value
    bench.chat.prompt.value = "Hello"
    bench.choose(bench.base.name, False)
    bench.chat.send.click()
    assert "No variant is chosen" in bench.chat.message.value
    bench.choose(bench.base.name)
    bench.chat.prompt.value = "lobster " * 600
    bench.chat.send.click()
    assert bench.wait(TIMEOUT)
    assert "shorten the prompt" in bench.chat.message.value


def test_chat_stops_and_keeps_what_was_said(bench: Bench) -> None:
    bench.chat.prompt.value = "Hello"
    bench.chat.length.value, bench.chat.temperature.value = 400, 2.0  # it does not end soon
    said = threading.Event()
    bench.chat.live.observe(lambda change: "tokens" in change["new"] and said.set(), "value")
    bench.chat.send.click()
    assert said.wait(TIMEOUT)
    bench.chat.stop.click()
    assert bench.wait(TIMEOUT)
    answer = bench.chat.turns[-1].answers[bench.base.name]
    if answer.state == "done":
        assert answer.tokens < 400
        return
    assert answer.state == "stopped"
    assert answer.text
    assert "kept" in bench.chat.message.value
    bench.chat.length.value, bench.chat.prompt.value = 3, "Again"
    bench.chat.send.click()  # its place is free
    assert bench.wait(TIMEOUT)
    assert bench.chat.turns[-1].answers[bench.base.name].state == "done"


def test_chat_with_variants_of_one_model_is_one_batch(bench: Bench) -> None:
    bench.add(bench.base.apply(prompt.Template(text="Say: {question}")))
    rows = []
    hook = bench.base.model.register_forward_pre_hook(
        lambda _, __, inputs: rows.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    bench.chat.prompt.value, bench.chat.length.value = "What is a lobster?", 6
    bench.chat.send.click()
    assert bench.wait(TIMEOUT)
    hook.remove()
    assert (2, 1) in rows
    for name, answer in bench.chat.turns[-1].answers.items():
        assert answer.text == bench.variants[name].generate("What is a lobster?", max_new_tokens=6).text


def test_chat_gives_a_kept_answer_again_and_marks_it(bench: Bench) -> None:
    bench.add(bench.base.apply(runtime.ResponseCache()))
    bench.chat.length.value = 6
    for _ in range(2):
        bench.chat.forget()  # or the second question would have the first before it
        bench.chat.prompt.value = "What is a lobster?"
        bench.chat.send.click()
        assert bench.wait(TIMEOUT)
    asked, kept = (bench.chat.turns[-1].answers[name] for name in (bench.base.name, "ResponseCache"))
    assert (asked.state, kept.state) == ("done", "done")
    assert (asked.cached, kept.cached) == (False, True)
    assert kept.text == asked.text == bench.base.generate("What is a lobster?", max_new_tokens=6).text
    assert bench.chat.live.value.count("from the cache after") == 1
    assert "the same was asked" in bench.chat.live.value
