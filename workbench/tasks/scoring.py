"""How an answer is scored against the gold one: plain functions, 0 to 1."""

import json
import re
import string
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import regex

from workbench.core.words import IDEOGRAPHS, SOUTH_EAST, compatible, composed
from workbench.tasks.numbers import NUMBER, joined, numbers, plain, value

Scorer = Callable[[str, str], float]
UNSEEN = regex.compile(r"[\p{Cf}\ufe00-\ufe0f]")  # joiners, soft hyphens, marks of direction, how an emoji is drawn
SPELLINGS = str.maketrans(
    dict.fromkeys("\u2018\u2019\u02bc`", "'")
    | dict.fromkeys("\u201c\u201d\u201e«»", '"')
    | dict.fromkeys("\u2010\u2011\u2212", "-")
)
DASH = regex.compile(r"(?<=\d)\p{Pd}(?=\d)|(?<!\w)\p{Pd}(?=\.?\d)")
STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")  # as in lm-evaluation-harness' gsm8k.yaml, like the next
LAST = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
ARTICLE = regex.compile(r"(?<![\w'.-])(?:an?|the)\s+(?=[\"'(\[]*\w)")
LETTER = regex.compile(r"(?<=[^\s.!?]\s+)A\b")  # in capitals within a sentence
SIGN = regex.compile(r"(?<=\w)\s*([<>=^+])\s*(?=[\w-])")
MARK = regex.compile(
    r"((?<=\d)[^\w\s,](?=\d)"  # 3.14, 10:30, 1/2
    r"|(?<![\w)\]])-(?=\d)"  # -5
    r"|(?<=\p{L})(?:\++|#)(?![\w+#])"  # C++, C#, A+
    r"|(?<=\b\p{L}{1,2})-(?![\w-])"  # A-
    r"|(?<=\s)[<>=^+](?=\s))"
    r"|(?<=\d),(?=\d)"
    rf"|([{re.escape(string.punctuation)}])|\p{{P}}"
)
# Hangul, too: particles stick to Korean words. So do the scripts of KorQuAD (Lim et al., 2019) and MLQA.
TOKEN = regex.compile(rf"[{IDEOGRAPHS}\p{{Hangul}}{SOUTH_EAST}]\p{{M}}*|[^\s{IDEOGRAPHS}\p{{Hangul}}{SOUTH_EAST}]+")


def normalize(text: str) -> list[str]:
    """The words of a text in the normal form that answers are compared in.

    It is that of the SQuAD evaluation script (Rajpurkar et al., 2016) for ordinary English: lower case, without
    punctuation, articles and extra space. What tells two answers apart stays, though:

    - An article goes only where a word follows it, and a text of nothing but punctuation stays as it is: ``A`` is an
      answer.
    - Marks within numbers, minus signs, ``+`` and ``#`` behind a letter and signs between two terms stay: 12.5, -5,
      10:30, C++, A-, x < 5. Numbers have no separators of thousands and a decimal point; a plus before them
      goes, and so do ``$`` and ``%``, but not the other currencies.
    - Characters that only differ in form are the same: composed or not, full width or half width, upper or lower case
      (ß and ss), curly or straight quotes, dashes and minus signs, digits of any script. Superscripts stay. Unseen
      characters go.
    - Chinese, Japanese, Korean, Thai and their like are words of one character, as in the evaluation of MLQA (Lewis et
      al., 2020), for spaces do not tell their words apart.
    """
    text = composed(UNSEEN.sub("", compatible(text)).casefold()).translate(SPELLINGS)
    text = NUMBER.sub(lambda found: plain(found[0]), DASH.sub("-", text))
    bare = SIGN.sub(r" \1 ", ARTICLE.sub("", text)) if not text.isspace() else ""
    found = TOKEN.findall(MARK.sub(_marked, bare))
    return found or (["".join(text.split())] if text.strip() else [])


def _marked(found: "regex.Match[str]") -> str:
    """What stays of a mark: itself, or a space where a list of digits or another script's mark parts two words."""
    return str(found[1] or ("" if found[2] else " "))


def _either(score: Scorer) -> Scorer:
    """A scorer that takes ``1 000`` for one number or for two, whichever is better."""

    def better(answer: str, gold: str) -> float:
        told, one_number = (answer, gold), (joined(answer), joined(gold))
        return max(score(*each) for each in {told, one_number})

    better.__doc__ = score.__doc__
    return better


