"""Which matrix of one model belongs to which of another, when blocks or modules have gone."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from workbench.models import sharing
from workbench.models.blocks import decoder_blocks
from workbench.models.experts import as_layers
from workbench.models.packed import Packed, dense_weight, linear_layers

SAMPLED_ROWS = 8  # of a matrix, by which blocks are told apart
ALIKE = 0.3  # least cosine of a block and what became of it; of two different blocks it is about 0


class Place(NamedTuple):
    """Where a matrix is: its block in the longer model, its name, and its path in each model that has it."""

    block: int | None
    module: str
    path: str
    before: str | None
    after: str | None


def matrix_places(ours: PreTrainedModel, theirs: PreTrainedModel) -> list[Place]:
    """Every matrix of two models of one kind."""
    ours, theirs = as_layers(ours), as_layers(theirs)
    (root, blocks), (_, others) = decoder_blocks(ours), decoder_blocks(theirs)
    places = []
    for index, pair in enumerate(block_pairs(blocks, others)):
        names = [
            [] if at is None else [path for path, _ in linear_layers(side[at])]
            for at, side in zip(pair, (blocks, others), strict=True)
        ]
        for name in dict.fromkeys([*names[0], *names[1]]):
            paths = [f"{root}.{at}.{name}" if name in own else None for at, own in zip(pair, names, strict=True)]
            places.append(Place(index, name, f"{root}.{index}.{name}", *paths))
    known = [dict(model.named_modules()) for model in (ours, theirs)]
    for path in dict.fromkeys([*_outside(ours, root), *_outside(theirs, root)]):
        places.append(Place(None, path, path, *(path if path in each else None for each in known)))
    return places


def _outside(model: PreTrainedModel, root: str) -> Iterator[str]:
    """Paths of the matrices that belong to no block; an embedding that shares the output head's is left to the head."""
    head = model.get_output_embeddings()
    shared = set() if head is None else sharing.storages(head).keys()
    for path, module in model.named_modules():
        table = isinstance(module, nn.Linear | Conv1D | nn.Embedding | Packed) and not path.startswith(f"{root}.")
        if table and (module is head or not sharing.storages(module).keys() & shared):
            yield path


def block_pairs(blocks: nn.ModuleList, others: nn.ModuleList) -> list[tuple[int | None, int | None]]:
    """Numbers of the blocks that belong together, in the order of the longer list; None where one has none."""
    if len(blocks) == len(others):
        return [(index, index) for index in range(len(blocks))]
    if len(blocks) < len(others):
        return [(one, other) for other, one in block_pairs(others, blocks)]
    kept = {origin: index for index, origin in enumerate(_origins(others, blocks))}
    return [(index, kept.get(index)) for index in range(len(blocks))]


def _origins(few: nn.ModuleList, many: nn.ModuleList) -> Sequence[int]:
    """Which of many blocks each of a few came from: the one whose weights resemble its own, or by position."""
    layers = [dict(linear_layers(block)) for block in (*few, *many)]
    for path in layers[0]:
        if len({_shape(each[path]) if path in each else None for each in layers}) == 1:
            samples = [dense_weight(each[path])[:SAMPLED_ROWS].float().flatten().cpu() for each in layers]
            rows = nn.functional.normalize(torch.stack(samples), dim=1)
            best = (rows[: len(few)] @ rows[len(few) :].t()).max(dim=1)
            found: list[int] = best.indices.tolist()
            if found == sorted(set(found)) and float(best.values.min()) > ALIKE:
                return found
            break
    return range(len(few))


def _shape(module: nn.Module) -> tuple[int, int]:
    """``(out, in)``."""
    if isinstance(module, Packed):
        return module.out_features, module.in_features
    rows, columns = dense_weight(module).shape
    return rows, columns
