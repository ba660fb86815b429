"""Mistakes that are often made in the labs, as small tensor functions: whose result is a learner's is named.

Each is put in the place of the reference's own function, so that everything else is as the reference has it.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.core.errors import WorkbenchError
from workbench.layers.activations import LayerInput
from workbench.layers.step import inverse_factor
from workbench.step import Step
from workbench.steps import finetune, prune, quantize
from workbench.steps.prune.masks import keep_mask
from workbench.steps.quantize.rounding import Codes, Grid, minmax_grid
from workbench.teaching.lora import LoRAParts


class Mistake(NamedTuple):
    """A known mistake.

    Attributes:
        says: what it is, in a sentence.
        of: class whose function is replaced.
        name: of that function.
        function: in its place.
    """

    says: str
    of: type[Step]
    name: str
    function: Callable[..., Any]

    def step(self, reference: Step) -> Step:
        """The reference with this mistake."""
        kind = type("_Mistaken", (self.of,), {self.name: self.function, "__module__": __name__, "paper": ""})
        made: Step = kind(**{name: getattr(reference, name) for name in type(reference).model_fields})
        return made


def mistaken(reference: Step) -> Iterator[tuple[str, Step]]:
    """The known mistakes of a lab, by its reference: what each is, and the step that makes it."""
    for each in KNOWN.get(type(reference), ()):
        try:
            yield each.says, each.step(reference)
        except WorkbenchError:  # it cannot be made with these knobs
            continue


def _masked(says: str, score: Callable[[Tensor, LayerInput], Tensor], rows: bool = True) -> Mistake:
    def change(step: prune.Wanda, weight: Tensor, inputs: LayerInput) -> Tensor:
        return weight * keep_mask(score(weight, inputs), step.sparsity, step.group, rows=rows)

    return Mistake(says, prune.Wanda, "change", change)


def _size(weight: Tensor, inputs: LayerInput) -> Tensor:
    return weight.abs() * inputs.norm


def _scored(step: prune.Wanda, weight: Tensor, inputs: LayerInput) -> Tensor:
    score = _size(weight, inputs)
    return score * keep_mask(score, step.sparsity, step.group, rows=True)


def _mask_alone(step: prune.Wanda, weight: Tensor, inputs: LayerInput) -> Tensor:
    return keep_mask(_size(weight, inputs), step.sparsity, step.group, rows=True).to(weight.dtype)


def _largest_gone(step: prune.Wanda, weight: Tensor, inputs: LayerInput) -> Tensor:
    return weight * ~keep_mask(_size(weight, inputs), step.sparsity, step.group, rows=True)


WANDA = (
    _masked(
        "Your mask equals magnitude pruning's, row by row: the score lacks the size of the inputs.",
        lambda weight, inputs: weight.abs(),
    ),
    _masked(
        "Your mask equals magnitude pruning's over the whole matrix: the score lacks the size of the inputs, and "
        "weights are to be compared within each output row.",
        lambda weight, inputs: weight.abs(),
        rows=False,
    ),
    _masked("You compared over the whole matrix instead of within each output row.", _size, rows=False),
    _masked(
        "The norm is there without its square root: you multiply by the mean square of each input.",
        lambda weight, inputs: weight.abs() * inputs.norm.square(),
    ),
    _masked(
        "The score multiplies by the mean size of each input: Wanda's norm is the root of its mean square.",
        lambda weight, inputs: weight.abs() * inputs.mean,
    ),
    _masked(
        "The score multiplies by the largest value of each input: Wanda's norm is the root of its mean square.",
        lambda weight, inputs: weight.abs() * inputs.peak,
    ),
    _masked(
        "The score has a sign: without abs(), large negative weights go first.",
        lambda weight, inputs: weight * inputs.norm,
    ),
    _masked(
        "The score divides by the size of the inputs, instead of multiplying.",
        lambda weight, inputs: weight.abs() / inputs.norm.clamp(min=1e-12),
    ),
    _masked("The score is the size of the inputs alone: the weights are not in it.", lambda weight, inputs: (
        inputs.norm.expand_as(weight)
    )),
    Mistake("You keep what has the lowest score, and zero the rest.", prune.Wanda, "change", _largest_gone),
    Mistake("You give the scores that are kept, instead of the weights.", prune.Wanda, "change", _scored),
    Mistake("You give the mask: multiply the weight by it.", prune.Wanda, "change", _mask_alone),
)  # fmt: skip


def _rounded(says: str, spread: Callable[..., Tensor]) -> Mistake:
    """Of GPTQ without an order: what a column passes on to every one, ``(in, out)``; those before it take nothing."""

    def quantize_(step: quantize.GPTQ, weight: Tensor, inputs: LayerInput) -> Codes:
        assert inputs.hessian is not None
        weight = weight * (inputs.hessian.diagonal() != 0)
        factor = inverse_factor(inputs.hessian)
        start, left = weight.t(), weight.t().clone()
        codes, grids = torch.empty_like(left, dtype=torch.uint8), []
        for column in range(len(left)):
            if column % step.group_size == 0:
                run = left[column : column + step.group_size].t()
                grids.append(minmax_grid(run, step.bits, step.group_size, step.symmetric))
            scale, zero = (each[:, 0] for each in grids[-1])
            codes[column] = code = (left[column] / scale + zero).round().clamp(0, 2**step.bits - 1)
            left[column + 1 :] -= spread(left[column], (code - zero) * scale, factor, column, start[column])
        grid = Grid(*(torch.cat(parts, dim=1) for parts in zip(*grids, strict=True)))
        return Codes(codes.t().contiguous(), grid)

    return Mistake(says, quantize.GPTQ, "quantize", quantize_)


def _outer(error: Tensor, factor: Tensor, column: int) -> Tensor:
    return torch.outer(factor[column, column + 1 :], error)


def _undivided(now: Tensor, rounded: Tensor, factor: Tensor, column: int, start: Tensor) -> Tensor:
    return _outer(now - rounded, factor, column)


def _added(now: Tensor, rounded: Tensor, factor: Tensor, column: int, start: Tensor) -> Tensor:
    return -_outer((now - rounded) / factor[column, column], factor, column)


def _nothing(now: Tensor, rounded: Tensor, factor: Tensor, column: int, start: Tensor) -> Tensor:
    return torch.zeros((), device=now.device)


def _squared(now: Tensor, rounded: Tensor, factor: Tensor, column: int, start: Tensor) -> Tensor:
    return _outer((now - rounded) / factor[column, column].square(), factor, column)


def _multiplied(now: Tensor, rounded: Tensor, factor: Tensor, column: int, start: Tensor) -> Tensor:
    return _outer((now - rounded) * factor[column, column], factor, column)


def _from_start(now: Tensor, rounded: Tensor, factor: Tensor, column: int, start: Tensor) -> Tensor:
    return _outer((start - rounded) / factor[column, column], factor, column)


def _next_only(now: Tensor, rounded: Tensor, factor: Tensor, column: int, start: Tensor) -> Tensor:
    all_of_it = _outer((now - rounded) / factor[column, column], factor, column)
    all_of_it[1:] = 0
    return all_of_it


GPTQ = (
    _rounded("Nothing is passed on: this is plain rounding. Correct the columns to come, from the row "
             "factor[column, column + 1:] (below its diagonal the factor is zero).", _nothing),
    _rounded("The error was not divided by the diagonal of the inverse Cholesky factor, factor[column, column].",
             _undivided),
    _rounded("The correction has the wrong sign: what a column lost is taken away from the columns to come.", _added),
    _rounded("The error was divided by the square of the factor's diagonal: once is enough.", _squared),
    _rounded("The error was multiplied by the factor's diagonal, instead of divided by it.", _multiplied),
    _rounded("The error is that of the weight as it was: take it from the column as corrected so far, left[column].",
             _from_start),
    _rounded("Only the next column was corrected: all columns to come take their part.", _next_only),
)  # fmt: skip


def _plain(step: LoRAParts, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    return x @ weight.t() + scale * ((x @ a.t()) @ b.t())


def _from_zero(step: LoRAParts, out: int) -> Tensor:
    return torch.zeros(out, step.rank)


class _Zero(LoRAParts):
    """As it should begin."""

    start = _from_zero
    paper = ""


LORA = tuple(
    Mistake(says, _Zero, "product", function)
    for says, function in {
        "The product is not multiplied by alpha / rank.": (
            lambda step, x, weight, a, b: _plain(step, x, weight, a, b, 1.0)
        ),
        "The product is multiplied by alpha: divide it by the rank.": (
            lambda step, x, weight, a, b: _plain(step, x, weight, a, b, step.alpha)
        ),
        "The product is multiplied by rank / alpha: it is the other way round.": (
            lambda step, x, weight, a, b: _plain(step, x, weight, a, b, step.rank / step.alpha)
        ),
        "The product is multiplied by alpha / sqrt(rank): that is RSLoRA.": (
            lambda step, x, weight, a, b: _plain(step, x, weight, a, b, step.alpha / step.rank**0.5)
        ),
        "What the layer itself gives is missing: add x @ weight.T.": (
            lambda step, x, weight, a, b: step.alpha / step.rank * ((x @ a.t()) @ b.t())
        ),
        "All of the layer is multiplied by alpha / rank: only the product of the two factors is.": (
            lambda step, x, weight, a, b: step.alpha / step.rank * _plain(step, x, weight, a, b, 1.0)
        ),
    }.items()
)

KNOWN: dict[type[Step], tuple[Mistake, ...]] = {prune.Wanda: WANDA, quantize.GPTQ: GPTQ, finetune.LoRA: LORA}
