"""What the linear layers of a model are fed while it runs block by block; only one block's inputs are held."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.core.progress import Progress
from workbench.layers.blockwise import check_walk, enter_blocks, run_block
from workbench.models.blocks import decoder_blocks
from workbench.models.packed import linear_layers
from workbench.runtime.forward import using

BATCH_TOKENS = {"cpu": 2048, "cuda": 8192}
PARTS = 4  # of a symmetric product: half of it is left out, block by block


@dataclass(frozen=True)
class LayerInput:
    """What a linear layer was fed; layers that read one tensor share one `LayerInput`.

    Attributes:
        tokens: how many were seen.
        norm: root mean square of each input channel, ``(in,)`` float32.
        mean: mean absolute value of each input channel, ``(in,)`` float32.
        peak: largest absolute value of each, likewise.
        hessian: mean of ``x xT``, ``(in, in)`` float32, if it was asked for. Half of it is the layer's squared error.
        source: path of the normalization whose output this is, if it is one.
    """

    tokens: int
    norm: Tensor
    mean: Tensor
    peak: Tensor
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


def walk(
    model: PreTrainedModel, windows: list[list[int]], progress: Progress, hessians: bool, rerun: bool
) -> Iterator[BlockInput]:
    """Run the blocks on windows ``(tokens,)`` of equal length and yield what the linear layers of each were fed.

    Args:
        model: whose blocks are run.
        windows: token ids.
        progress: advances once a block.
        hessians: whether `LayerInput.hessian` is wanted.
        rerun: the caller may have changed a block when it asks for the next one, so it is run again.
    """
    path, blocks = decoder_blocks(model)
    progress.start("Calibrating", len(blocks))
    with using("Calibration"):
        size = _batch_size(len(windows), len(windows[0]), model.device)
        check_walk(model)
        states, settings = enter_blocks(model, windows, size)
    for index, block in enumerate(blocks):
        with using("Calibration"):
            watch = _Watch(block, f"{path}.{index}", hessians)
            after = [watch.run(state, settings[index]) for state in states]
            seen = watch.found(states, after)
        yield seen
        if rerun:
            with using("Calibration"):
                after = [run_block(block, state, settings[index]) for state in states]
        states = after
        progress.advance()


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
        self._read_elsewhere: dict[int, Tensor] = {}  # by address; held, so that no other tensor gets it

    def run(self, hidden: Tensor, settings: dict[str, Any]) -> Tensor:
        """The block's output, its linear layers watched."""
        linear = dict(linear_layers(self._block))
        hooks = [layer.register_forward_pre_hook(self._reader(path)) for path, layer in linear.items()]
        for path, module in self._block.named_modules():
            if path in linear or not any(True for _ in module.parameters(recurse=False)):
                continue
            hooks.append(module.register_forward_pre_hook(self._other_reader))
            if not any(True for _ in module.children()):
                hooks.append(module.register_forward_hook(self._writer(path)))
        try:
            output = run_block(self._block, hidden, settings)
        finally:
            for hook in hooks:
                hook.remove()
            for x, sums in self._batch.values():
                if x.data_ptr() in self._read_elsewhere:  # what a linear layer shares with another kind of layer
                    sums.source = None
            self._batch.clear()
            self._made.clear()
            self._read_elsewhere.clear()
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

    def _other_reader(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._read_elsewhere.update((x.data_ptr(), x) for x in args if isinstance(x, Tensor))

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
        self._peaks = torch.zeros(width, device=device)
        self._products = torch.zeros(width, width, device=device) if hessian else None

    def add(self, rows: Tensor) -> None:
        """Take in rows ``(tokens, in)``."""
        rows = rows.float()
        self._tokens += rows.shape[0]
        self._squares += rows.square().sum(dim=0)
        sizes = rows.abs()
        self._sizes += sizes.sum(dim=0)
        if len(sizes):  # experts may be fed nothing
            self._peaks = torch.maximum(self._peaks, sizes.amax(dim=0))
        if self._products is not None:
            columns = -(-rows.shape[1] // PARTS)
            for start in range(0, rows.shape[1], columns):
                stop = start + columns
                self._products[start:stop, start:].addmm_(rows[:, start:stop].t(), rows[:, start:])

    def result(self, source: str | None) -> LayerInput:
        count = max(1, self._tokens)
        hessian = self._products
        if hessian is not None:
            hessian.triu_().add_(hessian.triu(1).t()).div_(count)
        norm, mean = (self._squares / count).sqrt(), self._sizes / count
        return LayerInput(self._tokens, norm, mean, self._peaks, hessian, source)
