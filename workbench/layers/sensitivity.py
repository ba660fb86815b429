"""How much each layer minds being changed: the divergence that a step would cause in one layer, at several strengths.

Applying and scoring every cell takes a forward pass a cell. Here all cells share one pass: to second order, the
divergence that a small change of a layer's output causes is half the expected square of its product with the gradient
of the log-likelihood of tokens drawn from the model (the Fisher information). One gradient serves every strength.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.core.drawn import Drawn, drawn
from workbench.core.errors import InvalidInput
from workbench.core.estimate import CONFIDENCE
from workbench.core.line import watched
from workbench.core.progress import Progress
from workbench.layers import calibration
from workbench.layers.activations import LayerInput
from workbench.layers.blockwise import beside_hidden, check_walk, enter_blocks, run_block, with_beside
from workbench.layers.calibration import calibration_windows
from workbench.layers.step import LayerStep, alike, check_fed
from workbench.models import sharing
from workbench.models.blocks import decoder_blocks
from workbench.models.experts import as_layers
from workbench.models.packed import dense_weight, linear_layers
from workbench.models.tokens import cut_windows, start_tokens
from workbench.runtime.forward import using
from workbench.tasks.task import Task, Text
from workbench.variant import Variant

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

TOKENS = 64  # of a window; more windows tell more than longer ones
WINDOWS = 16
DRAWS = 8  # of tokens for every window
SEED = 0
RESAMPLES = 1000


@dataclass(frozen=True)
class Sensitivity(Drawn):
    """Divergence from the dense model, in nats a token, if one layer alone were changed.

    Attributes:
        step: the kind of step, as in code.
        knob: the field that was varied.
        strengths: its values, one a column.
        layers: paths inside the decoder blocks such as ``0.mlp.down_proj``, one a row.
        kl: ``(layers, strengths)``, to second order: exact for small changes, too high for ruinous ones.
        low: lower end of the interval of every cell.
        high: upper end.
    """

    step: str
    knob: str
    strengths: tuple[float, ...]
    layers: tuple[str, ...]
    kl: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def table(self) -> "pandas.DataFrame":
        """One row a layer, one column a strength, in nats a token."""
        import pandas

        return pandas.DataFrame(self.kl, index=list(self.layers), columns=list(self.strengths))

    def figure(self, transparent: bool = False) -> "plotly.graph_objects.Figure":
        """A heat map of blocks and modules for every strength, in one colour scale."""
        return drawn(self, transparent=transparent)


@watched
def sensitivity(
    variant: Variant,
    task: Task | Text,
    step: type[LayerStep] | LayerStep,
    strengths: Sequence[float] | None = None,
    *,
    windows: int = WINDOWS,
    draws: int = DRAWS,
    progress: Progress | None = None,
) -> Sensitivity:
    """How far the model would move if a step changed one layer alone, for every layer and several strengths.

    Args:
        variant: a dense variant.
        task: its calibration split is read; a step that calibrates does so on the same.
        step: a kind of step that changes layers, such as ``prune.Wanda``, or one with its other knobs set.
        strengths: values of the step's `strength` knob; by default the step's own `strengths`.
        windows: how many stretches of 64 tokens are read.
        draws: how many gradients are taken on each; `windows` times `draws` samples stand behind every cell.
        progress: cancel and progress.

    Raises:
        InvalidInput: the step does not change layers, or a strength is out of its range.
    """
    template = step() if isinstance(step, type) else step
    if not isinstance(template, LayerStep) or not template.strength:
        raise InvalidInput(f"{template.label} does not change layers one by one: use a step such as prune.Wanda.")
    if windows < 1 or draws < 1:
        raise InvalidInput("sensitivity() needs at least one window and one draw.")
    progress = progress or Progress()
    chosen = template.layers(variant)
    values = tuple(strengths or template.strengths)
    steps = [type(template)(**template.model_dump() | {template.strength: value}) for value in values]
    fed: Mapping[str, LayerInput | None] = dict.fromkeys(chosen)
    model = as_layers(variant.model)
    if template.needs_data:
        fed = calibration.statistics(variant, task, progress, template.hessians).layers
        left = set(chosen) - fed.keys()
        check_fed(model, left)
        fed = {**fed, **{path: alike(model.get_submodule(path), template.hessians) for path in left}}
    ids = read_windows(variant, task, windows)
    dots = _gradient_products(model, ids, steps, {path: fed[path] for path in chosen}, draws, progress)
    samples = np.stack([dots[path] for path in chosen])  # (layers, strengths, draws, windows)
    samples = np.square(samples).mean(axis=2) / 2 / (ids.shape[1] - 1)
    low, high = _interval(samples)
    root = decoder_blocks(model)[0]
    names = tuple(path.removeprefix(f"{root}.") for path in chosen)
    return Sensitivity(template.full_name(), template.strength, values, names, samples.mean(axis=-1), low, high)


def read_windows(variant: Variant, task: Task | Text, count: int) -> Tensor:
    """Token ids ``(windows, tokens)`` from the calibration split, at most so many windows."""
    start = start_tokens(variant.tokenizer)
    joined = [token for window in calibration_windows(variant, task) for token in window[len(start) :]]
    length = min(TOKENS, len(joined) + len(start))
    return torch.tensor(cut_windows(joined, length, start)[:count], device=variant.device)


def _gradient_products(
    model: PreTrainedModel,
    ids: Tensor,
    steps: Sequence[LayerStep],
    layers: Mapping[str, LayerInput | None],
    draws: int,
    progress: Progress,
) -> dict[str, np.ndarray]:
    """For every layer, the change of the drawn tokens' log-likelihood, ``(steps, draws, windows)``, to first order."""
    root, blocks = decoder_blocks(model)
    with using("Measuring sensitivity"):
        check_walk(model)
        entering, settings = enter_blocks(model, ids.tolist(), len(ids))
        states = [entering[0]]
        for block, setting in zip(blocks, settings, strict=True):
            states.append(run_block(block, states[-1], setting))
        gradients = _head_gradients(model, ids, states.pop(), draws)
    found: dict[str, np.ndarray] = {}
    progress.start("Sensitivity: block by block", len(blocks))
    for index in reversed(range(len(blocks))):
        with using("Measuring sensitivity"):
            inside, gradients = _through_block(blocks[index], states.pop(), settings[index], gradients)
            for path, (fed, tokens, slopes) in inside.items():
                whole = f"{root}.{index}.{path}"
                if whole in layers:
                    weight = dense_weight(model.get_submodule(whole)).float()
                    moved = [fed.float() @ (step.change(weight, layers[whole]) - weight).t() for step in steps]
                    if tokens is not None:
                        moved, slopes = (_spread(each, tokens, ids.numel()) for each in (moved, slopes))
                    found[whole] = _products(moved, slopes, len(ids))
        progress.advance()
    for path in layers.keys() - found.keys():  # experts that no token chose
        found[path] = np.zeros((len(steps), draws, len(ids)), dtype=np.float32)
    return found


