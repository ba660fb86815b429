"""What the linear layers of a model are fed: one pass over calibration text, block by block, shared by every method.

Only one block's activations are held at a time. Statistics are kept as long as the model they were taken from, so that
another method, or another position of a slider, does not pay for the pass again; of all models together within a bound,
beyond which those that were not used for longest are given up.
"""

import itertools
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from workbench.answering.request import Request
from workbench.answering.stage import stage_to_json
from workbench.core.errors import InvalidInput
from workbench.core.progress import Progress
from workbench.layers.activations import BlockInput, LayerInput, walk
from workbench.models.adapters import check_dense
from workbench.models.blocks import decoder_blocks
from workbench.models.experts import as_layers
from workbench.models.packed import dense_weight, linear_layers
from workbench.models.tokens import cut_windows, encode_answer, start_tokens
from workbench.tasks.task import Task, Text
from workbench.variant import Variant

WINDOW = 512  # tokens; the examples of a task are joined and cut into windows of this length
MOST_WINDOWS = 128  # the size of the usual calibration sets; more changes little
KEPT_BYTES = 2 << 30  # of all statistics; a larger set is taken again each time it is needed


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

    @cached_property
    def bytes(self) -> int:
        """Memory that it takes."""
        inputs = {id(seen): seen for seen in self.layers.values()}
        tensors = [
            each
            for seen in inputs.values()
            for each in (seen.norm, seen.mean, seen.peak, seen.hessian)
            if each is not None
        ]
        return sum(each.nbytes for each in tensors)

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


class _Kept:
    """Statistics by model and by what they were taken on, the least recently used given up first."""

    def __init__(self) -> None:
        self._found: WeakKeyDictionary[PreTrainedModel, dict[str, tuple[int, Statistics]]] = WeakKeyDictionary()
        self._uses = itertools.count()
        self._lock = threading.RLock()

    def get(self, model: PreTrainedModel, key: str) -> Statistics | None:
        """What was kept, which is thereby used."""
        with self._lock:
            kept = self._found.get(model, {})
            if key not in kept:
                return None
            found = kept[key][1]
            kept[key] = next(self._uses), found
            return found

    def put(self, model: PreTrainedModel, key: str, found: Statistics) -> None:
        """Keep it, in place of what has its key or was used longest ago."""
        with self._lock:
            self._found.setdefault(model, {})[key] = next(self._uses), found
            while self.bytes > KEPT_BYTES:
                ages = {use: (kept, key) for kept in self._found.values() for key, (use, _) in kept.items()}
                kept, oldest = ages[min(ages)]
                del kept[oldest]

    @property
    def bytes(self) -> int:
        """Of all that is kept."""
        with self._lock:
            return sum(found.bytes for kept in self._found.values() for _, found in kept.values())


_kept = _Kept()


def kept_bytes() -> int:
    """Memory that statistics take which are kept for the next step."""
    return _kept.bytes


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
    check_dense(variant.model, variant.name, "apply the step to its dense parent, which can be calibrated")
    key = _key(variant, task)
    known = _kept.get(variant.model, key)
    if sequential:
        yield from walk(model, calibration_windows(variant, task), progress, hessians, rerun=True)
    elif known and (not hessians or _has_hessians(known)):
        yield from progress.track("Changing blocks", known.blocks, len(known.blocks))
    else:
        plain = as_layers(variant.model)
        room = not hessians or _hessian_bytes(plain) <= KEPT_BYTES
        seen: list[BlockInput] = []
        for block in walk(plain, calibration_windows(variant, task), progress, hessians, rerun=False):
            if room:
                seen.append(block)
            yield block
        if room:
            _kept.put(variant.model, key, Statistics(tuple(seen)))


def _key(variant: Variant, task: Task | Text | None) -> str:
    """What the calibration windows depend on: the task, the stages that its examples pass, and what those look up."""
    stages = () if isinstance(task, Text) else variant.stages
    asked = [[stage_to_json(each), each.reads] for each in stages]
    engine = variant.engine if stages else ""  # some stages read with it
    return f"{task.fingerprint if task else ''} {engine} {json.dumps(asked)}"


def calibration_windows(variant: Variant, task: Task | Text | None) -> list[list[int]]:
    """Token windows of equal length to calibrate on.

    A text has its own. The examples of a task, each its prompt and answer as the variant is asked, are joined and cut;
    every window begins as the tokenizer begins a text.

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
        joined += variant.encode(Request.example(task, example)) + encode_answer(variant.tokenizer, example.answer)
        if len(joined) >= WINDOW * MOST_WINDOWS:
            break
    if len(joined) < 2:
        raise InvalidInput(f"Task '{task.name}' has no calibration examples: add rows to its calibration split.")
    length = min(WINDOW, variant.context_length, len(joined))
    return cut_windows(joined, length, start_tokens(variant.tokenizer))[:MOST_WINDOWS]


def _has_hessians(found: Statistics) -> bool:
    return all(seen.hessian is not None for seen in found.layers.values())


def _hessian_bytes(model: PreTrainedModel) -> int:
    """An upper bound: layers that share an input share a Hessian."""
    return sum(4 * dense_weight(layer).shape[1] ** 2 for _, layer in linear_layers(decoder_blocks(model)[1]))
