"""How often the right document is found, and how far up."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from workbench.core.errors import InvalidInput
from workbench.core.estimate import Estimate, mean, median
from workbench.core.line import watched
from workbench.core.progress import Progress
from workbench.retrieval.ranking import Method, Store
from workbench.tasks.task import Example

DEPTH = 10  # documents looked at
PASSAGES = 100  # that they are taken from
SUFFIXES = (
    ".md",
    ".txt",
    ".rst",
    ".html",
    ".htm",
    ".pdf",
    ".docx",
    ".eml",
    ".ipynb",
)  # a name may lack them
PART = re.compile(r"#\d+$")


@dataclass(frozen=True)
class Found:
    """How well one method finds the documents of some questions.

    Attributes:
        recall: by number of documents looked at: share of the questions whose document is among them.
        reciprocal_rank: mean of 1 / rank of the right document, 0 where it is not among the first 10.
        seconds: of one search.
    """

    method: Method
    recall: dict[int, Estimate]
    reciprocal_rank: Estimate
    seconds: Estimate


@watched
def find(store: Store, examples: Sequence[Example], method: Method, progress: Progress | None = None) -> Found:
    """Search for the document of every example that names one.

    Raises:
        InvalidInput: no example names a document that is there.
    """
    ids = set(store.ids())
    by_name = {_stem(each): each for each in sorted(ids, reverse=True)} | {each: each for each in ids}
    wanted = [(each, by_name[each.document]) for each in examples if each.document in by_name]
    if not wanted:
        raise InvalidInput("No example of the task names a document that is indexed, so nothing can be measured.")
    progress = progress or Progress()
    ranks, times = [], []
    for example, document in progress.track(f"Searching by {method}", wanted, len(wanted)):
        started = time.perf_counter()
        passages = store.search(example.prompt, PASSAGES, method)
        times.append(time.perf_counter() - started)
        # Several passages of one document count once.
        found = list(dict.fromkeys(each.id if each.id in ids else PART.sub("", each.id) for each in passages))[:DEPTH]
        ranks.append(found.index(document) + 1 if document in found else 0)
    return Found(
        method=method,
        recall={depth: mean([float(0 < rank <= depth) for rank in ranks], "fraction") for depth in (1, 5, DEPTH)},
        reciprocal_rank=mean([1 / rank if rank else 0.0 for rank in ranks], "score"),
        seconds=median(times, "s"),
    )


def _stem(name: str) -> str:
    suffix = PurePath(name).suffix
    return name.removesuffix(suffix) if suffix.lower() in SUFFIXES else name
