"""Recipes that a class handed in, measured together on examples that nobody tuned on, and ranked by a goal."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from workbench.analysis.goals import BETTER, UP, Constraint, check_metric, constraints_of
from workbench.analysis.promise import Standing, standing
from workbench.analysis.search import halves
from workbench.core import files
from workbench.core.drawn import HTML, drawn
from workbench.core.errors import Cancelled, InvalidInput, OutOfMemory, WorkbenchError
from workbench.core.line import watched
from workbench.core.progress import Progress
from workbench.measurement import scales
from workbench.measurement.comparison import Comparison, compare
from workbench.measurement.likelihood import task_spans
from workbench.measurement.runs import Run
from workbench.recipe import Recipe, RecipeStep
from workbench.tasks.task import Task, Text
from workbench.variant import Variant

MOST_BYTES = 100_000  # of a submission
MOST_STEPS = 10  # of a recipe
LONGEST, SHOWN = 60, 300  # characters of a name, and of a recipe's code in the table
FAMILIES = ("prompt", "context", "output", "prune", "quantize")  # which read no files, and answer anew each time
SLOW = ("prompt.Search",)  # of these, what takes hours if somebody wants it to


@dataclass(frozen=True)
class Entry:
    """One submission.

    Attributes:
        name: whose it is; any text.
        recipe: the steps, if they could be read.
        run: what was measured, if it could be applied.
        standings: of every bound: kept or broken by all of the 99 % interval, or unsure.
        why: it has no place, in a sentence.
    """

    name: str
    recipe: Recipe = field(default_factory=Recipe)
    run: Run | None = None
    standings: dict[str, Standing] = field(default_factory=dict)
    why: str = ""

    @property
    def keeps(self) -> bool:
        """Whether no bound is surely broken."""
        return self.run is not None and "broken" not in self.standings.values()

    @property
    def bounds(self) -> str:
        """How it stands to its bounds, in words."""
        if self.run is None:
            return self.why
        return ", ".join(f"{bound}: {each}" for bound, each in self.standings.items()) or "none asked for"


@dataclass(frozen=True)
class Leaderboard:
    """Submissions, ranked.

    Attributes:
        goal: the metric that ranks them.
        entries: those that keep to the bounds first, the best of them first; then those that break one; then those
            that could not be applied.
        comparison: all that were measured, with the baseline, in one interleaved session; None if none could be.
    """

    goal: str
    entries: tuple[Entry, ...]
    comparison: Comparison | None = None

    @property
    def metrics(self) -> list[str]:
        """The goal, and what is bounded."""
        bounded = (bound.partition(" ")[0] for each in self.entries for bound in each.standings)
        return list(dict.fromkeys((self.goal, *bounded)))

    @property
    def rows(self) -> list[list[str]]:
        """Place, name, the metrics with their intervals, bounds, recipe: texts that are not escaped."""
        found = []
        place = 0
        for each in self.entries:
            place += each.keeps
            run = each.run
            values = [scales.text(it, run[it]) if run and it in run.estimates else "–" for it in self.metrics]
            found.append(
                [
                    str(place) if each.keeps else "–",
                    each.name,
                    *values,
                    each.bounds,
                    files.clipped(repr(each.recipe), SHOWN),
                ]
            )
        return found

    def save(self, path: str | Path) -> Path:
        """Write it as a page of HTML, whole or not at all."""
        place = files.home(path)
        head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>Leaderboard</title>'
        files.write_text(place, f"{head}{self._repr_html_()}</html>\n")
        return place

    def _repr_html_(self) -> str:
        return str(drawn(self, HTML))

    def __repr__(self) -> str:
        lines = [f"Leaderboard by {scales.METRICS[self.goal][0].lower()}:"]
        lines += [f"  {row[0]:>2}  {'  '.join(files.clipped(cell, 160) for cell in row[1:])}" for row in self.rows]
        return "\n".join(lines)


@watched
def leaderboard(
    submissions: str | Path | Mapping[str, str],
    base: Variant,
    task: Task | Text,
    *,
    goal: str = "weight_bytes",
    constraints: Mapping[str, Any] | None = None,
    families: Sequence[str] = FAMILIES,
    progress: Progress | None = None,
    **settings: Any,
) -> Leaderboard:
    """Measure all submissions interleaved with the base, on every second test example, and rank them.

    A class tunes on the others, which `practice` gives. A submission is a recipe as `Recipe.to_json` writes it: names
    of registered steps and their knobs, never code. Who breaks a bound by all of the 99 % interval has no place; where
    it is too near to tell, they have. Neighbours whose intervals overlap may well change places another time.

    Args:
        submissions: a folder of files ``name.json``, or recipes as JSON by name.
        base: what the recipes are applied to.
        task: whose train and calibration splits the recipes may read.
        goal: a metric, such as "weight_bytes" or "inter_token_latency".
        constraints: bounds by metric, as `search` reads them, such as ``{"score": ">= 0.95 * baseline"}``.
        families: of steps that may be used. `retrieve` would read files of this machine, `runtime` can give answers
            again, `finetune` and `distil` take minutes, and `prompt.Search`, to be named so, as long as it is told.
        progress: cancel and progress.
        settings: others of `compare`: examples, rounds, new_tokens.

    Raises:
        InvalidInput: the goal or a bound makes no sense, there is no submission, or the task is too small to be halved.
        OutOfMemory: all variants do not fit at once, as they must to be measured in turns.
        Cancelled: the progress was cancelled.
    """
    check_metric(goal, "The goal")
    bounds, progress = constraints_of(constraints or {}), progress or Progress()
    _, held, _ = halves(base, task)
    entries, made = [], []
    for name, text in _submitted(submissions):
        entry = _read(name, text, families)
        if not entry.why:
            try:
                variant = entry.recipe.apply(base, task, progress)
                task_spans(variant, held, settings.get("examples"))  # too long a prompt would end it for all
                made.append(replace(variant, name=entry.name))
            except (Cancelled, OutOfMemory):
                raise
            except WorkbenchError as error:
                entry = replace(entry, why=str(error))
        entries.append(entry)
    if not made:
        return Leaderboard(goal, tuple(entries))
    comparison = compare([replace(base, name="baseline"), *made], held, progress=progress, **settings)
    runs = iter(comparison.runs[1:])
    placed = [each if each.why else _placed(each, next(runs), goal, bounds, comparison.baseline) for each in entries]
    return Leaderboard(goal, tuple(sorted(placed, key=lambda each: _rank(each, goal))), comparison)


def practice(base: Variant, task: Task) -> Task:
    """The part of a task that a class may tune on: every second test example, which no leaderboard measures.

    Raises:
        InvalidInput: it is a text, or too small to be halved.
    """
    if not isinstance(task, Task):
        raise InvalidInput("A text is not halved for practice: give the class a shorter one of its own.")
    given = halves(base, task)[0]
    assert isinstance(given, Task)
    return given


def _submitted(submissions: str | Path | Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Names and texts, in the order of the names."""
    if isinstance(submissions, Mapping):
        yield from sorted(submissions.items())
        return
    folder = files.home(submissions)
    found = sorted(filter(Path.is_file, folder.glob("*.json"))) if folder.is_dir() else []
    if not found:
        raise InvalidInput(f"There is no submission in '{folder}': put recipes there, as Recipe.to_json() gives them.")
    for path in found:
        try:
            with path.open("rb") as file:
                yield path.stem, file.read(MOST_BYTES + 1).decode()
        except (OSError, UnicodeDecodeError):
            yield path.stem, ""


