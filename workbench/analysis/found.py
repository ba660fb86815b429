"""What a search found: every trial, the front, and what the confirming run promises."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from workbench.analysis.goals import BETTER, COUNTED, Constraint
from workbench.analysis.promise import Promise
from workbench.analysis.trials import Trial
from workbench.core.drawn import HTML, drawn
from workbench.core.errors import InvalidInput
from workbench.core.estimate import Estimate
from workbench.core.line import watched
from workbench.core.optional import library
from workbench.core.pages import Paged
from workbench.core.progress import Progress
from workbench.measurement import scales
from workbench.measurement.comparison import Comparison
from workbench.recipe import Recipe
from workbench.variant import Variant

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

SAFETY = (1.0, 0.5, 0.25, 0.75)  # of the feasible trials, those from whose safest shares one is confirmed each
FEWEST = 8  # trials from which the importance of a knob is told


@dataclass(frozen=True)
class Search(Paged):
    """What was tried, and what it came to.

    Attributes:
        base: name of what recipes were applied to.
        goal: the metric to be best at.
        constraints: bounds on others.
        seen: what the base measures on the examples that the search may see.
        trials: in the order in which they were tried; their figures are those of a search, of which the best was also
            lucky.
        comparison: the confirming run: the base and the best few, on the other examples; None where there was none.
        promises: what it says of each.
        notes: what a reader should know.
    """

    base: str
    goal: str
    constraints: tuple[Constraint, ...]
    seen: dict[str, Estimate]
    trials: tuple[Trial, ...] = ()
    comparison: Comparison | None = None
    promises: tuple[Promise, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def objectives(self) -> tuple[str, str]:
        """What is traded off: the goal, and quality, or size where the goal is quality itself."""
        quality = "score" if "score" in self.seen else "kl_to_baseline"
        kinds = ("score", "kl_to_baseline", "perplexity", "same_top_token", "flips")
        return self.goal, "weight_bytes" if self.goal in kinds else quality

    @property
    def whole(self) -> list[Trial]:
        """The trials of which all was measured, each recipe once."""
        found = {repr(each.recipe): each for each in reversed(self.trials) if each.ended == "whole"}
        return sorted(found.values(), key=lambda each: each.number)

    def excesses(self, trial: Trial) -> dict[Constraint, float]:
        """By what part of each bound a trial is beyond it, where that was measured; 0 or less where it keeps to it."""
        return {
            each: each.excess(trial.estimates[each.metric].value, self.seen)
            for each in self.constraints
            if each.metric in trial.estimates
        }

    @property
    def feasible(self) -> list[Trial]:
        """The whole trials that keep to all bounds, the best at the goal first."""
        kept = [each for each in self.whole if all(excess <= 0 for excess in self.excesses(each).values())]
        return sorted(kept, key=lambda each: -BETTER[self.goal] * each.estimates[self.goal].value)

    @property
    def candidates(self) -> list[Trial]:
        """What is worth confirming: the best, and the best of those that keep to the bounds by more and more.

        Who only just keeps to a bound, as the best often does, was mostly lucky.
        """
        feasible = self.feasible
        safest = sorted(feasible, key=self._nearness)
        levels = [{each.number for each in safest[: math.ceil(share * len(safest))]} for share in SAFETY]
        chosen = [next((each for each in feasible if each.number in level), None) for level in levels]
        return list({each.number: each for each in (*chosen, *feasible) if each is not None}.values())

    def _nearness(self, trial: Trial) -> float:
        """How near it is to the nearest bound on what is measured, as a share of the bound; less is safer."""
        known = self.excesses(trial).items()
        return max((excess for bound, excess in known if bound.metric not in COUNTED), default=0.0)

    @property
    def front(self) -> list[Trial]:
        """The whole trials to which none is better in both objectives, by the goal."""
        values = [(each, self._minimized(each)) for each in self.whole]
        best = [
            (each, mine)
            for each, mine in values
            if not any(all(a <= b for a, b in zip(other, mine, strict=True)) and other != mine for _, other in values)
        ]
        return [each for each, _ in sorted(best, key=lambda pair: pair[1])]

    def _minimized(self, trial: Trial) -> tuple[float, ...]:
        return tuple(-BETTER[metric] * trial.estimates[metric].value for metric in self.objectives)

    @property
    def best(self) -> Trial | None:
        """Of what was confirmed, the best at the goal that keeps to the bounds; else one of which that is unsure."""
        for wanted in ("kept", "unsure"):
            those = [each for each in self.promises if each.standing == wanted]
            if those:
                chosen = min(those, key=lambda each: -BETTER[self.goal] * each.run[self.goal].value)
                return self.trials[chosen.number]
        return None

    @property
    def recipe(self) -> Recipe:
        """Of the best.

        Raises:
            InvalidInput: nothing keeps to the bounds.
        """
        if self.best is None:
            raise InvalidInput(self.sentence)
        return self.best.steps

    @property
    def code(self) -> str:
        """What makes the best variant, and a folder that serves it."""
        if self.best is None:
            return f"# {self.sentence}"
        return f"best = {self.recipe!r}.apply(base, task)\nwb.deploy(best, 'out/best')"

    @watched
    def variant(self, number: int, base: Variant, task: Any, progress: Progress | None = None) -> Variant:
        """The variant of a trial, made again.

        Raises:
            InvalidInput: there is no such trial, or it could not be made.
        """
        if self._trial(number).ended == "refused":
            raise InvalidInput(f"Trial {number} could not be made: {self._trial(number).why}")
        made: Variant = self._trial(number).steps.apply(base, task, progress)
        return replace(made, name=f"trial {number}")

    def _trial(self, number: int) -> Trial:
        if not 0 <= number < len(self.trials):
            raise InvalidInput(f"There is no trial {number}: there are 0 to {len(self.trials) - 1}.")
        return self.trials[number]

    @property
    def sentence(self) -> str:
        """The answer, or by how much the nearest misses and what binds."""
        if self.best is not None:
            return self._confirmed(self.best)
        if self.promises:
            near = min(self.promises, key=lambda each: list(each.standings.values()).count("broken"))
            broken = ", ".join(bound for bound, each in near.standings.items() if each == "broken")
            return (
                f"Nothing keeps to all bounds: trial {near.number} did on the examples of the search, and "
                f"breaks '{broken}' on unseen ones."
            )
        if self.feasible:
            return f"{len(self.feasible)} of {len(self.trials)} trials keep to the bounds; none is confirmed."
        return self._nearest()

    def _confirmed(self, best: Trial) -> str:
        promise = next(each for each in self.promises if each.number == best.number)
        found, verdicts = promise.run[self.goal], self.comparison.verdicts() if self.comparison else {}
        unsure = [bound for bound, each in promise.standings.items() if each == "unsure"]
        steps = ", then ".join(map(repr, best.steps)) or "no step at all"
        said = f"{steps}: {scales.METRICS[self.goal][0].lower()} {scales.sentence(self.goal, found)}"
        told = verdicts.get(promise.run.variant)
        bounds = "all bounds are kept" if not unsure else f"whether '{', '.join(unsure)}' is kept cannot be told"
        return f"{said} on unseen examples ({told}); {bounds if self.constraints else 'there were no bounds'}."

    def _nearest(self) -> str:
        """By how much the nearest misses, and which bound is in the way."""
        known = [(each, self.excesses(each)) for each in self.trials if each.ended != "refused"]
        if not known:
            return (
                f"None of {len(self.trials)} trials could be made: {self.trials[-1].why if self.trials else 'none ran'}"
            )
        near, beyond = min(known, key=lambda pair: (max(pair[1].values(), default=math.inf), pair[0].number))
        bound = max(beyond, key=beyond.__getitem__)
        others = [each for each in self.constraints if each is not bound]
        alone = any(
            all(excess <= 0 for each, excess in excesses.items() if each is not bound) and set(others) <= set(excesses)
            for _, excesses in known
        )
        binds = (
            f"'{bound}' binds: without it, another trial keeps to all" if alone else f"'{bound}' is in the way first"
        )
        return (
            f"Nothing keeps to all bounds. The nearest is trial {near.number}, which misses '{bound}' by "
            f"{beyond[bound]:.1%} of it; {binds}."
        )

    def giving(self, points: float, metric: str = "score") -> str:
        """What the goal would gain if a bound on another metric were looser by so much, by what the search saw.

        Args:
            points: by how much, in the metric's own unit: 0.02 of the score are 2 points.
            metric: whose bound.

        Raises:
            InvalidInput: it has no bound.
        """
        bounds = [each for each in self.constraints if each.metric == metric]
        if not bounds:
            raise InvalidInput(f"There is no bound on {metric} to loosen.")

        def loose(trial: Trial) -> bool:
            for each in self.constraints:
                value = trial.estimates[each.metric].value
                shifted = value - points if each.at_most else value + points
                if each.excess(shifted if each in bounds else value, self.seen) > 0:
                    return False
            return True

        def order(trial: Trial) -> float:
            return -BETTER[self.goal] * trial.estimates[self.goal].value

        before, after = self.feasible[:1], sorted(filter(loose, self.whole), key=order)[:1]
        if not after or (before and order(after[0]) >= order(before[0])):
            return f"Giving up {points:g} of {metric} would gain nothing that was tried."
        now = scales.sentence(self.goal, after[0].estimates[self.goal])
        was = (
            scales.sentence(self.goal, before[0].estimates[self.goal]) if before else "nothing that keeps to the bounds"
        )
        return f"Giving up {points:g} of {metric}: {self.goal} {now} instead of {was} (trial {after[0].number})."

    def importance(self) -> dict[str, float]:
        """How much each choice matters to the goal, by PED-ANOVA (Watanabe et al., 2023, as Optuna has it).

        The choices of steps among all trials, and the knobs of a step among those that have it; each group sums to 1.
        What fewer than 8 trials tell is left out.
        """
        optuna, found = library("optuna", "Importance", extra="search"), dict[str, float]()
        known = [each for each in self.trials if self.goal in each.estimates]
        for group in sorted({name.rpartition(".")[0] for each in known for name in each.params}):
            those = [(each, _group(each, group)) for each in known]
            those = [(each, chosen) for each, chosen in those if chosen]
            names = set.intersection(*(set(chosen) for _, chosen in those))
            names = {name for name in names if len({str(chosen[name]) for _, chosen in those}) > 1}
            if len(those) < FEWEST or not names:
                continue
            ranges = {name: _range(optuna, [chosen[name] for _, chosen in those]) for name in names}
            study = optuna.create_study()
            for each, chosen in those:
                value = -BETTER[self.goal] * each.estimates[self.goal].value
                params = {name: chosen[name] for name in names}
                study.add_trial(optuna.create_trial(params=params, distributions=ranges, value=value))
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            found |= optuna.importance.get_param_importances(study, evaluator=evaluator)
        return found

    def table(self) -> "pandas.DataFrame":
        """One row a trial: its recipe, where it ended and why, and what was measured, in SI units."""
        import pandas

        rows = []
        for each in self.trials:
            row: dict[str, Any] = {
                "trial": each.number,
                "recipe": repr(each.steps),
                "ended": each.ended,
                "why": each.why,
            }
            for metric, value in each.estimates.items():
                row |= {metric: value.value, f"{metric}_low": value.low, f"{metric}_high": value.high}
            rows.append(row)
        return pandas.DataFrame(rows).set_index("trial") if rows else pandas.DataFrame()

    def figure(self, transparent: bool = False) -> "plotly.graph_objects.Figure":
        """Every whole trial by both objectives, the front, and what was confirmed."""
        return drawn(self, transparent=transparent)

    def _repr_html_(self) -> str:
        return str(drawn(self, HTML))

    def __repr__(self) -> str:
        return "\n".join([self.sentence, *self.notes])


def _group(trial: Trial, group: str) -> dict[str, Any]:
    """The choices of a trial that belong together: those of steps, or the knobs of one step."""
    return {name: value for name, value in trial.params.items() if name.rpartition(".")[0] == group}


def _range(optuna: Any, values: Sequence[Any]) -> Any:
    """What values were drawn from, as far as they show it."""
    if all(isinstance(each, int | float) and not isinstance(each, bool) for each in values):
        return optuna.distributions.FloatDistribution(min(values), max(values))
    return optuna.distributions.CategoricalDistribution(sorted(set(values), key=str))
