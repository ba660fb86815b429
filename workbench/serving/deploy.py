"""deploy(): a variant as a folder that another engine runs: weights, recipe, card, pins, command, and a test that was run."""

import ast
import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import workbench.steps
from workbench.analysis import verification
from workbench.core import files, units
from workbench.core.errors import Corrupt, InvalidInput, WorkbenchError
from workbench.core.progress import Progress
from workbench.core.value import Value
from workbench.measurement.agreement import Agreement
from workbench.measurement.comparison import Comparison
from workbench.measurement.runs import Run
from workbench.models import adapters, export, interchange
from workbench.models.interchange import gguf
from workbench.recipe import to_record
from workbench.runtime.engine import Eager
from workbench.runtime.forward import using
from workbench.serving import card, launch, questions, smoke
from workbench.serving.launch import Launch, Target
from workbench.serving.modelfile import modelfile
from workbench.variant import Variant

MAKER = gguf.MAKER
CONTEXT = 8192  # tokens that a server is started for at most: keys and values of a long context take much memory
VLLM = "WORKBENCH_VLLM_PYTHON"
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
    versions: dict[str, str] = {}

    @property
    def holds(self) -> bool | None:
        """Whether the target answers as the variant does, but for near ties; None where it was not asked."""
        return Agreement(self.gaps).holds if self.gaps else None

    def __repr__(self) -> str:
        said = f"its answers to {len(self.gaps)} prompts: {Agreement(self.gaps)}" if self.gaps else "not tried here"
        return (
            f"<Deployment of {self.name!r} for {self.target} in '{self.folder}', {units.size(self.bytes)}; {said}; run it "
            f"with `sh {self.folder / 'run.sh'}`>"
        )

    __str__ = __repr__


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
    """Write a folder with all that running a variant elsewhere takes, and try it in a fresh process of the target's loader.

    In it are the weights, the recipe, a model card, pinned requirements, a script that starts it, a container file (never
    built here), and the smoke test with its questions. Paths are relative, so that it can be moved; every file that is
    read but the card has its hash in deploy.json. Outsiders get the weights alone: stages that rewrite requests are only
    applied by the target "ray", which is the workbench's own service with its code in the folder.

    Args:
        variant: what is deployed.
        folder: where to; an older deployment there stays until the new one is finished.
        target: "transformers", "vllm", "gguf" (llama.cpp and Ollama), or "ray" (`python -m workbench serve`).
        measured: what `compare` or `measure` gave for it; the card shows these figures, and without them says so.
        progress: told of every stage; a cancel leaves nothing behind.
        overwrite: replace whatever is there.
        python: the interpreter that has the target's loader; by default this one, for vLLM $WORKBENCH_VLLM_PYTHON. Where
            there is none for vLLM, the smoke test is written and not run, and the card says so.

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
    missing = [each for each in place.parents if not each.exists()]
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
        for each in () if done else missing:
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
) -> str | None:
    """The interpreter that runs the smoke test, if there is one, once all that can be refused was looked at."""
    if target not in launch.TARGETS:
        raise InvalidInput(f"There is no target '{str(target)[:40]}': use one of {', '.join(launch.TARGETS)}.")
    taken = place.is_file() or (place.is_dir() and any(place.iterdir()))
    if taken and not overwrite and not _is_ours(place):
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
    found = str(python or (os.environ.get(VLLM) if target == "vllm" else sys.executable) or "")
    if found and shutil.which(found) is None:
        raise InvalidInput(f"There is no interpreter '{found[:200]}': name one that has the loader for {target}.")
    return found or None


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
    interpreter: str | None,
    progress: Progress,
) -> dict[str, Any]:
    """Everything into a folder that is not there yet; what deploy.json says."""
    progress.start(f"Writing {files.clipped(variant.name)} for {target}", 1)
    layout, library, remarks = _write_weights(folder, variant, target)
    progress.advance()
    asked = questions.asked(variant, target == "ray", progress)
    own = target == "ray" and (bool(variant.stages) or variant.engine != Eager())
    how = Launch(target, launch.slug(variant.name), min(variant.context_length, CONTEXT), library)
    how = replace(how, adapter=adapters.has_adapter(variant.model), stages=own)
    _write_texts(folder, variant, how, asked)
    facts = {
        "made_by": MAKER,
        "made_at": time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime()),
        "target": target,
        "name": variant.name,
        "source": variant.source,
        "command": launch.command(how),
        "measured": None if (run := card.picked(measured, variant)) is None else _kept(run),
    }
    _write_facts(folder, facts, {})
    tested = None if interpreter is None else questions.tested(folder, variant, interpreter, target == "ray", progress)
    if target == "vllm" and tested:
        how = replace(how, tried=tested["versions"])
        files.write_text(folder / "requirements.txt", launch.requirements(how))
    weights = sum(
        each.stat().st_size for each in folder.rglob("*") if each.suffix in (".safetensors", ".gguf", ".tensors")
    )
    ranks = launch.tensor_sizes(variant.model.config) if target == "vllm" else ()
    told = card.Told(layout, weights, remarks, ranks, questions.PROMPTS, tested)
    files.write_text(folder / "README.md", card.card(variant, how, told, measured))
    facts["smoke"] = tested
    _write_facts(folder, facts, {"requirements.txt"})
    return facts


def _write_weights(folder: Path, variant: Variant, target: Target) -> tuple[str, str, tuple[str, ...]]:
    """The weights into a new folder; how they are stored, the library of their layout, and how they differ there."""
    if target == "gguf":
        folder.mkdir(parents=True)
        with using(variant.name):
            notes = gguf.save(folder / smoke.WEIGHTS, variant.model, variant.tokenizer, launch.slug(variant.name))
        return "GGUF", "", notes
    variant.save(folder)
    manifest = export.read_manifest(folder)
    said, library = verification.layout(folder, manifest["dtype"])
    note = interchange.note(manifest["packed"]) if target != "ray" else ""
    return said, library, (note,) if note else ()


def _write_texts(folder: Path, variant: Variant, how: Launch, asked: dict[str, Any]) -> None:
    """All but the weights and the card."""
    texts = {
        "run.sh": launch.run_script(how),
        "requirements.txt": launch.requirements(how),
        "Containerfile": launch.containerfile(how),
        "recipe.json": variant.recipe.to_json(),
        "recipe.py": _program(variant),
        smoke.QUESTIONS: json.dumps(asked),
        "smoke.py": Path(smoke.__file__).read_text(encoding="utf-8"),
    }
    if how.target == "gguf":
        texts["Modelfile"] = modelfile(variant.tokenizer, how.context, variant.decoding)
    for name, text in texts.items():
        files.write_text(folder / name, text)
    if how.target == "ray":
        code = Path(workbench.__file__).parent
        shutil.copytree(code, folder / code.name, ignore=shutil.ignore_patterns("__pycache__"))


def _program(variant: Variant) -> str:
    """The recipe as a program; by the JSON beside it where it has steps that no import of ours names."""
    recipe = repr(variant.recipe)
    names = {each.id for each in ast.walk(ast.parse(recipe)) if isinstance(each, ast.Name)} - {"Recipe", "None"}
    ours = {each for each in names if hasattr(workbench.steps, each)}
    made = recipe if ours == names else 'Recipe.from_json(Path(__file__).with_name("recipe.json").read_text())'
    dtype = str(variant.dtype).removeprefix("torch.")
    imported = f"from workbench.steps import {', '.join(sorted(ours))}\n" if ours == names and ours else ""
    return f"""\
# Makes the variant again: python recipe.py [task]
import sys
from pathlib import Path

import workbench as wb
from workbench.recipe import Recipe
{imported}
recipe = {made}

if __name__ == "__main__":
    task = wb.read_task(sys.argv[1]) if sys.argv[1:] else None
    print(recipe.apply(wb.load({variant.source!r}, dtype={dtype!r}), task))
"""


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
