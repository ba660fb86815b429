"""What a training needs in memory, from the sizes of the model: to be refused before it runs out."""

from typing import Any

from workbench.core import units
from workbench.core.errors import OutOfMemory
from workbench.runtime.room import free_bytes
from workbench.training.settings import TrainingKnobs
from workbench.variant import Variant

TOKENS = 256  # of an example, where nobody says how long they are
WIDTH = 4  # bytes of what is kept for the way back: float32


def needed(variant: Variant, knobs: TrainingKnobs, tokens: int) -> dict[str, int]:
    """Bytes by what for.

    What is kept for the way back is counted as Korthikanti et al., "Reducing Activation Recomputation in Large
    Transformer Models", 2022, https://arxiv.org/abs/2205.05198, count it, without scores of attention, which a fused
    kernel does not keep: about ten numbers of a block's width and four of its inner layer a token.

    Args:
        variant: the parent.
        knobs: of the training.
        tokens: of an example.
    """
    hidden, inner, layers, vocabulary = sizes(variant.model.config)
    rows = -(-knobs.batch_size // knobs.accumulation) * tokens
    block = (10 * hidden + 4 * inner) * WIDTH
    kept = layers * hidden * WIDTH + block if knobs.checkpointing else layers * block
    trained = knobs.trained_bytes(variant)
    return {
        "weights": knobs.forecast(variant).owned_bytes,
        "gradients": trained,
        "optimizer": 2 * trained,
        "best weights": trained if knobs.keep == "best" else 0,
        "states": rows * (kept + 2 * vocabulary * WIDTH),
    }


def check_room(variant: Variant, knobs: TrainingKnobs) -> None:
    """Refuse a training that cannot fit.

    Only what is certain counts: weights, gradients and the optimizer's states.

    Raises:
        OutOfMemory: they are larger than what is free.
    """
    parts = needed(variant, knobs, TOKENS)
    certain, free = parts["weights"] + parts["gradients"] + parts["optimizer"], free_bytes(variant.device).free
    if certain > free:
        raise OutOfMemory(
            f"{knobs.label} needs {units.size(certain)} for the trained weights, their gradients and the optimizer, "
            f"and {variant.device} has {units.size(free)} free: train an adapter such as finetune.LoRA(), or close a "
            "variant; nothing was changed."
        )


def sizes(config: Any) -> tuple[int, int, int, int]:
    """Width, inner width, blocks and vocabulary of a model, from its configuration."""
    text = config.get_text_config()

    def number(*names: str) -> int:
        found = next((getattr(text, name) for name in names if type(getattr(text, name, None)) is int), 0)
        return int(found)

    hidden = number("hidden_size", "n_embd", "d_model")
    inner = number("intermediate_size", "n_inner", "ffn_dim", "d_ff") or 4 * hidden
    return hidden, inner, number("num_hidden_layers", "n_layer"), number("vocab_size")
