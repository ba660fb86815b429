"""What a kept teacher saves: a step beside one that asks a teacher of the student's size; and the memory of the loss.

python benchmarks/distilling.py

The student is the embedded model with a tenth of its weights at zero: as large as its teacher. Both ways take the same
steps of 2048 tokens of WikiText-2; the teacher was read before (how long that takes is told), and steps are timed from
beginning to end. Memory is that of every tensor made by the head and the loss, forward and backward, on 2048 learned
tokens; the naive loss makes the logits of both models at once, as a training loop with `F.kl_div` does.
"""

import time

import torch
import torch.nn.functional as F
from common import public_data, write_result

import workbench as wb
from workbench.core.estimate import paired_ratio
from workbench.measurement.memory import Held
from workbench.models import sharing
from workbench.steps import distil, prune
from workbench.training.divergence import forward_kl
from workbench.training.loss import Lesson, _HeadLoss

STEPS, ROUNDS, TOKENS = 2, 4, 2048


def speeds() -> dict:
    """Seconds of a step, with the teacher kept and asked."""
    base = wb.load(device="cpu", dtype="float32")
    student = base.apply(prune.Magnitude(sparsity=0.1))
    text = wb.read_text(public_data("wikitext2-valid.txt"), window=512, calibration=1, test=1)
    epochs = STEPS * 4 / len(text.windows(base.tokenizer, "train"))
    knobs = {"batch_size": 4, "epochs": epochs, "learning_rate": 1e-6}
    found = {}
    for rank in (0, 8):
        ways = {"kept": distil.ForwardKL(**knobs, rank=rank), "asked": distil.ForwardKL(**knobs, rank=rank, top_k=0)}
        started = time.perf_counter()
        student.apply(ways["kept"], text)
        first = time.perf_counter() - started
        times = {name: [] for name in ways}
        for number in range(ROUNDS + 1):
            for name in ways if number % 2 else reversed(ways):
                made = student.apply(ways[name], text)
                if number:
                    times[name].append(sum(each.seconds for each in wb.curve(made).points) / STEPS)
        ratio = paired_ratio(times["asked"], times["kept"])
        found["every weight" if not rank else f"rank {rank}"] = {
            "seconds a step": {name: [round(each, 2) for each in values] for name, values in times.items()},
            "asked over kept": [round(each, 3) for each in (ratio.value, ratio.low, ratio.high)],
            "first run with reading, seconds": round(first, 1),
        }
    return found


def memory() -> dict:
    """Bytes held at most by the head and the loss."""
    model = sharing.own(wb.load(device="cpu", dtype="float32").model)
    teacher = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size, bias=False).requires_grad_(False)
    head, width = model.get_output_embeddings(), model.config.hidden_size
    draw = torch.Generator().manual_seed(0)
    states, theirs = (torch.randn(TOKENS, width, generator=draw) for _ in range(2))
    found = {}
    for name in ("naive", "ours"):
        mine = states.clone().requires_grad_()
        head.weight.grad = None
        held = Held(sharing.storages(model).keys() | sharing.storages(teacher).keys())
        with held:
            if name == "naive":
                logs = F.log_softmax(head(mine), dim=-1)
                F.kl_div(logs, F.log_softmax(teacher(theirs), dim=-1), log_target=True, reduction="sum").backward()
            else:
                lesson = Lesson(
                    lambda logits, part: forward_kl(teacher(theirs[part]).log_softmax(-1), logits.log_softmax(-1)).sum()
                )
                _HeadLoss.apply(mine, head, lesson.rows, head.weight).backward()
        found[name] = {"bytes": held.peak, "gradient": float(mine.grad.norm())}
    weights = head.weight.numel() * 4
    found["ours over naive"] = round(found["ours"]["bytes"] / found["naive"]["bytes"], 3)
    found["ours over naive, the head's gradient left out"] = round(
        (found["ours"]["bytes"] - weights) / (found["naive"]["bytes"] - weights), 3
    )
    return found


def main() -> None:
    """Both."""
    write_result("distilling", {"memory": memory(), "speed": speeds()})


if __name__ == "__main__":
    main()
