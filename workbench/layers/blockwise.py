"""The decoder blocks of a model run one after another, as the model itself would run them."""

from contextlib import suppress
from dataclasses import dataclass
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
from workbench.runtime.trial import some_tokens

TRIED = 24  # tokens on which running block by block is tried


def enter_blocks(
    model: PreTrainedModel, windows: list[list[int]], size: int, beside: tuple[Any, ...] | None = None
) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """What enters the first block, a tensor ``(size, tokens, hidden)`` a batch, and every block's other arguments.

    The arguments (masks, rotary angles) depend on shapes only, so they are taken once. Blocks may differ in them, as
    where some see a sliding window.

    Args:
        model: whose blocks they are.
        windows: token ids of equal length.
        size: windows in a batch.
        beside: what a block gives beside the hidden states, where that is known already.
    """
    probe, beside = sharing.share(model), beside_hidden(model) if beside is None else beside
    _, blocks = decoder_blocks(probe)
    states: list[Tensor] = []
    settings: list[dict[str, Any]] = []

    def noting(index: int, names: list[str]) -> Any:
        def note(hidden: Tensor, *args: Any, **named: Any) -> Any:
            if not index:
                states.append(hidden)
            if len(settings) < len(blocks):
                settings.append(dict(zip(names, args, strict=False)) | named)
            if len(settings) == len(blocks):
                raise _Seen
            return with_beside(hidden, beside)

        return note

    for index, block in enumerate(blocks):
        block.forward = noting(index, list(signature(block.forward).parameters)[1:])
    for start in range(0, len(windows), size):
        ids = torch.tensor(windows[start : start + size], device=model.device)
        with suppress(_Seen):
            body(probe)(input_ids=ids, use_cache=False)
    return states, settings


class _Seen(Exception):
    """Everything that was to be noted was; what comes after is not run."""


def run_block(block: nn.Module, state: Tensor, settings: dict[str, Any]) -> Tensor:
    """The hidden states ``(windows, tokens, hidden)`` that a block makes; some give a tuple that begins with them."""
    output = block(state, **settings)
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


@dataclass(frozen=True)
class _Trial:
    """What running a model's blocks on a few tokens showed.

    Attributes:
        beside: what a block gives beside the hidden states, usually nothing.
        walks: whether running block after block is what the model does.
    """

    beside: tuple[Any, ...]
    walks: bool


_tried: "WeakKeyDictionary[PreTrainedModel, _Trial]" = WeakKeyDictionary()


def beside_hidden(model: PreTrainedModel) -> tuple[Any, ...]:
    """What a block of the model gives beside the hidden states, so that another can stand in for one."""
    return _trial(model).beside


def with_beside(hidden: Tensor, beside: tuple[Any, ...]) -> Any:
    """A block's output of these hidden states."""
    return (hidden, *beside) if beside else hidden


def check_walk(model: PreTrainedModel) -> None:
    """Raise `InvalidInput` where running block after block is not what the model does; tried once on a few tokens.

    Some architectures hand more from block to block than hidden states.
    """
    if not _trial(model).walks:
        raise InvalidInput(
            f"The blocks of {type(model).__name__} hand on more than hidden states, so nothing can be calibrated one "
            "after another: use a step without calibration, such as quantize.RTN or prune.Magnitude."
        )


def _trial(model: PreTrainedModel) -> _Trial:
    if model not in _tried:
        tokens, outputs = some_tokens(model, TRIED), list[Any]()
        _, blocks = decoder_blocks(model)
        hook = blocks[-1].register_forward_hook(lambda _, args, output: outputs.append(output))
        try:
            body(model)(input_ids=torch.tensor([tokens], device=model.device), use_cache=False)
        finally:
            hook.remove()
        last, beside = (outputs[0][0], outputs[0][1:]) if isinstance(outputs[0], tuple) else (outputs[0], ())
        _tried[model] = _Trial(beside, _walks(model, tokens, last, beside))
    return _tried[model]


def _walks(model: PreTrainedModel, tokens: list[int], last: Tensor, beside: tuple[Any, ...]) -> bool:
    _, blocks = decoder_blocks(model)
    try:
        (state,), settings = enter_blocks(model, [tokens], 1, beside)
        for block, setting in zip(blocks, settings, strict=True):
            state = run_block(block, state, setting)
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
        if device_failed(error):
            raise
        return False
    difference = float((state - last).float().norm() / last.float().norm().clamp(min=1e-30))
    return difference < (1e-3 if model.dtype == torch.float32 else 0.05)
