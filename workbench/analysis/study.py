"""What a search tries next: drawn by Optuna, which is told how every trial went."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from workbench.analysis.found import Search
from workbench.analysis.goals import BETTER
from workbench.analysis.space import Space
from workbench.analysis.trials import Draw, Trial
from workbench.core.errors import InvalidInput

STARTUP = 8  # trials that are drawn at random


class Study:
    """What Optuna draws and is told."""

    def __init__(self, optuna: Any, objectives: tuple[str, str], space: Space, seed: int) -> None:
        self._optuna, self._space, self._seed = optuna, space, seed
        self._objectives = objectives
        self._study = optuna.create_study(directions=["minimize"] * 2)

    def sampler(self, number: int, several: bool) -> Any:
        """What draws a trial: the same after a restart; of several, each knows that the others are being tried."""
        return self._optuna.samplers.TPESampler(
            seed=self._seed + number, n_startup_trials=STARTUP, constant_liar=several
        )

    def drawn(self, numbers: Sequence[int]) -> list[Draw]:
        """What these trials try, all drawn before one is."""
        asked, draws = [], []
        for number in numbers:
            self._study.sampler = self.sampler(number, len(numbers) > 1)
            asked.append(self._study.ask())
            try:
                recipe, why = self._space.suggested(asked[-1]), ""
            except InvalidInput as error:
                recipe, why = None, str(error)
            draws.append(Draw(number, dict(asked[-1].params), recipe, why))
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
                constraints={str(each): excess for each, excess in found.excesses(trial).items()}
                | {"applies": float(trial.ended == "refused")},
            )
        )

    def _value(self, trial: Trial, found: Search, metric: str) -> float:
        """What is minimized; of what was not measured, the worst that was."""
        if metric in trial.estimates:
            return -BETTER[metric] * trial.estimates[metric].value
        known = [-BETTER[metric] * each.estimates[metric].value for each in found.trials if metric in each.estimates]
        return max([*known, -BETTER[metric] * found.seen[metric].value])


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
