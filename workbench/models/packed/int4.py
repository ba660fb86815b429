"""Torch's kernels that multiply straight from 4-bit codes, each with a layout of its own.

All take bfloat16 rows and a grid ``(groups, out, 2)`` of bfloat16 scales and offsets:
weight = (code - 8) * scale + offset. An offset keeps 8 bits, so the weight is off by at most 1/64 of a step.
"""

from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.core.device import device_failed

MIDDLE = 8  # the code that the kernels take as zero
GROUPS = (256, 128, 64, 32)  # columns with one scale that the kernels know, the cheapest first


class Int4Kernel(Protocol):
    """A layout of 4-bit codes ``(out, in)``, and the product by it."""

    def fits(self, out: int, columns: int) -> bool:
        """Whether the kernel takes a weight of that shape."""

    def arrange(self, codes: Tensor) -> Tensor:
        """Codes ``(out, in)`` in the layout, half a byte each."""

    def codes(self, weight: Tensor, columns: int) -> Tensor:
        """What `arrange` was given, uint8."""

    def multiply(self, rows: Tensor, weight: Tensor, grid: Tensor) -> Tensor:
        """``rows (n, in) -> (n, out)``, straight from the codes."""

    def unpacked(self, rows: Tensor, weight: Tensor, grid: Tensor, kind: torch.dtype) -> Tensor:
        """``rows (n, in) -> (n, out)``, by the weight unpacked in a type once for all rows."""


