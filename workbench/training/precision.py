"""Products in 16 bits while training: on a CPU in attention, too, where torch's fused kernel takes twice as long."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from workbench.models.packed import fast_bfloat16

NAME = "workbench_16_bits"


@contextmanager
def in_16_bits(model: PreTrainedModel) -> Iterator[None]:
    """Let a model that the caller owns, and that uses torch's fused attention, use this one."""
    config = model.config.get_text_config()
    if config._attn_implementation != "sdpa":
        yield
        return
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """``query (batch, heads, tokens, width)``, key and value of fewer heads, to ``(batch, tokens, heads, width)``."""
    batch, heads, tokens, width = query.shape
    kind = query.dtype
    few, seen = key.shape[1:3]
    if attention_mask is None:
        attention_mask = query.new_ones(tokens, seen, dtype=torch.bool).tril(seen - tokens)[None, None]
    hidden = torch.zeros(attention_mask.shape, dtype=torch.bfloat16, device=query.device)
    hidden.masked_fill_(~attention_mask, torch.finfo(torch.bfloat16).min)
    with torch.autocast(query.device.type, enabled=False):
        query, key, value = (each.to(torch.bfloat16) for each in (query, key, value))
        query = (query * (width**-0.5 if scaling is None else scaling)).reshape(batch, few, -1, width)
        scores = (query @ key.transpose(-1, -2)).view(batch, heads, tokens, seen) + hidden
        shares = nn.functional.dropout(scores.softmax(dim=-1), dropout, module.training).view(batch, few, -1, seen)
        out = (shares @ value).view(batch, heads, tokens, value.shape[-1])
    return out.transpose(1, 2).to(kind, memory_format=torch.contiguous_format), None


@contextmanager
def products(precision: str, model: PreTrainedModel) -> Iterator[torch.autocast]:
    """Take a model's products in 16 bits, or as they are. The model is the caller's own.

    Yields what to enter for the forward pass alone; attention stays the same for the backward pass, which may compute
    it again.
    """
    device = model.device.type
    fast = fast_bfloat16() if device == "cpu" else model.dtype != torch.float32 or _fast_on_gpu()
    on = precision == "bfloat16" or (precision == "auto" and fast)
    with in_16_bits(model) if on and device == "cpu" else nullcontext():
        yield torch.autocast(device, torch.bfloat16, enabled=on)


def _fast_on_gpu() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
