"""The training loop: losses and gradients, pauses and ends, and what it says of itself."""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import ARCHITECTURES
from quick import logits, trained

import workbench as wb
from workbench.core.errors import Cancelled, InvalidInput
from workbench.core.progress import Progress
from workbench.models import sharing
from workbench.steps import finetune
from workbench.training.loss import LIKELIHOOD, Lesson, Objective, batch_loss, packs, read
from workbench.training.precision import in_16_bits
from workbench.training.sequences import Sample, lay_out, overlap_note, read_samples
from workbench.training.settings import learning_rate
from workbench.training.step import curve
from workbench.training.trainer import ANSWER

every_model = pytest.mark.parametrize("architecture", ARCHITECTURES)


@every_model
@pytest.mark.parametrize("common", [0, 9])
def test_packing_and_parts_change_no_loss(architecture: str, common: int, load_tiny) -> None:
    """Every sample alone, padded together, or end to end behind what they have in common: the same sum."""
    variant = load_tiny(architecture)
    lengths = (5, 17, 9, 30, 2)
    draw = torch.Generator().manual_seed(0)
    first = torch.randint(3, 300, (common,), generator=draw).tolist()
    samples = [
        Sample(
            (*first, *torch.randint(3, 300, (length,), generator=draw).tolist()), common + 1 + length // 3, str(length)
        )
        for length in lengths
    ]
    alone = 0.0
    for sample in samples:
        with torch.no_grad():
            scores = variant.model(torch.tensor([sample.ids])).logits[0, sample.start - 1 : -1]
        alone += float(F.cross_entropy(scores, torch.tensor(sample.ids[sample.start :]), reduction="sum"))
    assert packs(variant.model)
    for packed in (False, True):
        batch = lay_out(samples, packed, variant.device)
        assert batch.tokens == sum(lengths) + common * len(lengths)
        assert batch.ids.shape == ((1, sum(lengths)) if packed else (len(lengths), max(lengths) + common))
        with torch.no_grad():
            found = float(batch_loss(variant.model, batch, LIKELIHOOD.lesson(batch)))
        assert found == pytest.approx(alone, rel=1e-4)


def test_a_window_of_attention_is_not_packed_over(load_tiny) -> None:
    model = load_tiny("qwen3").model
    assert packs(model)
    model.config.layer_types = ["sliding_attention", "full_attention"]
    model.config.sliding_window = 16
    assert not packs(model)


@every_model
def test_the_gradient_is_that_of_every_sample_by_itself(
    architecture, load_tiny, tiny_task: wb.Task, monkeypatch
) -> None:
    """Packed behind a beginning read once, the head in chunks: against plain forwards and whole logits."""
    variant = load_tiny(architecture)
    samples = read_samples(variant, tiny_task, "train").samples[:4]
    monkeypatch.setattr("workbench.training.loss.CHUNK_LOGITS", {"cpu": 1})
    found = {}
    for way in ("packed", "alone"):
        model = finetune.Full().prepare(variant)
        with torch.enable_grad():
            if way == "packed":
                batch = lay_out(samples, True, variant.device)
                assert batch.common is not None
                batch_loss(model, batch, LIKELIHOOD.lesson(batch)).backward()
            else:
                for sample in samples:
                    scores = model(torch.tensor([sample.ids])).logits[0, sample.start - 1 : -1]
                    F.cross_entropy(scores, torch.tensor(sample.ids[sample.start :]), reduction="sum").backward()
        found[way] = {name: each.grad for name, each in model.named_parameters()}
    for name, gradient in found["alone"].items():
        if gradient is not None:
            assert (found["packed"][name] - gradient).norm() <= 1e-3 * gradient.norm() + 1e-5, name


def test_accumulation_changes_nothing_but_memory(load_tiny, tiny_task: wb.Task) -> None:
    base = load_tiny("llama")
    one, four = (trained(finetune.LoRA, base, tiny_task, precision="float32", accumulation=parts) for parts in (1, 4))
    for a, b in zip(curve(one).points, curve(four).points, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-3)


