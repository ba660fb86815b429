"""Integers of 2 to 8 bits with a scale and a zero point for every group of columns."""

from collections.abc import Mapping
from functools import cache
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.core.errors import InvalidInput
from workbench.models.packed.base import PackedLinear, fast_bfloat16
from workbench.models.packed.int4 import GROUPS, MIDDLE, Int4Kernel, int4_kernel
from workbench.models.packed.products import Product

GROUP_SIZES = (0, *sorted(GROUPS))
LEAST_SCALE = 1e-30  # of a group that is zero throughout; its inverse is still finite
KERNEL_ROWS = 256  # beyond these the CPU's kernel need not be tried: it reads the codes anew for every few rows
# A GPU's kernel reads the codes once more for every 16 rows; to unpack them first is to read them once, and to write
# and read four times as many bytes.
GPU_ROWS = 16 * 9
PARTS = (4, 2, 1)  # widths below a byte's own that it holds a whole number of


class GroupLinear(PackedLinear):
    """n-bit codes with one scale and zero point a group of columns: weight = (code - zero) * scale.

    Four bits are multiplied by a kernel of the device where it has one (x86 CPUs from AVX2 on, CUDA from compute
    capability 8.0 on) and the shape fits it. Everything else is unpacked for every product: smaller, but not faster.

    A code takes `bits` bits; each row is filled up to a multiple of eight codes. A scale takes 16 bits (bfloat16: it is
    what the kernels multiply by, and it has the range of float32). An integer zero point takes 8 bits, another 16, and
    none is kept where all are the middle, ``2 ** (bits - 1)``. In memory the kernels want 16 bits more a group, and
    groups that divide the row: larger ones are cut, each part with the same scale.
    """

    weight: Tensor
    bits: int
    kernel: Int4Kernel | None = None

    def __init__(self, options: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super().__init__(options, tensors)
        self.bits = options["bits"]
        self.groups: int = tensors["scales"].shape[1]
        kernel = int4_kernel(self.weight.device) if self.bits == 4 else None
        group = _kernel_group(self.in_features, options["group_size"])
        if kernel is None or not group or not kernel.fits(self.out_features, self.in_features):
            return
        grid = torch.stack([self.scale, (MIDDLE - self.zero) * self.scale], dim=-1).transpose(0, 1)
        starts = torch.arange(0, self.in_features, group, device=grid.device)
        self._repeats = (options["group_size"] or self.in_features) // group
        self.weight = kernel.arrange(self.codes())
        self.register_buffer("grid", grid[starts // (group * self._repeats)].bfloat16().contiguous())
        del self._buffers["scales"]
        self.kernel = kernel

    @classmethod
    def from_codes(
        cls, codes: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor | None, bits: int, group_size: int
    ) -> Self:
        """Pack codes that were made for a scale and a zero point.

        Args:
            codes: uint8 ``(out, in)``, each below ``2 ** bits``.
            scale: ``(out, groups)``, as `stored_scale` gives it.
            zero: ``(out, groups)``, integers or as `stored_zero` gives it; None for the middle, ``2 ** (bits - 1)``.
            bias: ``(out,)``, if any.
            bits: 2 to 8.
            group_size: columns that share a scale: 32, 64, 128 or 256, or 0 for the whole row. A row that is not a
                multiple ends in a shorter group.

        Raises:
            InvalidInput: the shapes do not belong together, or no such width or group size is known.
        """
        out, columns = codes.shape
        if not 2 <= bits <= 8 or group_size not in GROUP_SIZES:
            raise InvalidInput(
                f"{bits} bits in groups of {group_size} cannot be packed: use 2 to 8 bits and groups of {GROUP_SIZES}."
            )
        if columns < 2:
            raise InvalidInput(f"A weight of shape {(out, columns)} is too narrow to pack: keep it dense.")
        wanted = (out, -(-columns // (group_size or columns)))
        if any(tuple(each.shape) != wanted for each in (scale, zero) if each is not None):
            raise InvalidInput(f"Codes {(out, columns)} in groups of {group_size} need scales and zeros {wanted}.")
        tensors = {"weight": pack_bits(codes, bits), "scales": stored_scale(scale).bfloat16()}
        if zero is not None and bool((zero != 2 ** (bits - 1)).any()):
            whole = bool(((zero == zero.round()) & (zero >= 0) & (zero < 2**bits)).all())
            tensors["zeros"] = zero.to(torch.uint8) if whole else stored_zero(zero).half()
        if bias is not None:
            tensors["bias"] = bias.detach()
        return cls({"shape": [out, columns], "bits": bits, "group_size": group_size}, tensors)

    @property
    def scale(self) -> Tensor:
        """``(out, groups)`` in float32."""
        if self.kernel is None:
            return self.get_buffer("scales").float()
        return self.get_buffer("grid")[:: self._repeats, :, 0].t().float()

    @property
    def zero(self) -> Tensor:
        """``(out, groups)`` in float32."""
        zeros = self._buffers.get("zeros")
        return torch.full_like(self.scale, 2 ** (self.bits - 1)) if zeros is None else zeros.float()

    def codes(self) -> Tensor:
        """uint8 ``(out, in)``."""
        if self.kernel is not None:
            return self.kernel.codes(self.weight, self.in_features)
        return unpack_bits(self.weight, self.bits)[:, : self.in_features]

    def saved_tensors(self) -> dict[str, Tensor]:
        tensors = super().saved_tensors()
        if tensors.pop("grid", None) is not None:
            tensors |= {"weight": pack_bits(self.codes(), self.bits), "scales": self.scale.bfloat16()}
        return tensors

    def dequantize(self) -> Tensor:
        return self.dense(torch.float32)

    def products(self, rows: int) -> Mapping[str, Product]:
        """Straight from the codes where there is a kernel, or by the weight unpacked once for all rows."""
        device = self.weight.device.type
        if device != "cpu":
            straight = self.kernel is not None and rows < GPU_ROWS
            return {"4-bit kernel": kernel_product} if straight else {"unpacked": unpacked_product}
        found: dict[str, Product] = {}
        if self.kernel is not None and rows <= KERNEL_ROWS:
            found["4-bit kernel"] = kernel_product
        found["unpacked in float32"] = unpacked_product32
        if fast_bfloat16():
            found["unpacked in bfloat16"] = unpacked_product16
        return found

    def first(self, name: str, outputs: int) -> Tensor:
        """The grid of the kernel lies group by group."""
        whole = self.get_buffer(name)
        return whole[:, :outputs].contiguous() if name == "grid" else whole[:outputs]

    def dense(self, kind: torch.dtype) -> Tensor:
        """The weight ``(out, in)``."""
        zeros = self._buffers.get("zeros")
        # Integers up to 256 and their differences are exact in bfloat16; float16 would lose small scales.
        exact = kind != torch.float16 and (zeros is None or zeros.dtype == torch.uint8)
        work = kind if exact else torch.float32
        size = self.options["group_size"] or self.in_features
        missing, codes = self.groups * size - self.in_features, self.codes()
        codes = (F.pad(codes, (0, missing)) if missing else codes).view(-1, self.groups, size)
        middle = torch.tensor(2 ** (self.bits - 1), dtype=work) if zeros is None else zeros.to(work).unsqueeze(-1)
        # A GPU takes two types in one kernel; a CPU is slow at that.
        dense = codes.to(work).sub_(middle) if codes.device.type == "cpu" else torch.sub(codes, middle)
        scale = self.scale if self.kernel is not None else self.get_buffer("scales")
        dense.mul_(scale.to(work).unsqueeze(-1))
        return dense.reshape(self.out_features, -1)[:, : self.in_features].to(kind)


def kernel_product(layer: GroupLinear, rows: Tensor) -> Tensor:
    """By the device's 4-bit kernel: activations and result in bfloat16."""
    held, kernel = layer._buffers, layer.kernel  # a module's attributes are looked up slowly
    weight, grid = held["weight"], held["grid"]
    assert kernel is not None
    assert weight is not None
    assert grid is not None
    return kernel.multiply(rows, weight, grid)


def unpacked_product(layer: GroupLinear, rows: Tensor, kind: torch.dtype | None = None) -> Tensor:
    """By the weight unpacked once for all rows, in the type of the rows or another."""
    kind = kind or rows.dtype
    if layer.kernel is not None and kind != torch.float16:  # which would lose small scales
        return layer.kernel.unpacked(rows, layer.weight, layer.get_buffer("grid"), kind)
    return F.linear(rows.to(kind), layer.dense(kind))


def unpacked_product32(layer: GroupLinear, rows: Tensor) -> Tensor:
    """In float32."""
    return unpacked_product(layer, rows, torch.float32)


def unpacked_product16(layer: GroupLinear, rows: Tensor) -> Tensor:
    """Weight, activations and result in bfloat16."""
    return unpacked_product(layer, rows, torch.bfloat16)


def stored_scale(scale: Tensor) -> Tensor:
    """The scales as `GroupLinear` keeps them, in float32; round weights by these, and storing them costs nothing."""
    return scale.detach().clamp(min=LEAST_SCALE).bfloat16().float()


def stored_zero(zero: Tensor) -> Tensor:
    """Zero points as `GroupLinear` keeps them where they are not integers (16 bits), in float32."""
    return zero.detach().clamp(-60000, 60000).half().float()


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Codes ``(rows, columns)`` in uint8 ``(rows, bits * ceil(columns / 8))``.

    A code is split into parts of 4, 2 and 1 bits, its lowest bits in the largest. Byte j of the n bytes of a part holds
    the codes j, j + n, j + 2n, ..., so that unpacking writes whole slices.
    """
    filled = F.pad(codes, (0, -codes.shape[1] % 8)) if codes.shape[1] % 8 else codes
    if bits == 8:
        return filled.contiguous()
    parts, low = [], 0
    for width in (each for each in PARTS if bits & each):
        part = (filled >> low if low else filled).bitwise_and(2**width - 1)
        part = part.view(len(codes), 8 // width, filled.shape[1] * width // 8)
        parts.append((part << _places(width, part.device)).sum(dim=1, dtype=torch.uint8))
        low += width
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


def unpack_bits(packed: Tensor, bits: int) -> Tensor:
    """What `pack_bits` was given, the filling at the end of a row included."""
    if bits == 8:
        return packed
    eighth = packed.shape[1] // bits
    codes, low = None, 0
    for width in (each for each in PARTS if bits & each):
        part = packed[:, eighth * low : eighth * (low + width)].unsqueeze(1)
        found = (part >> _places(width, part.device)).bitwise_and_(2**width - 1).flatten(1)
        codes = found if codes is None else codes.add_(found, alpha=1 << low)
        low += width
    assert codes is not None
    return codes


@cache
def _places(width: int, device: torch.device) -> Tensor:
    """Where in a byte its codes of that width begin, ``(codes, 1)``; kept, so that no product copies it."""
    return torch.arange(0, 8, width, dtype=torch.uint8, device=device).unsqueeze(1)


def _kernel_group(columns: int, group_size: int) -> int:
    """The group size that the kernels are told: the largest that divides the row and its groups; 0 if there is none."""
    return next((each for each in GROUPS if columns % each == 0 and (group_size or columns) % each == 0), 0)
