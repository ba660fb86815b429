"""Who answers while ranks hold the weights: all of a variant but these, and the folder that they are read from."""

import copy
import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from workbench.answering.stage import Stage
from workbench.core import files
from workbench.core.device import resolve_device, resolve_dtype
from workbench.core.errors import InvalidInput, NotAvailable
from workbench.models import adapter_files, adapters, export, pretrained
from workbench.models.identity import identity
from workbench.recipe import from_record
from workbench.runtime import together
from workbench.runtime.engine import Eager
from workbench.variant import Variant

KEPT_BYTES = 32 << 30  # of all models written for ranks; what was used longest ago goes first


def speaker_of(source: Variant | str | Path, device: str | None = None) -> tuple[Variant, torch.device]:
    """Who answers, with the outline of its model in place of the weights; and where its ranks run.

    Args:
        source: a variant, or a folder.
        device: where the ranks run, unless where the variant is or would be loaded.

    Raises:
        InvalidInput: its layers are packed or have adapters, it is no causal language model, or there is no such
            device.
        NotAvailable: there is no such folder.
    """
    if not isinstance(source, Variant):
        place = resolve_device(device)
        return _of_folder(files.home(source), place), place
    adapters.check_dense(source.model, source.name, "only dense weights can be shared, so shard its dense parent")
    outline = outline_of(source.model.config, source.dtype, source.model.generation_config)
    return _run_by_ranks(replace(source, model=outline)), resolve_device(device) if device else source.device


def _run_by_ranks(variant: Variant) -> Variant:
    """A variant without what ranks cannot do, which its notes say."""
    notes = list(variant.notes)
    if variant.engine != Eager():
        notes.append(f"The ranks run it in the plain way, without {variant.engine!r}.")
    stages = tuple(each for each in variant.stages if type(each).known is Stage.known)
    left = [type(each).__name__ for each in variant.stages if each not in stages]
    notes += [f"{each} is left out: nothing is kept of answers." for each in left]
    return replace(variant, stages=stages, notes=tuple(notes), engine=together.RANKS)


def _of_folder(folder: Path, device: torch.device) -> Variant:
    if not files.is_kind(folder, Path.is_dir):
        raise NotAvailable(
            f"There is no model folder '{str(folder)[:200]}': check the path, or shard a loaded variant."
        )
    record = export.read_manifest(folder) if export.is_export(folder) else {}
    made = from_record(record)
    place = str(folder)
    with pretrained.refusing(place), pretrained.quietly():
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        tokenizer = pretrained.read_tokenizer(place)
        if record.get("packed") or getattr(config, "quantization_config", None):
            raise InvalidInput(f"'{place}' is quantized: only dense weights can be shared, so shard its dense parent.")
        if (folder / adapter_files.FOLDER).is_dir():
            raise InvalidInput(f"'{place}' has an adapter: load it, apply finetune.Fuse() and shard that.")
        kind = getattr(torch, record["dtype"]) if record else resolve_dtype(None, device)
        settings = GenerationConfig.from_pretrained(folder) if (folder / "generation_config.json").exists() else None
        outline = outline_of(config, kind, settings)
    name = str(record.get("name", folder.name))
    return _run_by_ranks(Variant(outline, tokenizer, name, place, notes=tuple(record.get("notes", ())), **made))


def outline_of(config: Any, dtype: torch.dtype, settings: GenerationConfig | None) -> PreTrainedModel:
    """A model of a configuration, its tensors without memory."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            copy.deepcopy(config), dtype=dtype, trust_remote_code=False
        )
    if settings is not None:
        model.generation_config = settings
    model.eval()
    return model


def written(variant: Variant) -> Path:
    """The variant's weights as an export in the cache, by content."""
    folder = files.cache_folder() / "sharded" / identity(variant.model)[:40]
    if not export.is_export(folder):
        try:
            folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise files.write_refused(folder, error) from None
        variant.save(folder, overwrite=True)
    with suppress(OSError):
        os.utime(folder)
        found = sorted(filter(export.is_export, folder.parent.iterdir()), key=lambda each: -each.stat().st_mtime)
        sizes = [sum(file.stat().st_size for file in each.rglob("*")) for each in found]
        for at, each in enumerate(found):
            if each != folder and sum(sizes[: at + 1]) > KEPT_BYTES:
                shutil.rmtree(each, ignore_errors=True)
    return folder
