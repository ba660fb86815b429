"""What caches hold and were of use for, against counts kept by hand."""

import pytest

import workbench as wb
from workbench.core.errors import Closed
from workbench.steps import runtime

SYSTEM = {"role": "system", "content": "The tide comes in twice a day. Answer in one short sentence."}


def asked(question: str) -> list[dict[str, str]]:
    return [SYSTEM, {"role": "user", "content": question}]


def test_beginnings_are_counted(base: wb.Variant) -> None:
    cached = base.apply(runtime.PrefixCache())
    (empty,) = wb.caches(cached).caches
    assert (empty.kind, empty.entries, empty.bytes, empty.hits, empty.misses) == ("prefix", 0, 0, 0, 0)
    answer = cached.generate(asked("What is a lobster?"), max_new_tokens=6)
    config = base.model.config
    token = 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim  # keys, values; float32
    held = answer.prompt_tokens + len(answer.token_ids) - 1  # the last token was said, not read
    (first,) = wb.caches(cached).caches
    assert (first.entries, first.bytes, first.hits, first.misses) == (1, held * token, 0, 1)
    cached.generate(asked("Why?"), max_new_tokens=6)
    (second,) = wb.caches(cached).caches
    assert (second.entries, second.hits, second.misses, second.evictions) == (2, 1, 1, 0)


@pytest.mark.parametrize(
    ("step", "kind"), [(runtime.ResponseCache(entries=1), "exact"), (runtime.SemanticCache(entries=1), "semantic")]
)
def test_answers_are_counted(base: wb.Variant, step: wb.Step, kind: str) -> None:
    cached = base.apply(runtime.PrefixCache()).apply(step)
    for question in ("What is a lobster?", "What is a lobster?", "Why?"):
        cached.generate(question, max_new_tokens=4)
    prefix, answers = wb.caches(cached).caches
    assert (prefix.kind, answers.kind) == ("prefix", kind)
    assert (answers.entries, answers.hits, answers.misses, answers.evictions) == (1, 1, 2, 1)
    assert answers.bytes > 0
    assert list(wb.caches(cached).table().index) == ["prefix", kind]


def test_they_are_shown_escaped_and_without_any_in_a_sentence(base: wb.Variant) -> None:
    cached = base.apply(runtime.PrefixCache()).apply(runtime.ResponseCache()).under("<img src=x>")
    page = wb.caches(cached)._repr_html_()
    assert page.count("<tr>") == 3
    assert "<img" not in page
    assert "exact: 0 entries in 0 B, 0 hits, 0 misses, 0 evicted" in repr(wb.caches(cached))
    none = wb.caches(base)
    assert repr(none).startswith(f"'{base.name}' has no cache: apply runtime.PrefixCache")
    assert "<table>" not in none._repr_html_()
    assert none.table().empty


def test_a_closed_variant_has_none(base: wb.Variant) -> None:
    cached = base.apply(runtime.PrefixCache())
    cached.close()
    with pytest.raises(Closed):
        wb.caches(cached)
