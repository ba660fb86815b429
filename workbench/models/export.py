"""Exports: a folder of safetensors that plain transformers reads too, every file hashed, written all or nothing."""

import contextlib
import copy
import ctypes
import hashlib
import json
import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.initialization import no_init_weights

from workbench.core.errors import Corrupt, InvalidInput
from workbench.core.files import is_kind, remove, sha256, sibling, to_disk, write_refused, write_text
from workbench.models import adapter_files, adapters, readback, sharing
from workbench.models.experts import put_in_place
from workbench.models.interchange import rebuild, write

MANIFEST = "workbench.json"
WEIGHTS = "model.safetensors"
OWN = "workbench.tensors"  # safetensors by another suffix, since some readers take every *.safetensors of a folder
FORMAT = 4
READABLE = (1, 2, 3, 4)


def is_export(path: Path) -> bool:
    """Whether the folder is an export of ours."""
    return is_kind(path / MANIFEST, Path.is_file)


def write_export(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, record: dict[str, Any], overwrite: bool
) -> None:
    """Write model, tokenizer and manifest to a folder, all or nothing; an older export there stays until the end.

    Raises:
        InvalidInput: the folder holds something that is not an export of ours and `overwrite` is False.
        WorkbenchError: the disk is full, the folder cannot be written, or what was written cannot be read again.
    """
    temporary = sibling(folder)
    try:
        if folder.exists() and not overwrite and not is_export(folder) and (folder.is_file() or any(folder.iterdir())):
            raise InvalidInput(
                f"'{folder}' exists and is not an export of the workbench: choose another path or pass overwrite=True."
            )
        temporary.mkdir(parents=True)
        _write_files(temporary, model, tokenizer, record)
        swap(temporary, folder)
    except (OSError, ValueError, SafetensorError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise write_refused(folder, error) from None
    finally:
        with contextlib.suppress(OSError, ValueError):
            remove(temporary)


def read_export(
    folder: Path, device: torch.device, dtype: torch.dtype | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """Load an export; every file is checked against its hash while it is read.

    Raises:
        Corrupt: a file is missing, truncated or changed; nothing is returned then.
    """
    manifest = read_manifest(folder)
    with ThreadPoolExecutor(1) as pool:  # hashing releases the interpreter lock, so it overlaps with loading
        damaged = pool.submit(_damaged, folder, manifest["sha256"])
        try:
            model = _read_model(folder, manifest, device, dtype)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception:  # whatever a damaged file broke; the damage is the reason to name
            if not damaged.result():
                raise
        if name := damaged.result():
            raise Corrupt(f"'{folder / name}' is damaged: delete the folder '{folder}' and make it again.")
    return model, tokenizer, manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """What an export says of itself, its own digest checked.

    Raises:
        Corrupt: it is missing or changed.
        InvalidInput: a newer version of the workbench wrote it.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        whole = manifest.pop("digest") == _digest(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise Corrupt(f"'{folder / MANIFEST}' is damaged: delete the folder '{folder}' and make it again.")
    if manifest["format"] not in READABLE:
        raise InvalidInput(
            f"'{folder}' was written by a newer workbench (format {str(manifest['format'])[:20]}, this one reads up to "
            f"{FORMAT}): update the workbench to load it."
        )
    return manifest


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _damaged(folder: Path, hashes: dict[str, str]) -> str | None:
    """The first file that is missing or differs from its hash."""
    for name, wanted in hashes.items():
        path = folder / name
        if not path.is_file() or sha256(path) != wanted:
            return name
    return None


def _write_files(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, record: dict[str, Any]
) -> None:
    plain = adapters.detached(model)
    exchange = write(plain)
    tensors, aliases = _unique(exchange.tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    if exchange.own:
        save_file({name: tensor.contiguous() for name, tensor in exchange.own.items()}, folder / OWN)
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = sharing.stored_dtype(plain)
    sharing.settle_tie(plain, config)
    if exchange.quantization is not None:
        config.quantization_config = exchange.quantization
    config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if adapters.has_adapter(model):
        adapter_files.write(model, folder / adapter_files.FOLDER)
    manifest = record | {
        "format": FORMAT,
        "dtype": str(config.dtype).removeprefix("torch."),
        "packed": exchange.entries,
        "aliases": aliases,
        "experts": list(exchange.experts),
        "sha256": {str(file.relative_to(folder)): sha256(file) for file in sorted(folder.rglob("*")) if file.is_file()},
    }
    files = tuple(file for file in (folder / WEIGHTS, folder / OWN) if file.exists())
    readback.check(folder, files, manifest, plain)
    write_text(folder / MANIFEST, json.dumps(manifest | {"digest": _digest(manifest)}, indent=1))
    for file in filter(Path.is_file, folder.rglob("*")):
        file.chmod((folder / MANIFEST).stat().st_mode)  # safetensors lets only its user read what it writes
    to_disk(folder)


def _unique(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors to write, and for every other name the one it shares memory with."""
    first: dict[tuple[Any, ...], str] = {}
    tensors, aliases = {}, {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if key in first:
            aliases[name] = first[key]
        else:
            first[key] = name
            tensors[name] = tensor.contiguous()
    return tensors, aliases


def _read_model(
    folder: Path, manifest: dict[str, Any], device: torch.device, dtype: torch.dtype | None
) -> PreTrainedModel:
    packed, kind = manifest["packed"], dtype or getattr(torch, manifest["dtype"])
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    vars(config).pop("quantization_config", None)  # for other readers: our layers are rebuilt from the manifest
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=kind, trust_remote_code=False)
    apart = manifest.get("experts", ())
    put_in_place(model, apart)
    tensors = read_tensors(folder / WEIGHTS, device, apart)
    tensors |= {name: tensors[kept] for name, kept in manifest["aliases"].items()}
    if (folder / OWN).exists():
        tensors |= read_tensors(folder / OWN, device)
    rebuild(model, packed, tensors)
    put_parameters(model, tensors, dtype)
    for name, buffer in model.named_buffers():
        if name in tensors and name.rpartition(".")[0] not in packed:
            buffer.copy_(tensors[name])
    model.to(device)  # the buffers that are left: dense weights that are not read never get there
    sharing.settle_tie(model, model.config)
    if (folder / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    if (folder / adapter_files.FOLDER).is_dir():
        adapter_files.read(model, folder / adapter_files.FOLDER)
    model.eval()
    model.requires_grad_(False)
    loaded: PreTrainedModel = model
    return loaded


def put_parameters(model: torch.nn.Module, tensors: dict[str, Tensor], dtype: torch.dtype | None) -> None:
    """Give a model its parameters by name, in their own type or another; one tensor under two names stays one.

    Raises:
        KeyError: one of them is missing.
    """
    made: dict[int, torch.nn.Parameter] = {}
    for name, _ in list(model.named_parameters(remove_duplicate=False)):
        tensor = tensors[name]
        value = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
        module, _, attribute = name.rpartition(".")
        made.setdefault(id(tensor), torch.nn.Parameter(value, requires_grad=False))
        setattr(model.get_submodule(module), attribute, made[id(tensor)])


def read_tensors(file: Path, device: torch.device, without: Collection[str] = ()) -> dict[str, Tensor]:
    """Tensors by name, those of some modules left out.

    A clone lives in torch's allocator and no longer depends on the file, as a view of it would.
    """
    with safe_open(file, framework="pt", device=str(device)) as opened:
        names = [name for name in opened.keys() if name.rpartition(".")[0] not in without]  # noqa: SIM118
        return {name: opened.get_tensor(name).clone() for name in names}


def swap(temporary: Path, folder: Path) -> None:
    """Put the finished folder in place; whatever stood there is removed last."""
    if not folder.exists() and not folder.is_symlink():
        os.rename(temporary, folder)
    elif not _exchange(temporary, folder):  # a kernel or file system without it: a kill in between leaves `.old`
        retired = temporary.with_name(f"{temporary.name}.old")
        os.rename(folder, retired)
        try:
            os.rename(temporary, folder)
        except OSError:
            os.rename(retired, folder)
            raise
        remove(retired)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one step (renameat2 with RENAME_EXCHANGE); False where that does not exist."""
    current_folder, exchange = -100, 2
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    return bool(rename(current_folder, os.fsencode(one), current_folder, os.fsencode(other), exchange) == 0)
