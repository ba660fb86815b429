"""What the context steps share: shorten the documents before a question, and say what it saved."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from workbench.answering.request import Passage, Request
from workbench.answering.speaker import Speaker
from workbench.models.tokens import encode_text
from workbench.step import RequestStep


class Shortening(RequestStep):
    """Shortens the context of a request: its documents or, without any, all but the user's last paragraph."""

    caveat: ClassVar[str] = "not faster: the contexts were short already"

    @abstractmethod
    def shortened(self, texts: Sequence[str], question: str, variant: Speaker) -> list[str]:
        """The texts, shorter, in their order; an empty one is left out."""

    def rewrite(self, request: Request, variant: Speaker) -> Request:
        """The request with a shorter context, and a note of what that saved."""
        context = request.context
        if not context:
            return request
        question = request.within(()).query
        texts = self.shortened([each.text for each in context], question, variant)
        kept: list[Passage] = [replace(old, text=new) for old, new in zip(context, texts, strict=True) if new.strip()]
        before, after = (sum(length(each.text, variant) for each in found) for found in (context, kept))
        if before == after:
            return request
        note = f"{self.label}: {before} tokens of context became {after}."
        shorter = request.within(kept)
        return shorter.but(notes=(*request.notes, note))


def length(text: str, variant: Speaker) -> int:
    """Tokens of a text."""
    return len(encode_text(variant.tokenizer, text))
