"""The engine llama.cpp, against plain transformers on the same weights."""

import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import workbench as wb
from workbench.answering.answers import Prepared, answers
from workbench.answering.request import Request
from workbench.core.errors import InvalidInput, NotAvailable
from workbench.runtime import llama_files, llamacpp
from workbench.runtime.decoding import Decoding
from workbench.runtime.reader import Span
from workbench.steps import finetune, output, prompt, quantize, runtime

KNOWN = ("llama", "gpt2", "qwen3", "gpt_neox", "gemma")
ASKED = ("What is a lobster?", "Rain", "How many seats does the boat have?", "The tide comes in twice a day and")
LONGEST_TIE = 0.02  # between the two best logits, relative to how they are spread


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "llamacpp"


def greedy(model, ids: list[int], said: tuple[int, ...]) -> None:
    """Every token is the model's likeliest, read by plain transformers, or nearly as likely."""
    with torch.no_grad():
        logits = model(torch.tensor([[*ids, *said]])).logits[0, len(ids) - 1 : -1]
    gaps = logits.max(dim=-1).values - logits[range(len(said)), list(said)]
    assert float((gaps / logits.std(dim=-1)).max()) <= LONGEST_TIE


@pytest.mark.parametrize("architecture", KNOWN)
def test_gives_the_models_greedy_tokens(architecture: str, load_tiny: Callable[[str], wb.Variant]) -> None:
    base = load_tiny(architecture)
    variant = base.apply(runtime.LlamaCpp(threads=1))
    for text in ASKED:
        greedy(base.model, variant.encode(text), variant.generate(text, max_new_tokens=16).token_ids)


@pytest.mark.parametrize("step", [quantize.Int8(), quantize.RTN(bits=4, group_size=32, symmetric=True)], ids=repr)
def test_packed_weights_say_nearly_the_same(step: wb.Step, base: wb.Variant) -> None:
    packed = base.apply(step)
    variant = packed.apply(runtime.LlamaCpp(threads=1))
    same = sum(
        variant.generate(text, max_new_tokens=1).token_ids == packed.generate(text, max_new_tokens=1).token_ids
        for text in ASKED
    )
    assert same >= 3  # activations are rounded to 8 bits, which a random model feels


def asked(variant: wb.Variant, texts: tuple[str, ...]) -> list[Prepared]:
    requests = [Request.of(text) for text in texts]
    return [Prepared(each, variant.tokens(each)) for each in requests]


def test_many_at_once_get_what_each_gets_alone(base: wb.Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llamacpp, "ROWS", 3)  # fewer places than prompts
    variant = base.apply(runtime.LlamaCpp(threads=1))
    texts = (*ASKED, "A red sky", "The captain takes one of them. " * 12)
    found = answers(variant, asked(variant, texts), Decoding(max_new_tokens=10))
    for text, each in zip(texts, found, strict=True):
        greedy(base.model, variant.encode(text), each.token_ids)


def test_a_beginning_in_common_is_read_once(base: wb.Variant) -> None:
    variant = base.apply(runtime.LlamaCpp(threads=1))
    texts = tuple("A lighthouse keeper trims the lamp and winds the clock. " * 5 + text for text in ASKED)
    found = answers(variant, asked(variant, texts), Decoding(max_new_tokens=8))
    for text, each in zip(texts, found, strict=True):
        greedy(base.model, variant.encode(text), each.token_ids)


def test_draws_are_those_of_the_seed(base: wb.Variant) -> None:
    variant = base.apply(runtime.LlamaCpp(threads=1))
    one, again, other = (variant.generate("Rain", max_new_tokens=8, temperature=1.0, seed=seed) for seed in (1, 1, 2))
    assert one.token_ids == again.token_ids != other.token_ids


def test_constraints_and_stops_work_as_on_any_engine(base: wb.Variant) -> None:
    schema = {"type": "object", "properties": {"seats": {"type": "integer"}}, "required": ["seats"]}
    variant = base.apply(runtime.LlamaCpp(threads=1))
    chosen = variant.apply(prompt.Constrain(form="choices", rule="yes\nno"))
    assert chosen.generate("Does it rain?", max_new_tokens=8).text in ("yes", "no")
    stopped = variant.apply(output.Stop(floor=0.999))
    answer = stopped.generate("Rain", max_new_tokens=30)
    assert answer.finish_reason.startswith("a token of probability")
    constrained = variant.apply(prompt.Constrain(form="json", rule=json.dumps(schema)))
    found = constrained.generate("How many seats?", max_new_tokens=40)
    assert found.finish_reason in ("complete", "length", "stop")


def test_an_answer_that_is_left_gives_its_place_back(base: wb.Variant) -> None:
    variant = base.apply(runtime.LlamaCpp(threads=1))
    wanted = variant.generate("Rain", max_new_tokens=8).token_ids
    stream, other = (variant.stream("The tide", max_new_tokens=200) for _ in range(2))
    next(stream), next(other), next(stream)  # two at once have a context each
    stream.close()
    assert variant.generate("Rain", max_new_tokens=8).token_ids == wanted
    other.close()
    assert len(llamacpp._held[variant.model].spare) == 1


