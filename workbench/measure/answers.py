"""How good a variant's answers are on a task's test examples."""

from collections.abc import Sequence

from workbench.decoding import decode, shared_prefix
from workbench.measure.likelihood import answer_span, likelihoods
from workbench.progress import Progress
from workbench.task import Example, Task
from workbench.variant import Variant, model_lock

BATCH = {"cpu": 16, "cuda": 64}  # answers decoded together


def scores(variant: Variant, task: Task, limit: int | None = None, progress: Progress | None = None) -> list[float]:
    """The score, 0 to 1, of each of the first `limit` test examples, in their order."""
    examples = task.test[:limit]
    progress = progress or Progress()
    if task.scorer == "choice":
        return _choice_scores(variant, task, examples, progress)
    answers = generate_answers(variant, task, examples, progress)
    return [task.score(example, answer) for example, answer in zip(examples, answers, strict=True)]


def generate_answers(
    variant: Variant, task: Task, examples: Sequence[Example], progress: Progress | None = None
) -> list[str]:
    """Greedy answers, decoded in batches of similar length; the tokens all prompts begin with are read once."""
    progress = progress or Progress()
    prompts = [variant.encode(task.prompt(example)) for example in examples]
    variant.check_length(max(map(len, prompts)), task.max_new_tokens)
    prefix = shared_prefix(variant.model, prompts, variant.decoding.cache_bits)
    start = prefix.length if prefix else 0
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    size = BATCH.get(variant.device.type, BATCH["cpu"])
    settings = variant.decoding.but(max_new_tokens=task.max_new_tokens, temperature=0.0)
    answers = [""] * len(examples)
    progress.start(f"{variant.name}: answering", len(examples))
    for first in range(0, len(order), size):
        batch = order[first : first + size]
        tokens: list[list[int]] = [[] for _ in batch]
        open_rows = set(range(len(batch)))
        with model_lock:
            for step in decode(variant.model, [prompts[index][start:] for index in batch], settings, prefix):
                for row in list(open_rows):
                    tokens[row].append(step[row])
                    if step[row] in variant.end_tokens:
                        open_rows.discard(row)
                progress.check()
                if not open_rows:
                    break
        for row, index in enumerate(batch):
            answers[index] = variant.decode(tokens[row]).strip()
        progress.advance(len(batch))
    return answers


def _choice_scores(variant: Variant, task: Task, examples: Sequence[Example], progress: Progress) -> list[float]:
    """1 where the gold answer is the most likely of the choices, by log-likelihood a token."""
    spans = [answer_span(variant, task, example, choice) for example in examples for choice in example.choices]
    scored = likelihoods([variant], [spans], progress)[0]
    per_token = iter([-nll / tokens for nll, tokens in zip(scored.nll, scored.tokens, strict=True)])
    found = []
    for example in examples:
        chances = {choice: next(per_token) for choice in example.choices}
        found.append(float(max(chances, key=chances.__getitem__) == example.answer))
    return found
