"""How many devices so many users need: every assumption shown, the arithmetic line by line, waits simulated."""

from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.analysis import roofline
from workbench.core import units
from workbench.core.drawn import HTML, Drawn, drawn
from workbench.serving.assumptions import Assumptions, about
from workbench.serving.queueing import capacity
from workbench.serving.sizing import SIMULATED, Trial, check_reachable, tried
from workbench.serving.times import ServiceTimes
from workbench.variant import Variant

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

GIVEN = "given"
MONTH = 730  # hours
BOUNDS = {
    "reading weights": "Bandwidth",
    "reading keys and values": "Bandwidth",
    "arithmetic of answers": "Arithmetic",
    "reading prompts": "Reading",
    "writing answers": "Decoding",
}
HELPS = {
    "reading weights": "fewer bits a weight, or more requests side by side, help most",
    "reading keys and values": "a shorter context, or fewer bits of keys and values, help most",
    "arithmetic of answers": "fewer weights or a smaller type to multiply in help most",
    "reading prompts": "shorter prompts, or ones whose beginnings are kept, help most",
    "writing answers": "fewer bits a weight, a faster engine or shorter answers help most",
}


@dataclass(frozen=True)
class Plan(Drawn):
    """How many devices so many users need.

    Attributes:
        assumptions: all that it rests on.
        sources: of those that are not defaults: given, or read from the model.
        times: of a replica, measured or predicted.
        capacity: requests a second above which queues of one replica only grow.
        trials: numbers of replicas that were simulated, in order.
        chosen: the smallest that keeps to the targets.
    """

    assumptions: Assumptions
    sources: dict[str, str]
    times: ServiceTimes
    capacity: float
    trials: tuple[Trial, ...]
    chosen: Trial

    @property
    def replicas(self) -> int:
        """All of them, the spare ones included."""
        return self.chosen.replicas + self.assumptions.spare

    @property
    def devices(self) -> int:
        """All of them."""
        return self.devices_of(self.chosen.replicas)

    @property
    def cost(self) -> float:
        """An hour; 0 where no price is known."""
        return self.devices * self.assumptions.price

    @property
    def where(self) -> str:
        """What a replica runs on."""
        return "machines like this one" if self.assumptions.times else self.assumptions.device.name

    @property
    def _each(self) -> int:
        return 1 if self.assumptions.times else self.assumptions.devices_per_replica

    def devices_of(self, replicas: int) -> int:
        """Devices of so many replicas and the spare ones."""
        return (replicas + self.assumptions.spare) * self._each

    def needed(self, users: float) -> int:
        """Devices for another number of users, each replica as busy as in this plan; a plan of its own is exact."""
        share = self.assumptions.users / self.chosen.replicas
        return self.devices_of(ceil(users / share - 1e-9))

    @property
    def shares(self) -> dict[str, float]:
        """What a replica's busy time is spent on."""
        a, load = self.assumptions, self.assumptions.load
        busy = self.chosen.found["utilisation"].value
        rows = max(1.0, self.chosen.found["rows"].value / max(busy, 1e-9))
        read = float(self.times.reading(np.array(load.prompts)).mean())
        answered = (float(np.mean(load.answers)) - 1) * float(self.times.token(rows)) / rows
        whole = max(read + answered, 1e-12)
        if a.times is not None:
            return {"reading prompts": read / whole, "writing answers": answered / whole}
        work, device = a.decoding(rows), a.reached
        parts = {"reading prompts": read / whole}
        if work.computing(device) > work.reading(device):
            return parts | {"arithmetic of answers": answered / whole}
        weights = work.weight_bytes / (work.weight_bytes + work.other_bytes)
        return parts | {
            "reading weights": weights * answered / whole,
            "reading keys and values": (1 - weights) * answered / whole,
        }

    @property
    def dominates(self) -> str:
        """What bounds a replica, in a sentence."""
        a, name = self.assumptions, max(self.shares, key=self.shares.__getitem__)
        busy = self.chosen.found["utilisation"].value
        if a.times is None and a.fitting < a.most_rows and self.chosen.found["rows"].value > 0.6 * busy * a.fitting:
            return (
                f"Memory for keys and values is the bound: only {int(a.fitting)} requests fit beside "
                f"{units.size(a.weight_bytes)} of weights; fewer bits of either help most."
            )
        prompt, bound = a.prefill(min(a.prompt_tokens, a.chunk)), BOUNDS[name]
        if name == "reading prompts" and a.times is None:
            bound = "Arithmetic" if prompt.computing(a.reached) > prompt.reading(a.reached) else "Bandwidth"
        return f"{bound} is the bound: {name} takes {self.shares[name]:.0%} of the time; {HELPS[name]}."

    @property
    def sentence(self) -> str:
        """The answer."""
        a, spare = self.assumptions, self.assumptions.spare
        divided = f", {self._each} a replica" if self._each > 1 else ""
        found = "measured times" if a.times else "a prediction by roofline"
        return (
            f"{_count(a.users, 'user')} {'needs' if a.users == 1 else 'need'} {self.devices:,} x {self.where}"
            f"{divided}: {_count(self.chosen.replicas, 'replica')} and {spare} spare; from {found}."
        )

    @property
    def lines(self) -> list[str]:
        """The arithmetic, step by step."""
        a, load = self.assumptions, self.assumptions.load
        first, gap = self.chosen.found["ttft p95"], self.chosen.found["gap p95"]
        least = max(1, ceil(load.rate / (a.most_load * self.capacity) - 1e-9))
        used = load.rate / self.chosen.replicas / self.capacity
        count, most = self.chosen.replicas, f"{a.most_load:.0%}"
        found = [
            f"{_count(a.users, 'user')} x {a.requests_per_hour:,g} requests an hour / 3,600 s = {_number(load.rate)} "
            "requests/s.",
            f"{_number(load.rate)} requests/s x {a.prompt_tokens:,g} tokens = {_number(load.rate * a.prompt_tokens)} "
            f"tokens/s to read; x {a.answer_tokens:,g} = {_number(load.rate * a.answer_tokens)} tokens/s to write.",
            *(self._measured() if a.times else self._predicted()),
            f"With all its rows in use a replica answers {_number(self.capacity)} requests/s (simulated); used to "
            f"{most} of that at most, {_count(least, 'replica')} would do, whatever one waits.",
            f"{_count(count, 'replica')} {'keeps' if count == 1 else 'keep'} to the targets, used to {used:.0%}: 95 % "
            f"of the first tokens within {first.value:.3g} s [{first.low:.3g}, {first.high:.3g}], target "
            f"{a.target_first:g} s; from token to token {1e3 * gap.value:.3g} ms [{1e3 * gap.low:.3g}, "
            f"{1e3 * gap.high:.3g}], target {1e3 * a.target_gap:g} ms; {self.chosen.found['rows'].value:.3g} rows a "
            "replica on average.",
        ]
        fewer = [each for each in self.trials if each.replicas < self.chosen.replicas]
        if fewer:
            last = fewer[-1]
            found.append(
                f"{_count(last.replicas, 'replica')} would not: used to "
                f"{load.rate / last.replicas / self.capacity:.0%}, {last.found['ttft p95'].value:.3g} s and "
                f"{1e3 * last.found['gap p95'].value:.3g} ms."
            )
        if self.chosen.replicas > SIMULATED:
            found.append(f"Simulated as {SIMULATED} replicas with their share of the load: more wait no longer.")
        found.append(
            f"{self.chosen.replicas:,} + {a.spare} spare = {self.replicas:,} replicas x {self._each} = "
            f"{self.devices:,} devices."
        )
        if a.price:
            found.append(
                f"{self.devices:,} x {a.price:g} = {self.cost:,.2f} an hour, {MONTH * self.cost:,.0f} a month of "
                f"{MONTH} hours; {self.cost / (load.rate * 3600 * a.answer_tokens) * 1e6:.3g} a million tokens "
                "written at the peak."
            )
        return [*found, self.dominates]

    def _measured(self) -> list[str]:
        times, tokens = self.times, self.assumptions.prompt_tokens
        said = (
            f"Measured ({times.source}): {1e3 * float(times.token(1)):.3g} ms from token to token with 1 row, "
            f"{1e3 * float(times.token(times.rows)):.3g} ms with {times.rows}; a prompt of {tokens:g} tokens "
            f"{float(times.reading(tokens)):.3g} s."
        )
        return [said, "Each replica has a machine to itself: contention is left out."]

    def _predicted(self) -> list[str]:
        a, device, times = self.assumptions, self.assumptions.reached, self.times
        one, full, prompt = a.decoding(1), a.decoding(times.rows), a.prefill(a.prompt_tokens)
        several = f"{a.devices_per_replica} x {a.divided:g} x " if a.devices_per_replica > 1 else ""
        arithmetic = "how fast it computes is not known, and left out"
        if a.device.flops:
            arithmetic = f"{several}{a.device.rate(a.kind):.4g} operations/s x {a.arithmetic_reached:g} = "
            arithmetic += f"{device.rate(a.kind):.4g}/s"
        memory = "Memory is not known, and taken as enough."
        if a.device.memory:
            memory = (
                f"{a.devices_per_replica} x {units.size(a.device.memory)} x {a.memory_usable:g} - "
                f"{units.size(a.weight_bytes)} of weights = {units.size(a.room)} for keys and values; "
                f"{a.tokens:g} tokens x {units.size(a.token_bytes)} = {units.size(a.tokens * a.token_bytes)} a "
                f"request: {min(a.fitting, 1e9):,.0f} fit, {times.rows} at most are answered side by side."
            )
        return [
            memory,
            f"{several}{units.size(a.device.bandwidth)}/s x {a.bandwidth_reached:g} = "
            f"{units.size(device.bandwidth)}/s; {arithmetic} (prediction).",
            f"A token with 1 row: {_passed(one, device)}; with {times.rows}: {_passed(full, device)}.",
            f"A prompt of {a.prompt_tokens:g} tokens: {_passed(prompt, device)}.",
        ]

    def but(self, **changes: Any) -> "Plan":
        """The plan for other assumptions.

        Raises:
            InvalidInput: what `plan` refuses.
        """
        kept = {name: getattr(self.assumptions, name) for name in self.sources}
        return _planned(kept | changes, self.sources | dict.fromkeys(changes, GIVEN))

    def table(self) -> "pandas.DataFrame":
        """One row an assumption: its value, its unit, and where it is from."""
        import pandas

        rows = self.assumptions.listed(self.sources)
        columns = ["assumption", "value", "unit", "source"]
        return pandas.DataFrame(rows, columns=columns).astype({"value": object}).set_index("assumption")

    def figure(self, transparent: bool = False) -> "plotly.graph_objects.Figure":
        """Devices over users, and what 95 % wait over the number of devices, the targets marked."""
        return drawn(self, transparent=transparent)

    def html(self) -> str:
        """The answer, its arithmetic and all assumptions, without a kernel."""
        return str(drawn(self, HTML))

    def __str__(self) -> str:
        return "\n".join([self.sentence, *self.lines])

    __repr__ = __str__


