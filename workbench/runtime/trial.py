"""How an architecture must be run: found by trying a few tokens against the model run without a cache."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from inspect import signature
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from workbench.core import files
from workbench.core.device import device_failed
from workbench.core.errors import InvalidInput, OutOfMemory, first_line
from workbench.core.remembered import recall, remember
from workbench.models import sharing
from workbench.models.packed import Packed
from workbench.runtime import lean
from workbench.runtime.forward import using
from workbench.runtime.kvcache import is_plain, new_cache
from workbench.runtime.prefix import SHORTEST, Prefix
from workbench.runtime.rows import STATES, Rows, Way
from workbench.runtime.slots import Slots

LONG, SHORT = 22, 17  # tokens of the two rows that are tried
ALONE, TOGETHER = 5, 2  # tokens after the prompt, read one by one; a convolution forgets from the fourth on
ROUNDING = {torch.float32: 5e-4}  # of logits, relative; below what a lost state costs even with random weights
COARSE = 0.1  # in 16 bits, or with layers that round what they are fed

_found: dict[str, Way] = {}
_known: "WeakKeyDictionary[PreTrainedModel, Way]" = WeakKeyDictionary()


def way_of(model: PreTrainedModel) -> Way:
    """How a model is run: tried once for all models of its architecture and kind of configuration, and remembered.

    Raises:
        InvalidInput: what it says of a token depends on later ones, so that it cannot write; or it cannot be run.
        OutOfMemory: the device has too little memory.
    """
    if model not in _known:
        key = architecture(model)
        if key not in _found:
            _found[key] = _remembered(key) or _tried(key, model)
        _known[model] = _found[key]
    return _known[model]


def _tried(key: str, model: PreTrainedModel) -> Way:
    with using("Trying the model"):
        way = _try(model)
    remember("ways", _about(key), asdict(way))
    return way


def _remembered(key: str) -> Way | None:
    try:
        return Way(**recall("ways", _about(key)))
    except TypeError:
        return None


def _about(key: str) -> list[str]:
    """A way is remembered for these versions of the libraries and of what tries it."""
    own = [
        files.sha256(Path(__file__).with_name(f"{name}.py")) for name in ("trial", "rows", "slots", "kvcache", "lean")
    ]
    return [key, torch.__version__, transformers.__version__, *own]


_ran: set[tuple[str, frozenset[str]]] = set()


def check_runs(model: PreTrainedModel, label: str) -> None:
    """Run what a step made on a few tokens, once for all models of its kind.

    Raises:
        InvalidInput: it does not run.
    """
    key = architecture(model), frozenset(type(module).__qualname__ for module in model.modules())
    if key in _ran:
        return
    with using(label):
        try:
            rows = Rows(model, [some_tokens(model, SHORTEST)], way_of(model))
            rows.append(rows.logits().argmax(dim=-1))
            rows.logits()
        except Exception as error:  # an architecture's own
            _let_pass(error)
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise InvalidInput(
                f"{label} makes of this architecture a model that does not run ({reason}): exclude layers, or use "
                "another step."
            ) from None
    _ran.add(key)


def notes(way: Way) -> tuple[str, ...]:
    """What a user should know of the way, in sentences."""
    found = []
    if not way.state:
        found.append(
            "This architecture hands on nothing of the tokens it has read: all of them are read again for every token, "
            "so answers are slow, and the slower the longer the text."
        )
    if not way.padded:
        found.append(
            "This architecture cannot read rows of unequal length side by side: they are read one after another."
        )
    return tuple(found)


def architecture(model: PreTrainedModel) -> str:
    """The architecture, its device, and its configuration without sizes, on which no way depends."""
    config = {name: value for name, value in model.config.to_dict().items() if not name.startswith("_")}
    for name in ("name_or_path", "quantization_config", "architectures", "transformers_version"):
        config.pop(name, None)
    shape = _shape({name: value for name, value in config.items() if not name.endswith(("token_id", "label"))})
    return f"{type(model).__qualname__} {model.device.type} {model.dtype} {json.dumps(shape, sort_keys=True)}"


def _shape(value: Any) -> Any:
    """A setting, its numbers left out and of lists only what is in them."""
    if isinstance(value, dict):
        return {str(name): _shape(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return sorted({json.dumps(_shape(each), sort_keys=True) for each in value})
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "number"
    return value if isinstance(value, str | bool) or value is None else str(value)


def _try(model: PreTrainedModel) -> Way:
    tokens = some_tokens(model, LONG + SHORT)
    rows = [tokens[:LONG], [*tokens[:SHORTEST], *tokens[LONG : LONG + SHORT - SHORTEST]]]
    try:
        wanted = [model(input_ids=torch.tensor([row], device=model.device), use_cache=False).logits[0] for row in rows]
    except Exception as error:  # an architecture's own
        _let_pass(error)
        raise InvalidInput(f"This model cannot be run on text alone: {first_line(error)}.") from None

    def right(way: Way, together: bool) -> bool:
        tried, steps = (rows, TOGETHER) if together else (rows[:1], ALONE)
        return _says(model, way, tried, wanted[: len(tried)], steps)

    alone = next((way for way in _ways(model) if right(way, together=False)), None)
    if alone is None:
        raise InvalidInput(
            "What this model says of a token depends on the tokens after it, so it cannot write a text: load a causal "
            "language model, such as one of those called ...ForCausalLM."
        )
    alone = replace(alone, slots=not alone.own and bool(alone.state) and _fits_slots(model, rows, wanted))
    shares = not alone.own and bool(alone.state) and is_plain(model.config)
    ways = [replace(alone, prefix=shares), replace(alone, prefix=False)][0 if shares else 1 :]
    way = next((way for way in ways if right(way, together=True)), replace(alone, padded=False, prefix=False))
    return replace(way, lean=_fits_lean(model, way, rows, wanted))


def _ways(model: PreTrainedModel) -> Iterator[Way]:
    """From the quickest to the surest."""
    names = [name for name in STATES if name in signature(model.forward).parameters]
    if STATES[0] in names:
        yield Way(STATES[0], prefix=False)
        yield Way(STATES[0], positions=True, prefix=False)
    for name in names:
        yield Way(name, own=True, prefix=False)
    yield Way("", prefix=False)


def _fits_slots(model: PreTrainedModel, rows: Sequence[Sequence[int]], wanted: Sequence[Tensor]) -> bool:
    """Whether rows of unequal length, put in place one after another, get the logits that they get when read whole."""
    errors = []
    try:
        slots = Slots(model, len(rows), LONG)
        for row in rows:
            cache = new_cache(model.config)
            read = torch.tensor([row[:-ALONE]], device=model.device)
            model(input_ids=read, past_key_values=cache, use_cache=True)
            slots.put(cache, 0, len(row) - ALONE)
        for step in range(-ALONE, 0):
            tokens = torch.tensor([[row[step]] for row in rows], device=model.device)
            for got, want in zip(slots.logits(tokens)[:, -1].float(), wanted, strict=True):
                errors.append(_error(got, want[step].float()))
    except Exception as error:  # an architecture that cannot be run so says it in an error of its own
        _let_pass(error)
        return False
    return sorted(errors)[len(errors) // 2] < _tolerance(model)


def _fits_lean(model: PreTrainedModel, way: Way, rows: Sequence[Sequence[int]], wanted: Sequence[Tensor]) -> bool:
    """Whether a lean decoder says the same, in every way that it will be asked in."""
    if not (way.padded and way.prefix and way.slots) or not lean.fits(model):
        return False
    shared = sharing.share(model)
    lean.lean(shared)
    return (
        _says(shared, replace(way, prefix=False), rows[:1], wanted[:1], ALONE)
        and _says(shared, way, rows, wanted, TOGETHER)
        and _fits_slots(shared, rows, wanted)
    )


def _error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm().clamp(min=1e-30))


def _says(
    model: PreTrainedModel, way: Way, rows: Sequence[Sequence[int]], wanted: Sequence[Tensor], steps: int
) -> bool:
    """Whether rows continued in a way get the logits that they get when read whole."""
    prompts = [list(row[:-steps]) for row in rows]
    errors = []
    try:
        prefix = Prefix(model, prompts[0][:SHORTEST]) if way.prefix else None
        going = Rows(model, [prompt[SHORTEST if prefix else 0 :] for prompt in prompts], way, prefix)
        for step in range(steps + 1):
            for got, want in zip(going.logits().float(), wanted, strict=True):
                errors.append(_error(got, want[step - steps - 1].float()))
            going.append(torch.tensor([row[min(step - steps, -1)] for row in rows], device=model.device))
    except Exception as error:  # an architecture that cannot be run so says it in an error of its own
        _let_pass(error)
        return False
    # The median: where a token is routed to experts, rounding alone may turn a single one over.
    return sorted(errors)[len(errors) // 2] < _tolerance(model)


def _let_pass(error: Exception) -> None:
    """Too little memory, or a device that failed, says nothing about an architecture."""
    if isinstance(error, OutOfMemory) or device_failed(error):
        raise error


def _tolerance(model: PreTrainedModel) -> float:
    if any(isinstance(module, Packed) for module in model.modules()):
        return COARSE
    return ROUNDING.get(model.dtype, COARSE)


def some_tokens(model: PreTrainedModel, count: int) -> list[int]:
    """Different ordinary tokens, as far as the configuration tells: none that begins or ends a text or is an image."""
    config = model.config
    settings = {**config.to_dict(), **config.get_text_config().to_dict()}
    named = {value for name, value in settings.items() if "token" in name and isinstance(value, int)}
    rows = config.get_text_config().vocab_size
    free = [token for token in range(min(rows, 1000)) if token not in named] or list(range(rows))
    return random.Random(0).choices(free, k=count)
