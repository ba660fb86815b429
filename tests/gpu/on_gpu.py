"""A tensor that says cuda and computes on the CPU; what a GPU would refuse is refused, what it would do is counted."""

import functools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torchgen
import yaml
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.gpu import cuda_kernels
from tests.gpu.device import device

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
INTEGERS = {torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool}
NO_INTEGERS = {"mm", "bmm", "addmm", "baddbmm", "addmv", "mv", "dot", "addr", "linalg_cholesky_ex"}
NO_FLOAT8 = {"add", "sub", "mul", "div", "abs", "amax", "sum", "mm", "addmm", "round", "clamp", "neg", "max", "mean"}
INDEXES = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
WAITS = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "unique_dim", "bincount", "is_nonzero"}
NO_KERNEL = {"detach", "alias", "lift_fresh", "empty", "empty_like", "new_empty", "empty_strided", "is_pinned", "set_",
             "new_empty_strided", "_local_scalar_dense", "_unsafe_view"}  # fmt: skip


class OnGPU(Tensor):
    """A tensor of the pretended device, around the one on the CPU that holds its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: Tensor) -> "OnGPU":
        device.hold(values)
        made = Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            layout=values.layout,
            device=CUDA,
        )
        made.values = values
        return made

    def __repr__(self) -> str:
        return f"OnGPU({self.values!r})"

    def untyped_storage(self) -> Any:
        return self.values.untyped_storage()

    def data_ptr(self) -> int:
        return self.values.data_ptr()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)

    @data.setter
    def data(self, other: "OnGPU") -> None:
        Tensor.data.__set__(self, other)
        self.values = other.values

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            made = self.detach().clone().requires_grad_(self.requires_grad)
            memo[id(self)] = torch.nn.Parameter(made, made.requires_grad) if hasattr(self, "_is_param") else made
        return memo[id(self)]

    # A module with such tensors keeps its parameters when it is moved, so that tied ones stay tied.
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["values"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: object) -> "OnGPU":
        return OnGPU(inner["values"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {}) if all(map(plain, types)) else NotImplemented


def plain(kind: type) -> bool:
    """Whether tensors of a kind leave operations to torch; others, such as sparse ones, see to them first."""
    return kind is OnGPU or kind.__torch_dispatch__ is Tensor.__torch_dispatch__


class Mode(TorchDispatchMode):
    """Makes tensors on the device where one is asked for; thread by thread."""

    def __enter__(self) -> "Mode":
        lift_on_the_cpu()
        return super().__enter__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {}) if all(map(plain, types)) else NotImplemented


@functools.cache
def table() -> tuple[set[str], set[str], set[str]]:
    """Operations with a kernel for the CPU alone, with one for CUDA alone, and those whose devices nobody checks."""
    file = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    entries = yaml.load(file.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    kernels, unchecked = {}, set()
    for each in entries:
        each["name"] = each["func"].partition("(")[0]
        kernels[each["name"]] = {key.strip() for group in each.get("dispatch", {}) for key in group.split(",")}
        if str(each.get("device_check", "")).startswith("NoCheck"):
            unchecked.add(each["name"])
    for each in entries:
        kernels[each["name"]] |= kernels.get(each.get("structured_delegate"), set())
    some = {name: found for name, found in kernels.items() if not any(key.startswith("Composite") for key in found)}
    cpu = {name for name, found in some.items() if "CPU" in found and "CUDA" not in found}
    cuda = {name for name, found in some.items() if "CUDA" in found and "CPU" not in found}
    return cpu, cuda, unchecked


PRETENDED = {
    "aten::_convert_weight_to_int4pack": cuda_kernels.pack_int4,
    "aten::_weight_int4pack_mm": lambda *args: cuda_kernels.int4_mm(*args, device.capability),
    "aten::_int_mm": cuda_kernels.int_mm,
    "aten::_scaled_mm": lambda *args, **named: cuda_kernels.scaled_mm(device.capability, *args, **named),
    "aten::_cslt_compress": lambda dense: cuda_kernels.sparse_compress(dense, device.capability),
    "aten::_cslt_sparse_mm": cuda_kernels.sparse_mm,
    "aten::_cslt_sparse_mm_search": lambda *_, **__: 0,
}


class Operation:
    """What is known of an operation."""

    def __init__(self, func: Any) -> None:
        schema = func._schema
        self.space, _, self.name = schema.name.partition("::")
        full = f"{self.name}.{schema.overload_name}".removesuffix(".")
        cpu, cuda, unchecked = table()
        aten = self.space == "aten"
        self.refused = (aten and full in cpu) or self.space in ("mkldnn", "quantized", "onednn")
        self.kernel_of_cuda = PRETENDED.get(schema.name)
        self.missing = aten and full in cuda and self.kernel_of_cuda is None
        self.loose = full in unchecked or not aten  # a number on the CPU is let through
        self.reshapes = torch.Tag.inplace_view in func.tags or self.name in ("set_", "resize_")
        views = any(each.alias_info is not None and not each.alias_info.is_write for each in schema.returns)
        self.starts = not views and self.name not in NO_KERNEL


operation = functools.cache(Operation)
thread = threading.local()


def lift_on_the_cpu() -> None:
    """Have lists become tensors on the CPU, and then be seen to be moved, in this thread."""
    if not getattr(thread, "lifts", False):
        torch._C._set_only_lift_cpu_tensors(True)
        thread.lifts = True


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation some of whose tensors may be on the device."""
    lift_on_the_cpu()  # autograd has threads of its own
    kwargs.pop("pin_memory", None)
    leaves = list(tensors((args, tuple(kwargs.values()))))
    on = [each for each in leaves if type(each) is OnGPU]
    target = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    if not on and (target is None or target.type != "cuda"):
        return func(*args, **kwargs)
    known = operation(func)
    refuse(func, known, args, kwargs, leaves, on)
    count(known, args, target, on)
    bare, named = unwrapped(args), {key: unwrapped(each) for key, each in kwargs.items()}
    if target is not None and target.type == "cuda":
        named["device"] = CPU
    if known.space == "semi_structured":  # Python around kernels of CUDA
        return torch._library.custom_ops.OPDEFS[func._schema.name]._init_fn(*args, **kwargs)
    if known.name == "int8_vectorwise_quant":
        out = cuda_kernels.vectorwise_quant(func, *bare, **named)
    else:
        out = (known.kernel_of_cuda if known.kernel_of_cuda and on else func)(*bare, **named)
    if known.name == "copy_":
        return args[0]
    if target is not None and target.type != "cuda":
        return out
    return wrapped(out, {id(each.values): each for each in on})


