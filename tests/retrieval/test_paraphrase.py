"""Questions that mean the same: guards, a threshold from pairs, and a cache that uses both."""

import json
from pathlib import Path

import pytest
from scipy.stats import beta

import workbench as wb
from workbench.answering.request import Request
from workbench.core.errors import InvalidInput
from workbench.retrieval.guards import differs
from workbench.retrieval.paraphrase import GRID, read_pairs, threshold, upper_bound
from workbench.steps import retrieve, runtime


@pytest.mark.parametrize(
    ("a", "b", "guard"),
    [
        ("Track order 48213", "Track order 48231", "numbers"),
        ("Two seats in May", "Three seats in May", "numbers"),
        ("Is it open on Monday?", "Is it open on Friday?", "numbers"),
        ("Two seats, please", "2 seats, please", ""),
        ("Is 1,000 enough?", "is 1000 enough", ""),
        ("How far is Paris?", "How far is Rome?", "names"),
        ("Wie weit ist es bis Köln?", "Wie weit ist es bis Ulm?", "names"),
        ("How far is Paris?", "how far is paris", ""),
        ("A course in C++", "A course in C#", "names"),
        ("What are $5?", "What are \N{EURO SIGN}5?", "names"),
        ("猫は何歳ですか", "犬は何歳ですか", "names"),
        ("HOW FAR IS IT", "how far is it", ""),
        ("Can I pay by card?", "May I pay by card?", ""),
        ("Turn it on", "Turn it off", "negation"),
        ("Cancel it", "Don\N{RIGHT SINGLE QUOTATION MARK}t cancel it", "negation"),
        ("Why isn't it safe?", "Why is it not safe?", ""),
        ("Is it safe?", "Is it unsafe?", "negation"),
        ("A careful boat", "A careless boat", "negation"),
        ("Enable alerts", "Disable alerts", "negation"),
        ("What does it cost?", "What is its price?", ""),
        ("What does it cost?", "Where is it?", "scope"),
        ("When does it come?", "Why does it come?", "scope"),
        ("", "", ""),
    ],
)
def test_guards_see_what_vectors_do_not(a: str, b: str, guard: str) -> None:
    assert differs(a, b) == differs(b, a) == guard


@pytest.mark.parametrize(("count", "of"), [(0, 1), (0, 150), (1, 10), (3, 100), (40, 300), (10, 10), (0, 0)])
def test_the_bound_is_that_of_clopper_and_pearson(count: int, of: int) -> None:
    expected = float(beta.ppf(0.95, count + 1, of - count)) if count < of else 1.0
    assert upper_bound(count, of) == pytest.approx(expected, abs=1e-9)


def test_the_threshold_is_the_loosest_within_the_budget() -> None:
    different = [0.5 + 0.4 * number / 200 for number in range(200)]  # up to 0.898
    same = [0.6 + 0.4 * number / 100 for number in range(100)]
    likeness, labels = [*different, *same, -1.0, -1.0], [False] * 200 + [True] * 100 + [False, True]
    found = threshold(likeness, labels, budget=0.05)
    assert found.value in GRID
    assert found.false == sum(each >= found.value for each in different)
    assert upper_bound(found.false, 201) == found.most <= 0.05
    looser = GRID[GRID.index(found.value) + 1]
    assert upper_bound(sum(each >= looser for each in different), 201) > 0.05
    assert (found.right, found.same) == (sum(each >= found.value for each in same), 101)
    assert "surely no more than" in str(found)


def test_one_bad_pair_at_the_top_ends_the_search() -> None:
    """Testing goes on from the strictest: a budget that fails there is not met further down."""
    found = threshold([1.0] * 20 + [0.0] * 80, [False] * 100, budget=0.1)
    assert found.value is None


def test_too_few_pairs_support_nothing() -> None:
    found = threshold([0.1] * 50, [False] * 50, budget=0.02)
    assert found.value is None
    assert found.most == pytest.approx(1 - 0.05 ** (1 / 50))
    assert str(found).startswith("50 pairs with different answers support no threshold")
    assert threshold([0.1] * 50, [False] * 50, budget=0.06).value == GRID[-1]
    assert threshold([], [], budget=0.5).value is None


