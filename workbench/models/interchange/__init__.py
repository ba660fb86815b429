"""A model with packed layers in the layouts that transformers and vLLM read, and back bit for bit.

A layout that exists holds the codes and scales of our layer as they are, so one file serves every reader. A layer that
no layout holds is dense for others, and what they cannot be told stands in a file of our own.
"""

import copy
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D

from workbench.core.errors import InvalidInput
from workbench.models.experts import all_experts
from workbench.models.interchange import bitsandbytes, compressed, others
from workbench.models.interchange.fallback import READERS as FALLBACK_READERS
from workbench.models.interchange.fallback import ROUNDED, dense
from workbench.models.interchange.form import Form
from workbench.models.packed import Int8Embedding, Packed, replace_module, unpack_module

LIBRARIES = {"bitsandbytes": bitsandbytes, "compressed-tensors": compressed}
READ_FROM = {"bitsandbytes": bitsandbytes.others, "compressed-tensors": others.layers}
READERS = bitsandbytes.READERS | compressed.READERS | FALLBACK_READERS
SHARED = "shared"  # an embedding that reads the rows of a layer
__all__ = ["READ_FROM", "Interchange", "note", "rebuild", "write"]


@dataclass(frozen=True, eq=False)
class Interchange:
    """A model as files hold it.

    Attributes:
        tensors: what any reader takes, by name.
        own: what only our reader takes, by name.
        entries: how our reader rebuilds each packed module, by path.
        quantization: the `quantization_config` of config.json; None where other readers see every layer as dense.
        experts: paths of the experts that are kept one by one, since some of them are packed; others see them dense.
    """

    tensors: dict[str, Tensor]
    own: dict[str, Tensor] = field(default_factory=dict)
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    quantization: dict[str, Any] | None = None
    experts: tuple[str, ...] = ()


def write(model: PreTrainedModel) -> Interchange:
    """The model in the layout that plain transformers reads.

    A file follows one library: the one that has a layout for most of the packed layers. The others are dense in 16
    bits. So is an output head that shares int8 rows with the token embedding, because no reader knows such a table.
    """
    packed = {path: module for path, module in model.named_modules() if isinstance(module, Packed)}
    state = {name: tensor for name, tensor in model.state_dict().items() if name.rpartition(".")[0] not in packed}
    mixtures = dict(all_experts(model))
    apart = tuple(path for path, each in mixtures.items() if any(isinstance(m, Packed) for m in each.modules()))
    tensors = {name: tensor for name, tensor in state.items() if not _within(name, mixtures)}
    for path, each in mixtures.items():
        tensors |= {f"{path}.{name}": tensor for name, tensor in each.joined().items()}
    if not packed:
        return Interchange(tensors)
    plain = _plain_modules(model.config)
    single = {path: layer for path, layer in packed.items() if not _within(path, mixtures)}
    forms = _forms(single, plain, model.dtype)
    forms |= {path: Form("own", {}, own=layer.saved_tensors()) for path, layer in packed.items() if path not in forms}
    for path, layer in packed.items():
        shown = getattr(layer, "bias", None) is not None and not _within(path, mixtures)
        bias = {"bias": layer.get_buffer("bias")} if shown else {}
        tensors |= {f"{path}.{name}": tensor for name, tensor in (forms[path].tensors | bias).items()}
    return Interchange(
        tensors=tensors,
        own={f"{path}.{name}": tensor for path, form in forms.items() for name, tensor in form.own.items()}
        | {name: tensor for name, tensor in state.items() if _within(name, apart)},
        entries={
            path: {"kind": type(layer).__name__, "options": layer.options, "form": forms[path].reader}
            | forms[path].facts
            for path, layer in packed.items()
        },
        quantization=_quantization(forms, plain, model.dtype),
        experts=apart,
    )


def _within(name: str, paths: Collection[str]) -> bool:
    """Whether something is part of a module at one of these paths."""
    return any(name.startswith(f"{path}.") for path in paths)


