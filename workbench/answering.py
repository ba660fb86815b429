"""From a request to an answer: stages in, tokens, stages out. One way for a stream, a score and a sample."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

from tokenizers.decoders import DecodeStream
from torch import Tensor

from workbench.decoding import Decoding, decode, model_lock, shared_prefix
from workbench.errors import InvalidInput
from workbench.grammar import guide
from workbench.progress import Progress
from workbench.request import Generation, Piece, Request

if TYPE_CHECKING:
    from workbench.stage import Stage
    from workbench.variant import Variant

BATCH = {"cpu": 16, "cuda": 64}  # answers decoded together


class Row:
    """One answer while it is decoded.

    Attributes:
        tokens: what was chosen so far.
        times: seconds from the start to each.
        reason: why it ended; None while it goes on.
    """

    def __init__(self, variant: "Variant", limit: int, started: float) -> None:
        self._variant, self._limit, self._started = variant, limit, started
        self._stages = [each for each in variant.stages if _overrides(each, "enough")]
        self.guides = [guide(variant, found) for each in variant.stages if (found := each.grammar(variant))]
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
        if self.reason is not None:
            return
        self.tokens.append(token)
        self.times.append(time.perf_counter() - self._started)
        if token in self._variant.end_tokens:
            self.reason = "stop"
            return
        for each in self.guides:
            each.take(token)
        if chance is not None:
            self.chances.append(chance)
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
            notes=(*request.notes, *notes),
            spent=len(self.tokens),
        )


def settings_of(variant: "Variant", settings: Decoding) -> Decoding:
    """How tokens are chosen once every stage has had its say."""
    for stage in variant.stages:
        settings = stage.decoding(settings)
    limits = [stage.most_tokens for stage in variant.stages if stage.most_tokens is not None]
    return settings.but(max_new_tokens=min([settings.max_new_tokens, *limits]))


def samples_of(variant: "Variant") -> int:
    """How many answers are drawn for one request."""
    return max((stage.samples for stage in variant.stages), default=1)


def finished(variant: "Variant", request: Request, rows: Sequence[Row], prompt_tokens: int) -> Generation:
    """One answer out of all that were decoded for a request."""
    answers = [row.generation(request, prompt_tokens) for row in rows]
    spent = sum(each.spent for each in answers)
    for stage in variant.stages:
        answers = stage.finish(answers)
    return answers[0].but(spent=spent)


def streamed(
    variant: "Variant",
    request: Request,
    ids: list[int],
    settings: Decoding,
    started: float,
    guard: Callable[[], AbstractContextManager[None]],
) -> Iterator[Piece]:
    """Yield the pieces of a request's first sample; the last one brings the answer, once all samples have ended.

    Args:
        variant: who answers.
        request: rewritten already.
        ids: its tokens.
        settings: with what the stages want.
        started: when it was asked, for `time.perf_counter`.
        guard: a context for every use of the model.
    """
    rows = [Row(variant, settings.max_new_tokens, started) for _ in range(samples_of(variant))]
    text, backend, emitted = DecodeStream(skip_special_tokens=True), variant.tokenizer.backend_tokenizer, ""
    first = rows[0]
    with model_lock, guard():
        prefix = shared_prefix(variant.model, [ids] * len(rows), settings.cache_bits)
    rest = [ids[prefix.length if prefix else 0 :]] * len(rows)
    steps = decode(variant.model, rest, settings, prefix, rows)
    piece = Piece("", 0, 0.0)
    while any(row.reason is None for row in rows):
        going = first.reason is None
        with model_lock, guard():
            _ = variant.model  # raises `Closed` when it was closed meanwhile
            next(steps)
        if going:
            # The last piece brings whatever was held back in hope of the rest of a character.
            more = first.text[len(emitted) :] if first.reason else text.step(backend, first.tokens[-1]) or ""
            emitted += more
            piece = Piece(more, first.tokens[-1], first.times[-1])
            if first.reason is None:
                yield piece
        else:
            yield replace(piece, text="")  # the other samples go on
    yield replace(piece, answer=finished(variant, request, rows, len(ids)))


def answers(
    variant: "Variant", requests: Sequence[Request], settings: Decoding, progress: Progress | None = None
) -> list[Generation]:
    """Answer many requests, decoded in batches of similar length; the tokens all prompts begin with are read once."""
    progress = progress or Progress()
    settings, count = settings_of(variant, settings), samples_of(variant)
    progress.start(f"{variant.name}: reading", len(requests))
    rewritten = []
    for each in requests:
        rewritten.append(variant.rewritten(each))
        progress.advance()
    prompts = [variant.tokens(each) for each in rewritten]
    variant.check_length(max(map(len, prompts)), settings.max_new_tokens)
    with model_lock:
        prefix = shared_prefix(variant.model, prompts, settings.cache_bits)
    start = prefix.length if prefix else 0
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    size = max(1, BATCH.get(variant.device.type, BATCH["cpu"]) // count)
    found: list[Generation | None] = [None] * len(requests)
    progress.start(f"{variant.name}: answering", len(requests))
    for first in range(0, len(order), size):
        batch = order[first : first + size]
        began = time.perf_counter()
        rows = {index: [Row(variant, settings.max_new_tokens, began) for _ in range(count)] for index in batch}
        flat = [row for index in batch for row in rows[index]]
        rest = [prompts[index][start:] for index in batch for _ in range(count)]
        with model_lock:
            for _ in decode(variant.model, rest, settings, prefix, flat):
                progress.check()
                if all(row.reason is not None for row in flat):
                    break
        for index in batch:
            found[index] = finished(variant, rewritten[index], rows[index], len(prompts[index]))
        progress.advance(len(batch))
    return [each for each in found if each is not None]


def _overrides(stage: "Stage", name: str) -> bool:
    from workbench.stage import Stage

    return getattr(type(stage), name) is not getattr(Stage, name)