def test_pairs_are_read_and_bad_ones_named(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"a": "x", "b": "y", "same": true}\n{"a": "x", "b": "z", "same_answer": false, "id": 3}\n')
    assert [(each.a, each.b, each.same) for each in read_pairs(file)] == [("x", "y", True), ("x", "z", False)]
    (tmp_path / "pairs.csv").write_text("a,b,same\nx,y,True\n")
    assert read_pairs(tmp_path / "pairs.csv")[0].same is True
    for bad in ('{"a": "x", "b": "y"}', '{"a": 1, "b": "y", "same": true}', '{"a": "x", "b": "y", "same": "perhaps"}'):
        file.write_text(bad)
        with pytest.raises(InvalidInput, match="line 1 is no pair"):
            read_pairs(file)
    with pytest.raises(InvalidInput):
        runtime.SemanticCache(pairs=str(tmp_path / "none.jsonl")).threshold()


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Enough of them for a budget of a tenth."""
    rows = [{"a": f"How many seats has boat {n}?", "b": "Rain comes before noon.", "same": False} for n in range(40)]
    rows += [{"a": "How many seats are there?", "b": "How many seats does it have?", "same": True}] * 5
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def test_another_wording_is_answered_and_says_so(base: wb.Variant, pairs: Path) -> None:
    cached = base.apply(runtime.SemanticCache(pairs=str(pairs), budget=0.1))
    assert cached.stages[-1].least == GRID[-1]
    assert "0 of 40 with different ones are answered wrongly" in cached.notes[-1]
    first = cached.generate("How can I get a refund for my ticket?", max_new_tokens=6)
    near = cached.generate("How do I get a refund for my ticket?", max_new_tokens=6)
    assert (first.cached, near.cached, near.text) == ("", "meaning", first.text)
    assert near.notes[-1].startswith('From the cache of answers: "How can I get a refund for my ticket?" (likeness 0.9')
    assert cached.generate("How can I get a refund for my ticket?", max_new_tokens=6).cached == "exact"
    for other in ("How do I get a refund for 2 tickets?", "How do I not get a refund for my ticket?", "Rain?"):
        assert cached.generate(other, max_new_tokens=6).cached == "", other


def test_what_was_said_before_must_be_the_same(base: wb.Variant, pairs: Path) -> None:
    cached = base.apply(runtime.SemanticCache(pairs=str(pairs), budget=0.1))

    def ask(*turns: str, **request: str) -> str:
        roles = ["user", "assistant"] * 3
        messages = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]
        return cached.generate(Request.of(messages).but(**request), max_new_tokens=4).cached

    assert ask("I ordered shoes.", "Good.", "How do I send it back?") == ""
    assert ask("I ordered a sofa.", "Good.", "How can I send it back?") == ""
    assert ask("I ordered shoes.", "Good.", "How can I send it back?") == "meaning"
    assert ask("I ordered shoes.", "Good.", "How can I send it back, please?", salt="other") == ""
    assert ask("A text of rain.\n\nHow do I send it back?") == ""
    assert ask("A text of snow.\n\nHow can I send it back?") == ""
    assert ask("A text of rain.\n\nHow can I send it back?") == "meaning"
    longer = cached.generate(
        [{"role": "user", "content": "A text of rain.\n\nHow could I send it back?"}], max_new_tokens=5
    )
    assert longer.cached == "", "other settings"


def test_other_documents_are_another_question(base: wb.Variant, pairs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pages"
    folder.mkdir()
    (folder / "a.txt").write_text("Apples are red.")
    (folder / "b.txt").write_text("Plums are blue.")
    knows = base.apply(retrieve.Retrieve(documents=str(folder), method="bm25", top_k=1))
    cached = knows.apply(runtime.SemanticCache(pairs=str(pairs), budget=0.1))
    answers = [
        cached.generate(f"What colour do {fruit} have?", max_new_tokens=4)
        for fruit in ("apples", "plums", "Apples", "these apples")
    ]
    assert answers[0].passages != answers[1].passages
    assert answers[1].cached == ""


def test_without_pairs_it_stays_exact(base: wb.Variant, tmp_path: Path, pairs: Path) -> None:
    few = base.apply(runtime.SemanticCache(pairs=str(pairs), budget=0.01))
    assert "Only the very same question" in few.notes[-1]
    none = base.apply(runtime.SemanticCache())
    for cached in (few, none):
        assert cached.stages[-1].least is None
        cached.generate("How can I get a refund?", max_new_tokens=4)
        assert cached.generate("How do I get a refund?", max_new_tokens=4).cached in ("", "exact")
        assert cached.generate("How do I get a refund?", max_new_tokens=4).cached == "exact"
    again = wb.load(few.save(tmp_path / "export"), device="cpu")
    assert again.stages == few.stages
