"""Decoder blocks as one piece of compiled code that all blocks alike share."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree
from transformers import Cache

from workbench.models.blocks import POSITIONS
from workbench.runtime import graphs
from workbench.runtime.slots import SlotLayer, Slots

Codes = dict[Any, Callable[..., Any]]


def in_blocks(blocks: nn.ModuleList, slots: Slots, span: int, flags: str) -> Callable[[Slots, Tensor, Tensor], Tensor]:
    """A token read a block at a time, everything around the blocks as it is; the blocks of the list are replaced.

    Raises:
        NotImplementedError: a block is more than a function of its inputs, weights, keys and values.
    """
    codes: Codes = next((each.codes for each in blocks if isinstance(each, Block)), {})
    made = [block if isinstance(block, Block) else Block(block, codes) for block in blocks]
    for index, block in enumerate(made):
        blocks[index], block.making = block, flags
    try:
        zero = torch.zeros(1, 1, dtype=torch.long, device=slots.tensors[0].device)
        slots.forward(zero, zero.clone(), span)
    finally:
        for block in made:
            block.making = None
    return lambda slots, token, place: slots.forward(token, place, span)[:, -1]


class Block(nn.Module):
    """A decoder block run by the code for blocks like it; by its own where there is none.

    Attributes:
        codes: by what tells blocks and inputs apart.
        making: flags of Inductor while code may be made.
    """

    def __init__(self, block: nn.Module, codes: Codes) -> None:
        super().__init__()
        self.block, self.codes = block, codes
        self.making: str | None = None
        self._about = _about(block)
        self._own = dict(block.named_parameters()) | dict(block.named_buffers())
        self._index = next(
            int(getattr(module, name)) for module in block.modules() for name in POSITIONS if hasattr(module, name)
        )

    def __getattr__(self, name: str) -> Any:
        """What models ask their blocks for, such as the kind of attention."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the block."""
        leaves, form = pytree.tree_flatten((args, kwargs))
        cache = next(each for each in leaves if isinstance(each, Cache))
        layer = cache.layers[self._index]
        assert isinstance(layer, SlotLayer)
        places, span = layer.slots.places, layer.slots.span
        given = [each for each in leaves if isinstance(each, Tensor)]
        still = tuple(
            type(each) if isinstance(each, Cache) else each for each in leaves if not isinstance(each, Tensor)
        )
        key = (self._about, span, tuple((each.shape, each.dtype) for each in given), still, str(form))
        inputs = [*given, places, layer.keys, layer.values, *self._own.values()]
        if key not in self.codes:
            if self.making is None:
                return self.block(*args, **kwargs)
            self.codes[key] = self._made(leaves, form, layer, inputs, self.making)
        return self.codes[key](*inputs)

    def _made(self, leaves: list[Any], form: Any, layer: SlotLayer, inputs: list[Tensor], flags: str) -> Any:
        """The code, as a function of the inputs, and of tensors of the block in their order."""
        shapes: list[Any] = []
        count = sum(isinstance(each, Tensor) for each in leaves)
        slots = layer.slots

        def run(*tensors: Tensor) -> list[Tensor]:
            given = iter(tensors[:count])
            args, kwargs = pytree.tree_unflatten(
                [next(given) if isinstance(each, Tensor) else each for each in leaves], form
            )
            own = dict(zip(self._own, tensors[count + 3 :], strict=True))
            before = layer.keys, layer.values, slots.places
            slots.places, layer.keys, layer.values = tensors[count : count + 3]
            try:
                out, shape = pytree.tree_flatten(functional_call(self.block, own, args, kwargs))
            finally:
                layer.keys, layer.values, slots.places = before
            shapes.append(shape)
            return out

        graph = graphs.traced(run, inputs)
        if any(value.numel() > 1 for value in _constants(graph)):
            raise NotImplementedError("a block with tensors that are no part of it")
        code = graphs.built(graph, inputs, flags)
        return lambda *tensors: pytree.tree_unflatten(list(code(*tensors)), shapes[0])


def _constants(graph: torch.fx.GraphModule) -> list[Tensor]:
    found = [getattr(graph, str(node.target)) for node in graph.graph.nodes if node.op == "get_attr"]
    return [each for each in found if isinstance(each, Tensor)]


def _about(block: nn.Module) -> tuple[Any, ...]:
    """What code for a block depends on, its weights aside."""
    plain = [
        (path, name, value)
        for path, module in block.named_modules()
        for name, value in sorted(vars(module).items())
        if isinstance(value, bool | int | float | str) and name not in POSITIONS
    ]
    tensors = [(name, each.shape, each.dtype) for name, each in block.state_dict(keep_vars=True).items()]
    kinds = [(path, type(module)) for path, module in block.named_modules()]
    return (tuple(kinds), tuple(plain), tuple(tensors))
