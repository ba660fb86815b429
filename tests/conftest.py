"""Fixtures of the engine's tests: tiny models with random weights, and the embedded model."""

# ruff: noqa: E402 - the imports are what is to be made quicker
import gc
import os
import sys

gc.disable()  # until all is imported and collected: none of it is garbage
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks a network; a missing model is then refused at once
sys.modules.setdefault("rfc3987_syntax", None)  # grammars for addresses, which jsonschema takes a second to make

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import library
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)
from xdist.scheduler import LoadScopeScheduling

import workbench as wb

TEXT = """
The tide comes in twice a day and goes out twice a day. A lighthouse keeper trims the lamp, winds the clock and writes
the weather down: wind from the west, rain before noon, a red sky in the evening. What is a lobster? It is a large
crustacean with two claws, and it lives on rocky ground. How many seats does the boat have? It has twelve seats, and
the captain takes one of them. Answer in one short sentence. You are a helpful assistant. Ünïcödé: 猫 is a cat, 🦞 is a
lobster, and naïve cafés serve both. 0 1 2 3 4 5 6 7 8 9 { } [ ] ( ) < > | / \\ " ' , . ; : ! ? - _ + * = & % $ # @ ~
"""
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CONTEXT = 512  # tokens that every tiny model holds


def _train_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 400 tokens with ChatML control tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        [TEXT],
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def _configs(vocabulary: int, start: int, end: int) -> dict[str, PreTrainedConfig]:
    # Wide weights make greedy choices clear cut: rounding in the last bit never decides a token.
    common = {"vocab_size": vocabulary, "bos_token_id": start, "eos_token_id": end, "pad_token_id": 0}
    block = common | {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.2,
    }
    gated = block | {"intermediate_size": 128, "num_key_value_heads": 2}
    return {
        "llama": LlamaConfig(**gated, tie_word_embeddings=False),
        "gpt2": GPT2Config(
            **common,
            n_embd=64,
            n_layer=2,
            n_head=4,
            n_positions=CONTEXT,
            initializer_range=0.2,
            tie_word_embeddings=True,
        ),
        "qwen3": Qwen3Config(**gated, head_dim=16, tie_word_embeddings=True),
        "gpt_neox": GPTNeoXConfig(**block, intermediate_size=128, tie_word_embeddings=False),
        "opt": OPTConfig(
            **common,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            ffn_dim=128,
            max_position_embeddings=CONTEXT,
            word_embed_proj_dim=64,
            init_std=0.2,
            tie_word_embeddings=True,
        ),
        "gemma": GemmaConfig(**gated, head_dim=16, tie_word_embeddings=True),
    }


ARCHITECTURES = ("llama", "gpt2", "qwen3", "gpt_neox", "opt", "gemma")


def reference(variant: wb.Variant, ids: list[int], n: int) -> list[int]:
    """What transformers' generate gives, end tokens ignored."""
    tokens = torch.tensor([ids])
    made = variant.model.generate(
        tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=n, min_new_tokens=n,
        eos_token_id=variant.model.config.vocab_size + 1, pad_token_id=0,
    )  # fmt: skip
    return made[0, len(ids) :].tolist()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    """With `--dist loadgroup` it is ours: what pytest-xdist 3.8 has cannot group on pytest 9."""
    return Grouped(config, log) if config.getvalue("dist") == "loadgroup" else None


class Grouped(LoadScopeScheduling):
    """A file at a time, so that what its tests share is made once; the lessons one by one."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid if LESSON in nodeid else nodeid.partition("::")[0]


LESSON = "::test_lesson_runs"
LONGEST = (LESSON, "/test_browser", "/test_contract.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever takes what is long last keeps the others waiting: that is handed out first."""
    items.sort(key=lambda item: next((at for at, part in enumerate(LONGEST) if part in item.nodeid), len(LONGEST)))


def pytest_collection_finish() -> None:
    gc.enable()


def settle() -> None:
    """Take everything that imports made out of the collector's sight, so that leak checks are exact and quick."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder laid out as the repository and the address of a JupyterLab on it."""
    from lab import lab, workspace

    folder = workspace(tmp_path_factory.mktemp("lab"))
    with lab(folder) as address:
        yield folder, address


@pytest.fixture(scope="module")
def window() -> Iterator[Any]:
    """A Chromium, as Playwright's context."""
    from page import browsing

    with browsing() as context:
        yield context


def pytest_exception_interact(node: pytest.Item) -> None:
    """A browser's test that failed shows its pages."""
    if window := getattr(node, "funcargs", {}).get("window"):
        from page import keep_failed

        keep_failed(window)


@pytest.fixture(scope="module", autouse=True)
def _settled() -> None:
    """Anew for each module: tests import as well, and all that follow would search through what that made."""
    settle()


