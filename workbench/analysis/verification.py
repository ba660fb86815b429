"""verify_export(): whether plain transformers reads an export, and how close its logits are to ours."""

import json
import os
import subprocess
import sys
import tempfile
from importlib import util
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from workbench.core import units
from workbench.core.errors import InvalidInput, NotAvailable
from workbench.core.files import home
from workbench.core.value import Value
from workbench.models import adapter_files, export, interchange
from workbench.runtime.forward import using
from workbench.variant import load

TOKENS = 128  # positions compared: enough to tell a wrong layer from a rounded one
ADAPTED = " with an adapter"  # at the end of a format
TEXT = """The lighthouse keeper wrote the weather down twice a day: wind from the west, rain before noon, 7 degrees.
What is the capital of France? The capital of France is Paris, and about 2.1 million people live there.
def area(width, height):
    return width * height  # in square metres
Das Boot hat zwölf Plätze, und der Kapitän nimmt einen davon. 3 + 4 = 7, 12 * 12 = 144, 2 ** 10 = 1024."""

# Runs where nothing of ours is imported. Whatever goes wrong is written down as one line.
CHILD = """
import json, os, sys, time
sys.modules["kernels"] = None  # where it is installed, bitsandbytes would fetch native code through it
folder, question, answer = sys.argv[1:]
try:
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with safe_open(question, framework="pt") as file:
        ids, asked = file.get_tensor("ids"), file.metadata()
    torch.set_num_threads(int(asked["threads"]))
    started = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(folder, device_map=asked["device"], trust_remote_code=False)
    if os.path.isdir(os.path.join(folder, "adapter")):
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, os.path.join(folder, "adapter")).eval()
    seconds = time.perf_counter() - started
    tokens = AutoTokenizer.from_pretrained(folder, trust_remote_code=False).encode(asked["text"])
    with torch.no_grad():
        logits = model(ids[None].to(model.device)).logits[0].float().cpu()
    assert "workbench" not in sys.modules
    save_file({"logits": logits, "tokens": torch.tensor(tokens)}, answer, metadata={"seconds": str(seconds)})
except BaseException as error:
    said = (str(error).strip().splitlines() or [""])[0]
    with open(answer + ".error", "w") as file:
        file.write(f"{type(error).__name__}: {said}")
    raise
"""


class Verification(Value):
    """What plain transformers makes of an export, in a process of its own that does not import the workbench.

    Attributes:
        format: how other readers see the weights: "dense float32", "bitsandbytes nf4", "compressed-tensors ...".
        bytes: size of the folder on disk.
        loads: whether transformers loaded it and answered with finite logits, and its tokenizer with the same tokens.
        seconds: how long `from_pretrained` took there.
        bit_equal: whether every logit is the same as `load` gives.
        max_difference: the largest difference of a logit.
        kl: mean divergence of its next-token distribution from ours, in nats a token.
        same_top: share of positions with the same most likely token.
        note: what other readers do differently from us, in a sentence or two; empty if nothing.
        problem: why it does not load, in a sentence; empty if it does.
    """

    format: str
    bytes: int
    loads: bool
    seconds: float | None = None
    bit_equal: bool | None = None
    max_difference: float | None = None
    kl: float | None = None
    same_top: float | None = None
    note: str = ""
    problem: str = ""

    def __repr__(self) -> str:
        head = f"<Verification of {self.format}, {units.size(self.bytes)}"
        if not self.loads:
            return f"{head}: {self.problem}>"
        same = (
            "the same logits bit for bit"
            if self.bit_equal
            else f"KL {self.kl:.2g} nats/token, same top token at {self.same_top:.1%}, "
            f"logits within {self.max_difference:.2g}"
        )
        reader = "peft on plain transformers" if self.format.endswith(ADAPTED) else "plain transformers"
        return f"{head}: {reader} loads it in {self.seconds:.1f} s, {same}>"

    __str__ = __repr__


