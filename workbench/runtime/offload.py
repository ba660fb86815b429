"""Weights kept elsewhere than where the model runs: in CPU memory or on disk, read again for every pass."""

import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.multiprocessing import reductions
from transformers import PreTrainedModel

from workbench.core import files, units
from workbench.core.errors import InvalidInput, WorkbenchError, first_line
from workbench.core.progress import Progress
from workbench.models import sharing
from workbench.models.blocks import decoder_blocks
from workbench.models.packed import Packed

Place = Literal["cpu", "disk"]
SPARE = 64_000_000  # bytes of a disk that are left free
WEAK_REFERENCE: Any = reductions.StorageWeakRef
_mapped: dict[int, Any] = {}  # address of every storage that is a file, while it lives


def movable(model: PreTrainedModel) -> list[tuple[str, nn.Module, int]]:
    """Path, module and bytes of what can live elsewhere: the modules of the blocks that hold matrices of their own."""
    root, blocks = decoder_blocks(model)
    found = []
    for path, module in blocks.named_modules(prefix=root):
        held = [tensor for _, tensor in _own(module)]
        if held and (isinstance(module, Packed) or any(tensor.dim() > 1 for tensor in held)):
            found.append((path, module, sum(tensor.numel() * tensor.element_size() for tensor in held)))
    return found


def offloaded(
    model: PreTrainedModel, to: Place, keep_bytes: int, device: torch.device, progress: Progress
) -> tuple[PreTrainedModel, int]:
    """A copy of a model that runs on a device, of whose blocks all but the first bytes are kept elsewhere.

    On a CPU, what is on disk is mapped into memory: the system reads a page when it is used, and drops it again when
    memory gets short. On a GPU, each layer is copied there for every pass and dropped after it.

    Args:
        model: left as it is; what is not moved is shared with it where it is on the device already.
        to: where the rest is kept.
        keep_bytes: of the blocks' weights that stay on the device, the first blocks first.
        device: where it runs.
        progress: advances once a layer.

    Returns:
        The copy, and how many bytes are elsewhere.

    Raises:
        InvalidInput: there is nothing to move, or it is there already.
        WorkbenchError: the disk has too little room, or cannot be written.
    """
    if to == "cpu" and device.type == "cpu":
        raise InvalidInput("This model runs on the CPU, so its weights are in CPU memory already: keep them on disk.")
    if device.type != model.device.type and any(isinstance(module, Packed) for module in model.modules()):
        raise InvalidInput(
            "Packed layers are laid out for the device that they were packed on: move their dense parent."
        )
    copied = sharing.share(model)
    left, moved = keep_bytes, []
    for path, module, size in movable(copied):
        left -= size
        if left < 0:
            moved.append((path, module, size))
    if not moved:
        raise InvalidInput("All of the blocks' weights would stay where they are: keep fewer bytes.")
    total = sum(size for *_, size in moved)
    folder = _folder(total) if to == "disk" else None
    hooked = {path for path, *_ in moved} if device.type != "cpu" else set()
    done: dict[int, Tensor] = {}
    for path, module, _ in progress.track("Moving weights", moved, len(moved)):
        elsewhere = {
            name: tensor.to("cpu") if folder is None else _on_disk(tensor, folder, done)
            for name, tensor in _own(module)
        }
        if path in hooked:
            hook(module, elsewhere, device)
        else:
            for name, tensor in elsewhere.items():
                put(module, name, tensor)
    if hooked:
        _to_device(copied, hooked, device)
    return copied, total