@_either
def exact(answer: str, gold: str) -> float:
    """1 when both have the same normal form; an empty answer is right only where the gold one is empty."""
    return float(normalize(answer) == normalize(gold))


@_either
def contains(answer: str, gold: str) -> float:
    """1 when the gold answer's words stand in the answer, in order; an empty gold answer only in an empty one.

    The letter A is found where no word follows it, or where it stands as a capital within a sentence.
    """
    said, wanted = normalize(answer), normalize(gold)
    if not wanted:
        return float(not said)
    found = f" {' '.join(wanted)} " in f" {' '.join(said)} "
    return float(found or (gold.strip() == "A" and bool(LETTER.search(answer))))


@_either
def f1(answer: str, gold: str) -> float:
    """Harmonic mean of word precision and recall (Rajpurkar et al., SQuAD, 2016); 1 when both are empty."""
    said, wanted = normalize(answer), normalize(gold)
    if not said or not wanted:
        return float(said == wanted)
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted))


@_either
def number(answer: str, gold: str) -> float:
    """1 when the last number of both is the same (the usual scoring of GSM8K), however it is spelled; 0 without one."""
    said, wanted = numbers(compatible(answer)), numbers(compatible(gold))
    return float(bool(said and wanted) and value(said[-1]) == value(wanted[-1]))


def same_json(answer: str, gold: str) -> float:
    """1 when the answer is JSON, bare or in one code fence, equal to the gold record.

    Numbers are compared by value, so that 1.0 is 1, and texts in one normal form; unlike in Python, true is not 1.
    """
    fenced = re.fullmatch(r"\s*```(?:json)?\s*(.*?)\s*```\s*", answer, re.DOTALL | re.IGNORECASE)
    try:
        return float(_same(_parsed(fenced[1] if fenced else answer), _parsed(gold)))
    except (ValueError, ArithmeticError, RecursionError):  # not JSON, absurdly long numbers, or nested without end
        return 0.0


def _parsed(text: str) -> Any:
    return json.loads(composed(text.lstrip("\ufeff")), parse_float=Decimal, parse_constant=_refused)


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _same(one: Any, other: Any) -> bool:
    match one, other:
        case dict(), dict():
            others = {composed(key): each for key, each in other.items()}
            ones = {composed(key): each for key, each in one.items()}
            return ones.keys() == others.keys() and all(_same(each, others[key]) for key, each in ones.items())
        case list(), list():
            return len(one) == len(other) and all(map(_same, one, other))
        case str(), str():
            return composed(one) == composed(other)
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def gsm8k_strict(answer: str, gold: str) -> float:
    """Whether the number behind ``####`` is the gold one's, as lm-evaluation-harness compares them."""
    return _gsm8k(answer, gold, STRICT.findall(_first(answer))[:1])


def gsm8k_flexible(answer: str, gold: str) -> float:
    """Whether the last number is that behind the gold answer's ``####``, likewise."""
    return _gsm8k(answer, gold, ["".join(each) for each in LAST.findall(_first(answer))][-1:])


def _first(answer: str) -> str:
    """What was said before the next question."""
    return re.split("Question:|</s>|<\\|im_end\\|>", answer, maxsplit=1)[0]


def _gsm8k(answer: str, gold: str, found: list[str]) -> float:
    told, right = (re.sub(r"(?s).*#### |[,$]|\.$", "", each) for each in (found[0] if found else "[invalid]", gold))
    return float(told.lower() == right.strip().lower())


# By what the log-likelihood of a choice is divided, from its text and number of tokens; names as lm-eval has them.
LENGTHS: dict[str, Callable[[str, int], float]] = {
    "choice": lambda text, tokens: tokens,
    "acc": lambda text, tokens: 1.0,
    "acc_norm": lambda text, tokens: len(text.removeprefix(" ")),
}
SCORERS: dict[str, Scorer] = {
    "exact": exact,
    "contains": contains,
    "f1": f1,
    "number": number,
    "json": same_json,
    "gsm8k_strict": gsm8k_strict,
    "gsm8k_flexible": gsm8k_flexible,
    **dict.fromkeys(LENGTHS, exact),  # the answer is the most likely of the example's choices
}