@pytest.fixture(autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """One thread for tiny models: handing their work to a second one takes longer than doing it."""
    before = torch.get_num_threads()
    if request.node.get_closest_marker("model") is None:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _indexes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes of documents, and answers that were kept, are gone after the test."""
    monkeypatch.setattr("workbench.answering.store.cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr("workbench.retrieval.index.cache_folder", lambda: tmp_path / "cache")


@pytest.fixture(autouse=True)
def graphs_built(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Graphs run as they were traced, but in a test marked `compiles`; gives the size of each."""
    sizes: list[int] = []

    def as_traced(graph: torch.fx.GraphModule, inputs: list[torch.Tensor], flags: str) -> torch.fx.GraphModule:
        sizes.append(len(graph.graph.nodes))
        return graph

    if request.node.get_closest_marker("compiles") is None:
        monkeypatch.setattr("workbench.runtime.graphs.built", as_traced)
    return sizes


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return _train_tokenizer()


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> dict[str, Path]:
    """Architecture to the folder of a tiny random model of it; read only."""
    root = tmp_path_factory.mktemp("tiny")
    made = {}
    configs = _configs(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
    for name, config in configs.items():
        torch.manual_seed(7)
        folder = root / name
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        made[name] = folder
    assert tuple(made) == ARCHITECTURES
    return made


@pytest.fixture(scope="session")
def load_tiny(folders: dict[str, Path]) -> Callable[[str], wb.Variant]:
    """Loads a fresh tiny model of an architecture, in float32 on the CPU."""
    return lambda architecture: wb.load(folders[architecture], device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def tiny(load_tiny: Callable[[str], wb.Variant]) -> wb.Variant:
    """A tiny Llama that all tests of a file share."""
    return load_tiny("llama")


@pytest.fixture
def base(load_tiny: Callable[[str], wb.Variant]) -> wb.Variant:
    """A fresh tiny Llama."""
    return load_tiny("llama")


@pytest.fixture
def tiny_task(tmp_path: Path) -> wb.Task:
    """Eight examples a split, of the kind that a 400-token vocabulary can spell, and a document about them."""
    from workbench.tasks.task import Example

    def split(name: str) -> tuple[Example, ...]:
        return tuple(
            Example(id=f"{name}-{i}", prompt=f"How many seats does boat {name} {i} have?", answer=f"It has {i} seats.")
            for i in range(8)
        )

    documents = tmp_path / "boats"
    documents.mkdir()
    (documents / "ferry.txt").write_text("The ferry has twelve seats. The captain takes one of them.")
    return wb.Task(
        name="boats",
        scorer="f1",
        max_new_tokens=8,
        documents=str(documents),
        train=split("a"),
        calibration=split("b"),
        test=split("c"),
    )


@pytest.fixture
def tiny_text() -> wb.Text:
    return wb.Text(name="tides", text=TEXT * 4, window=32, calibration=4, test=4)


@pytest.fixture
def bench_task(tiny_task: wb.Task) -> wb.Task | wb.Text:
    """What the bench is about; a module that wants a text overrides it."""
    return tiny_task


@pytest.fixture
def bench(
    base: wb.Variant, bench_task: wb.Task | wb.Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """A bench on a tiny model."""
    from widgets import Bench  # the engine's tests need no ipywidgets

    monkeypatch.chdir(tmp_path)
    made = Bench(base, bench_task)
    assert made.wait(60)
    yield made
    made.close()


@pytest.fixture(scope="session")
def smollm() -> wb.Variant:
    """The embedded model in float32; shared, so no test may close it."""
    return wb.load(device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """Ray, for all tests of a process that start it; it ends with them."""
    yield
    import ray

    ray.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The documents of `library` as files."""
    made = tmp_path / "documents"
    made.mkdir()
    for name, text in library.TEXTS.items():
        (made / f"{name}.md").write_text(text)
    return made


@pytest.fixture
def index(tmp_path: Path) -> Any:
    """The documents of `library` in an index with vectors."""
    from workbench.retrieval.embedding import encoder
    from workbench.retrieval.index import Index

    made = Index(tmp_path / "a.sqlite", encoder=encoder())
    assert made.update(library.DOCUMENTS) == len(library.DOCUMENTS)
    return made


@pytest.fixture
def panel(bench: Any) -> Any:
    """The panel of the family prune."""
    return bench.panel("prune")


@pytest.fixture
def measured(panel: Any) -> Any:
    """The sensitivity of the layers to Wanda, measured by a click."""
    from screen import TIMEOUT, turn

    from widgets.tools.sensitivity import Layers
    from workbench.steps import prune

    turn(panel, prune.Wanda(exclude="1.mlp.down_proj"))
    layers = panel.tools[Layers]
    layers.button.click()
    assert panel.bench.wait(TIMEOUT)
    assert "wb-done" in layers.message.value, layers.message.value
    return layers
