"""From a request to an answer: stages in, tokens, stages out. One way for a stream, a score and a sample."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from torch import Tensor

from workbench.answering.grammar import guide
from workbench.answering.pieces import Pieces
from workbench.answering.request import Generation, Piece, Prepared, Prompt, Request
from workbench.answering.speaker import Speaker
from workbench.answering.stage import Stage, overrides
from workbench.core.errors import InvalidInput
from workbench.core.progress import Progress
from workbench.runtime.decoding import Decoding


class Staged(Speaker, Protocol):
    """A speaker whose requests and answers pass stages."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """In the order of a request's way in."""

    @property
    def decoding(self) -> Decoding:
        """How tokens are chosen unless a request says otherwise."""

    @property
    def closed(self) -> bool:
        """Whether its memory was given back."""

    def rewritten(self, prompt: Prompt) -> Request:
        """The request once every stage has worked on it."""

    def tokens(self, request: Request) -> list[int]:
        """Token ids of a request as it is."""

    def check_length(self, prompt_tokens: int, new_tokens: int) -> None:
        """Raise `InvalidInput` when prompt and answer do not fit the context."""


class Row:
    """One answer while it is decoded.

    Attributes:
        heard: how many tokens came so far, those after its end included.
        tokens: what was chosen so far.
        times: seconds from the start to each.
        reason: why it ended; None while it goes on.

    Args:
        variant: who answers.
        settings: how many tokens it may have, and whether it goes on to that limit.
        started: when it was asked, for `time.perf_counter`.
    """

    def __init__(self, variant: Staged, settings: Decoding, started: float) -> None:
        self._variant, self._settings, self._started = variant, settings, started
        self._stages = [each for each in variant.stages if overrides(each, "enough")]
        self.guides = [guide(variant, found) for each in variant.stages if (found := each.grammar(variant))]
        self.heard = 0
        self.tokens: list[int] = []
        self.times: list[float] = []
        self.chances: list[float] = []
        self.reason: str | None = None
        self.kept: int | None = None
        self._enough = False  # an endless one goes on all the same

    @property
    def watches(self) -> bool:
        """Whether it wants to know how probable each token was."""
        return bool(self._stages)

    @property
    def ended(self) -> bool:
        """Whether it wants no more tokens."""
        return self.reason is not None

    @property
    def text(self) -> str:
        """The answer so far."""
        text = self._variant.decode(self.tokens)
        return text if self.kept is None else text[: self.kept]

    def restrict(self, logits: Tensor) -> None:
        """Rule out tokens ``(vocabulary,)`` that may not come next."""
        if not self._enough:
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
        full = "length" if len(self.tokens) >= self._settings.max_new_tokens else None
        if self._enough:
            self.reason = full
            return
        kept, found = self._found(token, chance)
        self._enough = found is not None
        if self._settings.endless:
            self.reason = full
        else:
            self.kept, self.reason = kept, found or full

    def _found(self, token: int, chance: float | None) -> tuple[int | None, str | None]:
        """How much of the text is kept and why it ends with this token, where it does."""
        if token in self._variant.end_tokens:
            return None, "stop"
        for each in self.guides:
            each.take(token)
        if chance is not None:  # not every engine tells
            self.chances.append(chance)
        if self._stages:
            text = self._variant.decode(self.tokens)
            for stage in self._stages:
                if found := stage.enough(text, self.chances):
                    return found
        return None, "complete" if self.guides and all(each.stopped for each in self.guides) else None

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


def known(variant: Staged, asked: Prepared, settings: Decoding, started: float) -> Generation | None:
    """The answer, where a stage knows it before the model is asked; all of it is there at once."""
    for stage in variant.stages:
        if found := stage.known(variant, asked, settings):
            return found.but(times=(time.perf_counter() - started,), spent=0)
    return None


def learn(variant: Staged, asked: Prepared, settings: Decoding, answer: Generation) -> Generation:
    """Let every stage hear what the model answered; gives the answer back."""
    for stage in variant.stages:
        stage.learn(variant, asked, settings, answer)
    return answer


