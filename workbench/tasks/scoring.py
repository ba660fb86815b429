"""How an answer is scored against the gold one: plain functions, 0 to 1."""

import json
import re
import string
from collections import Counter
from collections.abc import Callable

ARTICLES = re.compile(r"\b(a|an|the)\b")
NUMBER = re.compile(r"(?:(?<!\d)-)?\d(?:,?\d)*(?:\.\d+)?")


def normalize(text: str) -> str:
    """Lower case, without punctuation, articles and extra space (the SQuAD evaluation script's normal form)."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(ARTICLES.sub(" ", text).split())


def exact(answer: str, gold: str) -> float:
    """1 when both have the same normal form."""
    return float(normalize(answer) == normalize(gold))


def contains(answer: str, gold: str) -> float:
    """1 when the gold answer's words stand in the answer, in order."""
    return float(f" {normalize(gold)} " in f" {normalize(answer)} ")


def f1(answer: str, gold: str) -> float:
    """Harmonic mean of word precision and recall (Rajpurkar et al., SQuAD, 2016)."""
    said, wanted = normalize(answer).split(), normalize(gold).split()
    if not said or not wanted:
        return float(said == wanted)
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted))


def number(answer: str, gold: str) -> float:
    """1 when the last number of both is the same (the usual scoring of GSM8K)."""
    said, wanted = NUMBER.findall(answer), NUMBER.findall(gold)
    return float(bool(said and wanted) and float(said[-1].replace(",", "")) == float(wanted[-1].replace(",", "")))


def same_json(answer: str, gold: str) -> float:
    """1 when the answer is JSON, bare or in one code fence, equal to the gold record."""
    fenced = re.fullmatch(r"\s*```(?:json)?\s*(.*?)\s*```\s*", answer, re.DOTALL)
    try:
        return float(_canonical(fenced[1] if fenced else answer) == _canonical(gold))
    except (ValueError, RecursionError):  # not JSON, numbers of absurd length, or nested without end
        return 0.0


def _canonical(text: str) -> str:
    """JSON in one spelling; unlike in Python, true is not 1 there."""
    return json.dumps(json.loads(text), sort_keys=True)


SCORERS: dict[str, Callable[[str, str], float]] = {
    "exact": exact,
    "contains": contains,
    "f1": f1,
    "number": number,
    "json": same_json,
    "choice": exact,  # the answer is the most likely of the example's choices
}
