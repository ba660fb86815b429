"""Codes of 2 to 8 bits in 32-bit words, without a gap: the first code in the lowest bits."""

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS_AT_ONCE = 4096  # the work is done in int64, which this bounds
WORD = 0xFFFFFFFF


def to_int32(codes: Tensor, bits: int) -> Tensor:
    """Codes ``(rows, columns)`` in uint8 to int32 ``(rows, ceil(columns * bits / 32))``."""
    words = -(-codes.shape[1] * bits // 32)
    if 8 % bits == 0:  # a byte holds a whole number of codes
        parts = F.pad(codes, (0, -codes.shape[1] % (32 // bits))).reshape(len(codes), -1, 8 // bits).unbind(-1)
        packed = sum((part << bits * place for place, part in enumerate(parts)), torch.zeros_like(parts[0]))
        return packed.clone(memory_format=torch.contiguous_format).view(torch.int32)
    return torch.cat([_words(part, bits) for part in torch.split(codes, ROWS_AT_ONCE)])[:, :words].contiguous()


def from_int32(words: Tensor, bits: int, columns: int) -> Tensor:
    """The codes ``(rows, columns)`` in uint8 that `to_int32` was given."""
    if 8 % bits == 0:
        packed = words.clone(memory_format=torch.contiguous_format).view(torch.uint8)
        codes = torch.stack([packed >> place & (2**bits - 1) for place in range(0, 8, bits)], dim=-1).flatten(1)
    else:
        codes = torch.cat([_codes(part, bits) for part in torch.split(words, ROWS_AT_ONCE)])
    return codes[:, :columns].clone(memory_format=torch.contiguous_format)


def _words(codes: Tensor, bits: int) -> Tensor:
    """32 codes fill as many words as they have bits."""
    rounds = F.pad(codes, (0, -codes.shape[1] % 32)).reshape(len(codes), -1, 32).permute(2, 0, 1).contiguous().long()
    words = [torch.zeros_like(rounds[0])] * (bits + 1)
    for place in range(32):
        word, shift = divmod(place * bits, 32)
        shifted = rounds[place] << shift
        words[word], words[word + 1] = words[word] | (shifted & WORD), words[word + 1] | (shifted >> 32)
    top = 1 << 31
    return ((torch.stack(words[:bits], dim=-1) ^ top) - top).to(torch.int32).flatten(1)


def _codes(words: Tensor, bits: int) -> Tensor:
    rounds = F.pad(words, (0, -words.shape[1] % bits)).view(len(words), -1, bits).long() & WORD
    rounds = F.pad(rounds, (0, 1))
    codes = []
    for place in range(32):
        word, shift = divmod(place * bits, 32)
        two = rounds[..., word] | rounds[..., word + 1] << 32
        codes.append((two >> shift & (2**bits - 1)).to(torch.uint8))
    return torch.stack(codes, dim=-1).flatten(1)
