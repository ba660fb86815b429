"""What a model that is not loaded yet holds: read from its configuration and the headers of its files alone."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from workbench.core import files
from workbench.core.errors import InvalidInput, NotAvailable

MOST_HEADER = 100_000_000  # bytes of a safetensors header: the format's own limit
MOST_TENSORS, MOST_SIZE, MOST_DIMS = 1_000_000, 1 << 46, 8
BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16}
BITS |= {"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8, "F4": 4, "C64": 64}
TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
# GGUF's kinds of values and the bytes of each: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
VALUES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
TEXT, LIST, UNSIGNED = 8, 9, {0: "<B", 2: "<H", 4: "<I", 10: "<Q", 1: "<b", 3: "<h", 5: "<i", 11: "<q"}


@dataclass(frozen=True)
class Headers:
    """A model on disk.

    Attributes:
        name: of its folder or file.
        weights: numbers that its floating-point tensors hold.
        stored: bytes of all its tensors on disk.
        packed: whether its files hold codes that stay as they are when it is loaded.
        cached: numbers that the keys and values of one more token take; 0 where its configuration does not tell.
        mapped: the type in which transformers maps its files into memory on a CPU, where the system reads a page of
            them when it is used; empty where they are copied.
    """

    name: str
    weights: int
    stored: int
    packed: bool
    cached: int
    mapped: str = ""

    def loaded(self, width: int) -> int:
        """Bytes of its weights in memory, in a type of so many bytes."""
        return self.stored if self.packed else self.weights * width


def read_headers(source: str | Path) -> Headers:
    """Look at a model without loading it.

    Args:
        source: a folder, a .gguf file, or a hub id of which the files are on this machine already.

    Raises:
        NotAvailable: it is not on this machine.
        InvalidInput: there is no weight file in it, or a header that is damaged or says absurd sizes.
    """
    path = files.home(source)
    if path.suffix == ".gguf" and files.is_kind(path, Path.is_file):
        return _gguf(path)
    folder = path if files.is_kind(path, Path.is_dir) else _from_hub(str(source))
    config, tensors = _config(folder), []
    for file in _weight_files(folder):
        tensors += list(_tensors(file))
    return Headers(
        name=folder.name if folder == path else str(source),
        weights=sum(count for kind, count in tensors if kind in FLOATS),
        stored=sum(count * BITS[kind] // 8 for kind, count in tensors),
        packed=bool(config.get("quantization_config")),
        cached=_cached(config),
        mapped="" if (folder / "workbench.json").exists() or config.get("quantization_config") else _kind(tensors),
    )


def _kind(tensors: list[tuple[str, int]]) -> str:
    """What torch calls the one type of all tensors; empty where there are several, or others."""
    kinds = {kind for kind, _ in tensors}
    return TYPES.get(kinds.pop(), "") if len(kinds) == 1 else ""


def _from_hub(source: str) -> Path:
    """The folder that an earlier download of a hub id left; nothing is asked of the hub."""
    if not files.looks_like_path(source):
        from huggingface_hub import try_to_load_from_cache

        try:
            found = try_to_load_from_cache(source, "config.json")
        except ValueError:  # not an id
            found = None
        if isinstance(found, str):
            return Path(found).parent
    raise NotAvailable(
        f"'{source[:200]}' is not on this machine, so its headers cannot be read: give a folder or a .gguf file, or "
        "download it first."
    )


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InvalidInput(f"'{folder}' has no config.json that can be read: it is not the folder of a model.")
    return found


def _weight_files(folder: Path) -> list[Path]:
    """Those that the index names, or all that are there."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = {str(each) for each in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
            raise InvalidInput(f"'{index}' is damaged: download the model again.") from None
        found = [folder / name for name in sorted(names) if "/" not in name and "\\" not in name]
    else:
        found = sorted(folder.glob("*.safetensors"))
    missing = next((each for each in found if not files.is_kind(each, Path.is_file)), None)
    if not found or missing is not None:
        lacking = "no .safetensors file" if missing is None else f"no file '{missing.name[:100]}'"
        raise InvalidInput(f"'{folder}' has {lacking}: download the model again, or export it with safetensors.")
    return found


def _tensors(file: Path) -> Iterator[tuple[str, int]]:
    """Kind and count of numbers of every tensor, each checked against the file's own size."""
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if not 2 <= length <= min(MOST_HEADER, size - 8):
                raise ValueError("its header is longer than the file")
            header = json.loads(opened.read(length))
        for name, about in header.items():
            if name != "__metadata__":
                yield _checked(about, size - 8 - length)
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(file, error) from None


