"""Distillation: divergences against hand-computed ones, what is kept of a teacher, students that get nearer to it."""

import math
import os
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import ARCHITECTURES
from transformers import AutoModelForCausalLM, LlamaConfig

import workbench as wb
from workbench.core.errors import InvalidInput
from workbench.core.progress import Progress
from workbench.models.sharing import fingerprint
from workbench.steps import distil, finetune, prune, quantize
from workbench.training import checkpoint
from workbench.training.divergence import forward_kl, jensen_shannon, likeliest, reverse_kl, states_apart, with_rest
from workbench.training.loss import batch_loss
from workbench.training.sequences import lay_out, read_samples
from workbench.training.step import curve
from workbench.training.teacher import Teacher, find_teacher, kept, taught

KINDS = [distil.ForwardKL, distil.ReverseKL, distil.JensenShannon, distil.HiddenStates, distil.SequenceLevel]
QUICK = {"epochs": 8.0, "batch_size": 4, "learning_rate": 3e-3}
IDS = torch.arange(3, 60)[None]
every_kind = pytest.mark.parametrize("kind", KINDS)
every_model = pytest.mark.parametrize("architecture", ARCHITECTURES)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))


def half(base: wb.Variant, task: wb.Task) -> wb.Variant:
    """A student with one of the base's two blocks."""
    return base.apply(prune.DropBlocks(share=0.5, order="last"), task)


def apart(teacher: wb.Variant, student: wb.Variant, task: wb.Task) -> float:
    """KL(teacher || student) on the answers of the test split, nats a token, by transformers' own forward."""
    total = count = 0.0
    for sample in read_samples(student, task, "test").samples:
        ids = torch.tensor([sample.ids])
        with torch.no_grad():
            logs = [each.model(ids).logits[0, sample.start - 1 : -1].log_softmax(-1) for each in (student, teacher)]
        total += float(F.kl_div(*logs, log_target=True, reduction="sum"))
        count += len(logs[0])
    return total / count


def random_logs(rows: int, tokens: int, seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, tokens, generator=draw, dtype=torch.float64).log_softmax(-1)


def test_divergences_are_those_worked_out_by_hand() -> None:
    teacher, student = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    assert float(forward_kl(teacher, student)) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert float(reverse_kl(teacher, student)) == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    half_way = 0.5 * (0.5 * math.log(0.5 / 0.375) + 0.5 * math.log(0.5 / 0.625))
    half_way += 0.5 * (0.25 * math.log(0.25 / 0.375) + 0.75 * math.log(0.75 / 0.625))
    assert float(jensen_shannon(teacher, student, 0.5)) == pytest.approx(half_way)
    assert float(states_apart(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 0.1]]))) == pytest.approx(2.0)
    assert float(states_apart(torch.tensor([[3.0, 4.0]]), torch.tensor([[6.0, 8.0]]))) == pytest.approx(0.0)


def test_divergences_are_those_of_torch() -> None:
    teacher, student = random_logs(5, 40, 0), random_logs(5, 40, 1)
    found = F.kl_div(student, teacher, log_target=True, reduction="none").sum(-1)
    assert torch.allclose(forward_kl(teacher, student), found, atol=1e-5)
    for beta in (0.1, 0.7):
        mixed = (beta * teacher.exp() + (1 - beta) * student.exp()).log()
        found = beta * F.kl_div(mixed, teacher, log_target=True, reduction="none").sum(-1)
        found += (1 - beta) * F.kl_div(mixed, student, log_target=True, reduction="none").sum(-1)
        assert torch.allclose(jensen_shannon(teacher, student, beta), found, atol=1e-5)
    assert torch.allclose(jensen_shannon(teacher, student, 1e-5) / 1e-5, forward_kl(teacher, student), rtol=1e-2)
    assert torch.allclose(jensen_shannon(teacher, student, 1 - 1e-5) / 1e-5, reverse_kl(teacher, student), rtol=1e-2)


def test_a_token_that_cannot_come_costs_nothing() -> None:
    teacher = torch.tensor([[0.0, -math.inf]])
    student = torch.tensor([[0.5, 0.5]]).log().requires_grad_()
    with torch.enable_grad():
        loss = forward_kl(teacher, student)
        loss.sum().backward()
    assert float(loss.detach()) == pytest.approx(math.log(2))
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("measure", [forward_kl, reverse_kl, lambda t, s: jensen_shannon(t, s, 0.4)])
def test_the_likeliest_bound_the_whole_from_below(measure) -> None:
    teacher, student = random_logs(50, 40, 2), random_logs(50, 40, 3)
    whole, before = measure(teacher, student), torch.zeros(50, dtype=torch.float64)
    for k in (1, 4, 16, 39):
        values, indices = likeliest(teacher, k)
        found = measure(with_rest(values), with_rest(student.gather(-1, indices)))
        assert (found <= whole + 1e-4).all()
        assert (found >= before - 1e-4).all()
        before = found
    assert torch.allclose(before, whole, atol=1e-3), "with one token left over nothing is lost"


