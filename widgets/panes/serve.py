"""Serve what won: start it as a service, watch its replicas, and put it under load."""

import threading
from html import escape
from typing import TYPE_CHECKING, Any

from widgets.parts import html, ui
from widgets.parts.code import Snippet
from widgets.parts.figure import Plot, draw
from widgets.parts.message import Message
from widgets.parts.number import Number
from widgets.parts.style import close_tree
from workbench.core.errors import InvalidInput, WorkbenchError
from workbench.core.progress import Progress
from workbench.display.load import cell
from workbench.display.report import STYLE
from workbench.serving.application import POLICIES
from workbench.serving.load import LoadTest, load_test
from workbench.serving.queueing import Forecast, forecast
from workbench.serving.replica import ROWS
from workbench.serving.service import Service, serve
from workbench.serving.simulation import POLICIES as SIMULATED
from workbench.serving.times import ServiceTimes

if TYPE_CHECKING:
    from widgets.session import Session

PERIOD = 1.0  # seconds between two looks at the replicas
SLOW = 3.0  # times that a slow replica takes
HEADS = (
    "Replica",
    "In flight",
    "Answered",
    "Failed",
    "Tokens/s",
    "First token, ms: p50 / p95 / p99",
    "Whole answer, ms: p50 / p95 / p99",
)


