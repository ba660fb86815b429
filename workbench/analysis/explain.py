"""Why a variant is as slow as it is: the parts of a token's time, predicted and measured, and what would help."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from workbench.analysis import pace, roofline
from workbench.analysis.advice import Parts, Suggestion, advise
from workbench.analysis.roofline import Device, Pass
from workbench.core import units
from workbench.core.device import environment
from workbench.core.drawn import HTML, drawn
from workbench.core.errors import InvalidInput
from workbench.core.estimate import Estimate
from workbench.core.line import watched
from workbench.core.progress import Progress
from workbench.runtime import probe
from workbench.runtime.footprint import Work, kv_bytes, numbers
from workbench.variant import Variant

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

BATCHES = (1, 2, 4, 8, 16, 32, 64)
CONTEXT = 128  # tokens before those that are timed
MOST = 1024  # rows
ROUNDS = 3
SPENT = {  # what each of the `Parts` is, for people
    "reading": "reading weights",
    "kernel": "lost in matrix products",
    "computing": "computing",
    "starting": "starting operations",
    "states": "moving keys, values and what flows between layers",
}


@dataclass(frozen=True)
class Point:
    """A pass with some rows.

    Attributes:
        work: what it moves and computes.
        least: seconds by bytes, operations and calls alone, with kernels as good as the device.
        predicted: seconds from its parts: the products by themselves, the calls and the states.
        measured: seconds through the variant's engine.
    """

    work: Pass
    least: float
    predicted: Estimate
    measured: Estimate

    @property
    def error(self) -> float:
        """Of the prediction, as a share of what was measured."""
        return self.predicted.value / self.measured.value - 1


@dataclass(frozen=True)
class Explanation:
    """What a variant's time goes into on this device.

    Attributes:
        variant: its name.
        device: what this device can do, as tried.
        context: tokens before those that were timed.
        parts: seconds of a pass with one row, or the fewest that were asked for.
        decode: passes that give every row one more token, by rows.
        prefill: reading a prompt of `context` tokens.
        bits: stored for each weight of the products.
        product_bytes: of the weights that products read.
        cache_bytes: of keys and values that a row reads a token at this context.
        starts: how the engine begins the first of the passes.
        suggestions: what to try, then what will not help.
        devices: others to compare with.
        environment: of this machine.
    """

    variant: str
    device: Device
    context: int
    parts: Parts
    decode: tuple[Point, ...]
    prefill: Point
    bits: float
    product_bytes: int
    cache_bytes: int
    starts: str
    suggestions: tuple[Suggestion, ...] = ()
    devices: tuple[Device, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """What bounds the first pass, and what follows from it."""
        work, share = self.decode[0].work, round(100 * self.parts.share(self.parts.bound))
        whose = "Each token" if work.rows == 1 else f"Each pass of {work.rows} rows"
        if self.starts == "elsewhere":
            reached = self.decode[0].work.weight_bytes / self.decode[0].measured.value
            return (
                f"{whose} reads {units.size(work.weight_bytes)} at {_rate(reached)} of the "
                f"{_rate(self.device.bandwidth)} that this device reads: "
                f"{'weights are' if share > 50 else 'its own code is'} the bound."
            )
        if self.parts.bound == "reading":
            fewer = next((each.helps for each in self.suggestions if each.text.startswith("fewer bits")), False)
            return (
                f"{whose} reads {units.size(self.product_bytes)} at {_rate(self._reached)}: weights are the bound. "
                f"Fewer bits will {'' if fewer else 'not '}help, more sparsity will not."
            )
        if self.parts.bound == "starting":
            count = round(work.operations, -1 if work.operations < 1000 else -2)
            return (
                f"{share} % of the time is starting {count} small operations; fewer bits will not help, compiling will."
            )
        if self.parts.bound == "kernel":
            times = (self.parts.reading + self.parts.kernel) / max(self.parts.reading, 1e-12)
            return (
                f"{share} % of the time is lost in products that take {times:.1f} times what reading their "
                f"{units.size(self.product_bytes)} would: another kernel or engine will help, "
                "fewer bits alone will not."
            )
        if self.parts.bound == "computing":
            return (
                f"{share} % of the time is arithmetic, {work.flops / 1e9:.3g} billion operations a pass: fewer bits "
                "will not help, fewer weights or faster arithmetic will."
            )
        return (
            f"{share} % of the time is moving {units.size(work.other_bytes)} of keys, values and states: a shorter "
            "context will help, fewer bits a weight will not."
        )

    @property
    def lines(self) -> list[str]:
        """The facts behind the sentence."""
        one, device = self.decode[0], self.device
        spent = ", ".join(f"{1e3 * getattr(self.parts, name):.3g} ms {what}" for name, what in SPENT.items())
        rates = ", ".join(f"{kind} {rate / 1e9:.3g}" for kind, rate in device.flops.items())
        return [
            f"A pass of {one.work.rows} row{'s' * (one.work.rows > 1)}: predicted {_ms(one.predicted)}, measured "
            f"{_ms(one.measured)}; at least {1e3 * one.least:.3g} ms; {one.work.operations} operations started.",
            *([] if self.starts == "elsewhere" else [f"Of what is predicted: {spent}."]),
            f"A prompt of {self.context} tokens: predicted {_ms(self.prefill.predicted)}, measured "
            f"{_ms(self.prefill.measured)}; {self.prefill.work.flops / 1e9:.3g} billion operations.",
            f"A token reads {units.size(one.work.weight_bytes)} of weights and, after {self.context} others, "
            f"{units.size(self.cache_bytes)} of keys and values a row; {one.work.flops / 1e9:.3g} billion operations.",
            f"{device.name}, {device.source}: reads {_rate(device.bandwidth)}, computes {rates} billion operations/s, "
            f"starts an operation in {1e6 * device.call:.3g} µs.",
        ]

    @property
    def _reached(self) -> float:
        """Bytes a second that its products read the weights with."""
        return self.product_bytes / max(self.parts.reading + self.parts.kernel + self.parts.computing, 1e-12)

    def table(self) -> "pandas.DataFrame":
        """One row a pass, in seconds: the least, predicted and measured with their intervals, and tokens a second."""
        import pandas

        named = [*((f"decode {each.work.rows}", each) for each in self.decode), ("prefill", self.prefill)]
        rows = []
        for name, each in named:
            row: dict[str, Any] = {"pass": name, "least": each.least}
            for kind in ("predicted", "measured"):
                found: Estimate = getattr(each, kind)
                row |= {kind: found.value, f"{kind}_low": found.low, f"{kind}_high": found.high}
            tokens = self.context if name == "prefill" else each.work.rows
            rows.append(row | {"error": each.error, "tokens_per_second": tokens / each.measured.value})
        return pandas.DataFrame(rows).set_index("pass")

    def elsewhere(self) -> "pandas.DataFrame":
        """One row a device: tokens a second at best with one row and with the most, and whether the weights fit."""
        import pandas

        first, last = self.decode[0].work, self.decode[-1].work
        rows = []
        for device in (self.device, *self.devices):
            held = first.weight_bytes + last.rows * self.cache_bytes
            rows.append(
                {
                    "device": device.name,
                    "bandwidth": device.bandwidth,
                    "flops": device.rate(first.kind),
                    "call": device.call,
                    "memory": device.memory,
                    "fits": not device.memory or held <= device.memory,
                    "first": first.rows / first.least(device),
                    "last": last.rows / last.least(device),
                    "source": f"from data sheets: {device.source}" if device in roofline.SHEETS else device.source,
                }
            )
        return pandas.DataFrame(rows).set_index("device")

    def on(self, devices: Iterable[str | Device]) -> "Explanation":
        """The same beside other devices.

        Raises:
            InvalidInput: there is no data sheet of that name.
        """
        return replace(self, devices=roofline.rows_of(devices))

    def figure(self, **options: Any) -> "plotly.graph_objects.Figure":
        """The roofline of this device and the others, with the passes on it; predicted beside measured."""
        return drawn(self, **options)

    def _repr_html_(self) -> str:
        return str(drawn(self, HTML))

    def __repr__(self) -> str:
        return "\n".join([self.sentence, *self.lines, *map(str, self.suggestions)])


@watched
def explain(
    variant: Variant,
    *batches: int,
    context: int = CONTEXT,
    devices: Iterable[str | Device] = roofline.SHEETS,
    rounds: int = ROUNDS,
    progress: Progress | None = None,
) -> Explanation:
    """Find out what a variant's time goes into: counted, predicted from its parts, and measured.

    The linear layers are timed by themselves at every number of rows, what starting an operation costs on a model too
    small for anything else to matter, and both beside the variant's own engine, interleaved. Where an engine is not
    torch's, its passes are predicted from passes of other lengths and other numbers of rows.

    Args:
        variant: what to explain.
        batches: numbers of rows side by side; by default 1, 2, 4 ... 64.
        context: tokens before those that are timed, and of the prompt.
        devices: others to compare with: names in `roofline.SHEETS`, or a `roofline.Device` of your own.
        rounds: how often everything is timed.
        progress: told how far it is; a cancel takes effect between two passes.

    Raises:
        InvalidInput: a batch or a context that the model cannot hold, or an unknown device.
        OutOfMemory: the device has too little memory for the largest batch.
        Cancelled: the progress was cancelled.
    """
    wanted, others = _checked(variant, batches, context, rounds), roofline.rows_of(devices)
    progress = progress or Progress()
    device, starts = probe.this_device(variant.device), partial(variant.engine.starts, variant.model)
    work, prompt = pace.counted(variant, context)
    samples = pace.sampled(variant, work, prompt, wanted, context, rounds, progress)
    if pace.reads_faster(samples, work, device):  # it was busy when it was tried
        device = probe.this_device(variant.device, again=True)
    kind = str(variant.dtype).removeprefix("torch.")
    decode, prefill = Pass.of(work, kind), Pass.of(prompt, kind)
    first = starts(wanted[0])
    if first == "elsewhere":
        prefill = replace(prefill, operations=1)

    def point(rows: int) -> Point:
        done = decode.by(rows) if starts(rows) == "operations" else replace(decode.by(rows), operations=1)
        return Point(
            work=done,
            least=done.least(device),
            predicted=pace.predicted(samples, work, rows, device, starts(rows), context),
            measured=pace.of(samples.passes[rows, context]),
        )

    points = tuple(map(point, wanted))
    parts = _parts(samples, work, points[0], device, first)
    weights = sum(numbers(layer) for layer, _ in work.products)
    bits = 8 * work.product_bytes / max(1, weights)
    return Explanation(
        variant=variant.name,
        device=device,
        context=context,
        parts=parts,
        decode=points,
        prefill=Point(
            work=prefill,
            least=prefill.least(device),
            predicted=pace.predicted_prompt(samples, prompt, device, first, context),
            measured=pace.of(samples.prompts[context]),
        ),
        bits=bits,
        product_bytes=work.product_bytes,
        cache_bytes=context * kv_bytes(variant.model, getattr(variant.engine, "cache_bits", 16)),
        starts=first,
        suggestions=advise(variant, parts, bits, first),
        devices=others,
        environment=environment(variant.device),
    )


def _parts(samples: pace.Samples, work: Work, point: Point, device: Device, starts: str) -> Parts:
    """What the time of a pass is spent on; of an engine of others only reading can be told from all else."""
    if starts == "elsewhere":
        return Parts.of(point.work, point.measured.value, 0.0, 0.0, work.product_bytes, device)
    rows = point.work.rows
    products, beside = pace.of(samples.products[rows]).value, pace.rest(samples, work, rows, device, starts).value
    started = pace.starting(samples, work, rows, device, starts)
    return Parts.of(point.work, products, started, beside - started, work.product_bytes, device)


def _checked(variant: Variant, batches: Sequence[int], context: int, rounds: int) -> tuple[int, ...]:
    """The numbers of rows in order, once what was asked for can be done."""
    wanted = tuple(sorted(set(batches or BATCHES)))
    if not all(isinstance(each, int) and 1 <= each <= MOST for each in wanted):
        raise InvalidInput(f"explain() takes numbers of rows from 1 to {MOST}, such as explain(variant, 1, 8, 64).")
    if context < 8 or not 1 <= rounds <= 100:
        raise InvalidInput("explain() takes a context of at least 8 tokens, and 1 to 100 rounds.")
    variant.check_length(round((1 + pace.APART) * context), pace.TOKENS)
    return wanted


def _rate(value: float) -> str:
    return f"{units.size(value)}/s"


def _ms(found: Estimate) -> str:
    return f"{1e3 * found.value:.3g} ms [{1e3 * found.low:.3g}, {1e3 * found.high:.3g}]"
