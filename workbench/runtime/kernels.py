"""The faster of torch's two float32 matrix kernels on this CPU, for reading many tokens at once.

`torch.nn.Linear` always multiplies float32 with MKL; oneDNN, which torch brings too, is faster on some CPUs (1.1 to
1.25 times on an AMD Zen 4). The products differ in the last bits only.
"""

import time
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.models import sharing
from workbench.models.packed import linear_layers, replace_module


class OneDNNLinear(nn.Module):
    """A dense linear layer multiplied by oneDNN; shares the weight of the layer it stands for."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """``x (..., in) -> (..., out)``."""
        return _onednn(x, self.weight, self.bias)


def for_reading(model: PreTrainedModel) -> PreTrainedModel:
    """The model with its dense float32 layers on the faster kernel; the same model where that is torch's usual one."""
    if model.device.type != "cpu" or model.dtype != torch.float32 or not onednn_is_faster():
        return model
    shared = sharing.share(model)
    for path, layer in list(linear_layers(shared, head=True)):
        if type(layer) is nn.Linear:
            replace_module(shared, path, OneDNNLinear(layer))
    return shared


@cache
def onednn_is_faster() -> bool:
    """Tried once, on a product of the usual shape."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    rows, weight = torch.randn(1024, 512), torch.randn(1024, 512)
    usual = min(_seconds(lambda: torch.nn.functional.linear(rows, weight)) for _ in range(5))
    return usual > 1.03 * min(_seconds(lambda: _onednn(rows, weight, None)) for _ in range(5))


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def _seconds(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
