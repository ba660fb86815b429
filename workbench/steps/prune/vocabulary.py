"""Vocabulary: the token rows that a task never uses."""

import contextlib
import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from tokenizers import Tokenizer
from torch import nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from workbench.answering.request import Request
from workbench.core.errors import InvalidInput
from workbench.core.progress import Progress
from workbench.models import sharing
from workbench.models.blocks import cut
from workbench.models.tokens import Message, encode_chat, encode_text
from workbench.step import Forecast, Step
from workbench.tasks.task import SPLITS, Task, Text
from workbench.variant import Variant

MULTIPLE = 64  # tokens: some kernels take whole vectors of outputs only


class Vocabulary(Step):
    """Drops the rows of the embedding and the output head whose tokens the task never uses.

    Small models spend a fifth to a half of their bytes on a vocabulary for every language and programming library, and
    the output head is read whole for every token. The tokenizer is cut to match: the task's texts become the same
    pieces as before, and anything else is still spelled, in more and shorter pieces, at some loss of quality.
    Likelihoods of other vocabularies are not comparable token by token, so a divergence from the parent is not given.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2311.09709"
    caveat: ClassVar[str] = "not faster: the output head is a small part of what this model reads for a token"
    needs_data: ClassVar[bool] = True
    keep: int = Field(
        default=8192,
        ge=0,
        le=1_000_000,
        description="How many of the tokenizer's first, most frequent tokens stay whether or not the task uses them; "
        "the sum is filled up to a multiple of 64.",
    )

    def apply(self, variant: Variant, task: Task | Text | None, progress: Progress) -> Variant:
        """Choose the tokens, cut the tokenizer, and select the rows; a tied table is selected once."""
        assert task is not None
        _check_dense(variant, self.label)
        if self.keep >= len(variant.tokenizer):
            return variant.derive(self)
        read = task_tokens(variant, task, progress)
        used = set().union(*read) | control_tokens(variant)
        whole = with_rows(json.loads(variant.tokenizer.backend_tokenizer.to_str()), _rows(variant.model))
        state, kept = cut_tokenizer(whole, used | set(range(self.keep)))
        known = {token for token in variant.tokenizer.get_vocab().values() if token < _rows(variant.model)}
        while fill := sorted(known - set(kept))[: -len(kept) % MULTIPLE]:
            progress.check()
            state, kept = cut_tokenizer(whole, {*kept, *fill})
        if len(kept) == variant.model.config.get_text_config().vocab_size:
            return variant.derive(self)
        new = {old: index for index, old in enumerate(kept)}
        tokenizer = _tokenizer(variant.tokenizer, state)
        model = sharing.share(variant.model)
        for config in _configurations(model):
            renumber(config, new)
        cut(model, {(name, 0): torch.tensor(kept) for name in _table_tensors(model)}, progress)
        child = replace(variant.derive(self, model), tokenizer=tokenizer)
        if task_tokens(child, task, progress) != [[new[token] for token in ids] for ids in read]:
            raise InvalidInput(
                f"{self.label} cannot cut the tokenizer of '{variant.name}' without changing its pieces."
            )
        return child

    def forecast(self, variant: Variant) -> Forecast:
        """Bytes if the task used no token beyond those kept anyway: the least that it can be."""
        _check_dense(variant, self.label)
        tables = sharing.storages(nn.ModuleList(_tables(variant.model)))
        before, rows = sum(tables.values()), len(variant.tokenizer)
        after = round(before * min(self.keep, rows) / rows)
        return Forecast(
            owned_bytes=after if after < before else 0,
            weight_bytes=variant.total_bytes - before + after,
            seconds=None if after < before else 0.0,
        )


def task_tokens(variant: Variant, task: Task | Text, progress: Progress) -> list[list[int]]:
    """Token ids of everything that the task says: the whole text, or every prompt, answer and choice as it is asked.

    Of a text all is read, not the scored windows only: they are counted in tokens from its start.
    """
    tokenizer = variant.tokenizer
    if isinstance(task, Text):
        read = [encode_text(tokenizer, task.text)]
    else:
        examples = [example for split in SPLITS for example in getattr(task, split)]
        read = []
        for example in progress.track(f"{variant.name}: reading {task.name}", examples, len(examples)):
            read.append(variant.encode(Request.example(task, example)))
            read += [encode_text(tokenizer, answer) for answer in (example.answer, *example.choices)]
    for roles in (("user", "assistant", "user"), ("system", "user")):
        with contextlib.suppress(InvalidInput):  # some templates know no system message
            read.append(encode_chat(tokenizer, [Message(role=role, content="") for role in roles]))
    return read


def control_tokens(variant: Variant) -> set[int]:
    """Ids that structure text: the tokenizer's added tokens, and those that the configuration names."""
    found = set(variant.tokenizer.added_tokens_decoder)
    for config in _configurations(variant.model):
        found |= {token for _, tokens in _named(config) for token in tokens}
    return {token for token in found if 0 <= token < min(len(variant.tokenizer), _rows(variant.model))}


