"""Short trainings and what they make of some tokens, for tests of more than one folder."""

import torch

import workbench as wb
from workbench.steps import finetune

IDS = torch.arange(3, 60)[None]
QUICK = {"epochs": 4.0, "batch_size": 4}


def trained(kind: type[finetune.LoRA], base: wb.Variant, task: wb.Task, **knobs) -> wb.Variant:
    rate = 1e-3 if kind is finetune.Full else 1e-2
    return base.apply(kind(**QUICK | {"learning_rate": rate} | knobs), task)


def logits(variant: wb.Variant) -> torch.Tensor:
    with torch.no_grad():
        return variant.model(IDS).logits
