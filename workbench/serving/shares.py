"""How many ranks can share a model evenly, and what this machine has for them."""

import math
import os

import torch
from transformers import PreTrainedModel

from workbench.core.errors import InvalidInput, NotAvailable


def check_shares(model: PreTrainedModel, ranks: int) -> None:
    """Raise `InvalidInput` unless so many ranks can share a model; its weights are not looked at."""
    if ranks == 1:
        return
    plan = {name: style for name, style in (model.tp_plan or {}).items() if "*" in name}
    if not plan:
        raise InvalidInput(
            f"transformers has no plan (tp_plan) by which several ranks share a {type(model).__name__}: answer with "
            "replicas of it, or use an architecture such as Llama, Qwen3, Mistral or Gemma."
        )
    found = _counts(model, plan)
    most = math.gcd(*found.values())
    if most % ranks:
        *rest, last = [str(number) for number in range(1, most + 1) if most % number == 0]
        numbers = f"{', '.join(rest)} or {last} ranks" if rest else "1 rank"
        what = " and ".join(f"{count} {name}" for name, count in found.items())
        raise InvalidInput(f"{what} can be shared by {numbers}, not {ranks}.")


def _counts(model: PreTrainedModel, plan: dict[str, str]) -> dict[str, int]:
    """What the ranks must share evenly: heads where attention is cut, channels where matrices are fused."""
    config = model.config.get_text_config()
    found = {}
    if any("att" in name and style == "colwise" for name, style in plan.items()):
        found["heads"] = int(config.num_attention_heads)
        shared = getattr(config, "num_key_value_heads", None) or found["heads"]
        found |= {"key/value heads": int(shared)} if shared != found["heads"] else {}
    if any(style == "packed_colwise" for style in plan.values()):
        found["channels of an expert"] = int(getattr(config, "moe_intermediate_size", None) or config.intermediate_size)
    return found or {"channels": int(config.hidden_size)}


def threads_of(device: torch.device, ranks: int) -> tuple[int, list[str]]:
    """Of each rank, and what should be known of how they share this machine.

    Raises:
        NotAvailable: there are too few GPUs.
    """
    if device.type == "cuda" and torch.cuda.device_count() < ranks:
        count = torch.cuda.device_count()
        raise NotAvailable(
            f"{ranks} ranks need {ranks} GPUs, and there {'is 1' if count == 1 else f'are {count}'} here: use as many "
            "ranks, or load the model with device='cpu'."
        )
    if device.type not in ("cpu", "cuda"):
        raise InvalidInput("Ranks run on CPUs or on CUDA GPUs: load the model with device='cpu'.")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    told = f"{ranks} ranks share {cores} cores: on a CPU they save memory in each process, not time."
    return max(1, cores // ranks), [told] if ranks > 1 and device.type == "cpu" else []
