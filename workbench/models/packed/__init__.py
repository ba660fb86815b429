"""Linear layers whose weight is stored in fewer bits, each run by a kernel of the device.

Every class packs a dense weight ``(out, in)`` with `pack`, multiplies in `forward`, and gives the weight back with
`dequantize`. Its buffers are all that is saved; `options` holds the rest, so that `unpack_module` can rebuild it.
"""

from transformers.pytorch_utils import Conv1D

from workbench.models.packed.base import (
    KINDS,
    Packed,
    PackedLinear,
    dense_weight,
    fast_bfloat16,
    is_adapted,
    linear_layers,
    replace_module,
    unpack_module,
)
from workbench.models.packed.bits4 import Bits4Linear, LLMInt8Linear, bitsandbytes
from workbench.models.packed.fp8 import FP8Linear
from workbench.models.packed.groups import GroupLinear, pack_bits, stored_scale, stored_zero, unpack_bits
from workbench.models.packed.int8 import Int8DynamicLinear, Int8Embedding, Int8Linear
from workbench.models.packed.sparse import SemiStructuredLinear, has_sparse_product, is_semi_structured

__all__ = [
    "KINDS",
    "Bits4Linear",
    "Conv1D",
    "FP8Linear",
    "GroupLinear",
    "Int8DynamicLinear",
    "Int8Embedding",
    "Int8Linear",
    "LLMInt8Linear",
    "Packed",
    "PackedLinear",
    "SemiStructuredLinear",
    "bitsandbytes",
    "dense_weight",
    "fast_bfloat16",
    "has_sparse_product",
    "is_adapted",
    "is_semi_structured",
    "linear_layers",
    "pack_bits",
    "replace_module",
    "stored_scale",
    "stored_zero",
    "unpack_bits",
    "unpack_module",
]
