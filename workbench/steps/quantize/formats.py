"""Number formats that need no data: every weight is rounded on its own."""

import time
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from workbench.core.device import synchronize
from workbench.core.errors import InvalidInput
from workbench.core.progress import Progress
from workbench.layers.opaque import opaque_layers
from workbench.measurement.kernels import token_ratio
from workbench.models import sharing
from workbench.models.adapters import check_dense
from workbench.models.blocks import language_model
from workbench.models.experts import as_layers, coverage
from workbench.models.packed import (
    Bits4Linear,
    FP8Linear,
    Int8DynamicLinear,
    Int8Linear,
    LLMInt8Linear,
    PackedLinear,
    dense_weight,
    linear_layers,
    replace_module,
)
from workbench.step import Forecast, Step
from workbench.steps.quantize.head import is_tied, tie
from workbench.tasks.task import Task, Text
from workbench.variant import Variant


class _Quantize(Step):
    """Replaces every linear layer by one whose weight is packed."""

    kind: ClassVar[type[PackedLinear]]
    caveat: ClassVar[str] = "not faster: unpacking the bits costs this device more than reading fewer of them saves"

    def options(self) -> dict[str, Any]:
        """What the packed layer is told besides the weight."""
        return {}

    def with_head(self) -> bool:
        """Whether the output head is packed too."""
        return False

    def extra_bits(self, columns: int) -> float:
        """Bits a weight spent on scales, in a layer with that many columns."""
        return 32 / columns

    def apply(self, variant: Variant, task: Task | Text | None, progress: Progress) -> Variant:
        """Pack layer by layer; the parent's tensors are read, never written."""
        layers = self._layers(variant)
        whole = as_layers(variant.model)
        notes = coverage(whole, [path for path, _ in layers], self.label)
        head, tied, model = whole.get_output_embeddings(), is_tied(whole), sharing.share(whole)
        for path, layer in progress.track(f"{self.label}: packing layers", layers, len(layers)):
            packed = self._pack(layer)
            replace_module(model, path, packed)
            if tied and layer is head:
                tie(model, packed)
        return variant.derive(self, model, notes)

    def forecast(self, variant: Variant) -> Forecast:
        """Bytes from the layers' shapes; time from packing the smallest layer once."""
        layers = self._layers(variant)
        shapes = [dense_weight(layer).shape for _, layer in layers]
        packed = sum(rows * columns * (self.kind.bits + self.extra_bits(columns)) / 8 for rows, columns in shapes)
        dense = sharing.total_bytes(layer for _, layer in layers)
        smallest = min(layers, key=lambda item: dense_weight(item[1]).numel())[1]
        self._pack(smallest)  # the first time pays for imports
        synchronize(variant.device)
        started = time.perf_counter()
        self._pack(smallest)
        synchronize(variant.device)
        pace = (time.perf_counter() - started) / dense_weight(smallest).numel()
        return Forecast(
            owned_bytes=round(packed),
            weight_bytes=round(variant.total_bytes - dense + packed),
            seconds=pace * sum(rows * columns for rows, columns in shapes),
            token_ratio=token_ratio(
                variant, [layer for _, layer in layers], lambda weight: self.kind.pack(weight, None, **self.options())
            ),
        )

    def _layers(self, variant: Variant) -> list[tuple[str, nn.Module]]:
        check_dense(variant.model, variant.name, f"apply {self.label} to its dense parent")
        whole, opaque = as_layers(variant.model), opaque_layers(variant.model)
        inside, output = language_model(whole), whole.get_output_embeddings()
        found = [item for item in linear_layers(whole, head=self.with_head()) if item[0] not in opaque]
        layers = [(path, layer) for path, layer in found if path.startswith(inside) or layer is output]
        if not layers:
            raise InvalidInput(f"'{variant.name}' has no linear layers that {self.label} could pack.")
        return layers

    def _pack(self, layer: nn.Module) -> PackedLinear:
        bias = layer.bias
        assert bias is None or isinstance(bias, torch.Tensor)
        return self.kind.pack(dense_weight(layer), bias, **self.options())


