"""The one way to use a model: one at a time in the process, and out of memory is one error in words."""

import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from workbench.core.device import out_of_memory
from workbench.core.errors import OutOfMemory, first_line

# One forward at a time: a variant's timing would be wrong, and a GPU's memory unpredictable, otherwise.
_lock = threading.RLock()


@contextmanager
def using(label: str, learning: bool = False) -> Iterator[None]:
    """Have the models for oneself, for a forward pass or for several that must not be disturbed; it may be nested.

    Args:
        label: whose or what work it is; it begins the sentence when the memory does not suffice.
        learning: whether gradients are wanted.

    Raises:
        OutOfMemory: the device has too little memory.
    """
    with _lock, memory_guard(label), torch.set_grad_enabled(learning):
        yield


@contextmanager
def memory_guard(label: str) -> Iterator[None]:
    """Turn the ways to run out of memory into one error in words.

    Raises:
        OutOfMemory: the device has too little memory.
    """
    try:
        yield
    except OutOfMemory as error:  # said further in; the frames in between have ended only now
        _clear(error)
        raise
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        reason = first_line(error, longest=160)
        _clear(error)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise OutOfMemory(
            f"{label} ran out of memory ({reason}): close a variant or use a smaller model; nothing was changed."
        ) from None


def _clear(error: BaseException | None) -> None:
    """Let go of what was half made: it hangs on the frames of an error, and of those that it came from."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
