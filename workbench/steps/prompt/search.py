"""Wording and examples chosen by their score."""

import random
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from workbench.answering.answers import answers, prepare, settings_of
from workbench.answering.request import Request
from workbench.core.errors import InvalidInput
from workbench.core.estimate import mean, paired_difference
from workbench.core.optional import library
from workbench.core.progress import Progress
from workbench.step import RequestStep
from workbench.steps.prompt.examples import Shots
from workbench.steps.prompt.wording import QUESTION
from workbench.tasks.task import Example, Task, Text
from workbench.variant import Variant

WORDINGS = f"""{QUESTION}
---
{QUESTION}

Give the answer alone, as short as it can be.
---
Question: {QUESTION}
Answer:
---
Read this carefully and answer exactly in the form that is asked for.

{QUESTION}"""
DRAWS = 16  # sets of examples that are tried
OVER_BUDGET = -1.0


class Search(RequestStep):
    """Tries wordings and sets of examples on the train split, and keeps what scores best within a budget of tokens.

    Some of the train examples are asked and scored, the others serve as examples. It costs a small benchmark for every
    trial, once; what it finds costs no more than its tokens. On few examples it finds luck as well as skill, so what it
    reports is the gain on test examples, which it looks at only when it has chosen.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2406.11695"
    needs_data: ClassVar[bool] = True
    instant: ClassVar[bool] = False
    folded: ClassVar[tuple[str, ...]] = ("seed",)
    wordings: str = Field(
        default=WORDINGS,
        max_length=50_000,
        description="What to try, each with {question} in it; a line of --- stands between two.",
    )
    examples: int = Field(default=4, ge=0, le=32, description="Most examples before the question.")
    tokens: int = Field(default=1024, ge=1, le=1_000_000, description="Most tokens that a prompt may have.")
    judged: int = Field(
        default=24,
        ge=1,
        le=10_000,
        description="Train examples that every trial is scored on, and test examples at the end.",
    )
    trials: int = Field(default=12, ge=1, le=1_000, description="Combinations tried, besides what there is already.")
    seed: int = Field(default=0, ge=0, lt=2**31, description="Of the split and of the search.")

    def model_post_init(self, context: object) -> None:
        """Every wording asks the question."""
        if any(QUESTION not in each for each in self._wordings):
            raise InvalidInput("Every wording needs {question}, where the user's text belongs.")

    @property
    def _wordings(self) -> list[str]:
        return [each.strip("\n") for each in self.wordings.split("\n---\n")]

    def apply(self, variant: Variant, task: Task | Text | None, progress: Progress) -> Variant:
        """The variant with what was found; every weight is shared."""
        if not isinstance(task, Task):
            raise InvalidInput("Search needs questions with answers: pass a task, not a text.")
        if len(task.train) < 2:
            raise InvalidInput(f"'{task.name}' has {len(task.train)} train examples: Search needs at least 2.")
        if task.by_likelihood:
            raise InvalidInput(
                f"'{task.name}' scores how likely its choices are: Search needs answers that are written."
            )
        drawn = random.Random(self.seed).sample(task.train, len(task.train))
        judged = drawn[: min(self.judged, len(drawn) - 1)]
        search = _Search(self, variant, task, judged, drawn[len(judged) :], progress)
        found = search.run()
        if found is None:
            said = (
                f"no prompt of the {self.trials} trials fits in {self.tokens} tokens"
                if search.all_too_long
                else (f"none of {self.trials} trials was better on the train examples")
            )
            return variant.derive(self, notes=[f"Search: {said}: nothing was changed."])
        before, after = (search.marks(each, task.test[: self.judged]) for each in (None, found))
        if after:
            gain = paired_difference(after, before, "score")
            said = (
                f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] on {gain.n} test examples not looked at before"
            )
        else:
            said = f"not measured, for a test prompt has more than {self.tokens} tokens"
        note = f"Search: {len(found.pool)} examples, worded {found.wording!r}: {said}."
        return variant.derive(self, stage=found, notes=[note])


class _Search:
    """The trials of one search."""

    def __init__(
        self,
        step: Search,
        variant: Variant,
        task: Task,
        judged: list[Example],
        pool: list[Example],
        progress: Progress,
    ) -> None:
        self.step, self.variant, self.task, self.judged, self.pool = step, variant, task, judged, pool
        self.progress = progress
        self.known: dict[tuple[int, int, int], float] = {}

    @property
    def all_too_long(self) -> bool:
        """Whether no trial was within the budget."""
        return all(each == OVER_BUDGET for each in self.known.values())

    def run(self) -> Shots | None:
        """The best stage within the budget, if it is better than none."""
        optuna = _optuna()
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=self.step.seed))
        for _ in range(self.step.trials):
            trial = study.ask()
            study.tell(trial, self._trial(trial))
        found = study.best_trial
        better = found.value > mean(self.marks(None, self.judged), "score").value
        return self._stage(*self._choice(found)) if better else None

    def marks(self, stage: Shots | None, examples: Sequence[Example]) -> list[float]:
        """Scores of examples; none if a prompt is too long."""
        asked = self.variant if stage is None else self.variant.derive(self.step, stage=stage)
        settings = asked.decoding.but(max_new_tokens=self.task.max_new_tokens, temperature=0.0)
        requests = [Request.example(self.task, each) for each in examples]
        most = min(self.step.tokens, asked.context_length - settings_of(asked, settings).max_new_tokens)
        prompts = prepare(asked, requests, self.progress)
        if stage and max(len(each.ids) for each in prompts) > most:
            return []
        said = answers(asked, prompts, settings, self.progress)
        return [self.task.score(each, one.text.strip()) for each, one in zip(examples, said, strict=True)]

    def _trial(self, trial: Any) -> float:
        choice = self._choice(trial)
        if choice not in self.known:
            marks = self.marks(self._stage(*choice), self.judged)
            self.known[choice] = mean(marks, "score").value if marks else OVER_BUDGET
        return self.known[choice]

    def _choice(self, trial: Any) -> tuple[int, int, int]:
        wording = trial.suggest_categorical("wording", list(range(len(self.step._wordings))))
        count = trial.suggest_int("examples", 0, min(self.step.examples, len(self.pool)))
        draw = trial.suggest_categorical("draw", list(range(DRAWS)))
        return wording, count, draw if count else 0

    def _stage(self, wording: int, count: int, draw: int) -> Shots:
        shots = random.Random(self.step.seed * DRAWS + draw).sample(self.pool, count)
        return Shots(instruction=self.task.instruction, pool=tuple(shots), wording=self.step._wordings[wording])


def _optuna() -> Any:
    optuna = library("optuna", "Searching")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