class CpuInt4:
    """Blocks of output rows, stored column by column: byte j of a column holds rows j and j + block / 2.

    Layout and kernel: aten/src/ATen/native/cpu/int4mm_kernel.cpp of PyTorch.
    """

    def __init__(self) -> None:
        self.block = {"AVX512": 64, "AVX2": 32}[torch.backends.cpu.get_cpu_capability()]  # others have no kernel

    def fits(self, out: int, columns: int) -> bool:
        """Whole blocks only; torch lays out the rows left over differently."""
        return out % self.block == 0 and columns % GROUPS[-1] == 0

    def arrange(self, codes: Tensor) -> Tensor:
        """``(out, in) -> (out, in / 2)``."""
        arranged: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
        return arranged

    def codes(self, weight: Tensor, columns: int) -> Tensor:
        """``(out, in / 2) -> (out, in)``."""
        return self._blocks(weight, columns).transpose(1, 2).reshape(-1, columns)

    def multiply(self, rows: Tensor, weight: Tensor, grid: Tensor) -> Tensor:
        """The kernel, for few rows."""
        group = rows.shape[1] // grid.shape[0]
        product: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(rows.bfloat16(), weight, group, grid)
        return product

    def unpacked(self, rows: Tensor, weight: Tensor, grid: Tensor, kind: torch.dtype) -> Tensor:
        """Block by block, as the codes lie."""
        group = rows.shape[1] // grid.shape[0]
        # Contiguous scales multiply four times as fast as a view that skips the offsets.
        by_block = grid.to(kind).view(grid.shape[0], -1, 1, self.block, 2).transpose(0, 1)
        scale, offset = (by_block[..., part].contiguous() for part in (0, 1))
        codes = self._blocks(weight, rows.shape[1]).sub_(MIDDLE).view(torch.int8).to(kind)
        dense = codes.view(-1, grid.shape[0], group, self.block).mul_(scale).add_(offset)
        return torch.matmul(rows.to(kind), dense.view_as(codes)).transpose(0, 1).reshape(rows.shape[0], -1)

    def _blocks(self, weight: Tensor, columns: int) -> Tensor:
        """Codes ``(blocks, in, block)``."""
        pairs = weight.view(-1, columns, self.block // 2)
        return torch.cat([pairs & 15, pairs >> 4], dim=-1)


class CudaInt4:
    """The layout of tensor cores (compute capability 8.0 and above), for any number of rows.

    Layout and kernel: aten/src/ATen/native/cuda/int4mm.cu of PyTorch.
    """

    def fits(self, out: int, columns: int) -> bool:
        """Tiles of 8 rows by 32 columns."""
        return out % 8 == 0 and columns % 32 == 0

    def arrange(self, codes: Tensor) -> Tensor:
        """``(out, in) -> (out / 8, in / (16 tiles), 32, tiles / 2)``: as many tiles side by side as fit, up to 8."""
        tiles = next(count for count in (8, 4, 2) if codes.shape[1] % (16 * count) == 0)
        pairs = (codes[:, ::2] << 4 | codes[:, 1::2]).contiguous()
        return torch._convert_weight_to_int4pack(pairs, tiles)

    def codes(self, weight: Tensor, columns: int) -> Tensor:
        """Tile by tile, in the order in which a tile is laid out."""
        down, across, _, half = weight.shape
        tiles = _nibbles(weight).view(down, across, -1)[..., _order(2 * half, weight.device)]
        return tiles.view(down, across, 8, -1).transpose(1, 2).reshape(-1, columns)

    def multiply(self, rows: Tensor, weight: Tensor, grid: Tensor) -> Tensor:
        """The kernel; it takes any number of rows, but reads the codes once more for every 16."""
        group = rows.shape[1] // grid.shape[0]
        return torch._weight_int4pack_mm(rows.bfloat16().contiguous(), weight, group, grid)

    def unpacked(self, rows: Tensor, weight: Tensor, grid: Tensor, kind: torch.dtype) -> Tensor:
        """By what the kernel multiplies by: codes times scales plus offsets, in a type."""
        group = rows.shape[1] // grid.shape[0]
        scale, offset = (grid[..., part].t().to(kind).unsqueeze(-1) for part in (0, 1))
        codes = self.codes(weight, rows.shape[1]).view(-1, grid.shape[0], group)
        dense = torch.sub(codes.view(torch.int8), MIDDLE).to(kind).mul_(scale).add_(offset)
        return F.linear(rows.to(kind), dense.view(codes.shape[0], -1))


@cache
def _order(tiles: int, device: torch.device) -> Tensor:
    """Where CUDA's layout keeps each code of a tile, found by laying out the codes' own places, four bits at a time."""
    places = torch.arange(8 * 16 * tiles, device=device).view(8, -1)
    digits = [(places >> shift & 15).to(torch.uint8) for shift in (0, 4, 8)]
    kept = [_nibbles(CudaInt4().arrange(each)).long() << 4 * at for at, each in enumerate(digits)]
    return torch.stack(kept).sum(dim=0).argsort()


def _nibbles(words: Tensor) -> Tensor:
    """The codes in 32-bit words, uint8, in a row."""
    pairs = words.view(torch.uint8).flatten()
    return torch.stack([pairs & 15, pairs >> 4], dim=-1).flatten()


@cache
def int4_kernel(device: torch.device) -> Int4Kernel | None:
    """The kernel of a device, tried once on a small weight; None where there is none or it gives something else."""
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(16, (128, 64), generator=draw, dtype=torch.uint8).to(device)
    rows = torch.randn(2, 64, generator=draw).bfloat16().to(device)
    grid = torch.randn(2, 128, 2, generator=draw).bfloat16().to(device)
    scale, offset = (grid[..., part].t().repeat_interleave(32, dim=1).float() for part in (0, 1))
    wanted = rows.float() @ ((codes.float() - MIDDLE) * scale + offset).t()
    try:
        kernel: Int4Kernel = CudaInt4() if device.type == "cuda" else CpuInt4()
        weight = kernel.arrange(codes)
        works = torch.allclose(kernel.multiply(rows, weight, grid).float(), wanted, rtol=0.02, atol=0.5)
        return kernel if works and torch.equal(kernel.codes(weight, 64), codes) else None
    except (KeyError, AttributeError, RuntimeError) as error:  # no such instructions, operation or build
        if device_failed(error):
            raise
        return None
