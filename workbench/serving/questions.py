"""What the smoke test of a deployed folder asks and what the variant answers, and the test run in a fresh process."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib import util
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from workbench.answering.request import Request
from workbench.core import files
from workbench.core.errors import WorkbenchError
from workbench.core.progress import Progress
from workbench.measurement.agreement import NEAR
from workbench.runtime import room
from workbench.runtime.decoding import Continuation
from workbench.runtime.forward import using
from workbench.runtime.reader import Span
from workbench.serving.launch import Launch, Target
from workbench.variant import Variant

PROMPTS = (
    "What is a lobster?",
    "Name three colours.",
    "How many days does a week have?",
    "Why is the sky blue?",
    "Write one sentence on the sea.",
    "What is 12 times 12?",
    "Who was Ada Lovelace?",
    "Translate to German: good morning.",
    "What does a lighthouse do?",
    "List two uses of salt.",
    "What is the capital of France?",
    "Explain rain to a child.",
    "def area(width, height):",
    "Is a tomato a fruit?",
    "What do bees make?",
    "Give a synonym of quick.",
    "How do tides work?",
    "What is a good name for a cat?",
    "2, 4, 8, 16,",
    "Say goodbye politely.",
)
NEW_TOKENS = 12
NEAREST, MOST = 8, 64  # tokens of a place whose distance is kept: so many in any case, so many near ties at most
TIMEOUT = 1800.0  # seconds that the test may take
LOADER: dict[Target, str] = {"transformers": "transformers", "vllm": "vllm", "gguf": "xllamacpp", "ray": "workbench"}
LOG, ERROR = "log", re.compile(r"\b\w*Error: .+")
QUIET = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}


def asked(variant: Variant, stages: bool, progress: Progress) -> dict[str, Any]:
    """The prompts, the variant's greedy tokens, and which others come close at every place, as JSON values.

    Args:
        variant: who answers.
        stages: whether requests pass its stages, as they do not where only the weights are served.
        progress: told of every prompt.
    """
    requests = [variant.rewritten(text) if stages else Request.of(text) for text in PROMPTS]
    ids = [variant.tokens(each) for each in requests]
    variant.check_length(max(map(len, ids)), NEW_TOKENS)
    settings = variant.decoding.but(max_new_tokens=NEW_TOKENS, temperature=0.0)
    rows = [Continuation(variant.end_tokens) for _ in ids]
    pairs = zip(ids, rows, strict=True)  # one by one, as the loaders are asked: many together are rounded otherwise
    for prompt, row in progress.track("Asking the variant", pairs, len(ids)):
        for _ in variant.engine.decode(variant.model, [prompt], settings, [row], label=variant.name):
            progress.check()
    spans = [Span(tuple(prompt), tuple(row.ids)) for prompt, row in zip(ids, rows, strict=True)]
    near = []
    with using(variant.name):
        reader = variant.engine.read(variant.model, spans, variant.name)
        for span in progress.track("Looking for near ties", spans, len(spans)):
            near.append(_near(reader.logs([span])))
    found = zip(PROMPTS, ids, rows, near, strict=True)
    last = variant.answer_end[-1:]
    return {
        "prompts": [{"text": text, "ids": own, "tokens": row.ids, "near": close} for text, own, row, close in found],
        "new_tokens": NEW_TOKENS,
        "ends": [*last, *sorted(variant.end_tokens - set(last))],
        "tie": NEAR,
        "dated": "strftime_now" in str(variant.tokenizer.chat_template),
    }


def _near(logs: Tensor) -> list[dict[str, float]]:
    """How far below the best token of a place the next ones are, in nats, from logarithms ``(places, vocabulary)``."""
    best = logs.topk(min(MOST, logs.shape[-1]), dim=-1)
    places = zip(best.indices.tolist(), (best.values[:, :1] - best.values).tolist(), strict=True)
    return [
        {
            str(token): round(gap, 4)
            for at, (token, gap) in enumerate(zip(*place, strict=True))
            if at < NEAREST or gap < NEAR
        }
        for place in places
    ]


def missing(target: Target, layout: str) -> str:
    """The library that this interpreter lacks to run a target's loader on weights in a layout; empty if none."""
    needed = [LOADER[target], *([layout] if target == "transformers" and layout else [])]
    return next((each for each in needed if util.find_spec(each.replace("-", "_")) is None), "")


def tested(folder: Path, variant: Variant, python: str, how: Launch, progress: Progress) -> dict[str, Any]:
    """What the folder's own smoke test finds in a fresh process of an interpreter.

    Args:
        folder: has everything but the card.
        variant: whose it is.
        python: the interpreter.
        how: by whom.
        progress: a cancel ends the process.

    Raises:
        OutOfMemory: there is no room for a second copy of the weights.
        WorkbenchError: the loader cannot use the folder, or takes too long.
        Cancelled: the progress was cancelled.
    """
    device = variant.device.type
    room.check_loads(folder, variant.device, variant.dtype, f"The smoke test of {variant.name}")
    progress.start("Trying it in a fresh process", 1)
    with TemporaryDirectory() as place:
        result = Path(place) / "result.json"
        given = [python, "-B", "-W", "ignore", str(folder / "smoke.py"), "--device", device, "--result", str(result)]
        alone = {} if how.target == "ray" else {"PYTHONSAFEPATH": "1"}  # nothing is imported from the folder
        status = _run(given, Path(place), os.environ | QUIET | alone, progress)
        try:
            found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise WorkbenchError(
                f"Nothing was deployed: the process of the smoke test ended with code {status}; there may be too "
                "little memory for it."
            ) from None
        if problem := found.pop("problem"):
            said = f"{problem[0].lower()}{problem[1:].rstrip('.')}{_cause(Path(place) / LOG, problem)}"
            raise WorkbenchError(f"Nothing was deployed: {said}.")
    progress.advance()
    return found


def _cause(log: Path, problem: str) -> str:
    """The first error that another process of the loader wrote down, to go on with; empty if it is known."""
    text = log.read_text(encoding="utf-8", errors="replace")
    found = next((each for each in ERROR.findall(text) if each[:80] not in problem), "")
    return f"; its reason: {files.clipped(found, 200).rstrip('. ')}" if found else ""


def _run(command: list[str], place: Path, environment: dict[str, str], progress: Progress) -> int:
    """The exit status of a process, which is ended with all its children on a cancel or when it takes too long."""
    if command[0] != sys.executable:  # our libraries are not those of another interpreter
        environment.pop("PYTHONPATH", None)
    with (place / LOG).open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=place,
            env=environment,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    started = time.monotonic()
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(0.1)
            progress.check()
            if time.monotonic() - started > TIMEOUT:
                raise WorkbenchError(f"Nothing was deployed: the smoke test did not end within {TIMEOUT:.0f} s.")
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
