"""Mixtures of experts as linear layers, one an expert and projection, over the memory of the model's own.

transformers holds the experts of a mixture as parameters ``(experts, out, in)``, which no step that works on linear
layers would see.
"""

import copy
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from workbench.models import sharing
from workbench.models.blocks import decoder_blocks
from workbench.models.packed import Packed, dense_weight, linear_layers, replace_module

PROJECTIONS = ("gate_up_proj", "up_proj", "down_proj")  # as transformers' integrations/moe.py names them
NEARLY_ALL = 0.95  # of the weights in the blocks
HALVES = (torch.float16, torch.bfloat16)  # the first is closer, the second has the range of float32
CLOSE = 1e-3  # relative; a rule of combination that is not understood is far off


class Experts(nn.Module):
    """Stands in for an architecture's experts; gives what they give.

    Its children are modules by the name of a projection, and theirs the experts' linear layers by number. Each is fed
    the tokens routed to that expert and no others.

    Args:
        own: what it stands in for: a module of the kind that transformers' `use_experts_implementation` makes.
    """

    def __init__(self, own: nn.Module) -> None:
        super().__init__()
        self.rule = copy.copy(own)  # for its activation and gate; without the weights, which would stay in memory
        self.rule._parameters = {}
        self.count = len(own.get_parameter("down_proj"))
        self.transposed = bool(own.is_transposed)
        for name in _projections(own):
            weights, biases = own.get_parameter(name), own._parameters.get(f"{name}_bias")
            layers = [
                _linear(weight.t() if self.transposed else weight, None if biases is None else biases[index])
                for index, weight in enumerate(weights)
            ]
            self.add_module(name, nn.ModuleDict({str(index): layer for index, layer in enumerate(layers)}))

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """``(tokens, hidden)``, the chosen experts and their weights ``(tokens, chosen)`` to ``(tokens, hidden)``."""
        rule: Any = self.rule
        up, down = (self.get_submodule(name) for name in self.projections)
        out = torch.zeros_like(hidden_states, dtype=torch.float32)
        for expert in sorted(set(top_k_index.flatten().tolist())):
            if expert >= self.count:  # stands for no expert
                continue
            tokens, places = torch.where(top_k_index == expert)
            inner = self._run(up, expert, hidden_states[tokens], tokens)
            inner = rule._apply_gate(inner) if rule.has_gate else rule.act_fn(inner)
            made = self._run(down, expert, inner, tokens)
            out.index_add_(0, tokens, (made * top_k_weights[tokens, places, None]).float())
        return out.to(hidden_states.dtype)

    @staticmethod
    def _run(layers: nn.Module, expert: int, rows: Tensor, tokens: Tensor) -> Tensor:
        layer: Any = layers.get_submodule(str(expert))
        layer.tokens = tokens  # which rows these are, for whoever watches the layer
        made: Tensor = layer(rows)
        layer.tokens = None
        return made

    @property
    def projections(self) -> tuple[str, ...]:
        """Names of its projections, the first one first."""
        return tuple(name for name in PROJECTIONS if name in self._modules)

    def joined(self) -> dict[str, Tensor]:
        """Weights and biases by name as the architecture holds them, on the CPU; packed ones unpacked, in 16 bits."""
        found: dict[str, Tensor] = {}
        for name in self.projections:
            layers = list(self.get_submodule(name).children())
            weights = torch.stack([_shown(layer) for layer in layers])
            found[name] = weights.transpose(1, 2).contiguous() if self.transposed else weights
            biases = [layer.bias.cpu() for layer in layers if isinstance(layer.bias, Tensor)]
            if biases:
                found[f"{name}_bias"] = torch.stack(biases)
        return found


def _shown(layer: nn.Module) -> Tensor:
    """The weight ``(out, in)`` of a layer for readers that know no packed one."""
    weight = dense_weight(layer).cpu()
    if not isinstance(layer, Packed):
        return weight
    return next((half for half in map(weight.to, HALVES) if half.isfinite().all()), weight.to(HALVES[-1]))


_split: "WeakKeyDictionary[PreTrainedModel, PreTrainedModel]" = WeakKeyDictionary()


