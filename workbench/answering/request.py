"""What a variant is asked and what it answers: plain values."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from workbench.core.errors import InvalidInput
from workbench.models.tokens import Message
from workbench.tasks.chat import message
from workbench.tasks.task import Example, Task

BREAK = "\n\n"
LONGEST_ID = 80  # characters at the end of a document's name that a model is shown
OPENING = re.compile(r"<(?=\s*/?\s*document\b)", re.IGNORECASE)


@dataclass(frozen=True)
class Passage:
    """A piece of a document, put before a question as data.

    Attributes:
        id: what an answer cites.
        text: what it says.
        score: how well it fits the question; the scale is that of whoever found it.
    """

    id: str
    text: str
    score: float = 0.0


@dataclass(frozen=True)
class Request:
    """What a variant is asked. Request steps rewrite it; nothing else does.

    Attributes:
        messages: the conversation so far.
        query: what the user asked last, in the user's own words; it is what documents are looked up for.
        instruction: of the task; it stands before the last message.
        passages: documents that go with the last message.
        notes: what rewriting took away or added, in sentences.
        salt: whose request it is, set by whoever serves several users: no other is given what was answered to one.
        plain: whether the text itself is continued, without the model's chat template.
    """

    messages: tuple[Message, ...]
    query: str = ""
    instruction: str = ""
    passages: tuple[Passage, ...] = ()
    notes: tuple[str, ...] = ()
    salt: str = ""
    plain: bool = False

    @classmethod
    def of(cls, prompt: "Prompt") -> "Request":
        """A request from a user's text, or from messages with role and content.

        Messages may be written as for OpenAI's interface: content in text parts, a "developer" for the system, what a
        "tool" gave; other keys are ignored. If the last one is the assistant's, the answer goes on with it.

        Raises:
            InvalidInput: nothing is asked, or a message holds something other than text.
        """
        if isinstance(prompt, Request):
            return prompt
        if isinstance(prompt, str):
            prompt = [Message(role="user", content=prompt)]
        if isinstance(prompt, Mapping) or not isinstance(prompt, Iterable):
            raise InvalidInput("A prompt is a text, or a list of messages with role and content.")
        messages = tuple(map(message, prompt))
        if not any(each.content.strip() for each in messages):
            raise InvalidInput("The prompt is empty: type a question.")
        request = cls(messages)
        return request.but(query=request.question)

    @classmethod
    def example(cls, task: Task, example: Example) -> "Request":
        """What an example of a task asks."""
        request = cls.of(turns_of(example))
        return request.but(instruction=task.instruction, passages=passages_of(example), plain=task.plain)

    @classmethod
    def typed(cls, text: str, task: object = None) -> "Request":
        """What a user typed, asked as a task asks; the prompt of a test example brings along what goes with it."""
        if not isinstance(task, Task):
            return cls.of(text)
        known = next((each for each in task.test if each.prompt == text), None)
        return cls.example(task, known) if known else cls.of(text).but(instruction=task.instruction, plain=task.plain)

    @property
    def question(self) -> str:
        """The last user message as it is worded by now."""
        return next((each.content for each in reversed(self.messages) if each.role == "user"), "")

    def but(self, **changes: Any) -> "Request":
        """This request with some parts changed."""
        return replace(self, **changes)

    def asking(self, question: str) -> "Request":
        """This request with another last user message."""
        messages = list(self.messages)
        for index in reversed(range(len(messages))):
            if messages[index].role == "user":
                messages[index] = Message(role="user", content=question)
                break
        return self.but(messages=tuple(messages))

    @property
    def context(self) -> tuple[Passage, ...]:
        """What a context step may shorten: the documents or, without any, all but the last paragraph of the query."""
        before = self._before
        return self.passages or ((Passage("", before),) if before.strip() and before in self.question else ())

    @property
    def _before(self) -> str:
        return self.query.rpartition(BREAK)[0]

    def within(self, context: "Sequence[Passage]") -> "Request":
        """This request with another context, in the place where its own was."""
        if self.passages:
            return self.but(passages=tuple(context))
        old = f"{self._before}{BREAK}"
        new = "".join(f"{each.text}{BREAK}" for each in context if each.text)
        return self.asking(self.question.replace(old, new, 1)).but(query=self.query.replace(old, new, 1))

    def written(self) -> tuple[Message, ...]:
        """The messages that the model reads: instruction and documents stand before the last user message.

        Every document has a slot of its own. Text that would open or close a slot is defused, so no document can end
        its own and speak as somebody else.
        """
        parts = [self.instruction, "\n".join(map(slot, self.passages)), self.question]
        return self.asking(BREAK.join(filter(None, parts))).messages


@dataclass(frozen=True)
class Prepared:
    """A request that every stage has worked on.

    Attributes:
        request: as it is asked.
        ids: its tokens.
    """

    request: Request
    ids: list[int]


Prompt = str | Sequence[Message | Mapping[str, Any]] | Request  # what a request is made from


def turns_of(example: Example) -> tuple[Message, ...]:
    """An example as it is asked: what was said before, the prompt, and what came between it and the answer."""
    return (*example.history, Message(role="user", content=example.prompt), *example.since)


def passages_of(example: Example) -> tuple[Passage, ...]:
    """The text that goes with an example, if there is one."""
    return (Passage(example.document or "context", example.context),) if example.context else ()


def slot(passage: Passage) -> str:
    """A passage as the model reads it."""
    return f'<document id="{shown_id(passage)}">\n{_defused(passage.text)}\n</document>'


def shown_id(passage: Passage) -> str:
    """A passage's id as the model reads it."""
    return _defused(" ".join(passage.id.split())[-LONGEST_ID:].replace('"', "'"))


def _defused(text: str) -> str:
    return OPENING.sub("&lt;", text)


@dataclass(frozen=True)
class Piece:
    """One token of an answer as it arrives.

    Attributes:
        text: what it adds to the answer; empty while a character is incomplete.
        token_id: the token.
        elapsed: seconds since the request was made.
        answer: the whole answer, with the last piece.
    """

    text: str
    token_id: int
    elapsed: float
    answer: "Generation | None" = None


@dataclass(frozen=True)
class Generation:
    """An answer.

    Attributes:
        text: the answer, special tokens left out.
        token_ids: its tokens, an end token included.
        prompt_tokens: length of the prompt.
        times: seconds from the request to each token.
        finish_reason: "stop" (the model ended), "length" (the limit was reached), or why a step ended it.
        said: the text before output steps worked on it.
        passages: the documents it was given.
        notes: what should be known of it, in sentences.
        spent: tokens decoded for it, those of samples that were not chosen included; none if it was known.
        cached: what knew it before the model was asked: "exact" or "meaning"; empty when the model answered.
        replica: which of a service's processes answered, where it says so.
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    times: tuple[float, ...]
    finish_reason: str
    said: str = ""
    passages: tuple[Passage, ...] = ()
    notes: tuple[str, ...] = ()
    spent: int = 0
    cached: str = ""
    replica: str = ""

    def but(self, **changes: Any) -> "Generation":
        """This answer with some parts changed."""
        return replace(self, **changes)

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
