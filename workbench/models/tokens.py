"""From messages to token ids: the chat template applied, and text kept apart from control tokens."""

import re
import secrets
from collections.abc import Sequence
from typing import Literal

from transformers import PreTrainedTokenizerBase

from workbench.core.errors import InvalidInput, first_line
from workbench.core.value import Value


class Message(Value):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation, ready for the assistant's answer; an assistant's message at the end is continued.

    A control token that stands in a message's text (such as ``<|im_start|>``) is encoded as plain characters. Where
    no text holds one, the ids are those of ``tokenizer.apply_chat_template``.
    """
    if not tokenizer.chat_template:
        return encode_plain(tokenizer, messages)
    # The mark cuts control tokens in two on their way through the template, which may move a text, trim it or repeat
    # it. It is a number that nobody can guess, so that no case folding, escaping or trimming changes it.
    mark = str(10**20 + secrets.randbelow(9 * 10**20))
    marked = [
        message.model_copy(update={"content": mark.join(_pieces(tokenizer, message.content, message.role))})
        for message in messages
    ]
    return [token for piece in render(tokenizer, marked).split(mark) for token in encode_markup(tokenizer, piece)]


def encode_plain(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids of a text that a model continues, without a chat template: the messages in paragraphs."""
    return start_tokens(tokenizer) + encode_text(tokenizer, _paragraphs(messages))


def start_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer itself puts before a text: often the token that begins one, often nothing."""
    whole, bare = (list(tokenizer("a", add_special_tokens=each)["input_ids"]) for each in (True, False))
    at = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), 0)
    return whole[:at]


def cut_windows(ids: Sequence[int], length: int, start: Sequence[int]) -> list[list[int]]:
    """Windows of equal length, each behind the tokens that begin a text; a last one that is not full is left out."""
    found, at = [], 0
    while at < len(ids):
        opened = list(ids[at : at + len(start)]) == list(start)
        piece = ids[at : at + length - (0 if opened else len(start))]
        found.append([*([] if opened else start), *piece])
        at += len(piece)
    return [window for window in found if len(window) == length]


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """The conversation as the text that the model reads, its control tokens spelled out.

    Where the template knows no system message, its text stands in front of the first question.

    Raises:
        InvalidInput: the template refuses the conversation.
    """
    if not tokenizer.chat_template:  # a base model: it continues the text
        return _paragraphs(messages)
    if messages[0].role != "system":
        return _template(tokenizer, messages)
    word = f"s{secrets.randbelow(10**20)}"  # that a template leaves as it is, whatever it does with a text
    try:
        known = word in _template(tokenizer, [Message(role="system", content=word), *messages[1:]])
    except InvalidInput:
        known = False
    return _template(tokenizer, messages if known else _without_system(messages))


def _paragraphs(messages: Sequence[Message]) -> str:
    return "\n\n".join(message.content for message in messages)


def _template(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    continued = messages[-1].role == "assistant"
    try:
        text = tokenizer.apply_chat_template(
            [message.model_dump() for message in messages],
            tokenize=False,
            add_generation_prompt=not continued,
            continue_final_message=continued,
        )
    except Exception as error:  # templates raise jinja2 errors of their own
        raise InvalidInput(f"The model's chat template refuses these messages: {first_line(error)}.") from None
    return str(text)


def _without_system(messages: Sequence[Message]) -> list[Message]:
    """The first message's text in front of that of the first question, if one comes next."""
    first, *rest = messages
    if not rest or rest[0].role != "user":
        return list(messages)
    question = Message(role="user", content=f"{first.content}\n\n{rest[0].content}")
    return [question, *rest[1:]]


def encode_markup(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of text from the template: control tokens are what they stand for."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) if text else []


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of text from a user, a document or a data set: control tokens are plain characters."""
    return [token for piece in _pieces(tokenizer, text, "user") for token in encode_markup(tokenizer, piece)]


def encode_answer(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of what the model says: tags that it has a token for, such as ``<think>``, are that token.

    Tokens that structure a conversation are plain characters, as in `encode_text`.
    """
    return [token for piece in _pieces(tokenizer, text, "assistant") for token in encode_markup(tokenizer, piece)]


def closing_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the chat template puts behind an assistant's answer; nothing without a template."""
    if not tokenizer.chat_template:
        return []
    said = "So1t2be3"  # spelled so that no template says it by itself
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": said}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:  # a template that wants other turns
        return []
    _, found, behind = text.rpartition(said)
    return encode_markup(tokenizer, behind) if found else []


def controls(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Spelling and id of the tokens that structure a conversation; runs of white space are ordinary text."""
    added = tokenizer.added_tokens_decoder.items()
    return {str(token): number for number, token in added if str(token).strip() and len(str(token)) > 1}


def _tags(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Spelling of the added tokens that a model says as part of an answer: those that are not marked special."""
    return {str(token) for token in tokenizer.added_tokens_decoder.values() if not token.special}


def _pieces(tokenizer: PreTrainedTokenizerBase, text: str, role: str) -> list[str]:
    """A text cut so that no piece holds a control token whole; to be encoded one by one.

    The library's own `split_special_tokens` misses added tokens that are not marked special, and is a switch shared by
    all threads.

    Args:
        tokenizer: whose control tokens they are.
        text: to be cut.
        role: who says it; the tags of an assistant's text are left whole.
    """
    found = controls(tokenizer)
    if role == "assistant":
        found = {spelled: number for spelled, number in found.items() if spelled not in _tags(tokenizer)}
    pieces, normalizer = _cut(text, found), tokenizer.backend_tokenizer.normalizer
    if normalizer is not None:
        normal = [normalizer.normalize_str(piece) for piece in pieces]
        if any(control in piece for piece in normal for control in found):
            return list(text)  # it made one out of other characters
    return pieces


def _cut(text: str, found: dict[str, int]) -> list[str]:
    """The text in pieces, cut behind the first character of every control token, overlapping ones too."""
    if not any(control in text for control in found):
        return [text] if text else []
    pattern = re.compile("|".join(map(re.escape, sorted(found, key=len, reverse=True))))
    pieces, start = [], 0
    while match := pattern.search(text, start):
        pieces.append(text[start : match.start() + 1])
        start = match.start() + 1
    return [*pieces, text[start:]]
