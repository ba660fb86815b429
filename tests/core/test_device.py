"""Devices and types by name, and the ways a device fails."""

import platform

import psutil
import pytest
import torch

from workbench.core.device import device_failed, out_of_memory, resolve_device, resolve_dtype, seeded, trim
from workbench.core.errors import InvalidInput

CPU = torch.device("cpu")


@pytest.fixture
def _card(monkeypatch: pytest.MonkeyPatch) -> None:
    """One GPU without bfloat16, as torch describes a T4."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device", lambda _: torch.no_grad())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)


@pytest.mark.parametrize("name", ["meta", "xpu", "cuda:3", "cuda:1", "no such", "cuda:-2"])
@pytest.mark.usefixtures("_card")
def test_a_device_that_is_not_there_is_refused_in_words(name: str) -> None:
    with pytest.raises(InvalidInput, match=name) as caught:
        resolve_device(name)
    assert "use " in str(caught.value)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is one")
def test_an_apple_gpu_elsewhere_is_refused_in_words() -> None:
    with pytest.raises(InvalidInput, match="device='cpu'"):
        resolve_device("mps")


@pytest.mark.usefixtures("_card")
def test_a_gpu_without_bfloat16_takes_float16() -> None:
    assert resolve_device(None) == torch.device("cuda")
    assert resolve_device("cuda:0") == torch.device("cuda:0")
    assert resolve_dtype(None, torch.device("cuda")) == torch.float16
    assert resolve_dtype("bfloat16", torch.device("cuda")) == torch.bfloat16, "named, it is taken"
    assert resolve_dtype(None, CPU) == torch.float32


@pytest.mark.parametrize(
    ("error", "memory", "device"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True, True),
        (MemoryError(), True, True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True, True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:131] DefaultCPUAllocator: can't allocate memory: you"),
            True,
            True,
        ),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), False, True),
        (torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device"), False, False),
        (RuntimeError("_weight_int4pack_mm_cuda is not available for build."), False, False),
        (ValueError("out of memory"), False, False),
    ],
    ids=str,
)
def test_how_a_device_fails(error: Exception, memory: bool, device: bool) -> None:
    assert (out_of_memory(error), device_failed(error)) == (memory, device)


def test_draws_from_a_seed_leave_the_others_alone() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(5)
    before = torch.rand(2)
    with seeded(3, CPU):
        assert torch.equal(torch.rand(4), wanted)
    after = torch.rand(2)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(4), torch.cat([before, after]))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps memory in its own way")
def test_freed_memory_goes_back_to_the_system() -> None:
    blocks = [b"x" * (100_000 + number) for number in range(2_000)]
    del blocks[:-10]  # the last ones lie behind what was freed
    kept = psutil.Process().memory_info().rss
    trim()
    assert psutil.Process().memory_info().rss < kept - 100_000_000
