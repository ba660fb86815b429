"""Whoever answers: what those who ask need to know of it, and what stages and answers do."""

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workbench.answering.request import Generation, Piece, Prompt
from workbench.runtime.engine import Engine


class Speaker(Protocol):
    """Somebody with a name, a tokenizer, and a model that an engine runs."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def model(self) -> PreTrainedModel:
        """What answers; raises `Closed` once its memory was given back."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Turns text into tokens."""

    @property
    def engine(self) -> Engine:
        """How the model is run."""

    @property
    def context_length(self) -> int:
        """How many tokens, prompt and answer together, it can hold."""

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end an answer."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, special ones left out."""


@runtime_checkable
class Respondent(Protocol):
    """Whoever answers requests: a variant, or something outside this process that is reached in the same way."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def source(self) -> str:
        """What was loaded, or where it is."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of its results should know, in sentences."""

    @property
    def closed(self) -> bool:
        """Whether it was given back and answers no more."""

    def stream(self, prompt: Prompt, *, fresh: bool = False, **decoding: Any) -> Iterator[Piece]:
        """Answer piece by piece; the last brings the whole answer."""

    def generate(self, prompt: Prompt, **decoding: Any) -> Generation:
        """Answer in one piece."""

    def astream(self, prompt: Prompt, **decoding: Any) -> AsyncIterator[Piece]:
        """Answer piece by piece beside other requests."""

    async def agenerate(self, prompt: Prompt, **decoding: Any) -> Generation:
        """Answer in one piece beside other requests."""
        ...

    def under(self, name: str) -> "Respondent":
        """The same under another name."""

    def close(self) -> None:
        """Give back what it holds."""
