"""A smaller vocabulary: the same pieces of the task, the same logits for them, and everything else still spelled."""

import json

import pytest
import torch
from conftest import ARCHITECTURES, TEXT
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Tokenizer, LlamaConfig, PreTrainedTokenizerFast

import workbench as wb
from workbench.core.errors import InvalidInput
from workbench.models import sharing
from workbench.models.tokens import encode_text
from workbench.steps import prompt, quantize
from workbench.steps.prune.vocabulary import Vocabulary, cut_tokenizer, passed
from workbench.tasks.task import SPLITS, Example

OTHER = "Ünïcödé: 猫 🦞 naïve cafés,\n\ttabs \x07 Привет, ٣ ½ <|im_end|> and a zebra"  # what no task below says


@pytest.fixture
def child(base, tiny_task) -> wb.Variant:
    return base.apply(Vocabulary(keep=0), tiny_task)


def old_ids(child: wb.Variant, base: wb.Variant) -> list[int]:
    """For every token of the child, its number in the parent."""
    before = base.tokenizer.get_vocab()
    return [before[token] for token in child.tokenizer.convert_ids_to_tokens(range(len(child.tokenizer)))]


def said(task: wb.Task) -> list[str]:
    examples = [example for split in SPLITS for example in getattr(task, split)]
    return [text for each in examples for text in (task.prompt(each), each.answer, *each.choices)]


def test_the_task_is_cut_into_the_same_pieces(base, child, tiny_task) -> None:
    assert len(child.tokenizer) < len(base.tokenizer)
    for text in said(tiny_task):
        ours, theirs = child.encode(text), base.encode(text)
        assert child.tokenizer.convert_ids_to_tokens(ours) == base.tokenizer.convert_ids_to_tokens(theirs)


@pytest.mark.parametrize("text", [OTHER, TEXT, "".join(map(chr, range(1, 300)))])
def test_everything_else_is_still_spelled(text, base, child) -> None:
    ids = encode_text(child.tokenizer, text)
    assert child.tokenizer.decode(ids) == base.tokenizer.decode(encode_text(base.tokenizer, text)) == text
    assert len(ids) >= len(encode_text(base.tokenizer, text))


def test_every_token_that_stays_can_be_reached(base, child) -> None:
    for token, number in child.tokenizer.get_vocab().items():
        text = child.tokenizer.decode([number])
        if "\ufffd" not in text:  # a piece of a character is none by itself
            assert child.tokenizer(text)["input_ids"] == [number], token


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_the_parents_at_the_kept_ids(architecture, load_tiny, tiny_task, tmp_path) -> None:
    base = load_tiny(architecture)
    child = base.apply(Vocabulary(keep=0), tiny_task)
    kept = torch.tensor(old_ids(child, base))
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(child.model(ids).logits, base.model(kept[ids]).logits[..., kept])
    reference = AutoModelForCausalLM.from_config(child.model.config).state_dict()
    assert {k: v.shape for k, v in reference.items()} == {k: v.shape for k, v in child.model.state_dict().items()}
    embedding, head = child.model.get_input_embeddings(), child.model.get_output_embeddings()
    tied = base.model.get_input_embeddings().weight is base.model.get_output_embeddings().weight
    assert (embedding.weight is head.weight) == tied
    rows = len(kept) * 64 * 4
    assert child.owned_bytes == (rows if tied else 2 * rows), "a tied table is selected once"
    assert len(child.tokenizer) == child.model.config.vocab_size == head.out_features == len(kept)
    again = wb.load(child.save(tmp_path / "export"), device="cpu")
    assert again.encode(OTHER) == child.encode(OTHER)
    assert again.tokenizer.get_vocab() == child.tokenizer.get_vocab()
    with torch.no_grad():
        assert torch.equal(again.model(ids).logits, child.model(ids).logits)


