"""Compiled steps say what transformers says, are made once, and are gone with their variant."""

import gc
import stat
import weakref
from pathlib import Path

import pytest
import torch
from architectures import tiny_folder
from torch._dynamo.utils import counters

import workbench as wb
from workbench.core import files
from workbench.core.errors import Cancelled, InvalidInput, NotAvailable
from workbench.runtime import compiling, graphs
from workbench.runtime.compiled import Compile as Engine
from workbench.runtime.decoding import Decoding
from workbench.steps import prompt, quantize
from workbench.steps.runtime import Compile
from workbench.training.sequences import Continuation

OTHERS = ("gpt2", "qwen3", "gemma3_text", "gpt_neox", "opt", "mistral")
HOWS = ("whole", "blocks")
QUESTION = "What is a lobster?"


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "own"))
    return tmp_path / "own" / "compiled"


def best(variant: wb.Variant, question: str, n: int) -> list[int]:
    """The likeliest tokens, everything read again for each."""
    ids = variant.encode(question)
    start = len(ids)
    for _ in range(n):
        with torch.no_grad():
            ids.append(int(variant.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[start:]


def said(variant: wb.Variant, question: str, n: int) -> list[int]:
    """The tokens of an answer, cut at the first that ends one."""
    return list(variant.generate(question, max_new_tokens=n).token_ids)


def graphs_of(variant: wb.Variant) -> compiling.Graphs:
    assert isinstance(variant.engine, Engine)
    made = variant.engine.graphs(variant.model)
    assert made is not None, variant.notes
    return made


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("name", OTHERS)
def test_says_what_the_model_says(name: str, how: str, tokenizer, tmp_path: Path) -> None:
    base = wb.load(tiny_folder(tmp_path / name, name, tokenizer), device="cpu", dtype="float32")
    child = base.apply(Compile(how=how, longest=64))
    graphs_of(child)
    for question in (QUESTION, "Rain"):
        answer = said(child, question, 20)
        assert answer == best(base, question, len(answer))


def test_blocks_alike_share_their_code(base: wb.Variant, graphs_built) -> None:
    child = base.apply(Compile(how="blocks", longest=64))
    assert len(graphs_built) == 1
    assert graphs_of(child).how == "blocks"


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("step", [quantize.Int8(), quantize.RTN(), quantize.NF4()], ids=lambda step: step.label)
def test_packed_products_stay_whole(base: wb.Variant, step, how: str) -> None:
    packed = base.apply(step)
    child = packed.apply(Compile(how=how, longest=64))
    graphs_of(child)
    assert said(child, QUESTION, 12) == said(packed, QUESTION, 12)
    assert child.model.state_dict().keys() == packed.model.state_dict().keys()


def test_an_answer_outgrows_its_graphs(base: wb.Variant) -> None:
    child = base.apply(Compile(how="whole", longest=64))
    rows = [Continuation(())]
    for _ in child.engine.decode(child.model, [child.encode(QUESTION)], Decoding(max_new_tokens=100), rows):
        pass
    assert rows[0].ids == best(base, QUESTION, 100)


def test_several_answers_and_shared_beginnings(base: wb.Variant) -> None:
    child = base.apply(Compile(how="whole", longest=256))
    step = prompt.SelfConsistency(answers=3)
    assert said(child.apply(step), QUESTION, 8) == said(base.apply(step), QUESTION, 8)
    drawn = {"max_new_tokens": 12, "temperature": 1.0, "seed": 3}
    assert child.generate(QUESTION, **drawn).token_ids == base.generate(QUESTION, **drawn).token_ids
    first, second = child.stream(QUESTION, max_new_tokens=9), child.stream("Rain", max_new_tokens=9)
    for _ in zip(first, second, strict=False):  # two at once, each with memory of its own
        pass
    assert said(child, QUESTION, 9) == said(base, QUESTION, 9)


@pytest.mark.compiles
def test_made_once_by_inductor_and_gone_with_its_variant(base: wb.Variant) -> None:
    counters.clear()
    child = base.apply(Compile(how="blocks", longest=64))  # the whole as one graph takes Inductor five times as long
    made = graphs_of(child)
    assert "pays back" in child.notes[-1] or "no gain" in child.notes[-1]
    assert counters["aot_autograd"]["total"] == 1
    for question, settings in ((QUESTION, {}), ("Rain", {"temperature": 1.0, "seed": 3}), ("a " * 30, {"top_p": 0.5})):
        ours = child.generate(question, max_new_tokens=10, **settings)
        assert ours.token_ids == base.generate(question, max_new_tokens=10, **settings).token_ids
    assert counters["aot_autograd"]["total"] == 1
    assert not counters["frames"], "nothing is traced while it answers"
    assert stat.S_IMODE((files.cache_folder() / "compiled").stat().st_mode) == 0o700
    assert child.owned_bytes == 0
    assert child.engine.held_bytes(child.model) > 0
    code, copy = weakref.ref(next(iter(made.steps.values()))), weakref.ref(made.model)
    child.close()
    del made
    gc.collect()
    assert code() is None
    assert copy() is None


@pytest.mark.compiles
def test_without_a_compiler_it_answers_as_before(base: wb.Variant, monkeypatch: pytest.MonkeyPatch, private) -> None:
    from torch._inductor import cpp_builder, exc

    def none() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    child = base.apply(Compile(how="whole", longest=64))
    assert "install the package g++" in child.notes[-1]
    assert "operation by operation" in child.notes[-1]
    assert said(child, QUESTION, 8) == said(base, QUESTION, 8)


def test_what_differs_is_not_used(base: wb.Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(graph, inputs, flags: str):
        return lambda *given: [each + 1e-2 * torch.randn(each.shape) for each in graph(*given)]

    monkeypatch.setattr(graphs, "built", wrong)
    child = base.apply(Compile(how="blocks", longest=64))
    assert "differed" in child.notes[-1]
    assert said(child, QUESTION, 8) == said(base, QUESTION, 8)


@pytest.mark.parametrize("error", [KeyboardInterrupt, Cancelled])
def test_an_interrupted_compilation_can_be_done_again(base: wb.Variant, monkeypatch, error) -> None:
    def stopped(*_):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(graphs, "built", stopped)
        with pytest.raises(error):
            base.apply(Compile(how="whole", longest=64))
    assert said(base, QUESTION, 4)
    graphs_of(base.apply(Compile(how="whole", longest=64)))


def test_a_folder_of_others_is_not_used(private: Path) -> None:
    private.mkdir(parents=True)
    private.chmod(0o777)
    with pytest.raises(NotAvailable, match="Others may write"), graphs.private_folder():
        pass
    private.rmdir()
    private.symlink_to(private.parent)
    with pytest.raises(NotAvailable, match="not this user's own"), graphs.private_folder():
        pass


def test_what_cannot_be_compiled_is_refused(tokenizer, tmp_path: Path, base: wb.Variant) -> None:
    other = wb.load(tiny_folder(tmp_path / "mamba", "mamba", tokenizer), device="cpu", dtype="float32")
    with pytest.raises(InvalidInput, match="cannot be compiled"):
        other.apply(Compile())
    with pytest.raises(InvalidInput, match="packs its keys"):
        base.apply(quantize.KVCache()).apply(Compile())
    compiled = base.apply(Compile(how="whole", longest=64))
    with pytest.raises(InvalidInput, match=r"run by .*, which keeps keys and values as they are computed: apply KV"):
        compiled.apply(quantize.KVCache())


def test_new_weights_are_compiled_anew_and_exports_too(base: wb.Variant, tmp_path: Path) -> None:
    child = base.apply(Compile(how="whole", longest=64))
    packed = child.apply(quantize.Int8())
    assert graphs_of(packed) is not graphs_of(child)
    assert said(packed, QUESTION, 8) == said(base.apply(quantize.Int8()), QUESTION, 8)
    again = wb.load(packed.save(tmp_path / "export"))
    assert again.engine == packed.engine
    for each in (child, packed, again, packed.apply(Compile(how="blocks", longest=64))):  # none of what was before
        assert [note for note in each.notes if note.startswith("Compiled")] == [str(graphs_of(each))]
    assert not list((tmp_path / "export").rglob("*.so"))


def test_lengths_are_few(base: wb.Variant) -> None:
    assert compiling.lengths(base.model, 131072) == [512]  # all that the tiny model holds
    assert compiling.lengths(base.model, 100) == [100]


def test_never_asked_it_answers_plainly(base: wb.Variant) -> None:
    engine = Engine(how="whole")
    assert engine.graphs(base.model) is None
    assert engine.remarks(base.model)[0].startswith("Not compiled")