def _checked(about: dict[str, Any], room: int) -> tuple[str, int]:
    kind, shape, (start, end) = str(about["dtype"]), about["shape"], about["data_offsets"]
    count = _count(shape)
    if kind not in BITS or not 0 <= start <= end <= room or end - start != count * BITS[kind] // 8:
        raise ValueError("a tensor lies outside the file")
    return kind, count


def _count(shape: Any) -> int:
    if len(shape) > MOST_DIMS or not all(type(each) is int and 0 <= each <= MOST_SIZE for each in shape):
        raise ValueError("a tensor has an absurd shape")
    count = int(prod(shape))
    if count > MOST_SIZE:
        raise ValueError("a tensor has an absurd shape")
    return count


def _damaged(file: Path, error: Exception) -> InvalidInput:
    reason = str(error) if type(error) is ValueError else "its header cannot be read"
    return InvalidInput(f"'{file.name[:100]}' is damaged ({reason[:80]}): download the model again.")


def _cached(config: dict[str, Any]) -> int:
    """Numbers a token from the usual names of a configuration, 0 where they are others or absurd."""
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    assert isinstance(text, dict)

    def number(*names: str) -> int:
        found = next((text[name] for name in names if type(text.get(name)) is int), 0)
        return found if 0 <= found <= 1_000_000 else 0

    heads, hidden = number("num_attention_heads", "n_head"), number("hidden_size", "n_embd")
    width = number("head_dim") or (hidden // heads if heads else 0)
    return 2 * number("num_hidden_layers", "n_layer") * (number("num_key_value_heads") or heads) * width


def _gguf(file: Path) -> Headers:
    """Of one file; its size limits everything that is read."""
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            magic, version, tensors, values = struct.unpack("<4sIQQ", opened.read(24))
            if magic != b"GGUF" or version not in (2, 3):
                raise ValueError("it is not a GGUF file of version 2 or 3")
            if tensors > MOST_TENSORS or values > MOST_TENSORS:
                raise ValueError("it has an absurd number of tensors")
            known = dict(_value(opened, size) for _ in range(values))
            weights = sum(_tensor(opened, size) for _ in range(tensors))
            stored = size - opened.tell()
    except (OSError, struct.error, ValueError, KeyError, RecursionError) as error:
        raise _damaged(file, error) from None
    if weights > MOST_SIZE or stored < weights // 8:  # no kind stores less than a bit a weight
        raise InvalidInput(f"'{file.name[:100]}' is damaged (it is cut off): download the model again.")
    kind = known.get("general.architecture", "")

    def number(name: str) -> int:
        found = known.get(f"{kind}.{name}", 0)
        return found if isinstance(found, int) and 0 <= found <= 1_000_000 else 0

    heads = number("attention.head_count")
    width = number("attention.key_length") or (number("embedding_length") // heads if heads else 0)
    cached = 2 * number("block_count") * (number("attention.head_count_kv") or heads) * width
    return Headers(name=file.stem, weights=weights, stored=stored, packed=False, cached=cached)


def _value(opened: BinaryIO, size: int) -> tuple[str, Any]:
    """A name and its value; of a list nothing is kept."""
    name = _text(opened, size)
    return name, _read(opened, size, _number(opened, "<I"), 0)


def _read(opened: BinaryIO, size: int, kind: int, depth: int) -> Any:
    if kind == TEXT:
        return _text(opened, size)
    if kind == LIST:
        inner, count = _number(opened, "<I"), _number(opened, "<Q")
        if count > size or depth > 3:
            raise ValueError("it has an absurd list")
        if inner in VALUES:
            _skip(opened, size, count * VALUES[inner])
        else:
            for _ in range(count):
                _read(opened, size, inner, depth + 1)
        return None
    if kind in UNSIGNED:
        return _number(opened, UNSIGNED[kind])
    _skip(opened, size, VALUES[kind])
    return None


def _tensor(opened: BinaryIO, size: int) -> int:
    """How many weights the next tensor holds."""
    name, dims = _text(opened, size), _number(opened, "<I")
    if not name or not 1 <= dims <= MOST_DIMS:
        raise ValueError("a tensor has an absurd shape")
    count = _count([_number(opened, "<Q") for _ in range(dims)])
    _skip(opened, size, 12)  # its kind and its place
    return count


def _text(opened: BinaryIO, size: int) -> str:
    length = _number(opened, "<Q")
    if length > size - opened.tell():
        raise ValueError("it is cut off")
    return opened.read(length).decode("utf-8", errors="replace")


def _skip(opened: BinaryIO, size: int, count: int) -> None:
    if count > size - opened.tell():
        raise ValueError("it is cut off")
    opened.seek(count, 1)


def _number(opened: BinaryIO, form: str) -> int:
    (found,) = struct.unpack(form, opened.read(struct.calcsize(form)))
    return int(found)
