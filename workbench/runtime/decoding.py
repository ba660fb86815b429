"""How tokens are chosen, and who has a say in it."""

from collections.abc import Collection, Sequence
from typing import Any, Protocol

import torch
from pydantic import Field
from torch import Tensor

from workbench.core.value import Value

STRIDE = 0x9E3779B97F4A7C15  # between the seeds of the samples of one request: odd, so that none comes twice


class Decoding(Value):
    """How tokens are chosen.

    Attributes:
        max_new_tokens: how long an answer may be.
        temperature: 0 takes the most likely token; higher values draw more freely.
        top_p: draw only from the most likely tokens that together have this probability.
        seed: of the draw; the same seed gives the same answer on the same device, alone or among others.
        endless: go on to the limit whatever comes, so that answers of one length can be timed.
    """

    max_new_tokens: int = Field(default=128, ge=1, le=100_000)
    temperature: float = Field(default=0.0, ge=0.0, le=5.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)
    endless: bool = False

    def but(self, **changes: Any) -> "Decoding":
        """These settings with some changed.

        Raises:
            InvalidInput: an unknown setting, or a value out of range.
        """
        return Decoding(**(self.model_dump() | changes))


class Follower(Protocol):
    """Has a say in the tokens of one answer, and hears of them."""

    @property
    def watches(self) -> bool:
        """Whether it wants to know how probable each token was."""

    @property
    def ended(self) -> bool:
        """Whether it wants no more tokens."""

    def restrict(self, logits: Tensor) -> None:
        """Rule out tokens by setting their logits ``(vocabulary,)`` to minus infinity."""

    def take(self, token: int, chance: float | None = None) -> None:
        """Hear of the token that was chosen and, if it watches, how probable it was."""


class Continuation:
    """Tokens put behind a prompt, the end token included where one comes."""

    watches = False

    def __init__(self, ends: Collection[int]) -> None:
        self.ids: list[int] = []
        self._ends = ends

    @property
    def ended(self) -> bool:
        """Whether the end token came."""
        return bool(self.ids) and self.ids[-1] in self._ends

    def restrict(self, logits: Tensor) -> None:
        """Nothing is ruled out."""

    def take(self, token: int, chance: float | None = None) -> None:
        """Add a token, unless it has ended."""
        if not self.ended:
            self.ids.append(token)


def draws(seeds: Sequence[int]) -> list[torch.Generator]:
    """A generator a row, on the CPU whatever the device: what a row draws depends on nothing but its own seed."""
    return [torch.Generator().manual_seed(seed % 2**64) for seed in seeds]


def sample_seeds(seed: int, count: int) -> list[int]:
    """Seeds of so many answers to one request, the first of them the request's own."""
    return [seed + number * STRIDE for number in range(count)]


def choose(logits: Tensor, settings: Decoding, draw: Sequence[torch.Generator]) -> Tensor:
    """Next tokens ``(batch,)`` from logits ``(batch, vocabulary)``: greedy, or drawn from the top-p nucleus.

    A row takes one number between 0 and 1 from its own generator, and the token at that height of its distribution,
    the likeliest tokens first.

    Source: Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020.
    """
    if settings.temperature == 0:
        return logits.argmax(dim=-1)
    heights, order, last = nucleus(logits, settings)
    drawn = torch.stack([torch.rand(1, generator=each, dtype=torch.float64) for each in draw]).to(logits.device)
    wanted = drawn * heights.gather(-1, last)
    at = torch.searchsorted(heights, wanted, right=True).minimum(last)
    return order.gather(-1, at).squeeze(-1)


def heard(tokens: Tensor, logits: Tensor | None) -> list[tuple[int, float | None]]:
    """Tokens ``(rows,)`` and how probable each was by its logits, in one copy: a GPU is waited for once a token."""
    if logits is None:
        return [(token, None) for token in tokens.tolist()]
    chances = torch.softmax(logits.float(), dim=-1).gather(-1, tokens[:, None])[:, 0]
    both = torch.stack([tokens.double(), chances.double()], dim=1).tolist()
    return [(int(token), chance) for token, chance in both]


def nucleus(logits: Tensor, settings: Decoding) -> tuple[Tensor, Tensor, Tensor]:
    """What may be drawn from logits ``(batch, vocabulary)``.

    Returns:
        How probable each token and all likelier ones are together, and the tokens, the likeliest first, both
        ``(batch, vocabulary)``; and where the last one stands that may be drawn ``(batch, 1)``.
    """
    chances = torch.softmax(logits.float() / settings.temperature, dim=-1)
    ranked, order = chances.sort(dim=-1, descending=True, stable=True)
    heights = ranked.double().cumsum(dim=-1)
    inside = heights - ranked < settings.top_p  # the first is always inside
    return heights, order, inside.sum(dim=-1, keepdim=True) - 1
