"""The pretended device: what it holds and may hold, what it can, and what it is seen to do."""

import contextlib
import sys
import threading
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef


class Seen:
    """What the device was asked: kernels by operation, waits of the host and copies by the line that asks."""

    def __init__(self) -> None:
        self.kernels, self.waits, self.copies = Counter(), Counter(), Counter()


class Device:
    """The pretended device: what it holds and may hold, what it can, and who looks on."""

    def __init__(self) -> None:
        self.held: dict[int, tuple[StorageWeakRef, int]] = {}
        self.now, self.peak, self.room, self.capability = 0, 0, 80 << 30, (8, 0)
        self.seen: Seen | None = None
        self.lock, self.fused = threading.RLock(), threading.local()

    def hold(self, tensor: Tensor) -> None:
        """Count a tensor's memory, or refuse it where it does not fit."""
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        with self.lock:
            gone, before = self.held.get(address, (None, 0))
            if not size or (gone and not gone.expired()):
                return
            self.held[address] = (StorageWeakRef(storage), size)
            self.now += size - before
            if self.now > min(self.peak, self.room) and self.allocated() > self.room:
                del self.held[address]
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size / 2**20:.2f} MiB.")
            self.peak = max(self.peak, self.now)

    def allocated(self, *_: object) -> int:
        """Bytes of all tensors alive."""
        with self.lock:
            self.held = {address: each for address, each in self.held.items() if not each[0].expired()}
            self.now = sum(size for _, size in self.held.values())
            return self.now

    def reset_peak(self, *_: object) -> None:
        """From here on."""
        self.peak = self.allocated()

    @contextlib.contextmanager
    def limited(self, more: int) -> Iterator[None]:
        """Room for so many bytes beside what is held."""
        before, self.room = self.room, self.allocated() + more
        try:
            yield
        finally:
            self.room = before

    @contextlib.contextmanager
    def watched(self) -> Iterator[Seen]:
        """Count what is done."""
        before, self.seen = self.seen, Seen()
        try:
            yield self.seen
        finally:
            self.seen = before

    def started(self, kernel: str) -> None:
        """Count a kernel; torch's attention is one, whatever it is computed with here."""
        if self.seen and not getattr(self.fused, "inside", False):
            self.seen.kernels[kernel] += 1

    def waited(self, why: str) -> None:
        """Count a wait of the host."""
        if self.seen:
            self.seen.waits[f"{caller()} {why}"] += 1

    def copied(self, why: str) -> None:
        """Count a copy from the host."""
        if self.seen:
            self.seen.copies[f"{caller()} {why}"] += 1


def caller() -> str:
    """The innermost line of the workbench."""
    frame = sys._getframe(2)
    while frame and "/workbench/" not in frame.f_code.co_filename:
        frame = frame.f_back
    return f"{frame.f_code.co_filename.rpartition('/workbench/')[2]}:{frame.f_lineno}" if frame else "elsewhere"


device = Device()
