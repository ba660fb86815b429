"""The product of a linear layer with an adapter, in fewer passes over its output than peft's."""

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn


class AdaptedLinear(Linear):
    """peft's layer; the plain case, a dense layer with one low-rank adapter and no dropout, is computed as one."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``x (..., in)`` to ``(..., out)``."""
        name = self.active_adapters[0] if len(self.active_adapters) == 1 else ""
        plain = (
            type(self.base_layer) is nn.Linear
            and name in self.lora_A
            and name not in self.lora_variant
            and self.lora_B[name].bias is None
            and not (self.disable_adapters or self.merged or args or kwargs)
            and (not self.training or isinstance(self.lora_dropout[name], nn.Identity))
        )
        if not plain:
            return super().forward(x, *args, **kwargs)
        a, b, base = self.lora_A[name].weight, self.lora_B[name].weight, self.base_layer
        device = x.device.type
        kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else base.weight.dtype
        rows = x.reshape(-1, x.shape[-1])
        out: Tensor = _Product.apply(  # type: ignore[no-untyped-call]
            rows, a, b, base.weight, base.bias, self.scaling[name], kind
        )
        return out.view(*x.shape[:-1], -1)


class _Product(torch.autograd.Function):
    """``x @ W.T + scale * (x @ A.T) @ B.T + bias``, the second product added while it is computed."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, scale: float, kind: torch.dtype
    ) -> Tensor:
        """``x (n, in), a (rank, in), b (out, rank), weight (out, in)`` to ``(n, out)``."""
        rows, a, b = x.to(kind), a.to(kind), b.to(kind)
        narrow = rows @ a.t()
        out = nn.functional.linear(rows, weight.to(kind), None if bias is None else bias.to(kind))
        out.addmm_(narrow, b.t(), alpha=scale)
        ctx.save_for_backward(rows, narrow, a, b, weight)
        ctx.scale, ctx.kind = scale, x.dtype
        return out

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        """Of x, A and B; the layer itself is not trained."""
        rows, narrow, a, b, weight = ctx.saved_tensors
        gradient = outer[0].to(rows.dtype)
        inner = (gradient @ b).mul_(ctx.scale)
        below = None
        if ctx.needs_input_grad[0]:
            below = (gradient @ weight.to(rows.dtype)).addmm_(inner, a).to(ctx.kind)
        of_a = inner.t() @ rows
        of_b = (gradient.t() @ narrow).mul_(ctx.scale)
        return below, of_a.float(), of_b.float(), None, None, None, None
