"""Whether another way to run a variant says the same."""

from collections.abc import Sequence
from dataclasses import dataclass

from workbench.core.line import watched
from workbench.core.progress import Progress
from workbench.runtime.decoding import Continuation
from workbench.runtime.forward import using
from workbench.runtime.reader import Span
from workbench.variant import Variant

NEAR = (
    0.25  # nats; below it two tokens are so alike that sums in another order, or activations in 8 bits, may swap them
)


@dataclass(frozen=True)
class Agreement:
    """Greedy tokens of one engine beside those of another.

    Attributes:
        gaps: for every prompt, how much less likely than the best one, in nats, the model finds the first token that
            differs; 0 where none does.
    """

    gaps: tuple[float, ...]

    @property
    def same(self) -> int:
        """Prompts answered with the very same tokens."""
        return sum(gap == 0 for gap in self.gaps)

    @property
    def holds(self) -> bool:
        """Whether every first difference is a near tie."""
        return max(self.gaps) < NEAR

    def __str__(self) -> str:
        differ = len(self.gaps) - self.same
        if not differ:
            return "the same tokens"
        tie = f"a tie within {max(self.gaps):.2g} nats" if self.holds else f"{max(self.gaps):.2g} nats apart"
        return f"{differ} of {len(self.gaps)} answers differ, first by {tie}"


@watched
def agreement(
    variant: Variant, other: Variant, prompts: Sequence[str], tokens: int, progress: Progress | None = None
) -> Agreement:
    """Compare greedy tokens of a variant with those of the same weights run in another way.

    Args:
        variant: with the engine that is trusted.
        other: with the other one.
        prompts: one request each.
        tokens: how many to compare, beyond the end of an answer.
        progress: told of every prompt.
    """
    own, others = (_tokens(each, prompts, tokens, progress or Progress()) for each in (variant, other))
    return Agreement(tuple(_gap(variant, prompt, *both) for prompt, *both in zip(prompts, own, others, strict=True)))


def _tokens(variant: Variant, prompts: Sequence[str], tokens: int, progress: Progress) -> list[list[int]]:
    settings, found = variant.decoding.but(max_new_tokens=tokens, temperature=0.0), []
    for prompt in progress.track("Comparing answers", prompts, len(prompts)):
        row = Continuation(())
        for _ in variant.engine.decode(variant.model, [variant.encode(prompt)], settings, [row], label=variant.name):
            if len(row.ids) >= tokens:
                break
        found.append(row.ids[:tokens])
    return found


def _gap(variant: Variant, prompt: str, own: list[int], other: list[int]) -> float:
    """How much less likely, by the variant itself, the other's first different token is than the likeliest."""
    at = next((at for at, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), None)
    if at is None:
        return 0.0 if len(own) == len(other) else float("inf")
    span = Span((*variant.encode(prompt), *own[:at]), (other[at],))
    with using(variant.name):
        logs = variant.engine.read(variant.model, [span], variant.name).logs([span])[0]
    return float(max(logs[own[at]], logs.max()) - logs[other[at]])