def tensors(args: Any) -> Iterator[Tensor]:
    """Those among arguments, and in lists among them."""
    for each in args:
        if isinstance(each, Tensor):
            yield each
        elif type(each) in (list, tuple):
            yield from tensors(each)


def unwrapped(each: Any) -> Any:
    """With the values in place of the device's tensors."""
    if type(each) in (list, tuple):
        return type(each)(map(unwrapped, each))
    return each.values if type(each) is OnGPU else each


def wrapped(out: Any, known: dict[int, OnGPU]) -> Any:
    """With the device's tensors in place of values; what was written in place is the tensor that it was."""
    if isinstance(out, Tensor):
        return known.get(id(out)) if id(out) in known else OnGPU(out)
    return type(out)(wrapped(each, known) for each in out) if type(out) in (list, tuple) else out


def refuse(func: Any, known: Operation, args: Any, kwargs: Any, leaves: list[Tensor], on: list[OnGPU]) -> None:
    """Raise what a GPU would raise."""
    if known.reshapes or known.missing:
        raise NotImplementedError(f"{func} is not pretended.")
    if on and known.refused:
        raise NotImplementedError(f"Could not run '{func}' with arguments from the 'CUDA' backend.")
    if any(isinstance(each, Generator) and each._cdata not in generators for each in (*args, *kwargs.values())):
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    if on and len(on) < len(leaves) and known.name not in ("_to_copy", "copy_"):
        off = [each for each in (args[2:] if known.name in INDEXES else leaves) if type(each) is not OnGPU]
        off = [each for each in off if isinstance(each, Tensor) and (each.dim() or not known.loose)]
        if off if known.name not in INDEXES else off or type(args[0]) is not OnGPU:
            raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu! ({func})")
    if known.name in NO_INTEGERS and any(each.dtype in INTEGERS for each in on):
        raise RuntimeError(f'"{known.name}_cuda" not implemented for {on[0].dtype}')
    if known.name.rstrip("_") in NO_FLOAT8 and any(each.dtype in cuda_kernels.EIGHTS for each in on):
        raise NotImplementedError(f'"{known.name}_cuda" not implemented for float8')


def count(known: Operation, args: Any, target: torch.device | None, on: list[OnGPU]) -> None:
    """Tell who looks on."""
    if device.seen is None:
        return
    if known.starts:
        device.started(known.name)
    if known.name in WAITS:
        device.waited(known.name)
    if known.name in INDEXES:
        places = [each for each in args[1] if each is not None]
        if any(each.dtype == torch.bool for each in places) and not (len(args) > 2 and not args[2].dim()):
            device.waited(f"{known.name} by a mask")
        if any(type(each) is not OnGPU for each in places):
            device.copied(known.name)
    if known.name == "_to_copy" and target is not None and bool(on) != (target.type == "cuda") and args[0].numel():
        (device.waited if on else device.copied)(known.name)
    if known.name == "copy_" and type(args[0]) is not type(args[1]):
        (device.copied if type(args[0]) is OnGPU else device.waited)(known.name)


class GeneratorKind(type(torch._C.Generator)):
    def __instancecheck__(cls, other: object) -> bool:
        return isinstance(other, torch._C.Generator)


class Generator(torch._C.Generator, metaclass=GeneratorKind):
    """A generator of which is known for which device it was made, also where torch hands on another object for it."""

    def __new__(cls, device: Any = "cpu") -> "Generator":
        made = super().__new__(cls, "cpu")
        if torch.device(device).type == "cuda":
            generators[made._cdata] = made  # kept, so that no other gets its address
        return made

    @property
    def device(self) -> torch.device:
        return CUDA if self._cdata in generators else CPU


generators: dict[int, Generator] = {}
