"""Four bits and LLM.int8() as bitsandbytes saves them.

Source: `QuantState.as_dict` and `Linear8bitLt`, https://github.com/bitsandbytes-foundation/bitsandbytes.
"""

import json

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from workbench.core.errors import InvalidInput
from workbench.models.interchange.form import JSON, Form, Reader, Tensors, bias_of, parts_of
from workbench.models.packed import Bits4Linear, LLMInt8Linear, Packed, PackedLinear, bitsandbytes

TAKES = (nn.Linear, Conv1D)
QUANT_STATE = ".weight.quant_state.bitsandbytes__"
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


def others(settings: JSON, tensors: Tensors) -> dict[str, PackedLinear]:
    """The packed layers of a checkpoint that the library wrote, by path: its codes as they are.

    Raises:
        InvalidInput: it holds codes in another order or of another kind.
    """
    found: dict[str, PackedLinear] = {}
    for name in [each for each in tensors if QUANT_STATE in each]:
        path = name.partition(QUANT_STATE)[0]
        state = json.loads(bytes(tensors.pop(name).tolist()))
        if state["quant_type"] not in ("nf4", "fp4"):
            raise InvalidInput(f"The layer '{path}' is in the format {str(state['quant_type'])[:20]}: it is not read.")
        parts = parts_of(path, tensors)
        codes = parts["weight"].view(torch.uint8).reshape(-1, 1)
        options = {"shape": state["shape"], "quant_type": state["quant_type"], "block_size": state["blocksize"]}
        found[path] = Bits4Linear(options, {"weight": codes, "scale": _scales(state, parts)} | bias_of(parts))
    for path in [each.removesuffix(".SCB") for each in tensors if each.endswith(".SCB")]:
        parts = parts_of(path, tensors)
        if int(parts.get("weight_format", torch.tensor(0))) != 0:
            raise InvalidInput(f"The layer '{path}' is in an order of one GPU: save it again with a new bitsandbytes.")
        options = {"shape": list(parts["weight"].shape), "threshold": settings.get("llm_int8_threshold", 6.0)}
        saved = {"weight": parts["weight"], "scale": parts["SCB"].float().flatten()}
        found[path] = LLMInt8Linear(options, saved | bias_of(parts))
    return found


def _scales(state: JSON, parts: Tensors) -> torch.Tensor:
    """One scale a block in float32, which may be in 8 bits themselves."""
    scale = parts["weight.absmax"]
    if "nested_blocksize" not in state:
        return scale.float()
    steps = parts["weight.nested_absmax"].repeat_interleave(state["nested_blocksize"])[: scale.numel()]
    whole: torch.Tensor = parts["weight.nested_quant_map"][scale.long()] * steps + state["nested_offset"]
    return whole


def _form(reader: str, tensors: Tensors, scheme: JSON, facts: JSON) -> Form:
    """One config.json has one scheme for all layers."""
    return Form(reader, tensors, f"bitsandbytes {json.dumps(scheme)}", scheme, facts=facts)


def _as_bytes(value: JSON) -> torch.Tensor:
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


READERS: dict[str, Reader] = {"bitsandbytes-4": _read_bits4, "bitsandbytes-8": _read_llm_int8}
