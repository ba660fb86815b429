"""How likely a variant finds the gold text: perplexity, divergence from a baseline, agreement on the top token.

Spans are batched by length, the tokens that all of them begin with are read once, and logits are computed only where
something is scored.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.answering.answers import prepare
from workbench.answering.request import Prepared, Request
from workbench.core.errors import Incomparable
from workbench.core.progress import Progress
from workbench.models.tokens import encode_answer, start_tokens
from workbench.runtime.forward import using
from workbench.runtime.reader import Reader, Span
from workbench.tasks.task import Task, Text
from workbench.variant import Variant


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


def prepared(
    variant: Variant, task: Task | Text, limit: int | None = None, progress: Progress | None = None
) -> list[Prepared]:
    """The first test examples as the variant is asked; of a text, none."""
    if isinstance(task, Text):
        return []
    return prepare(variant, [Request.example(task, each) for each in task.test[:limit]], progress)


def task_spans(
    variant: Variant, task: Task | Text, limit: int | None = None, asked: Sequence[Prepared] | None = None
) -> list[Span]:
    """The gold text of the test split: each answer after its prompt, or each window after its beginning.

    Args:
        variant: who is asked.
        task: what.
        limit: how many examples or windows; all by default.
        asked: the examples as `prepared` made them, if that was done already.
    """
    if isinstance(task, Text):
        windows = task.windows(variant.tokenizer, "test")[:limit]
        return [window_span(variant, window) for window in windows]
    pairs = zip(prepared(variant, task, limit) if asked is None else asked, task.test, strict=False)
    return [answer_span(variant, each.ids, example.answer) for each, example in pairs]


def window_span(variant: Variant, window: Sequence[int]) -> Span:
    """A window of a text: what comes behind the tokens that begin one or, where there are none, behind the first."""
    read = max(1, len(start_tokens(variant.tokenizer)))
    return Span(tuple(window[:read]), tuple(window[read:]))


def answer_span(variant: Variant, prompt: Sequence[int], answer: str) -> Span:
    """An answer after the tokens of a prompt."""
    target = encode_answer(variant.tokenizer, answer) or list(variant.answer_end) or [0]
    variant.check_length(len(prompt), len(target))
    return Span(tuple(prompt), tuple(target))


def likelihoods(
    variants: Sequence[Variant],
    spans: Sequence[Sequence[Span]],
    progress: Progress | None = None,
    remembered: dict[tuple[Span, ...], Tensor] | None = None,
) -> list[Likelihood]:
    """Score the spans with every variant; the first variant is the baseline of the divergence.

    Args:
        variants: what scores; they may share weights.
        spans: for every variant its spans. Contexts may differ between variants. So may the targets' token ids, where
            the vocabulary does, but not their text.
        progress: cancel and progress.
        remembered: what the baseline made of batches that it read before, hidden states ``(tokens, hidden)``; those
            that it reads now are added.

    Raises:
        Incomparable: a variant with another vocabulary is asked for the likelihood of another text.
    """
    progress = progress or Progress()
    comparable = [same_vocabulary(variants[0], variant) for variant in variants]
    for variant, each, same in zip(variants, spans, comparable, strict=True):
        if not same and not _same_text(variants[0], spans[0], variant, each):
            raise Incomparable(
                f"'{variant.name}' has another vocabulary, which cuts this text into other windows: make it with this "
                "text, or compare on a task of examples."
            )
    order = sorted(range(len(spans[0])), key=lambda index: -max(len(each[index].ids) for each in spans))
    readers = [
        variant.engine.read(variant.model, each, variant.name) for variant, each in zip(variants, spans, strict=True)
    ]
    batches = list(_batches(readers, [[each[index] for index in order] for each in spans]))
    sums: list[Tensor] = []
    progress.start("Scoring text", len(batches) * len(variants))
    for batch in batches:
        states = []
        for reader, each in zip(readers, batch, strict=True):
            known = remembered if reader is readers[0] and reader.split else None
            states.append(reader.states(each) if known is None else _states(reader, tuple(each), known))
            progress.advance()
        with using("Scoring text"):
            sums.append(_span_sums(readers, states, batch, comparable))
    placed = torch.empty(len(variants), 4, len(order), dtype=torch.float64)
    placed[:, :, order] = torch.cat(sums, dim=-1)
    tokens = tuple(len(span.target) for span in spans[0])
    return [_likelihood(each, tokens, same) for each, same in zip(placed, comparable, strict=True)]


def _states(reader: Reader, spans: tuple[Span, ...], known: dict[tuple[Span, ...], Tensor]) -> Tensor:
    """What the head takes of some spans, read once."""
    if spans not in known:
        known[spans] = reader.states(spans)
    return known[spans]


def same_vocabulary(one: Variant, other: Variant) -> bool:
    """Whether two variants know the same tokens by the same numbers."""
    return one.tokenizer is other.tokenizer or one.tokenizer.get_vocab() == other.tokenizer.get_vocab()


def _same_text(one: Variant, its: Sequence[Span], other: Variant, theirs: Sequence[Span]) -> bool:
    return len(its) == len(theirs) and all(
        one.tokenizer.decode(list(mine.target)) == other.tokenizer.decode(list(his.target))
        for mine, his in zip(its, theirs, strict=True)
    )


def _span_sums(
    readers: Sequence[Reader], states: Sequence[Tensor], batch: Sequence[Sequence[Span]], comparable: Sequence[bool]
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


def _batches(readers: Sequence[Reader], spans: Sequence[Sequence[Span]]) -> Iterator[list[list[Span]]]:
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
