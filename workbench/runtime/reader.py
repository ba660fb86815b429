"""Reading text with a model: what it makes of every token, without the logits of all tokens at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from workbench.runtime.forward import using
from workbench.runtime.kernels import quickened
from workbench.runtime.kvcache import FULL, new_cache
from workbench.runtime.prefix import body, common_cache, pad_left, shared_prefix
from workbench.runtime.rows import KEYS_AND_VALUES, accepted
from workbench.runtime.trial import way_of

BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
BATCH_LOGITS = {"cpu": 1 << 26, "cuda": 1 << 29}  # held at once by a model that hands out logits only
CHUNK_LOGITS = {"cpu": 25_000_000, "cuda": 1 << 28}  # made and reduced at a time: 100 MB in float32 on a CPU


@dataclass(frozen=True)
class Span:
    """Tokens whose likelihood is asked, after a context.

    Attributes:
        context: token ids before, at least one.
        target: token ids scored, at least one.
    """

    context: tuple[int, ...]
    target: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """What the model reads: the last target token predicts nothing that is asked."""
        return self.context + self.target[:-1]


class Reader:
    """Reads spans with one model: the tokens they all begin with once, then every batch up to the output head.

    The head makes a row of the vocabulary's size of every token; it is applied later, to some rows at a time, so that
    all of them are never held at once. A model that does more than the head after its last layer (softcapping, scaling)
    hands out its logits instead.

    Attributes:
        batch_tokens: how many tokens are best read at a time.
        batch_logits: how many target tokens at a time, where the model hands out logits.
        split: whether states are what the head takes, and not logits.
        rows_at_once: how many rows of states the head should be given at a time.
        head: from rows of states to logits ``(rows, vocabulary)``; to be called within `using`.
    """

    def __init__(self, model: PreTrainedModel, spans: Sequence[Span], cache_bits: int, label: str) -> None:
        self._label, self._bits = label, cache_bits
        with using(label):
            self._model = quickened(model)
            self._way = way_of(model)
            contexts = [span.context for span in spans]
            self._prefix = shared_prefix(self._model, contexts, cache_bits) if self._way.prefix else None
            self.split = ends_in_head(model)
        kind = model.device.type if model.device.type in BATCH_TOKENS else "cpu"
        vocabulary = model.config.get_text_config().vocab_size
        self.batch_tokens = BATCH_TOKENS[kind]
        self.batch_logits = BATCH_TOKENS[kind] if self.split else max(1, BATCH_LOGITS[kind] // vocabulary)
        self.rows_at_once = max(16, CHUNK_LOGITS[kind] // vocabulary)
        self.head: Callable[[Tensor], Tensor] = self._model.get_output_embeddings() if self.split else lambda x: x

    def states(self, spans: Sequence[Span]) -> Tensor:
        """What the head takes to predict every target token of every span, ``(target tokens of all, hidden)``."""
        with using(self._label):
            if self._way.padded or len({len(span.ids) for span in spans}) == 1:
                return self._states(spans)
            return torch.cat([self._states([span]) for span in spans])

    def _states(self, spans: Sequence[Span]) -> Tensor:
        """Spans side by side."""
        start = self._prefix.length if self._prefix else 0
        ids, mask = pad_left([span.ids[start:] for span in spans], self._model.device)
        padded = not bool(mask.all())
        full = torch.cat([mask.new_ones(len(spans), start), mask], dim=1)
        cache = self._prefix.expand(len(spans)) if self._prefix else None
        if cache is None and self._bits < FULL:  # the text is read as the keys and values would be kept
            cache = new_cache(self._model.config, self._bits)
        inputs: dict[str, Any] = {"input_ids": ids, "use_cache": cache is not None}
        if padded:
            inputs["attention_mask"] = full
        if padded or self._way.positions:
            inputs["position_ids"] = (full.cumsum(dim=1) - 1).clamp(min=0)[:, start:]
        if cache is not None:
            inputs[KEYS_AND_VALUES] = cache
        if self.split:
            whole = body(self._model)
            found = whole(**accepted(whole, inputs)).last_hidden_state
        else:
            inputs["logits_to_keep"] = max(len(span.target) for span in spans)
            found = self._model(**accepted(self._model, inputs)).logits
        return torch.cat([row[-len(span.target) :] for row, span in zip(found, spans, strict=True)])

    def logs(self, spans: Sequence[Span]) -> Tensor:
        """Log-probabilities ``(target tokens of all, vocabulary)`` in float32, all at once: for a little text."""
        with using(self._label):
            states = self.states(spans)
            parts = [states[start : start + self.rows_at_once] for start in range(0, len(states), self.rows_at_once)]
            return torch.cat([self.head(part).float().log_softmax(dim=-1) for part in parts])


def rows_states(
    model: PreTrainedModel,
    ids: Tensor,
    positions: Tensor,
    mask: Tensor | None,
    common: Tensor | None,
    every: bool = False,
) -> list[Tensor]:
    """Hidden states ``(rows, tokens, hidden)`` of rows that are laid out already: the last, or those of every block.

    Gradients pass, also through what the rows share.

    Args:
        model: to be used within `using`.
        ids: ``(rows, tokens)``.
        positions: ``(rows, tokens)``.
        mask: ``(rows, 1, tokens, common + tokens)``, what a token sees; None for all that is before it.
        common: ``(1, common)``, what all rows begin with and leave out; it is read once.
        every: whether the states behind every block are wanted; the first is what goes into the first block.
    """
    inputs: dict[str, Any] = {"input_ids": ids, "position_ids": positions, "output_hidden_states": every}
    if mask is not None:
        inputs["attention_mask"] = mask
    if common is not None:
        inputs[KEYS_AND_VALUES] = common_cache(model, common, len(ids))
    whole = body(model)
    out = whole(**accepted(whole, inputs | {"use_cache": common is not None}))
    return [*(out.hidden_states[:-1] if every else ()), out.last_hidden_state]


_tried: "WeakKeyDictionary[PreTrainedModel, bool]" = WeakKeyDictionary()


def ends_in_head(model: PreTrainedModel) -> bool:
    """Whether the logits are the output head of the last hidden state, tried once on some tokens: some models scale."""
    if model not in _tried:
        _tried[model] = _try_head(model)
    return _tried[model]


def _try_head(model: PreTrainedModel) -> bool:
    tokens = torch.arange(8, device=model.device)[None]  # more than the first, which may be a padding of zeros
    with using("Trying the output head"):
        whole = model(input_ids=tokens, use_cache=False).logits
        hidden = getattr(body(model)(input_ids=tokens, use_cache=False), "last_hidden_state", None)
        head = model.get_output_embeddings()
        return head is not None and hidden is not None and torch.equal(head(hidden), whole)