def test_control_tokens_are_renumbered_everywhere(base, tiny_task) -> None:
    model = sharing.share(base.model)
    model.generation_config.eos_token_id = [2, 399]
    model.config.eos_token_id = [2, 399]
    child = wb.Variant(model=model, tokenizer=base.tokenizer, name="b", source="b").apply(Vocabulary(keep=0), tiny_task)
    last = old_ids(child, base).index(399)
    for config in (child.model.config, child.model.generation_config):
        assert config.eos_token_id == [2, last]
        assert (config.bos_token_id, config.pad_token_id) == (1, 0)
    assert child.end_tokens == {2, last}
    assert base.model.config.eos_token_id == 2
    assert child.tokenizer.chat_template == base.tokenizer.chat_template
    assert child.tokenizer.convert_tokens_to_ids("<|im_end|>") == child.tokenizer.eos_token_id == 2


def test_a_text_keeps_its_windows(base, tiny_text) -> None:
    short = tiny_text.model_copy(update={"text": "The tide comes in twice a day and goes out. " * 40})
    child = base.apply(Vocabulary(keep=0), short)
    for split in ("calibration", "test"):
        ours = [child.tokenizer.convert_ids_to_tokens(window) for window in short.windows(child.tokenizer, split)]
        theirs = [base.tokenizer.convert_ids_to_tokens(window) for window in short.windows(base.tokenizer, split)]
        assert ours == theirs


def test_choices_and_instructions_of_earlier_steps_are_kept(base) -> None:
    example = Example(id="1", prompt="Which?", answer="lighthouse", choices=("lighthouse", "crustacean"))
    task = wb.Task(name="which", scorer="choice", test=(example,))
    asked = base.apply(prompt.System(text="Answer in one short sentence."))
    child = asked.apply(Vocabulary(keep=0), task)
    for text in example.choices:
        pieces = child.tokenizer.convert_ids_to_tokens(encode_text(child.tokenizer, text))
        assert pieces == base.tokenizer.convert_ids_to_tokens(encode_text(base.tokenizer, text))
    assert len(child.encode("Which?")) == len(asked.encode("Which?"))


@pytest.mark.parametrize("keep", [0, 300, 330])
def test_the_first_tokens_stay_and_the_sum_is_a_multiple_of_64(keep, base, tiny_task) -> None:
    child = base.apply(Vocabulary(keep=keep), tiny_task)
    assert set(range(keep)) <= set(old_ids(child, base))
    assert len(child.tokenizer) in (320, 384)
    forecast = Vocabulary(keep=keep).forecast(base)
    assert forecast.weight_bytes <= child.total_bytes <= base.total_bytes


def test_keeping_all_is_the_identity(base, tiny_task) -> None:
    child = base.apply(Vocabulary(keep=400), tiny_task)
    assert child.owned_bytes == 0
    assert child.tokenizer is base.tokenizer
    assert Vocabulary(keep=400).forecast(base).weight_bytes == base.total_bytes


def test_a_text_that_uses_every_token_is_the_identity(base) -> None:
    every = wb.Text(name="every", text=TEXT * 4, window=32, calibration=4, test=4)
    child = base.apply(Vocabulary(keep=0), every)
    assert child.owned_bytes == 0
    assert child.tokenizer is base.tokenizer


def test_packed_blocks_are_left_alone_and_packed_tables_refused(base, tiny_task) -> None:
    packed = base.apply(quantize.Int8(head=False))
    child = packed.apply(Vocabulary(keep=0), tiny_task)
    kept = torch.tensor(old_ids(child, packed))
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(child.model(ids).logits, packed.model(kept[ids]).logits[..., kept])
    whole = base.apply(quantize.Int8(head=True))
    for refused in (lambda: whole.apply(Vocabulary(), tiny_task), lambda: Vocabulary().forecast(whole)):
        with pytest.raises(InvalidInput, match="apply Vocabulary to its parent"):
            refused()


def test_the_tokens_that_merging_passes_through() -> None:
    merges = [("a", "b"), ("c", "d"), ("ab", "cd"), ("b", "c"), ("abcd", "e")]
    assert passed(["abcde"], merges) == {"a", "b", "c", "d", "e", "ab", "cd", "abcd", "abcde"}
    assert passed(["bc"], merges) == {"b", "c", "bc"}
    assert passed(["ae"], merges) == {"a", "e"}, "no merge makes it"


