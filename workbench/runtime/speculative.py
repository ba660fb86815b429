"""Several tokens a pass: a draft of what comes next is checked at once, and what is right is taken."""

import math
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from weakref import WeakKeyDictionary

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workbench.core.device import synchronize
from workbench.core.errors import InvalidInput
from workbench.core.progress import Progress
from workbench.runtime.decoding import Decoding, Follower, choose, draws, nucleus
from workbench.runtime.drafts import Costs, Counts, Drafter, Lookup, Pace, Smaller
from workbench.runtime.engine import Eager, Starts
from workbench.runtime.forward import using
from workbench.runtime.prefix import Prefix
from workbench.runtime.rows import Rows, forgets
from workbench.runtime.trial import some_tokens, way_of

READ, ROUNDS = 48, 3  # tokens before those of a trial, and how often it times each number of them
HEAD_ROOM = 8.0  # standard deviations of what another number of tokens a pass does to a logit
TINY = 1e-12  # rounding of heights in float64
RARE = 1e-3  # logits: two come closer once in some thousand tokens

_costs: "WeakKeyDictionary[PreTrainedModel, dict[Speculate, Costs]]" = WeakKeyDictionary()
_totals: "WeakKeyDictionary[PreTrainedModel, dict[Speculate, Counts]]" = WeakKeyDictionary()
_answers: "WeakKeyDictionary[Follower, tuple[Counts, Costs]]" = WeakKeyDictionary()


class Speculate(Eager):
    """One request at a time is answered several tokens a pass, with the tokens of one a pass.

    Drafts are what followed the same tokens in the prompt or the answer before. Every position is decided from the
    model's own logits as without drafts: constraints, stops and draws see one token after another. Requests of a batch,
    and samples of one request, are decoded one token a pass.

    Another number of tokens in a pass sums in another order. Where the choice is so close that this could turn it over,
    the tokens read since are taken back and read one by one, as without drafts. Where such near ties are frequent (in
    16 bits, or with packed layers) only the last token is read again.

    Attributes:
        tokens: drafted at most.
        match: how many tokens must be the same before any are drafted.
    """

    tokens: int = Field(default=3, ge=1, le=8)
    match: int = Field(default=3, ge=2, le=16)

    def fitted(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, progress: Progress) -> "Speculate":
        """Try what passes cost.

        Raises:
            InvalidInput: tokens that a model has read cannot be taken back.
        """
        with using(repr(self)):
            if not forgets(model, way_of(model)):
                raise InvalidInput(
                    "This architecture keeps a state out of which no token can be taken back (a sliding window or a "
                    "recurrence), so drafts cannot be checked: run it without Speculate."
                )
            self.costs(model)
        return self

    def starts(self, model: PreTrainedModel, rows: int) -> Starts:
        """A pass of a single row gives several tokens: what it costs cannot be told from one."""
        return "elsewhere" if rows == 1 else "operations"

    def smaller(self, model: PreTrainedModel) -> PreTrainedModel | None:
        """The model that drafts, if one does."""
        return None

    def drafter(self, model: PreTrainedModel) -> Drafter:
        """Who drafts one answer."""
        smaller = self.smaller(model)
        if smaller is None:
            return Lookup(self.match)
        return Smaller(smaller, int(model.get_output_embeddings().weight.shape[0]), self.cache_bits)

    def costs(self, model: PreTrainedModel) -> Costs:
        """Of passes of a model, tried once; to be used within `using`."""
        known = _costs.setdefault(model, {})
        if self not in known:
            known[self] = self._try(model)
        return known[self]

    def totals(self, model: PreTrainedModel) -> Counts:
        """What came of all drafts for a model so far."""
        return _totals.setdefault(model, {}).setdefault(self, Counts())

    def notes(self, row: Follower) -> tuple[str, ...]:
        """What came of the drafts for one answer, in a sentence."""
        if row not in _answers:
            return ()
        counts, costs = _answers[row]
        return (said(counts, costs),) if counts.passes else ()

    def _batch(
        self,
        model: PreTrainedModel,
        prefix: Prefix | None,
        prompts: Sequence[Sequence[int]],
        settings: Decoding,
        rows: Sequence[Follower],
        seeds: Sequence[int],
        label: str,
    ) -> Iterator[None]:
        """A single row with drafts."""
        if len(rows) > 1 or not forgets(model, way_of(model)):
            yield from super()._batch(model, prefix, prompts, settings, rows, seeds, label)
            return
        with using(label):
            answer = _Answer(self, model, prefix, prompts[0], settings, rows[0], seeds[0])
        try:
            while answer.left and not rows[0].ended:
                with using(label):
                    answer.step()
                    if self.prefix_bytes and (rows[0].ended or not answer.left):
                        self._keep(model, answer.ids, answer.rows)
                yield
        finally:
            self.totals(model).add(answer.counts)

    def _try(self, model: PreTrainedModel) -> Costs:
        """Time passes with one token and with more, and see how far apart their logits are."""
        text = some_tokens(model, READ + 1 + self.tokens)
        rows = self.open(model, [text[:READ]], 1 + self.tokens)
        rows.logits()
        following = torch.tensor([text[READ:]], device=model.device)
        alone = []
        for token in following[0]:
            rows.append(token[None])
            alone.append(rows.logits()[0].float())
        rows.forget(len(alone))
        counts = range(1, len(alone) + 1)
        seconds, apart = dict.fromkeys(counts, math.inf), 0.0
        for _ in range(ROUNDS):
            for count in counts:
                rows.append(following[:, 0])
                synchronize(model.device)
                started = time.perf_counter()
                logits = rows.ahead(following[:, 1:count])[0]
                synchronize(model.device)
                seconds[count] = min(seconds[count], time.perf_counter() - started)
                rows.forget(count)
                changes = [(one - other.float()).std() for one, other in zip(alone, logits, strict=False)]
                apart = max(apart, float(torch.stack(changes).max()))
        least = torch.finfo(model.dtype).eps * max(float(each.abs().max()) for each in alone)
        more = [max(1.0, seconds[count] / seconds[1]) for count in counts[1:]]
        return Costs(seconds[1], more, self._draft_cost(model, text, seconds[1]), HEAD_ROOM * max(apart, least))

    def _draft_cost(self, model: PreTrainedModel, text: Sequence[int], one: float) -> float:
        """Of a drafted token, in passes of the model; looking it up costs none.

        As while answering: after two tokens that are new to the draft, and a pass that has filled the caches.
        """
        if self.smaller(model) is None:
            return 0.0
        drafter, seconds = self.drafter(model), []
        for end in range(len(text) - 2 * ROUNDS, len(text) + 1, 2):
            model(input_ids=torch.tensor([text[:1]], device=model.device), use_cache=False)
            synchronize(model.device)
            started = time.perf_counter()
            drafter.draft(text[:end], self.tokens)
            seconds.append(time.perf_counter() - started)
        return min(seconds[1:]) / self.tokens / one


