"""What people do with models, on a GPU: compare, look closer, ask, train and resume, export, and use the bench."""

from pathlib import Path
from typing import Any

import ipywidgets as ipw
import pytest
import torch
from screen import TIMEOUT, everything
from transformers import AutoModelForCausalLM

import workbench as wb
from widgets import Bench
from workbench.analysis.preview import preview
from workbench.measurement.scores import generate_answers
from workbench.steps import context, distil, finetune, output, prompt, prune, quantize, retrieve
from workbench.training import checkpoint

pytestmark = pytest.mark.usefixtures("gpu")
IDS = torch.arange(3, 40)[None]


@pytest.fixture
def base(folders: dict[str, Path]) -> wb.Variant:
    """A tiny Llama as it is usual there."""
    return wb.load(folders["llama"], device="cuda")


def test_the_usual_device_and_type(folders: dict[str, Path], base: wb.Variant) -> None:
    found = wb.load(folders["llama"])
    assert (found.device.type, found.dtype) == ("cuda", base.dtype)


def test_answers_are_those_of_the_cpu(folders: dict[str, Path], tiny_task: wb.Task) -> None:
    """In a padded batch, greedy and drawn."""
    said = []
    for device in ("cpu", "cuda"):
        variant = wb.load(folders["llama"], device=device, dtype="float32")
        answers = generate_answers(variant, tiny_task, tiny_task.test)
        drawn = variant.generate("Rain", max_new_tokens=6, temperature=1.0, top_p=0.9, seed=3)
        said.append([[each.token_ids for each in answers], drawn.token_ids])
    assert said[0] == said[1]


def test_comparing_and_looking_closer(base: wb.Variant, tiny_task: wb.Task, tiny_text: wb.Text) -> None:
    thin, rounded = base.apply(prune.Wanda(), tiny_text), base.apply(quantize.RTN())
    for data in (tiny_task, tiny_text):  # a score and a perplexity
        result = wb.compare([base, rounded], data, rounds=2, new_tokens=3, store=False)
        assert {"ttft", "peak_memory", "weight_bytes"} <= set(result.runs[1].estimates)
        assert result.runs[1].environment["device_type"] == "cuda"
    assert wb.diff(base, thin).figure().data
    for step in (prune.Wanda, quantize.RTN):
        assert wb.sensitivity(base, tiny_text, step, windows=2, draws=2).layers
    for step in (prune.Magnitude(), quantize.RTN(bits=3), quantize.AWQ(), quantize.FP8()):
        assert preview(base, step, tiny_task).text


@pytest.mark.parametrize(
    "step",
    [
        prompt.Constrain(form="choices", rule="yes\nno"),
        prompt.SelfConsistency(answers=3),
        retrieve.Retrieve(method="dense", cite=True),
        context.Compress(ratio=0.5),
        context.Filter(keep=0.5),
        output.Stop(floor=0.2, repeats=2, json_value=True),
        prune.Vocabulary(keep=350),
    ],
    ids=lambda step: step.label,
)
def test_requests(step: wb.Step, base: wb.Variant, tiny_task: wb.Task) -> None:
    child = base.apply(step, tiny_task)
    assert child.generate("Twelve seats. The tide comes in.\n\nHow many seats?", max_new_tokens=6).token_ids
    assert "score" in wb.measure(child, tiny_task, rounds=1, new_tokens=3, examples=3).estimates


def test_a_training_step_waits_once(gpu: Any, base: wb.Variant, tiny_text: wb.Text) -> None:
    if gpu is None:
        pytest.skip("A real GPU does not count.")
    step = finetune.LoRA(epochs=1, batch_size=4)
    with gpu.watched() as seen:
        steps = len(wb.curve(base.apply(step, tiny_text)).points)
    waits = [count for line, count in seen.waits.items() if line.startswith("training/trainer.py")]
    assert len(waits) == 2
    assert steps in waits, "the other is that of evaluations"


class Killed(BaseException):
    """Ends a training as the end of its process would."""


@pytest.mark.parametrize("step", [finetune.LoRA, finetune.Full, finetune.QLoRA], ids=lambda step: step.__name__)
def test_a_killed_training_is_taken_up(
    step: type[finetune.LoRA], base: wb.Variant, tiny_task: wb.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = step(epochs=1, batch_size=4) if step is finetune.Full else step(epochs=1, batch_size=4, dropout=0.1)
    whole, write = base.apply(made, tiny_task), checkpoint.write
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    with monkeypatch.context() as patch:

        def killed(*args: Any) -> None:
            write(*args)
            raise Killed

        patch.setattr(checkpoint, "SECONDS", 0.0)
        patch.setattr(checkpoint, "write", killed)
        patch.setattr(checkpoint, "remove", lambda _: None)
        with pytest.raises(Killed):
            base.apply(made, tiny_task)
    resumed = base.apply(made, tiny_task)
    assert "Taken up again at step 1" in wb.curve(resumed).notes[-1]
    assert [each.loss for each in wb.curve(resumed).points] == [each.loss for each in wb.curve(whole).points]


def test_distilling_and_its_teacher_on_disk(base: wb.Variant, tiny_task: wb.Task) -> None:
    student = base.apply(prune.DropBlocks(share=0.5, order="last"), tiny_task)
    for step in (distil.ForwardKL(on_policy=0.5), distil.ForwardKL(top_k=0, checkpointing=True), distil.HiddenStates()):
        assert wb.curve(student.apply(step, tiny_task)).points


@pytest.mark.parametrize(
    "step",
    [quantize.NF4(), quantize.LLMInt8(), quantize.Int8(), quantize.RTN(), quantize.FP8(), prune.Magnitude()],
    ids=lambda step: step.label,
)
def test_plain_transformers_reads_exports_there(step: wb.Step, gpu: Any, base: wb.Variant, tmp_path: Path) -> None:
    child = base.apply(step)
    folder = child.save(tmp_path / "export")
    # What bitsandbytes makes of a tensor for transformers cannot be made of a pretended one.
    place = "cpu" if gpu is not None and isinstance(step, quantize.NF4 | quantize.LLMInt8) else "cuda"
    plain = AutoModelForCausalLM.from_pretrained(folder, device_map={"": place}, dtype=base.dtype).eval()
    with torch.no_grad():
        ours = child.model(IDS.cuda()).logits.float().cpu().log_softmax(-1)
        theirs = plain(IDS.to(place)).logits.float().cpu().log_softmax(-1)
    assert float((ours.exp() * (ours - theirs)).sum(-1).mean()) < 0.05


def test_the_bench(base: wb.Variant, tiny_task: wb.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its worker is another thread."""
    monkeypatch.chdir(tmp_path)
    bench = Bench(base, tiny_task)
    try:
        for family, step in {
            "quantize": quantize.AWQ(),
            "prune": prune.Wanda(),
            "finetune": finetune.LoRA(epochs=1.0),
            "prompt": prompt.FewShot(examples=2),
        }.items():
            panel = bench.panel(family)
            panel.set(step)
            panel.button.click()
            assert bench.wait(TIMEOUT)
        assert len(bench.variants) == 5
        bench.chat.prompt.value = "What is a lobster?"
        bench.chat.send.click()
        bench.compare.rounds.value = bench.compare.rounds.low
        bench.compare.button.click()
        assert bench.wait(TIMEOUT)
        shown = " ".join(each.value for each in everything(bench.widget) if isinstance(each, ipw.HTML))
        assert "Details" not in shown, "no failure that nobody foresaw"
        assert "Pretended GPU" in shown or torch.cuda.get_device_name() in shown
    finally:
        bench.close()
