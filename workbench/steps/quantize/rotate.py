"""Rotation: the hidden states are turned so that no channel is larger than the others, before anything is rounded."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.core.errors import InvalidInput
from workbench.core.progress import Progress
from workbench.core.units import size
from workbench.layers.activations import LayerInput, walk
from workbench.layers.scaling import divided_norm, followed, readers, weight_of
from workbench.layers.step import with_weight
from workbench.models import sharing
from workbench.models.adapters import check_dense
from workbench.models.blocks import decoder_blocks
from workbench.models.packed import dense_weight, linear_layers, replace_module
from workbench.runtime import trial
from workbench.runtime.forward import using
from workbench.step import Forecast, Step
from workbench.steps.quantize.head import is_tied, path_of
from workbench.tasks.task import Task, Text
from workbench.variant import Variant

TRIED = 24  # tokens on which the turned model must say what it said
LARGE = 1e3  # of a hidden state, beside which what a normalization adds before its root is nothing


class Rotate(Step):
    """Turns the hidden states so that none of their channels stands out; the model computes what it did.

    A random orthogonal matrix, worked into the weights, spreads what is large in a few channels over all of them, so
    that rounding *activations*, as Int8Dynamic does, costs less, without any data. Rounding weights alone, in groups,
    may well cost more: weights that read large channels are often small, and afterwards all bear an equal error.
    Nothing more is done for a token, and the result is a plain model. Needs normalizations by the root mean square, as
    Llama, Qwen and Mistral have them. Where head and embedding are one table they become two. Of QuaRot, what would
    have to be done for every token is left out.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2404.00456"
    caveat: ClassVar[str] = "not faster: this step only makes ready for one that rounds"
    heads: bool = Field(default=True, description="Turn what each attention head passes on, too.")
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="Of the matrix that is drawn.")

    def apply(self, variant: Variant, task: Task | Text | None, progress: Progress) -> Variant:
        """Turn every layer that reads or writes the hidden states, and see that the model says the same."""
        check_dense(variant.model, variant.name, f"apply {self.label} to its dense parent")
        ids, model, notes = trial.some_tokens(variant.model, TRIED), sharing.share(variant.model), []
        seen = walk(model, [ids], progress, hessians=False, rerun=False)
        inputs = {path: each for block in seen for path, each in block.layers.items()}
        if is_tied(model):
            table = dense_weight(model.get_input_embeddings()).nbytes
            notes.append(f"Head and embedding, one table before, are two now: {size(table)} more.")
        with using(self.label):
            self._turn(model, inputs)
            before, after = (_logits(each, ids) for each in (variant.model, model))
        sharing.settle_tie(model, model.config)
        off = float((after - before).norm() / before.norm().clamp(min=1e-30))
        if not off < trial.ROUNDING.get(variant.dtype, trial.COARSE):
            raise _refusal(model)
        return variant.derive(self, model, notes)

    def forecast(self, variant: Variant) -> Forecast:
        """All matrices are new, and the head is a table of its own."""
        model = variant.model
        more = dense_weight(model.get_input_embeddings()).nbytes if is_tied(model) else 0
        whole = variant.total_bytes + more
        return Forecast(owned_bytes=whole, weight_bytes=whole, seconds=None)

    def _turn(self, model: PreTrainedModel, inputs: Mapping[str, LayerInput]) -> None:
        """Change a copy of a model, layer by layer."""
        path, blocks = decoder_blocks(model)
        head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
        paths = {f"{path}.{each}" for each, _ in linear_layers(blocks)}
        if head is None or not isinstance(embedding, nn.Embedding) or paths != set(inputs):
            raise _refusal(model)
        hidden = embedding.weight.shape[1]
        turn = orthogonal(hidden, self.seed).to(model.device)
        last, *others = [name for name in _norms(model, hidden) if not name.startswith(f"{path}.")] or [""]
        if others or not last:
            raise _refusal(model)
        if self.heads:
            _turn_heads(model, inputs, self.seed)
        groups = {source: each for source, each in readers(inputs).items() if source in _norms(model, hidden)}
        for source, those in (*groups.items(), (last, [path_of(model, head)])):
            gain = _gain(model.get_submodule(source), hidden)
            norm = divided_norm(model.get_submodule(source), gain)
            if norm is None:
                raise _refusal(model)
            replace_module(model, source, norm)
            for each in those:
                _replace(model, each, (weight_of(model, each) * gain) @ turn)
        for each in sorted(paths - {name for those in groups.values() for name in those}):
            if not inputs[each].source and len(weight_of(model, each)) == hidden:
                _replace(model, each, turn.t() @ weight_of(model, each), turn.t())
        _replace(model, path_of(model, embedding), embedding.weight.float() @ turn)