class Serve:
    """The serving pane.

    Attributes:
        service: the one that runs, or None.
        load: the last load test, or None.
        plot: its figure, once there is one.
        widget: what is shown.
    """

    def __init__(self, bench: "Session") -> None:
        self.bench = bench
        self.service: Service | None = None
        self.load: LoadTest | None = None
        self.plot: Plot | None = None
        self._over = threading.Event()
        self.target = ui.Dropdown(options=tuple(bench.respondents), description="Serve", tooltip="What answers")
        self.policy = ui.Dropdown(options=tuple(POLICIES), description="Policy", tooltip="How a replica is chosen")
        self.replicas = Number(1, 1, 8, notch=1, whole=True, description="Replicas", tooltip="Processes that answer")
        self.port = Number(0, 0, 65535, whole=True, description="Port", tooltip="Of HTTP; 0 takes one that is free")
        self.start = ui.Button(
            description="Start", button_style="primary", tooltip="Start it as a service that only this machine reaches"
        )
        self.stop = ui.Button(description="Stop", tooltip="End the service", disabled=True)
        self.list = ui.Button(description="Add to the list", tooltip="Talk to it and compare it", disabled=True)
        self.kill = ui.Button(
            description="Kill a replica", tooltip="End one process at once, to see what becomes of it", disabled=True
        )
        self.kind = ui.ToggleButtons(
            options=[("Requests a second", "rate"), ("Requests at once", "concurrency")],
            description="Load",
            tooltip="Requests that come at random, or so many at once",
        )
        self.level = Number(1.0, 0.1, 100.0, description="Level", tooltip="Requests a second, or at once")
        self.seconds = Number(
            10, 1, 600, notch=1, whole=True, description="Seconds", tooltip="That requests are sent for"
        )
        self.test = ui.Button(description="Put under load", tooltip="Ask it the task's questions", disabled=True)
        self.slow = ui.Button(
            description="If one were slow",
            tooltip="Simulate policies with one replica at a third of its speed, at the load of the last test",
            disabled=True,
        )
        self.message, self.where, self.seats, self.report = Message(bench), ui.HTML(), ui.HTML(), ui.HTML()
        self.costs = ui.HTML()
        self.code, self.place, self.times = Snippet(), ui.VBox(), ui.VBox()
        knobs = ui.HBox([self.policy, self.replicas, self.port])
        loads = ui.HBox([self.level, self.seconds])
        for box in (knobs, loads):
            box.add_class("wb-grid")
        footer = ui.HBox([self.start, self.stop, self.list, self.kill])
        under = ui.HBox([self.test, self.slow])
        for box in (footer, under):
            box.add_class("wb-footer")
        shown = [self.where, self.seats, self.kind, loads, under, self.place, self.times, self.report, self.costs]
        self.widget = ui.VBox([self.target, knobs, footer, self.message, *shown, self.code])
        self.widget.add_class("wb-panel")
        self.start.on_click(lambda _: self.run())
        self.stop.on_click(lambda _: self.end())
        self.list.on_click(lambda _: self._add())
        self.kill.on_click(lambda _: self._kill())
        self.test.on_click(lambda _: self.measure())
        self.slow.on_click(lambda _: self.simulate())
        for knob in (self.target, self.policy, self.replicas, self.port, self.kind, self.level, self.seconds):
            knob.observe(lambda _: self._show_code(), "value")
        bench.watch(self._show_targets)
        self._show_state()

    def run(self) -> None:
        """Queue the start of the service."""
        with self.message.refusals():
            if self.service is not None:
                raise InvalidInput("A service runs already: stop it first.")
            name, settings = self.target.value, self._settings()
            who = self.bench[name]

            def work(progress: Progress) -> str:
                service = serve(who, **settings, progress=progress)
                with self.bench.lock:
                    if self.bench.closed:
                        service.stop()
                        return ""
                    self.service, self._over = service, threading.Event()
                    self._show_state()
                threading.Thread(target=self._watch, args=(service, self._over), daemon=True).start()
                return f"'{name}' is served at {service.url}."

            self.message.submit(f"Serve {name}", work, key="serve")

    def end(self) -> None:
        """Queue the end of the service."""
        with self.message.refusals():
            service = self._running()

            def work(progress: Progress) -> str:
                self._over.set()
                service.stop()
                with self.bench.lock:
                    self.service = None
                    self._show_state()
                return "The service has ended."

            self.message.submit("Stop the service", work, key="serve")

    def measure(self) -> None:
        """Queue a load test of the service with the bench's task."""
        with self.message.refusals():
            service, task = self._running(), self.bench.task
            if task is None:
                raise InvalidInput(f"This bench has no task to take questions from. {html.NO_TASK}")
            settings = {self.kind.value: self._level(), "seconds": self.seconds.checked}

            def work(progress: Progress) -> str:
                self.load = load_test(service, task, **settings, progress=progress, on_update=self._draw_requests)
                with self.bench.lock:
                    if not self.bench.closed:
                        self.plot = draw(self.place, self.load.figure(transparent=True))
                        self.report.value, self.costs.value = html.wide(self.load.html()), ""
                        self.slow.disabled = False
                return str(self.load)

            self.message.submit("Put under load", work, key="load")

    def _draw_requests(self, found: LoadTest) -> None:
        """Show every request so far, while others come."""
        figure = found.timeline(transparent=True)
        with self.bench.lock:
            if not self.bench.closed:
                draw(self.times, figure)

    def simulate(self) -> None:
        """Queue a simulation of every policy with a slow replica, at the load of the last test."""
        with self.message.refusals():
            if self.load is None:
                raise InvalidInput("Nothing was put under load yet: do that first.")
            tested = self.load
            replicas = max(2, int(self.replicas.checked))

            def work(progress: Progress) -> str:
                times = ServiceTimes.fitted(tested.samples, rows=ROWS)
                found = {
                    policy: forecast(times, tested.seen, replicas, policy=policy, slower=(SLOW,))
                    for policy in progress.track("Simulating", SIMULATED, len(SIMULATED))
                }
                with self.bench.lock:
                    if not self.bench.closed:
                        self.costs.value = costs_html(found, replicas)
                return "Policies were simulated."

            self.message.submit("Simulate policies", work, key="simulate")

    def close(self) -> None:
        """End the service and remove the pane from the page."""
        self._over.set()
        service, self.service = self.service, None
        if service is not None:  # it answers first what was begun
            threading.Thread(target=service.stop, name="workbench-stop").start()
        close_tree(self.widget)

    def _running(self) -> Service:
        if self.service is None:
            raise InvalidInput("No service runs: start one first.")
        return self.service

    def _settings(self) -> dict[str, Any]:
        return {"replicas": self.replicas.checked, "policy": self.policy.value, "port": self.port.checked}

    def _level(self) -> float:
        level = self.level.checked
        return max(1, round(level)) if self.kind.value == "concurrency" else level

    def _add(self) -> None:
        with self.message.refusals():
            service = self._running()
            self.message.submit("Add the service", lambda _: self.bench.add(service.endpoint()), "It is on the list.")

    def _kill(self) -> None:
        with self.message.refusals():
            service = self._running()
            alive = [
                name for name, seat in service.status()["replicas"].items() if seat["process"] and not seat["lost"]
            ]
            if not alive:
                raise InvalidInput("No replica has answered yet: ask it something first.")
            service.kill(alive[0])
            self.message.value = html.message(f"Replica {alive[0]} was killed: Ray starts another.")

    def _watch(self, service: Service, over: threading.Event) -> None:
        """Show the replicas until the service ends."""
        while not over.wait(PERIOD):
            try:
                said = replicas_html(service.status())
            except WorkbenchError as error:
                said = html.help_line(str(error))
            with self.bench.lock:
                if self.bench.closed or over.is_set():
                    return
                if self.seats.value != said:
                    self.seats.value = said

    def _show_state(self) -> None:
        """Follow whether a service runs."""
        runs = self.service is not None
        self.start.disabled = runs
        for button in (self.stop, self.list, self.kill, self.test):
            button.disabled = not runs
        said = f"At {self.service.url}, for this machine only." if self.service else "No service runs."
        self.where.value = html.help_line(said)
        if not runs:
            self.seats.value = ""
        self._show_code()

    def _show_targets(self) -> None:
        names = tuple(self.bench.respondents)
        if self.target.options != names:
            kept = self.target.value if self.target.value in names else names[0]
            self.target.options = names
            self.target.value = kept

    def _show_code(self) -> None:
        try:
            settings = ", ".join(f"{name}={value!r}" for name, value in self._settings().items())
            load = f"{self.kind.value}={self._level()!r}, seconds={self.seconds.checked!r}"
        except WorkbenchError as error:
            self.code.value = f"# {error}"
            return
        name = self.target.value
        who = "base" if self.bench[name] == self.bench.base else f"bench[{name!r}]"
        self.code.value = f"service = wb.serve({who}, {settings})\nwb.load_test(service, task, {load})"


