"""What transformers reads: a whole causal language model and its tokenizer from the hub or a folder, or a refusal."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import logging as hub_logging
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from workbench.core import files
from workbench.core.errors import InvalidInput, NotAvailable, WorkbenchError, first_line
from workbench.models import quantized, sharing
from workbench.models.packed import Packed

Read = tuple[PreTrainedModel, PreTrainedTokenizerBase, tuple[str, ...]]  # sentences on how it was read come last


@contextmanager
def quietly() -> Iterator[None]:
    """Keep transformers' remarks, its retries and progress bars, each a widget in a notebook, to itself."""
    levels = [(each, each.get_verbosity()) for each in (transformers_logging, hub_logging)]
    for each, _ in levels:
        each.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        for each, level in levels:
            each.set_verbosity(level)
        transformers_logging.enable_progress_bar()


def read(source: str, dtype: torch.dtype, device: torch.device) -> Read:
    """Load a model and its tokenizer from the hub or a folder.

    Raises:
        NotAvailable: it is not to be had.
        InvalidInput: it is not whole, not a causal language model, without a tokenizer, or quantized by a library that
            is not read here.
    """
    with refusing(source), quietly():
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        settings = quantized.settings_of(config)
        if settings:
            quantized.check(source, settings)
        tokenizer = read_tokenizer(source)
        if settings and settings["quant_method"] in quantized.UNPACKED:
            model = read_weights(source, dtype, quantization_config=quantized.unpacking(settings))
            forget_quantizer(model)
            notes: tuple[str, ...] = (f"Its weights were unpacked from {settings['quant_method']} when it was loaded.",)
        elif settings:
            model, notes = quantized.read(source, config, settings, device, dtype)
        else:
            model, notes = read_weights(source, dtype), ()
    sharing.settle_tie(model, model.config)
    check_finite(model)
    nn.Module.to(model, device)
    return model, tokenizer, notes


def read_weights(source: str, dtype: torch.dtype, **options: Any) -> PreTrainedModel:
    """Load a dense model as transformers does.

    Raises:
        InvalidInput: a weight is missing or has another shape.
    """
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
    # transformers fills what is missing with random numbers and goes on.
    for name in sorted([*report["missing_keys"], *(str(key[0]) for key in report["mismatched_keys"])]):
        raise InvalidInput(f"'{source}' is not a whole causal language model: it lacks the weight '{name}'.")
    whole: PreTrainedModel = model
    return whole


def read_tokenizer(source: str, **options: Any) -> PreTrainedTokenizerBase:
    """Load a tokenizer.

    Raises:
        InvalidInput: its files are missing or damaged; transformers may answer with an empty vocabulary then.
    """
    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
        known = found.get_vocab().keys() - found.added_tokens_encoder.keys()
        reason = "it has no tokens"
    except Exception as error:  # a broken file fails in whatever library reads it first
        known, reason = set(), first_line(error)
    if not known:
        raise InvalidInput(
            f"'{source}' has no tokenizer that can be read ({reason}): put the tokenizer's files, such as "
            "tokenizer.json, beside its weights."
        )
    return found


def forget_quantizer(model: PreTrainedModel) -> None:
    """The weights are dense now, but the model still believes that it is quantized and refuses to be saved."""
    model.config.__dict__.pop("quantization_config", None)
    for mark in ("hf_quantizer", "is_quantized", "quantization_method"):
        vars(model).pop(mark, None)


def check_finite(model: nn.Module) -> None:
    """Raise `InvalidInput` if a weight or a scale holds NaN or infinity."""
    for path, module in model.named_modules():
        held = module.named_buffers(path, recurse=False) if isinstance(module, Packed) else iter(())
        for name, tensor in chain(module.named_parameters(path, recurse=False), held):
            if tensor.is_floating_point() and not _is_finite(tensor):
                raise InvalidInput(
                    f"The weight '{name}' holds NaN or infinity: the model file is broken, download it again."
                )


def _is_finite(tensor: Tensor) -> bool:
    if tensor.dtype == torch.float8_e4m3fn:  # it has no infinity, and one code but for the sign that is no number
        return not bool((tensor.view(torch.uint8) & 0x7F == 0x7F).any())
    return bool(torch.isfinite(tensor).all())


@contextmanager
def refusing(source: str) -> Iterator[None]:
    """Turn what other libraries say of a source into one sentence."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, WorkbenchError):
        raise
    except Exception as error:  # a broken file fails in whatever library reads it first
        raise _refusal(source, error) from None


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
