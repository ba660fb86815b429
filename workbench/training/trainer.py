"""The one training loop.

It is our own because no library's fits a workbench: transformers' Trainer (and TRL, built on it) computes the logits of
every token instead of those that are learned, cannot pause, holds the model for as long as it trains, hides a loss that
is not a number, and writes its checkpoints as pickles.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from transformers import PreTrainedModel

from workbench.core.device import memory_held, seeded
from workbench.core.errors import InvalidInput
from workbench.core.progress import Progress
from workbench.runtime.forward import using
from workbench.training import checkpoint
from workbench.training.curve import Curve, Evaluation, Point
from workbench.training.loss import LIKELIHOOD, Objective, batch_loss, packs
from workbench.training.precision import products
from workbench.training.sequences import Sample, continued, lay_out
from workbench.training.settings import TrainingKnobs, learning_rate, shuffled
from workbench.variant import Variant

EVALUATIONS = 10  # in a run, besides the first
CHEAP_TOKENS = 1024  # an evaluation of fewer takes no time worth saving
ANSWER = 24  # tokens of an answer to a prompt
CLIP = 1.0  # most that all gradients together may measure


class Run:
    """One training: model, optimizer, data and where it stands.

    Args:
        knobs: of the step.
        variant: what is made; the model is its own where it requires gradients.
        parent: of the variant, whose types the trained weights take in the end.
        samples: learned from.
        watched: evaluated on.
        objective: what a batch teaches.
        prompts: answered at every evaluation, as text and as tokens.
    """

    def __init__(
        self,
        knobs: TrainingKnobs,
        variant: Variant,
        parent: PreTrainedModel,
        samples: Sequence[Sample],
        watched: Sequence[Sample],
        objective: Objective,
        prompts: Mapping[str, list[int]],
    ) -> None:
        self.knobs, self.variant, self.model, self.parent = knobs, variant, variant.model, parent
        self.model.eval()  # adapters come ready to learn
        self.samples, self.watched, self.objective, self.prompts = samples, watched, objective, prompts
        self.trained = {name: each for name, each in self.model.named_parameters() if each.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.trained.values(), lr=knobs.learning_rate, weight_decay=knobs.weight_decay, fused=True
        )
        self.per_epoch = math.ceil(len(samples) / knobs.batch_size)
        self.total, self.every = plan(knobs, samples, watched)
        self.best: dict[str, Tensor] = {}
        self.packed = knobs.packing and packs(variant.model)

    def begin(self) -> None:
        """Make the model ready to learn."""
        if self.knobs.checkpointing:
            _keep_activations(self.model, False)

    def train(self, curve: Curve, progress: Progress, saved: Path) -> None:
        """Every step, an evaluation now and then, and the weights to keep at the end."""
        curve.total = self.total
        self.begin()
        progress.start(f"{self.knobs.label}: training", self.total)
        first = self._resume(curve, saved)
        progress.done = first
        if not curve.evaluations:
            self.evaluate(curve, 0)
        written, pause = time.monotonic(), checkpoint.SECONDS
        for number in range(first, self.total):
            progress.wait()
            if curve.points and (began := time.monotonic()) - written >= pause:
                checkpoint.write(saved, self._tensors(), curve.to_json())
                written = time.monotonic()
                pause = max(checkpoint.SECONDS, checkpoint.SHARE * (written - began))
            curve.points.append(self.learn(number, progress))
            if (number + 1) % self.every == 0 or number + 1 == self.total:
                self.evaluate(curve, number + 1)
            progress.advance()
            if progress.stopping or (self.knobs.patience and curve.waited >= self.knobs.patience):
                break
        if curve.evaluations[-1].step != len(curve.points):
            self.evaluate(curve, len(curve.points))
        self._finish()

    @torch.no_grad()
    def _finish(self) -> None:
        """Take the weights to keep, in the types that the parent has, and leave nothing of the training behind."""
        if self.knobs.keep == "best":
            for name, value in self.best.items():
                self.trained[name].copy_(value)
        kinds = {name: each.dtype for name, each in self.parent.named_parameters()}
        for name, each in self.trained.items():
            each.requires_grad_(False)
            each.grad = None
            each.data = each.data.to(kinds.get(name, each.dtype))
        increment_version(self.trained.values())
        if self.knobs.checkpointing:
            _keep_activations(self.model, True)
        self.model.eval()

    def learn(self, number: int, progress: Progress) -> Point:
        """One optimizer step."""
        started, losses, tokens = time.perf_counter(), list[Tensor](), 0
        memory_held(self.model.device)  # whatever was before does not count
        chosen = self.objective.samples(self.model, self._chosen(number), number)
        rate = learning_rate(self.knobs, number, self.total)
        learned = sum(len(sample.ids) - sample.start for sample in chosen)
        self.optimizer.zero_grad(set_to_none=True)
        for part, samples in enumerate(_parts(chosen, self.knobs.accumulation)):
            progress.check()
            # What is shared is read into a cache, which transformers leaves out where activations are computed twice.
            batch = lay_out(samples, self.packed, self.model.device, share=not self.knobs.checkpointing)
            tokens += batch.tokens
            seed = (self.knobs.seed * 1_000_003 + number) * 1024 + part  # resumed, it drops out the same
            with using(self.knobs.label, learning=True), seeded(seed, self.model.device):
                self.model.train()
                with products(self.knobs.precision, self.model) as forward:
                    with forward:
                        loss = batch_loss(self.model, batch, self.objective.lesson(batch)) / learned
                    loss.backward()  # type: ignore[no-untyped-call]
                self.model.eval()
            losses.append(loss.detach())
        norms = nn.utils.clip_grad_norm_(self.trained.values(), CLIP)
        total, norm = torch.stack([torch.stack(losses).sum(), norms]).tolist()  # the only wait for a GPU
        if not math.isfinite(total) or not math.isfinite(norm):
            names = ", ".join(sample.name for sample in chosen[:3])
            raise InvalidInput(
                f"The loss is not a number {_after(number)} on the examples {names}, ...: lower the learning rate "
                f"({self.knobs.learning_rate:g}) or look at them; nothing was changed."
            )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with using(self.knobs.label):
            self.optimizer.step()
            increment_version(self.trained.values())  # a fused optimizer tells nobody that it has written
            memory = memory_held(self.model.device)
        return Point(number + 1, total, rate, tokens, time.perf_counter() - started, memory)

    def _answers(self) -> tuple[tuple[str, str], ...]:
        """What it says now to some prompts of the calibration split, greedily and not for long."""
        if not self.prompts:
            return ()
        settings = self.variant.decoding.but(max_new_tokens=ANSWER, temperature=0.0)
        said = continued(self.variant, self.model, list(self.prompts.values()), settings)
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
            state = {key: tensors[f"{key}/{name}"].to(each.device) for key in ("step", "exp_avg", "exp_avg_sq")}
            self.optimizer.state[each] = state
            if f"best/{name}" in tensors:
                self.best[name] = tensors[f"best/{name}"].to(each.device)
        curve.notes.append(f"Taken up again at step {len(curve.points)}, where its process had ended.")
        return len(curve.points)

    def _chosen(self, number: int) -> list[Sample]:
        """The samples of a step: every epoch goes through all of them in an order of its own."""
        epoch, at = divmod(number, self.per_epoch)
        start = at * self.knobs.batch_size
        return shuffled(self.samples, self.knobs.seed, epoch)[start : start + self.knobs.batch_size]

    @torch.no_grad()
    def evaluate(self, curve: Curve, number: int) -> None:
        """The validation loss and some answers, after so many steps."""
        losses, learned = list[Tensor](), 0
        for samples in _parts(self.watched, math.ceil(len(self.watched) / self.knobs.batch_size)):
            batch = lay_out(samples, self.packed, self.model.device)
            with using(self.knobs.label), products(self.knobs.precision, self.model) as forward, forward:
                losses.append(batch_loss(self.model, batch, LIKELIHOOD.lesson(batch)))
            learned += len(batch.targets)
        total = torch.stack(losses).sum().item()
        if not math.isfinite(total):
            raise InvalidInput(f"The validation loss is not a number {_after(number)}: lower the learning rate.")
        curve.evaluations.append(Evaluation(number, total / learned, self._answers()))
        if curve.best is not None and curve.best.step == number:
            self.best = {name: each.detach().clone() for name, each in self.trained.items()}


def plan(knobs: TrainingKnobs, samples: Sequence[Sample], watched: Sequence[Sample]) -> tuple[int, int]:
    """How many steps a training has, and after how many it evaluates: a tenth of all, or more where that is costly.

    Costly is what would take a tenth of the time.
    """
    total = max(1, round(knobs.epochs * math.ceil(len(samples) / knobs.batch_size)))
    read = sum(len(sample.ids) for sample in watched)
    learned = knobs.batch_size * sum(len(sample.ids) for sample in samples) / len(samples)
    costly = 0 if read < CHEAP_TOKENS else math.ceil(10 * read / 3 / learned)  # without the way back
    return total, max(1, total // EVALUATIONS, min(costly, total))


def _keep_activations(model: Any, keep: bool) -> None:
    """Whether the blocks keep their activations for the backward pass, or compute them again."""
    if keep:
        model.activation_checkpointing_disable()
        model.disable_input_require_grads()
    else:
        model.activation_checkpointing_enable()


def _after(steps: int) -> str:
    return f"after {steps} steps" if steps else "before the first step"


def _parts(samples: Sequence[Sample], count: int) -> Iterator[Sequence[Sample]]:
    """At most so many parts of nearly one size."""
    size = math.ceil(len(samples) / max(1, count))
    for start in range(0, len(samples), size):
        yield samples[start : start + size]
