"""Variants as GGUF files for llama.cpp, kept in the user's cache: by content, written whole, checked when opened."""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workbench.core import files
from workbench.core.errors import WorkbenchError
from workbench.core.progress import Progress
from workbench.models.adapters import adapted_layers
from workbench.models.interchange import gguf
from workbench.models.packed import Packed

VERSION = 1  # of the files; raised when writing gives something else
MOST_BYTES = 16 << 30  # of all of them; what was used longest ago goes first


def find(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, form: str, progress: Progress
) -> tuple[Path, tuple[str, ...]]:
    """The file of a model in a form (empty for its own), written unless it is there whole; sentences on what it holds.

    Raises:
        InvalidInput: llama.cpp cannot run such a model.
        WorkbenchError: the disk is full or the cache cannot be written.
    """
    gguf.check(model, tokenizer)
    folder = files.cache_folder() / "llamacpp"
    path = folder / f"{content(model, tokenizer, form)[:40]}.gguf"
    notes = _whole(path)
    if notes is None:
        progress.start("Writing the model for llama.cpp: once, it is kept for the next time", 1)
        notes = _write(path, model, tokenizer, form)
        progress.advance()
    with suppress(OSError):
        os.utime(path)
    _sweep(folder, path)
    return path, notes


def content(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, form: str) -> str:
    """Hash of all that goes into a file."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    facts = [VERSION, form, model.config.to_json_string(), "" if backend is None else backend.to_str()]
    facts += [str(tokenizer.chat_template), str(tokenizer.special_tokens_map)]
    facts += [(path, module.options) for path, module in model.named_modules() if isinstance(module, Packed)]
    facts += [(path, layer.scaling) for path, layer in adapted_layers(model)]
    seen = hashlib.sha256(json.dumps(facts, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        seen.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        seen.update(tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy())
    return seen.hexdigest()


def _write(path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, form: str) -> tuple[str, ...]:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise files.write_refused(path, error) from None
    notes = gguf.write(path, model, tokenizer, "variant", form)
    record = {"sha256": files.sha256(path), "notes": notes}
    files.write_text(path.with_suffix(".json"), json.dumps(record))
    return notes


def _whole(path: Path) -> tuple[str, ...] | None:
    """What is known of a file that is as it was written; None if it is not."""
    try:
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        return tuple(record["notes"]) if record["sha256"] == files.sha256(path) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _sweep(folder: Path, keep: Path) -> None:
    """Remove what was used longest ago until the rest takes no more than it may; an open file stays readable."""
    with suppress(OSError, WorkbenchError):
        found = sorted(folder.glob("*.gguf"), key=lambda file: file.stat().st_mtime)
        total = sum(file.stat().st_size for file in found)
        for file in found:
            if total <= MOST_BYTES:
                return
            if file != keep:
                total -= file.stat().st_size
                file.unlink(missing_ok=True)
                file.with_suffix(".json").unlink(missing_ok=True)
