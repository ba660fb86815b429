"""Whether what was just written can be read again, found out from headers and a few layers, not from all of it."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.initialization import no_init_weights

from workbench.core.errors import WorkbenchError, first_line
from workbench.models import adapter_files
from workbench.models.experts import put_in_place
from workbench.models.interchange import SHARED, rebuild
from workbench.models.packed import Packed

Files = tuple[Path, ...]


def check(folder: Path, files: Files, manifest: dict[str, Any], model: PreTrainedModel) -> None:
    """Raise `WorkbenchError` if a reader could not make the model of the files.

    Names and shapes of all weights are compared with what the written configuration stands for; of each kind of packed
    layers one is rebuilt; the tokenizer is read.

    Args:
        folder: configuration, tokenizer and adapter.
        files: the weights; where a name is in two of them, the last one counts.
        manifest: what the export says of itself.
        model: what was written, without its adapter.
    """
    try:
        problem = _problem(folder, files, manifest, model)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a reader would stumble over
        problem = first_line(error)
    if problem:
        raise WorkbenchError(f"This model was not saved, because it could not be loaded again ({problem}).")


def _problem(folder: Path, files: Files, manifest: dict[str, Any], model: PreTrainedModel) -> str:
    packed, aliases = manifest["packed"], manifest["aliases"]
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    vars(config).pop("quantization_config", None)
    with torch.device("meta"), no_init_weights():
        plain = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    put_in_place(plain, manifest["experts"])
    written = _shapes(files)
    for name, parameter in plain.named_parameters(remove_duplicate=False):
        found = written.get(aliases.get(name, name))
        if name.rpartition(".")[0] not in packed and found != tuple(parameter.shape):
            return f"the weight '{name}' is {'missing' if found is None else 'of another shape'}"
    samples = {(entry["kind"], entry.get("form")): path for path, entry in packed.items()}
    for path in samples.values():
        chosen = {path: packed[path]}
        if chosen[path].get("form") == SHARED:
            chosen |= {chosen[path]["head"]: packed[chosen[path]["head"]]}
        rebuild(plain, chosen, _tensors(files, aliases, chosen))
        if not _same(plain.get_submodule(path), model.get_submodule(path)):
            return f"the layer '{path}' would be another one"
    if (folder / adapter_files.FOLDER).is_dir() and not adapter_files.shapes(folder / adapter_files.FOLDER):
        return "its adapter is empty"
    AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return ""


def _shapes(files: Files) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            found |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    return found


def _tensors(files: Files, aliases: dict[str, str], paths: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a few modules, by the name that each has there or shares with another."""
    found: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            held = set(opened.keys())
            names = [name for name in held | aliases.keys() if any(name.startswith(f"{path}.") for path in paths)]
            places = {name: name if name in held else aliases[name] for name in names}
            found |= {name: opened.get_tensor(place) for name, place in places.items() if place in held}
    return found


def _same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two packed modules hold the same bits."""
    if not isinstance(one, Packed) or not isinstance(other, Packed) or type(one) is not type(other):
        return False
    saved, found = other.saved_tensors(), one.saved_tensors()
    return saved.keys() == found.keys() and all(torch.equal(_bytes(saved[name]), _bytes(found[name])) for name in saved)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.cpu().reshape(-1).contiguous().view(torch.uint8)
