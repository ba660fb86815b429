"""What a model learns from: token sequences, which of their tokens count, and batches of them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from workbench.answering.request import Request
from workbench.core.errors import InvalidInput
from workbench.models.tokens import encode_answer
from workbench.runtime.decoding import Continuation, Decoding, sample_seeds
from workbench.runtime.prefix import common_length
from workbench.tasks.task import Task, Text
from workbench.variant import Variant

ROW_TOKENS = 256  # of a row of packed samples; attention over much longer rows costs more than filling saves


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
        common: ``(1, common)``, what all samples begin with and the rows leave out; None if they are whole.
        ids: ``(rows, tokens)``.
        positions: ``(rows, tokens)``, the place of every token in its sample.
        mask: ``(rows, 1, tokens, common + tokens)``, what a token sees; None for all that is before it.
        places: ``(learned,)``, indices into the flattened rows of what predicts a learned token.
        targets: ``(learned,)``, the learned tokens.
        samples: in the order of their learned tokens.
    """

    common: Tensor | None
    ids: Tensor
    positions: Tensor
    mask: Tensor | None
    places: Tensor
    targets: Tensor
    samples: tuple[Sample, ...]

    @property
    def tokens(self) -> int:
        """Of the samples, padding left out; a beginning that was read once counts for each."""
        return sum(len(sample.ids) for sample in self.samples)


def read_samples(variant: Variant, task: Task | Text, split: str) -> Samples:
    """The samples of a split: of an example the answer and its end are learned, of a text every token but the first.

    Raises:
        InvalidInput: there are none, or no answer fits the context behind its prompt.
    """
    if isinstance(task, Text):
        if task.window > variant.context_length:
            raise InvalidInput(
                f"Windows of {task.window} tokens do not fit '{variant.name}', which holds {variant.context_length}: "
                "read the text with a smaller window."
            )
        windows = task.windows(variant.tokenizer, split)
        found = [Sample(tuple(ids), 1, f"window {index}") for index, ids in enumerate(windows)]
        if not found:
            raise InvalidInput(f"'{task.name}' has no windows left for {split}: use a longer text or shorter windows.")
        return Samples(tuple(found), ())
    examples = getattr(task, split)
    if not examples:
        raise InvalidInput(f"Task '{task.name}' has no {split} examples: add rows to its {split} split.")
    room = variant.context_length
    found, shortened = [], 0
    for example in examples:
        prompt = variant.encode(Request.example(task, example))
        ids = [*prompt, *encode_answer(variant.tokenizer, example.answer), *variant.answer_end]
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


def continued(
    variant: Variant, model: PreTrainedModel, prompts: Sequence[Sequence[int]], settings: Decoding
) -> list[list[int]]:
    """Token ids that a model puts behind each prompt; each draws for itself.

    Args:
        variant: whose engine and end tokens are used.
        model: what answers, such as a copy in training.
        prompts: token ids.
        settings: how tokens are chosen.
    """
    rows = [Continuation(variant.end_tokens) for _ in prompts]
    seeds = sample_seeds(settings.seed, len(prompts))
    for _ in variant.engine.decode(model, prompts, settings, rows, seeds=seeds, label=variant.name):
        pass
    return [row.ids for row in rows]


def answered(variant: Variant, model: PreTrainedModel, samples: Sequence[Sample], settings: Decoding) -> list[Sample]:
    """The samples with a model's own answers in place of theirs; of a text, the second half is made anew.

    Answers end where the context does: a sample without room for one is given back as it is.
    """
    starts = [each.start if each.start > 1 else len(each.ids) // 2 for each in samples]
    prompts = [each.ids[:start] for each, start in zip(samples, starts, strict=True)]
    room = min(settings.max_new_tokens, variant.context_length - max(map(len, prompts)))
    if room < 1:
        return list(samples)
    made = continued(variant, model, prompts, settings.but(max_new_tokens=room))
    return [
        Sample((*prompt, *answer), len(prompt), each.name)
        for each, prompt, answer in zip(samples, prompts, made, strict=True)
    ]


def digest(samples: Sequence[Sample]) -> str:
    """Hash of everything that is learned from."""
    return hashlib.sha256(repr([(each.ids, each.start) for each in samples]).encode()).hexdigest()


def overlap_note(task: Task | Text) -> tuple[str, ...]:
    """A warning when prompts of the test split are in the train split, too."""
    if isinstance(task, Text):
        return ()
    seen = {(example.history, example.prompt.strip()) for example in task.train}
    count = sum((example.history, example.prompt.strip()) in seen for example in task.test)
    return (f"{count} of {len(task.test)} test prompts are in the train split, too: the score will flatter.",) * (
        count > 0
    )


def lay_out(samples: Sequence[Sample], packed: bool, device: torch.device, share: bool = True) -> Batch:
    """Samples in rows: one each, filled up at the end; or packed, several end to end.

    A sample sees no other one. What is learned sees the same tokens at the same positions either way; the beginning
    that packed samples share is taken out of them, to be read once.
    """
    common = _common(samples) if packed and share else 0
    rows = _bins(samples, common) if packed else [[sample] for sample in samples]
    longest = max(sum(len(sample.ids) - common for sample in row) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    positions = torch.zeros_like(ids) if packed else torch.arange(longest).repeat(len(rows), 1)
    owner = torch.full((len(rows), longest), -1)  # which sample of its row a token is of; -1 is the filling
    places: list[int] = []
    targets: list[int] = []
    for number, row in enumerate(rows):
        at = 0
        for index, sample in enumerate(row):
            stop = at + len(sample.ids) - common
            ids[number, at:stop] = torch.tensor(sample.ids[common:])
            positions[number, at:stop] = torch.arange(common, len(sample.ids))
            owner[number, at:stop] = index
            first = number * longest + at - common
            places += range(first + sample.start - 1, first + len(sample.ids) - 1)
            targets += sample.ids[sample.start :]
            at = stop
    mask = None
    if packed:
        own = (owner[:, None, :] == owner[:, :, None]) & torch.ones(longest, longest, dtype=torch.bool).tril()
        mask = torch.cat([own.new_ones(len(rows), longest, common), own], dim=-1)[:, None].to(device)
    return Batch(
        common=torch.tensor([samples[0].ids[:common]]).to(device) if common else None,
        ids=ids.to(device),
        positions=positions.to(device),
        mask=mask,
        places=torch.tensor(places).to(device),
        targets=torch.tensor(targets).to(device),
        samples=tuple(sample for row in rows for sample in row),
    )


def _common(samples: Sequence[Sample]) -> int:
    """How many tokens all samples begin with, short of the one that predicts a first learned token; 0 if too few."""
    return common_length([sample.ids for sample in samples], min(sample.start for sample in samples) - 1)


def _bins(samples: Sequence[Sample], common: int) -> list[list[Sample]]:
    """Samples in as few rows as first fit, longest first, needs."""
    room = max(ROW_TOKENS, *(len(sample.ids) - common for sample in samples))
    rows: list[list[Sample]] = []
    left: list[int] = []
    for sample in sorted(samples, key=lambda each: len(each.ids), reverse=True):
        needed = len(sample.ids) - common
        at = next((index for index, free in enumerate(left) if free >= needed), len(rows))
        if at == len(rows):
            rows.append([])
            left.append(room)
        rows[at].append(sample)
        left[at] -= needed
    return rows
