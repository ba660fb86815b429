"""A batch that runs: rows join it and leave it between any two tokens.

Source: Yu et al., "Orca", OSDI 2022, https://www.usenix.org/conference/osdi22/presentation/yu: every pass is planned
anew. Long prompts are read in pieces between the passes of the others, as in Agrawal et al., "Sarathi-Serve", OSDI
2024; when the memory is full the last rows wait and are read again later, as in Kwon et al., "vLLM", SOSP 2023.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence

import torch
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from workbench.core.errors import InvalidInput, OutOfMemory
from workbench.runtime.asks import Ask, hear
from workbench.runtime.forward import memory_guard, using
from workbench.runtime.kept import kept, known_prefix
from workbench.runtime.kernels import quickened
from workbench.runtime.kvcache import FULL
from workbench.runtime.prefix import Prefix
from workbench.runtime.reading import Reading
from workbench.runtime.slots import Slots
from workbench.runtime.trial import way_of

CHUNK = 128  # tokens of prompts that are read between two passes of the others
ALONE = 512  # the same where there are no others; every piece costs a pass over the weights
STRETCH = 64  # tokens that places are set aside for at a time, at least


class Running:
    """Answers decoded side by side, each in a row of its own that it leaves when it ends.

    What a row says depends on the others by rounding only. When memory runs out, the last rows wait, and what they have
    said is read again when there is room.

    Attributes:
        going: answers that have a row.
        waiting: those that have none yet, first come first served.

    Args:
        model: a causal language model that `Way.slots` says it fits.
        rows: how many may have a row at once.
        most_bytes: of keys and values; one row alone may have more. None sets no bound but the device's.
        prefix: what all prompts begin with and leave out.
        label: whose or what work it is.
        keeps: bytes of what was read that are kept for prompts that begin alike, where nothing is left out.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        rows: int,
        most_bytes: int | None = None,
        prefix: Prefix | None = None,
        label: str = "Answering",
        keeps: int = 0,
    ) -> None:
        self._rows, self._most_bytes, self._prefix, self._label = rows, most_bytes, prefix, label
        self._given, self._model, self._keeps = model, quickened(model), 0 if prefix else keeps
        self._start = prefix.length if prefix else 0
        self._padded, self._context = way_of(model).padded, context_length(model.config)
        self._allowed = rows  # fewer once memory ran out, until all have left
        self._slots: Slots | None = None
        self._reading: Reading | None = None
        self._just_read = False
        self._token_bytes = 0  # known once a prompt was read
        self.going: list[Ask] = []
        self.waiting: deque[Ask] = deque()

    @property
    def busy(self) -> bool:
        """Whether anything is left to do."""
        return bool(self.going or self.waiting or self._reading)

    @property
    def held_bytes(self) -> int:
        """Memory that keys and values have now."""
        return self._slots.held_bytes if self._slots else 0

    def join(self, asks: Iterable[Ask]) -> None:
        """Let answers wait for a row. The context bounds how long each may be, whatever it was asked for."""
        for ask in asks:
            room = self._context - self._length(ask)
            ask.limit = min(ask.limit, len(ask.said) + max(0, room))
            if room < 1:
                ask.error = InvalidInput(
                    f"The prompt has {self._length(ask)} tokens, but {self._context} is all that the model holds, "
                    "prompt and answer together: shorten the prompt."
                )
            else:
                self.waiting.append(ask)

    def leave(self, gone: Iterable[Ask]) -> None:
        """Take answers out, wherever they are; their rows are free at once."""
        for ask in gone:
            ask.gone = True
        self.waiting = deque(ask for ask in self.waiting if not ask.gone)
        if self._reading and all(ask.gone for ask in self._reading.asks):
            self._reading = None
        self._drop(lambda ask: ask.gone)

    def step(self) -> None:
        """One pass: a piece of what waits is read, or a token is decoded for every row, in turn."""
        with using(self._label):
            self._just_read = not (self._just_read and self.going) and self._read()
            if not self._just_read:
                self._decode()

    def _read(self) -> bool:
        """Read a piece of the prompts whose turn it is; with the last come first tokens and rows. False without any."""
        reading = self._reading
        if reading is None:
            asks = self._next()
            if not asks:
                return False
            most = CHUNK if self.going else ALONE
            reading = Reading(self._model, asks, self._prefix or self._known(asks), self._start, most)
        self._reading = None
        try:
            with memory_guard(self._label):
                logits = reading.logits()
        except OutOfMemory as error:
            self._short(reading.asks, error)
            return True
        if logits is None:
            self._reading = reading
        else:
            hear(reading.asks, logits)
            self._seat(reading)
        return True

    def _next(self) -> list[Ask]:
        """Who is read next: the first who waits, and those behind it that fit the same piece."""
        chosen: list[Ask] = []
        texts: set[tuple[int, ...]] = set()  # samples of one request have the same, which is read once
        while self.waiting and len(self.going) + len(chosen) < self._allowed:
            ask = self.waiting[0]
            lengths = {len(text) for text in (*texts, ask.text)}
            fits = (len(lengths) == 1 or self._padded) and max(lengths) * (len(texts) + 1) <= CHUNK
            if (chosen and not fits and ask.text not in texts) or not self._has_room([*chosen, ask]):
                break
            chosen.append(self.waiting.popleft())
            texts.add(ask.text)
        return chosen

    def _known(self, asks: Sequence[Ask]) -> Prefix | None:
        """What was read before of the one text that all of these have."""
        if not self._keeps or any(ask.text != asks[0].text for ask in asks):
            return None
        return known_prefix(self._given, [asks[0].text], FULL, self._keeps)

    def _keep(self, ids: Sequence[int], cache: DynamicCache) -> None:
        """Keep what was read of these tokens; the cache is nobody else's."""
        if self._keeps:
            kept(self._given).keep(Prefix.of(ids, cache), self._keeps)

    def _seat(self, reading: Reading) -> None:
        """Give rows to those who were read."""
        self._token_bytes = reading.token_bytes
        for index, ask in enumerate(reading.asks):
            if ask.ended:
                continue
            read = self._length(ask) - 1
            try:
                with memory_guard(self._label):
                    slots = self._fit(len(self.going) + 1, read + 1, len(self.going) + len(reading.asks) - index)
                    slots.put(reading.cache, reading.row(index), read, reading.start)
            except OutOfMemory as error:
                self._short(reading.asks[index:], error)
                return
            self.going.append(ask)
        if len(set(map(reading.row, range(len(reading.asks))))) == 1:
            self._keep(reading.asks[0].ids, reading.cache)

    def _decode(self) -> None:
        """One token for every row."""
        slots = self._stretched()
        if slots is None:
            return
        before = list(slots.lengths)
        tokens = torch.tensor([[ask.said[-1]] for ask in self.going], device=self._model.device)
        try:
            with memory_guard(self._label):
                logits = slots.logits(tokens)[:, -1]
        except OutOfMemory as error:
            slots.lengths = before
            self._short([], error)
            return
        hear(self.going, logits)
        self._drop(lambda ask: ask.ended)

    def _length(self, ask: Ask) -> int:
        """Tokens of a row, the last said included, which is read with the next pass."""
        return self._start + len(ask.ids) + len(ask.said)

    def _has_room(self, asks: Sequence[Ask]) -> bool:
        """Whether these may have rows beside those that have one; the first of all always may."""
        longest = max(map(self._length, (*self.going, *asks)))
        return not self.going or self._within(len(self.going) + len(asks), longest + STRETCH // 8)

    def _within(self, count: int, length: int) -> bool:
        """Whether so many rows of a length keep to the bound."""
        return self._most_bytes is None or count * length * self._token_bytes <= self._most_bytes

    def _stretched(self) -> Slots | None:
        """The slots with a place for one more token in every row; the last rows may have to wait. None without rows."""
        while self.going:
            assert self._slots is not None
            try:
                with memory_guard(self._label):
                    return self._fit(len(self.going), max(self._slots.lengths) + 1, len(self.going))
            except OutOfMemory as error:
                if len(self.going) == 1:
                    self.going[0].fail(error)
                self._set_aside(1)
        return None

    def _fit(self, count: int, length: int, wished: int) -> Slots:
        """The slots with places for so many rows of a length at least, and for as many as are wished if they may be.

        Raises:
            OutOfMemory: there is no memory for them, or they may not have it.
        """
        slots = self._slots
        if slots and count <= slots.count and length <= slots.capacity:
            return slots
        if slots and slots.lengths:
            count, length = max(count, len(slots.lengths)), max(length, *slots.lengths)
            wished = max(wished, slots.count)
        roomy = [min(self._context, length + more) for more in (max(STRETCH, length // 4), STRETCH // 8, 0)]
        options = [(rows, places) for places in roomy for rows in (max(count, wished), count)]
        count, length = next((each for each in options if self._within(*each)), (count, length))
        if count > 1 and not self._within(count, length):
            raise OutOfMemory(
                f"{self._label}: keys and values of {count} rows of {length} tokens are beyond the bound."
            )
        if slots:
            slots.resize(count, length)
        else:
            slots = self._slots = Slots(self._model, count, length)
        return slots

    def _short(self, unread: Sequence[Ask], error: OutOfMemory) -> None:
        """Memory ran out, while reading these or in a pass of all: fewer rows from now on; one alone has failed."""
        unread = [ask for ask in unread if not ask.ended]
        if len(self.going) + len(unread) == 1:
            for ask in (*self.going, *unread):
                ask.fail(error)
            self._drop(lambda ask: ask.ended)
        elif unread:
            self.waiting.extendleft(reversed(unread))
            self._allowed = len(self.going) or len(unread) // 2
        else:
            self._set_aside(len(self.going) // 2)

    def _set_aside(self, count: int) -> None:
        """Let the last rows wait until others have left."""
        aside = [ask for ask in self.going[-count:] if not ask.ended]
        self._drop(lambda ask: ask.ended or ask in aside)
        self.waiting.extendleft(reversed(aside))
        self._allowed = len(self.going) or self._allowed

    def _drop(self, gone: Callable[[Ask], bool]) -> None:
        """Free the rows of some; once none is left, all memory."""
        for row in reversed(range(len(self.going))):
            if gone(self.going[row]):
                ask = self.going[row]
                assert self._slots is not None
                if self._keeps and ask.follower.ended and ask.error is None:
                    self._keep(ask.text, self._slots.taken(row))
                self._slots.drop(row)
                self.going[row] = self.going[-1]
                self.going.pop()
        if not self.going:
            self._slots, self._allowed = None, self._rows


def context_length(config: PreTrainedConfig) -> int:
    """How many tokens, prompt and answer together, a model of this configuration can hold."""
    return stated_length(config) or 2048


def stated_length(config: PreTrainedConfig) -> int | None:
    """The same, where the configuration says it."""
    config = config.get_text_config()
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "n_ctx")]
    return next((int(limit) for limit in limits if limit and limit > 0), None)