def _read(name: str, text: str, families: Sequence[str]) -> Entry:
    """A submission, or why it cannot be used."""
    name = files.clipped(str(name), LONGEST) or "?"
    if len(text) > MOST_BYTES:
        return Entry(name, why=f"A recipe is no longer than {MOST_BYTES} bytes.")
    try:
        recipe = Recipe.from_json(text)
    except WorkbenchError as error:
        return Entry(name, why=str(error))
    if not 1 <= len(recipe) <= MOST_STEPS:
        return Entry(name, why=f"A recipe here has 1 to {MOST_STEPS} steps, not {len(recipe)}.")
    if others := [each for each in recipe if not _allowed(each, families)]:
        return Entry(name, recipe, why=f"{_called(others[0])} is not allowed here: use steps of {', '.join(families)}.")
    return Entry(name, recipe)


def _allowed(step: RecipeStep, families: Sequence[str]) -> bool:
    return _called(step) in families or (step.family() in families and _called(step) not in SLOW)


def _called(step: RecipeStep) -> str:
    return type(step).full_name()


def _placed(entry: Entry, run: Run, goal: str, bounds: Sequence[Constraint], baseline: Run) -> Entry:
    """An entry with what was measured, if its goal and bounds were."""
    if missing := {goal, *(each.metric for each in bounds)} - run.estimates.keys():
        return replace(entry, why=f"Its {min(missing)} cannot be measured on this task.")
    return replace(entry, run=run, standings={str(each): standing(each, run, baseline) for each in bounds})


def _rank(entry: Entry, goal: str) -> tuple[int, float]:
    if entry.run is None:
        return 2, 0.0
    value = entry.run[goal].value
    return (0 if entry.keeps else 1), -value if BETTER[goal] == UP else value
