"""Examples before the question."""

import random
from functools import cached_property
from typing import ClassVar, Literal

from pydantic import ConfigDict, Field

from workbench.answering.request import Request, passages_of, turns_of
from workbench.answering.speaker import Speaker
from workbench.answering.stage import Stage
from workbench.core.errors import InvalidInput
from workbench.core.progress import Progress
from workbench.models.tokens import Message
from workbench.retrieval.embedding import Vectors, encoder, spread
from workbench.step import RequestStep
from workbench.steps.prompt.wording import QUESTION
from workbench.tasks.task import Example, Task, Text
from workbench.variant import Variant


class Shots(Stage):
    """Puts solved examples before the conversation, as turns of their own.

    Attributes:
        instruction: the task's; it is said once, with the first example.
        pool: the examples, in the order in which they are put, or those to choose from for every question.
        nearest: how many are chosen by likeness to the question; 0 takes the whole pool.
        wording: of every example's prompt and of the question.
    """

    model_config = ConfigDict(ignored_types=(cached_property,))
    instruction: str
    pool: tuple[Example, ...]
    nearest: int = 0
    wording: str = QUESTION

    @cached_property
    def _vectors(self) -> Vectors:
        return encoder().vectors([each.prompt for each in self.pool])

    def chosen(self, question: str) -> tuple[Example, ...]:
        """The examples put before a question, the most alike last; never the question itself with its answer."""
        if not self.nearest:
            return tuple(each for each in self.pool if each.prompt != question)
        likeness = self._vectors @ encoder().vectors([question])[0]
        ranked = [self.pool[index] for index in likeness.argsort(kind="stable")]
        return tuple([each for each in ranked if each.prompt != question][-self.nearest :])

    def rewrite(self, request: Request, variant: Speaker) -> Request:
        """Examples with their turns, then what was said before, then the question."""
        shots: list[Message] = []
        for each in self.chosen(request.query):
            asked = Request.of(turns_of(each)).asking(self.wording.replace(QUESTION, each.prompt))
            shown = asked.but(passages=passages_of(each), instruction="" if shots else self.instruction).written()
            shots += [turn for turn in shown if turn.role != "system"]
            shots.append(Message(role="assistant", content=each.answer))
        worded = request.asking(self.wording.replace(QUESTION, request.question))
        system = tuple(each for each in worded.messages if each.role == "system")
        rest = tuple(each for each in worded.messages if each.role != "system")
        instruction = "" if shots and request.instruction == self.instruction else request.instruction
        return worded.but(messages=(*system, *shots, *rest), instruction=instruction)


class FewShot(RequestStep):
    """Shows solved examples from the train split before the question.

    A model picks up the format and the labels from a handful of examples, without training. All of them are read with
    every request: the first token comes later, and a long example may push the question out of a small context.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2005.14165"
    needs_data: ClassVar[bool] = True
    instant: ClassVar[bool] = False
    examples: int = Field(default=3, ge=0, le=64, description="How many; 0 changes nothing.")
    choose: Literal["first", "random", "coverage", "similar"] = Field(
        default="first",
        description="The first ones; drawn once; those that stand for all; or the most like each question.",
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="Of the draw.")

    def stage(self, variant: Variant, task: Task | Text | None, progress: Progress) -> Stage:
        """The examples, or the pool to choose from for every question."""
        if not isinstance(task, Task):
            raise InvalidInput("FewShot needs questions with answers: pass a task, not a text.")
        if len(task.train) < self.examples:
            raise InvalidInput(
                f"'{task.name}' has {len(task.train)} train examples, fewer than the {self.examples} asked for."
            )
        progress.start(f"{self.label}: choosing", 1)
        pool = list(task.train)
        match self.choose:
            case "random":
                random.Random(self.seed).shuffle(pool)
            case "coverage" if self.examples:
                vectors = encoder().vectors([each.prompt for each in pool], progress)
                pool = [pool[row] for row in spread(vectors, self.examples)]
        if self.choose == "similar" and self.examples:
            shots = Shots(instruction=task.instruction, pool=tuple(pool), nearest=self.examples)
            _ = shots._vectors
        else:
            shots = Shots(instruction=task.instruction, pool=tuple(pool[: self.examples]))
        progress.advance()
        return shots
