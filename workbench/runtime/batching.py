"""Many answers at once, in a batch whose size, memory and queue are chosen."""

from pydantic import Field
from transformers import PreTrainedModel

from workbench.runtime.engine import Eager


class Batched(Eager):
    """As `Eager`, with bounds of one's own.

    Attributes:
        rows: answers decoded together.
        memory: of their keys and values, in megabytes; 0 for half of what is free when a batch begins.
        waiting: requests that may wait for a row; further ones are refused.
    """

    rows: int = Field(default=16, ge=1, le=1024)
    memory: int = Field(default=0, ge=0)
    waiting: int = Field(default=100, ge=0)

    def most_rows(self, model: PreTrainedModel) -> int:
        """As many as are asked for."""
        return self.rows

    def most_waiting(self) -> int:
        """As many as are asked for."""
        return self.waiting

    def most_bytes(self, model: PreTrainedModel) -> int:
        """As many as are asked for."""
        return 1_000_000 * self.memory or super().most_bytes(model)