def as_layers(model: PreTrainedModel) -> PreTrainedModel:
    """The model with its experts as linear layers: a copy that shares all tensors, or itself if it has no others.

    The copy is kept as long as the model and must not be changed.
    """
    if model not in _split:
        found = [path for path, module in model.named_modules() if _fits(module)]
        if not found:
            return model
        _split[model] = sharing.share(model)
        put_in_place(_split[model], found)
    return _split[model]


def gather(model: PreTrainedModel) -> None:
    """Put the architecture's own modules, which are faster, back into a copy of a model where all experts are dense."""
    for path, experts in list(all_experts(model)):
        layers = [layer for name in experts.projections for layer in experts.get_submodule(name).children()]
        if any(type(layer) is not nn.Linear for layer in layers):
            continue
        own = copy.copy(experts.rule)
        held = {name: tensor.to(model.device) for name, tensor in experts.joined().items()}
        own._parameters = {name: nn.Parameter(tensor, requires_grad=False) for name, tensor in held.items()}
        replace_module(model, path, own)


def put_in_place(model: nn.Module, paths: Collection[str]) -> None:
    """Split the experts at these paths of a model that the caller owns."""
    for path in paths:
        replace_module(model, path, Experts(model.get_submodule(path)))


def all_experts(model: nn.Module) -> Iterator[tuple[str, Experts]]:
    """Path and module of all experts that are linear layers."""
    for path, module in model.named_modules():
        if isinstance(module, Experts):
            yield path, module


def expert_layers(model: nn.Module) -> frozenset[str]:
    """Paths of the linear layers that are those of an expert."""
    return frozenset(f"{path}.{name}" for path, experts in all_experts(model) for name, _ in linear_layers(experts))


def _fits(module: nn.Module) -> bool:
    """Whether a module holds experts in the way that is known here, tried on a few numbers."""
    marks = ("has_gate", "has_bias", "is_transposed", "down_proj")
    if isinstance(module, Experts) or not all(hasattr(module, each) for each in marks):
        return False
    if any(True for child in module.children() for _ in (*child.parameters(), *child.buffers())):
        return False
    return all(isinstance(module._parameters.get(each), Tensor) for each in _projections(module)) and _agrees(module)


def _projections(own: nn.Module) -> list[str]:
    return ["gate_up_proj" if own.has_gate else "up_proj", "down_proj"]


@torch.no_grad()
def _agrees(own: nn.Module) -> bool:
    down = own.get_parameter("down_proj")
    width = down.shape[2] if own.is_transposed else down.shape[1]
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(4, width, generator=draw).to(down.device, down.dtype)
    chosen = torch.arange(8).view(4, 2).remainder(down.shape[0]).to(down.device)
    weights = torch.rand(4, 2, generator=draw).to(down.device, down.dtype)
    wanted, given = own(rows, chosen, weights).float(), Experts(own)(rows, chosen, weights).float()
    bound = CLOSE if down.dtype == torch.float32 else 0.05
    return bool((given - wanted).norm() <= bound * wanted.norm())


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


def coverage(model: PreTrainedModel, paths: Collection[str], label: str) -> tuple[str, ...]:
    """A sentence on how much of the decoder blocks a step reaches, where that is not nearly all; else none.

    Args:
        model: with its experts as layers.
        paths: of the layers that the step works on.
        label: what the step is called.
    """
    root, blocks = decoder_blocks(model)
    chosen = {path.removeprefix(f"{root}.") for path in paths if path.startswith(f"{root}.")}
    reached, left = 0, Counter[str]()
    for path, module in blocks.named_modules():
        size = _weights(module)
        if path in chosen:
            reached += size
        elif size:
            left["excluded layers" if isinstance(module, nn.Linear | Conv1D) else type(module).__name__] += size
    share = reached / max(1, reached + left.total())
    if share >= NEARLY_ALL:
        return ()
    rest = " and ".join(name for name, _ in left.most_common(2))
    return (f"{label} reached {share:.0%} of the weights in the blocks; the rest is in {rest}.",)


def _weights(module: nn.Module) -> int:
    """How many weights a module holds itself, those in a table of numbers."""
    if isinstance(module, Packed):
        return module.out_features * module.in_features
    return sum(each.numel() for each in module.parameters(recurse=False) if each.ndim > 1)
