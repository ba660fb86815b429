"""Libraries that only some features need: imported where they are used, named where they are missing."""

import sys
import threading
from importlib import import_module
from typing import Any

from workbench.core.errors import NotAvailable, first_line

# One import at a time: libraries register kernels while they are imported, and some do not expect a second thread.
IMPORTING = threading.RLock()


def imported(module: str) -> Any:
    """A module that some thread has imported to its end, else None."""
    found = sys.modules.get(module)
    return None if getattr(getattr(found, "__spec__", None), "_initializing", False) else found


def library(module: str, purpose: str, package: str = "", extra: str = "") -> Any:
    """A module of a library that is not needed for everything.

    Args:
        module: what is imported, such as ``llguidance.hf``.
        purpose: what the user asked for, such as "Constraining answers"; it begins the sentence.
        package: what pip calls it, where that is not the module's first name.
        extra: of the workbench's own extras, the one that brings it.

    Raises:
        NotAvailable: it is not installed, or cannot be imported.
    """
    root = module.partition(".")[0]
    package = package or root
    try:
        with IMPORTING:
            return import_module(module)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == root
        reason = "which is not installed" if missing else f"which cannot be imported ({first_line(error)})"
        advice = f"pip install 'llm-optimization-workbench[{extra}]'" if extra else f"pip install {package}"
        raise NotAvailable(f"{purpose} is done by {package}, {reason}: run `{advice}`.") from None
