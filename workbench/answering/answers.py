"""From a request to an answer: stages in, tokens, stages out. One way for a stream, a score and a sample."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from workbench.answering.grammar import guide
from workbench.answering.pieces import Pieces
from workbench.answering.request import Generation, Piece, Request
from workbench.answering.speaker import Speaker
from workbench.answering.stage import Stage
from workbench.core.errors import InvalidInput
from workbench.core.progress import Progress
from workbench.runtime.decoding import Decoding


class Staged(Speaker, Protocol):
    """A speaker whose requests and answers pass stages."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """In the order of a request's way in."""

    def rewritten(self, prompt: Request) -> Request:
        """The request once every stage has worked on it."""

    def tokens(self, request: Request) -> list[int]:
        """Token ids of a request as it is."""

    def check_length(self, prompt_tokens: int, new_tokens: int) -> None:
        """Raise `InvalidInput` when prompt and answer do not fit the context."""


@dataclass(frozen=True)
class Prepared:
    """A request that every stage has worked on.

    Attributes:
        request: as it is asked.
        ids: its tokens.
    """

    request: Request
    ids: list[int]


class Row:
    """One answer while it is decoded.

    Attributes:
        heard: how many tokens came so far, those after its end included.
        tokens: what was chosen so far.
        times: seconds from the start to each.
        reason: why it ended; None while it goes on.

    Args:
        variant: who answers.
        limit: how many tokens it may have.
        started: when it was asked, for `time.perf_counter`.
        endless: go on to the limit whatever comes, to be timed.
    """

    def __init__(self, variant: Staged, limit: int, started: float, endless: bool = False) -> None:
        self._variant, self._limit, self._started, self._endless = variant, limit, started, endless
        self._stages = [each for each in variant.stages if _overrides(each, "enough")]
        self.guides = [guide(variant, found) for each in variant.stages if (found := each.grammar(variant))]
        self.heard = 0
        self.tokens: list[int] = []
        self.times: list[float] = []
        self.chances: list[float] = []
        self.reason: str | None = None
        self.kept: int | None = None

    @property
    def watches(self) -> bool:
        """Whether it wants to know how probable each token was."""
        return bool(self._stages)

    @property
    def ended(self) -> bool:
        """Whether it wants no more tokens."""
        return self.reason is not None and not self._endless

    @property
    def text(self) -> str:
        """The answer so far."""
        text = self._variant.decode(self.tokens)
        return text if self.kept is None else text[: self.kept]

    def restrict(self, logits: Tensor) -> None:
        """Rule out tokens ``(vocabulary,)`` that may not come next."""
        if self.reason is None:
            for each in self.guides:
                each.restrict(logits)
            if len(self.guides) > 1 and not logits.isfinite().any():
                raise InvalidInput("No token fits all the constraints at once: take one of them away.")

    def take(self, token: int, chance: float | None = None) -> None:
        """Add the token that was chosen, and see whether that is enough."""
        self.heard += 1
        if self.reason is not None:
            return
        self.tokens.append(token)
        self.times.append(time.perf_counter() - self._started)
        if token in self._variant.end_tokens:
            self.reason = "stop"
            return
        for each in self.guides:
            each.take(token)
        if chance is not None:  # not every engine tells
            self.chances.append(chance)
        if self._stages:
            text = self._variant.decode(self.tokens)
            for stage in self._stages:
                if found := stage.enough(text, self.chances):
                    self.kept, self.reason = found
                    return
        if self.guides and all(each.stopped for each in self.guides):
            self.reason = "complete"
        elif len(self.tokens) >= self._limit:
            self.reason = "length"

    def generation(self, request: Request, prompt_tokens: int) -> Generation:
        """The answer, before the output stages."""
        text = self.text
        cut = any(not each.complete for each in self.guides) or (bool(self.guides) and self.kept is not None)
        advice = "allow more tokens" if self.reason == "length" else "take Stop away"
        notes = (f"Ended ({self.reason}) before the constraint was met: {advice}.",) if cut else ()
        return Generation(
            text=text,
            token_ids=tuple(self.tokens),
            prompt_tokens=prompt_tokens,
            times=tuple(self.times),
            finish_reason=self.reason or "length",
            said=text,
            passages=request.passages,
            notes=(*request.notes, *self._variant.engine.notes(self), *notes),
            spent=len(self.tokens),
        )


