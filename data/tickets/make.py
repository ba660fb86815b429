"""Generate the ticket data: a support message in, a small JSON record out.

`python data/tickets/make.py` rewrites train.jsonl, calibration.jsonl and test.jsonl next to this file.
The wording lives in phrases.json. The seed is fixed, so the files come out byte-identical. Each record is
drawn first and the message is then written around it, so the gold answer is exact by construction.
"""

import json
import random
import re
from pathlib import Path

SEED = 20240611
SPLITS = {"train": 300, "calibration": 80, "test": 140}
Record = dict[str, str | None]
# The wording: {p} product, {q} another product, {f} fluid, {part} missing part, {o} order, {c} closed order.
P = json.loads(Path(__file__).resolve().with_name("phrases.json").read_text(encoding="utf-8"))
ORDER_RE = re.compile(r"(?<![A-Za-z0-9])([A-Fa-f])-?(\d{5})(?!\d)")


def order_number(rng: random.Random) -> str:
    return f"{rng.choice('ABCDEF')}-{rng.randint(10000, 99999)}"


def write_order(rng: random.Random, order: str) -> str:
    """The order as the customer types it; a few drop the hyphen or the capital letter."""
    return rng.choices([order, order.replace("-", ""), order.lower()], [0.8, 0.1, 0.1])[0]


def sentence(text: str) -> str:
    text = text[0].upper() + text[1:]
    return text if text[-1] in ".!?)" else text + "."


def greet(rng: random.Random, opening: str, body: str) -> str:
    """Put the opening before the body: on its own line, or on the same line with a matching first letter."""
    if not opening.endswith(","):
        return f"{opening} {body}".strip()
    if rng.random() < 0.5:
        return f"{opening}\n{body}"
    return f"{opening} {body if re.match(r'I |VAT', body) else body[0].lower() + body[1:]}"


def draw_record(rng: random.Random, issue: str) -> Record:
    product = rng.choice(P["works_with"].get(issue, list(P["products"])))
    priority = rng.choices(["low", "normal", "high"], [0.28, 0.40, 0.32])[0]
    order = order_number(rng) if rng.random() < 0.72 else None
    return {"product": product, "issue": issue, "priority": priority, "order": order}


def high_reason(rng: random.Random, product: str, issue: str) -> str:
    reasons = ["deadline"] + ["danger"] * 2 * (issue in P["danger"]) + ["overcharged"] * 2 * (issue == "billing")
    if product in P["lost"] and issue in ("overheating", "no_power", "connection"):
        reasons += ["data"] * 2
    return rng.choice(reasons)


def phone_or_date(rng: random.Random, american: bool) -> str:
    month, day, last = rng.choice(P["months"]), rng.randint(2, 28), rng.randint(100, 199)
    if rng.random() < 0.5:
        return f"You can reach me on {f'(206) 555-0{last}' if american else f'0161 496 0{last}'}."
    return f"I bought it on {f'{month} {day}' if american else f'{day} {month}'}."


def add_typos(rng: random.Random, text: str) -> str:
    """Swap or drop one inner letter in one or two plain words."""
    spots = list(re.finditer(r"(?<![A-Za-z-])(?!closed|ignore|tomorrow|charged)[a-z]{6,}(?![A-Za-z-])", text))
    chosen = rng.sample(spots, min(len(spots), rng.randint(1, 2)))
    for spot in sorted(chosen, key=lambda match: -match.start()):
        word, i = spot.group(), rng.randint(2, len(spot.group()) - 3)
        swap = word[i + 1] + word[i] + word[i + 2 :] if rng.random() < 0.5 else word[i + 1 :]
        text = text[: spot.start()] + word[:i] + swap + text[spot.end() :]
    return text


def terse_message(rng: random.Random, record: Record, fill: dict[str, str], reason: str | None) -> str:
    issue = str(record["issue"])
    core = P["terse_overcharged"] if reason == "overcharged" else P["terse"][issue]
    parts = [rng.choice(core).format(**fill)]
    if reason == "danger":
        parts.append(rng.choice(P["danger"][issue]).rstrip(".").lower().replace("last night ", ""))
    elif reason == "data":
        parts.append(f"lost {fill['lost']}")
    elif reason == "deadline":
        parts.append(rng.choice(["need it sorted by tomorrow", "must be fixed today", "need an answer today"]))
    elif record["priority"] == "low":
        parts.append(rng.choice(["no rush", "not urgent", "no hurry"]))
    elif rng.random() < 0.3:
        parts.append(rng.choice(["pls help", "please advise", "what now?", "not happy"]))
    tail = parts[1:]
    if record["order"]:
        typed = write_order(rng, str(record["order"]))
        tail.append(rng.choice(["order {}", "{}", "order no {}", "ref {}"]).format(typed))
    if rng.random() < 0.25:
        tail.append(f"{fill['q']} is fine")
    elif rng.random() < 0.2:
        tail.append(f"old order {order_number(rng)} is closed, ignore")
    if reason in (None, "deadline", "overcharged"):
        rng.shuffle(tail)  # danger and data sentences refer back to the issue and stay right behind it
    return rng.choice([". ", ", ", " - ", "\n"]).join([parts[0], *tail])


