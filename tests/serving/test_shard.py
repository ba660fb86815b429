"""A model run by several processes says what one process says; what cannot be shared is refused; none stays behind."""

import asyncio
import copy
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, MixtralConfig, PreTrainedModel

import workbench as wb
from workbench.answering.answers import answers, prepare
from workbench.answering.request import Passage, Request
from workbench.core import cluster as ray_cluster
from workbench.core.errors import Cancelled, Closed, InvalidInput, NotAvailable
from workbench.core.optional import library
from workbench.core.progress import Progress
from workbench.models import adapters
from workbench.runtime import together
from workbench.serving import group, outline, shard, shares
from workbench.steps import context, output, prompt, quantize, runtime

IDS = [5, 80, 33, 240, 17, 301, 9, 9, 122, 64]
QUESTION = "What is a lobster?"
pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def ray(cache: None, cluster: None) -> Any:
    """One session of Ray for all that start ranks."""
    ray_cluster.start("Testing")
    return library("ray", "Testing")


@pytest.fixture(scope="module")
def llama(load_tiny: Callable[[str], wb.Variant]) -> wb.Variant:
    return load_tiny("llama")


@pytest.fixture(scope="module")
def sharded(ray: Any, folders: dict[str, Path]) -> Iterator[shard.Sharded]:
    """The same two processes for all tests: each takes seconds to start."""
    with shard.shard(folders["llama"], 2) as made:
        yield made


def plain(folder: Path, ids: list[int]) -> torch.Tensor:
    """What plain transformers says of every token, in one process."""
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return model(torch.tensor([ids])).logits[0]


def gone(pids: list[int]) -> bool:
    return not any(map(group._alive, pids))


def test_logits_are_those_of_one_process(sharded: shard.Sharded, folders: dict[str, Path]) -> None:
    found = sharded.logits(IDS)
    torch.testing.assert_close(found, plain(folders["llama"], IDS), atol=1e-4, rtol=0)
    for ids in ([], [-1], [10**6]):
        with pytest.raises(InvalidInput, match=r"takes one token id or more, from 0 to \d+\.$"):
            sharded.logits(ids)
    with pytest.raises(InvalidInput, match="holds 512"):
        sharded.logits([1] * 513)


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "top_p": 0.9, "seed": 5}])
def test_answers_are_those_of_the_variant(sharded: shard.Sharded, llama: wb.Variant, settings: dict[str, Any]) -> None:
    wanted = llama.generate(QUESTION, max_new_tokens=12, **settings)
    assert sharded.generate(QUESTION, max_new_tokens=12, **settings).token_ids == wanted.token_ids
    pieces = list(sharded.stream(QUESTION, max_new_tokens=12, **settings))
    assert "".join(piece.text for piece in pieces) == wanted.said


def test_requests_at_once_are_all_answered(sharded: shard.Sharded, llama: wb.Variant) -> None:
    questions = [QUESTION, "How many seats?", "What is a lighthouse keeper for?"]

    async def ask() -> list[Any]:
        return await asyncio.gather(*(sharded.agenerate(each, max_new_tokens=6) for each in questions))

    wanted = [llama.generate(each, max_new_tokens=6).token_ids for each in questions]
    assert [each.token_ids for each in asyncio.run(ask())] == wanted


