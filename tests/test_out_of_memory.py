"""Memory that runs out in any use of a model: one sentence, in code and in the panel, and nothing has changed."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from screen import TIMEOUT
from test_contract import hashes
from torch import nn

import workbench as wb
from widgets import Bench
from widgets.tools.preview import Live
from widgets.tools.question import Asked
from widgets.tools.sensitivity import Layers
from workbench.analysis.preview import preview
from workbench.answering.request import Request
from workbench.core.errors import OutOfMemory
from workbench.measurement import latency, memory, scores
from workbench.measurement.likelihood import likelihoods, task_spans
from workbench.models.blocks import decoder_blocks
from workbench.steps import context, distil, finetune, prompt, prune, quantize
from workbench.tasks.task import Example

ERRORS: dict[str, Callable[[], BaseException]] = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total ..."),
    "cpu": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:131] DefaultCPUAllocator: can't allocate memory: you"),
}
LONG = Example(id="long", prompt="Who?", answer="He.", context="The ferry has twelve seats, and one is taken. " * 3)


class Fault:
    """Fails when a decoder block of a model, or of any copy of it, is run, in any thread, once armed.

    Attributes:
        waits: blocks that are run first.
    """

    def __init__(self, model: nn.Module) -> None:
        self.error: Callable[[], BaseException] | None = None
        self.waits, self.met = 0, 0
        for block in decoder_blocks(model)[1]:
            block.register_forward_pre_hook(self._forward)

    def __deepcopy__(self, memo: object) -> "Fault":
        return self  # copies of the model meet the same fault

    def _forward(self, *_: Any) -> None:
        if self.error is None:
            return
        self.waits -= 1
        if self.waits < 0:
            self.met += 1
            raise self.error()


@pytest.fixture
def fault(base: wb.Variant) -> Iterator[Fault]:
    made = Fault(base.model)
    yield made
    made.error = None


def student(base: wb.Variant, task: wb.Task) -> wb.Variant:
    return base.apply(prune.DropBlocks(share=0.5, order="last"), task)


USES: dict[str, Callable[[wb.Variant, wb.Task], object]] = {
    "stream": lambda base, task: list(base.stream("Rain?", max_new_tokens=3)),
    "samples": lambda base, task: base.apply(prompt.SelfConsistency(answers=3)).generate("Rain?", max_new_tokens=3),
    "answers": lambda base, task: scores.generate_answers(base, task, task.test),
    "timing": lambda base, task: latency.time_request(base, "Rain?", 3),
    "memory": lambda base, task: memory.peak_memory(base, "Rain?", 3),
    "likelihood": lambda base, task: likelihoods([base], [task_spans(base, task)]),
    "comparison": lambda base, task: wb.compare([base], task, rounds=2, new_tokens=2, store=False),
    "calibration": lambda base, task: base.apply(prune.Wanda(), task),
    "calibration, sequential": lambda base, task: base.apply(quantize.GPTQ(sequential=True), task),
    "sensitivity": lambda base, task: wb.sensitivity(base, task, quantize.RTN),
    "preview": lambda base, task: preview(base, quantize.RTN(), task),
    "compression": lambda base, task: base.apply(context.Compress()).encode(Request.example(task, LONG)),
    "training": lambda base, task: base.apply(finetune.LoRA(epochs=1.0), task),
    "training of all weights": lambda base, task: base.apply(finetune.Full(epochs=1.0), task),
    "distillation": lambda base, task: student(base, task).apply(distil.ForwardKL(epochs=1.0), task),
    "distillation from answers": lambda base, task: student(base, task).apply(distil.SequenceLevel(epochs=1.0), task),
}
TOGETHER = ("samples", "answers")  # fewer of them are tried then


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("waits", [0, 2])
@pytest.mark.parametrize("use", USES)
def test_in_code(use: str, waits: int, kind: str, base: wb.Variant, tiny_task: wb.Task, fault: Fault) -> None:
    before, said = hashes(base), base.generate("Rain?", max_new_tokens=4).token_ids
    fault.error, fault.waits = ERRORS[kind], waits
    with pytest.raises(OutOfMemory) as caught:
        USES[use](base, tiny_task)
    message = str(caught.value)
    assert fault.met == 1 or use in TOGETHER, "after the first failure nothing goes on"
    assert "ran out of memory" in message
    assert message.endswith("close a variant or use a smaller model; nothing was changed.")
    assert "\n" not in message
    fault.error = None
    assert hashes(base) == before
    assert base.generate("Rain?", max_new_tokens=4).token_ids == said
    USES[use](base, tiny_task)  # with memory again, it works


def ask(bench: Bench) -> str:
    bench.chat.prompt.value = "Rain?"
    bench.chat.send.click()
    assert bench.wait(TIMEOUT)
    return bench.chat.message.value


def compare(bench: Bench) -> str:
    bench.compare.button.click()
    assert bench.wait(TIMEOUT)
    return bench.compare.message.value


def apply(family: str, step: wb.Step) -> Callable[[Bench], str]:
    def click(bench: Bench) -> str:
        panel = bench.panel(family)
        panel.set(step)
        panel.button.click()
        assert bench.wait(TIMEOUT)
        return panel.message.value

    return click


def try_out(bench: Bench) -> str:
    panel = bench.panel("quantize")
    panel.set(quantize.RTN())
    panel.tools[Live].switch.value = False
    panel.tools[Live].switch.value = True
    assert bench.wait(TIMEOUT)
    return panel.tools[Live].view.value


def measure(bench: Bench) -> str:
    panel = bench.panel("quantize")
    panel.set(quantize.RTN())
    panel.tools[Layers].button.click()
    assert bench.wait(TIMEOUT)
    return panel.tools[Layers].message.value


def score(bench: Bench) -> str:
    panel = bench.panel("prompt")
    panel.tools[Asked].score.click()
    assert bench.wait(TIMEOUT)
    return panel.tools[Asked].message.value


CLICKS: dict[str, Callable[[Bench], str]] = {
    "chat": ask,
    "compare": compare,
    "prune": apply("prune", prune.Wanda()),
    "finetune": apply("finetune", finetune.LoRA(epochs=1.0)),
    "live preview": try_out,
    "sensitivity": measure,
    "score": score,
}


@pytest.mark.parametrize("what", CLICKS)
def test_in_a_panel(what: str, bench: Bench, fault: Fault) -> None:
    fault.error = ERRORS["cuda"]
    shown = CLICKS[what](bench)
    assert fault.met >= 1
    assert "ran out of memory" in shown
    assert "nothing was changed" in shown
    assert "Details" not in shown, "a sentence, not a traceback"
    assert list(bench.variants) == [bench.base.name]
    fault.error = None
    assert "ran out of memory" not in CLICKS[what](bench)
