"""Keys and values of several rows in memory set aside once: for compiled steps, and for rows that come and go."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from workbench.runtime.rows import KEYS_AND_VALUES, accepted

FULL_ATTENTION, SLIDING = "full_attention", "sliding_attention"  # transformers' names of masks


class SlotLayer(CacheLayerMixin):
    """Keys and values ``(rows, heads, capacity, head)`` of one attention layer, each token written at its own place.

    A sliding window keeps all of its tokens here as well; the mask hides those that it has passed.
    """

    is_compileable = True
    keys: Tensor
    values: Tensor

    def __init__(self, slots: "Slots") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.slots = slots

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Set the memory aside."""
        self.keys, self.values = (
            each.new_zeros(self.slots.count, each.shape[1], self.slots.capacity, each.shape[3])
            for each in (key_states, value_states)
        )
        self.is_initialized = True

    def put(self, row: int, layer: DynamicLayer, index: int, length: int, start: int) -> None:
        """Copy what a growing layer keeps of its row `index`, which has read so many tokens."""
        assert layer.keys is not None
        assert layer.values is not None
        if not self.is_initialized:
            self.lazy_initialization(layer.keys, layer.values)
        kept = min(length, layer.keys.shape[2]) - start  # of a sliding window only the latest are there
        for mine, theirs in ((self.keys, layer.keys), (self.values, layer.values)):
            mine[row, :, :start] = theirs[index, :, :start]
            mine[row, :, length - kept : length] = theirs[index, :, -kept:]

    def resize(self, rows: int, length: int, count: int, capacity: int) -> None:
        """Have so many places instead; of the first rows so many tokens are kept."""
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(count, old.shape[1], capacity, old.shape[3])
            new[:rows, :, :length] = old[:rows, :, :length]
            setattr(self, name, new)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write keys and values ``(rows, heads, tokens, head)``; gives back all that these rows may look at."""
        rows, _, tokens, _ = key_states.shape
        places, span = self.slots.places, self.slots.span
        if rows == 1:
            self.keys[:1].index_copy_(2, places[0], key_states)
            self.values[:1].index_copy_(2, places[0], value_states)
        else:
            at = torch.arange(rows, device=places.device)[:, None].expand(rows, tokens)
            self.keys.transpose(1, 2).index_put_((at, places), key_states.transpose(1, 2))
            self.values.transpose(1, 2).index_put_((at, places), value_states.transpose(1, 2))
        return self.keys[:rows, :, :span], self.values[:rows, :, :span]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many tokens are looked at, and from where on."""
        return self.slots.span, 0

    def get_seq_length(self) -> int:
        """Places are told with every pass."""
        return 0

    def get_max_length(self) -> int:
        """Tokens a row may have."""
        return self.slots.capacity


