"""Attention for training in 16 bits on a CPU, where torch's fused kernel computes in 32 and takes twice as long."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

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
        out = (shares @ value).view(batch, heads, tokens, width)
    return out.transpose(1, 2).to(kind, memory_format=torch.contiguous_format), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
