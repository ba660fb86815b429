"""Rows written in place, coming and going, say what each of them says alone and without any cache."""

from pathlib import Path

import pytest
import torch
from architectures import tiny_folder
from transformers import DynamicCache

import workbench as wb
from workbench.runtime.slots import Slots
from workbench.runtime.trial import way_of

FIT = ("llama", "gpt2", "qwen3", "gemma3_text", "mistral", "mixtral", "deepseek_v3", "opt", "gpt_neox")
OTHERWISE = ("mamba", "jamba", "bloom")  # states, or places counted by the padding


def best(model, ids: list[int], n: int) -> list[int]:
    ids, start = list(ids), len(ids)
    for _ in range(n):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[start:]


@pytest.mark.parametrize("name", FIT)
@torch.no_grad()
def test_rows_come_and_go(name: str, tokenizer, tmp_path: Path) -> None:
    model = wb.load(tiny_folder(tmp_path / name, name, tokenizer), device="cpu", dtype="float32").model
    assert way_of(model).slots
    prompts = [[5 + (7 * at + 3 * row) % 150 for at in range(9 * row + 4)] for row in range(4)]  # 31: past any window
    slots, said, here = Slots(model, 3, 48), {}, []

    def join(row: int) -> None:
        cache = DynamicCache(config=model.config)
        out = model(input_ids=torch.tensor([prompts[row]]), past_key_values=cache, use_cache=True).logits
        assert slots.put(cache, 0, len(prompts[row])) == len(here)
        said[row] = [int(out[0, -1].argmax())]
        here.append(row)

    def leave(row: int) -> None:
        at = here.index(row)
        slots.drop(at)
        here[at] = here[-1]
        here.pop()

    def step() -> None:
        logits = slots.logits(torch.tensor([[said[row][-1]] for row in here]))
        for row, each in zip(here, logits[:, -1], strict=True):
            said[row].append(int(each.argmax()))

    join(0)
    step()
    join(3)
    join(1)
    step()
    step()
    leave(0)
    step()
    join(2)
    step()
    leave(3)
    step()
    assert [len(said[row]) for row in range(4)] == [4, 6, 3, 5]
    for row, tokens in said.items():
        assert tokens == best(model, prompts[row], len(tokens)), row


@torch.no_grad()
def test_several_tokens_at_once(base: wb.Variant) -> None:
    slots, ids = Slots(base.model, 1, 32), list(range(5, 25))
    cache = DynamicCache(config=base.model.config)
    base.model(input_ids=torch.tensor([ids[:8]]), past_key_values=cache, use_cache=True)
    slots.put(cache, 0, 8)
    whole = base.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, 8:]
    torch.testing.assert_close(slots.logits(torch.tensor([ids[8:]]))[0], whole, rtol=1e-4, atol=1e-4)
    slots.lengths[0] = 12  # forget what came after; it is written over
    again = slots.logits(torch.tensor([ids[12:14]]), span=32)[0]
    torch.testing.assert_close(again, whole[4:6], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", OTHERWISE)
def test_others_are_told_apart(name: str, tokenizer, tmp_path: Path) -> None:
    assert not way_of(wb.load(tiny_folder(tmp_path / name, name, tokenizer), device="cpu", dtype="float32").model).slots
