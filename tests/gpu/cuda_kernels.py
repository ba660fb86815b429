"""Kernels that only CUDA has, computed on the CPU, with the checks of their source and their layouts left out."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

EIGHTS = (torch.float8_e4m3fn, torch.float8_e5m2)
HALVES = (torch.float16, torch.bfloat16)


def check(**rules: bool) -> None:
    """Refuse what a kernel refuses; a rule's name says what it wants."""
    for rule, holds in rules.items():
        if not holds:
            raise RuntimeError(f"The CUDA kernel wants: {rule.replace('_', ' ')}.")


def pack_int4(codes: Tensor, tiles: int) -> Tensor:
    """Source: aten/src/ATen/native/cuda/int4mm.cu; here each tile is laid out column by column."""
    check(two_dimensions=codes.dim() == 2, uint8=codes.dtype == torch.uint8, contiguous=codes.is_contiguous())
    rows, columns = codes.shape[0], codes.shape[1] * 2
    check(tiles_of_2_4_or_8=tiles in (2, 4, 8), rows_by_8=rows % 8 == 0, columns_by_tiles=columns % (tiles * 16) == 0)
    tiled = codes.view(rows // 8, 8, columns // (tiles * 16), tiles * 8).permute(0, 2, 3, 1).contiguous()
    return tiled.view(-1).view(torch.int32).view(rows // 8, columns // (tiles * 16), 32, tiles // 2)


def int4_mm(rows: Tensor, packed: Tensor, group: int, grid: Tensor, capability: tuple[int, int]) -> Tensor:
    """Source: as `pack_int4`; two codes a byte, the first one high."""
    check(capability_8=capability >= (8, 0), groups_of_32_to_256=group in (32, 64, 128, 256))
    check(bfloat16_rows=rows.dtype == torch.bfloat16, contiguous_rows=rows.dim() == 2 and rows.is_contiguous())
    check(packed_weight=packed.dtype == torch.int32 and packed.dim() == 4 and packed.is_contiguous())
    out, columns = packed.shape[0] * 8, packed.shape[1] * packed.shape[3] * 32
    check(bfloat16_grid=grid.dtype == torch.bfloat16 and grid.is_contiguous())
    check(shape_of_the_grid=grid.shape == (columns // group, out, 2), columns_of_the_rows=rows.shape[1] == columns)
    tiled = packed.reshape(-1).view(torch.uint8).view(*packed.shape[:2], packed.shape[3] * 16, 8)
    pairs = tiled.permute(0, 3, 1, 2).reshape(out, columns // 2)
    codes = torch.stack([pairs >> 4, pairs & 15], dim=-1).view(out, columns).float() - 8
    scale, offset = (grid[..., part].float().t().repeat_interleave(group, dim=1) for part in (0, 1))
    return (rows.float() @ (codes * scale + offset).bfloat16().float().t()).bfloat16()


def int_mm(left: Tensor, right: Tensor) -> Tensor:
    """Source: aten/src/ATen/native/cuda/Blas.cpp."""
    check(more_than_16_rows=left.shape[0] > 16, int8=left.dtype == right.dtype == torch.int8)
    check(inner_size_by_8=left.shape[1] % 8 == 0 < left.shape[1], columns_by_8=right.shape[1] % 8 == 0 < right.shape[1])
    return torch._int_mm(left, right)


def scaled_mm(capability: tuple[int, int], left: Tensor, right: Tensor, *scales: Any, **named: Any) -> Tensor:
    """Source: aten/src/ATen/native/cuda/ScaledBlas.cpp: one scale, or one a row and one a column."""
    check(capability_8_9=capability >= (8, 9), float8=left.dtype in EIGHTS and right.dtype in EIGHTS)
    check(row_major=left.stride(1) == 1, column_major=right.stride(0) == 1)
    check(sizes_by_16=right.shape[0] % 16 == 0 and right.shape[1] % 16 == 0 and left.shape[1] % 16 == 0)
    first, second = scales[:2] if scales else (named["scale_a"], named["scale_b"])
    kind = named.get("out_dtype") or (scales[4] if len(scales) > 4 else None) or left.dtype
    check(float32_scales=first.dtype == second.dtype == torch.float32)
    if first.numel() > 1 or second.numel() > 1:
        check(a_scale_for_every_row_and_column=first.shape == (len(left), 1) and second.shape == (1, right.shape[1]))
        check(contiguous_scales=first.is_contiguous() and second.is_contiguous(), bfloat16_out=kind == torch.bfloat16)
    return (left.float() @ right.float() * first * second).to(kind)


def sparse_compress(dense: Tensor, capability: tuple[int, int]) -> Tensor:
    """Source: aten/src/ATen/native/sparse/cuda/cuSPARSELtOps.cpp: values, then 4 bits for every two of them."""
    check(capability_8=capability >= (8, 0), half_types=dense.dtype in HALVES)
    fours = dense.reshape(-1, 4)
    kept = (fours == 0).int().argsort(dim=-1, stable=True)[:, :2].sort(dim=-1).values
    pair = (kept[:, 0] | kept[:, 1] << 2).view(-1, 2)
    places = (pair[:, 0] | pair[:, 1] << 4).to(torch.uint8).view(dense.dtype)
    return torch.cat([fours.gather(1, kept).reshape(-1), places])


def sparse_mm(packed: Tensor, dense: Tensor, bias: Tensor | None = None, *rest: Any, **named: Any) -> Tensor:
    """Source: as `sparse_compress`."""
    flat, transposed = packed.reshape(-1), named.get("transpose_result", rest[2] if len(rest) > 2 else False)
    count = flat.numel() * 8 // 9
    places = flat[count:].contiguous().view(torch.uint8).long()
    kept = torch.stack([places >> shift & 3 for shift in (0, 2, 4, 6)], dim=-1).view(-1, 2)
    weight = flat.new_zeros(count // 2, 4).scatter_(1, kept, flat[:count].view(-1, 2)).view(-1, dense.shape[0])
    product = weight.float() @ dense.float() + (0.0 if bias is None else bias.float().unsqueeze(1))
    return product.t().contiguous().to(dense.dtype) if transposed else product.to(dense.dtype)


def vectorwise_quant(usual: Callable[..., Any], values: Tensor, *rest: Any, **named: Any) -> Any:
    """Source: bitsandbytes/backends/cuda/ops.py."""
    check(float16=values.dtype == torch.float16)
    return usual(values, *rest, **named)
