"""What a plan assumes, each with its unit and where it is from, and what a replica takes by it on another device."""

from collections.abc import Mapping
from pathlib import Path
from statistics import NormalDist
from typing import Any, Self

import numpy as np
from pydantic import Field

from workbench.analysis.roofline import SHEETS, Device, Pass, sheet
from workbench.core import units
from workbench.core.errors import InvalidInput
from workbench.core.value import Value
from workbench.models.headers import read_headers
from workbench.runtime.footprint import is_product, kv_bytes, numbers
from workbench.serving.queueing import Load
from workbench.serving.times import ServiceTimes
from workbench.variant import Variant

ASSUMED = "assumption"
LENGTHS = 200  # of prompts and answers, at as many quantiles
MODEL = "https://huggingface.co/meta-llama/Llama-3.1-8B-Instruct"
WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}  # bytes of a number


def told(default: Any, unit: str, source: str = ASSUMED, **bounds: Any) -> Any:
    """A field with its unit and where its default is from."""
    return Field(default=default, json_schema_extra={"unit": unit, "source": source}, **bounds)


# What is not used where times were measured.
PREDICTING = (
    *("weights", "weight_bytes", "token_bytes", "kind", "device", "devices_per_replica", "divided", "memory_usable"),
    *("bandwidth_reached", "arithmetic_reached", "most_rows", "waiting", "chunk", "overhead"),
)
H200 = sheet("H200")
assert H200 is not None