def orthogonal(size: int, seed: int) -> Tensor:
    """A random orthogonal matrix ``(size, size)`` that spreads every channel over many, in float32.

    Of a Hadamard matrix (Sylvester's, as large as a power of two divides the size), a random orthogonal one for what is
    left of the size, and random signs.
    """
    chance, power = torch.Generator().manual_seed(seed), size & -size
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    while len(hadamard) < power:
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    rest, corner = torch.linalg.qr(torch.randn(size // power, size // power, generator=chance, dtype=torch.float64))
    signs = torch.randint(0, 2, (size, 1), generator=chance) * 2.0 - 1
    return (signs * torch.kron((rest * corner.diagonal().sign()).contiguous(), hadamard / power**0.5)).float()


def _turn_heads(model: PreTrainedModel, inputs: Mapping[str, LayerInput], seed: int) -> None:
    """Turn what each attention head passes on, where the layers that make and read it are known."""
    config = model.config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    turn = orthogonal(int(width), seed).to(model.device)
    for reader, feeder in followed(inputs, inputs.keys()).items():
        values, output = weight_of(model, feeder), weight_of(model, reader)
        if reader.endswith("o_proj") and len(values) % width == 0 == output.shape[1] % width:
            _replace(model, reader, (output.view(len(output), -1, width) @ turn).flatten(1))
            every = torch.kron(torch.eye(len(values) // width, device=model.device), turn.t().contiguous())
            _replace(model, feeder, every @ values, every)


def _norms(model: PreTrainedModel, hidden: int) -> list[str]:
    """Paths of what has one weight a channel of the hidden states."""
    weights = ((path, getattr(module, "weight", None)) for path, module in model.named_modules())
    return [path for path, weight in weights if isinstance(weight, Tensor) and weight.shape == (hidden,)]


def _gain(norm: nn.Module, hidden: int) -> Tensor:
    """By what a normalization multiplies each channel ``(hidden,)``, in float32; ones where it makes nothing of one."""
    weight = norm.weight
    assert isinstance(weight, Tensor)
    gain: Tensor = norm(torch.full((1, hidden), LARGE, dtype=weight.dtype, device=weight.device))[0].float()
    return torch.where(gain == 0, torch.ones_like(gain), gain)


def _logits(model: PreTrainedModel, ids: list[int]) -> Tensor:
    logits: Tensor = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits
    return logits.float()


def _replace(model: PreTrainedModel, path: str, weight: Tensor, turn: Tensor | None = None) -> None:
    """Give a layer another weight ``(out, in)``, and turn its bias ``(out,)`` as its rows were."""
    layer = model.get_submodule(path)
    kind = dense_weight(layer).dtype
    changed = with_weight(layer, weight.to(kind).contiguous())
    if turn is not None and isinstance(bias := getattr(layer, "bias", None), Tensor):
        changed.bias = nn.Parameter((turn @ bias.float()).to(kind), requires_grad=False)
    replace_module(model, path, changed)


def _refusal(model: PreTrainedModel) -> InvalidInput:
    return InvalidInput(
        f"The hidden states of {type(model).__name__} cannot be turned: that needs blocks which are normalized by the "
        "root mean square, read so, and added to, as in Llama, Qwen and Mistral."
    )
