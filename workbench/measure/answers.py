"""How good a variant's answers are on a task's test examples."""

from collections.abc import Sequence
from dataclasses import dataclass

from workbench.answering import answers
from workbench.measure.likelihood import answer_span, likelihoods
from workbench.progress import Progress
from workbench.request import Generation, Request
from workbench.task import Example, Task
from workbench.variant import Variant


@dataclass(frozen=True)
class Scored:
    """How good the answers to some examples are.

    Attributes:
        scores: 0 to 1, in the order of the examples.
        answers: what was said; nothing where the likelihood of choices decides.
    """

    scores: list[float]
    answers: list[Generation]


def scored(variant: Variant, task: Task, limit: int | None = None, progress: Progress | None = None) -> Scored:
    """The first `limit` test examples, answered and scored."""
    examples = task.test[:limit]
    progress = progress or Progress()
    if task.scorer == "choice":
        return Scored(_choice_scores(variant, task, examples, progress), [])
    found = generate_answers(variant, task, examples, progress)
    marks = [task.score(example, answer.text.strip()) for example, answer in zip(examples, found, strict=True)]
    return Scored(marks, found)


def generate_answers(
    variant: Variant, task: Task, examples: Sequence[Example], progress: Progress | None = None
) -> list[Generation]:
    """Answers to some of the task's examples, greedy unless a stage draws them."""
    settings = variant.decoding.but(max_new_tokens=task.max_new_tokens, temperature=0.0)
    return answers(variant, [Request.example(task, example) for example in examples], settings, progress)


def _choice_scores(variant: Variant, task: Task, examples: Sequence[Example], progress: Progress) -> list[float]:
    """1 where the gold answer is the most likely of the choices, by log-likelihood a token."""
    spans = [answer_span(variant, task, example, choice) for example in examples for choice in example.choices]
    scored = likelihoods([variant], [spans], progress)[0]
    per_token = iter([-nll / tokens for nll, tokens in zip(scored.nll, scored.tokens, strict=True)])
    found = []
    for example in examples:
        chances = {choice: next(per_token) for choice in example.choices}
        found.append(float(max(chances, key=chances.__getitem__) == example.answer))
    return found
