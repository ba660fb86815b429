"""What a pass of a model reads, computes and starts, counted while it runs; and the bytes a token's cache takes."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from workbench.models import sharing
from workbench.models.packed import Conv1D, Packed, PackedLinear, is_adapted
from workbench.runtime.forward import using
from workbench.runtime.kernels import quickened
from workbench.runtime.kvcache import FULL, new_cache
from workbench.runtime.room import free_bytes
from workbench.runtime.rows import Rows
from workbench.runtime.trial import some_tokens, way_of

MANY = 1 << 15  # tokens of all rows, below which keys and values are small beside any model
USABLE = 0.7  # of what is free: a layer is there twice while a token is appended, and logits come on top
LOOK_UPS = ("aten::embedding", "aten::index", "aten::index_select", "aten::gather")


@dataclass
class Work:
    """What one pass does.

    Attributes:
        products: every linear layer that ran, in order, with the rows it was given.
        weight_bytes: of the weights that were read, each once; of a token embedding only the rows looked up.
        product_bytes: those of them that belong to the products.
        other_bytes: read and written beside weights outside the products: states, keys and values.
        operations: started, views left out.
        product_operations: those of them inside the products.
    """

    products: list[tuple[nn.Module, int]] = field(default_factory=list)
    weight_bytes: int = 0
    product_bytes: int = 0
    other_bytes: int = 0
    operations: int = 0
    product_operations: int = 0

    @property
    def flops(self) -> float:
        """Of the products: two an input, a weight."""
        return 2.0 * sum(rows * numbers(layer) for layer, rows in self.products)


def numbers(layer: Any) -> int:
    """How many weights a linear layer stands for."""
    if is_adapted(layer):
        beside = sum(each.numel() for name, each in layer.named_parameters() if ".base_layer" not in f".{name}")
        return int(numbers(layer.base_layer) + beside)
    return int(layer.in_features * layer.out_features if isinstance(layer, Packed) else layer.weight.numel())


def count_pass(model: PreTrainedModel, tokens: int, context: int = 0, rows: int = 1, cache_bits: int = FULL) -> Work:
    """What reading so many tokens a row does, after so many that were read before.

    Args:
        model: a causal language model.
        tokens: read at once by every row; 1 is a pass of decoding.
        context: tokens whose keys and values are there already.
        rows: side by side.
        cache_bits: of every key and value kept.

    Raises:
        OutOfMemory: the device has too little memory.
    """
    with using("Counting what a token takes"):
        prompt = some_tokens(model, context or tokens)

        def count(model: PreTrainedModel) -> Work:
            going = Rows(model, [prompt] * rows, way_of(model), None, cache_bits)
            if context:
                going.logits()
                going.append(torch.zeros(rows, dtype=torch.long, device=model.device))
            with _Counting(model) as counting:
                going.logits()
            return counting.work

        work, quick = count(model), quickened(model)
        if quick is not model:  # lean blocks call their layers by another way than the one watched here
            work.operations = count(quick).operations
    return work


class _Counting(TorchDispatchMode):
    """Follows every operation, and by hooks that hold for all modules, which linear layer it belongs to."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.work = Work()
        self._weights = {each.data_ptr(): each for each in _stored(model)}
        self._known = {each.untyped_storage().data_ptr() for each in self._weights.values()}
        self._read: set[tuple[int, int]] = set()
        self._inside: nn.Module | None = None

    def __enter__(self) -> "_Counting":
        self._hooks = (
            torch_modules.register_module_forward_pre_hook(self._entered),
            torch_modules.register_module_forward_hook(self._left),
        )
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()

    def _entered(self, module: nn.Module, args: Any) -> None:
        if self._inside is None and is_product(module) and args and isinstance(args[0], Tensor):
            self._inside = module
            self.work.products.append((module, args[0].numel() // max(1, args[0].shape[-1])))
            kept = getattr(vars(module).get(sharing.ELSEWHERE), "tensors", {}).values()  # brought for this pass
            self.work.weight_bytes += sum(map(_size, kept))
            self.work.product_bytes += sum(map(_size, kept))

    def _left(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._inside is module:
            self._inside = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and take note of what it read and wrote."""
        found = func(*args, **(kwargs or {}))
        if _is_view(func):
            return found
        self.work.operations += 1
        self.work.product_operations += self._inside is not None
        look_up = func._schema.name in LOOK_UPS
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self._see(tensor, look_up, found)
        if self._inside is None:
            self.work.other_bytes += sum(_size(each) for each in tree_leaves(found) if isinstance(each, Tensor))
        return found

    def _see(self, tensor: Tensor, look_up: bool, found: Any) -> None:
        """Something that an operation read."""
        if tensor.device.type != "meta" and tensor.untyped_storage().data_ptr() in self._known:
            size = _size(found) if look_up and isinstance(found, Tensor) else _size(tensor)
            key = (tensor.data_ptr(), size)
            if key not in self._read:
                self._read.add(key)
                self.work.weight_bytes += size
                self.work.product_bytes += size if self._inside is not None else 0
        elif self._inside is None:
            self.work.other_bytes += _size(found) if look_up and isinstance(found, Tensor) else _size(tensor)


def is_product(module: nn.Module) -> bool:
    """Whether a module multiplies by a weight matrix."""
    return isinstance(module, nn.Linear | Conv1D | PackedLinear) or is_adapted(module)


def _stored(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    for module in model.modules():
        if isinstance(module, Packed):
            yield from module.buffers(recurse=False)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _is_view(func: Any) -> bool:
    returned = func._schema.returns
    return bool(returned) and all(each.alias_info is not None and not each.alias_info.is_write for each in returned)


def kv_bytes(model: PreTrainedModel, cache_bits: int = FULL) -> int:
    """Bytes that the keys and values of one more token of one row take; 0 where none are kept, or no more of them.

    Counted on the model itself, so that what an architecture shares or compresses is as it is.
    """
    known = _token_bytes.setdefault(model, {})
    if cache_bits not in known:
        known[cache_bits] = _kv_bytes(model, cache_bits)
    return known[cache_bits]


def rows_that_fit(model: PreTrainedModel, rows: int, tokens: int, cache_bits: int = FULL) -> int:
    """How many rows of so many tokens each may be read side by side: fewer where their keys and values are too large.

    One at least: whether that fits, its own passes find out.
    """
    if rows * tokens < MANY or not (size := kv_bytes(model, cache_bits)):
        return rows
    return max(1, min(rows, int(USABLE * free_bytes(model.device).free) // (size * tokens)))


_token_bytes: "WeakKeyDictionary[PreTrainedModel, dict[int, int]]" = WeakKeyDictionary()


def _kv_bytes(model: PreTrainedModel, cache_bits: int) -> int:
    way = way_of(model)
    if not way.state or way.own:
        return 0
    held = []
    with using("Counting keys and values"):
        for length in (8, 16):
            cache = new_cache(model.config, cache_bits)
            ids = torch.tensor([some_tokens(model, length)], device=model.device)
            model(input_ids=ids, past_key_values=cache, use_cache=True)
            held.append(sum(_size(each) for layer in cache.layers for each in vars(layer).values() if _grows(each)))
    return (held[1] - held[0]) // 8


def _grows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 4
