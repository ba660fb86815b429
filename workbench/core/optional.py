"""Libraries that only some features need: imported where they are used, named where they are missing."""

from importlib import import_module
from typing import Any

from workbench.core.errors import NotAvailable, first_line


def library(module: str, purpose: str, package: str = "") -> Any:
    """A module of a library that is not needed for everything.

    Args:
        module: what is imported, such as ``llguidance.hf``.
        purpose: what the user asked for, such as "Constraining answers"; it begins the sentence.
        package: what pip calls it, where that is not the module's first name.

    Raises:
        NotAvailable: it is not installed, or cannot be imported.
    """
    root = module.partition(".")[0]
    package = package or root
    try:
        return import_module(module)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == root
        reason = "which is not installed" if missing else f"which cannot be imported ({first_line(error)})"
        raise NotAvailable(f"{purpose} is done by {package}, {reason}: run `pip install {package}`.") from None
