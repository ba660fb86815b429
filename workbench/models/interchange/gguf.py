"""A model and its tokenizer as one GGUF file, which llama.cpp and programs built on it run.

The names of tensors and settings are those of llama.cpp's own converter, the codes of packed layers ours.
Source: https://github.com/ggml-org/llama.cpp/blob/master/convert_hf_to_gguf.py.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workbench.core import files
from workbench.core.errors import InvalidInput
from workbench.core.optional import library
from workbench.models.experts import all_experts
from workbench.models.interchange import gguf_words
from workbench.models.interchange.gguf_blocks import Stored, dense, stored
from workbench.models.packed import Packed, is_adapted

MAKER = "LLM Optimization Workbench"
FORMS = ("F32", "F16", "BF16", "Q8_0", "Q4_0")
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gpt2": "gpt2",
    "gpt_neox": "gptneox",
    "gemma": "gemma",
}
HEAD_ALWAYS = ("gptneox",)  # a file without an output head is refused there, tied or not
KINDS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "BF16": 32}  # llama_ftype


def save(
    path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, overwrite: bool = False
) -> tuple[str, ...]:
    """Write a file whole or not at all; sentences on what it holds otherwise than the variant does.

    Raises:
        InvalidInput: llama.cpp cannot run such a model, or another program's file is there and `overwrite` is False.
        WorkbenchError: the disk is full or the folder cannot be written.
    """
    if path.is_dir() or (path.exists() and not overwrite and not _ours(path)):
        raise InvalidInput(
            f"'{path}' exists and is no file of the workbench: choose another path or pass overwrite=True."
        )
    return write(path, model, tokenizer, name)


def _ours(path: Path) -> bool:
    with path.open("rb") as file:
        return MAKER.encode() in file.read(4096)


def write(
    path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, form: str = ""
) -> tuple[str, ...]:
    """Write a file in a form; empty keeps codes as they are, and dense weights in the model's own type.

    Adapters are fused in. A tied output head is written once.

    Raises:
        InvalidInput: llama.cpp cannot run such a model.
        WorkbenchError: the disk is full or the folder cannot be written.
    """
    check(model, tokenizer)
    gguf = library("gguf", "Writing .gguf files")
    try:
        with files.whole(path) as temporary:
            writer = gguf.GGUFWriter(None, _architecture(model))
            writer.add_string("general.quantized_by", MAKER)
            writer.add_name(name)
            tensors = dict(_tensors(model, form))
            notes = _notes(tensors)
            _settings(writer, model)
            rows = len(next(iter(tensors.values())).data)
            ends = model.generation_config.eos_token_id if model.generation_config is not None else None
            listed = frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])
            said = gguf_words.write(writer, tokenizer, rows, listed)
            notes += (said,) if said else ()
            kinds = Counter(dict.fromkeys(KINDS, 0))
            for each in tensors.values():
                kinds[each.kind] += each.data.nbytes
            writer.add_file_type(KINDS[kinds.most_common(1)[0][0]])
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            if notes:
                writer.add_description(" ".join(notes))
            for key, each in tensors.items():
                writer.add_tensor(key, each.data, raw_dtype=gguf.GGMLQuantizationType[each.kind])
            _put(writer, temporary)
    except (OSError, ValueError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise files.write_refused(path, error) from None
    return notes


def _put(writer: Any, path: Path) -> None:
    """Write all to a file, which is closed whatever happens."""
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.flush()
    finally:
        for file in writer.fout or ():
            with suppress(OSError):
                file.close()


def check(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `InvalidInput` where llama.cpp cannot run a model, as far as its configuration tells."""
    config = model.config.get_text_config()
    kind, name = config.model_type, type(model).__name__
    if kind not in ARCHITECTURES or model.config is not config or any(True for _ in all_experts(model)):
        known = ", ".join(ARCHITECTURES)
        raise InvalidInput(f"{name} cannot be written as GGUF here: it is done for the dense models of {known}.")
    windows = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    if windows or (kind == "mistral" and getattr(config, "sliding_window", None)):
        raise InvalidInput(f"{name} has a sliding window, which llama.cpp does not have for it.")
    if kind == "gemma" and not _tied(model):
        raise InvalidInput("This Gemma has an output head of its own, which llama.cpp does not have for it.")
    rope = getattr(config, "rope_parameters", None) or {}
    turns = ("default", "linear", "llama3") if ARCHITECTURES[kind] == "llama" else ("default",)
    if rope.get("rope_type", "default") not in turns:
        raise InvalidInput(
            f"{name} turns positions in the way '{rope['rope_type']}', which is not written as GGUF here."
        )
    gguf_words.described(tokenizer)


def _architecture(model: PreTrainedModel) -> str:
    return ARCHITECTURES[model.config.model_type]


