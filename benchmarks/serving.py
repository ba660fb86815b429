"""What a service costs and gains: overhead, clients at once, replicas, policies, a killed replica, a rolling update.

    python benchmarks/serving.py overhead scaling policies faults     # about 12 minutes on 2 cores
    python benchmarks/serving.py soak --seconds 1800

Each part writes a result of its own. Replicas have one thread each; whatever is compared is measured in turns.
"""

import argparse
import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import get_context
from statistics import median

import psutil
import torch
from common import questions, rounded, write_result

import workbench as wb
from workbench.core import estimate
from workbench.serving.application import POLICIES
from workbench.serving.service import Service
from workbench.steps import prompt, runtime

opened: wb.Variant  # of a process without a service
SLICE = 0.3  # seconds that a slowed replica is stopped and let go in turns


def overhead(rounds: int) -> None:
    """One request, straight from the variant and through the service, in turns."""
    torch.set_num_threads(1)
    base = wb.load()
    with wb.serve(base, port=0, threads=1) as service:
        endpoint = service.endpoint()
        asked = [each.prompt for each in questions().test[:rounds]]
        found: dict[str, list[tuple[float, float]]] = {"variant": [], "service": []}
        for number, text in enumerate([asked[0], *asked]):
            for name, who in [("variant", base), ("service", endpoint)][:: 1 if number % 2 else -1]:
                answer = who.generate(text, max_new_tokens=32, temperature=0.0, endless=True)
                each = (answer.times[-1] - answer.times[0]) / (len(answer.times) - 1)
                found[name] += [(answer.ttft, each)] if number else []
    first, gaps = ({name: [each[part] for each in values] for name, values in found.items()} for part in range(2))
    later = [1e3 * (s - v) for s, v in zip(first["service"], first["variant"], strict=True)]
    write_result(
        "serving_overhead",
        {
            "time per token, service / variant": rounded(estimate.paired_ratio(gaps["service"], gaps["variant"])),
            "first token later, ms": rounded(estimate.median(later, "ms"), 2),
            "variant, ms a token": round(1e3 * median(gaps["variant"]), 2),
            "rounds": rounds,
        },
    )


def scaling(rounds: int, seconds: float) -> None:
    """Throughput of one replica and of two, and of one and two processes without any service, in turns."""
    base = wb.load()
    plain = ProcessPoolExecutor(2, get_context("spawn"), _open)
    with wb.serve(base, port=0, threads=1) as one, wb.serve(base, replicas=2, threads=1) as two, plain:
        warm(one, two)

        def bare(processes: int) -> float:
            return sum(plain.map(_spoken, [seconds] * processes))

        def tested(service: Service, clients: int, tokens: int) -> float:
            spent = seconds * tokens / 32
            test = wb.load_test(
                service, questions(), concurrency=clients, seconds=spent, new_tokens=tokens, seed=number
            )
            assert not test.stages[0].errors, test.stages[0].errors
            return test.stages[0].throughput

        levels: dict[str, Callable[[], float]] = {
            "1 process": lambda: bare(1),
            "2 processes": lambda: bare(2),
            "1 replica, 1 at once": lambda: tested(one, 1, 32),
            "2 replicas, 2 at once": lambda: tested(two, 2, 32),
            "1 replica, 8 at once": lambda: tested(one, 8, 32),
            "2 replicas, 16 at once": lambda: tested(two, 16, 32),
            "1 replica, 1 at once, 128 tokens": lambda: tested(one, 1, 128),
            "1 replica, 8 at once, 128 tokens": lambda: tested(one, 8, 128),
        }
        found: dict[str, list[float]] = {name: [] for name in levels}
        bare(2)
        for number in range(rounds):
            for name in list(levels)[:: -1 if number % 2 else 1]:
                found[name].append(levels[name]())
    one0, two0, one1, two2, one8, two16, long1, long8 = found.values()
    write_result(
        "serving_scaling",
        {
            "tokens/s": {name: round(median(values), 1) for name, values in found.items()},
            "2 processes / 1, no service": rounded(estimate.paired_ratio(two0, one0)),
            "2 replicas / 1, one request each": rounded(estimate.paired_ratio(two2, one1)),
            "2 replicas / 1, eight requests each": rounded(estimate.paired_ratio(two16, one8)),
            "8 clients / 1 on one replica": rounded(estimate.paired_ratio(one8, one1)),
            "8 clients / 1 on one replica, 128 tokens": rounded(estimate.paired_ratio(long8, long1)),
            "rounds": rounds,
        },
    )