def test_a_cut_by_hand() -> None:
    vocab = {token: index for index, token in enumerate(["</s>", "a", "b", "c", "ab", "bc", "abc"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b"), ("b", "c"), ("ab", "c")]))
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    state, kept = cut_tokenizer(json.loads(tokenizer.to_str()), [6])
    assert kept == [0, 1, 2, 3, 4, 6]
    assert state["model"]["merges"] == [["a", "b"], ["ab", "c"]]
    assert state["model"]["vocab"] == {"</s>": 0, "a": 1, "b": 2, "c": 3, "ab": 4, "abc": 5}
    again = Tokenizer.from_str(json.dumps(state))
    assert again.encode("abc").ids == [5, 0]
    assert again.encode("bcab").tokens == ["b", "c", "ab", "</s>"]


def sentencepiece() -> PreTrainedTokenizerFast:
    """Byte-pair encoding over characters that falls back to bytes, as Llama 2 and Gemma have it."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    first = ["<unk>", "<s>", "</s>"]
    units = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=first + units, show_progress=False)
    backend.train_from_iterator([TEXT], trainer)
    state = json.loads(backend.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in first]
    backend = Tokenizer.from_str(json.dumps(state))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    made.add_tokens(["<tool>"])
    return made


def unigram() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator([TEXT] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def gpt2(tokenizer: PreTrainedTokenizerFast) -> GPT2Tokenizer:
    """A class that rebuilds its tokenizer from vocabulary and merges when it is read."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return GPT2Tokenizer(vocab=model["vocab"], merges=merges, bos_token="<|endoftext|>", eos_token="<|im_end|>")


@pytest.mark.parametrize("kind", ["sentencepiece", "unigram", "gpt2"])
def test_kinds_of_tokenizers(kind, tokenizer, tmp_path) -> None:
    whole = {"sentencepiece": sentencepiece, "unigram": unigram, "gpt2": lambda: gpt2(tokenizer)}[kind]()
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    ends = {"bos_token_id": whole.bos_token_id, "eos_token_id": whole.eos_token_id}
    config = LlamaConfig(vocab_size=len(whole) + 8, **ends, **sizes)  # rows beyond the tokenizer, as some models have
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    base = wb.Variant(model=model, tokenizer=whole, name="base", source="random")
    text = wb.Text(name="short", text="The tide comes in. 猫 is a cat, naïve.", window=4, calibration=0, test=2)
    child = base.apply(Vocabulary(keep=0), text)
    assert child.model.config.vocab_size == len(child.tokenizer) < len(whole)
    ours, theirs = (each.tokenizer(text.text)["input_ids"] for each in (child, base))
    assert child.tokenizer.convert_ids_to_tokens(ours) == whole.convert_ids_to_tokens(theirs)
    child.tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for other in (text.text, OTHER, TEXT, "<tool> </s> <unk>"):
        ids = child.tokenizer(other)["input_ids"]
        assert child.tokenizer.decode(ids) == whole.decode(whole(other)["input_ids"])
        assert again(other)["input_ids"] == ids
    assert child.generate("a", max_new_tokens=2).token_ids


def test_other_kinds_are_refused(base, tiny_text) -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="a", eos_token="b", unk_token="[UNK]")
    other = wb.Variant(model=base.model, tokenizer=tokenizer, name="words", source="words")
    with pytest.raises(InvalidInput, match="WordLevel"):
        other.apply(Vocabulary(keep=0), tiny_text)


@pytest.mark.model
def test_the_embedded_model_on_the_tickets(smollm) -> None:
    task = wb.read_task("data/tickets")
    child = smollm.apply(Vocabulary(), task)
    assert len(child.tokenizer) < 10_000
    assert child.total_bytes < 0.84 * smollm.total_bytes
    assert child.model.lm_head.weight is child.model.model.embed_tokens.weight
    assert child.tokenizer.decode(encode_text(child.tokenizer, OTHER)) == OTHER
    assert "lobster" in child.generate("What is a lobster?", max_new_tokens=12).text
