"""What a token costs, predicted by a learner from a model's shape and compared with what is counted while it runs."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from workbench.analysis.pace import time_passes
from workbench.core import estimate
from workbench.core.errors import InvalidInput
from workbench.core.estimate import Estimate
from workbench.core.progress import Progress
from workbench.core.value import Value
from workbench.models.adapters import check_dense
from workbench.runtime.footprint import count_pass, kv_bytes
from workbench.runtime.probe import this_device
from workbench.teaching.blame import blame
from workbench.teaching.found import Check, Finding, Number, found
from workbench.variant import Variant

CONTEXT = 128  # tokens that were read before the one that is predicted
ROUNDS = 4  # of timing, of a few tokens each
WITHIN = 0.01


class Shape(Value):
    """What a prediction starts from: a decoder of the Llama kind.

    Attributes:
        layers: decoder blocks.
        hidden: numbers that flow between them, a token.
        mlp: width of the MLP, which has a gate.
        heads: of queries.
        kv_heads: of keys and of values, which several heads of queries share.
        head: numbers a head.
        vocabulary: tokens that it knows.
        tied: whether the output head is the table of the embedding.
        bytes_each: of a weight, a key or a value as stored.
        context: tokens that were read before.
        bandwidth: bytes a second that this machine reads, as tried.
    """

    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    tied: bool
    bytes_each: int
    context: int = CONTEXT
    bandwidth: float = 1.0

    @classmethod
    def of(cls, variant: Variant, bandwidth: float = 1.0) -> "Shape":
        """Of a dense model of this kind.

        Raises:
            InvalidInput: it is of another kind.
        """
        config = variant.model.config.get_text_config()
        try:
            heads = config.num_attention_heads
            head = getattr(config, "head_dim", None) or config.hidden_size // heads
            return cls(
                layers=config.num_hidden_layers, hidden=config.hidden_size, mlp=config.intermediate_size, heads=heads,
                kv_heads=config.num_key_value_heads, head=head,
                vocabulary=config.vocab_size, tied=bool(config.tie_word_embeddings),
                bytes_each=variant.dtype.itemsize, bandwidth=bandwidth,
            )  # fmt: skip
        except AttributeError:
            kind = type(variant.model).__name__
            raise InvalidInput(f"{kind} is no decoder of the Llama kind: predict one such as the default.") from None

    @property
    def numbers(self) -> int:
        """Weights of all products of a token: the blocks' and the head's."""
        attention = 2 * self.hidden * self.head * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.mlp) + self.hidden * self.vocabulary


class Calculator:
    """Predicts what one further token takes; a learner writes its four functions."""

    def weight_bytes(self, shape: Shape) -> float:
        """Bytes of weights that are read."""
        raise NotImplementedError

    def flops(self, shape: Shape) -> float:
        """Operations of the products with weights: a multiplication and an addition each."""
        raise NotImplementedError

    def cache_bytes(self, shape: Shape) -> float:
        """Bytes of keys and values that are read, of all tokens before."""
        raise NotImplementedError

    def seconds(self, shape: Shape) -> float:
        """The least time that it takes."""
        raise NotImplementedError


class _Slip(NamedTuple):
    """A known mistake, and what it predicts."""

    says: str
    value: Callable[[Shape], float]


def _read(shape: Shape) -> float:
    return float(shape.bytes_each * shape.numbers)


def _kept(shape: Shape) -> float:
    return float(2 * shape.layers * shape.kv_heads * shape.head * shape.bytes_each * shape.context)


def _table(shape: Shape) -> float:
    return float(shape.bytes_each * shape.hidden * shape.vocabulary)


def _gate(shape: Shape) -> float:
    return float(shape.layers * shape.hidden * shape.mlp)


def _all_heads(shape: Shape) -> float:
    return float(2 * shape.layers * shape.hidden * shape.head * (shape.heads - shape.kv_heads))


SLIPS: dict[str, tuple[_Slip, ...]] = {
    "weight_bytes": (
        _Slip("The output head is missing: all of it is read for every token.", lambda s: _read(s) - _table(s)),
        _Slip("The embedding is counted as well: of it, only one row is looked up.", lambda s: _read(s) + _table(s)),
        _Slip("You counted weights, not bytes: each takes shape.bytes_each.", lambda s: s.numbers),
        _Slip("You counted 2 bytes a weight: here each takes shape.bytes_each.", lambda s: 2 * s.numbers),
        _Slip("The MLP has three matrices: gate, up and down.", lambda s: _read(s) - s.bytes_each * _gate(s)),
        _Slip("Keys and values are narrower than queries: they have kv_heads heads.",
              lambda s: _read(s) + s.bytes_each * _all_heads(s)),
        _Slip("One block is counted: there are shape.layers of them.",
              lambda s: (_read(s) - _table(s)) / s.layers + _table(s)),
        _Slip("Weights are read once, however long the context is.", lambda s: _read(s) * s.context),
    ),
    "flops": (
        _Slip("Each weight takes two operations: a multiplication and an addition.", lambda s: s.numbers),
        _Slip("With a cache only the new token is computed: do not multiply by the context.",
              lambda s: 2 * s.numbers * s.context),
        _Slip("The output head is missing: it is a product, too.",
              lambda s: 2 * (s.numbers - s.hidden * s.vocabulary)),
        _Slip("The embedding is no product: it is looked up.", lambda s: 2 * (s.numbers + s.hidden * s.vocabulary)),
        _Slip("Operations are counted, not bytes.", lambda s: 2 * s.numbers * s.bytes_each),
        _Slip("The MLP has three matrices: gate, up and down.", lambda s: 2 * (s.numbers - _gate(s))),
        _Slip("Keys and values are narrower than queries: they have kv_heads heads.",
              lambda s: 2 * (s.numbers + _all_heads(s))),
    ),
    "cache_bytes": (
        _Slip("Keys and values are kept: twice as much.", lambda s: _kept(s) / 2),
        _Slip("The heads of queries share kv_heads of keys and values.", lambda s: _kept(s) * s.heads / s.kv_heads),
        _Slip("Every block has keys and values of its own: there are shape.layers.", lambda s: _kept(s) / s.layers),
        _Slip("That is what one token keeps: shape.context tokens were read before.", lambda s: _kept(s) / s.context),
        _Slip("You counted numbers, not bytes: each takes shape.bytes_each.", lambda s: _kept(s) / s.bytes_each),
        _Slip("You counted 2 bytes a number: here each takes shape.bytes_each.", lambda s: _kept(s) * 2 / s.bytes_each),
    ),
    "seconds": (
        _Slip("Bytes over bandwidth, not bandwidth over bytes.", lambda s: s.bandwidth / (_read(s) + _kept(s))),
        _Slip("Operations are no bytes: divide what is read by the bandwidth.", lambda s: 2 * s.numbers / s.bandwidth),
        _Slip("That is in milliseconds: give seconds.", lambda s: 1e3 * (_read(s) + _kept(s)) / s.bandwidth),
    ),
}  # fmt: skip
UNITS = {"weight_bytes": "bytes of weights", "flops": "operations", "cache_bytes": "bytes of keys and values",
         "seconds": "seconds a token"}  # fmt: skip


def check_calculator(calculator: Calculator | type[Calculator], variant: Variant, progress: Progress) -> Check:
    """Compare predictions with what is counted while the variant gives a token, within 1 %; the time is shown beside.

    A time is no reason not to pass, unless a known slip leads to it: how near the measured one is to what reading takes
    depends on the machine.

    Raises:
        InvalidInput: the model is of another kind, quantized, or has an adapter.
    """
    check_dense(variant.model, variant.name, "predict its dense parent")
    made = calculator() if isinstance(calculator, type) else calculator
    shape = Shape.of(variant, this_device(variant.device).bandwidth)
    work = count_pass(variant.model, 1, shape.context)
    counted: dict[str, float] = {"weight_bytes": work.weight_bytes, "flops": work.flops}
    counted["cache_bytes"] = kv_bytes(variant.model) * shape.context
    counted["seconds"] = (counted["weight_bytes"] + counted["cache_bytes"]) / shape.bandwidth
    numbers, findings = [], []
    for name, expected in counted.items():
        progress.check()
        finding, value = _compared(made, name, shape, expected)
        findings.append(finding)
        if value is not None:
            numbers.append(Number("yours", UNITS[name], Estimate.exact(value, "")))
        whose = "by reading alone" if name == "seconds" else "counted"
        numbers.append(Number(whose, UNITS[name], Estimate.exact(expected, "")))
    timed = estimate.median(list(_timed(variant, progress)), "s")
    numbers.append(Number("measured", UNITS["seconds"], timed))
    share = counted["seconds"] / timed.value
    notes = (
        f"Reading alone explains {share:.0%} of the measured time, at {shape.bandwidth / 1e9:.3g} GB/s as this machine "
        "reads; the rest is starting operations and computing, and no reason not to pass.",
    )
    return found(type(made).__name__, findings, numbers, notes)


def _compared(made: Any, name: str, shape: Shape, expected: float) -> tuple[Finding, float | None]:
    try:
        value = float(getattr(made, name)(shape))
    except Exception as error:
        return Finding(name, False, blame(type(made), error)), None
    if _near(value, expected):
        return Finding(name, True, f"{value:,.4g} {UNITS[name]}, within 1 % of {expected:,.4g}."), value
    slip = next((each.says for each in SLIPS[name] if _near(value, each.value(shape))), "")
    if name == "seconds" and not slip and 0 < value < math.inf:
        return Finding(name, True, f"{value:.3g} s, where reading alone takes {expected:.3g} s."), value
    says = slip or f"{value:,.4g} {UNITS[name]}, but {expected:,.4g} are counted: {value / expected:.2f} times as much."
    return Finding(name, False, says), value


def _near(value: float, expected: float) -> bool:
    return abs(value - expected) <= WITHIN * abs(expected)


def _timed(variant: Variant, progress: Progress) -> Iterator[float]:
    progress.start("Timing tokens", ROUNDS + 1, undisturbed=True)
    for number in range(ROUNDS + 1):
        _, spent = time_passes(variant, 1, CONTEXT)
        if number:  # the first warms up
            yield from spent
        progress.advance()
