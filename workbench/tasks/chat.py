"""Conversations as files and programs write them: messages of OpenAI, ShareGPT and Alpaca rows, content in parts."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.core.errors import InvalidInput
from workbench.models.tokens import Message

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "function_response", "ipython"), "tool"),
}
NEEDS = "A message needs a role (system, user, assistant or tool) and a content text"
TEXT_PARTS = ("text", "input_text", "output_text")
TURNS = ("messages", "conversations", "conversation")


def message(given: Any) -> Message:
    """A message from a role and a content, under the names of OpenAI or ShareGPT; other keys are ignored.

    Content may be a text, or a list of text parts, which are put together; a call of a tool that comes without content
    is read as its JSON.

    Raises:
        InvalidInput: it has no role that is known, or holds something other than text.
    """
    if isinstance(given, Message):
        return given
    if not isinstance(given, Mapping):
        raise InvalidInput(f"{NEEDS}.")
    role = given.get("role") or given.get("from")
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise InvalidInput(f"{NEEDS}; '{str(role)[:40]}' is no role.")
    content = given["content"] if given.get("content") is not None else given.get("value")
    calls = given.get("tool_calls") or given.get("function_call")
    text = _calls(calls) if content in (None, "", []) and calls else content_text(content)
    return Message(role=ROLES[role.lower()], content=text)  # type: ignore[arg-type]


def content_text(content: Any) -> str:
    """The text of a message's content, which may come in parts.

    Raises:
        InvalidInput: there is none, or a part is no text, such as an image.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise InvalidInput(f"{NEEDS}.")
    return "\n".join(map(_part, content))


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
    if kind not in TEXT_PARTS or not isinstance(part.get("text"), str):
        raise InvalidInput(f"A message holds a part of type '{str(kind)[:40]}', but only text can be read.")
    return str(part["text"])


def _calls(calls: Any) -> str:
    found = [each.get("function", each) if isinstance(each, Mapping) else each for each in _listed(calls)]
    try:
        return "\n".join(json.dumps(each, ensure_ascii=False) for each in found)
    except (TypeError, ValueError, RecursionError):
        raise InvalidInput("A message calls a tool in a way that is no JSON.") from None


def _listed(given: Any) -> Sequence[Any]:
    return given if isinstance(given, list | tuple) else [given]


@dataclass(frozen=True)
class Shape:
    """How the rows of a source say what is asked and what is answered.

    Attributes:
        name: what a reader of the task is told.
        column: that holds the conversation; empty for Alpaca.
    """

    name: str
    column: str = ""

    def fields(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of an example that the row stands for.

        Raises:
            InvalidInput: the row holds no question with an answer.
        """
        if not self.column:
            return _alpaca(row)
        turns = [message(each) for each in _turns(row, self.column)]
        for key in ("completion", "answer", "response"):  # beside a conversation that ends with the question
            if row.get(key) not in (None, "", []):
                last = row[key]
                turns += [message(each) for each in last] if isinstance(last, list | tuple) else [_said(last)]
                break
        return _example(_with_system(turns, row))


def shape_of(row: Mapping[str, Any]) -> Shape | None:
    """How a row is to be read; None if it has a prompt and an answer, or nothing that is known."""
    if isinstance(row.get("prompt"), list | tuple):  # TRL's prompt and completion
        return Shape("conversations under prompt", "prompt")
    if row.get("prompt") is not None and row.get("answer") is not None:
        return None
    for column in TURNS:
        if isinstance(row.get(column), list | tuple | str):
            first: Any = next(iter(_turns(row, column)), {})
            kind = "ShareGPT" if isinstance(first, Mapping) and "from" in first else "OpenAI"
            return Shape(f"{column} ({kind})", column)
    if row.get("instruction") is not None and row.get("output") is not None:
        return Shape("instruction and output (Alpaca)")
    return None


def _turns(row: Mapping[str, Any], column: str) -> Sequence[Any]:
    found = row.get(column)
    if isinstance(found, str):  # in a cell of a CSV file
        try:
            found = json.loads(found)
        except (ValueError, RecursionError):
            found = None
    if not isinstance(found, list | tuple):
        raise InvalidInput(f"'{column}' holds no list of messages.")
    return found


def _said(text: Any) -> Message:
    return Message(role="assistant", content=content_text(text))


def _with_system(turns: list[Message], row: Mapping[str, Any]) -> list[Message]:
    """The turns behind the system text that stands in a column of its own."""
    system = row.get("system") or row.get("system_prompt")
    if isinstance(system, str) and system.strip() and not any(each.role == "system" for each in turns):
        return [Message(role="system", content=system), *turns]
    return turns


def _example(turns: Sequence[Message]) -> dict[str, Any]:
    """The last answer of a conversation, the question before it, and what stands around that."""
    ends = [at for at, each in enumerate(turns) if each.role == "assistant"]
    asked = [at for at, each in enumerate(turns) if each.role == "user" and ends and at < ends[-1]]
    if not asked:
        raise InvalidInput("the conversation has no user's turn that an assistant's turn follows.")
    at, end = asked[-1], ends[-1]
    return {
        "history": tuple(turns[:at]),
        "prompt": turns[at].content,
        "since": tuple(turns[at + 1 : end]),
        "answer": turns[end].content,
    }


def _alpaca(row: Mapping[str, Any]) -> dict[str, Any]:
    texts = [row.get(key) for key in ("instruction", "input", "output")]
    instruction, given, output = ("" if each is None else str(each) for each in texts)
    if row.get("instruction") is None or row.get("output") is None:
        raise InvalidInput("no column 'instruction' or 'output'.")
    prompt = Message(role="user", content="\n\n".join(each for each in (instruction, given) if each.strip()))
    return _example(_with_system([*_alpaca_history(row), prompt, _said(output)], row))


def _alpaca_history(row: Mapping[str, Any]) -> Iterator[Message]:
    """Earlier pairs of question and answer, as LLaMA-Factory writes them beside an Alpaca row."""
    for pair in row.get("history") or ():
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise InvalidInput("'history' holds no pairs of a question and an answer.")
        yield Message(role="user", content=content_text(pair[0]))
        yield _said(pair[1])
