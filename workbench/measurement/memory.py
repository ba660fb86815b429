"""How much memory a variant needs: its weights, and the most it holds while answering."""

from collections.abc import Iterable
from typing import Any

import torch
from torch.multiprocessing import reductions
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from workbench.answering.request import Request
from workbench.measurement.latency import time_request
from workbench.models import sharing
from workbench.models.packed import Packed
from workbench.runtime.forward import using
from workbench.variant import Variant


def peak_memory(variant: Variant, prompt: str | Request, new_tokens: int) -> int:
    """Bytes of the weights and of everything allocated on top of them at the fullest moment of a request.

    On a GPU the allocator's own peak is read. On a CPU every tensor made is followed, so that the figure is that of
    this variant alone, whatever else the process holds.
    """
    with using(variant.name):
        extra = _cuda_peak if variant.device.type == "cuda" else _cpu_peak
        return variant.total_bytes + extra(variant, prompt, new_tokens)


def bits_per_weight(variant: Variant) -> float:
    """Stored bits over the number of weights they stand for; tied weights count once on both sides."""
    return 8 * variant.total_bytes / sharing.weight_count(variant.model)


def describe_layers(variant: Variant) -> str:
    """In words, how the weights are stored: dense, or the kinds of packed layers."""
    kinds = sorted({type(module).__name__ for module in variant.model.modules() if isinstance(module, Packed)})
    return ", ".join(kinds) or "dense"


def _cuda_peak(variant: Variant, prompt: str | Request, new_tokens: int) -> int:
    torch.cuda.reset_peak_memory_stats(variant.device)
    before = torch.cuda.memory_allocated(variant.device)
    time_request(variant, prompt, new_tokens)
    return int(torch.cuda.max_memory_allocated(variant.device)) - before


def _cpu_peak(variant: Variant, prompt: str | Request, new_tokens: int) -> int:
    held = Held(sharing.storages(variant.model))
    with held:
        time_request(variant, prompt, new_tokens)
    return held.peak


WEAK_REFERENCE: Any = reductions.StorageWeakRef


class Held(TorchDispatchMode):
    """Follows the memory behind every tensor that an operation returns, and remembers the most held at once.

    Unlike torch's profiler it works in any thread and prints nothing; scratch memory inside one operation is not seen.

    Args:
        known: addresses that do not count, such as those of the weights.
    """

    def __init__(self, known: Iterable[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak: int = 0
        self._known = frozenset(known)
        self._live: dict[int, tuple[Any, int]] = {}
        self._sum = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and take note of what it returned."""
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return found

    def _see(self, storage: torch.UntypedStorage) -> None:
        address = storage.data_ptr()
        seen = self._live.get(address)
        if address in self._known or (seen and not seen[0].expired()):
            return
        self._live[address] = (WEAK_REFERENCE(storage), storage.nbytes())
        self._sum += storage.nbytes() - (seen[1] if seen else 0)
        if self._sum > self.peak:  # only now is it worth finding out what was released
            self._live = {key: each for key, each in self._live.items() if not each[0].expired()}
            self._sum = sum(size for _, size in self._live.values())
            self.peak = max(self.peak, self._sum)
