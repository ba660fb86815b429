"""Perplexity, divergence and calibration are those of plain transformers, on unlike architectures and tokenizers."""

import copy
from pathlib import Path

import pytest
import torch
from architectures import tiny_folder
from tokenizers import processors
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import workbench as wb
from workbench.layers.calibration import statistics
from workbench.models.experts import all_experts
from workbench.steps import prune

UNLIKE = (
    "llama", "qwen3", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "opt", "phi3", "falcon", "bloom", "mixtral", "bamba"
)  # fmt: skip


@pytest.fixture(scope="module")
def opening(tokenizer):
    """The tokenizer, made to put a token before every text."""
    made = copy.deepcopy(tokenizer)
    start = made.convert_tokens_to_ids("<|im_start|>")
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)]
    )
    return made


def windows(folder: Path, text: wb.Text) -> list[list[int]]:
    """As anybody would cut a text: pieces that, with what the tokenizer puts before them, have the length asked for."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    start = tokenizer("")["input_ids"]
    ids = tokenizer(text.text, add_special_tokens=False)["input_ids"]
    width = text.window - len(start)
    return [[*start, *ids[at : at + width]] for at in range(0, len(ids) - width + 1, width)]


def log_chances(model: torch.nn.Module, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Of every next token ``(rows, tokens, vocabulary)``, and the tokens."""
    ids = torch.tensor(rows)
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits[:, :-1].double().log_softmax(dim=-1), ids[:, 1:]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("begins", [True, False], ids=["begins", "plain"])
@pytest.mark.parametrize("name", UNLIKE)
def test_as_plain_transformers(
    request: pytest.FixtureRequest, tiny_text: wb.Text, tmp_path: Path, name: str, begins: bool, tied: bool
) -> None:
    tokenizer = request.getfixturevalue("opening" if begins else "tokenizer")
    # Wide weights with tied embeddings say what they read, whatever it is.
    folder = tiny_folder(tmp_path / name, name, tokenizer, spread=0.1, tie_word_embeddings=tied)
    base = wb.load(folder, device="cpu", dtype="float32")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert (plain.get_input_embeddings().weight is plain.get_output_embeddings().weight) == tied
    cut = windows(folder, tiny_text)

    logs, targets = log_chances(plain, cut[-tiny_text.test :])
    nll = -logs.gather(-1, targets[..., None])[..., 0]
    thin = base.apply(prune.Magnitude(sparsity=0.3))
    result = wb.compare([base, thin], tiny_text, rounds=1, new_tokens=2, store=False)
    assert result[base.name]["perplexity"].value == pytest.approx(float(nll.mean().exp()), rel=1e-3)

    made = dict(thin.model.named_parameters())  # the same change, made by hand
    for path, experts in all_experts(thin.model):
        made = {name: weight for name, weight in made.items() if not name.startswith(f"{path}.")}
        made |= {f"{path}.{name}": weight for name, weight in experts.joined().items()}
    for path, weight in made.items():
        plain.get_parameter(path).data = weight.detach().clone()
    changed, _ = log_chances(plain, cut[-tiny_text.test :])
    kl = (logs.exp() * (logs - changed)).sum(dim=-1).mean()
    assert result[thin.name]["kl_to_baseline"].value == pytest.approx(float(kl), rel=1e-2)

    path, seen = next(iter(statistics(base, tiny_text).layers.items()))
    fed: list[Tensor] = []
    hook = base.model.get_submodule(path).register_forward_pre_hook(lambda _, args: fed.append(args[0].detach()))
    log_chances(base.model, cut[: tiny_text.calibration])
    hook.remove()
    rows = torch.cat([each.reshape(-1, each.shape[-1]) for each in fed]).double()
    assert torch.allclose(seen.norm.double(), rows.square().mean(dim=0).sqrt(), rtol=1e-3, atol=1e-5)
