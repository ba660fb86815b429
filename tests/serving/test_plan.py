"""Plans for many users: the arithmetic by hand, waits by a closed form, and what cannot be planned."""

import json
from collections.abc import Callable
from math import exp, factorial
from pathlib import Path

import pytest
import torch

import workbench as wb
from workbench.analysis.roofline import Device
from workbench.core.errors import InvalidInput
from workbench.serving.assumptions import Assumptions, about
from workbench.serving.plan import plan
from workbench.serving.times import ServiceTimes

DEVICE = Device(name="d", bandwidth=1e12, flops={"bfloat16": 1e14}, memory=100_000_000_000)
SMALL = {
    "weights": 10**9,
    "weight_bytes": 2 * 10**9,
    "token_bytes": 10**5,
    "device": DEVICE,
    "bandwidth_reached": 0.5,
    "arithmetic_reached": 0.5,
    "prompt_tokens": 100,
    "answer_tokens": 100,
    "spread": 0,
    "overhead": 0.0,
}
FIXED = ServiceTimes(read=((1, 0.5),), gap=((1, 0.1),), rows=1, waiting=10**6, source="by hand")


def test_the_times_of_another_device_by_hand() -> None:
    """Half of 10^12 bytes/s and of 10^14 operations/s; 2 GB of weights, 15 MB a row halfway through its answer."""
    times = Assumptions(**SMALL).by_roofline()
    assert times.token(1) == pytest.approx((2e9 + 15e6) / 5e11)
    assert times.token(128) == pytest.approx((2e9 + 128 * 15e6) / 5e11)
    assert times.reading(1024) == pytest.approx(2e9 * 1024 / 5e13)  # arithmetic is slower than 2 GB in 4 ms
    assert times.reading(16) == pytest.approx((2e9 + 16e5) / 5e11)
    assert times.reading(8192) == pytest.approx(4 * 2e9 * 2048 / 5e13)  # four pieces
    assert times.rows == 256
    assert Assumptions(**SMALL).fitting == pytest.approx((0.9 * 100e9 - 2e9) / (200 * 1e5))
    two = Assumptions(**SMALL).but(devices_per_replica=2).by_roofline()  # 2 x 0.8 as fast
    assert two.token(1) == pytest.approx((2e9 + 15e6) / 8e11)


def test_memory_bounds_the_rows() -> None:
    small = DEVICE.model_copy(update={"memory": 2_300_000_000})  # 70 MB beside the weights, 20 MB a request
    found = plan(**SMALL | {"device": small, "users": 20_000})
    assert found.times.rows == 3
    assert "Memory for keys and values is the bound: only 3 requests fit" in found.dominates
    unknown = Assumptions(**SMALL | {"device": DEVICE.model_copy(update={"memory": 0})})
    assert unknown.by_roofline().rows == 256


def test_what_dominates_by_hand() -> None:
    """A prompt of 2,000 tokens takes 80 ms of arithmetic; four tokens of answer, alone, 4 times 4 ms of bandwidth."""
    found = plan(**SMALL | {"prompt_tokens": 2000, "answer_tokens": 5, "users": 10, "target_first": 2})
    assert found.dominates.startswith("Arithmetic is the bound: reading prompts takes")
    alone = 4 * (2e9 + 2002.5 * 1e5) / 5e11
    assert found.shares["reading prompts"] == pytest.approx(0.08 / (0.08 + alone), rel=0.02)


