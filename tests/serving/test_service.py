"""Services on Ray Serve, asked through the official client, and in ways that no client should ask."""

import asyncio
import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import psutil
import pytest
import torch

import workbench as wb
from workbench.core.errors import Busy, InvalidInput
from workbench.steps import prompt
from workbench.tasks.task import Example

KEY = "a-key-that-nobody-guesses"
QUESTION = "What is a lobster?"
pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture(scope="module")
def service(tiny: wb.Variant, cluster: None) -> Iterator[wb.Service]:
    with wb.serve(tiny, replicas=2, policy="prefix aware", port=0, key=KEY, rows=2, waiting=4) as service:
        yield service


@pytest.fixture
def client(service: wb.Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=service.url, api_key=KEY, max_retries=0) as client:
        yield client


def post(service: wb.Service, body: Any, path: str = "/chat/completions", key: str = KEY, **headers: str) -> Any:
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"} | headers
    return httpx2.post(service.url + path, content=sent, headers=given, timeout=60)


def asked(**more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 6, "temperature": 0, **more}


def test_official_client(client: openai.OpenAI, tiny: wb.Variant) -> None:
    expected = tiny.generate(QUESTION, max_new_tokens=6)
    (model,) = client.models.list().data
    assert model.id == tiny.name
    whole = client.chat.completions.create(model=model.id, **asked())
    assert whole.choices[0].message.content == expected.text
    assert whole.choices[0].finish_reason == "length"
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (expected.prompt_tokens, 6)
    parts = list(
        client.chat.completions.create(
            model=model.id, stream=True, stream_options={"include_usage": True}, **asked(n=1, logit_bias={})
        )
    )
    said = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert said == expected.text
    assert parts[-1].usage.completion_tokens == 6
    assert [part.choices[0].finish_reason for part in parts if part.choices][-1] == "length"


def test_completions_continue_a_text(client: openai.OpenAI, tiny: wb.Variant) -> None:
    ids = tiny.tokenizer("The tide comes in")["input_ids"]
    with torch.no_grad():
        ids = tiny.model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)[0, len(ids) :]
    whole = client.completions.create(model=tiny.name, prompt="The tide comes in", max_tokens=6, temperature=0)
    assert whole.choices[0].text == tiny.decode(ids.tolist())
    parts = client.completions.create(
        model=tiny.name, prompt=["The tide comes in"], max_tokens=6, temperature=0, stream=True
    )
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text


def test_structured_outputs(client: openai.OpenAI, tiny: wb.Variant) -> None:
    schema = {"type": "object", "properties": {"legs": {"enum": [8, 10]}}, "required": ["legs"]}
    schema["additionalProperties"] = False
    form = {"type": "json_schema", "json_schema": {"name": "crab", "schema": schema}}
    whole = client.chat.completions.create(model=tiny.name, **asked(response_format=form, max_tokens=40))
    assert json.loads(whole.choices[0].message.content)["legs"] in (8, 10)