def _settings(writer: Any, model: PreTrainedModel) -> None:
    """What llama.cpp must know of the configuration."""
    config, kind = model.config, _architecture(model)
    hidden, heads = config.hidden_size, config.num_attention_heads
    head = getattr(config, "head_dim", None) or hidden // heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(hidden)
    writer.add_block_count(config.num_hidden_layers)
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * hidden
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", None) or heads)
    writer.add_vocab_size(config.vocab_size)
    if kind in ("gpt2", "gptneox"):
        writer.add_layer_norm_eps(getattr(config, "layer_norm_epsilon", None) or config.layer_norm_eps)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_key_length(head)
        writer.add_value_length(head)
    if kind == "gpt2":
        return
    rope = config.rope_parameters
    writer.add_rope_dimension_count(int(head * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if kind == "gptneox":
        writer.add_parallel_residual(config.use_parallel_residual)


def _tensors(model: PreTrainedModel, form: str) -> Iterator[tuple[str, Stored]]:
    """Every tensor of the file by name, the token embedding first."""
    kind, blocks = _architecture(model), model.config.num_hidden_layers
    gguf = library("gguf", "Writing .gguf files")
    number = next(each for each, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    names = gguf.get_tensor_name_map(number, blocks)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    parts = sorted(_parts(model), key=lambda part: part[1] is not embedding)
    for path, module in parts:
        if module is head and _tied(model) and kind not in HEAD_ALWAYS:
            continue
        key = names.get_name(path)
        if key is None:
            raise InvalidInput(f"The layer '{path}' has no place in llama.cpp's model of this architecture.")
        order = _order(model, path)
        weight = _written(module, key, kind, form, module in (embedding, head), model.dtype)
        yield f"{key}.weight", weight if order is None else weight._replace(data=weight.data[order])
        bias = getattr(module.base_layer if is_adapted(module) else module, "bias", None)
        if isinstance(bias, Tensor):
            flat = bias.detach().float().cpu().numpy()
            yield f"{key}.bias", Stored(flat if order is None else flat[order], "F32")
    turned = getattr(getattr(model.base_model, "rotary_emb", None), "inv_freq", None)
    if turned is not None and model.config.rope_parameters.get("rope_type", "default") != "default":
        size = 2 * len(turned)
        plain = model.config.rope_parameters["rope_theta"] ** -(torch.arange(0, size, 2).double() / size)
        yield "rope_freqs.weight", Stored((plain / turned.double().cpu()).float().numpy(), "F32")


def _written(module: nn.Module, key: str, kind: str, form: str, end: bool, own: torch.dtype) -> Stored:
    """A module's weight: what is no matrix, or counts positions, in float32."""
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and weight.dim() == 1 and not isinstance(module, Packed):
        flat = weight.detach().float().cpu() + (1.0 if kind == "gemma" else 0.0)  # Gemma counts from one
        return Stored(flat.numpy(), "F32")
    if key == "position_embd":
        return dense(module.get_parameter("weight"), "F32")
    return stored(module, "Q8_0" if form == "Q4_0" and end else form, own)


def _parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Path and module of everything that has a weight; a layer with an adapter is one."""
    inside = "\0"
    for path, module in model.named_modules(remove_duplicate=False):
        if path.startswith(inside):
            continue
        if is_adapted(module):
            inside = f"{path}."
            yield path, module
        elif isinstance(module, Packed) or module._parameters.get("weight") is not None:
            yield path, module


def _tied(model: PreTrainedModel) -> bool:
    """Whether head and embedding are one tensor, dense or packed."""
    pair = (model.get_input_embeddings(), model.get_output_embeddings())
    one, other = (getattr(each, "weight", None) for each in pair)
    return isinstance(one, Tensor) and isinstance(other, Tensor) and one.data_ptr() == other.data_ptr()


def _order(model: PreTrainedModel, path: str) -> np.ndarray[Any, Any] | None:
    """The order that llama.cpp wants the rows of a layer in, where it is not ours."""
    config, last = model.config, path.rpartition(".")[2]
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    if _architecture(model) == "llama" and last in ("q_proj", "k_proj"):  # pairs of a rotation side by side
        count = heads if last == "q_proj" else config.num_key_value_heads
        return np.arange(count * size).reshape(count, 2, -1).swapaxes(1, 2).ravel()
    if last == "query_key_value":  # all queries, all keys, all values
        return np.arange(3 * heads * size).reshape(heads, 3, -1).swapaxes(0, 1).ravel()
    return None


def _notes(tensors: dict[str, Stored]) -> tuple[str, ...]:
    counts = Counter(each.said for each in tensors.values() if each.said)
    return tuple(f"In the file are {count} layers {said}." for said, count in counts.items())
