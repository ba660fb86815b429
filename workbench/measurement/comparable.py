"""What a comparison of several models can say, known before anything is measured."""

from collections.abc import Sequence

from workbench.measurement.likelihood import same_vocabulary
from workbench.tasks.task import Task, Text
from workbench.variant import Variant


def limits(variants: Sequence[Variant], task: Task | Text) -> tuple[str, ...]:
    """What cannot be compared, or means something else than among variants of one model, in sentences.

    Args:
        variants: the baseline first.
        task: that they would be measured on.
    """
    if not variants:
        return ()
    base, others = variants[0], [each for each in variants[1:] if each.source != variants[0].source]
    strange = [each for each in others if not same_vocabulary(base, each)]
    alike = [each for each in others if each not in strange]
    said = []
    if strange and isinstance(task, Text):
        said.append(
            f"{_named(strange)} and '{base.name}' have different vocabularies: unless both cut '{task.name}' into the "
            "same pieces, they cannot be compared on it, but on questions with answers."
        )
    elif strange:
        said.append(
            f"{_named(strange)} and '{base.name}' have different vocabularies: score, speed and memory can be "
            "compared; perplexity and time a token are each of their own tokens, and there is no divergence."
        )
    if alike:
        said.append(
            f"{_named(alike)} and '{base.name}' are different models with one vocabulary: everything can be compared; "
            "the divergence says how differently they speak, not how well."
        )
    return tuple(said)


def _named(variants: Sequence[Variant]) -> str:
    return ", ".join(f"'{each.name}'" for each in variants)
