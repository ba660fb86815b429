"""What is in a deployed folder beside the card: weights, recipe, scripts and, where it is what runs, the workbench."""

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import workbench.steps
from workbench.analysis import verification
from workbench.core import files
from workbench.models import export, interchange
from workbench.models.interchange import gguf
from workbench.models.packed import Packed
from workbench.runtime.forward import using
from workbench.serving import launch, smoke
from workbench.serving.launch import Launch, Target
from workbench.serving.modelfile import modelfile
from workbench.variant import Variant

ROUNDED = (
    "llama.cpp multiplies packed weights with activations rounded to 8 bits: its answers may differ for that alone."
)


def weights(folder: Path, variant: Variant, target: Target) -> tuple[str, str, tuple[str, ...]]:
    """The weights into a new folder; how they are stored, the library of their layout, and how they differ there."""
    if target == "gguf":
        folder.mkdir(parents=True)
        with using(variant.name):
            notes = gguf.save(folder / smoke.WEIGHTS, variant.model, variant.tokenizer, launch.slug(variant.name))
        packed = any(isinstance(each, Packed) for each in variant.model.modules())
        return "GGUF", "", (*notes, ROUNDED) if packed else notes
    variant.save(folder)
    manifest = export.read_manifest(folder)
    said, library = verification.layout(folder, manifest["dtype"])
    note = interchange.note(manifest["packed"]) if target != "ray" else ""
    return said, library, (note,) if note else ()


def texts(folder: Path, variant: Variant, how: Launch, asked: dict[str, Any]) -> None:
    """All but the weights and the card."""
    found = {
        "run.sh": launch.run_script(how),
        "requirements.txt": launch.requirements(how),
        "Containerfile": launch.containerfile(how),
        "recipe.json": variant.recipe.to_json(),
        "recipe.py": _program(variant),
        smoke.QUESTIONS: json.dumps(asked),
        "smoke.py": Path(smoke.__file__).read_text(encoding="utf-8"),
    }
    if how.target == "gguf":
        found["Modelfile"] = modelfile(variant.tokenizer, how.context, variant.decoding)
    for name, text in found.items():
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
