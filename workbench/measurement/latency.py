"""How long a request takes: time to the first token, and from token to token."""

import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from workbench.answering.answers import Row, samples_of
from workbench.answering.request import Generation, Request
from workbench.answering.speaker import Respondent
from workbench.core.device import synchronize
from workbench.core.errors import InvalidInput
from workbench.core.progress import Progress
from workbench.runtime.forward import using
from workbench.tasks.task import Task, Text
from workbench.variant import Variant

PROMPT_TOKENS = 64  # of a text window that is made into a prompt


@dataclass(frozen=True)
class Timing:
    """One timed request, in seconds.

    Attributes:
        ttft: from the request to its first token.
        inter_token: from each token to the next; those that came at once share the time of their pass.
        each: whether they came one by one.
    """

    ttft: float
    inter_token: tuple[float, ...]
    each: bool = True

    @property
    def token_seconds(self) -> float:
        """Time a token: the median, or the mean where a median would hide the passes that gave only one of several."""
        return float(median(self.inter_token) if self.each else fmean(self.inter_token))

    @property
    def throughput(self) -> float:
        """Tokens of the answer over the time of the whole request."""
        return (1 + len(self.inter_token)) / (self.ttft + sum(self.inter_token))


def requests(variant: Variant | None, task: Task | Text, count: int) -> list[Request]:
    """What to ask: the first test examples, or the beginnings of the test windows.

    Raises:
        InvalidInput: there is no variant to cut a text into windows.
    """
    if isinstance(task, Task):
        found = [Request.example(task, example) for example in task.test[:count]]
    elif variant is None:
        raise InvalidInput(
            "A text is cut into tokens by a variant: put one first, or compare on a task with questions."
        )
    else:
        windows = task.windows(variant.tokenizer, "test")[:count]
        found = [Request.of(variant.decode(window[:PROMPT_TOKENS])) for window in windows]
    return [found[index % len(found)] for index in range(count)]


def time_request(variant: Respondent, prompt: str | Request, new_tokens: int) -> Timing:
    """Answer a prompt with exactly `new_tokens` greedy tokens, end tokens ignored, and time each.

    What the variant's stages do to the request, such as looking something up, belongs to the time to the first token.
    The model itself is timed, never a cache of answers that knows what it would say. Of what answers outside this
    process, times are those at which its pieces come.
    """
    if not isinstance(variant, Variant):
        exact = {"max_new_tokens": new_tokens, "temperature": 0.0, "endless": True}
        times = variant.generate(prompt, fresh=True, **exact).times
        return timing([(each, float(bisect_right(times, each))) for each in sorted(set(times))])
    settings = variant.decoding.but(max_new_tokens=new_tokens, temperature=0.0, endless=True)
    with using(variant.name):
        synchronize(variant.device)
        started = time.perf_counter()
        ids = variant.encode(prompt)
        variant.check_length(len(ids), new_tokens)
        rows = [Row(variant, settings, started) for _ in range(samples_of(variant))]
        prompts = [ids] * len(rows)
        passes: list[tuple[float, float]] = []
        # Reading the token waits for the device.
        for _ in variant.engine.decode(variant.model, prompts, settings, rows, len(rows), label=variant.name):
            passes.append((time.perf_counter() - started, sum(row.heard for row in rows) / len(rows)))
    return timing(passes)


def timing(passes: Sequence[tuple[float, float]]) -> Timing:
    """Of one answer, from the seconds since it was asked and the tokens heard so far, after every pass.

    The first pass that gives tokens is the time to the first; any others that came with it took no time of their own.
    """
    gaps: list[float] = []
    before = first = heard = 0.0
    each = True
    for now, tokens in passes:
        come = round(tokens) - round(heard)
        if come < 1:  # its time goes to the next that come
            each = False
            continue
        if not heard:
            first, gaps = now, [0.0] * (come - 1)
        else:
            gaps += [(now - before) / come] * come
        each = each and come == 1
        before, heard = now, tokens
    return Timing(first, tuple(gaps), each)


def time_interleaved(
    variants: Sequence[Respondent], task: Task | Text, rounds: int, new_tokens: int, progress: Progress
) -> Iterator[list[Timing]]:
    """Yield one timing of every variant a round: all answer the same prompt, in an order that reverses every round.

    The reversal (A B, B A, ...) cancels a machine that slowly gets hotter or busier. A first round warms up.
    """
    asked = requests(next((each for each in variants if isinstance(each, Variant)), None), task, rounds)
    progress.start("Timing requests", (rounds + 1) * len(variants), undisturbed=True)
    for variant in variants:
        time_request(variant, asked[0], min(4, new_tokens))
        progress.advance()
    for number, request in enumerate(asked):
        order = range(len(variants)) if number % 2 == 0 else reversed(range(len(variants)))
        timed: dict[int, Timing] = {}
        for index in order:
            timed[index] = time_request(variants[index], request, new_tokens)
            progress.advance()
        yield [timed[index] for index in range(len(variants))]


def answer_interleaved(
    variants: Sequence[Variant], task: Task, rounds: int, progress: Progress
) -> list[list[Generation]]:
    """Real answers of every variant to the first test examples, ended as its stages want; the order reverses as above.

    They are the model's own, whatever a cache of answers knows.

    Returns:
        One list a variant, in the order of the examples.
    """
    found: list[list[Generation]] = [[] for _ in variants]
    asked = requests(variants[0], task, rounds)
    progress.start("Timing answers", (rounds + 1) * len(variants), undisturbed=True)
    for number, request in enumerate([asked[0], *asked]):
        for index in range(len(variants))[:: 1 if number % 2 else -1]:
            settings = {"max_new_tokens": task.max_new_tokens, "temperature": 0.0}
            answer = variants[index].generate(request, fresh=True, **settings)
            found[index] += [answer] if number else []  # the first round warms up
            progress.advance()
    return found
