"""From messages to token ids: the chat template applied, and text kept apart from control tokens."""

import re
import secrets
from collections.abc import Sequence
from typing import Literal

from transformers import PreTrainedTokenizerBase

from workbench.core.errors import InvalidInput
from workbench.core.value import Value


class Message(Value):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation, ready for the assistant's answer.

    A control token that stands in a message's text (such as ``<|im_start|>``) is encoded as plain characters. Where
    no text holds one, the ids are those of ``tokenizer.apply_chat_template``.
    """
    if not tokenizer.chat_template:
        return _start(tokenizer) + encode_text(tokenizer, render(tokenizer, messages))
    contents = [message.content for message in messages]
    if not any(control in content for content in contents for control in controls(tokenizer)):
        return encode_markup(tokenizer, render(tokenizer, messages))
    slots = [f"slot{secrets.token_hex(8)}" for _ in messages]
    rendered = render(tokenizer, [m.model_copy(update={"content": s}) for m, s in zip(messages, slots, strict=True)])
    ids: list[int] = []
    for slot, content in zip(slots, contents, strict=True):
        before, found, rendered = rendered.partition(slot)
        ids += encode_markup(tokenizer, before)
        if found:  # a template may leave a message out
            ids += encode_text(tokenizer, content)
        else:
            rendered = before
    return ids + encode_markup(tokenizer, rendered)


def _start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token that the tokenizer itself puts before a text, if it does."""
    first = list(tokenizer("a")["input_ids"])[:1]
    return first if first == [tokenizer.bos_token_id] else []


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """The conversation as the text that the model reads, its control tokens spelled out."""
    if not tokenizer.chat_template:  # a base model: it continues the text
        return "\n\n".join(message.content for message in messages)
    try:
        text = tokenizer.apply_chat_template(
            [message.model_dump() for message in messages], tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # templates raise jinja2 errors of their own
        raise InvalidInput(f"The model's chat template refuses these messages: {error}.") from None
    return str(text)


def encode_markup(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of text from the template: control tokens are what they stand for."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of text from a user, a document or a data set: control tokens are plain characters.

    The tokenizer never sees a control token whole: the text is cut behind its first character. (The library's own
    `split_special_tokens` misses added tokens that are not marked special, and is a switch shared by all threads.)
    """
    found = controls(tokenizer)
    ids = [token for piece in _cut(text, found) for token in encode_markup(tokenizer, piece)]
    if not set(found.values()).isdisjoint(ids):  # a normalizer made one out of other characters
        ids = [token for character in text for token in encode_markup(tokenizer, character)]
    return ids


def controls(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Spelling and id of the tokens that structure a conversation; runs of white space are ordinary text."""
    added = tokenizer.added_tokens_decoder.items()
    return {str(token): number for number, token in added if str(token).strip() and len(str(token)) > 1}


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
