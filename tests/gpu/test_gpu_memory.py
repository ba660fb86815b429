"""What a GPU holds: while an export is read, and after its memory has run out."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

import workbench as wb
from workbench.analysis.preview import preview
from workbench.core.errors import OutOfMemory
from workbench.steps import finetune, prune, quantize

pytestmark = pytest.mark.usefixtures("gpu")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A Llama whose weights, 14 MB in 16 bits, outweigh everything else."""
    folder = tmp_path_factory.mktemp("wide")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, num_hidden_layers=8, num_attention_heads=4, intermediate_size=768,
        max_position_embeddings=512, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(7)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def held() -> int:
    gc.collect()
    return torch.cuda.memory_allocated()


def peak(work: Callable[[], Any]) -> tuple[Any, int]:
    """What it gives, and the most that was held over what was held before."""
    before = held()
    torch.cuda.reset_peak_memory_stats()
    return work(), torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize(
    "step",
    [quantize.NF4(), quantize.LLMInt8(), quantize.Int8(), quantize.FP8(), quantize.RTN(), quantize.RTN(bits=3)],
    ids=repr,
)
def test_reading_an_export_takes_little_more_than_its_size(
    step: wb.Step, wide: Path, tiny_text: wb.Text, tmp_path: Path
) -> None:
    folder = wb.load(wide, device="cuda").apply(step, tiny_text).save(tmp_path / "export")
    variant, most = peak(lambda: wb.load(folder, device="cuda"))
    assert most < 1.5 * variant.total_bytes


USES: dict[str, tuple[int, Callable[[wb.Variant, Any, Path], Any]]] = {
    "load": (4 << 20, lambda base, text, folder: wb.load(folder, device="cuda")),
    "packing": (1 << 20, lambda base, text, folder: base.apply(quantize.NF4())),
    "calibration": (1 << 18, lambda base, text, folder: base.apply(quantize.GPTQ(), text)),
    "training": (8 << 20, lambda base, text, folder: base.apply(finetune.Full(), text)),
    "answer": (1 << 15, lambda base, text, folder: base.generate("What is a lobster?", max_new_tokens=3)),
    "comparison": (1 << 17, lambda base, text, folder: wb.compare([base], text, rounds=2, new_tokens=2, store=False)),
    "sensitivity": (1 << 18, lambda base, text, folder: wb.sensitivity(base, text, quantize.RTN)),
    "preview": (1 << 19, lambda base, text, folder: preview(base, quantize.RTN(), text)),
    "diff": (6 << 20, lambda base, text, folder: wb.diff(base, base.apply(prune.Magnitude()))),
    "save": (1 << 21, lambda base, text, folder: base.apply(quantize.RTN(bits=3)).save(folder / "thin")),
}


@pytest.mark.parametrize("use", USES)
def test_out_of_memory_is_a_sentence_and_leaves_nothing(
    use: str, gpu: Any, wide: Path, tiny_text: wb.Text, tmp_path: Path
) -> None:
    if gpu is None:
        pytest.skip("A real GPU is not filled up.")
    base = wb.load(wide, device="cuda")
    room, work = USES[use]
    before, said = held(), ""
    with gpu.limited(room):
        try:
            work(base, tiny_text, wide)
        except OutOfMemory as error:
            said = str(error)
            assert held() - before < 1 << 17, "a notebook holds the error, and so its frames"
    assert "ran out of memory" in said or (use == "training" and "nothing was changed" in said)  # refused beforehand
    assert held() == before


def test_a_curve_shows_the_peak_of_each_step(folders: dict[str, Path], tiny_task: wb.Task) -> None:
    base = wb.load(folders["llama"], device="cuda")
    torch.empty(64 << 20, dtype=torch.uint8, device="cuda")  # held and dropped before: it is not the training's
    points = wb.curve(base.apply(finetune.LoRA(epochs=2, batch_size=4), tiny_task)).points
    assert max(each.memory for each in points) < 64 << 20
    assert points[0].memory < 2 * points[-1].memory