STEPS = {
    "a constraint": prompt.Constrain(form="choices", rule="rain before noon\nsnow"),
    "a stop": output.Stop(strings="e"),
    "a compression, which reads with the model": context.Compress(ratio=0.5),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_stages_have_their_say(sharded: shard.Sharded, llama: wb.Variant, step: Any) -> None:
    variant = llama.apply(step)
    passage = Passage("tides", "The tide comes in twice a day and goes out twice a day.")
    request = replace(Request.of(QUESTION), passages=(passage,))
    wanted = variant.generate(request, max_new_tokens=16)
    found = run_by(sharded, variant).generate(request, max_new_tokens=16)
    assert (found.token_ids, found.text, found.prompt_tokens) == (wanted.token_ids, wanted.text, wanted.prompt_tokens)


def test_rows_of_unequal_lengths_side_by_side(sharded: shard.Sharded, llama: wb.Variant) -> None:
    asked = prepare(llama, [Request.of(each) for each in ("Rain?", QUESTION, "How many seats does the boat have?")])
    settings = llama.decoding.but(max_new_tokens=8)
    wanted = [llama.generate(each.request, max_new_tokens=8).token_ids for each in asked]
    assert [each.token_ids for each in answers(run_by(sharded, llama), asked, settings)] == wanted


def run_by(sharded: shard.Sharded, variant: wb.Variant) -> wb.Variant:
    """A variant of the same weights, run by ranks that are there already."""
    speaker, _ = outline.speaker_of(variant)
    together.put(speaker.model, *together._groups[sharded._variant.model])
    return speaker


def test_what_each_rank_holds(sharded: shard.Sharded, llama: wb.Variant) -> None:
    """Every matrix is cut in two; the norms, 64 numbers each, two a block and one behind them, are held by both."""
    matrices = sum(each.nbytes for each in llama.model.parameters() if each.dim() == 2)
    norms = sum(each.nbytes for each in llama.model.parameters() if each.dim() == 1)
    buffers = sum(each.nbytes for each in llama.model.buffers())
    assert norms == 5 * 64 * 4
    assert sharded.bytes == (matrices // 2 + norms + buffers,) * 2
    table = sharded.table()
    assert list(table.index) == [0, 1]
    assert list(table["parameters"]) == [matrices // 2 + norms] * 2
    assert "2 ranks" in repr(sharded)
    assert any(note.startswith("The logits of 2 ranks are within ") for note in sharded.notes)


@pytest.mark.parametrize("name", ["qwen3", "gemma", "gpt_neox", "mistral", "mixtral"])
def test_other_architectures(sharded: shard.Sharded, folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    """The same ranks read another model: what transformers' plan makes of it is what one process computes."""
    folder = folders.get(name, tmp_path / name)
    if name not in folders:
        config = AutoModelForCausalLM.from_pretrained(folders["llama"]).config.to_dict()
        experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
        kind = {"mistral": MistralConfig, "mixtral": MixtralConfig}[name]
        kept = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
        AutoModelForCausalLM.from_config(kind(**kept, **(experts if name == "mixtral" else {}))).save_pretrained(folder)
    try:
        shares.check_shares(outlined(AutoModelForCausalLM.from_pretrained(folder)), 2)
        sharded._group.ask("load", str(folder), "float32", None)
        torch.testing.assert_close(together.read(sharded._group, IDS), plain(folder, IDS), atol=1e-4, rtol=1e-5)
    finally:
        sharded._group.ask("load", str(folders["llama"]), "float32", None)


def outlined(model: PreTrainedModel) -> PreTrainedModel:
    return outline.outline_of(copy.deepcopy(model.config), torch.float32, None)


def test_a_variant_is_written_once_and_compared(sharded: shard.Sharded, llama: wb.Variant) -> None:
    folder = outline.written(llama)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert outline.written(llama) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    sharded._group.ask("load", str(folder), "float32", None)
    speaker, device = outline.speaker_of(llama)
    assert device.type == "cpu"
    assert shard._check(sharded._group, speaker, llama.model) < 1e-4
    other = AutoModelForCausalLM.from_config(llama.model.config)
    with pytest.raises(InvalidInput, match=r"^The ranks compute something else than one process does"):
        shard._check(sharded._group, speaker, other)


def test_a_cancelled_start_leaves_nothing(ray: Any, llama: wb.Variant) -> None:
    progress = Progress(lambda told: told.cancel() if told.done else None)
    before = ranks_here()
    with pytest.raises(Cancelled):
        shard.shard(llama, 2, progress=progress)
    until = time.monotonic() + 20
    while ranks_here() - before and time.monotonic() < until:
        pass
    assert not ranks_here() - before


def ranks_here() -> set[int]:
    """Processes that are ranks, as Ray calls them."""
    found = set()
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if place.read_bytes().startswith(b"ray::Rank") and group._alive(int(place.parent.name)):
                found.add(int(place.parent.name))
        except OSError:
            continue
    return found


def test_a_rank_that_dies_is_one_error(sharded: shard.Sharded) -> None:
    """The last that uses the ranks, for it ends them."""
    pids = [part.pid for part in sharded.parts]
    stream = sharded.stream(QUESTION, max_new_tokens=64)
    next(stream)
    os.kill(pids[1], signal.SIGKILL)
    with pytest.raises(
        NotAvailable, match=r"^The process of rank 1 ended .* all ranks of 'llama' were ended: shard it"
    ):
        list(stream)
    assert sharded.closed
    assert gone(pids)
    for use in (lambda: sharded.generate(QUESTION), lambda: sharded.logits(IDS), lambda: sharded.stream(QUESTION)):
        with pytest.raises(Closed, match="rank 1 ended"):
            use()
    sharded.close()
    assert "closed" in repr(sharded)


def test_heads_are_not_cut() -> None:
    """As of the embedded model."""
    config = LlamaConfig(
        hidden_size=576, num_attention_heads=9, num_key_value_heads=3, num_hidden_layers=1, vocab_size=8
    )
    model = outline.outline_of(config, torch.float32, None)
    shares.check_shares(model, 1)
    shares.check_shares(model, 3)
    with pytest.raises(InvalidInput, match=r"^9 heads and 3 key/value heads can be shared by 1 or 3 ranks, not 2\.$"):
        shares.check_shares(model, 2)


def test_refused_before_anything_starts(
    load_tiny: Callable[[str], wb.Variant], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def never(purpose: str) -> None:
        raise AssertionError

    monkeypatch.setattr(ray_cluster, "start", never)
    base = load_tiny("llama")
    for wrong, sentence in (
        (lambda: shard.shard(base, 0), r"takes one rank or more"),
        (lambda: shard.shard(base, 2, limit=0), r"limit of at least one byte"),
        (lambda: shard.shard(base, 2, device="tpu"), r"There is no device 'tpu'"),
        (lambda: shard.shard(base, 4), r"^4 heads and 2 key/value heads can be shared by 1 or 2 ranks, not 4\.$"),
        (lambda: shard.shard(load_tiny("opt"), 2), r"no plan .* share a OPTForCausalLM: .* Llama"),
        (lambda: shard.shard(base.apply(quantize.Int8()), 2), r"already quantized: .* shard its dense parent\.$"),
    ):
        with pytest.raises(InvalidInput, match=sentence):
            wrong()
    with pytest.raises(NotAvailable, match=r"There is no model folder"):
        shard.shard(tmp_path / "nothing", 2)
    base.apply(quantize.Int8()).save(tmp_path / "packed")
    with pytest.raises(InvalidInput, match=r"is quantized: .* shard its dense parent\.$"):
        shard.shard(tmp_path / "packed", 2)
    adapters.attach(base.model, ["model.layers.0.mlp.up_proj"], 0, rank=2, alpha=2.0, dropout=0.0)
    with pytest.raises(InvalidInput, match=r"has an adapter: apply finetune\.Fuse\(\) first\.$"):
        shard.shard(base, 2)


def test_room_for_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, notes = shares.threads_of(torch.device("cpu"), 10_000)
    assert threads == 1
    assert any("10000 ranks share" in note for note in notes)
    assert not shares.threads_of(torch.device("cpu"), 1)[1]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(NotAvailable, match=r"^2 ranks need 2 GPUs, and there is 1 here: "):
        shares.threads_of(torch.device("cuda"), 2)


def test_what_ranks_leave_out_is_said(load_tiny: Callable[[str], wb.Variant]) -> None:
    variant = load_tiny("llama").apply(quantize.KVCache(bits=8)).apply(runtime.ResponseCache())
    speaker, _ = outline.speaker_of(variant)
    assert not speaker.stages
    assert any("plain way, without" in note for note in speaker.notes)
    assert any("ResponseCache is left out" in note for note in speaker.notes)