def full_message(rng: random.Random, record: Record, fill: dict[str, str], reason: str | None, american: bool) -> str:
    tone, issue, order = rng.choice(["polite", "angry", "chatty"]), str(record["issue"]), record["order"]
    core_text = rng.choice(P["overcharged"] if reason == "overcharged" else P["issues"][issue])
    place = rng.choice(["inline", "sentence", "sentence", "subject", "signature"]) if order else "none"
    typed = write_order(rng, order) if order else ""
    if place == "inline":
        label = rng.choice(["order ", "", "order no. "])
        core_text = core_text.replace("{p}", "{p} (" + label + typed + ")", 1)
    in_use = issue not in ("late_delivery", "missing_part", "billing")
    core = [sentence(core_text.format(**fill))]
    before: list[str] = []
    after: list[str] = []
    if reason == "danger":
        core.append(rng.choice(P["danger"][issue]))
    elif reason == "data":
        core.append(rng.choice(P["data_loss"]).format(**fill))
    elif reason == "deadline":
        deadlines = P["deadline"] + (P["deadline_in_use"] if in_use else [])
        rng.choices([before, after], [0.2, 0.8])[0].append(rng.choice(deadlines))
    elif record["priority"] == "low":
        rng.choices([before, after], [0.2, 0.8])[0].append(rng.choice(P["low"]))
    elif reason is None and rng.random() < 0.4:
        after.append(rng.choice(P["loud"] if tone == "angry" else P["later"]))
    if reason not in (None, "deadline") and rng.random() < 0.12:
        after.append("I am in no hurry for a reply.")  # a high-priority fact wins over "no hurry"
    if reason is None and issue in ("leaking", "overheating", "noisy") and rng.random() < 0.3:
        core.append(rng.choice(P["calm"]))
    if place == "sentence":
        after.append(rng.choice(P["order"]).format(o=typed))
    elif place == "none" and rng.random() < 0.3:
        after.append(rng.choice(P["no_order"]))
    fluff = P["fluff"][tone] + (P["fluff_in_use"][tone] if in_use else [])
    extras = [rng.choice(P["other"]).format(**fill), rng.choice(fluff)]
    extras.append(rng.choice(P["closed"]).format(c=order_number(rng)))
    if issue != "late_delivery":
        extras.append(phone_or_date(rng, american))
    for extra in rng.sample(extras, rng.choices([0, 1, 2], [0.3, 0.5, 0.2])[0]):
        (before if extra == extras[0] and rng.random() < 0.3 else after).append(extra)
    rng.shuffle(after)
    after.sort(key=lambda text: not re.search(r"\bit\b", text))  # a sentence with "it" stays near the product
    parts = [*before, *core, *after]
    parts += [rng.choice(P["ask"][tone])] if rng.random() < 0.6 else []
    message = greet(rng, rng.choice(P["open"][tone]), " ".join(parts))
    if place == "subject":
        message = rng.choice(["Re: order {}", "Order {}", "Subject: {}"]).format(typed) + "\n" + message
    if rng.random() < 0.35 or place == "signature":
        message += "\n" + f"{rng.choice(P['bye'][tone])} {rng.choice(P['names'])}".strip()
        message += f"\nOrder: {typed}" if place == "signature" else ""
    return message


def build_message(rng: random.Random, record: Record) -> str:
    product, issue = str(record["product"]), str(record["issue"])
    american = rng.random() < 0.5
    other = rng.choice([name for name in P["products"] if name != product])
    fill = {
        "p": rng.choice(P["products"][product]),
        "q": rng.choice(P["products"][other]),
        "part": P["parts"][product],
        "f": P["fluid"].get(product, ""),
        "lost": P["lost"].get(product, ""),
    }
    reason = high_reason(rng, product, issue) if record["priority"] == "high" else None
    if rng.random() < 0.2:
        message = terse_message(rng, record, fill, reason)
    else:
        message = full_message(rng, record, fill, reason, american)
    if american:
        for british, us in P["us"].items():
            message = re.sub(rf"\b{british}", us, message)
    check(message, record)
    return add_typos(rng, message) if rng.random() < 0.25 else message


def check(message: str, record: Record) -> None:
    """Facts that can be read back from the text must agree with the record."""
    live = [
        f"{letter.upper()}-{digits}"
        for piece in re.split(r"(?<=[.)!?])\s|\n|, | - ", message)
        for letter, digits in ORDER_RE.findall(piece)
        if not re.search(r"closed|mix|You may", piece)
    ]
    assert live == ([record["order"]] if record["order"] else []), (message, record)
    if record["priority"] != "high":
        assert not re.search(r"\b(today|tomorrow|shock|burnt|burned|wiped|charged)\b", message)


def main() -> None:
    rng = random.Random(SEED)
    here = Path(__file__).resolve().parent
    seen: set[str] = set()
    ids: set[str] = set()
    for split, count in SPLITS.items():
        issues = [list(P["issues"])[i % len(P["issues"])] for i in range(count)]
        rng.shuffle(issues)
        lines = []
        for number, issue in enumerate(issues, 1):
            record = draw_record(rng, issue)
            message = build_message(rng, record)
            while message in seen:
                message = build_message(rng, record)
            answer = json.dumps(record, separators=(",", ":"))
            row = {"id": f"tickets-{split}-{number:04d}", "prompt": message, "answer": answer}
            assert row["id"] not in ids
            seen.add(message)
            ids.add(row["id"])
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        (here / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
    assert len(seen) == len(ids) == sum(SPLITS.values())


if __name__ == "__main__":
    main()
