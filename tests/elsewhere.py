"""What plain transformers, with peft where there is an adapter, makes of exports: asked for many in one process."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

TEXT = "What is a lobster? It is a large crustacean with two claws: 猫, 7 < 12."

# Logits and tokens of every folder, and the weight of every packed layer as transformers unpacks it: that of
# bitsandbytes before the first forward, which may rearrange it, that of compressed-tensors after it.
PLAIN = """
import json, os, sys
sys.modules["kernels"] = None
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

torch.set_num_threads(1)
asked, ids, text, answer = sys.argv[1:]
ids, answers = torch.tensor([json.loads(ids)]), {}
for name, (folder, paths) in json.loads(asked).items():
    try:
        model = AutoModelForCausalLM.from_pretrained(folder)
        if os.path.isdir(os.path.join(folder, "adapter")):
            from peft import PeftModel
            model = PeftModel.from_pretrained(model, os.path.join(folder, "adapter")).eval()
        weights = {}
        for path in paths:
            weight = getattr(model.get_submodule(path), "weight", None)
            if type(weight).__name__ == "Params4bit":
                from bitsandbytes.functional import dequantize_4bit
                weights[path] = dequantize_4bit(weight.data, weight.quant_state).float()
            elif type(weight).__name__ == "Int8Params":
                weights[path] = weight.data.float() * weight.SCB.view(-1, 1) / 127
        with torch.no_grad():
            answers[f"{name}:logits"] = model(ids).logits
        answers[f"{name}:tokens"] = torch.tensor(AutoTokenizer.from_pretrained(folder).encode(text))
        for path in set(paths) - set(weights):
            module = model.get_submodule(path)
            weights[path] = module.weight.t() if type(module).__name__ == "Conv1D" else module.weight
        answers |= {f"{name}:{path}": weight.detach().float().contiguous().clone() for path, weight in weights.items()}
    except Exception as error:
        print(name, type(error).__name__, error)
assert "workbench" not in sys.modules
save_file(answers, answer)
"""


def read(
    folders: Mapping[str, Path], ids: Tensor, place: Path, layers: Mapping[str, Sequence[str]]
) -> dict[str, Tensor]:
    """What is made of each folder there.

    Args:
        folders: exports by name.
        ids: what every model reads, ``(1, tokens)``.
        place: an empty folder.
        layers: paths of packed layers by the name of their export.

    Returns:
        By "name:logits", "name:tokens" (of `TEXT`) and "name:path" (the weight of a layer).
    """
    asked = {name: (str(folder), list(layers.get(name, ()))) for name, folder in folders.items()}
    answer = place / "answer.safetensors"
    done = subprocess.run(
        [sys.executable, "-P", "-c", PLAIN, json.dumps(asked), json.dumps(ids[0].tolist()), TEXT, str(answer)],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        cwd=place,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return load_file(answer)


def divergence(ours: Tensor, theirs: Tensor) -> float:
    """Mean KL of next-token distributions from logits ``(..., vocabulary)``, in nats a token."""
    mine, other = ours.double().log_softmax(-1), theirs.double().log_softmax(-1)
    return float((mine.exp() * (mine - other)).sum(-1).mean())
