"""Ranks: processes that hold a part of every matrix of one model each, and read every token together."""

import os
import resource
import socket
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from transformers import PreTrainedModel

from workbench.core.device import memory_held
from workbench.core.errors import InvalidInput
from workbench.core.optional import library
from workbench.models import pretrained
from workbench.runtime.rows import Rows, Way

HERE = "127.0.0.1"


@dataclass(frozen=True)
class Part:
    """What one rank holds.

    Attributes:
        rank: its number.
        pid: of its process.
        parameters: bytes of its parts of the weights, and of those that every rank holds whole.
        buffers: bytes.
        resident: bytes of memory that its process has in all, Python and its libraries included; on a GPU, those that
            torch has set aside there.
    """

    rank: int
    pid: int
    parameters: int
    buffers: int
    resident: int

    @property
    def bytes(self) -> int:
        """Parameters and buffers."""
        return self.parameters + self.buffers


class Rank:
    """One part of a model in a process of its own. Whatever all ranks do together is asked of all, in one order.

    Args:
        number: from 0; the first gives the logits.
        ranks: how many there are.
        device: "cpu" or "cuda", where it has one GPU for itself.
        threads: that it computes with on a CPU.
        patience: seconds that it waits for the others, while they meet and in every sum.
    """

    def __init__(self, number: int, ranks: int, device: str, threads: int, patience: float) -> None:
        self._number, self._ranks, self._device = number, ranks, torch.device(device)
        self._patience = timedelta(seconds=patience)
        self._store: Any = None
        self._model: PreTrainedModel | None = None
        self._rows: dict[int, Rows] = {}
        torch.set_num_threads(threads)
        loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = loopback  # nobody outside is listened to

    def pid(self) -> int:
        """Of its process."""
        return os.getpid()

    def listen(self) -> int:
        """Open the place where the ranks meet, on a port that is free and that nobody outside reaches; gives the port.

        The socket is bound here and handed over, so that nobody can take the port in between.
        """
        with socket.socket() as bound:
            bound.bind((HERE, 0))
            bound.listen(self._ranks)
            port: int = bound.getsockname()[1]
            self._store = TCPStore(
                HERE, port, self._ranks, True, self._patience, wait_for_workers=False, master_listen_fd=bound.detach()
            )
        return port

    def join(self, port: int) -> None:
        """Meet the others."""
        if self._store is None:
            self._store = TCPStore(HERE, port, self._ranks, False, self._patience)
        gpu = self._device.type == "cuda"
        if gpu:
            torch.cuda.set_device(0)
        distributed.init_process_group(
            "nccl" if gpu else "gloo",
            store=PrefixStore("ranks", self._store),
            rank=self._number,
            world_size=self._ranks,
            timeout=self._patience,
            device_id=torch.device("cuda", 0) if gpu else None,
        )

    def load(self, folder: str, dtype: str, limit: int | None) -> Part:
        """Read its part of a model.

        Args:
            folder: of the whole model; of what is shared, only the part is read.
            dtype: of the weights, such as "float32".
            limit: bytes that it may take from now on.
        """
        if limit is not None:
            _hold_to(limit)
        options: dict[str, Any] = {}
        if self._ranks > 1:
            about = library("transformers.distributed.configuration_utils", "Sharding", "transformers")
            options["distributed_config"] = about.DistributedConfig(tp_size=self._ranks)
        _read_in_parts()
        with torch.no_grad():
            model = pretrained.read_weights(folder, getattr(torch, dtype), local_files_only=True, **options)
            nn.Module.to(model, self._device)
        self._model = model.eval()
        parameters, buffers = (list(_local(each)) for each in (model.parameters(), model.buffers()))
        ends = (end for each in parameters if each.is_floating_point() and each.numel() for end in each.aminmax())
        if not all(bool(end.isfinite()) for end in ends):
            raise InvalidInput(f"'{folder}' has weights that hold NaN or infinity: the model file is broken.")
        held = memory_held(self._device) if self._device.type == "cpu" else torch.cuda.memory_reserved()
        return Part(self._number, os.getpid(), _bytes(parameters), _bytes(buffers), held)

    def step(self, key: int, going: Collection[int], tokens: Sequence[Sequence[int]], way: Way) -> np.ndarray | None:
        """Read prompts, or go on with a token each.

        Args:
            key: of these rows; an unknown one begins with prompts.
            going: keys of all rows that are still wanted; what was read of others is forgotten.
            tokens: of each row.
            way: how the model is run.

        Returns:
            Logits ``(rows, vocabulary)`` of what comes next, from the first rank.
        """
        self._rows = {each: rows for each, rows in self._rows.items() if each in going}
        with torch.no_grad():
            if key in self._rows:
                self._rows[key].append(torch.tensor(tokens, device=self._device))
            else:
                self._rows[key] = Rows(self._whole(), tokens, way)
            return self._told(self._rows[key].logits())

    def read(self, ids: Sequence[int], last: int) -> np.ndarray | None:
        """Logits ``(last, vocabulary)`` behind the last tokens of a text, from the first rank."""
        with torch.no_grad():
            inputs = torch.tensor([ids], device=self._device)
            return self._told(self._whole()(input_ids=inputs, use_cache=False).logits[0, -last:])

    def _whole(self) -> PreTrainedModel:
        assert self._model is not None
        return self._model

    def _told(self, logits: Tensor) -> np.ndarray | None:
        return logits.float().cpu().numpy() if self._number == 0 else None


def _local(tensors: Iterator[Tensor]) -> Iterator[Tensor]:
    """What is here of tensors that are shared among the ranks; the others as they are."""
    return (getattr(each, "_local_tensor", each).detach() for each in tensors)


def _bytes(tensors: Sequence[Tensor]) -> int:
    """Of tensors, those that share memory counted once."""
    held = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors if each.numel()}
    return sum(held.values())


def _hold_to(limit: int) -> None:
    """Let this process take no more than so many further bytes of memory of its own (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    taken = next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmData:"))
    resource.setrlimit(resource.RLIMIT_DATA, (taken + limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def _read_in_parts() -> None:
    """Have transformers read the part of a file that it asks for, in this process.

    It would map the whole file otherwise, as private memory that can be written: that counts as this process' own, and
    a part that is a view of it would hang on the file.
    """
    modeling_utils: Any = import_module("transformers.modeling_utils")

    real = modeling_utils.safe_open
    modeling_utils.safe_open = lambda *args, **named: real(*args, **named | {"backend": "pread"})
