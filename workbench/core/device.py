"""Where a model runs: device, dtype, allocated memory and the environment recorded with every number."""

import platform
import resource
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
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise InvalidInput("This machine has no CUDA device that torch can use: pass device='cpu'.")
    return resolved


def resolve_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The named dtype, or the usual one of the device: bfloat16 on a GPU, float32 on a CPU."""
    if dtype is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise InvalidInput(f"Unknown dtype '{dtype}': use one of {', '.join(DTYPES)}.")
    return DTYPES[dtype]


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
