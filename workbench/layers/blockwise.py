"""The decoder blocks of a model run one after another, as the model itself would run them."""

from contextlib import suppress
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.core.device import device_failed
from workbench.core.errors import InvalidInput
from workbench.models import sharing
from workbench.models.blocks import decoder_blocks
from workbench.runtime.prefix import body

TRIED = 32  # tokens of a window on which running block by block is tried


def enter_blocks(
    model: PreTrainedModel, windows: list[list[int]], size: int
) -> tuple[list[Tensor], list[dict[str, Any]], tuple[Any, ...]]:
    """What enters the first block, a tensor ``(size, tokens, hidden)`` a batch, and every block's other arguments.

    The arguments (masks, rotary angles) depend on shapes only, so they are taken once. Blocks may differ in them, as
    where some see a sliding window. Last comes what blocks give beside the hidden states, usually nothing.
    """
    probe = sharing.share(model)
    _, blocks = decoder_blocks(probe)
    states: list[Tensor] = []
    settings: list[dict[str, Any]] = []

    beside: list[tuple[Any, ...]] = []
    run_first = blocks[0].forward

    def begin(hidden: Tensor, *args: Any, **named: Any) -> None:
        if not states:  # once for real, to see in which shape the model takes a block's output
            output = run_first(hidden, *args, **named)
            beside.append(output[1:] if isinstance(output, tuple) else ())
        states.append(hidden)

    def noting(index: int, names: list[str]) -> Any:
        def note(hidden: Tensor, *args: Any, **named: Any) -> Any:
            if not index:
                begin(hidden, *args, **named)
            if len(settings) < len(blocks):
                settings.append(dict(zip(names, args, strict=False)) | named)
            if len(settings) == len(blocks):
                raise _Seen
            return with_beside(hidden, beside[0])

        return note

    for index, block in enumerate(blocks):
        block.forward = noting(index, list(signature(block.forward).parameters)[1:])
    for start in range(0, len(windows), size):
        ids = torch.tensor(windows[start : start + size], device=model.device)
        with suppress(_Seen):
            body(probe)(input_ids=ids, use_cache=False)
    return states, settings, beside[0]


def with_beside(hidden: Tensor, beside: tuple[Any, ...]) -> Any:
    """A block's output of these hidden states."""
    return (hidden, *beside) if beside else hidden


_walked: "WeakKeyDictionary[PreTrainedModel, bool]" = WeakKeyDictionary()


def check_walk(model: PreTrainedModel, window: list[int]) -> None:
    """Raise `InvalidInput` where running block after block is not what the model does; tried once on a window.

    Some architectures hand more from block to block than hidden states.
    """
    if model not in _walked:
        _walked[model] = _walks(model, window[:TRIED])
    if not _walked[model]:
        raise InvalidInput(
            f"The blocks of {type(model).__name__} hand on more than hidden states, so nothing can be calibrated one "
            "after another: use a step without calibration, such as quantize.RTN or prune.Magnitude."
        )


def _walks(model: PreTrainedModel, window: list[int]) -> bool:
    last: list[Tensor] = []
    _, blocks = decoder_blocks(model)
    hook = blocks[-1].register_forward_hook(
        lambda _, args, output: last.append(output[0] if isinstance(output, tuple) else output)
    )
    try:
        model(input_ids=torch.tensor([window], device=model.device), use_cache=False)
    finally:
        hook.remove()
    try:
        (state,), settings, _ = enter_blocks(model, [window], 1)
        for block, setting in zip(blocks, settings, strict=True):
            state = run_block(block, state, setting)
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
        if device_failed(error):
            raise
        return False
    difference = float((state - last[-1]).float().norm() / last[-1].float().norm().clamp(min=1e-30))
    return difference < (1e-3 if model.dtype == torch.float32 else 0.05)


class _Seen(Exception):
    """Everything that was to be noted was; what comes after is not run."""


def run_block(block: nn.Module, state: Tensor, settings: dict[str, Any]) -> Tensor:
    """The hidden states ``(windows, tokens, hidden)`` that a block makes; some give a tuple that begins with them."""
    output = block(state, **settings)
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden
