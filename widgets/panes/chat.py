"""Talk to several variants at once: they answer side by side, in fair turns."""

import contextlib
import queue
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

from widgets.parts import html, ui
from widgets.parts.asked import Asked
from widgets.parts.number import Number
from widgets.record import KeptAnswer, KeptTurn
from workbench.answering.concurrent import Told
from workbench.answering.request import Passage, Piece
from workbench.answering.speaker import Respondent
from workbench.core.errors import Cancelled, InvalidInput, WorkbenchError
from workbench.core.jobs import Job
from workbench.core.progress import Progress, Throttle

if TYPE_CHECKING:
    from widgets.session import Session

MOST_SIDE_BY_SIDE = 4
PATIENCE = 0.05  # seconds that a cancel may wait for while nothing is said


@dataclass
class Answer:
    """What one variant has said so far.

    Attributes:
        looked_up: seconds that its stages took before the first token, such as looking something up.
        seconds: spent on it, with those that are decoded in the same pass; the turns of the others are left out.
        first: seconds to the first token.
        sources: the documents it was given.
        notes: what should be known of it.
        cached: whether it was known, so that nothing was decoded.
    """

    name: str
    colour: str
    text: str = ""
    tokens: int = 0
    looked_up: float = 0.0
    seconds: float = 0.0
    first: float = 0.0
    state: str = "waiting"
    sources: tuple[Passage, ...] = ()
    notes: tuple[str, ...] = ()
    cached: bool = False

    def take(self, piece: Piece, seconds: float) -> None:
        """Add a token, after which so many seconds have been spent on decoding."""
        self.text += piece.text
        self.tokens += 1
        self.seconds = self.looked_up + seconds
        if self.tokens == 1:
            self.first = self.seconds
        self.state = "answering"
        if piece.answer:  # what the output steps made of it
            self.text, self.tokens = piece.answer.text, piece.answer.spent
            self.sources, self.notes = piece.answer.passages, piece.answer.notes
            self.cached = bool(piece.answer.cached)

    def kept(self) -> KeptAnswer:
        """For the record."""
        fields = {name: getattr(self, name) for name in KeptAnswer.model_fields}
        return KeptAnswer(**fields)

    @property
    def facts(self) -> list[str]:
        """Speed after the first token, time to it, and how many there are, for people."""
        if self.cached:
            return [f"from the cache after {1000 * self.seconds:.0f} ms"]
        if not self.tokens:
            return [self.state]
        said = [f"first after {1000 * self.first:.0f} ms", f"{self.tokens} tokens"]
        if self.seconds > self.first:
            said.insert(0, f"{(self.tokens - 1) / (self.seconds - self.first):.1f} tokens/s")
        return said if self.state in ("answering", "done") else [*said, self.state]

    def html(self) -> str:
        """A column; the answer is escaped."""
        facts = " ".join(f"<span>{escape(each)}</span>" for each in self.facts)
        sources = "".join(f"<li>{escape(each.id)}: {escape(each.text)}</li>" for each in self.sources)
        shown = (
            f"<details><summary>{len(self.sources)} documents</summary><ol>{sources}</ol></details>" if sources else ""
        )
        noted = "".join(html.help_line(each) for each in self.notes)
        return (
            f'<div class="wb-answer" style="border-color:{self.colour}"><b>{escape(self.name)}</b>'
            f'<span class="wb-speed">{facts}</span><div class="wb-said">{escape(self.text)}</div>{shown}{noted}</div>'
        )


@dataclass
class Turn:
    """A question and its answers, by variant name."""

    prompt: str
    answers: dict[str, Answer] = field(default_factory=dict)

    def kept(self) -> KeptTurn:
        """For the record."""
        return KeptTurn(prompt=self.prompt, answers=tuple(each.kept() for each in self.answers.values()))

    @classmethod
    def recalled(cls, kept: KeptTurn, bench: "Session") -> "Turn":
        """From the record."""
        answers = {}
        for each in kept.answers:
            state = each.state if each.state in ("done", "no answer", "ended early") else "stopped"
            answers[each.name] = Answer(colour=bench.colour(each.name), **each.model_dump() | {"state": state})
        return cls(kept.prompt, answers)

    def html(self) -> str:
        """The question above the answers in columns."""
        columns = "".join(answer.html() for answer in self.answers.values())
        asked = f'<div class="wb-asked">{escape(self.prompt)}</div>'
        return f'<div class="wb-turn">{asked}<div class="wb-answers">{columns}</div></div>'


