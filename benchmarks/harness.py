"""The same rows of PIQA and GSM8K scored by lm-evaluation-harness and by `wb.read_benchmark`: the same values?

    python benchmarks/harness.py [--piqa 200 --gsm8k 12]    # with lm-eval installed; about 10 minutes on 2 cores

The harness runs unchanged, with its own task files; only where they read rows from is replaced by a local file.
"""

import argparse
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from common import public_data, write_result

import workbench as wb
from workbench.measurement.scores import scored

FILES = {"piqa": ("piqa-valid-900.jsonl", "validation"), "gsm8k": ("gsm8k-test-300.jsonl", "test")}
METRICS = {  # theirs, by task and our scorer: metric and filter
    ("piqa", "acc"): ("acc", "none"),
    ("piqa", "acc_norm"): ("acc_norm", "none"),
    ("gsm8k", "gsm8k_strict"): ("exact_match", "strict-match"),
    ("gsm8k", "gsm8k_flexible"): ("exact_match", "flexible-extract"),
}


def task_of_theirs(name: str, rows: Path) -> dict[str, Any]:
    """The harness' own task, which reads a local file and shows no solved examples."""
    import lm_eval.tasks

    found: dict[str, Any] = yaml.safe_load((Path(lm_eval.tasks.__file__).parent / name / f"{name}.yaml").read_text())
    for each in ("training_split", "fewshot_split", "dataset_name", "tag"):
        found.pop(each, None)
    files = {FILES[name][1]: str(rows)}
    return found | {"dataset_path": "json", "dataset_kwargs": {"data_files": files}, "num_fewshot": 0}


def theirs(base: wb.Variant, name: str, rows: Path) -> dict[tuple[str, str], list[float]]:
    """Every row's mark by metric and filter."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=base.model, tokenizer=base.tokenizer, batch_size=1)
    found = simple_evaluate(model=model, tasks=[task_of_theirs(name, rows)], log_samples=True, bootstrap_iters=0)
    marks: dict[tuple[str, str], dict[int, float]] = {}
    for sample in found["samples"][name]:
        for metric in sample["metrics"]:
            marks.setdefault((metric, sample["filter"]), {})[sample["doc_id"]] = float(sample[metric])
    return {key: [each[at] for at in sorted(each)] for key, each in marks.items()}


def main() -> None:
    """Both, row by row."""
    options = argparse.ArgumentParser()
    options.add_argument("--piqa", type=int, default=200)
    options.add_argument("--gsm8k", type=int, default=12)
    counts = vars(options.parse_args())
    base = wb.load(device="cpu", dtype="float32")
    rows = {}
    for name, count in counts.items():
        whole = public_data(FILES[name][0]).read_text().splitlines()[:count]
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / f"{name}.jsonl"
            place.write_text("\n".join(whole) + "\n")
            known = theirs(base, name, place)
            for (task, scorer), key in METRICS.items():
                if task == name:
                    mine = scored(base, wb.read_benchmark(name, place, scorer=scorer)).scores
                    rows[f"{name}, {scorer}"] = {
                        "rows": len(mine),
                        "ours": round(float(np.mean(mine)), 4),
                        "theirs": round(float(np.mean(known[key])), 4),
                        "rows that differ": sum(a != b for a, b in zip(mine, known[key], strict=True)),
                    }
    write_result("harness", {"lm-eval": version("lm-eval"), **rows})


if __name__ == "__main__":
    main()