class Slots:
    """Rows that a model continues, each from a place of its own; to be used within `using`.

    The rows in use are the first ones. A prompt is read elsewhere, into a growing cache, and put in.

    Attributes:
        count: rows that there is memory for.
        capacity: tokens that a row may have.
        lengths: tokens that each row in use has read.
        places: of the tokens ``(rows, tokens)`` of the pass that runs.
        span: how many tokens from the first on that pass looks at.

    Args:
        model: a causal language model that `Way.slots` says it fits.
        count: rows.
        capacity: tokens a row.
    """

    def __init__(self, model: PreTrainedModel, count: int, capacity: int) -> None:
        self._model, self._windows = model, windows(model.config)
        self.count, self.capacity = count, capacity
        self.lengths: list[int] = []
        self.places, self.span = torch.zeros(0, 0, dtype=torch.long), 0
        self._layers = [SlotLayer(self) for _ in DynamicCache(config=model.config).layers]
        self._cache = Cache(layers=list(self._layers))

    @property
    def held_bytes(self) -> int:
        """Memory set aside."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self._layers if layer.is_initialized)

    @property
    def tensors(self) -> list[Tensor]:
        """Keys and values of every layer in turn."""
        return [each for layer in self._layers for each in (layer.keys, layer.values)]

    def set_aside(self) -> None:
        """Set the memory aside before there is a row."""
        cache = DynamicCache(config=self._model.config)
        tokens = torch.zeros(1, 1, dtype=torch.long, device=self._model.device)
        self._model(**accepted(self._model, {"input_ids": tokens, KEYS_AND_VALUES: cache, "use_cache": True}))
        self.put(cache, 0, 1)
        self.drop(0)

    @contextmanager
    def holding(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Use other keys and values for a while, such as those that a graph will be given; then the own again."""
        own = self.tensors
        try:
            self._hold(tensors)
            yield
        finally:
            self._hold(own)

    def _hold(self, tensors: Sequence[Tensor]) -> None:
        for layer, keys, values in zip(self._layers, tensors[::2], tensors[1::2], strict=True):
            layer.keys, layer.values = keys, values

    def grown(self, capacity: int) -> "Slots":
        """The same rows with room for more tokens."""
        other = Slots(self._model, self.count, capacity)
        for mine, layer in zip(self._layers, other._layers, strict=True):
            layer.lazy_initialization(mine.keys, mine.values)
            layer.keys[:, :, : self.capacity] = mine.keys
            layer.values[:, :, : self.capacity] = mine.values
        other.lengths = list(self.lengths)
        return other

    def put(self, cache: DynamicCache, index: int, length: int, start: int = 0) -> int:
        """A further row, as a growing cache keeps its row `index`, which has read so many tokens; gives its number.

        Of these the first `start` are those of a prefix; padding of a shorter row stands behind it.
        """
        row = len(self.lengths)
        for mine, layer in zip(self._layers, cache.layers, strict=True):
            assert isinstance(layer, DynamicLayer)
            mine.put(row, layer, index, length, start)
        self.lengths.append(length)
        return row

    def taken(self, row: int) -> DynamicCache:
        """A copy of what a row has read, in a growing cache."""
        cache = DynamicCache(config=self._model.config)
        for index, layer in enumerate(self._layers):
            keys, values = (each[row : row + 1, :, : self.lengths[row]].clone() for each in (layer.keys, layer.values))
            cache.update(keys, values, index)
        return cache

    def drop(self, row: int) -> None:
        """Give a row's place to the last one in use."""
        last = len(self.lengths) - 1
        if row != last:
            length = self.lengths[last]
            for layer in self._layers:
                for each in (layer.keys, layer.values):
                    each[row, :, :length] = each[last, :, :length]
            self.lengths[row] = length
        self.lengths.pop()

    def resize(self, count: int, capacity: int) -> None:
        """Have places for so many rows of so many tokens instead; where memory fails, all rows are as they were."""
        if self._layers[0].is_initialized:
            for layer in self._layers:
                layer.resize(len(self.lengths), max(self.lengths, default=0), count, capacity)
        self.count, self.capacity = count, capacity

    def logits(self, tokens: Tensor, span: int | None = None) -> Tensor:
        """Read tokens ``(rows, tokens)`` of all rows in use: logits ``(rows, tokens, vocabulary)`` of what comes next.

        Args:
            tokens: the next of every row.
            span: how many tokens a pass looks at, at least as many as the longest row has then; all of them by default.
        """
        count = tokens.shape[1]
        places = torch.tensor(self.lengths, device=tokens.device)[:, None] + torch.arange(count, device=tokens.device)
        self.lengths = [length + count for length in self.lengths]
        return self.forward(tokens, places, span or max(self.lengths))

    def forward(self, tokens: Tensor, places: Tensor, span: int) -> Tensor:
        """One pass over tokens ``(rows, tokens)`` at their places: all that it depends on is given, or in the cache."""
        self.places, self.span = places, span
        inputs: dict[str, Any] = {
            "input_ids": tokens,
            "attention_mask": self._masks(places, span),
            "position_ids": places,
            KEYS_AND_VALUES: self._cache,
            "use_cache": True,
        }
        logits: Tensor = self._model(**accepted(self._model, inputs)).logits
        return logits

    def _masks(self, places: Tensor, span: int) -> Tensor | dict[str, Tensor]:
        """What is added to the scores of what a token looks at ``(rows, 1, tokens, span)``, for each kind of layer."""
        seen = torch.arange(span, device=places.device)
        before = seen <= places[..., None]
        none, least = torch.zeros((), dtype=self._model.dtype), torch.finfo(self._model.dtype).min
        found = {}
        for kind, window in self._windows.items():
            visible = before if window is None else before & (seen > places[..., None] - window)
            found[kind] = torch.where(visible, none.to(places.device), least)[:, None]
        return found if len(found) > 1 else next(iter(found.values()))


def windows(config: PreTrainedConfig) -> dict[str, int | None]:
    """The kinds of attention layers, and how many tokens each looks back on; None looks at all.

    Raises:
        ValueError: it has layers that keep anything else.
    """
    found: dict[str, int | None] = {}
    for layer in DynamicCache(config=config).layers:
        if type(layer) is DynamicLayer:
            found[FULL_ATTENTION] = None
        elif type(layer) is DynamicSlidingWindowLayer:
            found[SLIDING] = layer.sliding_window
        else:
            raise ValueError(f"{type(layer).__name__} keeps more than keys and values")
    if "chunked_attention" in (getattr(config.get_text_config(), "layer_types", None) or ()):
        raise ValueError("attention in chunks starts anew at fixed places")
    return found
