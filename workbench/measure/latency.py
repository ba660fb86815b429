"""How long a request takes: time to the first token, and from token to token."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from workbench.decoding import decode
from workbench.device import synchronize
from workbench.progress import Progress
from workbench.task import Task, Text
from workbench.variant import Variant, model_lock

PROMPT_TOKENS = 64  # of a text window that is made into a prompt


@dataclass(frozen=True)
class Timing:
    """One timed request, in seconds.

    Attributes:
        ttft: from the request to its first token.
        inter_token: from each token to the next.
    """

    ttft: float
    inter_token: tuple[float, ...]

    @property
    def tokens_per_second(self) -> float:
        """Tokens of the answer over the time of the whole request."""
        return (1 + len(self.inter_token)) / (self.ttft + sum(self.inter_token))


def prompts(variant: Variant, task: Task | Text, count: int) -> list[str]:
    """Texts to ask for: the first test prompts, or the beginnings of the test windows."""
    if isinstance(task, Task):
        texts = [task.prompt(example) for example in task.test[:count]]
    else:
        windows = task.windows(variant.tokenizer, "test")[:count]
        texts = [str(variant.tokenizer.decode(window[:PROMPT_TOKENS])) for window in windows]
    return [texts[index % len(texts)] for index in range(count)]


def time_request(variant: Variant, prompt: str, new_tokens: int) -> Timing:
    """Answer a prompt with exactly `new_tokens` greedy tokens, end tokens ignored, and time each."""
    ids = variant.encode(prompt)
    variant.check_length(len(ids), new_tokens)
    settings = variant.decoding.but(max_new_tokens=new_tokens, temperature=0.0)
    with model_lock:
        synchronize(variant.device)
        clock = [time.perf_counter()]
        for _ in decode(variant.model, [ids], settings):  # reading the token waits for the device
            clock.append(time.perf_counter())
    gaps = [after - before for before, after in pairwise(clock)]
    return Timing(gaps[0], tuple(gaps[1:]))


def time_interleaved(
    variants: Sequence[Variant], task: Task | Text, rounds: int, new_tokens: int, progress: Progress
) -> Iterator[list[Timing]]:
    """Yield one timing of every variant a round: all answer the same prompt, in an order that reverses every round.

    The reversal (A B, B A, ...) cancels a machine that slowly gets hotter or busier. A first round warms up.
    """
    texts = prompts(variants[0], task, rounds)
    progress.start("Timing requests", (rounds + 1) * len(variants))
    for variant in variants:
        time_request(variant, texts[0], min(4, new_tokens))
        progress.advance()
    for number, text in enumerate(texts):
        order = range(len(variants)) if number % 2 == 0 else reversed(range(len(variants)))
        timed: dict[int, Timing] = {}
        for index in order:
            timed[index] = time_request(variants[index], text, new_tokens)
            progress.advance()
        yield [timed[index] for index in range(len(variants))]