def test_what_is_kept_is_what_the_teacher_says(load_tiny, tiny_task: wb.Task) -> None:
    teacher = load_tiny("llama")
    student = half(teacher, tiny_task)
    samples = read_samples(student, tiny_task, "train").samples
    source = Teacher(teacher, student, 2.0)
    found = kept(source, samples, 400, Progress())
    batch = lay_out(samples[:3], True, teacher.device)
    values, indices = found.likeliest(batch)
    assert values.shape == indices.shape == (len(batch.targets), 400)
    at = 0
    for sample in batch.samples:
        with torch.no_grad():
            logits = teacher.model(torch.tensor([sample.ids])).logits[0, sample.start - 1 : -1]
        logs = (logits / 2.0).log_softmax(-1)
        count = len(logs)
        rebuilt = torch.empty_like(logs).scatter_(-1, indices[at : at + count], values[at : at + count])
        assert torch.allclose(rebuilt, logs, atol=0.02), "16 bits"
        at += count
    assert at == len(values)


def test_a_teacher_is_read_once(load_tiny, tiny_task: wb.Task, tmp_path: Path) -> None:
    teacher = load_tiny("llama")
    student, read = half(teacher, tiny_task), []

    def listen(progress: Progress) -> None:
        read.append(progress.label)

    step = distil.ForwardKL(epochs=0.5)
    for times in (1, 2):
        student.apply(step, tiny_task, Progress(listen))
        folders = list((tmp_path / "cache" / "teacher").iterdir())
        assert len(folders) == 1
        assert ("Distillation: the teacher reads" in read) is (times == 1)
        read.clear()
    (folders[0] / "values.npy").write_bytes(b"torn")
    student.apply(step, tiny_task, Progress(listen))
    assert "Distillation: the teacher reads" in read, "what was torn is read anew"
    for other in (distil.ForwardKL(epochs=0.5, temperature=2.0), distil.ForwardKL(epochs=0.5, top_k=8)):
        student.apply(other, tiny_task)
    assert len(list((tmp_path / "cache" / "teacher").iterdir())) == 3


@every_kind
def test_a_student_gets_nearer_to_its_teacher(kind, load_tiny, tiny_task: wb.Task) -> None:
    base = load_tiny("llama")
    teacher = base.apply(finetune.Full(**QUICK), tiny_task).renamed("tutor")
    student = half(teacher, tiny_task)
    before = {name: tensor.clone() for name, tensor in student.model.state_dict().items()}
    made = student.apply(kind(**QUICK, teacher="tutor"), tiny_task)
    assert apart(teacher, made, tiny_task) < 0.6 * apart(teacher, student, tiny_task)
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.model.state_dict().items())
    assert len(curve(made).points) == 16


@every_model
def test_keeping_all_of_a_teacher_is_asking_it(architecture: str, load_tiny, tiny_task: wb.Task) -> None:
    """Every token of the vocabulary kept: the same losses as with the teacher beside, but for 16 bits."""
    student = half(load_tiny(architecture), tiny_task)
    found = [
        curve(student.apply(distil.ForwardKL(**QUICK | {"epochs": 1.0}, top_k=k), tiny_task)).points for k in (0, 4096)
    ]
    for online, from_disk in zip(*found, strict=True):
        assert from_disk.loss == pytest.approx(online.loss, rel=0.02)


def test_the_loss_is_temperature_and_share(load_tiny, tiny_task: wb.Task) -> None:
    teacher = load_tiny("llama")
    student = half(teacher, tiny_task)
    samples = read_samples(student, tiny_task, "train").samples[:2]
    step = distil.ForwardKL(temperature=2.0, likelihood=0.25, top_k=0)
    batch = lay_out(samples, False, student.device)
    lesson = step.objective(student, samples, Progress()).lesson(batch)
    with torch.no_grad():
        found = float(batch_loss(student.model, batch, lesson))
        expected = 0.0
        for sample in samples:
            ids = torch.tensor([sample.ids])
            ours, theirs = (each.model(ids).logits[0, sample.start - 1 : -1] for each in (student, teacher))
            soft = F.kl_div((ours / 2).log_softmax(-1), (theirs / 2).log_softmax(-1), log_target=True, reduction="sum")
            hard = F.cross_entropy(ours, torch.tensor(sample.ids[sample.start :]), reduction="sum")
            expected += float(0.75 * 4 * soft + 0.25 * hard)
    assert found == pytest.approx(expected, rel=1e-3)


