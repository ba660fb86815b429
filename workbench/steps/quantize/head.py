"""The output head in 8 bits, and with it the token embedding that reads the same table."""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.layers.opaque import opaque_layers
from workbench.models.packed import Int8Embedding, Int8Linear, PackedLinear, dense_weight, replace_module


def dense_head(model: PreTrainedModel) -> Tensor | None:
    """Weight ``(vocabulary, hidden)`` of the output head, if the model has one that may be replaced."""
    head = model.get_output_embeddings()
    return None if head is None or path_of(model, head) in opaque_layers(model) else dense_weight(head)


def pack_head(model: PreTrainedModel, kind: type[Int8Linear] = Int8Linear) -> None:
    """Replace the output head of a copy of a model by one in int8, unless the model reads its weight otherwise."""
    head = model.get_output_embeddings()
    if head is None or path_of(model, head) in opaque_layers(model):
        return
    assert head.bias is None or isinstance(head.bias, Tensor)
    packed = kind.pack(dense_weight(head), head.bias)
    tied = is_tied(model)
    replace_module(model, path_of(model, head), packed)
    if tied:
        tie(model, packed)


def is_tied(model: PreTrainedModel) -> bool:
    """Whether the output head and the token embedding read one table."""
    ours, theirs = (
        getattr(each, "weight", None) for each in (model.get_output_embeddings(), model.get_input_embeddings())
    )
    return ours is not None and theirs is not None and ours.data_ptr() == theirs.data_ptr()


def tie(model: Any, head: PackedLinear) -> None:
    """Let the token embedding read the packed head's rows, so that the dense table is not needed."""
    embedding = model.get_input_embeddings()
    options = {
        "dtype": str(embedding.weight.dtype).removeprefix("torch."),
        "multiplier": float(getattr(embedding, "embed_scale", 1.0)),
    }
    tensors = {name: head.get_buffer(name) for name in ("weight", "scale")}
    replace_module(model, path_of(model, embedding), Int8Embedding(options, tensors))


def path_of(model: nn.Module, wanted: nn.Module) -> str:
    """Path of a module in the model."""
    paths: dict[int, str] = {id(module): path for path, module in model.named_modules()}
    return paths[id(wanted)]
