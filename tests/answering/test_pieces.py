"""The pieces of a stream are the whole text, whatever the tokens spell."""

import json
import random
from types import SimpleNamespace

import pytest
from conftest import TEXT
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import PreTrainedTokenizerFast

from workbench.answering.pieces import CONTEXT, WINDOW, Pieces

SPACE = "\u2581"


@pytest.fixture(scope="module")
def bytewise() -> PreTrainedTokenizerFast:
    """A tokenizer that spells what it does not know in bytes, as those of Llama 2, Mistral, Gemma and Phi-3 do."""
    spelled = [f"<0x{byte:02X}>" for byte in range(256)]
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>"]
    backend.train_from_iterator(
        [TEXT.replace("猫", "").replace("🦞", "")],
        trainers.BpeTrainer(vocab_size=600, special_tokens=[*special, *spelled], show_progress=False),
    )
    state = json.loads(backend.to_str())
    state["added_tokens"] = [each for each in state["added_tokens"] if each["content"] in special]
    backend = Tokenizer.from_str(json.dumps(state))
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def speller(tokenizer: PreTrainedTokenizerFast) -> SimpleNamespace:
    return SimpleNamespace(
        tokenizer=tokenizer, decode=lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True)
    )


def streamed(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> list[str]:
    pieces = Pieces(speller(tokenizer))
    found = [pieces.add(token) for token in ids]
    return [*found, pieces.rest(tokenizer.decode(ids, skip_special_tokens=True))]


@pytest.mark.parametrize("kind", ["bytewise", "tokenizer"])
def test_any_tokens_at_all(request: pytest.FixtureRequest, kind: str) -> None:
    tokenizer = request.getfixturevalue(kind)
    for seed in range(60):
        ids = random.Random(seed).choices(range(len(tokenizer)), k=seed * 3 + 1)
        assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["bytewise", "tokenizer"])
def test_a_long_text(request: pytest.FixtureRequest, kind: str) -> None:
    tokenizer = request.getfixturevalue(kind)
    text = " ".join([TEXT.strip()] * 4)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) > 5 * WINDOW > 5 * CONTEXT
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)
    assert sum(map(bool, streamed(tokenizer, ids)[:-1])) > len(ids) / 2, "it comes while it is made"


def test_a_character_comes_whole(bytewise: PreTrainedTokenizerFast) -> None:
    ids = bytewise("a 猫 is", add_special_tokens=False)["input_ids"]
    assert sum(token.startswith("<0x") for token in bytewise.convert_ids_to_tokens(ids)) == 3
    pieces = streamed(bytewise, ids)
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == "a 猫 is"


def test_a_byte_may_undo_the_character_before_it(bytewise: PreTrainedTokenizerFast) -> None:
    cat = bytewise("猫", add_special_tokens=False)["input_ids"]
    ids = [*cat, bytewise.convert_tokens_to_ids("<0xFF>"), *bytewise("x", add_special_tokens=False)["input_ids"]]
    assert "猫" not in bytewise.decode(ids)
    assert "".join(streamed(bytewise, ids)) == bytewise.decode(ids)