def _configurations(model: PreTrainedModel) -> list[PreTrainedConfig | GenerationConfig]:
    """Everything that names token ids, each once."""
    all_of_them = (model.config, model.config.get_text_config(), model.generation_config)
    return list({id(each): each for each in all_of_them if each is not None}.values())


def renumber(config: PreTrainedConfig | GenerationConfig, new: Mapping[int, int]) -> None:
    """Give the token ids that a configuration names their new numbers, and say how many tokens there are."""
    for name, tokens in _named(config):
        numbers = [new.get(token, token) for token in tokens if token in new or token < 0]
        setattr(config, name, numbers if isinstance(getattr(config, name), list) else next(iter(numbers), None))
    if isinstance(config, PreTrainedConfig) and hasattr(config, "vocab_size"):
        config.vocab_size = len(new)


def _named(config: PreTrainedConfig | GenerationConfig) -> list[tuple[str, list[int]]]:
    """Settings of a configuration that are token ids."""
    found = []
    for name, value in vars(config).items():
        tokens = value if isinstance(value, list) else [value]
        if name.endswith(("token_id", "suppress_tokens")) and all(isinstance(token, int) for token in tokens):
            found.append((name, tokens))
    return found


def with_rows(state: dict[str, Any], rows: int) -> dict[str, Any]:
    """A tokenizer without the tokens that the model has no row for, such as one for images that was added later."""
    model, added = state["model"], [token for token in state["added_tokens"] if token["id"] < rows]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        vocabulary = {token: index for token, index in vocabulary.items() if index < rows}
    return state | {"added_tokens": added, "model": model | {"vocab": vocabulary}}


def cut_tokenizer(state: dict[str, Any], wanted: Iterable[int]) -> tuple[dict[str, Any], list[int]]:
    """A tokenizer with fewer tokens that makes the same pieces of every text that needs no others.

    Byte-pair merging takes the first merge of its list that fits. If every merge that it took before is still there,
    and in the same order, it takes the same ones again; so each wanted token brings the tokens on the way to it. Tokens
    of single bytes (or characters) always stay, so that what could be spelled before still can be.

    Args:
        state: what ``tokenizer.json`` holds.
        wanted: token ids to keep.

    Returns:
        The state with tokens renumbered in their old order, and the old ids in that order.

    Raises:
        InvalidInput: it is neither byte-pair encoding (BPE) nor Unigram, or a kind of it that is not known here.
    """
    state = copy.deepcopy(state)
    model, added = state["model"], {token["content"]: token["id"] for token in state["added_tokens"]}
    kind = model.get("type")
    if kind not in ("BPE", "Unigram") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise InvalidInput(f"Vocabulary cannot cut a tokenizer of the kind {kind}: use another step.")
    plain = model["vocab"] if kind == "BPE" else {token: index for index, (token, _) in enumerate(model["vocab"])}
    ids = plain | added
    spelled = set(wanted)
    kept = {token for token, index in ids.items() if index in spelled or token in added or _unit(token, model)}
    kept |= {model["unk_token"]} if model.get("unk_token") else set()
    kept |= {model["vocab"][model["unk_id"]][0]} if model.get("unk_id") is not None else set()
    if kind == "BPE":
        merges = [tuple(each.split(" ")) if isinstance(each, str) else tuple(each) for each in model["merges"]]
        kept |= passed(kept - added.keys(), merges) & plain.keys()
        model["merges"] = [list(pair) for pair in merges if {*pair, "".join(pair)} <= kept]
    old = sorted(ids[token] for token in kept)
    new = {index: number for number, index in enumerate(old)}
    if kind == "BPE":
        model["vocab"] = {token: new[index] for token, index in plain.items() if token in kept}
    else:
        model["vocab"] = [entry for index, entry in enumerate(model["vocab"]) if index in new]
        model["unk_id"] = None if model["unk_id"] is None else new[model["unk_id"]]
    state["added_tokens"] = [token | {"id": new[token["id"]]} for token in state["added_tokens"]]
    state["padding"] = None
    _renumber_processor(state["post_processor"], new)
    return state, old


