"""What a few minutes of LoRA teach: the score on the test examples before and after, paired.

python benchmarks/adapting.py [tickets | xquad]

tickets is the task of this repository (a ticket to a JSON object, exact match). xquad asks for a span of a paragraph
(token F1); 400 of its train questions teach, 40 others calibrate, all test questions are scored.
"""

import random
import sys
import time

from common import ROOT, public_rows, rounded, write_result

import workbench as wb
from workbench.core.estimate import mean, paired_difference
from workbench.measurement.scores import generate_answers
from workbench.steps import finetune
from workbench.tasks.task import Example


def xquad() -> wb.Task:
    """Questions on a paragraph; the answer is a span of it."""
    paragraphs = {each["id"]: each["text"] for each in public_rows("xquad-paragraphs.jsonl")}

    def examples(name: str) -> list[Example]:
        return [
            Example(
                id=each["id"],
                prompt=f"{paragraphs[each['paragraph']]}\n\n{each['question']}",
                answer=each["answers"][0],
            )
            for each in public_rows(name)
        ]

    train = examples("xquad-train.jsonl")
    random.Random(0).shuffle(train)
    return wb.Task(
        name="xquad",
        instruction="Answer the question at the end with the shortest words copied from the text.",
        scorer="f1",
        max_new_tokens=24,
        train=tuple(train[:400]),
        calibration=tuple(train[400:440]),
        test=tuple(examples("xquad-test.jsonl")),
    )


TASKS = {
    "tickets": (
        lambda: wb.read_task(ROOT / "data" / "tickets"),
        finetune.LoRA(rank=32, learning_rate=1e-3, epochs=8.0),
    ),
    "xquad": (xquad, finetune.LoRA(rank=32, learning_rate=5e-4, epochs=2.0)),
}


def measured(name: str) -> dict:
    """Train, answer, score."""
    make, step = TASKS[name]
    task, base = make(), wb.load(device="cpu", dtype="float32")
    started = time.monotonic()
    tuned = base.apply(step, task)
    seconds = time.monotonic() - started
    curve = wb.curve(tuned)
    scores, answers = {}, {}
    for each in (base, tuned):
        answers[each.name] = [said.text.strip() for said in generate_answers(each, task, task.test)]
        scores[each.name] = [task.score(*pair) for pair in zip(task.test, answers[each.name], strict=True)]
    gain = paired_difference(scores[tuned.name], scores[base.name], "score")
    return {
        "recipe": repr(tuned.recipe),
        "seconds": round(seconds, 1),
        "tokens_per_second": round(curve.tokens_per_second),
        "validation_loss": [round(each.loss, 4) for each in curve.evaluations],
        "test_examples": len(task.test),
        "score": {key: rounded(mean(each, "score")) for key, each in scores.items()},
        "gain": rounded(gain),
        "first_answers": {key: each[:3] for key, each in answers.items()},
    }


def main() -> None:
    """Every task that is named."""
    for name in sys.argv[1:] or TASKS:
        write_result(f"adapting_{name}", measured(name))


if __name__ == "__main__":
    main()
