"""How long a training will take, from a few of its own steps on a copy that is thrown away."""

import math
import time
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from workbench.core.progress import Progress
from workbench.runtime.forward import memory_guard
from workbench.tasks.task import Task, Text
from workbench.training.curve import Curve
from workbench.training.loss import LIKELIHOOD
from workbench.training.sequences import Sample, read_samples
from workbench.training.trainer import Run, plan
from workbench.variant import Variant

if TYPE_CHECKING:
    from workbench.training.step import TrainingStep

ENOUGH = 2.0  # seconds: after a shorter first step, which also makes things ready, another one is tried
SAME = {"learning_rate": 1e-6, "epochs": 1.0, "schedule": "constant", "warmup": 0.0, "seed": 0}  # cost no time

_known: WeakKeyDictionary[Variant, dict[str, tuple[float, float]]] = WeakKeyDictionary()


def expected_seconds(
    step: "TrainingStep", variant: Variant, task: Task | Text, prompts: dict[str, list[int]], watched: list[Sample]
) -> float:
    """Seconds that a training takes: its steps and evaluations at the pace of the tried ones.

    The trial learns with the step's own batches on a copy, and is kept for settings that cost the same time.

    Args:
        step: that would be applied.
        variant: to which.
        task: whose train split is learned from.
        prompts: that every evaluation answers.
        watched: samples that every evaluation reads.

    Raises:
        OutOfMemory: not even the trial fits.
    """
    samples = read_samples(variant, task, "train").samples
    known = _known.setdefault(variant, {})
    key = repr((step.model_copy(update=SAME), task.fingerprint))
    if key not in known:
        with memory_guard(step.label):
            model = step.prepare(variant)
            run = Run(step, variant.derive(step, model), variant.model, samples, watched, LIKELIHOOD, prompts)
            known[key] = _tried(run)
    each, evaluation = known[key]
    total, every = plan(step, samples, watched)
    return total * each + (1 + math.ceil(total / every)) * evaluation


def _tried(run: Run) -> tuple[float, float]:
    """Seconds of one optimizer step and of one evaluation."""
    run.begin()
    each = run.learn(0, Progress()).seconds
    if each < ENOUGH:
        each = run.learn(1, Progress()).seconds
    begun = time.perf_counter()
    run.evaluate(Curve(), 0)
    return each, time.perf_counter() - begun
