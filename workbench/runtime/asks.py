"""Answers that a running batch is asked for: each with settings, a draw and a follower of its own."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workbench.core.errors import WorkbenchError
from workbench.runtime.decoding import Decoding, Follower, choose, draws, heard


@dataclass(eq=False)
class Ask:
    """One answer.

    Attributes:
        ids: tokens of its prompt.
        settings: how its tokens are chosen.
        follower: has a say in them, and hears of them.
        seed: of its draw.
        limit: tokens it may have, once it has joined a batch.
        said: its tokens so far.
        gone: whether nobody waits for it any more.
        error: why it ended early; None unless it failed.
    """

    ids: Sequence[int]
    settings: Decoding
    follower: Follower
    seed: int = 0
    said: list[int] = field(default_factory=list)
    gone: bool = False
    error: Exception | None = None

    def __post_init__(self) -> None:
        (self.draw,) = draws([self.seed])
        self.limit = self.settings.max_new_tokens

    @property
    def text(self) -> tuple[int, ...]:
        """All of its tokens."""
        return (*self.ids, *self.said)

    @property
    def ended(self) -> bool:
        """Whether it wants, or may have, no more tokens."""
        return self.gone or self.error is not None or self.follower.ended or len(self.said) >= self.limit

    def fail(self, error: Exception) -> None:
        """End early. What an error of ours came through says nothing, and would keep the batch in memory."""
        self.error = error.with_traceback(None) if isinstance(error, WorkbenchError) else error


def hear(asks: Sequence[Ask], logits: Tensor) -> None:
    """Choose the next token of each by its logits ``(asks, vocabulary)``, which are written to, and tell who follows.

    What a follower raises ends its own answer and no other.
    """
    watching = [index for index, ask in enumerate(asks) if ask.follower.watches]
    free = logits[watching]  # a copy
    for ask, each in zip(asks, logits, strict=True):
        try:
            ask.follower.restrict(each)
        except Exception as error:
            ask.fail(error)
    tokens = _chosen(asks, logits)
    chances = dict(zip(watching, heard(tokens[watching], free), strict=True)) if watching else {}
    for index, (ask, token) in enumerate(zip(asks, tokens.tolist(), strict=True)):
        if ask.error is None:
            try:
                ask.said.append(token)
                ask.follower.take(token, chances[index][1] if index in chances else None)
            except Exception as error:
                ask.fail(error)


def _chosen(asks: Sequence[Ask], logits: Tensor) -> Tensor:
    """Next tokens ``(asks,)``; those with the same settings are chosen together."""
    alike: dict[tuple[float, float], list[int]] = {}
    for index, ask in enumerate(asks):
        alike.setdefault((ask.settings.temperature, ask.settings.top_p), []).append(index)
    if len(alike) == 1:
        return choose(logits, asks[0].settings, [ask.draw for ask in asks])
    tokens = torch.empty(len(asks), dtype=torch.long, device=logits.device)
    for at in alike.values():
        tokens[at] = choose(logits[at], asks[at[0]].settings, [asks[index].draw for index in at])
    return tokens
