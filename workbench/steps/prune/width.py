"""Width: narrower blocks, with fewer MLP channels, attention heads or channels of the residual stream."""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from workbench.core.errors import InvalidInput
from workbench.core.progress import Progress
from workbench.layers.calibration import Statistics, statistics
from workbench.models import sharing
from workbench.models.adapters import check_dense
from workbench.models.blocks import Cuts, cut, decoder_blocks, skeleton
from workbench.step import Forecast, Step
from workbench.tasks.task import Task, Text
from workbench.variant import Variant

MLP_SIZES = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")  # what configurations call it

Settings = dict[str, int]  # of a configuration
Dims = dict[str, tuple[int, ...]]  # name of a tensor to the dimensions that become smaller


class Width(Step):
    """Removes the least active MLP channels, attention heads or hidden channels, as many in every block.

    What stays is a plain dense model with smaller matrices, so it is smaller and faster on every device without a
    special kernel. Which channels go is chosen block by block, by how active they are on the calibration data. Expect
    a clear loss of quality: it needs healing afterwards, by distillation from its parent or by fine-tuning. Heads and
    hidden channels can go only where a model states the size of a head by itself (Llama, Qwen, Gemma; not GPT-2).
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2407.14679"
    caveat: ClassVar[str] = "not faster: starting each product takes as long as the narrower one saves"
    needs_data: ClassVar[bool] = True
    mlp: float = Field(
        default=0.25,
        ge=0.0,
        le=0.9,
        description="Share of each MLP's inner channels removed; what stays is rounded up to a multiple of 32.",
    )
    heads: float = Field(
        default=0.0,
        ge=0.0,
        le=0.9,
        description="Share of the key-value heads removed, each with the query heads that read it; what stays is "
        "rounded up to a number that the model allows.",
    )
    hidden: float = Field(
        default=0.0,
        ge=0.0,
        le=0.9,
        description="Share of the residual stream's channels removed everywhere, the embedding too; what stays is "
        "rounded up to a multiple of 8 that the model allows.",
    )

    def apply(self, variant: Variant, task: Task | Text | None, progress: Progress) -> Variant:
        """Calibrate, choose what stays, and select it from every tensor that becomes smaller, each once."""
        chosen = self._chosen(variant)
        if not chosen:
            return variant.derive(self)
        dims = [differing(variant.model, axis.settings(left)) for axis, left in chosen]
        seen = statistics(variant, task, progress)
        cuts: Cuts = {}
        for (axis, left), each in zip(chosen, dims, strict=True):
            cuts |= axis.cuts(each, left, seen)
        model = sharing.share(variant.model)
        for axis, left in chosen:
            configure(model.config, axis.settings(left))
        cut(model, cuts, progress)
        return variant.derive(self, model)

    def forecast(self, variant: Variant) -> Forecast:
        """Bytes from the shapes of the narrower model; the time depends on whether calibration was done before."""
        chosen = self._chosen(variant)
        if not chosen:
            return Forecast(owned_bytes=0, weight_bytes=variant.total_bytes, seconds=0.0)
        config = copy.deepcopy(variant.model.config)
        for axis, left in chosen:
            configure(config, axis.settings(left))
        after = dict(skeleton(config).named_parameters())
        before = {name: tensor for name, tensor in variant.model.named_parameters() if name in after}
        changed = [name for name, tensor in before.items() if tensor.shape != after[name].shape]
        owned = sum(after[name].numel() * before[name].element_size() for name in changed)
        replaced = sum(before[name].numel() * before[name].element_size() for name in changed)
        return Forecast(owned_bytes=owned, weight_bytes=variant.total_bytes - replaced + owned, seconds=None)

    def _chosen(self, variant: Variant) -> list[tuple["_Axis", int]]:
        """What is narrowed, and how much of it stays."""
        model = variant.model
        check_dense(model, variant.name, f"apply {self.label} to its dense parent")
        chosen: list[tuple[_Axis, int]] = []
        before: Settings = {}
        kinds: dict[str, type[_Axis]] = {"mlp": _Channels, "heads": _Heads, "hidden": _Hidden}
        for knob, kind in kinds.items():
            if share := getattr(self, knob):
                axis = kind(model)
                left = axis.left(knob, share, before)
                chosen.append((axis, left))
                before |= axis.settings(left)
        return chosen


class _Axis:
    """Something that a model has many of: how many there are, what its configuration calls them, where they are."""

    size: int
    step: int

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.config = model.config.get_text_config()

    def settings(self, left: int) -> Settings:
        """What the configuration says when so many are left."""
        raise NotImplementedError

    def cuts(self, dims: Dims, left: int, seen: Statistics) -> Cuts:
        """For each dimension that becomes smaller, the indices that stay."""
        raise NotImplementedError

    def left(self, knob: str, share: float, before: Settings) -> int:
        """The fewest that may stay when at most this share goes, beside settings that were changed before.

        Raises:
            InvalidInput: none would go.
        """

        def allowed(left: int) -> bool:
            own = self.settings(left)
            return _valid(self.model.config, own) and _valid(self.model.config, before | own)

        least = math.ceil(self.size * (1 - share) - 1e-9)
        for left in range(-(-least // self.step) * self.step, self.size, self.step):
            if allowed(left):
                return left
        fewer = range((self.size - 1) // self.step * self.step, 0, -self.step)
        most = next((left for left in fewer if allowed(left)), self.size)
        hint = f", or {math.ceil(100 * (1 - most / self.size)) / 100} and more" if most < self.size else ""
        raise InvalidInput(f"{knob}={share} would remove none of the {self.size} that this model has: use 0{hint}.")

    def by_size(self, dims: Dims, names: Iterable[str], stays: Mapping[int, Tensor]) -> Cuts:
        """The indices that stay of each dimension that becomes smaller, found by how long it was."""
        shapes = {name: self.model.get_parameter(name).shape for name in names}
        if any(shapes[name][dim] not in stays for name in shapes for dim in dims[name]):
            raise _unknown(self.model)
        return {(name, dim): stays[shapes[name][dim]] for name in shapes for dim in dims[name]}

    def blocks(self, dims: Dims) -> Iterator[tuple[list[str], str]]:
        """Of every block, the tensors that become smaller and the path of the one layer that reads what is removed."""
        path, blocks = decoder_blocks(self.model)
        for index in range(len(blocks)):
            names = [name for name in dims if name.startswith(f"{path}.{index}.")]
            layers = {name: self.model.get_submodule(name.rpartition(".")[0]) for name in names}
            readers = [
                name.removesuffix(".weight")
                for name, layer in layers.items()
                if name.endswith(".weight") and dims[name] == ((0,) if isinstance(layer, Conv1D) else (1,))
            ]
            linear = all(isinstance(layer, nn.Linear | Conv1D) for layer in layers.values())
            if len(readers) != 1 or not linear:  # experts, or a norm over all heads
                raise _unknown(self.model)
            yield names, readers[0]


class _Channels(_Axis):
    """Inner channels of an MLP, ranked by their mean absolute activation, as the down projection reads it."""

    step = 32  # kernels read whole vectors, and the int8 one only blocks of 32 columns

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        named = {name: getattr(self.config, name, 0) for name in MLP_SIZES}
        self.name = next((name for name, size in named.items() if size != 0 and not isinstance(size, list)), "")
        if not self.name:
            raise InvalidInput(f"{type(model).__name__} has no setting for its MLP channels: set mlp=0.")
        self.size = named[self.name] or 4 * self.config.hidden_size  # what the models that leave it open do

    def settings(self, left: int) -> Settings:
        return {self.name: left}

    def cuts(self, dims: Dims, left: int, seen: Statistics) -> Cuts:
        cuts: Cuts = {}
        for names, reader in self.blocks(dims):
            stays = largest(seen.layers[reader].mean, left)
            fused = torch.cat([stays, stays + self.size])  # gate, then up
            cuts |= self.by_size(dims, names, {self.size: stays, 2 * self.size: fused})
        return cuts


class _Heads(_Axis):
    """Key-value heads with the query heads that read them, ranked by the size of what the output projection reads."""

    step = 1

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.queries, self.head_dim = _head_sizes(model)
        self.size = getattr(self.config, "num_key_value_heads", None) or self.queries

    def settings(self, left: int) -> Settings:
        settings = {"num_attention_heads": left * self.queries // self.size, "head_dim": self.head_dim}
        return settings | ({"num_key_value_heads": left} if hasattr(self.config, "num_key_value_heads") else {})

    def cuts(self, dims: Dims, left: int, seen: Statistics) -> Cuts:
        all_queries, all_keys = self.queries * self.head_dim, self.size * self.head_dim
        cuts: Cuts = {}
        for names, reader in self.blocks(dims):
            stays = largest(seen.layers[reader].norm.square().view(self.size, -1).sum(dim=1), left)
            query, key = members(stays, all_queries // self.size), members(stays, self.head_dim)
            fused = torch.cat([query, key + all_queries, key + all_queries + all_keys])
            for name in names:
                known = (
                    {all_queries + 2 * all_keys: fused} if "qkv_proj" in name else {all_keys: key, all_queries: query}
                )
                cuts |= self.by_size(dims, [name], known)
        return cuts


class _Hidden(_Axis):
    """Channels of the residual stream, the same everywhere, ranked by their mean absolute value behind the norms."""

    step = 8

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.size = self.config.hidden_size
        _, self.head_dim = _head_sizes(model)

    def settings(self, left: int) -> Settings:
        return {"hidden_size": left, "head_dim": self.head_dim}

    def cuts(self, dims: Dims, left: int, seen: Statistics) -> Cuts:
        return self.by_size(dims, dims, {self.size: largest(seen.hidden, left)})


def largest(importance: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest values, ascending."""
    return importance.topk(count).indices.sort().values