class Assumptions(Value):
    """Everything that a plan rests on; `Plan.but` changes any of it.

    Attributes:
        users: who use the service.
        requests_per_hour: of each user, in the busiest hour.
        prompt_tokens: of a request, on average.
        answer_tokens: likewise.
        spread: of both, as standard deviation over mean; 0 for all alike. They are drawn log-normally.
        target_first: within which 95 % of the requests are to have their first token.
        target_gap: below which 95 % of the requests are to wait from token to token, on average over the answer.
        target_refused: requests that may find no place to wait.
        model: what is served.
        weights: numbers that take part in the products.
        weight_bytes: held, and read for every pass.
        token_bytes: keys and values of one token.
        kind: type that is multiplied in.
        device: what each replica runs on.
        devices_per_replica: among which a replica is divided (tensor parallel).
        divided: share of the speed of so many devices that dividing leaves.
        bandwidth_reached: share of the device's bandwidth that passes reach in practice.
        arithmetic_reached: share of its arithmetic.
        memory_usable: share of its memory for weights, keys and values.
        most_rows: side by side in a replica.
        waiting: that may wait for a row.
        chunk: tokens of prompts read between two tokens of the others.
        overhead: of a request outside the replica.
        policy: who gets a request.
        most_load: to which replicas are used, for what a simulation of minutes does not see.
        spare: replicas that may fail or be replaced without harm.
        price: of a device, 0 where none is known.
        times: of a replica, as measured; None for what the roofline of the device says.
    """

    users: int = told(10_000, "users", ge=1, le=10**10)
    requests_per_hour: float = told(6.0, "requests an hour and user", gt=0, le=3.6e6)
    prompt_tokens: float = told(500.0, "tokens", ge=1, le=1 << 20)
    answer_tokens: float = told(250.0, "tokens", ge=1, le=1 << 20)
    spread: float = told(1.0, "of the mean", ge=0, le=5)
    target_first: float = told(1.0, "s, 95 % within", gt=0, le=3600)
    target_gap: float = told(0.05, "s, 95 % within", gt=0, le=3600)
    target_refused: float = told(0.001, "of the requests at most", ge=0, le=1)
    model: str = told("8 billion weights in bfloat16", "", f"as {MODEL}", min_length=1, max_length=200)
    weights: int = told(7_504_924_672, "weights", f"as {MODEL}, its token embedding left out", ge=1, le=10**14)
    weight_bytes: int = told(16_060_522_496, "bytes", "2 for each of 8,030,261,248", ge=1, le=10**15)
    token_bytes: int = told(131_072, "bytes a token", f"2 x 32 layers x 8 heads x 128 x 2 bytes, as {MODEL}", ge=0)
    kind: str = told("bfloat16", "")
    device: Device = told(H200, "")
    devices_per_replica: int = told(1, "devices", ge=1, le=1024)
    divided: float = told(0.8, "of the speed, if more than one device", gt=0, le=1)
    bandwidth_reached: float = told(0.6, "of the bandwidth", gt=0, le=1)
    arithmetic_reached: float = told(0.4, "of the arithmetic", gt=0, le=1)
    memory_usable: float = told(0.9, "of the memory", gt=0, le=1)
    most_rows: int = told(256, "requests", ge=1, le=4096)
    waiting: int = told(1000, "requests a replica", ge=0, le=10_000_000)
    chunk: int = told(2048, "tokens", ge=16, le=1 << 20)
    overhead: float = told(0.02, "s", ge=0, le=3600)
    policy: str = told("power of two choices", "")
    most_load: float = told(0.85, "of what replicas can answer at most", gt=0, lt=1)
    spare: int = told(1, "replicas", ge=0, le=1000)
    price: float = told(0.0, "an hour and device", ge=0, le=1e6)
    times: ServiceTimes | None = told(None, "")

    def but(self, **changes: Any) -> Self:
        """The same with some changed; a device may be named by words of its data sheet."""
        return self.model_copy(update=changes)

    def listed(self, sources: Mapping[str, str]) -> list[tuple[str, Any, str, str]]:
        """Name, value, unit and source of each that is used; a default has a source of its own."""
        found: list[tuple[str, Any, str, str]] = []
        value: Any
        for name, field in type(self).model_fields.items():
            about, value = field.json_schema_extra, getattr(self, name)
            assert isinstance(about, dict)
            if self.times is not None and name in PREDICTING:
                continue
            source = sources.get(name, str(about["source"]))
            if isinstance(value, Device):
                value, source = value.name, f"from data sheets: {value.source}" if value in SHEETS else value.source
            elif isinstance(value, ServiceTimes):
                value, source = "measured", value.source
            elif value is None:
                value, source = "by roofline", "prediction"
            found.append((name, value, str(about["unit"]), source))
        return found

    @property
    def load(self) -> Load:
        """What comes in the busiest hour."""
        return Load(
            rate=self.users * self.requests_per_hour / 3600,
            prompts=_lengths(self.prompt_tokens, self.spread, 0),
            answers=_lengths(self.answer_tokens, self.spread, 1),
        )

    @property
    def tokens(self) -> float:
        """Of a request at its end, on average."""
        return self.prompt_tokens + self.answer_tokens

    @property
    def room(self) -> float:
        """Bytes that the devices of a replica leave for keys and values; endless where their memory is not known."""
        held = self.memory_usable * self.device.memory * self.devices_per_replica
        return held - self.weight_bytes if self.device.memory else float("inf")

    @property
    def fitting(self) -> float:
        """Requests of mean length whose keys and values there is room for."""
        return self.room / (self.tokens * self.token_bytes) if self.token_bytes else float("inf")

    @property
    def reached(self) -> Device:
        """All devices of a replica as one, as fast as they are in practice."""
        speed = self.devices_per_replica * (self.divided if self.devices_per_replica > 1 else 1.0)
        device = self.device
        return device.model_copy(
            update={
                "bandwidth": speed * self.bandwidth_reached * device.bandwidth,
                "flops": {kind: speed * self.arithmetic_reached * rate for kind, rate in device.flops.items()},
            }
        )

    def decoding(self, rows: float) -> Pass:
        """A pass that gives so many rows, on average halfway through their answers, a token each."""
        states = rows * (self.prompt_tokens + self.answer_tokens / 2) * self.token_bytes
        return Pass(self.weight_bytes, round(states), 2.0 * self.weights * rows, 0, self.kind)

    def prefill(self, tokens: float) -> Pass:
        """A pass that reads so many tokens of prompts."""
        return Pass(self.weight_bytes, round(tokens * self.token_bytes), 2.0 * self.weights * tokens, 0, self.kind)

    def by_roofline(self) -> ServiceTimes:
        """What a replica takes on this device, predicted; what starts operations is left out.

        Raises:
            InvalidInput: it does not fit.
        """
        self._check_fits()
        device, most = self.reached, max(1, int(min(self.most_rows, self.fitting)))
        at = sorted({1, most, *(1 << power for power in range(12) if 1 << power < most)})
        gap = tuple((rows, self.decoding(rows).least(device, calls=False)) for rows in at)
        lengths = sorted({1, self.chunk, *(1 << power for power in range(4, 21) if 1 << power < self.chunk)})
        read = [(tokens, self.prefill(tokens).least(device, calls=False)) for tokens in lengths]
        read.append((2 * self.chunk, 2 * read[-1][1]))  # longer ones are read piece by piece
        return ServiceTimes(
            read=tuple(read), gap=gap, rows=most, waiting=self.waiting, chunk=self.chunk, overhead=self.overhead,
            source=f"prediction by the roofline of {self.device.name}",
        )  # fmt: skip

    def _check_fits(self) -> None:
        one = self.memory_usable * self.device.memory
        if self.fitting >= 1:
            return
        needed = 1
        while needed * one < self.weight_bytes + self.tokens * self.token_bytes:
            needed *= 2
        whose = "It has" if self.devices_per_replica == 1 else f"{self.devices_per_replica} of them have"
        raise InvalidInput(
            f"'{self.model}' does not fit on {self.device.name}: {units.size(self.weight_bytes)} of weights and "
            f"{units.size(self.tokens * self.token_bytes)} for one request are needed. {whose} "
            f"{units.size(self.devices_per_replica * one)} to use: a replica needs {needed} of them by tensor "
            f"parallel, devices_per_replica={needed}."
        )