def test_the_arithmetic_line_by_line() -> None:
    found = plan(**SMALL, users=7200, requests_per_hour=2, price=2.5, spare=2)
    said = "\n".join(found.lines)
    assert "7,200 users x 2 requests an hour / 3,600 s = 4 requests/s." in said
    assert "4 requests/s x 100 tokens = 400 tokens/s to read; x 100 = 400 tokens/s to write." in said
    assert "1 x 100 GB x 0.9 - 2 GB of weights = 88 GB" in said
    assert "200 tokens x 100 kB = 20 MB a request: 4,400 fit, 256 at most" in said
    assert "A token with 1 row: max(2.02 GB / 500 GB/s, 2e+09 operations / 5e+13/s) = 4.03 ms" in said
    assert "1 + 2 spare = 3 replicas x 1 = 3 devices." in said
    # 4 x 3,600 x 100 tokens an hour cost 7.50.
    assert "3 x 2.5 = 7.50 an hour, 5,475 a month of 730 hours; 5.21 a million tokens" in said
    assert found.sentence == "7,200 users need 3 x d: 1 replica and 2 spare; from a prediction by roofline."
    assert (found.replicas, found.devices, found.cost) == (3, 3, 7.5)
    assert found.dominates.startswith("Bandwidth is the bound: reading weights takes")
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.needed(7200) == 3
    assert found.needed(4 * 7200) == 6


def crommelin(rate: float, wait: float) -> float:
    """The share that waits no longer in M/D/1 with a service of 1 s (Crommelin 1932)."""
    terms = ((-rate * (wait - k)) ** k / factorial(k) * exp(rate * (wait - k)) for k in range(int(wait) + 1))
    return (1 - rate) * sum(terms)


@pytest.mark.parametrize(("target", "rate"), [(3.0, 2.0), (4.0, 3.0)])
def test_the_smallest_number_that_waits_as_told(target: float, rate: float) -> None:
    """One row, half a second to read and five more tokens in another: at random, each replica is M/D/1."""
    expected = next(n for n in range(1, 100) if rate / n < 0.85 and crommelin(rate / n, target - 0.5) >= 0.95)
    assert crommelin(rate / (expected - 1), target - 0.5) < 0.92  # clear enough for a simulation
    assert crommelin(rate / expected, target - 0.5) > 0.965
    found = plan(
        times=FIXED, users=round(3600 * rate), requests_per_hour=1, prompt_tokens=10, answer_tokens=6, spread=0,
        target_first=target, target_gap=0.2, policy="random",
    )  # fmt: skip
    assert found.chosen.replicas == expected
    assert found.capacity == pytest.approx(1.0)
    below = [each for each in found.trials if each.replicas < expected]
    assert not any(each.meets for each in below)
    assert found.shares == pytest.approx({"reading prompts": 0.5, "writing answers": 0.5})


def test_no_replica_is_used_to_more_than_it_may_be() -> None:
    """4 requests/s of 1 s each, however long one may wait: 4 / 0.85 = 4.7 replicas."""
    measured = {"times": FIXED, "users": 14_400, "requests_per_hour": 1, "answer_tokens": 6, "spread": 0}
    found = plan(**measured, target_first=3600, target_gap=1)
    assert found.chosen.replicas == 5
    assert found.but(most_load=0.6).chosen.replicas == 7
    assert "machines like this one" in found.sentence
    assert "Measured (by hand): 100 ms from token to token with 1 row" in str(found)


def test_a_plan_is_changed_and_says_where_its_numbers_are_from() -> None:
    found = plan(users=5_000, target_first=2.0)
    table = found.table()
    assert set(Assumptions.model_fields) == set(table.index)
    assert table.loc["users", "source"] == "given"
    assert table.loc["answer_tokens", "source"] == "assumption"
    assert table.loc["device", "source"].startswith("from data sheets: NVIDIA H200")
    assert table.loc["times", "source"] == "prediction"
    assert (table.loc["users", "value"], table.loc["users", "unit"]) == (5_000, "users")
    more = found.but(users=60_000, device="h100")
    assert more.assumptions.target_first == 2.0
    assert more.assumptions.device.name == "H100 SXM"
    assert more.devices > found.devices
    assert found.assumptions.users == 5_000
    measured = found.but(times=FIXED, target_gap=1.0, target_first=100.0, answer_tokens=5, users=100)
    assert "bandwidth_reached" not in measured.table().index
    assert measured.table().loc["times", "source"] == "by hand"


