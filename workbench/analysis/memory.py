"""What memory is held now and by whom, and whether something would fit before it is tried."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from workbench.core import units
from workbench.core.device import resolve_device, resolve_dtype
from workbench.core.drawn import HTML, drawn
from workbench.core.errors import InvalidInput
from workbench.layers.calibration import kept_bytes
from workbench.models.headers import read_headers
from workbench.runtime.footprint import kv_bytes
from workbench.runtime.offload import bytes_elsewhere
from workbench.runtime.room import Room, free_bytes
from workbench.step import Step
from workbench.training import room as training
from workbench.training.settings import TrainingKnobs
from workbench.variant import Variant, live

if TYPE_CHECKING:
    import pandas

MOST = 1 << 40  # tokens or rows that anybody would ask about


@dataclass(frozen=True)
class Holder:
    """What one variant holds, in bytes.

    Attributes:
        name: of the variant.
        device: where it runs.
        weights: all its tensors, shared ones included.
        owned: those that no older variant holds.
        elsewhere: those of its weights that are kept on disk or, for a GPU, in CPU memory.
        engine: held by its engine from one answer to the next.
        token: keys and values of one token of one row.
    """

    name: str
    device: str
    weights: int
    owned: int
    elsewhere: int
    engine: int
    token: int

    @property
    def shared(self) -> int:
        """Weights that an older variant holds as well."""
        return self.weights - self.owned


@dataclass(frozen=True)
class Memory:
    """What is held now, in bytes.

    Attributes:
        holders: every variant in use, the oldest first.
        statistics: kept from calibration, to make more variants sooner.
        room: of each device in use.
    """

    holders: tuple[Holder, ...]
    statistics: int
    room: dict[str, Room]

    def known(self, device: str) -> int:
        """What variants and statistics hold of a device's memory; those are counted on the CPU."""
        kind = torch.device(device).type
        found = sum(each.owned - each.elsewhere + each.engine for each in self.holders if each.device == device)
        return found + (self.statistics if kind == "cpu" else 0)

    def slack(self, device: str) -> int:
        """What the process holds beside: libraries, and memory that torch keeps for the next tensor."""
        return max(0, self.room[device].held - self.known(device))

    def table(self) -> "pandas.DataFrame":
        """One row a variant, in bytes."""
        import pandas

        rows = [vars(each) | {"shared": each.shared} for each in self.holders]
        return pandas.DataFrame(rows, columns=[*Holder.__dataclass_fields__, "shared"]).set_index("name")

    @property
    def lines(self) -> list[str]:
        """The whole in sentences."""
        found = []
        for each in self.holders:
            parts = [f"{units.size(each.owned)} its own", f"{units.size(each.shared)} shared" if each.shared else ""]
            parts += [f"{units.size(each.elsewhere)} of them kept elsewhere" if each.elsewhere else ""]
            parts += [f"{units.size(each.engine)} held by its engine" if each.engine else ""]
            parts += [f"{units.size(each.token)} a token of keys and values"]
            found.append(f"'{each.name}' on {each.device}: {', '.join(filter(None, parts))}.")
        if self.statistics:
            found.append(f"Kept from calibration: {units.size(self.statistics)}.")
        for device, room in self.room.items():
            found.append(
                f"{device}: {units.size(room.free)} of {units.size(room.total)} free; this process holds "
                f"{units.size(room.held)}, {units.size(self.slack(device))} of it beside weights and statistics."
            )
        return found

    def _repr_html_(self) -> str:
        return str(drawn(self, HTML))

    def __repr__(self) -> str:
        return "\n".join(self.lines)


def memory() -> Memory:
    """What memory is held now, and by whom."""
    holders = tuple(
        Holder(
            name=each.name,
            device=str(each.device),
            weights=each.total_bytes,
            owned=each.owned_bytes,
            elsewhere=bytes_elsewhere(each.model),
            engine=each.engine.held_bytes(each.model),
            token=kv_bytes(each.model, getattr(each.engine, "cache_bits", 16)),
        )
        for each in live()
    )
    devices = dict.fromkeys(["cpu", *(each.device for each in holders)])
    return Memory(holders, kept_bytes(), {name: free_bytes(torch.device(name)) for name in devices})


@dataclass(frozen=True)
class Fit:
    """Whether something fits; true where it does.

    Attributes:
        what: is to be done, for people.
        parts: bytes that it needs beside what is held already, by what for.
        room: of the device.
        device: its name.
    """

    what: str
    parts: dict[str, int]
    room: Room
    device: str

    @property
    def needed(self) -> int:
        """Bytes in all."""
        return sum(self.parts.values())

    def __bool__(self) -> bool:
        return self.needed <= self.room.free

    def __repr__(self) -> str:
        parts = ", ".join(f"{name} {units.size(size)}" for name, size in self.parts.items() if size)
        said = f"{self.what} needs {units.size(self.needed)}{f' ({parts})' if parts else ''}; {self.device} has "
        said += f"{units.size(self.room.free)} free of {units.size(self.room.total)}"
        if self:
            return f"Fits: {said}."
        return f"Does not fit: {said}, {units.size(self.needed - self.room.free)} too few."


def fits(
    what: Variant | str | Path,
    *,
    step: Step | None = None,
    tokens: int = 0,
    batch: int = 1,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
) -> Fit:
    """Whether a model, an answer, a step or a training would fit into the memory that is free now.

    Args:
        what: a variant; or a model that is not loaded: a folder, a .gguf file, or a hub id whose files are here.
        step: that would be applied to the variant; of one that trains, gradients and states are counted too.
        tokens: that each row holds, prompt and answer together; of a training, those of an example.
        batch: rows side by side; a training has its own.
        device: where a model would be loaded; by default as `load` chooses.
        dtype: in which it would be loaded; likewise.

    Raises:
        InvalidInput: a number out of range, a step for a model that is not loaded, or a damaged header.
        NotAvailable: the model is not on this machine.
    """
    if not 0 <= tokens <= MOST or not 1 <= batch <= MOST:
        raise InvalidInput("fits() takes a number of tokens from 0, and a batch from 1.")
    if not isinstance(what, Variant):
        if step is not None:
            raise InvalidInput("Only a variant can be forecast with a step: load the model first.")
        return _unloaded(what, tokens * batch, resolve_device(device), dtype)
    said = f"'{what.name}'" if not tokens else f"'{what.name}' with {batch} x {tokens} tokens"
    if isinstance(step, TrainingKnobs):
        said, parts = f"'{what.name}'", training.needed(what, step, tokens or training.TOKENS)
    else:
        parts = {
            "weights": step.forecast(what).owned_bytes if step is not None else 0,
            "keys and values": tokens * batch * kv_bytes(what.model, getattr(what.engine, "cache_bits", 16)),
            "states": _states(what.model.config, tokens * batch, what.dtype.itemsize),
        }
    said = said if step is None else f"{step.label} on {said}"
    return Fit(said, parts, free_bytes(what.device), str(what.device))


def _unloaded(source: str | Path, tokens: int, device: torch.device, dtype: str | torch.dtype | None) -> Fit:
    found = read_headers(source)
    width = resolve_dtype(dtype, device).itemsize
    parts = {"weights": found.loaded(width), "keys and values": tokens * found.cached * width}
    return Fit(f"'{found.name}'", parts, free_bytes(device), str(device))


def _states(config: Any, tokens: int, width: int) -> int:
    """What flows through one block while a prompt is read, and the logits of the last token; an upper bound."""
    hidden, inner, _, _ = training.sizes(config)
    return tokens * (6 * hidden + 3 * inner) * width
