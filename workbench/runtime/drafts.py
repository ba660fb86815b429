"""Where drafted tokens come from, how many are worth checking, and what came of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import torch
from transformers import PreTrainedModel

from workbench.runtime.kernels import quickened
from workbench.runtime.rows import Rows
from workbench.runtime.running import stated_length
from workbench.runtime.trial import way_of

LOOKED_AT: Final = 16  # earlier places of the same tokens, the latest first
LONGEST: Final = 16  # tokens before a place that are compared
FORGETTING: Final = 0.9  # what earlier checks count for at the next one
DOUBT: Final = 2.0  # checks that a new answer is taken to have had
GOOD: Final = 0.9  # share of drafted tokens that a draft can be hoped to have right
WORTH: Final = 1.1  # times as fast that it must then be, to be tried at all: it is mostly less good
PAUSE: Final = 16  # tokens until a draft is tried again that lost; twice as many each time


class Drafter(Protocol):
    """Guesses how a text goes on."""

    def draft(self, ids: Sequence[int], most: int) -> list[int]:
        """Some tokens, `most` at most, that may follow prompt and answer so far."""


class Lookup:
    """What followed the last tokens when they stood in prompt or answer before.

    Source: Saxena, "Prompt Lookup Decoding", 2023, https://github.com/apoorvumang/prompt-lookup-decoding.

    Args:
        match: how many tokens must be the same.
    """

    def __init__(self, match: int) -> None:
        self._match, self._known = match, 0
        self._ends: dict[tuple[int, ...], list[int]] = {}

    def draft(self, ids: Sequence[int], most: int) -> list[int]:
        """What followed the longest match, the latest of several."""
        for end in range(max(self._known + 1, self._match), len(ids)):
            self._ends.setdefault(tuple(ids[end - self._match : end]), []).append(end)
        self._known = len(ids) - 1
        places = self._ends.get(tuple(ids[-self._match :]), ())[-LOOKED_AT:]
        if not places or len(ids) < self._match:
            return []
        best = max(places, key=lambda end: (_alike(ids, end, self._match), end))
        return list(ids[best : best + most])


def _alike(ids: Sequence[int], end: int, least: int) -> int:
    """How many tokens before a place are those at the end."""
    count = least
    while count < min(LONGEST, end) and ids[end - 1 - count] == ids[-1 - count]:
        count += 1
    return count


class Smaller:
    """What another model with the same vocabulary would say; to be used within `using`.

    Source: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", 2023.

    Args:
        model: that drafts.
        tokens: that both models know.
        cache_bits: of every key and value kept.
    """

    def __init__(self, model: PreTrainedModel, tokens: int, cache_bits: int) -> None:
        self._model, self._tokens, self._bits = model, tokens, cache_bits
        self._longest = stated_length(model.config)
        self._read: list[int] = []
        self._rows: Rows | None = None

    def draft(self, ids: Sequence[int], most: int) -> list[int]:
        """Its greedy tokens; those that were not taken are forgotten first."""
        if self._longest is not None and len(ids) + most > self._longest:
            return []
        known = next((at for at, (a, b) in enumerate(zip(self._read, ids, strict=False)) if a != b), len(self._read))
        known = min(known, len(ids) - 1)
        rest = torch.tensor([ids[known:]], device=self._model.device)
        if self._rows is None:
            self._rows = Rows(quickened(self._model), rest.tolist(), way_of(self._model), None, self._bits)
        else:
            self._rows.forget(len(self._read) - known)
            self._rows.append(rest[:, 0])
            self._rows.join(rest[:, 1:])
        found: list[int] = []
        while True:
            token = self._rows.logits()[:, : self._tokens].argmax(dim=-1)
            found.append(int(token))
            if len(found) == most:
                self._read = [*ids, *found[:-1]]
                return found
            self._rows.append(token)


def replay(prompt: Sequence[int], answer: Sequence[int], match: int, most: int) -> Iterator[tuple[int, int]]:
    """Yield for every pass how many tokens looking up would draft, and how many are right, if that is the answer."""
    drafter, at = Lookup(match), 0
    while at < len(answer):
        draft = drafter.draft([*prompt, *answer[:at]], min(most, len(answer) - at - 1)) if at else []
        right = next((n for n, token in enumerate(draft) if token != answer[at + n]), len(draft))
        yield len(draft), right
        at += 1 + right


@dataclass
class Counts:
    """What came of drafts.

    Attributes:
        passes: of the model.
        tokens: that they gave.
        drafted: tokens that were checked.
        accepted: of these, tokens that were right.
        guarded: near ties that were decided again.
    """

    passes: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    guarded: int = 0

    def add(self, other: "Counts") -> None:
        """Count those of another answer, too."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass
