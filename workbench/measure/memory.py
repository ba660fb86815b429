"""How much memory a variant needs: its weights, and the most it holds while answering."""

import os
from typing import Any

import torch

from workbench import model as models
from workbench.measure.latency import time_request
from workbench.packed import Packed
from workbench.variant import Variant, model_lock

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would print its stages into the notebook


def peak_memory(variant: Variant, prompt: str, new_tokens: int) -> int:
    """Bytes of the weights and of everything allocated on top of them at the fullest moment of a request.

    On a GPU the allocator's own peak is read. On a CPU torch's profiler records every allocation, so that the figure
    is that of this variant alone, whatever else the process holds.
    """
    with model_lock:
        extra = _cuda_peak if variant.device.type == "cuda" else _cpu_peak
        return variant.total_bytes + extra(variant, prompt, new_tokens)


def bits_per_weight(variant: Variant) -> float:
    """Stored bits over the number of weights they stand for; tied weights count once on both sides."""
    return 8 * variant.total_bytes / models.weight_count(variant.model)


def describe_layers(variant: Variant) -> str:
    """In words, how the weights are stored: dense, or the kinds of packed layers."""
    kinds = sorted({type(module).__name__ for module in variant.model.modules() if isinstance(module, Packed)})
    return ", ".join(kinds) or "dense"


def _cuda_peak(variant: Variant, prompt: str, new_tokens: int) -> int:
    torch.cuda.reset_peak_memory_stats(variant.device)
    before = torch.cuda.memory_allocated(variant.device)
    time_request(variant, prompt, new_tokens)
    return int(torch.cuda.max_memory_allocated(variant.device)) - before


def _cpu_peak(variant: Variant, prompt: str, new_tokens: int) -> int:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        time_request(variant, prompt, new_tokens)
    held = peak = 0
    for _, size in sorted(_allocations(profile)):
        held += size
        peak = max(peak, held)
    return peak


def _allocations(profile: Any) -> list[tuple[int, int]]:
    """Time and signed size of every allocation and release that the profiler saw."""
    found = []
    pending = list(profile.profiler.kineto_results.experimental_event_tree())
    while pending:
        event = pending.pop()
        pending += event.children
        if event.tag == torch._C._profiler._EventType.Allocation:
            found.append((event.start_time_ns, event.typed[1].alloc_size))
    return found
