"""What a variant's caches hold, how often they were of use, and what had to go for want of room."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from workbench.core import units
from workbench.core.drawn import HTML, drawn
from workbench.runtime.engine import Eager
from workbench.runtime.kept import kept
from workbench.steps.runtime import ResponseCache
from workbench.steps.runtime.semantic import Meaning
from workbench.variant import Variant

if TYPE_CHECKING:
    import pandas

OWN = "this variant, and those that share its model"
ANSWERS = "every variant of this kernel that keeps answers {place}; entries of others, too"


@dataclass(frozen=True)
class Cache:
    """One cache.

    Attributes:
        kind: prefix (keys and values of beginnings), exact (answers to the same), or semantic (to the same meaning).
        entries: held now.
        bytes: of all of them.
        hits: how often what was looked for was there.
        misses: how often it was not.
        evictions: entries that had to go because there was no room.
        counted: whose they are.
    """

    kind: str
    entries: int
    bytes: int
    hits: int
    misses: int
    evictions: int
    counted: str

    def __str__(self) -> str:
        return (
            f"{self.kind}: {self.entries} entries in {units.size(self.bytes)}, {self.hits} hits, {self.misses} misses, "
            f"{self.evictions} evicted; counted for {self.counted}."
        )


@dataclass(frozen=True)
class Caches:
    """The caches of a variant.

    Attributes:
        variant: its name.
        caches: none where nothing is kept.
    """

    variant: str
    caches: tuple[Cache, ...]

    @property
    def sentence(self) -> str:
        """What is kept at all."""
        if self.caches:
            return f"'{self.variant}' keeps what was computed before."
        return (
            f"'{self.variant}' has no cache: apply runtime.PrefixCache for beginnings, or runtime.ResponseCache or "
            "runtime.SemanticCache for answers."
        )

    def table(self) -> "pandas.DataFrame":
        """One row a cache."""
        import pandas

        columns = list(Cache.__dataclass_fields__)
        return pandas.DataFrame([asdict(each) for each in self.caches], columns=columns).set_index("kind")

    def _repr_html_(self) -> str:
        return str(drawn(self, HTML))

    def __repr__(self) -> str:
        return "\n".join([self.sentence, *map(str, self.caches)])


def caches(variant: Variant) -> Caches:
    """What the caches of a variant hold, and how often they were of use since the kernel started.

    Raises:
        Closed: the variant was closed.
    """
    return Caches(variant.name, (*_beginnings(variant), *_answers(variant)))


def _beginnings(variant: Variant) -> Iterator[Cache]:
    model, engine = variant.model, variant.engine
    if isinstance(engine, Eager) and engine.prefix_bytes:
        held = kept(model, engine.cache_bits)
        yield Cache("prefix", len(held), held.nbytes, held.hits, held.asked - held.hits, held.evicted, OWN)


def _answers(variant: Variant) -> Iterator[Cache]:
    for stage in variant.stages:
        step = stage.step if isinstance(stage, Meaning) else stage
        if isinstance(step, ResponseCache):
            found, place = step.store.statistics, "on this disk" if step.on_disk else "in memory"
            yield Cache(
                "semantic" if isinstance(stage, Meaning) else "exact",
                found["entries"],
                found["bytes"],
                found["hits"],
                found["asked"] - found["hits"],
                found["evicted"],
                ANSWERS.format(place=place),
            )