class Costs:
    """Seconds of passes, from a trial and corrected while answering.

    Attributes:
        one: a pass with one token.
        more: what a pass with 2, 3, ... tokens costs, in passes with one.
        draft: what drafting a token costs, in passes with one.
        slack: how close two logits may be that a pass with another number of tokens could turn over.
    """

    one: float
    more: list[float]
    draft: float = 0.0
    slack: float = 0.0

    def gain(self, count: int, right: float) -> float:
        """Tokens for the time of one, when so many are drafted and each is right with a probability."""
        expected = sum(right**power for power in range(count + 1))
        return expected / (self.of(1 + count) + count * self.draft)

    def of(self, tokens: int) -> float:
        """A pass with so many tokens."""
        return 1.0 if tokens == 1 else self.more[tokens - 2]

    @property
    def break_even(self) -> float:
        """Share of drafted tokens that must be right for the best number of them to win."""
        counts = range(1, 1 + len(self.more))
        return next((p / 100 for p in range(100) if any(self.gain(n, p / 100) > 1 for n in counts)), 1.0)

    @property
    def hope(self) -> float:
        """How many times as fast answers are when a draft is as good as can be hoped."""
        return max(self.gain(count, GOOD) for count in range(1, 1 + len(self.more)))

    def learn(self, tokens: int, seconds: float) -> None:
        """Take a pass into account; one that something else held up counts for little."""
        if tokens == 1:
            self.one += 0.1 * (min(seconds, 2 * self.one) - self.one)
        else:
            before = self.more[tokens - 2]
            self.more[tokens - 2] += 0.1 * (min(seconds / self.one, 2 * before) - before)

    def learn_draft(self, tokens: int, seconds: float) -> None:
        """Take the drafting of so many tokens into account, in the same way; what is looked up stays free."""
        self.draft += 0.1 * (min(seconds / tokens / self.one, 2 * self.draft) - self.draft)


@dataclass
class Pace:
    """How many tokens to draft next in one answer: as many as win most by what was right so far, or none.

    Attributes:
        costs: of the model's passes.
    """

    costs: Costs
    _right: float = field(default=0.0, init=False)
    _checked: float = field(default=DOUBT, init=False)
    _again: float = field(default=0.0, init=False)  # passes lost to near ties for each draft
    _wait: int = field(default=0, init=False)
    _pause: int = field(default=PAUSE, init=False)

    def __post_init__(self) -> None:
        self._hope()

    def _hope(self) -> None:
        """Take drafts to be good enough to win: whether they are is known once some were tried."""
        self._right, self._checked = DOUBT * min(1.0, max(0.5, self.costs.break_even + 0.05)), DOUBT

    def most(self) -> int:
        """Tokens to draft; to be asked once a pass."""
        if self._wait or self.costs.hope < WORTH:
            self._wait = max(0, self._wait - 1)
            return 0
        right = self._right / self._checked
        counts = range(1, 1 + len(self.costs.more))
        best = max(counts, key=lambda count: self._gain(count, right))
        if self._gain(best, right) > 1:
            return best
        self._wait, self._pause = self._pause, 2 * self._pause
        self._hope()  # as if new, for the text may have changed by then
        self._again /= 2
        return 0

    def _gain(self, count: int, right: float) -> float:
        alone = self.costs.gain(count, right)
        return 1 / (1 / alone + self._again / sum(right**power for power in range(count + 1)))

    def learn(self, accepted: int, drafted: int, guarded: int) -> None:
        """Take a draft into account: those behind the first wrong token say nothing."""
        self._right = FORGETTING * self._right + accepted
        self._checked = FORGETTING * self._checked + min(accepted + 1, drafted)
        self._again = FORGETTING * self._again + (1 - FORGETTING) * guarded
