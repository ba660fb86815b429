"""How likely a variant finds the gold text: perplexity, divergence from a baseline, agreement on the top token.

Spans are batched by length, the tokens that all of them begin with are read once, and logits are computed only where
something is scored.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.decoding import model_lock, pad_left, shared_prefix
from workbench.errors import Incomparable
from workbench.kvcache import FULL, new_cache
from workbench.loss import ends_in_head
from workbench.measure.kernels import for_reading
from workbench.progress import Progress
from workbench.prompting import encode_text
from workbench.request import Request
from workbench.task import Example, Task, Text
from workbench.variant import Variant

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


@dataclass(frozen=True)
class Likelihood:
    """What was measured on each span, every list as long as the spans.

    Attributes:
        nll: negative log-likelihood of the target, in nats, summed over its tokens.
        tokens: target tokens, as the baseline's tokenizer counts them.
        kl: divergence from the baseline's distribution, KL(baseline || variant), in nats, summed over the tokens; None
            where the vocabulary is another than the baseline's.
        same_top: target positions where the most likely token is the baseline's; None with another vocabulary.
        greedy: target positions where the most likely token is the target's.
    """

    nll: tuple[float, ...]
    tokens: tuple[int, ...]
    kl: tuple[float, ...] | None
    same_top: tuple[int, ...] | None
    greedy: tuple[int, ...]


def task_spans(variant: Variant, task: Task | Text, limit: int | None = None) -> list[Span]:
    """The gold text of the test split: each answer after its prompt, or each window after its first token."""
    if isinstance(task, Text):
        windows = task.windows(variant.tokenizer, "test")[:limit]
        return [Span(tuple(window[:1]), tuple(window[1:])) for window in windows]
    return [answer_span(variant, task, example, example.answer) for example in task.test[:limit]]


def answer_span(variant: Variant, task: Task, example: Example, answer: str) -> Span:
    """An answer after the example's prompt, as the variant would be asked."""
    target = encode_text(variant.tokenizer, answer)
    context = variant.encode(Request.example(task, example))
    variant.check_length(len(context), len(target))
    return Span(tuple(context), tuple(target) or (min(variant.end_tokens, default=0),))


@torch.no_grad()
def likelihoods(
    variants: Sequence[Variant], spans: Sequence[Sequence[Span]], progress: Progress | None = None
) -> list[Likelihood]:
    """Score the spans with every variant; the first variant is the baseline of the divergence.

    Args:
        variants: what scores; they may share weights.
        spans: for every variant its spans. Contexts may differ between variants. So may the targets' token ids, where
            the vocabulary does, but not their text.

    Raises:
        Incomparable: a variant with another vocabulary is asked for the likelihood of another text.
    """
    progress = progress or Progress()
    comparable = [_same_vocabulary(variants[0], variant) for variant in variants]
    for variant, each, same in zip(variants, spans, comparable, strict=True):
        if not same and not _same_text(variants[0], spans[0], variant, each):
            raise Incomparable(
                f"'{variant.name}' has another vocabulary, which cuts this text into other windows: make it with this "
                "text, or compare on a task of examples."
            )
    order = sorted(range(len(spans[0])), key=lambda index: -max(len(each[index].ids) for each in spans))
    readers = [_Reader(variant, each) for variant, each in zip(variants, spans, strict=True)]
    batches = list(_batches(readers, [[each[index] for index in order] for each in spans]))
    sums: list[Tensor] = []
    progress.start("Scoring text", len(batches) * len(variants))
    for batch in batches:
        states = []
        for reader, each in zip(readers, batch, strict=True):
            with model_lock:
                states.append(reader.states(each))
            progress.advance()
        with model_lock:
            sums.append(_span_sums(readers, states, batch, comparable))
    placed = torch.empty(len(variants), 4, len(order), dtype=torch.float64)
    placed[:, :, order] = torch.cat(sums, dim=-1)
    tokens = tuple(len(span.target) for span in spans[0])
    return [_likelihood(each, tokens, same) for each, same in zip(placed, comparable, strict=True)]


def _same_vocabulary(one: Variant, other: Variant) -> bool:
    return one.tokenizer is other.tokenizer or one.tokenizer.get_vocab() == other.tokenizer.get_vocab()


def _same_text(one: Variant, its: Sequence[Span], other: Variant, theirs: Sequence[Span]) -> bool:
    return len(its) == len(theirs) and all(
        one.tokenizer.decode(list(mine.target)) == other.tokenizer.decode(list(his.target))
        for mine, his in zip(its, theirs, strict=True)
    )


