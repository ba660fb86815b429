"""The keys and values of tokens already read, as the model computed them or in fewer bits."""

from typing import Any, Final

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from workbench.models.packed import pack_bits, unpack_bits

FULL: Final = 16  # stands for whatever type the model computes in
GROUP = 32  # numbers of a head that share a scale
LEAST_ROOM = 32  # tokens that memory is set aside for at a time, at least
LEAST_SCALE = 6e-8  # the smallest positive float16


class PackedLayer(DynamicLayer):
    """Keys and values of one attention layer, each token rounded when it arrives.

    `keys` and `values` are bytes ``(batch, heads, tokens, bytes a token)``. As no token depends on another, reading a
    text at once and token by token keep the same bytes. The whole layer is unpacked for every product.

    Args:
        bits: 8 or 4 a number; every `GROUP` of them also keep a scale and a least value in 16 bits each.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bits = bits

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Start empty, in bytes."""
        super().lazy_initialization(key_states, value_states)
        self.keys = pack(key_states[..., :0, :], self.bits)
        self.values = pack(value_states[..., :0, :], self.bits)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values ``(batch, heads, tokens, head)``; gives all of them back, unpacked."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = torch.cat([self.keys, pack(key_states, self.bits)], dim=-2)
        self.values = torch.cat([self.values, pack(value_states, self.bits)], dim=-2)
        return (
            unpack(self.keys, self.bits, key_states.shape[-1]).to(key_states.dtype),
            unpack(self.values, self.bits, value_states.shape[-1]).to(value_states.dtype),
        )


class GrowingLayer(DynamicLayer):
    """Keys and values of one attention layer; what comes is written behind them, where transformers copies all anew.

    Views of what is kept, such as those of a prefix, stay as they are: only room behind it is written to, and only by
    the layer that set it aside.
    """

    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # What keys and values are the beginning of, and the keys as they were left: somebody may put in others.
        self._room: tuple[Tensor, Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values ``(batch, heads, tokens, head)``; gives all of them back."""
        if torch.is_grad_enabled():
            found: tuple[Tensor, Tensor] = super().update(key_states, value_states, *args, **kwargs)
            return found
        if not self.get_seq_length():
            self.lazy_initialization(key_states, value_states)
            plain = torch.contiguous_format
            self.keys, self.values = (each.clone(memory_format=plain) for each in (key_states, value_states))
            return self.keys, self.values
        start = self.keys.shape[2]
        end = start + key_states.shape[2]
        if self._room is None or self.keys is not self._room[2] or end > self._room[0].shape[2]:
            keys, values = _roomy(self.keys, end), _roomy(self.values, end)
        else:
            keys, values, _ = self._room
        keys.narrow(2, start, end - start).copy_(key_states)  # indices would take twice the time
        values.narrow(2, start, end - start).copy_(value_states)
        self.keys, self.values = keys.narrow(2, 0, end), values.narrow(2, 0, end)
        self._room = keys, values, self.keys
        return self.keys, self.values

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens, so many as the number is below 0."""
        mine = self._room is not None and self.keys is self._room[2]
        super().crop(tokens_to_remove)
        if mine and self._room:
            self._room = (*self._room[:2], self.keys)


def _roomy(kept: Tensor, tokens: int) -> Tensor:
    """A copy with room for so many tokens and some more."""
    room = kept.new_empty(*kept.shape[:2], tokens + max(LEAST_ROOM, tokens // 8), kept.shape[3])
    room[:, :, : kept.shape[2]] = kept
    return room


def new_cache(config: PreTrainedConfig, bits: int = FULL) -> DynamicCache:
    """An empty key-value cache; sliding windows, which are short, and other states stay as they are computed."""
    cache = DynamicCache(config=config)
    cache.layers = [
        (PackedLayer(bits) if bits < FULL else GrowingLayer()) if type(layer) is DynamicLayer else layer
        for layer in cache.layers
    ]
    return cache


def is_plain(config: PreTrainedConfig) -> bool:
    """Whether every layer keeps all it read: a sliding window, which forgets, cannot be cut and continued."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)


def pack(states: Tensor, bits: int) -> Tensor:
    """Numbers ``(..., head)`` as bytes ``(..., bytes)``: for each group a scale and its least value, then the codes.

    Both are rounded to float16 first, so that the codes are made for what is kept.

    Source: Liu et al., "KIVI", 2024, https://arxiv.org/abs/2402.02750: asymmetric rounding in groups. KIVI rounds keys
    channel by channel over many tokens, which is more exact but needs the latest tokens in full.
    """
    head = states.shape[-1]
    grouped = states.float().reshape(-1, head // _group(head), _group(head))
    least, most = grouped.amin(dim=-1, keepdim=True), grouped.amax(dim=-1, keepdim=True)
    least = least.clamp(-60000, 60000).half()
    scale = ((most - least) / (2**bits - 1)).clamp(LEAST_SCALE, 60000).half()
    codes = ((grouped - least) / scale).round_().clamp_(0, 2**bits - 1).to(torch.uint8)
    grid = torch.cat([scale, least], dim=-1).flatten(1).view(torch.uint8)
    packed = torch.cat([grid, pack_bits(codes.view(-1, head), bits)], dim=-1)
    return packed.view(*states.shape[:-1], packed.shape[-1])


def unpack(packed: Tensor, bits: int, head: int) -> Tensor:
    """The numbers ``(..., head)`` that `pack` stored, in float32."""
    groups = head // _group(head)
    rows = packed.flatten(0, -2)
    grid = rows[:, : 4 * groups].view(torch.float16).float().view(-1, groups, 2)
    codes = unpack_bits(rows[:, 4 * groups :], bits)[:, :head].float().view(-1, groups, _group(head))
    return codes.mul_(grid[..., :1]).add_(grid[..., 1:]).view(*packed.shape[:-1], head)


def _group(head: int) -> int:
    return GROUP if head % GROUP == 0 else head
