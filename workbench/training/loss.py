"""What a model learns from a batch: the objective, and its loss without the logits of every token at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.core.device import device_failed
from workbench.runtime.forward import using
from workbench.runtime.kvcache import is_plain
from workbench.runtime.reader import rows_states
from workbench.training.sequences import Batch, Sample, lay_out

Rows = Callable[[Tensor, slice], Tensor]  # logits of some learned tokens, and which they are, to their summed loss
CHUNK_LOGITS = {"cpu": 1 << 23, "cuda": 1 << 25}  # made, scored and dropped at a time: 128 MB in float32 on a GPU


@dataclass(frozen=True)
class Lesson:
    """What one batch teaches.

    Attributes:
        rows: the summed loss, in nats, of the logits of some learned tokens.
        states: if given, the summed loss of the hidden states behind every block, each ``(learned, hidden)``; the first
            is what goes into the first block.
    """

    rows: Rows
    states: Callable[[list[Tensor]], Tensor] | None = None


class Objective:
    """What a training aims at: here the likelihood of the learned tokens.

    Attributes:
        fingerprint: of whatever else it learns from, such as a teacher.
    """

    fingerprint = ""

    def samples(self, model: PreTrainedModel, samples: Sequence[Sample], number: int) -> Sequence[Sample]:
        """The samples that an optimizer step learns from, given those whose turn it is."""
        return samples

    def lesson(self, batch: Batch) -> Lesson:
        """What a batch teaches."""
        return Lesson(lambda logits, part: F.cross_entropy(logits, batch.targets[part], reduction="sum"))


LIKELIHOOD = Objective()


def batch_loss(model: PreTrainedModel, batch: Batch, lesson: Lesson) -> Tensor:
    """Summed loss of a batch, in nats. The logits of the learned tokens alone are made, and never all at once."""
    states = read(model, batch, every=lesson.states is not None)
    head = model.get_output_embeddings()
    learned = states[-1]
    weights = [each for each in head.parameters() if each.requires_grad]
    if torch.is_grad_enabled():
        total: Tensor = _HeadLoss.apply(learned, head, lesson.rows, *weights)  # type: ignore[no-untyped-call]
    else:
        total = torch.stack([lesson.rows(head(learned[part]).float(), part) for part in _chunks(learned, head)]).sum()
    return total + lesson.states(states) if lesson.states else total


def read(model: PreTrainedModel, batch: Batch, every: bool = False) -> list[Tensor]:
    """Hidden states ``(learned, hidden)`` where learned tokens are predicted: the last, or those of every block."""
    states = rows_states(model, batch.ids, batch.positions, batch.mask, batch.common, every)
    return [each.flatten(0, 1)[batch.places] for each in states]


def _chunks(learned: Tensor, head: Any) -> list[slice]:
    size = max(16, CHUNK_LOGITS.get(learned.device.type, CHUNK_LOGITS["cpu"]) // head.weight.shape[0])
    return [slice(start, start + size) for start in range(0, len(learned), size)]


class _HeadLoss(torch.autograd.Function):
    """The output head and the loss, chunk by chunk: the gradient is taken with the loss, so no logits are kept.

    After Hsu et al., "Liger Kernel", 2024 (fused linear cross entropy).
    """

    @staticmethod
    def forward(ctx: Any, learned: Tensor, head: nn.Module, rows: Rows, *weights: Tensor) -> Tensor:
        """``learned (n, hidden)`` to the summed loss."""
        total = learned.new_zeros((), dtype=torch.float32)
        gradients = [torch.empty_like(learned), *(torch.zeros_like(each) for each in weights)]
        for part in _chunks(learned, head):
            with torch.enable_grad():
                state = learned[part].detach().requires_grad_()
                loss = rows(head(state).float(), part)
                found = torch.autograd.grad(loss, [state, *weights])
            total += loss.detach()
            gradients[0][part] = found[0]
            for kept, each in zip(gradients[1:], found[1:], strict=True):
                kept += each
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        """The kept gradients, times that of the sum."""
        first, *rest = (each * outer[0] for each in ctx.saved_tensors)
        return first, None, None, *rest


def packs(model: PreTrainedModel) -> bool:
    """Whether samples laid end to end do not see each other in this model.

    Tried on short ones with a common beginning: architectures differ in what they make of positions and masks.
    """
    if not is_plain(model.config):
        return False  # a window of attention, or a state that is no list of keys and values
    samples = [Sample((*range(3, 13), *range(start, start + 5)), 11, "") for start in (13, 18, 23)]
    sums = []
    for packed in (False, True):
        batch = lay_out(samples, packed, model.device)
        try:
            with using("Trying packed samples"):
                sums.append(batch_loss(model, batch, LIKELIHOOD.lesson(batch)).item())
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            if not packed or device_failed(error):
                raise
            return False  # no masks of its caller's
    return abs(sums[1] - sums[0]) <= abs(sums[0]) * (1e-2 if model.dtype != torch.float32 else 1e-4)