def _open() -> None:
    global opened
    torch.set_num_threads(1)
    opened = wb.load()


def _spoken(seconds: float) -> float:
    """Tokens a second of a model in this process, asked one question after another."""
    tokens, begun = 0, time.perf_counter()
    for each in questions().test:
        tokens += len(opened.generate(each.prompt, max_new_tokens=32, temperature=0.0, endless=True).token_ids)
        if time.perf_counter() - begun > seconds:
            break
    return tokens / (time.perf_counter() - begun)


def policies(rounds: int, seconds: float) -> None:
    """Every policy with one of two replicas slowed to a third, and with conversations that begin alike."""
    base = wb.load().apply(runtime.PrefixCache())
    with ExitStack() as stack:
        services = {
            policy: stack.enter_context(wb.serve(base, replicas=2, policy=policy, threads=1, port=0))
            for policy in POLICIES
        }
        warm(*services.values())
        slow: dict[str, list[wb.LoadTest]] = {policy: [] for policy in POLICIES}
        alike: dict[str, list[float]] = {policy: [] for policy in POLICIES}
        for number in range(rounds):
            for policy, service in list(services.items())[:: -1 if number % 2 else 1]:
                with slowed(service):
                    test = wb.load_test(service, questions(), rate=0.8, seconds=seconds, new_tokens=16, seed=number)
                slow[policy].append(test)
                alike[policy] += first_tokens(service, number)
        write_result(
            "serving_policies",
            {
                "one of two replicas slowed to a third": {
                    policy: {
                        "latency p50, s": rounded(pooled(tests, 0.5), 2),
                        "latency p95, s": rounded(pooled(tests, 0.95), 2),
                        "errors": sum(sum(test.stages[0].errors.values()) for test in tests),
                    }
                    for policy, tests in slow.items()
                },
                "conversations with shared 512-token beginnings": {
                    policy: {"first token, median, s": rounded(estimate.median(values, "s"), 3), "n": len(values)}
                    for policy, values in alike.items()
                },
                "rounds": rounds,
            },
        )


def pooled(tests: list[wb.LoadTest], q: float) -> wb.Estimate:
    """A quantile of the latency of all requests."""
    return estimate.quantile([sent.latency for test in tests for sent in test.stages[0].answered], q, "s")


def first_tokens(service: Service, seed: int) -> list[float]:
    """Seconds to the first token of four conversations' questions, each behind a beginning of its own."""
    facts = [each.prompt for each in questions().test]
    found = []
    endpoint = service.endpoint()
    for turn in range(3):
        for talk in random.Random(f"{seed} {turn}").sample(range(4), 4):  # in one order, taking turns would be as good
            beginning = f"Conversation {seed}.{talk}. " + " ".join(facts[talk * 8 : talk * 8 + 8])[:2200]
            answer = endpoint.generate(f"{beginning}\n\nQuestion {turn}: {facts[turn]}", max_new_tokens=2, endless=True)
            found += [answer.ttft] if turn else []
    return found