def passed(tokens: Iterable[str], merges: list[tuple[str, ...]]) -> set[str]:
    """The tokens that byte-pair merging passes through on its way to these, single characters first."""
    rank = {pair: index for index, pair in enumerate(merges)}
    found: set[str] = set()
    for token in tokens:
        parts = list(token)
        found.update(parts)
        while len(parts) > 1:
            best = min(range(len(parts) - 1), key=lambda i: rank.get((parts[i], parts[i + 1]), len(rank)))
            if (parts[best], parts[best + 1]) not in rank:
                break
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
            found.add(parts[best])
    return found


def _unit(token: str, model: Mapping[str, Any]) -> bool:
    """Whether this is one of the tokens that anything can be spelled with: bytes, where there are any."""
    if model.get("byte_fallback"):
        return len(token) == 6 and token.startswith("<0x") and token.endswith(">")
    return len(token) == 1


def _renumber_processor(processor: Any, new: Mapping[int, int]) -> None:
    """Renumber the tokens that are put around a text."""
    kind = processor["type"] if processor else "ByteLevel"
    if kind == "Sequence":
        for each in processor["processors"]:
            _renumber_processor(each, new)
    elif kind == "TemplateProcessing":
        for each in processor["special_tokens"].values():
            each["ids"] = [new[index] for index in each["ids"]]
    elif kind != "ByteLevel":
        raise InvalidInput(f"Vocabulary cannot cut a tokenizer with a post-processor of the kind {kind}.")


def _tokenizer(parent: PreTrainedTokenizerBase, state: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """The parent's tokenizer with other tokens: the same chat template and special tokens."""
    tokenizer: Any = copy.deepcopy(parent)
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer._tokenizer.encode_special_tokens = parent.backend_tokenizer.encode_special_tokens
    made: PreTrainedTokenizerBase = tokenizer
    return made


def _rows(model: PreTrainedModel) -> int:
    """How many tokens the embedding has a row for."""
    return len(model.get_input_embeddings().get_parameter("weight"))


def _tables(model: PreTrainedModel) -> list[nn.Module]:
    return [each for each in (model.get_input_embeddings(), model.get_output_embeddings()) if each is not None]


def _table_tensors(model: PreTrainedModel) -> list[str]:
    """Names of the tensors that have a row a token."""
    tables = _tables(model)
    return [
        f"{path}.{name}"
        for path, module in model.named_modules()
        if any(module is table for table in tables)
        for name, _ in module.named_parameters(recurse=False)
    ]


def _check_dense(variant: Variant, label: str) -> None:
    if not all(isinstance(table, nn.Embedding | nn.Linear) for table in _tables(variant.model)):
        raise InvalidInput(f"The embedding or the head of '{variant.name}' is quantized: apply {label} to its parent.")
