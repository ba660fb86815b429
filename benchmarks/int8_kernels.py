"""Which kernel multiplies by int8 weights fastest here: every candidate on the default model's layer shapes.

Weight-only and dynamic candidates are timed on one token (decoding) and on 128 (reading a prompt), all layers of the
model in turn so that no weight stays in a cache. torchao is timed too if it is installed.

    python benchmarks/int8_kernels.py
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from common import interleaved, write_result
from torch import Tensor

from workbench.models.packed import Int8DynamicLinear, Int8Linear

SHAPES = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]
LAYERS, ROUNDS = 30, 8


def candidates() -> dict[str, tuple[Callable[[Tensor], Any], Callable[[Tensor, Any], Tensor]]]:
    """Name to (pack a weight, multiply rows by it)."""
    torch.backends.quantized.engine = "fbgemm"

    def int8(weight: Tensor) -> tuple[Tensor, Tensor]:
        packed = Int8Linear.pack(weight, None)
        return packed.weight, packed.scale

    def per_channel(weight: Tensor) -> Any:
        scale = (weight.abs().amax(1) / 127).double()
        zero = torch.zeros(weight.shape[0], dtype=torch.long)
        return torch.ops.quantized.linear_prepack(torch.quantize_per_channel(weight, scale, zero, 0, torch.qint8), None)

    found: dict[str, Any] = {
        "float32": (lambda w: w, F.linear),
        "bfloat16": (lambda w: w.bfloat16(), lambda x, w: F.linear(x.bfloat16(), w).float()),
        "Int8 (ours: _weight_int8pack_mm in bfloat16)": (lambda w: Int8Linear.pack(w, None), lambda x, m: m(x)),
        "_weight_int8pack_mm in float32": (int8, lambda x, q: torch._weight_int8pack_mm(x, *q)),
        "int8 unpacked, then float32": (int8, lambda x, q: F.linear(x, q[0].float()) * q[1]),
        "Int8Dynamic (ours: _int_mm)": (lambda w: Int8DynamicLinear.pack(w, None), lambda x, m: m(x)),
        "quantized.linear_dynamic (fbgemm)": (per_channel, lambda x, p: torch.ops.quantized.linear_dynamic(x, p)),
    }
    return found | torchao_candidates()


def torchao_candidates() -> dict[str, Any]:
    """Both int8 forms of torchao, eager, if it is installed."""
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_
    except ImportError:
        return {}

    def packer(config: Any) -> Callable[[Tensor], Any]:
        def pack(weight: Tensor) -> Any:
            layer = torch.nn.Sequential(torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False))
            layer[0].weight.data = weight
            quantize_(layer, config)
            return layer

        return pack

    return {
        "torchao Int8WeightOnly, eager": (packer(Int8WeightOnlyConfig()), lambda x, m: m(x)),
        "torchao Int8DynamicActivationInt8Weight, eager": (
            packer(Int8DynamicActivationInt8WeightConfig()),
            lambda x, m: m(x),
        ),
    }


@torch.no_grad()
def main() -> None:
    """Time every candidate in turn."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    weights = [torch.randn(shape) / shape[1] ** 0.5 for _ in range(LAYERS) for shape in SHAPES]
    packed = {name: [(w.shape[1], pack(w)) for w in weights] for name, (pack, _) in candidates().items()}
    result = {}
    for tokens in (1, 128):
        rows = {columns: torch.randn(tokens, columns) for columns in (576, 1536)}
        works = {
            name: lambda name=name, multiply=multiply, rows=rows: [multiply(rows[k], w) for k, w in packed[name]]
            for name, (_, multiply) in candidates().items()
            if not (tokens > 1 and "pack_mm in float32" in name)  # many seconds
        }
        times = interleaved(works, ROUNDS)
        result[f"{tokens} tokens, ms for all layers"] = {
            name: round(1e3 * sorted(values)[len(values) // 2], 2) for name, values in times.items()
        }
    write_result("int8_kernels", result)


if __name__ == "__main__":
    main()
