"""What a check found: each point with a sentence, and the numbers that were expected and measured."""

from collections.abc import Iterable
from dataclasses import dataclass

from workbench.core.drawn import HTML, drawn
from workbench.core.estimate import Estimate


@dataclass(frozen=True)
class Finding:
    """One point of a check.

    Attributes:
        point: what was looked at, in a few words.
        passed: whether it is as it should be.
        says: a sentence: what was found and, where it did not pass, what the mistake is.
    """

    point: str
    passed: bool
    says: str


@dataclass(frozen=True)
class Number:
    """One number of a check.

    Attributes:
        whose: it is, such as "yours".
        what: it says, such as "perplexity", with its unit.
        value: with its interval.
    """

    whose: str
    what: str
    value: Estimate

    def __str__(self) -> str:
        ends = "" if self.value.low == self.value.high else f" [{self.value.low:,.4g}, {self.value.high:,.4g}]"
        return f"{self.value.value:,.4g}{ends}"


@dataclass(frozen=True)
class Check:
    """What `check` found.

    Attributes:
        name: of what was checked.
        findings: every point, in the order in which they were looked at.
        numbers: expected and measured ones.
        notes: what else should be known.
    """

    name: str
    findings: tuple[Finding, ...]
    numbers: tuple[Number, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether all points are as they should be."""
        return all(each.passed for each in self.findings)

    @property
    def mistakes(self) -> tuple[str, ...]:
        """What is wrong, a sentence each."""
        return tuple(each.says for each in self.findings if not each.passed)

    @property
    def sentence(self) -> str:
        """The result in one line."""
        right = sum(each.passed for each in self.findings)
        verdict = "passed" if self.passed else "not yet"
        return f"{self.name}: {verdict}, {right} of {len(self.findings)} points are as they should be."

    def _repr_html_(self) -> str:
        return str(drawn(self, HTML))

    def __repr__(self) -> str:
        lines = [self.sentence]
        lines += [f"  {'ok ' if each.passed else 'NOT'} {each.point}: {each.says}" for each in self.findings]
        lines += [f"  {each.what}, {each.whose}: {each}" for each in self.numbers]
        return "\n".join((*lines, *(f"  {each}" for each in self.notes)))


def found(name: str, findings: Iterable[Finding], numbers: Iterable[Number] = (), notes: Iterable[str] = ()) -> Check:
    """A check of these parts."""
    return Check(name, tuple(findings), tuple(numbers), tuple(notes))
