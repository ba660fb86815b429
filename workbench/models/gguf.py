"""Models in a .gguf file: unpacked once, and read from a cache after that."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, modeling_gguf_pytorch_utils

from workbench.core import files
from workbench.core.errors import NotAvailable, WorkbenchError
from workbench.core.optional import library
from workbench.core.progress import Progress
from workbench.models import export
from workbench.models.pretrained import (
    Read,
    check_finite,
    forget_quantizer,
    quietly,
    read_tokenizer,
    read_weights,
    refusing,
)

CONVERSION = 3  # of cached models; raised when converting gives something else


def convert(file: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of a file with dense weights, and its tokenizer."""
    with refusing(str(file)), quietly(), _without_bar():
        model = read_weights(str(file.parent), dtype, gguf_file=file.name)
        tokenizer = read_tokenizer(str(file.parent), gguf_file=file.name)
    forget_quantizer(model)
    check_finite(model)
    model.eval()
    model.requires_grad_(False)
    return model, tokenizer


def read(file: Path, device: torch.device, dtype: torch.dtype, progress: Progress) -> Read:
    """Load a file: from the cache if a file of the same content was converted before, else convert it.

    Raises:
        NotAvailable: there is no such file, or gguf is not installed.
        InvalidInput: it is not the model of a causal language model.
    """
    if not files.is_kind(file, Path.is_file):
        raise NotAvailable(f"There is no file '{file}': check the path.")
    kind = str(dtype).removeprefix("torch.")
    folder = files.cache_folder() / f"gguf-{files.sha256(file)[:24]}-{kind}-v{CONVERSION}"
    if not export.is_export(folder):
        progress.start(f"Converting {file.name}: once, it is kept for the next time", 2)
        note = _note(file)
        model, tokenizer = convert(file, dtype)
        progress.advance()
        try:
            export.write_export(folder, model, tokenizer, {"name": file.stem, "note": note}, overwrite=folder.exists())
        except WorkbenchError:  # there is no room: it is converted again next time
            torch.nn.Module.to(model, device)
            return model, tokenizer, (note,)
        progress.advance()
    model, tokenizer, record = export.read_export(folder, device, dtype)
    return model, tokenizer, (record["note"],)


def _note(file: Path) -> str:
    """How the file holds most of its weights."""
    sizes: Counter[str] = Counter()
    with refusing(str(file)):
        reader = library("gguf", "Reading .gguf files").GGUFReader(str(file))
        said = reader.fields.get("general.description") if "general.quantized_by" in reader.fields else None
        own = f" {said.contents()}" if said is not None else ""
        for tensor in reader.tensors:
            sizes[tensor.tensor_type.name] += int(tensor.n_elements)
    kind = sizes.most_common(1)[0][0] if sizes else "nothing"
    unpacked = f"Its weights were unpacked from {kind} when it was loaded"
    return f"{unpacked}: they are dense here, as rounded as in the file.{own}"


@contextlib.contextmanager
def _without_bar() -> Iterator[None]:
    """Without the bar that transformers shows while it unpacks such a file, whatever it was told."""
    reader: Any = modeling_gguf_pytorch_utils
    bar, reader.tqdm = reader.tqdm, lambda tensors, **_: tensors
    try:
        yield
    finally:
        reader.tqdm = bar
