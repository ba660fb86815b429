"""From a goal to a recipe: combinations of steps tried within a budget, and the best confirmed on unseen examples."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, count, takewhile
from pathlib import Path
from typing import Any

from workbench.analysis.found import Search
from workbench.analysis.goals import Constraint, check_metric, constraints_of, seconds_of
from workbench.analysis.promise import Promise, standing
from workbench.analysis.space import Space, space_of
from workbench.analysis.study import Study
from workbench.analysis.trials import SPEEDS, TOKENS, Draw, Judge, Trial
from workbench.analysis.workers import Workers, opened
from workbench.core import estimate, files
from workbench.core.device import environment
from workbench.core.errors import Cancelled, InvalidInput, TimeUp, WorkbenchError
from workbench.core.estimate import ENOUGH, Estimate
from workbench.core.line import watched
from workbench.core.optional import library
from workbench.core.progress import Progress
from workbench.core.units import duration
from workbench.measurement import power, scales
from workbench.measurement.comparison import compare
from workbench.measurement.latency import time_interleaved
from workbench.measurement.records import Records
from workbench.measurement.scores import scored
from workbench.models import sharing
from workbench.tasks.task import Task, Text
from workbench.variant import Variant

SEARCHING = 0.75  # of the budget; the rest is for the run that confirms
CONFIRMED = 4  # recipes that it measures, at most
TIMED, NEW_TOKENS = 6, 16  # rounds of the baseline's own timing, and tokens of each
MOST_TRIALS, MOST_WORKERS = 10_000, 64
REPEATS = 50  # of what was tried, after which a space counts as exhausted
QUALITY = ("score", "kl_to_baseline")
Listener = Callable[[Search], None]


@watched
def search(
    base: Variant,
    task: Task | Text,
    *,
    goal: str = "inter_token_latency",
    constraints: Mapping[str, Any] | None = None,
    space: Sequence[Any] | None = None,
    budget: str | float = "20min",
    trials: int | None = None,
    workers: int = 1,
    seed: int = 0,
    store: str | Path | None = None,
    progress: Progress | None = None,
    on_update: Listener | None = None,
) -> Search:
    """Look for the recipe that is best at a metric within bounds on others.

    Half of the test examples are what the search sees. Trials rise in price: what a variant weighs, its distance from
    the base on about 2,000 tokens, a short timing, its score example by example; each ends where a bound is surely
    broken. The first are spread over the space; the others are drawn by Optuna, for several objectives and constraints:
    by a Gaussian process where all recipes have the same knobs, else by a tree-structured Parzen estimator. Whoever is
    best of many was also lucky, so the best, and the best of those that are safer, are then measured, interleaved, on
    the other half: only these figures are reported. Trials are kept in a file as they end; the same search goes on from
    there.

    Args:
        base: what recipes are applied to.
        task: questions or a text, with calibration data for the steps that need it.
        goal: a metric.
        constraints: bounds by metric, such as ``{"weight_bytes": "<= 100 MB", "score": ">= 0.98 * baseline"}``.
        space: places of a recipe: families, steps, classes of steps, what `free` made, or lists of these; by default
            pruning and quantization.
        budget: time for all of it, such as "20min".
        trials: how many at most; the budget decides otherwise.
        workers: processes that try recipes beside each other, on Ray; with a GPU each, or a share of the processors.
            What is timed is timed here, alone, afterwards.
        seed: of what is tried.
        store: the file; by default one below ``runs/`` that is named by all that the search depends on.
        progress: a cancel keeps what was found so far.
        on_update: called with what is known so far, after every trial.

    Raises:
        InvalidInput: the goal, a bound, the budget or the space makes no sense, or the task has too few examples.
        NotAvailable: Optuna is not installed.
    """
    check_metric(goal, "The goal")
    bounds, places = constraints_of(constraints or {}), space_of(space)
    allowed, progress = seconds_of(budget), progress or Progress()
    if trials is not None and not 1 <= trials <= MOST_TRIALS:
        raise InvalidInput(f"A search has 1 to {MOST_TRIALS} trials.")
    if not 1 <= workers <= MOST_WORKERS:
        raise InvalidInput(f"A search has 1 to {MOST_WORKERS} workers.")
    most = trials or MOST_TRIALS
    seen, unseen, windows = halves(base, task)
    metrics = frozenset({goal, *(each.metric for each in bounds)})
    if isinstance(task, Text) and (wanted := metrics.intersection({"score", "flips"})):
        raise InvalidInput(f"A text has no {min(wanted)}: aim at perplexity, or search on a task of questions.")
    notes = _said_before(seen, metrics)
    optuna = library("optuna", "Searching", extra="search")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    begun = time.monotonic()
    judge = _with_baseline(Judge(base, seen, windows, bounds, metrics, {}), progress)
    if (spent := time.monotonic() - begun) > SEARCHING * allowed:
        raise InvalidInput(
            f"The budget of {duration(allowed)} is too small: measuring '{base.name}' alone took {duration(spent)}."
        )
    name = _name(base, task, goal, bounds, places, seed)
    kept = Records(Path("runs") / "searches" / f"{name}.jsonl" if store is None else files.home(store), Trial)
    history = _history(kept, name, workers, most)
    found = Search(base.name, goal, bounds, dict(judge.seen), tuple(history), notes=notes)
    study = Study(optuna, found.objectives, places, seed)
    before = sum(each.seconds for each in history)
    try:
        for each in history:
            study.told(each, replace(found, trials=found.trials[: each.number]))  # what was known then
        with opened(judge, workers) as judges:
            while len(found.trials) < most and not _exhausted(found.trials):
                left = SEARCHING * allowed - before - (time.monotonic() - begun)
                number = len(found.trials)
                try:
                    with progress.within(left):
                        progress.check()
                        draws = study.drawn(range(number, min(number + workers, most)))
                        tried = _tried(draws, found, judges, progress)
                except TimeUp:
                    break
                for trial in (each.model_copy(update={"search": name}) for each in tried):
                    notes = _keep(kept, trial, notes)
                    study.told(trial, found)
                    found = replace(found, trials=(*found.trials, trial))
                if on_update:
                    on_update(found)
        found = replace(found, notes=notes)
        if not found.trials:
            raise InvalidInput(f"The budget of {duration(allowed)} is too small for one trial: give it more.")
        return _confirmed(found, judge, unseen, progress)
    except Cancelled:
        return replace(found, notes=(*found.notes, "It was cancelled: nothing is confirmed on unseen examples."))


def _exhausted(trials: Sequence[Trial]) -> bool:
    """Whether nothing new was drawn for long."""
    last = trials[-REPEATS:]
    before = {repr(each.recipe) for each in trials[: len(trials) - len(last)]}
    return len(last) == REPEATS and all(repr(each.recipe) in before for each in last)


def halves(base: Variant, task: Task | Text) -> tuple[Task | Text, Task | Text, list[list[int]]]:
    """What the search sees and what it does not, every second example each; of a text, the first and the last windows.

    Raises:
        InvalidInput: one half would be too small to tell anything.
    """
    number = len(task.test) if isinstance(task, Task) else task.test
    if number < 2 * ENOUGH:
        raise InvalidInput(
            f"'{task.name}' has {number} test examples, of which the search sees half: at least {2 * ENOUGH} are "
            "needed to tell anything."
        )
    if isinstance(task, Task):
        seen, unseen = (task.model_copy(update={"test": task.test[at::2]}) for at in range(2))
        return seen, unseen, []
    windows = task.windows(base.tokenizer, "test")
    return task, task.model_copy(update={"test": number // 2}), windows[: number - number // 2]


def _said_before(seen: Task | Text, metrics: frozenset[str]) -> tuple[str, ...]:
    """What so many examples can show at all."""
    if "score" not in metrics or not isinstance(seen, Task):
        return ()
    n = len(seen.test)
    least = power.smallest(lambda change: power.of_answers(n, change, 0.1))
    can = "no change of the score at all" if least is None else f"changes of {power.amount(least, 'score')} or more"
    return (f"{n} examples are searched on and as many confirm: they show {can}, where one answer in ten differs.",)


def _with_baseline(judge: Judge, progress: Progress) -> Judge:
    """The judge, who knows what the baseline measures."""
    if isinstance(judge.task, Task):
        read = accumulate(len(each.ids) for each in judge.spans(judge.base))
        judge = replace(judge, measured=1 + sum(1 for _ in takewhile(lambda tokens: tokens < TOKENS, read)))
    seen = judge._weight(judge.base, progress) | judge._distance(judge.base, progress)
    if judge.metrics.intersection(SPEEDS):
        rounds = [each for (each,) in time_interleaved([judge.base], judge.task, TIMED, NEW_TOKENS, progress)]
        for metric, name in SPEEDS.items():
            unit = scales.METRICS[metric][1]
            seen[metric] = estimate.median([float(getattr(each, name)) for each in rounds], unit)
    marks: Sequence[float] = ()
    if judge.metrics.intersection({"score", "flips"}) and isinstance(judge.task, Task):
        marks = scored(judge.base, judge.task, progress=progress).scores
        seen |= {"score": estimate.mean(marks, "fraction"), "flips": Estimate.exact(0.0, "fraction")}
    return replace(judge, seen=seen, scores=marks)


def _tried(draws: Sequence[Draw], found: Search, judge: "Judge | Workers", progress: Progress) -> list[Trial]:
    """Try what was drawn; what was tried before is not measured again."""
    known = {_key(each): each for each in found.trials if each.recipe or each.ended != "refused"}
    new = {_key(each.trial): each for each in draws if each.recipe is not None and _key(each.trial) not in known}
    known |= dict(zip(new, judge.judged(list(new.values()), progress), strict=True))
    tried = []
    for each in draws:
        trial = each.trial
        if each.recipe is not None:
            twin = known[_key(trial)]
            spent = twin.seconds if twin.number == each.number else 0.0
            trial = twin.model_copy(update={"number": each.number, "params": each.params, "seconds": spent})
        tried.append(trial)
    return tried


def _key(trial: Trial) -> str:
    return json.dumps(trial.recipe, sort_keys=True)


def _name(base: Variant, task: Task | Text, goal: str, bounds: Sequence[Constraint], space: Space, seed: int) -> str:
    """A hash of all that a search depends on."""
    place = sorted(environment(base.device).items())  # times and refusals of another machine are no help
    facts = [place, sharing.fingerprint(base.model), base.recipe.to_json(), task.fingerprint, goal, *map(str, bounds)]
    return hashlib.sha256(repr((*facts, space, seed)).encode()).hexdigest()[:16]


def _keep(kept: "Records[Trial]", trial: Trial, notes: tuple[str, ...]) -> tuple[str, ...]:
    """Keep a trial; where the disk refuses, the search goes on, which is noted once."""
    try:
        kept.append(trial)
    except WorkbenchError as error:
        return notes if any(str(error) in each for each in notes) else (*notes, f"It cannot be resumed: {error}")
    return notes


def _history(kept: "Records[Trial]", name: str, workers: int, most: int) -> list[Trial]:
    """What was tried before, up to the first that is missing: later ones were drawn knowing it.

    Of those that workers drew together, all or none, but at the end of the search.

    Raises:
        InvalidInput: they are another search's.
    """
    known = {each.number: each for each in kept}
    if any(each.search != name for each in known.values()):
        raise InvalidInput(
            f"'{kept.path}' holds trials of another search: of another base, task, goal, space or seed, or on another "
            "machine. Name another file, or none."
        )
    found = [known[number] for number in takewhile(known.__contains__, count())]
    return found[:most] if len(found) >= most else found[: len(found) - len(found) % workers]


def _confirmed(found: Search, judge: Judge, unseen: Task | Text, progress: Progress) -> Search:
    """Measure the best few on what the search has not seen, beside the base."""
    chosen = found.candidates[:CONFIRMED]
    if not chosen:
        return found
    made: list[tuple[Trial, Variant]] = []
    notes = list(found.notes)
    for trial in chosen:
        name = "+".join(each.label for each in trial.steps) or "nothing"
        try:
            made.append((trial, replace(judge.made(trial.steps, progress), name=f"{name} (trial {trial.number})")))
        except Cancelled:
            raise
        except WorkbenchError as error:
            notes.append(f"Trial {trial.number} could not be made again to be confirmed: {error}")
    chosen = [trial for trial, _ in made]
    try:
        comparison = compare([judge.base, *(each for _, each in made)], unseen, progress=progress)
        promises = tuple(
            Promise(
                trial.number, run, {str(each): standing(each, run, comparison.baseline) for each in found.constraints}
            )
            for trial, run in zip(chosen, comparison.runs[1:], strict=True)
        )
    except Cancelled:
        raise
    except WorkbenchError as error:
        return replace(found, notes=(*notes, f"Nothing is confirmed: {error}"))
    return replace(found, comparison=comparison, promises=promises, notes=tuple(notes))
