"""Folders as peft saves them: low-rank layers stay beside the model, whatever else was trained becomes part of it."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import file_exists, hf_hub_download, try_to_load_from_cache
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from workbench.core.errors import InvalidInput, WorkbenchError, first_line
from workbench.core.files import is_kind
from workbench.models import adapter_files, adapters, sharing
from workbench.models.packed import Conv1D, Packed, PackedLinear, is_adapted, replace_module
from workbench.models.pretrained import check_finite

CONFIG = "adapter_config.json"
FETCHED = (adapter_files.TENSORS, "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
PROBES = 16  # tokens on which the model is compared before and after
MOST, IN_HALVES = 5e-3, 0.05  # of the logits' size, that adding in may move them; the latter where 16 bits round it


def find(source: str, local: bool) -> Path | None:
    """The folder of an adapter that is here, or is fetched from the hub; None if the source is something else."""
    if local:
        return Path(source) if is_kind(Path(source) / CONFIG, Path.is_file) else None
    if isinstance(try_to_load_from_cache(source, "config.json"), str):  # a model, and perhaps there is no network
        return None
    cached = isinstance(try_to_load_from_cache(source, CONFIG), str)
    if not cached and not file_exists(source, CONFIG):
        return None
    for name in FETCHED:
        cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    return Path(hf_hub_download(source, CONFIG)).parent


def base_of(folder: Path) -> str:
    """The model that an adapter was trained on: a path, from the adapter's folder if there is one, or a hub id.

    Raises:
        InvalidInput: its configuration is damaged or names none.
    """
    try:
        name = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        raise InvalidInput(f"'{folder / CONFIG}' is damaged: get the adapter again.") from None
    if not isinstance(name, str) or not name:
        raise InvalidInput(
            f"The adapter '{folder}' does not say which model it is for: write it into {CONFIG} as "
            "base_model_name_or_path."
        )
    beside = folder / name
    return str(beside) if is_kind(beside, Path.is_dir) else name


def put_on(model: PreTrainedModel, folder: Path) -> tuple[str, ...]:
    """Give a model that nobody else holds the adapter of a folder; sentences on what became of it.

    LoRA beside linear layers stays an adapter. Other kinds, and modules that were trained as a whole, become part of
    the model; its logits are compared with those that peft gives.

    Raises:
        InvalidInput: the adapter is of a kind that is only known to peft, is not whole, or does not fit the model.
        NotAvailable: peft is not installed.
    """
    peft = adapters.peft_library()
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
        _check(model, config, folder)
        tensors = folder / adapter_files.TENSORS
        if not tensors.is_file():
            raise InvalidInput(f"The adapter '{folder}' has no {adapter_files.TENSORS}: other files are not read.")
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return _settled(model, _wrapped(model, config, folder), folder)
    except (WorkbenchError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # peft fails on what does not fit in many ways
        raise InvalidInput(f"The adapter '{folder}' cannot be put on its model: {_said(error)}.") from None


def _said(error: Exception) -> str:
    """What torch says of shapes that do not fit stands behind its first line."""
    return first_line(ValueError(" ".join(str(error).split()) or type(error).__name__))


def _check(model: PreTrainedModel, config: Any, folder: Path) -> None:
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if config.is_prompt_learning or config.is_adaption_prompt or kind in ("XLORA", "POLY", "SHADOW"):
        raise InvalidInput(
            f"'{folder}' holds an adapter of the kind {kind}, which is no change of the model's weights: only peft "
            "itself runs it."
        )
    if adapters.has_adapter(model):
        raise InvalidInput(f"The model of the adapter '{folder}' has an adapter itself: fuse that one and save it.")
    packed = any(isinstance(module, Packed) for module in model.modules())
    if packed and (kind != "LORA" or config.use_dora or config.init_lora_weights not in (True, False, "gaussian")):
        raise InvalidInput(
            f"'{folder}' holds an adapter that needs the dense weights of its model, which is quantized: name the "
            f"dense one in {CONFIG}."
        )
    if "niter" in str(getattr(config, "init_lora_weights", "")):
        raise InvalidInput(
            f"'{folder}' holds an adapter for a model that was changed by a random decomposition: convert it to plain "
            "LoRA with peft."
        )


def _wrapped(model: PreTrainedModel, config: Any, folder: Path) -> Any:
    """The model as peft makes it, with every tensor of the adapter in its place."""
    _make_room(model, folder)
    if config.peft_type == "LORA":
        adapters.register(config)
    config.inference_mode = True
    wrapped = adapters.peft_library().PeftModel(model, config, adapters.NAME)
    names = getattr(model, "_checkpoint_conversion_mapping", {})
    report = wrapped.load_adapter(str(folder), adapters.NAME, torch_device=str(model.device), key_mapping=names)
    for said, keys in (("lacks", report.missing_keys), ("is for another model: it has", report.unexpected_keys)):
        if keys:
            raise InvalidInput(f"The adapter '{folder}' {said} the weight '{sorted(keys)[0]}'.")
    check_finite(wrapped)
    return wrapped.eval()


def _make_room(model: PreTrainedModel, folder: Path) -> None:
    """As many embeddings as the adapter brings, where tokens were added before it was trained."""
    tensors = adapter_files.shapes(folder)
    embedding: Any = model.get_input_embeddings()
    for path, module in model.named_modules():
        shape = tensors.get(f"{adapter_files.PREFIX}{path}.weight", ())
        if module is embedding and shape and shape[0] > embedding.weight.shape[0]:
            model.resize_token_embeddings(shape[0], mean_resizing=False)


def _settled(model: PreTrainedModel, wrapped: Any, folder: Path) -> tuple[str, ...]:
    """Leave beside the model what `adapters` knows, add in the rest, and see that nothing was lost."""
    config = wrapped.peft_config[adapters.NAME]
    ids = _probes(model, config)
    wanted = wrapped(input_ids=ids).logits.float()
    tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    kept = {path for path, module in model.named_modules() if _stays(module)} if config.peft_type == "LORA" else set()
    if kept:
        merged = _merge_others(model, kept)
    else:
        _own_embeddings(model)
        merged = ["everything"]
        wrapped.merge_and_unload(safe_merge=True)
    if tied:
        _tie_again(model)
    sharing.settle_tie(model, model.config)
    if kept:
        model.peft_config = {adapters.NAME: adapter_files.described(model, config)}
    model.eval()
    found = model(input_ids=ids).logits.float()
    exact = model.dtype.itemsize >= 4 and not any(isinstance(module, Packed) for module in model.modules())
    if not (found - wanted).norm() <= (MOST if exact else IN_HALVES) * wanted.norm():
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        raise InvalidInput(f"'{folder}' holds an adapter of the kind {kind} that only peft itself can run.")
    return _notes(config, merged) if merged else ()


def _notes(config: Any, merged: list[str]) -> tuple[str, ...]:
    if merged == ["everything"]:
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        return (f"Its adapter, of the kind {kind}, was added into its weights when it was loaded.",)
    return (f"What its adapter changed besides linear layers ({', '.join(merged)[:120]}) is part of the model now.",)


def _probes(model: PreTrainedModel, config: Any) -> Tensor:
    """Tokens from all over the vocabulary, and those that were trained alone."""
    rows = model.config.get_text_config().vocab_size
    ids = torch.linspace(1, rows - 1, PROBES).long().tolist()
    alone = getattr(config, "trainable_token_indices", None) or getattr(config, "token_indices", None) or []
    lists = alone.values() if isinstance(alone, dict) else [alone]
    ids += [int(each) for listed in lists for each in list(listed)[:PROBES]]
    return torch.tensor([ids], device=model.device)


def _stays(module: nn.Module) -> bool:
    """Whether a module is a linear layer with a plain low-rank adapter or a DoRA."""
    if not is_adapted(module):
        return False
    layer: Any = module
    variant = type(layer.lora_variant.get(adapters.NAME)).__name__
    return (
        isinstance(layer.base_layer, nn.Linear | Conv1D | PackedLinear)
        and adapters.NAME in layer.lora_A
        and (variant == "NoneType" or variant.startswith("Dora"))
        and not layer.lora_bias[adapters.NAME]
    )


def _merge_others(model: PreTrainedModel, kept: set[str]) -> list[str]:
    """Put every other module of peft's own in the place of what it wraps; their names."""
    done: list[str] = []
    for path, module in list(model.named_modules()):
        if path in kept or any(path.startswith(f"{each}.") for each in (*kept, *done)):
            continue
        layer: Any = module
        if hasattr(layer, "unload_and_optionally_merge_module"):
            if hasattr(layer, "token_adapter"):
                _own_weight(layer.token_adapter.get_base_layer())
            plain = layer.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
        elif hasattr(layer, "base_layer"):
            _own_weight(layer.get_base_layer())
            layer.merge(safe_merge=True)
            plain = layer.get_base_layer()
        else:
            continue
        replace_module(model, path, plain)
        done.append(path)
    return done


def _own_embeddings(model: PreTrainedModel) -> None:
    """Break the tie of head and embedding, or what is added to one would change the other."""
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        if module is not None:
            _own_weight(getattr(module, "base_layer", module))


def _own_weight(module: Any) -> None:
    weight = getattr(module, "weight", None)
    if isinstance(weight, nn.Parameter):
        module.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)


def _tie_again(model: PreTrainedModel) -> None:
    """One tensor for head and embedding, if they are still the same."""
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    if head is None or is_adapted(head) or is_adapted(embedding) or head.weight is embedding.weight:
        return
    if torch.equal(head.weight, embedding.weight):
        head.weight = embedding.weight
