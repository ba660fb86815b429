"""Steps that learn, and the curve that each leaves."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar
from weakref import WeakKeyDictionary

from transformers import PreTrainedModel

from workbench.answering.request import Request
from workbench.core.errors import InvalidInput
from workbench.core.progress import Progress
from workbench.models.sharing import fingerprint
from workbench.runtime.reader import ends_in_head
from workbench.tasks.task import Task, Text
from workbench.training import checkpoint
from workbench.training.curve import Curve
from workbench.training.loss import LIKELIHOOD, Objective
from workbench.training.pace import expected_seconds
from workbench.training.room import check_room
from workbench.training.sequences import Sample, Samples, digest, overlap_note, read_samples
from workbench.training.settings import TrainingKnobs, shuffled
from workbench.training.trainer import ANSWER, Run
from workbench.variant import Variant

VALIDATION = 32  # samples of the calibration split that an evaluation reads
ASKED = 2  # of its prompts, answered at every evaluation

_curves: WeakKeyDictionary[PreTrainedModel, Curve] = WeakKeyDictionary()  # by model: names come and go


class TrainingStep(TrainingKnobs):
    """Trains some of a variant's parameters on the train split, and watches the calibration split."""

    needs_data: ClassVar[bool] = True

    @abstractmethod
    def prepare(self, variant: Variant) -> PreTrainedModel:
        """A copy of the variant's model whose trained parameters, and only they, are its own and require gradients."""

    def samples(self, variant: Variant, task: Task | Text, progress: Progress) -> Samples:
        """What is learned from; by default the train split."""
        return read_samples(variant, task, "train")

    def left_alone(self, variant: Variant) -> tuple[str, ...]:
        """A note on weights that one might expect to be trained, and are not; by default none."""
        return ()

    def used(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Those of the samples that are reached: less than an epoch leaves some out."""
        if self.epochs >= 1:
            return samples
        steps = max(1, round(self.epochs * math.ceil(len(samples) / self.batch_size)))
        return shuffled(samples, self.seed, 0)[: steps * self.batch_size]

    def objective(self, variant: Variant, samples: Sequence[Sample], progress: Progress) -> Objective:
        """What a batch teaches; by default the likelihood of the learned tokens."""
        return LIKELIHOOD

    def duration(self, variant: Variant, task: Task | Text) -> float | None:
        """From a trial; of what reads or asks a teacher, or makes its own samples, nothing is known before.

        Raises:
            OutOfMemory: it cannot fit.
        """
        kind = type(self)
        if kind.objective is not TrainingStep.objective or kind.samples is not TrainingStep.samples:
            return None
        if self.neutral or not ends_in_head(variant.model):
            return None
        check_room(variant, self)
        watched = read_samples(variant, task, "calibration").samples[:VALIDATION]
        return expected_seconds(self, variant, task, _asked(variant, task), list(watched))

    def apply(self, variant: Variant, task: Task | Text | None, progress: Progress) -> Variant:
        """Train a copy; the parent's tensors are read, never written."""
        assert task is not None
        if self.neutral:
            return variant.derive(self)
        kind = type(variant.model).__name__
        if not ends_in_head(variant.model):
            raise InvalidInput(
                f"{kind} changes its logits behind the head, which no step can train yet: use another model."
            )
        if self.checkpointing and not variant.model.supports_gradient_checkpointing:
            raise InvalidInput(f"{kind} cannot compute activations twice: leave checkpointing off.")
        check_room(variant, self)
        samples, watched = self.samples(variant, task, progress), read_samples(variant, task, "calibration")
        model = self.prepare(variant)
        # Before the new variant is known by its name, so that it cannot be found as its own teacher.
        objective = self.objective(variant, self.used(samples.samples), progress)
        left_alone = self.left_alone(variant)
        curve = Curve(notes=[*overlap_note(task), *samples.notes, *left_alone])
        child = variant.derive(self, model, curve.notes)
        progress.live = _curves[model] = curve
        facts = fingerprint(variant.model), str(self.to_json()), digest((*samples.samples, *watched.samples))
        saved = checkpoint.place(*facts, objective.fingerprint)
        prompts = _asked(variant, task)
        run = Run(self, child, variant.model, samples.samples, watched.samples[:VALIDATION], objective, prompts)
        try:
            run.train(curve, progress, saved)
        finally:  # whatever ends it, short of the process being killed
            checkpoint.remove(saved)
        return child


def curve(variant: Variant) -> Curve:
    """How the last training step of a variant went.

    Raises:
        InvalidInput: it was not trained in this process.
    """
    if variant.model not in _curves:
        raise InvalidInput(f"'{variant.name}' was not trained here: apply a step of the finetune or distil family.")
    return _curves[variant.model]


def _asked(variant: Variant, task: Task | Text) -> dict[str, list[int]]:
    """Some prompts of the calibration split, with their tokens; those with room for an answer."""
    if isinstance(task, Text):
        return {}
    found = {each.prompt: variant.encode(Request.example(task, each)) for each in task.calibration[:ASKED]}
    return {prompt: ids for prompt, ids in found.items() if len(ids) + ANSWER <= variant.context_length}
