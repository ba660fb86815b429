"""How likely a variant finds the gold text: perplexity, divergence from a baseline, agreement on the top token.

Spans are batched by length, the tokens that all of them begin with are read once, and logits are computed only where
something is scored.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.decoding import Prefix, pad_left, shared_prefix
from workbench.progress import Progress
from workbench.prompting import encode_text
from workbench.task import Example, Task, Text
from workbench.variant import Variant, model_lock

BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
BATCH_LOGITS = {"cpu": 1 << 26, "cuda": 1 << 29}  # numbers held at once: a quarter GiB in float32 on a CPU
CHUNK_ROWS = 64  # rows of logits reduced at a time, so that they stay in the cache


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
        tokens: target tokens.
        kl: divergence from the baseline's distribution, KL(baseline || variant), in nats, summed over the tokens.
        same_top: target positions where the most likely token is the baseline's.
        greedy: target positions where the most likely token is the target's.
    """

    nll: tuple[float, ...]
    tokens: tuple[int, ...]
    kl: tuple[float, ...]
    same_top: tuple[int, ...]
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
    context = variant.encode(task.prompt(example))
    variant.check_length(len(context), len(target))
    return Span(tuple(context), tuple(target) or (min(variant.end_tokens, default=0),))


@torch.no_grad()
def likelihoods(
    variants: Sequence[Variant], spans: Sequence[Sequence[Span]], progress: Progress | None = None
) -> list[Likelihood]:
    """Score the spans with every variant; the first variant is the baseline of the divergence.

    Args:
        variants: what scores; they may share weights.
        spans: for every variant its spans. Contexts may differ between variants, targets may not.
    """
    progress = progress or Progress()
    order = sorted(range(len(spans[0])), key=lambda index: -max(len(each[index].ids) for each in spans))
    batches = list(_batches(variants[0], [[each[index] for index in order] for each in spans]))
    prefixes = [
        shared_prefix(v.model, [span.context for span in each]) for v, each in zip(variants, spans, strict=True)
    ]
    rows: list[list[tuple[float, ...]]] = [[] for _ in variants]
    progress.start("Scoring text", len(batches) * len(variants))
    for batch in batches:
        baseline: list[Tensor] = []
        for index, variant in enumerate(variants):
            with model_lock:
                logits = target_logits(variant, batch[index], prefixes[index])
                baseline = baseline or logits
                rows[index] += [
                    _compare_rows(*item)
                    for item in zip(logits, baseline, (s.target for s in batch[index]), strict=True)
                ]
            progress.advance()
    return [_in_order(each, order, spans[0]) for each in rows]


def target_logits(variant: Variant, spans: Sequence[Span], prefix: Prefix | None) -> list[Tensor]:
    """For every span the logits ``(target tokens, vocabulary)`` that predict its target."""
    start = prefix.length if prefix else 0
    ids, mask = pad_left([span.ids[start:] for span in spans], variant.device)
    keep = max(len(span.target) for span in spans)
    padded = not bool(mask.all())
    full = torch.cat([mask.new_ones(len(spans), start), mask], dim=1)
    logits = variant.model(
        input_ids=ids,
        attention_mask=full if padded else None,
        position_ids=(full.cumsum(dim=1) - 1).clamp(min=0)[:, start:] if padded else None,
        past_key_values=prefix.expand(len(spans)) if prefix else None,
        use_cache=prefix is not None,
        logits_to_keep=keep,
    ).logits
    return [row[-len(span.target) :] for row, span in zip(logits, spans, strict=True)]


def _compare_rows(logits: Tensor, baseline: Tensor, target: Sequence[int]) -> tuple[float, ...]:
    """Nll, KL, same top and greedy hits summed over the rows ``(tokens, vocabulary)`` of one span."""
    wanted = torch.tensor(target, device=logits.device)
    sums = torch.zeros(4, dtype=torch.float64)
    for start in range(0, len(target), CHUNK_ROWS):
        part = slice(start, start + CHUNK_ROWS)
        here, aim = logits[part].float(), wanted[part]
        total = here.logsumexp(dim=-1)
        top = here.argmax(dim=-1)
        sums[0] += (total - here.gather(-1, aim[:, None]).squeeze(-1)).sum().item()
        sums[3] += (top == aim).sum().item()
        if logits is baseline:
            sums[2] += len(aim)
            continue
        there = baseline[part].float()
        log_base = there - there.logsumexp(dim=-1, keepdim=True)
        sums[1] += (log_base.exp() * (log_base - here)).sum().item() + total.sum().item()
        sums[2] += (top == there.argmax(dim=-1)).sum().item()
    return tuple(sums.tolist())


def _batches(variant: Variant, spans: Sequence[Sequence[Span]]) -> Iterator[list[list[Span]]]:
    """Cut the sorted spans of all variants into batches that fit the token and logit budgets."""
    kind = variant.device.type if variant.device.type in BATCH_TOKENS else "cpu"
    vocabulary = variant.model.config.get_text_config().vocab_size
    start = 0
    while start < len(spans[0]):
        longest = max(len(each[start].ids) for each in spans)
        target, end = 0, start
        while end < len(spans[0]):
            target = max(target, len(spans[0][end].target))
            size = end + 1 - start
            if size > 1 and (size * longest > BATCH_TOKENS[kind] or size * target * vocabulary > BATCH_LOGITS[kind]):
                break
            end += 1
        yield [list(each[start:end]) for each in spans]
        start = end


def _in_order(rows: list[tuple[float, ...]], order: Sequence[int], spans: Sequence[Span]) -> Likelihood:
    placed = sorted(zip(order, rows, strict=True))
    nll, kl, same_top, greedy = zip(*(row for _, row in placed), strict=True)
    return Likelihood(
        nll=nll,
        tokens=tuple(len(span.target) for span in spans),
        kl=tuple(max(0.0, each) for each in kl),  # rounding can leave a KL of zero at -1e-7
        same_top=tuple(map(int, same_top)),
        greedy=tuple(map(int, greedy)),
    )
