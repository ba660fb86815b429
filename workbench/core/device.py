"""Where a model runs: device, dtype, allocated memory and the environment recorded with every number."""

import contextlib
import ctypes
import os
import platform
import resource
import sys
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

from workbench.core.errors import InvalidInput

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
RECORDED = ("torch", "transformers", "bitsandbytes", "peft", "numpy", "llm-optimization-workbench")


def resolve_device(device: str | None) -> torch.device:
    """The named device, or the best one here: CUDA, then CPU.

    Raises:
        InvalidInput: the name is unknown or this machine has no such device.
    """
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise InvalidInput(f"There is no device '{device}': use 'cpu', 'cuda' or 'auto'.") from None
    if resolved.type not in ("cpu", "cuda", "mps"):
        raise InvalidInput(f"No model can run on the device '{device}': use 'cpu', 'cuda' or 'auto'.")
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise InvalidInput("This machine has no CUDA device that torch can use: pass device='cpu'.")
    if resolved.type == "mps" and not torch.backends.mps.is_available():
        raise InvalidInput("This machine has no Apple GPU that torch can use: pass device='cpu'.")
    if resolved.type == "cuda" and (resolved.index or 0) >= (count := torch.cuda.device_count()):
        there = "only the device 'cuda:0'" if count == 1 else f"the devices 'cuda:0' to 'cuda:{count - 1}'"
        raise InvalidInput(f"There is no device '{device}', {there}: use one that is there, or 'auto'.")
    return resolved


def resolve_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The named dtype, or the device's usual one: on a GPU bfloat16, or float16 where it lacks that; else float32."""
    if dtype is None:
        if device.type != "cuda":
            return torch.float32
        with torch.cuda.device(device):
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise InvalidInput(f"Unknown dtype '{dtype}': use one of {', '.join(DTYPES)}.")
    return DTYPES[dtype]


def machine(device: torch.device) -> dict[str, str]:
    """What a trial on the device holds for: the environment, and what torch and oneDNN use of the processor."""
    used = {"capability": torch.backends.cpu.get_cpu_capability(), "onednn": os.environ.get("ONEDNN_MAX_CPU_ISA", "")}
    return environment(device) | used


def synchronize(device: torch.device) -> None:
    """Wait for the work queued on the device, so that a clock read afterwards means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory_held(device: torch.device) -> int:
    """Bytes: on a GPU the most allocated since it was last asked, on a CPU what this process has in memory now."""
    if device.type == "cuda":
        most = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return int(most)
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * resource.getpagesize() if pages.exists() else 0


def out_of_memory(error: BaseException) -> bool:
    """Whether an error is one of the ways to run out of memory."""
    text = str(error)
    known = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(each in text for each in known)
    )


def device_failed(error: BaseException) -> bool:
    """Whether the device failed, of which nothing follows for the operation that was tried on it."""
    broken = isinstance(error, torch.AcceleratorError) and "no kernel image" not in str(error)
    return broken or out_of_memory(error)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from a seed, on the CPU and on one device; other draws go on afterwards as if nothing had been."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def device_name(device: torch.device) -> str:
    """What the device is called by its maker."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()


def environment(device: torch.device) -> dict[str, str]:
    """Everything about this machine that a number depends on: device, threads and versions."""
    return {
        "device": device_name(device),
        "device_type": device.type,
        "threads": str(torch.get_num_threads()) if device.type == "cpu" else "",
        "platform": platform.system(),
        "python": platform.python_version(),
    } | _versions()


@cache
def _versions() -> dict[str, str]:
    installed = {dist.name.lower(): dist.version for dist in metadata.distributions() if dist.name}
    return {name: installed[name] for name in RECORDED if name in installed}


@cache
def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def trim() -> None:
    """Give freed memory back to the system: glibc keeps what lies between blocks that are in use."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library has no such function
            ctypes.CDLL(None).malloc_trim(0)