@every_model
def test_activations_computed_twice_are_the_same(architecture: str, load_tiny, tiny_task: wb.Task, monkeypatch) -> None:
    calls = []
    whole = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr("transformers.modeling_utils.checkpoint", lambda *a, **k: calls.append(1) or whole(*a, **k))
    base = load_tiny(architecture)
    knobs = {"epochs": 1.0, "precision": "float32", "packing": False}  # one layout: the same values drop out
    once, twice = (trained(finetune.LoRA, base, tiny_task, **knobs, checkpointing=each) for each in (False, True))
    assert len(calls) == 2 * len(curve(twice).points), "two blocks a step"
    for a, b in zip(curve(once).points, curve(twice).points, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-4)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in twice.model.modules())


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_learning_rate_rises_and_falls(schedule: str) -> None:
    step = finetune.LoRA(schedule=schedule, warmup=0.2, learning_rate=1.0)
    rates = [learning_rate(step, number, 10) for number in range(10)]
    assert rates[0] == pytest.approx(1 / 3)
    assert max(rates) == rates[2] == 1.0
    assert rates[-1] == (1.0 if schedule == "constant" else min(rates[2:]))


def test_a_loss_that_is_not_a_number_stops_and_says_where(load_tiny, tiny_task: wb.Task, monkeypatch) -> None:
    class _Poisoned(finetune.LoRA):
        def objective(self, variant, samples, progress):
            batches = iter(range(100))

            class Poisoned(Objective):
                def lesson(self, batch):
                    return Lesson(lambda logits, part: logits.sum() * (math.nan if next(batches) == 3 else 0.0))

            return Poisoned()

    base = load_tiny("llama")
    progress = Progress()
    with pytest.raises(InvalidInput, match="not a number after 3 steps on the examples"):
        base.apply(_Poisoned(batch_size=4, epochs=10.0), tiny_task, progress)
    assert len(progress.live.points) == 3


def test_a_cancel_takes_effect_within_a_step(load_tiny, tiny_task: wb.Task) -> None:
    class Stopped(Progress):
        def advance(self, units: int = 1) -> None:
            if self.done == 2:
                self.cancel()
            super().advance(units)

    progress = Stopped()
    with pytest.raises(Cancelled):
        load_tiny("llama").apply(finetune.LoRA(epochs=100.0), tiny_task, progress)
    assert len(progress.live.points) == 3


def test_answers_in_training_are_those_of_the_weights_then(base: wb.Variant, tiny_task: wb.Task) -> None:
    """The optimizer writes where torch counts nothing, and dropout is for learning alone."""
    tuned = base.apply(finetune.LoRA(epochs=20.0, dropout=0.5, keep="last", learning_rate=1e-2), tiny_task)
    first, *_, last = (dict(each.answers) for each in curve(tuned).evaluations)
    assert first != last
    for variant, answers in ((base, first), (tuned, last)):
        for asked, answer in answers.items():
            assert variant.generate(asked, max_new_tokens=ANSWER).text.strip() == answer


KILLED = """
import os, signal, sys
import workbench as wb
from workbench.training import checkpoint
from workbench.core.progress import Progress
from workbench.steps import finetune

class Killed(Progress):
    def advance(self, units=1):
        super().advance(units)
        if self.label.endswith("training") and self.done == 7:
            os.kill(os.getpid(), signal.SIGKILL)

checkpoint.SECONDS = checkpoint.SHARE = 0.0
task = wb.Task.model_validate_json(open(sys.argv[2]).read())
wb.load(sys.argv[1], device="cpu").apply(finetune.LoRA(epochs=6.0, batch_size=4, dropout=0.1), task, Killed())
"""