@contextmanager
def slowed(service: Service) -> Iterator[None]:
    """One of its replicas runs a third of the time."""
    process = next(
        seat["process"] for seat in service.status()["replicas"].values() if seat["done"] and not seat["lost"]
    )
    over = threading.Event()

    def throttle() -> None:
        while not over.is_set():
            os.kill(process, signal.SIGSTOP)
            time.sleep(2 * SLICE)
            os.kill(process, signal.SIGCONT)
            time.sleep(SLICE)

    thread = threading.Thread(target=throttle)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def faults(seconds: float) -> None:
    """A replica killed under load, and a rolling update under load."""
    base = wb.load()
    with wb.serve(base, replicas=2, threads=1, port=0) as service:
        warm(service)
        victim = next(iter(answering(service)))
        died: list[float] = []

        def kill() -> None:
            died.append(time.monotonic())
            service.kill(victim)

        back: list[float] = []
        watching = threading.Thread(target=lambda: back.append(recovered(service, died)), daemon=True)
        watching.start()
        killed = wb.load_test(service, questions(), rate=1.0, seconds=seconds, new_tokens=16, at={seconds / 3: kill})
        endpoint = service.endpoint()
        while watching.is_alive():  # the new one may be ready only after the last request
            endpoint.generate("Hi", max_new_tokens=1)
        watching.join()
        other = base.apply(prompt.System(text="Be brief."))
        update = {seconds / 6: lambda: service.update(other)}
        updated = wb.load_test(service, questions(), rate=1.0, seconds=2 * seconds, new_tokens=16, at=update)
    write_result(
        "serving_faults",
        {
            "killed": {
                "requests": len(killed.stages[0].sent),
                "answered": len(killed.stages[0].answered),
                "errors": killed.stages[0].errors,
                "two replicas again after, s": round(back[0], 1),
            },
            "rolling update": {
                "requests": len(updated.stages[0].sent),
                "answered": len(updated.stages[0].answered),
                "errors": updated.stages[0].errors,
            },
        },
    )


def recovered(service: Service, died: list[float]) -> float:
    """Seconds from a replica's death until another has answered in its place."""
    before = answering(service)
    while not died or not answering(service) - before:
        time.sleep(0.2)
    return time.monotonic() - died[0]


def answering(service: Service) -> set[str]:
    """The replicas that have answered."""
    return {name for name, seat in service.status()["replicas"].items() if seat["done"]}


def soak(seconds: float) -> None:
    """Memory of a service's processes while it answers for long; and every error."""
    base = wb.load()
    held: list[dict[str, float]] = []
    with wb.serve(base, replicas=2, threads=1, port=0) as service:
        warm(service)
        over = threading.Event()

        def watch() -> None:
            while not over.wait(30):
                held.append({name: round(rss / 1e6) for name, rss in resident().items()})

        watching = threading.Thread(target=watch)
        watching.start()
        test = wb.load_test(service, questions(), rate=0.5, seconds=seconds, new_tokens=16)
        over.set()
        watching.join()
    stage = test.stages[0]
    write_result(
        "serving_soak",
        {
            "seconds": seconds,
            "requests": len(stage.sent),
            "errors": stage.errors,
            "MB, in ten times": held[:: max(1, len(held) // 10)],
        },
    )


def resident() -> dict[str, float]:
    """Bytes in memory of this process and of the service's, by kind."""
    found = {"client": float(psutil.Process().memory_info().rss)}
    for each in psutil.Process().children(recursive=True):  # not those of another service
        with suppress(psutil.NoSuchProcess):
            name, held = " ".join(each.cmdline()), each.memory_info().rss
            for kind in ("ServeReplica:service-1:answers", "ServeReplica:service-1:front", "Proxy", "Controller"):
                if kind in name:
                    found[kind] = found.get(kind, 0.0) + held
    return found


def warm(*services: Service) -> None:
    """Have every replica answer once."""

    async def ask(service: Service) -> None:
        endpoint = service.endpoint()
        while len(answering(service)) < service.replicas:
            texts = [f"Hi {random.random()}" for _ in range(2 * service.replicas)]  # for the same may go to the same
            await asyncio.gather(*(endpoint.agenerate(each, max_new_tokens=4) for each in texts))

    for service in services:
        asyncio.run(ask(service))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="+", choices=["overhead", "scaling", "policies", "faults", "soak"])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=15.0)
    given = parser.parse_args()
    for part in given.parts:
        match part:
            case "overhead":
                overhead(4 * given.rounds)
            case "scaling":
                scaling(given.rounds, given.seconds / 2)
            case "policies":
                policies(given.rounds // 2, given.seconds)
            case "faults":
                faults(2 * given.seconds)
            case "soak":
                soak(given.seconds)
