"""Linear layers that may not be replaced: their weight is read otherwise, they are never called, or give more."""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.models import sharing
from workbench.models.experts import as_layers, expert_layers
from workbench.models.packed import linear_layers, replace_module
from workbench.runtime.forward import using
from workbench.runtime.rows import Rows, Way
from workbench.runtime.trial import architecture, some_tokens, way_of

READ, MORE = 8, 2  # tokens of the trial, at once and then one by one

_found: dict[tuple[str, tuple[str, ...]], frozenset[str]] = {}


def opaque_layers(model: PreTrainedModel) -> frozenset[str]:
    """Paths of the linear layers that a model does not merely call, tried once on a few tokens.

    Some architectures multiply by a layer's weight in code of their own (Mamba), or keep layers for other inputs than
    text; some make a router of one, which gives more than a product. Experts, which tokens may not choose, are not
    meant.
    """
    key = architecture(model), tuple(path for path, _ in linear_layers(model, head=True))
    if key not in _found:
        _found[key] = _try(model)
    return _found[key]


def _try(model: PreTrainedModel) -> frozenset[str]:
    probe = sharing.share(as_layers(model))
    layers, experts = linear_layers(probe, head=True), expert_layers(probe)
    watched = {path: _Watched(layer) for path, layer in layers if path not in experts}
    for path, layer in watched.items():
        replace_module(probe, path, layer)
    with using("Trying the layers"):  # what is read hangs on a frame that has ended out here
        _read(probe, way_of(model))
    return frozenset(path for path, layer in watched.items() if layer.odd or not layer.called)


def _read(model: PreTrainedModel, way: Way) -> None:
    """Some tokens, and some more one by one."""
    rows = Rows(model, [some_tokens(model, READ)], way)
    for _ in range(1 + MORE):
        rows.append(rows.logits().argmax(dim=-1))


class _Watched(nn.Module):
    """A layer that takes note of how it is used."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._layer, self.called, self.odd = [layer], False, False  # in a list: its weight is not this module's own

    def forward(self, x: Tensor, *args: Any, **named: Any) -> Any:
        """What the layer gives."""
        self.called = True
        made = self._layer[0](x, *args, **named)
        self.odd |= not isinstance(made, Tensor)
        return made

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name != "weight":
                return getattr(self._layer[0], name)
        self.odd = True
        return self._layer[0].weight
