"""Low-rank adapters on a model's linear layers, by peft: attached, scaled and fused, always in a copy."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from workbench.core.device import seeded
from workbench.core.errors import InvalidInput, NotAvailable, first_line
from workbench.core.optional import IMPORTING, imported, library
from workbench.models import sharing
from workbench.models.packed import Packed, PackedLinear, bitsandbytes, dense_weight, is_adapted, replace_module

NAME = "default"  # what peft calls an adapter unless told otherwise


def attach(
    model: PreTrainedModel, paths: Sequence[str], seed: int, rank: int, alpha: float, dropout: float, **kind: bool
) -> None:
    """Put a new adapter beside the layers at these paths of a copy of a model; the layers themselves stay shared.

    Args:
        model: dense or quantized.
        paths: of linear layers.
        seed: of the first factor; the second is 0, so that nothing changes before training.
        rank: columns of the first factor, rows of the second.
        alpha: their product is multiplied by ``alpha / rank``.
        dropout: share of the adapter's inputs left out at random while it trains.
        kind: `use_dora` or `use_rslora` of peft's LoraConfig.

    Raises:
        InvalidInput: a layer has one already, or peft refuses it.
        NotAvailable: peft is not installed.
    """
    peft = peft_library()
    for path in paths:
        if is_adapted(model.get_submodule(path)):
            raise InvalidInput("This variant has an adapter already: apply finetune.Fuse() before another one.")
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(paths), bias="none", **kind
    )
    inject(model, config, seed)


def adapter_bytes(model: PreTrainedModel, paths: Sequence[str], rank: int) -> int:
    """What the two factors at each of these layers will take, in float32."""
    return 4 * rank * sum(sum(_shape(model.get_submodule(path))) for path in paths)


def _shape(layer: Any) -> tuple[int, int]:
    """Outputs and inputs of a linear layer, dense, turned or packed; read without unpacking."""
    base = layer.base_layer if is_adapted(layer) else layer
    return (base.nf, base.nx) if isinstance(base, Conv1D) else (base.out_features, base.in_features)


def register(config: Any) -> None:
    """Tell peft what becomes of our layers and of plain ones."""
    from workbench.models.lora import AdaptedLinear

    config._register_custom_module({PackedLinear: peft_library().tuners.lora.Linear, nn.Linear: AdaptedLinear})


def inject(model: PreTrainedModel, config: Any, seed: int) -> None:
    """Put what a configuration of peft's says beside the layers of a copy of a model.

    Raises:
        InvalidInput: peft refuses it.
    """
    peft = peft_library()
    register(config)
    # Peft takes layers of a model it knows for experts by their name alone; of a bare module it takes those named.
    bare = nn.Module()
    bare._modules = model._modules
    with seeded(seed, torch.device("cpu")), warnings.catch_warnings():  # peft draws there, then moves
        warnings.simplefilter("ignore")
        try:
            peft.inject_adapter_in_model(config, bare, adapter_name=NAME)
        except (ValueError, TypeError) as error:
            raise InvalidInput(f"These adapters do not fit: {first_line(error)}.") from None
    model.peft_config = {NAME: config}
    for _, layer in adapted_layers(model):
        for part in (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector):
            part.float()  # small steps get lost in 16 bits


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Path and module of every layer with an adapter."""
    for path, module in model.named_modules():
        if is_adapted(module):
            yield path, module


