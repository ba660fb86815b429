"""A recipe taken apart: effects by hand from made-up runs, and a real one with an order that is refused."""

import numpy as np
import pytest

import workbench as wb
from workbench.analysis.ablation import METRICS, _effects, _exchanged, _names, _orders, ablate
from workbench.core.errors import Cancelled, InvalidInput
from workbench.core.estimate import Estimate
from workbench.measurement.runs import Run
from workbench.steps import prompt, prune, quantize


def a_run(nats: float, seconds: float, weight: float, score: float) -> Run:
    noise = np.random.default_rng(0).normal(0.0, 0.01, 12)
    return Run(
        variant="v", source="here", recipe=[], task="t", fingerprint="f", settings={}, environment={}, session="s",
        measured_at="now", estimates={"weight_bytes": Estimate.exact(weight, "bytes")},
        samples={
            "nll": ((nats + noise) * 10).tolist(), "tokens": [10.0] * 12,
            "inter_token_median": (seconds * np.exp(noise)).tolist(), "score": [score] * 12,
        },
    )  # fmt: skip


def test_orders_are_all_that_is_asked() -> None:
    assert list(dict.fromkeys(_orders(2))) == [(), (0,), (1,), (0, 1), (1, 0)]
    three = list(dict.fromkeys(_orders(3)))
    assert len(three) == 11
    assert {(1, 0, 2), (2, 1, 0), (0, 2, 1)} < set(three)
    assert len(list(dict.fromkeys(_orders(5)))) == 1 + 5 + 1 + 5 + 10 + 10
    assert _exchanged((0, 1, 2), 0, 2) == (2, 1, 0)
    assert _names([quantize.RTN(), prune.Wanda(), quantize.RTN(bits=3)]) == ("RTN 1", "Wanda", "RTN 2")


def test_effects_by_hand() -> None:
    """Alone 0.1 and 0.2 nats, together 0.5: 0.2 are interaction. Halves of a half are a quarter: no interaction."""
    runs = {
        (): a_run(3.0, 0.1, 400.0, 0.8),
        (0,): a_run(3.1, 0.05, 200.0, 0.7),
        (1,): a_run(3.2, 0.1, 200.0, 0.8),
        (0, 1): a_run(3.5, 0.05, 100.0, 0.6),
        (1, 0): a_run(3.5, 0.1, 100.0, 0.7),
    }
    found = {(each.metric, each.kind, each.steps): each for each in _effects(runs, ("A", "B"))}
    both = ("A", "B")

    def change(metric: str, kind: str, steps: tuple[str, ...] = both) -> float:
        return found[metric, kind, steps].change.value

    assert change("perplexity", "alone", ("A",)) == pytest.approx(0.1)
    assert change("perplexity", "together") == pytest.approx(0.5)
    assert change("perplexity", "sum") == pytest.approx(0.3)
    assert change("perplexity", "interaction") == pytest.approx(0.2)
    assert change("perplexity", "order") == pytest.approx(0.0, abs=1e-9)
    assert change("weight_bytes", "interaction") == pytest.approx(0.0)
    assert found["weight_bytes", "together", both].shown.value == pytest.approx(-75.0)
    assert change("inter_token_latency", "order") == pytest.approx(np.log(2))
    assert str(found["inter_token_latency", "order", both]).startswith("+100.0 %")
    assert change("score", "interaction") == pytest.approx(-0.1)
    assert found["score", "together", both].shown.unit == "points"
    assert str(found["perplexity", "order", both]) == "+0.0 %"
    assert set(METRICS) == {each.metric for each in found.values()}


def test_what_was_not_measured_is_left_out() -> None:
    runs = {order: a_run(3.0, 0.1, 400.0, 0.8) for order in ((), (0,), (1,), (0, 1))}
    kinds = {each.kind for each in _effects(runs, ("A", "B"))}
    assert kinds == {"alone", "together", "sum", "interaction"}


def test_a_real_recipe(base: wb.Variant, tiny_text: wb.Text) -> None:
    recipe = [prune.Magnitude(sparsity=0.3), quantize.RTN(bits=4)]
    found = ablate(recipe, base, tiny_text, rounds=2, new_tokens=2, store=False)
    assert found.steps == ("Magnitude", "RTN")
    assert [run.variant for run in found.comparison.runs] == ["base", "Magnitude", "RTN", "Magnitude, RTN"]
    ((order, why),) = found.refused.items()
    assert order == ("RTN", "Magnitude")
    assert "already quantized" in why
    text = "\n".join(found.lines)
    assert "RTN, then Magnitude: refused." in text
    assert "interaction" in text
    assert {"perplexity", "weight_bytes", "inter_token_latency"} == set(found.metrics)
    assert len(found.table()) == len(found.effects)
    assert len(found.figure().data) == 4 * len(found.metrics)
    assert "already quantized" in found._repr_html_()
    alone = found.of("weight_bytes", "alone")[1].change.value
    whole = found.comparison["RTN"]["weight_bytes"].value / found.comparison["base"]["weight_bytes"].value
    assert alone == pytest.approx(np.log(whole))


def test_the_order_of_prompts_matters(base: wb.Variant, tiny_task: wb.Task) -> None:
    recipe = wb.Recipe([prompt.System(text="Rain."), prompt.System(text="Sun.")])
    found = ablate(recipe, base, tiny_task, rounds=2, new_tokens=2, store=False)
    assert not found.refused
    assert len(found.comparison.runs) == 5
    assert {"score", "perplexity"} < set(found.metrics)
    assert [each.steps for each in found.of("score", "order")] == [("System 1", "System 2")]


def test_bad_input(base: wb.Variant, tiny_text: wb.Text) -> None:
    with pytest.raises(InvalidInput, match="2 to 5 steps, not of 1"):
        ablate([quantize.RTN()], base, tiny_text)
    with pytest.raises(InvalidInput, match=r"cannot be applied as it is: .*already quantized"):
        ablate([quantize.RTN(), prune.Magnitude()], base, tiny_text, store=False)
    progress = wb.Progress()
    progress.cancel()
    with pytest.raises(Cancelled):
        ablate([prune.Magnitude(), quantize.RTN()], base, tiny_text, progress=progress)
