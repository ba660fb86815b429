"""Log-likelihood scoring against lm-eval's HFLM: same tokens, same model, one interleaved run.

Three kinds of text: windows of prose (every token scored), multiple choice (a short answer after its own question), and
a task whose prompts share a long instruction. Both sides get the batch size that is fastest for them.

    python benchmarks/likelihood.py
"""

import logging
import warnings
from typing import Any

import numpy as np
from common import gemm_peak, interleaved, public_data, public_rows, seconds, write_result

import workbench as wb
from workbench.core.estimate import paired_ratio
from workbench.measurement import likelihood
from workbench.runtime.reader import Span
from workbench.tasks.task import Example, Task

HFLM_BATCHES = (4, 8)
OUR_BATCHES = (1024, 2048)
ROUNDS = 6


def workloads(base: wb.Variant) -> dict[str, list[Span]]:
    """Spans of each kind of text."""
    text = wb.read_text(public_data("wikitext2-valid.txt"), window=512, calibration=16, test=2)
    rows = public_rows("piqa-valid-900.jsonl")[:20]
    test = tuple(
        Example(id=f"{i}-{j}", prompt=row["goal"], answer=row[f"sol{j}"]) for i, row in enumerate(rows) for j in (1, 2)
    )
    tickets = wb.read_task("data/tickets")
    return {
        "windows of prose": likelihood.task_spans(base, text),
        "multiple choice": likelihood.task_spans(base, Task(name="piqa", scorer="f1", test=test)),
        "shared instruction": likelihood.task_spans(base, tickets, 10),
    }


def hflm(base: wb.Variant, spans: list[Span], batch: int) -> list[float]:
    """Log-likelihoods by lm-eval."""
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=base.model, tokenizer=base.tokenizer, batch_size=batch)
    requests = [((str(i), str(i)), list(s.context), list(s.target)) for i, s in enumerate(spans)]
    return [score for score, _ in model._loglikelihood_tokens(requests, disable_tqdm=True)]


def ours(base: wb.Variant, spans: list[Span], batch: int) -> list[float]:
    """Log-likelihoods by the workbench."""
    likelihood.BATCH_TOKENS["cpu"] = batch
    return [-nll for nll in likelihood.likelihoods([base], [spans])[0].nll]


def flops(base: wb.Variant, spans: list[Span]) -> float:
    """The arithmetic of the linear layers for every token read and of the head for every token scored."""
    config = base.model.config
    head = config.vocab_size * config.hidden_size
    body = sum(m.weight.numel() for n, m in base.model.named_modules() if n.endswith("_proj"))
    shared = len(_common([span.context for span in spans]))
    read = sum(len(span.ids) - shared for span in spans) + shared
    return 2.0 * (body * read + head * sum(len(span.target) for span in spans))


def _common(rows: list[tuple[int, ...]]) -> list[int]:
    return [column[0] for column in zip(*rows, strict=False) if len(set(column)) == 1 and column]


def run(base: wb.Variant, spans: list[Span]) -> dict[str, Any]:
    """Tune both, time both in turn, compare the values."""
    few = spans[: max(2, len(spans) // 4)]
    theirs_best = min(HFLM_BATCHES, key=lambda b: seconds(lambda: hflm(base, few, b)))
    ours_best = min(OUR_BATCHES, key=lambda b: seconds(lambda: ours(base, few, b)))
    works = {"hflm": lambda: hflm(base, spans, theirs_best), "workbench": lambda: ours(base, spans, ours_best)}
    times = interleaved(works, ROUNDS)
    ratio = paired_ratio(times["hflm"], times["workbench"])
    gap = np.abs(np.array(hflm(base, spans, theirs_best)) - np.array(ours(base, spans, ours_best)))
    return {
        "spans": len(spans),
        "tokens": sum(len(span.ids) for span in spans),
        "hflm_batch": theirs_best,
        "workbench_batch_tokens": ours_best,
        "hflm_seconds": round(float(np.median(times["hflm"])), 3),
        "workbench_seconds": round(float(np.median(times["workbench"])), 3),
        "times_faster": [round(each, 3) for each in (ratio.value, ratio.low, ratio.high)],
        "largest_difference_nats": float(gap.max()),
        "share_of_gemm_peak": round(flops(base, spans) / float(np.median(times["workbench"])) / gemm_peak(), 3),
    }


def main() -> None:
    """Run all workloads on the default model."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    base = wb.load(device="cpu")
    write_result("likelihood", {name: run(base, spans) for name, spans in workloads(base).items()})


if __name__ == "__main__":
    main()
