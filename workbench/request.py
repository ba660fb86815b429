"""What a variant is asked and what it answers: plain values."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from pydantic import ValidationError

from workbench.errors import InvalidInput, WorkbenchError
from workbench.prompting import Message


@dataclass(frozen=True)
class Request:
    """What a variant is asked: the messages so far. Request steps rewrite it; nothing else does."""

    messages: tuple[Message, ...]

    @classmethod
    def of(cls, prompt: "str | Sequence[Message | dict[str, str]] | Request") -> "Request":
        """A request from a user's text, or from messages with role and content."""
        if isinstance(prompt, Request):
            return prompt
        if isinstance(prompt, str):
            prompt = [Message(role="user", content=prompt)]
        try:
            messages = tuple(Message.model_validate(m) for m in prompt)
        except (ValidationError, TypeError, WorkbenchError):
            raise InvalidInput("A message needs a role (system, user or assistant) and a content text.") from None
        if not any(message.content.strip() for message in messages):
            raise InvalidInput("The prompt is empty: type a question.")
        return cls(messages)


@dataclass(frozen=True)
class Piece:
    """One token of an answer as it arrives.

    Attributes:
        text: what it adds to the answer; empty while a character is incomplete.
        token_id: the token.
        elapsed: seconds since the request was made.
    """

    text: str
    token_id: int
    elapsed: float


@dataclass(frozen=True)
class Generation:
    """An answer.

    Attributes:
        text: the answer, special tokens left out.
        token_ids: its tokens, an end token included.
        prompt_tokens: length of the prompt.
        times: seconds from the request to each token.
        finish_reason: "stop" (the model ended), "length" (the limit was reached).
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    times: tuple[float, ...]
    finish_reason: str

    @property
    def ttft(self) -> float:
        """Seconds to the first token."""
        return self.times[0]

    @property
    def inter_token(self) -> tuple[float, ...]:
        """Seconds between one token and the next."""
        return tuple(after - before for before, after in pairwise(self.times))

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed after the first token; 0 when there is only one."""
        return (len(self.times) - 1) / (self.times[-1] - self.times[0]) if len(self.times) > 1 else 0.0
