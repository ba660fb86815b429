"""What caches save and what they risk: beginnings, the same question again, the same question in other words.

python benchmarks/caches.py [prefix] [exact] [semantic] [--rounds N]

Other words: the 600 pairs and 240 conversations of the package fow-cache (data CC BY 4.0, Mabon ap Gwyn; labels by
language models, 60 of them checked by a person). The threshold is computed on one half of the pairs, the figures are
those of the other half, then the halves are swapped. The word lists of the guards were written without looking at the
pairs, but for nine of the class "negation"; the guard for signs was added after a first run, in which swapped names
passed; it changed none of the shares of wrong answers. GPTCache's figures are those that fow-cache publishes for the
same pairs.
"""

import argparse
import time
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from common import interleaved, rounded, seconds, write_result
from scipy.stats import beta

import workbench as wb
from workbench.answering import store as storing
from workbench.core.estimate import median, paired_ratio
from workbench.models.identity import identity, marks
from workbench.retrieval.embedding import encoder
from workbench.retrieval.paraphrase import Pair, likeness, threshold
from workbench.runtime.decoding import Decoding
from workbench.runtime.kept import kept
from workbench.steps import runtime
from workbench.training.sequences import Continuation

SHARED, NEW = 512, 32  # tokens of a prompt
BUDGETS = (0.02, 0.05, 0.10)
PUBLISHED = {"GPTCache, its defaults, as fow-cache publishes": {"right hits": 0.81, "false hits": 0.81}}


def first_token(variant: wb.Variant, ids: list[int]) -> int:
    """The token that follows a prompt."""
    row = Continuation(())
    next(variant.engine.decode(variant.model, [ids], Decoding(max_new_tokens=1), [row]))
    return row.ids[0]


def prefix(rounds: int) -> dict:
    """Time to the first token behind a beginning that is known, over that of reading all of it."""
    base = wb.load(device="cpu")
    cached = base.apply(runtime.PrefixCache())
    draw = torch.Generator().manual_seed(0)
    vocabulary = base.model.config.vocab_size

    def tokens(count: int) -> list[int]:
        return torch.randint(100, vocabulary, (count,), generator=draw).tolist()

    shared, said = tokens(SHARED), defaultdict[str, list[int]](list)
    prompts = [[*shared, *tokens(NEW)] for _ in range(rounds + 2)]
    first_token(cached, prompts[0])
    asked = {"cold": (base, iter(prompts[1:])), "warm": (cached, iter(prompts[1:]))}
    works = {
        name: lambda who=who, each=each, own=said[name]: own.append(first_token(who, next(each)))
        for name, (who, each) in asked.items()
    }
    times = interleaved(works, rounds)
    statistics = kept(cached.model)
    one = statistics.longest(prompts[-1])
    with torch.no_grad():
        handed = interleaved({"hand on": lambda: one.expand(1)}, 20)["hand on"]
    return {
        "tokens": [SHARED, NEW],
        "seconds": {name: rounded(median(each, "s")) for name, each in times.items()},
        "warm over cold": rounded(paired_ratio(times["warm"], times["cold"])),
        "same first token": f"{sum(a == b for a, b in zip(*said.values(), strict=True))} of {rounds + 1}",
        "milliseconds to hand on what is known": rounded(median([1000 * each for each in handed], "ms")),
        "bytes a token": statistics.nbytes // sum(len(each.ids) for each in statistics._entries),
        "statistics": repr(statistics),
    }


def exact(rounds: int) -> dict:
    """Milliseconds of a whole answer that is known, request to text, from the file on disk."""
    base = wb.load(device="cpu")
    found = {}
    with TemporaryDirectory() as place:
        storing.cache_folder = lambda: Path(place)
        cached = base.apply(runtime.ResponseCache())
        for name, question in {"short": "What is a lobster?", "long": "What is a lobster? " * 100}.items():
            started = time.perf_counter()
            cached.generate(question, max_new_tokens=32)
            took = time.perf_counter() - started
            again = [cached.generate(question, max_new_tokens=32) for _ in range(20 * rounds)]
            assert all(each.cached == "exact" for each in again)
            request = cached.rewritten(question)
            found[name] = {
                "prompt tokens": again[0].prompt_tokens,
                "milliseconds of a hit": rounded(median([1000 * each.ttft for each in again], "ms")),
                "worst": round(1000 * max(each.ttft for each in again), 3),
                "of it turning the prompt into tokens": rounded(
                    median([1000 * seconds(lambda: cached.tokens(request)) for _ in range(20 * rounds)], "ms")  # noqa: B023
                ),
                "milliseconds when the model answered": round(1000 * took),
            }
    found["milliseconds to see that no weight changed"] = rounded(
        median([1000 * seconds(lambda: marks(base.model)) for _ in range(20 * rounds)], "ms")
    )
    fresh = wb.load(device="cpu")
    found["milliseconds to tell a model's weights, once"] = round(1000 * seconds(lambda: identity(fresh.model)))
    return found