def test_a_killed_training_is_taken_up_where_it_was(
    folders, tiny_task: wb.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = finetune.LoRA(epochs=6.0, batch_size=4, dropout=0.1)
    base = wb.load(folders["llama"], device="cpu", dtype="float32")
    whole = base.apply(step, tiny_task)
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    (tmp_path / "task.json").write_text(tiny_task.model_dump_json())
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(folders["llama"]), str(tmp_path / "task.json")],
        env=os.environ | {"PYTHONPATH": str(Path(wb.__file__).parent.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert len(list((tmp_path / "training").iterdir())) == 1
    resumed = base.apply(step, tiny_task)
    assert "Taken up again at step 6" in curve(resumed).notes[-1]
    assert [each.loss for each in curve(resumed).points] == [each.loss for each in curve(whole).points]
    assert curve(resumed).evaluations == curve(whole).evaluations
    assert torch.equal(logits(resumed), logits(whole))
    assert not list((tmp_path / "training").iterdir())


def test_stopping_early_keeps_the_best(load_tiny, tiny_task: wb.Task) -> None:
    base = load_tiny("llama")
    strange = tuple(each.model_copy(update={"answer": each.answer[::-1]}) for each in tiny_task.calibration)
    task = tiny_task.model_copy(update={"calibration": strange})
    tuned = trained(finetune.Full, base, task, epochs=60.0, patience=2, learning_rate=5e-3, precision="float32")
    found = curve(tuned)
    assert len(found.points) < found.total
    assert found.waited == 2
    samples = read_samples(tuned, task, "calibration").samples
    batch = lay_out(samples, True, tuned.device)
    with torch.no_grad():
        loss = float(batch_loss(tuned.model, batch, LIKELIHOOD.lesson(batch))) / len(batch.targets)
    assert loss == pytest.approx(found.best.loss, rel=1e-4)


def test_what_was_cut_is_counted(load_tiny, tiny_task: wb.Task) -> None:
    base = load_tiny("llama")
    long = tiny_task.train[0].model_copy(update={"answer": "boat " * 600, "id": "long"})
    task = tiny_task.model_copy(update={"train": (*tiny_task.train, long)})
    notes = read_samples(base, task, "train").notes
    assert notes == ("1 of 9 train examples were longer than 512 tokens and cut.",)
    again = tiny_task.model_copy(update={"train": (tiny_task.test[0].model_copy(update={"id": "again"}),)})
    assert overlap_note(again) == ("1 of 8 test prompts are in the train split, too: the score will flatter.",)
    assert math.isfinite(curve(base.apply(finetune.LoRA(), task)).points[-1].loss)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attention_in_16_bits_is_attention(architecture: str, load_tiny, tiny_task: wb.Task) -> None:
    """Against torch's own in 32 bits, packed behind a common beginning and padded."""
    variant = load_tiny(architecture)
    model = sharing.share(variant.model)
    samples = read_samples(variant, tiny_task, "train").samples[:4]
    for packed in (True, False):
        batch = lay_out(samples, packed, variant.device)
        with torch.no_grad():
            exact = read(model, batch)[-1]
            with in_16_bits(model):
                found = read(model, batch)[-1]
        assert (found - exact).norm() < 0.02 * exact.norm()
        assert not torch.equal(found, exact)
    assert model.config._attn_implementation == "sdpa"


def test_16_bits_learn_as_well(load_tiny, tiny_task: wb.Task) -> None:
    base = load_tiny("llama")
    found = [curve(trained(finetune.LoRA, base, tiny_task, precision=each)) for each in ("float32", "bfloat16")]
    assert found[1].best.loss == pytest.approx(found[0].best.loss, rel=0.05)
    assert [each.loss for each in found[1].points] != [each.loss for each in found[0].points]


def test_what_should_be_known_is_noted(load_tiny, tiny_task: wb.Task) -> None:
    leaked = tiny_task.model_copy(
        update={"train": tuple(each.model_copy(update={"id": f"x{each.id}"}) for each in tiny_task.test)}
    )
    tuned = load_tiny("llama").apply(finetune.LoRA(epochs=0.5), leaked)
    assert tuned.notes == ("8 of 8 test prompts are in the train split, too: the score will flatter.",)
    assert tuned.apply(finetune.Strength()).notes == tuned.notes
    assert "will flatter" in repr(tuned)


def test_no_padding_token_is_needed(load_tiny, tiny_task: wb.Task) -> None:
    base = load_tiny("llama")
    base.tokenizer.pad_token = None
    for packing in (True, False):
        tuned = trained(finetune.LoRA, base, tiny_task, packing=packing)
        assert curve(tuned).best.loss < 0.9 * curve(tuned).evaluations[0].loss


def test_a_learning_rate_that_is_too_high_leaves_the_base(load_tiny, tiny_task: wb.Task) -> None:
    base = load_tiny("llama")
    learned = base.apply(finetune.Full(epochs=20.0, batch_size=4, learning_rate=2e-3), tiny_task)
    wild = trained(finetune.Full, learned, tiny_task, learning_rate=1.0, schedule="constant", warmup=0.0)
    found = curve(wild)
    assert found.best.step == 0
    assert found.evaluations[-1].loss > found.evaluations[0].loss
    assert torch.equal(logits(wild), logits(learned))


def test_activations_computed_twice_in_16_bits(load_tiny, tiny_task: wb.Task) -> None:
    base = load_tiny("llama")
    knobs = {"epochs": 1.0, "precision": "bfloat16", "packing": False}
    once, twice = (trained(finetune.LoRA, base, tiny_task, **knobs, checkpointing=each) for each in (False, True))
    for a, b in zip(curve(once).points, curve(twice).points, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-2)
    embedding = twice.model.get_input_embeddings()
    assert not embedding._forward_hooks


def test_an_early_end_keeps_what_was_learned(load_tiny, tiny_task: wb.Task) -> None:
    class Ended(Progress):
        def advance(self, units: int = 1) -> None:
            if self.label.endswith("training") and self.done == 6:
                self.stop()
            super().advance(units)

    base = load_tiny("llama")
    tuned = base.apply(finetune.LoRA(epochs=100.0, batch_size=4, learning_rate=1e-2, warmup=0.0), tiny_task, Ended())
    assert [each.step for each in curve(tuned).evaluations] == [0, 7]
    assert curve(tuned).best.step == 7


def test_logits_that_are_scaled_are_refused(load_tiny, tiny_task: wb.Task, monkeypatch) -> None:
    base = load_tiny("llama")
    whole = type(base.model).forward

    def scaled(self, *args, **kwargs):
        found = whole(self, *args, **kwargs)
        found.logits = found.logits / 2
        return found

    monkeypatch.setattr(type(base.model), "forward", scaled)
    with pytest.raises(InvalidInput, match="changes its logits behind the head"):
        base.apply(finetune.LoRA(), tiny_task)


def test_a_prompt_that_fills_the_context_is_not_asked(load_tiny, tiny_task: wb.Task) -> None:
    base = load_tiny("gpt2")
    long = tiny_task.calibration[0].model_copy(update={"prompt": "boat " * 237})
    room = base.context_length - len(base.encode(tiny_task.prompt(long)))
    assert 0 < room < 24
    task = tiny_task.model_copy(update={"calibration": (long, *tiny_task.calibration[1:])})
    assert len(curve(base.apply(finetune.LoRA(epochs=0.5), task)).evaluations[0].answers) == 1
    text = wb.Text(name="long", text="tide " * 3000, window=base.context_length + 1, calibration=1, test=1)
    with pytest.raises(InvalidInput, match="read the text with a smaller window"):
        base.apply(finetune.LoRA(), text)


def test_a_figure_of_a_training_has_it_all(load_tiny, tiny_task: wb.Task) -> None:
    found = curve(trained(finetune.LoRA, load_tiny("llama"), tiny_task))
    figure = found.figure()
    assert [trace.name for trace in figure.data] == [
        "training loss", "validation loss", "learning rate", "tokens/s", "memory"
    ]  # fmt: skip
    assert list(figure.data[0].y) == [each.loss for each in found.points]
    assert all(0.01 < each < 100 for each in figure.data[4].y), "gigabytes"
    table = found.table()
    assert list(table.columns) == ["loss", "rate", "tokens", "seconds", "memory", "validation_loss"]
    assert list(table.index) == [each.step for each in found.points]