class Chat:
    """The chat pane.

    Attributes:
        turns: the conversation so far.
        widget: what is shown.
    """

    def __init__(self, bench: "Session") -> None:
        self.bench = bench
        self.turns: list[Turn] = []
        self._job: Job | None = None
        self.past, self.live, self.message = ui.HTML(), ui.HTML(), ui.HTML()
        self.past.value = EMPTY
        talk = ui.VBox([self.past, self.live])
        scroll = ui.VBox([talk])
        scroll.add_class("wb-scroll")
        self.prompt = ui.Textarea(
            description="Prompt", placeholder="Ask something", tooltip="What to ask", rows=3, continuous_update=False
        )
        self.length = Number(
            128, 1, 512, notch=1, whole=True, description="Most tokens", tooltip="How long an answer may be"
        )
        self.temperature = Number(
            0.0,
            0.0,
            2.0,
            notch=0.05,
            description="Temperature",
            tooltip="0 takes the most likely token; more is freer",
        )
        self.send = ui.Button(description="Send", button_style="primary", tooltip="Ask the chosen variants")
        self.stop = ui.Button(description="Stop", tooltip="Stop answering and keep what was said", disabled=True)
        self.fresh = ui.Button(description="New conversation", tooltip="Forget what was said")
        self.to = ui.HTML()
        settings = ui.HBox([self.length, self.temperature])
        settings.add_class("wb-grid")
        buttons = ui.HBox([self.send, self.stop, self.fresh, self.to])
        buttons.add_class("wb-footer")
        self.widget = ui.VBox([scroll, self.prompt, settings, buttons, self.message])
        self.widget.add_class("wb-panel")
        self.send.on_click(lambda _: self.ask())
        self.stop.on_click(lambda _: self._job and self._job.cancel())
        self.fresh.on_click(lambda _: self.forget())
        bench.watch(self._show_chosen)
        bench.kept["turns"] = self._kept
        self._show_chosen()

    def recall(self, turns: Sequence[KeptTurn]) -> None:
        """Show an earlier conversation, which goes on from there; what is shown already stays where it is."""
        with self.bench.lock:
            there = [each.html() for each in self.turns]
            earlier = [Turn.recalled(each, self.bench) for each in turns]
            self.turns = [each for each in earlier if each.html() not in there] + self.turns
            self.past.value = "".join(each.html() for each in self.turns) or EMPTY
            self.live.value = ""

    def _kept(self) -> tuple[KeptTurn, ...]:
        return tuple(each.kept() for each in self.turns)

    def ask(self) -> None:
        """Queue the prompt for every chosen variant."""
        prompt, names = self.prompt.value, self.bench.newest_chosen(MOST_SIDE_BY_SIDE)
        try:
            settings = {"max_new_tokens": self.length.checked, "temperature": self.temperature.checked}
            if not prompt.strip():
                raise InvalidInput("The prompt is empty: type a question.")
            if not names:
                raise InvalidInput("No variant is chosen: tick at least one in the list.")
            variants = {name: self.bench[name] for name in names}

            def work(progress: Progress) -> None:
                self._answer(variants, prompt, settings, progress)

            with self.bench.lock:
                self.message.value = ""
                self._job = self.bench.submit(f"Chat with {', '.join(names)}", work, self._follow, key="chat")
                self.stop.disabled = False
                self.prompt.value = ""
        except WorkbenchError as error:
            self.message.value = html.message(str(error), "error")

    def forget(self) -> None:
        """Start a new conversation."""
        with self.bench.lock:
            if self._job and not self._job.ended:
                self._job.cancel()
            self.turns = []
            self.message.value, self.live.value, self.past.value = "", "", EMPTY
            self.bench.keep()

    def _answer(self, variants: dict[str, Respondent], prompt: str, settings: dict, progress: Progress) -> None:
        """Ask all at once and show what each says as it comes, until all have ended; runs on the worker.

        They are decoded in fair turns, beside whoever else asks; those of one model in one batch.
        """
        turn = Turn(prompt, {name: Answer(name, self.bench.colour(name)) for name in variants})
        with self.bench.lock:
            past, self.turns = self.turns, [*self.turns, turn]
            self._show(past, turn)
        show = Throttle(lambda: self._show(past, turn))
        progress.start("Answering", len(variants) * settings["max_new_tokens"])
        news: queue.SimpleQueue[tuple[str, Told]] = queue.SimpleQueue()
        calls: dict[str, Asked] = {}
        going = list(variants)
        try:
            for name, variant in variants.items():
                calls[name] = Asked(variant, lambda told, name=name: news.put((name, told)))
                known = calls[name].begin(_messages(past, name, prompt), settings)
                turn.answers[name].looked_up = calls[name].looked_up
                if known:
                    turn.answers[name].take(known, 0.0)
                    turn.answers[name].state = "done"
                    going.remove(name)
            for name in going:
                calls[name].start()
            while going:
                name, told = _next(news, progress)
                if isinstance(told, Exception):
                    raise told
                for piece in told:
                    turn.answers[name].take(piece, calls[name].seconds)
                    progress.advance()
                show()
                if told[-1].answer:
                    turn.answers[name].state = "done"
                    going.remove(name)
        except Cancelled:
            for answer in turn.answers.values():
                answer.state = answer.state if answer.state == "done" else "stopped"
            raise
        except WorkbenchError:
            for name in variants:
                turn.answers[name].state = "no answer" if not turn.answers[name].tokens else "ended early"
            raise
        finally:
            for call in calls.values():
                call.leave()
            show(force=True)
            self.bench.keep()

    def _show(self, past: list[Turn], turn: Turn) -> None:
        with self.bench.lock:
            if self.bench.closed or turn not in self.turns:
                return
            said = "".join(each.html() for each in past)
            if self.past.value != said:
                self.past.value = said
            self.live.value = turn.html()

    def _follow(self, job: Job) -> None:
        self.stop.disabled = job.ended
        if job.status == "failed":
            self.message.value = html.message(job.error, "error", job.details)
        elif job.status == "cancelled":
            self.message.value = html.message("Stopped: what was said is kept.")

    def _show_chosen(self) -> None:
        names, ticked = self.bench.newest_chosen(MOST_SIDE_BY_SIDE), len(self.bench.chosen)
        more = f": of {ticked} that are ticked, the {len(names)} ticked last" if ticked > len(names) else ""
        said = html.help_line(f"To {', '.join(names)}{more}." if names else "Tick a variant in the list.")
        if self.to.value != said:
            self.to.value = said


def _next(news: "queue.SimpleQueue[tuple[str, Told]]", progress: Progress) -> tuple[str, Told]:
    """What is said next, and by whom; raises `Cancelled` when a cancel was requested meanwhile."""
    while True:
        progress.check()
        with contextlib.suppress(queue.Empty):
            return news.get(timeout=PATIENCE)


def _messages(past: list[Turn], name: str, prompt: str) -> list[dict[str, str]]:
    """The conversation as this variant had it, then the new prompt."""
    messages = []
    for turn in past:
        if name in turn.answers and turn.answers[name].text:
            messages += [
                {"role": "user", "content": turn.prompt},
                {"role": "assistant", "content": turn.answers[name].text},
            ]
    return [*messages, {"role": "user", "content": prompt}]


EMPTY = (
    '<div class="wb-empty">Ask one question of several variants and watch them answer in turn, one token each.</div>'
)
