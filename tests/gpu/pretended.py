"""A GPU for the tests of this folder: the machine's own, else a pretended one: tensors that say cuda, on the CPU.

Loaded as a plugin before anything imports torch: `python -m pytest -p tests.gpu.pretended tests/gpu`. On the pretended
device every operation is looked up in torch's own table of kernels: one that CUDA lacks is refused, and so are operands
on two devices and generators of the wrong one. Kernels started, waits for the device, copies to it and memory are
counted. Not pretended: speed, the rounding of real kernels, streams, nondeterminism.
"""

import ctypes
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def load_hooks() -> None:
    """Build and load what a torch without CUDA lacks; torch looks for it once, while it is imported."""
    torch_folder = Path(importlib.util.find_spec("torch").origin).parent
    if (torch_folder / "lib" / "libtorch_cuda.so").exists():
        return
    assert "torch" not in sys.modules, "load this plugin first: python -m pytest -p tests.gpu.pretended tests/gpu"
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        raise pytest.UsageError("The pretended GPU needs a C++ compiler: install one, such as with apt install g++.")
    libraries = torch_folder / "lib"
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "hooks.so"
        source = Path(__file__).with_suffix(".cpp")
        flags = ["-shared", "-fPIC", "-std=c++20", "-w", f"-I{torch_folder / 'include'}", f"-L{libraries}"]
        subprocess.run([compiler, *flags, str(source), "-o", str(library), "-lc10", "-ltorch_cpu"], check=True)
        for each in ("libc10.so", "libtorch_cpu.so"):
            ctypes.CDLL(str(libraries / each), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(library))


load_hooks()

import torch  # noqa: E402

from tests.gpu.device import Device, device  # noqa: E402
from tests.gpu.on_gpu import Generator, Mode  # noqa: E402


def attention(usual: Any) -> Any:
    """Torch's attention, counted as one kernel."""

    def one(*args: Any, **kwargs: Any) -> Any:
        device.started("scaled_dot_product_attention")
        before, device.fused.inside = getattr(device.fused, "inside", False), True
        try:
            return usual(*args, **kwargs)
        finally:
            device.fused.inside = before

    return one


def in_mode(usual: Any) -> Any:
    """A thread's work, where tensors on the device can be made."""

    def run_thread(self: threading.Thread) -> None:
        with Mode():
            usual(self)

    return run_thread


class Properties:
    name, total_memory, multi_processor_count, warp_size, L2_cache_size = "Pretended GPU", 80 << 30, 108, 32, 40 << 20
    major, minor = 8, 0


def pretend() -> None:
    """Have torch say that there is a GPU, from now on."""
    for library in ("bitsandbytes", "torch._dynamo", "torch.sparse.semi_structured"):
        importlib.import_module(library)  # while there is none: they look for native code where there is one
    if torch.version.cuda is not None:
        torch._C._ensureCUDADeviceGuardSet()  # a build with CUDA on a machine without a GPU
    nothing = lambda *_, **__: None  # noqa: E731
    cuda = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": nothing,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": nothing,
        "_exchange_device": lambda *_: 0,
        "_maybe_exchange_device": lambda *_: 0,
        "synchronize": lambda *_: device.waited("synchronize"),
        "empty_cache": nothing,
        "get_device_name": lambda *_: Properties.name,
        "get_device_capability": lambda *_: device.capability,
        "get_device_properties": lambda *_: Properties,
        "memory_allocated": device.allocated,
        "max_memory_allocated": lambda *_: device.peak,
        "reset_peak_memory_stats": device.reset_peak,
        "mem_get_info": lambda *_: (device.room - device.allocated(), device.room),
        "is_bf16_supported": lambda including_emulation=True: including_emulation or device.capability >= (8, 0),
        "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),  # the host keeps it
        "set_rng_state": nothing,
        "manual_seed": nothing,
        "manual_seed_all": nothing,
        "is_current_stream_capturing": lambda: False,
    }
    for name, made in cuda.items():
        setattr(torch.cuda, name, made)
    torch.backends.cusparselt.is_available = lambda: True
    torch.Generator = Generator
    torch.nn.functional.scaled_dot_product_attention = attention(torch.nn.functional.scaled_dot_product_attention)
    threading.Thread.run = in_mode(threading.Thread.run)


@pytest.fixture(scope="session")
def gpu() -> Iterator[Device | None]:
    """The device to count on; None where the GPU is a real one."""
    if torch.cuda.is_available():
        yield None
        return
    pretend()
    with Mode():
        yield device
