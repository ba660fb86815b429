"""Prune, then heal: a fifth of the blocks left out, then minutes of distillation or of plain fine-tuning on one text.

python benchmarks/healing.py [seconds]

Both trainings get the same wall time, all that they do included; distillation also reads the teacher in it. The text is
WikiText-2's validation part: the last 32 windows are scored, those in between train. The essays of `data/prose`, which
nothing was trained on, are scored, too: healing is to bring the model back, not to make another of it.
"""

import math
import shutil
import sys
import time

from common import ROOT, public_data, seconds, write_result

import workbench as wb
from workbench.core.estimate import paired_difference
from workbench.core.files import cache_folder
from workbench.core.progress import Progress
from workbench.measurement.likelihood import likelihoods, task_spans
from workbench.steps import distil, finetune, prune
from workbench.training.step import TrainingStep

BUDGET = float(sys.argv[1]) if len(sys.argv) > 1 else 180.0
WINDOW = 512
TRIALS = (1, 4)  # optimizer steps
RATE = 2e-4  # of every way
EVALUATING = 1.1  # evaluations take a tenth


class Limited(Progress):
    """Ends a training early, keeping what it has, when the time is up."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.until = time.monotonic() + seconds

    def advance(self, units: int = 1) -> None:
        """Report, and stop when the time is up; the last evaluation follows."""
        if time.monotonic() >= self.until:
            self.stop()
        super().advance(units)


def scheduled(step: TrainingStep, variant: wb.Variant, text: wb.Text) -> TrainingStep:
    """The step with as many epochs as the time allows, so that its learning rate has fallen when the time is up."""
    train = len(text.windows(variant.tokenizer, "train"))
    few, more = (step.model_copy(update={"epochs": steps * step.batch_size / train}) for steps in TRIALS)
    times = []
    for trial in (few, few, more):
        forget()
        times.append(seconds(lambda trial=trial: variant.apply(trial, text)))
    times.pop(0)
    forget()
    per_step = (times[1] - times[0]) / (TRIALS[1] - TRIALS[0])
    steps = int((BUDGET - times[0]) / (EVALUATING * per_step)) + TRIALS[0]
    return step.model_copy(update={"epochs": steps * step.batch_size / train})


def forget() -> None:
    """Have the teacher read anew: what it costs belongs to the time."""
    shutil.rmtree(cache_folder() / "teacher", ignore_errors=True)


def main() -> None:
    """Heal twice, in the same time, and score all three."""
    base = wb.load(device="cpu", dtype="float32")
    text = wb.read_text(public_data("wikitext2-valid.txt"), window=WINDOW, calibration=8, test=32)
    cut = base.apply(prune.DropBlocks(share=0.2), text)
    ways = {
        "fine-tuned": finetune.Full(learning_rate=RATE, batch_size=4),
        "distilled": distil.ForwardKL(learning_rate=RATE, batch_size=4),
        "distilled, half likelihood": distil.ForwardKL(learning_rate=RATE, batch_size=4, likelihood=0.5),
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
    texts = {"wikitext": text, "other": wb.read_text(ROOT / "data" / "prose", window=WINDOW, calibration=0, test=20)}
    scores = {name: scored(variants, each) for name, each in texts.items()}
    logs = scores["wikitext"]["logs"]
    mean = {name: sum(each) / len(each) for name, each in logs.items()}
    for name in ways:
        found[name]["recovered"] = round((mean["cut"] - mean[name]) / (mean["cut"] - mean["dense"]), 3)
        for label, each in scores.items():
            for measure, unit in (("logs", "nats"), ("kl", "nats")):
                gain = paired_difference(each[measure][name], each[measure]["fine-tuned"], unit)
                key = f"{'log-perplexity' if measure == 'logs' else 'KL to dense'} on {label}, minus fine-tuned's"
                found[name][key] = [round(value, 4) for value in (gain.value, gain.low, gain.high)]
    table = {
        label: {
            name: {
                "perplexity": round(math.exp(sum(each["logs"][name]) / len(each["logs"][name])), 2),
                "KL to dense": round(sum(each["kl"][name]) / len(each["kl"][name]), 4),
            }
            for name in variants
        }
        for label, each in scores.items()
    }
    write_result("healing", {"budget_seconds": BUDGET, "texts": table, "ways": found})


def scored(variants: dict[str, wb.Variant], text: wb.Text) -> dict[str, dict[str, list[float]]]:
    """Nats a token of every window: of the text, and from the dense model."""
    found = likelihoods(list(variants.values()), [task_spans(each, text) for each in variants.values()])
    pairs = list(zip(variants, found, strict=True))
    return {
        "logs": {name: [a / n for a, n in zip(each.nll, each.tokens, strict=True)] for name, each in pairs},
        "kl": {name: [a / n for a, n in zip(each.kl, each.tokens, strict=True)] for name, each in pairs},
    }


if __name__ == "__main__":
    main()