def share(count: int, of: int) -> list[float]:
    """A share with its 95 % interval (Clopper and Pearson)."""
    low = float(beta.ppf(0.025, count, of - count + 1)) if count else 0.0
    high = float(beta.ppf(0.975, count + 1, of - count)) if count < of else 1.0
    return [round(each, 3) for each in (count / of, low, high)]


def tally(judged: list[tuple[str, bool, bool]]) -> dict:
    """Hits by class, of (class, one answer serves both, it was a hit)."""
    found: dict[str, dict] = {"right hits": {}, "false hits": {}}
    for name, wanted in (("right hits", True), ("false hits", False)):
        rows = [(kind, hit) for kind, same, hit in judged if same is wanted]
        for kind in [*dict.fromkeys(kind for kind, _ in rows), "all"]:
            hits = [hit for each, hit in rows if kind in (each, "all")]
            found[name][kind] = {"of": len(hits), "share": share(sum(hits), len(hits))}
    return found


def semantic(_: int) -> dict:
    """Right and false hits on questions and conversations, the threshold always from the other half of questions."""
    from fow_cache.data import load_conversations, load_questions

    questions, talks = load_questions(), load_conversations()
    pairs = [Pair(each["a"], each["b"], each["same_answer"]) for each in questions]
    last = [Pair(each["a"][-1]["content"], each["b"][-1]["content"], each["same_answer"]) for each in talks]
    found: dict[str, dict] = {}
    vectors = encoder()
    guarded, alone = likeness(pairs, vectors), likeness(pairs, vectors, guarded=False)
    of_last, last_alone = likeness(last, vectors), likeness(last, vectors, guarded=False)
    seen: dict[str, int] = defaultdict(int)
    halves: list[list[int]] = [[], []]
    for index, each in enumerate(questions):  # every class in halves
        halves[seen[each["category"]] % 2].append(index)
        seen[each["category"]] += 1
    same_before = [each["a"][:-1] == each["b"][:-1] for each in talks]
    for budget in BUDGETS:
        for name, scores, talk in (("guards and vectors", guarded, of_last), ("vectors alone", alone, last_alone)):
            told, judged, talked, careless = [], [], [], []
            for half, other in (halves, halves[::-1]):
                limit = threshold([scores[at] for at in half], [pairs[at].same for at in half], budget)
                told.append(str(limit))
                least = 2.0 if limit.value is None else limit.value
                judged += [(questions[at]["category"], pairs[at].same, scores[at] >= least) for at in other]
                if half is halves[1]:  # conversations are in neither half: one threshold is enough
                    continue
                for at, each in enumerate(talks):
                    hit = talk[at] >= least
                    talked.append((each["subtype"], each["same_answer"], hit and same_before[at]))
                    careless.append((each["subtype"], each["same_answer"], hit))
            found[f"{name}, budget {budget:.0%}"] = {
                "thresholds": told,
                "questions": tally(judged),
                "conversations, all before the last message the same": tally(talked),
                "conversations, last message only": tally(careless),
            }
    kinds = [each["category"] for each in questions]
    caught = [(kind, pair.same, score < 0) for kind, pair, score in zip(kinds, pairs, guarded, strict=True)]
    told_apart = tally(caught)
    found["told apart by the guards alone"] = {
        "same answer": told_apart["right hits"],
        "different answers": told_apart["false hits"],
    }
    return {"pairs": len(pairs), "conversations": len(talks), **found, **PUBLISHED}


PARTS = {"prefix": prefix, "exact": exact, "semantic": semantic}


def main() -> None:
    """The parts that are named, or all."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("parts", nargs="*", choices=[[], *PARTS], default=[])
    asked.add_argument("--rounds", type=int, default=12)
    given = asked.parse_args()
    write_result("caches", {name: PARTS[name](given.rounds) for name in given.parts or PARTS})


if __name__ == "__main__":
    main()
