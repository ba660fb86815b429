"""Steps that change the weight of one linear layer after another, on what calibration saw of each."""

import fnmatch
from collections.abc import Collection, Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from workbench.core.errors import InvalidInput
from workbench.core.progress import Progress
from workbench.layers import calibration
from workbench.layers.activations import LayerInput
from workbench.layers.opaque import opaque_layers
from workbench.models import sharing
from workbench.models.adapters import check_dense
from workbench.models.blocks import decoder_blocks
from workbench.models.experts import as_layers, coverage, expert_layers, gather
from workbench.models.packed import SemiStructuredLinear, dense_weight, linear_layers, replace_module
from workbench.step import Forecast, Step
from workbench.tasks.task import Task, Text
from workbench.variant import Variant

TRIES = 4  # at a decomposition, with ten times the damping each
DAMPING = 0.01  # of the Hessian's mean diagonal, added to it, as the authors of GPTQ and SparseGPT do


class LayerStep(Step):
    """Changes the linear layers of the decoder blocks; a subclass says what becomes of one weight.

    Its `hessians` say whether it needs `LayerInput.hessian`; its `strength` is the knob that `sensitivity` varies, over
    `strengths` unless told otherwise.
    """

    hessians: ClassVar[bool] = False
    strength: ClassVar[str] = ""
    strengths: ClassVar[tuple[float, ...]] = ()
    exclude: str = Field(
        default="",
        max_length=20_000,
        description="Layers left as they are, separated by commas: a block's number, a name, or a pattern such as "
        "0.mlp.* or down_proj.",
    )

    @property
    def neutral(self) -> bool:
        """Whether the knobs are set so that nothing changes."""
        return False

    @property
    def runs_changed_blocks(self) -> bool:
        """Whether a block is calibrated on what the changed blocks before it give."""
        return False

    def change(self, weight: Tensor, inputs: LayerInput | None) -> Tensor:
        """The weight ``(out, in)`` in float32 as this step would leave it, from one in float32; the pure method."""
        raise NotImplementedError

    def replace(self, layer: nn.Module, inputs: LayerInput | None) -> nn.Module:
        """The layer as this step leaves it; the given one, which variants share, stays as it is."""
        weight = dense_weight(layer)
        return with_weight(layer, self.change(weight.float(), inputs).to(weight.dtype))

    def replace_block(
        self, model: PreTrainedModel, layers: Mapping[str, LayerInput | None], chosen: frozenset[str]
    ) -> None:
        """Replace the chosen ones of a block's layers, by path, in a copy of the model."""
        for path, inputs in layers.items():
            if path in chosen:
                replace_module(model, path, self.replace(model.get_submodule(path), inputs))

    def finish(self, model: PreTrainedModel) -> None:
        """Change what lies outside the blocks, in a copy of the model."""

    def apply(self, variant: Variant, task: Task | Text | None, progress: Progress) -> Variant:
        """Change block after block; the parent's tensors are read, never written."""
        paths = self.layers(variant)
        if self.neutral:
            return variant.derive(self)
        model, chosen = sharing.share(as_layers(variant.model)), frozenset(paths)
        notes = list(coverage(model, chosen, self.label))
        if self.needs_data:
            seen = calibration.visit(variant, model, task, progress, self.hessians, self.runs_changed_blocks)
            left = set(chosen)
            for block in seen:
                self.replace_block(model, block.layers, chosen)
                left -= block.layers.keys()
            notes += self._replace_unfed(model, left)
        else:
            for path in progress.track(f"{self.label}: changing layers", paths, len(paths)):
                self.replace_block(model, {path: None}, chosen)
        self.finish(model)
        gather(model)
        return variant.derive(self, model, notes)

    def _replace_unfed(self, model: PreTrainedModel, left: Collection[str]) -> tuple[str, ...]:
        """Replace experts that no token of the calibration text chose, as if all their inputs were alike; say so."""
        check_fed(model, left)
        for path in sorted(left):
            self.replace_block(model, {path: alike(model.get_submodule(path), self.hessians)}, frozenset([path]))
        if not left:
            return ()
        return (f"The calibration text reached {len(left)} layers of experts not at all: more text would help them.",)

    def forecast(self, variant: Variant) -> Forecast:
        """A changed weight is as large as before, and the variant's own."""
        model = as_layers(variant.model)
        size = sum(dense_weight(model.get_submodule(path)).nbytes for path in self.layers(variant))
        return Forecast(owned_bytes=0 if self.neutral else size, weight_bytes=variant.total_bytes, seconds=None)

    def layers(self, variant: Variant) -> list[str]:
        """Paths of the linear layers that this step changes.

        Raises:
            InvalidInput: the variant is quantized, or an exclusion names no layer.
        """
        return chosen_layers(variant, self.exclude, self.label)


