"""Models that share tensors: copied without their weights, and counted without counting twice."""

import copy
import functools
import hashlib
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from workbench.models.packed import Packed

PROBED = 4096  # values of a tensor that tell it from another
ELSEWHERE = "kept_elsewhere"  # attribute of a module whose own tensors have no memory: what keeps the real ones
CONTAINERS = (dict, OrderedDict, list, set)


def share(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the module tree whose every tensor is the original's own: no weight is copied."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in _all_tensors(model)})


def shallow(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the module tree that shares everything else, configuration included: in a hundredth of a second.

    Only for models whose modules know each other by the tree alone, and for changes to the attributes of a module.
    """
    seen: dict[int, nn.Module] = {}

    def copied(module: nn.Module) -> nn.Module:
        if id(module) not in seen:
            new = seen[id(module)] = type(module).__new__(type(module))
            held = {
                name: copy.copy(value) if type(value) in CONTAINERS else value for name, value in vars(module).items()
            }
            new.__dict__.update(held)
            for name, child in module._modules.items():
                new._modules[name] = None if child is None else copied(child)
        return seen[id(module)]

    found = copied(model)
    assert isinstance(found, PreTrainedModel)
    return found


def own(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the module tree whose every parameter is a copy too, and can be trained; tied ones stay tied.

    The copies are in float32: the small steps of a training get lost in 16 bits.
    """
    copied = share(model)
    parameters: dict[int, nn.Parameter] = {}
    for module in copied.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                parameters.setdefault(id(parameter), nn.Parameter(parameter.detach().float().clone()))
                module._parameters[name] = parameters[id(parameter)]
    return copied


def fingerprint(model: PreTrainedModel) -> str:
    """Of what a model computes: of its configuration, its modules and values spread over every tensor.

    The same model loaded anew has the same; a changed adapter strength or another kind of layer has another.
    """
    seen = hashlib.sha256(model.config.to_json_string().encode())
    for name, module in model.named_modules():
        facts = (name, type(module).__name__, getattr(module, "options", None), getattr(module, "scaling", None))
        seen.update(repr(facts).encode())
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().flatten()
        chosen = values[:: max(1, values.numel() // PROBED)].contiguous().cpu()
        seen.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        seen.update(chosen.view(torch.uint8).numpy().tobytes())
    return seen.hexdigest()


def _all_tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor):
                yield value
            elif type(value).__name__ == "QuantState":
                yield from (item for item in vars(value).values() if isinstance(item, Tensor))
        yield from getattr(vars(module).get(ELSEWHERE), "tensors", {}).values()


def settle_tie(model: PreTrainedModel, config: PreTrainedConfig) -> None:
    """Make a configuration say whether head and embedding are one tensor, which some checkpoints have wrong."""
    head = getattr(model.get_output_embeddings(), "weight", None)
    embedding = getattr(model.get_input_embeddings(), "weight", None)
    if not isinstance(head, Tensor) or not isinstance(embedding, Tensor):
        return
    tied = head is embedding or (head.data_ptr() == embedding.data_ptr() != 0 and head.shape == embedding.shape)
    for each in (config, config.get_text_config()):
        if getattr(each, "tie_word_embeddings", tied) != tied:
            each.tie_word_embeddings = tied


def stored_dtype(model: PreTrainedModel) -> torch.dtype:
    """The floating-point type that holds every parameter; those that stay in float32 in any model aside."""
    wide = re.compile("|".join(map(re.escape, _stay_wide(model))) or "$^")
    kinds = {
        each.dtype for name, each in model.named_parameters() if each.is_floating_point() and not wide.search(name)
    }
    return functools.reduce(torch.promote_types, kinds) if kinds else model.dtype


def _stay_wide(model: PreTrainedModel) -> set[str]:
    """Parts of names of parameters that transformers keeps in float32 whatever the model's type."""
    lists = (getattr(model, name, None) for name in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"))
    return {part for each in lists if each for part in each}


def storages(model: nn.Module) -> dict[int, int]:
    """Address and size in bytes of every piece of memory that the model's tensors live in, each once."""
    found = (tensor.untyped_storage() for tensor in _all_tensors(model))
    return {each.data_ptr(): each.nbytes() for each in found if each.nbytes() and each.device.type != "meta"}


def total_bytes(models: Iterable[nn.Module]) -> int:
    """Bytes of the distinct memory behind the models."""
    merged: dict[int, int] = {}
    for model in models:
        merged |= storages(model)
    return sum(merged.values())


def weight_count(model: nn.Module) -> int:
    """How many weights the model has, packed ones counted as what they stand for, tied ones once."""
    packed = {id(m.weight): m.out_features * m.in_features for m in model.modules() if isinstance(m, Packed)}
    dense = {id(p): p.numel() for p in model.parameters()}
    return sum(packed.values()) + sum(dense.values())