def about(what: "Variant | str | Path", kind: str | None = None) -> dict[str, Any]:
    """What is assumed of a model, read from a variant or from the headers of one that is not loaded.

    Args:
        what: a variant; or a folder, a .gguf file, or a hub id whose files are here.
        kind: type that a model is loaded and multiplied in; a variant has its own.

    Raises:
        InvalidInput: its files hold packed codes, which do not tell how many weights they stand for; a damaged header.
        NotAvailable: it is not on this machine.
    """
    if isinstance(what, Variant):
        products = [each for each in what.model.modules() if is_product(each)]
        return {
            "model": what.name[:200] or "a variant",
            "weights": max(1, sum(map(numbers, products))),
            "weight_bytes": what.total_bytes,
            "token_bytes": kv_bytes(what.model, getattr(what.engine, "cache_bits", 16)),
            "kind": kind or str(what.dtype).removeprefix("torch."),
        }
    found, kind = read_headers(what), kind or "bfloat16"
    if kind not in WIDTHS:
        raise InvalidInput(f"A model is multiplied in one of {', '.join(WIDTHS)}, not in '{kind[:60]}'.")
    if found.packed:
        raise InvalidInput(f"The files of '{found.name}' hold packed codes: load it, and plan with the variant.")
    if not found.cached:
        raise InvalidInput(
            f"The configuration of '{found.name}' does not tell what keys and values take: load it, and plan with the "
            "variant, or give weights, weight_bytes and token_bytes yourself."
        )
    return {
        "model": found.name[:200],
        "weights": found.weights,
        "weight_bytes": found.loaded(WIDTHS[kind]),
        "token_bytes": found.cached * max(2, WIDTHS[kind]),
        "kind": kind,
    }


def _lengths(mean: float, spread: float, seed: int) -> tuple[int, ...]:
    """Whole lengths with such a mean, at the quantiles of a log-normal distribution, in an order of their own."""
    sigma = float(np.sqrt(np.log1p(spread**2)))
    normal = np.array([NormalDist().inv_cdf((at + 0.5) / LENGTHS) for at in range(LENGTHS)])
    found = np.exp(sigma * normal)
    found = np.maximum(1, np.rint(found * mean / found.mean()))
    return tuple(np.random.default_rng(seed).permutation(found).astype(int).tolist())
