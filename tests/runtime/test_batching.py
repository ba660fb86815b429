"""Rows that join and leave a running batch say what each says alone; running short of memory harms none."""

from pathlib import Path

import pytest
import torch
from architectures import tiny_folder
from test_slots import FIT, best

import workbench as wb
from workbench.core.errors import InvalidInput, OutOfMemory
from workbench.runtime import running as module
from workbench.runtime.asks import Ask
from workbench.runtime.batching import Batched
from workbench.runtime.decoding import Decoding
from workbench.runtime.running import Running


class Heard:
    """Hears tokens and wants so many."""

    watches = False

    def __init__(self, wanted: int = 10**6) -> None:
        self.tokens: list[int] = []
        self.wanted = wanted

    @property
    def ended(self) -> bool:
        return len(self.tokens) >= self.wanted

    def restrict(self, logits: torch.Tensor) -> None:
        """Leave all free."""

    def take(self, token: int, chance: float | None = None) -> None:
        self.tokens.append(token)


def ids(length: int, row: int = 0) -> list[int]:
    return [5 + (7 * at + 3 * row) % 150 for at in range(length)]


def ask(length: int, new: int, row: int = 0, **settings) -> Ask:
    return Ask(ids(length, row), Decoding(max_new_tokens=new, **settings), Heard())


def run(running: Running) -> int:
    most = 0
    while running.busy:
        running.step()
        most = max(most, len(running.going))
    return most


@pytest.mark.parametrize("name", FIT)
@torch.no_grad()
def test_rows_join_and_leave(name: str, tokenizer, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 16)  # the longest prompt is read in three pieces
    monkeypatch.setattr(module, "STRETCH", 4)
    model = wb.load(tiny_folder(tmp_path / name, name, tokenizer), device="cpu", dtype="float32").model
    running = Running(model, 3)
    asks = [ask(5, 9), ask(4, 2, 1), ask(40, 6, 2), ask(7, 5, 3), ask(7, 3, 4)]
    running.join(asks[:1])
    running.step()
    running.step()
    running.join(asks[1:])
    assert run(running) == 3
    for each in asks:
        assert each.follower.tokens == best(model, list(each.ids), each.settings.max_new_tokens)
    assert not running.held_bytes


@torch.no_grad()
def test_an_answer_is_the_same_beside_others(base: wb.Variant) -> None:
    def drawn(others: int) -> list[int]:
        wanted = Ask(ids(9), Decoding(max_new_tokens=12, temperature=1.3, top_p=0.9), Heard(), seed=7)
        running = Running(base.model, 4)
        running.join([*(ask(4 + row, 3 + row, row, temperature=row % 2) for row in range(others)), wanted])
        run(running)
        return wanted.follower.tokens

    assert drawn(0) == drawn(3) == drawn(5)


def test_one_that_leaves_frees_its_row(base: wb.Variant) -> None:
    running, asks = Running(base.model, 2), [ask(5, 50, row) for row in range(4)]
    running.join(asks)
    running.step()
    assert running.going == asks[:2]
    running.leave([asks[0], asks[2]])
    assert running.going == [asks[1]]
    running.step()  # in turn: a token for the others, then what waits
    running.step()
    assert running.going == [asks[1], asks[3]]
    running.leave(asks)
    assert not running.busy
    assert not running.held_bytes


@torch.no_grad()
def test_the_context_ends_one_row_and_no_other(base: wb.Variant) -> None:
    long, short, beyond = ask(base.context_length - 4, 100), ask(5, 20, 1), ask(base.context_length, 5)
    running = Running(base.model, 4)
    running.join([long, short, beyond])
    run(running)
    assert len(long.follower.tokens) == 4
    assert short.follower.tokens == best(base.model, ids(5, 1), 20)
    assert isinstance(beyond.error, InvalidInput)
    assert "shorten the prompt" in str(beyond.error)


class Raises(Heard):
    def take(self, token: int, chance: float | None = None) -> None:
        super().take(token)
        if len(self.tokens) == 2:
            raise InvalidInput("No further.")