def test_hidden_states_are_compared_at_their_depth(load_tiny, tiny_task: wb.Task) -> None:
    """The one block left is compared with the teacher's last one."""
    teacher = load_tiny("llama")
    student = half(teacher, tiny_task)
    samples = read_samples(student, tiny_task, "train").samples[:2]
    batch = lay_out(samples, False, student.device)
    losses = []
    for weight in (0.0, 3.0):
        step = distil.HiddenStates(states=weight)
        with torch.no_grad():
            lesson = step.objective(student, samples, Progress()).lesson(batch)
            losses.append(float(batch_loss(student.model, batch, lesson)))
    expected = 0.0
    for sample in samples:
        ids = torch.tensor([sample.ids])
        with torch.no_grad():
            ours, theirs = (
                each.model(ids, output_hidden_states=True).hidden_states[-1][0, sample.start - 1 : -1]
                for each in (student, teacher)
            )
        expected += float((2 - 2 * F.cosine_similarity(ours, theirs)).sum())
    assert losses[1] - losses[0] == pytest.approx(3.0 * expected, rel=1e-3)


def test_own_answers_are_learned_from(load_tiny, tiny_task: wb.Task) -> None:
    teacher = load_tiny("llama").apply(finetune.Full(**QUICK), tiny_task).renamed("tutor")
    student = half(teacher, tiny_task)
    made = student.apply(distil.JensenShannon(**QUICK, teacher="tutor", on_policy=1.0), tiny_task)
    assert apart(teacher, made, tiny_task) < apart(teacher, student, tiny_task)
    again = student.apply(distil.JensenShannon(**QUICK, teacher="tutor", on_policy=1.0), tiny_task)
    assert [each.loss for each in curve(again).points] == [each.loss for each in curve(made).points]


def test_a_teachers_answers_are_its_own(load_tiny, tiny_task: wb.Task) -> None:
    teacher = load_tiny("llama")
    samples = read_samples(teacher, tiny_task, "train").samples
    found = taught(teacher, samples, 6, Progress())
    for sample, example in zip(found, tiny_task.train, strict=True):
        prompt = teacher.encode(tiny_task.prompt(example))
        said = teacher.generate(tiny_task.prompt(example), max_new_tokens=6)
        assert sample.ids == (*prompt, *said.token_ids)
    assert taught(teacher, samples, 6, Progress()) == found, "from disk"


def test_the_teacher_is_what_the_student_was_made_from(load_tiny, folders, tiny_task: wb.Task, tmp_path: Path) -> None:
    base = load_tiny("llama")
    student = half(base, tiny_task)
    assert find_teacher(student, "") is base
    assert find_teacher(student.apply(finetune.Full(epochs=0.5), tiny_task), "") is base
    exported = wb.load(student.save(tmp_path / "student"), device="cpu")
    assert find_teacher(exported, "").recipe == wb.Recipe()
    base.close()
    found = find_teacher(student, "")
    assert found.source == student.source
    assert not found.closed
    assert find_teacher(student, str(folders["llama"])).source == str(folders["llama"])


def test_prune_then_heal_is_one_recipe(base: wb.Variant, tiny_text: wb.Text) -> None:
    steps = [prune.DropBlocks(share=0.5, order="last"), distil.ForwardKL(**QUICK)]
    healed = wb.Recipe(steps).apply(base, tiny_text)
    assert healed.recipe == wb.Recipe(steps)
    losses = [each.loss for each in curve(healed).points]
    assert losses[-1] < losses[0]


def test_a_quantized_student_trains_an_adapter(base: wb.Variant, tiny_task: wb.Task) -> None:
    student = base.apply(quantize.NF4())
    with pytest.raises(InvalidInput, match="set a rank such as 16"):
        student.apply(distil.ForwardKL(), tiny_task)
    made = student.apply(distil.ForwardKL(**QUICK, rank=16), tiny_task)
    assert made.owned_bytes < student.total_bytes
    assert apart(base, made, tiny_task) < apart(base, student, tiny_task)