def replicas_html(status: dict[str, Any]) -> str:
    """A row a replica; times in milliseconds."""
    rows = "".join(_row(name, seat) for name, seat in status["replicas"].items())
    waiting = html.help_line(f"{status['waiting']} requests wait for a replica.")
    if not rows:
        return waiting + html.help_line("No replica has answered yet.")
    head = "".join(f"<th>{each}</th>" for each in HEADS)
    table = f'<table class="wb-report"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return STYLE + waiting + html.wide(table)


def costs_html(found: dict[str, Forecast], replicas: int) -> str:
    """A row a policy: 95 % of first tokens and whole answers, in seconds with 99 % intervals, and who is refused."""
    said = html.help_line(
        f"Simulated from the times of this load: {replicas} replicas, one of them at a third of its speed. Each has a "
        "processor of its own here. What goes by the texts (prefix aware, consistent hash) is not simulated."
    )
    forecasts = list(found.values())
    if not forecasts[0].stable:
        said += html.help_line(str(forecasts[0]))
    rows = "".join(
        f"<tr><td>{policy}</td><td>{cell(each['ttft p95'])}</td><td>{cell(each['latency p95'])}</td>"
        f"<td>{each['refused'].value:.0%}</td></tr>"
        for policy, each in found.items()
    )
    head = "<tr><th>Policy</th><th>First token p95, s</th><th>Whole answer p95, s</th><th>Refused</th></tr>"
    return said + html.wide(f'<table class="wb-report"><thead>{head}</thead><tbody>{rows}</tbody></table>')


def _row(name: str, seat: dict[str, Any]) -> str:
    times = [" / ".join(f"{1e3 * value:.0f}" for value in seat[part].values()) or "–" for part in ("ttft", "latency")]
    gone = " (ended)" if seat["lost"] else ""
    cells = [f"{name}{gone}", seat["in_flight"], seat["done"], seat["failed"], f"{seat['tokens_per_second']:.1f}"]
    return "<tr>" + "".join(f"<td>{escape(str(each))}</td>" for each in [*cells, *times]) + "</tr>"
