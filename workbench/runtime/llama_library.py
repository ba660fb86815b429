"""llama.cpp's own C interface, as the package xllamacpp carries it: a model in memory, and rows that it goes on with.

It hands out logits, so that whoever has a say in an answer has it here, too; no server and no port are opened.
Source: https://github.com/ggml-org/llama.cpp/blob/master/include/llama.h.
"""

import ctypes
import struct
import weakref
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_bool, c_char_p, c_float, c_int32, c_uint32, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.core.errors import InvalidInput, NotAvailable, OutOfMemory, WorkbenchError
from workbench.core.optional import library

CHUNK = 512  # tokens in one pass
EXPECTED = ((0, 512), (4, 2048), (8, 512), (12, 1), (104, 1), (108, 1))  # where the defaults of a context stand
CONTEXT, BATCH, MICRO, ROWS, KEYS, VALUES = (place for place, _ in EXPECTED)
TYPES = {"F32": 0, "F16": 1}  # of keys and values
ERROR = 4  # level of a message
UNKNOWN = (
    "This build of xllamacpp hands out llama.cpp in a way that is not known here: run `pip install "
    "'xllamacpp==2026.10.11549'`."
)


class _Params(Structure):
    """Settings that are passed on as they come; larger than any version's, of which nothing but the start is read."""

    _fields_ = (("bytes", ctypes.c_ubyte * 512),)


class _Batch(Structure):
    _fields_ = (
        ("n_tokens", c_int32),
        ("token", c_void_p),
        ("embd", c_void_p),
        ("pos", c_void_p),
        ("n_seq_id", c_void_p),
        ("seq_id", c_void_p),
        ("logits", c_void_p),
    )


_Log = ctypes.CFUNCTYPE(None, ctypes.c_int, c_char_p, c_void_p)
_messages: list[str] = []


@_Log  # type: ignore[untyped-decorator]
def _hear(level: int, text: bytes | None, _: Any) -> None:
    """Keep the last errors for a sentence; nothing is printed."""
    if level == ERROR and text:
        _messages.append(text.decode(errors="replace").strip())
        del _messages[:-3]


SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "llama_log_set": (None, [_Log, c_void_p]),
    "llama_backend_init": (None, []),
    "llama_model_default_params": (_Params, []),
    "llama_context_default_params": (_Params, []),
    "llama_model_load_from_file": (c_void_p, [c_char_p, _Params]),
    "llama_model_free": (None, [c_void_p]),
    "llama_model_get_vocab": (c_void_p, [c_void_p]),
    "llama_vocab_n_tokens": (c_int32, [c_void_p]),
    "llama_init_from_model": (c_void_p, [c_void_p, _Params]),
    "llama_free": (None, [c_void_p]),
    "llama_n_ctx": (c_uint32, [c_void_p]),
    "llama_n_ctx_seq": (c_uint32, [c_void_p]),
    "llama_n_batch": (c_uint32, [c_void_p]),
    "llama_n_ubatch": (c_uint32, [c_void_p]),
    "llama_n_seq_max": (c_uint32, [c_void_p]),
    "llama_set_n_threads": (None, [c_void_p, c_int32, c_int32]),
    "llama_get_memory": (c_void_p, [c_void_p]),
    "llama_memory_clear": (None, [c_void_p, c_bool]),
    "llama_memory_seq_rm": (c_bool, [c_void_p, c_int32, c_int32, c_int32]),
    "llama_memory_seq_cp": (None, [c_void_p, c_int32, c_int32, c_int32, c_int32]),
    "llama_decode": (c_int32, [c_void_p, _Batch]),
    "llama_get_logits_ith": (POINTER(c_float), [c_void_p, c_int32]),
    "llama_state_get_size": (ctypes.c_size_t, [c_void_p]),
}


@lru_cache(maxsize=1)
def _calls() -> Any:
    """The library, checked to be laid out as is known here.

    Raises:
        NotAvailable: xllamacpp is not installed, or another build of it.
    """
    module = library("xllamacpp.xllamacpp", "Running a variant in llama.cpp", extra="engine")
    found = ctypes.CDLL(module.__file__)
    try:
        for name, (result, arguments) in SIGNATURES.items():
            call = getattr(found, name)
            call.restype, call.argtypes = result, arguments
    except AttributeError:
        raise NotAvailable(UNKNOWN) from None
    found.llama_log_set(_hear, None)
    found.llama_backend_init()
    defaults = found.llama_context_default_params().bytes
    if any(struct.unpack_from("i", defaults, place)[0] != value for place, value in EXPECTED):
        raise NotAvailable(UNKNOWN)
    return found


