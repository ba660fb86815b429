"""A tokenizer as GGUF holds it: tokens, merges or scores, control tokens, and the chat template.

Source: `set_vocab` of llama.cpp's converter, https://github.com/ggml-org/llama.cpp/blob/master/convert_hf_to_gguf.py.
"""

import json
from typing import Any

from transformers import PreTrainedTokenizerBase

from workbench.core.errors import InvalidInput
from workbench.models.tokens import start_tokens

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # gguf.TokenType
SPLITS = (  # what the name of a way to split text begins or differs with
    (r"\p{N}{1,3}", "llama-bpe"),
    (r"\p{N}|", "qwen2"),
)


def write(writer: Any, tokenizer: PreTrainedTokenizerBase, rows: int, ends: frozenset[int]) -> str:
    """Write a tokenizer; a sentence where other programs may split text in another way.

    Args:
        writer: of the gguf package.
        tokenizer: a byte-level BPE, or a BPE with bytes to fall back on as SentencePiece makes them.
        rows: how many tokens the model has logits for.
        ends: tokens that end an answer.

    Raises:
        InvalidInput: llama.cpp has no such tokenizer.
    """
    state = described(tokenizer)
    pieces = state["model"]["byte_fallback"]
    names = {index: token for token, index in tokenizer.get_vocab().items() if index < rows}
    unknown = state["model"].get("unk_token")
    tokens = [names.get(index, f"[PAD{index}]") for index in range(rows)]
    writer.add_tokenizer_model("llama" if pieces else "gpt2")
    writer.add_tokenizer_pre("default" if pieces else _split(state))
    writer.add_token_list(tokens)
    if pieces:
        writer.add_token_scores(_scores(state["model"], tokens))
        writer.add_add_space_prefix(
            "\u2581" in json.dumps([state["normalizer"]], ensure_ascii=False) and _prepends(state)
        )
    else:
        writer.add_token_merges(
            [each if isinstance(each, str) else " ".join(each) for each in state["model"]["merges"]]
        )
    writer.add_token_types([_kind(index, names, unknown if pieces else None, tokenizer) for index in range(rows)])
    _special(writer, tokenizer, rows, ends)
    plain = pieces or _split(state) != "default"
    return (
        "" if plain else "Other programs may split a text into other tokens: GGUF has no name for this tokenizer's way."
    )


def described(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The parts of a tokenizer.

    Raises:
        InvalidInput: llama.cpp has no such tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state: dict[str, Any] = json.loads(backend.to_str()) if backend is not None else {"model": {"type": "none"}}
    if state["model"]["type"] != "BPE":
        raise InvalidInput(
            f"llama.cpp has no tokenizer of the kind {state['model']['type'][:20]} for this model: save it to a folder "
            "instead."
        )
    return state


def _kind(index: int, names: dict[int, str], unknown: str | None, tokenizer: PreTrainedTokenizerBase) -> int:
    token = names.get(index)
    if token is None:
        return UNUSED
    added = getattr(tokenizer, "added_tokens_decoder", {}).get(index)
    if unknown is not None and token == unknown:
        return UNKNOWN
    if added is not None:
        return CONTROL if added.special else USER
    byte = unknown is not None and len(token) == 6 and token.startswith("<0x") and token.endswith(">")
    return BYTE if byte else NORMAL


def _scores(model: dict[str, Any], tokens: list[str]) -> list[float]:
    """Higher for what is merged earlier: SentencePiece's order, of which a list of merges is the record."""
    rank: dict[str, int] = {}
    for place, merge in enumerate(model["merges"]):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        rank.setdefault(left + right, place)
    return [-float(rank.get(token, len(rank))) for token in tokens]


def _prepends(state: dict[str, Any]) -> bool:
    return '"Prepend"' in json.dumps(state["normalizer"])


def _split(state: dict[str, Any]) -> str:
    """The name that llama.cpp has for how a text is cut before it is merged."""
    parts = _flat(state["pre_tokenizer"])
    kinds = [part["type"] for part in parts]
    if kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"]:
        pattern = str(parts[0]["pattern"].get("Regex", ""))
        return next((name for sign, name in SPLITS if sign in pattern), "default")
    return "default"


def _flat(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    if part is None:
        return []
    return [each for inner in part["pretokenizers"] for each in _flat(inner)] if part["type"] == "Sequence" else [part]


def _special(writer: Any, tokenizer: PreTrainedTokenizerBase, rows: int, ends: frozenset[int]) -> None:
    eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else min(ends, default=None)
    named = {"bos": tokenizer.bos_token_id, "eos": eos, "unk": tokenizer.unk_token_id, "pad": tokenizer.pad_token_id}
    named["eot"] = next((each for each in sorted(ends) if each != eos), None)
    for name, index in named.items():
        if index is not None and index < rows:
            getattr(writer, f"add_{name}_token_id")(index)
    writer.add_add_bos_token(start_tokens(tokenizer)[:1] == [tokenizer.bos_token_id])
    writer.add_add_eos_token(False)
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if template:
        writer.add_chat_template(template)
