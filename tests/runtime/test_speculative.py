"""Drafts change how fast an answer comes, and nothing else: every token is that of one token a pass."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from conftest import ARCHITECTURES, reference
from transformers import AutoModelForCausalLM, MistralConfig

import workbench as wb
from workbench.core.errors import InvalidInput, NotAvailable
from workbench.measurement.latency import time_request, timing
from workbench.runtime.decoding import Decoding, choose, draws
from workbench.runtime.drafts import Costs, Lookup, Pace, replay
from workbench.runtime.rows import Rows
from workbench.runtime.speculative import Speculate, close_call
from workbench.runtime.trial import way_of
from workbench.steps import output, prompt, prune, quantize, runtime

REPEATED = "The boat has twelve seats. " * 6 + "How many seats does the boat have?"


def eager(costs: Costs) -> None:
    """Drafts that always seem worth it, whatever this machine is."""
    costs.more[:] = [1.0] * len(costs.more)
    costs.draft = 0.0
    costs.learn = lambda *_: None  # type: ignore[method-assign]


@pytest.fixture
def drafting(base: wb.Variant) -> Callable[..., wb.Variant]:
    def make(variant: wb.Variant = base, **knobs: object) -> wb.Variant:
        made = variant.apply(runtime.Speculate(**knobs))
        eager(made.engine.costs(made.model))
        return made

    return make


class Heard:
    """Takes tokens."""

    watches, ended = False, False

    def __init__(self) -> None:
        self.ids: list[int] = []

    def restrict(self, logits: torch.Tensor) -> None:
        pass

    def take(self, token: int, chance: float | None = None) -> None:
        self.ids.append(token)


def decoded(variant: wb.Variant, ids: Sequence[int], **settings: object) -> tuple[list[int], int]:
    """Tokens, and how many passes they took."""
    row = Heard()
    passes = sum(1 for _ in variant.engine.decode(variant.model, [ids], Decoding(**settings), [row]))
    return row.ids, passes


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tokens_are_those_of_transformers(load_tiny, drafting, architecture: str) -> None:
    variant = drafting(load_tiny(architecture), match=2)
    for asked in (REPEATED, "Rain"):
        ids = variant.encode(asked)
        found, _ = decoded(variant, ids, max_new_tokens=60)
        assert found == reference(variant, ids, 60)
    assert variant.engine.totals(variant.model).drafted > 0


def test_many_prompts_and_seeds(base: wb.Variant, drafting) -> None:
    variant, numbers = drafting(match=2, tokens=5), random.Random(0)
    for seed in range(12):
        piece = numbers.choices(range(3, 400), k=8)
        ids = [*piece, *piece, *numbers.choices(range(3, 400), k=4), *piece[:3]]
        for settings in ({}, {"temperature": 0.7, "seed": seed}, {"temperature": 0.3, "top_p": 0.8, "seed": seed}):
            assert (
                decoded(variant, ids, max_new_tokens=30, **settings)[0]
                == decoded(base, ids, max_new_tokens=30, **settings)[0]
            )
    assert variant.engine.totals(variant.model).accepted > 0


def test_fewer_passes_where_text_repeats(base: wb.Variant, drafting) -> None:
    with torch.no_grad():  # what it says depends on the last token alone, so that it soon goes round in circles
        for layer in base.model.model.layers:
            for each in (layer.self_attn.o_proj, layer.mlp.down_proj):
                each.weight = torch.nn.Parameter(torch.zeros_like(each.weight))
    ids = base.encode("Rain")
    found, passes = decoded(drafting(base), ids, max_new_tokens=80)
    assert found == decoded(base, ids, max_new_tokens=80)[0]
    assert passes < 60


def test_exact_ties_are_decided_as_one_token_a_pass_would(base: wb.Variant, drafting) -> None:
    head = base.model.lm_head.weight.detach().clone()
    head[1::2] = head[::2][: len(head[1::2])]  # every token has a twin
    base.model.lm_head.weight = torch.nn.Parameter(head)
    variant = drafting(base, match=2)
    ids = base.encode(REPEATED)
    assert decoded(variant, ids, max_new_tokens=60)[0] == reference(base, ids, 60)
    totals = variant.engine.totals(variant.model)
    assert totals.guarded > 0
    assert totals.tokens == 60


def test_what_was_read_ahead_is_forgotten(load_tiny) -> None:
    for architecture in ARCHITECTURES:
        variant = load_tiny(architecture)
        ids = variant.encode(REPEATED)
        tokens = torch.tensor([ids])
        with torch.no_grad():
            whole = variant.model(tokens, use_cache=False).logits[0]
            rows = Rows(variant.model, [ids[:20]], way_of(variant.model))
            assert torch.allclose(rows.logits()[0], whole[19], atol=1e-3)
            rows.append(tokens[:, 20])
            assert torch.allclose(rows.ahead(tokens[:, 21:24])[0], whole[20:24], atol=1e-3)
            rows.forget(3)
            rows.append(tokens[:, 21])
            assert torch.allclose(rows.logits()[0], whole[21], atol=1e-3)
            rows.forget(5)
            rows.append(tokens[:, 17])
            rows.join(tokens[:, 18:25])
            assert torch.allclose(rows.logits()[0], whole[24], atol=1e-3)


def test_constraints_stops_and_chances_see_every_token(base: wb.Variant, drafting) -> None:
    pytest.importorskip("llguidance")
    for step in (prompt.Constrain(form="pattern", rule="(the boat has twelve seats )+"), output.Stop(strings="e")):
        plain = base.apply(step)
        variant = drafting(plain, match=2)
        for settings in ({}, {"temperature": 1.5, "seed": 3}):
            one, other = (each.generate(REPEATED, max_new_tokens=40, **settings) for each in (plain, variant))
            assert (other.text, other.token_ids, other.finish_reason) == (one.text, one.token_ids, one.finish_reason)


def test_an_answer_says_what_came_of_drafts(drafting) -> None:
    variant = drafting(match=2)
    *pieces, last = variant.stream(REPEATED, max_new_tokens=40)
    answer = last.answer
    assert any(note.startswith("Speculation:") for note in answer.notes)
    assert "".join(each.text for each in [*pieces, last]) == answer.text
    assert len(pieces) + 1 == len(answer.token_ids) == len(answer.times)
    assert list(answer.times) == sorted(answer.times)


def test_batches_and_samples_are_decoded_as_before(base: wb.Variant, drafting) -> None:
    prompts = [base.encode(each) for each in (REPEATED, "Rain")]
    rows = [[Heard(), Heard()] for _ in range(2)]
    for variant, each in zip((base, drafting()), rows, strict=True):
        list(variant.engine.decode(variant.model, prompts, Decoding(max_new_tokens=12), each))
    assert [row.ids for row in rows[0]] == [row.ids for row in rows[1]]


@pytest.mark.parametrize("draft", ["quantize.RTN", "thin"])
def test_another_model_drafts(base: wb.Variant, tiny_text: wb.Text, drafting, tmp_path, draft: str) -> None:
    thin = base.apply(prune.DropBlocks(share=0.5, order="last"), tiny_text).renamed("thin")
    variant = drafting(draft=draft)
    ids = base.encode("What is a lobster?")
    assert decoded(variant, ids, max_new_tokens=40)[0] == reference(base, ids, 40)
    assert variant.engine.totals(variant.model).drafted > 0
    assert (variant.engine.held_bytes(variant.model) > 0) == (draft != "thin")
    again = wb.load(variant.save(tmp_path / "export"), device="cpu")
    assert again.engine == variant.engine
    thin.close()
    assert decoded(variant, ids, max_new_tokens=40)[0] == reference(base, ids, 40)


def test_bad_drafts_are_refused_in_a_sentence(base: wb.Variant, load_tiny) -> None:
    other = load_tiny("gpt2").renamed("other")
    tokenizer = type(base.tokenizer).from_pretrained(base.tokenizer.name_or_path)
    tokenizer.add_tokens(["lobster"])
    stranger = replace(other, tokenizer=tokenizer).renamed("stranger")
    for name, error, words in (
        (stranger.name, InvalidInput, "another vocabulary"),
        (base.name, InvalidInput, "itself"),
        ("quantize.GPTQ", InvalidInput, "needs data"),
        ("nobody/nothing", NotAvailable, "no draft"),
    ):
        with pytest.raises(error, match=words) as caught:
            base.apply(runtime.Speculate(draft=name))
        assert "\n" not in str(caught.value)


def test_a_sliding_window_is_refused(base: wb.Variant) -> None:
    config = MistralConfig(
        vocab_size=len(base.tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, sliding_window=8,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(InvalidInput, match="taken back"):
        replace(base, model=model).apply(runtime.Speculate())
    unfitted = replace(base, model=model, engine=Speculate())
    assert len(decoded(unfitted, [5, 6, 7], max_new_tokens=6)[0]) == 6


def test_several_tokens_a_pass_are_timed_right(drafting) -> None:
    found = timing([(1.0, 1), (2.0, 2), (5.0, 5), (6.0, 5), (8.0, 6)])
    assert (found.ttft, found.inter_token) == (1.0, (1.0, 1.0, 1.0, 1.0, 3.0))
    assert found.throughput == 6 / 8
    assert found.token_seconds == 7 / 5
    assert timing([(1.0, 1), (2.0, 2), (9.0, 3), (10.0, 4)]).token_seconds == 1.0
    timed = time_request(drafting(match=2), REPEATED, 40)
    assert len(timed.inter_token) == 39


def test_looking_up() -> None:
    assert Lookup(3).draft([1, 2, 3, 9, 8, 1, 2, 3], 2) == [9, 8]
    assert Lookup(3).draft([0, 1, 2, 3, 9, 5, 1, 2, 3, 7, 0, 1, 2, 3], 2) == [9, 5], "the longest match wins"
    assert Lookup(3).draft([1, 2, 9, 8, 1, 2], 2) == []
    assert Lookup(3).draft([1], 2) == []
    assert list(replay([1, 2, 3, 4, 5], [1, 2, 3, 4, 9], 2, 2)) == [(0, 0), (0, 0), (2, 2)]


def test_drafts_that_lose_are_given_up_and_tried_again() -> None:
    pace = Pace(Costs(1.0, [1.3, 1.6, 1.9]))
    asked = []
    for _ in range(200):
        asked.append(pace.most())
        if asked[-1]:
            pace.learn(0, asked[-1], 0)
    assert 0 < sum(map(bool, asked)) < 40
    assert any(asked[100:])
    sure = Pace(Costs(1.0, [1.3, 1.6, 1.9]))
    for _ in range(20):
        sure.learn(3, 3, 0)
    assert sure.most() == 3
    assert Costs(1.0, [1.3]).break_even == pytest.approx(0.31)


def test_what_can_hardly_win_is_not_tried() -> None:
    dear = Costs(1.0, [1.2, 1.3, 1.6], draft=0.62)
    assert dear.hope == pytest.approx(2.71 / 2.54), "two drafted"
    pace = Pace(dear)
    assert {pace.most() for _ in range(50)} == {0}
    assert Pace(Costs(1.0, [1.2, 1.3, 1.6], draft=0.1)).most() > 0


def test_close_calls_are_those_that_a_little_change_turns_over() -> None:
    generator = torch.Generator().manual_seed(0)
    for temperature, top_p in ((0.0, 1.0), (1.0, 1.0), (0.7, 0.6)):
        settings, turned, called = Decoding(temperature=temperature, top_p=top_p), 0, 0
        for seed in range(150):
            logits = torch.randn(12, generator=generator)
            moved = logits + 0.02 * (torch.rand(12, generator=generator) - 0.5)
            before, after = (int(choose(each[None], settings, draws([seed]))) for each in (logits, moved))
            close = close_call(logits, settings, draws([seed])[0], 0.02)
            turned, called = turned + (before != after), called + close
            assert close or before == after
        assert called < 75
    assert close_call(torch.tensor([1.0, 1.0, 0.0]), Decoding(), draws([0])[0], 0.0)


def test_an_engine_of_drafts_goes_along(base: wb.Variant, drafting, tmp_path) -> None:
    variant = drafting(tokens=2, match=4)
    assert wb.load(variant.save(tmp_path / "export"), device="cpu").engine == Speculate(tokens=2, match=4)
    packed = drafting(base.apply(quantize.KVCache(bits=8)))
    assert packed.engine.cache_bits == 8
    ids = base.encode(REPEATED)
    plain = replace(packed, engine=type(base.engine)(cache_bits=8))
    assert decoded(packed, ids, max_new_tokens=30)[0] == decoded(plain, ids, max_new_tokens=30)[0]
