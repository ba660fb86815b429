"""Prompt design: what the model is told, without touching a weight."""

from typing import ClassVar

from pydantic import Field

from workbench.progress import Progress
from workbench.prompting import Message
from workbench.request import Request
from workbench.step import Step
from workbench.task import Task, Text
from workbench.variant import Variant


class System(Step):
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

    def apply(self, variant: Variant, task: Task | Text | None, progress: Progress) -> Variant:
        """Share every weight; only requests change."""
        return variant.derive(self)

    def rewrite(self, request: Request) -> Request:
        """The request with this text as its system message, in place of an earlier one."""
        if not self.text.strip():
            return request
        kept = tuple(message for message in request.messages if message.role != "system")
        return Request((Message(role="system", content=self.text), *kept))
