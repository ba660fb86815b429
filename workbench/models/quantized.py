"""Checkpoints that other libraries quantized: their codes in our layers, or a refusal that names the quantizer."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.utils.hub import cached_file

from workbench.core.errors import InvalidInput
from workbench.models.export import put_parameters, read_tensors
from workbench.models.interchange import READ_FROM
from workbench.models.packed import GroupLinear, PackedLinear, dense_weight, replace_module

UNPACKED = {"mxfp4": "Mxfp4Config", "fp8": "FineGrainedFP8Config"}  # which transformers unpacks while it loads
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def settings_of(config: PreTrainedConfig) -> dict[str, Any]:
    """What config.json says of the quantization; empty if there is none."""
    found = getattr(config, "quantization_config", None) or getattr(config, "compression_config", None)
    if not found:
        return {}
    settings: dict[str, Any] = dict(found if isinstance(found, dict) else found.to_dict())
    older = "bitsandbytes" if settings.get("load_in_4bit") or settings.get("load_in_8bit") else ""
    method = settings.get("quant_method") or older
    return settings | {"quant_method": str(getattr(method, "value", method))}


def check(source: str, settings: dict[str, Any]) -> None:
    """Raise `InvalidInput`, naming the quantizer, where neither we nor transformers can unpack a checkpoint."""
    method = settings["quant_method"]
    if method not in READ_FROM and method not in UNPACKED:
        raise InvalidInput(
            f"'{source}' is quantized by {method[:40] or 'an unnamed library'}, which is not read here: load the model "
            "that it was made from, and apply a step such as quantize.GPTQ()."
        )


def unpacking(settings: dict[str, Any]) -> Any:
    """What tells transformers to load a checkpoint as a dense one."""
    import transformers

    given = {name: value for name, value in settings.items() if name not in ("quant_method", "dequantize")}
    return getattr(transformers, UNPACKED[settings["quant_method"]])(**given, dequantize=True)


def read(
    source: str, config: PreTrainedConfig, settings: dict[str, Any], device: torch.device, dtype: torch.dtype
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Load a checkpoint of bitsandbytes or compressed-tensors with its codes as they are; sentences on its scales.

    Raises:
        InvalidInput: a weight is missing, or stored in a way that none of our layers knows.
    """
    plain = copy.deepcopy(config)
    for name in ("quantization_config", "compression_config"):
        vars(plain).pop(name, None)
    with no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(plain, dtype=dtype, trust_remote_code=False)
    torch.nn.Module.to(model, device)
    tensors = _tensors(source, device)
    scales = [each for name, each in tensors.items() if name.endswith(".weight_scale")]
    inexact = any(not torch.equal(each.float(), each.bfloat16().float()) for each in scales)
    try:
        layers = READ_FROM[settings["quant_method"]](settings, tensors)
    except InvalidInput as error:
        raise InvalidInput(f"'{source}' cannot be loaded: {str(error)[0].lower()}{str(error)[1:]}") from None
    _put_layers(source, model, layers, dtype)
    _put_rest(source, model, tensors, dtype)
    _generation(model, source)
    grouped = any(isinstance(layer, GroupLinear) for layer in layers.values())
    return model, ("The scales of its groups were rounded to bfloat16 when it was loaded.",) * (grouped and inexact)


def _put_layers(source: str, model: PreTrainedModel, layers: dict[str, PackedLinear], dtype: torch.dtype) -> None:
    modules = dict(model.named_modules())
    for path, layer in layers.items():
        if path not in modules or tuple(dense_weight(modules[path]).shape) != tuple(layer.options["shape"]):
            raise InvalidInput(f"'{source}' holds a packed layer '{path}' that its model does not have.")
        if layer.bias is not None:
            layer.bias = layer.bias.to(dtype)
        replace_module(model, path, layer)


def _put_rest(source: str, model: PreTrainedModel, tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Dense weights and buffers."""
    for one, other in model.get_expanded_tied_weights_keys(all_submodels=True).items():
        if (one in tensors) != (other in tensors):
            tensors[one] = tensors[other] = tensors[one if one in tensors else other]
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name not in tensors or tensors[name].shape != parameter.shape:
            raise InvalidInput(f"'{source}' is not a whole causal language model: it lacks the weight '{name}'.")
    put_parameters(model, tensors, dtype)
    for name, buffer in model.named_buffers():
        if name in tensors:
            buffer.copy_(tensors[name])


def _generation(model: PreTrainedModel, source: str) -> None:
    try:
        model.generation_config = GenerationConfig.from_pretrained(source)
    except OSError:  # it has none
        model.generation_config = GenerationConfig.from_model_config(model.config)


def _tensors(source: str, device: torch.device) -> dict[str, Tensor]:
    """Every tensor of a folder or a hub id, by name."""
    index = cached_file(source, INDEX, _raise_exceptions_for_missing_entries=False)
    files = [WEIGHTS]
    if index is not None:
        named = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()
        files = sorted({Path(name).name for name in named})
    found: dict[str, Tensor] = {}
    for name in files:
        found |= read_tensors(Path(str(cached_file(source, name))), device)
    return found
