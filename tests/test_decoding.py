"""The decoding loop agrees with transformers' own, padded or not, with a prefix or without."""

from collections.abc import Callable

import pytest
import torch
from conftest import ARCHITECTURES

import workbench as wb
from workbench.decoding import Decoding, Prefix, choose, decode, pad_left
from workbench.errors import InvalidInput

PROMPTS = ["What is a lobster?", "Rain", "How many seats does the boat have, and who takes one of them?", "猫 🦞"]


def encoded(variant: wb.Variant) -> list[list[int]]:
    return [variant.encode(prompt) for prompt in PROMPTS]


def greedy(variant: wb.Variant, rows: list[list[int]], n: int, prefix: Prefix | None = None) -> list[list[int]]:
    columns = list(decode(variant.model, rows, Decoding(max_new_tokens=n), prefix))
    assert len(columns) == n
    return [list(row) for row in zip(*columns, strict=True)]


def reference(variant: wb.Variant, ids: list[int], n: int) -> list[int]:
    """What transformers' generate gives, end tokens ignored."""
    tokens = torch.tensor([ids])
    made = variant.model.generate(
        tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=n, min_new_tokens=n,
        eos_token_id=variant.model.config.vocab_size + 1, pad_token_id=0,
    )  # fmt: skip
    return made[0, len(ids) :].tolist()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_is_that_of_transformers(load_tiny: Callable[[str], wb.Variant], architecture: str) -> None:
    variant = load_tiny(architecture)
    for ids in encoded(variant):
        assert greedy(variant, [ids], 12) == [reference(variant, ids, 12)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_padded_batch_answers_as_each_prompt_alone(load_tiny: Callable[[str], wb.Variant], architecture: str) -> None:
    variant = load_tiny(architecture)
    rows = encoded(variant)
    assert len({len(row) for row in rows}) > 1
    assert greedy(variant, rows, 12) == [greedy(variant, [row], 12)[0] for row in rows]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_prefix_changes_nothing(load_tiny: Callable[[str], wb.Variant], architecture: str) -> None:
    variant = load_tiny(architecture)
    start = variant.encode("What is a lobster? " * 4)
    rows = encoded(variant)
    whole = [greedy(variant, [start + row], 12)[0] for row in rows]
    prefix = Prefix(variant.model, start)
    for _ in range(2):  # the second time finds the prefix as it was
        assert greedy(variant, rows, 12, prefix) == whole
        assert greedy(variant, rows[1:2], 12, prefix) == whole[1:2]


@pytest.mark.model
def test_the_embedded_model_decodes_as_transformers(smollm: wb.Variant) -> None:
    rows = encoded(smollm)
    alone = [greedy(smollm, [row], 6)[0] for row in rows[:2]]
    assert alone == [reference(smollm, row, 6) for row in rows[:2]]
    assert greedy(smollm, rows, 6)[:2] == alone


def test_seeds_reproduce_draws(base: wb.Variant) -> None:
    def draw(seed: int) -> tuple[int, ...]:
        return base.generate("What is a lobster?", temperature=2.0, seed=seed, max_new_tokens=12).token_ids

    drawn = {draw(seed) for seed in range(5)}
    assert len(drawn) > 1
    assert draw(3) == draw(3)


def test_temperature_zero_takes_the_largest() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]])
    assert choose(logits, Decoding(), torch.Generator()).tolist() == [1, 0]


def test_nucleus_keeps_the_fewest_tokens_that_reach_top_p() -> None:
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log().expand(2000, -1)
    draw = torch.Generator().manual_seed(0)

    def drawn(top_p: float) -> set[int]:
        return set(choose(logits, Decoding(temperature=1.0, top_p=top_p), draw).tolist())

    assert drawn(0.4) == {1}
    assert drawn(0.7) == {1, 3}
    assert drawn(0.85) == {1, 2, 3}
    assert drawn(1.0) == {0, 1, 2, 3}
    assert drawn(1e-9) == {1}


def test_draws_follow_the_distribution() -> None:
    chances = torch.tensor([0.1, 0.5, 0.15, 0.25])
    draw = torch.Generator().manual_seed(0)
    tokens = choose(chances.log().expand(20_000, -1), Decoding(temperature=1.0), draw)
    counts = torch.bincount(tokens, minlength=4) / 20_000
    assert torch.allclose(counts, chances, atol=0.02)
    halved = chances.sqrt() / chances.sqrt().sum()  # temperature 2
    tokens = choose(chances.log().expand(20_000, -1), Decoding(temperature=2.0), draw)
    assert torch.allclose(torch.bincount(tokens, minlength=4) / 20_000, halved, atol=0.02)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": 1.5},
        {"temperature": -0.1},
        {"temperature": 5.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"seed": "lucky"},
        {"seed": 2**80},
        {"wings": 2},
    ],
)
def test_settings_out_of_range_are_named_in_one_sentence(base: wb.Variant, settings) -> None:
    with pytest.raises(InvalidInput) as caught:
        base.generate("Hello", **settings)
    message = str(caught.value)
    assert next(iter(settings)) in message
    assert "\n" not in message
    assert message.endswith(".")


@pytest.mark.parametrize("settings", [{"temperature": 5.0}, {"top_p": 1.0}, {"seed": -1}, {"max_new_tokens": 1}])
def test_settings_at_their_bounds_work(base: wb.Variant, settings) -> None:
    assert base.generate("Hello", **({"max_new_tokens": 2} | settings)).token_ids


def test_padding_aligns_rows_at_their_end() -> None:
    ids, mask = pad_left([[1, 2, 3], [4]], torch.device("cpu"))
    assert ids[0].tolist() == [1, 2, 3]
    assert ids[1, -1] == 4
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
