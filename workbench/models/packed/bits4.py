"""The formats of bitsandbytes: NF4, FP4 and LLM.int8()."""

import logging
import sys
from collections.abc import Callable, Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor

from workbench.core.errors import NotAvailable, first_line
from workbench.core.optional import IMPORTING, imported, library
from workbench.models.packed.base import PackedLinear
from workbench.models.packed.products import Product


class LLMInt8Linear(PackedLinear):
    """LLM.int8(): int8 except for activation columns above a threshold, which stay in 16 bits (bitsandbytes)."""

    weight: Tensor
    scale: Tensor
    bits = 8

    @classmethod
    def pack_weight(cls, weight: Tensor, **options: Any) -> dict[str, Tensor]:
        halves = weight.detach().half()
        quantized, scale, _ = _kernel(lambda: bitsandbytes().functional.int8_vectorwise_quant(halves), weight)
        return {"weight": quantized, "scale": scale}

    def dequantize(self) -> Tensor:
        return self.weight.float() * self.scale.view(-1, 1).float() / 127

    def products(self, rows: int) -> Mapping[str, Product]:
        """The one there is."""
        return {"bitsandbytes": type(self).multiply}

    def multiply(self, rows: Tensor) -> Tensor:
        functional = bitsandbytes().functional
        quantized, scale, outliers = functional.int8_vectorwise_quant(rows.half(), threshold=self.options["threshold"])
        product: Tensor = torch.ops.bitsandbytes.int8_mixed_scaled_mm(
            rows, quantized, self.weight, scale, self.scale, outliers, None
        )[0]
        return product


class Bits4Linear(PackedLinear):
    """NF4 or FP4 in blocks with one scale each (bitsandbytes).

    On a CPU with AVX512-BF16 the weight is kept in the layout of the fast kernel, with 16-bit scales.
    """

    weight: Tensor
    scale: Tensor
    bits = 4

    def __init__(self, options: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super().__init__(options, tensors)
        (rows, columns), wanted = options["shape"], options["block_size"]
        block = next((size for size in (128, 64, 32) if size < wanted and columns % size == 0), wanted)
        if columns % wanted and block < wanted:  # bitsandbytes errs on a CPU where blocks do not divide a row: cut them
            self.scale = self.scale.repeat_interleave(wanted // block)[: rows * columns // block]
            self.options = options | {"block_size": block}
        self.state = self._state(self.scale)
        if self._fast_kernel():
            functional = bitsandbytes().functional
            self.weight, self.state = functional._convert_weight_packed_for_cpu(self.weight, self.state)
            self.scale = self.state.absmax

    @classmethod
    def pack_weight(cls, weight: Tensor, **options: Any) -> dict[str, Tensor]:
        kind = {"blocksize": options["block_size"], "quant_type": options["quant_type"]}
        whole = weight.detach().contiguous()
        packed, state = _kernel(lambda: bitsandbytes().functional.quantize_4bit(whole, **kind), weight)
        return {"weight": packed, "scale": state.absmax}

    def saved_tensors(self) -> dict[str, Tensor]:
        tensors = super().saved_tensors()
        if self._fast_kernel():
            # The inverse restores the weight but leaves the scales (blocks, out), and it changes the state it is given.
            weight, _ = bitsandbytes().functional._convert_weight_packed_for_cpu_inverse(self.weight, copy(self.state))
            tensors |= {"weight": weight.view(-1, 1), "scale": self.scale.t().float().reshape(-1)}
        return tensors

    def dequantize(self) -> Tensor:
        weight, state = self.weight, self.state
        if self._fast_kernel():
            saved = self.saved_tensors()
            weight, state = saved["weight"], self._state(saved["scale"])
        dense: Tensor = bitsandbytes().functional.dequantize_4bit(weight, state)
        return dense.float()

    def dense(self, kind: torch.dtype) -> Tensor:
        if self.weight.device.type == "cpu":
            return super().dense(kind)
        state = copy(self.state)  # its kernel on a GPU writes any type
        state.dtype = kind
        dense: Tensor = bitsandbytes().functional.dequantize_4bit(self.weight, state)
        return dense

    def products(self, rows: int) -> Mapping[str, Product]:
        """The one there is."""
        return {"bitsandbytes": type(self).multiply}

    def multiply(self, rows: Tensor) -> Tensor:
        kind = torch.bfloat16 if self._fast_kernel() else rows.dtype
        product: Tensor = bitsandbytes().matmul_4bit(rows.to(kind), self.weight.t(), quant_state=self.state)
        return product

    def _state(self, scale: Tensor) -> Any:
        functional = bitsandbytes().functional
        return functional.QuantState(
            absmax=scale,
            shape=torch.Size(self.options["shape"]),
            code=functional.get_4bit_type(self.options["quant_type"], device=self.weight.device),
            blocksize=self.options["block_size"],
            quant_type=self.options["quant_type"],
            dtype=torch.float32,
        )

    def _fast_kernel(self) -> bool:
        rows, columns = self.options["shape"]
        fits = rows % 32 == 0 and columns % self.options["block_size"] == 0
        return fits and self.weight.device.type == "cpu" and bool(bitsandbytes().functional.has_avx512bf16())


def bitsandbytes() -> Any:
    """The library, imported where it is used and kept from fetching native code.

    Where the package `kernels` is installed, importing bitsandbytes would download and load a kernel from the hub.
    """
    if (found := imported("bitsandbytes")) is not None:
        return found
    with IMPORTING:
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it would say that it found no kernel to fetch
        kernels = sys.modules.get("kernels")
        sys.modules["kernels"] = None  # type: ignore[assignment]
        try:
            return library("bitsandbytes", "Packing in these bits")
        finally:
            del sys.modules["kernels"]
            if kernels is not None:
                sys.modules["kernels"] = kernels


def _kernel(run: Callable[[], Any], weight: Tensor) -> Any:
    """What a kernel of the library gives.

    Raises:
        NotAvailable: this build of it has none for the device.
    """
    try:
        return run()
    except NotImplementedError as error:
        raise NotAvailable(
            f"bitsandbytes has no kernel here that packs weights on '{weight.device.type}' ({first_line(error)}): use "
            "a step such as quantize.RTN(), or reinstall it with `pip install --force-reinstall bitsandbytes`."
        ) from None