class Elsewhere:
    """Tensors of one module that come to the device for each of its passes, and leave it again.

    Accelerate's hooks do the same, but write into what parameters that other variants share know of themselves.
    """

    def __init__(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        self.tensors, self.device = tensors, device

    def bring(self, module: nn.Module, args: Any) -> None:
        """Before a pass."""
        for name, tensor in self.tensors.items():
            put(module, name, tensor.to(self.device))

    def drop(self, module: nn.Module, *_: Any) -> None:
        """After it: what stands for a tensor says its shape and takes no memory."""
        for name, tensor in self.tensors.items():
            put(module, name, torch.empty_like(tensor, device="meta"))


def hook(module: nn.Module, tensors: dict[str, Tensor], device: torch.device) -> None:
    """Have a module's tensors kept elsewhere, and copied to a device for each of its passes."""
    kept = Elsewhere(tensors, device)
    vars(module)[sharing.ELSEWHERE] = kept
    kept.drop(module)
    module.register_forward_pre_hook(kept.bring)
    module.register_forward_hook(kept.drop)


def whole(model: PreTrainedModel) -> PreTrainedModel:
    """The model with every tensor in its place again, on the CPU where it was kept elsewhere; itself if all are."""
    if not any(sharing.ELSEWHERE in vars(module) for module in model.modules()):
        return model
    copied = sharing.share(model)
    for module in copied.modules():
        kept = vars(module).pop(sharing.ELSEWHERE, None)
        if kept is not None:
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                for key in [key for key, each in hooks.items() if getattr(each, "__self__", None) is kept]:
                    del hooks[key]
            for name, tensor in kept.tensors.items():
                put(module, name, tensor)
    return copied


def bytes_elsewhere(model: nn.Module) -> int:
    """Bytes of a model's tensors that are kept on disk, or by hooks in CPU memory."""
    held = {}
    for module in model.modules():
        for tensor in getattr(vars(module).get(sharing.ELSEWHERE), "tensors", {}).values():
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    for address, size in sharing.storages(model).items():
        if (known := _mapped.get(address)) is not None and not known.expired():
            held[address] = size
    return sum(held.values())


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A module's own tensors, those of its children left out."""
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def put(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace a tensor of a module; the one that was there is left as it is."""
    if name in module._parameters:
        module._parameters[name] = nn.Parameter(tensor, requires_grad=False)
    else:
        module._buffers[name] = tensor


def _to_device(model: PreTrainedModel, hooked: set[str], device: torch.device) -> None:
    """Copies of all other tensors on the device, one that has two names once."""
    made: dict[int, Tensor] = {}
    for path, module in model.named_modules():
        if path not in hooked:
            for name, tensor in list(_own(module)):
                if id(tensor) not in made:
                    moved = tensor.detach().to(device)
                    made[id(tensor)] = nn.Parameter(moved, False) if isinstance(tensor, nn.Parameter) else moved
                held = module._parameters if name in module._parameters else module._buffers
                held[name] = made[id(tensor)]


def _folder(needed: int) -> Path:
    """Where files are put, once there is room for them.

    Raises:
        WorkbenchError: there is too little, or it cannot be written.
    """
    folder = files.cache_folder() / "offloaded"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise files.write_refused(folder, error) from None
    if free < needed + SPARE:
        raise WorkbenchError(
            f"The weights to keep on disk take {units.size(needed)}, and '{folder}' has {units.size(free)} free: make "
            "room, or name another folder in WORKBENCH_CACHE."
        )
    return folder


def _on_disk(tensor: Tensor, folder: Path, done: dict[int, Tensor]) -> Tensor:
    """The same numbers in a file that is mapped into memory; one that two modules share is written once.

    The file loses its name at once, so that nobody finds it, changes it or forgets it there: its room on the disk is
    given back with the tensor.
    """
    if id(tensor) in done or not tensor.numel():
        return done.get(id(tensor), tensor)
    plain = tensor.detach().to("cpu").contiguous()
    place = folder / secrets.token_hex(12)
    try:
        with place.open("xb") as file:
            os.chmod(place, 0o600)
            plain.flatten().view(torch.uint8).numpy().tofile(file)
        mapped = torch.from_file(str(place), shared=False, size=plain.numel() * plain.element_size(), dtype=torch.uint8)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise WorkbenchError(
            f"The weights could not be kept in '{folder}' ({reason}): nothing was changed; make room there, or name "
            "another folder in WORKBENCH_CACHE."
        ) from None
    finally:
        place.unlink(missing_ok=True)
    storage = mapped.untyped_storage()
    _mapped[storage.data_ptr()] = WEAK_REFERENCE(storage)
    done[id(tensor)] = mapped.view(plain.dtype).view(plain.shape)
    return done[id(tensor)]
