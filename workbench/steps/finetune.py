"""Fine-tuning: weights trained on the task's own examples."""

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.core import units
from workbench.core.errors import InvalidInput
from workbench.core.progress import Progress
from workbench.layers.opaque import opaque_layers
from workbench.layers.step import named_layers
from workbench.models import sharing
from workbench.models.adapters import (
    adapted_layers,
    adapter_bytes,
    attach,
    check_dense,
    check_plain,
    combined,
    fuse,
    has_adapter,
    same_adapter,
    scaled,
)
from workbench.models.blocks import decoder_blocks
from workbench.models.experts import coverage
from workbench.models.packed import (
    Bits4Linear,
    Int8Linear,
    Packed,
    PackedLinear,
    dense_weight,
    linear_layers,
    replace_module,
)
from workbench.step import Forecast, Step
from workbench.tasks.task import Task, Text
from workbench.training.step import TrainingStep
from workbench.training.teacher import drift
from workbench.variant import Variant, live


class LoRA(TrainingStep):
    """Trains two thin matrices beside every linear layer; the layer itself stays as it is.

    A few percent of the weights learn a format, a tone or a task, and the base stays shared by any number of adapters.
    It teaches behaviour well and new facts poorly; watch the validation loss.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2106.09685"
    caveat: ClassVar[str] = "not faster: the adapters are two more products for every layer, until Fuse adds them in"
    rank: int = Field(default=8, ge=1, le=1024, description="Width of the two matrices: what the adapter can hold.")
    alpha: float = Field(default=16.0, ge=0.1, le=1024.0, description="Its product counts alpha / rank times.")
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0, description="Share of its inputs left out while training.")
    layers: str = Field(
        default="",
        max_length=20_000,
        description="Layers that get one, separated by commas, such as q_proj, v_proj or 0.mlp.*; empty for all.",
    )

    def prepare(self, variant: Variant) -> PreTrainedModel:
        """The model with a new adapter."""
        check_plain(variant.model, variant.name)
        model = sharing.share(variant.model)
        self.quantize(model)
        paths = named_layers(variant, self.layers)
        attach(model, paths, self.seed, self.rank, self.alpha, self.dropout, **self.kind)
        return model

    def left_alone(self, variant: Variant) -> tuple[str, ...]:
        """Experts get no adapter."""
        if self.layers:  # chosen by name
            return ()
        return coverage(variant.model, named_layers(variant, ""), self.label)

    def quantize(self, model: PreTrainedModel) -> None:
        """What becomes of the layers before they get an adapter."""

    @property
    def kind(self) -> dict[str, bool]:
        """What peft calls this kind of adapter."""
        return {}

    def forecast(self, variant: Variant) -> Forecast:
        """Bytes of the two matrices, in float32."""
        size = 0 if self.neutral else adapter_bytes(variant.model, named_layers(variant, self.layers), self.rank)
        return Forecast(owned_bytes=size, weight_bytes=variant.total_bytes + size, seconds=None)


class RSLoRA(LoRA):
    """LoRA whose product counts alpha / sqrt(rank) times, so that large ranks learn as fast as small ones.

    With plain LoRA the step shrinks as the rank grows, and a larger adapter may learn less. Try it from rank 32 on.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2312.03732"

    @property
    def kind(self) -> dict[str, bool]:
        """Scaled by the root of the rank."""
        return {"use_rslora": True}


class DoRA(LoRA):
    """LoRA that trains the length of every output row apart from its direction.

    Often a little better than LoRA at a small rank, and slower: each product needs the length of the changed weight.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2402.09353"

    @property
    def kind(self) -> dict[str, bool]:
        """Weight-decomposed."""
        return {"use_dora": True}

    def prepare(self, variant: Variant) -> PreTrainedModel:
        """The model with a new adapter; peft cannot read the length of rows that are packed."""
        check_dense(variant.model, variant.name, "use finetune.QLoRA, or DoRA on its dense parent")
        return super().prepare(variant)


class QLoRA(LoRA):
    """LoRA beside layers in 4 or 8 bits: the large model is stored small, and only the adapter is trained.

    For models that would not fit otherwise. Layers that are dense are quantized first; those already packed stay as
    they are. The adapter learns around the rounding, at the price of unpacking every weight twice a step.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2305.14314"
    store: Literal["NF4", "Int8"] = Field(default="NF4", description="How layers that are still dense are stored.")

    def forecast(self, variant: Variant) -> Forecast:
        """The adapter, and about half a byte or one for every weight that is still dense."""
        adapter = super().forecast(variant)
        if self.neutral:
            return adapter
        _, blocks = decoder_blocks(variant.model)
        dense = [layer for _, layer in linear_layers(blocks) if not isinstance(layer, Packed)]
        weights = sum(layer.get_parameter("weight").numel() for layer in dense)
        packed = int(weights * (0.5625 if self.store == "NF4" else 1.0))  # NF4 has a scale of 4 bytes for 64 weights
        given = sharing.total_bytes(dense)
        return Forecast(adapter.owned_bytes + packed, adapter.weight_bytes - given + packed, None)

    def trained_bytes(self, variant: Variant) -> int:
        """The adapter alone."""
        return super().forecast(variant).owned_bytes

    def quantize(self, model: PreTrainedModel) -> None:
        """Pack the layers of the blocks."""
        root, blocks = decoder_blocks(model)
        left = opaque_layers(model)
        for path, layer in list(linear_layers(blocks)):
            if not isinstance(layer, Packed) and f"{root}.{path}" not in left:
                replace_module(model, f"{root}.{path}", _packed(layer, self.store))


