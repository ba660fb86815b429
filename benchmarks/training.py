"""Training speed and memory, beside peft and transformers' Trainer on the same examples.

python benchmarks/training.py

Every contestant takes the same optimizer steps of 8 examples, with LoRA of rank 8 on all linear layers of the blocks,
or with every weight where it says Full; the Trainer has its defaults, but for what would write files. Frozen has a
single adapter of rank 1 in the first block: what no way of adapting can do without, so the bound of LoRA over Full.
Steps are timed from their beginning to their end on both sides: data, evaluation and set-up are left out. Rounds are
interleaved. Tokens are those of the examples, padding left out and counted whole where a beginning that they share is
read once. Memory is the most that a process of its own ever held (VmHWM), loading and a first step included.
"""

import subprocess
import sys
import time
import warnings

from adapting import TASKS
from common import write_result

import workbench as wb
from workbench.core.estimate import paired_ratio
from workbench.models import sharing
from workbench.steps import finetune
from workbench.training.sequences import read_samples

BATCH, STEPS, ROUNDS = 8, 2, 3
RATE = 1e-5  # small: the models stay what they are
KNOBS = {"learning_rate": RATE, "batch_size": BATCH, "epochs": 1.0}
ONE_ADAPTER = {"rank": 1, "layers": "0.self_attn.q_proj"}
OURS = {
    "LoRA, 32 bits, padded": finetune.LoRA(**KNOBS, precision="float32", packing=False),
    "LoRA, 32 bits, packed": finetune.LoRA(**KNOBS, precision="float32"),
    "LoRA, 16 bits, padded": finetune.LoRA(**KNOBS, packing=False),
    "LoRA, 16 bits, packed": finetune.LoRA(**KNOBS),
    "Full, 32 bits, packed": finetune.Full(**KNOBS, precision="float32"),
    "Full, 16 bits, packed": finetune.Full(**KNOBS),
    "Frozen, 32 bits, packed": finetune.LoRA(**KNOBS, **ONE_ADAPTER, precision="float32"),
    "Frozen, 16 bits, packed": finetune.LoRA(**KNOBS, **ONE_ADAPTER),
}
TRAINER = {"Trainer, 32 bits": False, "Trainer, 16 bits": True}


def few(task: wb.Task) -> wb.Task:
    """The task with as many train examples as the steps need, and nothing to evaluate but one example."""
    return task.model_copy(update={"train": task.train[: BATCH * STEPS], "calibration": task.calibration[:1]})


def ours(base: wb.Variant, task: wb.Task, step: finetune.LoRA | finetune.Full) -> float:
    """Seconds in optimizer steps."""
    return sum(each.seconds for each in wb.curve(base.apply(step, task)).points)


def trainer(base: wb.Variant, task: wb.Task, in_16_bits: bool) -> float:
    """Seconds in optimizer steps of transformers' Trainer on a model of peft's."""
    import peft
    import transformers

    samples = read_samples(base, task, "train").samples
    rows = [
        {
            "input_ids": list(s.ids),
            "attention_mask": [1] * len(s.ids),
            "labels": [-100] * s.start + list(s.ids[s.start :]),
        }
        for s in samples
    ]
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(sharing.share(base.model), config)
    model.config.use_cache = False

    class Clock(transformers.TrainerCallback):
        seconds = began = 0.0

        def on_step_begin(self, *args, **kwargs):
            self.began = time.perf_counter()

        def on_step_end(self, *args, **kwargs):
            self.seconds += time.perf_counter() - self.began

    clock = Clock()
    transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir="out/trainer",
            per_device_train_batch_size=BATCH,
            num_train_epochs=1,
            learning_rate=RATE,
            bf16=in_16_bits,
            use_cpu=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
        ),
        train_dataset=rows,
        data_collator=transformers.DataCollatorForSeq2Seq(base.tokenizer, padding=True),
        callbacks=[clock],
    ).train()
    return clock.seconds


def once(base: wb.Variant, task: wb.Task, name: str) -> float:
    """One round of a contestant."""
    return ours(base, task, OURS[name]) if name in OURS else trainer(base, task, TRAINER[name])


def prepared(name: str) -> tuple[wb.Variant, wb.Task]:
    """The model and a short task."""
    return wb.load(device="cpu", dtype="float32"), few(TASKS[name][0]())


def speeds(name: str, contestants: list[str]) -> dict:
    """Tokens a second of every contestant, and their ratios round by round."""
    base, task = prepared(name)
    times: dict[str, list[float]] = {each: [] for each in contestants}
    for number in range(ROUNDS + 1):
        for each in contestants if number % 2 else contestants[::-1]:
            seconds = once(base, task, each)
            print(name, number, each, round(seconds, 2), flush=True)
            if number:  # the first round warms up
                times[each].append(seconds)
    return summary(times, [len(each.ids) for each in read_samples(base, task, "train").samples])


def summary(times: dict[str, list[float]], lengths: list[int]) -> dict:
    """What the seconds of all rounds say, for examples of these lengths."""

    def ratio(slow: str, fast: str) -> list[float] | None:
        if slow not in times or fast not in times:
            return None
        found = paired_ratio(times[slow], times[fast])
        return [round(each, 3) for each in (found.value, found.low, found.high)]

    longest = sum(max(lengths[at : at + BATCH]) for at in range(0, len(lengths), BATCH))
    return {
        "tokens": sum(lengths),
        "padding_ratio": round(BATCH * longest / sum(lengths), 3),
        "tokens_per_second": {each: round(len(found) * sum(lengths) / sum(found)) for each, found in times.items()},
        "seconds": {each: [round(value, 2) for value in found] for each, found in times.items()},
        "faster than the Trainer": {
            each: ratio("Trainer, 16 bits" if "16" in each else "Trainer, 32 bits", each)
            for each in OURS
            if each in times and each.startswith("LoRA")
        },
        "our defaults over the Trainer's": ratio("Trainer, 32 bits", "LoRA, 16 bits, packed"),
    } | {
        f"{each} over Full": {
            bits: ratio(f"Full, {bits} bits, packed", f"{each}, {bits} bits, packed") for bits in ("16", "32")
        }
        for each in ("LoRA", "Frozen")
        if f"{each}, 32 bits, packed" in times
    }


def memory(contestant: str) -> int:
    """Bytes that a process of its own held at most."""
    done = subprocess.run([sys.executable, __file__, "--once", contestant], capture_output=True, text=True, check=True)
    return int(done.stdout.split("PEAK", 1)[1])


def peak() -> int:
    """Most bytes that this process held in memory."""
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))


def main() -> None:
    """All of it, or one contestant whose memory is asked."""
    warnings.simplefilter("ignore")
    if sys.argv[1:2] == ["--once"]:
        once(*prepared("xquad"), sys.argv[2])
        print("PEAK", peak())
        return
    everyone = [*TRAINER, *OURS]
    # First, while this process holds nothing.
    memories = {each: memory(each) for each in everyone if "packed" not in each or each.startswith("LoRA")}
    found = {
        "xquad": speeds("xquad", everyone),
        "tickets": speeds("tickets", [*TRAINER, "LoRA, 16 bits, packed"]),
    }
    write_result("training", found | {"peak_memory_bytes": memories})


if __name__ == "__main__":
    main()
