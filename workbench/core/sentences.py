"""Plain text: where sentences and JSON values end."""

import json
import re
from itertools import islice

# Possessive, so that a long row of full stops is read once.
ABBREVIATED = "".join(rf"(?<!\b{each})" for each in ("Dr", "Mr", "Ms", "Mrs", "St", "Prof", "vs", r"e\.g", r"i\.e"))
SENTENCE = re.compile(rf"(?:(?<![.!?]){ABBREVIATED}[.!?]++[\"')\]]*+(?=\s|$)|\n[^\S\n]*+\n)\s*+")
BRACKETS = 20  # of a text that are tried as the beginning of a value


def sentences(text: str) -> list[str]:
    """The sentences of a text, white space included: joined, they are the text."""
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
