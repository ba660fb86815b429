"""What a student learns from: another variant, asked while it trains or read once and kept on disk."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from workbench.core import files
from workbench.core.errors import InvalidInput, WorkbenchError, first_line
from workbench.core.progress import Progress
from workbench.models import sharing
from workbench.models.sharing import fingerprint
from workbench.runtime.decoding import Decoding
from workbench.runtime.forward import using
from workbench.tasks.task import Task, Text
from workbench.training import checkpoint
from workbench.training.divergence import forward_kl, likeliest
from workbench.training.loss import packs, read
from workbench.training.precision import products
from workbench.training.sequences import Batch, Sample, answered, digest, lay_out, read_samples
from workbench.variant import Variant, live, load

BATCH_TOKENS = 4096  # that a teacher reads at a time
ANSWERS = 8  # prompts that a model answers at a time
NEW_TOKENS = 64  # most of an answer that is made for learning
DRIFT_SAMPLES = 8  # of the calibration split

Logs = Callable[[slice], Tensor]


def find_teacher(student: Variant, name: str) -> Variant:
    """The variant of that name, or the model with that hub id or path; without a name what the student was loaded as.

    Raises:
        InvalidInput: the student is its own teacher, or the two do not share a vocabulary.
        NotAvailable: it is neither a variant nor a model that can be read.
    """
    teacher = _named(student, name)
    if teacher.device != student.device:
        raise InvalidInput(
            f"Teacher '{teacher.name}' is on {teacher.device} and student '{student.name}' on {student.device}: load "
            "both on one device."
        )
    if teacher.model is student.model:
        raise InvalidInput(
            f"'{student.name}' is its own teacher: make a student first, such as prune.DropBlocks(), or name another."
        )
    sizes = [len(each.tokenizer) for each in (teacher, student)]
    if sizes[0] != sizes[1] or teacher.tokenizer.get_vocab() != student.tokenizer.get_vocab():
        raise InvalidInput(
            f"Teacher '{teacher.name}' has a vocabulary of {sizes[0]} tokens and student '{student.name}' another of "
            f"{sizes[1]}: choose a teacher of the student's own model family."
        )
    return teacher


def _named(student: Variant, name: str) -> Variant:
    name = name.strip()
    if name:
        found = [each for each in live() if each.name == name]
        return found[-1] if found else load(name, device=str(student.device), dtype=student.dtype)
    origins = [*student.ancestors, *(each for each in live() if each.source == student.source)]
    found = [each for each in (student, *origins) if not each.recipe and not each.closed]
    return found[0] if found else load(student.source, device=str(student.device), dtype=student.dtype)


class Teacher:
    """Asked anew for every batch: its whole distribution, never the logits of more than a few tokens at once."""

    def __init__(self, variant: Variant, student: Variant, temperature: float, precision: str = "float32") -> None:
        self.variant, self.temperature, self.precision = variant, temperature, precision
        self.model = sharing.share(variant.model)
        # Models of a family pad their heads to different heights, behind the tokens that they share.
        heads = [each.model.get_output_embeddings().weight for each in (variant, student)]
        self.height = min(len(head) for head in heads)

    @torch.no_grad()
    def states(self, batch: Batch, every: bool = True) -> list[Tensor]:
        """Hidden states, each ``(learned, hidden)``: behind every block, or the last."""
        with products(self.precision, self.model) as forward, forward:
            return read(self.model, batch, every)

    def logs(self, batch: Batch, states: Tensor | None = None) -> Logs:
        """Log-probabilities ``(rows, height)`` of some learned tokens of a batch, at the temperature."""
        last = self.states(batch, every=False)[-1] if states is None else states

        @torch.no_grad()
        def part(rows: slice) -> Tensor:
            with products(self.precision, self.model) as forward, forward:
                logits = self.model.get_output_embeddings()(last[rows])[:, : self.height].float()
            return torch.log_softmax(logits / self.temperature, dim=-1)

        return part


class Kept:
    """What a teacher says on all samples, read once: the likeliest tokens of every learned one, on disk.

    Attributes:
        values: log-probabilities at the temperature, ``(learned, k)``, in 16 bits.
        indices: the tokens, ``(learned, k)``.
    """

    def __init__(self, folder: Path, samples: Sequence[Sample]) -> None:
        self.values: np.ndarray = np.load(folder / "values.npy", mmap_mode="r", allow_pickle=False)
        self.indices: np.ndarray = np.load(folder / "indices.npy", mmap_mode="r", allow_pickle=False)
        self._rows = _rows(samples)
        if self.values.shape != self.indices.shape or len(self.values) != sum(map(len, self._rows.values())):
            raise ValueError("written for other samples")

    def likeliest(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probabilities and tokens of a batch, each ``(learned, k)``."""
        rows = np.concatenate([self._rows[each.name] for each in batch.samples])
        device = batch.ids.device
        values = torch.from_numpy(np.asarray(self.values[rows], dtype=np.float32)).to(device)
        return values, torch.from_numpy(np.asarray(self.indices[rows], dtype=np.int64)).to(device)


def _rows(samples: Sequence[Sample]) -> dict[str, range]:
    """Which rows of what is kept belong to the learned tokens of each sample, by its name."""
    found, at = {}, 0
    for sample in samples:
        found[sample.name] = range(at, at := at + len(sample.ids) - sample.start)
    return found


