"""What would make a pass faster and what would not, from the parts that its time is made of."""

from collections.abc import Iterator
from dataclasses import dataclass

from workbench.analysis.roofline import Pass
from workbench.models.packed import Packed
from workbench.recipe import REGISTRY, RecipeStep
from workbench.runtime.probe import Device
from workbench.steps import prune, quantize
from workbench.variant import Variant

HELPS = 1.1  # times as fast: below this nobody would notice
DROPPED = 0.25  # share of the blocks that the advice on a smaller model speaks of
FEWER = ((12, 8, quantize.Int8()), (6, 4, quantize.RTN()))  # with more bits than the first: try the second


@dataclass(frozen=True)
class Parts:
    """Seconds of a pass by what they are spent on; they add up to its time.

    Attributes:
        reading: bytes of the products' weights at the full bandwidth.
        kernel: what the products take beyond reading and computing.
        computing: what arithmetic takes beyond reading.
        starting: operations outside the products.
        states: keys, values and what flows between the layers.
    """

    reading: float
    kernel: float
    computing: float
    starting: float
    states: float

    @classmethod
    def of(
        cls, work: Pass, products: float, starting: float, states: float, product_bytes: int, device: Device
    ) -> "Parts":
        """Of a pass by the seconds of its products, of what it starts and of what it moves besides."""
        reading = min(products, product_bytes / device.bandwidth)
        computing = min(products - reading, max(0.0, work.computing(device) - reading))
        return cls(
            reading=reading,
            kernel=products - reading - computing,
            computing=computing,
            starting=starting,
            states=states,
        )

    @property
    def total(self) -> float:
        """Seconds of the pass."""
        return self.reading + self.kernel + self.computing + self.starting + self.states

    @property
    def bound(self) -> str:
        """The largest of them."""
        return max(("reading", "kernel", "computing", "starting", "states"), key=lambda name: getattr(self, name))

    def share(self, name: str) -> float:
        """Of the whole."""
        return float(getattr(self, name)) / max(self.total, 1e-12)

    def without(self, seconds: float) -> float:
        """How many times as fast it would be with so many seconds less."""
        return self.total / max(self.total - seconds, 1e-12)


@dataclass(frozen=True)
class Suggestion:
    """Something one might try.

    Attributes:
        text: what comes of it, in a sentence.
        helps: whether it is worth trying.
        gain: how many times as fast a token could be at best; None where that depends on the text.
        step: what a panel can be set to; None where no step does it.
    """

    text: str
    helps: bool
    gain: float | None = None
    step: RecipeStep | None = None

    def __str__(self) -> str:
        return f"{'Try' if self.helps else 'No use'}: {self.text}"


def advise(variant: Variant, parts: Parts, bits: float, starts: str) -> tuple[Suggestion, ...]:
    """What to try first, then what will not help.

    Args:
        variant: what was explained.
        parts: of a pass with one row.
        bits: stored for each weight of the products.
        starts: how its engine begins its work.
    """
    found = [*_bits(variant, parts, bits), _sparsity(parts), _smaller(parts), *_engines(variant, parts, starts)]
    return tuple(sorted(found, key=lambda each: (not each.helps, -(each.gain or 1.0))))


def _bits(variant: Variant, parts: Parts, bits: float) -> Iterator[Suggestion]:
    for more, fewer, step in FEWER:
        if bits > more:
            gain = parts.without(parts.reading * (1 - fewer / bits))
            packed = any(isinstance(module, Packed) for module in variant.model.modules())
            where = ", from its dense parent" if packed else ""
            yield Suggestion(
                _said(f"fewer bits ({fewer} instead of {bits:.0f}{where})", gain), gain >= HELPS, gain, step
            )


def _said(what: str, gain: float) -> str:
    if gain >= HELPS:
        return f"{what}: up to {gain:.1f} times as fast."
    return f"{what}: at best {gain:.2f} times as fast."


def _sparsity(parts: Parts) -> Suggestion:
    text = "more sparsity: zeros are stored, read and multiplied like any other number."
    return Suggestion(text, helps=False, gain=1.0, step=prune.Wanda())


def _smaller(parts: Parts) -> Suggestion:
    gain = parts.without(DROPPED * parts.total)
    step = prune.DropBlocks(share=DROPPED)
    return Suggestion(_said(f"fewer weights ({DROPPED:.0%} of the blocks left out)", gain), gain >= HELPS, gain, step)


def _engines(variant: Variant, parts: Parts, starts: str) -> Iterator[Suggestion]:
    """Ways to run the same weights; only those that are there are named by a step."""
    if starts != "operations":
        return
    gain = parts.without(parts.starting)
    yield Suggestion(_said("compiling, which starts a pass as one graph", gain), gain >= HELPS, gain, _step("Compile"))
    if variant.device.type == "cpu":
        gain = parts.without(parts.starting + parts.kernel)
        text = _said("an engine with products of its own, such as llama.cpp", gain)
        yield Suggestion(text, gain >= HELPS, gain, _step("LlamaCpp") or _step("Auto"))
    if parts.share("reading") > parts.share("computing"):
        text = "speculating: several tokens a pass read the weights once, where the next ones can be guessed."
        yield Suggestion(text, helps=parts.share("reading") > 0.3, step=_step("Speculate"))


def _step(name: str) -> RecipeStep | None:
    kind = REGISTRY.get(f"runtime.{name}")
    return kind() if kind is not None else None
