"""A sentence that shows as a table where there is room for one."""

from collections.abc import Sequence


class Listed(str):
    """A sentence with what it lists; once it was saved, only the sentence.

    Attributes:
        heading: what is said above the table.
        columns: one a text of a row.
        rows: of texts.
    """

    heading: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __new__(
        cls, text: str, heading: str = "", columns: Sequence[str] = (), rows: Sequence[Sequence[str]] = ()
    ) -> "Listed":
        """The sentence, and the same in parts."""
        made = super().__new__(cls, text)
        made.heading, made.columns, made.rows = heading, tuple(columns), tuple(map(tuple, rows))
        return made
