"""What an answer must look like, enforced token by token by llguidance (Moskal et al., 2025).

A grammar is a text in llguidance's own form, made by `of_schema`, `of_pattern` or `of_choices`.
"""

import json
import math
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from workbench.answering.speaker import Speaker
from workbench.core.errors import InvalidInput, first_line
from workbench.core.optional import library
from workbench.core.words import mended

KEPT = 8  # grammars of a tokenizer
_compilations: "WeakKeyDictionary[PreTrainedTokenizerBase, dict[Any, Any]]" = WeakKeyDictionary()


def of_schema(schema: str) -> str:
    """Of a JSON value that fits a schema (JSON Schema, as text), written without white space.

    Raises:
        InvalidInput: it is no JSON, or llguidance does not know a word of it.
    """
    try:
        parsed = json.loads(mended(schema), parse_int=_whole, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(f"The schema is not valid JSON: {getattr(error, 'msg', 'nested too deeply')}.") from None
    if not isinstance(parsed, dict):
        raise InvalidInput('A schema is a JSON object, such as {"type": "object"}.')
    # The last two keep a schema from loosening its own guarantee.
    compact = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
    compact |= {"lenient": False, "coerce_one_of": False}
    try:
        grammar = str(_library().LLMatcher.grammar_from_json_schema(parsed, overrides=compact))
    except ValueError as error:
        raise InvalidInput(f"This schema cannot be enforced: {_reason(str(error))}.") from None
    return _checked(grammar, "schema")


def _whole(digits: str) -> int:
    """A whole number that llguidance can hold; a larger one it would take for another."""
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:
        raise InvalidInput(f"This schema cannot be enforced: {digits[:24]} is beyond the whole numbers of 64 bits.")
    return int(digits)


def _finite(digits: str) -> float:
    if not math.isfinite(float(digits)):
        raise InvalidInput(f"This schema cannot be enforced: {digits[:24]} is no finite number.")
    return float(digits)


def of_pattern(pattern: str) -> str:
    """Of a text that matches a regular expression from end to end, in the syntax of Rust's regex crate."""
    return _checked(str(_library().LLMatcher.grammar_from_regex(mended(pattern))), "pattern")


def of_choices(choices: Sequence[str]) -> str:
    """Of one of several texts."""
    if not choices:
        raise InvalidInput("There is no choice to take: list at least one, each on a line of its own.")
    return of_pattern("|".join(map(re.escape, choices)))


def _checked(grammar: str, what: str) -> str:
    wrong, messages = _library().LLMatcher.validate_grammar_with_warnings(grammar)
    if wrong:
        raise InvalidInput(f"This {what} cannot be enforced: {_reason(messages[0])}.")
    return grammar


def _reason(message: str) -> str:
    """Why llguidance refuses something: the line that says so, which may stand below a drawing of where."""
    lines = [line.strip() for line in message.splitlines()]
    said = next((line for line in lines if line.startswith("error: ")), next(filter(None, lines), "no reason given"))
    return first_line(ValueError(said.removeprefix("error: ")))


class Guide:
    """Keeps one answer within a grammar.

    Raises:
        InvalidInput: the vocabulary has no token that such an answer could begin with.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, width: int, grammar: str) -> None:
        self.width = width  # some tokenizers know tokens that the model has no row for, and many models spare rows
        tokens = max(width, 1 + max(tokenizer.get_vocab().values()))
        self._matcher = _compiled(tokenizer, tokens, grammar).deep_copy()
        self._check()
        self._mask = np.zeros((tokens + 31) // 32, dtype=np.int32)

    @property
    def complete(self) -> bool:
        """Whether the answer may end here."""
        return bool(self._matcher.is_accepting())

    @property
    def stopped(self) -> bool:
        """Whether the answer must end here."""
        return bool(self._matcher.is_stopped())

    def restrict(self, logits: Tensor) -> None:
        """Set the logits ``(vocabulary,)`` of tokens that may not come next to minus infinity."""
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        self._check()
        allowed = np.unpackbits(self._mask.view(np.uint8), bitorder="little")[: self.width]
        if not allowed.any():
            raise InvalidInput("No token of this vocabulary can go on with what is asked for: loosen the constraint.")
        logits.masked_fill_(~torch.from_numpy(allowed.view(np.bool_)).to(logits.device), float("-inf"))

    def take(self, token: int) -> None:
        """Follow the token that was chosen."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise InvalidInput(f"The constraint cannot be kept: {_reason(self._matcher.get_error())}.")


def guide(variant: Speaker, grammar: str) -> Guide:
    """What keeps an answer of this variant within a grammar."""
    return Guide(variant.tokenizer, int(variant.model.get_output_embeddings().weight.shape[0]), grammar)


def _compiled(tokenizer: PreTrainedTokenizerBase, tokens: int, grammar: str) -> Any:
    """The start of the grammar on this vocabulary; tokenizers are read once, for that takes a second."""
    found = _compilations.setdefault(tokenizer, {})
    if tokens not in found:
        try:
            found[tokens] = _library().hf.from_tokenizer(tokenizer, n_vocab=tokens)
        except (ValueError, AttributeError) as error:
            raise InvalidInput(f"This tokenizer cannot be constrained: {first_line(error, 160)}.") from None
    if (tokens, grammar) not in found:
        for old in [key for key in found if isinstance(key, tuple)][:-KEPT]:
            del found[old]
        found[tokens, grammar] = _library().LLMatcher(found[tokens], grammar, log_level=0)
    return found[tokens, grammar]


@lru_cache(maxsize=1)
def _library() -> Any:
    library("llguidance.hf", "Constraining answers")
    return library("llguidance", "Constraining answers")
