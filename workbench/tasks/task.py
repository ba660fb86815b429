"""What a variant is judged on: examples to train, calibrate and test with, and how an answer is scored.

`workbench.tasks.sources` makes them from files.
"""

import hashlib
from collections import Counter
from functools import cached_property
from typing import Any

from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer
from transformers import PreTrainedTokenizerBase

from workbench.core.errors import InvalidInput
from workbench.core.value import Value
from workbench.models.tokens import Message, cut_windows, encode_text, start_tokens
from workbench.tasks.scoring import LENGTHS, SCORERS

SPLITS = ("train", "calibration", "test")


class Example(Value):
    """One question with its gold answer.

    Attributes:
        id: unique within the task.
        prompt: the user's text, treated as data.
        answer: the gold answer.
        choices: the answers to choose from; the gold one among them. Empty for free answers.
        document: id of the document that holds the answer, if any.
        context: a text that goes with the prompt, in a slot of its own, which context steps may shorten.
        history: what was said before the prompt: a system text, earlier turns.
        since: what came between the prompt and the answer: calls of tools and what they gave.
    """

    model_config = ConfigDict(coerce_numbers_to_str=True)
    id: str = Field(min_length=1)
    prompt: str = Field(min_length=1)
    answer: str
    choices: tuple[str, ...] = ()
    document: str | None = None
    context: str = ""
    history: tuple[Message, ...] = ()
    since: tuple[Message, ...] = ()

    @model_serializer(mode="wrap")
    def _without_empty_turns(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A record without turns is written as it was before there were any: fingerprints hold."""
        return {key: value for key, value in write(self).items() if value or key not in ("history", "since")}

    def model_post_init(self, context: Any) -> None:
        """Check what single fields cannot."""
        if self.choices and self.answer not in self.choices:
            raise InvalidInput(f"Example '{self.id}': the answer '{self.answer[:60]}' is none of its choices.")


class Task(Value):
    """Disjoint train, calibration and test examples and the way an answer is scored.

    Attributes:
        instruction: put before every prompt.
        scorer: name of a function in `workbench.tasks.scoring.SCORERS`.
        max_new_tokens: how long an answer may be.
        plain: whether prompts are texts to be continued, without the model's chat template.
        documents: where the documents are that questions are about; no part of the fingerprint.
        notes: what its source was taken for, in sentences; no part of the fingerprint either.
    """

    model_config = ConfigDict(ignored_types=(cached_property,))
    name: str
    instruction: str = ""
    scorer: str = "exact"
    max_new_tokens: int = Field(default=64, ge=1)
    plain: bool = False
    documents: str = ""
    notes: tuple[str, ...] = ()
    train: tuple[Example, ...] = ()
    calibration: tuple[Example, ...] = ()
    test: tuple[Example, ...]

    def model_post_init(self, context: Any) -> None:
        """Check what single fields cannot."""
        if self.scorer not in SCORERS:
            raise InvalidInput(f"Unknown scorer '{self.scorer}': use one of {', '.join(sorted(SCORERS))}.")
        if not self.test:
            raise InvalidInput(f"Task '{self.name}' has no test examples: add at least one row to the test split.")
        without = next((each.id for each in self.test if not each.choices), None) if self.by_likelihood else None
        if without is not None:
            raise InvalidInput(
                f"Task '{self.name}' is scored by choice, but its test example '{without[:60]}' lists no choices: give "
                "every test example its choices, or score in another way."
            )
        counts = Counter(example.id for split in SPLITS for example in getattr(self, split))
        repeated = [key for key, count in counts.items() if count > 1]
        if repeated:
            raise InvalidInput(f"Task '{self.name}' uses the id '{repeated[0]}' more than once: make every id unique.")

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that a score depends on."""
        left_out = {"documents", "notes", *(() if self.plain else ("plain",))}  # as before there were plain ones
        return hashlib.sha256(self.model_dump_json(exclude=left_out).encode()).hexdigest()[:16]

    @property
    def by_likelihood(self) -> bool:
        """Whether the most likely of an example's choices counts as the answer."""
        return self.scorer in LENGTHS

    def prompt(self, example: Example) -> str:
        """An example's text behind the task's instruction; what goes with it, such as a context, is left out."""
        return f"{self.instruction}\n\n{example.prompt}" if self.instruction else example.prompt

    def score(self, example: Example, answer: str) -> float:
        """How good an answer is, 0 to 1."""
        return SCORERS[self.scorer](answer, example.answer)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(getattr(self, split))} {split}" for split in SPLITS)
        notes = "".join(f"; note: {each}" for each in self.notes)
        return f"Task({self.name!r}: {sizes}; scored by {self.scorer}{notes})"

    __str__ = __repr__


class Text(Value):
    """A text cut into token windows: the first calibrate, the last are scored by perplexity, the others train.

    Attributes:
        window: tokens in a window.
        calibration: how many windows, from the start, are for calibration.
        test: how many windows, from the end, are scored.
    """

    model_config = ConfigDict(ignored_types=(cached_property,))
    name: str
    text: str = Field(repr=False)
    window: int = Field(ge=2)
    calibration: int = Field(ge=0)
    test: int = Field(ge=1)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that a score depends on."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def windows(self, tokenizer: PreTrainedTokenizerBase, split: str) -> list[list[int]]:
        """Token ids of the windows of a split, each ``(window,)``; each begins as the tokenizer begins a text.

        Raises:
            InvalidInput: the text is too short for the windows asked for.
        """
        windows = cut_windows(encode_text(tokenizer, self.text), self.window, start_tokens(tokenizer))
        whole = len(windows)
        if whole < self.calibration + self.test:
            raise InvalidInput(
                f"'{self.name}' has {whole} windows of {self.window} tokens, fewer than the {self.calibration} + "
                f"{self.test} asked for: use a shorter window or fewer of them."
            )
        starts = {"calibration": 0, "train": self.calibration, "test": whole - self.test}
        stops = {"calibration": self.calibration, "train": whole - self.test, "test": whole}
        return windows[starts[split] : stops[split]]

    def __repr__(self) -> str:
        return f"Text({self.name!r}: windows of {self.window} tokens, {self.calibration} calibrate, {self.test} test)"

    __str__ = __repr__