def _packed(layer: nn.Module, store: str) -> PackedLinear:
    weight, bias = dense_weight(layer), layer.bias
    assert bias is None or isinstance(bias, Tensor)
    if store == "Int8":
        return Int8Linear.pack(weight, bias)
    return Bits4Linear.pack(weight, bias, quant_type="nf4", block_size=64)


class Full(TrainingStep):
    """Trains every weight.

    The most it can learn, and the most it can forget: a copy of the whole model, and three times its size while it
    trains. For small models; compare it with LoRA at the same validation loss. Use a tenth of LoRA's learning rate.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/1801.06146"
    learning_rate: float = Field(default=5e-5, ge=1e-7, le=1.0, description="Size of the first full steps.")

    def prepare(self, variant: Variant) -> PreTrainedModel:
        """A copy of the model whose every parameter is its own."""
        check_dense(variant.model, variant.name, "train it with finetune.QLoRA, or its dense parent")
        return sharing.own(variant.model)

    def forecast(self, variant: Variant) -> Forecast:
        """A copy of everything."""
        size = 0 if self.neutral else variant.total_bytes
        return Forecast(owned_bytes=size, weight_bytes=variant.total_bytes, seconds=None)


class Strength(Step):
    """Turns an adapter down or up, from 0 (the base) to 1 (as trained) and beyond, without training.

    Between two behaviours there is often a better one; above 1 a habit is exaggerated.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2212.04089"
    instant: ClassVar[bool] = True
    strength: float = Field(default=0.5, ge=0.0, le=1.5, description="Factor on what the adapters add; 1 as trained.")

    def apply(self, variant: Variant, task: Task | Text | None, progress: Progress) -> Variant:
        """The same tensors, added in another measure."""
        _check_adapted(variant)
        return variant.derive(self, scaled(variant.model, self.strength))


class Combine(Step):
    """Adds another variant's adapter to this one's, such as a tone to a task.

    What the two learned is summed, and they may get in each other's way: ask, and compare with either alone. Both must
    have been trained on the same base.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2212.04089"
    adapter: str = Field(
        default="",
        max_length=200,
        description="Name of the variant whose adapter is added; empty for the only other one there is.",
        json_schema_extra={"names": "variants"},
    )
    weight: float = Field(default=1.0, ge=0.0, le=1.5, description="How much of it; 0 changes nothing.")

    @property
    def neutral(self) -> bool:
        """Whether nothing is added."""
        return self.weight == 0

    def apply(self, variant: Variant, task: Task | Text | None, progress: Progress) -> Variant:
        """One adapter of both, beside layers that stay shared."""
        _check_adapted(variant)
        if self.neutral:
            return variant.derive(self)
        return variant.derive(self, combined(variant.model, self._other(variant).model, self.weight))

    def _other(self, variant: Variant) -> Variant:
        """The variant that is named, or the only one there is; neither this adapter turned down nor a sum with it."""
        wanted = self.adapter.strip()
        found = [each for each in live() if has_adapter(each.model)]
        found = (
            [each for each in found if each.name == wanted]
            if wanted
            else [
                each for each in found if not same_adapter(each.model, variant.model) and variant not in each.ancestors
            ]
        )
        if not found:
            missing = f"no variant '{wanted}' with an adapter" if wanted else "no other variant with an adapter"
            raise InvalidInput(f"There is {missing}: train one with a step such as finetune.LoRA().")
        if not wanted and len(found) > 1:
            raise InvalidInput(f"There are several adapters: name one of {', '.join(each.name for each in found)}.")
        return found[-1]


class Fuse(Step):
    """Adds the adapters into their layers: a plain model again, and no slower than its base.

    On dense layers only the last bits change. Layers in 4 or 8 bits become dense, as large as before they were
    quantized; packed again instead, they lose some of what was learned to rounding, which is measured and noted.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2106.09685"
    repack: bool = Field(
        default=False, description="Put packed layers back into their bits instead of making them dense."
    )

    def apply(self, variant: Variant, task: Task | Text | None, progress: Progress) -> Variant:
        """Layer by layer, in new tensors."""
        _check_adapted(variant)
        packed = [layer for _, layer in adapted_layers(variant.model) if isinstance(layer.base_layer, PackedLinear)]
        model = sharing.share(variant.model)
        fuse(model, self.repack)
        fused = variant.derive(self, model)
        if not packed:
            return fused
        lost = drift(variant, fused, task)
        now = "rounded to their bits again" if self.repack else "dense now"
        note = (
            f"{len(packed)} packed layers are {now}: {units.size(variant.total_bytes)} became "
            f"{units.size(fused.total_bytes)}, and its answers are {lost:.3g} nats a token from those before."
        )
        return replace(fused, notes=(*fused.notes, note))


def _check_adapted(variant: Variant) -> None:
    if not has_adapter(variant.model):
        raise InvalidInput(f"'{variant.name}' has no adapter: apply a step such as finetune.LoRA() first.")
