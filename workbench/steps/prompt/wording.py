"""How a request is worded."""

from typing import ClassVar

from pydantic import Field

from workbench.answering.request import Request
from workbench.answering.speaker import Speaker
from workbench.core.errors import InvalidInput
from workbench.models.tokens import Message
from workbench.step import RequestStep

QUESTION = "{question}"


class System(RequestStep):
    """Puts standing instructions before every conversation.

    A system prompt costs no weights and no training, only the time to read its tokens at the start of each request.
    Large instruction-tuned models follow one closely; a small one may ignore it.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2404.13208"
    text: str = Field(
        default="You are a concise assistant. Answer in one short sentence.",
        max_length=20_000,
        description="What the model is told before the conversation; empty leaves the model's own system prompt.",
    )

    def rewrite(self, request: Request, variant: Speaker) -> Request:
        """The request with this text as its system message, in place of an earlier one."""
        if not self.text.strip():
            return request
        kept = tuple(message for message in request.messages if message.role != "system")
        return request.but(messages=(Message(role="system", content=self.text), *kept))


class Template(RequestStep):
    """Words every question in a way of your own: instructions before it, a format after it.

    Small models depend on wording more than large ones: an order placed after the question is often kept where the same
    order before it is forgotten. Every token of the wording is read with every request.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2310.11324"
    text: str = Field(
        default=QUESTION,
        max_length=20_000,
        description="What the user's text becomes; {question} stands for that text.",
    )

    def model_post_init(self, context: object) -> None:
        """A wording without the question would ask the same of everyone."""
        if QUESTION not in self.text:
            raise InvalidInput("The wording has no {question}: write it where the user's text belongs.")

    def rewrite(self, request: Request, variant: Speaker) -> Request:
        """The request with its last user message in these words."""
        return request.asking(self.text.replace(QUESTION, request.question))
