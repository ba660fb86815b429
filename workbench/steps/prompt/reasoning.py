"""More tokens for a better answer: thinking first, and asking several times."""

from collections import Counter
from typing import ClassVar

from pydantic import Field

from workbench.answering.request import Generation, Request
from workbench.answering.speaker import Speaker
from workbench.runtime.decoding import Decoding
from workbench.step import RequestStep


class ChainOfThought(RequestStep):
    """Has the model think in words before it answers; what it thought is left out of the answer.

    Helps with sums and questions of several steps, in models that are large enough to think straight: below some
    billions of parameters the thoughts are often wrong and the score falls. Every thought is a token that takes time.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2205.11916"
    instruction: str = Field(
        default="Think step by step. Then write the final answer on a line of its own, after",
        max_length=5_000,
        description="What is added after the question; the marker follows it.",
    )
    marker: str = Field(
        default="Answer:", min_length=1, max_length=100, description="What stands before the final answer."
    )
    thoughts: int = Field(
        default=128, ge=0, le=100_000, description="Tokens that the thoughts may take, beside those of the answer."
    )

    def rewrite(self, request: Request, variant: Speaker) -> Request:
        """The question, and the order to think."""
        return request.asking(f'{request.question}\n\n{self.instruction} "{self.marker}"')

    def decoding(self, settings: Decoding) -> Decoding:
        """Room for the thoughts."""
        return settings.but(max_new_tokens=settings.max_new_tokens + self.thoughts)

    def finish(self, answers: list[Generation]) -> list[Generation]:
        """The line that follows the last marker; the whole text, and a note, where there is none."""
        return [self._extracted(each) for each in answers]

    def _extracted(self, answer: Generation) -> Generation:
        _, found, final = answer.text.rpartition(self.marker)
        if not final.strip() or not found:
            return answer.but(
                notes=(*answer.notes, f"Nothing was written after '{self.marker}': the whole text is the answer.")
            )
        return answer.but(text=final.strip().partition("\n")[0].rstrip())


class SelfConsistency(RequestStep):
    """Draws several answers and gives the one that most of them agree on.

    Wrong ways to think differ, right ones agree: with `ChainOfThought` before it, it gains where one greedy answer
    stumbles. It costs as many answers as it draws, though they are decoded together.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2203.11171"
    answers: int = Field(default=5, ge=1, le=64, description="Answers drawn; 1 changes nothing.")
    temperature: float = Field(default=0.7, ge=0.05, le=2.0, description="How freely they are drawn.")

    @property
    def samples(self) -> int:
        """Answers drawn for one."""
        return self.answers

    def decoding(self, settings: Decoding) -> Decoding:
        """Drawn, for greedy answers would all be the same."""
        return settings if self.answers == 1 else settings.but(temperature=self.temperature)

    def finish(self, answers: list[Generation]) -> list[Generation]:
        """The first of those that agree with the most others; those that differ only in case and space agree."""
        if self.answers == 1:
            return answers
        words = [" ".join(each.text.casefold().split()) for each in answers]
        most, votes = Counter(filter(None, words)).most_common(1)[0] if any(words) else ("", len(words))
        chosen = answers[words.index(most)]
        return [chosen.but(notes=(*chosen.notes, f"{votes} of {len(answers)} answers agree."))]
