"""Numbers as people write them: signs, thousands, decimal points and commas."""

import re
import unicodedata
from decimal import Decimal

MINUS = "-\u2212\u2013\ufe63\uff0d"  # hyphen, minus sign, en dash, and the small and the wide hyphen
APART = "'\u2019_\u00a0\u2009\u202f\u066c"  # what else stands between thousands
_SIGN = rf"(?:(?<![\w)\]])[{MINUS}](?:[$€£¥]\s?)?(?=\.?\d))?"
_SPELLED = (
    rf"(?!0)\d{{1,3}}(?:([,{APART}])\d{{3}})(?:\1\d{{3}})*(?!\d)(?:[.\u066b]\d+)?",  # 1,234,567.8
    r"(?!0)\d{1,2}(?:,\d{2})+,\d{3}(?!\d)(?:\.\d+)?",  # 12,34,567 as in India
    r"(?!0)\d{1,3}(?:\.\d{3})+,\d+|(?!0)\d{1,3}(?:\.\d{3}){2,}(?![.,]?\d)",  # 1.234.567,8
    r"(?<!\d,)\d+,\d+(?![,.]?\d)",  # 1,5
    r"\d+(?:[.\u066b]\d+)?(?:[eE][-+]?\d{1,4}(?!\w))?",  # 1.5 and 1e5
    r"(?<![\w.)\]])\.\d+",  # .5
)
NUMBER = re.compile(f"{_SIGN}(?:{'|'.join(_SPELLED)})")
_THOUSANDS = re.compile(r"(?!0)\d{1,3}(?:,\d{3})+|(?!0)\d{1,2}(?:,\d{2})+,\d{3}")
_APART_BY_SPACE = re.compile(r"(?<![\d.,])(?!0)\d{1,3}(?:[ \u00a0\u2009\u202f]\d{3})+(?!\d)")
_OTHER_DIGIT = re.compile(r"[^\D0-9]")


def numbers(text: str) -> list[str]:
    """The numbers of a text, as they are spelled."""
    return [found[0] for found in NUMBER.finditer(text)]


def plain(spelled: str) -> str:
    """A number that `numbers` found as ``-1234.5``.

    A comma stands before thousands if groups of three follow it (or of two, as in India), else before decimals; a point
    before decimals, unless there are several of them or a comma behind it.
    """
    digits = _OTHER_DIGIT.sub(lambda found: str(unicodedata.digit(found[0])), spelled)
    sign = "-" if digits[0] in MINUS else ""
    digits = re.sub(rf"[{APART}$€£¥\s]", "", digits.lstrip(MINUS)).replace("\u066b", ".")
    whole, mark, rest = digits.rpartition(".")
    if (mark and "," in rest) or digits.count(".") > 1:  # points before thousands
        digits = digits.replace(".", "").replace(",", ".")
    elif "," in whole:
        digits = digits.replace(",", "")
    elif "," in digits:
        digits = digits.replace(",", "" if _THOUSANDS.fullmatch(digits) else ".")
    return f"{sign}{'0' if digits.startswith('.') else ''}{digits}"


def value(spelled: str) -> Decimal:
    """What a number that `numbers` found amounts to."""
    return Decimal(plain(spelled))


def joined(text: str) -> str:
    """A text in which spaces before thousands are gone; what remains open is whether ``100 200`` is one number."""
    return _APART_BY_SPACE.sub(lambda found: "".join(found[0].split()), text)