class _Reader:
    """Reads spans with one variant: the tokens they all begin with once, then every batch up to the output head.

    The head makes a row of the vocabulary's size of every token; it is applied later, to some rows at a time, so that
    all of them are never held at once. A model that does more than the head after its last layer (softcapping, scaling)
    hands out its logits instead.
    """

    def __init__(self, variant: Variant, spans: Sequence[Span]) -> None:
        self._model = for_reading(variant.model)
        self._bits = variant.decoding.cache_bits
        self._prefix = shared_prefix(self._model, [span.context for span in spans], self._bits)
        self._split = ends_in_head(self._model)
        kind = self._model.device.type if self._model.device.type in BATCH_TOKENS else "cpu"
        vocabulary = self._model.config.get_text_config().vocab_size
        self.batch_tokens = BATCH_TOKENS[kind]
        self.batch_logits = BATCH_TOKENS[kind] if self._split else max(1, BATCH_LOGITS[kind] // vocabulary)
        self.rows_at_once = max(16, CHUNK_LOGITS[kind] // vocabulary)
        self.head: Callable[[Tensor], Tensor] = self._model.get_output_embeddings() if self._split else lambda x: x

    def states(self, spans: Sequence[Span]) -> Tensor:
        """What the head takes to predict every target token of every span, ``(target tokens of all, hidden)``."""
        start = self._prefix.length if self._prefix else 0
        ids, mask = pad_left([span.ids[start:] for span in spans], self._model.device)
        padded = not bool(mask.all())
        full = torch.cat([mask.new_ones(len(spans), start), mask], dim=1)
        cache = self._prefix.expand(len(spans)) if self._prefix else None
        if cache is None and self._bits < FULL:  # the text is read as the keys and values would be kept
            cache = new_cache(self._model.config, self._bits)
        inputs: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": full if padded else None,
            "position_ids": (full.cumsum(dim=1) - 1).clamp(min=0)[:, start:] if padded else None,
            "past_key_values": cache,
            "use_cache": cache is not None,
        }
        if self._split:
            found = self._model.base_model(**inputs).last_hidden_state
        else:
            found = self._model(**inputs, logits_to_keep=max(len(span.target) for span in spans)).logits
        return torch.cat([row[-len(span.target) :] for row, span in zip(found, spans, strict=True)])


def _span_sums(
    readers: Sequence[_Reader], states: Sequence[Tensor], batch: Sequence[Sequence[Span]], comparable: Sequence[bool]
) -> Tensor:
    """Nll, KL, same top and greedy hits summed over each span, ``(variants, 4, spans)``.

    Rows are compared one by one where the vocabulary is the baseline's; the others are read by themselves.
    """
    sums = torch.zeros(len(readers), 4, len(batch[0]), dtype=torch.float64)
    alike = [index for index, same in enumerate(comparable) if same]
    for members in (alike, *([index] for index, same in enumerate(comparable) if not same)):
        spans = batch[members[0]]
        targets = torch.tensor([token for span in spans for token in span.target], device=states[members[0]].device)
        rows = torch.zeros(len(members), 4, len(targets), dtype=torch.float64, device=targets.device)
        for start in range(0, len(targets), readers[members[0]].rows_at_once):
            part = slice(start, start + readers[members[0]].rows_at_once)
            baseline: Tensor | None = None
            for row, index in enumerate(members):
                logs = torch.log_softmax(readers[index].head(states[index][part]).float(), dim=-1)
                baseline = logs if baseline is None else baseline
                rows[row, :, part] = _row_sums(logs, baseline, targets[part])
        owner = torch.repeat_interleave(torch.arange(len(spans)), torch.tensor([len(span.target) for span in spans]))
        sums[members] = torch.zeros(len(members), 4, len(spans), dtype=torch.float64).index_add_(2, owner, rows.cpu())
    return sums


def _row_sums(logs: Tensor, baseline: Tensor, targets: Tensor) -> Tensor:
    """Nll, KL, same top and greedy hit of each row, ``(4, rows)``, from log-probabilities ``(rows, vocabulary)``."""
    nll, top = -logs.gather(-1, targets[:, None]).squeeze(-1), logs.argmax(dim=-1)
    if logs is baseline:
        kl, same = torch.zeros_like(nll), torch.ones_like(nll)
    else:
        kl = baseline.exp().mul_(baseline - logs).sum(dim=-1)
        same = top == baseline.argmax(dim=-1)
    return torch.stack([each.double() for each in (nll, kl, same, top == targets)])


def _likelihood(sums: Tensor, tokens: tuple[int, ...], comparable: bool) -> Likelihood:
    nll, kl, same_top, greedy = sums.tolist()
    return Likelihood(
        nll=tuple(nll),
        tokens=tokens,
        kl=tuple(max(each, 0.0) for each in kl) if comparable else None,  # rounding can leave a KL of zero at -1e-7
        same_top=tuple(map(int, same_top)) if comparable else None,
        greedy=tuple(map(int, greedy)),
    )


def _batches(readers: Sequence[_Reader], spans: Sequence[Sequence[Span]]) -> Iterator[list[list[Span]]]:
    """Cut the sorted spans of all variants into batches that fit the token budget and, with logits, theirs."""
    tokens = min(reader.batch_tokens for reader in readers)
    logits = min(reader.batch_logits for reader in readers)
    start = 0
    while start < len(spans[0]):
        longest = max(len(each[start].ids) for each in spans)
        target, end = 0, start
        while end < len(spans[0]):
            target = max(target, *(len(each[end].target) for each in spans))
            size = end + 1 - start
            if size > 1 and (size * longest > tokens or size * target > logits):
                break
            end += 1
        yield [list(each[start:end]) for each in spans]
        start = end