def test_closing_frees_what_it_holds(base: wb.Variant) -> None:
    variant = base.apply(runtime.LlamaCpp(threads=1))
    variant.generate("Rain", max_new_tokens=2)
    assert variant.engine.held_bytes(variant.model) > 100_000
    loaded = weakref.ref(llamacpp._held[variant.model].loaded)
    variant.close()
    gc.collect()
    assert loaded() is None
    assert base.generate("Rain", max_new_tokens=2).token_ids


def test_a_later_step_on_the_weights_makes_another_file(base: wb.Variant, cache: Path) -> None:
    variant = base.apply(runtime.LlamaCpp(threads=1))
    packed = variant.apply(quantize.Int8())
    assert len(list(cache.glob("*.gguf"))) == 2
    assert packed.generate("Rain", max_new_tokens=1).token_ids
    assert packed.engine == variant.engine


def test_notes_are_those_of_the_file_that_is_run(base: wb.Variant, tmp_path: Path) -> None:
    variant = base.apply(runtime.LlamaCpp(threads=1))
    assert variant.notes == (llamacpp.READ,)
    rounded = variant.apply(quantize.NF4())
    (said,) = [note for note in rounded.notes if "rounded once more" in note]
    assert rounded.notes.count(llamacpp.READ) == 1
    assert set(base.apply(quantize.NF4()).apply(runtime.LlamaCpp(threads=1)).notes) == set(rounded.notes)
    assert sorted(wb.load(rounded.save(tmp_path / "export"), device="cpu").notes) == sorted(rounded.notes)
    assert said not in variant.notes


def test_an_export_brings_the_engine_back(base: wb.Variant, tmp_path: Path, cache: Path) -> None:
    variant = base.apply(runtime.LlamaCpp(threads=1))
    wanted = variant.generate("Rain", max_new_tokens=8).token_ids
    again = wb.load(variant.save(tmp_path / "export"), device="cpu")
    assert again.engine == variant.engine
    assert again.generate("Rain", max_new_tokens=8).token_ids == wanted
    assert len(list(cache.glob("*.gguf"))) == 1, "the file of the same content"


def test_an_adapter_is_in_the_file(base: wb.Variant, tiny_task: wb.Task) -> None:
    tuned = base.apply(finetune.LoRA(learning_rate=0.01), tiny_task)
    variant = tuned.apply(runtime.LlamaCpp(threads=1))
    greedy(tuned.model, variant.encode("Rain"), variant.generate("Rain", max_new_tokens=8).token_ids)
    assert any("adapter" in note for note in variant.notes)


@pytest.mark.parametrize("damage", ["cut", "changed", "foreign", "no record"])
def test_a_damaged_file_is_written_again(damage: str, base: wb.Variant, cache: Path) -> None:
    base.apply(runtime.LlamaCpp(threads=1)).close()
    (file,) = cache.glob("*.gguf")
    whole = file.read_bytes()
    file.unlink()
    match damage:
        case "cut":
            file.write_bytes(whole[:-1000])
        case "changed":
            file.write_bytes(whole[:-1000] + bytes(1000))
        case "foreign":
            file.write_bytes(b"GGUF" * 100)
        case "no record":
            file.write_bytes(whole)
            file.with_suffix(".json").write_text("{")
    base.apply(runtime.LlamaCpp(threads=1))
    assert file.read_bytes() == whole


def test_old_files_go_when_there_are_too_many(base: wb.Variant, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base.apply(runtime.LlamaCpp(threads=1))
    (old,) = cache.glob("*.gguf")
    monkeypatch.setattr(llama_files, "MOST_BYTES", old.stat().st_size + 1)
    base.apply(runtime.LlamaCpp(threads=1, form="F16"))
    (left,) = cache.glob("*.gguf")
    assert left != old
    assert not old.with_suffix(".json").exists()


def test_what_llama_cpp_does_not_know_is_refused(load_tiny: Callable[[str], wb.Variant], cache: Path) -> None:
    with pytest.raises(InvalidInput, match="OPTForCausalLM cannot be written as GGUF"):
        load_tiny("opt").apply(runtime.LlamaCpp())
    assert not cache.exists()


def test_what_it_computes_otherwise_is_refused(base: wb.Variant) -> None:
    base.model.config.hidden_act = "relu"  # which the file cannot say
    for layer in base.model.model.layers:
        layer.mlp.act_fn = torch.nn.ReLU()
    with pytest.raises(InvalidInput, match="computes something else"):
        base.apply(runtime.LlamaCpp(threads=1))


def test_without_the_library_the_extra_is_named(base: wb.Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.runtime import llama_library

    monkeypatch.setitem(__import__("sys").modules, "xllamacpp", None)
    monkeypatch.setitem(__import__("sys").modules, "xllamacpp.xllamacpp", None)
    llama_library._calls.cache_clear()
    with pytest.raises(NotAvailable, match=r"pip install 'llm-optimization-workbench\[engine\]'"):
        base.apply(runtime.LlamaCpp(threads=1))


def likelihoods(variant: wb.Variant) -> torch.Tensor:
    span = Span(context=(3, 4, 5), target=tuple(range(6, 20)))
    return variant.engine.read(variant.model, [span]).logs([span])


def test_likelihoods_are_the_plain_engines(base: wb.Variant) -> None:
    variant = base.apply(runtime.LlamaCpp(threads=1))
    one, other = (likelihoods(each) for each in (base, variant))
    assert torch.equal(one, other)
    assert any("plain engine" in note for note in variant.notes)