def verify_export(path: str | Path, device: str = "cpu", timeout: float = 600.0) -> Verification:
    """Load an export with plain transformers in a fresh process, offline, and compare its logits with ours.

    Both read the same 128 tokens of prose, code and sums. Dense exports are expected to agree bit for bit, packed ones
    as closely as the kernels do: transformers unpacks the layouts of compressed-tensors and multiplies in floating
    point, and rounds activations to 8 bits on a slightly different grid, where one rounding changes many after it.
    Steps that rewrite requests are no part of the comparison. An adapter is loaded there by peft.

    Args:
        path: a folder that `Variant.save` wrote.
        device: where both run.
        timeout: how long the other process may take, in seconds.

    Returns:
        The figures; `loads` is False, and `problem` says why, when transformers cannot use the export.

    Raises:
        InvalidInput: the folder is not an export.
        Corrupt: a file of it is damaged.
        NotAvailable: the library that reads its layout is not installed.
    """
    folder = home(path).absolute()
    if not export.is_export(folder):
        raise InvalidInput(f"'{folder}' is not an export: write one with variant.save(path).")
    manifest = export.read_manifest(folder)
    variant = load(folder, device=device)
    try:
        form, library = layout(folder, manifest["dtype"])
        if library and util.find_spec(library.replace("-", "_")) is None:
            raise NotAvailable(f"Reading this export needs {library}: run `pip install {library}`.")
        ids = variant.tokenizer.encode(TEXT)
        read = torch.tensor(ids[: min(TOKENS, variant.context_length)])
        with using(variant.name):
            ours = variant.model(read[None].to(variant.device)).logits[0].float().cpu()
    finally:
        variant.close()
    facts: dict[str, Any] = {
        "format": form + (ADAPTED if (folder / adapter_files.FOLDER).is_dir() else ""),
        "bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        "note": interchange.note(manifest["packed"]),
    }
    with tempfile.TemporaryDirectory() as place:
        answer = _ask(folder, read, device, timeout, Path(place))
    if isinstance(answer, str):
        return Verification(**facts, loads=False, problem=answer)
    theirs, tokens, seconds = answer
    if tokens != ids:
        return Verification(**facts, loads=False, problem="Its tokenizer gives other tokens there than here.")
    if theirs.shape != ours.shape or not theirs.isfinite().all():
        return Verification(**facts, loads=False, problem="Its logits there are not finite or of another shape.")
    if not ours.isfinite().all():
        return Verification(**facts, loads=False, problem="Its logits are not finite here: the model is broken.")
    return Verification(**facts, loads=True, seconds=seconds, **_closeness(ours, theirs))


def _ask(folder: Path, ids: Tensor, device: str, timeout: float, place: Path) -> tuple[Tensor, list[int], float] | str:
    """Logits, tokens and seconds of the other process, or what went wrong there in a sentence."""
    question, answer = place / "question", place / "answer"
    asked = {"device": device, "threads": str(torch.get_num_threads()), "text": TEXT}
    save_file({"ids": ids}, question, metadata=asked)
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-W", "ignore", "-c", CHILD, folder, question, answer],
            cwd=place,
            env=os.environ | quiet,
            capture_output=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return f"Plain transformers did not finish within {timeout:.0f} s."
    error = answer.with_suffix(".error")
    if error.exists():
        return f"Plain transformers cannot use it ({error.read_text(encoding='utf-8')[:300].rstrip('.')})."
    if done.returncode:
        return f"The process of plain transformers ended with code {done.returncode}: there may be too little memory."
    with safe_open(answer, framework="pt") as file:
        return file.get_tensor("logits"), file.get_tensor("tokens").tolist(), float(file.metadata()["seconds"])


def _closeness(ours: Tensor, theirs: Tensor) -> dict[str, Any]:
    """Figures from logits ``(tokens, vocabulary)``."""
    mine, other = ours.double().log_softmax(-1), theirs.double().log_softmax(-1)
    return {
        "bit_equal": torch.equal(ours, theirs),
        "max_difference": (ours - theirs).abs().max().item(),
        "kl": max((mine.exp() * (mine - other)).sum(-1).mean().item(), 0.0),
        "same_top": (ours.argmax(-1) == theirs.argmax(-1)).double().mean().item(),
    }


def layout(folder: Path, dtype: str) -> tuple[str, str]:
    """How other readers see the weights, and the library they need for it."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("quantization_config")
    if not config:
        return f"dense {dtype}", ""
    library = config["quant_method"]
    detail = config.get("format") or config.get("bnb_4bit_quant_type") or "int8"
    return f"{library} {detail}", library
