"""Four bits and LLM.int8() as bitsandbytes saves them.

Source: `QuantState.as_dict` and `Linear8bitLt`, https://github.com/bitsandbytes-foundation/bitsandbytes.
"""

import json

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from workbench.models.interchange.form import JSON, Form, Reader, Tensors
from workbench.models.packed import Bits4Linear, LLMInt8Linear, Packed, bitsandbytes

TAKES = (nn.Linear, Conv1D)
KERNEL_ROWS = 32  # the CPU kernel takes whole blocks of rows, and fails on others


def forms(layers: dict[str, Packed]) -> dict[str, Form]:
    """The layers that the library knows, by path."""
    written = {path: _bits4(layer) for path, layer in layers.items() if isinstance(layer, Bits4Linear)}
    written |= {path: _llm_int8(layer) for path, layer in layers.items() if isinstance(layer, LLMInt8Linear)}
    return {path: form for path, form in written.items() if form is not None}


def quantization(written: dict[str, Form], dense: list[str], dtype: torch.dtype) -> JSON:
    """What config.json says: the layers' settings, and which layers are none of them."""
    scheme = next(iter(written.values())).scheme
    if "load_in_4bit" in scheme:
        scheme = scheme | {"bnb_4bit_compute_dtype": str(dtype).removeprefix("torch.")}
    return {"quant_method": "bitsandbytes"} | scheme | {"llm_int8_skip_modules": dense}


def _bits4(layer: Bits4Linear) -> Form | None:
    """Blocks that do not divide a row are cut into smaller ones with the same scale: the CPU kernel takes no others."""
    rows, columns = layer.options["shape"]
    wanted, kind = layer.options["block_size"], layer.options["quant_type"]
    block = next((size for size in (256, 128, 64, 32) if size <= wanted and columns % size == 0), 0)
    if rows % KERNEL_ROWS or not block:
        return None
    saved = layer.saved_tensors()
    state = {"quant_type": kind, "blocksize": block, "dtype": "float32", "shape": [rows, columns]}
    tensors = {
        "weight": saved["weight"],
        "weight.absmax": saved["scale"].repeat_interleave(wanted // block)[: rows * columns // block],
        "weight.quant_map": bitsandbytes().functional.get_4bit_type(kind, device="cpu"),
        f"weight.quant_state.bitsandbytes__{kind}": _as_bytes(state),
    }
    scheme = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": kind,
        "bnb_4bit_use_double_quant": False,
        "bnb_4bit_quant_storage": "uint8",
    }
    return _form("bitsandbytes-4", tensors, scheme, {"every": wanted // block})


def _read_bits4(options: JSON, tensors: Tensors, facts: JSON) -> Tensors:
    return {"weight": tensors["weight"], "scale": tensors["weight.absmax"][:: facts["every"]].clone()}


def _llm_int8(layer: LLMInt8Linear) -> Form:
    saved = layer.saved_tensors()
    row_major = torch.tensor(0, dtype=torch.uint8)
    scheme = {
        "load_in_8bit": True,
        "llm_int8_threshold": layer.options["threshold"],
        "llm_int8_has_fp16_weight": False,
    }
    tensors = {"weight": saved["weight"], "SCB": saved["scale"], "weight_format": row_major}
    return _form("bitsandbytes-8", tensors, scheme, {})


def _read_llm_int8(options: JSON, tensors: Tensors, facts: JSON) -> Tensors:
    return {"weight": tensors["weight"], "scale": tensors["SCB"]}


def _form(reader: str, tensors: Tensors, scheme: JSON, facts: JSON) -> Form:
    """One config.json has one scheme for all layers."""
    return Form(reader, tensors, f"bitsandbytes {json.dumps(scheme)}", scheme, facts=facts)


def _as_bytes(value: JSON) -> torch.Tensor:
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


READERS: dict[str, Reader] = {"bitsandbytes-4": _read_bits4, "bitsandbytes-8": _read_llm_int8}