def plan(what: "Variant | str | Path | None" = None, **assumptions: Any) -> Plan:
    """Find how many devices so many users need.

    The time that a replica takes is `times`, as measured here, or else what the roofline of the device predicts; the
    waits come from simulating replicas at a load that rises by one until the targets are kept.

    Args:
        what: the model: a variant; or a folder, a .gguf file, or a hub id whose files are here. By default one of 8
            billion weights.
        assumptions: any of `Assumptions`: users, requests_per_hour, target_first, device ...; a device may be named by
            words of its data sheet.

    Raises:
        InvalidInput: an assumption out of range, a model that does not fit, or targets that no number keeps.
        NotAvailable: the model is not on this machine.
    """
    known = about(what, assumptions.get("kind")) if what is not None else {}
    return _planned(known | assumptions, dict.fromkeys(known, "the model") | dict.fromkeys(assumptions, GIVEN))


def _planned(given: dict[str, Any], sources: dict[str, str]) -> Plan:
    if isinstance(given.get("device"), str):
        given = given | {"device": roofline.rows_of([given["device"]])[0]}
    assumptions = Assumptions(**given)
    times = assumptions.times.but(contention=()) if assumptions.times else assumptions.by_roofline()
    check_reachable(assumptions, times)
    alone = capacity(times, assumptions.load)
    trials = tried(assumptions, times, alone)
    chosen = min((each for each in trials if each.meets), key=lambda each: each.replicas)
    return Plan(assumptions, sources, times, alone, trials, chosen)


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _number(value: float) -> str:
    """Four digits, never with an exponent where it is large."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _passed(work: roofline.Pass, device: roofline.Device) -> str:
    """A pass with its arithmetic."""
    moved = f"{units.size(work.weight_bytes + work.other_bytes)} / {units.size(device.bandwidth)}/s"
    computed = f"{work.flops:.3g} operations / {device.rate(work.kind):.3g}/s"
    spent = f"max({moved}, {computed})" if device.flops else moved
    return f"{spent} = {1e3 * work.least(device, calls=False):.3g} ms"
