"""Runs of all notebooks and days in one place: filtered, compared where that is allowed, drawn over time, exported."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core import files
from workbench.core.drawn import Drawn, drawn
from workbench.core.errors import Incomparable, InvalidInput, NotAvailable
from workbench.core.optional import library
from workbench.measurement import scales
from workbench.measurement.comparison import Comparison
from workbench.measurement.runs import Run, RunStore, known_stores

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects


@dataclass(frozen=True)
class History(Drawn):
    """Runs, the oldest first.

    Attributes:
        runs: all of them.
        places: the files that they were read from.
    """

    runs: tuple[Run, ...]
    places: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    def where(
        self, *, variant: str = "", task: str = "", device: str = "", step: str = "", since: str = "", until: str = ""
    ) -> "History":
        """Those that fit.

        Args:
            variant: part of its name.
            task: part of the task's name, or its fingerprint.
            device: part of the device's name.
            step: a step of the recipe, such as "GPTQ".
            since: the first day or time, as in "2026-11-01".
            until: the last one; a day counts whole.
        """

        def fits(run: Run) -> bool:
            return (
                variant in run.variant
                and (task in run.task or task == run.fingerprint)
                and device in run.environment.get("device", "")
                and (not step or any(str(each.get("step", "")).endswith(step) for each in run.recipe))
                and since <= run.measured_at
                and (not until or run.measured_at[: len(until)] <= until)
            )

        return replace(self, runs=tuple(filter(fits, self.runs)))

    def comparison(self, *numbers: int) -> Comparison:
        """Some of the runs beside each other, the first as the baseline.

        Args:
            numbers: of the runs, as `table` has them; the latest are -1, -2.

        Raises:
            InvalidInput: there is no such run.
            Incomparable: they may not be compared; the reason is named.
        """
        for number in numbers:
            if not -len(self.runs) <= number < len(self.runs):
                raise InvalidInput(f"There is no run {number}: there are {len(self.runs)}, from 0.")
        chosen = [self.runs[number] for number in numbers]
        names = [run.variant for run in chosen]
        called = [
            name if names.count(name) == 1 else f"{name} ({run.measured_at})"
            for name, run in zip(names, chosen, strict=True)
        ]
        return Comparison([run.model_copy(update={"variant": name}) for run, name in zip(chosen, called, strict=True)])

    def comparable(self, number: int = -1) -> tuple[Comparison, dict[str, str]]:
        """A run beside all that may be compared with it, the latest of each variant; and why the others may not.

        Args:
            number: of the baseline, as `table` has it; by default the latest run.
        """
        baseline = self.comparison(number).baseline
        found, refused = {baseline.variant: baseline}, dict[str, str]()
        for run in self.runs:
            if run.variant == baseline.variant:
                continue
            try:
                Comparison([baseline, run])
            except Incomparable as error:
                refused[f"{run.variant}, {run.measured_at}"] = str(error)
            else:
                found[run.variant] = run
        return Comparison(list(found.values())), refused

    def table(self) -> "pandas.DataFrame":
        """One row a run: when, what, where, the metrics in SI units, and the recipe."""
        import pandas

        rows = []
        for run in self.runs:
            row: dict[str, Any] = {"measured_at": run.measured_at, "variant": run.variant, "task": run.task}
            row |= {name: run.environment.get(name, "") for name in ("device", "threads", "torch", "transformers")}
            row |= {metric: run.estimates[metric].value for metric in scales.METRICS if metric in run.estimates}
            rows.append(row | {"recipe": ", then ".join(str(each.get("step", "?")) for each in run.recipe)})
        return pandas.DataFrame(rows)

    def figure(
        self, metric: str = "throughput", by: str = "time", transparent: bool = False
    ) -> "plotly.graph_objects.Figure":
        """A metric over time, or over versions of the libraries: a line for each variant, task and device.

        Args:
            metric: its name.
            by: "time" or "versions".
            transparent: leave the background to the page.

        Raises:
            InvalidInput: there is no such metric or axis.
        """
        if metric not in scales.METRICS or by not in ("time", "versions"):
            raise InvalidInput(f"figure() takes by='time' or 'versions', and one of {', '.join(scales.METRICS)}.")
        return drawn(self, metric=metric, by=by, transparent=transparent)

    def to_csv(self, path: str | Path) -> Path:
        """Write the table."""
        place = files.home(path)
        files.write_text(place, self.table().to_csv(index_label="run"))
        return place

    def to_mlflow(self, experiment: str = "workbench", uri: str | None = None) -> int:
        """Add the runs to MLflow; those that are there already are left as they are.

        Args:
            experiment: its name.
            uri: of the tracking server or its database; by default MLflow's own.

        Returns:
            How many were added.

        Raises:
            NotAvailable: MLflow is not installed, or cannot be reached.
        """
        mlflow = library("mlflow", "Exporting to MLflow")
        try:
            if uri:
                mlflow.set_tracking_uri(uri)
            number = mlflow.set_experiment(experiment).experiment_id
            client = mlflow.MlflowClient()
            return sum(_added(client, number, run) for run in self.runs)
        except mlflow.exceptions.MlflowException as error:
            raise NotAvailable(f"MLflow refused the runs: {str(error).splitlines()[0][:200]}.") from None

    def to_trackio(self, project: str = "workbench") -> int:
        """Add the runs to Trackio, each as a run of its own; gives how many.

        Raises:
            NotAvailable: Trackio is not installed.
        """
        trackio = library("trackio", "Exporting to Trackio")
        for run in self.runs:
            trackio.init(project=project, name=f"{run.variant} {run.measured_at}", config=_facts(run))
            trackio.log({metric: found.value for metric, found in run.estimates.items()})
            trackio.finish()
        return len(self.runs)

    def __repr__(self) -> str:
        if not self.runs:
            return "<History: no runs yet>"
        return f"<History: {len(self.runs)} runs from {self.runs[0].measured_at} to {self.runs[-1].measured_at}>"


def history(*places: str | Path) -> History:
    """The runs of every notebook that kept some on this machine, or of some files and folders.

    Args:
        places: files of runs, or folders in which files called ``runs.jsonl`` are looked for.

    Raises:
        InvalidInput: there is no such file or folder.
    """
    found: list[Path] = []
    for each in map(files.home, places):
        if not each.exists():
            raise InvalidInput(f"There is nothing at '{each}': name a file of runs, or a folder that holds some.")
        found += sorted(each.rglob("runs.jsonl")) if each.is_dir() else [each]
    paths = tuple(found) if places else known_stores()
    runs = {(run.session, run.variant): run for path in paths for run in RunStore(path)}
    return History(tuple(sorted(runs.values(), key=lambda run: run.measured_at)), paths)


def _facts(run: Run) -> dict[str, str]:
    recipe = ", then ".join(str(each) for each in run.recipe) or "none"
    facts = {"variant": run.variant, "source": run.source, "task": run.task, "fingerprint": run.fingerprint}
    return facts | {"recipe": recipe[:500]} | {f"environment.{name}": value for name, value in run.environment.items()}


def _added(client: Any, experiment: str, run: Run) -> bool:
    """Whether a run was new to MLflow."""
    own = hashlib.sha256(f"{run.session} {run.variant}".encode()).hexdigest()[:32]  # MLflow's filters know no quoting
    known: Sequence[Any] = client.search_runs([experiment], f"tags.\"workbench.run\" = '{own}'")
    if known:
        return False
    made = client.create_run(experiment, run_name=run.variant, tags={"workbench.run": own}).info.run_id
    for name, value in _facts(run).items():
        client.log_param(made, name, value[:500])
    for metric, found in run.estimates.items():
        for end in ("value", "low", "high"):
            client.log_metric(made, metric if end == "value" else f"{metric}_{end}", getattr(found, end))
    client.set_terminated(made)
    return True
