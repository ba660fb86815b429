"""Several tokens a pass against one: extraction with quotes from XQuAD and the handbook, and free text.

python benchmarks/speculation.py

Every prompt is answered with and without drafts in turn; a ratio above 1 says how many times faster the tokens after
the first one came with drafts. What passes with several tokens cost here bounds what any draft can win.
"""

import argparse
from typing import Any

import torch
from common import ROOT, public_rows, rounded, write_result

import workbench as wb
from workbench.core.estimate import paired_ratio
from workbench.steps import runtime

QUOTE = "{text}\n\n{question} Quote the sentences of the text that say so, word by word, then answer."
FREE = (
    "Write a short story about a dog that finds a map.",
    "Explain how the tides work, in detail.",
    "What should somebody who moves to a big city think of?",
    "Describe a day in the life of a lighthouse keeper.",
    "Give advice to somebody who learns to bake bread.",
    "Why do people like music?",
)
DRAFTS = ("", "quantize.RTN")


def prompts(count: int) -> dict[str, list[str]]:
    """Prompts of each kind."""
    paragraphs = {row["id"]: row["text"] for row in public_rows("xquad-paragraphs.jsonl")}
    rows = public_rows("xquad-test.jsonl")[::25][:count]
    asked = [QUOTE.format(text=paragraphs[row["paragraph"]], question=row["question"]) for row in rows]
    folder, task = ROOT / "data" / "handbook", wb.read_task(ROOT / "data" / "handbook")
    pages = [(folder / "documents" / f"{each.document}.md", each.prompt) for each in task.test[:count]]
    handbook = [QUOTE.format(text=page.read_text(), question=question) for page, question in pages]
    return {"xquad": asked, "handbook": handbook, "free text": list(FREE[:count])}


def measured(plain: wb.Variant, drafted: wb.Variant, asked: list[str], tokens: int) -> dict[str, Any]:
    """Both answer every prompt, the order reversed each time."""
    seconds: dict[str, list[float]] = {"plain": [], "drafted": []}
    same, notes = 0, []
    for number, prompt in enumerate(asked):
        answers = {}
        for name, variant in [("plain", plain), ("drafted", drafted)][:: 1 if number % 2 else -1]:
            answer = answers[name] = variant.generate(prompt, max_new_tokens=tokens)
            seconds[name].append(answer.times[-1] - answer.times[0])
        same += answers["plain"].token_ids == answers["drafted"].token_ids
        notes += answers["drafted"].notes
    kept = [at for at, each in enumerate(seconds["plain"]) if each > 0]
    times = {name: [each[at] for at in kept] for name, each in seconds.items()}
    overall = sum(times["plain"]) / sum(times["drafted"])
    return {
        "faster": rounded(paired_ratio(times["plain"], times["drafted"]), 3),
        "faster_over_all": round(overall, 3),
        "same_tokens": f"{same} of {len(asked)}",
        "answers": notes,
    }


def main() -> None:
    """One interleaved run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=6, help="prompts of each kind")
    parser.add_argument("--tokens", type=int, default=64)
    asked = prompts((options := parser.parse_args()).count)
    base = wb.load(device="cpu", dtype="float32")
    found: dict[str, Any] = {"threads": torch.get_num_threads()}
    for draft in DRAFTS:
        variant = base.apply(runtime.Speculate(draft=draft))
        engine = variant.engine
        costs = engine.costs(variant.model)
        variant.generate("Rain?", max_new_tokens=4)
        here: dict[str, Any] = {
            "pass_over_one": {n + 2: round(each, 3) for n, each in enumerate(costs.more)},
            "draft_over_one": round(costs.draft, 3),
            "break_even": costs.break_even,
        }
        here |= {kind: measured(base, variant, each, options.tokens) for kind, each in asked.items()}
        found[draft or "looked up"] = here | {"totals": vars(engine.totals(variant.model))}
    write_result("speculation", found)


if __name__ == "__main__":
    main()