@torch.no_grad()
def test_what_a_follower_raises_ends_its_answer_only(base: wb.Variant) -> None:
    running, good, bad = Running(base.model, 4), ask(5, 8), Ask(ids(6), Decoding(), Raises())
    running.join([bad, good])
    run(running)
    assert str(bad.error) == "No further."
    assert good.follower.tokens == best(base.model, ids(5), 8)


@torch.no_grad()
def test_a_bound_on_memory_makes_rows_wait(base: wb.Variant) -> None:
    token = 2 * 2 * 2 * 16 * 4  # keys and values, layers, heads, head, float32
    running, asks = Running(base.model, 8, most_bytes=60 * token), [ask(10, 12, row) for row in range(6)]
    running.join(asks)
    held = []
    while running.busy:
        running.step()
        held.append((len(running.going), running.held_bytes))
    assert max(rows for rows, _ in held) in (3, 4, 5)
    assert max(bytes_ for _, bytes_ in held) <= 60 * token
    for row, each in enumerate(asks):
        assert each.follower.tokens == best(base.model, ids(10, row), 12)


class Memory:
    """A device that holds so many rows: a pass of more fails as torch fails."""

    def __init__(self, model: torch.nn.Module, rows: int) -> None:
        self.rows = rows
        self.hook = model.register_forward_pre_hook(self._pass, with_kwargs=True)

    def _pass(self, _: object, __: object, inputs: dict) -> None:
        if len(inputs["input_ids"]) > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("rows", [1, 2, 3])
@torch.no_grad()
def test_out_of_memory_while_the_batch_grows(rows: int, base: wb.Variant) -> None:
    memory = Memory(base.model, 6)
    running, asks = Running(base.model, 6), [ask(5 + row, 10, row) for row in range(6)]
    running.join(asks[:2])
    running.step()
    memory.rows = rows
    running.join(asks[2:])
    assert run(running) <= 6
    memory.hook.remove()
    assert [each.error for each in asks] == [None] * 6
    for row, each in enumerate(asks):
        assert each.follower.tokens == best(base.model, ids(5 + row, row), 10)


def test_one_alone_that_has_no_memory_fails(base: wb.Variant) -> None:
    memory = Memory(base.model, 0)
    running, asks = Running(base.model, 6), [ask(5 + row, 10, row) for row in range(3)]
    running.join(asks)
    run(running)
    memory.hook.remove()
    assert all(isinstance(each.error, OutOfMemory) for each in asks)


def test_samples_of_a_long_prompt_read_it_once(base: wb.Variant, monkeypatch) -> None:
    monkeypatch.setattr(module, "ALONE", 16)
    read = []
    hook = base.model.register_forward_pre_hook(
        lambda _, __, inputs: read.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    running = Running(base.model, 4)
    asks = [Ask(ids(40), Decoding(max_new_tokens=3, temperature=2.0), Heard(), seed) for seed in range(3)]
    running.join(asks)
    run(running)
    hook.remove()
    assert read == [(1, 16), (1, 16), (1, 8), (3, 1), (3, 1)]
    assert len({tuple(each.said) for each in asks}) > 1


def test_many_prompts_take_the_places_of_those_that_ended(base: wb.Variant) -> None:
    rows = [Heard(1 + 5 * (index % 4)) for index in range(12)]
    widths = []
    hook = base.model.register_forward_pre_hook(
        lambda _, __, inputs: widths.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    prompts = [ids(6, row) for row in range(12)]
    for _ in Batched(rows=4).decode(base.model, prompts, Decoding(max_new_tokens=16), rows):
        pass
    hook.remove()
    decoding = [width for width, length in widths if length == 1]
    assert sum(len(row.tokens) - 1 for row in rows) == sum(decoding)
    assert max(decoding) == 4
    for prompt, row in zip(prompts, rows, strict=True):
        assert row.tokens == best(base.model, prompt, row.wanted)
