"""The settings of every training, and what follows from them alone: the learning rate and the order of the samples."""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field

from workbench.step import Step
from workbench.training.sequences import Sample
from workbench.variant import Variant


class TrainingKnobs(Step):
    """A step that trains, as it is set."""

    needs_data: ClassVar[bool] = True
    folded: ClassVar[tuple[str, ...]] = (
        *("batch_size", "accumulation", "schedule", "warmup", "weight_decay", "packing", "checkpointing", "precision"),
        *("patience", "keep", "seed"),
    )
    learning_rate: float = Field(default=5e-4, ge=1e-7, le=1.0, description="Size of the first full steps.")
    epochs: float = Field(default=1.0, ge=0.0, le=100.0, description="Passes over the train split; 0 changes nothing.")
    batch_size: int = Field(default=8, ge=1, le=4096, description="Examples that one optimizer step learns from.")
    accumulation: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="Parts in which they are read, one after another: less memory, the same result.",
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="How the learning rate falls after the warm-up."
    )
    warmup: float = Field(default=0.05, ge=0.0, le=0.5, description="Share of the steps in which it rises from 0.")
    weight_decay: float = Field(default=0.0, ge=0.0, le=1.0, description="Pull of the trained weights towards 0.")
    packing: bool = Field(default=True, description="Read several examples in a row instead of filling rows up.")
    checkpointing: bool = Field(
        default=False, description="Compute activations twice instead of keeping them: less memory, a third slower."
    )
    patience: int = Field(
        default=0,
        ge=0,
        le=100,
        description="Evaluations without a better validation loss after which training ends; 0 goes on to the end.",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Type of the products while training; auto is bfloat16 where the device is faster with it.",
    )
    keep: Literal["best", "last"] = Field(
        default="best", description="The weights that were best on the calibration split, or the last."
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="Of the order of examples, of dropout and of new weights.")

    def trained_bytes(self, variant: Variant) -> int:
        """Bytes of what is trained; by default all that the step makes."""
        return self.forecast(variant).owned_bytes

    @property
    def neutral(self) -> bool:
        """Whether nothing is trained."""
        return self.epochs == 0


def learning_rate(knobs: TrainingKnobs, number: int, total: int) -> float:
    """Of the optimizer step with this index: a linear rise, then the schedule's fall to 0."""
    rising = knobs.warmup * total
    if number < rising:
        return knobs.learning_rate * (number + 1) / (math.ceil(rising) + 1)
    done = (number - rising) / max(1.0, total - rising)
    falls = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return knobs.learning_rate * falls[knobs.schedule]


def shuffled(samples: Sequence[Sample], seed: int, epoch: int) -> list[Sample]:
    """The samples in the order of an epoch."""
    draw = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return [samples[index] for index in torch.randperm(len(samples), generator=draw).tolist()]
