"""Steps that learn: the one training loop, and the curve it leaves.

The loop is our own because no library's fits a workbench: transformers' Trainer (and TRL, built on it) computes the
logits of every token instead of those that are learned, cannot pause, holds the model for as long as it trains, hides a
loss that is not a number, and writes its checkpoints as pickles.
"""

import math
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal
from weakref import WeakKeyDictionary

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench import checkpoint
from workbench.attention import products
from workbench.curve import Curve, Evaluation, Point
from workbench.decoding import decode
from workbench.device import memory_held
from workbench.errors import InvalidInput
from workbench.loss import LIKELIHOOD, Objective, batch_loss, packs
from workbench.progress import Progress
from workbench.sequences import Sample, Samples, lay_out, overlap_note, read_samples
from workbench.step import Step
from workbench.task import Task, Text
from workbench.variant import Variant, model_lock

EVALUATIONS = 10  # in a run, besides the first
CHEAP_TOKENS = 1024  # an evaluation of fewer takes no time worth saving
VALIDATION = 32  # samples of the calibration split that an evaluation reads
ASKED, ANSWER = 2, 24  # prompts answered at every evaluation, and the tokens of an answer
CLIP = 1.0  # most that all gradients together may measure

_curves: WeakKeyDictionary[PreTrainedModel, Curve] = WeakKeyDictionary()  # by model: names come and go