class _Answer:
    """One answer while it is decoded.

    Attributes:
        rows: the one that is read.
        ids: tokens of the prompt and the answer.
        left: tokens that may still come.
        counts: what came of drafts.
    """

    def __init__(
        self,
        engine: Speculate,
        model: PreTrainedModel,
        prefix: Prefix | None,
        prompt: Sequence[int],
        settings: Decoding,
        row: Follower,
        seed: int,
    ) -> None:
        self.rows: Rows = engine.open(model, [prompt], settings.max_new_tokens, prefix)
        self.ids = [*(prefix.ids if prefix else ()), *prompt]
        self._costs, self._drafter = engine.costs(model), engine.drafter(model)
        self._pace = Pace(self._costs)
        self._settings, self._row, self._device = settings, row, model.device
        self._draw = draws([seed])
        self._thorough = self._costs.slack < RARE
        self._again: list[int] = []  # tokens that are read one by one before anything is chosen
        self._alone = True  # whether the next token is chosen without a draft
        self._mixed = 0  # tokens read since several were read at once
        self.left, self.counts = settings.max_new_tokens, Counts()
        _answers[row] = self.counts, self._costs

    def step(self) -> None:
        """One pass."""
        first = not self.counts.passes
        self.counts.passes += 1
        if self._again:
            self.rows.logits()
            self.rows.append(self._tensor([self._again.pop(0)]))
            return
        most = 0 if self._alone else min(self._pace.most(), self.left - 1)
        started = time.perf_counter()
        draft = self._drafter.draft(self.ids, most) if most > 0 else []
        if self.counts.drafted and draft:  # the first has the prompt to read
            self._costs.learn_draft(len(draft), time.perf_counter() - started)
        self._alone, close = False, self.counts.guarded
        started = time.perf_counter()
        right = self._take(draft, self.rows.ahead(self._tensor(draft)[None])[0])
        if not first:
            self._costs.learn(1 + len(draft), time.perf_counter() - started)
        if draft:
            self._pace.learn(right, len(draft), self.counts.guarded - close)
        self.counts.drafted += len(draft)
        self.counts.accepted += right

    def _take(self, draft: Sequence[int], logits: Tensor) -> int:
        """Decide position after position while the draft is right; gives how many of its tokens were."""
        doubtful = bool(draft) or (self._thorough and self._mixed > 0)
        for right, each in enumerate(logits):
            free = each.clone() if self._row.watches else None
            self._row.restrict(each)
            if doubtful and close_call(each, self._settings, self._draw[0], self._costs.slack):
                self._go_back(right, len(draft) - right)
                return right
            token = int(choose(each[None], self._settings, self._draw))
            self._row.take(token, None if free is None else float(torch.softmax(free.float(), dim=-1)[token]))
            self.ids.append(token)
            self.counts.tokens += 1
            self.left -= 1
            if self._row.ended or right == len(draft) or token != draft[right]:
                break
        self.rows.forget(len(draft) - right)
        self.rows.append(self._tensor(self.ids[-1:]))
        self._mixed += 1 + right if doubtful else 0
        return right

    def _go_back(self, right: int, wrong: int) -> None:
        """Have a position decided again after tokens that are read one by one: all since the first draft, or the last.

        Args:
            right: how many drafted tokens were taken before it.
            wrong: how many stood behind it.
        """
        back = self._mixed + 1 + right if self._thorough else 1
        self.rows.forget(wrong + back)
        first, *self._again = self.ids[-back:]
        self.rows.append(self._tensor([first]))
        self._alone, self._mixed = True, 0
        self.counts.guarded += 1

    def _tensor(self, tokens: Sequence[int]) -> Tensor:
        return torch.tensor(list(tokens), dtype=torch.long, device=self._device)


