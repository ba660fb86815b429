"""Public benchmarks from local files, asked and scored as lm-evaluation-harness does, and its own results read in.

Prompts, delimiters and scores are those of its task files for version 0.4 (Gao et al., "The Language Model Evaluation
Harness", https://github.com/EleutherAI/lm-evaluation-harness). No chat template is used.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core.errors import InvalidInput
from workbench.core.files import home
from workbench.tasks.files import read_rows, read_text_file
from workbench.tasks.task import Example, Task

if TYPE_CHECKING:
    import pandas

Row = Mapping[str, Any]
Z = 2.5758  # standard errors of a 99 % interval
ERROR = "_stderr"


def _choice(prompt: str, choices: Sequence[str], gold: int) -> dict[str, Any]:
    """A question and its choices, each behind a space."""
    if not isinstance(choices, list | tuple):
        raise TypeError(f"choices are a list, not {type(choices).__name__}")
    told = tuple(f" {each}" for each in choices)
    return {"prompt": prompt, "choices": told, "answer": told[gold]}


def _piqa(row: Row) -> dict[str, Any]:
    return _choice(f"Question: {row['goal']}\nAnswer:", [row["sol1"], row["sol2"]], int(row["label"]))


def _arc(row: Row) -> dict[str, Any]:
    choices = row["choices"]
    return _choice(
        f"Question: {row['question']}\nAnswer:", choices["text"], list(choices["label"]).index(row["answerKey"])
    )


def _hellaswag(row: Row) -> dict[str, Any]:
    context = f"{row['ctx_a']} {str(row['ctx_b']).capitalize()}"
    if not isinstance(row["endings"], list | tuple):
        raise TypeError(f"endings are a list, not {type(row['endings']).__name__}")
    endings = [_without_marks(each) for each in row["endings"]]
    return _choice(_without_marks(f"{row['activity_label']}: {context}"), endings, int(row["label"]))


def _without_marks(text: str) -> str:
    """WikiHow's marks taken out, as the harness does."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _gsm8k(row: Row) -> dict[str, Any]:
    return {"prompt": f"Question: {row['question']}\nAnswer:", "answer": f" {row['answer']}"}


LAYOUTS: dict[str, tuple[Callable[[Row], dict[str, Any]], str]] = {
    "piqa": (_piqa, "acc"),
    "arc": (_arc, "acc_norm"),
    "hellaswag": (_hellaswag, "acc_norm"),
    "gsm8k": (_gsm8k, "gsm8k_strict"),
}


def read_benchmark(
    name: str,
    path: str | Path,
    *,
    shots: int = 0,
    examples: str | Path | None = None,
    scorer: str | None = None,
    limit: int | None = None,
) -> Task:
    """A public benchmark from its file (JSONL, JSON, CSV or Parquet, with its own columns) as a task.

    Args:
        name: "piqa", "arc", "hellaswag" or "gsm8k".
        path: of the rows that are asked.
        shots: solved examples before every question.
        examples: a file that these are taken from, its first ones; needed for shots.
        scorer: "acc" or "acc_norm" for choices, "gsm8k_strict" or "gsm8k_flexible" for GSM8K; by default what is
            usually reported.
        limit: how many rows are asked.

    Raises:
        InvalidInput: there is no such benchmark, or the file has other columns.
    """
    if name not in LAYOUTS:
        raise InvalidInput(f"There is no benchmark '{str(name)[:60]}' here: there are {', '.join(LAYOUTS)}.")
    layout, usual = LAYOUTS[name]
    if shots and examples is None:
        raise InvalidInput("Solved examples come from a file of their own, never from what is asked: name it.")
    if examples is not None and home(examples).resolve() == home(path).resolve():
        raise InvalidInput("Solved examples come from a file of their own, never from what is asked: name another.")
    solved = _examples(layout, home(examples), "train")[:shots] if shots and examples is not None else []
    if len(solved) < shots:
        raise InvalidInput(f"'{examples}' has {len(solved)} rows, fewer than the {shots} examples asked for.")
    before = "".join(f"{each.prompt}{each.answer}\n\n" for each in solved)
    asked = [
        each.model_copy(update={"prompt": before + each.prompt})
        for each in _examples(layout, home(path), "test")[:limit]
    ]
    return Task(
        name=name, scorer=scorer or usual, max_new_tokens=256, plain=True, test=tuple(asked),
        calibration=tuple(_examples(layout, home(examples), "calibration") if examples is not None else ()),
    )  # fmt: skip


def _examples(layout: Callable[[Row], dict[str, Any]], path: Path, split: str) -> list[Example]:
    found = []
    for number, row in enumerate(read_rows(path)):
        try:
            found.append(Example(id=f"{split}-{number}", **layout(row.cells)))
        except (KeyError, ValueError, IndexError, TypeError) as error:
            raise InvalidInput(
                f"{row.place} is not as this benchmark's file has it ({type(error).__name__}: {str(error)[:80]})."
            ) from None
    return found


def read_lm_eval(path: str | Path) -> "pandas.DataFrame":
    """Results that lm-evaluation-harness wrote, as a table: one row a task and metric, with a 99 % interval.

    Args:
        path: of a ``results_*.json``, or a folder that holds some; the latest counts.

    Raises:
        InvalidInput: it is none.
    """
    import pandas

    place = home(path)
    files = sorted(place.rglob("results*.json"), key=lambda each: each.name) if place.is_dir() else [place]
    try:
        record = json.loads(read_text_file(files[-1]))
        rows = []
        for task, found in record["results"].items():
            for key, value in found.items():
                metric, _, how = key.partition(",")
                if not isinstance(value, int | float) or isinstance(value, bool) or metric.endswith(ERROR) or not how:
                    continue
                error = found.get(f"{metric}{ERROR},{how}")
                wide = Z * error if isinstance(error, int | float) else float("nan")
                row = {"task": task, "metric": metric, "filter": how, "value": value, "low": value - wide}
                rows.append(row | {"high": value + wide, "model": str(record.get("model_name", ""))})
    except (IndexError, ValueError, KeyError, TypeError, AttributeError):
        raise InvalidInput(f"'{place.name}' holds no results of lm-evaluation-harness.") from None
    return pandas.DataFrame(rows)
