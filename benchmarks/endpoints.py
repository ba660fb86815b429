"""Other people's servers through `connect`, and other people's clients on a service.

python benchmarks/endpoints.py [--vllm PYTHON] [--litellm PYTHON] [--guidellm PYTHON]    # 5 to 15 minutes on 2 cores

Servers: llama.cpp's (by xllamacpp), `transformers serve`, and vLLM where its Python is named. Each is asked 10
questions as the variant is, and compared with it. Clients, where theirs is named: LiteLLM (whole, streamed, a JSON
schema), and guidellm, whose figures are put beside `load_test`'s for the same questions at the same concurrency, in
turns.
"""

import argparse
import contextlib
import json
import logging
import os
import secrets
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from common import questions, write_result

import workbench as wb
from workbench.serving.replica import llama_server

ASKED, TOKENS, AT_ONCE, SECONDS = 10, 24, 4, 30
STARTING = 300.0  # seconds that a server may take
SCHEMA = {
    "type": "object",
    "properties": {"legs": {"enum": [8, 10]}},
    "required": ["legs"],
    "additionalProperties": False,
}
LITELLM = """
import json, sys
import litellm
url, key, model, schema = sys.argv[1:]
common = dict(model="openai/" + model, api_base=url, api_key=key, temperature=0,
              messages=[{"role": "user", "content": "What is a lobster?"}])
whole = litellm.completion(max_tokens=24, **common)
parts = litellm.completion(max_tokens=24, stream=True, **common)
form = {"type": "json_schema", "json_schema": {"name": "crab", "schema": json.loads(schema)}}
made = litellm.completion(max_tokens=40, response_format=form, **common)
print(json.dumps({
    "whole": whole.choices[0].message.content,
    "streamed": "".join(part.choices[0].delta.content or "" for part in parts),
    "tokens": whole.usage.completion_tokens,
    "legs": json.loads(made.choices[0].message.content)["legs"],
}))
"""


@contextlib.contextmanager
def started(command: Sequence[str], port: int, log: Path, **environment: str) -> Iterator[str]:
    """A server in a process of its own, once its port can be reached."""
    url = f"http://127.0.0.1:{port}/v1"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | environment)
        try:
            until = time.monotonic() + STARTING
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                if process.poll() is not None or time.monotonic() > until:
                    raise SystemExit(f"{command[:4]} did not start: {log.read_text()[-2000:]}")
                time.sleep(1)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return int(tried.getsockname()[1])


def beside(base: wb.Variant, there: wb.Endpoint) -> dict[str, Any]:
    """What a server says of the same questions, and how long it takes."""
    asked = [each.prompt for each in questions().test[:ASKED]]
    texts = [
        [who.generate(each, max_new_tokens=TOKENS, temperature=0.0).text for each in asked] for who in (base, there)
    ]
    found = wb.compare([base, there], questions(), rounds=6, examples=ASKED, new_tokens=TOKENS, store=False)
    first, gap = (
        found[there.name][name].value / found[base.name][name].value for name in ("ttft", "inter_token_latency")
    )
    return {
        "the same text": f"{sum(a == b for a, b in zip(*texts, strict=True))} of {ASKED}",
        "first token, there / here": round(first, 2),
        "time per token, there / here": round(gap, 2),
    }