def kept(teacher: Teacher, samples: Sequence[Sample], k: int, progress: Progress) -> Kept:
    """What the teacher says on the samples: from disk if this teacher read them before, else read now.

    Raises:
        WorkbenchError: the disk is full.
    """
    facts = [
        fingerprint(teacher.variant.model),
        str(teacher.temperature),
        teacher.precision,
        str(teacher.height),
        str(k),
        digest(samples),
    ]
    folder = files.cache_folder() / "teacher" / hashlib.sha256("\n".join(facts).encode()).hexdigest()[:24]
    with contextlib.suppress(OSError, ValueError):
        return Kept(folder, samples)
    try:
        with files.whole(folder) as temporary:
            temporary.mkdir()
            _write(teacher, samples, k, temporary, progress)
            shutil.rmtree(folder, ignore_errors=True)  # damaged, or it would have been read
        checkpoint.forget_oldest(folder.parent)
        return Kept(folder, samples)
    except OSError as error:
        raise WorkbenchError(
            f"What the teacher says could not be kept in '{folder.parent}' ({first_line(error)}): make room there, or "
            "set top_k to 0 to ask it while training."
        ) from None


def _mapped(path: Path, kind: type, shape: tuple[int, ...]) -> np.memmap:
    """A new array on disk whose room is taken at once: a full disk is an error now, and no crash while it is filled."""
    made = np.lib.format.open_memmap(path, "w+", kind, shape)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return made


@torch.no_grad()
def _write(teacher: Teacher, samples: Sequence[Sample], k: int, folder: Path, progress: Progress) -> None:
    places = _rows(samples)
    shape = (sum(map(len, places.values())), min(k, teacher.height))
    values = _mapped(folder / "values.npy", np.float16, shape)
    indices = _mapped(folder / "indices.npy", np.uint16 if teacher.height <= 1 << 16 else np.int32, shape)
    longest = max(len(each.ids) for each in samples)
    packed, count = packs(teacher.model), max(1, BATCH_TOKENS // longest)
    groups = [samples[at : at + count] for at in range(0, len(samples), count)]
    for group in progress.track("Distillation: the teacher reads", groups, len(groups)):
        batch = lay_out(group, packed, teacher.model.device)
        rows = np.concatenate([places[each.name] for each in batch.samples])
        with using(teacher.variant.name):
            logs = teacher.logs(batch)
            for start in range(0, len(rows), 128):
                part = slice(start, start + 128)
                found = likeliest(logs(part), k)
                values[rows[part]] = found[0].cpu().numpy()
                indices[rows[part]] = found[1].cpu().numpy()
    values.flush()
    indices.flush()


def taught(teacher: Variant, samples: Sequence[Sample], new_tokens: int, progress: Progress) -> list[Sample]:
    """The samples with the teacher's greedy answers, from disk if it gave them before."""
    facts = [fingerprint(teacher.model), repr(teacher.engine), digest(samples), str(sorted(teacher.end_tokens))]
    facts.append(str(new_tokens))
    key = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:24]
    file = files.cache_folder() / "teacher" / f"{key}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        found = [Sample(tuple(ids), start, name) for ids, start, name in json.loads(file.read_text())]
        if [each.name for each in found] == [each.name for each in samples]:
            return found
    made: list[Sample] = []
    groups = [samples[at : at + ANSWERS] for at in range(0, len(samples), ANSWERS)]
    for group in progress.track("Distillation: the teacher answers", groups, len(groups)):
        made += answered(teacher, teacher.model, group, Decoding(max_new_tokens=new_tokens))
    with contextlib.suppress(WorkbenchError):  # without room on disk it is asked again next time
        files.write_text(file, json.dumps([[each.ids, each.start, each.name] for each in made]))
    return made


def spelled(teacher: Variant, samples: Sequence[Sample]) -> list[Sample]:
    """Answers up to the first token that no text has, since heads have rows beyond the vocabulary; empty ones left out.

    Raises:
        InvalidInput: nothing is left.
    """
    size = len(teacher.tokenizer)
    ends = [next((at for at in range(s.start, len(s.ids)) if s.ids[at] >= size), len(s.ids)) for s in samples]
    kept = [Sample(s.ids[:end], s.start, s.name) for s, end in zip(samples, ends, strict=True) if end > s.start]
    if not kept:
        raise InvalidInput(f"Teacher '{teacher.name}' answers with tokens that stand for no text: choose another one.")
    return kept


@torch.no_grad()
def drift(before: Variant, after: Variant, task: Task | Text | None) -> float:
    """KL(before || after), in nats a token: on the calibration split, or on an answer of the one before."""
    if task is not None:
        samples = read_samples(before, task, "calibration").samples[:DRIFT_SAMPLES]
    else:
        ids = before.encode("Tell me about lighthouses.")
        open_end = Sample((*ids, *[0] * NEW_TOKENS), len(ids), "")
        samples = tuple(answered(before, before.model, [open_end], Decoding(max_new_tokens=NEW_TOKENS)))
    batch = lay_out(samples, False, before.device)
    with using("Measuring drift"):
        first, second = (Teacher(each, before, 1.0).logs(batch) for each in (before, after))
        count = len(batch.targets)
        parts = [slice(start, start + 128) for start in range(0, count, 128)]
        total = sum(float(forward_kl(first(part), second(part)).sum()) for part in parts)
    return max(0.0, total / count)
