"""What a search tries next: drawn by Optuna, which is told how every trial went."""

import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from workbench.analysis.found import Search
from workbench.analysis.goals import BETTER, Constraint
from workbench.analysis.space import Space
from workbench.analysis.trials import Draw, Trial
from workbench.core.errors import InvalidInput

FEWEST = 4  # trials that are spread over the space before anything is drawn from what they say
MOST_MODELLED = 200  # trials beyond which a Gaussian process takes too long
MANY = 101  # heights of a number between its bounds


class Study:
    """What is tried, and what Optuna is told of it.

    The first trials are a Latin hypercube (McKay, Beckman and Conover, 1979): as many as the longest list of steps is
    long, so that each comes once, and knobs are at as many heights.
    """

    def __init__(self, optuna: Any, objectives: tuple[str, str], space: Space, seed: int) -> None:
        self._optuna, self._space, self._seed = optuna, space, seed
        self._objectives = objectives
        self._spread = max(FEWEST, *(len(options) for options in space.places))
        self._study = optuna.create_study(directions=["minimize"] * 2)

    def sampler(self, number: int, several: bool) -> Any:
        """What draws a trial: the same after a restart; of several, each knows that the others are being tried.

        A Gaussian process needs the fewest trials where all have the same knobs (Optuna's, with the expected gain in
        hypervolume); a tree-structured Parzen estimator knows knobs that only some steps have.
        """
        samplers, seed = self._optuna.samplers, self._seed + number
        if self._space.static and number < MOST_MODELLED:
            return samplers.GPSampler(seed=seed, n_startup_trials=1)
        return samplers.TPESampler(seed=seed, n_startup_trials=1, constant_liar=several)

    def drawn(self, numbers: Sequence[int]) -> list[Draw]:
        """What these trials try, all drawn before one is."""
        draws, asked = [], []
        for number in numbers:
            trial: Any = _Spread(number, self._spread, self._seed)
            if number >= self._spread:
                self._study.sampler = self.sampler(number, len(numbers) > 1)
                trial = self._study.ask()
                asked.append(trial)
            try:
                recipe, why = self._space.suggested(trial), ""
            except InvalidInput as error:
                recipe, why = None, str(error)
            draws.append(Draw(number, dict(trial.params), recipe, why))
        for each in asked:
            self._study.tell(each, state=self._optuna.trial.TrialState.FAIL)  # told in full, as after a restart
        return draws

    def told(self, trial: Trial, found: Search) -> None:
        """Let the sampler know how a trial went, after those that were found before."""
        self._study.add_trial(
            self._optuna.create_trial(
                params=dict(trial.params),
                distributions=_Drawn(trial.params).distributions(self._optuna, self._space),
                values=[self._value(trial, found, metric) for metric in self._objectives],
                constraints={str(each): self._excess(trial, found, each) for each in found.constraints}
                | {"applies": float(trial.ended == "refused")},
            )
        )

    def _excess(self, trial: Trial, found: Search, bound: Constraint) -> float:
        """How far beyond a bound; where that was not measured, as far as the worst of those that were."""
        if bound.metric in trial.estimates:
            return found.excesses(trial)[bound]
        return max((found.excesses(each).get(bound, 0.0) for each in found.trials), default=0.0)

    def _value(self, trial: Trial, found: Search, metric: str) -> float:
        """What is minimized; of what was not measured, the worst that was."""
        if metric in trial.estimates:
            return -BETTER[metric] * trial.estimates[metric].value
        known = [-BETTER[metric] * each.estimates[metric].value for each in found.trials if metric in each.estimates]
        return max([*known, -BETTER[metric] * found.seen[metric].value])


class _Spread:
    """One point of a Latin hypercube: stands in for Optuna's trial.

    Args:
        number: of the point.
        points: how many there are.
        seed: of how the heights of each choice are shuffled.
    """

    def __init__(self, number: int, points: int, seed: int) -> None:
        self._number, self._points, self._seed = number, points, seed
        self.params: dict[str, Any] = {}

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self.params.setdefault(name, choices[self._height(name, len(choices))])

    def suggest_int(self, name: str, low: int, high: int) -> Any:
        return self.params.setdefault(name, low + self._height(name, high - low + 1))

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> Any:
        share = self._height(name, MANY) / (MANY - 1)
        value = low * (high / low) ** share if log else low + (high - low) * share
        return self.params.setdefault(name, min(max(value, low), high))

    def _height(self, name: str, count: int) -> int:
        """Which of so many values: each as often as the others, both ends among them."""
        order = list(range(self._points))
        random.Random(f"{self._seed} {name}").shuffle(order)
        at = order[self._number]
        return at * count // self._points if count <= self._points else round(at * (count - 1) / (self._points - 1))


class _Drawn:
    """Stands in for Optuna's trial where its choices are known: notes the distributions that they come from."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self._params = params
        self._found: dict[str, Any] = {}
        self._optuna: Any = None

    def distributions(self, optuna: Any, space: Space) -> dict[str, Any]:
        """Of every choice."""
        self._optuna = optuna
        with suppress(InvalidInput):
            space.suggested(self)
        return self._found

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        self._found[name] = self._optuna.distributions.CategoricalDistribution(choices)
        return self._params[name]

    def suggest_int(self, name: str, low: int, high: int) -> Any:
        self._found[name] = self._optuna.distributions.IntDistribution(low, high)
        return self._params[name]

    def suggest_float(self, name: str, low: float, high: float, **scale: Any) -> Any:
        self._found[name] = self._optuna.distributions.FloatDistribution(low, high, **scale)
        return self._params[name]
