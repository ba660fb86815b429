"""Why a variant is slow: the arithmetic by hand, every bound's sentence, and a real variant explained."""

import re
from dataclasses import replace

import pytest

import workbench as wb
from workbench.analysis import pace, roofline
from workbench.analysis.advice import Parts, advise
from workbench.analysis.explain import Explanation, Point, explain
from workbench.analysis.roofline import SHEETS, Device, Pass
from workbench.core.errors import Cancelled, InvalidInput
from workbench.core.estimate import Estimate
from workbench.core.progress import Progress
from workbench.runtime import probe
from workbench.runtime.engine import Eager
from workbench.runtime.footprint import Work
from workbench.steps import prune, quantize, runtime

DEVICE = Device(name="mine", bandwidth=1e9, flops={"float32": 1e10}, call=1e-6, overlaps=False)
PASS = Pass(weight_bytes=500_000_000, other_bytes=1_000_000, flops=2.5e8, operations=900, kind="float32")


@pytest.fixture
def quick(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is tried on little, and not remembered for other tests."""
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(probe, "_found", {})
    monkeypatch.setattr(probe, "LARGEST", 1 << 22)
    monkeypatch.setattr(probe, "SIZES", (64,))


def test_the_roofline_by_hand() -> None:
    assert PASS.reading(DEVICE) == pytest.approx(0.501)
    assert PASS.computing(DEVICE) == pytest.approx(0.025)
    assert PASS.least(DEVICE) == pytest.approx(0.501 + 900e-6)
    assert PASS.least(DEVICE, calls=False) == pytest.approx(0.501)
    many = PASS.by(64)
    assert (many.weight_bytes, many.other_bytes, many.flops) == (500_000_000, 64_000_000, 1.6e10)
    assert many.by(1) == PASS
    assert many.least(DEVICE) == pytest.approx(1.6 + 900e-6)  # arithmetic is the bound now
    ahead = DEVICE.model_copy(update={"overlaps": True, "call": 1e-3})
    assert PASS.least(ahead) == pytest.approx(0.9)  # starting is, while everything else goes on beside it
    assert PASS.intensity == pytest.approx(2.5e8 / 501e6)


def test_every_sheet_says_where_it_is_from() -> None:
    assert len({each.name for each in SHEETS}) == len(SHEETS)
    for each in SHEETS:
        assert re.match(r"[A-Z][^;]+, https://[^ ;]+(;|$)", each.source)  # the sheet's name, its address, and doubts
        assert all(figure > 0 for figure in (each.bandwidth, each.memory, *each.flops.values()))
    for kind in ("H100", "H200", "RTX", "TPU", "FPGA", "laptop", "phone"):
        assert roofline.sheet(kind)
    with pytest.raises(InvalidInput, match="no data sheet of 'Z80'"):
        roofline.rows_of(["Z80"])
    assert roofline.rows_of(["h200", DEVICE])[1] is DEVICE


def test_parts_add_up_and_tell_the_kernel_from_reading() -> None:
    parts = Parts.of(PASS, 0.8, 0.1, 0.05, 500_000_000, DEVICE)
    assert parts == Parts(reading=0.5, kernel=pytest.approx(0.3), computing=0.0, starting=0.1, states=0.05)
    assert parts.total == pytest.approx(0.95)
    assert parts.bound == "reading"
    assert parts.without(0.475) == pytest.approx(2)
    busy = Parts.of(PASS.by(64), 1.7, 0.1, 0.05, 500_000_000, DEVICE)
    assert (busy.reading, busy.computing) == (0.5, pytest.approx(1.1))
    quick = Parts.of(PASS, 0.4, 0.0, 0.0, 500_000_000, DEVICE)  # faster than the device was when it was tried
    assert (quick.reading, quick.kernel) == (0.4, 0.0)


def estimate(value: float) -> Estimate:
    return Estimate(value=value, low=0.9 * value, high=1.1 * value, n=9, unit="s")


def made(variant: wb.Variant, parts: Parts, bits: float = 32, starts: str = "operations", rows: int = 1) -> Explanation:
    points = tuple(
        Point(PASS.by(count), PASS.by(count).least(DEVICE), estimate(parts.total), estimate(1.1 * parts.total))
        for count in (rows, 8 * rows)
    )
    return Explanation(
        variant="<img src=x onerror=alert(1)>",
        device=DEVICE,
        context=128,
        parts=parts,
        decode=points,
        prefill=points[0],
        bits=bits,
        product_bytes=500_000_000,
        cache_bytes=5_000_000,
        starts=starts,
        suggestions=advise(variant, parts, bits, starts),
        devices=roofline.rows_of(["H200", "laptop"]),
        environment={"device": "cpu", "threads": "2"},
    )


NONE = {"reading": 0.01, "kernel": 0.01, "computing": 0.01, "starting": 0.01, "states": 0.01}


@pytest.mark.parametrize(
    ("bound", "said"),
    [
        ("reading", "Each token reads 500 MB at 490 MB/s: weights are the bound. Fewer bits will help, more sparsity"),
        ("starting", "% of the time is starting 900 small operations; fewer bits will not help, compiling will."),
        ("kernel", "% of the time is lost in products that take 101.0 times what reading their 500 MB would: another"),
        ("computing", "% of the time is arithmetic, 0.25 billion operations a pass: fewer bits will not help"),
        ("states", "% of the time is moving 1 MB of keys, values and states: a shorter context will help"),
    ],
)
def test_each_bound_has_its_sentence(base: wb.Variant, bound: str, said: str) -> None:
    found = made(base, Parts(**NONE | {bound: 1.0}))
    assert said in found.sentence
    assert repr(found).startswith(found.sentence)
    assert found.sentence.endswith(".")


def test_advice_follows_the_parts(base: wb.Variant) -> None:
    bits = {each.text[:10]: each for each in advise(base, Parts(**NONE | {"reading": 1.0}), 32, "operations")}
    assert bits["fewer bits"].helps
    assert bits["fewer bits"].gain == pytest.approx(1.04 / (1.04 - 0.75))  # 8 of 32
    assert not bits["more spars"].helps
    assert isinstance(bits["more spars"].step, prune.Wanda)
    assert not bits["compiling,"].helps
    started = {each.text[:10]: each for each in advise(base, Parts(**NONE | {"starting": 1.0}), 32, "operations")}
    assert started["compiling,"].helps
    assert not started["fewer bits"].helps
    four = advise(base, Parts(**NONE | {"kernel": 1.0}), 4.5, "operations")
    assert not any(each.text.startswith("fewer bits") for each in four)
    assert not any("llama.cpp" in each.text for each in advise(base, Parts(**NONE), 32, "graph"))
    helping = [each.helps for each in four]
    assert helping == sorted(helping, reverse=True)  # what helps comes first


def test_what_is_shown_is_escaped_and_whole(base: wb.Variant) -> None:
    found = made(base, Parts(**NONE))
    page = found._repr_html_()
    assert "<img" not in page
    assert ">from data sheets, not all confirmed</td>" in page
    assert "<li>H200 SXM: NVIDIA H200 data sheet, https://www.nvidia.com" in page
    assert [trace.name for trace in found.figure().data][:3] == ["mine", "H200 SXM", "Laptop (Apple M3 Pro)"]
    assert list(found.elsewhere().index) == ["mine", "H200 SXM", "Laptop (Apple M3 Pro)"]
    assert found.elsewhere().loc["H200 SXM", "first"] == pytest.approx(1 / (900 * 5e-6))
    edited = roofline.SHEETS[0].model_copy(update={"bandwidth": 1e9, "source": "<b>edited</b>"})
    assert found.on([edited]).elsewhere()["source"].iloc[-1] == "<b>edited</b>"  # no figure of a sheet any more
    assert "<b>edited" not in found.on([edited])._repr_html_()
    assert found.elsewhere()["source"].iloc[1].startswith("from data sheets: NVIDIA H200 data sheet, https://")
    assert not found.on([DEVICE.model_copy(update={"memory": 1000})]).elsewhere()["fits"].iloc[-1]
    assert list(found.table().index) == ["decode 1", "decode 8", "prefill"]
    assert found.table()["error"].iloc[0] == pytest.approx(-1 / 11)


def test_an_engine_of_others_is_predicted_from_other_passes_alone() -> None:
    """Passes that take 10 ms, and 1 ms and 20 us a token before it a row: found again at what was never timed."""

    def spent(rows: int, tokens: int) -> list[float]:
        return [0.01 + rows * (0.001 + 2e-5 * tokens)] * 6

    places = pace._elsewhere((1, 2, 8, 16), 100)
    assert places == [(1, 50), (1, 150), (3, 100), (12, 100)]
    samples = pace.Samples(
        passes={place: spent(*place) for place in places} | {(rows, 100): [9.0] * 6 for rows in (1, 2, 8, 16)},
        prompts={50: [0.5] * 6, 150: [1.5] * 6, 100: [9.0] * 6},
    )
    for rows in (1, 2, 8, 16):
        found = pace.predicted(samples, Work(), rows, DEVICE, "elsewhere", 100)
        assert found.value == pytest.approx(spent(rows, 100)[0])
    assert pace.predicted_prompt(samples, Work(), DEVICE, "elsewhere", 100).value == pytest.approx(1.0)


def test_parts_of_a_pass_add_up_to_the_prediction() -> None:
    work = Work(operations=900, product_operations=200, other_bytes=1_000_000)
    samples = pace.Samples(
        calls=[1e-5] * 6,
        products={1: [0.02] * 6, 4: [0.04] * 6, 8: [0.08] * 6, 0: [0.3] * 6},
        rest={1: [0.01] * 6, 8: [0.017] * 6, 0: [0.05] * 6},
        passes={(1, 100): [9.0] * 6},
    )
    assert pace.predicted(samples, work, 4, DEVICE, "operations", 100).value == pytest.approx(0.04 + 0.013)
    assert pace.starting(samples, work, 1, DEVICE, "operations") == pytest.approx(0.009)
    assert pace.predicted_prompt(samples, work, DEVICE, "operations", 100).value == pytest.approx(0.35)
    assert pace.predicted(samples, work, 4, DEVICE, "graph", 100).value == pytest.approx(0.04 + 0.004 + 1e-5)
    ahead = DEVICE.model_copy(update={"overlaps": True})
    assert pace.predicted(samples, work, 8, ahead, "operations", 100).value == pytest.approx(0.088)  # computing
    assert pace.predicted(samples, work, 1, ahead, "graph", 100).value == pytest.approx(0.021, rel=0.1)


class _Foreign(Eager):
    """An engine that hides how it works."""

    def starts(self, model, rows):
        return "elsewhere"


class _Compiled(Eager):
    """An engine that starts one row as a graph, and more as usual."""

    def starts(self, model, rows):
        return "graph" if rows == 1 else "operations"


@pytest.mark.usefixtures("quick")
def test_a_variant_is_explained(base: wb.Variant) -> None:
    found = explain(base, 4, 1, context=16, rounds=2, devices=["H200"])
    assert [each.work.rows for each in found.decode] == [1, 4]
    vocabulary = base.model.config.vocab_size
    assert found.product_bytes == 4 * (2 * 36864 + 64 * vocabulary)
    assert found.decode[1].work.flops == 8 * (2 * 36864 + 64 * vocabulary)
    assert found.cache_bytes == 16 * 512
    assert found.bits == 32
    for each in (*found.decode, found.prefill):
        assert 0 < each.predicted.low <= each.predicted.value <= each.predicted.high
        assert each.measured.value > 0
    assert found.parts.total > 0
    assert found.device.source == probe.MEASURED
    assert "operations started" in repr(found)
    assert "A pass of 1 row: " in repr(found)
    assert "ms reading weights, " in repr(found)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("step", [quantize.RTN(), quantize.KVCache(), prune.Magnitude(), runtime.Offload()], ids=repr)
def test_packed_and_pruned_variants_are_explained(base: wb.Variant, step: wb.Step) -> None:
    found = explain(base.apply(step), 2, context=16, rounds=1, devices=[])
    assert found.decode[0].work.rows == 2
    assert found.sentence
    assert found._repr_html_()


@pytest.mark.usefixtures("quick")
def test_another_engine_is_explained(base: wb.Variant) -> None:
    found = explain(replace(base, engine=_Foreign()), 1, 8, context=16, rounds=2, devices=[])
    assert found.starts == "elsewhere"
    assert "that this device reads" in found.sentence
    assert found.decode[0].work.operations == 1
    assert not any(each.step and each.step.family() == "runtime" for each in found.suggestions)


@pytest.mark.usefixtures("quick")
def test_a_compiled_row_starts_one_operation(base: wb.Variant) -> None:
    found = explain(replace(base, engine=_Compiled()), 1, 4, context=16, rounds=2, devices=[])
    plain = explain(base, 1, 4, context=16, rounds=1, devices=[])
    assert [each.work.operations for each in found.decode] == [1, plain.decode[1].work.operations]
    assert found.prefill.work == plain.prefill.work
    assert not any("compiling" in each.text for each in found.suggestions)


@pytest.mark.usefixtures("quick")
def test_what_cannot_be_explained_is_refused_before_any_work(base: wb.Variant) -> None:
    for wrong in ((0,), (-1,), (1.5,), (5000,)):
        with pytest.raises(InvalidInput, match="numbers of rows"):
            explain(base, *wrong)
    with pytest.raises(InvalidInput, match="context"):
        explain(base, 1, context=2)
    with pytest.raises(InvalidInput, match="holds 512"):
        explain(base, 1, context=500)
    with pytest.raises(InvalidInput, match="data sheet"):
        explain(base, 1, devices=["<b>"])
    stopped = Progress()
    stopped.cancel()
    with pytest.raises(Cancelled):
        explain(base, 1, context=16, progress=stopped)


@pytest.mark.compiles
def test_a_compiled_variant_is_explained(base: wb.Variant, request: pytest.FixtureRequest) -> None:
    compiled = base.apply(runtime.Compile(how="blocks", longest=64))
    request.getfixturevalue("quick")  # only now, so that what was compiled before is found again
    found = explain(compiled, 1, 2, context=16, rounds=2, devices=[])
    assert found.starts == "graph", compiled.notes
    one, two = found.decode
    assert one.work.operations == 1  # of the graph
    assert two.work.operations > 1  # several rows are read as they are without
    assert one.work.flops == 2 * (2 * 36864 + 64 * base.model.config.vocab_size)
    for each in (one, two, found.prefill):
        assert 0 < each.predicted.low <= each.predicted.high
        assert each.measured.value > 0
    assert not any(isinstance(each.step, runtime.Compile) for each in found.suggestions)


@pytest.mark.usefixtures("quick")
def test_a_variant_run_by_llama_cpp_is_explained(base: wb.Variant) -> None:
    run = base.apply(runtime.LlamaCpp(threads=1))
    found = explain(run, 1, 2, context=16, rounds=2, devices=[])
    assert found.starts == "elsewhere"
    assert "that this device reads" in found.sentence
    for each in (*found.decode, found.prefill):
        assert each.work.operations == 1
        assert 0 < each.predicted.low <= each.predicted.high
        assert each.measured.value > 0
    assert found.parts.total == pytest.approx(found.decode[0].measured.value)
    assert not any(isinstance(each.step, runtime.LlamaCpp | runtime.Compile) for each in found.suggestions)