class Answering:
    """A request while it is answered: its samples, and the pieces of the first.

    Attributes:
        variant: who answers.
        asked: what.
        settings: with what the stages want.
        rows: one for each sample.

    Args:
        started: when it was asked, for `time.perf_counter`.
        fresh: ask the model, whatever is known.
    """

    def __init__(self, variant: Staged, asked: Prepared, settings: Decoding, started: float) -> None:
        self.variant, self.asked, self.settings = variant, asked, settings
        self.rows = [Row(variant, settings, started) for _ in range(samples_of(variant))]
        self._text, self._piece = Pieces(variant), Piece("", 0, 0.0)
        self._heard, self._waiting, self._held = 0, False, False

    def steps(self) -> Iterator[None]:
        """Decode it by itself, as the variant's engine does."""
        count, variant = len(self.rows), self.variant
        return variant.engine.decode(
            variant.model, [self.asked.ids] * count, self.settings, self.rows, count, label=variant.name
        )

    @property
    def ended(self) -> bool:
        """Whether all samples have ended."""
        return all(row.ended for row in self.rows)

    def pieces(self, last: bool = False) -> Iterator[Piece]:
        """What came since this was asked before; the last piece brings the answer, once all samples have ended.

        Args:
            last: whether no more will come, whatever the samples want.
        """
        first, last = self.rows[0], last or self.ended
        for token, elapsed in zip(first.tokens[self._heard :], first.times[self._heard :], strict=True):
            self._heard += 1
            # The last piece brings whatever was held back in hope of the rest of a character.
            self._held = (last or first.reason is not None) and self._heard == len(first.tokens)
            self._piece = Piece(self._text.rest(first.text) if self._held else self._text.add(token), token, elapsed)
            if not self._held:
                yield self._piece
        if last:
            text = self._piece.text if self._held else self._text.rest(first.text)
            answer = finished(self.variant, self.asked.request, self.rows, len(self.asked.ids))
            yield replace(self._piece, text=text, answer=learn(self.variant, self.asked, self.settings, answer))
        elif self._waiting:
            yield replace(self._piece, text="")  # the other samples go on
        self._waiting = first.ended


def begin(variant: Staged, prompt: Prompt, decoding: Mapping[str, Any], fresh: bool = False) -> Answering | Piece:
    """A request worked on by every stage, in tokens, with its settings; nothing is decoded yet.

    Args:
        variant: who answers.
        prompt: what is asked.
        decoding: settings of this request.
        fresh: ask the model, whatever is known; otherwise an answer that a stage knows comes at once, as one piece.

    Raises:
        InvalidInput: an empty prompt, one longer than the context, or a setting out of range.
    """
    settings = settings_of(variant, variant.decoding.but(**decoding))
    started = time.perf_counter()
    request = variant.rewritten(prompt)
    asked = Prepared(request, variant.tokens(request))
    variant.check_length(len(asked.ids), settings.max_new_tokens)
    if not fresh and (found := known(variant, asked, settings, started)):
        return Piece(found.said, found.token_ids[-1], found.ttft, found)
    return Answering(variant, asked, settings, started)


def streamed(going: Answering | Piece) -> Iterator[Piece]:
    """Yield the pieces of a request's first sample; the last one brings the answer, once all samples have ended."""
    if isinstance(going, Piece):
        yield going
        return
    steps = going.steps()
    while not going.ended:
        _ = going.variant.model  # raises `Closed` when it was closed meanwhile
        if next(steps, steps) is steps:  # the engine gives no more
            yield from going.pieces(last=True)
            return
        yield from going.pieces()


def answers(
    variant: Staged, asked: Sequence[Prepared], settings: Decoding, progress: Progress | None = None
) -> list[Generation]:
    """Answer many requests, as the variant's engine puts them together; times count from here, waiting included."""
    progress, started = progress or Progress(), time.perf_counter()
    settings, count = settings_of(variant, settings), samples_of(variant)
    variant.check_length(max(len(each.ids) for each in asked), settings.max_new_tokens)
    found = [known(variant, each, settings, started) for each in asked]
    unknown = [each for each, answer in zip(asked, found, strict=True) if answer is None]
    rows = [[Row(variant, settings, started) for _ in range(count)] for _ in unknown]
    prompts = [each.ids for each in unknown for _ in range(count)]
    flat = [row for each in rows for row in each]
    progress.start(f"{variant.name}: answering", len(asked))
    progress.advance(len(asked) - len(unknown))
    for _ in (
        variant.engine.decode(variant.model, prompts, settings, flat, count, label=variant.name) if unknown else ()
    ):
        _ = variant.model  # raises `Closed` when it was closed meanwhile
        done = sum(all(row.ended for row in each) for each in rows)
        progress.advance(len(asked) - len(unknown) + done - progress.done)
    fresh = (
        learn(variant, each, settings, finished(variant, each.request, own, len(each.ids)))
        for each, own in zip(unknown, rows, strict=True)
    )
    return [answer or next(fresh) for answer in found]
