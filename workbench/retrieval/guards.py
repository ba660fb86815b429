"""Guards: what two questions surely differ in, however near their vectors are. The word lists are English."""

import regex

from workbench.core.words import compatible

WORD = regex.compile(r"\p{L}[\p{L}\p{M}]*(?:'\p{L}+)?|\p{N}+(?:[.,:/-]\p{N}+)*")
UNCASED = regex.compile(r"\p{L}*\p{Lo}[\p{L}\p{M}]*")
SIGN = regex.compile(r"[\p{Sc}\p{Sm}#%@]")  # C++ and C#, $ and €: no words, and encoders may not know them
SENTENCE = regex.compile(r"(?<=[.!?:])\s+|\n")
COUNTED = """
zero=0 one=1 two=2 three=3 four=4 five=5 six=6 seven=7 eight=8 nine=9 ten=10 eleven=11 twelve=12 thirteen=13
fourteen=14 fifteen=15 sixteen=16 seventeen=17 eighteen=18 nineteen=19 twenty=20 thirty=30 forty=40 fifty=50
hundred=100 thousand=1000
"""
DATES = """
monday tuesday wednesday thursday friday saturday sunday january february march april june july august september
october november december today tomorrow yesterday tonight morning afternoon evening weekend weekday weekly monthly
yearly annual annually daily hourly quarterly spring summer autumn winter first second third fourth fifth last next
previous half double twice once single dozen am pm noon midnight
"""
NEGATIONS = """
not no never none nobody nothing neither nor without cannot except unless stop avoid refuse fail lack hardly instead
rather
"""
OPPOSITES = """
on/off in/out up/down open/close open/closed opened/closed enable/disable enabled/disabled include/exclude
allow/forbid allow/ban allowed/banned allowed/forbidden allowed/prohibited accept/reject accept/decline approve/deny
approve/reject add/remove add/delete create/delete install/uninstall start/stop start/end begin/end begin/finish
increase/decrease increase/reduce raise/lower raise/cut more/less more/fewer most/least maximum/minimum max/min
highest/lowest high/low higher/lower before/after above/below over/under buy/sell borrow/lend import/export
upload/download send/receive give/take push/pull join/leave enter/exit arrive/depart arrival/departure
arrivals/departures login/logout lock/unlock block/unblock subscribe/unsubscribe upgrade/downgrade win/lose gain/lose
pass/fail succeed/fail best/worst good/bad better/worse pros/cons advantages/disadvantages benefits/drawbacks
benefits/risks safe/dangerous legal/illegal hot/cold warm/cold early/late earlier/later earliest/latest fast/slow
faster/slower new/old newest/oldest long/short longer/shorter large/small big/small cheap/expensive full/empty wet/dry
public/private free/paid true/false right/wrong left/right north/south east/west indoor/outdoor indoors/outdoors
inside/outside incoming/outgoing inbound/outbound input/output male/female man/woman men/women adult/child
adults/children deposit/withdraw deposit/withdrawal credit/debit asset/liability profit/loss freeze/thaw
freeze/unfreeze show/hide expand/collapse connect/disconnect attach/detach keep/cancel keep/delete encrypt/decrypt
compress/decompress ascending/descending always/never with/without for/against like/dislike love/hate agree/disagree
appear/disappear continue/cancel renew/cancel book/cancel manual/automatic temporary/permanent required/optional
mandatory/optional possible/impossible
"""
PREFIXES = ("un", "in", "im", "il", "ir", "dis", "non", "mis", "de")  # that turn a word around
# What a question is after. Those of a row may stand for one another; a row that one question lacks is another question.
ASKED = """
who whom whose
when
where
why reason reasons
cost costs price prices fee fees charge charges
long duration
often frequency
difference differences versus vs compare comparison
all every each
only just
example examples
international abroad overseas foreign
domestic local national
business commercial corporate company
student students
child children kid kids
online website
phone telephone
refund refunds
exchange exchanges
rent renting rental lease
"""
_counted = dict(each.split("=") for each in COUNTED.split())
_dates, _negations = frozenset(DATES.split()), frozenset(NEGATIONS.split())
_opposites = {frozenset(each.split("/")) for each in OPPOSITES.split()}
_asked = [frozenset(row.split()) for row in ASKED.strip().splitlines()]


def differs(a: str, b: str) -> str:
    """What two texts surely differ in: "numbers", "names", "negation" or "scope"; empty where no guard sees it.

    A vector hardly tells "on" from "off", or the number of one order from that of another. Words are compared; what is
    only meant is not seen, and no list of opposites is whole. Numbers and names are seen in any language; a script
    without capitals may hide a name in any word, so there all of them must be the same.
    """
    first, second = _terms(a), _terms(b)
    mine, theirs = set(first), set(second)
    if _numbers(first) != _numbers(second):
        return "numbers"
    if SIGN.findall(_plain(a)) != SIGN.findall(_plain(b)):
        return "names"
    if not _names(a) <= theirs or not _names(b) <= mine:
        return "names"
    if sum(each in _negations for each in first) != sum(each in _negations for each in second):
        return "negation"
    if any(_opposed(x, y) for x in mine - theirs for y in theirs - mine):
        return "negation"
    if any(bool(mine & row) != bool(theirs & row) for row in _asked):
        return "scope"
    return ""


def _plain(text: str) -> str:
    return compatible(text).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")


def _terms(text: str) -> list[str]:
    """Words and numbers in small letters; "don't" is two words, and what is owned is the owner."""
    found = []
    for word in WORD.findall(_plain(text).casefold()):
        stem, _, rest = word.partition("'")
        found += [stem.removesuffix("n"), "not"] if rest == "t" else [stem]
    return found


def _numbers(terms: list[str]) -> list[str]:
    """Numbers, in digits, and words that say when or which."""
    plain = [_counted.get(each, each).replace(",", "") for each in terms]
    return sorted(each for each in plain if each[:1].isdigit() or each in _dates)


def _names(text: str) -> set[str]:
    """Words with a capital letter that begin no sentence, in small letters; none of a sentence all in capitals."""
    found = set(UNCASED.findall(_plain(text).casefold()))
    for sentence in SENTENCE.split(_plain(text)):
        words = WORD.findall(sentence)
        if any(word[0].islower() for word in words[1:]):
            found |= {word.partition("'")[0].casefold() for word in words[1:] if word[0].isupper()} - {"i"}
    return found


def _opposed(x: str, y: str) -> bool:
    """Whether two words are opposites, or one is the other with a prefix or an ending that turns it around."""
    if {x, y} in _opposites or any({x, y} == {word, prefix + word} for word in (x, y) for prefix in PREFIXES):
        return True
    return any(a.endswith("less") and a[:-4] in (b, b.removesuffix("ful")) for a, b in ((x, y), (y, x)))
