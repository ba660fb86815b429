"""Files written whole or not at all, checked names, hashes, and the folder that caches live in."""

import contextlib
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from workbench.core.errors import InvalidInput, WorkbenchError, first_line

SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,99}")
DATA_SUFFIXES = frozenset(
    {".gguf", ".safetensors", ".bin", ".pt", ".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt", ".md"}
)
CHUNK = 1 << 22


def cache_folder() -> Path:
    """Where converted models are kept: $WORKBENCH_CACHE, else llm-optimization-workbench in the user's cache."""
    if given := os.environ.get("WORKBENCH_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llm-optimization-workbench"


def check_name(name: str) -> str:
    """A name that is safe as a file name, unchanged.

    Raises:
        InvalidInput: it is empty, too long, or holds a separator or a control character.
    """
    if not SAFE_NAME.fullmatch(name) or name.endswith((" ", ".")):
        raise InvalidInput(
            f"'{name[:60]}' cannot be used as a name: use 1 to 100 letters, digits, spaces or . _ + -, "
            "starting with a letter or digit."
        )
    return name


def home(source: str | Path) -> Path:
    """A path as typed, ``~`` at its start resolved where there is such a user."""
    try:
        return Path(source).expanduser()
    except RuntimeError:
        return Path(source)


def looks_like_path(source: str | Path) -> bool:
    """Whether a name that is not on this machine was meant as a path on it, so that no hub need be asked.

    The ids of a hub are ``name`` or ``owner/name``. A path starts with ``/``, ``.`` or ``~``, has a backslash, more
    than one slash or the suffix of a data file, or lies in a folder that is there.
    """
    if isinstance(source, Path):
        return True
    path = home(source)
    return (
        source.startswith(("/", "./", "../", "~"))
        or source in (".", "..")
        or "\\" in source
        or source.count("/") > 1
        or path.suffix.lower() in DATA_SUFFIXES
        or ("/" in source and is_kind(path.parent, Path.is_dir))
    )


def inside(folder: Path, name: str) -> Path:
    """The path of a name typed by a user, kept inside the folder.

    Raises:
        InvalidInput: the name is unsafe, or the folder or the target is a symbolic link.
    """
    target = folder / check_name(name)
    if folder.is_symlink() or target.is_symlink():
        raise InvalidInput(f"'{target}' goes through a symbolic link: exports are written to a real folder only.")
    return target


def sibling(path: Path) -> Path:
    """A name beside a path that nobody uses, hidden, for what is not finished yet."""
    return path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a place to write a file or folder to, which takes the path's own place at the end, on disk to the last byte.

    Nothing is left behind when writing fails. A folder that another process puts there meanwhile stays.
    """
    temporary = sibling(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        to_disk(temporary)
        try:
            os.replace(temporary, path)
        except OSError:
            if not (temporary.is_dir() and path.is_dir()):
                raise
    finally:
        with contextlib.suppress(OSError, ValueError):
            remove(temporary)


def to_disk(path: Path) -> None:
    """Wait until a file, or every file of a folder, has reached the disk."""
    for file in filter(Path.is_file, (path, *path.rglob("*"))):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all.

    Raises:
        WorkbenchError: the disk is full or the folder cannot be written.
    """
    try:
        with whole(path) as temporary, temporary.open("x", encoding="utf-8") as file:
            file.write(text)
    except (OSError, ValueError) as error:
        raise write_refused(path, error) from None


def write_refused(path: Path, error: Exception) -> WorkbenchError:
    """What to raise when a path could not be written."""
    reason = getattr(error, "strerror", None) or first_line(error)
    return WorkbenchError(f"Could not write '{str(path)[:200]}' ({reason}): nothing there was changed.")


def is_kind(path: Path, kind: Callable[[Path], bool]) -> bool:
    """Whether a path is of a kind, such as `Path.is_file`; what cannot be a path at all is not."""
    try:
        return kind(path)
    except (OSError, ValueError):
        return False


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