def test_bad_input_is_refused_in_words(base: wb.Variant, load_tiny, tiny_task: wb.Task, tmp_path: Path) -> None:
    student = half(base, tiny_task)
    with pytest.raises(InvalidInput, match="its own teacher"):
        base.apply(distil.ForwardKL(), tiny_task)
    with pytest.raises(wb.WorkbenchError, match="nobody"):
        student.apply(distil.ForwardKL(teacher="nobody"), tiny_task)
    smaller = base.apply(prune.Vocabulary(keep=0), tiny_task)
    sizes = rf"{len(base.tokenizer)} tokens and student 'Vocabulary' another of {len(smaller.tokenizer)}"
    with pytest.raises(InvalidInput, match=sizes):
        smaller.apply(distil.ForwardKL(), tiny_task)


def test_the_oldest_of_what_is_kept_goes_first(tmp_path: Path, monkeypatch) -> None:
    for age, name in enumerate(("new", "middle", "old", ".being written", ".torn")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "values.npy").write_bytes(b"x" * 100)
        moment = time.time() - 60 * age - (2 * checkpoint.DAY if name == ".torn" else 0)
        os.utime(folder, (moment, moment))
    monkeypatch.setattr("workbench.training.checkpoint.KEPT_BYTES", 250)
    checkpoint.forget_oldest(tmp_path)
    assert {each.name for each in tmp_path.iterdir()} == {"new", "middle", ".being written"}
    checkpoint.forget_oldest(tmp_path / "nowhere")


def test_teachers_that_share_tensors_are_told_apart(load_tiny, tiny_task: wb.Task) -> None:
    base = load_tiny("llama")
    tuned = base.apply(finetune.LoRA(**QUICK), tiny_task)
    packed = [base.apply(step) for step in (quantize.Int8(), quantize.Int8Dynamic())]
    several = [base, tuned, tuned.apply(finetune.Strength(strength=0.5)), *packed]
    assert len({fingerprint(each.model) for each in several}) == len(several)
    assert fingerprint(load_tiny("llama").model) == fingerprint(base.model)


def test_a_student_is_not_its_own_successor(load_tiny, tiny_task: wb.Task) -> None:
    """A student's child has the name that an earlier child has, which may be the teacher."""
    base = load_tiny("llama")
    tutor = base.apply(finetune.Full(**QUICK), tiny_task)
    first = half(base, tiny_task)
    good = half(tutor, tiny_task).renamed("DropBlocks+ForwardKL")
    made = first.apply(distil.ForwardKL(**QUICK, teacher=good.name), tiny_task)
    assert made.name == good.name
    assert apart(good, made, tiny_task) < 0.6 * apart(good, first, tiny_task)


def test_what_the_disk_cannot_hold_is_found_out_before(load_tiny, tiny_task: wb.Task, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(wb.WorkbenchError, match="set top_k to 0"):
        half(load_tiny("llama"), tiny_task).apply(distil.ForwardKL(), tiny_task)


def test_tokens_that_stand_for_no_text_are_not_learned(base, tokenizer, tiny_task: wb.Task, tmp_path: Path) -> None:
    """Models of a family pad their heads to different heights; a teacher may answer with what is beyond the tokens."""
    sizes = base.model.config.to_dict() | {"vocab_size": len(tokenizer) + 64}
    torch.manual_seed(7)
    AutoModelForCausalLM.from_config(LlamaConfig(**sizes)).save_pretrained(tmp_path / "wide")
    tokenizer.save_pretrained(tmp_path / "wide")
    wide = wb.load(tmp_path / "wide", device="cpu", dtype="float32", name="wide")
    samples = distil.SequenceLevel(teacher="wide").samples(base, tiny_task, Progress()).samples
    asked = {each.name: each for each in read_samples(base, tiny_task, "train").samples}
    for sample in samples:
        assert sample.ids[: sample.start] == asked[sample.name].ids[: sample.start]
        assert max(sample.ids) < len(tokenizer)
        with torch.no_grad():
            said = wide.model(torch.tensor([sample.ids[:-1]])).logits[0, sample.start - 1 :].argmax(-1)
        assert said.tolist() == list(sample.ids[sample.start :])
    assert 0 < len(samples) < len(asked) or any(
        len(each.ids) - each.start < tiny_task.max_new_tokens for each in samples
    )
    assert base.apply(distil.SequenceLevel(teacher="wide", epochs=1.0, rank=2), tiny_task).owned_bytes > 0
    with torch.no_grad():
        wide.model.lm_head.weight[: len(tokenizer)] = 0
        wide.model.lm_head.weight[len(tokenizer) :] *= 10
    with pytest.raises(InvalidInput, match="stand for no text"):
        distil.SequenceLevel(teacher="wide").samples(base, tiny_task, Progress())