def settings_of(variant: Staged, settings: Decoding) -> Decoding:
    """How tokens are chosen once every stage has had its say."""
    for stage in variant.stages:
        settings = stage.decoding(settings)
    limits = [stage.most_tokens for stage in variant.stages if stage.most_tokens is not None]
    return settings.but(max_new_tokens=min([settings.max_new_tokens, *limits]))


def samples_of(variant: Staged) -> int:
    """How many answers are drawn for one request."""
    return max((stage.samples for stage in variant.stages), default=1)


def finished(variant: Staged, request: Request, rows: Sequence[Row], prompt_tokens: int) -> Generation:
    """One answer out of all that were decoded for a request."""
    answers = [row.generation(request, prompt_tokens) for row in rows]
    spent = sum(each.spent for each in answers)
    for stage in variant.stages:
        answers = stage.finish(answers)
    return answers[0].but(spent=spent)


def prepare(variant: Staged, requests: Sequence[Request], progress: Progress | None = None) -> list[Prepared]:
    """Rewrite requests and turn them into tokens."""
    progress = progress or Progress()
    found = []
    for each in progress.track(f"{variant.name}: reading", requests, len(requests)):
        request = variant.rewritten(each)
        found.append(Prepared(request, variant.tokens(request)))
    return found


def streamed(variant: Staged, asked: Prepared, settings: Decoding, started: float) -> Iterator[Piece]:
    """Yield the pieces of a request's first sample; the last one brings the answer, once all samples have ended.

    Args:
        variant: who answers.
        asked: what.
        settings: with what the stages want.
        started: when it was asked, for `time.perf_counter`.
    """
    count = samples_of(variant)
    rows = [Row(variant, settings.max_new_tokens, started) for _ in range(count)]
    text, first = Pieces(variant), rows[0]
    steps = variant.engine.decode(variant.model, [asked.ids] * count, settings, rows, count, label=variant.name)
    piece, heard = Piece("", 0, 0.0), 0
    while not all(row.ended for row in rows):
        _ = variant.model  # raises `Closed` when it was closed meanwhile
        waiting = first.ended
        next(steps)
        for token, elapsed in zip(first.tokens[heard:], first.times[heard:], strict=True):
            heard += 1
            # The last piece brings whatever was held back in hope of the rest of a character.
            last = first.reason is not None and heard == len(first.tokens)
            piece = Piece(text.rest(first.text) if last else text.add(token), token, elapsed)
            if not last:
                yield piece
        if waiting:
            yield replace(piece, text="")  # the other samples go on
    yield replace(piece, answer=finished(variant, asked.request, rows, len(asked.ids)))


def answers(
    variant: Staged, asked: Sequence[Prepared], settings: Decoding, progress: Progress | None = None
) -> list[Generation]:
    """Answer many requests, as the variant's engine puts them together; times count from here, waiting included."""
    progress, started = progress or Progress(), time.perf_counter()
    settings, count = settings_of(variant, settings), samples_of(variant)
    variant.check_length(max(len(each.ids) for each in asked), settings.max_new_tokens)
    rows = [[Row(variant, settings.max_new_tokens, started) for _ in range(count)] for _ in asked]
    prompts = [each.ids for each in asked for _ in range(count)]
    flat = [row for each in rows for row in each]
    progress.start(f"{variant.name}: answering", len(asked))
    for _ in variant.engine.decode(variant.model, prompts, settings, flat, count, label=variant.name):
        _ = variant.model  # raises `Closed` when it was closed meanwhile
        progress.advance(sum(all(row.ended for row in each) for each in rows) - progress.done)
    return [finished(variant, each.request, own, len(each.ids)) for each, own in zip(asked, rows, strict=True)]


def _overrides(stage: Stage, name: str) -> bool:
    return getattr(type(stage), name) is not getattr(Stage, name)
