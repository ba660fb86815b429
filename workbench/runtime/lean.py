"""The blocks of Llama and its kin in fewer operations than transformers takes: what a token costs beside its products.

Written for keys and values that are kept, so for answering and not for learning. The layers are called as they are:
packed, adapted or plain.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin
from transformers.modeling_outputs import BaseModelOutputWithPast

from workbench.runtime.kvcache import is_plain

KIN: Final = ("llama", "mistral", "qwen2", "qwen3")  # as transformers calls their modules
PARTS: Final = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}

Layer = Callable[[Tensor], Tensor]


class Norm:
    """A root mean square normalization of transformers in fewer operations; its weight stays where it is.

    Source: Zhang and Sennrich, 2019, https://arxiv.org/abs/1910.07467.
    """

    def __init__(self, module: Any) -> None:
        self._module, self._epsilon = module, module.variance_epsilon
        self._zero, self._least = torch.zeros(()), torch.tensor((module.weight.numel() * self._epsilon) ** 0.5)

    def __call__(self, x: Tensor) -> Tensor:
        """``x (..., size)``, in memory of its own."""
        size, weight = x.shape[-1], self._module.weight
        if x.dtype != torch.float32 or not x.is_cpu:  # one kernel of a GPU; in float32 whatever the type
            found: Tensor = F.rms_norm(x, (size,), eps=self._epsilon) * weight
            return found
        # x / sqrt(mean(x x) + e) = sqrt(n) x / hypot(|x|, sqrt(n e)): the quickest of torch's operations there.
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot_(self._least)
        return torch.addcdiv(self._zero, x, length, value=size**0.5).mul_(weight)


class Block(NamedTuple):
    """What one decoder block is made of."""

    before: Norm
    query: Layer
    key: Layer
    value: Layer
    heads: tuple[Norm, Norm] | None  # norms of queries and of keys
    out: Layer
    after: Norm
    gate: Layer
    up: Layer
    activation: Layer
    down: Layer
    place: int  # among the layers of a cache
    head: int
    scale: float

    @classmethod
    def of(cls, block: Any) -> "Block":
        """Of a block as transformers has it."""
        attention, mlp = block.self_attn, block.mlp
        return cls(
            before=Norm(block.input_layernorm),
            query=attention.q_proj.forward,
            key=attention.k_proj.forward,
            value=attention.v_proj.forward,
            heads=(Norm(attention.q_norm), Norm(attention.k_norm)) if hasattr(attention, "q_norm") else None,
            out=attention.o_proj.forward,
            after=Norm(block.post_attention_layernorm),
            gate=mlp.gate_proj.forward,
            up=mlp.up_proj.forward,
            activation=mlp.act_fn.forward,
            down=mlp.down_proj.forward,
            place=attention.layer_idx,
            head=attention.head_dim,
            scale=attention.scaling,
        )


class LeanDecoder(nn.Module):
    """A decoder without its output head; what it has no way for it leaves to the one that it stands for.

    Source: `LlamaModel`, `MistralModel`, `Qwen2Model` and `Qwen3Model` of transformers.
    """

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.decoder = decoder
        self._norm = Norm(decoder.norm)
        self._blocks = [Block.of(block) for block in decoder.layers[: decoder.config.num_hidden_layers]]

    def __getattr__(self, name: str) -> Any:
        """What else a decoder is asked for, such as its embedding."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("decoder"), name)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        **others: Any,
    ) -> BaseModelOutputWithPast:
        """Tokens ``(rows, tokens)`` to states ``(rows, tokens, hidden)``, as in transformers."""
        learning = self.decoder.training or torch.is_grad_enabled()
        if learning or input_ids is None or past_key_values is None or not _simple(input_ids, attention_mask, others):
            found: BaseModelOutputWithPast = self.decoder(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                **others,
            )
            return found
        states = self._states(input_ids, attention_mask, position_ids, past_key_values)
        return BaseModelOutputWithPast(last_hidden_state=states, past_key_values=past_key_values)

    def _states(self, ids: Tensor, mask: Tensor | None, positions: Tensor | None, cache: Cache) -> Tensor:
        rows, tokens = ids.shape
        read, layers = cache.get_seq_length(), cast(list[CacheLayerMixin], cache.layers)
        if positions is None:
            positions = torch.arange(read, read + tokens, device=ids.device)[None]
        if mask is not None and mask.dim() == 2:
            mask = mask.bool()[:, None, None]
        elif mask is None and tokens > 1 and read:
            mask = (torch.arange(read + tokens, device=ids.device) <= positions[..., None])[:, None]
        x = self.decoder.embed_tokens(ids)
        # Of both halves of a head: the other half, turned round by the sign, is added to each.
        cosine, sine = (each.view(*each.shape[:2], 1, 2, -1) for each in self.decoder.rotary_emb(x, positions))
        sine = torch.stack([-sine[..., 0, :], sine[..., 1, :]], dim=-2)
        for block in self._blocks:
            y = block.before(x)
            query, key, value = (
                layer(y).view(rows, tokens, -1, block.head) for layer in (block.query, block.key, block.value)
            )
            if block.heads:
                query, key = block.heads[0](query), block.heads[1](key)
            heads, groups = query.shape[2], key.shape[2]
            turned = torch.cat([query, key], dim=2)
            halves = turned.view(rows, tokens, -1, 2, block.head // 2)
            turned = torch.addcmul(halves * cosine, halves.flip(-2), sine).view(rows, tokens, -1, block.head)
            query, key = turned.narrow(2, 0, heads), turned.narrow(2, heads, groups)
            keys, values = layers[block.place].update(key.transpose(1, 2), value.transpose(1, 2))
            x = x + block.out(attend(query, keys, values, mask, block.scale))
            y = block.after(x)
            x = x + block.down(block.activation(block.gate(y)).mul_(block.up(y)))
        return self._norm(x)


def _simple(ids: Tensor, mask: Tensor | dict[str, Tensor] | None, others: dict[str, Any]) -> bool:
    """Whether this is decoding as it is done here, with nothing more wanted."""
    wanted = {name for name, value in others.items() if value is not None and value is not False}
    seen = mask is None or (isinstance(mask, Tensor) and (mask.dim() == 4 or ids.shape[1] == 1))
    return seen and wanted <= {"use_cache"}


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attention whose heads read the keys and values of their group where they are.

    Args:
        query: ``(rows, tokens, heads, head)``.
        keys: ``(rows, groups, span, head)``.
        values: as keys.
        mask: what a token sees, ``(rows or 1, 1, tokens, span)``; None for all that was read up to it.
        scale: of the scores.

    Returns:
        ``(rows, tokens, heads * head)``.
    """
    rows, tokens, heads, head = query.shape
    groups, span = keys.shape[1:3]
    if tokens == 1:
        alike = query.reshape(rows, groups, heads // groups, head)
        return F.scaled_dot_product_attention(alike, keys, values, mask, scale=scale).view(rows, 1, -1)
    if mask is None:
        query, causal = query.transpose(1, 2), tokens == span
        found = F.scaled_dot_product_attention(query, keys, values, is_causal=causal, scale=scale, enable_gqa=True)
        return found.transpose(1, 2).reshape(rows, tokens, -1)
    alike = query.view(rows, tokens, groups, -1, head).permute(0, 2, 3, 1, 4).reshape(rows, groups, -1, head)
    mask = mask[:, :, None].expand(-1, -1, heads // groups, -1, -1).reshape(len(mask), 1, -1, span)
    found = F.scaled_dot_product_attention(alike, keys, values, mask, scale=scale)
    return found.view(rows, groups, -1, tokens, head).permute(0, 3, 1, 2, 4).reshape(rows, tokens, -1)


def fits(model: PreTrainedModel) -> bool:
    """Whether a model is one whose blocks are known here, with nothing put in their place."""
    kind, decoder = model.config.model_type, getattr(model, "model", None)
    own = f"transformers.models.{kind}.modeling_{kind}"
    if kind not in KIN or type(model).__module__ != own or decoder is None or not is_plain(model.config):
        return False
    parts = [decoder, decoder.norm, decoder.rotary_emb]
    for block in decoder.layers:
        if {name for name, _ in block.named_children()} != PARTS:
            return False
        inner = [getattr(block.self_attn, name, None) for name in ("q_norm", "k_norm")]
        parts += [block, *block.children(), *(each for each in inner if each is not None)]
    return all(type(part).__module__ == own and "forward" not in vars(part) for part in parts)


def lean(model: PreTrainedModel) -> None:
    """Give a model that `fits` a lean decoder, in place; its tensors stay."""
    model.model = LeanDecoder(model.model)
