"""Prune, then heal: a fifth of the blocks left out, then minutes of distillation or of plain fine-tuning on one text.

python benchmarks/healing.py [seconds]

Both trainings get the same wall time, all that they do included; distillation also reads the teacher in it. The text is
WikiText-2's validation part: the last 32 windows are scored, those in between train.
"""

import math
import sys
import time

from common import public_data, write_result

import workbench as wb
from workbench.estimate import paired_difference
from workbench.measure.likelihood import likelihoods, task_spans
from workbench.progress import Progress
from workbench.steps import distil, finetune, prune
from workbench.training import TrainingStep

BUDGET = float(sys.argv[1]) if len(sys.argv) > 1 else 180.0
WINDOW = 512


class Limited(Progress):
    """Ends a training early, keeping what it has, when the time is up."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.until = time.monotonic() + seconds

    def advance(self, units: int = 1) -> None:
        """Report, and stop in time for the last evaluation."""
        if time.monotonic() >= self.until:
            self.stop()
        super().advance(units)


def scheduled(step: TrainingStep, variant: wb.Variant, text: wb.Text) -> TrainingStep:
    """The step with as many epochs as the time allows, so that its learning rate has fallen when the time is up."""
    trial = step.model_copy(update={"epochs": 0.02})
    started = time.monotonic()
    made = variant.apply(trial, text)
    per_step = (time.monotonic() - started) / len(wb.curve(made).points)
    train = len(text.windows(variant.tokenizer, "train"))
    return step.model_copy(update={"epochs": 0.95 * BUDGET / per_step * step.batch_size / train})


def main() -> None:
    """Heal twice, in the same time, and score all three."""
    base = wb.load(device="cpu", dtype="float32")
    text = wb.read_text(public_data("wikitext2-valid.txt"), window=WINDOW, calibration=8, test=32)
    cut = base.apply(prune.DropBlocks(share=0.2), text)
    ways = {
        "fine-tuned": finetune.Full(learning_rate=2e-4, batch_size=4),
        "distilled": distil.ForwardKL(learning_rate=2e-4, batch_size=4),
        "distilled, half likelihood": distil.ForwardKL(learning_rate=2e-4, batch_size=4, likelihood=0.5),
    }
    variants, found = {"dense": base, "cut": cut}, {}
    for name, step in ways.items():
        step = scheduled(step, cut, text)
        started = time.monotonic()
        variants[name] = cut.apply(step, text, Limited(BUDGET))
        curve = wb.curve(variants[name])
        found[name] = {
            "seconds": round(time.monotonic() - started, 1),
            "steps": len(curve.points),
            "planned": curve.total,
            "recipe": repr(variants[name].recipe),
        }
        print(name, found[name], flush=True)
    spans = [task_spans(each, text) for each in variants.values()]
    scored = dict(zip(variants, likelihoods(list(variants.values()), spans), strict=True))
    logs = {name: [nll / n for nll, n in zip(each.nll, each.tokens, strict=True)] for name, each in scored.items()}
    mean = {name: sum(each) / len(each) for name, each in logs.items()}
    for name in ways:
        found[name]["recovered"] = round((mean["cut"] - mean[name]) / (mean["cut"] - mean["dense"]), 3)
        gain = paired_difference(logs[name], logs["fine-tuned"], "nats")
        found[name]["against fine-tuned, nats a token"] = [round(each, 4) for each in (gain.value, gain.low, gain.high)]
    perplexity = {name: round(math.exp(each), 2) for name, each in mean.items()}
    write_result("healing", {"perplexity": perplexity, "budget_seconds": BUDGET, "ways": found})


if __name__ == "__main__":
    main()
