"""A lab's notebook with its solution in the place of what learners write."""

import re
from typing import Any

from workbench.core.errors import InvalidInput

CELL = re.compile(r"^# %% (\S+)\n", re.MULTILINE)


def cells_of(solution: str) -> dict[str, str]:
    """The cells of a solution by the name of the cell that each replaces; one begins with ``# %% name``."""
    parts = CELL.split(solution)
    return {name: text.strip("\n") for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def solved(notebook: dict[str, Any], solution: str) -> dict[str, Any]:
    """A notebook, as JSON values, in which the solution's cells stand instead of its own.

    Raises:
        InvalidInput: the notebook lacks one of the cells.
    """
    cells = cells_of(solution)
    if missing := cells.keys() - {each.get("id") for each in notebook["cells"]}:
        raise InvalidInput(f"The notebook has no cell '{min(missing)}': the solution is of another version of it.")
    return notebook | {
        "cells": [
            each | ({"source": cells[each["id"]]} if each.get("id") in cells else {}) for each in notebook["cells"]
        ]
    }