class Loaded:
    """A file's model in memory; freed with the last reference to it.

    Raises:
        WorkbenchError: llama.cpp cannot open the file.
        NotAvailable: xllamacpp is not installed.
    """

    def __init__(self, path: Path) -> None:
        calls = _calls()
        _messages.clear()
        self.pointer = calls.llama_model_load_from_file(str(path).encode(), calls.llama_model_default_params())
        if not self.pointer:
            raise WorkbenchError(f"llama.cpp cannot open '{path}' ({_reason()}).")
        weakref.finalize(self, calls.llama_model_free, self.pointer)
        self.vocabulary = int(calls.llama_vocab_n_tokens(calls.llama_model_get_vocab(self.pointer)))


class Context:
    """Places for rows of tokens with their keys and values; to be used within `using`.

    Args:
        model: whose.
        rows: how many side by side.
        length: tokens that each can hold.
        kind: what keys and values are kept in, a key of `TYPES`.
        threads: of the CPU.

    Raises:
        OutOfMemory: the machine has too little memory.
    """

    def __init__(self, model: Loaded, rows: int, length: int, kind: str, threads: int) -> None:
        self._calls, self._model = _calls(), model
        self.rows, self.length = rows, length
        chunk = min(CHUNK, rows * length)
        wanted = {
            CONTEXT: rows * length,
            BATCH: chunk,
            MICRO: chunk,
            ROWS: rows,
            KEYS: TYPES[kind],
            VALUES: TYPES[kind],
        }
        params = self._calls.llama_context_default_params()
        for place, value in wanted.items():
            struct.pack_into("I", params.bytes, place, value)
        _messages.clear()
        self._pointer = self._calls.llama_init_from_model(model.pointer, params)
        if not self._pointer:
            raise OutOfMemory(
                f"llama.cpp got no memory for {rows} rows of {length} tokens ({_reason()}): close a variant, or ask "
                "for less at once."
            )
        self._freed = weakref.finalize(self, _free, self._calls, self._pointer, model)
        made = [
            getattr(self._calls, f"llama_n_{name}")(self._pointer) for name in ("ctx", "batch", "ubatch", "seq_max")
        ]
        if made[0] < rows * length or made[1:] != [chunk, chunk, rows]:
            raise NotAvailable(UNKNOWN)
        self._memory = self._calls.llama_get_memory(self._pointer)
        self.set_threads(threads)

    def set_threads(self, threads: int) -> None:
        """How many threads it computes with."""
        self._calls.llama_set_n_threads(self._pointer, threads, threads)

    @property
    def bytes(self) -> int:
        """What it holds of the tokens read so far."""
        return int(self._calls.llama_state_get_size(self._pointer))

    def clear(self) -> None:
        """Forget everything."""
        self._calls.llama_memory_clear(self._memory, True)

    def cut(self, row: int, length: int) -> None:
        """Keep so many tokens of a row."""
        self._calls.llama_memory_seq_rm(self._memory, row, length, -1)

    def copy(self, source: int, target: int) -> None:
        """Have a row hold what another holds."""
        self._calls.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def read(self, tokens: Sequence[int], places: Sequence[int], rows: Sequence[int], wanted: Sequence[int]) -> Tensor:
        """Read tokens, `CHUNK` at most, and give logits ``(wanted, vocabulary)`` after some of them.

        They are llama.cpp's own memory: good until more is read.

        Args:
            tokens: token ids.
            places: of each within its row.
            rows: that each belongs to.
            wanted: indexes of those whose logits are asked.

        Raises:
            InvalidInput: a token is none of the model's.
            WorkbenchError: llama.cpp failed.
        """
        if not all(0 <= token < self._model.vocabulary for token in tokens):
            raise InvalidInput(f"A token is beyond the vocabulary of {self._model.vocabulary} tokens.")
        count = len(tokens)
        ids, at, row = (np.asarray(each, dtype=np.int32) for each in (tokens, places, rows))
        ones, asked = np.ones(count, dtype=np.int32), np.zeros(count, dtype=np.int8)
        asked[list(wanted)] = 1
        pointers = row.ctypes.data + 4 * np.arange(count, dtype=np.int64)
        parts: list[np.ndarray[Any, Any]] = [at, ones, pointers, asked]
        batch = _Batch(count, ids.ctypes.data, None, *(each.ctypes.data for each in parts))
        _messages.clear()
        status = self._calls.llama_decode(self._pointer, batch)  # without Python's lock, as all of ctypes
        if status:
            raise WorkbenchError(f"llama.cpp failed to compute ({_reason()}, status {status}): try again.")
        shape = (1, self._model.vocabulary)
        got = [self._calls.llama_get_logits_ith(self._pointer, index) for index in wanted]
        found = [torch.from_numpy(np.ctypeslib.as_array(each, shape=shape)) for each in got]
        return found[0] if len(found) == 1 else torch.cat([torch.empty(0, shape[1]), *found])


def _free(calls: Any, pointer: int, model: Loaded) -> None:
    """The model is kept until here: a context must go first."""
    calls.llama_free(pointer)


def _reason() -> str:
    return _messages[-1][:160].rstrip(".") if _messages else "it gives no reason"
