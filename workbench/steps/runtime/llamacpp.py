"""Running a variant in llama.cpp."""

from typing import ClassVar

from pydantic import Field

from workbench.core.errors import InvalidInput
from workbench.core.progress import Progress
from workbench.models import sharing
from workbench.models.interchange import gguf
from workbench.runtime import llamacpp
from workbench.runtime.engine import Eager
from workbench.runtime.llamacpp import Form
from workbench.step import Forecast, Step
from workbench.tasks.task import Task, Text
from workbench.variant import Variant

SIZES = {"F32": 4.0, "F16": 2.0, "BF16": 2.0, "Q8_0": 34 / 32, "Q4_0": 18 / 32}  # bytes a weight


class LlamaCpp(Step):
    """Runs the variant in llama.cpp: the same weights in a file that C++ code made for CPUs decodes from.

    It starts no operation of Python's for each layer and reads 8 and 4 bits without unpacking them to memory, so small
    models answer several times faster on a CPU. Codes of 8 and 4 bits go over as they are where its layout allows
    (groups of 32, or multiples); NF4, FP4 and float8 are rounded once more, to 8 bits, and the note says so. It rounds
    activations to 8 bits beside codes, so answers can differ where two tokens are nearly as likely. Adapters are fused
    into the file. It does not help on a GPU, nor with long prompts, which torch reads as fast; it needs as much memory
    again as the file has.
    """

    paper: ClassVar[str] = "https://github.com/ggml-org/llama.cpp"
    contends: ClassVar[bool] = True
    form: Form = Field(
        default="as it is",
        description="What weights are written in; as they are keeps codes and the model's own type. With Q4_0 the "
        "embedding and the head stay in Q8_0.",
    )
    threads: int = Field(default=0, ge=0, le=1024, description="Threads of the CPU; 0 tries how many are fastest.")

    def apply(self, variant: Variant, task: Task | Text | None, progress: Progress) -> Variant:
        """Write the file and open it.

        Raises:
            InvalidInput: llama.cpp does not know the architecture, or the variant is run in another way already.
            NotAvailable: xllamacpp is not installed.
        """
        if variant.engine != Eager():
            raise InvalidInput(f"'{variant.name}' is run by {variant.engine!r}: apply {self.label} to its parent.")
        model = sharing.shallow(variant.model)  # what llama.cpp holds goes with this variant, not with its parent
        engine = llamacpp.LlamaCpp(form=self.form, threads=self.threads).fitted(model, variant.tokenizer, progress)
        return variant.derive(self, model, engine=engine)

    def forecast(self, variant: Variant) -> Forecast:
        """The file is held beside the variant's own tensors."""
        gguf.check(variant.model, variant.tokenizer)
        held = variant.total_bytes
        size = held if self.form == "as it is" else round(SIZES[self.form] * sharing.weight_count(variant.model))
        return Forecast(owned_bytes=size, weight_bytes=held, seconds=(held + size) / 5e8)
