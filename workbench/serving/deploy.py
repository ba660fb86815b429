"""deploy(): a variant as a folder that another engine runs, with its recipe, a card, and a test that was run there."""

import contextlib
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field
from transformers import AutoConfig

from workbench.core import files, units
from workbench.core.errors import Corrupt, InvalidInput
from workbench.core.line import watched
from workbench.core.progress import Progress
from workbench.core.value import Value
from workbench.measurement.agreement import Agreement
from workbench.measurement.comparison import Comparison
from workbench.measurement.runs import Run
from workbench.models import adapters, export
from workbench.models.interchange import gguf
from workbench.recipe import to_record
from workbench.runtime.engine import Eager
from workbench.serving import card, contents, launch, questions, smoke
from workbench.serving.launch import Launch, Target
from workbench.variant import Variant

MAKER = gguf.MAKER
CONTEXT = 8192  # tokens that a server is started for at most: keys and values of a long context take much memory
VLLM = "WORKBENCH_VLLM_PYTHON"
WEIGHTS = (".safetensors", ".gguf", ".tensors")  # suffixes of files that hold them
UNHASHED = (smoke.FACTS, "README.md")  # a card may be edited


class Deployment(Value):
    """A folder that `deploy` wrote.

    Attributes:
        folder: where it is.
        target: who runs it.
        name: of the variant.
        command: what starts it, in a shell that stands in the folder.
        bytes: size of the folder.
        gaps: for every prompt of the smoke test, how much less likely than its own the variant finds the first token of
            the target's that differs, in nats; 0 where none does. Empty where the test was not run.
        versions: of the libraries that ran the test.
    """

    folder: Path
    target: Target
    name: str
    command: str
    bytes: int
    gaps: tuple[float, ...] = ()
    versions: dict[str, str] = Field(default_factory=dict)

    @property
    def holds(self) -> bool | None:
        """Whether the target answers as the variant does, but for near ties; None where it was not asked."""
        return Agreement(self.gaps).holds if self.gaps else None

    @property
    def tried(self) -> str:
        """What came of asking the target."""
        return f"its answers to {len(self.gaps)} prompts: {Agreement(self.gaps)}" if self.gaps else "not tried here"

    def __repr__(self) -> str:
        return (
            f"<Deployment of {self.name!r} for {self.target} in '{self.folder}', {units.size(self.bytes)}; "
            f"{self.tried}; run it with `sh {shlex.quote(str(self.folder / 'run.sh'))}`>"
        )

    __str__ = __repr__


@watched
def deploy(
    variant: Variant,
    folder: str | Path,
    target: Target = "transformers",
    *,
    measured: Run | Comparison | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
    python: str | Path | None = None,
) -> Deployment:
    """Write a folder with all that it takes to run a variant elsewhere, and try it in a fresh process of the target's.

    In it are the weights, the recipe, a model card, pinned requirements, a script that starts it, a container file
    (never built here), and the smoke test with its questions. Paths are relative, so that it can be moved; every file
    but the card has its hash in deploy.json. Others get the weights alone: stages that rewrite requests are applied by
    the target "ray" only, which is the workbench's own service with its code in the folder.

    Args:
        variant: what is deployed.
        folder: where to; an older deployment there stays until the new one is finished.
        target: "transformers", "vllm", "gguf" (llama.cpp and Ollama), or "ray" (`python -m workbench serve`).
        measured: what `compare` or `measure` gave for it; the card shows these figures, and without them says so.
        progress: told of every stage; a cancel leaves nothing behind.
        overwrite: replace whatever is there.
        python: the interpreter that has the target's loader; by default this one, for vLLM $WORKBENCH_VLLM_PYTHON.
            Where the loader is not installed, the smoke test is written and not run, and the card says so.

    Returns:
        What was written, and what the test found.

    Raises:
        InvalidInput: the target cannot run such a variant, the figures are another's, or something else is there.
        OutOfMemory: there is no room for the second copy that the test loads.
        WorkbenchError: the loader cannot use what was written, or the disk is full; nothing was changed.
        Cancelled: the progress was cancelled.
    """
    progress = progress or Progress()
    place = files.home(folder).absolute()
    interpreter = _checked(variant, place, target, measured, overwrite, python)
    new = [each for each in place.parents if not each.exists()]
    temporary, done = files.sibling(place), False
    try:
        facts = _write(temporary, variant, target, measured, interpreter, progress)
        progress.check()
        files.to_disk(temporary)
        export.swap(temporary, place)
        done = True
    except OSError as error:
        raise files.write_refused(place, error) from None
    finally:
        with contextlib.suppress(OSError, ValueError):
            files.remove(temporary)
        for each in () if done else new:
            with contextlib.suppress(OSError):
                each.rmdir()
    return _deployment(place, facts)


def check(folder: str | Path) -> Deployment:
    """What a deployed folder is, every file of it checked against its hash.

    Raises:
        InvalidInput: it is not a deployed folder.
        Corrupt: a file is missing, cut off or changed.
    """
    place = files.home(folder)
    if not files.is_kind(place / smoke.FACTS, Path.is_file):
        raise InvalidInput(f"'{place}' was not written by deploy(): it has no {smoke.FACTS}.")
    if problem := smoke.damage(place):
        raise Corrupt(f"'{place}': {problem}")
    try:
        return _deployment(place, json.loads((place / smoke.FACTS).read_text(encoding="utf-8")))
    except (KeyError, TypeError, AttributeError):
        raise Corrupt(f"'{place}': {smoke.FACTS} is damaged: copy the folder again.") from None