def test_a_model_that_does_not_fit_says_how_many_devices_do() -> None:
    large = {"weights": 70 * 10**9, "weight_bytes": 140 * 10**9, "token_bytes": 327_680, "model": "large"}
    with pytest.raises(InvalidInput, match=r"'large' does not fit on H200 SXM: 140 GB .* devices_per_replica=2\."):
        plan(**large)
    with pytest.raises(InvalidInput, match=r"GeForce RTX 4090: .* 21\.6 GB to use: .* devices_per_replica=8\."):
        plan(**large, device="4090")
    found = plan(**large, devices_per_replica=2)
    assert found.devices == 2 * found.replicas
    assert "2 x H200" not in found.sentence or found.replicas == 1
    assert ", 2 a replica" in found.sentence
    assert "2 x 0.8 x 4.8 TB/s x 0.6 = 4.61 TB/s" in str(found)


def test_what_is_assumed_of_a_variant_and_of_a_folder(
    base: wb.Variant, load_tiny: Callable[[str], wb.Variant], folders: dict[str, Path]
) -> None:
    known = about(base)
    linear = [each for each in base.model.modules() if isinstance(each, torch.nn.Linear)]
    assert known["weights"] == sum(each.weight.numel() for each in linear)
    assert known["weight_bytes"] == base.total_bytes
    assert known["token_bytes"] == 2 * 2 * 2 * 16 * 4  # keys and values, 2 layers, 2 heads of 16, float32
    assert known["kind"] == "float32"
    found = plan(base, users=100)
    assert found.assumptions.weights == known["weights"]
    assert found.table().loc["weights", "source"] == "the model"
    folder = about(folders["qwen3"])
    count = sum(each.numel() for each in load_tiny("qwen3").model.parameters())
    assert (folder["weights"], folder["weight_bytes"]) == (count, 2 * count)
    assert folder["token_bytes"] == 2 * 2 * 2 * 16 * 2
    assert about(folders["qwen3"], "int8")["weight_bytes"] == count
    with pytest.raises(InvalidInput, match="not in 'x'"):
        about(folders["qwen3"], "x")


def test_it_is_drawn_with_its_targets_and_escaped() -> None:
    found = plan(**SMALL, model="<b>x</b>", users=100_000)
    figure = json.loads(found.figure().to_json())
    line, point, first, gap = figure["data"]
    assert (point["x"], point["y"]) == ([100_000], [found.devices])
    assert len(line["x"]) == len(line["y"]) == 61
    assert first["x"] == [each.replicas + 1 for each in found.trials]
    assert gap["y"] == [1000 * each.found["gap p95"].value for each in found.trials]
    assert {1.0, 50.0} <= {shape["y0"] for shape in figure["layout"]["shapes"]}
    assert "<b>x</b>" not in figure["layout"]["title"]["text"]
    said = found.html()
    assert "<b>x</b>" not in said
    assert "100,000" in said
    for name in Assumptions.model_fields:
        assert name.replace("_", " ") in said


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"users": 0}, "users is 0"),
        ({"users": "many"}, "users is 'many'"),
        ({"requests_per_hour": -1}, "requests_per_hour is -1"),
        ({"prompt_tokens": float("nan")}, "prompt_tokens is nan"),
        ({"device": "abacus"}, "no data sheet of 'abacus'"),
        ({"bandwidth_reached": 1.5}, "bandwidth_reached is 1.5"),
        ({"people": 5}, "has no 'people'"),
        ({"policy": "x"}, "no policy 'x'"),
        ({"target_first": 0.01}, "No number of replicas keeps to the targets"),
        ({"target_gap": 0.001}, "No number of replicas keeps to the targets"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(wrong: dict, said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as refused:
        plan(**wrong)
    assert "\n" not in str(refused.value)
