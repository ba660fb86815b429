"""The repeated blocks of a decoder, and keeping a model that is cut down true to its configuration."""

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from workbench.core.errors import InvalidInput, first_line
from workbench.core.progress import Progress
from workbench.models.packed import linear_layers

Cuts = dict[tuple[str, int], Tensor]  # name of a tensor and one of its dimensions, to the indices that stay
POSITIONS = ("layer_idx", "layer_id", "layer_number", "block_id")  # what transformers calls a block's place


def decoder_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Path and list of the model's repeated blocks: the longest list of modules that hold linear layers.

    Of a model that also sees or hears, the blocks of its language model.

    Raises:
        InvalidInput: the model has no such list.
    """
    inside = language_model(model)
    found: list[tuple[str, nn.ModuleList]] = []
    for path, module in model.named_modules():
        within = any(path.startswith(f"{outer}.") for outer, _ in found)  # such as the experts of one block
        if not path.startswith(inside) or within or not isinstance(module, nn.ModuleList) or not len(module):
            continue
        if all(any(linear_layers(block)) for block in module):
            found.append((path, module))
    if not found:
        raise InvalidInput(f"{type(model).__name__} has no list of decoder blocks: this step cannot work on it.")
    return max(found, key=lambda item: len(item[1]))


def language_model(model: PreTrainedModel) -> str:
    """Where the part that reads text begins, as the start of a path; empty if that is the whole model."""
    text = model.config.get_text_config()
    if text is model.config:
        return ""
    parts = ((path, getattr(module, "config", None)) for path, module in model.named_modules())
    return next((f"{path}." for path, config in parts if path and type(config) is type(text)), "")


def skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    """The model as it would be read back from its written configuration: every shape, and no memory.

    Raises:
        InvalidInput: transformers refuses the configuration.
    """
    try:
        written = type(config).from_dict(config.to_dict())
        with no_init_weights(), torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(written, trust_remote_code=False)
    except Exception as error:  # a configuration is checked by its own class and by every module that reads it
        raise InvalidInput(f"A model of this kind cannot have those sizes ({first_line(error)}).") from None
    model.eval()
    return model


def cut(model: PreTrainedModel, cuts: Cuts, progress: Progress) -> None:
    """Replace tensors by copies that hold only the indices that stay; one that has two names (tied) stays one.

    Args:
        model: a copy that the caller may change; its configuration already says the new sizes.
        cuts: what stays.
        progress: advances once a tensor.

    Raises:
        InvalidInput: the configuration cannot describe what is left.
    """
    done: dict[int, nn.Parameter] = {}
    names = list(dict.fromkeys(name for name, _ in cuts))
    for name in progress.track("Selecting what stays", names, len(names)):
        tensor = model.get_parameter(name)
        if id(tensor) not in done:
            left = tensor.detach()
            for dim in range(tensor.dim()):
                if (name, dim) in cuts:
                    left = left.index_select(dim, cuts[name, dim].to(left.device))
            done[id(tensor)] = nn.Parameter(left.contiguous(), requires_grad=False)
        module, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(module), attribute, done[id(tensor)])
    conform(model)


def conform(model: PreTrainedModel, only: Collection[str] | None = None) -> None:
    """Give every module the sizes and positions that the model's changed configuration stands for.

    Afterwards a model built from the configuration has the same tensors and the same settings, so what is saved is
    what is read back. Modules that a step has put in place of the architecture's own are left alone.

    Args:
        model: a copy that the caller may change; its tensors are already cut.
        only: the attributes that may change; None for any that hold whole numbers.

    Raises:
        InvalidInput: the configuration cannot describe this model.
    """
    described = skeleton(model.config)
    modules = dict(model.named_modules())
    replaced = [path for path, each in described.named_modules() if type(modules.get(path)) is not type(each)]
    if any(path not in modules or not _ours(modules[path]) for path in replaced if not _inside(path, replaced)):
        raise InvalidInput(
            f"{type(model).__name__} derives the kind of a block from its place, so its configuration cannot describe "
            "what would be left: choose other settings, or another step."
        )
    for path, each in described.named_modules():
        if _below(path, replaced):
            continue
        for name, value in _settings(each):
            if vars(modules[path]).get(name) == value:
                continue
            numbers = isinstance(value, tuple) and all(type(item) is int for item in value)
            whole = isinstance(value, list) or type(value) is int or numbers
            if not whole or not (only is None or name in only or isinstance(value, list)):
                raise InvalidInput(
                    f"{type(model).__name__} derives '{name}' from what would be removed, so its configuration cannot "
                    "describe the result: choose other settings, or another step."
                )
            setattr(modules[path], name, value)
    if _shapes(model, replaced) != _shapes(described, replaced):
        raise InvalidInput(
            f"The configuration of {type(model).__name__} cannot describe what would be left: choose other settings, "
            "or another step."
        )


def _settings(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The module's own plain values: sizes, positions, scales and switches."""
    for name, value in vars(module).items():
        if name.startswith("_") or name == "name_or_path":
            continue
        if isinstance(value, int | float | str | tuple | list | None):
            yield name, value


def _shapes(model: nn.Module, replaced: Collection[str]) -> dict[str, tuple[int, ...]]:
    """Shape of every saved tensor outside the replaced modules."""
    return {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if not _below(name.rpartition(".")[0], replaced)
    }


def _ours(module: nn.Module) -> bool:
    """Whether a step put it in place of the architecture's own; peft wraps what has an adapter."""
    return type(module).__module__.startswith(("workbench.", "peft."))


def _inside(path: str, others: Collection[str]) -> bool:
    return any(path.startswith(f"{each}.") for each in others)


def _below(path: str, replaced: Collection[str]) -> bool:
    return any(path == each or path.startswith(f"{each}.") for each in replaced)