def _spread(rows: Sequence[Tensor], tokens: Tensor, count: int) -> list[Tensor]:
    """Rows ``(chosen, out)`` of an expert in their tokens' places among all, ``(count, out)``, with zeros between."""
    return [each.new_zeros(count, each.shape[-1]).index_copy_(0, tokens, each) for each in rows]


def _products(moved: Sequence[Tensor], slopes: Sequence[Tensor], windows: int) -> np.ndarray:
    """Inner products over tokens and channels, ``(moved, slopes, windows)``.

    The tensors are ``(windows, tokens, out)``; some models flatten the first two.
    """
    ours = torch.stack([each.reshape(windows, -1) for each in moved], dim=1)
    theirs = torch.stack([each.float().reshape(windows, -1) for each in slopes], dim=2)
    return (ours @ theirs).permute(1, 2, 0).cpu().numpy()


def _head_gradients(model: PreTrainedModel, ids: Tensor, hidden: Tensor, draws: int) -> list[Tensor]:
    """For every draw of next tokens from the model, the gradient of their log-likelihood at the last block's output."""
    probe, beside = sharing.share(model), beside_hidden(model)
    _, blocks = decoder_blocks(probe)
    for block in blocks:
        block.forward = lambda state, *args, **settings: with_beside(state, beside)
    draw = torch.Generator(device=ids.device).manual_seed(SEED)
    gradients = [torch.empty_like(hidden) for _ in range(draws)]
    for row in range(len(ids)):
        leaf = hidden[row : row + 1].detach().requires_grad_()
        blocks[-1].forward = lambda state, *args, leaf=leaf, **settings: with_beside(leaf, beside)
        with torch.enable_grad():
            logs = probe(input_ids=ids[row : row + 1], use_cache=False).logits[0, :-1].float().log_softmax(dim=-1)
            drawn = torch.multinomial(logs.detach().exp(), draws, replacement=True, generator=draw)
            for each, tokens in zip(gradients, drawn.t(), strict=True):
                likelihood = logs.gather(1, tokens[:, None]).sum()
                (each[row : row + 1],) = torch.autograd.grad(likelihood, leaf, retain_graph=True)
    return gradients


def _through_block(
    block: nn.Module, state: Tensor, settings: dict[str, Any], gradients: Sequence[Tensor]
) -> tuple[dict[str, tuple[Tensor, Tensor | None, list[Tensor]]], list[Tensor]]:
    """What every linear layer was fed, of which tokens, the gradients at its output; and those at the block's input."""
    seen: dict[str, tuple[Tensor, Tensor | None, Tensor]] = {}

    def note(path: str) -> Any:
        return lambda module, args, output: seen.__setitem__(
            path, (args[0].detach(), getattr(module, "tokens", None), output)
        )

    hooks = [layer.register_forward_hook(note(path)) for path, layer in linear_layers(block)]
    leaf = state.detach().requires_grad_()
    try:
        with torch.enable_grad():
            output = run_block(block, leaf, settings)
    finally:
        for hook in hooks:
            hook.remove()
    points = [leaf, *(made for *_, made in seen.values())]
    slopes = [torch.autograd.grad(output, points, each, retain_graph=True) for each in gradients]
    inside = {path: (*found[:2], [each[at] for each in slopes]) for at, (path, found) in enumerate(seen.items(), 1)}
    return inside, [each[0] for each in slopes]


def _interval(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the bootstrap interval of the mean over the last axis, ``(windows,)``, for every cell."""
    draw = np.random.default_rng(SEED)
    weights = draw.multinomial(samples.shape[-1], np.full(samples.shape[-1], 1 / samples.shape[-1]), RESAMPLES)
    means = samples @ weights.T / samples.shape[-1]
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=-1)
    return low, high
