"""How good a variant's answers are on a task's test examples."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from workbench.answering.answers import answers, prepare
from workbench.answering.request import Generation, Prepared, Request
from workbench.answering.speaker import Respondent
from workbench.core.progress import Progress
from workbench.measurement.likelihood import answer_span, likelihoods, prepared
from workbench.runtime.decoding import Decoding
from workbench.tasks.scoring import LENGTHS
from workbench.tasks.task import Example, Task
from workbench.variant import Variant

OUTSIDE = 8  # requests at once to what answers outside this process, while it is scored


@dataclass(frozen=True)
class Scored:
    """How good the answers to some examples are.

    Attributes:
        scores: 0 to 1, in the order of the examples.
        answers: what was said; nothing where the likelihood of choices decides. Who gives no likelihood has no scores
            then.
    """

    scores: list[float]
    answers: list[Generation]


def scored(
    variant: Respondent,
    task: Task,
    limit: int | None = None,
    progress: Progress | None = None,
    asked: Sequence[Prepared] | None = None,
) -> Scored:
    """The first `limit` test examples, answered and scored.

    Args:
        variant: who is asked.
        task: what.
        limit: how many examples; all by default.
        progress: cancel and progress.
        asked: the examples as `prepared` made them, if that was done already.
    """
    examples = task.test[:limit]
    progress = progress or Progress()
    if not isinstance(variant, Variant):
        return _scored_outside(variant, task, examples, progress)
    asked = prepared(variant, task, limit, progress) if asked is None else asked
    if task.by_likelihood:
        return Scored(_choice_scores(variant, task, examples, asked, progress), [])
    found = answers(variant, asked, _settings(variant, task), progress)
    marks = [task.score(example, answer.text.strip()) for example, answer in zip(examples, found, strict=True)]
    return Scored(marks, found)


def _scored_outside(who: Respondent, task: Task, examples: Sequence[Example], progress: Progress) -> Scored:
    """The same of what answers outside this process, a few requests at once."""
    if task.by_likelihood:
        return Scored([], [])

    def answer(example: Example) -> Generation:
        progress.check()
        settings = {"max_new_tokens": task.max_new_tokens, "temperature": 0.0}
        return who.generate(Request.example(task, example), **settings)

    with ThreadPoolExecutor(OUTSIDE) as pool:
        told = progress.track(f"{who.name}: answering", pool.map(answer, examples), len(examples))
        try:
            found = list(told)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return Scored([task.score(e, a.text.strip()) for e, a in zip(examples, found, strict=True)], found)


def generate_answers(
    variant: Variant, task: Task, examples: Sequence[Example], progress: Progress | None = None
) -> list[Generation]:
    """Answers to some of the task's examples, greedy unless a stage draws them."""
    asked = prepare(variant, [Request.example(task, example) for example in examples], progress)
    return answers(variant, asked, _settings(variant, task), progress)


def _settings(variant: Variant, task: Task) -> Decoding:
    return variant.decoding.but(max_new_tokens=task.max_new_tokens, temperature=0.0)


def _choice_scores(
    variant: Variant, task: Task, examples: Sequence[Example], asked: Sequence[Prepared], progress: Progress
) -> list[float]:
    """1 where the gold answer is the most likely of the choices, for its length as the task's scorer has it."""
    length = LENGTHS[task.scorer]
    pairs = list(zip(examples, asked, strict=True))
    spans = [answer_span(variant, each.ids, choice) for example, each in pairs for choice in example.choices]
    scored = likelihoods([variant], [spans], progress)[0]
    measured = zip(scored.nll, scored.tokens, strict=True)
    found = []
    for example in examples:
        chances = {}
        for choice, (nll, tokens) in zip(example.choices, measured, strict=False):
            chances[choice] = -nll / max(1.0, length(choice, tokens))
        found.append(float(max(chances, key=chances.__getitem__) == example.answer))
    return found
