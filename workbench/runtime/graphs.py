"""A function of tensors as one graph, and the graph as code: made by torch's Inductor in the user's private cache."""

import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from workbench.core import files
from workbench.core.errors import NotAvailable, first_line
from workbench.models import sharing
from workbench.models.packed import PackedLinear, replace_module

Code = Callable[..., Any]

GROUPED: Final = "workbench_grouped"  # the name of our attention among those of transformers
PLAIN: Final = "as it comes"
FLAGS: Final[dict[str, dict[str, Any]]] = {  # of Inductor: which help is found by trying
    PLAIN: {},
    "C++ wrapper": {"cpp_wrapper": True},
    "freezing": {"freezing": True},
}
USUAL: Final = {"cpu": "C++ wrapper"}  # without it Python starts every kernel: a good part of a small model's token
COPIES: Final = "freezing"  # puts the weights into the code's own layout: a second copy of them


_compiling = threading.Lock()  # Inductor's settings and its folder are the process's


def traced(work: Code, inputs: Sequence[Tensor]) -> GraphModule:
    """The operations that a function does to tensors, whatever their values; other tensors it uses are constants.

    Raises:
        Exception: it asks for a value, so that what it does next depends on it; or what torch says of it.
    """
    graph = make_fx(work, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def built(graph: GraphModule, inputs: Sequence[Tensor], flags: str) -> Code:
    """A graph as code for such inputs; it may write into them as the graph does.

    Raises:
        NotAvailable: there is no C++ compiler, or the private folder cannot be used.
        Exception: what Inductor says.
    """
    with _compiling, warnings.catch_warnings(), private_folder():
        warnings.simplefilter("ignore")  # what torch says of itself
        from torch._inductor import compile as inductor  # takes a second to import
        from torch._inductor import config

        if inputs[0].device.type == "cpu":
            check_compiler()
        # One thread: more would be processes that stay.
        with config.patch({"compile_threads": 1, "size_asserts": False} | FLAGS[flags]):
            code: Code = inductor(graph, list(inputs))
            code(*inputs)  # the last of the work is done by the first call
    return code


def check_compiler() -> None:
    """Look for the compiler that Inductor will use.

    Raises:
        NotAvailable: there is none.
    """
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        raise NotAvailable(
            "Compiling for a CPU needs a C++ compiler and there is none: install the package g++ (Debian, Ubuntu), "
            "gcc-c++ (Fedora) or the Xcode command line tools (macOS)."
        ) from None


@contextmanager
def private_folder() -> Iterator[Path]:
    """Have Inductor keep what it makes in a folder that nobody else can write to: parts of it are pickle.

    Raises:
        NotAvailable: the folder is another user's, or cannot be made.
    """
    folder = files.cache_folder() / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or (hasattr(os, "getuid") and found.st_uid != os.getuid()):
            raise NotAvailable(f"'{folder}' is not this user's own folder: remove it, or set WORKBENCH_CACHE.")
        if stat.S_IMODE(found.st_mode) & 0o022:  # others could have put something there
            raise NotAvailable(f"Others may write to '{folder}': remove it, and it is made anew.")
        folder.chmod(0o700)
    except OSError as error:
        raise NotAvailable(f"'{folder}' cannot be used for compiled code ({first_line(error)}).") from None
    before = {name: os.environ.get(name) for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
    os.environ |= {"TORCHINDUCTOR_CACHE_DIR": str(folder), "TRITON_CACHE_DIR": str(folder / "triton")}
    try:
        yield folder
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def readied(model: PreTrainedModel, grouped: bool = True) -> PreTrainedModel:
    """The model, its tensors shared, with packed products as single operations, and keys and values never repeated.

    Args:
        model: a causal language model.
        grouped: whether attention is our own, where the model can be given one.
    """
    shared = sharing.share(model)
    for path, layer in [each for each in shared.named_modules() if isinstance(each[1], PackedLinear)]:
        replace_module(shared, path, Opaque(layer))
    if grouped:
        for module in shared.modules():
            config: Any = getattr(module, "config", None)
            if getattr(config, "_attn_implementation", None) in ("sdpa", "eager"):
                config._attn_implementation_internal = GROUPED
    return shared


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention whose heads read the keys and values of their group where they are.

    ``query (rows, heads, tokens, head)``, ``key, value (rows, groups, span, head) -> (rows, tokens, heads, head)``.

    Raises:
        NotImplementedError: the architecture wants more of it.
    """
    if attention_mask is None or any(kwargs.get(name) is not None for name in ("softcap", "s_aux", "position_bias")):
        raise NotImplementedError("attention of another kind")
    rows, heads, tokens, size = query.shape
    groups, span = key.shape[1:3]
    grouped = (query * (size**-0.5 if scaling is None else scaling)).reshape(rows, groups, -1, size)
    scores = (grouped @ key.transpose(-1, -2)).view(rows, groups, -1, tokens, span)
    scores = scores.float() + attention_mask[..., :span].float()[:, :, None]
    weights = torch.softmax(scores, dim=-1).to(value.dtype).view(rows, groups, -1, span)
    return (weights @ value).view(rows, heads, tokens, -1).transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(GROUPED, attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(GROUPED, eager_mask)

_layers: "WeakValueDictionary[int, PackedLinear]" = WeakValueDictionary()


class Opaque(nn.Module):
    """A packed layer that a graph takes as one operation, whatever kernels it chooses among.

    Its number is a tensor, so that blocks alike can share one piece of code.
    """

    number: Tensor

    def __init__(self, layer: PackedLinear) -> None:
        super().__init__()
        number = next(at for at in range(id(self), id(self) + len(_layers) + 1) if at not in _layers)
        _layers[number] = layer
        self._held = [layer]  # a list, as its tensors are no inputs of the graph
        self.register_buffer("number", torch.tensor(number))

    def forward(self, x: Tensor) -> Tensor:
        """``x (..., in) -> (..., out)``."""
        product: Tensor = torch.ops.workbench.packed(x, self.number, self._held[0].out_features)
        return product


def _packed(x: Tensor, number: Tensor, out: int) -> Tensor:
    product: Tensor = _layers[int(number)](x)
    return product.contiguous()


def _packed_shape(x: Tensor, number: Tensor, out: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], out)


_operations: Any = torch.library.Library("workbench", "FRAGMENT")  # type: ignore[no-untyped-call]
_operations.define("packed(Tensor x, Tensor number, int out) -> Tensor")
_operations.impl("packed", _packed, "CompositeExplicitAutograd")
torch.library.register_fake("workbench::packed", _packed_shape, lib=_operations)
