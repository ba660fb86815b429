"""From messages to token ids: the chat template applied, and text kept apart from control tokens."""

import secrets
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict
from transformers import PreTrainedTokenizerBase

from workbench.errors import InvalidInput


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    role: Literal["system", "user", "assistant"]
    content: str


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation, ready for the assistant's answer.

    A control token that stands in a message's text (such as ``<|im_start|>``) is encoded as plain characters. Where
    no text holds one, the ids are those of ``tokenizer.apply_chat_template``.
    """
    contents = [message.content for message in messages]
    if not _holds_control(tokenizer, contents):
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
    return _encode(tokenizer, text, split_special_tokens=False)


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of text from a user, a document or a data set: control tokens are plain characters."""
    return _encode(tokenizer, text, split_special_tokens=True)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, *, split_special_tokens: bool) -> list[int]:
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=split_special_tokens, verbose=False)
    return list(encoded["input_ids"])


def _holds_control(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> bool:
    controls = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    return any(control in text for text in texts for control in controls)
