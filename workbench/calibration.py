"""What the linear layers of a model are fed: one pass over calibration text, block by block, shared by every method.

Only one block's activations are held at a time. Statistics are kept as long as the model they were taken from, so that
another method, or another position of a slider, does not pay for the pass again.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench import model as models
from workbench.blocks import decoder_blocks
from workbench.errors import InvalidInput
from workbench.packed import PackedLinear, dense_weight, linear_layers
from workbench.progress import Progress
from workbench.prompting import encode_text
from workbench.task import Task, Text
from workbench.variant import Variant, model_lock

WINDOW = 512  # tokens; the examples of a task are joined and cut into windows of this length
MOST_WINDOWS = 128  # the size of the usual calibration sets; more changes little
BATCH_TOKENS = {"cpu": 2048, "cuda": 8192}
KEPT_HESSIANS = 2 << 30  # bytes; a larger set is taken again each time it is needed


@dataclass(frozen=True)
class LayerInput:
    """What a linear layer was fed; layers that read one tensor share one `LayerInput`.

    Attributes:
        tokens: how many were seen.
        norm: root mean square of each input channel, ``(in,)`` float32.
        mean: mean absolute value of each input channel, ``(in,)`` float32.
        hessian: mean of ``x xT``, ``(in, in)`` float32, if it was asked for. Half of it is the layer's squared error.
        source: path of the normalization whose output this is, if it is one.
    """

    tokens: int
    norm: Tensor
    mean: Tensor
    hessian: Tensor | None
    source: str | None


@dataclass(frozen=True)
class BlockInput:
    """What was seen of one block.

    Attributes:
        layers: path of every linear layer in it, and what it was fed.
        influence: 1 - mean cosine of the block's input and output, over tokens (Men et al., ShortGPT, 2024).
    """

    layers: dict[str, LayerInput]
    influence: float


@dataclass(frozen=True)
class Statistics:
    """What was seen of a whole model.

    Attributes:
        blocks: one a decoder block.
    """

    blocks: tuple[BlockInput, ...]

    @cached_property
    def layers(self) -> dict[str, LayerInput]:
        """Every linear layer of the blocks by path."""
        return {path: seen for block in self.blocks for path, seen in block.layers.items()}

    @property
    def influence(self) -> tuple[float, ...]:
        """Influence of every block."""
        return tuple(block.influence for block in self.blocks)

    @property
    def hidden(self) -> Tensor:
        """Mean absolute value of each channel of the residual stream, as normalized, summed over the blocks."""
        read = {id(seen): seen.mean for seen in self.layers.values() if seen.source}
        if not read:
            raise InvalidInput("No linear layer of this model reads a normalization: its channels cannot be ranked.")
        return torch.stack(list(read.values())).sum(dim=0)


_kept: WeakKeyDictionary[PreTrainedModel, dict[str, Statistics]] = WeakKeyDictionary()


def statistics(
    variant: Variant, task: Task | Text | None, progress: Progress | None = None, hessians: bool = False
) -> Statistics:
    """What every linear layer in the blocks of a variant is fed on the task's calibration data.

    Raises:
        InvalidInput: there are no calibration data, or the variant is quantized.
    """
    return Statistics(tuple(visit(variant, variant.model, task, progress or Progress(), hessians)))


def visit(
    variant: Variant,
    model: PreTrainedModel,
    task: Task | Text | None,
    progress: Progress,
    hessians: bool = False,
    sequential: bool = False,
) -> Iterator[BlockInput]:
    """Block by block, what the linear layers are fed.

    Args:
        variant: whose inputs these are.
        model: the copy that the caller changes; with `sequential`, its blocks are what is run.
        task: its calibration split is read.
        progress: advances once a block.
        hessians: whether `LayerInput.hessian` is wanted.
        sequential: run every block again after the caller has changed it, so that the next one is fed what the changed
            blocks give. Otherwise every block is fed what the unchanged model gives, and the statistics are kept.
    """
    _check_dense(variant)
    kept = _kept.setdefault(variant.model, {})
    key = _key(variant, task)
    known = kept.get(key)
    if sequential:
        yield from _walk(model, calibration_windows(variant, task), progress, hessians, rerun=True)
    elif known and (not hessians or _has_hessians(known)):
        yield from progress.track("Changing blocks", known.blocks, len(known.blocks))
    else:
        room = not hessians or _hessian_bytes(variant.model) <= KEPT_HESSIANS
        seen: list[BlockInput] = []
        for block in _walk(variant.model, calibration_windows(variant, task), progress, hessians, rerun=False):
            if room:
                seen.append(block)
            yield block
        if room:
            kept[key] = Statistics(tuple(seen))


def _key(variant: Variant, task: Task | Text | None) -> str:
    """What the calibration windows depend on; the steps of a recipe change how examples are put."""
    asked = "" if isinstance(task, Text) else variant.recipe.to_json()
    return f"{task.fingerprint if task else ''} {asked}"


def calibration_windows(variant: Variant, task: Task | Text | None) -> list[list[int]]:
    """Token windows of equal length to calibrate on.

    A text has its own. The examples of a task, each its prompt and answer as the variant is asked, are joined and cut.

    Raises:
        InvalidInput: there are none, or they are longer than the model can read.
    """
    if task is None:
        raise InvalidInput("This step needs data to calibrate on: pass a task.")
    if isinstance(task, Text):
        if not task.calibration:
            raise InvalidInput(f"'{task.name}' keeps no windows for calibration: read it with calibration=16 or so.")
        variant.check_length(task.window, 0)
        return task.windows(variant.tokenizer, "calibration")[:MOST_WINDOWS]
    joined: list[int] = []
    for example in task.calibration:
        joined += variant.encode(task.prompt(example)) + encode_text(variant.tokenizer, example.answer)
        if len(joined) >= WINDOW * MOST_WINDOWS:
            break
    if len(joined) < 2:
        raise InvalidInput(f"Task '{task.name}' has no calibration examples: add rows to its calibration split.")
    length = min(WINDOW, variant.context_length, len(joined))
    return [joined[start : start + length] for start in range(0, len(joined) - length + 1, length)][:MOST_WINDOWS]


def _check_dense(variant: Variant) -> None:
    if any(isinstance(layer, PackedLinear) for _, layer in linear_layers(variant.model, head=True)):
        raise InvalidInput(
            f"'{variant.name}' is quantized and cannot be calibrated: apply the step to its dense parent."
        )


def _has_hessians(found: Statistics) -> bool:
    return all(seen.hessian is not None for seen in found.layers.values())


def _hessian_bytes(model: PreTrainedModel) -> int:
    """An upper bound: layers that share an input share a Hessian."""
    return sum(4 * dense_weight(layer).shape[1] ** 2 for _, layer in linear_layers(decoder_blocks(model)[1]))


@torch.no_grad()
def _walk(
    model: PreTrainedModel, windows: list[list[int]], progress: Progress, hessians: bool, rerun: bool
) -> Iterator[BlockInput]:
    path, blocks = decoder_blocks(model)
    progress.start("Calibrating", len(blocks))
    with model_lock:
        states, settings = enter_blocks(model, windows, _batch_size(len(windows), len(windows[0]), model.device))
    for index, block in enumerate(blocks):
        with model_lock:
            watch = _Watch(block, f"{path}.{index}", hessians)
            after = [watch.run(state, settings[index]) for state in states]
            seen = watch.found(states, after)
        yield seen
        if rerun:
            with model_lock:
                after = [run_block(block, state, settings[index]) for state in states]
        states = after
        progress.advance()


def enter_blocks(
    model: PreTrainedModel, windows: list[list[int]], size: int
) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """What enters the first block, a tensor ``(size, tokens, hidden)`` a batch, and every block's other arguments.

    The arguments (masks, rotary angles) depend on shapes only, so they are taken once. Blocks may differ in them, as
    where some see a sliding window.
    """
    probe = models.share(model)
    _, blocks = decoder_blocks(probe)
    states: list[Tensor] = []
    settings: list[dict[str, Any]] = []

    names = list(signature(blocks[0].forward).parameters)[1:]

    def note(hidden: Tensor, *args: Any, **named: Any) -> Tensor:
        if len(settings) < len(blocks):
            settings.append(dict(zip(names, args, strict=False)) | named)
        if len(settings) == len(blocks):
            raise _Seen
        return hidden

    def begin(hidden: Tensor, *args: Any, **named: Any) -> Tensor:
        states.append(hidden)
        return note(hidden, *args, **named)

    for index, block in enumerate(blocks):
        block.forward = note if index else begin
    for start in range(0, len(windows), size):
        ids = torch.tensor(windows[start : start + size], device=model.device)
        with suppress(_Seen):
            probe.base_model(input_ids=ids, use_cache=False)
    return states, settings


class _Seen(Exception):
    """Everything that was to be noted was; what comes after is not run."""


def run_block(block: nn.Module, state: Tensor, settings: dict[str, Any]) -> Tensor:
    """The hidden states ``(windows, tokens, hidden)`` that a block makes; some give a tuple that begins with them."""
    output = block(state, **settings)
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def _batch_size(windows: int, tokens: int, device: torch.device) -> int:
    """The most windows that fit a batch and divide their number, so that every batch has one shape."""
    most = max(1, BATCH_TOKENS.get(device.type, BATCH_TOKENS["cpu"]) // tokens)
    return max(size for size in range(1, most + 1) if windows % size == 0)


class _Watch:
    """Sums over what the linear layers of a block are fed while it runs."""

    def __init__(self, block: nn.Module, path: str, hessians: bool) -> None:
        self._block, self._path, self._hessians = block, path, hessians
        self._sums: dict[str, _Sums] = {}
        self._batch: dict[int, tuple[Tensor, _Sums]] = {}
        self._made: dict[int, tuple[Tensor, str]] = {}

    def run(self, hidden: Tensor, settings: dict[str, Any]) -> Tensor:
        """The block's output, its linear layers watched."""
        linear = dict(linear_layers(self._block))
        hooks = [layer.register_forward_pre_hook(self._reader(path)) for path, layer in linear.items()]
        for path, module in self._block.named_modules():
            if path not in linear and not list(module.children()) and list(module.parameters()):
                hooks.append(module.register_forward_hook(self._writer(path)))
        try:
            output = run_block(self._block, hidden, settings)
        finally:
            for hook in hooks:
                hook.remove()
            self._batch.clear()
            self._made.clear()
        return output

    def found(self, before: Sequence[Tensor], after: Sequence[Tensor]) -> BlockInput:
        """The statistics of everything that was run."""
        done: dict[int, LayerInput] = {}
        layers = {}
        for path, sums in self._sums.items():
            if id(sums) not in done:
                done[id(sums)] = sums.result(f"{self._path}.{sums.source}" if sums.source else None)
            layers[f"{self._path}.{path}"] = done[id(sums)]
        pairs = zip(before, after, strict=True)
        cosines = [torch.cosine_similarity(x.float(), y.float(), dim=-1).flatten() for x, y in pairs]
        return BlockInput(layers, 1 - float(torch.cat(cosines).double().mean()))

    def _reader(self, path: str) -> Any:
        def read(module: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0]
            if id(x) in self._batch:
                self._sums.setdefault(path, self._batch[id(x)][1])
                return
            if path not in self._sums:
                _, source = self._made.get(id(x), (x, None))
                self._sums[path] = _Sums(x.shape[-1], x.device, self._hessians, source)
            self._sums[path].add(x.reshape(-1, x.shape[-1]))
            self._batch[id(x)] = (x, self._sums[path])  # holding the tensor keeps its id from being given to another

        return read

    def _writer(self, path: str) -> Any:
        def wrote(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                self._made[id(output)] = (output, path)

        return wrote


class _Sums:
    def __init__(self, width: int, device: torch.device, hessian: bool, source: str | None) -> None:
        self.source = source
        self._tokens = 0
        self._squares = torch.zeros(width, device=device)
        self._sizes = torch.zeros(width, device=device)
        self._products = torch.zeros(width, width, device=device) if hessian else None

    def add(self, rows: Tensor) -> None:
        """Take in rows ``(tokens, in)``."""
        rows = rows.float()
        self._tokens += rows.shape[0]
        self._squares += rows.square().sum(dim=0)
        self._sizes += rows.abs().sum(dim=0)
        if self._products is not None:
            self._products.addmm_(rows.t(), rows)

    def result(self, source: str | None) -> LayerInput:
        count = max(1, self._tokens)
        hessian = None if self._products is None else self._products.div_(count)
        return LayerInput(self._tokens, (self._squares / count).sqrt(), self._sizes / count, hessian, source)
