"""The seam: engines are values that go with a variant, and nobody else runs a model."""

import ast
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import workbench as wb
from workbench.core.errors import InvalidInput
from workbench.measurement import latency
from workbench.runtime.decoding import Decoding, Follower
from workbench.runtime.engine import ENGINES, Eager, Engine
from workbench.steps import output, prompt

ROOT = Path(wb.__file__).parent
# What only `runtime/` may do: take the lock, build or pass a cache, pad, read a beginning.
INSIDE = {
    "_lock",
    "DynamicCache",
    "new_cache",
    "past_key_values",
    "pad_left",
    "Prefix",
    "shared_prefix",
    "common_cache",
}


class Canned(Engine):
    """Says the same to everybody: an engine in a few lines, for tests that need no model."""

    said: tuple[int, ...] = ()

    def decode(
        self, model: Any, prompts: Sequence[Sequence[int]], settings: Decoding, rows: Sequence[Follower], *_, **__
    ) -> Iterator[None]:
        """One token after another to every row."""
        for token in self.said[: settings.max_new_tokens]:
            for row in rows:
                row.take(token)
            yield


@pytest.fixture
def speaker(tokenizer) -> Iterator[wb.Variant]:
    """A variant without a model."""
    config = SimpleNamespace(max_position_embeddings=64, get_text_config=lambda: config)
    model = SimpleNamespace(config=config, generation_config=None, device=torch.device("cpu"))
    said = (*tokenizer("Rain. Then snow.", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)
    yield wb.Variant(model=model, tokenizer=tokenizer, name="canned", source="none", engine=Canned(said=said))
    ENGINES.pop(Canned.full_name(), None)


def test_answers_need_no_model(speaker: wb.Variant) -> None:
    answer = speaker.generate("What is the weather?", max_new_tokens=40)
    assert (answer.text, answer.finish_reason) == ("Rain. Then snow.", "stop")
    assert "".join(piece.text for piece in speaker.stream("What?", max_new_tokens=40)) == answer.text
    cut = speaker.generate("What is the weather?", max_new_tokens=3)
    assert (len(cut.token_ids), cut.finish_reason) == (3, "length")
    with pytest.raises(InvalidInput, match="holds 64"):
        speaker.generate("What is the weather?", max_new_tokens=64)


def test_stages_work_on_any_engine(speaker: wb.Variant) -> None:
    made = speaker.apply(prompt.Template(text="Say: {question}")).apply(output.Stop(strings="Then"))
    assert made.engine == speaker.engine
    assert made.generate("What?", max_new_tokens=40).text == "Rain. "
    samples = speaker.apply(prompt.SelfConsistency(answers=3)).generate("What?", max_new_tokens=40)
    assert samples.spent == 3 * len(samples.token_ids)


def test_an_engine_is_timed_as_it_answers(speaker: wb.Variant) -> None:
    timing = latency.time_request(speaker, "What?", 5)
    assert len(timing.inter_token) == 4


def test_an_engine_is_written_and_read(base: wb.Variant, tmp_path: Path) -> None:
    packed = dataclasses.replace(base, engine=Eager(cache_bits=4))
    assert wb.load(packed.save(tmp_path / "export")).engine == Eager(cache_bits=4)


def test_nobody_outside_runs_a_model() -> None:
    """Names that only the runtime wing may use, in the code itself; words in strings do not count."""
    found = []
    for file in sorted(ROOT.rglob("*.py")):
        if file.is_relative_to(ROOT / "runtime"):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = {
                ast.Name: lambda it: [it.id],
                ast.Attribute: lambda it: [it.attr],
                ast.keyword: lambda it: [it.arg],
                ast.ImportFrom: lambda it: [each.name for each in it.names],
            }.get(type(node), lambda it: [])(node)
            own = {"_lock"} if any(part in file.parts for part in ("core", "retrieval", "layers", "serving")) else set()
            found += [f"{file.relative_to(ROOT)}: {name}" for name in names if name in INSIDE - own]
    assert found == []


def test_the_lock_is_the_runtimes_own() -> None:
    """Other wings have locks of their own objects; none imports the model's."""
    for file in ROOT.rglob("*.py"):
        assert "runtime.forward import _lock" not in file.read_text(encoding="utf-8")