class SequentialStep(LayerStep):
    """Can be calibrated on what the changed blocks give, as the papers do."""

    needs_data: ClassVar[bool] = True
    sequential: bool = Field(
        default=False,
        description="Calibrate each block on what the changed blocks before it give, as the paper does; takes a pass "
        "of its own for every setting.",
    )

    @property
    def runs_changed_blocks(self) -> bool:
        """As the knob says."""
        return self.sequential


def check_fed(model: PreTrainedModel, left: Collection[str]) -> None:
    """Raise `InvalidInput` if calibration never fed some layers that are not experts, which tokens may not choose."""
    if others := set(left) - expert_layers(model):
        raise InvalidInput(
            f"The calibration text never reaches {len(others)} layers, such as {min(others)}: use more or exclude them."
        )


def alike(layer: nn.Module, hessian: bool) -> LayerInput:
    """What a layer would be fed if all its input channels were of one size and had nothing to do with each other."""
    ones = torch.ones(dense_weight(layer).shape[1], device=dense_weight(layer).device)
    return LayerInput(0, ones, ones, ones, torch.diag(ones) if hessian else None, None)


def chosen_layers(variant: Variant, exclude: str, label: str) -> list[str]:
    """Paths of the dense linear layers in the decoder blocks, but for the excluded ones.

    Raises:
        InvalidInput: the variant is quantized, or an exclusion names no layer.
    """
    root, blocks = decoder_blocks(as_layers(variant.model))
    found = dict(linear_layers(blocks))
    if any(isinstance(layer, SemiStructuredLinear) for layer in found.values()):
        raise InvalidInput(
            f"'{variant.name}' is packed for this GPU's 2:4 kernels: apply {label} to its dense parent, or on a CPU."
        )
    check_dense(variant.model, variant.name, f"apply {label} to its dense parent")
    left_out = _named(exclude, found, "exclude")
    opaque = opaque_layers(variant.model)
    left_out |= {path for path in found if f"{root}.{path}" in opaque}
    return [f"{root}.{path}" for path in found if path not in left_out]


def named_layers(variant: Variant, names: str) -> list[str]:
    """Paths of the linear layers in the decoder blocks that are named, as in an exclusion; of all if none is.

    Experts are left out: an adapter for each would outweigh what it adapts.

    Raises:
        InvalidInput: a name fits no layer.
    """
    root, blocks = decoder_blocks(variant.model)
    apart = expert_layers(variant.model) | opaque_layers(variant.model)
    found = [path for path, _ in linear_layers(blocks) if f"{root}.{path}" not in apart]
    chosen = _named(names, found, "name") or set(found)
    return [f"{root}.{path}" for path in found if path in chosen]


def _named(names: str, found: Collection[str], verb: str) -> set[str]:
    chosen: set[str] = set()
    for item in filter(None, (each.strip() for each in names.split(","))):
        fitting = {path for path in found if fnmatch.fnmatchcase(f".{path}.", f"*.{item}.*")}
        if not fitting:
            raise InvalidInput(f"No layer is called '{item[:60]}' here: {verb} one such as {next(iter(found))}.")
        chosen |= fitting
    return chosen


def with_weight(layer: nn.Module, weight: Tensor) -> nn.Module:
    """A layer with another weight ``(out, in)`` and everything else shared."""
    changed = type(layer).__new__(type(layer))
    changed.__dict__ = {**vars(layer), "_parameters": dict(layer._parameters)}
    changed.weight = nn.Parameter(weight.t().contiguous() if isinstance(layer, Conv1D) else weight, requires_grad=False)
    return changed


def inverse_factor(hessian: Tensor) -> Tensor:
    """Upper Cholesky factor of the inverse of the damped Hessian ``(in, in)``; a column without input counts as 1.

    Raises:
        InvalidInput: the Hessian is not finite.
    """
    if not torch.isfinite(hessian).all():
        raise InvalidInput("The calibration inputs of a layer are not finite: use other calibration text or float32.")
    hessian = hessian.clone()
    diagonal = hessian.diagonal()
    diagonal[diagonal == 0] = 1
    damping = DAMPING * float(diagonal.mean())
    for _ in range(TRIES):
        diagonal += damping
        factor, failed = torch.linalg.cholesky_ex(hessian)
        upper, failed_too = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
        if not failed and not failed_too:
            return upper  # type: ignore[no-any-return]
        damping *= 10  # so few or so alike inputs that the matrix is singular to this precision
    raise InvalidInput("The calibration inputs of a layer are too much alike: use more or other calibration text.")