class TrainingStep(Step):
    """Trains some of a variant's parameters on the train split, and watches the calibration split."""

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

    @property
    def neutral(self) -> bool:
        """Whether nothing is trained."""
        return self.epochs == 0

    @abstractmethod
    def prepare(self, variant: Variant) -> PreTrainedModel:
        """A copy of the variant's model whose trained parameters, and only they, are its own and require gradients."""

    def samples(self, variant: Variant, task: Task | Text, progress: Progress) -> Samples:
        """What is learned from; by default the train split."""
        return read_samples(variant, task, "train")

    def used(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Those of the samples that are reached: less than an epoch leaves some out."""
        if self.epochs >= 1:
            return samples
        steps = max(1, round(self.epochs * math.ceil(len(samples) / self.batch_size)))
        return shuffled(samples, self.seed, 0)[: steps * self.batch_size]

    def objective(self, variant: Variant, samples: Sequence[Sample], progress: Progress) -> Objective:
        """What a batch teaches; by default the likelihood of the learned tokens."""
        return LIKELIHOOD

    def apply(self, variant: Variant, task: Task | Text | None, progress: Progress) -> Variant:
        """Train a copy; the parent's tensors are read, never written."""
        assert task is not None
        if self.neutral:
            return variant.derive(self)
        samples, watched = self.samples(variant, task, progress), read_samples(variant, task, "calibration")
        curve = Curve(notes=[*overlap_note(task), *samples.notes])
        model = self.prepare(variant)
        if self.checkpointing:
            if not model.supports_gradient_checkpointing:
                raise InvalidInput(f"{type(model).__name__} cannot compute activations twice: leave checkpointing off.")
            _keep_activations(model, False)
        child = variant.derive(self, model, curve.notes)
        progress.live = _curves[model] = curve
        asked = task.calibration[:ASKED] if isinstance(task, Task) else ()
        prompts = {each.prompt: child.encode(task.prompt(each)) for each in asked if isinstance(task, Task)}
        objective = self.objective(variant, self.used(samples.samples), progress)
        run = _Run(self, child, samples.samples, watched.samples[:VALIDATION], objective, prompts)
        saved = checkpoint.place(variant, self, task)
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


class _Run:
    """One training: model, optimizer, data and where it stands."""

    def __init__(
        self,
        step: TrainingStep,
        variant: Variant,
        samples: Sequence[Sample],
        watched: Sequence[Sample],
        objective: Objective,
        prompts: Mapping[str, list[int]],
    ) -> None:
        self.step, self.variant, self.model = step, variant, variant.model
        self.samples, self.watched, self.objective, self.prompts = samples, watched, objective, prompts
        self.trained = {name: each for name, each in self.model.named_parameters() if each.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.trained.values(), lr=step.learning_rate, weight_decay=step.weight_decay, fused=True
        )
        self.per_epoch = math.ceil(len(samples) / step.batch_size)
        self.total = max(1, round(step.epochs * self.per_epoch))
        self.best: dict[str, Tensor] = {}
        self.packed = step.packing and packs(variant.model)

    def train(self, curve: Curve, progress: Progress, saved: Path) -> None:
        """Every step, an evaluation now and then, and the weights to keep at the end."""
        curve.total = self.total
        every = self._interval()
        progress.start(f"{self.step.label}: training", self.total)
        first = self._resume(curve, saved)
        progress.done = first
        if not curve.evaluations:
            self._evaluate(curve, 0)
        written = time.monotonic()
        for number in range(first, self.total):
            progress.wait()
            if curve.points and time.monotonic() - written >= checkpoint.SECONDS:
                checkpoint.write(saved, self._tensors(), curve.to_json())
                written = time.monotonic()
            curve.points.append(self._learn(number, progress))
            if (number + 1) % every == 0 or number + 1 == self.total:
                self._evaluate(curve, number + 1)
            progress.advance()
            if progress.stopping or (self.step.patience and curve.waited >= self.step.patience):
                break
        if self.step.keep == "best" and self.best:
            with torch.no_grad():
                for name, value in self.best.items():
                    self.trained[name].copy_(value)
        for each in self.trained.values():
            each.requires_grad_(False)
            each.grad = None
        if self.step.checkpointing:
            _keep_activations(self.model, True)
        self.model.eval()

    def _interval(self) -> int:
        """Steps from one evaluation to the next: a tenth of all, or more where they would take a tenth of the time."""
        watched = sum(len(sample.ids) for sample in self.watched)
        learned = self.step.batch_size * sum(len(sample.ids) for sample in self.samples) / len(self.samples)
        costly = 0 if watched < CHEAP_TOKENS else math.ceil(10 * watched / 3 / learned)  # without the way back
        return max(1, self.total // EVALUATIONS, min(costly, self.total))

    def _learn(self, number: int, progress: Progress) -> Point:
        """One optimizer step."""
        with model_lock:
            chosen = self.objective.samples(self.model, self._chosen(number), number)
        rate = learning_rate(self.step, number, self.total)
        started, total, tokens = time.perf_counter(), 0.0, 0
        learned = sum(len(sample.ids) - sample.start for sample in chosen)
        self.optimizer.zero_grad(set_to_none=True)
        for samples in _parts(chosen, self.step.accumulation):
            progress.check()
            # What is shared is read into a cache, which transformers leaves out where activations are computed twice.
            batch = lay_out(samples, self.packed, self.model.device, share=not self.step.checkpointing)
            tokens += batch.tokens
            with model_lock, torch.enable_grad(), torch.random.fork_rng():
                torch.manual_seed(self.step.seed * 1_000_003 + number)  # so that a resumed run drops out the same
                self.model.train()
                with products(self.step.precision, self.model):
                    loss = batch_loss(self.model, batch, self.objective.lesson(batch)) / learned
                loss.backward()  # type: ignore[no-untyped-call]
                self.model.eval()
            total += float(loss.detach())
        norm = float(nn.utils.clip_grad_norm_(self.trained.values(), CLIP))
        if not math.isfinite(total) or not math.isfinite(norm):
            names = ", ".join(sample.name for sample in chosen[:3])
            raise InvalidInput(
                f"The loss is not a number {_after(number)} on the examples {names}, ...: lower the learning rate "
                f"({self.step.learning_rate:g}) or look at them; nothing was changed."
            )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with model_lock:
            self.optimizer.step()
        seconds = time.perf_counter() - started
        return Point(number + 1, total, rate, tokens, seconds, memory_held(self.model.device))

    def _answers(self) -> tuple[tuple[str, str], ...]:
        """What it says now to some prompts of the calibration split, greedily and not for long."""
        if not self.prompts:
            return ()
        settings = self.variant.decoding.but(max_new_tokens=ANSWER, temperature=0.0)
        said: list[list[int]] = [[] for _ in self.prompts]
        with model_lock:
            for tokens in decode(self.model, list(self.prompts.values()), settings):
                for answer, token in zip(said, tokens, strict=True):
                    if not (answer and answer[-1] in self.variant.end_tokens):
                        answer.append(token)
        return tuple(zip(self.prompts, (self.variant.decode(each).strip() for each in said), strict=True))

    def _tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name."""
        kept = {f"now/{name}": each.detach() for name, each in self.trained.items()}
        kept |= {f"best/{name}": each for name, each in self.best.items()}
        for name, each in self.trained.items():
            kept |= {f"{key}/{name}": value for key, value in self.optimizer.state[each].items()}
        return kept

    @torch.no_grad()
    def _resume(self, curve: Curve, saved: Path) -> int:
        """Go on where the same training was killed; how many steps it had done."""
        found = checkpoint.read(saved)
        if found is None:
            return 0
        tensors, record = found
        if not tensors.keys() >= {f"now/{name}" for name in self.trained}:
            return 0
        curve.read_json(record)
        for name, each in self.trained.items():
            each.copy_(tensors[f"now/{name}"])
            self.optimizer.state[each] = {key: tensors[f"{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        self.best = {name: tensors[f"best/{name}"] for name in self.trained if f"best/{name}" in tensors}
        curve.notes.append(f"Taken up again at step {len(curve.points)}, where its process had ended.")
        return len(curve.points)

    def _chosen(self, number: int) -> list[Sample]:
        """The samples of a step: every epoch goes through all of them in an order of its own."""
        epoch, at = divmod(number, self.per_epoch)
        start = at * self.step.batch_size
        return shuffled(self.samples, self.step.seed, epoch)[start : start + self.step.batch_size]

    @torch.no_grad()
    def _evaluate(self, curve: Curve, number: int) -> None:
        total = learned = 0.0
        for samples in _parts(self.watched, math.ceil(len(self.watched) / self.step.batch_size)):
            batch = lay_out(samples, self.packed, self.model.device)
            with model_lock, products(self.step.precision, self.model):
                total += float(batch_loss(self.model, batch, LIKELIHOOD.lesson(batch)))
            learned += len(batch.targets)
        if not math.isfinite(total):
            raise InvalidInput(f"The validation loss is not a number {_after(number)}: lower the learning rate.")
        curve.evaluations.append(Evaluation(number, total / learned, self._answers()))
        if curve.best is not None and curve.best.step == number:
            self.best = {name: each.detach().clone() for name, each in self.trained.items()}


def _keep_activations(model: Any, keep: bool) -> None:
    """Whether the blocks keep their activations for the backward pass, or compute them again."""
    prefix = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{prefix}_checkpointing_{'disable' if keep else 'enable'}")()


def shuffled(samples: Sequence[Sample], seed: int, epoch: int) -> list[Sample]:
    """The samples in the order of an epoch."""
    draw = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return [samples[index] for index in torch.randperm(len(samples), generator=draw).tolist()]


def _after(steps: int) -> str:
    return f"after {steps} steps" if steps else "before the first step"


def learning_rate(step: TrainingStep, number: int, total: int) -> float:
    """Of the optimizer step with this index: a linear rise, then the schedule's fall to 0."""
    rising = step.warmup * total
    if number < rising:
        return step.learning_rate * (number + 1) / (math.ceil(rising) + 1)
    done = (number - rising) / max(1.0, total - rising)
    falls = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return step.learning_rate * falls[step.schedule]


def _parts(samples: Sequence[Sample], count: int) -> Iterator[Sequence[Sample]]:
    """At most so many parts of nearly one size."""
    size = math.ceil(len(samples) / max(1, count))
    for start in range(0, len(samples), size):
        yield samples[start : start + size]
