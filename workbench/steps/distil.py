"""Distillation: a student that learns from what a better model says."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from workbench.core.errors import InvalidInput
from workbench.core.progress import Progress
from workbench.layers.step import named_layers
from workbench.models import sharing
from workbench.models.adapters import adapter_bytes, attach, check_dense
from workbench.models.experts import coverage
from workbench.models.sharing import fingerprint
from workbench.runtime.decoding import Decoding
from workbench.step import Forecast
from workbench.tasks.task import Task, Text
from workbench.training.divergence import forward_kl, jensen_shannon, reverse_kl, states_apart, with_rest
from workbench.training.loss import Lesson, Objective
from workbench.training.sequences import Batch, Sample, Samples, answered
from workbench.training.step import TrainingStep
from workbench.training.teacher import NEW_TOKENS, Kept, Teacher, find_teacher, kept, spelled, taught
from workbench.variant import Variant


class _Distillation(TrainingStep):
    """A student and its teacher."""

    caveat: ClassVar[str] = "no faster than before: the student has the size it had, it only answers better"
    teacher: str = Field(
        default="",
        max_length=200,
        description="Name of a variant, a hub id or a path; empty for the model that the student was made from.",
        json_schema_extra={"names": "variants"},
    )
    rank: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="Of an adapter that is trained instead of every weight; 0 for all of them.",
    )
    keep: Literal["best", "last"] = Field(
        default="last", description="The weights that were best on the calibration split's own words, or the last."
    )
    learning_rate: float = Field(default=2e-4, ge=1e-7, le=1.0, description="Size of the first full steps.")

    def prepare(self, variant: Variant) -> PreTrainedModel:
        """The student: a copy, or a new adapter beside shared layers."""
        if self.rank:
            model = sharing.share(variant.model)
            attach(model, named_layers(variant, ""), self.seed, self.rank, 2.0 * self.rank, 0.0)
            return model
        check_dense(variant.model, variant.name, "set a rank such as 16, to train an adapter beside it")
        return sharing.own(variant.model)

    def left_alone(self, variant: Variant) -> tuple[str, ...]:
        """Experts get no adapter."""
        return coverage(variant.model, named_layers(variant, ""), self.label) if self.rank else ()

    def forecast(self, variant: Variant) -> Forecast:
        """A copy of everything, unless an adapter is trained."""
        if self.neutral or not self.rank:
            return Forecast(0 if self.neutral else variant.total_bytes, variant.total_bytes, seconds=None)
        size = adapter_bytes(variant.model, named_layers(variant, ""), self.rank)
        return Forecast(size, variant.total_bytes + size, seconds=None)


class _Divergence(_Distillation):
    """Brings the student's distribution over the next token to the teacher's."""

    temperature: float = Field(
        default=1.0, ge=0.1, le=20.0, description="Above 1 the unlikely tokens count for more, on both sides."
    )
    likelihood: float = Field(
        default=0.0, ge=0.0, le=1.0, description="Share of the loss that is the text's own, as in fine-tuning."
    )
    top_k: int = Field(
        default=64,
        ge=0,
        le=4096,
        description="The teacher's likeliest tokens, kept on disk so that it is read once; 0 asks it at every step.",
    )
    on_policy: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="Share of the steps on answers that the student makes itself, instead of the task's.",
    )

    @property
    def keeps(self) -> bool:
        """Whether what the teacher says is known before training."""
        return self.top_k > 0 and self.on_policy == 0

    @abstractmethod
    def apart(self, teacher: Tensor, student: Tensor) -> Tensor:
        """How far two distributions ``(rows, tokens)`` of log-probabilities are apart, in nats, ``(rows,)``."""

    def objective(self, variant: Variant, samples: Sequence[Sample], progress: Progress) -> Objective:
        """To follow the teacher."""
        teacher = Teacher(find_teacher(variant, self.teacher), variant, self.temperature, self.precision)
        source = kept(teacher, samples, self.top_k, progress) if self.keeps else None
        return Following(self, variant, teacher, source)


class ForwardKL(_Divergence):
    """Gives the student the teacher's whole distribution over the next token, not only the one that came.

    The classic. It tells the student how likely every other word would have been, so it learns more from the same text
    than fine-tuning; a student too small for the task spreads itself over everything the teacher might say.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/1503.02531"

    def apart(self, teacher: Tensor, student: Tensor) -> Tensor:
        """KL(teacher || student)."""
        return forward_kl(teacher, student)