def close_call(logits: Tensor, settings: Decoding, draw: torch.Generator, slack: float) -> bool:
    """Whether `choose` could take another token if the logits ``(vocabulary,)`` were a little different.

    Args:
        logits: of one position.
        settings: how tokens are chosen.
        draw: what the number is drawn from next; it stays as it is.
        slack: by how much two logits may move against each other.
    """
    if settings.temperature == 0:
        return int((logits >= logits.max() - slack).sum()) > 1
    found, _, end = nucleus(logits[None], settings)
    heights, last = found[0].tolist(), int(end)
    peek = torch.Generator()
    peek.set_state(draw.get_state())
    part, moved = float(torch.rand(1, generator=peek, dtype=torch.float64)), slack / settings.temperature
    wanted = part * heights[last]
    at = min(bisect_right(heights, wanted), last)

    def give(height: float) -> float:
        """How far the border at a height may move, and the drawn number with the end of the nucleus."""
        return float(moved * (height * (1 - height) + part * heights[last] * (1 - heights[last])) + TINY)

    chances = [high - low for low, high in pairwise([0.0, *heights[: last + 3]])]
    borders = [abs(wanted - heights[near]) < give(heights[near]) for near in (at - 1, at) if 0 <= near < last]
    # A neighbour in rank that is as probable could stand in its place.
    pairs = [(near, near + 1) for near in (at - 1, at) if near >= 0 and near + 1 < len(chances)]
    swaps = [chances[low] >= chances[high] * math.exp(-moved) for high, low in pairs]
    ends = [abs(heights[near] - settings.top_p) < give(heights[near]) for near in (last - 1, last) if near >= 0]
    return any(borders) or any(swaps) or (settings.top_p < 1 and any(ends))


def said(counts: Counts, costs: Costs) -> str:
    """What came of drafts, in a sentence."""
    if not counts.drafted:
        return f"Speculation: nothing was drafted in {counts.passes} passes."
    guarded = f"; {counts.guarded} near ties were decided again" if counts.guarded else ""
    return (
        f"Speculation: {counts.accepted} of {counts.drafted} drafted tokens were right, {counts.tokens} tokens in "
        f"{counts.passes} passes{guarded}."
    )