def members(groups: Tensor, size: int) -> Tensor:
    """Channels of groups that have `size` each and stand one behind the other."""
    return (groups[:, None] * size + torch.arange(size, device=groups.device)).flatten()


def configure(config: PreTrainedConfig, settings: Settings) -> None:
    """Write settings into a configuration."""
    for name, value in settings.items():
        setattr(config.get_text_config(), name, value)


def differing(model: PreTrainedModel, settings: Settings) -> Dims:
    """Which dimensions of which tensors get another size when these settings of the configuration change."""
    config = copy.deepcopy(model.config)
    configure(config, settings)
    after = dict(skeleton(config).named_parameters(remove_duplicate=False))
    found: Dims = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        if name not in after:
            raise _unknown(model)
        dims = tuple(dim for dim in range(tensor.dim()) if tensor.shape[dim] != after[name].shape[dim])
        if dims:
            found[name] = dims
    return found


def _valid(config: PreTrainedConfig, settings: Settings) -> bool:
    """Whether the configuration's own checks pass: some want the hidden size to be divisible by the query heads."""
    changed = copy.deepcopy(config)
    configure(changed, settings)
    try:
        type(config).from_dict(changed.to_dict())
    except Exception:  # each class has its own way to refuse
        return False
    return True


def _head_sizes(model: PreTrainedModel) -> tuple[int, int]:
    """Number of query heads, and channels of a head.

    Raises:
        InvalidInput: the size of a head follows from the hidden size, so that neither can be changed alone.
    """
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", 0)
    head_dim = (getattr(config, "head_dim", None) or config.hidden_size // heads) if heads else 0
    derived = isinstance(getattr(type(config), "head_dim", None), property)
    if not heads or derived or not differing(model, {"head_dim": 2 * head_dim}):
        raise InvalidInput(
            f"{type(model).__name__} has no size of a head apart from its hidden size: set heads and hidden to 0."
        )
    return heads, head_dim


def _unknown(model: PreTrainedModel) -> InvalidInput:
    return InvalidInput(
        f"Width does not know how this part of {type(model).__name__} is built: turn another of its knobs, or prune "
        "whole blocks with DropBlocks."
    )