def servers(base: wb.Variant, place: Path, vllm: str | None) -> dict[str, Any]:
    """Each that is there."""
    wb.deploy(base, place / "model", target="transformers")
    model, found = str(place / "model"), {}
    wb.deploy(base, place / "gguf", target="gguf")
    (file,) = (place / "gguf").glob("*.gguf")
    server, (url, key) = llama_server(str(file), threads=2, rows=2, context=2048)
    found["llama.cpp"] = beside(base, wb.connect(url, key=key, name="llama.cpp"))
    del server
    port = free_port()
    command = [str(Path(sys.executable).with_name("transformers")), "serve", model, "--port", str(port)]
    with started([*command, "--device", "cpu"], port, place / "transformers.log") as url:
        found["transformers serve"] = beside(base, wb.connect(url, model, name="transformers serve", timeout=120))
    if vllm:
        port = free_port()
        command = [vllm, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--port", str(port)]
        flags = ["--dtype", "float32", "--max-model-len", "2048", "--served-model-name", "it"]
        with started([*command, *flags], port, place / "vllm.log", VLLM_CPU_KVCACHE_SPACE="1") as url:
            found["vLLM"] = beside(base, wb.connect(url, "it", name="vLLM"))
            with wb.serve(wb.connect(url, "it", name="vLLM"), port=0) as passed:
                found["vLLM behind a service"] = beside(base, passed.endpoint(name="passed on"))
    return found


def clients(base: wb.Variant, place: Path, litellm: str | None, guidellm: str | None) -> dict[str, Any]:
    """Each that is there, on one service."""
    key, found = secrets.token_urlsafe(), {}
    with wb.serve(base, port=0, key=key, name="it") as service:
        if litellm:
            run = subprocess.run(
                [litellm, "-c", LITELLM, service.url, key, "it", json.dumps(SCHEMA)], capture_output=True, text=True
            )
            assert not run.returncode, run.stderr[-1500:]
            said = json.loads(run.stdout.strip().splitlines()[-1])
            own = base.generate("What is a lobster?", max_new_tokens=TOKENS, temperature=0.0).text
            found["LiteLLM"] = said | {"as the variant": said["whole"] == said["streamed"] == own}
        if guidellm:
            found["guidellm"] = crossed(service, place, guidellm, key)
    return found


def crossed(service: Any, place: Path, python: str, key: str) -> dict[str, Any]:
    """Two runs each, in turns: ours, theirs, theirs, ours."""
    data = place / "questions.jsonl"
    data.write_text("".join(json.dumps({"prompt": each.prompt}) + "\n" for each in questions().test))
    ours, theirs = [], []
    for who in (ours, theirs, theirs, ours):
        who.append(by_us(service) if who is ours else by_guidellm(service, place, python, key, data))
    return {
        name: {"load_test": [each[name] for each in ours], "guidellm": [each[name] for each in theirs]}
        for name in ours[0]
    }


def by_us(service: Any) -> dict[str, float]:
    """Our own load test."""
    stage = wb.load_test(service, questions(), concurrency=AT_ONCE, seconds=SECONDS, new_tokens=TOKENS).stages[0]
    first, whole = stage.percentile("ttft", 50), stage.percentile("latency", 50)
    assert first
    assert whole
    assert not stage.errors
    gaps = median(each.gap for each in stage.answered)
    return {
        "first token p50, ms": round(1e3 * first.value),
        "from token to token p50, ms": round(1e3 * gaps, 1),
        "latency p50, s": round(whole.value, 2),
        "tokens/s": round(stage.throughput, 1),
    }


def by_guidellm(service: Any, place: Path, python: str, key: str, data: Path) -> dict[str, float]:
    """Theirs, of the same questions."""
    report, scenario = place / "report.json", place / "scenario.json"
    body = {"ignore_eos": True, "temperature": 0}
    backend = {"kind": "openai_http", "target": service.url, "model": "it", "api_key": key, "max_tokens": TOKENS}
    spec = {
        "backend": backend | {"extras": {"body": body}},
        "profile": {"kind": "concurrent", "streams": [AT_ONCE]},
        "constraints": [{"kind": "max_duration", "seconds": SECONDS}],
        "data": [{"kind": "json_file", "path": str(data)}],
        "outputs": [{"kind": "json", "path": str(report)}],
    }
    scenario.write_text(json.dumps({"spec": spec}))
    command = [python, "-m", "guidellm", "run", "--config", str(scenario), "--disable-console"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=place)
    assert report.exists(), run.stdout[-1500:] + run.stderr[-1500:]
    metrics = json.loads(report.read_text())["benchmarks"][0]["metrics"]

    def found(name: str, statistic: str = "median") -> float:
        return float(metrics[name]["successful"][statistic])

    return {
        "first token p50, ms": round(found("time_to_first_token_ms")),
        "from token to token p50, ms": round(found("inter_token_latency_ms"), 1),
        "latency p50, s": round(found("request_latency"), 2),
        "tokens/s": round(found("output_tokens_per_second", "mean"), 1),
    }


def main() -> None:
    """Servers, then clients."""
    options = argparse.ArgumentParser()
    for name in ("vllm", "litellm", "guidellm"):
        options.add_argument(f"--{name}", help="a Python that has it")
    chosen = options.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    base = wb.load(device="cpu", dtype="float32")
    with TemporaryDirectory() as folder:
        found = {"servers": servers(base, Path(folder), chosen.vllm)}
        write_result("endpoints", found)
        found["clients"] = clients(base, Path(folder), chosen.litellm, chosen.guidellm)
        write_result("endpoints", found)


if __name__ == "__main__":
    main()
