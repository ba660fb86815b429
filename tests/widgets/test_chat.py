"""Chat without a browser: several variants answer in turn."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from screen import TIMEOUT

import workbench as wb
from widgets import Bench
from workbench.steps import quantize


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


def test_chat_stops_and_keeps_what_was_said(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    said = threading.Event()

    def endless(variant: wb.Variant, *_: Any, **__: Any) -> Iterator[wb.Piece]:
        while True:
            yield wb.Piece("word ", 1, 0.0)
            said.set()
            said.wait(0.01)

    monkeypatch.setattr(wb.Variant, "stream", endless)
    bench.chat.prompt.value = "Hello"
    bench.chat.send.click()
    assert said.wait(TIMEOUT)
    bench.chat.stop.click()
    assert bench.wait(TIMEOUT)
    assert bench.chat.turns[-1].answers[bench.base.name].state == "stopped"
    assert "word" in bench.chat.live.value
    assert "kept" in bench.chat.message.value