class NF4(_Quantize):
    """Stores each weight as one of 16 levels placed at the quantiles of a normal distribution.

    Trained weights are close to normal, so these levels waste fewer codes than evenly spaced ones. Every block has its
    own scale. The output head stays dense. About a seventh of the float32 size; its speed depends on the kernel.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2305.14314"
    kind = Bits4Linear
    block_size: Literal[32, 64, 128, 256] = Field(
        default=64, description="Weights that share one scale: smaller blocks are more exact and slightly larger."
    )

    def options(self) -> dict[str, Any]:
        """The level table and the block size."""
        return {"quant_type": "nf4", "block_size": self.block_size}

    def extra_bits(self, columns: int) -> float:
        """A scale a block: 16 bits in the fast CPU layout, 32 otherwise; the larger is forecast."""
        return 32 / self.block_size


class FP4(NF4):
    """Stores each weight as a 4-bit floating-point number, in blocks with one scale each.

    The levels are those of a tiny float (sign, exponent, mantissa), not fitted to the distribution of weights: usually
    a little less exact than NF4 at the same size.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2212.09720"

    def options(self) -> dict[str, Any]:
        """The level table and the block size."""
        return {"quant_type": "fp4", "block_size": self.block_size}


class LLMInt8(_Quantize):
    """Multiplies in int8, but keeps the few activation columns with outliers in 16 bits.

    Large models have a few activation features far outside the usual range; quantizing those ruins the answer. They are
    multiplied in 16 bits and everything else in int8. Saves memory; on small models and on CPUs it is slower.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2208.07339"
    caveat: ClassVar[str] = "not faster: every layer looks for outliers and converts to 16 bits, for every token"
    kind = LLMInt8Linear
    threshold: float = Field(
        default=6.0,
        ge=0.0,
        le=100.0,
        description="Activation columns that exceed this stay in 16 bits; 0 turns it off.",
    )

    def options(self) -> dict[str, Any]:
        """The outlier threshold."""
        return {"threshold": self.threshold}


class _Int8(_Quantize):
    """Int8 weights with one scale an output row, the output head included if wanted."""

    head: bool = Field(
        default=True,
        description="Pack the output head too (and the token embedding tied to it): it is read for every token.",
    )

    def with_head(self) -> bool:
        """As the knob says."""
        return self.head


class Int8(_Int8):
    """Stores each weight as an 8-bit integer with one scale an output row; activations stay in floating point.

    Generating a token reads every weight once, so a quarter of the bytes can mean a multiple of the speed, as long as
    the kernel multiplies straight from int8. Answers hardly change.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2004.09602"
    caveat: ClassVar[str] = "not faster: this device has no kernel that multiplies straight from int8 weights"
    kind = Int8Linear


class Int8Dynamic(_Int8):
    """Int8 weights and int8 activations: each token's activations are rounded with a scale of their own (W8A8).

    The product itself is then integer arithmetic, which makes reading a long prompt faster too. Rounding activations
    costs more quality than rounding weights.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2206.01861"
    caveat: ClassVar[str] = "not faster: rounding the activations costs as much as the integer product saves"
    kind = Int8DynamicLinear


class FP8(_Quantize):
    """Stores each weight as an 8-bit floating-point number (e4m3), with one scale an output row.

    Floats have fine steps near zero and coarse ones at the ends, so a few large weights in a row cost the small ones
    little; on evenly spread rows integers of 8 bits are more exact. GPUs from compute capability 8.9 on multiply two
    such numbers directly, rounding the activations too. The output head stays dense.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2209.05433"
    caveat: ClassVar[str] = (
        "not faster: only newer GPUs multiply float8, so here every weight is unpacked for every token"
    )
    kind = FP8Linear
