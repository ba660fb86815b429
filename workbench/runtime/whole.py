"""A whole model as one graph of a token; on a GPU its kernels are recorded and started in one go."""

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from workbench.runtime import graphs
from workbench.runtime.slots import Slots

Step = Callable[[Slots, Tensor, Tensor], Tensor]


def whole(model: PreTrainedModel, slots: Slots, span: int, flags: str) -> Step:
    """The whole model as one graph of a token, its place, and all keys and values."""

    def step(token: Tensor, place: Tensor, *kept: Tensor) -> Tensor:
        with slots.holding(kept):
            return slots.forward(token, place, span)[:, -1]

    zero = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    inputs = [zero, zero.clone(), *slots.tensors]
    code = graphs.built(graphs.traced(step, inputs), inputs, flags)

    def run(slots: Slots, token: Tensor, place: Tensor) -> Tensor:
        out = code(token, place, *slots.tensors)
        found: Tensor = out if isinstance(out, Tensor) else out[0]
        return found

    return Recorded(run) if model.device.type == "cuda" else run


class Recorded:
    """A step whose kernels a GPU starts in one go: recorded as a CUDA graph, once for each memory it works on.

    Source: https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs/.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._records: WeakKeyDictionary[Slots, tuple[torch.cuda.CUDAGraph, Tensor, Tensor, Tensor]] = (
            WeakKeyDictionary()
        )

    def __call__(self, slots: Slots, token: Tensor, place: Tensor) -> Tensor:
        """Logits ``(1, vocabulary)`` of what comes after a token ``(1, 1)`` at its place."""
        if slots not in self._records:
            self._records[slots] = self._record(slots, token.clone(), place.clone())
        graph, tokens, places, logits = self._records[slots]
        tokens.copy_(token)
        places.copy_(place)
        graph.replay()
        return logits.clone()  # the next answer is written to the same place

    def _record(
        self, slots: Slots, token: Tensor, place: Tensor
    ) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor, Tensor]:
        graph, aside = torch.cuda.CUDAGraph(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries set themselves up in the first runs; they write the same token
            for _ in range(2):
                self._step(slots, token, place)
        torch.cuda.current_stream().wait_stream(aside)
        with torch.cuda.graph(graph):
            logits = self._step(slots, token, place)
        return graph, token, place, logits
