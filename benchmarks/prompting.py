"""What request steps are worth: the score, the tokens, and the time, before and after, on the same examples.

python benchmarks/prompting.py [handbook | xquad | tickets | thinking | shorter | stopping]

Every part compares variants of the embedded model on one task: the score with its paired interval, the tokens of
prompts and answers, the times to the first and to the last token of answers given one at a time (interleaved).
"""

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

from adapting import xquad
from common import ROOT, public_data, public_rows, rounded, write_result

import workbench as wb
from workbench.answering.request import Generation, Request
from workbench.core.estimate import mean, median, paired_difference, paired_ratio
from workbench.core.progress import Progress
from workbench.measurement.latency import answer_interleaved, time_request
from workbench.measurement.scores import scored
from workbench.retrieval.documents import read_documents
from workbench.retrieval.recall import find
from workbench.steps import context, output, prompt, retrieve
from workbench.tasks.task import Example

ROUNDS, TIMED = 8, 8
SCHEMA = {
    "type": "object",
    "properties": {
        "product": {
            "enum": [
                "kettle",
                "toaster",
                "blender",
                "coffee_maker",
                "vacuum",
                "heater",
                "router",
                "headphones",
                "tablet",
                "camera",
                "printer",
                "lamp",
            ]
        },
        "issue": {
            "enum": [
                "leaking",
                "overheating",
                "no_power",
                "noisy",
                "connection",
                "late_delivery",
                "missing_part",
                "billing",
            ]
        },
        "priority": {"enum": ["low", "normal", "high"]},
        "order": {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^[A-F]-[0-9]{5}$"}]},
    },
    "required": ["product", "issue", "priority", "order"],
    "additionalProperties": False,
}


def compared(
    variants: dict[str, wb.Variant],
    task: wb.Task,
    limit: int | None = None,
    valid: Callable[[str], bool] | None = None,
) -> dict:
    """Scores, tokens and times of variants, and how many are valid; the first is what the others are compared with."""
    examples = task.test[:limit]
    told = {name: scored(each, task, limit) for name, each in variants.items()}
    alone = dict(zip(variants, answer_interleaved(list(variants.values()), task, TIMED, Progress()), strict=True))
    first = next(iter(variants))
    found = {}
    for name, each in told.items():
        marks, answers = each.scores, each.answers
        found[name] = {
            "score": rounded(mean(marks, "score")),
            "holds the right answer": rounded(mean(list(map(holds, examples, answers)), "fraction")),
            "prompt tokens": round(sum(each.prompt_tokens for each in answers) / len(answers), 1),
            "answer tokens": round(sum(each.spent for each in answers) / len(answers), 1),
            "ttft, seconds": rounded(median([each.ttft for each in alone[name]], "s")),
            "whole answer, seconds": rounded(median([each.times[-1] for each in alone[name]], "s")),
            "first answer": answers[0].text,
        }
        if valid:
            found[name]["valid"] = sum(valid(each.text) for each in answers) / len(answers)
        if name != first:
            found[name] |= {
                "score, minus the first's": rounded(paired_difference(marks, told[first].scores, "score")),
                "ttft over the first's": _ratio(alone, name, first, lambda each: each.ttft),
                "whole answer over the first's": _ratio(alone, name, first, lambda each: each.times[-1]),
            }
    return {"examples": len(examples), **found}


def holds(example: Example, answer: Generation) -> float:
    """Whether the right answer stands somewhere in what was said; case does not count."""
    return float(example.answer.casefold() in answer.text.casefold())


def gsm8k() -> wb.Task:
    """Sums in words."""
    rows = public_rows("gsm8k-test-300.jsonl")
    random.Random(0).shuffle(rows)
    examples = [
        Example(id=str(number), prompt=each["question"], answer=each["answer"].rpartition("#### ")[2])
        for number, each in enumerate(rows)
    ]
    return wb.Task(
        name="gsm8k",
        instruction="Solve the problem and answer with a number.",
        scorer="number",
        max_new_tokens=16,
        train=tuple(examples[:40]),
        test=tuple(examples[40:140]),
    )


def of_xquad(with_context: bool) -> wb.Task:
    """XQuAD, the paragraph as a document beside the question, or left out."""
    task = xquad()

    def split(example: Example) -> Example:
        before, _, question = example.prompt.rpartition("\n\n")
        return example.model_copy(update={"prompt": question, "context": before if with_context else ""})

    instruction = "Answer the question with the shortest words copied from the document."
    changed = {each: tuple(map(split, getattr(task, each))) for each in ("train", "calibration", "test")}
    return task.model_copy(update=changed | {"instruction": instruction})


def handbook(base: wb.Variant) -> dict:
    """Questions that only the documents answer."""
    task = wb.read_task(ROOT / "data" / "handbook")
    texts = {Path(each.id).stem: each.text for each in read_documents(task.documents).documents}
    methods = ("bm25", "dense", "hybrid")
    ways = {method: base.apply(retrieve.Retrieve(method=method, top_k=1), task) for method in methods}
    shown = [each.model_copy(update={"context": texts[each.document]}) for each in task.test]
    found = {
        "plain": compared({"without": base} | ways, task),
        "right document": compared({"shown": base}, task.model_copy(update={"test": tuple(shown)})),
    }
    store = ways["hybrid"].stages[-1].store()
    recall = {method: rounded(find(store, task.test, method).recall[1]) for method in methods}
    return found | {"right document first": recall}


def of_gold(base: wb.Variant) -> dict:
    """XQuAD: no paragraph, the right one, the one that is found."""
    path = str(public_data("xquad-paragraphs.jsonl"))
    gold, alone = of_xquad(True), of_xquad(False)
    found = base.apply(retrieve.Retrieve(documents=path, top_k=1, words=2_000, overlap=0), alone)
    return {
        "without and retrieved": compared({"without": base, "retrieved": found}, alone, 120),
        "right paragraph": compared({"gold": base}, gold, 120),
    }


def tickets(base: wb.Variant) -> dict:
    """JSON with and without a schema."""
    task = wb.read_task(ROOT / "data" / "tickets")
    shots = base.apply(prompt.FewShot(examples=4), task)
    form = prompt.Constrain(rule=json.dumps(SCHEMA))
    variants = {
        "free": base,
        "constrained": base.apply(form),
        "4 shots": shots,
        "4 shots, constrained": shots.apply(form),
    }
    found = compared(variants, task, 100, _valid)
    return found | {"a constrained token over a free one": overhead(shots, shots.apply(form), task)}


def overhead(free: wb.Variant, bound: wb.Variant, task: wb.Task) -> list[float]:
    """Seconds between tokens, constrained over free, in turns."""
    pairs: dict[str, list[float]] = {"free": [], "bound": []}
    for number in range(ROUNDS + 1):
        request = Request.example(task, task.test[number])
        for name, each in (("free", free), ("bound", bound))[:: 1 if number % 2 else -1]:
            timing = time_request(each, request, 24)
            if number:
                pairs[name].append(sum(timing.inter_token) / len(timing.inter_token))
    return rounded(paired_ratio(pairs["bound"], pairs["free"]))


def thinking(base: wb.Variant) -> dict:
    """Few-shot and chain of thought on a task that asks for thought, and on one that asks for reading."""
    found = {}
    for task in (gsm8k(), of_xquad(True)):
        ways = {"2 shots": prompt.FewShot(examples=2), "chain of thought": prompt.ChainOfThought(thoughts=160)}
        variants = {"plain": base} | {name: base.apply(step, task) for name, step in ways.items()}
        found[task.name] = compared(variants, task, 60)
    return found


def shorter(base: wb.Variant) -> dict:
    """Less context, and answers of one sentence at most."""
    task = of_xquad(True)
    ways = {
        "Truncate to 128 tokens": context.Truncate(tokens=128),
        "Filter to half": context.Filter(keep=0.5),
        "Compress to 70 %": context.Compress(ratio=0.7),
        "Compress to half": context.Compress(ratio=0.5),
        "Stop at a sentence": output.Stop(sentences=1, strings="\\n"),
    }
    return compared({"whole": base} | {name: base.apply(step) for name, step in ways.items()}, task, 120)


def stopping(base: wb.Variant) -> dict:
    """Answers that may take 64 tokens, ended where they need not go on."""
    task = of_xquad(True).model_copy(update={"max_new_tokens": 64})
    ways = {"a sentence": output.Stop(sentences=1), "repeats": output.Stop(repeats=2)}
    return compared({"never": base} | {name: base.apply(step) for name, step in ways.items()}, task, 80)


def _valid(text: str) -> bool:
    import jsonschema

    try:
        jsonschema.validate(json.loads(text), SCHEMA)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


def _ratio(alone: dict, name: str, first: str, seconds: Callable) -> list[float]:
    return rounded(paired_ratio([seconds(each) for each in alone[name]], [seconds(each) for each in alone[first]]))


PARTS = {
    "handbook": handbook,
    "xquad": of_gold,
    "tickets": tickets,
    "thinking": thinking,
    "shorter": shorter,
    "stopping": stopping,
}


def main() -> None:
    """Every part that is named."""
    base = wb.load(device="cpu", dtype="float32")
    for name in sys.argv[1:] or PARTS:
        write_result(f"prompting_{name}", PARTS[name](base))


if __name__ == "__main__":
    main()
