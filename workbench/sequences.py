"""What a model learns from: token sequences, which of their tokens count, and batches of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.errors import InvalidInput
from workbench.prompting import encode_text
from workbench.task import Task, Text
from workbench.variant import Variant

ROW_TOKENS = 512  # of a row that samples are packed into; attention over much longer rows costs more than it saves


@dataclass(frozen=True)
class Sample:
    """A sequence to learn from.

    Attributes:
        ids: all its tokens.
        start: the first token that is learned; those before it are only read.
        name: of the example it was made from.
    """

    ids: tuple[int, ...]
    start: int
    name: str


@dataclass(frozen=True)
class Samples:
    """The samples of a split, and what was done to make them fit.

    Attributes:
        samples: none of them without a token to learn.
        notes: sentences on what was cut or left out.
    """

    samples: tuple[Sample, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Batch:
    """Samples as a model reads them.

    Attributes:
        ids: ``(rows, tokens)``.
        positions: ``(rows, tokens)``, from 0 for every sample.
        places: ``(learned,)``, indices into the flattened rows of what predicts a learned token.
        targets: ``(learned,)``, the learned tokens.
        tokens: how many are no padding.
    """

    ids: Tensor
    positions: Tensor
    places: Tensor
    targets: Tensor
    tokens: int


def read_samples(variant: Variant, task: Task | Text, split: str) -> Samples:
    """The samples of a split: of an example the answer is learned, of a text every token.

    Raises:
        InvalidInput: there are none, or no answer fits the context behind its prompt.
    """
    if isinstance(task, Text):
        windows = task.windows(variant.tokenizer, split)
        found = [Sample(tuple(ids), 1, f"window {index}") for index, ids in enumerate(windows)]
        if not found:
            raise InvalidInput(f"'{task.name}' has no windows left for {split}: use a longer text or shorter windows.")
        return Samples(tuple(found), ())
    examples = getattr(task, split)
    if not examples:
        raise InvalidInput(f"Task '{task.name}' has no {split} examples: add rows to its {split} split.")
    room, end = variant.context_length, variant.tokenizer.eos_token_id
    found, shortened = [], 0
    for example in examples:
        prompt = variant.encode(task.prompt(example))
        ids = [*prompt, *encode_text(variant.tokenizer, example.answer), *([] if end is None else [end])]
        shortened += len(ids) > room
        if len(prompt) < min(len(ids), room):
            found.append(Sample(tuple(ids[:room]), len(prompt), example.id))
    if not found:
        raise InvalidInput(
            f"No answer of task '{task.name}' fits behind its prompt into the {room} tokens that '{variant.name}' "
            "holds: shorten the prompts."
        )
    notes = []
    if shortened:
        notes.append(f"{shortened} of {len(examples)} {split} examples were longer than {room} tokens and cut.")
    if len(found) < len(examples):
        notes.append(f"{len(examples) - len(found)} of them had no answer left and were skipped.")
    return Samples(tuple(found), tuple(notes))


def overlap_note(task: Task | Text) -> tuple[str, ...]:
    """A warning when prompts of the test split are in the train split, too."""
    if isinstance(task, Text):
        return ()
    seen = {example.prompt.strip() for example in task.train}
    count = sum(example.prompt.strip() in seen for example in task.test)
    return (f"{count} of {len(task.test)} test prompts are in the train split, too: the score will flatter.",) * (
        count > 0
    )


def lay_out(samples: Sequence[Sample], packed: bool, device: torch.device) -> Batch:
    """Samples in rows: one each, filled up at the end, or several end to end.

    A sample sees no other one: positions that start again at 0 tell the model where a row's next sample begins, and the
    filling comes after everything that is learned.
    """
    rows = _bins(samples) if packed else [[sample] for sample in samples]
    longest = max(sum(len(sample.ids) for sample in row) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    positions = torch.arange(longest).repeat(len(rows), 1)
    places: list[int] = []
    targets: list[int] = []
    for number, row in enumerate(rows):
        at = 0
        for sample in row:
            stop = at + len(sample.ids)
            ids[number, at:stop] = torch.tensor(sample.ids)
            positions[number, at:] = torch.arange(longest - at)
            first = number * longest + at
            places += range(first + sample.start - 1, first + len(sample.ids) - 1)
            targets += sample.ids[sample.start :]
            at = stop
    tokens = sum(len(sample.ids) for sample in samples)
    return Batch(
        ids.to(device), positions.to(device), torch.tensor(places).to(device), torch.tensor(targets).to(device), tokens
    )


def _bins(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Samples in as few rows as first fit, longest first, needs."""
    room = max(ROW_TOKENS, *(len(sample.ids) for sample in samples))
    rows: list[list[Sample]] = []
    left: list[int] = []
    for sample in sorted(samples, key=lambda each: len(each.ids), reverse=True):
        at = next((index for index, free in enumerate(left) if free >= len(sample.ids)), len(rows))
        if at == len(rows):
            rows.append([])
            left.append(room)
        rows[at].append(sample)
        left[at] -= len(sample.ids)
    return rows
