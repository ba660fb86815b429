"""From a goal to a recipe: bounds in words, the space, trials that end where they should, and what is promised."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import workbench as wb
from workbench.analysis.found import Search
from workbench.analysis.goals import Constraint, constraints_of, seconds_of
from workbench.analysis.promise import Promise, standing
from workbench.analysis.search import _with_baseline, halves, search
from workbench.analysis.space import Knob, free, knobs_of, space_of
from workbench.analysis.study import Study
from workbench.analysis.trials import Draw, Judge, Trial
from workbench.analysis.workers import Workers, opened
from workbench.core.errors import InvalidInput, TimeUp
from workbench.core.estimate import Estimate
from workbench.measurement.runs import Run
from workbench.steps import prompt, prune, quantize
from workbench.tasks.task import Example

SPACE = [[None, prune.Magnitude], free(quantize.RTN(head=False), "bits", "group_size")]


def estimates(**values: float) -> dict[str, Estimate]:
    return {name: Estimate(value=value, low=value, high=value, n=9, unit="x") for name, value in values.items()}


@pytest.fixture
def text(tiny_text: wb.Text) -> wb.Text:
    return tiny_text.model_copy(update={"text": tiny_text.text * 2, "test": 16})


@pytest.fixture
def questions(tiny_task: wb.Task) -> wb.Task:
    made = [Example(id=f"q{n}", prompt=f"How many seats does boat {n} have?", answer=f"{n} seats") for n in range(16)]
    return tiny_task.model_copy(update={"test": tuple(made)})


def test_bounds_in_words() -> None:
    base = estimates(score=0.5, weight_bytes=4e8)
    for metric, words, limit in (
        ("weight_bytes", "<= 100 MB", 1e8),
        ("inter_token_latency", "<=30ms", 0.03),
        ("score", ">= 0.98 * baseline", 0.49),
        ("score", ">= 60 %", 0.6),
        ("weight_bytes", "<= 0.25*baseline", 1e8),
        ("kl_to_baseline", "<= 0.05", 0.05),
    ):
        assert Constraint.read(metric, words).limit(base) == pytest.approx(limit)
    bound = Constraint.read("weight_bytes", "<= 100 MB")
    assert bound.excess(1.2e8, base) == pytest.approx(0.2)
    assert bound.excess(0.5e8, base) == pytest.approx(-0.5)
    wide = Estimate(value=1e8, low=0.9e8, high=1.1e8, n=9, unit="bytes")
    assert not bound.broken(wide, base)
    assert not bound.kept(wide, base)
    assert Constraint.read("score", ">= 0.4").kept(Estimate(value=0.5, low=0.45, high=0.55, n=9, unit="x"), base)
    assert seconds_of("20min") == 1200
    assert seconds_of("1.5h") == 5400
    assert seconds_of(90) == seconds_of("90 s") == 90


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"score": "about 0.9"}, "is said as in"),
        ({"score": ">= 0.9 parsecs"}, "is said as in"),
        ({"score": 3}, "is said as in"),
        ({"weight_bytes": "<= 9 MB * baseline"}, "is said as in"),
        ({"weight_bytes": "<= 50 %"}, "is said as in"),
        ({"inter_token_latency": "<= 30 MB"}, "is said as in"),
        ({"score": ">= 60"}, "a share of 1"),
        ({"beauty": ">= 1"}, "names a metric, not 'beauty'"),
        ({"kl_to_baseline": "<= 2 * baseline"}, "a distance from the baseline already"),
        ({"weight_bytes": ["<= 10 MB", ">= 20 MB"]}, "contradict each other"),
    ],
)
def test_bounds_that_make_no_sense(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        constraints_of(given)


def test_knobs_and_places() -> None:
    knobs = {each.name: each for each in knobs_of(quantize.RTN)}
    assert knobs["bits"] == Knob("bits", low=2.0, high=8.0, whole=True)
    assert knobs["group_size"].choices == (32, 64, 128, 256)
    assert knobs["head"].choices == (True, False)
    assert "exclude" not in knobs
    fixed = free(quantize.RTN(bits=3))
    assert (fixed.fixed, fixed.knobs) == ({"bits": 3}, ())
    places = space_of(["prune", [None, quantize.RTN], quantize.Int8()]).places
    assert [len(each) for each in places] == [1 + len(wb.steps.families()["prune"]), 2, 1]
    for wrong, sentence in (
        (["pruning"], "no family 'pruning'"),
        ([[]], "at least one step"),
        ([], "nothing to combine"),
        ([3], "combines steps"),
    ):
        with pytest.raises(InvalidInput, match=sentence):
            space_of(wrong)
    few = free(quantize.RTN(head=False), "group_size", bits=(8, 3, 3))
    assert [(each.name, each.choices) for each in few.knobs] == [("group_size", (32, 64, 128, 256)), ("bits", (8, 3))]
    assert few.knobs[1].suggested(_Last(), "x") == 8  # the second in their order
    for values in ((), (99,), "four"):
        with pytest.raises(InvalidInput, match="bits"):
            free(quantize.RTN(), bits=values)
    with pytest.raises(InvalidInput, match="no knob 'colour'"):
        free(quantize.RTN(), "colour")


@pytest.mark.parametrize("family", list(wb.steps.families()))
def test_whatever_is_drawn_is_within_a_knobs_bounds(family: str) -> None:
    optuna = pytest.importorskip("optuna")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    space = space_of([family])
    refused = []
    for _ in range(100):
        try:
            space.suggested(study.ask())
        except InvalidInput as error:  # two knobs may not go together
            refused.append(str(error))
    assert not [each for each in refused if "input should be" in each]


def test_what_an_end_of_a_scale_means() -> None:
    knobs = [
        Knob("rate", low=1e-6, high=1e-2),
        Knob("share", low=0.1, high=0.5),
        Knob("count", low=1, high=9, whole=True),
    ]
    assert [each.suggested(_Last(), "x") for each in knobs] == [1e-2, 0.5, 9]


class _Last:
    def suggest_int(self, name: str, low: int, high: int) -> int:
        return high

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float:
        return high


def test_halves_share_no_example(base: wb.Variant, questions: wb.Task, text: wb.Text, tiny_task: wb.Task) -> None:
    seen, unseen, _ = halves(base, questions)
    assert not {each.id for each in seen.test} & {each.id for each in unseen.test}
    assert len(seen.test) + len(unseen.test) == 16
    assert seen.calibration == unseen.calibration == questions.calibration
    _, unseen, windows = halves(base, text)
    assert len(windows) == 8
    assert windows + unseen.windows(base.tokenizer, "test") == text.windows(base.tokenizer, "test")
    with pytest.raises(InvalidInput, match="8 test examples, of which the search sees half: at least 12"):
        halves(base, tiny_task)


def found_by(base: wb.Variant, text: wb.Text, place: Path, trials: int, **more: Any) -> Search:
    settings = {"goal": "weight_bytes", "constraints": {"perplexity": "<= 1.5 * baseline"}, "space": SPACE} | more
    return search(base, text, **settings, trials=trials, budget="10min", store=place)


def test_a_search_keeps_to_its_bound_and_confirms_on_the_rest(base: wb.Variant, text: wb.Text, tmp_path: Path) -> None:
    found = found_by(base, text, tmp_path / "a.jsonl", 14)
    assert len(found.trials) == 14
    assert found.best is not None
    assert found.best in found.feasible
    assert found.comparison is not None
    assert found.comparison.baseline.fingerprint != text.fingerprint
    assert len(found.comparison.baseline.samples["nll"]) == 8
    promise = next(each for each in found.promises if each.number == found.best.number)
    assert promise.standing in ("kept", "unsure")
    assert promise.run["weight_bytes"].value == found.best.estimates["weight_bytes"].value
    assert repr(found.recipe) in found.code
    assert "on unseen examples" in found.sentence
    again = found.variant(found.best.number, base, text)
    assert again.total_bytes == promise.run["weight_bytes"].value
    assert len(found.table()) == 14
    assert found.figure().data
    assert "Confirmed on examples" in found._repr_html_()
    values = [(each.estimates["weight_bytes"].value, each.estimates["kl_to_baseline"].value) for each in found.front]
    assert values == sorted(values)
    assert [kl for _, kl in values] == sorted((kl for _, kl in values), reverse=True)
    importance = found.importance()
    assert importance
    assert all(0 <= each <= 1.0001 for each in importance.values())
    with pytest.raises(InvalidInput, match="no trial 99"):
        found.variant(99, base, text)


def test_a_search_goes_on_where_it_was_killed(base: wb.Variant, text: wb.Text, tmp_path: Path) -> None:
    """The file of a search that was killed in the middle of a line, and one damaged in the middle, give the same."""
    whole = found_by(base, text, tmp_path / "whole.jsonl", 10)
    lines = (tmp_path / "whole.jsonl").read_text().splitlines()
    assert len(lines) == 10
    (tmp_path / "killed.jsonl").write_text("\n".join(lines[:6]) + "\n" + lines[6][:40])
    (tmp_path / "damaged.jsonl").write_text("\n".join([*lines[:4], "x" + lines[4][9:], *lines[5:]]) + "\n")
    for name in ("killed", "damaged"):
        again = found_by(base, text, tmp_path / f"{name}.jsonl", 10)
        assert [each.params for each in again.trials] == [each.params for each in whole.trials], name
        assert [each.number for each in again.front] == [each.number for each in whole.front], name
        assert again.best == whole.best or again.best.recipe == whole.best.recipe


SEARCHED = """
import sys
import workbench as wb
from workbench.steps import prune, quantize
base = wb.load(sys.argv[1], device="cpu", dtype="float32")
text = wb.read_text(sys.argv[2], window=32, calibration=4, test=16)
space = [[None, prune.Magnitude], wb.free(quantize.RTN(head=False), "bits", "group_size")]
found = wb.search(
    base, text, goal="weight_bytes", constraints={"perplexity": "<= 1.5 * baseline"}, space=space, trials=9,
    budget="10min", store=sys.argv[3], on_update=lambda found: print(len(found.trials), flush=True),
)
print([each.params for each in found.trials], [each.number for each in found.front])
"""


def test_a_process_that_is_killed_in_the_middle(folders: dict[str, Path], text: wb.Text, tmp_path: Path) -> None:
    """Kill -9 after four trials; the same search in another process comes to the same trials and front."""
    (tmp_path / "text.txt").write_text(text.text)

    def started(store: str) -> "subprocess.Popen[str]":
        given = [str(folders["llama"]), str(tmp_path / "text.txt"), str(tmp_path / store)]
        return subprocess.Popen(
            [sys.executable, "-c", SEARCHED, *given], stdout=subprocess.PIPE, text=True, cwd=tmp_path
        )

    with started("killed") as process:
        assert process.stdout is not None
        while process.stdout.readline().strip() != "4":
            assert process.poll() is None
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert len((tmp_path / "killed").read_text().splitlines()) < 9
    said = [started(store).communicate()[0].splitlines()[-1] for store in ("killed", "whole")]
    assert said[0] == said[1]


def test_who_is_confirmed_is_also_who_is_safe() -> None:
    """The best at the goal, and the best of those that keep to the bound by more and more."""
    bounds = constraints_of({"kl_to_baseline": "<= 1", "weight_bytes": "<= 100"})
    trials = [
        Trial(number=at, params={}, recipe=[{"at": at}], estimates=estimates(weight_bytes=10.0 + at, kl_to_baseline=kl))
        for at, kl in enumerate((0.99, 1.2, 0.7, 0.8, 0.6, 0.2, 0.4, 0.1, 0.3))
    ]
    found = Search("base", "weight_bytes", bounds, estimates(weight_bytes=200.0, kl_to_baseline=0.0), tuple(trials))
    assert [each.number for each in found.candidates[:4]] == [0, 5, 2, 3]
    only = replace(found, constraints=bounds[1:])  # what is counted is sure: the best first
    assert [each.number for each in only.candidates[:4]] == [0, 1, 2, 3]


def test_a_static_space_is_drawn_from_as_well(base: wb.Variant, text: wb.Text, tmp_path: Path) -> None:
    """Where all recipes have the same knobs, a Gaussian process draws; whether trials ended early or not."""
    space = [[None, prune.DropBlocks()], free(quantize.RTN(), "group_size", bits=(2, 3, 4, 8))]
    assert space_of(space).static
    assert not space_of(SPACE[:1]).static
    found = found_by(base, text, tmp_path / "x", 9, space=space, constraints={"weight_bytes": "<= 0.4 * baseline"})
    assert len(found.trials) == 9
    assert len({each.ended for each in found.trials}) > 1
    again = found_by(base, text, tmp_path / "y", 9, space=space, constraints={"weight_bytes": "<= 0.4 * baseline"})
    assert [each.params for each in again.trials] == [each.params for each in found.trials]


def test_the_first_trials_are_spread_over_the_space() -> None:
    """Of four points, each of four choices comes once, and a knob is at both ends and between."""
    space = space_of([[None, prune.DropBlocks(), prune.Width(), prune.Magnitude()], free(quantize.RTN(), "bits")])
    draws = Study(pytest.importorskip("optuna"), ("weight_bytes", "kl_to_baseline"), space, 0).drawn(range(4))
    assert len({each.params["0"] for each in draws}) == 4
    assert sorted(each.params["1.RTN.bits"] for each in draws) == [2, 4, 6, 8]


def test_what_cannot_be_is_said(base: wb.Variant, text: wb.Text, tmp_path: Path) -> None:
    none = found_by(base, text, tmp_path / "none", 6, constraints={"weight_bytes": "<= 1 kB"})
    assert none.best is None
    assert none.promises == ()
    assert "Nothing keeps to all bounds" in none.sentence
    assert "'weight_bytes <= 1 kB'" in none.sentence
    assert none.code.startswith("# ")
    with pytest.raises(InvalidInput, match="Nothing keeps"):
        none.recipe  # noqa: B018
    refused = found_by(base, text, tmp_path / "refused", 3, space=[quantize.Int8(), prune.Magnitude()])
    assert {each.ended for each in refused.trials} == {"refused"}
    assert "None of 3 trials could be made" in refused.sentence
    assert "already quantized" in refused.sentence


def test_a_cancel_keeps_what_was_found(base: wb.Variant, text: wb.Text, tmp_path: Path) -> None:
    progress = wb.Progress()
    seen: list[int] = []

    def told(found: Search) -> None:
        seen.append(len(found.trials))
        if len(found.trials) == 3:
            progress.cancel()

    found = found_by(base, text, tmp_path / "c", 20, progress=progress, on_update=told)
    assert seen == [1, 2, 3]
    assert len(found.trials) == 3
    assert "It was cancelled" in found.notes[-1]
    assert not found.promises


def test_bad_searches(base: wb.Variant, text: wb.Text, questions: wb.Task, tmp_path: Path) -> None:
    for settings, sentence in (
        ({"goal": "beauty"}, "The goal names a metric"),
        ({"goal": "score"}, "A text has no score"),
        ({"budget": "soon"}, "The budget is a time"),
        ({"budget": 1e-9}, "is too small: measuring"),
        ({"trials": 0}, "1 to 10000 trials"),
    ):
        with pytest.raises(InvalidInput, match=sentence):
            search(base, text, **{"goal": "weight_bytes", "store": tmp_path / "x"} | settings)


def test_questions_are_scored_until_a_bound_is_hopeless(base: wb.Variant, questions: wb.Task, tmp_path: Path) -> None:
    found = search(
        base, questions, goal="inter_token_latency", constraints={"score": ">= 0.9 * baseline"}, trials=3,
        space=[[None, prompt.System(text="Rain rain rain.")], [quantize.RTN(bits=2), quantize.Int8()]],
        store=tmp_path / "q",
    )  # fmt: skip
    assert {"score", "inter_token_latency", "flips"} <= set(found.seen)
    assert "8 examples are searched on" in found.notes[0]
    for each in found.whole:
        assert each.estimates["score"].n == 8
        assert each.estimates["inter_token_latency"].n == 6
    if found.feasible:
        assert "Giving up" in found.giving(0.5)
    with pytest.raises(InvalidInput, match="no bound on ttft"):
        found.giving(0.1, "ttft")


def test_the_nearest_and_the_bound_that_binds() -> None:
    bounds = constraints_of({"weight_bytes": "<= 100", "kl_to_baseline": "<= 0.1"})
    trials = [
        Trial(number=0, params={}, recipe=[], estimates=estimates(weight_bytes=120, kl_to_baseline=0.05)),
        Trial(number=1, params={}, recipe=[{"a": 1}], estimates=estimates(weight_bytes=50, kl_to_baseline=0.3)),
    ]
    found = Search("base", "weight_bytes", bounds, estimates(weight_bytes=400, kl_to_baseline=0), tuple(trials))
    assert "nearest is trial 0, which misses 'weight_bytes <= 100' by 20.0% of it" in found.sentence
    assert "binds: without it, another trial keeps to all" in found.sentence


def a_run(scores: list[float], nll: list[float]) -> Run:
    return Run(
        variant="v", source="s", recipe=[], task="t", fingerprint="f", settings={}, environment={}, session="s",
        measured_at="now", samples={"score": scores, "nll": nll, "tokens": [1.0] * len(nll)},
        estimates=estimates(weight_bytes=90.0),
    )  # fmt: skip


def test_standings_by_hand() -> None:
    nll = np.linspace(2.0, 3.0, 20)
    base = a_run([1.0] * 10 + [0.0] * 10, nll.tolist())
    same = a_run([1.0] * 10 + [0.0] * 10, (nll + 0.05).tolist())
    worse = a_run([0.0] * 20, (nll + 0.5).tolist())
    near = a_run([1.0] * 9 + [0.0] * 11, (nll + 0.09 * np.sin(np.arange(20) * 9)).tolist())
    score, text = (Constraint.read("score", ">= 0.9 * baseline"), Constraint.read("perplexity", "<= 1.1 * baseline"))
    assert standing(score, worse, base) == "broken"
    assert standing(score, near, base) == "unsure"
    assert standing(Constraint.read("score", ">= 0.5 * baseline"), same, base) == "kept"
    assert standing(text, same, base) == "kept"  # 0.05 of log 1.1 = 0.095 nats
    assert standing(text, worse, base) == "broken"
    assert standing(Constraint.read("weight_bytes", "<= 100"), same, base) == "kept"
    assert Promise(0, same, {"a": "kept", "b": "unsure"}).standing == "unsure"


def test_a_promise_holds(tmp_path: Path) -> None:
    """Of 200 made-up confirmations, what was promised to keep to a bound does so in all but few, as 99 % say."""
    chance, kept, held = np.random.default_rng(0), 0, 0
    bound = Constraint.read("score", ">= 0.9 * baseline")
    for _ in range(200):
        right, loss = 0.8, chance.uniform(0.0, 0.25)
        before = (chance.random(150) < right).astype(float)
        after = before * (chance.random(150) >= loss)
        if standing(bound, a_run(after.tolist(), [1.0]), a_run(before.tolist(), [1.0])) == "kept":
            kept += 1
            held += right * (1 - loss) >= 0.9 * right
    assert kept >= 20
    assert held / kept >= 0.95


def test_what_never_happened_may_still_happen() -> None:
    """No answer changed in 12: as Clopper and Pearson have it, up to 36 % may; in 1,000, up to half a point."""
    flips = Constraint.read("flips", "<= 2 %")
    for n, wanted in ((12, "unsure"), (1000, "kept")):
        run = a_run([1.0] * n, [1.0])
        none = Estimate(value=0.0, low=0.0, high=0.0, n=n, unit="fraction")
        assert standing(flips, run.model_copy(update={"estimates": {"flips": none}}), run) == wanted
        bound = Constraint.read("score", ">= 0.95 * baseline")
        assert standing(bound, run, run) == wanted


def test_prompts_of_any_length_are_measured_on_the_same_answers(base: wb.Variant, questions: wb.Task) -> None:
    """Longer prompts reach 2,000 tokens sooner; the answers that tell the distance are the base's all the same."""
    many = questions.model_copy(update={"test": tuple(
        Example(id=f"m{n}", prompt="How many seats does the boat have? " * 6, answer=f"{n} seats") for n in range(80)
    )})  # fmt: skip
    seen, _, _ = halves(base, many)
    judge = _with_baseline(Judge(base, seen, [], (), frozenset({"weight_bytes"}), {}), wb.Progress())
    assert 0 < judge.measured < len(seen.test)
    long = base.apply(prompt.System(text="Rain and wind and a red sky in the evening. " * 4))
    assert len(judge.spans(long)) == len(judge.spans(base)) == judge.measured
    (trial,) = judge.judged([Draw(0, {}, wb.Recipe([prompt.System(text="Rain. " * 40)]))], wb.Progress())
    assert trial.ended == "whole"