def test_stops_are_not_said(client: openai.OpenAI, tiny: wb.Variant) -> None:
    text = tiny.generate(QUESTION, max_new_tokens=12).text
    stop = text[len(text) // 2 :][:3]
    kept = text[: text.index(stop)]
    body = asked(stop=[stop], max_tokens=12)
    assert client.chat.completions.create(model=tiny.name, **body).choices[0].message.content == kept
    parts = client.chat.completions.create(model=tiny.name, stream=True, **body)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == kept


def test_stops_are_taken_as_they_were_sent(client: openai.OpenAI, tiny: wb.Variant) -> None:
    text = tiny.generate(QUESTION, max_new_tokens=12).text
    for stop in ("\r\n", "\u2028", "\\n", "\n" * 200):  # none of which it says
        assert stop not in text
        body = asked(stop=[stop], max_tokens=12)
        assert client.chat.completions.create(model=tiny.name, **body).choices[0].message.content == text


def test_half_characters_are_read(service: wb.Service) -> None:
    for text in ("half \ud800 a character", "\x00", "<|im_end|>"):
        assert post(service, asked(messages=[{"role": "user", "content": text}])).status_code == 200


def test_endless_answers(client: openai.OpenAI, tiny: wb.Variant) -> None:
    whole = client.chat.completions.create(model=tiny.name, **asked(max_tokens=40), extra_body={"ignore_eos": True})
    assert whole.usage.completion_tokens == 40


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"{", 400, "not JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        (b"[]", 400, "not a JSON object"),
        (b"\xff\xfe", 400, "not JSON"),
        ({}, 400, "messages"),
        ({"messages": []}, 400, "messages"),
        ({"messages": "hi"}, 400, "messages"),
        ({"messages": [{"role": "pirate", "content": "arr"}]}, 400, "pirate"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "image_url"),
        ({"messages": [{"role": "user", "content": " "}]}, 400, "empty"),
        (asked(max_tokens=-1), 400, "max_tokens"),
        (asked(max_tokens=10**12), 400, "max_tokens"),
        (asked(temperature=-1), 400, "temperature"),
        (asked(temperature=float("nan")), 400, "temperature"),
        (asked(top_p=0), 400, "top_p"),
        (asked(n=5), 400, "'n' is not done"),
        (asked(tools=[{"type": "function"}]), 400, "'tools' is not done"),
        (asked(stop=["x" * 1000]), 400, "stop"),
        (asked(stop=[""]), 400, "stop"),
        (asked(model="gpt-5"), 404, "no model 'gpt-5'"),
        (asked(model="\ud800"), 400, "model"),
        (asked(response_format={"type": "json_schema"}), 400, "json_schema"),
        (
            asked(response_format={"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}),
            400,
            "schema",
        ),
        (asked(messages=[{"role": "user", "content": "tide " * 2000}]), 400, "holds 512"),
        (b" " * (9 << 20), 413, "larger than 8 MB"),
    ],
    ids=lambda each: str(each)[:40],
)
def test_bad_requests_have_the_usual_shape(service: wb.Service, body: Any, status: int, says: str) -> None:
    for streams in (False, True):
        answer = post(service, body | {"stream": streams} if isinstance(body, dict) else body)
        error = answer.json()["error"]
        assert answer.status_code == status, answer.text
        assert says in error["message"]
        assert "Traceback" not in answer.text
        assert set(error) == {"message", "type", "param", "code"}


def test_keys_paths_and_kinds(service: wb.Service) -> None:
    for key in ("wrong", KEY + "x"):
        assert post(service, asked(), key=key).status_code == 401
    root = service.url.removesuffix("/v1")
    for path in ("/v1/models", "/metrics", "/replicas", "/v1/models/x"):
        assert httpx2.get(root + path).status_code == 401
    assert httpx2.get(root + "/health").json()["status"] == "ok"
    assert post(service, asked(), path="/embeddings").status_code == 404
    assert httpx2.get(root + "/docs").status_code == 404
    assert post(service, asked(), **{"Content-Type": "text/plain"}).status_code == 415


def test_an_endpoint_like_any_other(service: wb.Service, tiny: wb.Variant, tiny_task: wb.Task) -> None:
    endpoint = service.endpoint()
    found = wb.compare([tiny, endpoint], tiny_task, rounds=6, examples=4, new_tokens=4, store=False)
    assert found[endpoint.name]["flips"].value == 0
    with pytest.raises(InvalidInput, match="holds 512"):
        endpoint.generate("tide " * 2000)


def test_who_read_the_beginning_reads_the_rest(service: wb.Service) -> None:
    from workbench.serving.routers import BLOCK

    endpoint, found = service.endpoint(), []
    for talk in "ab":
        beginning = f"{talk} " * (BLOCK // 2 + 1)
        answers = [endpoint.generate(f"{beginning} {turn}", max_new_tokens=1) for turn in range(4)]
        found.append({answer.replica for answer in answers})
    assert [len(replicas) for replicas in found] == [1, 1]


def test_a_full_queue_refuses(service: wb.Service) -> None:
    async def flood() -> list[Any]:
        endpoint = service.endpoint(retries=0)
        asks = [endpoint.agenerate(QUESTION, max_new_tokens=100, endless=True) for _ in range(60)]
        return await asyncio.gather(*asks, return_exceptions=True)

    found = asyncio.run(flood())
    refused = [each for each in found if isinstance(each, Busy)]
    answered = [each for each in found if isinstance(each, wb.Generation)]
    assert len(refused) + len(answered) == 60, [repr(each) for each in found if not isinstance(each, wb.Generation)]
    assert refused
    assert all(each.spent == 100 for each in answered)


def test_whoever_leaves_frees_the_place(service: wb.Service) -> None:
    async def leave() -> None:
        endpoint = service.endpoint()
        pieces = endpoint.astream(QUESTION, max_new_tokens=400, endless=True)
        await anext(pieces)
        await pieces.aclose()
        while any(seat["in_flight"] for seat in service.status()["replicas"].values()):
            await asyncio.sleep(0.05)

    asyncio.run(asyncio.wait_for(leave(), 60))
    assert service.status()["statuses"]["499"] >= 1


def test_metrics(service: wb.Service) -> None:
    service.endpoint().generate(QUESTION, max_new_tokens=4)
    answer = httpx2.get(service.url.removesuffix("/v1") + "/metrics", headers={"Authorization": f"Bearer {KEY}"})
    assert 'workbench_requests_total{status="200"}' in answer.text
    table = service.table()
    assert {"replica", "in_flight", "done", "ttft_p50", "latency_p99"} <= set(table.columns)
    assert table["done"].sum() >= 1


def test_slow_senders_hold_nothing_up(service: wb.Service) -> None:
    port = int(service.url.rsplit(":", 1)[1].partition("/")[0])
    open_ones = []
    for _ in range(50):
        each = socket.create_connection(("127.0.0.1", port))
        each.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n")
        open_ones.append(each)
    try:
        assert service.endpoint().generate(QUESTION, max_new_tokens=4).spent == 4
    finally:
        for each in open_ones:
            each.close()


def test_a_killed_replica_loses_no_request(service: wb.Service) -> None:
    async def killing() -> list[Any]:
        endpoint = service.endpoint()
        asks = [asyncio.create_task(endpoint.agenerate(QUESTION, max_new_tokens=60, endless=True)) for _ in range(6)]
        await asyncio.wait(asks, return_when=asyncio.FIRST_COMPLETED)
        busy = max(service.status()["replicas"].items(), key=lambda seat: seat[1]["in_flight"])[0]
        await asyncio.to_thread(service.kill, busy)
        return await asyncio.gather(*asks, return_exceptions=True)

    found = asyncio.run(killing())
    assert all(isinstance(each, wb.Generation | wb.WorkbenchError) for each in found)
    assert any(isinstance(each, wb.Generation) for each in found)
    assert service.endpoint().generate(QUESTION, max_new_tokens=4).spent == 4


def test_a_rolling_update_fails_no_request(service: wb.Service, tiny: wb.Variant) -> None:
    other = tiny.apply(prompt.System(text="Be brief."))

    async def updating() -> list[Any]:
        endpoint, found = service.endpoint(), []
        update = asyncio.create_task(asyncio.to_thread(service.update, other))
        while not update.done():
            found.append(await asyncio.gather(endpoint.agenerate(QUESTION, max_new_tokens=4), return_exceptions=True))
        await update
        return [each for both in found for each in both]

    found = asyncio.run(updating())
    assert found
    assert all(isinstance(each, wb.Generation) for each in found), found
    assert (
        service.endpoint().generate(QUESTION, max_new_tokens=8).text == other.generate(QUESTION, max_new_tokens=8).text
    )


def test_what_others_can_reach_asks_for_a_token(service: wb.Service) -> None:
    import grpc

    service.endpoint().generate(QUESTION, max_new_tokens=1)
    seats = [seat for seat in service.status()["replicas"].values() if seat["process"] and not seat["lost"]]
    found = 0
    for seat in seats:
        for each in psutil.Process(seat["process"]).net_connections(kind="tcp"):
            if each.status == psutil.CONN_LISTEN and each.laddr.ip not in ("127.0.0.1", "::ffff:127.0.0.1", "::1"):
                found += 1
                with grpc.insecure_channel(f"127.0.0.1:{each.laddr.port}") as channel:
                    call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
                    with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
                        call(b"", timeout=10)
    assert found >= len(seats) or not seats
    proxy = int(service.url.rsplit(":", 1)[1].partition("/")[0])
    listening = [each.laddr for each in psutil.net_connections(kind="tcp") if each.status == psutil.CONN_LISTEN]
    assert {each.ip for each in listening if each.port == proxy} == {"127.0.0.1"}


def test_what_cannot_be_served(service: wb.Service, tiny: wb.Variant) -> None:
    with pytest.raises(InvalidInput, match="can be reached by other machines"):
        wb.serve(tiny, host="0.0.0.0")
    with pytest.raises(InvalidInput, match="at least 16"):
        wb.serve(tiny, key="short")
    with pytest.raises(InvalidInput, match="listen on port"):
        wb.serve(tiny, host="0.0.0.0", key=KEY)  # what is served without a key would be reached, too
    with pytest.raises(InvalidInput, match="no policy 'fair'"):
        wb.serve(tiny, policy="fair")
    with pytest.raises(InvalidInput, match="1 to 1000 replicas"):
        wb.serve(tiny, replicas=0)
    with pytest.raises(InvalidInput, match="takes a variant"):
        wb.serve(Example)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="nothing at"):
        wb.serve("/no/such/export")
