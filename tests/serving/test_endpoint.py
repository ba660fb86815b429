"""Endpoints: against llama.cpp's own server on a tiny model, and against servers that lie."""

import asyncio
import gzip
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import Handler, says

import workbench as wb
from workbench.core.errors import Busy, Closed, InvalidInput, NotAvailable
from workbench.measurement.latency import time_request
from workbench.serving.replica import llama_server

KEY = "sk-very-secret-key"
QUESTION = "What is a lobster?"


@pytest.fixture
def llama(base: wb.Variant, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """llama.cpp's server with the tiny model's weights: its address and its key."""
    path = base.save(tmp_path / "tiny.gguf")
    server, endpoint = llama_server(str(path), threads=1, rows=2, context=256)
    yield endpoint
    del server


def words(*texts: str, reason: str | None = "stop", **more: Any) -> Any:
    """A server that says these pieces."""

    def reply(handler: Handler, _: dict[str, Any]) -> None:
        handler.begin()
        for text in texts:
            handler.event(text)
        if reason:
            handler.event("", reason, **more)
        handler.wfile.write(b"data: [DONE]\n\n")

    return reply


def usage(tokens: Any, prompt: Any = 7) -> dict[str, Any]:
    return {"usage": {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": 0}}


def test_llama_cpp_answers_like_the_variant(base: wb.Variant, llama: tuple[str, str], tiny_task: wb.Task) -> None:
    url, key = llama
    with pytest.raises(InvalidInput, match="refused the key"):
        wb.connect(url).generate("Hi")
    endpoint = wb.connect(url, key=key, prices=(1.0, 3.0), name="llama.cpp")
    mine, theirs = (each.generate(QUESTION, max_new_tokens=8) for each in (base, endpoint))
    assert theirs.text.replace("\ufffd", "").strip() == mine.text.replace("\ufffd", "").strip()  # bytes of no character
    assert theirs.prompt_tokens == mine.prompt_tokens
    assert theirs.spent == len(theirs.times) == 8
    assert "".join(piece.text for piece in endpoint.stream(QUESTION, max_new_tokens=8)) == theirs.text
    assert asyncio.run(endpoint.agenerate(QUESTION, max_new_tokens=8)).text == theirs.text
    assert len(time_request(endpoint, QUESTION, 12).inter_token) == 11  # whatever ends the answer
    with pytest.raises(InvalidInput, match="refused the request"):
        endpoint.generate("tide " * 400)
    found = wb.compare([base, endpoint], tiny_task, rounds=6, examples=4, new_tokens=4, store=False)
    run = found["llama.cpp"]
    assert {"ttft", "inter_token_latency", "throughput", "score", "flips", "cost"} <= set(run.estimates)
    assert not {"perplexity", "kl_to_baseline", "weight_bytes", "peak_memory"} & set(run.estimates)
    prompts, answers = run["prompt_tokens"].value, run["answer_tokens"].value
    assert run["cost"].value == pytest.approx((prompts + 3 * answers) / (prompts + answers))
    assert run["score"].value == found.baseline["score"].value
    assert "cannot be measured" in found.table().loc["llama.cpp", "notes"]
    assert "llama.cpp" in found._repr_html_()
    assert len(found.figure().data)


def test_an_endpoint_may_be_the_baseline(base: wb.Variant, tiny_task: wb.Task, tiny_text: wb.Text) -> None:
    with says(words("It ", "is", **usage(3))) as (url, _):
        endpoint = wb.connect(url)
        found = wb.compare([endpoint, base], tiny_task, rounds=6, examples=2, new_tokens=2, store=False)
        assert "kl_to_baseline" not in found[base.name].estimates
        assert "perplexity" in found[base.name].estimates
        timed = wb.compare([endpoint, base], tiny_text, rounds=6, examples=2, new_tokens=2, store=False)
        assert timed.baseline.estimates.keys() == {
            "ttft",
            "inter_token_latency",
            "inter_token_latency_p95",
            "throughput",
        }
        with pytest.raises(InvalidInput, match="likelihoods"):
            wb.compare([endpoint], tiny_text)


def test_choices_have_no_score_there(tiny_task: wb.Task) -> None:
    examples = [each.model_copy(update={"choices": (each.answer, "no")}) for each in tiny_task.test]
    task = tiny_task.model_copy(update={"scorer": "choice", "test": tuple(examples)})
    with says(words("yes")) as (url, _):
        run = wb.measure(wb.connect(url), task, rounds=6, examples=2, new_tokens=2, store=False)
    assert "score" not in run.estimates
    assert "likelihood of its choices" in run.notes[-1]


def test_what_is_sent() -> None:
    with says(words("ok", **usage(1))) as (url, asked):
        endpoint = wb.connect(url, "liar", KEY)
        assert KEY not in repr(endpoint)
        assert KEY not in repr(endpoint._clients.address)
        endpoint.generate([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}], seed=3)
        endpoint.generate("Hi", temperature=0.5, top_p=0.9, seed=3, max_new_tokens=5)
    plain, drawn = asked
    assert plain["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert plain["temperature"] == 0
    assert "seed" not in plain
    assert (drawn["temperature"], drawn["top_p"], drawn["seed"], drawn["max_tokens"]) == (0.5, 0.9, 3, 5)
    assert drawn["headers"]["authorization"] == f"Bearer {KEY}"
    assert drawn["headers"]["accept-encoding"] == "identity"
    assert not [name for name in drawn["headers"] if name.startswith("openai-")]


def test_no_key_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_ORG_ID", "mine")
    with says(words("ok")) as (url, asked):
        wb.connect(url).generate("Hi")
    assert KEY not in str(asked)
    assert "mine" not in str(asked)


@pytest.mark.parametrize(
    ("status", "refused"),
    [
        (400, lambda name: {"error": {"message": f"Unknown field: {name}"}}),
        (422, lambda name: {"detail": f"Unexpected fields in the request: {{'{name}'}}"}),  # transformers serve
    ],
)
def test_what_a_service_refuses_by_name_is_left_out(status: int, refused: Callable[[str], Any]) -> None:
    def reply(handler: Handler, body: dict[str, Any]) -> None:
        for name in ("stream_options", "max_tokens", "ignore_eos"):
            if name in body:
                return handler.send(status, json.dumps(refused(name)).encode())
        return words("a", "b")(handler, body)

    with says(reply) as (url, asked):
        answer = wb.connect(url).generate("Hi", max_new_tokens=4, endless=True)
        assert answer.text == "ab"
        assert asked[-1]["max_completion_tokens"] == 4


def test_a_prompt_that_is_too_long_teaches_nothing() -> None:
    def reply(handler: Handler, body: dict[str, Any]) -> None:
        if "long" in str(body["messages"]):
            return handler.send(400, b'{"error": {"message": "Too long: shorten it or reduce max_tokens."}}')
        return words("ok", **usage(1))(handler, body)

    with says(reply) as (url, asked):
        endpoint = wb.connect(url)
        with pytest.raises(InvalidInput, match="Too long"):
            endpoint.generate("long")
        assert endpoint.generate("short").text == "ok"
        assert len(asked) == 2
        assert "max_tokens" in asked[-1]


def test_an_error_in_a_stream_is_told() -> None:
    def reply(handler: Handler, _: dict[str, Any]) -> None:
        handler.begin()
        handler.event("well")
        handler.event(error={"message": "The replica that answered has died: ask again."})

    with says(reply) as (url, _), pytest.raises(NotAvailable, match="broke off: The replica that answered has died"):
        wb.connect(url).generate("Hi")


def test_thoughts_are_timed_and_not_said() -> None:
    def reply(handler: Handler, _: dict[str, Any]) -> None:
        handler.begin()
        handler.wfile.write(b'data: {"choices": [{"index": 0, "delta": {"reasoning_content": "hmm"}}]}\n\n')
        handler.event("yes", "stop", **usage(4))

    with says(reply) as (url, _):
        answer = wb.connect(url).generate("Hi")
    assert answer.text == "yes"
    assert len(answer.times) == answer.spent == 4


@pytest.mark.parametrize(
    ("more", "tokens", "note"),
    [
        (usage(5), 5, None),  # several tokens in a piece
        (usage(10**9), 2, "cannot be"),
        (usage(0), 2, "cannot be"),
        (usage(-3), 2, "did not say"),
        (usage("many"), 2, "did not say"),
        ({}, 2, "did not say"),
    ],
)
def test_counts_are_not_believed_blindly(more: dict[str, Any], tokens: int, note: str | None) -> None:
    with says(words("one ", "two", **more)) as (url, _):
        answer = wb.connect(url).generate("Count.", max_new_tokens=8)
    assert (answer.text, answer.spent, len(answer.times)) == ("one two", tokens, tokens)
    assert [note in each for each in answer.notes] == ([True] if note else [])
    assert answer.times == tuple(sorted(answer.times))


def test_a_cut_off_answer_says_so() -> None:
    with says(words("half", reason=None)) as (url, _):
        assert "cut off" in wb.connect(url).generate("Hi").notes[-1]


def html(handler: Handler, _: dict[str, Any]) -> None:
    handler.send(200, b"<html><body>Log in</body></html>", "text/html")


def endless(handler: Handler, _: dict[str, Any]) -> None:
    handler.begin()
    while True:
        handler.event("again and ")


def huge(handler: Handler, _: dict[str, Any]) -> None:
    handler.begin()
    handler.event("x" * 10_000_000)


def flood(handler: Handler, _: dict[str, Any]) -> None:
    handler.begin()
    while True:
        handler.wfile.write(b"x" * (1 << 20))


def packed(handler: Handler, _: dict[str, Any]) -> None:
    handler.send(200, gzip.compress(b"data: {}\n\n" * 1000), "text/event-stream", Content_Encoding="gzip")


def silent(handler: Handler, _: dict[str, Any]) -> None:
    handler.begin()
    handler.event("well")
    handler.server.told.wait()


def broken(handler: Handler, _: dict[str, Any]) -> None:
    handler.send(500, json.dumps({"error": {"message": f"Traceback with {KEY}\x1b[31m\nred"}}).encode())


def elsewhere(handler: Handler, _: dict[str, Any]) -> None:
    handler.send(307, b"", Location="http://127.0.0.1:9/v1/chat/completions")


def odd(handler: Handler, _: dict[str, Any]) -> None:
    handler.begin()
    handler.wfile.write(b'data: {"choices": 3}\n\ndata: [1, 2]\n\ndata: {"choices": [null]}\n\ndata: [DONE]\n\n')


def no_json(handler: Handler, _: dict[str, Any]) -> None:
    handler.begin()
    handler.wfile.write(b"data: {oh no\n\n")


@pytest.mark.parametrize(
    ("reply", "says_what"),
    [
        (html, "nothing that is an answer"),
        (endless, "more than the 16 tokens"),
        (huge, "more than the 16 tokens"),
        (flood, "more than 32 MB"),
        (packed, "packed bytes"),
        (broken, "failed with status 500"),
        (elsewhere, "points to another address"),
        (odd, "nothing that is an answer"),
        (no_json, "not OpenAI's interface"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
@pytest.mark.parametrize(
    "ask",
    [
        lambda endpoint: endpoint.generate("Hi", max_new_tokens=16),
        lambda endpoint: asyncio.run(endpoint.agenerate("Hi", max_new_tokens=16)),
    ],
    ids=["waiting", "beside others"],
)
def test_lies_are_one_sentence(reply: Any, says_what: str, ask: Any) -> None:
    with says(reply) as (url, _):
        endpoint = wb.connect(url, key=KEY, retries=0)
        with pytest.raises(NotAvailable, match=says_what) as caught:
            ask(endpoint)
    said = str(caught.value)
    assert KEY not in said
    assert said.isprintable()
    assert len(said) < 500


@pytest.mark.parametrize(
    ("status", "error", "says_what"),
    [
        (401, InvalidInput, "refused the key"),
        (403, InvalidInput, "refused the key"),
        (404, InvalidInput, "does not know 'liar'"),
        (400, InvalidInput, "refused the request"),
        (429, Busy, "too much to do"),
        (503, NotAvailable, "status 503"),
    ],
)
def test_refusals(status: int, error: type[Exception], says_what: str) -> None:
    def reply(handler: Handler, _: dict[str, Any]) -> None:
        handler.send(status, json.dumps({"error": {"message": "no"}}).encode())

    with says(reply) as (url, _), pytest.raises(error, match=says_what):
        wb.connect(url, retries=0).generate("Hi")


def test_asks_again_as_the_headers_say() -> None:
    def reply(handler: Handler, body: dict[str, Any]) -> None:
        if len(type(handler).asked) == 1:
            return handler.send(429, b"{}", Retry_After="0.01")
        return words("now", **usage(1))(handler, body)

    with says(reply) as (url, asked):
        assert wb.connect(url, retries=1).generate("Hi").text == "now"
        assert len(asked) == 2


def test_time_outs() -> None:
    told = threading.Event()

    def reply(handler: Handler, body: dict[str, Any]) -> None:
        handler.server.told = told
        silent(handler, body)

    with says(reply) as (url, _):
        with pytest.raises(NotAvailable, match=r"did not answer within|broke off"):
            wb.connect(url, timeout=0.3, retries=0).generate("Hi")
        told.set()


def test_addresses_and_models() -> None:
    for url in ("localhost:8000", "ftp://x/v1", "", 3):
        with pytest.raises(InvalidInput, match="takes an address"):
            wb.connect(url)
    with pytest.raises(InvalidInput, match="holds a password"):
        wb.connect("http://me:secret@localhost/v1")
    with pytest.raises(InvalidInput, match="two numbers"):
        wb.connect("http://localhost/v1", prices=(1.0, -1.0))
    with pytest.raises(NotAvailable, match="cannot be reached"):
        wb.connect("http://127.0.0.1:9/v1", retries=0)
    two = {"data": [{"id": "a"}, {"id": "b\x1b[2J<script>"}]}
    with says(words("ok"), two) as (url, _):
        with pytest.raises(InvalidInput, match="several models") as caught:
            wb.connect(url)
        assert str(caught.value).isprintable()
        assert wb.connect(url, "a").model == "a"
        assert wb.connect(url, "not listed").model == "not listed"

    def refuses(status: int) -> Any:
        def refuse(handler: Handler, _: dict[str, Any]) -> None:
            handler.send(status, b'{"error": {"message": "no such thing"}}')

        return refuse

    for status, kind, sentence in (
        (404, InvalidInput, r"does not know 'c' .* no such thing\. Its list of models has a, b"),
        (400, InvalidInput, r"refused the request: .*no such thing\. Its list of models has a, b"),
        (503, NotAvailable, r"failed with status 503: .*no such thing\.$"),
        (429, Busy, "too much to do"),
    ):
        with says(refuses(status), two) as (url, _), pytest.raises(kind, match=sentence):
            wb.connect(url, "c", retries=0)
    with says(words("ok"), {"data": []}) as (url, _):
        assert wb.connect(url, "c").model == "c"
        with pytest.raises(InvalidInput, match="lists no models"):
            wb.connect(url)
    with says(words("ok"), {"data": "none"}) as (url, _), pytest.raises(NotAvailable, match="not OpenAI's interface"):
        wb.connect(url)


def test_closed() -> None:
    with says(words("ok")) as (url, _):
        endpoint = wb.connect(url)
        endpoint.close()
        assert endpoint.closed
        with pytest.raises(Closed):
            endpoint.generate("Hi")
