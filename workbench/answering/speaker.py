"""What stages and answers need of whoever answers: a variant, or something that stands in for one."""

from collections.abc import Sequence
from typing import Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
