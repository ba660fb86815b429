"""Plain text: where sentences and JSON values end."""

import json
import re
from itertools import islice

import regex

ABBREVIATED = "".join(rf"(?<!\b{each})" for each in ("Dr", "Mr", "Ms", "Mrs", "St", "Prof", "vs", r"e\.g", r"i\.e"))
CLOSING = r"[\"'\p{Pe}\p{Pf}]*+"
# Possessive, so that a long row of full stops is read once. Where words stand without spaces, and in scripts whose full
# stop is none of ours, the mark alone ends a sentence (Unicode's property Sentence_Break, UAX 29).
SENTENCE = regex.compile(
    rf"(?:(?<![.!?]){ABBREVIATED}[.!?]++{CLOSING}(?=\s|$)|[\p{{SB=STerm}}\uff0e--[!?]]++[!?]*+{CLOSING}"
    r"|\n[^\S\n]*+\n)\s*+",
    regex.V1,
)
BRACKETS = 20  # of a text that are tried as the beginning of a value


def sentences(text: str) -> list[str]:
    """The sentences of a text, white space included: joined, they are the text.

    Thai and its like mark no end of a sentence, and a space there may stand within one: a paragraph is taken whole.
    """
    ends = [match.end() for match in SENTENCE.finditer(text)]
    starts = [0, *ends]
    found = [text[start:end] for start, end in zip(starts, [*ends, len(text)], strict=True)]
    return [each for each in found if each]


def json_value(text: str) -> slice:
    """Where the first JSON object or list of a text stands; empty while it is not complete."""
    for found in islice(re.finditer(r"[{\[]", text), BRACKETS):
        try:
            return slice(found.start(), json.JSONDecoder().raw_decode(text, found.start())[1])
        except RecursionError:
            break
        except json.JSONDecodeError as error:
            if _goes_on(error, text):
                break
    return slice(0, 0)


def _goes_on(error: json.JSONDecodeError, text: str) -> bool:
    """Whether a value is not wrong but not at its end yet."""
    rest = text[error.pos :].rstrip()
    escape = error.msg.startswith("Invalid \\uXXXX") and len(rest) <= len("\\uXXX")
    number = re.fullmatch(r"\.|[eE][+-]?", rest)
    literal = any(each.startswith(rest) for each in ("true", "false", "null", "-"))
    return error.msg.startswith("Unterminated") or escape or bool(number) or literal