class ReverseKL(_Divergence):
    """Keeps the student from saying what the teacher would not.

    The student settles on some of the teacher's ways and leaves the others out: fewer blunders, less variety. It is at
    its best on the student's own answers: try it with an on-policy share.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2306.08543"

    def apart(self, teacher: Tensor, student: Tensor) -> Tensor:
        """KL(student || teacher)."""
        return reverse_kl(teacher, student)


class JensenShannon(_Divergence):
    """Between the forward and the reverse divergence, and never beyond log 2: one odd token cannot upset it.

    Generalized knowledge distillation: with an on-policy share the student learns from its own mistakes, which the
    task's answers never show. Own answers have to be made first, which takes most of the time.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2306.13649"
    beta: float = Field(default=0.5, ge=0.01, le=0.99, description="Near 0 like the forward KL, near 1 the reverse.")

    def apart(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Divergence of both from their mixture."""
        return jensen_shannon(teacher, student, self.beta)


class HiddenStates(_Divergence):
    """Forward KL, and hidden states behind every block that point where the teacher's do.

    A student with fewer blocks compares each of its own with the teacher's at the same share of the depth. It learns
    faster at the start; the teacher is read at every step, and both must be of the same width.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/1908.09355"
    states: float = Field(default=1.0, ge=0.0, le=100.0, description="How much the hidden states count.")

    @property
    def keeps(self) -> bool:
        """Hidden states are too large to keep."""
        return False

    def apart(self, teacher: Tensor, student: Tensor) -> Tensor:
        """KL(teacher || student)."""
        return forward_kl(teacher, student)

    def objective(self, variant: Variant, samples: Sequence[Sample], progress: Progress) -> Objective:
        """To follow the teacher inside, too."""
        teacher = find_teacher(variant, self.teacher)
        widths = [each.model.config.get_text_config().hidden_size for each in (teacher, variant)]
        if widths[0] != widths[1]:
            raise InvalidInput(
                f"Hidden states of '{teacher.name}' have {widths[0]} numbers and those of '{variant.name}' "
                f"{widths[1]}: use distil.ForwardKL()."
            )
        asked = Teacher(teacher, variant, self.temperature, self.precision)
        return Following(self, variant, asked, None, self.states)


class SequenceLevel(_Distillation):
    """Fine-tunes on the answers that the teacher gives, in place of the task's own.

    Its answers are plainer than people's and easier to imitate. Nothing but the text is needed, so that any teacher
    with the same vocabulary serves; what the teacher gets wrong, the student learns.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/1606.07947"

    def samples(self, variant: Variant, task: Task | Text, progress: Progress) -> Samples:
        """The prompts of the train split with the teacher's answers."""
        found = super().samples(variant, task, progress)
        new_tokens = task.max_new_tokens if isinstance(task, Task) else NEW_TOKENS
        teacher = find_teacher(variant, self.teacher)
        made = spelled(teacher, taught(teacher, found.samples, new_tokens, progress))
        return Samples(tuple(made), found.notes)


class Following(Objective):
    """The divergence from a teacher, the text's likelihood and hidden states, each in its share."""

    def __init__(
        self, step: _Divergence, student: Variant, teacher: Teacher, kept: Kept | None, states: float | None = None
    ) -> None:
        self.step, self.student, self.teacher, self.kept, self.weight = step, student, teacher, kept, states
        self.fingerprint = fingerprint(teacher.variant.model)
        self.own = False  # whether the step is one on the student's own answers

    def samples(self, model: PreTrainedModel, samples: Sequence[Sample], number: int) -> Sequence[Sample]:
        """Now and then, answers of the student's own."""
        draw = torch.Generator().manual_seed(self.step.seed * 1_000_003 + number)
        self.own = float(torch.rand((), generator=draw)) < self.step.on_policy
        if not self.own:
            return samples
        longest = max(len(each.ids) - each.start for each in samples)
        settings = Decoding(max_new_tokens=min(2 * longest, NEW_TOKENS), temperature=1.0, seed=self.step.seed + number)
        return answered(self.student, model, samples, settings)

    def lesson(self, batch: Batch) -> Lesson:
        """What the teacher says on a batch."""
        states = None
        if self.kept:
            compare = self._kept(self.kept, batch)
        elif self.weight is None:
            compare = self._online(self.teacher.logs(batch))
        else:
            hidden = self.teacher.states(batch)
            compare = self._online(self.teacher.logs(batch, hidden[-1]))
            states = self._states(hidden, self.weight)
        share = 0.0 if self.own else self.step.likelihood  # its own words are no text to learn by heart
        warmth = self.step.temperature**2  # after Hinton: gradients shrink by its square

        def rows(logits: Tensor, part: slice) -> Tensor:
            total = (1 - share) * warmth * compare(logits[:, : self.teacher.height] / self.step.temperature, part).sum()
            if share:
                total = total + share * F.cross_entropy(logits, batch.targets[part], reduction="sum")
            return total

        return Lesson(rows, states)

    def _kept(self, source: Kept, batch: Batch) -> Callable[[Tensor, slice], Tensor]:
        values, indices = source.likeliest(batch)

        def compare(logits: Tensor, part: slice) -> Tensor:
            logs = logits.gather(-1, indices[part]) - logits.logsumexp(dim=-1, keepdim=True)
            return self.step.apart(with_rest(values[part]), with_rest(logs))

        return compare

    def _online(self, teacher: Callable[[slice], Tensor]) -> Callable[[Tensor, slice], Tensor]:
        return lambda logits, part: self.step.apart(teacher(part), torch.log_softmax(logits, dim=-1))

    def _states(self, teacher: list[Tensor], weight: float) -> Callable[[list[Tensor]], Tensor]:
        def apart(student: list[Tensor]) -> Tensor:
            depth = len(student) - 1
            pairs = [(round(block * (len(teacher) - 1) / depth), block) for block in range(1, depth + 1)]
            each = [states_apart(teacher[theirs], student[ours]).sum() for theirs, ours in pairs]
            return weight * torch.stack(each).mean()

        return apart
