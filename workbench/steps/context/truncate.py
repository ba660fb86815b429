"""Context cut to a length."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from workbench.answering.speaker import Speaker
from workbench.core.sentences import sentences
from workbench.models.tokens import encode_text
from workbench.steps.context.shortening import Shortening, length

GAP = " ... "
HALF = "\ufffd"  # what a character becomes that was cut in two


class Truncate(Shortening):
    """Cuts the context to a number of tokens: its head, its tail, both ends, or whole sentences from the start.

    The plainest saving there is: reading time falls with the tokens. What is cut is lost whether it mattered or not;
    models use the beginning and the end of a long context best, so both ends are often worth more than the head.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2307.03172"
    tokens: int = Field(
        default=256, ge=1, le=1_000_000, description="Tokens of context that stay, all documents together."
    )
    keep: Literal["head", "tail", "ends", "sentences"] = Field(
        default="head", description="The head, the tail, half of each, or whole sentences from the head."
    )

    def shortened(self, texts: Sequence[str], question: str, variant: Speaker) -> list[str]:
        """The budget is spent from the first document on; the tail, from the last."""
        left, kept = self.tokens, list[str]()
        backwards = self.keep == "tail"
        for text in reversed(texts) if backwards else texts:
            kept.append(self._cut(text, left, variant))
            left -= length(kept[-1], variant)
        return kept[::-1] if backwards else kept

    def _cut(self, text: str, tokens: int, variant: Speaker) -> str:
        ids = encode_text(variant.tokenizer, text)
        if len(ids) <= tokens:
            return text
        if tokens <= 0:
            return ""
        match self.keep:
            case "head":
                return _head(ids, tokens, variant)
            case "tail":
                return _tail(ids, tokens, variant)
            case "ends":
                tokens -= length(GAP, variant)
                if tokens < 2:  # no room for both
                    return _head(ids, max(0, tokens), variant)
                return _head(ids, tokens - tokens // 2, variant) + GAP + _tail(ids, tokens // 2, variant)
        whole, left = "", tokens
        for sentence in sentences(text):
            left -= length(sentence, variant)
            if left < 0:
                break
            whole += sentence
        return whole.strip()


def _head(ids: list[int], tokens: int, variant: Speaker) -> str:
    return variant.decode(ids[:tokens]).rstrip(HALF)


def _tail(ids: list[int], tokens: int, variant: Speaker) -> str:
    return variant.decode(ids[len(ids) - tokens :]).lstrip(HALF)
