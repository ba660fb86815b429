"""Depth: whole decoder blocks left out."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from torch import nn
from transformers import PreTrainedConfig

from workbench.core.errors import InvalidInput
from workbench.core.progress import Progress
from workbench.layers.calibration import statistics
from workbench.models import sharing
from workbench.models.blocks import POSITIONS, conform, decoder_blocks
from workbench.step import Forecast, Step
from workbench.tasks.task import Task, Text
from workbench.variant import Variant

if TYPE_CHECKING:
    import pandas


class DropBlocks(Step):
    """Leaves out the decoder blocks that change their input least.

    A block adds to what flows through it. Where its output points almost where its input did, the answer hardly needs
    it. Speed and size improve in proportion on every device, and the key-value cache shrinks too. Quality falls
    quickly on small models; a short fine-tuning or distillation afterwards wins much of it back.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2403.03853"
    needs_data: ClassVar[bool] = True
    share: float = Field(
        default=0.1,
        ge=0.0,
        le=0.9,
        description="Share of the blocks left out, rounded to whole blocks: at least one, and never all.",
    )
    order: Literal["influence", "last"] = Field(
        default="influence",
        description="Which first: those of least influence on the task's calibration data, or the deepest but the "
        "final one, which works only with fine-tuning afterwards.",
    )

    def apply(self, variant: Variant, task: Task | Text | None, progress: Progress) -> Variant:
        """Take the blocks out of the list; those that stay keep their tensors, packed ones too."""
        path, blocks = decoder_blocks(variant.model)
        count = self._count(variant, len(blocks))
        if not count:
            return variant.derive(self)
        influence = statistics(variant, task, progress).influence if self.order == "influence" else ()
        kept = without(len(blocks), count, influence)
        model = sharing.share(variant.model)
        own = model.get_submodule(path)
        assert isinstance(own, nn.ModuleList)
        for index in sorted(set(range(len(blocks))) - set(kept), reverse=True):
            del own[index]
        shorten(model.config, kept, len(blocks))
        conform(model, POSITIONS)
        progress.check()
        return variant.derive(self, model)

    def forecast(self, variant: Variant) -> Forecast:
        """Bytes as if all blocks were equally large; the time depends on whether calibration was done before."""
        _, blocks = decoder_blocks(variant.model)
        count = self._count(variant, len(blocks))
        left = variant.total_bytes - sharing.total_bytes(blocks) * count / len(blocks)
        calibrates = count and self.order == "influence"
        return Forecast(owned_bytes=0, weight_bytes=round(left), seconds=None if calibrates else 0.0)

    def ranking(
        self, variant: Variant, task: Task | Text | None, progress: Progress | None = None
    ) -> "pandas.DataFrame":
        """Every block's influence on the calibration data, and whether this step leaves it out.

        Returns:
            One row a block, in order: ``block``, ``influence`` (1 - mean cosine of input and output), ``dropped``.

        Raises:
            InvalidInput: there are no calibration data, or the variant is quantized.
        """
        import pandas

        influence = statistics(variant, task, progress or Progress()).influence
        count = self._count(variant, len(influence))
        kept = without(len(influence), count, influence if self.order == "influence" else ())
        blocks = range(len(influence))
        return pandas.DataFrame({"block": blocks, "influence": influence, "dropped": [i not in kept for i in blocks]})

    def _count(self, variant: Variant, blocks: int) -> int:
        """How many blocks go."""
        if not self.share:
            return 0
        if blocks < 2:
            raise InvalidInput(f"'{variant.name}' has a single decoder block: none can be left out.")
        return min(blocks - 1, max(1, round(self.share * blocks)))


def without(blocks: int, count: int, influence: tuple[float, ...] = ()) -> list[int]:
    """Indices of the blocks that stay when `count` go: those of least influence, or without it the deepest.

    The final block stays in the latter case: it turns what the others made into a prediction (Gromov et al., "The
    Unreasonable Ineffectiveness of the Deeper Layers", 2024).
    """
    order = sorted(range(blocks), key=influence.__getitem__) if influence else range(blocks - 2, -1, -1)
    return sorted(set(range(blocks)) - set(order[:count]))


def shorten(config: PreTrainedConfig, kept: list[int], blocks: int) -> None:
    """Make a configuration say that only these of its blocks are left, with every list that has an entry a block."""
    text = config.get_text_config()
    for name, value in list(vars(text).items()):
        if not isinstance(value, list) or not any(part in name for part in ("layer", "block", "attn")):
            continue
        if len(value) == blocks:
            setattr(text, name, [value[index] for index in kept])
        elif value and all(type(each) is int and 0 <= each < blocks for each in value):  # numbers of blocks
            setattr(text, name, [kept.index(each) for each in value if each in kept])
    text.num_hidden_layers = len(kept)