def rebuild(model: nn.Module, entries: dict[str, dict[str, Any]], tensors: dict[str, Tensor]) -> None:
    """Put the packed modules that `write` recorded in their places.

    Args:
        model: a model of dense layers.
        entries: as recorded. Exports of format 1 have no "form": they hold the layers' own tensors.
        tensors: what was written, by name; of two with the same name, the one that only we read. Those of packed
            modules are taken out, so that no layer is held in both its forms but the one that is made.

    Raises:
        InvalidInput: a form or a kind of layer is not known.
    """
    parts: dict[str, dict[str, Tensor]] = {path: {} for path in entries}
    for name in list(tensors):
        path = next((path for path in _owners(name) if path in parts), None)
        if path is not None:
            parts[path][name.removeprefix(f"{path}.")] = tensors.pop(name)
    alone = {path: entry for path, entry in entries.items() if entry.get("form") != SHARED}
    for path, entry in alone.items():
        reader = READERS.get(entry.get("form", "own"))
        if reader is None:
            raise InvalidInput(
                f"This export holds layers in the form '{entry['form']}', which this version cannot read."
            )
        part = parts.pop(path)
        bias = {"bias": part["bias"]} if "bias" in part else {}
        saved = reader(entry["options"], part, entry) | bias
        replace_module(model, path, unpack_module(entry["kind"], entry["options"], saved))
    for path, entry in entries.items():
        if path not in alone:
            head = model.get_submodule(entry["head"])
            rows = {name: head.get_buffer(name) for name in ("weight", "scale")}
            replace_module(model, path, unpack_module(entry["kind"], entry["options"], rows))


def note(entries: dict[str, dict[str, Any]]) -> str:
    """What other readers do differently from us, in a sentence or two; empty if nothing."""
    forms = [entry.get("form") for entry in entries.values() if entry.get("form") != SHARED]
    rounded = sum(form in ROUNDED for form in forms)
    shifted = sum(bool(entry.get("shift")) for entry in entries.values())
    seen = [f"{rounded} of {len(forms)} packed layers dense in 16 bits"] if rounded else []
    seen += [f"{shifted} in 8 bits with rounded zero points"] if shifted else []
    said = [f"Other readers see {' and '.join(seen)}."] if seen else []
    if dynamic := sum(form == compressed.DYNAMIC for form in forms):
        said.append(f"They round the activations of {dynamic} layers in their own way, which matters as much as ours.")
    return " ".join(said)


def _forms(packed: dict[str, Packed], plain: dict[str, nn.Module], dtype: torch.dtype) -> dict[str, Form]:
    """How each packed module is written, in a model that computes in a type."""
    heads = {path: _head_of(module, packed) for path, module in packed.items() if isinstance(module, Int8Embedding)}
    found: dict[str, Form] = {}
    for library in LIBRARIES.values():
        taken = {path: layer for path, layer in packed.items() if type(plain.get(path)) in library.TAKES}
        found |= library.forms({path: layer for path, layer in taken.items() if path not in heads.values()})
    counts = Counter(form.library for form in found.values())
    chosen = max(counts, key=lambda library: counts[library], default="")
    forms = {path: form for path, form in found.items() if form.library == chosen}
    for path, layer in packed.items():
        if path not in forms and path not in heads:
            forms[path] = dense(layer, transposed=isinstance(plain.get(path), Conv1D))
            if (
                chosen.startswith("bitsandbytes") and dtype == torch.float32
            ):  # beside its layers transformers casts none
                shown = {"weight": forms[path].tensors["weight"].float()}
                forms[path] = replace(forms[path], tensors=forms[path].tensors | shown)
    for path, head in heads.items():
        forms[path] = Form(SHARED, {"weight": forms[head].tensors["weight"]}, facts={"head": head})
    return forms


def _head_of(embedding: Packed, packed: dict[str, Packed]) -> str:
    """Path of the layer whose rows the embedding reads."""
    rows = embedding.get_buffer("weight").data_ptr()
    return next(
        path
        for path, layer in packed.items()
        if layer is not embedding and layer.get_buffer("weight").data_ptr() == rows
    )


def _plain_modules(config: PreTrainedConfig) -> dict[str, nn.Module]:
    """The modules that any other reader builds from the configuration, by path and without memory."""
    with torch.device("meta"), no_init_weights():
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=False)
    return dict(model.named_modules())


def _quantization(forms: dict[str, Form], plain: dict[str, nn.Module], dtype: torch.dtype) -> dict[str, Any] | None:
    """The `quantization_config` of config.json."""
    written = {path: form for path, form in forms.items() if form.library}
    if not written:
        return None
    others = [path for path, module in plain.items() if isinstance(module, nn.Linear | Conv1D) and path not in written]
    name = next(iter(written.values())).library.split()[0]
    settings: dict[str, Any] = LIBRARIES[name].quantization(written, others, dtype)
    return settings


def _owners(name: str) -> list[str]:
    """The paths that a tensor's name may belong to, the longest first."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1)]