def same_adapter(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models share an adapter's tensors, however far each turns it up."""
    factors = [
        {each.data_ptr() for _, layer in adapted_layers(model) for each in layer.lora_A.parameters()}
        for model in (one, other)
    ]
    return not factors[0].isdisjoint(factors[1])


def has_adapter(model: nn.Module) -> bool:
    """Whether any layer has one."""
    return any(True for _ in adapted_layers(model))


def check_plain(model: nn.Module, name: str) -> None:
    """Raise `InvalidInput` if the model of that name has an adapter, which a step that changes layers would lose."""
    if has_adapter(model):
        raise InvalidInput(f"'{name}' has an adapter: apply finetune.Fuse() first.")


def check_dense(model: nn.Module, name: str, advice: str) -> None:
    """Raise `InvalidInput` if the model of that name has an adapter or packed layers.

    Args:
        model: that a step is to be applied to.
        name: of the variant.
        advice: what to do instead where layers are packed, such as "apply RTN to its dense parent".
    """
    check_plain(model, name)
    if any(isinstance(module, Packed) for module in model.modules()):
        raise InvalidInput(f"'{name}' is already quantized: {advice}.")


def scaled(model: PreTrainedModel, strength: float) -> PreTrainedModel:
    """A copy of a model, its adapters counting so many times as much; every tensor is shared."""
    turned = sharing.shallow(model)
    for _, layer in adapted_layers(turned):
        if layer.lora_magnitude_vector:
            raise InvalidInput("DoRA changes rows in length, which cannot be turned up or down: use LoRA.")
        layer.scaling = {name: strength * value for name, value in layer.scaling.items()}
    return turned


def combined(first: PreTrainedModel, second: PreTrainedModel, weight: float) -> PreTrainedModel:
    """A copy of the first model whose one adapter is the sum of its own and `weight` times the second's.

    The factors are put side by side, so the sum is exact and its rank that of both together.

    Raises:
        InvalidInput: the two do not share the layers that the adapters stand beside, or one is a DoRA.
    """
    adapters = [dict(adapted_layers(each)) for each in (first, second)]
    model, other = detached(first), detached(second)
    paths = list(adapters[0] | adapters[1])
    for path in paths:
        if sharing.storages(model.get_submodule(path)).keys() != sharing.storages(other.get_submodule(path)).keys():
            raise InvalidInput("The two adapters are of different models: combine adapters that were trained on one.")
    if any(layer.lora_magnitude_vector for each in adapters for layer in each.values()):
        raise InvalidInput("DoRA changes rows in length, which cannot be added: combine LoRA adapters.")
    ranks = [max(layer.r[NAME] for layer in each.values()) for each in adapters]
    attach(model, paths, 0, sum(ranks), sum(ranks), 0.0)
    for path, layer in adapted_layers(model):
        narrow, wide = layer.lora_A[NAME].weight.detach().zero_(), layer.lora_B[NAME].weight.detach().zero_()
        for each, factor, start in zip(adapters, (1.0, weight), (0, ranks[0]), strict=True):
            if path in each:
                stop = start + each[path].r[NAME]
                narrow[start:stop] = each[path].lora_A[NAME].weight
                wide[:, start:stop] = each[path].lora_B[NAME].weight * (factor * each[path].scaling[NAME])
        layer.requires_grad_(False)
    return model


def detached(model: PreTrainedModel) -> PreTrainedModel:
    """The model without its adapters; the same one if it has none."""
    if not has_adapter(model):
        return model
    plain = sharing.share(model)
    for path, layer in list(adapted_layers(plain)):
        replace_module(plain, path, layer.base_layer)
    del plain.peft_config
    return plain


def fuse(model: PreTrainedModel, repack: bool) -> None:
    """Replace every layer with an adapter in a copy of a model by a plain one of the same function.

    Args:
        model: the copy.
        repack: pack the sums of packed layers as those were, which rounds; otherwise they become dense.

    Raises:
        InvalidInput: layers are packed in a way that takes more than their weight.
    """
    for path, layer in list(adapted_layers(model)):
        base = layer.base_layer
        if repack and isinstance(base, PackedLinear):
            options = {name: value for name, value in base.options.items() if name != "shape"}
            weight = dense_weight(layer).to(model.dtype)
            try:
                replace_module(model, path, type(base).pack(weight, base.bias, **options))
            except NotImplementedError:
                raise InvalidInput(
                    f"Only the step that made them can pack layers of the kind {type(base).__name__}: fuse without "
                    "repack, and apply that step again."
                ) from None
        else:
            replace_module(model, path, _dense(base, dense_weight(layer).to(model.dtype)))
    del model.peft_config


def _dense(base: Any, weight: Tensor) -> nn.Module:
    """A plain layer with a weight ``(out, in)`` and the bias of another."""
    if isinstance(base, Conv1D):
        made: nn.Module = Conv1D(base.nf, base.nx)
        weight = weight.t().contiguous()
    else:
        made = nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
    made.weight = nn.Parameter(weight, requires_grad=False)
    made.register_parameter(
        "bias", None if base.bias is None else nn.Parameter(base.bias.detach(), requires_grad=False)
    )
    return made.eval()


def peft_library() -> Any:
    """The library, imported where it is used; bitsandbytes first, or it would be imported with its messages."""
    if (found := imported("peft")) is not None:
        return found
    with IMPORTING:
        with contextlib.suppress(NotAvailable):
            bitsandbytes()
        library("peft.tuners.lora", "Working with adapters")
        return library("peft", "Working with adapters")
