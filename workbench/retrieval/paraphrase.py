"""From which likeness on two questions count as the same: computed from labelled pairs and a budget of errors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench.core.errors import InvalidInput
from workbench.core.files import home
from workbench.core.progress import Progress
from workbench.retrieval.embedding import Encoder
from workbench.retrieval.guards import differs
from workbench.tasks.files import read_rows

CONFIDENCE = 0.95
GRID = [0.999, *(round(0.995 - 0.005 * step, 3) for step in range(100))]  # thresholds, the strictest first


@dataclass(frozen=True)
class Pair:
    """Two questions, and whether one answer serves both."""

    a: str
    b: str
    same: bool


@dataclass(frozen=True)
class Threshold:
    """From which likeness on one answer serves two questions, and what that rests on.

    Attributes:
        value: the likeness; None where the pairs do not support the budget.
        false: pairs of different answers that it would take for the same.
        different: how many there are.
        most: upper bound of their share, with 95 % confidence.
        right: pairs of the same answer that it finds.
        same: how many there are.
    """

    value: float | None
    false: int
    different: int
    most: float
    right: int
    same: int

    def __str__(self) -> str:
        if self.value is None:
            return (
                f"{self.different} pairs with different answers support no threshold: even at the strictest, up to "
                f"{self.most:.1%} may be answered wrongly."
            )
        return (
            f"From a likeness of {self.value:.3f} on, {self.right} of {self.same} pairs with the same answer are "
            f"found, and {self.false} of {self.different} with different ones are answered wrongly (surely no more "
            f"than {self.most:.1%})."
        )


def read_pairs(path: str | Path) -> list[Pair]:
    """Labelled pairs from a JSONL, CSV or Parquet file: ``a``, ``b``, and ``same`` (or ``same_answer``), true or false.

    Raises:
        InvalidInput: a row lacks one of them.
    """
    found = []
    for place, _, cells in read_rows(home(path)):
        same = {"true": True, "false": False}.get(str(cells.get("same", cells.get("same_answer"))).lower())
        a, b = cells.get("a"), cells.get("b")
        if not isinstance(a, str) or not isinstance(b, str) or same is None:
            raise InvalidInput(f"{place} is no pair: give it texts 'a' and 'b', and 'same', which is true or false.")
        found.append(Pair(a, b, same))
    return found


def likeness(
    pairs: Sequence[Pair], encoder: Encoder, progress: Progress | None = None, guarded: bool = True
) -> list[float]:
    """How near the two of each pair are; -1 where a guard tells them apart."""
    vectors = encoder.vectors([text for each in pairs for text in (each.a, each.b)], progress)
    near = (vectors[::2] * vectors[1::2]).sum(axis=1)
    apart = [guarded and bool(differs(each.a, each.b)) for each in pairs]
    return [-1.0 if it else float(value) for it, value in zip(apart, near, strict=True)]


def threshold(likeness: Sequence[float], same: Sequence[bool], budget: float) -> Threshold:
    """The loosest likeness whose share of wrong answers among different pairs surely stays within a budget.

    Thresholds fixed beforehand are tested from the strictest on, until the first whose upper bound is beyond the
    budget; so trying many costs no confidence (fixed sequence testing, as in Angelopoulos et al., "Learn then Test",
    2021, https://arxiv.org/abs/2110.01052). The bound is Clopper and Pearson's, and holds for pairs like these: a
    cache with many entries has more chances to be wrong.

    Args:
        likeness: of each pair; -1 where a guard tells them apart.
        same: whether one answer serves both.
        budget: share of different pairs that may be answered wrongly.
    """
    right = [each for each, one in zip(likeness, same, strict=True) if one]
    wrong = [each for each, one in zip(likeness, same, strict=True) if not one]
    best = None
    for value in GRID:
        false = sum(each >= value for each in wrong)
        most = upper_bound(false, len(wrong))
        now = Threshold(value, false, len(wrong), most, sum(each >= value for each in right), len(right))
        if most > budget:
            return best or Threshold(None, false, len(wrong), most, now.right, len(right))
        best = now
    assert best is not None
    return best


def upper_bound(count: int, of: int, confidence: float = CONFIDENCE) -> float:
    """Upper confidence bound of a share, one-sided, exact: Clopper and Pearson, 1934, Biometrika 26."""
    if count >= of:
        return 1.0
    low, high = count / of, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(count, of, middle) > 1 - confidence else (low, middle)
    return high


def _at_most(count: int, of: int, share: float) -> float:
    """Chance of so many or fewer."""
    if share >= 1.0:
        return 0.0
    if share <= 0.0:
        return 1.0
    logs = [
        math.lgamma(of + 1) - math.lgamma(k + 1) - math.lgamma(of - k + 1) + k * math.log(share)
        + (of - k) * math.log1p(-share)
        for k in range(count + 1)
    ]  # fmt: skip
    return math.fsum(map(math.exp, logs))
