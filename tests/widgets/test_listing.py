"""The list of variants: lineage, names that say what differs, what is put away, sizes."""

import math
from typing import Any

import pytest
from screen import TIMEOUT

import workbench as wb
from widgets import Bench
from workbench.core import units
from workbench.core.errors import InvalidInput
from workbench.core.estimate import Estimate
from workbench.steps import prompt, prune, quantize


@pytest.fixture
def bench_task(tiny_text: wb.Text) -> wb.Text:
    return tiny_text


def added(bench: Bench, *steps: Any, to: str = "") -> str:
    variant = bench.variants[to] if to else bench.base
    for step in steps:
        variant = variant.apply(step, bench.task)
    return bench.add(variant)


def test_a_name_says_what_is_different(bench: Bench) -> None:
    assert added(bench, quantize.RTN()) == "RTN"
    assert added(bench, quantize.RTN(bits=3, group_size=32)) == "RTN 3 bit g32"
    assert added(bench, quantize.RTN(bits=3)) == "RTN 3 bit g64"
    assert added(bench, prune.Magnitude(sparsity=0.3)) == "Magnitude"
    assert added(bench, prune.Magnitude(sparsity=0.5)) == "Magnitude 0.5 sparse"
    assert added(bench, prompt.System(text="Be brief.")) == "System"
    assert added(bench, prompt.System(text="Antworte auf Deutsch!")) == "System Antworte auf Deutsch"
    assert added(bench, prompt.System(text="用中文回答")) == "System 用中文回答"
    both = quantize.RTN(bits=8), prompt.System(text="Hello.")
    assert [added(bench, *both), added(bench, *both)] == ["RTN+System", "RTN+System 2"], "nothing is different"


def test_the_list_knows_who_comes_from_whom(bench: Bench) -> None:
    added(bench, prune.Magnitude())
    added(bench, quantize.Int8(), to="Magnitude")
    rows = bench.listing.rows
    base = bench.base.name
    assert {name: row["parent"] for name, row in rows.items()} == {
        base: None,
        "Magnitude": base,
        "Magnitude+Int8": "Magnitude",
    }
    bench.remove("Magnitude")
    assert bench.listing.rows["Magnitude+Int8"]["parent"] in (base, None)


def test_what_is_archived_stays_and_is_not_offered(bench: Bench) -> None:
    for bits in (4, 3):
        added(bench, quantize.RTN(bits=bits))
    bench.listing.heard({"do": "archive", "names": ["RTN"], "on": True})
    panel = bench.panel("prompt")
    assert "RTN" in bench.variants
    assert (bench.archived, bench.chosen) == ({"RTN"}, (bench.base.name, "RTN 3 bit"))
    assert bench.listing.rows["RTN"]["archived"]
    assert panel.target.options == ("RTN 3 bit", bench.base.name)
    bench.rename("RTN", "Four")
    assert bench.archived == {"Four"}
    bench.choose("Four")
    assert not bench.archived, "who ticks it wants it back"
    with pytest.raises(InvalidInput, match="baseline"):
        bench.archive("Four", bench.base.name)
    assert not bench.archived


def test_many_are_ticked_at_once_and_chat_asks_the_last_four(bench: Bench) -> None:
    names = [added(bench, prompt.System(text=f"Number {number}.")) for number in range(5)]
    assert bench.chosen == (bench.base.name, *names)
    assert f"To {', '.join(names[1:])}: of 6 that are ticked, the 4 ticked last." in bench.chat.to.value
    bench.chat.length.value = 2
    bench.chat.prompt.value = "Hello?"
    bench.chat.send.click()
    assert bench.wait(TIMEOUT)
    assert list(bench.chat.turns[0].answers) == names[1:]
    bench.listing.heard({"do": "choose", "names": names, "on": False})
    assert bench.chosen == (bench.base.name,)
    assert "ticked" not in bench.chat.to.value


def test_what_was_measured_can_be_sorted_by(bench: Bench) -> None:
    added(bench, quantize.Int8())
    pane = bench.compare
    pane.rounds.value, pane.tokens.value, pane.examples.value = 1, 2, 2
    pane.button.click()
    assert bench.wait(TIMEOUT)
    found = bench.comparison.runs[1]["perplexity"]
    shown = bench.listing.rows["Int8"]["measured"]["perplexity"]
    assert shown["value"] == found.value
    assert shown["text"].startswith(f"{found.value:,.2f}")


def test_sizes_are_said_in_words(bench: Bench) -> None:
    added(bench, prompt.System())
    added(bench, quantize.Int8())
    rows = bench.listing.rows
    assert rows[bench.base.name]["facts"] == units.size(bench.base.total_bytes)
    assert "removing it frees nothing" in rows["System"]["facts"]
    assert "not shared" in rows["Int8"]["facts"]
    assert rows["Int8"]["bytes"] == bench.variants["Int8"].total_bytes


@pytest.mark.parametrize("typed", ["😀" * 1000, "\u202eabc", "א" * 1000, " ", "a/b", "a\nb"])
def test_a_name_that_cannot_be_used_is_refused_in_one_sentence(bench: Bench, typed: str) -> None:
    name = added(bench, prompt.System())
    bench.listing.heard({"do": "rename", "name": name, "typed": typed})
    said = bench.listing.message.value
    assert "cannot be used as a name" in said
    assert len(said) < 500
    assert name in bench.variants


@pytest.mark.parametrize("typed", ["猫の量子化", "نموذج ٣", "Größe µ", "कम शब्द"])
def test_names_are_in_any_script(bench: Bench, typed: str) -> None:
    name = added(bench, prompt.System())
    bench.listing.heard({"do": "rename", "name": name, "typed": typed})
    assert typed in bench.variants
    assert typed in bench.listing.rows


@pytest.mark.parametrize(
    "said", [{}, {"do": "rename"}, {"do": "remove", "name": "nobody"}, {"do": "choose", "names": [7]}]
)
def test_a_page_that_says_nonsense_changes_nothing(bench: Bench, said: dict[str, Any]) -> None:
    before = bench.listing.page.value
    bench.listing.heard(said)
    assert bench.listing.page.value == before


def test_numbers_stay_with_what_was_measured(bench: Bench) -> None:
    name = added(bench, quantize.RTN(bits=4))
    bench.measured(wb.compare([bench.base, bench.variants[name]], bench.task, rounds=1, new_tokens=2, store=False))
    found = bench.listing.rows["RTN"]["measured"]["perplexity"]
    bench.rename("RTN", "four")
    assert bench.listing.rows["four"]["measured"]["perplexity"] == found
    added(bench, quantize.RTN(bits=3))
    assert "RTN" in bench.variants
    assert bench.listing.rows["RTN"]["measured"] == {}, "its name was another's"


def test_what_is_not_a_number_does_not_stop_the_list(bench: Bench) -> None:
    found = wb.compare([bench.base], bench.task, rounds=1, new_tokens=2, store=False)
    broken = Estimate(value=math.nan, low=math.nan, high=math.nan, n=2, unit="ratio")
    (run,) = found.runs
    bench.measured(wb.Comparison([run.model_copy(update={"estimates": run.estimates | {"perplexity": broken}})]))
    assert "NaN" not in bench.listing.page.value
    assert bench.listing.rows[bench.base.name]["measured"]["perplexity"]["value"] is None
