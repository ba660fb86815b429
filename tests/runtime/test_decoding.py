"""The decoding loop agrees with transformers' own, padded or not, with a prefix or without."""

from collections.abc import Callable

import pytest
import torch
from conftest import ARCHITECTURES, reference

import workbench as wb
from workbench.core.errors import InvalidInput
from workbench.runtime.decoding import Continuation, Decoding, choose, draws, sample_seeds
from workbench.runtime.engine import Eager
from workbench.runtime.prefix import common_length, pad_left

PROMPTS = ["What is a lobster?", "Rain", "How many seats does the boat have, and who takes one of them?", "猫 🦞"]


def encoded(variant: wb.Variant) -> list[list[int]]:
    return [variant.encode(prompt) for prompt in PROMPTS]


def decoded(variant: wb.Variant, prompts: list[list[int]], settings: Decoding, **options: object) -> list[list[int]]:
    """Tokens for each prompt, end tokens ignored."""
    rows = [Continuation(()) for _ in prompts]
    for _ in Eager().decode(variant.model, prompts, settings, rows, **options):
        pass
    return [row.ids for row in rows]


def greedy(variant: wb.Variant, prompts: list[list[int]], n: int) -> list[list[int]]:
    return decoded(variant, prompts, Decoding(max_new_tokens=n))


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
    prompts = [start + row for row in rows]
    assert common_length(prompts, 1000) >= len(start)
    alone = [greedy(variant, [prompt], 12)[0] for prompt in prompts]
    many = 3 * prompts * 2  # more than one batch: the later ones find the prefix as it was
    assert greedy(variant, many, 12) == 6 * alone


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


@pytest.mark.parametrize("settings", [{"temperature": 1.5}, {"temperature": 3.0, "top_p": 0.7}])
def test_a_draw_is_the_same_alone_in_any_batch_and_in_any_order(base: wb.Variant, settings) -> None:
    drawn = Decoding(max_new_tokens=10, seed=7, **settings)
    prompts = encoded(base)
    alone = [decoded(base, [each], drawn)[0] for each in prompts]
    assert len({tuple(each) for each in alone}) == len(prompts)
    assert alone != greedy(base, prompts, 10)
    assert decoded(base, prompts, drawn) == alone
    assert decoded(base, prompts[::-1], drawn) == alone[::-1]
    assert decoded(base, 5 * prompts, drawn) == 5 * alone  # two batches
    assert decoded(base, [*prompts, *encoded(base)[:1]], drawn.but(seed=8))[:4] != alone


def test_samples_of_a_request_differ_and_begin_with_its_own_draw(base: wb.Variant) -> None:
    drawn, (one, other, *_) = Decoding(max_new_tokens=10, temperature=2.0, seed=3), encoded(base)
    samples = decoded(base, [one] * 4, drawn, samples=4)
    assert samples[0] == decoded(base, [one], drawn)[0]
    assert len({tuple(each) for each in samples}) > 1
    assert decoded(base, [other] * 4 + [one] * 4, drawn, samples=4)[4:] == samples
    assert len(set(sample_seeds(3, 1000))) == 1000


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 2**63 - 1])
def test_every_seed_has_a_generator(seed: int) -> None:
    assert len(draws(sample_seeds(seed, 3))) == 3


def test_temperature_zero_takes_the_largest() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]])
    assert choose(logits, Decoding(), draws([0, 0])).tolist() == [1, 0]


def test_nucleus_keeps_the_fewest_tokens_that_reach_top_p() -> None:
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log().expand(2000, -1)
    draw = draws(range(2000))

    def drawn(top_p: float) -> set[int]:
        return set(choose(logits, Decoding(temperature=1.0, top_p=top_p), draw).tolist())

    assert drawn(0.4) == {1}
    assert drawn(0.7) == {1, 3}
    assert drawn(0.85) == {1, 2, 3}
    assert drawn(1.0) == {0, 1, 2, 3}
    assert drawn(1e-9) == {1}


def test_draws_follow_the_distribution() -> None:
    chances = torch.tensor([0.1, 0.5, 0.15, 0.25])
    draw = draws(range(20_000))
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
        {"cache_bits": 8},
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