def _checked(
    variant: Variant,
    place: Path,
    target: Target,
    measured: Run | Comparison | None,
    overwrite: bool,
    python: str | Path | None,
) -> str:
    """The interpreter that was named for the smoke test, once all that can be refused was looked at; empty for ours."""
    if target not in launch.TARGETS:
        raise InvalidInput(f"There is no target '{str(target)[:40]}': use one of {', '.join(launch.TARGETS)}.")
    if not overwrite and _is_taken(place) and not _is_ours(place):
        raise InvalidInput(f"'{place}' exists and was not deployed: choose another path or pass overwrite=True.")
    card.picked(measured, variant)
    if target in ("transformers", "vllm") and adapters.has_adapter(variant.model):
        raise InvalidInput(
            f"{target} would load '{files.clipped(variant.name)}' without its adapter: apply finetune.Fuse() first, or "
            'deploy for "ray" or "gguf".'
        )
    if target == "gguf":
        gguf.check(variant.model, variant.tokenizer)
    to_record(variant.recipe, variant.stages, variant.decoding, variant.engine)
    named = str(python or (os.environ.get(VLLM) if target == "vllm" else "") or "")
    if named and shutil.which(named) is None:
        raise InvalidInput(f"There is no interpreter '{named[:200]}': name one that has the loader for {target}.")
    return named


def _is_taken(place: Path) -> bool:
    """Whether there is a file, or a folder with anything in it."""
    try:
        return place.lstat() is not None and (not place.is_dir() or any(place.iterdir()))
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:  # a file in the way, no right to look, a zero byte
        raise files.write_refused(place, error) from None


def _is_ours(place: Path) -> bool:
    try:
        return bool(json.loads((place / smoke.FACTS).read_text(encoding="utf-8"))["made_by"] == MAKER)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _write(
    folder: Path,
    variant: Variant,
    target: Target,
    measured: Run | Comparison | None,
    interpreter: str,
    progress: Progress,
) -> dict[str, Any]:
    """Everything into a folder that is not there yet; what deploy.json says."""
    progress.start(f"Writing {files.clipped(variant.name)} for {target}", 1)
    layout, library, remarks = contents.weights(folder, variant, target)
    progress.advance()
    asked = questions.asked(variant, target == "ray", progress)
    how = Launch(
        target=target,
        slug=launch.slug(variant.name),
        context=min(variant.context_length, CONTEXT),
        dtype=str(variant.dtype).removeprefix("torch."),
        layout=library,
        adapter=adapters.has_adapter(variant.model),
        stages=target == "ray" and (bool(variant.stages) or variant.engine != Eager()),
    )
    if target == "vllm":
        how = launch.for_vllm(how, AutoConfig.from_pretrained(folder, trust_remote_code=False))
    contents.texts(folder, variant, how, asked | {"dtype": how.dtype})
    facts = {
        "made_by": MAKER,
        "made_at": time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime()),
        "target": target,
        "name": variant.name,
        "source": variant.source,
        "measured": None if (run := card.picked(measured, variant)) is None else _kept(run),
    }
    _write_facts(folder, facts, {})
    missing = "" if interpreter else questions.missing(target, library)
    tested = None if missing else questions.tested(folder, variant, interpreter or sys.executable, how, progress)
    if target == "vllm" and tested:
        how = replace(how, tried=tested["versions"])
        files.write_text(folder / "requirements.txt", launch.requirements(how))
        files.write_text(folder / "run.sh", launch.run_script(how))
    stored = sum(each.stat().st_size for each in folder.rglob("*") if each.suffix in WEIGHTS)
    tells = card.Told(layout, stored, remarks, questions.PROMPTS, tested, missing)
    files.write_text(folder / "README.md", card.card(variant, how, tells, measured))
    facts |= {"command": launch.command(how), "smoke": tested}
    _write_facts(folder, facts, {"requirements.txt", "run.sh"})
    return facts


def _kept(run: Run) -> dict[str, Any]:
    """A run without its samples."""
    return run.model_dump(mode="json", exclude={"samples"})


def _write_facts(folder: Path, facts: dict[str, Any], again: Collection[str]) -> None:
    """deploy.json, with a hash of every file but some; of those that have one only where it is asked again."""
    known = {name: each for name, each in facts.get("files", {}).items() if name not in again}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.is_file() and name not in UNHASHED and name not in known:
            known[name] = {"bytes": file.stat().st_size, "sha256": files.sha256(file)}
    facts["files"] = known
    files.write_text(folder / smoke.FACTS, json.dumps(facts, indent=1))


def _deployment(place: Path, facts: dict[str, Any]) -> Deployment:
    tested = facts.get("smoke") or {}
    return Deployment(
        folder=place,
        target=facts["target"],
        name=facts["name"],
        command=facts["command"],
        bytes=sum(int(each["bytes"]) for each in facts["files"].values()),
        gaps=tuple(tested.get("gaps", ())),
        versions=tested.get("versions", {}),
    )