def test_whatever_goes_wrong_in_a_trial_is_noted(
    base: wb.Variant, text: wb.Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise LookupError("a bug")

    monkeypatch.setattr(prune.Magnitude, "apply", fails)
    found = found_by(base, text, tmp_path / "x", 4, space=[prune.Magnitude()])
    assert {each.ended for each in found.trials} == {"refused"}
    assert "It failed: LookupError: a bug." in found.trials[0].why
    with pytest.raises(InvalidInput, match="Trial 0 could not be made"):
        found.variant(0, base, text)


def test_a_budget_ends_a_trial_in_the_middle(
    base: wb.Variant, text: wb.Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found before is kept and confirmed; where nothing was, the budget is called too small."""

    def late(*_: Any) -> Any:
        raise TimeUp

    monkeypatch.setattr(prune.Magnitude, "apply", late)
    found = found_by(base, text, tmp_path / "x", 20, space=[[prune.Magnitude(), quantize.Int8()]])
    assert {repr(each.steps) for each in found.trials} <= {repr(wb.Recipe([quantize.Int8()]))}
    with pytest.raises(InvalidInput, match="too small for one trial"):
        found_by(base, text, tmp_path / "y", 2, space=[prune.Magnitude()])


def test_trials_of_another_search_are_refused(base: wb.Variant, text: wb.Text, tmp_path: Path) -> None:
    found_by(base, text, tmp_path / "x", 2)
    with pytest.raises(InvalidInput, match="holds trials of another search"):
        found_by(base, text, tmp_path / "x", 2, seed=1)


def test_a_disk_that_refuses_is_noted_once(base: wb.Variant, text: wb.Text, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    found = found_by(base, text, tmp_path / "file" / "x", 3)
    assert len(found.trials) == 3
    assert len([each for each in found.notes if "It cannot be resumed: The trial could not be added" in each]) == 1


@pytest.mark.xdist_group("ray")
def test_workers_find_what_one_finds(base: wb.Variant, text: wb.Text, tmp_path: Path, cluster: None) -> None:
    """Of a recipe, processes measure what this one does; one that ends is noted, and another takes its place."""
    settings: dict[str, Any] = {"goal": "inter_token_latency", "constraints": {"weight_bytes": "<= 0.9 * baseline"}}
    found = search(base, text, **settings, space=SPACE, trials=6, workers=2, store=tmp_path / "a", budget="10min")
    assert len(found.trials) == 6
    assert any(each.ended == "whole" for each in found.trials)
    seen, _, windows = halves(base, text)
    judge = Judge(base, seen, windows, found.constraints, frozenset({"weight_bytes"}), found.seen)
    for each in found.trials:
        assert ("inter_token_latency" in each.estimates) == (each.ended == "whole")
        if each.ended == "whole":
            (alone,) = judge.judged([Draw(0, {}, each.steps)], wb.Progress())
            for metric, value in alone.estimates.items():
                assert each.estimates[metric].value == pytest.approx(value.value, rel=0.02), (
                    metric
                )  # other threads, other kernels
    again = search(base, text, **settings, space=SPACE, trials=6, workers=2, store=tmp_path / "a", budget="10min")
    assert [each.params for each in again.trials] == [each.params for each in found.trials]
    with opened(judge, 2) as workers:
        assert isinstance(workers, Workers)
        draws = [Draw(at, {}, wb.Recipe([quantize.Int8()])) for at in range(2)]
        workers._ray.kill(workers._actors[1])
        first, second = workers.judged(draws, wb.Progress())
        assert (first.ended, second.ended) == ("whole", "refused")
        assert "ended (killed" in second.why
        assert [each.ended for each in workers.judged(draws, wb.Progress())] == ["whole", "whole"]


def test_a_small_space_is_exhausted(base: wb.Variant, text: wb.Text, tmp_path: Path) -> None:
    found = found_by(base, text, tmp_path / "x", 1000, space=[[None, quantize.Int8()]])
    assert len({json.dumps(each.recipe) for each in found.trials}) == 2
    assert len(found.trials) < 100


def test_trials_are_records(tmp_path: Path) -> None:
    trial = Trial(number=3, params={"0": "RTN", "0.RTN.bits": 4}, recipe=[quantize.RTN().to_json()], why="<b>")
    assert Trial.model_validate_json(trial.model_dump_json()) == trial
    assert trial.steps == wb.Recipe([quantize.RTN()])
    assert json.loads(trial.model_dump_json())["number"] == 3
