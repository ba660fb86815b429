"""Adapters in the files that peft writes and reads."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from workbench.core.errors import NotAvailable
from workbench.core.optional import library
from workbench.models.adapters import NAME, adapted_layers, inject, peft_library

FOLDER, TENSORS = "adapter", "adapter_model.safetensors"
MAGNITUDE = "lora_magnitude_vector"
PARTS = ("lora_A", "lora_B", MAGNITUDE)
PREFIX = "base_model.model."


def described(model: PreTrainedModel, config: Any) -> Any:
    """A configuration of peft's that says what the adapted layers are, and nothing that was done before.

    Args:
        model: has adapters.
        config: the one they were made by, for what the layers do not tell.
    """
    layers = dict(adapted_layers(model))
    ranks = {path: layer.r[NAME] for path, layer in layers.items()}
    roots = {path: math.sqrt(rank) if config.use_rslora else rank for path, rank in ranks.items()}
    alphas = {path: _times(layer.scaling[NAME], roots[path]) for path, layer in layers.items()}
    rank, alpha = (Counter(each.values()).most_common(1)[0][0] for each in (ranks, alphas))
    return peft_library().LoraConfig(
        r=rank,
        lora_alpha=alpha,
        rank_pattern={_pattern(path): each for path, each in ranks.items() if each != rank},
        alpha_pattern={_pattern(path): each for path, each in alphas.items() if each != alpha},
        target_modules=list(layers),
        lora_dropout=config.lora_dropout,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        bias="none",
    )


def _pattern(path: str) -> str:
    """Of a layer or its parameter."""
    return rf"{re.escape(path)}(\.weight)?"


def _times(scaling: float, root: float) -> float:
    """What divided by the root gives the scaling, to the last bit if there is such a number."""
    product = scaling * root
    near = (product, math.nextafter(product, math.inf), math.nextafter(product, -math.inf))
    return next((each for each in near if each / root == scaling), product)


def write(model: PreTrainedModel, folder: Path) -> None:
    """Write the adapter as peft's `PeftModel.from_pretrained` reads it; how far it is turned up goes into its alpha."""
    config = described(model, model.peft_config[NAME])
    config.inference_mode, config.base_model_name_or_path, config.task_type = True, "..", "CAUSAL_LM"
    if taken := _taken(model, config):
        config.target_parameters = [f"{path}.weight" for path in taken]
        config.target_modules = [path for path in config.target_modules if path not in taken]
        config.lora_dropout = 0.0  # which peft does not have beside a parameter
    config.save_pretrained(folder)
    tensors = {name: each[NAME].weight.detach().contiguous() for name, each in _parts(model)}
    save_file(tensors, folder / TENSORS)


def _taken(model: PreTrainedModel, config: Any) -> list[str]:
    """Layers that peft would take for experts of an older layout, by their names; by their parameter it does not."""
    try:
        convert = library("peft.utils.transformers_weight_conversion", "Working with adapters")
    except NotAvailable:  # an older peft knows no such layout
        return []
    found = []
    for path in config.target_modules:
        alone = peft_library().LoraConfig(target_modules=[path])
        try:
            convert.convert_peft_config_for_transformers(alone, model=model, conversions=None)
            kept = path in alone.target_modules
        except ValueError:  # it misses the other half of a fused expert
            kept = False
        if not kept:
            found.append(path)
    return found


def read(model: PreTrainedModel, folder: Path) -> None:
    """Put what `write` wrote beside the layers of a model that the caller owns."""
    config = peft_library().LoraConfig.from_pretrained(folder)
    named = [name.removesuffix(".weight") for name in config.target_parameters or ()]
    config.target_modules, config.target_parameters = [*config.target_modules, *named], None
    inject(model, config, 0)
    tensors = load_file(folder / TENSORS, device=str(model.device))
    for name, each in _parts(model):
        each[NAME].weight = nn.Parameter(tensors[name], requires_grad=False)


def _parts(model: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    """Every factor and length of the adapters, by the name that peft gives it in files."""
    for path, layer in adapted_layers(model):
        for part in PARTS:
            if NAME in getattr(layer, part):
                yield f"{PREFIX}{path}.{part}{'' if part == MAGNITUDE else '.weight'}", getattr(layer, part)


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of an adapter, by the name that peft gives it in files."""
    with safe_open(folder / TENSORS, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
